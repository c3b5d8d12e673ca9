"""Filters as SQL over `items JOIN assets`. Whatever a user has written is bound, never part of the statement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.filters import And, Between, Compare, Filter, Near, Not, OneOf, Or, Value, parse_filter
from mmsearch.retrieval.globs import (
    anchored,
    encoded_glob,
    encoded_path,
    literal,
    matches_extension,
    matches_path,
    matches_text,
)
from mmsearch.retrieval.periods import Period
from mmsearch.retrieval.store.records import Condition

if TYPE_CHECKING:
    from mmsearch.retrieval.store.reader import Snapshot, StoredRoot
    from mmsearch.retrieval.types import Modality

_EARTH_METRES = 6_371_008.8
_MOST_VALUES = 32_000
"""How many values a condition may bind: some builds of SQLite take 32,766 in a statement."""
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
_OF_FILES = frozenset({"size", "modified"})  # of the file itself; the rest a text has of its picture too


_PICTURE = (
    "EXISTS (SELECT 1 FROM assets AS picture WHERE picture.root_id = assets.owner_root_id"
    " AND picture.uri = assets.owner_uri"
)


_Test = tuple[str, Value]
"""An operator and what is compared with."""


class _Sql(NamedTuple):
    """An expression that is true, false or unknown, and what is bound to it."""

    text: str
    bound: tuple[object, ...] = ()


def compile_filter(filter_: Filter, roots: Sequence[StoredRoot], modality: Modality) -> Condition:
    """The condition that items of a modality pass.

    A text that belongs to a picture has what is known of the picture, and a picture has the fields of its rows. A
    comparison with what is not known is not true, so that `not` of it is.

    Args:
        filter_: what `parse_filter` gave.
        roots: of the snapshot that is searched.
        modality: of the items.

    Raises:
        UsageError: there are too many values, those of paths counted for each root.
    """
    sql, of_one = (_Compiler(roots, modality, of_one).compile(filter_) for of_one in (False, True))
    if len(sql.bound) > _MOST_VALUES:
        raise UsageError(
            f"this filter is too long for an index of {len(roots)} roots: ask for fewer paths, folders and extensions"
        )
    return Condition(sql.text, of_one.text, sql.bound, frozenset(_fields(filter_)))


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
    def __init__(self, roots: Sequence[StoredRoot], modality: Modality, of_one: bool) -> None:
        self._roots = roots
        self._modality = modality
        self._of_one = of_one

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
                return self._compare(field, *((sign, end) for sign, end in ends if end is not None))
            case OneOf(field, values):
                return _joined(" OR ", [self._compare(field, ("=", value)) for value in values])
            case Compare(field, "!=", value):
                return _not(self._compare(field, ("=", value)))
            case Compare(field, operator, value):
                return self._compare(field, (operator, value))

    def _compare(self, field: str, *tests: _Test) -> _Sql:
        """A field against values; where it has several itself, one of them passes all tests."""
        operator, value = tests[0]
        if field.startswith("meta."):
            return self._meta(field[5:], tests)
        if field == "modality":
            return _text("items.modality", operator, str(value))
        if field in ("path", "folder", "ext"):
            return self._place(field, operator, str(value))
        if field == "tag":
            return self._tagged(operator, str(value))
        column = _COLUMNS[field]
        if field in _OF_FILES:
            return self._of_file(column, tests)
        return self._owned(lambda table: _all(tests, lambda *test: _known(f"{table}.{column}", *test)))

    def _of_file(self, column: str, tests: Sequence[_Test]) -> _Sql:
        """Tests of a file's own stamp; a row has that of its picture, and else none."""
        own = _joined(" AND ", [self._is_file(), _stamped("assets", column, tests)])
        if self._modality == "image":
            return own
        picture = _stamped("picture", column, tests)
        found = _Sql(f"{_PICTURE} AND ({picture.text}))", picture.bound)
        return _joined(" OR ", [own, _joined(" AND ", [_Sql(f"NOT {self._is_file().text}"), found])])

    def _is_file(self) -> _Sql:
        ids = ", ".join(str(int(root.root_id)) for root in self._roots if root.kind == "folder")
        return _Sql(f"+assets.root_id IN ({ids})")  # the plus sign: SQLite is not to go through the index of uris

    def _owned(self, test: Callable[[str], _Sql]) -> _Sql:
        """A test of an asset, or of the picture that it belongs to."""
        own = test("assets")
        if self._modality == "image":
            return own
        picture = test("picture")
        found = _Sql(f"{_PICTURE} AND ({picture.text}))", picture.bound)
        return _joined(" OR ", [own, found])

    def _tagged(self, operator: str, value: str) -> _Sql:
        test = _text("tag", operator, value)
        if self._of_one:
            own = _Sql(f"EXISTS (SELECT 1 FROM tags WHERE tags.asset_id = assets.asset_id AND {test.text})", test.bound)
        else:
            own = _Sql(f"assets.asset_id IN (SELECT asset_id FROM tags WHERE {test.text})", test.bound)
        if self._modality == "image":
            return own
        of_picture = _Sql(
            "EXISTS (SELECT 1 FROM assets AS picture JOIN tags USING (asset_id) WHERE picture.root_id ="
            f" assets.owner_root_id AND picture.uri = assets.owner_uri AND {test.text})",
            test.bound,
        )
        return _joined(" OR ", [own, of_picture])

    def _meta(self, column: str, tests: Sequence[_Test]) -> _Sql:
        own = _meta_of("assets", column, tests)
        if self._modality == "text":
            return own
        row = _meta_of("owned", column, tests)
        found = _Sql(
            "EXISTS (SELECT 1 FROM assets AS owned WHERE owned.owner_root_id = assets.root_id"
            f" AND owned.owner_uri = assets.uri AND ({row.text}))",
            row.bound,
        )
        return _joined(" OR ", [own, found])

    # Paths

    def _place(self, field: str, operator: str, value: str) -> _Sql:
        place = self._encoded_path()
        if field == "ext":
            return _extension(place, operator, value.removeprefix("."))
        glob = value if operator == "~" else literal(value)
        if field == "folder":
            folder = f"rtrim({place.text}, replace({place.text}, '/', ''))"
            place = _Sql(folder, (*place.bound, *place.bound))
            glob = f"{glob.rstrip('/')}/"
        return _globbed(place, anchored(glob))

    def _encoded_path(self) -> _Sql:
        """The absolute path that hits show, percent-encoded: of a row its picture's, else its manifest's."""
        folders = [root for root in self._roots if root.kind == "folder"]
        manifests = [root for root in self._roots if root.kind == "manifest"]
        prefixes = [(root.root_id, f"{encoded_path(root.path).rstrip('/')}/") for root in folders]
        own, owner = _by_root("assets.root_id", prefixes), _by_root("assets.owner_root_id", prefixes)
        table = _by_root("assets.root_id", [(root.root_id, encoded_path(root.path)) for root in manifests])
        return _Sql(
            f"CASE WHEN {self._is_file().text} THEN {own.text} || assets.uri"
            f" WHEN assets.owner_uri IS NOT NULL THEN {owner.text} || assets.owner_uri ELSE {table.text} END",
            (*own.bound, *owner.bound, *table.bound),
        )


