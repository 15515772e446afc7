"""Linear layers of every kind are rows times matrices; and what they read can leave without being missed where others tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from judge import run
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.channels import Coupling, analyse
from onnxprune.errors import PlanError
from onnxprune.flow import Site
from onnxprune.graph import load
from onnxprune.leastsquares import Linear, Refit, linear_layers, with_states
from onnxprune.leastsquares.recurrent import Gates
from onnxprune.lossless import edited
from onnxprune.plan import Plan, PlanEdit, make_plan
from onnxprune.runtime import Session, tapped
from onnxprune.surgery import apply
from onnxprune.weights import Array

STEPS, SAMPLES, WIDTH, UNITS = 6, 40, 5, 8


# models ---
def model(
    nodes: Sequence[onnx.NodeProto], inputs: dict[str, tuple[Any, ...]], outputs: Sequence[str], **stored: Array
) -> onnx.ModelProto:
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    made = [onnx.ValueInfoProto(name=name) for name in outputs]
    for value in made:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    weights = [numpy_helper.from_array(v.astype(np.float32) if v.dtype.kind == "f" else v, n) for n, v in stored.items()]
    graph = helper.make_graph(nodes, "net", given, made, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def recurrent(
    op: str, direction: str = "forward", *, biased: bool = True, named: bool = True, stored_state: bool = False, **options: Any
) -> onnx.ModelProto:
    """x (steps, samples, width) -> the layer -> a dense layer. Unit 5 does as unit 2 does, but is read otherwise."""
    rng = np.random.default_rng(3)
    gates, ways = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if direction == "bidirectional" else 1

    def blocks(width: int) -> Array:
        found = 0.6 * rng.standard_normal((ways, gates, UNITS, width))
        found[:, :, 5] = found[:, :, 2]
        return found.reshape(ways, gates * UNITS, width)

    bias = 0.5 * rng.standard_normal((ways, 2 * gates, UNITS))
    bias[:, :, 5] = bias[:, :, 2]
    stored = {"W": blocks(WIDTH), "R": blocks(UNITS), "D": rng.standard_normal((UNITS, 3)), "d": rng.standard_normal(3)}
    stored |= {"B": bias.reshape(ways, -1)} if biased else {}
    start = 0.5 * rng.standard_normal((ways, 1, UNITS))
    start[..., 5] = start[..., 2]
    stored |= (
        {"h0": np.repeat(start, SAMPLES, axis=1)} if stored_state else {"h": start, "sizes": np.array([ways, SAMPLES, UNITS])}
    )
    states = ["Y" if named else "", "Y_h"]
    inputs = ["x", "W", "R", "B" if biased else "", "", "h0"]
    nodes = [] if stored_state else [helper.make_node("Expand", ["h", "sizes"], ["h0"])]
    nodes += [
        helper.make_node(op, inputs, states, "layer", hidden_size=UNITS, direction=direction, **options),
        helper.make_node("MatMul", ["Y" if named else "Y_h", "D"], ["m"], "dense"),
        helper.make_node("Add", ["m", "d"], ["out"]),
    ]
    return model(nodes, {"x": (STEPS, SAMPLES, WIDTH)}, ["out"], **stored)


def steps(seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((STEPS, SAMPLES, WIDTH)).astype(np.float32)}


def start(proto: onnx.ModelProto) -> Array:
    """The state before the first step, (directions, samples, units)."""
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    return stored["h0"] if "h0" in stored else np.repeat(stored["h"], SAMPLES, axis=1)


KINDS = [
    pytest.param("LSTM", "forward", {}, id="lstm"),
    pytest.param("LSTM", "reverse", {"named": False}, id="lstm-reverse-unnamed"),
    pytest.param("LSTM", "bidirectional", {"stored_state": True}, id="bilstm-stored-state"),
    pytest.param("GRU", "forward", {"linear_before_reset": 0}, id="gru"),
    pytest.param("GRU", "bidirectional", {"linear_before_reset": 0}, id="bigru"),
    pytest.param("GRU", "reverse", {"linear_before_reset": 1}, id="gru-linear-reverse"),
    pytest.param("RNN", "forward", {"biased": False}, id="rnn-without-bias"),
    pytest.param("RNN", "bidirectional", {"activations": ["Relu", "Relu"]}, id="birnn-relu"),
]


def seen(proto: onnx.ModelProto, feeds: dict[str, Array]) -> tuple[Coupling, list[Linear], dict[str, Array]]:
    """The model's linear layers, and all that they look at."""
    coupling = analyse(load(proto))
    layers = linear_layers(coupling)
    ends = [getattr(layer, "target", "") for layer in layers]
    pairs = zip(layers, ends, strict=True)
    names = list(dict.fromkeys(name for layer, end in pairs for name in (*layer.operands, *layer.witnesses(end))))
    tap = tapped(coupling.graph.assemble(), names, only=True)
    with_states(tap.proto, layers)
    return coupling, layers, dict(zip(names, Session(tap.ready()).run(feeds, names), strict=True))


