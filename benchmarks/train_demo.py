"""Train the small network that ``onnxprune demo`` prunes, and write it with its labelled samples into the package.

    python benchmarks/train_demo.py [--out FOLDER] [--validate]

writes ``digits.onnx`` and ``digits.npz`` (450 samples that the network has never seen: ``image`` float32 (450, 1, 8, 8),
``labels`` int64 (450,)) to ``onnxprune/demo``. Needs ``torch onnx onnxruntime scikit-learn`` (last run with torch 2.13,
onnx 1.23, scikit-learn 1.9); takes about a minute on one core.

Data: scikit-learn's digits, which are the test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0. Pixel values are
divided by 16.

The network is trained to be pruned: a group lasso on the scales and shifts of the batch normalisations (network slimming,
Liu et al. 2017, arXiv:1708.06519, with one group per set of coupled channels) pushes channels that are of little use
towards zero. A network that was not trained so loses more when it is cut, until it is fine-tuned. ``--validate`` trains
without a fifth of the training samples and reports the accuracy on those: what the settings below were chosen by. The 450
samples had no part in that.
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
EPOCHS = 60
BATCH = 64
RATE = 3e-3
LASSO = 2e-4
"""Weight of the group lasso in the loss."""


class ConvNorm(nn.Sequential):
    """Convolution and batch normalisation."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(c_out))


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
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(64 * 4 * 4, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        x = F.relu(self.halve(x))
        x = F.relu(self.depthwise(x))
        x = F.relu(self.pointwise(x))
        return self.classifier(self.dropout(torch.flatten(x, 1)))

    def lasso(self) -> Tensor:
        """The norms of the coupled channels' scales and shifts, added up."""
        coupled = [[self.stem, self.outer], [self.inner], [self.halve, self.depthwise], [self.pointwise]]
        total = torch.zeros(())
        for layers in coupled:
            vectors = torch.stack([v for layer in layers for v in (layer[1].weight, layer[1].bias)])
            total = total + vectors.norm(dim=0).sum()
        return total


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image moved by up to a pixel in both directions, with a little noise."""
    n = len(images)
    dy, dx = torch.randint(-1, 2, (2, n), generator=generator)
    padded = F.pad(images, (1, 1, 1, 1))
    rows = (torch.arange(8) + 1 + dy[:, None])[:, :, None]
    columns = (torch.arange(8) + 1 + dx[:, None])[:, None, :]
    moved = padded[torch.arange(n)[:, None, None], 0, rows, columns][:, None]
    return moved + 0.05 * torch.randn(moved.shape, generator=generator)


def train(images: Tensor, labels: Tensor) -> Digits:
    """Train from scratch."""
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    network = Digits()
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-4)
    steps = -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = F.cross_entropy(network(shifted(images[rows], generator)), labels[rows]) + LASSO * network.lasso()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()
