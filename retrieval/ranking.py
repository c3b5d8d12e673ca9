"""The ranked lists of a query in one snapshot, and their fusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.calibrate import UNKNOWN, Background, Calibration
from mmsearch.retrieval.fusion import (
    HYBRID_CONSTANT,
    WORDS_DEPTH,
    WORDS_RANKED,
    WORDS_WEIGHT,
    reciprocal_rank_fusion,
)
from mmsearch.retrieval.shaping import FIRST_DEPTH, Ranking, deepening
from mmsearch.retrieval.store.lexical import search_words, word_shares
from mmsearch.retrieval.store.selection import folders_of, search_where

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.clauses import EmbeddedClause
    from mmsearch.retrieval.lexicon import WordQuery
    from mmsearch.retrieval.store.reader import Snapshot
    from mmsearch.retrieval.store.records import Candidate, Condition
    from mmsearch.retrieval.types import FusionMethod, Modality

_CANCELLED = 1e-4
"""A composed vector shorter than this share of its parts is what rounding has left."""

_FLAT = 1e-6
"""Scores that vary less than this vary by rounding."""

_NEGATIVE_SHARE = 0.5
"""How much a negative clause counts beside positive ones. In full it takes away what both have in common, too: of the
first hits of "dog - beach" fewer are dogs elsewhere than of "dog" (benchmarks/queries.py)."""


@dataclass(frozen=True, slots=True)
class DenseQuery:
    """The clauses of a query against one modality of a snapshot.

    Attributes:
        space: the modality.
        row: the composed vector, float32 (dim,) of length 1; None where the clauses cancel each other out.
        shares: the factor of each clause in `row`: contributions to the score are factor times cosine.
        background: the scores that the modality has for the composed vector.
    """

    space: Modality
    row: NDArray[np.float32] | None
    shares: tuple[float, ...]
    background: Background


def compose(calibration: Calibration, space: Modality, clauses: Sequence[EmbeddedClause]) -> DenseQuery:
    """One vector of all clauses: each counts by its weight, whatever the spread of its scores.

    A picture as a clause scores pictures far more widely than words do. So each vector is divided by the standard
    deviation of its scores in the index before they are added up. Negative clauses beside positive ones count half.
    """
    sample = calibration.sample(space)
    rows = np.stack([clause.row for clause in clauses]).astype(np.float64)
    weights = np.array(_scaled_weights(clauses))
    if (weights > 0).any():
        weights[weights < 0] *= _NEGATIVE_SHARE
    if len(clauses) > 1 and len(sample) > 1:
        deviations = (sample @ rows.T.astype(np.float32)).std(axis=0, dtype=np.float64)
        weights = weights / np.where(deviations > _FLAT, deviations, 1.0)
    weights = weights / np.abs(weights).sum()
    composed = weights @ rows
    length = float(np.linalg.norm(composed))
    if length < _CANCELLED:
        return DenseQuery(space, None, tuple(weights.tolist()), UNKNOWN)
    row = (composed / length).astype(np.float32)
    shares = tuple((weights / length).tolist())
    return DenseQuery(space, row, shares, calibration.background(space, clauses, shares, row))


def _scaled_weights(clauses: Sequence[EmbeddedClause]) -> list[float]:
    """The weights of clauses, the largest as 1: only their proportion counts, and no sum of them overflows."""
    largest = max(abs(clause.weight) for clause in clauses)
    return [clause.weight / largest for clause in clauses]


@dataclass(slots=True)
class Ranker:
    """Ranks the items of a snapshot for a query.

    Attributes:
        snapshot: what is searched.
        spaces: the modalities that are looked at.
        clauses: with their vectors; empty for lexical search.
        dense: the composed query for each modality; empty for lexical search.
        fusion: how clauses become one ranking.
        words: what lexical search looks for; None where it does not.
        where: the filter, for each modality; empty without one.
        left_out: items that must not be found.
        timed: told the name of each stage when it ends.
        plan, selectivity: how the filter was applied, and the share of items that it lets through.
        ranks: the rank of each item in each list, by the name of the list.
        best: the best score for the composed vector, by modality.
        has_words: whether an item with the words was found.
    """

    snapshot: Snapshot
    spaces: Sequence[Modality]
    clauses: Sequence[EmbeddedClause]
    dense: Sequence[DenseQuery]
    fusion: FusionMethod
    words: WordQuery | None
    where: Mapping[Modality, Condition]
    left_out: frozenset[int]
    timed: Callable[[str], None] = lambda stage: None
    plan: str | None = None
    selectivity: float | None = None
    ranks: dict[str, dict[int, int]] = field(default_factory=dict)
    best: dict[Modality, float] = field(default_factory=dict)
    has_words: bool = False

    def rank(self, need: int) -> Ranking:
        """The `need` best items with their scores: those of the only list that found any, else fusion scores."""
        return self._fused(need) if self._is_one_list() else deepening(self._fused, need)

    def best_relevances(self) -> list[float]:
        """The relevance of the best item of each modality, where it is known."""
        found: list[float] = []
        for dense in self.dense:
            if dense.space in self.best:
                values = dense.background.relevance(np.array([self.best[dense.space]]))
                found += [] if values is None else values.tolist()
        return found

    def folders(self) -> int | None:
        """In how many folders what can be found lies, at most; None where that is not known."""
        found: set[tuple[int, str]] = set()
        for space in self.spaces:
            some = folders_of(self.snapshot, space, self.where.get(space))
            if some is None:
                return None
            found |= some
        return len(found)

    def relevant(self, least: float) -> set[int] | None:
        """All items of at least this relevance; None where it is not known of all items."""
        found: set[int] = set()
        for dense in self.dense:
            depth = FIRST_DEPTH
            while True:
                ranking = [] if dense.row is None else self._search(dense.space, dense.row, depth)
                values = dense.background.relevance(np.array([score for _, score in ranking]))
                if dense.row is None or values is None:
                    return None
                good = [item_id for (item_id, _), value in zip(ranking, values, strict=True) if value >= least]
                if len(good) < len(ranking) or len(ranking) < depth:
                    found.update(good)
                    break
                depth *= 4
        return found if self.dense else None

    def _is_one_list(self) -> bool:
        dense = len([one for one in self.dense if one.row is not None])
        words = len(self.spaces) if self.words is not None else 0
        return dense + words == 1 and (not dense or len(self.clauses) == 1 or self.fusion == "early")

    def _fused(self, depth: int) -> Ranking:
        """All lists of this depth put together; notes the rank that items have in each."""
        self.ranks.clear()
        dense = {one.space: list(self._of_space(one, depth)) for one in self.dense if one.row is not None}
        words = self._words_of_spaces(min(depth, WORDS_DEPTH) if dense else depth)
        if not dense or not any(words.values()):
            return _by_rank([*chain(*dense.values()), *((1.0, ranking) for ranking in words.values())])
        clauses = [self._of_clauses(space, lists) for space, lists in dense.items()]
        shares = [word_shares(self.snapshot, self.words, _ids(ranking)) for ranking in words.values() if self.words]
        self.timed("words")
        return reciprocal_rank_fusion(
            [_ids(ranking) for ranking in (*clauses, *words.values())],
            weights=[1.0] * len(clauses) + [WORDS_WEIGHT] * len(words),
            shares=[*[None] * len(clauses), *shares],
            constant=HYBRID_CONSTANT,
        )

    def _of_clauses(self, space: Modality, lists: Sequence[tuple[float, Ranking]]) -> Ranking:
        """The dense lists of a modality as one, to be fused with words."""
        ranking = _by_rank(lists)
        return self._noted("clauses", space, ranking) if len(lists) > 1 else ranking

    def _words_of_spaces(self, depth: int) -> dict[Modality, Ranking]:
        """What has the words, by modality; empty where they are not looked for."""
        if self.words is None:
            return {}
        self.timed("search")
        found = {
            space: self._noted("words", space, self._search_words(self.words, space, depth)) for space in self.spaces
        }
        self.timed("words")
        return found

    def _of_space(self, dense: DenseQuery, depth: int) -> Iterator[tuple[float, Ranking]]:
        """The lists of one modality: of the composed vector, of each clause, or of all of these."""
        assert dense.row is not None
        several = len(self.clauses) > 1
        composed = self.fusion != "late" or not several
        if composed or dense.space not in self.best:
            ranking = self._search(dense.space, dense.row, depth if composed else 1)
            self.best.update((dense.space, score) for _, score in ranking[:1])
            if composed:
                yield 1.0, self._noted("composed" if several else "dense", dense.space, ranking)
        if several and self.fusion != "early":
            weights = _scaled_weights(self.clauses)
            only_negative = max(weights) < 0
            for clause, weight in zip(self.clauses, weights, strict=True):
                row, weight = (-clause.row, -weight) if only_negative else (clause.row, weight)
                yield weight, self._noted(clause.name, dense.space, self._search(dense.space, row, depth))

    def _search_words(self, words: WordQuery, space: Modality, depth: int) -> Ranking:
        # Of the newest with the words none may pass a filter.
        most = WORDS_RANKED if self.dense and space not in self.where else None
        found = search_words(self.snapshot, words, space, self._depth(space, depth), self.where.get(space), most)
        self.has_words = self.has_words or bool(found)
        return self._without(found, depth)

    def _search(self, space: Modality, row: NDArray[np.float32], depth: int) -> Ranking:
        where = self.where.get(space)
        if where is None:
            candidates = self.snapshot.search(space, row[None], self._depth(space, depth))[0]
        else:
            selected = search_where(self.snapshot, space, row, self._depth(space, depth), where)
            candidates, self.plan, self.selectivity = selected.candidates, selected.plan, selected.selectivity
        return self._without(candidates, depth)

    def _depth(self, space: Modality, depth: int) -> int:
        """How many to look for, so that `depth` are left without those that must not be found."""
        return min(depth + len(self.left_out), max(1, self.snapshot.counts[space]))

    def _without(self, candidates: Sequence[Candidate], depth: int) -> Ranking:
        pairs = ((candidate.item_id, candidate.score) for candidate in candidates)
        return [pair for pair in pairs if pair[0] not in self.left_out][:depth]

    def _noted(self, name: str, space: Modality, ranking: Ranking) -> Ranking:
        if len(self.spaces) > 1:
            name = f"{name} ({space})"
        number, free = 1, name
        while free in self.ranks:  # clauses may repeat, and be called as other lists are
            number += 1
            free = f"{name} #{number}"
        self.ranks[free] = {item_id: rank for rank, (item_id, _) in enumerate(ranking, start=1)}
        return ranking


def _by_rank(lists: Sequence[tuple[float, Ranking]]) -> Ranking:
    """Lists with their weights, fused; a single one as it is: scores say more than ranks."""
    found = [(weight, ranking) for weight, ranking in lists if ranking]
    if len(found) == 1 and found[0][0] > 0:
        return found[0][1]
    return reciprocal_rank_fusion([_ids(ranking) for _, ranking in found], weights=[weight for weight, _ in found])


def _ids(ranking: Ranking) -> list[int]:
    return [item_id for item_id, _ in ranking]
