"""A graph with some weights changed as a plan's edits say. Nothing but the tensors concerned is copied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.errors import PlanError
from onnxprune.graph import Graph
from onnxprune.labels import IntArray
from onnxprune.plan import PlanEdit
from onnxprune.structure import Node, open_nodes
from onnxprune.weights import FLOATS, Array


def edited(graph: Graph, edits: Iterable[PlanEdit]) -> Graph:
    """The graph after some edits, in their order.

    Raises:
        PlanError: an edit does not fit the model.
    """
    editing = _Editing(graph)
    for edit in edits:
        editing.hand_over(edit)
        if edit.add:
            editing.add(edit)
    return editing.result()


def handed_over(values: Array, edit: PlanEdit) -> tuple[IntArray, Array]:
    """What channels become that others give their weights to: their indices, and their slices, the axis first."""
    rows = np.moveaxis(values, edit.axis, 0)
    givers = np.asarray(edit.channels, np.int64)
    if edit.places:
        targets, runs = np.asarray(edit.into, np.int64), edit.places
        share = np.asarray(edit.scales).reshape(len(targets) // runs, len(givers) // runs)
        given = rows[givers].astype(np.float64).reshape(share.shape[1], runs, *rows.shape[1:])
        sums = rows[targets] + np.tensordot(share, given, 1).reshape(len(targets), *rows.shape[1:])
    else:
        targets, place = np.unique(np.asarray(edit.into, np.int64), return_inverse=True)
        sums = rows[targets].astype(np.float64)
        pairs = zip(place.tolist(), givers.tolist(), edit.scales or [1.0] * len(place), strict=False)
        for target, source, scale in pairs:
            sums[target] += scale * rows[source].astype(np.float64)
    with np.errstate(over="ignore"):
        return targets, sums.astype(values.dtype)


class _Editing:
    """Collects changes of stored tensors, and the nodes that read another one afterwards."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors: dict[str, TensorProto] = {}
        self.weights = graph.weights
        self.nodes = list(graph.nodes)
        self.writer = {name: at for at, node in enumerate(graph.nodes) for name in node.outputs}
        self.uses = dict(graph.uses)
        self.new: list[str] = []
        self.dropped: set[str] = set()
        self.readers = Counter(name for node in graph.nodes for name in (*node.inputs, *node.captured))
        self.readers.update(port.name for port in graph.outputs)

    def hand_over(self, edit: PlanEdit) -> None:
        """Give channels' weights to others, or to nobody."""
        where = f"plan: edit of axis {edit.axis} of {edit.tensor!r}"
        if edit.tensor not in self.weights or self.weights.elem_type(edit.tensor) not in FLOATS:
            raise PlanError(f"{where}: there is no such weight in this model; the plan was made for another one")
        shape = self.weights.shape(edit.tensor)
        size = shape[edit.axis] if 0 <= edit.axis < len(shape) else 0
        if not edit.is_consistent or not all(0 <= c < size for c in (*edit.channels, *edit.into)):
            raise PlanError(f"{where}: channels must be numbers from 0 to {size - 1}; the plan was made for another model")
        if edit.weights:
            self._give(edit, self._given(edit, shape))
            return
        values = self.weights.read(edit.tensor).copy()
        targets, sums = handed_over(values, edit)
        rows = np.moveaxis(values, edit.axis, 0)
        rows[list(edit.channels)] = 0
        rows[targets] = sums
        self._store(edit.tensor, self.weights.replaced(edit.tensor, values))

    def _give(self, edit: PlanEdit, values: Array) -> None:
        """Give a tensor, or one of its readers, other numbers."""
        if not edit.reader:
            self._store(edit.tensor, self.weights.replaced(edit.tensor, values))
            return
        node = self.nodes[self.writer[edit.reader]] if edit.reader in self.writer else None
        if node is None or node.input(edit.place) != edit.tensor:
            raise PlanError(
                f"plan: edit of input {edit.place} of the node that writes {edit.reader!r}: it does not read {edit.tensor!r} in "
                "this model; the plan was made for another one"
            )
        self._read_own(node, edit.place, values, "weight")

    def add(self, edit: PlanEdit) -> None:
        """Add a vector to a node's input: in place if nothing else reads it, otherwise as a tensor of its own."""
        where = f"plan: edit of input {edit.input} of the node that writes {edit.node!r}"
        node = self.nodes[self.writer[edit.node]] if edit.node in self.writer else None
        name = "" if node is None else node.input(edit.input)
        if node is None or not 0 <= edit.input <= len(node.inputs) or (name and name not in self.weights):
            raise PlanError(f"{where}: there is no such vector in this model; the plan was made for another one")
        old = self.weights.read(name) if name else np.zeros(len(edit.add), self.weights.read(edit.tensor).dtype)
        if old.size != len(edit.add) and old.ndim and old.shape[-1] not in (1, len(edit.add)):
            raise PlanError(f"{where}: it has {old.shape[-1]} channels, not {len(edit.add)}; the plan was made for another model")
        add = np.array(edit.add, np.float64)
        values = (old.astype(np.float64) + (add.reshape(old.shape) if old.size == add.size else add)).astype(old.dtype)
        if name and self.readers[name] == 1 and name not in self.uses and values.shape == old.shape:
            self._store(name, self.weights.replaced(name, values))
        else:
            self._read_own(node, edit.input, values, "bias")

    def _given(self, edit: PlanEdit, shape: tuple[int, ...]) -> Array:
        """The numbers that an edit gives a tensor, in its own type."""
        numbers = np.frombuffer(edit.weights, "<f4") if len(edit.weights) % 4 == 0 else np.zeros(0, np.float32)
        with np.errstate(over="ignore"):
            values = numbers.astype(self.weights.read(edit.tensor).dtype)
        count = self.weights.count(edit.tensor)
        if len(values) != count or not np.isfinite(values).all():
            raise PlanError(
                f"plan: edit of {edit.tensor!r}: its weights must be {count} finite numbers of 4 bytes; the plan was made for "
                "another model"
            )
        return values.reshape(shape)

    def result(self) -> Graph:
        """The graph as it is now. The structure is copied only if it changed, the weights not at all."""
        graph, proto = self.graph, self.graph.proto
        constants = [name for name in self.tensors if name in graph.producers]
        if constants or self.new:
            proto = ModelProto()
            proto.CopyFrom(graph.proto)
        protos = list(open_nodes(proto.graph))
        for name in constants:
            constant = protos[graph.producers[name].index]
            del constant.attribute[:]
            constant.attribute.append(helper.make_attribute("value", self.tensors[name]))
        for name in self.new:
            tensor = self.tensors[name]
            proto.graph.initializer.append(TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims))
        for node in self.nodes:
            for k, name in enumerate(node.inputs if not node.border else ()):
                if name in self.new:
                    written = protos[node.index].input
                    written.extend([""] * (k + 1 - len(written)))
                    written[k] = name
        weights = graph.weights.updated(self.tensors, without=self.dropped)
        added = graph.added | set(self.new)
        return replace(graph, proto=proto, weights=weights, nodes=tuple(self.nodes), uses=self.uses, added=added)

    def _store(self, name: str, tensor: TensorProto) -> None:
        self.tensors[name] = tensor
        self.weights = self.weights.updated({name: tensor})

    def _read_own(self, node: Node, index: int, values: Array, what: str) -> None:
        """Let a node read a tensor of its own. If the old one was shared under its name, another reader takes that over."""
        taken = self.readers.keys() | set(self.weights) | set(self.graph.producers)
        hint = f"{node.result}_{what}"
        name = next(n for n in (hint, *(f"{hint}_{i}" for i in range(1, len(taken) + 2))) if n not in taken)
        self._store(name, numpy_helper.from_array(values, name))
        self.new.append(name)
        self.readers[name] = 1
        inputs = [*node.inputs, *[""] * (index + 1 - len(node.inputs))]
        old, inputs[index] = inputs[index], name
        self.nodes[self.writer[node.result]] = replace(node, inputs=tuple(inputs))
        self.readers[old] -= 1
        use = self.uses.pop(old, None)
        heir = next((n for n, other in self.uses.items() if other.tensor == old), None)
        if use is not None and use.tensor != old:
            self.dropped.add(old)
        elif use is not None and heir is not None:
            self.uses[old] = self.uses.pop(heir)
            self.dropped.add(heir)
            for at, other in enumerate(self.nodes):
                if heir in other.inputs:
                    self.nodes[at] = replace(other, inputs=tuple(old if n == heir else n for n in other.inputs))
