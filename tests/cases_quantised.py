"""Quantised operators: zero points of every kind, in ONNX's own operators and in onnxruntime's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cases_net import Case, Net, frozen, row

MS = "com.microsoft"
Build = Callable[[Net, str], Any]
SCALE, POINT = 0.05, 131
"""Of activations, which are unsigned bytes around a zero point that is not 0."""


def ms(op: str, note: str, build: Build, **options: Any) -> Any:
    """A row of an operator of onnxruntime's own."""
    return row(op, 17, note, build, domain=MS, **options)


# into bytes and out of them ---------------------------------------------------------------------------------------------------
def point(value: int | Sequence[int], dtype: Any = np.uint8) -> np.ndarray:
    return np.array(value, dtype)


def quantised(g: Net, x: str, scale: float = SCALE, zero: int = POINT) -> list[Any]:
    """A tensor of bytes, its scale and its zero point."""
    operands = [scale, g.store(point(zero))]
    return [g.QuantizeLinear(x, *operands), *operands]


def result(g: Net, y: str, scale: float = 0.3, zero: int = 120) -> str:
    """Floats again."""
    return g.DequantizeLinear(y, scale, point(zero))


def filters(g: Net, *shape: int, zero: int | Sequence[int] = 0, dtype: Any = np.int8, axis: int | None = None) -> list[Any]:
    """Bytes away from their zero point, with scales per tensor, or per channel of ``axis``."""
    away = np.array(zero).reshape([-1 if a == axis else 1 for a in range(len(shape))] if np.ndim(zero) else ())
    spread = g.rng.integers(5, 60, shape) * g.rng.choice([-1, 1], shape)
    values = np.clip(away + spread, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)
    count = shape[axis] if axis is not None else 0
    scale = (g.rng.uniform(0.01, 0.03, count) if count else np.array(0.02)).astype(np.float32)
    points = np.broadcast_to(point(zero, dtype), (count,) if count else ())
    return [values, scale, points]


def bias(g: Net, count: int) -> np.ndarray:
    return (g.rng.integers(50, 400, count) * g.rng.choice([-1, 1], count)).astype(np.int32)


EACH = [3, -4, 0, 7, 5, -2]
"""Zero points that differ from channel to channel."""


def _blocks(g: Net, x: str, *, zero: bool, axis: int = 0, dtype: Any = np.int8) -> Any:
    """A weight quantised in blocks of four rows or columns."""
    shape = (2, 6) if axis == 0 else (8, 3)
    weight = g.int8(8, 6 if axis == 0 else 12, dtype=dtype)
    points = [g.int8(*shape, dtype=dtype)] if zero else []
    return g.MatMul(x, g.DequantizeLinear(weight, g.positive(*shape), *points, axis=axis, block_size=4))


def _transposed_weight(g: Net, x: str) -> Any:
    weight, scale, zero = filters(g, 6, 8, zero=9)
    return g.MatMul(x, g.DequantizeLinear(g.Transpose(g.store(weight), perm=[1, 0]), scale, zero))


def _two_readers(g: Net, x: str) -> Any:
    """One weight, two opinions of what stands for zero."""
    weight = g.store(filters(g, 8, 6, zero=9)[0])
    one, other = (g.DequantizeLinear(weight, 0.02, point(zero, np.int8)) for zero in (9, 2))
    return g.Add(g.MatMul(x, one), g.MatMul(x, other))


def _padded(value: int) -> Build:
    """Bytes with channels padded on, which are zero only if they are at the zero point."""

    def build(g: Net, x: str) -> Any:
        x, scale, zero = quantised(g, g.Relu(x))
        return g.DequantizeLinear(g.Pad(x, [0, 2, 0, 0, 0, 1, 0, 0], point(value)), scale, zero)

    return build


def _pooled(op: str, **attributes: Any) -> Build:
    def build(g: Net, x: str) -> Any:
        x, scale, zero = quantised(g, g.Relu(x))
        return g.DequantizeLinear(getattr(g, op)(x, **attributes), scale, zero)

    return build


