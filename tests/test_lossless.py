"""What costs nothing leaves, and nothing else, and the result equals the original: by kind, by operator, over random graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cases
import cases_attention
import cases_fused
import cases_quantised
import freed
import graphs
import judge
import numpy as np
import onnx
import pytest
from cases_net import Case, Net, check_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

import onnxprune
from onnxprune.graph import load
from onnxprune.plan import Plan
from onnxprune.rules import find
from onnxprune.weights import FLOATS

C = 8
Build = Callable[[Net], str]


def prune(model: onnx.ModelProto, **options: object) -> onnxprune.Result:
    result = onnxprune.prune(model, **{"ratio": 0, "free": True} | options)
    check_model(result.model)
    return result


def counts(model: onnx.ModelProto, **options: object) -> dict[str, int]:
    """How many channels left, by kind; the result equals the original and has lost no others."""
    result = prune(model, **options)
    freed.assert_original(model, result.model)
    rows = result.report.to_dict()["free"]
    found = {kind: sum(row[kind] for row in rows) for kind in ("zero", "unread", "constant", "copies")}
    assert sum(found.values()) == sum(row.group.size - row.kept for row in result.report.groups)
    return {kind: n for kind, n in found.items() if n}


def net(build: Build, end: str = "", opset: int = 17) -> onnx.ModelProto:
    """A model of what ``build`` writes, closed by a consumer."""
    made = Net(opset)
    x = build(made)
    made.consume(x, end or "auto", made.start or "image")
    return made.model()


def image(g: Net) -> str:
    g.start = "image"
    return g.inputs[0].name if g.inputs else g.input(g.randn(2, 3, 4, 6))


def drawn(g: Net, *shape: int) -> np.ndarray:
    """Values of a weight, to be changed."""
    return g.rng.uniform(0.3, 1, shape).astype(np.float32) * g.rng.choice(np.float32([-1, 1]), shape)


def filters(g: Net, *shape: int, zero: tuple[int, ...] = (), same: tuple[int, ...] = (), axis: int = 0) -> str:
    """A weight with some slices of zero, and some equal to the first of them."""
    values = drawn(g, *shape)
    rows = np.moveaxis(values, axis, 0)
    rows[list(zero)] = 0
    for index in same[1:]:
        rows[index] = rows[same[0]]
    return g.store(values)


def producer(g: Net, zero: tuple[int, ...] = (), same: tuple[int, ...] = (), bias: tuple[int, ...] | None = None) -> str:
    """Eight channels of an image, those of ``zero`` made by filters of zero; their biases are zero too unless told."""
    weight = filters(g, C, 3, 3, 3, zero=zero, same=same)
    return g.Conv(image(g), weight, filters(g, C, zero=zero if bias is None else bias, same=same), pads=[1] * 4)


def norm(g: Net, x: str, zero: tuple[int, ...], *, beta: bool) -> str:
    scale, shift = filters(g, C, zero=zero), filters(g, C, zero=() if beta else zero)
    return g.BatchNormalization(x, scale, shift, g.w(C), g.positive(C))


def conv(g: Net, x: str, kernel: int = 1, out: int = 5, *, bias: bool = True, **attributes: object) -> str:
    return g.Conv(x, g.w(out, C, kernel, kernel), *([g.w(out)] if bias else []), **attributes)


# zero ----------------------------------------------------------------------------------------------------------------------
ZERO: dict[str, Build] = {
    "conv": lambda g: conv(g, producer(g, (1, 4, 5)), 3, pads=[1] * 4),
    "no bias": lambda g: g.Conv(g.Conv(image(g), filters(g, C, 3, 1, 1, zero=(1, 4, 5))), g.w(5, C, 1, 1)),
    "relu": lambda g: conv(g, g.Relu(producer(g, (1, 4, 5))), 3, pads=[1] * 4),
    "clip": lambda g: conv(g, g.Clip(producer(g, (1, 4, 5)), 0.0, 6.0), 3),
    "hard swish": lambda g: conv(g, g.HardSwish(producer(g, (1, 4, 5))), 3),
    "depthwise": lambda g: conv(g, g.Conv(producer(g, (1, 4, 5)), g.w(C, 1, 3, 3), group=C, pads=[1] * 4)),
    "depthwise filter": lambda g: conv(g, g.Conv(producer(g), filters(g, C, 1, 3, 3, zero=(1, 4, 5)), group=C, pads=[1] * 4)),
    "conv transpose": lambda g: g.ConvTranspose(producer(g, (1, 4, 5)), g.w(C, 5, 2, 2), g.w(5), strides=[2, 2]),
    "made by conv transpose": lambda g: conv(
        g, g.ConvTranspose(image(g), filters(g, 3, C, 2, 2, zero=(1, 4, 5), axis=1), filters(g, C, zero=(1, 4, 5))), 3
    ),
    "batch norm": lambda g: conv(g, norm(g, producer(g), (1, 4, 5), beta=False), 3, pads=[1] * 4),
    "negative after batch norm": lambda g: conv(g, g.Relu(_negative(g)), 3, pads=[1] * 4),
    "residual": lambda g: conv(g, g.Add(x := producer(g, (1, 4, 5)), _again(g, g.Relu(x), (1, 4, 5))), 3, pads=[1] * 4),
    "product": lambda g: conv(g, g.Mul(producer(g, (1, 4)), producer(g, (5,))), 3, pads=[1] * 4),
    "concat": lambda g: g.Conv(g.Concat(producer(g, (1,)), producer(g, (4, 5)), axis=1), g.w(5, 2 * C, 3, 3), pads=[1] * 4),
    "split": lambda g: _split(g, producer(g, (1, 4, 5))),
    "pools": lambda g: conv(
        g, g.AveragePool(g.MaxPool(producer(g, (1, 4, 5)), kernel_shape=[2, 2]), kernel_shape=[3, 3], pads=[1] * 4)
    ),
    "flatten": lambda g: g.Gemm(g.Flatten(producer(g, (1, 4, 5))), g.w(C * 24, 5), g.w(5)),
    "transposed": lambda g: g.MatMul(g.Transpose(producer(g, (1, 4, 5)), perm=[0, 2, 3, 1]), g.w(C, 5)),
    "squeeze and excite": lambda g: conv(g, _excited(g, producer(g, (1, 4, 5))), 3, pads=[1] * 4),
    "shuffle": lambda g: conv(g, _shuffled(g, producer(g, (1, 4, 5))), 3),
    "sum of channels": lambda g: g.ReduceSum(producer(g, (1, 4, 5)), [1]),
    "pixel shuffle": lambda g: g.Conv(g.DepthToSpace(producer(g, (1, 3, 5, 7)), blocksize=2), g.w(5, 2, 3, 3), pads=[1] * 4),
    "gemm": lambda g: g.Gemm(g.Relu(_rows(g, (1, 4, 5))), g.w(C, 5), g.w(5)),
    "matmul": lambda g: g.MatMul(g.Relu(_rows(g, (1, 4, 5))), g.w(C, 5)),
    "divided by a constant": lambda g: conv(g, g.Div(producer(g, (1, 4, 5)), 6.0), 3),
    "resized": lambda g: conv(g, g.Resize(producer(g, (1, 4, 5)), None, g.store(np.float32([1, 1, 2, 2])), mode="linear"), 3),
}  # fmt: skip


def _negative(g: Net) -> str:
    """Channels of a scale of zero and a negative shift."""
    shift = np.linspace(0.5, 1, C, dtype=np.float32)
    shift[[1, 4, 5]] *= -1
    return g.BatchNormalization(producer(g), filters(g, C, zero=(1, 4, 5)), g.store(shift), g.w(C), g.positive(C))


def _again(g: Net, x: str, zero: tuple[int, ...]) -> str:
    return g.Conv(x, filters(g, C, C, 3, 3, zero=zero), filters(g, C, zero=zero), pads=[1] * 4)


def _split(g: Net, x: str) -> str:
    first, second = g.Split(x, [4, 4], outputs=2, axis=1)
    return g.Add(g.Conv(first, g.w(5, 4, 1, 1)), g.Conv(second, g.w(5, 4, 1, 1)))


def _excited(g: Net, x: str) -> str:
    y = g.Relu(g.Conv(g.GlobalAveragePool(x), g.w(4, C, 1, 1), g.w(4)))
    return g.Mul(x, g.Sigmoid(g.Conv(y, g.w(C, 4, 1, 1), g.w(C))))


def _shuffled(g: Net, x: str) -> str:
    y = g.Transpose(g.Reshape(x, [2, 2, 4, 4, 6]), perm=[0, 2, 1, 3, 4])
    return g.Reshape(y, [2, C, 4, 6])


def _rows(g: Net, zero: tuple[int, ...], same: tuple[int, ...] = ()) -> str:
    g.start = "rows"
    x = g.input(g.randn(5, 7))
    return g.Gemm(x, filters(g, 7, C, zero=zero, same=same, axis=1), filters(g, C, zero=zero, same=same))


@pytest.mark.parametrize("name", ZERO)
def test_zero_channels_leave(name: str) -> None:
    model = net(ZERO[name], "none")
    if name == "depthwise filter":  # what feeds it is not zero, but nothing needs it
        assert counts(model) == {"zero": 3}
    else:
        assert counts(model) == {"zero": 1 if name == "pixel shuffle" else 3}


def test_grouped_channels_leave_together() -> None:
    """The same channel of both groups is zero."""
    build: Build = lambda g: g.Conv(producer(g, (1, 5)), g.w(6, 4, 3, 3), g.w(6), group=2)  # noqa: E731
    assert counts(net(build)) == {"zero": 1}
    one: Build = lambda g: g.Conv(producer(g, (1,)), g.w(6, 4, 3, 3), g.w(6), group=2)  # noqa: E731
    assert counts(net(one)) == {}


# unread --------------------------------------------------------------------------------------------------------------------
def test_channels_whose_weights_are_zero_everywhere_leave() -> None:
    def build(g: Net) -> str:
        x = g.Sigmoid(producer(g))
        y = g.Conv(x, filters(g, 5, C, 3, 3, zero=(0, 2, 3), axis=1), g.w(5), pads=[1] * 4)
        return g.Add(y, g.Conv(x, filters(g, 5, C, 1, 1, zero=(2, 3, 7), axis=1)))

    assert counts(net(build)) == {"unread": 2}


def test_what_only_feeds_the_unread_leaves_too() -> None:
    """Backwards through two layers; and round a residual connection."""

    def chain(g: Net) -> str:
        first = g.Relu(producer(g))
        weight = drawn(g, C, C, 3, 3)
        weight[[i for i in range(C) if i not in (2, 3)], 6] = 0  # channel 6 feeds 2 and 3 alone
        second = g.Relu(g.Conv(first, g.store(weight), g.w(C)))
        return g.Conv(second, filters(g, 5, C, 1, 1, zero=(2, 3), axis=1))

    assert counts(net(chain)) == {"unread": 3}

    def loop(g: Net) -> str:
        x = producer(g)
        weight = drawn(g, C, C, 3, 3)
        weight[[i for i in range(C) if i not in (2, 3)], 2] = 0  # 2 and 3 feed each other and themselves
        weight[[i for i in range(C) if i not in (2, 3)], 3] = 0
        x = g.Add(x, g.Conv(x, g.store(weight), pads=[1] * 4))
        return g.Conv(x, filters(g, 5, C, 1, 1, zero=(2, 3), axis=1))

    assert counts(net(loop)) == {"unread": 2}


# constant ------------------------------------------------------------------------------------------------------------------
CONSTANT: dict[str, Build] = {
    "conv 1x1": lambda g: conv(g, g.Sigmoid(producer(g, (1, 4)))),
    "conv 3x3 without padding": lambda g: conv(g, g.Abs(producer(g, (1, 4), bias=())), 3),
    "conv without bias": lambda g: conv(g, g.Sigmoid(producer(g, (1, 4))), bias=False),
    "conv with strides": lambda g: conv(g, g.Sigmoid(producer(g, (1, 4))), 2, strides=[2, 2], bias=False),
    "batch norm": lambda g: conv(g, g.Tanh(norm(g, producer(g), (1, 4), beta=True))),
    "batch norm of zero": lambda g: conv(g, g.BatchNormalization(producer(g, (1, 4)), g.w(C), g.w(C), g.w(C), g.positive(C))),
    "grouped": lambda g: g.Conv(g.Sigmoid(producer(g, (1, 5, 2, 6))), g.w(6, 4, 1, 1), g.w(6), group=2),
    "conv transpose": lambda g: g.ConvTranspose(g.Sigmoid(producer(g, (1, 4))), g.w(C, 5, 1, 1)),
    "flatten": lambda g: g.Gemm(g.Flatten(g.Sigmoid(producer(g, (1, 4)))), g.w(5, C * 24), g.w(5), transB=1),
    "pooled": lambda g: g.Gemm(g.Flatten(g.GlobalAveragePool(g.Exp(producer(g, (1, 4))))), g.w(C, 5), alpha=0.5),
    "gemm beta": lambda g: g.Gemm(g.Sigmoid(_rows(g, (1, 4))), g.w(C, 5), g.w(5), alpha=0.5, beta=2.0),
    "gemm row bias": lambda g: g.Gemm(g.Sigmoid(_rows(g, (1, 4))), g.w(C, 5), g.w(1, 5)),
    "gemm scalar bias": lambda g: g.Gemm(g.Sigmoid(_rows(g, (1, 4))), g.w(C, 5), g.w()),
    "matmul and add": lambda g: g.Add(g.MatMul(g.Sigmoid(_rows(g, (1, 4))), g.w(C, 5)), g.w(5)),
    "add and matmul": lambda g: g.Add(g.w(5), g.MatMul(g.Sigmoid(_rows(g, (1, 4))), g.w(C, 5))),
    "residual": lambda g: conv(g, g.Add(producer(g, (1, 4), bias=()), producer(g, (1, 4)))),
    "dense block": lambda g: _dense(g),
    "constant node": lambda g: g.Conv(g.Sigmoid(producer(g, (1, 4))), g.constant(g.randn(5, C, 1, 1)), g.constant(g.randn(5))),
}


def _dense(g: Net) -> str:
    """Batch normalisation behind a concatenation makes constants of zeros."""
    x = g.Concat(producer(g, (1,)), producer(g, (4,)), axis=1)
    x = g.BatchNormalization(x, g.w(2 * C), g.positive(2 * C), g.w(2 * C), g.positive(2 * C))
    return g.Conv(g.Relu(x), g.w(5, 2 * C, 1, 1))


@pytest.mark.parametrize("name", CONSTANT)
def test_constants_go_into_biases(name: str) -> None:
    assert counts(net(CONSTANT[name], "none")) == {"constant": 2}


def test_a_constant_behind_a_constant() -> None:
    """What a layer of constants gives is constant; one channel of each layer stays."""
    build: Build = lambda g: conv(g, g.Sigmoid(_again1(g, g.Sigmoid(producer(g, tuple(range(C)))))))  # noqa: E731
    assert counts(net(build, "none")) == {"constant": 2 * (C - 1)}


def _again1(g: Net, x: str) -> str:
    return g.Conv(x, g.w(C, C, 1, 1), g.w(C))


def test_a_bias_that_layers_share_is_changed_for_one_of_them() -> None:
    for first in (0, 1):

        def build(g: Net, first: int = first) -> str:
            shared = g.w(C)
            parts = [g.Sigmoid(producer(g, (1, 4))), g.Sigmoid(producer(g))]
            one, two = (g.Conv(parts[k], g.w(C, C, 1, 1), shared) for k in (first, 1 - first))
            return g.Conv(g.Concat(g.Relu(one), g.Relu(two), axis=1), g.w(5, 2 * C, 3, 3))

        model = net(build)
        assert counts(model) == {"constant": 2}
        freed.assert_original(onnxprune.prune(model, plan=prune(model).plan).model, prune(model).model)


# copies --------------------------------------------------------------------------------------------------------------------
COPIES: dict[str, Build] = {
    "conv": lambda g: conv(g, g.Relu(producer(g, same=(2, 5, 6))), 3, pads=[1] * 4),
    "batch norm": lambda g: conv(
        g,
        g.BatchNormalization(
            producer(g, same=(2, 5, 6)), *(filters(g, C, same=(2, 5, 6)) for _ in range(3)), g.store(np.ones(C, np.float32))
        ),
    ),
    "depthwise": lambda g: conv(g, g.Conv(producer(g, same=(2, 5, 6)), filters(g, C, 1, 3, 3, same=(2, 5, 6)), group=C)),
    "flatten": lambda g: g.Gemm(g.Flatten(producer(g, same=(2, 5, 6))), g.w(C * 24, 5), g.w(5)),
    "gemm": lambda g: g.Gemm(g.Tanh(_rows(g, (), (2, 5, 6))), g.w(C, 5), g.w(5)),
    "matmul": lambda g: g.MatMul(g.Tanh(_rows(g, (), (2, 5, 6))), g.w(C, 5)),
    "residual": lambda g: conv(
        g, g.Add(x := producer(g, same=(2, 5, 6)), g.Conv(x, filters(g, C, C, 3, 3, same=(2, 5, 6)), pads=[1] * 4))
    ),
    "two consumers": lambda g: g.Add(conv(g, x := g.Relu(producer(g, same=(2, 5, 6)))), conv(g, x)),
    "concat": lambda g: g.Conv(g.Concat(x := producer(g, same=(2, 5, 6)), g.Relu(x), axis=1), g.w(5, 2 * C, 1, 1)),
    "conv transpose": lambda g: g.ConvTranspose(producer(g, same=(2, 5, 6)), g.w(C, 5, 2, 2)),
    "pixel shuffle": lambda g: g.Conv(g.DepthToSpace(_blocks(g), blocksize=2), g.w(5, 4, 3, 3)),
}  # fmt: skip


def _blocks(g: Net) -> str:
    """Four channels of four blocks each, three of them alike."""
    values = g.randn(16, 3, 3, 3).reshape(4, 4, 3, 3, 3)
    values[:, [2, 3]] = values[:, [1]]
    return g.Conv(image(g), g.store(values.reshape(16, 3, 3, 3)))


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_merged(name: str) -> None:
    assert counts(net(COPIES[name], "none")) == {"copies": 2}


def test_copies_of_copies() -> None:
    """Rows of a layer that differ only in which copy they read become copies themselves."""

    def build(g: Net) -> str:
        x = g.Relu(producer(g, same=(0, 1)))
        weight = np.array(g.randn(C, C, 1, 1))
        weight[3] = weight[2]
        weight[2, 0], weight[2, 1], weight[3, 0], weight[3, 1] = 0.75, 0, 0.25, 0.5
        return conv(g, g.Relu(g.Conv(x, g.store(weight))), 3)

    assert counts(net(build)) == {"copies": 2}


# nothing else --------------------------------------------------------------------------------------------------------------
KEPT: dict[str, Build] = {
    "nothing special": lambda g: conv(g, g.Relu(producer(g)), 3, pads=[1] * 4),
    "almost zero": lambda g: conv(g, _almost(g), 3, pads=[1] * 4),
    "half of a sigmoid into a padded conv": lambda g: conv(g, g.Sigmoid(producer(g, (1,))), 3, pads=[1] * 4),
    "the same with auto_pad": lambda g: conv(g, g.Sigmoid(producer(g, (1,))), 3, auto_pad="SAME_UPPER"),
    "a counted border": lambda g: conv(
        g, g.AveragePool(g.Sigmoid(producer(g, (1,))), kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    ),
    "a constant into a wide conv transpose": lambda g: g.ConvTranspose(g.Sigmoid(producer(g, (1,))), g.w(C, 5, 3, 3)),
    "one side of a sum": lambda g: conv(g, g.Add(producer(g, (1,)), producer(g)), 3),
    "a bias that is left": lambda g: conv(g, producer(g, (1,), bias=()), 3, pads=[1] * 4),
    "matmul without a vector": lambda g: g.MatMul(g.Sigmoid(_rows(g, (1,))), g.w(C, 5)),
    "matmul read twice": lambda g: g.Add(g.Relu(y := g.MatMul(g.Sigmoid(_rows(g, (1,))), g.w(C, 5))), g.Add(y, g.w(5))),
    "a computed bias": lambda g: g.Gemm(g.Sigmoid(x := _rows(g, (1,))), g.w(C, 5), g.Gemm(x, g.w(C, 5), g.w(5))),
    "a copy with another bias": lambda g: conv(g, _other_bias(g), 3),
    "a copy with another scale": lambda g: conv(g, g.Mul(producer(g, same=(2, 5, 6)), g.w(C, 1, 1)), 3),
    "a copy in one of two sums": lambda g: conv(g, g.Add(producer(g, same=(2, 5, 6)), producer(g)), 3),
    "copies summed without weights": lambda g: g.ReduceSum(g.Relu(producer(g, same=(2, 5, 6))), [1]),
    "copies behind another order": lambda g: _reordered(g),
    "divided by something": lambda g: conv(g, g.Div(producer(g, (1,)), g.Add(g.Abs(producer(g)), 1.0)), 3, pads=[1] * 4),
    "softmax": lambda g: g.MatMul(g.Softmax(_rows(g, (1,)), axis=1), g.w(C, 5)),
    "layer norm": lambda g: g.MatMul(g.LayerNormalization(_rows(g, (1,)), g.w(C), g.w(C)), g.w(C, 5)),
    "read by the output": lambda g: producer(g, (1,)),
    "also read by the output": lambda g: _tapped(g),
    "relu that may be alive": lambda g: conv(g, g.Relu(g.Sub(producer(g), 99.0)), 3),
}  # fmt: skip


def _almost(g: Net) -> str:
    weight, bias = g.randn(C, 3, 3, 3), np.zeros(C, np.float32)
    weight[1], bias[4] = 0, 1e-30
    weight[4] = 0
    weight[1, 2, 1, 1] = 1e-30
    return g.Conv(image(g), g.store(weight), g.store(bias), pads=[1] * 4)


def _other_bias(g: Net) -> str:
    bias = np.ones(C, np.float32)
    bias[[5, 6]] = np.nextafter(np.float32(1), np.float32(2)), 2
    return g.Conv(image(g), filters(g, C, 3, 1, 1, same=(2, 5, 6)), g.store(bias))


def _reordered(g: Net) -> str:
    """Each channel twice, the second time scaled; afterwards some have the two the other way round."""
    scale = np.repeat(np.float32([1, 3]), C).reshape(2 * C, 1, 1)
    x = g.Mul(g.Concat(x := producer(g, same=(2, 5)), x, axis=1), g.store(scale))
    order = np.arange(2 * C)
    order[[5, 5 + C]] = [5 + C, 5]
    return g.Conv(g.Gather(x, g.store(order), axis=1), g.w(5, 2 * C, 1, 1))


def _tapped(g: Net) -> str:
    x = producer(g, (1,))
    g.outputs.append(g.Relu(x))
    return conv(g, x, 3)


@pytest.mark.parametrize("name", KEPT)
def test_nothing_else_leaves(name: str) -> None:
    assert counts(net(KEPT[name], "none")) == {}


def test_one_channel_of_every_group_stays() -> None:
    for kind in ({"zero": tuple(range(C))}, {"same": tuple(range(C))}):

        def build(g: Net, kind: dict[str, tuple[int, ...]] = kind) -> str:
            return conv(g, g.Relu(producer(g, **kind)), 3, pads=[1] * 4)

        result = prune(net(build, "none"))
        assert [row.kept for row in result.report.groups] == [1]


def test_a_sum_too_large_for_half_floats_is_not_made() -> None:
    def build(size: float) -> onnx.ModelProto:
        g = Net(17)
        g.start = "image"
        x = g.input(g.randn(2, 3, 4, 6).astype(np.float16))
        weight = g.randn(C, 3, 1, 1).astype(np.float16)
        weight[1] = weight[0]
        reader = np.ones((5, C, 1, 1), np.float16)
        reader[0, :2] = size
        y = g.Mul(g.Relu(g.Conv(x, g.store(weight))), g.store(np.float16(1e-4)))
        g.outputs.append(g.Conv(y, g.store(reader)))
        return g.model()

    assert [f.counts[3] for f in prune(build(4e4)).report.free] == []
    assert [f.counts[3] for f in prune(build(2e4)).report.free] == [1]


def test_quantised_copies_stay() -> None:
    def build(g: Net) -> str:
        weight = g.rng.integers(1, 60, (C, 3, 1, 1)).astype(np.int8)
        weight[5] = weight[2]
        x = g.Conv(image(g), g.DequantizeLinear(g.store(weight), 0.01, g.store(np.int8(0))))
        y = g.DequantizeLinear(g.int8(5, C, 1, 1), 0.01, g.store(np.int8(0)))
        return g.Conv(x, y)

    assert counts(net(build)) == {}


def test_quantised_zeros_leave() -> None:
    def build(g: Net) -> str:
        weight = g.rng.integers(1, 60, (C, 3, 1, 1)).astype(np.int8)
        weight[[2, 5]] = 7
        scale, zero = g.store(np.full(C, 0.01, np.float32)), g.store(np.full(C, 7, np.int8))
        x = g.Relu(g.Conv(image(g), g.DequantizeLinear(g.store(weight), scale, zero, axis=0)))
        x = g.DequantizeLinear(g.QuantizeLinear(x, 0.1, g.store(np.uint8(3))), 0.1, g.store(np.uint8(3)))
        return g.Conv(x, g.w(5, C, 3, 3), pads=[1] * 4)

    assert counts(net(build)) == {"zero": 2}


# every operator, every exported model, random graphs -------------------------------------------------------------------------
RENAMED = ("names like the other branch", "weights like outside")  # which the file has twice
RUN = [
    c
    for c in cases.CASES
    if c.expect == "cut" and not c.reference and c.op != "RoiAlign" and c.note not in RENAMED  # not on random regions
]
CAREFUL = {c.name for c in (*cases_fused.CASES, *cases_quantised.CASES, *cases_attention.CASES)}
"""Rows of operators through which nothing leaves for free."""


@pytest.mark.parametrize("case", RUN, ids=lambda c: c.name)
def test_operators(case: Case) -> None:
    """Half of the channels with weights and biases of zero: whatever then leaves, the outputs stay."""
    model = case.net().model()
    maker = freed.Maker(model)
    for group in maker.groups:
        for channel in range(group.size // 2):
            maker.zero(group, channel)
    zeroed = maker.finish()
    result = prune(zeroed)
    freed.assert_original(zeroed, result.model, scales=(1,))
    if case.name not in CAREFUL and case.zero and case.start == "image" and (first := result.report.groups[0]).group.size > 1:
        assert first.kept < first.group.size


def half_zeroed(model: onnx.ModelProto, seed: int = 0) -> tuple[freed.Maker, dict[str, int]]:
    maker = freed.Maker(model)
    rng = np.random.default_rng(seed)
    for group in maker.groups:
        for channel in rng.choice(group.size, group.size // 2, replace=False):
            maker.zero(group, int(channel))
    return maker, maker.made


EXPORTED = sorted((Path(__file__).parent / "exported").glob("*.onnx"))


@pytest.mark.parametrize("path", EXPORTED, ids=lambda p: p.name)
def test_exported_models(path: Path) -> None:
    """Some channels zero, some unread, some copied."""
    maker = freed.Maker(onnx.load(path))
    rng = np.random.default_rng(0)
    for group in maker.groups:
        for channel in range(group.size):
            kind = rng.choice(["zero", "ignore", "double", ""])
            if kind == "double":
                maker.double(group, channel, int(rng.integers(group.size)))
            elif kind:
                getattr(maker, kind)(group, channel)
    model = maker.finish()
    result = prune(model)
    graph = load(model)
    recurrent = {"LSTM", "GRU", "RNN", "Loop"}.intersection(node.op_type for node in model.graph.node)
    quantised = any(graph.weights.elem_type(n) not in FLOATS for g in maker.groups for n in {m.site.tensor for m in g.members})
    careful = quantised or any(n.op == "DynamicQuantizeLinear" or n.domain for n in graph.nodes)
    assert result.report.free or recurrent or careful or not maker.groups
    freed.assert_original(model, result.model)


def test_a_half_empty_resnet_loses_exactly_that_half() -> None:
    """Residual blocks: weights and biases of a random half of every group's channels are zero."""
    model = graphs.build(["plain", "residual", "residual", "activation"], "pool", 11)
    for node in model.graph.node:
        if node.op_type in ("Sigmoid", "Softplus"):
            node.op_type = "Relu"
    maker, made = half_zeroed(model)
    zeroed = maker.finish()
    result = prune(zeroed)
    assert {row.group.name: row.group.size - row.kept for row in result.report.groups} == made
    assert {row.group: row.counts for row in result.report.free or ()} == {name: (n, 0, 0, 0) for name, n in made.items()}
    assert not result.plan.edits
    judge.assert_equal(zeroed, result.model, result.plan.to_dict())
    freed.assert_original(zeroed, result.model)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(st.sampled_from(sorted(graphs.STEPS)), min_size=1, max_size=6),
    head=st.sampled_from(["flatten", "pool", "open"]),
    seed=st.integers(0, 999),
)
def test_random_graphs(steps: list[str], head: str, seed: int) -> None:
    model = graphs.build(steps, head, seed)
    natural = {row.group: row.counts for row in prune(model).report.free or ()}
    assert all(not zero and not constant and not copies for zero, _, constant, copies in natural.values())
    rng = np.random.default_rng(seed)
    maker = freed.Maker(model)
    ignored: dict[str, int] = {}
    for group in maker.groups:
        for channel in range(group.size):
            kind = rng.choice(["zero", "ignore", "double", "", "", ""])
            if kind == "double":
                maker.double(group, channel, int(rng.integers(group.size)))
            elif kind:
                getattr(maker, kind)(group, channel)
                ignored[group.name] = ignored.get(group.name, 0) + (kind == "ignore")
    changed = maker.finish()
    result = prune(changed)
    onnx.checker.check_model(result.model, full_check=True)
    freed.assert_original(changed, result.model, seed)
    lost: dict[str, int] = {}
    for row in result.report.groups:
        lost[row.group.name] = lost.get(row.group.name, 0) + row.group.size - row.kept
    sizes: dict[str, int] = {}
    for group in maker.groups:
        sizes[group.name] = sizes.get(group.name, 0) + group.size - 1
    assert all(lost[name] >= min(n, sizes[name]) for name, n in ignored.items() if name in lost)


