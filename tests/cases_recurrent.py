"""Recurrent layers: LSTM, GRU, RNN, and how their states begin, end and pass from layer to layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cases_net import Case, Net, Operand, frozen, row
from onnx import numpy_helper

Build = Callable[[Net, str], Any]
Make = Callable[[Net, str, tuple[int, ...]], Operand]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH = 2, 5  # the producer's tokens, the first axis taken for the steps
LENGTHS = np.array([2, 1, 2, 1, 1], np.int32)


# where states come from ----------------------------------------------------------------------------------------------------
def _stored(g: Net, x: str, shape: tuple[int, ...]) -> str:
    return g.w(*shape)


def _given(g: Net, x: str, shape: tuple[int, ...]) -> str:
    return g.input(g.randn(*shape))


def _made(g: Net, x: str, shape: tuple[int, ...]) -> str:
    """Zeros in the shape that the input has, as PyTorch exports it."""
    batch = g.Unsqueeze(g.Gather(g.Shape(x), np.array(1)), [0]) if g.opset >= 13 else g.Slice(g.Shape(x), [1], [2])
    return g.ConstantOfShape(g.Concat([shape[0]], batch, [shape[2]], axis=0))


def _ones(g: Net, x: str, shape: tuple[int, ...]) -> str:
    """The same with ones, which no removed unit begins with."""
    batch = g.Slice(g.Shape(x), [1], [2])
    sizes = g.Concat([shape[0]], batch, [shape[2]], axis=0)
    return g.ConstantOfShape(sizes, value=numpy_helper.from_array(np.ones(1, np.float32)))


def _learned(g: Net, x: str, shape: tuple[int, ...]) -> str:
    """One stored state, repeated for every sample."""
    return g.Expand(g.w(shape[0], 1, shape[2]), list(shape))


# one layer -----------------------------------------------------------------------------------------------------------------
def _small(g: Net, *shape: int) -> str:
    """A weight of 0.1 to 0.4, with which no gate is quite open or shut."""
    return g.store((g.rng.uniform(0.1, 0.4, shape) * g.rng.choice([-1, 1], shape)).astype(np.float32))


def _bias(g: Net, *shape: int) -> str:
    return g.store(g.rng.uniform(0.3, 0.8, shape).astype(np.float32))


def _layer(
    g: Net,
    op: str,
    x: str,
    *,
    inputs: int = 8,
    hidden: int = 6,
    both: bool = False,
    bias: bool = True,
    lengths: Operand = None,
    h: Make | None = None,
    c: Make | None = None,
    peepholes: bool = False,
    weights: Sequence[str] = (),
    **attributes: Any,
) -> list[str]:
    """Y, Y_h and for LSTM Y_c of a layer of ``hidden`` units; ``both``: in both directions."""
    n, gates = 1 + both, GATES[op]
    if both:
        attributes["direction"] = "bidirectional"
    w, r, b = weights or (
        _small(g, n, gates * hidden, inputs),
        _small(g, n, gates * hidden, hidden),
        _bias(g, n, 2 * gates * hidden) if bias else None,
    )
    state = (BATCH, n, hidden) if attributes.get("layout") else (n, BATCH, hidden)
    operands = [x, w, r, b, lengths, h(g, x, state) if h else None]
    if op == "LSTM":
        operands += [c(g, x, state) if c else None, _small(g, n, 3 * hidden) if peepholes else None]
    while operands[-1] is None:
        operands.pop()
    return getattr(g, op)(*operands, hidden_size=hidden, outputs=3 if op == "LSTM" else 2, **attributes)


def _merged(g: Net, y: str, width: int) -> str:
    """Both directions side by side: (steps, batch, 2 * hidden)."""
    return g.Reshape(g.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, width])


def _squeezed(g: Net, y: str, axis: int = 1) -> str:
    return g.Squeeze(y, [axis]) if g.opset >= 13 else g.Squeeze(y, axes=[axis])


def _of(op: str, part: int = 0, **options: Any) -> Build:
    """One result of a layer."""
    return lambda g, x: _layer(g, op, x, **options)[part]


def _all(op: str, **options: Any) -> Build:
    return lambda g, x: _layer(g, op, x, **options)


def _both(op: str, hidden: int = 6, **options: Any) -> Build:
    """Both directions side by side."""
    return lambda g, x: _merged(g, _layer(g, op, x, hidden=hidden, both=True, **options)[0], 2 * hidden)


# more than one layer -------------------------------------------------------------------------------------------------------
def _stacked(op: str, **options: Any) -> Build:
    def build(g: Net, x: str) -> str:
        first = _squeezed(g, _layer(g, op, x, hidden=6, **options)[0])
        return _squeezed(g, _layer(g, op, first, inputs=6, hidden=4, **options)[0])

    return build


def _stacked_both(op: str) -> Build:
    def build(g: Net, x: str) -> str:
        first = _merged(g, _layer(g, op, x, hidden=6, both=True)[0], 12)
        return _merged(g, _layer(g, op, first, inputs=12, hidden=4, both=True)[0], 8)

    return build


def _handed_on(op: str) -> Build:
    """A decoder that begins where the encoder ended: their units are the same."""

    def build(g: Net, x: str) -> str:
        encoded = _layer(g, op, x, hidden=6)
        states = dict(zip("hc", [lambda g, x, shape, s=s: s for s in encoded[1:]], strict=False))
        return _layer(g, op, g.another(), hidden=6, **states)[0]

    return build


def _shared(op: str, *, bias: bool = True) -> Build:
    """One layer, run twice."""

    def build(g: Net, x: str) -> str:
        rows = GATES[op] * 8
        weights = _small(g, 1, rows, 8), _small(g, 1, rows, 8), _bias(g, 1, 2 * rows) if bias else None
        first = _squeezed(g, _layer(g, op, x, hidden=8, weights=weights)[0])
        return _squeezed(g, _layer(g, op, first, hidden=8, weights=weights)[0])

    return build


def _shared_recurrence(op: str) -> Build:
    """Two layers that share R alone."""

    def build(g: Net, x: str) -> str:
        gates, r = GATES[op], _small(g, 1, GATES[op] * 6, 6)
        one, two = (
            _layer(g, op, source, weights=(_small(g, 1, gates * 6, 8), r, _bias(g, 1, 2 * gates * 6)))[0]
            for source in (x, g.another())
        )
        return g.Concat(one, two, axis=3)

    return build


def _reordered(op: str, order: Sequence[int], *, constants: bool = False) -> Build:
    """The gates of another framework, put into ONNX's order in the graph; biases of two kinds joined."""

    def build(g: Net, x: str) -> str:
        keep = g.constant if constants else g.store

        def gates(stored: str) -> str:
            return g.Concat(*[g.Slice(stored, [6 * k], [6 * k + 6], [0]) for k in order], axis=0)

        def split(stored: str) -> str:
            parts = g.Split(stored, [6] * len(order), axis=0, outputs=len(order)) if len(order) > 1 else [stored]
            return g.Concat(*[parts[k] for k in order], axis=0)

        def value(*shape: int) -> str:
            return keep((g.rng.uniform(0.1, 0.4, shape) * g.rng.choice([-1, 1], shape)).astype(np.float32))

        rows = 6 * GATES[op]
        w, r = (g.Unsqueeze(gates(value(rows, width)), [0]) for width in (8, 6))
        b = g.Unsqueeze(g.Concat(split(value(rows)), split(value(rows)), axis=0), [0])
        return _layer(g, op, x, weights=(w, r, b))[0]

    return build


