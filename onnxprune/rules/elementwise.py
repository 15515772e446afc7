"""Operators that work on each element alone, or on elements at the same place."""

from dataclasses import replace

import numpy as np

from onnxprune.rules.notation import Call, Signature, parse
from onnxprune.rules.registry import ALL, add


def _first_only(call: Call) -> Signature:
    """The first operand's axes pass; the others are scalars or options."""
    return parse("... -> ..." + ", ..." * (len(call.outputs) - 1))


def _broadcast(call: Call) -> Signature:
    return parse(", ".join(["..."] * len(call.inputs)) + " -> ...")


def _clip(call: Call) -> Signature:
    """Zero stays zero if it lies within the bounds (attributes before opset 11, operands since)."""
    low, high = call.attribute("min"), call.attribute("max")
    if call.version >= 11:
        low, high = (call.value(k) if call.node.input(k) else None for k in (1, 2))
        known = all(call.value(k) is not None for k in (1, 2) if call.node.input(k))
    else:
        known = True
    inside = known and (low is None or np.max(low) <= 0) and (high is None or np.min(high) >= 0)
    return replace(parse("... -> ..."), zero=inside)


def _dropout(call: Call) -> Signature | None:
    """Nothing at inference, random in training. The second result is true everywhere."""
    training = call.value(2) if call.node.input(2) else np.False_
    if training is None or training.any():
        return None
    return replace(_first_only(call), zero=len(call.outputs) == 1)


def _power(call: Call) -> Signature | None:
    """Of a positive constant exponent; any other makes infinities of zeros. A removed channel's own exponent becomes 0."""
    exponent = call.value(1)
    if exponent is None or not (exponent > 0).all():
        return None
    return replace(parse("..., ... -> ..."), zero=exponent.size == 1)


def _shrink(call: Call) -> Signature:
    return replace(parse("... -> ..."), zero=call.attribute("lambd", 0.5) >= 0)


# f(0) = 0: a removed channel stays zero ------------------------------------------------------------------------------
# fmt: off
add(
    "Abs", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Elu", "Erf", "Floor", "Gelu", "HardSwish",
    "IsInf", "IsNaN", "LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Sign", "Sin", "Sinh",
    "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
    signature="... -> ...", build=_first_only, times=(0,),
)
# fmt: on
add("Identity", signature="... -> ...", times=(0,), keeps=True)
add("Clip", signature="... -> ...", build=_clip, times=(0,))
add("Pow", signature="..., ... -> ...", build=_power, times=(0,), note="positive constant exponents")
add("Shrink", signature="... -> ...", build=_shrink, times=(0,))
add("Dropout", signature="... -> ..., ...", build=_dropout, times=(0,), note="at inference")
add("PRelu", signature="..., ... -> ...", times=(0,))
add("Mul", "And", "BitwiseAnd", signature="..., ... -> ...", times=(0, 1))
add("Add", "Sub", "Or", "Xor", "BitwiseOr", "BitwiseXor", signature="..., ... -> ...", plus=ALL)
add("Sum", "Max", "Min", "Mean", signature="..., ... -> ...", build=_broadcast, plus=ALL)
add("Where", signature="..., ..., ... -> ...", plus=(1, 2))
add("BitShift", signature="..., ... -> ...", times=(0,))
add("Div", "Mod", signature="..., ... -> ...", times=(0,), divides=(1,), note="a divisor of zeros is a barrier")
add("CastLike", signature="... -> ...", build=_first_only, times=(0,))

# f(0) != 0: nothing is known of a removed channel ---------------------------------------------------------------------
# fmt: off
add(
    "Acos", "BitwiseNot", "Cos", "Cosh", "Exp", "HardSigmoid", "Not", "Sigmoid", "Softplus",
    signature="... -> ...", build=_first_only, zero=False,
)
# fmt: on
add(
    "Acosh",
    "Log",
    "Reciprocal",
    signature="... -> ...",
    build=_first_only,
    zero=False,
    divides=(0,),
    note="of zeros is a barrier",
)
add("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", signature="..., ... -> ...", zero=False)
