"""What the store writes, and how fast it answers, opens and verifies: ratios, with vectors that no encoder made.

    python benchmarks/store.py --out benchmarks/results/store.json
    python benchmarks/store.py --only open add-catalog --items 20000

Bytes and steps are counted, so those figures are the same on every machine. What is timed takes turns with what it
is compared with, in an order that reverses every round.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np
from contest import HERE, Figure, alternate, child, first_line, python, ratio, write_result, write_table
from machine import describe
from search_once import queries

from mmsearch.retrieval.store import LocalStore, NewItem, Snapshot, layout
from mmsearch.retrieval.store.doctor import examine
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Root, Stamp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.store.writer import Writer

ADDED = 100
"""How many items a small commit adds."""
COMMITS_PER_MERGE = 16
K = 10
QUERIES = 50

_FILL = 10_000
_BLOCK = 2**20
_LOG_HEADER, _FRAME_HEADER = 32, 24  # https://www.sqlite.org/fileformat.html#the_write_ahead_log


class Written(NamedTuple):
    """Bytes that a commit or a merge wrote: segments, the catalog's log, the pages to be copied from that."""

    segments: int
    log: int
    checkpoint: int

    @property
    def catalog(self) -> int:
        """Both times that the catalog's pages are written."""
        return self.log + self.checkpoint


