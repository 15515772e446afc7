"""Attention and rotary embeddings as single operators: heads leave whole, or the same columns of every head do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.rules.notation import Call, Signature, parse
from onnxprune.rules.registry import Kept, Resize, add
from onnxprune.shapes import Shape
from onnxprune.weights import Array

MICROSOFT = "com.microsoft"


def scores(call: Call, index: int) -> str:
    """What is added to the scores, with a value for every head or one for all."""
    rank = call.rank(index)
    return " ".join((["b", "h"] if rank == 4 else ["h"])[-max(0, rank - 2) :] * (rank > 2) + ["_"] * min(rank, 2))


def heads_left(kept: Array, heads: int) -> tuple[int, int]:
    """How many heads are left on a packed axis, and how wide they are."""
    table = kept.reshape(heads, -1)
    return int(table.any(axis=1).sum()), int(table.any(axis=0).sum())


# ONNX's own ---------------------------------------------------------------------------------------------------------------
def _attention(call: Call) -> Signature | None:
    """Query heads are key heads times a group (``g``). Axes are packed in three dimensions, and apart in four."""
    packed = call.rank(0) == 3
    if packed and not (call.attribute("q_num_heads") and call.attribute("kv_num_heads")):
        return None
    if packed:
        heads, groups = int(call.attribute("kv_num_heads")), int(call.attribute("q_num_heads"))
        query, key, value, result = "b _ (h g d)", "b _ (h d)", "b _ (h e)", "b _ (h g e)"
    elif call.rank(0) == 4 and call.rank(1) == 4:
        heads, groups = call.shape(1)[1], call.shape(0)[1]
        query, key, value, result = "b (h g) _ d", "b h _ d", "b h _ e", "b (h g) _ e"
    else:
        return None
    if not heads or groups % heads:
        return None
    mask = scores(call, 3).replace("h", "(h g)" if call.rank(3) > 2 and call.shape(3)[-3] > 1 else "1")
    operands = [query, key, value, mask, "b h _ d", "b h _ e", "b"]
    line = f"{', '.join(operands)} -> {result}, b h _ d, b h _ e, b (h g) _ _"
    alone = len([n for n in call.node.outputs if n]) == 1
    return replace(parse(line, h=heads, g=groups // heads), zero=alone, sums={"d": ((0,), (1, 4))})


def _attention_sizes(call: Call, inputs: Sequence[Shape | None], outputs: Sequence[Shape | None], kept: Kept) -> Resize:
    """The numbers of heads; and the default scale, which follows the width of a head, is written out if that changes."""
    changed: dict[str, float] = {}
    if call.rank(0) == 3:
        for k, name in ((0, "q_num_heads"), (1, "kv_num_heads")):
            before = int(call.attribute(name))
            left, width = heads_left(kept("input", k, 2), before)
            changed |= {name: left} if left != before else {}
        old = call.shape(1)[2] // before
    else:
        old, width = call.shape(1)[3], int(kept("input", 1, 3).sum())
    return Resize({}, changed | default_scale(call, old, width))


def default_scale(call: Call, old: int, new: int) -> dict[str, float]:
    """The scale that was meant where none is given, once it would become another."""
    return {} if old == new or call.attribute("scale") else {"scale": 1 / math.sqrt(old)}


add(
    "Attention",
    signature="b _ (h g d), b _ (h d), b _ (h e), b (h g) _ _, b h _ d, b h _ e, b -> b _ (h g e), b h _ d, b h _ e, b (h g) _ _",
    build=_attention,
    times=(2,),
    plus=(5,),
    resize=_attention_sizes,
    note="heads, groups of heads, or columns of every head",
)


# rotary embedding -----------------------------------------------------------------------------------------------------------
def _rotary(caches: int, ids: int) -> Callable[[Call], Signature | None]:
    """Columns are turned in pairs: neighbours, or one of each half. Where only a part is turned, whole heads leave."""

    def build(call: Call) -> Signature | None:
        if call.rank(0) not in (3, 4) or not call.node.input(caches):
            return None
        cache = call.shape(caches)
        width = _head_width(call, caches)
        if not cache or not width:
            return None
        turned = 2 * cache[-1]
        pair = "f !r" if call.attribute("interleaved", 0) else "!r f"
        head = pair if turned == width else "!d"
        heads = call.shape(0)[2] // width if call.rank(0) == 3 else call.shape(0)[1]
        data = f"b _ (h {head})" if call.rank(0) == 3 else f"b h _ ({head})"
        column = "f" if turned == width else "_"
        operands = [data, "", "", ""]
        operands[caches] = operands[caches + 1] = " ".join(["b", "_", column] if len(cache) == 3 else ["_", column])
        operands[ids] = " ".join("_" * call.rank(ids))
        sizes = {"h": heads, "r": 2, "f": cache[-1]} if turned == width else {"h": heads, "d": width}
        return parse(f"{', '.join(operands)} -> {data.replace('!', '')}", **sizes)

    return build


def _head_width(call: Call, caches: int) -> int:
    """Columns of a head: an axis, or what the number of heads gives, or what the caches are made for."""
    shape, heads = call.shape(0), int(call.attribute("num_heads", 0))
    if len(shape) == 4:
        return shape[3]
    return shape[2] // heads if heads else 2 * call.shape(caches)[-1]


def _rotary_sizes(caches: int) -> Callable[..., Resize]:
    def resize(call: Call, inputs: Sequence[Shape | None], outputs: Sequence[Shape | None], kept: Kept) -> Resize:
        width, before = _head_width(call, caches), int(call.attribute("num_heads", 0))
        if call.rank(0) == 3:
            left, now = heads_left(kept("input", 0, 2), call.shape(0)[2] // width)
        else:
            left, now = int(kept("input", 0, 1).sum()), int(kept("input", 0, 3).sum())
        changed = {"num_heads": left} if before and left != before else {}
        if call.attribute("rotary_embedding_dim", 0) == width != now:
            changed["rotary_embedding_dim"] = now
        return Resize({}, changed)

    return resize


_ROTARY = "b _ (h !r f), {} -> b _ (h r f)"
add(
    "RotaryEmbedding",
    signature=_ROTARY.format("_ f, _ f, _ _"),
    build=_rotary(1, 3),
    times=(0,),
    resize=_rotary_sizes(1),
    note="whole heads, or pairs of columns",
)
add(
    "RotaryEmbedding",
    domain=MICROSOFT,
    signature=_ROTARY.format("_ _, _ f, _ f"),
    build=_rotary(2, 1),
    times=(0,),
    resize=_rotary_sizes(2),
    note="whole heads, or pairs of columns",
)


# onnxruntime's ----------------------------------------------------------------------------------------------------------------
def _widths(call: Call, packed: int) -> tuple[int, int, int]:
    """Heads, and the widths of one head's queries (and keys) and of its values, of a packed projection's size."""
    heads = int(call.attribute("num_heads"))
    sizes = call.attribute("qkv_hidden_sizes") or [packed // 3] * 3
    return heads, int(sizes[0]) // heads, int(sizes[2]) // heads


def _self_attention(call: Call) -> Signature | None:
    """Projection and attention in one. With a past, values are as wide as keys."""
    heads, width, values = _widths(call, call.shape(1)[-1] if call.shape(1) else 0)
    if call.attribute("do_rotary", 0) or call.attribute("past_present_share_buffer", 0):
        return None
    value = "d" if call.node.input(4) or len(call.node.outputs) > 1 else "e"
    if value == "d" and width != values:
        return None
    packed = f"(h d + h d + h {value})"
    mask = " ".join("_" * call.rank(3))
    line = f"b _ i, i {packed}, {packed}, {mask}, _ b h _ d, {scores(call, 5)} -> b _ (h {value}), _ b h _ d"
    sizes = {"h": heads, "d": width} | ({"e": values} if value == "e" else {})
    return replace(parse(line, **sizes), zero=len(call.node.outputs) == 1, sums={"d": ((1, 2),)})


def packed_sizes(weight: int) -> Callable[..., Resize]:
    """Heads, widths and the default scale of an operator with a packed projection."""

    def resize(call: Call, inputs: Sequence[Shape | None], outputs: Sequence[Shape | None], kept: Kept) -> Resize:
        stays = kept("input", weight, 1)
        heads, width, _ = _widths(call, len(stays))
        bounds = np.cumsum([heads * width, heads * width])
        (left, now), _, (_, narrow) = (heads_left(part, heads) for part in np.split(stays, bounds))
        changed: dict[str, object] = {"num_heads": left} if left != heads else {}
        given = call.attribute("qkv_hidden_sizes")
        sizes = [left * now, left * now, left * narrow]
        if (given and list(given) != sizes) or (not given and now != narrow):
            changed["qkv_hidden_sizes"] = sizes
        return Resize({}, changed | default_scale(call, width, now))

    return resize


_PACKED = "(h d + h d + h e)"
add(
    "Attention",
    domain=MICROSOFT,
    signature=f"b _ i, i {_PACKED}, {_PACKED}, _ _, _ b h _ d, b h _ _ -> b _ (h e), _ b h _ d",
    build=_self_attention,
    times=(1,),
    plus=(2, 4),
    resize=packed_sizes(1),
    note="heads, or columns of every head",
)


def _multi_head(call: Call) -> Signature | None:
    """Queries, keys and values apart, in three dimensions or (of the other sequence, or the past) four."""
    heads = int(call.attribute("num_heads"))
    if call.rank(0) != 3 or call.rank(1) not in (3, 4) or call.rank(1) != call.rank(2) or call.node.input(9):
        return None
    apart = call.rank(1) == 4
    same = apart or any(call.node.input(k) for k in (6, 7)) or len(call.node.outputs) > 1
    value = "d" if same else "e"
    operands = ["b _ (h d)", *(["b h _ d", f"b h _ {value}"] if apart else ["b _ (h d)", f"b _ (h {value})"])]
    operands += [f"(h d + h d + h {value})", " ".join("_" * call.rank(4)), scores(call, 5), "b h _ d", f"b h _ {value}"]
    operands += [" ".join("_" * call.rank(8))]
    line = f"{', '.join(operands)} -> b _ (h {value}), b h _ d, b h _ {value}, b h _ _"
    alone = len(call.node.outputs) == 1
    return replace(parse(line, h=heads), zero=alone, sums={"d": ((0, 3), (1, 3, 6))})


def _multi_head_sizes(call: Call, inputs: Sequence[Shape | None], outputs: Sequence[Shape | None], kept: Kept) -> Resize:
    heads = int(call.attribute("num_heads"))
    left, width = heads_left(kept("input", 0, 2), heads)
    changed: dict[str, object] = {"num_heads": left} if left != heads else {}
    return Resize({}, changed | default_scale(call, call.shape(0)[2] // heads, width))


add(
    "MultiHeadAttention",
    domain=MICROSOFT,
    signature=f"b _ (h d), b _ (h d), b _ (h e), {_PACKED}, _ _, b h _ _, b h _ d, b h _ e -> b _ (h e), b h _ d, b h _ e",
    build=_multi_head,
    times=(2,),
    plus=(3, 7),
    resize=_multi_head_sizes,
    note="heads, or columns of every head; not in five dimensions",
)


def _group_query(call: Call) -> Signature | None:
    """Whole heads: onnxruntime wants heads of a multiple of eight columns."""
    heads, kv_heads = int(call.attribute("num_heads")), int(call.attribute("kv_num_heads"))
    if heads % kv_heads or any(call.node.input(k) for k in (12, 13)):
        return None
    apart = bool(call.node.input(1))
    query = "b _ (h g !d)" if apart else "b _ (h g !d + h !d + h !d)"
    operands = [query, "b _ (h !d)", "b _ (h !d)", "b h _ _", "b h _ _", "_", " ".join("_" * call.rank(6)), "_ _", "_ _"]
    sink = "(h g)" if call.rank(11) else ""
    mask = scores(call, 10).replace("h", "(h g)" if call.rank(10) > 2 and call.shape(10)[-3] > 1 else "1")
    operands += [" ".join("_" * call.rank(9)), mask, sink, "", "", "_", "_"]
    results = "b _ (h g d), b h _ _, b h _ _, b (h g) _ _"
    alone = apart and len([n for n in call.node.outputs if n]) == 1
    return replace(parse(f"{', '.join(operands)} -> {results}", h=kv_heads, g=heads // kv_heads), zero=alone)


def _group_query_sizes(call: Call, inputs: Sequence[Shape | None], outputs: Sequence[Shape | None], kept: Kept) -> Resize:
    heads, kv_heads = int(call.attribute("num_heads")), int(call.attribute("kv_num_heads"))
    query = kept("input", 0, 2)
    if call.node.input(1):
        key = kept("input", 1, 2)
    else:
        query, key, _ = np.split(query, np.cumsum([heads, kv_heads]) * (len(query) // (heads + 2 * kv_heads)))
    left = {"num_heads": heads_left(query, heads)[0], "kv_num_heads": heads_left(key, kv_heads)[0]}
    return Resize({}, left if left != {"num_heads": heads, "kv_num_heads": kv_heads} else {})


add(
    "GroupQueryAttention",
    domain=MICROSOFT,
    signature="b _ (h g !d), b _ (h !d), b _ (h !d), b h _ _, b h _ _, _, , _ _, _ _, _ _, b (h g) _ _, (h g) -> b _ (h g d)",
    build=_group_query,
    times=(2,),
    plus=(4,),
    resize=_group_query_sizes,
    note="whole heads, or the same head of every group",
)


def _decoder(call: Call) -> Signature | None:
    """One step of a decoder, with buffers for past and present."""
    if call.rank(0) != 3 or call.rank(1) not in (3, 4) or call.node.input(9):
        return None
    other = "b h _ d" if call.rank(1) == 4 else "b _ (h d)"
    options = [" ".join("_" * call.rank(k)) for k in (7, 8)]
    operands = ["b _ (h d)", other, other, " ".join("_" * call.rank(3)), scores(call, 4), "b h _ d", "b h _ d", *options]
    operands += ["", "(h d + h d + h d)"]
    line = f"{', '.join(operands)} -> b _ (h d), b h _ d, b h _ d, b h _ _"
    return replace(parse(line, h=int(call.attribute("num_heads"))), zero=False, sums={"d": ((0, 10), (1, 5, 10))})


add(
    "DecoderMaskedMultiHeadAttention",
    domain=MICROSOFT,
    signature="b _ (h d), b _ (h d), b _ (h d), _ _, b h _ _, b h _ d, b h _ d, _, _, , (h d + h d + h d) -> b _ (h d)",
    build=_decoder,
    resize=_multi_head_sizes,
    note="heads, or columns of every head",
)


def _tensor_scatter(call: Call) -> Signature:
    """New positions are written into a buffer; channels stay where they are."""
    axis = call.axis(default=-2)
    line = " ".join("_" if a == axis else f"a{a}" for a in range(call.rank()))
    return parse(f"{line}, {line}, a0 -> {line}")


add("TensorScatter", signature="b h _ d, b h _ d, b -> b h _ d", build=_tensor_scatter, plus=(0, 1))
