"""What ``import onnxprune`` offers, and that the contract's calls work."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
from pathlib import Path

import graphs
import onnx
import pytest

import onnxprune


def test_all_is_what_is_visible() -> None:
    public = {n for n in vars(onnxprune) if not n.startswith("_")} - _submodules()
    assert sorted({*public, "__version__"}) == sorted(onnxprune.__all__)
    assert len(set(onnxprune.__all__)) == len(onnxprune.__all__)


def _submodules() -> set[str]:
    folder = Path(onnxprune.__file__).parent
    names = {p.stem for p in folder.iterdir() if p.suffix == ".py" or p.is_dir()}
    return names - {"compare", "family", "finetune", "profile", "quantize", "sparsify", "sweep"}


def test_everything_public_is_documented() -> None:
    for name in onnxprune.__all__:
        if not name.startswith("__"):
            assert getattr(onnxprune, name).__doc__, name


def test_docstring_examples() -> None:
    """The examples in the package's docstrings print what they say."""
    modules = [m.name for m in pkgutil.walk_packages(onnxprune.__path__, "onnxprune.") if not m.name.endswith("__main__")]
    results = [doctest.testmod(importlib.import_module(name)) for name in modules]
    assert sum(r.attempted for r in results) >= 4
    assert sum(r.failed for r in results) == 0


def test_prune_as_in_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(graphs.build(["plain", "residual"], "pool", 0), path)
    result = onnxprune.prune(str(path), ratio=0.5, criterion="l1", scope="uniform", data=None, seed=0)
    assert isinstance(result.model, onnx.ModelProto)
    result.plan.save(tmp_path / "plan.json")
    assert onnxprune.Plan.load(tmp_path / "plan.json") == result.plan
    result.report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == result.report.to_dict()
    result.save(tmp_path / "small.onnx")
    assert onnx.load(tmp_path / "small.onnx") == result.model
    assert "parameters" in str(result.report)


def test_report_has_the_contract_s_fields() -> None:
    result = onnxprune.prune(graphs.build(["plain", "gate"], "pool", 0), ratio=0.5)
    report = result.report.to_dict()
    assert report["schema"] == "onnxprune.report/1"
    assert set(report["model"]["before"]) == {"parameters", "macs", "bytes"}
    assert report["model"]["after"]["macs"] < report["model"]["before"]["macs"]
    for group in report["groups"]:
        assert set(group) == {"name", "channels", "kept", "parameters", "exact", "sites"}
        assert group["kept"] == group["channels"] - int(group["channels"] * 0.5)
        assert all(set(site) == {"tensor", "axis"} for site in group["sites"])
    for frozen in report["frozen"]:
        assert set(frozen) == {"tensor", "axis", "channels", "parameters", "reason", "node"}
    assert report["verification"]["passed"] is True
    assert report["verification"]["inputs"] >= 2
    assert {"load", "analyse", "score", "surgery", "verify"} <= set(report["elapsed_s"])
    plan = result.plan.to_dict()
    assert plan["schema"] == "onnxprune.plan/1"
    assert len(plan["model_sha256"]) == 64


def test_a_proto_is_not_changed() -> None:
    model = graphs.build(["plain", "split", "gate"], "flatten", 0)
    before = model.SerializeToString()
    onnxprune.prune(model, ratio=0.5)
    assert model.SerializeToString() == before


def test_the_same_seed_gives_the_same_model() -> None:
    model = graphs.build(["plain", "residual", "concat"], "pool", 0)
    one, two, other = (onnxprune.prune(model, ratio=0.5, criterion="random", seed=s) for s in (1, 1, 2))
    assert one.model == two.model
    assert one.plan != other.plan


@pytest.mark.parametrize("option", [{"criterion": "l9"}, {"freeze": ("nothing",)}])
def test_usage_errors(option: dict[str, object]) -> None:
    with pytest.raises(onnxprune.UsageError):
        onnxprune.prune(graphs.build(["plain"], "pool", 0), **option)
