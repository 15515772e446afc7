"""Export full-size PyTorch networks with random weights to ONNX, as today's exporters write them.

    python benchmarks/export_models.py OUT [NAME ...] [--exporter ts|dynamo]

writes ``OUT/<name>.ts.onnx`` (TorchScript exporter, opset 17) and ``OUT/<name>.dynamo.onnx`` (``torch.export``-based
exporter, opset 20) for each network, both with a dynamic batch axis, and compares every file's outputs in onnxruntime
with PyTorch's. The networks that failed are listed at the end, and the exit status is then 1.

Needs ``torch torchvision timm onnx onnxscript onnxruntime``.
"""

# A module's forward is described by its class.
# ruff: noqa: D102

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEED = 0
OPSETS = {"ts": 17, "dynamo": 20}
BATCH = 2
"""torch.export specialises a dimension of size 1, so one sample would make the batch axis static."""
PARITY = 1e-3
"""Largest accepted difference from PyTorch's outputs, relative to the largest of them."""

# --- randomised weights ---------------------------------------------------------------------------------------------


def randomise(model: nn.Module, x: Tensor) -> None:
    """Make ``model`` look trained to an exporter: no two of its tensors are equal, and activations stay near unit size.

    Fresh networks hold many equal tensors (unit weights, zero biases, initial statistics and layer scales), which the
    TorchScript exporter merges into one. ``x`` is a sample input, by which convolutions and linear layers are scaled.
    """

    def draw(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.empty_like(tensor).uniform_(low, high))

    def scale_to_unit_output(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        scale = 1 / output.std().clamp(min=1e-6)
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                parameter.mul_(scale)
        return output * scale

    hooks = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                draw(parameter, -0.1, 0.1)
            elif parameter.numel() > 1 and parameter.min() == parameter.max():
                draw(parameter, 0.5, 1.5)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                draw(module.weight, 0.5, 1.5)
                draw(module.running_mean, -0.2, 0.2)
                draw(module.running_var, 0.5, 2.0)
            elif isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and module.weight.requires_grad:
                hooks.append(module.register_forward_hook(scale_to_unit_output))
        model(x)
    for hook in hooks:
        hook.remove()


# --- networks -------------------------------------------------------------------------------------------------------


class ConvAct(nn.Sequential):
    """Convolution, batch normalisation, activation."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, act: type[nn.Module] = nn.SiLU) -> None:
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(c_out), act())


class UNet(nn.Module):
    """U-Net with transposed-convolution upsampling and concatenated skips."""

    def __init__(self, width: int = 32, levels: int = 4, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(self.block(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(self.block(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def block(c_in: int, c_out: int) -> nn.Sequential:
        return nn.Sequential(ConvAct(c_in, c_out, 3, act=nn.ReLU), ConvAct(c_out, c_out, 3, act=nn.ReLU))

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.down[0](x)]
        for block in self.down[1:]:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with a shortcut in the backbone."""

    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvAct(width, width, 3), ConvAct(width, width, 3))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convs(x) if self.shortcut else self.convs(x)


