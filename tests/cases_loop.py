"""Subgraphs that are repeated: Loop, with states that come round again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cases_control import Body, Build, branch, conv, flag, loop, small, yes, zeros, zeros_like
from cases_net import Case, Net, Operand, frozen, row
from onnx import TensorProto, helper


# Loop ----------------------------------------------------------------------------------------------------------------------
def _residual(g: Net, x: str, *, trips: Operand = 3, **options: Any) -> str:
    """The same layer again and again, its filter outside."""
    w = small(g, 8, 8, 1, 1)
    return loop(g, trips, [x], lambda b, i, h: b.Add(h, b.Relu(b.Conv(h, w, b.w(8)))), **options)


def _trips_from_shape(g: Net, x: str) -> str:
    return _residual(g, x, trips=g.Gather(g.Shape(x), np.array(0)))


def _trips_input(g: Net, x: str) -> str:
    return _residual(g, x, trips=g.input(np.array(2)))


def _until(g: Net, x: str) -> str:
    """No number of repetitions; it goes on while a mean is small."""

    def fill(b: Body, i: str, h: str) -> list[str]:
        new = b.Add(h, b.Relu(b.Conv(h, small(b, 8, 8, 1, 1))))
        return [b.Less(i, np.array(2)), new]

    return loop(g, None, [x], fill, condition=yes(g))


def _cell(
    g: Net,
    x: str,
    *,
    inside: bool = False,
    act: str = "Tanh",
    start: str = "zeros",
    stacked: bool = False,
    bias: bool = True,
) -> Any:
    """A recurrent cell by hand: the tokens' first axis are the steps."""
    w, r = ("", "") if inside else (small(g, 8, 6), small(g, 6, 6))
    first = {"zeros": lambda: zeros(g, 5, 6), "stored": lambda: g.w(5, 6), "like": lambda: zeros_like(g, x, 6)}[start]()

    def fill(b: Body, i: str, h: str) -> Any:
        u, v = (small(b, 8, 6), small(b, 6, 6)) if inside else (w, r)
        total = b.Add(b.MatMul(b.Gather(x, i, axis=0), u), b.MatMul(h, v))
        new = getattr(b, act)(b.Add(total, b.w(6)) if bias else total)
        return [new, b.Identity(new)] if stacked else new

    results = loop(g, g.Gather(g.Shape(x), np.array(0)), [first], fill, outputs=1 + stacked)
    return results[1] if stacked else results


def _lstm_by_hand(g: Net, x: str) -> Any:
    w, r, b0 = small(g, 8, 24), small(g, 6, 24), small(g, 24)

    def fill(b: Body, i: str, h: str, c: str) -> list[str]:
        gates = b.Add(b.Add(b.MatMul(b.Gather(x, i, axis=0), w), b.MatMul(h, r)), b0)
        a, f, o, n = b.Split(gates, [6, 6, 6, 6], axis=1, outputs=4)
        cell = b.Add(b.Mul(b.Sigmoid(f), c), b.Mul(b.Sigmoid(a), b.Tanh(n)))
        new = b.Mul(b.Sigmoid(o), b.Tanh(cell))
        return [new, cell, b.Identity(new)]

    return loop(g, 2, [zeros(g, 5, 6), zeros(g, 5, 6)], fill, outputs=3)[2]


def _bias_each_time(g: Net, x: str) -> str:
    """Zeros to begin with, but one is added each time."""
    h = loop(g, 3, [zeros(g, 2, 8, 4, 6)], lambda b, i, h: b.Add(h, 1.0))
    return g.Mul(h, g.Sigmoid(x))


def _slowly_filled(g: Net, x: str) -> str:
    """The first state is zero for one repetition longer, because it takes its value from the second."""
    first = zeros(g, 2, 8, 4, 6)

    def fill(b: Body, i: str, one: str, two: str) -> list[str]:
        return [b.Identity(two), b.Add(two, 1.0)]

    return g.Add(loop(g, 3, [first, first], fill, outputs=2)[0], x)


def _swapped(g: Net, x: str) -> str:
    y = g.Conv(x, g.w(8, 8, 1, 1))
    one, two = loop(g, 3, [x, y], lambda b, i, one, two: [b.Identity(two), b.Relu(one)], outputs=2)
    return g.Add(one, two)


def _turned(g: Net, x: str) -> str:
    """The channels change places each time: those that meet leave together."""
    return loop(g, 3, [x], lambda b, i, h: b.Gather(b.Relu(h), [4, 5, 6, 7, 0, 1, 2, 3], axis=1))


def _untouched(g: Net, x: str) -> str:
    y = g.Conv(x, g.w(8, 8, 1, 1))
    return loop(g, 3, [x, y], lambda b, i, h, k: [b.Add(b.Relu(h), k), b.Identity(k)], outputs=2)[0]


def _counted(g: Net, x: str) -> str:
    """A number is counted along, and scales."""

    def fill(b: Body, i: str, h: str, n: str) -> list[str]:
        return [b.Mul(h, b.Cast(n, to=1)), b.Add(n, np.array(1))]

    return loop(g, 3, [x, np.array(1)], fill, outputs=2)[0]


