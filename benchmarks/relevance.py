"""Whether relevance tells what is there from what is not, better than raw scores do.

    python benchmarks/relevance.py --data ../shared/data --out benchmarks/results/relevance.json
    python benchmarks/relevance.py --data ../shared/data --fit

Each query is put twice: to a corpus that has its answer, and to the same without it and without all that is nearly
the same picture. The best item's score should be higher the first time. AUC is the chance that it is, for two queries
drawn at random; both languages are mixed. That is hard where all photos are of one kind, as here: another photo often
suits a caption as well as its own does. So there is a second test, captions against photos of other things
(Caltech-101's objects), where nothing should be said to match.

People ask with a word or two more often than with captions. So there are also pieces of captions, of one to six words,
whose answers are all photos whose captions have those words; for what is not there, words that no caption has.

`--fit` prints the tables of `retrieval/calibrate.py`, from Flickr8k *train* and every other class of Caltech-101. What
is reported is measured on *val*, the other classes, and COCO. Intervals resample photos.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from machine import describe
from quality import embed_photos, embed_texts

from mmsearch.indexers.labels import listed_labels
from mmsearch.indexers.train import data
from mmsearch.retrieval.calibrate import (
    MATCH,
    NO_MATCH,
    REFERENCES,
    WEIGHTS,
    Direction,
    Reference,
    Weights,
    length_of,
    reference_of,
    weights_of,
)
from mmsearch.retrieval.clauses import text_rows
from mmsearch.retrieval.evaluate import roc_auc
from mmsearch.retrieval.probes import PROBES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder

    Rows = NDArray[np.float32]

SIZES = (100, 300, 1000)
"""Photos in a corpus; Caltech-101 is cut into larger ones, too."""

FALSE_ALARMS = 0.05
"""Which share of the queries for what is not there `--fit` lets match."""

_NEAR = 0.93
"""The cosine beyond which another photo is as good an answer as a caption's own, and is removed with it."""

_POOL = 1000
_FEWEST = 50
_WORD = 0.3
"""Up to this length, texts are words: of one or two."""

WORD_SCORE = 0.5
"""What a score counts where a query is a single word, see `calibrate.Weights`. Left to the regression it is about 0 or
less: of single words the background says more. But of two items, the one that scores higher is the more relevant."""

_SCORE = Weights._fields.index("score")

_LITTLE = frozenset(
    "a an the and are as at be by for from has he her his in into is it its of on or she that their them there they"
    " this to was were while with who which wearing some another over off out up down".split()
)
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts as queries: their vectors, how long they are (0 to 1), and the photo that each belongs to."""

    rows: Rows
    lengths: NDArray[np.float64]
    owner: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Captions:
    """Photos and what is said of them, embedded.

    Attributes:
        photos: their vectors.
        whole: all captions in all languages.
        language: of each caption.
        pieces: parts of captions, and words that some captions have.
        shows: bool (pieces, photos): which photos have the words of a piece in their captions.
        has: bool (pieces, captions): which captions have them.
        absent: words that no caption has, by themselves and in short phrases.
    """

    photos: Rows
    whole: Texts
    language: NDArray[np.str_]
    pieces: Texts
    shows: NDArray[np.bool_]
    has: NDArray[np.bool_]
    absent: Texts


@dataclass(frozen=True, slots=True)
class Objects:
    """Photos of single objects, by class, and texts that name other ones."""

    photos: Rows
    labels: NDArray[np.int64]
    names: Rows


@dataclass(frozen=True, slots=True)
class Trial:
    """Queries against corpora: what the best score was, and what it is to be judged by.

    Attributes:
        best, mean, deviation: of each query's scores, float64 (q,).
        count: items in the corpus.
        present: whether the answer was there.
        group: what is resampled together.
        length: of the query.
    """

    best: NDArray[np.float64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    count: NDArray[np.float64]
    present: NDArray[np.bool_]
    group: NDArray[np.int64]
    length: NDArray[np.float64]

    def where(self, chosen: NDArray[np.bool_]) -> Trial:
        """Some of the queries."""
        return Trial(*(getattr(self, name)[chosen] for name in self.__slots__))

    def parted(self) -> tuple[Trial, Trial]:
        """Queries of a word or two, and longer ones."""
        return self.where(self.length <= _WORD), self.where(self.length > _WORD)

    def features(self, unit: Reference) -> NDArray[np.float64]:
        """(q, 5): what the numbers of `calibrate.Weights` belong to."""
        best, mean = ((values - unit.mean) / unit.deviation for values in (self.best, self.mean))
        bias = np.ones(len(best))
        return np.stack([bias, best, mean, self.deviation / unit.deviation, np.log10(self.count)], axis=1)

    def relevance(self, direction: Direction, unit: Reference) -> NDArray[np.float64]:
        """By the product's weights."""
        weights = np.array([weights_of(direction, float(length)) for length in self.length])
        return 1.0 / (1.0 + np.exp(-(self.features(unit) * weights).sum(axis=1)))


