"""A model's structure as plain data: nodes in an order in which they can run, ports, and the tensors stored inside."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.weights import ELEMENT_LIMIT, FLOATS

STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of the main graph. ``attributes`` holds plain Python values, tensors as TensorProto, graphs as GraphProto."""

    index: int
    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    captured: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The node's name, or its operator and first output where the exporter gave it none."""
        return self.name or f"{self.op} -> {self.outputs[0] if self.outputs else '?'}"

    @property
    def standard(self) -> bool:
        """Whether the operator is ONNX's own."""
        return self.domain in STANDARD

    def input(self, index: int) -> str:
        """Name of the input at ``index``; empty where it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else ""


@dataclass(frozen=True, slots=True)
class Port:
    """A graph input or output: name, element type (0 if it is no tensor) and declared shape (None: unknown rank)."""

    name: str
    elem_type: int
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class Use:
    """One of several places at which a stored tensor is read: the tensor's name in the file, the node, which input."""

    tensor: str
    node: str
    input: int


def describe_port(value: ValueInfoProto) -> Port:
    """A declared input or output as plain data."""
    if not value.type.HasField("tensor_type"):
        return Port(value.name, 0, None)
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return Port(value.name, tensor.elem_type, None)
    dims = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None) for d in tensor.shape.dim)
    return Port(value.name, tensor.elem_type, dims)


def bodies(node: NodeProto) -> Iterable[GraphProto]:
    """The subgraphs of a node."""
    for a in node.attribute:
        if a.type == AttributeProto.GRAPH:
            yield a.g
        yield from a.graphs


def captured(graph: GraphProto) -> set[str]:
    """Names that a subgraph reads but does not define itself."""
    defined = {t.name for t in graph.initializer} | {v.name for v in graph.input}
    defined |= {out for node in graph.node for out in node.output}
    wanted = {v.name for v in graph.output}
    for node in graph.node:
        wanted.update(node.input)
        for body in bodies(node):
            wanted |= captured(body)
    return {name for name in wanted - defined if name}


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all its subgraphs."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs(body)


