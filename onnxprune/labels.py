"""Channel labels: which indices of which axes stand or fall together.

Every index of every weight axis gets a label. A tensor is described by *factors*: a factor spreads labels over one axis
(the usual case), or over several at once (an axis that a Reshape has just split). An element of the tensor leaves when
any of its labels leaves. :class:`LabelSpace` records ties between labels and which ones must stay; the connected
components of the ties are the coupled channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

NOWHERE = -1
"""Stands where a movement operator's result does not come from the labelled operand."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why channels can't be cut: the node that blocks, and in words."""

    node: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """Labels over some axes of a tensor.

    ``labels`` has one dimension per entry of ``axes``. ``zero``: in the masked model the removed slices are exactly zero,
    or what stands for it in this tensor.
    """

    axes: tuple[int, ...]
    labels: IntArray
    zero: bool

    def aligned(self, shape: tuple[int, ...]) -> IntArray:
        """The labels with one dimension per axis of a tensor of that shape, of size one where they do not vary."""
        return self.labels.reshape([size if axis in self.axes else 1 for axis, size in enumerate(shape)])


@dataclass(frozen=True, slots=True)
class Fill:
    """What stands for zero in a tensor: one value everywhere, or one for each index of an axis (zero points)."""

    values: tuple[int, ...] = (0,)
    axis: int = 0

    def over(self, shape: tuple[int, ...]) -> IntArray:
        """The values, to be broadcast over a tensor of that shape."""
        line = [-1 if axis == self.axis and len(self.values) > 1 else 1 for axis in range(len(shape))]
        return np.array(self.values, np.int64).reshape(line)


def rest_of(point: Fill | str | None) -> float | str:
    """What ``Labelled.rest`` says of a zero point: its value, its name, or NaN where there are several."""
    return float(point.values[0]) if isinstance(point, Fill) else point or math.nan


Axis = tuple[Factor, ...]
"""All factors over one single axis; empty where nothing on it may be cut."""


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A tensor's shape and factors.

    ``weight``: it comes from stored tensors alone, by movement. ``rest``: the value that stands for zero; a tensor's name
    where it is only known at run time, NaN where there is no single one. ``open``: the stored tensors of quantised numbers
    it comes from, whose first reader says what stands for zero.
    """

    shape: tuple[int, ...]
    factors: tuple[Factor, ...]
    weight: bool = False
    rest: float | str = 0.0
    open: tuple[str, ...] = ()

    def axis(self, index: int) -> Axis:
        """The factors over that axis alone."""
        return tuple(f for f in self.factors if f.axes == (index,))

    def filled(self, axes: set[int]) -> Labelled:
        """The same where removed channels on some axes are not zero."""
        factors = (replace(f, zero=False) if axes.intersection(f.axes) else f for f in self.factors)
        return replace(self, factors=tuple(factors))

    @property
    def split(self) -> tuple[Factor, ...]:
        """The factors over more than one axis."""
        return tuple(f for f in self.factors if len(f.axes) > 1)


