"""Rows: what a manifest or a Python caller says of one item, checked and made plain.

A row that cannot be used becomes a `BadRow` with its reason; it never ends the reading, and it keeps the key of the
row it stands for, so that a mistake in a manifest does not read as "this row is gone".
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, time, timedelta
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from urllib.parse import quote, unquote, unquote_to_bytes

from mmsearch.retrieval.errors import UsageError

TEXT_NAMES = ("text", "caption", "captions")
IMAGE_NAMES = ("image", "path", "file_name")
ID_NAMES = ("id",)
"""Names of columns, and of keys of Python dicts, that need not be explained; the first one there is taken."""

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # two letters at least: C:// is a drive
_FILE_URL = re.compile(r"file://(?:localhost)?(?=/)", re.IGNORECASE)
_INT64 = range(-(2**63), 2**63)
_EXACT_FLOAT = 2**53  # beyond, neighbouring whole numbers share a float
_MOST_NESTED = 64
_DOMAIN = b"mmsearch row"  # blake2b's personalisation: no file's content hash can equal a row's digest


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something to index, as a Python caller gives it; a text or an image is needed.

    Attributes:
        id: stable name of the item; the same id given later replaces it.
        text: a text, or several captions of the same picture.
        image: a path, or the bytes of a picture file.
        meta: fields to filter by: JSON values, dates and times.
    """

    id: str | int | None = None
    text: str | Sequence[str] | None = None
    image: str | os.PathLike[str] | bytes | None = None
    meta: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """A row that can be indexed.

    Attributes:
        key: names the row inside its source: `id=` and the id, percent-encoded with `/` and `~`, or `row=` and the
            first 16 hex digits of its digest; then `~2`, `~3`... where several rows would have the same.
        number: where it stands, from 1; for messages.
        texts: none of them blank.
        image: absolute path of a picture, or the bytes of one.
        meta: JSON object with sorted keys, or None if there is nothing in it.
        digest: blake2b of everything the row says (a picture's path, or a hash of its bytes).
    """

    key: str
    number: int
    texts: tuple[str, ...]
    image: str | bytes | None
    meta: str | None
    digest: bytes


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used; `error` is one line that a person can act on. See `Row` for `key` and `number`."""

    key: str
    number: int
    error: str


def row_of(
    number: int, *, id: object, text: object, image: object, meta: Mapping[str, object], base: str, home: bool = False
) -> Row | BadRow:
    """Checks the raw values of a row.

    Text is a string, a number (taken as its decimal digits) or a list of those. An id is a string or a whole number.
    NaN is what tables have where nothing is, so it counts as nothing everywhere. Values of `meta` that are nothing are
    left out (in lists they become null); dates and times become ISO 8601, durations seconds, decimals and integers
    beyond 64 bits (SQLite has none) numbers that fit. Bytes have no place in `meta`.

    Args:
        number: where the row stands, from 1.
        id: names the row; nothing, if it is None or blank.
        text: what is searched as text.
        image: path, `file://` URL, path object or the bytes of a picture.
        meta: fields to filter by.
        base: absolute folder that relative paths start from.
        home: whether a leading `~` is the user's home.
    """
    try:
        name = _id(id)
        texts = _texts(text)
        picture = _picture(image, base, home)
        fields = _meta(meta)
        if not texts and picture is None:
            raise ValueError("it has neither a text nor an image")
    except ValueError as error:
        return bad_row(number, str(error), id=id, said=(text, image, meta))
    said = {"bytes": _hash(picture).hex()} if isinstance(picture, bytes) else picture
    digest = _hash(json.dumps([name, texts, said, fields]).encode("ascii"))
    return Row(_key(name, digest), number, texts, picture, fields, digest)


def bad_row(number: int, error: str, *, id: object, said: object) -> BadRow:
    """A row that is known to be bad; `said` is what tells it from others where it has no usable id."""
    try:
        name = _id(id)
    except ValueError:
        name, said = None, (id, said)
    digest = _hash(repr(said).encode("utf-8", "backslashreplace"))
    return BadRow(_key(name, digest), number, " ".join(error.split()))


def picture_path(value: str, base: str, *, home: bool = False) -> str | None:
    """The absolute path of a picture that a row names, or None where it is blank.

    Bytes that are no UTF-8 may stand in it as `os.fsdecode` writes them.

    Raises:
        ValueError: it is no path of this machine; the message says what to do.
    """
    if not value.strip():
        return None
    path = value
    if _FILE_URL.match(value):
        path = os.fsdecode(unquote_to_bytes(os.fsencode(_FILE_URL.sub("", value, count=1))))
    elif _URL.match(value):
        if value[:7].lower() == "file://":
            raise ValueError(f"the image {_shown(value)} is on another machine; write file:///path or the path alone")
        raise ValueError(f"the image {_shown(value)} is a URL; download it first: mmsearch fetches nothing")
    elif home:
        path = os.path.expanduser(value)
    if "\0" in path:
        raise ValueError("the image has a NUL character in its path")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError(f"the image {_shown(value)} cannot be the name of a file") from None
    path = os.path.normpath(os.path.join(base, path))
    return path[1:] if path.startswith("//") and os.sep == "/" else path  # POSIX leaves two slashes as they are


def unique(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Gives every row a key of its own.

    The n-th row with an id gets `~n` after it. If it has the picture of the first one, it is a further caption of it;
    otherwise it is bad. Equal rows without an id are counted in the same way, and all of them are good. A bad row
    keeps its place in the count, so that the others have the same keys once it is repaired.
    """
    numbers: dict[str, int] = {}
    pictures: dict[str, int | None] = {}  # of ids: hash of the picture; None: no picture, so no further caption
    counts: dict[str, int] = {}  # of keys that came more than once
    for row in rows:
        key = row.key
        first = numbers.setdefault(key, row.number)
        repeated = key in counts or first != row.number
        if repeated:
            counts[key] = counts.get(key, 1) + 1
            row = replace(row, key=f"{key}~{counts[key]}")
        if isinstance(row, Row) and key.startswith("id="):
            picture = None if row.image is None else hash(row.image)
            known = pictures.setdefault(key, picture)
            if repeated and (picture is None or picture != known):
                row = BadRow(row.key, row.number, f"the id {unquote(key[3:])!r} is used by row {first} already")
        yield row


