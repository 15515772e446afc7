"""Prune: load, find the coupled channels, score, plan, cut, prove, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune import data as datasets
from onnxprune import lossless
from onnxprune.channels import ChannelGroup, Coupling, analyse
from onnxprune.cost import Cost, cost
from onnxprune.errors import UsageError
from onnxprune.evaluate import measure
from onnxprune.files import Scratch, Source, place, save
from onnxprune.graph import Graph, load
from onnxprune.importance import CRITERIA
from onnxprune.labels import BoolArray, Reason
from onnxprune.lazy import AnyModel, LazyModel
from onnxprune.plan import Plan, PlanEdit, allocate, check_limits, make_plan, removed_by, rounded
from onnxprune.proof import PRUNED, Proof
from onnxprune.report import GroupRow, Report
from onnxprune.shapes import infer, origin
from onnxprune.surgery import RepairError, apply
from onnxprune.weights import Array

Progress = Callable[[str], None]
"""Called with a few words whenever a new stage begins."""

INLINE_LIMIT = 1_900_000_000
"""A model larger than this can't be one protobuf file; its weights go beside it."""


@dataclass(frozen=True)
class Result:
    """A pruned model with the plan that made it, the report of how, and the ``source`` it was made from."""

    pruned: AnyModel
    plan: Plan
    report: Report
    source: Source
    external_data: bool = False
    scratch: Scratch | None = None

    @cached_property
    def model(self) -> ModelProto:
        """The pruned model as a proto. A large one is read from its files when this is first asked for."""
        return self.pruned.complete() if isinstance(self.pruned, LazyModel) else self.pruned

    def save(self, path: str | Path, *, move: bool = False) -> None:
        """Write the model; weights go to ``<name>.data`` beside it if the original kept them apart.

        Args:
            move: a large model's temporary files become the output, which is faster; it can't be saved again then.

        Raises:
            OutputError: the path is the input or can't be written. What was there before is still there.
        """
        size = self.pruned.nbytes if isinstance(self.pruned, LazyModel) else self.pruned.ByteSize()
        external = self.external_data or size > INLINE_LIMIT
        if self.scratch is not None and external:
            place(self.scratch.folder / PRUNED, path, move=move, source=self.source)
        else:
            save(self.pruned, path, external=external, source=self.source)


