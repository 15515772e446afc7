"""Sums of products over reps: arrays in which an axis of size one stands for the whole of a tensor's axis."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.labels import BoolArray
from onnxprune.rules import Call, Rule, Signature
from onnxprune.rules.notation import Token
from onnxprune.weights import Array

PRODUCT_LIMIT = 1 << 33
"""Products formed at most for one node; weights times a vector stay far below."""

Reduce = Callable[..., Any]


def letters(token: Token) -> tuple[str, ...]:
    """The letters of one axis; none where it is positions or of size one."""
    if isinstance(token, tuple):
        return tuple(t.lstrip("!") for t in token)
    return () if token in ("*", "_", "1") else (token.lstrip("!"),)


def _is_summed(token: Token, kept: set[str]) -> bool:
    """Whether an axis is summed away letter by letter; one that mixes (``!c``) stays whole in any case."""
    whole = any(t.startswith("!") for t in (token if isinstance(token, tuple) else (token,)))
    return not whole and any(c not in kept for c in letters(token))


class Sum:
    """One call of an operator that sums over letters: ``terms`` are multiplied, ``plus`` is added.

    ``summed``: for each term, its axes along which channels are summed away; ``lost``: their letters.
    """

    def __init__(self, call: Call, rule: Rule, signature: Signature) -> None:
        present = [k for k in range(len(signature.operands)) if call.node.input(k)]
        self.call, self.rule = call, rule
        self.plus = [k for k in rule.plus or () if k in present]
        self.terms = [k for k in present if k not in self.plus]
        self.tokens = {k: signature.operands[k].expand(call.rank(k)) or () for k in present}
        self.result = signature.results[0].expand(len(call.outputs[0] or ())) or ()
        kept = {c for token in self.result for c in letters(token)} - self._repeated()
        self.summed = {k: [a for a, t in enumerate(self.tokens[k]) if _is_summed(t, kept)] for k in self.terms}
        self.lost = {c for tokens in self.tokens.values() for t in tokens for c in letters(t)} - kept
        self.sizes = self._sizes(signature.sizes)
        self._number = {c: n for n, c in enumerate(self.sizes)}

    def _repeated(self) -> set[str]:
        """Letters on two axes of one operand (of a recurrent weight): what is kept is also summed."""
        counts = (Counter(c for token in tokens for c in letters(token)) for tokens in self.tokens.values())
        return {c for found in counts for c, count in found.items() if count > 1}

    def _sizes(self, groups: Mapping[str, int]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        shapes = [(self.call.shape(k), tokens) for k, tokens in self.tokens.items()]
        for shape, tokens in [*shapes, (self.call.outputs[0] or (), self.result)]:
            for size, token in zip(shape, tokens, strict=False):
                names = letters(token)
                parts = (groups[names[0]], size // groups[names[0]]) if len(names) == 2 else (size,) * len(names)
                for name, part in zip(names, parts, strict=True):
                    sizes[name] = max(sizes.get(name, 1), part)
        return sizes

    @property
    def channels(self) -> int:
        """The result's axis along which a bias lies."""
        return 1 if self.call.node.op in ("Conv", "ConvTranspose") else len(self.result) - 1

    def operand(self, k: int, rep: Array, reduce: Reduce = np.any) -> tuple[Array, list[int]]:
        """A term's rep with one dimension per letter; positions are reduced away."""
        return self._spread(self.tokens[k], rep, reduce)

    def outcome(self, rep: Array) -> tuple[Array, list[int]]:
        """The same for a rep of the result."""
        return self._spread(self.result, rep, np.any)

    def _spread(self, tokens: Sequence[Token], rep: Array, reduce: Reduce) -> tuple[Array, list[int]]:
        shape: list[int] = []
        names: list[str] = []
        positions = tuple(a for a, token in enumerate(tokens) if not letters(token))
        if any(rep.shape[a] > 1 for a in positions):
            rep = reduce(rep, axis=positions, keepdims=True)
        for size, token in zip(rep.shape, tokens, strict=True):
            parts = letters(token)
            names += parts
            if len(parts) == 2:
                shape += [1, 1] if size == 1 else [self.sizes[c] for c in parts]
            elif parts:
                shape.append(size)
        return rep.reshape(shape), [self._number[c] for c in names]

    def product(
        self, parts: Sequence[tuple[Array, list[int]]], wanted_tokens: Sequence[Token], *, full: bool = False
    ) -> Array | None:
        """Multiply and sum. Of booleans that is whether any product is true.

        Args:
            wanted_tokens: the axes of the rep that is wanted.
            full: count each index of a summed letter, also where all operands stand for the whole axis.
        """
        wanted = [self._number[c] for token in wanted_tokens for c in letters(token)]
        sizes = [1] * len(self.sizes)
        for array, numbers in parts:
            for n, size in zip(numbers, array.shape, strict=True):
                sizes[n] = max(sizes[n], size)
        if math.prod(sizes) > PRODUCT_LIMIT:
            return None
        present = {n for _, numbers in parts for n in numbers}
        arguments: list[Any] = [x for pair in parts for x in pair]
        names = list(self.sizes)
        stretch = [n for n in present if full and n not in wanted and sizes[n] == 1 and self.sizes[names[n]] > 1]
        for n in stretch:
            arguments += [np.ones(self.sizes[names[n]], parts[0][0].dtype), [n]]
        missing = [n for n in wanted if n not in present]
        for n in missing:
            arguments += [np.ones(1, parts[0][0].dtype), [n]]
        result = np.asarray(np.einsum(*arguments, wanted))
        return self._merged(result, wanted_tokens)

    def _merged(self, result: Array, tokens: Sequence[Token]) -> Array:
        """One dimension per axis again."""
        shape: list[int] = []
        stretched = list(result.shape)
        at = 0
        for token in tokens:
            parts = letters(token)
            sizes = list(result.shape[at : at + len(parts)])
            if len(parts) == 2 and max(sizes) > 1:
                sizes = [self.sizes[c] for c in parts]
                stretched[at : at + 2] = sizes
            shape.append(math.prod(sizes))
            at += len(parts)
        return np.broadcast_to(result, stretched).reshape(shape)

    def along(self, parts: Sequence[tuple[Array, list[int]]], k: int, axis: int) -> BoolArray | None:
        """For each index of one axis of a term, whether any product there is true."""
        found = self.product(parts, [self.tokens[k][axis]])
        return None if found is None else np.broadcast_to(found, (self.call.shape(k)[axis],))


def all_sums(coupling: Coupling) -> list[Sum]:
    """The operators of a graph that sum channels away, in its order."""
    found = []
    for step in coupling.flow.steps:
        signature = step.rule.fit(step.call) if step.understood and step.rule is not None and not step.moved else None
        if signature is not None and step.rule is not None and not step.call.node.border and not step.rule.runs:
            sum_ = Sum(step.call, step.rule, signature)
            found += [sum_] if any(sum_.summed.values()) else []
    return found