def weights(coupling: Coupling, layer: Linear) -> list[Array]:
    return [one.seen(coupling.graph.weights.read(one.tensor)) for one, _ in layer.stored]


def product(coupling: Coupling, layer: Linear, tensors: dict[str, Array]) -> tuple[Array, Array]:
    """All rows times the matrix, and the layer's sums, (rows, groups times outputs)."""
    end = getattr(layer, "target", "")
    operands, witnesses = ([tensors[name] for name in names] for names in (layer.operands, layer.witnesses(end)))
    grid = layer.grid(witnesses, 1e9, 0)
    z = np.concatenate([layer.matrix(weights(coupling, layer)), layer.bias(coupling.graph)[:, None]], axis=1)
    rows = list(layer.rows(operands, witnesses, grid))
    return np.concatenate([x @ m for x, m in zip(rows, z, strict=True)], axis=1), layer.sums(witnesses, grid)


# recurrent layers ---
def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def replayed(op: str, layers: Sequence[Gates], sums: list[Array], h0: Array, relu: bool) -> Array:
    """The states of one direction, from the sums of its gates: the operator's definition."""
    first, made = sums[0].reshape(STEPS, SAMPLES, -1), []
    before, cell = h0, np.zeros_like(h0)
    for step in range(STEPS - 1, -1, -1) if layers[0].backwards else range(STEPS):
        s = first[step]
        if op == "RNN":
            before = np.maximum(s, 0) if relu else np.tanh(s)
        elif op == "LSTM":
            i, o, f, c = np.split(s, 4, axis=1)
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(c)
            before = sigmoid(o) * np.tanh(cell)
        else:
            z, r = np.split(sigmoid(s), 2, axis=1)
            new = [part.reshape(STEPS, SAMPLES, -1)[step] for part in sums[1:]]
            candidate = np.tanh(new[0] if len(new) == 1 else new[0] + r * new[1])
            before = (1 - z) * candidate + z * before
        made.append(before)
    return np.stack(made[::-1] if layers[0].backwards else made)


@pytest.mark.parametrize(("op", "direction", "options"), KINDS)
def test_gates_are_linear(op: str, direction: str, options: dict[str, Any]) -> None:
    """What the operator makes of the sums are its states."""
    ways = 2 if direction == "bidirectional" else 1
    proto = recurrent(op, direction, **options)
    coupling, layers, tensors = seen(proto, steps())
    gates = [layer for layer in layers if isinstance(layer, Gates)]
    states = tensors[gates[0].witnesses("")[1]]
    for way in range(ways):
        mine = [layer for layer in gates if layer.direction == way]
        pairs = [product(coupling, layer, tensors) for layer in mine]
        for got, wanted in pairs:
            np.testing.assert_allclose(got, wanted, atol=1e-4)
        got = replayed(op, mine, [one for one, _ in pairs], start(proto)[way], "activations" in options)
        np.testing.assert_allclose(got, states[:, way], atol=1e-4)
        wrong = [product(coupling, replace(layer, backwards=not layer.backwards), tensors)[0] for layer in mine]
        got = replayed(op, mine, wrong, start(proto)[way], "activations" in options)
        assert np.abs(got - states[:, way]).max() > 0.01, "with the states of other steps they are others"


def refitted(proto: onnx.ModelProto, chunks: list[dict[str, Array]], sites: dict[Site, list[int]]) -> list[onnx.ModelProto]:
    """The model after a cut of some indices of weight axes: plain, and with all layers fitted again."""
    coupling = analyse(load(proto))
    removed = np.zeros(len(coupling.components.root), np.bool_)
    for site, gone in sites.items():
        removed[coupling.components.root[coupling.labels(site)[gone]]] = True
    edits = Refit(coupling, removed).edits(chunks)
    plan = replace(make_plan(coupling, removed), edits=tuple(edits))
    fitted = onnxprune.prune(proto, plan=plan)
    return [apply(coupling, removed).complete(), fitted.model]


def distances(proto: onnx.ModelProto, others: Sequence[onnx.ModelProto], feeds: dict[str, Array]) -> list[float]:
    (wanted,) = run(proto, feeds)
    found = [run(other, feeds)[0] for other in others]
    return [float(np.square(got - wanted).sum() / np.square(wanted - wanted.mean()).sum()) for got in found]


@pytest.mark.parametrize(("op", "direction", "options"), KINDS)
def test_a_unit_that_others_tell_is_not_missed(op: str, direction: str, options: dict[str, Any]) -> None:
    proto = recurrent(op, direction, **options)
    models = refitted(proto, [steps(seed) for seed in range(8)], {Site("R", 2): [5]})
    plain, fitted = distances(proto, models, steps(99))
    assert fitted < 1e-5, "what is left takes over"
    assert plain > 1e-2, "the cut alone is seen"


