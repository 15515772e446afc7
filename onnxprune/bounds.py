"""Interval arithmetic: what values activations can take for all inputs within an interval, and what a change does to them.

Every node is run as it is, in onnxruntime, on the ends of its operands' intervals: a sum of products once with the positive
and once with the negative weights; an operator that looks at each element alone at points between the ends and at 0 as
well, so that it need not be monotone; movement, pooling and reductions on each end. What no rule tells of stays unknown.

Interval bound propagation: Gowal et al. 2018, arXiv:1810.12715; PAODING's definition map (Meng et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import onnx

from onnxprune.channels import Coupling
from onnxprune.errors import ModelError
from onnxprune.flow import Step
from onnxprune.rules import Rule
from onnxprune.rules.linear import macs
from onnxprune.runtime import Kernels
from onnxprune.weights import Array, Weights

Interval = tuple[Array, Array]
"""The lowest and the highest value of every element."""

Operands = list[Array | None]

POINTS = 17
"""Where an operator of one operand is looked at, from one end of the interval to the other."""

EDGE, CLOSE = 1 / 64, 1e-3
"""The share of an interval that counts as its end where slopes are looked at, and that which is too short to have one."""

_ENDS = ((0, -1), (1, 1))

WORK = 4_000_000_000
"""Multiply-accumulate operations that changes are followed for at most; what they have reached by then counts as the end."""

CORNERS = 3
"""Operators of more operands than this are sums or extremes: all low, or all high."""

WATCHED = 256
"""Elements of each end that are looked at, evenly spread, where there are more."""


class Bounds:
    """Bounds of the activations of a graph whose float inputs lie within ``interval``, for one sample.

    Tensors that depend on integer inputs, or that an operator without a rule for this computes, have none.
    """

    def __init__(self, coupling: Coupling, interval: tuple[float, float] = (0.0, 1.0), weights: Weights | None = None) -> None:
        self.coupling, self.weights = coupling, coupling.graph.weights if weights is None else weights
        self._run = Kernels(coupling.graph)
        self._found: dict[str, Interval] = {}
        for port in coupling.graph.inputs:
            dtype, shape = onnx.helper.tensor_dtype_to_np_dtype(port.elem_type), coupling.shapes.inputs[port.name]
            if dtype.kind == "f":
                self._found[port.name] = np.full(shape, interval[0], dtype), np.full(shape, interval[1], dtype)
        for step in coupling.flow.steps:
            try:
                self._found |= _named(step, self._bound(step))
            except ModelError:
                continue  # what onnxruntime can't run alone stays unknown

    def of(self, name: str) -> Interval | None:
        """The bounds of a tensor; the same array twice where it is constant; None where they are not known."""
        if name not in self._found:
            value = self.weights.read(name) if name in self.weights else self.coupling.shapes.value(name)
            if value is None:
                return None
            self._found[name] = (value, value)
        return self._found[name]

    def operands(self, step: Step) -> list[Interval | None] | None:
        """Bounds of all operands of a node; None in the place of those that are left out, or for all if any is unknown."""
        node = step.call.node
        found = [self.of(name) if name else None for name in node.inputs]
        known = all(o is not None for o, name in zip(found, node.inputs, strict=True) if name)
        return found if known and not node.border and not node.captured else None

    def _bound(self, step: Step) -> list[Interval]:
        """Bounds of a node's results, the first ones or all; none where they are not known."""
        operands = self.operands(step)
        if operands is None:
            return []
        sides = [[None if o is None else o[side] for o in operands] for side in (0, 1)]
        moving = [k for k, o in enumerate(operands) if o is not None and o[0] is not o[1]]
        if not moving:
            value = self.first(step, sides[0])
            return [(value, value)]
        rule = step.rule
        if rule is None or not step.understood:
            return []
        signature = None if step.moved else rule.fit(step.call)
        if step.moved:
            return list(zip(self.results(step, sides[0]), self.results(step, sides[1]), strict=True))
        if rule.rises:
            return [(self.first(step, sides[0]), self.first(step, sides[1]))]
        if rule.product and len(moving) == 1:
            ends = self.summed(step, rule, sides, moving[0])
            return [(np.minimum(*ends), np.maximum(*ends))]
        if signature is not None and rule.is_apart(signature):
            values = [self.first(step, point) for point in _points(operands, moving)]
            return [(np.minimum.reduce(values), np.maximum.reduce(values))]
        return []

    def results(self, step: Step, operands: Sequence[Array | None]) -> list[Array]:
        """A node's results for some operands."""
        return [np.asarray(result) for result in self._run(step.call.node, operands)]

    def first(self, step: Step, operands: Sequence[Array | None]) -> Array:
        """The first of them."""
        return self.results(step, operands)[0]

    def summed(self, step: Step, rule: Rule, sides: list[Operands], k: int, *, added: bool = True) -> Interval:
        """A sum of products of operand ``k`` with constants: its positive weights apart from its negative ones."""
        (factor,) = (j for j, o in enumerate(sides[0]) if o is not None and j != k and j not in (rule.plus or ()))
        ends = []
        for low, high in (sides, sides[::-1]):
            parts = []
            for side, sign, bias in ((low, np.maximum, added), (high, np.minimum, False)):
                operands = list(side)
                weight = operands[factor]
                assert weight is not None, "a factor that is there"
                operands[factor] = sign(weight, weight.dtype.type(0))
                for j in rule.plus or ():
                    if j < len(operands) and (o := operands[j]) is not None and not bias:
                        operands[j] = np.zeros_like(o)
                parts.append(self.first(step, operands))
            ends.append(parts[0] + parts[1])
        return ends[0], ends[1]


