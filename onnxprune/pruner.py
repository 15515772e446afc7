"""Prune: load, find the coupled channels, score, plan, cut, prove, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxprune import data as datasets
from onnxprune.allocation import AUTO, Table
from onnxprune.channels import analyse
from onnxprune.clock import Clock, Progress
from onnxprune.cost import cost
from onnxprune.data import Data
from onnxprune.errors import UsageError
from onnxprune.evaluation import Evaluation
from onnxprune.evaluator import Evaluator
from onnxprune.files import Source
from onnxprune.graph import Graph, load
from onnxprune.importance import Criterion, ScoreTable
from onnxprune.plan import Plan
from onnxprune.profile import DeviceProfile
from onnxprune.progressive import Run, Stage, shares
from onnxprune.quantize import Quantized, quantize
from onnxprune.recorder import Goal, Recorder, timed
from onnxprune.report import GroupRow, Report
from onnxprune.result import Result, unscored
from onnxprune.sampler import Sampler
from onnxprune.shapes import infer
from onnxprune.target import SPEED, Target
from onnxprune.weights import Array


def prune(
    model: Source,
    *,
    ratio: float | None = None,
    criterion: str | Criterion = "auto",
    scope: str = "uniform",
    tod: float | None = None,
    target: str | Target | None = None,
    max_drop: float | None = None,
    max_ratio: float = 0.9,
    best_effort: bool = False,
    scores: ScoreTable | str | Path | None = None,
    analysis: str | Mapping[str, str] = "own",
    samples: int = 32,
    data: Data | None = None,
    seed: int = 0,
    min_channels: int = 1,
    round_to: int | str = 1,
    profile: DeviceProfile | str | Path | None = None,
    ratios: Table = None,
    freeze: tuple[str, ...] = (),
    mixing: bool = False,
    plan: Plan | str | Path | None = None,
    free: bool = False,
    zero: bool = False,
    compensate: str = "auto",
    rotate: bool = True,
    interval: tuple[float, float] | None = None,
    compat: str = "",
    clusters: int | Table = None,
    step: float | None = None,
    epsilons: tuple[float, ...] = (),
    min_accuracy: float | None = None,
    min_robustness: float | None = None,
    tape: str | Path | None = None,
    scratch: str | Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Cut a share of the channels out of a model and prove that the result equals the masked original.

    Args:
        model: path of an ONNX file, or a proto (which is not changed).
        ratio: fraction of channels to remove, 0 <= ratio < 1; by default a half.
        criterion: a name from ``onnxprune.importance.CRITERIA``, or an object that is called like those; by default l1.
        scope: ``"uniform"`` (the share is removed from every group), ``"global"`` (all channels ranked together) or ``"tod"``
            (each group loses as many as two rankings agree on).
        tod, scores, analysis, samples: as in :class:`~onnxprune.Sampler`.
        target: instead of a ratio, what is to be left of the whole model: ``"macs=0.5"``, ``"parameters=300k"``,
            ``"bytes=2MB"``, ``"latency=0.5"``, or what is not to be lost: ``"accuracy-drop=0.01"``, ``"agreement=0.98"``.
        max_drop, max_ratio, best_effort: of the target; see :class:`~onnxprune.target.Target`.
        data: an ``.npz`` path or arrays by input name, with ``labels`` if there are any; used to measure accuracy and
            agreement, and to choose by those criteria that look at activations or gradients.
        seed: for everything random.
        min_channels: what every group keeps at least.
        round_to: axes keep a multiple of this many channels, rounded up; or ``"auto"``: as many as make the model faster, by
            measuring it (see :class:`~onnxprune.Sampler`).
        profile: of the device that ``"auto"`` and latencies are about, or its path; by default this one, measured.
        ratios: numbers by pattern, or a JSON file of them: groups that lose a share of their own; the others lose ``ratio``. A
            pattern stands for groups, by their own name or that of a tensor or node.
        freeze: shell-style patterns of node or tensor names to leave alone.
        mixing: also cut axes that a node normalises or averages over (LayerNormalization, RMSNorm, Softmax, means). The
            remaining values change by that, so that only the other cuts are proved; the report marks such groups.
        plan: replay this plan instead of choosing channels.
        free: first remove what can go without any change of the outputs; the share is taken of what is left.
        zero: write zeros into the channels that leave, instead of cutting them: the model keeps its shapes.
        compensate, rotate, interval, compat, clusters: as in :class:`~onnxprune.Sampler`.
        step: fraction of the channels that leaves at a time, until ``ratio`` is reached.
        epsilons: sizes of the attack (FGSM) under which every step is measured.
        min_accuracy, min_robustness: stop before the first step whose accuracy, or robust accuracy at any epsilon, is lower.
        tape: folder for every step's model and plan and the table of them all. A run that was interrupted is continued
            from the last step there.
        scratch: folder for the temporary files that a model over 0.5 GB needs; by default the system's.
        progress: called at each stage.

    Raises:
        OnnxpruneError: bad input, or the proof failed; see :mod:`onnxprune.errors`.
    """
    if target is None and (max_drop is not None or best_effort):
        raise UsageError("--max-drop and --best-effort are about a target; give --target macs=0.5, say, or leave them out")
    if isinstance(target, str):
        target = Target.parse(target, max_drop=max_drop, max_ratio=max_ratio, best_effort=best_effort)
    sampler = Sampler(
        criterion,
        ratio=ratio,
        scope=scope,
        tod=tod,
        target=target,
        scores=scores,
        analysis=analysis,
        samples=samples,
        min_channels=min_channels,
        round_to=round_to,
        profile=profile,
        ratios=ratios,
        compensate=compensate,
        rotate=rotate,
        interval=interval,
        compat=compat,
        clusters=clusters,
        seed=seed,
    )
    if zero and (round_to == AUTO or (target is not None and target.kind == SPEED)):
        raise UsageError("zeros take as long as other weights; give --zero without --round-to auto and --target latency")
    if free and plan is not None:
        raise UsageError("a plan says already what leaves; give either --plan or --free")
    if free and mixing:
        raise UsageError("what mixing cuts is never free; give either --mixing or --free")
    if zero and mixing:
        raise UsageError("what mixing cuts changes the rest, zeros would do otherwise; give either --mixing or --zero")
    if step is not None and plan is not None:
        raise UsageError("a plan is replayed at once; give either --plan or --step")
    pruner = Pruner(
        model,
        sampler=sampler,
        evaluator=Evaluator(epsilons, seed=seed),
        step=step,
        seed=seed,
        freeze=freeze,
        mixing=mixing,
        free=free,
        zero=zero,
        plan=plan,
        min_accuracy=min_accuracy,
        min_robustness=min_robustness,
        tape=tape,
        scratch=scratch,
        progress=progress,
    )
    return pruner.prune(data)


