"""Subgraphs: If, Loop and Scan, with weights inside and outside, and states that come round again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cases_net import Case, Net, Operand, Result, frozen, row
from onnx import GraphProto, TensorProto, ValueInfoProto, helper

Build = Callable[[Net, str], Any]
Fill = Callable[["Body"], Result]
Repeat = Callable[..., Sequence[str]]


class Body(Net):
    """A subgraph of a net. It reads what it likes of the nets around it, by name; its own names begin with ``prefix``."""

    def __init__(self, outer: Net, prefix: str) -> None:
        super().__init__(outer.opset)
        self.rng = outer.rng
        self.prefix = prefix

    def __getattr__(self, op: str) -> Callable[..., Any]:
        plain = super().__getattr__(op)

        def write(*operands: Operand, outputs: int = 1, **attributes: Any) -> Any:
            plain(*operands, outputs=outputs, **attributes)
            node = self.nodes[-1]
            node.output[:] = [self.prefix + name for name in node.output]
            return list(node.output) if outputs > 1 else node.output[0]

        return write

    def store(self, values: np.ndarray) -> str:
        """An initializer of the subgraph."""
        name = self.prefix + super().store(values)
        self.stored[-1].name = name
        return name

    def formal(self, name: str, kind: int = 0, shape: Sequence[int] = ()) -> str:
        """An input of the subgraph; with ``kind`` its type and shape are declared."""
        name = self.prefix + name
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape) if kind else ValueInfoProto(name=name))
        return name

    def graph(self, results: Result, shape: Sequence[int] | None = None) -> GraphProto:
        """The subgraph with these results, all of them floats of ``shape`` if that is declared."""
        names = [results] if isinstance(results, str) else results
        known = {t.name: (t.data_type, t.dims) for t in self.stored}
        if shape is not None:
            known = dict.fromkeys(names, (TensorProto.FLOAT, shape))
        ports = [helper.make_tensor_value_info(n, *known[n]) if n in known else ValueInfoProto(name=n) for n in names]
        return helper.make_graph(self.nodes, f"{self.prefix}body", self.inputs, ports, self.stored)


def _prefix(g: Net) -> str:
    return g.prefix if isinstance(g, Body) else ""


def branch(
    g: Net, condition: Operand, then: Fill, other: Fill, *, outputs: int = 1, names: Sequence[str] = ("yes_", "no_")
) -> Any:
    """An If; each branch is written by a function of its Body."""
    bodies = [Body(g, _prefix(g) + name if name else "") for name in names]
    graphs = [b.graph(fill(b)) for b, fill in zip(bodies, (then, other), strict=True)]
    return g.If(condition, then_branch=graphs[0], else_branch=graphs[1], outputs=outputs)


def loop(g: Net, trips: Operand, states: Sequence[Operand], fill: Repeat, *, condition: Operand = None, outputs: int = 1) -> Any:
    """A Loop; ``fill(body, number, *states)`` returns the new states and then what is stacked, or with ``again`` a dict."""
    b = Body(g, _prefix(g) + "loop_")
    number, go = b.formal("number", TensorProto.INT64), b.formal("go", TensorProto.BOOL)
    results = fill(b, number, *[b.formal(f"state{k}") for k in range(len(states))])
    results = [results] if isinstance(results, str) else list(results)
    again = b.Identity(go) if len(results) < outputs + 1 else results.pop(0)
    return g.Loop(trips, condition, *states, body=b.graph([again, *results]), outputs=outputs)


def scan(
    g: Net,
    states: Sequence[Operand],
    scanned: Sequence[str],
    fill: Repeat,
    *,
    outputs: int,
    declared: Any = None,
    **attributes: Any,
) -> Any:
    """A Scan; ``fill(body, *states, *slices)`` returns the new states and then what is stacked, all of a ``declared`` shape."""
    b = Body(g, _prefix(g) + "scan_")
    names = [f"state{k}" for k in range(len(states))] + [f"slice{k}" for k in range(len(scanned))]
    formals = [b.formal(name, *((TensorProto.FLOAT, declared) if declared else ())) for name in names]
    body = b.graph(fill(b, *formals), declared)
    return g.Scan(*states, *scanned, body=body, num_scan_inputs=len(scanned), outputs=outputs, **attributes)


# conditions and pieces -----------------------------------------------------------------------------------------------------
def flag(g: Net) -> str:
    """A graph input; the tests run both ways."""
    return g.input(np.array(True))


def _true(g: Net) -> str:
    return g.store(np.array(True))


def _false(g: Net) -> str:
    return g.constant(np.array(False))


def _computed(g: Net) -> str:
    """Whether something on the graph's input is more than on average: yes or no for all inputs, but not known."""
    return g.Greater(g.ReduceMax(g.inputs[0].name, keepdims=0), 0.5)


