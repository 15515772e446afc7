"""Masks of DWP's "Network Pruning" as its paper and ``global_prune`` document them, for a small net: writes ``dwp.npz``.

    python tests/reference/dwp.py

Needs torch (last run with 2.13). Written down from the description, with torch's own operations: scores of all convolutions
together, the threshold is entry ``int(p n)`` of the sorted scores, what is strictly below is a candidate. ``kernel``: the L1
norm of each two-dimensional kernel (the granularity behind the published table); ``element``: |w| (the paper's set).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

SHARES = (0.1, 0.3, 0.5, 0.7)


def net() -> dict[str, torch.nn.Conv2d]:
    """Convolutions of several kernel sizes, a depthwise and a grouped one, as a residual network has them."""
    torch.manual_seed(0)
    return {
        "stem": torch.nn.Conv2d(3, 8, 3, bias=False),
        "block": torch.nn.Conv2d(8, 16, 3),
        "shortcut": torch.nn.Conv2d(8, 16, 1, bias=False),
        "depthwise": torch.nn.Conv2d(16, 16, 5, groups=16),
        "grouped": torch.nn.Conv2d(16, 8, 3, groups=2),
    }


def masks(layers: dict[str, torch.nn.Conv2d], share: float, granularity: str) -> dict[str, torch.Tensor]:
    """True where a weight stays."""
    scores = {name: layer.weight.detach().double().abs() for name, layer in layers.items()}
    if granularity == "kernel":
        scores = {name: score.sum(dim=(2, 3), keepdim=True) for name, score in scores.items()}
    flat = torch.cat([score.flatten() for score in scores.values()])
    threshold = torch.sort(flat).values[int(share * flat.numel())]
    return {name: ~(score < threshold).expand_as(layers[name].weight) for name, score in scores.items()}


def main() -> None:
    """Write weights and masks."""
    layers = net()
    found = {f"weight/{name}": layer.weight.detach().numpy() for name, layer in layers.items()}
    for granularity in ("kernel", "element"):
        for share in SHARES:
            for name, mask in masks(layers, share, granularity).items():
                found[f"{granularity}/{share}/{name}"] = np.packbits(mask.numpy())
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)


if __name__ == "__main__":
    main()
