"""Search among the items that a filter lets through: as if filtered first, by whichever way is cheapest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.store.records import Candidate, Condition, Selected

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.store.reader import Snapshot
    from mmsearch.retrieval.types import Modality

_FEW = 5_000
_PROBES = 500
_IDS_FIRST = 0.04
"""Up to this share of the items it is cheaper to read all ids that pass than to check candidates. Measured by
`benchmarks/search.py` (`filter-crossover`)."""
_FIRST_DEPTH = 64

_FROM = "FROM items JOIN assets USING (asset_id) WHERE items.modality = ?"


def search_where(snapshot: Snapshot, space: Modality, query: NDArray[np.float32], k: int, where: Condition) -> Selected:
    """The k best items of a modality that pass a filter: k of them wherever k exist.

    A small sample tells how many items pass. Where few do, or the index is small, their ids are read first and only
    their vectors are compared. Else the nearest items are checked, and more of them until k have passed.

    Args:
        snapshot: what to search.
        space: modality to look at.
        query: float32 (dim,).
        k: at least 1.
        where: the filter.
    """
    total = snapshot.counts[space]
    share = None if total <= _FEW else _sampled_share(snapshot, space, where)
    if share is None or share <= _IDS_FIRST:
        return _ids_first(snapshot, space, query, k, where)
    depth = max(_FIRST_DEPTH, 4 * k, round(2 * k / share))
    while depth < total // 4:
        candidates = snapshot.search(space, query[None], depth)[0]
        passed = passing(snapshot, [candidate.item_id for candidate in candidates], where)
        good = [candidate for candidate in candidates if candidate.item_id in passed]
        if len(good) >= k:
            return Selected(good[:k], "candidates", share)
        depth *= 8
    return _ids_first(snapshot, space, query, k, where, plan="scan")


def passing(snapshot: Snapshot, item_ids: list[int], where: Condition) -> set[int]:
    """Those of some items that pass a filter."""
    statement = (
        "SELECT item_id FROM items JOIN assets USING (asset_id)"
        f" WHERE item_id IN (SELECT value FROM json_each(?)) AND ({where.sql})"
    )
    return {row[0] for row in snapshot.select(statement, (json.dumps(item_ids), *where.parameters))}


def count_where(snapshot: Snapshot, space: Modality, where: Condition) -> int:
    """How many items of a modality pass a filter."""
    return int(snapshot.select(f"SELECT COUNT(*) {_FROM} AND ({where.sql})", (space, *where.parameters))[0][0])


def pages_where(snapshot: Snapshot, space: Modality, where: Condition | None, size: int) -> Iterator[NDArray[np.int64]]:
    """All items of a modality that pass a filter, as (n, 3) of asset id, item id and embedding id.

    By asset; all items of one are in the same page, which has those of at most `size` assets.
    """
    test, bound = ("1", ()) if where is None else (where.sql, where.parameters)
    first, last = snapshot.select("SELECT MIN(asset_id), MAX(asset_id) FROM assets")[0]
    statement = (
        f"SELECT asset_id, item_id, embedding_id {_FROM} AND asset_id BETWEEN ? AND ? AND ({test})"
        " ORDER BY asset_id, item_id"
    )
    for start in range(first or 0, (last or -1) + 1, size):
        rows = snapshot.select(statement, (space, start, start + size - 1, *bound))
        if rows:
            yield np.array(rows, np.int64)


def folders_of(snapshot: Snapshot, space: Modality, where: Condition | None) -> set[tuple[int, str]] | None:
    """The folders that items of a modality which pass a filter lie in, each as (root id, uri) at least once.

    None where items may lie nowhere.
    """
    if any(root.kind == "rows" for root in snapshot.roots()):
        return None
    own = "root_id IN (SELECT root_id FROM roots WHERE kind = 'folder') OR owner_uri IS NULL"
    place = f"CASE WHEN {own} THEN uri ELSE owner_uri END"
    statement = (
        f"SELECT DISTINCT CASE WHEN {own} THEN root_id ELSE owner_root_id END,"
        f" RTRIM({place}, REPLACE({place}, '/', '')) {_FROM}"
    )
    if where is None:
        return set(snapshot.select(statement, (space,)))
    return set(snapshot.select(f"{statement} AND ({where.sql})", (space, *where.parameters)))


def _ids_first(
    snapshot: Snapshot,
    space: Modality,
    query: NDArray[np.float32],
    k: int,
    where: Condition,
    plan: str = "ids first",
) -> Selected:
    rows = snapshot.select(f"SELECT item_id, embedding_id {_FROM} AND ({where.sql})", (space, *where.parameters))
    share = len(rows) / max(1, snapshot.counts[space])
    if not rows:
        return Selected([], plan, 0.0)
    pairs = np.array(rows, np.int64)
    # An embedding may have other items, which do not pass: deeper by as many as there can be.
    candidates: list[Candidate] = []
    depth = k
    allowed = set(pairs[:, 0].tolist())
    ids = np.unique(pairs[:, 1])
    while True:
        found = snapshot.search_embeddings(space, query, ids, depth)
        candidates = [candidate for candidate in found if candidate.item_id in allowed][:k]
        if len(candidates) == min(k, len(allowed)) or len(found) < depth:
            return Selected(candidates, plan, share)
        depth *= 2


def _sampled_share(snapshot: Snapshot, space: Modality, where: Condition) -> float | None:
    """The share of items that pass, of a sample; None where the sample is too small to tell."""
    last = snapshot.select("SELECT MAX(item_id) FROM items")[0][0] or 0
    ids = json.dumps(_spread(last))
    statement = (
        f"SELECT COUNT(*), COUNT(CASE WHEN ({where.sql}) THEN 1 END) {_FROM}"
        " AND item_id IN (SELECT value FROM json_each(?))"
    )
    seen, passed = snapshot.select(statement, (*where.parameters, space, ids))[0]
    return passed / seen if seen >= _PROBES // 5 else None


def _spread(last: int) -> list[int]:
    """Evenly spaced numbers up to `last`, about `_PROBES` of them."""
    return list(range(1 + last % 7, last + 1, max(1, last // _PROBES)))
