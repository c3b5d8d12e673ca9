"""The dual encoder while it is trained, and the pseudo features that stand for photos of a class."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from mmsearch.indexers.train.text import Cached, Layers, pool


class ImageHead(nn.Module):
    """Standardise, then an MLP in the form of open_clip's timm `mlp` projection."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, hidden: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.fc1 = nn.Linear(len(mean), hidden)
        self.fc2 = nn.Linear(hidden, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n, features) to (n, dim) rows of length 1."""
        x = self.dropout((features - self.mean) / self.std)  # type: ignore[operator]
        return F.normalize(self.fc2(self.dropout(F.gelu(self.fc1(x)))), dim=-1)

    def folded(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """fc1 weight and bias that take raw features, and fc2 weight."""
        weight = self.fc1.weight / self.std  # type: ignore[operator]
        return weight, self.fc1.bias - weight @ self.mean, self.fc2.weight  # type: ignore[operator]


class Student(nn.Module):
    """Upper text layers, the two heads and the temperature: everything that is trained."""

    def __init__(self, upper: Layers, width: int, head: ImageHead, dim: int, token_dropout: float) -> None:
        super().__init__()
        self.upper, self.image_head, self.token_dropout = upper, head, token_dropout
        self.text_head = nn.Linear(width, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def embed_texts(self, cached: Cached, index: NDArray[np.int64], chunk: int = 64) -> torch.Tensor:
        """(n, dim) normalised rows for the texts of `index`, computed in chunks of similar length."""
        lengths = cached.starts[index + 1] - cached.starts[index]
        order = np.argsort(lengths, kind="stable")
        parts = []
        for start in range(0, len(order), chunk):
            states, mask = cached.padded(index[order[start : start + chunk]])
            if self.training and self.token_dropout:
                kept = torch.rand(mask.shape) >= self.token_dropout
                kept[:, 0] = True
                mask = mask & kept
            parts.append(pool(self.upper(states, mask), mask))
        rows = torch.cat(parts)[torch.from_numpy(np.argsort(order, kind="stable"))]
        return F.normalize(self.text_head(rows), dim=-1)

    def scale(self) -> torch.Tensor:
        """What cosines are multiplied by, at most 100."""
        return self.logit_scale.exp().clamp(max=100.0)


@torch.no_grad()
def recondition(student: Student, features: NDArray[np.float32], texts: Cached, power: float) -> None:
    """Centre both towers and spread their shared space over more directions, before more training.

    Softmax losses do not feel a part that all logits share, so both towers can stay in one narrow cone, with most of
    their length in a common direction. The mean of the texts goes into the bias of the last norm, that of the
    pictures out of the head, and then the space is spread. The temperature starts anew.
    """
    hidden, pooled = _before_heads(student, features, texts)
    fc2 = student.image_head.fc2.weight
    mean = F.normalize(hidden.mean(0), dim=0)
    fc2 -= fc2 @ torch.outer(mean, mean)
    centre = pooled.mean(0)
    student.upper.layers[-1].get_submodule("down_norm").get_parameter("bias").sub_(centre)
    _spread(student, hidden, pooled - centre, power)
    rows = F.normalize((pooled - centre) @ student.text_head.weight.T, dim=-1)
    cosines = F.normalize(hidden @ fc2.T, dim=-1) @ rows.T
    student.logit_scale.fill_(math.log(4.0 / float(cosines.std())))


@torch.no_grad()
def spread(student: Student, features: NDArray[np.float32], texts: Cached, power: float) -> None:
    """Give weaker directions of the shared space more weight, after training: one linear map into both heads.

    Args:
        student: changed in place.
        features: (n, d) image features.
        texts: captions and class names.
        power: the map is the covariance of both towers to the power of -`power`; 0 changes nothing, 0.5 whitens.
    """
    _spread(student, *_before_heads(student, features, texts), power)


def _before_heads(student: Student, features: NDArray[np.float32], texts: Cached) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last linear layers of both towers take: hidden states of pictures, pooled states of texts."""
    student.eval()
    head = student.image_head
    hidden = F.gelu(head.fc1((torch.from_numpy(features) - head.mean) / head.std))  # type: ignore[operator]
    index = np.arange(0, len(texts.starts) - 1, 20)  # enough for a mean and a covariance
    pooled = []
    for start in range(0, len(index), 64):
        states, mask = texts.padded(index[start : start + 64])
        pooled.append(pool(student.upper(states, mask), mask))
    return hidden, torch.cat(pooled)


def _spread(student: Student, hidden: torch.Tensor, pooled: torch.Tensor, power: float) -> None:
    heads = (student.image_head.fc2.weight, student.text_head.weight)
    rows = [inputs @ weight.T for inputs, weight in zip((hidden, pooled), heads, strict=True)]
    both = torch.cat([part - part.mean(0) for part in rows]).double()
    values, vectors = torch.linalg.eigh(both.T @ both / len(both))
    spreading = ((vectors * (values + 1e-3 * values.max()).pow(-power)) @ vectors.T).float()
    for weight in heads:
        weight.copy_(spreading @ weight)


class ClassPrototypes:
    """Pseudo features of the backbone's own classes.

    A linear classifier's weight for class c is about inverse-covariance x (mean of c - mean), so that
    mean + covariance x weight, scaled, is about where photos of c lie (linear discriminant analysis).

    Args:
        features: (n, d) features of real photos.
        weight, bias: the backbone's classifier, (classes, d) and (classes,).
    """

    def __init__(self, features: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        self.mean = features.mean(0)
        self._deviations = features - self.mean
        covariance = self._deviations.T @ self._deviations / len(features)
        directions = weight @ covariance
        # Scale: the classifier is as sure of a pseudo feature as it is of the photos it is surest of.
        logits = features @ weight.T + bias
        sure = np.quantile(logits.max(1) - logits.mean(1), 0.9)
        gain = np.einsum("cd,cd->c", directions, weight - weight.mean(0))
        base = self.mean @ weight.T + bias
        self._shift = directions * ((sure - (base - base.mean())) / gain)[:, None].astype(np.float32)

    def sample(self, classes: NDArray[np.int64], noise: float, rng: np.random.Generator) -> NDArray[np.float32]:
        """One pseudo feature per class: its place plus `noise` times a random photo's deviation."""
        other = self._deviations[rng.integers(0, len(self._deviations), len(classes))]
        places: NDArray[np.float32] = np.maximum(self.mean + self._shift[classes] + noise * other, 0.0)
        return places