def test_obs_takes_a_unit_that_others_tell() -> None:
    data = {"x": np.concatenate([steps(seed)["x"] for seed in range(4)])}
    gone: dict[str, list[set[int]]] = {"obs": [], "l1": []}
    for op in ("LSTM", "GRU", "RNN"):
        for name, found in gone.items():
            plan = onnxprune.prune(recurrent(op), criterion=name, ratio=1 / UNITS, data=data, compensate="none").plan
            found.append({*range(UNITS)} - {*next(s.keep for s in plan.sites if (s.tensor, s.axis) == ("R", 2))})
    assert all(one <= {2, 5} for one in gone["obs"])
    assert not all(one <= {2, 5} for one in gone["l1"]), "their weights alone do not tell"


# transposed convolutions ---
TRANSPOSED = [
    {"strides": [2, 2]},
    {"strides": [2, 3], "pads": [1, 0, 2, 1], "output_padding": [1, 2]},
    {"strides": [3, 1], "dilations": [2, 2], "group": 2},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"strides": [2, 2], "output_shape": [9, 10]},
    {"strides": [1, 1], "pads": [3, 3, 3, 3]},
]


def transposed(**options: Any) -> onnx.ModelProto:
    """x -> Conv -> ConvTranspose; channel 5 of the first is twice channel 2."""
    rng = np.random.default_rng(1)
    groups = options.get("group", 1)
    first = rng.standard_normal((8, 3, 1, 1))
    first[5] = 2 * first[2]
    stored = {"A": first, "T": rng.standard_normal((8, 4 // groups, 3, 3)), "b": rng.standard_normal(4)}
    nodes = [
        helper.make_node("Conv", ["x", "A"], ["a"], "first"),
        helper.make_node("ConvTranspose", ["a", "T", "b"], ["out"], "second", **options),
    ]
    return model(nodes, {"x": ("n", 3, 5, 5)}, ["out"], **stored)


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_transposed_convolutions_are_linear(options: dict[str, Any]) -> None:
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 5, 5)).astype(np.float32)}
    coupling, layers, tensors = seen(transposed(**options), feeds)
    layer = layers[1]
    got, wanted = product(coupling, layer, tensors)
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    (values,) = weights(coupling, layer)
    np.testing.assert_array_equal(layer.tensors(layer.matrix([values]), [values])[0], values)
    flipped = coupling.graph.weights.updated({"T": numpy_helper.from_array(np.ascontiguousarray(values[:, :, ::-1]), "T")})
    got, _ = product(replace(coupling, graph=replace(coupling.graph, weights=flipped)), layer, tensors)
    assert np.abs(got - wanted).max() > 0.1, "the other way round it is another layer"


def pictures(seed: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((8, 3, 5, 5)).astype(np.float32)}


@pytest.mark.parametrize("options", [TRANSPOSED[0], TRANSPOSED[1], TRANSPOSED[3]], ids=str)
def test_a_transposed_convolution_takes_over(options: dict[str, Any]) -> None:
    proto = transposed(**options)
    plain, fitted = distances(proto, refitted(proto, [pictures(k) for k in range(8)], {Site("A", 0): [5]}), pictures(99))
    assert fitted < 1e-5
    assert plain > 1e-2


# weights that are moved, or shared ---
def moved(kind: str) -> onnx.ModelProto:
    """x -> a dense layer -> another, whose weight is stored otherwise than it is read. Unit 5 of the first is unit 2."""
    rng = np.random.default_rng(2)
    first, second = rng.standard_normal((4, 8)), rng.standard_normal((8, 6))
    first[:, 5] = first[:, 2]
    stored: dict[str, Array] = {"A": first}
    nodes = [helper.make_node("MatMul", ["x", "A"], ["h"], "first"), helper.make_node("Relu", ["h"], ["a"])]
    if kind == "transposed":
        stored["B"] = second.T
        nodes.append(helper.make_node("Transpose", ["B"], ["b"], perm=[1, 0]))
    elif kind == "reshaped":
        stored |= {"B": second.reshape(8, 2, 3), "shape": np.array([8, 6])}
        nodes.append(helper.make_node("Reshape", ["B", "shape"], ["b"]))
    elif kind == "cast":
        stored |= {"B": second.T.reshape(1, 6, 8), "axes": np.array([0])}
        nodes += [
            helper.make_node("Squeeze", ["B", "axes"], ["s"]),
            helper.make_node("Transpose", ["s"], ["t"], perm=[1, 0]),
            helper.make_node("Cast", ["t"], ["b"], to=TensorProto.FLOAT),
        ]
    else:
        value = numpy_helper.from_array(second.astype(np.float32), "b")
        nodes.append(helper.make_node("Constant", [], ["b"], value=value))
    nodes.append(helper.make_node("MatMul", ["a", "b"], ["out"], "second"))
    proto = model(nodes, {"x": ("n", 4)}, ["out"], **stored)
    if kind == "cast":
        proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(second.T.reshape(1, 6, 8).astype(np.float64), "B"))
    return proto


