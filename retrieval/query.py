"""The query language: clauses of text, pictures and items, each with a signed weight. docs/query.md describes it.

    2:golden retriever + ./pool.jpg - fruit

Nothing here opens a file or loads a model; `parse` and `format_query` are inverse to each other.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mmsearch.retrieval.errors import QuerySyntaxError, UsageError

if TYPE_CHECKING:
    from PIL import Image

MAX_CLAUSES = 100
_MAX_ITEM = 2**63 - 1

_WEIGHT = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?):(?!\d)", re.ASCII)
_PATH = re.compile(r"\.{0,2}/|~/")
_ID = re.compile(r"id:(?! )")
_EXAMPLE = '2:golden retriever + ./pool.jpg - "red collar"'


@dataclass(frozen=True, slots=True)
class TextClause:
    """Words.

    Attributes:
        text: what the encoder reads, without the quotes of the query.
        weight: how much it counts; below zero what is like it is pushed away.
        phrases: parts of `text`, in order, that lexical search takes as exact phrases.
    """

    text: str
    weight: float = 1.0
    phrases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _checked(self.weight))
        if not self.text.strip():
            raise UsageError("the query is empty; type what you look for")
        try:
            self.text.encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError("the query is not valid UTF-8 text") from None
        if any(not phrase.strip() for phrase in self.phrases) or len(list(_parts(self))) != 2 * len(self.phrases) + 1:
            raise UsageError("phrases are parts of the text, in its order")


@dataclass(frozen=True, slots=True)
class ImageClause:
    """A picture: a path, the bytes of a file, or a Pillow image; `weight` as `TextClause`.

    A relative path is kept as the query language writes it, with `./` before it.
    """

    image: str | Path | bytes | Image.Image
    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _checked(self.weight))
        if isinstance(self.image, str | Path):
            path = os.fspath(self.image)
            if not path:
                raise UsageError("the path of the query image is empty")
            object.__setattr__(self, "image", path if _PATH.match(path) else f"./{path}")


@dataclass(frozen=True, slots=True)
class ItemClause:
    """An item of the index: more like this one; `weight` as `TextClause`."""

    item_id: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _checked(self.weight))
        if not 1 <= self.item_id <= _MAX_ITEM:
            raise UsageError(f"item ids are numbers from 1 to {_MAX_ITEM}, not {self.item_id}")


Clause = TextClause | ImageClause | ItemClause


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for: clauses, in the order in which they were written."""

    clauses: tuple[Clause, ...]

    def __post_init__(self) -> None:
        if not self.clauses:
            raise UsageError("the query is empty; type what you look for")
        if len(self.clauses) > MAX_CLAUSES:
            raise UsageError(f"the query has {len(self.clauses)} clauses; at most {MAX_CLAUSES} can be combined")

    @classmethod
    def literal(cls, text: str) -> Query:
        """A text in which nothing has a meaning but the words."""
        return cls((TextClause(text),))

    def __str__(self) -> str:
        return format_query(self)


class _Char(NamedTuple):
    """A character of the source, where it stands, and whether it was escaped."""

    char: str
    at: int
    escaped: bool

    @property
    def is_space(self) -> bool:
        return self.char.isspace() and not self.escaped


def parse(source: str | Sequence[str], *, paths: bool = True) -> Query:
    """Reads a query.

    Args:
        source: the query, or the words of a command line.
        paths: whether clauses may be paths of pictures; a server must not open what its clients name.

    Raises:
        QuerySyntaxError: it cannot be meant; the message shows where and why.
    """
    text = source if isinstance(source, str) else " ".join(source)
    if not text.strip():
        raise QuerySyntaxError("the query is empty; type what you look for", text, 0, _EXAMPLE)
    clauses: list[Clause] = []
    for sign, at, chars in _split(text):
        if not chars:
            raise QuerySyntaxError("a clause is missing here", text, at, _EXAMPLE)
        if len(clauses) == MAX_CLAUSES:
            raise QuerySyntaxError(f"more than {MAX_CLAUSES} clauses", text, chars[0].at, _EXAMPLE)
        clauses.append(_clause(text, sign, chars, paths=paths))
    return Query(tuple(clauses))


