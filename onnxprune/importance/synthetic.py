"""Inputs made up from a model's weights alone, on which its activations behave somewhat as on real ones.

What a convolution reads is a picture, and made to look like one (:mod:`~onnxprune.importance.pictures`), in the range that
the weights expect (:mod:`~onnxprune.importance.extent`). Training moves the filters of a first dense layer within the span of
the inputs, so that they take on the inputs' covariance (the neural feature ansatz: Radhakrishnan et al. 2022,
arXiv:2212.13881). White noise that is sent backwards through that layer has it too. All are then pulled to where a classifier
recognises something (:mod:`~onnxprune.importance.pull`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import helper

from onnxprune.channels import Coupling
from onnxprune.importance.extent import extent
from onnxprune.importance.first import FirstLayer
from onnxprune.importance.pull import STEPS, Feeds, Interval, Pull
from onnxprune.structure import Port
from onnxprune.weights import Array

SPREAD, MEAN = 0.1, 0.03
"""The noise' standard deviation and mean, as shares of the width of the inputs' interval; the mean counts from the value of
the interval that is nearest to zero."""

PULL, PICTURE_PULL = 0.1, 0.16
"""How far inputs are pulled at most, as a share of the same (root mean square)."""

SAMPLES, BATCH = 2048, 64
"""Synthetic inputs at most, and how many at a time."""

WORK = 2_000_000_000
"""Multiply-accumulate operations that making them takes at most, where their number is not given."""

PULLING = 1_200_000_000_000
"""Those that pulling takes at most, where it is; the inputs that are left are not pulled."""

PLENTY, PLENTY_WORK = 512, 1_000_000_000_000
"""Inputs that statistics are made of, at most, and operations for running the model on them once."""


def synthetic(
    coupling: Coupling, interval: Interval | None = None, *, samples: int | None = None, seed: int = 0
) -> Iterator[Feeds]:
    """Feeds for a model whose float inputs lie within ``interval``.

    Integers are drawn from what the model looks up. Where the model is no classifier, or its gradient not known, inputs are not
    pulled, and where that takes too long only the first ones.

    Args:
        interval: by default what the weights tell of it (:func:`~onnxprune.importance.extent.extent`).
        samples: how many; by default as many as there is time for in a second or so, but four at least. These are not pulled if
            they are pictures: then more of them tell more.

    Yields:
        arrays by input name, of several samples each where the model takes any number.
    """
    rng = np.random.default_rng(seed)
    low, high = extent(coupling) if interval is None else interval
    sources = [_Source(coupling, port, (low, high)) for port in coupling.graph.inputs]
    pictures = {s.port.name: s.first for s in sources if s.first is not None and s.first.sees_pictures}
    pull = None if pictures and samples is None else Pull.of(coupling, pictures)
    once = max(1, coupling.macs)
    pulling = 3 * STEPS * once
    wanted = int(np.clip(WORK // (once if pull is None else once + pulling), 4, SAMPLES)) if samples is None else samples
    length = (high - low) * (PICTURE_PULL if pictures else PULL)
    lengths = {s.port.name: length for s in sources}
    each = max((source.shape[0] for source in sources if source.shape), default=1)
    for start in range(0, wanted, BATCH):
        drawn = {source.port.name: source.draw(rng, -(-min(BATCH, wanted - start) // each)) for source in sources}
        if pull is not None and (samples is None or (start + BATCH) * pulling <= PULLING):
            joined = {s.port.name: drawn[s.port.name].reshape(-1, *s.shape[1:]) for s in sources}
            pulled = pull.pulled(joined, lengths, (low, high) if pictures else None, rng)
            drawn = {s.port.name: pulled[s.port.name].reshape(-1, *s.shape) for s in sources}
        yield from _apart(sources, drawn)


def plenty(coupling: Coupling) -> int:
    """How many inputs statistics are made of, in a minute or so."""
    return int(np.clip(PLENTY_WORK // max(1, coupling.macs), 16, PLENTY))


def _apart(sources: list[_Source], drawn: Feeds) -> Iterator[Feeds]:
    """All that was drawn at once where the model takes any number of samples, else as many at a time as it takes."""
    if any(source.dynamic for source in sources) and all(source.dynamic or not source.shape for source in sources):
        shapes = {s.port.name: (-1, *s.shape[1:]) if s.dynamic else None for s in sources}
        yield {n: np.asarray(v[0]) if (shape := shapes[n]) is None else v.reshape(shape) for n, v in drawn.items()}
    else:
        yield from (dict(zip(drawn, map(np.asarray, run), strict=True)) for run in zip(*drawn.values(), strict=True))


class _Source:
    """Draws one input of a model."""

    def __init__(self, coupling: Coupling, port: Port, interval: Interval) -> None:
        self.weights, self.graph, self.port = coupling.graph.weights, coupling.graph, port
        self.shape = coupling.shapes.inputs[port.name]
        self.dtype = helper.tensor_dtype_to_np_dtype(port.elem_type)
        self.dynamic = bool(port.shape) and not isinstance((port.shape or (0,))[0], int)
        self.interval = low, high = interval
        self.mean = min(max(0.0, low), high) + MEAN * (high - low) * (1 if low >= 0 else -1 if high <= 0 else 0)
        self.spread = SPREAD * (high - low)
        self.first = FirstLayer.of(coupling, port) if self.dtype.kind == "f" else None

    def draw(self, rng: np.random.Generator, runs: int) -> Array:
        """Values (runs, *shape)."""
        if self.dtype.kind == "b":
            return np.ones((runs, *self.shape), self.dtype)
        if self.dtype.kind in "iu":
            return rng.integers(0, self._vocabulary(), (runs, *self.shape)).astype(self.dtype)
        return self._floats(rng, (runs, *self.shape)).astype(self.dtype)

    def _floats(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """What the first layer reads where it has more to say than nothing, else white noise."""
        drawn = None if self.first is None else self.first.drawn(rng, shape[0])
        if drawn is None or not np.isfinite(drawn).all():
            return self.mean + self.spread * rng.standard_normal(shape)
        low, high = self.interval
        found = low + (high - low) * drawn if self.first is not None and self.first.convolves else self.mean + self.spread * drawn
        return np.asarray(found).reshape(shape)

    def _vocabulary(self) -> int:
        """How many rows the table has that an input of integers picks from; 2 where none is."""
        for node in self.graph.consumers.get(self.port.name, []):
            if node.op == "Gather" and node.inputs[0] in self.weights:
                return self.weights.shape(node.inputs[0])[int(node.attributes.get("axis", 0))]
        return 2
