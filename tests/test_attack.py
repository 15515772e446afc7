"""Projected gradient descent against the same in numpy; attacks through a surrogate and through a pruned backward pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from nets import CLASSES, EPSILONS, FEATURES, NET, Net, close, linear, model, slopes
from onnx import ModelProto, TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import onnxprune
from onnxprune import Evaluator, evaluator
from onnxprune.cli import app
from onnxprune.errors import DataError, GradientError, ModelError, OnnxpruneError
from onnxprune.evaluate import Attack, Sparse, adversarial
from onnxprune.evaluate.attack import Move

GOOD = (NET.x, NET.labels)
KINDS = ("graph", "finite-difference")
RULE = "has no gradient that is known, for this opset and these operands"


def length(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x.astype(np.float64) ** 2).sum(axis=1, keepdims=True))


def reference(net: Net, epsilon: float, steps: int, norm: str, size: float | None = None) -> float:
    """Share of samples that are right before the attack and after every step of it, in float64."""
    x, low, high = net.x.astype(np.float64), net.x.min(), net.x.max()
    moved, right = x, net.predicted(x) == net.labels
    for _ in range(steps):
        slope = -net.gradient(moved, net.labels)
        way = np.sign(slope) if norm == "linf" else slope / np.maximum(length(slope), 1e-300)
        change = moved + (2.5 * epsilon / steps if size is None else size) * way - x
        shrink = np.minimum(1, epsilon / np.maximum(length(change), 1e-300))
        change = np.clip(change, -epsilon, epsilon) if norm == "linf" else change * shrink
        moved = np.clip(x + change, low, high)
        right &= net.predicted(moved) == net.labels
    return float(right.mean())


# the attack ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_the_same_as_in_numpy(norm: str, kind: str) -> None:
    unit = FEATURES**0.5 if norm == "l2" else 1
    epsilons = [unit * e for e in EPSILONS]
    found = Evaluator(epsilons, attack="pgd", norm=norm, gradient=kind).evaluate(NET.onnx(), GOOD).robust_accuracy
    close(found, lambda e: reference(NET, e, 10, norm))
    assert found[epsilons[3]] < reference(NET, epsilons[3], 1, norm)  # more steps than one show
    few = Evaluator(epsilons, attack="pgd", norm=norm, steps=3, step_size=0.02, gradient=kind).evaluate(NET.onnx(), GOOD)
    close(few.robust_accuracy, lambda e: reference(NET, e, 3, norm, 0.02))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_is_one_step_of_pgd(norm: str) -> None:
    one = Evaluator(EPSILONS, norm=norm).evaluate(NET.onnx(), GOOD)
    assert one.robust == Evaluator(EPSILONS, attack="pgd", norm=norm, steps=1).evaluate(NET.onnx(), GOOD).robust
    close(one.robust_accuracy, lambda e: reference(NET, e, 1, norm, e))


def test_l2_of_a_linear_network_is_known() -> None:
    """A sample falls if the border is nearer than epsilon."""
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((8, 2)), rng.standard_normal((80, 8)).astype(np.float32)
    z = x.astype(np.float64) @ w
    labels, away = z.argmax(axis=1), np.abs(z[:, 1] - z[:, 0]) / np.linalg.norm(w[:, 1] - w[:, 0])
    for options in ({}, {"attack": "pgd"}, {"attack": "pgd", "random_start": True}):
        found = Evaluator([0.2, 0.7], norm="l2", clip=(-9, 9), **options).evaluate(linear({"x": w}, np.zeros(2)), (x, labels))
        assert found.robust_accuracy == {e: pytest.approx(np.mean(away > e), abs=0.0126) for e in (0.2, 0.7)}
        assert 0.1 < found.robust_accuracy[0.7] < found.robust_accuracy[0.2] < 0.99
        assert found.noise_accuracy[0.2] > found.robust_accuracy[0.2]


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("size", [None, 9.0])
def test_samples_stay_in_the_ball_and_in_range(norm: str, random: bool, size: float | None) -> None:
    attack, rng = Attack(7, size, random, norm), np.random.default_rng(0)
    inputs = {"x": NET.x, "token": np.arange(60)}
    noise = {"x": rng.standard_normal(NET.x.shape, np.float32)}
    start = attack.start(noise, 0.3, rng)

    def gradient(given: Any, labels: np.ndarray, step: int) -> Move:
        return {"x": -NET.gradient(given["x"], labels).astype(np.float32)}

    found = adversarial(gradient, inputs, NET.labels, {"x": (0.0, 1.0)}, attack, 0.3, start)
    change = found["x"] - NET.x
    reach = np.abs(change).max(axis=1) if norm == "linf" else length(change)[:, 0]
    assert 0.2 < reach.max() <= 0.3 + 1e-6
    assert found["x"].min() >= 0
    assert found["x"].max() <= 1
    assert found["token"] is inputs["token"]
    begun = np.abs(start["x"]).max(axis=1) if norm == "linf" else length(start["x"])[:, 0]
    assert (begun.min() > 0.1 and begun.max() <= 0.3 + 1e-6) if random else not begun.any()
    wide = NET.x + 9 * attack.direction(gradient(inputs, NET.labels, 0))["x"]
    assert np.abs(wide - NET.x).max() > 1  # nothing but the projection holds it


def test_a_random_start_follows_the_seed() -> None:
    options = {"attack": "pgd", "steps": 1, "step_size": 0.01, "random_start": True}
    runs = [Evaluator([0.4], seed=seed, **options).evaluate(NET.onnx(), GOOD).robust for seed in (0, 0, 1, 2, 3)]
    assert runs[0] == runs[1]
    assert any(run != runs[0] for run in runs[2:])


def test_samples_that_fall_are_left_alone() -> None:
    """54 samples are right; without that, each of two epsilons takes 1 + 2 * 9 gradients and 2 * (10 + 1) predictions."""
    planned = Evaluator((0.1, 0.4), attack="pgd").plan(NET.onnx(), GOOD)
    assert (planned.backward, planned.passes) == (60 * 19, 60 * (1 + 19 + 22))
    found = Evaluator((0.1, 0.4), attack="pgd").evaluate(NET.onnx(), GOOD)
    assert found.backward_passes < 0.8 * 54 * 19
    through = Evaluator((0.1, 0.4), attack="pgd", surrogate=NET.onnx()).evaluate(NET.onnx(), GOOD)
    assert (through.backward_passes, through.forward_passes) == (54 * 19, 60 + 60 + 54 * (19 + 2 * 2))
    assert all(found.robust[e] <= through.robust[e] for e in found.robust)


def test_zero_gradients_move_nothing() -> None:
    proto = linear({"x": np.zeros((3, 2))}, np.array([0, 1]))
    x = np.random.default_rng(0).random((5, 3), np.float32)
    for options in ({}, {"norm": "l2"}, {"attack": "pgd"}):
        assert Evaluator([0.5], **options).evaluate(proto, {"x": x}).robust_accuracy == {0.5: 1}


# surrogates -----------------------------------------------------------------------------------------------------------------
def test_a_surrogate_s_attack_transfers_in_part() -> None:
    """Samples are judged by the model, and moved by the surrogate."""
    white = Evaluator([0.2]).evaluate(NET.onnx(), GOOD)
    same = Evaluator([0.2], surrogate=NET.onnx()).evaluate(NET.onnx("Softmax", 1), GOOD)
    assert (same.robust, same.accuracy) == (white.robust, white.accuracy)
    alike = Net()
    alike.v = alike.v + 2 * np.random.default_rng(1).standard_normal(alike.v.shape) / 24**0.5
    through = Evaluator([0.2], surrogate=alike.onnx()).evaluate(NET.onnx(), GOOD)
    moved = np.clip(NET.x - 0.2 * np.sign(alike.gradient(NET.x, NET.labels)), NET.x.min(), NET.x.max())
    right = (NET.predicted(NET.x) == NET.labels) & (NET.predicted(moved) == NET.labels)
    assert through.robust_accuracy[0.2] == pytest.approx(right.mean(), abs=0.0167)
    assert white.robust[0.2] < through.robust[0.2] < through.noisy[0.2]
    assert through.to_dict()["attack"]["surrogate_sha256"]


def test_models_without_gradients_are_attacked_through_others() -> None:
    classes = NET.onnx()
    classes.graph.node[-1].output[0] = "z"
    classes.graph.node.append(helper.make_node("ArgMax", ["z"], ["out"], axis=1, keepdims=0))
    classes.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    found = Evaluator(EPSILONS, surrogate=NET.onnx()).evaluate(classes, GOOD)
    close(found.robust_accuracy, NET.robust)
    assert (found.loss, found.accuracy) == (None, pytest.approx(0.9))


def test_a_quantised_model() -> None:
    """It has no exact gradients, its original has."""
    whole = onnxprune.quantize(NET.onnx(), "int8", data={"x": NET.x}).model
    with pytest.raises(GradientError) as caught:
        Evaluator([0.1], gradient="graph").evaluate(whole, GOOD)
    assert RULE in str(caught.value)
    found = Evaluator([0.1], budget=1440).evaluate(whole, GOOD)
    assert found.warnings[0].startswith("no exact gradients: node ")
    assert found.warnings[0].endswith(RULE)
    through = Evaluator([0.1], surrogate=NET.onnx()).evaluate(whole, GOOD)
    assert through.warnings == ()
    assert through.robust_accuracy[0.1] == pytest.approx(NET.robust(0.1), abs=0.07)


def recurrent() -> ModelProto:
    """An LSTM of one step before the dense layers."""
    rng = np.random.default_rng(0)
    weights = {
        "first": np.array([0]),
        "lw": rng.standard_normal((1, 4 * FEATURES, FEATURES)).astype(np.float32),
        "lr": rng.standard_normal((1, 4 * FEATURES, FEATURES)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["x", "first"], ["sequence"]),
        helper.make_node("LSTM", ["sequence", "lw", "lr"], ["", "hidden"], "lstm", hidden_size=FEATURES),
    ]
    proto = NET.onnx(nodes=lambda to: [*nodes, helper.make_node("Squeeze", ["hidden", "first"], [to])])
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    return proto


def test_operators_without_a_rule_are_named(tmp_path: Path) -> None:
    found = Evaluator([0.3]).evaluate(recurrent(), {"x": NET.x})
    assert found.warnings[1] == f"no exact gradients: node 'lstm' (LSTM) {RULE}"
    assert found.warnings[2].startswith("gradients are estimated by finite differences along each of 12 coordinates")
    assert found.robust[0.3] < found.noisy[0.3]
    with pytest.raises(GradientError, match=re.escape(f"node 'lstm' (LSTM) {RULE}; take finite differences, or leave out")):
        Evaluator([0.3], gradient="graph").evaluate(recurrent(), {"x": NET.x})
    onnx.save(recurrent(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=NET.x)
    run = CliRunner().invoke(app, ["evaluate", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "--epsilon", "0.3"])
    assert run.stderr.splitlines()[1] == f"onnxprune: warning: no exact gradients: node 'lstm' (LSTM) {RULE}"


def test_a_backward_graph_that_does_not_load_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule may write what this onnxruntime does not have."""
    true = evaluator.differentiated

    def broken(*given: Any) -> Any:
        found = true(*given)
        found.model.graph.node[-1].op_type = "Nonsense"
        return found

    monkeypatch.setattr(evaluator, "differentiated", broken)
    found = Evaluator([0.2]).evaluate(NET.onnx(), GOOD)
    close(found.robust_accuracy, NET.robust)
    assert re.fullmatch(r"no exact gradients: onnxruntime [\d.]+ can't load the model: .*Nonsense.*", found.warnings[0])
    with pytest.raises(ModelError, match="Nonsense"):
        Evaluator([0.2], gradient="graph").evaluate(NET.onnx(), GOOD)


