"""Families: several models of one network, from one analysis, with what they span of size, speed and accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.clock import Progress
from onnxprune.cost import Cost
from onnxprune.data import Data
from onnxprune.errors import OptionError, UsageError
from onnxprune.evaluate import Latency, in_turns
from onnxprune.files import JsonFile, Source
from onnxprune.graph import load
from onnxprune.importance import Criterion
from onnxprune.profile import DeviceProfile
from onnxprune.pruner import Pruner
from onnxprune.report import columns, draw_shares, megabytes
from onnxprune.result import Result
from onnxprune.runtime import random_feeds
from onnxprune.sampler import Sampler
from onnxprune.shapes import infer
from onnxprune.target import Target

SCHEMA = "onnxprune.family/1"
AMOUNTS = (0.9, 0.75, 0.5, 0.25)
"""Shares of the original that are left where nothing is said."""


@dataclass(frozen=True)
class Family(JsonFile):
    """``members``: by target, in the order that was asked for. ``latencies``: of the original and of each, one sample."""

    before: Cost
    members: Mapping[str, Result]
    latencies: tuple[Latency, ...]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The original (target ``""``) and all members: costs, latency in ms, and what was measured on the data."""
        reports = [result.report for result in self.members.values()]
        metrics = [reports[0].metrics["before"], *(report.metrics["after"] for report in reports)]
        costs = [self.before, *(report.after for report in reports)]
        return [
            {"target": name, **size.to_dict(), "latency_ms": latency.median}
            | {key: values[key] for key in ("accuracy", "agreement") if key in values}
            for name, size, latency, values in zip(["", *self.members], costs, self.latencies, metrics, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data (schema ``onnxprune.family/1``): the rows, and each member's report by target."""
        reports = {name: result.report.to_dict() for name, result in self.members.items()}
        return {"schema": SCHEMA, "rows": self.rows, "reports": reports}

    def draw(self, path: str | Path, *, title: str = "") -> None:
        """Draw accuracy, agreement, size and latency over the MACs that are left, all in percent.

        Raises:
            OptionError, OutputError: as in :func:`~onnxprune.report.check_picture`.
        """
        rows = sorted(self.rows, key=lambda row: -row["macs"])
        curves = {key: [row.get(key) for row in rows] for key in ("accuracy", "agreement") if any(key in row for row in rows)}
        for key in ("parameters", "bytes", "latency_ms"):
            curves[key.removesuffix("_ms")] = [row[key] / max(rows[0][key], 1e-12) for row in rows]
        shares = [row["macs"] / max(rows[0]["macs"], 1) for row in rows]
        draw_shares(shares, curves, path, title=title, what="MACs left")

    def __str__(self) -> str:
        first = self.rows[0]
        table: list[tuple[str, ...]] = [
            ("target", "MACs", "left", "parameters", "size", "latency", "of it", "accuracy", "agreement")
        ]
        for row in self.rows:
            table.append(
                (
                    row["target"] or "original",
                    f"{row['macs']:,}",
                    f"{100 * row['macs'] / max(first['macs'], 1):.1f} %",
                    f"{row['parameters']:,}",
                    megabytes(row["bytes"]),
                    f"{row['latency_ms']:.3f} ms",
                    f"{100 * row['latency_ms'] / max(first['latency_ms'], 1e-12):.0f} %",
                    *("" if row.get(key) is None else f"{row[key]:.4f}" for key in ("accuracy", "agreement")),
                )
            )
        return columns(table, right=range(1, 9))


def family(
    model: Source,
    target: str = "macs",
    amounts: Sequence[float | str] = AMOUNTS,
    *,
    criterion: str | Criterion = "auto",
    data: Data | None = None,
    samples: int = 32,
    max_drop: float | None = None,
    max_ratio: float = 0.9,
    best_effort: bool = False,
    min_channels: int = 1,
    round_to: int | str = 1,
    profile: DeviceProfile | str | Path | None = None,
    freeze: tuple[str, ...] = (),
    mixing: bool = False,
    free: bool = False,
    compensate: str = "auto",
    rotate: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Family:
    """Prune a model to several targets, and put what comes of it side by side. The model is analysed once.

    Args:
        model: path of an ONNX file, or a proto (which is not changed).
        target: what the amounts are of; see :class:`~onnxprune.target.Target`.
        amounts: one for each model, as after the equals sign of a target.
        data, samples, ..., progress: as in :func:`onnxprune.prune`.

    Raises:
        OnnxpruneError: as :func:`onnxprune.prune`, also where a single target can't be met.
    """
    names = [f"{target}={amount}" for amount in amounts]
    if not names or len(set(names)) < len(names):
        raise OptionError(f"the targets are {names}; give at least one amount, and each once")
    if "=" in target:
        raise UsageError(
            f"target {target!r} names an amount of its own; give the kind alone, as in macs, where there are several"
        )
    targets = [Target.parse(name, max_drop=max_drop, max_ratio=max_ratio, best_effort=best_effort) for name in names]
    sampler = Sampler(
        criterion,
        target=targets[0],
        min_channels=min_channels,
        round_to=round_to,
        profile=profile,
        compensate=compensate,
        rotate=rotate,
        samples=samples,
        seed=seed,
    )
    pruner = Pruner(model, sampler=sampler, seed=seed, freeze=freeze, mixing=mixing, free=free, progress=progress)
    results = pruner.prune_to(targets, data)
    graph = load(model)
    feeds = random_feeds(graph.inputs, infer(graph).inputs, np.random.default_rng(seed))
    if progress is not None:
        progress("time")
    latencies = in_turns([graph.assemble().ready(), *(result.pruned for result in results)], feeds)
    return Family(results[0].report.before, dict(zip(names, results, strict=True)), tuple(latencies))
