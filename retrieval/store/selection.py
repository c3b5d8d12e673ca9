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
_PROBES = 400
_FIRST_DEPTH = 64
_GOLDEN = (5**0.5 - 1) / 2

_PER_ID, _PER_ROW, _PER_META, _PER_CANDIDATE, _PER_VECTOR = 6.0, 0.5, 4.0, 15.0, 0.1
"""Microseconds: to read the id of an item that passes and to score it, to look at a row of the catalog, into fields of
manifests too, to check a candidate, to score a vector in the order of its segment. `benchmarks/answers.py` measures
where they meet (`filter-crossover`)."""

# The order of the tables is given: SQLite knows nothing of how many rows pass, and guesses wrong.
_FROM = "FROM assets CROSS JOIN items USING (asset_id) WHERE items.modality = ?"
_GIVEN = "FROM json_each(?) AS given CROSS JOIN items ON item_id = given.value CROSS JOIN assets USING (asset_id)"


def search_where(snapshot: Snapshot, space: Modality, query: NDArray[np.float32], k: int, where: Condition) -> Selected:
    """The k best items of a modality that pass a filter: k of them wherever k exist.

    A small sample tells how many items pass. Then either the ids of all that pass are read and only their vectors
    are compared, or the nearest items are checked, and more of them until k have passed: whichever is cheaper.

    Args:
        snapshot: what to search.
        space: modality to look at.
        query: float32 (dim,).
        k: at least 1.
        where: the filter.
    """
    if snapshot.counts[space] > _FEW:
        share = _sampled_share(snapshot, space, where)
        if _checking_is_cheaper(snapshot, space, k, where, share):
            found = by_candidates(snapshot, space, query, k, where, share)
            if found is not None:
                return found
    return by_ids(snapshot, space, query, k, where)


def _checking_is_cheaper(snapshot: Snapshot, space: Modality, k: int, where: Condition, share: float) -> bool:
    total = snapshot.counts[space]
    candidates = total * _PER_VECTOR + _depth(k, share) * _PER_CANDIDATE
    ids = share * total * _PER_ID
    if candidates >= ids and not _is_indexed(snapshot, space, where):
        meta = any(field.startswith("meta.") for field in where.fields)
        ids += sum(snapshot.counts.values()) * (_PER_META if meta else _PER_ROW)
    return candidates < ids


def _depth(k: int, share: float) -> int:
    """How many of the nearest items very likely have k among them that pass, if a share of all does."""
    return max(_FIRST_DEPTH, round(2 * k / max(share, 0.5 / _PROBES)))


def _is_indexed(snapshot: Snapshot, space: Modality, where: Condition) -> bool:
    """Whether SQLite finds what passes without looking at every row."""
    plan = snapshot.select(f"EXPLAIN QUERY PLAN SELECT item_id {_FROM} AND ({where.sql})", (space, *where.parameters))
    return not any(detail.startswith("SCAN assets") for *_, detail in plan)


def by_candidates(
    snapshot: Snapshot, space: Modality, query: NDArray[np.float32], k: int, where: Condition, share: float
) -> Selected | None:
    """The nearest items are checked, and more of them until k have passed; None where that would be most of all.

    Arguments as `search_where`, and about which share of the items passes.
    """
    depth = _depth(k, share)
    while depth < snapshot.counts[space] // 4:
        candidates = snapshot.search(space, query[None], depth)[0]
        passed = passing(snapshot, [candidate.item_id for candidate in candidates], where)
        good = [candidate for candidate in candidates if candidate.item_id in passed]
        if len(good) >= k:
            return Selected(good[:k], "candidates", share)
        depth *= 8
    return None


def passing(snapshot: Snapshot, item_ids: list[int], where: Condition) -> set[int]:
    """Those of some items that pass a filter."""
    statement = f"SELECT item_id {_GIVEN} WHERE {where.of_one}"
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


def meta_columns(snapshot: Snapshot) -> list[str]:
    """The names of the columns that manifests and programs gave to items, in order."""
    statement = "SELECT DISTINCT entry.key FROM assets, json_each(assets.meta) AS entry ORDER BY 1"
    return [row[0] for row in snapshot.select(statement)]


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


def by_ids(
    snapshot: Snapshot,
    space: Modality,
    query: NDArray[np.float32],
    k: int,
    where: Condition,
) -> Selected:
    """The ids of all items that pass are read, and only their vectors are compared. Arguments as `search_where`."""
    rows = snapshot.select(f"SELECT item_id, embedding_id {_FROM} AND ({where.sql})", (space, *where.parameters))
    share = len(rows) / max(1, snapshot.counts[space])
    if not rows:
        return Selected([], "ids first", 0.0)
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
            return Selected(candidates, "ids first", share)
        depth *= 2


def _sampled_share(snapshot: Snapshot, space: Modality, where: Condition) -> float:
    """About which share of the items passes: that of a sample."""
    last = snapshot.select("SELECT MAX(item_id) FROM items")[0][0] or 0
    statement = f"SELECT COUNT(*), COUNT(CASE WHEN {where.of_one} THEN 1 END) {_GIVEN} WHERE items.modality = ?"
    # Bound in the order of the statement's text: what is counted comes before what is given.
    seen, passed = snapshot.select(statement, (*where.parameters, json.dumps(spread(last, 2 * _PROBES)), space))[0]
    return passed / seen if seen else 1.0


def spread(last: int, count: int) -> list[int]:
    """At most `count` numbers from 1 to `last`, evenly spread but in no step that items may follow too.

    They are multiples of the golden ratio.
    """
    return sorted({1 + int(number * _GOLDEN % 1 * last) for number in range(count)})
