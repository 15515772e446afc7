"""What is left of accuracy without training: criterion obs against the bars that it was made for, and plain pruning.

    python benchmarks/deploying.py --data FOLDER --out FOLDER [--nets FOLDER] [--only NAME ...] [--seeds N ...] [--again]

Every row is one run of the command line in a process of its own, whose CPU time, wall time and peak of memory are measured, and
the model that it wrote, judged on samples that it has not seen: accuracy and agreement with the original, or for detectors the
smallest share of an output's variance that is kept (and of its variance between samples, place by place). Calibration samples
are 512 without labels: with seed 0 those that ``prepare.py`` takes, with others the same number drawn from the rest of its
source. Where the source is small, they are made of what there is: eight crops of each of 32 photographs and 256 of VWW's
pictures (SqueezeNet; half as many for the detectors), 250 pictures (VWW). Without data the seed is that of the synthetic
inputs. Beside them the same without turning channels, where that is done; with seed 0 the same cut by ``--criterion l1
--compensate none``, and of dense layers by ``--criterion saliency --compensate merge``.

FOLDER of ``--data`` holds ``models/``, ``raw/`` and ``prepare.py``; ``--nets`` what ``train_paoding.py`` made of ``mnist_wide``
and ``mnist_mlp``; ``--out`` is for what is made. Rows that ``deploying.json`` beside this file has already are not measured
again, unless ``--again`` is given. The rows of other tools are made by ``deploying_peers.py``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort

SAMPLES = 512
Arrays = dict[str, np.ndarray]
RESULTS = Path(__file__).with_suffix(".json")


class Source:
    """The data folder: evaluation samples, always the same, and calibration samples by seed."""

    def __init__(self, folder: Path) -> None:
        spec = importlib.util.spec_from_file_location("prepare", folder / "prepare.py")
        assert spec is not None
        assert spec.loader is not None
        self.prepare = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.prepare)
        self.folder, self.plain = folder, self.prepare.npz

    def shuffled(self, seed: int) -> ModuleType:
        """``prepare`` with the training archives in another order."""

        def npz(name: str) -> tuple[np.ndarray, np.ndarray]:
            x, y = self.plain(name)
            order = np.random.default_rng(seed).permutation(len(x)) if seed and "train" in name else np.arange(len(x))
            return x[order], y[order]

        vars(self.prepare)["npz"] = npz
        return self.prepare


@dataclass(frozen=True)
class Split:
    """Arrays by input name: ``seen`` to measure on, ``unseen`` to judge by, with ``labels`` where there are."""

    seen: Arrays
    unseen: Arrays
    labels: np.ndarray | None


Load = Callable[[Source, int], Split]


def prepared(name: str) -> Load:
    """What ``prepare.py`` writes for a model, by seed."""

    def load(source: Source, seed: int) -> Split:
        key, x, labels, seen = source.shuffled(seed).MODELS[name]()
        return Split({key: seen}, {key: x}, labels)

    return load


def digits(key: str) -> Load:
    """Digits as train_paoding.py's dense networks take them."""

    def load(source: Source, seed: int) -> Split:
        x, labels, seen = source.shuffled(seed).mnist(lambda x: (x.reshape(-1, 784) / 255).astype(np.float32))
        return Split({key: seen}, {key: x}, labels)

    return load


def people(source: Source, seed: int) -> Split:
    """VWW's pictures, every second to judge by: prepare.py's halves have one class each. Seeds leave some out."""
    x, labels = source.plain("vww")
    x = x.astype(np.float32) / 255
    seen = x[1::2] if seed == 0 else x[1::2][np.random.default_rng(seed).permutation(250)[:200]]
    return Split({"input_1": seen}, {"input_1": x[0::2]}, labels[0::2])


