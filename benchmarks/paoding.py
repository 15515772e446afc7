"""PAODING's experiment on ONNX: four networks, 5 % of all channels at a time until half are gone, no data to choose by.

    python benchmarks/paoding.py FOLDER [--only NAME ...] [--epsilon E ...] [--samples N] [--budget N]

FOLDER has ``<name>.onnx`` and ``<name>.npz`` as ``train_paoding.py`` writes them. For each network the curves of parameters,
accuracy and robustness (FGSM) of the criterion ``impact``, and the accuracies of what it has to beat on the same weights:
removal by L1 norm, L1 with merging, merging by saliency. Results go to ``paoding.json``, ``paoding.md`` and
``paoding-<name>.svg`` beside this script. Robustness is measured on the first samples only. The paper: Meng et al. 2023,
section IV, figure 2.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import onnxprune
from onnxprune.report import Step, draw

HERE = Path(__file__).parent
STEP, RATIO = 0.05, 0.5
RIVALS = {
    "l1": {"criterion": "l1", "compensate": "none"},
    "l1, merged": {"criterion": "l1", "compensate": "merge"},
    "saliency": {"criterion": "saliency"},
}


def curve(model: Path, data: dict[str, np.ndarray], **options: Any) -> tuple[Step, ...]:
    return onnxprune.prune(model, ratio=RATIO, step=STEP, data=data, **options).report.steps


def measure(model: Path, epsilons: tuple[float, ...], samples: int, budget: int, interval: tuple[float, float]) -> dict[str, Any]:
    with np.load(model.with_suffix(".npz")) as archive:
        data = dict(archive)
    few = {name: values[:samples] for name, values in data.items()}
    start = time.process_time()
    steps = curve(model, data, criterion="impact", interval=interval)
    seconds = time.process_time() - start
    sampler = onnxprune.Sampler("impact", ratio=RATIO, interval=interval)
    pruner = onnxprune.Pruner(
        model, sampler=sampler, step=STEP, evaluator=onnxprune.Evaluator(epsilons, budget=budget if epsilons else None)
    )
    attacked = pruner.prune(few).report.steps
    rows = []
    for step, other in zip(steps, attacked, strict=True):
        left = step.parameters / steps[0].parameters
        rows.append(
            {"share": step.share, "left": left, "accuracy": step.accuracy, "agreement": step.agreement}
            | {"robust_accuracy": dict(other.robust_accuracy)}
        )
    rivals = {name: [s.accuracy for s in curve(model, data, **options)] for name, options in RIVALS.items()}
    merged = [Step(**{**s.to_dict(), "robust_accuracy": o.robust_accuracy}) for s, o in zip(steps, attacked, strict=True)]
    draw(merged, HERE / f"paoding-{model.stem}.svg", title=model.stem)
    return {"samples": len(data["labels"]), "attacked": samples, "cpu_s": seconds, "steps": rows, "rivals": rivals}


def table(name: str, found: dict[str, Any]) -> str:
    steps, epsilons = found["steps"], list(found["steps"][0]["robust_accuracy"])
    head = ["removed", "parameters left", "accuracy", "agreement", *(f"robust at {e}" for e in epsilons), *found["rivals"]]
    lines = [f"## {name}", "", "| " + " | ".join(head) + " |", "|" + "--:|" * len(head)]
    for k, step in enumerate(steps):
        agreement = "" if step["agreement"] is None else f"{100 * step['agreement']:.1f}"
        cells = [f"{100 * step['share']:.0f} %", f"{step['left']:.3f}", f"{100 * step['accuracy']:.1f}", agreement]
        cells += [f"{100 * step['robust_accuracy'][e]:.1f}" for e in epsilons]
        cells += [f"{100 * values[k]:.1f}" for values in found["rivals"].values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--epsilon", nargs="*", type=float, default=[0.01, 0.05, 0.1])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--budget", type=int, default=200_000)
    options = parser.parse_args()
    target = HERE / "paoding.json"
    results = json.loads(target.read_text()) if target.exists() else {}
    for model in sorted(options.folder.glob("*.onnx")):
        if options.only and model.stem not in options.only:
            continue
        with np.load(model.with_suffix(".npz")) as archive:
            (name,) = set(archive.files) - {"labels"}
            interval = (float(archive[name].min()), float(archive[name].max()))
        results[model.stem] = measure(model, tuple(options.epsilon), options.samples, options.budget, interval)
        print(table(model.stem, results[model.stem]), flush=True)
        target.write_text(json.dumps(results, indent=1) + "\n")
    intro = (
        "# PAODING's experiment\n\nCriterion `impact`, no data, 5 % of every layer's channels at a time. Accuracies in %; robust "
        "accuracy under FGSM on the first samples; the last columns: what else could be done with the same weights.\n"
    )
    (HERE / "paoding.md").write_text("\n".join([intro, *(table(n, r) + "\n" for n, r in results.items())]))


if __name__ == "__main__":
    main()
