"""A set of captioned pictures as vectors: each picture is decoded as indexing does it, and embedded once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.retrieval.errors import MediaError, UsageError
from mmsearch.retrieval.evaluate.datasets import Caption, CaptionSet
from mmsearch.retrieval.media import content_hash, load_image, text_hash
from mmsearch.retrieval.types import Failure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.store.reader import Snapshot

_TEXTS = 256
"""Captions per call of the encoder."""
_MOST_THREADS = 16

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class EmbeddedSet:
    """Pictures and captions of a set as vectors of one encoder.

    Attributes:
        captions: the set, without the pictures that could not be read.
        images: float32 (pictures, dim).
        texts: float32 (captions, dim).
        stored: how many of the images were in the index already.
        stored_texts: how many of the captions were.
        failed: pictures that could not be read, and why.
    """

    captions: CaptionSet
    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    stored: int
    stored_texts: int
    failed: tuple[Failure, ...]


def embed(
    captions: CaptionSet,
    encoder: Encoder,
    *,
    snapshot: Snapshot | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> EmbeddedSet:
    """Embeds a set; equal captions once.

    Args:
        captions: the set.
        encoder: a dual encoder.
        snapshot: of an index; its vectors are taken for pictures and texts of the same content if it is of the same
            model.
        threads: to read and decode with; as many as there are processors by default.
        progress: told of pictures and captions.

    Raises:
        UsageError: no picture can be read.
    """
    tell = progress or (lambda what, done, total: None)
    if snapshot is not None and snapshot.identity != encoder.identity:
        snapshot = None
    images, stored, failed = _embed_pictures(captions, encoder, snapshot, threads, tell)
    if failed:
        broken = set(failed)
        captions = without(captions, broken)
        images = images[[row for row in range(len(images)) if row not in broken]]
    rows = {} if snapshot is None else _stored_texts(captions, snapshot)
    stored_texts = sum(caption.text in rows for caption in captions.captions)
    distinct = list(dict.fromkeys(caption.text for caption in captions.captions if caption.text not in rows))
    for start in range(0, len(distinct), _TEXTS):
        tell("captions", start, len(distinct))
        batch = distinct[start : start + _TEXTS]
        rows.update(zip(batch, encoder.encode_texts(batch), strict=True))
    tell("captions", len(distinct), len(distinct))
    texts = np.stack([rows[caption.text] for caption in captions.captions]).astype(np.float32, copy=False)
    return EmbeddedSet(captions, images, texts, stored, stored_texts, tuple(failed.values()))


def _stored_texts(captions: CaptionSet, snapshot: Snapshot) -> dict[str, NDArray[np.float32]]:
    """The vectors of those captions that are items of the index."""
    found = {text: snapshot.texts_of_hash(text_hash(text)) for text in {caption.text for caption in captions.captions}}
    items = {text: ids[0] for text, ids in found.items() if ids}
    return dict(zip(items, snapshot.vectors("text", list(items.values())), strict=True)) if items else {}


def without(captions: CaptionSet, rows: set[int]) -> CaptionSet:
    """A set without the pictures of these rows and their captions.

    Raises:
        UsageError: none would be left.
    """
    kept = [row for row in range(len(captions.pictures)) if row not in rows]
    if not kept:
        raise UsageError(f"none of the {len(captions.pictures):,} pictures of {captions.source} can be used")
    moved = {row: place for place, row in enumerate(kept)}
    return replace(
        captions,
        pictures=tuple(captions.pictures[row] for row in kept),
        captions=tuple(
            Caption(caption.text, caption.language, moved[caption.picture])
            for caption in captions.captions
            if caption.picture in moved
        ),
    )


def _embed_pictures(
    captions: CaptionSet, encoder: Encoder, snapshot: Snapshot | None, threads: int | None, tell: Progress
) -> tuple[NDArray[np.float32], int, dict[int, Failure]]:
    """Vectors by row of the set, how many were stored, and the failures by row (their vectors are zeros)."""

    def read(path: Path) -> bytes | NDArray[np.float32]:
        content = path.read_bytes()
        found = [] if snapshot is None else snapshot.pictures_of_hash(content_hash(content))
        return snapshot.vectors("image", found[:1])[0] if snapshot is not None and found else content

    def ready(path: Path) -> tuple[NDArray[Any], bool]:
        """What the encoder takes, or a stored vector and True."""
        content = read(path)
        if not isinstance(content, bytes):
            return content, True
        return encoder.preprocess(load_image(content, target=encoder.image_size).image), False

    paths = [picture.path for picture in captions.pictures]
    images = np.zeros((len(paths), encoder.dim), np.float32)
    failed: dict[int, Failure] = {}
    stored = 0
    waiting: list[tuple[int, NDArray[Any]]] = []

    def flush() -> None:
        if waiting:
            images[[row for row, _ in waiting]] = encoder.encode_images([array for _, array in waiting])
            waiting.clear()

    ahead = 2 * encoder.batch_size
    with _Threads(threads) as pool:
        for row, future in enumerate(_in_order(pool, ready, paths, ahead)):
            tell("pictures", row, len(paths))
            try:
                array, is_vector = future.result()
            except (OSError, MediaError, MemoryError) as error:
                failed[row] = Failure(str(paths[row]), _reason(error))
                continue
            if is_vector:
                images[row] = array
                stored += 1
            else:
                waiting.append((row, array))
            if len(waiting) == encoder.batch_size:
                flush()
        flush()
    tell("pictures", len(paths), len(paths))
    return images, stored, failed


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Path], Any], paths: Sequence[Path], ahead: int
) -> Iterator[Future[Any]]:
    """Futures of the work for each path, with a bounded number of them begun."""
    begun: deque[Future[Any]] = deque()
    for path in paths:
        begun.append(pool.submit(work, path))
        if len(begun) > ahead:
            yield begun.popleft()
    yield from begun


class _Threads(ThreadPoolExecutor):
    """Threads that do not begin anything more once an error or Ctrl-C has left the block."""

    def __init__(self, threads: int | None) -> None:
        super().__init__(threads or min(_MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="decode")

    def __exit__(self, *error: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory to read it"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return " ".join(str(error).split())
