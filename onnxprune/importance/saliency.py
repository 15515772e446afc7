"""Saliency: how much would be missed if another unit stood in for one (PAODING's baseline)."""

from __future__ import annotations

from itertools import islice

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.channels import ChannelGroup
from onnxprune.data import Dataset
from onnxprune.importance.magnitude import l1
from onnxprune.importance.options import Options
from onnxprune.importance.pairs import Cost, Pairs, greedy, nearest
from onnxprune.importance.scene import Scene
from onnxprune.importance.units import Units
from onnxprune.labels import BoolArray, IntArray
from onnxprune.weights import Array, Weights


def saliency(units: Units) -> Cost:
    """``S[i, j] = (|b_i - b_j| / |b_i + b_j| + ||w_i - w_j||_2) ||a_j||_2``: unit j leaves, i stands in for it.

    ``w``, ``b``: incoming weights and bias, ``a``: outgoing weights. Biases that add up to zero count as equal where both
    are zero, as infinitely far apart otherwise. Meng et al. 2023, after Srinivas and Babu 2015, arXiv:1507.06149.
    """
    w, b = units.incoming, units.bias
    squares, heard = np.einsum("ij,ij->i", w, w), np.linalg.norm(units.outgoing, axis=1)

    def cost(columns: IntArray) -> Array:
        gaps = w @ w[columns].T
        gaps *= -2
        gaps += squares[:, None]
        gaps += squares[columns]
        np.sqrt(np.maximum(gaps, 0, out=gaps), out=gaps)
        if b.any():
            apart, total = np.abs(b[:, None] - b[columns]), np.abs(b[:, None] + b[columns])
            gaps += np.divide(apart, total, out=np.where(apart > 0, np.float32(np.inf), np.float32(0)), where=total > 0)
        gaps *= heard[columns]
        return gaps

    return cost


class Saliency:
    """Pairs by saliency alone, cheapest first. Channels that are no units of a dense layer: the L1 norm of their filters."""

    compensation = "merge"

    def __init__(self, options: Options | None = None) -> None:
        self.options = Options() if options is None else options

    def __call__(self, group: ChannelGroup, weights: Weights, data: Dataset | None) -> Scores:
        """Float64 (channels,), larger = keep: PAODING's channel scale."""
        return l1(group, weights, data)

    def nominate(self, scene: Scene, number: int, count: int) -> Pairs | None:
        """At most ``count`` pairs; fewer where units are used once and run out."""
        units = scene.units(number)
        if units is None:
            return None
        return self.choose(scene, number, units, self._free(scene, number), count)

    def choose(self, scene: Scene, number: int, units: Units, free: BoolArray, count: int) -> Pairs:
        """The pairs that leave, of units that are ``free`` to take part."""
        return self.candidates(units, free, count)

    def candidates(self, units: Units, free: BoolArray, count: int) -> Pairs:
        """The pairs of the lowest saliency."""
        found = list(islice(greedy(saliency(units), free, recursive=self.options.recursive), count))
        return Pairs(np.array([j for j, _, _ in found], np.int64), np.array([i for _, i, _ in found], np.int64))

    def rank(self, scene: Scene, number: int) -> Scores | None:
        """The cost of each unit with its best stand-in, float64 (units,)."""
        units = scene.units(number)
        return None if units is None else self.costs(scene, number, units)

    def costs(self, scene: Scene, number: int, units: Units) -> Scores:
        """The same for units."""
        _, lowest = nearest(saliency(units), self._free(scene, number))
        return np.nan_to_num(lowest, posinf=float(np.max(lowest[np.isfinite(lowest)], initial=1.0)))

    def _free(self, scene: Scene, number: int) -> BoolArray:
        """The units that may take part: all, or where each is used once, those that stand in for nothing yet."""
        heirs = scene.heirs[scene.group(number).roots]
        return np.ones_like(heirs) if self.options.recursive else ~heirs
