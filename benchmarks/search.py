"""What search and what belongs to it cost, encoding excluded: near-duplicates so far.

    python benchmarks/search.py --data ../shared/data --out benchmarks/results/search.json
    python benchmarks/search.py --only dupes-seconds dupes-recall --items 20000

The pictures of `dupes-photos` are edited photos of the validation set of Flickr8k; all others are synthetic.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from contest import HERE, Figure, child, first_line, python, write_result, write_table
from machine import describe
from variants import KINDS, edited_album

from mmsearch.retrieval.store import LocalStore, NewItem
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Root, Stamp

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT_ITEMS = 20_000
"""Of how many items all pairs are compared, to see what is missed."""
PLANTED = {"hash": ((0, 8), 0.80), "both": ((10, 12), 0.95), "embedding": ((26, 38), 0.9905)}
"""Kinds of planted near-duplicates: bits in which the hashes differ, and the smallest cosine."""

_FILL = 10_000
_TOPICS = 2000


class Planted:
    """Synthetic pictures: every tenth is a near-duplicate of the one before it.

    Embeddings share a direction, as those of dual encoders do, and lie around topics; hashes are random.

    Attributes:
        rows: float32 (n, dim), of length one.
        hashes: int64 (n).
        kinds: of each near-duplicate, by its number (0 is the first picture).
    """

    def __init__(self, items: int, dim: int) -> None:
        chance = np.random.default_rng(3)
        common = np.sqrt(0.46) * _directions(chance, 1, dim)
        topics = np.sqrt(0.30) * _directions(chance, _TOPICS, dim)
        self.rows = common + topics[chance.integers(0, _TOPICS, items)]
        self.rows += np.sqrt(0.24) * _directions(chance, items, dim)
        self.rows /= np.linalg.norm(self.rows, axis=1, keepdims=True)
        self.hashes = chance.integers(-(2**63), 2**63, items, np.int64)
        self.kinds: dict[int, str] = {}
        names = list(PLANTED)
        for number in range(9, items, 10):
            kind = names[number // 10 % len(names)]
            (fewest, most), least = PLANTED[kind]
            bits = chance.choice(64, chance.integers(fewest, most + 1), replace=False).tolist()
            flips = sum(1 << bit for bit in bits)
            original = self.rows[number - 1]
            away = _directions(chance, 1, dim)[0]
            away -= (away @ original) * original
            cosine = chance.uniform(least, 1.0)
            self.rows[number] = cosine * original + np.sqrt(1 - cosine**2) * away / np.linalg.norm(away)
            self.hashes[number] = self.hashes[number - 1] ^ np.uint64(flips).astype(np.int64)
            self.kinds[number] = kind

    def fill(self, path: Path) -> None:
        """Makes an index of the pictures; item ids begin with 1. They have no files."""
        store = LocalStore.create(path, model="synthetic", identity="synthetic", dim=self.rows.shape[1])
        root = Root(Path("rows:"), 0, kind="rows")
        with store.writer() as writer:
            for first in range(0, len(self.rows), _FILL):
                numbers = range(first, min(first + _FILL, len(self.rows)))
                keys = [number.to_bytes(32, "big") for number in numbers]
                writer.root(root)
                for number, key in zip(numbers, keys, strict=True):
                    ref = ItemRef("rows:", f"id={number}", "rows:", "image", Stamp(3_000_000, number))
                    facts = AssetMetadata(4032, 3024, phash=int(self.hashes[number]))
                    writer.add(ref, content_hash=key, metadata=facts, items=[NewItem("image", key)])
                rows = self.rows[numbers.start : numbers.stop]
                writer.embed("image", keys, rows, precision="float32", device="cpu", backend="synthetic")
                writer.commit()
            writer.merge(all_segments=True)


class Workshop:
    """What measurements share: settings, indexes of planted pictures and what was found in them."""

    def __init__(self, folder: Path, *, data: Path | None, items: int, dim: int, photos: int) -> None:
        self.folder = folder
        self.data = data
        self.items = items
        self.dim = dim
        self.photos = photos

    @cached_property
    def planted(self) -> tuple[Planted, dict[str, Any]]:
        """All the items, and what `dupes_once.py` says of them."""
        pictures = Planted(self.items, self.dim)
        pictures.fill(self.folder / "planted")
        return pictures, dupes_once(self.folder / "planted")


def _directions(chance: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    rows = chance.standard_normal((count, dim), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def dupes_once(index: Path, *exact_rows: int) -> dict[str, Any]:
    """What a process of its own finds; see `dupes_once.py`."""
    found: dict[str, Any] = json.loads(child(python(HERE / "dupes_once.py", index, *map(str, exact_rows))).stdout)
    return found


def ties(groups: list[list[int]]) -> set[tuple[int, int]]:
    """Pairs of the kept item and one of its near-duplicates."""
    return {(keep, other) for keep, *others in groups for other in others}


# The measurements. Each takes the workshop and returns its figure; the first line says what it is.


def dupes_seconds(shop: Workshop) -> Figure:
    """Near-duplicates of the whole index, a process that has it open: seconds."""
    _, found = shop.planted
    notes = {"items": shop.items, "groups": len(found["groups"])}
    return Figure("dupes-seconds", first_line(dupes_seconds), found["seconds"], "<=", 120.0, notes=notes)


def dupes_memory(shop: Workshop) -> Figure:
    """The same: GB of peak memory beyond that of the process with all vectors mapped."""
    _, found = shop.planted
    return Figure("dupes-memory", first_line(dupes_memory), found["peak_bytes"] / 1e9, "<=", 1.0)


def dupes_recall(shop: Workshop) -> Figure:
    """The same: share of the planted near-duplicates that are found (the kind that is found least)."""
    pictures, found = shop.planted
    tied = ties(found["groups"])
    counts = {kind: [0, 0] for kind in PLANTED}
    for number, kind in pictures.kinds.items():
        counts[kind][0] += (number, number + 1) in tied
        counts[kind][1] += 1
    shares = {kind: hits / total for kind, (hits, total) in counts.items() if total}
    wrong = len(tied) - sum(hits for hits, _ in counts.values())
    notes = {**{kind: round(share, 5) for kind, share in shares.items()}, "not planted": wrong}
    return Figure("dupes-recall", first_line(dupes_recall), min(shares.values()), ">=", 0.99, notes=notes)


def dupes_exact(shop: Workshop) -> Figure:
    """20,000 items: share of the near-duplicates of comparing all with all that buckets find too."""
    count = min(EXACT_ITEMS, shop.items)
    Planted(count, shop.dim).fill(shop.folder / "few")
    buckets, everything = (dupes_once(shop.folder / "few", rows) for rows in (0, count))
    tied, exact = ties(buckets["groups"]), ties(everything["groups"])
    notes = {
        "items": count,
        "pairs": len(exact),
        "seconds": {"buckets": round(buckets["seconds"], 2), "all with all": round(everything["seconds"], 2)},
    }
    return Figure("dupes-exact", first_line(dupes_exact), len(tied & exact) / len(exact), ">=", 0.99, notes=notes)


def dupes_photos(shop: Workshop) -> Figure:
    """Edited photos of Flickr8k's validation set: share that counts as near-duplicate of its photo, light edits."""
    if shop.data is None:
        raise SystemExit("dupes-photos wants --data")
    album = edited_album(shop.data / "flickr8k", "val", shop.photos)
    rule = album.rule()
    near = album.near_their_photo(rule)
    light = np.isin(album.kinds, [kind for kind, edit in KINDS.items() if edit.light])
    notes: dict[str, Any] = {
        "cosines at 8, 12, 18 bits and any": [round(float(rule.cosines[bits]), 3) for bits in (8, 12, 18, 64)],
        "share by edit": {kind: round(float(near[album.kinds == kind].mean()), 3) for kind in KINDS},
    }
    for what, edits in (("photos", False), ("photos and edits", True)):
        wrong, pairs = album.mistaken(rule, edits=edits)
        notes[f"mistaken pairs of different {what}"] = f"{wrong} of {pairs:,}"
    return Figure("dupes-photos", first_line(dupes_photos), float(near[light].mean()), ">=", 0.95, notes=notes)