# a pruned backward pass -----------------------------------------------------------------------------------------------------
KERNEL = np.random.default_rng(0).standard_normal((3, 2, 3, 3)).astype(np.float32)
DENSE = np.random.default_rng(1).standard_normal((3 * 4 * 4, 2)).astype(np.float32)
IMAGES = np.random.default_rng(2).random((10, 2, 6, 6), np.float32)
LABELS = np.arange(10) % 2


def convolution(kernel: np.ndarray = KERNEL) -> ModelProto:
    """Linear, of two classes: by every sample the same gradient, which depends on the weights alone."""
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["h"]),
        helper.make_node("Flatten", ["h"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["out"]),
    ]
    return model(nodes, {"kernel": kernel, "dense": DENSE}, {"x": [TensorProto.FLOAT, "N", 2, 6, 6]}, {"out": TensorProto.FLOAT})


def test_the_backward_pass_alone_reads_pruned_weights() -> None:
    limit = np.sort(np.abs(KERNEL), axis=None)[int(0.4 * KERNEL.size)]
    pruned = np.where(np.abs(KERNEL) < limit, 0, KERNEL)
    found = slopes(convolution(), IMAGES, LABELS, sparse=Sparse(0.4))
    assert found == pytest.approx(slopes(convolution(pruned), IMAGES, LABELS), rel=1e-4, abs=1e-5)
    dense = slopes(convolution(), IMAGES, LABELS)
    assert not np.allclose(found, dense, atol=1e-2)
    assert slopes(convolution(), IMAGES, LABELS, sparse=Sparse(0.4, 0.0)) == pytest.approx(dense, rel=1e-4, abs=1e-5)
    assert not slopes(convolution(), IMAGES, LABELS, sparse=Sparse(1.0)).any()
    clean, other = (Evaluator([0.1], gradient_sparsity=p).evaluate(convolution(), (IMAGES, LABELS)) for p in (0.0, 0.9))
    assert (clean.loss, clean.noisy) == (other.loss, other.noisy)
    assert other.to_dict()["attack"]["gradient_sparsity"] == 0.9


