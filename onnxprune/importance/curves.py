"""Error curves: what it costs, in error, if ever more channels of a group leave; for budgets over the whole model."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from onnxprune.allocation import Scores, comparable
from onnxprune.importance.scene import Scene


@runtime_checkable
class Curved(Protocol):
    """A criterion that knows a group's error, rather than a score of each channel by itself."""

    def curve(self, scene: Scene, number: int) -> Scores:
        """The error once 0, 1, ..., all of a group's channels have left, the best first; float64 (channels + 1,).

        It never falls, begins with 0, and has the same unit for all groups.
        """


def summed(scores: Scores, layers: int) -> Scores:
    """The curve that follows from scores: the sum of the lowest, in units of their mean, so that groups compare.

    Each of the ``layers`` that make a group's channels loses as much: a channel of a residual stream costs one of every block.
    """
    return layers * np.concatenate([[0.0], np.cumsum(np.maximum(comparable(scores), 0.0))])
