"""Pace: how long a pruned model runs, from how many channels leave each group, without cutting or running anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.footprint import Footprint
from onnxprune.labels import BoolArray, IntArray
from onnxprune.profile.device import DeviceProfile, Whole
from onnxprune.profile.layers import Layer, layer, widths
from onnxprune.profile.staircase import FloatArray
from onnxprune.rules import Call, describe
from onnxprune.rules.linear import macs

_SHARE = 0.5
"""A width is worth having if time drops at least by this share of how it drops on average over all that are narrower."""

_LIKE_ELEMENT = 8
"""So many multiply-accumulate operations of a node that is not measured count as one element of a result."""


class Pace(Footprint):
    """Nanoseconds of one run of a model of which channels leave, as a profile foretells them.

    Layers take what the profile has, all of them together what they take in the whole model. Everything else takes the rest, in
    proportion to its size.

    Args:
        whole: what the model takes as it is; without, sums of products that the profile lacks take as long as those that it
            has, and nothing else takes any time.
        unit: what the whole is in other units than nanoseconds, in which results are to be.
        numbers: what layers compute in.
        coupling, removed, orders: as in :class:`~onnxprune.footprint.Footprint`.
    """

    def __init__(
        self,
        coupling: Coupling,
        profile: DeviceProfile,
        removed: BoolArray,
        orders: Sequence[IntArray],
        *,
        whole: Whole | None = None,
        unit: int = 0,
        numbers: str = "float",
    ) -> None:
        calls = [describe(coupling.graph, node, coupling.shapes) for node in coupling.graph.nodes]
        known = {found for found in map(layer, calls) if found is not None}
        self._tables = {found: _table(profile, found, numbers) for found in known}
        tables = [(call, self._table_of(call)) for call in calls]
        layers = sum(table(call) for call, table in tables if table is not None)
        work = {known: sum(macs(call) for call, table in tables if (table is None) != known) for known in (True, False)}
        self._size = macs if whole is None else _elements
        others = sum(self._size(call) for call, table in tables if table is None)
        self._scale, self._unit = 1.0, layers / max(work[True], 1)
        if whole is not None:
            share = whole.layers * work[True] / max(sum(work.values()), 1) if others else 1.0
            self._scale = share * whole.nanoseconds / layers if layers else 0.0
            self._unit = (1 - share) * whole.nanoseconds / others if others else 0.0
        if unit:
            rate = unit / max(self._scale * layers + self._unit * others, 1e-9)
            self._scale, self._unit = self._scale * rate, self._unit * rate
        super().__init__(coupling, "latency", removed, orders)

    def _table_of(self, call: Call) -> _Table | None:
        found = layer(call)
        return None if found is None else self._tables[found]

    def _amount(self, call: Call) -> Callable[[Call], Any] | None:
        """The time of a layer, or of what takes a part of the rest."""
        table, unit, scale, size = self._table_of(call), self._unit, self._scale, self._size
        if table is not None:
            return lambda there: np.rint(scale * table(there)).astype(np.int64)
        if unit and size(call):
            return lambda there: np.rint(unit * size(there)).astype(np.int64)
        return None


def worth(paces: Sequence[Pace], sizes: Sequence[int]) -> tuple[IntArray, ...]:
    """For each group the widths at which its time drops, by all of some measures; ascending, the last is all of it.

    From each such width the next is the widest at which time is lower by at least half of what it drops on the way, on average
    over all widths that are narrower: neither one that is as slow as a wider one, nor one that is hardly faster. Where time
    does not depend on the width at all, every one will do.

    Args:
        sizes: of the groups.
    """
    zero = [0] * len(sizes)
    found = []
    for number, size in enumerate(sizes):
        gone = [np.arange(size)]
        times = np.stack([np.broadcast_to(pace.change(zero, [number], gone), size) for pace in paces])[:, ::-1]
        found.append(_dropping(times.astype(np.float64)))
    return tuple(found)


def _dropping(times: FloatArray) -> IntArray:
    """The widths worth having, from times (measures, widths), of widths from 1 on."""
    times = times[(times != times[:, :1]).any(axis=1)]
    size = times.shape[1]
    if not len(times):
        return np.arange(1, size + 1)
    found, here = [size], size - 1
    while here > 0:
        drop, each = times[:, here, None] - times[:, :here], here - np.arange(here)
        average = drop.max(axis=1, keepdims=True) / here
        fits = ((drop > 0) & (drop >= _SHARE * average * each)).all(axis=0)
        if not fits.any():
            break
        here = int(np.flatnonzero(fits)[-1])
        found.append(here + 1)
    return np.array(found[::-1], np.int64)


@dataclass(frozen=True, eq=False)
class _Table:
    """Nanoseconds of a layer by its widths: of those that count, and what each other one has of such a time."""

    places: tuple[IntArray, IntArray]
    shares: tuple[FloatArray, FloatArray]
    times: FloatArray

    def __call__(self, call: Call) -> Any:
        inputs, outputs = widths(call)
        one = self.shares[0][inputs]
        if self.times.ndim == 1:
            return self.times[self.places[0][inputs]] * one
        return self.times[self.places[0][inputs], self.places[1][outputs]] * one * self.shares[1][outputs]


def _table(profile: DeviceProfile, wanted: Layer, numbers: str) -> _Table | None:
    """The times of a layer, as far as a profile has them."""
    stairs = profile.staircase(wanted, numbers)
    if stairs is None or wanted.kind.groups > 1:
        return None
    rungs = [stairs.rungs(side, size) for side, size in enumerate((wanted.inputs, wanted.outputs))]
    one, two = (np.unique(up) for up, _ in rungs)
    grid = profile.grid(wanted, numbers)
    times = 1e3 * (stairs.guessed(wanted, one, two) if grid is None else grid.between(one, two))
    return _Table((np.searchsorted(one, rungs[0][0]), np.searchsorted(two, rungs[1][0])), (rungs[0][1], rungs[1][1]), times)


def _elements(call: Call) -> Any:
    """The size of what is not measured: elements of its results, and its products."""
    results: Any = sum(prod(shape) for shape in call.outputs if shape is not None)
    return results + macs(call) / _LIKE_ELEMENT
