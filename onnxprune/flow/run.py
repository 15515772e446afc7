"""The walk: each node in turn hands labels on."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import replace

from onnx import GraphProto, TensorProto

from onnxprune.flow.computing import compute
from onnxprune.flow.moving import Mover
from onnxprune.flow.state import Flow, Step
from onnxprune.graph import Graph
from onnxprune.labels import Labelled, Reason
from onnxprune.rules import Call, Kind, Rule, describe, find
from onnxprune.shapes import Shapes
from onnxprune.structure import Node
from onnxprune.weights import FLOATS, QUANTISED

LABELLED = FLOATS | QUANTISED | {TensorProto.INT32}
"""Element types of stored tensors that can hold weights, scales and zero points."""

_QUANTISED = re.compile("Linear|Integer|^Q")
"""Operators that read biases as 32-bit integers, which are sizes anywhere else."""


def flow(graph: Graph, shapes: Shapes, choices: Mapping[int, int], frozen: Mapping[str, Reason], *, mixing: bool = False) -> Flow:
    """Run the labels through the graph.

    Args:
        choices: which way to cut at a node (by index), where there are several; the first where nothing is said.
        frozen: reasons to keep whole, by the name of a node or tensor.
        mixing: whether axes that a node normalises or averages over may be cut.
    """
    filled: frozenset[tuple[str, int]] = frozenset()
    while True:
        state = _flow_once(Flow(graph, shapes, choices, mixing), frozen, filled)
        again = _filled_states(state) - filled
        if not again:
            return state
        filled |= again


def _flow_once(state: Flow, frozen: Mapping[str, Reason], filled: frozenset[tuple[str, int]]) -> Flow:
    """One walk. ``filled``: axes of loops' states on which removed channels are not zero, whatever they begin with."""
    _label_sources(state, frozen)
    for node in state.graph.nodes:
        if node.op == "Constant" and node.outputs[0] in state.graph.weights:
            continue
        call = _live(describe(state.graph, node, state.shapes))
        state.steps.append(_visit(state, call, find(node.op, node.domain) if not _has_body(node) else None))
        for name in (n for n in node.outputs if node.border and n in state.tensors):
            state.tensors[name] = state.tensors[name].filled({axis for state_name, axis in filled if state_name == name})
        _freeze(state, node, frozen)
    for port in state.graph.outputs:
        state.hold(port.name, Reason(state.writer(port.name), f"graph output {port.name!r} keeps its shape"))
    return state


def _filled_states(state: Flow) -> frozenset[tuple[str, int]]:
    """Axes of loops' states that begin with zeros in removed channels but do not keep them."""
    found: set[tuple[str, int]] = set()
    for node in state.graph.nodes:
        if node.border and node.op != "If" and len(node.inputs) == 2:
            first, later = (state.tensors.get(name) for name in node.inputs)
            if first is not None and later is not None:
                begun, kept = ({axis for f in t.factors if f.zero for axis in f.axes} for t in (first, later))
                found |= {(node.inputs[0], axis) for axis in begun - kept}
    return frozenset(found)


def matching(graph: Graph, pattern: str) -> list[str]:
    """Names of nodes and tensors that a shell-style pattern matches."""
    names = {n.name for n in graph.nodes} | {o for n in graph.nodes for o in n.outputs} | set(graph.weights)
    return sorted(fnmatch.filter(filter(None, names), pattern))


def _label_sources(state: Flow, frozen: Mapping[str, Reason]) -> None:
    """Fresh labels for stored tensors; held ones for graph inputs."""
    for port in state.graph.inputs:
        shape = state.shapes.get(port.name)
        if shape is not None:
            reason = Reason("", f"graph input {port.name!r} keeps its shape")
            state.tensors[port.name] = Labelled(shape, state.held_axes(shape, reason))
    for name in state.graph.weights:
        elem_type = state.graph.weights.elem_type(name)
        sizes = elem_type == TensorProto.INT32 and not any(_QUANTISED.search(n.op) for n in state.graph.consumers.get(name, ()))
        state.label_weight(name, labelled=elem_type in LABELLED and not sizes)
        if name in frozen:
            state.hold(name, frozen[name])


