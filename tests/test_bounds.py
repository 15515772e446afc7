"""Interval arithmetic: what is run on inputs within the interval never leaves the bounds, nor what a change does its effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dense
import graphs
import judge
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import NodeProto, helper

from onnxprune.bounds import Bounds, Effects
from onnxprune.channels import Coupling, analyse
from onnxprune.graph import load

EXPORTED = Path(__file__).parent / "exported"
Stored = dict[str, np.ndarray]


def activations(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor that nodes of the main graph write, in onnxruntime."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=o) for n in model.graph.node for o in n.output if o)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return {n: v for n, v in zip(names, session.run(names, feeds), strict=True) if isinstance(v, np.ndarray)}


def drawn(coupling: Coupling, rng: np.random.Generator, low: float, high: float, ends: bool) -> dict[str, np.ndarray]:
    """One sample within an interval: anywhere, or at its ends."""
    feeds = {}
    for port in coupling.graph.inputs:
        shape, dtype = coupling.shapes.inputs[port.name], helper.tensor_dtype_to_np_dtype(port.elem_type)
        values = rng.choice([low, high], shape) if ends else rng.uniform(low, high, shape)
        feeds[port.name] = values.astype(dtype) if dtype.kind == "f" else rng.integers(0, 2, shape).astype(dtype)
    return feeds


def outside(model: onnx.ModelProto, interval: tuple[float, float], inputs: tuple[float, float]) -> tuple[float, set[str]]:
    """By how much activations leave their bounds at most, relative to their scale; and which tensors have bounds."""
    coupling = analyse(load(model))
    bounds = Bounds(coupling, interval)
    rng, worst, known = np.random.default_rng(0), 0.0, set[str]()
    for trial in range(6):
        for name, values in activations(model, drawn(coupling, rng, *inputs, ends=trial % 2 > 0)).items():
            found = bounds.of(name)
            if found is None or values.dtype.kind != "f" or not values.size:
                continue
            low, high = (side.astype(np.float64) for side in found)
            assert low.shape == values.shape, name
            assert (low <= high).all(), name
            known.add(name)
            gap = np.maximum(low - values, values - high).max()
            worst = max(worst, float(gap) / max(float(np.abs(low).max()), float(np.abs(high).max()), 1e-3))
    return worst, known


def tolerance(model: onnx.ModelProto) -> float:
    """What is neither monotone nor turns at 0 is looked at in some points alone."""
    return 1e-2 if any(node.op_type in ("HardSwish", "HardSigmoid", "Erf") for node in model.graph.node) else 1e-5


# bounds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [(0.0, 1.0), (-2.0, 0.5)])
@pytest.mark.parametrize("step", graphs.STEPS)
def test_random_graphs_stay_within(step: str, interval: tuple[float, float]) -> None:
    model = graphs.build([step, "activation", step], "pool", 1)
    worst, known = outside(model, interval, interval)
    assert worst < tolerance(model)
    assert len(known) >= 4


@pytest.mark.parametrize(
    "name",
    ["mlp.ts", "keras_cnn.tf2onnx", "residual.ts", "inverted_residual.dynamo", "flatten_linear.ts", "lstm.ts", "gru_tower.ts",
     "transformer_encoder.ts", "mlp_classifier.skl", "siamese.ts"],
)  # fmt: skip
def test_exported_models_stay_within(name: str) -> None:
    model = onnx.load(EXPORTED / f"{name}.onnx")
    worst, known = outside(model, (0.0, 1.0), (0.0, 1.0))
    assert worst < tolerance(model)
    if name in ("mlp.ts", "residual.ts", "inverted_residual.dynamo", "flatten_linear.ts"):
        assert {o.name for o in model.graph.output} <= known


def test_inputs_beyond_the_interval_leave_the_bounds() -> None:
    """The control."""
    assert outside(dense.network(dense.layers(4, 6, 3)), (0.0, 1.0), (-5.0, 5.0))[0] > 0.1
    assert outside(graphs.build(["plain", "activation"], "open", 0), (0.0, 1.0), (-5.0, 5.0))[0] > 0.1


def test_one_layer_by_hand() -> None:
    layer = dense.Layer(np.array([[1, -2]] * 2, np.float32), np.array([0.5] * 2, np.float32))
    end = dense.Layer(np.ones((2, 2), np.float32), np.zeros(2, np.float32))
    for form in dense.FORMS:
        for interval, low, high in (((0.0, 1.0), -1.5, 1.5), ((-1.0, 1.0), -2.5, 3.5), ((2.0, 3.0), -3.5, -0.5)):
            bounds = Bounds(analyse(load(dense.network([layer, end], "Relu", form))), interval)
            for name, ends in (("s0", (low, high)), ("h0", (max(low, 0), max(high, 0)))):
                found = bounds.of(name)
                assert found is not None
                assert np.allclose([side.ravel() for side in found], [[ends[0]] * 2, [ends[1]] * 2])


@pytest.mark.parametrize("form", dense.FORMS)
def test_one_layer_s_bounds_are_reached(form: str) -> None:
    """The inputs that lead to the ends are known."""
    stack = dense.layers(7, 9, 4, norm=form != "gemm")
    found = Bounds(analyse(load(dense.network(stack, "Tanh", form))), (-0.5, 2.0)).of("h0")
    assert found is not None
    weight, bias = stack[0].folded()
    for side, values in zip(found, ((2.0, -0.5), (-0.5, 2.0)), strict=True):
        reached = np.tanh((np.where(weight < 0, *values) * weight).sum(axis=1) + bias)
        assert np.allclose(side.ravel(), reached, atol=1e-5)


def test_what_is_no_function_of_floats_has_no_bounds() -> None:
    model = onnx.load(EXPORTED / "bert.ts.onnx")
    bounds = Bounds(analyse(load(model)))
    assert bounds.of(model.graph.output[0].name) is None
    assert bounds.of("no such tensor") is None


# effects --------------------------------------------------------------------------------------------------------------


def effects(model: onnx.ModelProto, interval: tuple[float, float] = (0.0, 1.0)) -> Effects:
    return Effects(Bounds(analyse(load(model)), interval))


def after(stack: list[dense.Layer], hidden: np.ndarray, bend: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What the layers behind the first make of its units, float64."""
    for k, layer in enumerate(stack[1:], 1):
        weight, bias = layer.folded()
        hidden = hidden @ weight.T + bias
        hidden = bend(hidden) if k < len(stack) - 1 else hidden
    return hidden


