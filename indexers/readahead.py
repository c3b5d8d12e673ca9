"""What the worker threads of an index run do: read a file once, and decode what was read.

Nothing here raises for a bad file: its reason travels back with it, because one bad file never ends a run.

Other programs write to the files meanwhile. What is hashed is a state that the file was in, and the stamp that is
kept is the stamp of that state: a scan's stamp is older than the read, and would let a change between the two pass
for ever. Writes that follow each other faster than the file system's clock ticks leave the same stamp, so a file is
not read before the tick of its last write is over, or else gets a stamp that makes the next run read it again (what
git's index calls a racy entry).
"""

from __future__ import annotations

import logging
import os
import stat
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO

from mmsearch.retrieval.errors import MMSearchError
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Stamp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.indexers.rowsources import RowRef
    from mmsearch.retrieval.encoders import Encoder

_log = logging.getLogger(__name__)

UNREADABLE = Stamp(size=-1, mtime_ns=0)
"""The stamp of a file that could not be read: no real file has it, so the next run tries again."""

_USUAL_SIZE = (224, 224)
_TRIES = 3
_TICK_NS = 20_000_000
"""Kernels stamp writes with the time of the last timer tick (1 to 10 ms ago), exFAT with hundredths of a second."""
_COARSE_TICK_NS = 2_000_000_000
"""FAT keeps every other second, HFS+ and ext3 whole ones: any stamp of a whole second may be one of theirs."""
_SECOND_NS = 1_000_000_000


class _BeingWritten(Exception):
    """A file was another one after each read than before it."""


class _NoFile(Exception):
    """What was a file when it was scanned is a pipe or a device now."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What becomes an item: a text, and what tells it from others of its file or row (None: nothing has to)."""

    text: str
    fragment: str | None


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file as it came off the disk.

    Attributes:
        ref: the file, with the stamp of what was read; `UNREADABLE` if nothing was.
        content: all bytes of an image; empty for a text, whose `chunks` are made at once.
        content_hash: of all bytes, or of all that a row says; empty if `error` is set.
        picture_key: hash of `content`; empty for a text.
        chunks: the pieces of a text, or of the texts of a row.
        error: why it could not be read, in one line, or None.
    """

    ref: ItemRef
    content: bytes = b""
    content_hash: bytes = b""
    picture_key: bytes = b""
    chunks: tuple[Chunk, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A picture ready for the encoder. `array` is None where only the metadata was wanted, or on error."""

    array: NDArray[Any] | None = None
    metadata: AssetMetadata = field(default_factory=AssetMetadata)
    error: str | None = None


def read_file(ref: ItemRef, max_tokens: int | None = None) -> ReadFile:
    """Reads and hashes a file; texts are also decoded and chunked (cheap, and it frees their bytes).

    Args:
        ref: what a scan found.
        max_tokens: the longest text that the encoder reads.
    """
    from mmsearch.indexers.chunks import chunk_chars, chunk_text
    from mmsearch.retrieval.media import content_hash, decode_text

    try:
        content, stamp = _read(ref.path)
    except (OSError, MemoryError, _BeingWritten, _NoFile) as error:
        return ReadFile(replace(ref, stamp=UNREADABLE), error=_reason(error))
    ref = replace(ref, stamp=stamp)
    key = content_hash(content)
    if ref.modality == "image":
        return ReadFile(ref, content=content, content_hash=key, picture_key=key)
    try:
        pieces = chunk_text(decode_text(content), max_chars=chunk_chars(max_tokens))
        chunks = tuple(Chunk(piece.text, piece.fragment) for piece in pieces)
    except Exception as error:
        return ReadFile(ref, error=_reason(error))
    if not chunks:
        return ReadFile(ref, error="there is no text in it")
    return ReadFile(ref, content_hash=key, chunks=chunks)


