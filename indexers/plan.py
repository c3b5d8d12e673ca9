"""What an index run would do, without doing it: `mmsearch index --dry-run`."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.indexers.pipeline import AnySource, token_roots
from mmsearch.indexers.readahead import decode_image, read_file
from mmsearch.indexers.tokens import tokenless, unchanged_files
from mmsearch.retrieval.types import ItemRef

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.store.local import LocalStore

_SAMPLE = 16


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """What a run would find, in files.

    Attributes:
        new, changed: would be read (moved and copied files count as new: telling them needs a read).
        unchanged: would be left alone.
        missing: would leave the index, unless their root looks unmounted.
        failed: failed before and would not be tried again without retry.
        tokens: pictures that were indexed before and would be read again for the tokens that they lack.
        bytes: to read.
        seconds: rough time, from timing a few of the files; None if the model is not here yet.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    missing: int = 0
    failed: int = 0
    tokens: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    seconds: float | None = None


def estimate_run(
    sources: Sequence[AnySource],
    store: LocalStore | None,
    encoder: Callable[[], Encoder | None],
    *,
    complete: bool = False,
    token_identity: str | None = None,
) -> RunEstimate:
    """Scans and compares, reads only a small sample of files, writes nothing.

    Args:
        sources: what would be indexed.
        store: the index, or None if there is none yet.
        encoder: the encoder that would be used, or None if it cannot be had without a download.
        complete: as `index_sources`.
        token_identity: as `index_sources`.
    """
    work: list[ItemRef] = []
    skipped: Counter[str] = Counter()
    new = changed = unchanged = missing = failed = 0
    for source in sources:
        if store is None:
            refs = list(source.scan())
            work += refs
            new += len(refs)
        else:
            diff = store.diff(source.root, source.scan(), scope=source.scope)
            work += diff.new + diff.changed
            new += len(diff.new)
            changed += len(diff.changed)
            unchanged += diff.unchanged
            missing += len(diff.missing)
            failed += len(diff.failed)
        skipped.update(source.skipped)
    again: list[ItemRef] = []
    if store is not None and token_identity is not None:
        again = _without_tokens(store, token_identity, token_roots(sources, complete=complete))
        work += again
    return RunEstimate(
        new=new,
        changed=changed,
        unchanged=unchanged,
        missing=missing,
        failed=failed,
        tokens=len(again),
        skipped=dict(sorted(skipped.items())),
        bytes=sum(ref.stamp.size for ref in work),
        seconds=_seconds(work, encoder) if work else 0.0,
    )


def _without_tokens(store: LocalStore, identity: str, roots: Collection[Path] | None) -> list[ItemRef]:
    """A file of each picture that lacks tokens and would get them."""
    if roots is not None and not roots:
        return []
    with store.snapshot() as snapshot:
        pictures = tokenless(snapshot, snapshot.without_tokens(identity).tolist(), roots)
        return [ref for picture in pictures for ref in list(unchanged_files(picture))[:1]]


def _seconds(work: Sequence[ItemRef], get_encoder: Callable[[], Encoder | None]) -> float | None:
    encoder = get_encoder()
    if encoder is None:
        return None
    total = 0.0
    for modality in ("image", "text"):
        refs = [ref for ref in work if ref.modality == modality]
        sample = refs[:: max(1, len(refs) // _SAMPLE)][:_SAMPLE]
        if sample:
            total += _time(sample, encoder) * len(refs) / len(sample)
    return round(total, 1)


def _time(sample: Sequence[ItemRef], encoder: Encoder) -> float:
    """Seconds that these files take: decoding spreads over the processors and overlaps with encoding."""
    start = time.perf_counter()
    files = [file for ref in sample if (file := read_file(ref, encoder.max_tokens)).error is None]
    arrays = [
        decoded.array
        for decoded in (decode_image(file, encoder) for file in files if file.ref.modality == "image")
        if decoded.array is not None
    ]
    texts = [chunk.text for file in files for chunk in file.chunks]
    decoded_at = time.perf_counter()
    if arrays:
        encoder.encode_images(arrays[:1])  # the first call of a model is slower than all others
        decoded_at, start = time.perf_counter(), start + time.perf_counter() - decoded_at
        encoder.encode_images(arrays)
    if texts:
        encoder.encode_texts(texts)
    encoding = time.perf_counter() - decoded_at
    return encoding + (decoded_at - start) / max(1, os.cpu_count() or 1)
