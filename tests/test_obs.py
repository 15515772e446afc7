"""Criterion obs: errors after the best compensation, for all groups in one unit, from data and without any."""

from __future__ import annotations

import json
from pathlib import Path

import dense
import graphs
import numpy as np
import onnx
import pytest
from cases_net import Net
from test_refit import cli, conv, image, inputs, moved, trained

import onnxprune
from onnxprune import DataError, ModelError, TargetError, UsageError
from onnxprune.allocation import lowest
from onnxprune.channels import analyse
from onnxprune.data import read
from onnxprune.graph import load
from onnxprune.importance import Scene
from onnxprune.importance.obs import Obs
from onnxprune.importance.probe import RANGE, Cut, Probe, divergence, probed
from onnxprune.runtime import Session

EXPORTED = Path(__file__).parent / "exported"


def scene(model: onnx.ModelProto, samples: int = 200) -> Scene:
    graph = load(model)
    coupling = analyse(graph)
    data = read(inputs(model, samples), graph.inputs) if samples else None
    return Scene(coupling, np.zeros(len(coupling.components.root), np.bool_), data=data)


def ranks(model: onnx.ModelProto, samples: int = 200) -> list[np.ndarray]:
    found = scene(model, samples)
    return [Obs().rank(found, n) for n in range(len(found.coupling.groups))]


def built(build: object) -> onnx.ModelProto:
    net = Net(17, dynamic=True)
    result = build(net)
    net.outputs += [result] if isinstance(result, str) else result
    return net.model()


MODELS = {
    "mlp": lambda: trained(0),
    "conv": lambda: graphs.build(["plain", "activation", "batch_norm"], "pool", 3),
    "residual": lambda: graphs.build(["residual", "plain", "residual"], "pool", 1),
    "concat": lambda: graphs.build(["concat", "depthwise", "split"], "pool", 2),
    "shuffle": lambda: graphs.build(["shuffle", "grouped", "gate"], "pool", 2),
}


# curves -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MODELS)
def test_curves_begin_with_zero_and_bend_upwards(name: str) -> None:
    """And each channel's turn comes in the order of the scores."""
    found, obs = scene(MODELS[name]()), Obs()
    assert len(found.coupling.groups) > 1
    for number, group in enumerate(found.coupling.groups):
        scores, curve = obs.rank(found, number), obs.curve(found, number)
        assert curve.shape == (group.size + 1,)
        assert curve[0] == 0
        assert np.isfinite(curve).all()
        assert (np.diff(curve) >= 0).all()
        assert (np.diff(curve, 2) >= -1e-12).all()
        assert curve[-1] > 1e-6
        assert np.allclose(np.diff(curve), scores[lowest(scores, group.size)])


def test_the_unit_of_all_groups_is_the_same() -> None:
    """What a net computes decides, not the scale at which it does: the curves of equal nets are equal."""
    stack = dense.layers(12, 16, 16, 4, seed=2)
    before = ranks(dense.network(stack))
    for k, factor in ((0, 50.0), (1, 0.01)):
        stack[k].weight *= np.float32(factor)
        stack[k].bias *= np.float32(factor)
        stack[k + 1].weight /= np.float32(factor)
    after = ranks(dense.network(stack))
    for one, other in zip(before, after, strict=True):
        assert np.allclose(one, other, rtol=1e-2, atol=1e-3 * one.max())
    stack[1].weight[:, :8] *= np.float32(3)  # a control: another net
    assert not np.allclose(before[0], ranks(dense.network(stack))[0], rtol=1e-1)


def test_dead_channels_go_first_and_twins_next() -> None:
    stack = dense.layers(12, 16, 4, seed=2)
    stack[0].weight[3], stack[0].bias[3] = 0, -1  # gives nothing
    stack[1].weight[:, 5] = 0  # is not looked at
    stack[0].weight[9], stack[0].bias[9] = 2 * stack[0].weight[7], 2 * stack[0].bias[7]
    (scores,) = ranks(dense.network(stack))
    order = lowest(scores, 16).tolist()
    assert set(order[:2]) == {3, 5}
    assert order[2] in (7, 9)
    assert order[3] not in (7, 9)
    assert scores[order[2]] < 0.05 * scores[order[3]]
    norms = np.linalg.norm(stack[0].weight, axis=1)  # a control: norms of filters tell nothing of that
    assert not {5, 7, 9} & set(np.argsort(norms)[:2].tolist())


