"""Computing operators: tie the axes of operands and results as a line of notation says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.flow.state import Flow
from onnxprune.labels import Axis, Factor, Fill, Labelled, Reason, classes, rest_of
from onnxprune.rules import Call, Kind, Rule, Signature
from onnxprune.rules.notation import Token, letters, parts
from onnxprune.shapes import Shape

Tokens = tuple[Token, ...]
Way = frozenset[str]
"""Letters of composed axes that are cut together."""


def compute(state: Flow, call: Call, rule: Rule, signature: Signature) -> dict[str, Labelled] | None:
    """Labels of the outputs by name, or None if the notation does not fit the operands' shapes."""
    binding = _Binding(state, call, rule, signature)
    operands: dict[int, Tokens] = {}
    for k, pattern in enumerate(signature.operands):
        if call.node.input(k):
            tokens = pattern.expand(call.rank(k))
            if tokens is None or not binding.fits(call.shape(k), tokens):
                return None
            operands[k] = tokens
    binding.find_points(operands)
    binding.choose(operands)
    for k, tokens in operands.items():
        binding.bind(k, state.settle(call, k, binding.narrowed(tokens)), tokens)
    for k, name in enumerate(call.node.inputs):
        if name and k >= len(signature.operands):
            state.hold(name, Reason(call.node.label, f"an option of {call.node.op}"))
    binding.check()
    return binding.results()


