"""The training loop: batches, losses, schedule, checkpoints that a later run resumes from."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from mmsearch.indexers.train.model import ClassPrototypes, Student
from mmsearch.indexers.train.text import Cached

log = logging.getLogger(__name__)

_CHECKPOINT_SECONDS = 600


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


class Trainer:
    """Trains a `Student` by a recipe. `step` makes one update; `run` makes all, with checkpoints."""

    def __init__(self, student: Student, data: TrainingSet, recipe: dict[str, Any]) -> None:
        self.student, self.data, self.recipe = student, data, recipe
        self.rng = np.random.default_rng(recipe["seed"])
        torch.manual_seed(recipe["seed"])
        settings = recipe["optimiser"]
        groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in student.named_parameters():
            groups.setdefault((name.startswith("upper."), parameter.ndim > 1), []).append(parameter)
        self.optimiser = torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "peak": settings["layers_lr" if layers else "heads_lr"],
                    "weight_decay": settings["weight_decay"] if matrix else 0.0,
                }
                for (layers, matrix), parameters in groups.items()
            ],
            lr=0.0,
            betas=(0.9, 0.98),
        )
        dim = recipe["model"]["dim"]
        self.queues = {name: _Queue(recipe["batch"]["queue"], dim) for name in ("english", "chinese")}
        self.step_number = 0
        self._order: list[int] = []

    def run(self, checkpoint: Path, evaluate: Any = None) -> None:
        """Train to the recipe's last step; goes on from `checkpoint` where it exists."""
        if checkpoint.exists():
            self.restore(checkpoint)
        steps = self.recipe["optimiser"]["steps"]
        saved = began = time.monotonic()
        first = self.step_number
        losses: dict[str, float] = {}
        while self.step_number < steps:
            for name, value in self.step().items():
                losses[name] = losses.get(name, value) * 0.95 + value * 0.05
            if self.step_number % 20 == 0:
                pace = (time.monotonic() - began) / (self.step_number - first)
                shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
                log.info("step %d/%d  %.2f s/step  %s", self.step_number, steps, pace, shown)
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                self.save(checkpoint)
                if evaluate is not None:
                    log.info("step %d  %s", self.step_number, evaluate())
                saved = time.monotonic()
        self.save(checkpoint)

    def step(self) -> dict[str, float]:
        """One batch, one update; the losses by name."""
        recipe, rng, student = self.recipe, self.rng, self.student
        self._schedule()
        student.train()
        photos = self._photos(recipe["batch"]["photos"])
        others = rng.choice(len(self.data.english), recipe["batch"]["negatives"], replace=False)
        others = others[~np.isin(others, photos)]
        classes = self._classes(photos, recipe["batch"]["classes"])
        n, c = len(photos), len(classes)

        captions = [self._draw(self.data.english, photos), self._draw(self.data.chinese, photos)]
        texts = student.embed_texts(self.data.texts, np.concatenate([*captions, self._class_names(classes)]))
        english, chinese, names = texts[:n], texts[n : 2 * n], texts[2 * n :]
        pseudo = self.data.prototypes.sample(classes, recipe["features"]["pseudo_noise"], rng)
        features = np.concatenate([self._features(photos), self._features(others), pseudo])
        images = student.image_head(torch.from_numpy(features))
        own, pool, places = images[:n], images[: n + len(others)], images[n + len(others) :]

        scale, weights = student.scale(), self._loss_weights()
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
        total = torch.stack(list(losses.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        self.optimiser.step()
        self.queues["english"].push(english, ids)
        self.queues["chinese"].push(chinese, ids)
        self.step_number += 1
        return {name: float(value.detach()) for name, value in losses.items()}

    def _loss_weights(self) -> dict[str, float]:
        weights = dict(self.recipe["loss"])
        late = weights.pop("late", None)
        if late and self.step_number >= late["from_step"]:
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

    def _photos(self, count: int) -> NDArray[np.int64]:
        if len(self._order) < count:
            self._order = self.rng.permutation(len(self.data.english)).tolist()
        chosen, self._order = self._order[:count], self._order[count:]
        return np.array(chosen)

    def _features(self, photos: NDArray[np.int64]) -> NDArray[np.float32]:
        views = self.rng.integers(0, self.recipe["features"]["views"], len(photos))
        return np.stack([self.data.views[v][p] for v, p in zip(views, photos, strict=True)]).astype(np.float32)

    def _draw(self, captions: list[NDArray[np.int64]], photos: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([self.rng.choice(captions[p]) for p in photos])

    def _classes(self, photos: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Distinct classes: a third are what the teacher sees in these photos, the rest are random."""
        seen = np.argsort(-self.data.teacher[photos], axis=1)[:, :3].ravel()
        seen = self.rng.permutation(np.unique(seen))[: count // 3]
        rest = self.rng.permutation(self.data.teacher.shape[1])
        return np.concatenate([seen, rest[~np.isin(rest, seen)][: count - len(seen)]])

    def _class_names(self, classes: NDArray[np.int64]) -> NDArray[np.int64]:
        languages = self.rng.choice(["en", "zh", "other"], len(classes), p=[0.5, 0.25, 0.25])
        return np.array(
            [self.rng.choice(self.data.classes[c][language]) for c, language in zip(classes, languages, strict=True)]
        )

    def _schedule(self) -> None:
        settings = self.recipe["optimiser"]
        if self.step_number < settings["warmup"]:
            share = (self.step_number + 1) / settings["warmup"]
        else:
            done = (self.step_number - settings["warmup"]) / (settings["steps"] - settings["warmup"])
            share = 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * share

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on; the old checkpoint lives until the new one is whole."""
        state = {
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step_number,
            "order": self._order,
            "rng": self.rng.bit_generator.state,
            "torch_rng": torch.get_rng_state(),
            "queues": {name: (queue.rows, queue.photos) for name, queue in self.queues.items()},
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint of the same recipe."""
        state = torch.load(path, weights_only=True)
        self.student.load_state_dict(state["student"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step_number, self._order = state["step"], state["order"]
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch_rng"])
        for name, (rows, photos) in state["queues"].items():
            self.queues[name].rows, self.queues[name].photos = rows, photos
        log.info("resumed at step %d from %s", self.step_number, path)
