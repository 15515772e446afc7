"""A normalisation whose statistics are stored scales and shifts each channel; linear layers behind it can do that as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onnxprune.flow import Step
from onnxprune.graph import Graph
from onnxprune.importance import Scene
from onnxprune.labels import IntArray
from onnxprune.leastsquares import Product, normalisation
from onnxprune.plan import PlanEdit
from onnxprune.structure import Node
from onnxprune.weights import Array

Layers = Mapping[int, Product]
"""Linear layers by their nodes' numbers."""


def absorbed(scene: Scene, number: int, step: Step, layers: Layers) -> list[PlanEdit]:
    """The changes by which what reads a group's channels does a normalisation's work, which then does nothing.

    None at all where something else reads what it gives, weights are shared, or it shifts what a border of zeros is put around.
    """
    node, graph = step.call.node, scene.graph
    if node.op != "BatchNormalization" or not node.standard:
        return []
    stored, affine = node.inputs[1:5], normalisation(graph, node)
    if affine is None or not all(_own(graph, name) for name in stored):
        return []
    own = scene.places(number, stored[0], 0)
    readers = _readers(scene, node.outputs[0], layers)
    if own is None or own.shape[1] != 1 or not readers:
        return []
    scale, shift = (values[own[:, 0]] for values in affine)
    edits: list[PlanEdit] = []
    for layer in readers:
        edit = _taken_over(scene, number, layer, scale, shift)
        if edit is None:
            return []
        edits.append(edit)
    for name, neutral in zip(stored, (1.0, 0.0, 0.0, 1 - float(node.attributes.get("epsilon", 1e-5))), strict=True):
        values = graph.weights.read(name).astype(np.float64)
        values[own[:, 0]] = neutral
        edits.append(given(name, 0, values))
    return edits


def given(name: str, axis: int, values: Array) -> PlanEdit:
    """A stored tensor's new numbers, which change nothing of what the model computes."""
    return PlanEdit(name, axis, (), weights=values.astype("<f4").tobytes(), exact=True)


def _taken_over(scene: Scene, number: int, layer: Product, scale: Array, shift: Array) -> PlanEdit | None:
    """A layer that scales and shifts what it reads first."""
    ((stored, axis),) = layer.stored
    places = scene.places(number, stored.tensor, axis)
    alone = stored.own and stored.numbers is None and layer.groups == 1
    if places is None or not alone or (np.abs(shift).max() and (layer.padded or layer.slot is None)):
        return None
    values = scene.graph.weights.read(stored.tensor).astype(np.float64)
    rows = np.moveaxis(values, axis, 0)
    old = layer.matrix([values])
    added = _shifted(old, layer, places, shift)
    for copy in places.T:
        rows[copy] *= scale.reshape(-1, *[1] * (rows.ndim - 1))
    edit = given(stored.tensor, axis, values)
    if layer.slot is None or not np.abs(added).max(initial=0.0):
        return edit
    node, index, _ = layer.slot
    return replace(edit, node=node.result, input=index, add=tuple(layer.added(added).tolist()))


def _shifted(matrix: Array, layer: Product, places: IntArray, shift: Array) -> Array:
    """What a shift of each channel adds to a layer's sums, (1, outputs)."""
    columns = layer.places(places)
    return np.asarray(np.einsum("c,cpo->o", shift, matrix[0][columns])[None])


def _readers(scene: Scene, name: str, layers: Layers) -> list[Product]:
    """The layers that read a tensor, straight or moved about; none where anything else does."""
    graph = scene.graph
    moves = {step.call.node.index: step for step in scene.coupling.flow.steps if step.moved and step.understood}
    found: list[Product] = []
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if any(port.name == name for port in graph.outputs):
            return []
        for node in graph.consumers.get(name, ()):
            if node.index in layers and layers[node.index].operands == (name,):
                found.append(layers[node.index])
            elif _moves(node, moves, name):
                waiting += node.outputs
            elif node.op != "Shape":
                return []
    return found


def _moves(node: Node, moves: Mapping[int, Step], name: str) -> bool:
    """Whether a node only moves a tensor's numbers about, and nothing else's."""
    step = moves.get(node.index)
    return step is not None and step.rule is not None and [node.input(k) for k in step.rule.carries(node)] == [name]


def _own(graph: Graph, name: str) -> bool:
    """Whether a name is that of a stored tensor that one node reads, once."""
    return name in graph.weights and name not in graph.uses and graph.only_reader(name) is not None
