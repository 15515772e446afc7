"""What is looked at: which stored tensors may be made sparse, why the others may not, and what their elements are worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from onnxprune.data import Dataset
from onnxprune.errors import OptionError, UsageError
from onnxprune.filters import Filter, find_filters
from onnxprune.flow import flow, matching
from onnxprune.graph import Graph
from onnxprune.shapes import Shapes
from onnxprune.sparsify.activations import channels, is_readable, root_mean_squares
from onnxprune.sparsify.record import Left
from onnxprune.sparsify.slopes import slopes
from onnxprune.weights import PARAMETERS, QUANTISED, Array

CRITERIA = ("magnitude", "activation", "relative", "taylor", "gradient")
FROM_ACTIVATIONS = ("activation", "relative")
"""Criteria that need samples, but no labels and no derivatives."""

LAYERS = ("all", "conv", "dense")


def check(criterion: str, layers: str, data: object) -> None:
    """Make sure that a choice can be made.

    Raises:
        UsageError: a criterion that does not exist, or one that needs data without them.
        OptionError: an option outside its range.
    """
    if criterion not in CRITERIA:
        raise UsageError(f"criterion {criterion!r} does not exist; choose one of {', '.join(CRITERIA)}")
    if criterion != "magnitude" and data is None:
        raise UsageError(f"criterion {criterion} is measured on samples; give --data")
    if layers not in LAYERS:
        raise OptionError(f"layers is {layers!r}; choose {' or '.join(LAYERS)}")


def choose(
    graph: Graph, shapes: Shapes, freeze: tuple[str, ...], layers: str, criterion: str
) -> tuple[dict[str, Filter], tuple[Left, ...]]:
    """The filters by stored tensor, and what is left alone.

    Raises:
        UsageError: a pattern matches nothing.
    """
    named: dict[str, str] = {}
    for pattern in freeze:
        found = matching(graph, pattern)
        if not found:
            raise UsageError(f"--freeze {pattern!r} matches no node and no tensor; `onnxprune inspect` lists the names")
        named |= dict.fromkeys(found, f"frozen by --freeze {pattern}")
    chosen: dict[str, Filter] = {}
    reasons: dict[str, str] = {}
    for f in find_filters(flow(graph, shapes, {}, {})):
        kind = "conv" if f.layout.axes("*") else "dense"
        if f.tensor in named or f.node.name in named:
            reasons[f.tensor] = named.get(f.tensor) or named[f.node.name]
        elif layers not in ("all", kind):
            reasons[f.tensor] = f"only {layers} layers were asked for"
        elif criterion in FROM_ACTIVATIONS and not is_readable(graph, f):
            reasons[f.tensor] = f"multiplied with what can't be read from outside, which {criterion} needs; take magnitude"
        elif criterion in ("taylor", "gradient") and graph.weights.elem_type(f.tensor) in QUANTISED:
            reasons[f.tensor] = f"stored as integers, by which {criterion} can't differentiate; take magnitude"
        else:
            chosen[f.tensor] = f
    return chosen, _left(graph, chosen, reasons)


def _left(graph: Graph, chosen: Mapping[str, Filter], reasons: Mapping[str, str]) -> tuple[Left, ...]:
    """Matrices and larger tensors that are not among the chosen, by reason, the most parameters first."""
    groups: dict[str, list[tuple[str, int]]] = {}
    for name in graph.weights:
        wide = sum(size > 1 for size in graph.weights.shape(name)) > 1
        if wide and graph.weights.is_parameter(name) and not graph.is_copy(name) and name not in chosen:
            groups.setdefault(reasons.get(name) or _why(graph, name), []).append((name, graph.weights.count(name)))
    for node, name, tensor in graph.inner_tensors:
        if len(tensor.dims) > 1 and tensor.data_type in PARAMETERS:
            groups.setdefault(f"inside {node.op}, which is not looked into", []).append((name, math.prod(tensor.dims)))
    rows = [Left(reason, tuple(n for n, _ in found), sum(count for _, count in found)) for reason, found in groups.items()]
    return tuple(sorted(rows, key=lambda row: -row.parameters))


def _why(graph: Graph, name: str) -> str:
    if graph.weights.elem_type(name) in QUANTISED:
        return "integers without a scale of their own; make the float model sparse, then quantise it (zeros stay zeros)"
    readers = sorted({node.op for node in graph.consumers.get(name, ())})
    return f"read by {' and '.join(readers) or 'nothing'}: no factor of a sum of products, or computed from several tensors"


class Worth(Mapping[str, Array]):
    """By stored tensor, numbers whose magnitude says what each element is worth; made when they are asked for.

    ``"magnitude"``: w. ``"activation"``: w times the root mean square of the activations that it is multiplied with (Wanda,
    arXiv:2306.11695). ``"relative"``: the same for the share that |w| has in the sum of its output's weights, plus that in
    the sum of its input's (RIA, Zhang et al., ICLR 2024, which takes the root of the activations' size; their size itself does
    better here). ``"taylor"``: w dL/dw, the first-order change of the loss L if w becomes zero. ``"gradient"``: dL/dw.
    """

    def __init__(self, graph: Graph, shapes: Shapes, filters: Mapping[str, Filter], criterion: str, data: Dataset | None) -> None:
        self._graph, self._filters, self._criterion = graph, filters, criterion
        self._known: Mapping[str, Array] = {}
        if data is not None and filters and criterion != "magnitude":
            forward = criterion in FROM_ACTIVATIONS
            self._known = root_mean_squares(graph, filters, data) if forward else slopes(graph, shapes, data, list(filters))

    def __getitem__(self, name: str) -> Array:
        found = self._filters[name]
        if self._criterion == "magnitude":
            return found.read(self._graph)
        known = self._known[name]
        if self._criterion in FROM_ACTIVATIONS:
            values = found.read(self._graph).astype(np.float32).reshape(found.layout.shape)
            return np.asarray((_shares(values, found) if self._criterion == "relative" else values) * known)
        if self._criterion == "taylor":
            known = known * self._graph.weights.read(name).astype(known.dtype)
        return found.arranged(known)

    def __iter__(self) -> Iterator[str]:
        return iter(self._filters)

    def __len__(self) -> int:
        return len(self._filters)


def _shares(values: Array, found: Filter) -> Array:
    """The share of each weight in what reaches its output, plus that in what leaves its input."""
    magnitude = np.abs(values)
    inputs = channels(found.inputs, found.letters) if found.inputs is not None else ()
    to_output = tuple(a for a, role in enumerate(found.layout.roles) if role != "o")
    from_input = tuple(a for a, letter in enumerate(found.letters) if letter not in inputs)
    sums = (magnitude.sum(axis=axes, keepdims=True, dtype=np.float64) for axes in (to_output, from_input))
    return np.asarray(sum(magnitude / np.where(total > 0, total, 1) for total in sums))


def zeros(values: Array, zero: Array | int) -> int:
    """How many elements have the value that stands for zero."""
    return int(np.count_nonzero(values == zero))
