"""Knapsack: how many channels each group loses so that the cost is met with the least error, one budget for the whole net.

``minimise sum_g E_g(k_g) subject to C(k_1, k_2, ...) <= limit``. A multiple-choice knapsack, but for the cost, which is no sum:
a layer costs what the groups on its two sides keep, multiplied. Solved by Lagrange's multiplier: for a price of cost, each
group in turn takes its best count while the others stay as they are, until none moves; the price is bisected. What that
leaves unspent is spent by channels given back, and by exchanges between two groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.footprint import Gone
from onnxprune.labels import IntArray

PRICES = 48
"""Halvings of the price, on a logarithmic scale over 24 orders of magnitude."""

_WINDOW = 8
"""Steps by which two groups exchange channels, at most, either way; groups of fewer steps are looked at as a whole."""

_PAIRS = 20_000
"""Pairs of groups that are looked at for exchanges in all."""

Counts = list[int]


class Price(Protocol):
    """What a budget is spent on, from how many channels leave each group; as :class:`~onnxprune.footprint.Footprint` has it."""

    @property
    def dead(self) -> int:
        """What the first cut saves in any case."""

    def total(self, gone: Gone) -> int:
        """What is spent on a model."""

    def change(self, gone: Gone, numbers: Sequence[int], cases: Sequence[IntArray]) -> Any:
        """The part of it that depends on some groups, for many cases at once."""


@dataclass(frozen=True, eq=False)
class Knapsack:
    """What there is to choose from.

    ``curves``: for each group the error once 0, 1, ... channels have left, float64 (channels + 1,). ``allowed``: how many may
    leave, ascending, the first is 0. ``cost``: of what is left.
    """

    curves: Sequence[Scores]
    allowed: Sequence[IntArray]
    cost: Price

    @property
    def least(self) -> int:
        """The cost once everything that may leave has left."""
        return self.cost.total([int(a[-1]) for a in self.allowed])

    def error(self, gone: Sequence[int]) -> float:
        """The sum of the groups' errors."""
        return float(sum(curve[k] for curve, k in zip(self.curves, gone, strict=True)))

    def solve(self, limit: int) -> Counts | None:
        """Counts whose cost is at most ``limit``, so that no group could keep one step more; None where there are none."""
        nothing, everything = [0] * len(self.allowed), [int(a[-1]) for a in self.allowed]
        if self.cost.total(nothing) <= limit:
            return nothing
        if self.cost.total(everything) > limit:
            return None
        above, below = self._bracketed(limit, nothing, everything)
        found = [self._filled(counts, limit) for counts in (below, self._shrunk(above, limit))]
        return self._exchanged(min(found, key=self.error), limit)

    def first_step(self) -> Counts | None:
        """The one step with the least error; None where nothing may leave."""
        nothing = [0] * len(self.allowed)
        steps = self._steps(nothing, 1)
        if not steps:
            return None
        number, count, _, _ = min(steps, key=lambda s: s[2])
        return [count if n == number else 0 for n in range(len(nothing))]

    def _bracketed(self, limit: int, above: Counts, below: Counts) -> tuple[Counts, Counts]:
        """The cheapest solution of a price that costs too much, and the dearest that does not."""
        whole = max(self.cost.total(above), 1)
        unit = max(self.error(below), 1e-12) / whole
        low, high = -12.0, 12.0
        for _ in range(PRICES):
            middle = (low + high) / 2
            found = self._priced(unit * 10**middle, above)
            if self.cost.total(found) > limit:
                low, above = middle, found
            else:
                high, below = middle, found
        return above, below

    def _priced(self, price: float, start: Counts) -> Counts:
        """The least ``error + price * cost`` that is reached by changing one group at a time."""
        gone = list(start)
        while True:
            before = list(gone)
            for number, (curve, allowed) in enumerate(zip(self.curves, self.allowed, strict=True)):
                if len(allowed) > 1:
                    value = curve[allowed] + price * self.cost.change(gone, [number], [allowed])
                    here = int(np.searchsorted(allowed, gone[number]))
                    best = int(np.argmin(value))
                    if value[best] < value[here] - 1e-12 * abs(value[here]):
                        gone[number] = int(allowed[best])
            if gone == before:
                return gone

    def _steps(self, gone: Counts, by: int) -> list[tuple[int, int, float, int]]:
        """For each group that can move a step: the group, its count then, and the change of the error and of the cost."""
        found = []
        for number, allowed in enumerate(self.allowed):
            here = int(np.searchsorted(allowed, gone[number])) + by
            if 0 <= here < len(allowed):
                pair = np.array([gone[number], allowed[here]])
                old, new = self.cost.change(gone, [number], [pair])
                curve = self.curves[number]
                found.append((number, int(pair[1]), float(curve[pair[1]] - curve[pair[0]]), int(new - old)))
        return found

    def _shrunk(self, gone: Counts, limit: int) -> Counts:
        """Let leave what costs least error for the cost that it saves, until the limit is met."""
        gone = list(gone)
        excess = self.cost.total(gone) - limit
        while excess > 0:
            steps = [s for s in self._steps(gone, 1) if s[3] < 0] or self._steps(gone, 1)
            number, count, _, change = min(steps, key=lambda s: s[2] / max(min(-s[3], excess), 1e-9))
            gone[number] = count
            excess += change
        return gone

    def _filled(self, gone: Counts, limit: int) -> Counts:
        """Give back what saves most error for its cost, as long as the limit allows."""
        gone = list(gone)
        room = limit - self.cost.total(gone)
        while steps := [s for s in self._steps(gone, -1) if s[3] <= room]:
            number, count, _, change = min(steps, key=lambda s: s[2] / max(s[3], 1e-9))
            gone[number] = count
            room -= change
        return gone

    def _exchanged(self, gone: Counts, limit: int) -> Counts:
        """Let two groups at a time take their best counts, until no two can do better."""
        numbers = [n for n, allowed in enumerate(self.allowed) if len(allowed) > 1]
        pairs, budget, better = list(combinations(numbers, 2)), _PAIRS, True
        while better and budget > 0:
            better, room = False, limit - self.cost.total(gone)
            for one, two in pairs[:budget]:
                changed, spent = self._pair(gone, one, two, room)
                better, gone, room = better or changed != gone, changed, room - spent
            budget -= len(pairs)
            gone = self._filled(gone, limit)
        return gone

    def _pair(self, gone: Counts, one: int, two: int, room: int) -> tuple[Counts, int]:
        """The best counts of two groups near those that they have, of those that cost up to ``room`` more; and how much."""
        cases = [self._near(gone, number) for number in (one, two)]
        error = self.curves[one][cases[0]][:, None] + self.curves[two][cases[1]]
        now = self.curves[one][gone[one]] + self.curves[two][gone[two]]
        rows, columns = np.nonzero(error < now - 1e-12 * max(1.0, abs(now)))
        if not rows.size:
            return gone, 0
        chosen = cases[0][rows], cases[1][columns]
        there = [np.append(case, gone[number]) for case, number in zip(chosen, (one, two), strict=True)]
        cost = self.cost.change(gone, [one, two], there)
        more = cost[:-1] - cost[-1]
        fits = more <= room
        if not fits.any():
            return gone, 0
        best = int(np.argmin(np.where(fits, error[rows, columns], np.inf)))
        found = list(gone)
        found[one], found[two] = int(chosen[0][best]), int(chosen[1][best])
        return found, int(more[best])

    def _near(self, gone: Counts, number: int) -> IntArray:
        allowed = self.allowed[number]
        here = int(np.searchsorted(allowed, gone[number]))
        return allowed if len(allowed) <= 4 * _WINDOW else allowed[max(0, here - _WINDOW) : here + _WINDOW + 1]
