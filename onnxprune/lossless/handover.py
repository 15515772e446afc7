"""Giving what reads some channels to others: which channels that is possible for, and the edits it takes."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from copy import copy

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.flow import Site, Step, carried
from onnxprune.graph import Graph
from onnxprune.labels import BoolArray, Factor, IntArray
from onnxprune.lossless.demand import own_weight
from onnxprune.lossless.edit import handed_over
from onnxprune.lossless.sums import Sum
from onnxprune.plan import PlanEdit
from onnxprune.shapes import Executor
from onnxprune.weights import FLOATS, Array


class Handover:
    """The weights that read each group's channels, if stored weights of their own are all that does.

    ``readers``: the weight axes along which channels are multiplied with a stored tensor and summed, with the sum that
    does so. ``mixed``: components that are also summed with something else, which can't be given to others.
    """

    def __init__(self, coupling: Coupling, sums: Iterable[Sum]) -> None:
        self.coupling, self.graph, self.root = coupling, coupling.graph, coupling.components.root
        self.readers: dict[Site, Sum] = {}
        self._execute = Executor(self.graph)
        self.mixed: BoolArray = np.zeros(len(self.root), np.bool_)
        for sum_ in sums:
            weight = own_weight(self.graph, sum_)
            if weight is not None:
                self.readers[Site(weight, sum_.summed[1][0])] = sum_
                continue
            for k, axes in sum_.summed.items():
                tensor = coupling.flow.tensors.get(sum_.call.node.inputs[k])
                for factor in tensor.factors if tensor is not None else ():
                    if set(factor.axes) & set(axes):
                        self.mixed[self.root[factor.labels.ravel()]] = True
        self.sites = self._sites()
        self._alone: dict[int, list[Site]] = {}

    def on(self, graph: Graph) -> Handover:
        """The same for a graph of the same structure and other weights."""
        other = copy(self)
        other.graph = graph
        return other

    def is_possible(self, number: int) -> bool:
        """Whether some stored weights of floats, and nothing else of its own, read a group's channels."""
        sites = self.sites[number]
        floats = all(self.graph.weights.elem_type(site.tensor) in FLOATS for site in sites)
        return floats and any(site in self.readers for site in sites)

    def alone(self, number: int) -> list[Site]:
        """The weight axes by which a group's channels are read one by one; none where something else reads them, too."""
        if number not in self._alone:
            roots = self.coupling.groups[number].roots
            fits = self.is_possible(number) and not self.mixed[roots].any()
            fits = fits and (len(roots) == 1 or len(self.moved_alike([roots])) == 1)
            self._alone[number] = [site for site in self.sites[number] if site in self.readers] if fits else []
        return self._alone[number]

    def edits(self, number: int, leaving: IntArray, heirs: IntArray, scales: Array | None = None) -> list[PlanEdit] | None:
        """What gives the weights that read components of a group to others, times ``scales``: one to one, or all to all.

        Args:
            scales: (leaving,), or (heirs, leaving).

        Returns:
            None where that is not possible: a sum would be too large for its type.
        """
        found = [self._edit(site, leaving, heirs, scales) for site in self.sites[number] if site in self.readers]
        return [edit for edit in found if edit is not None] if all(found) else None

    def places(self, site: Site, components: IntArray) -> tuple[IntArray, IntArray] | None:
        """The indices of a weight axis that belong to some components (sorted), int (components, indices of each).

        None where some have more of them than others.
        """
        owners = self.root[self.coupling.labels(site)]
        order = np.argsort(owners, kind="stable")
        first, last = (np.searchsorted(owners[order], components, side) for side in ("left", "right"))
        count = int(last[0] - first[0]) if len(components) else 0
        if not count or (last - first != count).any():
            return None
        return components, order[first[:, None] + np.arange(count)]

    def moved_alike(self, classes: list[IntArray]) -> list[IntArray]:
        """Part classes of components by the order in which movement operators take the elements of each component."""
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
            numbers = Factor(factor.axes, self._numbers(factor.labels), factor.zero).aligned(call.shape(k))
            results = carried(self._execute, step, k, np.broadcast_to(numbers + 1, call.shape(k)))
            if results is None:
                return []
            for name, result in zip(filter(None, node.outputs), results, strict=True):
                for arrived in self.coupling.flow.tensors[name].factors:
                    rows = np.moveaxis(result, arrived.axes, range(len(arrived.axes)))
                    rows = rows.reshape(arrived.labels.size, -1)
                    classes = self.parted(classes, self.root[arrived.labels.ravel()], rows)
        return classes

    def parted(self, classes: list[IntArray], owners: IntArray, rows: Array) -> list[IntArray]:
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

    def _numbers(self, labels: IntArray) -> IntArray:
        """The how many-th element of its component each is."""
        owners = self.root[labels.ravel()]
        order = np.argsort(owners, kind="stable")
        starts = np.searchsorted(owners[order], owners[order])
        numbers = np.empty_like(owners)
        numbers[order] = np.arange(len(owners)) - starts
        return numbers.reshape(labels.shape)

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

    def _edit(self, site: Site, leaving: IntArray, heirs: IntArray, scales: Array | None) -> PlanEdit | None:
        found = self.places(site, np.union1d(leaving, heirs))
        if found is None:
            return None
        members, at = found
        channels, into = (at[np.searchsorted(members, part)] for part in (leaving, heirs))
        factors, places = array("f"), 0
        if scales is not None:
            spread, places = (np.repeat(scales, at.shape[1]), 0) if scales.ndim == 1 else (scales, at.shape[1])
            factors.frombytes(spread.astype(np.float32).tobytes())
        given, taken = (tuple(part.ravel().tolist()) for part in (channels, into))
        edit = PlanEdit(site.tensor, site.axis, given, taken, scales=factors, places=places)
        values = self.graph.weights.read(site.tensor)
        if np.abs(values).max(initial=0) < np.sqrt(np.finfo(values.dtype).max):
            return edit  # no sum of these can be too large
        return edit if np.isfinite(handed_over(values, edit)[1]).all() else None
