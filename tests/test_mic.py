"""MIC-Laboratory's Pruning Engine: its criteria against reference values, ratios by layer, zeros, index surgery, sweeps."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import graphs
import judge
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

import onnxprune
from onnxprune import OptionError, UsageError, remove_filters, remove_kernels, remove_normalization
from onnxprune.channels import analyse
from onnxprune.cli import app
from onnxprune.data import read
from onnxprune.graph import load
from onnxprune.importance import Clustered, Distance, Options, Scene, Taylor
from onnxprune.importance import criterion as find_criterion
from onnxprune.importance.kmeans import filters, shares

KNOWN = dict(np.load(Path(__file__).parent / "reference" / "mic.npz"))
LAYERS = ("conv1", "conv2", "dense")


def net(form: str = "") -> onnx.ModelProto:
    """The network of the reference values; input ``x``, output ``y``; ``form="add"``: biases in nodes of their own."""
    stored = {name.removeprefix("net."): values for name, values in KNOWN.items() if name.startswith("net.")}
    nodes: list[onnx.NodeProto] = []
    x = "x"
    for k in (1, 2):
        bias, pads = [f"conv{k}.bias"] if f"conv{k}.bias" in stored else [], [1 if k == 1 else 0] * 4
        if bias and form == "add":
            stored[bias[0]] = stored[bias[0]].reshape(-1, 1, 1)
            nodes.append(helper.make_node("Conv", [x, f"conv{k}.weight"], [f"p{k}"], f"conv{k}", pads=pads))
            nodes.append(helper.make_node("Add", [f"p{k}", *bias], [f"c{k}"]))
        else:
            nodes.append(helper.make_node("Conv", [x, f"conv{k}.weight", *bias], [f"c{k}"], f"conv{k}", pads=pads))
        parts = [f"norm{k}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        nodes.append(helper.make_node("BatchNormalization", [f"c{k}", *parts], [f"n{k}"], f"norm{k}"))
        nodes.append(helper.make_node("Relu", [f"n{k}"], [f"r{k}"]))
        x = f"r{k}"
    nodes.append(helper.make_node("Flatten", ["r2"], ["f"]))
    nodes.append(helper.make_node("Gemm", ["f", "dense.weight", "dense.bias"], ["d"], "dense", transB=1))
    nodes.append(helper.make_node("Relu", ["d"], ["rd"]))
    nodes.append(helper.make_node("Gemm", ["rd", "last.weight", "last.bias"], ["y"], "last", transB=1))
    ports = [helper.make_tensor_value_info(n, 1, ["n", *s]) for n, s in (("x", [2, 6, 6]), ("y", [3]))]
    tensors = [numpy_helper.from_array(values, name) for name, values in stored.items()]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


DATA = {"x": KNOWN["x"], "labels": KNOWN["labels"]}


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    onnx.save(net(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", **DATA)
    return lambda name: tmp_path / name


def scene(model: onnx.ModelProto) -> Scene:
    graph = load(model)
    coupling = analyse(graph)
    return Scene(coupling, np.zeros(len(coupling.components.root), np.bool_), data=read(DATA, graph.inputs))


def number(found: Scene, layer: str) -> int:
    return next(n for n, g in enumerate(found.coupling.groups) if g.name == layer)


def cli(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


# criteria -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["", "add"])
@pytest.mark.parametrize("batch", [64, 8])
def test_taylor_is_its_formula(form: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in several batches, of which the last is smaller: magnitudes are taken in each."""
    monkeypatch.setattr("onnxprune.importance.calibration.BATCH", batch)
    found, taylor = scene(net(form)), Taylor()
    for layer in LAYERS:
        assert np.allclose(taylor.rank(found, number(found, layer)), KNOWN[f"taylor.{layer}"], rtol=1e-4, atol=1e-6)
    labels = KNOWN["labels"][::-1].copy()  # a control: other labels, other scores
    other = Scene(found.coupling, np.zeros_like(found.heirs), data=read(DATA | {"labels": labels}, found.graph.inputs))
    assert not np.allclose(Taylor().rank(other, number(other, "conv1")), KNOWN["taylor.conv1"], rtol=1e-2)


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
@pytest.mark.parametrize("name", ["kmeans-l1", "kmeans-taylor", "kmeans-distance"])
def test_choices_are_those_of_the_reference(name: str, layer: str) -> None:
    found = scene(net())
    chosen = find_criterion(name, Options(clusters={"*": 4}))
    plain = np.argsort(KNOWN[f"taylor.{layer}" if name == "kmeans-taylor" else f"l1.{layer}"], kind="stable")
    differs = 0
    for count in range(1, 12):
        pairs = chosen.nominate(found, number(found, layer), count)
        leaves = sorted(pairs.leaves.tolist())
        wanted = KNOWN[f"{name}.{layer}"][:count] if name == "kmeans-distance" else KNOWN[f"{name}.{layer}"][count - 1, :count]
        assert leaves == sorted(wanted.tolist())
        differs += leaves != sorted(plain[:count].tolist())
    assert differs > 3


