"""Operators that only move elements: back to where they came from."""

import numpy as np

from onnxprune.gradient.registry import Gradients, vjp
from onnxprune.gradient.tape import LAST, Name, Step
from onnxprune.weights import Array


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(op: Step, g: Name, y: Name, x: Name, how: Name = "") -> Gradients:
    return (op.like(g, x),)


@vjp("Transpose")
def transpose(op: Step, g: Name, y: Name, x: Name) -> Gradients:
    perm = op.call.attribute("perm") or range(op.call.rank())[::-1]
    return (op.Transpose(g, perm=np.argsort(perm).tolist()),)


@vjp("Concat")
def concat(op: Step, g: Name, y: Name, *xs: Name) -> Gradients:
    """Along an axis of known sizes."""
    axis = op.call.axis()
    op.require(all(op.call.inputs[k] is not None and op.fixed(k)[axis] for k in range(len(xs))))
    ends = np.cumsum([op.call.shape(k)[axis] for k in range(len(xs))]).tolist()
    return [op.slice(g, [axis], [start], [end]) for start, end in zip([0, *ends], ends, strict=False)]


@vjp("Pad")
def pad(op: Step, g: Name, y: Name, x: Name, pads: Name = "", value: Name = "", axes: Name = "") -> Gradients:
    """With a constant. Negative padding cuts, which is undone by padding."""
    rank = op.call.rank()
    given = op.call.value(1) if pads else op.call.attribute("pads")
    op.require(op.call.attribute("mode", "constant") == "constant" and given is not None)
    where = list(op.call.axes(3, tuple(range(rank))) or ()) if axes else list(range(rank))
    flat = np.ravel(np.asarray(given)).astype(np.int64)
    op.require(len(flat) == 2 * len(where))
    amounts = np.zeros((2, rank), np.int64)
    amounts[:, where] = flat.reshape(2, -1)
    return (_moved(op, g, -amounts[0], -amounts[1]),)


@vjp("Slice")
def slice_(op: Step, g: Name, y: Name, x: Name, *how: Name) -> Gradients:
    """Forwards, along axes of known sizes. Between the elements that a step takes are zeros."""
    call, shape = op.call, op.call.shape(0)
    given: list[list[int] | None] = [call.attribute("starts"), call.attribute("ends")]
    steps = None
    if how:
        operands = {k: call.value(k) for k in range(1, 1 + len(how)) if call.node.input(k)}
        values = {k: np.ravel(v).astype(np.int64).tolist() for k, v in operands.items() if v is not None}
        op.require(len(values) == len(operands))
        given, steps = [values[1], values[2]], values.get(4)
    starts, ends = given
    axes = call.axes(3, tuple(range(len(starts or ()))))
    op.require(starts is not None and ends is not None and axes is not None)
    sizes, before, after = list(op.result), [0] * len(shape), [0] * len(shape)
    for axis, start, end, step in zip(axes or (), starts or (), ends or (), steps or [1] * len(shape), strict=False):
        op.require(op.fixed(0)[axis] and step > 0)
        before[axis], last, _ = slice(start, end).indices(shape[axis])
        after[axis] = shape[axis] - max(last, before[axis])
        if step > 1:
            sizes[axis] *= step
            after[axis] = shape[axis] - before[axis] - sizes[axis]
            g = _spaced(op, g, axis, step, sizes)
    return (_moved(op, g, np.array(before), np.array(after)),)


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
