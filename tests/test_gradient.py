"""Gradients written as ONNX nodes: every rule against central differences in float64, and wrong ones are found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases_gradient import CASES, Arrays, Case, i, wrap
from float64 import operators
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.errors import ModelError
from onnxprune.gradient import Derivative, backward, derivative, find, registry
from onnxprune.graph import load
from onnxprune.rules import table
from onnxprune.runtime import Session
from onnxprune.shapes import infer

EXPORTED = Path(__file__).parent / "exported"
TOLERANCE, SINGLE = 1e-6, 1e-5
STEP = 1e-5


def gradient(model: onnx.ModelProto, output: str = "y") -> onnx.ModelProto:
    graph = load(model)
    found = backward(graph, infer(graph), output)
    assert found.missing == ""
    assert found.model is not None
    if not any(node.op_type == "GroupNormalization" for node in model.graph.node):  # deprecated before opset 21
        onnx.checker.check_model(found.model, full_check=True)
    return found.model


Run = Callable[[list[str], Arrays], list[np.ndarray]]


def runner(model: onnx.ModelProto) -> Run:
    """In onnxruntime where it knows the operators in float64, in ONNX's evaluator elsewhere, which lacks old versions."""
    own = operators(model)
    if not {op.__name__ for op in own}.isdisjoint(node.op_type for node in model.graph.node):
        return ReferenceEvaluator(model, new_ops=own).run
    try:
        session = Session(model, optimise=False)
        return lambda outputs, feeds: session.run(feeds, outputs)
    except ModelError:
        return ReferenceEvaluator(model).run


def differences(model: onnx.ModelProto, feeds: Arrays, seed: np.ndarray, output: str = "y") -> Arrays:
    """Central differences of the weighted sum for each coordinate of each float input."""
    forward = runner(model)

    def value(name: str, place: int, step: float) -> float:
        moved = {n: v.copy() for n, v in feeds.items()}
        moved[name].flat[place] += step
        return float((forward([output], moved)[0] * seed).sum())

    return {
        name: np.array([(value(name, i, STEP) - value(name, i, -STEP)) / (2 * STEP) for i in range(v.size)]).reshape(v.shape)
        for name, v in feeds.items()
        if v.dtype.kind == "f"
    }


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference as a share of the largest value, or of 1."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max(initial=0) / max(1.0, np.abs(wanted).max(initial=0)))


def worst(model: onnx.ModelProto, feeds: Arrays, rng: np.random.Generator) -> float:
    """How far gradients are from central differences."""
    return max(errors(model, feeds, rng, [(model, runner, np.dtype(np.float64))]))


def errors(
    model: onnx.ModelProto,
    feeds: Arrays,
    rng: np.random.Generator,
    ways: Sequence[tuple[onnx.ModelProto, Callable[[onnx.ModelProto], Run], np.dtype[Any]]],
) -> list[float]:
    """How far gradients are from central differences of a model, for other forms of it, what runs them, and their type."""
    seed = rng.standard_normal(runner(model)(["y"], feeds)[0].shape)
    expected = differences(model, feeds, seed)
    names, found = [f"grad__{name}" for name in expected], []
    for form, run, kind in ways:
        written = gradient(form)
        assert [v.name for v in written.graph.output] == ["y", *names]
        results = run(written)(names, {name: v.astype(kind) for name, v in {**feeds, "grad__seed": seed}.items()})
        assert {r.dtype for r in results} == {kind}
        found.append(max(error(result, wanted) for result, wanted in zip(results, expected.values(), strict=True)))
    return found


def onnxruntime(model: onnx.ModelProto) -> Run:
    session = Session(model)
    return lambda outputs, feeds: session.run(feeds, outputs)


