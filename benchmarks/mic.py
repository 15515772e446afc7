"""The Pruning Engine's experiment: accuracy over the share of filters removed, by criterion, without retraining.

    python benchmarks/mic.py resnet20_cifar10.onnx --data FOLDER

Channels are chosen on ``FOLDER/<model>.calib.npz`` (without labels: the model's own classes stand in) and accuracy measured on
``FOLDER/<model>.eval.npz``. Ratios are what they say: of every group ``floor(n R)`` channels leave, residual ones included.
Random choices are the mean of three. Results go to mic.json beside this script.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from onnxprune import Sampler
from onnxprune.channels import analyse
from onnxprune.cost import cost
from onnxprune.data import read
from onnxprune.evaluate import accuracy, predict
from onnxprune.graph import load
from onnxprune.runtime import quiet
from onnxprune.shapes import infer
from onnxprune.surgery import apply

HERE = Path(__file__).parent
CRITERIA = ("l1", "kmeans-l1", "taylor", "kmeans-taylor", "kmeans-distance", "random")
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
SEEDS = {"random": (0, 1, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    quiet()
    graph, name = load(given.model), given.model.stem
    calibration, test = (read(given.data / f"{name}.{part}.npz", graph.inputs) for part in ("calib", "eval"))
    assert test.labels is not None, "accuracy needs labels"
    whole = cost(graph, infer(graph))
    base = accuracy(predict(graph.assemble().complete(), test, graph.inputs), test.labels)
    found: dict[str, dict[str, list[float]]] = {}
    left: dict[str, list[float]] = {"macs": [], "parameters": []}
    for compensate in ("none", "least-squares"):
        found[compensate] = {}
        for criterion in CRITERIA:
            lines = []
            for seed in SEEDS.get(criterion, (0,)):
                sampler = Sampler(criterion, compensate=compensate, seed=seed)
                sampler.look_at(calibration)
                start = sampler.start(graph, analyse)
                line = []
                for ratio in RATIOS:
                    standing = sampler.step(start, ratio, calibration)
                    cut = apply(standing.coupling, standing.removed).complete()
                    line.append(accuracy(predict(cut, test, graph.inputs), test.labels))
                    if len(left["macs"]) < len(RATIOS):
                        size = cost(load(cut), infer(load(cut)))
                        left["macs"].append(size.macs / whole.macs)
                        left["parameters"].append(size.parameters / whole.parameters)
                lines.append(line)
            found[compensate][criterion] = [round(float(a), 4) for a in np.mean(lines, axis=0)]
            print(compensate, criterion, found[compensate][criterion], flush=True)
    results = {
        "model": name,
        "samples": test.samples,
        "calibration": calibration.samples,
        "accuracy": round(base, 4),
        "ratios": list(RATIOS),
        "left": {part: [round(v, 4) for v in values] for part, values in left.items()},
        "by_compensation": found,
    }
    (HERE / "mic.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
