"""Computing operators: tie the axes of operands and results as a line of notation says."""

from __future__ import annotations

import numpy as np

from onnxprune.flow.state import Flow
from onnxprune.labels import Axis, Factor, Labelled, Reason
from onnxprune.rules import Call, Kind, Rule, Signature
from onnxprune.rules.notation import Token
from onnxprune.shapes import Shape


def compute(state: Flow, call: Call, rule: Rule, signature: Signature) -> dict[str, Labelled] | None:
    """Labels of the outputs by name, or None if the notation does not fit the operands' shapes."""
    binding = _Binding(state, call, rule, signature)
    for k, pattern in enumerate(signature.operands):
        if call.node.input(k):
            tokens = pattern.expand(call.rank(k))
            if tokens is None or not binding.fits(call.shape(k), tokens):
                return None
            binding.bind(k, state.settle(call, k, tokens), tokens)
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
        self.stored = {k for k, name in enumerate(call.node.inputs) if state.is_weight(name)}
        self.sizes: dict[str, int] = {}
        self.mixed: set[str] = set()
        self.rows: bool | None = None
        self.used = {t for p in signature.results for t in _letters(p.tokens)}
        self.linear = bool({t for p in signature.operands for t in _letters(p.tokens)} - self.used)

    def fits(self, shape: Shape, tokens: tuple[Token, ...]) -> bool:
        """Whether each letter has one size everywhere, apart from ones that broadcast, and groups divide their axis."""
        for size, token in zip(shape, tokens, strict=True):
            letter = " ".join(token) if isinstance(token, tuple) else token.lstrip("!")
            if isinstance(token, tuple) and size % self.signature.sizes[token[0].lstrip("!")]:
                return False
            if letter not in ("*", "_") and size > 1 and self.sizes.setdefault(letter, size) != size:
                return False
        return True

    def bind(self, k: int, tensor: Labelled, tokens: tuple[Token, ...]) -> None:
        """Bind the axes of operand ``k``. A letter's second axis (of a recurrent weight) is a consumer's."""
        here: set[str] = set()
        for a, token in enumerate(tokens):
            axis = tensor.axis(a)
            if isinstance(token, tuple):
                letter, axis = self._compose(token, axis, tensor.shape[a])
                mixed = letter.startswith("!")
            elif token in ("*", "_", "1"):
                self._hold(axis, "works over these positions")
                continue
            else:
                letter, mixed = token, token.startswith("!")
            letter = letter.lstrip("!")
            if tensor.weight and self.linear and axis:
                role = "producer" if self._stays(letter) and letter not in here else "consumer"
                for factor in tensor.axis(a):
                    self.state.mark(factor, role, self.call.node.label)
            here.add(letter)
            if tensor.shape[a] == 1:
                continue
            self._tie(letter, axis, k)
            if mixed and self.rule.mixes and self.state.mixing:
                self._mix(letter)
            elif mixed:
                self._hold(self.bound[letter], "works over this axis as a whole")

    def _tie(self, letter: str, axis: Axis, k: int) -> None:
        loose = [f for f in axis if not self.space.is_held(f.labels)]
        self.zeros[letter, k] = bool(loose) and all(f.zero for f in loose)
        reason = Reason(self.call.node.label, f"{self.call.node.op} meets an axis that can't be cut")
        self.bound[letter] = self.space.tie_axes(self.bound[letter], axis, reason) if letter in self.bound else axis

    def _mix(self, letter: str) -> None:
        self.mixed.add(letter)
        for factor in self.bound[letter]:
            self.space.mix(factor.labels)

    def _hold(self, axis: Axis, text: str) -> None:
        for factor in axis:
            self.space.hold(factor.labels, Reason(self.call.node.label, f"{self.call.node.op} {text}"))

    def _compose(self, token: tuple[str, ...], axis: Axis, size: int) -> tuple[str, Axis]:
        """An axis of groups times channels: cut whole groups, or the same channel of every group."""
        outer, inner = token
        groups = self.signature.sizes[outer.lstrip("!")]
        each = size // groups
        if self.rows is None:
            self.rows = self._choose_rows(outer, inner, groups, each)
        letter = outer if self.rows else inner
        folded: list[Factor] = []
        for factor in self.space.single(axis, Reason(self.call.node.label, "groups are cut along one axis")):
            table = factor.labels.reshape(groups, each)
            table = table if self.rows else table.T
            self.space.tie(table[:, :1], table)
            folded.append(Factor(factor.axes, np.ascontiguousarray(table[:, 0]), factor.zero))
        return letter, tuple(folded)

    def _choose_rows(self, outer: str, inner: str, groups: int, each: int) -> bool:
        """Whole groups or columns: what leaves more to choose from, unless that is blocked."""
        axes = [
            (self.call.shape(k)[a], self.state.operand(self.call, k).axis(a))
            for k, pattern in enumerate(self.signature.operands)
            if self.call.node.input(k)
            for a, token in enumerate(pattern.expand(self.call.rank(k)) or ())
            if isinstance(token, tuple)
        ]
        fits = [rows for rows, token in ((1, outer), (0, inner)) if not token.startswith("!")]
        if max(size for size, _ in axes) == groups and 1 in fits:
            fits = [1]
        elif len(fits) == 2 and groups < each:
            fits.reverse()
        labels = [f.labels.ravel() for _, axis in axes for f in axis]
        return bool(self.state.choose(self.call, fits, np.concatenate([*labels, np.zeros(0, np.int64)])))

    def check(self) -> None:
        """Hold what is summed over without being zero, and divisors that would become zero."""
        for letter, axis in self.bound.items():
            carriers = [k for (name, k) in self.zeros if name == letter]
            if letter not in self.mixed and not self._stays(letter) and not any(self.zeros[letter, k] for k in carriers):
                self._hold(axis, "sums over channels that are not zero once removed")
            if any(self.zeros[letter, k] or k in self.stored for k in carriers if k in self.rule.divides):
                self._hold(axis, "divides by channels that are zero once removed")
        if self.rows is not None:
            other = {
                t[1 if self.rows else 0].lstrip("!") for p in self.signature.operands for t in p.tokens if isinstance(t, tuple)
            }
            for letter in other & set(self.bound):
                self._hold(self.bound[letter], "is cut by whole groups" if self.rows else "is cut within its groups")

    def _stays(self, letter: str) -> bool:
        """Whether a letter reaches a result, rather than being summed away."""
        return letter in self.used or letter.startswith(".")

    def _zero(self, letter: str) -> bool:
        def removed_is_zero(k: int) -> bool:
            if (letter, k) in self.zeros:
                return self.zeros[letter, k]
            value = self.call.value(k)
            return value is not None and value.dtype.kind in "fiu" and not value.any()

        if not (self.rule.zero and self.signature.zero):
            return False
        present = [k for k, name in enumerate(self.call.node.inputs) if name]
        plus = present if self.rule.plus is None else [k for k in self.rule.plus if k in present]
        times = [k for k in self.signature.times or self.rule.times if k in present]
        return (not times or any(map(removed_is_zero, times))) and all(map(removed_is_zero, plus))

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
        return found

    def _result_axis(self, token: Token, size: int) -> Axis:
        if isinstance(token, tuple):
            outer, inner = (t.lstrip("!") for t in token)
            letter = outer if self.rows else inner
            axis, groups = self.bound.get(letter, ()), self.signature.sizes[outer]
            each = size // groups
            axis = tuple(
                Factor(f.axes, np.repeat(f.labels, each) if self.rows else np.tile(f.labels, groups), f.zero) for f in axis
            )
        else:
            letter = token.lstrip("!")
            axis = self.bound.get(letter, ())
        zero = self._zero(letter)
        return tuple(Factor(f.axes, f.labels, zero) for f in axis if len(f.labels) == size)


def _letters(tokens: tuple[Token, ...]) -> set[str]:
    """Letters of a pattern; ``...`` counts as none, its axes are never summed away."""
    flat = [t for token in tokens for t in (token if isinstance(token, tuple) else (token,))]
    return {t.lstrip("!") for t in flat if t not in ("*", "_", "1", "...")}
