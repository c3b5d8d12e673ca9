"""Writes a trained student as the bundle that `mmsearch.retrieval.encoders.starter` loads.

One safetensors file holds every weight, under the names that open_clip's CustomTextCLIP would use plus a suffix
for packed matrices. Two ONNX graphs without weights of their own point into that file by offset, so nothing is
stored twice: ONNX Runtime, numpy and torch read the same bytes. A third graph shows where in a picture a query is.

Packed matrices (rows, columns), in blocks of 32 along a row:
    NAME.q4     (rows, columns / 32, 16) uint8: byte j of a block holds weights 2j (low) and 2j + 1 (high)
    NAME.q8     (rows, columns / 32, 32) uint8
    NAME.scale  (rows * columns / 32,) float16
    weight = scale * (q - 8) or scale * (q - 128)
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import nn

from mmsearch.indexers.train import graphs
from mmsearch.indexers.train.backbones import Q4
from mmsearch.indexers.train.features import IMAGE_SIZE, trunk_tensors
from mmsearch.indexers.train.graphs import BLOCK, LAYER, WEIGHTS
from mmsearch.indexers.train.model import Student
from mmsearch.indexers.train.prepare import Preparation
from mmsearch.indexers.train.text import Layer


def export(preparation: Preparation, student: Student, folder: Path, *, upper_bits: int = 8) -> None:
    """Write weights, graphs, vocabulary and `model.json` to `folder`.

    Args:
        preparation: the backbones and vocabulary.
        student: what was trained on them.
        folder: made if need be.
        upper_bits: 8 packs the trained layers in blocks of 8 bits, 16 keeps them as float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    student.eval()
    tensors = {**_text_tensors(preparation, student, upper_bits), **_image_tensors(preparation, student)}
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / WEIGHTS)
    places = graphs.places(folder / WEIGHTS)
    layers = preparation.text.layers
    (folder / "text.onnx").write_bytes(graphs.text_graph(places, layers, preparation.text.heads, preparation.text.eps))
    (folder / "image.onnx").write_bytes(graphs.image_graph(places, preparation.image))
    (folder / "pieces.txt").write_bytes("\n".join(preparation.pieces).encode())
    # Not part of the identity: it computes no embedding that is stored.
    (folder / "windows.onnx").write_bytes(graphs.image_graph(places, preparation.image, windows=True))
    digest = hashlib.sha256()
    for name in (WEIGHTS, "text.onnx", "image.onnx", "pieces.txt"):
        digest.update((folder / name).read_bytes())
    model = {
        "identity": f"starter-{digest.hexdigest()[:32]}",
        "dim": preparation.recipe["model"]["dim"],
        "image_size": IMAGE_SIZE,
        "max_tokens": preparation.recipe["model"]["max_tokens"],
        "logit_scale": round(float(student.scale().detach()), 4),
        "text": {
            "layers": layers,
            "heads": preparation.text.heads,
            "width": preparation.text.width,
            "hidden": preparation.text.hidden,
            "eps": preparation.text.eps,
        },
    }
    (folder / "model.json").write_text(json.dumps(model, indent=2) + "\n", "utf-8")


def _array(tensor: torch.Tensor, kind: type[np.floating[Any]] = np.float32) -> NDArray[Any]:
    return tensor.detach().numpy().astype(kind)


def _pack4(name: str, matrix: Q4) -> dict[str, NDArray[Any]]:
    rows, columns = matrix.nibbles.shape
    pairs = matrix.nibbles.reshape(rows, columns // BLOCK, BLOCK // 2, 2)
    return {f"{name}.q4": pairs[..., 0] | (pairs[..., 1] << 4), f"{name}.scale": matrix.scales.reshape(-1)}


def _pack8(name: str, matrix: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    rows, columns = matrix.shape
    blocks = matrix.reshape(rows, columns // BLOCK, BLOCK)
    scales = np.maximum(np.abs(blocks).max(-1) / 127.0, 1e-8).astype(np.float16)
    values = np.rint(blocks / np.maximum(scales.astype(np.float32), 1e-8)[..., None])
    return {
        f"{name}.q8": (np.clip(values, -128, 127) + 128).astype(np.uint8),
        f"{name}.scale": scales.reshape(-1),
    }


def _text_tensors(preparation: Preparation, student: Student, upper_bits: int) -> dict[str, NDArray[Any]]:
    text, frozen = preparation.text, preparation.recipe["model"]["frozen_layers"]
    plain = {name: value for name, value in text.tensors.items() if not isinstance(value, Q4)}
    width = text.width
    positions = plain["emb.pos"].reshape(-1, width) + plain["emb.type"].reshape(-1, width)[:1]
    tensors: dict[str, NDArray[Any]] = {
        **_pack4("text.transformer.embeddings.word_embeddings.weight", preparation.word),
        "text.transformer.embeddings.position_embeddings.weight": positions[
            : preparation.recipe["model"]["max_tokens"]
        ].astype(np.float16),
        "text.transformer.embeddings.LayerNorm.weight": plain["emb.ln.w"],
        "text.transformer.embeddings.LayerNorm.bias": plain["emb.ln.b"],
        "text.pieces.scores": preparation.scores,
        "text.proj.weight": _array(student.text_head.weight, np.float16),
    }
    for index in range(text.layers):
        place = f"{LAYER}.{index}"
        source = preparation.lower.layers[index] if index < frozen else student.upper.layers[index - frozen]
        assert isinstance(source, Layer)
        names = {
            "attention.self.qkv": ("q", "k", "v"),
            "attention.output.dense": ("ao",),
            "intermediate.dense": ("fi",),
            "output.dense": ("fo",),
        }
        modules: dict[str, nn.Linear] = {
            "attention.self.qkv": source.qkv,
            "attention.output.dense": source.out,
            "intermediate.dense": source.up,
            "output.dense": source.down,
        }
        for name, parts in names.items():
            weight = f"{place}.{name}.weight"
            if index < frozen:
                packed = [text.tensors[f"l{index}.{part}.w"] for part in parts]
                blocks = [matrix for matrix in packed if isinstance(matrix, Q4)]
                whole = Q4(np.concatenate([b.scales for b in blocks]), np.concatenate([b.nibbles for b in blocks]))
                tensors |= _pack4(weight, whole)
            elif upper_bits == 8:
                tensors |= _pack8(weight, _array(modules[name].weight))
            else:
                tensors[weight] = _array(modules[name].weight, np.float16)
            tensors[f"{place}.{name}.bias"] = _array(modules[name].bias)
        for name, norm in (("attention.output", source.out_norm), ("output", source.down_norm)):
            tensors[f"{place}.{name}.LayerNorm.weight"] = _array(norm.weight)
            tensors[f"{place}.{name}.LayerNorm.bias"] = _array(norm.bias)
    return tensors


def _image_tensors(preparation: Preparation, student: Student) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    for name, value in trunk_tensors(preparation.image).items():
        tensors[name] = value.astype(np.float16) if value.ndim > 1 else value
    fc1, bias, fc2 = student.image_head.folded()
    tensors["visual.head.mlp.fc1.weight"] = _array(fc1, np.float16)
    tensors["visual.head.mlp.fc1.bias"] = _array(bias)
    tensors["visual.head.mlp.fc2.weight"] = _array(fc2, np.float16)
    return tensors