def characters(drawn: int = 0) -> Load:
    """Text: what ``prepare.py`` takes; seeds 1, 2, ... 512 windows of the lines that it leaves, or ``drawn`` with every seed."""

    def load(source: Source, seed: int) -> Split:
        tokens, labels, seen = source.prepare.characters()
        if seed or drawn:
            vocabulary = json.loads((source.folder / "raw" / "textgenrnn_vocab.json").read_text())
            lines = (source.folder / "raw" / "reddit_apple_android_2000.txt").read_text(encoding="utf8").split("\n")[400:]
            rng = np.random.default_rng(seed)
            found: list[list[int]] = []
            while len(found) < (drawn or SAMPLES):
                ids = [vocabulary.get(c, 0) for c in ["<s>", *lines[rng.integers(len(lines))].strip('"'), "<s>"]]
                end = int(rng.integers(1, len(ids)))
                context = ids[max(0, end - 40) : end]
                found.append([0] * (40 - len(context)) + context)
            seen = np.array(found, np.int64)
        return Split({"tokens": seen}, {"tokens": tokens}, labels)

    return load


def photographs(key: str, size: tuple[int, int], change: Callable[[np.ndarray], np.ndarray], crops: int, centred: int) -> Load:
    """Crops of the photographs that prepare.py calibrates on and as many of VWW's pictures; the middle of all other photographs.

    ``crops``: of each. ``size``: height and width. ``change``: from RGB, float32 (height, width, 3) of 0 to 255. ``centred``: of
    the square of so many pixels that each is brought to first; 0 for the whole picture.
    """

    def load(source: Source, seed: int) -> Split:
        from PIL import Image

        def taken(picture: Any, box: tuple[float, ...] | None = None) -> np.ndarray:
            resized = picture.resize(size[::-1], Image.Resampling.BILINEAR, box)
            return np.ascontiguousarray(change(np.asarray(resized, np.float32)).transpose(2, 0, 1))

        def middle(picture: Any) -> np.ndarray:
            if not centred:
                return taken(picture)
            edge = (centred - size[0]) // 2
            square = picture.resize((centred, centred), Image.Resampling.BILINEAR)
            return taken(square.crop((edge, edge, edge + size[1], edge + size[0])))

        rng, small = np.random.default_rng(seed), source.plain("vww")[0]
        seen = [taken(Image.fromarray(pixels)) for pixels in small[rng.permutation(len(small))[: 32 * crops]]]
        pictures = [Image.open(path).convert("RGB") for path in sorted((source.folder / "raw" / "imagenet").glob("*.JPEG"))]
        for picture in pictures[:32]:
            for _ in range(crops):
                share = np.sqrt(rng.uniform(0.4, 1.0))
                width, height = (share * edge for edge in picture.size)
                left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
                one = taken(picture, (left, top, left + width, top + height))
                seen.append(one[:, :, ::-1] if rng.random() < 0.5 else one)
        unseen = np.stack([middle(picture) for picture in pictures[32:]])
        labels = source.prepare.imagenet_samples()[1] if key == "data" else None
        order = rng.permutation(len(seen))
        return Split({key: np.ascontiguousarray(np.stack(seen)[order])}, {key: unseen}, labels)

    return load


def noise(name: str) -> Load:
    """The random inputs that prepare.py writes."""

    def load(source: Source, seed: int) -> Split:
        shapes = source.prepare.UNLABELLED[name]
        return Split(source.prepare.normal(shapes, seed=seed + 1), source.prepare.normal(shapes), None)

    return load


