"""Movement operators: run the node on the labels, and see where each arrives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import numpy_helper

from onnxprune.flow.state import Flow, Reroute, Step
from onnxprune.labels import NOWHERE, Factor, Fill, IntArray, Labelled, Reason, arrival, compare_orders, merge, rest_of
from onnxprune.rules import Call, Kind, Rule, find
from onnxprune.shapes import Executor, Shape
from onnxprune.structure import Node
from onnxprune.weights import Array

MOVE_LIMIT = 1 << 27
"""Elements of the largest tensor on which labels are moved (1 GiB of labels)."""


def one_gather(
    result: Labelled, sources: Mapping[str, Labelled], is_held: Callable[[IntArray], bool], between: tuple[str, ...] = ()
) -> Reroute | None:
    """How ``result`` follows from its sources by picking along one axis, or None if it does not."""
    tensors = list(sources.values())
    if any(len(t.shape) != len(result.shape) for t in tensors) or not tensors:
        return None
    loose = [a for a in range(len(result.shape)) if any(not is_held(f.labels) for f in result.axis(a))]
    moving = [a for a in loose if not compare_orders(result.axis(a), tensors[0].axis(a))] or loose[:1]
    if len(moving) != 1 or not all(len(t.axis(moving[0])) == 1 for t in (result, *tensors)):
        return None
    axis = moving[0]
    for other in range(len(result.shape)):
        sizes = {t.shape[other] for t in (result, *tensors)}
        if other != axis and (len(sizes) > 1 or not compare_orders(result.axis(other), tensors[0].axis(other))):
            return None
    pool = np.concatenate([t.axis(axis)[0].labels for t in tensors])
    wanted = result.axis(axis)[0].labels
    if len(np.unique(pool)) < len(pool) or not np.isin(wanted, pool).all():
        return None
    order = np.argsort(pool, kind="stable")
    return Reroute(tuple(sources), axis, order[np.searchsorted(pool, wanted, sorter=order)], between)


class Mover:
    """Runs one movement node on labels."""

    def __init__(self, state: Flow, call: Call, rule: Rule) -> None:
        self.state, self.space = state, state.space
        self.call, self.rule = call, rule
        self.data = rule.carries(call.node)
        self.fill = fill_value(call)  # None where the operator makes nothing of its own

    def move(self) -> dict[str, Labelled] | None:
        """Labels of the outputs by name, or None if the node can't be run on labels."""
        call, node = self.call, self.call.node
        operands = stand_ins(node.op, self.data, [call.value(k) for k in range(len(node.inputs))], call.inputs)
        if any(name and operand is None for name, operand in zip(node.inputs, operands, strict=True)):
            return None
        if max((math.prod(s or ()) for s in (*call.inputs, *call.outputs)), default=0) > MOVE_LIMIT:
            return None
        if node.op == "Pad" and call.version < 11 and self.fill:
            return None
        tensors = {k: self.state.operand(call, k) for k in self.data if node.input(k)}
        for k, name in enumerate(node.inputs):
            if name and k not in self.data:
                self.state.hold(name, Reason(node.label, f"an option of {node.op}"))
        if self.rule.data is None:
            tensors = self._alike(tensors)
        moved = self._carry(operands, tensors)
        if moved is None or not any(self.state.loose_split(t) for t in tensors.values()) or self._rerouted(moved):
            return moved
        return self._carry(operands, {k: self.state.settle(call, k) for k in tensors})

    def _alike(self, tensors: Mapping[int, Labelled]) -> dict[int, Labelled]:
        """Where tensors are joined, an axis that one of them is cut along cuts the others too."""
        joined = self.call.axis()
        loose = [f for t in tensors.values() for f in t.factors if not self.space.is_held(f.labels)]
        plain = {a for f in loose if len(f.axes) == 1 for a in f.axes} - {joined}
        alike = dict(tensors)
        for k, tensor in tensors.items():
            for factor in self.state.loose_split(tensor):
                shared = [a for a in factor.axes if a in plain]
                if shared:
                    alike[k] = self.state.cut_along(self.call, alike[k], factor, shared[0])
        return alike

    def _carry(self, operands: list[Array | None], tensors: Mapping[int, Labelled]) -> dict[str, Labelled] | None:
        """Each factor's labels, spread over its tensor, run through the node (plus one, so that 0 means nowhere)."""
        call, node = self.call, self.call.node
        names = [n for n in node.outputs if n]
        parts: dict[str, list[tuple[int, Factor]]] = {n: [] for n in names}
        follows = all(m is None or m.all() for k, m in enumerate(call.static) if k not in tensors)
        weight = all(t.weight for t in tensors.values()) and bool(tensors)
        shapes = dict(zip(node.outputs, call.outputs, strict=True))
        zero, rest = self._rest(tensors)
        for k, tensor in tensors.items():
            for factor in tensor.factors:
                strict = not self.rule.fills and not self.space.is_held(factor.labels)
                operands[k], kept = np.broadcast_to(factor.aligned(tensor.shape) + 1, tensor.shape), operands[k]
                try:
                    results = self.rule.run(self.state.execute, node, operands)
                except Exception:  # the evaluator's errors have no common base; whatever it can't do is a barrier
                    return None
                operands[k] = kept
                arrived = np.zeros(0, np.int64)
                for name, result in zip(names, results, strict=True):
                    labels = np.asarray(result).astype(np.int64) - 1
                    shapes[name] = labels.shape
                    axes, reduced = arrival(labels, strict=strict)
                    arrived = arrived if follows else np.union1d(arrived, reduced)
                    if axes:
                        parts[name].append((k, Factor(axes, reduced, factor.zero and zero[k])))
                    elif labels.size and reduced.flat[0] != NOWHERE:
                        self.space.hold(reduced.reshape(-1), Reason(node.label, f"{node.op} makes an axis of this channel alone"))
                if not follows and np.setdiff1d(factor.labels, arrived).size:
                    text = f"{node.op} picks from this axis by numbers that follow the input's size"
                    self.space.hold(factor.labels, Reason(node.label, text))
        return {n: replace(self._complete(parts[n], shapes[n] or (), weight), **rest) for n in names}

    def _rest(self, tensors: Mapping[int, Labelled]) -> tuple[dict[int, bool], dict[str, Any]]:
        """Of which operands removed places still hold what stands for zero in the result, and what that is."""
        node, points = self.call.node, self.rule.points
        if points.result is not None:
            zero = {k: self.state.rests(node.inputs[k], t, self._point(points.operands[k])) for k, t in tensors.items()}
            return zero, {"rest": rest_of(self._point(points.result))}
        if not tensors:
            return {}, {}
        settled = [t.rest for t in tensors.values() if not t.open]
        if not settled and self.fill is None:
            return dict.fromkeys(tensors, True), {"open": tuple(n for t in tensors.values() for n in t.open)}
        rest = settled[0] if settled else self.fill or 0.0
        wanted = Fill((int(rest),)) if isinstance(rest, float) and rest.is_integer() else str(rest)
        filled = self.fill is None or self.fill == rest
        return {k: filled and self.state.rests(node.inputs[k], t, wanted) for k, t in tensors.items()}, {"rest": rest}

    def _point(self, k: int) -> Fill | str | None:
        """A zero point's value, or its name; None where there are several."""
        name = self.call.node.input(k)
        values = self.state.constant(name) if name else np.zeros(1, np.int64)
        return name if values is None else Fill((int(values.flat[0]),)) if values.size == 1 else None

    def _complete(self, parts: list[tuple[int, Factor]], shape: Shape, weight: bool) -> Labelled:
        """Unite what arrived, and label the positions that come from nowhere: free if the operator made them."""
        if 0 in shape and not any(0 in self.call.shape(k) for k in self.data):
            return Labelled(shape, (), weight)
        factors = merge(parts, self.space)
        free = self._free_axes(shape)
        reason = Reason(self.call.node.label, f"{self.call.node.op} makes this axis of several tensors' only channels")
        whole: list[Factor] = []
        for factor in factors:
            gaps = factor.labels == NOWHERE
            labels = factor.labels
            if gaps.any():
                labels = labels.copy()
                labels[gaps] = self.space.fresh(int(gaps.sum()), None if free.issuperset(factor.axes) else reason)
            whole.append(Factor(factor.axes, labels, factor.zero))
        covered = {a for f in whole for a in f.axes}
        values = [self.call.value(k) for k in self.data]
        zero = not self.fill and all(v is not None and not v.any() for v in values)
        for axis, size in enumerate(shape):
            if size > 1 and axis not in covered:
                labels = self.space.fresh(size, None if axis in free else reason)
                whole.append(Factor((axis,), labels, zero))
        return Labelled(shape, tuple(whole), weight)

    def _free_axes(self, shape: Shape) -> set[int]:
        """Axes that a filling operator can make of any size: those whose size is the same for all inputs of the model."""
        index = 0 if self.rule.op == "ConstantOfShape" else 1
        static = self.call.static[index] if index < len(self.call.static) else None
        if not self.rule.fills or (static is not None and not static.all() and static.size != len(shape)):
            return set()
        return {a for a in range(len(shape)) if static is None or static.all() or static[a]}

    def _rerouted(self, moved: Mapping[str, Labelled]) -> bool:
        """Whether every result without split axes follows from rectangular tensors by one Gather; notes how."""
        between, sources = self._region()
        for name, tensor in moved.items():
            if self.state.loose_split(tensor) or all(self.space.is_held(f.labels) for f in tensor.factors):
                continue
            origin = {s: self.state.tensors[s] for s in (self._as_wide(s, len(tensor.shape)) for s in sources)}
            reroute = one_gather(tensor, origin, self.space.is_held, between)
            if reroute is None:
                return False
            self.state.reroutes[name] = reroute
        return True

    def _as_wide(self, name: str, rank: int) -> str:
        """The tensor itself, or the one of the wanted rank that it was reshaped from (a stack unsqueezes its parts)."""
        while len(self.state.tensors[name].shape) != rank and name in self.state.producers:
            writer = self.state.producers[name]
            rule = find(writer.op, writer.domain)
            if rule is None or rule.kind is not Kind.MOVEMENT or rule.data != (0,):
                break
            name = writer.inputs[0]
        return name

    def _region(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The split tensors that lead to the node through movement operators, and the others that feed them."""
        between: list[str] = []
        sources: list[str] = []
        stack = _named(self.call.node, self.data)
        while stack:
            name = stack.pop()
            if name in between or name in sources:
                continue
            split = name in self.state.tensors and self.state.loose_split(self.state.tensors[name])
            if split and name in self.state.producers:
                between.append(name)
                writer = self.state.producers[name]
                rule = find(writer.op, writer.domain)
                stack.extend(_named(writer, rule.carries(writer) if rule is not None else range(len(writer.inputs))))
            else:
                sources.append(name)
        return tuple(between), tuple(sources)


def stand_ins(op: str, data: Sequence[int], values: Sequence[Array | None], shapes: Sequence[Shape | None]) -> list[Array | None]:
    """Operands to run a node on labels with: known values, and zeros (nowhere) for data and for what Pad fills with."""
    operands: list[Array | None] = list(values)
    for k in data:
        shape = shapes[k] if k < len(shapes) else None
        operands[k] = None if shape is None else np.broadcast_to(np.int64(0), shape)
    if op == "Pad" and len(operands) > 2 and operands[2] is not None:
        operands[2] = np.zeros((), np.int64)
    return operands


def carried(execute: Executor, step: Step, k: int, numbers: Array) -> list[Array] | None:
    """Where a movement operator takes the elements of its operand ``k``: its results, run on their numbers from 1 on.

    0 where elements of other operands arrive, or none; None where it can't be run on numbers.
    """
    call, node, rule = step.call, step.call.node, step.rule
    if rule is None or not step.moved:
        return None
    operands = stand_ins(node.op, rule.carries(node), [call.value(i) for i in range(len(node.inputs))], call.inputs)
    operands[k] = numbers
    if any(name and operand is None for name, operand in zip(node.inputs, operands, strict=True)):
        return None
    try:
        return [np.asarray(result) for result in rule.run(execute, node, operands)]
    except Exception:  # the evaluator's errors have no common base; it did run on the labels
        return None


def _named(node: Node, positions: Sequence[int]) -> list[str]:
    return [node.inputs[k] for k in reversed(positions) if node.input(k)]


def fill_value(call: Call) -> float | None:
    """What an operator fills its own positions with; NaN where that is not known, None where it has none."""
    if call.node.op == "ConstantOfShape":
        value = call.attribute("value")
        return 0.0 if value is None else float(numpy_helper.to_array(value).ravel()[0])
    if call.node.op == "Pad" and call.attribute("mode", "constant") == "constant":
        if call.version < 11:
            return float(call.attribute("value", 0.0))
        operand = call.value(2)
        return math.nan if operand is None and call.node.input(2) else 0.0 if operand is None else float(operand)
    return None
