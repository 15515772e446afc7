"""Operators on each element alone, or on elements at the same place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cases_net import Case, Net, Operand, frozen, row
from onnx import TensorProto

BOOL, INT32, FLOAT, DOUBLE = TensorProto.BOOL, TensorProto.INT32, TensorProto.FLOAT, TensorProto.DOUBLE


# into an operator's domain; zero stays zero in all but positive() --------------------------------------------------------
def within_one(g: Net, x: str) -> str:
    return g.Softsign(x)


def not_negative(g: Net, x: str) -> str:
    return g.Abs(x)


def positive(g: Net, x: str) -> str:
    return g.Softplus(x)


def some_infinite(g: Net, x: str) -> str:
    return g.Sinh(g.Mul(x, 100.0))


def some_nan(g: Net, x: str) -> str:
    return g.Sqrt(x)


def integer(g: Net, x: str) -> str:
    return g.Cast(g.Mul(x, 4.0), to=INT32)


def boolean(g: Net, x: str) -> str:
    return g.Cast(g.Relu(x), to=BOOL)


# fmt: off
UNARY: list[tuple[str, tuple[int, ...], bool, Callable[[Net, str], str] | None, dict[str, Any]]] = [
    # operator          opsets       f(0)=0   domain         attributes
    ("Abs",             (7, 13),     True,    None,          {}),
    ("Asin",            (7, 22),     True,    within_one,    {}),
    ("Asinh",           (9, 22),     True,    None,          {}),
    ("Atan",            (7, 22),     True,    None,          {}),
    ("Atanh",           (9, 22),     True,    within_one,    {}),
    ("Ceil",            (7, 13),     True,    None,          {}),
    ("Celu",            (12,),       True,    None,          {"alpha": 2.0}),
    ("Elu",             (7, 22),     True,    None,          {"alpha": 0.5}),
    ("Erf",             (9, 13),     True,    None,          {}),
    ("Floor",           (7, 13),     True,    None,          {}),
    ("Gelu",            (20,),       True,    None,          {}),
    ("Gelu",            (21,),       True,    None,          {"approximate": "tanh"}),
    ("HardSwish",       (14, 22),    True,    None,          {}),
    ("Identity",        (7, 13),     True,    None,          {}),
    ("IsInf",           (10, 20),    True,    some_infinite, {}),
    ("IsNaN",           (9, 13),     True,    some_nan,      {}),
    ("LeakyRelu",       (7, 16),     True,    None,          {"alpha": 0.3}),
    ("Mish",            (18, 22),    True,    None,          {}),
    ("Neg",             (7, 13),     True,    None,          {}),
    ("Relu",            (7, 13, 14), True,    None,          {}),
    ("Round",           (11, 22),    True,    None,          {}),
    ("Selu",            (7, 22),     True,    None,          {}),
    ("Shrink",          (9,),        True,    None,          {"lambd": 0.2, "bias": 0.1}),
    ("Sign",            (9, 13),     True,    None,          {}),
    ("Sin",             (7, 22),     True,    None,          {}),
    ("Sinh",            (9, 22),     True,    None,          {}),
    ("Softsign",        (7, 22),     True,    None,          {}),
    ("Sqrt",            (7, 13),     True,    not_negative,  {}),
    ("Swish",           (24,),       True,    None,          {}),
    ("Tan",             (7, 22),     True,    within_one,    {}),
    ("Tanh",            (7, 13),     True,    None,          {}),
    ("ThresholdedRelu", (10, 22),    True,    None,          {"alpha": 0.2}),
    ("Acos",            (7, 22),     False,   within_one,    {}),
    ("BitwiseNot",      (18,),       False,   integer,       {}),
    ("Cos",             (7, 22),     False,   None,          {}),
    ("Cosh",            (9, 22),     False,   None,          {}),
    ("Exp",             (7, 13),     False,   None,          {}),
    ("HardSigmoid",     (7, 22),     False,   None,          {}),
    ("Log",             (7, 13),     False,   positive,      {}),
    ("Not",             (7, 13),     False,   boolean,       {}),
    ("Reciprocal",      (7, 13),     False,   positive,      {}),
    ("Sigmoid",         (7, 13),     False,   None,          {}),
    ("Softplus",        (7, 22),     False,   None,          {}),
]
# fmt: on


def _unary(op: str, before: Callable[[Net, str], str] | None, attributes: dict[str, Any]) -> Callable[[Net, str], str]:
    return lambda g, x: getattr(g, op)(x if before is None else before(g, x), **attributes)


def _others(op: str, opset: int, *, zero: bool | None = None, before: Callable[[Net, str], str] | None = None) -> list[Case]:
    """A binary operator whose second operand has various shapes and sources."""

    def ready(g: Net, x: str) -> str:
        return x if before is None else before(g, x)

    # fmt: off
    shapes = [("scalar", ()), ("one", (1,)), ("per channel", (8, 1, 1)), ("per channel 4-D", (1, 8, 1, 1)), ("per column", (6,)),
              ("per row and channel", (8, 4, 1)), ("whole", (8, 4, 6))]
    # fmt: on
    cases = [
        *row(op, opset, "two branches", lambda g, x: getattr(g, op)(ready(g, x), ready(g, g.another())), zero=zero),
        *row(
            op, opset, "pooled", lambda g, x: getattr(g, op)(ready(g, x), ready(g, g.GlobalAveragePool(g.another()))), zero=zero
        ),
    ]
    if op not in ("Sub", "Xor"):  # which would give nothing but zeros
        cases += row(op, opset, "itself", lambda g, x: getattr(g, op)(ready(g, x), ready(g, x)), zero=zero)
    if before is None:
        for note, shape in shapes:
            cases += row(op, opset, note, lambda g, x, s=shape: getattr(g, op)(x, g.w(*s)))
            cases += row(op, opset, f"{note} first", lambda g, x, s=shape: getattr(g, op)(g.w(*s), x))
        cases += row(op, opset, "rows", lambda g, x: getattr(g, op)(x, g.w(8)), start="rows")
        cases += row(op, opset, "tokens", lambda g, x: getattr(g, op)(g.w(1, 5, 1), x), start="tokens")
        cases += frozen(
            op, opset, "graph input", lambda g, x: getattr(g, op)(x, g.input(g.randn(2, 8, 4, 6))), blame="graph input"
        )
    return cases


def _clip(low: Operand, high: Operand) -> Callable[[Net, str], str]:
    return lambda g, x: g.Clip(x, low, high)


def _prelu(*shape: int) -> Callable[[Net, str], str]:
    return lambda g, x: g.PRelu(x, g.w(*shape))


def _choose(g: Net, x: str) -> str:
    """A condition with channels: x > 0."""
    return g.Greater(x, 0.0)


def _quantised(g: Net, x: str, axis: int | None, zero_point: int, dtype: Any = np.uint8) -> str:
    """Quantise and back, per tensor or per channel."""
    scale = g.store(np.float32(0.05)) if axis is None else g.positive(8)
    point = g.store(np.full(() if axis is None else 8, zero_point, dtype))
    options = {} if axis is None else {"axis": axis}
    return g.DequantizeLinear(g.QuantizeLinear(x, scale, point, **options), scale, point, **options)


def _weight_of_bytes(g: Net, x: str, *, axis: int | None, zero_point: int | None, out: int = 8) -> str:
    """A Conv with an int8 weight, quantised per tensor or per output channel, with or without zero point."""
    scale = g.positive(*() if axis is None else (out,))
    point = () if zero_point is None else (g.store(np.full(() if axis is None else out, zero_point, np.int8)),)
    options = {} if axis is None else {"axis": axis}
    return g.Conv(x, g.DequantizeLinear(g.int8(out, 8, 1, 1), scale, *point, **options), g.w(out))


CASES: list[Case] = [
    case
    for op, opsets, zero, before, attributes in UNARY
    for case in row(op, opsets, " ".join(map(str, attributes.values())), _unary(op, before, attributes), zero=zero)
]

# one operand and options -----------------------------------------------------------------------------------------------
for _opset in (7, 13, 19, 21):
    CASES += row("Cast", _opset, "to double and back", lambda g, x: g.Cast(g.Cast(x, to=DOUBLE), to=FLOAT), zero=True)
    CASES += row("Cast", _opset, "to int", lambda g, x: g.Cast(g.Mul(x, g.store(np.float32(4))), to=INT32), zero=True)
    CASES += row("Cast", _opset, "to bool", lambda g, x: g.Cast(g.Relu(x), to=BOOL), zero=True)
CASES += [
    *row("CastLike", (15, 19), "scalar", lambda g, x: g.CastLike(g.Mul(x, 4.0), g.store(np.int32(0))), zero=True),
    *row("CastLike", 19, "another", lambda g, x: g.CastLike(x, g.w(4)), zero=True),
    *row("Clip", 7, "attributes", lambda g, x: g.Clip(x, min=-0.5, max=0.5), zero=True),
    *row("Clip", 7, "attributes above zero", lambda g, x: g.Clip(x, min=0.1, max=0.5), zero=False),
    *row("Clip", 7, "no bounds", lambda g, x: g.Clip(x), zero=True),
    *row("Clip", (11, 13), "relu6", _clip(0.0, 6.0), zero=True),
    *row("Clip", 13, "above zero", _clip(0.2, 6.0), zero=False),
    *row("Clip", 13, "below zero", _clip(-1.0, -0.2), zero=False),
    *row("Clip", 13, "no lower bound", _clip(None, 0.3), zero=True),
    *row("Clip", 13, "no upper bound", _clip(-0.3, None), zero=True),
    *row("Clip", 13, "bounds of one element", lambda g, x: g.Clip(x, g.w(1), 2.0)),
    *row("Clip", 13, "bound at run time", lambda g, x: g.Clip(x, g.ReduceMax(g.inputs[0].name, keepdims=0), None), zero=False),
    *row("Dropout", (7, 10, 12, 13), "inference", lambda g, x: g.Dropout(x), zero=True),
    *row("Dropout", 13, "ratio", lambda g, x: g.Dropout(x, 0.3), zero=True),
    *row("Dropout", 13, "not training", lambda g, x: g.Dropout(x, 0.3, np.array(False)), zero=True),
    *row("Dropout", (10, 13), "mask", lambda g, x: g.Dropout(x, outputs=2), zero=False),
    *frozen("Dropout", 13, "training", lambda g, x: g.Dropout(x, 0.3, np.array(True), seed=1)),
    *row("Shrink", 9, "negative threshold", lambda g, x: g.Shrink(x, lambd=-0.5, bias=0.3), zero=False),
    *row("Acosh", (9, 22), "above one", lambda g, x: g.Acosh(g.Add(g.Cosh(x), 1.0)), zero=False),
    *frozen("Acosh", 22, "of zero", lambda g, x: g.Acosh(g.Abs(x))),
    *frozen("Log", 13, "of zero", lambda g, x: g.Log(g.Abs(x))),
    *frozen("Reciprocal", 13, "of zero", lambda g, x: g.Reciprocal(x)),
]

# PRelu -------------------------------------------------------------------------------------------------------------------
CASES += [
    *row("PRelu", (7, 9, 16), "per channel", _prelu(8, 1, 1), zero=True),
    *row("PRelu", 16, "one slope", _prelu(1), zero=True),
    *row("PRelu", 16, "one slope 3-D", _prelu(1, 1, 1), zero=True),
    *row("PRelu", 16, "per element", _prelu(8, 4, 6), zero=True),
    *row("PRelu", 16, "per row", _prelu(4, 1), zero=True),
    *row("PRelu", 16, "4-D", _prelu(1, 8, 1, 1), zero=True),
    *row("PRelu", 16, "rows", _prelu(8), start="rows", zero=True),
]

# two operands ------------------------------------------------------------------------------------------------------------
for _op, _opset, _zero in (("Mul", 7, True), ("Mul", 14, True), ("Add", 7, True), ("Add", 14, True), ("Sub", 13, True)):
    CASES += _others(_op, _opset, zero=_zero)
for _op, _opset in (("Sum", 8), ("Max", 8), ("Max", 13), ("Min", 13), ("Mean", 13)):
    CASES += _others(_op, _opset, zero=True)
CASES += [
    *row("Sum", 13, "one", lambda g, x: g.Sum(x), zero=True),
    *row("Sum", 13, "three", lambda g, x: g.Sum(x, g.another(), g.w(8, 1, 1)), zero=True),
    *row("Max", 13, "with zero", lambda g, x: g.Max(x, 0.0), zero=True),
    *row("Max", 13, "with one", lambda g, x: g.Max(x, 1.0), zero=False),
    *row("Add", 13, "scalar zero flag", lambda g, x: g.Add(x, 1.0), zero=False),
    *row("Add", 13, "per channel zero flag", lambda g, x: g.Add(x, g.w(8, 1, 1)), zero=True),
    *row("Add", 13, "outer product", lambda g, x: g.Add(g.Unsqueeze(x, [1]), g.Unsqueeze(g.another(), [2])), start="rows"),
    *row("Mul", 13, "gate", lambda g, x: g.Mul(x, g.Sigmoid(g.another())), zero=True),
    *row("Mul", 13, "outer product", lambda g, x: g.Mul(g.Unsqueeze(x, [1]), g.Unsqueeze(g.another(), [2])), start="rows"),
    *row("Div", (7, 14), "by a scalar", lambda g, x: g.Div(x, 3.0), zero=True),
    *row("Div", 14, "by positions", lambda g, x: g.Div(x, g.positive(4, 6)), zero=True),
    *row("Div", 14, "by what is not zero", lambda g, x: g.Div(x, g.Exp(g.another())), zero=True),
    *row("Div", 14, "of a scalar", lambda g, x: g.Div(2.0, g.Exp(x)), zero=False),
    *frozen("Div", 14, "by a weight", lambda g, x: g.Div(x, g.positive(8, 1, 1))),
    *frozen("Div", 14, "by channels", lambda g, x: g.Div(x, g.another())),
    *row("Mod", 13, "float", lambda g, x: g.Mod(x, 0.7, fmod=1), zero=True),
    *row("Mod", (10, 13), "int", lambda g, x: g.Mod(integer(g, x), g.store(np.int32(3))), zero=True),
    *frozen("Mod", 13, "by channels", lambda g, x: g.Mod(x, g.Abs(g.another()), fmod=1)),
    *row("Pow", (7, 13, 15), "square", lambda g, x: g.Pow(x, 2.0), zero=True),
    *row("Pow", 15, "root", lambda g, x: g.Pow(g.Abs(x), 0.5), zero=True),
    *row("Pow", 15, "per channel", lambda g, x: g.Pow(g.Abs(x), g.positive(8, 1, 1)), zero=False),
    *row("Pow", 15, "per column", lambda g, x: g.Pow(g.Abs(x), g.positive(6))),
    *row("Pow", 15, "int exponent", lambda g, x: g.Pow(x, 3), zero=True),
    *frozen("Pow", 15, "negative", lambda g, x: g.Pow(x, -1.0)),
    *frozen("Pow", 15, "zero", lambda g, x: g.Pow(x, 0.0)),
    *frozen("Pow", 15, "exponent at run time", lambda g, x: g.Pow(g.Abs(x), g.Abs(g.another()))),
]

# comparisons, logic, bits ----------------------------------------------------------------------------------------------------
for _op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
    CASES += [
        *row(_op, 16, "two branches", lambda g, x, op=_op: getattr(g, op)(integer(g, x), integer(g, g.another())), zero=False),
        *row(_op, 16, "one", lambda g, x, op=_op: getattr(g, op)(integer(g, x), g.store(np.int32(1))), zero=False),
        *row(_op, 16, "minus two", lambda g, x, op=_op: getattr(g, op)(integer(g, x), g.store(np.int32(-2))), zero=False),
        *row(_op, 16, "per channel", lambda g, x, op=_op: getattr(g, op)(g.Round(x), g.store(np.round(g.randn(8, 1, 1))))),
    ]
for _op, _opset, _zero in (("And", 7, True), ("Or", 7, True), ("Xor", 7, True)):
    CASES += _others(_op, _opset, zero=_zero, before=boolean)
for _op, _zero in (("BitwiseAnd", True), ("BitwiseOr", True)):
    CASES += _others(_op, 18, zero=_zero, before=integer)
    CASES += row(_op, 18, "scalar", lambda g, x, op=_op: getattr(g, op)(integer(g, x), g.store(np.int32(6))), zero=_op[-1] == "d")
CASES += [
    *row("Where", (9, 16), "two branches", lambda g, x: g.Where(_choose(g, x), x, g.another()), zero=True),
    *row("Where", 16, "scalar", lambda g, x: g.Where(_choose(g, x), x, 0.5), zero=False),
    *row("Where", 16, "zero", lambda g, x: g.Where(_choose(g, x), x, 0.0), zero=True),
    *row("Where", 16, "per channel", lambda g, x: g.Where(_choose(g, g.another()), x, g.w(8, 1, 1)), zero=True),
    *row("Where", 16, "one condition", lambda g, x: g.Where(np.array(True), x, g.another()), zero=True),
    *row("Where", 16, "condition by position", lambda g, x: g.Where(np.eye(4, 6, dtype=bool), x, g.another()), zero=True),
    *frozen("Where", 16, "condition by channel", lambda g, x: g.Where(np.eye(8, 6, dtype=bool)[:, None], x, g.another())),
]

# quantisation ----------------------------------------------------------------------------------------------------------------
CASES += [
    *row("QuantizeLinear", (10, 13, 19, 21), "per tensor", lambda g, x: _quantised(g, x, None, 0)),
    *row("QuantizeLinear", 13, "zero point", lambda g, x: _quantised(g, x, None, 128)),
    *row("QuantizeLinear", 13, "no zero point", lambda g, x: g.QuantizeLinear(x, 0.05), zero=True),
    *row("QuantizeLinear", 13, "alone", lambda g, x: g.QuantizeLinear(x, 0.05, g.store(np.uint8(128)))),
    *row("QuantizeLinear", 13, "per channel", lambda g, x: _quantised(g, x, 1, 0), zero=True),
    *row("QuantizeLinear", 13, "per batch", lambda g, x: g.QuantizeLinear(x, g.positive(2), axis=0)),
    *row(
        "DequantizeLinear", (10, 13, 19, 21), "weight", lambda g, x: _weight_of_bytes(g, x, axis=None, zero_point=None), zero=True
    ),
    *row("DequantizeLinear", 13, "weight zero point 0", lambda g, x: _weight_of_bytes(g, x, axis=None, zero_point=0)),
    *row("DequantizeLinear", (13, 21), "weight per channel", lambda g, x: _weight_of_bytes(g, x, axis=0, zero_point=None)),
    *row("DequantizeLinear", 13, "weight per channel, point 0", lambda g, x: _weight_of_bytes(g, x, axis=0, zero_point=0)),
    *row("DequantizeLinear", 13, "weight per channel, point 3", lambda g, x: _weight_of_bytes(g, x, axis=0, zero_point=3)),
    *row("DequantizeLinear", 13, "weight per consumer", lambda g, x: _weight_of_bytes(g, x, axis=1, zero_point=3)),
    *row(
        "DequantizeLinear",
        13,
        "negative axis",
        lambda g, x: g.Mul(x, g.DequantizeLinear(g.int8(8, 1, 1), g.positive(8), axis=-3)),
    ),
    *row("DequantizeLinear", 13, "weight point 3", lambda g, x: _weight_of_bytes(g, x, axis=None, zero_point=3)),
]
