"""Which channels are needed: those whose removal would change something that stays.

Removed channels touch what stays only where an operator sums over them. A channel is needed there if a product that it
is part of is not known to be zero and is summed into something that is needed itself. This runs backwards from the graph's
outputs until nothing changes; what is not reached can leave all together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.channels import ChannelGroup, Coupling
from onnxprune.graph import Graph
from onnxprune.labels import BoolArray, Labelled
from onnxprune.lossless.known import Facts
from onnxprune.lossless.sums import Sum, letters
from onnxprune.plan import PlanEdit
from onnxprune.structure import Node
from onnxprune.weights import FLOATS, Array

Target = Callable[[ChannelGroup, int], int]
"""(group, how many channels are needed) -> how many it has to keep, at least one."""

Slot = tuple[Node, int, float]
"""A node and the index of the input that a vector is added to; what is added counts so many times."""


class Demand:
    """The channels that are needed, by label component. ``always``: components that no removal of channels concerns."""

    def __init__(self, coupling: Coupling, facts: Facts, target: Target) -> None:
        self.coupling, self.facts, self.target = coupling, facts, target
        self.graph, self.root = coupling.graph, coupling.components.root
        self.live: BoolArray = np.ones(len(self.root), np.bool_)
        for group in coupling.groups:
            self.live[group.roots] = not any(m.site.tensor in self.graph.consumers for m in group.members)
        for name in filter(coupling.flow.tensors.__contains__, facts.watched):  # never free
            for factor in coupling.flow.tensors[name].factors:
                self.live[self.root[factor.labels.ravel()]] = True
        self.folded: BoolArray = np.zeros_like(self.live)
        self.slots = {id(s): slot for s in facts.sums if (slot := self._slot(s)) is not None}
        self._settle()
        while self._keep_enough():
            self._settle()

    def folds(self) -> list[PlanEdit]:
        """What has to go into biases before the channels that are not needed can leave; marks these as ``folded``."""
        return [fold for sum_ in self.facts.sums if id(sum_) in self.slots and (fold := self._fold(sum_)) is not None]

    def silent(self) -> BoolArray:
        """Components that are zero wherever they are summed over, whatever the weights there."""
        heard = np.zeros_like(self.live)
        met = np.zeros_like(self.live)
        for sum_ in self.facts.sums:
            for k, axes in sum_.summed.items():
                tensor = self._tensor(sum_, k)
                if tensor.weight:
                    continue
                there = self.facts.of(sum_.call.node.inputs[k]).there
                for axis in axes:
                    if all(sum_.sizes[c] == 1 for c in letters(sum_.tokens[k][axis]) if c in sum_.lost):
                        continue  # each channel for itself
                    every = np.any(there, axis=tuple(a for a in range(there.ndim) if a != axis))
                    self._mark(heard, tensor, axis, np.broadcast_to(every, (tensor.shape[axis],)))
                    self._mark(met, tensor, axis, np.ones(tensor.shape[axis], np.bool_))
        return met & ~heard

    # the walk back ----------------------------------------------------------------------------------------------------
    def _settle(self) -> None:
        before = -1
        while before != (before := int(self.live.sum())):
            for sum_ in reversed(self.facts.sums):
                self._reach(sum_)

    def _reach(self, sum_: Sum) -> None:
        """Mark what a sum needs of its operands."""
        tensors = {k: self._tensor(sum_, k) for k in sum_.terms}
        waiting = [(k, a) for k, axes in sum_.summed.items() for a in axes if not self._left(tensors[k], a).all()]
        if not waiting:
            return
        plain = sum_.rule.product or len(sum_.terms) == 1
        parts = self._parts(sum_, fold=id(sum_) in self.slots) if plain else []
        for k, axis in waiting:
            needed = sum_.along(parts, k, axis) if plain else None
            if needed is None:
                needed = np.ones(tensors[k].shape[axis], np.bool_)
            self._mark(self.live, tensors[k], axis, needed)

    def _parts(self, sum_: Sum, *, fold: bool) -> list[tuple[Array, list[int]]]:
        """Where factors are not zero (or, to be folded, not known), and where the result stays."""
        parts = []
        for k in sum_.terms:
            known = self.facts.of(sum_.call.node.inputs[k])
            parts.append(sum_.operand(k, ~known.mask if fold and k == sum_.terms[0] else known.there))
        result = self.coupling.flow.tensors[sum_.call.node.outputs[0]]
        return [*parts, sum_.outcome(self._stays(result))]

    def _tensor(self, sum_: Sum, k: int) -> Labelled:
        return self.coupling.flow.tensors.get(sum_.call.node.inputs[k], Labelled(sum_.call.shape(k), ()))

    def _stays(self, tensor: Labelled) -> BoolArray:
        """Which elements of a tensor stay, as a rep."""
        stays: BoolArray = np.ones((1,) * len(tensor.shape), np.bool_)
        for factor in tensor.factors:
            alive = self.live[self.root[factor.labels]]
            if not alive.all():
                stays = stays & self.live[self.root[factor.aligned(tensor.shape)]]
        return stays

    def _left(self, tensor: Labelled, axis: int) -> BoolArray:
        """Which indices of an axis stay."""
        left: BoolArray = np.ones(tensor.shape[axis], np.bool_)
        for factor in tensor.factors:
            if axis in factor.axes:
                alive = np.moveaxis(self.live[self.root[factor.labels]], factor.axes.index(axis), 0)
                left &= alive.reshape(len(left), -1).all(axis=1)
        return left

    def _mark(self, marks: BoolArray, tensor: Labelled, axis: int, chosen: BoolArray) -> None:
        for factor in tensor.factors:
            if axis in factor.axes:
                labels = np.moveaxis(factor.labels, factor.axes.index(axis), 0)[chosen]
                marks[self.root[labels.ravel()]] = True

    def _keep_enough(self) -> bool:
        """Keep some of what is not needed where a group would have too few channels, first what would have to be folded."""
        constant = np.zeros_like(self.live)
        for sum_ in self.facts.sums:
            if id(sum_) in self.slots:
                self._mark(constant, self._tensor(sum_, 0), sum_.summed[0][0], self._constant(sum_))
        for group in reversed(self.coupling.groups):  # what is kept may need channels of the groups before it
            live = self.live[group.roots]
            short = min(group.size, self.target(group, int(live.sum()))) - int(live.sum())
            if short > 0:
                idle = group.roots[~live]
                self.live[idle[np.argsort(~constant[idle], kind="stable")][:short]] = True
                return True
        return False

    # constants --------------------------------------------------------------------------------------------------------
    def _slot(self, sum_: Sum) -> Slot | None:
        """Where constants that a sum adds could be put, if there are any: it is the same for all elements of a channel."""
        slot = None if own_weight(self.graph, sum_) is None else bias_slot(self.graph, sum_)
        if slot is None or not self.facts.is_even(sum_):
            return None
        known = self.facts.of(sum_.call.node.inputs[0])
        sizes = [size for a, size in enumerate(known.mask.shape) if a not in sum_.summed[0]]
        return slot if (known.mask & known.there).any() and max(sizes, default=1) == 1 else None

    def _constant(self, sum_: Sum) -> BoolArray:
        """Which channels that a sum reads leave, and would be missed."""
        axis = sum_.summed[0][0]
        leaves = ~self._left(self._tensor(sum_, 0), axis)
        if not leaves.any():
            return leaves
        missed = sum_.along(self._parts(sum_, fold=False), 0, axis)
        return leaves if missed is None else leaves & missed

    def _fold(self, sum_: Sum) -> PlanEdit | None:
        chosen = self._constant(sum_)
        if not chosen.any():
            return None
        self._mark(self.folded, self._tensor(sum_, 0), sum_.summed[0][0], chosen)
        node, index, scale = self.slots[id(sum_)]
        weight, axis = sum_.call.node.inputs[1], sum_.summed[1][0]
        known = self.facts.of(sum_.call.node.inputs[0])
        shape = [len(chosen) if a in sum_.summed[0] else 1 for a in range(known.mask.ndim)]
        values = np.where(chosen.reshape(shape), known.filled, np.zeros((), known.value.dtype))
        sums = self.facts.weighted(sum_, {0: values, 1: self.graph.weights.read(weight)})
        assert sums is not None, "fewer products than were formed to find what is known"
        add = np.broadcast_to(sums.reshape(-1), (self.coupling.flow.tensors[sum_.call.node.outputs[0]].shape[sum_.channels],))
        gone = np.flatnonzero(~self._left(self._tensor(sum_, 1), axis))
        return PlanEdit(weight, axis, tuple(gone.tolist()), node=node.outputs[0], input=index, add=tuple((add / scale).tolist()))


def is_linear(sum_: Sum) -> bool:
    """Whether a sum multiplies channels with its second operand, and does nothing else."""
    return sum_.rule.product and sum_.terms == [0, 1] and all(len(sum_.summed[k]) == 1 for k in sum_.terms)


def own_weight(graph: Graph, sum_: Sum) -> str | None:
    """The stored float tensor that channels are multiplied with and summed, if nothing else reads it."""
    if not is_linear(sum_):
        return None
    name, token = sum_.call.node.inputs[1], sum_.tokens[1][sum_.summed[1][0]]
    alone = all(c in sum_.lost or sum_.sizes[c] == 1 for c in letters(token))
    return name if alone and _is_read_once(graph, name) else None


def bias_slot(graph: Graph, sum_: Sum) -> Slot | None:
    """Where a vector along the result's channels can be added to a linear sum: its bias, or a vector that is added next."""
    node = sum_.call.node
    if not is_linear(sum_) or not sum_.result:
        return None
    kept = {c for t in sum_.tokens.get(1, ()) for c in letters(t)} - sum_.lost
    if kept != set(letters(sum_.result[sum_.channels])):
        return None
    size, rank = (sum_.call.outputs[0] or ())[sum_.channels], len(sum_.result)
    if sum_.rule.plus:
        index, scale = sum_.rule.plus[0], float(sum_.call.attribute("beta", 1.0))
        bias = node.input(index)
        return (node, index, scale) if scale and (not bias or _is_vector(graph, bias, size)) else None
    readers = graph.consumers.get(node.outputs[0], [])
    if len(readers) != 1 or readers[0].op != "Add" or node.outputs[0] in {p.name for p in graph.outputs}:
        return None
    index = 1 - readers[0].inputs.index(node.outputs[0])
    vector = readers[0].inputs[index]
    fits = _is_vector(graph, vector, size) and len(graph.weights.shape(vector)) <= rank
    return (readers[0], index, 1.0) if fits else None


def _is_vector(graph: Graph, name: str, size: int) -> bool:
    """Whether a stored float tensor is the same everywhere but along its last axis, which is the channels'."""
    if not _is_float(graph, name):
        return False
    shape = graph.weights.shape(name)
    return graph.weights.count(name) == (shape[-1] if shape else 1) and (not shape or shape[-1] in (1, size))


def _is_float(graph: Graph, name: str) -> bool:
    return name in graph.weights and graph.weights.elem_type(name) in FLOATS


def _is_read_once(graph: Graph, name: str) -> bool:
    return graph.only_reader(name) is not None and _is_float(graph, name) and name not in graph.uses
