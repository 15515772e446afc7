"""Unstructured pruning: what it does to trained networks, what zeros save, and that every model comes back.

    python benchmarks/sparsify.py --models FOLDER --zoo FOLDER --prepared FOLDER [--only STEP ...]

``--models``: trained by others, ``NAME.onnx``; ``--prepared``: their data, ``NAME.calib.npz`` (no labels; chooses weights) and
``NAME.eval.npz`` (judges); ``--zoo``: small graphs by many exporters. Steps: ``accuracy`` (sweeps over sparsities by element,
kernel and filter; DWP's table and picture), ``store`` (bytes and latency by how zeros are stored), ``restore`` (every model at
0.5 by element, kernel and filter: it runs, and comes back byte for byte).
Writes ``sparsify.json``, ``sparsify.md`` and ``sparsify-NAME.svg`` beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

import onnxprune
from onnxprune.report import draw_shares

HERE = Path(__file__).parent
GRANULARITIES = ("element", "kernel", "filter")
SHARES = {
    "resnet20_cifar10": {"element": (0.3, 0.5, 0.6, 0.7), "kernel": (0.1, 0.2, 0.3, 0.5), "filter": (0.02, 0.05)},
    "resnet56_cifar10": {"element": (0.5,), "kernel": (0.3,), "filter": (0.05,)},  # which had no part in choosing a way
}
WAYS: dict[str, dict[str, Any]] = {
    "magnitude": {},
    "magnitude, mean": {"normalise": "mean"},
    "magnitude, a threshold for each layer": {"scope": "layer"},
    "magnitude, layer": {"normalise": "layer"},
    "activation, layer": {"criterion": "activation", "normalise": "layer"},
    "relative, layer": {"criterion": "relative", "normalise": "layer"},
    "taylor": {"criterion": "taylor"},
    "gradient": {"criterion": "gradient"},
}
STORES = ("dense", "sparse", "compressed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("models", "zoo", "prepared"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    steps = ("accuracy", "store", "restore")
    parser.add_argument("--only", nargs="*", choices=steps, default=steps)
    given = parser.parse_args()
    target = HERE / "sparsify.json"
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    with TemporaryDirectory() as folder:
        for step in given.only:
            run = {"accuracy": accuracy, "store": store, "restore": restore}[step]
            for name, value in run(given, Path(folder)):
                found.setdefault(step, {})[name] = value
                target.write_text(json.dumps(found, indent=1) + "\n")
                print(step, name, flush=True)
    (HERE / "sparsify.md").write_text(table(found))
    for name, rows in list(found.get("accuracy", {}).items())[:1]:
        picture(name, rows)


def accuracy(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Any]]:
    for name, wanted in SHARES.items():
        model = given.models / f"{name}.onnx"
        calib, judge = (dict(np.load(given.prepared / f"{name}.{part}.npz")) for part in ("calib", "eval"))
        rows: dict[str, Any] = {"original": judged(onnx.load(model), judge)}
        for granularity, shares in wanted.items():
            for way, options in WAYS.items():
                if granularity == "element" and way == "magnitude, mean":  # the same as without
                    continue
                for share in shares:
                    data = calib if "criterion" in options else None
                    result = onnxprune.sparsify(model, share, granularity=granularity, data=data, **options)
                    found = {"accuracy": judged(result.model, judge), "zeros": round(result.report.sparsity[1], 4)}
                    rows.setdefault(granularity, {}).setdefault(way, {})[str(share)] = found
                    print(name, granularity, way, share, found, flush=True)
        yield name, rows


def judged(model: onnx.ModelProto, data: dict[str, Any]) -> float:
    """Accuracy on data."""
    return round(onnxprune.Evaluator(attack=None).evaluate(model, data).accuracy or 0.0, 4)


def store(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Any]]:
    """Bytes and latency, at several sparsities, in every way of storing."""
    name, rows = next(iter(SHARES)), []
    for share in (0.5, 0.7, 0.9):
        for how in STORES:
            result = onnxprune.sparsify(given.models / f"{name}.onnx", share, normalise="layer", store=how)
            result.save(folder / "out.onnx", sidecar=folder / "out.npz")
            read = result.report.to_dict()
            kept = {key: read[key] for key in ("bytes", "gzip", "latency_ms", "nonzeros")}
            rows.append({"sparsity": share, "store": how, **kept, "sidecar_bytes": (folder / "out.npz").stat().st_size})
    yield name, rows


def restore(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Any]]:
    """Every model by element, kernel and filter, and back."""
    out, back = folder / "out.onnx", folder / "back.onnx"
    for path in (*sorted(given.models.glob("*.onnx")), *sorted(given.zoo.glob("*.onnx"))):
        row: dict[str, Any] = {}
        for granularity in GRANULARITIES:
            try:
                result = onnxprune.sparsify(path, 0.5, granularity=granularity)
                result.save(out)
                onnxprune.restore(out).save(back)
            except onnxprune.OnnxpruneError as error:
                row[granularity] = {"refused": str(error)}
                continue
            row[granularity] = {
                "zeros": round(result.report.sparsity[1], 4),
                "tensors": len(result.report.layers),
                "restored": "file" if back.read_bytes() == path.read_bytes() else "weights",
            }
        yield path.stem, row


def table(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    lines = ["# Unstructured pruning", "", "Made by `benchmarks/sparsify.py`."]
    for name, rows in found.get("accuracy", {}).items():
        lines += ["", f"## {name}: accuracy, {100 * rows['original']:.1f} % dense"]
        for granularity, shares in SHARES[name].items():
            lines += ["", f"| {granularity}s zeroed | " + " | ".join(map(str, shares)) + " |", "|---" * (1 + len(shares)) + "|"]
            for way, values in rows[granularity].items():
                cells = [f"{100 * values[str(s)]['accuracy']:.1f}" for s in shares]
                lines.append(f"| {way} | " + " | ".join(cells) + " |")
    for name, rows in found.get("store", {}).items():
        lines += [
            "",
            f"## {name}: bytes and latency",
            "",
            "| sparsity | store | file | gzip | sidecar | latency ratio |",
            "|---" * 6 + "|",
        ]
        for row in rows:
            numbers = (row["bytes"]["after"], row["gzip"]["after"], row["sidecar_bytes"])
            cells = (str(row["sparsity"]), row["store"], *(f"{n:,}" for n in numbers), f"{row['latency_ms']['ratio']:.2f}")
            lines.append("| " + " | ".join(cells) + " |")
    rows = found.get("restore", {})
    if rows:
        lines += ["", "## Every model at 0.5", "", "| model | element | kernel | filter | restored |", "|---" * 5 + "|"]
        for name, row in rows.items():
            cells = [row[g].get("refused") or f"{100 * row[g]['zeros']:.0f} %" for g in GRANULARITIES]
            back = sorted({row[g].get("restored", "-") for g in GRANULARITIES})
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {', '.join(back)} |")
    return "\n".join(lines) + "\n"


def picture(name: str, rows: dict[str, Any]) -> None:
    """Accuracy over the share of elements that is zero, as DWP draws it."""
    shares = SHARES[name]["element"]
    curves = {way: [rows["original"], *(values[str(s)]["accuracy"] for s in shares)] for way, values in rows["element"].items()}
    draw_shares((0.0, *shares), curves, HERE / f"sparsify-{name}.svg", title=name, what="weights zeroed")


if __name__ == "__main__":
    main()
