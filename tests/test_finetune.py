"""Fine-tuning: what a step does, what trains, what it stops at, and that an interrupted run ends as if it had not been."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dense
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

import onnxprune
from onnxprune.cli import app
from onnxprune.errors import DataError, GradientError, ModelError, OptionError, OutputError, StateError, UsageError
from onnxprune.finetune import Epoch, finetune
from onnxprune.finetune import model as training_model
from onnxprune.finetune.augment import augmented
from onnxprune.finetune.optimiser import Adam, Sgd, factor
from onnxprune.finetune.trainer import best, zeros
from onnxprune.gradient import differentiate, registry
from onnxprune.graph import load
from onnxprune.runtime import Session
from onnxprune.shapes import infer

STEP: dict[str, Any] = {"epochs": 1, "batch": 999, "schedule": "constant", "warmup": 0.0, "validation": 0.0, "weight_decay": 0.0}
"""One step on all samples."""


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """All stored tensors, those of Constant nodes among them."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    constants = (n for n in model.graph.node if n.op_type == "Constant")
    return found | {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in constants}


def samples(count: int = 48, width: int = 6, classes: int = 4, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, width)).astype(np.float32)
    return {"x": x, "labels": (x @ rng.standard_normal((width, classes))).argmax(axis=1)}


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


MLP = dense.network(dense.layers(6, 8, 4))
TEACHER = dense.network(dense.layers(6, 8, 4, seed=5))
DATA = samples()


def without(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values for name, values in data.items() if name != "labels"}


# the step -----------------------------------------------------------------------------------------------------------------
def by_hand(data: dict[str, np.ndarray], slope: Callable[[np.ndarray], np.ndarray], rate: float) -> dict[str, np.ndarray]:
    """The weights of the MLP after one step of gradient descent; ``slope``: of the mean loss, by the logits."""
    w = {name: values.astype(np.float64) for name, values in stored(MLP).items()}
    h = data["x"] @ w["w0"].T + w["b0"]
    z = np.maximum(h, 0) @ w["w1"].T + w["b1"]
    gz = slope(z) / len(z)
    gh = gz @ w["w1"] * (h > 0)
    grads = {"w1": gz.T @ np.maximum(h, 0), "b1": gz.sum(axis=0), "w0": gh.T @ data["x"], "b0": gh.sum(axis=0)}
    return {name: w[name] - rate * grads[name] for name in w}


