"""What `Index.add` is given and gives back: paths told from items, items in batches, reports of several runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.types import Report

if TYPE_CHECKING:
    from mmsearch.indexers.rows import BadRow, Item, Row

_ROWS_AT_A_TIME = 4096
_BYTES_AT_A_TIME = 64 * 2**20


def sorted_out(
    sources: Sequence[str | os.PathLike[str] | Iterable[Item | Mapping[str, object]]],
) -> tuple[list[str], list[Iterable[Item | Mapping[str, object]]]]:
    """Paths, and collections of items."""
    paths: list[str] = []
    collections: list[Iterable[Item | Mapping[str, object]]] = []
    for source in sources:
        if isinstance(source, str | os.PathLike):
            paths.append(os.fspath(source))
        elif hasattr(source, "__iter__") and not isinstance(source, bytes | Mapping):
            collections.append(source)
        else:
            raise UsageError(f"{type(source).__name__} is neither a path nor a list of items: add([Item(...), ...])")
    return paths, collections


def batches(items: Iterable[Item | Mapping[str, object]]) -> Iterator[list[Row | BadRow]]:
    """Rows of items, so many at a time that their pictures fit into memory."""
    from mmsearch.indexers.rows import Row, rows_of

    batch: list[Row | BadRow] = []
    size = 0
    for row in rows_of(items, Path.cwd()):
        batch.append(row)
        size += len(row.image) if isinstance(row, Row) and isinstance(row.image, bytes) else 0
        if len(batch) >= _ROWS_AT_A_TIME or size >= _BYTES_AT_A_TIME:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def joined(reports: Sequence[Report]) -> Report:
    """One report of several runs, one after the other."""
    if len(reports) == 1:
        return reports[0]
    skipped: dict[str, int] = {}
    for report in reports:
        for kind, count in report.skipped.items():
            skipped[kind] = skipped.get(kind, 0) + count
    counted = ("added", "updated", "moved", "copied", "removed", "unchanged", "kept", "tokens", "seconds")
    return Report(
        **{name: sum(getattr(report, name) for report in reports) for name in counted},
        skipped=skipped,
        failed=tuple(failure for report in reports for failure in report.failed),
        items=max((report.items for report in reports[-1:]), default=0),
        model=next((report.model for report in reversed(reports) if report.model), ""),
        interrupted=any(report.interrupted for report in reports),
    )
