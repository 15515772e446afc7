"""Graph: a loaded model, its structure apart from its weights; the only module that knows onnx-graphsurgeon.

The structure (nodes, names, ports) is kept without weight data, so that it is small however large the model is. Edits go
through :class:`Editor`, which lets graphsurgeon rewire a private copy and puts back what its round trip loses: metadata,
doc strings, opset and model versions, quantization annotations, initializers listed as inputs, attribute kinds that it
does not know.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune.errors import ModelError, OutputError
from onnxprune.weights import Array, Weights

G_LOGGER.severity = G_LOGGER.ERROR

Source = str | Path | ModelProto
STANDARD = ("", "ai.onnx")
EXTERNAL_FROM = 1024
"""Tensors of at least this many bytes go to the external file, where there is one."""


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


@dataclass(frozen=True)
class Graph:
    """A model: ``proto`` without the weights' data, ``weights`` beside it, ``nodes`` in an order in which they can run."""

    proto: ModelProto
    weights: Weights
    nodes: tuple[Node, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opset: Mapping[str, int]
    source: Source = field(repr=False)

    @property
    def producers(self) -> dict[str, Node]:
        """Which node writes a tensor."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    @property
    def consumers(self) -> dict[str, list[Node]]:
        """Which nodes read a tensor, subgraphs' captured names included."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys((*node.inputs, *node.captured)):
                if name:
                    found.setdefault(name, []).append(node)
        return found

    @property
    def inner_tensors(self) -> Iterator[tuple[Node, str, TensorProto]]:
        """The tensors stored inside nodes' subgraphs: the node of the main graph, their name, themselves."""
        for node in self.nodes:
            for body in _bodies(self.proto.graph.node[node.index]):
                yield from ((node, name, tensor) for name, tensor in _inside(body))

    @property
    def sha256(self) -> str:
        """Hex digest of the file, or of the serialised proto where the model was given as one."""
        if isinstance(self.source, ModelProto):
            return hashlib.sha256(self.source.SerializeToString(deterministic=True)).hexdigest()
        with open(self.source, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def stored_bytes(self) -> int:
        """Size of the model: its file and the external data it refers to, or of the serialised proto."""
        if isinstance(self.source, ModelProto):
            return int(self.source.ByteSize())
        return Path(self.source).stat().st_size + self.weights.external_bytes

    def editor(self) -> Editor:
        """A private copy of the structure, to be rewired."""
        return Editor(self)

    def assemble(self, weights: Mapping[str, TensorProto] | None = None) -> ModelProto:
        """The complete model again, with some stored tensors replaced by others of the same name."""
        model = ModelProto()
        model.CopyFrom(self.proto)
        for node in model.graph.node:
            _set_constant(node, weights or {})
        _export_weights(model.graph, self.weights, weights or {}, set(self.weights))
        return model


def load(source: Source) -> Graph:
    """Read a model from a path or proto and check that it can be worked on. The proto is not changed.

    Local functions are inlined. Nodes need not be sorted. External data stay where they are.

    Raises:
        ModelError: not a model, no graph, cyclic, dangling, duplicated names, damaged or non-finite weights.
    """
    model, folder = (source, None) if isinstance(source, ModelProto) else _parse(Path(source))
    where = "model" if isinstance(source, ModelProto) else repr(str(source))
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ModelError(f"{where} holds no graph: it is empty or not an ONNX model; export it again")
    if not model.graph.node:
        raise ModelError(f"{where}: its graph has no nodes, there is nothing to prune")
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
            raise ModelError(f"{where}: its local functions can't be inlined: {_line(error)}") from error
    opset = {o.domain if o.domain not in STANDARD else "": o.version for o in model.opset_import}
    if not opset:
        raise ModelError(f"{where} declares no operator set version; export it again")
    if opset.get("", 0) > onnx.defs.onnx_opset_version():
        raise ModelError(
            f"{where} uses opset {opset['']}, newer than the installed onnx knows ({onnx.defs.onnx_opset_version()}); "
            "upgrade onnx and onnxruntime, or export with an older opset"
        )
    weights = Weights(_stored_tensors(model.graph, where), folder)
    weights.check()
    proto = _without_weights(model)
    nodes = _sorted_nodes(proto.graph, set(weights), where)
    return Graph(
        proto=proto,
        weights=weights,
        nodes=nodes,
        inputs=tuple(_port(v) for v in model.graph.input if v.name not in weights),
        outputs=tuple(_port(v) for v in model.graph.output),
        opset=opset,
        source=source,
    )


def save(model: ModelProto, path: str | Path, *, external: bool = False) -> None:
    """Write a model so that the path holds either all of it or what was there before.

    Args:
        external: put the weights in a file of their own beside it, called ``<name>.data``. Models over 2 GB need it.

    Raises:
        OutputError: the path can't be written.
    """
    path = Path(path)
    check_output(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = path.with_name(path.name + ".data")
    temporary_data = data.with_name(f".{data.name}.{os.getpid()}.tmp")
    try:
        if external:
            model = _externalised(model, temporary_data, data.name)
        with open(temporary, "wb") as file:
            file.write(model.SerializeToString())
        if external:
            os.replace(temporary_data, data)
        os.replace(temporary, path)
    except (OSError, EncodeError, ValueError) as error:
        raise OutputError(f"{str(path)!r} can't be written: {_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)
        temporary_data.unlink(missing_ok=True)


def check_output(path: str | Path, source: Source | None = None) -> None:
    """Make sure, before any work is done, that a result can be written to a path.

    Raises:
        OutputError: it is the input, a folder, or in a folder that does not exist or can't be written.
    """
    path = Path(path)
    if isinstance(source, str | Path) and path.exists() and Path(source).exists() and path.samefile(source):
        raise OutputError(f"output {str(path)!r} is the input itself; choose another path")
    if path.is_dir():
        raise OutputError(f"output {str(path)!r} is a folder; give the path of a file")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"output {str(path)!r}: the folder {str(path.absolute().parent)!r} does not exist; create it first")
    if not os.access(path.absolute().parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OutputError(f"output {str(path)!r} can't be written: permission denied")


def _externalised(model: ModelProto, target: Path, location: str) -> ModelProto:
    """A copy whose larger initializers lie in ``target``, which will be called ``location``."""
    copy = ModelProto()
    copy.CopyFrom(model)
    with open(target, "wb") as file:
        for tensor in copy.graph.initializer:
            if tensor.HasField("raw_data") and len(tensor.raw_data) >= EXTERNAL_FROM:
                file.write(b"\0" * (-file.tell() % 4096))
                offset = file.tell()
                length = file.write(tensor.raw_data)
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (("location", location), ("offset", offset), ("length", length)):
                    tensor.external_data.add(key=key, value=str(value))
    return copy


class Editor:
    """Rewires a private copy of a graph and exports it as a complete model.

    Tensors are referred to by name. Every edit leaves the names of what it does not touch alone.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        bare = ModelProto(ir_version=graph.proto.ir_version, opset_import=graph.proto.opset_import)
        bare.graph.name = graph.proto.graph.name or "graph"
        protos = graph.proto.graph.node
        bare.graph.node.extend(protos[node.index] for node in graph.nodes)
        bare.graph.input.extend(ValueInfoProto(name=p.name) for p in graph.proto.graph.input)
        bare.graph.output.extend(ValueInfoProto(name=p.name) for p in graph.outputs)
        self._gs = gs.import_onnx(bare)
        self._nodes = {node.index: copy for node, copy in zip(graph.nodes, self._gs.nodes, strict=True)}
        self._tensors: dict[str, gs.Tensor] = dict(self._gs.tensors())
        self._originals = {id(copy): protos[node.index] for node, copy in zip(graph.nodes, self._gs.nodes, strict=True)}
        self._edited: set[int] = set()
        self._new: dict[str, TensorProto] = {}
        self._names = set(self._tensors) | set(graph.weights)

    def set_attribute(self, node: Node, name: str, value: Any) -> None:
        """Give a node's attribute a new value; ``None`` removes it."""
        copy = self._nodes[node.index]
        if value is None:
            copy.attrs.pop(name, None)
        else:
            copy.attrs[name] = value
        self._edited.add(id(copy))

    def set_input(self, node: Node, index: int, name: str) -> None:
        """Make a node read another tensor at ``index``."""
        copy = self._nodes[node.index]
        while len(copy.inputs) <= index:
            copy.inputs.append(gs.Variable.empty())
        copy.inputs[index] = self._tensor(name)

    def constant(self, hint: str, values: Array) -> str:
        """Add an initializer with these values and return its name, made unique from ``hint``."""
        name = self._unique(hint)
        self._new[name] = numpy_helper.from_array(values, name)
        return name

    def insert(self, op: str, inputs: Sequence[str], hint: str, *, before: Node, **attributes: Any) -> str:
        """Add a standard operator just before ``before`` and return its output's name."""
        output = self._unique(hint)
        self._insert(op, inputs, output, before, attributes)
        return output

    def replace_output(self, node: Node, output: str, op: str, inputs: Sequence[str], **attributes: Any) -> None:
        """Let a new operator write ``output`` instead of ``node``, which goes once nothing reads it any more."""
        copy = self._nodes[node.index]
        position = node.outputs.index(output)
        copy.outputs[position] = gs.Variable(self._unique(f"{output}_unused"))
        self._edited.add(id(copy))
        self._insert(op, inputs, output, node, attributes)

    def finish(self, weights: Mapping[str, TensorProto], shapes: Mapping[str, Sequence[int | None]]) -> ModelProto:
        """Drop what nothing uses any more and write the model.

        Args:
            weights: tensors that replace stored ones of the same name; the others are copied as they are.
            shapes: new sizes of tensors whose declared shape changed; None leaves that dimension as it was declared.
        """
        self._gs.cleanup(recurse_subgraphs=False, recurse_functions=False)
        model = ModelProto()
        model.CopyFrom(self._graph.proto)
        graph = model.graph
        del graph.node[:]
        graph.node.extend(self._export(node, weights) for node in self._gs.nodes)
        used = _read_names(graph)
        _export_weights(graph, self._graph.weights, weights, used)
        graph.initializer.extend(t for name, t in self._new.items() if name in used)
        _keep_known(graph, used, dropped={t.name for t in self._graph.proto.graph.initializer} - used)
        for value in (*graph.input, *graph.value_info):
            if value.name in shapes:
                _redeclare(value, shapes[value.name])
        return model

    def _tensor(self, name: str) -> gs.Tensor:
        if name not in self._tensors:
            self._tensors[name] = gs.Variable(name)
        return self._tensors[name]

    def _unique(self, hint: str) -> str:
        name, count = hint, 0
        while name in self._names:
            count += 1
            name = f"{hint}_{count}"
        self._names.add(name)
        return name

    def _insert(self, op: str, inputs: Sequence[str], output: str, before: Node, attributes: Mapping[str, Any]) -> None:
        tensor = self._tensor(output)
        new = gs.Node(op, name=self._unique(f"{output}/{op}"), attrs=dict(attributes), inputs=[self._tensor(i) for i in inputs])
        new.outputs = [tensor]
        self._gs.nodes.insert(self._gs.nodes.index(self._nodes[before.index]), new)

    def _export(self, node: gs.Node, weights: Mapping[str, TensorProto]) -> NodeProto:
        """The node's proto: the original with its inputs renamed where it was not edited, so that nothing is lost."""
        original = self._originals.get(id(node))
        edited = original is None or id(node) in self._edited
        proto = gs.exporters.onnx_exporter.OnnxExporter.export_node(node) if edited else NodeProto()
        if original is not None and edited:
            proto.doc_string = original.doc_string
            proto.metadata_props.extend(original.metadata_props)
            proto.overload = original.overload
            kept = {a.name for a in proto.attribute}
            proto.attribute.extend(a for a in original.attribute if a.name not in kept and a.type in _UNKNOWN_TO_GS)
        elif original is not None:
            proto.CopyFrom(original)
            del proto.input[:]
            proto.input.extend(t.name for t in node.inputs)
        _set_constant(proto, weights)
        return proto


_UNKNOWN_TO_GS = frozenset(
    {
        AttributeProto.SPARSE_TENSOR,
        AttributeProto.SPARSE_TENSORS,
        AttributeProto.TYPE_PROTO,
        AttributeProto.TYPE_PROTOS,
        AttributeProto.TENSORS,
        AttributeProto.GRAPHS,
    }
)


def _parse(path: Path) -> tuple[ModelProto, Path]:
    where = repr(str(path))
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{where} does not exist; check the path") from error
    except OSError as error:
        raise ModelError(f"{where} can't be read: {error.strerror}") from error
    if not data:
        raise ModelError(f"{where} is empty (0 bytes); export the model again")
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{where} is not an ONNX model, or it is truncated: {_line(error)}; export it again") from error
    return model, path.absolute().parent


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _port(value: ValueInfoProto) -> Port:
    if not value.type.HasField("tensor_type"):
        return Port(value.name, 0, None)
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return Port(value.name, tensor.elem_type, None)
    dims = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim)
    return Port(value.name, tensor.elem_type, dims)


def _stored_tensors(graph: GraphProto, where: str) -> dict[str, TensorProto]:
    tensors: dict[str, TensorProto] = {}
    for tensor in graph.initializer:
        if tensor.name in tensors and tensors[tensor.name] != tensor:
            raise ModelError(f"{where}: two different initializers are called {tensor.name!r}; rename one of them")
        tensors[tensor.name] = tensor
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD and node.output:
            tensor = constant_tensor(node)
            if tensor is not None:
                tensors[node.output[0]] = tensor
    return tensors


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


def _without_weights(model: ModelProto) -> ModelProto:
    """A copy of the model whose initializers have headers but no data."""
    bare = ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name not in ("graph", "functions"):
            _assign(bare, descriptor, value)
    for descriptor, value in model.graph.ListFields():
        if descriptor.name != "initializer":
            _assign(bare.graph, descriptor, value)
    seen: set[str] = set()
    for tensor in model.graph.initializer:
        if tensor.name not in seen:
            bare.graph.initializer.append(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
        seen.add(tensor.name)
    return bare


def _assign(message: Any, descriptor: Any, value: Any) -> None:
    if descriptor.is_repeated:
        getattr(message, descriptor.name).extend(value)
    elif descriptor.message_type is not None:
        getattr(message, descriptor.name).CopyFrom(value)
    else:
        setattr(message, descriptor.name, value)


def _captured(graph: GraphProto) -> set[str]:
    """Names that a subgraph reads but does not define itself."""
    defined = {t.name for t in graph.initializer} | {v.name for v in graph.input}
    defined |= {out for node in graph.node for out in node.output}
    wanted = {v.name for v in graph.output}
    for node in graph.node:
        wanted.update(node.input)
        for body in _bodies(node):
            wanted |= _captured(body)
    return {name for name in wanted - defined if name}


def _bodies(node: NodeProto) -> Iterable[GraphProto]:
    for a in node.attribute:
        if a.type == AttributeProto.GRAPH:
            yield a.g
        yield from a.graphs


def _inside(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    yield from ((t.name, t) for t in graph.initializer)
    for node in graph.node:
        tensor = constant_tensor(node) if node.op_type == "Constant" else None
        if tensor is not None:
            yield node.output[0], tensor
        for body in _bodies(node):
            yield from _inside(body)


def _attributes(node: NodeProto) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for a in node.attribute:
        try:
            value = helper.get_attribute_value(a)
        except ValueError:
            continue
        values[a.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return values


def _sorted_nodes(graph: GraphProto, stored: set[str], where: str) -> tuple[Node, ...]:
    """Nodes in an order in which they can run, as close to the file's order as possible."""
    nodes: list[Node] = []
    writer: dict[str, int] = {}
    for index, proto in enumerate(graph.node):
        captured = tuple(sorted(set().union(*(_captured(b) for b in _bodies(proto))) - set(proto.input)))
        node = Node(
            index, proto.op_type, proto.domain, proto.name, tuple(proto.input), tuple(proto.output), _attributes(proto), captured
        )
        for out in filter(None, node.outputs):
            if out in writer:
                raise ModelError(
                    f"{where}: tensor {out!r} is written by two nodes, {nodes[writer[out]].label!r} and {node.label!r}"
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
                raise ModelError(f"{where}: node {node.label!r} reads {name!r}, which nothing produces; the graph is dangling")
        sources = {writer[name] for name in needs}
        waiting[node.index] = len(sources)
        for source in sources:
            readers.setdefault(source, []).append(node.index)
    for out in graph.output:
        if out.name not in writer and out.name not in known:
            raise ModelError(f"{where}: graph output {out.name!r} is produced by no node; the graph is dangling")
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
        raise ModelError(f"{where}: the graph has a cycle through node {stuck.label!r}; an ONNX graph must be acyclic")
    return tuple(order)


def _set_constant(node: NodeProto, weights: Mapping[str, TensorProto]) -> None:
    if node.op_type == "Constant" and node.output[0] in weights:
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("value", weights[node.output[0]]))


def _export_weights(graph: GraphProto, stored: Weights, replaced: Mapping[str, TensorProto], used: set[str]) -> None:
    """Fill in the data of the initializers that are used; those of subgraphs travel with their nodes."""
    names = [t.name for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    for name in names:
        graph.initializer.append(replaced[name] if name in replaced else stored.inline(name))


def _read_names(graph: GraphProto) -> set[str]:
    names = {v.name for v in graph.output}
    for node in graph.node:
        names.update(node.input)
        for body in _bodies(node):
            names |= _captured(body)
    return names


def _keep_known(graph: GraphProto, used: set[str], dropped: set[str]) -> None:
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


def _redeclare(value: ValueInfoProto, shape: Sequence[int | None]) -> None:
    dims = value.type.tensor_type.shape.dim
    for dim, size in zip(dims, shape, strict=False):
        if size is not None and dim.HasField("dim_value"):
            dim.dim_value = size
