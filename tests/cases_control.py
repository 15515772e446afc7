"""Subgraphs: how cases write them; and If, with weights inside and outside."""

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


def yes(g: Net) -> str:
    return g.store(np.array(True))


def no(g: Net) -> str:
    return g.constant(np.array(False))


def _computed(g: Net) -> str:
    """Whether something on the graph's input is more than on average: yes or no for all inputs, but not known."""
    return g.Greater(g.ReduceMax(g.inputs[0].name, keepdims=0), 0.5)


def conv(x: str, out: int = 6, *, into: int = 8, act: str = "", bias: bool = True) -> Fill:
    """A convolution with weights of its own."""

    def fill(b: Net) -> str:
        y = b.Conv(x, b.w(out, into, 1, 1), b.w(out) if bias else None)
        return getattr(b, act)(y) if act else y

    return fill


def small(g: Net, *shape: int) -> str:
    return g.store((g.rng.uniform(0.1, 0.4, shape) * g.rng.choice([-1, 1], shape)).astype(np.float32))


def zeros(g: Net, *shape: int) -> str:
    """A state of zeros, of a constant size."""
    return g.ConstantOfShape(list(shape))


def zeros_like(g: Net, x: str, width: int) -> str:
    """A state of zeros for each of the samples (axis 1) of the tokens."""
    return g.ConstantOfShape(g.Concat(g.Slice(g.Shape(x), [1], [2], [0]), [width], axis=0))


# If ------------------------------------------------------------------------------------------------------------------------
def _if(
    then: Callable[[str], Fill], other: Callable[[str], Fill], condition: Callable[[Net], str] = flag, **options: Any
) -> Build:
    return lambda g, x: branch(g, condition(g), then(x), other(x), **options)


def _own(condition: Callable[[Net], str] = flag, **options: Any) -> Build:
    """A layer of its own in each branch."""
    return _if(lambda x: conv(x, act="Relu"), lambda x: conv(x, act="Tanh"), condition, **options)


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
        y = conv(x)(n)
        return branch(n, inner, lambda m: m.Relu(m.Conv(y, m.w(6, 6, 1, 1))), lambda m: m.Add(m.Identity(y), m.w(6, 1, 1)))

    return branch(g, flag(g), fill, conv(x))


def _three_deep(g: Net, x: str) -> str:
    first, second, third = flag(g), flag(g), flag(g)

    def deepest(m: Body) -> str:
        return branch(m, third, conv(x), lambda k: k.Relu(conv(x)(k)))

    def middle(m: Body) -> str:
        y = branch(m, second, deepest, conv(x))
        return m.Conv(y, m.w(5, 6, 1, 1))

    return branch(g, first, middle, conv(x, 5))


def _sizes_inside(g: Net, x: str) -> str:
    """Sizes that are stored inside follow: a Reshape target, and the widths of a Split."""

    def shuffled(n: Body) -> str:
        y = n.Reshape(conv(x, 8)(n), [2, 2, 4, 4, 6])
        return n.Reshape(n.Transpose(y, perm=[0, 2, 1, 3, 4]), [2, 8, 4, 6])

    def parted(n: Body) -> str:
        one, two = n.Split(conv(x, 8)(n), [3, 5], axis=1, outputs=2)
        return n.Concat(two, one, axis=1)

    return branch(g, flag(g), shuffled, parted)


def _sizes_outside(g: Net, x: str) -> str:
    """A target that is stored outside, for a Reshape in each branch and one outside."""
    target, back = g.store(np.array([2, 6, 24])), g.store(np.array([2, 6, 4, 6]))
    result = branch(g, flag(g), lambda n: n.Reshape(conv(x)(n), target), lambda n: n.Relu(n.Reshape(conv(x)(n), target)))
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
    y = branch(g, flag(g), conv(x), lambda n: n.Flatten(n.GlobalMaxPool(conv(x)(n))))
    g.consume(g.ReduceMax(y, keepdims=0), "none", "image")
    return x


def _two_results(g: Net, x: str) -> list[str]:
    def then(n: Body) -> list[str]:
        return [conv(x)(n), conv(x, 5)(n)]

    def other(n: Body) -> list[str]:
        y = conv(x)(n)
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


def _then_first(g: Net, x: str) -> str:
    """The attributes in the other order (ONNX's helper sorts them), and branches that can't be mistaken for each other."""
    result = branch(g, flag(g), conv(x, act="Sigmoid"), lambda b: b.Concat(conv(x, 2)(b), conv(x, 4, act="Tanh")(b), axis=1))
    attributes = list(g.nodes[-1].attribute)[::-1]
    del g.nodes[-1].attribute[:]
    g.nodes[-1].attribute.extend(attributes)
    assert [a.name for a in attributes] == ["then_branch", "else_branch"]
    return result


def _count_inside(g: Net, x: str) -> str:
    """A branch divides by the number of channels that there are, or were outside: it stays what it was."""
    outside = g.Cast(g.Gather(g.Shape(x), np.array(1)), to=TensorProto.FLOAT)

    def then(b: Body) -> str:
        return b.Div(x, b.Cast(b.Gather(b.Shape(x), np.array(1)), to=TensorProto.FLOAT))

    return branch(g, flag(g), then, lambda b: b.Div(b.Relu(x), outside))


