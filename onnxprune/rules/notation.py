"""The axis notation: parse a line, and fit it to the ranks of a call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from onnxprune.graph import Graph
from onnxprune.shapes import BoolArray, Shape, Shapes
from onnxprune.structure import Node
from onnxprune.weights import Array


@dataclass(frozen=True)
class Call:
    """A node together with what is known of its operands and results (None: not known, or omitted)."""

    node: Node
    inputs: tuple[Shape | None, ...]
    outputs: tuple[Shape | None, ...]
    values: tuple[Array | None, ...]
    static: tuple[BoolArray | None, ...]
    version: int

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute's value, or ``default``."""
        return self.node.attributes.get(name, default)

    def shape(self, index: int) -> Shape:
        """The shape of an input; empty where it is not known."""
        return (self.inputs[index] or ()) if index < len(self.inputs) else ()

    def value(self, index: int) -> Array | None:
        """The known value of an input."""
        return self.values[index] if index < len(self.values) else None

    def rank(self, index: int = 0) -> int:
        """Number of axes of an input."""
        return len(self.shape(index))

    def axis(self, name: str = "axis", default: int = 0) -> int:
        """An axis attribute, counted from the front."""
        value = int(self.attribute(name, default))
        return value + self.rank() if value < 0 else value

    def axes(self, operand: int, default: tuple[int, ...]) -> tuple[int, ...] | None:
        """Axes given by an attribute in old opsets and by an input in new ones; None where they are not known."""
        given = self.attribute("axes")
        if given is None and self.node.input(operand):
            value = self.value(operand)
            if value is None:
                return None
            given = np.ravel(value).tolist()
        if given is None or len(given) == 0:
            return default
        return tuple(int(a) % max(1, self.rank()) for a in given)


def describe(graph: Graph, node: Node, shapes: Shapes) -> Call:
    """A node of a graph together with what is known of its operands."""
    return Call(
        node=node,
        inputs=tuple(shapes.get(n) if n else None for n in node.inputs),
        outputs=tuple(shapes.get(n) if n else None for n in node.outputs),
        values=tuple(shapes.value(n) if n else None for n in node.inputs),
        static=tuple(shapes.static.get(n) if n else None for n in node.inputs),
        version=graph.opset.get("" if node.standard else node.domain, 1),
    )


Token = str | tuple[str, ...]
"""A letter, ``!letter``, ``1``, ``_``, ``*`` or ``...``; or the letters of a composed axis, with ``+`` between its parts."""


def parts(token: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The parts of a composed axis that lie one after the other, each with its letters from outermost to innermost."""
    marks = [-1, *(i for i, t in enumerate(token) if t == "+"), len(token)]
    return [token[a + 1 : b] for a, b in pairwise(marks)]


def letters(token: Token) -> tuple[str, ...]:
    """The bare letters of a token; ``...`` and positions have none."""
    flat = token if isinstance(token, tuple) else (token,)
    return tuple(t.lstrip("!") for t in flat if t not in ("*", "_", "1", "...", "+"))


@dataclass(frozen=True)
class Pattern:
    """The axes of one operand, one token each."""

    tokens: tuple[Token, ...]

    def expand(self, rank: int) -> tuple[Token, ...] | None:
        """One token per axis: ``*`` stays ``*``, ``...`` becomes ``.1``, ``.2`` counted from the last; None: does not fit."""
        wild = [i for i, t in enumerate(self.tokens) if t in ("*", "...")]
        extra = rank - (len(self.tokens) - len(wild))
        if extra < 0 or (extra and not wild) or len(wild) > 1:
            return None
        if not wild:
            return self.tokens
        at = wild[0]
        filler: tuple[Token, ...]
        filler = ("*",) * extra if self.tokens[at] == "*" else tuple(f".{k}" for k in range(extra, 0, -1))
        return self.tokens[:at] + filler + self.tokens[at + 1 :]


@dataclass(frozen=True)
class Signature:
    """A parsed line of notation.

    ``sizes``: of letters that shapes alone do not tell (the number of groups). ``zero``: whether f(0) = 0 for this call.
    ``times``: operands of which one zero suffices, where that differs from the rule's. ``sums``: by letter, ways in which
    removed channels add nothing to a sum over it: all operands of one entry are zero there. Where a letter vanishes and
    has no entry, any operand that carries it will do. ``whole``: operands that are looked at as a whole (for their range),
    so that channels may leave only where they are zero.
    """

    operands: tuple[Pattern, ...]
    results: tuple[Pattern, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)
    zero: bool = True
    times: tuple[int, ...] = ()
    sums: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    whole: tuple[int, ...] = ()


@dataclass(frozen=True)
class Points:
    """Where zero points are: the operand that has it by the operand it is for; the result's; or the output that it is.

    ``scale``: the operand that is divided by, of which masks make 1 rather than 0.
    """

    operands: Mapping[int, int] = field(default_factory=dict)
    result: int | None = None
    made: int | None = None
    scale: int | None = None


_TOKEN = re.compile(r"\(([a-z0-9!+ ]+)\)|(\.\.\.)|(\*)|(!?[a-z][a-z0-9]*)|(1)|(_)|(\S)")


def parse(text: str, **sizes: int) -> Signature:
    """Parse a line of notation.

    Raises:
        ValueError: the line is not well formed.
    """
    operands, results = _parse(text)
    return Signature(operands, results, sizes)


@lru_cache(maxsize=512)
def _parse(text: str) -> tuple[tuple[Pattern, ...], tuple[Pattern, ...]]:
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"axis notation {text!r} has no '->'")
    return tuple(_pattern(p, text) for p in left.split(",")), tuple(_pattern(p, text) for p in right.split(","))


def _pattern(text: str, line: str) -> Pattern:
    tokens: list[Token] = []
    for composed, *rest, wrong in _TOKEN.findall(text):
        if wrong:
            raise ValueError(f"axis notation {line!r}: {wrong!r} means nothing")
        tokens.append(tuple(composed.split()) if composed else next(filter(None, rest)))
    return Pattern(tuple(tokens))
