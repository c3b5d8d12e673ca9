"""How good zero-shot tags are, by the relevance from which on they are given.

    python benchmarks/tags.py --data ../shared/data --out benchmarks/results/tags.json
    python benchmarks/tags.py --data ../shared/data --fit

Two collections, two kinds of truth. Flickr8k: the tags of the list `everyday` that are a word or two, and whether one
of the five captions of a photo mentions them. Captions leave out most of what is to be seen (sky, walls, faces), so
precision is too low there, and recall is of what people found worth a word. Caltech-101: the names of its classes, of
which each photo has exactly one.

`--fit` prints the weights of `indexers/tagging.py`, from 1,000 photos of Flickr8k *train* and 1,000 of every other
class of Caltech-101. The bias is moved so that from 0.5 on half of the tags are right there, on average of both, where
what no caption mentions counts as wrong. What is reported is measured on *val* and the other classes. Intervals
resample photos.

What the function takes was chosen with figures of *val* and of those classes in view; COCO's 130 photos had no part in
any choice.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from machine import describe
from quality import embed_photos
from relevance import logistic, some

from mmsearch.indexers.labels import Label, listed_labels
from mmsearch.indexers.tagging import LEAST, RIVALS, WEIGHTS, TagScale, TagWeights, rival_scores
from mmsearch.indexers.train import data
from mmsearch.retrieval.calibrate import MATCH, REFERENCES, Background
from mmsearch.retrieval.calibrate import WORD_WEIGHTS as QUERY_WEIGHTS
from mmsearch.retrieval.clauses import text_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder

    Rows = NDArray[np.float32]
    Truth = NDArray[np.bool_]

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

_UNIT = REFERENCES["starter"]["text", "image"]
_HALF = 0.5
_POOL = 1000
_RESAMPLES = 1000

# What else captions say for a tag, beside it and its plural.
_ALSO = {
    "aeroplane": "airplane airplanes plane planes",
    "bicycle": "bike bikes bicyclist bicyclists biker",
    "child": "children kid kids boy boys girl girls toddler toddlers",
    "climbing": "climber climbers climbs climb",
    "costume": "costumed",
    "cycling": "bicyclist bicyclists cyclist cyclists biking",
    "dancing": "dance dances dancer dancers",
    "drinking": "drink drinks",
    "eating": "eat eats",
    "football": "soccer",
    "grass": "grassy",
    "hat": "cap",
    "jumping": "jump jumps leap leaps leaping",
    "man": "men guy guys",
    "motorcycle": "motorbike motorbikes motorcyclist",
    "mountain": "mountainous",
    "night": "nighttime",
    "person": "people man men woman women boy boys girl girls child children kid kids guy guys player",
    "race": "racing racer racers",
    "reading": "read reads",
    "rock": "rocky boulder boulders",
    "running": "run runs runner runners",
    "sand": "sandy",
    "sea": "ocean",
    "singing": "sing sings singer singers",
    "sitting": "sit sits seated",
    "skateboarding": "skateboard skateboards skateboarder skateboarders",
    "skiing": "ski skis skier skiers",
    "sleeping": "sleep sleeps asleep",
    "smiling": "smile smiles",
    "snow": "snowy",
    "snowboarding": "snowboard snowboards snowboarder snowboarders",
    "sofa": "couch couches sofas",
    "stairs": "steps staircase stairway",
    "surfing": "surf surfs surfer surfers surfboard",
    "swimming": "swim swims swimmer swimmers",
    "swimming pool": "pool pools",
    "talking": "talk talks",
    "walking": "walk walks",
    "woman": "women lady ladies",
}


@dataclass(frozen=True, slots=True)
class Collection:
    """Photos, labels, and which of them each photo shows.

    Attributes:
        photos: (n, dim).
        labels: (m, dim).
        truth: (n, m).
    """

    photos: Rows
    labels: Rows
    truth: Truth

    def part(self, photos: NDArray[np.int64]) -> Collection:
        """Some of the photos."""
        return Collection(self.photos[photos], self.labels, self.truth[photos])


def mentioned_in(captions: Sequence[Sequence[str]], labels: Sequence[Label]) -> Truth:
    """(n, m): whether a caption of a photo has a word of a label's tag."""
    forms = [_forms(label.tag) for label in labels]
    truth = np.zeros((len(captions), len(labels)), bool)
    for row, texts in enumerate(captions):
        words = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
        truth[row] = [not words.isdisjoint(form) for form in forms]
    return truth


def _forms(tag: str) -> set[str]:
    also = set(_ALSO.get(tag, "").split())
    if " " in tag or "-" in tag:
        return also
    return {tag, f"{tag}s", f"{tag}es", *([f"{tag[:-1]}ies"] if tag.endswith("y") else []), *also}


