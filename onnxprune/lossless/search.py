"""Find all that is free: look, change weights where that frees more, and look again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.flow import Site
from onnxprune.graph import Graph
from onnxprune.labels import BoolArray
from onnxprune.lossless.copies import Twins
from onnxprune.lossless.demand import Demand, Target
from onnxprune.lossless.edit import edited
from onnxprune.lossless.known import Facts
from onnxprune.plan import PlanEdit
from onnxprune.weights import Array, Weights

KINDS = ("zero", "unread", "constant", "copies")

ROUNDS = 64
"""How often weights are changed at most; each time frees channels, and a chain of copies takes one round per layer."""


@dataclass(frozen=True, slots=True)
class FreeRow:
    """How many channels of a group leave at no cost, by kind: ``zero``, ``unread``, ``constant``, ``copies``."""

    group: str
    counts: tuple[int, int, int, int]

    def to_dict(self) -> dict[str, str | int]:
        """As in the report."""
        return {"group": self.group, **dict(zip(KINDS, self.counts, strict=True))}


@dataclass(frozen=True, eq=False)
class Free:
    """The graph after ``edits`` as ``coupling``, the components that can leave it at no cost, and how many of each kind."""

    coupling: Coupling
    removed: BoolArray
    rows: tuple[FreeRow, ...]
    edits: tuple[PlanEdit, ...]


def find(graph: Graph, analyse: Callable[[Graph], Coupling], target: Target) -> Free:
    """Find what can leave a graph at no cost.

    Args:
        analyse: finds a graph's coupled channels.
        target: how many channels a group keeps if so many are needed.
    """
    edits: list[PlanEdit] = []
    kinds: dict[int, str] = {}
    for last in (*[False] * ROUNDS, True):
        coupling = analyse(graph)
        facts = Facts(coupling)
        demand = Demand(coupling, facts, target)
        new: list[PlanEdit] = []
        if not last:
            new += demand.folds()
            kinds |= dict.fromkeys(np.flatnonzero(demand.folded).tolist(), "constant")
            for copies, merged in Twins(coupling, facts, demand.live).merges():
                kinds |= dict.fromkeys(copies.tolist(), "copies")
                new += merged
        if not new:
            break
        graph = edited(graph, new)
        edits += new
    removed = np.zeros(len(coupling.components.root), np.bool_)
    for group in coupling.groups:
        removed[group.roots] = ~demand.live[group.roots]
    return Free(coupling, removed, _rows(coupling, removed, demand.silent(), kinds), tuple(edits))


def _rows(coupling: Coupling, removed: BoolArray, silent: BoolArray, kinds: dict[int, str]) -> tuple[FreeRow, ...]:
    """Components keep their numbers while weights are edited: those of stored tensors come first, in the file's order."""
    rows = []
    for group in coupling.groups:
        leaving = group.roots[removed[group.roots]].tolist()
        found = [kinds.get(c, "zero" if silent[c] else "unread") for c in leaving]
        if found:
            zero, unread, constant, copies = (found.count(kind) for kind in KINDS)
            rows.append(FreeRow(group.name, (zero, unread, constant, copies)))
    return tuple(rows)


class Left(Weights):
    """The weights of a graph as they are left once components are removed: what belonged to those is zero."""

    def __init__(self, coupling: Coupling, removed: BoolArray) -> None:
        self.__dict__.update(coupling.graph.weights.__dict__)
        self._coupling, self._removed = coupling, removed

    def read(self, name: str) -> Array:
        """The values, a copy where any are gone."""
        values = super().read(name)
        for axis in range(values.ndim):
            site = Site(name, axis)
            if site in self._coupling.flow.sites and not (keeps := self._coupling.keeps(site, self._removed)).all():
                values = values * keeps.reshape([-1 if a == axis else 1 for a in range(values.ndim)]).astype(values.dtype)
        return values
