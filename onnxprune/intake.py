"""What a model must be to be worked on, and its preparation: functions inlined, weights taken out."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from onnxprune.errors import ModelError
from onnxprune.files import FILE_LIMIT, one_line
from onnxprune.structure import STANDARD, all_tensors, bodies, constant_tensor, graphs, is_open, open_graphs
from onnxprune.weights import inlined

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LSTM", "GRU", "RNN"})
"""Operators whose stored operands are filters, never masks: an infinity in them is damage."""


def opset_versions(model: ModelProto) -> dict[str, int]:
    """Operator set versions by domain. A model that does not name ONNX's own gets the latest, as in onnxruntime."""
    newest = onnx.defs.onnx_opset_version()
    if not model.opset_import:
        raise ModelError("it declares no operator set version; export it again")
    versions = {"" if o.domain in STANDARD else o.domain: o.version for o in model.opset_import}
    opset = {domain: version for domain, version in versions.items() if not domain or 0 < version < 1 << 31}
    version = opset.setdefault("", newest)
    if version < 1:
        raise ModelError(f"it declares opset {version}, which does not exist; export it again")
    if version > newest:
        raise ModelError(
            f"it uses opset {version}, newer than the installed onnx knows ({newest}); "
            "upgrade onnx and onnxruntime, or export with an older opset"
        )
    return opset


def check_attributes(graph: GraphProto) -> None:
    """Refuse sizes of zero, less or an absurd amount, by some of which onnxruntime divides without looking."""
    if _depth(graph) > _NESTING:
        raise ModelError("too deeply nested, or too large, for one protobuf message; export it again")
    for node in (n for part in graphs(graph) for n in part.node if n.domain in STANDARD):
        for a in node.attribute:
            sizes = a.ints if a.type == AttributeProto.INTS else (a.i,) if a.type == AttributeProto.INT else ()
            wrong = [v for v in sizes if not 0 < v < 1 << 31]
            where = f"node {(node.name or node.op_type)!r}"
            if node.op_type == "Split" and a.name == "num_outputs" and a.i != len(node.output):  # by which onnx aborts
                raise ModelError(f"{where}: its num_outputs is {a.i}, but it has {len(node.output)} outputs; export it again")
            if wrong and a.name in _SIZES:
                raise ModelError(f"{where}: its {a.name} is {wrong[0]}, which can't be; the file is damaged, export it again")


def _depth(graph: GraphProto) -> int:
    return 1 + max((_depth(body) for node in graph.node for body in bodies(node)), default=0)


_NESTING = 33
"""Protobuf reads messages nested 100 deep; a subgraph is three levels."""

_SIZES = frozenset({"blocksize", "dilations", "group", "hidden_size", "kernel_shape", "num_groups", "num_outputs", "strides"})


def without_functions(model: ModelProto) -> ModelProto:
    """The model with its local functions inlined, if they do not explode."""
    defined = {(f.domain, f.name, f.overload): f.node for f in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def size(nodes: Iterable[NodeProto], depth: int) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type, node.overload)
            if depth > _CALL_DEPTH:
                raise ModelError(f"its local function {node.op_type!r} calls itself or is nested too deeply; export it again")
            if key in defined and key not in sizes:
                sizes[key] = size(defined[key], depth + 1)
            total += sizes[key] if key in defined else node.ByteSize() + _NODE_BYTES
            total += sum(size(body.node, depth + 1) for body in bodies(node))
        return total

    if size(model.graph.node, 0) > FILE_LIMIT:
        raise ModelError("its local functions expand into an absurd number of nodes; export it without functions")
    try:
        return onnx.inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"its local functions can't be inlined: {one_line(error)}; export it without functions") from error


_CALL_DEPTH = 100
_NODE_BYTES = 1000
"""What a node takes in memory besides its own data, about."""


def inline_attributes(graph: GraphProto, folder: Path | None) -> None:
    """Take in the external data of tensors that are part of nodes, so that these can be written anywhere."""
    for name, tensor in all_tensors(graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(inlined(tensor, name, folder))


def stored_tensors(graph: GraphProto) -> dict[str, TensorProto]:
    """The initializers and Constant values of a graph and the subgraphs that are looked into, by name.

    Raises:
        ModelError: two different ones have the same name.
    """
    tensors: dict[str, TensorProto] = {}
    for part in open_graphs(graph):
        for tensor in part.initializer:
            _add_tensor(tensors, tensor.name, tensor)
        for node in part.node:
            if node.op_type == "Constant" and node.domain in STANDARD and node.output:
                constant = constant_tensor(node)
                if constant is not None:
                    _add_tensor(tensors, node.output[0], constant)
    return tensors


def _add_tensor(tensors: dict[str, TensorProto], name: str, tensor: TensorProto) -> None:
    known = tensors.setdefault(name, tensor)
    if known is not tensor and known != tensor:
        raise ModelError(f"two different weights are called {name!r}, and it is not clear which is meant; rename one of them")


def distinct_names(model: ModelProto) -> ModelProto:
    """The model itself, or a copy in which no subgraph that is looked into uses a name that another graph uses too."""
    if not any(is_open(node) for node in model.graph.node):
        return model
    counts = Counter(name for part in open_graphs(model.graph) for name in _defined(part))
    if max(counts.values(), default=1) < 2:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    taken = {name for part in graphs(copy.graph) for name in _defined(part)} | _defined(copy.graph)
    seen = set(_defined(copy.graph))
    for part in list(open_graphs(copy.graph))[1:]:
        names: dict[str, str] = {}
        for name in sorted(_defined(part)):
            if name in seen:
                names[name] = next(new for k in itertools.count(1) if (new := f"{name}_{k}") not in taken)
                taken.add(names[name])
            seen.add(names.get(name, name))
        if names:
            _rename(part, names)
    return copy


def _defined(graph: GraphProto) -> set[str]:
    names = {t.name for t in graph.initializer} | {v.name for v in graph.input}
    return names | {out for node in graph.node for out in node.output if out}


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors of a graph, in its subgraphs too where these do not hide them."""
    for value in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for body in bodies(node):
            hidden = _defined(body)
            _rename(body, {old: new for old, new in names.items() if old not in hidden})


def without_weights(model: ModelProto) -> ModelProto:
    """A copy of the model whose initializers have headers but no data."""
    bare = ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name not in ("graph", "functions"):
            _assign(bare, descriptor, value)
    _copy_bare(model.graph, bare.graph)
    return bare


def _copy_bare(graph: GraphProto, bare: GraphProto) -> None:
    for descriptor, value in graph.ListFields():
        if descriptor.name not in ("initializer", "node"):
            _assign(bare, descriptor, value)
    for node in graph.node:
        copy = bare.node.add()
        if not is_open(node):
            copy.CopyFrom(node)
            continue
        for descriptor, value in node.ListFields():
            if descriptor.name != "attribute":
                _assign(copy, descriptor, value)
        for a in node.attribute:
            if a.type != AttributeProto.GRAPH:
                copy.attribute.append(a)
                continue
            attribute = copy.attribute.add(name=a.name, type=a.type)
            _copy_bare(a.g, attribute.g)
    seen: set[str] = set()
    for tensor in graph.initializer:
        if tensor.name not in seen:
            bare.initializer.append(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
        seen.add(tensor.name)


def _assign(message: Any, descriptor: Any, value: Any) -> None:
    if descriptor.is_repeated:
        getattr(message, descriptor.name).extend(value)
    elif descriptor.message_type is not None:
        getattr(message, descriptor.name).CopyFrom(value)
    else:
        setattr(message, descriptor.name, value)
