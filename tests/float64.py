"""Operators that ONNX's reference evaluator lacks, computes in single precision, or gets wrong, in double precision."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx.reference.op_run import OpRun


class Erf(OpRun):
    """ONNX's own computes in float32."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.vectorize(math.erf)(x),)


class ConvTranspose(OpRun):
    """ONNX's own lacks groups of several channels, dilations and ``output_shape``."""

    op_domain = ""

    def _run(self, x, filters, b=None, auto_pad="NOTSET", dilations=None, group=1, output_padding=None, output_shape=None,
             pads=None, strides=None, kernel_shape=None):  # fmt: skip
        rank, extra = filters.ndim - 2, output_padding or [0] * (filters.ndim - 2)
        strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * (2 * rank)
        counts, kernel, inner = x.shape[2:], filters.shape[2:], x.shape[1] // group
        whole = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(counts, strides, kernel, dilations, strict=True)]
        if output_shape or auto_pad.startswith("SAME"):
            sizes = list(output_shape or [n * s for n, s in zip(counts, strides, strict=True)])[-rank:]
            over = [max(0, n + e - size) for n, e, size in zip(whole, extra, sizes, strict=True)]
            begins = [o // 2 if auto_pad == "SAME_UPPER" else o - o // 2 for o in over]
        else:
            begins = pads[:rank]
            sizes = [n - p - q + e for n, p, q, e in zip(whole, begins, pads[rank:], extra, strict=True)]
        y = np.zeros(
            (len(x), group, filters.shape[1], *(max(n, p + size) for n, p, size in zip(whole, begins, sizes, strict=True)))
        )
        grouped = x.reshape(len(x), group, inner, *counts)
        filters = filters.reshape(group, inner, *filters.shape[1:])
        for place in np.ndindex(*kernel):
            at = tuple(
                slice(p * d, p * d + (n - 1) * s + 1, s) for p, d, n, s in zip(place, dilations, counts, strides, strict=True)
            )
            y[(..., *at)] += np.einsum("ngi...,gio->ngo...", grouped, filters[(..., *place)])
        y = y.reshape(len(x), -1, *y.shape[3:])[(..., *(slice(p, p + n) for p, n in zip(begins, sizes, strict=True)))]
        return (y if b is None else y + b.reshape(-1, *[1] * rank),)


class Gelu(OpRun):
    """In single precision."""

    op_domain = ""

    def _run(self, x, approximate="none"):
        if approximate == "tanh":
            return (x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,)
        return (x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,)


class Shrink(OpRun):
    """In single precision."""

    op_domain = ""

    def _run(self, x, bias=0.0, lambd=0.5):
        return (np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0)),)


class Celu(OpRun):
    """In single precision."""

    op_domain = ""

    def _run(self, x, alpha=1.0):
        return (np.where(x > 0, x, alpha * np.expm1(x / alpha)),)


class MeanVarianceNormalization(OpRun):
    """In single precision."""

    op_domain = ""

    def _run(self, x, axes=(0, 2, 3)):
        return ((x - x.mean(tuple(axes), keepdims=True)) / x.std(tuple(axes), keepdims=True),)


class GroupNormalization(OpRun):
    """In single precision."""

    op_domain = ""

    def _run(self, x, scale, bias, epsilon=1e-5, num_groups=1, stash_type=1):
        apart = x.reshape(len(x), num_groups, -1)
        centred = apart - apart.mean(axis=2, keepdims=True)
        normal = (centred / np.sqrt(apart.var(axis=2, keepdims=True) + epsilon)).reshape(x.shape)
        scale, bias = (v.repeat(x.shape[1] // len(v)).reshape(-1, *[1] * (x.ndim - 2)) for v in (scale, bias))
        return (normal * scale + bias,)


class GlobalLpPool(OpRun):
    """None."""

    op_domain = ""

    def _run(self, x, p=2):
        return ((np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / p),)


class LRN(OpRun):
    """For four axes alone."""

    op_domain = ""

    def _run(self, x, alpha=1e-4, beta=0.75, bias=1.0, size=1):
        squares, below, above = np.zeros_like(x), (size - 1) // 2, size // 2
        for channel in range(x.shape[1]):
            squares[:, channel] = (x[:, max(0, channel - below) : channel + above + 1] ** 2).sum(axis=1)
        return (x / (bias + alpha / size * squares) ** beta,)


class Upsample(OpRun):
    """For scales that are an operand."""

    op_domain = ""

    def _run(self, x, *operands, scales=None, mode="nearest", **unused):
        assert mode == "nearest"
        for axis, scale in enumerate(operands[0] if operands else scales):
            x = x.repeat(int(scale), axis)
        return (x,)


class Resize(Upsample):
    """Since the opset in which there are regions."""


class BatchNormalization(OpRun):
    """Before opset 14, as in training."""

    op_domain = ""

    def _run(self, x, scale, bias, mean, variance, epsilon=1e-5, momentum=0.9, **unused):
        shape = (-1, *[1] * (x.ndim - 2))
        scale, bias, mean, variance = (v.reshape(shape) for v in (scale, bias, mean, variance))
        return ((x - mean) / np.sqrt(variance + epsilon) * scale + bias,)


def operators(model: onnx.ModelProto) -> list[type[OpRun]]:
    """Those for a model's opset."""
    always = [Erf, ConvTranspose, Gelu, Shrink, Celu, MeanVarianceNormalization, GlobalLpPool, LRN, Upsample, GroupNormalization]
    version = next(o.version for o in model.opset_import if not o.domain)
    return [*always, *([BatchNormalization] if version < 14 else []), *([Resize] if version == 10 else [])]
