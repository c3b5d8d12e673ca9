"""How much a joint model helps: captions of photos that were not trained on, and captions with one thing changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmsearch.indexers.train.joint.data import Captions, Photos
from mmsearch.indexers.train.joint.model import JointModel
from mmsearch.indexers.train.joint.towers import Pieces, TextTower

DEPTH = 50
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The first stage's best photos of each caption, and what each stage says of them; all (captions, DEPTH).

    Attributes:
        first, late, cross: scores.
        right: whether it is the caption's photo.
        photo: of each caption, (captions,).
    """

    first: NDArray[np.float32]
    late: NDArray[np.float32]
    cross: NDArray[np.float32]
    right: NDArray[np.bool_]
    photo: NDArray[np.int64]

    def success(self, scores: NDArray[np.floating], k: int = 1) -> NDArray[np.bool_]:
        """Of each caption, whether its photo is among the best k by these scores; ties go to the first stage."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.asarray(np.take_along_axis(self.right, order, 1).any(1))


def mixed(candidates: Candidates, mix: tuple[float, ...]) -> NDArray[np.float32]:
    """The weighted sum of the three scores."""
    parts = (candidates.first, candidates.late, candidates.cross)
    return np.asarray(sum(np.float32(weight) * part for weight, part in zip(mix, parts, strict=True)), np.float32)


def deviations(candidates: Candidates) -> tuple[float, float, float]:
    """How much each score differs among the candidates of a caption, on average."""
    first, late, cross = (float(part.std(1).mean()) for part in (candidates.first, candidates.late, candidates.cross))
    return first, late, cross


def cross_fitted(sets: Sequence[Candidates]) -> tuple[list[float], tuple[float, float, float]]:
    """Success@1 of each set with weights that were chosen on the other half of the photos, and the weights for all.

    The weights are those whose mean success@1 over the sets is highest. That of the first stage is 1.
    """
    units = np.mean([deviations(one) for one in sets], axis=0)
    grid = [(1 / units[0], late / units[1], cross / units[2]) for late in WEIGHTS for cross in WEIGHTS]
    hits = [np.stack([one.success(mixed(one, mix)) for mix in grid]) for one in sets]
    totals = [0] * len(sets)
    for side in (0, 1):
        means = [h[:, one.photo % 2 != side].mean(1) for h, one in zip(hits, sets, strict=True)]
        best = int(np.mean(means, axis=0).argmax())
        for number, one in enumerate(sets):
            totals[number] += int(hits[number][best][one.photo % 2 == side].sum())
    best = int(np.mean([h.mean(1) for h in hits], axis=0).argmax())
    return [total / len(one.photo) for total, one in zip(totals, sets, strict=True)], grid[best]


@torch.inference_mode()
def score(model: JointModel, tower: TextTower, photos: Photos, captions: Captions, *, chunk: int = 64) -> Candidates:
    """Scores of the first stage's best photos by all stages."""
    model.eval()
    device = next(model.parameters()).device
    embeddings = photos.embeddings[0].to(device)
    tokens = torch.cat([model.compress(part.to(device).float()) for part in torch.split(photos.cells[0], 512)])
    pictures = model.picture(tokens, embeddings)
    depth = min(DEPTH, len(embeddings))
    found: list[list[NDArray[np.float32]]] = [[], [], []]
    orders = []
    for start in range(0, len(captions.pieces), chunk):
        ids, mask = captions.pieces.padded(np.arange(start, min(start + chunk, len(captions.pieces))), device)
        states = tower(ids, mask)
        cosines = tower.embed(states, mask) @ embeddings.T
        first, order = cosines.topk(depth, 1)
        late = model.late_pairs(*model.pieces(states, mask), tokens[order])
        text_of = torch.arange(len(ids), device=device).repeat_interleave(depth)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            both = model.cross(states[text_of], mask[text_of], pictures, order.flatten()).view(len(ids), depth)
        for parts, scores in zip(found, (first, late, both), strict=True):
            parts.append(scores.float().cpu().numpy())
        orders.append(order.cpu().numpy())
    order_of = np.concatenate(orders)
    first_, late_, cross_ = (np.concatenate(parts) for parts in found)
    return Candidates(first_, late_, cross_, order_of == captions.photo[:, None], captions.photo)


@torch.inference_mode()
def changed_accuracy(model: JointModel, tower: TextTower, photos: Photos, captions: Captions) -> dict[str, float]:
    """How often a photo prefers its caption to a changed one: by the embeddings, late interaction, cross-attention."""
    model.eval()
    device = next(model.parameters()).device
    of = np.concatenate([np.full(len(rows), row) for row, rows in enumerate(captions.changed_of)]).astype(np.int64)
    embeddings = photos.embeddings[0].to(device)
    tokens = torch.cat([model.compress(part.to(device).float()) for part in torch.split(photos.cells[0], 512)])
    pictures = model.picture(tokens, embeddings)

    def scores(pieces: Pieces, rows: NDArray[np.int64], photo: NDArray[np.int64]) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(rows), 512):
            ids, mask = pieces.padded(rows[start : start + 512], device)
            which = torch.from_numpy(photo[start : start + 512]).to(device)
            states = tower(ids, mask)
            first = (tower.embed(states, mask) * embeddings[which]).sum(-1)
            late = model.late_pairs(*model.pieces(states, mask), tokens[which][:, None])[:, 0]
            parts.append(torch.stack([first, late, model.cross(states, mask, pictures, which)]).float().cpu().numpy())
        return np.concatenate(parts, 1)

    photo = captions.photo[of]
    true = scores(captions.pieces, of, photo)
    false = scores(captions.changed, np.arange(len(of)), photo)
    won = (true > false).mean(1)
    return {name: round(float(value), 4) for name, value in zip(("first", "late", "cross"), won, strict=True)}
