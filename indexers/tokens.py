"""Compressed tokens of pictures: made with their embeddings, and later for pictures that were embedded without.

A picture that has none is read again, wherever a file of it is; one that is not there, or has other content by now, is
passed over. A run does not fail because a picture cannot be read, or because the model is not here.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmsearch.indexers.readahead import ReadFile, decode_image, read_file
from mmsearch.retrieval.encoders import as_token_encoder
from mmsearch.retrieval.errors import MMSearchError
from mmsearch.retrieval.types import ItemRef, Stamp

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmsearch.indexers.ingest import Ingest
    from mmsearch.indexers.interrupt import Interrupt
    from mmsearch.retrieval.encoders import Encoder, TokenEncoder
    from mmsearch.retrieval.store import LocalStore, Snapshot, Writer
    from mmsearch.retrieval.store.reader import PictureFile

_log = logging.getLogger(__name__)

_PAGE = 5000


class Encoded(NamedTuple):
    """What one call of an encoder gave: vectors, float32 (n, dim), and of pictures perhaps tokens with their identity.

    The tokens are int8 (n, length, width).
    """

    rows: NDArray[np.float32]
    tokens: NDArray[np.int8] | None = None
    token_identity: str = ""


Encode = Callable[[Sequence[Any]], Encoded]


def picture_encoder(encoder: Encoder) -> Encode:
    """Encodes pictures, with their tokens where the encoder makes any."""
    maker = as_token_encoder(encoder)
    if maker is None:
        return lambda arrays: Encoded(encoder.encode_images(arrays))
    return lambda arrays: Encoded(*maker.encode_image_tokens(arrays), maker.token_identity)


def text_encoder(encoder: Encoder) -> Encode:
    """Encodes texts."""
    return lambda texts: Encoded(encoder.encode_texts(texts))


class Tokenless(NamedTuple):
    """A picture without tokens: its content key, and the files where it was."""

    content_key: bytes
    files: tuple[PictureFile, ...]


def tokenless(snapshot: Snapshot, ids: Sequence[int], roots: Collection[Path] | None) -> Iterator[Tokenless]:
    """The pictures of some embeddings that are in files of roots that are there now.

    Args:
        snapshot: what knows the files.
        ids: of embeddings.
        roots: the folders that are looked at; None for all.
    """
    there = {
        root.path
        for root in snapshot.roots()
        if root.kind == "folder" and root.present() and (roots is None or any(root.is_at(str(one)) for one in roots))
    }
    files = (file for file in snapshot.files_of(ids) if file.root in there)
    for _, same in groupby(files, key=lambda file: file.embedding_id):
        group = tuple(same)
        yield Tokenless(group[0].content_key, group)


class MissingTokens:
    """Makes the tokens of pictures that were embedded without, in the commits and at the pace of an index run."""

    def __init__(
        self,
        store: LocalStore,
        writer: Writer,
        ingest: Ingest,
        interrupt: Interrupt,
        identity: str,
        roots: Collection[Path] | None,
        threads: int,
    ) -> None:
        """`identity` is that of the tokens wanted, `roots` are the folders that are looked at (None: all)."""
        self._store = store
        self._writer = writer
        self._ingest = ingest
        self._interrupt = interrupt
        self._identity = identity
        self._roots = roots
        self._threads = threads
        self._done = 0
        self._total = 0
        self._keys: list[bytes] = []
        self._arrays: list[NDArray[Any]] = []

    def make(self) -> None:
        """Makes the tokens that are missing, and drops those of another identity before the first of them.

        Loads the encoder only where a picture that lacks tokens can be read.

        Raises:
            Stopped: somebody wants the run to end; what was made so far can be committed.
        """
        with self._store.snapshot() as snapshot:
            ids: list[int] = snapshot.without_tokens(self._identity).tolist()
        if not ids:
            self._writer.drop_other_tokens(self._identity)
            return
        self._total = len(ids)
        pictures = self._pictures(ids)
        first = next((picture for picture in pictures if _read(picture) is not None), None)
        if first is None:
            return
        try:
            encoder = as_token_encoder(self._ingest.load_encoder())
        except MMSearchError as error:
            _log.warning("%d pictures lack the tokens that a reranker reads, and get none: %s", len(ids), error)
            return
        if encoder is None or encoder.token_identity != self._identity:
            return  # what was said of it is not so
        self._writer.drop_other_tokens(self._identity)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="mmsearch-decode")
        try:
            self._work(first, pictures, encoder, pool)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _pictures(self, ids: Sequence[int]) -> Iterator[Tokenless]:
        """A page at a time: while a snapshot is open, the catalog's log grows with every commit."""
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            with self._store.snapshot() as snapshot:
                found = list(tokenless(snapshot, page, self._roots))
            self._done = start + len(page) - len(found)
            for picture in found:
                self._interrupt.check()
                self._done += 1
                self._ingest.tell("tokens", self._done, self._total)
                yield picture

    def _work(
        self, first: Tokenless, rest: Iterator[Tokenless], encoder: TokenEncoder, pool: ThreadPoolExecutor
    ) -> None:
        batch = max(1, encoder.batch_size)
        ahead: deque[tuple[bytes, Future[NDArray[Any] | None]]] = deque()
        ahead.append((first.content_key, pool.submit(_array, first, encoder)))
        for picture in rest:
            ahead.append((picture.content_key, pool.submit(_array, picture, encoder)))
            if len(ahead) >= 2 * batch + self._threads:
                self._take(ahead, encoder, batch)
        while ahead:
            self._take(ahead, encoder, batch)
        self._encode(encoder)

    def _take(self, ahead: deque[tuple[bytes, Future[NDArray[Any] | None]]], encoder: TokenEncoder, batch: int) -> None:
        key, future = ahead.popleft()
        array = future.result()
        if array is not None:
            self._keys.append(key)
            self._arrays.append(array)
        if len(self._keys) >= batch:
            self._encode(encoder)

    def _encode(self, encoder: TokenEncoder) -> None:
        keys, arrays = self._keys, self._arrays
        self._keys, self._arrays = [], []
        if keys:
            self._ingest.add_tokens(keys, lambda: picture_encoder(encoder)(arrays))


def unchanged_files(picture: Tokenless) -> Iterator[ItemRef]:
    """The files of a picture that are as they were when it was read, as far as that is seen without reading."""
    for file in picture.files:
        try:
            stamp = Stamp.of(os.stat(file.path))
        except OSError:
            continue
        if file.stamp.size < 0 or file.stamp == stamp:  # below 0 its state was not settled: what it holds decides
            yield ItemRef(root=file.root, uri="", path=file.path, modality="image", stamp=stamp)


def _read(picture: Tokenless) -> ReadFile | None:
    """The picture out of the first of its files that still has it."""
    reads = map(read_file, unchanged_files(picture))
    return next((read for read in reads if read.content_hash == picture.content_key), None)


def _array(picture: Tokenless, encoder: Encoder) -> NDArray[Any] | None:
    """What the encoder takes, or None where the picture cannot be had."""
    read = _read(picture)
    if read is None:
        return None
    decoded = decode_image(read, encoder)
    if decoded.error is not None:
        _log.info("%s: %s", read.ref.path, decoded.error)
    return decoded.array