def slopes(kind: str, data: dict[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The derivative of each loss by the logits, at temperature 3 and with 0.7 of distillation."""
    target = Session(TEACHER).run({"x": data["x"]})[0].astype(np.float64)
    hard = np.eye(4)[data["labels"]]
    soft: Callable[[np.ndarray], np.ndarray] = lambda z: 3 * (softmax(z / 3) - softmax(target / 3))  # noqa: E731
    return {
        "labels": lambda z: softmax(z) - hard,
        "distillation": soft,
        "both": lambda z: 0.7 * soft(z) + 0.3 * (softmax(z) - hard),
        "squared": lambda z: (z - target) / 4,
    }[kind]


@pytest.mark.parametrize("kind", ["labels", "distillation", "both", "squared"])
def test_a_step_is_gradient_descent(kind: str) -> None:
    options = STEP | {"optimiser": "sgd", "learning_rate": 0.3, "temperature": 3.0, "alpha": 0.7}
    found = stored(finetune(MLP, DATA, original=TEACHER, loss=kind, **options).model)
    wanted = by_hand(DATA, slopes(kind, DATA), 0.3)
    other = by_hand({**DATA, "x": DATA["x"] * np.float32(1.01)}, slopes(kind, DATA), 0.3)
    for name, values in wanted.items():
        assert np.abs(found[name] - values).max() < 2e-6, name
    assert max(np.abs(found[name] - values).max() for name, values in other.items()) > 1e-4
    assert not np.allclose(found["w0"], stored(MLP)["w0"], atol=1e-4)


def test_parts_of_a_batch_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for count, parts in ((1, [48]), (2, [24, 24]), (4, [16, 16, 16])):
        monkeypatch.setattr(training_model, "PARTS", count)
        assert [len(rows) for rows in training_model.portions(48, None)] == parts
        found.append(finetune(MLP, DATA, original=TEACHER, epochs=3, batch=48, learning_rate=0.01, validation=0.0))
    for other in found[1:]:
        for name, values in stored(found[0].model).items():
            assert np.allclose(values, stored(other.model)[name], atol=1e-5), name
    assert [rows.tolist() for rows in training_model.portions(5, 2)] == [[0, 1], [2, 3], [4, 4]]


def test_the_number_of_processors_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for workers in (1, 2):
        monkeypatch.setattr(training_model, "WORKERS", workers)
        found.append(finetune(MLP, DATA, epochs=2, batch=48, validation=0.0).model)
    assert found[0] == found[1]


def test_probabilities_are_distilled_like_logits() -> None:
    """With a final Softmax in both models the loss and the step are the same."""
    ended = []
    for model in (MLP, TEACHER):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.graph.node[-1].op_type = "Softmax"
        copy.graph.node[-1].attribute.append(helper.make_attribute("axis", 1))
        ended.append(copy)
    options = STEP | {"optimiser": "sgd", "loss": "both", "temperature": 3.0, "alpha": 0.7, "learning_rate": 0.3}
    one = finetune(MLP, DATA, original=TEACHER, **options)
    two = finetune(ended[0], DATA, original=ended[1], **options)
    assert two.report.epochs[1].loss == pytest.approx(one.report.epochs[1].loss, rel=1e-4)
    for name, values in stored(one.model).items():
        assert np.allclose(values, stored(two.model)[name], atol=1e-5), name


def test_the_loss_of_distillation_is_hinton_s() -> None:
    """T^2 KL(softmax(t / T) || softmax(z / T)), of logits or of probabilities that no Softmax has made."""
    graph = load(MLP)
    target = Session(TEACHER).run({"x": DATA["x"]})[0]
    z = Session(MLP).run({"x": DATA["x"]})[0].astype(np.float64)
    for probabilities in (False, True):
        values, aim = (softmax(v.astype(np.float64)) if probabilities else v for v in (z, target))
        model = differentiate(graph, infer(graph), "kl", ["y"], temperature=3.0)
        if probabilities:
            probe = helper.make_node("Identity", ["x"], ["y"], "it")
            taken = load(dense.model([probe], {}, ["n", 4], ["n", 4]))
            model = differentiate(taken, infer(taken), "kl", ["x"], temperature=3.0, probabilities=True)
        x = values.astype(np.float32) if probabilities else DATA["x"]
        loss, slope = Session(model.model).run(model.feeds({"x": x}, targets={"y": np.asarray(aim, np.float32)}))
        p, q = softmax(z / 3), softmax(target.astype(np.float64) / 3)
        assert np.allclose(loss, 9 * (q * np.log(q / p)).sum(axis=1), atol=1e-4)
        assert not np.allclose(loss, (q * np.log(q / p)).sum(axis=1), atol=1e-4)
        wanted = 3 * (p - q) / (softmax(z) if probabilities else 1)
        assert np.allclose(slope, wanted, atol=2e-4)


def test_sgd_by_hand() -> None:
    w, g = {"w": np.array([[1.0, -2.0]]), "b": np.array([1.0])}, {"w": np.array([[0.5, 1.0]]), "b": np.array([-1.0])}
    it = Sgd(decay=0.1, momentum=0.5)
    it.step(w, g, 0.2)  # v = g + 0.1 w = 0.6, 0.8; b does not decay
    assert np.allclose(w["w"], [[0.88, -2.16]])
    assert np.allclose(w["b"], [1.2])
    it.step(w, g, 0.2)  # v = 0.5 v + g + 0.1 w = 0.3 + 0.588, 0.4 + 0.784
    assert np.allclose(w["w"], [[0.88 - 0.2 * 0.888, -2.16 - 0.2 * 1.184]])
    assert np.allclose(w["b"], [1.2 + 0.2 * 1.5])


def test_adam_by_hand() -> None:
    w, it = {"w": np.array([[1.0, -2.0]])}, Adam(decay=0.1)
    it.step(w, {"w": np.array([[0.5, -1e-3]])}, 0.01)  # the first step goes by the sign alone, and 0.001 of the weight leaves
    assert np.allclose(w["w"], [[1 - 0.01 - 0.001, -2 + 0.01 + 0.002]], atol=1e-6)
    before = w["w"].copy()
    it.step(w, {"w": np.array([[1.0, 0.0]])}, 0.01)
    first = np.array([0.9 * 0.05 + 0.1, 0.9 * -1e-4]) / (1 - 0.9**2)
    second = np.array([0.999 * 0.00025 + 0.001, 0.999 * 1e-9]) / (1 - 0.999**2)
    assert np.allclose(w["w"], before - 0.01 * (first / np.sqrt(second) + 0.1 * before), rtol=1e-6)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [factor("cosine", k / 100, 0.01, 0.1) for k in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[9:11] == pytest.approx([1, 1])
    assert max(rates) <= 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    assert factor("constant", 0.99, 0.01, 0.1) == factor("constant", 0.0, 0.01, 0.0) == 1


# what comes out -----------------------------------------------------------------------------------------------------------
def test_training_helps_and_repeats_itself() -> None:
    data = samples(300)
    one, two, other = (finetune(MLP, data, epochs=6, learning_rate=0.02, seed=seed) for seed in (0, 0, 1))
    assert one.model == two.model != other.model
    report = one.report
    before, after = report.metrics["accuracy"]
    assert after > before + 0.3
    assert after == report.epochs[report.best].accuracy
    assert [e.number for e in report.epochs] == list(range(7))
    assert report.samples == (270, 30)
    assert (report.tensors, report.parameters) == (4, (92, 92))
    assert json.loads(json.dumps(report.to_dict()))["schema"] == "onnxprune.finetuning/1"
    assert "92 of 92 numbers, in 4 tensors" in str(one)
    assert stored(MLP)["w0"].tobytes() == stored(dense.network(dense.layers(6, 8, 4)))["w0"].tobytes()


@pytest.mark.parametrize(
    ("original", "labels", "loss"), [(None, True, "labels"), (TEACHER, False, "distillation"), (TEACHER, True, "both")]
)
def test_what_there_is_to_learn_from(original: onnx.ModelProto | None, labels: bool, loss: str) -> None:
    report = finetune(MLP, DATA if labels else without(DATA), original=original, epochs=2).report
    assert report.loss == loss
    assert ("accuracy" in report.metrics, "agreement" in report.metrics) == (labels, original is not None)


def test_the_best_epoch_is_kept() -> None:
    rows = [(0.5, 1.0), (0.7, 0.9), (0.7, 0.8), (0.6, 0.1)]
    epochs = [Epoch(n, 1.0, loss, share, None, 0.1, 1.0) for n, (share, loss) in enumerate(rows)]
    assert best(epochs).number == 2
    assert best([Epoch(n, 1.0, loss, None, share, 0.1, 1.0) for n, (share, loss) in enumerate(rows)]).number == 2
    assert best([Epoch(n, 1.0, loss, None, None, 0.1, 1.0) for n, (_, loss) in enumerate(rows)]).number == 3
    assert best([Epoch(n, 1.0, None, None, None, 0.1, 1.0) for n in range(3)]).number == 2
    trained = finetune(MLP, DATA, epochs=3, optimiser="sgd", learning_rate=1e-12, loss="labels")
    assert trained.report.best == 0 or trained.report.epochs[trained.report.best].accuracy is not None


def test_several_outputs_and_no_classes() -> None:
    """A detector's outputs are learned as they are."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["boxes"]),
        helper.make_node("Reshape", ["h", "shape"], ["more"]),
    ]
    rng = np.random.default_rng(0)

    def net(seed: int) -> onnx.ModelProto:
        values = np.random.default_rng(seed).standard_normal((6, 8)).astype(np.float32)
        made = dense.model(nodes, {"w": values, "shape": np.array([0, 2, 4])}, ["n", 6], ["n", 8])
        del made.graph.output[:]
        made.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["n", 2, 4]))
        made.graph.output.append(helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", 8]))
        return made

    data = {"x": rng.standard_normal((64, 6)).astype(np.float32)}
    result = finetune(net(0), data, original=net(1), loss="squared", epochs=40, batch=8, learning_rate=0.05)
    assert result.report.metrics == {}
    first, last = result.report.epochs[0], result.report.epochs[result.report.best]
    assert last.validation_loss is not None
    assert first.validation_loss is not None
    assert last.validation_loss < 0.05 * first.validation_loss
    assert np.abs(stored(result.model)["w"] - stored(net(1))["w"]).max() < 0.3


# what trains --------------------------------------------------------------------------------------------------------------
def test_statistics_and_constants_stay() -> None:
    nodes = [
        helper.make_node("Constant", [], ["w0"], value=numpy_helper.from_array(np.eye(6, 8, dtype=np.float32), "w0")),
        helper.make_node("MatMul", ["x", "w0"], ["p"]),
        helper.make_node("Add", ["p", "bias"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("Add", ["n", "mask"], ["m"]),
        helper.make_node("Mul", ["m", "two"], ["d"]),
        helper.make_node("Reshape", ["w1", "shape"], ["w2"]),
        helper.make_node("Gemm", ["d", "w2"], ["y"], transB=1),
    ]
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal(8).astype(np.float32) for n in ("bias", "scale", "shift", "mean")}
    tensors |= {"var": np.ones(8, np.float32), "mask": np.ones((2, 8), np.float32)[:1] * 0, "two": np.float32([2.0])}
    tensors |= {"w1": rng.standard_normal(32).astype(np.float32), "shape": np.array([4, 8])}
    tensors["mask"] = np.zeros((1, 8), np.float32) + np.arange(8, dtype=np.float32)
    made = dense.model(nodes, tensors, ["n", 6], ["n", 4])
    result = finetune(made, DATA, **STEP, freeze=["shift"])
    old, new = stored(made), stored(result.model)
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {"w0", "bias", "scale", "w1", "mask"}  # which varies along one axis, so that it is a bias
    assert Session(result.model).run({"x": DATA["x"]})[0].shape == (48, 4)


def test_weights_that_are_inputs_too() -> None:
    """As exporters wrote them before IR version 4."""
    model = dense.network(dense.layers(6, 8, 4))
    for name, values in stored(model).items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape))
    assert (
        stored(finetune(model, DATA, epochs=1).model)["w0"].tobytes()
        == stored(finetune(MLP, DATA, epochs=1).model)["w0"].tobytes()
    )


