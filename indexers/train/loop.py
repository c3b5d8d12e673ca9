"""The bundled model's recipe as a task of the engine: its batches and losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from mmsearch.indexers.train.engine import Engine, Plan
from mmsearch.indexers.train.model import ClassPrototypes, Student
from mmsearch.indexers.train.text import Cached


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Everything a step draws from.

    Attributes:
        views: features (photos, 1280) float16 of each view of the training photos.
        teacher: (photos, classes) logits of the backbone's classifier on view 0.
        texts: cached states of all training texts.
        english, chinese: for each photo the rows of `texts` that caption it.
        classes: for each class its rows of `texts` by language: `en`, `zh`, `other`.
    """

    views: list[NDArray[np.float16]]
    teacher: NDArray[np.float32]
    texts: Cached
    english: list[NDArray[np.int64]]
    chinese: list[NDArray[np.int64]]
    classes: list[dict[str, NDArray[np.int64]]]
    prototypes: ClassPrototypes


class _Queue:
    """Captions of recent steps: detached rows and their photos, as further negatives."""

    def __init__(self, size: int, dim: int) -> None:
        self.size = size
        self.rows = torch.zeros(0, dim)
        self.photos = torch.zeros(0, dtype=torch.int64)

    def push(self, rows: torch.Tensor, photos: torch.Tensor) -> None:
        self.rows = torch.cat([rows.detach(), self.rows])[: self.size]
        self.photos = torch.cat([photos, self.photos])[: self.size]


