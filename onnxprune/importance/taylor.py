"""Taylor: activations times the slopes of the loss (MIC-Laboratory's Pruning Engine)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.importance.calibration import Calibration
from onnxprune.importance.measured import Measured
from onnxprune.importance.normalised import behind
from onnxprune.importance.options import Options
from onnxprune.importance.reconstruction import first_order, with_gradient
from onnxprune.importance.scene import Scene
from onnxprune.weights import Array


class Taylor(Measured):
    """The mean over positions of ``|F G|``: ``F`` is the mean of a channel's ``|y|`` over the samples, ``G`` that of ``|dL/dy|``.

    ``y`` is what a layer writes, its bias included; where a normalisation follows, its ``F`` and ``G`` are added to the layer's
    before they are multiplied. ``L`` is the cross-entropy with the labels, or with the model's own classes. A layer's scores are
    divided by their Euclidean norm (+ 1e-8); where several layers make the same channels, theirs are added.

    Where there is no gradient by what a layer writes, ``|sum y dL/dy|`` is taken, by differences if need be, which the notes say.

    A product of means, not the mean of products of Molchanov et al. 2017 (arXiv:1611.06440).
    """

    def __init__(self, options: Options | None = None, name: str = "taylor") -> None:
        super().__init__(options)
        self.name = name

    def measure(self, scene: Scene) -> list[Scores]:
        """Float64 (channels,) for each group, larger = keep."""
        calibration = scene.calibration(self.name)
        made = {number: scene.made(number) for number in range(len(scene.coupling.groups))}
        norms = {name: behind(scene.coupling, name) for layers in made.values() for name in layers}
        after = {name: found[0] for name, found in norms.items() if found is not None}
        read = {n: [t for name in layers for t in (name, after.get(name)) if t] for n, layers in made.items() if layers}
        known = with_gradient(calibration, read)
        values, slopes = self._means(calibration, list(dict.fromkeys(t for n in known for t in read[n])))
        found = {n: self._group(scene, n, made[n], after, values, slopes) for n in known}
        rest = first_order(scene, calibration, [n for n in made if n not in known], self.options.seed)
        found |= {n: np.abs(scores) / (np.linalg.norm(scores) + 1e-8) for n, scores in rest.items()}
        return [found[n] for n in made]

    def _means(self, calibration: Calibration, names: list[str]) -> tuple[dict[str, Array], dict[str, Array]]:
        """The mean magnitudes of tensors and of the loss's slopes by them, over the samples."""
        values, slopes = dict[str, Array](), dict[str, Array]()
        for batch in calibration.differentiate(names, names) if names else ():
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
        normalised: Mapping[str, str],
        values: Mapping[str, Array],
        slopes: Mapping[str, Array],
    ) -> Scores:
        """The scores of a group."""
        found = np.zeros(scene.group(number).size)
        for name, axis in made.items():
            at = scene.places(number, name, axis)
            assert at is not None, "where channels are made, they have places"
            f, g = values[name], slopes[name]
            if name in normalised:
                f, g = f + values[normalised[name]], g + slopes[normalised[name]]
            layer = np.moveaxis(np.abs(f * g), axis, 0)[at].reshape(len(at), -1).mean(axis=1)
            found += layer / (np.linalg.norm(layer) + 1e-8)
        return found
