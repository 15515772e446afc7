"""The choices of PAODING-DL 1.0 (Meng et al. 2023), with what that release does otherwise than its paper, for comparison.

- The saliency of a pair is weighted with what reads the unit that *stays*, and the pair of the lowest is always passed over.
- Two biases of 0 give 0/0: such pairs come last, in the order of their indices; without biases those of the lowest merge.
- Each unit is in one pair of a step; one that stands in is in another of a later step only if ``recursive``.
- Units of the first dense layer are taken to lie in the input interval; once anything has left, in (0, 1).
- The change at the next layer is followed to the outputs with biases, and cut off at 0 as activations are.
- The sigmoid of its size is exactly 1 in wide layers: only the evenness counts then, and among equals the saliency.

Deliberately otherwise: what has left doesn't come back, where the original's annealing forgets some of it and merges it again;
a chain of one hidden layer is pruned, where the original finds too few; its draws are those of Python's generator, seeded anew
in each layer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from math import ceil, exp

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.errors import ModelError
from onnxprune.flow import Flow
from onnxprune.importance.impact import evenness
from onnxprune.importance.options import Options
from onnxprune.importance.pairs import Pairs
from onnxprune.importance.saliency import Saliency, saliency
from onnxprune.importance.scene import Scene
from onnxprune.importance.units import Units
from onnxprune.labels import BoolArray, IntArray
from onnxprune.runtime import Kernels
from onnxprune.structure import Node
from onnxprune.weights import Array

MODES = ("saliency", "impact", "stochastic")

Pair = tuple[int, int]
"""Units (stays, leaves)."""

_LINE = (0, -64, -1, 1, 64)
"""What activations are tried on."""


@dataclass(eq=False)
class Dense:
    """A dense layer at its full size; what has left is read with weights 0.

    ``weights`` (inputs, units), ``bias`` (units,), ``owners`` (units,): their components; ``relu``: whether a ReLU comes
    between it and the next one. Anything else the original takes for a sigmoid.
    """

    weights: Array
    bias: Array
    owners: IntArray
    relu: bool = False


class Paoding(Saliency):
    """A criterion as PAODING-DL 1.0 has it; ``mode`` is one of ``MODES``.

    Other layers' channels, and all of a model whose dense layers are not one chain (2-D inputs, each read by the next
    alone): the L1 norm of their filters. Scaling between two layers, as by BatchNormalization, is skipped as there. Where
    groups are ranked together, which the original can't, they are ranked as by :class:`Saliency`.
    """

    def __init__(self, mode: str, options: Options | None = None) -> None:
        super().__init__(options)
        self.mode = mode
        self._tables: tuple[Flow | None, dict[int, Array]] = (None, {})

    def nominate(self, scene: Scene, number: int, count: int) -> Pairs | None:
        """At most ``count`` pairs, handed over as they are (``scales`` 1); fewer where units are used once and run out."""
        layers = chain(scene)
        at = _place(layers, scene, number)
        if at is None:
            return None
        used = self._used(scene, number, layers[at])
        wanted = {"saliency": count, "impact": ceil(count * self.options.pool)}.get(self.mode)
        pool = list(islice(candidates(self._costs(scene, number, layers[at : at + 2]), used), wanted))
        if self.mode != "saliency" and pool:
            interval = (0.0, 1.0) if gone(scene).any() else self.options.interval
            scores = self._scores(layers, at, interval, pool)
            order = np.argsort(scores, kind="stable")[:count].tolist()
            pool = [pool[k] for k in order] if self.mode == "impact" else self._walk(pool, scores, count, used)
        rows = {int(root): row for row, root in enumerate(scene.group(number).roots)}
        stays, leaves = (np.array([rows[int(layers[at].owners[pair[k]])] for pair in pool], np.int64) for k in (0, 1))
        return Pairs(leaves, stays, np.ones(len(pool)))

    def _used(self, scene: Scene, number: int, layer: Dense) -> BoolArray:
        """The units of a layer that may not take part."""
        used: BoolArray = ~np.isin(layer.owners, scene.group(number).roots)
        return used if self.options.recursive else used | scene.heirs[layer.owners]

    def _costs(self, scene: Scene, number: int, layers: list[Dense]) -> Array:
        """The table of a group; where saliency alone counts, that of the first step for good."""
        if self.mode != "saliency":
            return table(*layers)
        if self._tables[0] is not scene.coupling.flow:
            self._tables = (scene.coupling.flow, {})
        if number not in self._tables[1]:
            self._tables[1][number] = table(*layers)
        return self._tables[1][number]

    def _scores(self, layers: list[Dense], at: int, interval: tuple[float, float], pool: list[Pair]) -> Scores:
        """``alpha sigmoid(L) + beta sigmoid(E)`` of the size and the evenness of what each pair does to the outputs."""
        low, high = definition(layers[: at + 1], interval)
        a, b = np.array(pool, np.int64).T
        rows = layers[at + 1].weights[a].astype(np.float64)
        down, up = (low[a] - high[b])[:, None] * rows, (high[a] - low[b])[:, None] * rows
        low, high = np.where(rows > 0, down, up), np.where(rows > 0, up, down)
        for here, there in pairwise(layers[at + 1 :]):
            low, high = through(there, low, high)
            if there is not layers[-1]:
                low, high = (np.maximum(x, 0) if here.relu else sigmoid(x) for x in (low, high))
        alpha, beta = self.options.params
        return np.asarray(alpha * sigmoid(np.abs(high - low).sum(axis=1)) + beta * sigmoid(evenness((low, high))))

    def _walk(self, pool: list[Pair], scores: Scores, count: int, used: BoolArray) -> list[Pair]:
        """Annealing; a pair that is taken again in a later round counts again, so that fewer may leave than wanted."""
        draw, last, hits, taken = random.Random(self.options.seed), np.inf, 0, dict[Pair, None]()
        while hits < count:
            for (a, b), score in zip(pool, scores.tolist(), strict=True):
                heat = 1.0001 - int(used.sum()) / len(used)
                if hits == count:
                    break
                if score <= last or draw.random() < exp((last - score) / heat):
                    last, hits, taken[a, b] = score, hits + 1, None
                    used[a] &= not self.options.recursive
                else:
                    used[[a, b]] = False
        return list(taken)


def table(layer: Dense, after: Dense) -> Array:
    """The saliency where unit i leaves and j stands in for it, (units, units); NaN where both biases are 0."""
    units = Units(layer.weights.T.astype(np.float64), layer.bias, after.weights, scales=False)
    costs = saliency(units)(np.arange(len(layer.bias)))
    zero = layer.bias == 0
    costs[zero[:, None] & zero] = np.nan
    return costs


def candidates(costs: Array, used: BoolArray) -> Iterator[Pair]:
    """Pairs of units that are not ``used``, which they are from then on, by their saliency; but never the first of all."""
    stays, leaves = np.divmod(np.argsort(costs.T, axis=None, kind="stable"), len(costs))
    two = np.flatnonzero(stays != leaves)[1:]
    two = two[~used[stays[two]] & ~used[leaves[two]]]
    for a, b in zip(stays[two].tolist(), leaves[two].tolist(), strict=True):
        if not (used[a] or used[b]):
            used[[a, b]] = True
            yield a, b


def definition(layers: list[Dense], interval: tuple[float, float]) -> tuple[Array, Array]:
    """The bounds of the last layer's activations, float64 (units,), where the first one's are taken to be ``interval``."""
    low, high = (np.full(len(layers[0].bias), side, np.float64) for side in interval)
    for layer in layers[1:]:
        low, high = through(layer, low, high)
        low, high = (np.zeros_like(low), high) if layer.relu else (sigmoid(low), sigmoid(high))
    return low, high


def through(layer: Dense, low: Array, high: Array) -> tuple[Array, Array]:
    """What a layer makes of intervals, float64 (..., inputs) -> (..., units)."""
    up, down = (sign(layer.weights, 0).astype(np.float64) for sign in (np.maximum, np.minimum))
    return low @ up + high @ down + layer.bias, high @ up + low @ down + layer.bias


def sigmoid(x: Array) -> Array:
    """The logistic function."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def chain(scene: Scene) -> list[Dense]:
    """All dense layers of a model, each of which reads what the one before makes; none where they are not one chain."""
    graph, run = scene.graph, Kernels(scene.graph)
    layers, name, left = list[Dense](), "", gone(scene)
    for step in scene.coupling.flow.steps:
        node, rule = step.call.node, step.rule
        known = [graph.weights.read(n) if n in graph.weights else scene.coupling.shapes.value(n) for n in node.inputs]
        moving = [k for k, n in enumerate(node.inputs) if n and known[k] is None]
        if len(moving) != 1:
            name = "" if name in node.inputs else name
            continue
        (k,) = moving

        def first(value: Array, *, node: Node = node, known: list[Array | None] = known, k: int = k) -> Array:
            return np.asarray(run(node, [value if i == k else v for i, v in enumerate(known)])[0])

        try:
            if rule is not None and rule.product and step.call.rank(k) == 2:
                size = step.call.shape(k)[1]
                owners = _owners(scene, node.inputs[k])
                if layers and (node.inputs[k] != name or len(owners) != size or (owners != layers[-1].owners).any()):
                    return []
                bias = first(np.zeros((1, size), np.float32))[0]
                known[:] = [v if v is None or j not in (rule.plus or ()) else np.zeros_like(v) for j, v in enumerate(known)]
                weights = first(np.eye(size, dtype=np.float32))
                weights[left[owners] if layers else []] = 0
                name = node.outputs[0]
                layers.append(Dense(weights, bias, _owners(scene, name)))
            elif layers and node.inputs[k] == name:
                values = [first(np.full(step.call.shape(k), x, np.float32)) for x in _LINE]
                name = node.outputs[0] if _follow(layers[-1], values) else ""
        except ModelError:
            return []
    return layers


