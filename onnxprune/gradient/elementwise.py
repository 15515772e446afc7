"""Operators that work on each element alone, or on elements at the same place."""

import math

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


@vjp("Pow")
def power(op: Step, g: Name, y: Name, x: Name, p: Name) -> Gradients:
    """The exponent must be constant."""
    exponent = op.Cast(p, to=op.elem_type)
    slope = op.Mul(exponent, op.Pow(x, op.Sub(exponent, op.constant(1))))
    return (op.unbroadcast(op.Mul(g, slope), 0),)


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
    return (op.Mul(g, op.Sub(_positive(op, x), _positive(op, op.Neg(x)))),)


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


@vjp("Selu")
def selu(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    gamma = op.call.attribute("gamma", 1.05070102214813232421875)
    return (_exponential(op, g, y, x, gamma * op.call.attribute("alpha", 1.67326319217681884765625), gamma),)


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


def _positive(op: Step, x: Name) -> Name:
    return op.where(op.Greater(x, op.constant(0)))


def _between(op: Step, x: Name, low: float, high: float) -> Name:
    return op.where(op.And(op.Greater(x, op.constant(low)), op.Less(x, op.constant(high))))


def _exponential(op: Step, g: Name, y: Name, x: Name, factor: float, slope: float) -> Name:
    """Of ``factor (exp(x) - 1)`` below zero and ``slope x`` above; the derivative below is the result plus the factor."""
    positive = _positive(op, x)
    below = op.Mul(op.Sub(op.constant(1), positive), op.Add(y, op.constant(factor)))
    return op.Mul(g, op.Add(op.scale(positive, slope), below))
