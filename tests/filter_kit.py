"""Random catalogs, random filters, and what a filter means, the slow and obvious way."""

from __future__ import annotations

import fnmatch
import json
import math
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from store_kit import PRECISION, key

from mmsearch.retrieval.filters import And, Between, Compare, Filter, Near, Not, OneOf, Or, Value
from mmsearch.retrieval.periods import Period, read_period
from mmsearch.retrieval.store import LocalStore, NewItem, Writer
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Modality, Root, Stamp
from mmsearch.retrieval.uris import path_to_uri

DIM = 3
FOLDER = Path("/corpus")
"""What the roots of every random corpus are in; nothing is there."""
NAMES = (
    *("a.jpg", "A.JPG", "b.png", "100%.jpg", "100%25.jpg", "5.jpg", "[x].jpg", "x.jpg", "*.jpg", "q?.jpg", "é猫.jpg"),
    *(
        "bad\udcff.jpg",
        "beach/a.jpg",
        "beach/deep/b.JPG",
        "Beach/c.png",
        "be ach/'d\".jpg",
        ".hidden",
        "no_ending",
        "a.b/c",
    ),
)
CAMERAS = ("Canon EOS", "canon eos", "Émile", "émile", "x' OR 1=1 --", "100%", "[a]")
TAGS = ("draft", "Draft 2", "猫", "ÉTÉ", "a'b")
COLUMNS = ("price", "Name", 'my "c" [x]', "é", "list", "a.b", "x') OR 1=1 --")
CELLS = (
    5,
    30,
    12.5,
    "40",
    "draft",
    "Draft",
    True,
    False,
    "true",
    None,
    [5, 30],
    ["a", "draft"],
    [],
    {"a": 1},
    "é",
    " 7 ",
)
TIMES = (
    *("2023-12-31T23:59:59", "2024-01-01T00:00:00", "2024-05-08T10:30:00.25"),
    "2024-05-31T23:59:59-08:00",
    "2024-09-01T00:00:00",
)
PLACES = ((48.1, 11.5), (48.2, 11.6), (0.0, 179.99), (0.0, -179.99), (89.95, 10.0), (89.95, -170.0), (-90.0, 0.0))


@dataclass
class Thing:
    """An asset as a test knows it; `picture` is the one that it belongs to."""

    path: str | None
    is_file: bool
    stamp: Stamp
    metadata: AssetMetadata
    meta: dict[str, object] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    picture: Thing | None = None
    rows: list[Thing] = field(default_factory=list)


@dataclass
class Corpus:
    """An index, and what each of its items is."""

    store: LocalStore
    things: dict[int, tuple[Modality, Thing]]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"<{len(self.things)} items>")  # Hypothesis refuses to show all that is in them


def random_corpus(folder: Path, seed: int) -> Corpus:
    """Two folders of pictures and texts, a manifest, and rows without one; some of it is removed again.

    Args:
        folder: where the index goes.
        seed: of all that is random.
    """
    rng = random.Random(seed)
    store = LocalStore.create(folder / "index", model="fake", identity="fake-1", dim=DIM)
    made: dict[tuple[str, str], tuple[Modality, Thing]] = {}
    pictures: list[tuple[Path, str, Thing]] = []
    with store.writer() as writer:
        for root in (FOLDER / "one", FOLDER / "two [2]"):
            writer.root(Root(root, 1))
            for name in rng.sample(NAMES, 12):
                modality: Modality = "text" if rng.random() < 0.25 else "image"
                thing = Thing(str(root / name), True, _stamp(rng), _metadata(rng))
                uri = path_to_uri(name)
                made[str(root), uri] = (modality, thing)
                _add(writer, root, uri, modality, thing, None)
                if modality == "image":
                    pictures.append((root, uri, thing))
                    if rng.random() < 0.3:
                        caption = Thing(f"{root / name}.txt", True, _stamp(rng), AssetMetadata(), picture=thing)
                        made[str(root), f"{uri}.txt"] = ("text", caption)
                        _add(writer, root, f"{uri}.txt", "text", caption, (root, uri))
            writer.commit()
        for rows in (Root(FOLDER / "rows.csv", 1, kind="manifest"), Root(Path("rows:"), 0, kind="rows")):
            writer.root(rows)
            for number in range(10):
                owner = rng.choice(pictures) if rng.random() < 0.6 else None
                place = owner[2].path if owner else str(rows.path) if rows.kind == "manifest" else None
                meta = {name: rng.choice(CELLS) for name in rng.sample(COLUMNS, 3)}
                row = Thing(place, False, _stamp(rng), AssetMetadata(), meta, picture=owner[2] if owner else None)
                if owner:
                    owner[2].rows.append(row)
                made[str(rows.path), f"id={number}"] = ("text", row)
                _add(writer, rows.path, f"id={number}", "text", row, owner and (owner[0], owner[1]))
            writer.commit()
    ids = _ids(store)
    with store.writer() as writer:
        tagged = {thing.path: rng.sample(TAGS, rng.randint(1, 2)) for _, _, thing in pictures if rng.random() < 0.5}
        tags = {}
        for place, (_, thing) in made.items():
            if thing.path in tagged and thing.is_file:
                thing.tags = tuple(tagged[thing.path])
                tags[ids[place][1]] = dict.fromkeys(thing.tags, 0.5)
        writer.tag(tags)
        gone = [place for place in made if place[1].startswith("id=") and rng.random() < 0.2]
        for root_path, uri in gone:
            _, thing = made.pop((root_path, uri))
            if thing.picture is not None:
                thing.picture.rows.remove(thing)
            writer.remove(root_path, [uri])
        writer.commit()
    ids = _ids(store)
    return Corpus(store, {ids[place][0]: known for place, known in made.items()})