def parse_clause(source: str, *, sign: float = 1.0, paths: bool = True) -> Clause:
    """Reads a single clause, in which `+` and `-` have no meaning.

    Raises:
        QuerySyntaxError: as `parse`.
    """
    chars = _stripped(list(_chars(source)))
    if not chars:
        raise QuerySyntaxError("the clause is empty; type what you look for", source, 0, _EXAMPLE)
    return _clause(source, sign, chars, paths=paths)


def format_query(query: Query) -> str:
    """A query as text that `parse` reads as the same query.

    Pictures that are not named by a path are written as `<image>`, which is only to be looked at.
    """
    parts: list[str] = []
    for number, clause in enumerate(query.clauses):
        if clause.weight < 0:
            parts.append("-")
        elif number:
            parts.append("+")
        parts.append(format_clause(clause, signed=False))
    return " ".join(parts)


def format_clause(clause: Clause, *, signed: bool = True) -> str:
    """A clause as text, with its weight where that is not 1; the sign of the weight first, if wanted."""
    sign = "- " if signed and clause.weight < 0 else ""
    size = abs(clause.weight)
    weight = "" if size == 1.0 else f"{size!r}:".replace(".0:", ":")
    if isinstance(clause, ItemClause):
        body = f"id:{clause.item_id}"
    elif isinstance(clause, ImageClause):
        path = clause.image if isinstance(clause.image, str) else "<image>"
        body = re.sub(r"\s+$", _escaped_blanks, _escaped(path))
    else:
        body = _formatted_text(clause, weighted=bool(weight))
    return sign + weight + body


def _checked(weight: float) -> float:
    try:
        number = float(weight)
    except OverflowError:  # an int beyond all floats
        number = math.inf
    if not math.isfinite(number) or number == 0:
        raise UsageError(f"a weight is a finite number other than 0, not {number}")
    return number


def _chars(source: str) -> Iterator[_Char]:
    """The characters of a source; a backslash takes its meaning from a quote, a sign, a blank or a backslash."""
    at = 0
    while at < len(source):
        escaped = source[at] == "\\" and at + 1 < len(source)
        following = source[at + 1] if escaped else ""
        if escaped and (following in '"\\+-' or following.isspace()):
            yield _Char(following, at, True)
            at += 2
        else:
            yield _Char(source[at], at, False)
            at += 1


def _split(source: str) -> Iterator[tuple[float, int, list[_Char]]]:
    """The clauses of a query: their sign, where they begin or are missing, and their characters without blanks."""
    chars = list(_chars(source))
    text = _text(chars)
    sign, start = 1.0, 0
    first = True
    in_quotes = False
    _, body, is_path = _head(chars, text, start)
    for at, char in enumerate(chars):
        alone = (at == 0 or chars[at - 1].is_space) and (at + 1 == len(chars) or chars[at + 1].is_space)
        if char.char in "+-" and not char.escaped and alone and not in_quotes:
            clause = _stripped(chars[start:at])
            if clause or not first:
                yield sign, char.at, clause
            first = False
            sign, start = (1.0 if char.char == "+" else -1.0), at + 1
            _, body, is_path = _head(chars, text, start)
        elif char.char == '"' and not char.escaped and not is_path:
            in_quotes = not in_quotes and _opens(chars, body, at)
    yield sign, len(source), _stripped(chars[start:])


def _head(chars: list[_Char], text: str, start: int) -> tuple[str | None, int, bool]:
    """The weight as it is written, where what it weighs begins, and whether that is a path."""
    start = _skip_blanks(chars, start)
    is_plain = start < len(chars) and not chars[start].escaped
    match = _WEIGHT.match(text, start) if is_plain else None
    if match:
        start = _skip_blanks(chars, match.end())
        is_plain = start < len(chars) and not chars[start].escaped
    return match[1] if match else None, start, is_plain and _PATH.match(text, start) is not None


def _opens(chars: list[_Char], body: int, at: int) -> bool:
    """Whether a quote begins a word, be it the first one of the clause, whose words begin at `body`."""
    return at == body or chars[at - 1].char.isspace()


def _text(chars: Sequence[_Char]) -> str:
    return "".join(char.char for char in chars)


def _skip_blanks(chars: list[_Char], at: int) -> int:
    while at < len(chars) and chars[at].is_space:
        at += 1
    return at