def test_one_cluster_is_the_plain_criterion() -> None:
    plans = [onnxprune.prune(net(), criterion=c, clusters=1, ratio=0.4, data=DATA).plan for c in ("l1", "kmeans-l1")]
    assert plans[0] == plans[1]
    other = onnxprune.prune(net(), criterion="kmeans-l1", clusters=4, ratio=0.4).plan
    assert other != plans[0]


@pytest.mark.parametrize("size", [1, 2, 10, 32])
def test_ratios_mean_what_they_say(size: int) -> None:
    """Also where the Pruning Engine gives up ("infinity loop"): so many leave, clusters of one and last filters at last."""
    rng = np.random.default_rng(size)
    for k in range(1, size + 1, 3):
        labels, order = rng.integers(0, k, size), rng.random(size)
        for count in range(size + 1):
            leaves = shares(labels, order, count)
            assert len(set(leaves.tolist())) == len(leaves) == count
            left = np.bincount(np.delete(labels, leaves), minlength=k)[np.unique(labels)]
            many = np.bincount(labels)[np.unique(labels)]
            if count <= (many - 1).sum():
                assert (left >= 1).all(), "each cluster keeps one as long as that is possible"
                assert (many - left >= np.minimum(many - 1, count * many // max(many[many > 1].sum(), 1)))[many > 1].all()


def test_all_producers_of_a_group_are_compared() -> None:
    model = graphs.build(["plain", "residual"], "pool", 0)
    found = scene_of(model)
    several = [n for n, g in enumerate(found.coupling.groups) if len(g.producers(found.weights)) > 1]
    assert several
    for n in several:
        group = found.group(n)
        rows = np.concatenate([rows for _, rows in filters(group, found.weights)], axis=1)
        tensors = {m.site.tensor for m in group.producers(found.weights)}
        assert len(tensors) > 1
        assert rows.shape == (group.size, sum(int(np.prod(found.weights.shape(t)[1:])) for t in tensors))
        assert Clustered(Options()).features(found, n).shape[0] == group.size


def scene_of(model: onnx.ModelProto) -> Scene:
    coupling = analyse(load(model))
    return Scene(coupling, np.zeros(len(coupling.components.root), np.bool_))


def test_the_scale_of_the_normalisation_counts() -> None:
    found = scene(net())
    n = number(found, "conv1")
    gap = Distance().features(found, n) - Clustered().features(found, n)
    assert np.allclose(gap, KNOWN["net.norm1.weight"][:, None], atol=1e-6)
    dense = number(found, "dense")
    assert np.array_equal(Distance().features(found, dense), Clustered().features(found, dense))


def test_alike_filters_are_no_trouble() -> None:
    model = net()
    weight = next(t for t in model.graph.initializer if t.name == "conv1.weight")
    weight.CopyFrom(numpy_helper.from_array(np.ones_like(KNOWN["net.conv1.weight"]), "conv1.weight"))
    for name in ("kmeans-l1", "kmeans-distance", "kmeans-taylor"):
        result = onnxprune.prune(model, criterion=name, ratio=0.5, data=DATA)
        assert all(row.kept == row.group.size - row.group.size // 2 for row in result.report.groups)


def test_taylor_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no gradient by its outputs goes by first-order differences; which order that gives, the exact one tells."""
    monkeypatch.setattr("onnxprune.importance.taylor.with_gradient", lambda calibration, wrt: [])
    exact = Taylor()
    found = scene(net())
    products = exact.rank(found, number(found, "dense"))
    monkeypatch.setattr("onnxprune.importance.reconstruction.with_gradient", lambda calibration, wrt: [])
    other = scene(net())
    differences = Taylor().rank(other, number(other, "dense"))
    assert np.allclose(products, differences, rtol=0.05, atol=5e-3)
    assert np.linalg.norm(products) == pytest.approx(1, abs=1e-6)
    assert any("central differences" in note for note in other.notes)
    assert not found.notes


def test_labels_may_be_the_model_s_own() -> None:
    result = onnxprune.prune(net(), criterion="taylor", ratio=0.3, data={"x": KNOWN["x"]})
    assert result.report.verification.passed
    assert any("predict" in note for note in result.report.notes)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"criterion": "taylor"}, UsageError, "criterion 'taylor' is measured on data; give --data FILE.npz (in Python data=)"),
        ({"criterion": "kmeans-taylor"}, UsageError, "criterion 'kmeans-taylor' is measured on data; give --data"),
        ({"clusters": 0}, OptionError, "clusters of '*' are 0; give a whole number, at least 1"),
        ({"clusters": {"conv1": 2.5}}, OptionError, "clusters of 'conv1' are 2.5; give a whole number, at least 1"),
        (
            {"criterion": "kmeans-l1", "clusters": {"conv9": 2}},
            UsageError,
            "--clusters: 'conv9' matches no channel group; `onnxprune inspect` lists them",
        ),
        ({"ratios": {"conv9": 0.2}}, UsageError, "--ratios: 'conv9' matches no channel group; `onnxprune inspect` lists them"),
        (
            {"ratios": {"conv1": 1}},
            OptionError,
            "ratio of 'conv1' is 1; it is the fraction of its channels to remove, 0 <= ratio < 1",
        ),
        (
            {"ratios": {"conv1": 0.2}, "scope": "global"},
            OptionError,
            "ratios say how much each group loses, and so does scope 'global'; give one of them",
        ),
        ({"ratios": "nowhere.json"}, UsageError, "--ratios 'nowhere.json' can't be read as JSON: [Errno 2] No such file"),
        (
            {"zero": True, "mixing": True},
            UsageError,
            "what mixing cuts changes the rest, zeros would do otherwise; give either --mixing or --zero",
        ),
    ],
)
def test_refused(options: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        onnxprune.prune(net(), **options)
    assert str(raised.value).startswith(text)


def test_a_table_is_json_of_numbers(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"conv1": "half"}')
    with pytest.raises(UsageError, match=r'must be JSON of numbers by pattern, \{"layer1\.\*": 0\.3, \.\.\.\}$'):
        onnxprune.prune(net(), ratios=tmp_path / "r.json")


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(UsageError) as raised:
        onnxprune.prune(net(), criterion="kmeans-l1")
    assert str(raised.value) == (
        "the k-means criteria need scikit-learn, which is not installed; pip install 'onnxprune[cluster]'"
    )
    assert onnxprune.prune(net(), criterion="l1").report.verification.passed


# ratios by layer, zeros -----------------------------------------------------------------------------------------------


def test_ratios_of_their_own(files: Callable[..., Path]) -> None:
    """By the group's name, by a tensor, by a pattern; the first that matches counts; --ratio is for the rest."""
    files("r.json").write_text(json.dumps({"conv1": 0.5, "dense.wei*": 0.25, "*": 0.1}))
    cli("prune", files("net.onnx"), "-o", files("o.onnx"), "--ratios", files("r.json"), "--report", files("r2.json"))
    kept = {g["name"]: g["kept"] for g in json.loads(files("r2.json").read_text())["groups"]}
    assert kept == {"conv1": 6, "conv2": 11, "dense": 8}
    result = onnxprune.prune(net(), ratio=0.5, ratios={"conv1": 0.0})
    assert {r.group.name: r.kept for r in result.report.groups} == {"conv1": 12, "conv2": 6, "dense": 5}


def test_ratios_of_their_own_in_steps(tmp_path: Path) -> None:
    result = onnxprune.prune(net(), ratio=0.5, step=0.25, ratios={"conv1": 0.25}, data=DATA, tape=tmp_path)
    moves = [step.moves for step in result.report.steps[1:]]
    assert moves == [{"conv1": 1, "conv2": 3, "dense": 2}, {"conv1": 2, "conv2": 3, "dense": 3}]


@pytest.mark.parametrize("options", [{}, {"criterion": "saliency"}, {"free": True}, {"step": 0.2}])
def test_zeros_instead_of_cuts(options: dict[str, object]) -> None:
    model = net()
    zeroed, cut = (onnxprune.prune(model, ratio=0.4, zero=zero, data=DATA, **options) for zero in (True, False))
    sizes = [{t.name: list(t.dims) for t in m.graph.initializer} for m in (model, zeroed.model)]
    assert sizes[0].items() <= sizes[1].items()
    assert zeroed.plan == cut.plan
    inputs = judge.feeds(model)
    assert judge.distance(judge.run(cut.model, inputs), judge.run(zeroed.model, inputs)) <= judge.RTOL
    assert judge.distance(judge.run(model, inputs), judge.run(zeroed.model, inputs)) > 0.01
    assert zeroed.report.after.macs == zeroed.report.before.macs > cut.report.after.macs
    assert zeroed.report.to_dict()["zeroed"] is True
    assert "channels are zero, and no tensor is smaller" in str(zeroed.report)
    assert zeroed.report.metrics["after"]["accuracy"] == cut.report.metrics["after"]["accuracy"]
    if not options:
        assert judge.distance(judge.run(judge.masked(model, cut.plan.to_dict()), inputs), judge.run(zeroed.model, inputs)) == 0


# index surgery --------------------------------------------------------------------------------------------------------


def by_hand(model: onnx.ModelProto, conv1: Iterable[int], conv2: Iterable[int], dense: Iterable[int]) -> onnx.ModelProto:
    """Cut a net layer by layer, each with what reads it."""
    for k, indices in ((1, conv1), (2, conv2)):
        model = remove_normalization(remove_filters(model, f"conv{k}", indices), f"norm{k}", indices)
        if k == 1:
            model = remove_kernels(model, "conv2.weight", indices)
    places = [16 * c + p for c in conv2 for p in range(16)]
    model = remove_kernels(model, "dense", places)
    return remove_kernels(remove_filters(model, "dense", dense), "last", dense)


@pytest.mark.parametrize("form", ["", "add"])
def test_layers_cut_by_hand_are_what_prune_makes(form: str) -> None:
    result = onnxprune.prune(net(form), ratio=0.5)
    gone = {
        site.tensor: sorted(set(range(site.of)) - set(site.keep)) for site in result.plan.sites if site.axis == 0 and site.of > 3
    }
    made = by_hand(net(form), gone["conv1.weight"], gone["conv2.weight"], gone["dense.weight"])
    onnx.checker.check_model(made, full_check=True)
    stored = [{t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (made, result.model)]
    assert stored[0].keys() == stored[1].keys()
    assert all(np.array_equal(values, stored[1][name]) for name, values in stored[0].items())
    other = by_hand(net(form), [0, 1], [2], [3])
    inputs = judge.feeds(net())
    assert judge.distance(judge.run(made, inputs), judge.run(other, inputs)) > 0.01


def groupwise(group: int, cin: int, cout: int, op: str = "Conv") -> onnx.ModelProto:
    """A convolution in groups between two others."""
    rng = np.random.default_rng(0)
    shape = (cout, cin // group, 3, 3) if op == "Conv" else (cin, cout // group, 3, 3)
    sizes = {"a": (cin, 2, 1, 1), "w": shape, "b": (cout,), "z": (4, cout, 1, 1)}
    stored = [numpy_helper.from_array(rng.standard_normal(size).astype(np.float32), name) for name, size in sizes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], "first"),
        helper.make_node(op, ["h", "w", "b"], ["g"], "middle", group=group, pads=[1] * 4),
        helper.make_node("Conv", ["g", "z"], ["y"], "end"),
    ]
    ports = [helper.make_tensor_value_info(n, 1, ["n", c, 5, 5]) for n, c in (("x", 2), ("y", 4))]
    graph = helper.make_graph(nodes, "groups", ports[:1], ports[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def zeroed(model: onnx.ModelProto, **gone: tuple[int, list[int]]) -> onnx.ModelProto:
    sizes = {t.name: t.dims for t in model.graph.initializer}
    sites = [
        {"tensor": n, "axis": axis, "of": sizes[n][axis], "keep": [i for i in range(sizes[n][axis]) if i not in indices]}
        for n, (axis, indices) in gone.items()
    ]
    return judge.masked(model, {"sites": sites})


@pytest.mark.parametrize(
    ("group", "cin", "cout", "op", "filters", "kernels", "left"),
    [
        (8, 8, 8, "Conv", [1, 6], [1, 6], 6),  # depthwise
        (4, 8, 16, "Conv", [4, 5, 6, 7], [2, 3], 3),  # a whole group
        (2, 8, 8, "Conv", [1, 5], [0, 3, 4, 7], 2),  # the same of every group
        (2, 8, 8, "ConvTranspose", [1, 5], [0, 3, 4, 7], 2),
        (1, 8, 6, "ConvTranspose", [1, 5], [0, 3], 1),
    ],
)
def test_convolutions_in_groups(
    group: int, cin: int, cout: int, op: str, filters: list[int], kernels: list[int], left: int
) -> None:
    model = groupwise(group, cin, cout, op)
    whole = left < group  # groups leave as they are, with inputs and outputs
    made = remove_kernels(remove_filters(model, "middle", filters), "end", filters)
    if whole:
        made = remove_filters(made, "first", kernels)
    inputs = judge.feeds(model)
    masked = zeroed(model, z=(1, filters))
    assert judge.distance(judge.run(masked, inputs), judge.run(made, inputs)) <= judge.RTOL
    assert judge.distance(judge.run(model, inputs), judge.run(made, inputs)) > 0.01
    node = next(n for n in made.graph.node if n.name == "middle")
    assert {a.name: a.i for a in node.attribute}["group"] == left
    if not whole:
        narrow = remove_kernels(remove_filters(model, "first", kernels), "middle", kernels)
        assert judge.distance(judge.run(zeroed(model, a=(0, kernels)), inputs), judge.run(narrow, inputs)) <= judge.RTOL


def test_recurrent_units() -> None:
    """All gates' rows, the states' columns and ``hidden_size``."""
    rng = np.random.default_rng(0)
    sizes = {"W": (1, 24, 4), "R": (1, 24, 6), "B": (1, 48), "v": (6, 3)}
    stored = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in sizes.items()]
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "B"], ["", "h"], "lstm", hidden_size=6),
        helper.make_node("MatMul", ["h", "v"], ["y"], "end"),
    ]
    ports = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [5, 2, 4]), ("y", [1, 2, 3]))]
    graph = helper.make_graph(nodes, "recurrent", ports[:1], ports[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = remove_kernels(remove_filters(model, "lstm", [1, 4]), "end", [1, 4])
    inputs, read = judge.feeds(model), [1, 4]
    reference = zeroed(model, R=(2, read), v=(0, read))
    assert judge.distance(judge.run(reference, inputs), judge.run(made, inputs)) <= judge.RTOL
    assert next(a.i for a in made.graph.node[0].attribute if a.name == "hidden_size") == 4


def test_what_others_read_they_keep() -> None:
    model = groupwise(1, 8, 8)
    model.graph.node.append(helper.make_node("Conv", ["h", "w"], ["y2"], "twin", pads=[1] * 4))
    model.graph.output.append(helper.make_tensor_value_info("y2", 1, ["n", 8, 5, 5]))
    made = remove_kernels(remove_filters(model, "middle", [0]), "end", [0])
    inputs = judge.feeds(model)
    assert judge.run(made, inputs)[1].tolist() == judge.run(model, inputs)[1].tolist()
    assert judge.distance(judge.run(zeroed(model, z=(1, [0])), inputs)[:1], judge.run(made, inputs)[:1]) <= judge.RTOL
    with pytest.raises(UsageError, match=r"^layer 'w' means several nodes, 'middle', 'twin'; name one of them$"):
        remove_filters(model, "w", [0])


@pytest.mark.parametrize(
    ("call", "layer", "indices", "error", "text"),
    [
        (
            remove_filters,
            "conv9",
            [0],
            UsageError,
            "layer 'conv9' does not exist: no node and no stored weight has that name; see `onnxprune inspect`",
        ),
        (remove_filters, "conv1", [12], OptionError, "layer 'conv1' (Conv): filters go from 0 to 11; there is no 12"),
        (remove_kernels, "conv1", [-3], OptionError, "layer 'conv1' (Conv): kernels go from 0 to 1; there is no -3"),
        (remove_filters, "dense", range(10), OptionError, "layer 'dense' (Gemm): filters: all 10 would leave; keep at least one"),
        (
            remove_filters,
            "norm1",
            [0],
            UsageError,
            "layer 'norm1' (BatchNormalization) sums nothing, so it has no filters; take remove_normalization",
        ),
        (
            remove_kernels,
            "norm1",
            [0],
            UsageError,
            "layer 'norm1' (BatchNormalization) sums nothing, so it has no kernels; take remove_normalization",
        ),
        (
            remove_normalization,
            "conv1",
            [0],
            UsageError,
            "layer 'conv1' (Conv) is no normalisation; take remove_filters or remove_kernels",
        ),
        (
            remove_filters,
            "Relu -> r1",
            [0],
            UsageError,
            "layer 'Relu -> r1' (Relu) has no stored weights with channels along an axis; name one that has",
        ),
    ],
)
def test_index_surgery_refuses(
    call: Callable[..., onnx.ModelProto], layer: str, indices: Iterable[int], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as raised:
        call(net(), layer, indices)
    assert str(raised.value) == text


def test_groups_stay_of_one_size() -> None:
    with pytest.raises(OptionError) as raised:
        remove_filters(groupwise(2, 8, 8), "middle", [0])
    assert str(raised.value) == "layer 'middle' (Conv): its 2 groups would differ; name whole groups, or the same ones of each"


def test_nothing_to_remove_changes_nothing() -> None:
    model = net()
    assert [*remove_filters(model, "conv1", []).graph.initializer] == [*model.graph.initializer]
    assert model == net()


# sweeps ---------------------------------------------------------------------------------------------------------------


def test_layers_are_swept_alone() -> None:
    shares = (0.0, 0.25, 0.5)
    swept = onnxprune.sweep(net(), DATA, ratios=shares)
    assert [(r.group, r.ratio) for r in swept.rows] == [(g, r) for g in ("conv1", "conv2", "dense") for r in shares]
    evaluator = onnxprune.Evaluator(())
    for row in swept.rows:
        cut = onnxprune.prune(net(), ratio=0.0, ratios={row.group: row.ratio})
        found = evaluator.evaluate(cut.model, DATA)
        assert (row.accuracy, row.loss) == (pytest.approx(found.accuracy), pytest.approx(found.loss, rel=1e-5))
        assert (row.macs, row.parameters) == (cut.report.after.macs, cut.report.after.parameters)
        assert row.channels == sum(r.group.size - r.kept for r in cut.report.groups)
    assert len({row.macs for row in swept.rows}) > 4


def test_scores_and_ratios_are_their_formulas() -> None:
    swept = onnxprune.sweep(net(), DATA, ratios=(0.2, 0.4, 0.6))
    whole, costs = swept.original, {}
    for name, rows in swept.groups.items():
        line = [whole, *rows]
        work = np.mean([abs(b.macs - a.macs) for a, b in pairwise(line)]) / whole.macs
        lost = np.mean([abs(b.accuracy - a.accuracy) for a, b in pairwise(line)])
        assert swept.scores[name] == (pytest.approx(work / lost) if lost else None)
        costs[name] = lost / work
    low, high = min(costs.values()), max(costs.values())
    assert high > low
    assert swept.ratios == {n: pytest.approx(0.6 * (1 - (x - low) / (high - low)), abs=1e-4) for n, x in costs.items()}
    assert sorted(swept.ratios.values())[0] == 0
    assert sorted(swept.ratios.values())[-1] == 0.6


def test_all_layers_are_swept_together() -> None:
    swept = onnxprune.sweep(net(), DATA, mode="full", ratios=(0.5, 0.25), criterion="kmeans-l1", clusters=4)
    assert [r.ratio for r in swept.rows] == [0.25, 0.5]
    for row in swept.rows:
        cut = onnxprune.prune(net(), ratio=row.ratio, criterion="kmeans-l1", clusters=4, data=DATA)
        assert row.accuracy == cut.report.metrics["after"]["accuracy"]
        assert row.macs == cut.report.after.macs


def test_numbers_of_clusters_are_searched(files: Callable[..., Path]) -> None:
    model, data, out = files("net.onnx"), files("data.npz"), files("k.json")
    arguments = ["sweep", model, "--data", data, "--mode", "clusters", "--criterion", "kmeans-l1", "--ratios", "0.4"]
    cli(*arguments, "--save-clusters", out, "--report", files("s.json"))
    saved, rows = json.loads(out.read_text()), json.loads(files("s.json").read_text())["rows"]
    assert {r["group"]: r["clusters"] for r in rows} == {"conv1": 5, "conv2": 5, "dense": 4}
    for name, best in saved.items():
        mine = [r for r in rows if r["group"] == name]
        assert [r["clusters"] for r in mine] == list(range(1, len(mine) + 1))
        chosen = next(r for r in mine if r["clusters"] == best)
        assert chosen["accuracy"] == max(r["accuracy"] for r in mine)
        alone = onnxprune.prune(
            model, ratio=0.0, ratios={name: 0.4}, criterion="kmeans-l1", clusters={name: best}, data=str(data)
        )
        assert alone.report.metrics["after"]["accuracy"] == chosen["accuracy"]
    assert len({r["accuracy"] for r in rows}) > 2
    cli("prune", model, "-o", files("o.onnx"), "--criterion", "kmeans-l1", "--clusters", out)


def test_a_sweep_measures_its_criterion_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    measure = Taylor.measure
    monkeypatch.setattr(Taylor, "measure", lambda self, scene: calls.append(1) or measure(self, scene))
    onnxprune.sweep(net(), DATA, criterion="taylor", ratios=(0.1, 0.3, 0.5))
    onnxprune.sweep(net(), DATA, criterion="kmeans-taylor", mode="clusters")
    assert len(calls) == 2


def test_sweeps_are_written(files: Callable[..., Path]) -> None:
    model, data = files("net.onnx"), files("data.npz")
    printed = cli(
        "sweep", model, "--data", data, "--ratios", "0.2,0.5", "--report", files("s.csv"), "--save-ratios", files("r.json")
    )
    rows = list(csv.DictReader(files("s.csv").read_text().splitlines()))
    assert [(r["group"], r["ratio"]) for r in rows][:3] == [("", "0.0"), ("conv1", "0.2"), ("conv1", "0.5")]
    assert "MACs / accuracy" in printed
    cli("prune", model, "-o", files("o.onnx"), "--ratios", files("r.json"))
    for mode, curves in (("layerwise", ["conv1", "dense"]), ("full", ["accuracy", "MACs", "parameters"])):
        cli("sweep", model, "--data", data, "--mode", mode, "--ratios", "0.2,0.5", "--picture", files(f"{mode}.svg"))
        assert all(name in files(f"{mode}.svg").read_text() for name in curves)


def test_a_sweep_without_labels_says_so() -> None:
    swept = onnxprune.sweep(net(), {"x": KNOWN["x"]}, mode="full", ratios=(0.0, 0.5))
    assert swept.original.accuracy == 1
    assert swept.rows[-1].accuracy < 1
    assert "the classes that the model itself predicts stand in for them" in str(swept)


def test_nothing_can_be_cut() -> None:
    swept = onnxprune.sweep(net(), DATA, freeze=("*",))
    assert swept.rows == ()
    assert swept.ratios == {}
    assert str(swept)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "wide"}, "mode is 'wide'; choose layerwise, full, clusters"),
        ({"mode": "clusters"}, "clusters are searched for where a criterion has them; choose one of kmeans-*"),
        ({"ratios": (0.5, 1.5)}, "ratio is 1.5; it is the fraction of channels to remove, 0 <= ratio < 1"),
        ({"samples": 0}, "samples are 0; give how many to take, at least 1"),
    ],
)
def test_a_sweep_refuses(options: dict[str, object], text: str) -> None:
    with pytest.raises(OptionError) as raised:
        onnxprune.sweep(net(), DATA, **options)
    assert str(raised.value) == text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--ratios", "0.1,half"], "'0.1,half' are not numbers with commas between them"),
        (["--mode", "full", "--save-ratios", "r.json"], "there is something to save only in mode layerwise"),
        (["--save-clusters", "r.json"], "there is something to save only in mode clusters"),
    ],
)
def test_a_sweep_is_misspelt(options: list[str], text: str, files: Callable[..., Path]) -> None:
    result = CliRunner().invoke(app, ["sweep", str(files("net.onnx")), "--data", str(files("data.npz")), *options])
    assert result.exit_code == 2
    assert text in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("name", ["kmeans-l1", "kmeans-distance"])
def test_groups_that_no_layer_makes(name: str) -> None:
    """Rows of a table that is looked up have no filters to be compared by: the criterion's order decides."""
    coupling = analyse(load(Path(__file__).parent / "exported" / "deberta.ts.onnx"))
    scene = Scene(coupling, np.zeros(len(coupling.components.root), np.bool_))
    bare = [n for n, group in enumerate(coupling.groups) if not any(member.producer for member in group.members)]
    assert bare
    for number in bare:
        pairs = find_criterion(name, Options()).nominate(scene, number, 3)
        assert len(set(pairs.leaves.tolist())) == 3
