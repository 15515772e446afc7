"""Turns groups of channels to their principal axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.errors import ModelError, VerificationError
from onnxprune.evaluate.verify import verify
from onnxprune.importance import Scene
from onnxprune.importance.obs import read
from onnxprune.importance.readers import LayerReader, Reader
from onnxprune.plan import PlanEdit
from onnxprune.rotation.absorb import absorbed, given
from onnxprune.rotation.region import Region, Regions
from onnxprune.standing import Standing
from onnxprune.weights import Array

Look = Callable[[Standing], Scene]
"""What is seen of a model."""


def rotated(standing: Standing, scene: Scene, look: Look) -> tuple[Standing, list[str]]:
    """The same model, in which channels that linear layers alone make and read are turned to their principal axes.

    Args:
        scene: the model as it is.
        look: how it is seen once weights have changed.

    Returns:
        the model, and the names of the groups. It is as it was where there are none, where it is too large for memory, or
        where it does not give the same once they are turned.
    """
    graph = standing.coupling.graph
    original = graph.assemble()
    if original.large:
        return standing, []
    free, regions = _free(standing, scene, look)
    if not regions:
        return standing, []
    try:
        edits, names = _edits(regions)
        after = free.changed(edits)
        same = edits and verify(graph, standing.coupling.shapes, original.ready(), after.coupling.graph.assemble().ready()).passed
    except (ModelError, VerificationError):  # whoever looks at the inputs next says what is wrong with them
        return standing, []
    return (after, names) if same else (standing, [])


def _free(standing: Standing, scene: Scene, look: Look) -> tuple[Standing, list[Region]]:
    """The groups whose channels can be turned, in a model in which no normalisation stands between these and their readers."""
    regions = Regions(scene)
    found: list[int] = []
    for number in range(len(standing.coupling.groups)):
        obstacles = regions.obstacles(number)
        if obstacles:
            edits = [absorbed(regions.scene, number, step, regions.layers) for step in obstacles]
            changed = standing.changed([edit for each in edits for edit in each]) if all(edits) else standing
            if changed is not standing and len(changed.coupling.groups) == len(standing.coupling.groups):
                standing, regions = changed, Regions(look(changed))
                obstacles = regions.obstacles(number)
        if obstacles == []:
            found.append(number)
    return standing, [region for region in map(regions.of, found) if region is not None]


def _edits(regions: Sequence[Region]) -> tuple[list[PlanEdit], list[str]]:
    """The changes that turn groups of one scene, and their names."""
    scene = regions[0].scene
    values: dict[str, Array] = {}
    names: list[str] = []
    by_number = {region.number: region for region in regions}
    for number, readers in read(scene, list(by_number)):
        region, basis = by_number[number], principal_axes(readers)
        if basis is None:
            continue
        names.append(scene.coupling.groups[number].name)
        for name in region.stored:
            old = values[name] if name in values else scene.graph.weights.read(name).astype(np.float64)
            values[name] = region.turned(name, old, basis)
    axes = {name: axis for region in regions for name, places in region.stored.items() for axis in places}
    return [given(name, axes[name], new) for name, new in values.items()], names


def principal_axes(readers: Sequence[Reader]) -> Array | None:
    """Orthonormal directions, float64 (channels, channels), of which the first carry most of what comes of the channels.

    They are the eigenvectors of ``C^(1/2) R C^(1/2)``, with ``C`` the channels' covariance and ``R`` the sum of ``W W'`` over all
    that reads them, each in units of the variance of its sums. None where something else than linear layers reads them, or
    what they are on the inputs is not finite.
    """
    spread: Array | float = 0.0
    read_by: Array | float = 0.0
    for reader in readers:
        if not isinstance(reader, LayerReader):
            return None
        for system in reader.systems():
            covariance = system.a - np.outer(system.a[-1], system.a[-1])
            parts = [(covariance[np.ix_(place, place)], system.z[place]) for place in system.places.T]
            total = sum(float(np.trace(part)) for part, _ in parts)
            if not (np.isfinite(total) and total > 0 and system.unit > 0):
                return None
            spread = spread + sum(part for part, _ in parts) / total
            read_by = read_by + sum(z @ z.T for _, z in parts) / system.unit
    if isinstance(spread, float):
        return None
    powers, axes = np.linalg.eigh(spread)
    root = (axes * np.sqrt(np.maximum(powers, 0))) @ axes.T
    found = np.linalg.eigh(root @ read_by @ root)[1][:, ::-1]
    strongest = found[np.abs(found).argmax(axis=0), np.arange(len(found))]
    return np.asarray(found * np.where(strongest < 0, -1.0, 1.0))
