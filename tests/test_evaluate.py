"""Evaluation: metrics, and FGSM by finite differences against networks whose gradients are known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

import onnxprune
from onnxprune import Evaluator, data
from onnxprune.cli import app
from onnxprune.errors import DataError, ModelError, OnnxpruneError, OptionError, UsageError
from onnxprune.evaluate import Budget, Scores, cross_entropy, differences, find_scores, plan, predict, top_k_accuracy
from onnxprune.evaluate import classifier as forms
from onnxprune.graph import load

FEATURES, HIDDEN, CLASSES = 12, 24, 4
EPSILONS = (0.05, 0.1, 0.2, 0.4)
EPSILON = "it is the largest change of an input value, at least 0"
CLIP = "it is the lowest, then the highest value of the inputs"


def model(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], inputs: dict[str, list], outputs: dict[str, int]
) -> ModelProto:
    """Inputs: element type and shape by name; outputs: element type by name."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, *shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Net:
    """A network of two layers in float64, with its gradient, and as ONNX in float32."""

    def __init__(self, seed: int = 0, classes: int = CLASSES, scale: float = 4.0) -> None:
        rng = np.random.default_rng(seed)
        self.w = rng.standard_normal((FEATURES, HIDDEN)) / 2
        self.b = rng.standard_normal(HIDDEN) / 2
        self.v = scale * rng.standard_normal((HIDDEN, classes)) / HIDDEN**0.5
        self.x = rng.uniform(0, 1, (60, FEATURES)).astype(np.float32)
        self.labels = self.logits(self.x).argmax(axis=1) if classes > 1 else (self.logits(self.x)[:, 0] > 0).astype(int)
        self.labels[::10] = (self.labels[::10] + 1) % max(classes, 2)

    def logits(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x.astype(np.float64) @ self.w + self.b, 0) @ self.v

    def gradient(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Of the label's log-odds."""
        z = self.logits(x)
        if z.shape[1] == 1:
            outer = np.where(labels, 1.0, -1.0)[:, None]
        else:
            others = np.where(np.arange(z.shape[1]) == labels[:, None], -np.inf, z)
            outer = -np.exp(others - others.max(axis=1, keepdims=True))
            outer /= -outer.sum(axis=1, keepdims=True)
            outer[np.arange(len(x)), labels] = 1
        return ((outer @ self.v.T) * (x.astype(np.float64) @ self.w + self.b > 0)) @ self.w.T

    def predicted(self, x: np.ndarray) -> np.ndarray:
        z = self.logits(x)
        return z.argmax(axis=1) if z.shape[1] > 1 else (z[:, 0] > 0).astype(int)

    def robust(self, epsilon: float, clip: tuple[float, float] | None = None) -> float:
        """What exact FGSM leaves."""
        low, high = clip or (self.x.min(), self.x.max())
        moved = np.clip(self.x - epsilon * np.sign(self.gradient(self.x, self.labels)), low, high)
        return float(np.mean((self.predicted(self.x) == self.labels) & (self.predicted(moved) == self.labels)))

    def onnx(
        self, head: str = "", batch: int | str = "N", nodes: Callable[[str], list[onnx.NodeProto]] | None = None
    ) -> ModelProto:
        """``nodes``: what comes before, from ``x`` to the given name."""
        before = nodes("h0") if nodes else [helper.make_node("Identity", ["x"], ["h0"])]
        body = [
            *before,
            helper.make_node("Gemm", ["h0", "w", "b"], ["h1"]),
            helper.make_node("Relu", ["h1"], ["h2"]),
            helper.make_node("MatMul", ["h2", "v"], ["logits" if head else "out"]),
        ]
        if head:
            body.append(helper.make_node(head, ["logits"], ["out"]))
        weights = {name: getattr(self, name).astype(np.float32) for name in "wbv"}
        return model(body, weights, {"x": [TensorProto.FLOAT, batch, FEATURES]}, {"out": TensorProto.FLOAT})


NET = Net()


def close(found: dict[float, float], expected: Callable[[float], float]) -> None:
    """Equal, but for one sample in a hundred that lies on a border."""
    for epsilon, share in found.items():
        assert abs(share - expected(epsilon)) <= 0.0167, (epsilon, share, expected(epsilon))


def slopes(proto: ModelProto, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    graph = load(proto)
    dataset = data.read({"x": x}, graph.inputs)
    ready = graph.assemble().ready()
    clean = find_scores(predict(ready, dataset, graph.inputs))
    assert clean is not None
    form = next(forms.classifiers(ready, dataset, graph.inputs, clean))
    blocks = {"x": differences.partition(x.shape[1:], x[0].size)}
    return -differences.Differences(form, dataset.inputs, labels, blocks, {"x": 1.0})(dataset.inputs, labels)["x"]


# the attack equals the exact one ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", ["", "Softmax", "LogSoftmax"])
@pytest.mark.parametrize("batch", ["N", 1, 7])
def test_attack_is_the_exact_one(head: str, batch: int | str) -> None:
    found = Evaluator(EPSILONS).evaluate(NET.onnx(head, batch), (NET.x, NET.labels))
    assert found.accuracy == pytest.approx(0.9)
    close(found.robust_accuracy, NET.robust)
    assert found.robust_accuracy[0.2] < 0.7 < found.noise_accuracy[0.2]


@pytest.mark.parametrize("head", ["", "Sigmoid"])
def test_one_output_is_class_one(head: str) -> None:
    net = Net(seed=1, classes=1)
    found = Evaluator(EPSILONS).evaluate(net.onnx(head), (net.x, net.labels))
    close(found.robust_accuracy, net.robust)
    z = net.logits(net.x)[:, 0] * np.where(net.labels, 1, -1)
    assert found.loss == pytest.approx(np.logaddexp(0, -z).mean(), rel=1e-4)


def test_signs_are_the_true_ones() -> None:
    expected = NET.gradient(NET.x, NET.labels)
    found = slopes(NET.onnx(), NET.x, NET.labels)
    assert np.mean(np.sign(found) == np.sign(expected)) > 0.99
    assert np.median(np.abs(found - expected)) < 0.03 * np.median(np.abs(expected))
    assert np.mean(np.sign(found) == np.sign(NET.gradient(NET.x, (NET.labels + 1) % CLASSES))) < 0.7  # of other labels


def test_reversed_signs_help_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong sign would show: samples move away from the border."""
    true = gradient.differences
    monkeypatch.setattr(robustness, "differences", lambda *a, **k: {name: -found for name, found in true(*a, **k).items()})
    found = Evaluator([0.5]).evaluate(NET.onnx(), (NET.x, NET.labels))
    assert found.robust_accuracy[0.5] > found.noise_accuracy[0.5] > NET.robust(0.5)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_sure_network_is_differentiated_all_the_same(hidden: bool) -> None:
    """Probabilities that are all but one in float32; ``hidden``: so that the logits can't be read."""
    net = Net(seed=3, scale=60.0)
    labels = net.predicted(net.x)
    proto = net.onnx("Softmax")
    if hidden:
        proto.graph.node[-1].output[0] = "p"
        proto.graph.node.append(helper.make_node("Abs", ["p"], ["out"]))
    p = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": net.x})[0]
    sure = p[np.arange(len(p)), labels] > 1 - 1e-7
    assert sure.mean() > 0.3
    seen = sure & (np.sort(p, axis=1)[:, -2] > 1e-30)  # below that, float32 has nothing left of the others
    expected = np.sign(net.gradient(net.x, labels))[seen]
    assert np.mean(np.sign(slopes(proto, net.x, labels))[seen] == expected) > 0.97
    assert np.mean(cross_entropy_signs(proto, net.x, labels)[seen] == expected) < 0.5


def cross_entropy_signs(proto: ModelProto, x: np.ndarray, labels: np.ndarray, step: float = 1e-3) -> np.ndarray:
    """What differences of the cross-entropy in float32 would say."""
    session, signs = ort.InferenceSession(proto.SerializeToString()), np.empty(x.shape)
    for i in range(x.shape[1]):
        move = np.float32(step) * np.eye(x.shape[1], dtype=np.float32)[i]
        up, down = (session.run(None, {"x": x + s * move})[0][np.arange(len(x)), labels] for s in (1, -1))
        signs[:, i] = np.sign(np.log(np.maximum(up, 1e-38)) - np.log(np.maximum(down, 1e-38)))
    return signs


def test_large_and_small_units() -> None:
    """The step follows the range of the inputs."""
    for unit in (255.0, 1e-3):
        net = Net()
        net.w, net.x = net.w / unit, (net.x * unit).astype(np.float32)
        found = Evaluator([e * unit for e in EPSILONS]).evaluate(net.onnx(), (net.x, net.labels))
        close(found.robust_accuracy, net.robust)


def test_half_precision_inputs() -> None:
    proto = NET.onnx(nodes=lambda to: [helper.make_node("Cast", ["x"], [to], to=TensorProto.FLOAT)])
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    x = NET.x.astype(np.float16)
    found = slopes(proto, x, NET.labels)
    assert np.mean(np.sign(found) == np.sign(NET.gradient(x, NET.labels))) > 0.95


# every model ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("declared", [1, 3, 8])
def test_a_fixed_batch_that_can_not_be_freed(declared: int) -> None:
    """It works on no more samples than it is declared for, as after an export that traced the batch."""
    rows = numpy_helper.from_array(np.arange(declared), "rows")
    proto = NET.onnx("", declared, nodes=lambda to: [helper.make_node("Gather", ["x", "rows"], [to])])
    proto.graph.initializer.append(rows)
    found = Evaluator(EPSILONS).evaluate(proto, (NET.x, NET.labels))
    close(found.robust_accuracy, NET.robust)


def test_a_reshape_that_names_the_batch_is_freed() -> None:
    shape = numpy_helper.from_array(np.array([1, FEATURES]), "shape")
    proto = NET.onnx("Softmax", 1, nodes=lambda to: [helper.make_node("Reshape", ["x", "shape"], [to])])
    proto.graph.initializer.append(shape)
    graph = load(proto)
    dataset = data.read({"x": NET.x}, graph.inputs)
    ready = graph.assemble().ready()
    clean = find_scores(predict(ready, dataset, graph.inputs))
    assert clean is not None
    form = next(forms.classifiers(ready, dataset, graph.inputs, clean))
    assert (form.batch, form.tensor, form.probabilities) == (None, "logits", False)
    found = Evaluator(EPSILONS).evaluate(proto, (NET.x, NET.labels))
    close(found.robust_accuracy, NET.robust)


def linear(weights: dict[str, np.ndarray], bias: np.ndarray) -> ModelProto:
    """Logits are a linear function of several inputs, and of ``token``, whole numbers."""
    nodes, inputs, parts = [], {}, []
    for name, w in weights.items():
        kind = TensorProto.INT64 if name == "token" else TensorProto.FLOAT
        inputs[name] = [kind, "N", *w.shape[:-1]]
        nodes.append(helper.make_node("Cast", [name], [f"{name}_f"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Flatten", [f"{name}_f"], [f"{name}_2"]))
        nodes.append(helper.make_node("MatMul", [f"{name}_2", f"{name}_w"], [f"{name}_y"]))
        parts.append(f"{name}_y")
    nodes.append(helper.make_node("Sum", [*parts, "bias"], ["out"]))
    stored = {f"{n}_w": w.reshape(-1, w.shape[-1]).astype(np.float32) for n, w in weights.items()}
    return model(nodes, stored | {"bias": bias.astype(np.float32)}, inputs, {"out": TensorProto.FLOAT})


def test_several_inputs_and_whole_numbers() -> None:
    rng = np.random.default_rng(0)
    weights = {"x": rng.standard_normal((5, 2)), "token": rng.standard_normal((3, 2)), "y": rng.standard_normal((2, 3, 2))}
    x, token, y = rng.random((40, 5), np.float32), rng.integers(0, 3, (40, 3)), 7 * rng.random((40, 2, 3), np.float32)
    arrays = {"x": x, "token": token, "y": y}
    bias = -sum(arrays[n].reshape(40, -1).mean(axis=0) @ w.reshape(-1, 2) for n, w in weights.items())

    def logits(given: dict[str, np.ndarray]) -> np.ndarray:
        return bias + sum(given[n].reshape(40, -1).astype(float) @ w.reshape(-1, 2) for n, w in weights.items())

    labels = logits(arrays).argmax(axis=1)
    side = np.where(labels, 1, -1)[:, None]
    for epsilon in (0.2, 0.4):
        moved = dict(arrays)
        for name in "xy":
            w = weights[name].reshape(-1, 2)
            sign = (side * np.sign(w[:, 1] - w[:, 0])).reshape(arrays[name].shape)
            moved[name] = np.clip(arrays[name] - epsilon * sign, arrays[name].min(), arrays[name].max())
        expected = np.mean(logits(moved).argmax(axis=1) == labels)
        found = Evaluator([epsilon]).evaluate(linear(weights, bias), {**arrays, "labels": labels})
        assert found.robust_accuracy[epsilon] == pytest.approx(expected)
        assert expected < 0.9


def test_channels_last_images() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 5, 2, 3))
    x = rng.random((30, 6, 5, 2), np.float32)
    z = x.reshape(30, -1).astype(float) @ w.reshape(-1, 3)
    bias = -z.mean(axis=0)
    labels = (z + bias).argmax(axis=1)
    signs = np.sign(slopes(linear({"x": w}, bias), x, labels)).reshape(x.shape)
    others = np.where(np.arange(3) == labels[:, None], -np.inf, z + bias)
    share = np.exp(others - others.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    expected = w[..., labels].transpose(3, 0, 1, 2) - np.einsum("hwck,nk->nhwc", w, share)
    assert np.mean(signs == np.sign(expected)) > 0.99


@pytest.mark.parametrize("zipped", [False, True])
def test_the_class_may_come_beside_the_scores(zipped: bool) -> None:
    """As scikit-learn's converter writes it, with a map from class to probability or an array."""
    proto = NET.onnx("Softmax")
    proto.graph.node.append(helper.make_node("ArgMax", ["out"], ["label"], axis=1, keepdims=0))
    proto.graph.output.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, None))
    if zipped:
        proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
        classes = list(range(CLASSES))
        proto.graph.node.append(helper.make_node("ZipMap", ["out"], ["map"], domain="ai.onnx.ml", classlabels_int64s=classes))
        kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        proto.graph.output[1].CopyFrom(helper.make_value_info("map", helper.make_sequence_type_proto(kind)))
    found = Evaluator(EPSILONS).evaluate(proto, (NET.x, NET.labels), proto)
    close(found.robust_accuracy, NET.robust)
    assert (found.loss is not None, found.agreement) == (True, 1)


def test_inputs_without_further_axes() -> None:
    """Each sample is a number."""
    nodes = [helper.make_node("Unsqueeze", ["x", "one"], ["y"]), helper.make_node("Mul", ["y", "w"], ["out"])]
    weights = {"one": np.array([1]), "w": np.array([[1, -1]], np.float32)}
    proto = model(nodes, weights, {"x": [TensorProto.FLOAT, "N"]}, {"out": TensorProto.FLOAT})
    x = np.array([-0.3, -0.1, 0.1, 0.3], np.float32)
    assert Evaluator([0.2]).evaluate(proto, (x, np.array([1, 1, 0, 0]))).robust_accuracy == {0.2: 0.5}


# the budget -------------------------------------------------------------------------------------------------------------
def test_partition_keeps_neighbours_together() -> None:
    blocks = differences.partition((3, 8, 8), 12)
    assert (blocks.grid, blocks.members.shape) == ((3, 2, 2), (12, 16))
    assert sorted(blocks.members.ravel()) == list(range(192))
    assert np.array_equal(blocks.of.reshape(3, 8, 8)[1], np.kron([[4, 5], [6, 7]], np.ones((4, 4))))
    uneven = differences.partition((7,), 3)
    assert [sorted(set(row)) for row in uneven.members.tolist()] == [[0, 1, 2], [3, 4], [5, 6]]
    assert differences.partition((7,), 7).whole


@pytest.mark.parametrize("budget", [120, 360, 10**6])
def test_passes_stay_within_the_budget(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    run = forms.Session.run
    monkeypatch.setattr(forms.Session, "run", lambda s, feeds, *a: (counted.append(len(feeds["x"])), run(s, feeds, *a))[1])
    evaluator = Evaluator(EPSILONS, budget=budget)
    planned = evaluator.plan(NET.onnx(), (NET.x, NET.labels))
    assert not counted
    found = evaluator.evaluate(NET.onnx(), (NET.x, NET.labels))
    assert 2 * planned.samples * planned.directions <= budget
    assert planned.directions == min(FEATURES, budget // 120)
    assert sum(counted) <= found.forward_passes + 20  # those that find out how to read the scores
    assert found.forward_passes <= planned.passes
    assert found.forward_passes == planned.passes - 6 * (2 * planned.directions + 2 * len(EPSILONS))  # six are wrong anyway


def test_blocks_are_weaker_but_better_than_noise() -> None:
    by_budget = {b: Evaluator([0.1], budget=b).evaluate(NET.onnx(), (NET.x, NET.labels)) for b in (360, 720, 1440)}
    shares = [found.robust_accuracy[0.1] for found in by_budget.values()]
    assert by_budget[360].noise_accuracy[0.1] > shares[0] > shares[2]
    assert shares == sorted(shares, reverse=True)


def test_default_budget_depends_on_the_work() -> None:
    x = {"x": np.zeros((500, 3, 32, 32), np.float32)}
    assert plan(x, passes=None, macs=10**5, epsilons=1, others=0).directions == 3072
    assert plan(x, passes=None, macs=4 * 10**7, epsilons=1, others=0).directions == 3 * 9 * 9
    two = {"a": np.zeros((10, 99), np.float32), "b": np.zeros((10, 1), np.float32)}
    assert [b.grid for b in plan(two, passes=200, macs=0, epsilons=1, others=0).blocks.values()] == [(9,), (1,)]


def test_what_is_said_beforehand() -> None:
    said: list[Budget] = []
    Evaluator([0.1], budget=480).evaluate(NET.onnx(), (NET.x, NET.labels), announce=said.append)
    assert str(said[0]) == (
        "at most 732 forward passes for 60 samples, 552 of them for gradients by central differences along "
        "4 blocks of neighbours (4 of 12) instead of 12 coordinates"
    )
    assert said[0].warning == (
        "gradients are estimated by finite differences along 4 blocks of neighbours (4 of 12) instead of 12 coordinates: "
        "estimates understate how vulnerable the model is; all coordinates need a budget of 1,440, or 20 samples"
    )


# counting ---------------------------------------------------------------------------------------------------------------
def test_noise_is_the_control() -> None:
    found = Evaluator(EPSILONS).evaluate(NET.onnx(), (NET.x, NET.labels))
    for epsilon in EPSILONS:
        assert found.noise_accuracy[epsilon] > found.robust_accuracy[epsilon]
    again = Evaluator([0.3], seed=0).evaluate(NET.onnx(), (NET.x, NET.labels))
    other = [Evaluator([0.3], seed=s).evaluate(NET.onnx(), (NET.x, NET.labels)).noise_accuracy[0.3] for s in range(4)]
    assert again.noise_accuracy[0.3] == other[0]
    assert len(set(other)) > 1
    assert Evaluator([0.0]).evaluate(NET.onnx(), (NET.x, NET.labels)).robust_accuracy == {0.0: 0.9}


def test_paoding_moves_dead_coordinates_upwards_and_clips_elsewhere() -> None:
    """Class 1 wins once x0 exceeds 0.05, where the gradient is zero; class 2 once x1 falls below zero."""
    w = np.array([[1, 0], [0, -1]], np.float32)
    v = np.array([[0, 100, 0], [0, 0, 100]], np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v", "c"], ["out"]),
    ]
    weights = {"w": w, "b": np.array([-0.05, 0], np.float32), "v": v, "c": np.array([1, 0, 0], np.float32)}
    proto = model(nodes, weights, {"x": [TensorProto.FLOAT, "N", 2]}, {"out": TensorProto.FLOAT})
    dead = np.array([[0.0, 0.9], [0.0, 1.0]], np.float32), np.array([0, 0])
    assert Evaluator([0.1]).evaluate_robustness(proto, dead) == {0.1: 1.0}
    assert Evaluator([0.1], counting="paoding-1.0").evaluate_robustness(proto, dead) == {0.1: 0}
    below = np.array([[0.0, 0.0], [0.04, 0.01], [0.0, 1.0]], np.float32), np.array([0, 1, 0])
    found = Evaluator([0.04], counting="paoding-1.0").evaluate(proto, below)
    assert (found.robust, found.accuracy) == ({0.04: 1}, pytest.approx(2 / 3))
    assert Evaluator([0.04]).evaluate(proto, below).robust == {0.04: 2}
    with pytest.raises(DataError, match=re.escape("input 'x' has values in [0, 2] outside of the clip range [-1, 1]; give")):
        Evaluator([0.1], counting="paoding-1.0").evaluate(proto, (2 * dead[0], dead[1]))


def test_paoding_top_k_accepts_the_clean_top_k() -> None:
    one, two = (Evaluator(EPSILONS, counting="paoding-1.0", top_k=k).evaluate(NET.onnx(), (NET.x, NET.labels)) for k in (1, 2))
    assert two.top_k[2] > one.accuracy
    assert all(two.robust[e] > one.robust[e] for e in EPSILONS)
    assert isinstance(one.robust[0.1], int)


def test_paoding_s_setters() -> None:
    evaluator = Evaluator(batch_size=50)
    evaluator.set_epsilons([0.01, 0.05])
    assert (evaluator.get_epsilons(), evaluator.get_batch_size()) == ((0.01, 0.05), 50)
    assert evaluator.evaluate(NET.onnx(), (NET.x, NET.labels)).samples == 50
    evaluator.set_batch_size(-1)
    assert evaluator.get_batch_size() is None
    assert evaluator.evaluate(NET.onnx(), (NET.x, NET.labels)).samples == 60


def test_clip() -> None:
    clip = (-0.5, 1.5)
    found = Evaluator([0.2], clip=clip).evaluate(NET.onnx(), (NET.x, NET.labels)).robust_accuracy
    close(found, lambda epsilon: NET.robust(epsilon, clip))
    assert found[0.2] < NET.robust(0.2)


def test_without_labels_the_model_s_own_classes_are_right() -> None:
    found = Evaluator(EPSILONS).evaluate(NET.onnx(), {"x": NET.x})
    assert (found.accuracy, found.loss) == (None, None)
    net = Net()
    net.labels = net.predicted(net.x)
    close(found.robust_accuracy, net.robust)
    assert found.warnings[0] == "the data have no labels: what is right is what the model itself predicts"
    assert "accuracy" not in found.metrics()


def test_agreement_and_lazy_models() -> None:
    original = NET.onnx()
    pruned = onnxprune.prune(original, ratio=0.6).pruned
    found = Evaluator(attack=None).evaluate(pruned, (NET.x, None), original)
    assert 0.2 < found.agreement < 1
    assert Evaluator(attack=None).evaluate(original, {"x": NET.x}, original).agreement == 1
    assert found.forward_passes == 120
    assert found.robust == {}


def test_nothing_is_right() -> None:
    wrong = (NET.predicted(NET.x) + 1) % CLASSES
    found = Evaluator([0.1]).evaluate(NET.onnx(), (NET.x, wrong))
    assert (found.accuracy, found.robust_accuracy, found.noise_accuracy) == (0, {0.1: 0}, {0.1: 0})


# metrics ----------------------------------------------------------------------------------------------------------------
def test_loss_and_top_k() -> None:
    z = NET.logits(NET.x)
    expected = -np.mean((z - np.log(np.exp(z).sum(axis=1, keepdims=True)))[np.arange(60), NET.labels])
    for head in ("", "Softmax", "LogSoftmax"):
        found = Evaluator(attack=None, top_k=2).evaluate(NET.onnx(head), (NET.x, NET.labels))
        assert found.loss == pytest.approx(expected, rel=1e-4)
        order = np.argsort(-z, axis=1)[:, :2]
        assert found.top_k == {2: pytest.approx((order == NET.labels[:, None]).any(axis=1).mean())}
    ties = Scores(np.zeros((2, 3), np.float32), False)
    assert [top_k_accuracy(ties, np.array([0, 2]), k) for k in (1, 2, 3)] == [0.5, 0.5, 1.0]
    assert cross_entropy(ties, np.array([0, 2])) == pytest.approx(np.log(3))


def test_log_odds_keep_their_digits() -> None:
    p = np.array([[1, 1e-30, 2e-30], [0, 0, 1]], np.float32)
    assert Scores(p, True).log_odds(np.array([0, 0])) == pytest.approx([-np.log(3e-30), np.log(np.finfo(np.float32).tiny)])
    z = np.array([[900, -900, -np.inf], [0, -np.inf, -np.inf]], np.float32)
    assert Scores(z, False).log_odds(np.array([0, 0])).tolist() == [1800, np.inf]


def test_report(tmp_path: Path) -> None:
    found = Evaluator((0.1, 8 / 255), top_k=2).evaluate(NET.onnx(), (NET.x, NET.labels), NET.onnx())
    found.save(tmp_path / "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report == found.to_dict()
    assert report["schema"] == "onnxprune.evaluation/1"
    assert list(report["metrics"]["robust_accuracy"]) == ["0.1", "0.0313725490196"]
    assert set(report["metrics"]) == {"accuracy", "loss", "top_k", "robust_accuracy", "noise_accuracy", "agreement"}
    text = str(found)
    assert re.search(r"accuracy +90.0 %", text)
    assert re.search(r"0.1 +\d+.\d % +\d+.\d %", text)
    assert text.endswith("along each of 12 coordinates: estimates can understate how vulnerable the model is")


# refusals ---------------------------------------------------------------------------------------------------------------
GOOD = {"x": NET.x, "labels": NET.labels}
BAD_DATA = {
    "name": ({"y": NET.x}, "data has arrays ['y'], the model's inputs are ['x']; name one array after each"),
    "shape": ({"x": NET.x[:, :5]}, "data: array 'x' has shape (60, 5), the model's input is ['N', 12]; samples come first"),
    "type": ({"x": NET.x.astype(str)}, "data: array 'x' holds <U32, the model's input float32; convert it first"),
    "none": ({"x": NET.x[:0]}, "data: every array needs the same number of samples on its first axis, at least one; found {0}"),
    "nan": ({"x": NET.x * np.nan}, "data: array 'x' holds NaN or infinite values (as float32); clean the data first"),
    "length": (GOOD | {"labels": NET.labels[:5]}, "data: labels are int64 (5,); they must be integers of shape (60,)"),
    "float": (GOOD | {"labels": NET.labels / 2}, "data: labels are float64 (60,); they must be integers of shape (60,)"),
    "negative": (GOOD | {"labels": np.full(60, -1)}, "data: label -1 is negative; labels are class numbers from 0"),
    "range": (
        GOOD | {"labels": np.where(np.arange(60) == 7, 4, NET.labels)},
        "label 4 of sample 7 is out of range: the model has 4 classes, 0 to 3; number the labels as the model does",
    ),
    "pair": (
        (NET.x, NET.labels, NET.x),
        "data are neither a path, nor arrays by name, nor a pair (X, y) of samples and labels; give one of these",
    ),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, text = BAD_DATA[name]
    monkeypatch.setattr("onnxprune.evaluator.fgsm", lambda *a, **k: pytest.fail("the attack has begun"))
    with pytest.raises(DataError) as caught:
        Evaluator().evaluate(NET.onnx(), given, announce=lambda plan: pytest.fail("the work has begun"))
    assert str(caught.value) == text


BAD_OPTIONS = {
    "negative": (
        {"epsilons": [0.1, -0.1]},
        OptionError,
        f"epsilon is -0.1; {EPSILON}",
    ),
    "nan": ({"epsilons": [np.nan]}, OptionError, f"epsilon is nan; {EPSILON}"),
    "clip": ({"clip": (1, 0)}, OptionError, f"clip is 1 0; {CLIP}"),
    "clip nan": (
        {"clip": (0, np.nan)},
        OptionError,
        f"clip is 0 nan; {CLIP}",
    ),
    "attack": ({"attack": "pgd"}, UsageError, "attack 'pgd' does not exist; choose fgsm"),
    "graph": (
        {"gradient": "graph"},
        OptionError,
        "gradient is 'graph', which this version does not have; take 'finite-difference'",
    ),
    "gradient": ({"gradient": "x"}, UsageError, "gradient 'x' does not exist; choose finite-difference"),
    "counting": ({"counting": "x"}, UsageError, "counting 'x' does not exist; choose one of all, paoding-1.0"),
    "top_k": ({"top_k": 0}, OptionError, "top_k is 0; it is a number of classes, at least 1"),
    "many": ({"top_k": 5}, OptionError, "top_k is 5, but the model has 4 classes; choose fewer"),
    "batch": ({"batch_size": 0}, OptionError, "batch_size is 0; it is the number of samples to take, at least 1, or -1 for all"),
    "budget": ({"budget": 0}, OptionError, "budget is 0; it is a number of forward passes, at least 2 for each sample"),
    "small": (
        {"budget": 119},
        OptionError,
        "budget is 119; 60 samples need at least 120 forward passes for gradients, two along each direction; "
        "raise it, or take fewer samples",
    ),
    "leaves": (
        {"clip": (0.5, 1)},
        DataError,
        f"input 'x' has values in [{NET.x.min():g}, {NET.x.max():g}] outside of the clip range [0.5, 1]; "
        "give the range that the model's inputs have",
    ),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name: str) -> None:
    options, kind, text = BAD_OPTIONS[name]
    with pytest.raises(OnnxpruneError) as caught:
        Evaluator(**options).evaluate(NET.onnx(), GOOD, announce=lambda plan: pytest.fail("the work has begun"))
    assert (type(caught.value), str(caught.value)) == (kind, text)


def labels_only() -> ModelProto:
    proto = NET.onnx()
    proto.graph.node[-1].output[0] = "z"
    proto.graph.node.append(helper.make_node("ArgMax", ["z"], ["out"], axis=1, keepdims=0))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    return proto


def test_a_model_of_classes_without_scores() -> None:
    found = Evaluator(attack=None).evaluate(labels_only(), GOOD)
    assert (found.accuracy, found.loss) == (pytest.approx(0.9), None)
    for options in ({}, {"attack": None, "top_k": 2}):
        with pytest.raises(DataError, match="the model gives its predicted class but no float scores, so that "):
            Evaluator(**options).evaluate(labels_only(), GOOD)


def test_whole_numbers_can_not_be_attacked() -> None:
    token = {"token": np.random.default_rng(0).integers(0, 9, (20, 5))}
    proto = linear({"token": np.random.default_rng(0).standard_normal((5, 3))}, np.zeros(3))
    assert Evaluator(attack=None).evaluate(proto, token, proto).agreement == 1
    with pytest.raises(DataError) as caught:
        Evaluator().evaluate(proto, token)
    said = (
        "the model's inputs ['token'] hold whole numbers (token ids, say), which no epsilon can move; evaluate without an attack"
    )
    assert str(caught.value) == said


def test_models_that_are_no_classifiers() -> None:
    proto = model(
        [helper.make_node("Neg", ["x"], ["out"])], {}, {"x": [TensorProto.FLOAT, "N", 4, 4]}, {"out": TensorProto.FLOAT}
    )
    with pytest.raises(DataError, match=re.escape("no output of the model has the shape (samples, classes)")):
        Evaluator(attack=None).evaluate(proto, {"x": np.ones((3, 4, 4), np.float32)})


def test_scores_that_are_nan() -> None:
    proto = NET.onnx("Log")  # of logits, which may be negative
    with pytest.raises(ModelError, match="the model's scores are NaN or infinite for 1 of 1 samples"):
        Evaluator(attack=None).evaluate(proto, GOOD)


def test_inputs_of_different_fixed_batches() -> None:
    proto = linear({"x": np.ones((2, 3)), "y": np.ones((2, 3))}, np.zeros(3))
    for value, size in zip(proto.graph.input, (1, 2), strict=True):
        value.type.tensor_type.shape.dim[0].dim_value = size
    with pytest.raises(DataError, match=re.escape("the model's inputs have different fixed first axes, {'x': 1, 'y': 2};")):
        Evaluator().evaluate(proto, {n: np.ones((4, 2), np.float32) for n in "xy"})


# command line -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    onnx.save(NET.onnx("Softmax"), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **GOOD)
    return tmp_path / "m.onnx", tmp_path / "d.npz"


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_command(files: tuple[Path, Path], tmp_path: Path) -> None:
    proto, arrays = files
    plain = cli(proto, "--data", arrays, "--report", tmp_path / "r.json")
    assert plain.exit_code == 0, plain.output
    assert plain.stderr == ""
    assert set(json.loads((tmp_path / "r.json").read_text())["metrics"]) == {"accuracy", "loss"}
    options = ["--epsilon", 0.1, "--epsilon", 0.2, "--clip", -1, 2, "--top-k", 2, "--samples", 50, "--budget", 500, "--seed", 3]
    full = cli(proto, "--data", arrays, *options, "--report", tmp_path / "r.json")
    assert full.exit_code == 0, full.output
    assert full.stderr.splitlines()[0].startswith("onnxprune: at most 838 forward passes for 50 samples")
    assert full.stderr.splitlines()[1].startswith(
        "onnxprune: warning: gradients are estimated by finite differences along 5 blocks"
    )
    report = json.loads((tmp_path / "r.json").read_text())
    expected = Evaluator((0.1, 0.2), clip=(-1, 2), top_k=2, batch_size=50, budget=500, seed=3).evaluate(proto, arrays)
    assert report == expected.to_dict()
    assert list(cli(proto, "--data", arrays, "--attack", "fgsm").stdout.split("\n\n")[1].split())[-5] == "0.1"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["MODEL"], 2, "Missing option '--data'"),
        (["MODEL", "--data", "DATA", "--attack", "pgd"], 2, "attack 'pgd' does not exist; choose fgsm"),
        (["MODEL", "--data", "DATA", "--clip", "1"], 2, "Option '--clip' requires 2 arguments"),
        (["MODEL", "--data", "DATA", "--epsilon", "much"], 2, "Invalid value for '--epsilon'"),
        (["MODEL", "--data", "DATA", "--epsilon", "-1"], 1, "epsilon is -1; it is the largest change of an input value"),
        (["MODEL", "--data", "DATA", "--epsilon", "1", "--clip", "0", "0.5"], 1, "outside of the clip range [0, 0.5]"),
        (["MODEL", "--data", "nowhere.npz"], 1, "do not exist"),
        (["nowhere.onnx", "--data", "DATA"], 1, "does not exist"),
        (["MODEL", "--data", "DATA", "--report", "MODEL"], 1, "is the input itself"),
    ],
)
def test_command_failures(files: tuple[Path, Path], arguments: list[str], status: int, text: str) -> None:
    names = {"MODEL": str(files[0]), "DATA": str(files[1])}
    result = cli(*(names.get(a, a) for a in arguments))
    assert (result.exit_code, result.stdout) == (status, "")
    assert text in " ".join(result.stderr.replace("│", " ").split())
    if status == 1:
        assert len(result.stderr.strip().splitlines()) == 1


def test_compare_has_the_loss(files: tuple[Path, Path]) -> None:
    found = onnxprune.compare(*files[:1] * 2, data=files[1], runs=5)
    assert found.metrics["loss"][0] == found.metrics["loss"][1] == Evaluator(attack=None).evaluate(*files).loss
    assert re.search(r"loss +\d.\d{4} +\d.\d{4} +\+0.0000", str(found))
