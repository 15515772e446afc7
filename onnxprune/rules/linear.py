"""Sums of products: convolutions, matrix products."""

import math

from onnxprune.rules.notation import Call, Signature, parse
from onnxprune.rules.registry import add, always, fewer_groups


def conv(call: Call) -> Signature:
    """The groups are an axis of their own."""
    group = int(call.attribute("group", 1))
    if group == 1:
        return parse("n i *, o i *, o -> n o *")
    return parse("n (g i) *, (g o) i *, (g o) -> n (g o) *", g=group)


def _conv_transpose(call: Call) -> Signature | None:
    group = int(call.attribute("group", 1))
    if group == 1:
        return parse("n i *, i o *, o -> n o *")
    return parse("n (g i) *, (g i) o *, (g o) -> n (g o) *", g=group)


def _deform_conv(call: Call) -> Signature | None:
    """The offsets move whole channels; where they move groups of channels, it is not covered."""
    if call.attribute("group", 1) != 1 or call.attribute("offset_group", 1) != 1:
        return None
    return parse("n i *, o i *, n _ *, o, n _ * -> n o *")


def _column_to_image(call: Call) -> Signature | None:
    """Each channel's block of rows becomes its picture."""
    out = call.outputs[0]
    return None if out is None else parse("n (c !k) _, _, _ -> n c *", c=out[1])


def _conv_steady(call: Call) -> bool:
    """Zeros padded around a constant channel make its borders differ, unless each filter sees one position alone."""
    single = all(size == 1 for size in call.shape(1)[2:])
    return not any(call.attribute("pads", ())) and (single or not str(call.attribute("auto_pad", "")).startswith("SAME"))


def _transposed_steady(call: Call) -> bool:
    """Each position of the result sees other parts of the filter, unless there is but one part."""
    changes = (*call.attribute("pads", ()), *call.attribute("output_padding", ()), *call.attribute("output_shape", ()))
    return all(size == 1 for size in (*call.shape(1)[2:], *call.attribute("strides", ()))) and not any(changes)


def gemm(call: Call) -> Signature:
    """Either factor may be transposed; the bias may be a scalar, a vector or a matrix."""
    a = "k m" if call.attribute("transA", 0) else "m k"
    b = "n k" if call.attribute("transB", 0) else "k n"
    bias = {0: "", 1: "n", 2: "m n"}[min(call.rank(2), 2)]
    return parse(f"{a}, {b}, {bias} -> m n")


def product(first: int, second: int) -> tuple[str, str, str]:
    """The axes of two factors of these ranks and of their product."""
    rows, columns = ("" if rank == 1 else letter for rank, letter in ((first, " m"), (second, " n")))
    return f"...{rows} k" if rows else "k", f"... k{columns}" if columns else "k", f"...{rows}{columns}"


def _matmul(call: Call) -> Signature:
    a, b, result = product(call.rank(0), call.rank(1))
    return parse(f"{a}, {b} -> {result}")


def _einsum(call: Call) -> Signature | None:
    """The equation is the notation already; repeated letters in one operand (diagonals) are not covered."""
    equation = str(call.attribute("equation", "")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    names: dict[str, str] = {}
    spaced = []
    for term in (*terms, right):
        plain = term.replace("...", "")
        if len(set(plain)) != len(plain) or (not plain.isalpha() and plain):
            return None
        ellipsis = term.find("...")
        tokens = [names.setdefault(c, f"e{len(names)}") for c in plain]
        spaced.append(" ".join(tokens if ellipsis < 0 else [*tokens[:ellipsis], "...", *tokens[ellipsis:]]))
    return parse(", ".join(spaced[:-1]) + " -> " + spaced[-1])


def macs(call: Call) -> int:
    """Multiply-accumulate operations of one run of the node; 0 for anything that is not a sum of products, or unknown."""
    op, out = call.node.op, math.prod(call.outputs[0] or (0,)) if call.outputs else 0
    if any(shape is None for shape, name in zip(call.inputs, call.node.inputs, strict=True) if name):
        return 0
    if op in ("Conv", "FusedConv", "ConvInteger", "QLinearConv"):
        return out * math.prod(call.shape(3 if op == "QLinearConv" else 1)[1:])
    if op == "ConvTranspose":
        return math.prod(call.shape(0)) * math.prod(call.shape(1)[1:])
    if op in ("Gemm", "FusedGemm", "QGemm"):
        return out * call.shape(0)[0 if call.attribute("transA", 0) else 1]
    if op in _PRODUCTS:
        before = 0 if call.attribute("transBatchA", 0) else -2
        return out * call.shape(0)[before if call.attribute("transA", 0) else -1]
    if op in _ATTENTION:
        return _attention_macs(call, out)
    if op in ("LSTM", "GRU", "RNN") and call.rank(0) == 3:
        return math.prod(call.shape(0)[:2]) * (math.prod(call.shape(1)) + math.prod(call.shape(2)))
    if op == "Einsum":
        return _einsum_macs(call)
    return 0


_PRODUCTS = frozenset(
    {"MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul", "TransposeMatMul", "MatMulIntegerToFloat"}
    | {"DynamicQuantizeMatMul", "MatMulNBits"}
)
_ATTENTION = frozenset({"Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention"})


def _attention_macs(call: Call, out: int) -> int:
    """Scores and weighted sums over the positions of one run (those of a past aside), and the projection where it is part."""
    shape = call.shape(0)
    if call.node.standard or call.node.op not in ("Attention", "QAttention"):
        keys = call.shape(1) or shape
        return (math.prod(shape) + out) * keys[-2]
    columns = call.shape(1)[-1]
    return shape[0] * shape[1] * (shape[2] * columns + (columns + out // max(1, shape[0] * shape[1])) // 2 * shape[1])


def _einsum_macs(call: Call) -> int:
    signature = _einsum(call)
    sizes: dict[object, int] = {}
    for k, pattern in enumerate(signature.operands if signature else ()):
        tokens = pattern.expand(call.rank(k)) or ()
        sizes.update(zip(tokens, call.shape(k), strict=False))
    return math.prod(sizes.values()) if len(call.inputs) > 1 else 0


add(
    "Conv",
    signature="n (g i) *, (g o) i *, (g o) -> n (g o) *",
    build=conv,
    times=(1,),
    plus=(2,),
    resize=fewer_groups("group"),
    steady=_conv_steady,
    product=True,
)
add(
    "ConvTranspose",
    signature="n (g i) *, (g i) o *, (g o) -> n (g o) *",
    build=_conv_transpose,
    times=(1,),
    plus=(2,),
    resize=fewer_groups("group"),
    steady=_transposed_steady,
    product=True,
)
add("DeformConv", signature="n i *, o i *, n _ *, o, n _ * -> n o *", build=_deform_conv, times=(1,), plus=(3,), note="one group")
add("Col2Im", signature="n (c k) _, _, _ -> n c *", build=_column_to_image, times=(0,))
add(
    "Gemm",
    signature="m k, k n, n -> m n",
    build=gemm,
    times=(0, 1),
    plus=(2,),
    steady=always,
    product=True,
    note="any trans, alpha, beta",
)
add("MatMul", signature="... m k, ... k n -> ... m n", build=_matmul, times=(0, 1), steady=always, product=True)
add(
    "Einsum", signature="(the equation)", build=_einsum, times=(0, 1, 2, 3), steady=always, product=True, note="without diagonals"
)
