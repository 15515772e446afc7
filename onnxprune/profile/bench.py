"""The bench: layers of many widths in one model, timed by onnxruntime itself.

A layer alone tells little: what comes in has to be brought into the order in which convolutions want it, and that costs more
than some layers. So a Conv is measured behind another one, and what onnxruntime puts between the two counts as its own: a
width that the fast kernels can't take pays for that, as it would in a network. All widths run in turns, so that noise meets all
alike, and weights are as far away as in a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.profile.layers import Kind
from onnxprune.runtime import Kernel, kernels
from onnxprune.weights import Array

NUMBERS = ("float", "int8")
"""What layers compute in: float32; or uint8 times int8, as :func:`onnxprune.quantize` writes it."""

_BEFORE = 16
"""Channels that the layer in front reads."""

_BORDERS = ("MaxPool", "NhwcMaxPool")
"""What stands before the layer: it keeps the order of what it gets, and nothing merges with it."""

_LAST = ("ReorderOutput", "Transpose")
"""What brings the result into the order that is asked for; in a network that is the next layer's business."""

_SCALE = np.float32(1 / 64)
"""What 1 stands for in integers; onnxruntime takes only biases whose scale is the product of the two others."""

Point = tuple[int, int]
"""Channels in and out."""


def measure(kind: Kind, place: tuple[int, ...], points: Sequence[Point], numbers: str, *, seconds: float = 0.5) -> list[float]:
    """Microseconds of layers of one kind.

    Args:
        place: as in :class:`~onnxprune.profile.layers.Layer`.
        points: their widths.
        numbers: one of ``NUMBERS``.

    Raises:
        ModelError: onnxruntime can't run them.
    """
    bench = _Convs(kind, place, numbers) if kind.op == "Conv" else _Products(kind, place, numbers)
    ends = {point: bench.layer(*point) for point in dict.fromkeys(points)}
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in bench.inputs.items()}
    found = kernels(bench.model([*ends.values()]), feeds, seconds=seconds)
    makers = {name: kernel for kernel in found for name in kernel.outputs}
    taken = {point: _taken(makers, end) for point, end in ends.items()}
    return [taken[point] for point in points]


def _taken(makers: Mapping[str, Kernel], end: str) -> float:
    """What a layer takes, with all that it needs on the way from the border."""
    total, names, seen = 0.0, [end], set[str]()
    while names:
        kernel = makers.get(name := names.pop())
        if kernel is not None and kernel.op not in _BORDERS and seen.isdisjoint(kernel.outputs):
            seen.update(kernel.outputs)
            total += 0.0 if name == end and kernel.op in _LAST else kernel.microseconds
            names.extend(kernel.inputs)
    return total


