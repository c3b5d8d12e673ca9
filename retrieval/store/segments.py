"""Segment files: immutable blocks of vectors, written once, memory-mapped, searched exactly.

docs/storage.md describes the bytes. The last section of a file is what `faiss.serialize_index` writes for a flat
inner-product index, so FAISS opens it as it is; its tail are the raw rows, so numpy maps them without a copy.
Writing needs no FAISS: the few header bytes are packed here, and a test holds them equal to FAISS's own. Rows of
8 bits, which are tokens and are not searched, have no such block.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmsearch.retrieval.errors import IndexCorrupt, IndexTooNew
from mmsearch.retrieval.store.layout import RESTORE, sync_file, sync_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

DType = Literal["float32", "float16"]
RowType = Literal["float32", "float16", "int8"]

SEGMENT_VERSION = 1
MAGIC = b"MMSEG"
HEADER_BYTES = 4096
ABOUT_BYTES = 3328
"""What a header has room for beside the numbers, in bytes of JSON."""
KEY_BYTES = 32

_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "int8": np.dtype("i1")}
_ALIGN = 64
_BLOCK_ROWS = 16_384
_SCAN_BYTES = 2**20
_QUERY_ROWS = 256
# From this size on, FAISS reads a float16 segment faster than numpy converts it; below, importing FAISS
# costs more than it saves. Measured: DESIGN 9 (SQfp16 flat against numpy at 1 M x 512).
_FAISS_ROWS = 250_000
_SPARE = 16
_POSITION_BITS = 40


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """What the catalog records of a finished file: its size and the blake2b (32 bytes) of all its bytes."""

    size: int
    checksum: bytes


@dataclass(frozen=True, slots=True)
class SegmentRows:
    """The rows of a segment to be written, ascending by embedding id.

    Attributes:
        ids: embedding ids, int64 (n).
        keys: content keys, uint8 (n, 32).
        item_ids: smallest item id of each embedding, int64 (n); 0 for none.
        blocks: arrays (m, dim) that make up all n rows in order.
        max_norm: no row is longer than this.
    """

    ids: NDArray[np.int64]
    keys: NDArray[np.uint8]
    item_ids: NDArray[np.int64]
    blocks: Iterable[NDArray[Any]]
    max_norm: float


def write_segment(
    path: Path,
    rows: SegmentRows,
    *,
    space: str,
    dim: int,
    dtype: RowType,
    about: Mapping[str, Any],
    steps: Callable[[str], None],
) -> SegmentFile:
    """Writes a segment so that after a crash the file is whole under `path`, or not there at all.

    Temporary name, fsync, rename, fsync of the folder. `steps` is told the name of each step before it happens;
    `about` goes into the header: the `identity` of the encoder, and what helps to rebuild a lost catalog.
    """
    header = {**_plan(len(rows.ids), space=space, dim=dim, dtype=dtype, max_norm=rows.max_norm), **about}
    temporary = path.with_name(path.name + ".tmp")
    digest = hashlib.blake2b(digest_size=32)
    written = 0
    steps("segment:create")
    with open(os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:

        def put(data: bytes | memoryview) -> None:
            nonlocal written
            digest.update(data)
            written += file.write(data)

        def pad(offset: int) -> None:
            put(bytes(offset - written))

        head = MAGIC + json.dumps(header).encode()
        if len(head) >= HEADER_BYTES:
            raise ValueError("the encoder identity is too long for a segment header")
        put(head.ljust(HEADER_BYTES - 1) + b"\n")
        steps("segment:rows")
        for name, array in (("ids", rows.ids), ("keys", rows.keys), ("item_ids", rows.item_ids)):
            pad(header[f"{name}_offset"])
            put(_bytes_of(array))
        if "faiss_offset" in header:
            pad(header["faiss_offset"])
            put(_faiss_header(len(rows.ids), dim, dtype))
        pad(header["vectors_offset"])
        for block in rows.blocks:
            put(_bytes_of(np.asarray(block, dtype=_DTYPES[dtype])))
        if written != header["bytes"]:
            raise ValueError(f"{path.name}: {written} bytes written, {header['bytes']} planned")
        steps("segment:fsync")
        file.flush()
        sync_file(file.fileno())
    steps("segment:rename")
    os.replace(temporary, path)
    steps("segment:folder-fsync")
    sync_folder(path.parent)
    return SegmentFile(written, digest.digest())


def _bytes_of(array: NDArray[Any]) -> bytes | memoryview:
    return np.ascontiguousarray(array).data.cast("B") if array.size else b""  # an empty view cannot be cast


def _plan(count: int, *, space: str, dim: int, dtype: str, max_norm: float) -> dict[str, Any]:
    """The header: every section starts at a multiple of 64, the FAISS block, if any, so that its rows do."""
    keys = _aligned(HEADER_BYTES + 8 * count)
    item_ids = _aligned(keys + KEY_BYTES * count)
    prefix = 0 if dtype == "int8" else len(_faiss_header(count, dim, dtype))
    vectors = _aligned(item_ids + 8 * count + prefix)
    return {
        "version": SEGMENT_VERSION,
        "space": space,
        "dtype": dtype,
        "dim": dim,
        "count": count,
        "ids_offset": HEADER_BYTES,
        "keys_offset": keys,
        "item_ids_offset": item_ids,
        **({"faiss_offset": vectors - prefix} if prefix else {}),
        "vectors_offset": vectors,
        "bytes": vectors + count * dim * _DTYPES[dtype].itemsize,
        "max_norm": max_norm,
    }


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN


def _faiss_header(count: int, dim: int, dtype: str) -> bytes:
    """What faiss.serialize_index puts before the rows of IndexFlatIP and of an fp16 IndexScalarQuantizer.

    After faiss/impl/index_write.cpp: fourcc, d, ntotal, two unused numbers, is_trained, metric (0 = inner
    product); for the quantizer its type (4 = QT_fp16), range statistic, d, code size and no trained values; then
    the length of the code vector, which flat indexes count in floats and quantizers in bytes.
    """
    fourcc = b"IxFI" if dtype == "float32" else b"IxSQ"
    common = fourcc + struct.pack("<iqqq?i", dim, count, 1 << 20, 1 << 20, True, 0)
    if dtype == "float32":
        return common + struct.pack("<Q", count * dim)
    return common + struct.pack("<iifQQQ", 4, 0, 0.0, dim, 2 * dim, 0) + struct.pack("<Q", 2 * count * dim)


class Segment:
    """An open segment: numpy views of a memory-mapped file. Stays readable after the file is unlinked.

    Attributes:
        ids: embedding ids, ascending, int64 (n).
        keys: content keys, uint8 (n, 32).
        item_ids: smallest item id of each embedding when the file was written, int64 (n).
        rows: the vectors, float32 or float16 (n, dim), or tokens, int8; read-only.
        max_norm: no row is longer than this.
    """

    def __init__(self, path: Path) -> None:
        """Maps `path` and checks its header and size, not its checksum.

        Raises:
            FileNotFoundError: there is no such file.
            IndexCorrupt: the file is not a whole segment.
            IndexTooNew: a newer mmsearch wrote it.
        """
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < HEADER_BYTES:
                raise IndexCorrupt(f"{path} is cut short ({size} bytes); {RESTORE}")
            self._map = _mapped(file.fileno())
        self.path = path
        self._faiss: Any = None
        try:
            self._read(size)
        except (KeyError, TypeError, ValueError) as error:
            raise IndexCorrupt(f"{path} is not a segment file, or its header is damaged; {RESTORE}") from error

    def _read(self, size: int) -> None:
        if self._map[: len(MAGIC)] != MAGIC:
            raise ValueError("wrong magic")
        self.header: dict[str, Any] = json.loads(self._map[len(MAGIC) : HEADER_BYTES])
        if self.header["version"] > SEGMENT_VERSION:
            raise IndexTooNew(f"{self.path} was written by a newer mmsearch; upgrade: pip install -U mmsearch")
        if size != self.header["bytes"]:
            raise IndexCorrupt(f"{self.path} has {size} bytes instead of {self.header['bytes']}; {RESTORE}")
        self.dim: int = self.header["dim"]
        self.count: int = self.header["count"]
        self.max_norm: float = self.header["max_norm"]
        count = self.count
        self.ids = self._view(np.dtype("<i8"), "ids_offset", count)
        self.keys = self._view(np.dtype("u1"), "keys_offset", count * KEY_BYTES).reshape(count, KEY_BYTES)
        self.item_ids = self._view(np.dtype("<i8"), "item_ids_offset", count)
        dtype = _DTYPES[self.header["dtype"]]
        self.rows = self._view(dtype, "vectors_offset", count * self.dim).reshape(count, self.dim)

    def _view(self, dtype: np.dtype[Any], offset: str, count: int) -> NDArray[Any]:
        return np.frombuffer(self._map, dtype, count, self.header[offset])

    def prefetch(self) -> None:
        """Asks for the whole file ahead of a scan: faulting it in page by page is four times slower."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_WILLNEED)

    def positions(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of each embedding id, -1 for those that this segment does not hold."""
        at = np.searchsorted(self.ids, ids)
        at[at == self.count] = 0
        found = self.ids[at] == ids if self.count else np.zeros(len(ids), dtype=bool)
        return np.where(found, at, -1)

    def checksum(self) -> bytes:
        """blake2b (32 bytes) of the whole file, as the catalog records it."""
        return hashlib.blake2b(self._map, digest_size=32).digest()

    def scan(self, told: Callable[[int], None] = lambda size: None) -> tuple[bytes, float]:
        """Reads every byte once: the checksum, and the length of the longest row (NaN: one is not finite).

        `told` is given the number of bytes behind it, a block at a time.
        """
        digest = hashlib.blake2b(digest_size=32)
        start, width = self.header["vectors_offset"], self.dim * self.rows.itemsize
        with memoryview(self._map) as bytes_:
            digest.update(bytes_[:start])
            told(start)
            longest = np.float32(0)
            step = max(1, _SCAN_BYTES // max(1, width))
            with np.errstate(over="ignore", invalid="ignore"):
                for first in range(0, self.count, step):
                    block = self.rows[first : first + step]
                    digest.update(_bytes_of(block))
                    block = block.astype(np.float32, copy=False)
                    longest = np.maximum(longest, np.einsum("ij,ij->i", block, block).max())  # keeps a NaN
                    told(len(block) * width)
            digest.update(bytes_[start + self.count * width :])
        return digest.digest(), float(np.sqrt(longest)) if np.isfinite(longest) else float("nan")

    def faiss_index(self) -> Any:
        """The FAISS block as an index over the mapped bytes, or None where this FAISS cannot do that."""
        if self._faiss is None:
            try:
                import faiss  # at most one of faiss and torch in a process: together they crash on macOS

                zero_copy = getattr(faiss, "ZeroCopyIOReader", None)  # since FAISS 1.11
            except ImportError:
                zero_copy = None
            if zero_copy is None:
                self._faiss = (None,)
            else:
                block = np.frombuffer(self._map, np.uint8, offset=self.header["faiss_offset"])
                reader = zero_copy(faiss.swig_ptr(block), block.size)
                self._faiss = (faiss.read_index(reader), reader, block)  # the index points into the block
        return self._faiss[0]


def _mapped(descriptor: int) -> mmap.mmap:
    """The file in memory, holding no descriptor where Python can do that: a snapshot maps every segment."""
    if sys.version_info >= (3, 13) and sys.platform != "win32":
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ, trackfd=False)
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)


def live_rows(
    segments: Sequence[Segment], dead: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.uint8], Iterator[NDArray[Any]]]:
    """The rows of several segments without the dead ones, ascending by embedding id, for a merge.

    Args:
        segments: where the rows are.
        dead: for each segment, positions to leave out.

    Returns:
        Embedding ids, content keys, and an iterator over blocks of vectors; no more than one block is in memory.
    """
    kept = [np.delete(np.arange(segment.count), gone) for segment, gone in zip(segments, dead, strict=True)]
    ids = np.concatenate([segment.ids[at] for segment, at in zip(segments, kept, strict=True)])
    source = np.concatenate([np.full(len(at), number) for number, at in enumerate(kept)])
    position = np.concatenate(kept)
    order = np.argsort(ids, kind="stable")
    keys = np.concatenate([segment.keys[at] for segment, at in zip(segments, kept, strict=True)])[order]

    def blocks() -> Iterator[NDArray[Any]]:
        for start in range(0, len(order), _BLOCK_ROWS):
            part = order[start : start + _BLOCK_ROWS]
            block = np.empty((len(part), segments[0].dim), segments[0].rows.dtype)
            for number in np.unique(source[part]):
                mine = source[part] == number
                block[mine] = segments[number].rows[position[part][mine]]
            yield block

    return ids[order], keys, blocks()


class _Best:
    """The best rows of one query so far: all that can still be among its k best, rounding considered."""

    def __init__(self, k: int, margin: float) -> None:
        self._k = k
        self._margin = margin
        self._floor = np.float32(np.finfo(np.float32).min)  # above -inf, which marks dead rows
        self._scores: NDArray[np.float32] = np.empty(0, np.float32)
        self.codes: NDArray[np.int64] = np.empty(0, np.int64)

    def offer(self, scores: NDArray[np.float32], first_code: int, at: NDArray[np.int64] | None = None) -> None:
        good = np.flatnonzero(scores >= self._floor)
        if not good.size:
            return
        codes = (good if at is None else at[good]) + first_code
        self._scores = np.concatenate([self._scores, scores[good]])
        self.codes = np.concatenate([self.codes, codes])
        if self._scores.size > self._k:
            kth = np.partition(self._scores, -self._k)[-self._k]
            self._floor = max(self._floor, np.float32(kth - self._margin))
            keep = self._scores >= self._floor
            self._scores, self.codes = self._scores[keep], self.codes[keep]


def search_rows(
    segments: Sequence[Segment], dead: Sequence[NDArray[np.int64]], queries: NDArray[np.float32], k: int
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Exact inner-product search over several segments.

    A first pass in float32 keeps every row that could be among the k best within the rounding error of any order
    of summation; those are scored again in float64, each row by itself. So equal rows have equal scores, and a
    score does not depend on segments, batches or the library that did the first pass.

    Args:
        segments: of one space.
        dead: for each segment, positions that must not be found.
        queries: float32 (q, dim), finite.
        k: at least 1.

    Returns:
        For each query the embedding ids and scores of its k best rows, unordered, with everything that ties with
        the last; fewer than k only if there are fewer.
    """
    found: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    for segment in segments:
        segment.prefetch()
    for start in range(0, len(queries), _QUERY_ROWS):
        part = queries[start : start + _QUERY_ROWS]
        norms = np.linalg.norm(part, axis=1)
        # |float32 dot - exact| <= dim * 2^-24 * |x| |q| whatever the order of summation; twice, for two rows.
        longest = max((segment.max_norm for segment in segments), default=0.0)
        margins = 2.2 * part.shape[1] * 2.0**-24 * longest * norms
        best = [_Best(k, float(margin)) for margin in margins]
        for number, segment in enumerate(segments):
            _scan(segment, number << _POSITION_BITS, dead[number], part, k, margins, best)
        found += [_exact(segments, query, one.codes, k) for query, one in zip(part, best, strict=True)]
    return found


def search_some(
    segments: Sequence[Segment], ids: NDArray[np.int64], query: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Like `search_rows` for one query, over the rows of these embedding ids only."""
    longest = max((segment.max_norm for segment in segments), default=0.0)
    best = _Best(k, 2.2 * len(query) * 2.0**-24 * longest * float(np.linalg.norm(query)))
    for number, segment in enumerate(segments):
        at = segment.positions(ids)
        at = at[at >= 0]
        at.sort()
        for start in range(0, len(at), _BLOCK_ROWS):
            some = at[start : start + _BLOCK_ROWS]
            best.offer(segment.rows[some].astype(np.float32, copy=False) @ query, number << _POSITION_BITS, some)
    return _exact(segments, query, best.codes, k)


def _scan(
    segment: Segment,
    first_code: int,
    dead: NDArray[np.int64],
    queries: NDArray[np.float32],
    k: int,
    margins: NDArray[np.floating[Any]],
    best: Sequence[_Best],
) -> None:
    todo = list(range(len(queries)))
    if segment.rows.dtype == np.float16 and segment.count >= _FAISS_ROWS and "torch" not in sys.modules:
        todo = _scan_with_faiss(segment, first_code, dead, queries, k, margins, best)
    if not todo:
        return
    rest = queries[todo] if len(todo) < len(queries) else queries
    for start in range(0, segment.count, _BLOCK_ROWS):
        rows = segment.rows[start : start + _BLOCK_ROWS].astype(np.float32, copy=False)
        scores = rest @ rows.T
        gone = dead[(dead >= start) & (dead < start + len(rows))] - start
        scores[:, gone] = -np.inf
        for line, query in enumerate(todo):
            best[query].offer(scores[line], first_code + start)


def _scan_with_faiss(
    segment: Segment,
    first_code: int,
    dead: NDArray[np.int64],
    queries: NDArray[np.float32],
    k: int,
    margins: NDArray[np.floating[Any]],
    best: Sequence[_Best],
) -> list[int]:
    """First pass by FAISS; returns the queries whose ties at the end it could not show, for numpy to do."""
    everyone = list(range(len(queries)))
    depth = k + len(dead) + _SPARE
    index = segment.faiss_index() if depth < segment.count // 10 else None
    if index is None:
        return everyone
    scores, at = index.search(queries, depth)
    unsure = []
    for query in everyone:
        mine, rows, last = scores[query], at[query], scores[query][-1]
        mine[np.isin(rows, dead) | (rows < 0)] = -np.inf
        alive = np.sort(mine[np.isfinite(mine)])[::-1]
        if len(alive) >= k and last < alive[k - 1] - margins[query]:
            best[query].offer(mine, first_code, rows)
        else:
            unsure.append(query)
    return unsure


def _exact(
    segments: Sequence[Segment], query: NDArray[np.float32], codes: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    numbers, positions = codes >> _POSITION_BITS, codes & ((1 << _POSITION_BITS) - 1)
    ids = np.empty(len(codes), np.int64)
    scores = np.empty(len(codes), np.float64)
    wide = query.astype(np.float64)
    for number in np.unique(numbers):
        segment, where = segments[number], np.flatnonzero(numbers == number)
        for start in range(0, len(where), _BLOCK_ROWS):
            some = where[start : start + _BLOCK_ROWS]
            ids[some] = segment.ids[positions[some]]
            scores[some] = (segment.rows[positions[some]].astype(np.float64) * wide).sum(axis=1)
    if len(scores) > k:
        keep = scores >= np.partition(scores, -k)[-k]
        ids, scores = ids[keep], scores[keep]
    return ids, scores