def _heads_inside(g: Net, x: str) -> str:
    """The batch of a target comes from a shape, its channels are stored."""

    def then(b: Body) -> str:
        batch = b.Slice(b.Shape(x), [0], [1], [0])
        split = b.Reshape(conv(x, 12)(b), b.Concat(batch, [3, 4, 4, 6], axis=0))
        return b.Reshape(b.Relu(split), b.Concat(batch, [12, 4, 6], axis=0))

    return branch(g, flag(g), then, conv(x, 12))


def _padded(g: Net, x: str) -> str:
    """Channels that one branch makes of ones are computed in the other."""
    return branch(g, flag(g), conv(x, 8), lambda b: b.Pad(conv(x, 6)(b), [0, 1, 0, 0, 0, 1, 0, 0], 1.0))


def _by_the_batch(g: Net, x: str) -> str:
    """The condition follows the size of the batch."""
    condition = g.Equal(g.Gather(g.Shape(x), np.array(0)), np.array(1))
    return branch(g, condition, conv(x), conv(x, act="Tanh"))


def _unread_result(g: Net, x: str) -> str:
    return _two_results(g, x)[0]


def _with_layer(g: Net, x: str) -> str:
    """A recurrent layer in one branch."""

    def then(n: Body) -> str:
        y = n.LSTM(x, small(n, 1, 24, 8), small(n, 1, 24, 6), small(n, 1, 48), hidden_size=6, outputs=3)[0]
        return n.Squeeze(y, [1])

    return branch(g, flag(g), then, lambda n: n.Tanh(n.MatMul(x, n.w(8, 6))))


CASES: list[Case] = [
    *row("If", (11, 13, 16, 19, 22), "", _own(), zero=True),
    *row("If", 13, "dynamic", _own(), zero=True, dynamic=True),
    *row("If", (11, 16), "filters outside", _captured),
    *row("If", 16, "filter in a branch and outside", _captured_twice),
    *row("If", 16, "bias in a branch and outside", _shared_bias),
    *row("If", 16, "Constants", _constants, zero=True),
    *row("If", 16, "always", _own(yes), zero=True),
    *row("If", 16, "never", _own(no), zero=True),
    *row("If", 16, "computed", _own(_computed), zero=True),
    *row("If", 16, "not zero in one branch", _if(lambda x: conv(x), lambda x: conv(x, act="Sigmoid")), zero=False),
    *row("If", 16, "not zero in the other", _if(lambda x: conv(x, act="Sigmoid"), lambda x: conv(x)), zero=False),
    *row("If", 16, "passed on", _if(lambda x: conv(x, 8), lambda x: lambda b: b.Identity(x)), zero=True),
    *row("If", 16, "passed on twice", _if(lambda x: lambda b: b.Relu(x), lambda x: lambda b: b.Identity(x)), zero=True),
    *row("If", 16, "stored in a branch", _if(lambda x: conv(x), lambda x: lambda b: b.Identity(b.w(2, 6, 4, 6))), zero=True),
    *row("If", 16, "stored result", _if(lambda x: conv(x), lambda x: lambda b: b.w(2, 6, 4, 6)), zero=True),
    *row("If", 16, "zeros in a branch", _if(lambda x: conv(x), lambda x: lambda b: b.ConstantOfShape([2, 6, 4, 6])), zero=True),
    *row("If", 16, "weights like outside", _weights_like_outside),
    *row("If", 16, "names like the other branch", _own(names=("b_", "b_")), zero=True),
    *row("If", 16, "nested", _nested, zero=True),
    *row("If", 16, "three deep", _three_deep),
    *row("If", (13, 16), "sizes inside", _sizes_inside),
    *row("If", 16, "sizes outside", _sizes_outside),
    *row("If", 16, "shape outside", _shape_outside, dynamic=True),
    *row("If", 16, "joined in two orders", _different_channels),
    *row("If", 16, "two results", _two_results),
    *row("If", 16, "unread result", _unread_result),
    *row("If", 16, "then_branch first", _then_first, zero=False),
    *row("If", 16, "number of channels", _count_inside),
    *row("If", 16, "target from a shape", _heads_inside, dynamic=True),
    *row("If", 16, "expanded", _if(lambda x: lambda b: b.Expand(b.w(1, 8, 1, 1), b.Shape(x)), lambda x: lambda b: b.Relu(x))),
    *row("If", 16, "padded", _padded, zero=False),
    *row("If", 16, "by the batch", _by_the_batch, dynamic=True),
    *row("If", 16, "recurrent layer inside", _with_layer, start="tokens", zero=True),
    *frozen("If", 16, "two ranks", _two_ranks, end="none"),
    *frozen("If", 16, "output", lambda g, x: [branch(g, flag(g), conv(x), conv(x)), x], end="none", blame="graph output"),
    *frozen(
        "If",
        16,
        "input in a branch",
        _if(lambda x: lambda b: b.Relu(x), lambda x: lambda b: b.Concat("x0", "x0", b.Slice("x0", [0], [2], [1]), axis=1)),
        blame="graph input",
    ),
]
