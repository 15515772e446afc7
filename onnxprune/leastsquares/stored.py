"""Constant operands of layers, and where their elements are stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.flow import Site, Step, carried
from onnxprune.graph import Graph
from onnxprune.labels import BoolArray, IntArray
from onnxprune.shapes import Executor
from onnxprune.structure import Node
from onnxprune.weights import FLOATS, Array


@dataclass(frozen=True, eq=False)
class Stored:
    """An operand that is a stored tensor, straight or moved about.

    ``name``: the operand. ``tensor``: the stored one. ``numbers``: which of its elements each of the operand's is, int of the
    operand's shape; None where both are the same. ``reader``, ``place``: the node that reads the stored one, and at which
    input. ``own``: whether nothing else does.
    """

    name: str
    tensor: str
    numbers: IntArray | None
    reader: str
    place: int
    own: bool

    @classmethod
    def of(cls, coupling: Coupling, node: Node, index: int) -> Stored | None:
        """The operand of a node; None where it is no stored tensor of floats, or not each of its elements for itself."""
        graph, name, chain = coupling.graph, node.inputs[index], list[tuple[Node, int]]()
        reader, place = node, index
        while reader.inputs[place] not in graph.weights:
            maker = graph.producers.get(reader.inputs[place])
            moving = _moving(coupling, maker)
            if maker is None or moving is None or not _reads_alone(graph, reader, reader.inputs[place]):
                return None
            chain.append((maker, moving))
            reader, place = maker, moving
        tensor = reader.inputs[place]
        if graph.weights.elem_type(tensor) not in FLOATS:
            return None
        numbers = _numbers(coupling, tensor, chain) if chain else None
        if chain and (numbers is None or numbers.min(initial=1) < 1 or len(np.unique(numbers)) < numbers.size):
            return None
        own = tensor not in graph.uses and _reads_alone(graph, reader, tensor)
        return cls(name, tensor, None if numbers is None else numbers - 1, reader.result, place, own)

    def seen(self, values: Array) -> Array:
        """The operand for some values of the stored tensor."""
        return values if self.numbers is None else values.ravel()[self.numbers]

    def put(self, values: Array, operand: Array) -> Array:
        """The stored tensor, float64, whose elements that the operand has are changed to the operand's."""
        if self.numbers is None:
            return operand
        found = values.astype(np.float64)
        found.ravel()[self.numbers] = operand
        return found

    def axis(self, coupling: Coupling, axis: int) -> int:
        """The axis of the stored tensor along which the channels of one of the operand's axes lie."""
        if self.numbers is None:
            return axis
        owners = set(_owners(coupling, Site(self.name, axis)).ravel().tolist())
        root = coupling.components.root
        sites = [Site(self.tensor, a) for a in range(len(coupling.graph.weights.shape(self.tensor)))]
        fits = (s.axis for s in sites if s in coupling.flow.sites and owners & set(root[coupling.labels(s)].tolist()))
        return next(fits, 0)


def left(coupling: Coupling, site: Site, removed: BoolArray) -> BoolArray:
    """Which indices of an axis of a stored tensor, or one that is moved from it, stay."""
    owners = _owners(coupling, site)
    return np.asarray(~removed[owners].any(axis=1), np.bool_)


def _owners(coupling: Coupling, site: Site) -> IntArray:
    """The components of each index of an axis, int (indices, components)."""
    tensor = coupling.flow.tensors[site.tensor]
    found = [np.zeros((tensor.shape[site.axis], 0), np.int64)]
    for factor in tensor.factors:
        if site.axis in factor.axes:
            labels = np.moveaxis(factor.labels, factor.axes.index(site.axis), 0)
            found.append(coupling.components.root[labels.reshape(len(labels), -1)])
    return np.concatenate(found, axis=1)


def _moving(coupling: Coupling, maker: Node | None) -> int | None:
    """Which operand a node only moves about; None where there is none, or several."""
    step = None if maker is None else _step(coupling, maker)
    if maker is None or step is None or not maker.standard or len(maker.outputs) != 1:
        return None
    if maker.op in ("Cast", "Identity"):
        return 0
    carries = step.rule.carries(maker) if step.rule is not None and step.moved else ()
    return carries[0] if len([k for k in carries if maker.input(k)]) == 1 else None


def _numbers(coupling: Coupling, tensor: str, chain: list[tuple[Node, int]]) -> IntArray | None:
    """The numbers, from 1 on, of a stored tensor's elements once they have been moved; ``chain``: the last node first."""
    weights, execute = coupling.graph.weights, Executor(coupling.graph)
    numbers = np.arange(1, weights.count(tensor) + 1).reshape(weights.shape(tensor))
    for node, k in reversed(chain):
        step = _step(coupling, node)
        if node.op in ("Cast", "Identity") or step is None:
            continue
        results = carried(execute, step, k, numbers)
        if results is None:
            return None
        numbers = results[0]
    return numbers


def _reads_alone(graph: Graph, node: Node, name: str) -> bool:
    """Whether a node is all that reads a tensor."""
    found = graph.only_reader(name)
    return found is not None and found.index == node.index


def _step(coupling: Coupling, node: Node) -> Step | None:
    return next((step for step in coupling.flow.steps if step.call.node.index == node.index), None)
