"""Quantised and fused models through the public API: what masks write, what is scored, what stays a barrier and why."""

from __future__ import annotations

from pathlib import Path

import judge
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cases import BY_NAME, Net
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.channels import analyse
from onnxprune.graph import load
from onnxprune.plan import Plan

FILLED = {
    "DequantizeLinear-13-unsigned": 128,
    "DequantizeLinear-13-consumer_of_one_point": 12,
    "QLinearConv-17-unsigned": 128,
    "MatMulInteger-10-both_zero_points": 9,
    "com.microsoft.QGemm-17-zero_point": 9,
    "DequantizeLinear-13-rows_of_their_own_points": [3, -4, 0, 7, 5, -2],
    "DequantizeLinear-13-columns_of_their_own_points": [3, -4, 0, 7, 5, -2],
}


@pytest.mark.parametrize("name", FILLED)
def test_the_plan_says_what_stands_for_zero(name: str, tmp_path: Path) -> None:
    """A reader of the plan who knows nothing of quantisation can mask by it, and can't without it.

    What comes in is not zero where it leaves, so that the weight must be.
    """
    case = BY_NAME[name]
    net = Net(case.opset)
    net.consume(case.build(net, net.Sigmoid(net.producer(case.start))), "auto", case.start)
    model = net.model()
    result = onnxprune.prune(model, ratio=0.5, criterion="random")
    plan = result.plan.to_dict()
    fills = [site["fill"] for site in plan["sites"] if "fill" in site]
    assert FILLED[name] in fills
    judge.assert_equal(model, result.model, plan)
    result.plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == result.plan
    assert onnxprune.prune(model, plan=tmp_path / "plan.json").model == result.model
    plain = [{key: value for key, value in site.items() if not key.startswith("fill")} for site in plan["sites"]]
    with pytest.raises(AssertionError):
        judge.assert_equal(model, result.model, plan | {"sites": plain})


def test_plain_weights_have_no_fill() -> None:
    result = onnxprune.prune(BY_NAME["QLinearConv-17"].net().model(), criterion="random")
    assert result.plan.sites
    assert not any("fill" in site for site in result.plan.to_dict()["sites"])


def test_scores_count_from_the_zero_point() -> None:
    """The channel whose bytes are near the zero point leaves, not the one whose bytes are small."""
    net = Net(17)
    x = net.producer("rows")
    weight = np.full((8, 6), 128 + 40, np.uint8)
    weight[:, 2] = 128 + 3
    weight[:, 4] = 2
    y = net.MatMul(x, net.DequantizeLinear(net.store(weight), 0.02, net.store(np.array(128, np.uint8))))
    net.consume(y, "dense", "rows")
    coupling = analyse(load(net.model()))
    group = next(g for g in coupling.groups if g.size == 6)
    scores = onnxprune.importance.l1(group, coupling.graph.weights, None)
    assert int(np.argmin(scores)) == 2


def _optimised(level: ort.GraphOptimizationLevel, folder: Path) -> onnx.ModelProto:
    """A small convolutional network as onnxruntime's optimiser leaves it."""
    net = Net(17)
    x = net.producer("image")
    x = net.Relu(net.Conv(net.Relu(x), net.w(16, 8, 3, 3), net.w(16), pads=[1] * 4))
    net.consume(net.Relu(net.Conv(x, net.w(8, 16, 1, 1), net.w(8))), "conv", "image")
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(net.model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def test_fused_model_is_cut(tmp_path: Path) -> None:
    model = _optimised(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, tmp_path)
    assert any(node.op_type == "FusedConv" for node in model.graph.node)
    result = onnxprune.prune(model, ratio=0.5)
    judge.assert_equal(model, result.model, result.plan.to_dict())
    assert judge.parameters(result.model) < judge.parameters(model) / 2
    assert result.report.after.macs < result.report.before.macs / 2


def test_weights_laid_out_for_a_processor_stay(tmp_path: Path) -> None:
    model = _optimised(ort.GraphOptimizationLevel.ORT_ENABLE_ALL, tmp_path)
    if not any(node.domain == "com.microsoft.nchwc" for node in model.graph.node):
        pytest.skip("onnxruntime does not block layouts on this processor")
    report = onnxprune.inspect(model)
    assert any("laid out in blocks for one kind of processor" in f.reason for f in report.frozen)


def attributes(model: onnx.ModelProto, op: str) -> dict[str, object]:
    node = next(node for node in model.graph.node if node.op_type == op)
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def test_the_scale_that_was_meant_is_written_out() -> None:
    """Columns leave every head: one over the root of the original width."""
    model = BY_NAME["Attention-23-3-D_other_values"].net().model()
    pruned = onnxprune.prune(model, ratio=0.5).model
    found = attributes(pruned, "Attention")
    assert found["q_num_heads"] == found["kv_num_heads"] == 2
    assert found["scale"] == pytest.approx(6**-0.5)
    whole = onnxprune.prune(BY_NAME["Attention-23-3-D_many_heads"].net().model(), ratio=0.5).model
    found = attributes(whole, "Attention")
    assert found["q_num_heads"] == found["kv_num_heads"] == 4
    assert "scale" not in found


def test_sizes_of_operators_that_onnx_does_not_know() -> None:
    """Shapes behind them come from runs, at two sizes of the batch, and what is reshaped by them is still right."""
    net = Net(17, dynamic=True)
    x = net.producer("tokens")
    y = net.BiasGelu(net.MatMul(x, net.w(8, 16)), net.w(16), domain="com.microsoft")
    y = net.Reshape(y, net.Concat(net.Slice(net.Shape(y), [0], [2]), [4, 4], axis=0))
    y = net.Reshape(net.SimplifiedLayerNormalization(y, net.w(4)), [0, 0, -1])
    net.consume(y, "dense", "tokens")
    model = net.model()
    result = onnxprune.prune(model, ratio=0.5)
    judge.assert_equal(model, result.model, result.plan.to_dict())
    assert result.report.verification.inputs > 1
    weights = [numpy_helper.to_array(t).shape for t in result.model.graph.initializer]
    assert (4, 8) in weights  # half of the channels, and two of the four heads
