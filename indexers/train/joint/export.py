"""Writes a trained joint model as the files that the reranker `starter-joint` loads.

A safetensors file with the weights (matrices float16), and two graphs that point into it by offset: `tokens.onnx` makes
tokens of cells, `score.onnx` scores a text with the tokens of pictures. Two graphs of the towers go beside those of the
bundled model and point into its weights: `cells.onnx` and `states.onnx` give what the joint model reads as well.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from mmsearch.indexers.train import graphs
from mmsearch.indexers.train.graphs import WEIGHTS, Graph, Output, Places
from mmsearch.indexers.train.joint.model import JointModel, Shape
from mmsearch.indexers.train.joint.towers import ImageTower

_EPS = 1e-5  # torch's own
_DIM = 512


def export(model: JointModel, mix: tuple[float, float, float], folder: Path) -> None:
    """Writes weights, graphs and `model.json` to `folder`.

    Args:
        model: trained.
        mix: weights of the cosine of the embeddings, of late interaction and of cross-attention in the score.
        folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(model), folder / WEIGHTS)
    places = graphs.places(folder / WEIGHTS)
    (folder / "tokens.onnx").write_bytes(token_graph(places))
    (folder / "score.onnx").write_bytes(score_graph(places, model.shape, mix))
    parts: dict[str, str] = {}
    for kind, names in (("tokens", ("tokens.onnx",)), ("score", (WEIGHTS, "tokens.onnx", "score.onnx"))):
        digest = hashlib.sha256()
        for name in names:
            digest.update((folder / name).read_bytes())
        if kind == "tokens":  # the score may change while the tokens that are stored stay good
            for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
                digest.update(_tensors(model)[name].tobytes())
        parts[kind] = f"starter-joint-{kind}-{digest.hexdigest()[:32]}"
    about = {
        "identity": parts["score"],
        "token_identity": parts["tokens"],
        "cells": model.shape.tokens,
        "token_width": model.shape.token_width,
    }
    (folder / "model.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def export_towers(folder: Path, image: ImageTower) -> None:
    """Writes the graphs of the towers beside the weights of the bundled model."""
    places = graphs.places(folder / WEIGHTS)
    text = json.loads((folder / "model.json").read_text("utf-8"))["text"]
    states = graphs.text_graph(places, text["layers"], text["heads"], text["eps"], states=True)
    (folder / "states.onnx").write_bytes(states)
    (folder / "cells.onnx").write_bytes(graphs.image_graph(places, image.trunk, cells=True))


def _tensors(model: JointModel) -> dict[str, NDArray[np.floating]]:
    state = {name: value.detach().cpu().float().numpy() for name, value in model.state_dict().items()}
    mean, std = state.pop("mean"), state.pop("std")
    state["fc1.weight"] = state["fc1.weight"] / std
    state["fc1.bias"] = state["fc1.bias"] - state["fc1.weight"] @ mean
    kept = {name: value for name, value in state.items() if not name.startswith("mask") and name != "late_scale"}
    return {
        name: np.ascontiguousarray(value.astype(np.float16) if value.ndim > 1 else value)
        for name, value in kept.items()
    }


def _unit(g: Graph, x: str) -> str:
    """Rows of length 1."""
    length = g.node("ReduceL2", x, g.constant(np.array([-1], np.int64)), keepdims=1)
    return g.node("Div", x, g.node("Max", length, g.constant(np.array(1e-12, np.float32))))  # type: ignore[no-any-return]


def token_graph(places: Places) -> bytes:
    """(n, cells, channels) means of the last map, to (n, cells, token_width) tokens of 8 bits."""
    g = Graph(places)
    rows = _unit(g, g.linear(g.node("Gelu", g.linear("cells", "fc1")), "fc2"))
    scaled = g.node("Round", g.node("Mul", rows, g.constant(np.array(127, np.float32))))
    tokens = g.node("Cast", scaled, to=TensorProto.INT8)
    inputs = [helper.make_tensor_value_info("cells", TensorProto.FLOAT, ["n", "cells", "channels"])]
    return g.finish("tokens", inputs, {"tokens": Output(tokens, ["n", "cells", "width"], TensorProto.INT8)})


def score_graph(places: Places, shape: Shape, mix: tuple[float, float, float]) -> bytes:
    """A text with pictures.

    Inputs: `states` (1, l, width of the text tower), `embedding` (1, dim) of the text, `tokens` (n, cells,
    token_width) and `embeddings` (n, dim) of the pictures, both of 8 bits. Outputs: `scores` (n), and `parts` (n, 3):
    the cosine of the embeddings, late interaction, cross-attention.
    """
    g = Graph(places)

    def ints(*values: int) -> str:
        return g.constant(np.array(values, np.int64))

    def number(value: float) -> str:
        return g.constant(np.array(value, np.float32))

    cells = g.node("Mul", g.node("Cast", "tokens", to=TensorProto.FLOAT), number(1 / 127))
    whole = _unit(g, g.node("Cast", "embeddings", to=TensorProto.FLOAT))
    first = g.node("MatMul", whole, g.node("Transpose", "embedding", perm=[1, 0]))

    rows = _unit(g, g.linear("states", "piece"))
    weights = g.node("Sigmoid", g.linear("states", "weight"))
    total = g.node("Max", g.node("ReduceSum", weights, ints(1), keepdims=1), number(1))
    best = g.node("ReduceMax", g.node("MatMul", rows, g.node("Transpose", cells, perm=[0, 2, 1])), ints(-1), keepdims=1)
    late = g.node("ReduceSum", g.node("Mul", best, g.node("Div", weights, total)), ints(1), keepdims=0)

    inside = [
        g.node("Unsqueeze", g.linear(whole, "whole_in"), ints(1)),
        g.linear(cells, "token_in"),
    ]
    pictures = g.norm(g.node("Add", g.node("Concat", *inside, axis=1), g.weight("places")), "image_norm", _EPS)
    x = g.linear("states", "text_in")
    for index in range(shape.layers):
        x = _layer(g, x, pictures, f"layers.{index}", shape)
    pooled = g.node("ReduceMean", g.norm(x, "out_norm", _EPS), ints(1), keepdims=0)
    cross = g.linear(g.node("Gelu", g.linear(pooled, "out")), "match")

    parts = g.node("Concat", first, late, cross, axis=1)
    scores = g.node("MatMul", parts, g.constant(np.array(mix, np.float32)[:, None]))
    inputs = [
        helper.make_tensor_value_info("states", TensorProto.FLOAT, [1, "l", "states"]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, _DIM]),
        helper.make_tensor_value_info("tokens", TensorProto.INT8, ["n", shape.tokens, shape.token_width]),
        helper.make_tensor_value_info("embeddings", TensorProto.INT8, ["n", _DIM]),
    ]
    outputs = {"scores": Output(g.node("Squeeze", scores, ints(1)), ["n"]), "parts": Output(parts, ["n", 3])}
    return g.finish("score", inputs, outputs)


