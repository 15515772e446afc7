"""Linear layers: sums of products with stored tensors, as rows times a matrix.

What such a layer computes at one position of its output is a row (what it reads there, and a one for the bias) times a matrix
of its weights. Of a Conv that is the zero-padded patch that it sees, of a ConvTranspose the same of its operand with zeros put
in between. A grouped one is several such products side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.flow import Site
from onnxprune.graph import Graph
from onnxprune.labels import BoolArray, IntArray
from onnxprune.leastsquares.stored import Stored, left
from onnxprune.lossless import Slot, Sum, bias_slot, is_linear
from onnxprune.rules import Call
from onnxprune.weights import Array

Grid = tuple[slice, ...]
"""Which positions of a layer's output are looked at: a slice of each of its axes of positions."""


@dataclass(frozen=True, eq=False)
class Linear(ABC):
    """A linear layer.

    ``stored``: its weights, each with its axis of channels that are read. ``slot``: where its bias is, if it can have one.
    ``groups``: products side by side, of which each has ``inputs`` channels at each of ``taps`` positions, and ``outputs``
    sums. ``operands``: the tensors that are read in the model as it is by then; ``sources``: those of which a change concerns
    it.
    """

    call: Call
    stored: tuple[tuple[Stored, int], ...]
    slot: Slot | None
    groups: int
    inputs: int
    outputs: int
    taps: int
    operands: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def label(self) -> str:
        """The node's."""
        return self.call.node.label

    @property
    def columns(self) -> int:
        """Numbers in a row, the one aside."""
        return self.taps * self.inputs

    @property
    def reads(self) -> list[Site]:
        """The axes of its weights of channels that are read; their indices are its inputs, one after the other."""
        return [Site(one.name, axis) for one, axis in self.stored]

    def places(self, indices: IntArray) -> IntArray:
        """The columns of some channels: int (channels, places of each) becomes (channels, places times taps)."""
        return (indices[:, None, :] + self.inputs * np.arange(self.taps)[:, None]).reshape(len(indices), -1)

    def read(self, coupling: Coupling, removed: BoolArray) -> BoolArray:
        """Which channels that it reads are left, (groups, inputs)."""
        found = np.concatenate([left(coupling, site, removed) for site in self.reads])
        return np.broadcast_to(found.reshape(-1, self.inputs), (self.groups, self.inputs))

    @abstractmethod
    def made(self, coupling: Coupling, removed: BoolArray) -> BoolArray:
        """Which of its sums are left, (groups, outputs)."""

    @abstractmethod
    def witnesses(self, end: str) -> tuple[str, ...]:
        """What of the original tells its sums, or what becomes of them, which the tensor ``end`` is."""

    @abstractmethod
    def grid(self, witnesses: Sequence[Array], most: float, turn: int) -> Grid:
        """Evenly spaced positions, about ``most`` for each sample; others for each ``turn``."""

    @abstractmethod
    def samples(self, witnesses: Sequence[Array]) -> int:
        """How many samples there are."""

    @abstractmethod
    def sums(self, witnesses: Sequence[Array], grid: Grid) -> Array:
        """The sums at the positions of a grid, (rows, groups times outputs)."""

    @abstractmethod
    def rows(self, operands: Sequence[Array], witnesses: Sequence[Array], grid: Grid) -> Iterator[Array]:
        """What is read at the positions of a grid, for each group float32 (rows, columns + 1); the last column is one."""

    @abstractmethod
    def matrix(self, values: Sequence[Array]) -> Array:
        """The weights as float64 (groups, columns, outputs); a column for each channel of the first tap, of the second, ..."""

    @abstractmethod
    def tensors(self, matrix: Array, values: Sequence[Array]) -> list[Array]:
        """The way back: the weights in their own form, float64."""

    @abstractmethod
    def bias(self, graph: Graph) -> Array:
        """What is added, float64 (groups, outputs)."""

    @abstractmethod
    def added(self, change: Array) -> Array:
        """What a change of the bias (groups, outputs) adds to the vector at its slot."""


