"""FGSM by finite differences against FGSM with exact gradients, and what it costs over bare forward passes.

    python benchmarks/robustness.py FOLDER --data FILE.npz [--samples 500] [--names mnist_cnn ...]

FOLDER holds classifiers (``*.onnx``, with the operators below), FILE.npz their test samples and labels. Exact gradients
need torch, which the package itself does not: without it those rows are left out. Where a max-pool's inputs are equal (a
plain background), torch takes the first as the largest; "mean over ties" averages over random choices. Each model is
attacked at every epsilon, as a share of the data's range, with differences along all coordinates and along blocks for a
quarter and a sixteenth of the passes. Cost: wall time of the whole evaluation over that of the same number of samples
through the model in onnxruntime, 64 at a time in one session, with one thread or one per core, whichever is faster. Results
go to robustness.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

import onnxprune

try:
    import torch
except ImportError:
    torch = None

HERE = Path(__file__).parent
EPSILONS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
BATCH = 64


def _pool(x: Any, a: dict[str, Any]) -> Any:
    kernel = a["kernel_shape"]
    if any(a.get("pads", [])) or a.get("auto_pad", b"NOTSET") != b"NOTSET" or a.get("ceil_mode"):
        raise NotImplementedError("padded pooling")
    return torch.nn.functional.max_pool2d(x, kernel, a.get("strides", [1] * len(kernel)))


def _conv(x: Any, a: dict[str, Any], w: Any, b: Any = None) -> Any:
    pads = a.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:] or a.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise NotImplementedError("uneven padding")
    return torch.nn.functional.conv2d(x, w, b, a.get("strides", 1), tuple(pads[:2]), a.get("dilations", 1), a.get("group", 1))


def _gemm(x: Any, a: dict[str, Any], w: Any, b: Any = 0.0) -> Any:
    return a.get("alpha", 1.0) * x @ (w.T if a.get("transB") else w) + a.get("beta", 1.0) * b


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda x, a, y: x + y,
    "Conv": _conv,
    "Flatten": lambda x, a: x.flatten(1),
    "Gemm": _gemm,
    "MatMul": lambda x, a, y: x @ y,
    "MaxPool": _pool,
    "Relu": lambda x, a: x.relu(),
    "Sigmoid": lambda x, a: x.sigmoid(),
    "Tanh": lambda x, a: x.tanh(),
}


class Exact:
    """A network in torch, float64."""

    def __init__(self, path: Path) -> None:
        self.graph = onnx.load(path).graph
        self.stored = {t.name: torch.tensor(numpy_helper.to_array(t), dtype=torch.float64) for t in self.graph.initializer}
        self.input = next(v.name for v in self.graph.input if v.name not in self.stored)

    def __call__(self, x: Any) -> Any:
        """Logits."""
        values = {**self.stored, self.input: x}
        for node in self.graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            first, *others = (values[name] for name in node.input)
            values[node.output[0]] = OPERATORS[node.op_type](first, attributes, *others)
        return values[self.graph.output[0].name]

    def gradient(self, x: Any, target: Any) -> Any:
        """Of the cross-entropy."""
        given = x.clone().requires_grad_()
        torch.nn.functional.cross_entropy(self(given), target, reduction="sum").backward()
        return given.grad

    def robust(self, x: np.ndarray, labels: np.ndarray, epsilons: tuple[float, ...], breaks: int = 0) -> dict[str, float]:
        """Share of all samples that are classified right before and after FGSM on the cross-entropy.

        Args:
            breaks: average the gradient over so many ways to break ties at the samples (noise of 1e-6 of the range).
        """
        given, target = torch.tensor(x, dtype=torch.float64), torch.tensor(labels)
        low, high = float(x.min()), float(x.max())
        torch.manual_seed(0)
        noisy = [given + 1e-6 * (high - low) * (2 * torch.rand_like(given) - 1) for _ in range(breaks)]
        sign = sum(self.gradient(at, target) for at in noisy or [given]).sign()
        right = self(given).argmax(1) == target
        found = {}
        for epsilon in epsilons:
            moved = (given + epsilon * sign).clamp(low, high)
            found[f"{epsilon:.12g}"] = float((right & (self(moved).argmax(1) == target)).double().mean())
        return found


def bare(path: Path, x: np.ndarray, passes: int, threads: int) -> float:
    """Seconds for so many samples through the model, and nothing else."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: np.resize(x, (BATCH, *x.shape[1:]))}
    runs = max(1, round(passes / BATCH))
    session.run(None, feeds)
    start = time.perf_counter()
    for _ in range(runs):
        session.run(None, feeds)
    return (time.perf_counter() - start) * passes / (runs * BATCH)


def measure(path: Path, x: np.ndarray, labels: np.ndarray, runs: int) -> dict[str, Any]:
    """One network's row."""
    spread = float(x.max() - x.min())
    epsilons = tuple(share * spread for share in EPSILONS)
    coordinates = 2 * x[0].size * len(x)
    row: dict[str, Any] = {"samples": len(x), "coordinates": x[0].size, "spread": spread}
    if torch is not None:
        row["exact"] = Exact(path).robust(x, labels, epsilons)
        row["exact, mean over ties"] = Exact(path).robust(x, labels, epsilons, breaks=8)
    for share in (1, 4, 16):
        evaluator = onnxprune.Evaluator(epsilons, budget=coordinates // share)
        found = evaluator.evaluate(path, (x, labels))
        metrics = found.metrics()
        row["clean"], row["noise"] = metrics["accuracy"], metrics["noise_accuracy"]
        row[f"finite differences, 1/{share} of the passes" if share > 1 else "finite differences"] = metrics["robust_accuracy"]
    few = x[: max(1, len(x) // 5)], labels[: max(1, len(x) // 5)]
    ratios = []
    for _ in range(runs):
        start = time.perf_counter()
        found = onnxprune.Evaluator(epsilons, budget=coordinates).evaluate(path, few)
        seconds = time.perf_counter() - start
        ratios.append(seconds / min(bare(path, x, found.forward_passes, threads) for threads in {1, os.cpu_count() or 1}))
    row["cost over bare passes"] = sorted(ratios)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--names", nargs="*")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with np.load(options.data) as archive:
        labels = archive["labels"][: options.samples]
        x = next(archive[name] for name in archive.files if name != "labels")[: options.samples]
    target = HERE / "robustness.json"
    rows = json.loads(target.read_text()) if target.exists() else {}
    for path in sorted(options.folder.glob("*.onnx")):
        if options.names and path.stem not in options.names:
            continue
        row = rows[path.stem] = measure(path, x, labels, options.runs)
        print(path.stem, f"clean {row['clean']:.3f}, cost {np.median(row['cost over bare passes']):.2f} x bare passes")
        for kind, shares in row.items():
            if isinstance(shares, dict):
                print(f"  {kind:40s}", "  ".join(f"{e}: {share:.3f}" for e, share in shares.items()), flush=True)
        target.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
