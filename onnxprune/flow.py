"""Labels flow through the graph, node by node.

Weights' axes get fresh labels. A computing operator ties axes as its line of notation says and hands labels on to its
result. A movement operator is run on the labels themselves, and where each label arrives is where it is. Everything else
is a barrier. Which way an axis that was split in two is cut, whole rows or the same column in every row, is a *choice*;
it is recorded, so that the caller can ask for the other one.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, TensorProto, numpy_helper

from onnxprune.graph import Graph, Node
from onnxprune.labels import NOWHERE, Axis, Factor, IntArray, Labelled, LabelSpace, Reason, arrival, compare_orders, merge
from onnxprune.rules import Call, Kind, Rule, Signature, describe, find
from onnxprune.rules.notation import Token
from onnxprune.shapes import Executor, Shape, Shapes
from onnxprune.weights import FLOATS, Array

LABELLED = FLOATS | {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32}
"""Element types of stored tensors that can hold weights, scales and zero points."""

MOVE_LIMIT = 1 << 27
"""Elements of the largest tensor on which labels are moved (1 GiB of labels)."""


@dataclass(frozen=True, slots=True)
class Site:
    """An axis of a stored tensor."""

    tensor: str
    axis: int


@dataclass(frozen=True, slots=True, eq=False)
class Reroute:
    """How a tensor that a chain of movement operators computed follows from the chain's sources by one Gather.

    ``index[j]``: where position ``j`` of ``axis`` comes from, counted over the sources joined along that axis. Needed
    where the cut leaves the tensors in between with rows of unequal length (a channel shuffle).
    """

    sources: tuple[str, ...]
    axis: int
    index: IntArray
    between: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """What was done about one node: ``understood`` by its rule (else a barrier), ``moved`` by running it on labels."""

    call: Call
    rule: Rule | None
    understood: bool = False
    moved: bool = False


@dataclass
class Flow:
    """The labels of every tensor once they have flowed through the whole graph.

    Args of :func:`flow` aside, the fields are results: ``tensors`` by name, ``steps`` in the order of the nodes,
    ``sites`` with the first label of each weight axis, ``roles`` of sites (``"producer"``, ``"consumer"``), ``reroutes``
    by tensor, ``options``: by node, how many ways there were to cut, and the labels concerned.
    """

    graph: Graph
    shapes: Shapes
    choices: Mapping[int, int]
    space: LabelSpace = field(default_factory=LabelSpace)
    tensors: dict[str, Labelled] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    sites: dict[Site, int] = field(default_factory=dict)
    roles: dict[Site, set[str]] = field(default_factory=dict)
    reroutes: dict[str, Reroute] = field(default_factory=dict)
    options: dict[int, tuple[int, IntArray]] = field(default_factory=dict)


def flow(graph: Graph, shapes: Shapes, choices: Mapping[int, int], frozen: Mapping[str, Reason]) -> Flow:
    """Run the labels through the graph.

    Args:
        choices: which way to cut at a node (by index), where there are several; the first where nothing is said.
        frozen: reasons to keep whole, by the name of a node or tensor.
    """
    state = Flow(graph, shapes, choices)
    runner = _Runner(state, frozen)
    runner.label_sources()
    for node in graph.nodes:
        runner.visit(node)
    for port in graph.outputs:
        runner.hold(port.name, Reason(runner.writer(port.name), f"graph output {port.name!r} keeps its shape"))
    return state


def matching(graph: Graph, pattern: str) -> list[str]:
    """Names of nodes and tensors that a shell-style pattern matches."""
    names = {n.name for n in graph.nodes} | {o for n in graph.nodes for o in n.outputs} | set(graph.weights)
    return sorted(fnmatch.filter(filter(None, names), pattern))


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


class _Runner:
    def __init__(self, state: Flow, frozen: Mapping[str, Reason]) -> None:
        self.state = state
        self.space = state.space
        self.graph = state.graph
        self.shapes = state.shapes
        self.frozen = frozen
        self.execute = Executor(state.graph)
        self._starts: list[int] = []
        self._sites: list[Site] = []
        self._producers = state.graph.producers

    # sources ----------------------------------------------------------------------------------------------------------
    def label_sources(self) -> None:
        """Fresh labels for stored tensors; held ones for graph inputs."""
        for port in self.graph.inputs:
            shape = self.shapes.get(port.name)
            if shape is not None:
                reason = Reason("", f"graph input {port.name!r} keeps its shape")
                self.state.tensors[port.name] = Labelled(shape, self._held_axes(shape, reason))
        for name in self.graph.weights:
            shape = self.graph.weights.shape(name)
            factors = []
            if self.graph.weights.elem_type(name) in LABELLED:
                for axis, size in enumerate(shape):
                    if size > 1:
                        labels = self.space.fresh(size)
                        self.state.sites[Site(name, axis)] = int(labels[0])
                        self._starts.append(int(labels[0]))
                        self._sites.append(Site(name, axis))
                        factors.append(Factor((axis,), labels, zero=True))
            self.state.tensors[name] = Labelled(shape, tuple(factors), weight=True)
            if name in self.frozen:
                self.hold(name, self.frozen[name])

    # one node ---------------------------------------------------------------------------------------------------------
    def visit(self, node: Node) -> None:
        """Label a node's outputs."""
        if node.op == "Constant" and node.outputs[0] in self.graph.weights:
            return
        call = describe(self.graph, node, self.shapes)
        rule = find(node.op, node.domain) if not _has_body(node) else None
        self.state.steps.append(self._step(call, rule))
        if node.name in self.frozen:
            for name in (*(n for n in node.inputs if self._is_weight(n)), *node.outputs):
                self.hold(name, self.frozen[node.name])
        for name in node.outputs:
            if name in self.frozen:
                self.hold(name, self.frozen[name])

    def _step(self, call: Call, rule: Rule | None) -> Step:
        node = call.node
        if node.op in ("Shape", "Size") and node.standard:
            self._settle(call, 0)
            self._unlabelled(call)
            return Step(call, rule)
        if not self._concerns(call, rule):
            self._unlabelled(call)
            return Step(call, rule)
        if rule is None or any(call.inputs[k] is None for k, n in enumerate(node.inputs) if n):
            self._barrier(call, _why_not(node, rule))
            return Step(call, rule)
        if rule.kind is Kind.MOVEMENT and (moved := self._move(call, rule)) is not None:
            self.state.tensors.update(moved)
            return Step(call, rule, understood=True, moved=True)
        if rule.kind is Kind.MOVEMENT and rule.build is None:
            self._barrier(call, f"{node.op} moves elements by amounts that are not constant")
            return Step(call, rule)
        signature = rule.fit(call)
        if signature is None or not self._compute(call, rule, signature):
            self._barrier(call, f"this form of {node.op} is not covered")
            return Step(call, rule)
        return Step(call, rule, understood=True)

    def hold(self, name: str, reason: Reason) -> None:
        """Keep a tensor whole."""
        for factor in self.state.tensors[name].factors if name in self.state.tensors else ():
            self.space.hold(np.unique(factor.labels), reason)

    def writer(self, name: str) -> str:
        """Label of the node that writes a tensor."""
        return self._producers[name].label if name in self._producers else ""

    def _concerns(self, call: Call, rule: Rule | None) -> bool:
        """Whether labels reach the node, or it makes a tensor of channels from nothing."""
        names = (*call.node.inputs, *call.node.captured)
        if any(self.state.tensors[n].factors for n in names if n in self.state.tensors):
            return True
        made = self.shapes.elem_types.get(call.node.outputs[0]) in FLOATS if call.node.outputs else False
        return rule is not None and rule.fills and not rule.data and made

    def _is_weight(self, name: str) -> bool:
        return name in self.state.tensors and self.state.tensors[name].weight

    def _unlabelled(self, call: Call) -> None:
        for name, shape in zip(call.node.outputs, call.outputs, strict=True):
            if name and shape is not None:
                self.state.tensors[name] = Labelled(shape, ())

    def _barrier(self, call: Call, text: str) -> None:
        reason = Reason(call.node.label, text)
        for name in (*call.node.inputs, *call.node.captured):
            self.hold(name, reason)
        for name, shape in zip(call.node.outputs, call.outputs, strict=True):
            if name and shape is not None:
                self.state.tensors[name] = Labelled(shape, self._held_axes(shape, reason))

    def _held_axes(self, shape: Shape, reason: Reason, axes: Sequence[int] | None = None) -> tuple[Factor, ...]:
        chosen = range(len(shape)) if axes is None else axes
        return tuple(Factor((a,), self.space.fresh(shape[a], reason), zero=False) for a in chosen if shape[a] > 1)

    def _operand(self, call: Call, k: int) -> Labelled:
        """An input's labels; held ones are made up for tensors that have none."""
        tensor = self.state.tensors.get(call.node.inputs[k])
        shape = call.inputs[k] or ()
        if tensor is None or not tensor.factors:
            reason = Reason(self.writer(call.node.inputs[k]), f"{call.node.inputs[k]!r} is computed without channels")
            return Labelled(shape, self._held_axes(shape, reason), tensor is not None and tensor.weight)
        return tensor

    # an axis that was split in two ------------------------------------------------------------------------------------
    def _loose_split(self, tensor: Labelled) -> list[Factor]:
        return [f for f in tensor.split if not self.space.is_held(f.labels)]

    def _settle(self, call: Call, k: int, tokens: Sequence[Token] | None = None) -> Labelled:
        """Cut a split axis one way: along one of its axes, so that what stays is rectangular."""
        tensor = self._operand(call, k)
        for factor in self._loose_split(tensor):
            tensor = self._settle_factor(call, tensor, factor, tokens)
        return tensor

    def _settle_factor(self, call: Call, tensor: Labelled, factor: Factor, tokens: Sequence[Token] | None) -> Labelled:
        others = [f for f in tensor.factors if f is not factor]
        held = {a for f in others if self.space.is_held(f.labels) for a in f.axes}
        shared = {a for f in others for a in f.axes}
        fits = [a for a in factor.axes if a not in held and (tokens is None or _is_letter(tokens[a]))]
        fits = [a for a in fits if a not in shared] or fits
        if not fits:
            self.space.hold(np.unique(factor.labels), Reason(call.node.label, f"{call.node.op} needs this axis whole"))
            return Labelled(tensor.shape, tuple(others), tensor.weight)
        axis = self.choose(call, fits, factor.labels)
        position = factor.axes.index(axis)
        rows = np.moveaxis(factor.labels, position, 0).reshape(tensor.shape[axis], -1)
        self.space.tie(rows[:, :1], rows)
        settled = Factor((axis,), np.ascontiguousarray(rows[:, 0]), factor.zero)
        bare = [a for a in factor.axes if a != axis and a not in shared]
        reason = Reason(call.node.label, "another way of cutting the same channels was chosen")
        return Labelled(tensor.shape, (*others, settled, *self._held_axes(tensor.shape, reason, bare)), tensor.weight)

    def choose(self, call: Call, fits: list[int], labels: IntArray) -> int:
        """One of several ways to cut: the first, unless the caller chose another."""
        if len(fits) > 1:
            self.state.options[call.node.index] = (len(fits), np.unique(labels))
        return fits[self.state.choices.get(call.node.index, 0) % len(fits)]

    # computing operators ----------------------------------------------------------------------------------------------
    def _compute(self, call: Call, rule: Rule, signature: Signature) -> bool:
        """Tie axes as the notation says. False if it does not fit the ranks."""
        binding = _Binding(self, call, rule, signature)
        for k, pattern in enumerate(signature.operands):
            if call.node.input(k):
                tokens = pattern.expand(call.rank(k))
                if tokens is None:
                    return False
                binding.bind(k, self._settle(call, k, tokens), tokens)
        for k, name in enumerate(call.node.inputs):
            if name and k >= len(signature.operands):
                self.hold(name, Reason(call.node.label, f"an option of {call.node.op}"))
        binding.check()
        self.state.tensors.update(binding.results())
        return True

    def mark(self, factor: Factor, role: str) -> None:
        """Note the part that a weight axis plays in a sum of products."""
        first = int(factor.labels.flat[0])
        place = int(np.searchsorted(self._starts, first, side="right")) - 1
        if place >= 0:
            site = self._sites[place]
            if first < self._starts[place] + self.graph.weights.shape(site.tensor)[site.axis]:
                self.state.roles.setdefault(site, set()).add(role)

    # movement operators -----------------------------------------------------------------------------------------------
    def _move(self, call: Call, rule: Rule) -> dict[str, Labelled] | None:
        """Run the node on labels. None if it can't be run."""
        node = call.node
        data = range(len(node.inputs)) if rule.data is None else rule.data
        operands: list[Array | None] = []
        for k, name in enumerate(node.inputs):
            shape = call.inputs[k] or ()
            operands.append(np.broadcast_to(np.int64(0), shape) if k in data and name else call.value(k))
            if name and operands[k] is None:
                return None
        if max((math.prod(s or ()) for s in (*call.inputs, *call.outputs)), default=0) > MOVE_LIMIT:
            return None
        fill = _fill_value(call)
        if node.op == "Pad":
            if call.version < 11 and fill != 0:
                return None
            if call.version >= 11 and node.input(2):
                operands[2] = np.zeros((), np.int64)
        tensors = {k: self._operand(call, k) for k in data if node.input(k)}
        moved = self._carry(call, rule, operands, tensors, fill)
        if moved is None or not any(self._loose_split(t) for t in tensors.values()):
            return moved
        if self._rerouted(call, moved, list(data)):
            return moved
        settled = {k: self._settle(call, k) for k in tensors}
        return self._carry(call, rule, operands, settled, fill)

    def _carry(
        self, call: Call, rule: Rule, operands: list[Array | None], tensors: Mapping[int, Labelled], fill: float
    ) -> dict[str, Labelled] | None:
        """Each factor's labels, spread over its tensor, run through the node (plus one, so that 0 means nowhere)."""
        node = call.node
        names = [n for n in node.outputs if n]
        parts: dict[str, list[tuple[int, Factor]]] = {n: [] for n in names}
        follows = all(m is None or m.all() for k, m in enumerate(call.static) if k not in tensors)
        weight = all(t.weight for t in tensors.values()) and bool(tensors)
        shapes = dict(zip(node.outputs, call.outputs, strict=True))
        for k, tensor in tensors.items():
            for factor in tensor.factors:
                strict = not rule.fills and not self.space.is_held(factor.labels)
                spread = factor.labels.reshape([tensor.shape[a] if a in factor.axes else 1 for a in range(len(tensor.shape))])
                operands[k], kept = np.broadcast_to(spread + 1, tensor.shape), operands[k]
                try:
                    results = self.execute(node, operands)
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
                        parts[name].append((k, Factor(axes, reduced, factor.zero and fill == 0)))
                    elif labels.size and reduced.flat[0] != NOWHERE:
                        self.space.hold(reduced.reshape(-1), Reason(node.label, f"{node.op} makes an axis of this channel alone"))
                if not follows and np.setdiff1d(factor.labels, arrived).size:
                    text = f"{node.op} picks from this axis by numbers that follow the input's size"
                    self.space.hold(np.unique(factor.labels), Reason(node.label, text))
        return {n: self._complete(call, rule, parts[n], shapes[n], fill, weight) for n in names}

    def _complete(
        self, call: Call, rule: Rule, parts: list[tuple[int, Factor]], shape: Shape | None, fill: float, weight: bool
    ) -> Labelled:
        """Unite what arrived, and label the positions that come from nowhere: free if the operator made them."""
        shape = shape or ()
        factors = merge(parts, self.space)
        free = self._free_axes(call, rule, shape)
        reason = Reason(call.node.label, f"{call.node.op} makes this axis of several tensors' only channels")
        whole: list[Factor] = []
        for factor in factors:
            gaps = factor.labels == NOWHERE
            labels = factor.labels
            if gaps.any():
                labels = labels.copy()
                labels[gaps] = self.space.fresh(int(gaps.sum()), None if free.issuperset(factor.axes) else reason)
            whole.append(Factor(factor.axes, labels, factor.zero))
        covered = {a for f in whole for a in f.axes}
        zero = rule.op == "ConstantOfShape" and fill == 0
        for axis, size in enumerate(shape):
            if size > 1 and axis not in covered:
                labels = self.space.fresh(size, None if axis in free else reason)
                whole.append(Factor((axis,), labels, zero))
        return Labelled(shape, tuple(whole), weight)

    def _free_axes(self, call: Call, rule: Rule, shape: Shape) -> set[int]:
        """Axes that a filling operator can make of any size: those whose size is written down in the model."""
        if not rule.fills:
            return set()
        index = 0 if rule.op == "ConstantOfShape" else 1
        static = call.static[index] if index < len(call.static) else None
        if static is None or static.all() or static.size != len(shape):
            return set(range(len(shape))) if static is None or static.all() else set()
        return {a for a in range(len(shape)) if static[a]}

    def _rerouted(self, call: Call, moved: Mapping[str, Labelled], data: list[int]) -> bool:
        """Whether every result without split axes follows from rectangular tensors by one Gather; notes how."""
        between, sources = self._region(call.node, data)
        for name, tensor in moved.items():
            if self._loose_split(tensor) or all(self.space.is_held(f.labels) for f in tensor.factors):
                continue
            origin = {s: self.state.tensors[s] for s in (self._as_wide(s, len(tensor.shape)) for s in sources)}
            reroute = one_gather(tensor, origin, self.space.is_held, between)
            if reroute is None:
                return False
            self.state.reroutes[name] = reroute
        return True

    def _as_wide(self, name: str, rank: int) -> str:
        """The tensor itself, or the one of the wanted rank that it was reshaped from (a stack unsqueezes its parts)."""
        while len(self.state.tensors[name].shape) != rank and name in self._producers:
            writer = self._producers[name]
            rule = find(writer.op, writer.domain)
            if rule is None or rule.kind is not Kind.MOVEMENT or rule.data != (0,):
                break
            name = writer.inputs[0]
        return name

    def _region(self, node: Node, data: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The split tensors that lead to a node through movement operators, and the others that feed them."""
        between: list[str] = []
        sources: list[str] = []
        stack = [node.inputs[k] for k in reversed(data) if node.input(k)]
        while stack:
            name = stack.pop()
            if name in between or name in sources:
                continue
            if name in self.state.tensors and self._loose_split(self.state.tensors[name]) and name in self._producers:
                between.append(name)
                writer = self._producers[name]
                rule = find(writer.op, writer.domain)
                feeding = range(len(writer.inputs)) if rule is None or rule.data is None else rule.data
                stack.extend(writer.inputs[k] for k in reversed(feeding) if writer.input(k))
            else:
                sources.append(name)
        return tuple(between), tuple(sources)


class _Binding:
    """The letters of one call: which axes carry each, and what is known of removed channels there."""

    def __init__(self, runner: _Runner, call: Call, rule: Rule, signature: Signature) -> None:
        self.runner, self.space = runner, runner.space
        self.call, self.rule, self.signature = call, rule, signature
        self.bound: dict[str, Axis] = {}
        self.zeros: dict[tuple[str, int], bool] = {}
        self.rows: bool | None = None
        self.shape_of: dict[str, int] = {}
        self.used = {t for p in signature.results for t in _letters(p.tokens)}
        self.linear = bool({t for p in signature.operands for t in _letters(p.tokens)} - self.used)

    def bind(self, k: int, tensor: Labelled, tokens: tuple[Token, ...]) -> None:
        """Bind the axes of operand ``k``."""
        for a, token in enumerate(tokens):
            axis = tensor.axis(a)
            if isinstance(token, tuple):
                letter, axis = self._compose(token, axis, tensor.shape[a])
                mixed = letter.startswith("!")
            elif token in ("*", "_", "1"):
                self._hold(axis, "works over these positions")
                continue
            else:
                letter, mixed = token, token.startswith("!")
            letter = letter.lstrip("!")
            if tensor.weight and self.linear and axis:
                role = "producer" if self._stays(letter) else "consumer"
                for factor in tensor.axis(a):
                    self.runner.mark(factor, role)
            if tensor.shape[a] == 1:
                continue
            self._tie(letter, axis, k)
            if mixed:
                self._hold(self.bound[letter], "works over this axis as a whole")

    def _tie(self, letter: str, axis: Axis, k: int) -> None:
        self.zeros[letter, k] = bool(axis) and all(f.zero for f in axis)
        reason = Reason(self.call.node.label, f"{self.call.node.op} meets an axis that can't be cut")
        self.bound[letter] = self.space.tie_axes(self.bound[letter], axis, reason) if letter in self.bound else axis

    def _hold(self, axis: Axis, text: str) -> None:
        for factor in axis:
            self.space.hold(np.unique(factor.labels), Reason(self.call.node.label, f"{self.call.node.op} {text}"))

    def _compose(self, token: tuple[str, ...], axis: Axis, size: int) -> tuple[str, Axis]:
        """An axis of groups times channels: cut whole groups, or the same channel of every group."""
        outer, inner = token
        groups = self.signature.sizes[outer.lstrip("!")]
        each = size // groups
        if self.rows is None:
            fits = [r for r, t in ((True, outer), (False, inner)) if not t.startswith("!")]
            if each == 1 and True in fits:
                fits = [True]
            elif len(fits) == 2 and groups < each:
                fits.reverse()
            labels = np.concatenate([np.ravel(f.labels) for f in axis]) if axis else np.zeros(0, np.int64)
            self.rows = bool(self.runner.choose(self.call, [int(f) for f in fits], labels))
        letter = outer if self.rows else inner
        self.shape_of[inner] = each
        folded: list[Factor] = []
        for factor in self.space.single(axis, Reason(self.call.node.label, "groups are cut along one axis")):
            table = factor.labels.reshape(groups, each)
            table = table if self.rows else table.T
            self.space.tie(table[:, :1], table)
            folded.append(Factor(factor.axes, np.ascontiguousarray(table[:, 0]), factor.zero))
        return letter, tuple(folded)

    def check(self) -> None:
        """Hold what is summed over without being zero, and divisors that would become zero."""
        for letter, axis in self.bound.items():
            carriers = [k for (name, k) in self.zeros if name == letter]
            if not self._stays(letter) and not any(self.zeros[letter, k] for k in carriers):
                self._hold(axis, "sums over channels that are not zero once removed")
            if any(self.zeros[letter, k] for k in carriers if k in self.rule.divides):
                self._hold(axis, "divides by channels that are zero once removed")
        if self.rows is not None:
            other = {
                t[1 if self.rows else 0].lstrip("!") for p in self.signature.operands for t in p.tokens if isinstance(t, tuple)
            }
            for letter in other & set(self.bound):
                self._hold(self.bound[letter], "is cut by whole groups" if self.rows else "is cut within its groups")

    def _stays(self, letter: str) -> bool:
        """Whether a letter reaches a result, rather than being summed away."""
        return letter in self.used or letter.startswith(".")

    def _zero(self, letter: str) -> bool:
        def removed_is_zero(k: int) -> bool:
            if (letter, k) in self.zeros:
                return self.zeros[letter, k]
            value = self.call.value(k)
            return value is not None and value.dtype.kind in "fiu" and not value.any()

        if not (self.rule.zero and self.signature.zero):
            return False
        present = [k for k, name in enumerate(self.call.node.inputs) if name]
        plus = present if self.rule.plus is None else [k for k in self.rule.plus if k in present]
        times = [k for k in self.signature.times or self.rule.times if k in present]
        return (not times or any(map(removed_is_zero, times))) and all(map(removed_is_zero, plus))

    def results(self) -> dict[str, Labelled]:
        """Labels of the outputs."""
        found: dict[str, Labelled] = {}
        node, reason = self.call.node, Reason(self.call.node.label, f"{self.call.node.op} makes these positions")
        weight = (
            self.rule.kind is Kind.EXACT
            and not self.linear
            and all(self.runner._is_weight(n) or self.call.value(k) is not None for k, n in enumerate(node.inputs) if n)
        )
        for j, (name, shape) in enumerate(zip(node.outputs, self.call.outputs, strict=True)):
            if not name or shape is None:
                continue
            tokens = self.signature.results[j].expand(len(shape)) if j < len(self.signature.results) else None
            factors: list[Factor] = []
            for a, size in enumerate(shape):
                axis = self._result_axis(tokens[a], size) if tokens is not None and size > 1 else ()
                factors += [Factor((a,), f.labels, f.zero) for f in axis]
                if not axis and size > 1:
                    factors += self.runner._held_axes(shape, reason, [a])
            found[name] = Labelled(shape, tuple(factors), weight)
        return found

    def _result_axis(self, token: Token, size: int) -> Axis:
        if isinstance(token, tuple):
            outer, inner = (t.lstrip("!") for t in token)
            letter = outer if self.rows else inner
            axis, groups = self.bound.get(letter, ()), self.signature.sizes[outer]
            each = size // groups
            axis = tuple(
                Factor(f.axes, np.repeat(f.labels, each) if self.rows else np.tile(f.labels, groups), f.zero) for f in axis
            )
        else:
            letter = token.lstrip("!")
            axis = self.bound.get(letter, ())
        zero = self._zero(letter)
        return tuple(Factor(f.axes, f.labels, zero) for f in axis if len(f.labels) == size)


def _letters(tokens: tuple[Token, ...]) -> set[str]:
    """Letters of a pattern; ``...`` counts as none, its axes are never summed away."""
    flat = [t for token in tokens for t in (token if isinstance(token, tuple) else (token,))]
    return {t.lstrip("!") for t in flat if t not in ("*", "_", "1", "...")}


def _is_letter(token: Token) -> bool:
    return isinstance(token, tuple) or (token not in ("*", "_", "1") and not token.startswith("!"))


def _has_body(node: Node) -> bool:
    return bool(node.captured) or any(isinstance(v, GraphProto) for v in node.attributes.values())


def _why_not(node: Node, rule: Rule | None) -> str:
    if rule is not None:
        return f"the shape of an input of {node.op} is not known"
    if _has_body(node):
        return f"{node.op} has subgraphs, which are not looked into"
    return f"no rule for operator {node.op if node.standard else f'{node.domain}.{node.op}'}"


def _fill_value(call: Call) -> float:
    """What an operator fills its own positions with; NaN where that is not known."""
    if call.node.op == "ConstantOfShape":
        value = call.attribute("value")
        return 0.0 if value is None else float(_scalar(value))
    if call.node.op == "Pad" and call.attribute("mode", "constant") == "constant":
        if call.version < 11:
            return float(call.attribute("value", 0.0))
        operand = call.value(2)
        return math.nan if operand is None and call.node.input(2) else 0.0 if operand is None else float(operand)
    return 0.0


def _scalar(tensor: TensorProto) -> float:
    return float(numpy_helper.to_array(tensor).ravel()[0])