def _bgr(mean: tuple[float, ...], scale: tuple[float, ...]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: ((x[:, :, ::-1] - np.array(mean, np.float32)) / np.array(scale, np.float32)).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A row of the table.

    ``turns``: whether channels are turned to principal axes, so that it is also measured without that. ``options``: what is cut.
    ``bar``: what is to be kept: the least accuracy, the most that may be lost of it (negative), or the
    least share of variance. ``data``: whether there are calibration samples.
    """

    model: str
    load: Load
    options: tuple[str, ...]
    bar: float
    data: bool = True
    own: bool = False
    turns: bool = False

    @property
    def measure(self) -> str:
        """What is judged."""
        return "variance kept" if self.model.startswith(("nanodet", "ultraface")) else "accuracy"


def _macs(left: float) -> tuple[str, ...]:
    return "--target", f"macs={left}"


SQUEEZENET = photographs("data", (227, 227), _bgr((104, 117, 123), (1, 1, 1)), 8, 256)
NANODET = photographs("input.1", (416, 416), _bgr((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)), 4, 0)
ULTRAFACE = photographs("input", (240, 320), lambda x: (x - 127) / 128, 4, 0)
UNITS = ("--ratio", "0.5")

CASES: dict[str, Case] = {
    **{
        f"{net} macs={left}": Case(f"{net}_cifar10", prepared(f"{net}_cifar10"), _macs(left), bar)
        for net, bars in (("resnet56", (0.925, 0.91, 0.86)), ("resnet20", (0.90, 0.86, 0.75)))
        for left, bar in zip((0.7, 0.5, 0.3), bars, strict=True)
    },
    **{
        f"{net} macs={left}, no data": Case(f"{net}_cifar10", prepared(f"{net}_cifar10"), _macs(left), bar, data=False)
        for net, bars in (("resnet56", (0.90, 0.75)), ("resnet20", (0.80, 0.50)))
        for left, bar in zip((0.7, 0.5), bars, strict=True)
    },
    "mnist_wide half": Case("mnist_wide", digits("image"), UNITS, 0.97, own=True),
    "mnist_mlp half": Case("mnist_mlp", digits("image"), UNITS, 0.97, own=True),
    "mnistfc_256x4 half": Case("mnistfc_256x4", prepared("mnistfc_256x4"), UNITS, -0.019),
    "mnist_wide half, no data": Case("mnist_wide", digits("image"), UNITS, 0.89, data=False, own=True),
    "mnist_mlp half, no data": Case("mnist_mlp", digits("image"), UNITS, 0.89, data=False, own=True),
    "mnistfc_256x4 half, no data": Case("mnistfc_256x4", prepared("mnistfc_256x4"), UNITS, 0.89, data=False),
    "squeezenet": Case("squeezenet_dc", SQUEEZENET, _macs(0.7), -0.03),
    "squeezenet, 32 photographs": Case("squeezenet_dc", prepared("squeezenet_dc"), _macs(0.7), -0.03),
    "vww": Case("vww_mobilenet", people, _macs(0.7), -0.03),
    "vww, a class each": Case("vww_mobilenet", prepared("vww_mobilenet"), _macs(0.7), -0.03),
    "vit": Case("vit_pgd_cifar10", prepared("vit_pgd_cifar10"), _macs(0.7), -0.03, turns=True),
    "vit, no data": Case("vit_pgd_cifar10", prepared("vit_pgd_cifar10"), _macs(0.7), -0.03, data=False, turns=True),
    "textgenrnn": Case("textgenrnn", characters(), _macs(0.7), -0.03, turns=True),
    "textgenrnn, 2048 windows": Case("textgenrnn", characters(2048), _macs(0.7), -0.03, turns=True),
    "textgenrnn, no data": Case("textgenrnn", characters(), _macs(0.7), -0.03, data=False, turns=True),
    "nanodet": Case("nanodet_m", NANODET, _macs(0.7), 0.95),
    "nanodet, noise": Case("nanodet_m", noise("nanodet_m"), _macs(0.7), 0.95),
    "ultraface": Case("ultraface_rfb320", ULTRAFACE, _macs(0.7), 0.95, turns=True),
    "ultraface, noise": Case("ultraface_rfb320", noise("ultraface_rfb320"), _macs(0.7), 0.95),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", type=Path)
    parser.add_argument("--only", nargs="*", default=list(CASES), metavar="NAME")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    source = Source(given.data)
    for seed in given.seeds:
        for name, case in ((n, CASES[n]) for n in given.only):
            folder = given.nets if case.own else given.data / "models"
            if folder is None or not (folder / f"{case.model}.onnx").exists():
                print(f"{name}: {case.model}.onnx is not there", flush=True)
                continue
            for method in METHODS if seed == 0 else ("obs", "own axes"):
                if (method == "merge" and case.options != UNITS) or (method == "own axes" and not case.turns):
                    continue
                if given.again or (name, method, seed) not in {(r["case"], r["method"], r["seed"]) for r in _read()}:
                    _write(measured(name, method, seed, folder / f"{case.model}.onnx", source, given.out))


METHODS = {
    "obs": ("--criterion", "obs"),
    "own axes": ("--criterion", "obs", "--no-rotate"),
    "l1": ("--criterion", "l1", "--compensate", "none"),
    "merge": ("--criterion", "saliency", "--compensate", "merge"),
}


def measured(name: str, method: str, seed: int, model: Path, source: Source, out: Path) -> dict[str, Any]:
    """One row."""
    case = CASES[name]
    split = case.load(source, seed)
    stem = f"{name} {method} {seed}".replace(" ", "_").replace(",", "")
    pruned, report = out / f"{stem}.onnx", out / f"{stem}.json"
    command = [sys.executable, "-m", "onnxprune", "prune", model, "-o", pruned, "--report", report, "--seed", seed]
    command += [*METHODS[method], *case.options]
    if case.data and "obs" in METHODS[method]:
        np.savez(out / "calibration.npz", **split.seen)  # type: ignore[arg-type]
        command += ["--data", out / "calibration.npz"]
    row: dict[str, Any] = {"case": name, "method": method, "seed": seed, "model": case.model, "bar": case.bar}
    row |= {"measure": case.measure} | run([str(part) for part in command])
    if "error" not in row:
        told = json.loads(report.read_text())
        before, after = told["model"]["before"], told["model"]["after"]
        row |= {what: round(after[what] / before[what], 4) for what in ("macs", "parameters")}
        row |= judged(model, pruned, split) | {"notes": told.get("notes", [])}
    print({k: v for k, v in row.items() if k != "notes"}, flush=True)
    return row


WATCH = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
found = {"cpu_s": used.ru_utime + used.ru_stime, "wall_s": time.perf_counter() - start, "peak_mb": used.ru_maxrss / 1000}
print(json.dumps({k: round(v, 1) for k, v in found.items()} | ({"error": done.stderr.strip()} if done.returncode else {})))
"""
"""Run by a process of its own: a child's peak counts what its parent had in memory when it was started."""


def run(command: list[str]) -> dict[str, Any]:
    """What a command takes: CPU and wall seconds, and the peak of its memory."""
    done = subprocess.run([sys.executable, "-c", WATCH, *command], stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def judged(model: Path, pruned: Path, split: Split) -> dict[str, Any]:
    """How good both are on samples that were not seen."""
    old, new = outputs(model, split.unseen), outputs(pruned, split.unseen)
    if split.labels is None:
        kept = [
            [round(1 - float(np.square(a - b).sum() / np.square(a - a.mean(axis=axes)).sum()), 4) for axes in (None, 0)]
            for a, b in zip(old, new, strict=True)
        ]
        every, each = ([pair[k] for pair in kept] for k in (0, 1))
        return {"after": min(every), "outputs": every, "outputs, place by place": each}
    before, after = (values[0].argmax(axis=-1) for values in (old, new))
    found = {
        "before": float((before == split.labels).mean()),
        "after": float((after == split.labels).mean()),
        "agreement": float((before == after).mean()),
        "divergence": divergence(old[0], new[0]),
    }
    return {key: round(value, 4) for key, value in found.items()} | {"judged on": len(split.labels)}


def divergence(old: np.ndarray, new: np.ndarray) -> float:
    """The squared error of centred scores in units of their variance."""
    a, b = (v.astype(np.float64) - v.mean(axis=1, keepdims=True) for v in (old, new))
    return float(np.square(a - b).sum() / np.square(a - a.mean(axis=0)).sum())


def outputs(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs on all samples."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    fixed = {port.shape[0] for port in session.get_inputs() if port.shape}
    step = 1 if 1 in fixed else 64
    count = len(next(iter(feeds.values())))
    parts = [session.run(None, {key: x[i : i + step] for key, x in feeds.items()}) for i in range(0, count, step)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _read() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []


def _write(row: dict[str, Any]) -> None:
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    key = ("case", "method", "seed")
    rows = [r for r in found["rows"] if any(r[k] != row[k] for k in key)] + [row]
    places = {(name, method): place for place, (name, method) in enumerate(product(CASES, METHODS))}
    found["rows"] = sorted(rows, key=lambda r: (places[r["case"], r["method"]], r["seed"]))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
