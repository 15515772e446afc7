"""Sums of products: convolutions, matrix products, equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cases_net import Case, Net, frozen, row

Build = Callable[[Net, str], str]


def _conv(*weight: int, bias: bool = True, **attributes: Any) -> Build:
    return lambda g, x: g.Conv(x, g.w(*weight), *([g.w(weight[0])] if bias else []), **attributes)


def _transposed(*weight: int, bias: bool = True, **attributes: Any) -> Build:
    out = weight[1] * attributes.get("group", 1)
    return lambda g, x: g.ConvTranspose(x, g.w(*weight), *([g.w(out)] if bias else []), **attributes)


def _gemm(*bias: int, before: str = "", **attributes: Any) -> Build:
    """Of ``(5, 8)`` with a weight that makes it ``(5, 6)``; ``before``: the operator in front, a transposition."""

    def build(g: Net, x: str) -> str:
        x = g.Transpose(x, perm=[1, 0]) if attributes.get("transA") else x
        return g.Gemm(x, g.w(*((6, 8) if attributes.get("transB") else (8, 6))), g.w(*bias), **attributes)

    return build


def _equation(equation: str, *weights: tuple[int, ...]) -> Build:
    return lambda g, x: g.Einsum(x, *[g.w(*shape) for shape in weights], equation=equation)


CASES: list[Case] = []

# Conv --------------------------------------------------------------------------------------------------------------------
CASES += [
    *row("Conv", (7, 11, 22), "", _conv(6, 8, 3, 3, pads=[1, 1, 1, 1]), zero=True),
    *row("Conv", 11, "no bias", _conv(6, 8, 1, 1, bias=False), zero=True),
    *row("Conv", 11, "stride and dilation", _conv(6, 8, 3, 3, pads=[2, 2, 2, 2], strides=[2, 2], dilations=[2, 2]), zero=True),
    *row("Conv", 11, "auto_pad", _conv(6, 8, 3, 3, auto_pad="SAME_UPPER", strides=[2, 2]), zero=True),
    *row("Conv", 11, "1-D", _conv(6, 8, 3), start="line", zero=True),
    *row("Conv", 11, "3-D", _conv(6, 8, 2, 2, 2), start="volume", zero=True),
    *row("Conv", 11, "depthwise", _conv(8, 1, 3, 3, group=8), zero=True),
    *row("Conv", 11, "depthwise no bias", _conv(8, 1, 3, 3, bias=False, group=8), zero=True),
    *row("Conv", 11, "depthwise 1-D", _conv(8, 1, 3, group=8), start="line", zero=True),
    *row("Conv", 11, "depthwise 3-D", _conv(8, 1, 2, 1, 1, group=8), start="volume", zero=True),
    *row("Conv", 11, "depthwise times 2", _conv(16, 1, 3, 3, group=8), zero=True),
    *row("Conv", 11, "depthwise times 3 1-D", _conv(24, 1, 3, group=8), start="line", zero=True),
    *row("Conv", 11, "2 groups", _conv(6, 4, 3, 3, group=2), zero=True),
    *row("Conv", 11, "2 groups no bias", _conv(8, 4, 1, 1, bias=False, group=2), zero=True),
    *row("Conv", 11, "2 groups 1-D", _conv(4, 4, 3, group=2), start="line", zero=True),
    *row("Conv", 11, "4 groups", _conv(8, 2, 3, 3, group=4), zero=True),
    *row("Conv", 11, "4 groups times 3", _conv(12, 2, 1, 1, group=4), zero=True),
    *row("Conv", 11, "4 groups 3-D", _conv(4, 2, 1, 2, 1, group=4), start="volume", zero=True),
    *row("Conv", 11, "two groupings", lambda g, x: _conv(8, 2, 1, 1, group=4)(g, _conv(8, 4, 1, 1, group=2)(g, x))),
    *row("Conv", 11, "grouped then depthwise", lambda g, x: _conv(8, 1, 3, 3, group=8)(g, _conv(8, 4, 1, 1, group=2)(g, x))),
    *row("Conv", 11, "residual", lambda g, x: g.Add(x, _conv(8, 8, 3, 3, pads=[1] * 4)(g, x)), zero=True),
    *row("Conv", 11, "residual grouped", lambda g, x: g.Add(x, _conv(8, 4, 1, 1, group=2)(g, x)), zero=True),
    *row("Conv", 11, "weight used twice", lambda g, x: g.Add(g.Conv(x, w := g.w(6, 8, 1, 1)), g.Conv(g.another(), w)), zero=True),
    *row(
        "Conv",
        11,
        "bias used twice",
        lambda g, x: g.Concat(g.Conv(x, g.w(6, 8, 1, 1), b := g.w(6)), g.Conv(x, g.w(6, 8, 1, 1), b), axis=1),
    ),
    *row(
        "Conv", 11, "constant nodes", lambda g, x: g.Conv(x, g.constant(g.randn(6, 8, 1, 1)), g.constant(g.randn(6))), zero=True
    ),
    *frozen("Conv", 11, "weight is an input", lambda g, x: g.Conv(x, g.input(g.randn(6, 8, 1, 1))), blame="graph input"),
]

# ConvTranspose -------------------------------------------------------------------------------------------------------------
CASES += [
    *row("ConvTranspose", (7, 11, 22), "", _transposed(8, 6, 3, 3), zero=True),
    *row("ConvTranspose", 11, "no bias", _transposed(8, 6, 2, 2, bias=False, strides=[2, 2]), zero=True),
    *row("ConvTranspose", 11, "output padding", _transposed(8, 6, 3, 3, strides=[2, 2], output_padding=[1, 1]), zero=True),
    *row("ConvTranspose", 11, "output shape", _transposed(8, 6, 3, 3, strides=[2, 2], output_shape=[8, 12]), zero=True),
    *row("ConvTranspose", 11, "1-D", _transposed(8, 6, 3), start="line", zero=True),
    *row("ConvTranspose", 11, "3-D", _transposed(8, 6, 2, 2, 2), start="volume", zero=True),
    *row("ConvTranspose", 11, "depthwise", _transposed(8, 1, 2, 2, group=8, strides=[2, 2]), zero=True),
    *row("ConvTranspose", 11, "depthwise times 2", _transposed(8, 2, 2, 2, group=8), zero=True),
    *row("ConvTranspose", 11, "2 groups", _transposed(8, 3, 2, 2, group=2), zero=True),
    *row("ConvTranspose", 11, "4 groups", _transposed(8, 2, 3, 3, group=4), zero=True),
    *row("ConvTranspose", 11, "4 groups 1-D", _transposed(8, 3, 2, group=4), start="line", zero=True),
]

# Gemm ----------------------------------------------------------------------------------------------------------------------
for _a in (0, 1):
    for _b in (0, 1):
        CASES += row("Gemm", 13, f"transA {_a} transB {_b}", _gemm(6, transA=_a, transB=_b), start="rows", zero=True)
CASES += [
    *row("Gemm", (7, 9, 11), "alpha beta", _gemm(6, alpha=0.5, beta=2.0), start="rows", zero=True),
    *row("Gemm", 13, "no bias", lambda g, x: g.Gemm(x, g.w(8, 6)), start="rows", zero=True),
    *row("Gemm", 13, "bias scalar", _gemm(), start="rows", zero=False),
    *row("Gemm", 13, "bias (1)", _gemm(1), start="rows", zero=False),
    *row("Gemm", 13, "bias (1, n)", _gemm(1, 6), start="rows", zero=True),
    *row("Gemm", 13, "bias (m, 1)", _gemm(5, 1), start="rows", zero=False),
    *row("Gemm", 13, "bias (m, n)", _gemm(5, 6, transB=1), start="rows", zero=True),
    *row("Gemm", 13, "bias computed", lambda g, x: g.Gemm(x, g.w(8, 6), _gemm(6)(g, g.another())), start="rows", zero=True),
    *row("Gemm", 13, "weight first", lambda g, x: g.Gemm(g.w(4, 5), x, g.w(8)), start="rows", zero=True),
    *row("Gemm", 13, "weight first transA", lambda g, x: g.Gemm(g.w(5, 4), x, g.w(4, 1), transA=1), start="rows"),
    *row("Gemm", 13, "weight first transB", lambda g, x: g.Transpose(g.Gemm(g.w(4, 8), x, transB=1), perm=[1, 0]), start="rows"),
    *row("Gemm", 13, "two branches", lambda g, x: g.Gemm(x, g.another(), transB=1), start="rows"),
]

# MatMul --------------------------------------------------------------------------------------------------------------------
CASES += [
    *row("MatMul", (7, 9, 13), "3-D times 2-D", lambda g, x: g.MatMul(x, g.w(8, 6)), start="tokens", zero=True),
    *row("MatMul", 13, "2-D times 2-D", lambda g, x: g.MatMul(x, g.w(8, 6)), start="rows", zero=True),
    *row("MatMul", 13, "3-D times 3-D", lambda g, x: g.MatMul(x, g.w(2, 8, 6)), start="tokens", zero=True),
    *row("MatMul", 13, "3-D times one 3-D", lambda g, x: g.MatMul(x, g.w(1, 8, 6)), start="tokens", zero=True),
    *row("MatMul", 13, "3-D times 4-D", lambda g, x: g.MatMul(x, g.w(3, 1, 8, 6)), start="tokens", zero=True),
    *row("MatMul", 13, "2-D times 3-D", lambda g, x: g.MatMul(x, g.w(3, 8, 6)), start="rows", zero=True),
    *row("MatMul", 13, "3-D times 1-D", lambda g, x: g.MatMul(x, g.w(8)), start="tokens"),
    *row("MatMul", 13, "2-D times 1-D", lambda g, x: g.MatMul(x, g.w(8)), start="rows", end="none"),
    *row("MatMul", 13, "1-D times 3-D", lambda g, x: g.MatMul(g.w(5), x), start="tokens", zero=True),
    *row(
        "MatMul", 13, "1-D times 2-D", lambda g, x: g.MatMul(g.ReduceSum(x, [0], keepdims=0), g.w(8, 6)), start="rows", end="none"
    ),
    *row("MatMul", 13, "1-D times 1-D", lambda g, x: g.MatMul(g.ReduceSum(x, [0], keepdims=0), g.w(8)), start="rows", end="none"),
    *row("MatMul", 13, "weight first", lambda g, x: g.MatMul(g.w(4, 5), x), start="tokens", zero=True),
    *row("MatMul", 13, "channels as batch", lambda g, x: g.MatMul(x, g.w(6, 5)), zero=True),
    *row("MatMul", 13, "weight per channel", lambda g, x: g.MatMul(x, g.w(8, 6, 5)), zero=True),
    *row("MatMul", 13, "two branches", lambda g, x: g.MatMul(x, g.Transpose(g.another(), perm=[0, 2, 1])), start="tokens"),
    *row(
        "MatMul",
        13,
        "gram matrix",
        lambda g, x: g.ReduceSum(g.MatMul(x, g.Transpose(x, perm=[0, 2, 1])), [1], keepdims=0),
        start="line",
    ),
    *row(
        "MatMul", 13, "channels on both sides", lambda g, x: g.MatMul(g.Transpose(x, perm=[0, 2, 1]), g.another()), start="tokens"
    ),
]

# Einsum --------------------------------------------------------------------------------------------------------------------
CASES += [
    *row("Einsum", 12, "convolution", _equation("bchw,oc->bohw", (6, 8)), zero=True),
    *row("Einsum", 12, "dense", _equation("bsk, kn -> bsn", (8, 6)), start="tokens", zero=True),
    *row("Einsum", 12, "upper case", _equation("BsK,KN->BsN", (8, 6)), start="tokens", zero=True),
    *row("Einsum", 12, "implicit", _equation("ab,bc", (8, 6)), start="rows", zero=True),
    *row("Einsum", 12, "ellipsis", _equation("...k,kn->...n", (8, 6)), start="tokens", zero=True),
    *row("Einsum", 12, "ellipsis in front", _equation("...k,...kn->...n", (2, 1, 8, 6)), start="tokens", zero=True),
    *row("Einsum", 12, "ellipsis behind", _equation("bc...,oc->bo...", (6, 8)), zero=True),
    *row("Einsum", 12, "three", _equation("bsk,kh,ho->bso", (8, 6), (6, 4)), start="tokens", zero=True),
    *row("Einsum", 12, "outer product", lambda g, x: g.Einsum(x, g.another(), equation="bc,bd->bcd"), start="rows", end="dense"),
    *row("Einsum", 12, "transposition", _equation("bchw->bhwc"), end="dense", zero=True),
    *row("Einsum", 12, "sum of positions", _equation("bchw->bc"), zero=True),
    *row("Einsum", 12, "sum of channels", _equation("bchw->bhw"), end="none"),
    *row("Einsum", 12, "elementwise", _equation("bchw,c->bchw", (8,)), zero=True),
    *row("Einsum", 12, "scores", lambda g, x: g.Einsum(x, g.another(), equation="bsd,btd->bst"), start="tokens"),
    *row("Einsum", 12, "heads", lambda g, x: _heads(g, x), start="tokens", end="none"),
    *frozen(
        "Einsum",
        12,
        "diagonal",
        lambda g, x: g.Einsum(g.Mul(g.Unsqueeze(x, axes=[1]), g.Unsqueeze(x, axes=[2])), equation="bii->bi"),
        start="rows",
    ),
]


def _heads(g: Net, x: str) -> str:
    """Scores of two heads of four channels."""
    q, k = (g.Reshape(g.MatMul(x, g.w(8, 8)), [2, 5, 2, 4]) for _ in range(2))
    return g.Einsum(q, k, equation="bshd,bthd->bhst")
