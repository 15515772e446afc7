"""What is done to a graph's proto, without graphsurgeon, before and after it is edited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnx import GraphProto, NodeProto, ValueInfoProto

from onnxprune.structure import bodies, graphs, is_open


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