class Pruner:
    """Prunes a model, at once or in steps, and keeps the result: PAODING's way of working, on ONNX.

    >>> pruner = Pruner("model.onnx", sampler=Sampler("impact"), evaluator=Evaluator([0.1]), step=0.05)  # doctest: +SKIP
    >>> pruner.prune("data.npz")                                                                         # doctest: +SKIP
    >>> pruner.save("small.onnx")                                                                        # doctest: +SKIP

    Args:
        model: path of an ONNX file, or a proto (which is not changed).
        sampler: chooses the channels; by default half of every group's by L1 norm.
        evaluator: measures every step on the data; by default without attack.
        step, freeze, mixing, free, zero, plan, min_accuracy, min_robustness, tape, scratch, progress: as in :func:`prune`.
        seed: for the inputs on which the result is verified.

    Raises:
        OptionError: an option outside its range.
    """

    def __init__(
        self,
        model: Source,
        *,
        sampler: Sampler | None = None,
        evaluator: Evaluator | None = None,
        step: float | None = None,
        seed: int = 0,
        freeze: tuple[str, ...] = (),
        mixing: bool = False,
        free: bool = False,
        zero: bool = False,
        plan: Plan | str | Path | None = None,
        min_accuracy: float | None = None,
        min_robustness: float | None = None,
        tape: str | Path | None = None,
        scratch: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.sampler = Sampler() if sampler is None else sampler
        self.evaluator = Evaluator(()) if evaluator is None else evaluator
        if self.sampler.limits.scope == "tod" and (step is not None or tape is not None):
            raise UsageError("the ToD level removes everything at once; give either --scope tod or --step and --tape")
        target = self.sampler.target
        if target is not None and (step is not None or tape is not None or plan is not None):
            raise UsageError("the target is reached at once, and decides what leaves; give it without --step, --tape and --plan")
        self._shares: list[float | Target] = [target] if target else [*shares(self.sampler.limits.ratio, step)]
        self._goal = Goal(min_accuracy, min_robustness)
        self._options: dict[str, Any] = {"freeze": freeze, "mixing": mixing, "free": free, "zero": zero, "seed": seed}
        self._scratch = None if scratch is None else Path(scratch)
        self._plan = plan if plan is None or isinstance(plan, Plan) else Plan.load(plan)
        self._tape = None if tape is None else Path(tape)
        self._progress, self._step = progress, step
        self.result: Result | None = None
        self._model = model

    def load(self, model: Source | None = None) -> ModelProto:
        """Take a model, or the one that there was at first again, and forget what has been done to it.

        Raises:
            ModelError: it can't be read.
        """
        self._model = self._model if model is None else model
        self.result = None
        return load(self._model).assemble().complete()

    def prune(self, data: Data | None = None) -> Result:
        """Let the sampler's share leave, step by step, and prove and measure each model.

        Args:
            data: an ``.npz`` path or arrays by input name, with ``labels`` for accuracy and robustness.

        Raises:
            OnnxpruneError: bad input, or the proof failed; see :mod:`onnxprune.errors`.
        """
        graph, run, recorder = self._begun(data)
        stage = self._last_good(run, recorder)
        self.result = self._finished(graph, stage, recorder, run.clock)
        return self.result

    def prune_to(self, targets: Sequence[Target], data: Data | None = None) -> list[Result]:
        """One model for each of some targets, from one analysis; the last becomes the pruner's own.

        Raises:
            OnnxpruneError: as :meth:`prune`, also where a single target can't be met.
        """
        graph, run, recorder = self._begun(data)
        found: dict[int, Result] = {}
        for stage in run.stages(targets):
            if not recorder.steps:
                recorder.begin(stage.standing)
            recorder.add(stage)
            found[stage.number] = self.result = self._finished(graph, stage, recorder, run.clock)
        return list(found.values())

    def _begun(self, data: Data | None) -> tuple[Graph, Run, Recorder]:
        """The model with all that works on it."""
        clock = Clock(self._progress)
        with clock("load"):
            graph = load(self._model)
            dataset = None if data is None else datasets.read(data, graph.inputs)
        self._goal.check(dataset, self.evaluator.get_epsilons())
        self.sampler.look_at(dataset)
        run = Run(graph, self.sampler, **self._options, plan=self._plan, data=dataset, scratch=self._scratch, clock=clock)
        recorder = Recorder(graph, self._settings(graph), folder=self._tape, evaluator=self.evaluator, data=dataset, clock=clock)
        return graph, run, recorder

    def evaluate(self, data: Data) -> Evaluation:
        """Measure the model as it is now, and how often it agrees with the one that there was at first.

        Raises:
            DataError: the data do not fit.
        """
        if self.result is None:
            return self.evaluator.evaluate(self._model, data)
        return self.evaluator.evaluate(self.result.pruned, data, self._model)

    def save(self, path: str | Path) -> None:
        """Write the pruned model.

        Raises:
            UsageError: nothing has been pruned yet.
            OutputError: the path is the input or can't be written.
        """
        if self.result is None:
            raise UsageError("there is no pruned model yet; call prune() before save()")
        self.result.save(path)

    def quantize(self, mode: str = "int8", data: str | Path | Mapping[str, Array] | None = None) -> Quantized:
        """The model as it is now with smaller numbers: ``"fp16"`` or ``"int8"``; see :func:`onnxprune.quantize`."""
        return quantize(self._model if self.result is None else self.result.model, mode, data=data)

    def reset(self) -> None:
        """Forget what has been done to the model."""
        self.result = None

    def _last_good(self, run: Run, recorder: Recorder) -> Stage:
        """Go through the steps until the end, or until one misses the goal; the last that does not."""
        done = recorder.resume(self._shares)
        passed = next((n for n, step in enumerate(recorder.steps) if n and self._goal.missed(step)), done + 1) - 1
        last: Stage | None = None
        if passed < done or done == len(self._shares):
            done = passed
        else:
            previous = (done, recorder.plan(done)) if done else None
            for stage in run.stages(self._shares, previous):
                if not recorder.steps:
                    recorder.begin(stage.standing)
                if self._goal.missed(recorder.add(stage)):
                    stage.proved.close()
                    break
                if last is not None:
                    last.proved.close()
                last, done = stage, stage.number
        if last is not None and last.number == done:
            return last
        if done:
            share = self._shares[done - 1]
            assert not isinstance(share, Target), "targets have no tape"
            return run.replayed(done, share, recorder.plan(done))
        return replace(next(replace(run, plan=None).stages([0.0])), number=0)

    def _finished(self, graph: Graph, stage: Stage, recorder: Recorder, clock: Clock) -> Result:
        """The result with its report."""
        standing, proved = stage.standing, stage.proved
        merged = standing.merged
        rows = tuple(
            GroupRow(g, int((~standing.removed[g.roots]).sum()), int(merged[g.roots].sum())) for g in standing.coupling.groups
        )
        missed = next((s for s in recorder.steps if s.number > stage.number and self._goal.missed(s)), None)
        report = Report(
            cost(graph, standing.coupling.shapes),
            cost(proved.graph, infer(proved.graph)),
            rows,
            standing.coupling.frozen,
            proved.verification,
            dict(clock.elapsed),
            timed(recorder.pair(stage.number), stage),
            None if stage.free is None else stage.free.rows,
            recorder.steps if self._step is not None else (),
            "" if missed is None else f"stopped before step {missed.number}: its {self._goal.missed(missed)}",
            notes=self.sampler.notes,
            target=stage.met,
            speed=stage.speed,
            zeroed=bool(self._options["zero"]),
        )
        external = graph.weights.has_external_data
        scores = unscored if self._plan is not None else self.sampler.score_table
        return Result(proved.model, standing.plan, report, graph.source, external, proved.scratch, scores)

    def _settings(self, graph: Graph) -> dict[str, Any]:
        """What a run that continues another one has to have in common with it."""
        found = {"model_sha256": graph.sha256, "step": self._step, "epsilons": self.evaluator.get_epsilons()}
        return found | self._options | self.sampler.settings


def inspect(model: Source, *, freeze: tuple[str, ...] = (), mixing: bool = False, progress: Progress | None = None) -> Report:
    """What could be cut: the channel groups, and what is frozen by which node. Options as in :func:`prune`.

    Raises:
        ModelError: the model can't be read or loaded by onnxruntime.
    """
    clock = Clock(progress)
    with clock("load"):
        graph = load(model)
    with clock("analyse"):
        coupling = analyse(graph, freeze=freeze, mixing=mixing)
    size = cost(graph, coupling.shapes)
    rows = tuple(GroupRow(g, g.size) for g in coupling.groups)
    return Report(size, size, rows, coupling.frozen, None, clock.elapsed)
