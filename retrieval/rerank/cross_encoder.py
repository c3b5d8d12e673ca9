"""Cross-encoders of sentence-transformers as rerankers of texts, and of pictures by their captions."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch.retrieval.encoders import hub
from mmsearch.retrieval.encoders.placement import Placement
from mmsearch.retrieval.errors import MissingExtra, ModelUnavailable
from mmsearch.retrieval.rerank.checkpoint import Checkpoint, loading, read_checkpoint, transformers
from mmsearch.retrieval.types import Modality

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmsearch.retrieval.rerank import RerankCandidate

_BATCH = {"cpu": 16, "mps": 64, "cuda": 256}
_EXAMPLE = "cross-encoder/ms-marco-MiniLM-L6-v2"


class CrossEncoderReranker:
    """A `Reranker` of texts: CrossEncoder of sentence-transformers. Safe to call from several threads.

    A picture is scored by its captions where it has some.

    Args:
        name: shown as the model's name.
        folder: config.json of a sequence classifier with one label, its weights, and a tokenizer.
        device: `cpu`, `cuda`, `cuda:N` or `mps`; None takes the best that is here.
        precision: `fp32`, `bf16` or `fp16` (autocast; a batch that overflows is done again in fp32); None takes
            fp16 on CUDA, else fp32.
        threads: torch's processor threads, a setting of the whole process.
        batch_size: pairs per call of the model; None suits the device.

    Attributes:
        max_tokens: where a pair of query and text is cut, the longer of both first.

    Raises:
        UsageError: a device that is not here, or an unknown precision.
        ModelUnavailable: the folder holds no such model, one with several labels, or a damaged one.
        MissingExtra: sentence-transformers is not installed.
    """

    modalities: frozenset[Modality] = frozenset({"image", "text"})

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        device: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        checkpoint = read_checkpoint(folder, "ForSequenceClassification", _EXAMPLE)
        kind = _import_cross_encoder()
        import torch

        self._placement = Placement(device, precision, threads)
        with loading(checkpoint):
            labels = transformers().AutoConfig.from_pretrained(folder, local_files_only=True).num_labels
            if labels != 1:
                raise ModelUnavailable(
                    f"{folder} is a classifier of {labels} labels; a reranker gives one score, as {_EXAMPLE} does"
                )
            self._model = kind(
                str(folder),
                device=str(self._placement.device),
                activation_fn=torch.nn.Identity(),  # the logit: a sigmoid in float32 makes all good texts 1.0
                local_files_only=True,
                model_kwargs={"use_safetensors": checkpoint.weights.suffix == ".safetensors"},
            )
            self._model.model.float().eval()
            _refuse_random_head(checkpoint, self._model.model)
        self._tokenizing = threading.Lock()
        self.name = name
        self.device = str(self._placement.device)
        self.precision = self._placement.precision
        self.batch_size = batch_size or _BATCH[self._placement.kind]
        length = getattr(self._model, "max_seq_length", None) or self._model.max_length  # its name until version 5
        self.max_tokens = int(length)
        self.identity = checkpoint.identity("cross-encoder", max_tokens=self.max_tokens)

    def score(self, query: str, candidates: Sequence[RerankCandidate]) -> NDArray[np.float32]:
        """How well each text answers the query: (n,) float32 logits, higher is better; NaN where there is no text."""
        import numpy as np

        found = np.full(len(candidates), np.nan, dtype=np.float32)
        rows = [row for row, candidate in enumerate(candidates) if candidate.text]
        # Texts of like length share a batch, whose rows are padded to the longest.
        rows.sort(key=lambda row: len(candidates[row].text or ""))
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            pairs = [(query, candidates[row].text or "") for row in batch]
            found[batch] = self._placement.run(self.name, functools.partial(self._predict, pairs))
        return found

    def _predict(self, pairs: list[tuple[str, str]]) -> Any:
        with self._tokenizing:  # fast tokenizers keep their padding in shared state
            return self._model.predict(
                pairs, batch_size=len(pairs), show_progress_bar=False, convert_to_numpy=False, convert_to_tensor=True
            ).reshape(-1)


def _refuse_random_head(checkpoint: Checkpoint, model: Any) -> None:
    """A folder may name a classifier and hold no head: transformers would then draw one at random.

    Raises:
        ModelUnavailable: the weights lack the layers on top of the body.
    """
    body = f"{model.base_model_prefix}."
    head = {name for name, _ in model.named_parameters() if not name.startswith(body)}
    if missing := sorted(head - _weight_names(checkpoint.weights)):
        raise checkpoint.damaged(f"{len(missing)} weights of its head are missing, {missing[0]} for one")


def _weight_names(weights: Path) -> set[str]:
    """What the weights in a file are called; their values are not read."""
    if weights.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(str(weights), framework="np") as file:
            return set(file.keys())
    import torch

    return set(torch.load(weights, map_location="meta", weights_only=True))


def _import_cross_encoder() -> Any:
    transformers()
    try:
        return importlib.import_module("sentence_transformers").CrossEncoder
    except ImportError as error:
        raise MissingExtra(
            f"this reranker runs on sentence-transformers: pip install 'mmsearch[rerank]' ({hub.one_line(error)})"
        ) from error
