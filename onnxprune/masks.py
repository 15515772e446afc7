"""Masks of unstructured pruning: which weights, kernels or filters become zero, the others keeping their places.

Source: DWP's "Network Pruning" (arXiv:2208.08677): of all scores the share ``p`` that is lowest are candidates, and each of
these is taken with probability ``b``: ``P(w) = (1 - candidate(w) * Bernoulli(b)) * w``. Pure numpy, one tensor at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from onnxprune.errors import OptionError
from onnxprune.weights import Array

BoolArray = npt.NDArray[np.bool_]

GRANULARITIES = {"element": "", "kernel": "*", "filter": "*i"}
"""What is taken or left as a whole, and the roles of the axes that it extends over."""

SCOPES = ("global", "layer")
NORMALISATIONS = ("none", "mean", "layer")

_COLLECTED = 1 << 24
"""Scores of which a quantile is found in memory; of more, those that can't be it are counted away first."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the axes of a tensor of filters stand for.

    ``shape``: the tensor's, with axes taken apart that stand for several things. ``roles``, one letter for each of its axes:
    ``o`` outputs (every index has filters of its own), ``i`` inputs (summed over), ``*`` positions within a kernel.
    """

    shape: tuple[int, ...]
    roles: str

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Layout:
        """As a convolution has them: outputs, inputs, then positions."""
        return cls(shape, ("oi" + "*" * len(shape))[: len(shape)])

    def axes(self, roles: str) -> tuple[int, ...]:
        """The axes that have one of some roles."""
        return tuple(axis for axis, role in enumerate(self.roles) if role in roles)

    @property
    def kernel(self) -> int:
        """Elements of one kernel."""
        return math.prod(self.shape[axis] for axis in self.axes("*"))


@dataclass(frozen=True, slots=True)
class Choice:
    """Which part of the weights leaves.

    ``sparsity``: the share of all elements, kernels or filters whose score is lowest, 0 to 1. A score is the sum of the
    magnitudes of the elements. ``normalise="mean"``: their mean, so that a kernel of one element competes with one of nine.
    ``"layer"``: the sum of magnitudes that are divided by the root of the sum of their squares in the tensor, so that
    tensors compete however they are scaled (where a normalisation was folded into a convolution, that says nothing).
    ``scope``: one threshold for all tensors together, or one for each. ``bernoulli``: probability with which what is below
    the threshold leaves. ``pattern``: ``"N:M"`` keeps the N largest of every M elements that follow each other along the
    inputs, instead of a share; what is left over at the end, fewer than M, stays as it is.

    Raises:
        OptionError: an option outside its range.
    """

    sparsity: float = 0.5
    granularity: str = "element"
    scope: str = "global"
    bernoulli: float = 1.0
    normalise: str = "none"
    pattern: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity <= 1:
            raise OptionError(f"sparsity is {self.sparsity}; it is the share of the weights to zero, 0 <= sparsity <= 1")
        if not 0 <= self.bernoulli <= 1:
            raise OptionError(f"bernoulli is {self.bernoulli}; it is a probability, 0 <= bernoulli <= 1")
        for name, value, known in (
            ("granularity", self.granularity, tuple(GRANULARITIES)),
            ("scope", self.scope, SCOPES),
            ("normalise", self.normalise, NORMALISATIONS),
        ):
            if value not in known:
                raise OptionError(f"{name} is {value!r}; choose {' or '.join(known)}")
        if self.pattern:
            kept, group = self.kept_of
            if not 0 < kept < group:
                raise OptionError(f"pattern is {self.pattern!r}, but N of M elements stay, 0 < N < M, as in 2:4")
            if self.granularity != "element":
                raise OptionError(f"pattern {self.pattern} is about elements; it can't be had by {self.granularity}")

    @property
    def kept_of(self) -> tuple[int, int]:
        """N and M of the pattern.

        Raises:
            OptionError: it is not of the form N:M.
        """
        numbers = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", self.pattern)
        if numbers is None:
            raise OptionError(f"pattern is {self.pattern!r}; give two numbers N:M, as in 2:4")
        return int(numbers[1]), int(numbers[2])


def masks(
    weights: Mapping[str, Array],
    sparsity: float,
    *,
    granularity: str = "element",
    scope: str = "global",
    bernoulli: float = 1.0,
    normalise: str = "none",
    rng: np.random.Generator | int = 0,
    layouts: Mapping[str, Layout] | None = None,
) -> dict[str, BoolArray]:
    """Masks of some tensors, of their shapes: True where a weight stays.

    Args:
        weights: by name; or other numbers whose magnitude says how important each weight is.
        sparsity, granularity, scope, bernoulli, normalise: as in :class:`Choice`.
        rng: for ``bernoulli``; with a generator every call draws other masks.
        layouts: what the axes of a tensor stand for, by name; a convolution's where nothing is said.

    Raises:
        OptionError: an option outside its range.
    """
    choice = Choice(sparsity, granularity, scope, bernoulli, normalise)
    known = {name: Layout.of(values.shape) for name, values in weights.items()} | dict(layouts or {})
    found = each_mask(weights, choice, np.random.default_rng(rng), known)
    return {name: np.ascontiguousarray(mask).reshape(weights[name].shape) for name, mask in found}


def each_mask(
    weights: Mapping[str, Array], choice: Choice, rng: np.random.Generator, layouts: Mapping[str, Layout]
) -> Iterator[tuple[str, BoolArray]]:
    """The masks one after the other, of the layouts' shapes; each tensor is read when it is needed, and not kept."""

    def scores(name: str) -> Array:
        return unit_scores(weights[name], layouts[name], choice)

    shared = math.nan
    if choice.scope == "global" and not choice.pattern:
        shared = threshold(lambda: map(scores, weights), choice.sparsity)
    for name in weights:
        layout = layouts[name]
        if choice.pattern:
            leaves = _beside_largest(unit_scores(weights[name], layout, choice), layout, *choice.kept_of)
        else:
            values = scores(name)
            limit = shared if choice.scope == "global" else threshold(partial(iter, [values]), choice.sparsity)
            leaves = values < np.float64(limit)
        if choice.bernoulli < 1:
            leaves &= rng.random(leaves.shape) < choice.bernoulli
        yield name, np.broadcast_to(~leaves, layout.shape)


