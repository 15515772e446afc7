"""Reference values of FAIR-Pruner's scores and counts, by its formulas, one unit and one pair of classes after the other.

Needs torch: ``python tests/reference/fair.py`` writes ``fair.npz``, which the tests compare with. The formulas are those of
network-pruner 2.16 (PyPI), written anew: utilization score = largest (sliced) Wasserstein-1 distance between two classes of a
layer's own output, reconstruction score = |sum over batches of sum w dL/dw + b dL/db|, count = largest m with
|lowest U & highest R| / m <= level. Unlike there, batch normalisation is in inference mode and directions are drawn once.
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import nn

CLASSES, SIZES = 3, (8, 8, 5)  # of which the last has fewer samples


class Net(nn.Module):
    """Two convolutions, one normalised, and two dense layers on images 1 x 6 x 6."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
        self.dense, self.last = nn.Linear(6 * 16, 10), nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv1(x)))
        x = torch.relu(self.conv2(x)).flatten(1)
        return self.last(torch.relu(self.dense(x)))


class Recurrent(nn.Module):
    """An LSTM over 5 steps of 4 numbers, all of whose outputs a dense layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(4, 7, batch_first=True), nn.Linear(5 * 7, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.lstm(x)[0].flatten(1))


def quantiles(x: torch.Tensor, count: int) -> torch.Tensor:
    return torch.quantile(x, torch.linspace(0, 1, count, dtype=x.dtype), dim=0)


def utilization(outputs: torch.Tensor, labels: torch.Tensor, directions: torch.Tensor) -> list[float]:
    """Outputs (samples, units, numbers), directions (numbers, count)."""
    found = []
    for unit in range(outputs.shape[1]):
        distances = []
        for a, b in combinations(range(CLASSES), 2):
            x, y = (outputs[labels == k, unit] @ directions for k in (a, b))
            count = max(len(x), len(y))
            distances.append((quantiles(x, count) - quantiles(y, count)).abs().mean())
        found.append(max(distances).item())
    return found


def reconstruction(model: nn.Module, layer: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> list[float]:
    rows = 0
    for part in torch.arange(len(x)).split(6):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[part]), labels[part], reduction="sum").backward()
        for parameter in layer.parameters():
            products = (parameter * parameter.grad).detach()
            rows = rows + products.reshape(len(products), -1).sum(dim=1)
    units = rows.reshape(4, -1).sum(dim=0) if isinstance(layer, nn.LSTM) else rows
    return units.abs().tolist()


def count(removal: list[float], protection: list[float], level: float) -> int:
    size = len(removal)
    for m in range(int(0.99 * size), 0, -1):
        low, high = np.argsort(removal, kind="stable")[:m], np.argsort(protection, kind="stable")[size - m :]
        if len(set(low) & set(high)) / m <= level:
            return m
    return 0


def outputs_of(model: nn.Module, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    kept = []
    handle = layer.register_forward_hook(lambda module, given, result: kept.append(result))
    model(x)
    handle.remove()
    values = kept[0][0].transpose(1, 2) if isinstance(layer, nn.LSTM) else kept[0]
    return values.detach().reshape(len(x), values.shape[1], -1)


def main() -> None:
    torch.manual_seed(0)
    found: dict[str, np.ndarray] = {}
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(SIZES)])
    for name, model, shape in (("net", Net(), (1, 6, 6)), ("recurrent", Recurrent(), (5, 4))):
        model = model.double().eval()
        x = torch.randn(len(labels), *shape, dtype=torch.double) + labels.reshape(-1, *[1] * len(shape)) / 2
        if name == "net":
            model.norm.running_mean.copy_(torch.randn(8) / 5)
            model.norm.running_var.copy_(torch.rand(8) + 0.5)
        found |= {f"{name}.x": x.numpy(), f"{name}.labels": labels.numpy()}
        found |= {f"{name}.{key}": value.numpy() for key, value in model.state_dict().items() if value.ndim}
        for key, layer in list(model.named_children()):
            if isinstance(layer, nn.BatchNorm2d) or key == "last":
                continue
            outputs = outputs_of(model, layer, x)
            directions = torch.ones(1, 1, dtype=torch.double)
            if outputs.shape[2] > 1:
                directions = nn.functional.normalize(torch.randn(outputs.shape[2], 16, dtype=torch.double), dim=0)
            u, r = utilization(outputs, labels, directions), reconstruction(model, layer, x, labels)
            counts = [count(u, r, level) for level in (0.05, 0.3, 0.6)]
            scores = {"directions": directions.numpy(), "u": np.array(u), "r": np.array(r), "counts": np.array(counts)}
            found |= {f"{name}.{key}.{what}": values for what, values in scores.items()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)


if __name__ == "__main__":
    main()
