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
        _check_weight(self.weight)
        if not self.text.strip():
            raise UsageError("the query is empty; type what you look for")
        try:
            self.text.encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError("the query is not valid UTF-8 text") from None
        if any(not phrase for phrase in self.phrases) or len(list(_parts(self))) != 2 * len(self.phrases) + 1:
            raise UsageError("phrases are parts of the text, in its order")


@dataclass(frozen=True, slots=True)
class ImageClause:
    """A picture: a path, the bytes of a file, or a Pillow image; `weight` as `TextClause`.

    A relative path is kept as the query language writes it, with `./` before it.
    """

    image: str | Path | bytes | Image.Image
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_weight(self.weight)
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
        _check_weight(self.weight)
        if self.item_id < 1:
            raise UsageError(f"item ids are 1 or more, not {self.item_id}")


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


def _check_weight(weight: float) -> None:
    if not math.isfinite(weight) or weight == 0:
        raise UsageError(f"a weight is a finite number other than 0, not {weight}")


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
    sign, start, at = 1.0, 0, 0
    first = True
    in_quotes = False
    is_path = _starts_path(chars, 0)
    while at < len(chars):
        char = chars[at]
        alone = (at == 0 or chars[at - 1].is_space) and (at + 1 == len(chars) or chars[at + 1].is_space)
        if char.char in "+-" and not char.escaped and alone and not in_quotes:
            clause = _stripped(chars[start:at])
            if clause or not first:
                yield sign, char.at, clause
            first = False
            sign, start = (1.0 if char.char == "+" else -1.0), at + 1
            is_path = _starts_path(chars, start)
        elif char.char == '"' and not char.escaped and not is_path:
            if in_quotes:
                in_quotes = False
            elif _opens(chars, start, at):
                in_quotes = True
                opened = char.at
        at += 1
    if in_quotes:
        raise QuerySyntaxError('this quote is not closed; write \\" for a quote itself', source, opened, _EXAMPLE)
    yield sign, len(source), _stripped(chars[start:])


def _opens(chars: list[_Char], start: int, at: int) -> bool:
    """Whether a quote begins a word, or follows the weight of its clause."""
    if at == start or chars[at - 1].char.isspace():
        return True
    before = "".join(char.char for char in _stripped(chars[start:at]))
    match = _WEIGHT.match(before)
    return match is not None and match.end() == len(before)


def _starts_path(chars: list[_Char], start: int) -> bool:
    text = "".join(char.char for char in _stripped(chars[start : start + 64]))
    weight = _WEIGHT.match(text)
    return _PATH.match(text, weight.end() if weight else 0) is not None


def _stripped(chars: list[_Char]) -> list[_Char]:
    start, end = 0, len(chars)
    while start < end and chars[start].is_space:
        start += 1
    while start < end and chars[end - 1].is_space:
        end -= 1
    return chars[start:end]


def _clause(source: str, sign: float, chars: list[_Char], *, paths: bool) -> Clause:
    at = chars[0].at
    text = "".join(char.char for char in chars)
    weight = sign
    match = _WEIGHT.match(text) if not chars[0].escaped else None
    if match:
        weight *= float(match[1])
        if not math.isfinite(weight) or weight == 0:
            raise QuerySyntaxError("a weight is a finite number other than 0", source, at, _EXAMPLE)
        chars = _stripped(chars[match.end() :])
        if not chars:
            raise QuerySyntaxError("a weight without a clause", source, at, _EXAMPLE)
        text = "".join(char.char for char in chars)
        at = chars[0].at
    if chars[0].escaped or chars[0].char == "\\":
        return _text_clause(source, weight, chars[0 if chars[0].escaped else 1 :] or chars)
    if _PATH.match(text):
        if not paths:
            raise QuerySyntaxError("pictures cannot be named by their path here; send the picture", source, at, "a dog")
        return ImageClause(text, weight)
    if _ID.match(text):
        number = text[3:]
        if not (number.isascii() and number.isdigit() and 0 < int(number[:20]) < 2**63):
            raise QuerySyntaxError("an item is named by its number, as hits show it", source, at, "id:17 - winter")
        return ItemClause(int(number), weight)
    return _text_clause(source, weight, chars)


def _text_clause(source: str, weight: float, chars: list[_Char]) -> TextClause:
    phrases: list[str] = []
    text: list[str] = []
    phrase: list[str] | None = None
    for number, char in enumerate(chars):
        if char.char == '"' and not char.escaped and phrase is not None:
            if "".join(phrase).strip():
                phrases.append("".join(phrase))
            phrase = None
        elif char.char == '"' and not char.escaped and (number == 0 or chars[number - 1].char.isspace()):
            phrase = []
        else:
            text.append(char.char)
            if phrase is not None:
                phrase.append(char.char)
    words = "".join(text)
    if not words.strip():
        raise QuerySyntaxError("there are no words between these quotes", source, chars[0].at, _EXAMPLE)
    try:
        return TextClause(words, weight, tuple(phrases))
    except QuerySyntaxError:
        raise
    except UsageError as error:
        raise QuerySyntaxError(str(error), source, chars[0].at, _EXAMPLE) from None


def _parts(clause: TextClause) -> Iterator[tuple[str, bool]]:
    """The pieces of a text and whether they are phrases: plain and phrase by turns, as far as phrases are found.

    A phrase begins a word, as a quote does.
    """
    start = 0
    for phrase in clause.phrases:
        at = clause.text.find(phrase, start)
        while at > 0 and not clause.text[at - 1].isspace():
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
