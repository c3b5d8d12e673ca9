"""What an evaluation has found: for each system, direction and language the measures, and the differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from mmsearch.retrieval.types import Failure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmsearch.retrieval.evaluate.datasets import LeftOut
    from mmsearch.retrieval.evaluate.measures import Evaluated
    from mmsearch.retrieval.evaluate.significance import Comparison

Direction = Literal["text_to_image", "image_to_text", "text_to_text", "topics"]
"""What asks for what; `topics` are TREC topics, whose answers may be anything."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How well one system answers in one direction and language.

    Attributes:
        direction: what asks for what.
        language: of the captions; None where nobody says.
        evaluated: the measures, of each query and on average.
    """

    direction: Direction
    language: str | None
    evaluated: Evaluated

    @property
    def queries(self) -> int:
        """How many queries were asked."""
        return len(self.evaluated.ids)

    @property
    def measures(self) -> Mapping[str, float]:
        """Averages by name of measure, and `median_rank`: infinite where half of the queries find nothing."""
        return {**self.evaluated.means(), "median_rank": self.evaluated.median_rank}

    @property
    def expected(self) -> Mapping[str, float]:
        """What the averages are over all orders of equal scores, where that is known."""
        return self.evaluated.expected_means()

    @property
    def first_ranks(self) -> NDArray[np.float64]:
        """Rank of the first right answer to each query; infinite where there is none."""
        return self.evaluated.values["rank"]


@dataclass(frozen=True, slots=True)
class Rerank:
    """The reranker of a search that was evaluated.

    Attributes:
        name: of the reranker.
        identity: of its weights, preprocess and tokenizer.
        depth: how many candidates of a query it was to score.
        budget_ms: in what time; None for as long as it takes.
        queries: in how many queries it has scored anything; the others stay as the first stage has them.
    """

    name: str
    identity: str
    depth: int
    budget_ms: int | None
    queries: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Which queries of a set were asked.

    Attributes:
        size: how many of each language were to be drawn.
        queries: how many were drawn.
        of: how many there are.
    """

    size: int
    queries: int
    of: int


@dataclass(frozen=True, slots=True)
class System:
    """What was evaluated.

    Attributes:
        name: as tables show it.
        model: name of the model; None for a run that was read from a file.
        mode: how an index was searched; None where vectors were compared with each other.
        outcomes: in the order of directions, then languages.
        stored: how many vectors of pictures came out of the index.
        stored_captions: how many vectors of captions did.
        seconds: wall-clock time, the loading of the model included, that of a reranker not.
        rerank: what reranked the hits of a search; None where nothing did.
        ms_per_query: wall-clock time of a search in milliseconds, the median; None where nothing was searched.
    """

    name: str
    model: str | None
    mode: str | None
    outcomes: tuple[Outcome, ...]
    stored: int = 0
    stored_captions: int = 0
    seconds: float = 0.0
    rerank: Rerank | None = None
    ms_per_query: float | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """How one system differs from its baseline, by a measure, on the queries that both have.

    Attributes:
        system, baseline: names.
        value, baseline_value: averages over these queries.
        queries: how many there are.
        comparison: the difference with its interval and p; of averages by picture, whose captions are no independent
            queries.
        p_randomisation: p of the same averages by the randomisation test; that of `comparison` is the bootstrap's.
    """

    direction: Direction
    language: str | None
    measure: str
    system: str
    baseline: str
    value: float
    baseline_value: float
    queries: int
    comparison: Comparison
    p_randomisation: float


@dataclass(frozen=True, slots=True)
class EvalReport:
    """What one evaluation has found.

    Attributes:
        source: absolute path of the captions or topics.
        systems: in the order in which they were named.
        differences: of each further system from the first; of a reranked search from the same one without reranker.
        pictures, captions: how many were used; 0 for TREC topics.
        left_out: what of the captions file could not be used; None for TREC topics.
        failed: pictures that could not be read.
        unknown: pictures that are not in the index, or documents of the qrels.
        unanswered: how many queries were not asked because their answers are not in the index.
        notices: what the person who asked should know, a line each.
        seconds: wall-clock time.
        sample: what of the queries was asked; None for all.
    """

    source: str
    systems: tuple[System, ...]
    differences: tuple[Difference, ...] = ()
    pictures: int = 0
    captions: int = 0
    left_out: LeftOut | None = None
    failed: tuple[Failure, ...] = ()
    unknown: tuple[str, ...] = ()
    unanswered: int = 0
    notices: tuple[str, ...] = ()
    seconds: float = 0.0
    sample: Sample | None = None

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it: the first system in its first language, and beside it all of them."""
        systems = [_system(system) for system in self.systems]
        whole = dict(systems[0])
        whole |= {"captions": self.source, "pictures": self.pictures, "captions_used": self.captions}
        whole["left_out"] = None if self.left_out is None else asdict(self.left_out)
        whole["failed"] = [asdict(failure) for failure in self.failed]
        whole |= {"unknown": list(self.unknown), "unanswered": self.unanswered, "notices": list(self.notices)}
        whole |= {"seconds": self.seconds, "sample": None if self.sample is None else asdict(self.sample)}
        if len(systems) > 1:
            whole["systems"] = systems
        if self.differences:
            whole["differences"] = [_difference(each) for each in self.differences]
        return whole


def _system(system: System) -> dict[str, Any]:
    first = system.outcomes[0]
    found: dict[str, Any] = {}
    languages: dict[str, dict[str, Any]] = {}
    for outcome in system.outcomes:
        measures = {**outcome.evaluated.summary(), "queries": outcome.queries}
        languages.setdefault(outcome.language or "", {})[outcome.direction] = measures
        if outcome.language == first.language:
            found[outcome.direction] = measures
    found |= {"queries": first.queries, "model": system.model, "language": first.language}
    found |= {"system": system.name, "mode": system.mode, "rerank": None}
    found |= {"stored": system.stored, "stored_captions": system.stored_captions}
    if system.rerank is not None:
        found |= {"rerank": system.rerank.name, "reranking": asdict(system.rerank)}
    if system.ms_per_query is not None:
        found["ms_per_query"] = system.ms_per_query
    if len(languages) > 1:
        found["languages"] = languages
    return found


def _difference(difference: Difference) -> dict[str, Any]:
    found = asdict(difference)
    p_randomisation = found.pop("p_randomisation")
    found |= found.pop("comparison")
    return {**found, "p_randomisation": p_randomisation}