def retyped(model: onnx.ModelProto, old: int, new: int) -> onnx.ModelProto:
    """The same model in another float type."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    dtype = helper.tensor_dtype_to_np_dtype(new)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type == old:
            value.type.tensor_type.elem_type = new
    attributes = [(n, a) for n in copy.graph.node for a in n.attribute]
    for tensor in (*copy.graph.initializer, *(a.t for _, a in attributes if a.HasField("t"))):
        if tensor.data_type == old:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for node, attribute in attributes:
        if node.op_type == "Cast" and attribute.i == old:
            attribute.i = new
    del copy.graph.value_info[:]
    return copy


# which ONNX, or onnxruntime, has in single precision alone
# whose results' sizes don't follow from the operand's when these are open
TELLS = {"Compress", "Split", "Squeeze"}
SINGLE_ALONE = {"Celu", "MeanVarianceNormalization", "RotaryEmbedding"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules(case: Case) -> None:
    """In double precision against differences to 1e-6; in onnxruntime, optimised, in single precision to what that has.

    Where the first axis is open, the gradient is the same, or there is none.
    """
    rng, model = np.random.default_rng(1), case.model()
    wide = [] if case.op in SINGLE_ALONE else [(model, runner, np.dtype(np.float64))]
    narrow = (retyped(model, TensorProto.DOUBLE, TensorProto.FLOAT), onnxruntime, np.dtype(np.float32))
    opened = retyped(case.model(dynamic=True), TensorProto.DOUBLE, TensorProto.FLOAT)
    open_ = [(opened, onnxruntime, np.dtype(np.float32))] if case.op not in TELLS and differentiable(opened) else []
    found = errors(model, case.feeds(rng), rng, [*wide, narrow, *open_])
    assert max(found[: len(wide)], default=0) < TOLERANCE
    assert max(found) < SINGLE


def differentiable(model: onnx.ModelProto) -> bool:
    """Whether there is a gradient, if the model can run at other sizes at all."""
    try:
        graph = load(model)
        return backward(graph, infer(graph), "y").model is not None
    except ModelError:
        return False


def test_every_rule_has_a_case() -> None:
    assert {case.op for case in CASES} | {"SimplifiedLayerNormalization"} == set(registry._VJPS)


def test_something_is_known_of_every_operator() -> None:
    """An operator with a rule for pruning, or one that ONNX has in the opsets that are common, is in one table."""
    known = {rule.op for rule in table() if not rule.domain}
    known |= {s.name for s in onnx.defs.get_all_schemas_with_history() if not s.domain and s.since_version <= 24}
    found = {op: derivative(op) for op in known}
    assert found["Relu"] is Derivative.RULE
    assert found["Hardmax"] is Derivative.ZERO
    assert found["LSTM"] is derivative("BiasGelu", "com.microsoft") is Derivative.DIFFERENCES
    assert not set(registry._VJPS) - known


def test_an_operator_of_which_nothing_is_known_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError, match="NewOperator"):
        derivative("NewOperator")
    monkeypatch.setitem(registry._VJPS, "LSTM", lambda *_: ())
    with pytest.raises(KeyError, match="LSTM"):
        derivative("LSTM")


def test_the_name_that_onnxruntime_gives_rms_normalization() -> None:
    """It has no schema, so that nothing but onnxruntime runs it."""
    rng, results = np.random.default_rng(1), []
    for op, opset in (("RMSNormalization", 23), ("SimplifiedLayerNormalization", 17)):
        model = retyped(Case(op, ((2, 3, 4), (4,)), opset).model(), TensorProto.DOUBLE, TensorProto.FLOAT)
        graph = load(model)
        found = backward(graph, infer(graph), "y").model
        assert found is not None
        feeds = {"x0": rng.standard_normal((2, 3, 4)), "x1": rng.standard_normal(4), "grad__seed": rng.standard_normal((2, 3, 4))}
        results.append(onnxruntime(found)(["grad__x0", "grad__x1"], {n: v.astype(np.float32) for n, v in feeds.items()}))
        rng = np.random.default_rng(1)
    assert all(error(*pair) < SINGLE for pair in zip(*results, strict=True))


@pytest.mark.parametrize("op", ["Conv", "MaxPool", "Softmax", "LayerNormalization", "Reshape", "Slice", "Gather", "Attention"])
def test_an_open_first_axis_is_no_hindrance(op: str) -> None:
    """So that the check above has something to check."""
    assert any(differentiable(case.model(dynamic=True)) for case in CASES if case.op == op)


@pytest.mark.parametrize("opset", [7, 12, 17])
@pytest.mark.parametrize(
    "attributes",
    [{"kernel_shape": [2, 2], "strides": [2, 2]}, {"kernel_shape": [3, 2], "pads": [1, 0, 0, 0]}],
    ids=["apart", "over"],
)
def test_the_first_of_equal_elements_has_the_gradient(opset: int, attributes: dict[str, Any]) -> None:
    """As in torch, whose pooling takes the first in the order in memory."""
    model = retyped(Case("MaxPool", ((2, 2, 6, 4),), opset, attributes).model(), TensorProto.DOUBLE, TensorProto.FLOAT)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, 2, 6, 4)).astype(np.float32)
    seed = rng.standard_normal(onnxruntime(model)(["y"], {"x0": x})[0].shape).astype(np.float32)
    wanted = np.zeros_like(x)
    kernel, strides, (top, *_) = attributes["kernel_shape"], attributes.get("strides", [1, 1]), attributes.get("pads", [0])
    for place in np.ndindex(*seed.shape):
        rows, columns = (
            np.arange(p * s - b, p * s - b + k) for p, s, k, b in zip(place[2:], strides, kernel, (top, 0), strict=True)
        )
        inside = [(*place[:2], r, c) for r in rows for c in columns if r >= 0]
        wanted[max(inside, key=lambda at: x[at])] += seed[place]
    assert error(onnxruntime(gradient(model))(["grad__x0"], {"x0": x, "grad__seed": seed})[0], wanted) < SINGLE


def test_clipping_is_flat_at_its_bounds() -> None:
    """As torch's ReLU6 is, and its ReLU."""
    for node_, opset in ((node("Clip", "x", "y", min=0.0, max=6.0), 7), (node("Relu", "x", "y"), 17)):
        feeds = {"x": np.array([[-1.0, 0.0, 1.0, 6.0]]), "grad__seed": np.ones((1, 4))}
        found = runner(gradient(network(node_, shape=(1, 4), opset=opset)))(["grad__x"], feeds)[0]
        assert found.tolist() == [[0, 0, 1, 0 if node_.op_type == "Clip" else 1]]