def _joined_directions(op: str) -> Build:
    """Both directions' weights stored apart, transposed, and stacked in the graph."""

    def build(g: Net, x: str) -> str:
        rows = 6 * GATES[op]
        w, r = (
            g.Concat(*[g.Unsqueeze(g.Transpose(_small(g, width, rows), perm=[1, 0]), [0]) for _ in "fb"], axis=0)
            for width in (8, 6)
        )
        b = g.Concat(*[g.Unsqueeze(_bias(g, 2 * rows), [0]) for _ in "fb"], axis=0)
        return _merged(g, _layer(g, op, x, both=True, weights=(w, r, b))[0], 12)

    return build


def _from_images(op: str, *, both: bool = False) -> Build:
    """Columns of an image read one after another, as in text recognition: Conv, layer, Gemm."""

    def build(g: Net, x: str) -> str:
        columns = g.Transpose(g.Relu(x), perm=[2, 0, 1])
        last = _layer(g, op, columns, both=both)[1]
        return g.Flatten(g.Transpose(last, perm=[1, 0, 2]), axis=1)

    return build


def _fixed(op: str, *, out: bool = False, **options: Any) -> Build:
    """What the layer reads is a graph output, so that its units are all that might leave; ``out``: the states are too."""

    def build(g: Net, x: str) -> str:
        results = _layer(g, op, x, **options)
        for result in (x, *results[1:]) if out else (x,):
            g.consume(result, "none", "tokens")
        return results[0]

    return build