def vectors(seed: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((32, 4)).astype(np.float32)}


@pytest.mark.parametrize("kind", ["transposed", "reshaped", "cast", "constant"])
def test_weights_are_fitted_where_they_are_stored(kind: str) -> None:
    proto = moved(kind)
    models = refitted(proto, [vectors(k) for k in range(8)], {Site("A", 1): [5]})
    plain, fitted = distances(proto, models, vectors(99))
    assert fitted < 1e-5
    assert plain > 1e-2
    assert [n.op_type for n in models[1].graph.node] == [n.op_type for n in proto.graph.node]
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    assert all(kinds[t.name] == t.data_type for t in models[1].graph.initializer), "and in what they are stored"


def shared() -> onnx.ModelProto:
    """Two dense layers read other channels of the first with the same weight; unit 5 is unit 2 for one of them alone."""
    rng = np.random.default_rng(4)
    first, other = rng.standard_normal((4, 8)), rng.standard_normal((4, 8))
    first[:, 5] = first[:, 2]
    other[:, 5] = -other[:, 2]
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["h"], "first"),
        helper.make_node("MatMul", ["x", "C"], ["g"], "other"),
        helper.make_node("MatMul", ["h", "B"], ["one"], "one"),
        helper.make_node("MatMul", ["g", "B"], ["two"], "two"),
        helper.make_node("Sub", ["one", "two"], ["out"]),
    ]
    return model(nodes, {"x": ("n", 4)}, ["out"], A=first, C=other, B=rng.standard_normal((8, 6)))


def test_readers_of_a_shared_weight_get_one_each(tmp_path: Path) -> None:
    proto = shared()
    models = refitted(proto, [vectors(k) for k in range(8)], {Site("A", 1): [5]})
    plain, fitted = distances(proto, models, vectors(99))
    assert fitted < 1e-5
    assert plain > 1e-2
    stored = {t.name: tuple(t.dims) for t in models[1].graph.initializer}
    assert stored == {"A": (4, 7), "C": (4, 7), "B": (7, 6), "one_weight": (7, 6)}, "the last of them keeps the first one's"


def test_an_edit_that_does_not_fit_is_refused() -> None:
    graph = load(shared())
    numbers = np.zeros(48, "<f4").tobytes()
    assert "B_weight" not in edited(graph, [PlanEdit("B", 0, (), weights=numbers)]).weights
    with pytest.raises(PlanError) as caught:
        edited(graph, [PlanEdit("B", 0, (), weights=numbers, reader="h", place=1)])
    assert str(caught.value) == (
        "plan: edit of input 1 of the node that writes 'h': it does not read 'B' in this model; the plan was made for another one"
    )


def test_a_plan_says_who_reads_what(tmp_path: Path) -> None:
    found = onnxprune.prune(shared(), criterion="obs", data=vectors(0), ratio=0.25)
    readers = {(e.reader, e.place) for e in found.plan.edits if e.tensor == "B"}
    assert readers == {("one", 1), ("", 0)}
    found.plan.save(tmp_path / "plan.json")
    again = onnxprune.prune(shared(), plan=Plan.load(tmp_path / "plan.json"))
    assert again.model == found.model


# subgraphs ---
def branches() -> onnx.ModelProto:
    """Two dense layers inside an If, where nothing can be seen from outside."""
    rng = np.random.default_rng(5)
    inner = []
    for name in ("yes", "no"):
        stored = {f"{name}_A": rng.standard_normal((4, 8)), f"{name}_B": rng.standard_normal((8, 3))}
        nodes = [
            helper.make_node("MatMul", ["x", f"{name}_A"], [f"{name}_h"], f"{name}_first"),
            helper.make_node("Relu", [f"{name}_h"], [f"{name}_a"]),
            helper.make_node("MatMul", [f"{name}_a", f"{name}_B"], [f"{name}_out"], f"{name}_second"),
        ]
        inner.append(model(nodes, {}, [f"{name}_out"], **stored).graph)
    node = helper.make_node("If", ["c"], ["out"], "if", then_branch=inner[0], else_branch=inner[1])
    proto = model([node], {"x": ("n", 4), "c": ()}, ["out"])
    proto.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    return proto


def test_what_nobody_can_see_is_ranked_by_magnitude() -> None:
    proto = branches()
    found, plain = (onnxprune.prune(proto, criterion=name, ratio=0.25) for name in ("obs", "l1"))
    assert found.plan.sites == plain.plan.sites
    assert found.plan.sites
