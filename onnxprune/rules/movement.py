"""Operators that only move elements. They are run on labels; a row says what hard-codes a size and how to correct it."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.rules.notation import Call, Signature, parse
from onnxprune.rules.registry import ALL, Kept, Kind, Resize, add
from onnxprune.shapes import Shape

Shapes = tuple[Shape | None, ...]
_NOTHING = Resize({}, {})


def _operand_or_attribute(call: Call, index: int, name: str, values: list[int]) -> Resize:
    """New sizes go where the old ones are: an operand in new opsets, an attribute in old ones."""
    if call.node.input(index):
        return Resize({index: np.array(values, np.int64)}, {})
    return Resize({}, {name: values} if list(call.attribute(name, ())) != values else {})


def _reshape(call: Call, inputs: Shapes, outputs: Shapes, kept: Kept) -> Resize:
    """0 (as in the input) and -1 (whatever is left) stay if they still mean the right size."""
    target, old, new = call.value(1), inputs[0] or (), outputs[0] or ()
    if target is None:
        return _NOTHING
    copies = not call.attribute("allowzero", 0)
    wanted = [
        -1 if t == -1 else 0 if t == 0 and copies and i < len(old) and old[i] == size else size
        for i, (t, size) in enumerate(zip(target.tolist(), new, strict=True))
    ]
    return Resize({1: np.array(wanted, np.int64)}, {})


def _split(call: Call, inputs: Shapes, outputs: Shapes, kept: Kept) -> Resize:
    axis = call.axis()
    sizes = [s[axis] for s in outputs if s is not None]
    given = call.value(1) if call.node.input(1) else call.attribute("split")
    count = len(call.node.outputs)
    total = sum(sizes)
    part = -(-total // count)
    even = [min(part, total - part * i) for i in range(count)]
    if given is None and sizes == even:
        return _NOTHING
    if call.version < 13:
        return Resize({}, {"split": sizes} if list(given or ()) != sizes else {})
    return Resize({1: np.array(sizes, np.int64)}, {"num_outputs": None} if given is None else {})


def _slice(call: Call, inputs: Shapes, outputs: Shapes, kept: Kept) -> Resize:
    """A start or an end inside the axis moves to the same channel's new place. Strides are left as they are."""
    if call.version < 10:
        starts, ends = list(call.attribute("starts")), list(call.attribute("ends"))
        axes = list(call.attribute("axes", range(len(starts))))
        steps = [1] * len(starts)
    else:
        given = [call.value(k) for k in range(1, 5)]
        if given[0] is None or given[1] is None:
            return _NOTHING
        starts, ends = given[0].tolist(), given[1].tolist()
        axes = list(range(len(starts))) if given[2] is None else given[2].tolist()
        steps = [1] * len(starts) if given[3] is None else given[3].tolist()
    for i, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        size = call.shape(0)[axis]
        stays = kept("input", 0, axis % call.rank())
        if stays.all() or step != 1:
            continue
        for bounds in (starts, ends):
            place = bounds[i] + size if bounds[i] < 0 else bounds[i]
            if 0 < place < size:
                bounds[i] = int(stays[:place].sum())
    if call.version < 10:
        return Resize({}, {"starts": starts, "ends": ends})
    return Resize({1: np.array(starts, np.int64), 2: np.array(ends, np.int64)}, {})


def _gather(call: Call, inputs: Shapes, outputs: Shapes, kept: Kept) -> Resize:
    """Constant indices follow their channels to the new places, and go where the channel goes."""
    indices, axis = call.value(1), call.axis()
    stays = kept("input", 0, axis)
    if indices is None or stays.all():
        return _NOTHING
    place = np.cumsum(stays) - 1
    picked = np.where(indices < 0, indices + call.shape(0)[axis], indices)
    for k in range(indices.ndim):
        picked = np.compress(kept("output", 0, axis + k), picked, k)
    return Resize({1: place[picked].astype(indices.dtype)}, {})


def _pad(call: Call, inputs: Shapes, outputs: Shapes, kept: Kept) -> Resize:
    """Widths shrink by the removed channels among the padding; negative widths crop."""
    pads = call.value(1) if call.node.input(1) else np.array(call.attribute("pads", ()))
    if pads is None:
        return _NOTHING
    given = call.value(3) if call.node.input(3) else None
    axes = range(call.rank()) if given is None else [int(a) % call.rank() for a in given]
    half, wanted = len(pads) // 2, [int(p) for p in pads]
    for i, axis in enumerate(axes):
        before, after = int(pads[i]), int(pads[half + i])
        source, result = kept("input", 0, axis), kept("output", 0, axis)
        size = len(source)
        wanted[i] = int(result[:before].sum()) if before >= 0 else -int(source[:-before].sum())
        wanted[half + i] = int(result[size + before :].sum()) if after >= 0 else -int(source[size + after :].sum())
    return _operand_or_attribute(call, 1, "pads", wanted)


def _expand(call: Call, inputs: Shapes, outputs: Shapes, kept: Kept) -> Resize:
    target, new = call.value(1), outputs[0] or ()
    if target is None:
        return _NOTHING
    tail = new[len(new) - len(target) :]
    return Resize({1: np.array([t if t == 1 else size for t, size in zip(target.tolist(), tail, strict=True)], np.int64)}, {})


def _tile(call: Call, inputs: Shapes, outputs: Shapes, kept: Kept) -> Resize:
    old, new = inputs[0] or (), outputs[0] or ()
    return Resize({1: np.array([o // i for i, o in zip(old, new, strict=True)], np.int64)}, {})


def _constant_of_shape(call: Call, inputs: Shapes, outputs: Shapes, kept: Kept) -> Resize:
    return Resize({0: np.array(outputs[0] or (), np.int64)}, {})


def _embedding(call: Call) -> Signature | None:
    """Gather by indices known only at run time: rows stay, the other axes pass."""
    axis = call.axis()
    data = [f"a{i}" for i in range(call.rank())]
    indices = [f"i{k}" for k in range(call.rank(1))]
    held = [f"!{c}" if i == axis else c for i, c in enumerate(data)]
    return parse(f"{' '.join(held)}, {' '.join(indices)} -> {' '.join(data[:axis] + indices + data[axis + 1 :])}")


def _row(*ops: str, **options: Any) -> None:
    add(*ops, kind=Kind.MOVEMENT, signature="(run on labels)", times=(0,), **options)


_row("Transpose", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth")
_row("CenterCropPad", fills=True)
_row("Concat", data=ALL)
_row("Reshape", resize=_reshape)
_row("Split", resize=_split)
_row("Slice", resize=_slice)
_row("Gather", resize=_gather, build=_embedding)
_row("Pad", resize=_pad, fills=True)
_row("Expand", resize=_expand, fills=True)
_row("Tile", resize=_tile, fills=True)
_row("ConstantOfShape", data=(), resize=_constant_of_shape, fills=True)