# the table -----------------------------------------------------------------------------------------------------------------
CASES: list[Case] = []


def _add(*groups: Any) -> None:
    CASES.extend(case for group in groups for case in group)


for _op in GATES:
    _lstm = _op == "LSTM"

    def tokens(opsets: int | Sequence[int], note: str, build: Build, op: str = _op, **options: Any) -> None:
        _add(row(op, opsets, note, build, start="tokens", **options))

    def kept(opsets: int | Sequence[int], note: str, build: Build, op: str = _op, **options: Any) -> None:
        _add(frozen(op, opsets, note, build, start="tokens", **options))

    tokens((7, 14, 22), "", _of(_op), zero=True)
    tokens((7, 14), "no bias", _of(_op, bias=False), zero=True)
    tokens(14, "reverse", _of(_op, direction="reverse"), zero=True)
    tokens((7, 14, 22), "both directions", _both(_op), zero=True)
    tokens(14, "both directions no bias", _both(_op, bias=False), zero=True)
    tokens(14, "both directions apart", _of(_op, both=True), zero=True)
    tokens(14, "both directions last state", _of(_op, 1, both=True), zero=True)
    tokens(14, "only the last state", _of(_op, 1), zero=True)
    tokens(14, "all results", _all(_op), zero=True)
    tokens((7, 14), "lengths", _of(_op, lengths=LENGTHS), zero=True)
    tokens(14, "lengths are an input", lambda g, x, op=_op: _layer(g, op, x, lengths=g.input(LENGTHS))[0], zero=True)
    tokens(14, "both directions lengths", _both(_op, lengths=LENGTHS), zero=True)
    tokens(14, "stored state", _of(_op, h=_stored), zero=True)
    tokens((10, 14), "zeros made", _of(_op, h=_made, c=_made), zero=True, dynamic=True)
    tokens(14, "zeros made both directions", _both(_op, h=_made, c=_made), zero=True, dynamic=True)
    tokens(14, "ones made", _of(_op, h=_ones, c=_ones), zero=False)
    tokens(14, "learned state", _of(_op, h=_learned, c=_learned), zero=True)
    kept(14, "state is an input", _fixed(_op, h=_given), blame="graph input")
    kept(14, "state is an output", _fixed(_op, out=True), blame="graph output")
    kept(14, "state in and out", _fixed(_op, out=True, h=_given), blame="graph input")
    tokens(14, "layout", lambda g, x, op=_op: _layer(g, op, g.Transpose(x, perm=[1, 0, 2]), layout=1)[1], reference=True)
    tokens(14, "one unit", _of(_op, hidden=1), zero=True)
    tokens(14, "three units", _of(_op, hidden=3), zero=True)
    tokens(14, "five units both directions", _both(_op, hidden=5), zero=True)
    tokens(14, "clip", _of(_op, clip=0.5), zero=True)
    _count = len(("h", "c", "o")) if _lstm else 2 if _op == "GRU" else 1
    for _name, _zero in (("Relu", True), ("LeakyRelu", True), ("Elu", True), ("Softsign", True), ("ThresholdedRelu", True)):
        _own = {"activation_alpha": [0.1] * _count} if _name in ("LeakyRelu", "Elu", "ThresholdedRelu") else {}
        _names = [_name] if _op == "RNN" else ["Sigmoid", *[_name] * (_count - 1)]
        tokens(14, f"of {_name}", _of(_op, activations=_names, **_own), zero=_zero)
    _gate = [] if _op == "RNN" else ["Sigmoid"]
    tokens(14, "of ScaledTanh", _of(
        _op,
        activations=[*_gate, *["ScaledTanh"] * (_count - len(_gate))],
        activation_alpha=[0.5] * (_count - len(_gate)),
        activation_beta=[0.7] * (_count - len(_gate)),
    ), zero=True)  # fmt: skip
    tokens(14, "of Sigmoid", _of(_op, activations=["Sigmoid"] * _count), zero=False)
    tokens(14, "of HardSigmoid", _of(_op, activations=["HardSigmoid"] * _count), zero=False)
    tokens(14, "of Softplus", _of(_op, activations=[*_gate, *["Softplus"] * (_count - len(_gate))]), zero=False)
    tokens(14, "of Affine", _of(
        _op,
        activations=[*_gate, *["Affine"] * (_count - len(_gate))],
        activation_alpha=[0.5] * (_count - len(_gate)),
        activation_beta=[0.3] * (_count - len(_gate)),
    ), zero=False)  # fmt: skip
    tokens(14, "directions of two kinds", _both(
        _op, activations=[*_gate, *["Tanh"] * (_count - len(_gate)), *_gate, *["Sigmoid"] * (_count - len(_gate))]
    ), zero=False)  # fmt: skip
    tokens((7, 14, 22), "stacked", _stacked(_op), zero=True)
    tokens(14, "stacked no bias", _stacked(_op, bias=False), zero=True)
    tokens(14, "stacked lengths", _stacked(_op, lengths=LENGTHS), zero=True)
    tokens((7, 14), "stacked both directions", _stacked_both(_op), zero=True)
    tokens(14, "encoder and decoder", _handed_on(_op), zero=True)
    tokens(14, "weights used twice", _shared(_op))
    tokens(14, "weights used twice no bias", _shared(_op, bias=False), zero=True)
    tokens(14, "recurrence used twice", _shared_recurrence(_op), zero=True)
    tokens(14, "gates reordered", _reordered(_op, range(GATES[_op])[::-1]), zero=True)
    tokens(14, "gates reordered constants", _reordered(_op, range(GATES[_op])[::-1], constants=True), zero=True)
    tokens(14, "directions joined", _joined_directions(_op), zero=True)
    kept(14, "weights are inputs", lambda g, x, op=_op: _layer(
        g, op, x, weights=(g.input(g.randn(1, GATES[op] * 6, 8)), g.input(g.randn(1, GATES[op] * 6, 6)), None)
    )[0], blame="graph input")  # fmt: skip
    _add(
        row(_op, (7, 14), "from images", _from_images(_op), start="line", end="dense"),
        row(_op, 14, "from images both directions", _from_images(_op, both=True), start="line", end="dense"),
        row(_op, 14, "from images dynamic", _from_images(_op), start="line", end="dense", dynamic=True),
    )