class _Binding:
    """The letters of one call: which axes carry each, and what is known of removed channels there."""

    def __init__(self, state: Flow, call: Call, rule: Rule, signature: Signature) -> None:
        self.state, self.space = state, state.space
        self.call, self.rule, self.signature = call, rule, signature
        self.bound: dict[str, Axis] = {}
        self.zeros: dict[tuple[str, int], bool] = {}
        self.wanted: dict[int, Fill | str | None] = {}
        self.rest: dict[int, bool] = {}
        self.stored = {k for k, name in enumerate(call.node.inputs) if state.is_weight(name)}
        self.sizes: dict[str, int] = dict(signature.sizes)
        self.mixed: set[str] = set()
        tokens = [t for pattern in (*signature.operands, *signature.results) for t in pattern.tokens]
        self.composed = [part for t in tokens if isinstance(t, tuple) for part in parts(t)]
        self.cut: Way = frozenset()
        self.used = {t for p in signature.results for token in p.tokens for t in letters(token)}
        self.linear = bool({t for p in signature.operands for token in p.tokens for t in letters(token)} - self.used)

    # which axes there are ---------------------------------------------------------------------------------------------
    def fits(self, shape: Shape, tokens: Tokens) -> bool:
        """Whether each letter has one size everywhere, apart from ones that broadcast, and composed axes are as they say."""
        for size, token in zip(shape, tokens, strict=True):
            if isinstance(token, tuple):
                if not self._measure(token, size):
                    return False
            elif token not in ("*", "_") and size > 1 and self.sizes.setdefault(token.lstrip("!"), size) != size:
                return False
        return True

    def _measure(self, token: tuple[str, ...], size: int) -> bool:
        """Whether a composed axis has the size that its letters give; what one of them leaves open follows from the rest."""
        bare = [letters(part) for part in parts(token)]
        unknown = {t for part in bare for t in part} - set(self.sizes)
        known = [math.prod(self.sizes.get(t, 1) for t in part) for part in bare]
        if len(unknown) == 1:
            (letter,) = unknown
            each = sum(n for n, part in zip(known, bare, strict=True) if letter in part)
            rest = size - (sum(known) - each)
            if each < 1 or rest % each:
                return False
            self.sizes[letter] = rest // each
            known = [math.prod(self.sizes[t] for t in part) for part in bare]
        return len(unknown) <= 1 and sum(known) == size

    # which letters of composed axes are cut ---------------------------------------------------------------------------
    def choose(self, operands: Mapping[int, Tokens]) -> None:
        """Cut composed axes along one letter each: where most operands can follow, then what leaves most to choose from."""
        ways = self._ways()
        if ways:
            ways.sort(key=lambda way: self._reach(way, operands), reverse=True)
            found = [f.labels.ravel() for k, a, t in self._axes(operands) if isinstance(t, tuple) for f in self._over(k, a)]
            labels = np.concatenate([*found, np.zeros(0, np.int64)])
            self.cut = ways[self.state.choose(self.call, list(range(len(ways))), labels)]

    def _ways(self) -> list[Way]:
        """All ways to take letters of which no two are parts of the same axis, as many as possible each time."""
        tokens = [t for p in (*self.signature.operands, *self.signature.results) for t in p.tokens]
        flat = {t for token in tokens for t in (token if isinstance(token, tuple) else (token,))}
        free = [t for part in self.composed for t in letters(part) if self.sizes.get(t, 0) > 1 and f"!{t}" not in flat]
        ways: list[Way] = []
        for seed in dict.fromkeys(free):
            way = {seed}
            for other in free:
                if not any(other in part and way & set(part) - {other} for part in map(letters, self.composed)):
                    way.add(other)
            if way not in ways:
                ways.append(frozenset(way))
        return ways

    def _reach(self, way: Way, operands: Mapping[int, Tokens]) -> tuple[int, int]:
        """How many axes can be cut this way, and into how many channels the first of them that is composed falls apart."""
        reached, first = 0, -1
        for k, a, token in self._axes(operands):
            if isinstance(token, tuple) and first < 0:
                first = self._channels(way, token, k, a)
            if way.intersection(letters(token)) and any(not self.space.is_held(f.labels) for f in self._over(k, a)):
                reached += 1
        return reached, first

    def _axes(self, operands: Mapping[int, Tokens]) -> Iterator[tuple[int, int, Token]]:
        return ((k, a, token) for k, tokens in operands.items() for a, token in enumerate(tokens))

    def _over(self, k: int, axis: int) -> list[Factor]:
        tensor = self.state.tensors.get(self.call.node.inputs[k])
        return [f for f in tensor.factors if axis in f.axes] if tensor is not None else []

    def _channels(self, way: Way, token: tuple[str, ...], k: int, axis: int) -> int:
        own = [f.labels for f in self._over(k, axis) if f.axes == (axis,)]
        labels = own[0] if len(own) == 1 else np.arange(self.call.shape(k)[axis])
        total, start = 0, 0
        for part in map(letters, parts(token)):
            shape = [self.sizes[t] for t in part]
            stop = start + math.prod(shape)
            for at in (i for i, t in enumerate(part) if t in way):
                total += classes(np.moveaxis(labels[start:stop].reshape(shape), at, 0).reshape(shape[at], -1))
            start = stop
        return total

    def narrowed(self, tokens: Tokens) -> Tokens:
        """The tokens of an operand with ``_`` for axes that are not cut because composed ones are cut otherwise."""
        uncut = self._uncut()
        return tuple("_" if t in uncut or (isinstance(t, tuple) and not self.cut & set(letters(t))) else t for t in tokens)

    def _uncut(self) -> set[str]:
        return {t for part in self.composed for t in letters(part)} - self.cut

    # what stands for zero -------------------------------------------------------------------------------------------------
    def find_points(self, operands: Mapping[int, Tokens]) -> None:
        """What each operand's zero point is; zero points of channels that leave stay as they are."""
        for k, tokens in operands.items():
            point = self.rule.points.operands.get(k)
            self.wanted[k] = self._point(point, tokens, operands.get(point, ()) if point is not None else ())

    def _point(self, point: int | None, tokens: Tokens, own: Tokens) -> Fill | str | None:
        """The zero point's value, or its name; None where there are several but not along one axis."""
        name = self.call.node.input(point) if point is not None else ""
        values = self.state.constant(name) if name else np.zeros(1, np.int64)
        if values is None:
            return name
        flat = tuple(int(v) for v in values.ravel())
        if len(flat) > 1 and len(own) == 1 and self.state.is_weight(name) and any(flat):
            self.state.fills.setdefault(name, Fill(flat, 0))
        if len(set(flat)) == 1:
            return Fill(flat[:1])
        return Fill(flat, tokens.index(own[0])) if len(own) == 1 and own[0] in tokens else None

    # tying --------------------------------------------------------------------------------------------------------------
    def bind(self, k: int, tensor: Labelled, tokens: Tokens) -> None:
        """Bind the axes of operand ``k``. A letter's second axis (of a recurrent weight) is a consumer's."""
        here: set[str] = set()
        decided = (self.rule.keeps and k == 0) or k in self.rule.points.operands.values()
        self.rest[k] = decided or self.state.rests(self.call.node.inputs[k], tensor, self.wanted[k])
        for a, token in enumerate(tokens):
            axis = tensor.axis(a)
            if token in ("*", "_", "1"):
                self._hold(axis, "works over these positions")
                continue
            named = list(self._parts(token, axis)) if isinstance(token, tuple) else [(token.lstrip("!"), axis)]
            if tensor.weight and self.linear and axis:
                stays = any(self._stays(letter) and letter not in here for letter, _ in named)
                role = "producer" if stays else "consumer"
                for factor in tensor.axis(a):
                    self.state.mark(factor, role, self.call.node.label)
            here.update(letter for letter, _ in named)
            if tensor.shape[a] == 1:
                continue
            for letter, own in named:
                self._tie(letter, own, k)
            if isinstance(token, str) and token.startswith("!"):
                if self.rule.mixes and self.state.mixing:
                    self._mix(token[1:])
                else:
                    self._hold(self.bound[token[1:]], "works over this axis as a whole")

    def _tie(self, letter: str, axis: Axis, k: int) -> None:
        loose = [f for f in axis if not self.space.is_held(f.labels)]
        self.zeros[letter, k] = self.zeros.get((letter, k), self.rest[k]) and bool(loose) and all(f.zero for f in loose)
        reason = Reason(self.call.node.label, f"{self.call.node.op} meets an axis that can't be cut")
        self.bound[letter] = self.space.tie_axes(self.bound[letter], axis, reason) if letter in self.bound else axis

    def _mix(self, letter: str) -> None:
        self.mixed.add(letter)
        for factor in self.bound[letter]:
            self.space.mix(factor.labels)

    def _hold(self, axis: Axis, text: str) -> None:
        for factor in axis:
            self.space.hold(factor.labels, Reason(self.call.node.label, f"{self.call.node.op} {text}"))

    def _parts(self, token: tuple[str, ...], axis: Axis) -> Iterator[tuple[str, Axis]]:
        """The letters that are cut of a composed axis, each with the axis' labels folded over all the others."""
        whole = self.space.single(axis, Reason(self.call.node.label, "groups are cut along one axis"))
        start = 0
        for part in map(letters, parts(token)):
            shape = [self.sizes[t] for t in part]
            stop = start + math.prod(shape)
            pieces = [Factor(f.axes, f.labels[start:stop], f.zero) for f in whole]
            at = next((i for i, t in enumerate(part) if t in self.cut), None)
            start = stop
            if at is None:
                self._hold(tuple(pieces), "works over these groups as a whole")
                continue
            folded: list[Factor] = []
            for piece in pieces:
                table = np.moveaxis(piece.labels.reshape(shape), at, 0).reshape(shape[at], -1)
                self.space.tie(table[:, :1], table)
                folded.append(Factor(piece.axes, np.ascontiguousarray(table[:, 0]), piece.zero))
            yield part[at], tuple(folded)

    def check(self) -> None:
        """Hold what is summed over without being zero, and divisors that would become zero."""
        for letter, axis in self.bound.items():
            carriers = [k for (name, k) in self.zeros if name == letter]
            alternatives = self.signature.sums.get(letter, () if self._stays(letter) else tuple((k,) for k in carriers))
            summed = letter not in self.mixed and (letter in self.signature.sums or not self._stays(letter))
            if summed and not any(all(self._removed_is_zero(letter, k) for k in present(self.call, way)) for way in alternatives):
                self._hold(axis, "sums over channels that are not zero once removed")
            if any(not self.zeros[letter, k] for k in carriers if k in self.signature.whole):
                self._hold(axis, "takes the range of channels that are not zero once removed")
            divisors = [k for k in carriers if k in self.rule.divides and not self._made_one(k)]
            if any(self.zeros[letter, k] or k in self.stored for k in divisors):
                self._hold(axis, "divides by channels that are zero once removed")
        for letter in self._uncut() & set(self.bound):
            outer = any(letters(part)[0] in self.cut for part in self.composed if letter in letters(part))
            self._hold(self.bound[letter], "is cut by whole groups" if outer else "is cut within its groups")

    def _made_one(self, k: int) -> bool:
        """Whether masks can write 1 into a scale: one that is stored as it is, and that nothing else takes for zero."""
        name = self.call.node.inputs[k]
        alone = name in self.state.graph.uses or len(self.state.graph.consumers[name]) == 1
        if k != self.rule.points.scale or name not in self.state.graph.weights or not alone:
            return False
        self.state.fills[name] = Fill((1,))
        return True

    def _stays(self, letter: str) -> bool:
        """Whether a letter reaches a result, rather than being summed away."""
        return letter in self.used or letter.startswith(".")

    def _removed_is_zero(self, letter: str, k: int) -> bool:
        if (letter, k) in self.zeros:
            return self.zeros[letter, k]
        value, wanted = self.call.value(k), self.wanted.get(k)
        if value is None or value.dtype.kind not in "fiu" or not isinstance(wanted, Fill) or len(wanted.values) > 1:
            return False
        return bool((value == wanted.values[0]).all())

    def _zero(self, letter: str) -> bool:
        if not (self.rule.zero and self.signature.zero):
            return False
        inputs = range(len(self.call.node.inputs))
        plus = present(self.call, inputs if self.rule.plus is None else self.rule.plus)
        times = present(self.call, self.signature.times or self.rule.times)
        return (not times or any(self._removed_is_zero(letter, k) for k in times)) and all(
            self._removed_is_zero(letter, k) for k in plus
        )

    # results ------------------------------------------------------------------------------------------------------------
    def results(self) -> dict[str, Labelled]:
        """Labels of the outputs."""
        found: dict[str, Labelled] = {}
        node, reason = self.call.node, Reason(self.call.node.label, f"{self.call.node.op} makes these positions")
        weight = (
            self.rule.kind is Kind.EXACT
            and not self.linear
            and all(self.state.is_weight(n) or self.call.value(k) is not None for k, n in enumerate(node.inputs) if n)
        )
        for j, (name, shape) in enumerate(zip(node.outputs, self.call.outputs, strict=True)):
            if not name or shape is None:
                continue
            tokens = self.signature.results[j].expand(len(shape)) if j < len(self.signature.results) else None
            factors: list[Factor] = []
            for a, size in enumerate(shape):
                axis = self._result_axis(tokens[a], size) if tokens is not None and size > 1 else ()
                factors += [Factor((a,), f.labels, f.zero) for f in axis]
                if not axis and size > 1:
                    factors += self.state.held_axes(shape, reason, [a])
            found[name] = Labelled(shape, tuple(factors), weight)
            if j == 0:
                found[name] = replace(found[name], **self._result_rest())
        return found

    def _result_rest(self) -> dict[str, Any]:
        """What stands for zero in the first result."""
        node, points = self.call.node, self.rule.points
        first = self.state.tensors.get(node.inputs[0])
        if self.rule.keeps and first is not None:
            return {"rest": first.rest, "open": first.open}
        if points.made is not None:
            return {"rest": node.outputs[points.made]}
        return {"rest": rest_of(self._point(points.result, (), ()))}

    def _result_axis(self, token: Token, size: int) -> Axis:
        letter = token.lstrip("!") if isinstance(token, str) else next((t for t in letters(token) if t in self.cut), "")
        axis = self.bound.get(letter, ())
        if isinstance(token, tuple):
            names = letters(token)
            shape = [self.sizes.get(t, 0) for t in names]
            line = [n if t == letter else 1 for t, n in zip(names, shape, strict=True)]
            axis = tuple(Factor(f.axes, np.broadcast_to(f.labels.reshape(line), shape).ravel(), f.zero) for f in axis)
        zero = self._zero(letter)
        return tuple(Factor(f.axes, f.labels, zero) for f in axis if len(f.labels) == size)


def present(call: Call, operands: range | tuple[int, ...]) -> list[int]:
    """Those of some operands that are not omitted."""
    return [k for k in operands if call.node.input(k)]
