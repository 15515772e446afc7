"""A model's class scores in the form that is best differentiated: of any number of samples, before a final Softmax."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, numpy_helper

from onnxprune.data import Dataset, fixed_batch
from onnxprune.errors import ModelError
from onnxprune.evaluate.accuracy import Floats, Scores, scores
from onnxprune.gradient import before
from onnxprune.graph import Graph, load
from onnxprune.lazy import AnyModel, LazyModel
from onnxprune.runtime import Session, tapped
from onnxprune.structure import Port
from onnxprune.weights import Array

_CACHE = 1 << 18
"""Bytes of samples that are stacked for one run where the model takes any number; of more, convolutions get slower."""

_MOST = 4096
"""Samples that are stacked at most."""

_TOLERANCE = 1e-2
"""How far scores may be from the model's own, relative to the largest: it may compute in 16 bits."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """Runs a model on stacks of samples and returns the scores of the classes.

    ``model``: with nothing but these as its output, ``tensor``. ``batch``: samples that each run takes, None where that is
    any number.
    """

    model: AnyModel
    session: Session
    tensor: str
    probabilities: bool
    batch: int | None

    def rows(self, inputs: Mapping[str, Array]) -> int:
        """How many samples to stack: an even number, and a multiple of what a run takes."""
        step = 2 if self.batch is None else self.batch * (1 + self.batch % 2)
        size = sum(int(values[0].nbytes) for values in inputs.values())
        return step * max(1, min(_MOST, _CACHE // max(size, 1)) // step)

    def run(self, stack: Mapping[str, Array]) -> Array:
        """What is read, for a stack of samples: as many as one or several runs take.

        Raises:
            ModelError: the model does not run, or not with a row for each sample.
        """
        count = len(next(iter(stack.values())))
        step = self.batch or count
        parts = []
        for start in range(0, count, step):
            feeds = stack if step == count else {name: values[start : start + step] for name, values in stack.items()}
            parts.append(self.session.run(feeds)[0])
        values = np.concatenate(parts) if len(parts) > 1 else parts[0]
        if not isinstance(values, np.ndarray) or values.shape[:1] != (count,):
            raise ModelError(f"tensor {self.tensor!r} has no row of scores for each sample; evaluate without an attack")
        return values

    def scores(self, values: Array) -> Scores:
        """What was read, as scores.

        Raises:
            ModelError: it can't be scores.
        """
        found = scores(values, self.probabilities)
        if found is None:
            raise ModelError(f"tensor {self.tensor!r} has shape {values.shape}, which are no scores; evaluate without an attack")
        return found

    def of(self, inputs: Mapping[str, Array], rows: npt.NDArray[np.int64]) -> Scores:
        """Scores of some samples."""
        padded = np.append(rows, rows[:1].repeat(-len(rows) % (self.batch or 1)))
        return self.scores(self.run({name: values[padded] for name, values in inputs.items()})[: len(rows)])


def without_maps(graph: Graph) -> Graph:
    """The model with arrays where it gives maps from class to probability, as scikit-learn's converter makes them."""
    arrays = {node.outputs[0]: node.inputs[0] for node in graph.nodes if node.op == "ZipMap"}
    if not arrays:
        return graph
    model = tapped(graph.assemble(), [arrays.get(port.name, port.name) for port in graph.outputs], only=True)
    kinds = {port.name: port.elem_type for port in graph.outputs}
    for output in model.proto.graph.output:
        output.type.tensor_type.elem_type = kinds.get(output.name, TensorProto.FLOAT)
    return load(model.complete())


def classifiers(model: AnyModel, data: Dataset, ports: Sequence[Port], clean: Scores) -> Iterator[Classifier]:
    """Forms of a model that give the scores that the model itself gives, those that are best differentiated first.

    A final Softmax, LogSoftmax or Sigmoid is left out, for probabilities in float32 have few digits left where a network is
    sure. A model that is declared for a fixed number of samples gets any number, which is faster. Both are tried on some of
    the samples, and taken if the scores stay the same.

    Args:
        clean: what the model says about ``data``.
    """
    fixed = fixed_batch(ports)
    rows = np.arange((fixed or 2) + 1) % data.samples
    expected = clean.values[rows].astype(np.float64)
    for candidate, last in _candidates(model, ports, fixed, clean.probabilities):
        try:
            found = candidate.of(data.inputs, rows).values.astype(np.float64)
        except ModelError:
            continue
        shown, wanted = (same(values)[:, 1:] for same, values in zip(_LAST[last], (found, expected), strict=True))
        if shown.shape == wanted.shape and np.allclose(shown, wanted, rtol=0, atol=_TOLERANCE * np.abs(wanted).max()):
            yield candidate


def _candidates(
    model: AnyModel, ports: Sequence[Port], fixed: int | None, probabilities: bool
) -> Iterator[tuple[Classifier, str]]:
    """Ways to read the scores, the best first, each with the last operator that it leaves out."""
    model = model.ready() if isinstance(model, LazyModel) else model
    forms: list[tuple[AnyModel, int | None]] = [(model, fixed)]
    if fixed is not None and isinstance(model, ModelProto):
        forms.insert(0, (freed(model, {p.name for p in ports}, fixed), None))
    for form, batch in forms:
        lazy = form if isinstance(form, LazyModel) else LazyModel(form, {})
        for output in lazy.proto.graph.output:
            tensor_before, last = before(lazy.proto.graph, output.name)
            for tensor, op in {tensor_before: last, output.name: ""}.items():
                ready = tapped(lazy, [tensor], only=True).ready()
                try:
                    session = Session(ready)
                except ModelError:
                    continue
                declared = ready.proto.graph.output[0] if isinstance(ready, LazyModel) else ready.graph.output[0]
                declared.type.tensor_type.elem_type = session.elem_types[0]
                yield Classifier(ready, session, tensor, probabilities and not op, batch), op


def _softmax(values: Floats) -> Floats:
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * values))


_LAST: dict[str, tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]] = {
    "": (np.asarray, np.asarray),
    "Softmax": (_softmax, np.asarray),
    "LogSoftmax": (_softmax, np.exp),
    "Sigmoid": (_sigmoid, np.asarray),
}
"""Last operators that can be left out: what makes values before it, and values after it, the same."""


def freed(model: ModelProto, ports: Collection[str], fixed: int) -> ModelProto:
    """The model declared to take any number of samples; whether it does must be tried.

    Where a Reshape has the number of samples as its first size, it takes that from its input instead.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.value_info[:]
    for value in graph.input:
        if value.name in ports and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "samples"
    stored = {tensor.name: tensor for tensor in graph.initializer}
    stored |= {
        node.output[0]: a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"
    }
    for value in graph.output:
        shape = value.type.tensor_type.shape
        if shape.dim and shape.dim[0].dim_value == fixed:
            shape.dim[0].dim_param = "samples"
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[0] not in stored and node.input[1] in stored:
            sizes = numpy_helper.to_array(stored[node.input[1]]).copy()
            if sizes.size and sizes[0] == fixed:
                sizes[0] = 0
                stored[node.input[1]].CopyFrom(numpy_helper.from_array(sizes, stored[node.input[1]].name))
    return copy
