"""What every criterion must beat."""

from __future__ import annotations

import numpy as np

from onnxprune.channels import ChannelGroup
from onnxprune.plan import Scores
from onnxprune.weights import Weights


def random(group: ChannelGroup, weights: Weights, rng: np.random.Generator) -> Scores:
    """Uniform random numbers.

    Returns:
        float64 (channels,), larger = keep.
    """
    return rng.random(group.size)
