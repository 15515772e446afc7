"""What every criterion must beat."""

from __future__ import annotations

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.channels import ChannelGroup
from onnxprune.data import Dataset
from onnxprune.weights import Weights


class Random:
    """Uniform random numbers, from ``seed`` on."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, group: ChannelGroup, weights: Weights, data: Dataset | None) -> Scores:
        """Float64 (channels,), larger = keep."""
        return self._rng.random(group.size)
