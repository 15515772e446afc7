"""Walks through models: part by part, in any order, nothing twice, and only what is still needed is kept."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cases_control import branch
from cases_net import Net
from onnx import numpy_helper
from test_linear import LAYERS, finished, seen

from onnxprune.errors import ModelError
from onnxprune.graph import load
from onnxprune.leastsquares import Walk
from onnxprune.leastsquares.walk import ordered
from onnxprune.runtime import Session

RNG = np.random.default_rng


def winding(g: Net) -> str:
    """Branches, a branch in a subgraph that reads from outside, a Constant node, two outputs of one node."""
    x = g.input(g.randn(4, 6))
    a = g.Relu(g.Gemm(x, g.constant(g.randn(6, 8)), g.w(8)))
    b = g.Tanh(g.MatMul(x, g.w(6, 8)))
    first, second = g.Split(g.Concat(a, b, axis=1), [8, 8], outputs=2, axis=1)
    condition = g.Greater(g.ReduceSum(first, keepdims=0), 0.0)
    c = branch(g, condition, lambda t: t.Mul(second, b), lambda e: e.Sub(a, second))
    return g.Add(g.Sigmoid(c), g.MatMul(g.Add(first, g.MatMul(x, g.w(6, 8))), g.w(8, 8)))


def winding_model() -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]], list[str]]:
    graph, feeds = finished(winding)
    chunks = [{name: RNG(k).standard_normal(v.shape).astype(np.float32) for name, v in feeds.items()} for k in range(3)]
    model = graph.assemble().complete()
    return model, chunks, [name for node in model.graph.node for name in node.output]


@pytest.mark.parametrize("seed", range(4))
def test_walks_in_any_order_see_what_one_run_sees(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, chunks, names = winding_model()
    graph = load(model)
    names = [name for name in names if name not in graph.weights]
    wanted = dict(zip(names, zip(*(seen(graph, chunk, *names) for chunk in chunks), strict=True), strict=True))
    ran: list[str] = []

    class Counting(Session):
        def __init__(self, part: onnx.ModelProto, **options: object) -> None:
            ran.extend(node.output[0] for node in part.graph.node)
            super().__init__(part, **options)

    monkeypatch.setattr("onnxprune.leastsquares.walk.Session", Counting)
    order = RNG(seed).permutation(names).tolist()
    walk = Walk(model, chunks, order)
    for name in order:
        for found, expected in zip(walk.take(name), wanted[name], strict=True):
            assert np.allclose(found, expected, atol=1e-6)
    assert len(ran) == len(set(ran)) == len(model.graph.node)
    assert walk._there == {}


def test_only_what_is_needed_runs_and_is_kept() -> None:
    model, chunks, _ = winding_model()
    walk = Walk(model, chunks, ["relu2", "tanh4"])
    walk.take("relu2")
    assert set(walk._there) == {"x0", "relu2"}  # which the Concat and the branch will read
    walk.take("tanh4")
    assert walk._done.count(True) == 5
    assert "sigmoid11" not in walk._there
    with pytest.raises(KeyError):  # nobody has said that it would be wanted
        walk.take("gemm1")


def test_tensors_are_kept_as_often_as_they_are_wanted() -> None:
    model, chunks, _ = winding_model()
    last = model.graph.output[0].name
    walk = Walk(model, chunks, [last, last])
    assert np.array_equal(walk.take(last)[1], walk.take(last)[1])
    with pytest.raises(KeyError):
        walk.take(last)


def test_what_is_stored_can_be_changed_underway() -> None:
    """What has been computed stays; an initializer, a Constant node, and a bias that a node has not had."""
    model, chunks, _ = winding_model()
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    wide = [node for node in model.graph.node if node.op_type == "MatMul"]
    x = chunks[0]["x0"]
    new, bias = RNG(0).standard_normal((6, 8)).astype(np.float32), RNG(1).standard_normal(8).astype(np.float32)
    walk = Walk(model, chunks, [gemm.output[0], wide[0].output[0], wide[1].output[0]])
    before = walk.take(wide[0].output[0])[0]
    walk.store(gemm.input[1], new)
    walk.store(wide[0].input[1], new)
    walk.store(wide[1].input[1], new)
    walk.read_own(gemm.output[0], 2, bias)
    assert np.allclose(walk.take(gemm.output[0])[0], x @ new + bias, atol=1e-5)
    assert np.allclose(walk.take(wide[1].output[0])[0], x @ new, atol=1e-5)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert np.allclose(before, x @ stored[wide[0].input[1]], atol=1e-5)


def test_a_bias_that_a_node_lacks() -> None:
    graph, feeds = finished(lambda g: g.Conv(g.input(g.randn(2, 3, 4, 4)), g.w(4, 3, 1, 1)))
    walk = Walk(graph.assemble().complete(), [feeds], ["conv0"])
    walk.read_own("conv0", 2, np.arange(4, dtype=np.float32))
    plain = seen(graph, feeds, "conv0")[0]
    assert np.allclose(walk.take("conv0")[0], plain + np.arange(4)[:, None, None], atol=1e-5)


def test_nodes_in_any_order_are_put_in_one() -> None:
    model, _, _ = winding_model()
    nodes = list(model.graph.node)
    for seed in range(3):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        del copy.graph.node[:]
        copy.graph.node.extend(nodes[k] for k in RNG(seed).permutation(len(nodes)))
        with pytest.raises(onnx.checker.ValidationError, match="sorted"):
            onnx.checker.check_model(copy)
        sorted_ = ordered(copy)
        del copy.graph.node[:]
        copy.graph.node.extend(sorted_)
        onnx.checker.check_model(copy)


def test_a_part_that_does_not_run_says_why() -> None:
    graph, feeds = finished(LAYERS["gemm"])
    walk = Walk(graph.assemble().complete(), [{name: v[:, :-1] for name, v in feeds.items()}], ["gemm0"])
    with pytest.raises(ModelError, match=r"onnxruntime .* can't run the model: .*Gemm.*; correct it, or export it again"):
        walk.take("gemm0")


def test_what_has_no_room_in_memory_lies_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    model, chunks, _ = winding_model()
    names = [node.output[0] for node in model.graph.node if node.op_type in ("Relu", "Tanh", "Concat")]
    plain, filed = Walk(model, chunks, names), Walk(model, chunks, names)
    wanted = [plain.take(name) for name in names]
    monkeypatch.setattr("onnxprune.leastsquares.walk.MEMORY", 200)
    monkeypatch.setattr("onnxprune.leastsquares.walk.PAGE", 1)
    found = [filed.take(name) for name in names]
    assert any(isinstance(values, np.memmap) for parts in found for values in parts)
    assert not any(isinstance(values, np.memmap) for parts in wanted for values in parts)
    for one, other in zip(wanted, found, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
