"""16-bit floats: weights are stored in half the bytes, and products and what follows them are computed in half precision.

Each node is rewritten on its own, between casts that cancel where the next node is rewritten too. So nothing needs to know
float16 that does not gain by it: normalisations, Softmax, recurrent layers, subgraphs' borders and the graph's inputs and
outputs stay float32. (onnxruntime's own converter makes everything float16 but a list of exceptions. Of 199 networks, with its
default list, that left 9 that onnxruntime 1.31 refused and 9 on which it crashed.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.assembly import all_names
from onnxprune.structure import STANDARD, bodies, captured, constant_tensor, is_open, open_graphs
from onnxprune.weights import Array

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Computed in half precision wherever they are."""

FOLLOWERS: Mapping[str, int | None] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Concat", "PRelu", "Max", "Min"), None),
    **dict.fromkeys(("Relu", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu"), 1),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity"), 1),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), 1),
    "Clip": 3,
}
"""Computed in half precision if all that they read has been: how many of their inputs are floats (None: all of them).

What comes as float32 stays so: it may be a mask of numbers that float16 does not have.
Transpose is not among them: with a float16 one and a Cast in front of a MatMul, onnxruntime 1.31 crashed.
"""

PRECISION = 2.0**-10
"""A tensor stays float32 if rounding changes a value by more than this share of the largest one (one that is too large does)."""


def candidates(model: ModelProto) -> list[str]:
    """The tensors, outside of subgraphs, that may be computed in half precision."""
    return [node.output[0] for node in model.graph.node if _floats(node)]


def to_half(model: ModelProto, elem_types: Mapping[str, int], large: frozenset[str] = frozenset()) -> tuple[ModelProto, int]:
    """The model with weights and products in half precision, and how many nodes compute so.

    Args:
        model: with all data inside; names in subgraphs are distinct. It is not changed.
        elem_types: types of the tensors by name. What is not known to be float32 is left alone.
        large: tensors with values beyond ``LARGEST``; nodes that read or write them stay float32.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    _without_defaults(copy)
    parts = list(open_graphs(copy.graph))
    tensors = {name: tensor for part in parts for name, tensor in _tensors(part)}
    types = {**elem_types, **{name: tensor.data_type for name, tensor in tensors.items()}}
    types.update(dict.fromkeys(large, 0))
    state = _State(types, all_names(copy.graph) | {node.name for part in parts for node in part.node})
    state.convert(copy.graph, {})
    return copy, state.nodes


LARGEST = 2.0**14
"""Activations up to here fit into float16, which ends at 65504, with some room for inputs that were not tried."""


def round_half(values: Array) -> Array | None:
    """The values as float16, or None if that loses too much."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(np.float16)
        error = np.abs(rounded.astype(np.float32) - values).max(initial=0)
    return rounded if error <= PRECISION * np.abs(values).max(initial=0) else None


