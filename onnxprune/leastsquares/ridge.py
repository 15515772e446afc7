"""Ridge regression that shrinks towards what there is, and the greedy elimination of columns from it.

``min ||Y - X Z||^2 + sum_f l_f ||Z_f - P_f||^2`` with ``l_f = alpha (X'X)_ff``: each column's penalty is a share of its own
power, so that no scale matters; none of the last column's, which is the bias'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.labels import IntArray
from onnxprune.weights import Array

ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalties that are tried on rows that are held out."""

ROUNDS = 3
"""How often a target is revised where what follows does not let all of it through."""

STEPS = 256
"""Rounds of an elimination, at most: of more channels several leave at a time."""

NEAR = 4
"""So many times as many channels are looked at as leave at a time."""

_BLOCK = 1 << 16
_FLOOR = 1e-9


def gram(x: Array, y: Array | None = None) -> Array:
    """``X'Y``: float32 products of blocks of rows, added up in float64."""
    y = x if y is None else y
    parts = ((x[i : i + _BLOCK].T @ y[i : i + _BLOCK]).astype(np.float64) for i in range(0, len(x), _BLOCK))
    return np.asarray(sum(parts, np.zeros((x.shape[1], y.shape[1]))))


def penalty(a: Array, alpha: float) -> Array:
    """The penalty of each column of a Gram matrix, float64 (columns,)."""
    powers = np.diag(a)
    shares = np.full(len(a), alpha + _FLOOR)
    shares[-1:] = _FLOOR
    return np.asarray(shares * np.maximum(powers, max(1e-12 * float(powers.max(initial=0.0)), 1e-30)))


class Solver:
    """Solves for several targets with the same rows. ``a``: their Gram matrix; ``prior``: what is shrunk to."""

    def __init__(self, a: Array, prior: Array, alpha: float) -> None:
        weight = penalty(a, alpha)
        scale = 1 / np.sqrt(np.diag(a) + weight)
        scaled = (a + np.diag(weight)) * scale[:, None] * scale
        try:
            factor = np.linalg.cholesky(scaled)
        except np.linalg.LinAlgError:  # rounding: rows that are nearly dependent
            factor = np.linalg.cholesky(scaled + 1e-6 * np.eye(len(scaled)))
        self._inverse = np.linalg.inv(factor) * scale
        self._pull = weight[:, None] * prior

    def solve(self, b: Array) -> Array:
        """The matrix, float64 (columns, sums), for ``b = X'Y``."""
        return np.asarray(self._inverse.T @ (self._inverse @ (b + self._pull)))


class RowSolver:
    """The same solution from the products of rows with rows, for fewer rows ``x`` than columns.

    ``Z = P + L^-1 X' (X L^-1 X' + 1)^-1 (Y - X P)``; the last column's penalty is as good as none.
    """

    def __init__(self, x: Array, prior: Array, alpha: float) -> None:
        powers = np.square(x, dtype=np.float64).sum(axis=0)
        weight = alpha * np.maximum(powers, 1e-6 * powers.mean())
        weight[-1] = 1e-4 * weight[-1]
        self._scaled = (x / np.sqrt(weight).astype(np.float32)).astype(np.float32)
        self._x, self._prior, self._weight = x, prior, weight
        self._inner = (self._scaled @ self._scaled.T).astype(np.float64) + np.eye(len(x))

    def solve(self, y: Array) -> Array:
        """The matrix, float64 (columns, sums), for targets (rows, sums)."""
        missing = y - self._x @ self._prior.astype(np.float32)
        found = np.linalg.solve(self._inner, missing.astype(np.float64))
        return np.asarray(self._prior + (self._scaled.T @ found) / np.sqrt(self._weight)[:, None])


def error(a: Array, b: Array, power: float, z: Array) -> float:
    """``||Y - X Z||^2`` from Gram matrices; ``power`` is ``||Y||^2``."""
    return float(power - 2 * np.vdot(b, z) + np.vdot(z, a @ z))


@dataclass(frozen=True, eq=False)
class Eliminated:
    """In which order channels leave, int (channels,), and the error by then, float64 (channels + 1,)."""

    order: IntArray
    curve: Array


