"""From a query to an answer: embed its clauses, rank, rerank, shape, and fill in what people want to see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch.retrieval.calibrate import MATCH, NO_MATCH, Calibration
from mmsearch.retrieval.clauses import ClauseEncoder, EmbeddedClause
from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.lexicon import WordQuery, word_query
from mmsearch.retrieval.options import SearchOptions
from mmsearch.retrieval.query import ImageClause, Query, TextClause, format_query, parse, parse_clause
from mmsearch.retrieval.ranking import Ranker, compose
from mmsearch.retrieval.shaper import Shaper, Shown
from mmsearch.retrieval.shaping import newest_first
from mmsearch.retrieval.store.lexical import found_words, word_frequency
from mmsearch.retrieval.store.selection import count_where, meta_columns
from mmsearch.retrieval.types import (
    Answer,
    ClauseScore,
    Explanation,
    FusionMethod,
    Hit,
    HitExplanation,
    Modality,
    Mode,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from PIL import Image

    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.rerank import Reranker
    from mmsearch.retrieval.rerank.scoring import Scorer
    from mmsearch.retrieval.rerank.stage import RerankStage
    from mmsearch.retrieval.store.reader import ItemRecord, Snapshot
    from mmsearch.retrieval.store.records import Condition

_SPACES: tuple[Modality, ...] = ("image", "text")
_DEFAULT_MODE: Mode = "hybrid"
_DEFAULT_FUSION: FusionMethod = "early"


class Searcher:
    """Answers queries on one snapshot. Safe to use from several threads.

    Args:
        snapshot: one generation of an index; the caller closes it.
        encoder: gives the index's encoder; called only for queries that need one.
        reranker: gives the reranker of a name; loads it by default.
        scorer: asks rerankers. Pages fit together, even where time is up, if their searches have the same one.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        encoder: Callable[[], Encoder],
        *,
        reranker: Callable[[str], Reranker] | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self._snapshot = snapshot
        self._reranker = reranker
        self._scorer = scorer
        self._clauses = ClauseEncoder(snapshot, encoder)
        self._calibration = Calibration(snapshot)

    def search(
        self,
        query: str | Query | None = None,
        *,
        image: str | Path | bytes | Image.Image | None = None,
        vector: ArrayLike | None = None,
        plus: Sequence[str] = (),
        minus: Sequence[str] = (),
        **options: Any,
    ) -> Answer:
        """The best items for a query; see `mmsearch.Index.search`, which has the same arguments.

        Raises:
            UsageError: nothing to look for; a query, a filter or an option that cannot be meant.
            PathNotFound: a picture of the query does not exist.
            MediaError: a picture of the query cannot be read.
            ModelUnavailable: the reranker cannot be had.
        """
        wanted = SearchOptions(**options)
        composed = _composed(query, image, plus, minus)
        reranking = self._reranker, self._scorer
        return _Search(self._snapshot, self._clauses, self._calibration, reranking, composed, vector, wanted).run()


def _composed(
    query: str | Query | None,
    image: str | Path | bytes | Image.Image | None,
    plus: Sequence[str],
    minus: Sequence[str],
) -> Query | None:
    """One query of what was given in several ways; None for nothing."""
    clauses = list((parse(query) if isinstance(query, str) else query).clauses) if query is not None else []
    if image is not None:
        clauses.append(ImageClause(image))
    clauses += [parse_clause(text) for text in ([plus] if isinstance(plus, str) else plus)]
    clauses += [parse_clause(text, sign=-1.0) for text in ([minus] if isinstance(minus, str) else minus)]
    return Query(tuple(clauses)) if clauses else None


