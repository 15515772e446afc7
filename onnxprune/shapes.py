"""Concrete shapes, and the values of shape arithmetic, for every tensor of a graph.

Dynamic dimensions get probe sizes. Small values that depend on nothing but constants and shapes (``Shape -> Gather ->
Concat -> Reshape`` chains) are computed along; each element knows whether it is *static*, the same for all inputs of the
model, or follows a dynamic dimension. Where static inference gives up, a run in onnxruntime answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TypeProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from onnxprune.assembly import alone
from onnxprune.errors import ModelError
from onnxprune.graph import Graph
from onnxprune.runtime import PROBE_SIZES, Session, concrete, random_feeds, tapped
from onnxprune.structure import Node
from onnxprune.weights import Array

Shape = tuple[int, ...]
_Seen = Mapping[str, tuple[Shape, np.dtype[Any]]]
BoolArray = npt.NDArray[np.bool_]

VALUE_LIMIT = 4096
"""Values of at most this many elements are followed; shape arithmetic has a handful."""

ELEMENT_LIMIT = 1 << 31
"""A tensor declared larger than this is refused: no device this is meant for could hold it."""

_MOVING = frozenset(["Concat", "Gather", "Unsqueeze", "Squeeze", "Slice", "Reshape", "Identity", "Cast", "Split", "Transpose"])
_RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"})


class Executor:
    """Runs single nodes of a graph on arrays, with ONNX's reference evaluator."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._opset = [helper.make_opsetid(domain, version) for domain, version in graph.opset.items()]
        self._cache: dict[tuple[int, str, tuple[bool, ...]], ReferenceEvaluator] = {}

    def __call__(
        self, node: Node, inputs: Sequence[Array | None], attributes: Mapping[str, Any] | None = None, op: str = ""
    ) -> list[Any]:
        """Results in the order of the node's (named) outputs, for arrays in the order of its inputs.

        ``attributes`` replace the node's own for this run (None removes one), ``op`` its operator by another one of
        ONNX's. Raises whatever the evaluator raises when it can't run the node on these arrays.
        """
        given = tuple(array is not None for array in inputs)
        key = (node.index, op, given)
        evaluator = None if attributes else self._cache.get(key)
        if evaluator is None:
            proto = self._graph.protos[node.index]
            evaluator = ReferenceEvaluator(alone(proto, given, self._opset, attributes or {}, op))
            if not attributes:
                self._cache[key] = evaluator
        feeds = {f"in{k}": array for k, array in enumerate(inputs) if array is not None}
        with np.errstate(all="ignore"):
            return list(evaluator.run(None, feeds))


@dataclass
class Shapes:
    """What is known of every tensor by name.

    ``static`` has the shape of ``values``: which elements are the same for all inputs of the model. ``fixed``: shapes at
    a second probe, to compare with (None: not known); ``dynamic``: whether the model has dynamic dimensions at all.
    """

    inputs: dict[str, Shape]
    fixed: Mapping[str, Shape] | None = None
    dynamic: bool = True
    shapes: dict[str, Shape] = field(default_factory=dict)
    elem_types: dict[str, int] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    static: dict[str, BoolArray] = field(default_factory=dict)

    def get(self, name: str) -> Shape | None:
        """The concrete shape, or None where it is not known."""
        return self.shapes.get(name)

    def numbers(self, name: str) -> float:
        """How many numbers of a tensor come with each sample, by the first axis of the inputs."""
        return math.prod(self.shapes.get(name, (0,))) / max((shape[0] for shape in self.inputs.values() if shape), default=1)

    def value(self, name: str) -> Array | None:
        """The value, or None where it is not known or too large to be followed."""
        return self.values.get(name)

    def fixed_dims(self, name: str) -> BoolArray:
        """Which dimensions of a tensor are the same for all inputs of the model."""
        shape = self.shapes[name]
        other = self.fixed.get(name) if self.fixed is not None else None
        if other is None or len(other) != len(shape):
            return np.full(len(shape), not self.dynamic)
        return np.array([a == b for a, b in zip(shape, other, strict=True)], np.bool_)

    def keeps_extent(self, name: str, shape: Shape) -> bool:
        """Whether a tensor of that shape is known to have it for all inputs of the model."""
        return not self.dynamic or (self.fixed is not None and self.fixed.get(name) == shape)

    def set_value(self, name: str, value: Array, static: BoolArray | bool) -> None:
        """Record a value together with its shape and type."""
        self.values[name] = value
        self.static[name] = np.broadcast_to(np.asarray(static), value.shape)
        self.shapes[name] = value.shape
        self.elem_types.setdefault(name, helper.np_dtype_to_tensor_dtype(value.dtype))


