"""Losses of classifiers, and of distance to another model's outputs, with their derivatives by the scores, as ONNX nodes.

Each is a function of ``(op, scores, aim)``, names of float tensors (samples, classes), that writes the loss of each sample
(samples,) and its derivative by the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, helper

from onnxprune.gradient.tape import Name, Step
from onnxprune.structure import STANDARD

_PASSING = frozenset({"Identity", "Cast", "Dropout", "Flatten", "Reshape", "Squeeze"})
_LAST = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})


def before(graph: GraphProto, output: str) -> tuple[str, str]:
    """The tensor before a final Softmax, LogSoftmax or Sigmoid, and which of them; the output itself where there is none."""
    producers = {name: node for node in graph.node if node.domain in STANDARD for name in node.output}
    name = output
    while name in producers and producers[name].op_type in _PASSING:
        name = producers[name].input[0]
    if name in producers and producers[name].op_type in _LAST:
        return producers[name].input[0], producers[name].op_type
    return output, ""


@dataclass(frozen=True)
class Scores:
    """What a model says about the classes: logits, or ``probabilities``; ``values`` (samples, classes), at least two classes."""

    values: Name
    probabilities: bool

    def log(self, op: Step) -> Name:
        """Logarithms of the probabilities."""
        if self.probabilities:
            return op.Log(_floored(op, self.values))
        return op.LogSoftmax(self.values, axis=1)


Loss = Callable[[Step, Scores, Name], tuple[Name, Name]]
"""(op, scores, aim) -> the loss of each sample, its derivative by the scores' values."""


def cross_entropy(op: Step, scores: Scores, aim: Name) -> tuple[Name, Name]:
    """``-sum_k t_k log p_k``. ``aim``: t, the probabilities that are aimed at; all of it in one class for a label."""
    loss = op.Neg(op.sum(op.Mul(aim, scores.log(op)), [1], keepdims=False))
    if scores.probabilities:
        return loss, op.Neg(op.Div(aim, _floored(op, scores.values)))
    return loss, op.Sub(op.Softmax(scores.values, axis=1), aim)


def divergence(op: Step, scores: Scores, aim: Name) -> tuple[Name, Name]:
    """The Kullback-Leibler divergence ``sum_k t_k (log t_k - log p_k)`` from t, the probabilities that are aimed at."""
    loss, slope = cross_entropy(op, scores, aim)
    entropy = op.sum(op.Mul(aim, op.Log(_floored(op, aim))), [1], keepdims=False)
    return op.Add(loss, entropy), slope


def distillation(op: Step, scores: Scores, aim: Name, temperature: float) -> tuple[Name, Name]:
    """The divergence between both distributions at a temperature T, times T^2 (Hinton, Vinyals & Dean 2015, section 2).

    ``aim``: the probabilities that are aimed at, of logits that were divided by T.
    """
    if temperature == 1:
        return divergence(op, scores, aim)
    logits = op.Log(_floored(op, scores.values)) if scores.probabilities else scores.values
    loss, slope = divergence(op, Scores(op.scale(logits, 1 / temperature), False), aim)
    if scores.probabilities:
        slope = op.Div(slope, _floored(op, scores.values))
    return op.scale(loss, temperature**2), op.scale(slope, temperature)


def softened(op: Step, values: Name, temperature: float, *, probabilities: bool) -> Name:
    """Probabilities at a temperature, from logits (or logarithms of probabilities), or from ``probabilities`` themselves."""
    if probabilities and temperature == 1:
        return values
    logits = op.Log(_floored(op, values)) if probabilities else values
    return op.Softmax(op.scale(logits, 1 / temperature), axis=1)


def margin(op: Step, scores: Scores, aim: Name) -> tuple[Name, Name]:
    """Minus the log-odds of a label, ``log(1 - p_y) - log p_y``, which does not flatten where the network is sure.

    ``aim``: 1 at the label and 0 elsewhere. Its gradient is the cross-entropy's over ``1 - p_y``.
    """
    if scores.probabilities:
        rest = op.Sub(op.constant(1), aim)
        sums = [op.sum(op.Mul(which, scores.values), [1]) for which in (aim, rest)]
        own, others = (_floored(op, total) for total in sums)
        flat_own, flat_others = (op.where(op.Greater(total, op.constant(_tiny(op)))) for total in sums)
        slope = op.Sub(op.Mul(op.Div(rest, others), flat_others), op.Mul(op.Div(aim, own), flat_own))
        return op.sum(op.Sub(op.Log(others), op.Log(own)), [1], keepdims=False), slope
    others = op.Add(scores.values, op.scale(aim, op.lowest / 4))
    share = op.Softmax(others, axis=1)
    logs = op.Log(_floored(op, share))
    together = op.sum(op.Mul(share, op.Sub(others, logs)), [1], keepdims=False)  # the log of the sum of their exponentials
    own = op.sum(op.Mul(aim, scores.values), [1], keepdims=False)
    return op.Sub(together, own), op.Sub(share, aim)


LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "predicted": cross_entropy, "kl": divergence, "margin": margin}
"""Of classifiers, by name."""


def squared(op: Step, output: Name, target: Name, axes: range) -> tuple[Name, Name]:
    """Half the mean squared difference of an output of any shape from a target, and its derivative by the output."""
    gap = op.Sub(output, target)
    share = op.share(op.sum(output, axes), output) if axes else op.constant(1)
    loss = op.Mul(op.sum(op.scale(op.Mul(gap, gap), 0.5), axes), share)
    return op.Reshape(loss, op.ints([-1])), op.Mul(gap, share)


def one_hot(op: Step, labels: Name, classes: int) -> Name:
    """1 at each sample's label and 0 elsewhere, (samples, classes)."""
    numbers = op.Reshape(op.ints(range(classes)), op.ints([1, classes]))
    return op.where(op.Equal(op.unsqueeze(labels, [1]), numbers))


def _floored(op: Step, probabilities: Name) -> Name:
    """Probabilities, those below the smallest as that. Without Max, which repeats no operand before opset 8."""
    return op.Add(probabilities, op.Relu(op.Sub(op.constant(_tiny(op)), probabilities)))


def _tiny(op: Step) -> float:
    """The smallest normal number of the type: probabilities below it count as that."""
    return float(np.finfo(helper.tensor_dtype_to_np_dtype(op.elem_type)).tiny)
