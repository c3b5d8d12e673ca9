"""Small pictures of hits, for what is shown: upright, colour-correct, in bounded memory."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mmsearch.retrieval.errors import MediaError

if TYPE_CHECKING:
    from PIL import Image

    from mmsearch.retrieval.types import Hit

_MOST_BYTES = 512 * 2**20
"""Larger files are not read for the sake of a thumbnail."""


def picture_path(hit: Hit) -> Path | None:
    """The picture that a hit is or belongs to; None for plain texts and for what is no file here."""
    from mmsearch.retrieval.media import IMAGE_EXTENSIONS

    if hit.path is None or hit.modality == "image" or hit.path.suffix.lower() in IMAGE_EXTENSIONS:
        return hit.path
    if hit.path.suffix.lower() != ".txt":
        return None
    beside = (f"{hit.path.stem}{written}" for known in IMAGE_EXTENSIONS for written in (known, known.upper()))
    return next((path for name in sorted(beside) if os.path.exists(path := hit.path.with_name(name))), None)


def small_picture(path: Path, edge: int) -> Image.Image:
    """A picture file as RGB pixels, at most `edge` wide and high.

    Raises:
        MediaError: it cannot be read; the message is one line without the path.
    """
    from mmsearch.retrieval.media import load_image

    try:
        with open_regular(path) as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise MediaError(gone_or_why(error)) from error
    if len(content) > _MOST_BYTES:
        raise MediaError("the file is too large to show")
    image = load_image(content, target=(edge, edge)).image
    image.thumbnail((edge, edge))
    return image


def open_regular(path: Path) -> BinaryIO:
    """Opens a file to be read, and nothing else: a pipe that has taken its place would wait for a writer.

    Raises:
        OSError: as `open`, and for what is no file.
    """
    return open(path, "rb", opener=_open_at_once)


def gone_or_why(error: OSError) -> str:
    """Why a file could not be read or written, in a few words."""
    return "the file is gone" if isinstance(error, FileNotFoundError) else error.strerror or str(error)


def _open_at_once(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(0, "not a file")
