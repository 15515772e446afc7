"""Spreading: all units that stay take over from one that leaves, by least squares.

The error that is left then is known in closed form (optimal brain surgeon: Hassibi and Stork 1993; for whole units, as in
OSSCAR, Meng et al. 2024, arXiv:2403.12983): with the covariance ``G`` of the units' values, ridged, unit j's
is ``1 / (G^-1)[j, j]`` before it is weighted with what reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.labels import IntArray
from onnxprune.weights import Array

RIDGE = 0.03
"""What is added to each unit's variance, as a share of the mean variance: synthetic inputs are not to be believed too far."""


@dataclass(frozen=True, eq=False)
class Spread:
    """Values of units on some inputs: ``mean`` (units,), and what is left of them (places, units), scaled by 1/sqrt(places)."""

    mean: Array
    values: Array

    @classmethod
    def of(cls, values: Array, *, centred: bool = True) -> Spread:
        """From values (places, units); not ``centred`` where a constant can't be added to what reads them."""
        mean = values.mean(axis=0) if centred else np.zeros(values.shape[1], values.dtype)
        return cls(mean, (values - mean) / np.float32(len(values)) ** 0.5)

    def order(self, outgoing: Array, pool: IntArray, count: int) -> tuple[IntArray, Array]:
        """Which units of a pool leave, the least missed first, and the variance of each that the others can't take over."""
        inverse, weights = self._inverse(pool), outgoing[pool].astype(np.float64)
        waiting = np.ones(len(pool), np.bool_)
        chosen, errors = [], []
        for _ in range(min(count, len(pool))):
            spare = np.diag(inverse).copy()
            cost = np.where(waiting, np.einsum("ij,ij->i", weights, weights) / np.where(waiting, spare, 1.0), np.inf)
            k = int(cost.argmin())
            chosen.append(k)
            errors.append(1 / spare[k])
            column = inverse[:, k] / spare[k]
            weights = weights - np.outer(column, weights[k])
            inverse = inverse - np.outer(column, inverse[k])
            waiting[k] = False
        return pool[chosen], np.array(errors)

    def shares(self, leaves: IntArray) -> tuple[IntArray, Array, Array]:
        """How the units that stay make up for those that leave.

        Returns:
            stays: int (stays,). shares: (stays, leaves), how often each stands in. rest: (leaves,), the constant beside it.
        """
        size = self.values.shape[1]
        stays = np.setdiff1d(np.arange(size), leaves)
        kept, gone = self.values[:, stays].astype(np.float64), self.values[:, leaves].astype(np.float64)
        ridge = self._ridge
        if len(kept) < len(stays):
            found = kept.T @ np.linalg.solve(kept @ kept.T + ridge * np.eye(len(kept)), gone)
        else:
            found = np.linalg.solve(kept.T @ kept + ridge * np.eye(len(stays)), kept.T @ gone)
        return stays, found, self.mean[leaves] - self.mean[stays] @ found

    @property
    def _ridge(self) -> float:
        return RIDGE * max(float(np.square(self.values).sum() / self.values.shape[1]), 1e-12)

    def _inverse(self, pool: IntArray) -> Array:
        """The part of the inverse covariance that belongs to a pool of units."""
        places, size = self.values.shape
        ridge = self._ridge
        if places < size:
            chosen = self.values[:, pool].astype(np.float64)
            inner = np.linalg.solve((self.values @ self.values.T).astype(np.float64) + ridge * np.eye(places), chosen)
            return (np.eye(len(pool)) - chosen.T @ inner) / ridge
        whole = (self.values.T @ self.values).astype(np.float64) + ridge * np.eye(size)
        return np.asarray(np.linalg.solve(whole, np.eye(size)[:, pool])[pool])
