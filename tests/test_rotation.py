"""Rotation: what linear layers alone make and read is turned and stays what it was; everything else is left alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import judge
import numpy as np
import onnx
import pytest
from cases_net import Net
from onnx import TensorProto, numpy_helper
from test_refit import cli, inputs, moved, outputs

import onnxprune
from onnxprune.channels import analyse
from onnxprune.data import read
from onnxprune.graph import load
from onnxprune.importance import Scene
from onnxprune.importance.obs import read as seen
from onnxprune.rotation import rotated
from onnxprune.rotation.region import Region, Regions
from onnxprune.rotation.turning import principal_axes
from onnxprune.standing import Standing

WIDE = 12
Build = Callable[[Net], str]


def norm(g: Net, x: str, size: int = WIDE) -> str:
    """A normalisation whose statistics are stored."""
    shift = g.store(g.rng.standard_normal(size).astype(np.float32))
    mean = g.store(g.rng.standard_normal(size).astype(np.float32))
    return str(g.BatchNormalization(x, g.positive(size), shift, mean, g.positive(size)))


def stream(g: Net) -> str:
    """Blocks that add to what they all read, each behind a normalisation, as transformers with BatchNorm are made."""
    x = g.Add(g.MatMul(g.input(g.randn(4, 5, 6)), g.w(6, WIDE)), g.w(WIDE))
    x = g.Add(x, g.w(5, WIDE))
    for _ in range(2):
        normed = g.Transpose(norm(g, g.Transpose(x, perm=[0, 2, 1])), perm=[0, 2, 1])
        hidden = g.Relu(g.Add(g.MatMul(normed, g.w(WIDE, 16)), g.w(16)))
        x = g.Add(g.Add(g.MatMul(hidden, g.w(16, WIDE)), g.w(WIDE)), x)
    return str(g.Gemm(norm(g, g.ReduceMean(x, axes=[1], keepdims=0)), g.w(WIDE, 3), g.w(3)))


def embedding(g: Net) -> str:
    """A table read by a recurrent layer and, next to what that makes of it, by a dense one through an average by weights."""
    x = g.Gather(g.w(20, WIDE), g.input(g.rng.integers(0, 20, (3, 7))))
    made = g.LSTM(g.Transpose(x, perm=[1, 0, 2]), g.w(1, 20, WIDE), g.w(1, 20, 5), hidden_size=5, outputs=3)[0]
    both = g.Concat(x, g.Transpose(g.Squeeze(made, [1]), perm=[1, 0, 2]), axis=-1)
    weighed = g.Mul(both, g.Softmax(g.MatMul(both, g.w(WIDE + 5, 1)), axis=1))
    return str(g.Gemm(g.ReduceSum(weighed, [1], keepdims=0), g.w(WIDE + 5, 3), g.w(3)))


def bottleneck(g: Net) -> str:
    """A residual stream of convolutions without activations (MobileNetV2), read with a border of zeros."""
    x = g.Conv(g.input(g.randn(2, 3, 6, 6)), g.w(WIDE, 3, 3, 3), g.w(WIDE), pads=[1, 1, 1, 1])
    inner = g.Relu(g.Conv(x, g.w(16, WIDE, 1, 1), g.w(16)))
    inner = g.Relu(g.Conv(inner, g.w(16, 1, 3, 3), g.w(16), pads=[1, 1, 1, 1], group=16))
    x = g.Add(x, g.Conv(inner, g.w(WIDE, 16, 1, 1), g.w(WIDE)))
    return str(g.Flatten(g.Relu(g.Conv(x, g.w(2, WIDE, 3, 3), pads=[1, 1, 1, 1]))))


def flattened(g: Net) -> str:
    """Read by a dense layer, several places of each channel."""
    x = g.AveragePool(g.Conv(g.input(g.randn(2, 3, 6, 6)), g.w(WIDE, 3, 3, 3)), kernel_shape=[2, 2], strides=[2, 2])
    return str(g.Gemm(g.Flatten(x), g.w(WIDE * 4, 3), g.w(3)))


def upwards(g: Net) -> str:
    """Made by a transposed convolution, joined with what is not turned."""
    skip = g.Relu(g.Conv(g.input(g.randn(2, 3, 6, 6)), g.w(5, 3, 3, 3), pads=[1, 1, 1, 1]))
    x = g.ConvTranspose(g.Relu(g.Conv(skip, g.w(8, 5, 2, 2), strides=[2, 2])), g.w(8, WIDE, 2, 2), g.w(WIDE), strides=[2, 2])
    return str(g.Flatten(g.Relu(g.Conv(g.Concat(skip, x, axis=1), g.w(2, WIDE + 5, 3, 3), g.w(2)))))


def normalised(g: Net) -> str:
    """Convolutions without a border, with a normalisation in between."""
    x = norm(g, g.Conv(g.input(g.randn(2, 3, 6, 6)), g.w(WIDE, 3, 3, 3), g.w(WIDE)))
    return str(g.Flatten(g.Relu(g.Conv(x, g.w(2, WIDE, 3, 3), g.w(2)))))


def activated(g: Net) -> str:
    return str(g.Gemm(g.Relu(g.Gemm(g.input(g.randn(4, 6)), g.w(6, WIDE), g.w(WIDE))), g.w(WIDE, 3), g.w(3)))


def gated(g: Net) -> str:
    x = g.Gemm(g.input(g.randn(4, 6)), g.w(6, WIDE), g.w(WIDE))
    return str(g.Gemm(g.Mul(x, x), g.w(WIDE, 3), g.w(3)))


def scaled(g: Net) -> str:
    return str(g.Gemm(g.Mul(g.MatMul(g.input(g.randn(4, 6)), g.w(6, WIDE)), g.w(WIDE)), g.w(WIDE, 3), g.w(3)))


def shifted(g: Net) -> str:
    """One number is added to all channels."""
    return str(g.Gemm(g.Add(g.MatMul(g.input(g.randn(4, 6)), g.w(6, WIDE)), 1.0), g.w(WIDE, 3), g.w(3)))


def depthwise(g: Net) -> str:
    x = g.Conv(g.Conv(g.input(g.randn(2, 3, 6, 6)), g.w(WIDE, 3, 1, 1)), g.w(WIDE, 1, 3, 3), group=WIDE)
    return str(g.Flatten(g.Conv(x, g.w(2, WIDE, 1, 1))))


def pooled(g: Net) -> str:
    x = g.MaxPool(g.Conv(g.input(g.randn(2, 3, 6, 6)), g.w(WIDE, 3, 1, 1)), kernel_shape=[2, 2])
    return str(g.Flatten(g.Conv(x, g.w(2, WIDE, 1, 1))))


def bordered(g: Net) -> str:
    """A shift by the normalisation is not there in the border of zeros."""
    x = norm(g, g.Conv(g.input(g.randn(2, 3, 6, 6)), g.w(WIDE, 3, 3, 3)))
    return str(g.Flatten(g.Relu(g.Conv(x, g.w(2, WIDE, 3, 3), pads=[1, 1, 1, 1]))))


def twice(g: Net) -> str:
    """What is normalised is read by something that is not linear, too."""
    x = norm(g, g.Conv(g.input(g.randn(2, 3, 6, 6)), g.w(WIDE, 3, 3, 3)))
    return str(g.Flatten(g.Add(g.Conv(x, g.w(2, WIDE, 1, 1)), g.Conv(g.Relu(x), g.w(2, WIDE, 1, 1)))))


TURNED = [stream, embedding, bottleneck, flattened, upwards, normalised]
OWN = [activated, gated, scaled, shifted, depthwise, pooled, bordered, twice]


def built(build: Build) -> onnx.ModelProto:
    net = Net(17, dynamic=True)
    net.outputs.append(build(net))
    return net.model()


def turn(model: onnx.ModelProto, samples: int = 64) -> tuple[onnx.ModelProto, list[str], Standing]:
    graph = load(model)
    data = read(inputs(model, samples), graph.inputs)
    standing = Standing.of(analyse(graph), analyse)

    def look(one: Standing) -> Scene:
        return Scene(one.coupling, one.removed, data=data)

    after, names = rotated(standing, look(standing), look)
    return after.coupling.graph.assemble().complete(), names, after


def values(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {name: numpy_helper.to_array(t).astype(np.float64) for name, t in judge.stored(model).items()}


@pytest.mark.parametrize("build", TURNED, ids=lambda f: f.__name__)
def test_turned_channels_change_nothing(build: Build) -> None:
    model = built(build)
    turned, names, after = turn(model)
    assert names
    assert all(edit.exact and not edit.approximate for edit in after.edits)
    old, new = values(model), values(turned)
    assert old.keys() == new.keys()
    assert max(float(np.abs(old[n] - new[n]).max()) for n in old) > 0.1
    data = inputs(model, 16, seed=5)
    one, other = outputs(model, data), outputs(turned, data)
    assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()


@pytest.mark.parametrize("build", OWN, ids=lambda f: f.__name__)
def test_what_is_not_linear_is_left_alone(build: Build) -> None:
    model = built(build)
    turned, names, after = turn(model)
    assert names == []
    assert after.edits == ()
    assert turned.SerializeToString() == load(model).assemble().complete().SerializeToString()


def test_other_types_are_left_alone() -> None:
    model = built(flattened)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for port in [*model.graph.input, *model.graph.output]:
        port.type.tensor_type.elem_type = TensorProto.DOUBLE
    assert turn(model)[1] == []


@pytest.mark.parametrize("build", [activated, depthwise], ids=lambda f: f.__name__)
def test_a_model_that_would_change_is_left_alone(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """If an operator is taken for what it is not, the outputs tell."""
    monkeypatch.setattr(Region, "_lets_through", lambda *arguments: True)
    _, names, after = turn(built(build))
    assert names == []
    assert after.edits == ()


def test_the_first_axes_carry_most() -> None:
    """What the best k axes leave out is the least that any k directions can leave out (Eckart and Young)."""
    graph = load(built(flattened))
    coupling = analyse(graph)
    scene = Scene(
        coupling, np.zeros(len(coupling.components.root), np.bool_), data=read(inputs(built(flattened), 400), graph.inputs)
    )
    ((_, readers),) = seen(scene, [0])
    axes = principal_axes(readers)
    assert axes is not None
    assert axes.T @ axes == pytest.approx(np.eye(WIDE), abs=1e-9)
    (system,) = readers[0].systems()
    covariance = system.a - np.outer(system.a[-1], system.a[-1])

    def lost(kept: np.ndarray) -> float:
        rest = np.eye(WIDE) - kept @ kept.T
        return sum(float(np.trace(system.z[p].T @ rest @ covariance[np.ix_(p, p)] @ rest @ system.z[p])) for p in system.places.T)

    rng = np.random.default_rng(0)
    errors = [lost(axes[:, :k]) for k in range(WIDE + 1)]
    assert errors == sorted(errors, reverse=True)
    for k in (2, 4, 6, 8):
        others = [np.linalg.qr(rng.standard_normal((WIDE, k)))[0] for _ in range(20)]
        others += [np.eye(WIDE)[:, rng.permutation(WIDE)[:k]] for _ in range(20)]
        assert errors[k] <= 1.1 * min(map(lost, others))


@pytest.mark.parametrize("build", TURNED, ids=lambda f: f.__name__)
def test_less_is_lost(build: Build) -> None:
    model = built(build)
    data = inputs(model, 400)
    own, turned = (onnxprune.prune(model, criterion="obs", ratio=0.4, data=data, rotate=rotate).model for rotate in (False, True))
    assert moved(model, turned) <= 1.05 * moved(model, own)


def test_much_less_is_lost_where_directions_matter_less_and_less() -> None:
    """No twelve channels of their own are as good as the first directions."""
    model = built(flattened)
    stored = {t.name: t for t in model.graph.initializer}
    name = next(n.input[1] for n in model.graph.node if n.op_type == "Conv")
    rng = np.random.default_rng(0)
    filters = np.linalg.qr(rng.standard_normal((WIDE, WIDE)))[0] * 0.6 ** np.arange(WIDE) @ rng.standard_normal((WIDE, 27))
    stored[name].CopyFrom(numpy_helper.from_array(filters.reshape(WIDE, 3, 3, 3).astype(np.float32), name))
    data = inputs(model, 400)
    own, turned = (
        moved(model, onnxprune.prune(model, criterion="obs", ratio=0.5, data=data, rotate=rotate).model)
        for rotate in (False, True)
    )
    assert turned < 0.7 * own


# plans, proofs and tables -------------------------------------------------------------------------------------------------
def test_a_plan_turns_again(tmp_path: Path) -> None:
    model = built(stream)
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **inputs(model, 200))
    fixed = ("--criterion", "obs", "--ratio", "0.4", "--data", tmp_path / "data.npz")
    result = cli("prune", tmp_path / "model.onnx", "-o", tmp_path / "a.onnx", "--save-plan", tmp_path / "plan.json", *fixed)
    assert "channels of 1 of the groups are turned to principal axes first" in " ".join(result.split())
    cli("prune", tmp_path / "model.onnx", "-o", tmp_path / "b.onnx", "--plan", tmp_path / "plan.json")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    result = cli(
        "prune", tmp_path / "model.onnx", "-o", tmp_path / "c.onnx", "--save-plan", tmp_path / "own.json", "--no-rotate", *fixed
    )
    assert "turned" not in result
    exact = [[e["exact"] for e in json.loads((tmp_path / n).read_text())["edits"]] for n in ("plan.json", "own.json")]
    assert any(exact[0])
    assert not any(exact[1])


@pytest.mark.parametrize("build", [stream, bottleneck], ids=lambda f: f.__name__)
def test_the_cut_is_that_of_the_turned_model(build: Build, tmp_path: Path) -> None:
    """Masked by the plan's JSON alone."""
    model = built(build)
    result = onnxprune.prune(model, criterion="obs", ratio=0.4, data=inputs(model, 200), compensate="none")
    plan = result.plan.to_dict()
    turned = onnx.ModelProto()
    turned.CopyFrom(model)
    tensors = judge.stored(turned)
    for edit in plan["edits"]:
        assert edit["exact"]
        tensor = tensors[edit["tensor"]]
        numbers = np.frombuffer(base64.b64decode(edit["weights"]), np.float32)
        tensor.CopyFrom(numpy_helper.from_array(numbers.reshape(tuple(tensor.dims)), tensor.name))
        if edit["add"]:
            node = next(n for n in turned.graph.node if edit["node"] in n.output)
            bias = tensors[node.input[edit["input"]]]
            total = (numpy_helper.to_array(bias) + np.array(edit["add"]).reshape(tuple(bias.dims))).astype(np.float32)
            bias.CopyFrom(numpy_helper.from_array(total, bias.name))
    judge.assert_equal(turned, result.model, plan)


