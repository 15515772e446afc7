"""Pruning in steps: what each leaves, the tape of them, interrupted runs that go on, goals that stop one, and the trilogy."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dense
import freed
import graphs
import judge
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner
from typer.testing import Result as Done

import onnxprune
from onnxprune import Evaluator, Pruner, Sampler
from onnxprune.cli import app
from onnxprune.errors import OptionError, OutputError, TapeError, UsageError
from onnxprune.progressive import shares
from onnxprune.result import Result

MLP = dense.network(dense.layers(6, 24, 20, 5))
CNN = graphs.build(["plain", "residual", "batch_norm"], "flatten", 3)
STEP, RATIO = 0.15, 0.5


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer synthetic inputs."""
    monkeypatch.setattr("onnxprune.importance.synthetic.SAMPLES", 64)


def cli(*arguments: object) -> Done:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def labelled(model: onnx.ModelProto = MLP, samples: int = 200) -> dict[str, np.ndarray]:
    """Data of which the model itself classifies everything right."""
    inputs = {n: np.abs(v) for n, v in judge.feeds(model, batch=samples).items()}
    return {**inputs, "labels": judge.run(model, inputs)[0].argmax(axis=1)}


def counts(result: Result) -> dict[str, int]:
    return {g["name"]: g["kept"] for g in result.report.to_dict()["groups"]}


def content(result: Result) -> bytes:
    return result.model.SerializeToString(deterministic=True)


class Stopped(Exception):
    pass


def stop_after(steps: int, at: str = "verify") -> Callable[[str], None]:
    """Interrupts a run in its next step, at a stage of that."""
    seen = []

    def progress(stage: str) -> None:
        seen.append(stage)
        if stage == at and seen.count(at) > steps:
            raise Stopped

    return progress


def interrupted(model: onnx.ModelProto, folder: Path, steps: int, **options: Any) -> Result:
    """The result of a run that was interrupted in a step, and begun again."""
    with pytest.raises(Stopped):
        onnxprune.prune(model, tape=folder, progress=stop_after(steps), **options)
    done = json.loads((folder / "tape.json").read_text())["steps"]
    assert 0 < len(done) - 1 < len(shares(options["ratio"], options["step"]))
    before = (folder / "step-001.onnx").stat().st_mtime_ns
    result = onnxprune.prune(model, tape=folder, **options)
    assert (folder / "step-001.onnx").stat().st_mtime_ns == before, "the first step was done again"
    return result


# steps ----------------------------------------------------------------------------------------------------------------


def test_shares_add_up_to_the_ratio() -> None:
    assert shares(0.5, 0.15) == [0.15, 0.3, 0.45, 0.5]
    assert shares(0.5, 0.05)[-1] == 0.5
    assert len(shares(0.5, 0.05)) == 10
    assert shares(0.3, 0.1) == [0.1, 0.2, 0.3]
    assert shares(0.3, 0.4) == shares(0.3, None) == [0.3]
    assert shares(0.0, 0.1) == [0.0]


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("model", [MLP, CNN], ids=["mlp", "cnn"])
def test_steps_end_where_one_step_does(model: onnx.ModelProto, scope: str) -> None:
    result = onnxprune.prune(model, ratio=RATIO, step=STEP, scope=scope)
    once = onnxprune.prune(model, ratio=RATIO, scope=scope)
    assert once.report.steps == ()
    rows = result.report.to_dict()["steps"]
    assert [row["share"] for row in rows] == [0.0, *shares(RATIO, STEP)]
    assert [row["number"] for row in rows] == list(range(5))
    for name in ("parameters", "macs", "bytes", "channels"):
        values = [row[name] for row in rows]
        assert all(a > b for a, b in itertools.pairwise(values)), name
    assert rows[0]["parameters"] == result.report.to_dict()["model"]["before"]["parameters"]
    assert rows[-1]["parameters"] == result.report.to_dict()["model"]["after"]["parameters"]
    assert rows[-1]["channels"] == sum(counts(result).values()) == sum(counts(once).values())
    for before, after in itertools.pairwise(rows):
        assert sum(after["moves"].values()) == before["channels"] - after["channels"]
    if scope == "uniform":
        assert counts(result) == counts(once)
    judge.assert_equal(model, result.model, result.plan.to_dict())


