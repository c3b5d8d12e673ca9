"""What a scan found, compared with what the catalog knows of the same root."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from mmsearch.retrieval.errors import IndexCorrupt
from mmsearch.retrieval.store import layout, reader
from mmsearch.retrieval.store.records import Diff
from mmsearch.retrieval.types import Failure, ItemRef, Root


def find_root(index: Path, stored: Iterable[tuple[int, bytes, bool, int]], root: Path) -> tuple[int, int] | None:
    """Id and device of a root among the rows (id, path, relative, device) of the catalog."""
    wanted = layout.stored_root(index, root)
    for root_id, path, relative, device in stored:
        if (path, bool(relative)) == wanted:
            return root_id, device
    return None


def diff(index: Path, root: Root, refs: Iterable[ItemRef], scope: Callable[[str], bool] | None = None) -> Diff:
    """Compares `refs`, all under `root`, with the newest generation. Takes no lock.

    Args:
        index: the index folder.
        root: what was scanned.
        refs: what the scan found; consumed once.
        scope: uris that the scan would have found if they were there; None for all of the root.
    """
    connection = reader.connect(index)
    try:
        if reader.is_old(connection):
            raise IndexCorrupt(f"{index} has an old format; open it with LocalStore.open first")
        row = find_root(index, connection.execute(reader.SQL["roots"]), root.path)
        known: dict[str, list[object]] = {}
        if row is not None:
            known = {uri: rest for uri, *rest in connection.execute(reader.SQL["assets"], (row[0],))}
    finally:
        connection.close()
    new: list[ItemRef] = []
    changed: list[ItemRef] = []
    failed: list[ItemRef] = []
    known_failures: list[Failure] = []
    unchanged = 0
    seen: set[str] = set()
    for ref in refs:
        uri, stamp = ref.uri, ref.stamp
        if uri in seen:
            continue
        seen.add(uri)
        old = known.get(uri)
        if old is None:
            new.append(ref)
            continue
        size, mtime_ns, owner, modality, error = old
        if mtime_ns != stamp.mtime_ns or size != stamp.size or owner != ref.owner or modality != ref.modality:
            changed.append(ref)
        elif error is None:
            unchanged += 1
        else:
            failed.append(ref)
            known_failures.append(Failure(ref.path, str(error)))
    return Diff(
        new=new,
        changed=changed,
        unchanged=unchanged,
        failed=failed,
        known_failures=known_failures,
        missing=sorted(uri for uri in known if uri not in seen and (scope is None or scope(uri))),
        device_changed=row is not None and row[1] != root.device,
        had_items=bool(known),
    )