def _stacked(second: int) -> Build:
    """Two tensors of bytes behind each other, of one zero point or two."""

    def build(g: Net, x: str) -> Any:
        one, scale, zero = quantised(g, g.Relu(x))
        other, *_ = quantised(g, g.Relu(g.another()), zero=second)
        return g.DequantizeLinear(g.Concat(one, other, axis=1), scale, zero)

    return build


def _misread(g: Net, x: str) -> Any:
    """Read with another zero point than it was written with."""
    y, scale, _ = quantised(g, g.Relu(x))
    return g.DequantizeLinear(y, scale, point(100))


CASES: list[Case] = [
    *row("QuantizeLinear", 13, "and back", lambda g, x: result(g, quantised(g, x)[0], zero=POINT), zero=True),
    *row("QuantizeLinear", 13, "misread", _misread),
    *row("QuantizeLinear", 13, "padded at the zero point", _padded(POINT), zero=None),
    *row("QuantizeLinear", 13, "padded at 0", _padded(0), zero=None),
    *row("QuantizeLinear", 13, "pooled", _pooled("MaxPool", kernel_shape=[2, 2]), zero=True),
    *row("QuantizeLinear", 13, "moved", _pooled("Transpose", perm=[0, 1, 3, 2]), zero=True),
    *row("QuantizeLinear", 13, "stacked", _stacked(POINT), zero=True),
    *row("QuantizeLinear", 13, "stacked of two points", _stacked(100), zero=None),
    *row("DequantizeLinear", 21, "blocks of rows", lambda g, x: _blocks(g, x, zero=False), start="tokens"),
    *row("DequantizeLinear", 21, "blocks of rows with points", lambda g, x: _blocks(g, x, zero=True), start="tokens"),
    *row("DequantizeLinear", 21, "blocks of columns", lambda g, x: _blocks(g, x, zero=True, axis=1), start="tokens", zero=True),
    *row("DequantizeLinear", 21, "transposed", _transposed_weight, start="tokens", zero=True),
    *row("DequantizeLinear", 13, "two readers", _two_readers, start="tokens"),
]


# per channel, of any zero point -----------------------------------------------------------------------------------------------
def _pair(g: Net, x: str) -> Any:
    """A weight of floats that is quantised in the graph."""
    scale, points = g.positive(6), g.store(point([0] * 6, np.int8))
    options = {"axis": 0}
    return g.Conv(x, g.DequantizeLinear(g.QuantizeLinear(g.w(6, 8, 1, 1), scale, points, **options), scale, points, **options))


def _dequantised(op: str, *shape: int, axis: int | None, zero: Any, dtype: Any = np.int8, domain: str = "") -> Build:
    def build(g: Net, x: str) -> Any:
        weight, scale, points = filters(g, *shape, zero=zero, dtype=dtype, axis=axis)
        options = {} if axis is None else {"axis": axis}
        return getattr(g, op)(x, g.DequantizeLinear(g.store(weight), scale, g.store(points), domain=domain, **options))

    return build


def _around(g: Net, x: str) -> Any:
    """onnxruntime's own pair."""
    y = g.QuantizeLinear(x, SCALE, point(POINT), domain=MS)
    return g.DequantizeLinear(y, SCALE, point(POINT), domain=MS)