def test_all_that_read_a_group_count() -> None:
    """A channel that one layer does without another may need."""

    def build(g: Net) -> list[str]:
        x = g.Relu(conv(g, image(g), 3, 8))
        first, second = g.randn(4, 8, 3, 3), g.randn(5, 8, 1, 1)
        first[:, [1, 2]] = 0
        second[:, [2, 3]] = 0
        return [g.Conv(x, g.store(first), pads=[1] * 4), g.Conv(x, g.store(second))]

    (scores,) = ranks(built(build))
    assert scores.argmin() == 2
    assert scores[2] < 1e-3 * np.delete(scores, 2).min()


def test_what_no_linear_layer_reads() -> None:
    """The channels themselves are what counts then."""
    model = built(lambda g: g.ReduceMax(g.Relu(conv(g, image(g), 3, 8)), axes=[1], keepdims=0))
    for scores in ranks(model):
        assert np.isfinite(scores).all()
    for name in ("if.ts", "loop.ts"):
        result = onnxprune.prune(EXPORTED / f"{name}.onnx", criterion="obs", ratio=0.5)
        assert all(2 * group["kept"] == group["channels"] for group in result.report.to_dict()["groups"])


def test_several_passes_are_as_good_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["residual"]()
    whole, passes = ranks(model), []
    run = Session.run

    def counted(self: Session, *arguments: object) -> object:
        passes.append(len(arguments[1]))
        return run(self, *arguments)

    monkeypatch.setattr(Session, "run", counted)
    ranks(model)
    once = len(passes)
    monkeypatch.setattr("onnxprune.importance.obs.MEMORY", 1)
    parts = ranks(model)
    assert len(passes) - once > once
    for one, other in zip(whole, parts, strict=True):
        assert np.allclose(one, other, rtol=1e-6)


