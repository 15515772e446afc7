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
from onnxprune.channels import Coupling, analyse
from onnxprune.cost import Cost, cost
from onnxprune.errors import UsageError, VerificationError
from onnxprune.evaluate import Verification, check_runs, measure, verify
from onnxprune.files import Scratch, Source, place, save
from onnxprune.graph import Graph, load
from onnxprune.importance import CRITERIA
from onnxprune.labels import BoolArray, Reason
from onnxprune.lazy import AnyModel, LazyModel
from onnxprune.plan import Plan, allocate, make_plan, removed_by
from onnxprune.report import GroupRow, Report
from onnxprune.runtime import Session
from onnxprune.shapes import infer
from onnxprune.surgery import RepairError, apply, mask
from onnxprune.weights import Array

Progress = Callable[[str], None]
"""Called with a few words whenever a new stage begins."""

INLINE_LIMIT = 1_900_000_000
"""A model larger than this can't be one protobuf file; its weights go beside it."""


_PRUNED, _MASKED = "pruned.onnx", "masked.data"
"""What a large pruned model and the weights of the masked original are called in the scratch folder."""


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
            place(self.scratch.folder / _PRUNED, path, move=move, source=self.source)
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
        scratch: folder for the temporary files that a model over 0.5 GB needs; by default the system's.
        progress: called at each stage.

    Raises:
        OnnxpruneError: bad input, or the proof failed; see :mod:`onnxprune.errors`.
    """
    if criterion not in CRITERIA:
        raise UsageError(f"criterion {criterion!r} does not exist; choose one of {', '.join(sorted(CRITERIA))}")
    clock = _Clock(progress)
    with clock("load"):
        graph = load(model)
        dataset = None if data is None else datasets.read(data, graph.inputs)
    choose = _Choice(ratio, criterion, scope, seed, min_channels, round_to, _read_plan(plan))
    coupling, removed, pruned = _cut(graph, freeze, mixing, choose, clock)
    with clock("plan"):
        made = make_plan(coupling, removed)
    if not (made.sites or made.copies):
        pruned = graph.assemble()
    with clock("verify"):
        proved = _prove(coupling, removed, pruned, seed, None if scratch is None else Path(scratch))
    with clock("report"):
        before, after = cost(graph, coupling.shapes), _cost_of(proved.graph)
        kept = [int((~removed[g.roots]).sum()) for g in coupling.groups]
        rows = tuple(GroupRow(g, k) for g, k in zip(coupling.groups, kept, strict=True))
        metrics: dict[str, dict[str, Any]] = {"before": {}, "after": {}}
        if dataset is not None:
            metrics = _metrics(graph, proved.model, dataset)
    report = Report(before, after, rows, coupling.frozen, proved.verification, clock.elapsed, metrics)
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

    def removed(self, coupling: Coupling, clock: _Clock) -> BoolArray:
        if self.plan is not None:
            return removed_by(coupling, self.plan)
        rng = np.random.default_rng(self.seed)
        with clock("score"):
            scores = [CRITERIA[self.criterion](group, coupling.graph.weights, rng) for group in coupling.groups]
            return allocate(
                coupling,
                scores,
                ratio=self.ratio,
                scope=self.scope,
                min_channels=self.min_channels,
                round_to=self.round_to,
            )


def _cut(
    graph: Graph, freeze: tuple[str, ...], mixing: bool, choose: _Choice, clock: _Clock
) -> tuple[Coupling, BoolArray, LazyModel]:
    """Analyse, choose and cut. What turns out to be beyond repair is frozen, with the reason, and the rest tried again."""
    hold: dict[str, Reason] = {}
    while True:
        with clock("analyse"):
            coupling = analyse(graph, freeze=freeze, hold=hold, mixing=mixing)
        removed = choose.removed(coupling, clock)
        try:
            with clock("surgery"):
                return coupling, removed, apply(coupling, removed)
        except RepairError as error:
            node = error.node
            names = [n for n in (*node.inputs, *node.outputs) if n and n not in hold]
            if not names:
                raise
            hold |= {name: Reason(node.label, error.why) for name in names}


@dataclass(frozen=True)
class _Proved:
    """The pruned model, itself as a graph, and what proves it; ``scratch`` has its files where it is large."""

    model: AnyModel
    graph: Graph
    verification: Verification
    scratch: Scratch | None = None


def _prove(coupling: Coupling, removed: BoolArray, pruned: LazyModel, seed: int, folder: Path | None) -> _Proved:
    """Compare with the masked original. Large models are written first, and read back from these files.

    Where some cuts are not exact, a model without these is proved instead, and the pruned one is only run.
    """
    mixed = removed & coupling.components.mixed
    if mixed.any():
        proof = _prove(coupling, removed & ~mixed, apply(coupling, removed & ~mixed), seed, folder)
        if proof.scratch is not None:
            proof.scratch.close()
        final = _finished(pruned, folder, 0)
        with _closing(final.scratch):
            check_runs(coupling.graph, coupling.shapes, final.model, seed=seed)
        return replace(final, verification=proof.verification)
    plan = make_plan(coupling, removed)
    if not (plan.sites or plan.copies):
        model = pruned.ready()
        Session(model, optimise=False)  # what onnxruntime can't load is refused also where nothing is cut
        return _Proved(model, coupling.graph if pruned.large else load(pruned.complete()), _NOTHING)
    masked = mask(coupling.graph, plan)
    final = _finished(pruned, folder, masked.loose_bytes if masked.large else None)
    with _closing(final.scratch):
        if final.scratch is None:
            return replace(final, verification=_verify(coupling, masked.complete(), final.model, seed))
        verification = _verify(coupling, final.scratch.hold(masked, _MASKED), final.model, seed)
        (final.scratch.folder / _MASKED).unlink()
        return replace(final, verification=verification)


_NOTHING = Verification(True, 0.0, 0.0, 0)


def _finished(pruned: LazyModel, folder: Path | None, room: int | None) -> _Proved:
    """The pruned model in memory, or where ``room`` for more bytes is asked, or it is large, in files."""
    if room is None or (not room and not pruned.large):
        model = pruned.complete()
        return _Proved(model, load(model), _NOTHING)
    scratch = Scratch(folder, room + pruned.nbytes)
    with _closing(scratch):
        save(pruned, scratch.folder / _PRUNED, external=True)
        graph = load(scratch.folder / _PRUNED)
        return _Proved(graph.assemble(), graph, _NOTHING, scratch)


@contextmanager
def _closing(scratch: Scratch | None) -> Iterator[None]:
    """Remove the files if something goes wrong."""
    try:
        yield
    except BaseException:
        if scratch is not None:
            scratch.close()
        raise


def _verify(coupling: Coupling, masked: AnyModel, pruned: AnyModel, seed: int) -> Verification:
    verification = verify(coupling.graph, coupling.shapes, masked, pruned, seed=seed)
    if not verification.passed:
        raise VerificationError(
            f"the pruned model differs from the masked original by {verification.max_rel_error:.1e} of the output's scale; "
            "nothing was written. This is a defect of onnxprune: please report the model, or freeze the part it is in"
        )
    return verification


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
