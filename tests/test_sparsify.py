"""Unstructured pruning: masks as documented, restored byte for byte, reported honestly."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from onnxprune import masks as module
from onnxprune.errors import OptionError
from onnxprune.masks import Choice, Layout, each_mask, masks, threshold
from onnxprune.weights import Array


def filters(seed: int = 0) -> dict[str, Array]:
    """A 3x3 convolution, a 1x1 one, a depthwise one."""
    rng = np.random.default_rng(seed)
    shapes = {"three": (8, 4, 3, 3), "one": (16, 8, 1, 1), "depthwise": (6, 1, 3, 3)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def unit_sums(weights: dict[str, Array], granularity: str) -> dict[str, Array]:
    """The documented scores, written down once more: with loops, in float64."""
    axes = {"element": (), "kernel": (2, 3), "filter": (1, 2, 3)}[granularity]
    return {name: np.abs(w.astype(np.float64)).sum(axis=axes) if axes else np.abs(w) for name, w in weights.items()}


@pytest.mark.parametrize("granularity", ["element", "kernel", "filter"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.29, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_threshold_is_as_documented(granularity: str, share: float, scope: str) -> None:
    weights = filters()
    found = masks(weights, share, granularity=granularity, scope=scope)
    sums = unit_sums(weights, granularity)

    def limit(scores: Array) -> float:
        rank = int(share * scores.size)
        return math.inf if rank >= scores.size else float(np.sort(scores, axis=None)[rank])

    everything = np.concatenate([s.ravel() for s in sums.values()])
    for name, w in weights.items():
        low = limit(everything if scope == "global" else sums[name])
        for index in np.ndindex(w.shape):
            unit = sums[name][index[: sums[name].ndim]]
            assert found[name][index] == (unit >= low), (name, index)


def test_everything_can_leave() -> None:
    """DWP's own threshold is out of range for p = 1."""
    assert not any(mask.any() for mask in masks(filters(), 1.0).values())


def test_small_kernels_are_not_favoured_when_means_are_compared() -> None:
    weights = filters()
    gone = {
        n: {name: 1 - m.mean() for name, m in masks(weights, 0.3, granularity="kernel", normalise=n).items()} for n in Choices
    }
    assert gone["none"]["three"] == 0 < gone["none"]["one"]
    assert gone["mean"]["three"] > 0


Choices = ("none", "mean")


def test_bernoulli_takes_its_share_and_is_seeded() -> None:
    weights = {"w": np.random.default_rng(1).standard_normal((64, 64, 3, 3)).astype(np.float32)}
    all_of_them = ~masks(weights, 0.5)["w"]
    found = ~masks(weights, 0.5, bernoulli=0.3, rng=5)["w"]
    assert not (found & ~all_of_them).any()
    count, n = int(found.sum()), int(all_of_them.sum())
    assert abs(count - 0.3 * n) < 5 * math.sqrt(n * 0.3 * 0.7)
    assert np.array_equal(found, ~masks(weights, 0.5, bernoulli=0.3, rng=5)["w"])
    assert not np.array_equal(found, ~masks(weights, 0.5, bernoulli=0.3, rng=6)["w"])
    rng = np.random.default_rng(5)
    one, two = (masks(weights, 0.5, bernoulli=0.3, rng=rng)["w"] for _ in range(2))
    assert np.array_equal(~one, found)
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("granularity", ["kernel", "filter"])
def test_bernoulli_takes_whole_units(granularity: str) -> None:
    mask = masks(filters(), 0.6, granularity=granularity, scope="layer", bernoulli=0.5)["three"]
    unit = mask.reshape(32, 9) if granularity == "kernel" else mask.reshape(8, 36)
    assert (unit.all(axis=1) | ~unit.any(axis=1)).all()
    assert 0 < unit.all(axis=1).sum() < len(unit)