def _by_root(column: str, values: Sequence[tuple[int, str]]) -> _Sql:
    if not values:
        return _Sql("NULL")
    cases = " ".join(f"WHEN {int(root_id)} THEN ?" for root_id, _ in values)
    return _Sql(f"CASE {column} {cases} END", tuple(value for _, value in values))


def _extension(place: _Sql, operator: str, value: str) -> _Sql:
    if operator == "=" and value.isascii() and value.isalnum():
        letters = "".join(f"[{char.lower()}{char.upper()}]" if char.isalpha() else char for char in value)
        return _Sql(f"{place.text} GLOB ?", (*place.bound, f"*[^/].{letters}"))
    glob = value if operator == "~" else literal(value)
    return _Sql(f"mmsearch_ext(?, {place.text})", (glob, *place.bound))


def _globbed(place: _Sql, glob: str) -> _Sql:
    """A path against a glob: by SQLite alone wherever it can tell."""
    exactly = _Sql(f"mmsearch_path(?, {place.text})", (glob, *place.bound))
    encoded = encoded_glob(glob)
    if encoded is None:
        return exactly
    pattern, is_exact = encoded
    found = _Sql(f"{place.text} GLOB ?", (*place.bound, pattern))
    return found if is_exact else _joined(" AND ", [found, exactly])