@pytest.mark.parametrize("criterion", ["saliency", "impact", "stochastic"])
def test_steps_of_pairs(criterion: str) -> None:
    result = onnxprune.prune(MLP, ratio=RATIO, step=STEP, criterion=criterion)
    assert counts(result) == counts(onnxprune.prune(MLP, ratio=RATIO, criterion=criterion))
    assert result.report.verification is not None
    assert result.report.verification.passed
    rows = result.report.steps
    assert all(a.parameters > b.parameters for a, b in itertools.pairwise(rows))


def test_measured_at_every_step() -> None:
    result = onnxprune.prune(MLP, ratio=RATIO, step=STEP, data=labelled(), epsilons=(0.01, 0.3))
    for row in result.report.steps:
        assert row.accuracy is not None
        assert row.loss is not None
        assert list(row.robust_accuracy) == ["0.01", "0.3"]
        assert row.robust_accuracy["0.3"] <= row.robust_accuracy["0.01"] <= row.accuracy
        assert (row.agreement is None) == (row.number == 0)
        assert row.number == 0 or row.agreement == row.accuracy, "the labels are what the original predicts"
    assert result.report.steps[0].accuracy == 1.0
    assert result.report.steps[-1].accuracy < 1.0


# tape -----------------------------------------------------------------------------------------------------------------


