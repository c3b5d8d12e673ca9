"""Whether relevance tells what is there from what is not, better than raw scores do.

    python benchmarks/relevance.py --data ../shared/data --out benchmarks/results/relevance.json
    python benchmarks/relevance.py --data ../shared/data --fit

Each query is put twice: to a corpus that has its answer, and to the same without it and without all that is nearly
the same picture. The best item's score should be higher the first time. AUC is the chance that it is, for two queries
drawn at random; both languages are mixed. That is hard where all photos are of one kind, as here: another photo often
suits a caption as well as its own does. So there is a second test, captions against photos of other things
(Caltech-101's objects), where nothing should be said to match.

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

from mmsearch.indexers.train import data
from mmsearch.retrieval.calibrate import MATCH, REFERENCES, WEIGHTS, Direction, Reference, reference_of
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
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Captions:
    """Photos and their captions in all languages, embedded: `owner[i]` is the row of the photo of caption i."""

    photos: Rows
    texts: Rows
    owner: NDArray[np.int64]
    language: NDArray[np.str_]

    def of(self, rows: NDArray[np.bool_]) -> Captions:
        """Some of the captions, and all photos."""
        return Captions(self.photos, self.texts[rows], self.owner[rows], self.language[rows])


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
    """

    best: NDArray[np.float64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    count: NDArray[np.float64]
    present: NDArray[np.bool_]
    group: NDArray[np.int64]

    def where(self, chosen: NDArray[np.bool_]) -> Trial:
        """Some of the queries."""
        return Trial(*(getattr(self, name)[chosen] for name in self.__slots__))

    def features(self, unit: Reference) -> NDArray[np.float64]:
        """(q, 4): what the weights of `calibrate.Weights` after the bias belong to."""
        best, mean = ((values - unit.mean) / unit.deviation for values in (self.best, self.mean))
        return np.stack([best, mean, self.deviation / unit.deviation, np.log10(self.count)], axis=1)

    def relevance(self, direction: Direction, unit: Reference) -> NDArray[np.float64]:
        """By the product's weights."""
        weights = np.array(WEIGHTS[direction])
        return 1.0 / (1.0 + np.exp(-(self.features(unit) @ weights[1:] + weights[0])))


def joined(trials: Sequence[Trial]) -> Trial:
    """One trial of several."""
    return Trial(*(np.concatenate([getattr(one, name) for one in trials]) for name in Trial.__slots__))


def put(
    queries: Rows, corpus: Rows, group: NDArray[np.int64], removed: NDArray[np.bool_] | None, present: bool
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
    )


def twice(queries: Rows, corpus: Rows, group: NDArray[np.int64], answers: NDArray[np.bool_]) -> Trial:
    """With the answers (q, n), and without."""
    return joined([put(queries, corpus, group, None, True), put(queries, corpus, group, answers, False)])


def corpora(count: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """`count` things at random, in parts of `size`."""
    order = rng.permutation(count)
    for start in range(0, count - min(size, count) + 1, size):
        yield order[start : start + size]


def text_to_image(captions: Captions, size: int, rng: np.random.Generator) -> Trial:
    """Captions against photos of their kind."""
    near = captions.photos @ captions.photos.T > _NEAR
    trials = []
    for photos in corpora(len(captions.photos), size, rng):
        mine = np.isin(captions.owner, photos)
        owner = captions.owner[mine]
        trials.append(twice(captions.texts[mine], captions.photos[photos], owner, near[owner][:, photos]))
    return joined(trials)


def image_to_text(captions: Captions, size: int, rng: np.random.Generator) -> Trial:
    """Photos against captions of such photos."""
    trials = []
    for photos in corpora(len(captions.photos), size, rng):
        mine = np.isin(captions.owner, photos)
        answers = photos[:, None] == captions.owner[mine]
        trials.append(twice(captions.photos[photos], captions.texts[mine], photos, answers))
    return joined(trials)


def text_to_text(captions: Captions, size: int, rng: np.random.Generator) -> Trial:
    """A photo's first caption against all others of the same language."""
    trials = []
    for language in np.unique(captions.language):
        of = captions.of(captions.language == language)
        first = np.flatnonzero(np.diff(of.owner, prepend=-1))
        rest = np.setdiff1d(np.arange(len(of.owner)), first)
        for part in corpora(len(first), size, rng):
            queries = first[part]
            others = rest[np.isin(of.owner[rest], of.owner[queries])]
            answers = of.owner[queries][:, None] == of.owner[others]
            trials.append(twice(of.texts[queries], of.texts[others], of.owner[queries], answers))
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


def elsewhere(queries: Rows, corpus: Rows, rng: np.random.Generator, most: int = 400) -> Trial:
    """Queries against what is of another kind altogether: nothing matches."""
    trials = []
    for size in (*SIZES, 2000):
        for _ in range(8):
            chosen = rng.permutation(len(queries))[:most]
            rows = rng.permutation(len(corpus))[:size]
            trials.append(put(queries[chosen], corpus[rows], chosen, None, False))
    return joined(trials)


def trials(captions: Captions, objects: Objects, direction: Direction, rng: np.random.Generator) -> tuple[Trial, Trial]:
    """A direction's queries among their kind, at all sizes, and elsewhere."""
    among: Callable[[Any, int, np.random.Generator], Trial]
    if direction == ("text", "image"):
        among, of, lost = text_to_image, captions, [(captions.texts, objects.photos)]
    elif direction == ("image", "image"):
        among, of = image_to_image, objects
        lost = [(captions.photos, objects.photos), (objects.photos, captions.photos)]
    elif direction == ("text", "text"):
        among, of, lost = text_to_text, captions, [(captions.texts, objects.names)]
    else:
        among, of = image_to_text, captions
        lost = [(captions.photos, objects.names), (objects.photos, captions.texts)]
    sizes = [size for size in SIZES if size <= len(captions.photos)] or [len(captions.photos)]
    return (
        joined([among(of, size, rng) for size in sizes]),
        joined([elsewhere(queries, corpus, rng) for queries, corpus in lost]),
    )


def logistic(
    features: NDArray[np.float64], label: NDArray[np.bool_], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights of a logistic regression, the bias first (Newton's method, ridge 1e-6 of the mean)."""
    inputs = np.column_stack([np.ones(len(features)), features])
    found = np.zeros(inputs.shape[1])
    for _ in range(50):
        chance = 1.0 / (1.0 + np.exp(-(inputs @ found)))
        slope = inputs.T @ (weight * (label - chance)) / weight.sum()
        curve = (inputs * (weight * chance * (1 - chance))[:, None]).T @ inputs / weight.sum()
        step = np.linalg.solve(curve + 1e-6 * np.eye(len(found)), slope)
        found = found + step
        if np.abs(step).max() < 1e-9:
            break
    return found


def fit(captions: Captions, objects: Objects, probes: Rows) -> dict[Direction, tuple[Reference, list[float]]]:
    """The reference and the weights of each direction."""
    rng = np.random.default_rng(0)
    fitted = {}
    for direction in WEIGHTS:
        queries = probes if direction[0] == "text" else captions.photos
        rows = captions.photos if direction[1] == "image" else captions.texts
        unit = reference_of(queries, rows)
        assert unit is not None
        among, lost = trials(captions, objects, direction, rng)
        both = joined([among, lost])
        weight = np.r_[np.ones(len(among.best)), np.full(len(lost.best), len(among.best) / 2 / len(lost.best))]
        weights = logistic(both.features(unit), both.present, weight)
        odds = lost.features(unit) @ weights[1:]
        weights[0] = np.log(MATCH / (1 - MATCH)) - np.quantile(odds, 1 - FALSE_ALARMS)
        fitted[direction] = (Reference(*(round(value, 4) for value in unit)), np.round(weights, 3).tolist())
    return fitted


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
        for name, captions in sets.items():
            if name != "val" and direction != ("text", "image"):
                continue
            among, lost = trials(captions, objects, direction, rng)
            both = joined([among.where(among.present), lost])
            hits, alarms = (one.relevance(direction, unit) >= MATCH for one in (among.where(among.present), lost))
            by_size = np.unique(among.count.round(-2)) if direction == ("text", "image") and name == "val" else []
            figures.append(
                {
                    "query": direction[0],
                    "items": direction[1],
                    "set": name,
                    "among their kind": compare(among, among.relevance(direction, unit)),
                    **{
                        f"among {size:.0f} of their kind": compare(part, part.relevance(direction, unit))
                        for size in by_size
                        for part in [among.where(among.count.round(-2) == size)]
                    },
                    "there or elsewhere": compare(both, both.relevance(direction, unit)),
                    "matches where it is there": round(float(hits.mean()), 4),
                    "matches elsewhere": round(float(alarms.mean()), 4),
                }
            )
    return figures


class _Embedded:
    """The embeddings that the benchmark needs, kept in a folder if there is one."""

    def __init__(self, encoder: Encoder, kept: Path | None) -> None:
        self._encoder = encoder
        self._kept = kept

    def captions(self, captioned: data.Captioned, name: str) -> Captions:
        languages = {"en": captioned.english, "zh": captioned.chinese}
        pairs = {language: captioned.pairs(texts) for language, texts in languages.items() if any(texts)}
        texts = [self._rows(f"{name}_{language}", list(found[0]), embed_texts) for language, found in pairs.items()]
        return Captions(
            self._rows(f"{name}_photos", captioned.paths, embed_photos),
            np.concatenate(texts),
            np.concatenate([np.array(owner) for _, owner in pairs.values()]),
            np.concatenate([np.full(len(owner), language) for language, (_, owner) in pairs.items()]),
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
    objects = embedded.objects(data.read_class_folders(folder / "caltech101_train"), names)
    if arguments.fit:
        train = some(data.read_captioned(folder / "flickr8k", "train"), _POOL)
        for direction, (unit, weights) in fit(
            embedded.captions(train, "train"), half(objects, 0), embedded.probes()
        ).items():
            print(f"{direction}: Reference{tuple(unit)}, Weights{tuple(weights)}")
        return
    sets = {
        "val": embedded.captions(data.read_captioned(folder / "flickr8k", "val"), "val"),
        "coco": embedded.captions(data.read_captioned(folder / "coco_dev"), "coco"),
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
