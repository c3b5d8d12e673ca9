"""How good is it? Measures models and indexes on captions, or on TREC topics; the CLI is a thin layer over this."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast, get_args

from mmsearch.index import Index
from mmsearch.retrieval.errors import PathNotFound, UsageError
from mmsearch.retrieval.options import DEPTH
from mmsearch.retrieval.types import Mode

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.evaluate.datasets import CaptionSet
    from mmsearch.retrieval.evaluate.rankings import Answers
    from mmsearch.retrieval.evaluate.report import Direction, EvalReport
    from mmsearch.retrieval.evaluate.topics import TopicSet
    from mmsearch.retrieval.rerank import Reranker
    from mmsearch.retrieval.store.reader import Snapshot
    from mmsearch.retrieval.types import Failure

    Progress = Callable[[str, int, int], None]

DIRECTIONS = ("text_to_image", "image_to_text", "text_to_text")
"""What can ask for what; the first two are asked by default."""


class _Loading(TypedDict):
    """How models are loaded; see `mmsearch.open`."""

    device: str | None
    precision: str | None
    threads: int | None
    batch_size: int | None
    offline: bool
    confirm: Callable[[str, int], bool] | None


def evaluate(
    captions: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    split: str | None = None,
    languages: Sequence[str] = (),
    directions: Sequence[str] = (),
    qrels: str | os.PathLike[str] | None = None,
    models: Sequence[str] = (),
    index: str | os.PathLike[str] | None = None,
    modes: Sequence[str] = (),
    rerankers: Sequence[str | Reranker] = (),
    rerank_depth: int = DEPTH,
    budget_ms: int | None = None,
    sample: int | None = None,
    options: Mapping[str, Any] | None = None,
    depth: int = 100,
    run: str | os.PathLike[str] | None = None,
    compare: str | os.PathLike[str] | None = None,
    plot: str | os.PathLike[str] | None = None,
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    offline: bool = False,
    confirm: Callable[[str, int], bool] | None = None,
    download: Callable[[str, int, int], None] | None = None,
    progress: Progress | None = None,
) -> EvalReport:
    """Measures how often captions find their pictures, pictures their captions, and captions each other.

    Without `modes`, `rerankers` and `qrels` vectors are compared with each other, over the whole set. With
    them the queries go through the search of an index, as users ask it. No index is changed, and none read that is not
    named.

    Args:
        captions: a file or folder with captions (docs/evaluation.md has the formats), or TREC topics.
        images: folder of the pictures; by default they are looked for beside the captions.
        split: only pictures of this split.
        languages: only captions in these; each is measured by itself.
        directions: of `text_to_image`, `image_to_text`, `text_to_text`; the first two by default.
        qrels: TREC qrels: `captions` are topics, whose answers are items of the index.
        models: names of models; the first is compared with the others. By default the model of the index, else `auto`.
        index: an index folder. Its vectors are used for pictures that it has with the same model.
        modes: `dense`, `lexical`, `hybrid`: search the index in each of these modes.
        rerankers: names of `mmsearch models`, or rerankers of yours: each search of the index is made without one,
            then with each of them, and these are compared.
        rerank_depth: how many candidates of a query are reranked.
        budget_ms: in how many milliseconds; what is not scored by then comes after what is.
        sample: search with so many queries of each language only; drawn, the same ones every time.
        options: further arguments of `Index.search`, such as `where` or `fusion`.
        depth: how many hits a search is asked for, and how many a run file keeps.
        run: file to write the answers to, as a TREC run; one system only.
        compare: a TREC run to compare with.
        plot: file to draw success@k to: .png, .svg or .pdf.
        device: as in `mmsearch.open`, like `precision`, `threads`, `batch_size` and `offline`.
        precision: as above.
        threads: as above.
        batch_size: as above.
        offline: as above.
        confirm: asked with (name, bytes) before a large download.
        download: told (file, bytes so far, bytes in all).
        progress: told (what, done, total).

    Raises:
        UsageError: nothing can be asked: no captions of this split or language, or options that do not go together.
        PathNotFound: a file or folder does not exist.
        MediaError: a file is not what it looks like.
        IndexNotFound: there is no index at the folder that was named.
        ModelUnavailable: a model or reranker cannot be had.
        MissingExtra: `plot` or a reranker needs a package that is not installed.
    """
    began = time.monotonic()
    if qrels is not None and (images is not None or split is not None or languages or directions):
        raise UsageError("TREC topics have no pictures, splits, languages or directions: leave these options out")
    asked = _Asked(
        directions=_directions(directions, searched=bool(modes or rerankers)),
        models=tuple(dict.fromkeys(models)),
        index=None if index is None else Path(os.path.abspath(os.path.expanduser(index))),
        modes=tuple(dict.fromkeys(modes)) or ((None,) if qrels is not None or rerankers else ()),
        rerankers=tuple(rerankers),
        rerank_depth=rerank_depth,
        budget_ms=budget_ms,
        sample=sample,
        options=dict(options or {}),
        depth=depth,
        run=None if run is None else Path(run),
        compare=None if compare is None else Path(compare),
        plot=None if plot is None else Path(plot),
    )
    asked.check()
    loading: _Loading = {
        "device": device,
        "precision": precision,
        "threads": threads,
        "batch_size": batch_size,
        "offline": offline,
        "confirm": confirm,
    }
    work = _Evaluation(asked, loading, download, progress)
    if qrels is not None:
        report = work.of_topics(Path(os.path.abspath(captions)), Path(os.path.abspath(qrels)))
    else:
        from mmsearch.retrieval.evaluate.datasets import read_captions

        read = read_captions(captions, images=images, split=split, languages=languages)
        report = work.of_searches(read) if asked.modes else work.of_vectors(read)
    if asked.plot is not None:
        from mmsearch.curves import draw

        draw(report, asked.plot)
    return replace(report, seconds=round(time.monotonic() - began, 3))


def _directions(given: Sequence[str], *, searched: bool) -> tuple[Direction, ...]:
    for each in given:
        if each not in DIRECTIONS:
            raise UsageError(f"direction {each!r} is none of {', '.join(DIRECTIONS)}")
        if searched and each != DIRECTIONS[0]:
            raise UsageError(
                f"a search of an index is asked for pictures with texts: {each} is measured without a mode"
            )
    chosen = tuple(dict.fromkeys(given)) or (DIRECTIONS[:1] if searched else DIRECTIONS[:2])
    return cast("tuple[Direction, ...]", chosen)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be measured; see `evaluate`."""

    directions: tuple[Direction, ...]
    models: tuple[str, ...]
    index: Path | None
    modes: tuple[str | None, ...]
    rerankers: tuple[str | Reranker, ...]
    rerank_depth: int
    budget_ms: int | None
    sample: int | None
    options: Mapping[str, Any]
    depth: int
    run: Path | None
    compare: Path | None
    plot: Path | None

    def check(self) -> None:
        """Raises where options do not go together, before anything takes long."""
        if self.depth < 1:
            raise UsageError(f"the depth must be 1 or more, not {self.depth}")
        for mode in self.modes:
            if mode is not None and mode not in get_args(Mode):
                raise UsageError(f"mode {mode!r} is none of {', '.join(get_args(Mode))}")
        if self.modes and self.index is None:
            raise UsageError("a mode, a reranker and qrels are about the search of an index: say which with --index")
        if self.modes and self.models:
            raise UsageError("an index is searched with its own model: take either models or modes")
        if self.options and not self.modes:
            raise UsageError(
                f"{', '.join(self.options)} is about the search of an index: add a mode, as in --mode hybrid"
            )
        if self.sample is not None and self.sample < 1:
            raise UsageError(f"the sample must be of 1 query or more, not {self.sample}")
        if self.sample is not None and not self.modes:
            raise UsageError("a sample is for the search of an index: add a mode, as in --mode hybrid")
        self._check_rerankers()
        if self.run is not None and (self.rerankers or max(len(self.models), len(self.modes)) > 1):
            raise UsageError("a run holds the answers of one system: name one model or one mode, and no reranker")
        for path in (self.run, self.plot):
            if path is not None and not path.absolute().parent.is_dir():
                raise PathNotFound(f"there is no folder {path.absolute().parent} to write {path.name} to")
        if self.compare is not None and not self.compare.is_file():
            raise PathNotFound(f"{self.compare} does not exist")
        if self.plot is not None:
            from mmsearch.curves import require

            require(self.plot)

    def _check_rerankers(self) -> None:
        from mmsearch.retrieval.options import SearchOptions

        if self.budget_ms is not None and not self.rerankers:
            raise UsageError("a budget is the time for reranking: name a reranker, as in --rerank minilm")
        twice = {"rerank", "depth", "budget_ms"}.intersection(self.options)
        if self.rerankers and twice:
            raise UsageError(f"{', '.join(sorted(twice))}: with rerankers to compare, this is no option of the search")
        for reranker in self.rerankers:
            SearchOptions(rerank=reranker, depth=self.rerank_depth, budget_ms=self.budget_ms)


