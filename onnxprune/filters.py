"""Which stored tensors are filters, and what their axes stand for: read off the operator table, not off operators' names."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from onnxprune.errors import ModelError
from onnxprune.flow import Flow, Step
from onnxprune.graph import Graph
from onnxprune.labels import BoolArray, Fill, IntArray
from onnxprune.masks import Layout
from onnxprune.rules import Signature
from onnxprune.rules.notation import Token, letters
from onnxprune.runtime import Kernels
from onnxprune.structure import Node
from onnxprune.weights import FLOATS, QUANTISED, Array


@dataclass(frozen=True, slots=True)
class Inputs:
    """An activation: its name, its shape with composed axes taken apart, and what each axis is called (empty: nothing).

    ``parts``: into how many each axis is taken apart.
    """

    tensor: str
    shape: tuple[int, ...]
    letters: tuple[str, ...]
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """A stored tensor that is multiplied with activations and summed over, by ``node``.

    ``layout``: of the operand that becomes of it, and ``letters``, the notation's name for each of its axes. ``inputs``: the
    activation that it is multiplied with, and the letters of its axes (None where that is a recurrent layer's own state).
    ``order``: where each element of the operand lies in the stored tensor,
    None where that is the operand. ``chain``: the nodes between them. ``fill``: what stands for zero in the stored tensor.
    """

    tensor: str
    node: Node
    layout: Layout
    letters: tuple[str, ...]
    inputs: Inputs | None = None
    chain: tuple[Node, ...] = ()
    order: IntArray | None = None
    fill: Fill = field(default_factory=Fill)

    def arranged(self, values: Array) -> Array:
        """Something of the stored tensor's shape as the operand has it."""
        return values if self.order is None else values.reshape(-1)[self.order].reshape(self.layout.shape)

    def stored(self, mask: BoolArray, shape: tuple[int, ...]) -> BoolArray:
        """A mask of the operand as one of the stored tensor."""
        if self.order is None:
            return mask.reshape(shape)
        found = np.empty(mask.size, np.bool_)
        found[self.order] = mask.reshape(-1)
        return found.reshape(shape)

    def read(self, graph: Graph) -> Array:
        """What the filter is worth, in the operand's order: floats, also where integers are stored."""
        stored = graph.weights.read(self.tensor)
        return stored if not self.chain else _run(graph, self.chain, self.tensor, stored)


def find_filters(state: Flow) -> tuple[Filter, ...]:
    """The filters of a graph through which labels have flowed, in the order in which they are first read.

    An operand is one if it has all the letters of an activation that vanish from the results, or one letter on two axes (as
    recurrent weights have). It is its stored tensor, or follows from that alone by operators that move elements or keep
    zeros zero (Transpose, Cast, DequantizeLinear, ...), of which every element arrives once; other tensors are computed.
    """
    found: dict[str, Filter] = {}
    steps = {name: step for step in state.steps for name in step.call.node.outputs if name}
    for step in state.steps:
        signature = step.rule.fit(step.call) if step.understood and not step.moved and step.rule is not None else None
        for k, axes, inputs in _operands(state, step, signature) if signature is not None else ():
            filter_ = _traced(state, steps, step.call.node, k, axes, inputs)
            if filter_ is not None:
                found.setdefault(filter_.tensor, filter_)
    return tuple(found.values())


@dataclass(frozen=True, slots=True)
class _Axes:
    """What the axes of an operand stand for, composed ones taken apart: a letter, ``*``, or nothing."""

    layout: Layout
    letters: tuple[str, ...]
    parts: tuple[int, ...]


def _operands(state: Flow, step: Step, signature: Signature) -> Iterator[tuple[int, _Axes, Inputs | None]]:
    """The operands of a node that are filters, and what each is multiplied with."""
    call = step.call
    tokens = {k: pattern.expand(call.rank(k)) for k, pattern in enumerate(signature.operands) if call.node.input(k)}
    stays = {t for pattern in signature.results for token in pattern.tokens for t in letters(token)}
    sizes = dict(signature.sizes)
    for k, spelt in tokens.items():
        sizes |= {t: n for t, n in zip(spelt, call.shape(k), strict=True) if isinstance(t, str) and n > 1} if spelt else {}
    apart = {k: _apart(spelt, call.shape(k), stays, sizes) for k, spelt in tokens.items() if spelt is not None}
    for k, axes in apart.items():
        name, named = call.node.inputs[k], [t for t in axes.letters if t not in ("", "*")]
        if not state.is_weight(name) or state.shapes.elem_types.get(name) not in FLOATS:
            continue
        inputs = None
        for other, theirs in apart.items():
            gone = {t for t, role in zip(theirs.letters, theirs.layout.roles, strict=True) if role == "i"}
            if not state.is_weight(call.node.inputs[other]) and gone and gone <= set(named):
                inputs = Inputs(call.node.inputs[other], theirs.layout.shape, theirs.letters, theirs.parts)
        if inputs is not None or len(set(named)) < len(named):
            yield k, axes, inputs


def _apart(tokens: tuple[Token, ...], shape: tuple[int, ...], stays: set[str], sizes: Mapping[str, int]) -> _Axes:
    """Axes that are composed are taken apart, unless their parts lie side by side."""
    found: list[tuple[int, str]] = []
    ends = [0]
    for token, size in zip(tokens, shape, strict=True):
        names = letters(token)
        if isinstance(token, str) or "+" in token:
            found.append((size, "*" if token == "*" else names[0] if isinstance(token, str) and names else ""))
        else:
            known = [sizes.get(t, 0) for t in names]
            rest = size // max(1, math.prod(n for n in known if n))
            found += [(n or rest, t) for n, t in zip(known, names, strict=True)]
        ends.append(len(found))
    named = tuple(t for _, t in found)
    gone = [(t not in stays and not t.startswith(".")) or t in named[:k] for k, t in enumerate(named)]
    roles = ("*" if t == "*" else "i" if t and g else "o" for t, g in zip(named, gone, strict=True))
    return _Axes(Layout(tuple(n for n, _ in found), "".join(roles)), named, tuple(b - a for a, b in pairwise(ends)))


def _traced(state: Flow, steps: Mapping[str, Step], reader: Node, k: int, axes: _Axes, inputs: Inputs | None) -> Filter | None:
    """The filter that an operand is, or None if it does not follow from one stored tensor as a filter must."""
    graph, way = state.graph, dict[str, Node]()
    sources = _trace(graph, steps, reader.inputs[k], way)
    if sources is None or len(sources) != 1:
        return None
    name, chain = sources.pop(), tuple(way.values())
    quantised = graph.weights.elem_type(name) in QUANTISED
    fill = state.fills.get(name) if quantised else Fill()
    if fill is None or not (quantised or graph.weights.elem_type(name) in FLOATS):
        return None
    if not chain:
        return Filter(name, reader, axes.layout, axes.letters, inputs, fill=fill)
    moving = {node.outputs[0] for node in chain if steps[node.outputs[0]].moved}
    shape = graph.weights.shape(name)
    zeros = np.broadcast_to(fill.over(shape), shape).astype(graph.weights.read(name).dtype)
    places = np.arange(zeros.size)
    try:
        order = np.ravel(_run(graph, chain, name, places.reshape(shape), moving))
        kept = not np.any(_run(graph, chain, name, zeros))
    except ModelError:  # what onnxruntime can't run is no filter
        return None
    whole = kept and order.size == math.prod(axes.layout.shape) and np.array_equal(np.sort(order), places)
    return Filter(name, reader, axes.layout, axes.letters, inputs, chain, order, fill) if whole else None


def _trace(graph: Graph, steps: Mapping[str, Step], name: str, way: dict[str, Node]) -> set[str] | None:
    """The stored tensors whose elements arrive in a tensor; the nodes on the way are added to ``way``, by their output."""
    if name in graph.weights:
        return {graph.uses[name].tensor if name in graph.uses else name}
    step = steps.get(name)
    if step is None or step.rule is None or step.call.node.border or len(step.call.node.outputs) != 1:
        return None
    found: set[str] = set()
    for k in step.rule.carries(step.call.node) if step.moved else (0,):
        sources = _trace(graph, steps, step.call.node.inputs[k], way)
        if sources is None:
            return None
        found |= sources
    way[name] = step.call.node
    return found


def _run(graph: Graph, chain: tuple[Node, ...], name: str, values: Array, only: Container[str] | None = None) -> Array:
    """What some nodes make of a stored tensor; if not all of them count, the others leave it as it is."""
    run, known = Kernels(graph), {name: values}
    for node in chain:
        inputs = [graph.uses[n].tensor if n in graph.uses else n for n in node.inputs]
        if only is None or node.outputs[0] in only:
            operands = [known[n] if n in known else graph.weights.read(n) if n else None for n in inputs]
            values = run(node, operands)[0]
        else:
            values = known[inputs[0]]
        known[node.outputs[0]] = values
    return values
