"""Changing the model of an index: everything embedded again beside the old vectors, then one switch.

Pictures are read again where they were found, texts come out of the catalog. Readers keep the old generation until
the switch, which is one transaction. What is embedded on the way is committed every few seconds; however a run ends,
the next one with the same model goes on from there.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from mmsearch.indexers.chunks import cut_further
from mmsearch.indexers.ingest import Observer, Progress
from mmsearch.indexers.interrupt import Interrupt, Stopped
from mmsearch.indexers.readahead import DecodedImage, ReadFile, decode_image, read_file
from mmsearch.indexers.staging import Staging
from mmsearch.indexers.tokens import picture_encoder, text_encoder
from mmsearch.retrieval.errors import IndexUnusable
from mmsearch.retrieval.media import text_hash
from mmsearch.retrieval.store import NewItem
from mmsearch.retrieval.store.diagnosis import counted
from mmsearch.retrieval.types import ItemRef, ReindexReport, Stamp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.store import LocalStore

_BYTES_AHEAD = 256 * 2**20
"""File bytes that may wait for the encoder, up to one more file."""
_TEXT_BATCH = 64
_NAMED = 3
_SHOWN_CHARS = 40
_NO_VECTOR = "the model gives no usable embedding for it"


def reindex(
    store: LocalStore,
    encoder: Callable[[], Encoder],
    *,
    drop: bool = False,
    threads: int | None = None,
    commit_seconds: float = 4.0,
    observer: Observer | None = None,
) -> ReindexReport:
    """Changes an index to another model; the old one is not needed for that.

    Content is embedded once, however many items have it. Items keep their ids, except for texts that are cut into
    shorter ones because the new model reads less. Files that changed since they were indexed are embedded as they
    are now, and their old items leave at the switch: an index run afterwards finds the new content.

    Ctrl-C (in the main thread) ends the run after the step at hand and sets `ReindexReport.interrupted`; nothing
    visible has changed then. After any such end, and after an error or a crash, the next call with the same model
    goes on with what is embedded; a call with another model gives that up.

    Args:
        store: its write lock is held for the whole run. After a switch its `model`, `identity`, `dim` and
            `max_tokens` are still those of before: open the index again.
        encoder: gives the new model; called once.
        drop: let items go that cannot be embedded again.
        threads: how many files are read and decoded at a time; chosen by default.
        commit_seconds: work that an abrupt end may lose, at most.
        observer: called with the state of the run, from this thread; counts items.

    Raises:
        IndexLocked: somebody else is writing.
        IndexUnusable: items cannot be embedded again, and `drop` is not given. What is embedded is kept.
    """
    start = time.monotonic()
    model, interrupted, recut, lost = "", False, 0, 0
    staging: Staging | None = None
    with store.writer() as writer, Interrupt() as interrupt:
        old = writer.models()[writer.model_id]
        try:
            new = _load(encoder, interrupt, observer)
            model = old.name if new.identity == old.identity else new.name
            if new.identity != old.identity:
                staging = Staging(store, writer, new, interrupt, commit_seconds=commit_seconds, observer=observer)
                staging.begin()
                recut = embed_texts(staging)
                Pictures(staging, threads or min(16, max(2, os.cpu_count() or 1))).embed()
                staging.close()
                interrupt.check()
                if not drop:
                    _require_all(staging, old.name)
                lost = writer.switch(staging.model_id, partial(_recut, staging.max_chars))
        except Stopped:
            interrupted = True
            writer.commit()
        except KeyboardInterrupt:  # a second Ctrl-C, or one that we do not see first: anything may be half-done
            interrupted = True
            writer.rollback()
        switched = writer.model_id != old.model_id
    with store.snapshot() as snapshot:
        items = sum(snapshot.counts.values())
    report = ReindexReport(
        model=model,
        previous_model=old.name,
        switched=switched,
        interrupted=interrupted and not switched,
        items=items,
        seconds=round(time.monotonic() - start, 3),
    )
    return report if staging is None else _counted(report, staging, recut, lost)


def _load(get_encoder: Callable[[], Encoder], interrupt: Interrupt, observer: Observer | None) -> Encoder:
    if observer is not None:
        observer(Progress("load", 0, None, 0))
    with interrupt.immediate():
        return get_encoder()


def _counted(report: ReindexReport, staging: Staging, recut: int, lost: int) -> ReindexReport:
    changed, missing = staging.changed(), len(staging.missing())
    return replace(
        report,
        embedded=staging.embedded,
        reused=staging.done - staging.first - changed - missing,
        recut=recut,
        changed=changed,
        dropped=max(0, lost - changed),
    )


def _require_all(staging: Staging, old_name: str) -> None:
    """Raises IndexUnusable, with what to do, where items would be lost by a switch."""
    missing = staging.missing()
    if not missing:
        return
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    raise IndexUnusable(
        f"{counted(len(missing), 'item')} of the index at {staging.store.path} cannot be embedded again: "
        f"{'; '.join(missing[:_NAMED])}{more}. If they are on a drive, mount it; if files were removed for good, "
        "`mmsearch index` lets them go; `--drop` (drop=True) lets go of all such items. Then run this again: what "
        f"{staging.encoder.name} has embedded is kept, and until then the index works with {old_name} as before"
    )


def _recut(max_chars: int, fragment: str | None, text: str) -> list[NewItem]:
    """What a text item becomes; for most the same, with the content key of its text."""
    pieces = cut_further(fragment, text, max_chars=max_chars)
    return [NewItem("text", text_hash(piece), fragment=part, text=piece) for part, piece in pieces]


def embed_texts(staging: Staging) -> int:
    """Embeds every text of an index that has no vector yet; returns how many are cut into shorter ones."""
    recut = 0
    for above, last in staging.pages("text"):
        with staging.store.snapshot() as snapshot:
            page = list(snapshot.texts(above, last))
        items = [(text, [] if text is None else _recut(staging.max_chars, fragment, text)) for fragment, text in page]
        fresh = _embed_pieces(staging, [piece for _, pieces in items for piece in pieces])
        for text, pieces in items:
            keys = {piece.content_key for piece in pieces}
            if text is None:
                staging.miss_text("a text item", "its vector was given without the text")
            elif not staging.unusable.isdisjoint(keys):
                staging.miss_text(_shown(text), _NO_VECTOR)
            else:
                staging.finish_text(first=not fresh.isdisjoint(keys))
                recut += len(pieces) > 1
                fresh -= keys
        staging.tell("index")
    return recut


def _embed_pieces(staging: Staging, pieces: Sequence[NewItem]) -> set[bytes]:
    """Embeds the texts of a page that have no vector yet; returns their content keys."""
    texts = {piece.content_key: piece.text or "" for piece in pieces}
    known = staging.find("text", list(texts)) | staging.unusable
    wanted = sorted(texts.keys() - known, key=lambda key: (len(texts[key]), key))  # equal lengths: less padding
    for start in range(0, len(wanted), _TEXT_BATCH):
        batch = wanted[start : start + _TEXT_BATCH]
        staging.embed("text", batch, text_encoder(staging.encoder), [texts[key] for key in batch])
        staging.step()
    return set(wanted)


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return f"the text {line if len(line) <= _SHOWN_CHARS else line[: _SHOWN_CHARS - 1] + '…'!r}"


class _Item(NamedTuple):
    """A picture item: the hash of what it shows, and its file."""

    key: bytes
    path: str


class _Read(NamedTuple):
    """A file that is being read; its size counts as ahead until it is done with."""

    item: _Item
    size: int
    file: Future[ReadFile]


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture between its read and its embedding, with the items whose files have that content now."""

    content_hash: bytes
    size: int
    decoded: Future[DecodedImage]
    items: list[_Item] = field(default_factory=list)