def _ids(store: LocalStore) -> dict[tuple[str, str], tuple[int, int]]:
    """Item and asset ids by the root and uri that an asset was added with."""
    with store.snapshot() as snapshot:
        roots = {root.root_id: root.path for root in snapshot.roots()}
        rows = snapshot.select("SELECT root_id, uri, item_id, asset_id FROM items JOIN assets USING (asset_id)")
        return {(roots[root_id], uri): (item_id, asset_id) for root_id, uri, item_id, asset_id in rows}


def _stamp(rng: random.Random) -> Stamp:
    if rng.random() < 0.1:
        return Stamp(-1, 0)
    day = datetime.fromisoformat(rng.choice(TIMES)).replace(tzinfo=None)
    return Stamp(rng.choice((0, 1000, 1_500_000)), int(day.timestamp()) * 10**9)


def _metadata(rng: random.Random) -> AssetMetadata:
    def perhaps(values: Sequence[object]) -> object:
        return rng.choice(values) if rng.random() < 0.6 else None

    latitude, longitude = perhaps(PLACES) or (None, None)  # type: ignore[misc]
    return AssetMetadata(
        width=perhaps((100, 640, 1000)),  # type: ignore[arg-type]
        height=perhaps((100, 480)),  # type: ignore[arg-type]
        taken=perhaps(TIMES),  # type: ignore[arg-type]
        camera=perhaps(CAMERAS),  # type: ignore[arg-type]
        latitude=latitude,
        longitude=longitude,
    )


def _add(
    writer: Writer, root: Path, uri: str, modality: Modality, thing: Thing, owner: tuple[Path, str] | None
) -> None:
    content = key(f"{root} {uri}")
    if content not in writer.find(modality, [content]):
        row = np.array([[byte % 3 - 1.0 for byte in content[:DIM]]], np.float32)  # equal scores are common
        writer.embed(modality, [content], row, **PRECISION)
    writer.add(
        ItemRef(
            str(root),
            uri,
            thing.path or str(root),
            modality,
            thing.stamp,
            owner and owner[1],
            owner and str(owner[0]),
        ),
        content_hash=content,
        metadata=thing.metadata,
        items=[NewItem(modality, content, None, uri if modality == "text" else None)],
        meta=json.dumps(thing.meta, ensure_ascii=False) if thing.meta else None,
    )


# What a filter means


def passes(filter_: Filter, modality: Modality, thing: Thing) -> bool:
    """Whether an item passes a filter. What is not known is equal to nothing, and `not` is the contrary."""
    match filter_:
        case And(filters):
            return all(passes(one, modality, thing) for one in filters)
        case Or(filters):
            return any(passes(one, modality, thing) for one in filters)
        case Not(inner):
            return not passes(inner, modality, thing)
        case Compare(name, "!=", value):
            return not passes(Compare(name, "=", value), modality, thing)
        case Compare(name, operator, value):
            return any(_compares(name, known, operator, value) for known in _known(name, modality, thing))
        case OneOf(name, values):
            return any(passes(Compare(name, "=", value), modality, thing) for value in values)
        case Between(name, low, high):
            return any(
                (low is None or _compares(name, known, ">=", low))
                and (high is None or _compares(name, known, "<=", high))
                for known in _known(name, modality, thing)
            )
        case Near(latitude, longitude, metres):
            return any(
                one.metadata.latitude is not None
                and one.metadata.longitude is not None
                and haversine(one.metadata.latitude, one.metadata.longitude, latitude, longitude) <= metres
                for one in _described(modality, thing)
            )


