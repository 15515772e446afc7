"""Changes of layers' weights, and what they are written down as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.flow import Site
from onnxprune.graph import Graph
from onnxprune.labels import BoolArray
from onnxprune.leastsquares.linear import Linear
from onnxprune.leastsquares.stored import Stored
from onnxprune.plan import PlanEdit
from onnxprune.weights import Array

_Key = tuple[str, str, int]


class Changes:
    """Weights of layers that are given other values."""

    def __init__(self, coupling: Coupling) -> None:
        self._coupling = coupling
        self._stored: dict[_Key, tuple[Stored, int, Array]] = {}
        self._added: dict[tuple[str, int], tuple[_Key, Array]] = {}

    def value(self, stored: Stored) -> Array:
        """An operand as it is by now."""
        return stored.seen(self._now(stored))

    def _now(self, stored: Stored) -> Array:
        key = _key(stored)
        return self._stored[key][2] if key in self._stored else self._coupling.graph.weights.read(stored.tensor)

    def take(self, layer: Linear, operands: Sequence[Array], change: Array) -> bool:
        """Give a layer's weights other values, float64, and change its bias; not where a number is too large for its type."""
        new: dict[_Key, tuple[Stored, int, Array]] = {}
        for (stored, axis), operand in zip(layer.stored, operands, strict=True):
            old = self._now(stored)
            with np.errstate(over="ignore"):
                values = stored.put(old, operand).astype(old.dtype)
            if not np.isfinite(values).all():
                return False
            new[_key(stored)] = stored, stored.axis(self._coupling, axis), values
            with np.errstate(over="ignore"):
                if not np.isfinite((layer.bias(self._coupling.graph) + change).astype(old.dtype)).all():
                    return False
        if layer.slot is not None and np.abs(change).max(initial=0.0):
            slot = layer.slot[0].result, layer.slot[1]
            owner, before = self._added.get(slot, (next(iter(new)), np.zeros(1)))
            self._added[slot] = owner, before + layer.added(change)
        self._stored |= new
        return True

    def edits(self) -> list[PlanEdit]:
        """The changes as edits of the stored tensors. The last of several readers takes over what they shared."""
        found, graph = [], self._coupling.graph
        left = {name: sum(node.inputs.count(name) for node in graph.consumers[name]) for name, _, _ in self._stored}
        for key, (stored, axis, values) in self._stored.items():
            left[stored.tensor] -= 1
            alone = not left[stored.tensor] and _may_be_replaced(graph, stored.tensor)
            reader, place = ("", 0) if alone else key[1:]
            edit = PlanEdit(stored.tensor, axis, (), weights=values.astype("<f4").tobytes(), reader=reader, place=place)
            adds = [(slot, add) for slot, (owner, add) in self._added.items() if owner == key]
            for (node, index), add in adds:
                edit = replace(edit, node=node, input=index, add=tuple(add.tolist()))
            found.append(edit)
        return found

    def shown(self, stored: Stored, removed: BoolArray) -> Array:
        """The stored tensor as it is by now, with zeros for what has left."""
        values = self._stored[_key(stored)][2].copy()
        for axis in range(values.ndim):
            site = Site(stored.tensor, axis)
            if site in self._coupling.flow.sites:
                np.moveaxis(values, axis, 0)[~self._coupling.keeps(site, removed)] = 0
        return values


def _key(stored: Stored) -> _Key:
    """What tells apart tensors that are changed: of one that is shared, each reader's."""
    return (stored.tensor, "", 0) if stored.own else (stored.tensor, stored.reader, stored.place)


def _may_be_replaced(graph: Graph, name: str) -> bool:
    """Whether a stored tensor may change once no node reads it as it was."""
    captured = any(name in node.captured for node in graph.consumers[name])
    return not captured and name not in graph.uses and name not in {port.name for port in graph.outputs}
