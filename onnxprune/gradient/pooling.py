"""Pooling: each channel for itself."""

import math

import numpy as np

from onnxprune.gradient.registry import Gradients, vjp
from onnxprune.gradient.tape import LAST, Name, Step
from onnxprune.gradient.windows import Windows, members, transposed, windows

_SCATTERS_SUMS = 16
"""The first opset in which elements can be added up where they are scattered to."""


@vjp("MaxPool")
def max_pool(op: Step, g: Name, y: Name, x: Name, *unused: Name) -> Gradients:
    """To the first of the largest elements of each window, in the order in which they lie in memory."""
    at = windows(op, tuple(op.call.attribute("kernel_shape")))
    op.require(not op.call.attribute("storage_order", 0))
    if at.apart and op.fixed(0)[2:].all():
        return (_side_by_side(op, g, y, x, at),)
    return (_by_windows(op, g, x) if op.tape.opset < _SCATTERS_SUMS else _by_indices(op, g, x),)


def _side_by_side(op: Step, g: Name, y: Name, x: Name, at: Windows) -> Name:
    """Where windows do not overlap: the elements that equal the result, among these those of the lowest number."""
    size, factors = math.prod(at.kernel), (1, 1, *at.kernel)
    places = np.arange(size, 0, -1).reshape(at.kernel)
    axes, starts = range(2, 2 + len(at.kernel)), [0] * len(at.kernel)
    whole = op.slice(x, axes, starts, [-m or LAST for m in at.more])
    hit = op.reaches(whole, op.enlarge(y, factors))
    ranked = op.Mul(hit, op.constant(np.tile(places, at.counts)))
    highest = op.MaxPool(ranked, kernel_shape=list(at.kernel), strides=list(at.strides))
    first = op.reaches(ranked, op.enlarge(highest, factors))
    return op.pad(op.Mul(first, op.enlarge(g, factors)), (0, 0, *starts), (0, 0, *at.more))


def _by_indices(op: Step, g: Name, x: Name) -> Name:
    """The operator's second result numbers the elements over the whole operand."""
    outputs = op.forward.output
    if len(outputs) == 1:
        outputs.append("")
    outputs[1] = outputs[1] or op.tape.unique("indices")
    flat = op.ints([-1])
    zeros = op.Reshape(op.Mul(x, op.constant(0)), flat)
    places, values = op.Reshape(outputs[1], flat), op.Reshape(g, flat)
    return op.like(op.ScatterElements(zeros, places, values, axis=0, reduction="add"), x)


def _by_windows(op: Step, g: Name, x: Name) -> Name:
    """The same in any opset: a convolution lists the elements of each window, and its transpose brings the first largest one's
    gradient back."""
    kernel = tuple(op.call.attribute("kernel_shape"))
    at = windows(op, kernel)
    op.require(op.fixed(0)[1])
    channels, size = op.call.shape(0)[1], math.prod(kernel)
    each = op.constant(np.tile(np.eye(size).reshape(size, 1, *kernel), (channels, 1, *(1,) * len(kernel))))
    padded = op.pad(x, (0, 0, *at.begins), (0, 0, *at.after), op.lowest / 2)
    listed = op.Conv(padded, each, group=channels, strides=list(at.strides), dilations=list(at.dilations))
    largest = op.ArgMax(op.Reshape(listed, op.ints([0, channels, size, -1])), axis=2, keepdims=1)
    hit = op.where(op.Equal(largest, op.Reshape(op.ints(range(size)), op.ints([1, 1, size, 1]))))
    found = op.Mul(hit, op.Reshape(g, op.ints([0, channels, 1, -1])))
    return transposed(op, op.like(found, listed), each, at, channels, x, channels * size)


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
    if at.apart and op.fixed(0)[2:].all():
        return (op.pad(op.enlarge(share, (1, 1, *at.kernel)), [0] * call.rank(), (0, 0, *at.more)),)
    return (transposed(op, share, op.constant(np.ones((channels, 1, *at.kernel))), at, channels, x, channels),)


@vjp("GlobalAveragePool")
def global_average_pool(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.spread(op.Mul(g, op.share(y, x)), x),)


@vjp("GlobalMaxPool")
def global_max_pool(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.to_largest(g, y, x, range(2, op.call.rank())),)


@vjp("LpPool")
def lp_pool(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    at, p = windows(op, tuple(op.call.attribute("kernel_shape"))), int(op.call.attribute("p", 2))
    op.require(op.fixed(0)[1])
    channels = op.call.shape(0)[1]
    whole, slope = op.norm_slope(g, y, x, p)
    return (op.Mul(transposed(op, whole, op.constant(np.ones((channels, 1, *at.kernel))), at, channels, x, channels), slope),)


@vjp("GlobalLpPool")
def global_lp_pool(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.Mul(*op.norm_slope(g, y, x, int(op.call.attribute("p", 2)))),)