def unit_scores(values: Array, layout: Layout, choice: Choice) -> Array:
    """Score of each element, kernel or filter: float32 or float64, of the layout's shape with 1 for axes summed over."""
    wide = values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)
    magnitude: Array = np.abs(wide).reshape(layout.shape)
    axes = layout.axes(GRANULARITIES[choice.granularity])
    if choice.normalise == "layer":
        magnitude = magnitude / (math.sqrt(np.square(magnitude, dtype=np.float64).sum()) or 1.0)
    if choice.granularity == "element":
        return magnitude
    total: Array = magnitude.sum(axis=axes, dtype=np.float64, keepdims=True)
    size = math.prod(layout.shape[axis] for axis in axes)
    return np.asarray(total / max(size, 1) if choice.normalise == "mean" else total)


def threshold(scores: Callable[[], Iterable[Array]], share: float) -> float:
    """The score below which a share of all lies: number ``int(share * n)`` of them in ascending order, from 0.

    Infinity for all of them. Exact also where they are too many to be held in memory: they are non-negative, so that their
    bits rise with them, and a histogram of the leading bits tells which of them to look at.

    Args:
        scores: gives them array by array, each time it is called.
    """
    total = sum(part.size for part in scores())
    rank = int(share * total)
    if rank >= total:
        return math.inf
    prefix, known, held = np.uint64(0), 0, total
    while held > _COLLECTED and known < 64:
        shift = np.uint64(48 - known)
        counts = np.zeros(1 << 16, np.int64)
        for bits in _with_prefix(scores(), prefix, known):
            counts += np.bincount(((bits >> shift) & np.uint64(0xFFFF)).astype(np.int64), minlength=1 << 16)
        digit = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
        rank -= int(counts[:digit].sum())
        prefix, known, held = (prefix << np.uint64(16)) | np.uint64(digit), known + 16, int(counts[digit])
    if known == 64:
        return float(np.array(prefix).view(np.float64))
    left = np.concatenate(list(_with_prefix(scores(), prefix, known)))
    return float(np.partition(left, rank)[rank].view(np.float64))


def _with_prefix(scores: Iterable[Array], prefix: np.uint64, known: int) -> Iterator[npt.NDArray[np.uint64]]:
    """The bits of those scores that begin with the first ``known`` bits of a float64."""
    for part in scores:
        bits = np.ascontiguousarray(part, np.float64).reshape(-1).view(np.uint64)
        yield bits[bits >> np.uint64(64 - known) == prefix] if known else bits


def _beside_largest(scores: Array, layout: Layout, kept: int, group: int) -> BoolArray:
    """Which elements are not among the ``kept`` largest of their ``group`` along the inputs; of equals, the first stay."""
    axes = layout.axes("i")
    leaves = np.zeros(layout.shape, np.bool_)
    if not axes:
        return leaves
    moved, target = np.moveaxis(scores, axes[-1], -1), np.moveaxis(leaves, axes[-1], -1)
    whole = moved.shape[-1] // group * group
    rows = moved[..., :whole].reshape(*moved.shape[:-1], -1, group)
    order = np.argsort(-rows, axis=-1, kind="stable")
    out = np.zeros(rows.shape, np.bool_)
    np.put_along_axis(out, order[..., kept:], True, axis=-1)
    target[..., :whole] = out.reshape(*moved.shape[:-1], whole)
    return leaves
