"""Recurrent layers as linear ones: the sums that go into the gates of an LSTM, GRU or RNN.

They are linear in what comes in and in the hidden state of the step before, ``W x_t + R h_(t-1) + b``. A row is both; the
hidden state is the original's, of the units that are left ("teacher forcing": Williams and Zipser 1989), so that each step is
fitted by itself, and ``x_t`` is what comes in by then. What the rows should give are the original's sums.

A GRU's candidate reads the state through the reset gate. With ``linear_before_reset`` that gate works on the state's sums, so
that ``W x_t`` and ``R h_(t-1)`` are fitted each for itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from onnx import ModelProto

from onnxprune.channels import Coupling
from onnxprune.flow import Site
from onnxprune.graph import Graph
from onnxprune.labels import BoolArray, IntArray
from onnxprune.leastsquares.linear import Grid, Linear, spaced
from onnxprune.leastsquares.stored import Stored, left
from onnxprune.rules import Call
from onnxprune.rules.recurrent import GATES
from onnxprune.structure import Node
from onnxprune.weights import Array


@dataclass(frozen=True, eq=False)
class Gates(Linear):
    """The sums of some gates of one direction.

    ``chosen``: their rows in the weights. ``biases``: where in the two biases, one after the other, what is added to them is;
    the first takes changes. ``backwards``: whether it goes from the last step to the first. ``first``: the stored state that it
    starts from, if it is stored. ``reset``: what the state goes through, if anything, before it is multiplied.
    """

    graph: Graph
    direction: int
    chosen: IntArray
    biases: tuple[IntArray, ...]
    parts: str
    backwards: bool
    first: Array | None
    reset: Gates | None = None

    def made(self, coupling: Coupling, removed: BoolArray) -> BoolArray:
        """Which of its sums are left, (1, outputs)."""
        return left(coupling, Site(self.reads[0].tensor, 1), removed)[None, self.chosen]

    def witnesses(self, end: str) -> tuple[str, ...]:
        """What comes in, what comes out, and the state that it starts from: the sums themselves are no tensor."""
        node = self.call.node
        return (node.inputs[0], states(node), *filter(None, (node.input(5) if self.first is None else "",)))

    def grid(self, witnesses: Sequence[Array], most: float, turn: int) -> Grid:
        """Evenly spaced steps, about ``most`` of all; others for each ``turn``."""
        return spaced(witnesses[0].shape[:1], most, turn)

    def samples(self, witnesses: Sequence[Array]) -> int:
        """How many samples there are: the second axis."""
        return int(witnesses[0].shape[1])

    def sums(self, witnesses: Sequence[Array], grid: Grid) -> Array:
        """The sums at the steps of a grid, (rows, outputs)."""
        matrix = self.matrix([one.seen(self.graph.weights.read(one.tensor)) for one, _ in self.stored])[0]
        (rows,) = self.rows(witnesses[:1], witnesses, grid)
        return rows @ np.concatenate([matrix, self.bias(self.graph)]).astype(np.float32)

    def rows(self, operands: Sequence[Array], witnesses: Sequence[Array], grid: Grid) -> Iterator[Array]:
        """What is read at the steps of a grid, float32 (rows, columns + 1); the last column is one."""
        found = [operands[0][grid]] if "x" in self.parts else []
        found += [self._state(witnesses)[grid]] if "h" in self.parts else []
        one = np.ones((*found[0].shape[:2], 1), np.float32)
        yield np.concatenate([*found, one], axis=2, dtype=np.float32).reshape(-1, self.columns + 1)

    @property
    def saturates(self) -> bool:
        """Whether all of its activations are sigmoids and hyperbolic tangents."""
        given = {a.decode() if isinstance(a, bytes) else str(a) for a in self.call.attribute("activations", ())}
        return {name.lower() for name in given} <= {"sigmoid", "tanh"}

    def _state(self, witnesses: Sequence[Array]) -> Array:
        """The state of the step before, as it is multiplied, (steps, samples, units)."""
        made = witnesses[1][:, self.direction]
        given = self.first if self.first is not None else witnesses[2] if len(witnesses) > 2 else None
        first = np.zeros_like(made[:1]) if given is None else np.broadcast_to(given[self.direction], made[:1].shape)
        before = np.concatenate([made[1:], first] if self.backwards else [first, made[:-1]])
        if self.reset is None:
            return before
        every = slice(None)
        opened = 1 / (1 + np.exp(-self.reset.sums(witnesses, (every,))))
        return np.asarray(before * opened.reshape(before.shape))

    def matrix(self, values: Sequence[Array]) -> Array:
        """The weights as float64 (1, columns, outputs)."""
        return np.concatenate([v[self.direction, self.chosen].T.astype(np.float64) for v in values])[None]

    def tensors(self, matrix: Array, values: Sequence[Array]) -> list[Array]:
        """The way back: the weights in their own form, float64."""
        found, at = [], 0
        for old in values:
            new, size = old.astype(np.float64), old.shape[2]
            new[self.direction, self.chosen] = matrix[0, at : at + size].T
            found.append(new)
            at += size
        return found

    def bias(self, graph: Graph) -> Array:
        """What is added, float64 (1, outputs)."""
        name = self.call.node.input(3)
        if not name:
            return np.zeros((1, self.outputs))
        values = graph.weights.read(name)[self.direction].astype(np.float64)
        return np.asarray(sum(values[at] for at in self.biases))[None]

    def added(self, change: Array) -> Array:
        """What a change of the bias (1, outputs) adds to the layer's biases, all of them."""
        found = np.zeros(self.call.shape(3))
        found[self.direction, self.biases[0]] = change[0]
        return found.ravel()


