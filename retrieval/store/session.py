"""What a writer holds while it is open: the lock of the index, the transaction, and the ids of roots."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mmsearch.retrieval.errors import IndexNotFound, IndexUnusable
from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.catalog import Catalog
from mmsearch.retrieval.store.lock import Lock
from mmsearch.retrieval.store.schema import CATALOG_ERRORS, reason

if TYPE_CHECKING:
    from sqlalchemy import RowMapping


class Session:
    """The right to change an index, from the moment it is made until `close`; see `writer.Writer`.

    Raises:
        IndexLocked: somebody else has it.
        IndexUnusable: the catalog cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock(path)
        try:
            self._catalog = Catalog(path)
        except CATALOG_ERRORS as error:
            self._lock.release()
            raise IndexUnusable(f"cannot open the index at {path} for writing: {reason(error)}") from error
        except BaseException:
            self._lock.release()
            raise
        self._open = True
        self._roots: dict[str, int] = {}  # paths as the caller writes them

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forgets what was not committed and gives the lock back. Idempotent."""
        if self._open:
            self._open = False
            try:
                self._catalog.close()
            finally:
                self._lock.release()

    def rollback(self) -> None:
        """Forgets everything since the last commit."""
        self._roots.clear()
        self._catalog.rollback()

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Turns what disks and databases raise into this library's errors, with nothing half-done left behind."""
        try:
            yield
        except (OSError, *CATALOG_ERRORS) as error:
            self._give_up()
            if not layout.is_index(self._path):
                raise IndexNotFound(f"the index at {self._path} was removed while it was written to") from error
            raise IndexUnusable(
                f"cannot write to the index at {self._path}: {reason(error)}; everything committed before is safe"
            ) from error
        except (KeyboardInterrupt, SystemExit):  # perhaps between two statements that belong together
            self._give_up()
            raise

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Like `_guard`, for what must happen as a whole: whatever is raised, nothing is left behind."""
        try:
            with self._guard():
                yield
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        with contextlib.suppress(*CATALOG_ERRORS):
            self.rollback()

    def _root_row(self, path: str) -> RowMapping | None:
        row = self._catalog.find_root(path)
        if row is not None:
            self._roots[path] = row["root_id"]
        return row

    def _root_id(self, root: str) -> int:
        if root not in self._roots and self._root_row(root) is None:
            raise ValueError(f"unknown root {root!r}: register it with Writer.root first")
        return self._roots[root]
