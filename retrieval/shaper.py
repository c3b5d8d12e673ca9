"""From a ranking to what is shown of it: relevant enough, near-duplicates and groups collapsed, diverse."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.shaping import Ranking, collapse, diversify, group

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.options import SearchOptions
    from mmsearch.retrieval.ranking import Ranker
    from mmsearch.retrieval.store.records import ItemRecord

_POOL = 200
"""How many of a ranking are looked at first; more only where these do not suffice."""

_DEEPER = 4
"""How many times as many are looked at then."""

_SAME_TEXT = 0.999
"""The cosine from which on two texts say the same."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An item that is shown, how many of its group are not, and its near-duplicates with their scores."""

    item_id: int
    score: float
    others: int = 0
    duplicates: list[tuple[int, float]] = field(default_factory=list)


class Shaper:
    """Shapes the rankings of one search. Longer answers begin with shorter ones, so that pages fit together.

    Args:
        ranker: of the search.
        options: how its ranking is shaped.
        rank: the `need` best items, where they are ranked anew: their scores need not fall. Else those of the ranker.
    """

    def __init__(self, ranker: Ranker, options: SearchOptions, rank: Callable[[int], Ranking] | None = None) -> None:
        self._ranker = ranker
        self._rank = rank or ranker.rank
        self._snapshot = ranker.snapshot
        self._options = options

    def shape(self, need: int) -> list[Shown]:
        """The first `need` of what is shown of the ranking."""
        options = self._options
        if not (options.min_relevance or options.dedup or options.group or options.diverse):
            return [Shown(item_id, score) for item_id, score in self._rank(need)]
        whole_pools = -(-need // _POOL) * _POOL if options.diverse else need
        size = _tier(need)
        while True:
            ranked = self._rank(size)
            shown = self._collapsed(ranked)
            if len(shown) >= whole_pools or len(ranked) < size or self._is_all(shown, ranked):
                break
            size *= _DEEPER
        return (self._diverse(shown) if options.diverse else shown)[:need]

    def _is_all(self, shown: Sequence[Shown], ranked: Ranking) -> bool:
        """Whether nothing that is below these would be shown: the ranking may be as long as the index."""
        if self._options.group == "folder" and self._folders is not None and len(shown) >= self._folders:
            return True
        return self._relevant is not None and self._relevant <= {item_id for item_id, _ in ranked}

    @cached_property
    def _folders(self) -> int | None:
        return self._ranker.folders()

    @cached_property
    def _relevant(self) -> set[int] | None:
        least = self._options.min_relevance
        return self._ranker.relevant(least) if least else None

    def relevance(self, item_ids: Sequence[int]) -> dict[int, float]:
        """Relevances of items; those that are not known are left out."""
        found: dict[int, float] = {}
        modality = {item_id: record.modality for item_id, record in self._snapshot.items(item_ids).items()}
        for one in self._ranker.dense:
            mine = [item_id for item_id in item_ids if modality[item_id] == one.space]
            if one.row is None or not mine:
                continue
            # Each by itself: what BLAS makes of a row depends on how many there are.
            scores = (self._snapshot.vectors(one.space, mine).astype(np.float64) * one.row).sum(axis=1)
            values = one.background.relevance(scores)
            if values is not None:
                found.update(zip(mine, values.tolist(), strict=True))
        return found

    def _collapsed(self, ranked: Ranking) -> list[Shown]:
        """What is shown, in rank order.

        The others of a group and near-duplicates are told of as far as the tier of the ranking goes that their best
        one is in. So what is said of a hit does not depend on how many hits are asked for.
        """
        options = self._options
        ids = [item_id for item_id, _ in ranked]
        places = list(range(len(ranked)))
        if options.min_relevance:
            relevance = self.relevance(ids)
            places = [at for at in places if relevance.get(ids[at], 1.0) >= options.min_relevance]
        records = self._snapshot.items([ids[at] for at in places])
        alike = [(at, list[int]()) for at in places]
        if options.dedup:
            found = self._near_duplicates([ids[at] for at in places], records)
            alike = [(places[best], [places[twin] for twin in twins]) for best, twins in found]
        groups = [(number, list[int]()) for number in range(len(alike))]
        if options.group:
            groups = group([_key(records[ids[at]], options.group) for at, _ in alike])
        shown = []
        for number, others in groups:
            best, twins = alike[number]
            end = _tier(best + 1)
            told = sum(alike[other][0] < end for other in others)
            shown.append(Shown(*ranked[best], told, [ranked[twin] for twin in twins if twin < end]))
        return shown

    def _near_duplicates(self, ids: Sequence[int], records: dict[int, ItemRecord]) -> list[tuple[int, list[int]]]:
        """Positions in a ranking of what is kept, with the positions of its near-duplicates."""
        from mmsearch.retrieval.duplicates import hash_distances, is_near_duplicate, rule_of

        rule = rule_of(self._snapshot.embeddings("image"))
        vectors = self._vectors(ids, records)
        images = np.array([records[item_id].modality == "image" for item_id in ids], bool)
        hashed = np.array([records[item_id].phash is not None for item_id in ids], bool)
        hashes = np.array([records[item_id].phash or 0 for item_id in ids], np.int64)

        def same(start: int, stop: int) -> NDArray[np.bool_]:
            rows = slice(start, stop), None
            others = None, slice(stop)
            cosines = vectors[start:stop] @ vectors[:stop].T
            distances = hash_distances(hashes[rows], hashes[others], hashed[rows] & hashed[others])
            alike: NDArray[np.bool_] = np.where(
                images[rows] & images[others],
                is_near_duplicate(cosines, distances, rule),
                (images[rows] == images[others]) & (cosines >= _SAME_TEXT),
            )
            return alike

        return collapse(len(ids), same)

    def _diverse(self, shown: list[Shown]) -> list[Shown]:
        """Pool after pool, so that the order of the first does not depend on how many are needed."""
        records = self._snapshot.items([one.item_id for one in shown])
        ordered: list[Shown] = []
        for start in range(0, len(shown), _POOL):
            pool = shown[start : start + _POOL]
            vectors = self._vectors([one.item_id for one in pool], records)
            # A place in the ranking is worth the score that had it before reranking.
            scores = np.array(sorted((one.score for one in pool), reverse=True))
            ordered += [pool[at] for at in diversify(scores, vectors, len(pool), self._options.diverse)]
        return ordered

    def _vectors(self, item_ids: Sequence[int], records: dict[int, ItemRecord]) -> NDArray[np.float32]:
        """Vectors of length 1, in order."""
        rows = np.empty((len(item_ids), self._snapshot.dim), np.float32)
        for space in {record.modality for record in records.values()}:
            at = [number for number, item_id in enumerate(item_ids) if records[item_id].modality == space]
            rows[at] = self._snapshot.vectors(space, [item_ids[number] for number in at])
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
        return rows


def _tier(need: int) -> int:
    """The end of the tier of a ranking that holds its first `need`: how many are looked at for them."""
    size = _POOL
    while size < need:
        size *= _DEEPER
    return size


def _key(record: ItemRecord, by: str) -> Hashable | None:
    """What an item is grouped by; None for one that lies nowhere."""
    if record.path is None:
        return None
    return record.path if by == "file" else os.path.dirname(record.path)
