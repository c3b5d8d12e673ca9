"""Reranking: a cross-encoder reads the query together with each of the first candidates, and orders them anew.

`blip` and `cross_encoder` are the rerankers on transformers; `checkpoint` finds and checks their files.
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


@dataclass(frozen=True, slots=True)
class RerankCandidate:
    """What a reranker may read of an item.

    Attributes:
        text: the text of the item, or the captions of a picture; None without any.
        path: a file that can be opened; None if there is none.
    """

    item_id: int
    modality: Modality
    text: str | None
    path: Path | None


class Reranker(Protocol):
    """A cross-encoder.

    Attributes:
        name: shown as the model's name.
        identity: weights, preprocess and tokenizer as one hash.
        modalities: of the items that it can score.
        batch_size: how many candidates it takes at once: a budget of time can end between two batches.
    """

    name: str
    identity: str
    modalities: frozenset[Modality]
    batch_size: int

    def score(self, query: str, candidates: Sequence[RerankCandidate]) -> NDArray[np.float32]:
        """Scores each candidate for a query: (n,) float32, higher is better.

        NaN is for a candidate that cannot be scored, such as a file that cannot be read.
        """
        ...
