"""FAIR-Pruner's experiment: every layer's count from one ToD level, without training afterwards.

    python benchmarks/fair.py --raw FOLDER --models FOLDER --prepared FOLDER --work FOLDER [--only STEP ...]

A small VGG with batch normalisation is trained on MNIST (20,000 images, the archive's test images set apart) and exported;
640 of its training images with their labels are what is measured on. Its scores are saved once, and pruned from at several
levels, as they are and with least squares, each judged on 2000 test images. Then trained models of others, on their own
calibration samples without labels (so that the classes are the models' own predictions): the counts of two ToD levels, at which
wasserstein, reconstruction and l1 choose the channels.

All runs are of the command line. Steps are ``train``, ``original`` (times network-pruner 2.16's ``get_metrics`` on the same
network and images, on one core), ``vgg``, and the names of the others' models; the first two need torch, and the second that
package (last run with torch 2.13). FOLDER of ``--raw`` holds mnist_train20k.npz and mnist_test.npz with ``x`` (images as bytes)
and ``y``; ``--models`` and ``--prepared`` the others' models, ``NAME.onnx``, and data, ``NAME.calib.npz`` and ``NAME.eval.npz``;
``--work`` is for what is made. Writes ``fair.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

LEVELS = (0.05, 0.1, 0.3)
OTHERS = (0.05, 0.3)
JUDGED = 500
"""Evaluation samples of the others' models at most."""

NAMES = (
    "mnist_cntk_op8",
    "mnistfc_256x4",
    "convnet_avgpool",
    "resnet20_cifar10",
    "resnet8_mlperf",
    "resnet_4b_cifar10",
    "vww_mobilenet",
    "squeezenet_dc",
    "textgenrnn",
)
MODES = ("none", "least-squares")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("raw", "models", "prepared", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=("train", "original", "vgg", *NAMES))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    target = Path(__file__).with_suffix(".json")
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    if "train" in given.only:
        train(given.raw, given.work)
    if "original" in given.only:
        found["network-pruner 2.16, processor seconds"] = original(given.work)
    if "vgg" in given.only:
        found["vgg"] = vgg(given.work)
    for name in (n for n in NAMES if n in given.only):
        found.setdefault("models", {})[name] = compared(name, given.models, given.prepared, given.work)
        target.write_text(json.dumps(found, indent=1) + "\n")
    target.write_text(json.dumps(found, indent=1) + "\n")


