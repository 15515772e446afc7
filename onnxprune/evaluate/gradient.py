"""Input gradients for attacks: exact ones from a model's backward graph, or finite differences where it has none.

The loss is minus the label's log-odds. Its gradient is the cross-entropy's but for a positive factor, and has digits left
where the network is sure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from onnxprune.data import Dataset
from onnxprune.errors import DataError, GradientError, ModelError, OnnxpruneError, OptionError
from onnxprune.evaluate.accuracy import Labels, Scores
from onnxprune.evaluate.attack import Gradient, Inputs, Move, Range
from onnxprune.evaluate.classifier import Classifier, classifiers
from onnxprune.evaluate.differences import Blocks, Differences
from onnxprune.gradient import GradientGraph, differentiate
from onnxprune.graph import Graph, load
from onnxprune.lazy import completed
from onnxprune.masks import masks
from onnxprune.runtime import Session
from onnxprune.shapes import Shapes, infer
from onnxprune.weights import FLOATS, Array

_TOGETHER = 1 << 28
"""Bytes of intermediate results that a run may keep for its backward pass."""

_MOST = 64
"""Samples that go through the model at the same time at most."""


@dataclass(frozen=True)
class Sparse:
    """Which weights the backward pass alone reads as zeros.

    Of all elements of the kernels of Conv the ``share`` that is smallest, each with probability ``bernoulli``, which is drawn
    anew for each step of an attack. Source: Wang, Wu, Chen 2022, "Enhancing targeted attack transferability via diversified
    weight pruning", arXiv:2208.08677, section 3.2; their code's "gradient pruning".

    Raises:
        OptionError: a value that makes no sense.
    """

    share: float = 0.0
    bernoulli: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise OptionError(f"gradient_sparsity is {self.share:g}; it is a share of the weights, from 0 to 1")
        if not 0 <= self.bernoulli <= 1:
            raise OptionError(f"bernoulli is {self.bernoulli:g}; it is a probability, from 0 to 1")

    def weights(self, graph: Graph) -> dict[str, Array]:
        """The kernels of a model's convolutions by name; none where nothing is pruned.

        Raises:
            GradientError: it has none that are stored as floats.
        """
        if not self.share:
            return {}
        read = [node.inputs[1] for node in graph.nodes if node.standard and node.op == "Conv"]
        names = dict.fromkeys(graph.uses[name].tensor if name in graph.uses else name for name in read)
        found = {n: graph.weights.read(n) for n in names if n in graph.weights and graph.weights.elem_type(n) in FLOATS}
        if not found:
            raise GradientError(
                "gradient sparsity prunes the kernels of Conv, and the model has none stored as floats; leave it out"
            )
        return found


DENSE = Sparse()
"""No weights."""


def find_gradient(
    graph: Graph,
    data: Dataset,
    clean: Scores,
    labels: Labels,
    limits: Mapping[str, Range],
    *,
    blocks: Mapping[str, Blocks] | None = None,
    sparse: Sparse = DENSE,
    progress: Callable[[str], None] | None = None,
) -> Gradient:
    """The gradient of a classifier.

    Args:
        data: samples, with which the form is found in which the model is best differentiated. ``clean``: what the model says
            about them; ``labels``: the classes they are to leave.
        limits: the range of each input that is attacked.
        blocks: how each of them is cut for finite differences; exact gradients if None.

    Raises:
        DataError: the classes do not come from scores that are an output.
        GradientError: there are no exact gradients.
        ModelError: the model does not run.
    """
    failed: OnnxpruneError = DataError(
        "no output of the model holds the scores of its classes, so that there is no gradient to attack with"
    )
    for form in classifiers(graph.assemble().ready(), data, graph.inputs, clean):
        if blocks:
            ranges = {name: high - low or 1.0 for name, (low, high) in limits.items()}
            return Differences(form, data.inputs, labels, blocks, ranges, progress=progress)
        try:
            return Exact(form, limits, sparse)
        except GradientError as error:
            failed = error
    raise failed


def differentiated(
    graph: Graph, shapes: Shapes, inputs: Collection[str], sparse: Sparse = DENSE, *, probabilities: bool = False
) -> GradientGraph:
    """A model's backward graph for attacks.

    Args:
        inputs: which inputs are attacked. ``probabilities``: see :func:`onnxprune.gradient.differentiate`.

    Raises:
        GradientError: a node on the way has no rule, or there are no weights to prune.
    """
    masked = list(sparse.weights(graph))
    return differentiate(graph, shapes, "margin", list(inputs), masked=masked, probabilities=probabilities)


class Exact:
    """The gradient of minus the label's log-odds from a classifier's backward graph.

    Args:
        form: the classifier.
        inputs: which inputs are attacked.

    Raises:
        GradientError: a node on the way has no rule, or there are no weights to prune.
        ModelError: onnxruntime can't load it.
    """

    def __init__(self, form: Classifier, inputs: Collection[str], sparse: Sparse) -> None:
        graph = load(completed(form.model))
        shapes = infer(graph)
        self._graph = differentiated(graph, shapes, inputs, sparse, probabilities=form.probabilities)
        self._session = Session(self._graph.model, threads=2)
        self._batch, self._sparse, self._weights = form.batch, sparse, sparse.weights(graph)
        each = sum(math.prod(shape) for name, shape in shapes.shapes.items() if name not in graph.weights)
        self._most = form.batch or min(_MOST, max(1, _TOGETHER // (8 * max(each, 1))))
        self._pruned = lru_cache(maxsize=1)(self._draw)

    def __call__(self, inputs: Inputs, labels: Labels, step: int) -> Move:
        """By attacked input, ``(samples, values)``.

        Raises:
            ModelError: the model does not run, or its gradient is not finite.
        """
        pruned, parts = self._pruned(step if self._sparse.bernoulli < 1 else 0), []
        for begin in range(0, len(labels), self._most):
            rows = np.arange(begin, min(begin + self._most, len(labels)))
            padded = np.append(rows, rows[:1].repeat(-len(rows) % (self._batch or 1)))
            feeds = self._graph.feeds({name: values[padded] for name, values in inputs.items()}, labels[padded])
            found = self._session.run(feeds | pruned, list(self._graph.outputs.values()))
            parts.append([slope[: len(rows)].reshape(len(rows), -1) for slope in found])
        slopes = {
            str(name): np.concatenate(part) for name, part in zip(self._graph.outputs, zip(*parts, strict=True), strict=True)
        }
        for name, values in slopes.items():
            wrong = int((~np.isfinite(values)).any(axis=1).sum())
            if wrong:
                raise ModelError(
                    f"the gradient by input {name!r} is NaN or infinite for {wrong} of {len(values)} samples; "
                    "take finite differences, or look for a division or a logarithm of zero"
                )
        return slopes

    def _draw(self, step: int) -> dict[str, Array]:
        """The weights that the backward pass reads at a step of an attack, by the inputs that take them."""
        if not self._weights:
            return {}
        rng = np.random.default_rng((self._sparse.seed, step))
        kept = masks(self._weights, self._sparse.share, bernoulli=self._sparse.bernoulli, rng=rng)
        return {
            self._graph.masked[name]: np.where(kept[name], values, values.dtype.type(0)) for name, values in self._weights.items()
        }
