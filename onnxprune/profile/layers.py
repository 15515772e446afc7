"""Layers as a processor sees them: what kind, on what map, and how wide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from onnxprune.graph import Graph
from onnxprune.rules import Call, describe
from onnxprune.shapes import Shapes

Widths = tuple[Any, Any]
"""Channels that go in and that come out: integers, or integer arrays that broadcast."""


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """A kind of layer.

    Attributes:
        op: ``"Conv"``, or ``"MatMul"`` for any product with a stored matrix.
        kernel, strides, dilations: of a Conv, one number for each axis of its map.
        groups: 1 for dense layers, 0 for depthwise ones (a filter for each channel), else how many groups there are.
    """

    op: str
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1

    def __str__(self) -> str:
        size = "x".join(map(str, self.kernel))
        parts = [{0: "depthwise", 1: ""}.get(self.groups, f"{self.groups} groups"), self.op, size]
        parts += [f"stride {'x'.join(map(str, self.strides))}"] if any(s > 1 for s in self.strides) else []
        parts += [f"dilation {'x'.join(map(str, self.dilations))}"] if any(d > 1 for d in self.dilations) else []
        return " ".join(filter(None, parts))


@dataclass(frozen=True, slots=True, order=True)
class Layer:
    """A layer of a network. ``place``: the map that a Conv reads, or the number of rows of a product, one sample."""

    kind: Kind
    place: tuple[int, ...]
    inputs: int
    outputs: int

    @property
    def work(self) -> float:
        """Multiply-accumulate operations, borders aside."""
        return float(work(self.kind, self.place, self.inputs, self.outputs))


def work(kind: Kind, place: tuple[int, ...], inputs: Any, outputs: Any) -> Any:
    """Multiply-accumulate operations of a layer, borders aside; for integers or arrays."""
    each = outputs if kind.groups == 0 else inputs * outputs / kind.groups
    return each * math.prod(kind.kernel) * math.prod(place) / max(1, math.prod(kind.strides))


def layer(call: Call) -> Layer | None:
    """What a node is to a processor; None for what is neither a convolution nor a product with a stored matrix."""
    if not call.node.standard or len(call.inputs) < 2 or not call.shape(0) or not call.shape(1):
        return None
    x, w = call.shape(0), call.shape(1)
    if call.node.op == "Conv" and len(x) > 2:
        axes, groups = len(x) - 2, int(call.attribute("group", 1))
        ones = (1,) * axes
        strides, dilations = (tuple(call.attribute(name, None) or ones) for name in ("strides", "dilations"))
        groups = 0 if groups > 1 and w[1] == 1 and w[0] == groups else groups
        return Layer(Kind("Conv", tuple(w[2:]), strides, dilations, groups), tuple(x[2:]), x[1], w[0])
    if call.node.op in ("Gemm", "MatMul") and len(w) == 2:
        i, o = _widths_of_product(call)
        return Layer(Kind("MatMul"), (max(1, math.prod(x) // max(i, 1)),), i, o)
    return None


def widths(call: Call) -> Widths:
    """The widths of a call of which :func:`layer` knows the kind, whose sizes may be arrays."""
    return (call.shape(0)[1], call.shape(1)[0]) if call.node.op == "Conv" else _widths_of_product(call)


def _widths_of_product(call: Call) -> Widths:
    w = call.shape(1)
    return (w[1], w[0]) if call.node.op == "Gemm" and call.attribute("transB", 0) else (w[0], w[1])


def layers(graph: Graph, shapes: Shapes) -> list[Layer]:
    """The layers of a graph that can be measured, each once."""
    found = []
    for node in graph.nodes:
        known = layer(describe(graph, node, shapes)) if not node.border else None
        if known is not None and (known.kind.op == "Conv" or node.inputs[1] in graph.weights):
            found.append(known)
    return sorted(set(found))
