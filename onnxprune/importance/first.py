"""The layer that reads a model's input first, and how that lies in the input."""

from __future__ import annotations

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.flow import Step, carried
from onnxprune.importance.pictures import pictures, smoothed
from onnxprune.rules.notation import letters
from onnxprune.shapes import Executor
from onnxprune.structure import Port
from onnxprune.weights import Array

SMOOTH = 1.5
"""The power of the frequency that changes of pictures are divided by."""


class FirstLayer:
    """The sum of products that reads an input, straight or moved about.

    ``places``: which element of the input each of its operand's is, from 1 on; 0 where none is.
    """

    def __init__(self, step: Step, weight: Array, factor: int, operand: int, places: Array, size: int) -> None:
        self.step, self.factor, self.operand, self.places, self.size = step, factor, operand, places, size
        self.convolves = step.call.node.op == "Conv" and step.call.attribute("group", 1) == 1
        self.axis = self._summed_axis()
        self.weight = weight

    @classmethod
    def of(cls, coupling: Coupling, port: Port) -> FirstLayer | None:
        """That of one input; None where it is read otherwise."""
        shape = coupling.shapes.inputs[port.name]
        size = int(np.prod(shape))
        name, places = port.name, np.arange(1, size + 1).reshape(shape)
        weights, execute = coupling.graph.weights, Executor(coupling.graph)
        for step in coupling.flow.steps:
            rule, node = step.rule, step.call.node
            if name not in node.inputs or rule is None or not step.understood:
                continue
            k = node.inputs.index(name)
            stored = [j for j, n in enumerate(node.inputs) if n in weights and j not in (rule.plus or ())]
            if rule.product and len(stored) == 1:
                weight = weights.read(node.inputs[stored[0]]).astype(np.float32)
                return cls(step, weight, stored[0], k, places, size)
            signature = None if step.moved else rule.fit(step.call)
            if step.moved and k in rule.carries(node):
                moved = carried(execute, step, k, places)
                if moved is None:
                    return None
                places = moved[0]
            elif signature is None or not rule.is_apart(signature) or step.call.outputs[0] != step.call.shape(k):
                return None
            name = node.outputs[0]
        return None

    @property
    def sees_pictures(self) -> bool:
        """Whether it is a convolution over two dimensions or more."""
        return self.convolves and self.places.ndim > 3

    def drawn(self, rng: np.random.Generator, runs: int) -> Array | None:
        """Inputs float32 (runs, elements): from 0 to 1 where it is a convolution, else of mean 0 and standard deviation 1.

        None where the layer is of another kind.
        """
        if self.convolves:
            samples, (channels, *shape) = runs * len(self.places), self.places.shape[1:]
            return self._placed(pictures(rng, samples, channels, shape), runs)
        if self.axis is None or self.weight.ndim != 2:
            return None
        side, axis = self.axis
        rows = np.moveaxis(self.weight, side, 1)
        lead = [n for a, n in enumerate(self.places.shape) if a != axis]
        noise = rng.standard_normal((runs, *lead, len(rows))).astype(np.float32) @ rows
        found = self._placed(np.moveaxis(noise, -1, axis + 1), runs)
        return found / found.std() if found.any() else None

    def smoothed(self, change: Array) -> Array:
        """A change of pictures (runs, elements), without what there is little of in pictures: fine grain."""
        return self._placed(smoothed(self._seen(change), SMOOTH), len(change))

    def shifted(self, values: Array, by: Array) -> Array:
        """Pictures (runs, elements), moved by so many pixels along each dimension; what leaves comes in on the other side."""
        seen = self._seen(values)
        return self._placed(np.roll(seen, tuple(by), tuple(range(2, seen.ndim))), len(values))

    @property
    def dimensions(self) -> int:
        """Of pictures."""
        return self.places.ndim - 2

    def _seen(self, values: Array) -> Array:
        """What the operand is for an input (runs, elements)."""
        padded = np.concatenate([np.zeros((len(values), 1), values.dtype), values], axis=1)
        return padded[:, self.places.ravel()].reshape(-1, *self.places.shape[1:])

    def _placed(self, values: Array, runs: int) -> Array:
        """The input of which the operand has these values, float32 (runs, elements)."""
        found = np.zeros((runs, self.size + 1), np.float32)
        found[:, self.places.ravel()] = values.reshape(runs, -1)
        return found[:, 1:]

    def _summed_axis(self) -> tuple[int, int] | None:
        """The axes of the weight and of the operand that are summed over together."""
        call, rule = self.step.call, self.step.rule
        signature = None if rule is None else rule.fit(call)
        if signature is None:
            return None
        tokens = [signature.operands[j].expand(call.rank(j)) or () for j in (self.factor, self.operand)]
        kept = {c for t in signature.results[0].tokens for c in letters(t)}
        shared = [t for t in tokens[0] if t in tokens[1] and letters(t) and not kept & set(letters(t))]
        return (tokens[0].index(shared[0]), tokens[1].index(shared[0])) if len(shared) == 1 else None
