"""What the joint model is trained on: cells of photos under several views, and the pieces of their captions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.nn import functional as F

from mmsearch.indexers.train.data import Captioned
from mmsearch.indexers.train.features import IMAGE_SIZE
from mmsearch.indexers.train.joint.swaps import swaps
from mmsearch.indexers.train.joint.towers import ImageTower, Pieces
from mmsearch.retrieval.encoders.starter import FOLDER, StarterEncoder

log = logging.getLogger(__name__)

LONGEST = 28
"""Pieces of a caption that training looks at."""

_SIDE = 288
"""Photos are kept squashed to this, so that crops of them are not much enlarged."""

LANGUAGES = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Photos:
    """Photos as the image tower sees them.

    Attributes:
        cells: (views, photos, tokens, 1280) float16; the first view is the whole photo.
        embeddings: (views, photos, dim) float32.
    """

    cells: torch.Tensor
    embeddings: torch.Tensor


@dataclass(frozen=True, slots=True)
class Captions:
    """Captions of one language.

    Attributes:
        pieces: of the captions.
        photo: of each caption.
        changed: pieces of captions with one thing changed.
        changed_of: for each caption, rows of `changed`.
    """

    pieces: Pieces
    photo: NDArray[np.int64]
    changed: Pieces
    changed_of: list[NDArray[np.int64]]

    def thinned(self, every: int) -> Captions:
        """Every so-manieth caption."""
        rows = np.arange(0, len(self.photo), every)
        return Captions(self.pieces.rows(rows), self.photo[rows], self.changed, [self.changed_of[row] for row in rows])


def pool_cells(maps: torch.Tensor) -> torch.Tensor:
    """A map (n, 1280, rows, columns) to cells (n, tokens, 1280): means of 3 x 3 places, every second one."""
    pooled = F.avg_pool2d(maps, 3, 2, 1, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2)


def read_photos(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """Upright photos, squashed: (n, side, side, 3)."""

    def read(path: Path) -> NDArray[np.uint8]:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor() as threads:
        return np.stack(list(threads.map(read, paths)))


@torch.inference_mode()
def look(tower: ImageTower, pixels: NDArray[np.uint8], views: int, seed: int, device: torch.device) -> Photos:
    """Cells and embeddings of photos: whole first, then crops and mirrors of them."""
    rng = np.random.default_rng(seed)
    cells: list[torch.Tensor] = []
    embeddings: list[torch.Tensor] = []
    for view in range(views):
        for start in range(0, len(pixels), 128):
            batch = torch.from_numpy(pixels[start : start + 128]).to(device)
            grid = F.affine_grid(
                _crops(len(batch), view, rng).to(device), [len(batch), 3, IMAGE_SIZE, IMAGE_SIZE], align_corners=False
            )
            seen = F.grid_sample(batch.permute(0, 3, 1, 2).float(), grid, "bilinear", "reflection", align_corners=False)
            maps, rows = tower(seen.permute(0, 2, 3, 1))
            cells.append(pool_cells(maps).half())
            embeddings.append(rows)
    log.info("%d views of %d photos", views, len(pixels))
    seen, rows = torch.cat(cells), torch.cat(embeddings)
    return Photos(seen.view(views, len(pixels), *seen.shape[1:]), rows.view(views, len(pixels), -1))


def _crops(count: int, view: int, rng: np.random.Generator) -> torch.Tensor:
    """Affine maps (n, 2, 3): view 0 the whole, 1 its mirror image, others crops of half of it and more."""
    maps = np.zeros((count, 2, 3), np.float32)
    scale = np.ones((count, 2))
    if view > 1:
        area, ratio = rng.uniform(0.45, 1.0, count), np.exp(rng.uniform(-0.2, 0.2, count))
        scale = np.minimum(1.0, np.stack([(area * ratio) ** 0.5, (area / ratio) ** 0.5], 1))
    mirrored = rng.random(count) < 0.5 if view > 1 else np.full(count, view == 1)
    maps[:, 0, 0] = np.where(mirrored, -scale[:, 0], scale[:, 0])
    maps[:, 1, 1] = scale[:, 1]
    maps[:, :, 2] = rng.uniform(-1, 1, (count, 2)) * (1 - scale)
    return torch.from_numpy(maps)


def read_captions(captioned: Captioned, language: str, seed: int = 0) -> Captions:
    """Captions and changed captions as pieces of the bundled model."""
    texts, photo = captioned.pairs(captioned.english if language == "en" else captioned.chinese)
    tokenizer = StarterEncoder(folder=FOLDER).tokenizer
    changed: list[str] = []
    changed_of = []
    for text in texts:
        new = [swap.text for swap in swaps(text, language, seed)]
        changed_of.append(np.arange(len(changed), len(changed) + len(new)))
        changed += new
    return Captions(
        Pieces([tokenizer.encode(text) for text in texts], LONGEST),
        np.array(photo, np.int64),
        Pieces([tokenizer.encode(text) for text in changed], LONGEST),
        changed_of,
    )
