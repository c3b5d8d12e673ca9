"""Zero-shot tags: which of some labels pictures show, judged by the scores of the words of each.

What a caption of a picture scores is no measure for a single word: `dog` is in many pictures, and never says as much
of one as a sentence does. So tags have a logistic function of their own. It takes the score of picture and label in
the unit of the model (see `retrieval.calibrate`), what the picture scores for the best of the everyday words, and
whether the label's scores in this index lean upward: those of a thing that is there do. The weights are fitted by
`benchmarks/tags.py --fit` on photos that nothing is reported on; `docs/tags.md` has the figures.
"""

from __future__ import annotations

import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmsearch.indexers.labels import Label, listed_labels
from mmsearch.retrieval.calibrate import FEWEST, REFERENCES, SAMPLE, Reference, reference_of
from mmsearch.retrieval.clauses import ClauseEncoder
from mmsearch.retrieval.conditions import condition_of
from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.neighbours import unit_rows
from mmsearch.retrieval.probes import PROBES
from mmsearch.retrieval.query import TextClause
from mmsearch.retrieval.store.selection import count_where, pages_where
from mmsearch.retrieval.types import TagCount, TaggedPicture, TagReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.store import LocalStore, Writer
    from mmsearch.retrieval.store.reader import Snapshot
    from mmsearch.retrieval.store.records import Condition

LEAST = 0.5
"""The relevance from which on a label is a tag of a picture. Chosen by `benchmarks/tags.py --fit`."""

MOST = 10
"""How many tags one run gives to a picture at most."""

RIVALS = "everyday"
"""The list of the words that a label has to stand up to, whatever other labels there are."""

_BATCH = 256
_SCORES = 2**22  # at once
_ASSETS = 4096
_EXAMPLES = 3
_RIVAL = 5
_LEAN = 2.2
_LEAN_WEIGHT = 100
"""How many pictures it takes to believe half of a lean: by chance, those of 60 vary twice as much as those of 1,000."""


class TagWeights(NamedTuple):
    """The logistic function: what each part adds to the log-odds.

    Attributes:
        bias: a constant.
        score: per reference deviation that the score is above the reference mean.
        rival: the same, for what the picture scores for the fifth of the everyday words that suit it best.
        lean: per unit of how the scores of the label lean, see `lean_of`.
    """

    bias: float
    score: float
    rival: float
    lean: float


# What the command in the module's docstring prints.
WEIGHTS = TagWeights(-3.745, 1.646, -1.069, 1.486)


@dataclass(frozen=True, slots=True)
class TagScale:
    """What turns scores of pictures and labels into relevance.

    Attributes:
        unit: what unrelated pictures and texts score.
        rivals: vectors of the everyday words, float32 (r, dim).
        labels: vectors of the labels, float32 (n, dim).
        leans: how the scores of each label lean, float64 (n).
    """

    unit: Reference
    rivals: NDArray[np.float32]
    labels: NDArray[np.float32]
    leans: NDArray[np.float64]

    @classmethod
    def of(
        cls, unit: Reference, rivals: NDArray[np.float32], labels: NDArray[np.float32], sample: NDArray[np.float32]
    ) -> TagScale:
        """The scale of labels in an index, by a sample of its pictures (m, dim)."""
        rival = rival_scores(sample, rivals, unit)
        leans = [
            lean_of(_standard(sample @ labels[start : start + _BATCH].T, unit) - rival)
            for start in range(0, len(labels), _BATCH)
        ]
        return cls(unit, rivals, labels, np.concatenate([np.empty(0), *leans]))

    def relevance(self, pictures: NDArray[np.float32]) -> NDArray[np.floating]:
        """(m, n) relevances 0..1 of pictures (m, dim) of length 1 and the labels."""
        odds = _standard(pictures @ self.labels.T, self.unit)
        odds *= np.float32(WEIGHTS.score)
        odds += WEIGHTS.rival * rival_scores(pictures, self.rivals, self.unit)
        odds += (WEIGHTS.bias + WEIGHTS.lean * self.leans).astype(np.float32)
        return 1 / (1 + np.exp(-odds))


