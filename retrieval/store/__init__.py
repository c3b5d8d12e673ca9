"""The store: an index folder as a SQLite catalog (the only commit point) and immutable segments of vectors.

- `LocalStore` opens or makes an index, compares scans with it, and gives out the two below.
- `Snapshot` reads one generation: search, vectors, what is known of items. Needs sqlite3 and numpy only.
- `Writer` collects changes and publishes them in commits; `NewItem` is what it adds.

Names are imported when they are first used. docs/storage.md describes the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmsearch.retrieval.store.layout import default_index_path as default_index_path
    from mmsearch.retrieval.store.layout import is_index as is_index
    from mmsearch.retrieval.store.local import LocalStore as LocalStore
    from mmsearch.retrieval.store.reader import Snapshot as Snapshot
    from mmsearch.retrieval.store.records import AssetRecord as AssetRecord
    from mmsearch.retrieval.store.records import Candidate as Candidate
    from mmsearch.retrieval.store.records import Diff as Diff
    from mmsearch.retrieval.store.records import ItemRecord as ItemRecord
    from mmsearch.retrieval.store.records import NewItem as NewItem
    from mmsearch.retrieval.store.writer import Writer as Writer

_MODULES = {
    "AssetRecord": "records",
    "Candidate": "records",
    "Diff": "records",
    "ItemRecord": "records",
    "LocalStore": "local",
    "NewItem": "records",
    "Snapshot": "reader",
    "Writer": "writer",
    "default_index_path": "layout",
    "is_index": "layout",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
