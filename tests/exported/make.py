"""Write the tiny ONNX graphs beside this file, with random weights, as PyTorch's and scikit-learn's exporters do.

    python tests/exported/make.py [NAME ...]

Needs ``torch onnx onnxscript onnxruntime scikit-learn skl2onnx`` (last run with torch 2.13, onnxscript 0.7, skl2onnx
1.20). A graph NAME becomes one file per flavour of export, ``<name>.<flavour>.onnx``; see ``FLAVOURS``. Each file is
run in onnxruntime and its outputs compared with the source framework's. The Keras graphs come from ``make_keras.py``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from google.protobuf.message import Message
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import Tensor, nn

FOLDER = Path(__file__).parent
SEED = 0
TOLERANCE = 1e-4
IMAGE = (3, 16, 16)

FLAVOURS: dict[str, dict[str, object]] = {
    "ts": {"dynamo": False, "opset_version": 17},
    "ts9": {"dynamo": False, "opset_version": 9},
    "ts11": {"dynamo": False, "opset_version": 11},
    "ts13": {"dynamo": False, "opset_version": 13},
    # Neither batch normalisation nor anything else is folded into the weights.
    "ts_unfused": {
        "dynamo": False,
        "opset_version": 17,
        "training": torch.onnx.TrainingMode.PRESERVE,
        "do_constant_folding": False,
    },
    "dynamo": {"dynamo": True, "opset_version": 20},
    # What a plain ``torch.onnx.export(model, args, path)`` writes: the batch of ``args`` is part of the graph.
    "dynamo_static": {"dynamo": True, "opset_version": 20},
}
"""Arguments of ``torch.onnx.export``: ``ts`` is the TorchScript exporter, ``dynamo`` the ``torch.export``-based one."""


# --- building blocks ------------------------------------------------------------------------------------------------


def conv_bn(
    c_in: int,
    c_out: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    act: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), *([act()] if act else []))


def bn_conv(c_in: int, c_out: int, kernel: int = 3) -> nn.Sequential:
    """Pre-activation order, in which exporters cannot fold the batch normalisation."""
    return nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU(), nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2))


def classifier(width: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


class Sum(nn.Module):
    """``body(x) + shortcut(x)``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class Cat(nn.Module):
    """Outputs of parallel ``branches``, concatenated by channel."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


# --- residual and dense networks ------------------------------------------------------------------------------------


def residual() -> nn.Module:
    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        body = nn.Sequential(conv_bn(c_in, c_out, 3, stride), conv_bn(c_out, c_out, act=None))
        shortcut = None if c_in == c_out else conv_bn(c_in, c_out, 1, stride, act=None)
        return nn.Sequential(Sum(body, shortcut), nn.ReLU())

    return nn.Sequential(conv_bn(3, 6), block(6, 6, 1), block(6, 10, 2), classifier(10))


def preact_residual() -> nn.Module:
    def block(c_in: int, c_out: int) -> nn.Module:
        body = nn.Sequential(bn_conv(c_in, 6), bn_conv(6, c_out))
        return Sum(body, None if c_in == c_out else nn.Conv2d(c_in, c_out, 1))

    blocks = nn.Sequential(block(8, 8), block(8, 12))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), blocks, nn.BatchNorm2d(12), nn.ReLU(), classifier(12))


def dense() -> nn.Module:
    """DenseNet: every layer's output is concatenated to its input; the transition is a 1x1 convolution."""

    def layer(width: int) -> nn.Module:
        return Cat(nn.Identity(), nn.Sequential(bn_conv(width, 10, 1), bn_conv(10, 6)))

    def transition(c_in: int, c_out: int) -> nn.Module:
        return nn.Sequential(bn_conv(c_in, c_out, 1), nn.AvgPool2d(2))

    stages = nn.Sequential(layer(8), layer(14), transition(20, 10), layer(10), layer(16), nn.BatchNorm2d(22), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), stages, classifier(22))