class Workshop:
    """What measurements share: settings, and indexes of synthetic pictures.

    Args:
        folder: scratch; must be on a local disk.
        items: how many pictures a large index has; a small one has a hundredth.
        dim: of the vectors.
        rounds: how often each contender has its turn, and each small commit is made.
    """

    def __init__(self, folder: Path, *, items: int, dim: int, rounds: int) -> None:
        self.folder = folder
        self.items = items
        self.few = max(1, items // 100)
        self.dim = dim
        self.rounds = rounds
        self.root = Root(folder / "photos", 0)

    @cached_property
    def large(self) -> Path:
        """An index of all the items, in one segment."""
        return self._filled("large", self.items)

    @cached_property
    def small(self) -> Path:
        """An index of a hundredth of them, in one segment."""
        return self._filled("small", self.few)

    @cached_property
    def grown(self) -> tuple[Path, list[Written]]:
        """An index of all the items that came by a hundred, and what each merge wrote."""
        path = self._new("grown")
        merges = []
        with LocalStore.open(path).writer() as writer:
            for number in range(max(1, self.items // ADDED)):
                self._commit(writer, number * ADDED)
                if (number + 1) % COMMITS_PER_MERGE == 0:
                    merges.append(written(path, writer.merge))
            merges.append(written(path, writer.merge))
        return path, merges

    @cached_property
    def additions(self) -> dict[int, list[Written]]:
        """By the size of the index, what commits of a hundred items wrote, one after the other."""
        found: dict[int, list[Written]] = {}
        for index, size in ((self.small, self.few), (self.large, self.items)):
            copy = self.folder / f"added-{size}"
            shutil.copytree(index, copy)
            with LocalStore.open(copy).writer() as writer:
                found[size] = []
                for number in range(self.rounds):
                    found[size].append(written(copy, partial(self._commit, writer, size + number * ADDED)))
            shutil.rmtree(copy)
        return found

    def add(self, writer: Writer, first: int, count: int) -> None:
        """Adds pictures to the transaction. Their uris lie all over the root, as their content keys do."""
        writer.root(self.root)
        keys = [
            hashlib.blake2b(number.to_bytes(8, "big"), digest_size=32).digest()
            for number in range(first, first + count)
        ]
        metadata = AssetMetadata(4032, 3024, "2023-07-14T18:25:43", "Camera Maker Model X", 1, None, None, first)
        for key in keys:
            uri = f"{key[:1].hex()}/{key[1:2].hex()}/IMG_{key[2:6].hex()}.jpg"
            ref = ItemRef(str(self.root.path), uri, f"{self.root.path}/{uri}", "image", Stamp(3_000_000, first))
            writer.add(ref, content_hash=key, metadata=metadata, items=[NewItem("image", key)])
        rows = unit_rows(first, count, self.dim)
        writer.embed("image", keys, rows, precision="float32", device="cpu", backend="synthetic")

    def _commit(self, writer: Writer, first: int) -> None:
        self.add(writer, first, ADDED)
        writer.commit()

    def _new(self, name: str) -> Path:
        path = self.folder / name
        LocalStore.create(path, model="synthetic", identity="synthetic", dim=self.dim)
        return path

    def _filled(self, name: str, items: int) -> Path:
        path = self._new(name)
        with LocalStore.open(path).writer() as writer:
            for first in range(0, items, _FILL):
                self.add(writer, first, min(_FILL, items - first))
                writer.commit()
            writer.merge(all_segments=True)
        return path


def unit_rows(first: int, count: int, dim: int) -> NDArray[np.float32]:
    """Vectors of length one, the same every time."""
    rows = np.random.default_rng((0, first)).standard_normal((count, dim), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


# Counting what is written


def written(index: Path, step: Callable[[], object]) -> Written:
    """Runs what ends with one commit, of an open writer that has begun nothing, and counts the bytes."""
    log = index / f"{layout.CATALOG}-wal"
    empty_log(index / layout.CATALOG)
    before = set(os.listdir(index / layout.SEGMENTS))
    step()
    new = set(os.listdir(index / layout.SEGMENTS)) - before
    segments = sum((index / layout.SEGMENTS / name).stat().st_size for name in new)
    return Written(segments, *log_bytes(log.read_bytes()))


def empty_log(catalog: Path) -> None:
    """Has SQLite copy its log into the catalog and cut it to nothing."""
    connection = sqlite3.connect(catalog)
    try:
        if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise SystemExit("somebody reads the catalog; its log cannot be emptied")
    finally:
        connection.close()


def log_bytes(log: bytes) -> tuple[int, int]:
    """Size of SQLite's log, and of the pages that it has at least once."""
    if not log:
        return 0, 0
    (page,) = struct.unpack_from(">I", log, 8)
    numbers = {struct.unpack_from(">I", log, at) for at in range(_LOG_HEADER, len(log), _FRAME_HEADER + page)}
    return len(log), len(numbers) * page


class CountedConnection(sqlite3.Connection):
    """Counts the steps of SQLite's virtual machine at which it can be interrupted: every turn of a loop."""

    steps = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.set_progress_handler(self._step, 1)

    @classmethod
    def _step(cls) -> int:
        CountedConnection.steps += 1
        return 0


# The measurements. Each takes the workshop and returns its figure; the first line says what it is.


def add_segment(shop: Workshop) -> Figure:
    """Adding 100 items to the large index: bytes of the new segment files / bytes of the new vectors."""
    vectors = ADDED * shop.dim * 4
    values = [one.segments / vectors for one in shop.additions[shop.items]]
    notes = {"items": shop.items, "bytes of vectors": vectors}
    return Figure("add-segment", first_line(add_segment), max(values), "<=", 1.1, notes=notes)


def add_catalog(shop: Workshop) -> Figure:
    """Adding 100 items: bytes written to the catalog for each, log and checkpoint, uris all over the root."""
    totals = {size: statistics.median(one.catalog / ADDED for one in each) for size, each in shop.additions.items()}
    notes = {
        f"bytes an item, {size:,} items": {
            "each commit": [round(one.catalog / ADDED) for one in each],
            "log": round(statistics.median(one.log / ADDED for one in each)),
            "checkpoint": round(statistics.median(one.checkpoint / ADDED for one in each)),
        }
        for size, each in shop.additions.items()
    }
    what = f"{first_line(add_catalog)} (the worse of two sizes)"
    return Figure("add-catalog", what, max(totals.values()), "<=", 12_000, notes=notes)


def merge_bytes(shop: Workshop) -> Figure:
    """Adds of 100, each a commit, a merge after every 16: bytes written by merges / bytes of all vectors."""
    index, merges = shop.grown
    vectors = max(1, shop.items // ADDED) * ADDED * shop.dim * 4
    segments, catalog = sum(one.segments for one in merges), sum(one.catalog for one in merges)
    notes = {
        "adds": max(1, shop.items // ADDED),
        "merges": len(merges),
        "segments": round(segments / vectors, 2),
        "catalog, log and checkpoint": round(catalog / vectors, 2),
        "segment files left": len(list((index / layout.SEGMENTS).iterdir())),
    }
    return Figure("merge-bytes", first_line(merge_bytes), (segments + catalog) / vectors, "<=", 3.0, notes=notes)


def search(shop: Workshop) -> Figure:
    """Exact search, one query, k=10: Snapshot.search / a bare FAISS IndexFlatIP of the same rows in memory."""
    told: dict[str, dict[str, Any]] = {}
    grown, _ = shop.grown

    def once(name: str, how: str, index: Path, without: tuple[str, ...] = ()) -> float:
        command = python(HERE / "search_once.py", how, index, str(K), str(QUERIES))
        told[name] = json.loads(child(command, without=without).stdout)
        return float(told[name]["seconds"])

    contenders = {
        "Snapshot.search": partial(once, "Snapshot.search", "snapshot", shop.large),
        "IndexFlatIP": partial(once, "IndexFlatIP", "faiss", shop.large),
        "many segments": partial(once, "many segments", "snapshot", grown),
    }
    slowed = "OPENBLAS_CORETYPE"
    if slowed in os.environ:
        name = f"Snapshot.search without {slowed}"
        contenders[name] = partial(once, name, "snapshot", shop.large, (slowed,))
    seconds = alternate(shop.rounds, contenders)
    if told["Snapshot.search"]["found"] != told["IndexFlatIP"]["found"]:
        raise SystemExit("the store and FAISS find different items")
    ratios = {name: ratio(each, seconds["IndexFlatIP"]) for name, each in seconds.items()}
    notes = {
        "queries": QUERIES,
        "ratios": {name: round(value, 2) for name, value in ratios.items()},
        "segments of many": len(list((grown / layout.SEGMENTS).iterdir())),
        "kernels": {name: each["kernels"] for name, each in told.items()},
    }
    return Figure("search", first_line(search), ratios["Snapshot.search"], "<=", 1.3, seconds, notes)


def open(shop: Workshop) -> Figure:
    """Opening an index and answering the first query: steps of SQLite with the large index / with the small one."""
    query = queries(1, shop.dim)
    notes: dict[str, Any] = {}
    steps: dict[str, int] = {}
    for name, index in (("large", shop.large), ("small", shop.small), ("many segments", shop.grown[0])):
        CountedConnection.steps = 0
        with mock.patch.object(sqlite3, "connect", partial(sqlite3.connect, factory=CountedConnection)):
            first_answer(index, query)
        steps[name] = CountedConnection.steps
        timed = [first_answer(index, query) for _ in range(shop.rounds)]
        opening, answering = (statistics.median(column) for column in zip(*timed, strict=True))
        notes[name] = {"steps": steps[name], "opening s": round(opening, 4), "answering s": round(answering, 4)}
    return Figure("open", first_line(open), steps["large"] / steps["small"], "<=", 1.5, notes=notes)


def first_answer(index: Path, query: NDArray[np.float32]) -> tuple[float, float]:
    """Seconds that opening takes, and then the first answer."""
    start = time.perf_counter()
    with Snapshot.open(index) as snapshot:
        opened = time.perf_counter()
        snapshot.items([one.item_id for one in snapshot.search("image", query, K)[0]])
        return opened - start, time.perf_counter() - opened


def doctor(shop: Workshop) -> Figure:
    """Examining every byte of the large index / reading the same bytes and their blake2b."""
    files = [shop.large / layout.CATALOG, *(shop.large / layout.SEGMENTS).iterdir()]

    def examined() -> float:
        start = time.perf_counter()
        diagnosis = examine(shop.large)
        seconds = time.perf_counter() - start
        if diagnosis.problems or diagnosis.items != shop.items:
            raise SystemExit(f"not a sound index: {diagnosis}")
        return seconds

    seconds = alternate(shop.rounds, {"doctor": examined, "blake2b": partial(read_all, files)})
    notes = {"bytes": {path.name: path.stat().st_size for path in files}}
    return Figure("doctor", first_line(doctor), ratio(seconds["doctor"], seconds["blake2b"]), "<=", 2.0, seconds, notes)


def read_all(files: list[Path]) -> float:
    """Seconds to read files and checksum them, a block at a time."""
    start = time.perf_counter()
    block = memoryview(bytearray(_BLOCK))
    for path in files:
        digest = hashlib.blake2b(digest_size=32)
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(block):
                digest.update(block[:size])
        digest.digest()
    return time.perf_counter() - start


MEASUREMENTS: dict[str, Callable[[Workshop], Figure]] = {
    "add-segment": add_segment,
    "add-catalog": add_catalog,
    "open": open,
    "doctor": doctor,
    "merge-bytes": merge_bytes,
    "search": search,
}


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the table, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here, as JSON")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--items", type=int, default=200_000, help="pictures of a large index (%(default)s)")
    parser.add_argument("--dim", type=int, default=512, help="of the vectors (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (%(default)s)")
    arguments = parser.parse_args(argv)
    if min(arguments.items, arguments.dim, arguments.rounds) < 1:
        parser.error("--items, --dim and --rounds want 1 or more")
    chosen = arguments.only or list(MEASUREMENTS)
    where_it_ran = describe()
    figures = []
    with tempfile.TemporaryDirectory(prefix="mmsearch-store-") as folder:
        shop = Workshop(Path(folder), items=arguments.items, dim=arguments.dim, rounds=arguments.rounds)
        for name, measure in MEASUREMENTS.items():
            if name in chosen:
                print(f"{name} ...", file=sys.stderr, flush=True)
                figures.append(measure(shop))
                print(f"{name}: {figures[-1].value:.3g}", file=sys.stderr, flush=True)
    write_table(figures)
    if arguments.out:
        command = ["benchmarks/store.py", *(argv if argv is not None else sys.argv[1:])]
        about = {
            "items": arguments.items,
            "dim": arguments.dim,
            "rounds": arguments.rounds,
            "sqlite": sqlite3.sqlite_version,
        }
        write_result(arguments.out, "store", command, where_it_ran, about, figures)


if __name__ == "__main__":
    main()
