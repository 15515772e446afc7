"""Impact: what it does to the outputs that a unit leaves, by interval arithmetic (PAODING's)."""

from __future__ import annotations

import numpy as np

from onnxprune.bounds import Interval
from onnxprune.importance.pairs import Pairs
from onnxprune.importance.saliency import Saliency
from onnxprune.importance.scene import Scene, Units
from onnxprune.importance.spread import Spread
from onnxprune.labels import BoolArray
from onnxprune.weights import Array

ALIKE = 0.9
"""Intervals at least so similar count as one in the entropy of an impact (Dai 2016)."""


def size(change: Interval) -> Array:
    """The L1 norm of the widths of the outputs' intervals, float64 (changes,)."""
    return np.asarray((change[1] - change[0]).sum(axis=1, dtype=np.float64))


def evenness(change: Interval) -> Array:
    """The Shannon entropy of how similar the outputs' intervals are to each other, float64 (changes,); 0 if all are alike.

    ``sim(p, q) = 1 - (|lo_p - lo_q| + |hi_p - hi_q|) / 2(U_hi - U_lo)`` with the union ``U`` of all intervals and 0; ``p_i`` is the
    share of outputs whose similarity with output i is at least ``ALIKE``, and the entropy ``-sum_i p_i ln p_i``.
    """
    found = []
    for low, high in zip(*change, strict=True):
        union = max(0.0, float(high.max(initial=0))) - min(0.0, float(low.min(initial=0)))
        gaps = np.abs(low[:, None] - low) + np.abs(high[:, None] - high)
        share = (1 - gaps / (2 * (union or 1e-3)) >= ALIKE).mean(axis=1)
        found.append(-(share * np.log(share)).sum())
    return np.array(found)


class Impact(Saliency):
    """Stub."""

    def choose(self, scene: Scene, number: int, units: Units, free: BoolArray, count: int) -> Pairs:
        """Stub."""
        values = scene.activations(number)
        if values is None:
            return self.candidates(units, free, count)
        pool = min(len(free) - 1, int(np.ceil(count * self.options.pool)))
        leaves, errors = Spread.of(values).order(units.outgoing, pool)
        change = scene.effect(number, leaves, 2 * np.sqrt(errors)) if self.options.pool > 1 else None
        if change is not None:
            alpha, beta = self.options.params
            large, even = size(change), evenness(change)
            score = alpha * large / large.max() + beta * even / max(even.max(), 1e-9)
            leaves = leaves[np.argsort(score, kind="stable")[:count]]
        leaves = leaves[:count]
        return Pairs(leaves, np.full(len(leaves), -1))
