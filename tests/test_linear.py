"""Linear layers: rows times a matrix are what onnxruntime computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cases_net import Net

from onnxprune.channels import analyse
from onnxprune.graph import Graph, load
from onnxprune.leastsquares import Product, linear_layers
from onnxprune.runtime import Session, tapped


def conv(shape: tuple[int, ...], weight: tuple[int, ...], bias: bool = True, **attributes: object) -> Callable[[Net], str]:
    def build(g: Net) -> str:
        x = g.input(g.randn(*shape))
        return g.Conv(x, g.w(*weight), g.w(weight[0]) if bias else None, **attributes)

    return build


def dense(shape: tuple[int, ...], out: int, *, bias: str = "", **attributes: object) -> Callable[[Net], str]:
    def build(g: Net) -> str:
        x = g.input(g.randn(*shape))
        size = (out, shape[-1]) if attributes.get("transB") else (shape[-1], out)
        if bias.startswith("gemm"):
            kinds = {"gemm": (out,), "gemm row": (1, out), "gemm number": ()}
            return g.Gemm(x, g.w(*size), g.w(*kinds[bias]) if bias in kinds else None, **attributes)
        y = g.MatMul(x, g.w(*size))
        return {"": y} if not bias else {"add": g.Add(y, g.w(out)), "before": g.Add(g.w(out), y)}[bias]

    return lambda g: next(iter(y.values())) if isinstance(y := build(g), dict) else y


def transposed(shape: tuple[int, ...], weight: tuple[int, ...], **attributes: object) -> Callable[[Net], str]:
    def build(g: Net) -> str:
        x = g.input(g.randn(*shape))
        return g.ConvTranspose(x, g.w(*weight), g.w(weight[1] * int(attributes.get("group", 1))), **attributes)

    return build


def moved_weight(g: Net) -> str:
    weight = g.Transpose(g.Reshape(g.w(2, 2, 5), [4, 5]), perm=[1, 0])
    return g.Gemm(g.input(g.randn(7, 4)), weight, g.w(5), transB=1)


LAYERS: dict[str, Callable[[Net], str]] = {
    "conv": conv((3, 4, 6, 5), (5, 4, 3, 3)),
    "without bias": conv((3, 4, 6, 5), (5, 4, 3, 3), bias=False),
    "pads": conv((3, 4, 6, 5), (5, 4, 3, 3), pads=[1, 1, 1, 1]),
    "uneven pads": conv((3, 4, 6, 5), (5, 4, 3, 2), pads=[0, 1, 2, 0]),
    "strides": conv((3, 4, 9, 8), (5, 4, 3, 3), pads=[1] * 4, strides=[2, 3]),
    "dilations": conv((3, 4, 9, 8), (5, 4, 3, 3), pads=[2, 0, 2, 1], dilations=[2, 1]),
    "all of them": conv((2, 4, 11, 9), (5, 4, 3, 2), pads=[2, 0, 1, 1], dilations=[2, 3], strides=[2, 2]),
    "same upper": conv((3, 4, 7, 6), (5, 4, 3, 4), auto_pad="SAME_UPPER", strides=[2, 2]),
    "same lower": conv((3, 4, 7, 6), (5, 4, 3, 4), auto_pad="SAME_LOWER", strides=[2, 2]),
    "valid": conv((3, 4, 7, 6), (5, 4, 3, 4), auto_pad="VALID", strides=[2, 1]),
    "groups": conv((3, 6, 5, 5), (4, 3, 3, 3), group=2, pads=[1] * 4),
    "depthwise": conv((3, 6, 5, 5), (6, 1, 3, 3), group=6, pads=[1] * 4),
    "two of each": conv((3, 4, 5, 5), (8, 1, 3, 3), group=4, strides=[2, 2]),
    "line": conv((3, 4, 11), (5, 4, 3), pads=[1, 0], strides=[2]),
    "volume": conv((2, 3, 4, 5, 4), (4, 3, 2, 3, 1), pads=[0, 1, 0, 1, 1, 0]),
    "pointwise": conv((3, 4, 6, 5), (5, 4, 1, 1)),
    "transposed": transposed((3, 4, 5, 4), (4, 5, 3, 3)),
    "transposed, strides": transposed((3, 4, 5, 4), (4, 5, 3, 2), pads=[1, 0, 1, 1], strides=[2, 3], output_padding=[1, 0]),
    "transposed, groups": transposed((3, 4, 5, 4), (4, 3, 3, 3), group=2, dilations=[2, 1], pads=[2, 1, 1, 0]),
    "transposed, depthwise": transposed((3, 4, 5, 4), (4, 1, 2, 2), group=4, strides=[2, 2]),
    "transposed, same upper": transposed((3, 4, 5, 4), (4, 5, 4, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    "transposed, same lower": transposed((3, 4, 5, 4), (4, 5, 4, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    "transposed, of a size": transposed((3, 4, 5, 4), (4, 5, 3, 3), output_shape=[10, 9], strides=[2, 2]),
    "transposed, cut": transposed((3, 4, 5, 4), (4, 5, 2, 2), pads=[2, 1, 1, 2], strides=[1, 2]),
    "transposed line": transposed((3, 4, 6), (4, 5, 3), strides=[2], output_padding=[1]),
    "moved weight": moved_weight,
    "gemm": dense((7, 4), 5, bias="gemm"),
    "gemm turned": dense((7, 4), 5, bias="gemm", transB=1),
    "gemm scaled": dense((7, 4), 5, bias="gemm", alpha=0.5, beta=3.0, transB=1),
    "gemm of a row": dense((7, 4), 5, bias="gemm row", alpha=-2.0),
    "gemm of a number": dense((7, 4), 5, bias="gemm number", beta=0.5),
    "gemm alone": dense((7, 4), 5, bias="gemm none", alpha=0.25),
    "matmul": dense((7, 4), 5),
    "matmul of rank 3": dense((3, 6, 4), 5),
    "matmul of rank 4": dense((2, 3, 6, 4), 5),
    "matmul and add": dense((7, 4), 5, bias="add"),
    "add and matmul": dense((3, 6, 4), 5, bias="before"),
}


def finished(build: Callable[[Net], str | list[str]]) -> tuple[Graph, dict[str, np.ndarray]]:
    net = Net(17)
    found = build(net)
    net.outputs += [found] if isinstance(found, str) else found
    return load(net.model()), net.feeds


def layer_of(graph: Graph) -> Product:
    (layer,) = linear_layers(analyse(graph))
    assert isinstance(layer, Product)
    return layer


def weight_of(graph: Graph, layer: Product) -> np.ndarray:
    ((stored, _),) = layer.stored
    return stored.seen(graph.weights.read(stored.tensor))


def seen(graph: Graph, feeds: dict[str, np.ndarray], *names: str) -> list[np.ndarray]:
    return Session(tapped(graph.assemble(), names, only=True)).run(feeds, names)


def gap(layer: Product, graph: Graph, feeds: dict[str, np.ndarray], values: np.ndarray, grid: tuple[slice, ...]) -> float:
    """How far rows times a matrix are from what onnxruntime gives at a grid's positions."""
    operand, target = seen(graph, feeds, *layer.operands, layer.target)
    whole = np.concatenate([layer.matrix([values]), layer.bias(graph)[:, None]], axis=1)
    found = np.concatenate([x @ z for x, z in zip(layer.rows([operand], [target], grid), whole, strict=True)], axis=1)
    wanted = layer.sums([target], grid)
    assert found.shape == wanted.shape
    assert wanted.size
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_matrix_are_the_layer(name: str) -> None:
    graph, feeds = finished(LAYERS[name])
    layer = layer_of(graph)
    values = weight_of(graph, layer)
    (target,) = seen(graph, feeds, layer.target)
    sizes = set()
    for most, turn in ((1e9, 0), (1e9, 3), (6, 0), (6, 1), (6, 5), (1, 2)):
        grid = layer.grid([target], most, turn)
        assert gap(layer, graph, feeds, values, grid) < 1e-5
        sizes.add(len(layer.sums([target], grid)))
    assert max(sizes) == target.size // (layer.groups * layer.outputs)
    assert len(sizes) > 1 or target.ndim == 2
    (back,) = layer.tensors(layer.matrix([values]), [values])
    assert back.dtype == np.float64
    assert np.allclose(back, values, rtol=1e-15)
    turned = np.flip(values, -1) if values.shape[-1] > 1 else np.flip(values, 0)  # a control: the same numbers elsewhere
    assert gap(layer, graph, feeds, turned.copy(), layer.grid([target], 1e9, 0)) > 1e-2