def _conv(x: str, out: int = 6, *, into: int = 8, act: str = "", bias: bool = True) -> Fill:
    """A convolution with weights of its own."""

    def fill(b: Net) -> str:
        y = b.Conv(x, b.w(out, into, 1, 1), b.w(out) if bias else None)
        return getattr(b, act)(y) if act else y

    return fill


def _small(g: Net, *shape: int) -> str:
    return g.store((g.rng.uniform(0.1, 0.4, shape) * g.rng.choice([-1, 1], shape)).astype(np.float32))


def _zeros(g: Net, *shape: int) -> str:
    """A state of zeros, of a constant size."""
    return g.ConstantOfShape(list(shape))


def _zeros_like(g: Net, x: str, width: int) -> str:
    """A state of zeros for each of the samples (axis 1) of the tokens."""
    return g.ConstantOfShape(g.Concat(g.Slice(g.Shape(x), [1], [2], [0]), [width], axis=0))


# If ------------------------------------------------------------------------------------------------------------------------
def _if(
    then: Callable[[str], Fill], other: Callable[[str], Fill], condition: Callable[[Net], str] = flag, **options: Any
) -> Build:
    return lambda g, x: branch(g, condition(g), then(x), other(x), **options)


def _own(condition: Callable[[Net], str] = flag, **options: Any) -> Build:
    """A layer of its own in each branch."""
    return _if(lambda x: _conv(x, act="Relu"), lambda x: _conv(x, act="Tanh"), condition, **options)


def _captured(g: Net, x: str) -> str:
    """Both branches read filters and biases that are stored outside."""
    w, v, b = g.w(6, 8, 1, 1), g.w(6, 8, 1, 1), g.w(6)
    return branch(g, flag(g), lambda n: n.Conv(x, w, b), lambda n: n.Relu(n.Conv(x, v, b)))


def _captured_twice(g: Net, x: str) -> str:
    """A filter that is read in one branch and outside."""
    w = g.w(8, 8, 1, 1)
    return g.Conv(branch(g, flag(g), lambda n: n.Conv(x, w), lambda n: n.Relu(x)), w)


def _shared_bias(g: Net, x: str) -> list[str]:
    """A bias read in a branch and outside, by layers that share nothing else."""
    b = g.w(6)
    result = branch(g, flag(g), lambda n: n.Conv(x, n.w(6, 8, 1, 1), b), lambda n: n.Conv(x, n.w(6, 8, 1, 1), b))
    return [result, g.Conv(x, g.w(6, 8, 1, 1), b)]


def _constants(g: Net, x: str) -> str:
    def fill(n: Body) -> str:
        return n.Conv(x, n.constant(n.randn(6, 8, 1, 1)), n.constant(n.randn(6)))

    return branch(g, flag(g), fill, fill)


def _nested(g: Net, x: str) -> str:
    inner = flag(g)

    def fill(n: Body) -> str:
        y = _conv(x)(n)
        return branch(n, inner, lambda m: m.Relu(m.Conv(y, m.w(6, 6, 1, 1))), lambda m: m.Add(m.Identity(y), m.w(6, 1, 1)))

    return branch(g, flag(g), fill, _conv(x))


