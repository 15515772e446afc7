"""What follows a linear layer's sums: what is added to them, and how much of that an activation lets through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.graph import Graph
from onnxprune.leastsquares.linear import Linear, Product
from onnxprune.leastsquares.recurrent import Gates
from onnxprune.structure import Node
from onnxprune.weights import Array

SATURATED = 2.5
"""Where sigmoid and tanh are flat enough: of larger sums it only matters that they are large."""


@dataclass(frozen=True, eq=False)
class Tail:
    """``end = scale * sums + shift + other``, of which an activation lets through what lies between ``low`` and ``high``.

    ``other``: the name of a tensor that is computed elsewhere, or empty. ``scale``, ``shift``: float64 (sums,), of a
    normalisation whose statistics are stored.
    """

    end: str
    scale: Array
    shift: Array
    other: str = ""
    low: float = -np.inf
    high: float = np.inf

    @property
    def clips(self) -> bool:
        """Whether an activation lets only some of it through."""
        return bool(np.isfinite([self.low, self.high]).any())

    def without_other(self, name: str) -> Tail:
        """The sums by themselves, which the tensor ``name`` is."""
        return Tail(name, np.ones_like(self.scale), np.zeros_like(self.shift))


def tail_of(coupling: Coupling, layer: Linear) -> Tail:
    """What follows a layer."""
    graph, shapes = coupling.graph, coupling.shapes
    size = layer.groups * layer.outputs
    if isinstance(layer, Gates):
        bound = SATURATED if layer.saturates else np.inf
        return Tail("", np.ones(size), np.zeros(size), low=-bound, high=bound)
    assert isinstance(layer, Product), "there are no others"
    plain = Tail(layer.target, np.ones(size), np.zeros(size))
    node, found = _only_reader(graph, layer.target), plain
    if node is not None and node.op == "BatchNormalization" and layer.convolves:
        affine = _normalised(graph, node, size)
        if affine is None:
            return plain
        found = Tail(node.outputs[0], *affine)
        node = _only_reader(graph, found.end)
    if node is not None and node.op == "Add" and len(set(node.inputs)) == 2:
        other = next(name for name in node.inputs if name != found.end)
        alike = shapes.get(other) is not None and shapes.get(other) == shapes.get(found.end)
        if other not in graph.weights and alike:  # what is stretched to fit has fewer positions than what comes of it
            found = Tail(node.outputs[0], found.scale, found.shift, other)
    return _clipped(graph, found)


def _only_reader(graph: Graph, name: str) -> Node | None:
    """What alone reads a tensor, if it is an operator of ONNX's own."""
    node = graph.only_reader(name)
    return node if node is not None and node.standard else None


def normalisation(graph: Graph, node: Node) -> tuple[Array, Array] | None:
    """How a BatchNormalization scales and shifts each channel, float64 (channels,); None where its statistics are not stored."""
    if any(name not in graph.weights for name in node.inputs[1:5]) or node.attributes.get("training_mode", 0):
        return None
    gamma, beta, mean, variance = (graph.weights.read(name).astype(np.float64) for name in node.inputs[1:5])
    scale = gamma / np.sqrt(variance + float(node.attributes.get("epsilon", 1e-5)))
    return scale, beta - mean * scale


def _normalised(graph: Graph, node: Node, size: int) -> tuple[Array, Array] | None:
    """The same where no channel is all but lost by it."""
    found = normalisation(graph, node)
    if found is None:
        return None
    least = 1e-4 * np.abs(found[0]).max(initial=0.0)
    return found if len(found[0]) == size and (np.abs(found[0]) > least).all() else None


def _clipped(graph: Graph, tail: Tail) -> Tail:
    """The same with the bounds of the activation that all readers apply."""
    readers = graph.consumers.get(tail.end, [])
    if any(port.name == tail.end for port in graph.outputs) or not readers:
        return tail
    bounds = [_bounds(graph, node) for node in readers]
    if None in bounds or len(set(bounds)) != 1 or bounds[0] is None:
        return tail
    return Tail(tail.end, tail.scale, tail.shift, tail.other, *bounds[0])


def _bounds(graph: Graph, node: Node) -> tuple[float, float] | None:
    """Between which values an activation lets its operand through as it is; None where it is of another kind."""
    if node.op == "Relu" and node.standard:
        return 0.0, np.inf
    if node.op != "Clip" or not node.standard:
        return None
    ends = [float(node.attributes.get("min", -np.inf)), float(node.attributes.get("max", np.inf))]
    for k in (1, 2):
        name = node.input(k)
        if name and name not in graph.weights:
            return None
        ends[k - 1] = float(graph.weights.read(name)) if name else ends[k - 1]
    return ends[0], ends[1]
