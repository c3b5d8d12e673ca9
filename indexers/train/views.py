"""Pictures as training sees them: decoded once where memory allows, cropped at random each time."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mmsearch.retrieval.media import load_image

_MARGIN = 1.3  # crops keep at least 0.7 of the area, so that little is ever enlarged
_AREA = (0.7, 1.0)
_RATIO = (0.85, 1 / 0.85)
_BUDGET = 2**30
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Views:
    """Decodes pictures for a model, and cuts random views out of them. Safe to call from several threads.

    A view is a random crop of 70 to 100 % of the area, a little wider or narrower than what the model sees of the
    picture when it indexes. Pictures are not mirrored unless that is asked for: writing and "left of" would be wrong.

    Args:
        paths: the pictures, referred to by their rows.
        size: (height, width) of what the model takes.
        settings: open_clip's `preprocess_cfg`: mean, std, interpolation, resize_mode.
        mirror: whether half of the views are mirrored.
        budget: bytes of decoded pictures that are kept.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: tuple[int, int],
        settings: dict[str, Any],
        *,
        mirror: bool = False,
        budget: int = _BUDGET,
    ) -> None:
        self.paths, self.size, self.mirror = paths, size, mirror
        self._squash = settings.get("resize_mode") == "squash"
        self._mean = tuple(map(float, settings.get("mean") or (0.0,) * 3))
        self._std = tuple(map(float, settings.get("std") or (1.0,) * 3))
        self._filter = _FILTERS.get(str(settings.get("interpolation", "bicubic")), Image.Resampling.BICUBIC)
        self._left = budget
        self._kept: dict[int, Image.Image] = {}
        self._lock = threading.Lock()

    def whole(self, row: int) -> Image.Image:
        """The picture as indexing decodes it.

        Raises:
            MediaError: it gives no picture.
            OSError: it cannot be read.
        """
        path = self.paths[row]
        return load_image(path.read_bytes(), target=self.size, name=str(path)).image

    def view(self, row: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A random view, (height, width, 3): a quarter of the bytes of what the model takes (`normalise`)."""
        image = self._decoded(row)
        box = crop_box(image.size, self.size, rng, squash=self._squash)
        small = image.resize(self.size[::-1], self._filter, box=box)
        if self.mirror and rng.random() < 0.5:
            small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(small)

    def normalise(self, views: torch.Tensor) -> torch.Tensor:
        """(n, height, width, 3) views on any device to (n, 3, height, width) float32, as the model takes them."""
        mean, std = (torch.tensor(each, device=views.device).view(1, 3, 1, 1) for each in (self._mean, self._std))
        return (views.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 255 - mean) / std

    def _decoded(self, row: int) -> Image.Image:
        with self._lock:
            if row in self._kept:
                return self._kept[row]
        image = self.whole(row)
        scale = _MARGIN * max(self.size[0] / image.height, self.size[1] / image.width)
        if scale < 1:
            smaller = (math.ceil(image.width * scale), math.ceil(image.height * scale))
            image = image.resize(smaller, self._filter)
        size = image.width * image.height * 4  # what Pillow keeps of an RGB pixel
        with self._lock:
            if size <= self._left and row not in self._kept:
                self._left -= size
                self._kept[row] = image
        return image


def crop_box(
    image: tuple[int, int], size: tuple[int, int], rng: np.random.Generator, *, squash: bool
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in pixels of a random crop of a picture (width, height).

    Its shape is about that of the model's picture, or of the whole picture where the model squashes it.

    Args:
        image: (width, height) of the picture.
        size: (height, width) of what the model takes.
        rng: decides.
        squash: whether the model sees the whole picture, squashed.
    """
    width, height = image
    area = rng.uniform(*_AREA)
    ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
    across, down = (1.0, 1.0)
    if not squash:  # the largest box of the model's shape
        shape = size[1] / size[0]
        across, down = min(1.0, shape * height / width), min(1.0, width / shape / height)
    across = min(1.0, across * math.sqrt(area * ratio)) * width
    down = min(1.0, down * math.sqrt(area / ratio)) * height
    left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
    return left, top, min(width, left + across), min(height, top + down)
