"""The second stage of a search: the first candidates of a ranking in the order that a reranker gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.retrieval.query import TextClause
from mmsearch.retrieval.rerank import RerankCandidate
from mmsearch.retrieval.rerank.scoring import NONE_SCORED
from mmsearch.retrieval.types import Reranking

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmsearch.retrieval.options import SearchOptions
    from mmsearch.retrieval.query import Query
    from mmsearch.retrieval.rerank import Reranker
    from mmsearch.retrieval.rerank.scoring import Outcome, Scorer
    from mmsearch.retrieval.shaping import Ranking
    from mmsearch.retrieval.store.reader import Snapshot

_PLURAL = {"image": "pictures", "text": "texts"}


def query_text(query: Query | None) -> tuple[str | None, bool]:
    """What a reranker reads of a query, and whether that is all of it.

    It reads the texts of positive clauses, with commas between; None without any. Weights, pictures, items and what is
    to be pushed away count in the first stage only.
    """
    clauses = query.clauses if query is not None else ()
    texts = [clause.text.strip() for clause in clauses if isinstance(clause, TextClause) and clause.weight > 0]
    return ", ".join(texts) or None, len(texts) == len(clauses)


class RerankStage:
    """Reranks the ranking of one search, once. Longer rankings begin with shorter ones, as those of the first stage do.

    Args:
        snapshot: what is searched.
        first: the ranking of the first stage: its `need` best.
        reranker: what orders the first `depth` of them.
        text: what it reads of the query.
        options: of the search.
        scorer: asks the reranker.
        timed: told the name of each stage when it ends.

    Attributes:
        notices: what the person who asked should know.
        report: what the reranker did; None as long as nothing was ranked.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        first: Callable[[int], Ranking],
        reranker: Reranker,
        text: str,
        options: SearchOptions,
        scorer: Scorer,
        timed: Callable[[str], None],
    ) -> None:
        self.notices: list[str] = []
        self.report: Reranking | None = None
        self._snapshot = snapshot
        self._first = first
        self._reranker = reranker
        self._text = text
        self._options = options
        self._scorer = scorer
        self._timed = timed
        self._outcome: Outcome | None = None
        self._before: dict[int, int] = {}

    def rank(self, need: int) -> Ranking:
        """The `need` best items with the scores of the first stage: reranked ones, then the others as they were."""
        depth = self._options.depth
        ranked = self._first(max(need, depth))
        self._before.update((item_id, rank) for rank, (item_id, _) in enumerate(ranked, start=1))
        if self._outcome is None and ranked:
            self._timed("search")
            self._outcome = self._ask([item_id for item_id, _ in ranked[:depth]])
            self._timed("rerank")
        order = self._outcome.order() if self._outcome is not None else []
        return [*(ranked[at] for at in order), *ranked[depth:]][:need]

    def rank_before(self, item_id: int) -> int | None:
        """The rank of an item in the first stage; None where nothing was reranked."""
        return self._before.get(item_id) if self.report is not None and self.report.scored else None

    def score(self, item_id: int) -> tuple[float | None, float | None]:
        """The score that the reranker gave an item, and how many milliseconds that took; None for neither."""
        at = self._before.get(item_id, 0) - 1
        if self._outcome is None or not 0 <= at < len(self._outcome.scores):
            return None, None
        return self._outcome.scores[at], self._outcome.milliseconds[at]

    def _ask(self, item_ids: Sequence[int]) -> Outcome:
        name, budget = self._reranker.name, self._options.budget_ms
        candidates = self._read(item_ids)
        outcome = self._scorer.score(
            self._reranker,
            self._text,
            candidates,
            budget_ms=budget,
            page=(self._snapshot.generation, self._options.depth),
            is_first=not self._options.offset,
        )
        unread = {one.modality for one in candidates}.difference(self._reranker.modalities)
        reads = " and ".join(_PLURAL[modality] for modality in sorted(self._reranker.modalities))
        if outcome.failure is not None:
            is_bare = outcome.failure == NONE_SCORED and all(one.text is None for one in candidates)
            why = f"{outcome.failure}; none has a text or a caption" if is_bare else outcome.failure
            self.notices.append(f"not reranked: {name} failed ({why})")
        elif not outcome.scored and outcome.out_of_time:
            self.notices.append(f"not reranked: {name} scored nothing in {self._time()}")
        elif outcome.out_of_time and budget is None:
            self.notices.append(f"{name} was given up after {self._time()} without an answer")
        elif unread and not outcome.scored:
            self.notices.append(
                f"not reranked: {name} reads {reads} only, and none are among the first {len(item_ids)}"
            )
        elif unread:
            others = " and ".join(_PLURAL[modality] for modality in sorted(unread))
            self.notices.append(f"{name} reads {reads} only: {others} come after what it has scored")
        self.report = Reranking(
            reranker=name,
            identity=self._reranker.identity,
            query=self._text,
            depth=self._options.depth,
            budget_ms=budget,
            candidates=len(candidates),
            scored=outcome.scored,
            out_of_time=outcome.out_of_time,
            failure=outcome.failure,
        )
        return outcome

    def _time(self) -> str:
        """How long was waited for the reranker at most."""
        budget = self._options.budget_ms
        return f"{self._scorer.patience:g} s" if budget is None else f"{budget:,} ms"

    def _read(self, item_ids: Sequence[int]) -> list[RerankCandidate]:
        records = self._snapshot.items(item_ids)
        captions = self._snapshot.captions(item_ids)
        tokens = self._tokens(item_ids)
        candidates = []
        for item_id in item_ids:
            record = records[item_id]
            text = record.text if record.modality == "text" else "\n".join(captions.get(item_id, ())) or None
            path = None if record.path is None else Path(record.path)
            candidates.append(RerankCandidate(item_id, record.modality, text, path, tokens.get(item_id)))
        return candidates

    def _tokens(self, item_ids: Sequence[int]) -> dict[int, NDArray[np.int8]]:
        """Those that the index has for the reranker, by item id."""
        identity = getattr(self._reranker, "token_identity", None)
        if identity is None:
            return {}
        has, rows = self._snapshot.tokens(item_ids, identity)
        return {item_id: row for item_id, there, row in zip(item_ids, has, rows, strict=True) if there}
