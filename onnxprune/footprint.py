"""Footprint: what a pruned model costs, from how many channels leave each group, without cutting anything.

Every axis of every tensor shrinks by the positions of the channels that leave; what a node computes or a tensor stores is a
product of such sizes. So the cost of a layer depends on all groups that lie on its axes at once, and is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.graph import Graph
from onnxprune.labels import BoolArray, Factor, IntArray
from onnxprune.rules import Call, describe
from onnxprune.rules.linear import macs
from onnxprune.weights import raw_bytes

KINDS = ("macs", "parameters", "bytes")
"""What a model may be measured by, as :class:`~onnxprune.cost.Cost` names it."""

_NEVER = np.iinfo(np.int64).max
_LARGEST = 1 << 22
"""Entries of a table; positions that would need a larger one count as if they stayed."""

Gone = Sequence[Any]
"""How many channels leave each group: integers, or integer arrays that broadcast, for many cases at once."""


@dataclass(frozen=True, eq=False)
class _Axis:
    """An axis: ``fixed`` positions stay; of others ``table[i, j]`` are left once i channels of the first group that it is
    about have left, and j of the second."""

    fixed: int
    tables: tuple[tuple[tuple[int, ...], IntArray], ...] = ()

    def size(self, gone: Gone) -> Any:
        """What is left of it."""
        total: Any = self.fixed
        for groups, table in self.tables:
            total = total + (table[gone[groups[0]]] if len(groups) == 1 else table[tuple(gone[g] for g in groups)])
        return total

    @property
    def groups(self) -> set[int]:
        """The groups that it depends on."""
        return {g for groups, _ in self.tables for g in groups}


@dataclass(frozen=True, eq=False)
class _Term:
    """A part of the cost, and the groups that it depends on."""

    groups: frozenset[int]
    amount: Callable[[Gone], Any]
    live: bool


class Footprint:
    """The cost of one kind of a model of which channels leave.

    Args:
        kind: one of ``KINDS``.
        removed: bool, one entry per label component: what has left already.
        orders: for each group the components that are there, the first to leave first.

    Bytes are those of stored tensors; the structure of the file is not counted. Nor is what no output needs, which is not
    in the cut model any more: that would cost ``dead``.
    """

    def __init__(self, coupling: Coupling, kind: str, removed: BoolArray, orders: Sequence[IntArray]) -> None:
        self._coupling = coupling
        self._time = np.full(len(removed), _NEVER)
        self._owner = np.full(len(removed), -1)
        self._time[removed] = -1
        self._counts = [len(order) for order in orders]
        for number, order in enumerate(orders):
            self._time[order], self._owner[order] = np.arange(len(order)), number
        self._axes: dict[tuple[str, int], _Axis] = {}
        self._needed = _needed(coupling.graph)
        terms = self._stored(kind) if kind in ("parameters", "bytes") else self._work()
        zero = [0] * len(orders)
        self._dead = sum(int(term.amount(zero)) for term in terms if not term.live)
        terms = [term for term in terms if term.live]
        self._constant = sum(int(term.amount(zero)) for term in terms if not term.groups)
        self._terms = [term for term in terms if term.groups]
        self._of = [[t for t in self._terms if g in t.groups] for g in range(len(orders))]

    @property
    def dead(self) -> int:
        """The cost of what no output needs."""
        return self._dead

    def total(self, gone: Gone) -> int:
        """The cost once so many channels have left each group."""
        return self._constant + sum(int(term.amount(gone)) for term in self._terms)

    def change(self, gone: Gone, numbers: Sequence[int], cases: Sequence[IntArray]) -> Any:
        """The cost that depends on some groups, whose counts are ``cases`` instead, arrays that broadcast.

        It differs from the total by the same amount in all cases.
        """
        there = list(gone)
        for number, case in zip(numbers, cases, strict=True):
            there[number] = case
        first = self._of[numbers[0]]
        more = [t for n in numbers[1:] for t in self._of[n] if numbers[0] not in t.groups]
        return sum(
            (term.amount(there) for term in (*first, *more)),
            np.zeros(np.broadcast_shapes(*(case.shape for case in cases)), np.int64),
        )

    def _work(self) -> list[_Term]:
        """One term for each node that counts."""
        graph, shapes, terms = self._coupling.graph, self._coupling.shapes, []
        for node in graph.nodes:
            call = describe(graph, node, shapes)
            amount = self._amount(call)
            if amount is not None:
                live = not node.outputs or any(n in self._needed for n in node.outputs)
                operands = [self._tensor(n, s) for n, s in zip(node.inputs, call.inputs, strict=True)]
                results = [self._tensor(n, s) for n, s in zip(node.outputs, call.outputs, strict=True)]
                terms.append(_Term(_groups(operands + results), _Node(call, operands, results, amount), live))
        return terms

    def _amount(self, call: Call) -> Callable[[Call], Any] | None:
        """What says how much a node does, from itself with other sizes, which may be arrays; None if it does nothing."""
        return macs if macs(call) else None

    def _stored(self, kind: str) -> list[_Term]:
        """One term for each stored tensor; a vector whose readers keep different indices is stored once for each of these."""
        graph, terms = self._coupling.graph, []
        seen: set[tuple[str, bytes]] = set()
        needed = {graph.uses[name].tensor if name in graph.uses else name for name in self._needed}
        for name in graph.weights:
            shape, proto = graph.weights.shape(name), graph.weights[name]
            stored = graph.uses[name].tensor if name in graph.uses else name
            if (kind == "parameters" and not graph.weights.is_parameter(name)) or (stored, key := self._key(name)) in seen:
                continue
            seen.add((stored, key))
            axes = self._tensor(name, shape) or []
            count = max(prod(shape), 1)
            width = 1.0 if kind == "parameters" else (raw_bytes(proto) or 0) / count
            terms.append(_Term(_groups([axes]), _Stored(axes, width), stored in needed))
        return terms

    def _key(self, name: str) -> bytes:
        """Which components the indices of a vector's axis belong to, of those that may leave."""
        tensor = self._coupling.flow.tensors.get(name)
        roots = [self._coupling.components.root[f.labels].ravel() for f in (() if tensor is None else tensor.factors)]
        return b"".join(np.where(self._time[r] == _NEVER, -1, r).tobytes() for r in roots)

    def _tensor(self, name: str, shape: Sequence[int] | None) -> list[_Axis] | None:
        return None if shape is None else [self._axis(name, axis, size) for axis, size in enumerate(shape)]

    def _axis(self, name: str, axis: int, size: int) -> _Axis:
        if (name, axis) not in self._axes:
            tensor = self._coupling.flow.tensors.get(name)
            factors = [f for f in (() if tensor is None else tensor.factors) if axis in f.axes]
            self._axes[name, axis] = self._counted([self._leaving(f, axis) for f in factors], size)
        return self._axes[name, axis]

    def _leaving(self, factor: Factor, axis: int) -> tuple[IntArray, IntArray]:
        """With which group, and at which place of its order, each position of an axis leaves: once all its labels have."""
        labels = np.moveaxis(factor.labels, factor.axes.index(axis), 0)
        roots = self._coupling.components.root[labels.reshape(len(labels), -1)]
        owner, time = self._owner[roots], self._time[roots]
        number, last = owner.max(axis=1), time.max(axis=1)
        apart = ((owner != number[:, None]) & (time >= 0)).any(axis=1)  # of several groups: rare, and counted as if it stayed
        stays = apart | (last == _NEVER)
        return np.where(stays, -1, number), np.where(stays, _NEVER, last)

    def _counted(self, leaving: list[tuple[IntArray, IntArray]], size: int) -> _Axis:
        """Positions that leave when any of several factors says so, by the groups that decide."""
        if not leaving:
            return _Axis(size)
        owners, times = np.stack([o for o, _ in leaving], 1), np.stack([t for _, t in leaving], 1)
        there = (times >= 0).all(axis=1)
        fixed, tables = 0, dict[tuple[int, ...], IntArray]()
        for row in np.unique(owners[there], axis=0):
            groups = tuple(sorted({int(g) for g in row if g >= 0}))
            here = times[there & (owners == row).all(axis=1)]
            shape = [self._counts[g] + 1 for g in groups]
            if not groups or prod(shape) > _LARGEST:
                fixed += len(here)
                continue
            first = [here[:, row == g].min(axis=1) for g in groups]
            table = np.zeros(shape, np.int64)
            np.add.at(table, tuple(first), 1)
            for k in range(len(groups)):
                table = np.flip(np.cumsum(np.flip(table, k), k), k)
            tables[groups] = tables.get(groups, 0) + table
        return _Axis(fixed, tuple(tables.items()))


