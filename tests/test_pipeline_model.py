"""Any sequence of runs over real files, manifests and what programs give, against a model: dicts.

The model says what a run does to the index in the words of its documentation: what is found is there, what a completed
scan has not found is gone unless its drive may be away, what was taken out stays out until it is named. Runs may be
killed: then the index is what a dead process leaves on the disk, and the same call goes on from there.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

import mmsearch
from mmsearch.indexers import pipeline, reindex
from mmsearch.indexers.chunks import chunk_chars, chunk_text
from mmsearch.indexers.ingest import text_key
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.media import content_hash, load_image
from mmsearch.retrieval.store import LocalStore, Snapshot, doctor
from mmsearch.retrieval.types import Modality
from mmsearch.retrieval.uris import uri_to_path

PHOTOS = ("photos/a.png", "photos/sub/b%.png", "photos/sub/deep/ü.jpg")
LISTED = ("lists/pics/p.png", "lists/pics/q.png")  # in no folder that is scanned: only rows name them
PICTURES = (*PHOTOS, "notes/y.png", *LISTED)
TEXTS = ("photos/a.txt", "photos/n.md", "notes/x.txt", "notes/in/z.md")  # the first is a.png's
FOLDERS = ("photos/sub", "photos/sub/deep", "notes/in", "lists/pics")
ROOTS = ("photos", "notes")
MANIFESTS = ("lists/m.jsonl", "lists/n.csv")
PROGRAM = "rows:"
MODELS = ("fake", "other")
BAD = "bad"
COLOURS = ("red", "green", "blue")
WORDS = ("Roses are red.", "A green bird.", " ".join(f"Sentence {number} of a long story." for number in range(9)))
_FOLDER: list[Path] = []
_CLOCK_NS = 1_600_000_000_000_000_001


@functools.cache
def picture(colour: str) -> bytes:
    """The bytes of a file; some are no picture."""
    from PIL import Image

    if colour == BAD:
        return b"no picture"
    stream = io.BytesIO()
    Image.new("RGB", (12, 12), colour).save(stream, "PNG")
    return stream.getvalue()


def text(words: str) -> bytes:
    return b"\xff\xfe\xfa"[1:] if words == BAD else f"{words}\n".encode()


class Spy(FakeEncoder):
    """Notes all that it encodes. Every model turns the vectors by another angle."""

    def __init__(self, name: str) -> None:
        super().__init__(name, dim=24 + 8 * MODELS.index(name), batch_size=2)
        self.encoded: list[tuple[Modality, str]] = []
        self.step: Callable[[str], None] = lambda name: None
        self._colours = {self.array(colour).tobytes(): colour for colour in COLOURS}

    def array(self, colour: str) -> NDArray[np.float32]:
        return self.preprocess(load_image(picture(colour), target=self.image_size).image)

    def encode_images(self, arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        self.encoded += [("image", self._colours[array.tobytes()]) for array in arrays]
        self.step("encode")
        return np.roll(super().encode_images(arrays), MODELS.index(self.name), axis=1)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.encoded += [("text", text) for text in texts]
        self.step("encode")
        return np.roll(super().encode_texts(texts), MODELS.index(self.name), axis=1)


@functools.cache
def spy(name: str) -> Spy:
    return Spy(name)


@functools.cache
def vector_of(model: str, modality: Modality, content: str) -> NDArray[np.float32]:
    """What an item of that content has to have."""
    if content.startswith("vector"):
        return given_vector(model, content)
    twin = Spy(model)
    rows = twin.encode_images([twin.array(content)]) if modality == "image" else twin.encode_texts([content])
    return np.asarray(rows[0])


def given_vector(model: str, name: str) -> NDArray[np.float32]:
    row = np.random.default_rng(list(name.encode())).standard_normal(spy(model).dim)
    return np.asarray(row / np.linalg.norm(row), np.float32)


class Part(NamedTuple):
    """What becomes an item: of a picture the name of its content, of a text the words, or the name of a vector."""

    fragment: str | None
    modality: Modality
    content: str
    text: str | None = None


@dataclass(frozen=True)
class Asset:
    """A file or row that the index knows; `said` is what a row was when it was given with its vector."""

    parts: tuple[Part, ...] = ()
    failed: bool = False
    owner: str | None = None
    listed: bool = False
    said: object = None


class Row(NamedTuple):
    id: str
    texts: tuple[str, ...]
    picture: str | None  # a path, or the name of a content that is given as bytes


ROWS = st.lists(
    st.builds(
        Row,
        st.sampled_from("abc"),
        st.lists(st.sampled_from(WORDS[:2]), min_size=1, max_size=2).map(tuple),
        st.sampled_from([None, *PHOTOS[:2], *LISTED]),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda row: row.id,
)
GIVEN = st.lists(
    st.builds(
        Row,
        st.sampled_from("abc"),
        st.lists(st.sampled_from(WORDS[:2]), min_size=1, max_size=2).map(tuple),
        st.sampled_from([None, *PHOTOS[:1], *LISTED, *COLOURS]),
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda row: row.id,
)


def parts_of_file(path: str, content: str) -> tuple[Part, ...]:
    if path in PICTURES:
        return (Part(None, "image", content),)
    chunks = chunk_text(f"{content}\n", max_chars=chunk_chars(spy("fake").max_tokens))
    return tuple(Part(chunk.fragment, "text", chunk.text, chunk.text) for chunk in chunks)


def parts_of_row(row: Row) -> tuple[Part, ...]:
    parts = [Part(None, "image", row.picture)] if row.picture in COLOURS else []
    several = len(row.texts) > 1
    for number, words in enumerate(row.texts, 1):
        parts.append(Part(f"text={number}" if several else None, "text", words, words))
    return tuple(parts)


def is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


@dataclass
class Known:
    """What the index should hold.

    Attributes:
        files: by path.
        rows: by source (a manifest or the program) and id.
        out: paths that were taken out.
        roots: folders and manifests that runs without PATH look at.
    """

    files: dict[str, Asset] = field(default_factory=dict)
    rows: dict[tuple[str, str], Asset] = field(default_factory=dict)
    out: set[str] = field(default_factory=set)
    roots: set[str] = field(default_factory=set)

    def is_out(self, path: str) -> bool:
        return any(is_below(path, out) for out in self.out)

    def drop_unlisted(self) -> None:
        """Pictures that only rows named go with the last of them."""
        named = {asset.owner for asset in (*self.rows.values(), *self.files.values())}
        self.files = {path: one for path, one in self.files.items() if not one.listed or path in named}

    def take_out(self, path: str) -> int:
        gone = [one for one in self.files if is_below(one, path)]
        owned = [one for one, asset in self.files.items() if asset.owner in gone and one not in gone]
        rows = [key for key, asset in self.rows.items() if asset.owner in gone]
        for one in (*gone, *owned):
            del self.files[one]
        for key in rows:
            del self.rows[key]
        self.drop_unlisted()
        return len(gone) + len(owned) + len(rows)

    def forget(self, root: str) -> int:
        """A root goes with all that it has; rows stay that name pictures in it."""
        files = [path for path in self.files if is_below(path, root)]
        rows = [key for key in self.rows if key[0] == root]
        for path in files:
            del self.files[path]
        for key in rows:
            del self.rows[key]
        for key, asset in self.rows.items():
            if asset.owner is not None and is_below(asset.owner, root):
                self.rows[key] = replace(asset, owner=None)
        self.drop_unlisted()
        self.out = {out for out in self.out if not is_below(out, root)}
        self.roots.discard(root)
        return len(files) + len(rows)

    def assets(self) -> Iterator[tuple[str | None, str | None, str, Asset]]:
        """Path, id and what is before the fragment of every asset."""
        for path, asset in self.files.items():
            yield path, None, "", asset
        for (source, id_), asset in self.rows.items():
            path = asset.owner or (None if source == PROGRAM else source)
            yield path, id_, f"id={id_}" if path is not None else "", asset

    def items(self) -> Counter[tuple[Any, ...]]:
        """Path, id, fragment, modality, text and content of every item."""
        return Counter(
            (path, id_, "&".join(filter(None, (before, part.fragment))) or None, part.modality, part.text, part.content)
            for path, id_, before, asset in self.assets()
            for part in asset.parts
        )


class Killed(BaseException):
    """The end of the process, as far as one test process can have several."""


class Disk:
    """Real files, and what they hold."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.files: dict[str, str] = {}
        self.rows: dict[str, list[Row]] = {}
        self.hidden: set[str] = set()
        self.writes = 0

    def write(self, path: str, content: str) -> None:
        self._put(path, picture(content) if path in PICTURES else text(content))
        self.files[path] = content

    def write_rows(self, path: str, rows: list[Row]) -> None:
        names = [(row, os.path.relpath(row.picture, "lists") if row.picture else None) for row in rows]
        if path.endswith(".csv"):
            rows = [row._replace(texts=row.texts[:1]) for row in rows]
            stream = io.StringIO()
            csv.writer(stream).writerows([("id", "image", "text"), *((r.id, n, r.texts[0]) for r, n in names)])
            content = stream.getvalue()
        else:
            content = "".join(json.dumps({"id": r.id, "image": n, "text": r.texts}) + "\n" for r, n in names)
        self._put(path, content.encode())
        self.rows[path] = rows

    def _put(self, path: str, content: bytes) -> None:
        """Every write has a time of its own, long ago: nobody waits for a tick of the clock."""
        self.writes += 1
        target = self.base / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        os.utime(target, ns=(_CLOCK_NS, _CLOCK_NS + self.writes * 1_000_003))

    def move(self, path: str, to: str) -> None:
        (self.base / to).parent.mkdir(parents=True, exist_ok=True)
        (self.base / path).replace(self.base / to)
        self.files[to] = self.files.pop(path)

    def delete(self, path: str) -> None:
        (self.base / path).unlink()
        self.files.pop(path, None)
        self.rows.pop(path, None)

    def delete_folder(self, path: str) -> None:
        shutil.rmtree(self.base / path, ignore_errors=True)
        self.files = {one: content for one, content in self.files.items() if not is_below(one, path)}

    def hide(self, root: str, *, leave_empty: bool) -> None:
        (self.base / root).rename(self._hidden(root))
        self.hidden.add(root)
        if leave_empty:
            (self.base / root).mkdir()

    def show(self, root: str) -> None:
        if (self.base / root).exists():
            (self.base / root).rmdir()
        self._hidden(root).rename(self.base / root)
        self.hidden.remove(root)

    def _hidden(self, root: str) -> Path:
        return self.base / f"unplugged-{root.replace('/', '-')}"

    def is_hidden(self, path: str) -> bool:
        return any(is_below(path, root) for root in self.hidden)

    def visible(self) -> dict[str, str]:
        return {path: content for path, content in self.files.items() if not self.is_hidden(path)}

    def looks_empty(self, root: str) -> bool:
        try:
            return not os.listdir(self.base / root)
        except FileNotFoundError:
            return True

    def owner(self, path: str) -> str | None:
        return "photos/a.png" if path == "photos/a.txt" and "photos/a.png" in self.visible() else None


