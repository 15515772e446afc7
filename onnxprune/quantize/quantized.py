"""Quantise a model, and measure what that saves and costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from onnxprune.data import Dataset, read
from onnxprune.errors import ModelError, OptionError
from onnxprune.evaluate import Latency, accuracy, agreement, interleaved, predict, relative_error
from onnxprune.files import FILE_LIMIT, JsonFile, Source, save
from onnxprune.graph import load
from onnxprune.lazy import LazyModel, completed
from onnxprune.quantize.half import LARGEST, candidates, to_half
from onnxprune.quantize.integer import needs_reduced_range, to_integer
from onnxprune.report import changes, columns, megabytes
from onnxprune.runtime import Feeds, Session, random_feeds, tapped
from onnxprune.shapes import infer
from onnxprune.structure import Port
from onnxprune.weights import Array

SCHEMA = "onnxprune.quantization/1"
MODES = ("fp16", "int8")
CALIBRATION = 512
"""Samples at most from which the ranges of activations are taken."""

TRIES = 4
"""Random inputs on which the models are compared where there are no data."""


@dataclass(frozen=True)
class Quantization(JsonFile):
    """What quantising a model saved and cost.

    Attributes:
        mode: ``"fp16"`` or ``"int8"``.
        bytes: of the original and of the quantised model.
        latencies: of both in onnxruntime on this machine, one thread, runs interleaved.
        metrics: ``relative_error`` of the outputs (root mean squares); with data also ``agreement`` of classifiers (share of
            the samples), and with labels ``accuracy`` before and after.
        nodes: how many compute in fewer bits.
        warnings: what the user should know, a line each.
    """

    mode: str
    bytes: tuple[int, int]
    latencies: tuple[Latency, Latency]
    metrics: Mapping[str, Any]
    nodes: int
    warnings: tuple[str, ...]

    @property
    def latency_ratio(self) -> float:
        """The quantised model's median latency over the original's."""
        return self.latencies[1].median / self.latencies[0].median

    def to_dict(self) -> dict[str, Any]:
        """As JSON data (schema ``onnxprune.quantization/1``)."""
        speeds = [latency.to_dict() for latency in self.latencies]
        return {
            "schema": SCHEMA,
            "mode": self.mode,
            "bytes": {"before": self.bytes[0], "after": self.bytes[1]},
            "latency_ms": {"before": speeds[0], "after": speeds[1], "ratio": self.latency_ratio},
            "metrics": dict(self.metrics),
            "nodes": self.nodes,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        (a, b), (s, t) = self.bytes, self.latencies
        rows = [
            ("", "original", self.mode, "ratio"),
            ("size", megabytes(a), megabytes(b), f"{b / a:.3f}"),
            ("latency, median", f"{s.median:.3f} ms", f"{t.median:.3f} ms", f"{self.latency_ratio:.3f}"),
        ]
        return "\n".join(
            [columns([*rows, *changes(self.metrics)], right=(1, 2, 3)), *(f"warning: {line}" for line in self.warnings)]
        )


@dataclass(frozen=True)
class Quantized:
    """A quantised model, the report of what that changed, and the ``source`` it was made from."""

    model: ModelProto
    report: Quantization
    source: Source

    def save(self, path: str | Path) -> None:
        """Write the model.

        Raises:
            OutputError: the path is the input or can't be written. What was there before is still there.
        """
        save(self.model, path, source=self.source)

    def __str__(self) -> str:
        return str(self.report)


def quantize(
    model: Source | LazyModel,
    mode: str,
    *,
    data: str | Path | Mapping[str, Array] | None = None,
    seed: int = 0,
    reduce_range: bool | None = None,
) -> Quantized:
    """Store weights in fewer bits, compute in them, and measure size, speed and error against the original.

    Inputs and outputs keep their names and types. Source: PAODING's ``Pruner.quantization``, which wrote float16.

    Args:
        model: path of an ONNX file, a proto (which is not changed), or a pruned model.
        mode: ``"fp16"``: weights, products and what follows them in half precision, for processors that
            have it; on others onnxruntime casts to float32, which saves bytes and no time. ``"int8"``: uint8
            activations, int8 weights per channel; matrix products and LSTMs find the range of their inputs at run time,
            convolutions take it from ``data``.
        data: an ``.npz`` path or arrays by input name. ``int8``: up to 512 samples of them calibrate the convolutions, which
            stay float32 without. Both models are then compared on all samples; otherwise on random inputs.
        seed: for the choice of samples, and for random inputs.
        reduce_range: ``int8`` weights have 7 bits, which x86 processors without VNNI need; by default if this one does.

    Raises:
        OptionError: the mode does not exist.
        ModelError: the model can't be read or run, has 2 GB or more, or onnxruntime's quantiser can't take it.
        DataError: the data do not fit the model.
    """
    if mode not in MODES:
        raise OptionError(f"mode {mode!r} does not exist; choose one of {', '.join(MODES)}")
    source: Source = completed(model)
    graph = load(source)
    dataset = None if data is None else read(data, graph.inputs)
    if graph.stored_bytes >= FILE_LIMIT:
        raise ModelError(f"the model has {graph.stored_bytes / 1e9:.1f} GB; only models below 2 GB can be quantised")
    original, shapes = graph.assemble().complete(), infer(graph)
    if dataset is None:
        rng = np.random.default_rng(seed)
        feeds = [random_feeds(graph.inputs, shapes.inputs, rng) for _ in range(TRIES)]
    else:
        feeds = [next(dataset.take(rows).batches(graph.inputs))[0] for rows in _some(dataset, TRIES, seed)[:, None]]
    if mode == "fp16":
        made, nodes = to_half(original, shapes.elem_types, _large(original, feeds))
        said: list[str] = []
    else:
        samples = [] if dataset is None else _samples(dataset, graph.inputs, seed)
        made, nodes, said = _integers(original, samples, reduce_range)
    if dataset is None:
        outputs = _outputs(original, feeds), _outputs(made, feeds)
    else:
        outputs = predict(original, dataset, graph.inputs), predict(made, dataset, graph.inputs)
    latencies = interleaved((original, made), feeds[0])
    if not nodes:
        said.append(f"no node computes in {mode}")
    if any(_finite(a) and not _finite(b) for a, b in zip(*outputs, strict=True)):
        said.append("some outputs are not finite, though the original's are")
    if latencies[1].median >= latencies[0].median:
        said.append(f"{mode} is not faster on this processor")
    sizes = original.ByteSize(), made.ByteSize()
    return Quantized(made, Quantization(mode, sizes, latencies, _metrics(*outputs, dataset), nodes, tuple(said)), source)


def _integers(model: ModelProto, samples: Sequence[Feeds], reduce_range: bool | None) -> tuple[ModelProto, int, list[str]]:
    """The model in 8-bit integers, how many nodes are, and what to say about the others."""
    reduced = needs_reduced_range() if reduce_range is None else reduce_range
    made = to_integer(model, samples, reduce_range=reduced)
    said = list(_left(made.left, calibrated=bool(samples)))
    if reduced and reduce_range is None:
        said.append("weights have 7 bits, since this processor lacks VNNI; give reduce_range=False for one that has it")
    return made.model, made.static + made.dynamic, said


def _finite(values: Array) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _some(dataset: Dataset, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of some of the samples, in their order."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(dataset.samples, min(count, dataset.samples), replace=False))


def _samples(dataset: Dataset, ports: Sequence[Port], seed: int) -> list[Feeds]:
    """Samples for calibration, in batches that the model takes."""
    return [feeds for feeds, _ in dataset.take(_some(dataset, CALIBRATION, seed)).batches(ports)]


def _large(model: ModelProto, feeds: Sequence[Feeds]) -> frozenset[str]:
    """The tensors that float16 may not be able to hold. (Running the float16 model would not tell: on most processors
    onnxruntime computes it in float32.)
    """
    names = candidates(model)
    if not names:
        return frozenset()
    session = Session(tapped(LazyModel(model, {}), names).complete(), optimise=False)
    found = set()
    for given in feeds:
        for name, values in zip(names, session.run(given, names), strict=True):
            if values.dtype.kind == "f" and not np.abs(values).max(initial=0) <= LARGEST:
                found.add(name)
    return frozenset(found)


def _left(left: Mapping[str, int], *, calibrated: bool) -> Iterator[str]:
    """Which operators with weights stay float, and why."""
    convolutions = left.get("Conv", 0)
    if convolutions and not calibrated:
        yield f"{convolutions} Conv stay as they are: the ranges of their inputs have to be measured on samples, give data"
    others = {op: n for op, n in left.items() if calibrated or op != "Conv"}
    if others:
        named = ", ".join(f"{n} {op}" for op, n in others.items())
        yield f"{named} stay as they are: onnxruntime has no faster 8-bit form of them"


def _outputs(model: ModelProto, feeds: Sequence[Feeds]) -> list[Array]:
    """The outputs for some inputs, those that are arrays of floats."""
    session = Session(model)
    found = [result for given in feeds for result in session.run(given)]
    return [a for a in found if isinstance(a, np.ndarray) and a.dtype.kind == "f"]


def _metrics(one: Sequence[Array], other: Sequence[Array], dataset: Dataset | None) -> dict[str, Any]:
    """How much alike the outputs of two models are."""
    found: dict[str, Any] = {"relative_error": relative_error(one, other)} if one else {}
    if dataset is None:
        return found
    if dataset.labels is not None:
        found["accuracy"] = [accuracy(one, dataset.labels), accuracy(other, dataset.labels)]
    alike = agreement(one, other)
    return found if alike is None else {**found, "agreement": alike}
