"""Inputs made up from a model's weights alone, on which its activations behave somewhat as on real ones.

Training moves the filters of the first layer within the span of the inputs, so that they take on the inputs' covariance
(the neural feature ansatz: Radhakrishnan et al. 2022, arXiv:2212.13881). White noise that is sent backwards through that layer
has it too; here with the singular values of the filters to the power ``POWER``, which tempers how few directions dominate.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.channels import Coupling
from onnxprune.flow import Step
from onnxprune.rules.notation import letters
from onnxprune.runtime import Session
from onnxprune.shapes import Executor
from onnxprune.structure import Port
from onnxprune.weights import Array, Weights

POWER, SPREAD, MEAN = 0.5, 0.3, 0.06
"""The power of the singular values; the standard deviation and the mean, as shares of the width of the inputs' interval."""

Feeds = dict[str, Array]


def synthetic(
    coupling: Coupling, weights: Weights, interval: tuple[float, float], samples: int, *, batch: int = 64, seed: int = 0
) -> Iterator[Feeds]:
    """Feeds for a model whose float inputs lie within ``interval``; integers are drawn from what the model looks up.

    Yields:
        arrays by input name, of ``batch`` samples each where the model takes any number.
    """
    rng = np.random.default_rng(seed)
    sources = [_Source(coupling, weights, port, interval) for port in coupling.graph.inputs]
    for _ in range(max(1, -(-samples // batch))):
        yield {source.port.name: source.draw(rng, batch) for source in sources}


class _Source:
    """Draws one input of a model."""

    def __init__(self, coupling: Coupling, weights: Weights, port: Port, interval: tuple[float, float]) -> None:
        self.coupling, self.weights, self.port = coupling, weights, port
        self.shape = coupling.shapes.inputs[port.name]
        self.dtype = helper.tensor_dtype_to_np_dtype(port.elem_type)
        low, high = interval
        self.mean = min(max(0.0, low), high) + MEAN * (high - low) * (1 if low >= 0 else -1 if high <= 0 else 0)
        self.spread = SPREAD * (high - low)
        self.places, self.layer = self._first_layer() if self.dtype.kind == "f" else (None, None)

    def draw(self, rng: np.random.Generator, batch: int) -> Array:
        """Values for some samples, or for as many as the model takes."""
        dynamic = bool(self.port.shape) and not isinstance((self.port.shape or (0,))[0], int)
        runs = batch if dynamic else 1
        if self.dtype.kind == "b":
            values = np.ones((runs, *self.shape), self.dtype)
        elif self.dtype.kind in "iu":
            values = rng.integers(0, self._vocabulary(), (runs, *self.shape)).astype(self.dtype)
        else:
            values = (self.mean + self.spread * self._noise(rng, runs)).astype(self.dtype)
        return values.reshape(-1, *self.shape[1:]) if dynamic else values[0]