class _Bench:
    """A model that grows layer by layer."""

    def __init__(self, kind: Kind, place: tuple[int, ...], numbers: str) -> None:
        self.kind, self.place, self.integer = kind, place, numbers == "int8"
        self.inputs: dict[str, tuple[int, ...]] = {}
        self._nodes: list[NodeProto] = []
        self._weights: dict[str, TensorProto] = {}

    def layer(self, inputs: int, outputs: int) -> str:
        """Add a layer; returns the name of its result."""
        raise NotImplementedError

    def model(self, ends: Sequence[str]) -> ModelProto:
        """Everything that was added."""
        given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in self.inputs.items()]
        graph = helper.make_graph(self._nodes, "bench", given, [ValueInfoProto(name=n) for n in ends], [*self._weights.values()])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def stored(self, name: str, values: Array) -> str:
        if name not in self._weights:
            self._weights[name] = numpy_helper.from_array(values, name)
        return name

    def add(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name


class _Convs(_Bench):
    """Convolutions; in integers each tensor is quantised and dequantised, which onnxruntime takes together."""

    def __init__(self, kind: Kind, place: tuple[int, ...], numbers: str) -> None:
        super().__init__(kind, place, numbers)
        self.inputs["x"] = (1, _BEFORE, *place)
        self._fronts: dict[int, str] = {}
        self._x = self._rounded("x") if self.integer else "x"

    def layer(self, inputs: int, outputs: int) -> str:
        if inputs not in self._fronts:
            ones = (1,) * len(self.place)
            front = self._conv(self._x, f"front{inputs}", _BEFORE, inputs, Kind("Conv", ones, ones, ones))
            front = self._rounded(front) if self.integer else front
            pool = self.add("MaxPool", [front], f"pool{inputs}", kernel_shape=ones)
            self._fronts[inputs] = self._rounded(pool) if self.integer else pool
        name = f"layer{inputs}_{outputs}"
        result = self._conv(self._fronts[inputs], name, inputs, outputs, self.kind)
        return self._quantised(result) if self.integer else result

    def _conv(self, x: str, name: str, inputs: int, outputs: int, kind: Kind) -> str:
        groups = kind.groups or inputs
        shape = (outputs, inputs // groups, *kind.kernel)
        if self.integer:
            weight = self._whole(name + ".weight", np.ones(shape, np.int8), _SCALE)
            bias = self._whole(name + ".bias", np.zeros(outputs, np.int32), _SCALE * _SCALE)
        else:
            weight = self.stored(name + ".weight", np.full(shape, 0.01, np.float32))
            bias = self.stored(name + ".bias", np.zeros(outputs, np.float32))
        before = [d * (k - 1) // 2 for k, d in zip(kind.kernel, kind.dilations, strict=True)]
        after = [d * (k - 1) - b for k, d, b in zip(kind.kernel, kind.dilations, before, strict=True)]
        attributes = {"kernel_shape": kind.kernel, "strides": kind.strides, "dilations": kind.dilations}
        return self.add("Conv", [x, weight, bias], name, group=groups, pads=[*before, *after], **attributes)

    def _whole(self, name: str, values: Array, step: np.float32) -> str:
        """Stored whole numbers, with a scale for each channel."""
        scale = self.stored(name + ".scale", np.full(len(values), step, np.float32))
        zero = self.stored(name + ".zero", np.zeros(len(values), values.dtype))
        return self.add("DequantizeLinear", [self.stored(name, values), scale, zero], name + ".read", axis=0)

    def _quantised(self, x: str) -> str:
        return self.add("QuantizeLinear", [x, *self._scale()], x + ".whole")

    def _rounded(self, x: str) -> str:
        return self.add("DequantizeLinear", [self._quantised(x), *self._scale()], x + ".rounded")

    def _scale(self) -> tuple[str, str]:
        return self.stored("scale", np.array(_SCALE)), self.stored("zero", np.array(128, np.uint8))


class _Products(_Bench):
    """Products with a stored matrix; in integers each run measures the range of what it multiplies."""

    def layer(self, inputs: int, outputs: int) -> str:
        x, name = f"x{inputs}", f"layer{inputs}_{outputs}"
        self.inputs[x] = (*self.place, inputs)
        if not self.integer:
            weight = self.stored(name + ".weight", np.full((inputs, outputs), 0.01, np.float32))
            product = self.add("MatMul", [x, weight], name + ".product")
            return self.add("Add", [product, self.stored(name + ".bias", np.zeros(outputs, np.float32))], name)
        parts = [f"{x}.{part}" for part in ("whole", "scale", "zero")]
        if not any(parts[0] in node.output for node in self._nodes):
            self._nodes.append(helper.make_node("DynamicQuantizeLinear", [x], parts, parts[0]))
        weight = self.stored(name + ".weight", np.ones((inputs, outputs), np.int8))
        zero = self.stored(name + ".zero", np.zeros(outputs, np.int8))
        product = self.add("MatMulInteger", [parts[0], weight, parts[2], zero], name + ".product")
        scale = self.add("Mul", [parts[1], self.stored(name + ".scale", np.full(outputs, 0.01, np.float32))], name + ".scales")
        as_float = self.add("Cast", [product], name + ".float", to=TensorProto.FLOAT)
        return self.add("Mul", [as_float, scale], name)
