"""Normalization, and other operators that work over one axis as a whole."""

from onnxprune.rules.notation import Call, Signature, parse
from onnxprune.rules.registry import Kind, add, fewer_groups


def _batch_norm(call: Call) -> Signature | None:
    """Statistics per channel; the training forms are not covered."""
    if call.attribute("training_mode", 0) or call.attribute("spatial", 1) == 0:
        return None
    extra = ", c" * (len(call.outputs) - 1)
    return parse(f"n c *, c, c, c, c -> n c *{extra}")


def _instance_norm(call: Call) -> Signature:
    """Each channel over its positions, among which an exporter may have put channels (GroupNorm)."""
    positions = [f"x{i}" for i in range(call.rank() - 2)]
    return parse(f"n c {' '.join('!' + x for x in positions)}, c, c -> n c {' '.join(positions)}")


def layer_norm(call: Call) -> Signature:
    """Everything from ``axis`` on is normalised together; the axes before it pass."""
    axis = call.axis(default=-1)
    letters = [f"a{i}" for i in range(call.rank())]
    data = " ".join(letters[:axis] + [f"!{c}" for c in letters[axis:]])
    tail = [" ".join(letters[call.rank() - call.rank(k) :]) for k in range(1, len(call.inputs))]
    statistics = " ".join(letters[:axis] + ["1"] * (call.rank() - axis))
    results = [" ".join(letters), *[statistics] * (len(call.outputs) - 1)]
    return parse(f"{', '.join([data, *tail])} -> {', '.join(results)}")


def _group_norm(call: Call) -> Signature:
    """Whole groups may leave. Scale and bias are per group in opset 18, per channel since 21."""
    group = int(call.attribute("num_groups", 1))
    affine = "(g c)" if call.version >= 21 else "g"
    return parse(f"n (g !c) *, {affine}, {affine} -> n (g c) *", g=group)


def softmax(call: Call) -> Signature:
    """One axis since opset 13; before, all axes from ``axis`` on."""
    since_13 = call.version >= 13
    axis = call.axis(default=-1 if since_13 else 1)
    mixed = range(axis, axis + 1) if since_13 else range(axis, call.rank())
    return _over(call.rank(), mixed)


def _one_axis(call: Call) -> Signature | None:
    """The axis is an attribute, or (CumSum) an operand."""
    if call.node.op != "CumSum":
        return _over(call.rank(), [call.axis(default=-1 if call.node.op == "LpNormalization" else 0)])
    axis = call.value(1)
    return None if axis is None else _over(call.rank(), [int(axis.flat[0]) % max(1, call.rank())])


def _transform(call: Call) -> Signature | None:
    """Along one axis (an attribute in opset 17, an operand since 20), which may get another size; the last is re and im."""
    axis = int(call.attribute("axis", 1)) if call.version < 20 else -2
    if call.version >= 20 and call.node.input(2):
        given = call.value(2)
        if given is None:
            return None
        axis = int(given.flat[0])
    letters = [f"a{i}" for i in range(call.rank())]
    letters[axis] = letters[-1] = "_"
    return parse(f"{' '.join(letters)} -> {' '.join(letters)}")


def _triangle(call: Call) -> Signature:
    """Part of the last two axes becomes zero."""
    letters = [*(f"a{i}" for i in range(call.rank() - 2)), "!r", "!c"]
    line = " ".join(letters)
    return parse(f"{line} -> {line.replace('!', '')}")


def _over(rank: int, mixed: "range | list[int]") -> Signature:
    letters = [f"a{i}" for i in range(rank)]
    data = " ".join(f"!{c}" if i in mixed else c for i, c in enumerate(letters))
    return parse(f"{data} -> {' '.join(letters)}")


add("BatchNormalization", signature="n c *, c, c, c, c -> n c *", build=_batch_norm, times=(1,), plus=(2,), apart=True)
add(
    "InstanceNormalization",
    kind=Kind.MIXING,
    signature="n c !*, c, c -> n c *",
    build=_instance_norm,
    times=(1,),
    plus=(2,),
    note="exporters write GroupNorm with it: whole groups leave",
)
add(
    "GroupNormalization",
    kind=Kind.MIXING,
    signature="n (g !c) *, (g c), (g c) -> n (g c) *",
    build=_group_norm,
    times=(1,),
    plus=(2,),
    resize=fewer_groups("num_groups"),
    note="whole groups leave",
)
add("LayerNormalization", kind=Kind.MIXING, signature="* !c, c, c -> * c", build=layer_norm, zero=False)
add("RMSNormalization", kind=Kind.MIXING, signature="* !c, c -> * c", build=layer_norm, zero=False)
add("Softmax", "LogSoftmax", "Hardmax", kind=Kind.MIXING, signature="* !c -> * c", build=softmax, zero=False)
add("LpNormalization", kind=Kind.MIXING, signature="* !c -> * c", build=_one_axis, zero=False)
add("CumSum", kind=Kind.MIXING, signature="* !c -> * c", build=_one_axis, zero=False, counts=True)
add(
    "DFT",
    kind=Kind.MIXING,
    signature="* _ _ -> * _ _",
    build=_transform,
    times=(0,),
    note="along another axis than the channels'",
)
add("Trilu", signature="* !r !c -> * r c", build=_triangle, times=(0,))
add("LRN", kind=Kind.MIXING, signature="n !c * -> n c *", times=(0,))
