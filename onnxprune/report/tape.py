"""The tape of progressive pruning: one step after the other, what was cut and what it cost, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from onnxprune.errors import TapeError
from onnxprune.files import one_line, write, write_json
from onnxprune.report.text import columns, megabytes

SCHEMA = "onnxprune.tape/1"


@dataclass(frozen=True, slots=True)
class Step:
    """The model after one step of progressive pruning; number 0 is the original.

    Attributes:
        number: 0, 1, 2, ...
        share: fraction of the channels that was to be removed up to here, 0 <= share < 1.
        channels: how many are left, in all groups together.
        parameters: stored numbers that are left.
        macs: multiply-accumulates of one sample.
        bytes: size of the model.
        moves: channels that this step removed, by the group's name.
        accuracy: share of the samples that are classified right.
        loss: mean cross-entropy, in nats.
        agreement: share of the samples that are classified as by the original.
        robust_accuracy: share of the samples that are classified right under attack, by epsilon (as text).
        seconds: how long the step took.

    What was not measured is None, or not in the mapping. Source: PAODING's "tape of moves", one file for each run.
    """

    number: int
    share: float
    channels: int
    parameters: int
    macs: int
    bytes: int
    moves: Mapping[str, int] = field(default_factory=dict)
    accuracy: float | None = None
    loss: float | None = None
    agreement: float | None = None
    robust_accuracy: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Step:
        """The step that :meth:`to_dict` gave.

        Raises:
            TapeError: a field is missing, unknown or of another type.
        """
        if not isinstance(data, Mapping):
            raise TapeError(f"a step is {_shown(data)}, not a set of named values")
        for name in (*_KINDS, *data):
            if name not in data or name not in _KINDS:
                raise TapeError(f"a step has {'an unknown field' if name in data else 'no'} {name!r}")
        for name, (fits, meant) in _KINDS.items():
            if not fits(data[name]):
                raise TapeError(f"a step's {name!r} is {_shown(data[name])}; it must be {meant}")
        return cls(**data)


@dataclass(frozen=True)
class Tape:
    """The steps of a run, the original first. ``run``: the settings that it has, as JSON data; only the same continue it."""

    run: Mapping[str, Any]
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        numbers = [step.number for step in self.steps]
        if numbers != list(range(len(numbers))):
            raise TapeError(f"the steps are numbered {_shown(numbers)}; they must be 0, 1, 2, ..., without a gap")

    def added(self, step: Step) -> Tape:
        """The tape with one more step.

        Raises:
            TapeError: its number is not the next one.
        """
        return Tape(self.run, (*self.steps, step))

    def check_run(self, run: Mapping[str, Any]) -> None:
        """Make sure that a run with these settings may continue the tape.

        Raises:
            TapeError: a setting differs; the first one is named.
        """
        old, new = _plain(self.run), _plain(run)
        for name in (*old, *(n for n in new if n not in old)):
            if name not in old or name not in new or old[name] != new[name]:
                one, two = (f"{name} {_shown(side[name])}" if name in side else f"no {name}" for side in (old, new))
                raise TapeError(
                    f"the tape is of a run with {one}, this run has {two}; give the same settings, or begin a new tape"
                )

    def to_dict(self) -> dict[str, Any]:
        """As JSON data (schema ``onnxprune.tape/1``)."""
        return {"schema": SCHEMA, "run": _plain(self.run), "steps": [step.to_dict() for step in self.steps]}

    def save_json(self, path: str | Path) -> None:
        """Write as JSON. An interrupted write leaves the tape that was there before.

        Raises:
            OutputError: the file can't be written.
        """
        write_json(self.to_dict(), path, "tape")

    def save_csv(self, path: str | Path) -> None:
        """Write one row for each step and one column for each number. An interrupted write leaves what was there before.

        Raises:
            OutputError: the file can't be written.
        """
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self._table())
        write(text.getvalue().encode(), path, "tape")

    @classmethod
    def load(cls, path: str | Path) -> Tape:
        """Read a tape from JSON.

        Raises:
            TapeError: the file can't be read, or is not a tape.
        """
        where = f"tape {str(path)!r}"
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise TapeError(f"{where} can't be read: {error.strerror}; check the path") from error
        except (ValueError, RecursionError) as error:
            raise TapeError(f"{where} is not JSON: {one_line(error)}; begin a new tape") from error
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            found = f"schema {_shown(data['schema'])}" if isinstance(data, Mapping) and "schema" in data else "no schema"
            raise TapeError(f"{where} has {found}, this version reads {SCHEMA!r}")
        if not isinstance(data.get("run"), Mapping) or not isinstance(data.get("steps"), list):
            raise TapeError(f"{where} lacks its 'run' or its 'steps'; begin a new tape")
        try:
            return cls(data["run"], tuple(map(Step.from_dict, data["steps"])))
        except TapeError as error:
            raise TapeError(f"{where}: {error}; begin a new tape") from error

    def _table(self) -> list[list[Any]]:
        """The heading and one row for each step. What a step lacks is empty; a group without moves has zero."""
        return [[name for name, _ in self._columns()], *([cell(step) for _, cell in self._columns()] for step in self.steps)]

    def _columns(self) -> list[tuple[str, Callable[[Step], Any]]]:
        """The columns, each with its heading, so that these can't come in another order than the numbers below them."""
        plain = [(f.name, _attribute(f.name)) for f in fields(Step) if f.name not in ("moves", "robust_accuracy", "seconds")]
        robust = [(f"robust_accuracy@{e}", _item("robust_accuracy", e, None)) for e in epsilons(self.steps)]
        groups = dict.fromkeys(name for step in self.steps for name in step.moves)
        moves = [(f"moves: {name}", _item("moves", name, 0)) for name in groups]
        return [*plain, *robust, *moves, ("seconds", _attribute("seconds"))]

    def __str__(self) -> str:
        first = self.steps[0] if self.steps else None
        measured = [
            (name, cell)
            for name, cell in self._columns()
            if name.startswith(("accuracy", "loss", "agreement", "robust")) and any(cell(s) is not None for s in self.steps)
        ]
        rows = [("step", "share", "channels", "parameters", "left", "MACs", "size", *(name for name, _ in measured))]
        for s in self.steps:
            left = f"{100 * s.parameters / first.parameters:.1f} %" if first and first.parameters else "-"
            numbers = ("" if cell(s) is None else f"{cell(s):.4f}" for _, cell in measured)
            size = (f"{s.channels:,}", f"{s.parameters:,}", left, f"{s.macs:,}", megabytes(s.bytes))
            rows.append((str(s.number), f"{100 * s.share:.1f} %", *size, *numbers))
        return columns(rows, right=range(len(rows[0])))


