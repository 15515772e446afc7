"""FGSM against networks whose gradients are known, with both kinds of gradients."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from nets import CLASSES, EPSILONS, FEATURES, NET, Net, close, linear, model, slopes
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import Evaluator, data
from onnxprune.evaluate import classifier as forms
from onnxprune.evaluate import differences, find_scores, gradient, predict
from onnxprune.graph import load

KINDS = ("graph", "finite-difference")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which gradients the attack uses."""
    return str(request.param)


@pytest.mark.parametrize("head", ["", "Softmax", "LogSoftmax"])
@pytest.mark.parametrize("batch", ["N", 1, 7])
def test_attack_is_the_exact_one(kind: str, head: str, batch: int | str) -> None:
    found = Evaluator(EPSILONS, gradient=kind).evaluate(NET.onnx(head, batch), (NET.x, NET.labels))
    assert found.accuracy == pytest.approx(0.9)
    close(found.robust_accuracy, NET.robust)
    assert found.robust_accuracy[0.2] < 0.7 < found.noise_accuracy[0.2]


@pytest.mark.parametrize("head", ["", "Sigmoid"])
def test_one_output_is_class_one(kind: str, head: str) -> None:
    net = Net(seed=1, classes=1)
    found = Evaluator(EPSILONS, gradient=kind).evaluate(net.onnx(head), (net.x, net.labels))
    close(found.robust_accuracy, net.robust)
    z = net.logits(net.x)[:, 0] * np.where(net.labels, 1, -1)
    assert found.loss == pytest.approx(np.logaddexp(0, -z).mean(), rel=1e-4)


@pytest.mark.parametrize("source", [differences.Differences, gradient.Exact])
def test_reversed_gradients_help_the_network(source: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong sign would show: samples move away from the border."""
    true = source.__call__
    monkeypatch.setattr(source, "__call__", lambda *a: {name: -found for name, found in true(*a).items()})
    kind = "graph" if source is gradient.Exact else "finite-difference"
    found = Evaluator([0.5], gradient=kind).evaluate(NET.onnx(), (NET.x, NET.labels))
    assert found.robust_accuracy[0.5] > found.noise_accuracy[0.5] > NET.robust(0.5)


def test_large_and_small_units(kind: str) -> None:
    """The step follows the range of the inputs."""
    for unit in (255.0, 1e-3):
        net = Net()
        net.w, net.x = net.w / unit, (net.x * unit).astype(np.float32)
        found = Evaluator([e * unit for e in EPSILONS], gradient=kind).evaluate(net.onnx(), (net.x, net.labels))
        close(found.robust_accuracy, net.robust)


@pytest.mark.parametrize("declared", [1, 3, 8])
def test_a_fixed_batch_that_can_not_be_freed(kind: str, declared: int) -> None:
    """It works on no more samples than it is declared for, as after an export that traced the batch."""
    ends = {"from": np.array([0]), "to": np.array([declared])}
    proto = NET.onnx("", declared, nodes=lambda to: [helper.make_node("Slice", ["x", *ends], [to])])
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in ends.items())
    found = Evaluator(EPSILONS, gradient=kind).evaluate(proto, (NET.x, NET.labels))
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
    for kind in KINDS:
        found = Evaluator(EPSILONS, gradient=kind).evaluate(proto, (NET.x, NET.labels))
        close(found.robust_accuracy, NET.robust)


def test_several_inputs_and_whole_numbers(kind: str) -> None:
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
        found = Evaluator([epsilon], gradient=kind).evaluate(linear(weights, bias), {**arrays, "labels": labels})
        assert found.robust_accuracy[epsilon] == pytest.approx(expected)
        assert expected < 0.9


@pytest.mark.parametrize("zipped", [False, True])
def test_the_class_may_come_beside_the_scores(kind: str, zipped: bool) -> None:
    """As scikit-learn's converter writes it, with a map from class to probability or an array."""
    proto = NET.onnx("Softmax")
    proto.graph.node.append(helper.make_node("ArgMax", ["out"], ["label"], axis=1, keepdims=0))
    proto.graph.output.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, None))
    if zipped:
        proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
        classes = list(range(CLASSES))
        proto.graph.node.append(helper.make_node("ZipMap", ["out"], ["map"], domain="ai.onnx.ml", classlabels_int64s=classes))
        maps = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        proto.graph.output[1].CopyFrom(helper.make_value_info("map", helper.make_sequence_type_proto(maps)))
    found = Evaluator(EPSILONS, gradient=kind).evaluate(proto, (NET.x, NET.labels), proto)
    close(found.robust_accuracy, NET.robust)
    assert (found.loss is not None, found.agreement) == (True, 1)


