"""Operators that take elements by number, or put them there: what was taken from a place is added up there."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from onnxprune.gradient.registry import Gradients, vjp
from onnxprune.gradient.tape import Name, Step

_SCATTERS_SUMS = 16
"""The first opset in which elements can be added up where they are scattered to."""


@vjp("Gather")
def gather(op: Step, g: Name, y: Name, x: Name, indices: Name) -> Gradients:
    return (_added(op, g, x, indices, op.call.axis(), op.call.rank(1)),)


@vjp("Compress")
def compress(op: Step, g: Name, y: Name, x: Name, condition: Name) -> Gradients:
    """Along an axis, or over all elements in their order."""
    places = op.Reshape(op.NonZero(condition), op.ints([-1]))
    if op.call.attribute("axis") is not None:
        return (_added(op, g, x, places, op.call.axis(), 1),)
    op.require(op.tape.opset >= _SCATTERS_SUMS)
    flat = op.Reshape(op.zeros(x), op.ints([-1]))
    return (op.like(op.ScatterElements(flat, places, g, axis=0), x),)


def _added(op: Step, g: Name, x: Name, indices: Name, axis: int, rank: int) -> Name:
    """Add up what was taken along an axis, where ``indices`` of a ``rank`` have taken its place.

    Where sums can't be scattered (before opset 16; 16-bit floats in onnxruntime), a matrix product with 1 where an element was
    taken.
    """
    whole = op.call.rank()
    first = [*range(axis, axis + rank), *range(axis), *range(axis + rank, whole - 1 + rank)]
    back = np.argsort([axis, *range(axis), *range(axis + 1, whole)]).tolist()
    taken = op.turn(g, first)
    if op.tape.opset >= _SCATTERS_SUMS and op.elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE):
        zeros = op.turn(op.zeros(x), [axis, *range(axis), *range(axis + 1, whole)])
        return op.turn(op.ScatterND(zeros, op.unsqueeze(indices, [rank]), taken, reduction="add"), back)
    op.require(op.fixed(0)[axis])
    size, rest = op.call.shape(0)[axis], np.delete(op.call.shape(0), axis).tolist()
    open_ends = [k for k, f in enumerate(np.delete(op.fixed(0), axis)) if not f]
    op.require(len(open_ends) <= 1 and 0 not in rest)
    shape = [-1 if k in open_ends else n for k, n in enumerate(rest)]
    flat = op.Reshape(indices, op.ints([1, -1]))
    positive = op.Add(flat, op.Mul(op.Cast(op.Less(op.typed(flat), op.constant(0)), to=TensorProto.INT64), op.ints([size])))
    where = op.where(op.Equal(op.Reshape(op.ints(range(size)), op.ints([size, 1])), positive))
    counted = op.Cast(op.Size(indices), to=TensorProto.INT64)
    rows = op.Reshape(taken, op.Concat(op.unsqueeze(counted, [0]), op.ints([-1]), axis=0))
    return op.turn(op.Reshape(op.MatMul(where, rows), op.ints([size, *shape])), back)


@vjp("GatherElements")
def gather_elements(op: Step, g: Name, y: Name, x: Name, indices: Name) -> Gradients:
    op.require(op.tape.opset >= _SCATTERS_SUMS)
    return (op.ScatterElements(op.zeros(x), indices, g, axis=op.call.axis(), reduction="add"),)


@vjp("GatherND")
def gather_nd(op: Step, g: Name, y: Name, x: Name, indices: Name) -> Gradients:
    """The numbers of the axes that are gone through together come before the others."""
    op.require(op.tape.opset >= _SCATTERS_SUMS)
    together, rank = int(op.call.attribute("batch_dims", 0)), op.call.rank(1)
    if together:
        one = op.slice(indices, [rank - 1], [0], [1])
        numbers = []
        for axis in range(together):
            size = op.Squeeze(op.slice(op.Shape(indices), [0], [axis], [axis + 1]))
            row = op.Range(op.stored(np.array(0)), size, op.stored(np.array(1)))
            shape = [1] * rank
            shape[axis] = -1
            numbers.append(op.Expand(op.Reshape(row, op.ints(shape)), op.Shape(one)))
        indices = op.Concat(*numbers, indices, axis=rank - 1)
    return (op.ScatterND(op.zeros(x), indices, g, reduction="add"),)


@vjp("ScatterElements")
def scatter_elements(op: Step, g: Name, y: Name, x: Name, indices: Name, updates: Name) -> Gradients:
    """What is replaced has no part in the result."""
    axis, how = op.call.axis(), op.call.attribute("reduction", "none")
    op.require(how in ("none", "add"))
    kept = op.ScatterElements(g, indices, op.zeros(updates), axis=axis) if how == "none" else g
    return kept, None, op.GatherElements(g, indices, axis=axis)


@vjp("ScatterND")
def scatter_nd(op: Step, g: Name, y: Name, x: Name, indices: Name, updates: Name) -> Gradients:
    how = op.call.attribute("reduction", "none")
    op.require(how in ("none", "add"))
    kept = op.ScatterND(g, indices, op.zeros(updates)) if how == "none" else g
    return kept, None, op.GatherND(g, indices)


@vjp("TopK", several=True)
def top_k(op: Step, gs: Sequence[Name | None], ys: Sequence[Name], x: Name, *k: Name) -> Gradients:
    """Of the values; the second result is integers."""
    op.require(gs[0] is not None and op.tape.opset >= _SCATTERS_SUMS)
    return (op.ScatterElements(op.zeros(x), ys[1], gs[0] or "", axis=op.call.axis(default=-1)),)


@vjp("Split", several=True)
def split(op: Step, gs: Sequence[Name | None], ys: Sequence[Name], x: Name, sizes: Name = "") -> Gradients:
    parts = [op.zeros(y) if g is None else g for g, y in zip(gs, ys, strict=True)]
    return (op.Concat(*parts, axis=op.call.axis()),)


@vjp("ReverseSequence")
def reverse_sequence(op: Step, g: Name, y: Name, x: Name, lengths: Name) -> Gradients:
    call = op.call
    return (op.ReverseSequence(g, lengths, batch_axis=call.axis("batch_axis", 1), time_axis=call.axis("time_axis", 0)),)


@vjp("CumSum")
def cum_sum(op: Step, g: Name, y: Name, x: Name, axis: Name) -> Gradients:
    """The sum of what comes after."""
    exclusive, reverse = (int(op.call.attribute(name, 0)) for name in ("exclusive", "reverse"))
    return (op.CumSum(g, axis, exclusive=exclusive, reverse=1 - reverse),)


@vjp("Trilu")
def trilu(op: Step, g: Name, y: Name, x: Name, *k: Name) -> Gradients:
    return (op.Trilu(g, *k, upper=int(op.call.attribute("upper", 1))),)
