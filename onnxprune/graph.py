"""Graph: a loaded model, its structure apart from its weights; the only module that knows onnx-graphsurgeon.

The structure (nodes, names, ports) is kept without weight data, so that it is small however large the model is. Edits go
through :class:`Editor`, which lets graphsurgeon rewire a private copy and puts back what its round trip loses: metadata,
doc strings, opset and model versions, quantization annotations, initializers listed as inputs, attribute kinds that it
does not know.
"""

from __future__ import annotations

import hashlib
import heapq
import math
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
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune.errors import ModelError, OutputError
from onnxprune.weights import ELEMENT_LIMIT, Array, Weights, check, external_file, inlined

G_LOGGER.severity = G_LOGGER.ERROR

Source = str | Path | ModelProto
STANDARD = ("", "ai.onnx")
EXTERNAL_FROM = 1024
"""Tensors of at least this many bytes go to the external file, where there is one."""

FILE_LIMIT = (1 << 31) - 1
"""The largest protobuf message, and so the largest model file."""

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LSTM", "GRU", "RNN"})
"""Operators whose stored operands are filters, never masks: an infinity in them is damage."""


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
            try:
                return int(self.source.ByteSize())
            except EncodeError:  # over 2 GB
                return int(self.proto.ByteSize()) + sum(len(t.raw_data) for t in self.weights.values())
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
    where = "model" if isinstance(source, ModelProto) else repr(str(source))
    try:
        if not isinstance(source, ModelProto):
            return _graph(*_parse(Path(source)), source)
        _check_text(source, drop=False)
        return _graph(source, None, source)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    except (RecursionError, DecodeError, EncodeError) as error:
        raise ModelError(f"{where}: too deeply nested, or too large, for one protobuf message; export it again") from error


def _graph(model: ModelProto, folder: Path | None, source: Source) -> Graph:
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ModelError("there is no graph in it, so it is empty or not an ONNX model; export it again")
    if not model.graph.node:
        raise ModelError("its graph has no nodes, so there is nothing to prune; export it again")
    if not model.graph.output:
        raise ModelError("its graph has no outputs, so nothing in it is of use; export it again")
    if model.functions:
        model = _without_functions(model)
    _check_attributes(model.graph)
    opset = _opset(model)
    tensors = _stored_tensors(model.graph)
    filters = {name for node in model.graph.node if node.op_type in _PRODUCTS for name in node.input[1:]}
    for name, tensor in _all_tensors(model.graph):
        check(tensor, name, folder, mask=name not in filters)
    inputs = tuple(_port(v) for v in model.graph.input if v.name not in tensors)
    for port in inputs:
        size = math.prod(d for d in port.shape or () if isinstance(d, int))
        if size > ELEMENT_LIMIT:
            raise ModelError(f"graph input {port.name!r} is declared absurdly large, {list(port.shape or ())}; export it again")
    proto = _without_weights(model)
    _inline_attributes(proto.graph, folder)
    nodes = _sorted_nodes(proto.graph, set(tensors))
    return Graph(
        proto=proto,
        weights=Weights(tensors, folder),
        nodes=nodes,
        inputs=inputs,
        outputs=tuple(_port(v) for v in model.graph.output),
        opset=opset,
        source=source,
    )


def _opset(model: ModelProto) -> dict[str, int]:
    """Operator set versions by domain. A model that does not name ONNX's own gets the latest, as in onnxruntime."""
    newest = onnx.defs.onnx_opset_version()
    if not model.opset_import:
        raise ModelError("it declares no operator set version; export it again")
    opset = {o.domain if o.domain not in STANDARD else "": o.version for o in model.opset_import if 0 <= o.version < 1 << 31}
    version = opset.setdefault("", newest)
    if version < 1:
        raise ModelError(f"it declares opset {version}, which does not exist; export it again")
    if version > newest:
        raise ModelError(
            f"it uses opset {version}, newer than the installed onnx knows ({newest}); "
            "upgrade onnx and onnxruntime, or export with an older opset"
        )
    return opset


