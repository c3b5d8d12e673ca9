"""Numbered steps from older index formats to the current one.

Step n leads from format n-1 to n. Each runs in one transaction with the record that it has run (SQLite's
`user_version`), so a crash leaves the index before a step or after it, never inside.

To change the format: change the schema in `store.catalog`, raise `layout.FORMAT_VERSION`, add the step here, and
keep an index of the old format in tests/samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import sqlalchemy as sa

from mmsearch.retrieval.errors import IndexCorrupt, IndexTooNew
from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.catalog import connect

Step = Callable[[sa.Connection], None]

MIGRATIONS: Mapping[int, Step] = {}
"""Format number to the step that leads to it. Format 1 is the first; nothing leads there."""


def migrate(index: Path, steps: Callable[[str], None] = lambda name: None) -> int:
    """Brings the catalog of `index` to the current format and returns the format it had.

    The caller holds the lock of the index. `steps` is told the name of each step before it happens.

    Raises:
        IndexTooNew: the format is newer than this code.
        IndexCorrupt: no step leads on from the format.
    """
    engine = connect(index / layout.CATALOG)
    try:
        with engine.connect() as connection:
            found = read_format(connection)
            for number in range(found + 1, layout.FORMAT_VERSION + 1):
                if number not in MIGRATIONS:
                    raise IndexCorrupt(f"{index} has format {found}, which no mmsearch has written")
                steps(f"migrate:{number}")
                MIGRATIONS[number](connection)
                connection.exec_driver_sql(f"PRAGMA user_version={number}")
                steps(f"migrate:{number}:commit")
                connection.commit()
            connection.rollback()
            if found > layout.FORMAT_VERSION:
                raise IndexTooNew(layout.too_new(index, found))
            return found
    finally:
        engine.dispose()


def read_format(connection: sa.Connection) -> int:
    """Format number of a catalog."""
    return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
