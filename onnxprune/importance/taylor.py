"""Taylor: activations times the slopes of the loss (MIC-Laboratory's Pruning Engine)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.importance.magnitude import l1
from onnxprune.importance.measured import Measured
from onnxprune.importance.normalised import behind
from onnxprune.importance.options import Options
from onnxprune.importance.scene import Scene
from onnxprune.weights import Array


class Taylor(Measured):
    """The mean over positions of ``|F G|``: ``F`` is the mean of a channel's ``|y|`` over the samples, ``G`` that of ``|dL/dy|``.

    ``y`` is what a layer writes, its bias included; where a normalisation follows, its ``F`` and ``G`` are added to the layer's
    before they are multiplied. ``L`` is the cross-entropy with the labels, or with the model's own classes. A layer's scores are
    divided by their Euclidean norm (+ 1e-8); where several layers make the same channels, theirs are added.

    A product of means, not the mean of products of Molchanov et al. 2017 (arXiv:1611.06440).
    """

    def __init__(self, options: Options | None = None, name: str = "taylor") -> None:
        super().__init__(options)
        self.name = name

    def measure(self, scene: Scene) -> list[Scores]:
        """Float64 (channels,) for each group, larger = keep."""
        groups = range(len(scene.coupling.groups))
        made = [scene.made(number) for number in groups]
        names = {name: behind(scene.coupling, name) for layers in made for name in layers}
        both = [*names, *(after[0] for after in names.values() if after is not None)]
        values, slopes = self._means(scene, both)
        return [self._group(scene, number, made[number], names, values, slopes) for number in groups]

    def _means(self, scene: Scene, names: list[str]) -> tuple[dict[str, Array], dict[str, Array]]:
        """The mean magnitudes of tensors and of the loss's slopes by them, over the samples."""
        values, slopes = dict[str, Array](), dict[str, Array]()
        calibration = scene.calibration(self.name)
        for batch in calibration.differentiate(names, names):
            share = len(batch.rows) / calibration.data.samples
            for name in names:
                for found, here in ((values, batch.tensors[name]), (slopes, batch.slopes[name])):
                    found[name] = found.get(name, 0) + share * np.abs(here).mean(axis=0, dtype=np.float64)
        return values, slopes

    def _group(
        self,
        scene: Scene,
        number: int,
        made: Mapping[str, int],
        names: Mapping[str, tuple[str, str] | None],
        values: Mapping[str, Array],
        slopes: Mapping[str, Array],
    ) -> Scores:
        """The scores of a group; its L1 norms where no layer's outputs are seen."""
        found = np.zeros(scene.group(number).size)
        for name, axis in made.items():
            after, at = names[name], scene.places(number, name, axis)
            assert at is not None, "where channels are made, they have places"
            f, g = values[name], slopes[name]
            if after is not None:
                f, g = f + values[after[0]], g + slopes[after[0]]
            layer = np.moveaxis(np.abs(f * g), axis, 0)[at].reshape(len(at), -1).mean(axis=1)
            found += layer / (np.linalg.norm(layer) + 1e-8)
        return found if made else l1(scene.group(number), scene.weights, None)