def test_wide_layers_count_channels_as_wholes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same at all places: coarser, but what is dead or double is still found."""

    def build(g: Net) -> str:
        weight, bias, after = g.randn(8, 3, 3, 3), g.randn(8), g.randn(4, 8, 3, 3)
        weight[6], bias[6], after[:, 1] = weight[4], bias[4], 0
        x = g.Relu(g.Conv(image(g), g.store(weight), g.store(bias), pads=[1] * 4))
        return g.Conv(x, g.store(after), pads=[1] * 4)

    model = built(build)
    (fine,) = ranks(model)
    monkeypatch.setattr("onnxprune.importance.readers.WIDEST", 20)
    (coarse,) = ranks(model)
    assert not np.allclose(fine, coarse)
    for scores in (fine, coarse):
        order = lowest(scores, 8).tolist()
        assert order[0] == 1
        assert order[1] in (4, 6)
        assert order[2] not in (4, 6)


# how much of it reaches the outputs -----------------------------------------------------------------------------------------
def test_divergence_is_that_of_classes() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((50, 6)).astype(np.float32)
    assert divergence([scores], [scores]) == 0
    assert divergence([scores + rng.standard_normal((50, 1)).astype(np.float32)], [scores]) < 1e-10
    assert divergence([np.broadcast_to(scores.mean(axis=0), scores.shape)], [scores]) == pytest.approx(1, rel=1e-2)
    maps = rng.standard_normal((50, 2, 3)).astype(np.float32)
    assert divergence([maps + 1, scores], [maps, scores]) > 0.3  # of other outputs a constant does count
    labels = np.arange(50)
    assert divergence([labels + 1], [labels]) == 0  # whole numbers have no distance


def test_groups_that_hardly_reach_the_outputs_count_less() -> None:
    """Within bounds; the control is the other way round."""

    def build(loud: float) -> onnx.ModelProto:
        def both(g: Net) -> str:
            x = image(g)
            a, b = (conv(g, g.Relu(conv(g, x, 3, 8)), 8, 4) for _ in range(2))
            c = conv(g, g.Relu(conv(g, x, 3, 8)), 8, 4)
            return g.Add(g.Add(g.Mul(a, loud), g.Mul(b, 1 / loud)), c)

        return built(both)

    weights = {}
    for loud in (3.0, 1 / 3.0):
        found = scene(build(loud))
        cuts = [Cut(group.roots[:4], (), 1.0) for group in found.coupling.groups]
        weights[loud] = probed(found, cuts)
        assert all(RANGE[0] <= w <= RANGE[1] for w in weights[loud])
        assert sorted(weights[loud])[1] == 1
        assert Probe(found, 1).of(np.zeros(0, np.int64), ()) == 0
    names = [group.name for group in found.coupling.groups]
    first, second = (np.argsort(weights[loud])[[0, -1]].tolist() for loud in (3.0, 1 / 3.0))
    assert first == second[::-1], (names, weights)


# choosing -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"ratio": 0.5, "scope": "global"}, {"target": "macs=0.5"}], ids=str)
def test_choices_are_better_than_by_norms(options: dict[str, object]) -> None:
    """With the same compensation; and as much leaves as is asked for."""
    for seed in range(2):
        model = trained(seed)
        data = inputs(model, 400, seed=7)
        obs, l1 = (onnxprune.prune(model, criterion=c, compensate="least-squares", data=data, **options) for c in ("obs", "l1"))
        assert moved(model, obs.model) < moved(model, l1.model)
        report = obs.report.to_dict()
        kept = [group["kept"] for group in report["groups"]]
        if "target" in options:
            assert 0.45 < report["model"]["after"]["macs"] / report["model"]["before"]["macs"] <= 0.5
        else:
            assert sum(kept) == 32
            assert (kept == [16, 16]) == ("scope" not in options)


@pytest.mark.parametrize("samples", [0, 100])
def test_the_same_again_gives_the_same(samples: int) -> None:
    model = trained(3)
    data = inputs(model, samples) if samples else None
    one, two = (onnxprune.prune(model, criterion="obs", ratio=0.5, seed=4, data=data) for _ in range(2))
    assert one.plan == two.plan
    assert one.model.SerializeToString() == two.model.SerializeToString()
    other = onnxprune.prune(model, criterion="obs", ratio=0.5, data=inputs(model, 100, seed=8))  # a control: other data
    assert other.plan != one.plan


def test_without_data_it_still_beats_the_plain_cut() -> None:
    """Or says that it has left well alone."""
    for seed in range(3):
        model = trained(seed)
        free = onnxprune.prune(model, criterion="obs", ratio=0.5)
        assert free.report.to_dict()["verification"]["passed"]
        plain = onnxprune.prune(model, criterion="l1", ratio=0.5)
        assert moved(model, free.model) < moved(model, plain.model)


def test_other_compensations_can_be_asked_for() -> None:
    model, data = trained(0), inputs(trained(0), 200)
    found = {
        mode: onnxprune.prune(model, criterion="obs", ratio=0.5, data=data, compensate=mode)
        for mode in ("auto", "none", "merge", "least-squares")
    }
    assert found["auto"].plan == found["least-squares"].plan
    assert not found["none"].plan.edits
    assert found["none"].plan.sites == found["auto"].plan.sites
    assert all(edit.weights for edit in found["auto"].plan.edits)
    assert not any(edit.weights for edit in found["merge"].plan.edits)
    with pytest.raises(onnxprune.OptionError, match=r"^compensate is 'most'; choose auto, none, merge, least-squares$"):
        onnxprune.prune(model, criterion="obs", compensate="most")


# bad input ----------------------------------------------------------------------------------------------------------------
def test_targets_that_cannot_be_met(tmp_path: Path) -> None:
    onnx.save(trained(0), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=inputs(trained(0), 64)["x"])
    options = ["--criterion", "obs", "--data", tmp_path / "data.npz", "--target", "macs=0.01"]
    out = cli("prune", tmp_path / "net.onnx", "-o", tmp_path / "out.onnx", *options, code=1)
    assert "target macs=0.01 can't be met: at least 0." in out
    assert "nothing was written" in out
    assert not (tmp_path / "out.onnx").exists()
    report = tmp_path / "report.json"
    cli("prune", tmp_path / "net.onnx", "-o", tmp_path / "out.onnx", *options, "--best-effort", "--report", report)
    assert json.loads(report.read_text())["verification"]["passed"]
    with pytest.raises(TargetError):
        onnxprune.prune(trained(0), criterion="obs", target="macs=0.01", data={"x": inputs(trained(0), 64)["x"]})


def test_inputs_that_do_not_fit() -> None:
    model = trained(0)
    text = r"^data: array 'x' has shape \(9, 7\), the model's input is \['batch', 20\]; samples come first$"
    with pytest.raises(DataError, match=text):
        onnxprune.prune(model, criterion="obs", data={"x": np.zeros((9, 7), np.float32)})
    constant = onnxprune.prune(model, criterion="obs", ratio=0.5, data={"x": np.zeros((40, 20), np.float32)})
    assert constant.report.to_dict()["verification"]["passed"]


def test_synthetic_inputs_that_do_not_suit() -> None:
    model = built(lambda g: g.MatMul(g.Sqrt(g.MatMul(g.input(g.randn(4, 6)), g.w(6, 8))), g.w(8, 3)))
    text = r"^criterion 'obs': synthetic inputs do not suit the model; give --data FILE.npz \(in Python data=\)$"
    with pytest.raises(UsageError, match=text):
        onnxprune.prune(model, criterion="obs")
    with pytest.raises(ModelError, match=r"^criterion 'obs': there is NaN or infinity in or behind group 'MatMul_0' on the"):
        onnxprune.prune(model, criterion="obs", data=inputs(model, 40))
