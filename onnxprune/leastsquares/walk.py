"""Walking through a model on some inputs, part by part: nothing is computed twice, and only what is still needed is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from tempfile import TemporaryFile

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from onnxprune.runtime import Session
from onnxprune.structure import bodies, captured, constant_tensor
from onnxprune.weights import Array

Feeds = Mapping[str, Array]


MEMORY, PAGE = 1 << 29, 1 << 16
"""Bytes of activations that are kept in memory, and of those that are not worth a file."""


class Walk:
    """A model on some inputs, given in chunks.

    Args:
        model: with all its weights.
        feeds: arrays by input name, chunk by chunk.
        wanted: the tensors that will be asked for; each is kept until it has been, as often as it is named here.
    """

    def __init__(self, model: ModelProto, feeds: Sequence[Feeds], wanted: Iterable[str]) -> None:
        self._model = model
        self._nodes = ordered(model)
        self._stored = {t.name: t for t in model.graph.initializer}
        self._maker = {name: at for at, node in enumerate(self._nodes) for name in node.output if name}
        self._reads = [_reads(node) for node in self._nodes]
        self._waiting = Counter(name for reads in self._reads for name in reads)
        self._waiting.update(wanted)
        self._done = [False] * len(self._nodes)
        self._there: dict[str, list[Array]] = {name: [chunk[name] for chunk in feeds] for name in feeds[0]}
        self._chunks, self._memory = len(feeds), 0

    def take(self, name: str) -> list[Array]:
        """A tensor, chunk by chunk. It must be among those that were wanted.

        Raises:
            ModelError: onnxruntime can't run the part that leads to it.
        """
        self.reach([name])
        found = self._there[name]
        self._use([name])
        return found

    def reach(self, names: Collection[str]) -> None:
        """Compute all that some tensors need."""
        chosen = self._needed(names)
        if not chosen:
            return
        for at in chosen:
            self._done[at] = True
        inside = {name for at in chosen for name in self._nodes[at].output if name}
        used = {name for at in chosen for name in self._reads[at]}
        inputs = [name for name in used if name in self._there]
        within = Counter(name for at in chosen for name in self._reads[at])
        outputs = [name for name in inside if self._waiting[name] > within[name]]
        session = Session(self._part(chosen, inputs, outputs, used), threads=2)
        results: list[list[Array]] = [[] for _ in outputs]
        for chunk in range(self._chunks):
            found = session.run({name: self._there[name][chunk] for name in inputs}, outputs)
            for column, values in zip(results, found, strict=True):
                column.append(self._kept(np.asarray(values)))
        self._there |= dict(zip(outputs, results, strict=True))
        self._use(name for at in chosen for name in self._reads[at])

    def _kept(self, values: Array) -> Array:
        """An array as it is, or in a file without a name if those that are there take much memory already."""
        if self._memory + values.nbytes <= MEMORY or values.nbytes < PAGE:
            self._memory += values.nbytes
            return values
        with TemporaryFile(prefix=".onnxprune-") as file:
            found = np.memmap(file, values.dtype, "w+", shape=values.shape)
        found[:] = values
        return found

    def store(self, name: str, values: Array) -> None:
        """Change a stored tensor; what has been computed already stays as it is."""
        if name in self._maker:
            node = NodeProto(op_type="Constant", output=[name])
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(values, name)))
            self._nodes[self._maker[name]] = node
        else:
            self._stored[name] = numpy_helper.from_array(values, name)

    def read_own(self, output: str, index: int, values: Array) -> None:
        """Let the node that writes ``output`` read a tensor of its own at an input."""
        at = self._maker[output]
        node = NodeProto()
        node.CopyFrom(self._nodes[at])
        node.input.extend([""] * (index + 1 - len(node.input)))
        node.input[index] = f"{output}::{index}"
        self._stored[node.input[index]] = numpy_helper.from_array(values, node.input[index])
        self._nodes[at], self._reads[at] = node, _reads(node)

    def add(self, output: str, index: int, values: Array) -> None:
        """Let it read what it reads there, or zeros, with something added, at an input that is stored."""
        node = self._nodes[self._maker[output]]
        name = node.input[index] if index < len(node.input) else ""
        maker = self._nodes[self._maker[name]] if name in self._maker else None
        tensor = self._stored.get(name) if maker is None else constant_tensor(maker)
        old = np.zeros(values.size, np.float32) if tensor is None else numpy_helper.to_array(tensor)
        add = values.reshape(old.shape) if old.size == values.size else values
        self.read_own(output, index, (old.astype(np.float64) + add).astype(old.dtype))

    def _needed(self, names: Collection[str]) -> list[int]:
        """The nodes that have not run and lead to some tensors, in order."""
        found: set[int] = set()
        waiting = [name for name in names if name not in self._there]
        while waiting:
            at = self._maker.get(waiting.pop())
            if at is not None and at not in found and not self._done[at]:
                found.add(at)
                waiting += [name for name in self._reads[at] if name not in self._there]
        return sorted(found)

    def _use(self, names: Iterable[str]) -> None:
        for name in names:
            self._waiting[name] -= 1
            if self._waiting[name] <= 0:
                parts = self._there.pop(name, [])
                self._memory -= sum(part.nbytes for part in parts if name in self._maker and not isinstance(part, np.memmap))

    def _part(self, chosen: Sequence[int], inputs: Sequence[str], outputs: Sequence[str], used: Collection[str]) -> ModelProto:
        """A model of some nodes."""
        kinds = {name: helper.np_dtype_to_tensor_dtype(self._there[name][0].dtype) for name in inputs}
        given = [helper.make_tensor_value_info(name, kinds[name], [None] * self._there[name][0].ndim) for name in inputs]
        graph = helper.make_graph(
            [self._nodes[at] for at in chosen],
            "part",
            given,
            [ValueInfoProto(name=name) for name in outputs],
            [self._stored[name] for name in used if name in self._stored and name not in self._there],
        )
        model = helper.make_model(graph, opset_imports=self._model.opset_import)
        model.ir_version = max(self._model.ir_version, 4)
        return model


def ordered(model: ModelProto) -> list[NodeProto]:
    """The nodes of a model in an order in which they can run."""
    nodes = list(model.graph.node)
    there = {t.name for t in model.graph.initializer} | {v.name for v in model.graph.input} | {""}
    made = {name for node in nodes for name in node.output}
    found: list[NodeProto] = []
    while nodes:
        later = []
        for node in nodes:
            if all(name in there or name not in made for name in _reads(node)):
                found.append(node)
                there.update(node.output)
            else:
                later.append(node)
        assert len(later) < len(nodes), "loading has made sure that there are no cycles"
        nodes = later
    return found


def _reads(node: NodeProto) -> list[str]:
    """All that a node and its subgraphs read from outside."""
    inner = [name for body in bodies(node) for name in captured(body)]
    return [name for name in dict.fromkeys([*node.input, *inner]) if name]
