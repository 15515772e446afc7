"""Recurrent layers: a hidden unit has a row per gate in W, R and B, a column in R, and its place in the states."""

from dataclasses import replace

from onnxprune.rules.notation import Call, Points, Signature, parse
from onnxprune.rules.registry import Kept, Resize, add
from onnxprune.shapes import Shape

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Of each operator, the blocks of rows in its weights."""

_DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
_STATE = {"LSTM": (1, 2), "GRU": (1,), "RNN": (0,)}
"""Which of the activations a unit's state goes through; the others only open and close gates."""

_KEEP_ZERO = frozenset({"tanh", "relu", "leakyrelu", "elu", "softsign", "scaledtanh", "thresholdedrelu"})


def _recurrent(call: Call) -> Signature:
    """Both directions lose the same units, which share one axis. Peepholes are per unit like biases."""
    return _layer(call, call.node.op, "_ (!g h) i", "_ (!g h) h")


def _quantised_lstm(call: Call) -> Signature:
    """Weights are transposed; scales and zero points are per direction, or per row. Inputs are quantised by their range."""
    plain = _layer(call, "LSTM", "_ i (!g h)", "_ h (!g h)")
    scales = ["_ (!g h)" if call.rank(k) > 1 else "_" for k in range(8, 12)]
    return replace(plain, operands=(*plain.operands, *parse(f"{', '.join(scales)} -> _").operands), whole=(0,))


def _layer(call: Call, op: str, weights: str, recurrent: str) -> Signature:
    state, step, stacked = ("_ _ h", "_ _ i", "_ _ _ h")
    gates = GATES[op]
    operands = [step, weights, recurrent, "_ (!e h)", "_", state]
    if op == "LSTM":
        operands += [state, "_ (!p h)"]
    results = [stacked, state, state][: 3 if op == "LSTM" else 2]
    parsed = parse(f"{', '.join(operands)} -> {', '.join(results)}", g=gates, e=2 * gates, p=3)
    given = [a.decode() if isinstance(a, bytes) else str(a) for a in call.attribute("activations", ())]
    default = _DEFAULTS[op]
    used = [a.lower() for a in given] or list(default)
    passed = {name for i, name in enumerate(used) if i % len(default) in _STATE[op]}
    return replace(parsed, zero=passed <= _KEEP_ZERO)


def _resize(call: Call, inputs: tuple[Shape | None, ...], outputs: tuple[Shape | None, ...], kept: Kept) -> Resize:
    hidden = int(kept("input", 2, 1 if call.node.domain else 2).sum())
    return Resize({}, {"hidden_size": hidden} if hidden != call.attribute("hidden_size") else {})


add(
    "LSTM",
    signature="_ _ i, _ (g h) i, _ (g h) h, _ (e h), _, _ _ h, _ _ h, _ (p h) -> _ _ _ h, _ _ h, _ _ h",
    build=_recurrent,
    plus=(3, 5, 6),
    resize=_resize,
    note="both directions lose the same units",
)
add(
    "GRU",
    "RNN",
    signature="_ _ i, _ (g h) i, _ (g h) h, _ (e h), _, _ _ h -> _ _ _ h, _ _ h",
    build=_recurrent,
    plus=(3, 5),
    resize=_resize,
    note="both directions lose the same units",
)
add(
    "DynamicQuantizeLSTM",
    domain="com.microsoft",
    signature="_ _ i, _ i (g h), _ h (g h), _ (e h), _, _ _ h, _ _ h, _ (p h), _ (g h), _ (g h), _ (g h), _ (g h) -> "
    "_ _ _ h, _ _ h, _ _ h",
    build=_quantised_lstm,
    plus=(3, 5, 6),
    resize=_resize,
    points=Points({1: 9, 2: 11}),
    note="inputs that are zero when removed",
)
