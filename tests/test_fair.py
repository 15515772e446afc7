"""FAIR-Pruner's scores and its ToD rule: against stored reference values, by their definitions, and from the command line."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import judge
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

import onnxprune
from onnxprune import DataError, OptionError, Sampler, UsageError
from onnxprune import data as datasets
from onnxprune.allocation import difference, tolerated
from onnxprune.channels import analyse, chosen
from onnxprune.cli import app
from onnxprune.graph import load
from onnxprune.importance import Reconstruction, Scene, ScoreTable, Wasserstein, reconstruction, wasserstein
from onnxprune.importance.options import Options
from onnxprune.importance.wasserstein import distances, quantiles, widest

STORED = np.load(Path(__file__).parent / "reference" / "fair.npz")
LEVELS = (0.05, 0.3, 0.6)


def stored(net: str) -> dict[str, np.ndarray]:
    found = {key.removeprefix(f"{net}."): STORED[key] for key in STORED.files if key.startswith(f"{net}.")}
    return {
        key: v.astype(np.float32) if v.dtype == np.float64 and key[-2:] not in (".u", ".r") else v for key, v in found.items()
    }


def model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape: list[int | str]) -> onnx.ModelProto:
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], 3]),
    ]
    initializers = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def net(batch: int | str = "batch") -> onnx.ModelProto:
    """The reference's convolutional network."""
    layers = ("conv1", "conv2", "dense", "last")
    names = [f"{n}.{w}" for n in layers for w in ("weight", "bias")]
    norm = [f"norm.{w}" for w in ("weight", "bias", "running_mean", "running_var")]
    node = helper.make_node
    nodes = [
        node("Conv", ["x", *names[:2]], ["c1"], "conv1", pads=[1] * 4),
        node("BatchNormalization", ["c1", *norm], ["n1"], "norm"),
        node("Relu", ["n1"], ["a1"], "relu1"),
        node("Conv", ["a1", *names[2:4]], ["c2"], "conv2"),
        node("Relu", ["c2"], ["a2"], "relu2"),
        node("Flatten", ["a2"], ["f"], "flatten"),
        node("Gemm", ["f", *names[4:6]], ["d"], "dense", transB=1),
        node("Relu", ["d"], ["a3"], "relu3"),
        node("Gemm", ["a3", *names[6:]], ["y"], "last", transB=1),
    ]
    values = stored("net")
    return model(nodes, {name: values[name] for name in names + norm}, [batch, 1, 6, 6])


def recurrent() -> onnx.ModelProto:
    """The reference's LSTM; ONNX has the gates in another order."""
    values = stored("recurrent")

    def gates(name: str) -> np.ndarray:
        i, f, g, o = np.split(values[name], 4)
        return np.concatenate([i, o, f, g])

    bias = np.concatenate([gates("lstm.bias_ih_l0"), gates("lstm.bias_hh_l0")])
    weights = {"W": gates("lstm.weight_ih_l0")[None], "R": gates("lstm.weight_hh_l0")[None], "B": bias[None]}
    weights |= {"last": values["last.weight"], "bias": values["last.bias"]}
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["t"], "turn", perm=[1, 0, 2]),
        node("LSTM", ["t", "W", "R", "B"], ["Y"], "lstm", hidden_size=7),
        node("Transpose", ["Y"], ["b"], "back", perm=[2, 0, 1, 3]),
        node("Flatten", ["b"], ["f"], "flatten"),
        node("Gemm", ["f", "last", "bias"], ["y"], "last", transB=1),
    ]
    return model(nodes, weights, ["batch", 5, 4])


