"""Calls of the operators that have a gradient: of every operand, with attributes and in opsets that matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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
        """``dynamic``: the first axis of the first operand is open."""
        names = ["" if o is None else f"x{k}" for k, o in enumerate(self.operands)]
        outputs = ["y", *(f"y{k}" for k in range(1, self.outputs))]
        node = helper.make_node(self.op, names, outputs, "it", **self.attributes)
        inputs = [
            helper.make_tensor_value_info(n, TensorProto.DOUBLE, ("N", *o[1:]) if dynamic and n == "x0" and o else o)
            for n, o in zip(names, self.operands, strict=True)
            if isinstance(o, tuple)
        ]
        stored = [numpy_helper.from_array(o, n) for n, o in zip(names, self.operands, strict=True) if isinstance(o, np.ndarray)]
        model = wrap([node], inputs, ["y"], stored, self.opset)
        declared = model.graph.output[0].type.tensor_type
        if not declared.HasField("shape"):  # ONNX does not infer it
            declared.shape.CopyFrom(inputs[0].type.tensor_type.shape)
        return model

    def feeds(self, rng: np.random.Generator) -> Arrays:
        return {f"x{k}": rng.uniform(self.low, self.high, o) for k, o in enumerate(self.operands) if isinstance(o, tuple)}


def wrap(nodes: list[Any], inputs: list[Any], outputs: list[str], stored: list[Any], opset: int) -> onnx.ModelProto:
    kind = inputs[0].type.tensor_type.elem_type
    declared = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", inputs, declared, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


_RNG = np.random.default_rng(5)


def w(*shape: int, positive: bool = False) -> np.ndarray:
    values = _RNG.standard_normal(shape)
    return np.abs(values) + 0.5 if positive else values


def i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def b(*values: int) -> np.ndarray:
    return np.array(values, np.bool_)


def n(*values: float) -> np.ndarray:
    """Scales, which are always of single precision."""
    return np.array(values, np.float32)


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
    c("BatchNormalization", (2, 3, 4), (3,), (3,), w(3), w(3, positive=True), opset=9, momentum=0.7),
    c("BatchNormalization", (4, 3), (3,), (3,), w(3), w(3, positive=True)),
    c("BatchNormalization", (2, 3, 4, 2), (3,), (3,), w(3), w(3, positive=True), epsilon=0.01),
    *(c(op, (2, 3, 4), opset=o) for op in ("Softmax", "LogSoftmax") for o in (7, 11, 13, 23)),
    *(c(op, (2, 3, 4), opset=o, axis=a) for op in ("Softmax", "LogSoftmax") for o in (11, 13) for a in (0, 1, -1)),
    c("LayerNormalization", (2, 3, 4), w(4), w(4)), c("LayerNormalization", (2, 3, 4), w(3, 4), axis=1, epsilon=0.1),
    c("LayerNormalization", (2, 3, 4), (4,), (4,), opset=23), c("LayerNormalization", (2, 3, 4), (3, 4), axis=-2),
    # pooling
    c("MaxPool", (2, 2, 7, 6), kernel_shape=[3, 3], strides=[2, 2]),
    c("MaxPool", (2, 2, 7, 6), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    c("MaxPool", (1, 2, 4, 3), kernel_shape=[3, 2], pads=[1, 1, 1, 1], opset=8),
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
    # elementwise
    *(c(op, (3, 4)) for op in ("Sin", "Cos", "Atan", "Sinh", "Cosh", "Asinh", "Softsign", "Celu", "Mean")),
    c("Mish", (3, 4), opset=18),
    *(c(op, (3, 4), low=-0.9, high=0.9) for op in ("Tan", "Asin", "Acos", "Atanh")), c("Acosh", (3, 4), low=1.1),
    c("Sin", (3, 4), opset=7), c("Tan", (3, 4), opset=7, low=-1, high=1), c("Softsign", (3, 4), opset=7),
    c("Celu", (3, 4), alpha=0.7), c("Gelu", (3, 4), opset=20), c("Gelu", (3, 4), opset=20, approximate="tanh"),
    c("Swish", (3, 4), opset=24), c("Swish", (3, 4), opset=24, alpha=1.7),
    c("ThresholdedRelu", (3, 4)), c("ThresholdedRelu", (3, 4), alpha=0.3), c("Shrink", (3, 4), bias=0.1), c("Shrink", (3, 4)),
    c("Max", (2, 3), (3,), (2, 1)), c("Min", (2, 3), (3,), (2, 1)), c("Max", (2, 3), (2, 3), opset=7), c("Min", (2, 3), opset=8),
    c("Min", (2, 3), f(0.2)), c("Mean", (2, 3), (3,), opset=8),
    c("Where", b(1, 0, 1), (2, 3), (3,)), c("Where", b(1, 0), (3, 1), (1, 2), opset=9),
    c("Mod", (3, 4), (4,), fmod=1, low=0.3), c("CastLike", (3, 4), w(1)),
    c("Pow", (3, 4), (4,), low=0.3), c("Pow", f(2.5), (3, 4)), c("Pow", (3, 4), w(4), low=0.3, opset=12),
    # linear
    c("Einsum", (2, 3), (3, 4), equation="ij,jk->ik"), c("Einsum", (2, 3, 4), (2, 4, 5), equation="bij,bjk"),
    c("Einsum", (2, 3), (4,), (3, 5), equation="ij,k,jl->lk", opset=12), c("Einsum", (2, 3, 4), equation="ijk->kj"),
    c("Einsum", (2, 2, 3, 4), (2, 2, 4, 3), equation="...ij,...jk->...ik"), c("Einsum", (2, 3), (2, 3), equation="ij,ij->"),
    # normalisation
    c("InstanceNormalization", (2, 3, 4, 2), (3,), (3,), epsilon=0.1), c("InstanceNormalization", (2, 3, 5), w(3), w(3), opset=7),
    c("GroupNormalization", (2, 6, 4, 2), (3,), (3,), num_groups=3, opset=18),
    c("GroupNormalization", (2, 6, 4), (6,), (6,), num_groups=3, opset=21, epsilon=0.1),
    c("RMSNormalization", (2, 3, 4), (4,), opset=23), c("RMSNormalization", (2, 3, 4), (3, 4), opset=23, axis=1, epsilon=0.1),
    c("MeanVarianceNormalization", (2, 3, 4, 2), axes=[0, 2, 3], opset=13),
    c("MeanVarianceNormalization", (2, 3, 4), opset=9, axes=[0, -1]),
    c("LpNormalization", (3, 4)), c("LpNormalization", (3, 4), p=1, axis=0, opset=7),
    c("LRN", (2, 5, 3, 2), size=3, alpha=0.5, bias=0.8), c("LRN", (2, 6, 3, 1), size=5, alpha=0.5, beta=0.4, opset=7),
    # pooling
    c("LpPool", (1, 2, 5, 4), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], p=3, opset=18),
    c("LpPool", (1, 2, 6), kernel_shape=[3], p=1, opset=18), c("LpPool", (2, 2, 4, 4), kernel_shape=[2, 2], opset=11),
    c("GlobalLpPool", (2, 3, 4, 5)), c("GlobalLpPool", (2, 3, 4), p=3), c("GlobalLpPool", (2, 3, 4), p=1),
    *(c("MaxPool", (2, 2, 7, 6), kernel_shape=[3, 2], strides=[3, 2], opset=o) for o in (7, 9, 10, 11, 13)),
    c("MaxPool", (2, 2, 7), kernel_shape=[2], strides=[2]),
    c("MaxPool", (1, 2, 4, 4, 3), kernel_shape=[2, 2, 1], strides=[2, 2, 1]),
    c("AveragePool", (2, 2, 7, 6), kernel_shape=[3, 2], strides=[3, 2]),
    # reduction
    *(c(op, (2, 3, 4), opset=o, axes=[1, -1], keepdims=k, low=0.5)
      for op in ("ReduceMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare")
      for o, k in ((8, 1), (13, 0))),
    *(c(op, (2, 3), low=0.5) for op in ("ReduceMin", "ReduceL2", "ReduceProd", "ReduceLogSum")),
    *(c(op, (2, 3), i(0), opset=18, keepdims=0) for op in ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceProd", "ReduceMin")),
    # movement
    c("Expand", (3, 1), i(2, 1, 4)), c("Expand", (2, 3), i(1, 1), opset=8), c("Tile", (2, 3), i(2, 3)),
    c("Tile", (3,), i(4), opset=7),
    c("DepthToSpace", (2, 8, 3, 2), blocksize=2), c("DepthToSpace", (2, 12, 3, 2), blocksize=2, mode="CRD"),
    c("DepthToSpace", (1, 9, 2, 2), blocksize=3, opset=7), c("SpaceToDepth", (2, 3, 4, 6), blocksize=2),
    *(c("Pad", (2, 3, 4), i(0, 1, 2, 0, 2, 3), mode=m) for m in ("reflect", "edge")),
    c("Pad", (2, 3, 4, 5), i(0, 0, 1, 0, 0, 0, 1, 2), mode="reflect"), c("Pad", (2, 3), i(0, 2, 1, 4), mode="wrap", opset=19),
    c("Pad", (2, 3, 4), opset=7, pads=[0, 1, 2, 0, 0, 3], mode="edge"), c("Pad", (2, 3), i(0, 1, 1, 0), ()),
    c("CenterCropPad", (4, 5), i(3, 8), opset=18), c("CenterCropPad", (4, 5), i(7), opset=18, axes=[0]),
    c("CenterCropPad", (4, 5), i(1, 2), opset=18),
    c("Slice", (4, 5), i(-1), i(-9), i(1), i(-1)), c("Slice", (2, 7), i(5, 1), i(0, 2), i(1, 0), i(-2, 1)),
    # by number
    c("Gather", (4, 3), i(2, 0, 2)), c("Gather", (4, 3), np.array(1), axis=1),
    c("Gather", (2, 4, 3), np.array([[1, -1], [0, 1]]), axis=1),
    c("Gather", (4, 3), i(2, 0, 2), opset=11), c("Gather", (2, 4, 3), np.array([[1, -1], [0, 1]]), axis=1, opset=13),
    c("Gather", (4, 3), np.array(1), axis=1, opset=7), c("Gather", (3,), np.array(-1), opset=13),
    c("GatherElements", (3, 4), np.array([[1, 0, 1], [-1, 2, 0]]), axis=1),
    c("GatherND", (3, 4, 2), np.array([[1, 0], [1, 0], [2, -1]])),
    c("GatherND", (2, 3, 4), np.array([[1], [0]]), batch_dims=1),
    c("GatherND", (2, 2, 3), np.array([[[1], [0]], [[2], [1]]]), batch_dims=2),
    c("ScatterElements", (3, 4), np.array([[1, 0, 2], [3, 2, 0]]), (2, 3), axis=1),
    c("ScatterElements", (3, 4), np.array([[1, 0, 1]]), (1, 3), reduction="add", opset=18),
    c("ScatterND", (3, 4), np.array([[1], [0]]), (2, 4)), c("ScatterND", (3, 4), np.array([[1], [1]]), (2, 4), reduction="add"),
    c("ScatterND", (3, 4), np.array([[1, 2], [0, -1]]), (2,), opset=13),
    c("Split", (2, 6), axis=1, outputs=2, opset=7), c("Split", (2, 6), i(1, 5), axis=-1, outputs=2),
    c("Split", (4, 2), opset=18, num_outputs=2, outputs=2),
    c("TopK", (3, 5), i(2), outputs=2), c("TopK", (3, 5), i(2), axis=0, largest=0, outputs=2),
    c("Compress", (3, 4), b(1, 0, 1), axis=0), c("Compress", (3, 4), b(0, 1, 1), axis=-1, opset=11),
    c("Compress", (2, 3), b(0, 1, 1, 0, 1)),
    c("ReverseSequence", (4, 3, 2), i(1, 3, 4)), c("ReverseSequence", (3, 4), i(1, 3, 4), batch_axis=0, time_axis=1),
    *(c("CumSum", (3, 4), np.array(1), exclusive=e, reverse=r) for e in (0, 1) for r in (0, 1)),
    c("Trilu", (2, 3, 4)), c("Trilu", (3, 4), np.array(1), upper=0),
    # resizing
    c("Resize", (1, 2, 3, 4), None, n(1, 1, 2, 3)), c("Resize", (1, 2, 4, 5), None, None, np.array([1, 2, 3, 7]), mode="linear"),
    c("Resize", (1, 2, 4, 4), None, n(1, 1, 0.5, 1.6), mode="linear", coordinate_transformation_mode="asymmetric"),
    c("Resize", (1, 2, 4, 4), None, n(1, 1, 1.5, 2), mode="cubic"),
    c("Resize", (1, 2, 3, 3), None, None, np.array([1, 2, 6, 5]), mode="linear", coordinate_transformation_mode="align_corners"),
    c("Resize", (1, 2, 5), None, n(1, 1, 0.6), nearest_mode="ceil"),
    c("Resize", (1, 1, 4, 4), None, n(2, 2), axes=[2, 3], opset=18),
    c("Resize", (1, 1, 6, 4), None, n(0.5, 0.5), axes=[2, 3], opset=18, mode="linear", antialias=1),
    c("Resize", (1, 2, 3, 4), n(1, 1, 2, 2), opset=10), c("Upsample", (1, 2, 3, 4), n(1, 1, 2, 2), opset=9),
    c("Resize", (1, 2, 3, 4), n(), n(), i(1, 2, 5, 6), opset=11, mode="linear"),
    c("Resize", (1, 2, 3, 4), n(), n(1, 1, 2, 2), opset=11),
    c("Upsample", (1, 2, 3, 4), opset=7, scales=[1.0, 1.0, 2.0, 3.0], mode="nearest"),
    # by definition
    c("Attention", (2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 3), opset=23), c("Attention", (1, 3, 8), (1, 3, 8), (1, 3, 8), opset=23,
      q_num_heads=2, kv_num_heads=2, is_causal=1),
    c("Attention", (1, 4, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), (3, 3), opset=23, scale=0.3, softcap=2.0),
    c("RotaryEmbedding", (2, 3, 4, 6), (9, 3), (9, 3), np.array([[0, 1, 2, 5], [1, 1, 0, 8]]), opset=23),
    c("RotaryEmbedding", (2, 3, 4, 6), w(2, 4, 2), w(2, 4, 2), opset=23, interleaved=1, rotary_embedding_dim=4),
]
# fmt: on
