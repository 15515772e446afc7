"""Accuracy and loss on labelled data, agreement with another model on any data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.data import Dataset
from onnxprune.errors import DataError, ModelError
from onnxprune.lazy import AnyModel
from onnxprune.runtime import Session
from onnxprune.structure import Port
from onnxprune.weights import Array

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_SUM = 1e-2
"""How far the sum of a row of probabilities may be from one: they may have been rounded to 8 or 16 bits."""


def measure(models: tuple[AnyModel, AnyModel], data: Dataset, ports: Sequence[Port], *, loss: bool = False) -> dict[str, Any]:
    """How two models do on the same data.

    Args:
        loss: also give the cross-entropy.

    Returns:
        ``accuracy`` (and ``loss``) of both where there are labels, ``agreement`` where they are classifiers,
        ``relative_error``.
    """
    one, other = (predict(model, data, ports) for model in models)
    found: dict[str, Any] = {}
    if data.labels is not None:
        found["accuracy"] = [accuracy(one, data.labels), accuracy(other, data.labels)]
        losses = [cross_entropy(s, data.labels) for s in map(find_scores, (one, other)) if s is not None]
        if loss and len(losses) == 2:
            found["loss"] = losses
    alike = agreement(one, other)
    if alike is not None:
        found["agreement"] = alike
    return found | {"relative_error": relative_error(one, other)}


def predict(model: AnyModel | Session, data: Dataset, ports: Sequence[Port]) -> list[Array]:
    """Outputs for all samples, one array per output that has the samples on its first axis."""
    session = model if isinstance(model, Session) else Session(model, threads=2)
    parts: list[list[Array | None]] = []
    for feeds, real in data.batches(ports):
        size = len(next(iter(feeds.values())))
        parts.append([r[:real] if isinstance(r, np.ndarray) and r.ndim and len(r) == size else None for r in session.run(feeds)])
    columns = [[r for r in column if r is not None] for column in zip(*parts, strict=True)]
    return [np.concatenate(column) for column in columns if len(column) == len(parts)]


@dataclass(frozen=True, eq=False)
class Scores:
    """What a classifier says: ``values`` ``(samples, classes)``, two classes at least, larger means likelier.

    ``probabilities``: whether rows sum to one; otherwise they are logits.
    """

    values: Array
    probabilities: bool

    @property
    def classes(self) -> Labels:
        """The likeliest class of each sample."""
        return np.asarray(self.values.argmax(axis=1), np.int64)

    def take(self, rows: Labels) -> Scores:
        """Those of some samples."""
        return Scores(self.values[rows], self.probabilities)

    def best(self, k: int) -> Labels:
        """The ``k`` likeliest classes ``(samples, k)``, the likeliest first; of equals the one with the smaller number."""
        return np.argsort(-self.values.astype(np.float64), axis=1, kind="stable")[:, :k].astype(np.int64)

    def log_odds(self, labels: Labels) -> Floats:
        """Log of a label's probability over that of all other classes together, ``(samples,)``.

        Of logits z: z_y minus the log-sum-exp of the others. Of probabilities: log p_y minus the log of the *sum of the
        others*, which keeps its digits where 1 - p_y has none left. Unlike the cross-entropy, whose gradient it has but for
        a positive factor, it does not flatten where the network is sure. Probabilities below the smallest normal number
        of their type count as that.
        """
        values, rows = self.values.astype(np.float64), np.arange(len(labels))
        if self.probabilities:
            own = values[rows, labels]
            values[rows, labels] = 0.0
            least = np.finfo(self.values.dtype).tiny
            return np.asarray(np.log(np.maximum(own, least)) - np.log(np.maximum(values.sum(axis=1), least)))
        own = values[rows, labels]
        values[rows, labels] = -np.inf
        top = np.maximum(values.max(axis=1), np.finfo(np.float64).min)  # all others may be ruled out by minus infinity
        with np.errstate(divide="ignore"):
            return np.asarray(own - top - np.log(np.exp(values - top[:, None]).sum(axis=1)))


def scores(values: Array, probabilities: bool | None = None) -> Scores | None:
    """An output as a classifier's scores, or None where it does not look like that.

    Float ``(samples, classes)``, further axes of size one allowed. Float ``(samples, 1)``: probability or logit of class 1.

    Args:
        probabilities: whether it holds probabilities; by default it does if all rows lie in [0, 1] and sum to one.
    """
    flat = values.reshape(len(values), -1) if values.ndim > 1 and max(values.shape[2:], default=1) == 1 else values
    if flat.ndim != 2 or flat.dtype.kind != "f" or not flat.size:
        return None
    if probabilities is None:
        sums = flat.sum(axis=1, dtype=np.float64)
        whole = flat.shape[1] == 1 or bool(np.abs(sums - 1).max() <= _SUM)
        probabilities = whole and bool(flat.min() >= 0 and flat.max() <= 1)
    if flat.shape[1] == 1:
        flat = np.concatenate([1 - flat.astype(np.float64) if probabilities else np.zeros_like(flat), flat], axis=1)
    return Scores(flat, probabilities)


def find_scores(outputs: Sequence[Array]) -> Scores | None:
    """The first of some outputs that are a classifier's scores, and that the predicted classes follow."""
    found, predicted = next((s for s in map(scores, outputs) if s is not None), None), classes(outputs)
    return found if found is not None and predicted is not None and np.array_equal(found.classes, predicted) else None


