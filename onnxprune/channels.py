"""Coupled channels: which channels exist, which leave together, and which can't leave, with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import chain, count
from typing import TypeVar

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.flow import Flow, Site, flow, matching
from onnxprune.graph import Graph
from onnxprune.labels import BoolArray, Components, Fill, IntArray, Reason
from onnxprune.rules.linear import macs
from onnxprune.shapes import Shapes, infer
from onnxprune.weights import PARAMETERS, Array, Weights

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """Where a group's channels live on one axis: ``positions[i]`` of the axis belongs to channel ``channels[i]``.

    ``fill``: what stands for zero in the tensor.
    """

    site: Site
    positions: IntArray
    channels: IntArray
    producer: bool
    fill: Fill = field(default_factory=Fill)


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Channels that live on the same axes, each of which can leave by itself.

    ``roots``: the label component of each channel. ``parameters``: elements of its producers' filters and of the vectors
    that go with them. ``exact``: cutting equals masking.
    """

    name: str
    roots: IntArray
    members: tuple[Member, ...]
    parameters: int
    exact: bool = True

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.roots)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The weight axes the channels live on."""
        return tuple(dict.fromkeys(m.site for m in self.members))

    def only(self, stay: BoolArray) -> ChannelGroup:
        """The group with some of its channels alone."""
        number = np.cumsum(stay) - 1
        chosen = [(m, stay[m.channels]) for m in self.members]
        members = tuple(replace(m, positions=m.positions[c], channels=number[m.channels[c]]) for m, c in chosen)
        return replace(self, roots=self.roots[stay], members=members, parameters=self.parameters * int(stay.sum()) // self.size)

    def producers(self, weights: Weights) -> list[Member]:
        """The axes of its producers' filters; of vectors (biases) only where there is nothing else."""
        found = [m for m in self.members if m.producer]
        return [m for m in found if len(weights.shape(m.site.tensor)) > 1] or found

    def slices(self, weights: Weights) -> Iterator[tuple[Array, IntArray]]:
        """The filters of every producer, one stored tensor at a time.

        A large tensor comes in several pieces, each with some of the numbers of some of the filters.

        Yields:
            filters: numbers (positions, ...), the producer axis first; those of quantised tensors from their zero point on.
            channels: int (positions,), the channel each of them belongs to.
        """
        for member in self.producers(weights):
            axis, shape = member.site.axis, weights.shape(member.site.tensor)
            for box, part in weights.pieces(member.site.tensor):
                if any(member.fill.values):
                    zero = np.broadcast_to(member.fill.over(shape), shape)[box]
                    part = part.astype(np.float32) - zero.astype(np.float32)
                first, last = np.searchsorted(member.positions, (box[axis].start, box[axis].stop))
                positions, values = member.positions[first:last] - box[axis].start, np.moveaxis(part, axis, 0)
                whole = len(positions) == len(values) and bool((np.diff(positions) == 1).all())
                if len(positions):
                    yield (values if whole else values[positions]), member.channels[first:last]


@dataclass(frozen=True, slots=True)
class Frozen:
    """A producer axis that can't be cut (or only in part: ``channels`` says how many stay whatever happens)."""

    tensor: str
    axis: int
    channels: int
    parameters: int
    reason: str
    node: str


@dataclass(frozen=True, eq=False)
class Coupling:
    """Everything that analysis finds out about a graph."""

    graph: Graph
    shapes: Shapes
    flow: Flow
    components: Components
    groups: tuple[ChannelGroup, ...]
    frozen: tuple[Frozen, ...]

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulate operations of one run, at the probe's sizes."""
        return sum(macs(step.call) for step in self.flow.steps)

    def labels(self, site: Site) -> IntArray:
        """The labels of a weight axis."""
        start = self.flow.sites[site]
        return np.arange(start, start + self.graph.weights.shape(site.tensor)[site.axis])

    def keeps(self, site: Site, removed: BoolArray) -> BoolArray:
        """Which indices of a weight axis stay when the components marked in ``removed`` leave."""
        return ~removed[self.components.root[self.labels(site)]]


