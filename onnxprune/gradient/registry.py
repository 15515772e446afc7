"""One table of vector-Jacobian products, filled by the family modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxprune.gradient.tape import Name

Gradients = Sequence[Name | None]
"""Names of the operands' gradients, in their order; None: not written. A shorter one lacks those of the last operands."""

Vjp = Callable[..., Gradients]
"""(step, gradient of the first result, first result, operands...) -> gradients of the operands."""

ZERO = frozenset({"Ceil", "EyeLike", "Floor", "Hardmax", "RandomNormalLike", "RandomUniformLike", "Round", "Sign"})
"""Operators with float results whose derivative is zero wherever there is one."""

QUANTISERS = frozenset({"DynamicQuantizeLinear", "QuantizeLinear"})
"""Operators whose integers stand for real numbers. Other integers are positions, classes and sizes: without a gradient."""

_VJPS: dict[str, Vjp] = {}
_SEVERAL: set[str] = set()


def vjp(*ops: str, several: bool = False) -> Callable[[Vjp], Vjp]:
    """Make a function the rule of ONNX's operators of these names.

    Args:
        several: whether it takes the gradients of all results (None: nothing depends on it) and all results, as tuples,
            rather than those of the first one alone.

    Raises:
        ValueError: there is a rule for one of them already.
    """

    def add(function: Vjp) -> Vjp:
        for op in ops:
            if op in _VJPS:
                raise ValueError(f"operator {op} has a gradient already")
            _VJPS[op] = function
            _SEVERAL.update((op,) if several else ())
        return function

    return add


def find(op: str) -> Vjp | None:
    """The rule for one of ONNX's own operators, or None."""
    return _VJPS.get(op)


def takes_several(op: str) -> bool:
    """Whether an operator's rule takes the gradients of all results."""
    return op in _SEVERAL
