"""What a model costs: parameters, multiply-accumulate operations, bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxprune.graph import Graph
from onnxprune.rules import describe
from onnxprune.rules.linear import macs
from onnxprune.shapes import Shapes
from onnxprune.weights import PARAMETERS


@dataclass(frozen=True, slots=True)
class Cost:
    """``parameters``: stored float and 8-bit numbers. ``macs``: of one run with one sample (dynamic sizes at the probe).

    ``latency``: of such a run in nanoseconds, one thread; 0 where it was not measured.
    """

    parameters: int
    macs: int
    bytes: int
    latency: int = 0

    def to_dict(self) -> dict[str, int]:
        """As in the report."""
        return {"parameters": self.parameters, "macs": self.macs, "bytes": self.bytes}


def cost(graph: Graph, shapes: Shapes) -> Cost:
    """Cost of a model whose shapes were inferred."""
    stored = sum(
        graph.weights.count(name) for name in graph.weights if graph.weights.is_parameter(name) and not graph.is_copy(name)
    )
    inside = sum(math.prod(t.dims) for _, _, t in graph.inner_tensors if t.data_type in PARAMETERS)
    work = sum(macs(describe(graph, node, shapes)) for node in graph.nodes)
    return Cost(stored + inside, work, graph.stored_bytes)
