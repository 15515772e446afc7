"""What is known of activations before any input is: elements that have one value for all inputs of the model.

A filter of zeros gives its bias, whatever it reads; a zero times anything is zero; what is known stays known through
operators that look at each element alone. Nothing is measured on sample inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from onnx import helper

from onnxprune.channels import Coupling
from onnxprune.flow import Step
from onnxprune.labels import BoolArray
from onnxprune.lossless.moved import Known, move
from onnxprune.lossless.sums import Sum, letters
from onnxprune.rules import Call, Rule, Signature
from onnxprune.rules.notation import Points, Token
from onnxprune.shapes import Executor
from onnxprune.weights import Array

# fmt: off
_JUMPS = frozenset({
    "Cast", "CastLike", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod", "Round", "Shrink",
    "Sign", "ThresholdedRelu",
})
# fmt: on
"""Operators that make a step of the last digit of a number: they are run on exact values only."""

_total = partial(np.sum, dtype=np.float64)


class Facts:
    """What is known of every tensor of a graph.

    ``sums``: the operators that sum channels away, in the graph's order. ``watched``: tensors of quantised and fused
    operators, nothing of which is taken for free.
    """

    def __init__(self, coupling: Coupling) -> None:
        self.graph, self.shapes = coupling.graph, coupling.shapes
        self.sums: list[Sum] = []
        self.watched: set[str] = set()
        self._execute = Executor(self.graph)
        self._found: dict[str, Known] = {}
        for step in coupling.flow.steps:
            if step.understood and step.rule is not None and not step.call.node.border:
                self._visit(step, step.rule)
                self._watch(step.call, step.rule)

    def of(self, name: str) -> Known:
        """What is known of a tensor."""
        if name in self._found:
            return self._found[name]
        if name in self.graph.weights:
            return Known.all(self.graph.weights.read(name))
        value, static = self.shapes.value(name), self.shapes.static.get(name)
        if value is not None and static is not None and static.all():
            return Known.all(value)
        return Known.nothing(len(self.shapes.get(name) or ()))

    def _watch(self, call: Call, rule: Rule) -> None:
        if rule.domain or (rule.points != Points() and rule.op not in ("DequantizeLinear", "QuantizeLinear")):
            self.watched.update(call.node.inputs, call.node.outputs)

    def _visit(self, step: Step, rule: Rule) -> None:
        call = step.call
        if rule.runs:
            return
        facts = {k: self.of(name) for k, name in enumerate(call.node.inputs) if name}
        if step.moved:
            found = move(self._execute, self.shapes, call, rule, facts)
        else:
            signature = rule.fit(call)
            if signature is None:
                return
            found = {call.node.outputs[0]: self._computed(call, rule, signature, facts)}
        for name, known in found.items():
            if known.some and name in self.shapes.elem_types:
                dtype = helper.tensor_dtype_to_np_dtype(self.shapes.elem_types[name])
                self._found[name] = Known.of(known.value.astype(dtype, copy=False), known.mask)

    def _computed(self, call: Call, rule: Rule, signature: Signature, facts: Mapping[int, Known]) -> Known:
        sum_ = Sum(call, rule, signature)
        if any(sum_.summed.values()):
            self.sums.append(sum_)
            if len(sum_.terms) > 1:
                return self._summed(sum_, facts) if rule.product else Known.nothing(len(sum_.result))
        laid = _Laid(call, rule, signature, facts)
        if not any(known.some for known in facts.values()):
            return laid.nothing
        if rule.points != Points() and rule.op not in ("DequantizeLinear", "QuantizeLinear"):
            return laid.nothing  # whose zero is no number
        if rule.op in ("DequantizeLinear", "QuantizeLinear"):
            return laid.quantised()
        return laid.by_table().or_else(laid.even()).or_else(self._run(laid))

    # sums of products -------------------------------------------------------------------------------------------------
    def _summed(self, sum_: Sum, facts: Mapping[int, Known]) -> Known:
        """A sum is known where each of its products is: all factors are known, or one of them is zero."""
        rank = len(sum_.result)
        there = {k: facts[k].there for k in sum_.terms}
        first = sum_.terms[0]
        loose = {k: ~facts[k].mask for k in sum_.terms}
        if not self.is_even(sum_):
            loose[first] = there[first]
        unknown: BoolArray = np.zeros((1,) * rank, np.bool_)
        for k in sum_.terms:
            if loose[k].any():
                product = sum_.product([sum_.operand(t, loose[t] if t == k else there[t]) for t in sum_.terms], sum_.result)
                if product is None:
                    return Known.nothing(rank)
                unknown = unknown | product
        if unknown.all():
            return Known.nothing(rank)
        values = {k: facts[k].filled for k in sum_.terms}
        values[first] = np.where(loose[first], 0, values[first])
        value, mask = self.weighted(sum_, values), ~unknown
        if value is None:
            return Known.nothing(rank)
        for k in sum_.plus:
            places = [sum_.result.index(t) for t in sum_.tokens[k]]
            value = value + laid_out(facts[k].filled.astype(np.float64), places, rank) * float(sum_.call.attribute("beta", 1.0))
            mask = mask & laid_out(facts[k].mask, places, rank)
        return Known.of(value, mask)

    def weighted(self, sum_: Sum, values: Mapping[int, Array]) -> Array | None:
        """The sum of products, in float64, without what is added to it; None if that is too much work."""
        if not all(v.any() for v in values.values()):
            return np.zeros((1,) * len(sum_.result))
        first, *others = (sum_.operand(k, v, _total) for k, v in values.items())
        product = sum_.product([(first[0].astype(np.float64), first[1]), *others], sum_.result, full=True)
        return None if product is None else product * float(sum_.call.attribute("alpha", 1.0))

    def is_even(self, sum_: Sum) -> bool:
        """Whether constants that are summed give constants: at each place the same number of terms of the same values."""
        call, first = sum_.call, sum_.terms[0]
        sizes = self.of(call.node.inputs[first]).mask.shape
        varied = any(size > 1 and not letters(t) for size, t in zip(sizes, sum_.tokens[first], strict=True))
        return sum_.rule.steady(call) and not varied and all(self._is_fixed(sum_, c) for c in sum_.lost)

    def _is_fixed(self, sum_: Sum, letter: str) -> bool:
        """Whether a letter has the same size for all inputs of the model."""
        carriers = [
            (sum_.call.node.inputs[k], a) for k in sum_.terms for a, t in enumerate(sum_.tokens[k]) if letter in letters(t)
        ]
        return any(name in self.graph.weights or bool(self.shapes.fixed_dims(name)[a]) for name, a in carriers)

    # element by element -----------------------------------------------------------------------------------------------
    def _run(self, laid: _Laid) -> Known:
        """Run an operator that looks at each element alone on what is known."""
        call, operands = laid.call, laid.signature.operands
        normalises = laid.rule.op == "BatchNormalization"
        if not normalises and any(p.tokens != ("...",) for p in operands):
            return laid.nothing
        if call.version < 7 and call.attribute("broadcast"):
            return laid.nothing
        arrays: list[Array | None] = [None] * len(call.node.inputs)
        mask: BoolArray = np.ones((1,) * laid.rank, np.bool_)
        for k, known in laid.facts.items():
            arrays[k] = known.filled
            if k >= len(operands):
                mask = mask & known.complete
                continue
            exact = laid.rule.op not in _JUMPS or call.node.inputs[k] in self.graph.weights
            mask = mask & laid.out(k, known.mask if exact else ~known.there)
            if normalises:  # whose vectors are as long as their axis
                sizes = zip(known.mask.shape, call.shape(k), laid.tokens(k), strict=True)
                arrays[k] = np.broadcast_to(known.filled, [full if t == "c" else size for size, full, t in sizes])
        if not mask.any():
            return laid.nothing
        try:
            value = np.asarray(self._execute(call.node, arrays)[0])
        except Exception:  # the evaluator's errors have no common base; what it can't do is not known
            return laid.nothing
        return Known.of(value, mask) if value.ndim == laid.rank else laid.nothing


class _Laid:
    """A call's operands, laid out along the axes of its result as the notation says."""

    def __init__(self, call: Call, rule: Rule, signature: Signature, facts: Mapping[int, Known]) -> None:
        self.call, self.rule, self.signature, self.facts = call, rule, signature, facts
        self.shape = call.outputs[0] or ()
        self.rank = len(self.shape)
        self.nothing = Known.nothing(self.rank)
        self.result = [_plain(t) for t in signature.results[0].expand(self.rank) or ()]

    def tokens(self, k: int) -> tuple[Token, ...]:
        return self.signature.operands[k].expand(self.call.rank(k)) or ()

    def by_table(self) -> Known:
        """Zeros, as the rule says: one among the factors, and all that is added zero (or, of a single vector, known)."""
        present = [k for k in range(len(self.signature.operands)) if k in self.facts]
        plus = present if self.rule.plus is None else [k for k in self.rule.plus if k in present]
        times = [k for k in self.signature.times or self.rule.times if k in present]
        if not (self.rule.zero and self.signature.zero) or not (times or plus):
            return self.nothing
        zero: BoolArray = np.full((1,) * self.rank, not times)
        for k in times:
            zero = zero | self.out(k, ~self.facts[k].there)
        for k in self.rule.divides:
            zero = zero & self.out(k, self.facts[k].mask & self.facts[k].there)
        if times and len(plus) == 1:
            added = self.facts[plus[0]]
            return Known.of(self._values(plus[0]), zero & self.out(plus[0], added.mask)) if zero.any() else self.nothing
        for k in plus:
            zero = zero & self.out(k, ~self.facts[k].there)
        return Known(np.zeros(zero.shape, np.float32), zero)

    def even(self) -> Known:
        """An operator that leaves a channel of one value everywhere as it is."""
        known = self.facts[0]
        flat = all(size == 1 or self._place(t) is not None for size, t in zip(known.mask.shape, self.tokens(0), strict=True))
        if not (flat and self.rule.steady(self.call)):
            return self.nothing
        return Known.of(self._values(0), self.out(0, known.mask))

    def quantised(self) -> Known:
        """What a dequantised number is; of quantised ones, the zeros."""
        parts = {k: self._part(k) for k in self.facts}
        number, scale = parts[0], parts[1]
        zero = parts.get(2, Known.all(np.zeros((1,) * self.rank)))
        if self.rule.op == "QuantizeLinear":
            return Known.of(zero.value, zero.mask & ~number.there)
        value = (number.filled.astype(np.float64) - zero.filled.astype(np.float64)) * scale.filled.astype(np.float64)
        return Known.of(value, number.mask & zero.mask & scale.mask)

    def _part(self, k: int) -> Known:
        """An operand along the result's axes, element by element; those that the notation leaves out are scalars."""
        known = self.facts[k]
        if k >= len(self.signature.operands):
            return Known(known.value.reshape((1,) * self.rank), known.mask.reshape((1,) * self.rank))
        if k == 0:
            return known
        return Known(self._lay(k, known.value), self._lay(k, known.mask))

    def out(self, k: int, rep: BoolArray) -> BoolArray:
        """Where something holds for all that an operand has at a place of the result."""
        gone = tuple(a for a, t in enumerate(self.tokens(k)) if self._place(t) is None)
        every = np.all(rep, axis=gone, keepdims=True)
        return self._lay(k, every)

    def _values(self, k: int) -> Array:
        return self._lay(k, self.facts[k].filled)

    def _lay(self, k: int, rep: Array) -> Array:
        """A rep along the result's axes. A vector of groups is repeated for the channels of each."""
        places: list[int | None] = []
        for a, token in enumerate(self.tokens(k)):
            place = self._place(token)
            if place is not None and rep.shape[a] > 1:
                rep = np.repeat(rep, self.shape[place] // rep.shape[a], axis=a)
            places.append(place)
        return laid_out(rep, places, self.rank)

    def _place(self, token: Token) -> int | None:
        """The result's axis on which an operand's axis arrives."""
        plain = _plain(token)
        if not letters(token):
            return None
        return next((i for i, t in enumerate(self.result) if t == plain or t[:1] == plain), None)


def _plain(token: Token) -> tuple[str, ...]:
    """An axis without its marks."""
    return tuple(t.lstrip("!") for t in ((token,) if isinstance(token, str) else token))


def laid_out(rep: Array, places: Sequence[int | None], rank: int) -> Array:
    """Move a rep's axes to their places among those of a result; those without one have size one."""
    kept = sorted((place, a) for a, place in enumerate(places) if place is not None)
    small = rep.reshape([rep.shape[a] for a, place in enumerate(places) if place is not None])
    order = np.argsort([place for place in places if place is not None], kind="stable")
    shape = [1] * rank
    for place, a in kept:
        shape[place] = rep.shape[a]
    return small.transpose(order).reshape(shape)
