"""An index in a folder of this machine: opening, making and checking one. Writing is `store.writer`'s."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.retrieval.errors import IndexCorrupt, IndexUnusable, ModelMismatch
from mmsearch.retrieval.store import layout, reader
from mmsearch.retrieval.store.diff import diff
from mmsearch.retrieval.store.lock import Lock
from mmsearch.retrieval.store.records import Diff, Model
from mmsearch.retrieval.store.segments import DType
from mmsearch.retrieval.types import IndexInfo, ItemRef, Root

if TYPE_CHECKING:
    from mmsearch.retrieval.store.writer import Writer

Steps = Callable[[str], None]
"""Told the name of each step of a write just before it happens; tests kill the process there."""


def _no_steps(name: str) -> None:
    pass


def upgrade(path: Path, steps: Steps = _no_steps) -> None:
    """Migrates an index of an old format, under its lock.

    Raises:
        IndexUnusable: the disk is full or cannot be written to; the index stays as it was.
    """
    from mmsearch.retrieval.store import migrations
    from mmsearch.retrieval.store.schema import CATALOG_ERRORS, reason

    lock = Lock(path)
    try:
        migrations.migrate(path, steps)
    except (OSError, *CATALOG_ERRORS) as error:
        raise IndexUnusable(
            f"cannot bring the index at {path} to format {layout.FORMAT_VERSION}: {reason(error)}; it is as it was"
        ) from error
    finally:
        lock.release()


class LocalStore:
    """An index folder. It holds no file open and no lock: `writer` and `snapshot` do.

    Attributes:
        path: the index folder, absolute.
        model: the name that the user gave the encoder.
        identity, dim: of that encoder.
        dtype: of the vectors that will be written.
        max_tokens: longest text of that encoder; None where the index does not say.
    """

    def __init__(self, path: Path, model: Model, meta: dict[str, str], steps: Steps) -> None:
        """Use `open` or `create`."""
        self.path = path
        self.model, self.identity, self.dim, self.max_tokens = model.name, model.identity, model.dim, model.max_tokens
        self.dtype: DType = "float16" if meta.get("dtype") == "float16" else "float32"
        self._steps = steps

    @classmethod
    def open(cls, path: Path, *, steps: Steps = _no_steps) -> LocalStore:
        """The index at `path`; an old format is migrated first.

        Raises:
            IndexNotFound: there is no index.
            IndexTooNew: it was written by a newer mmsearch.
            IndexCorrupt: the catalog cannot be read.
            IndexLocked: it must be migrated, and another process is writing to it.
            UnsafeFilesystem: it lies on a network drive.
        """
        path = Path(path).absolute()
        connection = reader.connect(path)
        try:
            if reader.is_old(connection):
                connection.close()
                upgrade(path, steps)
                connection = reader.connect(path)
            model = Model(*connection.execute(reader.SQL["model"]).fetchone())
            return cls(path, model, dict(connection.execute(reader.SQL["meta"])), steps)
        except (sqlite3.Error, TypeError) as error:
            raise IndexCorrupt(f"the catalog of {path} cannot be read ({error}); {layout.RESTORE}") from error
        finally:
            connection.close()

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        model: str,
        identity: str,
        dim: int,
        dtype: DType = "float32",
        max_tokens: int | None = None,
        steps: Steps = _no_steps,
    ) -> LocalStore:
        """A new index, or the one that is there already, as it is, if the same encoder made it.

        A crash on the way leaves a folder that is no index yet and can be made into one later.

        Raises:
            ModelMismatch: another encoder made the index that is there.
            IndexUnusable: the place is a file, holds other things or cannot be written to.
            UnsafeFilesystem: the place is on a network drive.
        """
        path = Path(path).absolute()
        layout.refuse_network_filesystem(path)
        if not layout.is_index(path):
            layout.refuse_ruins(path)
            layout.require_room_for_index(path)
            from mmsearch.retrieval.store.schema import CATALOG_ERRORS, reason

            try:
                cls._make(path, Model(1, model, identity, dim, max_tokens), {"dtype": dtype}, steps)
            except (OSError, *CATALOG_ERRORS) as error:
                raise IndexUnusable(f"cannot make an index at {path}: {reason(error)}") from error
        store = cls.open(path, steps=steps)
        if (store.identity, store.dim) != (identity, dim):
            raise ModelMismatch(
                f"the index at {path} was made by {store.model}, not by {model}; "
                f"`mmsearch reindex --model {model}` changes it; or use another --index for {model}"
            )
        return store

    @staticmethod
    def _make(path: Path, model: Model, meta: dict[str, str], steps: Steps) -> None:
        from mmsearch.retrieval.store.schema import create_catalog

        steps("create:folder")
        layout.make_folders(path)
        lock = Lock(path)
        try:
            if layout.is_index(path):
                return  # another process was faster
            new = path / layout.NEW_CATALOG
            for leftover in path.glob(f"{layout.NEW_CATALOG}*"):
                leftover.unlink()
            steps("create:catalog")
            layout.create_file(new)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            create_catalog(new, model, {**meta, "generation": "0", "created_at": now, "created_by": _version()})
            steps("create:rename")
            os.replace(new, path / layout.CATALOG)
            steps("create:folder-fsync")
            layout.sync_folder(path)
            layout.sync_folder(path.parent)
        finally:
            lock.release()

    def diff(
        self,
        root: Root,
        refs: Iterable[ItemRef],
        *,
        scope: Callable[[str], bool] | None = None,
        partial: bool = False,
    ) -> Diff:
        """Compares what a scan of `root` found with the newest generation. Takes no lock; see `diff.diff`."""
        return diff(self.path, root, refs, scope, partial=partial)

    def named(self, root: Path) -> list[str]:
        """Uris of the files of a root that are there for themselves, not only because rows name them."""
        with self.snapshot() as snapshot:
            return snapshot.named(str(root))

    def snapshot(self) -> reader.Snapshot:
        """The newest generation, for reading."""
        return reader.Snapshot.open(self.path)

    def writer(self) -> Writer:
        """The one writer, holding the lock; removes what earlier writers left half-done.

        Raises:
            IndexLocked: another process (or another writer of this one) is writing.
            IndexNotFound: the folder is gone.
        """
        from mmsearch.retrieval.store.writer import Writer

        layout.require_index(self.path)
        layout.refuse_network_filesystem(self.path)
        return Writer(self.path, dtype=self.dtype, steps=self._steps)

    def info(self) -> IndexInfo:
        """What the index holds."""
        with self.snapshot() as snapshot:
            return snapshot.info()

    def verify(self) -> list[str]:
        """Reads every byte and returns what is damaged, one line each; empty for a sound index. See `doctor`."""
        from mmsearch.retrieval.store.doctor import examine

        problems = examine(self.path).problems
        return [f"{problem.where}: {problem.message}" for problem in problems if problem.damage]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"mmsearch {version('mmsearch')}"
    except PackageNotFoundError:
        return "mmsearch"
