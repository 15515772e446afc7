"""Moving made-up inputs to where a model recognises something in them, so that all its classes occur."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.errors import ModelError
from onnxprune.gradient import LOSS, GradientGraph, differentiate
from onnxprune.importance.first import FirstLayer
from onnxprune.runtime import Session
from onnxprune.weights import FLOATS, Array

Feeds = dict[str, Array]
Interval = tuple[float, float]

STEPS = 6
"""In how many steps inputs are moved."""

SHIFT = 4
"""By how many pixels pictures are shifted at most while the gradient is taken, so that it does not hang on single ones."""


class Pull:
    """Moves each input downhill in the cross-entropy with a class that is drawn for it.

    A step is as long as the class is improbable: what is recognised stays as it is, which keeps inputs from growing into
    adversarial ones. What a first layer's pictures do not have, fine grain, is taken out of the gradient: this is the steepest
    descent under the prior that their spectrum is. Compare DeepInversion (Yin et al. 2020, arXiv:1912.08795), which starts
    from noise, takes thousands of steps, and needs the statistics of batch normalisation.
    """

    def __init__(self, graph: GradientGraph, pictures: Mapping[str, FirstLayer], batch: int | None) -> None:
        self.session, self.graph, self.pictures, self.batch = Session(graph.model), graph, pictures, batch

    @classmethod
    def of(cls, coupling: Coupling, pictures: Mapping[str, FirstLayer]) -> Pull | None:
        """For a classifier whose gradient is known, some of whose inputs are ``pictures`` to these layers; else None."""
        ports = coupling.graph.inputs
        floats = [p.name for p in ports if p.elem_type in FLOATS]
        batches = {0 if not p.shape else p.shape[0] if isinstance(p.shape[0], int) else None for p in ports}
        if not floats or len(batches) > 1 or 0 in batches:
            return None
        try:
            graph = differentiate(coupling.graph, coupling.shapes, "cross-entropy", floats)
            return cls(graph, pictures, batches.pop())
        except ModelError:
            return None

    def pulled(self, feeds: Feeds, lengths: Mapping[str, float], limits: Interval | None, rng: np.random.Generator) -> Feeds:
        """Inputs after all steps; as they were where the model does not run on them.

        Args:
            feeds: arrays by input, all with samples in front.
            lengths: root mean square of how far each float input is moved at most in all, in its own units.
            limits: within which float inputs stay.
        """
        found, samples = dict(feeds), len(next(iter(feeds.values())))
        labels = rng.integers(self.graph.classes, size=samples)
        for _ in range(STEPS):
            shifts = {n: rng.integers(-SHIFT, SHIFT + 1, layer.dimensions) for n, layer in self.pictures.items()}
            moved = found | {n: self._shifted(n, found[n], by) for n, by in shifts.items()}
            try:
                loss, *slopes = self._slopes(moved, labels)
            except ModelError:
                return feeds
            share = -np.expm1(-np.maximum(np.asarray(loss, np.float64), 0))
            for name, slope in zip(map(str, self.graph.outputs), slopes, strict=True):
                change = np.asarray(slope, np.float32)
                if name in shifts:
                    change = self._shifted(name, change, -shifts[name])
                    change = self.pictures[name].smoothed(change.reshape(-1, self.pictures[name].size)).reshape(change.shape)
                each = (samples, *[1] * (change.ndim - 1))
                size = np.sqrt(np.mean(np.square(change), axis=tuple(range(1, change.ndim)), keepdims=True)) + 1e-20
                step = lengths[name] / STEPS * share.reshape(each) * change / size
                found[name] = np.clip(found[name] - step, *(limits or (None, None))).astype(feeds[name].dtype)
        return found

    def _slopes(self, feeds: Feeds, labels: Array) -> list[Array]:
        """The losses (samples,) and their derivatives by each float input, from as many samples at a time as the model takes."""
        size = self.batch or len(labels)
        parts = []
        for start in range(0, len(labels), size):
            here = slice(start, start + size)
            given = self.graph.feeds({n: v[here] for n, v in feeds.items()}, labels[here])
            parts.append(self.session.run(given, [LOSS, *self.graph.outputs.values()]))
        return [np.concatenate(found) for found in zip(*parts, strict=True)]

    def _shifted(self, name: str, values: Array, by: Array) -> Array:
        layer = self.pictures[name]
        return layer.shifted(values.reshape(-1, layer.size), by).reshape(values.shape).astype(values.dtype)
