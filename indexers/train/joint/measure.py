"""How much a joint model helps: captions of photos that were not trained on, and captions with one thing changed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mmsearch.indexers.train.joint.data import Captions, Photos
from mmsearch.indexers.train.joint.mixing import Candidates
from mmsearch.indexers.train.joint.model import JointModel
from mmsearch.indexers.train.joint.towers import Pieces, TextTower

DEPTH = 50


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
        for of, scores in zip(found, (first, late, both), strict=True):
            of.append(scores.float().cpu().numpy())
        orders.append(order.cpu().numpy())
    parts = np.stack([np.concatenate(of) for of in found], axis=-1)
    return Candidates(parts, np.concatenate(orders) == captions.photo[:, None], captions.photo)


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
