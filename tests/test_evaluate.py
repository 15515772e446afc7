"""What an evaluation counts, measures, refuses and prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import CLASSES, EPSILONS, NET, Net, close, linear, model
from onnx import ModelProto, TensorProto, helper
from typer.testing import CliRunner, Result

import onnxprune
from onnxprune import Evaluator
from onnxprune.cli import app
from onnxprune.errors import DataError, GradientError, ModelError, OnnxpruneError, OptionError, UsageError
from onnxprune.evaluate import Scores, cross_entropy, top_k_accuracy

EPSILON = "it is how far the attack may go, at least 0"
CLIP = "it is the lowest, then the highest value of the inputs"


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


@pytest.mark.parametrize("kind", ["graph", "finite-difference"])
def test_paoding_moves_dead_coordinates_upwards_and_clips_elsewhere(kind: str) -> None:
    """Class 1 wins once x0 exceeds 0.05, where the gradient is zero; class 2 once x1 falls below -0.005."""
    w = np.array([[1, 0], [0, -1]], np.float32)
    v = np.array([[0, 100, 0], [0, 0, 100]], np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v", "c"], ["out"]),
    ]
    weights = {"w": w, "b": np.array([-0.05, 0.005], np.float32), "v": v, "c": np.array([1, 0, 0], np.float32)}
    proto = model(nodes, weights, {"x": [TensorProto.FLOAT, "N", 2]}, {"out": TensorProto.FLOAT})
    dead = np.array([[0.0, 0.9], [0.0, 1.0]], np.float32), np.array([0, 0])
    assert Evaluator([0.1], gradient=kind).evaluate_robustness(proto, dead) == {0.1: 1.0}
    assert Evaluator([0.1], gradient=kind, counting="paoding-1.0").evaluate_robustness(proto, dead) == {0.1: 0}
    below = np.array([[0.0, 0.0], [0.04, 0.01], [0.0, 1.0]], np.float32), np.array([0, 1, 0])
    found = Evaluator([0.04], gradient=kind, counting="paoding-1.0").evaluate(proto, below)
    assert (found.robust, found.accuracy) == ({0.04: 1}, pytest.approx(2 / 3))
    assert Evaluator([0.04], gradient=kind).evaluate(proto, below).robust == {0.04: 2}
    with pytest.raises(DataError, match=re.escape("input 'x' has values in [0, 2] outside of the clip range [-1, 1]; give")):
        Evaluator([0.1], gradient=kind, counting="paoding-1.0").evaluate(proto, (2 * dead[0], dead[1]))


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
    found = Evaluator((0.1, 8 / 255), top_k=2, gradient="finite-difference").evaluate(NET.onnx(), (NET.x, NET.labels), NET.onnx())
    found.save(tmp_path / "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report == found.to_dict()
    assert report["schema"] == "onnxprune.evaluation/1"
    assert list(report["metrics"]["robust_accuracy"]) == ["0.1", "0.0313725490196"]
    assert set(report["metrics"]) == {"accuracy", "loss", "top_k", "robust_accuracy", "noise_accuracy", "agreement"}
    expected = {"name": "fgsm", "norm": "linf", "steps": 1, "random_start": False, "gradient": "finite-difference"}
    assert report["attack"] == expected
    text = str(found)
    assert re.search(r"accuracy +90.0 %", text)
    assert re.search(r"0.1 +\d+.\d % +\d+.\d %", text)
    assert text.endswith("along each of 12 coordinates: estimates can understate how vulnerable the model is")


def test_what_exact_gradients_cost() -> None:
    """54 of 60 samples are right: one gradient, and a prediction by epsilon for the attack and another for noise."""
    found = Evaluator((0.1, 0.2)).evaluate(NET.onnx(), (NET.x, NET.labels))
    assert (found.forward_passes, found.backward_passes, found.warnings) == (60 + 54 * (1 + 2 * 2), 54, ())
    assert found.to_dict()["attack"]["gradient"] == "graph"
    assert re.search(r"forward passes +330\n +backward passes +54\n", str(found))


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
    monkeypatch.setattr("onnxprune.evaluator.robustness", lambda *a, **k: pytest.fail("the attack has begun"))
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
    "attack": ({"attack": "cw"}, UsageError, "attack 'cw' does not exist; choose one of fgsm, pgd"),
    "steps": (
        {"steps": 2},
        UsageError,
        "steps, step_size and random_start are those of attack pgd; choose it, or leave them out",
    ),
    "no step": ({"attack": "pgd", "steps": 0}, OptionError, "steps is 0; it is how many steps the attack takes, at least 1"),
    "step": (
        {"attack": "pgd", "step_size": 0},
        OptionError,
        "step_size is 0; it is how far a step goes in the inputs' units, more than 0",
    ),
    "norm": ({"norm": "l1"}, UsageError, "norm 'l1' does not exist; choose one of linf, l2"),
    "gradient": (
        {"gradient": "x"},
        UsageError,
        "gradient 'x' does not exist; choose one of auto, graph, finite-difference",
    ),
    "no attack": (
        {"attack": None, "gradient_sparsity": 0.5},
        UsageError,
        "surrogate and gradient_sparsity are for an attack; choose one, or leave them out",
    ),
    "no graph": (
        {"gradient": "finite-difference", "gradient_sparsity": 0.5},
        UsageError,
        "gradient_sparsity prunes the backward graph, which finite differences do without; choose graph",
    ),
    "no kernels": (
        {"gradient_sparsity": 0.5},
        GradientError,
        "gradient sparsity prunes the kernels of Conv, and the model has none stored as floats; leave it out",
    ),
    "sparsity": (
        {"gradient_sparsity": 1.5},
        OptionError,
        "gradient_sparsity is 1.5; it is a share of the weights, from 0 to 1",
    ),
    "bernoulli": ({"bernoulli": -1}, OptionError, "bernoulli is -1; it is a probability, from 0 to 1"),
    "counting": ({"counting": "x"}, UsageError, "counting 'x' does not exist; choose one of all, paoding-1.0"),
    "top_k": ({"top_k": 0}, OptionError, "top_k is 0; it is a number of classes, at least 1"),
    "many": ({"top_k": 5}, OptionError, "top_k is 5, but the model has 4 classes; choose fewer"),
    "batch": ({"batch_size": 0}, OptionError, "batch_size is 0; it is the number of samples to take, at least 1, or -1 for all"),
    "budget": ({"budget": 0}, OptionError, "budget is 0; it is a number of forward passes, at least 2 for each sample"),
    "small": (
        {"budget": 119, "gradient": "finite-difference"},
        OptionError,
        "budget is 119; 60 samples need at least 120 forward passes for gradients, two along each direction; "
        "raise it, or take fewer samples",
    ),
    "small for pgd": (
        {"attack": "pgd", "budget": 1199, "gradient": "finite-difference"},
        OptionError,
        "budget is 1199; 60 samples with 10 gradients each need at least 1200 forward passes for gradients, two along each "
        "direction; raise it, or take fewer samples or steps",
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
    for options in ({}, {"gradient": "graph"}, {"attack": None, "top_k": 2}):
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
    for options in ({"attack": None}, {}, {"gradient": "graph"}):
        with pytest.raises(DataError, match=re.escape("no output of the model has the shape (samples, classes)")):
            Evaluator(**options).evaluate(proto, {"x": np.ones((3, 4, 4), np.float32)})


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
    options += ["--gradient", "finite-difference"]
    full = cli(proto, "--data", arrays, *options, "--report", tmp_path / "r.json")
    assert full.exit_code == 0, full.output
    assert full.stderr.splitlines()[0].startswith("onnxprune: at most 838 forward passes for 50 samples")
    assert full.stderr.splitlines()[1].startswith(
        "onnxprune: warning: gradients are estimated by finite differences along 5 blocks"
    )
    report = json.loads((tmp_path / "r.json").read_text())
    settings = {"clip": (-1, 2), "top_k": 2, "batch_size": 50, "budget": 500, "seed": 3, "gradient": "finite-difference"}
    expected = Evaluator((0.1, 0.2), **settings).evaluate(proto, arrays)
    assert report == expected.to_dict()
    assert list(cli(proto, "--data", arrays, "--attack", "fgsm").stdout.split("\n\n")[1].split())[-5] == "0.1"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["MODEL"], 2, "Missing option '--data'"),
        (["MODEL", "--data", "DATA", "--attack", "cw"], 2, "attack 'cw' does not exist; choose one of fgsm, pgd"),
        (["MODEL", "--data", "DATA", "--clip", "1"], 2, "Option '--clip' requires 2 arguments"),
        (["MODEL", "--data", "DATA", "--epsilon", "much"], 2, "Invalid value for '--epsilon'"),
        (["MODEL", "--data", "DATA", "--epsilon", "-1"], 1, "epsilon is -1; it is how far the attack may go"),
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