def stages(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a recipe, each a recipe of its own: the first, then one for each `then` with its changes."""
    first = {name: value for name, value in recipe.items() if name not in ("then", "finally")}
    return [first, *(_changed(first, then) for then in recipe.get("then", []))]


def _changed(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    changed = {
        name: value | changes.get(name, {}) if isinstance(value, dict) else value for name, value in recipe.items()
    }
    return changed | {name: value for name, value in changes.items() if name not in recipe}


class StarterTask:
    """What the recipe of the bundled model gives the engine: batches of photos, captions and class names."""

    def __init__(
        self,
        student: Student,
        data: TrainingSet,
        recipe: dict[str, Any],
        evaluate: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        self.model, self.data, self.recipe, self._evaluate = student, data, recipe, evaluate
        dim = recipe["model"]["dim"]
        self.queues = {name: _Queue(recipe["batch"]["queue"], dim) for name in ("english", "chinese")}
        self._order: list[int] = []
        self._latest: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def losses(self, step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Captions against photos in both languages, class names, the backbone's opinion, caption against caption."""
        recipe, student = self.recipe, self.model
        photos = self._photos(recipe["batch"]["photos"], rng)
        others = rng.choice(len(self.data.english), recipe["batch"]["negatives"], replace=False)
        others = others[~np.isin(others, photos)]
        classes = self._classes(photos, recipe["batch"]["classes"], rng)
        n, c = len(photos), len(classes)

        captions = [_draw(self.data.english, photos, rng), _draw(self.data.chinese, photos, rng)]
        names_of = self._class_names(classes, rng)
        texts = student.embed_texts(self.data.texts, np.concatenate([*captions, names_of]))
        english, chinese, names = texts[:n], texts[n : 2 * n], texts[2 * n :]
        pseudo = self.data.prototypes.sample(classes, recipe["features"]["pseudo_noise"], rng)
        features = np.concatenate([self._features(photos, rng), self._features(others, rng), pseudo])
        images = student.image_head(torch.from_numpy(features))
        own, pool, places = images[:n], images[: n + len(others)], images[n + len(others) :]

        scale, weights = student.scale(), self._loss_weights(step)
        ids = torch.from_numpy(photos)
        losses = {
            "english": self._contrast(english, own, pool, ids, "english", scale),
            "chinese": weights["chinese"] * self._contrast(chinese, own, pool, ids, "chinese", scale),
        }
        target = torch.arange(c)
        by_class = scale * names @ places.T
        losses["classes"] = weights["class_names"] * (
            self._cross_entropy(by_class, target) + self._cross_entropy(by_class.T, target)
        )
        teacher = torch.from_numpy(self.data.teacher[photos][:, classes]).softmax(-1)
        student_classes = (scale * own @ names.T).log_softmax(-1)
        losses["distilled"] = weights["distillation"] * F.kl_div(student_classes, teacher, reduction="batchmean")
        across = scale * english @ chinese.T
        order = torch.arange(n)
        losses["captions"] = weights["captions"] * (
            self._cross_entropy(across, order) + self._cross_entropy(across.T, order)
        )
        self._latest = [("english", english, ids), ("chinese", chinese, ids)]
        return losses

    def after_update(self) -> None:
        """Puts the captions of the step into the queues."""
        for name, rows, photos in self._latest:
            self.queues[name].push(rows, photos)

    def measure(self) -> tuple[float, dict[str, float]]:
        """Figures to watch; the recipe's last step is its result whatever they are."""
        figures = self._evaluate() if self._evaluate else {}
        return sum(figures.values()), figures

    def state(self) -> dict[str, Any]:
        """The queues, and the photos that are still to come in this round."""
        queues = {name: (queue.rows, queue.photos) for name, queue in self.queues.items()}
        return {"order": self._order, "queues": queues}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over a `state`."""
        self._order = state["order"]
        for name, (rows, photos) in state["queues"].items():
            self.queues[name].rows, self.queues[name].photos = rows, photos

    def _loss_weights(self, step: int) -> dict[str, float]:
        weights = dict(self.recipe["loss"])
        late = weights.pop("late", None)
        if late and step >= late["from_step"]:
            weights |= late
        return weights

    def _contrast(
        self,
        texts: torch.Tensor,
        images: torch.Tensor,
        pool: torch.Tensor,
        photos: torch.Tensor,
        language: str,
        scale: torch.Tensor,
    ) -> torch.Tensor:
        """Symmetric InfoNCE; captions see `pool`, photos see the captions of this and earlier steps."""
        target = torch.arange(len(texts))
        queue = self.queues[language]
        backwards = scale * images @ torch.cat([texts, queue.rows]).T
        same = photos[:, None] == queue.photos[None]
        backwards[:, len(texts) :] = backwards[:, len(texts) :].masked_fill(same, -1e4)
        return self._cross_entropy(scale * texts @ pool.T, target) + self._cross_entropy(backwards, target)

    def _cross_entropy(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        smoothing = self.recipe["optimiser"]["label_smoothing"]
        # Smooth by hand over the unmasked ones only: a masked logit would dominate the smoothed mean.
        logs = logits.log_softmax(-1)
        real = logits > -1e3
        uniform = (logs * real).sum(-1) / real.sum(-1)
        wanted = logs.gather(1, target[:, None])[:, 0]
        loss: torch.Tensor = -((1 - smoothing) * wanted + smoothing * uniform).mean()
        return loss

    def _photos(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        if len(self._order) < count:
            self._order = rng.permutation(len(self.data.english)).tolist()
        chosen, self._order = self._order[:count], self._order[count:]
        return np.array(chosen)

    def _features(self, photos: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
        views = rng.integers(0, self.recipe["features"]["views"], len(photos))
        return np.stack([self.data.views[v][p] for v, p in zip(views, photos, strict=True)]).astype(np.float32)

    def _classes(self, photos: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Distinct classes: a third are what the teacher sees in these photos, the rest are random."""
        seen = np.argsort(-self.data.teacher[photos], axis=1)[:, :3].ravel()
        seen = rng.permutation(np.unique(seen))[: count // 3]
        rest = rng.permutation(self.data.teacher.shape[1])
        return np.concatenate([seen, rest[~np.isin(rest, seen)][: count - len(seen)]])

    def _class_names(self, classes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        languages = rng.choice(["en", "zh", "other"], len(classes), p=[0.5, 0.25, 0.25])
        return np.array(
            [rng.choice(self.data.classes[c][language]) for c, language in zip(classes, languages, strict=True)]
        )


def _draw(captions: list[NDArray[np.int64]], photos: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    return np.array([rng.choice(captions[p]) for p in photos])


class Trainer(Engine):
    """Trains a `Student` by a recipe.

    Args:
        student: changed in place.
        data: what the steps draw from.
        recipe: a stage of a recipe.
        evaluate: gives figures to watch beside the checkpoints.
    """

    def __init__(
        self,
        student: Student,
        data: TrainingSet,
        recipe: dict[str, Any],
        evaluate: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        settings = recipe["optimiser"]
        groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in student.named_parameters():
            groups.setdefault((name.startswith("upper."), parameter.ndim > 1), []).append(parameter)
        super().__init__(
            StarterTask(student, data, recipe, evaluate),
            Plan(steps=settings["steps"], warmup=settings["warmup"], seed=recipe["seed"]),
            [
                {
                    "params": parameters,
                    "peak": settings["layers_lr" if layers else "heads_lr"],
                    "weight_decay": settings["weight_decay"] if matrix else 0.0,
                }
                for (layers, matrix), parameters in groups.items()
            ],
        )