# whole models ----------------------------------------------------------------------------------------------------------------
def along(model: onnx.ModelProto, feeds: Arrays, output: str, directions: int = 2) -> float:
    """How far gradients in float32 are from differences in float64 along random directions, as a share of their length."""
    rng = np.random.default_rng(2)
    forward = ReferenceEvaluator(retyped(model, TensorProto.FLOAT, TensorProto.DOUBLE), new_ops=operators(model)).run
    wide = {name: v.astype(np.float64) if v.dtype == np.float32 else v for name, v in feeds.items()}
    seed = rng.standard_normal(onnxruntime(model)([output], feeds)[0].shape)
    names = [name for name, v in feeds.items() if v.dtype == np.float32]
    slopes = onnxruntime(gradient(model, output))([f"grad__{n}" for n in names], {**feeds, "grad__seed": seed.astype(np.float32)})
    errors = []
    for name, slope in zip(names, slopes, strict=True):
        for direction in rng.standard_normal((directions, *slope.shape)):
            ends = [forward([output], {**wide, name: wide[name] + step * direction})[0] for step in (1e-7, -1e-7)]
            found = float(((ends[0] - ends[1]) * seed).sum() / 2e-7)
            errors.append(abs(found - float((slope * direction).sum())) / float(np.linalg.norm(slope)))
    return max(errors)


NETS = [
    "mlp.ts",
    "residual.ts",
    "dense.ts",
    "keras_cnn.tf2onnx",
    "inverted_residual.dynamo",
    "option_a.ts",
    "prelu.ts",
    "mixer.ts",
    "unet.ts",
]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch", [1, 3])
def test_exported_models(name: str, batch: int) -> None:
    model = onnx.load(EXPORTED / f"{name}.onnx")
    rng = np.random.default_rng(3)
    feeds = {}
    for value in model.graph.input:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if batch != 1 and dims[0]:
            pytest.skip("takes one batch size")
        feeds[value.name] = rng.standard_normal([d or (batch if k == 0 else 16) for k, d in enumerate(dims)]).astype(np.float32)
    assert along(model, feeds, model.graph.output[0].name) < 1e-5


def network(*nodes: onnx.NodeProto, shape: tuple[Any, ...] = (2, 3), opset: int = 17, **stored: np.ndarray) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(v, n) for n, v in stored.items()]
    return wrap(list(nodes), [helper.make_tensor_value_info("x", TensorProto.DOUBLE, shape)], ["y"], tensors, opset)


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], f"the {op}", **attributes)


