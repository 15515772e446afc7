"""Losses and their derivatives by inputs, activations, gates and stored tensors, against central differences in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.errors import GradientError, UsageError
from onnxprune.gradient import LOSS, Gate, GradientGraph, differentiate, gradient_graph, loss
from onnxprune.graph import load
from onnxprune.shapes import infer

RNG = np.random.default_rng(0)
STEP, TOLERANCE = 1e-5, 1e-7

Arrays = dict[str, np.ndarray]

STORED: Arrays = {"w": RNG.standard_normal((5, 4)), "b": RNG.standard_normal(4), "v": RNG.standard_normal((4, 3))}
X, LABELS, WEIGHTS = RNG.standard_normal((6, 5)), RNG.integers(0, 3, 6), RNG.uniform(0.5, 2, 6)
TARGET = RNG.standard_normal((6, 3))


def softmax(z: np.ndarray) -> np.ndarray:
    raised = np.exp(z - z.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def network(
    last: str = "", classes: int = 3, opset: int = 17, kind: int = TensorProto.DOUBLE, **attributes: Any
) -> onnx.ModelProto:
    """Gemm, Tanh, MatMul, and an operator that ends it."""
    stored = {**STORED, "v": STORED["v"][:, :classes]}
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["s"], "gemm"),
        helper.make_node("Tanh", ["s"], ["h"], "tanh"),
        helper.make_node("MatMul", ["h", "v"], ["z" if last else "y"], "matmul"),
    ]
    if last:
        nodes.append(helper.make_node(last, ["z"], ["y"], "last", **attributes))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ("N", 5))],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(v.astype(dtype), n) for n, v in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def run(found: GradientGraph, feeds: Arrays, outputs: list[str] | None = None) -> Arrays:
    session = ReferenceEvaluator(found.model)
    names = outputs or [LOSS, *found.outputs.values()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def written(model: onnx.ModelProto, name: str, wrt: list[Any], **options: Any) -> GradientGraph:
    graph = load(model)
    return differentiate(graph, infer(graph), name, wrt, **options)


def differences(found: GradientGraph, feeds: Arrays, name: str) -> np.ndarray:
    """Central differences of the weighted loss by each element of what is fed."""
    slopes = np.zeros(feeds[name].shape)
    for i in range(slopes.size):
        ends = []
        for step in (STEP, -STEP):
            moved = feeds[name].copy()
            moved.flat[i] += step
            ends.append(float((run(found, {**feeds, name: moved}, [LOSS])[LOSS] * feeds["grad__weights"]).sum()))
        slopes.flat[i] = (ends[0] - ends[1]) / (2 * STEP)
    return slopes


def feeds(found: GradientGraph, model: onnx.ModelProto, **more: np.ndarray) -> Arrays:
    targets: Mapping[str, np.ndarray] = {}
    if found.targets:
        targets = {"y": ReferenceEvaluator(network_like(model)).run(None, {"x": X})[0]}
    return found.feeds(
        {"x": X, **more}, LABELS % 2 if "two" in model.graph.doc_string else LABELS, weights=WEIGHTS, targets=targets
    )


def network_like(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with other weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rng = np.random.default_rng(9)
    for tensor in copy.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(rng.standard_normal(tuple(tensor.dims)), tensor.name))
    return copy


def two(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.doc_string = "two classes, one output"
    return model


NETS = {
    "logits": network(),
    "softmax": network("Softmax", axis=1),
    "softmax-old": network("Softmax", opset=11),
    "softmax-oldest": network("Softmax", opset=7),
    "log-softmax": network("LogSoftmax", axis=-1),
    "one-logit": two(network(classes=1)),
    "sigmoid": two(network("Sigmoid", classes=1)),
}
ALL = ["cross-entropy", "predicted", "kl", "margin", "squared"]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ALL)
def test_losses(net: str, name: str) -> None:
    model = NETS[net]
    found = written(model, name, ["x", "w", "b", "v"], fed=["w", "b", "v"])
    assert found.needs_labels == (name in ("cross-entropy", "margin"))
    fed = feeds(found, model, **{n: numpy_helper.to_array(t) for n, t in zip("wbv", model.graph.initializer, strict=True)})
    results = run(found, fed)
    assert results[LOSS].shape == (6,)
    for wrt in "xwbv":
        expected = differences(found, fed, wrt)
        assert results[found.outputs[wrt]].shape == expected.shape
        assert np.abs(results[found.outputs[wrt]] - expected).max() < TOLERANCE


@pytest.mark.parametrize("net", NETS)
def test_losses_are_what_they_are_called(net: str) -> None:
    """Against numpy, from the model's own outputs."""
    model, output = NETS[net], ReferenceEvaluator(NETS[net]).run(None, {"x": X})[0]
    p = {
        "softmax": output,
        "softmax-old": output,
        "softmax-oldest": output,
        "log-softmax": np.exp(output),
        "logits": softmax(output),
    }.get(net)
    if p is None:
        one = output if net == "sigmoid" else 1 / (1 + np.exp(-output))
        p = np.concatenate([1 - one, one], axis=1)
    rows, labels = np.arange(6), LABELS % p.shape[1]
    own = p[rows, labels]
    expected = {"cross-entropy": -np.log(own), "predicted": -np.log(p.max(axis=1)), "margin": np.log(1 - own) - np.log(own)}
    for name, values in expected.items():
        found = written(model, name, ["x"])
        results = run(found, found.feeds({"x": X}, labels, weights=WEIGHTS))
        assert np.allclose(results[LOSS], values, atol=1e-10)
    for name in ("kl", "squared"):
        found = written(model, name, ["x"])
        results = run(found, found.feeds({"x": X}, weights=WEIGHTS, targets={"y": output}))
        assert np.abs(results[LOSS]).max() < 1e-9
        assert np.abs(results["grad__x"]).max() < 1e-9


