"""The bundled bilingual dual encoder, run by ONNX Runtime; nothing here imports torch.

EfficientNet-Lite2 and multilingual-e5-small with trained projections into one space; see MODEL_CARD.md beside
this file. Token embeddings stay packed in the memory-mapped weights file and only the rows of a text's own
pieces are unpacked, so a cold process reads kilobytes of that table, not tens of megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.retrieval.encoders.cells import WINDOW, Cells, spread
from mmsearch.retrieval.encoders.machine import usable_cpus
from mmsearch.retrieval.encoders.starter.graphs import Graphs
from mmsearch.retrieval.encoders.starter.joint import JointModel
from mmsearch.retrieval.encoders.starter.tokenizer import UnigramTokenizer

if TYPE_CHECKING:  # numpy.typing costs a cold query as much as the search itself
    from numpy.typing import NDArray
    from PIL import Image

FOLDER = Path(__file__).parent
_EMBEDDINGS = "text.transformer.embeddings"
_TEXT_BATCH = 32


def identity() -> str:
    """Identity of the bundled model, without loading it."""
    return str(_read_model(FOLDER)["identity"])


def _read_model(folder: Path) -> dict[str, Any]:
    model: dict[str, Any] = json.loads((folder / "model.json").read_text("utf-8"))
    return model


class Weights:
    """The tensors of a safetensors file, memory-mapped. `weights[name]` copies nothing.

    The format (https://github.com/huggingface/safetensors): 8 bytes with the length of a JSON header, the
    header with dtype, shape and offsets of each tensor, then the raw tensors.
    """

    _TYPES = {"F32": np.float32, "F16": np.float16, "U8": np.uint8}  # noqa: RUF012 - never changed

    def __init__(self, path: Path) -> None:
        self._raw = np.memmap(path, np.uint8, "r")
        self._start = 8 + int.from_bytes(self._raw[:8].tobytes(), "little")
        self._header: dict[str, Any] = json.loads(self._raw[8 : self._start].tobytes())
        self._header.pop("__metadata__", None)

    def __iter__(self) -> Any:
        return iter(self._header)

    def __contains__(self, name: str) -> bool:
        return name in self._header

    def __getitem__(self, name: str) -> NDArray[Any]:
        entry = self._header[name]
        begin, end = entry["data_offsets"]
        raw = self._raw[self._start + begin : self._start + end]
        return raw.view(self._TYPES[entry["dtype"]]).reshape(entry["shape"])

    def unpack(self, name: str, rows: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.float32]:
        """Float32 rows of a matrix, however it is stored (`.q4`, `.q8` or plain)."""
        if name in self:
            return self[name][rows].astype(np.float32)
        if f"{name}.q4" in self:
            packed = self[f"{name}.q4"][rows]
            values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
            zero = 8.0
        else:
            values, zero = self[f"{name}.q8"][rows], 128.0
        scales = self[f"{name}.scale"].reshape(-1, values.shape[1])[rows].astype(np.float32)
        return ((values.astype(np.float32) - zero) * scales[..., None]).reshape(len(values), -1)


class StarterEncoder:
    """The bundled model as an `Encoder`. Its two towers load on first use.

    Args:
        threads: for ONNX Runtime; default: the processors that this process may use.
        folder: where the bundle lies.
    """

    name = "starter"
    precision = "fp32"
    device = "cpu"
    backend = "onnxruntime"
    languages = ("en", "zh", "mul")

    def __init__(self, threads: int | None = None, folder: Path = FOLDER) -> None:
        model = _read_model(folder)
        self.identity: str = model["identity"]
        self.dim: int = model["dim"]
        self.image_size: tuple[int, int] = (model["image_size"], model["image_size"])
        self.max_tokens: int = model["max_tokens"]
        self.batch_size = 32
        self._threads = threads or usable_cpus()
        self._folder = folder
        self.graphs = Graphs(folder, self._threads)

    @cached_property
    def weights(self) -> Weights:
        """The weights file, memory-mapped."""
        return Weights(self._folder / "weights.safetensors")

    @cached_property
    def joint(self) -> JointModel:
        """The joint model beside it."""
        return JointModel(self.dim, self._threads, self._folder / "joint")

    @property
    def token_identity(self) -> str | None:
        """That of the joint model; None for a bundle without one, which makes no tokens."""
        return self.joint.token_identity if (self._folder / "joint").is_dir() else None

    @property
    def token_shape(self) -> tuple[int, int]:
        """(rows, width) of what `encode_image_tokens` gives of a picture."""
        return self.joint.shape

    @cached_property
    def tokenizer(self) -> UnigramTokenizer:
        """The unigram tokenizer."""
        pieces = (self._folder / "pieces.txt").read_text("utf-8").split("\n")
        return UnigramTokenizer(pieces, self.weights["text.pieces.scores"].tolist(), max_tokens=self.max_tokens)

    def preprocess(self, image: Image.Image) -> NDArray[np.uint8]:
        """Squash an upright RGB picture to the (height, width, 3) pixels that the image tower takes."""
        height, width = self.image_size
        if image.size != (width, height):
            image = image.resize((width, height), 3)  # PIL.Image.Resampling.BICUBIC, without the import
        return np.asarray(image)

    def encode_images(self, arrays: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """`preprocess` outputs to (n, dim) float32 rows of length 1."""
        rows = [
            self.graphs.get("image.onnx").run(None, {"pixels": np.stack(arrays[start : start + self.batch_size])})[0]
            for start in range(0, len(arrays), self.batch_size)
        ]
        return self._normalised(rows)

    def encode_image_tokens(self, arrays: Sequence[NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """The rows of `encode_images`, and of the same pass what the joint model keeps: int8 (n, *token_shape)."""
        rows: list[NDArray[np.float32]] = []
        tokens = [np.empty((0, *self.token_shape), np.int8)]
        for start in range(0, len(arrays), self.batch_size):
            pixels = np.stack(arrays[start : start + self.batch_size])
            embeddings, cells = self.graphs.get("cells.onnx").run(None, {"pixels": pixels})
            rows.append(embeddings)
            tokens.append(self.joint.tokens(cells, embeddings))
        return self._normalised(rows), np.concatenate(tokens)

    def encode_text_states(self, text: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The row of `encode_texts` (dim,), and the states of the text's tokens (length, width)."""
        embeddings, states = self.graphs.get("states.onnx").run(None, self._states([self.tokenizer.encode(text)]))
        return self._normalised([embeddings])[0], states[0]

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts to (n, dim) float32 rows of length 1; tokens over `max_tokens` are cut off at the end."""
        ids = [self.tokenizer.encode(text) for text in texts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        rows = [
            self.graphs.get("text.onnx").run(None, self._states([ids[i] for i in order[start : start + _TEXT_BATCH]]))[
                0
            ]
            for start in range(0, len(order), _TEXT_BATCH)
        ]
        embeddings = np.empty((len(texts), self.dim), np.float32)
        embeddings[order] = self._normalised(rows)
        return embeddings

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` before any cut."""
        return self.tokenizer.count(text)

    def heat_map(self, image: Image.Image, row: NDArray[np.float32]) -> Cells:
        """Scores the places of an upright RGB picture for a query, seen at twice the size that embeddings are of."""
        pixels = np.asarray(image.resize((2 * self.image_size[1], 2 * self.image_size[0]), 3))
        (windows,) = self.graphs.get("windows.onnx").run(None, {"pixels": pixels[None]})[0]
        scores = windows @ row / np.linalg.norm(windows, axis=-1)
        return Cells(spread(scores, WINDOW), "windows")

    def _states(self, ids: list[list[int]]) -> dict[str, NDArray[np.float32]]:
        """Inputs of the text tower: word + position embeddings (n, l, width), and the mask (n, l)."""
        lengths = [len(i) for i in ids]
        longest = max(lengths)
        pieces = dict.fromkeys(piece for text in ids for piece in text)
        rows = {piece: row for row, piece in enumerate(pieces)}
        words = self.weights.unpack(f"{_EMBEDDINGS}.word_embeddings.weight", np.array(list(pieces)))
        words = words[[rows[piece] for text in ids for piece in text]]
        mask = (np.arange(longest)[None] < np.array(lengths)[:, None]).astype(np.float32)
        states = np.zeros((len(ids), longest, words.shape[1]), np.float32)
        states[mask.astype(bool)] = words
        states += self.weights[f"{_EMBEDDINGS}.position_embeddings.weight"][:longest].astype(np.float32)
        return {"states": states, "mask": mask}

    def _normalised(self, rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        if not rows:
            return np.empty((0, self.dim), np.float32)
        embeddings = np.concatenate(rows)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        return embeddings
