"""BLIP's image-text matching as a reranker of pictures (Li et al., ICML 2022), on transformers.

The image tower reads each picture, the text tower reads the query with cross-attention to it, and a head of two
classes says whether they match. The score is the logit of that: the log-odds of "match", of which transformers'
`itm_score.softmax(-1)[:, 1]` is the sigmoid.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch.retrieval.encoders.machine import usable_cpus
from mmsearch.retrieval.encoders.placement import Placement
from mmsearch.retrieval.errors import MediaError, ModelUnavailable
from mmsearch.retrieval.media import load_image
from mmsearch.retrieval.rerank.checkpoint import Checkpoint, loading, read_checkpoint, read_json, transformers
from mmsearch.retrieval.types import Modality

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from mmsearch.retrieval.rerank import RerankCandidate

_log = logging.getLogger(__name__)

_BATCH = {"cpu": 1, "mps": 16, "cuda": 64}
_PREPROCESS = {
    "size": 384,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""What BlipImageProcessor does where `preprocessor_config.json` is silent."""


class BlipReranker:
    """A `Reranker` of pictures: BlipForImageTextRetrieval. Safe to call from several threads.

    Args:
        name: shown as the model's name.
        folder: config.json, model.safetensors or pytorch_model.bin, a tokenizer, and preprocessor_config.json.
        device: `cpu`, `cuda`, `cuda:N` or `mps`; None takes the best that is here.
        precision: `fp32`, `bf16` or `fp16` (autocast; a batch that overflows is done again in fp32); None takes
            fp16 on CUDA, else fp32.
        threads: torch's processor threads, a setting of the whole process.
        batch_size: pictures per call of the model; None suits the device. On a processor that is 1: larger
            batches are no faster there, and a budget of time can end between two pictures.

    Attributes:
        image_size: (height, width) that pictures are resized to, whatever their shape.
        max_tokens: where a query is cut, with the tokens that mark its ends.

    Raises:
        UsageError: a device that is not here, or an unknown precision.
        ModelUnavailable: the folder holds no such model, or a damaged one.
        MissingExtra: transformers is not installed.
    """

    modalities: frozenset[Modality] = frozenset({"image"})

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
        checkpoint = read_checkpoint(folder, "BlipForImageTextRetrieval", "Salesforce/blip-itm-base-coco")
        settings = _preprocess_settings(checkpoint)
        with loading(checkpoint):
            model, report = transformers().BlipForImageTextRetrieval.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=checkpoint.weights.suffix == ".safetensors",
                output_loading_info=True,
            )
            self._tokenizer = transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
            if missing := sorted(report["missing_keys"]):
                raise checkpoint.damaged(f"{len(missing)} of its weights are missing, {missing[0]} for one")
        self._placement = Placement(device, precision, threads)
        self._model = model.float().to(self._placement.device).eval()
        self._tokenizing = threading.Lock()
        self._settings = settings
        self.name = name
        self.device = str(self._placement.device)
        self.precision = self._placement.precision
        self.batch_size = batch_size or _BATCH[self._placement.kind]
        self.image_size: tuple[int, int] = settings["size"]
        self.max_tokens = min(int(model.config.text_config.max_position_embeddings), self._tokenizer.model_max_length)
        self.identity = checkpoint.identity("blip-itm", preprocess=settings, max_tokens=self.max_tokens)

    def score(self, query: str, candidates: Sequence[RerankCandidate]) -> NDArray[np.float32]:
        """How well each picture matches the query: (n,) float32 log-odds, higher is better.

        A query over `max_tokens` is cut at the end. NaN is for candidates that cannot be scored: texts, and
        pictures that cannot be read.
        """
        import numpy as np

        found = np.full(len(candidates), np.nan, dtype=np.float32)
        tokens = self._tokens(query)
        with ThreadPoolExecutor(usable_cpus()) as pool:
            for start in range(0, len(candidates), self.batch_size):
                pixels = list(pool.map(self._read, candidates[start : start + self.batch_size]))
                rows = [row for row, picture in enumerate(pixels, start) if picture is not None]
                if rows:
                    found[rows] = self._match(tokens, np.stack([picture for picture in pixels if picture is not None]))
        return found

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """BlipImageProcessor's pixels of an upright RGB picture; (3, height, width)."""
        import numpy as np

        height, width = self.image_size
        resized = image.resize((width, height), self._settings["resample"])
        array = np.asarray(resized).transpose(2, 0, 1) * self._settings["rescale_factor"]
        mean, std = (np.array(self._settings[key], dtype=np.float32) for key in ("image_mean", "image_std"))
        pixels: NDArray[np.float32] = (array.astype(np.float32) - mean[:, None, None]) / std[:, None, None]
        return pixels

    def _read(self, candidate: RerankCandidate) -> NDArray[np.float32] | None:
        if candidate.modality != "image" or candidate.path is None:
            return None
        try:
            return self.preprocess(load_image(candidate.path.read_bytes(), target=self.image_size).image)
        except (OSError, MediaError) as error:
            _log.info("%s is not scored: %s", candidate.path, error)
            return None

    def _tokens(self, query: str) -> Any:
        with self._tokenizing:  # fast tokenizers keep their truncation in shared state
            ids = self._tokenizer(query, truncation=True, max_length=self.max_tokens, verbose=False).input_ids
        return ids

    def _match(self, tokens: list[int], pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log-odds of "match" for a stack of pictures, by the steps of the model's own `forward`.

        Its `forward` would make the mask of the picture on the CPU, whichever device the model is on.
        """
        import torch

        device = self._placement.device
        images = torch.from_numpy(pixels).to(device)
        ids = torch.tensor(tokens, device=device).expand(len(pixels), -1)

        def forward() -> Any:
            states = self._model.vision_model(pixel_values=images).last_hidden_state
            mask = torch.ones(states.shape[:2], dtype=torch.long, device=device)
            read = self._model.text_encoder(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                encoder_hidden_states=states,
                encoder_attention_mask=mask,
            )
            no, yes = self._model.itm_head(read.last_hidden_state[:, 0]).float().unbind(-1)
            return yes - no

        return self._placement.run(self.name, forward)


def _preprocess_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """`_PREPROCESS`, as the folder has it; `size` as (height, width)."""
    path = checkpoint.folder / "preprocessor_config.json"
    said = read_json(path)
    settings: dict[str, Any] = {key: said.get(key) or default for key, default in _PREPROCESS.items()}
    try:
        size = settings["size"]
        settings["size"] = (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))
        seen = int((checkpoint.config.get("vision_config") or {}).get("image_size", 384))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelUnavailable(f"{path} gives no height and width; download it again") from error
    if any(said.get(f"do_{step}", True) is False for step in ("resize", "rescale", "normalize")):
        raise ModelUnavailable(f"{path} leaves out a step of BLIP's preprocess; that is not supported")
    if settings["size"] != (seen, seen):
        raise ModelUnavailable(f"{path} resizes to {settings['size']}, but the model reads {seen} x {seen} pixels")
    return settings