@dataclass(frozen=True, eq=False)
class Product(Linear):
    """A Conv, ConvTranspose, Gemm or MatMul. ``target``: the tensor that its sums are once the bias is added."""

    target: str = ""
    factor: float = 1.0

    @classmethod
    def of(cls, coupling: Coupling, sum_: Sum) -> Product | None:
        """The layer that a sum of products is; None where it is none with a stored tensor."""
        call, node, graph = sum_.call, sum_.call.node, coupling.graph
        if not is_linear(sum_) or call.outputs[0] is None or not node.standard or node.inputs[0] in graph.weights:
            return None
        stored = Stored.of(coupling, node, 1)
        if stored is None:
            return None
        shape, slot = call.shape(1), bias_slot(graph, sum_)
        if slot is None and node.input(2):  # something is added that is no bias
            return None
        bias = None if slot is None else graph.producers[slot[0].outputs[0]]
        target, factor, groups, taps, outputs = (node if bias is None else bias).outputs[0], 1.0, 1, 1, shape[-1]
        reads, inputs = sum_.summed[1][0], shape[sum_.summed[1][0]]
        if node.op in ("Conv", "ConvTranspose"):
            groups, taps = int(call.attribute("group", 1)), prod(shape[2:])
            inputs, outputs = (shape[1], shape[0] // groups) if node.op == "Conv" else (shape[0] // groups, shape[1])
        elif node.op == "Gemm" and not call.attribute("transA", 0) and call.attribute("alpha", 1.0):
            outputs, factor = shape[1 - reads], float(call.attribute("alpha", 1.0))
        elif node.op != "MatMul" or len(shape) != 2 or call.rank(0) < 2:
            return None
        read = (node.inputs[0],)
        return cls(call, ((stored, reads),), slot, groups, inputs, outputs, taps, read, read, target, factor)

    @property
    def convolves(self) -> bool:
        """Whether channels come second, and positions behind them."""
        return self.call.node.op in ("Conv", "ConvTranspose")

    @property
    def padded(self) -> bool:
        """Whether zeros are put around what it reads, or cut off what it makes."""
        _, _, _, pads, mode = self._options()
        return self.convolves and (any(pads) or mode.startswith("SAME"))

    def made(self, coupling: Coupling, removed: BoolArray) -> BoolArray:
        """Which of its sums are left, (groups, outputs)."""
        (site,) = self.reads
        found = left(coupling, Site(site.tensor, 1 - site.axis), removed)
        return np.broadcast_to(found.reshape(-1, self.outputs), (self.groups, self.outputs))

    def witnesses(self, end: str) -> tuple[str, ...]:
        """What becomes of its sums is all that is looked at."""
        return (end,)

    def grid(self, witnesses: Sequence[Array], most: float, turn: int) -> Grid:
        """Evenly spaced positions, about ``most`` for each sample; others for each ``turn``."""
        shape = witnesses[0].shape
        sizes = shape[2:] if self.convolves else (prod(shape[1:-1]),)
        return spaced(sizes, most, turn)

    def samples(self, witnesses: Sequence[Array]) -> int:
        """How many samples there are."""
        return len(witnesses[0])

    def sums(self, witnesses: Sequence[Array], grid: Grid) -> Array:
        """The sums at the positions of a grid, (rows, groups times outputs)."""
        (values,) = witnesses
        if self.convolves:
            return np.moveaxis(values[(slice(None), slice(None), *grid)], 1, -1).reshape(-1, values.shape[1])
        return values.reshape(values.shape[0], -1, values.shape[-1])[:, grid[0]].reshape(-1, values.shape[-1])

    def rows(self, operands: Sequence[Array], witnesses: Sequence[Array], grid: Grid) -> Iterator[Array]:
        """What is read at the positions of a grid, for each group float32 (rows, columns + 1); the last column is one."""
        (values,) = operands
        if not self.convolves:
            flat = values.reshape(values.shape[0], -1, values.shape[-1])[:, grid[0]].reshape(-1, values.shape[-1])
            yield np.concatenate([flat.astype(np.float32, copy=False), np.ones((len(flat), 1), np.float32)], axis=1)
            return
        if self.call.node.op == "Conv":
            values, kernel, strides, dilations, pads = self._window(values)
        else:
            values, kernel, strides, dilations, pads = self._stuffed(values, witnesses[0].shape)
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

    def matrix(self, values: Sequence[Array]) -> Array:
        """The weights as float64 (groups, columns, outputs); a column for each channel of the first tap, of the second, ..."""
        weight = values[0].astype(np.float64) * self.factor
        if not self.convolves:
            return (weight if self.stored[0][1] == 0 else weight.T)[None]
        shape, order = self._parted
        return weight.reshape(shape).transpose(order)[:, :: self._turn].reshape(self.groups, self.columns, self.outputs)

    def tensors(self, matrix: Array, values: Sequence[Array]) -> list[Array]:
        """The way back: the weights in their own form, float64."""
        matrix = matrix / self.factor
        if not self.convolves:
            return [np.asarray(matrix[0] if self.stored[0][1] == 0 else matrix[0].T)]
        parted = matrix.reshape(self.groups, self.taps, self.inputs, self.outputs)[:, :: self._turn]
        return [np.asarray(parted.transpose(np.argsort(self._parted[1])).reshape(values[0].shape))]

    def bias(self, graph: Graph) -> Array:
        """What is added, float64 (groups, outputs)."""
        name = "" if self.slot is None else self.slot[0].input(self.slot[1])
        values = graph.weights.read(name).astype(np.float64).ravel() if name else np.zeros(1)
        scale = 1.0 if self.slot is None else self.slot[2]
        return np.broadcast_to(values * scale, self.groups * self.outputs).reshape(self.groups, self.outputs)

    def added(self, change: Array) -> Array:
        """What a change of the bias (groups, outputs) adds to the vector at its slot."""
        return change.ravel() / (1.0 if self.slot is None else self.slot[2])

    @property
    def _parted(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The filters' shape with groups and taps apart, and in which order that is (groups, taps, inputs, outputs)."""
        if self.call.node.op == "Conv":
            return (self.groups, self.outputs, self.inputs, self.taps), (0, 3, 2, 1)
        return (self.groups, self.inputs, self.outputs, self.taps), (0, 3, 1, 2)

    @property
    def _turn(self) -> int:
        """A ConvTranspose sees its filters the other way round."""
        return 1 if self.call.node.op == "Conv" else -1

    def _options(self) -> tuple[tuple[int, ...], list[int], list[int], list[int], str]:
        """Kernel, strides, dilations, pads and how the latter are chosen."""
        kernel = self.call.shape(1)[2:]
        strides, dilations = (list(self.call.attribute(n, ()) or [1] * len(kernel)) for n in ("strides", "dilations"))
        pads = list(self.call.attribute("pads", ()) or [0] * 2 * len(kernel))
        return kernel, strides, dilations, pads, str(self.call.attribute("auto_pad", "NOTSET") or "NOTSET")

    def _window(self, values: Array) -> tuple[Array, Any, Any, Any, list[tuple[int, int]]]:
        """The operand, kernel, strides, dilations and zeros on either side, axis by axis."""
        kernel, strides, dilations, pads, mode = self._options()
        both = list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
        if mode.startswith("SAME"):
            both = []
            for size, k, s, d in zip(values.shape[2:], kernel, strides, dilations, strict=True):
                more = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
                both.append(_halves(more, mode == "SAME_UPPER"))
        return values, kernel, strides, dilations, both

    def _stuffed(self, values: Array, made: tuple[int, ...]) -> tuple[Array, Any, Any, Any, list[tuple[int, int]]]:
        """The same for a ConvTranspose with a result of a shape: strides are zeros in its operand, and what pads is cut off."""
        kernel, strides, dilations, cut, mode = self._options()
        spread = [s * (size - 1) + 1 for s, size in zip(strides, values.shape[2:], strict=True)]
        found = np.zeros((*values.shape[:2], *spread), values.dtype)
        found[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = values
        chosen = mode.startswith("SAME") or bool(self.call.attribute("output_shape", ()))
        more = list(self.call.attribute("output_padding", ()) or [0] * len(kernel))
        both = []
        for a, (k, d, size, out) in enumerate(zip(kernel, dilations, spread, made[2:], strict=True)):
            before = _halves(max(0, size + more[a] + d * (k - 1) - out), mode == "SAME_UPPER")[0] if chosen else cut[a]
            lead = d * (k - 1) - before
            both.append((lead, out + d * (k - 1) - lead - size))
        inside = [slice(max(0, -lead), size + min(0, tail)) for (lead, tail), size in zip(both, spread, strict=True)]
        pads = [(max(0, lead), max(0, tail)) for lead, tail in both]
        return found[(slice(None), slice(None), *inside)], kernel, [1] * len(kernel), dilations, pads


def _halves(size: int, upper: bool) -> tuple[int, int]:
    """Two parts, of which the second is larger, or if not ``upper`` the first."""
    return (size // 2, size - size // 2) if upper else (size - size // 2, size // 2)


def spaced(sizes: Sequence[int], most: float, turn: int) -> Grid:
    """Evenly spaced positions, about ``most`` of all; others for each ``turn``."""
    step = max(1, round((prod(sizes) / max(most, 1)) ** (1 / max(len(sizes), 1)))) if sizes else 1
    found, turn = [], turn * 7
    for size in sizes:
        here = max(1, min(step, size))
        found.append(slice(turn % here, None, here))
        turn //= here
    return tuple(found)