# the proof can fail --------------------------------------------------------------------------------------------------------
def test_a_wrong_claim_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """If padded convolutions were taken for steady, the oracle would say so."""
    monkeypatch.setitem(find("Conv").__dict__, "steady", lambda call: True)
    with pytest.raises(onnxprune.VerificationError, match="differs from the original"):
        prune(net(KEPT["half of a sigmoid into a padded conv"], "none"))


def test_an_original_that_differs_is_caught() -> None:
    model = net(ZERO["conv"])
    result = prune(model)
    weight = next(t for t in result.model.graph.initializer if len(t.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), weight.name))
    with pytest.raises(AssertionError, match="differs from the original"):
        freed.assert_original(model, result.model)


# together with the ordinary cut ------------------------------------------------------------------------------------------------
def mixed() -> onnx.ModelProto:
    """Zeros, constants and copies at once."""

    def build(g: Net) -> str:
        x = g.Sigmoid(producer(g, (1, 4), same=(2, 5, 6)))
        y = g.Relu(g.Conv(x, filters(g, C, C, 1, 1, zero=(0, 7)), filters(g, C, zero=(0, 7))))
        return conv(g, y, 3, pads=[1] * 4)

    return net(build, "none")


def test_the_share_is_taken_of_what_is_left() -> None:
    model = mixed()
    free = prune(model)
    assert [row.kept for row in free.report.groups] == [4, 6]
    both = prune(model, ratio=0.5)
    assert [row.kept for row in both.report.groups] == [2, 3]
    assert [row.counts for row in both.report.free] == [row.counts for row in free.report.free]
    assert "the masked original, and without what was free alone the original" in str(both.report)
    one = onnxprune.prune(free.model, ratio=0.5)
    inputs = judge.feeds(model)
    assert judge.distance(judge.run(one.model, inputs), judge.run(both.model, inputs)) < judge.RTOL


