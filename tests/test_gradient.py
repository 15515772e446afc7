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


@dataclass(frozen=True)
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


Run = Callable[[list[str], Arrays], list[np.ndarray]]


def runner(model: onnx.ModelProto) -> Run:
    """In onnxruntime where it knows the operators in float64, in ONNX's evaluator elsewhere, which lacks old versions."""
    try:
        session = Session(model, optimise=False)
        return lambda outputs, feeds: session.run(feeds, outputs)
    except ModelError:
        return ReferenceEvaluator(model, new_ops=[Erf]).run


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
        written, kind, run = gradient(in_single(model)), np.float32, onnxruntime
    names = [f"grad__{name}" for name in expected]
    assert [v.name for v in written.graph.output] == ["y", *names]
    results = run(written)(names, {name: v.astype(kind) for name, v in {**feeds, "grad__seed": seed}.items()})
    assert {r.dtype for r in results} == {np.dtype(kind)}
    return max(error(found, wanted) for found, wanted in zip(results, expected.values(), strict=True))


def onnxruntime(model: onnx.ModelProto) -> Run:
    session = Session(model)
    return lambda outputs, feeds: session.run(feeds, outputs)


def in_single(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float32."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for value in (*single.graph.input, *single.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    for stored in single.graph.initializer:
        if stored.data_type == TensorProto.DOUBLE:
            stored.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored).astype(np.float32), stored.name))
    for node in single.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.DOUBLE:
                attribute.i = TensorProto.FLOAT
    del single.graph.value_info[:]
    return single


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
    *(c(op, (3, 4), opset=o) for o in (7, 23) for op in ("Relu", "Sigmoid", "Softplus", "Elu", "Selu", "Abs", "Neg", "LeakyRelu")),
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
    c("Conv", (1, 4, 6, 6), w(4, 1, 3, 3), group=4, strides=[2, 2], pads=[1, 1, 1, 1]), c("Conv", (2, 3, 9), w(2, 3, 4), strides=[3]),
    c("Conv", (1, 2, 4, 5, 4), w(3, 2, 2, 2, 3), strides=[1, 2, 1], pads=[0, 1, 1, 1, 0, 1]),
    *(c("Conv", (1, 2, h, 8), w(3, 2, 3, 2), auto_pad=mode, strides=[2, 3], opset=o)
      for mode in ("SAME_UPPER", "SAME_LOWER", "VALID") for h, o in ((7, 7), (6, 22))),
    # normalisation
    *(c("BatchNormalization", (2, 3, 4, 2), w(3), w(3), w(3), w(3, positive=True), opset=o, epsilon=0.01) for o in (7, 9, 14, 15)),
    c("BatchNormalization", (4, 3), w(3), w(3), w(3), w(3, positive=True)),
    *(c(op, (2, 3, 4), opset=o) for op in ("Softmax", "LogSoftmax") for o in (7, 11, 13, 23)),
    *(c(op, (2, 3, 4), opset=o, axis=a) for op in ("Softmax", "LogSoftmax") for o in (11, 13) for a in (0, 1, -1)),
    c("LayerNormalization", (2, 3, 4), w(4), w(4)), c("LayerNormalization", (2, 3, 4), w(3, 4), axis=1, epsilon=0.1),
    c("LayerNormalization", (2, 3, 4), w(4), w(4), opset=23),
    # pooling
    c("MaxPool", (2, 3, 7, 6), kernel_shape=[3, 3], strides=[2, 2]), c("MaxPool", (2, 3, 7, 6), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    c("MaxPool", (1, 2, 8), kernel_shape=[2], strides=[2]), c("MaxPool", (1, 2, 6, 6), kernel_shape=[2, 2], strides=[2, 2], outputs=2),
    *(c("AveragePool", (2, 3, 7, 6), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], count_include_pad=n) for n in (0, 1)),
    c("AveragePool", (2, 3, 7, 6), kernel_shape=[3, 2], strides=[2, 2], opset=7), c("AveragePool", (1, 2, 9), kernel_shape=[4]),
    c("AveragePool", (1, 2, 7, 7), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    c("AveragePool", (1, 1, 6, 6), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    c("GlobalAveragePool", (2, 3, 4, 5)), c("GlobalMaxPool", (2, 3, 4, 5)), c("GlobalMaxPool", (2, 3, 4, 5), opset=8),
    # reduction
    *(c("ReduceMean", (2, 3, 4), opset=o, axes=[1], keepdims=k) for o in (8, 13) for k in (0, 1)),
    *(c("ReduceSum", (2, 3, 4), opset=11, axes=[0, -1], keepdims=k) for k in (0, 1)), c("ReduceSum", (2, 3, 4)),
    c("ReduceSum", (2, 3, 4), i(-1), keepdims=0), c("ReduceMean", (2, 3, 4), i(0, 2), opset=18, keepdims=0), c("ReduceMean", (2, 3)),
    c("ReduceSum", (2, 3), i(), noop_with_empty_axes=1), c("ReduceMax", (2, 3, 4), axes=[1], keepdims=0),
    # movement
    c("Reshape", (2, 3, 4), i(0, -1)), c("Flatten", (2, 3, 4), opset=7), c("Flatten", (2, 3, 4), axis=2),
    c("Squeeze", (2, 1, 3), i(1)), c("Squeeze", (2, 1, 3), opset=11, axes=[1]), c("Squeeze", (2, 1, 3, 1)),
    c("Unsqueeze", (2, 3), i(0, 2)), c("Unsqueeze", (2, 3), opset=11, axes=[0]),
    c("Transpose", (2, 3, 4)), c("Transpose", (2, 3, 4), perm=[1, 2, 0]),
    c("Concat", (2, 3), (2, 1), (2, 4), axis=1), c("Concat", (2, 3), (1, 3), axis=0, opset=7), c("Concat", (2, 3), (1, 3), axis=-2), c("Concat", (2, 3), w(2, 2), axis=1),
    c("Pad", (2, 3, 4), opset=7, pads=[0, 1, 2, 0, 0, 3]), c("Pad", (2, 3, 4), i(0, 1, 2, 0, 0, 3), f(1.5)),
    c("Pad", (2, 3, 4), i(1, 2), None, i(2), opset=18),
    c("Slice", (4, 5), opset=7, starts=[1, -3], ends=[3, 100]), c("Slice", (4, 5), i(1), i(-1), i(1)), c("Slice", (4, 5), i(0), i(2)),
    c("Slice", (4, 5), i(1, 2), i(3, 9), i(0, 1), i(1, 1)),
]
# fmt: on


# what ONNX's evaluator computes wrongly or not at all, so that float32 must do
UNEVALUATED = [case for case in CASES if case.op == "Conv" and case.attributes.get("group") == 2]


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
