"""Optimisers: what a step of training does to weights, in numpy and in place; and how the learning rate goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.weights import Array

SCHEDULES = ("cosine", "constant")
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass
class Optimiser:
    """Changes weights along their gradients. ``moments``: what it remembers of earlier gradients, by kind and tensor.

    ``decay``: what share of a weight each step takes away, times the learning rate; of tensors of two axes or more, since a
    bias or scale that shrinks does not make a network simpler. ``steps``: how many were made.
    """

    decay: float = 0.0
    steps: int = 0
    moments: dict[str, dict[str, Array]] = field(default_factory=dict)

    def step(self, weights: Mapping[str, Array], gradients: Mapping[str, Array], rate: float) -> None:
        """Change the weights once; all arrays by tensor."""
        self.steps += 1
        for name, weight in weights.items():
            self._change(name, weight, gradients[name], weight.dtype.type(rate), self.decay if weight.ndim > 1 else 0.0)

    def _change(self, name: str, weight: Array, gradient: Array, rate: np.floating, decay: float) -> None:
        raise NotImplementedError

    def _moment(self, kind: str, name: str, like: Array) -> Array:
        return self.moments.setdefault(kind, {}).setdefault(name, np.zeros_like(like))


@dataclass
class Sgd(Optimiser):
    """Stochastic gradient descent with momentum m: ``v <- m v + g + decay w``, ``w <- w - rate v`` (Sutskever et al. 2013)."""

    momentum: float = 0.9

    def _change(self, name: str, weight: Array, gradient: Array, rate: np.floating, decay: float) -> None:
        velocity = self._moment("velocity", name, weight)
        velocity *= weight.dtype.type(self.momentum)
        velocity += gradient + weight.dtype.type(decay) * weight
        weight -= rate * velocity


@dataclass
class Adam(Optimiser):
    """Adam (Kingma & Ba 2015, algorithm 1) with decay beside the gradient (Loshchilov & Hutter 2019, algorithm 2)."""

    def _change(self, name: str, weight: Array, gradient: Array, rate: np.floating, decay: float) -> None:
        kind = weight.dtype.type
        first, second = self._moment("first", name, weight), self._moment("second", name, weight)
        for moment, beta, values in ((first, _BETAS[0], gradient), (second, _BETAS[1], gradient * gradient)):
            moment *= kind(beta)
            moment += kind(1 - beta) * values
        size = np.sqrt(second / kind(1 - _BETAS[1] ** self.steps)) + kind(_EPSILON)
        weight -= rate * (first / kind(1 - _BETAS[0] ** self.steps) / size + kind(decay) * weight)


def make(name: str, *, momentum: float, decay: float) -> Optimiser:
    """An optimiser by name: ``sgd`` or ``adam``."""
    return Sgd(decay, momentum=momentum) if name == "sgd" else Adam(decay)


OPTIMISERS = {"sgd": 0.01, "adam": 0.001}
"""The learning rate of each optimiser where none is given."""


def factor(schedule: str, done: float, step: float, warmup: float) -> float:
    """By what the learning rate is multiplied.

    It rises evenly during the warm-up, and then stays, or falls to zero in half a cosine (Loshchilov & Hutter 2017, eq. 5).

    Args:
        done: share of the training that lies behind; ``step``: the share of one step.
        warmup: share of the training in which the rate rises.
    """
    if done < warmup:
        return min(1.0, (done + step) / warmup)
    return 1.0 if schedule == "constant" else 0.5 + 0.5 * math.cos(math.pi * (done - warmup) / (1 - warmup))


def check(optimiser: str, schedule: str, rate: float | None, momentum: float, decay: float, warmup: float) -> None:
    """Make sure that the options make sense.

    Raises:
        OptionError: one does not.
    """
    for what, name, known in (("optimiser", optimiser, tuple(OPTIMISERS)), ("schedule", schedule, SCHEDULES)):
        if name not in known:
            raise OptionError(f"{what} {name!r} does not exist; choose one of {', '.join(known)}")
    if rate is not None and not 0 < rate < math.inf:
        raise OptionError(f"learning rate is {rate:g}; it is a number above 0")
    for what, value in (("momentum", momentum), ("warmup", warmup)):
        if not 0 <= value < 1:
            raise OptionError(f"{what} is {value:g}; it is a share, 0 <= {what} < 1")
    if not 0 <= decay < math.inf:
        raise OptionError(f"weight decay is {decay:g}; it is a number, at least 0")
