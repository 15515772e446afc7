"""Channels that are computed alike: equal weights throughout, so that one of them can do for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.flow import Site
from onnxprune.labels import BoolArray, IntArray
from onnxprune.lossless.handover import Handover
from onnxprune.lossless.known import Facts
from onnxprune.plan import PlanEdit


class Twins:
    """Finds channels of one group that have the same value for every input, and merges them.

    That is so where all their weights are equal, except those that they are summed with, and every movement operator
    takes their elements the same way. All that they are summed with must be stored weights, which are added up.
    """

    def __init__(self, coupling: Coupling, facts: Facts, live: BoolArray) -> None:
        self.coupling, self.live = coupling, live
        self.handover = Handover(coupling, facts.sums)

    def merges(self) -> Iterator[tuple[IntArray, list[PlanEdit]]]:
        """For each group with copies: the components of the copies, and what has to be added up."""
        hand = self.handover
        classes: list[IntArray] = []
        for number, group in enumerate(self.coupling.groups):
            candidates = group.roots[self.live[group.roots] & ~hand.mixed[group.roots]]
            if len(candidates) > 1 and hand.is_possible(number):
                classes += self._classes([s for s in hand.sites[number] if s not in hand.readers], candidates)
        classes = hand.moved_alike(classes)
        for number, group in enumerate(self.coupling.groups):
            found = [c for c in classes if c[0] in group.roots]
            if not found:
                continue
            copies = np.concatenate([c[1:] for c in found])
            kept = np.concatenate([np.repeat(c[:1], len(c) - 1) for c in found])
            edits = hand.edits(number, copies, kept)
            if edits is not None:
                yield copies, edits

    def _classes(self, sites: Sequence[Site], candidates: IntArray) -> list[IntArray]:
        """Components whose slices are equal on all of these axes."""
        if not sites:
            return []
        classes = [candidates]
        for site in sites:
            rows = np.moveaxis(self.coupling.graph.weights.read(site.tensor), site.axis, 0)
            classes = self.handover.parted(classes, self.coupling.components.root[self.coupling.labels(site)], rows)
        return classes