_add(
    row("LSTM", (7, 14, 22), "peepholes", _of("LSTM", peepholes=True), start="tokens", zero=True),
    row("LSTM", 14, "peepholes both directions", _both("LSTM", peepholes=True), start="tokens", zero=True),
    row("LSTM", 14, "peepholes and states", _of("LSTM", 2, peepholes=True, h=_stored, c=_stored), start="tokens", zero=True),
    row("LSTM", 14, "everything", _all("LSTM", both=True, lengths=LENGTHS, h=_stored, c=_stored, peepholes=True), start="tokens"),
    row("LSTM", 14, "cell state", _of("LSTM", 2), start="tokens", zero=True),
    row("LSTM", 14, "stored cell state", _of("LSTM", c=_stored), start="tokens", zero=True),
    row("LSTM", 14, "cell state of ones", _of("LSTM", h=_made, c=_ones), start="tokens", zero=False),
    row("LSTM", 14, "input_forget", _of("LSTM", input_forget=1), start="tokens", zero=True),
    row("LSTM", 14, "gates of Tanh", _of("LSTM", activations=["Tanh", "Tanh", "Tanh"]), start="tokens", zero=True),
    row("LSTM", 14, "output of Sigmoid", _of("LSTM", activations=["Sigmoid", "Tanh", "Sigmoid"]), start="tokens", zero=False),
    row("LSTM", 14, "cell of Sigmoid", _of("LSTM", activations=["Sigmoid", "Sigmoid", "Tanh"]), start="tokens", zero=False),
    row("LSTM", 14, "lower case", _of("LSTM", activations=["sigmoid", "tanh", "tanh"]), start="tokens", zero=True),
    frozen("LSTM", 14, "cell state is an input", _fixed("LSTM", h=_stored, c=_given), start="tokens", blame="graph input"),
    row("GRU", (7, 14, 22), "reset after", _of("GRU", linear_before_reset=1), start="tokens", zero=True),
    row("GRU", 14, "reset after both directions", _both("GRU", linear_before_reset=1), start="tokens", zero=True),
    row("GRU", 14, "reset after no bias", _of("GRU", linear_before_reset=1, bias=False), start="tokens", zero=True),
    row("GRU", 14, "reset after with state", _of("GRU", linear_before_reset=1, h=_stored), start="tokens", zero=True),
    row("GRU", 14, "reset after stacked", _stacked("GRU", linear_before_reset=1), start="tokens", zero=True),
    row("GRU", 14, "gates of Tanh", _of("GRU", activations=["Tanh", "Tanh"]), start="tokens", zero=True),
)
