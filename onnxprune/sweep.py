"""Sweeps: what it costs in accuracy to cut each layer alone, or all, by how much; after MIC-Laboratory's Pruning Engine."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import data as datasets
from onnxprune.allocation import Limits, Table, counts
from onnxprune.channels import named
from onnxprune.clock import Progress
from onnxprune.cost import cost
from onnxprune.data import Data, Dataset
from onnxprune.errors import OptionError
from onnxprune.evaluate import accuracy, cross_entropy, find_scores, predict
from onnxprune.files import Source, write, write_json
from onnxprune.graph import Graph, load
from onnxprune.importance import Clustered, Criterion
from onnxprune.importance.calibration import Calibration
from onnxprune.progressive import Run
from onnxprune.report import columns, draw_shares
from onnxprune.report.text import shorten
from onnxprune.sampler import Sampler
from onnxprune.shapes import infer
from onnxprune.standing import Standing
from onnxprune.surgery import RepairError

SCHEMA = "onnxprune.sweep/1"
MODES: Mapping[str, tuple[float, ...]] = {
    "layerwise": tuple(k / 10 for k in range(10)),
    "full": tuple(k / 20 for k in range(20)),
    "clusters": (0.1,),
}
"""What may be swept, and at which ratios where nothing is said; the Pruning Engine's."""


@dataclass(frozen=True, slots=True)
class Row:
    """One model of a sweep.

    ``group``: the one that was cut, empty for all. ``ratio``: the share of channels that was to go, ``channels``: how many
    went. ``clusters``: into how many its filters were parted, where that was searched for. ``accuracy``: share of samples;
    ``loss``: cross-entropy in nats, None where the model gives no probabilities, or no finite ones.
    """

    group: str
    ratio: float
    clusters: int | None
    channels: int
    accuracy: float
    loss: float | None
    macs: int
    parameters: int


