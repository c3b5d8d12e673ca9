"""The filter language: exact, unscored conditions on what is known of items. docs/filters.md describes it.

    width >= 1000 and path ~ "*/beach/*" and not tag = draft

`parse_filter` and `format_filter` are inverse to each other; `retrieval.conditions` makes SQL of a filter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mmsearch.retrieval.errors import FilterSyntaxError, UsageError
from mmsearch.retrieval.periods import Period, read_period

MAX_COMPARISONS = 200
"""Values of lists counted."""
MAX_DEPTH = 12
"""Of parentheses and `not`; of 17 of them the parser of SQLite can run out of stack."""
MAX_VALUE = 4096
"""Characters of a value or of the name of a column; no path is longer."""

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "~"]
Kind = Literal["number", "size", "date", "year", "modality", "text", "any"]
"""What a field is compared with; `any` are the fields of manifests, whose values have types of their own."""

FIELDS: dict[str, Kind] = {
    "path": "text",
    "folder": "text",
    "ext": "text",
    "modality": "modality",
    "size": "size",
    "width": "number",
    "height": "number",
    "taken": "date",
    "modified": "date",
    "year": "year",
    "camera": "text",
    "lat": "number",
    "lon": "number",
    "tag": "text",
}
"""The fields of a filter, beside `meta.NAME`."""

_EXAMPLE = "width >= 1000 and taken in 2024-05..2024-08 and not tag = draft"
_NEAR = "near(48.137, 11.575, 20km)"
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_METRES = {"m": 1.0, "km": 1000.0, "mi": 1609.344}
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
_QUOTED = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_TOKEN = re.compile(
    rf"""(?P<quoted>{_QUOTED})|(?P<sign><=|>=|!=|==|[=<>~(),])|(?P<word>meta\.{_QUOTED}|[^\s"'=<>~(),!]+)""",
    re.S | re.I,
)
_OTHER_NAMES = {
    "bytes": "size",
    "date": "taken",
    "day": "taken",
    "directory": "folder",
    "extension": "ext",
    "file": "path",
    "filename": "path",
    "format": "ext",
    "gps": "near",
    "keyword": "tag",
    "label": "tag",
    "location": "near",
    "latitude": "lat",
    "longitude": "lon",
    "make": "camera",
    "model": "camera",
    "month": "taken",
    "mtime": "modified",
    "name": "path",
    "place": "near",
    "time": "taken",
    "type": "ext",
}
"""What people call some fields elsewhere."""

Value = float | int | str | bool | Period


@dataclass(frozen=True, slots=True)
class Compare:
    """A field against a value. `field` is a name of `FIELDS`, or `meta.` and the name of a column."""

    field: str
    operator: Operator
    value: Value


@dataclass(frozen=True, slots=True)
class Between:
    """A field within a range, both ends included; None for an open end."""

    field: str
    low: Value | None
    high: Value | None


@dataclass(frozen=True, slots=True)
class OneOf:
    """A field equal to one of several values."""

    field: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Near:
    """A place within a distance of another: degrees, and metres."""

    latitude: float
    longitude: float
    metres: float


@dataclass(frozen=True, slots=True)
class Not:
    """What a filter does not let through."""

    filter: Filter


@dataclass(frozen=True, slots=True)
class And:
    """What all filters let through; two at least."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """What one of the filters lets through; two at least."""

    filters: tuple[Filter, ...]


Filter = Compare | Between | OneOf | Near | Not | And | Or


def parse_filter(text: str) -> Filter:
    """Reads a filter.

    Raises:
        FilterSyntaxError: it cannot be meant; the message shows where and why.
        UsageError: it is no text at all.
    """
    if not isinstance(text, str):
        raise UsageError(f"a filter is a text, such as '{_EXAMPLE}', not {type(text).__name__}")
    return _Parser(text).parse()


def format_filter(filter_: Filter) -> str:
    """A filter as text that `parse_filter` reads as the same filter."""
    match filter_:
        case Compare(field, operator, value):
            return f"{_field(field)} {operator} {_literal(value)}"
        case Between(field, low, high):
            ends = ["" if end is None else _literal(end) for end in (low, high)]
            return f"{_field(field)} in {'..'.join(ends)}"
        case OneOf(field, values):
            return f"{_field(field)} in ({', '.join(map(_literal, values))})"
        case Near(latitude, longitude, metres):
            return f"near({latitude!r}, {longitude!r}, {metres!r}m)"
        case Not(inner):
            return f"not {_nested(inner)}"
        case And(filters):
            return " and ".join(_nested(one) for one in filters)
        case Or(filters):
            return " or ".join(_nested(one) for one in filters)


def _nested(filter_: Filter) -> str:
    text = format_filter(filter_)
    return f"({text})" if isinstance(filter_, And | Or) else text


def _field(name: str) -> str:
    column = name.removeprefix("meta.")
    plain = name in FIELDS or re.fullmatch(r"[\w.-]+", column)
    return name if plain else f"meta.{_quoted(column)}"


def _literal(value: Value) -> str:
    if isinstance(value, Period):
        return value.written
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.S)


def _no_field(name: str) -> str:
    from difflib import get_close_matches

    fields = [*FIELDS, "meta.NAME"]
    near = get_close_matches(name.lower(), [*fields, "near"], 1)
    meant = _OTHER_NAMES.get(name.lower()) or (near[0] if near else None)
    meant = _NEAR if meant == "near" else meant
    shown = name if len(name) <= 40 else f"{name[:40]}..."
    hint = f"did you mean `{meant}`?" if meant else f"a column of a manifest is `{_field(f'meta.{shown}')}`."
    return f"there is no field `{shown}`; {hint} The fields are {', '.join(fields)}"


def _is_reversed(first: Value | None, last: Value | None) -> bool:
    if isinstance(first, Period) and isinstance(last, Period):
        return first.start >= last.end
    return isinstance(first, int | float) and isinstance(last, int | float) and first > last


def _after_blanks(source: str, at: int) -> int:
    while at < len(source) and source[at].isspace():
        at += 1
    return at


class _Token(NamedTuple):
    """A token, where it begins, and which kind it is: `quoted`, `sign`, `word` or `end`."""

    text: str
    at: int
    kind: str


class _Parser:
    """Recursive descent: or, and, not, then comparisons and parentheses."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens = self._split()
        self._next = 0
        self._comparisons = 0
        self._depth = 0

    def parse(self) -> Filter:
        if len(self._tokens) == 1:
            raise self._error("the filter is empty", 0)
        filter_ = self._or()
        token = self._peek()
        if token.kind == "sign" and token.text == ")":
            raise self._error("this parenthesis was not opened", token.at)
        if token.kind != "end":
            raise self._error("`and` or `or` is missing here; a value of several words stands in quotes", token.at)
        return filter_

    # Tokens

    def _split(self) -> list[_Token]:
        source = self._source
        if unusable := _UNUSABLE.search(source):
            raise self._error("this character is no text; `?` and `*` in a glob stand for any", unusable.start())
        tokens: list[_Token] = []
        at = _after_blanks(source, 0)
        while at < len(source):
            match = _TOKEN.match(source, at)
            if match is None:
                is_quote = source[at] in "\"'"
                raise self._error("this quote is not closed" if is_quote else f"`{source[at]}` means nothing here", at)
            kind = match.lastgroup or ""
            tokens.append(_Token(match[kind], at, kind))
            at = _after_blanks(source, match.end())
        return [*tokens, _Token("", len(source), "end")]

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        self._next += token.kind != "end"
        return token

    def _is(self, word: str) -> bool:
        token = self._peek()
        return token.kind in ("word", "sign") and token.text.lower() == word

    def _expect(self, sign: str) -> None:
        token = self._take()
        if token.text != sign or token.kind != "sign":
            raise self._error(f"`{sign}` is missing here", token.at)

    def _error(self, problem: str, at: int, example: str = _EXAMPLE) -> FilterSyntaxError:
        return FilterSyntaxError(problem, self._source, at, example)

    # Grammar

    def _or(self) -> Filter:
        filters = [self._and()]
        while self._is("or"):
            self._take()
            filters.append(self._and())
        return filters[0] if len(filters) == 1 else Or(tuple(filters))

    def _and(self) -> Filter:
        filters = [self._not()]
        while self._is("and"):
            self._take()
            filters.append(self._not())
        return filters[0] if len(filters) == 1 else And(tuple(filters))

    def _not(self) -> Filter:
        is_not = self._is("not")
        if not (is_not or self._is("(")):
            return self._comparison()
        token = self._take()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} levels of parentheses and `not`", token.at)
        filter_ = Not(self._not()) if is_not else self._or()
        if not is_not:
            self._expect(")")
        self._depth -= 1
        return filter_

    def _comparison(self) -> Filter:
        token = self._take()
        if token.kind == "end":
            raise self._error("a comparison is missing here", token.at)
        if self._next > 1 and self._ends_here() and token.text.lower() not in FIELDS:
            message = "a comparison has a field, an operator and a value; one of several values is asked for with `in`"
            raise self._error(message, token.at, "ext in (jpg, png)")
        if token.kind != "word":
            raise self._error("a field is missing here", token.at)
        if token.text.lower() == "near" and self._is("("):
            self._counted(token)
            return self._near()
        field = self._field_of(token)
        kind = FIELDS.get(field, "any")
        sign = self._take()
        if sign.text.lower() == "in" and sign.kind == "word":
            return self._in(field, kind)
        self._counted(token)
        operator = "=" if sign.text == "==" else sign.text
        if sign.kind != "sign" or operator in "(),":
            message = f"an operator is missing after `{token.text}`: = != < <= > >= in ~"
            message += "; `not` stands before the field" if sign.text.lower() == "not" else ""
            raise self._error(message, sign.at)
        if kind in ("text", "modality") and operator[0] in "<>":
            raise self._error(f"`{field}` is text, which is compared with = != in ~", sign.at)
        if kind not in ("text", "modality", "any") and operator == "~":
            raise self._error(f"`~` compares text, and `{field}` is none", sign.at)
        value = self._taken_value(f"after `{sign.text}`")
        read = self._value(value, "text" if operator == "~" else kind)
        if isinstance(read, bool) and operator[0] in "<>":
            raise self._error(f"`{value.text}` is compared with = and != only", value.at, "meta.draft = true")
        return Compare(field, operator, read)  # type: ignore[arg-type]

    def _ends_here(self) -> bool:
        return self._peek().kind == "end" or any(self._is(word) for word in (")", "and", "or"))

    def _counted(self, token: _Token) -> None:
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            raise self._error(f"more than {MAX_COMPARISONS} comparisons and values of lists", token.at)

    def _taken_value(self, where: str = "here") -> _Token:
        token = self._take()
        if token.kind in ("word", "quoted"):
            return token
        hint = "; one with signs in it stands in quotes" if token.kind == "sign" and token.text not in "()," else ""
        raise self._error(f"a value is missing {where}{hint}", token.at)

    def _field_of(self, token: _Token) -> str:
        name = token.text
        if name.lower().startswith("meta."):
            is_quoted = name[5:6] in ('"', "'")
            column = self._text_of(_Token(name[5:], token.at, "quoted" if is_quoted else "word"))
            if not column:
                raise self._error("the name of a column is missing", token.at, "meta.price < 40")
            return f"meta.{column}"
        if name.lower() in FIELDS:
            return name.lower()
        if name.lower() in ("and", "or", "in"):
            raise self._error(f"a comparison is missing before `{name}`", token.at)
        raise self._error(_no_field(name), token.at)

    def _in(self, field: str, kind: Kind) -> Filter:
        if self._is("("):
            values = [self._listed(kind)]
            while self._is(","):
                values.append(self._listed(kind))
            self._expect(")")
            return OneOf(field, tuple(values))
        token = self._take()
        self._counted(token)
        is_text = kind in ("text", "modality")
        if is_text or token.kind != "word" or ".." not in token.text:
            message = "after `in` comes a list in parentheses" + ("" if is_text else ", or a range without blanks")
            raise self._error(message, token.at, "ext in (jpg, png) and year in 2020..2024")
        low, _, high = token.text.partition("..")
        if not low and not high:
            raise self._error("a range needs one end at least", token.at, "year in 2020..")
        first, last = (
            self._value(_Token(text, at, "word"), kind) if text else None
            for text, at in ((low, token.at), (high, token.at + len(low) + 2))
        )
        if isinstance(first, str | bool) or isinstance(last, str | bool):
            raise self._error(
                "a range is of numbers; texts are compared with >= and <=", token.at, "meta.price in 10..20"
            )
        if _is_reversed(first, last):
            raise self._error("this range ends before it begins", token.at, f"{field} in {high}..{low}")
        return Between(field, first, last)

    def _listed(self, kind: Kind) -> Value:
        """The next value of a list, with the sign before it."""
        self._take()
        token = self._taken_value()
        self._counted(token)
        return self._value(token, kind)

    def _near(self) -> Filter:
        self._expect("(")
        numbers: list[float] = []
        for number, (name, most) in enumerate((("latitude", 90.0), ("longitude", 180.0))):
            if number:
                self._expect(",")
            token = self._take()
            if not _NUMBER.fullmatch(token.text) or abs(float(token.text)) > most:
                raise self._error(f"a {name} is a number from -{most:g} to {most:g}", token.at, _NEAR)
            numbers.append(float(token.text))
        self._expect(",")
        token = self._with_unit(self._take(), _METRES)
        match = re.fullmatch(rf"({_NUMBER.pattern})\s*(m|km|mi)", token.text, re.ASCII | re.I)
        if match is None or not 0 < float(match[1]) * _METRES[match[2].lower()] < math.inf:
            raise self._error("a distance is a number above 0 with m, km or mi", token.at, _NEAR)
        self._expect(")")
        return Near(numbers[0], numbers[1], float(match[1]) * _METRES[match[2].lower()])

    def _with_unit(self, token: _Token, units: Collection[str]) -> _Token:
        """A number together with the unit that follows it after a blank."""
        unit = self._peek()
        if token.kind == "word" and unit.kind == "word" and unit.text.lower() in units:
            return _Token(token.text + self._take().text, token.at, "word")
        return token

    # Values

    def _value(self, token: _Token, kind: Kind) -> Value:
        if kind == "size":
            token = self._with_unit(token, _BYTES)
        text = self._text_of(token)
        readers: dict[Kind, Callable[[str, int], Value]] = {
            "number": self._number,
            "size": self._size,
            "date": self._period,
            "year": self._year,
            "modality": self._modality,
        }
        if kind in readers:
            return readers[kind](text, token.at)
        if kind == "any" and token.kind == "word":
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
            if _NUMBER.fullmatch(text):
                return self._number(text, token.at)
        return text

    def _text_of(self, token: _Token) -> str:
        text = _unquoted(token.text) if token.kind == "quoted" else token.text
        if len(text) > MAX_VALUE:
            raise self._error(f"this is longer than {MAX_VALUE:,} characters, as no value and no name is", token.at)
        return text

    def _number(self, text: str, at: int) -> float | int:
        if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
            raise self._error("a number is needed here", at)
        if re.fullmatch(r"[+-]?\d{1,18}", text):
            return int(text)
        return float(text)

    def _size(self, text: str, at: int) -> float | int:
        match = re.fullmatch(rf"({_NUMBER.pattern})\s*([a-zA-Z]*)", text, re.ASCII)
        if match is None or match[2].lower() not in _BYTES:
            raise self._error("a size is a number of bytes, or of kB, MB, GB, KiB, MiB, GiB", at, "size > 1.5MB")
        number = self._number(match[1], at) * _BYTES[match[2].lower()]
        if not math.isfinite(number):
            raise self._error("no file is as large as that", at, "size > 1.5MB")
        return int(number) if number == int(number) and abs(number) < 2**63 else float(number)

    def _year(self, text: str, at: int) -> Period:
        if not re.fullmatch(r"\d{4}", text, re.ASCII):
            raise self._error("a year has four digits", at, "year in 2020..2024")
        return self._period(text, at)

    def _period(self, text: str, at: int) -> Period:
        try:
            return read_period(text)
        except ValueError as error:
            raise self._error(str(error), at, "taken in 2024-05..2024-08") from None

    def _modality(self, text: str, at: int) -> str:
        if text.lower() not in ("image", "text"):
            raise self._error("a modality is image or text", at, "modality = text")
        return text.lower()
