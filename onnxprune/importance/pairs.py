"""Pairs of units, one of which can stand in for the other."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.importance.scene import Scene
from onnxprune.labels import BoolArray, IntArray
from onnxprune.weights import Array

BLOCK = 1024
"""Units whose cost against all others is computed at once."""

Cost = Callable[[IntArray], Array]
"""Some units that could leave -> float (units, those): the cost where each of all units stands in for them."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Channels of a group: ``leaves[k]`` leaves and ``stays[k]`` stands in for it (-1: no one alone does), cheapest first.

    ``scales``: how often it does so, float (pairs,); None where that is to be found out.
    """

    leaves: IntArray
    stays: IntArray
    scales: Array | None = None


@runtime_checkable
class Nominator(Protocol):
    """A criterion that chooses the channels of a group in view of the whole model.

    ``compensation``: how what leaves is best made up for.
    """

    compensation: str

    def nominate(self, scene: Scene, number: int, count: int) -> Pairs | None:
        """At most ``count`` channels of group ``number`` that leave; None where this is left to the criterion's scores."""

    def rank(self, scene: Scene, number: int) -> Scores | None:
        """Float64 (channels,), larger = keep, where groups are ranked together; None as above."""


def nearest(cost: Cost, free: BoolArray) -> tuple[IntArray, Array]:
    """For each unit the cheapest other one that is ``free`` to stand in for it, and the cost; infinite where there is none."""
    size = len(free)
    best, lowest = np.full(size, -1), np.full(size, np.inf, np.float64)
    for start in range(0, size, BLOCK):
        columns = np.arange(start, min(size, start + BLOCK))
        best[columns], lowest[columns] = _cheapest(cost, columns, free)
    return best, lowest


def greedy(cost: Cost, free: BoolArray, *, recursive: bool) -> Iterator[tuple[int, int, float]]:
    """Pairs (leaves, stays, cost), always the cheapest of those that are left.

    A unit that has left stands in for nothing, and one that stands in does not leave; unless ``recursive`` it also stands in
    for one alone. ``free``: the units that may take part.
    """
    best, lowest = nearest(cost, free)
    can_stay, can_leave = free.copy(), free.copy()
    waiting = [(c, j) for j, c in enumerate(lowest.tolist()) if can_leave[j]]
    heapq.heapify(waiting)
    while waiting:
        value, j = heapq.heappop(waiting)
        if not can_leave[j] or not np.isfinite(value):
            continue
        i = int(best[j])
        if not can_stay[i]:
            found, again = _cheapest(cost, np.array([j]), can_stay)
            best[j] = found[0]
            heapq.heappush(waiting, (float(again[0]), j))
            continue
        can_stay[j] = can_leave[j] = can_leave[i] = False
        can_stay[i] = recursive
        yield j, i, value


def _cheapest(cost: Cost, columns: IntArray, free: BoolArray) -> tuple[IntArray, Array]:
    """The cheapest stand-in of some units, and the cost."""
    table = cost(columns)
    table[~free] = np.inf
    table[columns, np.arange(len(columns))] = np.inf
    best = table.argmin(axis=0)
    return best, table[best, np.arange(len(columns))].astype(np.float64)
