"""The oracle: the pruned model must equal the original with the removed channels zeroed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxprune.errors import ModelError, VerificationError
from onnxprune.graph import Graph
from onnxprune.lazy import AnyModel, LazyModel
from onnxprune.runtime import Session, random_feeds
from onnxprune.shapes import Shape, Shapes
from onnxprune.weights import Array

TOLERANCE = 1e-4
"""Largest accepted difference in float32, relative to the largest value of the output."""

COARSE_TOLERANCE = 2e-2
"""The same where weights are 16-bit or the graph rounds to integers: sums in another order round differently."""

_SWITCHES: dict[int, str] = {TensorProto.BOOL: "?", TensorProto.INT32: "i4", TensorProto.INT64: "i8"}
"""Element types of inputs that can choose a branch."""
_HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
_ROUNDING = re.compile("Quantize|^Q(Linear|Gemm|Attention)|^(Round|Floor|Ceil)$")


@dataclass(frozen=True, slots=True)
class Verification:
    """Largest differences between the outputs over all tried ``inputs`` (a number of random batches)."""

    passed: bool
    max_abs_error: float
    max_rel_error: float
    inputs: int

    def to_dict(self) -> dict[str, Any]:
        """As in the report."""
        return {
            "passed": self.passed,
            "max_abs_error": self.max_abs_error,
            "max_rel_error": self.max_rel_error,
            "inputs": self.inputs,
        }


def verify(graph: Graph, shapes: Shapes, masked: AnyModel, pruned: AnyModel, *, seed: int = 0) -> Verification:
    """Run both models on random inputs: a batch of one at the probe's sizes and, where sizes are dynamic, others.

    A graph that rounds has two chances, as onnxruntime optimises it and as it is written: where only one of two models is
    fused at some place, or sums are of floats, a last bit is rounded another way, and the next layers make more of it.

    Raises:
        VerificationError: the pruned model does not load, does not run, or gives outputs of another shape; or the
            original's outputs are random.
        ModelError: the masked original does not run on random inputs.
    """
    found = _compare(graph, shapes, masked, pruned, seed, optimise=None)
    if found.passed or not _rounds(graph):
        return found
    written = _compare(graph, shapes, masked, pruned, seed, optimise=False)
    return written if written.passed else found


def _compare(
    graph: Graph, shapes: Shapes, masked: AnyModel, pruned: AnyModel, seed: int, *, optimise: bool | None
) -> Verification:
    """One comparison; ``optimise`` as for :class:`Session`, which leaves the weights of large models in their files."""
    reference, candidate = Session(masked, optimise=optimise), _candidate(pruned, optimise=optimise)
    rng = np.random.default_rng(seed)
    worst_abs = worst_rel = 0.0
    tolerance = COARSE_TOLERANCE if _is_coarse(graph) else TOLERANCE
    runs, passed = 0, True
    types = {p.name: _SWITCHES[p.elem_type] for p in graph.inputs if p.elem_type in _SWITCHES}
    tried = _sizes(graph, shapes)
    if isinstance(masked, LazyModel):  # each run reads all of it
        tried = [tried[0], tried[-1]]
    for sizes, switches in product(tried, _switches(graph, shapes)):
        feeds = random_feeds(graph.inputs, sizes, rng) | {
            name: np.full(sizes[name], value, types[name]) for name, value in switches.items()
        }
        try:
            expected = reference.run(feeds)
        except ModelError:
            if runs:
                continue
            raise
        results = _results(candidate, feeds)
        absolute, relative = _largest(reference, expected, results)
        if relative > tolerance and not all(np.isfinite(e).all() for e in expected if _is_float(e)):
            raise VerificationError(
                "the masked original's outputs are not finite (NaN or Inf), so that nothing can be proved; nothing was written. "
                "Freeze the part that divides by zero or overflows"
            )
        if relative > tolerance and _largest(reference, expected, reference.run(feeds))[1] > tolerance:
            raise VerificationError(
                "the model gives other outputs each time for the same input (random operators), so that nothing can be "
                "proved about it; remove them or fix their seed"
            )
        worst_abs, worst_rel = max(worst_abs, absolute), max(worst_rel, relative)
        passed &= relative <= tolerance or relative <= min(COARSE_TOLERANCE, 4 * _noise(reference, feeds, expected, rng))
        runs += 1
    return Verification(passed, worst_abs, worst_rel, runs)


def _noise(reference: Session, feeds: Mapping[str, Array], expected: list[Any], rng: np.random.Generator) -> float:
    """How far rounding alone moves the outputs: what the last bit of the inputs does to them.

    A network with a narrow end (a probability of 1e-5) has larger relative errors than others.
    """
    worst = 0.0
    for _ in range(_TRIALS):
        nudged = {
            name: np.nextafter(v, rng.choice([-np.inf, np.inf], v.shape).astype(v.dtype)) if v.dtype.kind == "f" else v
            for name, v in feeds.items()
        }
        worst = max(worst, _largest(reference, expected, reference.run(nudged))[1])
    return worst


_TRIALS = 8


def check_runs(graph: Graph, shapes: Shapes, pruned: AnyModel, *, seed: int = 0) -> None:
    """Run a model whose cuts are not exact: it must load, and give outputs of the original's shapes, finite where those are.

    Raises:
        VerificationError: it does not.
        ModelError: the original does not run on random inputs.
    """
    candidate = _candidate(pruned)
    reference = Session(graph.assemble().ready())
    feeds = random_feeds(graph.inputs, shapes.inputs, np.random.default_rng(seed))
    expected = reference.run(feeds)
    results = _results(candidate, feeds)
    for name, want, got in zip(reference.outputs, expected, results, strict=True):
        difference(name, want, got)
        if _is_float(want) and np.isfinite(want).all() and not np.isfinite(got).all():
            raise VerificationError(
                f"output {name!r} of the pruned model is not finite, nothing was written; cut less, or freeze more"
            )


def _candidate(pruned: AnyModel, *, optimise: bool | None = None) -> Session:
    try:
        return Session(pruned, optimise=optimise)
    except ModelError as error:
        raise VerificationError(f"the pruned model is refused, nothing was written: {error}") from error


def _results(candidate: Session, feeds: Mapping[str, Array]) -> list[Any]:
    try:
        return candidate.run(feeds)
    except ModelError as error:
        raise VerificationError(f"the pruned model does not run, nothing was written: {error}") from error


def _is_float(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind == "f"


def _is_coarse(graph: Graph) -> bool:
    return any(graph.weights.elem_type(n) in _HALF for n in graph.weights) or _rounds(graph)


def _rounds(graph: Graph) -> bool:
    return any(_ROUNDING.search(n.op) for n in graph.nodes)


def _sizes(graph: Graph, shapes: Shapes) -> list[Mapping[str, Shape]]:
    """Input shapes to try: the probe's; a batch of three; the second probe's. Some models take only the first."""
    first = dict(shapes.inputs)
    dynamic = [p.name for p in graph.inputs if p.shape and not isinstance(p.shape[0], int)]
    batch = {n: (3, *s[1:]) if n in dynamic else s for n, s in first.items()}
    second = {n: tuple(shapes.fixed.get(n, s)) for n, s in first.items()} if shapes.fixed is not None else first
    tried: list[Mapping[str, Shape]] = [first]
    return tried + [sizes for sizes in (batch, second) if sizes != first] if dynamic or second != first else [first, first]


def _switches(graph: Graph, shapes: Shapes) -> list[dict[str, int]]:
    """Values of single booleans and integers among the inputs that choose branches: each is tried."""
    values: dict[str, list[int]] = {}
    for port in graph.inputs:
        if math.prod(shapes.inputs.get(port.name, (0,))) != 1:
            continue
        if port.elem_type == TensorProto.BOOL:
            values[port.name] = [1, 0]
        elif port.elem_type in _SWITCHES:
            values[port.name] = _compared(graph, shapes, port.name)
    rounds = max(map(len, values.values()), default=0)
    return [{name: found[i % len(found)] for name, found in values.items() if found} for i in range(rounds)] or [{}]


def _compared(graph: Graph, shapes: Shapes, name: str) -> list[int]:
    """The constants that an input is compared with, and one that it is not."""
    same, found = {name}, set()
    for node in graph.nodes:
        if node.op in ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape") and node.input(0) in same:
            same.update(node.outputs)
        elif node.op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual") and same.intersection(node.inputs):
            others = (shapes.value(n) for n in node.inputs if n not in same)
            found |= {int(value.flat[0]) for value in others if value is not None and value.size == 1}
    return [*sorted(found), max(found) + 1] if found else []


def _largest(session: Session, expected: list[Any], results: list[Any]) -> tuple[float, float]:
    gaps = [difference(name, want, got) for name, want, got in zip(session.outputs, expected, results, strict=True)]
    return max((g[0] for g in gaps), default=0.0), max((g[1] for g in gaps), default=0.0)


def difference(name: str, want: Any, got: Any) -> tuple[float, float]:
    """Largest absolute difference of two outputs, and the same relative to the largest expected value.

    Raises:
        VerificationError: the shapes differ.
    """
    if not isinstance(want, np.ndarray):
        return (0.0, 0.0) if isinstance(want, list) and len(want) == len(got) else (float("inf"), float("inf"))
    if want.shape != got.shape:
        raise VerificationError(f"output {name!r} has shape {got.shape} instead of {want.shape}, nothing was written")
    if want.dtype.kind not in "fiub" or want.size == 0:
        return 0.0, 0.0 if np.array_equal(want, got) else float("inf")
    return _numbers(want.astype(np.float64), got.astype(np.float64))


def _numbers(want: Array, got: Array) -> tuple[float, float]:
    finite = np.isfinite(want)
    if not np.array_equal(want[~finite], got[~finite], equal_nan=True):
        return float("inf"), float("inf")
    gap = float(np.abs(want[finite] - got[finite]).max(initial=0))
    return gap, gap / max(float(np.abs(want[finite]).max(initial=0)), 1e-6)
