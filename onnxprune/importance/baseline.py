"""What every criterion must beat."""

from __future__ import annotations

import zlib

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.channels import ChannelGroup
from onnxprune.data import Dataset
from onnxprune.weights import Weights


def drawn(seed: int, group: ChannelGroup) -> np.random.Generator:
    """Random numbers of a group's own, whatever else is drawn before."""
    return np.random.default_rng([seed, zlib.crc32(group.name.encode()), group.size])


class Random:
    """Uniform random numbers, from ``seed`` on."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, group: ChannelGroup, weights: Weights, data: Dataset | None) -> Scores:
        """Float64 (channels,), larger = keep."""
        return drawn(self.seed, group).random(group.size)
