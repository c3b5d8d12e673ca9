"""The text tower while it is trained: frozen lower layers cached once per caption, upper layers in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from mmsearch.indexers.train.backbones import Q4, TextBackbone


class Layer(nn.Module):
    """One post-norm BERT layer (Devlin et al. 2018), attention projections fused."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.out_norm = nn.LayerNorm(width, eps)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.down_norm = nn.LayerNorm(width, eps)

    def forward(self, x: torch.Tensor, attend: torch.Tensor) -> torch.Tensor:
        """(n, length, width) states; `attend` is broadcast to (n, heads, length, length)."""
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attend).transpose(1, 2).reshape(n, length, width)
        x = self.out_norm(x + F.dropout(self.out(mixed), self.rate, self.training))
        inner = F.gelu(self.up(x))
        return self.down_norm(x + F.dropout(self.down(inner), self.rate, self.training))  # type: ignore[no-any-return]


class Layers(nn.Module):
    """Layers `first` to `last` (exclusive) of the text backbone."""

    def __init__(self, backbone: TextBackbone, first: int, last: int, dropout: float) -> None:
        super().__init__()
        self.first = first
        self.layers = nn.ModuleList(
            Layer(backbone.width, backbone.heads, backbone.hidden, backbone.eps, dropout) for _ in range(first, last)
        )
        for index, layer in enumerate(self.layers, first):
            assert isinstance(layer, Layer)
            _load_layer(layer, backbone, index)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(n, length, width) hidden states and a (n, length) bool mask of real tokens."""
        attend = mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, attend)
        return x


def _load_layer(layer: Layer, backbone: TextBackbone, index: int) -> None:
    def weight(name: str) -> torch.Tensor:
        tensor = backbone.tensors[f"l{index}.{name}.w"]
        return torch.from_numpy(tensor.dequantise() if isinstance(tensor, Q4) else tensor)

    def bias(name: str) -> torch.Tensor:
        tensor = backbone.tensors[f"l{index}.{name}.b"]
        assert not isinstance(tensor, Q4)
        return torch.from_numpy(tensor)

    with torch.no_grad():
        layer.qkv.weight.copy_(torch.cat([weight("q"), weight("k"), weight("v")]))
        layer.qkv.bias.copy_(torch.cat([bias("q"), bias("k"), bias("v")]))
        pairs = ((layer.out, "ao"), (layer.up, "fi"), (layer.down, "fo"))
        norms = ((layer.out_norm, "aln"), (layer.down_norm, "oln"))
        for module, name in (*pairs, *norms):
            module.weight.copy_(weight(name))
            module.bias.copy_(bias(name))


@dataclass(frozen=True, slots=True)
class Cached:
    """Hidden states of many texts after the frozen layers, rows of all texts in one array.

    Attributes:
        states: (total tokens, width) float16.
        starts: (n + 1,) first row of each text.
    """

    states: NDArray[np.float16]
    starts: NDArray[np.int64]

    def padded(self, index: Sequence[int] | NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """States (n, longest, width) float32 and mask of the texts named by `index`."""
        lengths = self.starts[np.asarray(index) + 1] - self.starts[index]
        states = np.zeros((len(lengths), int(lengths.max()), self.states.shape[1]), np.float32)
        for row, (i, length) in enumerate(zip(index, lengths, strict=True)):
            states[row, :length] = self.states[self.starts[i] : self.starts[i] + length]
        mask = np.arange(states.shape[1])[None] < lengths[:, None]
        return torch.from_numpy(states), torch.from_numpy(mask)


@torch.inference_mode()
def cache_lower(backbone: TextBackbone, word: NDArray[np.float32], lower: Layers, ids: Sequence[list[int]]) -> Cached:
    """Run the frozen part over tokenised texts. `word` is the (kept pieces, width) embedding matrix."""
    tensors = {k: v for k, v in backbone.tensors.items() if not isinstance(v, Q4)}
    position = tensors["emb.pos"].reshape(-1, backbone.width) + tensors["emb.type"].reshape(-1, backbone.width)[:1]
    norm = nn.LayerNorm(backbone.width, backbone.eps)
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(tensors["emb.ln.w"]))
        norm.bias.copy_(torch.from_numpy(tensors["emb.ln.b"]))
    lengths = np.array([len(i) for i in ids])
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    states = np.empty((starts[-1], backbone.width), np.float16)
    order = np.argsort(lengths, kind="stable")
    for begin in range(0, len(order), 256):
        chunk = order[begin : begin + 256]
        longest = int(lengths[chunk].max())
        mask = torch.from_numpy(np.arange(longest)[None] < lengths[chunk][:, None])
        x = np.zeros((len(chunk), longest, backbone.width), np.float32)
        for row, i in enumerate(chunk):
            x[row, : lengths[i]] = word[ids[i]] + position[: lengths[i]]
        out = lower(norm(torch.from_numpy(x)), mask).numpy()
        for row, i in enumerate(chunk):
            states[starts[i] : starts[i + 1]] = out[row, : lengths[i]]
    return Cached(states, starts)


def pool(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over real tokens: (n, length, width) to (n, width)."""
    weights = mask.to(x.dtype)[..., None]
    return (x * weights).sum(1) / weights.sum(1).clamp(min=1.0)