MEASUREMENTS: dict[str, Callable[[Workshop], Figure]] = {
    "dupes-seconds": dupes_seconds,
    "dupes-memory": dupes_memory,
    "dupes-recall": dupes_recall,
    "dupes-exact": dupes_exact,
    "dupes-photos": dupes_photos,
}


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the table, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="data sets, for the measurements on photos")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here, as JSON")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--items", type=int, default=200_000, help="synthetic pictures (%(default)s)")
    parser.add_argument("--dim", type=int, default=512, help="of their vectors (%(default)s)")
    parser.add_argument("--photos", type=int, default=300, help="how many photos are edited (%(default)s)")
    arguments = parser.parse_args(argv)
    if min(arguments.items, arguments.dim, arguments.photos) < 1:
        parser.error("--items, --dim and --photos want 1 or more")
    chosen = arguments.only or [name for name in MEASUREMENTS if arguments.data or name != "dupes-photos"]
    where_it_ran = describe()
    figures = []
    with tempfile.TemporaryDirectory(prefix="mmsearch-search-") as folder:
        shop = Workshop(
            Path(folder), data=arguments.data, items=arguments.items, dim=arguments.dim, photos=arguments.photos
        )
        for name, measurement in MEASUREMENTS.items():
            if name in chosen:
                print(f"{name} ...", file=sys.stderr, flush=True)
                figures.append(measurement(shop))
                print(f"{name}: {figures[-1].value:.3g}", file=sys.stderr, flush=True)
    write_table(figures)
    if arguments.out:
        command = ["benchmarks/search.py", *(argv if argv is not None else sys.argv[1:])]
        about = {"items": arguments.items, "dim": arguments.dim, "photos": arguments.photos}
        write_result(arguments.out, "search", command, where_it_ran, about, figures)


if __name__ == "__main__":
    main()
