"""Attention and rotary embedding as one operator, ONNX's own and onnxruntime's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cases_net import Case, Net, row

MS = "com.microsoft"
Build = Callable[[Net, str], Any]


def dense(g: Net, x: str, width: int, *, bias: bool = True) -> str:
    """A projection of the eight channels."""
    y = g.MatMul(x, g.w(8, width))
    return g.Add(y, g.w(width)) if bias else y


def heads(g: Net, x: str, count: int, width: int) -> str:
    """A projection with an axis for the heads."""
    y = g.Reshape(dense(g, x, count * width), [0, 0, count, width])
    return g.Transpose(y, perm=[0, 2, 1, 3])


def cache(g: Net, *shape: int) -> str:
    """Keys or values of the past."""
    return g.input(g.randn(*shape))


# ONNX's own ----------------------------------------------------------------------------------------------------------------
def _packed(q: int, kv: int, d: int, e: int, mask: Callable[[Net], Any] | None = None, **attributes: Any) -> Build:
    """Three dimensions; ``q`` query heads, ``kv`` key heads, of widths ``d`` and ``e``."""

    def build(g: Net, x: str) -> Any:
        more = [mask(g)] if mask else []
        operands = [dense(g, x, q * d), dense(g, x, kv * d), dense(g, x, kv * e), *more]
        return g.Attention(*operands, q_num_heads=q, kv_num_heads=kv, **attributes)

    return build


def _apart(q: int, kv: int, d: int, e: int, mask: Callable[[Net], Any] | None = None, **attributes: Any) -> Build:
    """Four dimensions, and the heads united again behind."""

    def build(g: Net, x: str) -> Any:
        more = [mask(g)] if mask else []
        y = g.Attention(heads(g, x, q, d), heads(g, x, kv, d), heads(g, x, kv, e), *more, **attributes)
        y = y[0] if isinstance(y, list) else y
        return g.Reshape(g.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, q * e])

    return build


def _past(g: Net, x: str) -> Any:
    past = [cache(g, 2, 4, 3, 3), cache(g, 2, 4, 3, 5)]
    operands = [dense(g, x, 12), dense(g, x, 12), dense(g, x, 20), None, *past]
    y, key, value = g.Attention(*operands, q_num_heads=4, kv_num_heads=4, outputs=3)
    g.outputs += [key, value]
    return y


def _stored_past(g: Net, x: str) -> Any:
    past = [g.w(2, 4, 3, 3), g.w(2, 4, 3, 5)]
    operands = [dense(g, x, 12), dense(g, x, 12), dense(g, x, 20), None, *past]
    return g.Attention(*operands, q_num_heads=4, kv_num_heads=4, outputs=3)[0]


def _kv_length(g: Net, x: str) -> Any:
    operands = [dense(g, x, 12), dense(g, x, 6), dense(g, x, 6), None, None, None, np.array([5, 3])]
    return g.Attention(*operands, q_num_heads=4, kv_num_heads=2)


def _scores(g: Net, x: str) -> Any:
    """The scores are read too, by a sum over the heads."""
    operands = [dense(g, x, 12), dense(g, x, 6), dense(g, x, 6), None, None, None]
    y, _, _, scores = g.Attention(*operands, q_num_heads=4, kv_num_heads=2, outputs=4, qk_matmul_output_mode=3)
    return [y, g.Transpose(scores, perm=[0, 2, 3, 1])]


def _no_sum(g: Net, x: str) -> Any:
    """Queries and keys that are not zero where removed, so that their products count (what Softmax alone would not show)."""
    operands = [g.Sigmoid(dense(g, x, 12)), g.Sigmoid(dense(g, x, 12)), x]
    return g.Attention(*operands, q_num_heads=1, kv_num_heads=1, softcap=2.0)


def _scatter(g: Net, x: str, *, ones: bool = False, **attributes: Any) -> Any:
    """Three new positions into a buffer of five."""
    new = g.Slice(g.another(), [0], [3], [1])
    x = g.Exp(x) if ones else x
    return g.TensorScatter(x, new, np.array([1, 2]), **attributes)


CASES: list[Case] = [
    *row("Attention", (23, 24), "3-D", _packed(4, 4, 3, 3), start="tokens", zero=True),
    *row("Attention", 23, "3-D other values", _packed(2, 2, 6, 4), start="tokens", zero=True),
    *row("Attention", 23, "3-D many heads", _packed(8, 8, 2, 2), start="tokens", zero=True),
    *row("Attention", 23, "3-D one head", _packed(1, 1, 6, 4), start="tokens", zero=True),
    *row("Attention", 23, "3-D groups", _packed(6, 2, 4, 5), start="tokens", zero=True),
    *row("Attention", 23, "3-D groups of many heads", _packed(8, 4, 2, 2), start="tokens", zero=True),
    *row("Attention", 23, "3-D one key head", _packed(4, 1, 2, 3), start="tokens", zero=True),
    *row("Attention", (23, 24), "4-D", _apart(4, 4, 3, 3), start="tokens", zero=None),
    *row("Attention", 23, "4-D groups", _apart(6, 2, 4, 5), start="tokens", zero=None),
    *row("Attention", 23, "4-D one key head", _apart(4, 1, 4, 5), start="tokens", zero=None),
    *row("Attention", 23, "scale", _packed(2, 2, 6, 6, scale=0.3), start="tokens", zero=True),
    *row("Attention", 23, "4-D scale", _apart(2, 2, 6, 6, scale=0.3), start="tokens"),
    *row("Attention", 24, "softcap", _packed(2, 2, 6, 6, softcap=2.0), start="tokens", zero=True),
    *row("Attention", 24, "causal", _packed(2, 2, 6, 6, is_causal=1), start="tokens", zero=True),
    *row("Attention", 23, "mask", _packed(4, 4, 4, 4, lambda g: g.randn(5, 5)), start="tokens", zero=True),
    *row("Attention", 23, "boolean mask", _packed(4, 4, 4, 4, lambda g: np.tri(5, dtype=bool)), start="tokens", zero=True),
    *row("Attention", 23, "mask of a sample", _packed(4, 2, 4, 4, lambda g: g.randn(2, 1, 5, 5)), start="tokens", zero=True),
    *row("Attention", 23, "mask of heads", _packed(6, 6, 3, 3, lambda g: g.w(6, 5, 5)), start="tokens", zero=True),
    *row("Attention", 23, "bias of heads", _packed(6, 6, 3, 3, lambda g: g.w(1, 6, 5, 5)), start="tokens", zero=True),
    *row("Attention", 23, "bias of groups", _packed(6, 3, 3, 3, lambda g: g.w(1, 6, 5, 5)), start="tokens", zero=True),
    *row("Attention", 23, "4-D bias of heads", _apart(6, 6, 3, 3, lambda g: g.w(1, 6, 5, 5)), start="tokens"),
    *row("Attention", 23, "given bias of heads", _packed(6, 6, 3, 3, lambda g: cache(g, 1, 6, 5, 5)), start="tokens", zero=True),
    *row("Attention", 23, "stored past", _stored_past, start="tokens"),
    *row("Attention", 24, "length of keys", _kv_length, start="tokens"),
    *row("Attention", 23, "scores", _scores, start="tokens", end="dense"),
    *row("Attention", 23, "past of the input", _past, start="tokens"),
    *row("Attention", 23, "not zero", _no_sum, start="tokens"),
    *row("TensorScatter", 24, "", _scatter, start="tokens", zero=True),
    *row("TensorScatter", 24, "axis", lambda g, x: _scatter(g, x, axis=1), start="tokens", zero=True),
    *row("TensorScatter", 24, "no place", lambda g, x: g.TensorScatter(g.another(), x), start="tokens", zero=True),
    *row("TensorScatter", 24, "onto ones", lambda g, x: _scatter(g, x, ones=True), start="tokens", zero=False),
]


# rotary embedding -------------------------------------------------------------------------------------------------------------
def _angles(g: Net, *shape: int) -> list[str]:
    return [g.w(*shape), g.w(*shape)]


def _rotated(
    width: int, count: int, *, ids: bool = True, four: bool = False, shape: tuple[int, ...] = (), **attributes: Any
) -> Build:
    def build(g: Net, x: str) -> Any:
        x = heads(g, x, count, width) if four else dense(g, x, count * width)
        attributes.update({} if four else {"num_heads": count})
        y = g.RotaryEmbedding(
            x, *_angles(g, *(shape or (9, width // 2))), *([np.array([[0, 2, 4, 5, 8]] * 2)] if ids else []), **attributes
        )
        return g.Reshape(g.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, count * width]) if four else y

    return build


def _ms_rotated(width: int, count: int, *, four: bool = False, turned: int = 0, start: bool = False, **attributes: Any) -> Build:
    def build(g: Net, x: str) -> Any:
        x = heads(g, x, count, width) if four else dense(g, x, count * width)
        ids = np.array([3]) if start else np.array([[0, 2, 4, 5, 8]] * 2)
        y = g.RotaryEmbedding(x, ids, *_angles(g, 9, (turned or width) // 2), domain=MS, **attributes)
        return g.Reshape(g.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, count * width]) if four else y

    return build


def _rotated_attention(g: Net, x: str) -> Any:
    angles = _angles(g, 9, 4)
    ids = np.array([[0, 2, 4, 5, 8]] * 2)
    q, k = (g.RotaryEmbedding(dense(g, x, 6 * 8), *angles, ids, num_heads=6) for _ in range(2))
    return g.Attention(q, k, dense(g, x, 48), q_num_heads=6, kv_num_heads=6)


CASES += [
    *row("RotaryEmbedding", 23, "3-D", _rotated(8, 2), start="tokens", zero=True),
    *row("RotaryEmbedding", 23, "3-D many heads", _rotated(4, 4), start="tokens", zero=True),
    *row("RotaryEmbedding", 23, "3-D interleaved", _rotated(8, 2, interleaved=1), start="tokens", zero=True),
    *row("RotaryEmbedding", 23, "3-D part", _rotated(8, 3, shape=(9, 2), rotary_embedding_dim=4), start="tokens", zero=True),
    *row("RotaryEmbedding", 23, "3-D all said", _rotated(8, 2, rotary_embedding_dim=8), start="tokens", zero=True),
    *row("RotaryEmbedding", 23, "no ids", _rotated(8, 2, ids=False, shape=(2, 5, 4)), start="tokens", zero=True),
    *row("RotaryEmbedding", 23, "4-D", _rotated(8, 2, four=True), start="tokens"),
    *row("RotaryEmbedding", 23, "4-D interleaved", _rotated(8, 2, four=True, interleaved=1), start="tokens"),
    *row("RotaryEmbedding", 23, "4-D part", _rotated(8, 3, four=True, shape=(9, 2), rotary_embedding_dim=4), start="tokens"),
    *row("RotaryEmbedding", 23, "then attention", _rotated_attention, start="tokens"),
    *row("RotaryEmbedding", 17, "3-D", _ms_rotated(8, 2), domain=MS, start="tokens", zero=True),
    *row("RotaryEmbedding", 17, "3-D said", _ms_rotated(4, 4, num_heads=4, rotary_embedding_dim=4), domain=MS, start="tokens"),
    *row("RotaryEmbedding", 17, "3-D interleaved", _ms_rotated(8, 2, interleaved=1), domain=MS, start="tokens", zero=True),
    *row("RotaryEmbedding", 17, "offset", _ms_rotated(8, 2, start=True), domain=MS, start="tokens", zero=True),
    *row(
        "RotaryEmbedding",
        17,
        "3-D part",
        _ms_rotated(8, 3, turned=4, num_heads=3, rotary_embedding_dim=4),
        domain=MS,
        start="tokens",
        zero=True,
    ),
    *row("RotaryEmbedding", 17, "4-D", _ms_rotated(8, 2, four=True), domain=MS, start="tokens"),
]


# onnxruntime's ------------------------------------------------------------------------------------------------------------------
def _self(
    sizes: tuple[int, int, int],
    count: int,
    more: Callable[[Net], list[Any]] | None = None,
    outputs: int = 1,
    given: bool = False,
    **attributes: Any,
) -> Build:
    """Projection of the eight channels and attention in one."""

    def build(g: Net, x: str) -> Any:
        if len(set(sizes)) > 1:
            attributes["qkv_hidden_sizes"] = list(sizes)
        operands = [g.w(8, sum(sizes)), g.w(sum(sizes)), *(more(g) if more else [])]
        y = g.Attention(x, *operands, num_heads=count, domain=MS, outputs=outputs, **attributes)
        g.outputs += y[1:] if given else []
        return y[0] if outputs > 1 else y

    return build


def _multi(
    count: int,
    d: int,
    e: int,
    more: Callable[[Net], list[Any]] | None = None,
    outputs: int = 1,
    given: bool = False,
    **attributes: Any,
) -> Build:
    def build(g: Net, x: str) -> Any:
        operands = [dense(g, x, count * w, bias=False) for w in (d, d, e)] + (more(g) if more else [])
        y = g.MultiHeadAttention(*operands, num_heads=count, domain=MS, outputs=outputs, **attributes)
        g.outputs += y[1:] if given else []
        return y[0] if outputs > 1 else y

    return build


def _other_sequence(g: Net, x: str) -> Any:
    """Keys and values of another sequence, heads apart."""
    other = g.input(g.randn(2, 4, 8))
    operands = [dense(g, x, 16), heads(g, other, 4, 4), heads(g, other, 4, 4)]
    return g.MultiHeadAttention(*operands, num_heads=4, domain=MS)


def _grouped(
    q: int, kv: int, d: int, *, packed: bool = False, outputs: int = 3, rotary: bool = False, more: Any = None, **attributes: Any
) -> Build:
    def build(g: Net, x: str) -> Any:
        widths = [(q + 2 * kv) * d] if packed else [q * d, kv * d, kv * d]
        operands: list[Any] = [dense(g, x, w) for w in widths] + [None] * (2 * packed)
        operands += [None, None, np.full(2, 4, np.int32), np.array(5, np.int32)]
        operands += _angles(g, 9, d // 2) if rotary else [None, None]
        operands += more(g) if more else []
        y = g.GroupQueryAttention(
            *operands, num_heads=q, kv_num_heads=kv, do_rotary=int(rotary), domain=MS, outputs=outputs, **attributes
        )
        return y[0] if outputs > 1 else y

    return build


def _step(g: Net, x: str) -> Any:
    """One step of a decoder."""
    x = g.Slice(x, [0], [1], [1])
    past = [g.w(2, 2, 8, 8), g.w(2, 2, 8, 8)]
    operands = [dense(g, x, 16), dense(g, x, 16), dense(g, x, 16), None, None, *past, np.array([3], np.int32)]
    y = g.DecoderMaskedMultiHeadAttention(*operands, num_heads=2, past_present_share_buffer=1, domain=MS, outputs=3)
    return y[0]


def _ms(op: str, note: str, build: Build, **options: Any) -> Any:
    return row(op, 17, note, build, domain=MS, start="tokens", **options)


CASES += [
    *_ms("Attention", "", _self((16, 16, 16), 2), zero=True),
    *_ms("Attention", "many heads", _self((16, 16, 16), 8), zero=True),
    *_ms("Attention", "other values", _self((16, 16, 12), 4), zero=True),
    *_ms("Attention", "scale", _self((16, 16, 16), 2, scale=0.4), zero=True),
    *_ms("Attention", "causal", _self((16, 16, 16), 2, unidirectional=1), zero=True),
    *_ms("Attention", "mask", _self((16, 16, 16), 2, lambda g: [np.int32([[1] * 5, [1, 1, 1, 0, 0]])]), zero=True),
    *_ms("Attention", "lengths", _self((16, 16, 16), 2, lambda g: [np.int32([5, 3])]), zero=True),
    *_ms("Attention", "mask of a sample", _self((16, 16, 16), 2, lambda g: [np.ones((2, 5, 5), np.int32)]), zero=True),
    *_ms("Attention", "bias of heads", _self((18, 18, 18), 6, lambda g: [None, None, g.w(1, 6, 5, 5)]), zero=True),
    *_ms("Attention", "bias of all heads", _self((16, 16, 16), 2, lambda g: [None, None, g.w(1, 1, 5, 5)]), zero=True),
    *_ms("Attention", "stored past", _self((16, 16, 16), 4, lambda g: [None, g.w(2, 2, 4, 3, 4)], outputs=2)),
    *_ms(
        "Attention", "past of the input", _self((16, 16, 16), 4, lambda g: [None, cache(g, 2, 2, 4, 3, 4)], outputs=2, given=True)
    ),
    *_ms("MultiHeadAttention", "", _multi(2, 6, 6), zero=True),
    *_ms("MultiHeadAttention", "many heads", _multi(6, 2, 2), zero=True),
    *_ms("MultiHeadAttention", "other values", _multi(2, 6, 5), zero=True),
    *_ms("MultiHeadAttention", "bias", _multi(3, 6, 5, lambda g: [g.w(3 * (6 + 6 + 5))]), zero=True),
    *_ms("MultiHeadAttention", "scale and causal", _multi(2, 6, 6, scale=0.4, unidirectional=1), zero=True),
    *_ms("MultiHeadAttention", "mask", _multi(2, 6, 6, lambda g: [None, np.int32([[1] * 5, [1, 1, 1, 0, 0]])]), zero=True),
    *_ms("MultiHeadAttention", "bias of heads", _multi(6, 3, 3, lambda g: [None, None, g.w(1, 6, 5, 5)]), zero=True),
    *_ms(
        "MultiHeadAttention", "stored past", _multi(4, 4, 4, lambda g: [None] * 3 + [g.w(2, 4, 3, 4), g.w(2, 4, 3, 4)], outputs=3)
    ),
    *_ms("MultiHeadAttention", "presents", _multi(4, 4, 4, outputs=3, given=True)),
    *_ms("MultiHeadAttention", "other sequence", _other_sequence),
    *_ms("GroupQueryAttention", "", _grouped(6, 2, 8)),
    *_ms("GroupQueryAttention", "many heads", _grouped(8, 4, 8)),
    *_ms("GroupQueryAttention", "one output", _grouped(4, 4, 8, outputs=1)),
    *_ms("GroupQueryAttention", "one key head", _grouped(4, 1, 8)),
    *_ms("GroupQueryAttention", "packed", _grouped(6, 2, 8, packed=True)),
    *_ms("GroupQueryAttention", "rotary", _grouped(6, 2, 16, rotary=True)),
    *_ms("GroupQueryAttention", "rotary interleaved", _grouped(6, 2, 16, rotary=True, rotary_interleaved=1)),
    *_ms("GroupQueryAttention", "softcap and window", _grouped(6, 2, 8, softcap=3.0, local_window_size=3)),
    *_ms("GroupQueryAttention", "sinks", _grouped(6, 2, 8, more=lambda g: [None, None, g.w(6)])),
    *_ms("GroupQueryAttention", "bias of heads", _grouped(6, 2, 8, more=lambda g: [None, g.w(1, 6, 5, 5)])),
    *_ms("DecoderMaskedMultiHeadAttention", "", _step),
]
