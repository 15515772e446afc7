"""Impact: what it does to the outputs that a unit leaves, by interval arithmetic (PAODING's)."""

from __future__ import annotations

import numpy as np

from onnxprune.allocation import Scores, lowest
from onnxprune.bounds import Interval
from onnxprune.importance.pairs import Pairs
from onnxprune.importance.saliency import Saliency
from onnxprune.importance.scene import Scene
from onnxprune.importance.spread import Spread
from onnxprune.importance.units import Units
from onnxprune.labels import BoolArray, IntArray
from onnxprune.weights import Array

ALIKE = 0.9
"""Intervals at least so similar count as one in the entropy of an impact (Dai 2016)."""


def size(change: Interval) -> Array:
    """The L1 norm of the widths of the outputs' intervals, float64 (changes,)."""
    return np.asarray((change[1] - change[0]).sum(axis=1, dtype=np.float64))


def evenness(change: Interval) -> Array:
    """The Shannon entropy of how similar the outputs' intervals are to each other, float64 (changes,); 0 if all are alike.

    ``sim(p, q) = 1 - (|lo_p - lo_q| + |hi_p - hi_q|) / 2(U_hi - U_lo)`` with the union ``U`` of all intervals and 0; ``p_i``
    is the share of outputs whose similarity with output i is at least ``ALIKE``, and the entropy ``-sum_i p_i ln p_i``.
    """
    found = []
    for low, high in zip(*change, strict=True):
        union = max(0.0, float(high.max(initial=0))) - min(0.0, float(low.min(initial=0)))
        gaps = np.abs(low[:, None] - low) + np.abs(high[:, None] - high)
        share = (1 - gaps / (2 * (union or 1e-3)) >= ALIKE).mean(axis=1)
        found.append(-(share * np.log(share)).sum())
    return np.array(found)


class Impact(Saliency):
    """The units whose leaving moves the outputs least and most evenly, once those that stay have taken over.

    Candidates are the units that would be missed least by what reads them, ``pool`` times as many as leave. How much of a
    unit the others can't take over is known from synthetic inputs (:mod:`~onnxprune.importance.spread`); that much, twice its
    standard deviation up or down, is followed to the outputs by interval arithmetic. The score is ``alpha L / max L + beta E /
    max E`` of the size ``L`` and the evenness ``E`` of what arrives: sums, unlike the sigmoids of PAODING's, that never
    saturate. Channels of a convolution leave in the order in which they would be missed, without the way to the outputs.
    """

    compensation = "least-squares"

    def nominate(self, scene: Scene, number: int, count: int) -> Pairs | None:
        """At most ``count`` channels; None where stored weights do not read them one by one."""
        if scene.units(number) is not None:
            return super().nominate(scene, number, count)
        values = scene.activations(number)
        if values is None:
            return None
        leaves, _ = Spread.of(values).order(scene.outgoing(number), count)
        return Pairs(leaves, np.full(len(leaves), -1))

    def choose(self, scene: Scene, number: int, units: Units, free: BoolArray, count: int) -> Pairs:
        """The pairs that leave; none of them has a single stand-in where all that stay can take over."""
        values = scene.activations(number)
        if values is None:
            return self.candidates(units, free, count)
        wanted = min(units.incoming.shape[0] - 1, int(np.ceil(count * self.options.pool)))
        pool, errors = Spread.of(values).order(units.outgoing, wanted)
        chosen = pool[self.pick(scene, number, self.scores(scene, number, pool, errors), count)]
        return Pairs(chosen, np.full(len(chosen), -1))

    def scores(self, scene: Scene, number: int, pool: IntArray, errors: Array) -> Scores:
        """The impact of each candidate, float64 (candidates,); in the order of the pool where it can't be followed."""
        change = scene.effect(number, pool, 2 * np.sqrt(errors))
        if change is None or not np.isfinite(change).all() or not change[1].size:
            return np.arange(len(pool), dtype=np.float64)
        alpha, beta = self.options.params
        large, even = size(change), evenness(change)
        return np.asarray(alpha * large / max(large.max(), 1e-30) + beta * even / max(even.max(), 1e-30))

    def pick(self, scene: Scene, number: int, scores: Scores, count: int) -> IntArray:
        """Which candidates leave: those of the lowest scores."""
        return lowest(scores, count)
