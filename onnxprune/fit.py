"""Fit: find the cut that meets a target, and make sure of it on the cut model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from onnxprune.allocation import Limits
from onnxprune.channels import ChannelGroup
from onnxprune.cost import Cost
from onnxprune.errors import TargetError
from onnxprune.knapsack import Knapsack
from onnxprune.labels import IntArray
from onnxprune.target import NAMES, SPEED, Check, Met, Target, amount_of

CHECKS = 9
"""Models that are measured on data, at most, to meet a target that data decide."""

_FINENESS = 256
"""Into how many parts of the original's cost such a search tells models apart."""

_NEAR, _MUCH, _LEAST = 0.98, 0.8, 0.7
"""The share of a target that is near enough to it; that to which it may fall for the sake of another cost; and that below which
something else was found than what was asked for.
"""

_CORRECTIONS = 6
"""Rounds in which what was foreseen of a cost is corrected by what it turns out to be."""

S = TypeVar("S")
Counts = list[int]


def removable(group: ChannelGroup, size: int, limits: Limits, max_ratio: float) -> IntArray:
    """How many channels may leave a group: so that it keeps enough of the ``size`` that it had, in multiples; ascending."""
    least = max(limits.min_channels, size - int(np.floor(size * max_ratio + 1e-9)), 1)
    kept = {limits.keeps(group, n) for n in range(min(least, group.size), group.size + 1)}
    return np.array(sorted({group.size - k for k in kept}), np.int64)