@dataclass(eq=False)
class System:
    """A regression that channels are eliminated from.

    ``a``: the Gram matrix of its rows; ``z``: what its columns are multiplied with; ``places``: int (channels, columns of each).
    ``unit``: what its error is divided by.
    """

    a: Array
    z: Array
    places: IntArray
    unit: float


def eliminate(systems: Sequence[System], alpha: float) -> Eliminated:
    """Greedy backward elimination of channels, which all systems lose at the same time.

    The error by which the channels' columns q are missed, once all others have been fitted again, is ``tr(Z_q' (H_qq)^-1 Z_q)``
    with ``H = (A + L)^-1`` and ``Z = H A Z_0`` (optimal brain surgeon: Hassibi and Stork 1993; of blocks: Kurtic et al. 2022,
    arXiv:2203.07259). After each step ``H -= H_q (H_qq)^-1 H_q'`` and ``Z -= H_q (H_qq)^-1 Z_q``.
    """
    states = [_State.of(system, alpha) for system in systems]
    size = len(systems[0].places)
    together = max(1, size // STEPS)
    left, order, curve = np.arange(size), [], [0.0]
    while len(left):
        costs = np.sum([state.costs(left) for state in states], axis=0)
        near = left[np.argsort(costs, kind="stable")[: 1 + NEAR * (together - 1)]]
        parts, there = [state.part(near) for state in states], np.arange(len(near))
        chosen: list[int] = []
        while len(there) and len(chosen) < together:  # one by one: of two that are alike, the other is needed then
            costs = np.sum([part.costs(there) for part in parts], axis=0)
            best = int(np.argmin(costs))
            chosen.append(int(near[there[best]]))
            curve.append(curve[-1] + max(float(costs[best]), 0.0))
            for part in parts:
                part.remove(there[[best]])
            there = np.delete(there, best)
        for state in states:
            state.remove(np.array(chosen))
        order += chosen
        left = np.setdiff1d(left, chosen)
    return Eliminated(np.array(order, np.int64), np.array(curve))


@dataclass(eq=False)
class _State:
    h: Array
    z: Array
    places: IntArray
    unit: float

    @classmethod
    def of(cls, system: System, alpha: float) -> _State:
        h = np.linalg.inv(system.a + np.diag(penalty(system.a, alpha)))
        return cls((h + h.T) / 2, h @ (system.a @ system.z), system.places, max(system.unit, 1e-30))

    def part(self, channels: IntArray) -> _State:
        """Some channels by themselves, numbered anew."""
        at = self.places[channels]
        flat = at.ravel()
        return _State(self.h[np.ix_(flat, flat)], self.z[flat], np.arange(flat.size).reshape(at.shape), self.unit)

    def costs(self, channels: IntArray) -> Array:
        at = self.places[channels]
        z = self.z[at]
        if at.shape[1] == 1:
            inner = np.maximum(self.h[at[:, 0], at[:, 0]], 1e-300)
            return np.asarray(np.square(z[:, 0]).sum(axis=1) / inner / self.unit)
        blocks = self.h[at[:, :, None], at[:, None, :]]
        return np.asarray(np.einsum("cij,cij->c", z, np.linalg.solve(_steadied(blocks), z)) / self.unit)

    def remove(self, channels: IntArray) -> None:
        at = self.places[channels].ravel()
        block = _steadied(self.h[np.ix_(at, at)][None])[0]
        step = np.linalg.solve(block, np.concatenate([self.h[at], self.z[at]], axis=1))
        column = self.h[:, at].copy()
        self.h -= column @ step[:, : len(self.h)]
        self.z -= column @ step[:, len(self.h) :]


def _steadied(blocks: Array) -> Array:
    """Blocks that can be solved also where rounding has left nothing of them."""
    size = blocks.shape[-1]
    trace = np.trace(blocks, axis1=-2, axis2=-1)
    return np.asarray(blocks + (1e-10 * np.maximum(trace, 1e-280) / size)[..., None, None] * np.eye(size))
