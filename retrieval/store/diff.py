"""What a scan found, compared with what the catalog knows of the same root."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from mmsearch.retrieval.errors import IndexCorrupt
from mmsearch.retrieval.store import reader
from mmsearch.retrieval.store.records import Diff
from mmsearch.retrieval.types import Failure, ItemRef, Root


def diff(
    index: Path,
    root: Root,
    refs: Iterable[ItemRef],
    scope: Callable[[str], bool] | None = None,
    *,
    partial: bool = False,
) -> Diff:
    """Compares `refs`, all under `root`, with the newest generation. Takes no lock.

    What the user took out of the index is not there, whatever the scan says.

    Args:
        index: the index folder.
        root: what was scanned.
        refs: what the scan found; consumed once.
        scope: uris that the scan would have found if they were there; None for all of the root.
        partial: `refs` are a few of many: only those are looked up, and nothing is missing.
    """
    if partial:
        refs = list(refs)
    connection = reader.connect(index)
    try:
        if reader.is_old(connection):
            raise IndexCorrupt(f"{index} has an old format; open it with LocalStore.open first")
        roots = _Roots(index, connection)
        row = roots.find(str(root.path))
        known = _known(connection, row, [ref.uri for ref in refs] if partial else None)
        removed = {
            root.path: {uri for (uri,) in connection.execute(reader.SQL["removed"], (root.root_id,))}
            for root in roots.all
        }
    except (sqlite3.Error, ValueError, TypeError) as wrong:
        raise reader.unreadable(index, wrong) from wrong
    finally:
        connection.close()
    gone_here = removed[row.path] if row is not None else set()
    new: list[ItemRef] = []
    changed: list[ItemRef] = []
    failed: list[ItemRef] = []
    known_failures: list[Failure] = []
    unchanged = 0
    seen: set[str] = set()
    for ref in refs:
        uri, stamp = ref.uri, ref.stamp
        if uri in seen or (gone_here and is_below(uri, gone_here)):
            continue
        if ref.owner is not None:
            theirs = row if ref.owner_root is None else roots.find(ref.owner_root)
            gone_there = removed[theirs.path] if theirs is not None else set()
            if gone_there and is_below(ref.owner, gone_there):
                continue
        seen.add(uri)
        old = known.get(uri)
        if old is None:
            new.append(ref)
            continue
        size, mtime_ns, owner_root_id, owner, modality, listed, error = old
        if (
            mtime_ns != stamp.mtime_ns
            or size != stamp.size
            or owner != ref.owner
            or modality != ref.modality
            or (listed and not ref.listed)
            or (owner is not None and roots.id(ref.owner_root or ref.root) != owner_root_id)
        ):
            changed.append(ref)
        elif error is None:
            unchanged += 1
        else:
            failed.append(ref)
            known_failures.append(Failure(ref.path, str(error)))
    gone = () if partial else (uri for uri in known if uri not in seen and (scope is None or scope(uri)))
    return Diff(
        new=new,
        changed=changed,
        unchanged=unchanged,
        failed=failed,
        known_failures=known_failures,
        missing=sorted(gone),
        device_changed=row is not None and row.device != root.device,
        had_items=bool(known),
        mounts=row.mounts if row is not None else (),
    )


def is_below(uri: str, above: Collection[str]) -> bool:
    """Whether a uri, or a folder that it is in, is one of some uris."""
    if "" in above or uri in above:
        return True
    end = uri.find("/")
    while end >= 0:
        if uri[:end] in above:
            return True
        end = uri.find("/", end + 1)
    return False


class _Roots:
    """The roots of the catalog, found by path."""

    def __init__(self, index: Path, connection: sqlite3.Connection) -> None:
        self.all = reader.read_roots(index, connection.execute(reader.SQL["roots"]))
        self._found: dict[str, reader.StoredRoot | None] = {}

    def find(self, path: str) -> reader.StoredRoot | None:
        if path not in self._found:
            self._found[path] = next((root for root in self.all if root.is_at(path)), None)
        return self._found[path]

    def id(self, path: str) -> int | None:
        root = self.find(path)
        return None if root is None else root.root_id


def _known(
    connection: sqlite3.Connection, root: reader.StoredRoot | None, uris: list[str] | None
) -> dict[str, list[Any]]:
    if root is None:
        return {}
    if uris is None:
        rows = connection.execute(reader.SQL["assets"], (root.root_id,))
    else:
        rows = connection.execute(reader.SQL["assets_at"], (root.root_id, json.dumps(uris)))
    return {uri: rest for uri, *rest in rows}
