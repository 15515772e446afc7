"""What all criteria have in common that are measured on data."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from onnxprune.allocation import Scores, lowest
from onnxprune.channels import ChannelGroup
from onnxprune.data import Dataset
from onnxprune.errors import ModelError, UsageError
from onnxprune.importance.options import Options
from onnxprune.importance.pairs import Pairs
from onnxprune.importance.scene import Scene
from onnxprune.weights import Weights


class Measured(ABC):
    """A criterion that is measured on data: for all groups at the same time, and once, on the model as it was at first."""

    compensation = "none"
    name: str

    def __init__(self, options: Options | None = None) -> None:
        self.options = Options() if options is None else options

    @abstractmethod
    def measure(self, scene: Scene) -> list[Scores]:
        """Float64 (channels,) for each group of the scene, larger = keep; what it needs is ``scene.calibration``.

        Raises:
            UsageError: data or labels are missing.
            DataError: those that there are do not do.
        """

    def rank(self, scene: Scene, number: int) -> Scores:
        """Float64 (channels,), larger = keep.

        Raises:
            ModelError: the model gives NaN or infinity.
        """
        return scene.measured(self, self._finite, number)

    def _finite(self, scene: Scene) -> list[Scores]:
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at
            found = self.measure(scene)
        for group, scores in zip(scene.coupling.groups, found, strict=True):
            if not np.isfinite(scores).all():
                raise ModelError(
                    f"criterion {self.name!r} is not finite for channel {int(np.argmin(np.isfinite(scores)))} of group "
                    f"{group.name!r}: the model or its gradient overflows on the data; take another criterion, or other data"
                )
        return found

    def nominate(self, scene: Scene, number: int, count: int) -> Pairs | None:
        """Those of the lowest scores leave."""
        leaves = lowest(self.rank(scene, number), count)
        return Pairs(leaves, np.full(len(leaves), -1))

    def __call__(self, group: ChannelGroup, weights: Weights, data: Dataset | None) -> Scores:
        """Not possible: a group alone does not say how the model runs."""
        raise UsageError(f"criterion {self.name!r} is measured on the whole model; take it by name, or give it to a Sampler")
