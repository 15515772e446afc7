"""A model's structure as plain data: nodes in an order in which they can run, ports, and the tensors stored inside."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.weights import ELEMENT_LIMIT, FLOATS

STANDARD = ("", "ai.onnx")
CONTROL = frozenset({"If", "Loop", "Scan"})
"""Operators whose subgraphs are looked into."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. ``attributes`` holds plain Python values, tensors as TensorProto, graphs as GraphProto.

    ``captured``: outer names that subgraphs read which are not looked into. ``border``: no operator of its own, but a
    tensor's way into or out of the subgraph of an ``If``, ``Loop`` or ``Scan``.
    """

    index: int
    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    captured: tuple[str, ...] = ()
    border: bool = False

    @property
    def label(self) -> str:
        """The node's name, or its operator and first output where the exporter gave it none."""
        return self.name or f"{self.op} -> {self.outputs[0] if self.outputs else '?'}"

    @property
    def standard(self) -> bool:
        """Whether the operator is ONNX's own."""
        return self.domain in STANDARD

    @property
    def result(self) -> str:
        """Name of the first output that is not omitted."""
        return next(filter(None, self.outputs), "")

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


def is_open(node: NodeProto) -> bool:
    """Whether a node's subgraphs are looked into: it is an ``If``, ``Loop`` or ``Scan`` of a form that is understood."""
    if node.op_type not in CONTROL or node.domain not in STANDARD:
        return False
    parts = {a.name: a.g for a in node.attribute if a.type == AttributeProto.GRAPH}
    if node.op_type == "If":
        fits = len(node.input) == 1 and set(parts) == {"then_branch", "else_branch"}
        return fits and all(len(b.output) == len(node.output) and not b.input for b in parts.values())
    if set(parts) != {"body"}:
        return False
    body, given = parts["body"], len(node.input)
    results = len(body.output) - (node.op_type == "Loop")
    if len(node.output) > results or len(body.input) != (max(given, 2) if node.op_type == "Loop" else given):
        return False
    if node.op_type == "Loop":
        return len(body.input) - 2 <= results
    numbers = {a.name: a.i for a in node.attribute if a.type == AttributeProto.INT}
    axes = {a.name: len(a.ints) if a.type == AttributeProto.INTS else -1 for a in node.attribute if a.name.endswith("_axes")}
    scanned = numbers.get("num_scan_inputs", 0)
    stacked = results - (given - scanned)
    wanted = {"scan_input_axes": scanned, "scan_output_axes": stacked}
    return 0 < scanned <= given and stacked >= 0 and all(count == wanted.get(name) for name, count in axes.items())


def open_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and the subgraphs that are looked into."""
    yield graph
    for node in graph.node:
        if is_open(node):
            for body in bodies(node):
                yield from open_graphs(body)


def open_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph and of the subgraphs that are looked into, in the order of their ``Node.index``."""
    for node in graph.node:
        yield node
        if is_open(node):
            for body in bodies(node):
                yield from open_nodes(body)


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
    """Nodes in an order in which they can run, as close to the file's order as possible.

    The nodes of a subgraph that is looked into stand in front of the node that owns it, between border nodes.
    """
    numbers = count()
    return tuple(_flattened(_read(graph, numbers), stored, numbers))


@dataclass(frozen=True)
class _Scope:
    """A graph's nodes in the file's order, and by index of their owner the scopes of its subgraphs."""

    graph: GraphProto
    nodes: list[Node] = field(default_factory=list)
    inside: dict[int, list[_Scope]] = field(default_factory=dict)


def _read(graph: GraphProto, numbers: Iterator[int]) -> _Scope:
    scope = _Scope(graph)
    if len({v.name for v in graph.input}) < len(graph.input):
        raise ModelError("two graph inputs have the same name; rename one of them")
    for proto in graph.node:
        taken = tuple(sorted(set().union(*(captured(b) for b in bodies(proto))) - set(proto.input)))
        inputs, outputs = tuple(proto.input), tuple(proto.output)
        node = Node(next(numbers), proto.op_type, proto.domain, proto.name, inputs, outputs, _attributes(proto), taken)
        if not node.outputs:
            raise ModelError(f"node {node.label!r} writes nothing; the graph is damaged, export it again")
        scope.nodes.append(node)
        if is_open(proto):
            scope.inside[node.index] = [_read(body, numbers) for body in bodies(proto)]
    return scope


def _flattened(scope: _Scope, outside: set[str], numbers: Iterator[int]) -> Iterator[Node]:
    known = outside | {v.name for v in scope.graph.input} | {t.values.name for t in scope.graph.sparse_initializer}
    ordered = _in_order(scope, known)
    known |= {name for node in ordered for name in node.outputs}
    for node in ordered:
        if node.index not in scope.inside:
            yield node
            continue
        inside = scope.inside[node.index]
        into, out_of = _borders(node, [s.graph for s in inside], numbers)
        yield from into
        for body in inside:
            yield from _flattened(body, known, numbers)
        options = {"If": node.inputs, "Loop": (*node.inputs[:2], inside[0].graph.output[0].name)}.get(node.op, ())
        yield replace(node, inputs=options, outputs=(), captured=())
        yield from out_of


