"""Least squares after a cut: what is redundant is not missed, it never does worse than the cut alone, and plans replay it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import dense
import graphs
import judge
import numpy as np
import onnx
import pytest
from cases_net import Net
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import onnxprune
from onnxprune import ModelError, PlanError
from onnxprune.channels import analyse
from onnxprune.cli import app
from onnxprune.graph import load
from onnxprune.leastsquares import Refit
from onnxprune.plan import Plan

FIXED = {"criterion": "obs", "ratio": 0.5, "rotate": False}


def inputs(model: onnx.ModelProto, samples: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = judge.feeds(model, 0, 1)
    return {name: rng.standard_normal((samples, *v.shape[1:])).astype(v.dtype) for name, v in found.items()}


def outputs(model: onnx.ModelProto, data: dict[str, np.ndarray]) -> np.ndarray:
    """The first output for all samples, one at a time where the batch is fixed."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    size = dims[0].dim_value or len(next(iter(data.values())))
    count = len(next(iter(data.values())))
    parts = [judge.run(model, {n: v[k : k + size] for n, v in data.items()})[0] for k in range(0, count, size)]
    return np.concatenate(parts).astype(np.float64)


def moved(model: onnx.ModelProto, pruned: onnx.ModelProto) -> float:
    """The squared error on inputs that nothing was fitted on, in units of the output's variance."""
    data = inputs(model, 64, seed=99)
    one, other = outputs(model, data), outputs(pruned, data)
    return float(np.square(one - other).sum() / np.square(one - one.mean(axis=0)).sum())


# what is redundant --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Redundant:
    """A net; in the layers ``makers`` (by their number) the second half of each of ``blocks`` is made of the first: linear
    mixtures, or the same again where ``alike``. ``dynamic``: any batch.
    """

    build: Callable[[Net], str]
    makers: tuple[int, ...] = (0,)
    alike: bool = False
    blocks: int = 1
    dynamic: bool = True
    half: bool = False

    def model(self) -> onnx.ModelProto:
        net = Net(17, dynamic=self.dynamic)
        net.outputs.append(self.build(net))
        model = net.model()
        stored = {t.name: t for t in model.graph.initializer}
        layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in stored]
        rng, mixtures = np.random.default_rng(3), {}
        for number in self.makers:
            for name in layers[number].input[1:]:
                values = numpy_helper.to_array(stored[name])
                axis = 0 if values.ndim != 2 or any(a.name == "transB" for a in layers[number].attribute) else 1
                rows = np.moveaxis(values.copy(), axis, 0)
                for block in np.split(rows, self.blocks):
                    n = len(block) // 2
                    mix = np.eye(n) if self.alike else mixtures.setdefault(n, rng.standard_normal((n, n)) / n**0.5)
                    block[n:] = np.tensordot(mix, block[:n], 1)
                stored[name].CopyFrom(numpy_helper.from_array(np.moveaxis(rows, 0, axis).copy(), name))
        return halved(model) if self.half else model


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def image(g: Net) -> str:
    return g.input(g.randn(2, 3, 6, 6))


