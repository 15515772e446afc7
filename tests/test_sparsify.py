"""Unstructured pruning: masks as documented, restored byte for byte, reported honestly."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import onnxprune
from onnxprune import lazy, weights
from onnxprune import masks as module
from onnxprune.cli import app
from onnxprune.errors import ModelError, OnnxpruneError, OptionError, OutputError, SidecarError, UsageError
from onnxprune.masks import Choice, Layout, each_mask, masks, threshold
from onnxprune.runtime import Session
from onnxprune.sparsify import sidecar_path
from onnxprune.weights import Array


def filters(seed: int = 0) -> dict[str, Array]:
    """A 3x3 convolution, a 1x1 one, a depthwise one."""
    rng = np.random.default_rng(seed)
    shapes = {"three": (8, 4, 3, 3), "one": (16, 8, 1, 1), "depthwise": (6, 1, 3, 3)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def unit_sums(weights: dict[str, Array], granularity: str) -> dict[str, Array]:
    """The documented scores, written down once more: with loops, in float64."""
    axes = {"element": (), "kernel": (2, 3), "filter": (1, 2, 3)}[granularity]
    return {name: np.abs(w.astype(np.float64)).sum(axis=axes) if axes else np.abs(w) for name, w in weights.items()}


@pytest.mark.parametrize("granularity", ["element", "kernel", "filter"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.29, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_threshold_is_as_documented(granularity: str, share: float, scope: str) -> None:
    weights = filters()
    found = masks(weights, share, granularity=granularity, scope=scope)
    sums = unit_sums(weights, granularity)

    def limit(scores: Array) -> float:
        rank = int(share * scores.size)
        return math.inf if rank >= scores.size else float(np.sort(scores, axis=None)[rank])

    everything = np.concatenate([s.ravel() for s in sums.values()])
    for name, w in weights.items():
        low = limit(everything if scope == "global" else sums[name])
        for index in np.ndindex(w.shape):
            unit = sums[name][index[: sums[name].ndim]]
            assert found[name][index] == (unit >= low), (name, index)


@pytest.mark.parametrize("granularity", ["kernel", "element"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7])
def test_masks_are_those_of_dwp(granularity: str, share: float) -> None:
    """Stored values, computed with torch by ``tests/reference/dwp.py``."""
    with np.load(Path(__file__).parent / "reference" / "dwp.npz") as archive:
        weights = {name.split("/")[1]: archive[name] for name in archive.files if name.startswith("weight/")}
        expected = {name: np.unpackbits(archive[f"{granularity}/{share}/{name}"]) for name in weights}
    found = masks(weights, share, granularity=granularity)
    assert all(np.array_equal(mask.ravel(), expected[name][: mask.size]) for name, mask in found.items())
    other = masks(weights, share, granularity=granularity, normalise="mean")
    same = all(np.array_equal(mask.ravel(), expected[name][: mask.size]) for name, mask in other.items())
    assert same == (granularity == "element")


def test_everything_can_leave() -> None:
    """DWP's own threshold is out of range for p = 1."""
    assert not any(mask.any() for mask in masks(filters(), 1.0).values())


def test_small_kernels_are_not_favoured_when_means_are_compared() -> None:
    weights = filters()
    gone = {
        n: {name: 1 - m.mean() for name, m in masks(weights, 0.3, granularity="kernel", normalise=n).items()} for n in Choices
    }
    assert gone["none"]["three"] == 0 < gone["none"]["one"]
    assert gone["mean"]["three"] > 0


Choices = ("none", "mean")


def test_bernoulli_takes_its_share_and_is_seeded() -> None:
    weights = {"w": np.random.default_rng(1).standard_normal((64, 64, 3, 3)).astype(np.float32)}
    all_of_them = ~masks(weights, 0.5)["w"]
    found = ~masks(weights, 0.5, bernoulli=0.3, rng=5)["w"]
    assert not (found & ~all_of_them).any()
    count, n = int(found.sum()), int(all_of_them.sum())
    assert abs(count - 0.3 * n) < 5 * math.sqrt(n * 0.3 * 0.7)
    assert np.array_equal(found, ~masks(weights, 0.5, bernoulli=0.3, rng=5)["w"])
    assert not np.array_equal(found, ~masks(weights, 0.5, bernoulli=0.3, rng=6)["w"])
    rng = np.random.default_rng(5)
    one, two = (masks(weights, 0.5, bernoulli=0.3, rng=rng)["w"] for _ in range(2))
    assert np.array_equal(~one, found)
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("granularity", ["kernel", "filter"])
def test_bernoulli_takes_whole_units(granularity: str) -> None:
    mask = masks(filters(), 0.6, granularity=granularity, scope="layer", bernoulli=0.5)["three"]
    unit = mask.reshape(32, 9) if granularity == "kernel" else mask.reshape(8, 36)
    assert (unit.all(axis=1) | ~unit.any(axis=1)).all()
    assert 0 < unit.all(axis=1).sum() < len(unit)