@dataclass(eq=False)
class Fit(Generic[S]):
    """Meets a target.

    Attributes:
        knapsack: the groups' errors, and what the model costs without the channels that leave.
        whole: the cost of the original.
        take: cut so many channels of each group: a model on its way.
        price: what that really costs; None where it is too large to be asked.
        exact: whether the knapsack's cost is what the target is about. If it is something else in the same units, as time in
            those of work, the share holds for that as well (``latency`` of a price, in these units), unless the target's own
            would have to be much smaller.
        near: whether a model that is much smaller than asked for does not count.
        own: the same knapsack by the target's own cost, where ``exact`` is not so: what it finds is taken where the search by the
            other ends further below the limit.
        lost: what such a model loses on the data, as a share of all samples. ``measure``: what that is.
    """

    target: Target
    knapsack: Knapsack
    whole: Cost
    take: Callable[[Counts], S]
    price: Callable[[S], Cost | None]
    lost: Callable[[S], float] | None = None
    measure: str = ""
    exact: bool = True
    own: Knapsack | None = None
    near: bool = False
    checks: list[Check] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._size = self.target.size
        self._timed: list[tuple[tuple[S, int], Cost]] = []
        self._before = int(getattr(self.whole, self._size))
        self._offset = self._beside(self.knapsack)

    def find(self) -> tuple[S, Met]:
        """The model, and how the target was met.

        Raises:
            TargetError: it can't be, and the best is not asked for.
        """
        if self.target.measured:
            allowed = self.target.amount if self.target.kind == "accuracy-drop" else 1 - self.target.amount
            found, cost, lost = self._searched(self._least, allowed + 1e-12)
            return found, self._met(found, cost, True, lost)
        limit = self.target.limit(self.whole)
        made = self._within(limit)
        if made is None or (self.near and made[1] < _LEAST * limit and not self.target.best_effort):
            if not self.target.best_effort:
                raise TargetError(self._unreachable())
            made = self._made([int(allowed[-1]) for allowed in self.knapsack.allowed])
        found, cost = made
        passed = cost <= limit
        if self.target.max_drop is None or self.lost is None:
            return found, self._met(found, cost, passed, None)
        lost = self._checked(found, cost, self.target.max_drop + 1e-12)
        if lost > self.target.max_drop + 1e-12:
            found, cost, lost = self._searched(cost, self.target.max_drop + 1e-12)
            passed = cost <= limit
        if not passed and not self.target.best_effort:
            raise TargetError(
                f"target {self.target} can't be met with --max-drop {self.target.max_drop:g}: the smallest model measured that "
                f"loses no more keeps {cost / self._before:.4f} of the {NAMES[self._size]} ({self._of(cost)}); "
                "nothing was written; allow more, ask for less, or take that model with --best-effort"
            )
        return found, self._met(found, cost, passed, lost)

    @property
    def _least(self) -> int:
        """What is left of the cost if everything leaves that may."""
        return self.knapsack.least + self._offset

    def _unreachable(self) -> str:
        least = min((int(getattr(price, self._size)) for _, price in self._timed), default=self._least)
        share = least / self._before if self._before else 1.0
        return (
            f"target {self.target} can't be met: at least {np.ceil(1e4 * share) / 1e4:g} of the {NAMES[self._size]} "
            f"({self._of(least)}) are left if no group loses more than --max-ratio {self.target.max_ratio:g} "
            "of its channels, and the rest is frozen; nothing was written; `onnxprune inspect` says what is in the way, "
            "--best-effort takes the nearest model"
        )

    def _within(self, limit: int) -> tuple[S, int] | None:
        """The model with the least error of those that really cost no more than a limit; None where there is none."""
        offset, best = self._offset, None
        tried: set[tuple[int, ...]] = set()
        floor = limit if self.exact else int(limit * (_NEAR if self._size == SPEED else _MUCH))
        for _ in range(_CORRECTIONS):
            counts = self.knapsack.solve(limit - offset)
            if counts is None and not tried and not self.exact:
                counts = [int(allowed[-1]) for allowed in self.knapsack.allowed]
            if counts is not None and not any(counts) and self._before > limit:
                counts = self.knapsack.first_step()  # any cut is rid of what no output needs, and that is enough
            if counts is None or tuple(counts) in tried:
                break
            tried.add(tuple(counts))
            foreseen = self.knapsack.cost.total(counts)
            made, cost = self._made(counts)
            held = max(cost, self._timed[-1][1].latency if self._timed else 0)
            rank = (min(cost, floor), -max(held, limit), cost)
            if cost <= limit and (best is None or rank > best[2]):
                best = made, cost, rank
            least = floor <= cost <= min(limit, floor / _NEAR) and held > limit
            if held == foreseen + offset or floor <= cost <= held <= limit or least:
                break
            closer = max(held - foreseen, offset + 1)
            offset = closer if held > limit and cost > floor else cost - foreseen + limit - floor
        plain = None if best is not None and best[1] >= _LEAST * limit else self._by_own_cost(limit)
        if plain is not None and (best is None or plain[1] > best[1]):
            return plain
        return None if best is None else best[:2]

    def _by_own_cost(self, limit: int) -> tuple[S, int] | None:
        """The model with the least error within a limit of the target's own cost; None where there is none."""
        if self.own is None:
            return None
        counts = self.own.solve(limit - self._beside(self.own))
        made = None if counts is None or not any(counts) else self._made(counts)
        return made if made is not None and made[1] <= limit else None

    def _beside(self, knapsack: Knapsack) -> int:
        """What the original costs beside what a knapsack knows of."""
        return self._before - knapsack.cost.dead - knapsack.cost.total([0] * len(knapsack.allowed))

    def _made(self, counts: Counts) -> tuple[S, int]:
        """A model, and what it costs."""
        made = self.take(counts)
        price, foreseen = self.price(made), self.knapsack.cost.total(counts) + self._offset
        if not self.exact and price is not None:
            self._timed.append(((made, foreseen), price))
        return made, foreseen if price is None else int(getattr(price, self._size))

    def _of(self, cost: int) -> str:
        return f"{amount_of(self._size, cost)} of {amount_of(self._size, self._before)}"

    def _searched(self, least: int, allowed: float) -> tuple[S, int, float]:
        """The smallest of some models that lose no more than allowed, found by halving between ``least`` and the original."""
        low, high = least, self._before
        best = self.take([0] * len(self.knapsack.allowed)), self._before, 0.0
        known: dict[int, float] = {}
        while len(self.checks) < CHECKS and (high - low) * _FINENESS > self._before:
            middle = (low + high) // 2
            made = self._within(middle)
            if made is None:
                low = middle
                continue
            found, cost = made
            if cost not in known:
                known[cost] = self._checked(found, cost, allowed)
            lost = known[cost]
            if lost <= allowed:
                high, best = min(cost, middle), (found, cost, lost)
            else:
                low = middle
        return best

    def _checked(self, found: S, cost: int, allowed: float) -> float:
        """Measure a model."""
        assert self.lost is not None, "asked for where there are data"
        lost = self.lost(found)
        self.checks.append(Check(round(cost / max(self._before, 1), 6), lost, lost <= allowed))
        return lost

    def _met(self, found: S, cost: int, passed: bool, lost: float | None) -> Met:
        value = 1 - lost if lost is not None and self.measure == "agreement" else lost
        times = [time for (made, time), _ in self._timed if made is found and self._size == SPEED]
        foreseen = times[-1] if times else None
        measure = self.measure if lost is not None else ""
        return Met(self.target, self._before, cost, passed, value, measure, tuple(self.checks), foreseen)
