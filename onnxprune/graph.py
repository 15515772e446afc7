"""Graph: a loaded model, its structure apart from its weights; the only module that knows onnx-graphsurgeon.

The structure (nodes, names, ports) is kept without weight data, so that it is small however large the model is. Edits go
through :class:`Editor`, which lets graphsurgeon rewire a private copy and puts back what its round trip loses: metadata,
doc strings, opset and model versions, quantization annotations, initializers listed as inputs, attribute kinds that it
does not know.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune.assembly import all_names, arranged, fill_subgraphs, keep_known, read_names, redeclare
from onnxprune.errors import ModelError
from onnxprune.files import Source, check_text, parse
from onnxprune.intake import (
    PRODUCTS,
    check_attributes,
    distinct_names,
    inline_attributes,
    opset_versions,
    stored_tensors,
    without_functions,
    without_weights,
)
from onnxprune.lazy import LazyModel, LazyTensor
from onnxprune.structure import (
    Node,
    Port,
    Use,
    all_tensors,
    bodies,
    describe_port,
    is_open,
    open_graphs,
    open_nodes,
    part_vectors,
    sorted_nodes,
    weights_inside,
)
from onnxprune.weights import ELEMENT_LIMIT, Array, Weights, check

G_LOGGER.severity = G_LOGGER.ERROR


@dataclass(frozen=True)
class Graph:
    """A model: ``proto`` without the weights' data, ``weights`` beside it, ``nodes`` in an order in which they can run.

    Nodes and weights in the subgraphs of ``If``, ``Loop`` and ``Scan`` are among them; all names are distinct. A vector
    that several nodes read has a name for each of them: ``uses`` tells which stored tensor that is. ``added``: stored
    tensors that the file does not have.
    """

    proto: ModelProto
    weights: Weights
    nodes: tuple[Node, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opset: Mapping[str, int]
    uses: Mapping[str, Use]
    source: Source = field(repr=False)
    added: frozenset[str] = frozenset()

    @cached_property
    def protos(self) -> tuple[NodeProto, ...]:
        """The nodes' protos by ``Node.index``; border nodes have none."""
        return tuple(open_nodes(self.proto.graph))

    @cached_property
    def producers(self) -> dict[str, Node]:
        """Which node writes a tensor."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    @cached_property
    def consumers(self) -> dict[str, list[Node]]:
        """Which nodes read a tensor, subgraphs' captured names included."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys((*node.inputs, *node.captured)):
                if name:
                    found.setdefault(name, []).append(node)
        return found

    def only_reader(self, name: str) -> Node | None:
        """The one node that reads a tensor, at one input; None where it is captured or an output, too."""
        readers = self.consumers.get(name, [])
        once = len(readers) == 1 and readers[0].inputs.count(name) == 1 and name not in readers[0].captured
        return readers[0] if once and all(port.name != name for port in self.outputs) else None

    @property
    def inner_tensors(self) -> Iterator[tuple[Node, str, TensorProto]]:
        """The tensors stored inside subgraphs that are not looked into: the node, their name, themselves."""
        for node in self.nodes:
            for body in bodies(self.protos[node.index]) if not node.border and node.outputs else ():
                yield from ((node, name, tensor) for name, tensor in weights_inside(body))

    def is_copy(self, name: str) -> bool:
        """Whether a stored tensor's name is only another one for a tensor of the file."""
        return name in self.uses and self.uses[name].tensor != name

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the file, or of the serialised proto where the model was given as one (over 2 GB: of its parts)."""
        if isinstance(self.source, ModelProto):
            try:
                return hashlib.sha256(self.source.SerializeToString(deterministic=True)).hexdigest()
            except EncodeError:
                digest = hashlib.sha256(self.proto.SerializeToString(deterministic=True))
                for tensor in self.source.graph.initializer:
                    digest.update(tensor.SerializeToString(deterministic=True))
                return digest.hexdigest()
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

    def lazy(self, name: str) -> LazyTensor:
        """A stored tensor as it is, from which changed ones can be made."""
        return LazyTensor(self.weights[name], self.weights.folder)

    def assemble(self, weights: Mapping[str, LazyTensor] | None = None) -> LazyModel:
        """The whole model again, with some stored tensors replaced by others of the same name."""
        model = ModelProto()
        model.CopyFrom(self.proto)
        for node in open_nodes(model.graph):
            _set_constant(node, weights or {})
        tensors = {name: (weights or {}).get(name) or self.lazy(name) for name in self.weights}
        fill_subgraphs(model.graph, tensors)
        return LazyModel(model, {t.name: tensors[t.name] for t in self.proto.graph.initializer})


def load(source: Source) -> Graph:
    """Read a model from a path or proto and check that it can be worked on. The proto is not changed.

    Local functions are inlined. Nodes need not be sorted. External data stay where they are.

    Raises:
        ModelError: not a model, no graph, cyclic, dangling, duplicated names, damaged or non-finite weights.
    """
    where = "model" if isinstance(source, ModelProto) else repr(str(source))
    try:
        if not isinstance(source, ModelProto):
            return _graph(*parse(Path(source)), source)
        check_text(source, drop=False)
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
        model = without_functions(model)
    check_attributes(model.graph)
    opset = opset_versions(model)
    filters = {name for node in open_nodes(model.graph) if node.op_type in PRODUCTS for name in node.input[1:]}
    for name, tensor in all_tensors(model.graph):
        check(tensor, name, folder, mask=name not in filters)
    model = distinct_names(model)
    tensors = stored_tensors(model.graph)
    inputs = tuple(describe_port(v) for v in model.graph.input if v.name not in tensors)
    for port in inputs:
        size = math.prod(d for d in port.shape or () if isinstance(d, int))
        if size > ELEMENT_LIMIT:
            raise ModelError(f"graph input {port.name!r} is declared absurdly large, {list(port.shape or ())}; export it again")
    proto = without_weights(model)
    inline_attributes(proto.graph, folder)
    nodes = sorted_nodes(proto.graph, set(tensors))
    elsewhere = {v.name for v in model.graph.output} | {name for node in nodes for name in node.captured}
    nodes, uses = part_vectors(nodes, tensors, elsewhere)
    return Graph(
        proto=proto,
        weights=Weights(tensors | {name: tensors[use.tensor] for name, use in uses.items()}, folder),
        nodes=nodes,
        inputs=inputs,
        outputs=tuple(describe_port(v) for v in model.graph.output),
        opset=opset,
        uses=uses,
        source=source,
    )


class Editor:
    """Rewires a private copy of a graph and exports it as a complete model.

    Tensors are referred to by name. Every edit leaves the names of what it does not touch alone.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        bare = ModelProto(ir_version=graph.proto.ir_version, opset_import=graph.proto.opset_import)
        bare.graph.CopyFrom(graph.proto.graph)
        bare.graph.name = bare.graph.name or "graph"
        place = {node.index: at for at, node in enumerate(graph.nodes)}
        order = arranged(bare.graph, count(), place)
        for part in open_graphs(bare.graph):
            for field_name in ("initializer", "sparse_initializer", "value_info", "quantization_annotation"):
                part.ClearField(field_name)
            for value in (*part.input, *part.output):
                value.ClearField("type")
        by_index = {node.index: node for node in graph.nodes if not node.border}
        for index, proto in zip(order, open_nodes(bare.graph), strict=True):
            if not is_open(proto):  # which keeps its inputs, whatever Node says
                proto.input[:] = by_index[index].inputs
        self._gs = gs.import_onnx(bare)
        copies = list(_copies(self._gs, open_nodes(bare.graph)))
        self._nodes = {index: copy for index, (copy, _) in zip(order, copies, strict=True)}
        self._owners = {id(copy): part for copy, part in copies}
        self._originals = {id(copy): graph.protos[index] for index, copy in self._nodes.items()}
        self._tensors: dict[str, gs.Tensor] = {}
        for part in {id(part): part for part in (self._gs, *self._owners.values())}.values():
            self._tensors.update(part.tensors())
        self._edited: set[int] = set()
        self._new: dict[str, TensorProto] = {}
        self._names = set(self._tensors) | set(graph.weights) | all_names(graph.proto.graph)

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

    def is_inside(self, node: Node) -> bool:
        """Whether a node is in a subgraph."""
        return self._owners[id(self._nodes[node.index])] is not self._gs

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

    def finish(self, weights: Mapping[str, LazyTensor], shapes: Mapping[str, Sequence[int | None]]) -> LazyModel:
        """Drop what nothing uses any more and export the model.

        Args:
            weights: tensors that replace stored ones of the same name; the others are copied as they are.
            shapes: new sizes of tensors whose declared shape changed; None leaves that dimension as it was declared.
        """
        self._gs.cleanup(recurse_functions=False)
        model = ModelProto()
        model.CopyFrom(self._graph.proto)
        graph = model.graph
        for name, use in self._graph.uses.items():
            if self._graph.is_copy(name) and _same(weights.get(name), weights.get(use.tensor)):
                self._tensors[name].name = use.tensor
        self._export_nodes(self._gs, graph, weights)
        used = read_names(graph)
        names, copies = [t.name for t in graph.initializer if t.name in used], sorted(filter(self._graph.is_copy, used))
        tensors = {name: weights.get(name) or self._graph.lazy(name) for name in self._graph.weights if name in used}
        for part in open_graphs(graph):
            kept = [tensors[t.name].header(t.name) for t in part.initializer if t.name in used]
            del part.initializer[:]
            part.initializer.extend(kept)
        fill_subgraphs(graph, tensors)
        graph.initializer.extend(t for name, t in self._new.items() if name in used)
        graph.initializer.extend(tensors[name].header(name) for name in copies)
        keep_known(graph, used, dropped={t.name for t in self._graph.proto.graph.initializer} - used)
        for part in open_graphs(graph):
            for value in (*part.input, *part.output, *part.value_info):
                if value.name in shapes:
                    redeclare(value, shapes[value.name])
        return LazyModel(model, {name: tensors[name] for name in (*names, *copies)})

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
        part = self._owners[id(self._nodes[before.index])]
        part.nodes.insert(part.nodes.index(self._nodes[before.index]), new)

    def _export_nodes(self, part: gs.Graph, graph: GraphProto, weights: Mapping[str, LazyTensor]) -> None:
        """Replace a graph's nodes by those of its copy, subgraphs included."""
        del graph.node[:]
        for copy in part.nodes:
            node = graph.node.add()
            node.CopyFrom(self._export(copy, weights))
            for a in node.attribute if is_open(node) else ():
                if a.type == AttributeProto.GRAPH:
                    self._export_nodes(copy.attrs[a.name], a.g, weights)

    def _export(self, node: gs.Node, weights: Mapping[str, LazyTensor]) -> NodeProto:
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


def _copies(part: gs.Graph, protos: Iterator[NodeProto]) -> Iterator[tuple[gs.Node, gs.Graph]]:
    """graphsurgeon's nodes in the order of the protos, each with the graph that it is in."""
    for copy in list(part.nodes):
        proto = next(protos)
        yield copy, part
        for a in proto.attribute if is_open(proto) else ():
            if a.type == AttributeProto.GRAPH:
                yield from _copies(copy.attrs[a.name], protos)


def _set_constant(node: NodeProto, weights: Mapping[str, LazyTensor]) -> None:
    if node.op_type == "Constant" and node.output[0] in weights:
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("value", weights[node.output[0]].proto()))


def _same(a: LazyTensor | None, b: LazyTensor | None) -> bool:
    """Whether what became of two tensors that were equal is still equal."""
    return a is b or (a is not None and b is not None and a.proto().raw_data == b.proto().raw_data)
