"""Input gradients of any model by finite differences, in a number of forward passes that is known beforehand.

Central differences of the label's log-odds, ``(m(x + h u) - m(x - h u)) / 2h``. The directions u are the input's coordinates;
where these are too many for the budget, blocks of neighbouring coordinates, each moved as one. (Antithetic random directions
need as many passes. With a quarter to 1/64 of them, attacks were much weaker than with blocks on MNIST and on a robustly
trained CIFAR-10 network, and as strong, or a little stronger, on two ordinary CIFAR-10 networks.)

Where the network has a kink right at a sample (equal values under a max-pool, as in an image's plain background), a central
difference is the mean of both sides, while automatic differentiation takes one of them: there the signs differ, and the
attack is as strong as that of exact gradients averaged over the ways to break the ties, or a little stronger than one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.errors import ModelError
from onnxprune.evaluate.accuracy import Labels
from onnxprune.evaluate.classifier import Classifier
from onnxprune.weights import Array

_TRIED = (8, 32)
"""Samples and directions on which the step is chosen."""

_STEPS = 1e-5, 1e-3, 3e-2
"""The smallest step, the one that is tried, and the largest, as shares of the input's range."""

_DIGITS = 32
"""Roundings of the scores that a large difference should amount to: a longer step only meets more kinks."""

_WINDOW = 1024, 1 << 21
"""Rows whose margins are computed at once, and how many coordinates may be moved in them."""

_THREADS = min(8, os.cpu_count() or 1)
"""Stacks of samples that go through the model at the same time."""

Progress = Callable[[str], None]
Derivatives = npt.NDArray[np.float32]
_Members = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Blocks:
    """An input's coordinates in blocks of neighbours; ``grid`` says into how many parts each axis of ``shape`` is cut.

    ``members``: flat coordinates ``(blocks, largest block)``, where a smaller block repeats its last one. ``of``: the block
    of each coordinate.
    """

    shape: tuple[int, ...]
    grid: tuple[int, ...]
    members: npt.NDArray[np.intp]
    of: npt.NDArray[np.intp]

    @property
    def whole(self) -> bool:
        """Whether each coordinate is a block of its own."""
        return self.grid == self.shape


def partition(shape: Sequence[int], count: int) -> Blocks:
    """Cut an input into at most ``count`` blocks (but one), as finely along each axis as its size allows."""
    grid = list(shape)
    while math.prod(grid) > max(count, 1):
        grid[max(range(len(grid)), key=lambda axis: (grid[axis], shape[axis]))] -= 1
    of = np.zeros(tuple(shape), np.intp)
    for axis, (size, parts) in enumerate(zip(shape, grid, strict=True)):
        place = np.arange(size) * parts // size
        of = of * parts + place.reshape(-1, *(1,) * (len(shape) - axis - 1))
    of = of.ravel()
    sizes = np.bincount(of)
    order, starts = np.argsort(of, kind="stable"), np.cumsum(sizes) - sizes
    members = order[starts[:, None] + np.minimum(np.arange(sizes.max()), sizes[:, None] - 1)]
    return Blocks(tuple(shape), tuple(grid), members, of)


def trial(samples: int, blocks: Mapping[str, Blocks]) -> int:
    """Forward passes with which the step is chosen, at most."""
    return min(_TRIED[0], samples) * (1 + 2 * min(_TRIED[1] + len(blocks), sum(len(b.members) for b in blocks.values())))