def residual() -> onnx.ModelProto:
    """Two convolutions of which the sum is read, so that both lose the same channels."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((8, 1, 3, 3)).astype(np.float32) for name in ("w0", "w1")}
    weights |= {"last": rng.standard_normal((8, 3)).astype(np.float32)}
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], "conv0", pads=[1] * 4),
        node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1] * 4),
        node("Add", ["c0", "c1"], ["s"], "sum"),
        node("Sigmoid", ["s"], ["a"], "bend"),
        node("GlobalAveragePool", ["a"], ["p"], "pool"),
        node("Flatten", ["p"], ["f"], "flatten"),
        node("Gemm", ["f", "last"], ["y"], "last"),
    ]
    return model(nodes, weights, ["batch", 1, 6, 6])


MODELS = {"net": net, "recurrent": recurrent}


def samples(name: str) -> dict[str, np.ndarray]:
    values = stored(name)
    return {"x": values["x"], "labels": values["labels"]}


def scene(proto: onnx.ModelProto, data: dict[str, np.ndarray] | None) -> Scene:
    graph = load(proto)
    coupling = analyse(graph)
    dataset = None if data is None else datasets.read(data, graph.inputs)
    return Scene(coupling, np.zeros(len(coupling.components.root), np.bool_), data=dataset)


def by_layer(found: Scene, scores: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {group.name: values for group, values in zip(found.coupling.groups, scores, strict=True)}


# against the reference -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_wasserstein_is_the_reference_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = stored(name)
    owners = {"c1": "conv1", "c2": "conv2", "d": "dense", "Y": "lstm"}
    monkeypatch.setattr(Wasserstein, "directions", lambda self, view, shape: values[f"{owners[view.tensor]}.directions"])
    found = scene(MODELS[name](), samples(name))
    for layer, scores in by_layer(found, Wasserstein().measure(found)).items():
        np.testing.assert_allclose(scores, values[f"{layer}.u"], rtol=2e-5)


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_reconstruction_is_the_reference_s(batch: int | str) -> None:
    values = stored("net")
    found = scene(net(batch), samples("net"))
    for layer, scores in by_layer(found, Reconstruction().measure(found)).items():
        np.testing.assert_allclose(scores, values[f"{layer}.r"], rtol=1e-4, atol=1e-5)
    assert not found.notes


def test_recurrent_units_are_differenced() -> None:
    """The reference scales all gates' rows of a unit through their gradients; differences do without."""
    found = scene(recurrent(), samples("recurrent"))
    scores = by_layer(found, Reconstruction().measure(found))
    np.testing.assert_allclose(scores["lstm"], stored("recurrent")["lstm.r"], rtol=2e-3, atol=2e-4)
    assert found.notes == ("group 'lstm' has no gradient: its scores are central differences on 21 samples",)


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_the_reference_s(name: str) -> None:
    values = stored(name)
    for layer in (key.removesuffix(".u") for key in values if key.endswith(".u")):
        counts = [tolerated(values[f"{layer}.u"], values[f"{layer}.r"], level) for level in LEVELS]
        assert counts == values[f"{layer}.counts"].tolist()


# reconstruction --------------------------------------------------------------------------------------------------------


def test_gates_weights_and_differences_agree() -> None:
    """sum w dL/dw + b dL/db = sum y dL/dy = dL/dgate: three ways to the same number."""
    found = scene(net(), samples("net"))
    calibration = found.calibration("reconstruction")
    numbers = range(len(found.coupling.groups))
    gates = {n: reconstruction._wrt(found, n) for n in numbers}
    assert all(isinstance(w, onnxprune.gradient.Gate) for each in gates.values() for w in each)
    weights = {n: sorted({m.site.tensor for m in found.coupling.groups[n].members if m.producer}) for n in numbers}
    one, other = (reconstruction.slopes(found, calibration, wrt) for wrt in (gates, weights))
    for n in numbers:
        np.testing.assert_allclose(one[n], other[n], rtol=1e-4, atol=1e-5)
        far = reconstruction.differences(found, calibration, n, 0)
        np.testing.assert_allclose(one[n], far, atol=0.01)  # there are kinks
    without = {n: [w for w in each if not w.endswith("bias")] for n, each in weights.items()}
    assert max(np.abs(one[n] - s).max() for n, s in reconstruction.slopes(found, calibration, without).items()) > 0.05


def test_layers_that_make_a_group_together_are_scaled_together() -> None:
    found = scene(residual(), samples("net"))
    assert list(found.made(0)) == ["c0", "c1"]
    (scores,) = Reconstruction().measure(found)
    np.testing.assert_allclose(
        scores, np.abs(reconstruction.differences(found, found.calibration(""), 0, 0)), rtol=1e-2, atol=1e-3
    )
    apart = reconstruction.slopes(found, found.calibration(""), {0: ["w0"]})
    assert np.abs(np.abs(apart[0]) - scores).max() > 0.1


def test_a_unit_that_the_loss_ignores_scores_nothing() -> None:
    proto = net()
    last = next(t for t in proto.graph.initializer if t.name == "last.weight")
    values = numpy_helper.to_array(last).copy()
    values[:, 4] = 0
    last.CopyFrom(numpy_helper.from_array(values, last.name))
    found = scene(proto, samples("net"))
    scores = by_layer(found, Reconstruction().measure(found))["dense"]
    assert stored("net")["dense.r"][4] > 0 == scores[4]