class C2f(nn.Module):
    """Cross-stage partial block: halves by chunk, every intermediate result concatenated."""

    def __init__(self, c_in: int, c_out: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        self.entry = ConvAct(c_in, c_out)
        self.blocks = nn.ModuleList(Bottleneck(c_out // 2, shortcut) for _ in range(depth))
        self.exit = ConvAct((2 + depth) * c_out // 2, c_out)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.entry(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.exit(torch.cat(parts, 1))


class SPPF(nn.Module):
    """Spatial pyramid pooling by three chained max-pools."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.entry = ConvAct(width, width // 2)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.exit = ConvAct(width * 2, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.entry(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.exit(torch.cat(parts, 1))


class DetectionHead(nn.Module):
    """Decoupled box and class branches; a box side is the expectation over ``bins`` distances."""

    def __init__(self, widths: tuple[int, ...], classes: int, bins: int) -> None:
        super().__init__()
        self.classes, self.bins = classes, bins
        self.box = nn.ModuleList(self.branch(w, max(widths[0] // 4, 4 * bins), 4 * bins) for w in widths)
        self.cls = nn.ModuleList(self.branch(w, max(widths[0], classes), classes) for w in widths)
        self.expectation = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.expectation.weight.copy_(torch.arange(bins).view(1, bins, 1, 1))

    @staticmethod
    def branch(c_in: int, width: int, c_out: int) -> nn.Sequential:
        return nn.Sequential(ConvAct(c_in, width, 3), ConvAct(width, width, 3), nn.Conv2d(width, c_out, 1))

    def forward(self, features: list[Tensor]) -> Tensor:
        maps = [torch.cat([box(x), cls(x)], 1) for x, box, cls in zip(features, self.box, self.cls, strict=True)]
        outputs = 4 * self.bins + self.classes
        box, cls = torch.cat([m.view(-1, outputs, m.shape[2] * m.shape[3]) for m in maps], 2).split(
            (4 * self.bins, self.classes), 1
        )
        box = box.view(-1, 4, self.bins, box.shape[2]).transpose(2, 1).softmax(1)
        return torch.cat([self.expectation(box).flatten(1, 2), cls.sigmoid()], 1)


class Yolo(nn.Module):
    """Anchor-free one-stage detector in the manner of YOLOv8n, without the box decoding."""

    def __init__(self, width: int = 16, classes: int = 80, bins: int = 16) -> None:
        super().__init__()
        w2, w4, w8, w16 = (width * factor for factor in (2, 4, 8, 16))
        self.stem = nn.Sequential(ConvAct(3, width, 3, 2), ConvAct(width, w2, 3, 2), C2f(w2, w2, 1, True))
        self.stage3 = nn.Sequential(ConvAct(w2, w4, 3, 2), C2f(w4, w4, 2, True))
        self.stage4 = nn.Sequential(ConvAct(w4, w8, 3, 2), C2f(w8, w8, 2, True))
        self.stage5 = nn.Sequential(ConvAct(w8, w16, 3, 2), C2f(w16, w16, 1, True), SPPF(w16))
        self.upsample = nn.Upsample(scale_factor=2)
        self.up4 = C2f(w16 + w8, w8, 1, False)
        self.up3 = C2f(w8 + w4, w4, 1, False)
        self.to4, self.down4 = ConvAct(w4, w4, 3, 2), C2f(w4 + w8, w8, 1, False)
        self.to5, self.down5 = ConvAct(w8, w8, 3, 2), C2f(w8 + w16, w16, 1, False)
        self.head = DetectionHead((w4, w8, w16), classes, bins)

    def forward(self, x: Tensor) -> Tensor:
        c3 = self.stage3(self.stem(x))
        c4 = self.stage4(c3)
        c5 = self.stage5(c4)
        t4 = self.up4(torch.cat([self.upsample(c5), c4], 1))
        p3 = self.up3(torch.cat([self.upsample(t4), c3], 1))
        p4 = self.down4(torch.cat([self.to4(p3), t4], 1))
        p5 = self.down5(torch.cat([self.to5(p4), c5], 1))
        return self.head([p3, p4, p5])


class OutputOnly(nn.Module):
    """The ``"out"`` entry of a torchvision segmentation model's dictionary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)["out"]


def declare_torchvision_operators() -> None:
    """Make torchvision importable where its compiled extension cannot load.

    That is so for a CUDA build of torchvision beside a CPU build of torch. The import then fails at operators without
    a schema; the networks here use none of them, so any schema will do.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        spec = find_spec("torchvision")
        if spec is None or spec.origin is None:
            raise
        sources = [Path(spec.origin).with_name(f"_{kind}_registrations.py").read_text() for kind in ("meta", "autograd")]
        for operator in set(re.findall(r"torchvision::(\w+)", "".join(sources))):
            torch.library.define(f"torchvision::{operator}", "(Tensor x) -> Tensor")


def from_torchvision(name: str, size: int = 224, **options: bool) -> tuple[nn.Module, int]:
    declare_torchvision_operators()
    from torchvision import models

    return models.get_model(name, weights=None, **options), size


def segmentation(name: str) -> tuple[nn.Module, int]:
    model, size = from_torchvision(name, weights_backbone=None)
    return OutputOnly(model), size


def from_timm(name: str) -> tuple[nn.Module, int]:
    declare_torchvision_operators()
    import timm

    model = timm.create_model(name, pretrained=False, exportable=True)
    return model, model.default_cfg["input_size"][-1]


TORCHVISION = (
    "vgg16_bn",
    "resnet18",
    "resnet50",
    "densenet121",
    "regnet_y_400mf",
    "mobilenet_v2",
    "mnasnet1_0",
    "squeezenet1_1",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
    "mobilenet_v3_large",
    "resnext50_32x4d",
    "convnext_tiny",
)
SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
TIMM = (
    "repvgg_a0",
    "res2net50_26w_4s",
    "ghostnet_100",
    "hrnet_w18_small",
    "dla34",
    "cspresnet50",
    "mobilenetv4_conv_small",
    "edgenext_xx_small",
    "poolformer_s12",
    "fastvit_t8",
)

NETWORKS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    **{name: partial(from_torchvision, name) for name in TORCHVISION},
    "googlenet": partial(from_torchvision, "googlenet", aux_logits=False, init_weights=False),
    "inception_v3": partial(from_torchvision, "inception_v3", 299, aux_logits=False, init_weights=False),
    **{name: partial(segmentation, name) for name in SEGMENTATION},
    **{name: partial(from_timm, name) for name in TIMM},
    "unet": lambda: (UNet(), 224),
    "yolo": lambda: (Yolo(), 320),
}
"""For each name a function that returns the network and the height and width of its input."""

# --- export ---------------------------------------------------------------------------------------------------------


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The network ``name`` with randomised weights, in evaluation mode, and a batch of random input."""
    torch.manual_seed(SEED)
    with torch.no_grad():
        model, size = NETWORKS[name]()
    model.eval()
    x = torch.randn(BATCH, 3, size, size)
    randomise(model, x)
    return model, x


def export_ts(model: nn.Module, x: Tensor, path: Path) -> None:
    torch.onnx.export(
        model,
        (x,),
        path,
        dynamo=False,
        opset_version=OPSETS["ts"],
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
    )


def export_dynamo(model: nn.Module, x: Tensor, path: Path) -> None:
    torch.onnx.export(
        model,
        (x,),
        path,
        dynamo=True,
        opset_version=OPSETS["dynamo"],
        external_data=False,
        verbose=False,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )


EXPORTERS = {"ts": export_ts, "dynamo": export_dynamo}


def compare(model: nn.Module, x: Tensor, path: Path) -> float:
    """Difference between onnxruntime's and PyTorch's outputs, relative to the largest output; raises if too large."""
    (actual,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": x.numpy()})
    with torch.no_grad():
        expected = model(x).numpy()
    if not np.isfinite(actual).all():
        raise ValueError("outputs are not finite")
    error = float(np.abs(actual - expected).max() / np.abs(expected).max())
    if error > PARITY:
        raise ValueError(f"outputs differ from PyTorch's by {error:.1e} of the largest")
    return error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of: {' '.join(NETWORKS)} (default: all)")
    parser.add_argument("--exporter", choices=EXPORTERS, help="default: both, first the TorchScript one")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NETWORKS):
        parser.error(f"unknown: {' '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")

    failures: list[str] = []
    for exporter in [args.exporter] if args.exporter else EXPORTERS:
        for name in args.names or NETWORKS:
            path = args.out / f"{name}.{exporter}.onnx"
            start = time.perf_counter()
            try:
                model, x = build(name)
                EXPORTERS[exporter](model, x, path)
                error = compare(model, x, path)
            except Exception as exc:
                path.unlink(missing_ok=True)
                reason = str(exc).strip().partition("\n")[0]
                failures.append(f"{path.name}: {type(exc).__name__}: {reason}")
                print(f"FAILED {failures[-1]}", flush=True)
                continue
            seconds = time.perf_counter() - start
            size = path.stat().st_size / 2**20
            print(f"{path.name:45} {size:7.1f} MiB error {error:.1e} {seconds:5.0f} s", flush=True)
    if failures:
        print(f"\n{len(failures)} failed:", *failures, sep="\n  ")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
