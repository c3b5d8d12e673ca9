"""The working part of an index run: files that must be read, until their embeddings are committed.

Worker threads read and decode ahead of the encoder; the catalog, the encoder and the bookkeeping belong to the
calling thread. Queues are bounded in files and in bytes, so memory does not grow with the corpus.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from mmsearch.indexers.interrupt import Interrupt
from mmsearch.indexers.merging import Merging
from mmsearch.indexers.probing import keep_probes
from mmsearch.indexers.readahead import DecodedImage, ReadFile, decode_image, read_file, read_row
from mmsearch.indexers.rowsources import RowRef
from mmsearch.indexers.tokens import Encode, Encoded, picture_encoder, text_encoder
from mmsearch.retrieval.encoders import as_token_encoder
from mmsearch.retrieval.errors import ModelMismatch
from mmsearch.retrieval.media import text_hash
from mmsearch.retrieval.store import NewItem
from mmsearch.retrieval.types import AssetMetadata, Failure, ItemRef, Modality

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.store import AssetRecord, LocalStore, Writer

_log = logging.getLogger(__name__)

_BYTES_AHEAD = 256 * 2**20
"""File bytes that may wait for decoding; one file larger than that is read alone."""
_ROWS_PER_COMMIT = 8192
"""Commit at the latest here, so that the writer's buffers stay small on fast machines too."""
_COMMITS_PER_MERGE = 16
"""A commit makes a segment of each space. A long run merges on its way: readers map all segments at once, and a
process may hold a few hundred files open."""
_TEXT_BATCH = 64

