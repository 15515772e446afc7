"""Pruned networks before and after fine-tuning, on samples that were neither trained on nor held out.

    python benchmarks/finetune.py FOLDER [--only CASE ...] [--seeds 1]

FOLDER/models holds the networks, FOLDER/raw the images (uint8, ``x`` and ``y``). Each network is pruned and fine-tuned as the
command line would do it; what is not named in a case is the default. Reported are accuracies on the test images, wall time and
CPU time of the training (both cores together; other work on the machine lengthens the first). Results are added to
finetune.json beside this script.
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

import onnxprune
from onnxprune.runtime import quiet

HERE = Path(__file__).parent
RESULTS = HERE / "finetune.json"
Arrays = dict[str, np.ndarray]


def cifar(images: np.ndarray) -> np.ndarray:
    mean, spread = (np.array(v, np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((images.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / spread).astype(np.float32)


def mnist(images: np.ndarray) -> np.ndarray:
    return (images.reshape(-1, 784, 1) / 255).astype(np.float32)


SETS: dict[str, tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = {
    "resnet20_cifar10": ("cifar10_lossless_train4000", "cifar10_lossless_test", cifar),
    "mnistfc_256x4": ("mnist_train20k", "mnist_test", mnist),
}
_CIFAR = {"augment": ("flip", "shift"), "batch": 32, "epochs": 24}
HALF_MACS = {"ratio": 0.32, "criterion": "impact"}
"""Leaves just under half of the multiply-accumulates of ResNet-20."""

CASES: dict[str, dict[str, Any]] = {
    "resnet20, unlabelled": {"model": "resnet20_cifar10", "prune": HALF_MACS, "original": True, "labels": False, "train": _CIFAR},
    "resnet20, labels": {"model": "resnet20_cifar10", "prune": HALF_MACS, "original": False, "labels": True, "train": _CIFAR},
    "resnet20, both": {"model": "resnet20_cifar10", "prune": HALF_MACS, "original": True, "labels": True, "train": _CIFAR},
    **{
        f"mlp, {name}": {
            "model": "mnistfc_256x4",
            "prune": {"ratio": 0.5, "criterion": "l1"},
            "original": original,
            "labels": labels,
            "train": {"epochs": 10},
        }
        for name, original, labels in (("unlabelled", True, False), ("labels", False, True), ("both", True, True))
    },
}


def arrays(folder: Path, name: str, port: str, prepare: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    with np.load(folder / "raw" / f"{name}.npz") as archive:
        return {port: prepare(archive["x"]), "labels": archive["y"].astype(np.int64)}


def measured(model: Any, data: Arrays) -> float:
    found = onnxprune.Evaluator(()).evaluate(model, data).accuracy
    assert found is not None
    return found


def run(folder: Path, case: dict[str, Any], seed: int) -> dict[str, Any]:
    path = folder / "models" / f"{case['model']}.onnx"
    train, test, prepare = SETS[case["model"]]
    port = onnxprune.graph.load(path).inputs[0].name
    data, judged = (arrays(folder, name, port, prepare) for name in (train, test))
    if not case["labels"]:
        del data["labels"]
    pruned = onnxprune.prune(path, **case["prune"])
    size = pruned.report
    wall, cpu = time.perf_counter(), time.process_time()
    made = onnxprune.finetune(
        pruned.model,
        data,
        original=path if case["original"] else None,
        seed=seed,
        watch=lambda epoch: print(epoch, flush=True),
        **case["train"],
    )
    return {
        "macs_left": size.after.macs / size.before.macs,
        "parameters_left": size.after.parameters / size.before.parameters,
        "accuracy": {"original": measured(path, judged), "pruned": measured(pruned.model, judged)}
        | {"fine-tuned": measured(made.model, judged)},
        "samples": len(data[port]),
        "test_samples": len(judged[port]),
        "best": made.report.best,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    quiet()
    for name in options.only:
        found = [run(options.folder, CASES[name], seed) for seed in range(options.seeds)]
        middle = sorted(found, key=lambda row: row["accuracy"]["fine-tuned"])[len(found) // 2]
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cores": os.cpu_count(), "cases": {}}
        spread = [row["accuracy"]["fine-tuned"] for row in found]
        results["cases"][name] = CASES[name] | middle | {"by_seed": spread}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(name, json.dumps(middle), flush=True)


if __name__ == "__main__":
    main()