def analyse(
    graph: Graph, *, freeze: tuple[str, ...] = (), hold: Mapping[str, Reason] | None = None, mixing: bool = False
) -> Coupling:
    """Find the coupled channels of a graph.

    Args:
        freeze: shell-style patterns of node or tensor names to leave alone.
        hold: more names to leave alone, each with its own reason.
        mixing: whether axes that a node normalises or averages over may be cut, which is not exact.

    Raises:
        UsageError: a pattern matches nothing.
        ModelError: onnxruntime can't load the model, or it declares absurd sizes.
    """
    names: dict[str, Reason] = dict(hold or {})
    for pattern in freeze:
        found = matching(graph, pattern)
        if not found:
            raise UsageError(f"--freeze {pattern!r} matches no node and no tensor; `onnxprune inspect` lists the names")
        names |= {name: Reason(name, f"frozen by --freeze {pattern}") for name in found}
    shapes = infer(graph)
    return _choose_ways(graph, shapes, names, mixing)


def _choose_ways(graph: Graph, shapes: Shapes, names: Mapping[str, Reason], mixing: bool) -> Coupling:
    """Where an axis can be cut in several ways and the first turns out blocked, take the next one that is free."""
    state = flow(graph, shapes, {}, names, mixing=mixing)
    components = state.space.components()
    chosen: dict[int, int] = {}
    for way in count(1):
        blocked = [i for i, (ways, labels) in state.options.items() if ways > way and components.held[labels].all()]
        if not blocked:
            break
        other = flow(graph, shapes, chosen | dict.fromkeys(blocked, way), names, mixing=mixing)
        others = other.space.components()
        freed = [i for i in blocked if i in other.options and not others.held[other.options[i][1]].all()]
        if freed:
            chosen |= dict.fromkeys(freed, way)
            state = flow(graph, shapes, chosen, names, mixing=mixing)
            components = state.space.components()
    return Coupling(graph, shapes, state, components, _groups(state, components), _frozen(state, components))


def named(groups: Sequence[ChannelGroup]) -> dict[str, ChannelGroup]:
    """Groups by name; where several have one, they are numbered."""
    found: dict[str, ChannelGroup] = {}
    for group in groups:
        names = chain([group.name], (f"{group.name} ({k})" for k in count(2)))
        found[next(name for name in names if name not in found)] = group
    return found


def chosen(coupling: Coupling, table: Mapping[str, T], option: str) -> list[T | None]:
    """What a table from patterns to values says of each group; None where it says nothing.

    A pattern (shell-style, or a name as it is) stands for the groups of which it matches the name, a node that
    makes their channels, or a tensor that it does so with. A group's own name counts before all, else the first that matches.

    Raises:
        UsageError: a pattern matches no group.
    """
    found: list[T | None] = []
    used: set[str] = set()
    for name, group in named(coupling.groups).items():
        makers = [m.site for m in group.members if m.producer]
        nodes = [coupling.flow.roles.get(site, {}).get("producer", "") for site in makers]
        known = {name, *nodes, *(site.tensor for site in makers)}
        hits = [p for p in table if p in known or any(fnmatchcase(n, p) for n in known)]
        used.update(hits)
        own = [name] if name in table else hits
        found.append(table[own[0]] if own else None)
    for pattern in table:
        if pattern not in used:
            raise UsageError(f"{option}: {pattern!r} matches no channel group; `onnxprune inspect` lists them")
    return found


def stored_site(graph: Graph, site: Site) -> Site:
    """The axis of the tensor in the file, where a vector with several readers has other names."""
    return Site(graph.uses[site.tensor].tensor, site.axis) if site.tensor in graph.uses else site


