"""Recorder: measures every step of a run, keeps the tape, and says when to stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune.channels import named
from onnxprune.clock import Clock
from onnxprune.cost import cost
from onnxprune.data import Dataset
from onnxprune.errors import OptionError, OutputError, TapeError, UsageError
from onnxprune.evaluate import measure
from onnxprune.evaluator import Evaluator
from onnxprune.files import save
from onnxprune.graph import Graph
from onnxprune.lazy import AnyModel
from onnxprune.plan import Plan
from onnxprune.progressive import Stage
from onnxprune.report import Step, Tape
from onnxprune.shapes import infer
from onnxprune.standing import Standing

Metrics = dict[str, Any]
Pair = Mapping[str, Mapping[str, Any]]
TAPE = "tape.json"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a pruned model must reach, as shares of all samples: its accuracy, and its robust accuracy at every epsilon.

    Raises:
        OptionError: a share outside 0 to 1.
    """

    min_accuracy: float | None = None
    min_robustness: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("min-accuracy", self.min_accuracy), ("min-robustness", self.min_robustness)):
            if value is not None and not 0 <= value <= 1:
                raise OptionError(f"{name} is {value}; it is a share of the samples, from 0 to 1")

    def check(self, data: Dataset | None, epsilons: tuple[float, ...]) -> None:
        """Make sure that there is what the goal is measured with.

        Raises:
            UsageError: there are no labelled data, or no epsilon.
        """
        asked = [
            n for n, v in (("--min-accuracy", self.min_accuracy), ("--min-robustness", self.min_robustness)) if v is not None
        ]
        if asked and (data is None or data.labels is None):
            raise UsageError(f"{asked[0]} is measured on labelled data; give --data with an array 'labels'")
        if self.min_robustness is not None and not epsilons:
            raise UsageError("--min-robustness is measured under attack; give --epsilon")

    def missed(self, step: Step) -> str:
        """What a step's model does not reach, in words; empty where it is good enough."""
        if self.min_accuracy is not None and (step.accuracy or 0.0) < self.min_accuracy:
            return f"accuracy {step.accuracy:.4f} is below {self.min_accuracy:g}"
        robust = {e: value for e, value in step.robust_accuracy.items() if value < (self.min_robustness or 0.0)}
        return next((f"robust accuracy {v:.4f} at epsilon {e} is below {self.min_robustness:g}" for e, v in robust.items()), "")


