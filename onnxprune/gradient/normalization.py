"""Normalisation, and Softmax."""

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.gradient.dense import along
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
    h, back = _normal(op, x, _from_axis(op), op.call.attribute("epsilon", 1e-5))
    return back(op.Mul(g, scale)), op.unbroadcast(op.Mul(g, h), 1), op.unbroadcast(g, 2) if bias else None


@vjp("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(op: Step, g: Name, y: Name, x: Name, scale: Name, *unused: Name) -> Gradients:
    h, back = _normal(op, x, _from_axis(op), op.call.attribute("epsilon", 1e-5), centred=False)
    return back(op.Mul(g, scale)), op.unbroadcast(op.Mul(g, h), 1)


@vjp("InstanceNormalization")
def instance_normalization(op: Step, g: Name, y: Name, x: Name, scale: Name, bias: Name) -> Gradients:
    rank = op.call.rank()
    h, back = _normal(op, x, range(2, rank), op.call.attribute("epsilon", 1e-5))
    rest = [axis for axis in range(rank) if axis != 1]
    per_channel = op.Reshape(scale, op.ints([-1] + [1] * (rank - 2)))
    return back(op.Mul(g, per_channel)), op.sum(op.Mul(g, h), rest, keepdims=False), op.sum(g, rest, keepdims=False)


@vjp("GroupNormalization")
def group_normalization(op: Step, g: Name, y: Name, x: Name, scale: Name, bias: Name) -> Gradients:
    """Scale and bias are given for each group before opset 21, for each channel since."""
    call, groups = op.call, int(op.call.attribute("num_groups"))
    channels = call.shape(0)[1]
    parts = (groups, 1) if call.version < 21 else (groups, channels // groups)
    by_group = op.ints([0, groups, channels // groups, -1])
    apart, given = op.Reshape(x, by_group), op.Reshape(g, by_group)
    h, back = _normal(op, apart, range(2, 4), call.attribute("epsilon", 1e-5))
    to_x = op.like(back(op.Mul(given, op.Reshape(scale, op.ints([*parts, 1])))), x)
    rest = [0, 2, 3] if parts[1] == 1 and call.version < 21 else [0, 3]
    to_scale, to_bias = (op.Reshape(op.sum(v, rest, keepdims=False), op.ints([-1])) for v in (op.Mul(given, h), given))
    return to_x, to_scale, to_bias


@vjp("MeanVarianceNormalization")
def mean_variance_normalization(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    axes = [axis % op.call.rank() for axis in op.call.attribute("axes") or (0, 2, 3)]
    return (_normal(op, x, axes, 0.0)[1](g),)


@vjp("LpNormalization")
def lp_normalization(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    """``(g - slope sum(g y)) / norm``, of which the slope is the norm's by x."""
    axes, p = [op.call.axis(default=-1)], int(op.call.attribute("p", 2))
    norm = op.sum(op.Abs(x), axes) if p == 1 else op.Sqrt(op.sum(op.Mul(x, x), axes))
    return (op.Div(op.Sub(g, op.Mul(op.sign(x) if p == 1 else y, op.sum(op.Mul(g, y), axes))), norm),)


@vjp("LRN")
def lrn(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    """``x S^-beta``, S a bias and the mean square of some channels around, times alpha."""
    call, size = op.call, int(op.call.attribute("size"))
    alpha, beta = call.attribute("alpha", 1e-4), call.attribute("beta", 0.75)
    op.require(op.fixed(0)[1])
    channels, rank = np.arange(call.shape(0)[1]), call.rank()
    away = channels[:, None] - channels  # of the channel that is summed from the one that is computed
    band = ((away >= -((size - 1) // 2)) & (away <= size // 2)).astype(np.float64)
    square = along(op, op.Mul(x, x), 1, rank, band * (alpha / size))
    total = op.Add(square, op.constant(call.attribute("bias", 1.0)))
    others = along(op, op.Div(op.Mul(g, y), total), 1, rank, band.T * (2 * alpha * beta / size))
    return (op.Sub(op.Mul(g, op.Pow(total, op.constant(-beta))), op.Mul(x, others)),)


def _from_axis(op: Step) -> range:
    return range(op.call.axis(default=-1), op.call.rank())


def _normal(
    op: Step, x: Name, axes: Sequence[int], epsilon: float, *, centred: bool = True
) -> tuple[Name, Callable[[Name], Name]]:
    """A tensor divided by its deviation from the mean, or from nought; and the way back from there.

    With h the normalised tensor, a gradient g becomes ``(g - mean(g) - h mean(g h)) / deviation``.
    """
    middle = op.Sub(x, op.mean(x, axes)) if centred else x
    deviation = op.Sqrt(op.Add(op.mean(op.Mul(middle, middle), axes), op.constant(epsilon)))
    h = op.Div(middle, deviation)

    def back(g: Name) -> Name:
        left = op.Sub(g, op.mean(g, axes)) if centred else g
        return op.Div(op.Sub(left, op.Mul(h, op.mean(op.Mul(g, h), axes))), deviation)

    return h, back


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
