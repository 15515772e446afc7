"""Pictures without a camera: what convolutions see of them is what makes pictures alike, edges above all.

*Dead leaves*: things of all sizes that hide each other (Lee, Mumford, Huang 2001, "Occlusion models for natural images"), which
networks can even be trained on (Baradad et al. 2021, "Learning to see by looking at noise", arXiv:2106.05963). Textures are
random fields whose amplitude falls with a power of the frequency (Field 1987).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np

from onnxprune.weights import Array

LEAVES = (10, 60)
"""How many leaves a picture has."""

SIZES = (1.5, 0.5)
"""Radii: pixels at least, and at most this share of the picture's shortest side; any magnitude is equally likely."""

STRETCH = 0.8
"""How far a leaf is stretched along its axes, as a natural logarithm."""

SHADING, TEXTURE = 0.6, 0.3
"""How much the colour changes across a leaf, and how much is added as texture, over the spread of the leaves' colours."""

COMMON, OWN = 0.9, 0.3
"""How much of a colour all channels share, and how much is each one's own."""

SLOPES = (0.8, 1.6)
"""The power of the frequency that a texture's amplitude falls with."""

SLOPE, LEVELS, STEEP = 2.0, (-1.5, 1.5), 4.0
"""The same power for signals and for pictures in one channel, which may be dark or bright for the most part: how much of them,
in standard deviations, and how steep the way between is."""

MEAN, SPREAD = 0.47, 0.2
"""Of pictures in colour, over the range from dark to bright: about those of photographs (ImageNet, CIFAR-10: 0.47, 0.25); there
are more edges in leaves, and a little less contrast makes up for it."""


NORMS: tuple[Callable[[Sequence[Array]], Array], ...] = (
    lambda places: np.sqrt(reduce(np.add, [p * p for p in places])),
    lambda places: reduce(np.maximum, [np.abs(p) for p in places]),
    lambda places: reduce(np.add, [np.abs(p) for p in places]),
)
"""The distances from its middle that make a leaf a ball, a box or an octahedron."""


def pictures(rng: np.random.Generator, samples: int, channels: int, shape: Sequence[int]) -> Array:
    """What a convolution may read: photographs, of which leaves have the edges and colours; fields with large dark and bright
    regions in place of drawings and scans in one channel, and of signals in one dimension.

    Returns:
        float32 (samples, channels, *shape), 0 is dark and 1 is bright.
    """
    if channels > 1 and len(shape) > 1:
        return np.asarray(np.clip(MEAN + SPREAD * leaves(rng, samples, channels, shape), 0, 1), np.float32)
    found = fields(rng, samples, channels, shape, (SLOPE, SLOPE), own=0.5)
    level = rng.uniform(*LEVELS, (samples, *[1] * (1 + len(shape))))
    return np.asarray(1 / (1 + np.exp(STEEP * (level - found))), np.float32)


def leaves(rng: np.random.Generator, samples: int, channels: int, shape: Sequence[int]) -> Array:
    """Dead leaves in any number of dimensions: balls, boxes and octahedra, each in front of those before it.

    Returns:
        float32 (samples, channels, *shape) of mean 0 and standard deviation 1 in all.
    """
    found = np.stack([_picture(rng, channels, tuple(shape)) for _ in range(samples)])
    found += TEXTURE * COMMON * fields(rng, samples, channels, shape, own=OWN / COMMON)
    return np.asarray((found - found.mean()) / (found.std() + 1e-9), np.float32)


def _picture(rng: np.random.Generator, channels: int, shape: tuple[int, ...]) -> Array:
    """One picture without texture, float32 (channels, *shape)."""
    dimensions = len(shape)
    each = (slice(None), *[None] * dimensions)
    found = np.broadcast_to(_colour(rng, channels)[each], (channels, *shape)).astype(np.float32)
    for _ in range(rng.integers(*LEAVES)):
        radius = float(np.exp(rng.uniform(np.log(SIZES[0]), np.log(max(SIZES[0], SIZES[1] * min(shape))))))
        centre = rng.uniform(0, shape)
        stretch = rng.uniform(-STRETCH, STRETCH, (dimensions, 1))
        stretch = np.exp(stretch - stretch.mean())
        rotation = _rotation(rng, dimensions)
        turned = stretch * rotation
        reach = (radius + 1) * np.sqrt(dimensions * np.sum(np.square(rotation / stretch), axis=0))
        low = np.floor(np.maximum(centre - reach, 0)).astype(int)
        high = np.ceil(np.minimum(centre + reach + 1, shape)).astype(int)
        window = (slice(None), *map(slice, low, high))
        grid = np.ogrid[tuple(map(slice, low, high))]
        axes = [(line - c).astype(np.float32) for line, c in zip(grid, centre, strict=True)]
        places = [reduce(np.add, [np.float32(k) * a for k, a in zip(row, axes, strict=True)]) for row in turned]
        distance = NORMS[rng.integers(len(NORMS))](places)
        inside = np.clip(radius - distance + 0.5, 0, 1)
        colour, change = _colour(rng, channels), SHADING * _colour(rng, channels)
        paint = colour[each] + change[each] * (places[0] / (radius + 1))
        found[window] += inside * (paint - found[window])
    return found


def fields(
    rng: np.random.Generator,
    samples: int,
    channels: int,
    shape: Sequence[int],
    slopes: tuple[float, float] = SLOPES,
    *,
    own: float,
) -> Array:
    """Random fields of mean 0 and standard deviation 1 whose amplitude falls with a power of the frequency, drawn for each.

    Args:
        own: how much of a field is each channel's own, over what they share.

    Returns:
        float32 (samples, channels, *shape).
    """
    slope = rng.uniform(*slopes, (samples, *[1] * (1 + len(shape))))
    drawn = own * rng.standard_normal((samples, channels, *shape)) + rng.standard_normal((samples, 1, *shape))
    found = smoothed(drawn, slope)
    axes = tuple(range(2, found.ndim))
    return np.asarray((found - found.mean(axes, keepdims=True)) / (found.std(axes, keepdims=True) + 1e-9), np.float32)


def smoothed(values: Array, slope: float | Array) -> Array:
    """Values (samples, channels, ...) with each frequency's amplitude divided by a power of it; the mean's as the lowest's."""
    axes, shape = tuple(range(2, values.ndim)), values.shape[2:]
    frequency = np.sqrt(sum(np.square(f) for f in np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")))
    frequency.flat[0] = 1 / max(shape)
    return np.asarray(np.fft.ifftn(np.fft.fftn(values, axes=axes) / frequency**slope, axes=axes).real)


def _colour(rng: np.random.Generator, channels: int) -> Array:
    return np.asarray(COMMON * rng.standard_normal() + OWN * rng.standard_normal(channels), np.float32)


def _rotation(rng: np.random.Generator, dimensions: int) -> Array:
    """A rotation or reflection at random, (dimensions, dimensions)."""
    found, triangle = np.linalg.qr(rng.standard_normal((dimensions, dimensions)))
    return np.asarray(found * np.sign(np.diag(triangle)))
