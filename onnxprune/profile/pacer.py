"""Pacer: sees to it that a cut makes a model faster: by widths that are worth having, and by measuring what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.allocation import FINEST, Rungs
from onnxprune.channels import Coupling
from onnxprune.errors import ModelError, TargetError
from onnxprune.evaluate import Race, Speed, race
from onnxprune.files import FILE_LIMIT
from onnxprune.graph import Graph
from onnxprune.labels import IntArray
from onnxprune.lazy import AnyModel, completed
from onnxprune.profile.bench import NUMBERS
from onnxprune.profile.device import DeviceProfile, Whole, machine
from onnxprune.profile.layers import layers
from onnxprune.profile.pace import Pace, worth
from onnxprune.quantize.integer import needs_reduced_range, to_integer
from onnxprune.runtime import Session, random_feeds
from onnxprune.shapes import infer
from onnxprune.standing import Standing

INTEGER_LIMIT = 500_000_000
"""Bytes of a model that is not quantised just to see how fast that would be."""


_FINER = "no model of the widths that are worth having comes near the target; multiples of {} were taken as well"

_STEPS = (16, 8, FINEST)

_ALL_SLOWER = (
    "the model that meets the target is slower than the original, and no other cut comes near it; nothing was written; "
    "ask for less, or give --round-to a number to have it nevertheless"
)


class Pacer:
    """Measures what it needs, once.

    Args:
        given: the profile of a device, or its path; without, this machine is measured.
        seed: for the inputs with which models are timed.

    Raises:
        ProfileError: the profile can't be read.
    """

    def __init__(self, given: DeviceProfile | str | Path | None = None, *, seed: int = 0) -> None:
        known = given if given is None or isinstance(given, DeviceProfile) else DeviceProfile.load(given)
        self._profile = DeviceProfile(machine()) if known is None else known
        self._seed = seed
        self._rungs: dict[tuple[str, ...], tuple[Coupling, Rungs]] = {}
        self._track: _Track | None = None
        self._lacking, self._alone, self._outcome, self._finer = "", "", "", ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of times that were foreseen, and of cuts that were not made."""
        foreseen = f"latencies are those of {self._profile.name}, and foreseen: no model was timed there"
        used = self._lacking or self._alone or self._rungs or self._track
        return tuple(
            filter(None, ("" if self.here or not used else foreseen, self._alone, self._lacking, self._finer, self._outcome))
        )

    @property
    def here(self) -> bool:
        """Whether this machine is what the model is for, so that models can be timed."""
        return self._profile.here

    def rungs(self, standing: Standing, numbers: tuple[str, ...] = NUMBERS) -> Rungs:
        """The widths that are worth having in numbers of some kinds, from a model of which nothing was chosen yet."""
        base, known = standing.base, self._rungs.get(numbers)
        if known is not None and known[0] is base:
            return known[1]
        self._look(base, numbers, grids=False)
        roots = [group.roots[~standing.gone[group.roots]] for group in base.groups]
        paces = [Pace(base, self._profile, standing.gone, roots, numbers=kind) for kind in numbers]
        owner = np.full(len(base.components.root), -1)
        for number, group in enumerate(base.groups):
            owner[group.roots] = number
        found = Rungs(owner, worth(paces, [len(r) for r in roots]))
        self._rungs[numbers] = base, found
        return found

    def pace(self, standing: Standing, orders: Sequence[IntArray], original: Graph, *, unit: int = 0) -> tuple[Pace, int]:
        """How long models run that are cut further; and the original, nanoseconds.

        Args:
            unit: the first in other units, in which the original has so many.
        """
        self._look(standing.coupling, NUMBERS[:1], grids=True)
        track = self._on(original)
        whole = track.whole if self.here else self._profile.models.get(original.sha256)
        self._alone = "" if whole else "the whole model is not in its profile; its latency is taken to be that of its layers"
        pace = Pace(standing.coupling, self._profile, standing.removed, orders, whole=whole, unit=unit)
        return pace, pace.total([0] * len(orders)) if whole is None else whole.nanoseconds

    def time(self, standing: Standing, original: Graph) -> Race:
        """How much longer a cut model runs than the original."""
        return self._on(original).race(standing.cut().ready())

    def fastest(self, original: Graph, rungs: Rungs, cut: Callable[[Rungs], Standing]) -> tuple[Standing, Speed | None]:
        """The cut that is not slower than the original, in float and in integers: the first of some, ever smaller, or none.

        Args:
            cut: how a model is cut to some widths.

        Raises:
            TargetError: a target is only met by slower models.
        """
        self._outcome = self._finer = ""
        found, speed = self._reached(original, rungs, cut)
        if speed is None or not speed.slower:
            return found, speed
        for said, tried in _smaller(rungs):
            try:
                found = cut(tried)
            except TargetError as error:
                raise TargetError(_ALL_SLOWER) from error
            speed = self._speed(original, found, said)
            if speed is None or not speed.slower:
                break
        if speed is None:
            self._outcome = "every cut that was tried makes the model slower, so none was made"
        return found, speed

    def _reached(self, original: Graph, rungs: Rungs, cut: Callable[[Rungs], Standing]) -> tuple[Standing, Speed | None]:
        """A cut to widths that are worth having; where none of these comes near a target, to others among them.

        Raises:
            TargetError: no cut meets it.
        """
        made: tuple[Standing, Speed | None] | None = None
        for step in (0, *_STEPS):
            try:
                found = cut(rungs.finer(step) if step else rungs)
            except TargetError:
                if step == FINEST and made is None:
                    raise
                continue
            self._finer = _FINER.format(step) if step else ""
            made = found, self._speed(original, found, "")
            if not step or made[1] is None or not made[1].slower:
                break
        assert made is not None, "the last one gives a model, or raises"
        return made

    def _speed(self, original: Graph, found: Standing, said: str) -> Speed | None:
        """How fast a cut model is, where it can be timed."""
        return self._on(original).speed(found.cut().ready(), said) if self.here and found.plan.cuts else None

    def _look(self, coupling: Coupling, numbers: tuple[str, ...], *, grids: bool) -> None:
        """Measure what the profile lacks; or say so, if it is of another machine."""
        wanted = layers(coupling.graph, coupling.shapes)
        if self.here:
            self._profile = self._profile.extended(wanted, numbers, grids=grids)
        lacking = ", ".join(map(str, self._profile.missing(wanted, numbers[0])))
        why = f"onnxruntime does not run {lacking} alone" if self.here else f"its profile lacks {lacking}"
        self._lacking = f"{why}, whose time was taken in proportion to the work" if lacking else ""

    def _on(self, original: Graph) -> _Track:
        if self._track is None or self._track.original is not original:
            self._track = _Track(original, self._seed)
        return self._track


