"""Searches of one index as systems: each is asked the same queries, without a reranker or with one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmsearch.retrieval.evaluate.rankings import Answers, answers_of_search, outcomes_of_answers
from mmsearch.retrieval.evaluate.report import Direction, Rerank, System
from mmsearch.retrieval.evaluate.topics import search_topics

if TYPE_CHECKING:
    from mmsearch.retrieval.evaluate.embedded import Progress
    from mmsearch.retrieval.evaluate.topics import TopicSet
    from mmsearch.retrieval.rerank import Reranker
    from mmsearch.retrieval.types import Answer


@dataclass(frozen=True, slots=True)
class Search:
    """One way to search.

    Attributes:
        mode: `dense`, `lexical`, `hybrid`, or None for what the index does by default.
        reranker: orders the first hits anew; None for none.
        rerank_depth: how many candidates it is to score.
        budget_ms: in what time; None for as long as it takes.
    """

    mode: str | None
    reranker: Reranker | None
    rerank_depth: int
    budget_ms: int | None

    def options(self) -> dict[str, Any]:
        """As `mmsearch.Index.search` takes them."""
        found: dict[str, Any] = {} if self.mode is None else {"mode": self.mode}
        if self.reranker is not None:
            found |= {"rerank": self.reranker, "depth": self.rerank_depth, "budget_ms": self.budget_ms}
        return found

    def reranked(self, queries: int) -> Rerank | None:
        """What is told of the reranker, which has scored in so many queries."""
        if self.reranker is None:
            return None
        return Rerank(self.reranker.name, self.reranker.identity, self.rerank_depth, self.budget_ms, queries)


def systems_of(
    searches: Sequence[Search],
    topics: TopicSet,
    search: Callable[..., Answer],
    *,
    model: str,
    direction: Direction,
    depth: int,
    options: Mapping[str, Any],
    progress: Progress | None = None,
) -> tuple[tuple[System, ...], Answers, tuple[str, ...]]:
    """Measures every way to search; beside the systems what the first one answered, and notices, each once.

    Args:
        searches: one or more.
        topics: what to ask.
        search: `mmsearch.Index.search`, or what has its arguments.
        model: name of the index's model.
        direction: what asks for what.
        depth: how many items of each answer to look at.
        options: of every search.
        progress: told of queries, and which search asks them where there are several.
    """
    systems: list[System] = []
    first: Answers | None = None
    notices: dict[str, None] = {}
    asked = len(topics.queries)
    for number, each in enumerate(searches, 1):
        began = time.monotonic()
        what = "queries" if len(searches) == 1 else f"queries, search {number} of {len(searches)}"
        chosen = {**options, **each.options()}
        found = search_topics(topics, search, depth=depth, options=chosen, progress=progress, what=what)
        said = [model, each.mode or "search", *(f"{key} {value}" for key, value in options.items())]
        rerank = each.reranked(found.reranked)
        name = ", ".join(said if rerank is None else [*said, f"rerank {rerank.name}"])
        notices.update(dict.fromkeys(found.notices))
        if rerank is not None and rerank.queries < asked:
            notices[f"{name}: {asked - rerank.queries:,} of {asked:,} queries were not reranked"] = None
        answers = answers_of_search(topics, found.ranked, direction)
        first = first or answers
        outcomes = outcomes_of_answers(answers)
        seconds = round(time.monotonic() - began, 3)
        systems.append(System(name, model, each.mode, outcomes, 0, 0, seconds, rerank, found.ms_per_query))
    assert first is not None
    return tuple(systems), first, tuple(notices)