def test_masks_and_positions_stay() -> None:
    nodes = [helper.make_node("Add", ["x", "table"], ["a"]), helper.make_node("Gemm", ["a", "w"], ["y"])]
    tensors = {"table": np.ones((48, 6), np.float32), "w": np.ones((6, 4), np.float32)}
    made = finetune(dense.model(nodes, tensors, [48, 6], [48, 4]), DATA, **STEP)
    assert made.report.tensors == 1


def test_tied_weights_stay_tied() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    w = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    data = samples(width=4)
    result = finetune(dense.model(nodes, {"w": w}, ["n", 4], ["n", 4]), data, **STEP, optimiser="sgd", learning_rate=0.1)
    h = data["x"].astype(np.float64) @ w
    g = (softmax(np.maximum(h, 0) @ w) - np.eye(4)[data["labels"]]) / 48
    slope = np.maximum(h, 0).T @ g + data["x"].T.astype(np.float64) @ (g @ w.T * (h > 0))
    assert np.allclose(stored(result.model)["w"], w - 0.1 * slope, atol=1e-6)


def test_zeros_stay_zeros_if_they_are_to() -> None:
    stack = dense.layers(6, 8, 4)
    stack[0].weight[np.random.default_rng(0).random((8, 6)) < 0.5] = 0
    stack[0].weight[3], stack[0].bias[3], stack[1].bias[:] = 0, 0, 0
    model = dense.network(stack)
    kept, freed = (stored(finetune(model, DATA, epochs=3, keep_zeros=keep).model) for keep in (True, False))
    hole = stack[0].weight == 0
    assert not kept["w0"][hole].any()
    assert kept["b0"][3] == 0
    assert kept["w0"][~hole].all()
    assert kept["b1"].all()  # a bias that is zero altogether has not been pruned
    assert freed["w0"][hole].any()
    assert set(zeros({"a": np.ones(2), "b": np.zeros(2), "c": np.array([0, 1])})) == {"c"}


