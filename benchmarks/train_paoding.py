"""Train the networks that PAODING's results are measured on, and write each with samples that it was not trained on.

    python benchmarks/train_paoding.py --data FOLDER --out FOLDER [NAME ...]

Writes ``NAME.onnx`` and ``NAME.npz`` (the samples under the model's input name, float32, and ``labels``, int64):

    credit      fraud among credit-card payments, 30 features; dense 64-64
    brain       tumours in slices of magnetic resonance images, 4 classes; convolutions 16, 32, 64, dense 128-64
    mnist_cnn   digits; convolutions 16 and 32 (5x5), dense 120-84
    mnist_mlp   digits, flattened; dense 128-128-64
    mnist_wide  the same; dense 512-256
    cifar       CIFAR-10; convolutions 32, 32, 64, 64, 128, dense 256-128

The first three and the last are the four settings of M. H. Meng, H. Guan, L. Wan, S. G. Teo, G. Bai and J. S. Dong,
"PAODING: A High-fidelity Data-free Pruning Toolkit for Debloating Pre-trained Neural Networks", 2024, arXiv:2405.00074.
CIFAR-10's network has half of the channels that theirs has, so that one core trains it in minutes. Trained the usual way,
with nothing done to make them easy to prune: Adam, a cosine schedule, shifted (and, where that keeps the class, mirrored)
images, dropout. The samples to test with are set apart beforehand, by the archive or by ``SEED``; at most 1000 of them are
written. Images are in [0, 1]; the credit-card features are standardised and clipped to [-5, 5], and their test samples are
half fraud, half not, so that the accuracy says something.

FOLDER of ``--data`` holds one ``.npz`` per data set, with ``x`` (samples first; images as bytes) and ``y``:
ulb_creditcard_subset, brain_tumor_train_gray64, mnist_train20k, mnist_test, cifar10_lossless_train4000 and
cifar10_lossless_test. Needs ``torch onnx onnxruntime`` (last run with torch 2.13, onnx 1.23).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEED = 0
TEST_SAMPLES = 1000
TOLERANCE = 1e-4
RATE = 1e-3
BATCH = 64


class Samples(NamedTuple):
    """Inputs ``(samples, ...)`` float32 and classes ``(samples,)`` int64."""

    inputs: Tensor
    labels: Tensor


class Data(NamedTuple):
    """What is trained on, and what is tested with."""

    seen: Samples
    unseen: Samples


@dataclass(frozen=True)
class Setting:
    """A network and how it is trained.

    ``layers``: words for ``network``. ``shift``: images move by up to so many pixels, 0 where the input is none.
    """

    layers: str
    load: Callable[[Path], Data]
    input: str
    epochs: int
    dropout: float = 0
    shift: int = 0
    mirror: bool = False
    weighted: bool = False


def archive(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / f"{name}.npz") as file:
        return file["x"], file["y"].astype(np.int64)


def images(x: np.ndarray, y: np.ndarray) -> Samples:
    """Bytes, with or without colours on the last axis, as float32 ``(samples, colours, rows, columns)`` in [0, 1]."""
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
    return Samples(torch.from_numpy(np.ascontiguousarray(x).astype(np.float32) / 255), torch.from_numpy(y))


def mnist(folder: Path) -> Data:
    return Data(images(*archive(folder, "mnist_train20k")), images(*archive(folder, "mnist_test")))


def cifar(folder: Path) -> Data:
    return Data(images(*archive(folder, "cifar10_lossless_train4000")), images(*archive(folder, "cifar10_lossless_test")))


def brain(folder: Path) -> Data:
    """500 slices held out. Neighbouring slices may be one patient's: the accuracy is not that on new patients."""
    x, y = archive(folder, "brain_tumor_train_gray64")
    order = np.random.default_rng(SEED).permutation(len(y))
    return Data(images(x[order[500:]], y[order[500:]]), images(x[order[:500]], y[order[:500]]))


def credit(folder: Path) -> Data:
    """Half of the frauds and as many other payments held out; scaled by what is left."""
    x, y = archive(folder, "ulb_creditcard_subset")
    order = np.random.default_rng(SEED).permutation(len(y))
    frauds, others = order[y[order] == 1], order[y[order] == 0]
    half = len(frauds) // 2
    unseen = np.concatenate([frauds[:half], others[:half]])
    seen = np.concatenate([frauds[half:], others[half:]])
    x = x.astype(np.float64)
    scaled = np.clip((x - x[seen].mean(axis=0)) / x[seen].std(axis=0), -5, 5).astype(np.float32)
    return Data(*(Samples(torch.from_numpy(scaled[rows]), torch.from_numpy(y[rows])) for rows in (seen, unseen)))


