"""Queries whose answers are known, asked of an index through its own search, stage by stage as users ask it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.evaluate.datasets import CaptionSet
from mmsearch.retrieval.evaluate.embedded import Progress
from mmsearch.retrieval.media import content_hash
from mmsearch.retrieval.query import Query
from mmsearch.retrieval.types import Answer, Selection

if TYPE_CHECKING:
    from mmsearch.retrieval.store.reader import Snapshot

_SHOWN = 5
_SEED = 0
_KEPT = "/:@,+=!~()&$'*;[]"  # what of ASCII beside letters and digits a name in a run file keeps

Ranked = dict[str, list[tuple[str, float]]]
"""For each query (document, score) pairs, best first; scores never rise."""


@dataclass(frozen=True, slots=True)
class TopicSet:
    """Queries of an index, and what answers them.

    Attributes:
        queries: text by name of query.
        relevant: names of documents with their gains (1 or more: relevant), by name of query.
        names: item ids with the names of their documents; other items are named by their uri.
        modality: what the answers are.
        unknown: documents of the answers that are not in the index, each once.
        left_out: how many queries had no answer in the index and are not in `queries`.
        languages: of the queries, by name of query; empty where nobody says.
    """

    queries: Mapping[str, str]
    relevant: Mapping[str, Mapping[str, int]]
    names: Mapping[int, str]
    modality: Selection
    unknown: tuple[str, ...]
    left_out: int
    languages: Mapping[str, str]

    def of_language(self, language: str) -> Sequence[str]:
        """Names of the queries of a language."""
        return [name for name in self.queries if self.languages.get(name) == language]

    def sample(self, size: int) -> TopicSet:
        """These topics with `size` queries of each language, drawn, the same ones every time; all if there are fewer.

        They stay in their order, and those of a language do not depend on the others.
        """
        kept: set[str] = set()
        for language in dict.fromkeys(self.languages.get(name) for name in self.queries):
            names = [name for name in self.queries if self.languages.get(name) == language]
            kept.update(names[row] for row in np.random.default_rng(_SEED).permutation(len(names))[:size])
        return replace(
            self,
            queries={name: text for name, text in self.queries.items() if name in kept},
            relevant={name: gains for name, gains in self.relevant.items() if name in kept},
        )


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search has found for each query.

    Attributes:
        ranked: documents, best first.
        notices: that the answers had, each once.
        ms_per_query: wall-clock time of a search in milliseconds, the median over the queries, so that the
            first one, which loads the model, hardly counts.
        reranked: in how many queries a reranker has scored anything.
    """

    ranked: Ranked
    notices: tuple[str, ...]
    ms_per_query: float
    reranked: int


def document(name: str) -> str:
    """The name of a picture as run files have it: without white space."""
    return quote(name, safe=_KEPT, errors="surrogateescape") if not _is_plain(name) else name


def _is_plain(name: str) -> bool:
    return name.isascii() and name.isprintable() and " " not in name and "#" not in name


def caption_names(captions: CaptionSet) -> list[str]:
    """A name for each caption: that of its picture, its language, and its number there (`dog.jpg#en0`)."""
    seen: dict[tuple[int, str], int] = {}
    names = []
    for caption in captions.captions:
        number = seen.get((caption.picture, caption.language), 0)
        seen[caption.picture, caption.language] = number + 1
        names.append(f"{document(captions.pictures[caption.picture].name)}#{quote(caption.language, safe='')}{number}")
    return names


def captions_as_topics(captions: CaptionSet, snapshot: Snapshot) -> TopicSet:
    """Each caption asks for its picture, which is known in the index by its content.

    Raises:
        UsageError: none of the pictures is in the index.
    """
    names: dict[int, str] = {}
    documents: dict[int, str] = {}
    absent: dict[int, str] = {}
    for row, picture in enumerate(captions.pictures):
        try:
            items = snapshot.pictures_of_hash(content_hash(picture.path.read_bytes()))
        except OSError:
            items = []
        if not items:
            absent[row] = picture.name
            continue
        for item in items:  # pictures of equal content are one document
            documents[row] = names.setdefault(item, document(picture.name))
    if not documents:
        raise UsageError(
            f"none of the {len(captions.pictures):,} pictures of {captions.source} is in the index at {snapshot.path}; "
            "index them first"
        )
    queries, relevant, languages = {}, {}, {}
    for name, caption in zip(caption_names(captions), captions.captions, strict=True):
        if caption.picture in documents:
            queries[name] = caption.text
            relevant[name] = {documents[caption.picture]: 1}
            languages[name] = caption.language
    left_out = len(captions.captions) - len(queries)
    return TopicSet(queries, relevant, names, "image", tuple(absent.values()), left_out, languages)