def _follow(layer: Dense, values: list[Array]) -> bool:
    """Add to a layer what comes after it, by what that makes of ``_LINE``; whether the next layer can still follow."""
    zero, *others = values
    if zero.shape[1:] != layer.bias.shape:
        return False
    slopes = [(value - zero) / x for value, x in zip(others, _LINE[1:], strict=True)]
    if all(np.allclose(slope, 1, atol=1e-4) for slope in slopes):
        layer.bias = layer.bias + zero[0]
    elif not all(np.allclose(slope, slopes[0], atol=1e-4) for slope in slopes):
        layer.relu = all(np.array_equal(value, np.full_like(value, max(x, 0))) for value, x in zip(values, _LINE, strict=True))
    return True


def gone(scene: Scene) -> BoolArray:
    """Marks of the components that have left."""
    marks = np.zeros(len(scene.coupling.components.root), np.bool_)
    for number, group in enumerate(scene.coupling.groups):
        marks[np.setdiff1d(group.roots, scene.group(number).roots)] = True
    return marks


def _place(layers: list[Dense], scene: Scene, number: int) -> int | None:
    """Which layer of a chain a group's channels are units of; the last has none that can leave."""
    roots = scene.coupling.groups[number].roots
    return next((at for at, layer in enumerate(layers[:-1]) if np.isin(roots, layer.owners).all()), None)


def _owners(scene: Scene, name: str) -> IntArray:
    """The components of a 2-D tensor's columns; none where they are not known."""
    factors = scene.coupling.flow.tensors[name].factors if name in scene.coupling.flow.tensors else ()
    found = [scene.coupling.components.root[f.labels.ravel()] for f in factors if f.axes == (1,)]
    return np.asarray(found[0] if found else [], np.int64)
