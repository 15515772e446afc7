"""What the labels' flow through a graph has found out so far, and the few things every operator does with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.graph import Graph
from onnxprune.labels import Factor, Fill, IntArray, Labelled, LabelSpace, Reason
from onnxprune.rules import Call, Rule
from onnxprune.rules.notation import Token
from onnxprune.shapes import Executor, Shape, Shapes
from onnxprune.structure import Node
from onnxprune.weights import QUANTISED, Array


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

    ``choices``: which way to cut at a node (by index), where there are several. ``mixing``: cut axes that a node normalises
    or averages over, too. The rest are results: ``tensors`` by
    name, ``steps`` in the order of the nodes, ``sites`` with the first label of each weight axis, ``roles`` of sites in
    sums of products (``"producer"``, ``"consumer"``) with the node concerned, ``reroutes`` by tensor, ``options``: by
    node, how many ways there were to cut, and the labels concerned; ``fills``: what stands for zero in stored tensors of
    quantised numbers.
    """

    graph: Graph
    shapes: Shapes
    choices: Mapping[int, int]
    mixing: bool = False
    space: LabelSpace = field(default_factory=LabelSpace)
    tensors: dict[str, Labelled] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    sites: dict[Site, int] = field(default_factory=dict)
    roles: dict[Site, dict[str, str]] = field(default_factory=dict)
    reroutes: dict[str, Reroute] = field(default_factory=dict)
    options: dict[int, tuple[int, IntArray]] = field(default_factory=dict)
    fills: dict[str, Fill] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.producers: Mapping[str, Node] = self.graph.producers
        self.execute = Executor(self.graph)
        self._starts: list[int] = []
        self._sites: list[Site] = []

    # labels of a tensor -----------------------------------------------------------------------------------------------
    def label_weight(self, name: str, *, labelled: bool) -> None:
        """Fresh labels for every axis of a stored tensor. The oracle leaves vectors alone that have several readers."""
        shape = self.graph.weights.shape(name)
        factors = []
        for axis, size in enumerate(shape):
            if labelled and size > 1:
                labels = self.space.fresh(size)
                self.sites[Site(name, axis)] = int(labels[0])
                self._starts.append(int(labels[0]))
                self._sites.append(Site(name, axis))
                factors.append(Factor((axis,), labels, zero=name not in self.graph.uses))
        quantised = self.graph.weights.elem_type(name) in QUANTISED
        self.tensors[name] = Labelled(shape, tuple(factors), weight=True, open=(name,) if quantised else ())

    def held_axes(self, shape: Shape, reason: Reason, axes: Sequence[int] | None = None) -> tuple[Factor, ...]:
        """Labels that must stay, for all axes of a shape or some of them."""
        chosen = range(len(shape)) if axes is None else axes
        return tuple(Factor((a,), self.space.fresh(shape[a], reason), zero=False) for a in chosen if shape[a] > 1)

    def operand(self, call: Call, k: int) -> Labelled:
        """An input's labels; held ones are made up for tensors that have none."""
        name = call.node.inputs[k]
        tensor = self.tensors.get(name)
        if tensor is not None and not tensor.factors and 0 in tensor.shape:
            return tensor
        if tensor is None or not tensor.factors:
            reason = Reason(self.writer(name) or call.node.label, f"{name!r} is computed without channels")
            return Labelled(call.shape(k), self.held_axes(call.shape(k), reason), self.is_weight(name))
        return tensor

    def is_weight(self, name: str) -> bool:
        """Whether a tensor comes from stored tensors alone, by movement."""
        return name in self.tensors and self.tensors[name].weight

    def writer(self, name: str) -> str:
        """Label of the node that writes a tensor."""
        return self.producers[name].label if name in self.producers else ""

    def hold(self, name: str, reason: Reason) -> None:
        """Keep a tensor whole."""
        for factor in self.tensors[name].factors if name in self.tensors else ():
            self.space.hold(factor.labels, reason)

    # what stands for zero -------------------------------------------------------------------------------------------------
    def constant(self, name: str) -> Array | None:
        """The value of a tensor that is the same for all inputs, however large."""
        return self.graph.weights.read(name) if name in self.graph.weights else self.shapes.value(name)

    def rests(self, name: str, tensor: Labelled, wanted: Fill | str | None) -> bool:
        """Whether removed places of a tensor that are called zero hold the value which a reader takes for zero.

        Where that is open, the reader decides. ``wanted``: a name where it is only known at run time.
        """
        if not tensor.open:
            value = wanted.values[0] if isinstance(wanted, Fill) and len(wanted.values) == 1 else wanted
            return value == tensor.rest
        if not isinstance(wanted, Fill) or (len(wanted.values) > 1 and tensor.open != (name,)):
            return False
        decided = [self.fills.setdefault(source, wanted) for source in tensor.open]
        return all(fill == wanted for fill in decided)

    def mark(self, factor: Factor, role: str, node: str) -> None:
        """Note the part that a weight axis plays in a sum of products."""
        first = int(factor.labels.flat[0])
        place = int(np.searchsorted(self._starts, first, side="right")) - 1
        if place >= 0:
            site = self._sites[place]
            if first < self._starts[place] + self.graph.weights.shape(site.tensor)[site.axis]:
                self.roles.setdefault(site, {}).setdefault(role, node)

    # an axis that was split in two ------------------------------------------------------------------------------------
    def loose_split(self, tensor: Labelled) -> list[Factor]:
        """Factors over several axes along which the tensor can still be cut."""
        return [f for f in tensor.split if not self.space.is_held(f.labels)]

    def settle(self, call: Call, k: int, tokens: Sequence[Token] | None = None) -> Labelled:
        """Cut an input's split axes one way each: along one of their axes, so that what stays is rectangular."""
        tensor = self.operand(call, k)
        for factor in self.loose_split(tensor):
            tensor = self._settle_factor(call, tensor, factor, tokens)
        return tensor

    def _settle_factor(self, call: Call, tensor: Labelled, factor: Factor, tokens: Sequence[Token] | None) -> Labelled:
        others = [f for f in tensor.factors if f is not factor]
        held = {a for f in others if self.space.is_held(f.labels) and len(np.unique(f.labels)) == f.labels.size for a in f.axes}
        shared = {a for f in others for a in f.axes}
        fits = [a for a in factor.axes if a not in held and (tokens is None or is_letter(tokens[a]))]
        fits.sort(key=shared.__contains__)
        if not fits:
            self.space.hold(factor.labels, Reason(call.node.label, f"{call.node.op} needs this axis whole"))
            return replace(tensor, factors=tuple(others))
        agreed = [a for a in fits if self.space.same_rows(_rows(factor, a))]
        return self.cut_along(call, tensor, factor, agreed[0] if agreed else self.choose(call, fits, factor.labels))

    def cut_along(self, call: Call, tensor: Labelled, factor: Factor, axis: int) -> Labelled:
        """Cut a split axis along one of its axes, all of an index or nothing."""
        rows = _rows(factor, axis)
        self.space.tie_rows(rows)
        settled = Factor((axis,), np.ascontiguousarray(rows[:, 0]), factor.zero)
        shared = {a for f in tensor.factors if f is not factor for a in f.axes}
        bare = [a for a in factor.axes if a != axis and a not in shared]
        reason = Reason(call.node.label, "another way of cutting the same channels was chosen")
        factors = tuple(settled if f is factor else f for f in tensor.factors)
        return replace(tensor, factors=(*factors, *self.held_axes(tensor.shape, reason, bare)))

    def choose(self, call: Call, fits: list[int], labels: IntArray) -> int:
        """One of several ways to cut: the first, unless the caller chose another."""
        if len(fits) > 1:
            self.options[call.node.index] = (len(fits), np.unique(labels))
        return fits[self.choices.get(call.node.index, 0) % len(fits)]


def _rows(factor: Factor, axis: int) -> IntArray:
    """A factor's labels as a table with a row per index of one of its axes."""
    labels = np.moveaxis(factor.labels, factor.axes.index(axis), 0)
    return labels.reshape(len(labels), -1)


def is_letter(token: Token) -> bool:
    """Whether a token of the notation names an axis that can be cut."""
    return isinstance(token, tuple) or (token not in ("*", "_", "1") and not token.startswith("!"))