class OptionAShortcut(nn.Module):
    """Parameter-free shortcut of CIFAR ResNets: every other pixel, and zero channels before and after."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


def option_a() -> nn.Module:
    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        body = nn.Sequential(conv_bn(c_in, c_out, 3, stride), conv_bn(c_out, c_out, act=None))
        return nn.Sequential(Sum(body, OptionAShortcut((c_out - c_in) // 2) if stride > 1 else None), nn.ReLU())

    return nn.Sequential(conv_bn(3, 6), block(6, 6, 1), block(6, 10, 2), classifier(10))


def repvgg() -> nn.Module:
    """Training-time RepVGG: 3x3, 1x1 and identity branches, the last of them a batch normalisation."""

    def block(width: int) -> nn.Module:
        convs = Sum(conv_bn(width, width, act=None), conv_bn(width, width, 1, act=None))
        return nn.Sequential(Sum(convs, nn.BatchNorm2d(width)), nn.ReLU())

    return nn.Sequential(conv_bn(3, 8, 3, 2), block(8), conv_bn(8, 10, 3, 2), block(10), classifier(10))


# --- depthwise, grouped and gated convolutions ----------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.gate(x))


def inverted_residual() -> nn.Module:
    """MobileNetV3: expansion, depthwise convolution, squeeze-and-excitation, linear projection."""

    def block(c_in: int, expanded: int, c_out: int, stride: int) -> nn.Module:
        return nn.Sequential(
            conv_bn(c_in, expanded, 1, act=nn.Hardswish),
            conv_bn(expanded, expanded, 3, stride, groups=expanded, act=nn.Hardswish),
            SqueezeExcite(expanded, 8),
            conv_bn(expanded, c_out, 1, act=None),
        )

    blocks = nn.Sequential(Sum(block(8, 16, 8, 1)), block(8, 20, 12, 2))
    return nn.Sequential(conv_bn(3, 8, act=nn.Hardswish), blocks, classifier(12))


class LinearSqueezeExcite(nn.Module):
    """Squeeze-and-excitation by linear layers; reshaping the gate hard-codes the number of channels."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.width = width
        self.gate = nn.Sequential(nn.Linear(width, squeezed), nn.ReLU(), nn.Linear(squeezed, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3))).view(-1, self.width, 1, 1)


def se_linear() -> nn.Module:
    body = nn.Sequential(conv_bn(8, 12), LinearSqueezeExcite(12, 8), conv_bn(12, 8, act=None))
    return nn.Sequential(conv_bn(3, 8), Sum(body), nn.ReLU(), classifier(8))


def grouped() -> nn.Module:
    """ResNeXt bottleneck with four groups, then a RegNet bottleneck with groups of four channels."""

    def block(width: int, inner: int, groups: int) -> nn.Module:
        body = nn.Sequential(conv_bn(width, inner, 1), conv_bn(inner, inner, groups=groups), conv_bn(inner, width, 1, act=None))
        return nn.Sequential(Sum(body), nn.ReLU())

    return nn.Sequential(conv_bn(3, 12), block(12, 16, 4), block(12, 24, 6), classifier(12))


def depth_multiplier() -> nn.Module:
    """Two filters for every input channel, then four groups with unequal numbers of inputs and outputs."""
    return nn.Sequential(conv_bn(3, 8), conv_bn(8, 16, groups=8), conv_bn(16, 24, groups=4), classifier(24))