class Effects:
    """What changes of activations do to the end of a graph, within its ``bounds``: intervals again."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._slopes: dict[tuple[int, int], Interval] = {}

    def of(self, changes: Mapping[str, Interval]) -> Interval:
        """Follow changes of some tensors, made together, as far as they can be followed.

        Args:
            changes: low and high, float (changes, ...): the intervals of some changes of each tensor, in its shape for one
                sample without the first axis.

        Returns:
            low, high: (changes, elements), the intervals of the resulting changes of the graph's outputs, or of what the
            changes reach beyond which they can't be followed. No elements where nothing reads the tensors.
        """
        count = len(next(iter(changes.values()))[0])
        try:
            return self._followed(changes, count)
        except (ModelError, ValueError):  # a size of one sample is written down somewhere
            if count == 1:
                flat = [[side.reshape(1, -1) for side in change] for change in changes.values()]
                return np.concatenate([f[0] for f in flat], axis=1), np.concatenate([f[1] for f in flat], axis=1)
            ends = [self.of({n: (low[i : i + 1], high[i : i + 1]) for n, (low, high) in changes.items()}) for i in range(count)]
            return np.concatenate([e[0] for e in ends]), np.concatenate([e[1] for e in ends])

    def _followed(self, changes: Mapping[str, Interval], count: int) -> Interval:
        coupling = self.bounds.coupling
        reached, ends = dict(changes), dict[str, Interval]()
        work = 0
        for step in coupling.flow.steps:
            node = step.call.node
            changed = [k for k, n in enumerate(node.inputs) if n in reached]
            if not changed:
                continue
            work += 4 * count * macs(step.call)
            after = self._changed(step, [reached.get(n) for n in node.inputs]) if work < WORK else []
            if not after:
                ends |= {node.inputs[k]: reached[node.inputs[k]] for k in changed}
            elif any(len(low) != count for low, _ in after):
                raise ValueError("the changes were mixed")
            else:
                reached |= _named(step, after)
        ends |= {port.name: reached[port.name] for port in coupling.graph.outputs if port.name in reached}
        nothing = np.zeros((count, 0), np.float32)
        low, high = ([nothing, *(_watched(end[side].reshape(count, -1)) for end in ends.values())] for side in (0, 1))
        return np.concatenate(low, axis=1), np.concatenate(high, axis=1)

    def _changed(self, step: Step, changes: list[Interval | None]) -> list[Interval]:
        """What changes of its operands do to a node's results; empty where that is not known."""
        bounds, rule = self.bounds, step.rule
        operands = bounds.operands(step)
        if operands is None or rule is None or not step.understood:
            return []
        base: Operands = [None if o is None else o[0] for o in operands]
        changed = [k for k, c in enumerate(changes) if c is not None]
        if step.moved or rule.rises:
            if rule.rises and changed != [0]:
                return []
            still = [None if b is None else b if b.dtype.kind in "iub" else np.zeros_like(b) for b in base]
            lows, highs = ([still[k] if c is None else sign * c[side] for k, c in enumerate(changes)] for side, sign in _ENDS)
            both = zip(bounds.results(step, lows), bounds.results(step, highs), strict=True)
            return [(-low, high) for low, high in both][: None if step.moved else 1]
        if rule.product:
            constant = all(o is None or o[0] is o[1] or k in changed for k, o in enumerate(operands))
            if len(changed) > 1 or not constant:
                return []
            sides = [[b if c is None else c[side] for b, c in zip(base, changes, strict=True)] for side in (0, 1)]
            ends = bounds.summed(step, rule, sides, changed[0], added=False)
            return [(np.minimum(*ends), np.maximum(*ends))]
        signature = rule.fit(step.call)
        return [self._bent(step, operands, changes)] if signature is not None and rule.is_apart(signature) else []

    def _bent(self, step: Step, operands: list[Interval | None], changes: list[Interval | None]) -> Interval:
        """Changes times the slopes that a node has within the bounds of its operands, added up."""
        low: Array = np.zeros(1, np.float32)
        high = low
        for k, change in enumerate(changes):
            if change is None:
                continue
            slopes = self._slope(step, operands, k)
            terms = [slope * side for slope in slopes for side in change]
            low, high = low + np.minimum.reduce(terms), high + np.maximum.reduce(terms)
        return low, high

    def _slope(self, step: Step, operands: list[Interval | None], k: int) -> Interval:
        """The least and the greatest slope of a node along operand ``k``."""
        key = (step.call.node.index, k)
        if key not in self._slopes:
            own = operands[k]
            assert own is not None, "an operand that changes"
            room = 1e-3 * np.maximum(np.abs(own[0]), np.abs(own[1])) + 1e-3
            width = own[1] - own[0] + 2 * room
            moving = [j for j, o in enumerate(operands) if j != k and o is not None and o[0] is not o[1]]
            marks = _marks(own[0] - room, width)
            slopes = []
            for side in (0, 1) if moving else (0,):
                rows = [
                    self.bounds.first(step, [mark if j == k else None if o is None else o[side] for j, o in enumerate(operands)])
                    for mark in marks
                ]
                for a, b, m, n in zip(rows, rows[1:], marks, marks[1:], strict=False):
                    apart = n - m > CLOSE * width
                    slopes.append(np.where(apart, (b - a) / np.where(apart, n - m, 1), np.nan).astype(b.dtype))
            self._slopes[key] = np.fmin.reduce(slopes), np.fmax.reduce(slopes)
        return self._slopes[key]


