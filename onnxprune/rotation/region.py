"""Where the channels of a group are, and whether they can be turned there: each operator is tried on random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.flow import Step
from onnxprune.importance import Scene
from onnxprune.labels import Factor, IntArray, places_of
from onnxprune.leastsquares import Product, linear_layers
from onnxprune.runtime import Kernels
from onnxprune.weights import Array

CLOSE = 1e-3
"""How far two results may be apart that should be the same, as a share of the largest number."""

Places = Mapping[int, IntArray]
"""For each axis of a tensor on which the channels are: the indices of each, int (channels, copies)."""


@dataclass(frozen=True, eq=False)
class Region:
    """All tensors that have a group's channels. ``steps``: all operators that write or read one of these."""

    scene: Scene
    number: int
    tensors: Mapping[str, Places]
    steps: Sequence[Step]

    @property
    def size(self) -> int:
        """How many channels there are."""
        return self.scene.group(self.number).size

    @property
    def stored(self) -> dict[str, Places]:
        """The stored tensors among them."""
        return {name: places for name, places in self.tensors.items() if name in self.scene.weights}

    def turned(self, name: str, values: Array, basis: Array) -> Array:
        """A tensor with its channels turned: the j-th becomes the sum of all, times the j-th column of ``basis``."""
        found = np.array(values)
        for axis, places in self.tensors.get(name, {}).items():
            rows = np.moveaxis(found, axis, 0)
            for copy in places.T:
                rows[copy] = np.tensordot(basis.T, rows[copy].astype(np.float64), 1)
        return found

    def obstacles(self, kernels: Kernels) -> list[Step]:
        """The operators that do not take turned channels for what they are: normalisations, or the first that is none."""
        rng = np.random.default_rng(self.number)
        basis = np.linalg.qr(rng.standard_normal((self.size, self.size)))[0]
        found = []
        for step in sorted(self.steps, key=lambda step: (step.rule is not None and step.rule.product, step.call.node.index)):
            if not self._lets_through(step, basis, rng, kernels):
                found.append(step)
                if step.call.node.op != "BatchNormalization":
                    break
        return found

    def _lets_through(self, step: Step, basis: Array, rng: np.random.Generator, kernels: Kernels) -> bool:
        """Whether an operator makes of turned channels the same as before, turned where it is of channels itself."""
        node = step.call.node
        if node.border or node.captured or None in step.call.outputs:
            return False
        operands = [self._operand(step, k, rng) if name else None for k, name in enumerate(node.inputs)]
        if any(name and values is None for name, values in zip(node.inputs, operands, strict=True)):
            return False
        turned = [
            values if values is None else self.turned(name, values, basis)
            for name, values in zip(node.inputs, operands, strict=True)
        ]
        try:
            before, after = kernels(node, operands), kernels(node, turned)
        except ModelError:
            return False
        names = filter(None, node.outputs)
        return all(_alike(self.turned(name, a, basis), b) for name, a, b in zip(names, before, after, strict=True))

    def _operand(self, step: Step, k: int, rng: np.random.Generator) -> Array | None:
        """A stored or known operand as it is, any other made up; None where there is nothing to go by."""
        name, shapes = step.call.node.inputs[k], self.scene.coupling.shapes
        if name in self.scene.weights:
            return self.scene.graph.weights.read(name)
        known, shape, kind = shapes.value(name), shapes.get(name), shapes.elem_types.get(name)
        if known is not None and name not in self.tensors:
            return known
        if shape is None or kind is None or kind == TensorProto.STRING:
            return None
        values = rng.standard_normal(shape)
        kind_of = helper.tensor_dtype_to_np_dtype(kind)
        return (values > 0).astype(kind_of) if kind_of.kind in "biu" else values.astype(kind_of)


def _alike(a: Array, b: Array) -> bool:
    one, other = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return one.shape == other.shape and bool(np.abs(one - other).max(initial=0.0) <= CLOSE * np.abs(one).max(initial=0.0))


class Regions:
    """The regions of all groups of a scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self._coupling, self._kernels = scene, scene.coupling, Kernels(scene.graph)

    def obstacles(self, number: int) -> list[Step] | None:
        """What is in the way of turning a group's channels; None where they can't be turned whatever is."""
        region = self.of(number)
        return None if region is None else region.obstacles(self._kernels)

    @cached_property
    def layers(self) -> Mapping[int, Product]:
        """The linear layers that are no part of another one, by the numbers of their nodes."""
        return {one.call.node.index: one for one in linear_layers(self._coupling) if isinstance(one, Product)}

    def of(self, number: int) -> Region | None:
        """The region of a group; None where its channels can't be turned: not all stored as float32, or split, or an output."""
        scene, graph = self.scene, self._coupling.graph
        if scene.group(number).size < 2 or not self._homes[number]:
            return None
        tensors: dict[str, dict[int, IntArray]] = {}
        for name, factor in self._homes[number]:
            if name in graph.weights and {node.op for node in graph.consumers[name]} == {"BatchNormalization"}:
                continue  # one that does nothing does it to each channel, turned or not
            line = self._line(factor)
            places = None if line is None else places_of(line[1], scene.group(number).roots)
            stored = name in graph.weights
            alien = stored and (graph.weights.elem_type(name) != TensorProto.FLOAT or name in graph.uses)
            if line is None or places is None or alien or line[0] in tensors.get(name, {}) or name in self._outputs:
                return None
            tensors.setdefault(name, {})[line[0]] = places
        steps = {step.call.node.index: step for name in tensors for step in self._touching.get(name, ())}
        readers = {node.index for name in tensors for node in graph.consumers.get(name, ())}
        return Region(scene, number, tensors, list(steps.values())) if readers <= steps.keys() else None

    def _line(self, factor: Factor) -> tuple[int, IntArray] | None:
        """The one axis along which a factor's components change, and these; None where there are several."""
        owners = self._coupling.components.root[factor.labels]
        for at, axis in enumerate(factor.axes):
            rows = np.moveaxis(owners, at, 0).reshape(owners.shape[at], -1)
            if (rows == rows[:, :1]).all():
                return axis, rows[:, 0]
        return None

    @cached_property
    def _outputs(self) -> set[str]:
        return {port.name for port in self._coupling.graph.outputs}

    @cached_property
    def _homes(self) -> list[list[tuple[str, Factor]]]:
        """For each group, what has channels of it."""
        root = self._coupling.components.root
        owner = np.full(len(root), -1)
        for number in range(len(self._coupling.groups)):
            owner[self.scene.group(number).roots] = number
        found: list[list[tuple[str, Factor]]] = [[] for _ in self._coupling.groups]
        for name, tensor in self._coupling.flow.tensors.items():
            for factor in tensor.factors:
                for number in np.unique(owner[root[factor.labels]]):
                    if number >= 0:
                        found[number].append((name, factor))
        return found

    @cached_property
    def _touching(self) -> dict[str, list[Step]]:
        found: dict[str, list[Step]] = {}
        for step in self._coupling.flow.steps:
            for name in {*step.call.node.inputs, *step.call.node.captured, *step.call.node.outputs} - {""}:
                found.setdefault(name, []).append(step)
        return found