class LabelSpace:
    """Hands out labels, ties them and holds some of them fast. All operations take whole vectors."""

    def __init__(self) -> None:
        self.reasons: list[Reason] = []
        self._count = 0
        self._held = np.zeros(1024, np.int32)  # 1 + index of the reason; 0: free
        self._mixed = np.zeros(1024, np.bool_)  # a node normalises or averages over it
        self._row = np.arange(1024)  # the first label of the row that it was tied to
        self._ties: list[tuple[IntArray, IntArray]] = []

    def fresh(self, count: int, reason: Reason | None = None) -> IntArray:
        """New labels, held fast if a reason is given."""
        labels = np.arange(self._count, self._count + count, dtype=np.int64)
        self._count += count
        if self._count > len(self._held):
            self._held = np.concatenate([self._held, np.zeros(max(self._count, len(self._held)), np.int32)])
            self._mixed = np.concatenate([self._mixed, np.zeros(len(self._held) - len(self._mixed), np.bool_)])
            self._row = np.concatenate([self._row, np.arange(len(self._row), len(self._held))])
        if reason is not None:
            self.hold(labels, reason)
        return labels

    def hold(self, labels: IntArray, reason: Reason) -> None:
        """Labels that must stay. The first reason is kept."""
        free = labels[self._held[labels] == 0]
        if free.size:
            if not self.reasons or self.reasons[-1] != reason:
                self.reasons.append(reason)
            self._held[free] = len(self.reasons)

    def mix(self, labels: IntArray) -> None:
        """Labels whose removal changes the others' values, and is allowed all the same."""
        self._mixed[labels] = True

    def is_held(self, labels: IntArray) -> bool:
        """Whether all of them are known to stay, ties not considered."""
        return bool(self._held[labels].all())

    def tie(self, a: IntArray, b: IntArray) -> None:
        """Tie labels one to one (``b`` may broadcast against ``a``)."""
        a, b = np.broadcast_arrays(a, b)
        if a is b:
            return
        self._ties.append((a.ravel().copy(), b.ravel().copy()))
        for one, other in ((a, b), (b, a)):
            held = self._held[one]
            loose = (held > 0) & (self._held[other] == 0)
            self._held[other[loose]] = held[loose]

    def tie_rows(self, rows: IntArray) -> None:
        """Tie all labels of each row of a table (rows, columns)."""
        self.tie(rows[:, :1], rows)
        self._row[rows] = self._row[rows[:, :1]]

    def same_rows(self, rows: IntArray) -> bool:
        """Whether the rows of a table have been tied before."""
        return bool((self._row[rows] == self._row[rows[:, :1]]).all())

    def tie_axes(self, a: Axis, b: Axis, reason: Reason) -> Axis:
        """Tie two descriptions of the same axis and return the common one.

        An axis that was merged from several (Flatten) has several factors. Those that partition the axis in the same way
        are tied to each other; where only one side can be cut along a factor, it is held with ``reason``.
        """
        left, right = self._loose(a), self._loose(b)
        if not left or not right:
            cause = self._cause(a if right else b) or reason
            for factor in left + right:
                self.hold(factor.labels, cause)
            return a if not right and a else b
        pairs: list[tuple[Factor, Factor]] = []
        for one in left:
            other = next((f for f in right if f not in (p[1] for p in pairs) and _same_partition(one.labels, f.labels)), None)
            if other is not None:
                pairs.append((one, other))
        rest_a = [f for f in left if all(f is not p[0] for p in pairs)]
        rest_b = [f for f in right if all(f is not p[1] for p in pairs)]
        if rest_a and rest_b and not pairs:
            pairs.append((rest_a.pop(0), rest_b.pop(0)))
        for factor in rest_a + rest_b:
            self.hold(factor.labels, reason)
        for one, other in pairs:
            self.tie(one.labels, other.labels)
        return tuple(one for one, _ in pairs)

    def single(self, axis: Axis, reason: Reason) -> Axis:
        """At most one factor that can be cut; of several the finest stays, the others are held."""
        loose = self._loose(axis)
        for factor in sorted(loose, key=lambda f: -len(np.unique(f.labels)))[1:]:
            self.hold(factor.labels, reason)
        return tuple(self._loose(axis))

    def components(self) -> Components:
        """Solve the ties."""
        root = np.arange(self._count, dtype=np.int64)
        if self._ties:
            a = np.concatenate([t[0] for t in self._ties])
            b = np.concatenate([t[1] for t in self._ties])
            while True:
                ra, rb = root[a], root[b]
                if np.array_equal(ra, rb):
                    break
                np.minimum.at(root, np.maximum(ra, rb), np.minimum(ra, rb))
                while not np.array_equal(hop := root[root], root):
                    root = hop
        held = np.zeros(self._count, np.int32)
        marks = self._held[: self._count]
        last = len(self.reasons) + 1
        first = np.full(self._count, last, np.int32)
        np.minimum.at(first, root[marks > 0], marks[marks > 0])
        held = np.where(first < last, first, 0)[root]
        mixed = np.zeros(self._count, np.bool_)
        mixed[root[self._mixed[: self._count]]] = True
        return Components(root, held, mixed[root], tuple(self.reasons))

    def _cause(self, axis: Axis) -> Reason | None:
        """The reason why an axis is held, where it is known."""
        return self.reasons[self._held[axis[0].labels.flat[0]] - 1] if axis else None

    def _loose(self, axis: Axis) -> list[Factor]:
        return [f for f in axis if not self.is_held(f.labels)]


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """The coupled channels: ``root[label]`` names the component, ``held[label]`` is 1 + the index of its reason, or 0.

    ``mixed[label]``: a node normalises or averages over it, so that its removal is not exact.
    """

    root: IntArray
    held: npt.NDArray[np.int32]
    mixed: BoolArray
    reasons: tuple[Reason, ...]

    def reason(self, label: int) -> Reason:
        """Why the component of a held label must stay."""
        return self.reasons[int(self.held[label]) - 1]