class Run:
    """What a run should do to what is known: scans, then files, then rows, then what is gone."""

    def __init__(self, known: Known, disk: Disk, folders: set[str], *, prune: bool = False) -> None:
        self.known = deepcopy(known)
        self.disk = disk
        self.found = disk.visible()
        self.folders = folders  # that the index knows before
        self.prune = prune
        self.gone: set[str] = set()
        self.rows: list[tuple[str, Row]] = []

    def whole(self, folder: str) -> None:
        """A folder, or one in it."""
        present = [path for path in self.found if is_below(path, folder)]
        mine = {path for path in self.known.files if is_below(path, folder)}
        self._scan(present, mine, keep=folder in ROOTS or self.disk.looks_empty(folder.split("/")[0]))
        self.known.roots |= {folder} & {*ROOTS}

    def named(self, paths: list[str], root: str) -> None:
        """Single files."""
        self._scan([path for path in paths if path in self.found], set(paths), keep=self.disk.looks_empty(root))

    def _scan(self, present: list[str], mine: set[str], *, keep: bool) -> None:
        seen = [path for path in present if not self._is_out(path)]
        for path in seen:
            self._see(path)
        if present or not keep or self.prune:
            self.gone |= mine & self.known.files.keys() - set(seen)

    def _is_out(self, path: str) -> bool:
        owner = self.disk.owner(path)
        return self.known.is_out(path) or (owner is not None and self.known.is_out(owner))

    def _see(self, path: str, *, listed: bool = False) -> None:
        content, old = self.found[path], self.known.files.get(path)
        bad = content == BAD
        parts = (old.parts if old else ()) if bad else parts_of_file(path, content)
        still = listed and (old is None or old.listed)
        self.known.files[path] = Asset(parts, bad, self.disk.owner(path), still)

    def manifest(self, path: str) -> None:
        self.known.roots.add(path)
        rows = self.disk.rows[path]
        for row in rows:
            self.row(path, row)
        kept = {row.id for row in rows if not self._passed_over(row)}
        for key in [key for key in self.known.rows if key[0] == path and key[1] not in kept]:
            del self.known.rows[key]

    def _passed_over(self, row: Row) -> bool:
        return self._owner(row) is not None and self.known.is_out(str(row.picture))

    def _owner(self, row: Row) -> str | None:
        """The picture of a row, unless it is plainly not there."""
        if row.picture is None or row.picture in COLOURS or row.picture in self.found:
            return row.picture if row.picture not in COLOURS else None
        root = next((one for one in self.folders if is_below(row.picture, one)), None)
        away = root is not None and self.disk.looks_empty(root) and not self.prune
        return row.picture if away else None

    def row(self, source: str, row: Row) -> None:
        if self._passed_over(row):
            return
        owner, old = self._owner(row), self.known.rows.get((source, row.id))
        if row.picture in PICTURES and row.picture not in self.found:
            self.known.rows[source, row.id] = Asset(old.parts if old else (), True, owner)
            return
        if owner is not None:
            self._see(owner, listed=True)
        self.known.rows[source, row.id] = Asset(parts_of_row(row), False, owner)

    def everything(self) -> None:
        """A run without PATH."""
        for root in sorted(self.known.roots & {*ROOTS}):
            self.whole(root)
        if "lists/pics" in self.folders:
            mine = [path for path in self.known.files if is_below(path, "lists/pics")]
            there = (self.disk.base / "lists/pics").is_dir()
            self.named([path for path in mine if not there or not self.known.files[path].listed], "lists/pics")
        for path in sorted(self.known.roots & self.disk.rows.keys()):
            self.manifest(path)
        for path in sorted(self.known.roots & {*MANIFESTS} - self.disk.rows.keys()):
            if self.prune:
                for key in [key for key in self.known.rows if key[0] == path]:
                    del self.known.rows[key]

    def end(self) -> Known:
        for path in self.gone:
            self.known.files.pop(path, None)
        self.known.drop_unlisted()
        return self.known