def test_what_comes_before_a_node_without_a_rule_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert finetune(MLP, DATA, **STEP).report.tensors == 4
    monkeypatch.delitem(registry._VJPS, "Relu")
    result = finetune(MLP, DATA, **STEP)
    old, new = stored(MLP), stored(result.model)
    assert {n for n in old if not np.array_equal(old[n], new[n])} == {"w1", "b1"}
    assert result.report.warnings == ("2 tensors before node 'Relu_0' stay: no gradient of it is known",)
    monkeypatch.delitem(registry._VJPS, "Gemm")
    with pytest.raises(GradientError, match=r"^no weight can be trained: node 'Gemm_1' "):
        finetune(MLP, DATA, **STEP)


@pytest.mark.parametrize("movable", [True, False])
def test_a_fixed_batch(movable: bool) -> None:
    """One sample at a time, or freed of that: the same training."""
    model = dense.network(dense.layers(6, 8, 4))
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 1
    if not movable:  # which holds for one sample alone
        model.graph.node.insert(0, helper.make_node("Reshape", ["image", "shape"], ["x"], "first"))
        model.graph.input[0].name = "image"
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 6]), "shape"))
        model.graph.node.insert(1, helper.make_node("Reshape", ["x", "vector"], ["flat"], "to a vector"))
        model.graph.node.insert(2, helper.make_node("Reshape", ["flat", "shape"], ["row"], "and back"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([6]), "vector"))
        model.graph.node[3].input[0] = "row"
    options = {"epochs": 2, "batch": 7, "optimiser": "sgd", "learning_rate": 0.1}
    data = DATA if movable else {"image": DATA["x"], "labels": DATA["labels"]}
    one, two = finetune(MLP, DATA, **options), finetune(model, data, **options)
    for name, values in stored(one.model).items():
        assert np.allclose(values, stored(two.model)[name], atol=1e-5), name
    assert two.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


