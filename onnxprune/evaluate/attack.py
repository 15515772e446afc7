"""Attacks: gradient ascent of the loss inside a ball around each sample, of which FGSM is the first step alone.

x_{k+1} = clip(x + P(x_k + a d(g_k) - x)): g the loss's gradient, d the direction of steepest ascent in the norm (its signs in
``linf``, g / |g| in ``l2``), P the projection onto the ball of radius epsilon. Sources: Goodfellow, Shlens, Szegedy 2015,
"Explaining and harnessing adversarial examples", section 4; Madry et al. 2018, "Towards deep learning models resistant to
adversarial attacks", section 2.1. One step of the default size and no random start ends on the ball: the fast gradient
(sign) method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxprune.errors import OptionError, UsageError
from onnxprune.evaluate.accuracy import Labels
from onnxprune.weights import Array

NORMS = ("linf", "l2")
"""Which norm of all attacked inputs of a sample together epsilon bounds."""

_REACH = 2.5
"""By default, so many times epsilon is the way of all steps together: enough to cross the ball and come back."""

Range = tuple[float, float]
"""Smallest and largest value that an attacked input may have."""

Inputs = Mapping[str, Array]
"""Arrays by input, ``(samples, ...)``."""

Move = dict[str, npt.NDArray[Any]]
"""Changes or derivatives by attacked input, float ``(samples, values)``."""

Fooled = Callable[[Inputs, Labels], npt.NDArray[np.bool_]]
"""(inputs, rows) -> which of these samples are classified wrong already; rows are the samples' numbers."""


class Gradient(Protocol):
    """Tells where a loss of the classifier grows."""

    def __call__(self, inputs: Inputs, labels: Labels, step: int) -> Move:
        """The derivatives by each attacked input of a loss that grows as a label's odds fall; any positive factor per sample.

        Args:
            inputs: all inputs of the model. ``labels``: the class that each sample should leave.
            step: which step of an attack this is, from 0.
        """


@dataclass(frozen=True)
class Attack:
    """How an attack goes: ``steps`` of ``step_size`` each, from the sample, or from anywhere in the ball (``random_start``).

    ``step_size`` is in the inputs' units, by default 2.5 epsilon / steps. ``zero``: what the sign of a derivative of zero
    counts as.

    Raises:
        OptionError: a value that makes no sense.
        UsageError: a norm that does not exist.
    """

    steps: int = 1
    step_size: float | None = None
    random_start: bool = False
    norm: str = "linf"
    zero: int = 0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UsageError(f"norm {self.norm!r} does not exist; choose one of {', '.join(NORMS)}")
        if self.steps < 1:
            raise OptionError(f"steps is {self.steps}; it is how many steps the attack takes, at least 1")
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise OptionError(f"step_size is {self.step_size:g}; it is how far a step goes in the inputs' units, more than 0")

    def gradients(self, epsilons: int) -> int:
        """How many gradients a sample needs at most; without random start, all epsilons share the first."""
        return epsilons * self.steps if self.random_start else 1 + epsilons * (self.steps - 1)

    def direction(self, gradient: Move) -> Move:
        """Where each sample should go, a vector of norm 1."""
        if self.norm == "linf":
            signs = {name: np.sign(g) for name, g in gradient.items()}
            return {name: np.where(s == 0, s.dtype.type(self.zero), s) for name, s in signs.items()}
        return _scaled(gradient, 1 / np.maximum(_length(gradient.values()), np.finfo(np.float64).tiny))

    def projected(self, move: Move, epsilon: float) -> Move:
        """The nearest change that is no larger than epsilon."""
        if self.norm == "linf":
            return {name: np.clip(m, -epsilon, epsilon) for name, m in move.items()}
        return _scaled(move, np.minimum(1, epsilon / np.maximum(_length(move.values()), np.finfo(np.float64).tiny)))

    def start(self, noise: Move, epsilon: float, rng: np.random.Generator) -> Move:
        """The first change: none, or one that is uniform in the ball; ``noise``: standard normal values."""
        if not self.random_start:
            return {name: np.zeros_like(n) for name, n in noise.items()}
        if self.norm == "linf":
            return {name: rng.uniform(-epsilon, epsilon, n.shape).astype(n.dtype) for name, n in noise.items()}
        samples, values = len(next(iter(noise.values()))), sum(n.shape[1] for n in noise.values())
        radius = epsilon * rng.uniform(size=(samples, 1)) ** (1 / values)
        return _scaled(self.direction(noise), radius)


def adversarial(
    gradient: Gradient,
    inputs: Inputs,
    labels: Labels,
    limits: Mapping[str, Range],
    attack: Attack,
    epsilon: float,
    start: Move,
    *,
    first: Move | None = None,
    fooled: Fooled | None = None,
) -> dict[str, Array]:
    """Attack samples.

    Args:
        inputs: all inputs of the model. ``labels``: the class that each sample should leave.
        limits: the range in which each attacked input stays; inputs that are not here stay as they are.
        start: the first change.
        first: the gradient at the start, where that is known.
        fooled: tells after each step but the last which samples need no more of them.

    Returns:
        The inputs after the attack.
    """
    moved, rows = {**inputs, **shifted(inputs, start, limits)}, np.arange(len(labels))
    size = _REACH * epsilon / attack.steps if attack.step_size is None else attack.step_size
    for step in range(attack.steps):
        here = {name: values[rows] for name, values in moved.items()}
        clean = {name: inputs[name][rows] for name in limits}
        way = attack.direction(first if first is not None and not step else gradient(here, labels[rows], step))
        change = {name: _flat(here[name]) - _flat(clean[name]) + size * way[name] for name in limits}
        here |= shifted(clean, attack.projected(change, epsilon), limits)
        for name in limits:
            moved[name][rows] = here[name]
        if fooled is not None and step < attack.steps - 1:
            rows = rows[~fooled(here, rows)]
            if not len(rows):
                break
    return moved


def shifted(inputs: Inputs, move: Move, limits: Mapping[str, Range]) -> dict[str, Array]:
    """The attacked inputs after a change, clipped to their range; in arrays of their own."""
    found = {}
    for name, (low, high) in limits.items():
        values = inputs[name]
        changed = (_flat(values) + move[name]).reshape(values.shape).astype(values.dtype, copy=False)
        found[name] = np.clip(changed, values.dtype.type(low), values.dtype.type(high))
    return found


def _flat(values: Array) -> Array:
    """``(samples, values)`` in at least float32."""
    return values.reshape(len(values), -1).astype(np.promote_types(values.dtype, np.float32), copy=False)


def _length(parts: Iterable[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """The 2-norm of each sample's values in all inputs together, ``(samples, 1)``."""
    squares = (np.square(part, dtype=np.float64).sum(axis=1, keepdims=True) for part in parts)
    return np.asarray(np.sqrt(np.sum(list(squares), axis=0)))


def _scaled(move: Move, factor: npt.NDArray[np.float64]) -> Move:
    return {name: (m * factor).astype(m.dtype) for name, m in move.items()}
