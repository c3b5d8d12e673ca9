"""A catalog of any state, opened for reading so that no file of the index changes or appears."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mmsearch.retrieval.store import layout

READ_ERRORS = (sqlite3.Error, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What comes of reading damaged catalogs and segments: SQLite's word for it, or values that make no sense."""

_MMAP_BYTES = 2**31
_VERSION_AT = 60  # of the file: `user_version`, https://www.sqlite.org/fileformat.html


@contextlib.contextmanager
def open_quietly(catalog: Path, *, busy: bool) -> Iterator[sqlite3.Connection]:
    """A connection to a catalog; an old format is migrated in a copy.

    Opening a catalog makes files beside it, unless SQLite may take it for unchangeable. That it is where its log is
    empty and no writer is at work; where a log was left behind, catalog and log are read from a copy.

    Args:
        catalog: the file.
        busy: a writer is at work. Its log has the newest commits, and the files beside it are there anyway.
    """
    log = Path(f"{catalog}-wal")
    logged = log.exists() and log.stat().st_size > 0
    old = 0 < read_format(catalog) < layout.FORMAT_VERSION
    with contextlib.ExitStack() as stack:
        if old or (logged and not busy):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mmsearch-")))
            copy = folder / layout.CATALOG
            shutil.copyfile(catalog, copy)
            if logged:
                shutil.copyfile(log, f"{copy}-wal")
            if old:
                _migrate(folder)
            address = f"{copy.as_uri()}?mode=rw"
        else:
            address = f"{catalog.as_uri()}?mode=ro{'' if logged else '&immutable=1'}"
        connection = sqlite3.connect(address, uri=True, timeout=30, isolation_level=None)
        stack.callback(connection.close)
        connection.execute(f"PRAGMA mmap_size={_MMAP_BYTES}")  # halves the time of an integrity check
        connection.execute("BEGIN")
        yield connection


def read_format(catalog: Path) -> int:
    """The format number in the first bytes of a catalog."""
    with open(catalog, "rb") as file:
        file.seek(_VERSION_AT)
        return int.from_bytes(file.read(4), "big")


def _migrate(folder: Path) -> None:
    from mmsearch.retrieval.store.migrations import migrate
    from mmsearch.retrieval.store.schema import CATALOG_ERRORS

    with contextlib.suppress(*CATALOG_ERRORS):  # damaged; what can be read of it stays in the old format
        migrate(folder)