FAN_OUT = network(node("Tanh", "x", "a"), node("Mul", "a x", "b"), node("Mul", "a a", "c"), node("Sum", "a b c", "y"))


def test_fan_out_is_summed() -> None:
    rng = np.random.default_rng(4)
    assert worst(FAN_OUT, {"x": rng.standard_normal((2, 3))}, rng) < TOLERANCE


def test_wrong_rules_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    monkeypatch.setitem(registry._VJPS, "Tanh", lambda op, g, y, x: (op.Mul(g, y),))
    assert worst(FAN_OUT, {"x": rng.standard_normal((2, 3))}, rng) > 1e-2


def test_any_batch_size_and_broadcasting_along_it() -> None:
    """The middle keeps one row, which is then repeated as often as there are samples."""
    model = network(
        node("ReduceMean", "x", "m", axes=[0]),
        node("Sub", "x m", "d"),
        node("Reshape", "d to", "r"),
        node("Mul", "r r", "y"),
        shape=("N", 6),
        to=i(-1, 3, 2),
    )
    for batch in (1, 4):
        rng = np.random.default_rng(batch)
        assert worst(model, {"x": rng.standard_normal((batch, 6))}, rng) < TOLERANCE


def test_steps_have_no_gradient() -> None:
    rng = np.random.default_rng(4)
    model = network(node("Floor", "x", "a"), node("Mul", "a x", "y"))
    assert worst(model, {"x": rng.standard_normal((2, 3))}, rng) < TOLERANCE


def test_only_inputs_that_the_output_depends_on() -> None:
    model = network(node("Relu", "x", "y"))
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.DOUBLE, (2, 3)))
    model.graph.node.append(helper.make_node("Exp", ["other"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.DOUBLE, (2, 3)))
    written = gradient(model)
    assert [v.name for v in written.graph.input] == ["x", "other", "grad__seed"]
    assert [v.name for v in written.graph.output] == ["y", "grad__x"]


@pytest.mark.parametrize(
    ("model", "label"),
    [
        (network(node("Det", "x", "y"), shape=(3, 3)), "the Det"),
        (
            network(node("Relu", "x", "a"), node("CumSum", "a axis", "b"), node("Det", "b", "y"), axis=np.array(0), shape=(3, 3)),
            "the Det",
        ),
        (network(node("Einsum", "x", "y", equation="ii->i"), shape=(3, 3)), "the Einsum"),
        (network(node("Slice", "x s e a t", "y"), s=i(-1), e=i(-9), a=i(0), t=i(-1), shape=("N", 3)), "the Slice"),
        (network(node("GatherElements", "x places", "y"), places=np.array([[0], [1]]), opset=13), "the GatherElements"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_has_no_rule_is_named(model: onnx.ModelProto, label: str) -> None:
    graph = load(model)
    found = backward(graph, infer(graph), "y")
    assert (found.model, found.missing) == (None, label)


@pytest.mark.parametrize("name", ["residual.ts.qdq", "residual.ts.qoperator", "lstm.ts"])
def test_what_has_no_rule_is_named_in_exported_models(name: str) -> None:
    graph = load(EXPORTED / f"{name}.onnx")
    found = backward(graph, infer(graph), graph.outputs[0].name)
    assert found.model is None
    labels = {node.label for node in graph.nodes if node.op in ("DequantizeLinear", "QLinearAdd", "LSTM")}
    assert found.missing in labels


def test_messages() -> None:
    graph = load(FAN_OUT)
    with pytest.raises(ModelError) as error:
        backward(graph, infer(graph), "b")
    assert str(error.value) == "'b' is not a graph output, so there is no gradient of it; the outputs are 'y'"
    again = load(gradient(FAN_OUT))
    with pytest.raises(ModelError) as error:
        backward(again, infer(again), "y")
    assert str(error.value) == "a tensor is called 'grad__seed', as the gradient would be; rename it"


def test_one_rule_for_each_operator() -> None:
    with pytest.raises(ValueError, match="operator Relu has a gradient already"):
        registry.vjp("Relu")(find("Relu"))