def parts_of(of: Collection, rivals: Rows, size: int) -> tuple[NDArray[np.float64], Truth]:
    """What the weights belong to, (k, 4) with the bias's ones, and the truth (k) of each photo and label."""
    features, truth = [], []
    for start in range(0, len(of.photos) - size + 1, size):
        part = of.part(np.arange(start, start + size))
        scale = TagScale.of(_UNIT, rivals, part.labels, part.photos)
        scores = (part.photos @ part.labels.T - _UNIT.mean) / _UNIT.deviation
        rival = np.broadcast_to(rival_scores(part.photos, rivals, _UNIT), scores.shape)
        leans = np.broadcast_to(scale.leans, scores.shape)
        ones = np.ones(scores.size)
        features.append(np.stack([ones, scores.ravel(), rival.ravel(), leans.ravel()], axis=1))
        truth.append(part.truth.ravel())
    return np.concatenate(features), np.concatenate(truth)


def fit(collections: Sequence[Collection], rivals: Rows) -> TagWeights:
    """The weights, of all collections alike."""
    pairs = [parts_of(each, rivals, len(each.photos)) for each in collections]
    weight = np.concatenate([np.full(len(truth), 1 / len(truth)) for _, truth in pairs])
    features = np.concatenate([features for features, _ in pairs])
    found = logistic(features[:, 1:], np.concatenate([truth for _, truth in pairs]), weight)
    odds = [features @ found for features, _ in pairs]
    grid = np.arange(-4.0, 2.0, 0.05)

    def precision(least: float) -> float:
        pairs_given = [(mine >= least, truth) for mine, (_, truth) in zip(odds, pairs, strict=True)]
        return float(np.mean([(given & truth).sum() / max(1, given.sum()) for given, truth in pairs_given]))

    found[0] -= next(least for least in grid if precision(least) >= _HALF) - np.log(LEAST / (1 - LEAST))
    return TagWeights(*np.round(found, 3).tolist())


def relevance_of(of: Collection, rivals: Rows, size: int) -> NDArray[np.float64]:
    """(n, m) relevances as the product gives them, where `size` photos are one index."""
    parts = [of.photos[start : start + size] for start in range(0, len(of.photos), size)]
    return np.concatenate([TagScale.of(_UNIT, rivals, of.labels, part).relevance(part) for part in parts])


def query_relevance(of: Collection) -> NDArray[np.float64]:
    """(n, m): what the relevance of hits would say, as of queries of a word."""
    scores = of.photos @ of.labels.T
    columns = []
    for column in scores.T:
        found = Background(column, len(column), QUERY_WEIGHTS["text", "image"], _UNIT).relevance(column)
        assert found is not None
        columns.append(found)
    return np.stack(columns, axis=1)


def figures_at(given: Truth, truth: Truth) -> dict[str, float]:
    """Precision and recall of all tags, F1, and tags per photo."""
    right = int((given & truth).sum())
    precision, recall = right / max(1, int(given.sum())), right / max(1, int(truth.sum()))
    return {
        "tags per photo": round(float(given.sum()) / len(given), 3),
        "precision": round(precision, 4),
        "recall": round(recall, 4),
        "f1": round(2 * precision * recall / max(1e-9, precision + recall), 4),
    }


def intervals(given: Truth, truth: Truth) -> dict[str, list[float]]:
    """95 % intervals of precision and recall, resampling photos."""
    rng = np.random.default_rng(0)
    right, all_given, all_true = ((given & truth).sum(axis=1), given.sum(axis=1), truth.sum(axis=1))
    drawn = [rng.integers(0, len(given), len(given)) for _ in range(_RESAMPLES)]
    precisions = [right[rows].sum() / max(1, all_given[rows].sum()) for rows in drawn]
    recalls = [right[rows].sum() / max(1, all_true[rows].sum()) for rows in drawn]
    return {
        name: [round(float(bound), 4) for bound in np.quantile(values, [0.025, 0.975])]
        for name, values in (("precision", precisions), ("recall", recalls))
    }