def test_all_positions_come_by_turns() -> None:
    """Grids of successive turns look at other positions, until all have been seen."""
    graph, feeds = finished(LAYERS["pads"])
    layer, (target,) = layer_of(graph), seen(graph, feeds, "conv0")
    marks = np.zeros(target.shape[2:], int)
    for turn in range(40):
        marks[layer.grid([target], 4, turn)] += 1
    assert marks.min() > 0
    assert marks.max() < 20


@pytest.mark.parametrize("name", ["pads", "two of each", "groups", "gemm turned", "matmul"])
def test_places_are_columns_of_channels(name: str) -> None:
    """What a channel is multiplied with lies at its places: zeros there are zeros of the weight."""
    graph, _ = finished(LAYERS[name])
    layer = layer_of(graph)
    values = weight_of(graph, layer)
    for channel in range(layer.inputs):
        without = np.moveaxis(values.copy(), layer.reads[0].axis, 0)
        without[channel] = 0
        matrix = layer.matrix([np.moveaxis(without, 0, layer.reads[0].axis)])
        zero = np.flatnonzero((matrix == 0).all(axis=(0, 2)))
        assert zero.tolist() == layer.places(np.array([[channel]]))[0].tolist()


def test_what_is_no_linear_layer() -> None:
    """Products of tensors, turned operands, what is added and no bias; a control that is one."""

    def product(g: Net) -> str:
        return g.MatMul(g.input(g.randn(3, 4)), g.input(g.randn(4, 2)))

    def turned(g: Net) -> str:
        return g.Gemm(g.input(g.randn(4, 3)), g.w(4, 2), transA=1)

    def nothing(g: Net) -> str:
        return g.Gemm(g.input(g.randn(3, 4)), g.w(4, 2), alpha=0.0)

    def added(g: Net) -> str:
        return g.Gemm(g.input(g.randn(3, 4)), g.w(4, 2), g.input(g.randn(3, 2)))

    def table(g: Net) -> str:
        return g.Gemm(g.input(g.randn(3, 4)), g.w(4, 2), g.w(3, 2))

    def column(g: Net) -> str:
        return g.Gemm(g.input(g.randn(3, 4)), g.w(4, 2), g.w(3, 1))

    for build in (product, turned, nothing, added, table, column):
        assert linear_layers(analyse(finished(build)[0])) == []
    assert len(linear_layers(analyse(finished(LAYERS["gemm"])[0]))) == 1
