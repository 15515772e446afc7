"""Quantised operators: what stands for zero in a tensor is its zero point, and scales and zero points go with their channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from onnxprune.rules.attention import MICROSOFT, packed_sizes
from onnxprune.rules.linear import product
from onnxprune.rules.normalization import softmax
from onnxprune.rules.notation import Call, Pattern, Points, Signature, parse
from onnxprune.rules.registry import Kept, Kind, Resize, add
from onnxprune.shapes import Shape


def _line(call: Call, operands: Mapping[int, str], *results: str, **sizes: int) -> Signature | None:
    """A line of some operands; all others are single numbers, or else the form is not covered.

    A scale or zero point that ``operands`` gives an axis may be a single number too.
    """
    patterns = []
    for k in range(len(call.inputs)):
        single = call.shape(k) in ((), (1,))
        if k not in operands and call.node.input(k) and not single:
            return None
        patterns.append(" ".join("1" * call.rank(k)) if single else operands.get(k, ""))
    return parse(f"{', '.join(patterns)} -> {', '.join(results)}", **sizes)


def _quantize(call: Call) -> Signature | None:
    """Scale and zero point are single numbers, vectors along ``axis``, or of blocks of it: then whole blocks leave."""
    letters = [f"a{i}" for i in range(call.rank())]
    axis, block = call.axis(default=1), int(call.attribute("block_size", 0))
    times = (0, 1) if call.node.op == "DequantizeLinear" else (0,)
    if call.shape(1) in ((), (1,)):
        return replace(parse("... -> ..."), times=times)
    if block and call.rank(1) == call.rank() and call.shape(1)[axis] * block == call.shape(0)[axis]:
        scales = " ".join(letters)
        whole, blocks = letters[:axis], f"(a{axis} !b)"
        data = " ".join([*whole, blocks, *letters[axis + 1 :]])
        result = data.replace("!", "")
        sizes = {f"a{axis}": call.shape(1)[axis], "b": block}
        return replace(parse(f"{data}, {scales}, {scales} -> {result}", **sizes), times=times)
    if block or call.rank(1) != 1:
        return None
    return replace(parse(f"{' '.join(letters)}, a{axis}, a{axis} -> {' '.join(letters)}"), times=times)


add(
    "QuantizeLinear",
    signature="a c *, c, c -> a c *",
    build=_quantize,
    times=(0,),
    divides=(1,),
    points=Points(result=2, scale=1),
    note="whole blocks",
)
add(
    "DequantizeLinear",
    signature="a c *, c, c -> a c *",
    build=_quantize,
    times=(0, 1),
    points=Points({0: 2}),
    note="whole blocks",
)
add(
    "QuantizeLinear",
    domain=MICROSOFT,
    signature="a c *, c, c -> a c *",
    build=_quantize,
    times=(0,),
    divides=(1,),
    points=Points(result=2, scale=1),
)
add("DequantizeLinear", domain=MICROSOFT, signature="a c *, c, c -> a c *", build=_quantize, times=(0, 1), points=Points({0: 2}))
add(
    "DynamicQuantizeLinear",
    signature="... -> ..., , ",
    build=lambda call: replace(parse("... -> ..., , "), whole=(0,)),
    times=(0,),
    points=Points(made=2),
    note="channels that are zero when removed",
)


# convolutions -----------------------------------------------------------------------------------------------------------------
def _conv(weight: int, scale: int, zero: int, bias: int) -> Callable[[Call], Signature | None]:
    def build(call: Call) -> Signature | None:
        group = int(call.attribute("group", 1))
        i, o, sizes = ("i", "o", {}) if group == 1 else ("(g i)", "(g o)", {"g": group})
        last = call.attribute("channels_last", 0)
        data, result = (f"n * {i}", f"n * {o}") if last else (f"n {i} *", f"n {o} *")
        return _line(call, {0: data, weight: f"{o} i *", scale: o, zero: o, bias: o}, result, **sizes)

    return build


def _fewer_groups(call: Call, inputs: Sequence[Shape | None], outputs: Sequence[Shape | None], kept: Kept) -> Resize:
    groups = int(call.attribute("group", 1))
    stays = kept("input", 0, call.rank() - 1 if call.attribute("channels_last", 0) else 1)
    left = int(stays.reshape(groups, -1).any(axis=1).sum())
    return Resize({}, {"group": left} if left != groups else {})


for _domain in ("", MICROSOFT):
    add(
        "QLinearConv",
        domain=_domain,
        signature="n (g i) *, , , (g o) i *, (g o), (g o), , , (g o) -> n (g o) *",
        build=_conv(weight=3, scale=4, zero=5, bias=8),
        times=(3, 4),
        plus=(8,),
        points=Points({0: 2, 3: 5}, result=7),
        resize=_fewer_groups,
    )
add(
    "ConvInteger",
    signature="n (g i) *, (g o) i *, , (g o) -> n (g o) *",
    build=_conv(weight=1, scale=-1, zero=3, bias=-1),
    times=(1,),
    points=Points({0: 2, 1: 3}),
    resize=_fewer_groups,
)


# products ---------------------------------------------------------------------------------------------------------------------
def _matmul(
    second: int, *, rows: tuple[int, ...] = (), columns: tuple[int, ...], whole: tuple[int, ...] = ()
) -> Callable[[Call], Signature | None]:
    """``rows``, ``columns``: operands with a number for each row of the first factor, each column of the second."""

    def build(call: Call) -> Signature | None:
        a, b, result = product(call.rank(0), call.rank(second))
        vectors = dict.fromkeys(rows, "m") | dict.fromkeys(columns, "n")
        signature = _line(call, {0: a, second: b, **vectors}, result)
        return None if signature is None else replace(signature, whole=whole)

    return build


_SIGNATURE = "... m k, ... k n, {} -> ... m n"
add(
    "QLinearMatMul",
    signature="... m k, m, m, ... k n, n, n, , -> ... m n",
    build=_matmul(3, rows=(1, 2), columns=(4, 5)),
    times=(0, 3, 4),
    points=Points({0: 2, 3: 5}, result=7),
)
add(
    "MatMulInteger",
    signature=_SIGNATURE.format("m, n"),
    build=_matmul(1, rows=(2,), columns=(3,)),
    times=(0, 1),
    points=Points({0: 2, 1: 3}),
)
add(
    "MatMulIntegerToFloat",
    domain=MICROSOFT,
    signature=_SIGNATURE.format(", n, , n, n"),
    build=_matmul(1, columns=(3, 5, 6)),
    times=(0, 1, 3),
    plus=(6,),
    points=Points({0: 4, 1: 5}),
)
add(
    "DynamicQuantizeMatMul",
    domain=MICROSOFT,
    signature=_SIGNATURE.format("n, n, n"),
    build=_matmul(1, columns=(2, 3, 4), whole=(0,)),
    times=(1, 2),
    plus=(4,),
    points=Points({1: 3}),
    note="channels that are zero when removed",
)


def _qgemm(call: Call) -> Signature | None:
    a = "k m" if call.attribute("transA", 0) else "m k"
    b = "n k" if call.attribute("transB", 0) else "k n"
    return _line(call, {0: a, 3: b, 4: "n", 5: "n", 6: "n" if call.rank(6) == 1 else "m n"}, "m n")


add(
    "QGemm",
    domain=MICROSOFT,
    signature="m k, , , k n, n, n, n, , -> m n",
    build=_qgemm,
    times=(0, 3, 4),
    plus=(6,),
    points=Points({0: 2, 3: 5}, result=8),
    note="any trans, alpha",
)


def _n_bits(call: Call) -> Signature | None:
    """Rows of the weight are columns of the result; what is summed over leaves in whole blocks.

    Zero points may be packed like the weight, several blocks' in a byte (``y``); then these leave together.
    """
    k, block = int(call.attribute("K")), int(call.attribute("block_size"))
    rows, blocks = int(call.attribute("N")), -(-k // block)
    if call.node.input(4) or call.attribute("weight_prepacked", 0) or call.rank(1) != 3:
        return None
    packed = bool(call.node.input(3)) and call.shape(3) not in ((rows, blocks), (rows * blocks,))
    byte = 8 // int(call.attribute("bits", 4)) if packed else 1
    if k % block or blocks % byte:
        data, q, z, sizes = "... _", "!q", "!z", {"q": blocks, "n": rows}
    else:
        data, q, z, sizes = "... (q !y !b)", "q !y", "q", {"q": blocks // byte, "y": byte, "b": block, "n": rows}
    table = {1: f"(n {q})", 2: f"n ({q})"}
    zeros = {1: f"(n {z})", 2: f"n {z}"} if packed else table
    operands = [data, f"n ({q}) _", table.get(call.rank(2), ""), zeros.get(call.rank(3), ""), "", "n"]
    return replace(parse(f"{', '.join(operands)} -> ... n", **sizes), sums={"q": ((0,), (2,))})


def _n_bits_sizes(call: Call, inputs: Sequence[Shape | None], outputs: Sequence[Shape | None], kept: Kept) -> Resize:
    now = {"N": int(kept("input", 1, 0).sum()), "K": int(kept("input", 0, call.rank() - 1).sum())}
    return Resize({}, {name: size for name, size in now.items() if size != call.attribute(name)})


add(
    "MatMulNBits",
    domain=MICROSOFT,
    signature="... (q !y !b), n (q !y) _, n (q !y), n q, , n -> ... n",
    build=_n_bits,
    times=(0, 2),
    plus=(5,),
    resize=_n_bits_sizes,
    note="whole blocks",
)


# attention ----------------------------------------------------------------------------------------------------------------------
def _attention(call: Call) -> Signature | None:
    if call.attribute("do_rotary", 0) or call.attribute("past_present_share_buffer", 0):
        return None
    heads, packed = int(call.attribute("num_heads")), "(h d + h d + h d)"
    operands = {0: "b _ i", 1: f"i {packed}", 2: packed, 4: packed, 5: " ".join("_" * call.rank(5)), 7: packed, 8: "_ b h _ d"}
    signature = _line(call, operands, "b _ (h d)", "_ b h _ d", h=heads)
    return None if signature is None else replace(signature, zero=len(call.node.outputs) == 1, sums={"d": ((1, 2),)})


add(
    "QAttention",
    domain=MICROSOFT,
    signature="b _ i, i (h d + h d + h d), (h d + h d + h d), , (h d + h d + h d), _ _, , (h d + h d + h d) -> b _ (h d)",
    build=_attention,
    times=(1,),
    plus=(2, 8),
    points=Points({0: 6, 1: 7}),
    resize=packed_sizes(1),
    note="heads, or columns of every head",
)


# element by element, and pooling ------------------------------------------------------------------------------------------------
def _pool(call: Call) -> Signature | None:
    line = "n * c" if call.attribute("channels_last", 0) else "n c *"
    return _line(call, {0: line}, line)


def _softmax(call: Call) -> Signature | None:
    """As Softmax of the opset that an attribute names."""
    plain = softmax(replace(call, version=int(call.attribute("opset"))))
    return replace(plain, operands=(*plain.operands, *(Pattern(("1",) * call.rank(k)) for k in range(1, len(call.inputs)))))


def _elements(*data: int) -> Callable[[Call], Signature | None]:
    return lambda call: _line(call, dict.fromkeys(data, "..."), "...")


_BINARY = Points({0: 2, 3: 5}, result=7)
_UNARY = Points({0: 2}, result=4)
add("QLinearAdd", domain=MICROSOFT, signature="..., , , ..., , , , -> ...", build=_elements(0, 3), plus=(0, 3), points=_BINARY)
add("QLinearMul", domain=MICROSOFT, signature="..., , , ..., , , , -> ...", build=_elements(0, 3), times=(0, 3), points=_BINARY)
add("QLinearSigmoid", domain=MICROSOFT, signature="..., , , , -> ...", build=_elements(0), zero=False)
add("QLinearLeakyRelu", domain=MICROSOFT, signature="..., , , , -> ...", build=_elements(0), times=(0,), points=_UNARY)
add(
    "QLinearWhere",
    domain=MICROSOFT,
    signature="..., ..., , , ..., , , , -> ...",
    build=_elements(0, 1, 4),
    plus=(1, 4),
    points=Points({1: 3, 4: 6}, result=8),
)
add(
    "QLinearSoftmax",
    domain=MICROSOFT,
    kind=Kind.MIXING,
    signature="* !c, , , , -> * c",
    build=_softmax,
    zero=False,
)
add(
    "QLinearAveragePool",
    "QLinearGlobalAveragePool",
    domain=MICROSOFT,
    signature="n c *, , , , -> n c *",
    build=_pool,
    times=(0,),
    points=_UNARY,
)
add(
    "QLinearConcat",
    domain=MICROSOFT,
    kind=Kind.MOVEMENT,
    signature="(run on labels)",
    times=(0,),
    data=slice(2, None, 3),
    points=Points({k: k + 2 for k in range(2, 3 * 64, 3)}, result=1),
    runs="Concat",
)
