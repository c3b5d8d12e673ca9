"""Training runs of the joint model: everything from photos and captions to a bundle."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmsearch.indexers.train.data import read_captioned
from mmsearch.indexers.train.engine import Engine, Outcome, Plan
from mmsearch.indexers.train.joint.data import LANGUAGES, Captions, Photos, look, read_captions, read_photos
from mmsearch.indexers.train.joint.export import export
from mmsearch.indexers.train.joint.measure import changed_accuracy, score
from mmsearch.indexers.train.joint.mixing import cross_fitted
from mmsearch.indexers.train.joint.model import JointModel, Shape
from mmsearch.indexers.train.joint.task import Batch, JointTask, vocabulary_of
from mmsearch.indexers.train.joint.towers import ImageTower, TextTower
from mmsearch.retrieval.encoders.starter import FOLDER

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JointSet:
    """Photos with captions, as the towers see them."""

    photos: Photos
    captions: dict[str, Captions]


class JointRun:
    """A run of a recipe.

    Args:
        recipe: as `recipes/starter-joint.toml`.
        data: folder with `flickr8k/`, as `indexers.train.data` reads it.
        device: where everything is.
        folder: of the bundled encoder.
    """

    def __init__(self, recipe: dict[str, Any], data: Path, device: torch.device, folder: Path = FOLDER) -> None:
        self.recipe = recipe
        self.text = TextTower(folder).to(device)
        image = ImageTower(folder).to(device)
        self.sets: dict[str, JointSet] = {}
        for split, views in (("train", recipe["features"]["views"]), ("val", 1)):
            captioned = read_captioned(data / "flickr8k", split)
            photos = look(image, read_photos(captioned.paths), views, recipe["seed"], device)
            self.sets[split] = JointSet(photos, {name: read_captions(captioned, name) for name in LANGUAGES})
        vocabulary = vocabulary_of(self.sets["train"].captions, len(self.text.words))
        torch.manual_seed(recipe["seed"])
        cells = self.sets["train"].photos.cells[0, ::7].float().flatten(0, 1)
        guessed = int(vocabulary.max()) + 1
        model = JointModel(
            Shape(**recipe["shape"]), cells.mean(0), cells.std(0) + 0.1, vocabulary=guessed, **recipe["rates"]
        )
        self.model = model.to(device)
        train, batch = self.sets["train"], Batch(**recipe["batch"])
        self.task = JointTask(
            self.model, self.text, train.photos, train.captions, batch, vocabulary, lambda _: self.measure(every=2)
        )

    def engine(self) -> Engine:
        """What trains the model."""
        settings = self.recipe["optimiser"]
        groups = [
            {
                "params": [p for p in self.model.parameters() if (p.ndim > 1) == matrix],
                "peak": settings["lr"],
                "weight_decay": settings["weight_decay"] if matrix else 0.0,
            }
            for matrix in (True, False)
        ]
        plan = Plan(
            steps=settings["steps"],
            warmup=settings["warmup"],
            seed=self.recipe["seed"],
            measure_every=settings["measure_every"],
            settings={name: str(self.recipe[name]) for name in ("shape", "rates", "batch", "optimiser", "features")},
        )
        return Engine(self.task, plan, groups)

    def run(self, work: Path, out: Path) -> tuple[Outcome, dict[str, float]]:
        """Trains, or goes on where a stopped run was, and writes the bundle to `out` when all is done."""
        outcome = self.engine().run(work / "joint-checkpoint.pt")
        figures: dict[str, float] = {}
        if outcome.ending == "done":
            _, figures = self.measure()
            export(self.model, self._mix(), out)
        return outcome, figures

    def measure(self, *, every: int = 1) -> tuple[float, dict[str, float]]:
        """By how much success@1 on val is higher than the first stage's, and figures.

        Args:
            every: of so many captions one.
        """
        val = self.sets["val"]
        sets = [score(self.model, self.text, val.photos, val.captions[name].thinned(every)) for name in LANGUAGES]
        fitted, _ = cross_fitted(sets)
        figures: dict[str, float] = {}
        for name, found, reranked in zip(LANGUAGES, sets, fitted, strict=True):
            figures[f"first-{name}"] = round(float(found.success(None).mean()), 4)
            figures[f"reranked-{name}"] = round(float(found.success(reranked).mean()), 4)
            if every == 1:
                changed = changed_accuracy(self.model, self.text, val.photos, val.captions[name])
                figures |= {f"changed-{part}-{name}": value for part, value in changed.items()}
        return sum(figures[f"reranked-{name}"] - figures[f"first-{name}"] for name in LANGUAGES), figures

    def _mix(self) -> tuple[float, float, float]:
        val = self.sets["val"]
        sets = [score(self.model, self.text, val.photos, val.captions[name]) for name in LANGUAGES]
        first, late, cross = cross_fitted(sets)[1].tolist()
        return first, late, cross
