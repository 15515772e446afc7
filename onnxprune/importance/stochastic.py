"""Stochastic: impact with simulated annealing (PAODING's)."""

from __future__ import annotations

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.importance.baseline import drawn
from onnxprune.importance.impact import Impact
from onnxprune.importance.scene import Scene
from onnxprune.labels import IntArray


class Stochastic(Impact):
    """Walks the candidates, those least missed first, and takes worse ones too as long as the group is hot.

    A candidate is taken if its impact is at most that of the last one taken, otherwise with probability
    ``exp(-(score - last) / T)``, where ``T = 1.0001 - taken / candidates`` falls with every one that is taken; the first is
    always taken. The walk is repeated until enough have been taken, each once.
    """

    def pick(self, scene: Scene, number: int, scores: Scores, count: int) -> IntArray:
        """Which candidates leave."""
        rng = drawn(self.options.seed, scene.group(number))
        taken: list[int] = []
        waiting = list(range(len(scores)))
        while len(taken) < min(count, len(scores)):
            for k in list(waiting):
                heat = 1.0001 - len(taken) / len(scores)
                worse = scores[k] - scores[taken[-1]] if taken else 0.0
                if worse <= 0 or rng.random() < np.exp(-worse / heat):
                    taken.append(k)
                    waiting.remove(k)
                if len(taken) == count:
                    break
        return np.array(taken, np.int64)