# images -------------------------------------------------------------------------------------------------------------------
def test_images_are_mirrored_and_moved() -> None:
    image = np.arange(2 * 16 * 16, dtype=np.float32).reshape(1, 2, 16, 16)
    many = np.repeat(image, 200, axis=0)
    found = augmented({"x": many, "n": many[:, 0, 0]}, ("flip", "shift"), np.random.default_rng(0))
    padded = np.pad(image[0], ((0, 0), (2, 2), (2, 2)), mode="edge")
    crops = {padded[:, r : r + 16, c : c + 16][:, :, ::s].tobytes(): s for r in range(5) for c in range(5) for s in (1, -1)}
    seen = [values.tobytes() for values in found["x"]]
    assert set(seen) == set(crops)  # and nothing else
    assert 60 < sum(crops[s] for s in seen) + 100 < 140
    assert np.array_equal(found["n"], many[:, 0, 0])
    last = augmented({"x": many.transpose(0, 2, 3, 1)}, ("flip", "shift"), np.random.default_rng(0))["x"]
    assert np.array_equal(last, found["x"].transpose(0, 2, 3, 1))
    assert np.array_equal(augmented({"x": many}, (), np.random.default_rng(0))["x"], many)
    alone = augmented({"x": many}, ("flip",), np.random.default_rng(0))["x"]
    assert {v.tobytes() for v in alone} == {image[0].tobytes(), image[0][:, :, ::-1].tobytes()}


