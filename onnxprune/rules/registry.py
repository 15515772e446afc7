"""One table of rules, filled by the family modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from onnxprune.rules.notation import Call, Points, Signature, parse
from onnxprune.shapes import Executor, Shape
from onnxprune.structure import STANDARD, Node
from onnxprune.weights import Array


class Kind(Enum):
    """What cutting channels through an operator means."""

    EXACT = "exact"
    """The pruned model equals the masked one."""
    MIXING = "mixing"
    """The axis it works over stays whole, because the remaining values would change; the others are exact."""
    MOVEMENT = "movement"
    """Only moves elements; it is run on labels."""


@dataclass(frozen=True)
class Resize:
    """New values of what hard-codes a size: operands by index, attributes by name (None removes one)."""

    operands: Mapping[int, Array]
    attributes: Mapping[str, Any]


Resizer = Callable[[Call, tuple[Shape | None, ...], tuple[Shape | None, ...], "Kept"], Resize]
"""(call, new input shapes, new output shapes, which indices stay) -> what has to change in the node."""

Kept = Callable[[str, int, int], Array]
"""(``"input"`` or ``"output"``, position, axis) -> bool array: which indices of that axis stay."""


def always(call: Call) -> bool:
    """For :attr:`Rule.steady`: in every call."""
    return True


def never(call: Call) -> bool:
    """For :attr:`Rule.steady`: in no call."""
    return False


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    ``times`` and ``plus`` say when a removed channel of the result is exactly zero in the masked model: if it is in any
    operand of ``times`` (all of them count as absent where the tuple is empty) and in every operand of ``plus``.
    ``ALL`` stands for every operand, ``zero=False`` for never. ``counts``: the result depends on how many channels there
    are in front, so that mixing is out of the question (ArgMax). ``points`` tells where quantised operands and results
    have their zero points, which stand for zero in them. ``keeps``: an operand of one value everywhere gives that value.
    ``runs``: the ONNX operator that moves the operands with elements in the same way. ``steady``: whether, in a call, a
    channel of the first operand that has one value everywhere still has one everywhere afterwards (no border is padded
    with something else). ``product``: the result is a sum of products of the operands, plus those of ``plus``, and
    nothing else. ``apart``: each element of the result depends on the elements at the same place alone, as where the
    notation is nothing but ``...``. ``rises``: the result is a sum, mean or maximum of elements of the first operand, so
    that it never falls when they rise.
    """

    op: str
    domain: str
    kind: Kind
    signature: str
    build: Callable[[Call], Signature | None] | None = None
    times: tuple[int, ...] = ()
    plus: tuple[int, ...] | None = ()
    zero: bool = True
    divides: tuple[int, ...] = ()
    data: tuple[int, ...] | slice | None = (0,)
    fills: bool = False
    counts: bool = False
    resize: Resizer | None = None
    points: Points = field(default_factory=Points)
    keeps: bool = False
    runs: str = ""
    steady: Callable[[Call], bool] = never
    product: bool = False
    apart: bool = False
    rises: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        """The operator with its domain, where that is not ONNX's own."""
        return f"{self.domain}.{self.op}" if self.domain else self.op

    @property
    def mixes(self) -> bool:
        """Whether its axis can be cut where the caller does not ask for exactness."""
        return self.kind is Kind.MIXING and not self.counts

    def is_apart(self, signature: Signature) -> bool:
        """Whether each element of the result depends on the elements at the same place alone."""
        return self.apart or all(pattern.tokens == ("...",) for pattern in (*signature.operands, *signature.results))

    def carries(self, node: Node) -> tuple[int, ...]:
        """Which inputs of a movement operator carry the elements that it moves."""
        if isinstance(self.data, tuple):
            return self.data
        return tuple(range(len(node.inputs))[self.data or slice(None)])

    def run(
        self, execute: Executor, node: Node, operands: Sequence[Array | None], attributes: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Run a movement operator on arrays."""
        if not self.runs:
            return execute(node, operands, attributes)
        return execute(node, [operands[k] for k in self.carries(node)], attributes, op=self.runs)

    def fit(self, call: Call) -> Signature | None:
        """The notation for this call; None where the call is outside what the rule covers."""
        return self.build(call) if self.build is not None else parse(self.signature)


def fewer_groups(attribute: str) -> Resizer:
    """An attribute that counts groups of channels becomes the number of groups of which anything is left."""

    def resize(call: Call, inputs: tuple[Shape | None, ...], outputs: tuple[Shape | None, ...], kept: Kept) -> Resize:
        groups = int(call.attribute(attribute, 1))
        left = int(kept("input", 0, 1).reshape(groups, -1).any(axis=1).sum())
        return Resize({}, {attribute: left} if left != groups else {})

    return resize


ALL = None

_RULES: dict[tuple[str, str], Rule] = {}


def add(*ops: str, domain: str = "", kind: Kind = Kind.EXACT, signature: str = "", **options: Any) -> None:
    """Add one row for each operator name.

    Raises:
        ValueError: there is a row for it already.
    """
    for op in ops:
        if (domain, op) in _RULES:
            raise ValueError(f"operator {domain or 'ai.onnx'}.{op} has a rule already")
        _RULES[domain, op] = Rule(op, domain, kind, signature, **options)


def find(op: str, domain: str = "") -> Rule | None:
    """The rule for an operator, or None: an operator without a rule is a barrier."""
    return _RULES.get(("" if domain in STANDARD else domain, op))


def table() -> Iterator[Rule]:
    """All rows, sorted by name."""
    return iter(sorted(_RULES.values(), key=lambda r: (r.domain, r.op)))
