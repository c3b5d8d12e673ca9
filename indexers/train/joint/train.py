"""Training runs of the joint model: everything from photos and captions to a trained model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmsearch.indexers.train.data import read_captioned
from mmsearch.indexers.train.engine import Engine, Plan
from mmsearch.indexers.train.joint.data import LANGUAGES, Captions, Photos, look, read_captions, read_photos
from mmsearch.indexers.train.joint.measure import changed_accuracy, cross_fitted, score, standard
from mmsearch.indexers.train.joint.model import JointModel, Shape
from mmsearch.indexers.train.joint.task import Batch, JointTask, vocabulary_of
from mmsearch.indexers.train.joint.towers import ImageTower, TextTower
from mmsearch.retrieval.encoders.starter import FOLDER

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JointSet:
    """A set of photos with captions, as the towers see it."""

    photos: Photos
    captions: dict[str, Captions]


class JointRun:
    """What all runs share: the towers, what is trained on and what is chosen on.

    Args:
        data: folder with `flickr8k/`, as `indexers.train.data` reads it.
        device: where everything is.
        views: of each training photo.
        seed: of the views.
    """

    def __init__(self, data: Path, device: torch.device, *, views: int, seed: int = 0, folder: Path = FOLDER) -> None:
        self.device = device
        self.text = TextTower(folder).to(device)
        image = ImageTower(folder).to(device)
        self.sets: dict[str, JointSet] = {}
        for split in ("train", "val"):
            captioned = read_captioned(data / "flickr8k", split)
            photos = look(image, read_photos(captioned.paths), views if split == "train" else 1, seed, device)
            self.sets[split] = JointSet(photos, {name: read_captions(captioned, name) for name in LANGUAGES})
            log.info("%s read", split)
        self.vocabulary = vocabulary_of(self.sets["train"].captions, len(self.text.words))

    def model(self, shape: Shape, seed: int, **rates: float) -> JointModel:
        """A fresh model."""
        torch.manual_seed(seed)
        cells = self.sets["train"].photos.cells[0, ::7].float().flatten(0, 1)
        guessed = int(self.vocabulary.max()) + 1
        model = JointModel(shape, cells.mean(0), cells.std(0) + 0.1, vocabulary=guessed, **rates)
        return model.to(self.device)

    def engine(self, model: JointModel, batch: Batch, optimiser: dict[str, Any], seed: int) -> Engine:
        """An engine that trains the model.

        Args:
            optimiser: `steps`, `warmup`, `lr`, `weight_decay`, and `measure_every` (steps).
        """
        train = self.sets["train"]
        task = JointTask(model, self.text, train.photos, train.captions, batch, self.vocabulary, self.measure)
        matrices = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "peak": optimiser["lr"], "weight_decay": optimiser["weight_decay"]},
            {"params": others, "peak": optimiser["lr"], "weight_decay": 0.0},
        ]
        plan = Plan(
            steps=optimiser["steps"],
            warmup=optimiser["warmup"],
            seed=seed,
            measure_every=optimiser["measure_every"],
            settings={"optimiser": dict(optimiser), "seed": seed},
        )
        return Engine(task, plan, groups)

    def measure(self, model: JointModel, *, every: int = 2, cross: bool = True) -> tuple[float, dict[str, float]]:
        """Success@1 on val with cross-fitted weights, minus that of the first stage.

        Args:
            every: of so many captions one.
        """
        figures: dict[str, float] = {}
        for language in LANGUAGES:
            val = self.sets["val"]
            found = score(model, self.text, val.photos, _thinned(val.captions[language], every), cross=cross)
            base = float(found.success(found.first).mean())
            late, both = standard(found.late), standard(found.cross)
            figures[f"first-{language}"] = base
            parts = {"late": [late], "cross": [both], "all": [late, both]} if cross else {"late": [late]}
            for name, scores in parts.items():
                figures[f"{name}-{language}"] = cross_fitted(found, scores)[0]
        figures = {name: round(value, 4) for name, value in figures.items()}
        return sum(max(figures[f"{p}-{lang}"] for p in parts) - figures[f"first-{lang}"] for lang in LANGUAGES), figures

    def changed(self, model: JointModel) -> dict[str, dict[str, float]]:
        """`changed_accuracy` on val by language."""
        val = self.sets["val"]
        return {name: changed_accuracy(model, self.text, val.photos, val.captions[name]) for name in LANGUAGES}


def _thinned(captions: Captions, every: int) -> Captions:
    """Every so-manieth caption, starting at another one of each photo."""
    rows = np.arange(0, len(captions.photo), every) if every > 1 else np.arange(len(captions.photo))
    pieces = captions.pieces.rows(rows)
    return Captions(pieces, captions.photo[rows], captions.changed, [captions.changed_of[row] for row in rows])