CASES += [
    *row("DequantizeLinear", 13, "rows of their own points", _dequantised("Conv", 6, 8, 1, 1, axis=0, zero=EACH), zero=True),
    *row("DequantizeLinear", 13, "consumer of one point", _dequantised("Conv", 6, 8, 3, 3, axis=None, zero=12), zero=True),
    *row(
        "DequantizeLinear",
        13,
        "unsigned",
        _dequantised("MatMul", 8, 6, axis=None, zero=128, dtype=np.uint8),
        start="tokens",
        zero=True,
    ),
    *row(
        "DequantizeLinear",
        13,
        "columns of their own points",
        _dequantised("MatMul", 8, 6, axis=1, zero=EACH),
        start="tokens",
        zero=True,
    ),
    *row("QuantizeLinear", 13, "weight", _pair, zero=True),
    *ms("QuantizeLinear", "", _around, zero=True),
    *ms("QuantizeLinear", "alone", lambda g, x: g.QuantizeLinear(x, SCALE, point(POINT), domain=MS)),
    *ms("DequantizeLinear", "", _dequantised("Conv", 6, 8, 1, 1, axis=None, zero=5, domain=MS), zero=True),
    *ms("DequantizeLinear", "per channel", _dequantised("Conv", 6, 8, 1, 1, axis=0, zero=EACH, domain=MS), zero=True),
]


# convolutions -----------------------------------------------------------------------------------------------------------------
def _conv(
    *shape: int,
    each: bool = False,
    zero: Any = 0,
    dtype: Any = np.int8,
    biased: bool = True,
    last: bool = False,
    **attributes: Any,
) -> Build:
    def build(g: Net, x: str) -> Any:
        x = g.Transpose(x, perm=[0, 2, 3, 1]) if last else x
        weight = filters(g, *shape, zero=zero, dtype=dtype, axis=0 if each else None)
        more = [bias(g, shape[0])] if biased else []
        options = {"domain": MS, "channels_last": 1} if last else {}
        y = result(g, g.QLinearConv(*quantised(g, x), *weight, 0.3, point(120), *more, **options, **attributes))
        return g.Transpose(y, perm=[0, 3, 1, 2]) if last else y

    return build


def _integer_conv(*shape: int, zero: Any = 0, dtype: Any = np.uint8, points: bool = True, **attributes: Any) -> Build:
    def build(g: Net, x: str) -> Any:
        x, _, own = quantised(g, x)
        weight, _, other = filters(g, *shape, zero=zero, dtype=dtype)
        x = x if points else g.QuantizeLinear(g.Relu(g.another()), SCALE, point(0))
        return g.ConvInteger(x, weight, *([own, other] if points else []), **attributes)

    return build


CASES += [
    *row("QLinearConv", (10, 17), "", _conv(6, 8, 3, 3, pads=[1] * 4), zero=True),
    *row("QLinearConv", 17, "no bias", _conv(6, 8, 1, 1, biased=False), zero=True),
    *row("QLinearConv", 17, "unsigned", _conv(6, 8, 3, 3, zero=128, dtype=np.uint8, pads=[1] * 4), zero=True),
    *row("QLinearConv", 17, "per channel", _conv(6, 8, 3, 3, each=True), zero=True),
    *row("QLinearConv", 17, "2 groups", _conv(6, 4, 3, 3, each=True, group=2), zero=True),
    *row("QLinearConv", 17, "depthwise", _conv(8, 1, 3, 3, each=True, group=8), zero=True),
    *row("QLinearConv", 17, "4 groups of one scale", _conv(8, 2, 1, 1, zero=3, dtype=np.uint8, group=4), zero=True),
    *ms("QLinearConv", "channels last", _conv(6, 8, 3, 3, last=True, pads=[1] * 4), zero=True),
    *ms("QLinearConv", "channels last, unsigned", _conv(6, 8, 3, 3, last=True, zero=128, dtype=np.uint8), zero=True),
    *ms("QLinearConv", "channels last, 2 groups", _conv(6, 4, 3, 3, each=True, last=True, group=2), zero=True),
    *ms("QLinearConv", "channels last, depthwise", _conv(8, 1, 3, 3, last=True, group=8), zero=True),
    *row("ConvInteger", 10, "", _integer_conv(6, 8, 3, 3, zero=128, pads=[1] * 4), zero=True),
    *row("ConvInteger", 10, "no zero points", _integer_conv(6, 8, 1, 1, zero=0, points=False), zero=True),
    *row("ConvInteger", 10, "depthwise", _integer_conv(8, 1, 1, 1, zero=7, group=8), zero=True),
    *row("ConvInteger", 10, "2 groups", _integer_conv(6, 4, 1, 1, zero=7, group=2), zero=True),
]


