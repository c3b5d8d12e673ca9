"""The towers of the bundled model in torch, frozen: what the joint model reads of pictures and of texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from mmsearch.indexers.train.graphs import LAYER
from mmsearch.indexers.train.text import Layer, pool
from mmsearch.retrieval.encoders.starter import Weights

_EMBEDDINGS = "text.transformer.embeddings"


class ImageTower(nn.Module):
    """Pixels to the last map of the image tower, and to embeddings."""

    def __init__(self, folder: Path) -> None:
        import timm

        super().__init__()
        weights = Weights(folder / "weights.safetensors")
        self.trunk = timm.create_model("tf_efficientnet_lite2", pretrained=False, num_classes=0)
        prefix = "visual.trunk."
        state = {
            name.removeprefix(prefix): torch.from_numpy(weights[name].astype(np.float32))
            for name in weights
            if name.startswith(prefix)
        }
        left = self.trunk.load_state_dict(state, strict=False)
        if left.unexpected_keys or any(not name.endswith("num_batches_tracked") for name in left.missing_keys):
            raise ValueError(f"{folder} does not hold the image tower that is expected")
        head = "visual.head.mlp"
        self.fc1 = _linear(weights, f"{head}.fc1", bias=True)
        self.fc2 = _linear(weights, f"{head}.fc2", bias=False)
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, height, width, 3) uint8 pixels to the map (n, 1280, rows, columns) and (n, dim) rows of length 1."""
        maps = self.trunk.forward_features(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)  # type: ignore[operator]
        return maps, F.normalize(self.fc2(F.gelu(self.fc1(maps.mean((2, 3))))), dim=-1)


class TextTower(nn.Module):
    """Pieces of texts to the states of the last layer, and to embeddings."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        weights = Weights(folder / "weights.safetensors")
        shape = json.loads((folder / "model.json").read_text("utf-8"))["text"]
        width = shape["width"]
        self.norm = nn.LayerNorm(width, shape["eps"])
        self.layers = nn.ModuleList(
            Layer(width, shape["heads"], shape["hidden"], shape["eps"], 0.0) for _ in range(shape["layers"])
        )
        self.words = nn.Buffer(torch.from_numpy(weights.unpack(f"{_EMBEDDINGS}.word_embeddings.weight")).half())
        self.positions = nn.Buffer(
            torch.from_numpy(weights[f"{_EMBEDDINGS}.position_embeddings.weight"].astype(np.float32))
        )
        _norm(self.norm, weights, f"{_EMBEDDINGS}.LayerNorm")
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            place = f"{LAYER}.{index}"
            for module, name in (
                (layer.qkv, "attention.self.qkv"),
                (layer.out, "attention.output.dense"),
                (layer.up, "intermediate.dense"),
                (layer.down, "output.dense"),
            ):
                module.weight.data = torch.from_numpy(weights.unpack(f"{place}.{name}.weight"))
                module.bias.data = torch.from_numpy(weights[f"{place}.{name}.bias"].astype(np.float32))
            _norm(layer.out_norm, weights, f"{place}.attention.output.LayerNorm")
            _norm(layer.down_norm, weights, f"{place}.output.LayerNorm")
        self.head = _linear(weights, "text.proj", bias=False)
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, pieces: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(n, length) ids of pieces and which of them are real, to (n, length, width) states."""
        x = self.norm(self.words[pieces].float() + self.positions[: pieces.shape[1]])
        attend = mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, attend)
        return x  # type: ignore[no-any-return]

    def embed(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """States to (n, dim) rows of length 1."""
        return F.normalize(self.head(pool(states, mask)), dim=-1)


class Pieces:
    """Texts as ids of pieces, all in one array.

    Args:
        texts: ids of each text.
        longest: texts are cut here.
    """

    def __init__(self, texts: Sequence[Sequence[int]], longest: int) -> None:
        cut = [text[:longest] for text in texts]
        self.lengths = np.array([len(text) for text in cut], np.int64)
        self.ids = np.zeros((len(cut), longest), np.int64)
        for row, text in enumerate(cut):
            self.ids[row, : len(text)] = text

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, rows: NDArray[np.int64]) -> Pieces:
        """Some of the texts."""
        some = Pieces([], self.ids.shape[1])
        some.ids, some.lengths = self.ids[rows], self.lengths[rows]
        return some

    def padded(self, rows: NDArray[np.int64], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (n, longest of these) and a mask of the real ones."""
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        mask = np.arange(longest)[None] < lengths[:, None]
        return torch.from_numpy(self.ids[rows, :longest]).to(device), torch.from_numpy(mask).to(device)


def _linear(weights: Weights, name: str, *, bias: bool) -> nn.Linear:
    weight = torch.from_numpy(weights.unpack(f"{name}.weight"))
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    module.weight.data = weight
    if bias:
        module.bias.data = torch.from_numpy(weights[f"{name}.bias"].astype(np.float32))
    return module


def _norm(module: nn.LayerNorm, weights: Weights, name: str) -> None:
    module.weight.data = torch.from_numpy(weights[f"{name}.weight"].astype(np.float32))
    module.bias.data = torch.from_numpy(weights[f"{name}.bias"].astype(np.float32))