Stage = Literal["scan", "load", "index", "tokens", "merge"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: `done` of `total` files in this stage (None while unknown), `failed` so far.

    The stage `tokens` counts pictures that were embedded without tokens.
    """

    stage: Stage
    done: int
    total: int | None
    failed: int


Observer = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Job:
    """A file or row to index; `new` if it may be one that was elsewhere before. `bytes` are read for it."""

    ref: ItemRef
    new: bool = True
    bytes: int = 0

    @classmethod
    def of(cls, ref: ItemRef, *, new: bool = True) -> Job:
        """A job that remembers how large the file was when it was scanned."""
        return cls(ref, new, max(0, ref.stamp.size))


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture between its read and its embedding, with the equal ones that wait for it.

    `bytes` is how much of it is held in memory; `files` have no content any more.
    """

    key: bytes
    decoded: Future[DecodedImage]
    stored: bool
    bytes: int
    files: list[tuple[Job, ReadFile]]


@dataclass(frozen=True, slots=True)
class _Text:
    """A text or a row whose new chunks wait for the encoder; `before` is a picture that belongs to it."""

    job: Job
    file: ReadFile
    keys: tuple[bytes, ...]
    copy: bool
    before: tuple[NewItem, ...] = ()
    metadata: AssetMetadata = field(default_factory=AssetMetadata)


class Ingest:
    """Reads, looks up, decodes, encodes and adds files; counts what became of them.

    Attributes:
        committed: outcomes by report field, of what is committed.
        failures: files that failed in this run, and whatever the caller adds.
        gone: uris by root that a completed scan did not find; a file that turns up elsewhere is taken out.
        covered: uris by root that are found under another root from now on.
        threads: how many files are read and decoded at a time.
    """

    def __init__(
        self,
        store: LocalStore,
        writer: Writer,
        get_encoder: Callable[[], Encoder],
        interrupt: Interrupt,
        *,
        threads: int | None,
        commit_seconds: float,
        observer: Observer | None,
    ) -> None:
        self.committed: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self.gone: dict[str, set[str]] = {}
        self.covered: dict[str, set[str]] = {}
        self._store = store
        self._writer = writer
        self._get_encoder = get_encoder
        self._interrupt = interrupt
        self.threads = threads or min(16, max(2, os.cpu_count() or 1))
        self._commit_seconds = commit_seconds
        self._observer = observer

        self._encoder: Encoder | None = None
        self._batch = 32  # until the encoder says better
        self._counts: Counter[str] = Counter()
        self._done = 0
        self._total: int | None = None
        self._last_commit = time.monotonic()
        self._rows = 0
        self._unmerged = 0  # commits with vectors or tokens
        self._merging = Merging(self._writer)
        self._bytes_ahead = 0
        self._pictures: deque[_Picture] = deque()
        self._by_hash: dict[bytes, _Picture] = {}
        self._updated_pictures: set[tuple[str | None, str | None]] = set()
        self._texts: list[_Text] = []
        self._new_chunks: dict[bytes, str] = {}

    def index(self, jobs: deque[Job]) -> None:
        """Indexes files, taking them off the queue.

        Raises:
            Stopped: somebody wants the run to end; what was added so far is whole and can be committed.
        """
        if not jobs:
            return
        self._total = self._done + len(jobs)
        self.tell("index", self._done, self._total)
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="mmsearch-decode")
        try:
            self._work(jobs, pool)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def remove_gone(self) -> None:
        """Takes out of the index what is gone."""
        for root, uris in self.gone.items():
            if uris:
                self._counts["removed"] += self._writer.remove(root, sorted(uris))

    def commit(self) -> None:
        """Publishes everything so far."""
        self._writer.commit()
        self.committed.update(self._counts)
        self._counts.clear()
        self._rows = 0
        self._last_commit = time.monotonic()

    def _step(self) -> None:
        """Between two batches: commits every few seconds, and merges every few commits."""
        if self._rows >= _ROWS_PER_COMMIT or time.monotonic() - self._last_commit > self._commit_seconds:
            self._unmerged += self._rows > 0
            self.commit()
            if self._unmerged == _COMMITS_PER_MERGE:
                self.merge()
                self._unmerged = 0

    def add_tokens(self, keys: Sequence[bytes], encode: Callable[[], Encoded]) -> None:
        """Keeps the tokens of pictures that have embeddings already."""
        try:
            encoded = encode()
        except Exception:
            self.commit()
            raise
        good = [i for i, total in enumerate(encoded.rows.sum(axis=1).tolist()) if math.isfinite(total)]
        self._keep_tokens([keys[i] for i in good], encoded, good)
        self._rows += len(good)
        self._counts["tokens"] += len(good)
        self._step()

    def _keep_tokens(self, keys: Sequence[bytes], encoded: Encoded, good: Sequence[int]) -> None:
        if encoded.tokens is not None:
            self._writer.embed_tokens(keys, encoded.tokens[good], identity=encoded.token_identity)

    @property
    def token_identity(self) -> str | None:
        """That of the encoder, if it is loaded and makes tokens."""
        encoder = None if self._encoder is None else as_token_encoder(self._encoder)
        return None if encoder is None else encoder.token_identity

    def merge(self) -> None:
        """Merges small segments, where that works."""
        self._merging.merge()

    def tell(self, stage: Stage, done: int, total: int | None) -> None:
        """Tells the observer, if there is one."""
        if self._observer is not None:
            self._observer(Progress(stage, done, total, len(self.failures)))

    def _work(self, jobs: deque[Job], pool: ThreadPoolExecutor) -> None:
        """Keeps two batches of pictures decoded or decoding, so that the encoder never waits for a thread."""
        reads: deque[tuple[Job, Future[ReadFile]]] = deque()
        while jobs or reads or self._pictures or self._texts:
            self._interrupt.check()
            while jobs and len(reads) < self._batch + self.threads and self._may_read(jobs[0]):
                job = jobs.popleft()
                self._bytes_ahead += job.bytes
                reads.append((job, pool.submit(_read, job.ref, self._store.max_tokens)))
            if reads and len(self._pictures) < 2 * self._batch:
                self._settle(self._take(reads), pool)
            elif self._pictures:
                self._encode_pictures()
            if len(self._new_chunks) >= _TEXT_BATCH or not (jobs or reads or self._pictures):
                self._encode_texts()
            self._step()
            self.tell("index", self._done, self._total)

    def _may_read(self, job: Job) -> bool:
        return self._bytes_ahead == 0 or self._bytes_ahead + job.bytes <= _BYTES_AHEAD

    def _take(self, reads: deque[tuple[Job, Future[ReadFile]]]) -> list[tuple[Job, ReadFile]]:
        """The oldest read, and those behind it that are ready too."""
        taken: list[tuple[Job, ReadFile]] = []
        while reads and (not taken or (reads[0][1].done() and len(taken) < self._batch)):
            job, future = reads.popleft()
            taken.append((job, future.result()))
        return taken

    def _settle(self, files: list[tuple[Job, ReadFile]], pool: ThreadPoolExecutor) -> None:
        """Decides for each file that was read what it needs: nothing, only a row in the catalog, or the encoder."""
        stored = self._writer.find("image", [file.picture_key for _, file in files if file.picture_key])
        for job, file in files:
            held = False
            job = replace(job, ref=file.ref)  # its stamp is that of what was read
            if file.error is not None:
                self._fail(job, file.error)
            else:
                new_picture = bool(file.picture_key) and file.picture_key not in stored
                records = [] if new_picture else self._equal_assets(job, file.content_hash)
                if self._is_known(job, records):
                    pass
                elif file.picture_key:
                    held = self._settle_picture(job, file, records, not new_picture, pool)
                else:
                    self._settle_text(_Text(job, file, _keys(file), copy=bool(records)))
            if not held:
                self._bytes_ahead -= job.bytes

    def _equal_assets(self, job: Job, key: bytes) -> list[AssetRecord]:
        """Good assets of the same content and modality."""
        modality = job.ref.modality
        found = self._writer.assets_by_hash(key, modality)
        return [record for record in found if record.status == "ok" and record.modality == modality]

    def _is_known(self, job: Job, records: Sequence[AssetRecord]) -> bool:
        """Whether the content is in the index already: at this uri (touched), or at one that is no more (moved)."""
        ref = job.ref
        for record in records:
            if (record.root, record.uri) == (ref.root, ref.uri):
                self._writer.touch(ref)
                self._finish(job, "updated" if (ref.owner_root, ref.owner) in self._updated_pictures else "unchanged")
                return True
        for record in records if job.new else ():
            for left in (self.gone.get(record.root, set()), self.covered.get(record.root, set())):
                if record.uri in left:
                    self._writer.move(record.root, record.uri, ref)
                    left.discard(record.uri)
                    self._finish(job, "moved")
                    return True
        return False

    def _settle_picture(
        self, job: Job, file: ReadFile, records: Sequence[AssetRecord], stored: bool, pool: ThreadPoolExecutor
    ) -> bool:
        """Adds a copy at once, or sends a picture to be decoded; returns whether its bytes are still held."""
        key = file.picture_key
        emptied = replace(file, content=b"")
        if key in self._by_hash:
            self._by_hash[key].files.append((job, emptied))
            return False
        if stored and records:
            self._add_picture(job, emptied, records[0].metadata, copy=True)
            return False
        decoded = pool.submit(decode_image, file, None if stored else self.load_encoder())
        picture = _Picture(key, decoded, stored, job.bytes, [(job, emptied)])
        self._pictures.append(picture)
        self._by_hash[key] = picture
        return True

    def _encode_pictures(self) -> None:
        """Encodes and adds the oldest batch of decoded pictures, waiting for them where needed."""
        ready: list[tuple[_Picture, AssetMetadata]] = []
        fresh: list[bytes] = []
        arrays: list[NDArray[Any]] = []
        while self._pictures and len(ready) < self._batch:
            picture = self._pictures.popleft()
            del self._by_hash[picture.key]
            decoded = picture.decoded.result()
            self._bytes_ahead -= picture.bytes
            if decoded.error is not None:
                for job, _ in picture.files:
                    self._fail(job, decoded.error)
                continue
            ready.append((picture, decoded.metadata))
            if decoded.array is not None:
                fresh.append(picture.key)
                arrays.append(decoded.array)
        unusable = self._embed("image", fresh, picture_encoder(self.load_encoder()), arrays) if arrays else set()
        for picture, metadata in ready:
            for number, (job, file) in enumerate(picture.files):
                if picture.key in unusable:
                    self._fail(job, "the model gives no usable embedding for it")
                else:
                    self._add_picture(job, file, metadata, copy=picture.stored or number > 0)

    def _add_picture(self, job: Job, file: ReadFile, metadata: AssetMetadata, *, copy: bool) -> None:
        before = (NewItem("image", file.picture_key),)
        self._settle_text(_Text(job, file, _keys(file), copy, before, metadata))

    def _settle_text(self, text: _Text) -> None:
        """Adds a text whose chunks all have vectors, else lets it wait."""
        stored = self._writer.find("text", text.keys) if text.keys else {}
        pairs = zip(text.keys, text.file.chunks, strict=True)
        new = {key: chunk.text for key, chunk in pairs if key not in stored}
        if new:
            self._new_chunks.update(new)
            self._texts.append(text)
        else:
            self._add_text(text)

    def _encode_texts(self) -> None:
        """Encodes all chunks that wait, adds their texts."""
        if not self._texts:
            return
        encode = text_encoder(self.load_encoder())
        waiting = sorted(self._new_chunks.items(), key=lambda pair: len(pair[1]))  # equal lengths: less padding
        unusable: set[bytes] = set()
        for start in range(0, len(waiting), _TEXT_BATCH):
            batch = waiting[start : start + _TEXT_BATCH]
            keys = [key for key, _ in batch]
            unusable |= self._embed("text", keys, encode, [text for _, text in batch])
        texts, self._texts, self._new_chunks = self._texts, [], {}
        for text in texts:
            if unusable.isdisjoint(text.keys):
                self._add_text(text)
            else:
                self._fail(text.job, "the model gives no usable embedding for it")

    def _add_text(self, text: _Text) -> None:
        items = [
            NewItem("text", key, fragment=chunk.fragment, text=chunk.text)
            for key, chunk in zip(text.keys, text.file.chunks, strict=True)
        ]
        ref = text.job.ref
        replaced = self._writer.add(
            ref,
            content_hash=text.file.content_hash,
            metadata=text.metadata,
            items=[*text.before, *items],
            meta=ref.row.meta if isinstance(ref, RowRef) and ref.row is not None else None,
        )
        self._finish(text.job, "updated" if replaced else "copied" if text.copy else "added")

    def _embed(
        self,
        space: Modality,
        keys: Sequence[bytes],
        encode: Encode,
        inputs: Sequence[Any],
    ) -> set[bytes]:
        """Encodes and stores new content; returns the keys whose rows are not finite and were not stored."""
        encoder = self.load_encoder()
        try:
            encoded = encode(inputs)
        except Exception:
            self.commit()  # what was added before this batch is whole
            raise
        rows = encoded.rows
        good = [i for i, total in enumerate(rows.sum(axis=1).tolist()) if math.isfinite(total)]
        if len(good) < len(keys):
            rows = rows[good]
        self._writer.embed(
            space,
            [keys[i] for i in good],
            rows,
            precision=encoder.precision,
            device=encoder.device,
            backend=encoder.backend,
        )
        self._keep_tokens([keys[i] for i in good], encoded, good)
        self._rows += len(good)
        return set(keys).difference(keys[i] for i in good)

    def load_encoder(self) -> Encoder:
        """The encoder of the index, loaded when it is first needed."""
        if self._encoder is None:
            self.tell("load", self._done, self._total)
            with self._interrupt.immediate():
                encoder = self._get_encoder()
            if encoder.identity != self._store.identity:
                raise ModelMismatch(
                    f"the index at {self._store.path} was made by the model {self._store.model}, and what is "
                    f"loaded now as {encoder.name} is another one; use another --index for it"
                )
            keep_probes(self._writer, encoder)
            self._encoder = encoder
            self._batch = max(1, encoder.batch_size)
        return self._encoder

    def _finish(self, job: Job, outcome: str) -> None:
        if not job.ref.listed:
            self._counts[outcome] += 1
        elif outcome == "updated":  # the row that names it is counted
            self._updated_pictures.add((job.ref.root, job.ref.uri))
        self._done += 1

    def _fail(self, job: Job, error: str) -> None:
        _log.info("%s: %s", job.ref.path, error)
        self._writer.fail(job.ref, error)
        self.failures.append(Failure(job.ref.path, error))
        self._done += 1


def _read(ref: ItemRef, max_tokens: int | None) -> ReadFile:
    return read_row(ref, max_tokens) if isinstance(ref, RowRef) else read_file(ref, max_tokens)


def _keys(file: ReadFile) -> tuple[bytes, ...]:
    return tuple(text_hash(chunk.text) for chunk in file.chunks)
