"""Where the channels of a group are looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.channels import chosen
from onnxprune.errors import UsageError
from onnxprune.importance.scene import Scene
from onnxprune.labels import IntArray
from onnxprune.weights import Array


@dataclass(frozen=True, eq=False)
class View:
    """Where the channels of a group are looked at: ``places`` int (channels, indices) of an axis of a tensor."""

    number: int
    tensor: str
    axis: int
    places: IntArray

    def of(self, values: Array) -> Array:
        """What a batch of the tensor (samples, *shape) has for each channel, (samples, channels, ...)."""
        chosen = np.moveaxis(values, self.axis + 1, 1)
        single = self.places.shape[1] == 1
        if single and np.array_equal(self.places[:, 0], np.arange(chosen.shape[1])):
            return chosen
        return chosen[:, self.places[:, 0] if single else self.places]


def views(scene: Scene, analysis: str | Mapping[str, str] = "own") -> list[View]:
    """Where each group of a scene is looked at; see :class:`~onnxprune.importance.Options`.

    Raises:
        UsageError: there is no such group or tensor, or the group's channels do not lie in it one by one.
    """
    everywhere = analysis if isinstance(analysis, str) else "own"
    wishes = chosen(scene.coupling, {} if isinstance(analysis, str) else analysis, "--analysis")
    places = [_tensors(scene, number, wish or everywhere) for number, wish in enumerate(wishes)]
    return [View(number, *place) for number, found in enumerate(places) for place in found]


def _tensors(scene: Scene, number: int, where: str) -> list[tuple[str, int, IntArray]]:
    """Tensors, axes and places; what the layers give out where nothing sees them one by one afterwards."""
    after = scene.read(number) if where == "after" else {}
    if where not in ("own", "after"):
        axis = scene.axis(number, where)
        if axis is None:
            raise UsageError(
                f"analysis of group {scene.coupling.groups[number].name!r}: its channels do not lie in a tensor {where!r}; "
                "name one between the layer and what reads it"
            )
        after = {where: axis}
    found = [(name, axis, scene.places(number, name, axis)) for name, axis in (after or scene.made(number)).items()]
    return [(name, axis, places) for name, axis, places in found if places is not None]


def combined(scene: Scene, criterion: str, parts: Mapping[tuple[int, str], Scores]) -> list[Scores]:
    """The scores of each group from those in the tensors where it is looked at, ``parts`` by number and tensor.

    Several layers that make a group need not have outputs of the same size: each one's scores are divided by their mean.

    Raises:
        UsageError: a group is seen nowhere.
    """
    found: list[list[Scores]] = [[] for _ in scene.coupling.groups]
    for (number, _), scores in parts.items():
        found[number].append(scores)
    for group, each in zip(scene.coupling.groups, found, strict=True):
        if not each:
            raise UsageError(
                f"criterion {criterion!r} sees the channels of group {group.name!r} in no tensor one by one; --freeze its layer"
            )
    return [np.mean([s / (s.mean() or 1.0) for s in each], axis=0) if len(each) > 1 else each[0] for each in found]
