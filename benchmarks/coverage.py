"""Prune every model of some folders from the command line and write down what became of each.

    python benchmarks/coverage.py FOLDER [FOLDER ...] [--ratio 0.5] [--mixing]

Verdicts: *exact* (cut, and equal to the masked original), *runs* (with ``--mixing``: some cuts change the remaining values
and are marked as such, the others are proved), *whole* (nothing could be cut; the largest cause is named),
*refused* (with the message), *BROKEN*. Besides the package's own oracle, the written file is run in onnxruntime on random
inputs and its outputs' shapes are compared with the original's. Each folder is a section of coverage.json and of
coverage.md beside this script, which are updated in place.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

ort.set_default_logger_severity(4)
HERE = Path(__file__).parent
SIZES = {0: 2}
"""Dynamic dimensions are 2 on the first axis, 64 elsewhere (16 where the rank is below 4)."""


def judge(path: Path, ratio: float, folder: Path, options: list[str]) -> dict[str, Any]:
    """Prune one model and look at the result."""
    out, report = folder / "out.onnx", folder / "report.json"
    out.unlink(missing_ok=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "onnxprune", "prune", str(path), "-o", str(out), "--ratio", str(ratio), *options]
    done = subprocess.run([*command, "--report", str(report)], capture_output=True, text=True, timeout=900, check=False)
    row: dict[str, Any] = {"model": path.name, "seconds": round(time.perf_counter() - start, 2)}
    if done.returncode:
        kind = "BROKEN" if "Traceback" in done.stderr or done.returncode != 1 or out.exists() else "refused"
        return row | {"verdict": kind, "why": done.stderr.strip().splitlines()[-1]}
    facts = json.loads(report.read_text())
    before, after = facts["model"]["before"], facts["model"]["after"]
    for name in ("parameters", "macs", "bytes"):
        row[name] = before[name]
        row[f"{name}_left"] = after[name] / before[name] if before[name] else 1.0
    row["frozen"] = largest_cause(facts)
    row["inner_left"] = inner(out) / max(1, inner(path))
    cut = any(g["kept"] < g["channels"] for g in facts["groups"])
    problem = differs(path, out) if cut else None
    if problem or not facts["verification"]["passed"]:
        return row | {"verdict": "BROKEN", "why": problem or "the oracle failed"}
    exact = all(g["exact"] for g in facts["groups"] if g["kept"] < g["channels"])
    return row | {"verdict": ("exact" if exact else "runs") if cut else "whole", "why": "" if cut else row["frozen"]}


def inner(path: Path) -> int:
    """Parameters apart from embeddings.

    These are tables that rows are taken of, what makes scores of the same vocabulary, the filters that read a picture in
    patches, and positions and classes that are added or joined to the sequence.
    """
    graph = onnx.load(path).graph
    tensors = {t.name: (tuple(t.dims), t.data_type) for t in graph.initializer}
    tables = {n.input[0] for n in graph.node if n.op_type == "Gather" and n.input[0] in tensors}
    words = max((tensors[t][0][0] for t in tables if len(tensors[t][0]) == 2), default=-1)
    scores = {i for n in graph.node if n.op_type in ("MatMul", "Gemm") for i in n.input[1:] if words in tensors.get(i, ((),))[0]}
    patches = {
        i
        for n in graph.node
        if n.op_type == "Conv" and n.input[0] in {p.name for p in graph.input}
        for i in n.input[1:]
        if any(a.name == "strides" and min(a.ints) > 2 for a in n.attribute)
    }
    added = {name for name, (shape, _) in tensors.items() if len(shape) == 3 and shape[0] == 1}
    outer = tables | scores | patches | added
    kept = [shape for name, (shape, kind) in tensors.items() if kind in (1, 2, 3, 10, 11, 16) and name not in outer]
    return sum(int(np.prod(shape)) for shape in kept)


def largest_cause(facts: dict[str, Any]) -> str:
    """Which node freezes most parameters, and what share of all that is."""
    held: dict[str, int] = {}
    for f in facts["frozen"]:
        held[f"{f['reason']} ({f['node']})"] = held.get(f"{f['reason']} ({f['node']})", 0) + f["parameters"]
    if not held:
        return ""
    cause = max(held, key=held.__getitem__)
    return f"{100 * held[cause] / max(1, facts['model']['before']['parameters']):.0f} %: {cause}"


def differs(original: Path, pruned: Path) -> str | None:
    """Run both on the same random input; None if the outputs have the same shapes."""
    rng = np.random.default_rng(0)
    session = ort.InferenceSession(str(original), providers=["CPUExecutionProvider"])
    feeds = {i.name: random_input(i, rng) for i in session.get_inputs()}
    try:
        one = session.run(None, feeds)
    except Exception:  # inputs that depend on each other (caches, states): the package's own oracle has run it
        return None
    try:
        two = ort.InferenceSession(str(pruned), providers=["CPUExecutionProvider"]).run(None, feeds)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:120]}"
    shapes = [[getattr(x, "shape", None) for x in outputs] for outputs in (one, two)]
    return None if shapes[0] == shapes[1] else f"outputs have shapes {shapes[1]} instead of {shapes[0]}"


def random_input(port: Any, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    rest = 64 if len(port.shape) >= 4 else 16
    shape = [d if isinstance(d, int) and d > 0 else SIZES.get(i, rest) for i, d in enumerate(port.shape)]
    if "float" in port.type or "double" in port.type:
        kind = np.float16 if "16" in port.type else np.float64 if "double" in port.type else np.float32
        return rng.standard_normal(shape).astype(kind)
    if "bool" in port.type:
        return np.ones(shape, np.bool_)
    return rng.integers(0, 2, shape).astype(np.int64 if "64" in port.type else np.int32)


def markdown(sections: dict[str, dict[str, Any]]) -> str:
    """The table for people."""
    lines = ["# Coverage", "", "Made by `python benchmarks/coverage.py`; seconds are whole processes, the oracle included.", ""]
    for name, section in sections.items():
        rows = section["rows"]
        counts = {v: sum(r["verdict"] == v for r in rows) for v in ("exact", "runs", "whole", "refused", "BROKEN")}
        said = ", ".join(f"{n} {v}" for v, n in counts.items())
        lines += [f"## {name} (ratio {section['ratio']}): {len(rows)} models, {said}", ""]
        lines += ["| model | verdict | parameters | left | without embeddings | MACs left | seconds | frozen most, or why |"]
        lines += ["|---|---|--:|--:|--:|--:|--:|---|"]
        for r in rows:
            left = (
                [f"{r['parameters']:,}", *(f"{r[k]:.3f}" for k in ("parameters_left", "inner_left", "macs_left"))]
                if "inner_left" in r
                else [""] * 4
            )
            why = (r["why"] or r.get("frozen", "")).replace("|", "\\|")
            lines.append(f"| {r['model']} | {r['verdict']} | {' | '.join(left)} | {r['seconds']:.1f} | {why} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--mixing", action="store_true")
    parser.add_argument("--only", default="*.onnx", help="which files of the folders")
    options = parser.parse_args()
    store = HERE / "coverage.json"
    sections: dict[str, dict[str, Any]] = json.loads(store.read_text()) if store.exists() else {}
    broken = 0
    for folder in options.folders:
        rows = []
        with tempfile.TemporaryDirectory() as scratch:
            for path in sorted(folder.glob(options.only)):
                rows.append(judge(path, options.ratio, Path(scratch), ["--mixing"] * options.mixing))
                r = rows[-1]
                print(
                    f"{r['model']:45s} {r['verdict']:8s} {r.get('parameters_left', 1):.3f} {r['seconds']:6.1f}s {r['why'][:80]}",
                    flush=True,
                )
        broken += sum(r["verdict"] == "BROKEN" for r in rows)
        sections[folder.name + " (mixing)" * options.mixing] = {"ratio": options.ratio, "rows": rows}
        store.write_text(json.dumps(sections, indent=1) + "\n")
        (HERE / "coverage.md").write_text(markdown(sections))
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