def _same_partition(a: IntArray, b: IntArray) -> bool:
    """Whether two labellings of the same positions group them alike."""
    if a.shape != b.shape:
        return False
    pairs = np.unique(np.stack([a, b]), axis=1).shape[1]
    return bool(pairs == len(np.unique(a)) == len(np.unique(b)))


def arrival(labels: IntArray, *, strict: bool) -> tuple[tuple[int, ...], IntArray]:
    """Along which axes moved labels vary, and the labels over just these axes.

    Args:
        strict: whether a place that is ``NOWHERE`` differs from one with a label. Padding along the height says nothing
            about a channel; but where channels of several tensors are stacked, each has a row of its own.
    """
    axes: list[int] = []
    if not labels.size:
        return (), labels
    for axis in range(labels.ndim):
        top = labels.max(axis=axis, keepdims=True)
        same = labels == top if strict else (labels == top) | (labels == NOWHERE)
        if labels.shape[axis] == 1 or np.all(same):
            labels = top
        else:
            axes.append(axis)
    return tuple(axes), labels.reshape([labels.shape[a] for a in axes])


def merge(parts: list[tuple[int, Factor]], space: LabelSpace) -> list[Factor]:
    """Unite what arrived from several operands.

    Factors over the same axes from different operands fill each other's gaps (Concat) and are tied where both have
    labels; those from the same operand stay apart (Flatten merges two axes into one).
    """
    slots: dict[tuple[tuple[int, ...], int], Factor] = {}
    rank: dict[tuple[int, tuple[int, ...]], int] = {}
    for operand, factor in parts:
        position = rank.get((operand, factor.axes), 0)
        rank[operand, factor.axes] = position + 1
        key = (factor.axes, position)
        if key not in slots:
            slots[key] = factor
            continue
        old = slots[key]
        both = (old.labels != NOWHERE) & (factor.labels != NOWHERE)
        space.tie(old.labels[both], factor.labels[both])
        labels = np.where(old.labels == NOWHERE, factor.labels, old.labels)
        slots[key] = Factor(factor.axes, labels, old.zero and factor.zero)
    return list(slots.values())


def classes(table: IntArray) -> int:
    """Into how many classes rows fall where rows that share a label belong together."""
    _, labels = np.unique(table, return_inverse=True)
    labels = labels.reshape(table.shape)
    number = np.arange(len(table))
    while True:
        least = np.full(labels.max(initial=-1) + 1, len(table))
        np.minimum.at(least, labels, number[:, None])
        lower = least[labels].min(axis=1, initial=len(table))
        if np.array_equal(lower, number):
            return len(np.unique(number))
        number = lower


def compare_orders(a: Axis, b: Axis) -> bool:
    """Whether two axes carry exactly the same labels in the same order."""
    return len(a) == len(b) and all(np.array_equal(x.labels, y.labels) for x, y in zip(a, b, strict=True))


def places_of(owners: IntArray, roots: IntArray) -> IntArray | None:
    """Where on an axis each channel is, int (channels, places of each); None where some are nowhere, or in more places.

    ``owners``: the component of each index of the axis; ``roots``: the channels' components.
    """
    order = np.argsort(owners, kind="stable")
    first, last = (np.searchsorted(owners[order], roots, side) for side in ("left", "right"))
    count = int(last[0] - first[0])
    if not count or not (last - first == count).all():
        return None
    return np.asarray(order[first[:, None] + np.arange(count)])