def haversine(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Metres between two places, by the textbook."""
    up, along = math.radians(other_latitude - latitude) / 2, math.radians(other_longitude - longitude) / 2
    parallels = math.cos(math.radians(latitude)) * math.cos(math.radians(other_latitude))
    return 2 * 6_371_008.8 * math.asin(min(1.0, math.sqrt(math.sin(up) ** 2 + parallels * math.sin(along) ** 2)))


def _described(modality: Modality, thing: Thing) -> list[Thing]:
    """The things whose fields an item has: its own and those of its picture."""
    return [thing, thing.picture] if modality == "text" and thing.picture is not None else [thing]


def _known(name: str, modality: Modality, thing: Thing) -> list[object]:
    """All values that an item has of a field."""
    described = _described(modality, thing)
    if name == "modality":
        return [modality]
    if name.startswith("meta."):
        rows = [thing, *(thing.rows if modality == "image" else ())]
        cells = [cell for row in rows for key, cell in row.meta.items() if key.lower() == name[5:].lower()]
        return [one for cell in cells for one in (cell if isinstance(cell, list) else [cell]) if one is not None]
    if name in ("path", "folder", "ext"):
        return [] if thing.path is None else [thing.path]
    if name == "tag":
        return [tag for one in described for tag in one.tags]
    if name in ("size", "modified"):
        file = thing if thing.is_file else thing.picture
        known = file is not None and file.stamp.size >= 0
        return [file.stamp.size if name == "size" else file.stamp.mtime_ns] if known and file is not None else []
    column = {"lat": "latitude", "lon": "longitude", "year": "taken"}.get(name, name)
    values = [getattr(one.metadata, column) for one in described]
    return [value for value in values if value is not None]


def _compares(name: str, known: object, operator: str, value: Value) -> bool:
    if name in ("path", "folder", "ext"):
        assert isinstance(known, str)
        assert isinstance(value, str)
        return _is_there(name, known, operator, value)
    if isinstance(value, Period):
        moment = known if name == "modified" else str(known)[:19]
        start, end = (_ns(value.start), _ns(value.end)) if name == "modified" else (value.start, value.end)
        return _within(moment, start, end)[operator]
    if isinstance(value, bool):
        return known is value or (isinstance(known, str) and known.lower() == str(value).lower())
    if isinstance(value, str):
        if not isinstance(known, str):
            return False
        return _ordered(known.lower(), value.lower(), operator)
    if isinstance(known, str):
        try:
            known = float(known)
        except ValueError:
            return False
    return isinstance(known, int | float) and not isinstance(known, bool) and _ordered(known, value, operator)


def _is_there(name: str, path: str, operator: str, value: str) -> bool:
    if name == "ext":
        extension, wanted = os.path.splitext(path)[1][1:], value.removeprefix(".")
        return _ordered(extension.lower(), wanted.lower(), operator)
    there = os.path.dirname(path) if name == "folder" else path
    wanted = value.rstrip("/") if name == "folder" else value
    if operator == "=":
        return there == wanted or (not wanted.startswith("/") and there.endswith(f"/{wanted}"))
    return fnmatch.fnmatchcase(there, wanted if wanted.startswith(("/", "*")) else f"*/{wanted}")


def _ordered(known: object, value: object, operator: str) -> bool:
    if operator == "~":
        return fnmatch.fnmatchcase(str(known), str(value))
    return {"=": known == value, "<": known < value, "<=": known <= value, ">": known > value, ">=": known >= value}[
        operator
    ]  # type: ignore[operator]


def _within(moment: object, start: object, end: object) -> dict[str, bool]:
    before, after = moment < start, moment >= end  # type: ignore[operator]
    return {"=": not before and not after, "<": before, "<=": not after, ">": after, ">=": not before}


def _ns(moment: str) -> float:
    try:
        return datetime.fromisoformat(moment).timestamp() * 1e9
    except ValueError:  # the first year and the end of the last, which no file is as old or as new as
        return -math.inf if moment < "1970" else math.inf


# Random filters


def random_filters() -> st.SearchStrategy[Filter]:
    """Filters that let some items of a random corpus through."""
    leaves = st.one_of(_texts(), _numbers(), _times(), _metas(), _nears())

    def combined(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
        several = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return inner.map(Not) | several.map(And) | several.map(Or)

    return st.recursive(leaves, combined, max_leaves=5)


def _compared(
    names: Iterable[str], signs: Sequence[str], values: st.SearchStrategy[Value]
) -> st.SearchStrategy[Filter]:
    fields = st.sampled_from(list(names))
    lists = st.lists(values, min_size=1, max_size=3).map(tuple)
    return st.builds(Compare, fields, st.sampled_from(signs), values) | st.builds(OneOf, fields, lists)


def _ranged(
    names: Iterable[str], values: st.SearchStrategy[Value], order: Callable[[Value], object]
) -> st.SearchStrategy[Filter]:
    def between(name: str, ends: list[Value], opened: int) -> Filter:
        low, high = sorted(ends, key=order)  # type: ignore[type-var,arg-type]
        return Between(name, None if opened == 1 else low, None if opened == 2 else high)

    ends = st.lists(values, min_size=2, max_size=2)
    return st.builds(between, st.sampled_from(list(names)), ends, st.integers(0, 2))


_SIGNS = ("=", "!=", "<", "<=", ">", ">=")
_GLOBS = st.sampled_from(
    [
        *(
            "*",
            "*.jpg",
            "*5.jpg",
            "*beach*",
            "beach/*",
            "*/[!a]*",
            "?.jpg",
            "[[]x].jpg",
            "*%*",
            "*e*",
            "*D*",
            "*25*",
            "é*",
            "[",
            "",
        )
    ]
)


def _texts() -> st.SearchStrategy[Filter]:
    names = [name for name in NAMES if name.isprintable()]
    paths = [*names, *(str(FOLDER / "one" / name) for name in names), str(FOLDER / "rows.csv"), "rows.csv"]
    folders = [
        "one",
        "two [2]",
        "beach",
        "two [2]/beach/",
        str(FOLDER / "one"),
        str(FOLDER / "one") + "/",
        "/",
        "nowhere",
    ]
    extensions = ["jpg", ".JPG", "png", "txt", "csv", "hidden", "", "b/c", "é"]
    return st.one_of(
        _compared(["path"], "=~", st.sampled_from(paths) | _GLOBS),
        _compared(["folder"], "=~", st.sampled_from(folders) | _GLOBS),
        _compared(["ext"], "=~", st.sampled_from(extensions) | st.sampled_from(["j*", "J?G", "*", "[!j]*"])),
        _compared(["modality"], "=~", st.sampled_from(["image", "text"])),
        _compared(["camera"], "=~", st.sampled_from(CAMERAS) | st.sampled_from(["*eos", "É*", "[*", "*", "CANON EOS"])),
        _compared(["tag"], "=~", st.sampled_from(TAGS) | st.sampled_from(["d*", "été", "DRAFT", "*"])),
    )


def _numbers() -> st.SearchStrategy[Filter]:
    sides = st.sampled_from([0, 100, 480, 639.5, 640, 1000])
    sizes = st.sampled_from([0, 999, 1000, 1_500_000])
    degrees = st.sampled_from([-90, 0, 11.5, 48.1, 48.15, 179.99])
    of = [(("width", "height"), sides), (("size",), sizes), (("lat", "lon"), degrees)]
    return st.one_of(
        *(_compared(names, _SIGNS, values) for names, values in of),
        *(_ranged(names, values, float) for names, values in of),  # type: ignore[arg-type]
    )


def _times() -> st.SearchStrategy[Filter]:
    written = [
        "2023",
        "2024",
        "2024-05",
        "2024-05-08",
        "2024-05-08T10:30",
        "2024-05-31",
        "2024-09-01T00:00:00",
        "0001",
        "9999",
    ]
    periods = st.sampled_from([*map(read_period, written)])
    years = st.sampled_from([*map(read_period, ("2023", "2024"))])
    return st.one_of(
        _compared(["taken", "modified"], _SIGNS, periods),
        _compared(["year"], _SIGNS, years),
        _ranged(["taken", "modified"], periods, lambda period: period.start),  # type: ignore[union-attr]
        _ranged(["year"], years, lambda period: period.start),  # type: ignore[union-attr]
    )


def _metas() -> st.SearchStrategy[Filter]:
    names = [f"meta.{column}" for column in (*COLUMNS, "PRICE", "É", "nowhere")]
    numbers = st.sampled_from([5, 7, 12.5, 20, 30, 40])
    return st.one_of(
        _compared(names, _SIGNS, numbers),
        _compared(names, ["=", "!="], st.booleans()),
        _compared(names, [*_SIGNS, "~"], st.sampled_from(["draft", "DRAFT", "é", "d*", "40", "true", "b", '{"a":1}'])),
        _ranged(names, numbers, float),  # type: ignore[arg-type]
    )


def _nears() -> st.SearchStrategy[Filter]:
    return st.builds(
        lambda place, metres: Near(*place, metres),
        st.sampled_from([*PLACES, (48.15, 11.55), (0.0, 180.0), (0.0, -180.0), (90.0, 0.0)]),
        st.sampled_from([1.0, 2_500.0, 6_000.0, 20_000.0, 2e7, 3e7]),
    )