def _layer(g: Graph, x: str, pictures: str, name: str, shape: Shape) -> str:
    """One layer of the cross-encoder. The text is one until it meets the pictures, and n from then on."""
    width, heads = shape.width, shape.heads
    join = g.constant(np.array([0, 0, width], np.int64))
    scale = g.constant(np.array((width // heads) ** -0.5, np.float32))

    def split(value: str, count: int) -> list[str]:
        """(n, l, count * width) to `count` times (n, heads, l, width / heads)."""
        shaped = g.node("Reshape", value, g.constant(np.array([0, 0, count, heads, width // heads], np.int64)))
        parts = g.node("Transpose", shaped, perm=[2, 0, 3, 1, 4])
        indices = [g.constant(np.array(index, np.int64)) for index in range(count)]
        return [g.node("Gather", parts, index, axis=0) for index in indices]

    def attend(q: str, k: str, v: str) -> str:
        scores = g.node("MatMul", g.node("Mul", q, scale), g.node("Transpose", k, perm=[0, 1, 3, 2]))
        mixed = g.node("MatMul", g.node("Softmax", scores, axis=-1), v)
        return g.node("Reshape", g.node("Transpose", mixed, perm=[0, 2, 1, 3]), join)  # type: ignore[no-any-return]

    q, k, v = split(g.linear(g.norm(x, f"{name}.norm1", _EPS), f"{name}.qkv"), 3)
    x = g.node("Add", x, g.linear(attend(q, k, v), f"{name}.out1"))
    (q,) = split(g.linear(g.norm(x, f"{name}.norm2", _EPS), f"{name}.query"), 1)
    k, v = split(g.linear(pictures, f"{name}.keys"), 2)
    x = g.node("Add", x, g.linear(attend(q, k, v), f"{name}.out2"))
    inner = g.node("Gelu", g.linear(g.norm(x, f"{name}.norm3", _EPS), f"{name}.up"))
    return g.node("Add", x, g.linear(inner, f"{name}.down"))  # type: ignore[no-any-return]
