"""Magnitude of filters."""

from __future__ import annotations

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.channels import ChannelGroup
from onnxprune.data import Dataset
from onnxprune.weights import Weights


def l1(group: ChannelGroup, weights: Weights, data: Dataset | None) -> Scores:
    """L1 norm of the channel's filters, summed over all producers of the group.

    PAODING's channel scale (Meng et al. 2023); Li et al. 2017, arXiv:1608.08710. Reads one stored tensor at a time.

    Returns:
        float64 (channels,), larger = keep.
    """
    return _power_sum(group, weights, 1)


def l2(group: ChannelGroup, weights: Weights, data: Dataset | None) -> Scores:
    """L2 norm of all the channel's filters together. Reads one stored tensor at a time.

    Returns:
        float64 (channels,), larger = keep.
    """
    return np.sqrt(_power_sum(group, weights, 2))


def _power_sum(group: ChannelGroup, weights: Weights, power: int) -> Scores:
    scores = np.zeros(group.size, np.float64)
    for filters, channels in group.slices(weights):
        wide = filters if filters.dtype in (np.float32, np.float64) else filters.astype(np.float32)
        flat = wide.reshape(len(wide), -1)
        terms = np.abs(flat) if power == 1 else flat * flat
        np.add.at(scores, channels, terms.sum(axis=1, dtype=np.float64))
    return scores