@dataclass(frozen=True, eq=False)
class _Node:
    """What a node computes, by the formula for its shapes."""

    call: Call
    operands: list[list[_Axis] | None]
    results: list[list[_Axis] | None]
    amount: Callable[[Call], Any]

    def __call__(self, gone: Gone) -> Any:
        return self.amount(replace(self.call, inputs=_shapes(self.operands, gone), outputs=_shapes(self.results, gone)))


@dataclass(frozen=True, eq=False)
class _Stored:
    """What a tensor stores, in numbers or bytes."""

    axes: list[_Axis]
    width: float

    def __call__(self, gone: Gone) -> Any:
        count = prod(axis.size(gone) for axis in self.axes)
        return count if self.width == 1 else np.ceil(count * self.width).astype(np.int64)


def _needed(graph: Graph) -> set[str]:
    """The tensors that any output depends on."""
    needed = {port.name for port in graph.outputs}
    for node in reversed(graph.nodes):
        if not node.outputs or needed.intersection(node.outputs):
            needed.update(node.inputs, node.captured)
    return needed


def _shapes(tensors: list[list[_Axis] | None], gone: Gone) -> tuple[Any, ...]:
    return tuple(None if axes is None else tuple([a.size(gone) if a.tables else a.fixed for a in axes]) for axes in tensors)


def _groups(tensors: Sequence[list[_Axis] | None]) -> frozenset[int]:
    return frozenset(g for axes in tensors if axes is not None for axis in axes for g in axis.groups)
