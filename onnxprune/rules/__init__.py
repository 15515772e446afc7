"""TABLE 1: how operators tie channel axes.

A computing operator is a line of notation: the axes of its operands, then those of its result. The same letter is the
same channels; a weight's letter that reaches the result is a *producer* axis, one that is summed away a *consumer* axis.

    n i *, o i *, o -> n o *       Conv with one group
    n (g i) *, (g o) i * ...       an axis composed of several: groups times channels per group; one of them is cut
    (h d + h d + h e)              parts that lie one after the other, such as queries, keys and values
    *                              the remaining axes: positions, never cut
    ...                            the remaining axes, tied one by one with broadcasting
    !c                             an axis whose indices mix: must stay whole
    1                              an axis of size one
    _                              one position axis, never cut

A movement operator only moves elements. It has no notation: it is run on labels (see :mod:`onnxprune.channels`).

To add an operator, add a row to the file of its family:

>>> from onnxprune.rules import find
>>> find("Conv").signature
'n (g i) *, (g o) i *, (g o) -> n (g o) *'
>>> find("NoSuchOperator") is None
True
"""

from onnxprune.rules import (
    attention,
    control,
    elementwise,
    fused,
    indexing,
    linear,
    movement,
    normalization,
    pooling,
    quantised,
    recurrent,
    reduction,
)
from onnxprune.rules.notation import Call, Pattern, Points, Signature, describe, parse
from onnxprune.rules.registry import Kind, Resize, Rule, find, table

__all__ = [
    "Call",
    "Kind",
    "Pattern",
    "Points",
    "Resize",
    "Rule",
    "Signature",
    "attention",
    "control",
    "describe",
    "elementwise",
    "find",
    "fused",
    "indexing",
    "linear",
    "movement",
    "normalization",
    "parse",
    "pooling",
    "quantised",
    "recurrent",
    "reduction",
    "table",
]
