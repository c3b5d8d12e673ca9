"""Small indexes for the tests of the store, and a process that can be killed in the middle of writing one.

`python tests/store_kit.py` answers lines of JSON `[scenario, folder, step]` on stdin: it forks a child which kills
itself at that step (by its place in the run; -1: never), and prints how the child ended and the names of its steps.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsearch.retrieval.store import LocalStore, NewItem, Snapshot, Writer, layout
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Modality, Root, Stamp

DIM = 8
PRECISION = {"precision": "fp32", "device": "cpu", "backend": "fake"}
FAKE: dict[str, Any] = {"name": "fake", "identity": "fake-1", "dim": DIM, "max_tokens": None}
OTHER: dict[str, Any] = {"name": "other", "identity": "other-1", "dim": DIM + 2, "max_tokens": 2}
THIRD: dict[str, Any] = {"name": "third", "identity": "third-1", "dim": 3, "max_tokens": None}
"""Models to change between; `OTHER` reads two characters of a text."""
ROWS = Root(Path(layout.ROWS), 0, kind="rows")
TOKENS = "tokens-of-fake"
"""Identity of tokens."""


def key(content: str) -> bytes:
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=32).digest()


def vector(content_key: bytes) -> NDArray[np.float32]:
    """A vector of small whole numbers: products are exact, and ties are common."""
    return np.array([byte % 3 - 1.0 for byte in content_key[:DIM]], np.float32)


def other_vector(content_key: bytes) -> NDArray[np.float32]:
    """The vector of the same content by `OTHER`."""
    return np.array([byte % 5 - 2.0 for byte in content_key[-DIM - 2 :]], np.float32)


def vector_by(identity: str, content_key: bytes) -> NDArray[np.float32]:
    """The vector of a content by a model."""
    if identity == THIRD["identity"]:
        return np.array([byte % 4 - 1.0 for byte in content_key[: THIRD["dim"]]], np.float32)
    return (other_vector if identity == OTHER["identity"] else vector)(content_key)


def queries(count: int, seed: int = 0, dim: int = DIM) -> NDArray[np.float32]:
    return np.random.default_rng(seed).integers(-2, 3, (count, dim)).astype(np.float32)


def make(path: Path, steps: Callable[[str], None] = lambda name: None) -> LocalStore:
    return LocalStore.create(path, model=FAKE["name"], identity=FAKE["identity"], dim=DIM, steps=steps)


def ref(
    root: Path, uri: str, *, modality: Modality = "image", stamp: tuple[int, int] = (1, 1), owner: str | None = None
) -> ItemRef:
    return ItemRef(str(root), uri, str(root / uri), modality, Stamp(*stamp), owner)


def embed(writer: Writer, space: Modality, contents: Sequence[str]) -> None:
    known = writer.find(space, [key(content) for content in contents])
    new = [one for one in dict.fromkeys(map(key, contents)) if one not in known]
    if new:
        identity = writer.models()[writer.model_id].identity
        writer.embed(space, new, np.stack([vector_by(identity, one) for one in new]), **PRECISION)


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


def row_ref(
    root: Root, uri: str, *, picture: tuple[Path, str] | None = None, stamp: tuple[int, int] = (1, 1)
) -> ItemRef:
    """A row of a manifest, or of a program; it may belong to a picture (root, uri)."""
    folder, owner = picture or (None, None)
    return ItemRef(
        str(root.path), uri, str(root.path), "text", Stamp(*stamp), owner, None if folder is None else str(folder)
    )


def add_row(
    writer: Writer,
    root: Root,
    uri: str,
    *texts: str,
    picture: tuple[Path, str] | None = None,
    meta: str | None = None,
    stamp: tuple[int, int] = (1, 1),
) -> None:
    """Adds a row with its text; several texts are pieces of one."""
    writer.root(root)
    embed(writer, "text", texts)
    pieces = [f"char={number}" if len(texts) > 1 else None for number in range(len(texts))]
    writer.add(
        row_ref(root, uri, picture=picture, stamp=stamp),
        content_hash=key("".join(texts)),
        metadata=AssetMetadata(),
        items=[NewItem("text", key(text), piece, text) for piece, text in zip(pieces, texts, strict=True)],
        meta=meta,
    )


def listed_ref(root: Path, uri: str, stamp: tuple[int, int] = (1, 1)) -> ItemRef:
    """A picture that only rows name."""
    return replace(ref(root, uri, stamp=stamp), listed=True)


def add_listed(writer: Writer, root: Path, uri: str, content: str) -> None:
    """Adds a picture that only rows name."""
    writer.root(Root(root, 1))
    embed(writer, "image", [content])
    item = NewItem("image", key(content))
    writer.add(listed_ref(root, uri), content_hash=key(content), metadata=AssetMetadata(), items=[item])


def keep_texts(fragment: str | None, text: str) -> None:
    """What `recut` is to a model that reads texts of any length."""


def recut(fragment: str | None, text: str) -> list[NewItem] | None:
    """Pieces of two characters; a text that is short enough stays."""
    if len(text) <= OTHER["max_tokens"]:
        return None
    pieces = [text[start : start + 2] for start in range(0, len(text), 2)]
    before = "" if fragment is None else f"{fragment}/"
    return [NewItem("text", key(piece), f"{before}{number}", piece) for number, piece in enumerate(pieces)]


def stage(writer: Writer, snapshot: Snapshot, leave: Collection[str] = (), model: Mapping[str, Any] = OTHER) -> int:
    """Embeds what a snapshot has by another model, but some contents; returns the id of that model."""
    model_id = writer.stage(**model)
    cut = recut if model is OTHER else keep_texts
    texts: list[bytes] = []
    for fragment, text in snapshot.texts():
        assert text is not None
        texts += [piece.content_key for piece in cut(fragment, text) or [NewItem("text", key(text))]]
    contents = {"image": [content for content, _, _ in snapshot.pictures()], "text": texts}
    left = set(map(key, leave))
    for space, keys in contents.items():
        known = writer.find(space, keys, model_id)
        new = [one for one in dict.fromkeys(keys) if one not in known and one not in left]
        if new:
            rows = np.stack([vector_by(model["identity"], one) for one in new])
            writer.embed(space, new, rows, model_id=model_id, **PRECISION)
    return model_id


def reindex(store: LocalStore, writer: Writer, leave: Collection[str] = ()) -> int:
    """Changes the model to `OTHER`; returns how many items were lost."""
    with store.snapshot() as snapshot:
        model_id = stage(writer, snapshot, leave)
    writer.commit()
    return writer.switch(model_id, recut)


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


_CURRENT = "(SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'model_id')"
_FLAWS = {
    "a reference to nothing": "PRAGMA foreign_key_check",
    "an item of another model or space": (
        "SELECT item_id FROM items JOIN embeddings USING (embedding_id)"
        f" WHERE model_id <> {_CURRENT} OR space <> items.modality"
    ),
    "an embedding in a segment of another model or space": (
        "SELECT embedding_id FROM embeddings JOIN segments USING (segment_id)"
        " WHERE embeddings.model_id <> segments.model_id OR embeddings.space <> segments.space"
    ),
    "a dead embedding without a tombstone": (
        f"SELECT embedding_id FROM embeddings WHERE model_id = {_CURRENT}"
        " AND embedding_id NOT IN (SELECT embedding_id FROM items)"
        " AND embedding_id NOT IN (SELECT embedding_id FROM salvaged)"
        " AND embedding_id NOT IN (SELECT embedding_id FROM tombstones)"
    ),
    "a tombstone of something alive": (
        "SELECT embedding_id FROM tombstones JOIN embeddings USING (embedding_id)"
        f" WHERE model_id <> {_CURRENT} OR tombstones.segment_id <> embeddings.segment_id"
        " OR embedding_id IN (SELECT embedding_id FROM items)"
        " OR embedding_id IN (SELECT embedding_id FROM salvaged)"
    ),
    "a wrong count": (
        "SELECT modality, COUNT(*) AS n FROM items GROUP BY modality"
        " HAVING n <> (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'items.' || modality)"
    ),
    "a listed picture that nothing names": (
        "SELECT uri FROM assets AS p WHERE listed"
        " AND NOT EXISTS (SELECT 1 FROM assets AS r WHERE r.owner_root_id = p.root_id AND r.owner_uri = p.uri)"
    ),
}


def flaws(store: LocalStore) -> list[str]:
    """What must hold in every generation and does not; reads all of it."""
    found = store.verify()
    connection = sqlite3.connect(store.path / layout.CATALOG)
    try:
        for name, query in _FLAWS.items():
            found += [f"{name}: {row}" for row in connection.execute(query)]
    finally:
        connection.close()
    return found


def sql(store: LocalStore, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    """The rows of a query to the catalog; what it changes is committed."""
    connection = sqlite3.connect(store.path / layout.CATALOG)
    try:
        with connection:
            return connection.execute(query, parameters).fetchall()
    finally:
        connection.close()


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


def enrich(store: LocalStore) -> None:
    """Adds to what `prepare` made all that came with formats 2 and 3."""
    photos = store.path.parent
    captions = Root(photos / "captions.csv", 1, kind="manifest", columns='{"text": "caption"}')
    with store.writer() as writer:
        add(writer, photos, "private/d.jpg", "d")
        add_listed(writer, photos, "named.jpg", "named")
        add_row(writer, captions, "id=a%2Fb~2", "six", picture=(photos, "named.jpg"), meta='{"by": "me"}')
        add_row(writer, ROWS, "id=seven", "seven")
        writer.scanned(captions)
        writer.scanned(Root(photos, 1))
        writer.mounted(Root(photos, 1), ["usb"])
        writer.commit()
        writer.tag({1: {"letter": 0.75}})
        writer.take_out(str(photos), "private")
        model_id = writer.stage(**OTHER)
        row = other_vector(key("a"))[None]
        writer.embed("image", [key("a")], row, model_id=model_id, **PRECISION)
        writer.commit()


def tokens_of(content_key: bytes, identity: str = TOKENS, shape: tuple[int, int] = (2, 3)) -> NDArray[np.int8]:
    """The tokens of a content by some encoder: any numbers of 8 bits."""
    drawn = hashlib.shake_128(identity.encode() + content_key).digest(shape[0] * shape[1])
    return np.frombuffer(drawn, np.int8).reshape(shape)


def add_tokens(writer: Writer, *contents: str, identity: str = TOKENS, model_id: int | None = None) -> None:
    """Gives tokens to pictures that have embeddings."""
    keys = [key(content) for content in contents]
    rows = np.stack([tokens_of(one, identity) for one in keys])
    writer.embed_tokens(keys, rows, identity=identity, model_id=model_id)


def tokens_in(store: LocalStore, identity: str = TOKENS) -> dict[str, list[list[int]] | None]:
    """The tokens of every picture, by uri; None for those without."""
    with store.snapshot() as snapshot:
        ids = snapshot.item_ids("image")
        records = snapshot.items(ids.tolist())
        there, rows = snapshot.tokens(ids, identity)
        return {
            records[id_].uri: row.tolist() if here else None
            for id_, here, row in zip(ids.tolist(), there.tolist(), rows, strict=True)
        }


def named_files(store: LocalStore) -> set[str]:
    """The files of vectors and tokens that the catalog names."""
    return {name for (name,) in sql(store, "SELECT filename FROM segments UNION ALL SELECT filename FROM tokens")}


def enrich_with_tokens(store: LocalStore) -> None:
    """Adds what came with format 4, some of it of an embedding that is gone, and of a model that is changed to."""
    with store.writer() as writer:
        add_tokens(writer, "a", "b", "c")
        writer.commit()
        add_tokens(writer, "named")
        staged = next(id_ for id_ in writer.models() if id_ != writer.model_id)
        add_tokens(writer, "a", identity="other-tokens", model_id=staged)
        writer.commit()


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
        from mmsearch.retrieval.store import migrations

        now = layout.FORMAT_VERSION
        layout.FORMAT_VERSION = now + 2
        migrations.MIGRATIONS = {
            **migrations.MIGRATIONS,
            now + 1: lambda connection: connection.exec_driver_sql("ALTER TABLE items ADD COLUMN one TEXT") and None,
            now + 2: lambda connection: connection.exec_driver_sql("ALTER TABLE items ADD COLUMN two TEXT") and None,
        }
        LocalStore.open(path, steps=steps)
    elif scenario == "reindex":
        store = LocalStore.open(path, steps=steps)
        if store.identity != OTHER["identity"]:
            with store.writer() as writer:
                reindex(store, writer)
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