def test_tape_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "tape"
    result = onnxprune.prune(CNN, ratio=RATIO, step=STEP, tape=folder, criterion="l2")
    steps = [f"step-{n:03d}" for n in range(1, 5)]
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [*(f"{s}.onnx" for s in steps), *(f"{s}.plan.json" for s in steps), "tape.csv", "tape.json"]
    )
    tape = json.loads((folder / "tape.json").read_text())
    assert tape["run"]["step"] == STEP
    assert tape["run"]["criterion"] == "l2"
    assert "ratio" not in tape["run"]
    assert tape["steps"] == [row.to_dict() for row in result.report.steps]
    with open(folder / "tape.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["parameters"]) for r in rows] == [s["parameters"] for s in tape["steps"]]
    for row, name in zip(tape["steps"][1:], steps, strict=True):
        saved = onnx.load(folder / f"{name}.onnx")
        onnx.checker.check_model(saved)
        assert judge.parameters(saved) == row["parameters"]
        judge.assert_equal(CNN, saved, json.loads((folder / f"{name}.plan.json").read_text()))
    assert onnx.load(folder / "step-004.onnx") == result.model


RUNS: dict[str, tuple[onnx.ModelProto, dict[str, Any]]] = {
    "l1": (CNN, {}),
    "random": (CNN, {"criterion": "random", "seed": 3}),
    "global": (CNN, {"scope": "global", "criterion": "l2"}),
    "free": (CNN, {"free": True}),
    "l1 merged": (MLP, {"compensate": "merge"}),
    "saliency": (MLP, {"criterion": "saliency"}),
    "saliency global": (MLP, {"criterion": "saliency", "scope": "global"}),
    "impact": (MLP, {"criterion": "impact"}),
    "impact free": (MLP, {"criterion": "impact", "free": True}),
    "impact of a CNN": (CNN, {"criterion": "impact"}),
    "impact with data": (MLP, {"criterion": "impact", "data": labelled(), "epsilons": (0.1,)}),
    "stochastic": (MLP, {"criterion": "stochastic", "seed": 5}),
}


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_gives_the_same_model(tmp_path: Path, name: str) -> None:
    model, options = RUNS[name]
    options = {"ratio": RATIO, "step": STEP, **options}
    if "free" in name:
        model = doubled(model)
    whole = onnxprune.prune(model, **options)
    result = interrupted(model, tmp_path / "tape", 2, **options)
    assert content(result) == content(whole)
    assert result.plan == whole.plan
    assert ("free" in name) == bool(sum(sum(row.counts) for row in result.report.free or ()))
    assert [r.to_dict() | {"seconds": 0} for r in result.report.steps] == [
        r.to_dict() | {"seconds": 0} for r in whole.report.steps
    ]
    assert (result.report.to_dict().get("free"), counts(result)) == (whole.report.to_dict().get("free"), counts(whole))


def doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with channels that are zero or, in a dense one, there twice: they leave at no cost."""
    maker = freed.Maker(model)
    maker.zero(maker.groups[0], 2)
    maker.double(maker.groups[0], 1, 0)
    return maker.finish()


def test_a_run_goes_on_from_what_the_tape_has(tmp_path: Path) -> None:
    """The control: the plan of another choice leads elsewhere."""
    options: dict[str, Any] = {"ratio": 0.3, "step": 0.1}
    with pytest.raises(Stopped):
        onnxprune.prune(MLP, tape=tmp_path, progress=stop_after(1), **options)
    onnxprune.prune(MLP, ratio=0.1, criterion="random").plan.save(tmp_path / "step-001.plan.json")
    assert content(onnxprune.prune(MLP, tape=tmp_path, **options)) != content(onnxprune.prune(MLP, **options))


def test_units_used_once_are_so_after_an_interruption(tmp_path: Path) -> None:
    def pruner(**more: Any) -> Pruner:
        sampler = Sampler("saliency", ratio=0.45, recursive=False)
        return Pruner(MLP, sampler=sampler, step=0.15, **more)

    whole = pruner().prune()
    with pytest.raises(Stopped):
        pruner(tape=tmp_path / "tape", progress=stop_after(1)).prune()
    result = pruner(tape=tmp_path / "tape").prune()
    assert content(result) == content(whole)
    edits = [e for e in result.plan.to_dict()["edits"] if e["tensor"] == "w1"]
    used = [u for e in edits for u in (*e["channels"], *e["into"])]
    assert len(set(used)) == len(used)


def test_a_tape_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    options: dict[str, Any] = {"ratio": 0.3, "step": 0.1, "criterion": "impact", "tape": tmp_path / "tape"}
    first = onnxprune.prune(MLP, **options)
    stages: list[str] = []
    again = onnxprune.prune(MLP, progress=stages.append, **options)
    assert "score" not in stages
    assert content(again) == content(first)


def test_a_larger_ratio_goes_on(tmp_path: Path) -> None:
    onnxprune.prune(MLP, ratio=0.3, step=0.1, criterion="impact", tape=tmp_path / "tape")
    more = onnxprune.prune(MLP, ratio=0.5, step=0.1, criterion="impact", tape=tmp_path / "tape")
    assert content(more) == content(onnxprune.prune(MLP, ratio=0.5, step=0.1, criterion="impact"))
    assert [s.share for s in more.report.steps] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "step": ({"step": 0.1}, "the tape is of a run with step 0.15, this run has step 0.1"),
    "seed": ({"seed": 1}, "the tape is of a run with seed 0, this run has seed 1"),
    "criterion": ({"criterion": "l2"}, 'the tape is of a run with criterion "l1", this run has criterion "l2"'),
    "freeze": ({"freeze": ("Gemm_0",)}, 'the tape is of a run with freeze [], this run has freeze ["Gemm_0"]'),
    "free": ({"free": True}, "the tape is of a run with free false, this run has free true"),
    "epsilons": ({"epsilons": (0.1,)}, "the tape is of a run with epsilons [], this run has epsilons [0.1]"),
    "interval": (
        {"interval": (-1, 1)},
        "the tape is of a run with interval [0.0, 1.0], this run has interval [-1, 1]",
    ),
    "compensate": ({"compensate": "merge"}, 'the tape is of a run with compensate "auto", this run has compensate "merge"'),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded") / "tape"
    onnxprune.prune(MLP, ratio=RATIO, step=STEP, tape=folder)
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_other_settings_do_not_go_on(recorded: Path, name: str) -> None:
    changes, text = OTHERS[name]
    before = {p.name: p.read_bytes() for p in recorded.iterdir()}
    with pytest.raises(TapeError) as caught:
        onnxprune.prune(MLP, **{"ratio": RATIO, "step": STEP, "tape": recorded, **changes})
    assert str(caught.value) == text + "; give the same settings, or begin a new tape"
    assert {p.name: p.read_bytes() for p in recorded.iterdir()} == before


def test_another_model_or_a_smaller_ratio_does_not_go_on(recorded: Path) -> None:
    with pytest.raises(TapeError, match=r"^the tape is of a run with model_sha256 "):
        onnxprune.prune(CNN, ratio=RATIO, step=STEP, tape=recorded)
    with pytest.raises(TapeError) as caught:
        onnxprune.prune(MLP, ratio=0.3, step=STEP, tape=recorded)
    assert str(caught.value) == (
        f"tape {str(recorded / 'tape.json')!r} has steps to [0.15, 0.3, 0.45, 0.5], this run to [0.15, 0.3]; "
        "continue with the same --step and at least that --ratio, or begin a new tape"
    )


def test_a_tape_whose_plan_is_lost(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "tape")
    (tmp_path / "tape" / "step-004.plan.json").unlink()
    with pytest.raises(onnxprune.PlanError, match="can't be read"):
        onnxprune.prune(MLP, ratio=RATIO, step=STEP, tape=tmp_path / "tape")


def test_a_folder_that_can_t_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        onnxprune.prune(MLP, ratio=RATIO, step=STEP, tape=tmp_path / "file" / "tape")
    assert str(caught.value) == f"folder {str(tmp_path / 'file' / 'tape')!r} can't be made: Not a directory; choose another"


# goals ----------------------------------------------------------------------------------------------------------------


def fall(values: list[float]) -> int:
    """The first step, behind the first one, that is worse than all before it."""
    return next(k for k in range(2, len(values)) if values[k] < min(values[:k]))


@pytest.mark.parametrize("goal", ["min_accuracy", "min_robustness"])
def test_a_goal_stops_before_it_is_missed(tmp_path: Path, goal: str) -> None:
    options: dict[str, Any] = {"ratio": RATIO, "step": 0.1, "data": labelled(), "epsilons": (0.05,)}
    rows = onnxprune.prune(MLP, tape=tmp_path / "whole", **options).report.steps
    accuracies = [s.accuracy or 0.0 for s in rows]
    values = accuracies if goal == "min_accuracy" else [s.robust_accuracy["0.05"] for s in rows]
    k = fall(values)
    least = (values[k] + min(values[:k])) / 2
    result = onnxprune.prune(MLP, tape=tmp_path / "tape", **{goal: least}, **options)
    assert result.model == onnx.load(tmp_path / "whole" / f"step-{k - 1:03d}.onnx")
    assert len(result.report.steps) == k + 1, "the step that misses it is on the tape"
    what = "accuracy" if goal == "min_accuracy" else "robust accuracy"
    at = "" if goal == "min_accuracy" else " at epsilon 0.05"
    assert f"stopped before step {k}: its {what} {values[k]:.4f}{at} is below {least:g}" in str(result.report)
    metrics = result.report.to_dict()["metrics"]["after"]
    assert metrics["accuracy"] == accuracies[k - 1]

    again = onnxprune.prune(MLP, tape=tmp_path / "tape", **{goal: least}, **options)
    assert content(again) == content(result)
    further = onnxprune.prune(MLP, tape=tmp_path / "tape", **options)
    assert further.model == onnx.load(tmp_path / "whole" / "step-005.onnx"), "without the goal it goes on"


def test_the_original_is_left_where_the_first_step_is_too_bad(tmp_path: Path) -> None:
    data = labelled()
    result = onnxprune.prune(MLP, ratio=0.9, step=0.6, data=data, min_accuracy=1.0)
    assert counts(result) == {g: n for g, n in counts(result).items() if n in (24, 20)}
    inputs = {"x": data["x"]}
    assert judge.distance(judge.run(MLP, inputs), judge.run(result.model, inputs)) == 0
    assert judge.parameters(result.model) == judge.parameters(MLP)
    assert result.plan.to_dict()["sites"] == []
    assert "stopped before step 1: its accuracy " in str(result.report)
    metrics = result.report.to_dict()["metrics"]
    assert metrics["before"]["accuracy"] == metrics["after"]["accuracy"] == 1.0

    plan = onnxprune.prune(MLP, ratio=0.6).plan
    planned = onnxprune.prune(MLP, plan=plan, data=data, min_accuracy=1.0)
    assert judge.parameters(planned.model) == judge.parameters(MLP)
    assert planned.report.to_dict()["stopped"].startswith("stopped before step 1: its accuracy ")
    model, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(MLP, model)
    np.savez(tmp_path / "d.npz", **data)
    done = cli("prune", model, "-o", out, "--ratio", 0.9, "--min-accuracy", 1, "--data", tmp_path / "d.npz")
    assert done.exit_code == 0, done.output
    assert judge.parameters(onnx.load(out)) == judge.parameters(MLP)


GOALS: dict[str, tuple[dict[str, Any], str]] = {
    "no data": ({"min_accuracy": 0.5}, "--min-accuracy is measured on labelled data; give --data with an array 'labels'"),
    "no labels": (
        {"min_robustness": 0.5, "epsilons": (0.1,), "data": {"x": labelled()["x"]}},
        "--min-robustness is measured on labelled data; give --data with an array 'labels'",
    ),
    "no epsilon": ({"min_robustness": 0.5, "data": labelled()}, "--min-robustness is measured under attack; give --epsilon"),
    "plan": ({"plan": onnxprune.prune(MLP).plan, "step": 0.1}, "a plan is replayed at once; give either --plan or --step"),
}


@pytest.mark.parametrize("name", GOALS)
def test_what_can_t_be_asked(tmp_path: Path, name: str) -> None:
    options, text = GOALS[name]
    with pytest.raises(UsageError) as caught:
        onnxprune.prune(MLP, tape=tmp_path / "tape", **options)
    assert str(caught.value) == text
    assert caught.value.exit_code == 2
    assert not (tmp_path / "tape").exists()


VALUES: dict[str, tuple[Callable[[], object], str]] = {
    "step": (
        lambda: onnxprune.prune(MLP, step=1.0),
        "step is 1.0; it is the fraction of the channels that each step removes, 0 < step < 1",
    ),
    "no step": (
        lambda: onnxprune.prune(MLP, step=0),
        "step is 0; it is the fraction of the channels that each step removes, 0 < step < 1",
    ),
    "ratio": (lambda: Sampler(ratio=1.0), "ratio is 1.0; it is the fraction of channels to remove, 0 <= ratio < 1"),
    "nan": (lambda: Sampler(ratio=float("nan")), "ratio is nan; it is the fraction of channels to remove, 0 <= ratio < 1"),
    "interval": (
        lambda: onnxprune.prune(MLP, interval=(1.0, 0.5)),
        "input interval is 1 to 0.5; give two numbers, the lower first",
    ),
    "infinite": (
        lambda: onnxprune.prune(MLP, interval=(0.0, float("inf"))),
        "input interval is 0 to inf; give two numbers, the lower first",
    ),
    "params": (
        lambda: Sampler("impact", params=(-1.0, 2.0)),
        "params are (-1.0, 2.0); give two weights that are not negative, and not both 0",
    ),
    "zeros": (
        lambda: Sampler().set_strategy("impact", (0.0, 0.0)),
        "params are (0.0, 0.0); give two weights that are not negative, and not both 0",
    ),
    "pool": (
        lambda: Sampler("impact", pool=0.5),
        "pool is 0.5; it multiplies the number of units that leave, at least 1",
    ),
    "compat": (lambda: onnxprune.prune(MLP, compat="1.0"), "compat is '1.0'; choose 'paoding-1.0' or nothing"),
    "compensate": (
        lambda: onnxprune.prune(MLP, compensate="all"),
        "compensate is 'all'; choose auto, none, merge, least-squares",
    ),
    "accuracy": (
        lambda: onnxprune.prune(MLP, min_accuracy=1.5),
        "min-accuracy is 1.5; it is a share of the samples, from 0 to 1",
    ),
    "robustness": (
        lambda: onnxprune.prune(MLP, min_robustness=-0.1),
        "min-robustness is -0.1; it is a share of the samples, from 0 to 1",
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_that_make_no_sense(name: str) -> None:
    call, text = VALUES[name]
    with pytest.raises(OptionError) as caught:
        call()
    assert str(caught.value) == text


# the trilogy ----------------------------------------------------------------------------------------------------------


def test_pruner(tmp_path: Path) -> None:
    path, data = tmp_path / "m.onnx", labelled()
    onnx.save(MLP, path)
    pruner = Pruner(path, sampler=Sampler("impact", ratio=0.3), evaluator=Evaluator([0.1]), step=0.1)
    with pytest.raises(UsageError, match=r"^there is no pruned model yet; call prune\(\) before save\(\)$"):
        pruner.save(tmp_path / "o.onnx")
    assert pruner.load() == MLP
    before = pruner.evaluate(data)
    assert (before.accuracy, before.agreement) == (1.0, None)
    result = pruner.prune(data)
    assert result is pruner.result
    assert [s.share for s in result.report.steps] == [0, 0.1, 0.2, 0.3]
    pruner.save(tmp_path / "o.onnx")
    assert onnx.load(tmp_path / "o.onnx") == result.model
    after = pruner.evaluate(data)
    assert after.accuracy == after.agreement == result.report.steps[-1].accuracy
    assert list(after.robust_accuracy) == [0.1]
    with pytest.raises(OutputError, match="is the input itself"):
        pruner.save(path)
    assert onnx.load(path) == MLP

    small = pruner.quantize("fp16")
    assert len(small.model.SerializeToString()) < len(result.model.SerializeToString())
    pruner.reset()
    assert pruner.result is None
    assert pruner.evaluate(data).accuracy == 1.0
    assert judge.parameters(pruner.quantize("fp16").model) == judge.parameters(MLP)
    assert content(pruner.prune(data)) == content(result)
    assert pruner.load(CNN) == CNN
    assert pruner.result is None
    with pytest.raises(onnxprune.DataError):
        pruner.prune(data)
    assert judge.parameters(pruner.prune().model) < judge.parameters(CNN)


def test_pruner_s_defaults_are_those_of_prune() -> None:
    assert content(Pruner(CNN).prune()) == content(onnxprune.prune(CNN))
    assert content(Pruner(CNN, sampler=Sampler(ratio=0.3)).prune()) != content(onnxprune.prune(CNN))


def test_sampler() -> None:
    sampler = Sampler("l2", ratio=0.25)
    plan = sampler.nominate(MLP)
    assert plan == onnxprune.prune(MLP, ratio=0.25, criterion="l2").plan
    assert [len(s["keep"]) for s in plan.to_dict()["sites"] if s["tensor"] == "w0"] == [18]
    assert [len(s["keep"]) for s in sampler.nominate(MLP, 0.5).to_dict()["sites"] if s["tensor"] == "w0"] == [12]
    assert {s["tensor"] for s in sampler.nominate(MLP, freeze=("Gemm_0",)).to_dict()["sites"]} == {"w1", "b1", "w2"}
    sampler.set_strategy("impact", (1.0, 0.0), recursive=False)
    assert sampler.settings["params"] == (1.0, 0.0)
    assert sampler.settings["recursive"] is False
    assert sampler.settings["criterion"] == "impact"
    other = sampler.nominate(MLP)
    assert other == onnxprune.prune(MLP, plan=other).plan != plan
    with pytest.raises(UsageError, match=r"^criterion 'best' does not exist; choose one of impact, kmeans-distance, "):
        sampler.set_strategy("best")
    with pytest.raises(OptionError, match=r"^ratio is 2; "):
        sampler.nominate(MLP, 2)


class Reversed:
    """A criterion of one's own: the first channels leave."""

    def __call__(self, group: Any, weights: Any, data: Any) -> np.ndarray:
        return np.arange(group.size, dtype=np.float64)


def test_a_criterion_of_one_s_own() -> None:
    for result in (
        onnxprune.prune(MLP, criterion=Reversed(), ratio=RATIO, step=STEP),
        Pruner(MLP, sampler=Sampler(Reversed(), ratio=RATIO)).prune(),
    ):
        sites = {(s["tensor"], s["axis"]): s["keep"] for s in result.plan.to_dict()["sites"]}
        assert sites["w0", 0] == list(range(12, 24))
        assert sites["w1", 1] == list(range(12, 24))
        judge.assert_equal(MLP, result.model, result.plan.to_dict())
    assert Sampler(Reversed()).settings["criterion"] == "Reversed"


def test_evaluator_chooses_what_is_measured() -> None:
    pruner = Pruner(MLP, evaluator=Evaluator([0.2], batch_size=10), step=0.25)
    rows = pruner.prune(labelled()).report.steps
    assert all(round((row.accuracy or 0) * 10, 6) % 1 == 0 for row in rows), "ten samples"
    assert [list(row.robust_accuracy) for row in rows] == [["0.2"]] * 3
    pruner.evaluator.set_epsilons([0.1, 0.3])
    assert list(pruner.prune(labelled()).report.steps[0].robust_accuracy) == ["0.1", "0.3"]


# command line ---------------------------------------------------------------------------------------------------------


def test_command_line(tmp_path: Path) -> None:
    model, out, data = tmp_path / "m.onnx", tmp_path / "o.onnx", tmp_path / "d.npz"
    tape, picture, report = tmp_path / "tape", tmp_path / "p.svg", tmp_path / "r.json"
    onnx.save(MLP, model)
    np.savez(data, **labelled())
    arguments = ["prune", model, "-o", out, "--criterion", "impact", "--ratio", 0.5, "--step", 0.1, "--tape", tape]
    arguments += ["--data", data, "--epsilon", 0.1, "--epsilon", 0.2, "--picture", picture, "--report", report]
    done = cli(*arguments)
    assert done.exit_code == 0, done.output
    rows = json.loads(report.read_text())["steps"]
    assert rows == json.loads((tape / "tape.json").read_text())["steps"]
    assert [row["share"] for row in rows] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert out.read_bytes() == (tape / "step-005.onnx").read_bytes()
    words = ["".join(n.itertext()) for n in ET.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert "robust accuracy, ε = 0.2" in " ".join(words)
    assert f"{rows[-1]['parameters']:,}" in done.stdout
    assert "50.0 %" in done.stdout
    before = out.read_bytes()
    assert cli(*arguments).exit_code == 0
    assert out.read_bytes() == before
    refused = cli(*arguments, "--seed", 1)
    assert refused.exit_code == 1
    assert "the tape is of a run with seed 0, this run has seed 1" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--picture", "p.svg"], 2, "there is something to draw only where pruning goes in steps"),
        (["--step", "0.1", "--picture", "p.pdf"], 1, "must end in .png or .svg"),
        (["--step", "2"], 1, "step is 2.0; it is the fraction of the channels that each step removes"),
        (["--step", "0.1", "--plan", "PLAN"], 2, "a plan is replayed at once; give either --plan or --step"),
        (["--step", "0.1", "--min-accuracy", "0.9"], 2, "--min-accuracy is measured on labelled data; give --data"),
        (["--step", "0.1", "--tape", "OUT"], 2, "everything that is written needs a path of its own"),
        (["--interval", "1", "0"], 1, "input interval is 1 to 0; give two numbers, the lower first"),
        (["--compat", "2"], 1, "compat is '2'; choose 'paoding-1.0' or nothing"),
        (["--compensate", "some"], 1, "compensate is 'some'; choose auto, none, merge, least-squares"),
        (["--epsilon", "-1"], 1, "epsilon is -1; it is how far the attack may go, at least 0"),
    ],
)
def test_refused(tmp_path: Path, arguments: list[str], status: int, text: str) -> None:
    onnx.save(MLP, tmp_path / "m.onnx")
    onnxprune.prune(MLP).plan.save(tmp_path / "plan.json")
    names = {"OUT": tmp_path / "o.onnx", "PLAN": tmp_path / "plan.json"}
    done = cli("prune", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", *(names.get(a, a) for a in arguments))
    assert done.exit_code == status, done.output
    assert text in " ".join(done.stderr.replace("│", " ").split())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "plan.json"]
