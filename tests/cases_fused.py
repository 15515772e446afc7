"""What onnxruntime's optimiser fuses: convolutions and products with their activations, residuals and transpositions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cases_net import Case, Net, frozen, row

MS = "com.microsoft"
Build = Callable[[Net, str], Any]


def ms(op: str, note: str, build: Build, **options: Any) -> Any:
    """A row of an operator of onnxruntime's own."""
    return row(op, 17, note, build, domain=MS, **options)


def whole(op: str, note: str, build: Build, **options: Any) -> Any:
    """The same, where no channel can leave."""
    return frozen(op, 17, note, build, domain=MS, **options)


def _conv(*weight: int, bias: bool = True, residual: bool = False, **attributes: Any) -> Build:
    def build(g: Net, x: str) -> Any:
        more = [g.w(weight[0]) if bias else None] if bias or residual else []
        more += [g.Conv(x, g.w(weight[0], 8, 1, 1), g.w(weight[0]))] if residual else []
        return g.FusedConv(x, g.w(*weight), *more, pads=[1] * 4, domain=MS, **attributes)

    return build


def _gemm(*bias: int, **attributes: Any) -> Build:
    def build(g: Net, x: str) -> Any:
        x = g.Transpose(x, perm=[1, 0]) if attributes.get("transA") else x
        weight = g.w(*((6, 8) if attributes.get("transB") else (8, 6)))
        return g.FusedGemm(x, weight, *([g.w(*bias)] if bias else []), domain=MS, **attributes)

    return build


def _matmul(op: str, *weight: int, swap: tuple[int, ...] = (), **attributes: Any) -> Build:
    """``swap``: the transposition in front."""

    def build(g: Net, x: str) -> Any:
        x = g.Transpose(x, perm=list(swap)) if swap else x
        return getattr(g, op)(x, g.w(*weight), domain=MS, **attributes)

    return build


def _product(g: Net, x: str) -> Any:
    """Scores of queries and keys, of two tensors that depend on the input."""
    q, k = (g.Reshape(g.MatMul(x, g.w(8, 12)), [0, 0, 3, 4]) for _ in range(2))
    q, k = g.Transpose(q, perm=[0, 2, 1, 3]), g.Transpose(k, perm=[0, 2, 1, 3])
    scores = g.FusedMatMul(q, k, transB=1, alpha=0.5, domain=MS)
    return g.Transpose(g.MatMul(scores, k), perm=[0, 2, 1, 3])


def _batches(g: Net, x: str) -> Any:
    """The heads are the batch, and the positions come before them."""
    q, k = (g.Transpose(g.Reshape(g.MatMul(x, g.w(8, 12)), [0, 0, 3, 4]), perm=[1, 0, 2, 3]) for _ in range(2))
    scores = g.FusedMatMul(q, k, transB=1, transBatchA=1, transBatchB=1, domain=MS)
    v = g.Transpose(g.Reshape(g.MatMul(x, g.w(8, 12)), [0, 0, 3, 4]), perm=[0, 2, 1, 3])
    return g.Transpose(g.MatMul(scores, v), perm=[0, 2, 1, 3])


def _skip(op: str, *, bias: bool = True, total: bool = False) -> Build:
    """Normalised over the channels, so that a part of what comes before can leave: the layer in between."""

    def build(g: Net, x: str) -> Any:
        y = g.MatMul(g.Relu(g.MatMul(x, g.w(8, 6))), g.w(6, 8))
        vectors = [g.w(8)] * (2 if op == "SkipLayerNormalization" else 1) + ([g.w(8)] if bias else [])
        results = getattr(g, op)(x, y, *vectors, domain=MS, outputs=4 if total else 1)
        return g.Add(results[0], results[3]) if total else results

    return build


def _embed(g: Net, x: str) -> Any:
    ids = g.input(np.array([[0, 2, 3, 1, 0], [1, 1, 2, 0, 3]], np.int32))
    tables = [g.w(4, 8), g.w(6, 8), g.w(2, 8)]
    y, _ = g.EmbedLayerNormalization(ids, np.zeros((2, 5), np.int32), *tables, g.w(8), g.w(8), domain=MS, outputs=2)
    return [x, y]


def _nhwc_pool(g: Net, x: str) -> Any:
    """It only takes bytes."""
    x = g.QuantizeLinear(x, 0.02, np.array(3, np.int8))
    x = g.NhwcMaxPool(g.Transpose(x, perm=[0, 2, 3, 1]), kernel_shape=[2, 2], domain=MS)
    return g.DequantizeLinear(g.Transpose(x, perm=[0, 3, 1, 2]), 0.02, np.array(3, np.int8))


