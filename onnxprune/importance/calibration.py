"""A model on the data that a user gives: its activations, and the gradients of its loss, for all layers in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.data import BATCH, Dataset, fixed_batch
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.evaluate.accuracy import check_range, classes, find_scores, predict
from onnxprune.gradient import LOSS, GradientGraph, Wrt, differentiate
from onnxprune.labels import IntArray
from onnxprune.lazy import AnyModel
from onnxprune.runtime import Session, tapped
from onnxprune.weights import Array

MEMORY = 1 << 28
"""Bytes of activations that one run may give out; fewer samples are run at a time where they are large."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What was read of some samples.

    ``rows``: int (samples,), their numbers in the data. ``tensors``: activations by name, (samples, *shape), where the shape
    is that of the model's tensor for one sample, whose own axis of samples is still there: axis ``a`` of the tensor is axis
    ``a + 1`` here. ``slopes``: the derivatives of the samples' losses: by an activation of the same form; by a :class:`Gate` or
    a stored tensor as :class:`~onnxprune.gradient.GradientGraph` says, padding being zero; ``losses`` (samples,).
    """

    rows: IntArray
    tensors: Mapping[str, Array]
    slopes: Mapping[Wrt, Array]
    losses: Array


class Calibration:
    """Runs a model on data, in batches as large as it takes; nothing is kept of them here.

    ``notes``: what a user should know of how it was done.
    """

    def __init__(self, coupling: Coupling, data: Dataset) -> None:
        self.coupling, self.graph, self.data = coupling, coupling.graph, data
        self.notes: list[str] = []

    @cached_property
    def labels(self) -> IntArray:
        """The class of each sample, int64 (samples,): the data's labels, or else what the model itself predicts.

        Raises:
            UsageError: there are no labels, and the model is no classifier.
            DataError: a label is larger than the classes of the model.
        """
        if self.data.labels is not None:
            check_range(self.data.labels, find_scores(self._outputs))
            return self.data.labels
        predicted = classes(self._outputs)
        if predicted is None:
            raise UsageError(
                "the data have no labels, and no output of the model has the shape (samples, classes) to take them from; "
                "add an array 'labels' to --data"
            )
        self.notes.append("the data have no labels: the classes that the model itself predicts stand in for them")
        return predicted

    @cached_property
    def _outputs(self) -> list[Array]:
        """Of all samples, or where these have labels of a few."""
        data = self.data if self.data.labels is None else self.data.take(slice(0, BATCH))
        return predict(self.graph.assemble().ready(), data, self.graph.inputs)

    def classes(self, criterion: str) -> IntArray:
        """The classes that there are samples of, sorted.

        Raises:
            DataError: there is only one, which leaves nothing to compare.
        """
        found = np.unique(self.labels)
        if len(found) < 2:
            raise DataError(
                f"criterion {criterion!r} compares classes, but all {len(self.labels)} samples are of class {found[0]}; "
                "give samples of at least two"
            )
        return found

    def read(self, tensors: Sequence[str], rows: IntArray | None = None) -> Iterator[Batch]:
        """The activations of some tensors, of all samples or of some (int, their numbers).

        Raises:
            ModelError: the model does not run, or a tensor has no axis of samples.
        """
        tensors = list(dict.fromkeys(tensors))
        run = _Run(self, tapped(self.graph.assemble(), tensors, only=True).ready(), tensors, tensors)
        for here, found in run.batches(rows):
            yield Batch(here, found, {}, np.zeros(len(here)))

    def graded(self, wrt: Sequence[Wrt], *, loss: str = "cross-entropy", **options: Any) -> GradientGraph:
        """The model that computes a loss of its samples (by default cross-entropy with their labels), and its derivatives.

        Args:
            wrt: activations, stored tensors, and gates on the channels of activations.
            options: ``fed`` and ``also``, as in :func:`~onnxprune.gradient.differentiate`.

        Raises:
            GradientError: a node on the way has no rule.
        """
        scores = find_scores(self._outputs)
        probabilities = scores is not None and scores.probabilities
        return differentiate(self.graph, self.coupling.shapes, loss, wrt, probabilities=probabilities, **options)

    def differentiate(
        self,
        wrt: Sequence[Wrt],
        also: Sequence[str] = (),
        rows: IntArray | None = None,
        *,
        loss: str = "cross-entropy",
    ) -> Iterator[Batch]:
        """The derivatives of each sample's loss, and the activations ``also``.

        Raises:
            GradientError: as in :meth:`graded`.
            ModelError: as in :meth:`read`.
        """
        wrt, also = list(dict.fromkeys(wrt)), list(dict.fromkeys(also))
        graph = self.graded(wrt, loss=loss, also=also)
        names = {w: graph.outputs[w] for w in wrt}
        activations = [n for w, n in names.items() if isinstance(w, str) and w not in self.graph.weights]
        run = _Run(self, graph.model, [LOSS, *also, *names.values()], [*also, *activations], graph)
        for here, found in run.batches(rows):
            tensors = {name: found[name] for name in also}
            yield Batch(here, tensors, {w: found[name] for w, name in names.items()}, found[LOSS][: len(here)])

    def loss_of(self, tensors: Sequence[str], rows: IntArray) -> Callable[[Mapping[str, Array]], float]:
        """The sum of some samples' losses as a function of some stored tensors, given by name.

        Raises:
            GradientError: the loss does not fit the model.
        """
        graph = self.graded([], fed=tensors)
        run = _Run(self, graph.model, [LOSS], [], graph)
        return lambda stored: float(
            sum(found[LOSS][: len(here)].sum(dtype=np.float64) for here, found in run.batches(rows, stored))
        )


class _Run:
    """A session on a calibration's data; ``apart``: the outputs that are given sample by sample.

    ``graph``: where losses are asked for.
    """

    def __init__(
        self,
        of: Calibration,
        model: AnyModel,
        outputs: Sequence[str],
        apart: Sequence[str],
        graph: GradientGraph | None = None,
    ) -> None:
        self._of, self._outputs, self._apart, self._graph = of, list(outputs), apart, graph
        self._session = Session(model, threads=2)
        self._fixed = fixed_batch(of.graph.inputs)

    def batches(
        self, rows: IntArray | None, fed: Mapping[str, Array] | None = None
    ) -> Iterator[tuple[IntArray, dict[str, Array]]]:
        """Which samples, and the outputs by name, the real samples in front. ``fed``: stored tensors that are inputs."""
        rows = np.arange(self._of.data.samples) if rows is None else rows
        axes, step = self._form(rows) if self._apart else ({}, self._fixed or BATCH)
        for start in range(0, len(rows), step):
            here = rows[start : start + step]
            size = self._fixed or len(here)
            found = self._run(np.append(here, here[-1:].repeat(size - len(here))), len(here), fed or {})
            yield here, found | {name: _by_sample(found[name], axis, size)[: len(here)] for name, axis in axes.items()}

    def _form(self, rows: IntArray) -> tuple[dict[str, int | None], int]:
        """The axis of samples of each output that is given by sample, and how many samples to run at a time."""
        one, two = (self._run(np.resize(rows, n), n, {}) for n in (self._fixed or 1, self._fixed or 2))
        axes = {name: self._axis(name, one[name].shape, two[name].shape) for name in self._apart}
        most = MEMORY // max(1, sum(one[name].nbytes for name in axes))
        return axes, self._fixed or max(1, min(BATCH, most))

    def _run(self, rows: IntArray, real: int, fed: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for some samples, of which the first so many are real."""
        feeds = {name: values[rows] for name, values in self._of.data.inputs.items()} | dict(fed)
        if self._graph is not None:
            labels = self._of.labels[rows] if self._graph.needs_labels else None
            feeds = self._graph.feeds(feeds, labels, weights=np.arange(len(rows)) < real)
        return dict(zip(self._outputs, map(np.asarray, self._session.run(feeds, self._outputs)), strict=True))

    def _axis(self, name: str, one: tuple[int, ...], two: tuple[int, ...]) -> int | None:
        """The axis of samples: the first that doubles when these do; where they can't, the first that they divide."""
        if self._fixed == 1:
            return None
        for axis, (size, twice) in enumerate(zip(one, two, strict=True)):
            if (twice == 2 * size > 0) if self._fixed is None else (size % self._fixed == 0):
                return axis
        raise ModelError(f"tensor {name!r} has no axis of samples, so that nothing can be measured on it; --freeze its layer")


def _by_sample(values: Array, axis: int | None, samples: int) -> Array:
    """A tensor with samples in front, and their own axis left as it is for one of them; None: it is of one."""
    if axis is None:
        return values[None]
    moved = np.moveaxis(values, axis, 0)
    return np.moveaxis(moved.reshape(samples, -1, *moved.shape[1:]), 1, axis + 1)
