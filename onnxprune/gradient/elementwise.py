"""Operators that work on each element alone, or on elements at the same place."""

import math
from collections.abc import Sequence

from onnxprune.gradient.registry import Gradients, vjp
from onnxprune.gradient.tape import Name, Step
from onnxprune.weights import FLOATS


# two operands and more: summed over the axes along which one was repeated ------------------------------------------------
@vjp("Add")
def add(op: Step, g: Name, y: Name, a: Name, b: Name) -> Gradients:
    return op.unbroadcast(g, 0), op.unbroadcast(g, 1)


@vjp("Sub")
def sub(op: Step, g: Name, y: Name, a: Name, b: Name) -> Gradients:
    return op.unbroadcast(g, 0), op.unbroadcast(op.Neg(g), 1)


@vjp("Mul")
def mul(op: Step, g: Name, y: Name, a: Name, b: Name) -> Gradients:
    return op.unbroadcast(op.Mul(g, b), 0), op.unbroadcast(op.Mul(g, a), 1)


@vjp("Div")
def div(op: Step, g: Name, y: Name, a: Name, b: Name) -> Gradients:
    return op.unbroadcast(op.Div(g, b), 0), op.unbroadcast(op.Neg(op.Div(op.Mul(g, y), b)), 1)


@vjp("Sum")
def sum_(op: Step, g: Name, y: Name, *xs: Name) -> Gradients:
    return [op.unbroadcast(g, k) for k in range(len(xs))]


@vjp("Mean")
def mean(op: Step, g: Name, y: Name, *xs: Name) -> Gradients:
    share = op.scale(g, 1 / len(xs))
    return [op.unbroadcast(share, k) for k in range(len(xs))]


@vjp("Max")
def largest(op: Step, g: Name, y: Name, *xs: Name) -> Gradients:
    """In equal parts where several operands are the largest."""
    return _extreme(op, g, [op.reaches(x, y) for x in xs])


@vjp("Min")
def smallest(op: Step, g: Name, y: Name, *xs: Name) -> Gradients:
    return _extreme(op, g, [op.reaches(y, x) for x in xs])


@vjp("Mod")
def mod(op: Step, g: Name, y: Name, a: Name, b: Name) -> Gradients:
    """What is left of a division of floats, between its steps."""
    return op.unbroadcast(g, 0), op.unbroadcast(op.Neg(op.Div(op.Mul(g, op.Sub(a, y)), b)), 1)


@vjp("Where")
def where(op: Step, g: Name, y: Name, condition: Name, a: Name, b: Name) -> Gradients:
    zero = op.constant(0)
    return None, op.unbroadcast(op.Where(condition, g, zero), 1), op.unbroadcast(op.Where(condition, zero, g), 2)


@vjp("Pow")
def power(op: Step, g: Name, y: Name, x: Name, p: Name) -> Gradients:
    """By the exponent, x^p log(x) where x is positive, and nothing elsewhere."""
    exponent = op.typed(p)
    value = op.call.value(1) if not op.wants(1) else None
    if value is not None and (value == 2).all():
        slope = op.scale(x, 2)
    else:
        slope = op.Mul(exponent, op.Pow(x, op.Sub(exponent, op.constant(1))))
    to_p = None
    if op.wants(1):
        positive = _positive(op, x)
        logarithm = op.Log(op.Add(op.Mul(x, positive), op.Sub(op.constant(1), positive)))
        to_p = op.as_operand(op.unbroadcast(op.Mul(g, op.Mul(y, logarithm)), 1), 1)
    return op.unbroadcast(op.Mul(g, slope), 0), to_p


@vjp("PRelu")
def prelu(op: Step, g: Name, y: Name, x: Name, slope: Name) -> Gradients:
    negative = op.where(op.Not(op.Greater(x, op.constant(0))))
    factor = op.Add(op.Sub(op.constant(1), negative), op.Mul(negative, slope))
    return op.Mul(g, factor), op.unbroadcast(op.Mul(g, op.Mul(negative, x)), 1)


# piecewise linear: at a kink, the derivative on the flat side. Where the result tells the side as well, it is asked, so that
# onnxruntime can do the operator together with the convolution before it -----------------------------------------------------
@vjp("Relu")
def relu(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(g, _positive(op, y)),)