def _three_deep(g: Net, x: str) -> str:
    first, second, third = flag(g), flag(g), flag(g)

    def deepest(m: Body) -> str:
        return branch(m, third, _conv(x), lambda k: k.Relu(_conv(x)(k)))

    def middle(m: Body) -> str:
        y = branch(m, second, deepest, _conv(x))
        return m.Conv(y, m.w(5, 6, 1, 1))

    return branch(g, first, middle, _conv(x, 5))


def _sizes_inside(g: Net, x: str) -> str:
    """Sizes that are stored inside follow: a Reshape target, and the widths of a Split."""

    def shuffled(n: Body) -> str:
        y = n.Reshape(_conv(x, 8)(n), [2, 2, 4, 4, 6])
        return n.Reshape(n.Transpose(y, perm=[0, 2, 1, 3, 4]), [2, 8, 4, 6])

    def parted(n: Body) -> str:
        one, two = n.Split(_conv(x, 8)(n), [3, 5], axis=1, outputs=2)
        return n.Concat(two, one, axis=1)

    return branch(g, flag(g), shuffled, parted)


def _sizes_outside(g: Net, x: str) -> str:
    """A target that is stored outside, for a Reshape in each branch and one outside."""
    target, back = g.store(np.array([2, 6, 24])), g.store(np.array([2, 6, 4, 6]))
    result = branch(g, flag(g), lambda n: n.Reshape(_conv(x)(n), target), lambda n: n.Relu(n.Reshape(_conv(x)(n), target)))
    return g.Add(g.Reshape(result, back), g.Reshape(g.Reshape(g.Conv(x, g.w(6, 8, 1, 1)), target), back))


def _shape_outside(g: Net, x: str) -> str:
    """The shape of an outer tensor is read inside."""
    shape = g.Shape(x)

    def fill(n: Body) -> str:
        flat = n.Reshape(x, n.Concat(n.Slice(shape, [0], [2]), [-1], axis=0))
        return n.Reshape(n.Relu(flat), shape)

    return branch(g, flag(g), fill, lambda n: n.Tanh(x))


def _different_channels(g: Net, x: str) -> str:
    """Each branch joins the same channels in another order: they are tied across."""
    y = g.Conv(x, g.w(8, 8, 1, 1))
    return branch(g, flag(g), lambda n: n.Concat(x, y, axis=1), lambda n: n.Concat(n.Relu(y), n.Relu(x), axis=1))


def _two_ranks(g: Net, x: str) -> str:
    """Which rank the result has is not known before the model runs."""
    y = branch(g, flag(g), _conv(x), lambda n: n.Flatten(n.GlobalMaxPool(_conv(x)(n))))
    g.consume(g.ReduceMax(y, keepdims=0), "none", "image")
    return x


def _two_results(g: Net, x: str) -> list[str]:
    def then(n: Body) -> list[str]:
        return [_conv(x)(n), _conv(x, 5)(n)]

    def other(n: Body) -> list[str]:
        y = _conv(x)(n)
        return [n.Relu(y), n.Conv(y, n.w(5, 6, 1, 1))]

    return branch(g, flag(g), then, other, outputs=2)


def _weights_like_outside(g: Net, x: str) -> str:
    """Both branches call their weights as weights outside are called, which they do not read."""
    names = [g.w(6, 8, 1, 1), g.w(6)]

    def fill(b: Body) -> str:
        b.w(6, 8, 1, 1), b.w(6)
        for tensor, name in zip(b.stored, names, strict=True):
            tensor.name = name
        return b.Conv(x, *names)

    return g.Add(branch(g, flag(g), fill, lambda b: b.Relu(fill(b))), g.Relu(g.Conv(x, *names)))


def _with_layer(g: Net, x: str) -> str:
    """A recurrent layer in one branch."""

    def then(n: Body) -> str:
        y = n.LSTM(x, _small(n, 1, 24, 8), _small(n, 1, 24, 6), _small(n, 1, 48), hidden_size=6, outputs=3)[0]
        return n.Squeeze(y, [1])

    return branch(g, flag(g), then, lambda n: n.Tanh(n.MatMul(x, n.w(8, 6))))


