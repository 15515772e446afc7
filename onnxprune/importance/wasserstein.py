"""Wasserstein: how far apart a unit's outputs are for different classes (FAIR-Pruner's utilization score)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.importance.calibration import Calibration
from onnxprune.importance.measured import Measured
from onnxprune.importance.scene import Scene
from onnxprune.importance.views import View, combined, views
from onnxprune.labels import BoolArray, IntArray
from onnxprune.weights import Array

DIRECTIONS = (64, 128)
"""Onto how many directions sequences are projected, and maps of two axes or more; FAIR-Pruner's numbers."""

MEMORY = 1 << 30
"""Bytes of projected outputs that are kept; where that is not enough, the samples are run several times."""


class Wasserstein(Measured):
    """The largest distance of a unit's outputs between any two classes: the first order Wasserstein distance.

    Units that give one number are compared exactly, others by their projections onto random unit vectors (sliced). Low means
    that the unit can't tell any two classes apart. Each class is represented by ``samples`` of its samples at most. What is
    looked at is the layer's own output, before normalisation and activation, or what else ``analysis`` says. A group that is
    looked at in several tensors has the mean of its scores there, each divided by their mean.

    FAIR-Pruner (Lin et al. 2025); sliced: Bonneel et al. 2015.
    """

    name = "wasserstein"

    def measure(self, scene: Scene) -> list[Scores]:
        """Float64 (channels,) for each group."""
        calibration = scene.calibration(self.name)
        rows = self._rows(calibration.labels, calibration.classes(self.name))
        labels = calibration.labels[rows]
        parts = [part for view in views(scene, self.options.analysis) for part in _parted(view, len(rows))]
        found: dict[tuple[int, str], list[Scores]] = {}
        for portion in _portions(parts, len(rows)):
            for view, points in zip(portion, self._points(calibration, portion, rows), strict=True):
                found.setdefault((view.number, view.tensor), []).append(distances(points, labels))
        return combined(scene, self.name, {key: np.concatenate(scores) for key, scores in found.items()})

    def _rows(self, labels: IntArray, kinds: IntArray) -> IntArray:
        """Some samples of each class, at random."""
        rng = np.random.default_rng(self.options.seed)
        return np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == k))[: self.options.samples] for k in kinds]))

    def _points(self, calibration: Calibration, looked_at: Sequence[View], rows: IntArray) -> list[Array]:
        """The projections of each view, float32 (channels, directions, rows)."""
        found: list[Array] = []
        ways: list[Array] = []
        start = 0
        for batch in calibration.read([view.tensor for view in looked_at], rows):
            stop = start + len(batch.rows)
            for k, view in enumerate(looked_at):
                values = view.of(batch.tensors[view.tensor])
                if not start:
                    ways.append(self.directions(view, values.shape[2:]))
                    found.append(np.empty((values.shape[1], ways[k].shape[1], len(rows)), np.float32))
                flat = values.reshape(*values.shape[:2], -1).astype(np.float32, copy=False)
                found[k][..., start:stop] = np.moveaxis(flat if flat.shape[2] == 1 else flat @ ways[k], 0, -1)
            start = stop
        return found

    def directions(self, view: View, shape: Sequence[int]) -> Array:
        """Random unit vectors for what a channel has in a sample, float32 (numbers, directions)."""
        size, sides = int(np.prod(shape)), sum(n > 1 for n in shape)
        rng = np.random.default_rng([self.options.seed, zlib.crc32(view.tensor.encode())])
        drawn = rng.standard_normal((size, DIRECTIONS[sides > 1] if sides else 1))
        return np.asarray(drawn / np.linalg.norm(drawn, axis=0), np.float32)


def _parted(view: View, samples: int) -> list[View]:
    """A view of so many channels at a time that memory holds the projections of several."""
    count = -(-len(view.places) * samples * 4 * max(DIRECTIONS) * 4 // MEMORY)
    return [replace(view, places=places) for places in np.array_split(view.places, min(count, len(view.places)))]


def _portions(parts: Sequence[View], samples: int) -> Iterator[list[View]]:
    """As many views together as memory holds the projections of."""
    portion: list[View] = []
    for part in parts:
        if portion and (sum(len(view.places) for view in portion) + len(part.places)) * samples * 4 * max(DIRECTIONS) > MEMORY:
            yield portion
            portion = []
        portion.append(part)
    if portion:
        yield portion


def distances(points: Array, labels: IntArray) -> Scores:
    """The largest distance of any two classes, float64 (channels,); NaN where a point is not finite.

    Args:
        points: (channels, directions, samples). labels: int (samples,).

    Classes of as many samples are compared sample by sample, in order of size; of others, as many quantiles of both as the
    larger one has samples, between which it is interpolated.
    """
    parts = [np.sort(points[..., labels == kind], axis=-1) for kind in np.unique(labels)]
    sizes = np.array([part.shape[-1] for part in parts])
    found = np.where(np.isfinite(points).all(axis=(1, 2)), 0.0, np.nan)
    for size in np.unique(sizes):
        compared = [part if part.shape[-1] == size else quantiles(part, size) for part in parts if part.shape[-1] <= size]
        for channel in np.flatnonzero(found >= 0):
            vectors = np.stack([part[channel].ravel() for part in compared])
            found[channel] = max(found[channel], widest(vectors, sizes[sizes <= size] == size))
    return found


def quantiles(part: Array, count: int) -> Array:
    """Quantiles 0 to 1 of sorted values (..., samples) at equal distances, (..., count)."""
    at = np.linspace(0, part.shape[-1] - 1, count)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, part.shape[-1] - 1)
    return np.asarray(part[..., low] + (part[..., high] - part[..., low]) * (at - low), part.dtype)


def widest(points: Array, own: BoolArray) -> float:
    """The largest mean absolute difference of two points (points, numbers), one of which at least is ``own``.

    No two are further apart than their distances from the middle together, so that most are never compared.
    """
    far = np.abs(points - points.mean(axis=0)).mean(axis=1)
    order = np.argsort(-far, kind="stable")
    best = 0.0
    for place, k in enumerate(order):
        others = order[place + 1 :]
        others = others[(far[others] + far[k] > best) & (own[others] | own[k])]
        if len(others):
            best = max(best, float(np.abs(points[others] - points[k]).mean(axis=1).max()))
    return best
