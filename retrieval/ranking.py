"""The ranked lists of a query in one snapshot, and their fusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.calibrate import UNKNOWN, Background, Calibration
from mmsearch.retrieval.fusion import reciprocal_rank_fusion
from mmsearch.retrieval.shaping import Ranking, deepening
from mmsearch.retrieval.store.lexical import search_words
from mmsearch.retrieval.store.selection import search_where

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.clauses import EmbeddedClause
    from mmsearch.retrieval.lexicon import WordQuery
    from mmsearch.retrieval.store.reader import Snapshot
    from mmsearch.retrieval.store.records import Condition
    from mmsearch.retrieval.types import FusionMethod, Modality

_CANCELLED = 1e-4
"""A composed vector shorter than this share of its parts is what rounding has left."""


@dataclass(frozen=True, slots=True)
class DenseQuery:
    """The clauses of a query against one modality of a snapshot.

    Attributes:
        space: the modality.
        row: the composed vector, float32 (dim,) of length 1; None where the clauses cancel each other out.
        shares: the factor of each clause in `row`: contributions to the score are factor times cosine.
        background: the scores that the modality has for the composed vector.
        best: the best score of each search with it.
    """

    space: Modality
    row: NDArray[np.float32] | None
    shares: tuple[float, ...]
    background: Background
    best: list[float] = field(default_factory=list)

    def relevance_of_best(self) -> list[float]:
        """The relevance of the best item that the composed vector has found; empty where it is not known."""
        if not self.best:
            return []
        values = self.background.relevance(np.array([max(self.best)]))
        return [] if values is None else values.tolist()


def compose(calibration: Calibration, space: Modality, clauses: Sequence[EmbeddedClause]) -> DenseQuery:
    """One vector of all clauses: each counts by its weight, whatever the spread of its scores.

    A picture as a clause scores pictures far more widely than words do. So each vector is divided by the standard
    deviation of its scores in the index before they are added up.
    """
    sample = calibration.sample(space)
    rows = np.stack([clause.row for clause in clauses]).astype(np.float64)
    weights = np.array([clause.weight for clause in clauses])
    if len(clauses) > 1 and len(sample) > 1:
        deviations = (sample @ rows.T.astype(np.float32)).std(axis=0)
        weights = weights / np.where(deviations > 0, deviations, 1.0)
    weights = weights / np.abs(weights).sum()
    composed = weights @ rows
    length = float(np.linalg.norm(composed))
    if length < _CANCELLED:
        return DenseQuery(space, None, tuple(weights.tolist()), UNKNOWN)
    row = (composed / length).astype(np.float32)
    shares = tuple((weights / length).tolist())
    return DenseQuery(space, row, shares, calibration.background(space, clauses, shares, row))


@dataclass(slots=True)
class Ranker:
    """Ranks the items of a snapshot for a query.

    Attributes:
        snapshot: what is searched.
        clauses: with their vectors; empty for lexical search.
        dense: the composed query for each modality; empty for lexical search.
        fusion: how clauses become one ranking.
        words: what lexical search looks for; None where it does not.
        where: the filter, for each modality; empty without one.
        left_out: items that must not be found.
    """

    snapshot: Snapshot
    spaces: Sequence[Modality]
    clauses: Sequence[EmbeddedClause]
    dense: Sequence[DenseQuery]
    fusion: FusionMethod
    words: WordQuery | None
    where: Mapping[Modality, Condition]
    left_out: frozenset[int]
    plan: str | None = None
    selectivity: float | None = None
    ranks: dict[str, dict[int, int]] = field(default_factory=dict)
    timed: Callable[[str], None] = lambda stage: None

    def rank(self, need: int) -> Ranking:
        """The `need` best items with their scores: those of the only list that found any, else fusion scores."""
        if self._is_one_list():
            return self._rankings(need)[0][1]
        return deepening(self._fused, need)

    def _is_one_list(self) -> bool:
        dense = len([one for one in self.dense if one.row is not None])
        words = len(self.spaces) if self.words is not None else 0
        return dense + words == 1 and (not dense or len(self.clauses) == 1 or self.fusion == "early")

    def _fused(self, depth: int) -> Ranking:
        rankings = [found for found in self._rankings(depth) if found[1]]
        if len(rankings) == 1 and rankings[0][0] > 0:  # nothing to fuse: cosines say more than ranks
            return rankings[0][1]
        weights = [weight for weight, _ in rankings]
        return reciprocal_rank_fusion([[id_ for id_, _ in ranking] for _, ranking in rankings], weights=weights)

    def _rankings(self, depth: int) -> list[tuple[float, Ranking]]:
        """Each list with its weight; notes the rank that items have in it."""
        several = len(self.clauses) > 1
        rankings: list[tuple[float, Ranking]] = []
        for dense in self.dense:
            named = f" ({dense.space})" if len(self.dense) > 1 else ""
            if dense.row is not None and (self.fusion != "late" or not several):
                ranking = self._search(dense.space, dense.row, depth)
                dense.best.extend(score for _, score in ranking[:1])
                rankings.append((1.0, self._noted(f"composed{named}" if several else f"dense{named}", ranking)))
            if several and self.fusion != "early":
                only_negative = all(clause.weight < 0 for clause in self.clauses)
                for clause in self.clauses:
                    row, weight = (-clause.row, -clause.weight) if only_negative else (clause.row, clause.weight)
                    ranking = self._search(dense.space, row, depth)
                    rankings.append((weight, self._noted(f"{clause.name}{named}", ranking)))
        if self.words is not None:
            for space in self.spaces:
                self.timed("search")
                candidates = search_words(
                    self.snapshot, self.words, space, depth + len(self.left_out), self.where.get(space)
                )
                ranking = self._without([(one.item_id, one.score) for one in candidates], depth)
                named = f" ({space})" if len(self.spaces) > 1 else ""
                rankings.append((1.0, self._noted(f"words{named}", ranking)))
                self.timed("words")
        return rankings

    def _search(self, space: Modality, row: NDArray[np.float32], depth: int) -> Ranking:
        depth_all = min(depth + len(self.left_out), max(1, self.snapshot.counts[space]))
        where = self.where.get(space)
        if where is None:
            candidates = self.snapshot.search(space, row[None], depth_all)[0]
        else:
            selected = search_where(self.snapshot, space, row, depth_all, where)
            candidates, self.plan, self.selectivity = selected.candidates, selected.plan, selected.selectivity
        return self._without([(candidate.item_id, candidate.score) for candidate in candidates], depth)

    def _without(self, ranking: Ranking, depth: int) -> Ranking:
        return [pair for pair in ranking if pair[0] not in self.left_out][:depth]

    def _noted(self, name: str, ranking: Ranking) -> Ranking:
        self.ranks[name] = {item_id: rank for rank, (item_id, _) in enumerate(ranking, start=1)}
        return ranking