def save(model: ModelProto, path: str | Path, *, external: bool = False, source: Source | None = None) -> None:
    """Write a model so that the path holds either all of it or what was there before.

    Args:
        external: put the weights in a file of their own beside it, called ``<name>.data``. Models over 2 GB need it.
        source: the model that it was made from, whose files are not overwritten.

    Raises:
        OutputError: the path can't be written.
    """
    path = Path(path)
    check_output(path, source)
    temporary, temporary_data, old_data = (path.with_name(f".onnxprune-{os.getpid()}.{part}") for part in ("tmp", "data", "old"))
    data = _data_path(path)
    fresh = external and not data.exists()
    try:
        if external:
            model = _externalised(model, temporary_data, data.name)
        with open(temporary, "wb") as file:
            file.write(model.SerializeToString())
        if external:
            if not fresh:
                os.replace(data, old_data)
            os.replace(temporary_data, data)
        os.replace(temporary, path)
    except (OSError, EncodeError, ValueError) as error:
        raise OutputError(f"output {str(path)!r} can't be written: {_line(error)}; nothing was changed") from error
    finally:
        if temporary.exists():  # not in place, so the data must not be either
            if old_data.exists():
                os.replace(old_data, data)
            elif fresh:
                data.unlink(missing_ok=True)
        for left in (temporary, temporary_data, old_data):
            left.unlink(missing_ok=True)


def check_output(path: str | Path, source: Source | None = None) -> None:
    """Make sure, before any work is done, that a result can be written to a path.

    Raises:
        OutputError: it is the input, a folder, or in a folder that does not exist or can't be written.
    """
    path = Path(path)
    where = f"output {str(path)!r}"
    if "\0" in str(path):
        raise OutputError(f"{where} is no path; choose another one")
    try:
        folder = path.absolute().parent
        if isinstance(source, str | Path):
            _check_apart(path, Path(source))
        if path.is_dir():
            raise OutputError(f"{where} is a folder; give the path of a file")
        if path.exists() and not path.is_file():
            raise OutputError(f"{where} is not a plain file; choose another path")
        if not folder.is_dir():
            raise OutputError(f"{where}: the folder {str(folder)!r} does not exist; create it first")
        if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
            raise OutputError(f"{where} can't be written: permission denied; choose another path")
    except OSError as error:
        raise OutputError(f"{where} can't be written: {error.strerror}; choose another path") from error


def _check_apart(path: Path, source: Path) -> None:
    """Whether writing to ``path`` leaves the files of ``source`` alone."""
    taken = [p for p in (path, _data_path(path)) if p.exists()]
    if not taken or not source.exists():
        return
    if path.exists() and path.samefile(source):
        raise OutputError(f"output {str(path)!r} is the input itself; choose another path")
    try:
        model, folder = _parse(source)
        used = {external_file(t, folder) for _, t in _all_tensors(model.graph)}
    except (ModelError, RecursionError):  # loading it says what is wrong
        used = set()
    for file in filter(None, (source, *used)):
        if file.exists() and any(p.samefile(file) for p in taken):
            raise OutputError(f"output {str(path)!r} would overwrite {str(file)!r}, which the input needs; choose another path")


def _data_path(path: Path) -> Path:
    return path.with_name(path.name + ".data")


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
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"this is {'a folder' if path.is_dir() else 'no plain file'}; give the path of an ONNX file")
        if path.stat().st_size > FILE_LIMIT:
            raise ModelError("the file is larger than 2 GB, which no ONNX file can be; export it with external data")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError("the file does not exist; check the path") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"the file can't be read: {getattr(error, 'strerror', None) or error}; check the path") from error
    if not data:
        raise ModelError("the file is empty (0 bytes); export the model again")
    try:
        model = ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError("the file is not an ONNX model, or it is truncated; export it again") from error
    _check_text(model, drop=True)
    return model, path.absolute().parent


def _check_attributes(graph: GraphProto) -> None:
    """Refuse sizes of zero, less or an absurd amount, by some of which onnxruntime divides without looking."""
    for node in (n for part in _graphs(graph) for n in part.node if n.domain in STANDARD):
        for a in node.attribute:
            sizes = a.ints if a.type == AttributeProto.INTS else (a.i,) if a.type == AttributeProto.INT else ()
            wrong = [v for v in sizes if not 0 < v < 1 << 31]
            if wrong and a.name in _SIZES:
                where = f"node {(node.name or node.op_type)!r}"
                raise ModelError(f"{where}: its {a.name} is {wrong[0]}, which can't be; the file is damaged, export it again")


_SIZES = frozenset({"blocksize", "dilations", "group", "hidden_size", "kernel_shape", "num_groups", "num_outputs", "strides"})