# interrupted, late, diverged ----------------------------------------------------------------------------------------------
class Stop(Exception):
    """Somebody pulls the plug."""


def stopping(number: int) -> Callable[[Epoch], None]:
    def watch(epoch: Epoch) -> None:
        if epoch.number == number:
            raise Stop

    return watch


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path, optimiser: str) -> None:
    options: dict[str, Any] = {"original": TEACHER, "epochs": 5, "batch": 10, "optimiser": optimiser, "learning_rate": 0.02}
    whole = finetune(MLP, DATA, **options)
    for number in (2, 4):
        with pytest.raises(Stop):
            finetune(MLP, DATA, **options, state=tmp_path, watch=stopping(number))
    resumed = finetune(MLP, DATA, **options, state=tmp_path)
    assert resumed.model == whole.model

    def rows(result: onnxprune.Finetuned) -> list[Any]:
        return [{n: v for n, v in row.items() if n != "seconds"} for row in result.report.to_dict()["epochs"]]

    assert rows(resumed) == rows(whole)
    assert finetune(MLP, DATA, **options, state=tmp_path, watch=stopping(5)).model == whole.model  # nothing is left to do
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]


def test_the_state_is_of_this_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 2, "original": TEACHER}
    finetune(MLP, DATA, **options, state=tmp_path)
    where = f"state {str(tmp_path / 'state.npz')!r}"
    ending = "; give the same settings and files, or begin anew in another folder"
    for changed, text in (
        ({"epochs": 3}, "epochs 2, this run has 3"),
        ({"seed": 1}, 'data "'),
        ({"optimiser": "sgd"}, "rate 0.001, this run has 0.01"),
        ({"original": MLP}, 'original "'),
        ({"temperature": 1.0}, "temperature 4.0, this run has 1.0"),
    ):
        with pytest.raises(StateError) as caught:
            finetune(MLP, DATA, **{**options, **changed}, state=tmp_path)
        assert str(caught.value).startswith(f"{where} is of a run with {text}")
        assert str(caught.value).endswith(ending)
    (tmp_path / "state.npz").write_bytes(b"PK, but nothing more")
    with pytest.raises(StateError) as caught:
        finetune(MLP, DATA, **options, state=tmp_path)
    assert str(caught.value).startswith(f"{where} can't be read: ")
    np.savez(tmp_path / "state.npz", about=np.array('{"schema": "other", "settings": {}}'))
    with pytest.raises(StateError, match=r"has schema 'other', this version reads 'onnxprune\.finetune-state/1'"):
        finetune(MLP, DATA, **options, state=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be made: File exists; choose another"):
        finetune(MLP, DATA, **options, state=tmp_path / "file")


def test_divergence_keeps_the_best_so_far() -> None:
    result = finetune(MLP, DATA, epochs=20, optimiser="sgd", learning_rate=1e4, batch=4, warmup=0.0)
    report = result.report
    assert len(report.epochs) < 21
    assert report.warnings[0].startswith("training diverged in epoch ")
    assert report.warnings[0].endswith("; the best model before that is kept, take a smaller learning rate than 10000")
    assert report.best == 0
    assert report.warnings[1] == "no epoch was better than the model as it was, which is kept"
    assert all(np.array_equal(values, stored(result.model)[name]) for name, values in stored(MLP).items())
    assert not any("diverged" in line for line in finetune(MLP, DATA, epochs=20).report.warnings)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    """The square root of a Relu has no gradient where that is zero."""
    model = dense.network(dense.layers(6, 8, 4))
    model.graph.node.insert(2, helper.make_node("Sqrt", ["h0"], ["root"], "root"))
    model.graph.node[3].input[0] = "root"
    (warning, *_) = finetune(model, DATA, epochs=2, freeze=["w1", "b1", "b0"]).report.warnings
    assert warning == (
        "training diverged in epoch 1, step 1: the gradient of 'w0' is not finite; the best model before that is kept, "
        "take a smaller learning rate than 0.001"
    )


def test_time_is_up() -> None:
    report = finetune(MLP, DATA, epochs=10_000, minutes=0.3 / 60, batch=8).report
    assert report.warnings[0].startswith("time is up, in epoch ")
    assert report.warnings[0].endswith(", and the best model so far is kept")
    assert 0.2 < report.seconds < 3
    assert report.epochs[-1].learning_rate < 0.2 * max(e.learning_rate for e in report.epochs)


# what is refused ----------------------------------------------------------------------------------------------------------
def cast(kind: int) -> onnx.ModelProto:
    model = dense.network(dense.layers(6, 8, 4))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    model.graph.input[0].type.tensor_type.elem_type = model.graph.output[0].type.tensor_type.elem_type = kind
    return model


REGRESSOR = dense.network(dense.layers(6, 8, 4))
REGRESSOR.graph.node[-1].CopyFrom(helper.make_node("Reshape", ["s1", "shape"], ["y"]))
REGRESSOR.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 2]), "shape"))
REGRESSOR.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, 2]))

BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nothing": (
        {"data": without(DATA)},
        UsageError,
        "there is nothing to learn from; give data with an array 'labels', or --original, or both",
    ),
    "no labels": (
        {"data": without(DATA), "original": TEACHER, "loss": "both"},
        UsageError,
        "loss 'both' needs labels; give data with an array 'labels', or learn by distillation",
    ),
    "no original": ({"loss": "squared"}, UsageError, "loss 'squared' needs the model to learn from; give --original"),
    "no classifier": (
        {"model": REGRESSOR},
        UsageError,
        "loss 'labels' is a classifier's, which the model is not; give --original and the loss 'squared'",
    ),
    "a label too many": (
        {"data": {**DATA, "labels": np.full(48, 4)}},
        DataError,
        "label 4 of sample 0 is out of range: the model has 4 classes, 0 to 3; number the labels as the model does",
    ),
    "labels to validate": (
        {"validation": without(DATA)},
        UsageError,
        "labels are learned, so that they are needed for validation too; give it an array 'labels'",
    ),
    "another model": (
        {"original": dense.network(dense.layers(7, 4)), "data": DATA},
        DataError,
        "the original does not take what the model takes: ",
    ),
    "half": (
        {"model": cast(TensorProto.FLOAT16), "data": {**DATA, "x": DATA["x"].astype(np.float16)}},
        ModelError,
        "the weights are 16-bit floats, in which small steps are lost; fine-tune the float32 model, and store the result in "
        "16 bits with onnxprune.quantize(model, 'fp16')",
    ),
    "frozen": ({"freeze": ["*"]}, ModelError, "all weights are frozen by --freeze, so that there is nothing to train"),
    "freeze": (
        {"freeze": ["no"]},
        UsageError,
        "--freeze 'no' matches no node and no tensor; `onnxprune inspect` lists the names",
    ),
    "loss": (
        {"loss": "hinge"},
        OptionError,
        "loss 'hinge' does not exist; choose one of auto, labels, distillation, both, squared",
    ),
    "temperature": ({"temperature": 0.0}, OptionError, "temperature is 0; it is a number above 0"),
    "alpha": ({"alpha": 1.5}, OptionError, "alpha is 1.5; it is the share of distillation, from 0 to 1"),
    "epochs": ({"epochs": 0}, OptionError, "epochs is 0; it is a count, at least 1"),
    "batch": ({"batch": -1}, OptionError, "batch is -1; it is a count, at least 1"),
    "minutes": ({"minutes": 0.0}, OptionError, "minutes is 0; it is a time, above 0"),
    "optimiser": ({"optimiser": "lion"}, OptionError, "optimiser 'lion' does not exist; choose one of sgd, adam"),
    "schedule": ({"schedule": "step"}, OptionError, "schedule 'step' does not exist; choose one of cosine, constant"),
    "rate": ({"learning_rate": -0.1}, OptionError, "learning rate is -0.1; it is a number above 0"),
    "momentum": ({"momentum": 1.0}, OptionError, "momentum is 1; it is a share, 0 <= momentum < 1"),
    "decay": ({"weight_decay": math.inf}, OptionError, "weight decay is inf; it is a number, at least 0"),
    "validation": (
        {"validation": 1.0},
        OptionError,
        "validation is 1; it is a share of the samples, 0 <= validation < 1, or a file",
    ),
    "augment": (
        {"augment": ["flip"]},
        OptionError,
        "only images, inputs of four axes, can be augmented, and the data have 'x' (48, 6); leave --augment out",
    ),
    "augmentation": ({"augment": ["twist"]}, OptionError, "augmentation 'twist' does not exist; choose among flip, shift"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_can_t_be_is_refused(name: str) -> None:
    options, kind, text = BAD[name]
    given = {"model": MLP, "data": DATA} | options
    with pytest.raises(kind) as caught:
        finetune(given.pop("model"), given.pop("data"), **given)
    assert str(caught.value).startswith(text)
    assert str(caught.value) == text or text.endswith(": ")


def test_a_quantised_model_is_refused() -> None:
    made = onnxprune.quantize(dense.network(dense.layers(6, 64, 4)), "int8").model
    with pytest.raises(ModelError) as caught:
        finetune(made, DATA)
    assert str(caught.value).startswith("the model is quantised already (node '")
    assert str(caught.value).endswith("; fine-tune the model that it was made from, and quantise the result")


# the command line ---------------------------------------------------------------------------------------------------------
def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)])


