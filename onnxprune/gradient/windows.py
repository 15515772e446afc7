"""Sliding windows of convolutions and poolings, and the way back from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxprune.gradient.tape import LAST, Name, Step
from onnxprune.shapes import Shape
from onnxprune.weights import Array


@dataclass(frozen=True)
class Windows:
    """Windows along each axis: ``sizes`` of the operand, ``counts`` of windows, the rest as in ONNX, padding resolved.

    ``more``: elements at the end that no window reaches. Less than none: how far the last window reaches beyond the padding.
    ``loose``: axes on which it is not the same for all inputs, and ``more`` is the most that it can be.
    """

    sizes: Shape
    counts: Shape
    kernel: Shape
    strides: Shape
    dilations: Shape
    begins: Shape
    ends: Shape
    more: Shape
    loose: tuple[bool, ...]

    @property
    def apart(self) -> bool:
        """Whether the windows lie side by side, without padding."""
        plain = self.kernel == self.strides and not any((*self.begins, *self.after, *self.loose))
        return plain and set(self.dilations) == {1}

    @property
    def after(self) -> Shape:
        """The padding at the end that windows reach."""
        return tuple(e + max(0, -m) for e, m in zip(self.ends, self.more, strict=True))

    @property
    def extents(self) -> Shape:
        """How many elements a window spans."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def windows(op: Step, kernel: Shape, *, back: bool = False) -> Windows:
    """The windows of a call, over the axes after the first two.

    Args:
        back: whether the call goes from windows to elements, which are then those of the result rather than the operand.

    Raises:
        Unsupported: the padding depends on a size that is not the same for all inputs.
    """
    call, rank = op.call, len(kernel)
    op.require(rank > 0 and len(op.result) == rank + 2 == call.rank())
    sizes, counts = (op.result[2:], call.shape(0)[2:]) if back else (call.shape(0)[2:], op.result[2:])
    fixed = (op.fixed_result() if back else op.fixed(0))[2:]
    strides = tuple(call.attribute("strides") or (1,) * rank)
    dilations = tuple(call.attribute("dilations") or (1,) * rank)
    pads = tuple(call.attribute("pads") or (0,) * (2 * rank))
    begins, ends, mode = pads[:rank], pads[rank:], str(call.attribute("auto_pad") or "NOTSET")
    extents = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))
    reach = tuple((n - 1) * s + e for n, s, e in zip(counts, strides, extents, strict=True))
    resolved = mode.startswith("SAME") or (back and call.attribute("output_shape"))
    if mode != "NOTSET":
        begins = ends = (0,) * rank
    if resolved:
        beyond = (call.attribute("output_padding") if back else None) or (0,) * rank
        whole = tuple(max(0, r + o - i) for r, o, i in zip(reach, beyond, sizes, strict=True))
        small, large = tuple(w // 2 for w in whole), tuple(w - w // 2 for w in whole)
        begins, ends = (small, large) if mode == "SAME_UPPER" else (large, small)
    loose = tuple(bool(not f and s > 1) for f, s in zip(fixed, strides, strict=True))
    op.require(not any(loose) or not (resolved or call.attribute("ceil_mode", 0)))
    more = [i + b + e - r for i, b, e, r in zip(sizes, begins, ends, reach, strict=True)]
    most = tuple(s - 1 if free and not back else m for m, s, free in zip(more, strides, loose, strict=True))
    return Windows(sizes, counts, kernel, strides, dilations, begins, ends, most, loose)


_BLOCK = 8
"""onnxruntime has fast convolutions for channels in multiples of this, and none that are transposed."""

_LARGER = 1.5
"""How many times the work these may be."""


def transposed(op: Step, g: Name, filters: Name, at: Windows, group: int, x: Name, counted: int) -> Name:
    """Sum up at each element of ``x`` what the windows have that it is in, in ``counted`` channels.

    Without strides that is a convolution with the filters turned around, which is faster for many sizes.
    """
    channels = op.call.shape(0)[1]
    begins = [extent - 1 - b for extent, b in zip(at.extents, at.begins, strict=True)]
    ends = [extent - 1 - e for extent, e in zip(at.extents, at.after, strict=True)]
    blocks = channels == counted == group or (channels // group) % _BLOCK == (counted // group) % _BLOCK == 0
    if set(at.strides) == {1} and blocks and min(begins + ends) >= 0 and math.prod(at.sizes) <= _LARGER * math.prod(at.counts):
        size = math.prod(at.kernel)
        apart = op.Reshape(filters, op.ints([group, counted // group, channels // group, size]))
        turned = op.Gather(op.Transpose(apart, perm=[0, 2, 1, 3]), op.ints(range(size)[::-1]), axis=3)
        back = op.Reshape(turned, op.ints([channels, counted // group, *at.kernel]))
        return op.Conv(g, back, dilations=list(at.dilations), pads=[*begins, *ends], group=group)
    found = op.ConvTranspose(
        g,
        filters,
        kernel_shape=list(at.kernel),
        strides=list(at.strides),
        dilations=list(at.dilations),
        pads=[*at.begins, *at.after],
        output_padding=[max(0, m) for m in at.more],
        group=group,
    )
    return op.within(found, x) if any(at.loose) else found


_STRIDED_SLICE = 10
"""The first opset in which ``Slice`` has steps."""

_ROWS = 16
"""So many rows suffice for a fast matrix product; more only take memory to be brought together."""


def filters(op: Step, elements: Name, g: Name, at: Windows, group: int, channels: int, counted: int) -> Name:
    """The gradient of filters: for each place in a window, the products of its elements with what the windows have.

    Args:
        elements: (samples, ``channels``, ...), of which the windows are.
        g: (samples, ``counted``, ...), one value for each window.

    Returns:
        Of shape (counted, channels / group, *kernel).
    """
    rank = len(at.kernel)
    padded = op.pad(elements, (0, 0, *at.begins), (0, 0, *at.after))
    first = op.Transpose(padded, perm=[1, 0, *range(2, rank + 2)])
    by_group = op.Reshape(g, op.ints([0, group, counted // group, -1]))
    weights = op.Reshape(op.Transpose(by_group, perm=[1, 0, 3, 2]), op.ints([group, -1, counted // group]))
    inner, parts = channels // group, [_place(op, first, at, place) for place in np.ndindex(*at.kernel)]
    together = -(-_ROWS // inner)
    products = []
    for some in (parts[start : start + together] for start in range(0, len(parts), together)):
        rows = op.Concat(*(op.unsqueeze(part, [1]) for part in some), axis=1) if len(some) > 1 else some[0]
        product = op.MatMul(op.Reshape(rows, op.ints([group, inner * len(some), -1])), weights)
        products.append(op.Reshape(product, op.ints([group, inner, len(some), counted // group])))
    joined = op.Concat(*products, axis=2) if len(products) > 1 else products[0]
    return op.Reshape(op.Transpose(joined, perm=[0, 3, 1, 2]), op.ints([counted, inner, *at.kernel]))


def _place(op: Step, elements: Name, at: Windows, place: Shape) -> Name:
    """The elements that are at one place in each window, of padded ones."""
    starts = [p * d for p, d in zip(place, at.dilations, strict=True)]
    axes = range(2, 2 + len(place))
    if op.tape.opset < _STRIDED_SLICE and max(at.strides) > 1:
        op.require(not any(at.loose))
        for axis, start, step, count in zip(axes, starts, at.strides, at.counts, strict=True):
            elements = op.Gather(elements, op.ints([start + step * k for k in range(count)]), axis=axis)
        return elements
    ends = [start + 1 - extent or LAST for start, extent in zip(starts, at.extents, strict=True)]
    return op.slice(elements, axes, starts, ends, at.strides)


def members(at: Windows, *, padding: bool) -> Array:
    """How many elements are in each window, those of the padding included or not; (windows along each axis)."""
    found = np.ones((1,) * len(at.kernel), np.int64)
    for axis, (size, count, kernel) in enumerate(zip(at.sizes, at.counts, at.kernel, strict=True)):
        place = np.arange(count)[:, None] * at.strides[axis] - at.begins[axis] + np.arange(kernel) * at.dilations[axis]
        low, high = (-at.begins[axis], size + at.ends[axis]) if padding else (0, size)
        inside = ((place >= low) & (place < high)).sum(axis=1)
        found = found * inside.reshape(-1, *(1,) * (len(at.kernel) - axis - 1))
    return found
