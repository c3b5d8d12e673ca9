"""Compressed image tokens as they are read: rows of 8-bit numbers in segment files, by embedding id.

A reranker looks at them; searches do not. They are derived: a file that is missing or damaged is passed over, and the
next index run makes its rows anew.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.errors import IndexCorrupt, IndexTooNew
from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.segments import Segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """What the catalog says of a file: its name, tokens of a picture, numbers of a token, pictures, size in bytes."""

    filename: str
    length: int
    width: int
    count: int
    bytes: int


def open_tokens(folder: Path, row: TokenRow, identity: str) -> Segment:
    """Maps a file of tokens and checks its header and size, not its checksum.

    Raises:
        FileNotFoundError: there is no such file.
        IndexCorrupt: it is not the file that the catalog names.
        IndexTooNew: a newer mmsearch wrote it.
    """
    segment = Segment(folder / row.filename)
    header = segment.header
    said = (header.get("space"), header.get("dtype"), header.get("identity"), header.get("shape"))
    if (*said, segment.count, header["bytes"], segment.dim) != (
        layout.TOKENS,
        "int8",
        identity,
        [row.length, row.width],
        row.count,
        row.bytes,
        row.length * row.width,
    ):
        raise IndexCorrupt(f"{segment.path} is not the file of tokens that the catalog names; {layout.RESTORE}")
    return segment


class TokenFiles:
    """The files of one kind of tokens, mapped. They stay readable after they are unlinked.

    Attributes:
        shape: tokens of a picture, and numbers of a token; (0, 0) where there is no file.
        missing: names of files that are not there.
        damaged: names of files that cannot be used.
    """

    def __init__(self, folder: Path, rows: Iterable[TokenRow], identity: str) -> None:
        self.shape = (0, 0)
        self.missing: list[str] = []
        self.damaged: list[str] = []
        self._segments: list[Segment] = []
        for row in rows:
            try:
                segment = open_tokens(folder, row, identity)
            except FileNotFoundError:
                self.missing.append(row.filename)
                continue
            except (OSError, IndexCorrupt, IndexTooNew) as error:
                _log.debug("%s", error)
                self.damaged.append(row.filename)
                continue
            shape = (row.length, row.width)
            if self._segments and shape != self.shape:
                self.damaged.append(row.filename)  # two shapes of one identity: the first is as good as any
                continue
            self.shape = shape
            self._segments.append(segment)

    def has(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some embedding ids have a row here; reads ids only."""
        held = [segment.ids for segment in self._segments]
        return np.isin(ids, np.concatenate(held)) if held else np.zeros(len(ids), dtype=bool)

    def take(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int8]]:
        """Which of some embedding ids have tokens, and these, int8 (n, length, width), zeros for the others."""
        here = np.zeros(len(ids), dtype=bool)
        rows = np.zeros((len(ids), self.shape[0] * self.shape[1]), np.int8)
        for segment in self._segments:
            at = segment.positions(ids)
            mine = (at >= 0) & ~here
            rows[mine] = segment.rows[at[mine]]
            here |= mine
        return here, rows.reshape(len(ids), *self.shape)