def joined(trials: Sequence[Trial]) -> Trial:
    """One trial of several."""
    return Trial(*(np.concatenate([getattr(one, name) for one in trials]) for name in Trial.__slots__))


def put(
    queries: Rows,
    corpus: Rows,
    group: NDArray[np.int64],
    removed: NDArray[np.bool_] | None,
    present: bool,
    lengths: NDArray[np.float64] | None = None,
) -> Trial:
    """Queries (q, dim) against a corpus (n, dim), without the items `removed` (q, n) for each."""
    scores = (queries @ corpus.T).astype(np.float64)
    if removed is not None:
        scores[removed] = np.nan
    return Trial(
        np.nanmax(scores, axis=1),
        np.nanmean(scores, axis=1),
        np.nanstd(scores, axis=1),
        (~np.isnan(scores)).sum(axis=1).astype(np.float64),
        np.full(len(queries), present),
        group,
        np.ones(len(queries)) if lengths is None else lengths,
    )


def twice(
    queries: Rows,
    corpus: Rows,
    group: NDArray[np.int64],
    answers: NDArray[np.bool_],
    lengths: NDArray[np.float64] | None = None,
) -> Trial:
    """With the answers (q, n), and without; queries that all or no items answer are left out."""
    lengths = np.ones(len(queries)) if lengths is None else lengths
    some = answers.any(axis=1) & ((~answers).sum(axis=1) >= _FEWEST)
    queries, group, answers, lengths = queries[some], group[some], answers[some], lengths[some]
    return joined(
        [put(queries, corpus, group, None, True, lengths), put(queries, corpus, group, answers, False, lengths)]
    )


