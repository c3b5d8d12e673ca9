"""What an index should hold after any run over real files: a model of dicts, for `test_pipeline_model.py`.

It says what a run does to the index in the words of its documentation: what is found is there, what a completed scan
has not found is gone unless its drive may be away, what was taken out stays out until it is named.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmsearch.indexers.chunks import chunk_chars, chunk_text
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.media import load_image
from mmsearch.retrieval.types import Modality

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
COLOURS = ("red", "green", "blue", "yellow")
WORDS = ("Roses are red.", "A green bird.", " ".join(f"Sentence {number} of a long story." for number in range(9)))
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
