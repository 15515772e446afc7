"""What is done to a graph's proto, without graphsurgeon, before and after it is edited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto, helper

from onnxprune.lazy import LazyTensor
from onnxprune.structure import bodies, graphs, is_open, open_graphs


def arranged(graph: GraphProto, numbers: Iterator[int], place: Mapping[int, int]) -> list[int]:
    """Put the nodes of a graph and its subgraphs in an order in which they can run; returns their indices in that order."""
    entries: list[tuple[int, NodeProto, list[int]]] = []
    for proto in graph.node:
        index = next(numbers)
        inside = [i for body in bodies(proto) for i in arranged(body, numbers, place)] if is_open(proto) else []
        entries.append((place[index], proto, [index, *inside]))
    entries.sort(key=lambda entry: entry[0])
    del graph.node[:]
    graph.node.extend(proto for _, proto, _ in entries)
    return [index for _, _, indices in entries for index in indices]


def all_names(graph: GraphProto) -> set[str]:
    """Every name of a tensor in a graph and in all of its subgraphs."""
    names: set[str] = set()
    for part in graphs(graph):
        names |= {v.name for v in (*part.input, *part.output)} | {t.name for t in part.initializer}
        names |= {name for node in part.node for name in (*node.input, *node.output)}
    return names


def read_names(graph: GraphProto) -> set[str]:
    """Every name that something in a graph or its subgraphs reads."""
    names: set[str] = set()
    for part in graphs(graph):
        names |= {v.name for v in part.output} | {name for node in part.node for name in node.input}
    return names


def keep_known(graph: GraphProto, used: set[str], dropped: set[str]) -> None:
    """Drop the declarations of tensors that are gone: shapes, annotations, inputs that were initializers."""
    initializers = {t.name for t in graph.initializer}
    written = {out for node in graph.node for out in node.output}
    present = used | written | initializers
    _filter(graph.input, lambda v: v.name not in dropped)
    _filter(graph.value_info, lambda v: v.name in present)
    _filter(graph.quantization_annotation, lambda a: a.tensor_name in present)
    _filter(graph.sparse_initializer, lambda t: t.values.name in used)


def _filter(repeated: Any, keep: Any) -> None:
    kept = [item for item in repeated if keep(item)]
    if len(kept) < len(repeated):
        del repeated[:]
        repeated.extend(kept)


def redeclare(value: ValueInfoProto, shape: Sequence[int | None]) -> None:
    """Give a declared tensor its new sizes; None leaves a dimension as it was declared."""
    dims = value.type.tensor_type.shape.dim
    for dim, size in zip(dims, shape, strict=False):
        if size is not None and dim.HasField("dim_value"):
            dim.dim_value = size


def fill_subgraphs(graph: GraphProto, tensors: Mapping[str, LazyTensor]) -> None:
    """Put the data of subgraphs' initializers, which are read from nowhere else, into the proto."""
    for part in list(open_graphs(graph))[1:]:
        for header in part.initializer:
            name = header.name
            header.CopyFrom(tensors[name].proto())
            header.name = name


def alone(
    proto: NodeProto, given: Sequence[bool], opset: Sequence[OperatorSetIdProto], attributes: Mapping[str, Any], op: str = ""
) -> ModelProto:
    """A model of one node, whose inputs are called ``in0``, ``in1``, ... where they are ``given``, without types.

    ``attributes`` replace the node's own (None removes one), ``op`` its operator by another one of ONNX's.
    """
    node = NodeProto()
    node.CopyFrom(proto)
    if op:
        node.op_type, node.domain = op, ""
    del node.input[:]
    node.input.extend(f"in{k}" if there else "" for k, there in enumerate(given))
    kept = [a for a in node.attribute if a.name not in attributes]
    kept += [helper.make_attribute(k, v) for k, v in attributes.items() if v is not None]
    del node.attribute[:]
    node.attribute.extend(kept)
    taken, made = ([ValueInfoProto(name=name) for name in names if name] for names in (node.input, node.output))
    return helper.make_model(helper.make_graph([node], "node", taken, made), opset_imports=opset)
