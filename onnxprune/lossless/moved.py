"""Known elements, and how movement operators carry them: the node is run on the values, and on where they are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.flow import fill_value
from onnxprune.labels import BoolArray
from onnxprune.rules import Call, Rule
from onnxprune.shapes import Executor, Shape, Shapes
from onnxprune.weights import Array

MOVE_LIMIT = 1 << 25
"""Elements of the largest tensor on which values are moved."""

_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A tensor's elements: ``value`` where ``mask``. An axis of size one stands for all of the tensor's axis."""

    value: Array
    mask: BoolArray

    @classmethod
    def of(cls, value: Array, mask: BoolArray) -> Known:
        """Known where ``mask`` and finite; the two broadcast."""
        value, mask = np.broadcast_arrays(value, mask)
        with np.errstate(all="ignore"):
            finite = np.isfinite(value)
        return cls(value, mask if finite.all() else mask & finite)

    @classmethod
    def all(cls, value: Array) -> Known:
        """All of a constant."""
        return cls(value, np.broadcast_to(np.True_, value.shape))

    @classmethod
    def nothing(cls, rank: int) -> Known:
        """Nothing of a tensor."""
        return cls(np.zeros((1,) * rank, np.float32), np.zeros((1,) * rank, np.bool_))

    @property
    def there(self) -> BoolArray:
        """Which elements are not known to be zero."""
        there: BoolArray = ~self.mask | (self.value != 0)
        return there

    @property
    def filled(self) -> Array:
        """The values, and zeros where they are not known."""
        return self.value if self.complete else np.where(self.mask, self.value, np.zeros((), self.value.dtype))

    @property
    def complete(self) -> bool:
        """Whether everything is known."""
        return bool(self.mask.all())

    @property
    def some(self) -> bool:
        """Whether anything is known."""
        return bool(self.mask.any())

    def or_else(self, other: Known) -> Known:
        """What either knows."""
        if not other.some or not self.some:
            return self if self.some else other
        return Known.of(np.where(self.mask, self.value, other.value), self.mask | other.mask)


def move(execute: Executor, shapes: Shapes, call: Call, rule: Rule, facts: Mapping[int, Known]) -> dict[str, Known]:
    """What is known of a movement operator's results, by name."""
    node = call.node
    data = [k for k in rule.carries(node) if node.input(k)]
    made = fill_value(call)
    fill = 0.0 if made is None else made
    if rule.op == "ConstantOfShape" and not math.isnan(fill):
        rank = len(call.outputs[0] or ())
        return {node.outputs[0]: Known.of(np.full((1,) * rank, fill), np.ones((1,) * rank, np.bool_))}
    if not any(facts[k].some for k in data) and rule.op != "Pad":
        return {}
    if rule.op == "Expand":
        rep = facts[0]
        shape = (1,) * (len(call.outputs[0] or ()) - rep.mask.ndim) + rep.mask.shape
        return {node.outputs[0]: Known(rep.value.reshape(shape), rep.mask.reshape(shape))}
    if rule.op in _RESHAPES:
        return {node.outputs[0]: _reshaped(shapes, call, facts[0])}
    options = [call.static[k] for k, name in enumerate(node.inputs) if name and k not in data]
    if any(static is None or not static.all() for static in options):
        return _beside(call, rule, facts[0], fill)
    return _run(execute, shapes, call, facts, data, fill)


def _reshaped(shapes: Shapes, call: Call, known: Known) -> Known:
    """What a reshape does to a tensor must come out alike at both probe sizes."""
    source, target = call.node.inputs[0], call.node.outputs[0]
    pairs: list[tuple[Shape | None, Shape | None]] = [(call.shape(0), call.outputs[0])]
    if shapes.dynamic:
        pairs.append((shapes.fixed.get(source), shapes.fixed.get(target)) if shapes.fixed is not None else (None, None))
    results: list[Known] = []
    for before, after in pairs:
        if before is None or after is None or math.prod(before) != math.prod(after) or math.prod(before) > MOVE_LIMIT:
            return Known.nothing(len(call.outputs[0] or ()))
        value, mask = (np.broadcast_to(a, before).reshape(after) for a in (known.filled, known.mask))
        results.append(_collapsed(value, mask, shapes.fixed_dims(target)))
    one, other = results[0], results[-1]
    if one.mask.shape != other.mask.shape:
        return Known.nothing(one.mask.ndim)
    return Known(one.value, one.mask & other.mask & (one.value == other.value))


