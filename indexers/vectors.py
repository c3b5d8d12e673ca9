"""Vectors that a program has already: rows with ids, whose embeddings are taken as they are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmsearch.indexers.roots import Roots
from mmsearch.indexers.rows import id_key, plain_meta
from mmsearch.indexers.rowsources import hashed
from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.store import NewItem
from mmsearch.retrieval.store.layout import ROWS
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Modality, Root, Stamp
from mmsearch.retrieval.uris import path_to_uri

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from mmsearch.retrieval.store import LocalStore, Writer

_ROOT = Root(Path(ROWS), 0, "rows")
_BATCH = 8192
_DOMAIN = b"mmsearch vector"  # blake2b's personalisation: the key of no file and no text


def checked(ids: Sequence[str | int], vectors: ArrayLike, dim: int | None) -> NDArray[np.float32]:
    """Rows of length 1, float32 (n, dim).

    Raises:
        UsageError: not n vectors of that width for n ids, or one that is not finite or all zeros.
    """
    try:
        rows = np.asarray(vectors, np.float32)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the vectors are no array of numbers: {error}") from error
    if rows.ndim != 2 or len(rows) != len(ids) or not rows.shape[1]:
        raise UsageError(f"for {len(ids)} ids the vectors must have the shape ({len(ids)}, dim), not {rows.shape}")
    if dim is not None and rows.shape[1] != dim:
        raise UsageError(f"the vectors have {rows.shape[1]} numbers each and those of the index {dim}")
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0.0))
    if bad.size:
        raise UsageError(f"the vector of id {ids[bad[0]]!r} is all zeros or not finite ({bad.size} such vectors)")
    return np.asarray(rows / lengths[:, None], np.float32)


def add_vectors(
    store: LocalStore,
    ids: Sequence[str | int],
    rows: NDArray[np.float32],
    *,
    modality: Modality,
    texts: Sequence[str | None] | None = None,
    images: Sequence[str | Path | None] | None = None,
    meta: Sequence[Mapping[str, object] | None] | None = None,
) -> tuple[int, int, int]:
    """Adds rows with given embeddings, or replaces those of the same ids; returns (added, updated, unchanged).

    Commits as it goes: after an error everything before the batch at hand is there.

    Args:
        store: an existing index.
        ids: n different ids.
        rows: float32 (n, dim), as `checked` gives them.
        modality: the space that they belong to.
        texts: what each vector is of, or is found as.
        images: path of the picture that each is of; shown with hits, never opened.
        meta: fields of each.

    Raises:
        UsageError: ids that repeat or cannot be used; lists of other lengths than `ids`.
    """
    for name, values in (("texts", texts), ("images", images), ("meta", meta)):
        if values is not None and len(values) != len(ids):
            raise UsageError(f"{name} must have one entry for each of the {len(ids)} ids, not {len(values)}")
    given = [
        _Given(
            id_key(id_),
            None if texts is None else texts[at],
            None if images is None else images[at],
            plain_meta(None if meta is None else meta[at]),
        )
        for at, id_ in enumerate(ids)
    ]
    repeated = len(given) - len({one.key for one in given})
    if repeated:
        raise UsageError(f"{repeated} of the {len(ids)} ids are given twice")
    roots = [root for root in store.info().roots if root.kind == "folder"]
    places = Roots([root.path for root in roots if root.whole], [root.path for root in roots if not root.whole])
    places.adopt({os.path.dirname(_absolute(one.image)) for one in given if one.image is not None})
    counts = [0, 0, 0]
    with store.writer() as writer:
        writer.root(_ROOT)
        for start in range(0, len(given), _BATCH):
            batch = slice(start, start + _BATCH)
            _add_batch(store, writer, places, given[batch], rows[batch], modality, counts)
        writer.merge()
    return counts[0], counts[1], counts[2]


class _Given(NamedTuple):
    key: str
    text: str | None
    image: str | Path | None
    meta: str | None


def _add_batch(
    store: LocalStore,
    writer: Writer,
    places: Roots,
    given: Sequence[_Given],
    rows: NDArray[np.float32],
    modality: Modality,
    counts: list[int],
) -> None:
    keys = [_hash(row.tobytes()) for row in rows]
    said = {one.key: (one, key) for one, key in zip(given, keys, strict=True)}
    diff = store.diff(_ROOT, [_ref(one, key, modality, places) for one, key in said.values()], partial=True)
    todo = [*diff.new, *diff.changed, *diff.failed]
    wanted = {said[ref.uri][1] for ref in todo}
    at = [number for number, key in enumerate(keys) if key in wanted]
    if at:
        writer.embed(modality, [keys[number] for number in at], rows[at], precision="given", device="-", backend="-")
    for ref in todo:
        one, key = said[ref.uri]
        if ref.owner_root is not None:
            writer.root(Root(Path(ref.owner_root), _device(ref.owner_root)))
        item = NewItem(modality, key, text=one.text)
        digest = _hash(json.dumps([one.key, one.text, str(one.image), one.meta]).encode(), key)
        writer.add(ref, content_hash=digest, metadata=AssetMetadata(), items=[item], meta=one.meta)
    writer.commit()
    counts[0] += len(diff.new)
    counts[1] += len(todo) - len(diff.new)
    counts[2] += diff.unchanged


def _ref(one: _Given, key: bytes, modality: Modality, places: Roots) -> ItemRef:
    owner_root = owner = None
    if one.image is not None:
        folder, name = os.path.split(_absolute(one.image))
        owner_root, start = places.of(folder, whole=False)
        owner = path_to_uri(f"{start}/{name}" if start else name)
    said = json.dumps([one.text, owner_root, owner, one.meta]).encode()
    stamp = Stamp(len(said), hashed(said + key))
    return ItemRef(ROWS, one.key, f"{ROWS}#{one.key}", modality, stamp, owner, owner_root)


def _absolute(image: str | Path) -> str:
    return os.path.abspath(os.path.expanduser(image))


def _device(folder: str) -> int:
    try:
        return os.stat(folder).st_dev
    except OSError:
        return 0


def _hash(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=32, person=_DOMAIN).digest()