def test_inputs_without_further_axes(kind: str) -> None:
    """Each sample is a number."""
    nodes = [helper.make_node("Unsqueeze", ["x", "one"], ["y"]), helper.make_node("Mul", ["y", "w"], ["out"])]
    weights = {"one": np.array([1]), "w": np.array([[1, -1]], np.float32)}
    proto = model(nodes, weights, {"x": [TensorProto.FLOAT, "N"]}, {"out": TensorProto.FLOAT})
    x = np.array([-0.3, -0.1, 0.1, 0.3], np.float32)
    assert Evaluator([0.2], gradient=kind).evaluate(proto, (x, np.array([1, 1, 0, 0]))).robust_accuracy == {0.2: 0.5}


def test_signs_are_the_true_ones(kind: str) -> None:
    expected = NET.gradient(NET.x, NET.labels)
    found = slopes(NET.onnx(), NET.x, NET.labels, kind)
    assert np.mean(np.sign(found) == np.sign(expected)) > 0.99
    assert np.median(np.abs(found - expected)) < 0.03 * np.median(np.abs(expected))
    assert np.mean(np.sign(found) == np.sign(NET.gradient(NET.x, (NET.labels + 1) % CLASSES))) < 0.7  # of other labels


@pytest.mark.parametrize("hidden", [False, True])
def test_a_sure_network_is_differentiated_all_the_same(kind: str, hidden: bool) -> None:
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
    assert np.mean(np.sign(slopes(proto, net.x, labels, kind))[seen] == expected) > 0.97
    assert np.mean(cross_entropy_signs(proto, net.x, labels)[seen] == expected) < 0.5


def cross_entropy_signs(proto: ModelProto, x: np.ndarray, labels: np.ndarray, step: float = 1e-3) -> np.ndarray:
    """What differences of the cross-entropy in float32 would say."""
    session, signs = ort.InferenceSession(proto.SerializeToString()), np.empty(x.shape)
    for i in range(x.shape[1]):
        move = np.float32(step) * np.eye(x.shape[1], dtype=np.float32)[i]
        up, down = (session.run(None, {"x": x + s * move})[0][np.arange(len(x)), labels] for s in (1, -1))
        signs[:, i] = np.sign(np.log(np.maximum(up, 1e-38)) - np.log(np.maximum(down, 1e-38)))
    return signs


def test_half_precision_inputs(kind: str) -> None:
    proto = NET.onnx(nodes=lambda to: [helper.make_node("Cast", ["x"], [to], to=TensorProto.FLOAT)])
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    x = NET.x.astype(np.float16)
    found = slopes(proto, x, NET.labels, kind)
    assert np.mean(np.sign(found) == np.sign(NET.gradient(x, NET.labels))) > 0.95


def test_channels_last_images(kind: str) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 5, 2, 3))
    x = rng.random((30, 6, 5, 2), np.float32)
    z = x.reshape(30, -1).astype(float) @ w.reshape(-1, 3)
    bias = -z.mean(axis=0)
    labels = (z + bias).argmax(axis=1)
    signs = np.sign(slopes(linear({"x": w}, bias), x, labels, kind)).reshape(x.shape)
    others = np.where(np.arange(3) == labels[:, None], -np.inf, z + bias)
    share = np.exp(others - others.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    expected = w[..., labels].transpose(3, 0, 1, 2) - np.einsum("hwck,nk->nhwc", w, share)
    assert np.mean(signs == np.sign(expected)) > 0.99
