"""The joint model as a task of the engine: hard negatives, matching, masked pieces.

A step takes some photos with a caption of each language. Late interaction scores every caption against every photo of
the step, which trains the tokens and finds the hard negatives: the photos that a caption is most likely to be mistaken
about (ALBEF). Cross-attention reads a caption with its photo and with those, a photo with hard captions, and changed
captions of the photo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from mmsearch.indexers.train.joint.data import LANGUAGES, Captions, Photos
from mmsearch.indexers.train.joint.model import JointModel
from mmsearch.indexers.train.joint.towers import Pieces, TextTower

_UNKNOWN = 3
"""The piece that stands for a masked one; the vocabulary has no piece for masks."""
_SPECIAL = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """How much a step takes.

    Attributes:
        photos: in a step, each with a caption of each language.
        hard_photos, hard_captions: negatives that are read with each caption, and with each photo.
        pool: the negatives are drawn out of so many hardest ones.
        token_dropout: of the pieces that are looked at.
        smoothing: of labels.
        late, cross, changed, masked: weights of the losses.
    """

    photos: int = 512
    hard_photos: int = 12
    hard_captions: int = 4
    pool: int = 40
    token_dropout: float = 0.1
    smoothing: float = 0.05
    late: float = 1.0
    cross: float = 1.0
    changed: float = 0.3
    masked: float = 0.2


class JointTask:
    """Batches and losses of the joint model.

    Args:
        model: on a device already.
        tower: of texts, on the same device.
        photos, captions: what is trained on; captions by language.
        batch: how much of it a step takes.
        vocabulary: for each piece its number among those that can be guessed, or -1.
        evaluate: gives a score and figures.
    """

    def __init__(
        self,
        model: JointModel,
        tower: TextTower,
        photos: Photos,
        captions: dict[str, Captions],
        batch: Batch,
        vocabulary: NDArray[np.int64],
        evaluate: Callable[[JointModel], tuple[float, dict[str, float]]],
    ) -> None:
        self.model, self._tower, self._photos, self._captions, self._batch = model, tower, photos, captions, batch
        self._vocabulary, self._evaluate = vocabulary, evaluate
        self._device = next(model.parameters()).device
        self._rows_of = {name: _grouped(captions[name].photo, photos.cells.shape[1]) for name in captions}

    def losses(self, step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Late interaction, matching, changed captions and masked pieces, of both languages."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            return self._losses(rng)

    def _losses(self, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        batch, model = self._batch, self.model
        chosen = rng.choice(self._photos.cells.shape[1], batch.photos, replace=False)
        cells, embeddings = self._seen(chosen, rng)
        tokens = model.compress(cells)
        losses: dict[str, torch.Tensor] = {}
        pictures = model.picture(tokens, embeddings) if batch.cross else None
        target = torch.arange(len(chosen), device=self._device)
        for language in LANGUAGES:
            captions = self._captions[language]
            rows = np.array([rng.choice(self._rows_of[language][photo]) for photo in chosen])
            states, mask = self._read(captions.pieces, rows, rng)
            scores = model.late(*model.pieces(states, mask), tokens)
            logits = scores * model.late_scale.exp().clamp(max=200.0)
            losses[f"late-{language}"] = batch.late * (self._entropy(logits, target) + self._entropy(logits.T, target))
            if pictures is None:
                continue
            with torch.no_grad():
                first = self._tower.embed(states, mask) @ embeddings.T
                difficulty = _standard(scores.float()) + _standard(first.float())
            losses[f"match-{language}"] = batch.cross * self._match(states, mask, pictures, difficulty)
            if batch.changed:
                losses[f"changed-{language}"] = batch.changed * self._changed(
                    captions, rows, states, mask, pictures, rng
                )
            if batch.masked:
                losses[f"masked-{language}"] = batch.masked * self._guess(captions.pieces, rows, pictures, rng)
        return losses

    def _seen(self, chosen: NDArray[np.int64], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Cells and embeddings of photos, each under a view of its own."""
        views = torch.from_numpy(rng.integers(len(self._photos.cells), size=len(chosen)))
        photos = torch.from_numpy(chosen)
        cells = self._photos.cells[views, photos].to(self._device, torch.float32)
        return cells, self._photos.embeddings[views, photos].to(self._device)

    def _read(
        self, pieces: Pieces, rows: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States of texts, with some of their pieces left out."""
        ids, mask = pieces.padded(rows, self._device)
        if self._batch.token_dropout:
            kept = torch.from_numpy(rng.random(mask.shape) >= self._batch.token_dropout).to(self._device)
            kept[:, 0] = True
            mask = mask & kept
        with torch.no_grad():
            states = self._tower(ids, mask)
        return states.float(), mask

    def _match(
        self, states: torch.Tensor, mask: torch.Tensor, pictures: torch.Tensor, difficulty: torch.Tensor
    ) -> torch.Tensor:
        """Each caption finds its photo among hard ones, each photo its caption among hard ones."""
        n = len(states)
        own = torch.arange(n, device=states.device)
        photos = torch.cat([own[:, None], self._hard(difficulty, self._batch.hard_photos)], 1)
        texts = torch.cat([own[:, None], self._hard(difficulty.T, self._batch.hard_captions)], 1)
        text_of = torch.cat([own.repeat_interleave(photos.shape[1]), texts.flatten()])
        photo_of = torch.cat([photos.flatten(), own.repeat_interleave(texts.shape[1])])
        logits = self.model.cross(states[text_of], mask[text_of], pictures, photo_of).float()
        first = torch.zeros(n, dtype=torch.int64, device=states.device)
        by_text, by_photo = logits[: photos.numel()].view(n, -1), logits[photos.numel() :].view(n, -1)
        return self._entropy(by_text, first) + 0.5 * self._entropy(by_photo, first)

    def _hard(self, difficulty: torch.Tensor, count: int) -> torch.Tensor:
        """For each row `count` random ones of the hardest columns, never its own."""
        own = torch.eye(len(difficulty), dtype=torch.bool, device=difficulty.device)
        pool = min(max(count, self._batch.pool), len(difficulty) - 1)
        best = difficulty.masked_fill(own, -torch.inf).topk(pool, 1).indices
        drawn = torch.rand(best.shape, device=best.device).topk(count, 1).indices
        return best.gather(1, drawn)

    def _changed(
        self,
        captions: Captions,
        rows: NDArray[np.int64],
        states: torch.Tensor,
        mask: torch.Tensor,
        pictures: torch.Tensor,
        rng: np.random.Generator,
    ) -> torch.Tensor:
        """A photo prefers its caption to a changed one."""
        with_changes = np.flatnonzero([len(captions.changed_of[row]) > 0 for row in rows])
        if not len(with_changes):
            return states.sum() * 0.0
        changed = np.array([rng.choice(captions.changed_of[row]) for row in rows[with_changes]])
        other, other_mask = self._read(captions.changed, changed, rng)
        where = torch.from_numpy(with_changes).to(self._device)
        true = self.model.cross(states[where], mask[where], pictures, where)
        false = self.model.cross(other, other_mask, pictures, where)
        return F.softplus(false.float() - true.float()).mean()

    def _guess(
        self, pieces: Pieces, rows: NDArray[np.int64], pictures: torch.Tensor, rng: np.random.Generator
    ) -> torch.Tensor:
        """The piece that was masked in each caption, out of the rest of it and the photo."""
        ids, mask = pieces.padded(rows, self._device)
        lengths = pieces.lengths[rows]
        at = (1 + rng.random(len(rows)) * np.maximum(1, lengths - 2)).astype(np.int64)
        truth = torch.from_numpy(self._vocabulary[pieces.ids[rows, at]]).to(self._device)
        places = torch.from_numpy(at).to(self._device)
        which = torch.arange(len(rows), device=self._device)
        ids[which, places] = _UNKNOWN
        with torch.no_grad():
            states = self._tower(ids, mask).float()
        logits = self.model.guess(states, mask, pictures, which, places)
        return F.cross_entropy(logits.float(), truth, ignore_index=-1)

    def _entropy(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), target, label_smoothing=self._batch.smoothing)

    def after_update(self) -> None:
        """Nothing depends on it."""

    def measure(self) -> tuple[float, dict[str, float]]:
        """How much better val is ordered."""
        return self._evaluate(self.model)

    def state(self) -> dict[str, Any]:
        """Nothing but the engine's own."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""


def vocabulary_of(captions: dict[str, Captions], pieces: int) -> NDArray[np.int64]:
    """For each piece its number among those of the captions, or -1."""
    used = np.unique(np.concatenate([captions[language].pieces.ids.ravel() for language in captions]))
    numbers = np.full(pieces, -1, np.int64)
    used = used[used >= _SPECIAL]
    numbers[used] = np.arange(len(used))
    return numbers


def _grouped(photo: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """The captions of each photo."""
    order = np.argsort(photo, kind="stable")
    return np.split(order, np.searchsorted(photo[order], np.arange(1, count)))


def _standard(scores: torch.Tensor) -> torch.Tensor:
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)
