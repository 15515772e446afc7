"""Two models side by side: size, work, speed and, with data, how much alike they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import data as datasets
from onnxprune.cost import Cost, cost
from onnxprune.errors import DataError
from onnxprune.evaluate import Latency, interleaved, measure
from onnxprune.files import JsonFile, Source
from onnxprune.graph import Graph, load
from onnxprune.report import changes, columns, megabytes
from onnxprune.runtime import random_feeds
from onnxprune.shapes import infer
from onnxprune.weights import Array

SCHEMA = "onnxprune.comparison/1"


@dataclass(frozen=True)
class Comparison(JsonFile):
    """Costs and latencies of the original and the other model, and ``metrics`` where data were given."""

    costs: tuple[Cost, Cost]
    latencies: tuple[Latency, Latency]
    metrics: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        sides = {}
        for name, size, speed in zip(("original", "pruned"), self.costs, self.latencies, strict=True):
            sides[name] = {**size.to_dict(), "latency_ms": speed.to_dict()}
        return {"schema": SCHEMA, **sides, "metrics": dict(self.metrics)}

    def __str__(self) -> str:
        (a, b), (s, t) = self.costs, self.latencies
        rows = [
            ("", "original", "pruned", "ratio"),
            ("parameters", f"{a.parameters:,}", f"{b.parameters:,}", _ratio(b.parameters, a.parameters)),
            ("MACs", f"{a.macs:,}", f"{b.macs:,}", _ratio(b.macs, a.macs)),
            ("size", megabytes(a.bytes), megabytes(b.bytes), _ratio(b.bytes, a.bytes)),
            ("latency, median", f"{s.median:.3f} ms", f"{t.median:.3f} ms", _ratio(t.median, s.median)),
            ("latency, quartiles", f"{s.low:.3f}-{s.high:.3f} ms", f"{t.low:.3f}-{t.high:.3f} ms", ""),
        ]
        return columns([*rows, *changes(self.metrics)], right=(1, 2, 3))


def compare(
    original: Source, pruned: Source, *, data: str | Path | Mapping[str, Array] | None = None, seed: int = 0, runs: int = 50
) -> Comparison:
    """Measure two models with the same inputs and outputs. Latency: one thread, runs of the two interleaved.

    Raises:
        ModelError: a model can't be read or run.
        DataError: the data do not fit, or the models' inputs differ.
    """
    graphs = load(original), load(pruned)
    if [p.name for p in graphs[0].inputs] != [p.name for p in graphs[1].inputs]:
        names = [[p.name for p in g.inputs] for g in graphs]
        raise DataError(f"the models can't be compared: their inputs are {names[0]} and {names[1]}")
    shapes = infer(graphs[0]), infer(graphs[1])
    models = graphs[0].assemble().ready(), graphs[1].assemble().ready()
    dataset = None if data is None else datasets.read(data, graphs[0].inputs)
    if dataset is None:
        feeds = random_feeds(graphs[0].inputs, shapes[0].inputs, np.random.default_rng(seed))
    else:
        feeds = (
            {n: v[:1] for n, v in dataset.inputs.items()} if _takes_one(graphs[0]) else next(dataset.batches(graphs[0].inputs))[0]
        )
    latencies = interleaved(models, feeds, runs=runs)
    metrics = {} if dataset is None else measure(models, dataset, graphs[0].inputs, loss=True)
    return Comparison((cost(graphs[0], shapes[0]), cost(graphs[1], shapes[1])), latencies, metrics)


def _takes_one(graph: Graph) -> bool:
    return all(not p.shape or not isinstance(p.shape[0], int) or p.shape[0] == 1 for p in graph.inputs)


def _ratio(part: float, whole: float) -> str:
    return f"{part / whole:.3f}" if whole else "-"
