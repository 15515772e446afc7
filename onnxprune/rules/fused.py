"""Operators that onnxruntime's optimiser fuses out of several (domain ``com.microsoft``)."""

from __future__ import annotations

from dataclasses import replace

from onnxprune.rules.attention import MICROSOFT
from onnxprune.rules.linear import conv, gemm
from onnxprune.rules.normalization import layer_norm
from onnxprune.rules.notation import Call, Signature, parse
from onnxprune.rules.registry import Kind, add, fewer_groups

ZERO_AT_ZERO = frozenset(
    {"", "Elu", "LeakyRelu", "Relu", "Selu", "Softsign", "Tanh", "ThresholdedRelu", "HardSwish", "QuickGelu"}
)
"""Activations that keep zero."""


def _activated(call: Call, signature: Signature) -> Signature:
    """What is known of zeros behind the activation that is part of the operator."""
    name = str(call.attribute("activation", ""))
    bounds = [float(b) for b in call.attribute("activation_params", ())]
    inside = name == "Clip" and len(bounds) == 2 and bounds[0] <= 0 <= bounds[1]
    return replace(signature, zero=name in ZERO_AT_ZERO or inside)


def _fused_conv(call: Call) -> Signature:
    """A convolution, perhaps a residual added to its result, perhaps an activation of the sum."""
    signature = conv(call)
    return _activated(call, replace(signature, operands=(*signature.operands, signature.results[0])))


def _fused_matmul(call: Call) -> Signature | None:
    """Either factor may be transposed in its last axes, and have its rows before the axes of the batch."""
    letters = []
    for k, (row, column) in enumerate((("m", "k"), ("k", "n"))):
        if call.rank(k) < 2:
            if call.rank(k) == 0:
                return None
            letters.append("k")
            continue
        first, last = (column, row) if call.attribute("trans" + "AB"[k], 0) else (row, column)
        letters.append(f"{first} ... {last}" if call.attribute("transBatch" + "AB"[k], 0) else f"... {first} {last}")
    rows = "" if call.rank(0) == 1 else " m"
    columns = "" if call.rank(1) == 1 else " n"
    return parse(f"{letters[0]}, {letters[1]} -> ...{rows}{columns}")


def _skip_norm(call: Call) -> Signature:
    """The last axis is normalised; the fourth result is the sum before that."""
    vectors = ", ".join(["c"] * (len(call.inputs) - 2))
    return parse(f"... !c, ... c, {vectors} -> ... c, ... 1, ... 1, ... c")


add("Gelu", "QuickGelu", domain=MICROSOFT, signature="... -> ...", times=(0,))
add("BiasGelu", "FastGelu", domain=MICROSOFT, signature="... c, c -> ... c", plus=(0, 1))
add(
    "FusedConv",
    domain=MICROSOFT,
    signature="n (g i) *, (g o) i *, (g o), n (g o) * -> n (g o) *",
    build=_fused_conv,
    times=(1,),
    plus=(2, 3),
    resize=fewer_groups("group"),
    note="with activation and residual",
)
add(
    "FusedGemm",
    domain=MICROSOFT,
    signature="m k, k n, n -> m n",
    build=lambda call: _activated(call, gemm(call)),
    times=(0, 1),
    plus=(2,),
    note="any trans, alpha, beta, activation",
)
add(
    "FusedMatMul",
    "TransposeMatMul",
    domain=MICROSOFT,
    signature="... m k, ... k n -> ... m n",
    build=_fused_matmul,
    times=(0, 1),
    note="any trans, alpha",
)
add("NhwcMaxPool", domain=MICROSOFT, signature="n * c -> n * c", times=(0,), keeps=True)
add("GridSample", domain=MICROSOFT, signature="n c *, n * -> n c *", times=(0,))
add(
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    domain=MICROSOFT,
    kind=Kind.MIXING,
    signature="... !c, ... c, c, c, c -> ... c, ... 1, ... 1, ... c",
    build=_skip_norm,
    zero=False,
)
add("SimplifiedLayerNormalization", kind=Kind.MIXING, signature="* !c, c -> * c", build=layer_norm, zero=False)
add(
    "EmbedLayerNormalization",
    domain=MICROSOFT,
    kind=Kind.MIXING,
    signature="_ _, _ _, _ !c, _ c, _ c, c, c, _ _, _ _ -> _ _ c, _, _ _ c",
    zero=False,
)
