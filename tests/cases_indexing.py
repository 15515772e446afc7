"""Picking and placing elements by indices, and a few operators that work over positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cases_net import Case, Net, frozen, row

Build = Callable[[Net, str], Any]


def _via(op: str, *operands: Any, **attributes: Any) -> Build:
    return lambda g, x: getattr(g, op)(x, *operands, **attributes)


def _elements(axis: int, size: int, *, known: bool) -> Build:
    """Indices along one axis that cover the others whole."""
    shape = [2, 8, 4, 6]
    shape[axis] = size
    indices = np.random.default_rng(3).integers(0, [2, 8, 4, 6][axis], shape)
    return lambda g, x: g.GatherElements(x, indices if known else g.input(indices), axis=axis)


def _places(indices: np.ndarray, *shape: int, known: bool = True, **attributes: Any) -> Build:
    """ScatterND with updates that come from another producer of channels."""

    def build(g: Net, x: str) -> str:
        updates = g.Reshape(g.another(), [*shape]) if shape == (2, 8, 4, 6) else g.input(g.randn(*shape))
        return g.ScatterND(x, indices if known else g.input(indices), updates, **attributes)

    return build


def _scatter(op: str, axis: int, *, known: bool, own: bool = False, **attributes: Any) -> Build:
    """Indices that turn one axis round; the updates are another tensor of the same channels, or the graph's."""
    shape = (2, 8, 4, 6)
    indices = np.broadcast_to(np.arange(shape[axis])[::-1].reshape([-1 if k == axis else 1 for k in range(4)]), shape).copy()

    def build(g: Net, x: str) -> str:
        updates = g.another() if own else g.input(g.randn(*shape))
        return getattr(g, op)(x, indices if known else g.input(indices), updates, axis=axis, **attributes)

    return build


def _turned(g: Net, x: str) -> str:
    """Channels first, three of which are overwritten."""
    first = g.Transpose(x, perm=[1, 0, 2, 3])
    return g.Transpose(g.ScatterND(first, np.array([[1], [4], [6]]), g.randn(3, 2, 4, 6)), perm=[1, 0, 2, 3])


CASES: list[Case] = [
    *row("GatherND", (12, 13), "whole pictures", _via("GatherND", np.array([[1], [0]])), zero=True),
    *row(
        "GatherND",
        13,
        "channels known",
        _via("GatherND", np.array([[0, 3], [1, 5]])),
        end="none",
        expect="frozen",
        blame="GatherND",
    ),
    *row(
        "GatherND",
        13,
        "steps at run time",
        lambda g, x: g.GatherND(x, g.input(np.array([[[2]], [[0]]])), batch_dims=1),
        start="tokens",
    ),
    *frozen("GatherND", 13, "channels at run time", lambda g, x: g.GatherND(x, g.input(np.array([[[2]], [[0]]])), batch_dims=1)),
    *row("GatherElements", (11, 13), "rows known", _elements(2, 3, known=True), expect="frozen"),
    *row("GatherElements", 13, "rows at run time", _elements(2, 4, known=False), zero=True, expect="frozen"),
    *frozen("GatherElements", 13, "channels at run time", _elements(1, 5, known=False)),
    *row("ScatterND", (11, 16, 18), "pictures", _places(np.array([[1], [0]]), 2, 8, 4, 6), zero=True),
    *frozen("ScatterND", 16, "channels", lambda g, x: _turned(g, x)),
    *row("ScatterND", 16, "pictures at run time", _places(np.array([[1], [0]]), 2, 8, 4, 6, known=False), zero=True),
    *frozen("ScatterND", 16, "added", _places(np.array([[1], [0]]), 2, 8, 4, 6, reduction="add")),
    *frozen("ScatterElements", (11, 16, 18), "rows", _scatter("ScatterElements", 2, known=True, own=True)),
    *frozen("ScatterElements", 18, "channels", _scatter("ScatterElements", 1, known=True, own=True)),
    *frozen("ScatterElements", 18, "larger", _scatter("ScatterElements", 2, known=True, own=True, reduction="max")),
    *frozen("Scatter", 9, "rows", _scatter("Scatter", 2, known=True, own=True)),
    *frozen("Scatter", 9, "channels", _scatter("Scatter", 1, known=True, own=True)),
    *row(
        "ReverseSequence",
        10,
        "lengths known",
        lambda g, x: g.ReverseSequence(x, np.array([3, 5]), time_axis=1, batch_axis=0),
        start="tokens",
        zero=True,
    ),
    *row(
        "ReverseSequence",
        10,
        "lengths at run time",
        lambda g, x: g.ReverseSequence(x, g.input(np.array([3, 5])), time_axis=1, batch_axis=0),
        start="tokens",
        zero=True,
    ),
    *frozen(
        "ReverseSequence",
        10,
        "channels",
        lambda g, x: g.ReverseSequence(x, g.input(np.array([3, 8])), time_axis=1, batch_axis=0),
    ),
    *row("CenterCropPad", 18, "pictures", _via("CenterCropPad", [3, 8], axes=[2, 3]), zero=True),
    *row("CenterCropPad", 18, "channels", _via("CenterCropPad", [6], axes=[1])),
    *row("DFT", 17, "rows", lambda g, x: g.ReduceSum(g.DFT(g.Unsqueeze(x, [4]), axis=2), [4], keepdims=0), zero=True),
    *row("DFT", 20, "rows", lambda g, x: g.ReduceSum(g.DFT(g.Unsqueeze(x, [4]), None, -2), [4], keepdims=0), zero=True),
    *frozen("DFT", 17, "channels", lambda g, x: g.ReduceSum(g.DFT(g.Unsqueeze(x, [4]), axis=1), [4], keepdims=0)),
    *row("Trilu", 14, "", _via("Trilu"), zero=True),
    *row("Trilu", 14, "lower", _via("Trilu", 1, upper=0), zero=True),
    *frozen("Trilu", 14, "channels", _via("Trilu"), start="tokens"),
    *row(
        "Col2Im",
        18,
        "",
        lambda g, x: g.Col2Im(g.Reshape(g.Conv(x, g.w(32, 8, 1, 1)), [2, 32, 24]), [8, 12], [2, 2], strides=[2, 2]),
        zero=True,
    ),
    *row(
        "DeformConv",
        19,
        "",
        lambda g, x: g.DeformConv(x, g.w(6, 8, 3, 3), g.input(0.3 * g.randn(2, 18, 4, 6)), g.w(6), pads=[1, 1, 1, 1]),
        reference=True,
    ),
    *row("BitwiseXor", 18, "", lambda g, x: g.BitwiseXor(g.Cast(x, to=6), g.Cast(g.another(), to=6)), zero=True),
    *row("BitShift", 11, "", lambda g, x: g.BitShift(g.Cast(g.Abs(x), to=13), np.array([1], np.uint64), direction="LEFT")),
]
