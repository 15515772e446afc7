"""Standing: how far a model is on its way to a smaller one: what has left, and which weights have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune import lossless
from onnxprune.channels import Coupling, analyse
from onnxprune.flow import Site
from onnxprune.graph import Graph
from onnxprune.labels import BoolArray, IntArray
from onnxprune.lazy import LazyModel
from onnxprune.plan import Plan, PlanEdit, make_plan
from onnxprune.surgery import apply

Analyse = Callable[[Graph], Coupling]


@dataclass(frozen=True, eq=False)
class Standing:
    """A model on its way to a smaller one.

    ``coupling``: of the graph after ``edits`` of its weights; ``removed``: the components that have left. ``base``: the coupling
    before anything was chosen; ``gone``: what had left by then at no cost.
    """

    coupling: Coupling
    removed: BoolArray
    base: Coupling
    gone: BoolArray
    edits: tuple[PlanEdit, ...] = ()
    analyse: Analyse = analyse

    @classmethod
    def of(
        cls, coupling: Coupling, analyse: Analyse, gone: BoolArray | None = None, edits: tuple[PlanEdit, ...] = ()
    ) -> Standing:
        """A model before any choice, of which ``gone`` has left at no cost after ``edits`` that change nothing."""
        gone = np.zeros(len(coupling.components.root), np.bool_) if gone is None else gone
        return cls(coupling, gone, coupling, gone, edits, analyse)

    @property
    def sizes(self) -> list[int]:
        """How many channels each group had when shares were taken."""
        return [int((~self.gone[group.roots]).sum()) for group in self.base.groups]

    @property
    def share(self) -> float:
        """The share of its channels that has left."""
        whole, left = sum(self.sizes), sum(int((~self.removed[group.roots]).sum()) for group in self.base.groups)
        return 1 - left / whole if whole else 0.0

    @property
    def fixed(self) -> int:
        """How many of the edits come before any that make up for what leaves."""
        return sum(not edit.approximate for edit in self.edits)

    @property
    def plan(self) -> Plan:
        """What has happened to the model so far."""
        plan = make_plan(self.coupling, self.removed).without(self.coupling.graph.added)
        return replace(plan, edits=self.edits)

    @property
    def merged(self) -> BoolArray:
        """The components whose work was given to others, for which these make up as well as they can."""
        return (self._edited("channels") | self._fitted()) & self.removed

    @property
    def heirs(self) -> BoolArray:
        """The components to which it was given."""
        return self._edited("into")

    def _edited(self, which: str) -> BoolArray:
        marks = np.zeros(len(self.coupling.components.root), np.bool_)
        for edit in self.edits:
            if edit.scales:
                labels = self.coupling.labels(Site(edit.tensor, edit.axis))
                marks[self.coupling.components.root[labels[list(getattr(edit, which))]]] = True
        return marks

    def _fitted(self) -> BoolArray:
        """The components that are read by weights that were fitted, and make up for all that has left."""
        marks = np.zeros(len(self.coupling.components.root), np.bool_)
        for site in (Site(e.tensor, e.axis) for e in self.edits if e.weights and e.approximate):
            if site in self.coupling.flow.sites:
                marks[self.coupling.components.root[self.coupling.labels(site)]] = True
        return marks

    def cut(self) -> LazyModel:
        """The model without what has left.

        Raises:
            RepairError: a node hard-codes a size in a way that can't be corrected.
        """
        return apply(self.coupling, self.removed)

    def without(self, leaving: IntArray) -> Standing:
        """The same once more components have left."""
        removed = self.removed.copy()
        removed[leaving] = True
        return replace(self, removed=removed)

    def edited(self, edits: list[PlanEdit]) -> Standing:
        """The same with further changes of weights. One of the same axis of a tensor takes the place of an earlier one.

        Weights that were fitted take the place of all that made up for anything.
        """
        if not edits:
            return self
        axes = {(e.tensor, e.axis) for e in edits if e.places}
        anew = any(e.weights for e in edits)
        kept = tuple(e for e in self.edits if not e.approximate or not (anew or (e.tensor, e.axis) in axes))
        added = edits if len(kept) == len(self.edits) else [*kept[self.fixed :], *edits]
        start = self.coupling if len(kept) == len(self.edits) else self.base
        coupling = self._coupling(start, added)
        return replace(self, coupling=coupling, removed=self.removed_of(coupling), edits=(*kept, *edits))

    def changed(self, edits: Sequence[PlanEdit]) -> Standing:
        """A model before any choice once more of its weights have changed, in a way that changes none of its outputs."""
        coupling = self._coupling(self.coupling, edits)
        return Standing.of(coupling, self.analyse, self.removed_of(coupling), (*self.edits, *edits))

    def _coupling(self, start: Coupling, edits: Iterable[PlanEdit]) -> Coupling:
        """The coupled channels after some changes of the weights."""
        graph = lossless.edited(start.graph, edits)
        return replace(start, graph=graph) if graph.nodes == start.graph.nodes else self.analyse(graph)

    def removed_of(self, coupling: Coupling) -> BoolArray:
        """The components that have left, in an analysis of the model before or after weights were changed.

        The labels of stored tensors keep their numbers, since those come first, and what an edit adds comes behind these; layers
        that shared a weight and no longer do may be in components of their own.
        """
        removed = np.zeros(len(coupling.components.root), np.bool_)
        for site in self.coupling.flow.sites:
            if site in coupling.flow.sites:
                left = self.coupling.keeps(site, self.removed)
                removed[coupling.components.root[coupling.labels(site)[~left]]] = True
        return removed