class _Evaluation:
    """One evaluation."""

    def __init__(self, asked: _Asked, loading: _Loading, download: Progress | None, progress: Progress | None) -> None:
        self._asked = asked
        self._loading = loading
        self._download = download
        self._progress = progress

    def of_vectors(self, captions: CaptionSet) -> EvalReport:
        """Encoders: everything is compared with everything."""
        from mmsearch.retrieval.evaluate.embedded import embed
        from mmsearch.retrieval.evaluate.rankings import answers_of_vectors, outcomes_of_vectors
        from mmsearch.retrieval.evaluate.report import EvalReport, System

        systems = []
        answers: Answers | None = None
        used = captions
        failed: tuple[Failure, ...] = ()
        with self._snapshot() as snapshot:
            for name in self._asked.models or (snapshot.model if snapshot is not None else "auto",):
                began = time.monotonic()
                encoder = self._encoder(name)
                found = embed(
                    captions,
                    encoder,
                    snapshot=snapshot,
                    threads=self._loading["threads"],
                    progress=self._progress,
                )
                outcomes = outcomes_of_vectors(found, self._asked.directions)
                seconds = round(time.monotonic() - began, 3)
                systems.append(
                    System(encoder.name, encoder.name, None, outcomes, found.stored, found.stored_texts, seconds)
                )
                used, failed = found.captions, found.failed
                if answers is None and (self._asked.run or self._asked.compare):
                    answers = answers_of_vectors(found, self._asked.directions[0], self._asked.depth)
        report = EvalReport(
            str(captions.source),
            tuple(systems),
            pictures=len(used.pictures),
            captions=len(used.captions),
            left_out=captions.left_out,
            failed=failed,
        )
        return self._finished(report, answers)

    def of_searches(self, captions: CaptionSet) -> EvalReport:
        """The search of an index, asked with captions for their pictures."""
        from mmsearch.retrieval.evaluate.topics import captions_as_topics

        with self._snapshot() as snapshot:
            assert snapshot is not None
            topics = captions_as_topics(captions, snapshot)
        return replace(self._searched(topics, str(captions.source), "text_to_image"), left_out=captions.left_out)

    def of_topics(self, path: Path, qrels: Path) -> EvalReport:
        """The search of an index, asked with TREC topics."""
        from mmsearch.retrieval.evaluate.runs import read_qrels, read_topics
        from mmsearch.retrieval.evaluate.topics import qrels_as_topics

        for each in (path, qrels):
            if not each.is_file():
                raise PathNotFound(f"{each} does not exist")
        with self._snapshot() as snapshot:
            assert snapshot is not None
            topics = qrels_as_topics(read_topics(path), read_qrels(qrels), snapshot)
        return self._searched(topics, str(path), "topics")

    def _searched(self, topics: TopicSet, source: str, direction: Direction) -> EvalReport:
        from mmsearch.retrieval.evaluate.report import EvalReport, Sample
        from mmsearch.retrieval.evaluate.searches import Search, systems_of

        whole = len(topics.queries)
        sample = None
        if self._asked.sample is not None:
            topics = topics.sample(self._asked.sample)
            sample = Sample(self._asked.sample, len(topics.queries), whole)
        searches = [
            Search(mode, reranker, self._asked.rerank_depth, self._asked.budget_ms)
            for rerankers in [(None, *self._rerankers())]
            for mode in self._asked.modes
            for reranker in rerankers
        ]
        with Index(self._asked.index, **self._loading, download=self._download) as opened:
            model = opened.info().model
            systems, first, notices = systems_of(
                searches,
                topics,
                opened.search,
                model=model,
                direction=direction,
                depth=self._asked.depth,
                options=self._asked.options,
                progress=self._progress,
            )
        report = EvalReport(
            source,
            systems,
            pictures=len({name for gains in topics.relevant.values() for name in gains}) if topics.languages else 0,
            captions=len(topics.queries) if topics.languages else 0,
            unknown=topics.unknown,
            unanswered=topics.left_out,
            notices=notices,
            sample=sample,
        )
        return self._finished(report, first)

    def _rerankers(self) -> tuple[Reranker, ...]:
        """Loaded before anything is searched: what cannot be had is told at once."""
        from mmsearch.rerankers import Rerankers

        loaded = Rerankers(
            device=self._loading["device"],
            precision=self._loading["precision"],
            threads=self._loading["threads"],
            offline=self._loading["offline"],
            confirm=self._loading["confirm"],
            progress=self._download,
        )
        found = {id(one): one for one in (loaded.get(r) if isinstance(r, str) else r for r in self._asked.rerankers)}
        names = [one.name for one in found.values()]
        if len(set(names)) < len(names):
            raise UsageError(f"rerankers are told apart by their names, and these are called {', '.join(names)}")
        return tuple(found.values())

    def _finished(self, report: EvalReport, answers: Answers | None) -> EvalReport:
        """Writes and reads run files, and compares."""
        from mmsearch.retrieval.evaluate.rankings import all_compared, answers_of_run, compared, outcomes_of_answers
        from mmsearch.retrieval.evaluate.report import System
        from mmsearch.retrieval.evaluate.runs import read_run, write_run

        systems = report.systems
        differences = all_compared(systems)
        if answers is not None and self._asked.run is not None:
            write_run(self._asked.run, answers.ranked, tag=systems[0].name)
        if answers is not None and self._asked.compare is not None:
            old = answers_of_run(answers, read_run(self._asked.compare), self._asked.compare)
            baseline = System(str(self._asked.compare), None, None, outcomes_of_answers(old))
            mine = replace(systems[0], outcomes=outcomes_of_answers(answers))
            differences = (*differences, *compared(baseline, [mine]))
            systems = (*systems, baseline)
        return replace(report, systems=systems, differences=differences)

    def _encoder(self, name: str) -> Encoder:
        from mmsearch.retrieval.encoders.models import load_encoder

        return load_encoder(name, **self._loading, progress=self._download)

    @contextmanager
    def _snapshot(self) -> Iterator[Snapshot | None]:
        """The index that was named, or None."""
        if self._asked.index is None:
            yield None
            return
        from mmsearch.retrieval.store.reader import Snapshot

        snapshot = Snapshot.open(self._asked.index)
        try:
            yield snapshot
        finally:
            snapshot.close()
