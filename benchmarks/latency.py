"""How much faster pruned networks run in onnxruntime: one thread, runs of original and pruned model interleaved.

    python benchmarks/latency.py MODEL [MODEL ...] [--ratio 0.5]

Each model is pruned twice, as it comes and with kept channels rounded up to a multiple of 16, the block in which
onnxruntime's convolutions work. Results go to latency.json beside this script.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import onnxprune

HERE = Path(__file__).parent


def measure(path: Path, ratio: float, round_to: int) -> dict[str, float]:
    """MACs and median latency of the pruned model over the original's."""
    pruned = onnxprune.prune(path, ratio=ratio, round_to=round_to).model
    found = onnxprune.compare(path, pruned)
    (before, after), (slow, fast) = found.costs, found.latencies
    return {
        "macs_left": after.macs / before.macs,
        "latency_left": fast.median / slow.median,
        "original_ms": slow.median,
        "pruned_ms": fast.median,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5)
    options = parser.parse_args()
    rows = {}
    for path in options.models:
        rows[path.name] = {str(k): measure(path, options.ratio, k) for k in (1, 16)}
        shown = "  ".join(
            f"round to {k}: {r['latency_left']:.2f} at {r['macs_left']:.2f} MACs" for k, r in rows[path.name].items()
        )
        print(f"{path.name:36s} {shown}", flush=True)
    (HERE / "latency.json").write_text(json.dumps({"ratio": options.ratio, "models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