def _borders(node: Node, graphs: list[GraphProto], numbers: Iterator[int]) -> tuple[list[Node], list[Node]]:
    """The ways into and out of a node's subgraphs.

    The way out of a branch also reads the condition; the way out of a repeated subgraph joins a state's first value and
    its later ones. ``removes`` and ``adds``: the axis along which a tensor is taken apart or put together.
    """

    def way(inputs: tuple[str, ...], output: str, **attributes: Any) -> Node:
        return Node(next(numbers), node.op, node.domain, node.name, inputs, (output,), attributes, border=True)

    outs = [[v.name for v in graph.output] for graph in graphs]
    if node.op == "If":
        first = [k for k, v in node.attributes.items() if isinstance(v, GraphProto)].index("then_branch")
        branches = zip(outs[first], outs[1 - first], node.outputs, strict=True)
        return [], [way((yes, no, node.inputs[0]), out) for yes, no, out in branches if out]
    formals = [v.name for v in graphs[0].input]
    pairs = list(zip((*node.inputs, "", "")[: len(formals)], formals, strict=True))
    if node.op == "Loop":
        states = list(zip(formals[2:], outs[0][1:], node.outputs, strict=False))
        stacked = [(out, name, 0) for out, name in zip(outs[0][1 + len(states) :], node.outputs[len(states) :], strict=False)]
        into = [way((given,), formal) for given, formal in pairs]
        length = None
    else:
        count_in = int(node.attributes["num_scan_inputs"])
        split = len(pairs) - count_in
        axes = node.attributes.get("scan_input_axes", [0] * count_in)
        into = [way((given,), formal) for given, formal in pairs[:split]]
        into += [way((pairs[split + i][0],), pairs[split + i][1], removes=int(axis)) for i, axis in enumerate(axes)]
        states = list(zip(formals[:split], outs[0], node.outputs, strict=False))
        later = list(zip(outs[0][split:], node.outputs[split:], strict=False))
        added = node.attributes.get("scan_output_axes", [0] * len(later))
        stacked = [(out, name, int(axis)) for (out, name), axis in zip(later, added, strict=True)]
        length = (pairs[split][0], int(axes[0]))
    out_of = [way((formal, out), name) for formal, out, name in states if name]
    return into, out_of + [way((out,), name, adds=axis, length=length) for out, name, axis in stacked if name]


def _in_order(scope: _Scope, known: set[str]) -> list[Node]:
    """A scope's nodes in an order in which they can run."""
    nodes = scope.nodes
    given = {t.name for t in scope.graph.initializer} | {v.name for v in scope.graph.input}
    writer: dict[str, int] = {}
    for place, node in enumerate(nodes):
        for out in filter(None, node.outputs):
            if out in writer or (out in given and (node.op != "Constant" or out not in known)):
                other = f"node {nodes[writer[out]].label!r}" if out in writer else "the graph's inputs or weights"
                raise ModelError(
                    f"tensor {out!r} comes from both {other} and node {node.label!r}; the graph is damaged, export it again"
                )
            writer[out] = place
    waiting: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    for place, node in enumerate(nodes):
        needs = {name for name in (*node.inputs, *node.captured) if name and (name not in known or name in writer)}
        for name in needs:
            if name not in writer:
                raise ModelError(
                    f"node {node.label!r} reads {name!r}, which nothing writes; the graph is damaged, export it again"
                )
        sources = {writer[name] for name in needs}
        waiting[place] = len(sources)
        for source in sources:
            readers.setdefault(source, []).append(place)
    for out in scope.graph.output:
        if out.name not in writer and out.name not in known:
            raise ModelError(f"graph output {out.name!r} is written by no node; the graph is damaged, export it again")
    ready = [i for i, count in waiting.items() if count == 0]
    order: list[Node] = []
    heapq.heapify(ready)
    while ready:
        place = heapq.heappop(ready)
        order.append(nodes[place])
        for reader in readers.get(place, ()):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        place = next(i for i in range(len(nodes)) if waiting[i] > 0)
        passed: set[int] = set()
        while place not in passed:  # back from node to node that waits, until one comes again
            passed.add(place)
            sources = {writer[n] for n in (*nodes[place].inputs, *nodes[place].captured) if n in writer}
            place = min(s for s in sources if waiting[s] > 0)
        raise ModelError(f"the graph has a cycle through node {nodes[place].label!r}, but must have none; export it again")
    return order


_PICKING = frozenset({"Gather", "Slice", "Split"})
"""Operators that take a stored vector apart, all parts of which belong together."""


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
    elsewhere = elsewhere.union(*(node.inputs for node in nodes if node.border))
    for at, node in enumerate(nodes):
        for k, name in enumerate(node.inputs if not node.border else ()):
            tensor = tensors.get(name)
            if tensor is not None and tensor.data_type in FLOATS and 1 < math.prod(tensor.dims) == max(tensor.dims):
                places.setdefault(name, []).append((at, k))
    taken = set(tensors) | {name for node in nodes for name in (*node.inputs, *node.outputs)}
    inputs = [list(node.inputs) for node in nodes]
    uses: dict[str, Use] = {}
    for name, readers in places.items():
        if len(readers) + (name in elsewhere) < 2 or any(nodes[at].op in _PICKING for at, _ in readers):
            continue
        for at, k in readers:
            own = name
            if name in uses or name in elsewhere:
                own = next(c for n in count(1) if (c := f"{name}_copy{n}") not in taken)
                taken.add(own)
            inputs[at][k] = own
            uses[own] = Use(name, nodes[at].label, k)
    return tuple(replace(node, inputs=tuple(new)) for node, new in zip(nodes, inputs, strict=True)), uses
