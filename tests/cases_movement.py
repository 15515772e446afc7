"""Operators that only move elements, of activations and of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cases_net import Case, Net, frozen, row
from onnx import numpy_helper

Build = Callable[[Net, str], Any]
BIG = 2**63 - 1


def _via(op: str, *operands: Any, **attributes: Any) -> Build:
    """The operator on the eight channels."""
    return lambda g, x: getattr(g, op)(x, *operands, **attributes)


def _weight(op: str, shape: tuple[int, ...], *operands: Any, **attributes: Any) -> Build:
    """The operator on a Conv's or a MatMul's weight."""

    def build(g: Net, x: str) -> str:
        moved = getattr(g, op)(g.w(*shape), *operands, **attributes)
        return g.MatMul(x, moved) if g.start in ("rows", "tokens") else g.Conv(x, moved)

    return build


CASES: list[Case] = []

# Transpose, Flatten, Squeeze, Unsqueeze ------------------------------------------------------------------------------------
CASES += [
    *row("Transpose", (7, 13, 21), "NHWC", _via("Transpose", perm=[0, 2, 3, 1]), end="dense", zero=True),
    *row(
        "Transpose", 13, "there and back", lambda g, x: g.Transpose(g.Relu(g.Transpose(x, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2])
    ),
    *row("Transpose", 13, "default", lambda g, x: g.MatMul(g.w(3, 8), g.Transpose(x)), start="rows", end="none"),
    *row("Transpose", 13, "default of rank 3", lambda g, x: g.Transpose(g.Transpose(x)), start="tokens"),
    *row("Transpose", 13, "weight", _weight("Transpose", (6, 8), perm=[1, 0]), start="tokens", zero=True),
    *row("Transpose", 13, "kernel", _weight("Transpose", (1, 1, 8, 6), perm=[3, 2, 0, 1]), zero=True),
    *row("Flatten", (7, 9, 13), "", _via("Flatten"), end="dense"),
    *row("Flatten", 13, "axis 0", _via("Flatten", axis=0)),
    *row("Flatten", 13, "axis -3", _via("Flatten", axis=-3)),
    *row("Flatten", 13, "axis 2 and back", lambda g, x: g.Reshape(g.Flatten(x, axis=2), [2, -1, 4, 6])),
    *row("Flatten", 13, "axis -1 and back", lambda g, x: g.Reshape(g.Flatten(x, axis=-1), [2, 8, 4, 6])),
    *row("Flatten", 13, "axis 4 and back", lambda g, x: g.Reshape(g.Flatten(x, axis=4), [2, 8, 4, 6])),
    *frozen("Flatten", 13, "axis 2", _via("Flatten", axis=2), blame="graph output"),
    *row("Flatten", 13, "pooled", lambda g, x: g.Flatten(g.GlobalAveragePool(x))),
    *row("Flatten", 13, "weight", _weight("Flatten", (2, 4, 6), axis=2), start="rows", zero=True),
    *row("Squeeze", 7, "attribute", lambda g, x: g.Squeeze(g.GlobalAveragePool(x), axes=[2, 3]), zero=True),
    *row("Squeeze", 11, "negative attribute", lambda g, x: g.Squeeze(g.GlobalAveragePool(x), axes=[-1]), zero=True),
    *row("Squeeze", (13, 21), "input", lambda g, x: g.Squeeze(g.GlobalAveragePool(x), [2, 3]), zero=True),
    *row("Squeeze", 13, "negative input", lambda g, x: g.Squeeze(g.GlobalAveragePool(x), [-1]), zero=True),
    *row("Squeeze", (11, 13), "all", lambda g, x: g.Squeeze(g.GlobalAveragePool(x)), zero=True),
    *row("Squeeze", 13, "weight", _weight("Squeeze", (6, 8, 1, 1, 1), [2]), zero=True),
    *row("Unsqueeze", 7, "attribute", _via("Unsqueeze", axes=[2]), start="line", zero=True),
    *row("Unsqueeze", 11, "negative attribute", _via("Unsqueeze", axes=[-1]), start="line", zero=True),
    *row("Unsqueeze", (13, 21), "input", _via("Unsqueeze", [2, 4]), start="line", zero=True),
    *row("Unsqueeze", 13, "and back", lambda g, x: g.Squeeze(g.Unsqueeze(x, [0, -4]), [0, 2])),
    *row("Unsqueeze", 13, "bias", lambda g, x: g.Add(x, g.Unsqueeze(g.w(8), [0, 2, 3])), zero=True),
    *row("Unsqueeze", 13, "weight", _weight("Unsqueeze", (6, 8), [2, 3]), zero=True),
]

# Reshape -------------------------------------------------------------------------------------------------------------------
CASES += [
    *row("Reshape", (7, 13, 14, 21), "merge positions", _via("Reshape", [2, 8, 24]), zero=True),
    *row("Reshape", 13, "zeros", _via("Reshape", [0, 0, -1]), zero=True),
    *row("Reshape", 13, "rest is channels", _via("Reshape", [2, -1, 24]), zero=True),
    *row("Reshape", 13, "zero and rest", _via("Reshape", [0, -1, 24]), zero=True),
    *row("Reshape", 14, "allowzero", _via("Reshape", [2, 8, 24], allowzero=1), zero=True),
    *row("Reshape", 13, "flatten", _via("Reshape", [2, 192])),
    *row("Reshape", 13, "flatten the rest", _via("Reshape", [2, -1])),
    *row(
        "Reshape", 13, "split positions", _via("Reshape", [2, 8, 2, 2, 2, 3]), end="none", expect="frozen", blame="graph output"
    ),
    *row("Reshape", 13, "ones", _via("Reshape", [1, 2, 5, 1, 8]), start="tokens", end="dense"),
    *row("Reshape", 13, "merge tokens", _via("Reshape", [10, 8]), start="tokens", zero=True),
    *row("Reshape", 13, "merge tokens, the rest", _via("Reshape", [-1, 8]), start="tokens", zero=True),
    *row("Reshape", 13, "split and merge", lambda g, x: g.Reshape(g.Relu(g.Reshape(x, [2, 2, 4, 4, 6])), [2, 8, 4, 6])),
    *row("Reshape", 13, "channel shuffle", lambda g, x: _shuffle(g, x)),
    *row("Reshape", 13, "channel shuffle of 4", lambda g, x: _shuffle(g, x, groups=4)),
    *row("Reshape", 13, "attention", lambda g, x: _attention(g, x), start="tokens"),
    *row("Reshape", 13, "attention packed", lambda g, x: _attention(g, x, packed=True), start="tokens"),
    *row("Reshape", 13, "flatten tokens", _via("Reshape", [2, -1]), start="tokens"),
    *row("Reshape", 13, "constant node", lambda g, x: g.Reshape(x, g.constant(np.array([2, 8, 24]))), zero=True),
    *row("Reshape", 13, "dynamic", lambda g, x: g.Reshape(x, g.Concat(g.Gather(g.Shape(x), [0]), [8, 24], axis=0)), dynamic=True),
    *row(
        "Reshape", 13, "dynamic rest", lambda g, x: g.Reshape(x, g.Concat(g.Gather(g.Shape(x), [0]), [-1], axis=0)), dynamic=True
    ),
    *row(
        "Reshape",
        13,
        "size from shape",
        lambda g, x: g.Reshape(x, g.Concat(g.Slice(g.Shape(x), [0], [2]), [-1], axis=0)),
        dynamic=True,
    ),
    *row("Reshape", 13, "weight", _weight("Reshape", (6, 8), [6, 8, 1, 1]), zero=True),
    *frozen("Reshape", 13, "target is an input", lambda g, x: g.Reshape(x, g.input(np.array([2, 8, 24])))),
]

# Concat --------------------------------------------------------------------------------------------------------------------
CASES += [
    *row("Concat", (7, 11, 13), "channels", lambda g, x: g.Concat(x, g.another(), axis=1), zero=True),
    *row("Concat", 13, "negative axis", lambda g, x: g.Concat(x, g.another(), axis=-3), zero=True),
    *row("Concat", 13, "itself", lambda g, x: g.Concat(x, x, axis=1), zero=True),
    *row("Concat", 13, "three", lambda g, x: g.Concat(x, g.Relu(x), g.another(), axis=1), zero=True),
    *row("Concat", 13, "one", _via("Concat", axis=1), zero=True),
    *row("Concat", 13, "positions", lambda g, x: g.Concat(x, g.another(), axis=3), zero=True),
    *row("Concat", 13, "batch", lambda g, x: g.Concat(x, g.another(), axis=0), zero=True),
    *row("Concat", 13, "with a weight", lambda g, x: g.Concat(x, g.w(2, 3, 4, 6), axis=1), zero=True),
    *row("Concat", 13, "with the input", lambda g, x: g.Concat(x, g.inputs[0].name, axis=1)),
    *row("Concat", 13, "class token", lambda g, x: g.Concat(g.w(2, 1, 8), x, axis=1), start="tokens", zero=True),
    *row("Concat", 13, "then grouped", lambda g, x: g.Conv(g.Concat(x, g.another(), axis=1), g.w(8, 8, 1, 1), g.w(8), group=2)),
    *row("Concat", 13, "weight", lambda g, x: g.Conv(x, g.Concat(g.w(2, 8, 1, 1), g.w(4, 8, 1, 1), axis=0)), zero=True),
    *row(
        "Concat",
        13,
        "weight over consumer",
        lambda g, x: g.Conv(x, g.Concat(g.w(6, 3, 1, 1), g.w(6, 5, 1, 1), axis=1)),
        zero=True,
    ),
    *row("Concat", 13, "bias", lambda g, x: g.Conv(x, g.w(6, 8, 1, 1), g.Concat(g.w(2), g.w(4), axis=0)), zero=True),
]

# Split ---------------------------------------------------------------------------------------------------------------------
CASES += [
    *row("Split", (7, 11), "attribute", _via("Split", outputs=2, axis=1, split=[3, 5])),
    *row("Split", (7, 11, 13), "even", _via("Split", outputs=2, axis=1)),
    *row("Split", (13, 18), "input", _via("Split", [3, 2, 3], outputs=3, axis=1)),
    *row("Split", 13, "part of one", _via("Split", [3, 1, 4], outputs=3, axis=1)),
    *row("Split", 18, "num_outputs", _via("Split", outputs=2, axis=1, num_outputs=2)),
    *row("Split", 18, "num_outputs uneven", _via("Split", outputs=3, axis=-3, num_outputs=3)),
    *row("Split", 13, "positions", _via("Split", [1, 3], outputs=2, axis=2)),
    *row("Split", 18, "positions num_outputs", _via("Split", outputs=2, axis=3, num_outputs=2)),
    *row("Split", 13, "gated", lambda g, x: _gated(g, *g.Split(x, outputs=2, axis=1)), zero=True),
    *row("Split", 18, "gated num_outputs", lambda g, x: _gated(g, *g.Split(x, outputs=2, axis=1, num_outputs=2)), zero=True),
    *row("Split", 11, "gated attribute", lambda g, x: _gated(g, *g.Split(x, outputs=2, axis=-1, split=[4, 4])), start="tokens"),
    *row("Split", 13, "swapped", lambda g, x: g.Concat(*g.Split(x, [3, 5], outputs=2, axis=1)[::-1], axis=1), zero=True),
    *row("Split", 13, "half goes on", lambda g, x: _half(g, *g.Split(x, [4, 4], outputs=2, axis=1)), zero=True),
    *row("Split", 13, "weight", lambda g, x: _pair(g, x, *g.Split(g.w(6, 8, 1, 1), [2, 4], outputs=2, axis=0))),
    *row("Split", 13, "sizes used twice", lambda g, x: _twice(g, x)),
]

# Slice ---------------------------------------------------------------------------------------------------------------------
# fmt: off
for _note, _starts, _ends, _steps in (
    ("middle",         [2],    [6],         None),
    ("from",           [3],    [BIG],       None),
    ("to",             [0],    [5],         None),
    ("negative",       [-6],   [-1],        None),
    ("beyond",         [-100], [100],       None),
    ("whole negative", [-8],   [8],         None),
    ("int32 max",      [1],    [2**31 - 1], [1]),
    ("every second",   [0],    [BIG],       [2]),
    ("odd ones",       [1],    [8],         [2]),
    ("every third",    [1],    [BIG],       [3]),
    ("backwards",      [-1],   [-BIG],      [-1]),
    ("backwards by 2", [7],    [0],         [-2]),
):
    CASES += row("Slice", 13, _note, _via("Slice", _starts, _ends, [1], *([_steps] if _steps else [])), zero=True)
# fmt: on
CASES += [
    *row("Slice", (7, 9), "attributes", _via("Slice", axes=[1], starts=[2], ends=[7]), zero=True),
    *row("Slice", 9, "negative attributes", _via("Slice", axes=[1], starts=[-5], ends=[BIG]), zero=True),
    *row("Slice", 9, "no axes", _via("Slice", starts=[0, 1], ends=[BIG, -1]), zero=True),
    *row("Slice", 9, "positions", _via("Slice", axes=[2, 3], starts=[1, -5], ends=[3, -1]), zero=True),
    *row("Slice", (10, 11), "inputs", _via("Slice", [2], [7], [1]), zero=True),
    *row("Slice", 13, "constant nodes", lambda g, x: g.Slice(x, *[g.constant(np.array([k])) for k in (2, 7, 1)]), zero=True),
    *row("Slice", 13, "no axes given", _via("Slice", [0, 1], [BIG, -1]), zero=True),
    *row("Slice", 13, "negative axes", _via("Slice", [1, 2], [3, 7], [-1, -3]), zero=True),
    *row("Slice", 13, "int32", _via("Slice", *[np.array([k], np.int32) for k in (1, -1, 1)]), zero=True),
    *row("Slice", 13, "int32 of two axes", _via("Slice", *[np.array(k, np.int32) for k in ([1, 0], [7, 3], [1, 2])])),
    *row("Slice", 13, "positions", _via("Slice", [0, 0], [BIG, BIG], [2, 3], [2, 2]), zero=True),
    *row("Slice", 13, "focus", lambda g, x: _focus(g, x)),
    *row("Slice", 13, "rotary halves", lambda g, x: _rotary(g, x), start="tokens"),
    *row("Slice", 13, "bounds used twice", lambda g, x: _bounds_twice(g, x)),
    *row("Slice", 13, "weight", _weight("Slice", (6, 8, 1, 1), [1], [-1], [0]), zero=True),
    *row("Slice", 13, "weight over consumer", _weight("Slice", (12, 6), [-10], [-2], [0]), start="tokens", zero=True),
    *frozen("Slice", 13, "start is an input", lambda g, x: g.Slice(x, g.input(np.array([2])), [8], [1])),
]

# Gather --------------------------------------------------------------------------------------------------------------------
CASES += [
    *row("Gather", (7, 11, 13), "several", _via("Gather", [5, 1, 3], axis=1), zero=True),
    *row("Gather", 13, "negative", _via("Gather", [-1, 2, -8], axis=-3), zero=True),
    *row("Gather", 13, "permutation", _via("Gather", [4, 0, 5, 1, 6, 2, 7, 3], axis=1), zero=True),
    *row("Gather", 13, "repeated", _via("Gather", [0, 0, 1, 7, 7, 7], axis=1), zero=True),
    *row("Gather", 13, "int32", _via("Gather", np.array([6, 2, 3], np.int32), axis=1), zero=True),
    *row("Gather", 13, "one channel, others read too", lambda g, x: (g.Gather(x, -5, axis=1), g.Relu(x))),
    *row("Gather", 13, "class token", _via("Gather", 0, axis=1), start="tokens", zero=True),
    *row("Gather", 13, "positions", _via("Gather", [2, 0], axis=3), zero=True),
    *row("Gather", 13, "table of positions", _via("Gather", np.array([[0, 1], [3, 2]]), axis=2), zero=True),
    *row("Gather", 13, "table of channels", _via("Gather", np.array([[0, 1, 2], [4, 5, 6]]), axis=1)),
    *row("Gather", 13, "positions at run time", lambda g, x: g.Gather(x, g.input(np.array([2, 0])), axis=2), zero=True),
    *row(
        "Gather",
        13,
        "embedding",
        lambda g, x: g.Add(x, g.Gather(g.w(9, 8), g.input(np.array([[1, 8, 0, 3, 3]])))),
        start="tokens",
    ),
    *row("Gather", 13, "weight", _weight("Gather", (9, 8, 1, 1), [8, 0, 3], axis=0), zero=True),
    *row("Gather", 13, "weight over consumer", _weight("Gather", (9, 6), [8, 0, 3, 1, 2, 4, 7, 5]), start="tokens", zero=True),
    *frozen("Gather", 13, "channels at run time", lambda g, x: g.Gather(x, g.input(np.array([2, 0])), axis=1)),
]

# Pad -----------------------------------------------------------------------------------------------------------------------
AROUND, BEHIND, BEFORE = [0, 0, 1, 2, 0, 0, 0, 1], [0, 0, 0, 0, 0, 3, 0, 0], [0, 2, 0, 0, 0, 0, 0, 0]
CROP, BOTH, SHIFT = [0, -2, 0, -1, 0, -1, -1, 0], [0, 2, 1, 0, 0, 1, 0, 1], [0, -3, 0, 0, 0, 3, 0, 0]
CASES += [
    *row("Pad", 7, "attributes", _via("Pad", pads=AROUND), zero=True),
    *frozen("Pad", 7, "attributes, value", _via("Pad", pads=AROUND, value=0.5)),
    *row("Pad", 7, "attributes, channels", _via("Pad", pads=BEHIND), zero=True),
    *row("Pad", (11, 13, 18, 21), "positions", _via("Pad", AROUND), zero=True),
    *row("Pad", 13, "value", _via("Pad", AROUND, 0.5), zero=False),
    *row("Pad", 13, "value zero", _via("Pad", AROUND, 0.0), zero=True),
    *frozen("Pad", 13, "value is an input", lambda g, x: g.Pad(x, AROUND, g.input(np.array(0.5, np.float32)))),
    *row("Pad", (11, 13), "channels behind", _via("Pad", BEHIND), zero=True),
    *row("Pad", 13, "channels before", _via("Pad", BEFORE), zero=True),
    *row("Pad", 13, "channels on both sides", _via("Pad", BOTH), zero=True),
    *row("Pad", 13, "channels, value", _via("Pad", BOTH, 0.5)),
    *frozen("Pad", 13, "crop", _via("Pad", CROP)),  # ONNX's evaluator, which moves the labels, can't crop
    *frozen("Pad", 13, "shift", _via("Pad", SHIFT)),
    *row("Pad", 13, "shortcut", lambda g, x: g.Add(g.Pad(x, BOTH), g.Conv(x, g.w(11, 8, 1, 1), g.w(11), pads=[1, 0, 0, 1]))),
    *row("Pad", 13, "reflect", _via("Pad", AROUND, mode="reflect"), zero=True),
    *row("Pad", 13, "edge", _via("Pad", AROUND, mode="edge"), zero=True),
    *row("Pad", 19, "wrap", _via("Pad", AROUND, mode="wrap"), zero=True),
    *row("Pad", 13, "reflect channels", _via("Pad", BEHIND, mode="reflect"), zero=True),
    *row("Pad", 13, "edge channels", _via("Pad", BEFORE, mode="edge"), zero=True),
    *row("Pad", 18, "axes", _via("Pad", [1, 2, 0, 1], None, [2, 3]), zero=True),
    *row("Pad", 18, "channel axis", _via("Pad", [1, 2], 0.0, [1]), zero=True),
    *row("Pad", 18, "negative axis", _via("Pad", [1, 2], None, [-3]), zero=True),
    *frozen("Pad", 18, "crop", _via("Pad", [-1, 2], None, [-3])),
    *frozen("Pad", 13, "width is an input", lambda g, x: g.Pad(x, g.input(np.array(AROUND)))),
]

# Expand, Tile, ConstantOfShape -----------------------------------------------------------------------------------------------
CASES += [
    *row("Expand", (8, 13), "pooled", lambda g, x: g.Expand(g.GlobalAveragePool(x), [2, 8, 4, 6]), zero=True),
    *row("Expand", 13, "ones", lambda g, x: g.Expand(g.GlobalAveragePool(x), [1, 1, 4, 6]), zero=True),
    *row("Expand", 13, "shorter", lambda g, x: g.Expand(g.GlobalAveragePool(x), [4, 6]), zero=True),
    *row("Expand", 13, "like", lambda g, x: g.Expand(g.GlobalAveragePool(x), g.Shape(x)), zero=True),
    *row("Expand", 13, "like, dynamic", lambda g, x: g.Expand(g.GlobalAveragePool(x), g.Shape(x)), zero=True, dynamic=True),
    *row("Expand", 13, "higher rank", lambda g, x: g.ReduceSum(g.Expand(x, [3, 2, 8, 4, 6]), [0], keepdims=0), zero=True),
    *row("Expand", 13, "weight", lambda g, x: g.Add(x, g.Expand(g.w(8, 1, 1), [2, 8, 4, 6])), zero=True),
    *row("Expand", 13, "class token", lambda g, x: g.Concat(g.Expand(g.w(1, 1, 8), [2, 1, 8]), x, axis=1), start="tokens"),
    *row("Expand", 13, "makes channels", lambda g, x: g.Mul(x, g.Expand(g.w(1, 4, 6), [8, 4, 6])), zero=True),
    *row("Expand", 13, "makes channels alone", lambda g, x: (g.Expand(g.ReduceMax(x, axes=[1]), [2, 5, 4, 6]), g.another())),
    *row("Tile", (7, 13), "positions", _via("Tile", [1, 1, 2, 3]), zero=True),
    *row("Tile", 13, "channels", _via("Tile", [1, 2, 1, 1]), zero=True),
    *row("Tile", 13, "pooled", lambda g, x: g.Mul(x, g.Tile(g.GlobalAveragePool(x), [1, 1, 4, 6])), zero=True),
    *row("Tile", 13, "makes channels", lambda g, x: g.Mul(x, g.Tile(g.w(1, 1, 4, 6), [1, 8, 1, 1])), zero=True),
    *row("Tile", 13, "weight", _weight("Tile", (3, 8, 1, 1), [2, 1, 1, 1]), zero=True),
    *row("ConstantOfShape", (9, 20), "factor", lambda g, x: g.Mul(x, _filled(g, [8, 1, 1])), zero=True),
    *row("ConstantOfShape", 9, "zeros added", lambda g, x: g.Add(x, g.ConstantOfShape([1, 8, 1, 1])), zero=True),
    *row("ConstantOfShape", 9, "value added", lambda g, x: g.Add(x, _filled(g, [1, 8, 1, 1])), zero=False),
    *row("ConstantOfShape", 13, "zero channels", lambda g, x: g.Concat(x, g.ConstantOfShape([2, 3, 4, 6]), axis=1), zero=True),
    *row("ConstantOfShape", 13, "like", lambda g, x: g.Mul(x, _filled(g, g.Shape(x))), dynamic=True),
]

# DepthToSpace, SpaceToDepth ---------------------------------------------------------------------------------------------------
CASES += [
    *row("DepthToSpace", (7, 11, 13), "", _via("DepthToSpace", blocksize=2), zero=True),
    *row("DepthToSpace", 13, "DCR", _via("DepthToSpace", blocksize=2, mode="DCR"), zero=True),
    *row("DepthToSpace", 13, "CRD", _via("DepthToSpace", blocksize=2, mode="CRD"), zero=True),
    *row("SpaceToDepth", (7, 13), "", _via("SpaceToDepth", blocksize=2), zero=True),
    *row("SpaceToDepth", 13, "and back", lambda g, x: g.DepthToSpace(g.Relu(g.SpaceToDepth(x, blocksize=2)), blocksize=2)),
]


# larger pieces -----------------------------------------------------------------------------------------------------------------
def _shuffle(g: Net, x: str, groups: int = 2) -> str:
    parts = g.Reshape(x, [2, groups, 8 // groups, 4, 6])
    return g.Reshape(g.Transpose(parts, perm=[0, 2, 1, 3, 4]), [2, 8, 4, 6])


def _attention(g: Net, x: str, *, packed: bool = False) -> str:
    """Two heads of four channels."""
    if packed:
        parts = g.Transpose(g.Reshape(g.MatMul(x, g.w(8, 24)), [2, 5, 3, 2, 4]), perm=[2, 0, 3, 1, 4])
        q, k, v = (g.Gather(parts, part, axis=0) for part in range(3))
    else:
        q, k, v = (g.Transpose(g.Reshape(g.MatMul(x, g.w(8, 8)), [2, 5, 2, 4]), perm=[0, 2, 1, 3]) for _ in range(3))
    scores = g.Softmax(g.MatMul(q, g.Transpose(k, perm=[0, 1, 3, 2])), axis=-1)
    return g.Reshape(g.Transpose(g.MatMul(scores, v), perm=[0, 2, 1, 3]), [2, 5, 8])


def _gated(g: Net, one: str, gate: str) -> str:
    return g.Mul(one, g.Sigmoid(gate))


def _half(g: Net, one: str, other: str) -> str:
    """Half of the channels goes on, the other half waits (C2f)."""
    return g.Concat(one, other, g.Conv(other, g.w(4, 4, 1, 1), g.w(4)), axis=1)


def _pair(g: Net, x: str, one: str, other: str) -> tuple[str, str]:
    return g.Conv(x, one), g.Conv(x, other)


def _twice(g: Net, x: str) -> list[str]:
    """Two Splits read the same sizes but lose different channels."""
    sizes = g.store(np.array([3, 5]))
    return [*g.Split(x, sizes, outputs=2, axis=1), *g.Split(g.another(), sizes, outputs=2, axis=1)]


def _bounds_twice(g: Net, x: str) -> tuple[str, str]:
    start, end, axis = (g.store(np.array([k])) for k in (2, 7, 1))
    return g.Slice(x, start, end, axis), g.Slice(g.another(), start, end, axis)


def _focus(g: Net, x: str) -> str:
    parts = [g.Slice(x, [i, j], [BIG, BIG], [2, 3], [2, 2]) for j in (0, 1) for i in (0, 1)]
    return g.Concat(*parts, axis=1)


def _rotary(g: Net, x: str) -> str:
    turned = g.Concat(g.Neg(g.Slice(x, [4], [BIG], [2])), g.Slice(x, [0], [4], [2]), axis=2)
    return g.Add(g.Mul(x, g.w(5, 8)), g.Mul(turned, g.w(5, 8)))


def _filled(g: Net, shape: Any) -> str:
    return g.ConstantOfShape(shape, value=numpy_helper.from_array(np.array([0.3], np.float32)))
