"""Subgraphs that are repeated: Scan, with what is taken apart and put together along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cases_control import Body, Build, branch, flag, loop, scan, small, zeros, zeros_like
from cases_net import Case, Net, frozen, row
from onnx import helper


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
    w, r = ("", "") if inside else (small(g, 8, 6), small(g, 6, 6))
    first = zeros(g, rows, 6) if state == "zeros" else g.w(rows, 6) if state == "stored" else zeros_like(g, x, 6)

    def fill(b: Body, h: str, xt: str) -> list[str]:
        u, v = (small(b, 8, 6), small(b, 6, 6)) if inside else (w, r)
        new = getattr(b, act)(b.Add(b.Add(b.MatMul(xt, u), b.MatMul(h, v)), b.w(6)))
        return [new, b.Identity(new)]

    result = scan(g, [first], [x], fill, outputs=2, **attributes)[part]
    return g.Transpose(result, perm=back) if back else result


def _scan(**options: Any) -> Build:
    return lambda g, x: _scanned(g, x, **options)


def _two_states(g: Net, x: str) -> list[str]:
    w, r, b0 = small(g, 8, 24), small(g, 6, 24), small(g, 24)

    def fill(b: Body, h: str, c: str, xt: str) -> list[str]:
        gates = b.Add(b.Add(b.MatMul(xt, w), b.MatMul(h, r)), b0)
        a, f, o, n = b.Split(gates, [6, 6, 6, 6], axis=1, outputs=4)
        cell = b.Add(b.Mul(b.Sigmoid(f), c), b.Mul(b.Sigmoid(a), b.Tanh(n)))
        new = b.Mul(b.Sigmoid(o), b.Tanh(cell))
        return [new, cell, b.Identity(new), b.Relu(cell)]

    return scan(g, [zeros(g, 5, 6), zeros(g, 5, 6)], [x], fill, outputs=4)


def _two_inputs(g: Net, x: str) -> list[str]:
    """Two tensors scanned at once, along different axes and in different directions."""
    y = g.Transpose(g.another(), perm=[1, 0, 2])
    axes = {"scan_input_axes": [0, 1], "scan_input_directions": [0, 1]}
    out = {"scan_output_axes": [1, -1], "scan_output_directions": [1, 0]}

    def fill(b: Body, h: str, xt: str, yt: str) -> list[str]:
        new = b.Tanh(b.Add(b.Add(b.MatMul(xt, small(b, 8, 6)), b.MatMul(yt, small(b, 8, 6))), h))
        return [new, b.Relu(new), b.MatMul(new, small(b, 6, 5))]

    _, one, two = scan(g, [zeros(g, 5, 6)], [x, y], fill, outputs=3, **axes, **out)
    return [one, g.Transpose(two, perm=[2, 0, 1])]


def _running_sum(g: Net, x: str) -> str:
    """A sum that is built up: a state that begins with zeros."""
    return scan(g, [zeros(g, 5, 8)], [x], lambda b, s, xt: [t := b.Add(s, xt), b.Identity(t)], outputs=2)[1]


def _no_state(g: Net, x: str) -> str:
    return scan(g, [], [x], lambda b, xt: b.Relu(b.MatMul(xt, b.w(8, 6))), outputs=1)


def _over_channels(g: Net, x: str) -> str:
    """A step for each channel."""
    return scan(
        g,
        [zeros(g, 2, 5)],
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
    w, r = small(g, 8, 8), small(g, 8, 8)

    def layer(b: Body, i: str, y: str) -> str:
        def fill(n: Body, h: str, xt: str) -> list[str]:
            new = n.Tanh(n.Add(n.MatMul(xt, w), n.MatMul(h, r)))
            return [new, n.Identity(new)]

        return scan(b, [zeros(b, 5, 8)], [y], fill, outputs=2, declared=[5, 8])[1]

    return loop(g, 2, [x], layer)


def _filter_scanned(g: Net, x: str) -> str:
    """The weights of one layer after another are what is scanned."""
    filters, biases = small(g, 3, 8, 8), g.w(3, 8)
    return scan(g, [x], [filters, biases], lambda b, h, w, c: b.Tanh(b.Add(b.MatMul(h, w), c)), outputs=1)


CASES: list[Case] = [
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