def test_masks_are_fresh_for_each_step() -> None:
    def drawn(step: int, bernoulli: float, seed: int = 0) -> np.ndarray:
        return slopes(convolution(), IMAGES, LABELS, sparse=Sparse(0.5, bernoulli, seed), step=step)

    assert np.array_equal(drawn(0, 0.5), drawn(0, 0.5))
    assert not np.allclose(drawn(0, 0.5), drawn(1, 0.5), atol=1e-3)
    assert not np.allclose(drawn(0, 0.5), drawn(0, 0.5, 1), atol=1e-3)
    assert np.array_equal(drawn(0, 1.0), drawn(1, 1.0))


# refusals -------------------------------------------------------------------------------------------------------------------
def two_inputs() -> ModelProto:
    return linear({"x": np.ones((FEATURES, CLASSES)), "y": np.ones((2, CLASSES))}, np.zeros(CLASSES))


def of_halves() -> ModelProto:
    proto = NET.onnx(nodes=lambda to: [helper.make_node("Cast", ["x"], [to], to=TensorProto.FLOAT)])
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return proto


def of_classes() -> ModelProto:
    proto = NET.onnx()
    proto.graph.node.append(helper.make_node("ArgMax", ["out"], ["class"], axis=1, keepdims=0))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("class", TensorProto.INT64, None))
    return proto