def test_turned_after_what_is_free(tmp_path: Path) -> None:
    """What leaves at no cost is not turned into the rest."""
    model = built(stream)
    stored = {t.name: t for t in model.graph.initializer}
    readers = [n.input[1] for n in model.graph.node if n.op_type == "MatMul" and stored[n.input[1]].dims[0] == 16]
    for name in readers:
        dead = numpy_helper.to_array(stored[name]).copy()
        dead[:3] = 0
        stored[name].CopyFrom(numpy_helper.from_array(dead, name))
    data = inputs(model, 200)
    result = onnxprune.prune(model, criterion="obs", ratio=0.3, data=data, free=True)
    assert any("principal axes" in note for note in result.report.notes)
    assert result.report.free
    assert moved(model, result.model) < 0.5


def test_saved_scores_are_of_the_models_own_channels(tmp_path: Path) -> None:
    model = built(stream)
    data = inputs(model, 200)
    tables = [
        onnxprune.prune(model, criterion="obs", ratio=0.3, data=data, rotate=rotate).scores().to_dict()
        for rotate in (True, False)
    ]
    assert tables[0] == tables[1]


def test_no_region_where_channels_leave_the_model() -> None:
    net = Net(17, dynamic=True)
    made = net.MatMul(net.input(net.randn(4, 6)), net.w(6, WIDE))
    net.outputs += [made, net.MatMul(made, net.w(WIDE, 3))]
    graph = load(net.model())
    coupling = analyse(graph)
    scene = Scene(coupling, np.zeros(len(coupling.components.root), np.bool_))
    assert [Regions(scene).of(n) for n in range(len(coupling.groups))] == []