# products -----------------------------------------------------------------------------------------------------------------
def _matmul(*, zero: Any = 0, dtype: Any = np.int8, each: bool = False, stored: bool = True) -> Build:
    def build(g: Net, x: str) -> Any:
        weight = filters(g, 8, 6, zero=zero, dtype=dtype, axis=1 if each else None)
        other = weight if stored else quantised(g, g.Transpose(g.another(), perm=[0, 2, 1]))
        return result(g, g.QLinearMatMul(*quantised(g, x), *other, 0.3, point(120)))

    return build


def _dynamic(*, zero: Any = 0, dtype: Any = np.uint8, each: bool = False, relu: bool = True, to_float: bool = False) -> Build:
    """As the dynamic quantiser writes it: the scale of the activation is found at run time."""

    def build(g: Net, x: str) -> Any:
        x, scale, own = g.DynamicQuantizeLinear(g.Relu(x) if relu else g.Cos(x), outputs=3)
        weight, scales, points = filters(g, 8, 6, zero=zero, dtype=dtype, axis=1 if each else None)
        if to_float:
            return g.MatMulIntegerToFloat(x, weight, scale, scales, own, points, g.w(6), domain=MS)
        y = g.Cast(g.MatMulInteger(x, weight, own, points), to=1)
        return g.Add(g.Mul(y, g.Mul(scale, scales)), g.w(6))

    return build


def _there_and_back(g: Net, x: str) -> Any:
    return g.DequantizeLinear(*g.DynamicQuantizeLinear(x, outputs=3))


def _integer(points: int) -> Build:
    def build(g: Net, x: str) -> Any:
        x, _, own = quantised(g, x, zero=POINT if points else 0)
        weight, _, other = filters(g, 8, 6, zero=9 if points > 1 else 0)
        return g.MatMulInteger(x, weight, *[own, other][:points])

    return build


def _lstm(*, each: bool = False, zero: int = 0, dtype: Any = np.int8, directions: int = 1, relu: bool = True) -> Build:
    """Six units on eight channels; a row per step comes out."""

    def build(g: Net, x: str) -> str:
        steps = g.Transpose(g.Relu(x) if relu else x, perm=[1, 0, 2])
        stored = []
        for inputs in (8, 6):
            values, scale, points = filters(g, directions, inputs, 24, zero=zero, dtype=dtype)
            shape = (directions, 24) if each else (directions,)
            stored.append((values, *(np.broadcast_to(v, shape).copy() for v in (scale, points))))
        (w, *w_options), (r, *r_options) = stored
        direction = "bidirectional" if directions == 2 else "forward"
        y = g.DynamicQuantizeLSTM(
            steps, w, r, g.w(directions, 48), *[None] * 4, *w_options, *r_options, domain=MS, hidden_size=6, direction=direction
        )
        rows = g.Transpose(y, perm=[2, 0, 1, 3])
        return g.Reshape(rows, [0, 0, -1])

    return build


def _dynamic_matmul(*, relu: bool = True, zero: Any = 4, each: bool = False, biased: bool = True) -> Build:
    def build(g: Net, x: str) -> Any:
        x = g.Relu(x) if relu else g.Cos(x)
        weight = filters(g, 8, 6, zero=zero, axis=1 if each else None)
        return g.DynamicQuantizeMatMul(x, *weight, *([g.w(6)] if biased else []), domain=MS)

    return build