def qrels_as_topics(topics: Mapping[str, str], qrels: Mapping[str, Mapping[str, int]], snapshot: Snapshot) -> TopicSet:
    """TREC topics, with answers that are items of an index by the ids that a program gave, by uri, or by item id.

    All documents are named in one of these ways: the one by which most of them are known. Topics without an answer in
    the index are left out.

    Raises:
        UsageError: no topic is left.
    """
    wanted = {name for answers in qrels.values() for name in answers}
    ways: tuple[dict[str, list[int]], ...] = ({}, {}, {})
    modalities = {}
    for record in snapshot.all_items():
        modalities[record.item_id] = record.modality
        for way, key in zip(ways, (record.id, record.uri, str(record.item_id)), strict=True):
            if key in wanted:
                way.setdefault(key, []).append(record.item_id)
    known = max(ways, key=len)
    names = {item: name for name, items in known.items() for item in items}
    relevant = {}
    for topic in topics:
        answers = {name: gain for name, gain in qrels.get(topic, {}).items() if name in known}
        if any(gain > 0 for gain in answers.values()):
            relevant[topic] = answers
    unknown = tuple(
        name for name in dict.fromkeys(n for answers in qrels.values() for n in answers) if name not in known
    )
    if not relevant:
        shown = ", ".join(unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
        raise UsageError(
            f"no topic has an answer in the index at {snapshot.path}: the qrels name {len(wanted):,} documents, "
            f"{len(unknown):,} of them unknown ({shown}). Documents are named by the id that was given, by uri, or by "
            "item_id (`mmsearch list --json` shows them)"
        )
    kinds = {modalities[item] for name in {n for answers in relevant.values() for n in answers} for item in known[name]}
    return TopicSet(
        {topic: topics[topic] for topic in relevant},
        relevant,
        names,
        kinds.pop() if len(kinds) == 1 else "all",
        unknown,
        len(topics) - len(relevant),
        {},
    )


def search_topics(
    topics: TopicSet,
    search: Callable[..., Answer],
    *,
    depth: int,
    options: Mapping[str, Any],
    progress: Progress | None = None,
    what: str = "queries",
) -> Searched:
    """What a search finds for each query.

    Args:
        topics: what to ask.
        search: `mmsearch.Index.search`, or what has its arguments.
        depth: how many items of each answer to keep.
        options: of the search, such as `mode`, `where` or `rerank`; passed on as they are.
        progress: told of queries.
        what: what progress is told that they are.
    """
    ranked: Ranked = {}
    notices: dict[str, None] = {}
    seconds: list[float] = []
    reranked = 0
    chosen = {"modality": topics.modality, **options}
    for done, (name, text) in enumerate(topics.queries.items()):
        if progress is not None:
            progress(what, done, len(topics.queries))
        began = time.perf_counter()
        answer = search(Query.literal(text), k=depth, **chosen)
        seconds.append(time.perf_counter() - began)
        stage = answer.explanation.rerank if answer.explanation is not None else None
        reranked += stage is not None and stage.scored > 0
        notices.update(dict.fromkeys(answer.notices))
        found: dict[str, float] = {}
        for hit in answer:
            found.setdefault(topics.names.get(hit.item_id) or document(hit.uri), hit.score)
        ranked[name] = _falling(list(found.items()))
    if progress is not None:
        progress(what, len(topics.queries), len(topics.queries))
    return Searched(ranked, tuple(notices), round(1000 * float(np.median(seconds)), 3), reranked)


def _falling(found: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pairs whose scores say the order: where a stage has its own idea of it, or scores are equal, 1 / rank."""
    scores = [score for _, score in found]
    if all(first > second for first, second in pairwise(scores)):
        return found
    return [(name, 1.0 / rank) for rank, (name, _) in enumerate(found, 1)]
