"""Accuracy on labelled data, agreement with another model on any data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.data import Dataset
from onnxprune.errors import DataError
from onnxprune.lazy import AnyModel
from onnxprune.runtime import Session
from onnxprune.structure import Port
from onnxprune.weights import Array


def measure(models: tuple[AnyModel, AnyModel], data: Dataset, ports: Sequence[Port]) -> dict[str, Any]:
    """How two models do on the same data.

    Returns:
        ``accuracy`` of both where there are labels, ``agreement`` where they are classifiers, ``relative_error``.
    """
    one, other = (predict(model, data, ports) for model in models)
    found: dict[str, Any] = {}
    if data.labels is not None:
        found["accuracy"] = [accuracy(one, data.labels), accuracy(other, data.labels)]
    alike = agreement(one, other)
    if alike is not None:
        found["agreement"] = alike
    return found | {"relative_error": relative_error(one, other)}


def predict(model: AnyModel, data: Dataset, ports: Sequence[Port]) -> list[Array]:
    """Outputs for all samples, one array per output that has the samples on its first axis."""
    session = Session(model, threads=2)
    parts: list[list[Array]] = []
    for feeds, real in data.batches(ports):
        size = len(next(iter(feeds.values())))
        results = session.run(feeds)
        usable = [r[:real] for r in results if isinstance(r, np.ndarray) and r.ndim and len(r) == size]
        parts.append(usable)
    return [np.concatenate(columns) for columns in zip(*parts, strict=True)]


def classes(outputs: Sequence[Array]) -> npt.NDArray[np.int64] | None:
    """Predicted classes, or None where no output looks like a classifier's.

    Integer ``(samples,)``: the classes themselves. Float ``(samples, classes)``, further axes of size one allowed: the
    largest. Float ``(samples, 1)``: probability or logit of class 1.
    """
    for values in outputs:
        flat = values.reshape(len(values), -1) if values.ndim > 1 and max(values.shape[2:], default=1) == 1 else values
        if flat.ndim == 1 and flat.dtype.kind in "iu":
            return np.asarray(flat, np.int64)
        if flat.ndim == 2 and flat.dtype.kind == "f":
            if flat.shape[1] > 1:
                return np.asarray(flat.argmax(axis=1), np.int64)
            cut = 0.5 if flat.min() >= 0 and flat.max() <= 1 else 0.0
            return (flat[:, 0] > cut).astype(np.int64)
    return None


def accuracy(outputs: Sequence[Array], labels: npt.NDArray[np.int64]) -> float:
    """Share of samples whose predicted class is the label.

    Raises:
        DataError: the model is no classifier.
    """
    predicted = classes(outputs)
    if predicted is None:
        raise DataError("the data have labels, but no output of the model has the shape (samples, classes)")
    return float(np.mean(predicted == labels))


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
