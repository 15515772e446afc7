"""Spreading: all units that stay take over from one that leaves, by least squares.

The error that is left then is known in closed form (optimal brain surgeon: Hassibi and Stork 1993; for whole units, as in
OSSCAR, Meng et al. 2024, arXiv:2403.12983): with the covariance ``G`` of the units' values, ridged, unit j's
is ``1 / (G^-1)[j, j]`` before it is weighted with what reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxprune.labels import IntArray
from onnxprune.weights import Array

PLACES = 4096
"""Places that are looked at in what comes of synthetic inputs, at most."""

RIDGE = 0.01
"""What is added to each unit's variance, as a share of the mean variance: synthetic inputs are not to be believed too far."""

POOL = 256
"""Units at least that are looked at together; of wider layers those that would be missed least alone."""


@dataclass(eq=False)
class Spread:
    """Values (places, units) of units on some inputs: what is left beside their means, over the root of the places' number."""

    values: Array

    @classmethod
    def of(cls, values: Array) -> Spread:
        """From values (places, units)."""
        return cls((values - values.mean(axis=0)) / np.float32(len(values)) ** 0.5)

    def order(self, outgoing: Array, count: int) -> tuple[IntArray, Array]:
        """Which units leave, the least missed first, and the variance of each that the others can't take over by then."""
        alone = np.einsum("ij,ij->i", outgoing, outgoing) * self._alone()
        pool = np.sort(np.argsort(alone, kind="stable")[: max(count, POOL)])
        inverse = self._inverse(pool)
        read = outgoing[pool].astype(np.float64)
        weights = read @ read.T
        waiting = np.ones(len(pool), np.bool_)
        chosen, errors = [], []
        for _ in range(min(count, len(pool))):
            spare = np.diag(inverse)
            k = int(np.where(waiting, np.diag(weights) / np.where(waiting, spare, 1.0), np.inf).argmin())
            chosen.append(k)
            errors.append(1 / spare[k])
            column, row = inverse[:, k] / spare[k], weights[k].copy()
            weights += np.outer(column, column * row[k] - row) - np.outer(row, column)
            inverse -= np.outer(column, inverse[k])
            waiting[k] = False
        return pool[chosen], np.array(errors)

    def _alone(self) -> Array:
        """The variance of each unit that the others can't take over if it leaves alone."""
        places, size = self.values.shape
        if places < size:
            solved = np.linalg.solve(self._inner, self.values)
            return np.asarray(self._ridge / np.maximum(1 - np.einsum("ij,ij->j", self.values, solved), 1e-6))
        return np.asarray(1 / np.diag(self._whole))

    @property
    def _ridge(self) -> float:
        return RIDGE * max(float(np.square(self.values).sum() / self.values.shape[1]), 1e-12)

    @cached_property
    def _inner(self) -> Array:
        """The ridged products of places with places, float64."""
        return np.asarray((self.values @ self.values.T).astype(np.float64) + self._ridge * np.eye(len(self.values)))

    @cached_property
    def _whole(self) -> Array:
        """The inverse of the ridged covariance, float64."""
        covariance = (self.values.T @ self.values).astype(np.float64)
        return np.asarray(np.linalg.inv(covariance + self._ridge * np.eye(len(covariance))))

    def _inverse(self, pool: IntArray) -> Array:
        """The part of it that belongs to a pool of units."""
        places, size = self.values.shape
        if places >= size:
            return np.array(self._whole[np.ix_(pool, pool)])
        chosen = self.values[:, pool].astype(np.float64)
        return np.asarray((np.eye(len(pool)) - chosen.T @ np.linalg.solve(self._inner, chosen)) / self._ridge)


def refit(seen: Array, wanted: Array, stays: IntArray, guess: Array) -> tuple[IntArray, Array, Array]:
    """How units that are there make up for all that there were: ridge regression that shrinks towards a guess.

    Args:
        seen: (places, stays), the values of those that are there, now. wanted: (places, all), those of all, originally.
        stays: int (stays,), which those are. guess: (stays, others), how often each stands in for each other.

    Returns:
        columns: int (changed,), the units whose work is given to others, or whose own changes.
        shares: (stays, changed), how much more of each is added to each. rest: (all,), the constants beside it.
    """
    x, y = seen.astype(np.float32), wanted.astype(np.float32)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x, missing = x - x_mean, y - y_mean
    others = np.setdiff1d(np.arange(y.shape[1]), stays)
    scale = float(np.square(x).sum()) / x.shape[1]
    missing[:, stays] -= x
    missing[:, others] -= x @ guess
    columns = np.flatnonzero((np.square(missing).sum(axis=0) > 1e-10 * scale) | np.isin(np.arange(y.shape[1]), others))
    ridge, missing = RIDGE * max(scale, 1e-12), missing[:, columns]
    if len(x) < x.shape[1]:
        inner = (x @ x.T).astype(np.float64) + ridge * np.eye(len(x))
        found = x.T @ np.linalg.solve(inner, missing.astype(np.float64)).astype(np.float32)
    else:
        found = np.linalg.solve((x.T @ x).astype(np.float64) + ridge * np.eye(x.shape[1]), (x.T @ missing).astype(np.float64))
    found[:, np.isin(columns, others)] += guess
    rest = y_mean.astype(np.float64)
    rest[stays] -= x_mean
    rest[columns] -= x_mean @ found
    return columns, found, rest


def stacked(parts: list[Array | None]) -> Array | None:
    """Rows below each other, always the same ones where there are many; None if any part is unknown, or not finite."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    found = np.concatenate(known)
    if len(found) > PLACES:
        found = found[np.random.default_rng(0).choice(len(found), PLACES, replace=False)]
    return found if np.isfinite(found).all() else None
