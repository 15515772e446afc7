"""How large the activations are that each filter is multiplied with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.data import Dataset
from onnxprune.filters import Filter, Inputs
from onnxprune.graph import Graph
from onnxprune.runtime import Session, tapped
from onnxprune.weights import Array

_STEP = 8
"""Samples that are run at a time: all these activations are held at once."""


def is_readable(graph: Graph, found: Filter) -> bool:
    """Whether a filter's input can be made an output of the model: recurrent states, and subgraphs' tensors, can't."""
    outer = {port.name for port in graph.inputs} | {name for node in graph.proto.graph.node for name in node.output}
    return found.inputs is not None and found.inputs.tensor in outer


def root_mean_squares(graph: Graph, filters: Mapping[str, Filter], data: Dataset) -> dict[str, Array]:
    """Of each filter's input over samples and positions, for each input channel; float64, to be broadcast to the layout."""
    sources = {name: found.inputs for name, found in filters.items() if found.inputs is not None}
    given = {port.name for port in graph.inputs}
    taps = list(dict.fromkeys(s.tensor for s in sources.values() if s.tensor not in given))
    session = Session(tapped(graph.assemble(), taps, only=True).ready()) if taps else None
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for start in range(0, data.samples, _STEP):
        for feeds, _ in data.take(slice(start, start + _STEP)).batches(graph.inputs):
            values = {**feeds, **dict(zip(taps, session.run(feeds), strict=True))} if session is not None else feeds
            for name, source in sources.items():
                squares, count = _squares(values[source.tensor], source, filters[name].letters)
                sums[name] = sums.get(name, 0) + squares
                counts[name] = counts.get(name, 0) + count
    return {name: _aligned(np.sqrt(total / counts[name]), sources[name], filters[name]) for name, total in sums.items()}


def channels(source: Inputs, letters: tuple[str, ...]) -> tuple[str, ...]:
    """The letters that an activation shares with a filter, in its order."""
    return tuple(t for t in source.letters if t in letters and t not in ("", "*") and not t.startswith("."))


def _squares(values: Array, source: Inputs, letters: tuple[str, ...]) -> tuple[Array, int]:
    """The sum of the squares for each channel, and how many there are."""
    shared = channels(source, letters)
    sizes: list[int] = []
    known = list(source.shape)
    for size, parts in zip(values.shape, source.parts, strict=True):
        here, known = known[:parts], known[parts:]
        sizes += here if parts > 1 else [size]
    apart = values.reshape(sizes).astype(np.float32, copy=False)
    axes = tuple(a for a, t in enumerate(source.letters) if t not in shared)
    total = np.square(apart).sum(axis=axes, dtype=np.float64)
    return total, values.size // max(1, total.size)


def _aligned(values: Array, source: Inputs, found: Filter) -> Array:
    """One number for each channel, with an axis for each of the layout's."""
    shared = channels(source, found.letters)
    places = [found.letters.index(t) for t in shared]
    turned = values.transpose(np.argsort(places))
    return turned.reshape([n if a in places else 1 for a, n in enumerate(found.layout.shape)])
