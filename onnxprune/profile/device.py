"""Device profiles: how fast a machine runs the layers that a network needs, as a file that another machine can read."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.clock import Progress
from onnxprune.errors import ModelError, ProfileError
from onnxprune.evaluate import race
from onnxprune.files import JsonFile, Source, one_line
from onnxprune.graph import Graph, load
from onnxprune.lazy import LazyModel
from onnxprune.profile.bench import NUMBERS
from onnxprune.profile.layers import Kind, Layer, layers
from onnxprune.profile.staircase import WIDEST, Grid, Staircase, kind_of, times_of
from onnxprune.report import columns
from onnxprune.runtime import Session, kernels, random_feeds, version
from onnxprune.shapes import infer

SCHEMA = "onnxprune.profile/1"


def machine() -> dict[str, str]:
    """What times are of: the processor, the system, and the version of onnxruntime."""
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    system = f"{platform.system()} {platform.machine()}".strip()
    return {"processor": name or "unknown", "system": system, "onnxruntime": version()}


@dataclass(frozen=True, slots=True)
class Whole:
    """How long a model takes: nanoseconds, and the share of its convolutions and matrix products in it."""

    nanoseconds: int
    layers: float

    @classmethod
    def measured(cls, graph: Graph, feeds: Mapping[str, Any]) -> Whole:
        """On this machine, one thread."""
        model = graph.assemble().ready()
        session = Session(model, optimise=True)
        time = round(1e9 * race(session, session, feeds, seconds=2).seconds)
        try:
            parts = [] if isinstance(model, LazyModel) else kernels(model, feeds, seconds=1)
        except ModelError:  # too large to be written down
            parts = []
        found = [(kernel.op in _LAYERS, kernel.microseconds) for kernel in parts]
        total = sum(taken for _, taken in found)
        return cls(time, sum(taken for is_layer, taken in found if is_layer) / total if total else 1.0)


_LAYERS = frozenset({"Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm"})
"""What onnxruntime makes of the layers that a profile has."""


@dataclass(frozen=True)
class DeviceProfile(JsonFile):
    """Times of layers in onnxruntime on one machine, one thread.

    Attributes:
        machine: as :func:`machine` says it.
        staircases: of each kind of layer, by width.
        grids: of some networks' layers at some widths.
        models: whole models, by the SHA-256 of their files.
    """

    machine: Mapping[str, str]
    staircases: tuple[Staircase, ...] = ()
    grids: tuple[Grid, ...] = ()
    models: Mapping[str, Whole] = field(default_factory=dict)
    WHAT = "profile"

    @property
    def here(self) -> bool:
        """Whether it is of this machine."""
        return dict(self.machine) == machine()

    @property
    def name(self) -> str:
        """The machine in words."""
        return f"{self.machine['processor']}, onnxruntime {self.machine['onnxruntime']}"

    def staircase(self, layer: Layer, numbers: str) -> Staircase | None:
        """The staircase of a layer's kind, on a map as large as that on which this layer would be measured if there is one."""
        alike = [s for s in self.staircases if (s.kind, s.numbers) == (layer.kind, numbers)]
        return next((s for s in alike if s.fits(layer, numbers)), alike[0] if alike else None)

    def grid(self, layer: Layer, numbers: str) -> Grid | None:
        """The times of a layer."""
        return next((g for g in self.grids if (g.layer, g.numbers) == (layer, numbers)), None)

    def missing(self, wanted: Iterable[Layer], numbers: str) -> list[Kind]:
        """The kinds of some layers that are not in it."""
        return sorted({layer.kind for layer in wanted if layer.kind.groups < 2 and self.staircase(layer, numbers) is None})

    def extended(
        self, wanted: Iterable[Layer], numbers: Iterable[str] = NUMBERS, *, grids: bool = True, progress: Progress | None = None
    ) -> DeviceProfile:
        """The profile with what it lacks of some layers measured on this machine.

        Layers of several groups are not, nor what onnxruntime can't run.

        Args:
            grids: also of each layer at some widths, in float32.
        """
        wanted, staircases, found = list(wanted), list(self.staircases), list(self.grids)
        for kind in numbers:
            for layer in wanted:
                made = next((s for s in staircases if s.fits(layer, kind)), None)
                try:
                    if made is None and layer.kind.groups < 2:
                        _say(progress, f"time {layer.kind}, {kind}")
                        made = Staircase.measured(layer.kind, layer.place, kind)
                        staircases.append(made)
                    if grids and kind == "float" and made is not None and self.grid(layer, kind) is None:
                        _say(progress, f"time {layer.kind}, {layer.inputs} to {layer.outputs}")
                        found.append(Grid.measured(layer, made))
                except ModelError:
                    continue
        return replace(self, staircases=tuple(staircases), grids=tuple(found))

    def to_dict(self) -> dict[str, Any]:
        """As JSON data (schema ``onnxprune.profile/1``); times in microseconds."""
        return {
            "schema": SCHEMA,
            "machine": dict(self.machine),
            "threads": 1,
            "staircases": [
                {
                    **_said(s.kind), "place": list(s.place), "numbers": s.numbers, "other": s.other,
                    "inputs_us": _rounded(s.inputs), "outputs_us": _rounded(s.outputs),
                }
                for s in self.staircases
            ],
            "layers": [
                {
                    **_said(g.layer.kind), "place": list(g.layer.place), "numbers": g.numbers,
                    "channels": [g.layer.inputs, g.layer.outputs], "inputs": g.inputs.tolist(),
                    "outputs": g.outputs.tolist(), "us": _rounded(g.microseconds),
                }
                for g in self.grids
            ],
            "models": {n: {"us": found.nanoseconds / 1e3, "layers": round(found.layers, 4)} for n, found in self.models.items()},
        }  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> DeviceProfile:
        """Read a profile.

        Raises:
            ProfileError: the file can't be read, or is none.
        """
        where = f"profile {str(path)!r}"
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ProfileError(f"{where} can't be read as JSON: {one_line(error)}; make one with `onnxprune profile`") from error
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            found = f"its schema is {schema!r}" if schema else "it has no schema"
            raise ProfileError(f"{where} is no profile: {found}, not {SCHEMA!r}; make one with `onnxprune profile`")
        try:
            return cls._from(data)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ProfileError(f"{where} is damaged: {_reason(error)}; make one with `onnxprune profile`") from error

    @classmethod
    def _from(cls, data: Mapping[str, Any]) -> DeviceProfile:
        staircases = tuple(
            Staircase(
                kind_of(s), tuple(map(int, s["place"])), str(s["numbers"]), int(s["other"]),
                times_of(s["inputs_us"], WIDEST), times_of(s["outputs_us"], WIDEST),
            )
            for s in data["staircases"]
        )  # fmt: skip
        grids = []
        for g in data["layers"]:
            kind, (one, two) = kind_of(g), (np.array(g[side], np.int64) for side in ("inputs", "outputs"))
            shape = (len(one),) if kind.groups == 0 else (len(one), len(two))
            layer = Layer(kind, tuple(map(int, g["place"])), *map(int, g["channels"]))
            grids.append(Grid(layer, str(g["numbers"]), one, two, times_of(g["us"], *shape)))
        models = {str(name): Whole(round(1e3 * m["us"]), float(m["layers"])) for name, m in data["models"].items()}
        known = {name: str(data["machine"][name]) for name in ("processor", "system", "onnxruntime")}
        return cls(known, staircases, tuple(grids), models)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "map or rows", "numbers", "widest, us", "steps of the inputs", "of the outputs")]
        for s in self.staircases:
            rows.append((str(s.kind), "x".join(map(str, s.place)), s.numbers, f"{s.inputs[-1]:.1f}", *map(str, s.steps)))
        lines = [self.name + ", one thread", columns(rows, right=(3, 4, 5)) if self.staircases else "no layers to measure"]
        lines += [f"{len(self.grids)} layers at some widths each"] if self.grids else []
        lines += [f"whole model: {found.nanoseconds / 1e6:.3f} ms" for found in self.models.values()]
        return "\n\n".join(lines)


def profile(model: Source, *, seed: int = 0, progress: Progress | None = None) -> DeviceProfile:
    """Measure on this machine how fast onnxruntime runs the layers of a model, at many widths, float32 and 8-bit integers.

    Args:
        model: path of an ONNX file, or a proto. Its weights don't matter.
        seed: for the input on which the whole model is timed.

    Raises:
        ModelError: the model can't be read or run.
    """
    graph = load(model)
    shapes = infer(graph)
    found = DeviceProfile(machine()).extended(layers(graph, shapes), progress=progress)
    _say(progress, "time the model")
    feeds = random_feeds(graph.inputs, shapes.inputs, np.random.default_rng(seed))
    return replace(found, models={graph.sha256: Whole.measured(graph, feeds)})


def _say(progress: Progress | None, text: str) -> None:
    if progress is not None:
        progress(text)


def _reason(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)


def _said(kind: Kind) -> dict[str, Any]:
    places = {name: list(getattr(kind, name)) for name in ("kernel", "strides", "dilations")}
    return {"op": kind.op, **places, "groups": kind.groups}


def _rounded(times: Any) -> Any:
    return np.round(times, 2).tolist()