@pytest.mark.parametrize("form", dense.FORMS)
def test_effects_on_a_linear_network_are_exact(form: str) -> None:
    stack = dense.layers(5, 8, 7, 3, norm=form == "conv")
    rng = np.random.default_rng(0)
    change = rng.standard_normal((4, 8)).astype(np.float32)
    ones = (1, 1) if form == "conv" else ()
    found = effects(dense.network(stack, "", form))
    tensor = "n0" if form == "conv" else "s0"
    exact = after(stack, change, lambda v: v) - after(stack, np.zeros_like(change), lambda v: v)
    shaped = change.reshape(4, 8, *ones)
    for side in found.of({tensor: (shaped, shaped)}):
        assert np.allclose(side, exact, atol=1e-5)
    wide = found.of({tensor: (-np.abs(shaped), np.abs(shaped))})
    gain = np.linalg.multi_dot([layer.folded()[0] for layer in stack[:0:-1]])
    assert (wide[1] >= np.abs(change) @ np.abs(gain).T - 1e-5).all()
    assert np.allclose(wide[0], -wide[1], atol=1e-5)


BENDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Relu": lambda v: np.maximum(v, 0),
    "Sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "Tanh": np.tanh,
}


def worst_effect(stack: list[dense.Layer], activation: str, shrink: float = 1.0) -> float:
    """How far changes of single units move the outputs beyond what is said of them, for units within their bounds."""
    found = effects(dense.network(stack, activation))
    bounds = found.bounds.of("h0")
    assert bounds is not None
    low, high = (side[0].astype(np.float64) for side in bounds)
    rng, worst, units = np.random.default_rng(0), 0.0, len(low)
    for _ in range(10):
        size = np.diag(rng.uniform(0, 1, units) * (high - low))
        ends = found.of({"h0": ((-size).astype(np.float32), size.astype(np.float32))})
        for _ in range(20):
            before = rng.uniform(low, high)
            moved = np.clip(before + size * rng.choice([-1, 1, rng.uniform(-1, 1)], (units, 1)), low, high)
            gap = after(stack, moved, BENDS[activation]) - after(stack, before[None], BENDS[activation])
            worst = max(worst, float(np.maximum(shrink * ends[0] - gap, gap - shrink * ends[1]).max()))
    return worst


@pytest.mark.parametrize("activation", BENDS)
@pytest.mark.parametrize("seed", range(4))
def test_effects_contain_what_happens(activation: str, seed: int) -> None:
    stack = dense.layers(5, 8, 7, 6, 3, seed=seed)
    assert worst_effect(stack, activation) < 1e-5
    assert worst_effect(stack, activation, shrink=0.1) > 1e-2, "the control: intervals a tenth as wide do not"