class Recorder:
    """Writes down the original and every step: what it costs, what left, and what is measured on the data.

    Args:
        settings: of the run, as JSON data; only a run with the same ones continues its tape.
        folder: where ``tape.json``, ``tape.csv`` and each step's model and plan go; nowhere if None.
    """

    def __init__(
        self,
        graph: Graph,
        settings: Mapping[str, Any],
        *,
        evaluator: Evaluator,
        folder: Path | None = None,
        data: Dataset | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.graph, self.folder, self.evaluator, self.data = graph, folder, evaluator, data
        self._metrics: dict[int, Metrics] = {}
        self.tape = Tape(dict(settings))
        self._clock = Clock() if clock is None else clock
        self._before = 0.0

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps so far; the first is the original."""
        return self.tape.steps

    def resume(self, wanted: Sequence[object]) -> int:
        """Read what an earlier run has written to the folder; returns how many steps are done.

        Raises:
            TapeError: the tape is of another run, or can't be read.
        """
        if self.folder is None or not (self.folder / TAPE).exists():
            return 0
        tape = Tape.load(self.folder / TAPE)
        tape.check_run(self.tape.run)
        done = [step.share for step in tape.steps[1:]]
        if done != list(wanted[: len(done)]):
            raise TapeError(
                f"tape {str(self.folder / TAPE)!r} has steps to {done}, this run to {list(wanted)}; "
                "continue with the same --step and at least that --ratio, or begin a new tape"
            )
        self.tape = tape
        return len(done)

    def plan(self, number: int) -> Plan:
        """The plan of a step that was recorded in the folder.

        Raises:
            PlanError: it can't be read.
        """
        assert self.folder is not None, "steps are read from the folder they were written to"
        return Plan.load(self.folder / f"step-{number:03d}.plan.json")

    def begin(self, standing: Standing) -> None:
        """Write down the original, and make the folder.

        Raises:
            OutputError: that is not possible.
        """
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"folder {str(self.folder)!r} can't be made: {error.strerror}; choose another") from error
        metrics = self._measured(0, None)
        total = sum(group.size for group in standing.coupling.groups)
        size = cost(self.graph, standing.coupling.shapes)
        self._add(Step(0, 0.0, total, size.parameters, size.macs, size.bytes, **_kept(metrics)))

    def add(self, stage: Stage) -> Step:
        """Write down a step; those behind it, of a run that had to begin anew, are forgotten."""
        self.tape = Tape(self.tape.run, self.steps[: stage.number])
        standing = stage.standing
        left = {name: int((~standing.removed[g.roots]).sum()) for name, g in named(standing.coupling.groups).items()}
        gone = Counter({name: g.size - left[name] for name, g in named(standing.coupling.groups).items()})
        for step in self.steps:
            gone.subtract(step.moves)
        metrics = self._measured(stage.number, stage.proved.model)
        size = cost(stage.proved.graph, infer(stage.proved.graph))
        moves = {name: n for name, n in gone.items() if n}
        self._save(stage)
        channels = sum(left.values())
        return self._add(
            Step(stage.number, stage.share, channels, size.parameters, size.macs, size.bytes, moves, **_kept(metrics))
        )

    def _add(self, step: Step) -> Step:
        step = replace(step, seconds=round(self._clock.total - self._before, 6))
        self._before = self._clock.total
        self.tape = self.tape.added(step)
        if self.folder is not None:
            self.tape.save_json(self.folder / TAPE)
            self.tape.save_csv(self.folder / "tape.csv")
        return step

    def _save(self, stage: Stage) -> None:
        if self.folder is None:
            return
        path = self.folder / f"step-{stage.number:03d}.onnx"
        save(stage.proved.model, path, external=self.graph.weights.has_external_data, source=self.graph.source)
        stage.standing.plan.save(path.with_suffix(".plan.json"))

    def pair(self, number: int) -> dict[str, Metrics]:
        """The metrics of the original and of a step, as the report has them."""
        sides = {"before": 0, "after": number}
        return {side: self._metrics.get(n) or (_kept(self.steps[n].to_dict()) if self.steps else {}) for side, n in sides.items()}

    def _measured(self, number: int, model: AnyModel | None) -> Metrics:
        """What the data tell of a model, or of the original."""
        if self.data is None:
            return {}
        with self._clock("evaluate"):
            original = self.graph.assemble().ready()
            judged = original if model is None else model
            found = {} if model is None else measure((original, judged), self.data, self.graph.inputs)
            found.pop("accuracy", None)
            if self.data.labels is not None or self.evaluator.get_epsilons():
                found |= self.evaluator.evaluate(judged, self.data.arrays).metrics()
        self._metrics[number] = found
        return found


def _kept(metrics: Metrics) -> Metrics:
    """The metrics that a step has a place for, where they were measured."""
    return {
        name: metrics[name]
        for name in ("accuracy", "loss", "agreement", "robust_accuracy")
        if metrics.get(name) not in (None, {})
    }


def timed(metrics: Pair, stage: Stage) -> Pair:
    """What was measured of the original and of a stage, with their latencies where these were."""
    if stage.speed is not None:
        before = 1e3 * stage.speed.plain.seconds
        after = before * stage.speed.plain.ratio
    elif stage.met is not None and stage.met.foreseen is not None:
        before, after = stage.met.before / 1e6, stage.met.after / 1e6
    else:
        return metrics
    return {side: {**metrics[side], "latency_ms": round(time, 6)} for side, time in (("before", before), ("after", after))}