def gates_of(coupling: Coupling, call: Call) -> list[Gates]:
    """The linear layers in a recurrent one; none where its weights are computed, or samples are of different lengths."""
    node, graph = call.node, coupling.graph
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[
        str(call.attribute("direction", "forward"))
    ]
    whole = [Stored.of(coupling, node, k) for k in (1, 2)]
    bias, state = node.input(3), node.input(5)
    if None in whole or node.input(4) or call.attribute("layout", 0) or (bias and bias not in graph.weights):
        return []
    first = graph.weights.read(state) if state in graph.weights else None
    units = call.shape(2)[2]
    every = np.arange(GATES[node.op] * units)
    weights = {part: (stored, 2) for part, stored in zip("xh", whole, strict=True) if stored is not None}
    slot = (node, 3, 1.0) if bias else None

    def part(direction: int, back: bool, letters: str, chosen: IntArray, *biases: IntArray, reset: Gates | None = None) -> Gates:
        read = tuple(weights[letter] for letter in letters)
        sources = (*((node.inputs[0],) if "x" in letters else ()), *(filter(None, node.outputs) if "h" in letters else ()))
        inputs = sum(coupling.flow.tensors[one.name].shape[2] for one, _ in read)
        operands = (node.inputs[0],) if "x" in letters else ()
        return Gates(
            *(call, read, slot, 1, inputs, len(chosen), 1, operands, sources),
            *(graph, direction, chosen, biases, letters, back, first, reset),
        )

    found: list[list[Gates]] = []
    for direction, back in enumerate(backwards):
        if node.op != "GRU":
            found.append([part(direction, back, "xh", every, every, every + len(every))])
            continue
        gates, new, half = every[: 2 * units], every[2 * units :], len(every)
        opening = part(direction, back, "xh", gates, gates, gates + half)
        if call.attribute("linear_before_reset", 0):
            found.append([opening, part(direction, back, "x", new, new), part(direction, back, "h", new, new + half)])
        elif _is_usual(call):
            reset = part(direction, back, "xh", gates[units:], gates[units:], gates[units:] + half)
            found.append([opening, part(direction, back, "xh", new, new, new + half, reset=reset)])
    return list(chain(*found))


def _is_usual(call: Call) -> bool:
    """Whether its gates are sigmoids."""
    given = [a.decode() if isinstance(a, bytes) else str(a) for a in call.attribute("activations", ())]
    return all(name.lower() == "sigmoid" for name in given[::2])


def states(node: Node) -> str:
    """The tensor of a recurrent layer's states at all steps; a name for it where it has none."""
    return node.outputs[0] or f"{node.result}::states"


def with_states(model: ModelProto, layers: Sequence[Linear]) -> ModelProto:
    """The same model, which is changed: the states of recurrent layers that have none are written."""
    unnamed = {layer.call.node.outputs[1:]: states(layer.call.node) for layer in layers if not layer.call.node.outputs[0]}
    for node in model.graph.node if unnamed else ():
        if node.op_type in GATES and tuple(node.output[1:]) in unnamed and not node.output[0]:
            node.output[0] = unnamed[tuple(node.output[1:])]
    return model
