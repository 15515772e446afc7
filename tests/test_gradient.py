"""Gradients written as ONNX nodes: every rule against central differences in float64, and wrong ones are found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnxprune.errors import ModelError
from onnxprune.gradient import ZERO, backward, find, registry
from onnxprune.graph import load
from onnxprune.runtime import Session
from onnxprune.shapes import infer

EXPORTED = Path(__file__).parent / "exported"
TOLERANCE, SINGLE = 1e-6, 1e-5
STEP = 1e-5

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Case:
    """One node. Operands that are shapes (tuples) are float inputs with random values, arrays are stored."""

    op: str
    operands: tuple[Any, ...]
    opset: int = 17
    attributes: Mapping[str, Any] = field(default_factory=dict)
    low: float = -2.0
    high: float = 2.0
    outputs: int = 1

    @property
    def name(self) -> str:
        shown = [
            "x".join(map(str, o)) if isinstance(o, tuple) else "w" if isinstance(o, np.ndarray) else "-" for o in self.operands
        ]
        options = "".join(f"-{k}{v}" for k, v in self.attributes.items())
        return f"{self.op}{self.opset}-{'_'.join(shown)}{options}".replace(" ", "")

    def model(self, dynamic: bool = False) -> onnx.ModelProto:
        names = ["" if o is None else f"x{k}" for k, o in enumerate(self.operands)]
        outputs = ["y", *(f"y{k}" for k in range(1, self.outputs))]
        node = helper.make_node(self.op, names, outputs, "it", **self.attributes)
        inputs = [
            helper.make_tensor_value_info(n, TensorProto.DOUBLE, ("N", *o[1:]) if dynamic else o)
            for n, o in zip(names, self.operands, strict=True)
            if isinstance(o, tuple)
        ]
        stored = [numpy_helper.from_array(o, n) for n, o in zip(names, self.operands, strict=True) if isinstance(o, np.ndarray)]
        return wrap([node], inputs, ["y"], stored, self.opset)

    def feeds(self, rng: np.random.Generator, batch: int | None = None) -> Arrays:
        def shape(o: tuple[int, ...]) -> tuple[int, ...]:
            return o if batch is None else (batch, *o[1:])

        return {f"x{k}": rng.uniform(self.low, self.high, shape(o)) for k, o in enumerate(self.operands) if isinstance(o, tuple)}


def wrap(nodes: list[Any], inputs: list[Any], outputs: list[str], stored: list[Any], opset: int) -> onnx.ModelProto:
    kind = inputs[0].type.tensor_type.elem_type
    declared = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", inputs, declared, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def gradient(model: onnx.ModelProto, output: str = "y") -> onnx.ModelProto:
    graph = load(model)
    found = backward(graph, infer(graph), output)
    assert found.missing == ""
    assert found.model is not None
    onnx.checker.check_model(found.model, full_check=True)
    return found.model


class Erf(OpRun):
    """ONNX's own computes in float32."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.vectorize(math.erf)(x),)