CASES: list[Case] = [
    *row("If", (11, 13, 16, 19, 22), "", _own(), zero=True),
    *row("If", 13, "dynamic", _own(), zero=True, dynamic=True),
    *row("If", (11, 16), "filters outside", _captured),
    *row("If", 16, "filter in a branch and outside", _captured_twice),
    *row("If", 16, "bias in a branch and outside", _shared_bias),
    *row("If", 16, "Constants", _constants, zero=True),
    *row("If", 16, "always", _own(_true), zero=True),
    *row("If", 16, "never", _own(_false), zero=True),
    *row("If", 16, "computed", _own(_computed), zero=True),
    *row("If", 16, "not zero in one branch", _if(lambda x: _conv(x), lambda x: _conv(x, act="Sigmoid")), zero=False),
    *row("If", 16, "not zero in the other", _if(lambda x: _conv(x, act="Sigmoid"), lambda x: _conv(x)), zero=False),
    *row("If", 16, "passed on", _if(lambda x: _conv(x, 8), lambda x: lambda b: b.Identity(x)), zero=True),
    *row("If", 16, "passed on twice", _if(lambda x: lambda b: b.Relu(x), lambda x: lambda b: b.Identity(x)), zero=True),
    *row("If", 16, "stored in a branch", _if(lambda x: _conv(x), lambda x: lambda b: b.Identity(b.w(2, 6, 4, 6))), zero=True),
    *row("If", 16, "stored result", _if(lambda x: _conv(x), lambda x: lambda b: b.w(2, 6, 4, 6)), zero=True),
    *row("If", 16, "zeros in a branch", _if(lambda x: _conv(x), lambda x: lambda b: b.ConstantOfShape([2, 6, 4, 6])), zero=True),
    *row("If", 16, "weights like outside", _weights_like_outside),
    *row("If", 16, "names like the other branch", _own(names=("b_", "b_")), zero=True),
    *row("If", 16, "nested", _nested, zero=True),
    *row("If", 16, "three deep", _three_deep),
    *row("If", (13, 16), "sizes inside", _sizes_inside),
    *row("If", 16, "sizes outside", _sizes_outside),
    *row("If", 16, "shape outside", _shape_outside, dynamic=True),
    *row("If", 16, "joined in two orders", _different_channels),
    *row("If", 16, "two results", _two_results),
    *row("If", 16, "recurrent layer inside", _with_layer, start="tokens", zero=True),
    *frozen("If", 16, "two ranks", _two_ranks, end="none"),
    *frozen("If", 16, "output", lambda g, x: [branch(g, flag(g), _conv(x), _conv(x)), x], end="none", blame="graph output"),
    *frozen(
        "If",
        16,
        "input in a branch",
        _if(lambda x: lambda b: b.Relu(x), lambda x: lambda b: b.Concat("x0", "x0", b.Slice("x0", [0], [2], [1]), axis=1)),
        blame="graph input",
    ),
]


# Loop ----------------------------------------------------------------------------------------------------------------------
def _residual(g: Net, x: str, *, trips: Operand = 3, **options: Any) -> str:
    """The same layer again and again, its filter outside."""
    w = _small(g, 8, 8, 1, 1)
    return loop(g, trips, [x], lambda b, i, h: b.Add(h, b.Relu(b.Conv(h, w, b.w(8)))), **options)


def _trips_from_shape(g: Net, x: str) -> str:
    return _residual(g, x, trips=g.Gather(g.Shape(x), np.array(0)))


def _trips_input(g: Net, x: str) -> str:
    return _residual(g, x, trips=g.input(np.array(2)))


