"""Operators that only move elements: back to where they came from."""

import numpy as np

from onnxprune.gradient.registry import Gradients, vjp
from onnxprune.gradient.tape import Name, Step


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
    restored = op.pad(g, np.maximum(-amounts[0], 0).tolist(), np.maximum(-amounts[1], 0).tolist())
    begins, ends = np.maximum(amounts, 0).tolist()
    cut = [axis for axis in range(rank) if begins[axis] or ends[axis]]
    last = np.iinfo(np.int64).max
    return (op.slice(restored, cut, [begins[a] for a in cut], [-ends[a] if ends[a] else last for a in cut]),)


@vjp("Slice")
def slice_(op: Step, g: Name, y: Name, x: Name, *how: Name) -> Gradients:
    """Of step 1, along axes of known sizes."""
    call, shape = op.call, op.call.shape(0)
    given: list[list[int] | None] = [call.attribute("starts"), call.attribute("ends")]
    steps = None
    if how:
        operands = {k: call.value(k) for k in range(1, 1 + len(how)) if call.node.input(k)}
        values = {k: np.ravel(v).astype(np.int64).tolist() for k, v in operands.items() if v is not None}
        op.require(len(values) == len(operands))
        given, steps = [values[1], values[2]], values.get(4)
    starts, ends = given
    op.require(starts is not None and ends is not None and (steps is None or all(s == 1 for s in steps)))
    axes = call.axes(3, tuple(range(len(starts or ()))))
    op.require(axes is not None)
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, start, end in zip(axes or (), starts or (), ends or (), strict=True):
        before[axis], last, _ = slice(start, end).indices(shape[axis])
        after[axis] = shape[axis] - max(last, before[axis])
        op.require(op.fixed(0)[axis])
    return (op.pad(g, before, after),)