def measure(sets: dict[str, tuple[Collection, int]], rivals: Rows) -> list[dict[str, Any]]:
    """The figures of every collection."""
    figures = []
    for name, (of, size) in sets.items():
        relevance = relevance_of(of, rivals, size)
        given = relevance >= LEAST
        counts = [(column.sum(), (column & real).sum()) for column, real in zip(given.T, of.truth.T, strict=True)]
        figures.append(
            {
                "set": name,
                "photos": len(of.photos),
                "labels": of.labels.shape[0],
                "by relevance": {str(least): figures_at(relevance >= least, of.truth) for least in THRESHOLDS},
                "intervals at 0.5": intervals(given, of.truth),
                "precision at 0.5, mean over labels": round(float(np.mean([r / n for n, r in counts if n])), 4),
                "labels given at 0.5": int(sum(n > 0 for n, _ in counts)),
                "by the relevance of hits at 0.5": figures_at(query_relevance(of) >= MATCH, of.truth),
            }
        )
    return figures


class _Sets:
    """The photos and labels that are measured on, embedded."""

    def __init__(self, folder: Path, encoder: Encoder, kept: Path | None) -> None:
        self._folder, self._encoder, self._kept = folder, encoder, kept
        pairs = zip(listed_labels("everyday"), listed_labels("everyday-zh"), strict=True)
        self._labels = [(english, Label(chinese.tag, chinese.tag)) for english, chinese in pairs if _forms(english.tag)]
        self._classes = data.read_class_folders(folder / "caltech101_train")

    def flickr(self, name: str, *, chinese: bool = False) -> Collection:
        """Photos of a part of Flickr8k, at most `_POOL`, and the labels that are in the list `everyday`."""
        captioned = data.read_captioned(self._folder / "flickr8k", name)
        return self._captioned(name, captioned if len(captioned.paths) <= _POOL else some(captioned, _POOL), chinese)

    def coco(self) -> Collection:
        """Photos of COCO, and the same labels."""
        return self._captioned("coco", data.read_captioned(self._folder / "coco_dev"), chinese=False)

    def _captioned(self, name: str, captioned: data.Captioned, chinese: bool) -> Collection:
        labels = [pair[0] for pair in self._labels]
        truth = mentioned_in(captioned.english, labels)
        words = [pair[chinese].words for pair in self._labels]
        return Collection(self._photos(f"{name}_photos", captioned.paths), text_rows(self._encoder, words), truth)

    def caltech(self, part: int) -> Collection:
        """`_POOL` photos of every other class, without the one that is another one again."""
        names = self._classes.names
        mine = [at for at in range(part, len(names), 2) if names[at] != "Faces easy"]
        photos = np.flatnonzero(np.isin(self._classes.labels, mine))
        photos = np.random.default_rng(part).permutation(photos)[:_POOL]
        rows = self._photos("caltech_photos", self._classes.paths)[photos]
        truth = self._classes.labels[photos][:, None] == np.array(mine)
        return Collection(rows, text_rows(self._encoder, [names[at].lower() for at in mine]), truth)

    def _photos(self, name: str, paths: Sequence[Path]) -> Rows:
        file = self._kept / f"{name}.npy" if self._kept else None
        if file is not None and file.exists():
            return np.asarray(np.load(file), np.float32)
        rows = embed_photos(self._encoder, paths, name)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, rows)
        return rows


def main(argv: list[str] | None = None) -> None:
    """Fits, or measures, prints, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of the data sets")
    parser.add_argument("--fit", action="store_true", help="fit on train, and print the weights")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep embeddings here, for another time")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here, as JSON")
    arguments = parser.parse_args(argv)

    from mmsearch.retrieval.encoders.models import load_encoder

    where_it_ran = describe()
    encoder = load_encoder("starter")
    sets = _Sets(arguments.data, encoder, arguments.keep)
    rivals = text_rows(encoder, [label.words for label in listed_labels(RIVALS)])
    if arguments.fit:
        print(fit([sets.flickr("train"), sets.caltech(0)], rivals))
        return
    val, coco, objects = sets.flickr("val"), sets.coco(), sets.caltech(1)
    absent = Collection(val.photos, objects.labels, np.zeros((len(val.photos), len(objects.labels)), bool))
    figures = measure(
        {
            "val, English": (val, len(val.photos)),
            "val, English, 100 photos an index": (val, 100),
            "COCO, English": (coco, len(coco.photos)),
            "val, Chinese": (sets.flickr("val", chinese=True), len(val.photos)),
            "Caltech-101, the classes not fitted on": (objects, len(objects.photos)),
            "val, with the labels of Caltech-101 (hardly there)": (absent, len(val.photos)),
        },
        rivals,
    )
    for figure in figures:
        print(json.dumps(figure, ensure_ascii=False))
    if arguments.out:
        command = shlex.join(["python", "benchmarks/tags.py", *(argv if argv is not None else sys.argv[1:])])
        result = {
            "benchmark": "tags",
            "command": command,
            "machine": where_it_ran,
            "weights": WEIGHTS._asdict(),
            "figures": figures,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