def conv(g: Net, x: str, i: int, o: int, kernel: int = 3, **attributes: object) -> str:
    return g.Conv(x, g.w(o, i // int(attributes.get("group", 1)), kernel, kernel), g.w(o), pads=[kernel // 2] * 4, **attributes)


def residual(g: Net) -> str:
    a = conv(g, image(g), 3, 8)
    b = conv(g, g.Relu(conv(g, a, 8, 6)), 6, 8)
    return conv(g, g.Add(a, b), 8, 4)


def concat(g: Net) -> str:
    x = image(g)
    return conv(g, g.Concat(conv(g, x, 3, 8), conv(g, x, 3, 6, 1), axis=1), 14, 4)


def depthwise(g: Net) -> str:
    """The same filter for all channels, so that what is a mixture stays one."""
    x = conv(g, image(g), 3, 8)
    kernel = g.store(np.repeat(g.randn(1, 1, 3, 3), 8, axis=0))
    return conv(g, g.Conv(x, kernel, group=8, pads=[1] * 4), 8, 4, 1)


def attention(g: Net) -> str:
    """Four heads of two, of which two are the same as the others."""
    x = g.input(g.randn(2, 5, 8))
    q, k, v = (g.Reshape(g.MatMul(x, g.w(8, 8)), [0, 0, 4, 2]) for _ in range(3))
    q, v = (g.Transpose(t, perm=[0, 2, 1, 3]) for t in (q, v))
    weights = g.Softmax(g.MatMul(q, g.Transpose(k, perm=[0, 2, 3, 1])), axis=-1)
    y = g.Reshape(g.Transpose(g.MatMul(weights, v), perm=[0, 2, 1, 3]), [0, 0, 8])
    return g.Add(g.MatMul(y, g.w(8, 8)), g.w(8))


def rows(g: Net, bias: bool = True) -> str:
    x = g.input(g.randn(4, 6))
    y = g.MatMul(x, g.w(6, 8))
    return g.Add(g.MatMul(y, g.w(8, 3)), g.w(3)) if bias else g.MatMul(y, g.w(8, 3))


def norm(g: Net) -> str:
    x = g.Conv(image(g), g.w(8, 3, 3, 3))
    parts = [g.store(np.full(8, 0.7, np.float32)), g.w(8), g.w(8), g.store(np.full(8, 2.0, np.float32))]
    return g.Conv(g.BatchNormalization(x, *parts), g.w(4, 8, 3, 3), g.w(4))


def shared(g: Net) -> str:
    """One weight reads two tensors, each of which has twins of its own."""
    x, weight = image(g), g.w(4, 8, 3, 3)
    a, b = (g.Relu(conv(g, x, 3, 8)) for _ in range(2))
    return g.Sub(g.Conv(a, weight, g.w(4)), g.Sigmoid(g.Conv(b, weight, g.w(4))))


def moved_weight(g: Net) -> str:
    y = g.Gemm(g.input(g.randn(4, 6)), g.w(6, 8), g.w(8))
    return g.Gemm(y, g.Transpose(g.w(3, 8), perm=[1, 0]), g.w(3))


REDUNDANT = {
    "conv": Redundant(lambda g: conv(g, conv(g, image(g), 3, 8), 8, 4)),
    "strides and dilations": Redundant(lambda g: conv(g, conv(g, image(g), 3, 8), 8, 4, strides=[2, 1], dilations=[1, 2])),
    "twins behind an activation": Redundant(lambda g: conv(g, g.Relu(conv(g, image(g), 3, 8)), 8, 4), alike=True),
    "twins, pooled": Redundant(
        lambda g: g.Gemm(g.Flatten(g.MaxPool(g.Relu(conv(g, image(g), 3, 8)), kernel_shape=[2, 2], strides=[2, 2])), g.w(72, 5)),
        alike=True,
    ),
    "norm": Redundant(norm),
    "residual": Redundant(residual, (0, 1, 2), alike=True),
    "concat": Redundant(concat, (0, 1)),
    "depthwise": Redundant(depthwise),
    "grouped reader": Redundant(lambda g: conv(g, conv(g, image(g), 3, 8), 8, 4, group=2), blocks=2),
    "heads": Redundant(attention, (0, 1, 2), alike=True),
    "matmul and add": Redundant(rows),
    "matmul alone": Redundant(lambda g: rows(g, bias=False)),
    "shared weight": Redundant(shared, (0, 1), alike=True),
    "moved weight": Redundant(moved_weight),
    "transposed": Redundant(lambda g: g.ConvTranspose(conv(g, image(g), 3, 8), g.w(8, 4, 3, 3), g.w(4), strides=[2, 2])),
    "one at a time": Redundant(lambda g: conv(g, conv(g, g.input(g.randn(1, 3, 6, 6)), 3, 8), 8, 4), dynamic=False),
    "fp16": Redundant(lambda g: conv(g, conv(g, image(g), 3, 8), 8, 4), half=True),
}


@pytest.mark.parametrize("name", REDUNDANT)
def test_what_is_redundant_is_not_missed(name: str) -> None:
    """Half of the channels leave without any error to speak of; the cut alone does harm."""
    case = REDUNDANT[name]
    model = case.model()
    data = inputs(model, 160)
    plain = onnxprune.prune(model, **FIXED, compensate="none", data=data)
    fitted = onnxprune.prune(model, **FIXED, data=data)
    groups = plain.report.to_dict()["groups"]
    assert groups
    assert all(2 * group["kept"] == group["channels"] for group in groups)
    assert fitted.report.to_dict()["verification"]["passed"]
    assert fitted.plan.sites == plain.plan.sites
    assert judge.parameters(fitted.model) < judge.parameters(model)
    assert moved(model, fitted.model) < (2e-4 if case.half else 2e-5)
    assert moved(model, plain.model) > 0.05


# never worse --------------------------------------------------------------------------------------------------------------
STEPS = ["plain", "activation", "residual", "concat", "depthwise", "grouped", "shared", "split", "batch_norm", "gate"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("criterion", ["l1", "obs"])
def test_least_squares_does_no_worse_than_the_cut(criterion: str, seed: int) -> None:
    """On random nets, and on inputs that were not fitted on."""
    steps = np.random.default_rng(seed).choice(STEPS, 4).tolist()
    model = graphs.build(steps, "pool", seed)
    options = {"criterion": criterion, "ratio": 0.4, "data": inputs(model, 96, seed=1)}
    plain, fitted = (onnxprune.prune(model, **options, compensate=mode) for mode in ("none", "least-squares"))
    assert plain.plan.sites == fitted.plan.sites
    assert fitted.report.to_dict()["verification"]["passed"]
    one, other = moved(model, plain.model), moved(model, fitted.model)
    assert other < 0.95 * one


def trained(seed: int, form: str = "gemm") -> onnx.ModelProto:
    """As of trained nets, few directions carry most of what a layer makes."""
    stack = dense.layers(20, 32, 32, 5, seed=seed)
    for layer in stack:
        u, s, v = np.linalg.svd(layer.weight, full_matrices=False)
        layer.weight = ((u * s * 0.75 ** np.arange(len(s))) @ v * 2).astype(np.float32)
    return dense.network(stack, form=form)


@pytest.mark.parametrize("seed", range(3))
def test_of_nets_like_trained_ones_most_of_the_error_goes(seed: int) -> None:
    model = trained(seed)
    options = {"ratio": 0.5, "data": inputs(model, 512, seed=1)}
    plain = moved(model, onnxprune.prune(model, criterion="l1", **options).model)
    fitted = moved(model, onnxprune.prune(model, criterion="l1", compensate="least-squares", **options).model)
    chosen = moved(model, onnxprune.prune(model, criterion="obs", **options).model)
    assert fitted < plain / 3
    assert chosen < fitted


def test_what_does_not_help_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits that make the outputs worse (here by mischief) are not taken, and the report says so."""
    model = trained(0)
    options = {"criterion": "l1", "ratio": 0.5, "data": inputs(model, 128)}
    honest = Refit.edits

    def spoilt(self: Refit, feeds: list[dict[str, np.ndarray]]) -> list[onnxprune.plan.PlanEdit]:
        return [replace(e, weights=(9 * np.frombuffer(e.weights, "<f4")).tobytes()) for e in honest(self, feeds)]

    assert onnxprune.prune(model, **options, compensate="least-squares").plan.edits
    monkeypatch.setattr(Refit, "edits", spoilt)
    result = onnxprune.prune(model, **options, compensate="least-squares")
    assert result.plan == onnxprune.prune(model, **options).plan
    (note,) = result.report.to_dict()["notes"]
    assert note.startswith("least squares is left out: with it the outputs are ")
    assert note.count(" of their variance away from the original's, without it 0.") == 1


# plans --------------------------------------------------------------------------------------------------------------------
def cli(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("name", ["residual", "matmul alone", "fp16"])
def test_plans_replay_byte_for_byte(name: str, tmp_path: Path) -> None:
    model = REDUNDANT[name].model()
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", **inputs(model, 64))
    options = ["--criterion", "obs", "--data", tmp_path / "data.npz", "--save-plan", tmp_path / "plan.json"]
    cli("prune", tmp_path / "net.onnx", "-o", tmp_path / "one.onnx", *options)
    cli("prune", tmp_path / "net.onnx", "-o", tmp_path / "two.onnx", "--plan", tmp_path / "plan.json")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert {edit["tensor"] for edit in plan["edits"]} <= {t.name for t in model.graph.initializer}
    del plan["edits"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))  # a control: the edits are what makes the difference
    cli("prune", tmp_path / "net.onnx", "-o", tmp_path / "three.onnx", "--plan", tmp_path / "plan.json")
    assert (tmp_path / "one.onnx").read_bytes() != (tmp_path / "three.onnx").read_bytes()


def test_what_stays_is_cut_out_of_the_edits_weights() -> None:
    """The numbers in the plan are those in the file, and a bias is what the plan adds to it."""
    model = REDUNDANT["conv"].model()
    result = onnxprune.prune(model, **FIXED, data=inputs(model, 64))
    (edit,) = result.plan.edits
    (keep,) = {site.keep for site in result.plan.sites}
    given = np.frombuffer(edit.weights, "<f4").reshape(4, 8, 3, 3)
    before, after = (judge.stored(m) for m in (model, result.model))
    assert np.array_equal(numpy_helper.to_array(after["w2"]), given[:, list(keep)])
    assert not np.array_equal(numpy_helper.to_array(before["w2"])[:, list(keep)], given[:, list(keep)])
    bias = numpy_helper.to_array(before["w3"]) + np.array(edit.add)
    assert np.allclose(numpy_helper.to_array(after["w3"]), bias, atol=1e-6)


SPOILT: dict[str, tuple[Callable[[str], object], str]] = {
    "too few": (lambda w: base64.b64encode(base64.b64decode(w)[:-4]).decode(), "edit of 'w2': its weights must be 288 finite"),
    "odd": (lambda w: base64.b64encode(base64.b64decode(w)[:-1]).decode(), "edit of 'w2': its weights must be 288 finite"),
    "infinite": (
        lambda w: base64.b64encode(base64.b64decode(w)[:-4] + np.float32(np.inf).tobytes()).decode(),
        "plan: edit of 'w2': its weights must be 288 finite numbers of 4 bytes; the plan was made for another model",
    ),
    "no base64": (lambda w: "%" + w[1:], "lacks or misspells Only base64 data is allowed; save it again with --save-plan"),
    "cut off": (lambda w: w[:-1], "lacks or misspells Incorrect padding; save it again with --save-plan"),
    "no text": (lambda w: [1, 2], "; save it again with --save-plan"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_plans_are_refused(name: str, tmp_path: Path) -> None:
    model = REDUNDANT["conv"].model()
    plan = onnxprune.prune(model, **FIXED, data=inputs(model, 64)).plan.to_dict()
    spoil, text = SPOILT[name]
    plan["edits"][0]["weights"] = spoil(plan["edits"][0]["weights"])
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    onnx.save(model, tmp_path / "net.onnx")
    out = cli("prune", tmp_path / "net.onnx", "-o", tmp_path / "out.onnx", "--plan", tmp_path / "plan.json", code=1)
    assert text in out
    assert not (tmp_path / "out.onnx").exists()
    with pytest.raises(PlanError):
        onnxprune.prune(model, plan=Plan.load(tmp_path / "plan.json"))


def test_plans_that_name_another_reader_are_refused() -> None:
    """Of a weight that several layers share, each has numbers of its own in the plan."""
    model = REDUNDANT["shared weight"].model()
    plan = onnxprune.prune(model, **FIXED, data=inputs(model, 64)).plan
    assert [(edit.tensor, edit.reader, edit.place) for edit in plan.edits] == [("w0", "conv4", 1), ("w0", "", 0)]
    assert onnxprune.prune(model, plan=plan).plan == plan
    for change in ({"reader": "conv0"}, {"reader": "nobody"}, {"place": 2}):
        edits = (replace(plan.edits[0], **change), plan.edits[1])
        place, reader = (change.get(name, getattr(plan.edits[0], name)) for name in ("place", "reader"))
        with pytest.raises(PlanError) as caught:
            onnxprune.prune(model, plan=replace(plan, edits=edits))
        assert str(caught.value) == (
            f"plan: edit of input {place} of the node that writes {reader!r}: it does not read 'w0' in this model; the plan was "
            "made for another one"
        )


# bad input ----------------------------------------------------------------------------------------------------------------
def test_activations_that_are_no_numbers() -> None:
    model = REDUNDANT["matmul and add"].model()
    rooted = onnx.ModelProto()
    rooted.CopyFrom(model)
    rooted.graph.node[1].input[0] = "root"
    rooted.graph.node.insert(1, helper.make_node("Sqrt", [rooted.graph.node[0].output[0]], ["root"]))
    data = inputs(rooted, 64)
    with pytest.raises(
        ModelError, match=r"^layer 'MatMul_1' gives NaN or infinity on the inputs; clean the data, or --freeze it$"
    ):
        onnxprune.prune(rooted, criterion="l1", compensate="least-squares", data=data)
    with pytest.raises(
        ModelError,
        match=r"^criterion 'obs': there is NaN or infinity in or behind group 'MatMul_0' on the inputs; clean the data, or",
    ):
        onnxprune.prune(rooted, criterion="obs", data=data)
    assert onnxprune.prune(model, **FIXED, data=data).plan.edits


@pytest.mark.parametrize("samples", [1, 2, 3, 10])
def test_few_samples_are_said_and_still_do_no_harm(samples: int) -> None:
    model = trained(1)
    data = {"x": np.random.default_rng(5).standard_normal((samples, 20)).astype(np.float32)}
    result = onnxprune.prune(model, criterion="l1", ratio=0.5, compensate="least-squares", data=data)
    plain = onnxprune.prune(model, criterion="l1", ratio=0.5, data=data)
    notes = result.report.to_dict().get("notes", [])
    assert (
        f"{samples} samples are few for 2 of 2 layers ('Gemm_1' first): these stay closer to their own weights; "
        "give more with --data" in notes
    )
    assert moved(model, result.model) < 1.1 * moved(model, plain.model)
    many = onnxprune.prune(model, criterion="l1", ratio=0.5, compensate="least-squares", data=inputs(model, 512))
    assert "notes" not in many.report.to_dict() or not many.report.to_dict()["notes"]


def test_nothing_is_fitted_where_nothing_has_left() -> None:
    graph = load(REDUNDANT["conv"].model())
    coupling = analyse(graph)
    nothing = np.zeros(len(coupling.components.root), np.bool_)
    chunks = [inputs(graph.assemble().complete(), 8, seed=k) for k in range(4)]
    assert Refit(coupling, nothing).edits(chunks) == []
    some = nothing.copy()
    some[coupling.groups[0].roots[:4]] = True
    assert len(Refit(coupling, some).edits(chunks)) == 1


@pytest.mark.parametrize("name", ["conv", "twins, pooled"])
def test_wide_layers_are_fitted_by_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows than columns do for what is redundant, too."""
    monkeypatch.setattr("onnxprune.leastsquares.refit.WIDEST", 10)
    monkeypatch.setattr("onnxprune.leastsquares.refit.FEWEST", 160)
    monkeypatch.setattr("onnxprune.leastsquares.refit.Solver", None)  # the one for columns is not asked
    model = REDUNDANT[name].model()
    data = inputs(model, 160)
    fitted = onnxprune.prune(model, **FIXED, data=data)
    assert moved(model, fitted.model) < 0.1 * moved(model, onnxprune.prune(model, **FIXED, compensate="none", data=data).model)
