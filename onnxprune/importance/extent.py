"""In which range a model expects its inputs to lie, as far as its weights tell."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import TensorProto, helper

from onnxprune.channels import Coupling
from onnxprune.errors import ModelError
from onnxprune.importance.first import FirstLayer
from onnxprune.runtime import Session, tapped
from onnxprune.weights import FLOATS, Array

Interval = tuple[float, float]

USUAL: Interval = (0.0, 1.0)
"""Where nothing is known."""

BRIGHT: tuple[Interval, ...] = ((0.0, 255.0),)
"""Other ranges in use for pictures that are not brought to mean 0."""

CENTRED: tuple[Interval, ...] = ((-0.5, 0.5), (-1.0, 1.0), (-2.0, 2.2), (-128.0, 127.0))
"""Those that are: shifted, standardised by channel as for ImageNet or CIFAR-10, or with the mean subtracted."""

FAR = 65536.0
"""A scale at which no bias counts any more."""

CLEAR, BETTER = 0.9, 0.95
"""By what factor a measure must be smaller than at another scale to tell the scale, and than without mean 0 to tell that."""

# fmt: off
BENDS = frozenset({
    "Relu", "LeakyRelu", "PRelu", "Elu", "Celu", "Selu", "ThresholdedRelu", "Clip", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh",
    "Softplus", "Mish", "Gelu", "Swish", "Erf",
})
# fmt: on
"""Activation functions."""

SAMPLES, WORK = 32, 20_000_000_000
"""Pictures that are looked at in each range at most, and multiply-accumulate operations for all."""


def extent(coupling: Coupling) -> Interval:
    """The range of the float inputs, which is looked for only where a convolution reads pictures; else 0 to 1.

    Where the graph has BatchNormalization, that of the usual ranges in which the mean and variance of what it reads are nearest
    to those that were learnt (Kullback-Leibler divergence of normal distributions). Otherwise that in which all channels are
    active about equally often, as normalisation, since folded into weights and biases, has seen to: the standard deviation
    over a layer's channels of the share of places that are positive is least, on the mean over layers, at about the right
    scale. Without normalisation biases hardly count, and no scale is better than another; then the least that will do is taken.
    """
    ports = [port for port in coupling.graph.inputs if port.elem_type in FLOATS]
    layer = FirstLayer.of(coupling, ports[0]) if len(ports) == 1 == len(coupling.graph.inputs) else None
    if layer is None or not layer.sees_pictures:
        return USUAL
    try:
        trial = _Trial(coupling, layer)
        return trial.by_statistics() if trial.normalised else trial.by_activity()
    except ModelError:
        return USUAL


class _Trial:
    """Runs a model on the same pictures in several ranges."""

    def __init__(self, coupling: Coupling, layer: FirstLayer) -> None:
        graph, shapes = coupling.graph, coupling.shapes
        port = graph.inputs[0]
        work = max(1, coupling.macs)
        samples = int(np.clip(WORK // work // (len(CENTRED) + len(BRIGHT) + 2), 4, SAMPLES))
        self.name, self.shape = port.name, shapes.inputs[port.name]
        self.dtype = helper.tensor_dtype_to_np_dtype(port.elem_type)
        dynamic = not isinstance((port.shape or (0,))[0], int)
        drawn = layer.drawn(np.random.default_rng(0), -(-samples // self.shape[0]))
        assert drawn is not None, "a convolution reads pictures"
        self.parts = drawn.reshape(1, -1, *self.shape[1:]) if dynamic else drawn.reshape(-1, *self.shape)
        stored = [n for n in graph.nodes if n.op == "BatchNormalization" and all(i in graph.weights for i in n.inputs[1:5])]
        self.normalised = {
            n.inputs[0]: (graph.weights.read(n.inputs[3]), graph.weights.read(n.inputs[4])) for n in stored if len(n.inputs) == 5
        }
        bent = [n.inputs[0] for n in graph.nodes if n.op in BENDS]
        rank = len(self.shape)
        ranks = {name: len(shapes.get(name) or ()) for name in (*self.normalised, *bent)}
        self.axes = {n: 1 if r in (2, rank) or n in self.normalised else -1 for n, r in ranks.items() if r > 1}
        floats = [n for n in (self.normalised or bent) if shapes.elem_types[n] == TensorProto.FLOAT]
        self.read = list(dict.fromkeys(n for n in floats if n in self.axes))
        if not self.read:
            raise ModelError("the model has no activations to tell by")
        self.session = Session(tapped(graph.assemble(), self.read, only=True).ready())

    def by_statistics(self) -> Interval:
        """The range in which batch normalisation reads what it has learnt."""
        return min((USUAL, *BRIGHT, *CENTRED), key=self._divergence)

    def by_activity(self) -> Interval:
        """The range in which all channels are active most equally."""
        bright = _first([(self._unevenness(i), i) for i in (USUAL, *BRIGHT)])
        centred = min((self._unevenness(i), i) for i in CENTRED)
        far = self._unevenness((-FAR / 2, FAR / 2))
        return centred[1] if centred[0] < CLEAR * far and centred[0] < BETTER * bright[0] else bright[1]

    def _divergence(self, interval: Interval) -> float:
        total = 0.0
        for name, values in self._seen(interval):
            mean, variance = (np.asarray(v, np.float64) for v in self.normalised[name])
            here, spread = values.mean(axis=1), values.var(axis=1) + 1e-12
            variance = variance + 1e-12
            found = (np.log(variance / spread) + (spread + (here - mean) ** 2) / variance - 1) / 2
            total += float(np.log1p(np.median(found)))
        return total

    def _unevenness(self, interval: Interval) -> float:
        return float(np.mean([np.std((values > 0).mean(axis=1)) for _, values in self._seen(interval)]))

    def _seen(self, interval: Interval) -> Iterable[tuple[str, Array]]:
        """What is read in a range, float64 (channels, places) each."""
        low, high = interval
        runs = [self.session.run({self.name: (low + (high - low) * part).astype(self.dtype)}) for part in self.parts]
        for name, *values in zip(self.read, *runs, strict=True):
            moved = [np.moveaxis(v, self.axes[name], 0) for v in values]
            yield name, np.concatenate([v.reshape(len(v), -1) for v in moved], axis=1).astype(np.float64)


def _first(found: list[tuple[float, Interval]]) -> tuple[float, Interval]:
    """The first of some measures that none later is clearly below."""
    least = min(value for value, _ in found)
    return next((value, interval) for value, interval in found if CLEAR * value <= least)