CASES: list[Case] = [
    *ms("FusedConv", "", _conv(6, 8, 3, 3), zero=True),
    *ms("FusedConv", "no bias", _conv(6, 8, 3, 3, bias=False, activation="Relu"), zero=True),
    *ms("FusedConv", "Relu", _conv(6, 8, 3, 3, activation="Relu"), zero=True),
    *ms("FusedConv", "Tanh", _conv(6, 8, 3, 3, activation="Tanh"), zero=True),
    *ms("FusedConv", "LeakyRelu", _conv(6, 8, 3, 3, activation="LeakyRelu", activation_params=[0.2]), zero=True),
    *ms("FusedConv", "Sigmoid", _conv(6, 8, 3, 3, activation="Sigmoid"), zero=False),
    *ms("FusedConv", "HardSigmoid", _conv(6, 8, 3, 3, activation="HardSigmoid", activation_params=[0.2, 0.4]), zero=False),
    *ms("FusedConv", "Clip", _conv(6, 8, 3, 3, activation="Clip", activation_params=[0.0, 6.0]), zero=True),
    *ms("FusedConv", "Clip above zero", _conv(6, 8, 3, 3, activation="Clip", activation_params=[0.5, 6.0]), zero=False),
    *ms("FusedConv", "residual", _conv(6, 8, 3, 3, residual=True, activation="Relu"), zero=True),
    *ms("FusedConv", "residual no bias", _conv(6, 8, 3, 3, bias=False, residual=True), zero=True),
    *ms("FusedConv", "2 groups", _conv(6, 4, 3, 3, group=2, activation="Relu"), zero=True),
    *ms("FusedConv", "depthwise", _conv(8, 1, 3, 3, group=8, activation="Relu"), zero=True),
    *ms("FusedGemm", "Relu", _gemm(6, activation="Relu"), start="rows", zero=True),
    *ms("FusedGemm", "no bias", _gemm(activation="Relu", alpha=0.5), start="rows", zero=True),
    *ms("FusedGemm", "Sigmoid", _gemm(6, activation="Sigmoid"), start="rows", zero=False),
    *ms("FusedGemm", "transposed", _gemm(6, activation="Tanh", transA=1, transB=1, beta=0.5), start="rows", zero=True),
    *ms("FusedMatMul", "", _matmul("FusedMatMul", 8, 6), start="tokens", zero=True),
    *ms("FusedMatMul", "alpha", _matmul("FusedMatMul", 8, 6, alpha=0.25), start="rows", zero=True),
    *ms("FusedMatMul", "transA", _matmul("FusedMatMul", 8, 6, swap=(0, 2, 1), transA=1), start="tokens", zero=True),
    *ms("FusedMatMul", "transB", _matmul("FusedMatMul", 6, 8, transB=1), start="tokens", zero=True),
    *ms("FusedMatMul", "transBatchA", _matmul("FusedMatMul", 2, 8, 6, swap=(1, 0, 2), transBatchA=1), start="tokens", zero=True),
    *ms(
        "FusedMatMul",
        "transA and transBatchA",
        _matmul("FusedMatMul", 2, 8, 6, swap=(2, 0, 1), transA=1, transBatchA=1),
        start="tokens",
        zero=True,
    ),
    *ms("FusedMatMul", "transBatchB", _matmul("FusedMatMul", 8, 2, 6, transBatchB=1), start="tokens", zero=True),
    *ms("FusedMatMul", "transB and transBatchB", _matmul("FusedMatMul", 6, 2, 8, transB=1, transBatchB=1), start="tokens"),
    *ms("FusedMatMul", "scores", _product, start="tokens"),
    *ms("FusedMatMul", "scores over batches", _batches, start="tokens"),
    *ms("TransposeMatMul", "", _matmul("TransposeMatMul", 6, 8, transB=1, alpha=2.0), start="tokens", zero=True),
    *ms("Gelu", "", lambda g, x: g.Gelu(x, domain=MS), zero=True),
    *ms("QuickGelu", "", lambda g, x: g.QuickGelu(x, alpha=1.5, domain=MS), zero=True),
    *ms("BiasGelu", "", lambda g, x: g.BiasGelu(x, g.w(8), domain=MS), start="tokens", zero=True),
    *ms("FastGelu", "", lambda g, x: g.FastGelu(x, domain=MS), start="tokens", zero=True),
    *ms("FastGelu", "bias", lambda g, x: g.FastGelu(x, g.w(8), domain=MS), start="tokens", zero=True),
    *ms("NhwcMaxPool", "", _nhwc_pool, zero=True),
    *ms("GridSample", "", lambda g, x: g.GridSample(x, g.input(g.randn(2, 3, 3, 2)), domain=MS), zero=True),
    *ms("SkipLayerNormalization", "", _skip("SkipLayerNormalization"), start="tokens", end="dense"),
    *ms("SkipLayerNormalization", "sum", _skip("SkipLayerNormalization", total=True), start="tokens", end="dense"),
    *ms("SkipLayerNormalization", "no bias", _skip("SkipLayerNormalization", bias=False), start="tokens", end="dense"),
    *ms("SkipSimplifiedLayerNormalization", "", _skip("SkipSimplifiedLayerNormalization"), start="tokens", end="dense"),
    *ms(
        "SkipSimplifiedLayerNormalization",
        "sum",
        _skip("SkipSimplifiedLayerNormalization", total=True),
        start="tokens",
        end="dense",
    ),
    *frozen(
        "SimplifiedLayerNormalization", 17, "channels", lambda g, x: g.SimplifiedLayerNormalization(x, g.w(8)), start="tokens"
    ),
    *row("SimplifiedLayerNormalization", 17, "positions", lambda g, x: g.SimplifiedLayerNormalization(x, g.w(6)), zero=None),
    *ms("EmbedLayerNormalization", "", _embed, start="tokens", end="dense"),
]
