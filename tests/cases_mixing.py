"""Normalization, reduction, pooling and resampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cases_net import Case, Net, frozen, row

Build = Callable[[Net, str], Any]


def _via(op: str, *operands: Any, **attributes: Any) -> Build:
    return lambda g, x: getattr(g, op)(x, *operands, **attributes)


def _batch_norm(**attributes: Any) -> Build:
    return lambda g, x: g.BatchNormalization(x, g.w(8), g.w(8), g.w(8), g.positive(8), **attributes)


def _affine(op: str, *shape: int, bias: bool = True, **attributes: Any) -> Build:
    """With a scale and a bias of this shape."""
    return lambda g, x: getattr(g, op)(x, g.w(*shape), *([g.w(*shape)] if bias else []), **attributes)


def _first(build: Build) -> Build:
    return lambda g, x: build(g, x)[0]


CASES: list[Case] = []

# normalization -----------------------------------------------------------------------------------------------------------------
CASES += [
    *row("BatchNormalization", (7, 9, 14, 15), "", _batch_norm(epsilon=1e-3), zero=True),
    *row("BatchNormalization", 15, "rows", _batch_norm(), start="rows", zero=True),
    *row("BatchNormalization", 15, "line", _batch_norm(), start="line", zero=True),
    *row("BatchNormalization", 15, "volume", _batch_norm(), start="volume", zero=True),
    *frozen("BatchNormalization", 15, "training", _first(_batch_norm(training_mode=1, outputs=3)), reference=True),
    *row("InstanceNormalization", (7, 22), "", _affine("InstanceNormalization", 8), zero=True),
    *row("InstanceNormalization", 7, "line", _affine("InstanceNormalization", 8), start="line", zero=True),
    *row("InstanceNormalization", 13, "as GroupNorm", lambda g, x: _as_group_norm(g, x)),
    *frozen(
        "InstanceNormalization",
        13,
        "channels as positions",
        lambda g, x: g.Transpose(g.InstanceNormalization(g.Transpose(x, perm=[0, 2, 1, 3]), g.w(4), g.w(4)), perm=[0, 2, 1, 3]),
    ),
    *row("GroupNormalization", 18, "4 groups", _affine("GroupNormalization", 4, num_groups=4), zero=True),
    *row("GroupNormalization", 21, "4 groups", _affine("GroupNormalization", 8, num_groups=4), zero=True),
    *row("GroupNormalization", 21, "2 groups", _affine("GroupNormalization", 8, num_groups=2), zero=True),
    *row("GroupNormalization", 21, "8 groups", _affine("GroupNormalization", 8, num_groups=8), zero=True),
    *row("GroupNormalization", 21, "line", _affine("GroupNormalization", 8, num_groups=4), start="line", zero=True),
    *row("LayerNormalization", 17, "positions", _affine("LayerNormalization", 4, 6, axis=2), zero=False),
    *row("LayerNormalization", 17, "last position", _affine("LayerNormalization", 6), zero=False),
    *row("LayerNormalization", 17, "no bias", _affine("LayerNormalization", 6, bias=False)),
    *row("LayerNormalization", 17, "statistics", _affine("LayerNormalization", 4, 6, axis=-2, outputs=3)),
    *frozen("LayerNormalization", 17, "channels", _affine("LayerNormalization", 8), start="tokens"),
    *frozen("LayerNormalization", 17, "everything", _affine("LayerNormalization", 8, 4, 6, axis=1)),
    *row("RMSNormalization", 23, "positions", _affine("RMSNormalization", 4, 6, bias=False, axis=2)),
    *frozen("RMSNormalization", 23, "channels", _affine("RMSNormalization", 8, bias=False), start="tokens"),
    *row("LpNormalization", (7, 22), "positions", _via("LpNormalization", axis=-1)),
    *row("LpNormalization", 22, "L1", _via("LpNormalization", axis=2, p=1)),
    *frozen("LpNormalization", 22, "channels", _via("LpNormalization", axis=1)),
    *frozen("LpNormalization", 22, "channels not zero", lambda g, x: g.LpNormalization(g.Sigmoid(x), axis=1)),
    *frozen("LpNormalization", 22, "last", _via("LpNormalization"), start="tokens"),
    *frozen("LRN", (7, 13), "", _via("LRN", size=3, alpha=0.5)),
    *row("CumSum", (11, 14), "positions", _via("CumSum", 2)),
    *row("CumSum", 14, "backwards", _via("CumSum", -1, reverse=1, exclusive=1)),
    *row("CumSum", 14, "axis of one element", _via("CumSum", [3])),
    *frozen("CumSum", 14, "channels", _via("CumSum", 1)),
    *frozen("CumSum", 14, "channels not zero", lambda g, x: g.CumSum(g.Sigmoid(x), 1)),
    *frozen("CumSum", 14, "axis is an input", lambda g, x: g.CumSum(x, g.input(np.array(2)))),
]
for _op in ("Softmax", "LogSoftmax", "Hardmax"):
    CASES += [
        *row(_op, 13, "positions", _via(_op, axis=2), zero=False),
        *row(_op, 13, "last", _via(_op), zero=False),
        *row(_op, 13, "tokens", _via(_op, axis=-2), start="tokens", zero=False),
        *row(_op, (7, 11), "all positions", _via(_op, axis=2), zero=False),
        *frozen(_op, 13, "channels", _via(_op, axis=1)),
        *frozen(_op, 13, "channels last", _via(_op), start="tokens"),
        *frozen(_op, (7, 11), "everything", _via(_op)),
        *frozen(_op, 11, "tokens and channels", _via(_op, axis=1), start="tokens"),
        *frozen(_op, 11, "channels last", _via(_op, axis=-1), start="tokens"),
    ]


# reduction -------------------------------------------------------------------------------------------------------------------
def _reduce(op: str, opset: int, axes: Sequence[int] | None, *, exp: bool = False, **attributes: Any) -> Build:
    """Axes as an attribute or an input, as the opset wants it."""

    def build(g: Net, x: str) -> str:
        x = g.Exp(x) if exp else x
        if axes is None:
            return getattr(g, op)(x, **attributes)
        new = opset >= (13 if op == "ReduceSum" else 18)
        return getattr(g, op)(x, list(axes), **attributes) if new else getattr(g, op)(x, axes=list(axes), **attributes)

    return build


for _op, _sums in (
    ("ReduceSum", True),
    ("ReduceL1", True),
    ("ReduceL2", True),
    ("ReduceSumSquare", True),
    ("ReduceMean", False),
    ("ReduceMax", False),
    ("ReduceMin", False),
    ("ReduceProd", False),
    ("ReduceLogSum", False),
    ("ReduceLogSumExp", False),
):
    _log = _op == "ReduceLogSum"
    _zero = _op not in ("ReduceLogSum", "ReduceLogSumExp")
    for _opset in (7, 13, 18):
        CASES += [
            *row(_op, _opset, "positions", _reduce(_op, _opset, [2, 3], exp=_log), zero=_zero),
            *row(_op, _opset, "flat", _reduce(_op, _opset, [2, 3], exp=_log, keepdims=0), zero=_zero),
        ]
    CASES += [
        *row(_op, 18, "negative axis", _reduce(_op, 18, [-1], exp=_log, keepdims=0), zero=_zero),
        *row(_op, 18, "batch", _reduce(_op, 18, [0], exp=_log), zero=_zero),
        *row(_op, 18, "nothing", _reduce(_op, 18, None, exp=_log, noop_with_empty_axes=1), zero=None),
        *row(_op, 18, "tokens", _reduce(_op, 18, [1], exp=_log, keepdims=0), start="tokens", zero=_zero),
        *(row if _sums else frozen)(_op, 18, "channels", _reduce(_op, 18, [1], keepdims=0, exp=_log), end="none"),
        *(row if _sums else frozen)(_op, 11, "channels too", _reduce(_op, 11, [1, 2], exp=_log), end="none"),
        *(row if _sums else frozen)(_op, 18, "all", _reduce(_op, 18, None, exp=_log), end="none"),
        *frozen(_op, 18, "channels not zero", _reduce(_op, 18, [1], exp=True), end="none"),
    ]
CASES += [
    *frozen("ReduceLogSum", 18, "of zeros", lambda g, x: g.ReduceLogSum(g.Abs(x), [2, 3])),
    *frozen("ReduceSum", 13, "axes is an input", lambda g, x: g.ReduceSum(x, g.input(np.array([2, 3])))),
]
for _op in ("ArgMax", "ArgMin"):
    CASES += [
        *row(_op, (7, 11, 13), "positions", _via(_op, axis=2), zero=False),
        *row(_op, 13, "flat", _via(_op, axis=-1, keepdims=0), zero=False),
        *row(_op, 12, "last index", _via(_op, axis=3, select_last_index=1), zero=False),
        *frozen(_op, 13, "channels", _via(_op, axis=1), end="none"),
        *frozen(_op, 13, "channels flat", _via(_op, axis=-1, keepdims=0), end="none", start="tokens"),
    ]
CASES += [
    *row("TopK", 7, "attribute", _via("TopK", k=2, axis=2, outputs=2)),
    *row("TopK", (10, 11), "input", _via("TopK", [3], outputs=2)),
    *row("TopK", 11, "smallest", _first(_via("TopK", [2], axis=-2, largest=0, outputs=2))),
    *frozen("TopK", 11, "channels", _via("TopK", [3], axis=1, outputs=2)),
]

# pooling -----------------------------------------------------------------------------------------------------------------------
for _op in ("MaxPool", "AveragePool", "LpPool"):
    CASES += [
        *row(_op, (7, 11, 22), "", _via(_op, kernel_shape=[2, 2], strides=[2, 2]), zero=True),
        *row(_op, 11, "pads", _via(_op, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), zero=True),
        *row(_op, 11, "auto_pad", _via(_op, kernel_shape=[3, 3], auto_pad="SAME_LOWER"), zero=True),
        *row(_op, 11, "1-D", _via(_op, kernel_shape=[2]), start="line", zero=True),
        *row(_op, 11, "3-D", _via(_op, kernel_shape=[2, 2, 2]), start="volume", zero=True),
    ]
CASES += [
    *row("MaxPool", 12, "dilations", _via("MaxPool", kernel_shape=[2, 2], dilations=[2, 2], ceil_mode=1), zero=True),
    *frozen("MaxPool", (8, 12), "indices", _via("MaxPool", kernel_shape=[2, 2], outputs=2)),
    *row("AveragePool", 11, "counting", _via("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1), zero=True),
    *row("LpPool", 18, "p 1", _via("LpPool", kernel_shape=[2, 2], p=1), zero=True),
]
for _op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
    CASES += [
        *row(_op, 7 if _op == "GlobalLpPool" else (7, 22), "", _via(_op), zero=True),
        *row(_op, 7, "line", _via(_op), start="line", zero=True),
        *row(_op, 7, "excitation", lambda g, x, op=_op: g.Mul(x, g.Sigmoid(g.Conv(getattr(g, op)(x), g.w(8, 8, 1, 1))))),
    ]

# resampling --------------------------------------------------------------------------------------------------------------------
TWICE = np.array([1, 1, 2, 2], np.float32)
ONE_HALF = np.array([0.5, 1.5], np.float32)
NO_ROI = np.array([], np.float32)
CASES += [
    *row("Resize", 10, "scales", _via("Resize", TWICE), zero=True),
    *row("Resize", (11, 13, 18, 19), "scales", _via("Resize", NO_ROI, TWICE), zero=True),
    *row("Resize", 13, "no region", _via("Resize", None, TWICE, mode="linear"), zero=True),
    *row("Resize", 13, "cubic", _via("Resize", None, TWICE, mode="cubic"), zero=True),
    *row("Resize", (11, 13), "sizes", _via("Resize", NO_ROI, NO_ROI, [2, 8, 6, 9], mode="linear"), zero=True),
    *row("Resize", 18, "sizes of axes", _via("Resize", None, None, [8, 3], axes=[2, 3]), zero=True),
    *row("Resize", 18, "sizes of channels too", _via("Resize", None, None, [8, 8, 3], axes=[1, 2, 3]), zero=True),
    *row("Resize", 18, "scales of axes", _via("Resize", None, ONE_HALF, axes=[3, 2]), zero=True),
    *row(
        "Resize", 18, "policy", _via("Resize", None, None, [6, 6], axes=[2, 3], keep_aspect_ratio_policy="not_larger"), zero=True
    ),
    *row("Resize", 13, "line", _via("Resize", None, np.float32([1, 1, 2])), start="line", zero=True),
    *row(
        "Resize",
        13,
        "crop",
        _via(
            "Resize",
            np.float32([0, 0, 0.2, 0, 1, 1, 0.9, 1]),
            None,
            [2, 8, 4, 6],
            coordinate_transformation_mode="tf_crop_and_resize",
        ),
    ),
    *row("Resize", 13, "size from shape", lambda g, x: _resized_like(g, x), dynamic=True, zero=True),
    *frozen("Resize", 13, "channels", _via("Resize", None, np.float32([1, 2, 1, 1]))),
    *frozen("Resize", 13, "channels shrink", _via("Resize", None, None, [2, 4, 4, 6])),
    *frozen(
        "Resize",
        13,
        "channels a little",
        _via("Resize", None, np.float32([1, 1.1, 1, 1]), coordinate_transformation_mode="asymmetric"),
    ),
    *frozen(
        "Resize",
        13,
        "channels cropped",
        _via(
            "Resize",
            np.float32([0, 0.5, 0, 0, 1, 1, 1, 1]),
            None,
            [2, 8, 4, 6],
            coordinate_transformation_mode="tf_crop_and_resize",
        ),
    ),
    *row("Upsample", 7, "attribute", _via("Upsample", scales=[1.0, 1.0, 2.0, 2.0]), zero=True),
    *row("Upsample", 9, "input", _via("Upsample", TWICE, mode="linear"), zero=True),
    *frozen("Upsample", 9, "channels", _via("Upsample", np.float32([1, 2, 1, 1]))),
    *row("GridSample", (16, 20, 22), "", lambda g, x: g.GridSample(x, g.input(np.tanh(g.randn(2, 3, 5, 2)))), zero=True),
    *row(
        "GridSample", 16, "border", lambda g, x: g.GridSample(x, g.input(g.randn(2, 3, 5, 2)), padding_mode="border"), zero=True
    ),
    *row(
        "GridSample", 20, "3-D", lambda g, x: g.GridSample(x, g.input(np.tanh(g.randn(2, 3, 5, 2, 3)))), start="volume", zero=True
    ),
    *row(
        "GridSample",
        16,
        "grid computed",
        lambda g, x: g.GridSample(x, g.Tanh(g.Transpose(g.Conv(x, g.w(2, 8, 1, 1)), perm=[0, 2, 3, 1]))),
    ),
    *row("RoiAlign", (10, 16), "", lambda g, x: _roi_align(g, x), zero=True),
    *row("RoiAlign", 22, "", lambda g, x: _roi_align(g, x), zero=True, reference=True),
    *frozen(
        "RoiAlign", 16, "channels as images", lambda g, x: _roi_align(g, g.Transpose(x, perm=[1, 0, 2, 3]), images=[0, 3, 7])
    ),
    *row("RoiAlign", 16, "max", lambda g, x: _roi_align(g, x, mode="max", output_height=2, output_width=2), zero=True),
]


# larger pieces -----------------------------------------------------------------------------------------------------------------
def _as_group_norm(g: Net, x: str) -> str:
    """As PyTorch exports GroupNorm before opset 18."""
    grouped = g.InstanceNormalization(g.Reshape(x, [0, 4, -1]), g.w(4), g.w(4))
    return g.Add(g.Mul(g.Reshape(grouped, g.Shape(x)), g.w(8, 1, 1)), g.w(8, 1, 1))


def _resized_like(g: Net, x: str) -> str:
    shape = g.Shape(x)
    sizes = g.Concat(g.Slice(shape, [0], [2]), [8, 9], axis=0)
    return g.Resize(x, None, None, sizes, mode="linear")


def _roi_align(g: Net, x: str, images: Sequence[int] = (0, 1, 1), **attributes: Any) -> str:
    regions = np.array([[0, 0, 3, 3], [1, 0, 5, 2], [0.5, 1, 4, 3]], np.float32)
    return g.RoiAlign(x, g.input(regions), np.array(images), **attributes)


CASES += [
    case
    for op in ("GlobalAveragePool", "GlobalMaxPool")
    for case in frozen(
        op, 13, "channels as positions", lambda g, x, op=op: getattr(g, op)(g.Transpose(g.Neg(g.Abs(x)), perm=[0, 2, 1, 3]))
    )
]
