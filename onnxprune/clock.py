"""How long each stage takes, and telling the caller which one has begun."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str], None]
"""Called with a few words whenever a new stage begins."""


class Clock:
    """Adds up the seconds of each stage; ``elapsed`` has them by name."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.elapsed: dict[str, float] = {}
        self._progress = progress
        self._start = time.perf_counter()

    @property
    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._start

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure what is done within."""
        self.say(stage)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.elapsed[stage] = self.elapsed.get(stage, 0.0) + time.perf_counter() - start

    def say(self, text: str) -> None:
        """Tell the caller what goes on."""
        if self._progress is not None:
            self._progress(text)