def _stripped(chars: list[_Char]) -> list[_Char]:
    start, end = _skip_blanks(chars, 0), len(chars)
    while start < end and chars[end - 1].is_space:
        end -= 1
    return chars[start:end]


def _clause(source: str, sign: float, chars: list[_Char], *, paths: bool) -> Clause:
    written, body, is_path = _head(chars, _text(chars), 0)
    weight = sign * float(written or 1)
    if not math.isfinite(weight) or weight == 0:
        raise QuerySyntaxError("a weight is a finite number other than 0", source, chars[0].at, _EXAMPLE)
    if body == len(chars):
        raise QuerySyntaxError("a weight without a clause", source, chars[0].at, _EXAMPLE)
    chars = chars[body:]
    at = chars[0].at
    text = _text(chars)
    if is_path:
        if not paths:
            raise QuerySyntaxError("pictures cannot be named by their path here; send the picture", source, at, "a dog")
        return ImageClause(text, weight)
    if _ID.match(text) and not chars[0].escaped:
        return ItemClause(_item_id(source, at, text.removeprefix("id:")), weight)
    is_mark = chars[0].char == "\\" and not chars[0].escaped and len(chars) > 1
    return _text_clause(source, weight, chars[1:] if is_mark else chars)


def _item_id(source: str, at: int, written: str) -> int:
    digits = written.lstrip("0")
    # Python refuses to convert thousands of digits.
    if digits.isascii() and digits.isdigit() and len(digits) <= len(str(_MAX_ITEM)) and int(digits) <= _MAX_ITEM:
        return int(digits)
    raise QuerySyntaxError("an item is named by its number, as hits show it", source, at, "id:17 - winter")


def _text_clause(source: str, weight: float, chars: list[_Char]) -> TextClause:
    phrases: list[str] = []
    text: list[str] = []
    phrase: list[str] | None = None
    opened = 0
    for number, char in enumerate(chars):
        is_quote = char.char == '"' and not char.escaped
        if is_quote and phrase is not None:
            if "".join(phrase).strip():
                phrases.append("".join(phrase))
            phrase = None
        elif is_quote and _opens(chars, 0, number):
            phrase, opened = [], char.at
        else:
            text.append(char.char)
            if phrase is not None:
                phrase.append(char.char)
    if phrase is not None:
        raise QuerySyntaxError('this quote is not closed; write \\" for a quote itself', source, opened, _EXAMPLE)
    words = "".join(text)
    if not words.strip():
        raise QuerySyntaxError("there are no words between these quotes", source, chars[0].at, _EXAMPLE)
    try:
        return TextClause(words, weight, tuple(phrases))
    except UsageError as error:
        raise QuerySyntaxError(str(error), source, chars[0].at, _EXAMPLE) from None


def _parts(clause: TextClause) -> Iterator[tuple[str, bool]]:
    """The pieces of a text and whether they are phrases: plain and phrase by turns, as far as phrases are found.

    A phrase begins a word, as a quote does, and a quote that follows another one begins none.
    """
    start = 0
    for phrase in clause.phrases:
        at = clause.text.find(phrase, start)
        while at > 0 and (at == start or not clause.text[at - 1].isspace()):
            at = clause.text.find(phrase, at + 1)
        if at < 0:
            return
        yield clause.text[start:at], False
        yield phrase, True
        start = at + len(phrase)
    yield clause.text[start:], False


def _formatted_text(clause: TextClause, *, weighted: bool) -> str:
    parts = list(_parts(clause))
    plain = [_escaped(part) for part, _ in parts]
    plain[0] = re.sub(r"^\s+", _escaped_blanks, plain[0])
    plain[-1] = re.sub(r"\s+$", _escaped_blanks, plain[-1])
    body = "".join(f'"{text}"' if quoted else text for text, (_, quoted) in zip(plain, parts, strict=True))
    misread = _PATH.match(body) or _ID.match(body) or (body[:1].isdigit() if weighted else _WEIGHT.match(body))
    return f"\\{body}" if misread else body


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return re.sub(r"(?<!\S)([+-])(?!\S)", r"\\\1", text)


def _escaped_blanks(blanks: re.Match[str]) -> str:
    return "".join(f"\\{blank}" for blank in blanks[0])