def _beside(call: Call, rule: Rule, known: Known, fill: float) -> dict[str, Known]:
    """An operator whose amounts follow the input's size: what does not vary along the axes it works on stays as it is."""
    node, sizes = call.node, known.mask.shape
    if rule.op in ("Split", "Gather"):
        worked = {call.axis()}
    elif rule.op == "Slice" and (given := call.axes(3, tuple(range(call.rank())))) is not None:
        worked = set(given)
    elif rule.op == "Pad" and not node.input(3) and (static := call.static[1]) is not None:
        pads = call.value(1)
        moves = ~static | (pads != 0 if pads is not None else True)
        worked = {int(a) % call.rank() for a in np.flatnonzero(moves)}
        known = Known(known.value, known.mask & (known.value == fill))
    else:
        worked = set(range(len(sizes)))
    ranks = {len(shape or ()) for shape in call.outputs}
    if any(sizes[a] > 1 for a in worked) or ranks != {len(sizes)}:
        return {}
    return dict.fromkeys(filter(None, node.outputs), known)


def _run(
    execute: Executor, shapes: Shapes, call: Call, facts: Mapping[int, Known], data: list[int], fill: float
) -> dict[str, Known]:
    node = call.node
    names = [n for n in node.outputs if n]
    if max(math.prod(s or ()) for s in (*call.inputs, *call.outputs)) > MOVE_LIMIT:
        return {}
    dtype = np.result_type(*([facts[k].value.dtype for k in data if facts[k].some] or [np.dtype(np.float32)]))
    values: list[Array | None] = [call.value(k) if name else None for k, name in enumerate(node.inputs)]
    masks = list(values)
    for k in data:
        values[k] = np.broadcast_to(facts[k].filled.astype(dtype, copy=False), call.shape(k))
        masks[k] = np.broadcast_to(facts[k].mask.astype(dtype), call.shape(k))
    filled: dict[str, float] = {}
    if node.op == "Pad" and not math.isnan(fill) and call.attribute("mode", "constant") == "constant":
        if call.version < 11:
            filled = {"value": 1.0}
        else:
            values += [None] * (3 - len(values))
            masks += [None] * (3 - len(masks))
            values[2], masks[2] = np.asarray(fill, dtype), np.ones((), dtype)
    elif node.op == "Pad" and len(masks) > 2 and masks[2] is not None:
        return {}
    try:
        results = execute(node, values), execute(node, masks, filled or None)
    except Exception:  # the evaluator's errors have no common base; what it can't do is not known
        return {}
    found = {}
    for name, value, mask in zip(names, *results, strict=True):
        found[name] = _collapsed(np.asarray(value), np.asarray(mask) != 0, shapes.fixed_dims(name))
    return found


def _collapsed(value: Array, mask: BoolArray, fixed: BoolArray) -> Known:
    """Shorten axes along which nothing varies. Along one whose size follows the input, what varies is not known."""
    if not value.size:
        return Known.nothing(value.ndim)
    value = np.where(mask, value, np.zeros((), value.dtype))
    for axis in range(value.ndim):
        if value.shape[axis] == 1:
            continue
        first_value, first_mask = (np.take(a, [0], axis) for a in (value, mask))
        same = (value == first_value) & (mask == first_mask)
        if same.all():
            value, mask = first_value, first_mask
        elif not fixed[axis]:
            mask = first_mask & same.all(axis, keepdims=True)
            value = np.where(mask, first_value, np.zeros((), value.dtype))
    return Known(value, mask)
