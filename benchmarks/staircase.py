"""What --round-to auto and --target latency are worth in onnxruntime: pruned beside original, one thread, runs interleaved.

    python benchmarks/staircase.py MODEL [MODEL ...] [--runs 3]

Full-size networks are exported by ``export_models.py OUT mobilenet_v2 resnet50 --exporter ts``. Of each model: the cut as it
comes (``--round-to 1``) and in ``auto`` widths, by ratio and by target; and latency targets, what was foreseen beside what
came. Every pair of models is timed again in new sessions, ``--runs`` times, by the thread's own clock; the median of the runs
and their range are kept, in float and in 8-bit integers, with the same random calibration for both, which is enough for
speed. Results go to staircase.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

import onnxprune
from onnxprune.evaluate import race
from onnxprune.graph import load
from onnxprune.profile.device import machine
from onnxprune.quantize.integer import needs_reduced_range, to_integer
from onnxprune.runtime import Feeds, Session, random_feeds
from onnxprune.shapes import infer

HERE = Path(__file__).parent
CUTS: dict[str, dict[str, Any]] = {
    "ratio 0.3": {"ratio": 0.3},
    "macs=0.5": {"target": "macs=0.5"},
}


def times_as_fast(one: Session, other: Session, feeds: Feeds, runs: int) -> list[float]:
    """How many times as fast the other is: the median of some runs, the lowest and the highest."""
    found = [1 / race(one, other, feeds, seconds=3).ratio for _ in range(runs)]
    return [round(float(f(found)), 3) for f in (np.median, np.min, np.max)]


def integer(model: ModelProto, feeds: Feeds) -> Session:
    """The model in 8-bit integers."""
    return Session(to_integer(model, [feeds], reduce_range=needs_reduced_range()).model, optimise=True)


def measured(path: Path, runs: int) -> dict[str, Any]:
    """All cuts of a model."""
    graph = load(path)
    feeds = random_feeds(graph.inputs, infer(graph).inputs, np.random.default_rng(1))
    original = graph.assemble().complete()
    plain, whole = Session(original, optimise=True), integer(original, feeds)
    start = time.perf_counter()
    profile = onnxprune.profile(path)
    rows: dict[str, Any] = {"profile_seconds": round(time.perf_counter() - start, 1)}
    for name, options in CUTS.items():
        for width in (1, "auto"):
            start = time.perf_counter()
            result = onnxprune.prune(path, round_to=width, profile=None if width == 1 else profile, **options)
            row = {
                "macs_left": round(result.report.after.macs / result.report.before.macs, 4),
                "seconds": round(time.perf_counter() - start, 1),
                "float": times_as_fast(plain, Session(result.model, optimise=True), feeds, runs),
                "int8": times_as_fast(whole, integer(result.model, feeds), feeds, runs),
            }
            rows[f"{name}, {width}"] = row
            print(path.name, name, width, row, flush=True)
    target = onnxprune.prune(path, target="latency=0.5", profile=profile)
    met = target.report.target
    assert met is not None
    rows["latency=0.5"] = {
        "macs_left": round(target.report.after.macs / target.report.before.macs, 4),
        "original_ms": round(met.before / 1e6, 4),
        "left": round(met.share, 4),
        "foreseen": None if met.foreseen is None else round(met.foreseen / met.before, 4),
        "float": times_as_fast(plain, Session(target.model, optimise=True), feeds, runs),
    }
    print(path.name, rows["latency=0.5"], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    results = {"machine": machine(), "runs": options.runs, "models": {}}
    for path in options.models:
        results["models"][path.name.split(".")[0]] = measured(path, options.runs)
        (HERE / "staircase.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