def classes(outputs: Sequence[Array], probabilities: bool | None = None) -> Labels | None:
    """Predicted classes, or None where no output looks like a classifier's.

    Integer ``(samples,)``: the classes themselves. Otherwise the likeliest class, as :func:`scores` reads an output.
    """
    for values in outputs:
        flat = values.reshape(len(values), -1)
        if flat.shape[1] == 1 and flat.dtype.kind in "iu":
            return np.asarray(flat[:, 0], np.int64)
        found = scores(values, probabilities)
        if found is not None:
            return found.classes
    return None


def accuracy(outputs: Sequence[Array], labels: Labels) -> float:
    """Share of samples whose predicted class is the label.

    Raises:
        DataError: the model is no classifier, or has fewer classes than there are labels.
    """
    predicted = classes(outputs)
    if predicted is None:
        raise DataError("the data have labels, but no output of the model has the shape (samples, classes)")
    check_range(labels, find_scores(outputs))
    return float(np.mean(predicted == labels))


def check_range(labels: Labels, found: Scores | None) -> None:
    """Make sure that a classifier has a class for every label.

    Raises:
        DataError: it has not.
    """
    if found is not None and labels.max() >= found.values.shape[1]:
        count, largest = found.values.shape[1], int(labels.max())
        raise DataError(
            f"label {largest} of sample {int(labels.argmax())} is out of range: the model has {count} classes, "
            f"0 to {count - 1}; number the labels as the model does"
        )


def check_finite(found: Scores, whose: str) -> None:
    """Make sure that scores can be compared; minus infinity rules a class out.

    Raises:
        ModelError: they are NaN or infinite.
    """
    bad = int((np.isnan(found.values) | np.isposinf(found.values)).any(axis=1).sum())
    if bad:
        raise ModelError(f"the {whose}'s scores are NaN or infinite for {bad} of {len(found.values)} samples")


def top_k_accuracy(found: Scores, labels: Labels, k: int) -> float:
    """Share of samples whose label is among the ``k`` likeliest classes."""
    return float(np.mean((found.best(k) == labels[:, None]).any(axis=1)))


def cross_entropy(found: Scores, labels: Labels) -> float:
    """Mean of -log p_y over the samples, in float64 and nats, from logits or probabilities."""
    return float(np.mean(np.logaddexp(0, -found.log_odds(labels))))


def agreement(one: Sequence[Array], other: Sequence[Array]) -> float | None:
    """Share of samples for which two models predict the same class; None where they are no classifiers."""
    a, b = classes(one), classes(other)
    return None if a is None or b is None else float(np.mean(a == b))


def relative_error(one: Sequence[Array], other: Sequence[Array]) -> float:
    """Root mean square of the outputs' difference over that of the first model's outputs, the worst output counts."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if a.dtype.kind == "f":
            scale = float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))
            worst = max(worst, float(np.sqrt(np.mean(np.square(a - b, dtype=np.float64)))) / max(scale, 1e-12))
    return worst