def _growing(axis: int, *, taken: bool = True) -> Build:
    def build(g: Net, x: str) -> str:
        y = loop(g, 3, [x], lambda b, i, h: b.Concat(h, b.Relu(x), axis=axis))
        g.consume(g.ReduceMax(y, keepdims=0), "none", "image")
        return x

    return build


def _stacked_images(g: Net, x: str) -> str:
    """What every repetition gives is stacked along a new axis."""
    y = loop(g, 3, [x], lambda b, i, h: [b.Relu(conv(h, 8)(b)), conv(h, 6)(b)], outputs=2)[1]
    return g.Gather(y, np.array(1), axis=0)


def _stacked_only(g: Net, x: str) -> str:
    """No state at all."""
    y = loop(g, 2, [], lambda b, i: b.MatMul(b.Gather(x, i, axis=0), b.w(8, 6)))
    return g.Tanh(y)


def _loop_in_if(g: Net, x: str) -> str:
    return branch(g, flag(g), lambda b: _residual(b, x), lambda b: b.Tanh(x))


def _if_in_loop(g: Net, x: str) -> str:
    """One of two layers, by the number of the repetition."""

    def fill(b: Body, i: str, h: str) -> str:
        even = b.Equal(b.Mod(i, np.array(2)), np.array(0))
        return branch(b, even, conv(h, 8, act="Relu"), conv(h, 8, act="Tanh"))

    return loop(g, 3, [x], fill)


def _loop_in_loop(g: Net, x: str) -> str:
    def outer(b: Body, i: str, h: str) -> str:
        return loop(b, 2, [conv(h, 8, act="Tanh")(b)], lambda n, j, k: n.Relu(n.Conv(k, small(n, 8, 8, 1, 1))))

    return loop(g, 2, [x], outer)


def _maybe(g: Net, x: str) -> str:
    """Perhaps no repetition at all."""
    return _residual(g, x, condition=flag(g))


def _no_number(g: Net, x: str) -> str:
    """Neither a number of repetitions nor a condition to begin with."""
    return loop(g, None, [x], lambda b, i, h: [b.Less(i, np.array(2)), b.Relu(conv(h, 8)(b))])


def _batch_grows(g: Net, x: str) -> str:
    """A state whose first axis grows, beside one that can be cut."""

    def fill(b: Body, i: str, h: str, k: str) -> list[str]:
        return [b.Relu(conv(h, 8)(b)), b.Concat(k, [1], axis=0)]

    return loop(g, 3, [x, [0]], fill, outputs=2)[0]


def _ends_with(g: Net, x: str) -> str:
    return loop(g, 3, [x], lambda b, i, h: b.Softmax(h, axis=1))


def _sizes_in_body(g: Net, x: str) -> str:
    def fill(b: Body, i: str, h: str) -> str:
        y = b.Reshape(b.Relu(b.Reshape(conv(h, 8)(b), [2, 8, 24])), [2, 8, 4, 6])
        one, two = b.Split(y, [3, 5], axis=1, outputs=2)
        return b.Concat(one, b.Tanh(two), axis=1)

    return loop(g, 3, [x], fill)


def _declared_results(g: Net, shape: Sequence[int]) -> None:
    """Declare what the states of the last Loop are, which ONNX wants of results that no node computes."""
    for port in g.nodes[-1].attribute[0].g.output[1:]:
        port.CopyFrom(helper.make_tensor_value_info(port.name, TensorProto.FLOAT, shape))


def _swapped_directly(g: Net, x: str) -> str:
    """A body's inputs are its results, no node between."""
    one, two = loop(g, 3, [x, g.Conv(x, g.w(8, 8, 1, 1))], lambda b, i, h, k: [k, h], outputs=2)
    _declared_results(g, [2, 8, 4, 6])
    return g.Add(g.Relu(one), two)


def _state_and_stack(g: Net, x: str) -> str:
    """The same tensor is the new state and what is stacked."""
    w = g.w(8, 8, 1, 1)

    def fill(b: Body, i: str, h: str) -> list[str]:
        new = b.Tanh(b.Conv(h, w))
        return [new, new]

    stacked = loop(g, 3, [x], fill, outputs=2)[1]
    _declared_results(g, [2, 8, 4, 6])
    return g.Gather(stacked, np.array(1), axis=0)


def _unread_state(g: Net, x: str) -> str:
    """Each state is computed from the other, one is not read behind the Loop."""

    def fill(b: Body, i: str, h: str, k: str) -> list[str]:
        return [b.Relu(conv(k, 8)(b)), b.Add(k, b.Tanh(conv(h, 8)(b)))]

    return loop(g, 3, [x, g.Conv(x, g.w(8, 8, 1, 1))], fill, outputs=2)[1]


def _table(g: Net, x: str) -> str:
    """Each repetition has a row of a table of its own."""
    table = g.w(4, 8, 1, 1)
    return loop(g, 3, [x], lambda b, i, h: b.Relu(b.Mul(conv(h, 8)(b), b.Gather(table, i, axis=0))))


