"""Made-up inputs: pictures with edges, in the range that the weights tell, in which all classes occur."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.channels import Coupling, analyse
from onnxprune.graph import load
from onnxprune.importance.extent import BRIGHT, CENTRED, USUAL, extent
from onnxprune.importance.pictures import fields, leaves, pictures
from onnxprune.importance.synthetic import synthetic
from onnxprune.runtime import Session

Array = npt.NDArray[np.float32]
CLASSES, WIDTHS, SIZE = 6, (8, 12, 12), 16


def network(
    interval: tuple[float, float],
    *,
    colours: int = 3,
    batch: int | str = "N",
    last: bool = False,
    form: str = "folded",
    softmax: bool = False,
) -> onnx.ModelProto:
    """A convolutional net whose channels have, on pictures in ``interval``, the mean and spread that normalisation would give.

    ``form``: ``folded`` into weights and biases; ``batchnorm``, as nodes; ``free``, with no biases at all. ``last``: colours come
    last, and are moved by a Transpose. One class has a head start.
    """
    rng = np.random.default_rng(3)
    seen = interval[0] + (interval[1] - interval[0]) * pictures(np.random.default_rng(9), 48, colours, (SIZE, SIZE)).astype(
        np.float64
    )
    nodes, stored, name, channels = [], {}, "x", colours
    if last:
        nodes.append(helper.make_node("Transpose", ["x"], ["moved"], perm=[0, 3, 1, 2]))
        name = "moved"
    for k, width in enumerate(WIDTHS):
        weight = rng.standard_normal((width, channels, 3, 3)) / np.sqrt(9 * channels)
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(seen, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
        sums = np.einsum("nchwyx,ocyx->nohw", windows, weight)
        mean, std = sums.mean((0, 2, 3)), sums.std((0, 2, 3))
        beta = 0.2 * rng.standard_normal(width)
        values = (sums - mean[:, None, None]) / std[:, None, None] + beta[:, None, None]
        if form == "folded":
            stored |= {f"w{k}": weight / std[:, None, None, None], f"b{k}": beta - mean / std}
            nodes.append(helper.make_node("Conv", [name, f"w{k}", f"b{k}"], [f"c{k}"], pads=[1] * 4))
        else:
            nodes.append(helper.make_node("Conv", [name, f"w{k}"], [f"s{k}" if form == "batchnorm" else f"c{k}"], pads=[1] * 4))
            stored[f"w{k}"] = weight
        if form == "batchnorm":
            stored |= {f"g{k}": np.ones(width), f"b{k}": beta, f"m{k}": mean, f"v{k}": std**2}
            nodes.append(helper.make_node("BatchNormalization", [f"{p}{k}" for p in "sgbmv"], [f"c{k}"]))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"r{k}"]))
        seen, name, channels = np.maximum(values if form != "free" else sums, 0), f"r{k}", width
    head = 8 * rng.standard_normal((channels, CLASSES))
    stored |= {"head": head, "start": 4 * np.eye(CLASSES)[0] - seen.mean((0, 2, 3)) @ head}
    nodes += [
        helper.make_node("GlobalAveragePool", [name], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head", "start"], ["scores"]),
    ]
    nodes += [helper.make_node("Softmax", ["scores"], ["y"])] if softmax else [helper.make_node("Identity", ["scores"], ["y"])]
    shape = [batch, SIZE, SIZE, colours] if last else [batch, colours, SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def analysed(model: onnx.ModelProto) -> Coupling:
    return analyse(load(model))


def made(model: onnx.ModelProto, *, samples: int | None = 96, seed: int = 0, **options: tuple[float, float]) -> Array:
    return np.concatenate([feeds["x"] for feeds in synthetic(analysed(model), samples=samples, seed=seed, **options)])


@pytest.mark.parametrize("interval", [USUAL, *BRIGHT, CENTRED[1], CENTRED[2], CENTRED[3]])
@pytest.mark.parametrize("form", ["folded", "batchnorm"])
def test_the_weights_tell_the_range(interval: tuple[float, float], form: str) -> None:
    """To a factor of two; without BatchNormalization a centre other than 0 is not always told from none."""
    low, high = extent(analysed(network(interval, form=form)))
    assert 0.45 < (high - low) / (interval[1] - interval[0]) < 2.2
    assert form == "folded" or (low, high) == interval


@pytest.mark.parametrize("interval", [(0.0, 255.0), (-2.0, 2.2)])
def test_weights_without_biases_tell_nothing(interval: tuple[float, float]) -> None:
    """The control: at every scale such a net does the same."""
    assert extent(analysed(network(interval, form="free"))) == USUAL


@pytest.mark.parametrize(("colours", "last"), [(3, False), (3, True), (1, False)])
def test_pictures_lie_in_the_range_and_are_the_same_for_a_seed(colours: int, last: bool) -> None:
    model = network(USUAL, colours=colours, last=last)
    x = made(model, interval=(-3.0, 5.0))
    assert x.dtype == np.float32
    assert x.shape == (96, *((SIZE, SIZE, colours) if last else (colours, SIZE, SIZE)))
    assert x.min() >= -3
    assert x.max() <= 5
    assert x.std() > 1
    assert np.array_equal(x, made(model, interval=(-3.0, 5.0)))
    assert not np.allclose(x, made(model, seed=1, interval=(-3.0, 5.0)))
    across = np.abs(np.diff(x, axis=1 if last else 2)).mean()
    mixed = np.random.default_rng(0).permuted(x, axis=1 if last else 2)
    assert across < 0.5 * np.abs(np.diff(mixed, axis=1 if last else 2)).mean(), "neighbours are alike"


def test_a_fixed_number_of_samples_is_kept_to() -> None:
    found = list(synthetic(analysed(network(USUAL, batch=2)), samples=7))
    assert [feeds["x"].shape for feeds in found] == [(2, 3, SIZE, SIZE)] * 4
    assert len(np.unique(np.stack([feeds["x"] for feeds in found]).reshape(8, -1), axis=0)) == 8


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("batch", ["N", 1])
def test_all_classes_occur(softmax: bool, batch: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(USUAL, softmax=softmax, batch=batch)
    session = Session(network(USUAL))

    def least() -> int:
        return int(np.bincount(session.run({"x": made(model)})[0].argmax(axis=1), minlength=CLASSES).min())

    assert least() >= 10
    monkeypatch.setattr("onnxprune.importance.synthetic.PULLING", 0)
    assert least() < 5, "the control: not if they are left as they were drawn"


def test_leaves_have_edges() -> None:
    """Differences of neighbours are mostly small, and sometimes large, as in photographs; in random fields they are normal."""
    rng = np.random.default_rng(0)

    def kurtosis(values: Array) -> float:
        d = np.diff(values, axis=-1)
        return float(np.mean(d**4) / np.mean(d**2) ** 2)

    found = leaves(rng, 32, 3, (24, 24))
    assert abs(found.mean()) < 1e-5
    assert abs(found.std() - 1) < 1e-4
    assert kurtosis(found) > 8 > 4 > kurtosis(fields(rng, 32, 3, (24, 24), (1.0, 1.0), own=0.3))


@pytest.mark.parametrize("shape", [(40,), (12, 9), (6, 7, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_number_of_dimensions(shape: tuple[int, ...], channels: int) -> None:
    found = pictures(np.random.default_rng(0), 5, channels, shape)
    assert found.shape == (5, channels, *shape)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.std() > 0.05
