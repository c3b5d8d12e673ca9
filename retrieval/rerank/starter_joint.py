"""The bundled reranker of pictures: a text and the stored tokens of a picture, read together. No torch, no download.

It scores for the bundled model, whose text states and cells it reads. A picture without stored tokens (the index was
made by an older version or by another model) is read from its file, which takes far longer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.encoders.starter import StarterEncoder
from mmsearch.retrieval.errors import MediaError
from mmsearch.retrieval.types import Modality

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.rerank import RerankCandidate

_log = logging.getLogger(__name__)


class StarterJointReranker:
    """`starter-joint` as a `Reranker`. Safe to call from several threads.

    Args:
        threads: for ONNX Runtime; None takes the processors that this process may use.
        encoder: the bundled encoder, where it is loaded already.
    """

    name = "starter-joint"
    modalities: frozenset[Modality] = frozenset({"image"})
    batch_size = 50

    def __init__(self, threads: int | None = None, encoder: StarterEncoder | None = None) -> None:
        self._encoder = encoder or StarterEncoder(threads)
        self.identity = f"{self._encoder.joint.identity}/{self._encoder.identity}"
        self.token_identity = self._encoder.joint.token_identity
        self._latest: tuple[str, NDArray[np.float32], NDArray[np.float32]] | None = None
        self._lock = threading.Lock()

    def score(self, query: str, candidates: Sequence[RerankCandidate]) -> NDArray[np.float32]:
        """How well each picture fits the query: (n,) float32, higher is better.

        NaN is for texts, and for pictures that have no tokens and cannot be read.
        """
        scores = np.full(len(candidates), np.nan, np.float32)
        embedding, states = self._read(query)
        known = {row: one.tokens for row, one in enumerate(candidates) if one.tokens is not None}
        if known:
            scores[list(known)] = self._encoder.joint.score(states, embedding, np.stack(list(known.values())))
        missing = [row for row, one in enumerate(candidates) if one.tokens is None and one.modality == "image"]
        for start in range(0, len(missing), self._encoder.batch_size):
            rows = missing[start : start + self._encoder.batch_size]
            with ThreadPoolExecutor(2) as pool:
                pixels = list(pool.map(self._pixels, [candidates[row] for row in rows]))
            seen = [(row, one) for row, one in zip(rows, pixels, strict=True) if one is not None]
            if seen:
                _, tokens = self._encoder.encode_image_tokens([one for _, one in seen])
                scores[[row for row, _ in seen]] = self._encoder.joint.score(states, embedding, tokens)
        return scores

    def _read(self, query: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Embedding and states of a query, which several batches have in common."""
        with self._lock:
            if self._latest is None or self._latest[0] != query:
                self._latest = (query, *self._encoder.encode_text_states(query))
            return self._latest[1:]

    def _pixels(self, candidate: RerankCandidate) -> NDArray[np.uint8] | None:
        from mmsearch.retrieval.media import load_image

        if candidate.path is None:
            return None
        try:
            image = load_image(candidate.path.read_bytes(), target=self._encoder.image_size).image
            return self._encoder.preprocess(image)
        except (OSError, MediaError) as error:
            _log.info("%s is not scored: %s", candidate.path, error)
            return None
