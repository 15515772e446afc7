"""The command line: what it prints, writes and returns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import freed
import graphs
import judge
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from onnxprune.cli import app


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(graphs.build(["plain", "residual", "gate"], "pool", 0), path)
    return path


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_prune_writes_model_plan_and_report(model: Path, tmp_path: Path) -> None:
    out, plan, report = tmp_path / "o.onnx", tmp_path / "p.json", tmp_path / "r.json"
    result = cli("prune", model, "-o", out, "--ratio", 0.5, "--save-plan", plan, "--report", report)
    assert result.exit_code == 0, result.output
    assert "verified: the pruned model equals the masked original" in result.stdout
    judge.assert_equal(onnx.load(model), onnx.load(out), json.loads(plan.read_text()))
    assert json.loads(report.read_text())["model"]["after"]["parameters"] == judge.parameters(onnx.load(out))
    replayed = tmp_path / "again.onnx"
    assert cli("prune", model, "-o", replayed, "--plan", plan).exit_code == 0
    assert replayed.read_bytes() == out.read_bytes()


def test_dry_run_writes_no_model(model: Path, tmp_path: Path) -> None:
    result = cli("prune", model, "-o", tmp_path / "o.onnx", "--dry-run", "--save-plan", tmp_path / "p.json")
    assert result.exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "p.json"]


def test_options_change_something(model: Path, tmp_path: Path) -> None:
    """Every option of prune that chooses channels leads to another plan."""
    plans = {}
    options = {
        "default": [],
        "ratio": ["--ratio", 0.25],
        "criterion": ["--criterion", "l2"],
        "random": ["--criterion", "random"],
        "seed": ["--criterion", "random", "--seed", 7],
        "scope": ["--scope", "global"],
        "min": ["--min-channels", 7],
        "round": ["--round-to", 5],
        "freeze": ["--freeze", "Conv_1*"],
    }
    for name, extra in options.items():
        plan = tmp_path / f"{name}.json"
        result = cli("prune", model, "--dry-run", "--save-plan", plan, *extra)
        assert result.exit_code == 0, result.output
        plans[name] = plan.read_text()
    assert len(set(plans.values())) == len(plans)


def test_data_adds_accuracy_and_agreement(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = tmp_path / "data.npz"
    np.savez(data, x=rng.standard_normal((40, 3, 8, 8)).astype(np.float32), labels=rng.integers(0, 5, 40))
    result = cli("prune", model, "--dry-run", "--data", data, "--report", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "r.json").read_text())["metrics"]
    assert set(metrics["before"]) == {"accuracy", "loss"}
    assert set(metrics["after"]) == {"accuracy", "agreement", "loss", "relative_error"}


def test_inspect_shows_groups_and_what_is_frozen(model: Path, tmp_path: Path) -> None:
    result = cli("inspect", model, "--json", tmp_path / "r.json")
    assert result.exit_code == 0
    assert "graph output 'out0' keeps its shape" in result.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert all(g["kept"] == g["channels"] for g in report["groups"])
    assert report["frozen"]


def test_compare(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    cli("prune", model, "-o", out)
    np.savez(tmp_path / "d.npz", image=np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32))
    result = cli("compare", model, out, "--data", tmp_path / "d.npz", "--report", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    for word in ("parameters", "MACs", "latency, median", "agreement", "relative error"):
        assert word in result.stdout
    facts = json.loads((tmp_path / "c.json").read_text())
    assert facts["pruned"]["parameters"] < facts["original"]["parameters"]
    assert 0 <= facts["metrics"]["agreement"] <= 1


def test_ops_prints_the_table() -> None:
    result = cli("ops")
    assert result.exit_code == 0
    assert "| Conv | exact | `n (g i) *, (g o) i *, (g o) -> n (g o) *` |" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["prune", "MODEL"], 2, "give the pruned model's path, or --dry-run"),
        (["prune", "MODEL", "-o", "OUT", "--ratio", "1"], 1, "ratio is 1.0; it is the fraction"),
        (["prune", "MODEL", "-o", "OUT", "--criterion", "best"], 2, "criterion 'best' does not exist"),
        (["prune", "MODEL", "-o", "OUT", "--freeze", "zzz*"], 2, "--freeze 'zzz*' matches no node and no tensor"),
        (["prune", "MODEL", "-o", "MODEL"], 1, "is the input itself"),
        (["prune", "nowhere.onnx", "-o", "OUT"], 1, "does not exist"),
        (["prune", "MODEL", "-o", "OUT", "--wrong"], 2, "No such option"),
        (["prune", "MODEL", "-o", "OUT", "--plan", "nowhere.json"], 1, "can't be read"),
        (["prune", "MODEL", "-o", "OUT", "--data", "nowhere.npz"], 1, "do not exist"),
        (["inspect", "nowhere.onnx"], 1, "does not exist"),
        (["compare", "MODEL", "nowhere.onnx"], 1, "does not exist"),
    ],
)
def test_failures(model: Path, tmp_path: Path, arguments: list[str], status: int, text: str) -> None:
    names = {"MODEL": str(model), "OUT": str(tmp_path / "out.onnx")}
    before = model.read_bytes()
    result = cli(*(names.get(a, a) for a in arguments))
    assert result.exit_code == status
    assert text in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]
    assert model.read_bytes() == before
    if status == 1:
        assert len(result.stderr.strip().splitlines()) == 1


def test_outputs_need_a_path_each(model: Path, tmp_path: Path) -> None:
    result = cli("prune", model, "-o", tmp_path / "o.onnx", "--report", tmp_path / "o.onnx")
    assert result.exit_code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]


def test_a_defect_gives_one_line(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("somewhere\ndeep")

    monkeypatch.setattr("onnxprune.standing.apply", broken)
    result = cli("prune", model, "-o", tmp_path / "o.onnx")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "onnxprune: error: ZeroDivisionError: somewhere deep; this is a defect of onnxprune, please report it with the model"
    ]
    assert not (tmp_path / "o.onnx").exists()


def test_module_and_version() -> None:
    done = subprocess.run([sys.executable, "-m", "onnxprune", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("onnxprune ")


def test_free(tmp_path: Path) -> None:
    maker = freed.Maker(graphs.build(["plain", "residual", "gate"], "pool", 0))
    group = maker.groups[0]
    maker.zero(group, 1)
    path, out, plan, report = (tmp_path / name for name in ("m.onnx", "o.onnx", "p.json", "r.json"))
    onnx.save(maker.finish(), path)
    result = cli("prune", path, "-o", out, "--ratio", 0, "--free", "--save-plan", plan, "--report", report)
    assert result.exit_code == 0, result.output
    assert "verified: the pruned model equals the original (" in result.stdout
    assert json.loads(report.read_text())["free"] == [{"group": group.name, "zero": 1, "unread": 0, "constant": 0, "copies": 0}]
    freed.assert_original(onnx.load(path), onnx.load(out))
    refused = cli("prune", path, "-o", out, "--free", "--plan", plan)
    assert refused.exit_code == 2
    assert "give either --plan or --free" in refused.stderr