SURROGATES = {
    "inputs": (two_inputs(), "the surrogate's inputs are ['x', 'y'], the model's ['x']; take one with the same inputs"),
    "types": (of_halves(), "the surrogate's inputs have other types than the model's; take one with the same inputs"),
    "shapes": (
        linear({"x": np.ones((5, CLASSES))}, np.zeros(CLASSES)),
        "the surrogate takes other inputs than the model: data: array 'x' has shape (60, 12), the model's input is ['N', 5]; "
        "samples come first",
    ),
    "classes": (Net(classes=3).onnx(), "the surrogate has 3 classes, the model 4; take one with the same classes"),
    "scores": (
        of_classes(),
        "the surrogate gives no float scores of shape (samples, classes), so that it has no gradient; take another",
    ),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_bad_surrogates(name: str) -> None:
    proto, text = SURROGATES[name]
    with pytest.raises(OnnxpruneError) as caught:
        Evaluator([0.1], surrogate=proto).evaluate(NET.onnx(), GOOD)
    assert str(caught.value) == text
    assert isinstance(caught.value, DataError)


def test_a_gradient_that_is_not_finite() -> None:
    """The square root of zero."""
    proto = NET.onnx(nodes=lambda to: [helper.make_node("Sqrt", ["x"], [to])])
    x = NET.x.copy()
    x[:7, 3] = 0
    with pytest.raises(ModelError) as caught:
        Evaluator([0.1]).evaluate(proto, {"x": x})
    assert str(caught.value) == (
        "the gradient by input 'x' is NaN or infinite for 7 of 60 samples; take finite differences, or look for a division or "
        "a logarithm of zero"
    )


# command line ---------------------------------------------------------------------------------------------------------------
def test_command(tmp_path: Path) -> None:
    onnx.save(convolution(), tmp_path / "m.onnx")
    onnx.save(convolution(KERNEL + 0.1), tmp_path / "s.onnx")
    np.savez(tmp_path / "d.npz", x=IMAGES, labels=LABELS)
    command = ["evaluate", tmp_path / "m.onnx", "--data", tmp_path / "d.npz", "--report", tmp_path / "r.json", "--seed", 3]
    command += ["--attack", "pgd", "--epsilon", 0.3, "--norm", "l2", "--steps", 4, "--step-size", 0.1, "--random-start"]
    command += ["--gradient", "graph", "--surrogate", tmp_path / "s.onnx", "--gradient-sparsity", 0.5, "--bernoulli", 0.5]
    run = CliRunner().invoke(app, [str(argument) for argument in command])
    assert (run.exit_code, run.stderr) == (0, "")
    assert re.search(r"epsilon +still right: pgd +random noise", run.stdout)
    expected = Evaluator(
        [0.3],
        attack="pgd",
        norm="l2",
        steps=4,
        step_size=0.1,
        random_start=True,
        gradient="graph",
        surrogate=tmp_path / "s.onnx",
        gradient_sparsity=0.5,
        bernoulli=0.5,
        seed=3,
    ).evaluate(tmp_path / "m.onnx", tmp_path / "d.npz")
    expected.save(tmp_path / "e.json")
    assert (tmp_path / "r.json").read_text() == (tmp_path / "e.json").read_text()
    assert expected.attack["steps"] == 4
