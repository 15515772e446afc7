"""Unstructured pruning: what it does to trained networks, what zeros save, and that every model comes back.

    python benchmarks/sparsify.py --models FOLDER --zoo FOLDER --prepared FOLDER [--only STEP ...]

``--models``: trained by others, ``NAME.onnx``; ``--prepared``: their data, ``NAME.calib.npz`` (no labels; chooses weights) and
``NAME.eval.npz`` (judges); ``--zoo``: small graphs by many exporters. Steps: ``accuracy`` (sweeps over sparsities by element,
kernel and filter; DWP's table and picture), ``store`` (bytes and latency by how zeros are stored), ``restore`` (every model at
0.5 by element, kernel and filter: it runs, and comes back byte for byte). All runs are of the command line.
Writes ``sparsify.json``, ``sparsify.md`` and ``sparsify-NAME.svg`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from onnxprune.report import draw_shares

HERE = Path(__file__).parent
GRANULARITIES = ("element", "kernel", "filter")
SHARES = {
    "resnet20_cifar10": {"element": (0.3, 0.5, 0.6, 0.7), "kernel": (0.1, 0.2, 0.3, 0.5), "filter": (0.02, 0.05)},
    "resnet56_cifar10": {"element": (0.5,), "kernel": (0.3,), "filter": (0.05,)},  # which had no part in choosing a way
}
WAYS = {
    "magnitude": (),
    "magnitude, mean": ("--normalise", "mean"),
    "magnitude, a threshold for each layer": ("--scope", "layer"),
    "magnitude, layer": ("--normalise", "layer"),
    "activation, layer": ("--criterion", "activation", "--normalise", "layer"),
    "relative, layer": ("--criterion", "relative", "--normalise", "layer"),
    "taylor": ("--criterion", "taylor"),
    "gradient": ("--criterion", "gradient"),
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


def command(*arguments: object) -> str:
    """Run onnxprune; "" if all is well, or what it says."""
    done = subprocess.run([sys.executable, "-m", "onnxprune", *map(str, arguments)], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"


def accuracy(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Any]]:
    out, report = folder / "out.onnx", folder / "report.json"
    for name, wanted in SHARES.items():
        model, calib, judge = (
            given.models / f"{name}.onnx",
            given.prepared / f"{name}.calib.npz",
            given.prepared / f"{name}.eval.npz",
        )
        rows: dict[str, Any] = {"original": judged(model, judge, report)}
        for granularity, shares in wanted.items():
            for way, options in WAYS.items():
                if granularity == "element" and way == "magnitude, mean":  # the same as without
                    continue
                for share in shares:
                    line = ("--sparsity", share, "--granularity", granularity, *options, "--no-sidecar", "--report", report)
                    data = ("--data", calib) if "--criterion" in options else ()
                    said = command("sparsify", model, "-o", out, *line, *data)
                    if said:
                        raise SystemExit(said)
                    zeros = json.loads(report.read_text())["sparsity"]["after"]
                    found = {"accuracy": judged(out, judge, report), "zeros": round(zeros, 4)}
                    rows.setdefault(granularity, {}).setdefault(way, {})[str(share)] = found
        yield name, rows


def judged(model: Path, data: Path, report: Path) -> float:
    """Accuracy on data."""
    said = command("evaluate", model, "--data", data, "--report", report)
    if said:
        raise SystemExit(said)
    return round(json.loads(report.read_text())["metrics"]["accuracy"], 4)


def store(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Any]]:
    """Bytes and latency, at several sparsities, in every way of storing."""
    out, report = folder / "out.onnx", folder / "report.json"
    for name in list(SHARES)[:1]:
        rows = []
        for share in (0.5, 0.7, 0.9):
            for how in STORES:
                said = command(
                    *("sparsify", given.models / f"{name}.onnx", "-o", out, "--sparsity", share, "--normalise", "layer"),
                    *("--store", how, "--report", report),
                )
                if said:
                    raise SystemExit(said)
                read = json.loads(report.read_text())
                kept = {key: read[key] for key in ("bytes", "gzip", "latency_ms", "nonzeros")}
                sidecar = out.with_name(out.name + ".dense.npz").stat().st_size
                rows.append({"sparsity": share, "store": how, **kept, "sidecar_bytes": sidecar})
        yield name, rows


def restore(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Any]]:
    """Every model by element, kernel and filter, and back."""
    out, back, report = folder / "out.onnx", folder / "back.onnx", folder / "report.json"
    for path in (*sorted(given.models.glob("*.onnx")), *sorted(given.zoo.glob("*.onnx"))):
        row: dict[str, Any] = {}
        for granularity in GRANULARITIES:
            said = command("sparsify", path, "-o", out, "--sparsity", 0.5, "--granularity", granularity, "--report", report)
            if said:
                row[granularity] = {"refused": said}
                continue
            read = json.loads(report.read_text())
            said = command("restore", out, "-o", back)
            identical = not said and back.read_bytes() == path.read_bytes()
            row[granularity] = {
                "zeros": round(read["sparsity"]["after"], 4),
                "tensors": len(read["layers"]),
                "restored": said or ("file" if identical else "weights"),
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
