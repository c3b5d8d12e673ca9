"""A deterministic reranker without weights, for tests and for trying things out.

It counts: a candidate scores the share of the query's words that its text or the name of its file has, and a little by
hash, so that no two differ by nothing. Pictures are not opened.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.types import Modality

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.rerank import RerankCandidate

_WORD = re.compile(r"[㐀-鿿]|[^\W_]+")


class FakeReranker:
    """A `Reranker` that needs no files of its own. Safe to call from several threads.

    Args:
        batch_size: as in `Reranker`.
    """

    name = "fake"
    identity = "fake-reranker-1"
    modalities: frozenset[Modality] = frozenset({"image", "text"})

    def __init__(self, batch_size: int = 8) -> None:
        self.batch_size = batch_size

    def score(self, query: str, candidates: Sequence[RerankCandidate]) -> NDArray[np.float32]:
        """The share of the query's words that a candidate has, (n,); NaN for a file that is not there."""
        return np.array([self._score(query, candidate) for candidate in candidates], dtype=np.float32)

    def _score(self, query: str, candidate: RerankCandidate) -> float:
        if candidate.path is not None and not candidate.path.exists():
            return float("nan")
        name = candidate.path.stem if candidate.path is not None else ""
        read = f"{candidate.text or ''} {name}"
        wanted = _words(query)
        digest = hashlib.sha256(f"{query}\0{read}".encode("utf-8", "surrogatepass")).digest()
        return len(wanted & _words(read)) / max(1, len(wanted)) + int.from_bytes(digest[:2]) / 2**26


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
