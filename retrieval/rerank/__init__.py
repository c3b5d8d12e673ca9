"""Reranking: a cross-encoder reads the query together with each of the first candidates, and orders them anew.

What a reranker is (`Reranker`) and is given (`RerankCandidate`). `models` turns a name into one; `blip` and
`cross_encoder` are those on transformers, whose files `checkpoint` finds and checks; `starter_joint` is the bundled
one, which reads tokens that the index keeps; `fake` is that of the tests. `scoring` asks a reranker within a time, and
`stage` puts what it says between ranking and shaping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mmsearch.retrieval.types import Modality

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

THREAD = "mmsearch-rerank"
"""The name of the threads that ask rerankers. They end with their search, unless a call does not come back in time."""


@dataclass(frozen=True, slots=True)
class RerankCandidate:
    """An item that the first stage has found.

    Attributes:
        item_id: of the item.
        modality: what the item is.
        text: of a text item its text; of a picture the captions that belong to it, a line each, None without any.
        path: absolute and openable; None where the item is no file of this machine. Of a caption out of a manifest it
            is the path of its picture.
        tokens: of a picture, int8 (length, width), where the index has those that the reranker asks for.
    """

    item_id: int
    modality: Modality
    text: str | None
    path: Path | None
    tokens: NDArray[np.int8] | None = None


class Reranker(Protocol):
    """A cross-encoder: a model that reads a query and a candidate together. Safe to call from several threads.

    One that reads stored tokens of pictures has a `token_identity` besides; its candidates come with those tokens.

    Attributes:
        name: what the user asked for, e.g. `minilm` or `hf-hub:ORG/NAME`.
        identity: weights hash + preprocess + tokenizer; scores of one identity compare.
        modalities: the modalities that it can score.
        batch_size: a good number of candidates per call of `score` on this machine; a call never has more. The time
            budget of a search is looked at between two calls.
    """

    name: str
    identity: str
    modalities: frozenset[Modality]
    batch_size: int

    def score(self, query: str, candidates: Sequence[RerankCandidate]) -> NDArray[np.float32]:
        """How well each candidate answers a query.

        Args:
            query: the text of the query.
            candidates: at least one, of `modalities` only.

        Returns:
            (n,) float32 in the order of the candidates, higher is better; NaN for a candidate that cannot be scored,
            such as a file that cannot be read.
        """
        ...
