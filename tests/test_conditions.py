"""Filters as SQL: what passes is what a filter means, and nothing that a user writes becomes SQL."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import math
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from filter_kit import Corpus, haversine, passes, random_corpus, random_filters
from hypothesis import given, settings
from hypothesis import strategies as st
from store_kit import PRECISION, key

from mmsearch import Index
from mmsearch.retrieval.conditions import FUNCTIONS, compile_filter, metres_between
from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.filters import (
    MAX_COMPARISONS,
    MAX_DEPTH,
    MAX_VALUE,
    Compare,
    Filter,
    Near,
    Not,
    format_filter,
    parse_filter,
)
from mmsearch.retrieval.globs import encoded_glob, encoded_path, matches_path
from mmsearch.retrieval.store import LocalStore, NewItem, Snapshot
from mmsearch.retrieval.store.reader import StoredRoot
from mmsearch.retrieval.store.schema import METADATA
from mmsearch.retrieval.store.selection import passing
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Modality, Root, Stamp

_SPACES: tuple[Modality, ...] = ("image", "text")
_ROOT = StoredRoot(1, "/", relative=False, kind="folder", device=1, columns=None, mounts=(), whole=True)


@dataclass(frozen=True)
class Known:
    """A picture of an index, and what is known of it."""

    name: str
    camera: str | None = None
    taken: str | None = None
    modified: int = 0
    place: tuple[float, float] | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Built:
    """An index of pictures."""

    store: LocalStore

    def names(self, source: str) -> set[str]:
        """The pictures that pass a filter."""
        with self.store.snapshot() as snapshot:
            found = snapshot.items(sorted(_passing(snapshot, parse_filter(source))))
        return {record.uri for record in found.values()}


def build(folder: Path, pictures: Sequence[Known]) -> Built:
    """An index of pictures; item and asset ids are those of their order, from 1."""
    store = LocalStore.create(folder / "index", model="fake", identity="fake-1", dim=2)
    with store.writer() as writer:
        writer.root(Root(folder, 1))
        writer.embed("image", [key("x")], np.array([[1, 0]], np.float32), **PRECISION)
        for one in pictures:
            latitude, longitude = one.place or (None, None)
            writer.add(
                ItemRef(str(folder), one.name, str(folder / one.name), "image", Stamp(1, one.modified)),
                content_hash=key("x"),
                metadata=AssetMetadata(camera=one.camera, taken=one.taken, latitude=latitude, longitude=longitude),
                items=[NewItem("image", key("x"))],
            )
        writer.commit()
        writer.tag({number: dict.fromkeys(one.tags, 0.5) for number, one in enumerate(pictures, 1) if one.tags})
        writer.commit()
    return Built(store)


def _database() -> sqlite3.Connection:
    """The tables of a catalog without their constraints, in memory, with what conditions call."""
    connection = sqlite3.connect(":memory:")
    for table in METADATA.sorted_tables:
        connection.execute(f"CREATE TABLE {table.name} ({', '.join(_column(one) for one in table.columns)})")
    for name, (arguments, function) in FUNCTIONS.items():
        connection.create_function(name, arguments, function, deterministic=True)
    return connection


def _column(column: sa.Column[object]) -> str:
    return f"{column.name} {column.type}"


def _run(source: str, space: Modality, connection: sqlite3.Connection | None = None) -> list[int]:
    """The assets that pass, by statements that are as deep as those of the store, in both forms of the condition."""
    with contextlib.closing(connection or _database()) as connection:
        where = compile_filter(parse_filter(source), [_ROOT], space)
        statement = (
            f"SELECT asset_id, CASE WHEN ({where.sql}) THEN 1 END AS passes FROM items JOIN assets USING (asset_id)"
            " WHERE items.modality = ? AND item_id IN (SELECT value FROM json_each(?)) AND passes"
        )
        ids = json.dumps(list(range(100)))
        passed = [row[0] for row in connection.execute(statement, (*where.parameters, space, ids))]
        statement = (
            f"SELECT asset_id, COUNT(CASE WHEN {where.of_one} THEN 1 END) AS passes FROM json_each(?) AS given"
            " CROSS JOIN items ON item_id = given.value CROSS JOIN assets USING (asset_id) WHERE items.modality = ?"
            " GROUP BY item_id"
        )
        counted = connection.execute(statement, (*where.parameters, ids, space)).fetchall()
        assert sorted(passed) == sorted(asset_id for asset_id, passes in counted if passes)
        return passed


def _of_paths(paths: Sequence[str], source: str) -> set[str]:
    """The names of the paths that pass."""
    connection = _database()
    for number, path in enumerate(paths):
        uri = encoded_path(path.removeprefix("/"))
        connection.execute("INSERT INTO assets (asset_id, root_id, uri) VALUES (?, 1, ?)", (number, uri))
        connection.execute("INSERT INTO items (item_id, asset_id, modality) VALUES (?, ?, 'image')", (number, number))
    return {os.path.basename(paths[number]) for number in _run(source, "image", connection)}


def _away(latitude: float, longitude: float, metres: float, bearing: float) -> tuple[float, float]:
    """The place that far from another in a direction, in degrees."""
    angle, up, along = metres / 6_371_008.8, math.radians(latitude), math.radians(longitude)
    sine = math.sin(up) * math.cos(angle) + math.cos(up) * math.sin(angle) * math.cos(bearing)
    there = math.asin(max(-1.0, min(1.0, sine)))
    along += math.atan2(math.sin(bearing) * math.sin(angle) * math.cos(up), math.cos(angle) - math.sin(up) * sine)
    return math.degrees(there), (math.degrees(along) + 540) % 360 - 180


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Corpus]:
    return [random_corpus(tmp_path_factory.mktemp("corpus"), seed) for seed in range(4)]


def _passing(snapshot: Snapshot, filter_: Filter) -> set[int]:
    snapshot.register(FUNCTIONS)
    found: set[int] = set()
    for space in _SPACES:
        where = compile_filter(filter_, snapshot.roots(), space)
        assert where.sql.count("?") == len(where.parameters)
        statement = f"SELECT item_id FROM items JOIN assets USING (asset_id) WHERE items.modality = ? AND ({where.sql})"
        passed = {row[0] for row in snapshot.select(statement, (space, *where.parameters))}
        ids = [row[0] for row in snapshot.select("SELECT item_id FROM items WHERE modality = ?", (space,))]
        assert where.of_one.count("?") == len(where.parameters)
        assert passing(snapshot, [*ids, 10**6], where) == passed  # by the form for given items
        found |= passed
    return found


@settings(max_examples=400, deadline=None)
@given(number=st.integers(0, 3), filter_=random_filters())
def test_what_passes_is_what_the_filter_means(corpora: list[Corpus], number: int, filter_: Filter) -> None:
    corpus = corpora[number]
    expected = {item_id for item_id, (space, thing) in corpus.things.items() if passes(filter_, space, thing)}
    with corpus.store.snapshot() as snapshot:
        assert _passing(snapshot, filter_) == expected, format_filter(filter_)
        assert _passing(snapshot, Not(filter_)) == set(corpus.things) - expected


# What is not known


def test_what_is_not_known_is_equal_to_nothing(tmp_path: Path) -> None:
    known = build(
        tmp_path, [Known("with.jpg", camera="x", tags=("draft",)), Known("other.jpg", camera="y"), Known("without.jpg")]
    )
    everything = {"with.jpg", "other.jpg", "without.jpg"}
    for source, names in {
        "camera = x": {"with.jpg"},
        "not camera = x": {"other.jpg", "without.jpg"},
        "camera != x": {"other.jpg", "without.jpg"},
        "not camera != x": {"with.jpg"},
        "camera ~ *": {"with.jpg", "other.jpg"},
        "not camera ~ *": {"without.jpg"},
        "camera ~ * and camera != x": {"other.jpg"},
        "camera = x or not camera = x": everything,
        "camera = x and not camera = x": set(),
        "width > 0 or width <= 0": set(),
        "not width > 0": everything,
        "not (width > 0 or camera = y)": {"with.jpg", "without.jpg"},
        "not tag = draft": {"other.jpg", "without.jpg"},
        "tag != draft": {"other.jpg", "without.jpg"},
        "not tag ~ *": {"other.jpg", "without.jpg"},
        "not meta.price = 1": everything,
        "not near(0, 0, 20000km)": everything,
        "not taken >= 1900": everything,
    }.items():
        assert known.names(source) == names, source


# Paths


_PATHS = (
    "/p/beach/a.jpg",
    "/p/beach/deep/b.jpg",
    "/p/Beach/c.JPG",
    "/p/my beach/d.jpeg",
    "/p/100%.jpg",
    "/p/5.jpg",
    "/p/[x].jpg",
    "/p/x.jpg",
    "/p/*.jpg",
    "/p/猫é.jpg",
    "/p/bad\udcff.jpg",
    "/p/.jpg",
    "/p/none",
    "/p/two.tar.gz",
)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("path ~ '*/beach/*'", "a.jpg b.jpg"),
        ("path ~ 'beach/*'", "a.jpg b.jpg"),
        ("path ~ '*beach/*'", "a.jpg b.jpg d.jpeg"),
        ("path ~ '?each/*'", "a.jpg b.jpg c.JPG"),
        ("path ~ '[bB]each/*'", "a.jpg b.jpg c.JPG"),
        ("path ~ '[!b]each/*'", "c.JPG"),
        ("path ~ 'beach/*.jpg'", "a.jpg b.jpg"),
        ("path ~ '/p/beach/*'", "a.jpg b.jpg"),
        ("path ~ '/beach/*'", ""),
        ("path ~ '*5.jpg'", "5.jpg"),  # the uri of 100%.jpg ends with %25.jpg
        ("path ~ '*25.jpg'", ""),
        ("path ~ '*.jpg' and path ~ '*%*'", "100%.jpg"),
        ("path ~ '*[%]*'", "100%.jpg"),
        ("path ~ '[[]x].jpg'", "[x].jpg"),
        ("path ~ '[x].jpg'", "x.jpg"),
        ("path ~ '[*].jpg'", "*.jpg"),
        ("path ~ '[z-a]*'", ""),
        ("path ~ '猫?.jpg'", "猫é.jpg"),
        ("path ~ '*é.jpg'", "猫é.jpg"),
        ("path ~ 'bad?.jpg'", "bad\udcff.jpg"),
        ("path ~ 'bad*'", "bad\udcff.jpg"),
        ("path ~ '**/beach/**'", "a.jpg b.jpg"),
        ("path ~ '*.JPG'", "c.JPG"),
        ("path ~ a_jpg", ""),
        ("path ~ 'a%'", ""),
        ("path ~ '[[]x[]].jpg'", "[x].jpg"),
        ("path ~ '[]x].jpg'", "x.jpg"),
        ("path ~ '[x.jpg'", ""),
        (r"path ~ '\\*.jpg'", ""),
        ("path ~ '' or path = '' or folder = '/' or folder ~ ''", ""),
        ("path = '100%25.jpg'", ""),
        ("path = '/p/100%.jpg'", "100%.jpg"),
        ("path = a.jpg", "a.jpg"),
        ("path = A.jpg", ""),
        ("path = 'beach/a.jpg'", "a.jpg"),
        ("path = '/p/beach/a.jpg'", "a.jpg"),
        ("path = '/beach/a.jpg'", ""),
        ("path = '*.jpg'", "*.jpg"),
        ("path = '[x].jpg'", "[x].jpg"),
        ("path in ('x.jpg', '5.jpg')", "x.jpg 5.jpg"),
        ("folder = beach", "a.jpg"),
        ("folder = 'beach/'", "a.jpg"),
        ("folder = '/p/beach'", "a.jpg"),
        ("folder = '/p'", "100%.jpg 5.jpg [x].jpg x.jpg *.jpg 猫é.jpg bad\udcff.jpg .jpg none two.tar.gz"),
        ("folder ~ '*each'", "a.jpg c.JPG d.jpeg"),
        ("folder ~ '*/beach*'", "a.jpg b.jpg"),
        ("folder = 'my beach'", "d.jpeg"),
        ("ext = jpeg", "d.jpeg"),
        ("ext = .JPEG", "d.jpeg"),
        ("ext ~ 'jp?g'", "d.jpeg"),
        ("ext = gz", "two.tar.gz"),
        ("ext = ''", ".jpg none"),
        ("ext ~ '*' and not ext ~ '?*'", ".jpg none"),
        ("ext = jpg and path ~ 'Beach/*'", "c.JPG"),
        ("ext in (gz, jpeg)", "two.tar.gz d.jpeg"),
        ("path = 'none' or path = '/p/none'", "none"),
    ],
)
def test_paths(source: str, found: str) -> None:
    assert _of_paths(_PATHS, source) == set(found.split())


def test_paths_may_begin_at_home_and_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home, here = tmp_path / "my [home]", tmp_path / "here" / "deep"
    here.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    paths = (f"{home}/a.jpg", f"{here}/b.jpg", f"{tmp_path}/here/c.jpg")
    for source, found in {
        "path ~ '~/*'": {"a.jpg"},
        "folder = '~/'": {"a.jpg"},
        "folder = '~'": {"a.jpg"},
        "path = '~/a.jpg'": {"a.jpg"},
        "path ~ './*'": {"b.jpg"},
        "folder = '.'": {"b.jpg"},
        "folder = '..'": {"c.jpg"},
        "path ~ '../*'": {"b.jpg", "c.jpg"},
    }.items():
        assert _of_paths(paths, source) == found, source


def test_the_longest_globs() -> None:
    """Of one that SQLite would refuse when it is encoded, too."""
    for shortest in ("a", "é", "*a", "?", "[ab]", "["):
        glob = shortest * (MAX_VALUE // len(shortest)) if shortest != "[ab]" else "[ab]" * 500
        assert _of_paths(_PATHS, f"path ~ '{glob}' or path = '{glob}'") == set()
        assert _of_paths(_PATHS, f"camera ~ '{glob}' or tag ~ '{glob}' or ext ~ '{glob}' or meta.a ~ '{glob}'") == set()


@settings(max_examples=300)
@given(
    st.text(st.sampled_from("aA5%*?[]!-/.2é猫\udcff"), max_size=6),
    st.text(st.sampled_from("aA5%*?[]!-/.2é猫"), max_size=6),
)
def test_globs_are_those_of_python(path: str, glob: str) -> None:
    wanted = glob if glob.startswith(("/", "*")) else f"*/{glob}"
    encoded = encoded_path(f"/{path}")
    assert matches_path(wanted, encoded) == fnmatch.fnmatchcase(f"/{path}", wanted)
    found = encoded_glob(wanted)
    if found is not None:
        pattern, is_exact = found
        with contextlib.closing(sqlite3.connect(":memory:")) as connection:
            matched = bool(connection.execute("SELECT ? GLOB ?", (encoded, pattern)).fetchone()[0])
        assert matched or not matches_path(wanted, encoded)
        assert not is_exact or matched == matches_path(wanted, encoded)


# Dates, sizes


@pytest.mark.parametrize(
    ("source", "days"),
    [
        ("taken in 2024-05..2024-08", "05-01 08-31"),
        ("taken in 2024-05-01..2024-08-31", "05-01 08-31"),
        ("taken in 2024-05-02..2024-08-30", ""),
        ("taken in 2024-05..", "05-01 08-31 09-01"),
        ("taken in ..2024-05", "04-30 05-01"),
        ("taken = 2024", "04-30 05-01 08-31 09-01"),
        ("taken = 2024-05", "05-01"),
        ("taken = 2024-08-31T23:59:59", "08-31"),
        ("taken > 2024-05", "08-31 09-01"),
        ("taken >= 2024-05", "05-01 08-31 09-01"),
        ("taken < 2024-05", "04-30"),
        ("taken <= 2024-05", "04-30 05-01"),
        ("taken != 2024-05", "04-30 08-31 09-01"),
        ("year = 2024", "04-30 05-01 08-31 09-01"),
        ("year < 2024 or year > 2024", ""),
        ("taken >= 9999-12-31 or taken < 0001-01-02", ""),
    ],
)
def test_dates_are_periods_whose_ends_are_included(tmp_path: Path, source: str, days: str) -> None:
    moments = ("04-30T23:59:59", "05-01T00:00:00", "08-31T23:59:59.9-08:00", "09-01T00:00:00+02:00")
    index = build(tmp_path, [Known(moment[:5], taken=f"2024-{moment}") for moment in moments])
    assert index.names(source) == set(days.split())
    stamps = [int(datetime.fromisoformat(f"2024-{moment[:14]}").timestamp()) * 10**9 for moment in moments]
    stamped = build(
        tmp_path / "modified", [Known(day[:5], modified=ns) for day, ns in zip(moments, stamps, strict=True)]
    )
    if "year" not in source:
        assert stamped.names(source.replace("taken", "modified")) == set(days.split())


def test_times_beyond_what_a_database_holds(tmp_path: Path) -> None:
    index = build(
        tmp_path, [Known("old", modified=-(2**63)), Known("1969", modified=-1), Known("new", modified=2**63 - 1)]
    )
    for source, names in {
        "modified > 9998": set(),  # the oldest and the newest are taken to be of 1677 and 2262
        "modified < 2400": {"old", "1969", "new"},
        "modified > 1300": {"old", "1969", "new"},
        "modified in 1960..1975": {"1969"},
        "modified in 0001..9999": {"old", "1969", "new"},
    }.items():
        assert index.names(source) == names, source


def test_a_row_has_the_size_and_the_date_of_its_picture(tmp_path: Path, draw: Callable[..., Path]) -> None:
    picture = draw(tmp_path / "red.png", "red")
    os.utime(picture, (1_700_000_000, 1_700_000_000))
    table = tmp_path / "rows.csv"
    table.write_text("text,image\nred,red.png\nalone,\n")
    with Index(tmp_path / "index", model="fake") as index:
        index.add(table)
        rows = {source: {hit.text for hit in index.search("red", modality="text", where=source)} for source in (
            "modified = 2023-11",
            "not modified = 2023-11",
            "modified > 0001 or size >= 0",
            f"size = {picture.stat().st_size}",
            f"size in {picture.stat().st_size}..{picture.stat().st_size}",
        )}  # fmt: skip
    assert list(rows.values()) == [{"red"}, {"alone"}, {"red"}, {"red"}, {"red"}]


# Places


_LATITUDES = st.floats(-90, 90) | st.sampled_from([90.0, -90.0, 89.9999, 0.0])
_LONGITUDES = st.floats(-180, 180) | st.sampled_from([180.0, -180.0, 179.9999, -179.9999, 0.0])


@pytest.fixture(scope="module")
def places() -> sqlite3.Connection:
    return _database()


@settings(max_examples=500, deadline=None)
@given(
    _LATITUDES,
    _LONGITUDES,
    st.floats(0.01, 2.1e7) | st.floats(0.01, 5000),
    st.lists(st.tuples(_LATITUDES, _LONGITUDES), max_size=4),
    st.lists(st.tuples(st.floats(-1.2, 1.2), st.floats(0, 2 * math.pi)), min_size=1, max_size=4),
)
def test_near_is_within_a_distance_on_the_sphere(
    places: sqlite3.Connection,
    latitude: float,
    longitude: float,
    metres: float,
    anywhere: list[tuple[float, float]],
    around: list[tuple[float, float]],
) -> None:
    points = [*anywhere, *(_away(latitude, longitude, share * metres, bearing) for share, bearing in around)]
    places.execute("DELETE FROM assets")
    places.executemany(
        "INSERT INTO assets (asset_id, latitude, longitude) VALUES (?, ?, ?)",
        [(number, *point) for number, point in enumerate(points)],
    )
    where = compile_filter(Near(latitude, longitude, metres), [], "image")
    found = {row[0] for row in places.execute(f"SELECT asset_id FROM assets WHERE {where.sql}", where.parameters)}
    for number, point in enumerate(points):
        distance = haversine(*point, latitude, longitude)
        assert metres_between(*point, latitude, longitude) == pytest.approx(distance, abs=1e-3)
        if abs(distance - metres) > 1e-6 * metres + 1e-3:
            assert (number in found) == (distance < metres), (point, distance)


def test_near_crosses_the_date_line_and_the_poles(tmp_path: Path) -> None:
    index = build(
        tmp_path,
        [
            Known("fiji", place=(-17.0, 179.9)),
            Known("samoa", place=(-17.0, -179.9)),
            Known("north", place=(89.9, 0.0)),
            Known("beyond", place=(89.9, 180.0)),
            Known("zero", place=(0.0, 0.0)),
        ],
    )
    for source, names in {
        "near(-17, 179.95, 30km)": {"fiji", "samoa"},
        "near(-17, -179.95, 30km)": {"fiji", "samoa"},
        "near(-17, 180, 5km)": set(),
        "near(90, 77, 12km)": {"north", "beyond"},
        "near(89.9, 0, 23km)": {"north", "beyond"},
        "near(89.9, 0, 20km)": {"north"},
        "near(0, 0, 20100km)": {"fiji", "samoa", "north", "beyond", "zero"},
        "lat > 80 and lon = 0": {"north"},
    }.items():
        assert index.names(source) == names, source


# What users write is bound


_HOSTILE = (
    "x' OR 1=1 --",
    "x'); DROP TABLE items; --",
    '" OR ""="',
    "?",
    "?1",
    ":a",
    "%' OR '1'='1",
    "*' OR 1 --",
    "]",
    "[",
    "\\",
    "$.a",
    "a.b[0]",
    '"',
)


@pytest.mark.parametrize("hostile", _HOSTILE)
def test_values_that_are_sql_are_values(tmp_path: Path, hostile: str) -> None:
    with Index(tmp_path / "index", model="fake") as index:
        index.add([{"text": "hers", "meta": {hostile: hostile, "n": 1}}, {"text": "other", "meta": {"n": 2}}])
        quoted = format_filter(Compare("camera", "=", hostile)).partition(" = ")[2]
        column = format_filter(Compare(f"meta.{hostile}", "=", hostile))
        assert [hit.text for hit in index.search("hers", where=column)] == ["hers"]
        assert [hit.text for hit in index.search("hers", where=f"meta.{quoted} in ({quoted}, 1)")] == ["hers"]
        assert [hit.text for hit in index.search("hers", where=f"not {column}")] == ["other"]
        for field in ("path", "folder", "ext", "camera", "tag", "meta.n"):
            for sign in "=~":
                assert len(index.search("hers", where=f"{field} {sign} {quoted}")) == 0
        assert index.info().items == 2


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_statement_has_anything_of_what_is_written(column: str, value: str) -> None:
    marks = ("q7z" + column, "k9w" + value)
    plain = compile_filter(Compare("meta.a", "=", "b"), [_ROOT], "image").sql
    filter_ = Compare(f"meta.{marks[0]}", "=", marks[1])
    where = compile_filter(filter_, [_ROOT], "image")
    if marks[0].isascii() and marks[1].isascii():
        assert where.sql == plain
        assert marks[0] in where.parameters
    assert not any(mark in where.sql for mark in ("q7z", "k9w"))
    for field in ("path", "folder", "ext", "camera", "tag"):
        for sign in ("=", "~"):
            where = compile_filter(Compare(field, sign, marks[1]), [_ROOT], "text")  # type: ignore[arg-type]
            assert "k9w" not in where.sql
            assert where.sql.count("?") == len(where.parameters)


# Limits


@pytest.mark.parametrize("space", _SPACES)
@pytest.mark.parametrize(
    "leaf",
    ["width > 1", "size > 1", "tag ~ x", "meta.a = 1", "meta.a ~ x", "near(1, 179.9, 100km)", "ext ~ j*", "folder = x",
     "path ~ '*5?'", "modified = 2024", "path ~ '*5'", "meta.a in 1..2", "size in (1, 2)"],
)  # fmt: skip
def test_the_deepest_filters_are_no_more_than_sqlite_can_parse(leaf: str, space: Modality) -> None:
    shapes = [("({0} or (", "))"), ("{0} and ({0} or (", "))"), ("not ({0} and ", ")"), ("not ({0} and ({0} or ", "))")]
    for opening, closing in shapes:
        levels = opening.count("(") + opening.count("not")
        depth = MAX_DEPTH // levels
        source = opening.format(leaf) * depth + leaf + closing * depth
        _run(source, space)


def test_the_longest_filters_are_no_more_than_sqlite_can_take() -> None:
    listed = f"meta.a in ({', '.join(map(str, range(MAX_COMPARISONS)))})"
    longest = [
        listed,
        " or ".join(["folder = x"] * MAX_COMPARISONS),
        " and ".join(["meta.a ~ x"] * MAX_COMPARISONS),
        " and ".join(["not near(1, 179.9, 1km)"] * MAX_COMPARISONS),
    ]
    for source in longest:
        for space in _SPACES:
            _run(source, space)
    roots = [_ROOT._replace(root_id=number) for number in range(1, 1001)]
    compile_filter(parse_filter("folder = x and path ~ y"), roots, "image")
    with pytest.raises(UsageError, match="too long for an index of 1000 roots"):
        compile_filter(parse_filter(longest[1]), roots, "image")


# Fields of manifests


def test_the_fields_of_rows(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "meta": {"Price": 5, "tags": ["red", "Blue"], "draft": True, "n": [5, 30]}},
        {"text": "b", "meta": {"price": "12.50", "draft": "true", "n": 12, "é": "É", "nested": {"a": 1}}},
        {"text": "c", "meta": {"price": None, "draft": False, "day": "2024-05-08"}},
    ]
    with Index(tmp_path / "index", model="fake") as index:
        index.add(rows)
        for source, texts in {
            "meta.price < 10": "a",
            "meta.PRICE >= 5": "ab",
            "meta.price = 12.5": "b",
            'meta.price = "12.50"': "b",
            'meta.price = "5"': "",
            "not meta.price > 0": "c",
            "meta.tags = blue": "a",
            "meta.tags ~ r*": "a",
            "meta.tags != blue": "bc",
            "meta.draft = true": "ab",
            "meta.draft = false": "c",
            "meta.draft != true": "c",
            "meta.n in 10..20": "b",
            "meta.n = 30": "a",
            "meta.é = é": "b",
            "meta.É = É": "b",
            "meta.nested ~ *a*": "",
            "meta.day >= 2024-05": "c",
            "meta.day ~ 2024-*": "c",
            "meta.nowhere = 1": "",
        }.items():
            assert "".join(sorted(hit.text or "" for hit in index.search("a", where=source))) == texts, source


def test_a_picture_has_the_fields_of_its_rows_and_a_caption_what_is_known_of_its_picture(
    tmp_path: Path, draw: Callable[..., Path]
) -> None:
    draw(tmp_path / "photos" / "red.png", "red", size=(96, 64))
    draw(tmp_path / "photos" / "blue.png", "blue", size=(40, 30))
    (tmp_path / "photos" / "blue.txt").write_text("a blue one")
    table = tmp_path / "rows.jsonl"
    lines = [
        {"text": "one", "image": "photos/red.png", "by": "me"},
        {"text": "two", "image": "photos/red.png", "by": "you"},
    ]
    table.write_text("\n".join(map(json.dumps, lines)))
    with Index(tmp_path / "index", model="fake") as index:
        index.add(tmp_path / "photos", table)

        def found(source: str) -> set[str]:
            hits = index.search("red", modality="all", where=source)
            return {hit.text or Path(str(hit.path)).name for hit in hits}

        assert found("meta.by = me") == {"red.png", "one"}
        assert found("meta.by = me and meta.by = you") == {"red.png"}
        assert found("width = 96") == {"red.png", "one", "two"}
        assert found("width = 40 and modality = text") == {"a blue one"}
        assert found("path = red.png and modality = text") == {"one", "two"}
        assert found("ext = txt") == {"a blue one"}
