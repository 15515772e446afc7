"""The layers that make a group's channels: what each of them writes, and what a normalisation behind it makes of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.channels import ChannelGroup, Coupling, Member
from onnxprune.flow import Site, Step
from onnxprune.labels import IntArray
from onnxprune.weights import Array


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A producer of a group's channels, and the tensors by which its work is known.

    ``sums``: what it writes, its bias included. ``normalised``: what a normalisation (or any other stored scale) right behind
    makes of that, and ``scale`` the stored tensor that it multiplies with; both empty where there is none.
    """

    member: Member
    sums: str
    normalised: str = ""
    scale: str = ""


def layers(coupling: Coupling, group: ChannelGroup) -> list[Layer]:
    """All layers that make a group's channels, in the order of their stored weights."""
    steps = {step.call.node.index: step for step in coupling.flow.steps if step.rule is not None}
    found = []
    for member in (m for m in group.members if m.producer):
        for step in _readers(coupling, steps, member.site.tensor):
            name = next(filter(None, step.call.node.outputs))
            while (after := _scaled(coupling, steps, name)) is None and (shifted := _shifted(coupling, steps, name)):
                name = shifted
            found.append(Layer(member, name, *(after or ())))
    return found


def scales(coupling: Coupling, group: ChannelGroup, layer: Layer) -> Array:
    """What a layer's normalisation multiplies each channel with, float32 (channels,); 0 where there is none.

    0 also where the scale is one number, or does not belong to the channels one by one.
    """
    shape = coupling.graph.weights.shape(layer.scale) if layer.scale else ()
    axis = max(range(len(shape)), key=shape.__getitem__, default=0)
    site = Site(layer.scale, axis)
    if site not in coupling.flow.sites or np.prod(shape) != shape[axis]:
        return np.zeros(group.size, np.float32)
    owners = coupling.components.root[coupling.labels(site)]
    order = np.argsort(owners, kind="stable")
    places: IntArray = np.minimum(np.searchsorted(owners[order], group.roots), len(owners) - 1)
    values = coupling.graph.weights.read(layer.scale).ravel().astype(np.float32)[order[places]]
    return np.where(owners[order[places]] == group.roots, values, np.float32(0))


def _readers(coupling: Coupling, steps: dict[int, Step], name: str) -> Iterator[Step]:
    """The steps that compute with a stored tensor, which may have been moved before."""
    for node in coupling.graph.consumers.get(name, []):
        outputs = [n for n in node.outputs if n]
        if outputs and coupling.flow.is_weight(outputs[0]):
            yield from _readers(coupling, steps, outputs[0])
        elif outputs and node.index in steps:
            yield steps[node.index]


def _scaled(coupling: Coupling, steps: dict[int, Step], name: str) -> tuple[str, str] | None:
    """What a node that multiplies a tensor with a stored one makes of it, and that stored tensor."""
    for node in coupling.graph.consumers.get(name, []):
        rule = steps[node.index].rule if node.index in steps else None
        if rule is not None and not rule.product and node.outputs:
            factors = [node.inputs[k] for k in rule.times if k < len(node.inputs)]
            stored = [n for n in factors if n in coupling.graph.weights and coupling.graph.weights.count(n) > 1]
            if stored:
                return node.outputs[0], stored[0]
    return None


def _shifted(coupling: Coupling, steps: dict[int, Step], name: str) -> str:
    """What a node that alone reads a tensor, and adds a stored one to it, makes of it; empty where there is none."""
    readers = coupling.graph.consumers.get(name, [])
    if len(readers) != 1 or readers[0].op != "Add" or readers[0].index not in steps:
        return ""
    return readers[0].outputs[0] if any(n in coupling.graph.weights for n in readers[0].inputs) else ""
