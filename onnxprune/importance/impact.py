"""Impact."""

from __future__ import annotations

import numpy as np

from onnxprune.importance.pairs import Pairs
from onnxprune.importance.saliency import Saliency
from onnxprune.importance.scene import Scene, Units
from onnxprune.importance.spread import Spread
from onnxprune.labels import BoolArray


class Impact(Saliency):
    """Stub."""

    def choose(self, scene: Scene, number: int, units: Units, free: BoolArray, count: int) -> Pairs:
        values = scene.activations(number)
        if values is None:
            return self.candidates(units, free, count)
        leaves, _ = Spread.of(values).order(units.outgoing, np.arange(len(free)), count)
        return Pairs(leaves, np.full(len(leaves), -1))
