"""The two towers as ONNX graphs without weights of their own: they point into a safetensors file by offset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from mmsearch.retrieval.encoders.cells import WINDOW

BLOCK = 32
"""Weights per block of a packed matrix."""

WEIGHTS = "weights.safetensors"
"""Name of the weights file, beside the graphs."""

LAYER = "text.transformer.encoder.layer"
"""Prefix of the names of a text layer's tensors."""

_TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "U8": TensorProto.UINT8}

Places = dict[str, dict[str, Any]]


def places(path: Path) -> Places:
    """Element type, shape, absolute offset and length of each tensor of a safetensors file."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    for entry in header.values():
        begin, end = entry["data_offsets"]
        entry |= {"offset": 8 + size + begin, "length": end - begin}
    return header  # type: ignore[no-any-return]


class Output(NamedTuple):
    """An output of a graph: the value that it is, its shape and its element type."""

    value: str
    shape: list[Any]
    kind: int = TensorProto.FLOAT


class Graph:
    """Collects nodes."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._cast: dict[str, str] = {}

    def node(self, kind: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """A node; the name of its output, or their names where it has several."""
        names = [f"{kind}_{len(self._nodes)}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names if outputs > 1 else names[0]

    def constant(self, value: NDArray[Any]) -> str:
        """A value in the graph itself."""
        name = f"constant_{len(self._initializers)}"
        self._initializers[name] = onnx.numpy_helper.from_array(value, name)
        return name

    def weight(self, name: str) -> str:
        """A tensor of the weights file, as float32."""
        if name not in self._initializers:
            place = self._places[name]
            tensor = onnx.TensorProto(name=name, data_type=_TYPES[place["dtype"]], dims=place["shape"])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", WEIGHTS), ("offset", place["offset"]), ("length", place["length"])):
                tensor.external_data.add(key=key, value=str(value))
            self._initializers[name] = tensor
            if place["dtype"] == "F16":
                self._cast[name] = self.node("Cast", name, to=TensorProto.FLOAT)
        return self._cast.get(name, name)

    def linear(self, x: str, name: str, *, bias: bool = True) -> str:
        """Apply weight and bias to `x`, whatever form the weight is stored in."""
        weight = f"{name}.weight"
        packed = next((f"{weight}.{form}" for form in ("q4", "q8") if f"{weight}.{form}" in self._places), None)
        if packed is None:
            out = self.node("MatMul", x, self.node("Transpose", self.weight(weight), perm=[1, 0]))
        else:
            rows, blocks, _ = self._places[packed]["shape"]
            out = self.node(
                "MatMulNBits",
                x,
                self.weight(packed),
                self.weight(f"{weight}.scale"),
                domain="com.microsoft",
                K=blocks * BLOCK,
                N=rows,
                bits=int(packed[-1]),
                block_size=BLOCK,
            )
        return self.node("Add", out, self.weight(f"{name}.bias")) if bias else out  # type: ignore[no-any-return]

    def norm(self, x: str, name: str, eps: float) -> str:
        """Layer norm with the weights of that name."""
        parts = (self.weight(f"{name}.weight"), self.weight(f"{name}.bias"))
        return self.node("LayerNormalization", x, *parts, axis=-1, epsilon=eps)  # type: ignore[no-any-return]

    def finish(self, name: str, inputs: list[onnx.ValueInfoProto], outputs: Mapping[str, Output]) -> bytes:
        """The graph as a file, with outputs by name."""
        results = []
        for output, (value, shape, kind) in outputs.items():
            results.append(helper.make_tensor_value_info(output, kind, shape))
            self._nodes.append(helper.make_node("Identity", [value], [output]))
        graph = helper.make_graph(self._nodes, name, inputs, results, list(self._initializers.values()))
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="mmsearch")
        return model.SerializeToString()  # type: ignore[no-any-return]


def text_graph(places: Places, layers: int, heads: int, eps: float, *, states: bool = False) -> bytes:
    """(n, l, width) sums of word and position embeddings and an (n, l) mask of 1 and 0, to (n, dim).

    With `states`, also to the states of the last layer, (n, l, width).
    """
    g = Graph(places)
    width = places["text.transformer.embeddings.LayerNorm.weight"]["shape"][0]
    split = g.constant(np.array([0, 0, 3, heads, width // heads], np.int64))
    join = g.constant(np.array([0, 0, width], np.int64))
    scale = g.constant(np.array((width // heads) ** -0.5, np.float32))
    hidden = g.node("Sub", "mask", g.constant(np.array(1, np.float32)))
    blocked = g.node("Mul", hidden, g.constant(np.array(1e9, np.float32)))
    blocked = g.node("Unsqueeze", blocked, g.constant(np.array([1, 2], np.int64)))

    def norm(x: str, name: str) -> str:
        return g.norm(x, name, eps)

    x = norm("states", "text.transformer.embeddings.LayerNorm")
    one = g.constant(np.array([2], np.int64))
    for index in range(layers):
        place = f"{LAYER}.{index}"
        qkv = g.node("Reshape", g.linear(x, f"{place}.attention.self.qkv"), split)
        thirds = g.node("Split", qkv, outputs=3, axis=2, num_outputs=3)
        q, k, v = (g.node("Squeeze", third, one) for third in thirds)
        q = g.node("Mul", g.node("Transpose", q, perm=[0, 2, 1, 3]), scale)
        scores = g.node("Add", g.node("MatMul", q, g.node("Transpose", k, perm=[0, 2, 3, 1])), blocked)
        mixed = g.node("MatMul", g.node("Softmax", scores, axis=-1), g.node("Transpose", v, perm=[0, 2, 1, 3]))
        mixed = g.node("Reshape", g.node("Transpose", mixed, perm=[0, 2, 1, 3]), join)
        x = norm(
            g.node("Add", x, g.linear(mixed, f"{place}.attention.output.dense")), f"{place}.attention.output.LayerNorm"
        )
        inner = g.node("Gelu", g.linear(x, f"{place}.intermediate.dense"))
        x = norm(g.node("Add", x, g.linear(inner, f"{place}.output.dense")), f"{place}.output.LayerNorm")
    weights = g.node("Unsqueeze", "mask", one)
    axis = g.constant(np.array([1], np.int64))
    summed = g.node("ReduceSum", g.node("Mul", x, weights), axis, keepdims=0)
    pooled = g.node("Div", summed, g.node("ReduceSum", weights, axis, keepdims=0))
    inputs = [
        helper.make_tensor_value_info("states", TensorProto.FLOAT, ["n", "l", width]),
        helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", "l"]),
    ]
    outputs = {"embeddings": Output(g.linear(pooled, "text.proj", bias=False), ["n", "dim"])}
    if states:
        outputs["hidden"] = Output(x, ["n", "l", width])
    return g.finish("text", inputs, outputs)


def image_graph(places: Places, model: Any, *, head: bool = True, windows: bool = False, cells: bool = False) -> bytes:
    """(n, height, width, 3) uint8 pixels to (n, dim), or without the head to pooled features.

    With `windows`, to (n, rows, columns, dim): what the tower would give if it pooled each square of `WINDOW` cells of
    its last map, instead of all of them. A sliding window that costs one pass (Sermanet et al., OverFeat, ICLR 2014).
    With `cells`, also to the means of 3 x 3 places of its last map, every second one: (n, cells, channels).
    """
    g = Graph(places)

    def conv(x: str, name: str, module: nn.Conv2d) -> str:
        return g.node(  # type: ignore[no-any-return]
            "Conv",
            x,
            g.weight(f"visual.trunk.{name}.weight"),
            auto_pad="SAME_UPPER",
            group=module.groups,
            kernel_shape=list(module.kernel_size),
            strides=list(module.stride),
        )

    def norm(x: str, name: str, module: Any, *, active: bool) -> str:
        parts = [g.weight(f"visual.trunk.{name}.{p}") for p in ("weight", "bias", "running_mean", "running_var")]
        x = g.node("BatchNormalization", x, *parts, epsilon=module.eps)
        if not active:
            return x
        return g.node("Clip", x, g.constant(np.array(0, np.float32)), g.constant(np.array(6, np.float32)))  # type: ignore[no-any-return]

    x = g.node("Cast", "pixels", to=TensorProto.FLOAT)
    x = g.node("Sub", g.node("Div", x, g.constant(np.array(127.5, np.float32))), g.constant(np.array(1, np.float32)))
    x = g.node("Transpose", x, perm=[0, 3, 1, 2])
    x = norm(conv(x, "conv_stem", model.conv_stem), "bn1", model.bn1, active=True)
    for stage, blocks in enumerate(model.blocks):
        for number, block in enumerate(blocks):
            place, shortcut = f"blocks.{stage}.{number}", x
            steps = [("conv_dw", "bn1"), ("conv_pw", "bn2")]
            if hasattr(block, "conv_pwl"):
                steps = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
            for step, (convolution, normal) in enumerate(steps):
                x = conv(x, f"{place}.{convolution}", getattr(block, convolution))
                x = norm(x, f"{place}.{normal}", getattr(block, normal), active=step < len(steps) - 1)
            if block.has_skip:
                x = g.node("Add", x, shortcut)
    x = norm(conv(x, "conv_head", model.conv_head), "bn2", model.bn2, active=True)
    outputs: dict[str, Output] = {}
    if cells:
        pooled = g.node("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=0)
        flat = g.node("Reshape", pooled, g.constant(np.array([0, 0, -1], np.int64)))
        outputs["cells"] = Output(g.node("Transpose", flat, perm=[0, 2, 1]), ["n", "cells", "channels"])
    if windows:
        x = g.node("Transpose", g.node("AveragePool", x, kernel_shape=[WINDOW, WINDOW]), perm=[0, 2, 3, 1])
    else:
        x = g.node("Flatten", g.node("GlobalAveragePool", x), axis=1)
    if head:
        x = g.linear(g.node("Gelu", g.linear(x, "visual.head.mlp.fc1")), "visual.head.mlp.fc2", bias=False)
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", "height", "width", 3])]
    outputs = {"embeddings": Output(x, ["n", "rows", "columns", "dim"] if windows else ["n", "dim"]), **outputs}
    return g.finish("image", inputs, outputs)
