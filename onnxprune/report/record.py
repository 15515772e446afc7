"""The report of a run: its numbers, its JSON form and its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.channels import ChannelGroup, Frozen
from onnxprune.cost import Cost
from onnxprune.evaluate import Speed, Verification
from onnxprune.files import JsonFile
from onnxprune.lossless import KINDS, FreeRow
from onnxprune.report.tape import Step, Tape
from onnxprune.report.text import columns, megabytes, shorten
from onnxprune.target import Met

SCHEMA = "onnxprune.report/1"
ROWS = 24
"""Groups printed in full; the JSON has all of them."""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One channel group, how many of its channels stay, and how many of the others gave their work to these."""

    group: ChannelGroup
    kept: int
    merged: int = 0

    @property
    def exact(self) -> bool:
        """Whether the cut equals masking, so that nothing else has changed."""
        return self.group.exact and not self.merged


@dataclass(frozen=True)
class Report(JsonFile):
    """Everything that a run found out. ``str()`` is a readable table, :meth:`to_dict` the contract's JSON."""

    before: Cost
    after: Cost
    groups: tuple[GroupRow, ...]
    frozen: tuple[Frozen, ...]
    verification: Verification | None
    elapsed: Mapping[str, float]
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"before": {}, "after": {}})
    free: tuple[FreeRow, ...] | None = None
    steps: tuple[Step, ...] = ()
    stopped: str = ""
    zeroed: bool = False
    notes: tuple[str, ...] = ()
    target: Met | None = None
    speed: Speed | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON data (schema ``onnxprune.report/1``)."""
        return {
            "schema": SCHEMA,
            "model": {"before": self.before.to_dict(), "after": self.after.to_dict()},
            "groups": [_group(row) for row in self.groups],
            **({} if self.free is None else {"free": [row.to_dict() for row in self.free]}),
            "frozen": [
                {
                    "tensor": f.tensor,
                    "axis": f.axis,
                    "channels": f.channels,
                    "parameters": f.parameters,
                    "reason": f.reason,
                    "node": f.node,
                }
                for f in self.frozen
            ],
            "verification": None if self.verification is None else self.verification.to_dict(),
            "metrics": {side: dict(values) for side, values in self.metrics.items()},
            "steps": [step.to_dict() for step in self.steps],
            **({} if self.target is None else {"target": self.target.to_dict()}),
            **({} if self.speed is None else {"speed": self.speed.to_dict()}),
            **({"stopped": self.stopped} if self.stopped else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"zeroed": True} if self.zeroed else {}),
            "elapsed_s": {name: round(value, 6) for name, value in self.elapsed.items()},
        }

    @property
    def proof(self) -> str:
        """What the oracle found, in one line; empty where it did not run."""
        v = self.verification
        if v is None:
            return ""
        mixed = sum(row.kept < row.group.size and not row.group.exact for row in self.groups)
        note = (
            f"; groups marked as mixing ({mixed}) were left out of that: their cut changes the remaining values" if mixed else ""
        )
        merged = sum(row.merged for row in self.groups)
        if merged:
            note += f"; this holds for the cut alone and again once {merged} channels have given their weights to others"
        if not v.inputs:
            return f"not verified{note}" if mixed else "nothing was cut: the model is written unchanged"
        if self.zeroed:
            lost = sum(row.group.size - row.kept for row in self.groups)
            note = f"; what is written is the masked original: {lost} channels are zero, and no tensor is smaller{note}"
        says = "equals" if v.passed else "DIFFERS FROM"
        return (
            f"verified: the pruned model {says} {self._reference} (largest relative difference {v.max_rel_error:.1e} "
            f"over {v.inputs} random inputs){note}"
        )

    @property
    def guarantee(self) -> str:
        """What the agreement with the original says of an accuracy that nobody has measured; empty where it was, or neither."""
        alike = self.metrics["after"].get("agreement")
        if alike is None or self.metrics["after"].get("accuracy") is not None:
            return ""
        return f"accuracy lost is at most 1 - agreement on the same inputs: {max(0.0, 1 - alike):.4f}, whatever their labels are"

    @property
    def _reference(self) -> str:
        """What the pruned model was compared with."""
        lost = sum(row.group.size - row.kept for row in self.groups)
        free = sum(sum(row.counts) for row in self.free or ())
        if not free:
            return "the masked original"
        return "the original" if free == lost else "the masked original, and without what was free alone the original"

    def __str__(self) -> str:
        parts = [self._costs(), self._groups(), self._free(), self._frozen()]
        if len(self.steps) > 1:
            parts.append(str(Tape({}, self.steps)))
        parts += ["" if said is None else str(said) for said in (self.target, self.speed)]
        parts += [self.guarantee]
        parts += [self.stopped, *(f"note: {note}" for note in self.notes), self.proof]
        if self.elapsed:
            parts.append("seconds: " + ", ".join(f"{name} {value:.2f}" for name, value in self.elapsed.items()))
        return "\n\n".join(p for p in parts if p)

    def _costs(self) -> str:
        b, a = self.before, self.after
        rows = [
            ("", "before", "after", "left"),
            ("parameters", f"{b.parameters:,}", f"{a.parameters:,}", _share(a.parameters, b.parameters)),
            ("MACs", f"{b.macs:,}", f"{a.macs:,}", _share(a.macs, b.macs)),
            ("size", megabytes(b.bytes), megabytes(a.bytes), _share(a.bytes, b.bytes)),
        ]
        for name in self.metrics["before"]:
            old, new = self.metrics["before"][name], self.metrics["after"].get(name)
            rows.append((name, _number(old), _number(new), ""))
        rows += [(name, "", _number(v), "") for name, v in self.metrics["after"].items() if name not in self.metrics["before"]]
        return columns(rows, right=(1, 2, 3))

    def _groups(self) -> str:
        if not self.groups:
            return "no channels can be cut"
        rows = [("group", "channels", "kept", "parameters", "weight axes")]
        for row in self.groups[:ROWS]:
            g = row.group
            name = shorten(g.name, 48) + ("" if g.exact else " (mixing)") + (" (merged)" if row.merged else "")
            rows.append((name, str(g.size), str(row.kept), f"{g.parameters:,}", str(len(g.members))))
        more = [f"  ... and {len(self.groups) - ROWS} more groups"] if len(self.groups) > ROWS else []
        return "\n".join([columns(rows, right=(1, 2, 3, 4)), *more])

    def _free(self) -> str:
        if self.free is None:
            return ""
        if not self.free:
            return "nothing is free: every channel that can be cut changes the outputs"
        rows: list[tuple[str, ...]] = [("free", *KINDS)]
        rows += [(shorten(row.group, 48), *(str(n) if n else "" for n in row.counts)) for row in self.free[:ROWS]]
        if len(self.free) > 1:
            totals = np.sum([row.counts for row in self.free], axis=0)
            rows.append(("all", *map(str, totals.tolist())))
        return columns(rows, right=(1, 2, 3, 4))

    def _frozen(self) -> str:
        if not self.frozen:
            return ""
        by_cause: dict[tuple[str, str], list[int]] = {}
        for f in self.frozen:
            by_cause.setdefault((f.node, f.reason), []).append(f.parameters)
        causes = sorted(by_cause.items(), key=lambda item: -sum(item[1]))
        rows = [("frozen by", "parameters", "share", "because")]
        for (node, reason), held in causes[:ROWS]:
            share = _share(sum(held), self.before.parameters)
            rows.append((shorten(node or "-", 40), f"{sum(held):,}", share, reason))
        more = [f"  ... and {len(causes) - ROWS} more causes"] if len(causes) > ROWS else []
        return "\n".join([columns(rows, right=(1, 2)), *more])


def _group(row: GroupRow) -> dict[str, Any]:
    g = row.group
    return {
        "name": g.name,
        "channels": g.size,
        "kept": row.kept,
        "parameters": g.parameters,
        "exact": row.exact,
        "sites": [{"tensor": s.tensor, "axis": s.axis} for s in g.sites],
    }


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)
