"""Target: how small a model is to become, or how good it is to remain."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxprune.cost import Cost
from onnxprune.errors import OptionError, UsageError
from onnxprune.footprint import KINDS as SIZES

QUALITIES = ("accuracy-drop", "agreement")
"""Targets that are measured on data: the share of samples that may be lost, or that have to keep their class."""

SPEED = "latency"
"""A target that is measured on this machine, or foreseen for another one by its profile."""

BUDGETS = (*SIZES, SPEED)
"""What there is to be less of, as :class:`~onnxprune.cost.Cost` names it."""

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_TIMES = {"": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True, slots=True)
class Target:
    """One budget for the whole model.

    Attributes:
        kind: ``"macs"``, ``"parameters"``, ``"bytes"`` or ``"latency"``: what is left of them at most; ``"accuracy-drop"``: the
            largest cut that loses at most this share of all samples; ``"agreement"``: the largest after which this share keeps
            its class.
        amount: a share of the original, 0 < share <= 1, or where ``absolute`` a number, of nanoseconds for latency.
        max_drop: for the first four: how much accuracy may be lost at most, as a share of all samples, or without labels
            how many samples may change their class.
        max_ratio: no group of channels loses a larger share of them, 0 <= max_ratio <= 1.
        best_effort: take the nearest model that there is where the target can't be met.

    Raises:
        UsageError: there is no such kind.
        OptionError: a number outside its range.
    """

    kind: str
    amount: float
    absolute: bool = False
    max_drop: float | None = None
    max_ratio: float = 0.9
    best_effort: bool = False

    def __post_init__(self) -> None:
        _check_kind(self.kind)
        if not 0 <= self.max_ratio <= 1:
            raise OptionError(f"max-ratio is {self.max_ratio}; it is the share that a group may lose, 0 <= max-ratio <= 1")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise OptionError(f"max-drop is {self.max_drop}; it is a share of the samples, 0 <= max-drop <= 1")
        if self.max_drop is not None and self.measured:
            raise UsageError(f"target {self.kind} is measured already; give --max-drop with {', '.join(BUDGETS)}")
        right = 0 <= self.amount <= 1 if self.measured else 0 < self.amount < float("inf")
        if not right or (not self.absolute and self.amount > 1):
            raise OptionError(f"target {self} makes no sense; {_meaning(self.kind)}")

    @classmethod
    def parse(cls, text: str, *, max_drop: float | None = None, max_ratio: float = 0.9, best_effort: bool = False) -> Target:
        """Read ``macs=0.5``, ``parameters=300k``, ``bytes=2MB``, ``latency=5ms``, ``accuracy-drop=0.01``, ``agreement=0.98``.

        Raises:
            UsageError: it is not of that form.
            OptionError: a number outside its range.
        """
        kind, _, value = text.partition("=")
        _check_kind(kind)
        found = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?) *([A-Za-z]*)", value.strip())
        units = {"bytes": _BYTES | {"": 1}, SPEED: _TIMES}.get(kind, _UNITS if kind in SIZES else {"": 1})
        if found is None or found[2] not in units:
            raise UsageError(f"target {text!r} lacks its amount; {_meaning(kind)}")
        amount = float(found[1]) * units[found[2]]
        absolute = bool(found[2]) or (kind in SIZES and amount > 1)
        return cls(kind, amount, absolute, max_drop, max_ratio, best_effort)

    @property
    def measured(self) -> bool:
        """Whether it is about what the model does on data."""
        return self.kind in QUALITIES

    @property
    def needs_data(self) -> bool:
        """Whether it can't be met without data."""
        return self.measured or self.max_drop is not None

    @property
    def size(self) -> str:
        """What the model gets less of: the kind, or for what is measured on data its work."""
        return "macs" if self.measured else self.kind

    def limit(self, whole: Cost) -> int:
        """The most that may be left of what the original has, in its units."""
        return int(self.amount) if self.absolute else int(self.amount * getattr(whole, self.kind))

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        amount = milliseconds(self.amount, "") if self.kind == SPEED and self.absolute else f"{self.amount:g}"
        return f"{self.kind}={amount}"


@dataclass(frozen=True, slots=True)
class Check:
    """One model that was measured on the way to a target.

    ``share``: what it keeps; ``lost``: how much accuracy it loses, or how many samples change their class, as a share of all.
    """

    share: float
    lost: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Met:
    """How a target was met.

    ``before``, ``after``: what the target is about, in its units, nanoseconds for latency. ``value``: of what was measured.
    ``foreseen``: what ``after`` was expected to be, where it was measured.
    """

    target: Target
    before: int
    after: int
    passed: bool
    value: float | None = None
    measure: str = ""
    checks: tuple[Check, ...] = field(default_factory=tuple)
    foreseen: int | None = None

    @property
    def share(self) -> float:
        """What is left."""
        return self.after / self.before if self.before else 1.0

    def to_dict(self) -> dict[str, Any]:
        """As in the report."""
        found = {"kind": self.target.kind, "amount": self.target.amount, "met": self.passed, "share": round(self.share, 6)}
        found |= {"before": self.before, "after": self.after, "unit": "ns" if self.target.size == SPEED else self.target.size}
        if self.foreseen is not None:
            found["foreseen"] = self.foreseen
        if self.value is not None:
            found |= {self.measure: self.value, "checks": [asdict(check) for check in self.checks]}
        return found

    def __str__(self) -> str:
        said = "met" if self.passed else "NOT met"
        text = f"target {self.target} {said}: {100 * self.share:.2f} % of the {NAMES[self.target.size]} are left "
        text += f"({amount_of(self.target.size, self.after)} of {amount_of(self.target.size, self.before)})"
        if self.foreseen is not None:
            text += f"; foreseen were {amount_of(self.target.size, self.foreseen)}"
        if self.value is None:
            return text
        lines = (f"{100 * c.share:.1f} % left: {c.lost:.4f}{'' if c.passed else ' (too much)'}" for c in self.checks)
        loss = "accuracy" if self.measure == "accuracy_drop" else "agreement"
        text += f", {self.measure.replace('_', ' ')} is {self.value:.4f}"
        return f"{text}\n  measured, {loss} lost: {'; '.join(lines)}" if self.checks else text


NAMES = {"macs": "MACs", "parameters": "parameters", "bytes": "bytes", SPEED: "latency"}


def amount_of(kind: str, amount: int) -> str:
    """An amount of what a model may have less of, in words."""
    return milliseconds(amount) if kind == SPEED else f"{amount:,}"


def milliseconds(nanoseconds: float, space: str = " ") -> str:
    """A time, with a unit in which it can be read."""
    unit, size = next(((u, s) for u, s in (("s", 1e9), ("ms", 1e6)) if nanoseconds >= s), ("us", 1e3))
    return f"{nanoseconds / size:.4g}{space}{unit}"


def _meaning(kind: str) -> str:
    """What the amount of such a target is."""
    if kind in QUALITIES:
        return "give a share of the samples, as in accuracy-drop=0.01 or agreement=0.98"
    if kind == SPEED:
        return "give what is to be left, a share as in latency=0.5 or a time as in latency=5ms (us, ms or s)"
    return "give what is to be left, a share as in macs=0.5 or a number as in parameters=300k or bytes=2MB"


def _check_kind(kind: str) -> None:
    if kind not in (*BUDGETS, *QUALITIES):
        raise UsageError(f"target {kind!r} does not exist; choose {', '.join((*BUDGETS, *QUALITIES))}, as in macs=0.5")
