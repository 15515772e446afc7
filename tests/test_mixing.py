"""``--mixing``: cuts that change the remaining values are off by default, marked, and never taken for proved."""

from __future__ import annotations

from pathlib import Path

import judge
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import onnxprune
from onnxprune import proof
from onnxprune.cli import app

EXPORTED = Path(__file__).parent / "exported"
NAMES = [
    "bert.ts.onnx",
    "gpt2.ts.onnx",
    "llama_gqa.dynamo23.onnx",
    "t5.ts.onnx",
    "vit.ts.onnx",
    "convnext.ts.onnx",
    "gru_tower.ts.onnx",
]


@pytest.mark.parametrize("name", NAMES)
def test_it_cuts_more_and_runs(name: str) -> None:
    model = onnx.load(EXPORTED / name)
    exact = onnxprune.prune(EXPORTED / name)
    mixing = onnxprune.prune(EXPORTED / name, mixing=True)
    assert all(row.group.exact for row in exact.report.groups)
    assert any(not row.group.exact and row.kept < row.group.size for row in mixing.report.groups)
    assert mixing.report.after.parameters < exact.report.after.parameters
    assert "groups marked as mixing (" in str(mixing.report)
    feeds = judge.feeds(model)
    for one, other in zip(judge.run(model, feeds), judge.run(mixing.model, feeds), strict=True):
        assert one.shape == other.shape
        assert np.isfinite(other).all()


def test_mixing_is_not_exact() -> None:
    """Or it would not have to be marked: the normalised values are others."""
    model = onnx.load(EXPORTED / "vit.ts.onnx")
    result = onnxprune.prune(model, mixing=True, criterion="random")
    with pytest.raises(AssertionError, match="differs from masked"):
        judge.assert_equal(model, result.model, result.plan.to_dict())


def test_a_wrong_exact_cut_is_still_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = proof.mask

    def wrong(graph: onnxprune.graph.Graph, plan: onnxprune.Plan) -> object:
        return real(graph, onnxprune.Plan(plan.model_sha256, plan.sites[:1], plan.copies))

    monkeypatch.setattr(proof, "mask", wrong)
    with pytest.raises(onnxprune.VerificationError, match="differs from the masked original"):
        onnxprune.prune(EXPORTED / "vit.ts.onnx", mixing=True)


def test_replaying_needs_the_flag(tmp_path: Path) -> None:
    path = EXPORTED / "vit.ts.onnx"
    onnxprune.prune(path, mixing=True).plan.save(tmp_path / "plan.json")
    assert onnxprune.prune(path, mixing=True, plan=tmp_path / "plan.json").plan.sites
    with pytest.raises(onnxprune.OnnxpruneError, match="can't be cut: LayerNormalization works over this axis as a whole"):
        onnxprune.prune(path, plan=tmp_path / "plan.json")


def test_not_together_with_free() -> None:
    done = CliRunner().invoke(app, ["prune", str(EXPORTED / "vit.ts.onnx"), "--dry-run", "--mixing", "--free"])
    assert done.exit_code == 2
    assert done.stderr.strip() == "onnxprune: error: what mixing cuts is never free; give either --mixing or --free"