def _until(g: Net, x: str) -> str:
    """No number of repetitions; it goes on while a mean is small."""

    def fill(b: Body, i: str, h: str) -> list[str]:
        new = b.Add(h, b.Relu(b.Conv(h, _small(b, 8, 8, 1, 1))))
        return [b.Less(i, np.array(2)), new]

    return loop(g, None, [x], fill, condition=_true(g))


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
    w, r = ("", "") if inside else (_small(g, 8, 6), _small(g, 6, 6))
    first = {"zeros": lambda: _zeros(g, 5, 6), "stored": lambda: g.w(5, 6), "like": lambda: _zeros_like(g, x, 6)}[start]()

    def fill(b: Body, i: str, h: str) -> Any:
        u, v = (_small(b, 8, 6), _small(b, 6, 6)) if inside else (w, r)
        total = b.Add(b.MatMul(b.Gather(x, i, axis=0), u), b.MatMul(h, v))
        new = getattr(b, act)(b.Add(total, b.w(6)) if bias else total)
        return [new, b.Identity(new)] if stacked else new

    results = loop(g, g.Gather(g.Shape(x), np.array(0)), [first], fill, outputs=1 + stacked)
    return results[1] if stacked else results


def _lstm_by_hand(g: Net, x: str) -> Any:
    w, r, b0 = _small(g, 8, 24), _small(g, 6, 24), _small(g, 24)

    def fill(b: Body, i: str, h: str, c: str) -> list[str]:
        gates = b.Add(b.Add(b.MatMul(b.Gather(x, i, axis=0), w), b.MatMul(h, r)), b0)
        a, f, o, n = b.Split(gates, [6, 6, 6, 6], axis=1, outputs=4)
        cell = b.Add(b.Mul(b.Sigmoid(f), c), b.Mul(b.Sigmoid(a), b.Tanh(n)))
        new = b.Mul(b.Sigmoid(o), b.Tanh(cell))
        return [new, cell, b.Identity(new)]

    return loop(g, 2, [_zeros(g, 5, 6), _zeros(g, 5, 6)], fill, outputs=3)[2]


def _bias_each_time(g: Net, x: str) -> str:
    """Zeros to begin with, but one is added each time."""
    h = loop(g, 3, [_zeros(g, 2, 8, 4, 6)], lambda b, i, h: b.Add(h, 1.0))
    return g.Mul(h, g.Sigmoid(x))


def _slowly_filled(g: Net, x: str) -> str:
    """The first state is zero for one repetition longer, because it takes its value from the second."""
    zeros = _zeros(g, 2, 8, 4, 6)

    def fill(b: Body, i: str, one: str, two: str) -> list[str]:
        return [b.Identity(two), b.Add(two, 1.0)]

    return g.Add(loop(g, 3, [zeros, zeros], fill, outputs=2)[0], x)


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
    y = loop(g, 3, [x], lambda b, i, h: [b.Relu(_conv(h, 8)(b)), _conv(h, 6)(b)], outputs=2)[1]
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
        return branch(b, even, _conv(h, 8, act="Relu"), _conv(h, 8, act="Tanh"))

    return loop(g, 3, [x], fill)


def _loop_in_loop(g: Net, x: str) -> str:
    def outer(b: Body, i: str, h: str) -> str:
        return loop(b, 2, [_conv(h, 8, act="Tanh")(b)], lambda n, j, k: n.Relu(n.Conv(k, _small(n, 8, 8, 1, 1))))

    return loop(g, 2, [x], outer)


def _maybe(g: Net, x: str) -> str:
    """Perhaps no repetition at all."""
    return _residual(g, x, condition=flag(g))


def _no_number(g: Net, x: str) -> str:
    """Neither a number of repetitions nor a condition to begin with."""
    return loop(g, None, [x], lambda b, i, h: [b.Less(i, np.array(2)), b.Relu(_conv(h, 8)(b))])


def _batch_grows(g: Net, x: str) -> str:
    """A state whose first axis grows, beside one that can be cut."""

    def fill(b: Body, i: str, h: str, k: str) -> list[str]:
        return [b.Relu(_conv(h, 8)(b)), b.Concat(k, [1], axis=0)]

    return loop(g, 3, [x, [0]], fill, outputs=2)[0]


def _ends_with(g: Net, x: str) -> str:
    return loop(g, 3, [x], lambda b, i, h: b.Softmax(h, axis=1))


def _sizes_in_body(g: Net, x: str) -> str:
    def fill(b: Body, i: str, h: str) -> str:
        y = b.Reshape(b.Relu(b.Reshape(_conv(h, 8)(b), [2, 8, 24])), [2, 8, 4, 6])
        one, two = b.Split(y, [3, 5], axis=1, outputs=2)
        return b.Concat(one, b.Tanh(two), axis=1)

    return loop(g, 3, [x], fill)