class Glu(nn.Module):
    """Gated convolution by ``chunk``, then by ``F.glu``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gated = conv_bn(3, 8), nn.Conv2d(8, 24, 3, padding=1)
        self.glu, self.head = nn.Conv2d(12, 16, 1), classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.gated(self.stem(x)).chunk(2, 1)
        return self.head(F.glu(self.glu(value * torch.sigmoid(gate)), 1))


# --- splits, shuffles and slices of channels ------------------------------------------------------------------------


def shuffle_channels(x: Tensor, groups: int = 2) -> Tensor:
    batch, width, height, breadth = x.shape
    return x.view(batch, groups, width // groups, height, breadth).transpose(1, 2).reshape(x.shape)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2 unit: at stride 1 half of the channels passes through."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        half = c_out // 2
        self.passed = None
        if stride > 1:
            self.passed = nn.Sequential(conv_bn(c_in, c_in, 3, stride, c_in, act=None), conv_bn(c_in, half, 1))
        self.branch = nn.Sequential(
            conv_bn(c_in if stride > 1 else half, half, 1),
            conv_bn(half, half, 3, stride, half, act=None),
            conv_bn(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.passed is None:
            passed, x = x.chunk(2, 1)
        else:
            passed = self.passed(x)
        return shuffle_channels(torch.cat([passed, self.branch(x)], 1))


def shufflenet() -> nn.Module:
    units = [ShuffleUnit(8, 24, 2), ShuffleUnit(24, 24, 1), ShuffleUnit(24, 24, 1)]
    return nn.Sequential(conv_bn(3, 8), *units, conv_bn(24, 16, 1), classifier(16))


class StackShuffle(nn.Module):
    """Channels of two branches interleaved by ``torch.stack``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 8), conv_bn(8, 10, 1), conv_bn(8, 10, 3)
        self.head = nn.Sequential(conv_bn(20, 12, 1), classifier(12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.stack([self.a(x), self.b(x)], 2).flatten(1, 2))


class C2f(nn.Module):
    """YOLOv8's block: halves by ``chunk``, every intermediate result concatenated."""

    def __init__(self, c_in: int, c_out: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        half = c_out // 2
        convs = [nn.Sequential(conv_bn(half, half, act=nn.SiLU), conv_bn(half, half, act=nn.SiLU)) for _ in range(depth)]
        self.entry = conv_bn(c_in, c_out, 1, act=nn.SiLU)
        self.blocks = nn.ModuleList(Sum(conv) if shortcut else conv for conv in convs)
        self.exit = conv_bn((2 + depth) * half, c_out, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.entry(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.exit(torch.cat(parts, 1))


def c2f() -> nn.Module:
    stem = conv_bn(3, 8, 3, 2, act=nn.SiLU)
    return nn.Sequential(stem, C2f(8, 12, 2, True), C2f(12, 8, 1, False), classifier(8))


class Res2Unit(nn.Module):
    """Res2Net: hierarchical 3x3 convolutions over four equal splits of the channels."""

    def __init__(self, width: int, split: int) -> None:
        super().__init__()
        self.split = split
        self.entry, self.exit = conv_bn(width, 4 * split, 1), conv_bn(4 * split, width, 1, act=None)
        self.convs = nn.ModuleList(conv_bn(split, split) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        splits = list(self.entry(x).split(self.split, 1))
        for i, conv in enumerate(self.convs):
            splits[i] = conv(splits[i] if i == 0 else splits[i] + splits[i - 1])
        return F.relu(x + self.exit(torch.cat(splits, 1)))


def res2net() -> nn.Module:
    return nn.Sequential(conv_bn(3, 12, 3, 2), Res2Unit(12, 6), classifier(12))


class SliceChannels(nn.Module):
    """Overlapping and strided slices of one convolution's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.first, self.last, self.even = conv_bn(6, 8), conv_bn(12, 8, 1), conv_bn(8, 8, 1)
        self.head = classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.first(x[:, :6]) + self.last(x.narrow(1, 4, 12)) + self.even(x[:, ::2]))


# --- normalisation and activation -----------------------------------------------------------------------------------


def group_norm() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(12, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 12, 1))
    stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.SiLU())
    return nn.Sequential(stem, Sum(body), nn.GroupNorm(1, 12), nn.ReLU(), classifier(12))


def instance_norm() -> nn.Module:
    def conv(c_in: int, c_out: int, affine: bool) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.InstanceNorm2d(c_out, affine=affine), nn.ReLU())

    return nn.Sequential(conv(3, 10, True), Sum(conv(10, 10, True)), conv(10, 12, False), nn.Conv2d(12, 3, 1))


def prelu() -> nn.Module:
    """One slope per channel, and one for all."""
    convs = nn.Sequential(conv_bn(3, 12, act=None), nn.PReLU(12), conv_bn(12, 16, act=None), nn.PReLU())
    return nn.Sequential(convs, classifier(16))


def local_response_norm() -> nn.Module:
    first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(3, 0.5), nn.MaxPool2d(2))
    return nn.Sequential(first, nn.Conv2d(8, 12, 3), nn.ReLU(), classifier(12))


# --- change of resolution -------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """Two levels, with transposed-convolution upsampling and concatenated skips."""

    def __init__(self) -> None:
        super().__init__()
        self.level0, self.level1, self.level2 = conv_bn(3, 6), conv_bn(6, 8), conv_bn(8, 12)
        self.up1, self.up0 = nn.ConvTranspose2d(12, 8, 2, 2), nn.ConvTranspose2d(8, 6, 2, 2)
        self.merge1, self.merge0 = conv_bn(16, 8), conv_bn(12, 6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x0 = self.level0(x)
        x1 = self.level1(F.max_pool2d(x0, 2))
        x2 = self.level2(F.max_pool2d(x1, 2))
        x1 = self.merge1(torch.cat([x1, self.up1(x2)], 1))
        return self.head(self.merge0(torch.cat([x0, self.up0(x1)], 1)))


def conv_transpose() -> nn.Module:
    """Generator: batch-normalised transposed convolutions, one of them grouped."""
    return nn.Sequential(
        conv_bn(3, 12, 3, 2),
        nn.ConvTranspose2d(12, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 12, 3, 1, 1, groups=4),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 3, 3, 1, 1),
        nn.Tanh(),
    )


def pixel_shuffle() -> nn.Module:
    """Super-resolution with a sub-pixel convolution inside the network and one at its end."""
    inner = nn.Sequential(nn.Conv2d(8, 24, 3, padding=1), nn.PixelShuffle(2), nn.ReLU())
    last = nn.Sequential(nn.Conv2d(6, 12, 3, padding=1), nn.PixelShuffle(2))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Sum(nn.Conv2d(8, 8, 1)), inner, last)


def pixel_unshuffle() -> nn.Module:
    return nn.Sequential(nn.PixelUnshuffle(2), conv_bn(12, 6), nn.PixelUnshuffle(2), conv_bn(24, 16, 1), classifier(16))


class FeaturePyramid(nn.Module):
    """Nearest-neighbour upsampling into a sum, bilinear upsampling to the input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fine, self.coarse = conv_bn(3, 8, 3, 2), conv_bn(8, 10), conv_bn(10, 12, 3, 2)
        self.lateral_fine, self.lateral_coarse = nn.Conv2d(10, 8, 1), nn.Conv2d(12, 8, 1)
        self.head = nn.Sequential(conv_bn(8, 6), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(6, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(self.stem(x))
        coarse = self.lateral_coarse(self.coarse(fine))
        return self.head(self.lateral_fine(fine) + F.interpolate(coarse, scale_factor=2.0))


class PooledBranch(nn.Module):
    """Image-level features, resized to the resolution of the map."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c_in, c_out, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), size=x.shape[2:], mode="bilinear")


def aspp() -> nn.Module:
    """DeepLab's atrous spatial pyramid pooling."""
    branches = [conv_bn(12, 8, 1), *(conv_bn(12, 8, dilation=rate) for rate in (2, 3)), PooledBranch(12, 8)]
    return nn.Sequential(conv_bn(3, 12, 3, 2), Cat(*branches), conv_bn(32, 12, 1), nn.Conv2d(12, 5, 1))


# --- from feature maps to vectors -----------------------------------------------------------------------------------


def flatten_linear() -> nn.Module:
    """Every channel becomes 16 columns of the linear layer."""
    convs = nn.Sequential(conv_bn(3, 6), nn.MaxPool2d(2), conv_bn(6, 8), nn.MaxPool2d(2))
    return nn.Sequential(convs, nn.Flatten(), nn.Linear(128, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 10))


class View(nn.Module):
    """``view`` to a computed or to a hard-coded number of columns."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.convs = nn.Sequential(conv_bn(3, 6, 3, 2), conv_bn(6, 8, 3, 2))
        self.fc = nn.Sequential(nn.Linear(128, 12), nn.ReLU(), nn.Linear(12, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(x)
        return self.fc(x.view(x.size(0), -1) if self.columns == -1 else x.view(-1, self.columns))


def adaptive_pool() -> nn.Module:
    pools = nn.AdaptiveAvgPool2d(8), nn.AdaptiveMaxPool2d(2)
    return nn.Sequential(conv_bn(3, 10), pools[0], conv_bn(10, 16), pools[1], nn.Flatten(), nn.Linear(64, 10))


class MeanHead(nn.Module):
    """Spatial mean as ``ReduceMean``, beside a mean over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.convs, self.fc, self.attention = conv_bn(3, 12), nn.Linear(16, 10), nn.Conv2d(1, 1, 3, padding=1)
        self.last = conv_bn(12, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(x)
        x = self.last(x * torch.sigmoid(self.attention(x.mean(1, keepdim=True))))
        return self.fc(x.mean([2, 3]))


# --- linear layers --------------------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    hidden = [nn.Linear(20, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.BatchNorm1d(16)]
    return nn.Sequential(*hidden, nn.Linear(16, 4))


class Mixer(nn.Module):
    """Linear layers over the features and, transposed, over the positions of a sequence."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(10, width), nn.Linear(width, 4)
        self.norm0, self.norm1 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.positions = nn.Sequential(nn.Linear(length, 12), nn.GELU(), nn.Linear(12, length))
        self.features = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.positions(self.norm0(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.features(self.norm1(x))
        return self.head(x.mean(1))


class ConvNextBlock(nn.Module):
    """Depthwise convolution, then linear layers in channels-last order and a layer scale."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale * self.mlp(self.conv(x).permute(0, 2, 3, 1))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    stem = nn.Conv2d(3, 12, 4, 4)
    return nn.Sequential(stem, ConvNextBlock(12, 20), nn.Conv2d(12, 8, 2, 2), classifier(8))


# --- shared and computed weights ------------------------------------------------------------------------------------


class Siamese(nn.Module):
    """One encoder for two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv_bn(3, 8), conv_bn(8, 12, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(12, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fc((self.encoder(a) - self.encoder(b)).abs())


class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weights transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.inner = nn.Linear(20, 16), nn.Linear(16, 8)
        self.inner_bias, self.outer_bias = nn.Parameter(torch.zeros(16)), nn.Parameter(torch.zeros(20))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(F.relu(self.outer(x))))
        x = F.relu(F.linear(x, self.inner.weight.t(), self.inner_bias))
        return F.linear(x, self.outer.weight.t(), self.outer_bias)


class WeightTransform(nn.Module):
    """Weights reshaped, standardised and transposed on their way to the operators."""

    def __init__(self) -> None:
        super().__init__()
        self.reshaped, self.standardised = nn.Parameter(torch.empty(27, 12)), nn.Parameter(torch.empty(16, 12, 3, 3))
        self.transposed, self.bias = nn.Parameter(torch.empty(16, 10)), nn.Parameter(torch.empty(10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.reshaped.t().reshape(12, 3, 3, 3), padding=1))
        weight = self.standardised - self.standardised.mean((1, 2, 3), keepdim=True)
        x = F.relu(F.conv2d(x, weight, stride=2))
        return x.mean((2, 3)) @ self.transposed + self.bias


# --- other ranks and several inputs or outputs ----------------------------------------------------------------------


class TemporalBlock(nn.Module):
    """Causal dilated convolutions, whose surplus samples are sliced off."""

    def __init__(self, c_in: int, c_out: int, dilation: int) -> None:
        super().__init__()
        self.surplus = 2 * dilation
        self.conv0 = nn.Conv1d(c_in, c_out, 3, padding=self.surplus, dilation=dilation)
        self.conv1 = nn.Conv1d(c_out, c_out, 3, padding=self.surplus, dilation=dilation)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv1d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv0(x)[:, :, : -self.surplus])
        y = F.relu(self.conv1(y)[:, :, : -self.surplus])
        return F.relu(y + self.shortcut(x))


class TemporalNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.fc = nn.Sequential(TemporalBlock(4, 12, 1), TemporalBlock(12, 12, 2)), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x)[:, :, -1])


def conv3d() -> nn.Module:
    convs = [
        nn.Conv3d(1, 8, 3, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(8, 10, 3),
        nn.ReLU(),
    ]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(10, 4))


class MultiIO(nn.Module):
    """An image and a vector in; a feature map that later layers also read, and class scores out."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.conv = conv_bn(3, 8, 3, 2), conv_bn(8, 12)
        self.embed, self.head = nn.Linear(6, 12), classifier(12)

    def forward(self, image: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(image)
        return features, self.head(self.conv(features) + self.embed(vector)[:, :, None, None])


# --- table ----------------------------------------------------------------------------------------------------------


class Graph(NamedTuple):
    build: Callable[[], nn.Module]
    flavours: tuple[str, ...] = ("ts", "dynamo")
    shapes: tuple[tuple[int, ...], ...] = (IMAGE,)
    """Of the inputs, without the batch."""


GRAPHS: dict[str, Graph] = {
    "residual": Graph(residual, ("ts", "ts_unfused", "dynamo")),
    "preact_residual": Graph(preact_residual, ("ts",)),
    "dense": Graph(dense, ("ts",)),
    "option_a": Graph(option_a),
    "repvgg": Graph(repvgg, ("ts",)),
    "inverted_residual": Graph(inverted_residual),
    "se_linear": Graph(se_linear, ("ts",)),
    "grouped": Graph(grouped, ("ts",)),
    "depth_multiplier": Graph(depth_multiplier, ("ts",)),
    "glu": Graph(Glu),
    "shufflenet": Graph(shufflenet, ("ts", "dynamo", "dynamo_static")),
    # Arguments of Slice are attributes up to opset 9, and those of Split and Unsqueeze up to opset 12.
    "stack_shuffle": Graph(StackShuffle, ("ts", "ts9", "ts11", "ts13", "dynamo")),
    "c2f": Graph(c2f),
    "res2net": Graph(res2net, ("ts", "ts9", "ts11", "ts13", "dynamo")),
    "slice_channels": Graph(SliceChannels),
    "group_norm": Graph(group_norm),
    "instance_norm": Graph(instance_norm, ("ts",)),
    "prelu": Graph(prelu, ("ts",)),
    "local_response_norm": Graph(local_response_norm, ("ts",)),
    "unet": Graph(UNet, ("ts",)),
    "conv_transpose": Graph(conv_transpose, ("ts",)),
    "pixel_shuffle": Graph(pixel_shuffle, ("ts",)),
    "pixel_unshuffle": Graph(pixel_unshuffle),
    "feature_pyramid": Graph(FeaturePyramid, ("ts", "ts11", "dynamo")),
    "aspp": Graph(aspp),
    "flatten_linear": Graph(flatten_linear),
    "view_computed": Graph(lambda: View(-1), ("ts", "dynamo_static")),
    "view_fixed": Graph(lambda: View(128), ("ts",)),
    "adaptive_pool": Graph(adaptive_pool, ("ts",)),
    "mean_head": Graph(MeanHead, ("ts",)),
    "mlp": Graph(mlp, shapes=((20,),)),
    "mixer": Graph(lambda: Mixer(6, 16), ("ts", "dynamo", "dynamo_static"), ((6, 10),)),
    "convnext": Graph(convnext),
    "siamese": Graph(Siamese, shapes=(IMAGE, IMAGE)),
    "tied_autoencoder": Graph(TiedAutoencoder, shapes=((20,),)),
    "weight_transform": Graph(WeightTransform, ("ts", "ts_unfused", "dynamo")),
    "temporal": Graph(TemporalNet, shapes=((4, 24),)),
    "conv3d": Graph(conv3d, ("ts",), ((1, 8, 8, 8),)),
    "multi_io": Graph(MultiIO, ("ts",), (IMAGE, (6,))),
}

SKLEARN: dict[str, MLPClassifier | MLPRegressor] = {
    "mlp_classifier": MLPClassifier(hidden_layer_sizes=(16, 12), max_iter=20, random_state=SEED),
    "mlp_regressor": MLPRegressor(hidden_layer_sizes=(16, 12), max_iter=20, random_state=SEED),
}

# --- export ---------------------------------------------------------------------------------------------------------


def randomise(model: nn.Module) -> None:
    """Draw every weight: the TorchScript exporter merges equal tensors, such as a fresh network's norms and biases."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
        elif "bias" in name:
            nn.init.uniform_(parameter, -0.2, 0.2)
        else:
            nn.init.uniform_(parameter, 0.3, 1.0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.uniform_(buffer, -0.2, 0.2)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2.0)


def strip_comments(message: Message) -> None:
    """Clear doc strings and metadata, where exporters leave stack traces with the paths of the exporting machine."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type and field.name != "initializer":
            for child in value if field.is_repeated else [value]:
                strip_comments(child)


def check(path: Path, inputs: dict[str, np.ndarray], expected: list[np.ndarray]) -> None:
    actual = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)
    error = max(float(np.abs(a - e).max()) for a, e in zip(actual, expected, strict=True))
    print(f"{path.name:40} {path.stat().st_size / 1024:6.1f} kB  error {error:.1e}")
    if not error < TOLERANCE:
        raise ValueError(f"{path.name}: outputs differ from the source framework's by {error:.1e}")


def export_torch(name: str, graph: Graph, flavour: str) -> None:
    torch.manual_seed(SEED)
    model = graph.build().eval()
    randomise(model)
    args = tuple(torch.randn(2, *shape) for shape in graph.shapes)
    with torch.no_grad():
        outputs = model(*args)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)

    input_names = [f"input{i}" for i in range(len(args))]
    output_names = [f"output{i}" for i in range(len(outputs))]
    options = FLAVOURS[flavour] | {"input_names": input_names, "output_names": output_names}
    if flavour == "dynamo":
        options["dynamic_shapes"] = tuple({0: torch.export.Dim("batch")} for _ in args)
    elif flavour != "dynamo_static":
        options["dynamic_axes"] = {tensor: {0: "batch"} for tensor in input_names + output_names}
    if options["dynamo"]:
        options |= {"external_data": False, "verbose": False}

    path = FOLDER / f"{name}.{flavour}.onnx"
    torch.onnx.export(model, args, path, **options)
    proto = onnx.load(path)
    strip_comments(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    inputs = {tensor: arg.numpy() for tensor, arg in zip(input_names, args, strict=True)}
    check(path, inputs, [output.numpy() for output in outputs])


def export_sklearn(name: str, model: MLPClassifier | MLPRegressor) -> None:
    x = np.random.default_rng(SEED).standard_normal((200, 12), np.float32)
    path = FOLDER / f"{name}.skl.onnx"
    if isinstance(model, MLPClassifier):
        model.fit(x, (x[:, 0] > 0) * 1 + (x[:, 1] > 0))
        proto, expected = to_onnx(model, x[:1], options={"zipmap": False}), [model.predict(x), model.predict_proba(x)]
    else:
        model.fit(x, x[:, 0] * x[:, 1])
        proto, expected = to_onnx(model, x[:1]), [model.predict(x)[:, np.newaxis]]
    proto.graph.name = name  # random otherwise
    onnx.save(proto, path)
    check(path, {"X": x}, expected)


def main(names: list[str]) -> None:
    warnings.filterwarnings("ignore")
    for name, graph in GRAPHS.items():
        if not names or name in names:
            for flavour in graph.flavours:
                export_torch(name, graph, flavour)
    for name, model in SKLEARN.items():
        if not names or name in names:
            export_sklearn(name, model)


if __name__ == "__main__":
    main(sys.argv[1:])
