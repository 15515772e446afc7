"""Latency of models side by side in onnxruntime."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnxprune.lazy import AnyModel
from onnxprune.runtime import Session, clock
from onnxprune.weights import Array


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds per run: the median, and the quartiles as its spread."""

    median: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """As JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.median:.3f} ms ({self.low:.3f} to {self.high:.3f})"


def interleaved(
    models: tuple[AnyModel, AnyModel], feeds: Mapping[str, Array], *, runs: int = 50, seconds: float = 10.0, threads: int = 1
) -> tuple[Latency, Latency]:
    """Time two models as :func:`in_turns`."""
    one, two = in_turns(models, feeds, runs=runs, seconds=seconds, threads=threads)
    return one, two


def in_turns(
    models: Sequence[AnyModel], feeds: Mapping[str, Array], *, runs: int = 50, seconds: float = 10.0, threads: int = 1
) -> list[Latency]:
    """Time models with the same input, in turns, so that noise of the machine meets all alike.

    Args:
        runs: of each model at most; ``seconds`` of measuring at most (but five runs at least).
    """
    sessions = [Session(m, threads=threads, optimise=True) for m in models]
    for session in sessions:
        session.run(feeds)
        session.run(feeds)
    times: list[list[float]] = [[] for _ in sessions]
    end = time.perf_counter() + seconds
    for turn in range(runs):
        for place, session in enumerate(sessions):
            start = time.perf_counter()
            session.run(feeds)
            times[place].append(1e3 * (time.perf_counter() - start))
        if turn >= 4 and time.perf_counter() > end:
            break
    return [Latency(float(np.median(t)), *(float(q) for q in np.quantile(t, [0.25, 0.75]))) for t in times]


@dataclass(frozen=True, slots=True)
class Race:
    """How much longer one model runs than another.

    Attributes:
        seconds: the one's latency, the lower quartile.
        ratio: of the lower quartiles of both latencies.
        low, high: its confidence interval, 95 %, by bootstrap.
        turns: how often each was timed.
    """

    seconds: float
    ratio: float
    low: float
    high: float
    turns: int

    @property
    def slower(self) -> bool:
        """Whether the one model is slower, as far as noise lets tell."""
        return self.low > 1 or self.ratio > 1 + _ALIKE

    def to_dict(self) -> dict[str, float]:
        """As JSON data."""
        return asdict(self)


_ALIKE = 0.02
"""Models whose latencies differ by less are equally fast, if it can't be told with confidence which one is faster."""

_RESAMPLED = 300
"""Resamples for a confidence interval."""

_LEAST = 1e-3
"""Seconds that are measured at a time, at least; quicker models run several times."""


def race(one: Session, other: Session, feeds: Mapping[str, Array], *, seconds: float = 5.0, precision: float = 0.01) -> Race:
    """How much longer the other model runs than the one, from runs in turns, until that is precise enough.

    What is compared are lower quartiles, since what else a machine does can only slow a run down.

    Args:
        seconds: of measuring at most; but ten turns at least.
        precision: half the width of the confidence interval that is enough, if it leaves no doubt which one is faster.
    """
    sessions = one, other
    for session in sessions:
        session.run(feeds)
    quick = min(_timed(session, feeds, 1) for session in sessions)
    count = max(1, math.ceil(_LEAST / max(quick, 1e-7)))
    turns: list[tuple[float, float]] = []
    rng, end, wanted = np.random.default_rng(0), time.perf_counter() + seconds, 10
    while True:
        while len(turns) < wanted and (len(turns) < 10 or time.perf_counter() < end):
            order = (0, 1) if len(turns) % 2 else (1, 0)
            times = {place: _timed(sessions[place], feeds, count) for place in order}
            turns.append((times[0], times[1]))
        found = np.array(turns)
        chosen = rng.integers(0, len(found), (_RESAMPLED, len(found)))
        first, second = np.quantile(found[chosen], 0.25, axis=1).T
        low, high = (float(q) for q in np.quantile(second / first, [0.025, 0.975]))
        clear = high < 1 + _ALIKE or low > 1
        if (clear and high - low < 2 * precision) or time.perf_counter() > end:
            here, there = (float(q) for q in np.quantile(found, 0.25, axis=0))
            return Race(here, there / here, low, high, len(found))
        wanted += wanted // 2


def _timed(session: Session, feeds: Mapping[str, Array], count: int) -> float:
    """Seconds of a run."""
    start = clock()
    for _ in range(count):
        session.run(feeds)
    return (clock() - start) / count


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a cut model is, beside the original: one thread, one sample, runs interleaved.

    Attributes:
        plain: of the models as they are. integer: of both in 8-bit integers, where they can be.
        given_up: how the cut was made smaller because the one that was chosen first is slower; empty if it was not.
    """

    plain: Race
    integer: Race | None = None
    given_up: str = ""

    @property
    def slower(self) -> bool:
        """Whether the cut model is, one way or the other."""
        return self.plain.slower or (self.integer is not None and self.integer.slower)

    def to_dict(self) -> dict[str, Any]:
        """As in the report."""
        before = 1e3 * self.plain.seconds
        found = {"original_ms": round(before, 6), "pruned_ms": round(before * self.plain.ratio, 6)}
        races = {"float": self.plain.to_dict(), "int8": None if self.integer is None else self.integer.to_dict()}
        return {**found, **races, "given_up": self.given_up}

    def __str__(self) -> str:
        before = 1e3 * self.plain.seconds
        text = f"latency: {before:.4g} ms before, {before * self.plain.ratio:.4g} ms after, one thread: "
        text += _times(self.plain)
        text += "" if self.integer is None else f"; in 8-bit integers both: {_times(self.integer)}"
        return f"{text}\n  the first cut made the model slower: {self.given_up}" if self.given_up else text


def _times(found: Race) -> str:
    change = f"{1 / found.ratio:.2f} times as fast" if found.ratio < 1 else f"{found.ratio:.3f} times as long"
    return f"{change} ({1 / found.high:.2f} to {1 / found.low:.2f})" if found.ratio < 1 else change
