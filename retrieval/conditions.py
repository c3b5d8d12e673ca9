"""Filters as SQL over `items JOIN assets`. Whatever a user has written is bound, never part of the statement."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.filters import And, Between, Compare, Filter, Near, Not, OneOf, Or, Period, Value, parse_filter
from mmsearch.retrieval.store.records import Condition

if TYPE_CHECKING:
    from mmsearch.retrieval.store.reader import Snapshot, StoredRoot
    from mmsearch.retrieval.types import Modality

_EARTH_METRES = 6_371_008.8
_COLUMNS = {
    "width": "width",
    "height": "height",
    "lat": "latitude",
    "lon": "longitude",
    "camera": "camera",
    "taken": "taken",
    "year": "taken",
    "size": "size",
    "modified": "mtime_ns",
}
_OWN = frozenset({"size", "modified"})  # of the file itself; the rest a text has of its picture too


class _Sql(NamedTuple):
    """An expression that is true, false or unknown, and what is bound to it."""

    text: str
    bound: tuple[object, ...] = ()


def compile_filter(filter_: Filter, roots: Sequence[StoredRoot], modality: Modality) -> Condition:
    """The condition that items of a modality pass.

    A text that belongs to a picture has what is known of the picture, and a picture has the fields of its rows.

    Args:
        filter_: what `parse_filter` gave.
        roots: of the snapshot that is searched.
        modality: of the items.

    Raises:
        UsageError: a value is too large for a database.
    """
    sql = _Compiler(roots, modality).compile(filter_)
    return Condition(sql.text, sql.bound, frozenset(_fields(filter_)))


def condition_of(where: str, snapshot: Snapshot, modality: Modality) -> Condition:
    """The condition of a filter as it is written, ready to be used on this snapshot.

    Raises:
        FilterSyntaxError: it cannot be read.
        UsageError: a value is too large for a database.
    """
    filter_ = parse_filter(where)
    snapshot.register(FUNCTIONS)
    return compile_filter(filter_, snapshot.roots(), modality)


def _fields(filter_: Filter) -> Iterator[str]:
    match filter_:
        case Compare(field=field) | Between(field=field) | OneOf(field=field):
            yield field
        case Near():
            yield from ("lat", "lon")
        case Not(inner):
            yield from _fields(inner)
        case And(filters) | Or(filters):
            for one in filters:
                yield from _fields(one)


class _Compiler:
    def __init__(self, roots: Sequence[StoredRoot], modality: Modality) -> None:
        self._roots = roots
        self._modality = modality

    def compile(self, filter_: Filter) -> _Sql:
        match filter_:
            case And(filters):
                return _joined(" AND ", [self.compile(one) for one in filters])
            case Or(filters):
                return _joined(" OR ", [self.compile(one) for one in filters])
            case Not(inner):
                return _not(self.compile(inner))
            case Near(latitude, longitude, metres):
                return self._owned(lambda table: _near(table, latitude, longitude, metres))
            case Between(field, low, high):
                ends = [(">=", low), ("<=", high)]
                return _joined(" AND ", [self._compare(field, sign, end) for sign, end in ends if end is not None])
            case OneOf(field, values):
                return _joined(" OR ", [self._compare(field, "=", value) for value in values])
            case Compare(field, "!=", value):
                return _not(self._compare(field, "=", value))
            case Compare(field, operator, value):
                return self._compare(field, operator, value)

    def _compare(self, field: str, operator: str, value: Value) -> _Sql:
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UsageError(f"{value} is too large a number for a filter")
        if field.startswith("meta."):
            return self._meta(field[5:], operator, value)
        if field == "modality":
            return _text("items.modality", operator, str(value))
        if field in ("path", "folder", "ext"):
            return self._place(field, operator, str(value))
        if field == "tag":
            return _tagged(operator, str(value), owned=self._modality == "text")
        column = _COLUMNS[field]
        if field in _OWN:
            return _own(column, operator, value)
        return self._owned(lambda table: _known(f"{table}.{column}", operator, value))

    def _owned(self, test: Callable[[str], _Sql]) -> _Sql:
        """A test of an asset, or of the picture that it belongs to."""
        own = test("assets")
        if self._modality == "image":
            return own
        picture = test("picture")
        found = _Sql(
            "EXISTS (SELECT 1 FROM assets AS picture WHERE picture.root_id = assets.owner_root_id"
            f" AND picture.uri = assets.owner_uri AND {picture.text})",
            picture.bound,
        )
        return _joined(" OR ", [own, found])

    def _meta(self, column: str, operator: str, value: Value) -> _Sql:
        own = _meta_of("assets", column, operator, value)
        if self._modality == "text":
            return own
        row = _meta_of("owned", column, operator, value)
        found = _Sql(
            "EXISTS (SELECT 1 FROM assets AS owned WHERE owned.owner_root_id = assets.root_id"
            f" AND owned.owner_uri = assets.uri AND {row.text})",
            row.bound,
        )
        return _joined(" OR ", [own, found])

    # Paths

    def _place(self, field: str, operator: str, value: str) -> _Sql:
        place = self._encoded_path()
        if field == "ext":
            wanted = value.removeprefix(".")
            if operator == "=" and wanted.isascii() and wanted.isalnum():
                letters = "".join(f"[{char.lower()}{char.upper()}]" if char.isalpha() else char for char in wanted)
                return _Sql(f"{place.text} GLOB ?", (*place.bound, f"*.{letters}"))
            pattern = wanted if operator == "~" else _literal_glob(wanted)
            return _Sql(f"mmsearch_ext(?, {place.text})", (pattern, *place.bound))
        if operator == "~":
            pattern = value if value.startswith(("/", "*")) else f"*/{value}"
        else:
            pattern = _literal_glob(value) if "/" in value else f"*/{_literal_glob(value)}"
        pattern = _literal_glob(os.path.expanduser("~")) + pattern[1:] if pattern.startswith("~/") else pattern
        if field == "folder":
            trimmed = f"rtrim({place.text}, replace({place.text}, '/', ''))"
            place = _Sql(trimmed, (*place.bound, *place.bound))
            pattern = f"{pattern.rstrip('/')}/"
        encoded = _encoded_glob(pattern)
        if encoded is not None:
            return _Sql(f"{place.text} GLOB ?", (*place.bound, encoded))
        return _Sql(f"mmsearch_path(?, {place.text})", (pattern, *place.bound))

    def _encoded_path(self) -> _Sql:
        """The absolute path that hits show, percent-encoded: of a row its picture's, else its manifest's."""
        folders = [root for root in self._roots if root.kind == "folder"]
        manifests = [root for root in self._roots if root.kind == "manifest"]
        prefixes = [(root.root_id, _prefix(root.path)) for root in folders]
        own, owner = _by_root("assets.root_id", prefixes), _by_root("assets.owner_root_id", prefixes)
        table = _by_root("assets.root_id", [(root.root_id, _encoded(root.path)) for root in manifests])
        ids = ", ".join(str(root.root_id) for root in folders)
        return _Sql(
            f"CASE WHEN assets.root_id IN ({ids}) THEN {own.text} || assets.uri"
            f" WHEN assets.owner_uri IS NOT NULL THEN {owner.text} || assets.owner_uri ELSE {table.text} END",
            (*own.bound, *owner.bound, *table.bound),
        )


def _by_root(column: str, values: Sequence[tuple[int, str]]) -> _Sql:
    if not values:
        return _Sql("NULL")
    cases = " ".join(f"WHEN {int(root_id)} THEN ?" for root_id, _ in values)
    return _Sql(f"CASE {column} {cases} END", tuple(value for _, value in values))


def _joined(word: str, parts: Sequence[_Sql]) -> _Sql:
    return _Sql(word.join(f"({part.text})" for part in parts), tuple(value for part in parts for value in part.bound))


def _not(sql: _Sql) -> _Sql:
    """Unknown is not true, so its contrary is."""
    return _Sql(f"({sql.text}) IS NOT TRUE", sql.bound)


def _known(column: str, operator: str, value: Value) -> _Sql:
    if isinstance(value, Period):
        return _within(column, operator, value.start, value.end)
    return _text(column, operator, value) if isinstance(value, str) else _Sql(f"{column} {operator} ?", (value,))


def _own(column: str, operator: str, value: Value) -> _Sql:
    if isinstance(value, Period):
        return _within(f"assets.{column}", operator, _nanoseconds(value.start), _nanoseconds(value.end))
    known = _Sql(f"assets.{column} >= 0")  # less: to be read again
    return _joined(" AND ", [known, _known(f"assets.{column}", operator, value)])


def _within(column: str, operator: str, start: object, end: object) -> _Sql:
    """A time against a period: equal is within it, greater is after its end."""
    if operator == "=":
        return _Sql(f"{column} >= ? AND {column} < ?", (start, end))
    sign, bound = {"<": ("<", start), "<=": ("<", end), ">": (">=", end), ">=": (">=", start)}[operator]
    return _Sql(f"{column} {sign} ?", (bound,))


def _nanoseconds(moment: str) -> int:
    """Local wall-clock time as nanoseconds since 1970, as file systems have it."""
    try:
        return int(datetime.fromisoformat(moment).timestamp()) * 10**9
    except (ValueError, OverflowError, OSError):
        return 2**63 - 1 if not moment[:1].isdigit() or moment > "2262" else -(2**63)


def _text(column: str, operator: str, value: str) -> _Sql:
    if operator == "~":
        return _Sql(f"mmsearch_glob(?, {column})", (value,))
    return _Sql(f"{column} = ? COLLATE NOCASE", (value,))


def _tagged(operator: str, value: str, *, owned: bool) -> _Sql:
    test = "mmsearch_glob(?, tag)" if operator == "~" else "tag = ?"
    own = _Sql(f"assets.asset_id IN (SELECT asset_id FROM tags WHERE {test})", (value,))
    if not owned:
        return own
    of_picture = _Sql(
        "EXISTS (SELECT 1 FROM assets AS picture JOIN tags USING (asset_id) WHERE picture.root_id ="
        f" assets.owner_root_id AND picture.uri = assets.owner_uri AND {test})",
        (value,),
    )
    return _joined(" OR ", [own, of_picture])


def _meta_of(table: str, column: str, operator: str, value: Value) -> _Sql:
    """A test of one field of a row, or of any element where that is a list."""
    test = _meta_value("element", operator, value)
    return _Sql(
        f"EXISTS (SELECT 1 FROM json_each({table}.meta) AS entry JOIN json_each("
        "CASE entry.type WHEN 'array' THEN entry.value ELSE json_array(CASE entry.type WHEN 'true' THEN json('true')"
        " WHEN 'false' THEN json('false') ELSE entry.value END) END) AS element"
        f" WHERE entry.key = ? AND {test.text})",
        (column, *test.bound),
    )


def _meta_value(name: str, operator: str, value: Value) -> _Sql:
    if isinstance(value, bool):
        return _Sql(f"{name}.type = ?", ("true" if value else "false",)) if operator == "=" else _Sql("0")
    if isinstance(value, str):
        test = _text(f"{name}.value", operator, value)
        if operator in ("<", "<=", ">", ">="):
            test = _Sql(f"{name}.value {operator} ?", (value,))
        return _joined(" AND ", [_Sql(f"{name}.type = 'text'"), test])
    number = (
        f"CASE {name}.type WHEN 'text' THEN mmsearch_number({name}.value) WHEN 'null' THEN NULL ELSE {name}.value END"
    )
    sound = f"{name}.type IN ('integer', 'real', 'text')"
    return _Sql(f"{sound} AND {number} {operator} ?", (value,))


def _near(table: str, latitude: float, longitude: float, metres: float) -> _Sql:
    """A box first, which an index knows, then the distance on the sphere."""
    degrees = math.degrees(metres / _EARTH_METRES) * 1.0001
    low, high = latitude - degrees, latitude + degrees
    box = _Sql(f"{table}.latitude BETWEEN ? AND ?", (low, high))
    exact = _Sql(f"mmsearch_metres({table}.latitude, {table}.longitude, ?, ?) <= ?", (latitude, longitude, metres))
    if low > -90 and high < 90:
        reach = math.degrees(math.asin(min(1.0, math.sin(math.radians(degrees)) / math.cos(math.radians(latitude)))))
        west, east = longitude - reach, longitude + reach
        side = _Sql(f"{table}.longitude BETWEEN ? AND ?", (west, east))
        if west < -180:
            side = _Sql(f"({table}.longitude >= ? OR {table}.longitude <= ?)", (west + 360, east))
        elif east > 180:
            side = _Sql(f"({table}.longitude >= ? OR {table}.longitude <= ?)", (west, east - 360))
        return _joined(" AND ", [box, side, exact])
    return _joined(" AND ", [box, exact])


# Paths and globs


def _encoded(path: str) -> str:
    return quote_from_bytes(os.fsencode(path), safe="/")


def _prefix(path: str) -> str:
    encoded = _encoded(path)
    return encoded if encoded.endswith("/") else f"{encoded}/"


def _literal_glob(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def _encoded_glob(pattern: str) -> str | None:
    """A glob over percent-encoded paths; None where only the decoded path can tell."""
    pieces = re.split(r"(\*+)", re.sub(r"\[([*?\[])\]", lambda match: _ESCAPES[match[1]], pattern))
    if any(char in piece for piece in pieces for char in "?["):
        return None
    written = []
    for piece in pieces:
        if piece.startswith("*"):
            written.append("*")
        else:
            plain = "".join(_LITERALS.get(char, char) for char in piece)
            written.append(quote_from_bytes(os.fsencode(plain), safe="/"))
    return "".join(written)


_ESCAPES = {"*": "\ue000", "?": "\ue001", "[": "\ue002"}
_LITERALS = {mark: char for char, mark in _ESCAPES.items()}


@lru_cache(maxsize=64)
def _pattern(glob: str, flags: int = 0) -> re.Pattern[str]:
    """A glob as a regular expression: `*` is anything, `?` one character, `[abc]`, `[a-z]` and `[!a]` one of a set."""
    written, at = [], 0
    while at < len(glob):
        char = glob[at]
        end = glob.find("]", at + 2 + glob.startswith("[!", at)) if char == "[" else -1
        if char == "*":
            written.append(".*")
        elif char == "?":
            written.append(".")
        elif end > 0:
            inside = glob[at + 1 : end].replace("\\", r"\\").replace("[", r"\[").replace("^", r"\^")
            inside = f"^{inside[1:]}" if inside.startswith("!") else inside
            inside = re.sub(r"(&&|\|\||~~|--)", lambda twice: f"{twice[0][0]}\\{twice[0][1]}", inside)
            written.append(f"[{inside}]")
            at = end
        else:
            written.append(re.escape(char))
        at += 1
    try:
        return re.compile("".join(written), re.S | flags)
    except re.error:
        return re.compile(re.escape(glob), re.S | flags)


def _decoded(encoded: str) -> str:
    return os.fsdecode(unquote_to_bytes(encoded))


def _matches_path(pattern: str, encoded: str | None) -> bool | None:
    return None if encoded is None else _pattern(pattern).fullmatch(_decoded(encoded)) is not None


def _matches_ext(pattern: str, encoded: str | None) -> bool | None:
    if encoded is None:
        return None
    extension = os.path.splitext(_decoded(encoded))[1].removeprefix(".")
    return _pattern(pattern, re.I).fullmatch(extension) is not None


def _matches(pattern: str, text: object) -> bool | None:
    return None if text is None else _pattern(pattern, re.I).fullmatch(str(text)) is not None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def metres_between(
    latitude: float | None, longitude: float | None, other_latitude: float, other_longitude: float
) -> float | None:
    """Distance of two places in degrees on a sphere of the earth's mean radius (haversine); None for no place."""
    if latitude is None or longitude is None:
        return None
    a, b = math.radians(latitude), math.radians(other_latitude)
    across = math.radians(other_longitude - longitude)
    square = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(across / 2) ** 2
    return 2 * _EARTH_METRES * math.asin(min(1.0, math.sqrt(square)))


FUNCTIONS: dict[str, tuple[int, Callable[..., float | str | None]]] = {
    "mmsearch_path": (2, _matches_path),
    "mmsearch_ext": (2, _matches_ext),
    "mmsearch_glob": (2, _matches),
    "mmsearch_number": (1, _number),
    "mmsearch_metres": (4, metres_between),
}
"""What conditions call: SQL name to number of arguments and function. The store registers them."""
