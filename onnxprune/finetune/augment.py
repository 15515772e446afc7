"""Augmentation: samples as they might have been as well. Images only: inputs of four axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.weights import Array

KINDS = ("flip", "shift")
_REACH = 8
"""Images are shifted by at most this part of their side: 4 of 32 pixels."""


def check(kinds: Sequence[str], inputs: Mapping[str, Array]) -> None:
    """Make sure that the data can be augmented.

    Raises:
        OptionError: there is no such augmentation, or no input holds images.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise OptionError(f"augmentation {kind!r} does not exist; choose among {', '.join(KINDS)}")
    if kinds and not any(map(_is_image, inputs.values())):
        shapes = ", ".join(f"{name!r} {values.shape}" for name, values in inputs.items())
        raise OptionError(f"only images, inputs of four axes, can be augmented, and the data have {shapes}; leave --augment out")


def augmented(inputs: Mapping[str, Array], kinds: Sequence[str], rng: np.random.Generator) -> dict[str, Array]:
    """The samples, each image mirrored from left to right or not, and moved by some pixels, its border repeated.

    All images of a sample are changed alike. Of the axes after the first, the channels' is the last or the second,
    whichever is shorter.
    """
    if not kinds:
        return dict(inputs)
    samples = len(next(iter(inputs.values())))
    mirrored = rng.random(samples) < 0.5 if "flip" in kinds else np.zeros(samples, np.bool_)
    moves = rng.uniform(-1, 1, (2, samples)) if "shift" in kinds else np.zeros((2, samples))
    return {name: _changed(v, mirrored, moves) if _is_image(v) else v for name, v in inputs.items()}


def _is_image(values: Array) -> bool:
    return values.ndim == 4 and values.dtype.kind == "f"


def _changed(values: Array, mirrored: Array, moves: Array) -> Array:
    last = values.shape[3] < values.shape[1]
    images = values.transpose(0, 3, 1, 2) if last else values
    rows, columns = (_places(size, move) for size, move in zip(images.shape[2:], moves, strict=True))
    columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
    number, channel = np.ogrid[: len(images), : images.shape[1]]
    found = images[number[:, :, None, None], channel[:, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]
    return np.ascontiguousarray(found.transpose(0, 2, 3, 1) if last else found)


def _places(size: int, moves: Array) -> Array:
    """Which row (or column) of its image comes where, (samples, size)."""
    reach = size // _REACH
    steps = np.rint(moves * (reach + 0.5)).clip(-reach, reach).astype(np.int64)
    return np.asarray(np.clip(np.arange(size) + steps[:, None], 0, size - 1))