def all_tensors(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor in a graph and its subgraphs, with a name that helps to find it."""
    for part in graphs(graph):
        yield from ((t.name, t) for t in part.initializer)
        yield from (pair for t in part.sparse_initializer for pair in _sparse_parts(t))
        for node in part.node:
            yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[tuple[str, TensorProto]]:
    constant = constant_tensor(node) if node.op_type == "Constant" and node.output else None
    if constant is not None:
        yield node.output[0], constant
    for a in node.attribute:
        name = f"{a.name} of {node.name or node.op_type}"
        if constant is None:
            yield from ((name, t) for t in (*([a.t] if a.HasField("t") else []), *a.tensors))
        sparse = (*([a.sparse_tensor] if a.HasField("sparse_tensor") else []), *a.sparse_tensors)
        yield from (pair for t in sparse for pair in _sparse_parts(t, name))


def _sparse_parts(tensor: SparseTensorProto, name: str = "") -> Iterator[tuple[str, TensorProto]]:
    name = tensor.values.name or name
    if math.prod(tensor.dims) > ELEMENT_LIMIT or any(d < 0 for d in tensor.dims):
        raise ModelError(f"sparse weight {name!r}: its shape {list(tensor.dims)} is absurd; the file is damaged, export it again")
    yield name, tensor.values
    yield name, tensor.indices


def weights_inside(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """The initializers and Constant values of a graph and its subgraphs, by name."""
    for part in graphs(graph):
        yield from ((t.name, t) for t in part.initializer)
        constants = ((n.output[0], constant_tensor(n)) for n in part.node if n.op_type == "Constant" and n.output)
        yield from ((name, tensor) for name, tensor in constants if tensor is not None)


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """The value of a ``Constant`` node as a tensor; None where it is sparse or a string."""
    for a in node.attribute:
        if a.name == "value":
            tensor: TensorProto = a.t
            return tensor
        if a.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.array(a.f if a.name == "value_float" else list(a.floats), np.float32))
        if a.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.array(a.i if a.name == "value_int" else list(a.ints), np.int64))
    return None


def _attributes(node: NodeProto) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for a in node.attribute:
        try:
            value = helper.get_attribute_value(a)
        except ValueError:
            continue
        values[a.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return values


def sorted_nodes(graph: GraphProto, stored: set[str]) -> tuple[Node, ...]:
    """Nodes in an order in which they can run, as close to the file's order as possible."""
    nodes: list[Node] = []
    given = {t.name for t in graph.initializer} | {v.name for v in graph.input}
    if len({v.name for v in graph.input}) < len(graph.input):
        raise ModelError("two graph inputs have the same name; rename one of them")
    writer: dict[str, int] = {}
    for index, proto in enumerate(graph.node):
        taken = tuple(sorted(set().union(*(captured(b) for b in bodies(proto))) - set(proto.input)))
        node = Node(
            index, proto.op_type, proto.domain, proto.name, tuple(proto.input), tuple(proto.output), _attributes(proto), taken
        )
        if not node.outputs:
            raise ModelError(f"node {node.label!r} writes nothing; the graph is damaged, export it again")
        for out in filter(None, node.outputs):
            if out in writer or (out in given and (node.op != "Constant" or out not in stored)):
                other = f"node {(*nodes, node)[writer[out]].label!r}" if out in writer else "the graph's inputs or weights"
                raise ModelError(
                    f"tensor {out!r} comes from both {other} and node {node.label!r}; the graph is damaged, export it again"
                )
            writer[out] = index
        nodes.append(node)
    known = stored | {v.name for v in graph.input} | {t.values.name for t in graph.sparse_initializer}
    waiting: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    for node in nodes:
        needs = {name for name in (*node.inputs, *node.captured) if name and (name not in known or name in writer)}
        for name in needs:
            if name not in writer:
                raise ModelError(
                    f"node {node.label!r} reads {name!r}, which nothing writes; the graph is damaged, export it again"
                )
        sources = {writer[name] for name in needs}
        waiting[node.index] = len(sources)
        for source in sources:
            readers.setdefault(source, []).append(node.index)
    for out in graph.output:
        if out.name not in writer and out.name not in known:
            raise ModelError(f"graph output {out.name!r} is written by no node; the graph is damaged, export it again")
    ready = [i for i, count in waiting.items() if count == 0]
    order: list[Node] = []
    heapq.heapify(ready)
    while ready:
        index = heapq.heappop(ready)
        order.append(nodes[index])
        for reader in readers.get(index, ()):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        stuck = next(n for n in nodes if waiting[n.index] > 0)
        passed: set[int] = set()
        while stuck.index not in passed:  # back from node to node that waits, until one comes again
            passed.add(stuck.index)
            sources = {writer[n] for n in (*stuck.inputs, *stuck.captured) if n in writer}
            stuck = nodes[min(s for s in sources if waiting[s] > 0)]
        raise ModelError(f"the graph has a cycle through node {stuck.label!r}, but must have none; export it again")
    return tuple(order)


def part_vectors(
    nodes: tuple[Node, ...], tensors: Mapping[str, TensorProto], elsewhere: set[str]
) -> tuple[tuple[Node, ...], dict[str, Use]]:
    """Give each reader of a shared vector a name of its own for it.

    Exporters merge biases and scales that happen to be equal. Layers that share nothing else must not be tied by that.

    Args:
        elsewhere: names that something other than these nodes reads (graph outputs, subgraphs); they keep theirs.

    Returns:
        The nodes with their inputs renamed, and by name every use of a vector that has several, the first under the
        tensor's own name.
    """
    places: dict[str, list[tuple[int, int]]] = {}
    for at, node in enumerate(nodes):
        for k, name in enumerate(node.inputs):
            tensor = tensors.get(name)
            if tensor is not None and tensor.data_type in FLOATS and 1 < math.prod(tensor.dims) == max(tensor.dims):
                places.setdefault(name, []).append((at, k))
    taken = set(tensors) | {name for node in nodes for name in (*node.inputs, *node.outputs)}
    inputs = [list(node.inputs) for node in nodes]
    uses: dict[str, Use] = {}
    for name, readers in places.items():
        if len(readers) + (name in elsewhere) < 2:
            continue
        for at, k in readers:
            own = name
            if name in uses or name in elsewhere:
                own = next(c for n in count(1) if (c := f"{name}_copy{n}") not in taken)
                taken.add(own)
            inputs[at][k] = own
            uses[own] = Use(name, nodes[at].label, k)
    return tuple(replace(node, inputs=tuple(new)) for node, new in zip(nodes, inputs, strict=True)), uses