def lean_of(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """How the scores (m, n) of n labels lean: the way from the median up to the 90th percentile, by that to the 10th.

    1 where they are symmetric, as those of what is not there are. Those of few pictures say little, and are drawn
    towards 1; none leans more than those that the weights are fitted on.
    """
    low, middle, high = np.percentile(scores, (10, 50, 90), axis=0)
    down = middle - low
    found = np.where(down > 0, (high - middle) / np.where(down > 0, down, 1.0), 1.0)
    return np.minimum(1 + (found - 1) * len(scores) / (len(scores) + _LEAN_WEIGHT), _LEAN)


def rival_scores(pictures: NDArray[np.float32], rivals: NDArray[np.float32], unit: Reference) -> NDArray[np.float32]:
    """(m, 1): what pictures score for the word that is the fifth best of each, in the unit of the model."""
    scores = _standard(pictures @ rivals.T, unit)
    return np.partition(scores, -_RIVAL, axis=1)[:, [-_RIVAL]]


def _standard(scores: NDArray[np.float32], unit: Reference) -> NDArray[np.float32]:
    scores -= np.float32(unit.mean)
    scores /= np.float32(unit.deviation)
    return scores


def tag(
    store: LocalStore,
    labels: Sequence[Label],
    encoder: Callable[[], Encoder],
    *,
    where: str | None = None,
    min_relevance: float = LEAST,
    most: int = MOST,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TagReport:
    """Gives each picture the labels that it shows as tags, in one commit, in place of the same tags of earlier runs.

    Other tags stay, and so do those without a relevance, which are somebody's own.

    Args:
        store: an existing index.
        labels: at least one; of several of one tag the best counts.
        encoder: gives the index's encoder.
        where: a filter; other pictures keep the tags that they have.
        min_relevance: the least relevance of a tag.
        most: how many of these tags a picture gets at most, the best.
        dry_run: only say what would be done.
        progress: told how many pictures were looked at, and how many there are.

    Raises:
        UsageError: a number is out of range; too little is known to judge scores by.
        FilterSyntaxError: the filter cannot be read.
        ModelMismatch: the encoder is not the index's.
        IndexLocked: somebody else is writing.
    """
    if not 0 <= min_relevance <= 1:  # not a number is refused too
        raise UsageError(f"min_relevance must be from 0 to 1, not {min_relevance}")
    if most < 1:
        raise UsageError(f"a picture gets at least 1 tag where one fits, not {most}")
    since = time.monotonic()
    if dry_run:
        with store.snapshot() as snapshot:
            run = _Run(snapshot, labels, min_relevance, most)
            run.look(encoder, where, None, progress)
            return run.report(time.monotonic() - since, written=False)
    with store.writer() as writer, store.snapshot() as snapshot:
        run = _Run(snapshot, labels, min_relevance, most)
        run.look(encoder, where, writer, progress)
        writer.commit()
        return run.report(time.monotonic() - since, written=True)


def untag(store: LocalStore, tags: Sequence[str] | None = None, *, where: str | None = None) -> int:
    """Takes tags away that runs have given, all without `tags`; returns how many pictures had some.

    Raises:
        FilterSyntaxError: the filter cannot be read.
        IndexLocked: somebody else is writing.
    """
    changed = 0
    with store.writer() as writer, store.snapshot() as snapshot:
        condition = None if where is None else condition_of(where, snapshot, "image")
        for page in pages_where(snapshot, "image", condition, _ASSETS):
            changed += writer.tag({int(asset_id): {} for asset_id in page[:, 0]}, tags)
        writer.commit()
    return changed


@dataclass(slots=True)
class _Run:
    """One run over the pictures of a snapshot, and what it has found so far."""

    snapshot: Snapshot
    labels: Sequence[Label]
    least: float
    most: int
    pictures: int = 0
    tagged: int = 0
    changed: int = 0
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    best: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))

    def look(
        self,
        encoder: Callable[[], Encoder],
        where: str | None,
        writer: Writer | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """Looks at all pictures, and tells the writer, if there is one, what each shows."""
        total = self.snapshot.counts["image"]
        if not total:
            return
        condition = None
        if where is not None:
            condition = condition_of(where, self.snapshot, "image")
            total = count_where(self.snapshot, "image", condition)
        places = {tag: place for place, tag in enumerate(dict.fromkeys(label.tag for label in self.labels))}
        labels = sorted(self.labels, key=lambda label: places[label.tag])
        starts = np.flatnonzero(np.diff([places[label.tag] for label in labels], prepend=-1))
        scale = scale_of(self.snapshot, labels, encoder)
        for items, relevance in self._scored(scale, starts, condition):
            found = self._found(items, relevance, list(places))
            if writer is not None:
                self.changed += writer.tag(found, places)
            self.pictures += len(items)
            if progress is not None:
                progress(self.pictures, total)

    def _scored(
        self, scale: TagScale, starts: NDArray[np.intp], condition: Condition | None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.floating]]]:
        """Pages of pictures: (n, 3) of asset, item and embedding id, and (n, tags) relevances; of each asset one."""
        embeddings = self.snapshot.embeddings("image")
        size = min(_ASSETS, max(1, _SCORES // len(scale.labels)))
        for items in pages_where(self.snapshot, "image", condition, size):
            rows = unit_rows(embeddings.rows(embeddings.places(items[:, 2])))
            relevance = _best_of(scale.relevance(rows), starts, axis=1)
            first = np.flatnonzero(np.diff(items[:, 0], prepend=-1))
            yield items[first], _best_of(relevance, first, axis=0)

    def _found(
        self, items: NDArray[np.int64], relevance: NDArray[np.floating], tags: Sequence[str]
    ) -> Mapping[int, Mapping[str, float]]:
        """The tags of each asset of a page with their relevances, and notes them."""
        found: dict[int, dict[str, float]] = {int(asset_id): {} for asset_id in items[:, 0]}
        rows, columns = np.nonzero(relevance >= self.least)
        values = relevance[rows, columns]
        order = np.lexsort((columns, -values, rows))
        rows, columns, values = rows[order], columns[order], values[order]
        kept = np.arange(len(rows)) - np.searchsorted(rows, rows) < self.most
        for row, column, value in zip(rows[kept].tolist(), columns[kept].tolist(), values[kept].tolist(), strict=True):
            asset_id, item_id = items[row, :2].tolist()
            found[asset_id][tags[column]] = round(value, 3)
            self._note(tags[column], round(value, 3), item_id)
        self.tagged += sum(map(bool, found.values()))
        return found

    def _note(self, tag: str, value: float, item_id: int) -> None:
        self.counts[tag] += 1
        best = self.best[tag]
        (heapq.heappush if len(best) < _EXAMPLES else heapq.heappushpop)(best, (value, -item_id))

    def report(self, seconds: float, *, written: bool) -> TagReport:
        """What was done."""
        records = self.snapshot.items([-negative for best in self.best.values() for _, negative in best])
        tags = []
        for tag in dict.fromkeys(label.tag for label in self.labels):
            examples = []
            for value, negative in sorted(self.best.get(tag, ()), reverse=True):
                record = records[-negative]
                path = None if record.path is None else Path(record.path)
                examples.append(TaggedPicture(value, path, record.uri, record.item_id))
            tags.append(TagCount(tag, self.counts.get(tag, 0), tuple(examples)))
        return TagReport(
            tags=tuple(tags),
            pictures=self.pictures,
            tagged=self.tagged,
            changed=self.changed,
            model=self.snapshot.model if self.pictures else "",
            min_relevance=self.least,
            seconds=round(seconds, 3),
            written=written,
        )


def _best_of(values: NDArray[np.floating], starts: NDArray[np.intp], axis: int) -> NDArray[np.floating]:
    """The maximum of each group along an axis, by where the groups start."""
    return values if len(starts) == values.shape[axis] else np.maximum.reduceat(values, starts, axis=axis)


def scale_of(snapshot: Snapshot, labels: Sequence[Label], encoder: Callable[[], Encoder]) -> TagScale:
    """What the scores of labels mean in an index.

    Raises:
        UsageError: of the index's model nothing is known, and the index has too few pictures to learn it from.
        ModelMismatch: the encoder is not the index's.
    """
    sample = unit_rows(snapshot.sample("image", SAMPLE))
    clauses = ClauseEncoder(snapshot, encoder)

    def rows(texts: Sequence[str]) -> NDArray[np.float32]:
        batches = (texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH))
        return np.stack([one.row for some in batches for one in clauses.embed([TextClause(text) for text in some])])

    vectors = rows([label.words for label in labels])
    unit = REFERENCES.get(snapshot.model, {}).get(("text", "image"))
    if unit is None:
        unit = reference_of(encoder().encode_texts(PROBES), sample)
    if unit is None or not unit.deviation > 0:
        raise UsageError(
            f"what scores of the model {snapshot.model} mean is learned from the index, and {len(sample)} pictures are "
            f"too few for that: index {FEWEST} or more"
        )
    return TagScale.of(unit, rows([label.words for label in listed_labels(RIVALS)]), vectors, sample)
