"""Probe: how much of a group's error reaches the model's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.importance.scene import Scene
from onnxprune.labels import IntArray
from onnxprune.lossless import edited
from onnxprune.plan import PlanEdit, make_plan
from onnxprune.runtime import Session, tapped
from onnxprune.surgery import mask
from onnxprune.weights import Array

WORK = 400_000_000_000
"""Multiply-accumulate operations that all probes take at most."""

SAMPLES = 128
"""Samples that each takes at most."""


RANGE = 0.25, 4.0
"""Between which a group's error counts, in units of the median."""


def divergence(outputs: Sequence[Array], wanted: Sequence[Array]) -> float:
    """The squared error of outputs in units of their variance, the mean over the outputs; scores of classes are centred first.

    A constant that is added to all scores of a sample changes no class and no probability.
    """
    found = []
    for got, want in zip(outputs, wanted, strict=True):
        if want.dtype.kind != "f" or not want.size:
            continue
        got, want = got.astype(np.float64), want.astype(np.float64)
        if want.ndim == 2 and want.shape[1] > 1:
            got, want = (v - v.mean(axis=1, keepdims=True) for v in (got, want))
        spread = float(np.square(want - want.mean(axis=0)).sum()) or float(np.square(want).sum())
        found.append(float(np.square(got - want).sum()) / max(spread, 1e-30))
    return float(np.mean(found)) if found else 0.0


class Probe:
    """Runs changed versions of a scene's model on some of its inputs."""

    def __init__(self, scene: Scene, runs: int) -> None:
        self._scene = scene
        work = scene.coupling.macs * max(runs, 1)
        count = int(np.clip(WORK // max(work, 1), 8, SAMPLES))
        self._feeds = scene.chunks(count)
        graph = scene.graph
        softened = {n.outputs[0]: n.inputs[0] for n in graph.nodes if n.op in ("Softmax", "LogSoftmax") and n.standard}
        self._outputs = [softened.get(port.name, port.name) for port in graph.outputs]
        self._wanted = self._run((), ())

    def of(self, leaves: IntArray, edits: Sequence[PlanEdit]) -> float:
        """The divergence once some components leave, and some weights have changed."""
        return divergence(self._run(leaves, edits), self._wanted)

    def _run(self, leaves: IntArray | Sequence[int], edits: Sequence[PlanEdit]) -> list[Array]:
        coupling = self._scene.coupling
        removed = np.zeros(len(coupling.components.root), np.bool_)
        removed[list(leaves)] = True
        graph = edited(coupling.graph, edits)
        model = tapped(mask(graph, make_plan(coupling, removed)), self._outputs, only=True)
        session = Session(model.ready(), threads=2)
        parts = [session.run(feeds, self._outputs) for feeds in self._feeds]
        return [np.concatenate([np.atleast_1d(np.asarray(part[k])) for part in parts]) for k in range(len(self._outputs))]


@dataclass(frozen=True, eq=False)
class Cut:
    """Components that leave, the changes that make up for them, and the error that should be left by then."""

    leaves: IntArray
    edits: Sequence[PlanEdit]
    error: float


def probed(scene: Scene, cuts: Sequence[Cut]) -> list[float]:
    """By how much the error of each group counts: what a cut of it alone does to the outputs, over what it should do.

    In units of the median over the groups, and within ``RANGE``.
    """
    probe = Probe(scene, len(cuts))
    ratios = [probe.of(cut.leaves, cut.edits) / max(cut.error, 1e-9) if len(cut.leaves) else 0.0 for cut in cuts]
    known = [ratio for ratio in ratios if np.isfinite(ratio) and ratio > 0]
    unit = float(np.median(known)) if known else 1.0
    return [float(np.clip(ratio / unit, *RANGE)) if np.isfinite(ratio) else RANGE[1] for ratio in ratios]
