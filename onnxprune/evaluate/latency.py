"""Latency of models side by side in onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from onnxprune.lazy import AnyModel
from onnxprune.runtime import Session
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
