"""The nodes of a backward pass as they are written: one tape for the model, one step on it for each of its nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.rules.notation import Call
from onnxprune.shapes import BoolArray, Shape, Shapes
from onnxprune.weights import Array

Name = str
"""A tensor's name."""

LAST = int(np.iinfo(np.int64).max)
"""The end of a slice that goes to the end."""

_EXPANDS = 8
"""The first opset with ``Expand``."""

_COMPUTED_SLICE = 10
"""The first opset in which ``Slice`` has operands."""

_EQUAL_FLOATS = 11
"""The first opset in which floats can be compared for equality."""

PREFIX = "grad__"
"""What the names of all new tensors begin with."""


class Unsupported(Exception):
    """A rule does not cover this call, or needs an operator that the opset does not have."""


@dataclass
class Tape:
    """Nodes in the order in which they are written, and stored tensors. ``taken``: names that the model has already."""

    opset: int
    taken: set[str]
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[Name, TensorProto] = field(default_factory=dict)
    _stored: dict[tuple[str, Shape, bytes], Name] = field(default_factory=dict, repr=False)

    def write(self, op: str, inputs: Sequence[str], attributes: dict[str, Any], outputs: int = 1) -> list[Name]:
        """Add a node and return its outputs' names.

        Raises:
            Unsupported: the opset has no such operator.
        """
        if not onnx.defs.has(op, self.opset) or onnx.defs.get_schema(op, self.opset).deprecated:
            raise Unsupported
        names = [self.unique(op) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, names[0], **attributes))
        return names

    def unique(self, hint: str) -> Name:
        """A name that nothing has yet."""
        name = f"{PREFIX}{hint}_{len(self.taken)}"
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def store(self, values: Array) -> Name:
        """The name of a tensor of some values."""
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._stored:
            self._stored[key] = name = self.unique("constant")
            self.constants[name] = numpy_helper.from_array(values, name)
        return self._stored[key]

    def copy(self, graph: GraphProto, names: Mapping[Name, Name]) -> dict[Name, Name]:
        """Add another graph's nodes and stored tensors, some of whose tensors have ``names`` here; returns all of them."""
        found = dict(names)
        for tensor in graph.initializer:
            found[tensor.name] = self.store(numpy_helper.to_array(tensor))
        for proto in graph.node:
            node = NodeProto()
            node.CopyFrom(proto)
            for name in filter(None, proto.output):
                found[name] = self.unique(proto.op_type)
            node.input[:] = [found[name] if name else "" for name in proto.input]
            node.output[:] = [found[name] if name else "" for name in proto.output]
            node.name = node.output[0]
            self.nodes.append(node)
        return found

    def needed(self, names: set[str]) -> list[NodeProto]:
        """The nodes that some tensors depend on, in order."""
        wanted, found = set(names), []
        for node in reversed(self.nodes):
            if not wanted.isdisjoint(node.output):
                wanted.update(node.input)
                found.append(node)
        return found[::-1]