class Differences:
    """The gradient of minus the label's log-odds, estimated along each block of the attacked inputs.

    Args:
        inputs: all inputs of the model, ``(samples, ...)`` by name, and ``labels``: where the step is chosen.
        ranges: how far the values of each attacked input spread; steps are shares of it.
        progress: called with a few words after each stack of passes.

    Raises:
        ModelError: the model does not run, or gives NaN.
    """

    def __init__(
        self,
        model: Classifier,
        inputs: Mapping[str, Array],
        labels: Labels,
        blocks: Mapping[str, Blocks],
        ranges: Mapping[str, float],
        *,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._blocks, self._tell = model, blocks, progress or (lambda done: None)
        self._members = {name: b.members for name, b in blocks.items()}
        self._steps = _steps(model, inputs, labels, self._members, ranges)

    def __call__(self, inputs: Mapping[str, Array], labels: Labels, step: int = 0) -> dict[str, Derivatives]:
        """By attacked input, ``(samples, values)``: in each block the mean of its partial derivatives.

        Raises:
            ModelError: the model does not run, or gives NaN.
        """
        sums = _along(self._model, inputs, labels, self._members, self._steps, self._tell)
        sizes = {name: np.bincount(b.of).astype(np.float32) for name, b in self._blocks.items()}
        return {name: (-found / sizes[name])[:, self._blocks[name].of] for name, found in sums.items()}


def _steps(
    model: Classifier, inputs: Mapping[str, Array], labels: Labels, members: Mapping[str, _Members], ranges: Mapping[str, float]
) -> dict[str, float]:
    """How far to go along each input: as far as rounding of the scores demands, but no further, because of kinks.

    Tried on some samples and directions. The difference grows with the step, the rounding does not; three quarters of the
    differences may be smaller than the one that is held against it.
    """
    least, tried, most = _STEPS
    rows = np.unique(np.linspace(0, len(labels) - 1, _TRIED[0]).astype(np.int64))
    part = {name: values[rows] for name, values in inputs.items()}
    every = -(-sum(map(len, members.values())) // _TRIED[1])
    some = {name: blocks[::every] for name, blocks in members.items()}
    trial = {name: tried * spread for name, spread in ranges.items()}
    slopes = _along(model, part, labels[rows], some, trial, lambda done: None)
    clean = model.of(inputs, rows)
    size = np.maximum(np.abs(clean.values).max(axis=1).astype(np.float64), np.abs(clean.log_odds(labels[rows])))
    rounding = max(np.finfo(clean.values.dtype).eps, np.finfo(np.float32).eps) * size
    told = [np.abs(slopes[name]) * (2 * trial[name]) / rounding[:, None] for name in slopes]
    large = float(np.quantile(np.concatenate(told, axis=1), 0.75))
    share = min(max(tried * _DIGITS / large, least), most) if large > 0 else most
    return {name: max(share * spread, 4 * _unit(inputs[name])) for name, spread in ranges.items()}


def _unit(values: Array) -> float:
    """The distance between numbers of the size of an input's values."""
    return float(np.finfo(values.dtype).eps * max(np.abs(values).max(), np.finfo(values.dtype).tiny))


def _along(
    model: Classifier,
    inputs: Mapping[str, Array],
    labels: Labels,
    members: Mapping[str, _Members],
    steps: Mapping[str, float],
    tell: Progress,
) -> dict[str, Derivatives]:
    """Central differences over stacks of samples, which are changed in place; as many at the same time as there are cores."""
    directions = sum(map(len, members.values()))
    total = 2 * len(labels) * directions
    size, unit = model.rows(inputs), model.batch or 1
    widest: int = max(blocks.shape[1] for blocks in members.values())
    window = size * max(1, min(_WINDOW[0], _WINDOW[1] // widest) // size)
    source = {name: values.reshape(len(values), -1) for name, values in inputs.items()}
    first = dict(zip(members, np.cumsum([0, *map(len, members.values())]).tolist(), strict=False))
    found = np.empty(total // 2, np.float32)
    free = [{name: np.empty((size, *v.shape[1:]), v.dtype) for name, v in inputs.items()} for _ in range(_THREADS)]

    def work(start: int) -> int:
        real = min(window, total - start)
        place = np.minimum(np.arange(start, start - (-real // unit) * unit), total - 1)
        sample, direction = place // (2 * directions), place % (2 * directions) // 2
        sign = 1.0 - 2.0 * (place % 2)
        stack, parts, moves = free.pop(), [], {}
        for name, blocks in members.items():
            block = direction - first[name]
            here = (block >= 0) & (block < len(blocks))
            row = np.arange(len(place)) % size * source[name].shape[1]
            move = np.where(here, steps[name] * sign, 0).astype(source[name].dtype)
            moves[name] = row[:, None] + blocks[np.where(here, block, 0)], move[:, None]
        for begin in range(0, len(place), size):
            rows = slice(begin, begin + size)
            used = {name: values[: len(place) - begin] for name, values in stack.items()}
            for name, values in source.items():
                np.take(values, sample[rows], axis=0, out=used[name].reshape(-1, values.shape[1]), mode="clip")
            for name, (where, move) in moves.items():
                stack[name].reshape(-1)[where[rows]] += move[rows]
            parts.append(model.run(used))
        free.append(stack)
        margins = model.scores(np.concatenate(parts)).log_odds(labels[sample])[:real]
        found[start // 2 : (start + real) // 2] = margins[::2] - margins[1::2]
        return start + real

    pool = ThreadPoolExecutor(_THREADS)
    try:
        for done in pool.map(work, range(0, total, window)):
            tell(f"gradient: {done:,} of {total:,} forward passes")
    finally:
        pool.shutdown(cancel_futures=True)
    if np.isnan(found).any():
        raise ModelError("the model gives NaN near some samples, so that it has no gradient there; evaluate without an attack")
    parts = np.split(found.reshape(len(labels), -1), np.cumsum([len(b) for b in members.values()])[:-1], axis=1)
    return {name: part / np.float32(2 * steps[name]) for name, part in zip(members, parts, strict=True)}
