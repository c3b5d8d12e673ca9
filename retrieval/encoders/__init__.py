"""Dual encoders: what one is (`Encoder`), and what one that feeds a reranker has besides (`TokenEncoder`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


class Encoder(Protocol):
    """A dual encoder with its own preprocess and tokenizer. Safe to call from several threads.

    Attributes:
        name: what the user asked for and what reports show, e.g. `starter` or `ViT-B-32/openai`.
        identity: weights hash + preprocess + tokenizer; two encoders of one identity share a space.
        dim: width of the shared space.
        precision, device, backend: how it runs here (`fp32`, `cpu`, `onnxruntime`); recorded per segment.
        image_size: (height, width) in pixels that `preprocess` aims for; decoders may downscale on the
            fly as long as both sides stay at least twice that.
        max_tokens: longest text in tokens; what is beyond is cut off by `encode_texts`.
        batch_size: a good number of images per `encode_images` call on this machine.
    """

    name: str
    identity: str
    dim: int
    precision: str
    device: str
    backend: str
    image_size: tuple[int, int]
    max_tokens: int
    batch_size: int

    def preprocess(self, image: Image.Image) -> NDArray[Any]:
        """An upright RGB picture to the array that `encode_images` takes; its shape is the encoder's own."""
        ...

    def encode_images(self, arrays: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """`preprocess` outputs to (n, dim) float32 rows of length 1."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts to (n, dim) float32 rows of length 1; texts over `max_tokens` are cut at the end."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` before any cut; more than `max_tokens` means that it will be cut."""
        ...


class TokenEncoder(Encoder, Protocol):
    """An encoder that also gives compressed tokens of pictures, which are kept in the index for a reranker.

    Attributes:
        token_identity: of everything that the tokens depend on; stored tokens of another one are made anew.
        token_shape: (length, width): tokens of a picture, and numbers of a token.
    """

    token_identity: str
    token_shape: tuple[int, int]

    def encode_image_tokens(self, arrays: Sequence[NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """`preprocess` outputs to the rows of `encode_images` and, of the same pass, int8 (n, length, width)."""
        ...


def as_token_encoder(encoder: Encoder) -> TokenEncoder | None:
    """The encoder as one that makes tokens; None where it has no `token_identity`, or says that it makes none."""
    return cast("TokenEncoder", encoder) if getattr(encoder, "token_identity", None) else None