class Pictures:
    """Embeds the pictures of an index anew. Worker threads read and decode ahead of the encoder, within bounds.

    Every item has its own file tried, until the content that it had is staged.
    """

    def __init__(self, staging: Staging, threads: int) -> None:
        self._staging = staging
        self._threads = threads
        self._batch = max(1, staging.encoder.batch_size)
        self._bytes_ahead = 0
        self._reads: deque[_Read] = deque()
        self._pictures: deque[_Picture] = deque()
        self._by_hash: dict[bytes, _Picture] = {}

    def embed(self) -> None:
        """Stages a vector for every picture that can be had.

        Raises:
            Stopped: somebody wants the run to end; what was staged so far can be committed.
        """
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="mmsearch-decode")
        try:
            self._work(pool)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        self._staging.forget_found()

    def _work(self, pool: ThreadPoolExecutor) -> None:
        """Keeps two batches of pictures decoded or decoding, so that the encoder never waits for a thread."""
        pages = self._staging.pages("image")
        items: deque[_Item] = deque()
        more = True
        while more or items or self._reads or self._pictures:
            if more and not items:
                page = next(pages, None)
                more = page is not None
                items.extend(self._wanted(*page) if page is not None else ())
            while items and len(self._reads) < self._batch + self._threads and self._bytes_ahead < _BYTES_AHEAD:
                self._read(items.popleft(), pool)
            if self._reads and len(self._pictures) < 2 * self._batch:
                self._settle(self._ready(), pool)
            elif self._pictures:
                self._encode()
            self._staging.step()

    def _wanted(self, above: int, last: int) -> Iterator[_Item]:
        """The items of a page whose files must be read."""
        with self._staging.store.snapshot() as snapshot:
            page = [(key, path) for key, _, path in snapshot.pictures(above, last)]
        known = self._staging.find("image", [key for key, _ in page])
        for key, path in page:
            if key in known:
                self._staging.finish_picture(key, key)
            elif path is None:
                self._staging.miss_picture(key, "a picture", "it was given without a file")
            else:
                yield _Item(key, path)

    def _read(self, item: _Item, pool: ThreadPoolExecutor) -> None:
        try:
            size = os.stat(item.path).st_size
        except OSError:
            size = 0  # the reader finds out why
        self._bytes_ahead += size
        ref = ItemRef(root="", uri="", path=item.path, modality="image", stamp=Stamp(size, 0))
        self._reads.append(_Read(item, size, pool.submit(read_file, ref)))

    def _ready(self) -> list[tuple[_Read, ReadFile]]:
        """The oldest read, and those behind it that are ready too."""
        taken: list[tuple[_Read, ReadFile]] = []
        while self._reads and (not taken or (self._reads[0].file.done() and len(taken) < self._batch)):
            read = self._reads.popleft()
            taken.append((read, read.file.result()))
        return taken

    def _settle(self, files: Sequence[tuple[_Read, ReadFile]], pool: ThreadPoolExecutor) -> None:
        """Decides for each file whether the encoder has to see it, whatever content its item had."""
        hashes = [file.content_hash for _, file in files if file.error is None]
        known = self._staging.find("image", hashes)
        for (item, size, _), file in files:
            content = file.content_hash
            if file.error is None and content not in known | self._staging.unusable | self._by_hash.keys():
                picture = _Picture(content, size, pool.submit(decode_image, file, self._staging.encoder), [item])
                self._by_hash[content] = picture
                self._pictures.append(picture)
                continue
            self._bytes_ahead -= size
            if file.error is not None:
                self._staging.miss_picture(item.key, item.path, file.error)
            elif content in self._by_hash:
                self._by_hash[content].items.append(item)
            elif content in known:
                self._staging.finish_picture(item.key, content)
            else:
                self._staging.miss_picture(item.key, item.path, _NO_VECTOR)

    def _encode(self) -> None:
        """Encodes the oldest batch of decoded pictures, waiting for them where needed."""
        ready: list[tuple[_Picture, NDArray[Any]]] = []
        while self._pictures and len(ready) < self._batch:
            picture = self._pictures.popleft()
            del self._by_hash[picture.content_hash]
            decoded = picture.decoded.result()
            self._bytes_ahead -= picture.size
            if decoded.array is None:
                self._miss(picture, decoded.error or "it cannot be decoded")
            else:
                ready.append((picture, decoded.array))
        if ready:
            hashes = [picture.content_hash for picture, _ in ready]
            encode = picture_encoder(self._staging.encoder)
            self._staging.embed("image", hashes, encode, [array for _, array in ready])
        for picture, _ in ready:
            if picture.content_hash in self._staging.unusable:
                self._miss(picture, _NO_VECTOR)
                continue
            self._staging.first += any(item.key == picture.content_hash for item in picture.items)
            for item in picture.items:
                self._staging.finish_picture(item.key, picture.content_hash)

    def _miss(self, picture: _Picture, reason: str) -> None:
        for item in picture.items:
            self._staging.miss_picture(item.key, item.path, reason)
