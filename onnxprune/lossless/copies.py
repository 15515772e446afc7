"""Channels that are computed alike: equal weights throughout, so that one of them can do for all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.flow import Site, Step, stand_ins
from onnxprune.labels import BoolArray, Factor, IntArray
from onnxprune.lossless.demand import own_weight
from onnxprune.lossless.edit import handed_over
from onnxprune.lossless.known import Facts
from onnxprune.plan import PlanEdit
from onnxprune.shapes import Executor
from onnxprune.weights import FLOATS, Array


class Twins:
    """Finds channels of one group that have the same value for every input, and merges them.

    That is so where all their weights are equal, except those that they are summed with, and every movement operator
    takes their elements the same way. All that they are summed with must be stored weights, which are added up.
    """

    def __init__(self, coupling: Coupling, facts: Facts, live: BoolArray) -> None:
        self.coupling, self.graph, self.root = coupling, coupling.graph, coupling.components.root
        self.live = live
        self.readers: set[Site] = set()
        self._execute = Executor(self.graph)
        self.mixed: BoolArray = np.zeros(len(self.root), np.bool_)
        for sum_ in facts.sums:
            weight = own_weight(self.graph, sum_)
            if weight is not None:
                self.readers.add(Site(weight, sum_.summed[1][0]))
                continue
            for k, axes in sum_.summed.items():
                tensor = coupling.flow.tensors.get(sum_.call.node.inputs[k])
                for factor in tensor.factors if tensor is not None else ():
                    if set(factor.axes) & set(axes):
                        self.mixed[self.root[factor.labels.ravel()]] = True

    def merges(self) -> Iterator[tuple[IntArray, list[PlanEdit]]]:
        """For each group with copies: the components of the copies, and what has to be added up."""
        sites = self._sites()
        classes: list[IntArray] = []
        for number, group in enumerate(self.coupling.groups):
            candidates = group.roots[self.live[group.roots] & ~self.mixed[group.roots]]
            floats = all(self.graph.weights.elem_type(site.tensor) in FLOATS for site in sites[number])
            if len(candidates) > 1 and floats and any(site in self.readers for site in sites[number]):
                classes += self._classes([s for s in sites[number] if s not in self.readers], candidates)
        classes = self._moved_alike(classes)
        for number, group in enumerate(self.coupling.groups):
            found = [c for c in classes if c[0] in group.roots]
            if not found:
                continue
            copies = np.concatenate([c[1:] for c in found])
            kept = np.concatenate([np.repeat(c[:1], len(c) - 1) for c in found])
            edits = [self._edit(site, copies, kept) for site in sites[number] if site in self.readers]
            if all(edits):
                yield copies, [edit for edit in edits if edit is not None]

    def _sites(self) -> list[list[Site]]:
        """For each group, all weight axes that its channels live on, by the names that nodes read."""
        number = np.full(len(self.root), -1)
        for i, group in enumerate(self.coupling.groups):
            number[group.roots] = i
        found: list[list[Site]] = [[] for _ in self.coupling.groups]
        for site in self.coupling.flow.sites:
            for i in np.unique(number[self.root[self.coupling.labels(site)]]):
                if i >= 0:
                    found[i].append(site)
        return found

    def _classes(self, sites: Sequence[Site], candidates: IntArray) -> list[IntArray]:
        """Components whose slices are equal on all of these axes."""
        if not sites:
            return []
        classes = [candidates]
        for site in sites:
            rows = np.moveaxis(self.graph.weights.read(site.tensor), site.axis, 0)
            classes = self._parted(classes, self.root[self.coupling.labels(site)], rows)
        return classes

    def _parted(self, classes: list[IntArray], owners: IntArray, rows: Array) -> list[IntArray]:
        """Part classes of components further by the rows that each owns, in their order."""
        wanted = self._marks(classes)
        digests: dict[int, bytes] = {}
        for owner, row in zip(owners.tolist(), rows, strict=True):
            if wanted[owner]:
                digests[owner] = hashlib.blake2b(digests.get(owner, b"") + row.tobytes(), digest_size=16).digest()
        parts: list[IntArray] = []
        for found in classes:
            by_digest: dict[bytes, list[int]] = {}
            for component in found.tolist():
                by_digest.setdefault(digests.get(component, b""), []).append(component)
            parts += [np.array(part) for part in by_digest.values() if len(part) > 1]
        return parts

    def _marks(self, classes: list[IntArray]) -> BoolArray:
        marks = np.zeros(len(self.root), np.bool_)
        for found in classes:
            marks[found] = True
        return marks

    def _moved_alike(self, classes: list[IntArray]) -> list[IntArray]:
        """Part classes by the order in which movement operators take the elements of each component."""
        for step in self.coupling.flow.steps:
            if step.moved and step.rule is not None:
                for k in step.rule.carries(step.call.node):
                    classes = self._carried(step, k, classes) if classes and step.call.node.input(k) else classes
        return classes

    def _carried(self, step: Step, k: int, classes: list[IntArray]) -> list[IntArray]:
        """Run a node on each element's number within its component."""
        call, node = step.call, step.call.node
        tensor = self.coupling.flow.tensors.get(node.inputs[k])
        for factor in tensor.factors if tensor is not None else ():
            marks = self._marks(classes)
            if not marks[self.root[factor.labels.ravel()]].any():
                continue
            rule = step.rule
            data = rule.carries(node) if rule is not None else ()
            operands = stand_ins(node.op, data, [call.value(i) for i in range(len(node.inputs))], call.inputs)
            numbers = Factor(factor.axes, self._numbers(factor.labels), factor.zero).aligned(call.shape(k))
            operands[k] = np.broadcast_to(numbers + 1, call.shape(k))
            try:
                results = self._execute(node, operands)
            except Exception:  # the evaluator's errors have no common base; it did run on the labels
                return []
            for name, result in zip(filter(None, node.outputs), results, strict=True):
                for arrived in self.coupling.flow.tensors[name].factors:
                    rows = np.moveaxis(np.asarray(result), arrived.axes, range(len(arrived.axes)))
                    rows = rows.reshape(arrived.labels.size, -1)
                    classes = self._parted(classes, self.root[arrived.labels.ravel()], rows)
        return classes

    def _numbers(self, labels: IntArray) -> IntArray:
        """The how many-th element of its component each is."""
        owners = self.root[labels.ravel()]
        order = np.argsort(owners, kind="stable")
        starts = np.searchsorted(owners[order], owners[order])
        numbers = np.empty_like(owners)
        numbers[order] = np.arange(len(owners)) - starts
        return numbers.reshape(labels.shape)

    def _edit(self, site: Site, copies: IntArray, kept: IntArray) -> PlanEdit | None:
        """Add up what a weight has for copies; None where the sum is too large for its type."""
        owners = self.root[self.coupling.labels(site)]
        channels = [np.flatnonzero(owners == c) for c in copies]
        into = [np.flatnonzero(owners == c) for c in kept]
        if any(len(one) != len(other) for one, other in zip(channels, into, strict=True)):
            return None
        moved = (tuple(np.concatenate(part).tolist()) for part in (channels, into))
        edit = PlanEdit(site.tensor, site.axis, next(moved), next(moved))
        _, sums = handed_over(self.graph.weights.read(site.tensor), edit.axis, edit.channels, edit.into)
        return edit if np.isfinite(sums).all() else None
