"""Attacks with the package's gradients against the same attacks in torch, and what gradients cost.

    python benchmarks/robustness.py MODEL.onnx FILE.npz [--samples N] [--pgd N] [--differences N] [--runs N]

MODEL is a classifier of the operators below with one input, FILE has its samples and labels. torch runs the same graph, and
attacks it by the gradient of its cross-entropy (that in float64): FGSM, and PGD of ten steps in both norms, at every epsilon
(of ``linf`` as a share of the data's range; of ``l2`` that times a quarter of the square root of the number of values). A
sample counts as wrong if it is so after any step. ``--pgd N``: PGD on the first N samples. ``--differences N``: FGSM by
finite differences too, on the first N, along all coordinates and along blocks for a quarter and a sixteenth of the passes.
Cost: of the gradients of 64 samples over a forward pass of them in onnxruntime: processor time of one thread, the shortest
of ``--runs``. Results go to robustness.json beside this script, a row for each model. Needs ``torch`` (last run with 2.13).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.data import fixed_batch
from onnxprune.evaluate import differentiated
from onnxprune.graph import load
from onnxprune.runtime import Session
from onnxprune.shapes import infer

HERE = Path(__file__).parent
SHARES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
ATTACKS: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "pgd": {"attack": "pgd"},
    "pgd, l2": {"attack": "pgd", "norm": "l2"},
}
BATCH, STEPS = 64, 10
Limits = tuple[float, float]


def _plain(a: dict[str, Any]) -> tuple[int, ...]:
    """Padding that is the same on both sides."""
    pads = a.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:] or a.get("auto_pad", b"NOTSET") != b"NOTSET" or a.get("ceil_mode"):
        raise NotImplementedError(f"padding {a}")
    return tuple(pads[:2])


def _max_pool(x: Any, a: dict[str, Any]) -> Any:
    return F.max_pool2d(x, a["kernel_shape"], a.get("strides", 1), _plain(a))


def _average_pool(x: Any, a: dict[str, Any]) -> Any:
    return F.avg_pool2d(x, a["kernel_shape"], a.get("strides", 1), _plain(a), count_include_pad=bool(a.get("count_include_pad")))


def _conv(x: Any, a: dict[str, Any], w: Any, b: Any = None) -> Any:
    return F.conv2d(x, w, b, a.get("strides", 1), _plain(a), a.get("dilations", 1), a.get("group", 1))


def _gemm(x: Any, a: dict[str, Any], w: Any, b: Any = 0.0) -> Any:
    return a.get("alpha", 1.0) * x @ (w.T if a.get("transB") else w) + a.get("beta", 1.0) * b


def _slice(x: Any, a: dict[str, Any], starts: Any, ends: Any, axes: Any, steps: Any) -> Any:
    for start, end, axis, step in zip(*(t.tolist() for t in (starts, ends, axes, steps)), strict=True):
        x = x.index_select(axis, torch.tensor(range(x.shape[axis])[start:end:step]))
    return x


def _pad(x: Any, a: dict[str, Any], pads: Any, value: Any = 0.0) -> Any:
    sizes = pads.reshape(2, -1).T.flip(0).flatten().tolist()
    return F.pad(x, sizes, value=float(value))


def _filled(shape: Any, a: dict[str, Any]) -> Any:
    return torch.full(shape.tolist(), numpy_helper.to_array(a["value"]).item())


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda x, a, y: x + y,
    "AveragePool": _average_pool,
    "Cast": lambda x, a: x,
    "Concat": lambda x, a, *others: torch.cat([x, *others], a["axis"]),
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "Flatten": lambda x, a: x.flatten(1),
    "Gather": lambda x, a, i: x[i],
    "Gemm": _gemm,
    "MatMul": lambda x, a, y: x @ y,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Relu": lambda x, a: x.relu(),
    "Reshape": lambda x, a, shape: x.reshape(shape.tolist()),
    "Shape": lambda x, a: torch.tensor(x.shape),
    "Slice": _slice,
    "Transpose": lambda x, a: x.permute(a["perm"]),
    "Unsqueeze": lambda x, a, axes: x.unsqueeze(int(axes)),
}


def tensor(values: np.ndarray) -> Any:
    """In torch."""
    return torch.tensor(np.array(values))


class Reference:
    """A network in torch."""

    def __init__(self, path: Path) -> None:
        self.graph = onnx.load(path).graph
        self.stored = {t.name: tensor(numpy_helper.to_array(t)) for t in self.graph.initializer}
        self.input = next(v.name for v in self.graph.input if v.name not in self.stored)

    def __call__(self, x: Any) -> Any:
        """Logits."""
        values = {**self.stored, self.input: x}
        for node in self.graph.node:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                values[node.output[0]] = tensor(numpy_helper.to_array(attributes["value"]))
                continue
            first, *others = (values[name] for name in node.input if name)
            values[node.output[0]] = OPERATORS[node.op_type](first, attributes, *others)
        return values[self.graph.output[0].name]

    def gradient(self, x: Any, labels: Any) -> Any:
        """Of the cross-entropy."""
        given = x.clone().requires_grad_()
        F.cross_entropy(self(given).double(), labels, reduction="sum").backward()
        return given.grad

    def right(self, x: Any, labels: Any) -> Any:
        """Which samples are classified right."""
        with torch.no_grad():
            return self(x).argmax(1) == labels

    def robust(self, x: Any, labels: Any, epsilons: Sequence[float], limits: Limits, steps: int, norm: str) -> list[int]:
        """How many samples are right before the attack and after every step of it, for each epsilon."""
        clean, first, counts = self.right(x, labels), self.gradient(x, labels), []
        for epsilon in epsilons:
            moved, right, size = x, clean, epsilon if steps == 1 else 2.5 * epsilon / steps
            for step in range(steps):
                slope = self.gradient(moved, labels) if step else first
                if norm == "linf":
                    change = (moved + size * slope.sign() - x).clamp(-epsilon, epsilon)
                else:
                    change = moved + size * slope / self.length(slope).clamp_min(1e-30) - x
                    change = change * (epsilon / self.length(change).clamp_min(1e-30)).clamp_max(1)
                moved = (x + change).clamp(*limits)
                right = right & self.right(moved, labels)
            counts.append(int(right.sum()))
        return counts

    @staticmethod
    def length(x: Any) -> Any:
        """Of each sample, in a shape that multiplies it."""
        return x.double().flatten(1).norm(dim=1).float().reshape(-1, 1, 1, 1)[(...,) + (0,) * (4 - x.ndim)]


def cost(path: Path, x: np.ndarray, labels: np.ndarray, runs: int) -> float:
    """Gradients of some samples over a forward pass of them."""
    graph = load(path)
    inputs = {graph.inputs[0].name: np.resize(x, (fixed_batch(graph.inputs) or BATCH, *x.shape[1:]))}
    backward = differentiated(graph, infer(graph), list(inputs))
    feeds = backward.feeds(inputs, np.resize(labels, len(next(iter(inputs.values())))))
    sessions = [Session(backward.model), Session(graph.assemble().ready())]
    timed: list[list[float]] = [[], []]
    for _ in range(runs):
        for seconds, session, given in zip(timed, sessions, (feeds, inputs), strict=True):
            start = time.process_time()
            session.run(given)
            seconds.append(time.process_time() - start)
    return min(timed[0]) / min(timed[1])


def measure(path: Path, x: np.ndarray, labels: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """One network's row."""
    low, high = float(x.min()), float(x.max())
    network, row = Reference(path), {"values": x[0].size, "range": [low, high]}
    for name, settings in ATTACKS.items():
        norm, steps = settings.get("norm", "linf"), STEPS if settings else 1
        unit = (high - low) * (x[0].size ** 0.5 / 4 if norm == "l2" else 1)
        epsilons = [share * unit for share in (SHARES[::2] if settings else SHARES)]
        if settings:
            x, labels = x[: options.pgd], labels[: options.pgd]
        found = onnxprune.Evaluator(epsilons, gradient="graph", clip=(low, high), **settings).evaluate(path, (x, labels))
        row[f"{name}: samples"], row[f"{name}: accuracy"] = len(x), found.accuracy
        counts = np.zeros(len(epsilons))
        for rows in np.array_split(np.arange(len(x)), -(-len(x) // BATCH)):
            given = tensor(x[rows]), tensor(labels[rows])
            counts += network.robust(*given, epsilons, (low, high), steps, norm)
        shares = {
            "graph": {f"{e:.4g}": share for e, share in found.robust_accuracy.items()},
            "torch": {f"{e:.4g}": count / len(x) for e, count in zip(epsilons, counts, strict=True)},
        }
        row[name] = shares
        row[f"{name}: largest gap in points"] = 100 * max(
            abs(a - b) for a, b in zip(shares["graph"].values(), shares["torch"].values(), strict=True)
        )
        print(path.stem, name, *(f"{e}: {a:.3f} {shares['torch'][e]:.3f}" for e, a in shares["graph"].items()), flush=True)
    if options.differences:
        few = x[: options.differences], labels[: options.differences]
        epsilons, all_passes = [share * (high - low) for share in SHARES], 2 * x[0].size * len(few[0])
        row["finite differences"] = {"samples": len(few[0])}
        for kind, gradients in {
            "graph": {"gradient": "graph"},
            **{f"1/{n} of the passes": {"gradient": "finite-difference", "budget": all_passes // n} for n in (1, 4, 16)},
        }.items():
            found = onnxprune.Evaluator(epsilons, **gradients).evaluate(path, few)
            row["finite differences"][kind] = {f"{e:.4g}": share for e, share in found.robust_accuracy.items()}
            print(path.stem, kind, *(f"{e:.4g}: {share:.3f}" for e, share in found.robust_accuracy.items()), flush=True)
    row["gradients over forward passes"] = cost(path, x, labels, options.runs)
    print(path.stem, f"gradients cost {row['gradients over forward passes']:.2f} forward passes", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--pgd", type=int, default=200)
    parser.add_argument("--differences", type=int, default=0)
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    with np.load(options.data) as archive:
        labels = archive["labels"][: options.samples]
        x = next(archive[name] for name in archive.files if name != "labels")[: options.samples]
    target = HERE / "robustness.json"
    rows = json.loads(target.read_text()) if target.exists() else {}
    rows[options.model.stem] = measure(options.model, x, labels, options)
    target.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
