"""Operators that only move elements: back to where they came from."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from onnx import TensorProto

from onnxprune.gradient.dense import along, chosen
from onnxprune.gradient.registry import Gradients, vjp
from onnxprune.gradient.tape import LAST, Name, Step
from onnxprune.shapes import ELEMENT_LIMIT
from onnxprune.weights import Array

_COMPUTED_SLICE = 10
"""The first opset in which ``Slice`` has operands."""

_INTEGER_EXTREMES = 12
"""The first opset in which ``Max`` and ``Min`` take integers; ``Pad`` has operands."""


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(op: Step, g: Name, y: Name, x: Name, how: Name = "") -> Gradients:
    return (op.like(g, x),)


@vjp("Transpose")
def transpose(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    perm = op.call.attribute("perm") or range(op.call.rank())[::-1]
    return (op.Transpose(g, perm=np.argsort(perm).tolist()),)


@vjp("Concat")
def concat(op: Step, g: Name, y: Name, *xs: Name) -> Gradients:
    axis = op.call.axis()
    if all(op.call.inputs[k] is not None and op.fixed(k)[axis] for k in range(len(xs))):
        ends = np.cumsum([op.call.shape(k)[axis] for k in range(len(xs))]).tolist()
        return [op.slice(g, [axis], [start], [end]) for start, end in zip([0, *ends], ends, strict=False)]
    op.require(op.tape.opset >= _COMPUTED_SLICE)
    places = [op.ints([0])]
    for x in xs:
        places.append(op.Add(places[-1], op.slice(op.Shape(x), [0], [axis], [axis + 1])))
    return [op.Slice(g, start, end, op.ints([axis])) for start, end in pairwise(places)]


@vjp("Expand")
def expand(op: Step, g: Name, y: Name, x: Name, shape: Name) -> Gradients:
    return (op.unbroadcast(g, 0),)


@vjp("Tile")
def tile(op: Step, g: Name, y: Name, x: Name, repeats: Name) -> Gradients:
    """An axis each for the repetitions and for what is repeated, and a sum over the former."""
    rank = op.call.rank()
    both = op.Concat(op.unsqueeze(repeats, [1]), op.unsqueeze(op.Shape(x), [1]), axis=1)
    apart = op.Reshape(g, op.Reshape(both, op.ints([-1])))
    return (op.sum(apart, range(0, 2 * rank, 2), keepdims=False),)


@vjp("DepthToSpace")
def depth_to_space(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    """``SpaceToDepth`` has the order of DCR; where channels come first, they are brought there after it."""
    block, channels = int(op.call.attribute("blocksize")), op.call.shape(0)[1]
    found = op.SpaceToDepth(g, blocksize=block)
    if op.call.attribute("mode", "DCR") == "DCR":
        return (found,)
    order = np.arange(channels).reshape(block * block, -1).T.ravel()
    return (op.Gather(found, op.ints(order.tolist()), axis=1),)


@vjp("SpaceToDepth")
def space_to_depth(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    return (op.DepthToSpace(g, blocksize=int(op.call.attribute("blocksize"))),)


@vjp("CenterCropPad")
def center_crop_pad(op: Step, g: Name, y: Name, x: Name, shape: Name) -> Gradients:
    """Cut or padded around the middle, half of it before, rounded towards nought."""
    more, fixed = np.subtract(op.result, op.call.shape(0)), op.fixed(0) & op.fixed_result()
    op.require(all(f or op.keeps(axis) for axis, f in enumerate(fixed)))
    before = np.trunc(more / 2).astype(np.int64)
    return (_moved(op, g, -before, before - more),)


@vjp("Pad")
def pad(op: Step, g: Name, y: Name, x: Name, pads: Name = "", value: Name = "", axes: Name = "") -> Gradients:
    """With a constant: cut; negative padding cuts, which is undone by padding. With elements: added up where they came from."""
    call, rank = op.call, op.call.rank()
    given, mode = op.known(1) if pads else call.attribute("pads"), str(call.attribute("mode", "constant"))
    if given is None:
        inside = _computed_inside(op, g, x, pads)
        op.require(mode == "constant" and not axes)
    else:
        amounts = _amounts(op, given, bool(axes))
        if mode != "constant":
            return (_folded(op, g, amounts, mode),)
        inside = _moved(op, g, -amounts[0], -amounts[1])
    if not value:
        return (inside,)
    everywhere = range(rank)
    to_value = op.Sub(op.sum(g, everywhere, keepdims=False), op.sum(inside, everywhere, keepdims=False))
    return inside, None, op.like(to_value, value)


def _amounts(op: Step, given: Array, some: bool) -> Array:
    """Padding (before and after, axes)."""
    rank = op.call.rank()
    where = list(op.call.axes(3, tuple(range(rank))) or ()) if some else list(range(rank))
    flat = np.ravel(np.asarray(given)).astype(np.int64)
    op.require(len(flat) == 2 * len(where))
    amounts = np.zeros((2, rank), np.int64)
    amounts[:, where] = flat.reshape(2, -1)
    return amounts


def _computed_inside(op: Step, g: Name, x: Name, pads: Name) -> Name:
    """Without padding that is computed, and never negative."""
    value, rank = op.call.value(1), op.call.rank()
    op.require(op.tape.opset >= _COMPUTED_SLICE and value is not None and value.size == 2 * rank and value.min() >= 0)
    starts = op.slice(op.Cast(pads, to=TensorProto.INT64), [0], [0], [rank])
    return op.Slice(g, starts, op.Add(starts, op.Shape(x)))


def _folded(op: Step, g: Name, amounts: Array, mode: str) -> Name:
    """What was padded with elements, added up at these."""
    op.require(amounts.min() >= 0)
    for axis, (before, after) in enumerate(amounts.T.tolist()):
        if before or after:
            op.require(op.fixed(0)[axis])
            size = op.call.shape(0)[axis]
            inside = op.slice(g, [axis], [before], [before + size])
            left = _border(op, g, axis, np.arange(-before, 0), mode)
            right = _border(op, g, axis, np.arange(size, size + after), mode)
            g = op.Sum(inside, *left, *right)
    return g


def _border(op: Step, g: Name, axis: int, places: Array, mode: str) -> list[Name]:
    """What one side's padding, at some ``places`` of the operand's axis, adds to it."""
    if not len(places):
        return []
    rank, size, before = op.call.rank(), op.call.shape(0)[axis], -min(0, int(places[0]))
    turn = max(1, 2 * (size - 1))
    came = {
        "edge": places.clip(0, size - 1),
        "reflect": np.minimum(places % turn, -places % turn),
        "wrap": places % size,
    }
    op.require(mode in came)
    low, high = int(came[mode].min()), int(came[mode].max())
    part = op.slice(g, [axis], [0], [before]) if before else op.slice(g, [axis], [-len(places)], [LAST])
    summed = along(op, part, axis, rank, chosen(came[mode] - low, high - low + 1))
    around = np.zeros((2, rank), np.int64)
    around[:, axis] = low, size - 1 - high
    return [op.pad(summed, around[0].tolist(), around[1].tolist())]


@vjp("Slice")
def slice_(op: Step, g: Name, y: Name, x: Name, *how: Name) -> Gradients:
    """Between the elements that a step takes are zeros; what was turned around is turned back."""
    call, shape = op.call, op.call.shape(0)
    starts, ends = (
        None if v is None else np.ravel(v).tolist()
        for v in ((op.known(1), op.known(2)) if how else (call.attribute("starts"), call.attribute("ends")))
    )
    found = call.axes(3, tuple(range(len(shape) if starts is None else len(starts))))
    given = op.known(4) if len(how) > 3 else np.ones(len(shape), np.int64)
    op.require(found is not None and given is not None)
    axes, steps = found or (), np.ravel(np.asarray(given)).tolist()
    parts = [*zip(axes, starts or (), ends or (), steps, strict=False)]
    if len(parts) < len(axes) or not all(
        op.fixed(0)[axis] or (start >= 0 and step == 1 and not 0 <= end <= ELEMENT_LIMIT) for axis, start, end, step in parts
    ):
        op.require(set(steps) <= {1})
        begin = how[0] if how else op.ints(starts or ())
        return (_computed_slice(op, g, y, x, begin, axes),)
    sizes, before, after = list(op.result), [0] * len(shape), [0] * len(shape)
    for axis, start, end, step in parts:
        if step < 0:
            taken = range(*slice(start, end, step).indices(shape[axis]))
            op.require(len(taken) > 0)
            g = op.slice(g, [axis], [-1], [-LAST], [-1])
            start, end, step = taken[-1], taken[0] + 1, -step
        before[axis], last, _ = slice(start, end).indices(shape[axis])
        after[axis] = shape[axis] - max(last, before[axis])
        if step > 1:
            sizes[axis] *= step
            after[axis] = shape[axis] - before[axis] - sizes[axis]
            g = _spaced(op, g, axis, step, sizes)
    return (_moved(op, g, np.array(before), np.array(after)),)


def _computed_slice(op: Step, g: Name, y: Name, x: Name, starts: Name, axes: Sequence[int]) -> Name:
    """Zeros around it, as many as the shapes tell. A start may count from the end, or be outside."""
    op.require(op.tape.opset >= _INTEGER_EXTREMES)
    sizes, zero = op.Gather(op.Shape(x), op.ints(axes)), op.ints([0])
    given = op.Cast(starts, to=TensorProto.INT64)
    from_front = op.Add(given, op.Where(op.Less(given, zero), sizes, zero))
    inside = op.Max(op.Min(from_front, sizes), zero)
    each = [op.slice(inside, [0], [axes.index(a)], [axes.index(a) + 1]) if a in axes else zero for a in range(op.call.rank())]
    before = op.Concat(*each, axis=0)
    after = op.Sub(op.Sub(op.Shape(x), before), op.Shape(y))
    return op.Pad(g, op.Concat(before, after, axis=0), op.constant(0))


def _moved(op: Step, value: Name, before: Array, after: Array) -> Name:
    """With so many zeros around it along each axis; where less than none, elements leave."""
    padded = op.pad(value, np.maximum(before, 0).tolist(), np.maximum(after, 0).tolist())
    starts, ends = np.maximum(-before, 0).tolist(), np.maximum(-after, 0).tolist()
    cut = [axis for axis, both in enumerate(zip(starts, ends, strict=True)) if any(both)]
    return op.slice(padded, cut, [starts[a] for a in cut], [-ends[a] if ends[a] else LAST for a in cut])


def _spaced(op: Step, value: Name, axis: int, step: int, sizes: list[int]) -> Name:
    """With zeros after each element along an axis; ``sizes``: afterwards."""
    rank = len(sizes)
    behind = [n if f else -1 for n, f in zip(sizes[axis + 1 :], op.fixed_result()[axis + 1 :], strict=True)]
    op.require(behind.count(-1) <= 1)
    zeros = [step - 1 if a == axis + 1 else 0 for a in range(rank + 1)]
    padded = op.pad(op.unsqueeze(value, [axis + 1]), [0] * (rank + 1), zeros)
    return op.Reshape(padded, op.ints([*(0 for _ in range(axis)), sizes[axis], *behind]))
