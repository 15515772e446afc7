"""Sampler: nominates the channels that leave, and what stands in for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from onnxprune import lossless
from onnxprune.allocation import Limits, Scores, counts, lowest
from onnxprune.channels import Coupling, analyse
from onnxprune.compensate import MODES, compensate
from onnxprune.data import Dataset
from onnxprune.errors import OptionError
from onnxprune.files import Source
from onnxprune.flow import Site
from onnxprune.graph import Graph, load
from onnxprune.importance import Criterion, Nominator, Options, Pairs, Scene
from onnxprune.importance import criterion as find_criterion
from onnxprune.labels import BoolArray, IntArray
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

    @property
    def merged(self) -> BoolArray:
        """The components whose work was given to others, for which these make up as well as they can."""
        return self._edited("channels")

    @property
    def heirs(self) -> BoolArray:
        """The components to which it was given."""
        return self._edited("into")

    def _edited(self, which: str) -> BoolArray:
        marks = np.zeros(len(self.coupling.components.root), np.bool_)
        for edit in self.edits:
            if edit.approximate:
                labels = self.coupling.labels(Site(edit.tensor, edit.axis))
                marks[self.coupling.components.root[labels[list(getattr(edit, which))]]] = True
        return marks

    def after(self, leaving: IntArray, edits: tuple[PlanEdit, ...]) -> Standing:
        """The same once more components have left, for which ``edits`` of the weights make up.

        Components keep their numbers, since those of stored tensors come first; a bias that an edit adds comes behind them.
        """
        coupling = self.coupling
        if edits:
            graph = lossless.edited(coupling.graph, edits)
            coupling = replace(coupling, graph=graph) if graph.nodes == coupling.graph.nodes else self.analyse(graph)
        removed = np.zeros(len(coupling.components.root), np.bool_)
        removed[np.flatnonzero(self.removed)] = removed[leaving] = True
        return replace(self, coupling=coupling, removed=removed, edits=(*self.edits, *edits))


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
        standing = self.start(load(model), lambda g: analyse(g, freeze=freeze))
        return self.step(standing, self.limits.ratio if ratio is None else ratio, data).plan

    def start(self, graph: Graph, analyse: Analyse) -> Standing:
        """A model of which nothing has left."""
        coupling = analyse(graph)
        nothing = np.zeros(len(coupling.components.root), np.bool_)
        return Standing(coupling, nothing, tuple(g.size for g in coupling.groups), analyse=analyse)

    def step(self, standing: Standing, ratio: float, data: Dataset | None = None) -> Standing:
        """Let more channels leave until a share of those that there were at the start is gone.

        Raises:
            OptionError: the ratio is outside its range.
        """
        limits, groups = replace(self.limits, ratio=ratio), range(len(standing.coupling.groups))
        scene = Scene(standing.coupling, standing.removed, self._options.interval, standing.heirs)
        scores = [self._rank(scene, n, data) for n in groups] if limits.scope == "global" else []
        for number, count in enumerate(counts([scene.group(n) for n in groups], standing.sizes, scores, limits)):
            if count:
                pairs = self._choose(scene, number, count, data)
                edits = compensate(scene, number, pairs, self._mode)
                standing = standing.after(scene.group(number).roots[pairs.leaves], tuple(edits))
                scene = scene.after(standing.coupling, standing.removed, standing.heirs)
        return standing

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides what is chosen, as JSON data. An object's criterion goes by the name of its type."""
        name = self._given if isinstance(self._given, str) else type(self._given).__name__
        limits = {k: v for k, v in asdict(self.limits).items() if k != "ratio"}
        return {"criterion": name, "compensate": self.compensate, **limits, **asdict(self._options)}

    @property
    def _mode(self) -> str:
        return "none" if self.compensate == "auto" and not isinstance(self._criterion, Nominator) else self.compensate

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
