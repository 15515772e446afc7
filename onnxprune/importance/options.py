"""Settings that criteria share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxprune.errors import OptionError

COMPATIBLE = "paoding-1.0"
PLACES = ("own", "after")


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of criteria; PAODING's names and defaults (Meng et al. 2023) where it has them.

    ``params``: weights of the size and of the evenness of an impact. ``recursive``: a unit that stands in for another may do
    so again, and may leave in a later step; otherwise each unit is used once, and at most half of them leave. ``pool``: how
    many times as many candidates are looked at as leave. ``interval``: of the model's inputs. ``compat``: ``"paoding-1.0"``
    chooses as that release does, for comparison. ``clusters``: how many clusters the k-means criteria part a group's filters
    into, by pattern as in :func:`~onnxprune.channels.chosen` (``"*"`` for all groups); where nothing is said, a fifth of them.
    ``samples``: how many of each class wasserstein compares. ``analysis``: where it looks at channels: ``"own"``, what their
    layers give out; ``"after"``, what reads them sees; or, for groups by pattern, one of these or the name of a tensor.

    Raises:
        OptionError: an option outside its range.
    """

    seed: int = 0
    params: tuple[float, float] = (0.75, 0.25)
    recursive: bool = True
    pool: float = 2.0
    interval: tuple[float, float] = (0.0, 1.0)
    compat: str = ""
    clusters: Mapping[str, float] = field(default_factory=dict)
    samples: int = 32
    analysis: str | Mapping[str, str] = "own"

    def __post_init__(self) -> None:
        low, high = self.interval
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise OptionError(f"input interval is {low:g} to {high:g}; give two numbers, the lower first")
        if min(self.params) < 0 or not 0 < sum(self.params) < math.inf:
            raise OptionError(f"params are {self.params}; give two weights that are not negative, and not both 0")
        if not self.pool >= 1:
            raise OptionError(f"pool is {self.pool}; it multiplies the number of units that leave, at least 1")
        for pattern, number in self.clusters.items():
            if number < 1 or number != int(number):
                raise OptionError(f"clusters of {pattern!r} are {number}; give a whole number, at least 1")
        if self.samples < 1:
            raise OptionError(f"samples is {self.samples}; it is the number of samples of each class, at least 1")
        if isinstance(self.analysis, str) and self.analysis not in PLACES:
            raise OptionError(f"analysis is {self.analysis!r}; choose {' or '.join(PLACES)}, or a tensor for each of some groups")
        if self.compat not in ("", COMPATIBLE):
            raise OptionError(f"compat is {self.compat!r}; choose {COMPATIBLE!r} or nothing")