def corpora(count: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """`count` things at random, in parts of `size`."""
    order = rng.permutation(count)
    for start in range(0, count - min(size, count) + 1, size):
        yield order[start : start + size]


def text_to_image(captions: Captions, size: int, rng: np.random.Generator) -> Trial:
    """Captions against photos of their kind."""
    whole, near = captions.whole, captions.photos @ captions.photos.T > _NEAR
    trials = []
    for photos in corpora(len(captions.photos), size, rng):
        mine = np.isin(whole.owner, photos)
        owner = whole.owner[mine]
        answers = near[owner][:, photos]
        trials.append(twice(whole.rows[mine], captions.photos[photos], owner, answers, whole.lengths[mine]))
    return joined(trials)


def pieces_to_image(captions: Captions, size: int, rng: np.random.Generator) -> Trial:
    """Pieces of captions against photos of their kind."""
    pieces, near = captions.pieces, captions.photos @ captions.photos.T > _NEAR
    answers = captions.shows | near[pieces.owner]
    return joined(
        [
            twice(pieces.rows, captions.photos[photos], pieces.owner, answers[:, photos], pieces.lengths)
            for photos in corpora(len(captions.photos), size, rng)
        ]
    )


def image_to_text(captions: Captions, size: int, rng: np.random.Generator) -> Trial:
    """Photos against captions of such photos."""
    whole = captions.whole
    trials = []
    for photos in corpora(len(captions.photos), size, rng):
        mine = np.isin(whole.owner, photos)
        answers = photos[:, None] == whole.owner[mine]
        trials.append(twice(captions.photos[photos], whole.rows[mine], photos, answers))
    return joined(trials)


def text_to_text(captions: Captions, size: int, rng: np.random.Generator) -> Trial:
    """A photo's first caption against all others of the same language."""
    whole = captions.whole
    trials = []
    for language in np.unique(captions.language):
        of = np.flatnonzero(captions.language == language)
        first = of[np.flatnonzero(np.diff(whole.owner[of], prepend=-1))]
        rest = np.setdiff1d(of, first)
        for part in corpora(len(first), size, rng):
            queries = first[part]
            others = rest[np.isin(whole.owner[rest], whole.owner[queries])]
            answers = whole.owner[queries][:, None] == whole.owner[others]
            trials.append(
                twice(whole.rows[queries], whole.rows[others], whole.owner[queries], answers, whole.lengths[queries])
            )
    return joined(trials)


def pieces_to_text(captions: Captions, size: int, rng: np.random.Generator) -> Trial:
    """Pieces of captions against captions of the photos that they are not of."""
    whole, pieces = captions.whole, captions.pieces
    trials = []
    for photos in corpora(len(captions.photos), size, rng):
        mine = np.flatnonzero(np.isin(whole.owner, photos))
        mine = rng.permutation(mine)[: 4 * size]
        answers = captions.has[:, mine]
        trials.append(twice(pieces.rows, whole.rows[mine], pieces.owner, answers, pieces.lengths))
    return joined(trials)


def image_to_image(objects: Objects, size: int, rng: np.random.Generator) -> Trial:
    """Photos of objects against others; the answers are those of the same class."""
    trials = []
    for part in corpora(len(objects.photos), size + size // 5, rng):
        queries, corpus = part[: size // 5], part[size // 5 :]
        answers = objects.labels[queries][:, None] == objects.labels[corpus]
        queries, answers = queries[answers.any(axis=1)], answers[answers.any(axis=1)]
        if len(queries):
            trials.append(twice(objects.photos[queries], objects.photos[corpus], queries, answers))
    return joined(trials)


def elsewhere(queries: Texts, corpus: Rows, rng: np.random.Generator, most: int = 400) -> Trial:
    """Queries against what is of another kind altogether: nothing matches."""
    trials = []
    for size in (*SIZES, 2000):
        for _ in range(8):
            chosen = rng.permutation(len(queries.rows))[:most]
            rows = rng.permutation(len(corpus))[:size]
            trials.append(
                put(queries.rows[chosen], corpus[rows], queries.owner[chosen], None, False, queries.lengths[chosen])
            )
    return joined(trials)


@dataclass(frozen=True, slots=True)
class Trials:
    """What is asked in one direction.

    Attributes:
        among: whole captions, or pictures, among their kind; at all sizes.
        lost: the same, where there is nothing of their kind.
        pieces: pieces of captions among their kind; None for pictures.
        absent: words where nothing has them; None for pictures.
    """

    among: Trial
    lost: Trial
    pieces: Trial | None = None
    absent: Trial | None = None

    def all(self) -> list[Trial]:
        """Those that there are."""
        return [one for one in (self.among, self.lost, self.pieces, self.absent) if one is not None]


def trials(captions: Captions, objects: Objects, direction: Direction, rng: np.random.Generator) -> Trials:
    """A direction's queries among their kind, at all sizes, and elsewhere."""
    sizes = [size for size in SIZES if size <= len(captions.photos)] or [len(captions.photos)]

    def at_all_sizes(among: Callable[[Any, int, np.random.Generator], Trial], of: Any = captions) -> Trial:
        return joined([among(of, size, rng) for size in sizes])

    def photos(rows: Rows) -> Texts:
        return Texts(rows, np.ones(len(rows)), np.arange(len(rows)))

    sentences = captions.whole
    if direction == ("text", "image"):
        return Trials(
            at_all_sizes(text_to_image),
            elsewhere(sentences, objects.photos, rng),
            at_all_sizes(pieces_to_image),
            elsewhere(captions.absent, captions.photos, rng),
        )
    if direction == ("text", "text"):
        return Trials(
            at_all_sizes(text_to_text),
            elsewhere(sentences, objects.names, rng),
            at_all_sizes(pieces_to_text),
            elsewhere(captions.absent, sentences.rows, rng),
        )
    mine, others = photos(captions.photos), photos(objects.photos)
    if direction == ("image", "image"):
        lost = [elsewhere(mine, objects.photos, rng), elsewhere(others, captions.photos, rng)]
        return Trials(at_all_sizes(image_to_image, objects), joined(lost))
    lost = [elsewhere(mine, objects.names, rng), elsewhere(others, sentences.rows, rng)]
    return Trials(at_all_sizes(image_to_text), joined(lost))


def logistic(
    features: NDArray[np.float64], label: NDArray[np.bool_], weight: NDArray[np.float64], known: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights of a logistic regression beside known log-odds (Newton's method, ridge 1e-6).

    Raises:
        ArithmeticError: it does not converge.
    """
    found = np.zeros(features.shape[1])
    for _ in range(50):
        chance = 1.0 / (1.0 + np.exp(-(features @ found + known)))
        slope = features.T @ (weight * (label - chance)) / weight.sum()
        curve = (features * (weight * chance * (1 - chance))[:, None]).T @ features / weight.sum()
        step = np.linalg.solve(curve + 1e-6 * np.eye(len(found)), slope)
        found = found + step
        if np.abs(step).max() < 1e-9:
            return found
    raise ArithmeticError("the regression does not converge")


def fitted(asked: Sequence[Trial], unit: Reference, sentence: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """The weights that tell what is there from what is not: of sentences, or, beside those of sentences, of words.

    Each kind of trial counts as much as the others, what is not there as much as what is.
    """
    label = np.concatenate([one.present for one in asked])
    weight = np.concatenate(
        [np.full(len(one.best), (1 if one.present.any() else 0.5) / len(one.best)) for one in asked]
    )
    features = np.concatenate([one.features(unit) for one in asked])
    if sentence is None:
        return logistic(features, label, weight, np.zeros(len(label)))
    length = np.concatenate([one.length for one in asked])
    of_words = (1 - length)[:, None] * features
    known = length * (features @ sentence) + WORD_SCORE * of_words[:, _SCORE]
    free = [at for at in range(features.shape[1]) if at != _SCORE]
    return np.insert(logistic(of_words[:, free], label, weight, known), _SCORE, WORD_SCORE)


def log_odds(
    trial: Trial, unit: Reference, word: NDArray[np.float64], sentence: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What weights that go over from those of words to those of sentences say of each query."""
    length = trial.length[:, None]
    odds: NDArray[np.float64] = (trial.features(unit) * ((1 - length) * word + length * sentence)).sum(axis=1)
    return odds


def shift(odds: NDArray[np.float64], part: NDArray[np.float64]) -> float:
    """What is to be added to a bias, of which each query has a part, so that `FALSE_ALARMS` of the queries match."""
    return float(np.quantile((np.log(MATCH / (1 - MATCH)) - odds) / np.maximum(part, 1e-9), FALSE_ALARMS))


def fit(captions: Captions, objects: Objects, probes: Rows) -> dict[Direction, tuple[Reference, list[list[float]]]]:
    """The reference of each direction, and its weights: of sentences, and of words if it has those.

    Those of sentences come of whole captions alone, and those of words of pieces, in the proportion of their lengths.
    """
    rng = np.random.default_rng(0)
    tables = {}
    for direction in WEIGHTS:
        queries = probes if direction[0] == "text" else captions.photos
        rows = captions.photos if direction[1] == "image" else captions.whole.rows
        unit = reference_of(queries, rows)
        assert unit is not None
        asked = trials(captions, objects, direction, rng)
        sentence = fitted([asked.among, asked.lost], unit)
        weights, nothing = [sentence], [asked.lost]
        if asked.pieces is not None and asked.absent is not None:
            word = fitted([asked.pieces, asked.absent], unit, sentence)
            words, phrases = asked.absent.parted()
            word[0] += shift(log_odds(words, unit, word, sentence), 1 - words.length)
            weights.append(word)
            nothing.append(phrases)
        sentence[0] += min(shift(log_odds(one, unit, weights[-1], sentence), one.length) for one in nothing)
        tables[direction] = (Reference(*(round(value, 4) for value in unit)), np.round(weights, 3).tolist())
    return tables


def compare(trial: Trial, relevance: NDArray[np.float64]) -> dict[str, Any]:
    """AUC of raw scores and of relevance, and their difference with its 95 % interval (paired bootstrap of photos)."""

    def auc(values: NDArray[np.float64], of: Trial = trial) -> float:
        return roc_auc(values[of.present], values[~of.present])

    groups = [np.flatnonzero(trial.group == each) for each in np.unique(trial.group)]
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(_RESAMPLES):
        drawn = np.concatenate([groups[each] for each in rng.integers(0, len(groups), len(groups))])
        present = trial.present[drawn]
        raw, calibrated = trial.best[drawn], relevance[drawn]
        differences.append(roc_auc(calibrated[present], calibrated[~present]) - roc_auc(raw[present], raw[~present]))
    low, high = np.quantile(differences, [0.025, 0.975])
    roc = {
        f"{alarms:.0%}": [round(found_at(values, trial.present, alarms), 4) for values in (trial.best, relevance)]
        for alarms in (0.01, 0.05, 0.1, 0.2)
    }
    return {
        "raw": round(auc(trial.best), 4),
        "relevance": round(auc(relevance), 4),
        "difference": round(auc(relevance) - auc(trial.best), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
        "found at so many false alarms, raw and relevance": roc,
    }


def found_at(values: NDArray[np.float64], present: NDArray[np.bool_], alarms: float) -> float:
    """A point of the ROC curve: the share of what is there above the value that `alarms` of the rest reach."""
    return float((values[present] > np.quantile(values[~present], 1 - alarms)).mean())


def measure(sets: dict[str, Captions], objects: Objects) -> list[dict[str, Any]]:
    """The figures of every direction, on photos that nothing was fitted on."""
    rng = np.random.default_rng(1)
    figures = []
    for direction in WEIGHTS:
        unit = REFERENCES["starter"][direction]

        def judged(trial: Trial, direction: Direction = direction, unit: Reference = unit) -> dict[str, Any]:
            return compare(trial, trial.relevance(direction, unit))

        def said(trial: Trial, direction: Direction = direction, unit: Reference = unit) -> dict[str, float]:
            relevance = trial.relevance(direction, unit)
            shares = {"matches": relevance >= MATCH, "nothing matches": relevance < NO_MATCH}
            return {name: round(float(which.mean()), 4) for name, which in shares.items()}

        for name, captions in sets.items():
            if name != "val" and direction != ("text", "image"):
                continue
            asked = trials(captions, objects, direction, rng)
            figure = {"query": direction[0], "items": direction[1], "set": name}
            figures.append({**figure, **figures_of("captions", asked.among, asked.lost, judged, said)})
            if asked.pieces is None or asked.absent is None:
                continue
            parts = zip(("words", "phrases"), asked.pieces.parted(), asked.absent.parted(), strict=True)
            for kind, among, lost in parts:
                figures.append({**figure, **figures_of(kind, among, lost, judged, said)})
            everything = joined([asked.among, asked.pieces])
            figures.append({**figure, "queries": "all lengths", "among their kind": judged(everything)})
    return figures


def figures_of(
    kind: str,
    among: Trial,
    lost: Trial,
    judged: Callable[[Trial], dict[str, Any]],
    said: Callable[[Trial], dict[str, float]],
) -> dict[str, Any]:
    """What is to be said of queries of one kind."""
    sizes = np.unique(among.count[among.present]) if kind == "captions" else []
    there = among.where(among.present)
    return {
        "queries": kind,
        "among their kind": judged(among),
        **{
            f"among {size:.0f} of their kind": judged(among.where(np.abs(among.count - size) < size / 4))
            for size in sizes
            if len(sizes) > 1
        },
        "there or elsewhere": judged(joined([there, lost])),
        "said where it is there": said(there),
        "said elsewhere": said(lost),
    }


class _Embedded:
    """The embeddings that the benchmark needs, kept in a folder if there is one."""

    def __init__(self, encoder: Encoder, kept: Path | None) -> None:
        self._encoder = encoder
        self._kept = kept

    def captions(self, captioned: data.Captioned, name: str, words: Sequence[str]) -> Captions:
        languages = {"en": captioned.english, "zh": captioned.chinese}
        pairs = {language: captioned.pairs(texts) for language, texts in languages.items() if any(texts)}
        texts = [self._rows(f"{name}_{language}", list(found[0]), embed_texts) for language, found in pairs.items()]
        said = [text.lower() for found in pairs.values() for text in found[0]]
        owner = np.concatenate([np.array(owner) for _, owner in pairs.values()])
        count = len(captioned.paths)

        def queries(texts: list[str], owner: NDArray[np.int64]) -> Texts:
            return Texts(text_rows(self._encoder, texts), np.array([length_of(text) for text in texts]), owner)

        drawn = pieces(captioned.english, np.random.default_rng(0))
        has_word = np.array([[has(text, word) for text in said] for word in words])
        there = np.flatnonzero(has_word.any(axis=1))
        drawn += [(words[at], int(owner[np.flatnonzero(has_word[at])[0]])) for at in there]
        piece_has = np.array([[has(text, piece) for text in said] for piece, _ in drawn])
        shows = np.zeros((len(drawn), count), dtype=bool)
        for photo in range(count):
            shows[:, photo] = piece_has[:, owner == photo].any(axis=1)
        absent = [phrase for at in np.flatnonzero(~has_word.any(axis=1)) for phrase in phrases(words[at])]
        return Captions(
            self._rows(f"{name}_photos", captioned.paths, embed_photos),
            Texts(np.concatenate(texts), np.array([length_of(text) for text in said]), owner),
            np.concatenate([np.full(len(owner), language) for language, (_, owner) in pairs.items()]),
            queries([piece for piece, _ in drawn], np.array([photo for _, photo in drawn])),
            shows,
            piece_has,
            queries(absent, np.arange(len(absent))),
        )

    def objects(self, labelled: data.Labelled, names: list[str]) -> Objects:
        photos = self._rows("caltech_photos", labelled.paths, embed_photos)
        return Objects(photos, labelled.labels, self._rows("names", names, embed_texts))

    def probes(self) -> Rows:
        return self._encoder.encode_texts(PROBES)

    def _rows(self, name: str, things: Sequence[Any], embed: Callable[[Encoder, Sequence[Any], str], Rows]) -> Rows:
        file = self._kept / f"{name}.npy" if self._kept else None
        if file is not None and file.exists():
            return np.asarray(np.load(file), np.float32)
        rows = embed(self._encoder, things, name)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, rows)
        return rows


def pieces(captions: list[list[str]], rng: np.random.Generator, each: int = 400) -> list[tuple[str, int]]:
    """Parts of captions of one to six words that begin and end as people's queries do, and the photo of each."""
    found: list[tuple[str, int]] = []
    for count in range(1, 7):
        while len(found) < each * count:
            photo = int(rng.integers(len(captions)))
            words = str(rng.choice(captions[photo])).lower().rstrip(" .").split()
            start = int(rng.integers(len(words))) if words else 0
            part = words[start : start + count]
            if len(part) == count and part[-1] not in _LITTLE and part[0] not in _LITTLE - {"a", "an", "the"}:
                if all(word.isalpha() for word in part):
                    found.append((" ".join(part), photo))
    return found


def has(text: str, piece: str) -> bool:
    """Whether a caption has all that a piece says; of Chinese, the piece itself."""
    if not piece.isascii():
        return piece in text
    spaced = f" {text}"
    return all(f" {word}" in spaced for word in piece.split() if word not in _LITTLE)


def phrases(word: str) -> list[str]:
    """A word as people may ask for it."""
    return [word, f"a {word}", f"a photo of a {word}", f"a {word} on a table"] if word.isascii() else [word]


def readable(name: str) -> str:
    """A class of Caltech-101 as words."""
    return name.lower().replace("_", " ")


def some(captioned: data.Captioned, count: int) -> data.Captioned:
    """`count` photos at random."""
    chosen = np.random.default_rng(0).permutation(len(captioned.paths))[:count]
    lists = (captioned.paths, captioned.english, captioned.chinese)
    return data.Captioned(*([each[row] for row in chosen] for each in lists))


def half(objects: Objects, part: int) -> Objects:
    """Every other class and every other name."""
    mine = objects.labels % 2 == part
    return Objects(objects.photos[mine], objects.labels[mine], objects.names[part::2])


def main(argv: list[str] | None = None) -> None:
    """Fits, or measures, prints, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of the data sets")
    parser.add_argument("--fit", action="store_true", help="fit on train, and print the tables")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep embeddings here, for another time")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here, as JSON")
    arguments = parser.parse_args(argv)

    from mmsearch.retrieval.encoders.models import load_encoder

    where_it_ran = describe()
    embedded = _Embedded(load_encoder("starter"), arguments.keep)
    folder: Path = arguments.data
    names_file = Path(data.__file__).parent / "names" / "imagenet_zh.txt"
    names = [line.partition("|")[0] for line in names_file.read_text("utf-8").splitlines()]
    others = (Path(data.__file__).parent / "names" / "imagenet_de_fr_es_ja.tsv").read_text("utf-8").splitlines()
    names += [line.partition("\t")[0] for line in others]
    labelled = data.read_class_folders(folder / "caltech101_train")
    objects = embedded.objects(labelled, names)
    words = sorted({label.words for label in listed_labels("everyday")} | {readable(name) for name in labelled.names})
    if arguments.fit:
        train = some(data.read_captioned(folder / "flickr8k", "train"), _POOL)
        for direction, (unit, weights) in fit(
            embedded.captions(train, "train", words), half(objects, 0), embedded.probes()
        ).items():
            print(f"{direction}: Reference{tuple(unit)}")
            for kind, numbers in zip(("sentences", "words"), weights, strict=False):
                print(f"    of {kind}: Weights{tuple(numbers)}")
        return
    sets = {
        "val": embedded.captions(data.read_captioned(folder / "flickr8k", "val"), "val", words),
        "coco": embedded.captions(data.read_captioned(folder / "coco_dev"), "coco", words),
    }
    figures = measure(sets, half(objects, 1))
    for figure in figures:
        print(json.dumps(figure, ensure_ascii=False))
    if arguments.out:
        command = shlex.join(["python", "benchmarks/relevance.py", *(argv if argv is not None else sys.argv[1:])])
        result = {"benchmark": "relevance", "command": command, "machine": where_it_ran, "figures": figures}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