def _check_text(message: Any, *, drop: bool) -> None:
    """Refuse names that are not UTF-8, which protobuf hands out as bytes. Mere remarks can be dropped instead."""
    tensor = isinstance(message, TensorProto)  # whose data must not be copied
    fields = [(d, getattr(message, d.name)) for d in _TENSOR_TEXTS] if tensor else message.ListFields()
    for descriptor, value in fields:
        parts = value if descriptor.is_repeated else (value,)
        if descriptor.type == descriptor.TYPE_MESSAGE and descriptor.name != "metadata_props":
            for part in parts:
                _check_text(part, drop=drop)
        elif descriptor.type == descriptor.TYPE_STRING and any(isinstance(text, bytes) for text in parts):
            if not drop or descriptor.name not in ("doc_string", "producer_name", "producer_version"):
                raise ModelError(f"the {descriptor.name} {value!r} in it is not UTF-8 text; the file is damaged, export it again")
            message.ClearField(descriptor.name)
        elif isinstance(message, AttributeProto) and descriptor.name in ("s", "strings"):
            for text in parts:
                try:
                    text.decode()
                except UnicodeDecodeError as error:
                    raise ModelError(
                        f"attribute {message.name!r} holds {text!r}, which is not UTF-8 text; the file is damaged"
                    ) from error


_TENSOR_TEXTS = [TensorProto.DESCRIPTOR.fields_by_name[name] for name in ("name", "doc_string", "external_data")]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _port(value: ValueInfoProto) -> Port:
    if not value.type.HasField("tensor_type"):
        return Port(value.name, 0, None)
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return Port(value.name, tensor.elem_type, None)
    dims = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None) for d in tensor.shape.dim)
    return Port(value.name, tensor.elem_type, dims)


def _without_functions(model: ModelProto) -> ModelProto:
    """The model with its local functions inlined, if they do not explode."""
    bodies = {(f.domain, f.name, f.overload): f.node for f in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def size(nodes: Iterable[NodeProto], depth: int) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type, node.overload)
            if depth > _CALL_DEPTH:
                raise ModelError(f"its local function {node.op_type!r} calls itself or is nested too deeply; export it again")
            if key in bodies and key not in sizes:
                sizes[key] = size(bodies[key], depth + 1)
            total += sizes[key] if key in bodies else node.ByteSize() + _NODE_BYTES
            total += sum(size(body.node, depth + 1) for body in _bodies(node))
        return total

    if size(model.graph.node, 0) > FILE_LIMIT:
        raise ModelError("its local functions expand into an absurd number of nodes; export it without functions")
    try:
        return onnx.inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"its local functions can't be inlined: {_line(error)}; export it without functions") from error


_CALL_DEPTH = 100
_NODE_BYTES = 1000
"""What a node takes in memory besides its own data, about."""


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for body in _bodies(node):
            yield from _graphs(body)


def _all_tensors(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor in a graph and its subgraphs, with a name that helps to find it."""
    for part in _graphs(graph):
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


def _inline_attributes(graph: GraphProto, folder: Path | None) -> None:
    """Take in the external data of tensors that are part of nodes, so that these can be written anywhere."""
    for name, tensor in _all_tensors(graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(inlined(tensor, name, folder))


def _stored_tensors(graph: GraphProto) -> dict[str, TensorProto]:
    tensors: dict[str, TensorProto] = {}
    for tensor in graph.initializer:
        _add_tensor(tensors, tensor.name, tensor)
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD and node.output:
            constant = constant_tensor(node)
            if constant is not None:
                _add_tensor(tensors, node.output[0], constant)
    return tensors


def _add_tensor(tensors: dict[str, TensorProto], name: str, tensor: TensorProto) -> None:
    known = tensors.setdefault(name, tensor)
    if known is not tensor and known != tensor:
        raise ModelError(f"two different weights are called {name!r}, and it is not clear which is meant; rename one of them")


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


def _sorted_nodes(graph: GraphProto, stored: set[str]) -> tuple[Node, ...]:
    """Nodes in an order in which they can run, as close to the file's order as possible."""
    nodes: list[Node] = []
    given = {t.name for t in graph.initializer} | {v.name for v in graph.input}
    if len({v.name for v in graph.input}) < len(graph.input):
        raise ModelError("two graph inputs have the same name; rename one of them")
    writer: dict[str, int] = {}
    for index, proto in enumerate(graph.node):
        captured = tuple(sorted(set().union(*(_captured(b) for b in _bodies(proto))) - set(proto.input)))
        node = Node(
            index, proto.op_type, proto.domain, proto.name, tuple(proto.input), tuple(proto.output), _attributes(proto), captured
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
