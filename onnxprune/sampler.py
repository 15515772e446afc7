"""Sampler: nominates the channels that leave, and what stands in for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from onnxprune import lossless
from onnxprune.allocation import Limits, Scores, counts, lowest
from onnxprune.channels import Coupling, analyse
from onnxprune.compensate import MODES, compensate
from onnxprune.data import Dataset
from onnxprune.errors import OptionError
from onnxprune.files import Source
from onnxprune.graph import Graph, load
from onnxprune.importance import Criterion, Nominator, Options, Pairs, Scene
from onnxprune.importance import criterion as find_criterion
from onnxprune.labels import BoolArray
from onnxprune.plan import Plan, PlanEdit, make_plan

Analyse = Callable[[Graph], Coupling]


@dataclass(frozen=True, eq=False)
class Standing:
    """A model on its way to a smaller one.

    ``coupling``: of the graph after ``edits`` of its weights; ``removed``: the components that have left; ``sizes``: of the
    groups when shares are taken.
    """

    coupling: Coupling
    removed: BoolArray
    sizes: tuple[int, ...]
    edits: tuple[PlanEdit, ...] = ()
    analyse: Analyse = analyse

    @property
    def plan(self) -> Plan:
        """What has happened to the model so far."""
        return replace(make_plan(self.coupling, self.removed), edits=self.edits)

    def advanced(self, removed: BoolArray, edits: tuple[PlanEdit, ...]) -> Standing:
        """The same after more components have left, and more weights have been changed.

        Components keep their numbers, since those of stored tensors come first; a bias that an edit adds comes behind them.
        """
        coupling = self.coupling
        if edits:
            graph = lossless.edited(coupling.graph, edits)
            same = graph.nodes == coupling.graph.nodes
            coupling = replace(coupling, graph=graph) if same else self.analyse(graph)
        gone = np.zeros(len(coupling.components.root), np.bool_)
        gone[np.flatnonzero(self.removed | removed)] = True
        return replace(self, coupling=coupling, removed=gone, edits=(*self.edits, *edits))


class Sampler:
    """Chooses channels: a criterion, how the share is allotted to the groups, and what is done about what leaves.

    Args:
        criterion: a name from ``onnxprune.importance.CRITERIA``, or an object that is called like those.
        ratio: fraction of channels to remove, 0 <= ratio < 1.
        scope, min_channels, round_to: as in :class:`~onnxprune.allocation.Limits`.
        compensate: ``"merge"``: a unit that stays takes over the weights that read one that leaves; ``"none"``; ``"auto"``:
            the first for criteria that choose pairs, the second for others.
        params, recursive, pool, interval, compat, seed: as in :class:`~onnxprune.importance.Options`.

    Raises:
        UsageError: there is no criterion of that name.
        OptionError: an option outside its range.
    """

    def __init__(
        self,
        criterion: str | Criterion = "l1",
        *,
        ratio: float = 0.5,
        scope: str = "uniform",
        min_channels: int = 1,
        round_to: int = 1,
        compensate: str = "auto",
        params: tuple[float, float] = (0.75, 0.25),
        recursive: bool = True,
        pool: float = 2.0,
        interval: tuple[float, float] = (0.0, 1.0),
        compat: str = "",
        seed: int = 0,
    ) -> None:
        if compensate not in MODES:
            raise OptionError(f"compensate is {compensate!r}; choose {', '.join(MODES)}")
        self.limits = Limits(ratio, scope, min_channels, round_to)
        self.compensate = compensate
        self._options = Options(seed, params, recursive, pool, interval, compat)
        self._set(criterion)

    def set_strategy(
        self, criterion: str | Criterion, params: tuple[float, float] = (0.75, 0.25), recursive: bool = True
    ) -> None:
        """Choose another criterion, with PAODING's two settings.

        Raises:
            UsageError: there is no criterion of that name.
            OptionError: an option outside its range.
        """
        self._options = replace(self._options, params=params, recursive=recursive)
        self._set(criterion)

    def nominate(
        self, model: Source, ratio: float | None = None, *, data: Dataset | None = None, freeze: tuple[str, ...] = ()
    ) -> Plan:
        """The plan by which a share of a model's channels leaves. The model itself is not changed.

        Raises:
            ModelError: the model can't be read or loaded by onnxruntime.
            OptionError: the ratio is outside its range.
        """
        graph = load(model)
        standing = self.start(graph, lambda g: analyse(g, freeze=freeze))
        return self.step(standing, self.limits.ratio if ratio is None else ratio, data).plan

    def start(self, graph: Graph, analyse: Analyse) -> Standing:
        """A model of which nothing has left; forgets which units have been used."""
        self._set(self._given)
        coupling = analyse(graph)
        nothing = np.zeros(len(coupling.components.root), np.bool_)
        return Standing(coupling, nothing, tuple(g.size for g in coupling.groups), analyse=analyse)

    def step(self, standing: Standing, ratio: float, data: Dataset | None = None) -> Standing:
        """Let more channels leave until a share of those that there were at the start is gone.

        Raises:
            OptionError: the ratio is outside its range.
        """
        limits, groups = replace(self.limits, ratio=ratio), range(len(standing.coupling.groups))
        scene = Scene(standing.coupling, standing.removed, self._options.interval)
        scores = [self._rank(scene, n, data) for n in groups] if limits.scope == "global" else []
        for number, count in enumerate(counts([scene.group(n) for n in groups], standing.sizes, scores, limits)):
            if count:
                pairs = self._choose(scene, number, count, data)
                edits = compensate(scene, number, pairs) if self._merges else []
                removed = np.zeros_like(standing.removed)
                removed[scene.group(number).roots[pairs.leaves]] = True
                standing = standing.advanced(removed, tuple(edits))
                scene = scene.after(standing.coupling, standing.removed)
        return standing

    @property
    def _merges(self) -> bool:
        return self.compensate == "merge" or (self.compensate == "auto" and isinstance(self._criterion, Nominator))

    def _set(self, given: str | Criterion) -> None:
        self._given = given
        self._criterion = find_criterion(given, self._options)

    def _rank(self, scene: Scene, number: int, data: Dataset | None) -> Scores:
        found = self._criterion.rank(scene, number) if isinstance(self._criterion, Nominator) else None
        return self._criterion(scene.group(number), scene.weights, data) if found is None else found

    def _choose(self, scene: Scene, number: int, count: int, data: Dataset | None) -> Pairs:
        found = self._criterion.nominate(scene, number, count) if isinstance(self._criterion, Nominator) else None
        if found is not None:
            return found
        leaves = lowest(self._criterion(scene.group(number), scene.weights, data), count)
        return Pairs(leaves, np.full(len(leaves), -1))