def test_effects_at_a_kink_near_the_end() -> None:
    """A unit that is almost always off still has all of ReLU's slope where it is on."""
    first = dense.Layer(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    second = dense.Layer(np.array([[1, 0]] * 2, np.float32), np.array([-0.98, 5], np.float32))
    third = dense.Layer(np.array([[1, 0]] * 2, np.float32), np.zeros(2, np.float32))
    change = np.array([[0.01, 0]], np.float32)
    _, high = effects(dense.network([first, second, third])).of({"h0": (0 * change, change)})
    assert (high >= 0.01 - 1e-6).all()
    assert (high <= 0.02).all()


def test_effects_within_relu_s_slope() -> None:
    """Units that are always on pass a change as it is, those that are always off nothing."""
    stack = dense.layers(4, 6, 3)
    rng = np.random.default_rng(0)
    model = dense.network(
        [stack[0], dense.Layer(np.eye(6, dtype=np.float32), np.array([9, 9, 9, -9, -9, -9], np.float32)), stack[1]]
    )
    change = rng.uniform(-0.1, 0.1, (5, 6)).astype(np.float32)
    low, high = effects(model).of({"h0": (change, change)})
    exact = change[:, :3] @ stack[1].weight[:, :3].T
    assert np.allclose(low, exact, atol=1e-4)
    assert np.allclose(high, exact, atol=1e-4)


def test_several_tensors_change_together() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["a"], "A"),
        helper.make_node("Gemm", ["x", "w1"], ["b"], "B"),
        helper.make_node("Sub", ["a", "b"], ["d"], "D"),
        helper.make_node("Identity", ["d"], ["y"], "End"),
    ]
    rng = np.random.default_rng(0)
    model = dense.model(nodes, {n: rng.standard_normal((3, 4)) for n in ("w0", "w1")}, ["n", 3], ["n", 4])
    one, two = (rng.uniform(0, 1, (2, 4)).astype(np.float32) for _ in range(2))
    low, high = effects(model).of({"a": (-one, one), "b": (-two, 2 * two)})
    assert np.allclose(low, -one - 2 * two, atol=1e-3)
    assert np.allclose(high, one + two, atol=1e-3)