@dataclass
class Step:
    """One node's part of the tape: ``op.Mul(a, b, **attributes)`` adds an operator and returns its output's name.

    ``forward``: the node itself in the model that is extended, to which outputs may be added. ``active``: of which of its
    operands the gradient is read.
    """

    tape: Tape
    call: Call
    shapes: Shapes
    forward: NodeProto
    active: Sequence[bool] = ()

    def __getattr__(self, op: str) -> Callable[..., Name]:
        if not op[:1].isupper():
            raise AttributeError(op)
        return lambda *inputs, **attributes: self.tape.write(op, inputs, attributes)[0]

    # values -----------------------------------------------------------------------------------------------------------
    @property
    def elem_type(self) -> int:
        """The element type of the node's first result.

        Raises:
            Unsupported: it is not known.
        """
        kind = self.shapes.elem_types.get(self.call.node.outputs[0], 0)
        self.require(kind != 0)
        return kind

    @property
    def lowest(self) -> float:
        """The lowest number of the type of the node's first result, or that an attribute can hold."""
        return max(float(np.finfo(dtype).min) for dtype in (helper.tensor_dtype_to_np_dtype(self.elem_type), np.float32))

    def constant(self, values: Array | float) -> Name:
        """Values of the type of the node's first result."""
        return self.stored(np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(self.elem_type)))

    def ints(self, values: Sequence[int]) -> Name:
        """A vector of integers."""
        return self.stored(np.array(values, np.int64))

    def stored(self, values: Array) -> Name:
        """Values as a tensor of the model; the same one for the same values."""
        return self.tape.store(values)

    def where(self, condition: Name) -> Name:
        """1 where a condition holds and 0 elsewhere, of the type of the node's first result."""
        return self.typed(condition)

    def scale(self, value: Name, factor: float) -> Name:
        """A tensor times a number."""
        return value if factor == 1 else self.Mul(value, self.constant(factor))

    def typed(self, value: Name) -> Name:
        """A tensor in the type of the node's first result."""
        return self.Cast(value, to=self.elem_type)

    def as_operand(self, value: Name, operand: int) -> Name:
        """A gradient, which has the type of the node's first result, in the type of an operand."""
        kind = self.shapes.elem_types.get(self.call.node.inputs[operand], 0)
        return value if kind == self.elem_type else self.Cast(value, to=kind)

    # what is known ----------------------------------------------------------------------------------------------------
    def require(self, covered: object) -> None:
        """Give up unless the call is covered.

        Raises:
            Unsupported: it is not.
        """
        if not covered:
            raise Unsupported

    def known(self, operand: int) -> Array | None:
        """The value of an operand if it is the same for all inputs of the model."""
        value, static = self.call.value(operand), self.call.static[operand] if operand < len(self.call.static) else None
        return value if static is not None and static.all() else None

    def wants(self, operand: int) -> bool:
        """Whether an operand's gradient is read: what is dear, or not always possible, need not be written otherwise."""
        return operand < len(self.active) and self.active[operand]

    @property
    def result(self) -> Shape:
        """The shape of the first result."""
        return self.call.outputs[0] or ()

    def fixed(self, operand: int) -> BoolArray:
        """Which dimensions of an operand are the same for all inputs of the model."""
        return self.shapes.fixed_dims(self.call.node.inputs[operand])

    def fixed_result(self) -> BoolArray:
        """Which dimensions of the first result are the same for all inputs of the model."""
        return self.shapes.fixed_dims(self.call.node.outputs[0])

    def keeps(self, axis: int) -> bool:
        """Whether an axis of the first operand has the same size in the first result, for all inputs of the model."""
        names = self.call.node.inputs[0], self.call.node.outputs[0]
        others = [self.shapes.fixed.get(name) for name in names] if self.shapes.fixed is not None else []
        found = [self.call.shape(0), self.result, *(other for other in others if other is not None)]
        pairs = [found[k : k + 2] for k in range(0, len(found), 2)]
        return len(found) % 2 == 0 and all(a[axis] == b[axis] for a, b in pairs)

    # operators that changed over the opsets -----------------------------------------------------------------------------
    def sum(self, value: Name, axes: Sequence[int], *, keepdims: bool = True) -> Name:
        """Sum over axes."""
        return self.reduce("ReduceSum", 13, value, axes, keepdims=keepdims)

    def mean(self, value: Name, axes: Sequence[int]) -> Name:
        """Mean over axes, which stay with size 1."""
        return self.reduce("ReduceMean", 18, value, axes)

    def reduce(self, op: str, since: int, value: Name, axes: Sequence[int], *, keepdims: bool = True) -> Name:
        """One of the operators that reduce axes, which are an operand ``since`` an opset."""
        if not axes:
            return value
        if self.tape.opset < since:
            return self.tape.write(op, [value], {"axes": list(axes), "keepdims": int(keepdims)})[0]
        return self.tape.write(op, [value, self.ints(axes)], {"keepdims": int(keepdims)})[0]

    def unsqueeze(self, value: Name, axes: Sequence[int]) -> Name:
        """Add axes of size 1."""
        if not axes:
            return value
        if self.tape.opset < 13:
            return self.Unsqueeze(value, axes=list(axes))
        return self.Unsqueeze(value, self.ints(axes))

    def slice(
        self, value: Name, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int], steps: Sequence[int] = ()
    ) -> Name:
        """A part of a tensor; by default with steps of 1."""
        parts = zip(axes, starts, ends, steps or [1] * len(axes), strict=True)
        cut = [part for part in parts if part[1:] != (0, LAST, 1)]
        if not cut:
            return value
        some, begins, stops, strides = zip(*cut, strict=True)
        if self.tape.opset < 10:
            self.require(set(strides) == {1})
            return self.Slice(value, axes=list(some), starts=list(begins), ends=list(stops))
        return self.Slice(value, *map(self.ints, (begins, stops, some)), *([self.ints(strides)] if set(strides) != {1} else []))

    def pad(self, value: Name, before: Sequence[int], after: Sequence[int], fill: float = 0.0) -> Name:
        """A tensor with more of the same value around it."""
        pads = [*before, *after]
        if not any(pads):
            return value
        if self.tape.opset < 11:
            return self.Pad(value, pads=pads, value=fill)
        return self.Pad(value, self.ints(pads), self.constant(fill))

    def turn(self, value: Name, perm: Sequence[int]) -> Name:
        """Other axes first."""
        return value if list(perm) == sorted(perm) else self.Transpose(value, perm=list(perm))

    # shapes -----------------------------------------------------------------------------------------------------------
    def like(self, value: Name, other: Name) -> Name:
        """The same elements in another tensor's shape."""
        return self.Reshape(value, self.Shape(other))

    def spread(self, value: Name, other: Name) -> Name:
        """A tensor repeated to another one's shape."""
        if self.tape.opset < _EXPANDS:
            return self.Add(value, self.Mul(other, self.constant(0)))
        return self.Expand(value, self.Shape(other))

    def zeros(self, other: Name) -> Name:
        """Nought everywhere, in another tensor's shape."""
        return self.spread(self.constant(0), other)

    def within(self, value: Name, other: Name) -> Name:
        """As much of a tensor's front as another one has."""
        self.require(self.tape.opset >= _COMPUTED_SLICE)
        return self.Slice(value, self.ints([0] * self.call.rank()), self.Shape(other))

    def enlarge(self, value: Name, factors: Sequence[int]) -> Name:
        """Each element so many times along each axis."""
        scales = np.array(factors, np.float32)
        if self.tape.opset < 9:
            return self.Upsample(value, scales=scales.tolist(), mode="nearest")
        if self.tape.opset < 11:
            op = self.Upsample if self.tape.opset < 10 else self.Resize
            return op(value, self.stored(scales), mode="nearest")
        how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        region = self.stored(np.zeros(0, np.float32)) if self.tape.opset < 13 else ""
        return self.Resize(value, region, self.stored(scales), mode="nearest", **how)

    def unbroadcast(self, value: Name, operand: int, shape: Shape | None = None, fixed: BoolArray | None = None) -> Name:
        """Sum over the axes along which an operand was repeated, so that the result has its shape, if its gradient is read.

        Args:
            shape: of ``value``; by default, like ``fixed``, the first result's.

        Raises:
            Unsupported: whether it was repeated depends on the model's inputs.
        """
        if not self.wants(operand):
            return value
        shape = self.result if shape is None else shape
        fixed = self.fixed_result() if fixed is None else fixed
        own, own_fixed = self.call.shape(operand), self.fixed(operand)
        more = len(shape) - len(own)
        other = (self.shapes.fixed or {}).get(self.call.node.inputs[operand], own)
        self.require(all(n in (k, m) for n, k, m in zip(own, other, shape[more:], strict=True)))
        repeated = [
            more + axis
            for axis, size in enumerate(own)
            if size == 1 and (shape[more + axis] != 1 or (own_fixed[axis] and not fixed[more + axis]))
        ]
        summed = self.sum(value, repeated)
        return self.sum(summed, range(more), keepdims=False) if more else summed

    # what several rules have in common --------------------------------------------------------------------------------
    def share(self, small: Name, large: Name) -> Name:
        """One part of how many elements a tensor has for each element of a smaller one."""
        return self.Div(self.where(self.Size(small)), self.where(self.Size(large)))

    def sign(self, value: Name) -> Name:
        """1, 0 or -1."""
        zero = self.constant(0)
        return self.Sub(self.where(self.Greater(value, zero)), self.where(self.Less(value, zero)))

    def at_zero(self, value: Name) -> Name:
        """1 where a tensor is nought and 0 elsewhere."""
        return self.reaches(self.Neg(self.Abs(value)), self.constant(0))

    def norm_slope(self, g: Name, y: Name, x: Name, p: float) -> tuple[Name, Name]:
        """Two factors of ``g y^(1-p) |x|^(p-1) sign(x)``, the gradient of x where ``y`` is its p-norm; 0 at the origin."""
        if p == 1:
            return g, self.sign(x)
        nonzero = self.Add(y, self.at_zero(y))
        if p == 2:
            return self.Div(g, nonzero), x
        power = self.constant(p - 1)
        return self.Div(g, self.Pow(nonzero, power)), self.Mul(self.sign(x), self.Pow(self.Abs(x), power))

    def reaches(self, x: Name, top: Name) -> Name:
        """1 where an element is as large as another one, which is never smaller, and 0 elsewhere."""
        return self.where(self.Equal(x, top) if self.tape.opset >= _EQUAL_FLOATS else self.Not(self.Less(x, top)))

    def to_largest(self, g: Name, largest: Name, x: Name, axes: Sequence[int]) -> Name:
        """Give a gradient to the largest elements along axes, in equal parts where there are several."""
        hit = self.reaches(x, largest)
        return self.Mul(self.Div(g, self.sum(hit, axes)), hit)
