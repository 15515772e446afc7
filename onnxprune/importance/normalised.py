"""What a normalisation right behind a layer makes of its channels."""

from __future__ import annotations

import numpy as np

from onnxprune.channels import Coupling, Member
from onnxprune.flow import Site
from onnxprune.importance.scene import Scene
from onnxprune.labels import IntArray
from onnxprune.rules import find
from onnxprune.weights import Array


def behind(coupling: Coupling, name: str) -> tuple[str, str] | None:
    """What the normalisation (or any other node with a stored scale) right behind a tensor writes, and its scale's name."""
    stored = coupling.graph.weights
    for node in coupling.graph.consumers.get(name, []):
        rule = find(node.op, node.domain)
        if rule is not None and not rule.product and node.outputs:
            scales = [n for k in rule.times if (n := node.input(k)) in stored and stored.count(n) > 1]
            if scales:
                return node.outputs[0], scales[0]
    return None


def scales(scene: Scene, number: int, member: Member) -> Array:
    """What the normalisation behind one of a group's producers multiplies its channels with, float32 (channels,).

    0 where there is none, or it has no number of its own for each channel.
    """
    coupling, roots = scene.coupling, scene.group(number).roots
    found = np.zeros(len(roots), np.float32)
    for name in scene.made(number):
        node = scene.graph.producers[name]
        makers = {node.label, *(scene.graph.producers[n].label for n in node.inputs if n in scene.graph.producers)}
        after = behind(coupling, name)
        if after is None or coupling.flow.roles.get(member.site, {}).get("producer") not in makers:
            continue
        shape = scene.weights.shape(after[1])
        site = Site(after[1], int(np.argmax(shape)))
        if site in coupling.flow.sites and max(shape) == scene.weights.count(after[1]):
            owners = coupling.components.root[coupling.labels(site)]
            order = np.argsort(owners, kind="stable")
            places: IntArray = order[np.minimum(np.searchsorted(owners[order], roots), len(owners) - 1)]
            values = scene.weights.read(after[1]).ravel().astype(np.float32)
            found = np.where(owners[places] == roots, values[places], found)
    return found