def infer(graph: Graph) -> Shapes:
    """Shapes and values of every tensor, at the first probe size that fits the model.

    A dimension is fixed if it is the same at a second probe. A model that runs at no probe size (it wants particular
    ones) keeps some shapes unknown, which makes barriers.

    Raises:
        ModelError: a tensor is declared absurdly large, or onnxruntime can't load the model.
    """
    second = _probe(graph, 2, PROBE_SIZES[0] + 32) if _dynamic(graph) else None
    first = _probe(graph, 1, PROBE_SIZES[0], fixed=second.shapes if second is not None and second.complete else None)
    if first.complete and (second is None or second.complete):
        return first.shapes
    return _measured(graph, first, second)


@dataclass(frozen=True)
class _Probe:
    shapes: Shapes
    complete: bool


def _probe(graph: Graph, batch: int, size: int, *, fixed: Shapes | None = None, seen: _Seen | None = None) -> _Probe:
    shapes = _walk(graph, concrete(graph.inputs, batch=batch, size=size), seen or {}, fixed)
    names = [n for node in graph.nodes for n in node.outputs if n]
    known = all(n in shapes.shapes and (0 not in shapes.shapes[n] or shapes.shapes[n] == (0,)) for n in names)
    return _Probe(shapes, known and all(p.shape is not None for p in graph.inputs))


def _measured(graph: Graph, first: _Probe, second: _Probe | None) -> Shapes:
    """What static inference does not tell, onnxruntime does, in a run at one or two probe sizes."""
    names = [n for node in graph.proto.graph.node for n in node.output]
    session = Session(tapped(graph.assemble(), names).ready(), optimise=False)
    for size in PROBE_SIZES if second is not None else PROBE_SIZES[:1]:
        seen = _run(graph, session, 1, size)
        if seen is None:
            continue
        again = _run(graph, session, 2, size + 32) if second is not None else None
        fixed = None if again is None else _probe(graph, 2, size + 32, seen=again).shapes
        return _probe(graph, 1, size, fixed=fixed, seen=seen).shapes
    return first.shapes


def _run(graph: Graph, session: Session, batch: int, size: int) -> _Seen | None:
    shapes = concrete(graph.inputs, batch=batch, size=size)
    try:
        results = session.run(random_feeds(graph.inputs, shapes, np.random.default_rng(0)))
    except ModelError:
        return None
    return {n: (r.shape, r.dtype) for n, r in zip(session.outputs, results, strict=True) if isinstance(r, np.ndarray)}


def follow(graph: Graph, node: Node, shapes: Shapes, execute: Executor) -> bool:
    """Compute the node's outputs as values if they follow from known values and shapes; say whether they did."""
    if node.op in ("Shape", "Size") and node.standard and node.inputs:
        shape = shapes.get(node.inputs[0])
        if shape is None:
            return False
        dims = np.array(shape, np.int64)
        fixed = shapes.fixed_dims(node.inputs[0])
        if node.op == "Size":
            shapes.set_value(node.outputs[0], np.array(math.prod(shape), np.int64), bool(fixed.all()))
        else:
            shapes.set_value(node.outputs[0], dims[_span(node, len(shape))], fixed[_span(node, len(shape))])
        return True
    names = [n for n in node.inputs if n]
    if not node.standard or node.border or node.captured or node.op in _RANDOM:
        return False
    if not names or any(n not in shapes.values for n in names):
        return False
    if any(isinstance(v, onnx.GraphProto) for v in node.attributes.values()):
        return False
    if node.op in ("ConstantOfShape", "Expand", "Tile", "Range") and _grows(node, shapes):
        return False
    try:
        results = execute(node, [shapes.value(n) if n else None for n in node.inputs])
    except Exception:  # the evaluator's errors have no common base; whatever it can't do stays unknown
        return False
    if not all(isinstance(r, np.ndarray | np.generic) and np.size(r) <= VALUE_LIMIT for r in results):
        return False
    masks = _static_of(node, shapes, execute, results)
    for name, value, mask in zip(filter(None, node.outputs), results, masks, strict=True):
        shapes.set_value(name, np.asarray(value), mask)
    return True