def _gemm(*, each: bool = False, zero: Any = 0, biased: bool = True, floats: bool = False, **attributes: Any) -> Build:
    def build(g: Net, x: str) -> Any:
        x = g.Transpose(x, perm=[1, 0]) if attributes.get("transA") else x
        swapped = bool(attributes.get("transB"))
        shape = (6, 8) if swapped else (8, 6)
        weight = filters(g, *shape, zero=zero, axis=(0 if swapped else 1) if each else None)
        more = [] if floats else [0.3, point(120)]
        y = g.QGemm(*quantised(g, x), *weight, bias(g, 6) if biased else None, *more, domain=MS, **attributes)
        return y if floats else result(g, y)

    return build


def _n_bits(n: int, k: int, block: int, bits: int, zeros: str = "", flat: bool = False, biased: bool = False) -> Build:
    """``zeros``: ``packed`` as the weight is, or ``float``; ``flat``: scales in one dimension."""

    def build(g: Net, x: str) -> Any:
        blocks = -(-k // block)
        x = g.MatMul(x, g.w(8, k))
        weight = g.store(g.rng.integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8))
        shape = (n * blocks,) if flat else (n, blocks)
        packed = (n, -(-blocks * bits // 8))
        packed = (n * packed[1],) if flat else packed
        points: Any = None
        if zeros:
            points = g.positive(*shape) if zeros == "float" else g.rng.integers(0, 256, packed).astype(np.uint8)
        more = [points, None, g.w(n) if biased else None] if zeros or biased else []
        while more and more[-1] is None:
            more.pop()
        return g.MatMulNBits(x, weight, g.positive(*shape), *more, N=n, K=k, bits=bits, block_size=block, domain=MS)

    return build


CASES += [
    *row("QLinearMatMul", (10, 21), "", _matmul(), start="tokens", zero=True),
    *row("QLinearMatMul", 17, "unsigned", _matmul(zero=128, dtype=np.uint8), start="tokens", zero=True),
    *row("QLinearMatMul", 17, "per column", _matmul(each=True), start="tokens", zero=True),
    *row("QLinearMatMul", 17, "two activations", _matmul(stored=False), start="tokens"),
    *row("MatMulInteger", 10, "no zero points", _integer(0), start="tokens", zero=True),
    *row("MatMulInteger", 10, "one zero point", _integer(1), start="tokens", zero=True),
    *row("MatMulInteger", 10, "both zero points", _integer(2), start="tokens", zero=True),
    *row("MatMulInteger", 17, "dynamic", _dynamic(zero=120), start="tokens", zero=True),
    *row("MatMulInteger", 17, "dynamic, signed", _dynamic(dtype=np.int8), start="tokens", zero=True),
    *row("MatMulInteger", 17, "dynamic per column", _dynamic(dtype=np.int8, each=True), start="tokens", zero=True),
    *row("MatMulInteger", 17, "dynamic, own points", _dynamic(dtype=np.int8, each=True, zero=EACH), start="tokens", zero=True),
    *row("DynamicQuantizeLinear", 11, "", _dynamic(), start="tokens", zero=True),
    *row("DynamicQuantizeLinear", 11, "and back", _there_and_back, zero=True),
    *row("DynamicQuantizeLinear", 11, "not zero", _dynamic(relu=False), start="tokens"),
    *ms("MatMulIntegerToFloat", "", _dynamic(to_float=True, zero=120), start="tokens", zero=True),
    *ms("MatMulIntegerToFloat", "per column", _dynamic(to_float=True, dtype=np.int8, each=True), start="tokens", zero=True),
    *ms("MatMulIntegerToFloat", "own points", _dynamic(to_float=True, dtype=np.int8, each=True, zero=EACH), start="tokens"),
    *ms("DynamicQuantizeLSTM", "", _lstm(), start="tokens", zero=True),
    *ms("DynamicQuantizeLSTM", "per row", _lstm(each=True), start="tokens", zero=True),
    *ms("DynamicQuantizeLSTM", "unsigned", _lstm(zero=131, dtype=np.uint8), start="tokens", zero=True),
    *ms("DynamicQuantizeLSTM", "both directions", _lstm(directions=2), start="tokens", zero=True),
    *ms("DynamicQuantizeLSTM", "not zero", _lstm(relu=False), start="tokens"),
    *ms("DynamicQuantizeMatMul", "", _dynamic_matmul(), start="tokens", zero=True),
    *ms("DynamicQuantizeMatMul", "no bias", _dynamic_matmul(biased=False, zero=0), start="tokens", zero=True),
    *ms("DynamicQuantizeMatMul", "per column", _dynamic_matmul(each=True, zero=EACH), start="tokens", zero=True),
    *ms("DynamicQuantizeMatMul", "not zero", _dynamic_matmul(relu=False), start="tokens"),
    *ms("QGemm", "", _gemm(), start="rows", zero=True),
    *ms("QGemm", "no bias", _gemm(biased=False), start="rows", zero=True),
    *ms("QGemm", "per column", _gemm(each=True), start="rows", zero=True),
    *ms("QGemm", "transposed", _gemm(transA=1, transB=1, alpha=0.5), start="rows", zero=True),
    *ms("QGemm", "zero point", _gemm(zero=9), start="rows", zero=True),
    *ms("QGemm", "floats", _gemm(floats=True), start="rows", zero=True),
    *ms("MatMulNBits", "", _n_bits(6, 64, 16, 4), start="tokens", zero=True),
    *ms("MatMulNBits", "8 bits", _n_bits(6, 64, 16, 8), start="tokens", zero=True),
    *ms("MatMulNBits", "8 bits, points", _n_bits(6, 64, 16, 8, "packed"), start="tokens", zero=True),
    *ms("MatMulNBits", "packed points", _n_bits(6, 64, 16, 4, "packed"), start="tokens", zero=True),
    *ms("MatMulNBits", "packed points, flat", _n_bits(6, 64, 16, 4, "packed", flat=True), start="tokens", zero=True),
    *ms("MatMulNBits", "packed points, three blocks", _n_bits(6, 48, 16, 4, "packed"), start="tokens", zero=True),
    *ms("MatMulNBits", "points of floats", _n_bits(6, 64, 16, 4, "float"), start="tokens", zero=True),
    *ms("MatMulNBits", "flat", _n_bits(6, 64, 16, 4, flat=True), start="tokens", zero=True),
    *ms("MatMulNBits", "part of a block", _n_bits(6, 40, 16, 4), start="tokens", zero=True),
    *ms("MatMulNBits", "bias", _n_bits(6, 64, 16, 4, "packed", biased=True), start="tokens", zero=True),
]


# attention ----------------------------------------------------------------------------------------------------------------
def _attention(*, each: bool = False, zero: Any = 0, dtype: Any = np.int8, mask: bool = False, count: int = 2) -> Build:
    def build(g: Net, x: str) -> Any:
        x, scale, own = quantised(g, x)
        weight, scales, points = filters(g, 8, 48, zero=zero, dtype=dtype, axis=1 if each else None)
        lengths = np.int32([[1] * 5, [1, 1, 1, 0, 0]]) if mask else None
        return g.QAttention(x, weight, g.w(48), scale, scales, lengths, own, points, num_heads=count, domain=MS)

    return build


# element by element -----------------------------------------------------------------------------------------------------------
def _binary(op: str, *, stored: bool = False, first: Callable[[Net, str], str] | None = None) -> Build:
    def build(g: Net, x: str) -> Any:
        other = filters(g, 8, 1, 1, zero=100, dtype=np.uint8) if stored else quantised(g, g.Relu(g.another()), 0.04, 90)
        x = first(g, x) if first else g.Relu(x)
        return result(g, getattr(g, op)(*quantised(g, x), *other, 0.3, point(120), domain=MS))

    return build


def _unary(
    op: str, *, end: Callable[[Net, str], str] | None = None, scale: float = 0.3, zero: int = 120, **attributes: Any
) -> Build:
    def build(g: Net, x: str) -> Any:
        last = attributes.get("channels_last")
        x = g.Transpose(x, perm=[0, 2, 3, 1]) if last else x
        y = result(g, getattr(g, op)(*quantised(g, x), scale, point(zero), domain=MS, **attributes), scale, zero)
        return g.Transpose(y, perm=[0, 3, 1, 2]) if last else y

    return build


def _where(g: Net, x: str) -> Any:
    condition = np.arange(6) % 2 == 0
    one, other = quantised(g, g.Relu(x)), quantised(g, g.Relu(g.another()), 0.04, 90)
    return result(g, g.QLinearWhere(condition, *one, *other, 0.3, point(120), domain=MS))


def _concat(g: Net, x: str) -> Any:
    parts = [quantised(g, g.Relu(x)), quantised(g, g.Relu(g.another()), 0.04, 90)]
    return result(g, g.QLinearConcat(0.3, point(120), *parts[0], *parts[1], axis=1, domain=MS))


CASES += [
    *ms("QAttention", "", _attention(), start="tokens", zero=True),
    *ms("QAttention", "many heads", _attention(count=8), start="tokens", zero=True),
    *ms("QAttention", "unsigned", _attention(zero=128, dtype=np.uint8), start="tokens", zero=True),
    *ms("QAttention", "per column and mask", _attention(each=True, mask=True), start="tokens", zero=True),
    *ms("QLinearAdd", "", _binary("QLinearAdd"), zero=True),
    *ms("QLinearAdd", "stored", _binary("QLinearAdd", stored=True), zero=True),
    *ms("QLinearAdd", "one of them not zero", _binary("QLinearAdd", first=lambda g, x: g.Sigmoid(x)), zero=False),
    *ms("QLinearMul", "", _binary("QLinearMul"), zero=True),
    *ms("QLinearMul", "stored", _binary("QLinearMul", stored=True), zero=True),
    *ms("QLinearMul", "one of them zero", _binary("QLinearMul", first=lambda g, x: g.Sigmoid(x)), zero=True),
    *ms("QLinearSigmoid", "", _unary("QLinearSigmoid", scale=1 / 256, zero=0), zero=False),
    *ms("QLinearLeakyRelu", "", _unary("QLinearLeakyRelu", alpha=0.2), zero=True),
    *ms("QLinearSoftmax", "positions", _unary("QLinearSoftmax", scale=1 / 256, zero=0, axis=3, opset=13), zero=False),
    *ms(
        "QLinearSoftmax", "tokens", _unary("QLinearSoftmax", scale=1 / 256, zero=0, axis=1, opset=13), start="tokens", zero=False
    ),
    *frozen(
        "QLinearSoftmax",
        17,
        "channels",
        _unary("QLinearSoftmax", scale=1 / 256, zero=0, axis=-1, opset=13),
        domain=MS,
        start="tokens",
    ),
    *frozen("QLinearSoftmax", 17, "everything", _unary("QLinearSoftmax", scale=1 / 256, zero=0, axis=1, opset=12), domain=MS),
    *ms("QLinearWhere", "", _where, zero=True),
    *ms("QLinearConcat", "", _concat, zero=True),
    *ms("QLinearAveragePool", "", _unary("QLinearAveragePool", kernel_shape=[2, 2]), zero=True),
    *ms(
        "QLinearAveragePool",
        "padded",
        _unary("QLinearAveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
        zero=True,
    ),
    *ms("QLinearAveragePool", "channels last", _unary("QLinearAveragePool", kernel_shape=[2, 2], channels_last=1), zero=True),
    *ms("QLinearGlobalAveragePool", "", _unary("QLinearGlobalAveragePool"), zero=True),
    *ms("QLinearGlobalAveragePool", "channels last", _unary("QLinearGlobalAveragePool", channels_last=1), zero=True),
]