CASES += [
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


# Scan ----------------------------------------------------------------------------------------------------------------------
def _scanned(
    g: Net,
    x: str,
    *,
    inside: bool = False,
    act: str = "Tanh",
    part: int = 1,
    turn: Sequence[int] | None = None,
    back: Sequence[int] | None = None,
    state: str = "zeros",
    **attributes: Any,
) -> str:
    """A recurrent cell by hand over an axis of the tokens. ``turn``, ``back``: transpositions before and after."""
    x = g.Transpose(x, perm=turn) if turn else x
    rows = g.probe(x)[0][1 - attributes.get("scan_input_axes", [0])[0]]
    w, r = ("", "") if inside else (_small(g, 8, 6), _small(g, 6, 6))
    first = _zeros(g, rows, 6) if state == "zeros" else g.w(rows, 6) if state == "stored" else _zeros_like(g, x, 6)

    def fill(b: Body, h: str, xt: str) -> list[str]:
        u, v = (_small(b, 8, 6), _small(b, 6, 6)) if inside else (w, r)
        new = getattr(b, act)(b.Add(b.Add(b.MatMul(xt, u), b.MatMul(h, v)), b.w(6)))
        return [new, b.Identity(new)]

    result = scan(g, [first], [x], fill, outputs=2, **attributes)[part]
    return g.Transpose(result, perm=back) if back else result


def _scan(**options: Any) -> Build:
    return lambda g, x: _scanned(g, x, **options)


def _two_states(g: Net, x: str) -> list[str]:
    w, r, b0 = _small(g, 8, 24), _small(g, 6, 24), _small(g, 24)

    def fill(b: Body, h: str, c: str, xt: str) -> list[str]:
        gates = b.Add(b.Add(b.MatMul(xt, w), b.MatMul(h, r)), b0)
        a, f, o, n = b.Split(gates, [6, 6, 6, 6], axis=1, outputs=4)
        cell = b.Add(b.Mul(b.Sigmoid(f), c), b.Mul(b.Sigmoid(a), b.Tanh(n)))
        new = b.Mul(b.Sigmoid(o), b.Tanh(cell))
        return [new, cell, b.Identity(new), b.Relu(cell)]

    return scan(g, [_zeros(g, 5, 6), _zeros(g, 5, 6)], [x], fill, outputs=4)


def _two_inputs(g: Net, x: str) -> list[str]:
    """Two tensors scanned at once, along different axes and in different directions."""
    y = g.Transpose(g.another(), perm=[1, 0, 2])
    axes = {"scan_input_axes": [0, 1], "scan_input_directions": [0, 1]}
    out = {"scan_output_axes": [1, -1], "scan_output_directions": [1, 0]}

    def fill(b: Body, h: str, xt: str, yt: str) -> list[str]:
        new = b.Tanh(b.Add(b.Add(b.MatMul(xt, _small(b, 8, 6)), b.MatMul(yt, _small(b, 8, 6))), h))
        return [new, b.Relu(new), b.MatMul(new, _small(b, 6, 5))]

    _, one, two = scan(g, [_zeros(g, 5, 6)], [x, y], fill, outputs=3, **axes, **out)
    return [one, g.Transpose(two, perm=[2, 0, 1])]


def _running_sum(g: Net, x: str) -> str:
    """A sum that is built up: a state that begins with zeros."""
    return scan(g, [_zeros(g, 5, 8)], [x], lambda b, s, xt: [t := b.Add(s, xt), b.Identity(t)], outputs=2)[1]


def _no_state(g: Net, x: str) -> str:
    return scan(g, [], [x], lambda b, xt: b.Relu(b.MatMul(xt, b.w(8, 6))), outputs=1)


def _over_channels(g: Net, x: str) -> str:
    """A step for each channel."""
    return scan(
        g,
        [_zeros(g, 2, 5)],
        [x],
        lambda b, s, xt: [t := b.Add(s, xt), b.Identity(t)],
        outputs=2,
        scan_input_axes=[2],
        scan_output_axes=[2],
    )[1]


def _old_scan(g: Net, x: str) -> str:
    """Opset 8: a batch in front of everything, and lengths."""
    body = Body(g, "scan_")
    h, xt = body.formal("state"), body.formal("slice")
    for port in body.inputs:
        port.type.CopyFrom(helper.make_tensor_type_proto(1, [8]))
    new = body.Add(h, xt)
    graph = body.graph([new, body.Identity(new)])
    for port in graph.output:
        port.type.CopyFrom(helper.make_tensor_type_proto(1, [8]))
    state = g.store(np.zeros((2, 8), np.float32))
    return g.Scan(None, state, x, body=graph, num_scan_inputs=1, outputs=2)[1]


def _scan_in_loop(g: Net, x: str) -> str:
    """Layers one after another, all of them with the same weights."""
    w, r = _small(g, 8, 8), _small(g, 8, 8)

    def layer(b: Body, i: str, y: str) -> str:
        def fill(n: Body, h: str, xt: str) -> list[str]:
            new = n.Tanh(n.Add(n.MatMul(xt, w), n.MatMul(h, r)))
            return [new, n.Identity(new)]

        return scan(b, [_zeros(b, 5, 8)], [y], fill, outputs=2, declared=[5, 8])[1]

    return loop(g, 2, [x], layer)


def _filter_scanned(g: Net, x: str) -> str:
    """The weights of one layer after another are what is scanned."""
    filters, biases = _small(g, 3, 8, 8), g.w(3, 8)
    return scan(g, [x], [filters, biases], lambda b, h, w, c: b.Tanh(b.Add(b.MatMul(h, w), c)), outputs=1)


CASES += [
    *row("Scan", (9, 11, 16, 19, 22), "", _scan(), start="tokens", zero=True),
    *row("Scan", 16, "dynamic", _scan(state="like"), start="tokens", zero=True, dynamic=True),
    *row("Scan", 16, "last state", _scan(part=0), start="tokens", zero=True),
    *row("Scan", 16, "weights inside", _scan(inside=True), start="tokens", zero=True),
    *row("Scan", 16, "stored state", _scan(state="stored"), start="tokens", zero=True),
    *row("Scan", 16, "of Sigmoid", _scan(act="Sigmoid"), start="tokens", zero=False),
    *row("Scan", (9, 16), "second axis", _scan(scan_input_axes=[1]), start="tokens", zero=True),
    *row("Scan", 16, "axis from the end", _scan(turn=[0, 1, 2], scan_input_axes=[0], scan_output_axes=[-2]), start="tokens"),
    *row("Scan", 16, "backwards", _scan(scan_input_directions=[1], scan_output_directions=[1]), start="tokens", zero=True),
    *row("Scan", 16, "stacked in the middle", _scan(scan_output_axes=[1]), start="tokens", zero=True),
    *row("Scan", 16, "stacked last", _scan(scan_output_axes=[2], back=[2, 0, 1]), start="tokens", zero=True),
    *row("Scan", 16, "two states", _two_states, start="tokens", zero=True),
    *row("Scan", 16, "two inputs", _two_inputs, start="tokens"),
    *row("Scan", 16, "running sum", _running_sum, start="tokens", zero=True),
    *row("Scan", 16, "no state", _no_state, start="tokens", zero=True),
    *row("Scan", 16, "in Loop", _scan_in_loop, start="tokens", zero=True),
    *row("Scan", 16, "over filters", _filter_scanned, start="tokens"),
    *row(
        "Scan",
        16,
        "in If",
        lambda g, x: branch(g, flag(g), lambda b: _no_state(b, x), lambda b: b.MatMul(x, b.w(8, 6))),
        start="tokens",
    ),
    *frozen("Scan", 16, "over channels", _over_channels, start="tokens"),
    *frozen("Scan", 8, "with lengths", _old_scan, start="tokens"),
    *frozen("Scan", 16, "output", lambda g, x: [_scanned(g, x), x], start="tokens", end="none", blame="graph output"),
]
