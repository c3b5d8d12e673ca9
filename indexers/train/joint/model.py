"""The joint model: image tokens, and the scores of a text with them.

Pictures are compressed once, without a text, into few tokens of 8 bits (EDJE, arXiv 2510.06820). A text meets them in
two ways: each of its pieces looks for its best token (late interaction, Khattab and Zaharia, SIGIR 2020), and layers of
cross-attention read both together (ALBEF, Li et al., NeurIPS 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

_FEATURES = 1280
_STATES = 384
_EMBEDDING = 512


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a joint model is.

    Attributes:
        tokens: of a picture; cells of its map, pooled.
        token_width: numbers in a token, 8 bits each.
        hidden: between a cell and a token.
        width, heads, layers, feed_forward: of the cross-encoder; the last is a multiple of the width.
    """

    tokens: int = 25
    token_width: int = 128
    hidden: int = 512
    width: int = 256
    heads: int = 4
    layers: int = 3
    feed_forward: int = 3


class _CrossLayer(nn.Module):
    """Self-attention over the pieces, cross-attention to the tokens, feed-forward; each normed before."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        width = shape.width
        self.heads, self.rate = shape.heads, dropout
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out1 = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.keys, self.out2 = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, shape.feed_forward * width), nn.Linear(shape.feed_forward * width, width)

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.rate, self.training)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, image: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """(n, length, width) texts, their mask, (m, tokens, width) pictures, and which picture each text reads."""
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, mask[:, None, None, :])
        x = x + self._drop(self.out1(mixed.transpose(1, 2).reshape(n, length, width)))
        q = self.query(self.norm2(x)).view(n, length, self.heads, -1).transpose(1, 2)
        k, v = self.keys(image).view(len(image), -1, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k.index_select(0, which), v.index_select(0, which))
        x = x + self._drop(self.out2(mixed.transpose(1, 2).reshape(n, length, width)))
        return x + self._drop(self.down(F.gelu(self.up(self.norm3(x)))))


class JointModel(nn.Module):
    """Compresses maps of pictures to tokens, and scores texts with them.

    Args:
        shape: how large.
        mean, std: of the map's channels, (1280,).
        dropout: in the compressor and the layers.
        feature_dropout: of the map's channels, the same ones in all cells of a picture.
        vocabulary: pieces that a masked one can be; 0 leaves the masked-word head out.
    """

    def __init__(
        self,
        shape: Shape,
        mean: torch.Tensor,
        std: torch.Tensor,
        *,
        dropout: float = 0.1,
        feature_dropout: float = 0.2,
        vocabulary: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.rate, self.feature_rate = shape, dropout, feature_dropout
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)
        self.fc1 = nn.Linear(_FEATURES, shape.hidden)
        self.fc2 = nn.Linear(shape.hidden, shape.token_width)
        self.piece = nn.Linear(_STATES, shape.token_width)
        self.weight = nn.Linear(_STATES, 1)
        self.late_scale = nn.Parameter(torch.tensor(math.log(30.0)))
        self.places = nn.Parameter(torch.randn(shape.tokens + 1, shape.width) * 0.02)
        self.token_in = nn.Linear(shape.token_width, shape.width)
        self.whole_in = nn.Linear(_EMBEDDING, shape.width)
        self.image_norm = nn.LayerNorm(shape.width)
        self.text_in = nn.Linear(_STATES, shape.width)
        self.layers = nn.ModuleList(_CrossLayer(shape, dropout) for _ in range(shape.layers))
        self.out_norm = nn.LayerNorm(shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.match = nn.Linear(shape.width, 1)
        nn.init.zeros_(self.match.weight)
        nn.init.zeros_(self.match.bias)
        if vocabulary:
            self.mask_norm = nn.LayerNorm(shape.width)
            self.masked = nn.Linear(shape.width, vocabulary)

    def compress(self, cells: torch.Tensor) -> torch.Tensor:
        """(n, tokens, 1280) cells to (n, tokens, token_width) unit rows, rounded to 8 bits as they are stored."""
        x = (cells - self.mean) / self.std
        if self.training and self.feature_rate:
            kept = torch.rand(x.shape[0], 1, x.shape[2], device=x.device) >= self.feature_rate
            x = x * kept / (1 - self.feature_rate)
        x = F.dropout(F.gelu(self.fc1(x)), self.rate, self.training)
        rows = F.normalize(self.fc2(x), dim=-1)
        return rows + ((rows * 127).round() / 127 - rows).detach()

    def pieces(self, states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What late interaction reads of texts: (n, length, token_width) unit rows and their weights (n, length)."""
        rows = F.normalize(self.piece(F.dropout(states, self.rate, self.training)), dim=-1)
        weights = torch.sigmoid(self.weight(states))[..., 0] * mask
        return rows, weights / weights.sum(-1, keepdim=True).clamp(min=1.0)

    def late(self, rows: torch.Tensor, weights: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Late interaction of every text with every picture: (texts, pictures)."""
        best = torch.einsum("nlc,mtc->nmlt", rows, tokens).amax(-1)
        return (best * weights[:, None]).sum(-1)

    def late_pairs(self, rows: torch.Tensor, weights: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Late interaction of each text with pictures of its own, (n, m, tokens, token_width): (n, m)."""
        best = torch.einsum("nlc,nmtc->nmlt", rows, tokens).amax(-1)
        return (best * weights[:, None]).sum(-1)

    def picture(self, tokens: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """What cross-attention reads of pictures: (n, 1 + tokens, width)."""
        parts = [self.whole_in(embeddings)[:, None], self.token_in(tokens)]
        return self.image_norm(torch.cat(parts, 1) + self.places)  # type: ignore[no-any-return]

    def read(
        self, states: torch.Tensor, mask: torch.Tensor, pictures: torch.Tensor, which: torch.Tensor
    ) -> torch.Tensor:
        """Texts that have read a picture each: (n, length, width)."""
        x = self.text_in(states)
        for layer in self.layers:
            x = layer(x, mask, pictures, which)
        return x  # type: ignore[no-any-return]

    def cross(
        self, states: torch.Tensor, mask: torch.Tensor, pictures: torch.Tensor, which: torch.Tensor
    ) -> torch.Tensor:
        """The logit that each text belongs to its picture: (n,)."""
        x = self.out_norm(self.read(states, mask, pictures, which))
        weights = mask.to(x.dtype)[..., None]
        pooled = (x * weights).sum(1) / weights.sum(1)
        return self.match(F.gelu(self.out(pooled)))[:, 0]  # type: ignore[no-any-return]

    def guess(
        self, states: torch.Tensor, mask: torch.Tensor, pictures: torch.Tensor, which: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        """Logits of the piece that was masked at place `at` of each text: (n, vocabulary)."""
        x = self.read(states, mask, pictures, which)
        return self.masked(self.mask_norm(x[torch.arange(len(x), device=x.device), at]))  # type: ignore[no-any-return]