def test_the_command(tmp_path: Path) -> None:
    model, original, data, out, report = (tmp_path / n for n in ("m.onnx", "o.onnx", "d.npz", "out.onnx", "r.json"))
    onnx.save(MLP, model)
    onnx.save(TEACHER, original)
    np.savez(data, **samples(100))
    done = cli(model, "-o", out, "--data", data, "--original", original, "--epochs", 3, "--report", report)
    assert done.exit_code == 0, done.output
    rows = [line for line in done.stderr.splitlines() if line.startswith("onnxprune: epoch ")]
    assert len(rows) == 4
    assert "learned from  both" in done.stdout
    assert json.loads(report.read_text())["samples"] == {"training": 90, "validation": 10}
    assert onnx.load(out) == finetune(MLP, samples(100), original=TEACHER, epochs=3).model
    again = cli(model, "-o", out, "--data", data, "--validation", data, "--no-keep-zeros", "--epochs", 1, "--augment", "")
    assert "samples       100, and 100 held out" in again.stdout


def test_the_command_refuses(tmp_path: Path) -> None:
    model, data, out = tmp_path / "m.onnx", tmp_path / "d.npz", tmp_path / "out.onnx"
    onnx.save(MLP, model)
    np.savez(data, **without(DATA))
    done = cli(model, "-o", out, "--data", data)
    assert done.exit_code == 2
    assert "there is nothing to learn from" in done.stderr
    done = cli(model, "-o", model, "--data", data)
    assert (done.exit_code, out.exists()) == (1, False)
    assert "is the input itself; choose another path" in done.stderr
    assert cli(model, "--data", data).exit_code == 2
