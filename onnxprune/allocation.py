"""Allocation: how many channels each group loses, and which."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxprune.channels import ChannelGroup, Coupling
from onnxprune.errors import OptionError, UsageError
from onnxprune.files import one_line
from onnxprune.labels import BoolArray, IntArray

Scores = npt.NDArray[np.float64]
Table = Mapping[str, float] | str | Path | None
"""Numbers by pattern (see :func:`~onnxprune.channels.chosen`), or a JSON file of them."""


def read_table(source: Table, option: str) -> dict[str, float]:
    """Numbers by pattern.

    Raises:
        UsageError: the file can't be read, or holds something else; ``option`` is what it was given for.
    """
    if source is None or isinstance(source, Mapping):
        return dict(source or {})
    try:
        found = json.loads(Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{option} {str(source)!r} can't be read as JSON: {one_line(error)}") from error
    if not isinstance(found, dict) or any(isinstance(v, bool) or not isinstance(v, int | float) for v in found.values()):
        raise UsageError(f'{option} {str(source)!r} must be JSON of numbers by pattern, {{"layer1.*": 0.3, ...}}')
    return found


AUTO = "auto"
"""For ``round_to``: measure where a model really gets faster."""

FINEST = 4
"""Widths that are no multiples of this are slow in onnxruntime, or not possible at all."""


@dataclass(frozen=True, eq=False)
class Rungs:
    """The widths that are worth having, group by group: those at which a network really gets faster.

    ``owner``: for each label component the number of its group. ``widths``: of each group, ascending, the last is all of it.
    ``finest``: whether no finer ones will be tried.
    """

    owner: IntArray
    widths: tuple[IntArray, ...]
    finest: bool = False

    def up(self, group: ChannelGroup, needed: int) -> int:
        """The narrowest such width that is enough, or all that the group still has."""
        own = self.widths[self.owner[group.roots[0]]]
        return min(group.size, int(own[min(np.searchsorted(own, needed), len(own) - 1)]))

    @property
    def coarser(self) -> Rungs:
        """Every other width, the widest among them."""
        return replace(self, widths=tuple(own[::-1][::2][::-1] for own in self.widths))

    def finer(self, step: int) -> Rungs:
        """These and all multiples of a step."""
        widths = tuple(np.union1d(own, np.arange(step, own[-1], step)) for own in self.widths)
        return replace(self, widths=widths, finest=step == FINEST)

    def only(self, groups: Collection[int]) -> Rungs:
        """The same where all but some groups stay as they are."""
        return replace(self, widths=tuple(own if n in groups else own[-1:] for n, own in enumerate(self.widths)))


def allocate(
    coupling: Coupling,
    scores: Sequence[Scores],
    *,
    ratio: float,
    scope: str = "uniform",
    min_channels: int = 1,
    round_to: int | str = 1,
) -> BoolArray:
    """Decide which channels leave: the lowest scores.

    Args:
        scores: float64 ``(channels,)`` for each group, larger = keep.
        ratio, scope, min_channels, round_to: as in :func:`counts`.

    Returns:
        bool, one entry per label component: whether it leaves.

    Raises:
        OptionError: an option outside its range.
    """
    limits = Limits(ratio, scope, min_channels, round_to)
    removed = np.zeros(len(coupling.components.root), np.bool_)
    sizes = [g.size for g in coupling.groups]
    for group, values, count in zip(coupling.groups, scores, counts(coupling.groups, sizes, scores, limits), strict=True):
        removed[group.roots[lowest(values, count)]] = True
    return removed


def lowest(scores: Scores, count: int) -> npt.NDArray[np.int64]:
    """The channels with the lowest scores, lowest first."""
    return np.argsort(scores, kind="stable")[:count].astype(np.int64)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much leaves.

    ``ratio``: fraction of channels to remove, in [0, 1). ``scope``: ``"uniform"`` removes ``floor(n ratio + 1e-9)`` of every
    group's ``n`` channels; ``"global"`` ranks all channels together; to make layers comparable, a group's scores are divided
    by their mean first. ``min_channels``: what every group keeps at least. ``round_to``: axes keep a multiple of this many
    indices, rounded up; or ``"auto"``: as many channels as ``rungs`` has next. ``"tod"``: each group loses as many as the level
    ``tod`` allows (:func:`tolerated`), whatever the ratio.
    ``ratios``: for some groups a ratio of their own, by pattern as in :func:`~onnxprune.channels.chosen`; in steps they are
    reached along with ``ratio``.

    Raises:
        OptionError: an option outside its range.
    """

    ratio: float = 0.5
    scope: str = "uniform"
    min_channels: int = 1
    round_to: int | str = 1
    ratios: Mapping[str, float] = field(default_factory=dict)
    tod: float = 0.05
    rungs: Rungs | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise OptionError(f"ratio is {self.ratio}; it is the fraction of channels to remove, 0 <= ratio < 1")
        if self.scope not in ("uniform", "global", "tod"):
            raise OptionError(f"scope is {self.scope!r}; choose uniform, global or tod")
        if not 0 <= self.tod <= 1:
            raise OptionError(f"tod is {self.tod}; it is a share of the channels that leave, 0 <= tod <= 1")
        for pattern, ratio in self.ratios.items():
            if not 0 <= ratio < 1:
                raise OptionError(
                    f"ratio of {pattern!r} is {ratio}; it is the fraction of its channels to remove, 0 <= ratio < 1"
                )
        if self.ratios and self.scope != "uniform":
            raise OptionError(f"ratios say how much each group loses, and so does scope {self.scope!r}; give one of them")
        if self.min_channels < 1:
            raise OptionError(f"min-channels is {self.min_channels}; every layer keeps at least 1 channel")
        if self.round_to != AUTO and (isinstance(self.round_to, str) or self.round_to < 1):
            raise OptionError(
                f"round-to is {self.round_to}; kept channels are rounded up to a multiple of it, at least 1, or with {AUTO} to "
                "where the model really gets faster"
            )

    def keeps(self, group: ChannelGroup, needed: int) -> int:
        """How many channels a group keeps if so many are needed: no fewer than the least, rounded up."""
        if self.rungs is not None:
            return self.rungs.up(group, max(needed, self.min_channels))
        step = 1 if isinstance(self.round_to, str) else _step(group, self.round_to)
        return min(group.size, -(-min(group.size, max(needed, self.min_channels)) // step) * step)


def counts(
    groups: Sequence[ChannelGroup],
    sizes: Sequence[int],
    scores: Sequence[Scores],
    limits: Limits,
    own: Sequence[float | None] = (),
    protection: Sequence[Scores] = (),
) -> list[int]:
    """How many more channels each group loses.

    Args:
        groups: as they are now.
        sizes: how many channels they had when the share was taken, those that have left already included.
        scores: of the channels that are there; looked at where they decide how many leave.
        own: each group's own ratio, where it has one.
        protection: the scores by which channels are protected; looked at for ``"tod"``.
    """
    if limits.scope == "tod":
        pairs = zip(groups, scores, protection, strict=True)
        wanted = [group.size - tolerated(low, high, limits.tod) for group, low, high in pairs]
    elif limits.scope == "uniform":
        shares = [limits.ratio if share is None else share for share in own or [None] * len(sizes)]
        wanted = [size - int(np.floor(size * share + 1e-9)) for size, share in zip(sizes, shares, strict=True)]
    else:
        left = sum(g.size for g in groups)
        lost = int(np.floor(sum(sizes) * limits.ratio + 1e-9)) - (sum(sizes) - left)
        gone = _ranked_together(groups, scores, max(0, lost), limits.min_channels)
        wanted = [group.size - n for group, n in zip(groups, gone, strict=True)]
    return [max(0, group.size - limits.keeps(group, n)) for group, n in zip(groups, wanted, strict=True)]


def difference(removal: Scores, protection: Scores) -> Scores:
    """FAIR-Pruner's Tolerance of Difference: how far two rankings contradict each other, float64 (channels,).

    ``ToD(m) = |R(m) & P(m)| / m`` for m = 1, 2, ... channels, where R(m) are the m that the one ranking removes first and P(m)
    the m that the other would remove last. Since ``|R(m) & P(m)| >= 2m - n``, ToD(m) <= t means ``m <= n / (2 - t)``.
    """
    size = len(removal)
    first, last = np.empty(size, np.int64), np.empty(size, np.int64)
    first[np.argsort(removal, kind="stable")] = np.arange(size)
    last[np.argsort(protection, kind="stable")] = np.arange(size)[::-1]
    common = np.cumsum(np.bincount(np.maximum(first, last), minlength=size))
    return np.asarray(common / np.arange(1, size + 1), np.float64)


def tolerated(removal: Scores, protection: Scores, level: float) -> int:
    """The largest number of channels, at most 99 of 100, whose ToD is no more than a level; 0 where there is none."""
    allowed = np.flatnonzero(difference(removal, protection)[: int(0.99 * len(removal))] <= level)
    return int(allowed[-1]) + 1 if allowed.size else 0


def comparable(scores: Scores) -> Scores:
    """A group's scores, lowest first, in units of their mean, so that they can be put beside those of others."""
    mean = float(np.mean(scores)) if scores.size else 0.0
    return np.sort(scores / mean if mean > 0 else np.zeros_like(scores))


def _ranked_together(groups: Sequence[ChannelGroup], scores: Sequence[Scores], lost: int, min_channels: int) -> list[int]:
    """How many channels each group loses when all are ranked together, the last ``min_channels`` of each aside."""
    ranked: list[Scores] = []
    for values in scores:
        scaled = comparable(values)
        ranked.append(scaled[: max(0, len(scaled) - min_channels)])
    owner = np.repeat(np.arange(len(groups)), [len(r) for r in ranked])
    order = np.argsort(np.concatenate(ranked), kind="stable") if ranked else np.zeros(0, np.int64)
    return [int(n) for n in np.bincount(owner[order[:lost]], minlength=len(groups))]


def _step(group: ChannelGroup, round_to: int) -> int:
    """Channels per step so that the positions kept on the group's producer axis are a multiple of ``round_to``."""
    member = next((m for m in group.members if m.producer), group.members[0])
    width = max(1, len(member.positions) // group.size)
    return round_to // gcd(round_to, width)