RNG = np.random.default_rng(7)
OPERATORS: dict[str, tuple[list[NodeProto], Stored, bool]] = {
    name: ([helper.make_node(*n[:3], **n[3]) for n in nodes], stored, linear)
    for name, (nodes, stored, linear) in {
        "Conv": (
            [("Conv", ["x", "w", "b"], ["y"], {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 1]})],
            {"w": RNG.standard_normal((5, 4, 3, 3)), "b": RNG.standard_normal(5)},
            True,
        ),
        "grouped Conv": (
            [("Conv", ["x", "w"], ["y"], {"kernel_shape": [2, 2], "group": 4})],
            {"w": RNG.standard_normal((8, 1, 2, 2))},
            True,
        ),
        "ConvTranspose": ([("ConvTranspose", ["x", "w"], ["y"], {})], {"w": RNG.standard_normal((4, 3, 2, 2))}, True),
        "BatchNormalization": (
            [("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], {})],
            {"s": RNG.standard_normal(4), "b": RNG.standard_normal(4), "m": RNG.standard_normal(4), "v": RNG.uniform(1, 2, 4)},
            True,
        ),
        "MaxPool": ([("MaxPool", ["x"], ["y"], {"kernel_shape": [2, 2], "strides": [2, 2]})], {}, False),
        "AveragePool": ([("AveragePool", ["x"], ["y"], {"kernel_shape": [3, 3], "pads": [1] * 4})], {}, True),
        "GlobalAveragePool": ([("GlobalAveragePool", ["x"], ["y"], {})], {}, True),
        "GlobalMaxPool": ([("GlobalMaxPool", ["x"], ["y"], {})], {}, False),
        "Concat": (
            [("Neg", ["x"], ["n"], {}), ("Concat", ["x", "n", "x"], ["y"], {"axis": 1})],
            {},
            True,
        ),
        "Split": (
            [("Split", ["x"], ["a", "b"], {"axis": 1}), ("Add", ["a", "b"], ["y"], {})],
            {},
            True,
        ),
        "Add of branches": (
            [("Conv", ["x", "w"], ["c"], {}), ("Sigmoid", ["x"], ["s"], {}), ("Add", ["c", "s"], ["y"], {})],
            {"w": RNG.standard_normal((4, 4, 1, 1))},
            False,
        ),
        "Sub": ([("Neg", ["x"], ["n"], {}), ("Sub", ["n", "x"], ["y"], {})], {}, True),
        "Mul by a constant": ([("Mul", ["x", "c"], ["y"], {})], {"c": RNG.standard_normal((4, 1, 1))}, True),
        "Div by a constant": ([("Div", ["x", "c"], ["y"], {})], {"c": RNG.uniform(0.5, 2, (4, 1, 1))}, True),
        "Mul of branches": ([("Sigmoid", ["x"], ["s"], {}), ("Mul", ["x", "s"], ["y"], {})], {}, False),
        "Flatten": ([("Flatten", ["x"], ["y"], {})], {}, True),
        "Transpose": ([("Transpose", ["x"], ["y"], {"perm": [0, 2, 3, 1]})], {}, True),
        "Sigmoid": ([("Sigmoid", ["x"], ["y"], {})], {}, False),
        "Relu": ([("Neg", ["x"], ["n"], {}), ("Relu", ["n"], ["r"], {}), ("Add", ["r", "x"], ["y"], {})], {}, False),
        "Clip": ([("Clip", ["x", "l", "h"], ["y"], {})], {"l": np.array(0.2), "h": np.array(0.7)}, False),
        "HardSwish": ([("HardSwish", ["x"], ["y"], {})], {}, False),
        "Abs": ([("Sub", ["x", "c"], ["d"], {}), ("Abs", ["d"], ["y"], {})], {"c": np.array(0.5)}, False),
    }.items()
}


@pytest.mark.parametrize("name", OPERATORS)
def test_each_operator(name: str) -> None:
    nodes, stored, linear = OPERATORS[name]
    for k, node in enumerate(nodes):
        node.name = f"{node.op_type}_{k}"
    model = dense.model(nodes, stored, ["n", 4, 4, 4], [])
    model.graph.output[0].type.tensor_type.ClearField("shape")
    found, rng = effects(model), np.random.default_rng(0)
    before = rng.random((6, 4, 4, 4), np.float32)
    moved = rng.random((6, 4, 4, 4), np.float32)
    sparse = np.where(rng.random(before.shape) < 0.1, moved, before)
    for inputs in (moved, sparse):
        change = inputs - before
        gap = (judge.run(model, {"x": inputs})[0] - judge.run(model, {"x": before})[0]).reshape(6, -1)
        low, high = found.of({"x": (change, change)})
        assert low.shape == high.shape == gap.shape, "followed to the output"
        assert (low - 1e-4 <= gap).all()
        assert (gap <= high + 1e-4).all()
        assert not linear or np.allclose(low, high, atol=2e-3)
        half = found.of({"x": (np.minimum(change, 0), np.maximum(change, 0))})
        assert (half[0] - 1e-4 <= gap).all()
        assert (gap <= half[1] + 1e-4).all()
        assert not ((0.05 * half[0] <= gap) & (gap <= 0.05 * half[1])).all(), (
            "the control: a twentieth of that does not contain it"
        )


@pytest.mark.parametrize("step", graphs.STEPS)
def test_effects_on_random_graphs(step: str) -> None:
    model = graphs.build([step, "activation"], "pool", 2)
    found, rng = effects(model), np.random.default_rng(0)
    before, moved = (rng.random((3, 3, 8, 8), np.float32) for _ in range(2))
    gap = np.concatenate(
        [b - a for a, b in zip(judge.run(model, {"image": before}), judge.run(model, {"image": moved}), strict=True)], 1
    )
    low, high = found.of({"image": (moved - before, moved - before)})
    assert len(low) == len(high) == 3
    assert (low <= high).all()
    if low.shape == gap.shape:
        room = 1e-3 * np.abs(gap).max()
        assert (low - room <= gap).all()
        assert (gap <= high + room).all()


def test_most_random_graphs_are_followed_to_the_end() -> None:
    ends = {}
    for step in graphs.STEPS:
        nothing = np.zeros((2, 3, 8, 8), np.float32)
        ends[step] = effects(graphs.build([step, "activation"], "pool", 2)).of({"image": (nothing, nothing)})[0].shape[1]
    assert {step for step, count in ends.items() if count != 10} <= {"group_norm"}


def test_changes_that_nothing_reads() -> None:
    model = dense.network(dense.layers(4, 6, 3))
    low, high = effects(model).of({"elsewhere": (np.zeros((2, 5), np.float32),) * 2})
    assert low.shape == high.shape == (2, 0)


@pytest.mark.parametrize("size", [1, -1])
def test_a_written_down_batch_size_is_followed_one_by_one(size: int) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["h"], "Gemm_0"),
        helper.make_node("Reshape", ["h", "shape"], ["r"], "Reshape"),
        helper.make_node("Transpose", ["r"], ["t"], "Transpose", perm=[0, 2, 1]),
        helper.make_node("Reshape", ["t", "back"], ["f"], "Back"),
        helper.make_node("Gemm", ["f", "w1"], ["y"], "Gemm_1"),
    ]
    weights = {"w0": rng.standard_normal((5, 6)), "w1": rng.standard_normal((6, 3))}
    shapes = {"shape": np.array([size, 2, 3]), "back": np.array([size, 6])}
    found = effects(dense.model(nodes, weights | shapes, [1, 5], [1, 3]))
    change = rng.standard_normal((4, 6)).astype(np.float32)
    order = np.arange(6).reshape(2, 3).T.ravel()
    for side in found.of({"h": (change, change)}):
        assert np.allclose(side, change[:, order] @ weights["w1"], atol=1e-4)