def read_row(ref: RowRef, max_tokens: int | None = None) -> ReadFile:
    """What `read_file` gives, of a row: its texts, and the picture if it has the bytes of one."""
    from mmsearch.indexers.chunks import chunk_chars, chunk_text
    from mmsearch.retrieval.media import content_hash

    if ref.row is None:
        return ReadFile(ref, error=ref.error or "the row says nothing")
    chunks: list[Chunk] = []
    for number, text in enumerate(ref.row.texts, 1):
        pieces = chunk_text(text, max_chars=chunk_chars(max_tokens))
        for piece in pieces:
            parts = [f"text={number}"] if len(ref.row.texts) > 1 else []
            parts += [piece.fragment] if len(pieces) > 1 else []
            chunks.append(Chunk(piece.text, "&".join(parts) or None))
    content = ref.row.image if isinstance(ref.row.image, bytes) else b""
    key = content_hash(content) if content else b""
    return ReadFile(ref, content=content, content_hash=ref.row.digest, picture_key=key, chunks=tuple(chunks))


def _read(path: str) -> tuple[bytes, Stamp]:
    """All bytes of a file as they were at one time, and the stamp to remember them by."""
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        for _ in range(_TRIES):
            before, settled = _settled(file)
            content = _content(file, before.st_size)
            if _version(os.fstat(file.fileno())) == _version(before) and len(content) == before.st_size:
                stamp = Stamp.of(before)
                return content, stamp if settled else Stamp(UNREADABLE.size, stamp.mtime_ns)
    raise _BeingWritten


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file without waiting for a writer, where a pipe has taken its place."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # `open` refuses folders by itself
        return descriptor
    os.close(descriptor)
    raise _NoFile


def _settled(file: BinaryIO) -> tuple[os.stat_result, bool]:
    """The state of a file, and whether every later write will leave another stamp; waits a tick for that."""
    state = os.fstat(file.fileno())
    wait = _unsettled_ns(state.st_mtime_ns)
    if 0 < wait <= 2 * _TICK_NS:
        time.sleep(wait / _SECOND_NS)
        state = os.fstat(file.fileno())
        wait = _unsettled_ns(state.st_mtime_ns)
    return state, wait <= 0


def _unsettled_ns(mtime_ns: int) -> int:
    """How long a write may still leave this time as its own; 0 or less if none can any more.

    Times that are far ahead of the clock are no times of writing.
    """
    tick = _TICK_NS if mtime_ns % _SECOND_NS else _COARSE_TICK_NS
    wait = mtime_ns + tick - time.time_ns()
    return wait if wait <= 2 * tick else 0


def _content(file: BinaryIO, size: int) -> bytes:
    """The bytes of a file from its start; one more than `size` at most, so that a log that grows has an end."""
    file.seek(0)
    parts: list[bytes] = []
    left = size + 1
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _version(state: os.stat_result) -> tuple[int, int, int]:
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


def decode_image(file: ReadFile, encoder: Encoder | None) -> DecodedImage:
    """Decodes and preprocesses what `read_file` has read; without an encoder only its metadata are wanted."""
    from mmsearch.retrieval.media import load_image

    try:
        loaded = load_image(file.content, target=_USUAL_SIZE if encoder is None else encoder.image_size)
        array = None if encoder is None else encoder.preprocess(loaded.image)
    except Exception as error:
        return DecodedImage(error=_reason(error))
    return DecodedImage(array, loaded.metadata)


def _reason(error: Exception) -> str:
    """One line that a person can act on."""
    if isinstance(error, _BeingWritten):
        return "it is being written to; the next run tries again"
    if isinstance(error, (_NoFile, IsADirectoryError)):
        return "it is no file any more"
    if isinstance(error, MemoryError):
        return "not enough memory to read it"
    if isinstance(error, FileNotFoundError):
        return "it vanished before it could be read"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    if isinstance(error, MMSearchError):
        return " ".join(str(error).split())
    _log.debug("unexpected error while reading a file", exc_info=error)
    return " ".join(f"{type(error).__name__}: {error}".split())