class _Search:
    """One search, stage by stage."""

    def __init__(
        self,
        snapshot: Snapshot,
        encoder: ClauseEncoder,
        calibration: Calibration,
        reranking: tuple[Callable[[str], Reranker] | None, Scorer | None],
        query: Query | None,
        vector: ArrayLike | None,
        options: SearchOptions,
    ) -> None:
        if query is None and vector is None:
            raise UsageError("say what to look for: a text, an image or a vector")
        self._snapshot = snapshot
        self._encoder = encoder
        self._calibration = calibration
        self._reranking = reranking
        self._query = query
        self._vector = vector
        self._options = options
        self._mode = options.mode or _DEFAULT_MODE
        self._fusion = options.fusion or _DEFAULT_FUSION
        self._spaces = self._chosen_spaces()
        self._notices: list[str] = []
        self._milliseconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def run(self) -> Answer:
        filter_, conditions = self._filter(self._spaces)
        words = self._words()
        clauses = self._embedded()
        dense = [compose(self._calibration, space, clauses) for space in self._spaces] if clauses else []
        self._timed("compose")
        if clauses and all(clause.weight < 0 for clause in clauses):
            self._notices.append("only negative clauses: what is least like them comes first")
        own = [] if self._options.include_self else [clause.own for clause in clauses]
        ranker = Ranker(
            snapshot=self._snapshot,
            spaces=self._spaces,
            clauses=clauses,
            dense=dense,
            fusion=self._fusion,
            words=words,
            where=conditions,
            left_out=frozenset[int]().union(*own),
            timed=self._timed,
        )
        stage = self._second_stage(ranker)
        shaper = Shaper(ranker, self._options, stage.rank if stage is not None else None)
        shown = self._shown(ranker, shaper)
        if dense and (all(one.row is None for one in dense) or _cancelled(shown, clauses)):
            self._notices.append("the clauses cancel each other out: there is nothing left to rank by")
        hits = self._hits(shown[self._options.offset :], shaper, stage)
        self._notices += stage.notices if stage is not None else ()
        if self._options.min_relevance and hits and all(hit.relevance is None for hit in hits):
            self._notices.append("relevance is unknown here, so nothing was left out for it")
        if not hits:
            self._notices += self._why_nothing(ranker, conditions, len(shown))
        explanation = Explanation(
            query=self._written(),
            mode=self._mode,
            fusion=self._fusion,
            where=filter_,
            selectivity=ranker.selectivity,
            plan=ranker.plan,
            background={one.space: (one.background.mean, one.background.deviation) for one in dense},
            hits=self._explained(hits, ranker, stage),
            milliseconds=self._milliseconds,
            rerank=stage.report if stage is not None else None,
        )
        return Answer(hits, self._matched(hits, ranker), tuple(self._notices), explanation)

    # What is looked for

    def _chosen_spaces(self) -> tuple[Modality, ...]:
        modality = self._options.modality
        if modality is None:
            modality = "image" if self._snapshot.counts.get("image", 0) else "text"
        chosen = _SPACES if modality == "all" else (modality,)
        return tuple(space for space in chosen if self._snapshot.counts.get(space, 0))

    def _filter(self, spaces: Sequence[Modality]) -> tuple[str | None, dict[Modality, Condition]]:
        """The filter as it was understood, and its condition for each of some modalities."""
        if self._options.where is None:
            return None, {}
        from mmsearch.retrieval.conditions import FUNCTIONS, compile_filter
        from mmsearch.retrieval.filters import format_filter, parse_filter

        filter_ = parse_filter(self._options.where)
        self._snapshot.register(FUNCTIONS)
        roots = self._snapshot.roots()
        conditions = {space: compile_filter(filter_, roots, space) for space in spaces}
        self._timed("filter")
        return format_filter(filter_), conditions

    def _written(self) -> str:
        parts = [format_query(self._query)] if self._query is not None else []
        return " + ".join([*parts, *(["<vector>"] if self._vector is not None else [])])

    def _embedded(self) -> list[EmbeddedClause]:
        if self._mode == "lexical" or not self._spaces:
            return []
        clauses = self._encoder.embed(self._query.clauses) if self._query is not None else []
        if self._vector is not None:
            clauses.append(self._encoder.vector(self._vector))
        self._timed("encode")
        return clauses

    def _words(self) -> WordQuery | None:
        if self._mode == "dense":
            return None
        clauses = self._query.clauses if self._query is not None else ()
        texts = [clause for clause in clauses if isinstance(clause, TextClause)]
        wanted = [(clause.text, clause.phrases) for clause in texts if clause.weight > 0]
        if not wanted and self._mode == "lexical":
            raise UsageError("lexical search looks for words: give it a text, or leave out the mode")
        found = word_query(
            wanted,
            [(clause.text, clause.phrases) for clause in texts if clause.weight < 0],
            lambda match, limit: word_frequency(self._snapshot, match, limit),
            sum(self._snapshot.counts.values()),
            common=self._mode == "lexical",
        )
        if self._mode == "lexical":
            if len(texts) < len(clauses) or self._vector is not None:
                self._notices.append("lexical search looks for words only: the rest of the query was passed over")
            if found is None and self._spaces:
                self._notices.append("no text, name or tag here has the words of the query")
        self._timed("words")
        return found

    def _second_stage(self, ranker: Ranker) -> RerankStage | None:
        """What reranks, with its model loaded; None where nothing is to be reranked, or nothing can be."""
        rerank = self._options.rerank
        if rerank is None or not self._spaces:
            return None
        from mmsearch.retrieval.rerank.scoring import Scorer
        from mmsearch.retrieval.rerank.stage import RerankStage, query_text

        text, is_all = query_text(self._query)
        if text is None:
            self._notices.append("not reranked: a reranker reads words, and the query looks for none")
            return None
        load, scorer = self._reranking
        if isinstance(rerank, str):
            from mmsearch.retrieval.rerank.models import load_reranker

            rerank = load(rerank) if load is not None else load_reranker(rerank)
            self._timed("load")
        if not is_all or self._vector is not None:
            self._notices.append(f"the reranker reads {text!r}: the rest of the query counts in the first stage only")
        return RerankStage(self._snapshot, ranker.rank, rerank, text, self._options, scorer or Scorer(), self._timed)

    # What is shown

    def _shown(self, ranker: Ranker, shaper: Shaper) -> list[Shown]:
        """What is shown of the ranking, and what comes before it."""
        if not ranker.dense and ranker.words is None:
            return []
        shown = shaper.shape(self._options.offset + self._options.k)
        self._timed("search")
        return shown

    def _hits(self, shown: Sequence[Shown], shaper: Shaper, stage: RerankStage | None) -> tuple[Hit, ...]:
        ids = [item_id for one in shown for item_id in (one.item_id, *(twin for twin, _ in one.duplicates))]
        records = self._snapshot.items(ids)
        tags = self._snapshot.tags(ids)
        relevance = shaper.relevance(ids)
        order = list(range(len(shown)))
        if self._options.sort == "date":
            order = newest_first([_dates(records[one.item_id]) for one in shown])

        def hit(rank: int, item_id: int, score: float, **more: Any) -> Hit:
            known = relevance.get(item_id), tags.get(item_id, ())
            before = stage.rank_before(item_id) if stage is not None else None
            return _hit(rank, score, records[item_id], *known, before, **more)

        hits = []
        for rank, number in enumerate(order, start=self._options.offset + 1):
            one = shown[number]
            twins = tuple(hit(rank, item_id, score) for item_id, score in one.duplicates)
            hits.append(hit(rank, one.item_id, one.score, others=one.others, duplicates=twins))
        self._timed("hydrate")
        return tuple(hits)

    def _matched(self, hits: Sequence[Hit], ranker: Ranker) -> bool | None:
        """Whether anything matches; None where that cannot be told."""
        if ranker.words is not None and ranker.words.phrases and ranker.has_words:
            return True
        known = [hit.relevance for hit in hits if hit.relevance is not None]
        known += ranker.best_relevances()
        if not known or all(clause.weight < 0 for clause in ranker.clauses):
            return None
        best = max(known)
        return True if best >= MATCH else False if best < NO_MATCH else None

    def _why_nothing(self, ranker: Ranker, conditions: Mapping[Modality, Condition], before: int) -> list[str]:
        """Why there are no hits, where that is known; `before` are those that the offset passes over."""
        if before:
            return [f"offset {self._options.offset:,} passes over every hit ({before:,} in all)"]
        if conditions and not any(count_where(self._snapshot, *each) for each in conditions.items()):
            return self._why_none_passes(set[str]().union(*(each.fields for each in conditions.values())))
        best = ranker.best_relevances()
        if self._options.min_relevance and best:
            return [f"the most relevant item here has {max(best):.2f}, less than {self._options.min_relevance:g}"]
        return []

    def _why_none_passes(self, fields: set[str]) -> list[str]:
        """Why a filter of these fields lets nothing through: a column that is not there, or the other modality."""
        said = ["no item passes the filter", *_unknown_columns(self._snapshot, fields)]
        others = [space for space in _SPACES if space not in self._spaces and self._snapshot.counts.get(space, 0)]
        for space, condition in self._filter(others)[1].items():
            if count := count_where(self._snapshot, space, condition):
                said.append(f"items of modality {space} do: {count:,}")
        return said

    def _explained(self, hits: Sequence[Hit], ranker: Ranker, stage: RerankStage | None) -> tuple[HitExplanation, ...]:
        words: dict[int, tuple[str, ...]] = {}
        if ranker.words is not None:
            words = found_words(self._snapshot, ranker.words, [hit.item_id for hit in hits])
        scores: dict[int, tuple[ClauseScore, ...]] = {}
        for dense in ranker.dense:
            ids = [hit.item_id for hit in hits if hit.modality == dense.space]
            for item_id, vector in zip(ids, self._snapshot.vectors(dense.space, ids), strict=True):
                scores[item_id] = tuple(
                    ClauseScore(clause.name, clause.weight, score := float(clause.row @ vector), share * score)
                    for clause, share in zip(ranker.clauses, dense.shares, strict=True)
                )
        explained = []
        for item_id in (hit.item_id for hit in hits):
            ranks = {name: found[item_id] for name, found in ranker.ranks.items() if item_id in found}
            reranked = stage.score(item_id) if stage is not None else (None, None)
            found = scores.get(item_id, ()), ranks, words.get(item_id, ())
            explained.append(HitExplanation(item_id, *found, *reranked))
        self._timed("explain")
        return tuple(explained)

    def _timed(self, stage: str) -> None:
        now = time.perf_counter()
        self._milliseconds[stage] = round(self._milliseconds.get(stage, 0.0) + 1000 * (now - self._since), 3)
        self._since = now


