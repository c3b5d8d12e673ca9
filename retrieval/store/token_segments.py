"""Writing and merging the files of compressed image tokens, for the one writer.

Whatever is wrong with such a file, its row leaves the catalog: tokens are derived, and the next index run makes those
that are not there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmsearch.retrieval.errors import IndexCorrupt, IndexTooNew
from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.catalog import Catalog
from mmsearch.retrieval.store.publish import Part, all_worth, to_merge, unlink
from mmsearch.retrieval.store.segments import SegmentRows, live_rows, write_segment
from mmsearch.retrieval.store.tokens import TokenFiles, TokenRow, open_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

_ROWS = "SELECT * FROM tokens ORDER BY segment_id"
_INSERT = (
    "INSERT INTO tokens (segment_id, model_id, identity, filename, length, width, count, bytes, checksum, generation)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_LARGEST = 128.0  # of 8 bits, by size


class TokenKind(NamedTuple):
    """What the rows of one file have in common."""

    model_id: int
    identity: str
    length: int
    width: int


class TokenBatch(NamedTuple):
    """Tokens that one call gave: embedding ids (n), content keys (n, 32), int8 rows (n, length * width)."""

    ids: NDArray[np.int64]
    keys: NDArray[np.uint8]
    rows: NDArray[np.int8]


class TokenSegments:
    """The token files of an index. Nothing here commits but `merge` and `drop_others`."""

    def __init__(
        self,
        path: Path,
        catalog: Catalog,
        live_ids: Callable[[int], NDArray[np.int64]],
        *,
        steps: Callable[[str], None],
    ) -> None:
        """`live_ids` gives the embeddings of pictures of a model that are not dead."""
        self._folder = path / layout.SEGMENTS
        self._catalog = catalog
        self._live_ids = live_ids
        self._steps = steps
        self._last = 0  # no number is used twice, even where a commit failed in an unclear way

    def _rows(self) -> list[Mapping[str, Any]]:
        return [dict(row) for row in self._run(_ROWS).mappings()]

    def _run(self, statement: str, *parameters: object) -> Any:
        return self._catalog.connection.exec_driver_sql(statement, parameters)

    def _drop(self, filenames: Sequence[str]) -> None:
        for name in filenames:
            self._run("DELETE FROM tokens WHERE filename = ?", name)

    def drop_others(self, model_id: int, identity: str) -> int:
        """Lets go of the tokens of a model that are of another identity; returns how many files it was."""
        rows = [row for row in self._rows() if row["model_id"] == model_id and row["identity"] != identity]
        if not rows:
            self._catalog.rollback()  # ends the reading
            return 0
        names = [row["filename"] for row in rows]
        self._steps("tokens:catalog")
        self._drop(names)
        self._catalog.set_meta({"generation": str(int(self._catalog.meta()["generation"]) + 1)})
        self._steps("tokens:commit")
        self._catalog.commit()
        self._steps("tokens:unlink")
        for name in names:
            unlink(self._folder / name)
        self._steps("tokens:done")
        return len(names)

    def write(self, tokens: Mapping[TokenKind, Sequence[TokenBatch]], generation: int) -> None:
        """Writes one file of each kind, of what has no tokens yet, and its row in the catalog."""
        for kind, batches in tokens.items():
            ids, keys, rows = (np.concatenate(column) for column in zip(*batches, strict=True))
            _, first = np.unique(ids, return_index=True)  # ascending
            first = first[~self._held(kind).has(ids[first])]
            if first.size:
                self._write(kind, ids[first], keys[first], iter([rows[first]]), generation)

    def _held(self, kind: TokenKind) -> TokenFiles:
        """What is there of a kind; files that cannot be used leave the catalog."""
        mine = [row for row in self._rows() if (row["model_id"], row["identity"]) == kind[:2]]
        fitting = [_told(row) for row in mine if (row["length"], row["width"]) == kind[2:]]
        files = TokenFiles(self._folder, fitting, kind.identity)
        unfit = {str(row["filename"]) for row in mine} - {row.filename for row in fitting}
        self._drop([*files.missing, *files.damaged, *sorted(unfit)])
        return files

    def _write(
        self,
        kind: TokenKind,
        ids: NDArray[np.int64],
        keys: NDArray[np.uint8],
        blocks: Iterator[NDArray[Any]],
        generation: int,
    ) -> None:
        used = self._run("SELECT seq FROM sqlite_sequence WHERE name = 'tokens'").scalar()
        number = self._last = max(int(used or 0), self._last) + 1
        name = layout.segment_name(layout.TOKENS, number)
        dim = kind.length * kind.width
        file = write_segment(
            self._folder / name,
            SegmentRows(ids, keys, np.zeros(len(ids), np.int64), blocks, _LARGEST * dim**0.5),
            space=layout.TOKENS,
            dim=dim,
            dtype="int8",
            about={"identity": kind.identity, "shape": [kind.length, kind.width]},
            steps=self._steps,
        )
        self._run(
            _INSERT,
            *(number, kind.model_id, kind.identity, name, kind.length, kind.width),
            *(len(ids), file.size, file.checksum, generation),
        )

    def merge(self, *, all_segments: bool = False) -> int:
        """Merges small files (or all) of each kind without rows of dead embeddings; returns how many went in."""
        merged = 0
        by_kind: dict[TokenKind, list[Mapping[str, Any]]] = {}
        for row in self._rows():
            kind = TokenKind(*(row[name] for name in TokenKind._fields))
            by_kind.setdefault(kind, []).append(row)
        for kind, rows in by_kind.items():
            live = self._live_ids(kind.model_id)
            parts, lost = self._parts(rows, live)
            chosen = all_worth(parts) if all_segments else to_merge(parts)
            lost += [part.row["filename"] for part in chosen if part.segment.checksum() != part.row["checksum"]]
            merged += self._merge_some(kind, [part for part in chosen if part.row["filename"] not in lost], lost)
        self._catalog.rollback()  # ends the reading
        return merged

    def _parts(self, rows: Sequence[Mapping[str, Any]], live: NDArray[np.int64]) -> tuple[list[Part], list[str]]:
        """The files, and the names of those that cannot be used."""
        parts: list[Part] = []
        lost: list[str] = []
        for row in rows:
            try:
                segment = open_tokens(self._folder, _told(row), row["identity"])
            except (OSError, IndexCorrupt, IndexTooNew):
                lost.append(row["filename"])
            else:
                parts.append(Part(row, segment, np.flatnonzero(~np.isin(segment.ids, live))))
        return parts, lost

    def _merge_some(self, kind: TokenKind, parts: list[Part], lost: Sequence[str]) -> int:
        if not parts and not lost:
            return 0
        for name in lost:
            _log.warning("%s is damaged and was dropped; the next index run makes its tokens anew", self._folder / name)
        generation = int(self._catalog.meta()["generation"]) + 1
        self._steps("merge:segments")
        if any(part.live for part in parts):
            ids, keys, blocks = live_rows([part.segment for part in parts], [part.dead for part in parts])
            self._write(kind, ids, keys, blocks, generation)
        self._steps("merge:catalog")
        names = [*(part.row["filename"] for part in parts), *lost]
        self._drop(names)
        self._catalog.set_meta({"generation": str(generation)})
        self._steps("merge:commit")
        self._catalog.commit()
        self._steps("merge:unlink")
        for name in names:
            unlink(self._folder / name)
        self._steps("merge:done")
        return len(parts)


def _told(row: Mapping[str, Any]) -> TokenRow:
    return TokenRow(*(row[name] for name in ("filename", "length", "width", "count", "bytes")))