def test_scores_do_not_count_what_has_left() -> None:
    """A filter that is large only where it reads a channel of zeros is not important."""

    def build(g: Net) -> str:
        weight = np.ones((C, C, 1, 1), np.float32) * np.linspace(1, 2, C, dtype=np.float32).reshape(C, 1, 1, 1)
        weight[0, 1] = 100
        return conv(g, g.Relu(g.Conv(g.Relu(producer(g, (1,))), g.store(weight), g.w(C))), 3)

    result = prune(net(build), ratio=0.2)
    site = next(s for s in result.plan.sites if (s.axis, s.of) == (0, C) and 0 not in s.keep)
    assert site.keep == tuple(range(1, C))


def test_plans_with_edits_are_saved_and_replayed(tmp_path: Path) -> None:
    model = mixed()
    for ratio in (0, 0.5):
        first = prune(model, ratio=ratio)
        assert first.plan.edits
        first.plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == first.plan
        again = onnxprune.prune(model, plan=tmp_path / "plan.json")
        assert again.model == first.model
        assert again.plan == first.plan


def test_plans_without_edits_do_not_mention_them() -> None:
    assert "edits" not in prune(net(ZERO["conv"])).plan.to_dict()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tensor": "nothing"}, "there is no such weight in this model"),
        ({"axis": 7}, "channels must be numbers from 0 to -1"),
        ({"channels": (0, 99)}, "channels must be numbers from 0 to 7"),
        ({"channels": (0, 1), "into": (2,)}, "channels must be numbers from 0 to 7"),
        ({"node": "nothing", "add": (1.0,)}, "there is no such vector in this model"),
        ({"add": (1.0, 2.0)}, "channels, not 2"),
    ],
)
def test_edits_that_do_not_fit(change: dict[str, object], text: str) -> None:
    model = net(CONSTANT["conv 1x1"], "none")
    plan = prune(model).plan
    with pytest.raises(onnxprune.PlanError, match=text):
        onnxprune.prune(model, plan=replace(plan, edits=(replace(plan.edits[0], **change),)))