@vjp("LeakyRelu")
def leaky_relu(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    alpha = op.call.attribute("alpha", 0.01)
    positive = _positive(op, y if alpha > 0 else x)
    return (op.Mul(g, op.Add(op.scale(positive, 1 - alpha), op.constant(alpha))),)


@vjp("Abs")
def abs_(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(g, op.sign(x)),)


@vjp("Clip")
def clip(op: Step, g: Name, y: Name, x: Name, low: Name = "", high: Name = "") -> Gradients:
    """The bounds are attributes before opset 11 and operands since; any of them may be absent. At a bound it is flat, as
    ReLU6 is."""
    if op.call.version < 11:
        given = op.call.attribute("min"), op.call.attribute("max")
        low, high = ("" if bound is None else op.constant(bound) for bound in given)
    if low:
        g = op.Mul(g, op.where(op.Greater(y, low)))
    if high:
        g = op.Mul(g, op.where(op.Less(y, high)))
    return (g,)


@vjp("ThresholdedRelu")
def thresholded_relu(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(g, op.where(op.Greater(x, op.constant(op.call.attribute("alpha", 1.0))))),)


@vjp("Shrink")
def shrink(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(g, op.where(op.Greater(op.Abs(x), op.constant(op.call.attribute("lambd", 0.5))))),)


@vjp("HardSigmoid")
def hard_sigmoid(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.scale(op.Mul(g, _between(op, y, 0, 1)), op.call.attribute("alpha", 0.2)),)


@vjp("HardSwish")
def hard_swish(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    """x (x + 3) / 6 between -3 and 3, x above."""
    above = op.where(op.Not(op.Less(x, op.constant(3))))
    slope = op.Add(op.scale(x, 1 / 3), op.constant(0.5))
    return (op.Mul(g, op.Add(above, op.Mul(_between(op, x, -3, 3), slope))),)


# smooth --------------------------------------------------------------------------------------------------------------------
@vjp("Identity")
def identity(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (g,)


@vjp("Neg")
def neg(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Neg(g),)


@vjp("Sigmoid")
def sigmoid(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(g, op.Sub(y, op.Mul(y, y))),)


@vjp("Tanh")
def tanh(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(g, op.Sub(op.constant(1), op.Mul(y, y))),)


@vjp("Softplus")
def softplus(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(g, op.Sigmoid(x)),)


@vjp("Exp")
def exp(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(g, y),)


@vjp("Log")
def log(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Div(g, x),)


@vjp("Sqrt")
def sqrt(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Div(op.scale(g, 0.5), y),)


@vjp("Reciprocal")
def reciprocal(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Neg(op.Mul(g, op.Mul(y, y))),)


@vjp("Erf")
def erf(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(g, op.scale(op.Exp(op.Neg(op.Mul(x, x))), 2 / math.sqrt(math.pi))),)


@vjp("Elu")
def elu(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (_exponential(op, g, y, x, op.call.attribute("alpha", 1.0), 1.0),)


@vjp("Celu")
def celu(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    """Below zero ``alpha (exp(x / alpha) - 1)``."""
    alpha = op.call.attribute("alpha", 1.0)
    return (_exponential(op, g, op.scale(y, 1 / alpha), x, 1.0, 1.0),)


@vjp("Selu")
def selu(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    gamma = op.call.attribute("gamma", 1.05070102214813232421875)
    return (_exponential(op, g, y, x, gamma * op.call.attribute("alpha", 1.67326319217681884765625), gamma),)


@vjp("Gelu")
def gelu(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    """x times the normal distribution, or an approximation of it by tanh."""
    one = op.constant(1)
    if op.call.attribute("approximate", "none") == "tanh":
        square, factor = op.Mul(x, x), math.sqrt(2 / math.pi)
        bent = op.Tanh(op.scale(op.Mul(x, op.Add(one, op.scale(square, 0.044715))), factor))
        slope = op.scale(op.Add(one, op.scale(square, 3 * 0.044715)), factor)
        density = op.scale(op.Mul(op.Sub(one, op.Mul(bent, bent)), slope), 0.5)
    else:
        bent = op.Erf(op.scale(x, 1 / math.sqrt(2)))
        density = op.scale(op.Exp(op.scale(op.Mul(x, x), -0.5)), 1 / math.sqrt(2 * math.pi))
    return (op.Mul(g, op.Add(op.scale(op.Add(one, bent), 0.5), op.Mul(x, density))),)


@vjp("Mish")
def mish(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    """``x tanh(log(1 + exp(x)))``."""
    bent = op.Tanh(op.Softplus(x))
    slope = op.Mul(op.Sub(op.constant(1), op.Mul(bent, bent)), op.Sigmoid(x))
    return (op.Mul(g, op.Add(bent, op.Mul(x, slope))),)


@vjp("Swish")
def swish(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    """``x sigmoid(alpha x)``."""
    alpha = op.call.attribute("alpha", 1.0)
    share = op.Sigmoid(op.scale(x, alpha))
    return (op.Mul(g, op.Add(share, op.scale(op.Mul(y, op.Sub(op.constant(1), share)), alpha))),)


@vjp("Softsign")
def softsign(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    left = op.Sub(op.constant(1), op.Abs(y))
    return (op.Mul(g, op.Mul(left, left)),)


# trigonometric and hyperbolic ----------------------------------------------------------------------------------------------
@vjp("Sin")
def sin(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(g, op.Cos(x)),)


@vjp("Cos")
def cos(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Neg(op.Mul(g, op.Sin(x))),)


@vjp("Tan")
def tan(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(g, op.Add(op.constant(1), op.Mul(y, y))),)


@vjp("Sinh")
def sinh(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(g, op.Cosh(x)),)


@vjp("Cosh")
def cosh(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(g, op.Sinh(x)),)


@vjp("Asin")
def asin(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Div(g, op.Sqrt(op.Sub(op.constant(1), op.Mul(x, x)))),)


@vjp("Acos")
def acos(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Neg(op.Div(g, op.Sqrt(op.Sub(op.constant(1), op.Mul(x, x))))),)


@vjp("Atan")
def atan(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Div(g, op.Add(op.constant(1), op.Mul(x, x))),)


@vjp("Asinh")
def asinh(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Div(g, op.Sqrt(op.Add(op.Mul(x, x), op.constant(1)))),)


@vjp("Acosh")
def acosh(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Div(g, op.Sqrt(op.Sub(op.Mul(x, x), op.constant(1)))),)


@vjp("Atanh")
def atanh(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Div(g, op.Sub(op.constant(1), op.Mul(x, x))),)


# nothing but passed on -----------------------------------------------------------------------------------------------------
@vjp("Dropout")
def dropout(op: Step, g: Name, y: Name, x: Name, ratio: Name = "", training: Name = "") -> Gradients:
    """Nothing at inference; random in training, which has no gradient here."""
    if training:
        value = op.call.value(2)
        op.require(value is not None and not value.any())
    return (g,)


@vjp("Cast")
def cast(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    """Between float types."""
    kind = op.shapes.elem_types.get(op.call.node.inputs[0], 0)
    op.require(kind in FLOATS)
    return (op.Cast(g, to=kind),)


@vjp("CastLike")
def cast_like(op: Step, g: Name, y: Name, x: Name, like: Name) -> Gradients:
    """Of the second operand nothing but the type is read."""
    return cast(op, g, y, x)[0] if op.wants(0) else None, op.zeros(like)


def _extreme(op: Step, g: Name, hits: Sequence[Name]) -> Gradients:
    share = op.Div(g, op.Sum(*hits))
    return [op.unbroadcast(op.Mul(share, hit), k) for k, hit in enumerate(hits)]


def _positive(op: Step, x: Name) -> Name:
    return op.where(op.Greater(x, op.constant(0)))


def _between(op: Step, x: Name, low: float, high: float) -> Name:
    return op.where(op.And(op.Greater(x, op.constant(low)), op.Less(x, op.constant(high))))


def _exponential(op: Step, g: Name, y: Name, x: Name, factor: float, slope: float) -> Name:
    """Of ``factor (exp(x) - 1)`` below zero and ``slope x`` above; the derivative below is the result plus the factor."""
    positive = _positive(op, x)
    below = op.Mul(op.Sub(op.constant(1), positive), op.Add(y, op.constant(factor)))
    return op.Mul(g, op.Add(op.scale(positive, slope), below))