def rows_of(items: Iterable[Item | Mapping[str, object]], base: Path) -> Iterator[Row | BadRow]:
    """The rows of Python items: `Item`s, or dicts with the keys `id`, `text`, `image` and `meta`.

    In a dict `caption` and `captions` are as good as `text`, `path` and `file_name` as `image`; the first that is not
    None is taken, and all other keys are joined with `meta`. A leading `~` of a path is the user's home.

    Args:
        items: read one by one; nothing is kept but keys.
        base: folder that relative paths start from.

    Raises:
        UsageError: an element is neither.
    """
    return unique(_rows_of(items, os.path.abspath(base)))


def _rows_of(items: Iterable[Item | Mapping[str, object]], base: str) -> Iterator[Row | BadRow]:
    for number, item in enumerate(items, 1):
        id: object
        text: object
        image: object
        meta: object
        if isinstance(item, Item):
            id, text, image, meta, others = item.id, item.text, item.image, item.meta, {}
        elif isinstance(item, Mapping):
            others = dict(item)
            id, text, image = (_taken(others, names) for names in (ID_NAMES, TEXT_NAMES, IMAGE_NAMES))
            meta = others.pop("meta", None)
        else:
            raise UsageError(
                f"item {number} is of type {_kind(item)}; give mmsearch.Item(text=..., image=...) or a dict like it"
            )
        if meta is None or isinstance(meta, Mapping):
            joined = {**(meta or {}), **others}
            yield row_of(number, id=id, text=text, image=image, meta=joined, base=base, home=True)
        else:
            error = f"meta is of type {_kind(meta)}; it must be a dict"
            yield bad_row(number, error, id=id, said=(text, image, meta, others))


def _taken(fields: dict[str, object], names: Sequence[str]) -> object:
    """Takes the first of `names` that says something out of `fields`."""
    for name in names:
        if fields.get(name) is not None:
            return fields.pop(name)
    return None


def id_key(id: object) -> str:
    """The key of a row with that id; a UsageError where it can be none."""
    try:
        name = _id(id)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if name is None:
        raise UsageError("an id is empty")
    return _key(name, b"")


def plain_meta(fields: Mapping[str, object] | None) -> str | None:
    """Fields as `Row.meta` has them; a UsageError where one cannot be stored."""
    try:
        return _meta(fields or {})
    except ValueError as error:
        raise UsageError(str(error)) from None


