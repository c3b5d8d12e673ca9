"""From vectors, searches and run files to outcomes: who asks, what is ranked, and what is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.evaluate.measures import KS, measure_embeddings, measure_run
from mmsearch.retrieval.evaluate.report import Difference, Direction, Outcome, System
from mmsearch.retrieval.evaluate.significance import paired_bootstrap, randomisation_p
from mmsearch.retrieval.evaluate.topics import caption_names, document

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mmsearch.retrieval.evaluate.embedded import EmbeddedSet
    from mmsearch.retrieval.evaluate.measures import Evaluated
    from mmsearch.retrieval.evaluate.topics import Ranked, TopicSet

COMPARED = ("success@1", "success@10", "mrr")
"""Measures by which systems are compared."""

_BLOCK = 512


class _Asking(NamedTuple):
    """One direction in one language.

    Attributes:
        queries, items: rows of vectors.
        relevant: rows of `items` for each query.
        own: the row of `items` that a query is itself; empty where queries are none of the items.
        query_names, item_names: as run files have them.
    """

    queries: NDArray[np.float32]
    items: NDArray[np.float32]
    relevant: list[list[int]]
    own: list[int]
    query_names: list[str]
    item_names: list[str]


@dataclass(frozen=True, slots=True)
class Answers:
    """What one system answered in one direction, with what is right.

    Attributes:
        ranked: answers of all languages.
        relevant: gains by name of document, by name of query.
        languages: of the queries; None where nobody says.
    """

    direction: Direction
    ranked: Ranked
    relevant: Mapping[str, Mapping[str, int]]
    languages: Mapping[str, str | None]


def outcomes_of_vectors(found: EmbeddedSet, directions: Sequence[Direction]) -> tuple[Outcome, ...]:
    """The measures of vectors, each compared with all of the other kind."""
    outcomes = []
    for direction in directions:
        for language in found.captions.languages:
            asking = _asking(found, direction, language)
            if asking is not None:
                outcomes.append(Outcome(direction, language, _measured(asking)))
    if not outcomes:
        raise UsageError("text_to_text needs pictures with several captions in one language, and there are none")
    return tuple(outcomes)


def _asking(found: EmbeddedSet, direction: Direction, language: str) -> _Asking | None:
    """Queries and items; None where nobody can ask: no picture has two captions."""
    names = caption_names(found.captions)
    rows = [row for row, caption in enumerate(found.captions.captions) if caption.language == language]
    texts = found.texts[rows]
    text_names = [names[row] for row in rows]
    owners = [found.captions.captions[row].picture for row in rows]
    pictures = [document(picture.name) for picture in found.captions.pictures]
    captions_of: dict[int, list[int]] = {}
    for place, owner in enumerate(owners):
        captions_of.setdefault(owner, []).append(place)
    if direction == "text_to_image":
        return _Asking(texts, found.images, [[owner] for owner in owners], [], text_names, pictures)
    if direction == "image_to_text":
        asking = list(captions_of)
        return _Asking(
            found.images[asking],
            texts,
            [captions_of[owner] for owner in asking],
            [],
            [pictures[owner] for owner in asking],
            text_names,
        )
    own = [place for place, owner in enumerate(owners) if len(captions_of[owner]) > 1]
    if not own:
        return None
    relevant = [[other for other in captions_of[owners[place]] if other != place] for place in own]
    return _Asking(texts[own], texts, relevant, own, [text_names[place] for place in own], text_names)


def _measured(asking: _Asking) -> Evaluated:
    return measure_embeddings(
        asking.queries,
        asking.items,
        asking.relevant,
        ids=asking.query_names,
        own=asking.own or None,
        ks=KS,
    )


def answers_of_vectors(found: EmbeddedSet, direction: Direction, depth: int) -> Answers:
    """The `depth` best of each list, equal scores in the order of the file, as `measure_embeddings` orders them."""
    ranked: Ranked = {}
    relevant: dict[str, Mapping[str, int]] = {}
    languages: dict[str, str | None] = {}
    for language in found.captions.languages:
        asking = _asking(found, direction, language)
        if asking is None:
            continue
        for start in range(0, len(asking.queries), _BLOCK):
            scores = asking.queries[start : start + _BLOCK] @ asking.items.T
            for place, row in enumerate(scores, start):
                if asking.own:
                    row[asking.own[place]] = -np.inf
                best = _best(row, min(depth, len(row) - bool(asking.own)))
                query = asking.query_names[place]
                ranked[query] = [(asking.item_names[item], float(row[item])) for item in best]
                relevant[query] = {asking.item_names[item]: 1 for item in asking.relevant[place]}
                languages[query] = language
    return Answers(direction, ranked, relevant, languages)


def _best(scores: NDArray[np.float32], depth: int) -> NDArray[np.int64]:
    """Rows of the best scores, best first, equal ones by row."""
    if depth < len(scores):
        least = np.partition(scores, len(scores) - depth)[len(scores) - depth]
        rows = np.flatnonzero(scores >= least)  # all that are as good as the last one: rows decide
    else:
        rows = np.flatnonzero(scores > -np.inf)
    return np.asarray(rows[np.argsort(-scores[rows], kind="stable")][:depth], np.int64)


def answers_of_search(topics: TopicSet, ranked: Ranked, direction: Direction) -> Answers:
    """What a search has found."""
    return Answers(direction, ranked, topics.relevant, {name: topics.languages.get(name) for name in topics.queries})


def outcomes_of_answers(answers: Answers) -> tuple[Outcome, ...]:
    """The measures of answers that were cut at some depth, by language."""
    return tuple(
        Outcome(answers.direction, language, _measured_run(answers, language))
        for language in dict.fromkeys(answers.languages.values())
    )


def _measured_run(answers: Answers, language: str | None) -> Evaluated:
    queries = [query for query, said in answers.languages.items() if said == language]
    run = {query: dict(answers.ranked.get(query, ())) for query in queries}
    return measure_run(run, {query: dict(answers.relevant[query]) for query in queries}, ks=KS)


def answers_of_run(like: Answers, run: Mapping[str, Mapping[str, float]], path: Path) -> Answers:
    """What a run file answers to the same queries, as deep as these answers are; queries that it lacks are left out.

    Raises:
        UsageError: it has none of the queries.
    """
    queries = [query for query in like.languages if query in run]
    if not queries:
        shown = next(iter(like.languages), "")
        raise UsageError(f"{path} has none of these queries: they are named as in {shown}; --run writes such a file")
    depth = max(map(len, like.ranked.values()), default=0)
    ranked = {query: sorted(run[query].items(), key=lambda pair: pair[1], reverse=True)[:depth] for query in queries}
    return replace(like, ranked=ranked, languages={query: like.languages[query] for query in queries})


def all_compared(systems: Sequence[System]) -> tuple[Difference, ...]:
    """How each further system differs from the first, and a reranked search from the one before it without reranker."""
    found: list[Difference] = []
    plain = systems[0]
    for system in systems[1:]:
        if system.rerank is None:
            plain = system
        found += compared(systems[0] if system.rerank is None else plain, [system])
    return tuple(found)


def compared(baseline: System, others: Sequence[System]) -> tuple[Difference, ...]:
    """How systems differ from the first, on the queries that both have; a picture's captions count as one."""
    found = []
    for system in others:
        for first in baseline.outcomes:
            for other in system.outcomes:
                if (first.direction, first.language) == (other.direction, other.language):
                    found += _differences(baseline.name, first, system.name, other)
    return tuple(found)


