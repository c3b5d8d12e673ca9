"""A deterministic dual encoder without weights, for tests and for trying things out.

It knows colours. A picture is the share of its pixels that each colour name describes best; a text is
the colour words in it (English and Chinese) and, faintly, its other words by hash. So "red" finds red
pictures, equal pictures get equal rows, and nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

_COLOURS: tuple[tuple[tuple[int, int, int], tuple[str, ...]], ...] = (
    ((0, 0, 0), ("black", "黑")),
    ((255, 255, 255), ("white", "白")),
    ((128, 128, 128), ("grey", "gray", "灰")),
    ((220, 30, 30), ("red", "红")),
    ((30, 160, 40), ("green", "绿")),
    ((30, 60, 220), ("blue", "蓝")),
    ((240, 220, 40), ("yellow", "黄")),
    ((250, 140, 20), ("orange", "橙")),
    ((130, 40, 160), ("purple", "紫")),
    ((250, 160, 190), ("pink", "粉")),
    ((120, 75, 40), ("brown", "棕")),
    ((40, 200, 210), ("cyan", "青")),
)
_TOKEN = re.compile(r"[㐀-鿿]|[^\W_]+")


class FakeEncoder:
    """An `Encoder` that needs no files. Safe to call from several threads.

    Args:
        name: shown as the model's name.
        dim: width of the space, at least 16.
        image_size: (height, width) in pixels of `preprocess`'s result.
        max_tokens: texts longer than this many words are cut.
        batch_size: as in `Encoder`.
        tokens: (length, width) of the tokens that it makes of pictures, as a `TokenEncoder`; it makes none for None.
    """

    precision = "fp32"
    device = "cpu"
    backend = "fake"

    def __init__(
        self,
        name: str = "fake",
        *,
        dim: int = 32,
        image_size: tuple[int, int] = (16, 16),
        max_tokens: int = 64,
        batch_size: int = 8,
        tokens: tuple[int, int] | None = None,
    ) -> None:
        if dim < len(_COLOURS) + 4:
            raise ValueError(f"dim must be at least {len(_COLOURS) + 4}, not {dim}")
        self.name = name
        self.identity = f"fake-1:{dim}:{image_size[0]}x{image_size[1]}:{max_tokens}:{name}"
        self.dim = dim
        self.image_size = image_size
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self.languages: tuple[str, ...] = ("en", "zh")
        self.token_shape = tokens or (0, 0)
        self.token_identity = f"fake-tokens-1:{tokens[0]}x{tokens[1]}" if tokens else None

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """An RGB picture to (3, height, width) in 0-1."""
        height, width = self.image_size
        pixels = np.asarray(image.convert("RGB").resize((width, height)), dtype=np.float32) / 255.0
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def encode_images(self, arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Colour shares, plus a faint fingerprint that tells pictures of equal colours apart."""
        palette = np.array([rgb for rgb, _ in _COLOURS], dtype=np.float32) / 255.0
        rows = np.zeros((len(arrays), self.dim), dtype=np.float32)
        for row, array in zip(rows, arrays, strict=True):
            pixels = array.reshape(3, -1).T
            nearest = ((pixels[:, None, :] - palette[None]) ** 2).sum(axis=2).argmin(axis=1)
            row[: len(_COLOURS)] = np.bincount(nearest, minlength=len(_COLOURS)) / len(pixels)
            row[len(_COLOURS) :] += 0.02 * self._noise(np.round(array * 255).astype(np.uint8).tobytes())
        return _unit(rows)

    def encode_image_tokens(
        self, arrays: Sequence[NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """The rows of `encode_images`, and of each picture a hash of its pixels as tokens."""
        length, width = self.token_shape
        start = str(self.token_identity).encode()
        hashes = [hashlib.shake_128(start + np.round(array * 255).astype(np.uint8).tobytes()) for array in arrays]
        drawn = b"".join(one.digest(length * width) for one in hashes)
        return self.encode_images(arrays), np.frombuffer(drawn, np.int8).reshape(len(arrays), length, width)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Colour words, plus every other word faintly by its hash."""
        rows = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            tokens = _tokens(text)[: self.max_tokens]
            for token in tokens:
                for axis, (_, words) in enumerate(_COLOURS):
                    if token in words:
                        row[axis] += 1.0
                row[len(_COLOURS) :] += 0.1 * self._noise(token.encode("utf-8", "surrogatepass"))
            if not tokens:
                row[len(_COLOURS) :] = self._noise(b"")
        return _unit(rows)

    def count_tokens(self, text: str) -> int:
        """Words, a Chinese character being one."""
        return len(_tokens(text))

    def _noise(self, seed: bytes) -> NDArray[np.float32]:
        width = self.dim - len(_COLOURS)
        bits = hashlib.shake_128(seed).digest(width)
        signs = np.frombuffer(bits, dtype=np.uint8).astype(np.float32) - 127.5
        return np.asarray(signs / np.linalg.norm(signs), dtype=np.float32)


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.lower())


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)
