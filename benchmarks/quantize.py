"""What float16 and 8-bit integers save and cost: bytes, latency in onnxruntime (one thread, interleaved), accuracy.

    python benchmarks/quantize.py MODEL [MODEL ...] [--data FOLDER]

With ``FOLDER/<model>.calib.npz`` and ``FOLDER/<model>.eval.npz``, convolutions are calibrated on the one, and accuracy and
agreement measured on the other; without, convolutions are calibrated on random inputs (marked as such), which says how fast
they are, not how good. Results go to quantize.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

import onnxprune
from onnxprune.graph import load
from onnxprune.runtime import quiet, random_feeds
from onnxprune.shapes import infer

HERE = Path(__file__).parent
SAMPLES = 1000
REPEATS = 5
"""Comparisons, each of interleaved runs; the median ratio counts."""


def some(path: Path) -> dict[str, Any]:
    """The first samples of an archive."""
    with np.load(path) as archive:
        return {name: archive[name][:SAMPLES] for name in archive.files}


def guessed(path: Path) -> dict[str, Any] | None:
    """Random inputs, one sample after the other; None where the inputs' first axes are not samples."""
    graph = load(path)
    shapes = infer(graph).inputs
    if len({shape[0] if shape else 0 for shape in shapes.values()}) > 1:
        return None
    feeds = [random_feeds(graph.inputs, shapes, np.random.default_rng(seed)) for seed in range(8)]
    return {name: np.concatenate([f[name] for f in feeds]) for name in shapes}


def measure(path: Path, mode: str, calibration: dict[str, Any] | None, test: dict[str, Any] | None) -> dict[str, Any]:
    """Sizes, latencies and likeness of a quantised model and the original."""
    made = onnxprune.quantize(path, mode, data=calibration)
    found = [onnxprune.compare(path, made.model, data=test) for _ in range(REPEATS)]
    ratios = sorted(new.median / old.median for old, new in (f.latencies for f in found))
    before, after = made.report.bytes
    return {
        "bytes_left": after / before,
        "latency_left": float(np.median(ratios)),
        "latency_range": [ratios[0], ratios[-1]],
        "original_ms": float(np.median([f.latencies[0].median for f in found])),
        "metrics": dict(found[0].metrics),
        "nodes": made.report.nodes,
        "warnings": [line for line in made.report.warnings if "faster" not in line],
    }


def variants(path: Path, folder: Path | None) -> dict[str, Any]:
    """One model in every mode."""
    files = {kind: folder / f"{path.stem}.{kind}.npz" for kind in ("calib", "eval")} if folder else {}
    known = bool(files) and all(file.exists() for file in files.values())
    calibration = some(files["calib"]) if known else guessed(path)
    test = some(files["eval"]) if known else None
    cases: dict[str, tuple[str, dict[str, Any] | None]] = {"fp16": ("fp16", None), "int8 without data": ("int8", None)}
    if calibration is not None:
        cases["int8 calibrated" if known else "int8 calibrated at random"] = ("int8", calibration)
    rows: dict[str, Any] = {}
    for name, (mode, given) in cases.items():
        try:
            rows[name] = measure(path, mode, given, test)
        except onnxprune.OnnxpruneError as error:
            rows[name] = {"error": str(error)}
            print(f"{path.name:28s} {name:26s} {error}", flush=True)
            continue
        row = rows[name]
        likeness = "  ".join(f"{key} {np.round(value, 4)}" for key, value in row["metrics"].items())
        print(
            f"{path.name:28s} {name:26s} bytes {row['bytes_left']:.2f}  latency {row['latency_left']:.2f}  {likeness}", flush=True
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, help="folder of calibration and evaluation data")
    options = parser.parse_args()
    quiet()
    rows = {path.name: variants(path, options.data) for path in options.models}
    flags = Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""
    result = {"vnni": "vnni" in flags, "machine": platform.machine(), "samples": SAMPLES, "repeats": REPEATS, "models": rows}
    (HERE / "quantize.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
