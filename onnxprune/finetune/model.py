"""A model in training, and the one it learns from: batches through onnxruntime, the weights fed at every step."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.data import BATCH, Dataset, fixed_batch
from onnxprune.finetune.trainable import Training
from onnxprune.gradient import LOSS
from onnxprune.lazy import LazyModel
from onnxprune.runtime import Session, tapped
from onnxprune.structure import Port
from onnxprune.weights import Array

PARTS = 4
"""Into how many parts a batch is cut, each computed on one thread, since small products gain little from several. It is the
same on every machine, so that a seed gives the same model."""

WORKERS = min(PARTS, os.cpu_count() or 1)
"""Parts that are computed at the same time."""

_PART = 16
"""Samples of a batch that are not worth parting."""

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Original:
    """The model that is learned from. ``names``: the outputs that are learned."""

    def __init__(self, session: Session, ports: Sequence[Port], names: Sequence[str]) -> None:
        self._session, self._batch, self._names = session, fixed_batch(ports), list(names)

    def __call__(self, data: Dataset) -> dict[str, Array]:
        """What it says about samples, by output."""
        parts = [data.take(rows).inputs for rows in portions(data.samples, self._batch)]
        found = at_once(lambda feeds: self._session.run(feeds, self._names), parts)
        return {name: np.concatenate(column)[: data.samples] for name, *column in zip(self._names, *found, strict=True)}


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples with what the original says about them, by output; without an original, nothing."""

    data: Dataset
    targets: Mapping[str, Array]

    def take(self, rows: Rows) -> Samples:
        """Some of them."""
        return Samples(self.data.take(rows), {name: values[rows] for name, values in self.targets.items()})


class Model:
    """The model in training. ``weights``: by tensor, changed in place."""

    def __init__(self, made: Training, ports: Sequence[Port], weights: dict[str, Array], outputs: Sequence[str]) -> None:
        self.weights, self._gradient, self._batch = weights, made.gradient, fixed_batch(ports)
        self._names = {name: made.gradient.outputs[name] for name in made.names}
        self._training = Session(made.gradient.model)
        self._forward = Session(tapped(LazyModel(made.gradient.model, {}), [LOSS, *outputs], only=True).complete())

    def gradients(self, samples: Samples) -> tuple[float, dict[str, Array]]:
        """The mean loss of some samples, and its derivatives by the weights."""
        parts = list(self._feeds(samples, self.weights))
        found = at_once(lambda part: self._training.run(part[0], [LOSS, *self._names.values()]), parts)
        columns = list(zip(*found, strict=True))
        slopes = {name: functools.reduce(np.add, column) for name, column in zip(self._names, columns[1:], strict=True)}
        return _mean(columns[0], parts), slopes

    def measure(self, samples: Samples, weights: Mapping[str, Array] | None = None) -> tuple[float, list[Array]]:
        """The mean loss of some samples, and the model's outputs for them."""
        parts = list(self._feeds(samples, self.weights if weights is None else weights))
        losses, *columns = zip(*at_once(lambda part: self._forward.run(part[0]), parts), strict=True)
        return _mean(losses, parts), [np.concatenate(column)[: samples.data.samples] for column in columns]

    def _feeds(self, samples: Samples, weights: Mapping[str, Array]) -> Iterator[tuple[dict[str, Array], Floats]]:
        """What goes into each run, and the shares of its samples in the mean, 0 for padding."""
        count = samples.data.samples
        for rows in portions(count, self._batch):
            part = samples.take(rows)
            shares = np.where(np.arange(rows[0], rows[0] + len(rows)) < count, 1 / count, 0.0)
            given = self._gradient.feeds(part.data.inputs, part.data.labels, weights=shares, targets=part.targets)
            yield {**given, **weights}, shares


def portions(count: int, fixed: int | None) -> list[Rows]:
    """Numbers of samples that go through a model together: ``fixed`` many, the last repeated, or a part of them."""
    size = fixed or min(BATCH, max(_PART, -(-count // PARTS)))
    ends = (start + size if fixed else min(start + size, count) for start in range(0, count, size))
    return [np.minimum(np.arange(start, end), count - 1) for start, end in zip(range(0, count, size), ends, strict=True)]


def at_once(run: Callable[[Any], list[Any]], parts: Sequence[Any]) -> list[list[Any]]:
    """What becomes of each part, in their order; several are worked on at the same time."""
    if len(parts) == 1 or WORKERS == 1:
        return [run(part) for part in parts]
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(run, parts))


def _mean(losses: Sequence[Array], parts: Sequence[tuple[Any, Floats]]) -> float:
    return sum(float(loss.astype(np.float64) @ shares) for loss, (_, shares) in zip(losses, parts, strict=True))
