"""Normalisation, and Softmax."""

from onnxprune.gradient.registry import Gradients, vjp
from onnxprune.gradient.tape import Name, Step


@vjp("BatchNormalization")
def batch_normalization(op: Step, g: Name, y: Name, x: Name, scale: Name, bias: Name, mean: Name, variance: Name) -> Gradients:
    """At inference, where it is a line for each channel."""
    call = op.call
    inference = not any(call.node.outputs[1:]) and not call.attribute("training_mode", 0) and call.attribute("spatial", 1)
    op.require(inference and call.rank() >= 2)
    deviation = op.Sqrt(op.Add(op.typed(variance), op.constant(call.attribute("epsilon", 1e-5))))
    per_channel = op.ints([-1] + [1] * (call.rank() - 2))
    slope = op.Div(op.typed(scale), deviation)
    centred = op.Sub(x, op.Reshape(op.typed(mean), per_channel))
    rest = [axis for axis in range(call.rank()) if axis != 1]
    to_scale = op.Div(op.sum(op.Mul(g, centred), rest, keepdims=False), deviation)
    to_bias = op.sum(g, rest, keepdims=False)
    return op.Mul(g, op.Reshape(slope, per_channel)), op.as_operand(to_scale, 1), op.as_operand(to_bias, 2)


@vjp("LayerNormalization")
def layer_normalization(op: Step, g: Name, y: Name, x: Name, scale: Name, bias: Name = "") -> Gradients:
    """``(g s - mean(g s) - h mean(g s h)) / deviation``, h the normalised operand and s the scale."""
    call = op.call
    axes = range(call.axis(default=-1), call.rank())
    centred = op.Sub(x, op.mean(x, axes))
    variance = op.mean(op.Mul(centred, centred), axes)
    deviation = op.Sqrt(op.Add(variance, op.constant(call.attribute("epsilon", 1e-5))))
    h, gs = op.Div(centred, deviation), op.Mul(g, scale)
    to_scale, to_bias = op.unbroadcast(op.Mul(g, h), 1), op.unbroadcast(g, 2) if bias else None
    inner = op.Sub(op.Sub(gs, op.mean(gs, axes)), op.Mul(h, op.mean(op.Mul(gs, h), axes)))
    return op.Div(inner, deviation), to_scale, to_bias


@vjp("Softmax")
def softmax(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(y, op.Sub(g, op.sum(op.Mul(g, y), _axes(op)))),)


@vjp("LogSoftmax")
def log_softmax(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Sub(g, op.Mul(op.Exp(y), op.sum(g, _axes(op)))),)


def _axes(op: Step) -> range:
    """Before opset 13, all axes from the given one on; only that one since."""
    modern = op.call.version >= 13
    axis = op.call.axis(default=-1 if modern else 1)
    return range(axis, axis + 1 if modern else op.call.rank())