def _named(step: Step, results: Sequence[Interval]) -> dict[str, Interval]:
    """A node's results, or the first of them, by name."""
    return dict(zip(filter(None, step.call.node.outputs), results, strict=False))


def _points(operands: Sequence[Interval | None], moving: Sequence[int]) -> Iterator[Operands]:
    """What an operator is run on to find its bounds: points between the ends of one operand, and 0, or all corners of several."""
    if len(moving) == 1:
        yield [o if o is None else np.clip(0, *o).astype(o[0].dtype) if k in moving else o[0] for k, o in enumerate(operands)]
    places = [(t,) for t in np.linspace(0, 1, POINTS)] if len(moving) == 1 else list(product((0.0, 1.0), repeat=len(moving)))
    for place in places if len(moving) <= CORNERS else [(0.0,) * len(moving), (1.0,) * len(moving)]:
        where = dict(zip(moving, place, strict=True))
        yield [None if o is None else _between(*o, where[k]) if k in where else o[0] for k, o in enumerate(operands)]


def _marks(low: Array, width: Array) -> list[Array]:
    """Rising points from one end of an interval to the other, some close to the ends, and 0, at which many operators bend."""
    marks = [low + width * low.dtype.type(t) for t in (*np.linspace(0, 1, POINTS), EDGE, 1 - EDGE)]
    return list(np.sort(np.stack([*marks, np.clip(low.dtype.type(0), low, low + width)]), axis=0))


def _between(low: Array, high: Array, t: float) -> Array:
    return high if t == 1 else np.asarray(low + (high - low) * low.dtype.type(t))


def _watched(elements: Array) -> Array:
    """Some of the columns, where there are many."""
    count = elements.shape[1]
    return elements if count <= WATCHED else elements[:, np.linspace(0, count - 1, WATCHED).astype(np.int64)]