SETTINGS = {
    "credit": Setting("64 64 2", credit, "features", epochs=60, dropout=0.2, weighted=True),
    "brain": Setting(
        "conv3:16 pool conv3:32 pool conv3:64 pool 128 64 4", brain, "image", epochs=50, dropout=0.3, shift=3, mirror=True
    ),
    "mnist_cnn": Setting("conv5:16 pool conv5:32 pool 120 84 10", mnist, "image", epochs=15, shift=2),
    "mnist_mlp": Setting("128 128 64 10", mnist, "image", epochs=60, shift=2),
    "mnist_wide": Setting("512 256 10", mnist, "image", epochs=40, dropout=0.2, shift=2),
    "cifar": Setting(
        "conv3:32 conv3:32 pool conv3:64 conv3:64 pool conv3:128 pool 256 128 10",
        cifar,
        "image",
        epochs=60,
        dropout=0.3,
        shift=4,
        mirror=True,
    ),
}


def network(setting: Setting, shape: torch.Size) -> nn.Sequential:
    """``convK:N`` convolution of N filters K x K (padded if K is 3), ``pool`` 2x2 maximum, ``N`` dense layer; ReLU between.

    A network without convolutions takes samples that are flat already: the exported model's input has two axes.
    """
    modules: list[nn.Module] = []
    probe, words = torch.zeros(1, *shape), setting.layers.split()
    for word in words:
        if word == "pool":
            new: list[nn.Module] = [nn.MaxPool2d(2)]
        elif word.startswith("conv"):
            kernel, filters = (int(number) for number in word.removeprefix("conv").split(":"))
            new = [nn.Conv2d(probe.shape[1], filters, kernel, padding=1 if kernel == 3 else 0), nn.ReLU()]
        else:
            new = [nn.Flatten()] if probe.ndim > 2 else []
            new += [nn.Linear(probe[0].numel(), int(word)), nn.ReLU(), nn.Dropout(setting.dropout)]
        with torch.no_grad():
            probe = nn.Sequential(*new)(probe)
        modules += new
    return nn.Sequential(*modules[:-2])  # neither ReLU nor dropout after the last layer


def varied(batch: Tensor, by: int, mirror: bool) -> Tensor:
    """Every image moved by up to ``by`` pixels in both directions, half of them mirrored if asked for."""
    n, _, rows, columns = batch.shape
    dy, dx = torch.randint(2 * by + 1, (2, n))
    down = (torch.arange(rows) + dy[:, None])[:, :, None]
    right = torch.arange(columns) + dx[:, None]
    if mirror:
        right = torch.where(torch.rand(n, 1) < 0.5, right.flip(1), right)
    moved = F.pad(batch, (by, by, by, by)).permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], down, right[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def train(setting: Setting, seen: Samples) -> nn.Sequential:
    torch.manual_seed(SEED)
    flat = "conv" not in setting.layers
    model = network(setting, seen.inputs[0].flatten().shape if flat else seen.inputs.shape[1:])
    counts = torch.bincount(seen.labels).float()
    weight = counts.sum() / (len(counts) * counts) if setting.weighted else None
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setting.epochs * -(-len(seen.labels) // BATCH))
    for _ in range(setting.epochs):
        for rows in torch.randperm(len(seen.labels)).split(BATCH):
            batch = seen.inputs[rows]
            if setting.shift:
                batch = varied(batch, setting.shift, setting.mirror)
            loss = F.cross_entropy(model(batch.flatten(1) if flat else batch), seen.labels[rows], weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: nn.Sequential, name: str, inputs: Tensor, path: Path) -> np.ndarray:
    """Write the network as today's usual exporter does; its outputs in onnxruntime, compared with PyTorch's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (inputs[:2],),
            str(path),
            input_names=[name],
            output_names=["logits"],
            dynamic_axes={name: {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    with torch.no_grad():
        want = model(inputs).numpy()
    got = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {name: inputs.numpy()})[0]
    gap = float(np.abs(want - got).max() / np.abs(want).max())
    if gap > TOLERANCE:
        raise SystemExit(f"{path}: onnxruntime's outputs differ from PyTorch's by {gap:.1e}")
    return got


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SETTINGS)}; default: all")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    unknown = set(options.names) - set(SETTINGS)
    if unknown:
        parser.error(f"no such network: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    options.out.mkdir(parents=True, exist_ok=True)

    for name in options.names or SETTINGS:
        setting, start = SETTINGS[name], time.process_time()
        data = setting.load(options.data)
        model = train(setting, data.seen)
        inputs, labels = (part[:TEST_SAMPLES] for part in data.unseen)
        inputs = inputs if "conv" in setting.layers else inputs.flatten(1)
        outputs = export(model, setting.input, inputs, options.out / f"{name}.onnx")
        np.savez_compressed(options.out / f"{name}.npz", **{setting.input: inputs.numpy(), "labels": labels.numpy()})
        right = float((outputs.argmax(axis=1) == labels.numpy()).mean())
        parameters = sum(weight.numel() for weight in model.parameters())
        seconds = time.process_time() - start
        print(f"{name}: {parameters:,} parameters, {right:.1%} of {len(labels)} others right, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
