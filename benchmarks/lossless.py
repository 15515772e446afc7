"""What can leave real models at no cost, and whether what is made to cost nothing leaves, and nothing else.

    python benchmarks/lossless.py FOLDER [FOLDER ...] [--halve MODEL ...]

For every model of the folders, what ``--free`` finds by itself. For every model after ``--halve``: filters, biases and
scales of a random half of each group's channels are set to zero; *exact* if those leave, and no others (told by the plan,
index by index). In both cases the package's oracle compares with the original in onnxruntime. Results go to lossless.json
and lossless.md beside this script; each folder is a section, updated in place.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

import onnxprune
from onnxprune.channels import analyse
from onnxprune.graph import load
from onnxprune.lossless import KINDS
from onnxprune.runtime import quiet

HERE = Path(__file__).parent
Zeroed = dict[tuple[str, int], set[int]]


def find(source: Path | ModelProto, name: str) -> tuple[dict[str, Any], onnxprune.Result | None]:
    """Remove what is free from a model; a row of the table."""
    start = time.perf_counter()
    try:
        result = onnxprune.prune(source, ratio=0, free=True)
    except onnxprune.OnnxpruneError as error:
        broken = isinstance(error, onnxprune.VerificationError)
        return {"model": name, "verdict": "BROKEN" if broken else "refused", "why": str(error)}, None
    report = result.report
    row: dict[str, Any] = {"model": name, "channels": sum(r.group.size for r in report.groups)}
    row |= {kind: sum(r.counts[k] for r in report.free or ()) for k, kind in enumerate(KINDS)}
    row["parameters"] = report.before.parameters
    row["parameters_left"] = report.after.parameters / report.before.parameters if report.before.parameters else 1.0
    row["error"] = report.verification.max_rel_error if report.verification else 0.0
    row |= {"free_seconds": round(report.elapsed["free"], 2), "seconds": round(time.perf_counter() - start, 2)}
    return row | {"verdict": "found" if report.free else "none", "why": ""}, result


def halved(path: Path, seed: int = 0) -> tuple[ModelProto, Zeroed]:
    """The model with half of every group's channels zero, and which indices of which axes they are made at."""
    model = onnx.load(path)
    tensors = {t.name: t for t in model.graph.initializer}
    tensors |= {n.output[0]: a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"}
    values: dict[str, np.ndarray[Any, Any]] = {}
    zeroed: Zeroed = {}
    rng = np.random.default_rng(seed)
    for group in analyse(load(model)).groups:
        chosen = rng.choice(group.size, group.size // 2, replace=False)
        for member in group.members:
            tensor, axis = member.site.tensor, member.site.axis
            shape = tensors[tensor].dims
            if member.producer or max(shape) == np.prod(shape):
                gone = member.positions[np.isin(member.channels, chosen)]
                array = values.setdefault(tensor, numpy_helper.to_array(tensors[tensor]).copy())
                np.moveaxis(array, axis, 0)[gone] = 0
                zeroed.setdefault((tensor, axis), set()).update(gone.tolist())
    for tensor, array in values.items():
        tensors[tensor].CopyFrom(numpy_helper.from_array(array, tensors[tensor].name))
    return model, {site: gone for site, gone in zeroed.items() if gone}


def halve(path: Path) -> dict[str, Any]:
    """Whether exactly that half leaves."""
    model, zeroed = halved(path)
    row, result = find(model, path.name)
    if result is None:
        return row
    removed = {(s.tensor, s.axis): set(range(s.of)) - set(s.keep) for s in result.plan.sites}
    wrong = [site for site, gone in zeroed.items() if removed.get(site) != gone]
    if result.plan.edits or result.plan.copies or wrong:
        return row | {"verdict": "MORE OR LESS", "why": f"{len(wrong)} of {len(zeroed)} axes lose others: {wrong[:1]}"}
    return row | {"verdict": "exact"}


def markdown(sections: dict[str, list[dict[str, Any]]]) -> str:
    """The tables for people."""
    lines = ["# What is free", "", "Made by `python benchmarks/lossless.py`; *error*: largest difference from the original in"]
    lines += [
        "onnxruntime, relative to the output's scale; *search*: seconds of analysis and search, *all*: with the oracle.",
        "",
    ]
    for name, rows in sections.items():
        verdicts = [r["verdict"] for r in rows]
        said = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
        lines += [f"## {name}: {len(rows)} models, {said}", ""]
        lines += [f"| model | verdict | channels | {' | '.join(KINDS)} | parameters | left | error | search | all |"]
        lines += ["|---|---|" + "--:|" * (len(KINDS) + 6)]
        for r in rows:
            if "channels" not in r:
                why = r["why"].replace("|", "\\|")
                lines.append(f"| {r['model']} | {r['verdict']} ({why}) |" + " |" * (len(KINDS) + 6))
                continue
            counts = " | ".join(f"{r[kind]:,}" if r[kind] else "" for kind in KINDS)
            size = f"{r['parameters']:,} | {r['parameters_left']:.4f} | {r['error']:.0e}"
            cells = f"{r['channels']:,} | {counts} | {size} | {r['free_seconds']:.1f} | {r['seconds']:.1f}"
            lines.append(f"| {r['model']} | {r['verdict']}{': ' * bool(r['why'])}{r['why']} | {cells} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--halve", nargs="*", type=Path, default=[])
    options = parser.parse_args()
    quiet()
    store = HERE / "lossless.json"
    sections: dict[str, list[dict[str, Any]]] = json.loads(store.read_text()) if store.exists() else {}
    tasks = {folder.name: [(path, False) for path in sorted(folder.glob("*.onnx"))] for folder in options.folders}
    if options.halve:
        tasks["half of the channels zero"] = [(path, True) for path in options.halve]
    for name, paths in tasks.items():
        rows = []
        for path, half in paths:
            rows.append(halve(path) if half else find(path, path.name)[0])
            print({k: v for k, v in rows[-1].items() if k != "why"}, rows[-1]["why"][:80], flush=True)
        sections[name] = rows
        store.write_text(json.dumps(sections, indent=1) + "\n")
        (HERE / "lossless.md").write_text(markdown(sections))
    sys.exit(any(r["verdict"] in ("BROKEN", "MORE OR LESS") for name in tasks for r in sections[name]))


if __name__ == "__main__":
    main()