class ConvTranspose(OpRun):
    """ONNX's own lacks groups of several channels, dilations and ``output_shape``."""

    op_domain = ""

    def _run(self, x, w, b=None, auto_pad="NOTSET", dilations=None, group=1, output_padding=None, output_shape=None,
             pads=None, strides=None, kernel_shape=None):  # fmt: skip
        rank, extra = w.ndim - 2, output_padding or [0] * (w.ndim - 2)
        strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * (2 * rank)
        counts, kernel, inner = x.shape[2:], w.shape[2:], x.shape[1] // group
        whole = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(counts, strides, kernel, dilations, strict=True)]
        if output_shape or auto_pad.startswith("SAME"):
            sizes = list(output_shape or [n * s for n, s in zip(counts, strides, strict=True)])[-rank:]
            over = [max(0, n + e - size) for n, e, size in zip(whole, extra, sizes, strict=True)]
            begins = [o // 2 if auto_pad == "SAME_UPPER" else o - o // 2 for o in over]
        else:
            begins = pads[:rank]
            sizes = [n - p - q + e for n, p, q, e in zip(whole, begins, pads[rank:], extra, strict=True)]
        y = np.zeros((len(x), group, w.shape[1], *(max(n, p + size) for n, p, size in zip(whole, begins, sizes, strict=True))))
        grouped, filters = x.reshape(len(x), group, inner, *counts), w.reshape(group, inner, *w.shape[1:])
        for place in np.ndindex(*kernel):
            at = tuple(
                slice(p * d, p * d + (n - 1) * s + 1, s) for p, d, n, s in zip(place, dilations, counts, strides, strict=True)
            )
            y[(..., *at)] += np.einsum("ngi...,gio->ngo...", grouped, filters[(..., *place)])
        y = y.reshape(len(x), -1, *y.shape[3:])[(..., *(slice(p, p + n) for p, n in zip(begins, sizes, strict=True)))]
        return (y if b is None else y + b.reshape(-1, *[1] * rank),)


Run = Callable[[list[str], Arrays], list[np.ndarray]]


def runner(model: onnx.ModelProto) -> Run:
    """In onnxruntime where it knows the operators in float64, in ONNX's evaluator elsewhere, which lacks old versions."""
    try:
        session = Session(model, optimise=False)
        return lambda outputs, feeds: session.run(feeds, outputs)
    except ModelError:
        return ReferenceEvaluator(model, new_ops=[Erf, ConvTranspose]).run


def differences(model: onnx.ModelProto, feeds: Arrays, seed: np.ndarray, output: str = "y") -> Arrays:
    """Central differences of the weighted sum for each coordinate of each float input."""
    forward = runner(model)

    def value(name: str, place: int, step: float) -> float:
        moved = {n: v.copy() for n, v in feeds.items()}
        moved[name].flat[place] += step
        return float((forward([output], moved)[0] * seed).sum())

    return {
        name: np.array([(value(name, i, STEP) - value(name, i, -STEP)) / (2 * STEP) for i in range(v.size)]).reshape(v.shape)
        for name, v in feeds.items()
        if v.dtype.kind == "f"
    }


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference as a share of the largest value, or of 1."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max(initial=0) / max(1.0, np.abs(wanted).max(initial=0)))


def worst(model: onnx.ModelProto, feeds: Arrays, rng: np.random.Generator, *, single: bool = False) -> float:
    """How far gradients are from central differences; ``single``: computed in float32 by onnxruntime."""
    seed = rng.standard_normal(runner(model)(["y"], feeds)[0].shape)
    expected = differences(model, feeds, seed)
    written, kind, run = gradient(model), np.float64, runner
    if single:
        written, kind, run = gradient(retyped(model, TensorProto.DOUBLE, TensorProto.FLOAT)), np.float32, onnxruntime
    names = [f"grad__{name}" for name in expected]
    assert [v.name for v in written.graph.output] == ["y", *names]
    results = run(written)(names, {name: v.astype(kind) for name, v in {**feeds, "grad__seed": seed}.items()})
    assert {r.dtype for r in results} == {np.dtype(kind)}
    return max(error(found, wanted) for found, wanted in zip(results, expected.values(), strict=True))


def onnxruntime(model: onnx.ModelProto) -> Run:
    session = Session(model)
    return lambda outputs, feeds: session.run(feeds, outputs)


def retyped(model: onnx.ModelProto, old: int, new: int) -> onnx.ModelProto:
    """The same model in another float type."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    dtype = helper.tensor_dtype_to_np_dtype(new)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type == old:
            value.type.tensor_type.elem_type = new
    attributes = [(n, a) for n in copy.graph.node for a in n.attribute]
    for tensor in (*copy.graph.initializer, *(a.t for _, a in attributes if a.HasField("t"))):
        if tensor.data_type == old:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for node, attribute in attributes:
        if node.op_type == "Cast" and attribute.i == old:
            attribute.i = new
    del copy.graph.value_info[:]
    return copy


_RNG = np.random.default_rng(5)


def w(*shape: int, positive: bool = False) -> np.ndarray:
    values = _RNG.standard_normal(shape)
    return np.abs(values) + 0.5 if positive else values


def i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f(value: float) -> np.ndarray:
    return np.array(value, np.float64)


def c(
    op: str, *operands: Any, opset: int = 17, low: float = -2.0, high: float = 2.0, outputs: int = 1, **attributes: Any
) -> Case:
    return Case(op, operands, opset, attributes, low, high, outputs)


# fmt: off
CASES = [
    # elementwise
    *(c(op, (2, 3, 4), (2, 3, 4)) for op in ("Add", "Sub", "Mul", "Div")),
    *(c(op, a, b, opset=o, low=0.5) for op in ("Add", "Sub", "Mul", "Div") for o in (7, 13, 23)
      for a, b in [((2, 3, 4), (4,)), ((3, 1), (2, 1, 4)), ((2, 3), ()), ((1, 3, 1), (2, 3, 1))]),
    c("Sum", (2, 3), (3,), (2, 1), opset=8), c("Sum", (2, 3)), c("Sum", (2, 3), (2, 3), opset=23),
    *(c(op, (3, 4)) for op in ("Neg", "Relu", "Sigmoid", "Tanh", "Softplus", "Elu", "Selu", "HardSigmoid", "Erf", "Exp", "Abs",
                               "Identity")),
    *(c(op, (3, 4), opset=o) for o in (7, 23)
      for op in ("Relu", "Sigmoid", "Softplus", "Elu", "Selu", "Abs", "Neg", "LeakyRelu")),
    *(c(op, (3, 4), low=0.3, opset=o) for op in ("Log", "Sqrt", "Reciprocal") for o in (7, 17)),
    c("HardSwish", (5, 9), low=-5, high=5), c("HardSwish", (5, 9), low=-5, high=5, opset=22),
    c("Elu", (3, 4), alpha=0.7), c("Selu", (3, 4), alpha=1.2, gamma=0.9), c("HardSigmoid", (3, 4), alpha=0.4, beta=0.3),
    c("LeakyRelu", (3, 4), alpha=0.2),
    c("PRelu", (2, 3, 4), w(3, 1)), c("PRelu", (2, 3, 4), (3, 1)), c("PRelu", (2, 3, 4), w(1), opset=7),
    c("Clip", (4, 5), opset=7, min=-0.5, max=1.0), c("Clip", (4, 5), f(-0.5), f(1.0)), c("Clip", (4, 5), None, f(1.0)),
    c("Clip", (4, 5), f(0.2)), c("Clip", (4, 5)),
    c("Pow", (3, 4), f(2.0)), c("Pow", (3, 4), w(4, positive=True), low=0.3), c("Pow", (3, 1), w(4, positive=True), low=0.3),
    c("Pow", (3, 4), i(3)), c("Pow", (3, 4), f(-0.5), low=0.3, opset=7), c("Pow", (3, 4), f(2.0), opset=23),
    c("Dropout", (3, 4)), c("Dropout", (3, 4), opset=7), c("Dropout", (3, 4), f(0.5), np.array(False)), c("Cast", (3, 4), to=11),
    # linear
    *(c("Gemm", (4, 3) if ta else (3, 4), (5, 4) if tb else (4, 5), (5,), transA=ta, transB=tb, alpha=0.5, beta=2.0, opset=o)
      for ta in (0, 1) for tb in (0, 1) for o in (7, 17)),
    c("Gemm", (3, 4), w(4, 5)), c("Gemm", (3, 4), w(5, 4), w(1, 5), transB=1), c("Gemm", (1, 4), (4, 5), (1, 1)),
    c("MatMul", (3, 4), (4, 5)), c("MatMul", (2, 3, 4), (4, 5)), c("MatMul", (2, 1, 3, 4), (6, 4, 5)), c("MatMul", (4,), (4, 5)),
    c("MatMul", (2, 3, 4), (4,)), c("MatMul", (4,), (4,)), c("MatMul", (4,), (2, 4, 5)), c("MatMul", (3, 4), (4, 5), opset=7),
    c("MatMul", (3, 4), (1, 4, 5)), c("MatMul", (4,), (4,), opset=9), c("MatMul", (2, 4, 3), w(3, 2)),
    c("Conv", (2, 3, 7, 6), w(4, 3, 3, 3), w(4)), c("Conv", (2, 3, 7, 6), w(4, 3, 3, 2), strides=[2, 3], pads=[1, 0, 2, 1]),
    c("Conv", (1, 4, 8, 7), w(6, 2, 3, 3), group=2, dilations=[2, 1], pads=[2, 1, 2, 1]),
    c("Conv", (1, 4, 6, 6), w(4, 1, 3, 3), group=4, strides=[2, 2], pads=[1, 1, 1, 1]),
    c("Conv", (2, 3, 9), w(2, 3, 4), strides=[3]),
    c("Conv", (1, 2, 4, 5, 4), w(3, 2, 2, 2, 3), strides=[1, 2, 1], pads=[0, 1, 1, 1, 0, 1]),
    *(c("Conv", (1, 2, h, 8), w(3, 2, 3, 2), auto_pad=mode, strides=[2, 3], opset=o)
      for mode in ("SAME_UPPER", "SAME_LOWER", "VALID") for h, o in ((7, 7), (6, 22))),
    c("Conv", (2, 3, 7, 6), (4, 3, 3, 3), (4,)), c("Conv", (2, 3, 7, 6), (4, 3, 3, 2), strides=[2, 3], pads=[1, 0, 2, 1]),
    c("Conv", (2, 3, 7, 6), (4, 3, 3, 2), strides=[2, 3], opset=7), c("Conv", (2, 3, 7, 6), (4, 3, 1, 1)),
    c("Conv", (1, 4, 8, 7), (6, 2, 3, 3), (6,), group=2, dilations=[2, 1], pads=[2, 1, 2, 1]),
    c("Conv", (2, 4, 6, 6), (4, 1, 3, 3), group=4, strides=[2, 2], pads=[1, 1, 1, 1]),
    c("Conv", (2, 3, 9), (2, 3, 4), strides=[3]), c("Conv", (2, 20, 9), (2, 20, 4), (2,), opset=8),
    c("Conv", (1, 2, 4, 5, 4), (3, 2, 2, 2, 3), strides=[1, 2, 1], pads=[0, 1, 1, 1, 0, 1]),
    c("Conv", (1, 2, 7, 8), (3, 2, 3, 2), auto_pad="SAME_UPPER", strides=[2, 3]),
    c("ConvTranspose", (2, 3, 4, 5), (3, 4, 3, 3), (4,)),
    c("ConvTranspose", (2, 3, 4, 5), (3, 2, 3, 2), strides=[2, 3], pads=[1, 0, 2, 1], output_padding=[1, 2]),
    c("ConvTranspose", (2, 4, 4), (4, 1, 3), (4,), group=4, strides=[2], dilations=[2], opset=11),
    c("ConvTranspose", (2, 4, 3, 4), (4, 1, 3, 3), group=2, dilations=[2, 1], strides=[2, 2]),
    c("ConvTranspose", (1, 2, 4, 3), (2, 2, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    c("ConvTranspose", (1, 2, 4, 3), (2, 2, 3, 3), strides=[2, 2], output_shape=[8, 6]),
    # normalisation
    *(c("BatchNormalization", (2, 3, 4, 2), w(3), w(3), w(3), w(3, positive=True), opset=o, epsilon=0.01)
      for o in (7, 9, 14, 15)),
    c("BatchNormalization", (4, 3), (3,), (3,), w(3), w(3, positive=True)),
    c("BatchNormalization", (2, 3, 4, 2), (3,), (3,), w(3), w(3, positive=True), epsilon=0.01),
    *(c(op, (2, 3, 4), opset=o) for op in ("Softmax", "LogSoftmax") for o in (7, 11, 13, 23)),
    *(c(op, (2, 3, 4), opset=o, axis=a) for op in ("Softmax", "LogSoftmax") for o in (11, 13) for a in (0, 1, -1)),
    c("LayerNormalization", (2, 3, 4), w(4), w(4)), c("LayerNormalization", (2, 3, 4), w(3, 4), axis=1, epsilon=0.1),
    c("LayerNormalization", (2, 3, 4), (4,), (4,), opset=23), c("LayerNormalization", (2, 3, 4), (3, 4), axis=-2),
    # pooling
    c("MaxPool", (2, 2, 7, 6), kernel_shape=[3, 3], strides=[2, 2]),
    c("MaxPool", (2, 2, 7, 6), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    c("MaxPool", (1, 2, 8), kernel_shape=[2], strides=[2]),
    c("MaxPool", (1, 2, 6, 6), kernel_shape=[2, 2], strides=[2, 2], outputs=2),
    *(c("AveragePool", (1, 2, 5, 4), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], count_include_pad=n)
      for n in (0, 1)),
    c("AveragePool", (2, 2, 5, 6), kernel_shape=[3, 2], strides=[2, 2], opset=7), c("AveragePool", (1, 2, 9), kernel_shape=[4]),
    c("MaxPool", (2, 3, 7, 6), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 1, 0, 0], opset=7),
    c("MaxPool", (1, 2, 7, 8), kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1, dilations=[2, 1], opset=13),
    c("MaxPool", (1, 2, 7, 8), kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1, dilations=[2, 1]),
    c("MaxPool", (1, 2, 9), kernel_shape=[3], strides=[2], auto_pad="SAME_LOWER", opset=8),
    c("MaxPool", (1, 2, 4, 4, 3), kernel_shape=[2, 3, 2], opset=11),
    c("AveragePool", (1, 2, 7, 7), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    c("AveragePool", (1, 1, 6, 6), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    c("GlobalAveragePool", (2, 3, 4, 5)), c("GlobalMaxPool", (2, 3, 4, 5)), c("GlobalMaxPool", (2, 3, 4, 5), opset=8),
    # reduction
    *(c("ReduceMean", (2, 3, 4), opset=o, axes=[1], keepdims=k) for o in (8, 13) for k in (0, 1)),
    *(c("ReduceSum", (2, 3, 4), opset=11, axes=[0, -1], keepdims=k) for k in (0, 1)), c("ReduceSum", (2, 3, 4)),
    c("ReduceSum", (2, 3, 4), i(-1), keepdims=0), c("ReduceMean", (2, 3, 4), i(0, 2), opset=18, keepdims=0),
    c("ReduceMean", (2, 3)),
    c("ReduceSum", (2, 3), i(), noop_with_empty_axes=1), c("ReduceMax", (2, 3, 4), axes=[1], keepdims=0),
    # movement
    c("Reshape", (2, 3, 4), i(0, -1)), c("Flatten", (2, 3, 4), opset=7), c("Flatten", (2, 3, 4), axis=2),
    c("Squeeze", (2, 1, 3), i(1)), c("Squeeze", (2, 1, 3), opset=11, axes=[1]), c("Squeeze", (2, 1, 3, 1)),
    c("Unsqueeze", (2, 3), i(0, 2)), c("Unsqueeze", (2, 3), opset=11, axes=[0]),
    c("Transpose", (2, 3, 4)), c("Transpose", (2, 3, 4), perm=[1, 2, 0]),
    c("Concat", (2, 3), (2, 1), (2, 4), axis=1), c("Concat", (2, 3), (1, 3), axis=0, opset=7),
    c("Concat", (2, 3), (1, 3), axis=-2), c("Concat", (2, 3), w(2, 2), axis=1),
    c("Pad", (2, 3, 4), opset=7, pads=[0, 1, 2, 0, 0, 3]), c("Pad", (2, 3, 4), i(0, 1, 2, 0, 0, 3), f(1.5)),
    c("Pad", (2, 3, 4), i(1, 2), None, i(2), opset=18),
    c("Slice", (4, 5), opset=7, starts=[1, -3], ends=[3, 100]), c("Slice", (4, 5), i(1), i(-1), i(1)),
    c("Slice", (4, 5), i(0), i(2)),
    c("Slice", (4, 5), i(1, 2), i(3, 9), i(0, 1), i(1, 1)),
    c("Slice", (7, 8, 3), i(0, 1), i(7, 8), i(0, 1), i(2, 3)),
    c("Slice", (2, 7, 5), i(2, -4), i(99, -1), i(1, 2), i(2, 2), opset=10),
]
# fmt: on


# a convolution that lists the elements of windows, which ONNX's evaluator can't do with padding that low
UNEVALUATED = [case for case in CASES if case.op == "MaxPool" and case.opset < 16]


@pytest.mark.parametrize("case", [case for case in CASES if case not in UNEVALUATED], ids=lambda case: case.name)
def test_rules(case: Case) -> None:
    rng = np.random.default_rng(1)
    assert worst(case.model(), case.feeds(rng), rng) < TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules_in_onnxruntime(case: Case) -> None:
    rng = np.random.default_rng(1)
    assert worst(case.model(), case.feeds(rng), rng, single=True) < SINGLE


def test_every_rule_has_a_case() -> None:
    assert {case.op for case in CASES} == set(registry._VJPS)
    assert not ZERO & set(registry._VJPS)


# whole models ----------------------------------------------------------------------------------------------------------------
def along(model: onnx.ModelProto, feeds: Arrays, output: str, directions: int = 2) -> float:
    """How far gradients in float32 are from differences in float64 along random directions, as a share of their length."""
    rng = np.random.default_rng(2)
    forward = ReferenceEvaluator(retyped(model, TensorProto.FLOAT, TensorProto.DOUBLE), new_ops=[Erf, ConvTranspose]).run
    wide = {name: v.astype(np.float64) if v.dtype == np.float32 else v for name, v in feeds.items()}
    seed = rng.standard_normal(onnxruntime(model)([output], feeds)[0].shape)
    names = [name for name, v in feeds.items() if v.dtype == np.float32]
    slopes = onnxruntime(gradient(model, output))([f"grad__{n}" for n in names], {**feeds, "grad__seed": seed.astype(np.float32)})
    errors = []
    for name, slope in zip(names, slopes, strict=True):
        for direction in rng.standard_normal((directions, *slope.shape)):
            ends = [forward([output], {**wide, name: wide[name] + step * direction})[0] for step in (1e-7, -1e-7)]
            found = float(((ends[0] - ends[1]) * seed).sum() / 2e-7)
            errors.append(abs(found - float((slope * direction).sum())) / float(np.linalg.norm(slope)))
    return max(errors)


NETS = [
    "mlp.ts",
    "residual.ts",
    "dense.ts",
    "keras_cnn.tf2onnx",
    "inverted_residual.dynamo",
    "option_a.ts",
    "prelu.ts",
    "mixer.ts",
    "unet.ts",
]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch", [1, 3])
def test_exported_models(name: str, batch: int) -> None:
    model = onnx.load(EXPORTED / f"{name}.onnx")
    rng = np.random.default_rng(3)
    feeds = {}
    for value in model.graph.input:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if batch != 1 and dims[0]:
            pytest.skip("takes one batch size")
        feeds[value.name] = rng.standard_normal([d or (batch if k == 0 else 16) for k, d in enumerate(dims)]).astype(np.float32)
    assert along(model, feeds, model.graph.output[0].name) < 1e-5


def network(*nodes: onnx.NodeProto, shape: tuple[Any, ...] = (2, 3), opset: int = 17, **stored: np.ndarray) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(v, n) for n, v in stored.items()]
    return wrap(list(nodes), [helper.make_tensor_value_info("x", TensorProto.DOUBLE, shape)], ["y"], tensors, opset)


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], f"the {op}", **attributes)


FAN_OUT = network(node("Tanh", "x", "a"), node("Mul", "a x", "b"), node("Mul", "a a", "c"), node("Sum", "a b c", "y"))


def test_fan_out_is_summed() -> None:
    rng = np.random.default_rng(4)
    assert worst(FAN_OUT, {"x": rng.standard_normal((2, 3))}, rng) < TOLERANCE


def test_wrong_rules_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    monkeypatch.setitem(registry._VJPS, "Tanh", lambda op, g, y, x: (op.Mul(g, y),))
    assert worst(FAN_OUT, {"x": rng.standard_normal((2, 3))}, rng) > 1e-2


def test_any_batch_size_and_broadcasting_along_it() -> None:
    """The middle keeps one row, which is then repeated as often as there are samples."""
    model = network(
        node("ReduceMean", "x", "m", axes=[0]),
        node("Sub", "x m", "d"),
        node("Reshape", "d to", "r"),
        node("Mul", "r r", "y"),
        shape=("N", 6),
        to=i(-1, 3, 2),
    )
    for batch in (1, 4):
        rng = np.random.default_rng(batch)
        assert worst(model, {"x": rng.standard_normal((batch, 6))}, rng) < TOLERANCE


def test_steps_have_no_gradient() -> None:
    rng = np.random.default_rng(4)
    model = network(node("Floor", "x", "a"), node("Mul", "a x", "y"))
    assert worst(model, {"x": rng.standard_normal((2, 3))}, rng) < TOLERANCE


def test_only_inputs_that_the_output_depends_on() -> None:
    model = network(node("Relu", "x", "y"))
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.DOUBLE, (2, 3)))
    model.graph.node.append(helper.make_node("Exp", ["other"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.DOUBLE, (2, 3)))
    written = gradient(model)
    assert [v.name for v in written.graph.input] == ["x", "other", "grad__seed"]
    assert [v.name for v in written.graph.output] == ["y", "grad__x"]


@pytest.mark.parametrize(
    ("model", "label"),
    [
        (network(node("Sinh", "x", "y")), "the Sinh"),
        (network(node("Relu", "x", "a"), node("CumSum", "a axis", "y"), axis=np.array(0)), "the CumSum"),
        (network(node("Pow", "base x", "y"), base=np.array(2.0)), "the Pow"),
        (network(node("GlobalAveragePool", "x", "y"), shape=(1, 2, 3), opset=7), "the GlobalAveragePool"),
        (network(node("ReduceSum", "x", "y", keepdims=0), opset=7), "the ReduceSum"),
        (network(node("Pad", "x pads", "y", mode="reflect"), pads=i(0, 1, 0, 1)), "the Pad"),
        (network(node("Slice", "x s e a t", "y"), s=i(-1), e=i(-9), a=i(1), t=i(-1)), "the Slice"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_has_no_rule_is_named(model: onnx.ModelProto, label: str) -> None:
    graph = load(model)
    found = backward(graph, infer(graph), "y")
    assert (found.model, found.missing) == (None, label)


@pytest.mark.parametrize("name", ["residual.ts.qdq", "residual.ts.qoperator", "lstm.ts"])
def test_what_has_no_rule_is_named_in_exported_models(name: str) -> None:
    graph = load(EXPORTED / f"{name}.onnx")
    found = backward(graph, infer(graph), graph.outputs[0].name)
    assert found.model is None
    labels = {node.label for node in graph.nodes if node.op in ("DequantizeLinear", "QLinearAdd", "LSTM")}
    assert found.missing in labels


def test_messages() -> None:
    graph = load(FAN_OUT)
    with pytest.raises(ModelError) as error:
        backward(graph, infer(graph), "b")
    assert str(error.value) == "'b' is not a graph output, so there is no gradient of it; the outputs are 'y'"
    again = load(gradient(FAN_OUT))
    with pytest.raises(ModelError) as error:
        backward(again, infer(again), "y")
    assert str(error.value) == "a tensor is called 'grad__seed', as the gradient would be; rename it"


def test_one_rule_for_each_operator() -> None:
    with pytest.raises(ValueError, match="operator Relu has a gradient already"):
        registry.vjp("Relu")(find("Relu"))