def test_layouts_say_what_a_filter_is() -> None:
    """A matrix product's second factor has its outputs last; so has a transposed convolution, within each group."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((5, 7)).astype(np.float32)
    mask = masks({"w": dense}, 0.5, granularity="filter", layouts={"w": Layout((5, 7), "io")})["w"]
    assert np.array_equal(mask, np.broadcast_to(np.abs(dense).sum(0) >= np.sort(np.abs(dense).sum(0))[3], (5, 7)))
    grouped = rng.standard_normal((6, 4, 3, 3)).astype(np.float32)  # (groups 2, inputs 3), outputs 4
    mask = masks({"w": grouped}, 0.5, granularity="filter", layouts={"w": Layout((2, 3, 4, 3, 3), "oio**")})["w"]
    sums = np.abs(grouped.reshape(2, 3, 4, 9)).sum(axis=(1, 3), dtype=np.float64)
    assert np.array_equal(
        mask.reshape(2, 3, 4, 9), np.broadcast_to((sums >= np.sort(sums, axis=None)[4])[:, None, :, None], (2, 3, 4, 9))
    )


def test_patterns() -> None:
    weights = {"conv": filters()["three"], "dense": np.random.default_rng(2).standard_normal((10, 3)).astype(np.float32)}
    layouts = {"conv": Layout.of((8, 4, 3, 3)), "dense": Layout((10, 3), "io")}
    found = dict(each_mask(weights, Choice(pattern="2:4"), np.random.default_rng(0), layouts))
    assert (found["conv"].sum(axis=1) == 2).all()
    kept, lost = (np.where(m, np.abs(weights["conv"]), fill) for m, fill in ((found["conv"], np.inf), (~found["conv"], 0)))
    assert (kept.min(axis=1) >= lost.max(axis=1)).all()
    assert (found["dense"][:8].reshape(2, 4, 3).sum(axis=1) == 2).all()
    assert found["dense"][8:].all()


def test_equal_scores_of_a_pattern_keep_the_first() -> None:
    found = dict(each_mask({"w": np.ones((1, 4))}, Choice(pattern="1:4"), np.random.default_rng(0), {"w": Layout.of((1, 4))}))
    assert found["w"].tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99999, 1.0])
def test_threshold_of_more_than_is_held(monkeypatch: pytest.MonkeyPatch, dtype: type, share: float) -> None:
    monkeypatch.setattr(module, "_COLLECTED", 3)
    rng = np.random.default_rng(0)
    parts = [np.abs(rng.standard_normal(500)).astype(dtype) for _ in range(3)] + [np.zeros(200, dtype), np.ones(300, dtype)]

    def each() -> Iterator[Array]:
        return iter(parts)

    everything = np.sort(np.concatenate(parts))
    rank = int(share * len(everything))
    assert threshold(each, share) == (everything[rank] if rank < len(everything) else math.inf)


OPTIONS = {
    "sparsity is 1.1; it is the share of the weights to zero, 0 <= sparsity <= 1": {"sparsity": 1.1},
    "sparsity is nan; it is the share of the weights to zero, 0 <= sparsity <= 1": {"sparsity": math.nan},
    "bernoulli is -0.1; it is a probability, 0 <= bernoulli <= 1": {"bernoulli": -0.1},
    "granularity is 'row'; choose element or kernel or filter": {"granularity": "row"},
    "scope is 'uniform'; choose global or layer": {"scope": "uniform"},
    "normalise is 'max'; choose none or mean or layer": {"normalise": "max"},
    "pattern is '2-4'; give two numbers N:M, as in 2:4": {"pattern": "2-4"},
    "pattern is '4:4', but N of M elements stay, 0 < N < M, as in 2:4": {"pattern": "4:4"},
    "pattern 2:4 is about elements; it can't be had by kernel": {"pattern": "2:4", "granularity": "kernel"},
}


@pytest.mark.parametrize("text", OPTIONS)
def test_options(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Choice(**OPTIONS[text])
    assert str(caught.value) == text


# models ---------------------------------------------------------------------------------------------------------------------
def net() -> ModelProto:
    """Conv, BatchNormalization, Relu, depthwise and 1x1 Conv, then MatMul through a Transpose, Add; ten outputs."""
    rng = np.random.default_rng(0)
    build = graphs.Builder(0)
    x = build.op(
        "Relu",
        [build.op("BatchNormalization", [build.conv("image", 3, 8, 3), *(build.stored(8, positive=True) for _ in range(4))])],
    )
    x = build.op("Relu", [build.conv(build.conv(x, 8, 8, 3, group=8), 8, 16)])
    x = build.op("Flatten", [build.op("GlobalAveragePool", [x])])
    turned = build.op("Transpose", [build.stored(10, 16)], perm=[1, 0])
    x = build.op("Add", [build.op("MatMul", [x, turned]), build.value(rng.standard_normal(10))])
    ports = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", 10])]
    graph = helper.make_graph(build.nodes, "net", ports, outputs, build.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def stored(model: ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def written(folder: Path, model: ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def samples(count: int = 40) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    return {"image": rng.standard_normal((count, 3, 8, 8)).astype(np.float32), "labels": rng.integers(0, 10, count)}


def test_only_filters_change() -> None:
    model = net()
    result = onnxprune.sparsify(model, 0.5)
    before, after = stored(model), stored(result.model)
    assert [row.shape for row in result.report.layers] == [(8, 3, 3, 3), (8, 1, 3, 3), (16, 8, 1, 1), (10, 16)]
    looked = {row.tensor for row in result.report.layers}
    everything = np.concatenate([np.abs(before[n]).ravel() for n in looked])
    limit = np.sort(everything)[len(everything) // 2]
    for name, values in before.items():
        wanted = np.where(np.abs(values) < limit, 0, values) if name in looked else values
        assert np.array_equal(after[name], wanted), name
    same = onnxprune.sparsify(model, 0.0).model
    assert same.SerializeToString() == model.SerializeToString()


def test_report_counts() -> None:
    model = net()
    report = onnxprune.sparsify(model, 0.5, data=samples()).report
    stored_zeros = sum(int((values == 0).sum()) for values in stored(onnxprune.sparsify(model, 0.5).model).values())
    assert report.nonzeros == (report.parameters, report.parameters - stored_zeros)
    assert report.weights == sum(int(np.prod(row.shape)) for row in report.layers)
    assert report.sparsity == (0.0, pytest.approx(0.5, abs=1e-3))
    assert report.bytes[0] == report.bytes[1]
    assert report.gzip is not None
    assert report.gzip[1] < report.gzip[0]
    assert set(report.metrics) == {"accuracy", "loss", "agreement", "relative_error"}
    shown = report.to_dict()
    assert json.loads(json.dumps(shown)) == shown
    assert "zeros save no time" in str(report)
    assert "not zero" in str(report)


def test_the_transposed_factor_s_filters_are_its_outputs() -> None:
    """What MatMul reads is a Transpose of what is stored, (10, 16): its filters are the rows."""
    model = net()
    last = stored(onnxprune.sparsify(model, 0.5, granularity="filter", scope="layer", layers="dense").model)
    changed = [n for n, values in stored(model).items() if not np.array_equal(values, last[n])]
    assert [last[n].shape for n in changed] == [(10, 16)]
    assert ((last[changed[0]] == 0).all(axis=1)).sum() == 5


@pytest.mark.parametrize("layers", ["conv", "dense"])
def test_kinds_of_layers(layers: str) -> None:
    report = onnxprune.sparsify(net(), 0.5, layers=layers).report
    assert [len(row.shape) for row in report.layers] == ([4, 4, 4] if layers == "conv" else [2])
    assert f"only {layers} layers were asked for" in str(report)


def test_freeze() -> None:
    model = net()
    name = model.graph.node[0].name
    report = onnxprune.sparsify(model, 0.9, freeze=(name,)).report
    assert [row.shape[0] for row in report.layers] == [8, 16, 10]
    assert report.left[0].reason == f"frozen by --freeze {name}"
    with pytest.raises(UsageError) as caught:
        onnxprune.sparsify(model, 0.5, freeze=("nothing",))
    assert str(caught.value) == "--freeze 'nothing' matches no node and no tensor; `onnxprune inspect` lists the names"


@pytest.mark.parametrize("criterion", ["taylor", "gradient"])
def test_gradients_decide(criterion: str) -> None:
    """Of the last matrix the derivative of the cross-entropy is (p - t)' x / n, x being what is multiplied with it."""
    model, data = net(), samples(16)
    result = onnxprune.sparsify(model, 0.5, criterion=criterion, data=data, layers="dense", scope="layer")
    (row,) = result.report.layers
    held = stored(model)[row.tensor]
    features = next(node.output[0] for node in model.graph.node if node.op_type == "Flatten")
    tapped = net()
    tapped.graph.output[0].CopyFrom(helper.make_tensor_value_info(features, TensorProto.FLOAT, ["n", 16]))
    x, logits = ReferenceModel(tapped)(data["image"]), ReferenceModel(model)(data["image"])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    slope = (p - np.eye(10)[data["labels"]]).T @ x / 16
    scores = np.abs(slope * held if criterion == "taylor" else slope)
    gone = stored(result.model)[row.tensor] == 0
    assert gone.sum() == 80
    assert scores[gone].max() < scores[~gone].min()
    assert np.abs(held)[gone].max() > np.abs(held)[~gone].min()  # magnitude would have chosen others


