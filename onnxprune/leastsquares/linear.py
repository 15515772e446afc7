"""Linear layers: sums of products with a stored tensor, as rows times a matrix.

What a Conv, Gemm or MatMul computes at one position of its output is a row (what it reads there, zero-padded, and a one for
the bias) times a matrix of its weights. A grouped Conv is several such products side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.flow import Site
from onnxprune.graph import Graph
from onnxprune.labels import IntArray
from onnxprune.lossless import Slot, Sum, all_sums, bias_slot, own_weight
from onnxprune.rules import Call
from onnxprune.weights import FLOATS, Array

Grid = tuple[slice, ...]
"""Which positions of a layer's output are looked at: a slice of each of its axes of positions."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer.

    ``weight``: the stored tensor. ``slot``: where its bias is, if it can have one. ``target``: the tensor that its sums are
    once the bias is added. ``groups``: products side by side, of which each has ``inputs`` channels at each of ``taps``
    positions, and ``outputs`` sums.
    """

    call: Call
    weight: str
    slot: Slot | None
    target: str
    groups: int
    inputs: int
    outputs: int
    taps: int
    factor: float = 1.0

    @classmethod
    def of(cls, graph: Graph, sum_: Sum) -> Linear | None:
        """The layer that a sum of products is; None where it is none with a stored tensor of its own."""
        call, node = sum_.call, sum_.call.node
        weight = own_weight(graph, sum_)
        if weight is None or call.outputs[0] is None or not node.standard:
            return None
        shape = graph.weights.shape(weight)
        slot = bias_slot(graph, sum_)
        if slot is None and node.input(2):  # something is added that is no bias
            return None
        bias = None if slot is None else graph.producers[slot[0].outputs[0]]
        target = node.outputs[0] if bias is None else bias.outputs[0]
        if node.op == "Conv":
            groups = int(call.attribute("group", 1))
            return cls(call, weight, slot, target, groups, shape[1], shape[0] // groups, prod(shape[2:]))
        if node.op == "Gemm" and not call.attribute("transA", 0) and call.attribute("alpha", 1.0):
            inputs, outputs = reversed(shape) if call.attribute("transB", 0) else shape
            return cls(call, weight, slot, target, 1, inputs, outputs, 1, float(call.attribute("alpha", 1.0)))
        if node.op == "MatMul" and len(shape) == 2 and call.rank(0) > 1:
            return cls(call, weight, slot, target, 1, shape[0], shape[1], 1)
        return None

    @property
    def operand(self) -> str:
        """The tensor that it reads."""
        return self.call.node.inputs[0]

    @property
    def columns(self) -> int:
        """Numbers in a row, the one aside."""
        return self.taps * self.inputs

    @property
    def convolves(self) -> bool:
        """Whether channels come second, and positions behind them."""
        return self.call.node.op == "Conv"

    @property
    def reads(self) -> Site:
        """The weight's axis of channels that are read."""
        turned = self.convolves or bool(self.call.attribute("transB", 0))
        return Site(self.weight, 1 if turned else 0)

    @property
    def makes(self) -> Site:
        """The weight's axis of channels that are made."""
        return Site(self.weight, 1 - self.reads.axis)

    def matrix(self, values: Array) -> Array:
        """The weights as float64 (groups, columns, outputs); a column for each channel of the first tap, of the second, ..."""
        values = values.astype(np.float64) * self.factor
        if not self.convolves:
            return (values if self.reads.axis == 0 else values.T)[None]
        parted = values.reshape(self.groups, self.outputs, self.inputs, self.taps)
        return parted.transpose(0, 3, 2, 1).reshape(self.groups, self.columns, self.outputs)

    def tensor(self, matrix: Array, shape: tuple[int, ...]) -> Array:
        """The way back: the weights in their own form, float64."""
        matrix = matrix / self.factor
        if not self.convolves:
            return np.asarray(matrix[0] if self.reads.axis == 0 else matrix[0].T)
        parted = matrix.reshape(self.groups, self.taps, self.inputs, self.outputs)
        return np.asarray(parted.transpose(0, 3, 2, 1).reshape(shape))

    def bias(self, graph: Graph) -> Array:
        """What is added, float64 (groups, outputs)."""
        name = "" if self.slot is None else self.slot[0].input(self.slot[1])
        values = graph.weights.read(name).astype(np.float64).ravel() if name else np.zeros(1)
        scale = 1.0 if self.slot is None else self.slot[2]
        return np.broadcast_to(values * scale, self.groups * self.outputs).reshape(self.groups, self.outputs)

    def places(self, indices: IntArray) -> IntArray:
        """The columns of some channels: int (channels, places of each) becomes (channels, places times taps)."""
        return (indices[:, None, :] + self.inputs * np.arange(self.taps)[:, None]).reshape(len(indices), -1)

    def grid(self, shape: tuple[int, ...], most: float, turn: int) -> Grid:
        """Evenly spaced positions of an output of this shape, about ``most`` for each sample; others for each ``turn``."""
        sizes = shape[2:] if self.convolves else (prod(shape[1:-1]),)
        step = max(1, round((prod(sizes) / max(most, 1)) ** (1 / max(len(sizes), 1)))) if sizes else 1
        found, turn = [], turn * 7
        for size in sizes:
            here = min(step, size)
            found.append(slice(turn % here, None, here))
            turn //= here
        return tuple(found)

    def sums(self, values: Array, grid: Grid) -> Array:
        """An output at the positions of a grid, (rows, groups times outputs)."""
        if self.convolves:
            return np.moveaxis(values[(slice(None), slice(None), *grid)], 1, -1).reshape(-1, values.shape[1])
        return values.reshape(values.shape[0], -1, values.shape[-1])[:, grid[0]].reshape(-1, values.shape[-1])

    def rows(self, values: Array, grid: Grid) -> Iterator[Array]:
        """What is read at the positions of a grid, for each group float32 (rows, columns + 1); the last column is one."""
        if not self.convolves:
            flat = values.reshape(values.shape[0], -1, values.shape[-1])[:, grid[0]].reshape(-1, values.shape[-1])
            yield np.concatenate([flat.astype(np.float32, copy=False), np.ones((len(flat), 1), np.float32)], axis=1)
            return
        kernel, strides, dilations, pads = self._window(values.shape)
        moved = np.moveaxis(values, 1, -1)
        padded = np.pad(moved, [(0, 0), *pads, (0, 0)]) if any(map(any, pads)) else moved
        ends = [size - d * (k - 1) for size, d, k in zip(padded.shape[1:-1], dilations, kernel, strict=True)]
        starts = [range(end)[::s][g] for end, s, g in zip(ends, strides, grid, strict=True)]
        count = [len(values), *map(len, starts)]
        for group in range(self.groups):
            part = padded[..., group * self.inputs : (group + 1) * self.inputs]
            flat = np.empty((*count, self.columns + 1), np.float32)
            for tap, offset in enumerate(np.ndindex(*kernel)):
                taken = [
                    slice(r.start + o * d, r.start + o * d + (len(r) - 1) * r.step + 1, r.step)
                    for r, o, d in zip(starts, offset, dilations, strict=True)
                ]
                flat[..., tap * self.inputs : (tap + 1) * self.inputs] = part[(slice(None), *taken)]
            flat[..., -1] = 1
            yield flat.reshape(-1, self.columns + 1)

    def _window(self, shape: tuple[int, ...]) -> tuple[Any, Any, Any, list[tuple[int, int]]]:
        """Kernel, strides, dilations and zeros on either side, axis by axis."""
        kernel = self.call.shape(1)[2:]
        rank = len(kernel)
        strides, dilations = (list(self.call.attribute(n, ()) or [1] * rank) for n in ("strides", "dilations"))
        pads = list(self.call.attribute("pads", ()) or [0] * 2 * rank)
        both = list(zip(pads[:rank], pads[rank:], strict=True))
        mode = str(self.call.attribute("auto_pad", "NOTSET") or "NOTSET")
        if mode.startswith("SAME"):
            both = []
            for size, k, s, d in zip(shape[2:], kernel, strides, dilations, strict=True):
                more = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
                both.append((more // 2, more - more // 2) if mode == "SAME_UPPER" else (more - more // 2, more // 2))
        return kernel, strides, dilations, both


def linear_layers(coupling: Coupling) -> list[Linear]:
    """All linear layers outside of subgraphs with float weights of their own, in the order of the graph."""
    graph = coupling.graph
    found = [one for one in (Linear.of(graph, sum_) for sum_ in all_sums(coupling)) if one is not None]
    return [one for one in found if one.target in graph.outer and graph.weights.elem_type(one.weight) in FLOATS]
