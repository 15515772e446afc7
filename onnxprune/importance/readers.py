"""What reads a group's channels, summed up over some inputs: what is needed to fit it anew without some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from onnxprune.importance.scene import Scene
from onnxprune.labels import IntArray
from onnxprune.leastsquares import Changes, Linear, Solver, System, Tail, gram, tail_of, visible
from onnxprune.weights import Array

POSITIONS = 256
"""Positions of each sample that are looked at, at most."""

WIDEST = 3000
"""Columns of a Gram matrix, at most; of wider layers each channel counts as a whole, the same at all of its places."""


class Reader(Protocol):
    """Something that reads a group's channels."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """What it has to see."""

    @property
    def width(self) -> int:
        """Numbers on a side of its Gram matrix."""

    def add(self, seen: list[Array], turn: int) -> None:
        """Take in the tensors for some samples."""

    def systems(self) -> list[System]:
        """The regressions that lose the channels."""

    def fit(self, leaves: IntArray, alpha: float, changes: Changes) -> None:
        """Change weights so that they make up best for some channels, by their numbers in the group."""


@dataclass(eq=False)
class LayerReader:
    """A linear layer. ``places``: int (channels, columns of each); ``at``: int (columns, m), which are summed up m times."""

    scene: Scene
    layer: Linear
    tail: Tail
    places: IntArray
    at: IntArray
    grams: list[Array] = field(default_factory=list)
    count: int = 0
    moments: Array = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, scene: Scene, number: int, layer: Linear) -> LayerReader | None:
        """None where it reads none of the group's channels, some more often than others, or each in one product of several."""
        found, first = [], 0
        for site in layer.reads:
            at = scene.places(number, site.tensor, site.axis)
            found += [] if at is None else [at + first]
            first += scene.coupling.flow.tensors[site.tensor].shape[site.axis]
        if not found or first != layer.inputs:
            return None
        places = layer.places(np.concatenate(found, axis=1))
        if layer.columns <= WIDEST:
            return cls(scene, layer, tail_of(scene.coupling, layer), places, np.arange(layer.columns)[:, None])
        return cls(scene, layer, tail_of(scene.coupling, layer), np.arange(len(places))[:, None], places)

    @property
    def tensors(self) -> tuple[str, ...]:
        """What it has to see."""
        return *self.layer.operands, *self.layer.witnesses(self.tail.end)

    @property
    def width(self) -> int:
        """Numbers on a side of its Gram matrix."""
        return len(self.at) + 1

    def add(self, seen: list[Array], turn: int) -> None:
        """Take in the tensors for some samples."""
        count = len(self.layer.operands)
        operands, witnesses = seen[:count], seen[count:]
        grid = self.layer.grid(witnesses, POSITIONS, turn)
        sums = self.layer.sums(witnesses, grid).astype(np.float64)
        grams = [self._gram(x) for x in self.layer.rows(operands, witnesses, grid)]
        moments = np.stack([sums.sum(axis=0), np.square(sums).sum(axis=0)])
        self.grams = [a + b for a, b in zip(self.grams, grams, strict=True)] if self.grams else grams
        self.moments = self.moments + moments if self.count else moments
        self.count += len(sums)

    def systems(self) -> list[System]:
        """The regressions that lose the channels."""
        mean, square = self.moments / self.count
        unit = float((square - np.square(mean)).sum())
        scale = self.tail.scale.reshape(self.layer.groups, 1, -1)
        return [
            System(a / self.count, self._stacked(m), self.places, unit)
            for a, m in zip(self.grams, self._matrix * scale, strict=True)
        ]

    def fit(self, leaves: IntArray, alpha: float, changes: Changes) -> None:
        """Change weights so that they make up best for some channels."""
        layer = self.layer
        values = [changes.value(stored) for stored, _ in layer.stored]
        new, add = layer.matrix(values), np.zeros((layer.groups, layer.outputs))
        gone = np.unique(self.places[leaves])
        stays = np.setdiff1d(np.arange(len(self.at) + 1), gone)
        for group, a in enumerate(self.grams):
            z = self._stacked(self._matrix[group])
            found = np.zeros_like(z)
            found[stays] = Solver(a[np.ix_(stays, stays)], z[stays], alpha).solve(a[stays] @ z)
            parts = found.reshape(len(z), self.at.shape[1], layer.outputs)
            new[group][self.at] = parts[:-1]
            add[group] = parts[-1].sum(axis=0)
        changes.take(layer, layer.tensors(new, values), add)

    @property
    def _matrix(self) -> Array:
        weights = self.scene.graph.weights
        return self.layer.matrix([stored.seen(weights.read(stored.tensor)) for stored, _ in self.layer.stored])

    def _stacked(self, matrix: Array) -> Array:
        """What the columns are multiplied with, at all of their places; with a row of zeros for the one."""
        z = matrix[self.at].reshape(len(self.at), -1)
        return np.concatenate([z, np.zeros((1, z.shape[1]))])

    def _gram(self, x: Array) -> Array:
        if self.at.shape[1] == 1:
            return gram(x)
        ones = np.ones((len(x), 1), np.float32)
        return np.asarray(sum(gram(np.concatenate([x[:, one], ones], axis=1)) for one in self.at.T))


@dataclass(eq=False)
class OwnReader:
    """What the channels themselves are, where no linear layer reads them: nothing is fitted."""

    scene: Scene
    number: int
    name: str
    axis: int
    gram: Array = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def tensors(self) -> tuple[str, ...]:
        """What it has to see."""
        return (self.name,)

    @property
    def width(self) -> int:
        """Numbers on a side of its Gram matrix."""
        return self.scene.group(self.number).size + 1

    def add(self, seen: list[Array], turn: int) -> None:
        """Take in the tensors for some samples."""
        values = self.scene.by_channel(self.number, self.name, self.axis, seen[0].astype(np.float32))
        assert values is not None, "it is made of tensors in which the channels lie"
        rows = values[turn % max(1, len(values) // (POSITIONS * 64)) :: max(1, len(values) // (POSITIONS * 64))]
        found = gram(np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1))
        self.gram = found if not self.gram.size else self.gram + found

    def systems(self) -> list[System]:
        """The regressions that lose the channels."""
        a = self.gram / max(self.gram[-1, -1], 1)
        size = len(a) - 1
        unit = float((np.diag(a)[:-1] - np.square(a[-1, :-1])).sum())
        return [System(a, np.eye(size + 1, size), np.arange(size)[:, None], unit)]

    def fit(self, leaves: IntArray, alpha: float, changes: Changes) -> None:
        """Change weights so that they make up best for some channels."""


def readers_of(scene: Scene, number: int, layers: Sequence[Linear]) -> list[Reader]:
    """What reads a group's channels: linear layers; the channels themselves where there is none and they can be seen."""
    found: list[Reader] = [one for one in (LayerReader.of(scene, number, layer) for layer in layers) if one is not None]
    seen = visible(scene.coupling) if not found else ()
    return found or [OwnReader(scene, number, name, axis) for name, axis in scene.made(number).items() if name in seen]
