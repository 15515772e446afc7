"""Sliding windows of convolutions and poolings, and the way back from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.gradient.tape import Name, Step
from onnxprune.shapes import Shape
from onnxprune.weights import Array


@dataclass(frozen=True)
class Windows:
    """Windows along each axis: ``sizes`` of the operand, ``counts`` of windows, the rest as in ONNX, padding resolved.

    ``more``: elements at the end that no window reaches. Less than none: how far the last window reaches beyond the padding.
    """

    sizes: Shape
    counts: Shape
    kernel: Shape
    strides: Shape
    dilations: Shape
    begins: Shape
    ends: Shape
    more: Shape

    @property
    def after(self) -> Shape:
        """The padding at the end that windows reach."""
        return tuple(e + max(0, -m) for e, m in zip(self.ends, self.more, strict=True))


def windows(op: Step, kernel: Shape) -> Windows:
    """The windows of a call, over the axes of the first operand after the first two.

    Raises:
        Unsupported: they depend on a size that is not the same for all inputs.
    """
    call, rank = op.call, len(kernel)
    op.require(rank > 0 and call.rank() == rank + 2)
    sizes, counts = call.shape(0)[2:], op.result[2:]
    strides = tuple(call.attribute("strides") or (1,) * rank)
    dilations = tuple(call.attribute("dilations") or (1,) * rank)
    pads = tuple(call.attribute("pads") or (0,) * (2 * rank))
    begins, ends, mode = pads[:rank], pads[rank:], str(call.attribute("auto_pad") or "NOTSET")
    extents = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))
    if mode != "NOTSET":
        begins = ends = (0,) * rank
    if mode.startswith("SAME"):
        whole = tuple(max(0, (n - 1) * s + e - i) for n, s, e, i in zip(counts, strides, extents, sizes, strict=True))
        small, large = tuple(w // 2 for w in whole), tuple(w - w // 2 for w in whole)
        begins, ends = (small, large) if mode == "SAME_UPPER" else (large, small)
    reach = [(n - 1) * s + e for n, s, e in zip(counts, strides, extents, strict=True)]
    more = tuple(i + b + e - r for i, b, e, r in zip(sizes, begins, ends, reach, strict=True))
    fixed = op.fixed(0)[2:]
    op.require(all(f or s == 1 for f, s in zip(fixed, strides, strict=True)))
    return Windows(sizes, counts, kernel, strides, dilations, begins, ends, more)


def transposed(op: Step, g: Name, filters: Name, at: Windows, group: int) -> Name:
    """Sum up at each element what the windows have that it is in."""
    return op.ConvTranspose(
        g,
        filters,
        kernel_shape=list(at.kernel),
        strides=list(at.strides),
        dilations=list(at.dilations),
        pads=[*at.begins, *at.after],
        output_padding=[max(0, m) for m in at.more],
        group=group,
    )


def members(at: Windows, *, padding: bool) -> Array:
    """How many elements are in each window, those of the padding included or not; (windows along each axis)."""
    found = np.ones((1,) * len(at.kernel), np.int64)
    for axis, (size, count, kernel) in enumerate(zip(at.sizes, at.counts, at.kernel, strict=True)):
        place = np.arange(count)[:, None] * at.strides[axis] - at.begins[axis] + np.arange(kernel) * at.dilations[axis]
        low, high = (-at.begins[axis], size + at.ends[axis]) if padding else (0, size)
        inside = ((place >= low) & (place < high)).sum(axis=1)
        found = found * inside.reshape(-1, *(1,) * (len(at.kernel) - axis - 1))
    return found
