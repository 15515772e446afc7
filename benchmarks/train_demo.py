"""Train the small network that ``onnxprune demo`` prunes, and write it with labelled samples into the package.

    python benchmarks/train_demo.py [--out FOLDER]
    python benchmarks/train_demo.py --validate

The first writes ``digits.onnx`` and ``digits.npz`` (450 samples that the network was not trained on: ``image`` float32
(450, 1, 8, 8), ``labels`` int64 (450,)) to ``onnxprune/demo``. The second writes nothing: it trains without another 300
samples and prints the accuracy on those; the settings below were chosen by that, never by the 450. Needs ``torch onnx
onnxruntime scikit-learn`` (last run with torch 2.13, onnx 1.23, scikit-learn 1.9) and half a minute of one core.

The network is trained to be pruned: in the later epochs every step leaves out a random share, from nothing to 60 %, of
each layer's channels, those with the smallest filters (targeted dropout: Gomez et al. 2019, arXiv:1905.13678). A network
that has not been trained so needs retraining after a cut as large as the demo's.

Data: scikit-learn's digits, which are the test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0. Changed here: pixel
values are divided by 16.
"""

# A module's forward is described by its class.
# ruff: noqa: D102

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

FOLDER = Path(__file__).parents[1] / "onnxprune" / "demo"
SEED = 0
HELD_OUT = 450
VALIDATION = 300
PLAIN, TARGETED = 20, 40
"""Epochs without and with targeted dropout."""
LARGEST_SHARE = 0.6
"""Largest share of the channels that targeted dropout leaves out."""
BATCH = 64
RATE = 3e-3
TOLERANCE = 1e-4


class ConvNorm(nn.Module):
    """Convolution and batch normalisation, of which some channels can be left out."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out)
        self.kept: Tensor | None = None

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.conv(image))
        return x if self.kept is None else x * self.kept

    def sizes(self) -> Tensor:
        """L1 norm of every channel's filter and shift, as they are once the exporter has folded the normalisation in."""
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        shift = self.norm.bias - self.norm.running_mean * scale
        return (self.conv.weight.abs().sum(dim=(1, 2, 3)) * scale.abs() + shift.abs()).detach()


class Digits(nn.Module):
    """Stem, residual block, halving convolution, depthwise-separable block, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 32, 3)
        self.inner = ConvNorm(32, 32, 3)
        self.outer = ConvNorm(32, 32, 3)
        self.halve = ConvNorm(32, 64, 3, stride=2)
        self.depthwise = ConvNorm(64, 64, 3, groups=64)
        self.pointwise = ConvNorm(64, 64, 1)
        self.classifier = nn.Linear(64 * 4 * 4, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        x = F.relu(self.halve(x))
        x = F.relu(self.depthwise(x))
        x = F.relu(self.pointwise(x))
        return self.classifier(torch.flatten(x, 1))

    def leave_out(self, share: float) -> None:
        """Leave out this share of every set of coupled channels, the smallest, until the next call."""
        for layers in ((self.stem, self.outer), (self.inner,), (self.halve, self.depthwise), (self.pointwise,)):
            sizes = torch.stack([layer.sizes() for layer in layers]).sum(dim=0)
            kept = torch.ones(len(sizes), 1, 1)
            kept[sizes.argsort()[: int(share * len(sizes))]] = 0
            for layer in layers:
                layer.kept = kept if share else None


def shifted(images: Tensor) -> Tensor:
    """Every image moved by up to a pixel in both directions, with a little noise."""
    n = len(images)
    dy, dx = torch.randint(-1, 2, (2, n))
    rows = (torch.arange(8) + 1 + dy[:, None])[:, :, None]
    columns = (torch.arange(8) + 1 + dx[:, None])[:, None, :]
    moved = F.pad(images, (1, 1, 1, 1))[torch.arange(n)[:, None, None], 0, rows, columns][:, None]
    return moved + 0.05 * torch.randn(moved.shape)


def train(images: Tensor, labels: Tensor) -> Digits:
    """Train from scratch, the later epochs with targeted dropout and the normalisations' statistics as they then are."""
    torch.manual_seed(SEED)
    network = Digits()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-4)
    steps = (PLAIN + TARGETED) * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for epoch in range(PLAIN + TARGETED):
        network.train(epoch < PLAIN)
        for rows in torch.randperm(len(images)).split(BATCH):
            if epoch >= PLAIN:
                network.leave_out(LARGEST_SHARE * float(torch.rand(())))
            loss = F.cross_entropy(network(shifted(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.leave_out(0)
    return network.eval()


@torch.no_grad()
def accuracy(network: Digits, images: Tensor, labels: Tensor, share: float = 0) -> float:
    """Share of right answers with a share of the channels left out."""
    network.leave_out(share)
    right = (network(images).argmax(dim=1) == labels).float().mean()
    network.leave_out(0)
    return float(right)


def export(network: Digits, images: Tensor, path: Path) -> None:
    """Write the network as today's usual exporter does and compare its outputs in onnxruntime."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network,
            (images[:2],),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    with torch.no_grad():
        want = network(images).numpy()
    got = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": images.numpy()})[0]
    gap = float(np.abs(want - got).max() / np.abs(want).max())
    if gap > TOLERANCE:
        raise SystemExit(f"{path}: onnxruntime's outputs differ from PyTorch's by {gap:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER")
    parser.add_argument("--validate", action="store_true", help="train on less, print the accuracy on the rest, write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    digits = load_digits()
    images, labels = (digits.images[:, None] / 16).astype(np.float32), digits.target.astype(np.int64)
    seen, unseen = train_test_split(np.arange(len(labels)), test_size=HELD_OUT, random_state=SEED, stratify=labels)
    if options.validate:
        seen, unseen = train_test_split(seen, test_size=VALIDATION, random_state=SEED, stratify=labels[seen])
    pixels, targets = torch.from_numpy(images), torch.from_numpy(labels)
    network = train(pixels[seen], targets[seen])

    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {len(seen)} samples to train")
    for share in (0, 0.3, 0.5, 0.6):
        percent = 100 * accuracy(network, pixels[unseen], targets[unseen], share)
        print(f"accuracy on {len(unseen)} others, {share:.0%} of the channels left out: {percent:.1f} %")
    if not options.validate:
        export(network, pixels[unseen], options.out / "digits.onnx")
        np.savez_compressed(options.out / "digits.npz", image=images[unseen], labels=labels[unseen])


if __name__ == "__main__":
    main()