def epsilons(steps: Iterable[Step]) -> list[str]:
    """The epsilons at which any step's robustness was measured, the smallest first."""
    return sorted({e for step in steps for e in step.robust_accuracy}, key=float)


def _attribute(name: str) -> Callable[[Step], Any]:
    return lambda step: getattr(step, name)


def _item(name: str, key: str, default: Any) -> Callable[[Step], Any]:
    return lambda step: getattr(step, name).get(key, default)


def _plain(run: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are after being written and read: tuples are lists, keys are text."""
    return dict(json.loads(json.dumps(run)))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_epsilon(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


_COUNT = (_count, "a count")
_MEASURE = (lambda v: v is None or _number(v), "a number or null")
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "number": _COUNT,
    "share": (lambda v: _number(v) and 0 <= v < 1, "a fraction, 0 <= share < 1"),
    "channels": _COUNT,
    "parameters": _COUNT,
    "macs": _COUNT,
    "bytes": _COUNT,
    "moves": (lambda v: isinstance(v, Mapping) and all(map(_count, v.values())), "counts by group"),
    "accuracy": _MEASURE,
    "loss": _MEASURE,
    "agreement": _MEASURE,
    "robust_accuracy": (
        lambda v: isinstance(v, Mapping) and all(_is_epsilon(e) and _number(x) for e, x in v.items()),
        "numbers by epsilon",
    ),
    "seconds": (_number, "a number"),
}
"""What each field of a step may hold, and how to say that."""