# wasserstein -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_distances_are_those_of_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, rng.integers(2, 7)) if seed % 2 else np.full(rng.integers(2, 7), 5)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    points = rng.standard_normal((3, 4, len(labels))).astype(np.float32) + rng.standard_normal(len(sizes))[labels].astype(
        np.float32
    )
    for channel, score in enumerate(distances(points, labels)):
        pairs = []
        for a, b in combinations(range(len(sizes)), 2):
            x, y = (np.sort(points[channel][:, labels == k]) for k in (a, b))
            q = np.linspace(0, 1, max(sizes[a], sizes[b]))
            pairs.append(np.abs(np.quantile(x, q, axis=1) - np.quantile(y, q, axis=1)).mean())
        assert score == pytest.approx(max(pairs), rel=1e-4)


def test_widest_skips_no_pair_that_matters() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((60, 5)).astype(np.float32)
    every = np.abs(points[:, None] - points).mean(axis=2)
    assert widest(points, np.ones(60, np.bool_)) == pytest.approx(every.max())
    own = np.arange(60) < 3
    assert widest(points, own) == pytest.approx(every[:3].max())


def test_quantiles_are_numpy_s() -> None:
    values = np.sort(np.random.default_rng(0).standard_normal((2, 5)))
    np.testing.assert_allclose(quantiles(values, 8), np.moveaxis(np.quantile(values, np.linspace(0, 1, 8), axis=1), 0, 1))


