"""How much the loss changes with each stored number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.data import Dataset
from onnxprune.errors import ModelError
from onnxprune.gradient import differentiate
from onnxprune.graph import Graph
from onnxprune.runtime import Session
from onnxprune.shapes import Shapes
from onnxprune.weights import Array


def slopes(graph: Graph, shapes: Shapes, data: Dataset, names: Sequence[str]) -> dict[str, Array]:
    """The derivative of the mean cross-entropy by stored tensors, of their shapes, in float32 or float64.

    Without labels, the class that the model itself predicts is the right one.

    Raises:
        GradientError: there is no rule for a node on the way, or the model is no classifier.
        ModelError: a derivative is not finite.
    """
    made = differentiate(graph, shapes, "predicted" if data.labels is None else "cross-entropy", names)
    session, start = Session(made.model), 0
    found: dict[str, Array] = {}
    for inputs, real in data.batches(graph.inputs):
        size = len(next(iter(inputs.values())))
        rows = np.minimum(np.arange(start, start + size), data.samples - 1)
        weights = np.where(np.arange(size) < real, 1 / data.samples, 0)
        labels = None if data.labels is None else data.labels[rows]
        results = session.run(made.feeds(inputs, labels, weights=weights), [made.outputs[name] for name in names])
        for name, values in zip(names, results, strict=True):
            wide = values if values.dtype == np.float64 else values.astype(np.float32)
            found[name] = found[name] + wide if name in found else wide
        start += real
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise ModelError(f"the loss has no finite derivative by weight {name!r} on these data; take criterion magnitude")
    return found