def pruned(model: Path, report: Path, *options: object) -> dict[str, Any]:
    """The report of a run from the command line that writes nothing else."""
    command = [sys.executable, "-m", "onnxprune", "prune", model, "--dry-run", "--report", report, *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return json.loads(report.read_text())


def row(report: dict[str, Any]) -> dict[str, Any]:
    """What is told of a run: what is left, as shares, how good it is, and the counts."""
    before, after = report["model"]["before"], report["model"]["after"]
    found = {what: round(after[what] / before[what], 4) for what in ("parameters", "macs")}
    metrics = {side: report["metrics"][side] for side in ("before", "after")}
    for what in ("accuracy", "agreement"):
        found |= {f"{what}_{side}": round(v[what], 4) for side, v in metrics.items() if what in v}
    return found | {"kept": {group["name"]: [group["kept"], group["channels"]] for group in report["groups"]}}


# a network of our own --------------------------------------------------------------------------------------------------


def vgg(work: Path) -> dict[str, Any]:
    """The network measured once for each place to look at, and pruned at several levels by three removal rankings."""
    model, calibration, test = (work / f"vgg{end}" for end in (".onnx", ".calib.npz", ".eval.npz"))
    report, found = work / "report.json", dict[str, Any]()
    for place in ("own", "after"):
        start = os.times()
        options = ("--scope", "tod", "--data", calibration, "--analysis", place, "--save-scores", work / f"{place}.scores.json")
        measured = pruned(model, report, *options)
        found[f"seconds, {place}"] = {
            "score": round(measured["elapsed_s"]["score"], 2),
            "processor, whole run": round(os.times().children_user - start.children_user, 2),
        }
    rankings = {
        "wasserstein": ("--scores", work / "own.scores.json"),
        "wasserstein, after": ("--scores", work / "after.scores.json"),
        "l1": ("--scores", work / "own.scores.json", "--criterion", "l1"),
    }
    for level in LEVELS:
        for ranking, options in rankings.items():
            both = found.setdefault(f"{level} {ranking}", {})
            for mode in MODES:
                tod = ("--scope", "tod", "--tod", level, *options, "--data", test, "--compensate", mode)
                result = pruned(model, report, *tod)
                both[mode] = row(result) | {"score_s": round(result["elapsed_s"]["score"], 4)}
                print(level, ranking, mode, {k: v for k, v in both[mode].items() if k != "kept"}, flush=True)
    return found


def train(raw: Path, work: Path) -> None:
    """Train and export the network, and write the images to measure on and those to judge by."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, labels = _images(raw / "mnist_train20k.npz")
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    rounds, batch = 4, 128
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds * (len(images) // batch))
    for _ in range(rounds):
        for rows in torch.randperm(len(images))[: len(images) // batch * batch].split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(torch.from_numpy(images[rows])), torch.from_numpy(labels[rows])).backward()
            optimizer.step()
            schedule.step()
    torch.save(net.state_dict(), work / "vgg.pt")
    sample = torch.zeros(1, 1, 28, 28)
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "batch"}, "y": {0: "batch"}}}
    torch.onnx.export(
        net.eval(), (sample,), work / "vgg.onnx", dynamo=False, opset_version=17, do_constant_folding=False, **names
    )
    np.savez(work / "vgg.calib.npz", x=images[:640], labels=labels[:640])
    rest, classes = _images(raw / "mnist_test.npz")
    np.savez(work / "vgg.eval.npz", x=rest[:2000], labels=classes[:2000])


def network() -> Any:
    """Four convolutions with batch normalisation, two dense layers, and the last: six layers that can be pruned."""
    from torch import nn

    layers: list[nn.Module] = []
    for inputs, outputs, last in ((1, 32, False), (32, 32, True), (32, 64, False), (64, 64, True)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if last else []
    layers += [nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers)


def original(work: Path) -> float:
    """Processor seconds of network-pruner's metrics of the same network on the same images."""
    import torch
    from Network_Pruner.FAIR_Pruner import get_metrics

    torch.set_num_threads(1)
    net = network()
    net.load_state_dict(torch.load(work / "vgg.pt"))
    data = np.load(work / "vgg.calib.npz")
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(data["x"]), torch.from_numpy(data["labels"]))
    start = time.process_time()
    get_metrics(net, torch.utils.data.DataLoader(pairs, 64), device=torch.device("cpu"), results_save_path=os.devnull)
    return round(time.process_time() - start, 2)


def _images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as archive:
        return (archive["x"].reshape(-1, 1, 28, 28) / 255).astype(np.float32), archive["y"].astype(np.int64)


# others' networks ------------------------------------------------------------------------------------------------------


def compared(name: str, models: Path, prepared: Path, work: Path) -> dict[str, Any]:
    """One model at the counts of each level, by three criteria, with and without least squares."""
    model, report, scores = models / f"{name}.onnx", work / "report.json", work / f"{name}.scores.json"
    test, ratios = work / f"{name}.eval.npz", work / f"{name}.ratios.json"
    with np.load(prepared / f"{name}.eval.npz") as archive:
        np.savez(test, **{key: archive[key][:JUDGED] for key in archive.files})
    calibration = prepared / f"{name}.calib.npz"
    measured = pruned(model, report, "--scope", "tod", "--data", calibration, "--save-scores", scores)
    found: dict[str, Any] = {"score_s": round(measured["elapsed_s"]["score"], 2), "notes": measured.get("notes", [])}
    for level in OTHERS:
        tod = ("--scope", "tod", "--tod", level, "--scores", scores)
        counts = row(pruned(model, report, *tod))["kept"]
        ratios.write_text(json.dumps({group: (size - kept) / size for group, (kept, size) in counts.items()}))
        here = found[str(level)] = {"kept": counts}
        for criterion in ("wasserstein", "reconstruction", "l1"):
            same = tod if criterion == "wasserstein" else ("--criterion", criterion, "--scores", scores, "--ratios", ratios)
            for mode in MODES:
                result = row(pruned(model, report, *same, "--data", test, "--compensate", mode))
                assert result.pop("kept") == counts, (name, criterion)
                here[f"{criterion} {mode}"] = result
                print(name, level, criterion, mode, result, flush=True)
    return found


if __name__ == "__main__":
    main()
