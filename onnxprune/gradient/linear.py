"""Sums of products."""

from string import ascii_letters

import numpy as np

from onnxprune.gradient.registry import Gradients, vjp
from onnxprune.gradient.tape import Name, Step
from onnxprune.gradient.windows import filters, transposed, windows


@vjp("Gemm")
def gemm(op: Step, g: Name, y: Name, a: Name, b: Name, c: Name = "") -> Gradients:
    """``Y = alpha A' B' + beta C``, where ``'`` transposes as the attributes say."""
    call = op.call
    turned_a, turned_b = call.attribute("transA", 0), call.attribute("transB", 0)
    scaled = op.scale(g, call.attribute("alpha", 1.0))
    to_a = op.MatMul(scaled, b if turned_b else _turn(op, b))
    to_b = op.MatMul(a if turned_a else _turn(op, a), scaled)
    to_c = op.unbroadcast(op.scale(g, call.attribute("beta", 1.0)), 2) if c else None
    return _turn(op, to_a) if turned_a else to_a, _turn(op, to_b) if turned_b else to_b, to_c


@vjp("MatMul")
def matmul(op: Step, g: Name, y: Name, a: Name, b: Name) -> Gradients:
    """Vectors are matrices of one row (``a``) or one column (``b``)."""
    shape_a, shape_b, fixed_a, fixed_b = op.call.shape(0), op.call.shape(1), op.fixed(0), op.fixed(1)
    op.require(shape_a and shape_b)
    row, column = len(shape_a) == 1, len(shape_b) == 1
    rows, columns = ((1,) if row else shape_a[-2:-1]), ((1,) if column else shape_b[-1:])
    inner = shape_a[-1:]
    lead = op.result[: len(op.result) - (not row) - (not column)]
    lead_fixed = op.fixed_result()[: len(lead)]
    if column:
        g = op.unsqueeze(g, [len(op.result)])
    if row:
        g = op.unsqueeze(g, [len(lead)])
    left = op.unsqueeze(a, [0]) if row else a
    right = op.unsqueeze(b, [1]) if column else b
    to_a = op.MatMul(g, _turn(op, right, max(2, len(shape_b))))
    to_b = op.MatMul(_turn(op, left, max(2, len(shape_a))), g)
    rows_fixed = np.ones(1, np.bool_) if row else fixed_a[-2:-1]
    columns_fixed = np.ones(1, np.bool_) if column else fixed_b[-1:]
    if row:
        to_a = op.sum(to_a, [*range(len(lead) + 1)], keepdims=False)
    else:
        to_a = op.unbroadcast(to_a, 0, (*lead, *rows, *inner), np.concatenate([lead_fixed, rows_fixed, fixed_a[-1:]]))
    if column:
        to_b = op.sum(to_b, [*range(len(lead)), len(lead) + 1], keepdims=False)
    else:
        to_b = op.unbroadcast(to_b, 1, (*lead, *inner, *columns), np.concatenate([lead_fixed, fixed_a[-1:], columns_fixed]))
    return to_a, to_b


@vjp("Conv")
def conv(op: Step, g: Name, y: Name, x: Name, w: Name, b: Name = "") -> Gradients:
    """The transposed convolution with the same filters."""
    at, group = windows(op, op.call.shape(1)[2:]), int(op.call.attribute("group", 1))
    to_w = filters(op, x, g, at, group, op.call.shape(0)[1], op.result[1]) if op.wants(1) else None
    return transposed(op, g, w, at, group, x, op.result[1]), to_w, _each_channel(op, g)


@vjp("ConvTranspose")
def conv_transpose(op: Step, g: Name, y: Name, x: Name, w: Name, b: Name = "") -> Gradients:
    """The convolution with the same filters; ``g`` and ``x`` change places."""
    at, group = windows(op, op.call.shape(1)[2:], back=True), int(op.call.attribute("group", 1))
    op.require(all(m < s for m, s in zip(at.more, at.strides, strict=True)))
    to_x = op.Conv(g, w, strides=list(at.strides), dilations=list(at.dilations), pads=[*at.begins, *at.after], group=group)
    to_w = filters(op, g, x, at, group, op.result[1], op.call.shape(0)[1]) if op.wants(1) else None
    return to_x, to_w, _each_channel(op, g)


@vjp("Einsum")
def einsum(op: Step, g: Name, y: Name, *xs: Name) -> Gradients:
    """An operand's gradient is the sum of products of the result's with the other operands, over what it does not have.

    What is summed over in one operand alone is repeated; a letter that comes twice in one has no gradient here.
    """
    terms, result = _letters(op, len(xs))
    op.require(all(len(set(term)) == len(term) for term in (*terms, result)))
    sizes: dict[str, set[int]] = {}
    for letters, shape in [(result, op.result), *((term, op.call.shape(k)) for k, term in enumerate(terms))]:
        for letter, size in zip(letters, shape, strict=True):
            sizes.setdefault(letter, set()).add(size)
    op.require(all(len(found) == 1 for found in sizes.values()))
    found = []
    for k, own in enumerate(terms):
        others = [j for j in range(len(xs)) if j != k]
        there = set(result).union(*(terms[j] for j in others))
        kept = "".join(letter for letter in own if letter in there)
        equation = ",".join([result, *(terms[j] for j in others)]) + "->" + kept
        part = op.Einsum(g, *(xs[j] for j in others), equation=equation)
        missing = [axis for axis, letter in enumerate(own) if letter not in there]
        found.append(op.spread(op.unsqueeze(part, missing), xs[k]) if missing else part)
    return found


def _letters(op: Step, count: int) -> tuple[list[str], str]:
    """One letter for each axis of each operand and of the result; an ellipsis has letters that are not in use."""
    equation = str(op.call.attribute("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    op.require(len(terms) == count)
    if not arrow:
        once = sorted(letter for letter in set(left) - set(",.") if left.count(letter) == 1)
        right = ("..." if "..." in left else "") + "".join(once)
    spare = [letter for letter in ascii_letters if letter not in equation]
    ranks = [*(op.call.rank(k) for k in range(count)), len(op.result)]
    written = []
    for term, rank in zip([*terms, right], ranks, strict=True):
        more = rank - len(term.replace("...", ""))
        op.require(0 <= more <= len(spare))
        written.append(term.replace("...", "".join(spare[:more][::-1])))
    return written[:-1], written[-1]


def _each_channel(op: Step, g: Name) -> Name:
    return op.sum(g, [a for a in range(len(op.result)) if a != 1], keepdims=False)


def _turn(op: Step, matrix: Name, rank: int = 2) -> Name:
    return op.Transpose(matrix, perm=[*range(rank - 2), rank - 1, rank - 2])
