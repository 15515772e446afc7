"""Sampler: nominates the channels that leave, and what stands in for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.allocation import AUTO, Limits, Rungs, Scores, Table, counts, lowest, read_table
from onnxprune.channels import analyse, chosen, named
from onnxprune.compensate import MODES, fitted, merged, refitted
from onnxprune.cost import Cost, cost
from onnxprune.data import Dataset
from onnxprune.errors import OptionError, UsageError
from onnxprune.evaluate import Judged, Speed
from onnxprune.files import Source
from onnxprune.fit import Fit, removable
from onnxprune.footprint import Footprint
from onnxprune.graph import Graph, load
from onnxprune.importance import Criterion, Curved, Nominator, Obs, Options, Pairs, Saved, Scene, ScoreTable, summed
from onnxprune.importance import criterion as find_criterion
from onnxprune.knapsack import Knapsack
from onnxprune.plan import Plan
from onnxprune.profile import DeviceProfile, Pace, Pacer
from onnxprune.rotation import rotated
from onnxprune.shapes import infer
from onnxprune.standing import Analyse, Standing
from onnxprune.target import SPEED, Met, Target


class Sampler:
    """Chooses channels: a criterion, how the share is allotted to the groups, and what is done about what leaves.

    Args:
        criterion: a name from ``onnxprune.importance.CRITERIA``, or an object that is called like those. ``"auto"``: the first
            of the saved ``scores``; without these l1, or for scope ``"tod"`` wasserstein.
        ratio: fraction of channels to remove, 0 <= ratio < 1; by default a half.
        scope, min_channels, round_to: as in :class:`~onnxprune.allocation.Limits`. With ``"auto"`` a cut that makes the model
            slower than it was is not made.
        profile: of the device that ``"auto"`` and latencies are about, or its path; by default this one, measured.
        tod: level for scope ``"tod"``, by default 0.05. protection: the criterion whose ranking protects channels there.
        ratios: of some groups, by pattern, or a JSON file of them.
        target: how small the model is to become, as in ``"macs=0.5"``, instead of a ratio; see
            :class:`~onnxprune.target.Target`. Each group loses as many channels as cost least error for what they save.
        scores: a table of scores, or its path; criteria that it has are not measured again.
        compensate: ``"merge"``: a unit that stays takes over the weights that read one that leaves; ``"none"``; ``"auto"``:
            the first for criteria that choose pairs, the second for others.
        interval: of the model's inputs; by default that of the data they are measured on, or 0 to 1.
        rotate: whether criterion obs may turn channels to principal axes first (:mod:`~onnxprune.rotation`).
        params, recursive, pool, compat, samples, analysis, seed: as in :class:`~onnxprune.importance.Options`.
        clusters: of the k-means criteria: one number for all groups, or numbers by pattern, or a JSON file of these.

    Raises:
        UsageError: there is no criterion of that name, or ``ratio``, ``tod`` and ``target`` do not fit the scope.
        OptionError: an option outside its range.
        DataError: the scores can't be read.
    """

    def __init__(
        self,
        criterion: str | Criterion = "auto",
        *,
        ratio: float | None = None,
        scope: str = "uniform",
        tod: float | None = None,
        protection: str | Criterion = "reconstruction",
        target: str | Target | None = None,
        scores: ScoreTable | str | Path | None = None,
        min_channels: int = 1,
        round_to: int | str = 1,
        profile: DeviceProfile | str | Path | None = None,
        ratios: Table = None,
        compensate: str = "auto",
        params: tuple[float, float] = (0.75, 0.25),
        recursive: bool = True,
        pool: float = 2.0,
        interval: tuple[float, float] | None = None,
        compat: str = "",
        clusters: int | Table = None,
        samples: int = 32,
        analysis: str | Mapping[str, str] = "own",
        rotate: bool = True,
        seed: int = 0,
    ) -> None:
        if compensate not in MODES:
            raise OptionError(f"compensate is {compensate!r}; choose {', '.join(MODES)}")
        if scope == "tod" and ratio is not None:
            raise UsageError("the ToD level sets how many channels each group loses; give either --ratio or --scope tod")
        if scope != "tod" and tod is not None:
            raise UsageError(f"the ToD level is for --scope tod, and the scope is {scope!r}; give either --tod or another scope")
        if target is not None and (ratio is not None or scope != "uniform" or ratios is not None):
            raise UsageError("the target sets how many channels each group loses; give it without --ratio, --ratios and --scope")
        self.target = Target.parse(target) if isinstance(target, str) else target
        given: dict[str, Any] = {name: value for name, value in (("ratio", ratio), ("tod", tod)) if value is not None}
        own = read_table(ratios, "--ratios")
        self.limits = Limits(scope=scope, min_channels=min_channels, round_to=round_to, ratios=own, **given)
        self.compensate = compensate
        if profile is not None and round_to != AUTO and (self.target is None or self.target.kind != SPEED):
            raise UsageError("a profile is for --round-to auto and --target latency; give one of them, or no --profile")
        self._pacer = Pacer(profile, seed=seed)
        self.rotate, self._turned = rotate, list[str]()
        self.speed: Speed | None = None
        self._own: Scene | None = None
        self._whole: Scene | None = None
        self._refitted: tuple[Standing, Standing] | None = None
        self._interval = interval
        self._table = scores if scores is None or isinstance(scores, ScoreTable) else ScoreTable.load(scores)
        parts = {"*": clusters} if isinstance(clusters, int) else read_table(clusters, "--clusters")
        inputs = interval or (0.0, 1.0)
        self._options = Options(seed, params, recursive, pool, inputs, compat, parts, samples, analysis)
        self._protecting = protection
        self._set(self._first if criterion == "auto" else criterion)

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

    def look_at(self, data: Dataset | None) -> None:
        """Take the interval of the inputs from data, where none was given; 0 to 1 without."""
        floats = [] if data is None else [v for v in data.inputs.values() if v.dtype.kind == "f"]
        if self._interval is None and floats:
            low, high = min(float(v.min()) for v in floats), max(float(v.max()) for v in floats)
            if low < high:
                self._options = replace(self._options, interval=(low, high))
                self._whole = None
                self._set(self._given)

    def nominate(
        self, model: Source, ratio: float | None = None, *, data: Dataset | None = None, freeze: tuple[str, ...] = ()
    ) -> Plan:
        """The plan by which a share of a model's channels leaves. The model itself is not changed.

        Raises:
            ModelError: the model can't be read or loaded by onnxruntime.
            OptionError: the ratio is outside its range.
        """
        graph = load(model)
        standing = self.start(graph, lambda g: analyse(g, freeze=freeze), data)
        if self.target is not None and ratio is None:
            return self.reach(standing, self.target, graph, data)[0].plan
        return self.step(standing, self.limits.ratio if ratio is None else ratio, data).plan

    def start(self, graph: Graph, analyse: Analyse, data: Dataset | None = None) -> Standing:
        """A model of which nothing has left."""
        return self.prepared(Standing.of(analyse(graph), analyse), data)

    def prepared(self, standing: Standing, data: Dataset | None = None) -> Standing:
        """A model before any choice, its channels turned where the criterion is of those that weigh them up anew."""
        self._turned, self._own = [], None
        self._own = self._look(standing, data)
        if self.rotate and isinstance(self._criterion, Obs):
            standing, self._turned = rotated(standing, self._own, lambda one: self._look(one, data))
        return standing

    def step(self, standing: Standing, ratio: float, data: Dataset | None = None) -> Standing:
        """Let more channels leave until a share of those that there were at the start is gone.

        Raises:
            OptionError: the ratio is outside its range.
        """
        limits, groups = replace(self.limits, ratio=ratio), range(len(standing.coupling.groups))
        scene = self._scene(standing, data)
        scores = [self._rank(scene, n, data) for n in groups] if limits.scope != "uniform" else []
        protection = [self._rank(scene, n, data, self._protection) for n in groups] if limits.scope == "tod" else []
        part = ratio / self.limits.ratio if self.limits.ratio else 1.0
        own = [None if r is None else r * part for r in chosen(standing.base, self.limits.ratios, "--ratios")]
        there = [scene.group(n) for n in groups]

        def cut(rungs: Rungs | None) -> Standing:
            chosen = counts(there, standing.sizes, scores, replace(limits, rungs=rungs), own, protection)
            return self.take(standing, chosen, data)

        if limits.round_to != AUTO:
            return self.compensated(cut(None), data)
        found, self.speed = self._pacer.fastest(standing.base.graph, self._pacer.rungs(standing), cut)
        return self.compensated(found, data)

    def reach(self, standing: Standing, target: Target, original: Graph, data: Dataset | None = None) -> tuple[Standing, Met]:
        """Let as many channels of each group leave as meet a target, with the least error.

        Args:
            original: what the target is a share of, and what the model is compared with on the data.

        Raises:
            TargetError: no model meets it.
            UsageError: there are no data, or no labels, to measure by.
            RepairError: the cut needs a size corrected that can't be.
        """
        judged = Judged.by(target.kind, original, data) if target.needs_data else None
        scene = self._scene(standing, data)
        groups = [scene.group(n) for n in range(len(standing.coupling.groups))]
        scores = [self._rank(scene, n, data) for n in range(len(groups))]
        curves = [self._curve(scene, n, values) for n, values in enumerate(scores)]
        orders = [group.roots[lowest(values, group.size)] for group, values in zip(groups, scores, strict=True)]
        whole = cost(original, infer(original) if original is not standing.coupling.graph else standing.coupling.shapes)
        price: Callable[[Standing], Cost | None] = _price
        if target.size == SPEED:
            footprint: Footprint
            footprint, time = self._pacer.pace(standing, orders, original)
            whole = replace(whole, latency=time)
            price = partial(self._timed, original, time, False)
        elif self.limits.round_to == AUTO and target.size == "macs":  # of work, that which takes longest is worth most
            footprint = self._pacer.pace(standing, orders, original, unit=whole.macs)[0]
            price = partial(self._timed, original, whole.macs, True) if target.kind == "macs" else _price
        else:
            footprint = Footprint(standing.coupling, target.size, standing.removed, orders)
        met, timed = list[Met](), isinstance(footprint, Pace)

        def cut(rungs: Rungs | None) -> Standing:
            limits = self.limits if rungs is None else replace(self.limits, rungs=rungs)
            sizes = zip(groups, standing.sizes, strict=True)
            allowed = [removable(group, size, limits, target.max_ratio) for group, size in sizes]
            work = Footprint(standing.coupling, target.size, standing.removed, orders) if timed and target.size != SPEED else None
            fit = Fit(
                target,
                Knapsack(curves, allowed, footprint),
                whole,
                lambda counts: self.take(standing, counts, data),
                price,
                None if judged is None else lambda found: judged.lost(self.compensated(found, data).cut().ready()),
                "" if judged is None else judged.measure,
                not timed,
                None if work is None else Knapsack(curves, allowed, work),
                work is not None and rungs is not None and not rungs.finest,
            )
            found, how = fit.find()
            met.append(how)
            return found

        if self.limits.round_to != AUTO:
            float_only = self._pacer.rungs(standing, ("float",)) if target.size == SPEED and self.limits.round_to == 1 else None
            return self.compensated(cut(float_only), data), met[-1]
        found, self.speed = self._pacer.fastest(original, self._pacer.rungs(standing), cut)
        return self.compensated(found, data), met[-1]

    def _timed(self, original: Graph, whole: int, sized: bool, standing: Standing) -> Cost | None:
        """What a cut model costs (if ``sized``), and how much of the original's time at most, if it is timed on this machine."""
        known = _price(standing) if sized else Cost(0, 0, 0)
        if known is None or not self._pacer.here:
            return known if sized else None
        left = self._pacer.time(standing, original).high if standing.plan.cuts else 1.0
        return replace(known, latency=round(whole * left))

    def take(self, standing: Standing, wanted: Sequence[int], data: Dataset | None = None) -> Standing:
        """Let so many more channels of each group leave."""
        scene = self._scene(standing, data)
        whole = self._whole
        assert whole is not None, "made along with the scene"
        for number, count in enumerate(wanted):
            while count:
                pairs = self._choose(scene, number, count, data)
                edits = merged(scene, number, pairs) if self._mode == "merge" else []
                standing = standing.without(scene.group(number).roots[pairs.leaves]).edited(edits)
                scene = scene.after(standing.coupling, standing.removed, standing.heirs)
                again = self._options.recursive and not self._options.compat and len(pairs.leaves)
                count = count - len(pairs.leaves) if again else 0
            if (
                self._mode == "least-squares"
                and not self._sequential(data)
                and scene.group(number).size < whole.group(number).size
            ):
                standing = standing.edited(refitted(scene, whole, number))
                scene = scene.after(standing.coupling, standing.removed, standing.heirs)
        return standing

    def compensated(self, standing: Standing, data: Dataset | None = None) -> Standing:
        """Let what stays take over from all that has left, layer by layer."""
        if self._mode != "least-squares" or not self._sequential(data) or not standing.plan.sites:
            return standing
        if self._refitted is None or self._refitted[0] is not standing:
            whole = self._whole
            assert whole is not None, "made when the channels were chosen"
            self._refitted = standing, standing.edited(fitted(whole, standing.removed))
        return self._refitted[1]

    def _sequential(self, data: Dataset | None) -> bool:
        """Whether layers are fitted once everything has left, rather than group by group."""
        return data is not None or isinstance(self._criterion, Curved)

    def _scene(self, standing: Standing, data: Dataset | None) -> Scene:
        """The model as it is; what is known of it as it was at first is kept."""
        if self._whole is None or self._whole.coupling is not standing.base or self._whole.data is not data:
            self._whole = self._look(Standing.of(standing.base, standing.analyse, standing.gone), data)
        return self._whole.after(standing.coupling, standing.removed, standing.heirs)

    def _look(self, standing: Standing, data: Dataset | None) -> Scene:
        """A model before any choice, as criteria see it."""
        interval = self._options.interval if self._interval or data is not None else None
        return Scene(standing.coupling, standing.removed, interval, data=data, seed=self._options.seed, like=self._own)

    @property
    def criterion(self) -> Criterion:
        """What says which channels matter."""
        return self._criterion

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides what is chosen, as JSON data. An object's criterion goes by the name of its type."""
        name = _name(self._given)
        limits = {k: v for k, v in asdict(self.limits).items() if k not in ("ratio", "rungs")}
        target = {} if self.target is None else {"target": self.target.to_dict()}
        own = {"criterion": name, "compensate": self.compensate, "rotate": self.rotate}
        return {**own, **limits, **target, **asdict(self._options)}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how channels were chosen."""
        turned = f"channels of {len(self._turned)} of the groups are turned to principal axes first: {', '.join(self._turned)}"
        notes = [turned] if self._turned else []
        return (*notes, *self._pacer.notes, *(() if self._whole is None else self._whole.notes))

    def score_table(self) -> ScoreTable:
        """The scores by which channels were chosen, those of the criterion first, of the model as it was at first.

        Where channels were turned, those of the model's own channels.

        Raises:
            UsageError: nothing has been chosen yet.
        """
        if self._whole is None:
            raise UsageError("there are no scores yet; they are those of the channels that a run chooses from")
        chosen = {_name(self._given): self._criterion}
        if self.limits.scope == "tod":
            chosen[_name(self._protecting)] = self._protection
        whole = self._own if self._turned and self._own is not None else self._whole
        scores = {
            name: {group: self._rank(whole, n, whole.data, criterion) for n, group in enumerate(named(whole.coupling.groups))}
            for name, criterion in chosen.items()
        }
        return ScoreTable(whole.graph.sha256, scores)

    @property
    def _first(self) -> str:
        """The criterion where none was named."""
        if self._table is not None:
            return next(iter(self._table.scores), "l1")
        return "wasserstein" if self.limits.scope == "tod" else "l1"

    @property
    def _mode(self) -> str:
        """How what leaves is made up for."""
        own = self._criterion.compensation if isinstance(self._criterion, Nominator) else "none"
        return own if self.compensate == "auto" else self.compensate

    def _set(self, given: str | Criterion) -> None:
        self._given = given
        self._criterion = self._find(given)
        self._protection = self._find(self._protecting) if self.limits.scope == "tod" else self._criterion

    def _find(self, given: str | Criterion) -> Criterion:
        if self._table is not None and isinstance(given, str) and given in self._table.scores:
            return Saved(given, self._table)
        return find_criterion(given, self._options)

    def _rank(self, scene: Scene, number: int, data: Dataset | None, criterion: Criterion | None = None) -> Scores:
        criterion = self._criterion if criterion is None else criterion
        found = criterion.rank(scene, number) if isinstance(criterion, Nominator) else None
        return criterion(scene.group(number), scene.weights, data) if found is None else found

    def _curve(self, scene: Scene, number: int, scores: Scores) -> Scores:
        """The error once ever more of a group's channels have left."""
        if isinstance(self._criterion, Curved):
            return self._criterion.curve(scene, number)
        makers = {member.site.tensor for member in scene.group(number).producers(scene.weights)}
        return summed(scores, max(1, len(makers)))

    def _choose(self, scene: Scene, number: int, count: int, data: Dataset | None) -> Pairs:
        if self.limits.scope == "tod":  # whose counts are of the lowest scores
            leaves = lowest(self._rank(scene, number, data), count)
            return Pairs(leaves, np.full(len(leaves), -1))
        found = self._criterion.nominate(scene, number, count) if isinstance(self._criterion, Nominator) else None
        if found is not None:
            return found
        leaves = lowest(self._criterion(scene.group(number), scene.weights, data), count)
        return Pairs(leaves, np.full(len(leaves), -1))


def _name(given: str | Criterion) -> str:
    return given if isinstance(given, str) else type(given).__name__


def _price(standing: Standing) -> Cost | None:
    """What a model costs once it is cut; None where it is too large to be cut just for that."""
    pruned = standing.cut() if standing.plan.cuts else standing.coupling.graph.assemble()
    if pruned.large:
        return None
    graph = load(pruned.complete())
    return cost(graph, infer(graph))
