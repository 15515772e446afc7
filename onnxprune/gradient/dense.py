"""Linear maps along one axis of a tensor, as stored matrices."""

from __future__ import annotations

import numpy as np

from onnxprune.gradient.tape import Name, Step
from onnxprune.weights import Array


def along(op: Step, value: Name, axis: int, rank: int, matrix: Array) -> Name:
    """Multiply the vectors along an axis by a matrix (size before, size after)."""
    if axis == rank - 1:
        return op.MatMul(value, op.constant(matrix))
    if axis == rank - 2:
        return op.MatMul(op.constant(matrix.T), value)
    perm = [*range(axis), *range(axis + 1, rank), axis]
    turned = op.MatMul(op.Transpose(value, perm=perm), op.constant(matrix))
    return op.Transpose(turned, perm=np.argsort(perm).tolist())


def chosen(places: Array, size: int) -> Array:
    """The matrix (places, size) that adds up at each place in ``size`` what was taken from there."""
    matrix = np.zeros((len(places), size))
    matrix[np.arange(len(places)), places] = 1
    return matrix
