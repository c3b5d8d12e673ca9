"""What the worker threads of an index run do: read a file once, and decode what was read.

Nothing here raises for a bad file: its reason travels back with it, because one bad file never ends a run.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mmsearch.retrieval.errors import MMSearchError
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Stamp, TextChunk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder

_log = logging.getLogger(__name__)

UNREADABLE = Stamp(size=-1, mtime_ns=0)
"""The stamp of a file that could not be opened: no real file has it, so the next run tries again."""


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file as it came off the disk.

    Attributes:
        content: all bytes of an image; empty for a text, whose `chunks` are made at once.
        content_hash: of all bytes; empty if `error` is set.
        chunks: the pieces of a text.
        error: why it could not be read, in one line, or None.
    """

    ref: ItemRef
    content: bytes = b""
    content_hash: bytes = b""
    chunks: tuple[TextChunk, ...] = ()
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
        with open(ref.path, "rb") as file:
            content = file.read()
    except OSError as error:
        return ReadFile(replace(ref, stamp=UNREADABLE), error=_reason(error))
    key = content_hash(content)
    if ref.modality == "image":
        return ReadFile(ref, content=content, content_hash=key)
    try:
        chunks = tuple(chunk_text(decode_text(content), max_chars=chunk_chars(max_tokens)))
    except Exception as error:
        return ReadFile(ref, error=_reason(error))
    if not chunks:
        return ReadFile(ref, error="there is no text in it")
    return ReadFile(ref, content_hash=key, chunks=chunks)


def decode_image(file: ReadFile, encoder: Encoder, *, metadata_only: bool = False) -> DecodedImage:
    """Decodes and preprocesses what `read_file` has read."""
    from mmsearch.retrieval.media import load_image

    try:
        loaded = load_image(file.content, target=encoder.image_size)
        array = None if metadata_only else encoder.preprocess(loaded.image)
    except Exception as error:
        return DecodedImage(error=_reason(error))
    return DecodedImage(array, loaded.metadata)


def _reason(error: Exception) -> str:
    """One line that a person can act on."""
    if isinstance(error, FileNotFoundError):
        return "it vanished before it could be read"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    if isinstance(error, MMSearchError):
        return " ".join(str(error).split())
    _log.debug("unexpected error while reading a file", exc_info=error)
    return " ".join(f"{type(error).__name__}: {error}".split())