def test_probabilities_without_a_softmax() -> None:
    model = network()
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.full((4, 3), 0.1), "v"))
    model.graph.node.append(helper.make_node("Exp", ["y"], ["e"]))
    model.graph.node.append(helper.make_node("ReduceSum", ["e", "axes"], ["total"]))
    model.graph.node.append(helper.make_node("Div", ["e", "total"], ["p"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axes"))
    model.graph.output[0].name = "p"
    for name in ("cross-entropy", "margin"):
        found = written(model, name, ["x"], probabilities=True)
        fed = found.feeds({"x": X}, LABELS, weights=WEIGHTS)
        results = run(found, fed)
        assert np.abs(results["grad__x"] - differences(found, fed, "x")).max() < TOLERANCE
    assert np.allclose(results[LOSS], np.log(2), atol=1e-9)


def test_gates_and_activations() -> None:
    found = written(network(), "cross-entropy", ["h", Gate("h", 1), Gate("s", -1), Gate("w", 1), Gate("w", 0)], also=["h"])
    results = run(found, found.feeds({"x": X}, LABELS), [LOSS, *found.outputs.values(), "h"])
    slopes, values = results["grad__h"], results["h"]
    assert np.allclose(results[found.outputs[Gate("h", 1)]], slopes * values)
    gate = results[found.outputs[Gate("s", -1)]]
    assert gate.shape == (6, 4)
    weight = results[found.outputs[Gate("w", 1)]]  # w and b together make s, which is homogeneous in them
    bias = run(written(network(), "cross-entropy", ["b"]), found.feeds({"x": X}, LABELS))["grad__b"] * STORED["b"]
    assert np.allclose(weight.sum(axis=0) + bias, gate.sum(axis=0))
    assert results[found.outputs[Gate("w", 0)]].shape == (5,)


def test_weights_of_samples() -> None:
    found = written(network(), "margin", ["x", "v"])
    both = run(found, found.feeds({"x": X}, LABELS, weights=np.array([1, 1, 0, 0, 0, 0])))
    alone = run(found, found.feeds({"x": X[:2]}, LABELS[:2]))
    assert np.allclose(both["grad__v"], alone["grad__v"])
    assert not both["grad__x"][2:].any()
    assert both[LOSS].all()


def test_only_the_backward_pass_reads_masked_weights() -> None:
    found = written(network(), "cross-entropy", ["x"], masked=["v"])
    assert found.masked == {"v": "grad__masked_v"}
    mask = STORED["v"] * (np.abs(STORED["v"]) > 0.5)
    fed = found.feeds({"x": X}, LABELS)
    results = run(found, {**fed, "grad__masked_v": mask})
    plain = run(written(network(), "cross-entropy", ["x", "y"]), fed)
    assert np.array_equal(results[LOSS], plain[LOSS])
    hidden = np.tanh(X @ STORED["w"] + STORED["b"])
    assert np.allclose(results["grad__x"], (plain["grad__y"] @ mask.T * (1 - hidden**2)) @ STORED["w"].T)
    assert not np.allclose(results["grad__x"], plain["grad__x"])


def test_what_the_loss_does_not_depend_on_has_no_slope() -> None:
    model = network()
    model.graph.node.append(helper.make_node("Exp", ["x"], ["other"]))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.DOUBLE, None))
    results = run(found := written(model, "margin", ["other"]), found.feeds({"x": X}, LABELS))
    assert results["grad__other"].shape == (6, 5)
    assert not results["grad__other"].any()


@pytest.mark.parametrize("net", ["logits", "sigmoid"])
def test_in_onnxruntime(net: str) -> None:
    """A scores' tensor with further axes of size one, in float32."""
    import onnxruntime

    model = network(classes=NETS[net].graph.initializer[2].dims[1], kind=TensorProto.FLOAT)
    model.graph.node.append(helper.make_node("Reshape", ["y", "to"], ["r"]))
    model.graph.node.append(helper.make_node("Sigmoid" if net == "sigmoid" else "Identity", ["r"], ["out"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, -1, 1, 1]), "to"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("out", TensorProto.FLOAT, None))
    found = gradient_graph(model, "margin", ["x"])
    onnx.checker.check_model(found.model)
    session = onnxruntime.InferenceSession(found.model.SerializeToString())
    fed = found.feeds({"x": X.astype(np.float32)}, LABELS % 2)
    wide = written(NETS[net], "margin", ["x"])
    expected = run(wide, wide.feeds({"x": X}, LABELS % 2))
    assert np.allclose(session.run([LOSS], fed)[0], expected[LOSS], atol=1e-5)
    assert np.allclose(session.run(["grad__x"], fed)[0], expected["grad__x"], atol=1e-5)


def test_wrong_losses_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(op: Any, scores: loss.Scores, aim: str) -> tuple[str, str]:
        value, slope = loss.cross_entropy(op, scores, aim)
        return value, op.Mul(slope, slope)

    monkeypatch.setitem(loss.LOSSES, "cross-entropy", wrong)
    found = written(network(), "cross-entropy", ["x"])
    fed = found.feeds({"x": X}, LABELS)
    assert np.abs(run(found, fed)["grad__x"] - differences(found, fed, "x")).max() > 1e-2


def test_messages() -> None:
    for arguments, kind, text in [
        (
            ("hinge", ["x"]),
            UsageError,
            "loss 'hinge' does not exist; choose one of cross-entropy, predicted, kl, margin, squared",
        ),
        (
            ("margin", ["q"]),
            UsageError,
            "the model has no tensor 'q'; give the name of an input, an activation or a stored tensor",
        ),
    ]:
        with pytest.raises(kind) as error:
            written(network(), *arguments)
        assert str(error.value) == text
    with pytest.raises(UsageError) as usage:
        written(network(), "margin", ["x"]).feeds({"x": X})
    assert str(usage.value) == "the loss is computed from labels, and there are none; give data with an array 'labels'"
    with pytest.raises(GradientError) as missing:
        written(network("Hardmax"), "squared", ["x"])
    assert missing.value.node == "last"
    assert str(missing.value) == (
        "node 'last' (Hardmax) has no gradient that is known, for this opset and these operands; take finite differences, or "
        "leave out what comes before it"
    )
    model = network()
    model.graph.node.append(helper.make_node("Transpose", ["y"], ["t"]))
    model.graph.output[0].name = "t"
    with pytest.raises(GradientError) as misfit:
        written(model, "kl", ["x"])
    assert str(misfit.value) == (
        "loss 'kl' is a classifier's, and no output of the model has floats of shape (samples, classes); take 'squared', which "
        "compares any outputs with another model's"
    )


@pytest.mark.parametrize("name", ["margin", "cross-entropy", "kl"])
def test_losses_of_the_oldest_opset_run(name: str) -> None:
    """Its operators repeat no operand along axes: onnxruntime minds, ONNX's evaluator does not."""
    import onnxruntime

    found = gradient_graph(network("Softmax", opset=7, kind=TensorProto.FLOAT), name, ["x"])
    session = onnxruntime.InferenceSession(found.model.SerializeToString())
    single = X.astype(np.float32)
    target = {"y": softmax(TARGET).astype(np.float32)} if found.targets else {}
    wide = written(NETS["softmax"], name, ["x"])
    expected = run(wide, wide.feeds({"x": X}, LABELS, targets={"y": softmax(TARGET)} if wide.targets else {}))
    slopes = session.run(["grad__x"], found.feeds({"x": single}, LABELS, targets=target))[0]
    assert np.allclose(slopes, expected["grad__x"], atol=1e-5)


def test_tables_of_16_bit_floats() -> None:
    """onnxruntime can't scatter their sums."""
    import onnxruntime

    rows, labels = np.array([0, 2, 2, 3]), np.array([0, 1, 1, 2])
    table = RNG.standard_normal((4, 3)).astype(np.float16)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ("N",))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ("N", 3))],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    found = gradient_graph(model, "cross-entropy", ["table"])
    session = onnxruntime.InferenceSession(found.model.SerializeToString())
    expected = np.zeros((4, 3))
    np.add.at(expected, rows, softmax(table[rows].astype(np.float64)) - np.eye(3)[labels])
    assert np.allclose(session.run(["grad__table"], found.feeds({"x": rows}, labels))[0], expected, atol=5e-3)