@dataclass
class _State:
    """What is known while a model is rewritten: element types, all names, constants that float16 can hold."""

    elem_types: dict[str, int]
    names: set[str]
    constants: set[str] = field(default_factory=set)
    nodes: int = 0
    _numbers: Iterator[int] = field(default_factory=count)

    def convert(self, graph: GraphProto, outer: Mapping[str, str]) -> None:
        """Rewrite a graph, and the graphs inside; ``outer`` has the halves of the tensors outside."""
        halves, made = dict(outer), list[NodeProto]()
        stored = self._stored(graph)
        for tensor in graph.initializer:
            if tensor.name in stored:
                made.append(self._store(tensor, stored[tensor.name], halves))
        for node in graph.node:
            if node.op_type == "Constant" and node.output[0] in stored:
                tensor = graph.initializer.add(name=node.output[0])
                made.append(self._store(tensor, stored[tensor.name], halves))
                continue
            for body in bodies(node) if is_open(node) else ():
                self.convert(body, halves)
            made += self._rewritten(node, halves)
        del graph.node[:]
        graph.node.extend(_used(made, graph))
        known = {name for node in graph.node for name in node.output}
        kept = [value for value in graph.value_info if value.name in known]
        del graph.value_info[:]
        graph.value_info.extend(kept)

    def _stored(self, graph: GraphProto) -> dict[str, Array]:
        """The weights that become float16, as such: all matrices and filters, and vectors that only products read."""
        readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in {*node.input, *(name for body in bodies(node) for name in captured(body))}:
                readers.setdefault(name, []).append(node)
        outputs = {o.name for o in graph.output}
        found = {}
        for name, tensor in _tensors(graph):
            values = round_half(numpy_helper.to_array(tensor)) if tensor.data_type == FLOAT else None
            if values is None:
                self.elem_types[name] = 0  # so that no cast makes it infinite
                continue
            self.constants.add(name)
            only = readers.get(name) and all(node.op_type in PRODUCTS and name in _floats(node) for node in readers[name])
            if (values.ndim > 1 or only) and name not in outputs:
                found[name] = values
        return found

    def _store(self, tensor: TensorProto, values: Array, halves: dict[str, str]) -> NodeProto:
        """Put float16 values in place of a tensor's. Returns the cast for those that read float32."""
        name = tensor.name
        halves[name] = self._fresh(name)
        tensor.CopyFrom(numpy_helper.from_array(values, halves[name]))
        return self._cast(halves[name], name, FLOAT)

    def _rewritten(self, node: NodeProto, halves: dict[str, str]) -> list[NodeProto]:
        """A node as it is, or in half precision, with casts in front and behind."""
        inputs = [name for name in _floats(node) if name]
        if not inputs or any(self.elem_types.get(name) != FLOAT for name in (*inputs, node.output[0])):
            return [node]
        loose = [name for name in dict.fromkeys(inputs) if name not in halves]
        if node.op_type not in PRODUCTS and (len(loose) == len(set(inputs)) or not self.constants.issuperset(loose)):
            return [node]
        made = []
        for name in loose:
            halves[name] = self._fresh(name)
            made.append(self._cast(name, halves[name], HALF))
        for place in range(len(_floats(node))):
            node.input[place] = halves.get(node.input[place], "")
        name = node.output[0]
        halves[name] = node.output[0] = self._fresh(name)
        self.nodes += 1
        return [*made, node, self._cast(halves[name], name, FLOAT)]

    def _cast(self, name: str, result: str, to: int) -> NodeProto:
        return helper.make_node("Cast", [name], [result], name=self._fresh(f"{result}_cast"), to=to)

    def _fresh(self, name: str) -> str:
        """A name that nothing has, made from another."""
        new = f"{name}_half"
        while new in self.names:
            new = f"{name}_half{next(self._numbers)}"
        self.names.add(new)
        return new


def _floats(node: NodeProto) -> list[str]:
    """The inputs that change their type with the node's result; none where the node is not computed in half precision."""
    if node.domain not in STANDARD or len(node.output) != 1:
        return []
    if node.op_type in PRODUCTS:
        return list(node.input)
    return list(node.input[: FOLLOWERS[node.op_type]]) if node.op_type in FOLLOWERS else []


def _used(nodes: Iterable[NodeProto], graph: GraphProto) -> list[NodeProto]:
    """The nodes without those casts that nothing reads."""
    nodes = list(nodes)
    needed = {o.name for o in graph.output}
    kept = []
    for node in reversed(nodes):
        if node.op_type == "Cast" and node.output[0] not in needed:
            continue
        kept.append(node)
        needed.update(node.input)
        needed.update(name for body in bodies(node) for name in captured(body))
    return kept[::-1]


def _tensors(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """The tensors stored in a graph, without its subgraphs, by name."""
    yield from ((t.name, t) for t in graph.initializer)
    for node in graph.node:
        constant = constant_tensor(node) if node.op_type == "Constant" and node.domain in STANDARD else None
        if constant is not None:
            yield node.output[0], constant


def _without_defaults(model: ModelProto) -> None:
    """Weights that are listed as inputs, as they were until IR version 3, become plain weights."""
    stored = {t.name for t in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, 4)