@dataclass(frozen=True)
class Origin:
    """Where numbers come from: the ``nodes`` that compute them, in the graph's order; stored tensors (``constants``); and
    the tensors whose shapes they follow (``measured``)."""

    nodes: list[Node]
    constants: list[str]
    measured: list[str]


def origin(graph: Graph, shapes: Shapes, names: Iterable[str]) -> Origin:
    """Trace numbers back as far as their values are known."""
    computed: set[int] = set()
    constants: list[str] = []
    measured: list[str] = []
    waiting = list(names)
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        writer = graph.producers.get(name)
        if name in graph.weights:
            constants.append(name)
        elif writer is None or shapes.value(name) is None:
            continue
        elif writer.op in ("Shape", "Size"):
            measured.append(writer.inputs[0])
        else:
            computed.add(writer.index)
            waiting += [n for n in writer.inputs if n and n not in seen]
            seen.update(writer.inputs)
    return Origin([n for n in graph.nodes if n.index in computed], constants, measured)


def _grows(node: Node, shapes: Shapes) -> bool:
    value = shapes.values[node.inputs[-1]]
    if node.op == "Range":
        return bool(np.abs(value).max(initial=0) > VALUE_LIMIT)
    return math.prod(int(v) for v in np.ravel(value)) * max(1, shapes.values[node.inputs[0]].size) > VALUE_LIMIT**2


def _static_of(node: Node, shapes: Shapes, execute: Executor, results: Sequence[Array]) -> list[BoolArray]:
    """Which elements of the results are static: moved along by movement operators, combined by arithmetic."""
    masks = [shapes.static[n] for n in node.inputs if n]
    if all(m.all() for m in masks):
        return [np.ones(np.shape(v), np.bool_) for v in results]
    if node.op in _MOVING:
        moves = node.inputs if node.op == "Concat" else node.inputs[:1]
        feeds = [None if not n else shapes.static[n].astype(np.int64) if n in moves else shapes.value(n) for n in node.inputs]
        chosen = all(shapes.static[n].all() for n in node.inputs if n and n not in moves)
        try:
            moved = [np.asarray(v).astype(np.bool_) for v in execute(node, feeds)]
            return moved if chosen else [m & shapes.keeps_extent(n, m.shape) for n, m in zip(node.outputs, moved, strict=True)]
        except Exception:  # see follow()
            pass
    elif all(m.ndim == 0 or m.shape == np.shape(r) for m in masks for r in results):
        return [np.logical_and.reduce([np.broadcast_to(m, np.shape(r)) for m in masks]) for r in results]
    return [np.zeros(np.shape(v), np.bool_) for v in results]


def _span(node: Node, rank: int) -> slice:
    return slice(node.attributes.get("start", 0), node.attributes.get("end", rank))


def _dynamic(graph: Graph) -> bool:
    return any(not isinstance(d, int) for p in graph.inputs for d in (p.shape or (None,)))


def _walk(graph: Graph, inputs: dict[str, Shape], seen: _Seen, fixed: Shapes | None) -> Shapes:
    """Shapes of all tensors in order. A state whose shape changes from one repetition to the next has none."""
    varying: set[str] = set()
    while True:
        shapes = _walk_once(graph, inputs, seen, fixed, varying)
        states = [n.inputs for n in graph.nodes if n.border and n.op != "If" and len(n.inputs) == 2]
        changed = {s for s, later in states if s in shapes.shapes and shapes.get(s) != shapes.get(later)}
        if not changed:
            return shapes
        varying |= changed