def test_layouts_say_what_a_filter_is() -> None:
    """A matrix product's second factor has its outputs last; so has a transposed convolution, within each group."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((5, 7)).astype(np.float32)
    mask = masks({"w": dense}, 0.5, granularity="filter", layouts={"w": Layout((5, 7), "io")})["w"]
    assert np.array_equal(mask, np.broadcast_to(np.abs(dense).sum(0) >= np.sort(np.abs(dense).sum(0))[3], (5, 7)))
    grouped = rng.standard_normal((6, 4, 3, 3)).astype(np.float32)  # (groups 2, inputs 3), outputs 4
    mask = masks({"w": grouped}, 0.5, granularity="filter", layouts={"w": Layout((2, 3, 4, 3, 3), "oio**")})["w"]
    sums = np.abs(grouped.reshape(2, 3, 4, 9)).sum(axis=(1, 3), dtype=np.float64)
    assert np.array_equal(
        mask.reshape(2, 3, 4, 9), np.broadcast_to((sums >= np.sort(sums, axis=None)[4])[:, None, :, None], (2, 3, 4, 9))
    )


def test_patterns() -> None:
    weights = {"conv": filters()["three"], "dense": np.random.default_rng(2).standard_normal((10, 3)).astype(np.float32)}
    layouts = {"conv": Layout.of((8, 4, 3, 3)), "dense": Layout((10, 3), "io")}
    found = dict(each_mask(weights, Choice(pattern="2:4"), np.random.default_rng(0), layouts))
    assert (found["conv"].sum(axis=1) == 2).all()
    kept, lost = (np.where(m, np.abs(weights["conv"]), fill) for m, fill in ((found["conv"], np.inf), (~found["conv"], 0)))
    assert (kept.min(axis=1) >= lost.max(axis=1)).all()
    assert (found["dense"][:8].reshape(2, 4, 3).sum(axis=1) == 2).all()
    assert found["dense"][8:].all()


def test_equal_scores_of_a_pattern_keep_the_first() -> None:
    found = dict(each_mask({"w": np.ones((1, 4))}, Choice(pattern="1:4"), np.random.default_rng(0), {"w": Layout.of((1, 4))}))
    assert found["w"].tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99999, 1.0])
def test_threshold_of_more_than_is_held(monkeypatch: pytest.MonkeyPatch, dtype: type, share: float) -> None:
    monkeypatch.setattr(module, "_COLLECTED", 3)
    rng = np.random.default_rng(0)
    parts = [np.abs(rng.standard_normal(500)).astype(dtype) for _ in range(3)] + [np.zeros(200, dtype), np.ones(300, dtype)]

    def each() -> Iterator[Array]:
        return iter(parts)

    everything = np.sort(np.concatenate(parts))
    rank = int(share * len(everything))
    assert threshold(each, share) == (everything[rank] if rank < len(everything) else math.inf)


OPTIONS = {
    "sparsity is 1.1; it is the share of the weights to zero, 0 <= sparsity <= 1": {"sparsity": 1.1},
    "sparsity is nan; it is the share of the weights to zero, 0 <= sparsity <= 1": {"sparsity": math.nan},
    "bernoulli is -0.1; it is a probability, 0 <= bernoulli <= 1": {"bernoulli": -0.1},
    "granularity is 'row'; choose element or kernel or filter": {"granularity": "row"},
    "scope is 'uniform'; choose global or layer": {"scope": "uniform"},
    "normalise is 'max'; choose none or mean": {"normalise": "max"},
    "pattern is '2-4'; give two numbers N:M, as in 2:4": {"pattern": "2-4"},
    "pattern is '4:4', but N of M elements stay, 0 < N < M, as in 2:4": {"pattern": "4:4"},
    "pattern 2:4 is about elements; it can't be had by kernel": {"pattern": "2:4", "granularity": "kernel"},
}


@pytest.mark.parametrize("text", OPTIONS)
def test_options(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Choice(**OPTIONS[text])
    assert str(caught.value) == text
