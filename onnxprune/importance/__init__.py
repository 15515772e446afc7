"""Criteria: how important each channel of a group is. One file each.

A criterion is a function ``(group, weights, rng) -> float64 (channels,)``, larger = keep. It never names an operator:
the group hands out the slices of its producers' filters.

>>> from onnxprune.importance import CRITERIA
>>> sorted(CRITERIA)
['l1', 'l2', 'random']
"""

from collections.abc import Callable, Mapping

import numpy as np

from onnxprune.channels import ChannelGroup
from onnxprune.importance.baseline import random
from onnxprune.importance.magnitude import l1, l2
from onnxprune.plan import Scores
from onnxprune.weights import Weights

Criterion = Callable[[ChannelGroup, Weights, np.random.Generator], Scores]

CRITERIA: Mapping[str, Criterion] = {"l1": l1, "l2": l2, "random": random}

__all__ = ["CRITERIA", "Criterion", "l1", "l2", "random"]
