"""Operators that ONNX defines by others: what they are made of is written out, and gone back through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import FunctionProto, ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from onnxprune.errors import GradientError, ModelError
from onnxprune.gradient.backward import Extended, declared
from onnxprune.gradient.registry import Gradients, vjp
from onnxprune.gradient.tape import PREFIX, Name, Step, Unsupported
from onnxprune.graph import load
from onnxprune.shapes import Shape, Shapes, infer
from onnxprune.weights import FLOATS

_DOMAIN = "definition"


@vjp("Attention", "RotaryEmbedding", several=True)
def by_definition(op: Step, gs: Sequence[Name | None], ys: Sequence[Name], *xs: Name) -> Gradients:
    """The gradient of a model of the operator's definition alone, whose nodes are copied to the tape.

    The definition is computed again, as its inner tensors are not known from outside.
    """
    ports = [f"in{k}" if x else "" for k, x in enumerate(xs)]
    try:
        graph = load(_model(op, op.shapes.shapes))
        extended = Extended(graph, _inner(op, infer(graph)))
        seeds = {f"out{k}": f"{PREFIX}seed{k}" for k, g in enumerate(gs) if g is not None}
        wanted = [k for k in range(len(xs)) if op.wants(k)]
        found = extended.gradients(seeds, {ports[k] for k in wanted})
    except (GradientError, ModelError) as error:
        raise Unsupported from error
    names = {k: f"{PREFIX}in{k}" for k in wanted if found.get(ports[k])}
    for k, name in names.items():
        extended.name(found[ports[k]], name)
    finished = extended.finish([declared(seed) for seed in seeds.values()], [declared(name) for name in names.values()])
    outer = {port: x for port, x in zip(ports, xs, strict=True) if port}
    outer |= {f"{PREFIX}seed{k}": g for k, g in enumerate(gs) if g is not None}
    copied = op.tape.copy(finished.graph, outer)
    return [copied[names[k]] if k in names else op.zeros(x) if op.wants(k) else None for k, x in enumerate(xs)]


def _inner(op: Step, first: Shapes) -> Shapes:
    """What is known of the inner tensors: their sizes at both probes of the outer ones, and which values these don't change."""
    if op.shapes.fixed is None:
        return replace(first, dynamic=op.shapes.dynamic)
    second = infer(load(_model(op, op.shapes.fixed)))
    static = {}
    for name, value in first.values.items():
        other = second.value(name)
        same = other is not None and other.shape == value.shape
        static[name] = value == other if same else np.zeros(value.shape, np.bool_)
    return replace(first, fixed=second.shapes, dynamic=op.shapes.dynamic, static=static)


def _model(op: Step, sizes: Mapping[str, Shape]) -> ModelProto:
    """A model of one call of a function, which is the operator's definition for these types, at some sizes of all tensors."""
    node, shapes = op.call.node, op.shapes
    op.require(all(name in sizes for name in node.inputs if name))
    inputs, stored = [], []
    for k, name in enumerate(node.inputs):
        value = op.known(k)
        if value is not None and shapes.elem_types[name] not in FLOATS:
            stored.append(numpy_helper.from_array(value, f"in{k}"))
        elif name:
            inputs.append(declared(f"in{k}", shapes.elem_types[name], sizes[name]))
    call = NodeProto(op_type=node.op, domain=_DOMAIN)
    call.input.extend(f"in{k}" if name else "" for k, name in enumerate(node.inputs))
    call.output.extend(f"out{k}" if name else "" for k, name in enumerate(node.outputs))
    call.attribute.extend(op.forward.attribute)
    function = _definition(op, call, inputs)
    outputs = [ValueInfoProto(name=name) for name in call.output if name]
    opset = [helper.make_opsetid("", op.tape.opset), helper.make_opsetid(_DOMAIN, 1)]
    graph = helper.make_graph([call], "definition", inputs, outputs, stored)
    return helper.make_model(graph, functions=[function], opset_imports=opset, ir_version=10)


def _definition(op: Step, call: NodeProto, inputs: Sequence[ValueInfoProto]) -> FunctionProto:
    """The function, in the opset that it was written for, which is the latest one up to the model's.

    Raises:
        Unsupported: there is none.
    """
    op.require(onnx.defs.has(call.op_type, op.tape.opset))
    schema: Any = onnx.defs.get_schema(call.op_type, op.tape.opset)  # onnx's stubs lack functions
    op.require(schema.has_context_dependent_function)
    node, types = NodeProto(), {port.name: port.type for port in inputs}
    node.CopyFrom(call)
    node.domain = ""
    written = schema.get_context_dependent_function(
        node.SerializeToString(), [types[name].SerializeToString() if name in types else b"" for name in node.input]
    )
    function = FunctionProto()
    function.ParseFromString(written)
    function.domain, function.name = _DOMAIN, call.op_type
    return function
