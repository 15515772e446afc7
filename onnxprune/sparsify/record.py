"""What sparsifying a model zeroed, saved and cost: its numbers, its JSON form and its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from onnxprune.evaluate import Latency
from onnxprune.files import JsonFile
from onnxprune.report import changes, columns, megabytes, shorten

SCHEMA = "onnxprune.sparsification/1"
ROWS = 24
"""Tensors printed in full; the JSON has all of them."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A tensor of filters: the ``node`` that multiplies with it, its ``shape``, and how many ``zeros`` it had and has."""

    tensor: str
    node: str
    shape: tuple[int, ...]
    weights: int
    zeros: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Left:
    """Tensors that were left alone for the same reason."""

    reason: str
    tensors: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class Sparsification(JsonFile):
    """What sparsifying a model saved and cost; pairs are before and after.

    Attributes:
        options: what was asked for.
        parameters: stored numbers; all of them are still there.
        nonzeros: how many of them are not zero.
        layers: the tensors that were looked at, and ``left`` those that were not.
        bytes: of the model's files, the sidecar aside.
        gzip: of the same compressed, None for a model over 0.5 GB.
        latencies: in onnxruntime on this machine, one thread, runs interleaved.
        metrics: with data ``accuracy`` and ``loss`` (pairs), ``agreement``, ``relative_error``.
        warnings: what the user should know, a line each.
        elapsed: seconds by stage.
    """

    options: Mapping[str, Any]
    parameters: int
    nonzeros: tuple[int, int]
    layers: tuple[Layer, ...]
    left: tuple[Left, ...]
    bytes: tuple[int, int]
    gzip: tuple[int, int] | None
    latencies: tuple[Latency, Latency]
    metrics: Mapping[str, Any]
    warnings: tuple[str, ...]
    elapsed: Mapping[str, float]

    @property
    def weights(self) -> int:
        """Elements of the tensors that were looked at."""
        return sum(layer.weights for layer in self.layers)

    @property
    def sparsity(self) -> tuple[float, float]:
        """Share of these that is zero."""
        before, after = (sum(layer.zeros[k] for layer in self.layers) for k in range(2))
        return before / max(1, self.weights), after / max(1, self.weights)

    @property
    def latency_ratio(self) -> float:
        """The sparse model's median latency over the original's."""
        return self.latencies[1].median / self.latencies[0].median

    def to_dict(self) -> dict[str, Any]:
        """As JSON data (schema ``onnxprune.sparsification/1``)."""
        speeds = [latency.to_dict() for latency in self.latencies]
        return {
            "schema": SCHEMA,
            "options": dict(self.options),
            "parameters": self.parameters,
            "nonzeros": _pair(self.nonzeros),
            "weights": self.weights,
            "sparsity": _pair(self.sparsity),
            "bytes": _pair(self.bytes),
            "gzip": None if self.gzip is None else _pair(self.gzip),
            "latency_ms": {**_pair(speeds), "ratio": self.latency_ratio},
            "metrics": dict(self.metrics),
            "layers": [{**asdict(row), "shape": list(row.shape), "zeros": _pair(row.zeros)} for row in self.layers],
            "left": [{"reason": row.reason, "tensors": list(row.tensors), "parameters": row.parameters} for row in self.left],
            "warnings": list(self.warnings),
            "elapsed_s": dict(self.elapsed),
        }

    def __str__(self) -> str:
        parts = [self._costs(), self._layers(), self._left(), "\n".join(f"note: {line}" for line in self.warnings)]
        return "\n\n".join(part for part in parts if part)

    def _costs(self) -> str:
        (a, b), (s, t), (n, m) = self.bytes, self.latencies, self.nonzeros
        rows: list[tuple[str, ...]] = [
            ("", "original", "sparse", "ratio"),
            ("parameters", f"{self.parameters:,}", f"{self.parameters:,}", "1.000"),
            ("not zero", f"{n:,}", f"{m:,}", f"{m / max(n, 1):.3f}"),
            ("zeros among weights", *(f"{100 * share:.1f} %" for share in self.sparsity), ""),
            ("file", megabytes(a), megabytes(b), f"{b / a:.3f}"),
        ]
        if self.gzip is not None:
            rows.append(("file, gzip", *map(megabytes, self.gzip), f"{self.gzip[1] / self.gzip[0]:.3f}"))
        rows.append(("latency, median", f"{s.median:.3f} ms", f"{t.median:.3f} ms", f"{self.latency_ratio:.3f}"))
        return columns([*rows, *changes(self.metrics)], right=(1, 2, 3))

    def _layers(self) -> str:
        if not self.layers:
            return "nothing to sparsify: no stored tensor is multiplied with activations and summed over"
        rows: list[tuple[str, ...]] = [("weights of", "shape", "elements", "zero before", "after")]
        for row in self.layers[:ROWS]:
            shares = (f"{100 * zeros / max(1, row.weights):.1f} %" for zeros in row.zeros)
            rows.append((shorten(row.node, 48), "x".join(map(str, row.shape)), f"{row.weights:,}", *shares))
        more = [f"  ... and {len(self.layers) - ROWS} more"] if len(self.layers) > ROWS else []
        return "\n".join([columns(rows, right=(2, 3, 4)), *more])

    def _left(self) -> str:
        if not self.left:
            return ""
        rows = [("left alone", "parameters", "because")]
        rows += [(f"{len(row.tensors)} tensors", f"{row.parameters:,}", row.reason) for row in self.left]
        return columns(rows, right=(1,))


def _pair(values: Any) -> dict[str, Any]:
    before, after = values
    return {"before": before, "after": after}
