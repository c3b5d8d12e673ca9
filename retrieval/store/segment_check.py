"""A look at every byte of a segment file, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmsearch.retrieval.errors import IndexCorrupt, IndexTooNew
from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.quiet import READ_ERRORS
from mmsearch.retrieval.store.segments import Segment

Progress = Callable[[int, int], None]
"""Told how many bytes of how many were read; from another thread than the caller's."""

_ROUNDING = 1 + 1e-5


class SegmentCheck(NamedTuple):
    """What a look at a segment file found; `kind` and `message` are None for a sound one."""

    name: str
    segment: Segment | None
    checksum: bytes
    size: int
    kind: str | None = None
    message: str = ""


class Reading:
    """Reads segments in a thread; none twice."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor, progress: Progress, on_disk: list[str]) -> None:
        self._folder = folder
        self._pool = pool
        self._progress = progress
        self._checks: dict[str, Future[SegmentCheck]] = {}
        self._done = 0
        self._total = sum(size_of(self._folder / name) for name in on_disk if name.endswith(".seg"))

    def start(self, name: str, expected: Mapping[str, Any] | None = None) -> None:
        """Has a file read, and compared with its row of the catalog; one that is being read already is not again."""
        if name not in self._checks:
            self._checks[name] = self._pool.submit(check_segment, self._folder / name, expected, self._told)

    def results(self) -> Iterator[SegmentCheck]:
        """What was found, in the order of `start`; waits for it."""
        for future in self._checks.values():
            yield future.result()

    def _told(self, size: int) -> None:
        self._done += size
        self._progress(min(self._done, self._total), self._total)


def size_of(path: Path) -> int:
    """Size of a file in bytes; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def check_segment(path: Path, expected: Mapping[str, Any] | None, told: Callable[[int], None]) -> SegmentCheck:
    """Reads a whole segment; `expected` is its row of the catalog with the `identity` of its model, where known."""
    size = size_of(path)

    def bad(kind: str, message: str, checksum: bytes = b"") -> SegmentCheck:
        return SegmentCheck(path.name, None, checksum, size, kind, message)

    try:
        segment = Segment(path)
    except FileNotFoundError:
        return bad("segment-missing", "it is missing")
    except IndexTooNew:
        if expected is None or expected["bytes"] == size:
            return bad("segment-damaged", "its header has the number of a newer format")
        return bad("segment-damaged", f"it has {size} bytes instead of {expected['bytes']}")
    except (OSError, IndexCorrupt, *READ_ERRORS) as error:
        cause = error.__cause__ or error
        return bad("segment-damaged", f"it cannot be read ({getattr(cause, 'strerror', None) or _short(cause, path)})")
    try:
        checksum, longest = segment.scan(told)
        ascending = bool((np.diff(segment.ids) > 0).all())
        longest_allowed = _ROUNDING * float(segment.max_norm)
    except READ_ERRORS as error:
        return bad("segment-damaged", f"its header is damaged ({error})")
    if expected is not None and checksum != expected["checksum"]:
        return bad("segment-checksum", "its bytes are not those that were written (checksum)", checksum)
    if not (longest <= longest_allowed):
        return bad("segment-vectors", "it has vectors that are not finite or longer than it says", checksum)
    spaces = (layout.TOKENS,) if layout.is_token_name(path.name) else ("image", "text")
    if not ascending or segment.header.get("space") not in spaces:
        return bad("segment-damaged", "its header or its order of rows is damaged", checksum)
    return SegmentCheck(path.name, segment, checksum, size)


def _short(error: BaseException, path: Path) -> str:
    return str(error).replace(f"{path} ", "").partition(";")[0]