def _walk_once(graph: Graph, inputs: dict[str, Shape], seen: _Seen, fixed: Shapes | None, varying: set[str]) -> Shapes:
    shapes = Shapes(inputs=inputs, fixed=None if fixed is None else fixed.shapes, dynamic=_dynamic(graph))
    execute = Executor(graph)
    for port in graph.inputs:
        if port.shape is not None:
            shapes.shapes[port.name] = inputs[port.name]
        shapes.elem_types[port.name] = port.elem_type
    for name in graph.weights:
        shapes.shapes[name] = graph.weights.shape(name)
        shapes.elem_types[name] = graph.weights.elem_type(name)
        if graph.weights.count(name) <= VALUE_LIMIT:
            shapes.set_value(name, graph.weights.read(name), True)
    opset = [helper.make_opsetid(domain, version) for domain, version in graph.opset.items()]
    for node in graph.nodes:
        if not node.outputs or (node.op == "Constant" and node.outputs[0] in graph.weights):
            continue
        if node.border:
            _cross(node, shapes, seen, varying)
        elif not follow(graph, node, shapes, execute):
            _infer_node(graph, node, shapes, opset, seen)
    return shapes


def _cross(node: Node, shapes: Shapes, seen: _Seen, varying: set[str]) -> None:
    """The shape on the other side of a subgraph's border."""
    sources = [n for n in node.inputs[:2] if n]
    (output,) = node.outputs
    if sources:
        shapes.elem_types[output] = shapes.elem_types.get(sources[0], 0)
    known = [shapes.get(name) for name in sources]
    condition = shapes.value(node.inputs[2]) if len(node.inputs) > 2 else None
    if condition is not None and condition.size == 1:  # only one branch counts
        known = known[:1] if condition.any() else known[1:]
    shape = known[0] if known and known.count(known[0]) == len(known) else None
    axis = node.attributes.get("removes", node.attributes.get("adds"))
    if shape is not None and axis is not None:
        outer = len(shape) + ("adds" in node.attributes)
        shape = shape if -outer <= axis < outer else None
    if shape is not None and "removes" in node.attributes:
        shape = tuple(np.delete(shape, node.attributes["removes"]).tolist())
    if shape is not None and "adds" in node.attributes:
        source, along = node.attributes["length"] or ("", 0)
        scanned = shapes.get(source)
        length = scanned[along] if scanned is not None and -len(scanned) <= along < len(scanned) else None
        at = range(len(shape) + 1)[node.attributes["adds"]]
        shape = None if length is None else (*shape[:at], length, *shape[at:])
    if shape is None and output in seen:
        shape = seen[output][0]
    if shape is not None and output not in varying:
        shapes.shapes[output] = shape


def _infer_node(
    graph: Graph,
    node: Node,
    shapes: Shapes,
    opset: Sequence[onnx.OperatorSetIdProto],
    seen: _Seen,
) -> None:
    inferred: Mapping[str, TypeProto] = {}
    version = graph.opset.get("" if node.standard else node.domain)
    if version is not None and onnx.defs.has(node.op, version, node.domain):
        proto = graph.protos[node.index]
        named = [(written, n) for written, n in zip(proto.input, node.inputs, strict=True) if n]
        types = {written: _type(shapes, n) for written, n in named}
        data = {written: numpy_helper.from_array(shapes.values[n]) for written, n in named if n in shapes.values}
        schema = onnx.defs.get_schema(node.op, version, node.domain)
        try:
            inferred = shape_inference.infer_node_outputs(schema, proto, types, data, None, list(opset), graph.proto.ir_version)
        except (shape_inference.InferenceError, RuntimeError, ValueError, onnx.checker.ValidationError):
            inferred = {}
    for name in filter(None, node.outputs):
        tensor = inferred[name].tensor_type if name in inferred and inferred[name].HasField("tensor_type") else None
        if tensor is not None:
            shapes.elem_types[name] = tensor.elem_type
        if tensor is not None and tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes.shapes[name] = tuple(d.dim_value for d in tensor.shape.dim)
        elif name in seen:
            shapes.shapes[name], dtype = seen[name]
            shapes.elem_types[name] = helper.np_dtype_to_tensor_dtype(dtype)
        size = math.prod(shapes.shapes.get(name, ()))
        if size > ELEMENT_LIMIT or min(shapes.shapes.get(name, (1,)), default=1) < 0:
            raise ModelError(
                f"node {node.label!r} declares a tensor {name!r} of shape {list(shapes.shapes[name])}, which can't be meant; "
                "the model is damaged or hostile"
            )


def _type(shapes: Shapes, name: str) -> TypeProto:
    shape = shapes.get(name)
    return helper.make_tensor_type_proto(shapes.elem_types.get(name, 0), shape)