def _all(tests: Sequence[_Test], sql: Callable[[str, Value], _Sql]) -> _Sql:
    return _joined(" AND ", [sql(operator, value) for operator, value in tests])


def _joined(word: str, parts: Sequence[_Sql]) -> _Sql:
    if len(parts) == 1:
        return parts[0]
    return _Sql(word.join(f"({part.text})" for part in parts), tuple(value for part in parts for value in part.bound))


def _not(sql: _Sql) -> _Sql:
    """Unknown is not true, so its contrary is."""
    return _Sql(f"({sql.text}) IS NOT TRUE", sql.bound)


def _known(column: str, operator: str, value: Value) -> _Sql:
    if isinstance(value, Period):
        return _within(column, operator, value.start, value.end)
    return _text(column, operator, value) if isinstance(value, str) else _Sql(f"{column} {operator} ?", (value,))


def _stamped(table: str, column: str, tests: Sequence[_Test]) -> _Sql:
    def test(operator: str, value: Value) -> _Sql:
        name = f"{table}.{column}"
        if isinstance(value, Period):
            return _within(name, operator, _nanoseconds(value.start), _nanoseconds(value.end))
        return _known(name, operator, value)

    return _joined(" AND ", [_Sql(f"{table}.size >= 0"), _all(tests, test)])  # less: to be read again


def _within(column: str, operator: str, start: object, end: object) -> _Sql:
    """A time against a period: equal is within it, greater is after its end."""
    if operator == "=":
        return _Sql(f"{column} >= ? AND {column} < ?", (start, end))
    sign, bound = {"<": ("<", start), "<=": ("<", end), ">": (">=", end), ">=": (">=", start)}[operator]
    return _Sql(f"{column} {sign} ?", (bound,))


def _nanoseconds(moment: str) -> float | int:
    """Local wall-clock time as nanoseconds since 1970, as file systems have it; a float where it is past 64 bits."""
    try:
        nanoseconds = int(datetime.fromisoformat(moment).timestamp()) * 10**9
    except (ValueError, OverflowError, OSError):
        return -math.inf if moment < "1970" else math.inf
    return nanoseconds if abs(nanoseconds) < 2**63 else float(nanoseconds)


def _text(column: str, operator: str, value: str) -> _Sql:
    """A text against another, or against a glob, whatever the case; SQLite itself knows that of A to Z only."""
    if operator == "~":
        return _Sql(f"mmsearch_glob(?, {column})", (value,))
    if operator == "=" and not value.isascii() and value.lower() != value.upper():
        return _Sql(f"mmsearch_glob(?, {column})", (literal(value),))
    return _Sql(f"{column} {operator} ? COLLATE NOCASE", (value,))


def _meta_of(table: str, column: str, tests: Sequence[_Test]) -> _Sql:
    """Tests of one field of a row, or of any element where that is a list."""
    test = _all(tests, lambda *test: _meta_value("element", *test))
    name = _text("entry.key", "=", column)
    return _Sql(
        f"EXISTS (SELECT 1 FROM json_each({table}.meta) AS entry JOIN json_each("
        "CASE entry.type WHEN 'array' THEN entry.value ELSE json_array(CASE entry.type WHEN 'true' THEN json('true')"
        " WHEN 'false' THEN json('false') ELSE entry.value END) END) AS element"
        f" WHERE {name.text} AND ({test.text}))",
        (*name.bound, *test.bound),
    )


def _meta_value(name: str, operator: str, value: Value) -> _Sql:
    """A test of an element; the cells of a CSV file are texts, which may be written numbers or truths."""
    if isinstance(value, bool):
        written = "true" if value else "false"
        same = f"{name}.type = ? OR {name}.type = 'text' AND {name}.value = ? COLLATE NOCASE"
        return _Sql(f"({same})", (written, written))
    if isinstance(value, str):
        return _joined(" AND ", [_Sql(f"{name}.type = 'text'"), _text(f"{name}.value", operator, value)])
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
    "mmsearch_path": (2, matches_path),
    "mmsearch_ext": (2, matches_extension),
    "mmsearch_glob": (2, matches_text),
    "mmsearch_number": (1, _number),
    "mmsearch_metres": (4, metres_between),
}
"""What conditions call: SQL name to number of arguments and function. The store registers them."""