def _live(call: Call) -> Call:
    """Of a branch whose condition is the same for all inputs, only the one that is taken counts."""
    condition, static = call.value(2), call.static[2] if len(call.static) > 2 else None
    if not (call.node.border and call.node.op == "If") or condition is None or static is None or not static.all():
        return call
    taken = slice(0, 1) if condition.any() else slice(1, 2)
    node = replace(call.node, inputs=call.node.inputs[taken])
    return replace(call, node=node, inputs=call.inputs[taken], values=call.values[taken], static=call.static[taken])


def _visit(state: Flow, call: Call, rule: Rule | None) -> Step:
    """Label a node's outputs."""
    node = call.node
    if node.op in ("Shape", "Size") and node.standard and node.inputs:
        state.settle(call, 0)
        _unlabelled(state, call)
        return Step(call, rule)
    if not _concerns(state, call, rule):
        _unlabelled(state, call)
        return Step(call, rule)
    known = all(s is not None for n, s in zip((*node.inputs, *node.outputs), (*call.inputs, *call.outputs), strict=True) if n)
    if rule is None or not known:
        return _barrier(state, call, rule, _why_not(node, rule))
    if rule.kind is Kind.MOVEMENT and (moved := Mover(state, call, rule).move()) is not None:
        state.tensors.update(moved)
        return Step(call, rule, understood=True, moved=True)
    if rule.kind is Kind.MOVEMENT and rule.build is None:
        return _barrier(state, call, rule, f"{node.op} moves elements by amounts that are not constant")
    signature = rule.fit(call)
    computed = None if signature is None else compute(state, call, rule, signature)
    if computed is None:
        return _barrier(state, call, rule, f"this form of {node.op} is not covered")
    state.tensors.update(computed)
    return Step(call, rule, understood=True)


def _concerns(state: Flow, call: Call, rule: Rule | None) -> bool:
    """Whether labels reach the node, or it makes a tensor of channels from nothing or from a number."""
    names = (*call.node.inputs, *call.node.captured)
    if any(state.tensors[n].factors for n in names if n in state.tensors):
        return True
    made = state.shapes.elem_types.get(call.node.outputs[0]) in FLOATS if call.node.outputs else False
    return rule is not None and rule.fills and made


def _unlabelled(state: Flow, call: Call) -> None:
    for name, shape in zip(call.node.outputs, call.outputs, strict=True):
        if name and shape is not None:
            state.tensors[name] = Labelled(shape, ())


def _barrier(state: Flow, call: Call, rule: Rule | None, text: str) -> Step:
    reason = Reason(call.node.label, text)
    for name in (*call.node.inputs, *call.node.captured):
        state.hold(name, reason)
    for name, shape in zip(call.node.outputs, call.outputs, strict=True):
        if name and shape is not None:
            state.tensors[name] = Labelled(shape, state.held_axes(shape, reason))
    return Step(call, rule)


def _freeze(state: Flow, node: Node, frozen: Mapping[str, Reason]) -> None:
    """Hold what the caller named: a node's weights and results, or a tensor."""
    if node.name and node.name in frozen:
        for name in (*filter(state.is_weight, node.inputs), *node.outputs):
            state.hold(name, frozen[node.name])
    for name in filter(frozen.__contains__, node.outputs):
        state.hold(name, frozen[name])


def _has_body(node: Node) -> bool:
    return bool(node.captured) or any(isinstance(v, GraphProto) for v in node.attributes.values())


def _why_not(node: Node, rule: Rule | None) -> str:
    if rule is not None:
        return f"the shape of an operand or result of {node.op} is not known"
    if _has_body(node):
        return f"{node.op} has subgraphs, which are not looked into"
    if node.domain == "com.microsoft.nchwc":
        return f"{node.op} has its weights laid out in blocks for one kind of processor; prune first, optimise afterwards"
    return f"no rule for operator {node.op if node.standard else f'{node.domain}.{node.op}'}"