def _groups(state: Flow, components: Components) -> tuple[ChannelGroup, ...]:
    """Components that live on exactly the same axes of all tensors form a group.

    Activations count too: a group never loses its last channel, so no tensor ever runs empty.
    """
    root, held = components.root, components.held
    rng = np.random.default_rng(0)
    place = np.zeros(len(root), np.uint64)
    for tensor in state.tensors.values():
        for factor in tensor.factors:
            here = np.unique(root[factor.labels[held[factor.labels] == 0]])
            place[here] ^= rng.integers(1, 1 << 63, dtype=np.uint64)
    stored = np.zeros(len(root), np.bool_)
    weights = state.graph.weights
    for site, start in state.sites.items():
        stored[root[start : start + weights.shape(site.tensor)[site.axis]]] = True
    free = np.flatnonzero(stored & (held == 0) & (root == np.arange(len(root))))
    if not free.size:
        return ()
    _, first, which = np.unique(place[free], return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first, kind="stable")] = np.arange(len(first))
    group_of = np.full(len(root), -1, np.int64)
    group_of[free] = number[which]
    index_of = np.zeros(len(root), np.int64)
    roots = [free[group_of[free] == g] for g in range(len(first))]
    for members in roots:
        index_of[members] = np.arange(len(members))
    found: list[list[Member]] = [[] for _ in roots]
    for site, start in state.sites.items():
        here = root[start : start + weights.shape(site.tensor)[site.axis]]
        groups = group_of[here]
        for g in np.unique(groups[groups >= 0]):
            positions = np.flatnonzero(groups == g)
            fill = state.fills.get(site.tensor, Fill())
            producer = "producer" in state.roles.get(site, ())
            found[g].append(Member(stored_site(state.graph, site), positions, index_of[here[positions]], producer, fill))
    return tuple(_group(state, components, r, tuple(m)) for r, m in zip(roots, found, strict=True))


def _group(state: Flow, components: Components, roots: IntArray, members: tuple[Member, ...]) -> ChannelGroup:
    weights = state.graph.weights
    counted = {m.site: m for m in members if m.producer or len(weights.shape(m.site.tensor)) == 1}.values()
    parameters = sum(
        len(m.positions) * weights.count(m.site.tensor) // weights.shape(m.site.tensor)[m.site.axis]
        for m in counted
        if weights.is_parameter(m.site.tensor)
    )
    first = next((m for m in members if m.producer), members[0])
    name = state.roles.get(first.site, {}).get("producer", first.site.tensor)
    return ChannelGroup(name, roots, members, parameters, exact=not components.mixed[roots].any())


def _frozen(state: Flow, components: Components) -> tuple[Frozen, ...]:
    """One entry per stored tensor whose producer axis is held, or of which no axis at all is free."""
    weights, found = state.graph.weights, []
    by_tensor: dict[str, list[Site]] = {}
    for site in state.sites:
        by_tensor.setdefault(site.tensor, []).append(site)
    for tensor, sites in by_tensor.items():
        if len(weights.shape(tensor)) < 2 or not weights.is_parameter(tensor) or state.graph.is_copy(tensor):
            continue
        producers = [s for s in sites if "producer" in state.roles.get(s, ())]
        if not producers and any(not _held(state, components, s).all() for s in sites):
            continue
        site = producers[0] if producers else sites[0]
        held = _held(state, components, site)
        if held.any():
            label = state.sites[site] + int(np.flatnonzero(held)[0])
            reason = components.reason(label)
            share = weights.count(tensor) * int(held.sum()) // len(held)
            found.append(Frozen(tensor, site.axis, int(held.sum()), share, reason.text, reason.node))
    for node, name, stored in state.graph.inner_tensors:
        if len(stored.dims) > 1 and stored.data_type in PARAMETERS:
            text = f"{node.op} has subgraphs, which are not looked into"
            found.append(Frozen(name, 0, stored.dims[0], math.prod(stored.dims), text, node.label))
    return tuple(found + _inside_attributes(state))


def _inside_attributes(state: Flow) -> list[Frozen]:
    """The longest list of numbers of each node without a rule that keeps them in its attributes (trees, vectors)."""
    found = []
    for step in state.steps:
        node = step.call.node
        lists = {name: len(v) for name, v in node.attributes.items() if isinstance(v, list) and v and isinstance(v[0], float)}
        if step.rule is None and not node.border and lists:
            name = max(lists, key=lists.__getitem__)
            operator = node.op if node.standard else f"{node.domain}.{node.op}"
            text = f"no rule for operator {operator}, which keeps its numbers in attributes"
            found.append(Frozen(f"{name} of {node.label}", 0, lists[name], 0, text, node.label))
    return found


def _held(state: Flow, components: Components, site: Site) -> BoolArray:
    start = state.sites[site]
    held: BoolArray = components.held[start : start + state.graph.weights.shape(site.tensor)[site.axis]] > 0
    return held
