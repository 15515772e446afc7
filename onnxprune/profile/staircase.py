"""Staircases: how long layers of one kind take at all small widths, and so by which steps their time really drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.labels import IntArray
from onnxprune.profile.bench import measure
from onnxprune.profile.layers import Kind, Layer, work

FloatArray = npt.NDArray[np.float64]

WIDEST = 64
"""Widths that are measured one by one: 1 to this. From half of it on what they tell repeats itself."""

_STEPS = (32, 16, 8, 4, 2)
_FREE = 0.04
"""By how much layers may slow down on average if all widths are rounded up to a step, for that step to be the kernels' own."""

_NOISE = 0.03
"""Times that differ by less count as equal."""

_WORK = 3e7
"""Multiply-accumulate operations of the widest layer that is measured, about; and of products with a matrix a tenth."""


@dataclass(frozen=True, eq=False)
class Staircase:
    """Times of layers of one kind by width.

    Attributes:
        place: the map, or the rows, on which they were measured.
        numbers: what they compute in, as in :mod:`~onnxprune.profile.bench`.
        other: the width of the side that stays.
        inputs, outputs: microseconds for widths of 1 to ``WIDEST`` of each side, float64; equal for depthwise layers.
    """

    kind: Kind
    place: tuple[int, ...]
    numbers: str
    other: int
    inputs: FloatArray
    outputs: FloatArray

    @classmethod
    def measured(cls, kind: Kind, place: tuple[int, ...], numbers: str) -> Staircase:
        """Measure it on this machine.

        Raises:
            ModelError: onnxruntime can't run such layers.
        """
        place, other = _bench(kind, place)
        each = range(1, WIDEST + 1)
        if kind.groups == 0:
            times = np.array(measure(kind, place, [(w, w) for w in each], numbers))
            return cls(kind, place, numbers, other, times, times)
        times = np.array(measure(kind, place, [*((w, other) for w in each), *((other, w) for w in each)], numbers))
        return cls(kind, place, numbers, other, times[:WIDEST], times[WIDEST:])

    def fits(self, layer: Layer, numbers: str) -> bool:
        """Whether it is about a layer."""
        return (self.kind, self.numbers) == (layer.kind, numbers) and self.place == _bench(layer.kind, layer.place)[0]

    @cached_property
    def steps(self) -> tuple[int, int]:
        """The kernels' own steps of the width of the inputs, and of the outputs."""
        return _step(self.inputs), _step(self.outputs)

    def rungs(self, side: int, size: int) -> tuple[IntArray, FloatArray]:
        """For widths of 0 to ``size`` of a side: the width up to which their time stays, and the share of its time they take.

        Where a kernel can't take a width, that is more than one.
        """
        times, step = (self.inputs, self.outputs)[side], self.steps[side]
        each = np.arange(size + 1)
        up = np.minimum(-(-each // step) * step, size)
        alike = np.where(each > WIDEST, WIDEST - (WIDEST - each) % (WIDEST // 2), each)
        top = np.where(up == size, alike + (up - each), -(-alike // step) * step)
        share = times[np.maximum(alike, 1) - 1] / times[np.clip(top, 1, WIDEST) - 1]
        share = np.where(each > WIDEST, np.maximum(share, 1.0), share)
        return up, np.where(abs(share - 1) < _NOISE, 1.0, share)

    def guessed(self, layer: Layer, inputs: IntArray, outputs: IntArray) -> FloatArray:
        """Microseconds of layers of other widths and on another map, (inputs, outputs) if not depthwise, (inputs,) if so."""
        area = prod(layer.place) / prod(self.place)
        one = self._extended(self.inputs, inputs)
        if layer.kind.groups == 0:
            return area * one
        two = self._extended(self.outputs, outputs) / self._extended(self.outputs, np.array([self.other]))
        return np.asarray(area * one[:, None] * two[None, :], np.float64)

    @staticmethod
    def _extended(times: FloatArray, widths: IntArray) -> FloatArray:
        """Times of widths beyond those that were measured, in proportion."""
        return np.asarray(times[np.clip(widths, 1, WIDEST) - 1] * np.maximum(1, widths / WIDEST), np.float64)


def _bench(kind: Kind, place: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The map on which a kind is measured, and the width of the other side."""
    if kind.op != "Conv":
        rows = 1 if prod(place) == 1 else 64
        return (rows,), int(np.clip(_WORK / 10 / (rows * WIDEST), WIDEST, 1024))
    side = (_WORK / work(kind, (1,), WIDEST, WIDEST)) ** (1 / len(place))
    return (int(np.clip(round(side), 7, 56 if kind.groups == 0 else 28)),) * len(place), WIDEST


def _step(times: FloatArray) -> int:
    """The largest step to which widths can be rounded up at no cost worth mentioning."""
    fastest = np.minimum.accumulate(times[::-1])[::-1]  # of all that are no narrower
    each = np.arange(WIDEST // 2 + 1, WIDEST + 1)
    for step in _STEPS:
        if np.mean(times[-(-each // step) * step - 1] / fastest[each - 1]) <= 1 + _FREE:
            return step
    return 1


@dataclass(frozen=True, eq=False)
class Grid:
    """Times of one layer of a network at some of the widths that it may come to have.

    ``inputs``, ``outputs``: the widths, ascending. ``microseconds``: float64 (inputs, outputs), or (inputs,) if depthwise.
    """

    layer: Layer
    numbers: str
    inputs: IntArray
    outputs: IntArray
    microseconds: FloatArray

    @classmethod
    def measured(cls, layer: Layer, staircase: Staircase) -> Grid:
        """Measure it on this machine.

        Raises:
            ModelError: onnxruntime can't run the layer.
        """
        inputs, outputs = (_some(size, step) for size, step in zip((layer.inputs, layer.outputs), staircase.steps, strict=True))
        if layer.kind.groups == 0:
            times = measure(layer.kind, layer.place, [(int(w), int(w)) for w in inputs], staircase.numbers, seconds=_SECONDS)
            return cls(layer, staircase.numbers, inputs, inputs, np.array(times))
        while inputs.sum() * outputs.sum() * prod(layer.kind.kernel) > _WEIGHTS and max(len(inputs), len(outputs)) > 1:
            inputs, outputs = (w[:-1] if len(w) > 1 and w[-1] == max(inputs[-1], outputs[-1]) else w for w in (inputs, outputs))
        points = [(int(i), int(o)) for i in inputs for o in outputs]
        times = measure(layer.kind, layer.place, points, staircase.numbers, seconds=_SECONDS)
        return cls(layer, staircase.numbers, inputs, outputs, np.array(times).reshape(len(inputs), -1))

    def between(self, inputs: IntArray, outputs: IntArray) -> FloatArray:
        """Microseconds at other widths, in between or in proportion, as :meth:`Staircase.guessed` has them."""
        along = _between(self.inputs, self.microseconds.reshape(len(self.inputs), -1), inputs)
        if self.microseconds.ndim == 1:
            return along[:, 0]
        return _between(self.outputs, along.T, outputs).T


_SECONDS = 0.25
_WEIGHTS = 24_000_000
"""Weights of all layers of a grid together, at most."""


def _some(size: int, step: int) -> IntArray:
    """Some widths up to a size: a step, and shares of it in whole steps."""
    shares = {min(size, -(-int(np.ceil(size * share)) // step) * step) for share in (0.25, 0.5, 0.75, 1.0)}
    return np.array(sorted(shares | {min(step, size)}), np.int64)


def _between(known: IntArray, values: FloatArray, wanted: IntArray) -> FloatArray:
    """Rows for wanted widths from those for known ones; outside of these in proportion to the next."""
    rows = np.stack([np.interp(wanted, known, column) for column in values.T], axis=1)
    beyond = np.where(wanted > known[-1], wanted / known[-1], 1.0)
    return np.asarray(rows * beyond[:, None], np.float64)


def kind_of(data: Mapping[str, Any]) -> Kind:
    """A kind as JSON data has it."""
    kernel, strides, dilations = (tuple(int(v) for v in data[name]) for name in ("kernel", "strides", "dilations"))
    return Kind(str(data["op"]), kernel, strides, dilations, int(data["groups"]))


def times_of(data: Sequence[Any], *shape: int) -> FloatArray:
    """Times as JSON data has them.

    Raises:
        ValueError: they are not times, or not as many as they should be.
    """
    times = np.array(data, np.float64)
    if times.shape != shape or not np.isfinite(times).all() or (times <= 0).any():
        raise ValueError(f"times are {times.shape} numbers, not {shape} that are positive")
    return times