def _differences(baseline: str, first: Outcome, system: str, other: Outcome) -> list[Difference]:
    mine = {query: row for row, query in enumerate(other.evaluated.ids)}
    pairs = [(row, mine[query]) for row, query in enumerate(first.evaluated.ids) if query in mine]
    if not pairs:
        return []
    rows = np.array(pairs)
    groups = _groups(first, [row for row, _ in pairs])
    found = []
    for measure in COMPARED:
        a, b = first.evaluated.values[measure][rows[:, 0]], other.evaluated.values[measure][rows[:, 1]]
        sizes = np.bincount(groups)
        of_groups = np.bincount(groups, a) / sizes, np.bincount(groups, b) / sizes
        found.append(
            Difference(
                first.direction,
                first.language,
                measure,
                system,
                baseline,
                float(b.mean()),
                float(a.mean()),
                len(pairs),
                paired_bootstrap(*of_groups),
                randomisation_p(*of_groups),
            )
        )
    return found


def _groups(outcome: Outcome, rows: Sequence[int]) -> NDArray[np.int64]:
    """A number for each query, the same for the captions of one picture."""
    names = [str(outcome.evaluated.ids[row]) for row in rows]
    if outcome.direction in ("text_to_image", "text_to_text"):
        names = [name.rpartition("#")[0] for name in names]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)