@dataclass(frozen=True)
class Sweep:
    """All rows of a sweep, group by group, and the original (``ratio`` 0) by itself. ``notes``: how it was measured."""

    mode: str
    criterion: str
    samples: int
    original: Row
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> dict[str, list[Row]]:
        """The rows of each group, by ratio."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.group, []).append(row)
        return found

    @property
    def scores(self) -> dict[str, float | None]:
        """How much work each group saves for the accuracy it costs: the higher, the better it can be cut.

        The mean change of MACs from one ratio to the next over that of accuracy, both as shares of the original's MACs and of
        all samples; None where accuracy never changes. Groups whose MACs never change are left out.
        """
        changes = self._changes()
        return {name: work / lost if lost else None for name, (work, lost) in changes.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """A ratio for each group, as ``--ratios`` takes them: the less accuracy a group costs, the more it loses.

        ``top (1 - (x - min) / (max - min))``, where ``x`` is accuracy lost over work saved (one over the group's score) and
        ``top`` the largest ratio of the sweep.
        """
        costs = {name: lost / work for name, (work, lost) in self._changes().items()}
        low, high = min(costs.values(), default=0.0), max(costs.values(), default=0.0)
        top = max((row.ratio for row in self.rows), default=0.0)
        return {name: round(top * (1 - (x - low) / (high - low or 1.0)), 4) for name, x in costs.items()}

    @property
    def clusters(self) -> dict[str, int]:
        """The number of clusters by which each group loses least: the best accuracy, of equals the lowest loss."""
        found = {}
        for name, rows in self.groups.items():
            tried = [row for row in rows if row.clusters is not None]
            if tried:
                best = min(tried, key=lambda r: (-(r.accuracy), math.inf if r.loss is None else r.loss, r.clusters))
                found[name] = best.clusters or 1
        return found

    def _changes(self) -> dict[str, tuple[float, float]]:
        """The mean change of work and of accuracy from one ratio to the next, by group."""
        found = {}
        for name, rows in self.groups.items():
            line = [self.original, *(row for row in rows if row.ratio)]
            work = _mean_change([row.macs for row in line]) / max(self.original.macs, 1)
            if work:
                found[name] = work, _mean_change([row.accuracy for row in line])
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON data (schema ``onnxprune.sweep/1``)."""
        found = {"schema": SCHEMA, "mode": self.mode, "criterion": self.criterion, "samples": self.samples}
        found |= {"original": asdict(self.original), "rows": [asdict(row) for row in self.rows], "notes": list(self.notes)}
        if self.mode == "layerwise":
            found |= {"scores": self.scores, "ratios": self.ratios}
        return found | ({"clusters": self.clusters} if self.mode == "clusters" else {})

    def save(self, path: str | Path) -> None:
        """Write as CSV (the rows) or JSON (everything), as the name ends.

        Raises:
            OutputError: the file can't be written.
        """
        if Path(path).suffix.lower() != ".csv":
            write_json(self.to_dict(), path, "sweep")
            return
        text = io.StringIO()
        table = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) for row in dict.fromkeys((self.original, *self.rows)))
        write(text.getvalue().encode(), path, "sweep")

    def draw(self, path: str | Path, *, title: str = "") -> None:
        """Draw accuracy over ratio, a curve for each group; where all are cut, with what is left of MACs and parameters.

        Raises:
            OptionError, OutputError: as in :func:`~onnxprune.report.check_picture`; or clusters were searched for.
        """
        if self.mode == "clusters":
            raise OptionError("there is nothing to draw where clusters are searched for; take mode layerwise or full")
        shares = sorted({row.ratio for row in self.rows})
        curves = {name or "accuracy": [row.accuracy for row in rows] for name, rows in self.groups.items()}
        for name, rows in self.groups.items() if self.mode == "full" else ():
            curves[f"MACs{name}"] = [row.macs / max(self.original.macs, 1) for row in rows]
            curves[f"parameters{name}"] = [row.parameters / max(self.original.parameters, 1) for row in rows]
        draw_shares(shares, curves, path, title=title)

    def __str__(self) -> str:
        parts = [self._full() if self.mode == "full" else self._by_group()]
        return "\n\n".join([*parts, *(f"note: {note}" for note in self.notes)])

    def _full(self) -> str:
        rows = [("ratio", "accuracy", "loss", "MACs", "parameters")]
        rows += [
            (f"{r.ratio:g}", _shown(r.accuracy), _shown(r.loss), f"{r.macs:,}", f"{r.parameters:,}")
            for r in dict.fromkeys((self.original, *self.rows))
        ]
        return columns(rows, right=range(5))

    def _by_group(self) -> str:
        """The accuracy of each group at each ratio, or with each number of clusters the best."""
        if self.mode == "clusters":
            rows = [("group", "clusters", "accuracy", "lowest accuracy")]
            for name, found in self.groups.items():
                values = [r.accuracy for r in found]
                rows.append((shorten(name, 48), str(self.clusters.get(name, "")), _shown(max(values)), _shown(min(values))))
            return columns(rows, right=(1, 2, 3))
        shares = sorted({row.ratio for row in self.rows})
        table = [("group", *(f"{share:g}" for share in shares), "MACs / accuracy", "ratio")]
        scores, ratios = self.scores, self.ratios
        for name, found in self.groups.items():
            by_ratio = {row.ratio: row for row in found}
            cells = [_shown(by_ratio[share].accuracy) if share in by_ratio else "" for share in shares]
            table.append((shorten(name, 32), *cells, _shown(scores.get(name)), _shown(ratios.get(name))))
        return columns(table, right=range(1, len(table[0])))