def test_a_unit_blind_to_classes_scores_lowest() -> None:
    """And a unit that sees one class alone highest: of units made by hand."""
    weights = {"w": np.array([[0, 0, 0, 1], [1, 0, 0, 0], [0.3, 0.3, 0.2, 0]], np.float32), "v": np.ones((3, 3), np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"], "hidden", transB=1), helper.make_node("Gemm", ["h", "v"], ["y"], "last")]
    x = np.concatenate([np.eye(3, dtype=np.float32)[np.arange(30) % 3], np.ones((30, 1), np.float32)], axis=1)
    found = scene(model(nodes, weights, ["batch", 4]), {"x": x, "labels": np.arange(30) % 3})
    (scores,) = Wasserstein().measure(found)
    np.testing.assert_allclose(scores, [0, 1, 0.1], atol=1e-6)


def test_little_memory_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scene(net(), samples("net"))
    whole = Wasserstein().measure(found)
    monkeypatch.setattr(wasserstein, "MEMORY", 4 * 128 * 21 * 3)
    monkeypatch.setattr("onnxprune.importance.calibration.MEMORY", 4000)
    for one, other in zip(whole, Wasserstein().measure(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_it_is_seeded() -> None:
    found = scene(net(), samples("net"))
    one, two, other = (Wasserstein(Options(seed=seed)).measure(found) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[0], other[0])


def test_analysis_is_chosen_apart_from_the_layer() -> None:
    found = scene(net(), samples("net"))
    own, after, mixed = (
        by_layer(found, Wasserstein(Options(analysis=place)).measure(found))
        for place in ("own", "after", {"conv?": "after", "dense": "a3"})
    )
    assert all(not np.allclose(own[name], after[name]) for name in own)
    assert all(np.array_equal(after[name], mixed[name]) for name in own)


@pytest.mark.parametrize(
    ("analysis", "error", "text"),
    [
        ("behind", OptionError, "analysis is 'behind'; choose own or after, or a tensor for each of some groups"),
        ({"conv9": "c1"}, UsageError, "--analysis: 'conv9' matches no channel group; `onnxprune inspect` lists them"),
        (
            {"conv1": "c2"},
            UsageError,
            "analysis of group 'conv1': its channels do not lie in a tensor 'c2'; name one between the layer and what reads it",
        ),
    ],
)
def test_wrong_places_are_refused(analysis: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        onnxprune.prune(net(), criterion="wasserstein", analysis=analysis, data=samples("net"))  # type: ignore[arg-type]
    assert str(caught.value) == text


# tolerance of difference -----------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6), st.sampled_from([0.0, 0.005, 0.05, 0.3, 0.5, 0.9, 1.0]))
def test_tod_is_its_definition(size: int, seed: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    removal, protection = rng.integers(0, 9, size) * 1.0, rng.random(size)
    first, last = np.argsort(removal, kind="stable"), np.argsort(protection, kind="stable")
    shares = [len(set(first[:m]) & set(last[size - m :])) / m for m in range(1, size + 1)]
    np.testing.assert_array_equal(difference(removal, protection), shares)
    count = tolerated(removal, protection, level)
    fitting = [m for m in range(1, int(0.99 * size) + 1) if shares[m - 1] <= level]
    assert count == max(fitting, default=0)
    assert count <= size / (2 - level) + 1e-9


def test_rankings_that_agree_reach_the_cap_and_opposite_ones_remove_nothing() -> None:
    scores = np.arange(200) * 1.0
    for level, cap in ((0.005, 0.5013), (0.05, 0.513), (0.3, 0.588), (0.9, 0.909)):
        assert tolerated(scores, scores, level) == int(200 * cap)
    assert tolerated(scores, -scores, 0.99) == 0
    assert tolerated(scores[:1], scores[:1], 1.0) == 0


def test_prune_by_tod_removes_the_lowest_of_the_removal_ranking() -> None:
    data = samples("net")
    result = onnxprune.prune(net(), scope="tod", tod=0.6, data=data)
    table = result.scores()
    assert list(table.scores) == ["wasserstein", "reconstruction"]
    for row in result.report.groups:
        removal, protection = (table.scores[c][row.group.name] for c in table.scores)
        count = tolerated(removal, protection, 0.6)
        assert row.kept == row.group.size - count
        keep = next(s.keep for s in result.plan.sites if s.tensor == f"{row.group.name}.weight" and s.axis == 0)
        assert set(keep) == set(np.argsort(removal)[count:].tolist())
    judge.assert_equal(net(), result.model, result.plan.to_dict())


@pytest.mark.parametrize("criterion", ["l1", "impact", "saliency"])
def test_any_criterion_ranks_what_is_removed(criterion: str) -> None:
    result = onnxprune.prune(net(), criterion=criterion, scope="tod", tod=0.6, data=samples("net"), compensate="none")
    removal, protection = (result.scores().scores[c]["dense"] for c in (criterion, "reconstruction"))
    row = next(row for row in result.report.groups if row.group.name == "dense")
    assert row.group.size - row.kept == tolerated(removal, protection, 0.6) > 0


def test_channels_that_layers_share_are_kept_by_their_scores() -> None:
    """Not those of the lowest numbers: one count for the whole group, and the best of it stay."""
    result = onnxprune.prune(residual(), criterion="wasserstein", ratio=0.5, data=samples("net"))
    scores = result.scores().scores["wasserstein"]["conv0"]
    best = np.sort(np.argsort(scores)[4:]).tolist()
    assert best != [0, 1, 2, 3]
    assert [list(s.keep) for s in result.plan.sites if s.tensor in ("w0", "w1")] == [best, best]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (
            {"scope": "tod", "ratio": 0.5},
            UsageError,
            "the ToD level sets how many channels each group loses; give either --ratio or --scope tod",
        ),
        (
            {"tod": 0.3},
            UsageError,
            "the ToD level is for --scope tod, and the scope is 'uniform'; give either --tod or another scope",
        ),
        ({"scope": "tod", "tod": 1.5}, OptionError, "tod is 1.5; it is a share of the channels that leave, 0 <= tod <= 1"),
        (
            {"scope": "tod", "step": 0.1},
            UsageError,
            "the ToD level removes everything at once; give either --scope tod or --step and --tape",
        ),
        (
            {"criterion": "wasserstein", "samples": 0},
            OptionError,
            "samples is 0; it is the number of samples of each class, at least 1",
        ),
        (
            {"scope": "tod", "data": None},
            UsageError,
            "criterion 'wasserstein' is measured on data; give --data FILE.npz (in Python data=)",
        ),
        (
            {"criterion": "l1", "scope": "tod", "data": None},
            UsageError,
            "criterion 'reconstruction' is measured on data; give --data FILE.npz (in Python data=)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        onnxprune.prune(net(), **{"data": samples("net"), **options})  # type: ignore[arg-type]
    assert str(caught.value) == text


# data ------------------------------------------------------------------------------------------------------------------


def test_one_class_is_not_enough() -> None:
    data = samples("net") | {"labels": np.ones(21, np.int64)}
    with pytest.raises(DataError) as caught:
        onnxprune.prune(net(), criterion="wasserstein", data=data)
    assert str(caught.value) == (
        "criterion 'wasserstein' compares classes, but all 21 samples are of class 1; give samples of at least two"
    )
    assert onnxprune.prune(net(), criterion="reconstruction", data=data).report.groups  # which compares none


def test_without_labels_the_model_s_own_predictions_are_taken() -> None:
    data = samples("net") | {"x": np.random.default_rng(0).standard_normal((21, 1, 6, 6)).astype(np.float32) * 9}
    given = onnxprune.prune(net(), criterion="wasserstein", data=data)
    result = onnxprune.prune(net(), criterion="wasserstein", data={"x": data["x"]})
    note = "the data have no labels: the classes that the model itself predicts stand in for them"
    assert (result.report.notes, given.report.notes) == ((note,), ())
    assert f"note: {note}" in str(result.report)
    assert result.report.to_dict()["notes"] == [note]


def test_no_labels_and_no_classes() -> None:
    proto = net()
    del proto.graph.node[-4:], proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("a2", TensorProto.FLOAT, ["batch", 6, 4, 4]))
    with pytest.raises(UsageError) as caught:
        onnxprune.prune(proto, criterion="wasserstein", data={"x": samples("net")["x"]})
    assert str(caught.value) == (
        "the data have no labels, and no output of the model has the shape (samples, classes) to take them from; "
        "add an array 'labels' to --data"
    )


def test_a_label_beyond_the_classes() -> None:
    with pytest.raises(DataError, match="label 7 of sample 0 is out of range: the model has 3 classes"):
        onnxprune.prune(net(), criterion="reconstruction", data=samples("net") | {"labels": np.full(21, 7)})


@pytest.mark.parametrize("criterion", ["wasserstein", "reconstruction"])
def test_what_is_not_finite_is_refused(criterion: str) -> None:
    data = samples("net")
    data["x"][0] = 3e38
    text = (
        rf"^criterion '{criterion}' is not finite for channel \d of group 'conv1': the model or its gradient overflows on the "
        "data; take another criterion, or other data$"
    )
    with pytest.raises(onnxprune.ModelError, match=text):
        onnxprune.prune(net(), criterion=criterion, data=data)


def test_quantised_weights_have_no_derivative() -> None:
    small = onnxprune.quantize(net(), "int8", data=samples("net")).model
    with pytest.raises(onnxprune.ModelError, match=r"has quantised weights \('.*'\), by which the loss has no derivative; take"):
        onnxprune.prune(small, criterion="reconstruction", data=samples("net"))
    assert onnxprune.prune(small, criterion="wasserstein", data=samples("net")).report.verification.passed


def test_nothing_to_prune() -> None:
    result = onnxprune.prune(net(), scope="tod", freeze=("conv*", "dense"), data=samples("net"))
    assert not result.report.groups
    assert Wasserstein().measure(scene(net(), samples("net")))


def test_a_group_alone_can_t_be_scored() -> None:
    coupling = analyse(load(net()))
    with pytest.raises(UsageError, match="criterion 'wasserstein' is measured on the whole model"):
        Wasserstein()(coupling.groups[0], coupling.graph.weights, None)


def test_it_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    whole = Wasserstein.measure
    monkeypatch.setattr(Wasserstein, "measure", lambda self, scene: calls.append(1) or whole(self, scene))
    onnxprune.prune(net(), criterion="wasserstein", step=0.25, ratio=0.5, data=samples("net"))
    assert len(calls) == 1


# saved scores ----------------------------------------------------------------------------------------------------------


def test_what_is_free_leaves_first() -> None:
    """Scores are then of the channels that are left."""
    proto = net()
    for tensor in proto.graph.initializer:
        if tensor.name in ("dense.weight", "dense.bias"):
            values = numpy_helper.to_array(tensor).copy()
            values[3] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for criterion in ("wasserstein", "reconstruction"):
        result = onnxprune.prune(proto, criterion=criterion, free=True, ratio=0.3, data=samples("net"))
        scores = result.scores()
        assert len(scores.scores[criterion]["dense"]) == 9
        assert 3 not in next(s.keep for s in result.plan.sites if (s.tensor, s.axis) == ("dense.weight", 0))
        again = onnxprune.prune(proto, free=True, ratio=0.3, scores=scores)
        assert again.plan == result.plan


def test_saved_scores_are_taken_again_without_data(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    first = onnxprune.prune(net(), scope="tod", tod=0.3, data=samples("net"))
    first.scores().save(path)
    for tod in (0.3, 0.6):
        measured = onnxprune.prune(net(), scope="tod", tod=tod, data=samples("net"))
        again = onnxprune.prune(net(), scope="tod", tod=tod, scores=path)
        assert again.plan == measured.plan
    assert Sampler(scores=path).settings["criterion"] == "wasserstein"
    uniform = onnxprune.prune(net(), ratio=0.25, scores=ScoreTable.load(path))
    assert uniform.plan == onnxprune.prune(net(), criterion="wasserstein", ratio=0.25, data=samples("net")).plan
    other = onnxprune.prune(net(), ratio=0.25, criterion="l1", scores=path)
    assert other.plan == onnxprune.prune(net(), ratio=0.25).plan


@pytest.mark.parametrize("criterion", ["l1", "random", "saliency"])
def test_scores_of_any_criterion_are_saved(criterion: str, tmp_path: Path) -> None:
    result = onnxprune.prune(net(), criterion=criterion, ratio=0.5, scope="global")
    result.scores().save(tmp_path / "s.json")
    assert onnxprune.prune(net(), scores=tmp_path / "s.json", ratio=0.5, scope="global", compensate="none").plan.sites


def test_scores_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    table = onnxprune.prune(net(), criterion="l1").scores()
    with pytest.raises(DataError, match=r"scores are of another model .its SHA-256 is [0-9a-f]{12}.*; measure this one"):
        onnxprune.prune(recurrent(), scores=table)
    with pytest.raises(DataError, match=r"have none of the 8 channels of group 'conv1'; take the options .*--freeze"):
        onnxprune.prune(net(), scores=onnxprune.prune(net(), criterion="l1", freeze=("conv1",)).scores())
    for text, complaint in (
        ("[]", "are no scores"),
        ("{}", "are no scores: 'schema'"),
        ('{"schema": "x"}', "have schema 'x', this version reads 'onnxprune.scores/1'"),
        (json.dumps(table.to_dict()).replace("]", ', "a"]', 1), "are no scores"),
        (json.dumps(table.to_dict()).replace("[", "[NaN, ", 1), "some are not lists of finite numbers"),
    ):
        path.write_text(text)
        with pytest.raises(DataError) as caught:
            ScoreTable.load(path)
        assert complaint in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="can't be read: No such file"):
        ScoreTable.load(tmp_path / "none.json")
    with pytest.raises(UsageError, match="nothing was scored: a plan was replayed"):
        onnxprune.prune(net(), plan=onnxprune.prune(net()).plan).scores()
    with pytest.raises(UsageError, match="there are no scores yet"):
        Sampler().score_table()


def test_a_group_s_own_name_counts_before_other_patterns() -> None:
    """Also where another pattern that comes first is the name of a layer that makes its channels."""
    coupling = analyse(load(residual()))
    assert [group.name for group in coupling.groups] == ["conv0"]
    assert chosen(coupling, {"conv1": 0.1, "*": 0.2, "conv0": 0.3}, "--ratios") == [0.3]
    assert chosen(coupling, {"conv1": 0.1, "*": 0.2}, "--ratios") == [0.1]


# command line ----------------------------------------------------------------------------------------------------------


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_command_line(tmp_path: Path) -> None:
    path, data, scores = tmp_path / "net.onnx", tmp_path / "data.npz", tmp_path / "s.json"
    onnx.save(net(), path)
    np.savez(data, **samples("net"))
    places = ("--analysis", "conv1=a1", "--analysis", "dense=after", "--samples", 6)
    done = cli(
        "prune", path, "-o", tmp_path / "a.onnx", "--scope", "tod", "--tod", 0.6, "--data", data, "--save-scores", scores, *places
    )
    assert done.exit_code == 0, done.output
    again = cli("prune", path, "-o", tmp_path / "b.onnx", "--scope", "tod", "--tod", 0.6, "--scores", scores)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    for wrong, code in (
        (("--criterion", "wasserstein"), 2),
        (("--scope", "tod", "--ratio", 0.5, "--data", data), 2),
        (("--analysis", "own", "--analysis", "conv1=a1"), 2),
        (("--plan", scores, "--save-scores", tmp_path / "t.json"), 2),
        (("--scores", tmp_path / "none.json"), 1),
    ):
        assert cli("prune", path, "-o", tmp_path / "c.onnx", *wrong).exit_code == code, wrong
    assert not (tmp_path / "c.onnx").exists()