def test_a_plan_and_free_exclude_each_other() -> None:
    model = mixed()
    with pytest.raises(onnxprune.UsageError, match="either --plan or --free"):
        prune(model, plan=prune(model).plan)


def test_limits_hold_for_what_is_free_too() -> None:
    model = mixed()
    assert [row.kept for row in prune(model, min_channels=7).report.groups] == [7, 7]
    assert [row.kept for row in prune(model, round_to=4).report.groups] == [4, 8]
    assert [row.kept for row in prune(model, freeze=("*",)).report.groups] == []


def test_a_model_of_which_nothing_is_free_is_written_unchanged() -> None:
    model = net(KEPT["nothing special"])
    result = prune(model)
    assert result.model == model
    assert "nothing is free" in str(result.report)


def test_shared_weights_are_left_alone() -> None:
    """Two layers with one filter bank: a constant of one of them can't be folded."""

    def build(g: Net) -> str:
        weight = g.w(5, C, 1, 1)
        return g.Add(g.Conv(g.Sigmoid(producer(g, (1,))), weight), g.Conv(g.Sigmoid(producer(g)), weight))

    assert counts(net(build)) == {}


def test_dynamic_sizes() -> None:
    """Reshapes by computed sizes, and a batch of any size."""
    builder = graphs.Builder(0)
    builder.plain()
    x, channels, size = builder.live[-1]
    shape = builder.op("Shape", [x])
    flat = builder.op("Concat", [builder.op("Gather", [shape, builder.ints(0)]), builder.ints(-1)], axis=0)
    y = builder.op("Reshape", [x, flat])
    builder.live.append((builder.op("Reshape", [y, builder.ints(-1, channels, size, size)]), channels, size))
    builder.live = builder.live[-1:]
    maker, made = half_zeroed(builder.finish("flatten"))
    zeroed = maker.finish()
    result = prune(zeroed)
    freed.assert_original(zeroed, result.model)
    assert {row.group.name: row.group.size - row.kept for row in result.report.groups} == made


def test_a_new_bias_has_the_type_of_the_weights() -> None:
    """A double model gets a double bias."""
    g = Net(17)
    x = g.input(g.randn(4, 7).astype(np.float64))
    first = g.randn(7, C).astype(np.float64)
    first[:, :2] = 0
    y = g.Sigmoid(g.Gemm(x, g.store(first)))
    g.outputs.append(g.Gemm(y, g.store(g.randn(C, 5).astype(np.float64))))
    model = g.model()
    result = prune(model)
    assert [row.counts for row in result.report.free] == [(0, 0, 2, 0)]
    assert {t.data_type for t in result.model.graph.initializer} == {TensorProto.DOUBLE}