ENDS = st.one_of(
    st.none(), st.tuples(st.sampled_from(["kill", "ctrl-c", "full"]), st.sampled_from([0, 1, 2, 3, 5, 8, 13, 21, 34]))
)


class IndexMachine(RuleBasedStateMachine):
    """Files, manifests, what programs give, and an index that is to follow them."""

    def __init__(self) -> None:
        super().__init__()
        self.base = _FOLDER[0] / str(len(list(_FOLDER[0].iterdir())))
        self.disk = Disk(self.base)
        self.known = Known()
        self.model = "fake"
        self.fuse: tuple[str, int] | None = None
        self.staged = self.waiting = False
        self.ids: dict[int, tuple[str, str]] = {}
        self.held: tuple[Snapshot, list[Any]] | None = None
        self.checked = False
        for name in MODELS:
            spy(name).step = self.step
        _STEPS[:] = [self.step]
        self.index = self.opened()

    def teardown(self) -> None:
        _STEPS[:] = []
        self.index.close()
        if self.held is not None:
            self.held[0].close()
        shutil.rmtree(self.base, ignore_errors=True)
        self.base.mkdir()  # the next one takes the next number

    @initialize()
    def start(self) -> None:
        self.disk.write("photos/a.png", "red")
        self.disk.write("notes/x.txt", WORDS[0])
        self.scan([*ROOTS], None)

    @property
    def exists(self) -> bool:
        return (self.base / "index").exists()

    def opened(self) -> mmsearch.Index:
        return mmsearch.open(self.base / "index", model="auto" if self.exists else self.model, threads=2)

    def paths(self, names: Sequence[str]) -> list[Path]:
        return [self.base / name for name in names]

    def folders(self) -> set[str]:
        """Folders that are roots."""
        if not self.exists:
            return set()
        roots = self.index.info().roots
        return {os.path.relpath(root.path, self.base) for root in roots if root.kind == "folder"}

    # How a call ends

    def step(self, name: str) -> None:
        """Before every step of a write, and in every call of the encoder."""
        if self.fuse is None:
            return
        end, left = self.fuse
        self.fuse = (end, left - 1) if left else None
        if left:
            return
        if end == "kill":
            shutil.copytree(self.base / "index", self.base / "dead")
            raise Killed
        raise KeyboardInterrupt if end == "ctrl-c" else OSError(28, "No space left on device")

    def call(self, call: Callable[[], Any], after: Known, end: tuple[str, int] | None, model: str = "") -> None:
        """Makes a call that leaves the index as `after`; where it ended early, once more."""
        encoder = spy(model or self.model)
        if end is not None and self.exists:
            self.fuse = end
            self.encodes_nothing_twice(encoder, lambda: self.cut_short(call))
            fired, self.fuse = self.fuse is None, None
            if fired:
                self.staged = self.staged or bool(model)
                self.is_between(after)
        self.encodes_nothing_twice(encoder, call)
        self.known = after if self.exists else Known()
        self.follow()
        self.checked = False

    def cut_short(self, call: Callable[[], Any]) -> None:
        with suppress(Killed, KeyboardInterrupt, OSError, mmsearch.IndexUnusable):
            call()
        if (self.base / "dead").exists():  # what a dead process leaves takes the place of what ended in good order
            self.index.close()
            shutil.rmtree(self.base / "index")
            (self.base / "dead").rename(self.base / "index")
            self.index = self.opened()

    def encodes_nothing_twice(self, encoder: Spy, call: Callable[[], Any]) -> None:
        there = self.embedded(encoder)
        encoder.encoded.clear()
        call()
        assert len(set(encoder.encoded)) == len(encoder.encoded)
        assert there.isdisjoint(encoder.encoded)

    def embedded(self, encoder: Spy) -> set[tuple[Modality, str]]:
        """Contents that a model has embedded already, used or not."""
        keys: dict[tuple[str, bytes], tuple[Modality, str]] = {
            ("image", content_hash(picture(name))): ("image", name) for name in COLOURS
        }
        for words in {part.content for name in WORDS for part in parts_of_file("", name)} | {*WORDS}:
            keys["text", text_key(words)] = ("text", words)
        if not self.exists:
            return set()
        query = "SELECT space, content_key FROM embeddings JOIN models USING (model_id) WHERE identity = ?"
        return {keys[row] for row in self.sql(query, encoder.identity) if row in keys}

    def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.base / "index" / "catalog.sqlite")) as catalog:
            return catalog.execute(query, values).fetchall()

    def is_between(self, after: Known) -> None:
        """Every file is as before or as afterwards; rows may have to follow their pictures yet."""
        assert self.problems() <= {"staged-model", "salvaged-waiting", "orphan", "leftover"}
        found = {item for item in self.items() if item[1] is None}
        old, new = ({item for item in known.items() if item[1] is None} for known in (self.known, after))
        assert old & new <= found <= old | new

    def problems(self) -> set[str]:
        return {problem.kind for problem in self.index.doctor().problems}

    def follow(self) -> None:
        """A row that was not read again belongs to its picture where that has moved to."""
        moved = (
            {}
            if not self.exists
            else {
                (os.path.relpath(os.fsdecode(source), self.base) if source != b"rows:" else PROGRAM, uri[3:]): owner
                for source, uri, owner in self.sql(
                    "SELECT roots.path, uri, CAST(owners.path || '/' || owner_uri AS TEXT) FROM assets"
                    " JOIN roots USING (root_id) JOIN roots owners ON owners.root_id = owner_root_id"
                    " WHERE roots.kind != 'folder'"
                )
            }
        )
        for key, asset in self.known.rows.items():
            if asset.owner is not None and asset.owner not in self.known.files and key in moved:
                now = os.path.relpath(uri_to_path(moved[key]), self.base)
                if now in self.known.files and self.known.files[now].parts:
                    self.known.rows[key] = replace(asset, owner=now)

    # What happens on the disk

    @rule(path=st.sampled_from(PICTURES), content=st.sampled_from([*COLOURS, BAD]))
    def write_picture(self, path: str, content: str) -> None:
        if not self.disk.is_hidden(path):
            self.disk.write(path, content)

    @rule(path=st.sampled_from(TEXTS), content=st.sampled_from([*WORDS, BAD]))
    def write_text(self, path: str, content: str) -> None:
        if not self.disk.is_hidden(path):
            self.disk.write(path, content)

    @rule(pair=st.one_of(*(st.tuples(st.sampled_from(kind), st.sampled_from(kind)) for kind in (PICTURES, TEXTS))))
    def move(self, pair: tuple[str, str]) -> None:
        path, to = pair
        if path != to and path in self.disk.visible() and not self.disk.is_hidden(to):
            self.disk.move(path, to)

    @rule(pair=st.one_of(*(st.tuples(st.sampled_from(kind), st.sampled_from(kind)) for kind in (PICTURES, TEXTS))))
    def copy(self, pair: tuple[str, str]) -> None:
        path, to = pair
        if path != to and path in self.disk.visible() and not self.disk.is_hidden(to):
            self.disk.write(to, self.disk.files[path])

    @rule(path=st.sampled_from([*PICTURES, *TEXTS, *MANIFESTS]))
    def delete(self, path: str) -> None:
        if path in self.disk.visible() or path in self.disk.rows:
            self.disk.delete(path)

    @rule(path=st.sampled_from([*FOLDERS, *ROOTS]))
    def delete_folder(self, path: str) -> None:
        if not self.disk.is_hidden(path):
            self.disk.delete_folder(path)

    @rule(path=st.sampled_from([*ROOTS, "lists/pics"]), leave_empty=st.booleans())
    def unplug(self, path: str, leave_empty: bool) -> None:
        if path not in self.disk.hidden and (self.base / path).exists():
            self.disk.hide(path, leave_empty=leave_empty)

    @precondition(lambda self: self.disk.hidden)
    @rule()
    def plug_in(self) -> None:
        for root in sorted(self.disk.hidden):
            self.disk.show(root)

    @rule(path=st.sampled_from(MANIFESTS), rows=ROWS)
    def write_manifest(self, path: str, rows: list[Row]) -> None:
        self.disk.write_rows(path, rows)

    # Runs

    @rule(names=st.lists(st.sampled_from([*ROOTS, *MANIFESTS]), min_size=1, max_size=3, unique=True), end=ENDS)
    def scan(self, names: list[str], end: tuple[str, int] | None) -> None:
        names = [name for name in names if (self.base / name).exists()]
        if not names:
            return
        run = Run(self.known, self.disk, self.folders())
        for name in sorted(names, key=ROOTS.__contains__, reverse=True):
            (run.whole if name in ROOTS else run.manifest)(name)
        self.call(lambda: self.index.add(*self.paths(names)), run.end(), end)

    @precondition(lambda self: self.exists)
    @rule(prune=st.booleans(), retry=st.booleans(), end=ENDS)
    def rescan(self, prune: bool, retry: bool, end: tuple[str, int] | None) -> None:
        run = Run(self.known, self.disk, self.folders(), prune=prune)
        run.everything()
        self.call(lambda: self.index.add(prune=prune, retry=retry), run.end(), end)
        self.waiting = self.waiting and "salvaged-waiting" in self.problems()

    @rule(path=st.sampled_from([*PICTURES, *TEXTS, *FOLDERS[:3]]), end=ENDS)
    def name(self, path: str, end: tuple[str, int] | None) -> None:
        """A file, or a folder in a root: what was taken out comes back."""
        root = next(one for one in (*ROOTS, "lists/pics") if is_below(path, one))
        if (
            not (self.base / path).exists()
            or root not in self.folders()
            or root in ROOTS
            and root not in self.known.roots
        ):
            return
        if any(is_below(path, out) and path != out for out in self.known.out):
            with pytest.raises(mmsearch.UsageError, match="taken out"):
                self.index.add(self.base / path)
            return
        run = Run(self.known, self.disk, self.folders())
        run.known.out.discard(path)
        if path in FOLDERS:
            run.whole(path)
        else:
            run.named([path], root)
        self.call(lambda: self.index.add(self.base / path), run.end(), end)

    @precondition(lambda self: self.exists)
    @rule(path=st.sampled_from([*PICTURES, *TEXTS, *FOLDERS, "notes", *MANIFESTS]))
    def remove(self, path: str) -> None:
        """Takes something out."""
        after = deepcopy(self.known)
        folders = self.folders()
        above = next((folder for folder in folders if is_below(path, folder) and path != folder), None)
        count = 0
        if path in folders or path in after.roots:
            count = after.forget(path)
        elif above is not None:
            count = after.take_out(path)
            after.out.add(path)
        if not count and not os.path.lexists(self.base / path) and not (path in folders or path in self.known.roots):
            with pytest.raises(mmsearch.PathNotFound):
                self.index.remove(self.base / path)
            return
        self.call(lambda: self.assert_equal(self.index.remove(self.base / path), count), after, None)

    @precondition(lambda self: self.exists)
    @rule(ids=st.lists(st.sampled_from("abc"), min_size=1, max_size=2, unique=True))
    def remove_ids(self, ids: list[str]) -> None:
        after = deepcopy(self.known)
        there = [id_ for id_ in ids if after.rows.pop((PROGRAM, id_), None) is not None]
        after.drop_unlisted()
        self.call(lambda: self.assert_equal(self.index.remove(ids=ids), len(there)), after, None)

    def assert_equal(self, one: object, other: object) -> None:
        assert one == other

    # What a program gives

    @rule(rows=GIVEN, end=ENDS)
    def give(self, rows: list[Row], end: tuple[str, int] | None) -> None:
        run = Run(self.known, self.disk, self.folders())
        for row in rows:
            run.row(PROGRAM, row)
        items = [
            mmsearch.Item(
                id=row.id,
                text=list(row.texts),
                image=picture(row.picture) if row.picture in COLOURS else row.picture and self.base / row.picture,
            )
            for row in rows
        ]
        self.call(lambda: self.index.add(iter(items)), run.end(), end)

    @rule(id_=st.sampled_from("abc"), number=st.integers(1, 3), words=st.sampled_from([None, *WORDS[:2]]), end=ENDS)
    def give_vector(self, id_: str, number: int, words: str | None, end: tuple[str, int] | None) -> None:
        name = f"vector {number}"
        modality: Modality = "image" if words is None else "text"
        after = deepcopy(self.known)
        old, said = after.rows.get((PROGRAM, id_)), (self.model, name, words)
        if old is None or old.said != said:
            after.rows[PROGRAM, id_] = Asset((Part(None, modality, name, words),), said=said)
            after.drop_unlisted()
        vectors = given_vector(self.model, name)[None] * np.float32(number)
        self.call(
            lambda: self.index.add_vectors([id_], vectors, modality=modality, texts=[words] if words else None),
            after,
            end,
        )

    # The index itself

    @precondition(lambda self: self.exists)
    @rule()
    def merge(self) -> None:
        self.call(self.index.merge, self.known, None)
        ((unused,),) = self.sql(
            "SELECT COUNT(*) FROM embeddings WHERE embedding_id NOT IN (SELECT embedding_id FROM items)"
            " AND embedding_id NOT IN (SELECT embedding_id FROM salvaged)"
            " AND model_id = (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'model_id')"
        )
        assert unused == 0

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = self.opened()

    @precondition(lambda self: self.exists)
    @rule(model=st.sampled_from(MODELS), drop=st.booleans(), end=ENDS)
    def change_model(self, model: str, drop: bool, end: tuple[str, int] | None) -> None:
        after = deepcopy(self.known)
        lost = self.embed_again(after) if model != self.model else False
        if lost and not drop:
            with pytest.raises(mmsearch.IndexUnusable, match="cannot be embedded again"):
                self.index.reindex(model)
            self.staged = True
            self.checked = False
            return
        run = Run(after, self.disk, self.folders())
        run.everything()
        self.call(lambda: self.index.reindex(model, drop=drop), run.end(), end, model)
        self.staged = self.staged and model == self.model
        if model != self.model:  # where a text had a vector that was given, it has its own now
            self.ids = {id_: said for id_, said in self.ids.items() if not said[1].startswith("vector")}
        self.model = model

    def embed_again(self, known: Known) -> bool:
        """Lets go of pictures that no file shows any more; returns whether one of them was not just changed."""
        found = self.disk.visible()
        shown = {path: found.get(path, BAD) for path, asset in known.files.items() if path in PICTURES and asset.parts}
        staged = {*shown.values()} - {BAD}
        lost = False
        for assets in (known.files, known.rows):
            for key, asset in assets.items():
                pictures = [part for part in asset.parts if part.modality == "image"]
                gone = [part for part in pictures if part.content not in staged]
                lost = lost or (bool(gone) and shown.get(str(key), BAD) == BAD)
                parts = tuple(
                    part._replace(content=part.text or part.content) for part in asset.parts if part not in gone
                )
                assets[key] = replace(asset, parts=parts, said=None if gone else asset.said)  # type: ignore[index]
        return lost

    @precondition(lambda self: self.exists)
    @rule()
    def lose_the_catalog(self) -> None:
        """Then the doctor saves the vectors, and a run finds the files again."""
        self.index.close()
        for file in (self.base / "index").glob("catalog.sqlite*"):
            file.unlink()
        self.index = self.opened()
        if not list((self.base / "index" / "segments").iterdir()):
            with pytest.raises(mmsearch.IndexNotFound):
                self.index.doctor()
            shutil.rmtree(self.base / "index")
            self.index, self.known, self.ids = self.opened(), Known(), {}
            self.staged = self.waiting = False
            return
        assert self.problems() & {"catalog-missing"}
        assert self.index.doctor(repair=True).sound
        roots = {root.path for root in self.index.info().roots if root.whole and root.kind != "rows"}
        self.known = Known(roots={os.path.relpath(root, self.base) for root in roots})
        self.staged = self.staged or "staged-model" in self.problems()
        self.model, self.waiting, self.checked = self.index.info().model, True, False
        # Where a catalog is lost again, ids that left no trace in segments since the last time are given again.
        self.ids = {id_: said for id_, said in self.ids.items() if id_ <= 1_000_000}
        self.scan([*ROOTS, *MANIFESTS], None)

    @precondition(lambda self: self.exists and self.held is None)
    @rule()
    def hold(self) -> None:
        snapshot = LocalStore.open(self.base / "index").snapshot()
        self.held = (snapshot, self.answers(snapshot))

    @precondition(lambda self: self.held is not None)
    @rule()
    def let_go(self) -> None:
        assert self.held is not None
        snapshot, answers = self.held
        assert self.answers(snapshot) == answers
        snapshot.close()
        self.held = None

    def answers(self, snapshot: Snapshot) -> list[Any]:
        query = np.ones((1, snapshot.dim), np.float32)
        spaces: tuple[Modality, ...] = ("image", "text")
        return [list(snapshot.all_items()), *(snapshot.search(space, query, 100) for space in spaces)]

    # What has to be so

    def items(self) -> Counter[tuple[Any, ...]]:
        """As `Known.items`; the content is what the vector says."""
        with self.index._snapshot() as snapshot:
            rows = {
                space: dict(zip(ids.tolist(), snapshot.vectors(space, ids), strict=True))
                for space in ("image", "text")
                for ids in [snapshot.item_ids(space)]
            }
        found: Counter[tuple[Any, ...]] = Counter()
        for item in self.index.items():
            path = None if item.path is None else os.path.relpath(item.path, self.base)
            content = self.content_of(item.modality, rows[item.modality][item.item_id], item.text)
            found[path, item.id, item.fragment, item.modality, item.text, content] += 1
            said = (item.modality, content)
            known = self.ids.setdefault(item.item_id, said)
            assert (item.item_id, known) == (item.item_id, said)  # no other content ever gets its id
        return found

    def content_of(self, modality: Modality, row: NDArray[np.float32], text: str | None) -> str:
        model = self.index.info().model
        names = [*(COLOURS if modality == "image" else [str(text)]), *(f"vector {number}" for number in (1, 2, 3))]
        return next(name for name in names if np.allclose(vector_of(model, modality, name), row, atol=1e-6))

    @invariant()
    def the_index_is_as_the_model_says(self) -> None:
        if self.checked or not self.exists:
            return
        self.checked = True
        expected = self.known.items()
        found = self.items()
        assert (found - expected, expected - found) == (Counter(), Counter())
        assert self.index.info().items == expected.total()
        assert self.index.info().model == self.model
        failed = {failure.path for failure in self.index.failures()}
        assert failed == {str(self.base / path) for path, asset in self.known.files.items() if asset.failed} | {
            f"{source if source == PROGRAM else self.base / source}#id={id_}"
            for (source, id_), asset in self.known.rows.items()
            if asset.failed
        }
        allowed = {
            name for name, may_be in (("staged-model", self.staged), ("salvaged-waiting", self.waiting)) if may_be
        }
        assert self.problems() <= allowed
        contents = {(modality, content) for *_, modality, _, content in expected}
        assert self.sql("SELECT COUNT(DISTINCT embedding_id) FROM items") == [(len(contents),)]
        for modality, content in sorted(contents):
            self.finds(modality, content, expected)

    def finds(self, modality: Modality, content: str, expected: Mapping[tuple[Any, ...], int]) -> None:
        """A search with the content of items has all of them first."""
        count = sum(times for item, times in expected.items() if item[3] == modality and item[5] == content)
        query: dict[str, Any] = {"vector": vector_of(self.model, modality, content)}
        if content in COLOURS:
            query = {"image": picture(content), "include_self": True}
        elif not content.startswith("vector"):
            query = {"query": content}
        hits = self.index.search(**query, k=100, modality=modality)
        assert len(hits) == sum(times for item, times in expected.items() if item[3] == modality)
        assert all(hit.score > 1 - 1e-5 for hit in hits[:count])
        assert all(hit.score < 1 - 1e-4 for hit in hits[count:])


_STEPS: list[Callable[[str], None]] = []


def _step(name: str) -> None:
    for step in _STEPS:
        step(name)


@contextmanager
def every_step_is_told() -> Iterator[None]:
    """Runs commit as often as they can, with the encoders of this file; writers tell their steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmsearch.retrieval.encoders.models.load_encoder", lambda name, **options: spy(name))
        patch.setattr(LocalStore, "open", functools.partial(LocalStore.open, steps=_step))
        for run in (pipeline.index_sources, reindex.reindex):
            patch.setitem(run.__kwdefaults__, "commit_seconds", 0.0)
        patch.setattr(doctor, "repair", functools.partial(doctor.repair, steps=_step))
        yield


@pytest.mark.parametrize("examples", [25, pytest.param(400, marks=pytest.mark.slow)])
def test_any_sequence_of_runs(tmp_path: Path, examples: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    _FOLDER[:] = [tmp_path]
    with every_step_is_told():
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            IndexMachine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=30,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