def _key(name: str | None, digest: bytes) -> str:
    if name is None:
        return f"row={digest.hex()[:16]}"
    return "id=" + quote(name, safe="").replace("~", "%7E")  # `~` counts rows with the same key


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=32, person=_DOMAIN).digest()


def _id(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        name = value.strip()
        _check(name, "the id")
        return name or None
    number = _plain_number(value)
    if isinstance(number, int):
        return str(number)
    if number is not None and math.isnan(number):
        return None
    if isinstance(number, float) and number.is_integer() and abs(number) <= _EXACT_FLOAT:
        return str(int(number))
    if isinstance(number, Decimal) and number.is_finite() and number == number.to_integral_value():
        return str(int(number))
    raise ValueError(f"the id {_shown(value)} is neither a text nor a whole number")


def _texts(value: object) -> tuple[str, ...]:
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)
    texts = map(_text, value) if several and isinstance(value, Sequence) else (_text(value),)
    return tuple(text for text in texts if text is not None)


def _text(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        _check(value, "the text")
        return value if value.strip() else None
    number = _plain_number(value)
    if number is not None:
        return _digits(number)
    raise ValueError(f"the text is of type {_kind(value)}; it must be a text, a number or a list of texts")


def _plain_number(value: object) -> int | float | Decimal | None:
    """A number as one of Python's own types (numpy has others); None for anything else, and for truth values."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Decimal):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else None


def _digits(value: float | Decimal) -> str | None:
    """A number as its decimal digits, without an exponent; None for NaN."""
    if isinstance(value, int):
        return str(value)
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    if exact.is_nan():
        return None
    if exact.is_infinite():
        raise ValueError("the text is an infinite number")
    return format(exact, "f")


def _picture(value: object, base: str, home: bool) -> str | bytes | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes | bytearray | memoryview):
        if not len(value):
            raise ValueError("the image has no bytes in it")
        return bytes(value)
    if isinstance(value, str | os.PathLike):
        return picture_path(os.fsdecode(value), base, home=home)
    raise ValueError(f"the image is of type {_kind(value)}; give its path or the bytes of its file")


def _meta(fields: Mapping[str, object]) -> str | None:
    kept = _object(fields, "", 0)
    if not kept:
        return None
    return json.dumps(kept, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def _object(fields: Mapping[str, object], within: str, depth: int) -> dict[str, object]:
    kept: dict[str, object] = {}
    for key, value in fields.items():
        if not isinstance(key, str):
            raise ValueError(f"the field {within}{_shown(key)} has a name that is no text")
        name = f"{within}{key}"
        _check(key, f"the name of the field {_shown(name)}")
        plain = _json(value, name, depth)
        if plain is not None:
            kept[key] = plain
    return kept


def _json(value: object, name: str, depth: int) -> object:
    """A value as JSON has it; None where there is nothing.

    Raises:
        ValueError: JSON has nothing like it, or SQLite could not store it.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        _check(value, f"the field {_shown(name)}")
        return value
    number = _plain_number(value)
    if number is not None:
        return _number(number)
    if _kind(value) in ("bool_", "bool"):  # numpy's
        return bool(value)
    if isinstance(value, date | time):
        return value.isoformat() if value == value else None  # pandas' NaT is not equal to itself
    if isinstance(value, timedelta):
        return value.total_seconds() if value == value else None
    if depth == _MOST_NESTED:
        raise ValueError(f"the field {_shown(name)} is nested more than {_MOST_NESTED} deep")
    if isinstance(value, Mapping):
        return _object(value, f"{name}.", depth + 1)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_json(each, name, depth + 1) for each in value]
    raise ValueError(f"the field {_shown(name)} is of type {_kind(value)}, which cannot be stored")


def _number(value: float | Decimal) -> int | float | None:
    """A number that JSON and SQLite have; None for NaN and what is infinite as a float."""
    if isinstance(value, Decimal) and not value.is_finite():
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    if not math.isfinite(number):
        return None
    whole = isinstance(value, int) or (isinstance(value, Decimal) and value == value.to_integral_value())
    return int(value) if whole and int(value) in _INT64 else number


def _check(text: str, name: str) -> None:
    """Refuses what a database or a tokenizer would change without a word."""
    if "\0" in text:
        raise ValueError(f"{name} has a NUL character in it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} is not valid UTF-8") from None


def _kind(value: object) -> str:
    return type(value).__name__


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
