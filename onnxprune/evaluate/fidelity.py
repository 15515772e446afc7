"""What a smaller model loses of the original's accuracy, and what can be said of that without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.evaluate.accuracy import accuracy, agreement, classes, predict
from onnxprune.graph import Graph
from onnxprune.lazy import AnyModel
from onnxprune.structure import Port
from onnxprune.weights import Array


@dataclass(frozen=True, eq=False)
class Judged:
    """Compares models with the original on the same data, which the original sees only once.

    ``measure``: ``"accuracy_drop"``, by labels, or ``"agreement"``. A sample that is classified right by the one and wrong by
    the other is classified differently: the accuracy lost is at most one minus the agreement, whatever the labels are.
    """

    measure: str
    outputs: Sequence[Array]
    data: Dataset
    ports: Sequence[Port]

    @classmethod
    def by(cls, kind: str, original: Graph, data: Dataset | None) -> Judged:
        """What a target of some kind is measured by: ``accuracy-drop`` by labels, ``agreement`` without, others by what there is.

        Raises:
            UsageError: there are no data, or no labels, or the model is no classifier.
        """
        if data is None:
            raise UsageError(f"{_option(kind)} is measured on data; give --data FILE.npz (in Python data=)")
        if kind == "accuracy-drop" and data.labels is None:
            raise UsageError("target accuracy-drop is measured by labels; give --data with an array 'labels', or take agreement")
        outputs = predict(original.assemble().ready(), data, original.inputs)
        if classes(outputs) is None:
            raise UsageError(f"{_option(kind)} is about classes, and no output of the model has the shape (samples, classes)")
        labelled = data.labels is not None and kind != "agreement"
        return cls("accuracy_drop" if labelled else "agreement", outputs, data, original.inputs)

    def lost(self, model: AnyModel) -> float:
        """How much accuracy a model loses, or at most loses, as a share of all samples."""
        outputs = predict(model, self.data, self.ports)
        if self.measure == "accuracy_drop" and self.data.labels is not None:
            return accuracy(self.outputs, self.data.labels) - accuracy(outputs, self.data.labels)
        alike = agreement(self.outputs, outputs)
        return 1.0 if alike is None else 1 - alike


def _option(kind: str) -> str:
    return f"target {kind}" if kind in ("accuracy-drop", "agreement") else "--max-drop"
