"""Small indexes for the tests of the store, and a process that can be killed in the middle of writing one.

`python tests/store_kit.py` answers lines of JSON `[scenario, folder, step]` on stdin: it forks a child which kills
itself at that step (by its place in the run; -1: never), and prints how the child ended and the names of its steps.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmsearch.retrieval.store import LocalStore, NewItem, Snapshot, Writer
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Modality, Root, Stamp

DIM = 8
PRECISION = {"precision": "fp32", "device": "cpu", "backend": "fake"}


def key(content: str) -> bytes:
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=32).digest()


def vector(content_key: bytes) -> NDArray[np.float32]:
    """A vector of small whole numbers: products are exact, and ties are common."""
    return np.array([byte % 3 - 1.0 for byte in content_key[:DIM]], np.float32)


def queries(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).integers(-2, 3, (count, DIM)).astype(np.float32)


def make(path: Path, steps: Callable[[str], None] = lambda name: None) -> LocalStore:
    return LocalStore.create(path, model="fake", identity="fake-1", dim=DIM, steps=steps)


def ref(
    root: Path, uri: str, *, modality: Modality = "image", stamp: tuple[int, int] = (1, 1), owner: str | None = None
) -> ItemRef:
    return ItemRef(str(root), uri, str(root / uri), modality, Stamp(*stamp), owner)


def embed(writer: Writer, space: Modality, contents: Sequence[str]) -> None:
    known = writer.find(space, [key(content) for content in contents])
    new = [one for one in dict.fromkeys(map(key, contents)) if one not in known]
    if new:
        rows = np.stack([vector(one) for one in new])
        writer.embed(space, new, rows, **PRECISION)


def add(
    writer: Writer,
    root: Path,
    uri: str,
    *contents: str,
    modality: Modality = "image",
    fragments: Sequence[str] = (),
    stamp: tuple[int, int] = (1, 1),
) -> None:
    """Adds a file: a picture of that content, or a text with these chunks."""
    writer.root(Root(root, 1))
    embed(writer, modality, contents)
    items = [
        NewItem(
            modality,
            key(content),
            fragments[number] if fragments else None,
            content if modality == "text" else None,
        )
        for number, content in enumerate(contents)
    ]
    writer.add(
        ref(root, uri, modality=modality, stamp=stamp),
        content_hash=key("".join(contents)),
        metadata=AssetMetadata(width=4, height=3),
        items=items,
    )


def brute_force(
    snapshot: Snapshot, space: Modality, vectors: dict[int, NDArray[np.float32]], query: NDArray[np.float32], k: int
) -> list[tuple[int, float]]:
    """The k best of item ids to vectors, the slow and obvious way."""
    scores = [(-float(np.dot(query.astype(float), row.astype(float))), id_) for id_, row in vectors.items()]
    return [(id_, -score) for score, id_ in sorted(scores)[:k]]


def content_of(store: LocalStore) -> dict[str, list[tuple[str | None, str, list[float]]]]:
    """All that readers can see, by uri: fragment, modality and vector of each item."""
    found: dict[str, list[tuple[str | None, str, list[float]]]] = {}
    with store.snapshot() as snapshot:
        for space in snapshot.counts:
            ids = snapshot.item_ids(space)
            rows = snapshot.vectors(space, ids)
            records = snapshot.items(ids.tolist())
            for id_, row in zip(ids.tolist(), rows, strict=True):
                record = records[id_]
                found.setdefault(record.uri, []).append((record.fragment, record.modality, row.tolist()))
    return found


def found(store: LocalStore, content: str, k: int = 10, space: Modality = "image") -> list[tuple[str, float]]:
    """Uris and scores of a search for that content."""
    with store.snapshot() as snapshot:
        candidates = snapshot.search(space, vector(key(content))[None], k)[0]
        records = snapshot.items([candidate.item_id for candidate in candidates])
        return [(records[candidate.item_id].uri, candidate.score) for candidate in candidates]


def segment_files(store: LocalStore) -> set[str]:
    return set(os.listdir(store.path / "segments"))


def prepare(path: Path) -> LocalStore:
    """An index with several segments, a shared embedding and a tombstone."""
    store = make(path)
    root = path.parent
    with store.writer() as writer:
        add(writer, root, "a.jpg", "a")
        add(writer, root, "b.jpg", "b")
        writer.commit()
        add(writer, root, "c.jpg", "c")
        add(writer, root, "a-again.jpg", "a")
        add(writer, root, "notes.txt", "one", "two", modality="text")
        writer.commit()
        writer.remove(str(root), ["b.jpg"])
        writer.commit()
    return store


def change(writer: Writer, root: Path) -> None:
    """Every kind of change at once."""
    add(writer, root, "a.jpg", "new a", stamp=(2, 2))
    add(writer, root, "d.jpg", "d")
    add(writer, root, "d.txt", "three", modality="text")
    writer.move(str(root), "c.jpg", ref(root, "moved.jpg"))
    writer.remove(str(root), ["notes.txt"])
    writer.fail(ref(root, "bad.jpg"), "cannot be read")
    writer.commit()


def run_scenario(scenario: str, path: Path, steps: Callable[[str], None]) -> None:
    if scenario == "create":
        make(path, steps)
    elif scenario == "migrate":
        from mmsearch.retrieval.store import layout, migrations

        layout.FORMAT_VERSION = 3
        migrations.MIGRATIONS = {
            2: lambda connection: connection.exec_driver_sql("ALTER TABLE items ADD COLUMN two TEXT") and None,
            3: lambda connection: connection.exec_driver_sql("ALTER TABLE items ADD COLUMN three TEXT") and None,
        }
        LocalStore.open(path, steps=steps)
    else:
        with LocalStore.open(path, steps=steps).writer() as writer:
            if scenario == "commit":
                change(writer, path.parent)
            else:
                writer.merge()


def _child(scenario: str, path: Path, fatal: int, pipe: int) -> None:
    count = 0

    def step(name: str) -> None:
        nonlocal count
        os.write(pipe, f"{name}\n".encode())
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    run_scenario(scenario, path, step)


def _serve() -> None:
    for line in sys.stdin:
        scenario, folder, fatal = json.loads(line)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(reading)
                _child(scenario, Path(folder), fatal, writing)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with open(reading) as names:
            steps = names.read().split()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(json.dumps([code, steps]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    import mmsearch.retrieval.store.migrations
    import mmsearch.retrieval.store.writer  # noqa: F401  (before the forks)

    _serve()
