"""Image features of the frozen image backbone, computed once per view and kept in the work folder.

A view is one way to look at a photo. View 0 is the whole picture squashed to the input size, which is what
indexing does; the others are random crops and mirrors, the augmentation of training.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from torch import nn

from mmsearch.indexers.train import graphs

log = logging.getLogger(__name__)

IMAGE_SIZE = 260
"""Side of the square input in pixels."""


def trunk_tensors(backbone: nn.Module) -> dict[str, NDArray[np.float32]]:
    """The backbone's weights but for its classifier, under the names of open_clip's CustomTextCLIP."""
    return {
        f"visual.trunk.{name}": value.detach().numpy().astype(np.float32)
        for name, value in backbone.state_dict().items()
        if not name.startswith("classifier.") and not name.endswith("num_batches_tracked")
    }


class FeatureExtractor:
    """Runs the backbone through ONNX Runtime, which is 5-6 times faster than eager torch on CPUs."""

    def __init__(self, backbone: nn.Module) -> None:
        import onnxruntime as ort

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_file(trunk_tensors(backbone), folder / graphs.WEIGHTS)
            places = graphs.places(folder / graphs.WEIGHTS)
            (folder / "trunk.onnx").write_bytes(graphs.image_graph(places, backbone, head=False))
            self._session = ort.InferenceSession(folder / "trunk.onnx", providers=["CPUExecutionProvider"])

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, IMAGE_SIZE, IMAGE_SIZE, 3) pixels to (n, 1280) pooled features."""
        features: NDArray[np.float32] = self._session.run(None, {"pixels": images})[0]
        return features


def _view(path: Path, view: int, seed: int) -> NDArray[np.uint8]:
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    if view:
        rng = np.random.default_rng([seed, view, *path.name.encode()])
        if view > 1:
            scale = rng.uniform(0.45, 1.0)
            ratio = np.exp(rng.uniform(-0.2, 0.2))
            width = min(image.width, round(image.width * (scale * ratio) ** 0.5))
            height = min(image.height, round(image.height * (scale / ratio) ** 0.5))
            left = rng.integers(0, image.width - width + 1)
            top = rng.integers(0, image.height - height + 1)
            image = image.crop((left, top, left + width, top + height))
        if view == 1 or rng.random() < 0.5:
            image = ImageOps.mirror(image)
    image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def view_features(
    extractor: FeatureExtractor | None, paths: Sequence[Path], view: int, cache: Path, seed: int
) -> NDArray[np.float32]:
    """Features (n, 1280) of one view of every photo, read from `cache` (.npy) where it exists already."""
    if cache.exists():
        stored: NDArray[np.float32] = np.load(cache).astype(np.float32)
        return stored
    if extractor is None:
        raise ValueError(f"{cache} is missing and there is no extractor to make it")
    rows = []
    with ThreadPoolExecutor(2) as threads:
        for start in range(0, len(paths), 64):
            batch = paths[start : start + 64]
            rows.append(extractor(np.stack(list(threads.map(lambda p: _view(p, view, seed), batch)))))
    features = np.concatenate(rows)
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.save(cache, features.astype(np.float16))
    log.info("features of view %d of %d photos written to %s", view, len(paths), cache)
    return features
