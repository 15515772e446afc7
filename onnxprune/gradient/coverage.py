"""What becomes of the gradient at each of ONNX's operators: each is in one of these tables, or has a rule."""

from __future__ import annotations

from enum import Enum

from onnxprune.gradient.registry import ZERO, find


class Derivative(Enum):
    """What is known of an operator's derivative."""

    RULE = "rule"
    """It is written as nodes."""
    ZERO = "zero"
    """Zero wherever there is one."""
    DISCRETE = "none"
    """The results are integers or truth values, or do not depend on the operands' elements."""
    UNDEFINED = "undefined"
    """The results stand for real numbers that depend on the operands, but in steps or at random."""
    DIFFERENCES = "differences"
    """There is one, for which there is no rule; finite differences are left."""


# fmt: off
DISCRETE = frozenset({
    "And", "ArgMax", "ArgMin", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "BlackmanWindow",
    "Constant", "ConstantOfShape", "Equal", "Greater", "GreaterOrEqual", "HammingWindow", "HannWindow",
    "ImageDecoder", "IsInf", "IsNaN", "Less", "LessOrEqual", "MelWeightMatrix", "NonMaxSuppression", "NonZero", "Not",
    "OptionalHasElement", "Or", "RandomNormal", "RandomUniform", "RegexFullMatch",
    "SequenceLength", "Shape", "Size", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer", "Xor",
})
# fmt: on
"""Operators that pass no gradient on, as nothing that has one comes out of them."""

_ROUNDED = "it rounds to integers that stand for real numbers; take the model from before quantisation"
_RANDOM = "it draws at random"

UNDEFINED = {
    **dict.fromkeys(("ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"), _ROUNDED),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QuantizeLinear"), _ROUNDED),
    **dict.fromkeys(("Bernoulli", "Multinomial"), _RANDOM),
}
"""Operators that are not differentiable: why."""

_STEPS = "it goes through time step by step"
_BODY = "its body is not gone through"
_SEQUENCE = "it handles sequences of tensors"
_PLACES = "the places that it reads depend on its operands"
_RARE = "it is rare in networks"

DIFFERENCES = {
    **dict.fromkeys(("CausalConvWithState", "GRU", "LSTM", "LinearAttention", "RNN"), _STEPS),
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), _BODY),
    **dict.fromkeys(("ConcatFromSequence", "Optional", "OptionalGetElement", "SequenceAt", "SequenceConstruct"), _SEQUENCE),
    **dict.fromkeys(("SequenceEmpty", "SequenceErase", "SequenceInsert", "SplitToSequence"), _SEQUENCE),
    **dict.fromkeys(("AffineGrid", "DeformConv", "GridSample", "MaxRoiPool", "MaxUnpool", "RoiAlign"), _PLACES),
    **dict.fromkeys(("Col2Im", "CumProd", "DFT", "Det", "NegativeLogLikelihoodLoss", "OneHot", "Range", "STFT"), _RARE),
    **dict.fromkeys(("Scatter", "SoftmaxCrossEntropyLoss", "SwiGLU", "TensorScatter", "Unique"), _RARE),
}
"""Operators that have a derivative, but no rule: why."""


def derivative(op: str, domain: str = "") -> Derivative:
    """What is known of an operator's derivative; there are no rules for other domains than ONNX's own.

    Raises:
        KeyError: nothing; it belongs into one of the tables.
    """
    if domain:
        return Derivative.DIFFERENCES
    found = [
        *([Derivative.RULE] if find(op) is not None else []),
        *([Derivative.ZERO] if op in ZERO else []),
        *([Derivative.DISCRETE] if op in DISCRETE else []),
        *([Derivative.UNDEFINED] if op in UNDEFINED else []),
        *([Derivative.DIFFERENCES] if op in DIFFERENCES else []),
    ]
    if len(found) != 1:
        raise KeyError(op)
    return found[0]