def _vector_used_twice_inside(g: Net, x: str) -> str:
    """Layers in a body that share nothing but a bias stored there."""

    def fill(b: Body, i: str, h: str) -> str:
        bias = b.w(5)
        return b.Tanh(b.Add(*[b.Conv(b.Relu(b.Conv(h, b.w(5, 8, 1, 1), bias)), b.w(8, 5, 1, 1)) for _ in "ab"]))

    return loop(g, 3, [x], fill)


def _numbers_of_one_element(g: Net, x: str) -> str:
    """The number of the repetition and the condition as vectors of one element."""
    b = Body(g, "loop_")
    b.formal("number", TensorProto.INT64, [1])
    go, h = b.formal("go", TensorProto.BOOL, [1]), b.formal("state")
    new = b.Relu(conv(h, 8)(b))
    return g.Loop([3], g.store(np.array([True])), x, body=b.graph([b.Identity(go), new]))


def _by_the_state(g: Net, x: str) -> str:
    """A condition computed over all channels of the state."""

    def fill(b: Body, i: str, h: str) -> str:
        small = b.Less(b.ReduceMax(h, keepdims=0), 0.5)
        return branch(b, small, lambda n: n.Add(h, n.Relu(conv(h, 8)(n))), lambda n: n.Mul(h, 0.5))

    return loop(g, 4, [x], fill)


CASES: list[Case] = [
    *row("Loop", (11, 13, 16, 19, 22), "", _residual),
    *row("Loop", 13, "dynamic", _residual, dynamic=True),
    *row("Loop", 16, "number from a shape", _trips_from_shape, dynamic=True),
    *row("Loop", 16, "number is an input", _trips_input),
    *row("Loop", 16, "until", _until),
    *row("Loop", 16, "neither number nor condition", _no_number),
    *row("Loop", 16, "perhaps not at all", _maybe),
    *row("Loop", (11, 16), "recurrent cell", _cell, start="tokens", zero=True),
    *row("Loop", 16, "recurrent cell weights inside", lambda g, x: _cell(g, x, inside=True), start="tokens", zero=True),
    *row("Loop", 16, "recurrent cell stacked", lambda g, x: _cell(g, x, stacked=True), start="tokens", zero=True),
    *row("Loop", 16, "recurrent cell no bias", lambda g, x: _cell(g, x, bias=False), start="tokens", zero=True),
    *row("Loop", 16, "recurrent cell stored state", lambda g, x: _cell(g, x, start="stored"), start="tokens", zero=True),
    *row(
        "Loop",
        16,
        "recurrent cell zeros made",
        lambda g, x: _cell(g, x, start="like"),
        start="tokens",
        zero=True,
        dynamic=True,
    ),
    *row("Loop", 16, "recurrent cell of Sigmoid", lambda g, x: _cell(g, x, act="Sigmoid"), start="tokens", zero=False),
    *row(
        "Loop",
        16,
        "recurrent cell of Sigmoid stacked",
        lambda g, x: _cell(g, x, act="Sigmoid", stacked=True),
        start="tokens",
        zero=False,
    ),
    *row("Loop", 16, "LSTM by hand", _lstm_by_hand, start="tokens", zero=True),
    *row("Loop", 16, "something added each time", _bias_each_time, zero=False),
    *row("Loop", 16, "slowly filled", _slowly_filled, zero=False),
    *row("Loop", 16, "swapped", _swapped),
    *row("Loop", 16, "turned", _turned),
    *row("Loop", 16, "untouched", _untouched),
    *row("Loop", 16, "counted", _counted),
    *row("Loop", 16, "swapped directly", _swapped_directly),
    *row("Loop", 16, "state and stack", _state_and_stack),
    *row("Loop", 16, "unread state", _unread_state),
    *row("Loop", 16, "row of a table", _table),
    *row("Loop", 16, "vector used twice inside", _vector_used_twice_inside),
    *row("Loop", 16, "numbers of one element", _numbers_of_one_element),
    *frozen("Loop", 16, "by the state", _by_the_state, blame="ReduceMax"),
    *row("Loop", 16, "another state grows", _batch_grows),
    *row("Loop", 16, "stacked images", _stacked_images),
    *row("Loop", 16, "stacked only", _stacked_only, start="tokens"),
    *row("Loop", 16, "in If", _loop_in_if),
    *row("Loop", 16, "around If", _if_in_loop),
    *row("Loop", 16, "in Loop", _loop_in_loop),
    *row("Loop", 16, "sizes in the body", _sizes_in_body),
    *frozen("Loop", 16, "channels grow", _growing(1), end="none"),
    *frozen("Loop", 16, "batch grows", _growing(0), end="none"),
    *frozen("Loop", 16, "mixed inside", _ends_with, blame="Softmax"),
    *frozen("Loop", 16, "output", lambda g, x: _residual(g, x), end="none", blame="graph output"),
    *frozen(
        "Loop",
        16,
        "state is an input",
        lambda g, x: loop(g, 3, [g.input(g.randn(2, 8, 4, 6))], lambda b, i, h: b.Add(h, x)),
        blame="graph input",
    ),
]