@dataclass
class _Track:
    """The original, against which others are timed."""

    original: Graph
    seed: int
    _sessions: dict[str, Session | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.feeds = random_feeds(self.original.inputs, infer(self.original).inputs, rng)
        self._model = self.original.assemble().ready()

    @cached_property
    def whole(self) -> Whole:
        """How long the original takes."""
        return Whole.measured(self.original, self.feeds)

    def race(self, model: AnyModel) -> Race:
        """Against the original as it is."""
        return race(self._first("float"), Session(model, optimise=True), self.feeds, seconds=3)

    def speed(self, model: AnyModel, given_up: str) -> Speed:
        """Against the original as it is, and if that is no slower in integers."""
        first = self._first("float")
        plain = race(first, Session(model, optimise=True), self.feeds)
        integer = None
        if not plain.slower and (base := self._first("int8")) is not None and (other := self._quantised(model)) is not None:
            integer = race(base, other, self.feeds)
        return Speed(plain, integer, given_up)

    def _first(self, numbers: str) -> Any:
        if numbers not in self._sessions:
            plain = numbers == "float"
            self._sessions[numbers] = Session(self._model, optimise=True) if plain else self._quantised(self._model)
        return self._sessions[numbers]

    def _quantised(self, model: AnyModel) -> Session | None:
        """The model in integers; None where that can't be, or makes no difference."""
        try:
            proto = completed(model)
            if min(proto.ByteSize(), FILE_LIMIT) > INTEGER_LIMIT:
                return None
            made = to_integer(proto, [self.feeds], reduce_range=needs_reduced_range())
            return Session(made.model, optimise=True) if made.static + made.dynamic else None
        except ModelError:
            return None


def _smaller(rungs: Rungs) -> Iterator[tuple[str, Rungs]]:
    """Ever smaller cuts."""
    yield "fewer widths were chosen from, every other one", rungs.coarser
    widest = sorted(range(len(rungs.widths)), key=lambda n: -int(rungs.widths[n][-1]))
    yield "only the wider half of the groups was cut", rungs.coarser.only(widest[: (len(widest) + 1) // 2])
    yield "of what there was to choose, nothing was cut", rungs.only(())