class ReferenceModel:
    """A model in onnxruntime, as a function of its one input."""

    def __init__(self, model: ModelProto) -> None:
        self._session = Session(model)

    def __call__(self, image: Array) -> Array:
        return self._session.run({"image": image})[0]


@pytest.mark.parametrize("criterion", ["activation", "relative"])
def test_activations_decide(criterion: str) -> None:
    """Written down once more, for a grouped convolution: (groups 2, outputs 3), inputs 2."""
    rng = np.random.default_rng(0)
    held, image = rng.standard_normal((6, 2, 3, 3)).astype(np.float32), rng.standard_normal((20, 4, 5, 5)).astype(np.float32)
    image *= np.array([1, 10, 0.1, 3], np.float32)[:, None, None]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", c, 5, 5]) for n, c in (("image", 4), ("y", 6))]
    node = helper.make_node("Conv", ["image", "w"], ["y"], group=2, pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "net", ports[:1], ports[1:], [numpy_helper.from_array(held, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = onnxprune.sparsify(model, 0.5, criterion=criterion, data={"image": image})
    size = np.sqrt(np.square(image, dtype=np.float64).mean(axis=(0, 2, 3))).reshape(2, 1, 2, 1, 1)
    scores = np.abs(held.astype(np.float64)).reshape(2, 3, 2, 3, 3)
    if criterion == "relative":
        rows, columns = scores.sum(axis=(2, 3, 4), keepdims=True), scores.sum(axis=(1, 3, 4), keepdims=True)
        scores = scores / rows + scores / columns
    scores = (scores * size).reshape(held.shape)
    assert np.array_equal(stored(result.model)["w"] == 0, scores < np.sort(scores, axis=None)[54])
    assert not np.array_equal(stored(onnxprune.sparsify(model, 0.5).model)["w"] == 0, stored(result.model)["w"] == 0)


def test_scale_of_a_layer_does_not_matter() -> None:
    weights, scaled = filters(), filters()
    scaled["three"] = scaled["three"] * 100
    same = [masks(w, 0.5, normalise="layer") for w in (weights, scaled)]
    assert all(np.array_equal(same[0][name], same[1][name]) for name in weights)
    assert not np.array_equal(masks(weights, 0.5)["three"], masks(scaled, 0.5)["three"])


def test_recurrent_state_can_t_be_read() -> None:
    result = onnxprune.sparsify(lstm(), 0.5, criterion="activation", data={"image": np.ones((4, 4, 5), np.float32)})
    assert [row.tensor for row in result.report.layers] == ["w"]
    assert (
        result.report.left[0].reason == "multiplied with what can't be read from outside, which activation needs; take magnitude"
    )


def test_labels_may_be_missing() -> None:
    report = onnxprune.sparsify(net(), 0.5, criterion="taylor", data={"image": samples()["image"]}).report
    assert "the data have no labels: the loss is that of the classes which the model itself predicts" in report.warnings


# and back -----------------------------------------------------------------------------------------------------------------
CHOICES: dict[str, dict[str, Any]] = {
    "element": {"sparsity": 0.5},
    "kernel": {"sparsity": 0.5, "granularity": "kernel", "bernoulli": 0.7},
    "filter": {"sparsity": 0.5, "granularity": "filter", "scope": "layer"},
    "pattern": {"pattern": "2:4"},
    "all": {"sparsity": 1.0},
}


@pytest.mark.parametrize("store", ["dense", "sparse", "compressed"])
@pytest.mark.parametrize("choice", CHOICES)
def test_restored_byte_for_byte(tmp_path: Path, choice: str, store: str) -> None:
    source, out, back = written(tmp_path, net()), tmp_path / "sparse.onnx", tmp_path / "back.onnx"
    result = onnxprune.sparsify(source, **CHOICES[choice], store=store)
    result.save(out)
    assert out.read_bytes() != source.read_bytes()
    restored = onnxprune.restore(out)
    restored.save(back)
    assert restored.identical
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("store", ["dense", "sparse", "compressed"])
def test_restored_after_several_times(tmp_path: Path, store: str) -> None:
    """DWP restores what the last call found."""
    source, back = written(tmp_path, net()), tmp_path / "back.onnx"
    last = source
    for k, share in enumerate((0.2, 0.6, 0.9)):
        result = onnxprune.sparsify(last, share, granularity="kernel" if k == 1 else "element", store=store)
        last = tmp_path / f"sparse{k}.onnx"
        result.save(last)
    onnxprune.restore(last).save(back)
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("field", ["float_data", "int32_data"])
def test_numbers_go_back_to_their_field(tmp_path: Path, field: str) -> None:
    """Old exporters write lists of numbers instead of bytes."""
    model = net()
    dtype = np.float32 if field == "float_data" else np.float16
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(dtype)
        if values.dtype.kind == "f":
            tensor.CopyFrom(helper.make_tensor(tensor.name, kind, values.shape, values.ravel()))
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.elem_type = kind
    source = written(tmp_path, model)
    assert len(getattr(model.graph.initializer[0], field))
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    onnxprune.sparsify(source, 0.3).save(once)
    onnxprune.sparsify(once, 0.6).save(twice)
    assert onnxprune.restore(twice).identical


def test_without_its_sidecar_a_sparse_model_goes_back_to_itself(tmp_path: Path) -> None:
    source, once, twice = written(tmp_path, net()), tmp_path / "once.onnx", tmp_path / "twice.onnx"
    onnxprune.sparsify(source, 0.3).save(once, sidecar=False)
    onnxprune.sparsify(once, 0.6).save(twice)
    restored = onnxprune.restore(twice)
    assert restored.model == onnx.load(once)


def test_external_data(tmp_path: Path) -> None:
    model = net()
    onnx.save(net(), tmp_path / "model.onnx", save_as_external_data=True, location="model.bin", size_threshold=64)
    result = onnxprune.sparsify(tmp_path / "model.onnx", 0.5)
    result.save(tmp_path / "sparse.onnx")
    assert (tmp_path / "sparse.onnx.data").exists()
    assert stored(onnx.load(tmp_path / "sparse.onnx")).keys() == stored(model).keys()
    onnxprune.restore(tmp_path / "sparse.onnx").save(tmp_path / "back.onnx")
    back = stored(onnx.load(tmp_path / "back.onnx"))
    assert all(np.array_equal(back[name], values) for name, values in stored(model).items())
    with pytest.raises(OptionError) as caught:
        onnxprune.sparsify(tmp_path / "model.onnx", 0.5, store="sparse")
    assert str(caught.value) == "store is sparse, but the model keeps its weights in a file of their own; take dense"


def test_large_models_go_through_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "LARGE", 1000)
    monkeypatch.setattr(weights, "PIECE", 256)
    monkeypatch.setattr(lazy, "_BLOCK", 256)
    source = written(tmp_path, net())
    result = onnxprune.sparsify(source, 0.5, scratch=tmp_path)
    assert result.report.gzip is None
    result.save(tmp_path / "sparse.onnx")
    onnxprune.restore(tmp_path / "sparse.onnx").save(tmp_path / "back.onnx")
    made, wanted = (stored(onnx.load(tmp_path / "sparse.onnx")), stored(onnxprune.sparsify(net(), 0.5).model))
    assert all(np.array_equal(made[name], values) for name, values in wanted.items())
    back = stored(onnx.load(tmp_path / "back.onnx"))
    assert all(np.array_equal(back[name], values) for name, values in stored(net()).items())


def test_sparse_initializers_compute_the_same(tmp_path: Path) -> None:
    image = samples(3)["image"]
    dense, sparse = (onnxprune.sparsify(net(), 0.9, store=store).model for store in ("dense", "sparse"))
    assert len(sparse.graph.sparse_initializer) >= 2
    assert sparse.ByteSize() < dense.ByteSize()
    onnx.checker.check_model(sparse)
    assert np.array_equal(ReferenceModel(dense)(image), ReferenceModel(sparse)(image))
    few = onnxprune.sparsify(net(), 0.3, store="sparse")
    assert not few.model.graph.sparse_initializer
    assert any(line.startswith("0 tensors are smaller as sparse initializers") for line in few.report.warnings)


# other ways of storing weights -------------------------------------------------------------------------------------------------
def test_integers_have_their_zero_point(tmp_path: Path) -> None:
    """Zero is the zero point, and what counts is the value that the integer stands for, not the integer."""
    rng = np.random.default_rng(0)
    numbers, points = rng.integers(-128, 128, (4, 6)).astype(np.int8), np.array([5, -7, 0, 100], np.int8)
    scales = np.array([0.1, 0.2, 5.0, 0.001], np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["real"], axis=0),
        helper.make_node("Gemm", ["image", "real"], ["y"], transB=1),
    ]
    named = {"w": numbers, "s": scales, "z": points}
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("image", 6), ("y", 4))]
    tensors = [numpy_helper.from_array(values, name) for name, values in named.items()]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], tensors)
    source = written(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    result = onnxprune.sparsify(source, 0.5)
    real = (numbers.astype(np.float32) - points[:, None]) * scales[:, None]
    limit = np.sort(np.abs(real), axis=None)[12]
    wanted = np.where(np.abs(real) < limit, points[:, None], numbers)
    assert np.array_equal(stored(result.model)["w"], wanted)
    result.save(tmp_path / "sparse.onnx")
    onnxprune.restore(tmp_path / "sparse.onnx").save(tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == source.read_bytes()
    with pytest.raises(UsageError):
        onnxprune.sparsify(source, 0.5, criterion="taylor")


def lstm() -> ModelProto:
    """Three units."""
    rng = np.random.default_rng(0)
    tensors = {"w": rng.standard_normal((1, 12, 5)), "r": rng.standard_normal((1, 12, 3)), "b": rng.standard_normal((1, 24))}
    node = helper.make_node("LSTM", ["image", "w", "r", "b"], ["y"], hidden_size=3)
    ports = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [4, "n", 5])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 1, "n", 3])]
    held = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in tensors.items()]
    graph = helper.make_graph([node], "net", ports, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_recurrent_weights() -> None:
    """The filters of a unit are its rows of all gates."""
    before, after = stored(lstm()), stored(onnxprune.sparsify(lstm(), 0.4, granularity="filter", scope="layer").model)
    for name in ("w", "r"):
        zero = (after[name].reshape(4, 3, -1) == 0).all(axis=(0, 2))
        sums = np.abs(before[name]).reshape(4, 3, -1).sum(axis=(0, 2))
        assert zero.tolist() == (sums < np.sort(sums)[1]).tolist()
    assert np.array_equal(after["b"], before["b"])


def test_nothing_to_sparsify() -> None:
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in ("image", "y")]
    table = [numpy_helper.from_array(np.ones((2, 3), np.float32), "table")]
    nodes = [helper.make_node("Gather", ["table", "zero"], ["row"]), helper.make_node("Add", ["image", "row"], ["y"])]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], [*table, numpy_helper.from_array(np.array(0), "zero")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = onnxprune.sparsify(model, 0.5)
    assert result.model.SerializeToString() == model.SerializeToString()
    said = str(result.report)
    assert "nothing to sparsify: no stored tensor is multiplied with activations and summed over" in said
    assert "the model is written unchanged" in said
    assert "read by Gather: no factor of a sum of products, or computed from several tensors" in said


# what can go wrong ------------------------------------------------------------------------------------------------------------
CALLS: dict[str, tuple[dict[str, Any], type[OnnxpruneError], str]] = {
    "too much": ({"sparsity": 1.5}, OptionError, "sparsity is 1.5; it is the share of the weights to zero, 0 <= sparsity <= 1"),
    "neither": ({}, UsageError, "how much leaves is said by either --sparsity or --pattern; give one of them"),
    "both": (
        {"sparsity": 0.5, "pattern": "2:4"},
        UsageError,
        "how much leaves is said by either --sparsity or --pattern; give one of them",
    ),
    "pattern": ({"pattern": "2/4"}, OptionError, "pattern is '2/4'; give two numbers N:M, as in 2:4"),
    "no data": ({"sparsity": 0.5, "criterion": "taylor"}, UsageError, "criterion taylor is measured on samples; give --data"),
    "criterion": (
        {"sparsity": 0.5, "criterion": "l1"},
        UsageError,
        "criterion 'l1' does not exist; choose one of magnitude, activation, relative, taylor, gradient",
    ),
    "store": ({"sparsity": 0.5, "store": "zip"}, OptionError, "store is 'zip'; choose dense or sparse or compressed"),
    "layers": ({"sparsity": 0.5, "layers": "lstm"}, OptionError, "layers is 'lstm'; choose all or conv or dense"),
    "sidecar": (
        {"sparsity": 0.5, "sidecar": "x.npz"},
        UsageError,
        "a sidecar belongs to a file; give the path of the model, too",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str) -> None:
    options, kind, text = CALLS[name]
    with pytest.raises(kind) as caught:
        onnxprune.sparsify(net(), **options)
    assert str(caught.value) == text


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """A sparse model, beside its sidecar and the original."""
    onnxprune.sparsify(written(tmp_path, net()), 0.5).save(tmp_path / "sparse.onnx")
    return tmp_path / "sparse.onnx"


def refusal(sparse: Path, **options: Any) -> str:
    with pytest.raises(SidecarError) as caught:
        onnxprune.restore(sparse, **options)
    return str(caught.value).replace(str(sparse.parent) + "/", "")


def test_a_wrong_sidecar_is_refused(sparse: Path) -> None:
    beside = sidecar_path(sparse)
    other = sparse.with_name("other.onnx")
    onnxprune.sparsify(sparse.with_name("model.onnx"), 0.6).save(other)
    said = (
        "sidecar 'other.onnx.dense.npz' is of another model than 'sparse.onnx', whose SHA-256 differs; "
        "give the one that was written with it"
    )
    assert refusal(sparse, sidecar=sidecar_path(other)) == said
    sparse.write_bytes(other.read_bytes())
    assert refusal(sparse) == said.replace("other.onnx.dense", "sparse.onnx.dense")
    beside.unlink()
    assert (
        refusal(sparse) == "sidecar 'sparse.onnx.dense.npz' does not exist; give the file that was written with the sparse model"
    )


def test_a_damaged_sidecar_is_refused(sparse: Path) -> None:
    beside = sidecar_path(sparse)
    whole = beside.read_bytes()
    with np.load(beside) as archive:
        entries = dict(archive)

    def damaged(**changed: Array | None) -> str:
        kept = {name: values for name, values in (entries | changed).items() if values is not None}
        np.savez(beside, **kept)
        return refusal(sparse)

    name = repr("sparse.onnx.dense.npz")
    flipped = entries["0.values"].copy()
    flipped[0] ^= 1
    assert damaged(**{"0.values": flipped}) == f"sidecar {name} is damaged: weight 'w0' is another one then; copy it again"
    assert damaged(**{"0.values": flipped[:-4]}) == "the sidecar is damaged: it has not one value for each element; copy it again"
    assert (
        damaged(**{"0.where": entries["0.where"][1:]})
        == f"sidecar {name} is damaged: its tensor 0 has another size than it says; copy it again"
    )
    assert (
        damaged(**{"0.where": entries["0.where"].astype(float)})
        == f"sidecar {name} is damaged: its 0.where are not bytes; copy it again"
    )
    assert damaged(about=None).startswith(f"sidecar {name} can't be read: ")
    assert damaged(about=np.zeros(3, np.uint8)) == f"sidecar {name} is damaged, or none that onnxprune wrote; copy it again"
    about = json.loads(entries["about"].tobytes()) | {"schema": "onnxprune.sidecar/9"}
    assert damaged(about=np.frombuffer(json.dumps(about).encode(), np.uint8)) == (
        f"sidecar {name} has format 'onnxprune.sidecar/9', this version reads 'onnxprune.sidecar/1'; "
        "take the version that wrote it"
    )
    beside.write_bytes(whole[:-30])
    assert refusal(sparse).startswith(f"sidecar {name} can't be read: ") or refusal(sparse).startswith(
        f"sidecar {name} is damaged: "
    )
    beside.write_bytes(whole)
    assert onnxprune.restore(sparse).identical


def test_no_pickles(sparse: Path) -> None:
    np.savez(sidecar_path(sparse), about=np.array([{"a": 1}], object))
    assert refusal(sparse).startswith("sidecar 'sparse.onnx.dense.npz' can't be read: Object arrays cannot be loaded")


def test_a_stale_sidecar_is_left_aside(sparse: Path) -> None:
    """A model that was exported again, over a sparse one: its sidecar says nothing about it any more."""
    again = net()
    again.producer_name = "another"
    written(sparse.parent, again, sparse.name)
    result = onnxprune.sparsify(sparse, 0.5)
    assert result.report.warnings[0].startswith("what was zeroed before can't be restored: sidecar ")
    result.save(sparse.with_name("out.onnx"))
    restored = onnxprune.restore(sparse.with_name("out.onnx"))
    assert restored.identical


def test_outputs_apart(sparse: Path) -> None:
    result = onnxprune.sparsify(sparse, 0.7)
    with pytest.raises(OutputError, match="is the input itself"):
        result.save(sparse)
    with pytest.raises(OptionError, match=r"is the one that the input needs; choose another path$"):
        result.save(sparse.with_name("out.onnx"), sidecar=sidecar_path(sparse))
    with pytest.raises(OptionError, match=r"is the output itself; choose another path$"):
        result.save(sparse.with_name("out.onnx"), sidecar=sparse.with_name("out.onnx"))
    with pytest.raises(OutputError, match="does not exist; create it first"):
        result.save(sparse.with_name("out.onnx"), sidecar=sparse.parent / "no" / "x.npz")
    assert not sparse.with_name("out.onnx").exists()


def test_a_compressed_file_that_is_cut_off(tmp_path: Path) -> None:
    onnxprune.sparsify(written(tmp_path, net()), 0.5, store="compressed").save(tmp_path / "sparse.onnx.gz", sidecar=False)
    path = tmp_path / "sparse.onnx.gz"
    assert onnxprune.sparsify(path, 0.6).report.sparsity[0] == pytest.approx(0.5, abs=1e-3)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError) as caught:
        onnxprune.sparsify(path, 0.6)
    assert str(caught.value) == f"{str(path)!r}: the file is not a compressed model, or it is truncated; copy it again"


def test_command_line(tmp_path: Path) -> None:
    source = written(tmp_path, net())
    np.savez(tmp_path / "data.npz", **samples())
    runner = CliRunner()

    def run(*arguments: str) -> Any:
        return runner.invoke(app, [a if not a.startswith("@") else str(tmp_path / a[1:]) for a in arguments])

    done = run(
        "sparsify",
        "@model.onnx",
        "-o",
        "@sparse.onnx",
        "--sparsity",
        "0.5",
        "--criterion",
        "taylor",
        "--data",
        "@data.npz",
        "--report",
        "@r.json",
    )
    assert done.exit_code == 0, done.output
    assert "zeros among weights" in done.stdout
    assert json.loads((tmp_path / "r.json").read_text())["options"]["criterion"] == "taylor"
    done = run("restore", "@sparse.onnx", "-o", "@back.onnx")
    assert done.exit_code == 0
    assert "the file is the original's byte for byte" in done.stdout
    assert (tmp_path / "back.onnx").read_bytes() == source.read_bytes()
    assert run("sparsify", "@model.onnx", "-o", "@x.onnx", "--sparsity", "0.5", "--criterion", "taylor").exit_code == 2
    assert run("sparsify", "@model.onnx", "-o", "@x.onnx").exit_code == 2
    assert run("sparsify", "@model.onnx", "-o", "@x.onnx", "--sparsity", "2").exit_code == 1
    assert run("sparsify", "@model.onnx", "-o", "@model.onnx", "--sparsity", "0.5").exit_code == 1
    assert (
        run("sparsify", "@model.onnx", "-o", "@x.onnx", "--sparsity", "0.5", "--sidecar", "@y.npz", "--no-sidecar").exit_code == 2
    )
    assert not (tmp_path / "x.onnx").exists()
    assert run("sparsify", "@model.onnx", "-o", "@x.onnx", "--pattern", "2:4", "--no-sidecar").exit_code == 0
    assert not (tmp_path / "x.onnx.dense.npz").exists()
    assert run("restore", "@x.onnx", "-o", "@back.onnx").exit_code == 1