def prune(
    model: Source,
    *,
    ratio: float = 0.5,
    criterion: str = "l1",
    scope: str = "uniform",
    data: str | Path | Mapping[str, Array] | None = None,
    seed: int = 0,
    min_channels: int = 1,
    round_to: int = 1,
    freeze: tuple[str, ...] = (),
    mixing: bool = False,
    plan: Plan | str | Path | None = None,
    free: bool = False,
    scratch: str | Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Cut a share of the channels out of a model and prove that the result equals the masked original.

    Args:
        model: path of an ONNX file, or a proto (which is not changed).
        ratio: fraction of channels to remove, 0 <= ratio < 1.
        criterion: a name from ``onnxprune.importance.CRITERIA``.
        scope: ``"uniform"`` (the share is removed from every group) or ``"global"`` (all channels ranked together).
        data: an ``.npz`` path or arrays by input name; used to measure accuracy and agreement, not to choose.
        seed: for everything random.
        min_channels: what every group keeps at least.
        round_to: axes keep a multiple of this many channels, rounded up.
        freeze: shell-style patterns of node or tensor names to leave alone.
        mixing: also cut axes that a node normalises or averages over (LayerNormalization, RMSNorm, Softmax, means). The
            remaining values change by that, so that only the other cuts are proved; the report marks such groups.
        plan: replay this plan instead of choosing channels.
        free: first remove what can go without any change of the outputs; the share is taken of what is left.
        scratch: folder for the temporary files that a model over 0.5 GB needs; by default the system's.
        progress: called at each stage.

    Raises:
        OnnxpruneError: bad input, or the proof failed; see :mod:`onnxprune.errors`.
    """
    if criterion not in CRITERIA:
        raise UsageError(f"criterion {criterion!r} does not exist; choose one of {', '.join(sorted(CRITERIA))}")
    if free and plan is not None:
        raise UsageError("a plan says already what leaves; give either --plan or --free")
    if free and mixing:
        raise UsageError("what mixing cuts is never free; give either --mixing or --free")
    clock = _Clock(progress)
    with clock("load"):
        graph = load(model)
        dataset = None if data is None else datasets.read(data, graph.inputs)
    choose = _Choice(ratio, criterion, scope, seed, min_channels, round_to, _read_plan(plan), free)
    cut = _cut(graph, freeze, mixing, choose, clock)
    coupling, removed, pruned = cut.coupling, cut.removed, cut.pruned
    with clock("plan"):
        made = replace(make_plan(coupling, removed), edits=cut.edits)
    if not (made.sites or made.copies):
        pruned = graph.assemble()
    with clock("verify"):
        proof = Proof(graph, coupling, seed, None if scratch is None else Path(scratch))
        proved = proof.prove(removed, pruned, free=None if cut.free is None else cut.free.removed)
    with clock("report"):
        before, after = cost(graph, coupling.shapes), _cost_of(proved.graph)
        kept = [int((~removed[g.roots]).sum()) for g in coupling.groups]
        rows = tuple(GroupRow(g, k) for g, k in zip(coupling.groups, kept, strict=True))
        metrics: dict[str, dict[str, Any]] = {"before": {}, "after": {}}
        if dataset is not None:
            metrics = _metrics(graph, proved.model, dataset)
    report = Report(before, after, rows, coupling.frozen, proved.verification, clock.elapsed, metrics, cut.free_rows)
    return Result(proved.model, made, report, graph.source, graph.weights.has_external_data, proved.scratch)


def inspect(model: Source, *, freeze: tuple[str, ...] = (), mixing: bool = False, progress: Progress | None = None) -> Report:
    """What could be cut: the channel groups, and what is frozen by which node. Options as in :func:`prune`.

    Raises:
        ModelError: the model can't be read or loaded by onnxruntime.
    """
    clock = _Clock(progress)
    with clock("load"):
        graph = load(model)
    with clock("analyse"):
        coupling = analyse(graph, freeze=freeze, mixing=mixing)
    size = cost(graph, coupling.shapes)
    rows = tuple(GroupRow(g, g.size) for g in coupling.groups)
    return Report(size, size, rows, coupling.frozen, None, clock.elapsed)


@dataclass(frozen=True)
class _Choice:
    """How the channels that leave are chosen."""

    ratio: float
    criterion: str
    scope: str
    seed: int
    min_channels: int
    round_to: int
    plan: Plan | None
    free: bool

    def removed(self, coupling: Coupling, gone: BoolArray | None, clock: _Clock) -> BoolArray:
        """The components that leave; those in ``gone`` have left already, and the share is taken of the others."""
        if self.plan is not None:
            return removed_by(coupling, self.plan)
        weights = coupling.graph.weights
        if gone is not None and gone.any():
            groups = tuple(g.only(~gone[g.roots]) for g in coupling.groups)
            coupling, weights = replace(coupling, groups=groups), lossless.Left(coupling, gone)
        rng = np.random.default_rng(self.seed)
        with clock("score"):
            scores = [CRITERIA[self.criterion](group, weights, rng) for group in coupling.groups]
            removed = allocate(
                coupling,
                scores,
                ratio=self.ratio,
                scope=self.scope,
                min_channels=self.min_channels,
                round_to=self.round_to,
            )
        return removed if gone is None else removed | gone

    def keeps(self, group: ChannelGroup, needed: int) -> int:
        """How many channels a group keeps if so many are needed."""
        return rounded(group, needed, self.min_channels, self.round_to)


@dataclass(frozen=True)
class _Cut:
    """A model cut: ``coupling`` is that of the graph after the plan's ``edits``; ``free`` left at no cost."""

    coupling: Coupling
    removed: BoolArray
    pruned: LazyModel
    edits: tuple[PlanEdit, ...]
    free: lossless.Free | None

    @property
    def free_rows(self) -> tuple[lossless.FreeRow, ...] | None:
        return None if self.free is None else self.free.rows


def _cut(graph: Graph, freeze: tuple[str, ...], mixing: bool, choose: _Choice, clock: _Clock) -> _Cut:
    """Analyse, choose and cut. What turns out to be beyond repair is frozen, with the reason, and the rest tried again."""
    hold: dict[str, Reason] = {}
    check_limits(choose.ratio, choose.min_channels, choose.round_to)
    edits = choose.plan.edits if choose.plan is not None else ()
    start = lossless.edited(graph, edits)
    while True:
        free = None
        if choose.free:
            with clock("free"):
                free = lossless.find(graph, lambda g: analyse(g, freeze=freeze, hold=hold), choose.keeps)  # noqa: B023
            coupling, edits = free.coupling, free.edits
        else:
            with clock("analyse"):
                coupling = analyse(start, freeze=freeze, hold=hold, mixing=mixing)
        removed = choose.removed(coupling, None if free is None else free.removed, clock)
        try:
            with clock("surgery"):
                return _Cut(coupling, removed, apply(coupling, removed), edits, free)
        except RepairError as error:
            node = error.node
            measured = origin(graph, coupling.shapes, node.inputs).measured
            names = [n for n in (*node.inputs, *node.outputs, *measured) if n and n not in hold]
            if not names:
                raise
            hold |= {name: Reason(node.label, error.why) for name in names}


def _cost_of(graph: Graph) -> Cost:
    return cost(graph, infer(graph))


def _read_plan(plan: Plan | str | Path | None) -> Plan | None:
    return plan if plan is None or isinstance(plan, Plan) else Plan.load(plan)


def _metrics(graph: Graph, pruned: AnyModel, dataset: datasets.Dataset) -> dict[str, dict[str, Any]]:
    found = measure((graph.assemble().ready(), pruned), dataset, graph.inputs)
    before, after = found.pop("accuracy", (None, None))
    pairs = {"before": {"accuracy": before}, "after": {"accuracy": after, **found}}
    return {side: {name: value for name, value in values.items() if value is not None} for side, values in pairs.items()}


class _Clock:
    """Adds up the seconds of each stage and tells the caller which one has begun."""

    def __init__(self, progress: Progress | None) -> None:
        self.elapsed: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self._progress is not None:
            self._progress(stage)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.elapsed[stage] = self.elapsed.get(stage, 0.0) + time.perf_counter() - start
