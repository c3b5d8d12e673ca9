"""Vectors of another model on their way into an index, committed where no reader sees them before the switch."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mmsearch.indexers.chunks import chunk_chars
from mmsearch.indexers.ingest import Observer, Progress, Stage
from mmsearch.indexers.interrupt import Interrupt
from mmsearch.indexers.merging import Merging
from mmsearch.indexers.probing import keep_probes
from mmsearch.indexers.tokens import Encode
from mmsearch.retrieval.types import Modality

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.store import LocalStore, Writer

_log = logging.getLogger(__name__)

_ROWS_PER_COMMIT = 8192
_COMMITS_PER_MERGE = 16
_PAGE = 1000


class Staging:
    """Embeds content with a new model and keeps the vectors; counts what became of the items.

    Attributes:
        store: the index, at the old model.
        encoder: the new model.
        max_chars: length of the chunks of text that it reads.
        done: items that were looked at.
        first: those of them that something was embedded for.
        embedded: contents that were embedded.
        unusable: contents that the new model gives no finite vector for.
    """

    def __init__(
        self,
        store: LocalStore,
        writer: Writer,
        encoder: Encoder,
        interrupt: Interrupt,
        *,
        commit_seconds: float,
        observer: Observer | None,
    ) -> None:
        self.store = store
        self.encoder = encoder
        self.max_chars = chunk_chars(encoder.max_tokens)
        self.done = 0
        self.first = 0
        self.embedded = 0
        self.unusable: set[bytes] = set()
        self.model_id = 0  # from `begin` on
        self._writer = writer
        self._interrupt = interrupt
        self._commit_seconds = commit_seconds
        self._observer = observer
        self._total = 0
        self._missing: dict[bytes, list[str]] = {}  # what the items are called, by the content that they had
        self._changed: Counter[bytes] = Counter()  # items by the content that they had
        self._without: list[str] = []  # texts
        self._last_commit = time.monotonic()
        self._rows = 0
        self._unmerged = 0  # commits with vectors
        self._merging = Merging(self._writer)

    # What there is

    def begin(self) -> None:
        """Makes room for the vectors, or finds those of a run before; counts the items."""
        new = self.encoder
        self.model_id = self._writer.stage(new.name, new.identity, new.dim, new.max_tokens)
        keep_probes(self._writer, new, self.model_id)
        self._writer.commit()
        with self.store.snapshot() as snapshot:
            self._total = sum(snapshot.counts.values())
        self.tell("index")

    def pages(self, space: Modality) -> Iterator[tuple[int, int]]:
        """Spans of item ids (above, up to) that hold all items of a modality.

        The writer's lock keeps the items as they are, so each page can be read in a snapshot of its own: while one
        is open, the catalog's log grows with every commit.
        """
        with self.store.snapshot() as snapshot:
            ids = snapshot.item_ids(space)
        above = 0
        for last in [*ids[_PAGE - 1 : -1 : _PAGE].tolist(), *ids[-1:].tolist()]:
            self._interrupt.check()
            yield above, last
            above = last

    def find(self, space: Modality, keys: Sequence[bytes]) -> set[bytes]:
        """Those of some contents that the new model has embedded already."""
        return set(self._writer.find(space, keys, self.model_id))

    # What became of it

    def finish_text(self, *, first: bool) -> None:
        """Counts a text item that has its staged vectors; `first` if they were made for it."""
        self.first += first
        self.done += 1

    def miss_text(self, name: str, reason: str) -> None:
        """Counts a text item that cannot be embedded again."""
        _log.info("%s: %s", name, reason)
        self._without.append(f"{name} ({reason})")
        self.done += 1

    def miss_picture(self, key: bytes, name: str, reason: str) -> None:
        """Counts a picture that cannot be embedded again, unless another file turns out to have its content."""
        _log.info("%s: %s", name, reason)
        self._missing.setdefault(key, []).append(f"{name} ({reason})")
        self.done += 1

    def finish_picture(self, key: bytes, content_hash: bytes) -> None:
        """Counts a picture whose file has a staged vector: its own, or the one of what the file holds now."""
        if key != content_hash:
            self._changed[key] += 1
        self.done += 1

    def forget_found(self) -> None:
        """After all pictures: those whose content another file had are not lost."""
        for lost in (self._missing, self._changed):
            for key in self.find("image", list(lost)):
                del lost[key]

    def missing(self) -> list[str]:
        """What cannot be embedded again, each with the reason."""
        return [*self._without, *(name for names in self._missing.values() for name in names)]

    def changed(self) -> int:
        """How many items are about other content than their files have now."""
        return self._changed.total()

    # Working

    def embed(
        self,
        space: Modality,
        keys: Sequence[bytes],
        encode: Encode,
        inputs: Sequence[Any],
    ) -> None:
        """Encodes content and stages its vectors; notes in `unusable` what has no finite one."""
        try:
            encoded = encode(inputs)
        except Exception:
            self.commit()  # what was staged before this batch is whole
            raise
        rows = encoded.rows
        good = [i for i, total in enumerate(rows.sum(axis=1).tolist()) if math.isfinite(total)]
        self.unusable.update(keys[i] for i in set(range(len(keys))).difference(good))
        self._writer.embed(
            space,
            [keys[i] for i in good],
            rows[good],
            precision=self.encoder.precision,
            device=self.encoder.device,
            backend=self.encoder.backend,
            model_id=self.model_id,
        )
        if encoded.tokens is not None:
            self._writer.embed_tokens(
                [keys[i] for i in good], encoded.tokens[good], identity=encoded.token_identity, model_id=self.model_id
            )
        self._rows += len(good)
        self.embedded += len(good)

    def step(self) -> None:
        """Between two batches: commits every few seconds and merges every few commits, so that few segments are left.

        Raises:
            Stopped: somebody wants the run to end; what was staged so far can be committed.
        """
        self._interrupt.check()
        if self._rows >= _ROWS_PER_COMMIT or time.monotonic() - self._last_commit > self._commit_seconds:
            self.commit()
            if self._unmerged >= _COMMITS_PER_MERGE:
                self.merge()
        self.tell("index")

    def commit(self) -> None:
        """Saves what is staged."""
        self._writer.commit()
        self._unmerged += self._rows > 0
        self._rows = 0
        self._last_commit = time.monotonic()

    def merge(self) -> None:
        """Merges small segments, where that works."""
        self._unmerged = 0
        self._merging.merge()

    def close(self) -> None:
        """Saves and merges what is staged, before a switch."""
        self.commit()
        self.tell("merge")
        self.merge()

    def tell(self, stage: Stage) -> None:
        """Tells the observer, if there is one."""
        if self._observer is not None:
            done, total = (0, None) if stage == "merge" else (self.done, self._total)
            self._observer(Progress(stage, done, total, len(self._missing) + len(self._without)))
