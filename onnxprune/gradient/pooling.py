"""Pooling: each channel for itself."""

import numpy as np

from onnxprune.gradient.registry import Gradients, vjp
from onnxprune.gradient.tape import Name, Step
from onnxprune.gradient.windows import members, transposed, windows


@vjp("MaxPool")
def max_pool(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    """To the elements that were the largest, which the operator's second result numbers over the whole operand."""
    op.require(not op.call.attribute("storage_order", 0))
    if len(op.forward.output) == 1:
        op.forward.output.append("")
    op.forward.output[1] = op.forward.output[1] or op.tape.unique("Indices")
    flat = op.ints([-1])
    zeros = op.Reshape(op.Mul(x, op.constant(0)), flat)
    places, values = op.Reshape(op.forward.output[1], flat), op.Reshape(g, flat)
    op.require(op.tape.opset >= 16)
    return (op.like(op.ScatterElements(zeros, places, values, axis=0, reduction="add"), x),)


@vjp("AveragePool")
def average_pool(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    call = op.call
    at = windows(op, tuple(call.attribute("kernel_shape")))
    op.require(op.fixed(0)[1])
    counts = members(at, padding=bool(call.attribute("count_include_pad", 0)))
    if (counts == counts.flat[0]).all() and not any((*at.begins, *at.ends)) and min(at.more) >= 0:
        share = op.scale(g, 1 / int(counts.flat[0]))
    else:
        op.require(op.fixed(0)[2:].all())
        share = op.Div(g, op.constant(counts))
    channels = call.shape(0)[1]
    return (transposed(op, share, op.constant(np.ones((channels, 1, *at.kernel))), at, channels),)


@vjp("GlobalAveragePool")
def global_average_pool(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.spread(op.Mul(g, op.share(y, x)), x),)


@vjp("GlobalMaxPool")
def global_max_pool(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.to_largest(g, y, x, range(2, op.call.rank())),)
