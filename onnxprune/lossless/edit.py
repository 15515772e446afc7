"""A graph with some weights changed as a plan's edits say. Nothing but the tensors concerned is copied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from onnxprune.errors import PlanError
from onnxprune.graph import Graph
from onnxprune.plan import PlanEdit
from onnxprune.structure import Node
from onnxprune.weights import FLOATS, Array


def edited(graph: Graph, edits: Iterable[PlanEdit]) -> Graph:
    """The graph after some edits, in their order.

    Raises:
        PlanError: an edit does not fit the model.
    """
    for edit in edits:
        graph = _added(_zeroed(graph, edit), edit) if edit.add else _zeroed(graph, edit)
    return graph


def handed_over(values: Array, axis: int, channels: Iterable[int], into: Iterable[int]) -> Array:
    """A copy of a weight in which channels have given theirs to others, and are zero."""
    rows = np.moveaxis(values, axis, 0)
    wide = rows.astype(np.float64)
    if into:
        np.add.at(wide, list(into), rows[list(channels)].astype(np.float64))
    wide[list(channels)] = 0
    with np.errstate(over="ignore"):
        return np.moveaxis(wide, 0, axis).astype(values.dtype)


def _zeroed(graph: Graph, edit: PlanEdit) -> Graph:
    where = f"plan: edit of axis {edit.axis} of {edit.tensor!r}"
    if edit.tensor not in graph.weights or graph.weights.elem_type(edit.tensor) not in FLOATS:
        raise PlanError(f"{where}: there is no such weight in this model; the plan was made for another one")
    shape = graph.weights.shape(edit.tensor)
    size = shape[edit.axis] if 0 <= edit.axis < len(shape) else 0
    if not all(0 <= c < size for c in (*edit.channels, *edit.into)) or len(edit.into) not in (0, len(edit.channels)):
        raise PlanError(f"{where}: channels must be numbers from 0 to {size - 1}; the plan was made for another model")
    values = handed_over(graph.weights.read(edit.tensor), edit.axis, edit.channels, edit.into)
    return _store(graph, {edit.tensor: graph.weights.replaced(edit.tensor, values)})


def _store(graph: Graph, tensors: dict[str, TensorProto]) -> Graph:
    """Put tensors in the place of stored ones; those that are values of nodes are written there as well."""
    proto = graph.proto
    if any(name in graph.producers for name in tensors):
        proto = ModelProto()
        proto.CopyFrom(graph.proto)
        for name in filter(graph.producers.__contains__, tensors):
            node = proto.graph.node[graph.producers[name].index]
            del node.attribute[1:]
            node.attribute[0].Clear()
            node.attribute[0].name, node.attribute[0].type = "value", 4  # AttributeProto.TENSOR
            node.attribute[0].t.CopyFrom(tensors[name])
    return replace(graph, proto=proto, weights=graph.weights.updated(tensors))


def _added(graph: Graph, edit: PlanEdit) -> Graph:
    """Add a vector to a node's input: in place if nothing else reads it, otherwise as a tensor of its own."""
    where = f"plan: edit of input {edit.input} of the node that writes {edit.node!r}"
    node = graph.producers.get(edit.node)
    name = "" if node is None else node.input(edit.input)
    if node is None or not 0 <= edit.input <= len(node.inputs) or (name and name not in graph.weights):
        raise PlanError(f"{where}: there is no such vector in this model; the plan was made for another one")
    old = graph.weights.read(name) if name else np.zeros(len(edit.add), graph.weights.read(edit.tensor).dtype)
    add = np.array(edit.add, np.float64)
    if old.ndim and old.shape[-1] not in (1, len(add)):
        raise PlanError(f"{where}: it has {old.shape[-1]} channels, the plan says {len(add)}; it was made for another model")
    values = (old.astype(np.float64) + add).astype(old.dtype)
    readers = sum(n.inputs.count(name) + n.captured.count(name) for n in graph.consumers.get(name, []))
    if name and readers == 1 and name not in graph.uses and values.shape == old.shape:
        return _store(graph, {name: graph.weights.replaced(name, values)})
    return _own_vector(graph, node, edit.input, values)


def _own_vector(graph: Graph, node: Node, index: int, values: Array) -> Graph:
    taken = set(graph.weights) | {n for other in graph.nodes for n in (*other.inputs, *other.outputs)}
    hint = f"{node.outputs[0]}_bias"
    name = next(n for n in (hint, *(f"{hint}_{i}" for i in range(1, len(taken) + 2))) if n not in taken)
    tensor = numpy_helper.from_array(values, name)
    proto = ModelProto()
    proto.CopyFrom(graph.proto)
    proto.graph.initializer.append(TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims))
    written = proto.graph.node[node.index].input
    written.extend([""] * (index + 1 - len(written)))
    written[index] = name
    inputs = (*node.inputs, *[""] * (index + 1 - len(node.inputs)))
    old, inputs = inputs[index], (*inputs[:index], name, *inputs[index + 1 :])
    nodes = [replace(n, inputs=inputs) if n is node else n for n in graph.nodes]
    uses = {n: use for n, use in graph.uses.items() if n != old}
    dropped = [old] if graph.is_copy(old) else []
    heir = next((n for n, use in uses.items() if use.tensor == old), None)
    if old in graph.uses and not dropped and heir is not None:  # another reader takes over the vector's own name
        nodes = [replace(n, inputs=tuple(old if i == heir else i for i in n.inputs)) for n in nodes]
        uses[old], dropped = uses.pop(heir), [heir]
    weights = graph.weights.updated({name: tensor}, without=dropped)
    return replace(graph, proto=proto, weights=weights, nodes=tuple(nodes), uses=uses)