def _cancelled(shown: Sequence[Shown], clauses: Sequence[EmbeddedClause]) -> bool:
    """Whether ranks that were added up and taken away again are all that there is."""
    return len(clauses) > 1 and bool(shown) and not any(one.score for one in shown)


def _dates(record: ItemRecord) -> tuple[str | None, int | None]:
    return record.taken, record.modified_ns


def _hit(
    rank: int,
    score: float,
    record: ItemRecord,
    relevance: float | None,
    tags: tuple[str, ...],
    rank_before: int | None,
    others: int = 0,
    duplicates: tuple[Hit, ...] = (),
) -> Hit:
    return Hit(
        rank=rank,
        score=float(score),
        relevance=relevance,
        path=None if record.path is None else Path(record.path),
        uri=record.uri,
        fragment=record.fragment,
        modality=record.modality,
        text=record.text,
        item_id=record.item_id,
        width=record.width,
        height=record.height,
        taken=record.taken,
        id=record.id,
        tags=tags,
        others=others,
        duplicates=duplicates,
        rank_before=rank_before,
    )


def _unknown_columns(snapshot: Snapshot, fields: Iterable[str]) -> list[str]:
    """What there is to say of columns that a filter names and no item has."""
    named = sorted(field.removeprefix("meta.") for field in fields if field.startswith("meta."))
    if not named:
        return []
    from difflib import get_close_matches

    there = {column.casefold(): column for column in meta_columns(snapshot)}
    said = []
    for column in named:
        if column.casefold() not in there:
            near = get_close_matches(column.casefold(), there, 1)
            said.append(f"no item has a column {column!r}" + (f"; did you mean {there[near[0]]!r}?" if near else ""))
    return said
