"""Recurrent layers: a hidden unit has a row per gate in W, R and B, a column in R, and its place in the states."""

from onnxprune.rules.notation import Call, Signature, parse
from onnxprune.rules.registry import Kept, Resize, add
from onnxprune.shapes import Shape

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
_STATE = {"LSTM": (1, 2), "GRU": (1,), "RNN": (0,)}
"""Which of the activations a unit's state goes through; the others only open and close gates."""

_KEEP_ZERO = frozenset({"tanh", "relu", "leakyrelu", "elu", "softsign", "scaledtanh", "thresholdedrelu"})


def _recurrent(call: Call) -> Signature:
    """Both directions lose the same units, which share one axis. Peepholes are per unit like biases."""
    op = call.node.op
    state, step, stacked = ("_ _ h", "_ _ i", "_ _ _ h")
    gates = _GATES[op]
    operands = [step, "_ (!g h) i", "_ (!g h) h", "_ (!e h)", "_", state]
    if op == "LSTM":
        operands += [state, "_ (!p h)"]
    results = [stacked, state, state][: 3 if op == "LSTM" else 2]
    parsed = parse(f"{', '.join(operands)} -> {', '.join(results)}", g=gates, e=2 * gates, p=3)
    given = [a.decode() if isinstance(a, bytes) else str(a) for a in call.attribute("activations", ())]
    default = _DEFAULTS[op]
    used = [a.lower() for a in given] or list(default)
    passed = {name for i, name in enumerate(used) if i % len(default) in _STATE[op]}
    return Signature(parsed.operands, parsed.results, parsed.sizes, zero=passed <= _KEEP_ZERO)


def _resize(call: Call, inputs: tuple[Shape | None, ...], outputs: tuple[Shape | None, ...], kept: Kept) -> Resize:
    hidden = int(kept("input", 2, 2).sum())
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
