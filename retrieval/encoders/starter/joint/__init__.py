"""The joint model beside the bundled encoder: tokens of pictures, and how well a text fits them. No torch.

A picture is kept as rows of 8 bits: tokens of its cells, then its embedding in as many rows as that takes. What is
stored is therefore all that a score needs. See MODEL_CARD.md beside this file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.retrieval.encoders.starter.graphs import Graphs

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER = Path(__file__).parent


def token_identity(folder: Path = FOLDER) -> str:
    """Identity of the tokens, without loading the model."""
    return str(_about(folder)["token_identity"])


def _about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / "model.json").read_text("utf-8"))
    return about


class JointModel:
    """Compresses pictures to tokens, and scores texts with them. Its graphs load on first use.

    Args:
        dim: of the encoder's embeddings.
        threads: for ONNX Runtime.
        folder: where the bundle lies.

    Attributes:
        identity: of the scores.
        token_identity: of the tokens; those of one identity may be scored by any model that has the same.
        shape: (rows, width) that a picture is kept as.
    """

    def __init__(self, dim: int, threads: int, folder: Path = FOLDER) -> None:
        about = _about(folder)
        self.identity: str = about["identity"]
        self.token_identity: str = about["token_identity"]
        self._cells: int = about["cells"]
        width: int = about["token_width"]
        self.shape = (self._cells + dim // width, width)
        self._dim = dim
        self._graphs = Graphs(folder, threads)

    def tokens(self, cells: NDArray[np.float32], embeddings: NDArray[np.float32]) -> NDArray[np.int8]:
        """What is kept of pictures: (n, *shape) int8.

        Args:
            cells: means of the last map, (n, cells, channels).
            embeddings: (n, dim), of any length.
        """
        longest = np.maximum(np.abs(embeddings).max(axis=1, keepdims=True), np.float32(1e-12))
        whole = np.rint(embeddings / longest * 127).astype(np.int8)
        kept: NDArray[np.int8] = self._graphs.get("tokens.onnx").run(None, {"cells": cells})[0]
        return np.concatenate([kept, whole.reshape(len(whole), -1, self.shape[1])], axis=1)

    def score(
        self, states: NDArray[np.float32], embedding: NDArray[np.float32], tokens: NDArray[np.int8]
    ) -> NDArray[np.float32]:
        """How well pictures fit a text: (n,), higher is better.

        Args:
            states: of the text, (length, width).
            embedding: of the text, (dim,), of length 1.
            tokens: what is kept of the pictures, (n, *shape).
        """
        return self.parts(states, embedding, tokens)[1]

    def parts(
        self, states: NDArray[np.float32], embedding: NDArray[np.float32], tokens: NDArray[np.int8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What a score is made of, (n, 3): cosine, late interaction, cross-attention; and the `score` (n,)."""
        inputs = {
            "states": states[None],
            "embedding": embedding[None],
            "tokens": np.ascontiguousarray(tokens[:, : self._cells]),
            "embeddings": np.ascontiguousarray(tokens[:, self._cells :]).reshape(len(tokens), self._dim),
        }
        parts, scores = self._graphs.get("score.onnx").run(["parts", "scores"], inputs)
        return parts, scores