def sweep(
    model: Source,
    data: Data,
    *,
    mode: str = "layerwise",
    criterion: str | Criterion = "l1",
    ratios: Sequence[float] = (),
    samples: int | None = None,
    clusters: int | Table = None,
    compensate: str = "auto",
    interval: tuple[float, float] | None = None,
    min_channels: int = 1,
    freeze: tuple[str, ...] = (),
    mixing: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sweep:
    """Cut a model in many ways, and measure each on data. Nothing is written, and so nothing is proved.

    The model is analysed, and what its criterion measures is measured, once for all.

    Args:
        model: path of an ONNX file, or a proto (which is not changed).
        data: an ``.npz`` path or arrays by input name, with ``labels``; without, the original's own classes stand in for them.
        mode: ``"layerwise"``: each group alone at each ratio; ``"full"``: all groups at each ratio; ``"clusters"``: each group
            alone at the first ratio, with 1, 2, ..., n/2 - 1 clusters of its n filters.
        ratios: fractions of channels to remove, 0 <= ratio < 1; by default those of ``MODES``.
        samples: how many to take, the first ones; all by default.
        criterion, clusters, compensate, interval, min_channels, freeze, mixing, seed: as in :func:`onnxprune.prune`.
        progress: called before each model.

    Raises:
        OptionError: no such mode, or an option outside its range.
        UsageError: there is no such criterion, or it lacks data; the model is no classifier.
        ModelError, DataError: bad input.
    """
    if mode not in MODES:
        raise OptionError(f"mode is {mode!r}; choose {', '.join(MODES)}")
    wanted = tuple(sorted(set(ratios or MODES[mode])))
    for ratio in wanted:
        Limits(ratio)
    if samples is not None and samples < 1:
        raise OptionError(f"samples are {samples}; give how many to take, at least 1")
    graph = load(model)
    dataset = datasets.read(data, graph.inputs).take(slice(0, samples))
    sampler = Sampler(
        criterion,
        ratio=wanted[-1],
        min_channels=min_channels,
        compensate=compensate,
        interval=interval,
        clusters=clusters,
        seed=seed,
    )
    if mode == "clusters" and not isinstance(sampler.criterion, Clustered):
        raise OptionError("clusters are searched for where a criterion has them; choose one of kmeans-*")
    sampler.look_at(dataset)
    run = Run(graph, sampler, freeze=freeze, mixing=mixing, data=dataset, seed=seed)
    while True:
        standing = sampler.start(graph, run.analyse, dataset)
        trial = _Trial(graph, sampler, standing, dataset, progress or (lambda stage: None))
        try:
            rows = tuple(trial.rows(mode, wanted))
            name = criterion if isinstance(criterion, str) else type(criterion).__name__
            return Sweep(mode, name, dataset.samples, trial.original, rows, tuple(trial.calibration.notes))
        except RepairError as error:
            run.give_way(error, standing.coupling)


class _Trial:
    """Measures cuts of one model."""

    def __init__(
        self, graph: Graph, sampler: Sampler, standing: Standing, data: Dataset, progress: Callable[[str], None]
    ) -> None:
        self.graph, self.sampler, self.standing, self.data, self._progress = graph, sampler, standing, data, progress
        self.calibration = Calibration(standing.coupling, data)
        self._seen: dict[bytes, Row] = {}
        self.groups = named(standing.coupling.groups)
        self.original = self._row("", 0.0, None, standing)

    def rows(self, mode: str, ratios: Sequence[float]) -> Iterator[Row]:
        """One row after the other."""
        if mode == "full":
            for ratio in ratios:
                self._progress(f"all groups at {ratio:g}")
                yield self._row("", ratio, None, self.sampler.step(self.standing, ratio, self.data))
            return
        for number, (name, group) in enumerate(self.groups.items()):
            self._progress(f"{name}, {number + 1} of {len(self.groups)}")
            if mode == "layerwise":
                for ratio in ratios:
                    yield self._row(name, ratio, None, self._alone(number, ratio))
                continue
            criterion = self.sampler.criterion
            assert isinstance(criterion, Clustered), "checked before"
            for clusters in range(1, max(2, group.size // 2)):
                criterion.options = replace(criterion.options, clusters={name: clusters})
                yield self._row(name, ratios[0], clusters, self._alone(number, ratios[0]))

    def _alone(self, number: int, ratio: float) -> Standing:
        """The model once a share of one group has left."""
        limits, groups = replace(self.sampler.limits, ratio=ratio), self.standing.coupling.groups
        wanted = [0] * len(groups)
        wanted[number] = counts(groups, self.standing.sizes, [], limits)[number]
        return self.sampler.take(self.standing, wanted, self.data)

    def _row(self, group: str, ratio: float, clusters: int | None, standing: Standing) -> Row:
        """A cut, measured; one that was measured before is known."""
        key = standing.removed.tobytes()
        if key not in self._seen:
            gone = int(standing.removed[np.concatenate([*(g.roots for g in self.groups.values()), np.zeros(0, np.int64)])].sum())
            made = standing.cut().complete() if gone else self.graph.assemble().complete()
            cut = load(made)
            outputs, size = predict(made, self.data, self.graph.inputs), cost(cut, infer(cut))
            labels, found = self.calibration.labels, find_scores(outputs)
            loss = None if found is None else cross_entropy(found, labels)
            loss = loss if loss is not None and math.isfinite(loss) else None
            self._seen[key] = Row("", 0.0, None, gone, accuracy(outputs, labels), loss, size.macs, size.parameters)
        return replace(self._seen[key], group=group, ratio=ratio, clusters=clusters)


def _mean_change(values: Sequence[float]) -> float:
    return float(np.mean(np.abs([b - a for a, b in pairwise(values)]))) if len(values) > 1 else 0.0


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
