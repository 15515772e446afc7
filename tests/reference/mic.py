"""Reference values of the Pruning Engine's criteria by their formulas, one filter and one sample after the other.

Needs torch and scikit-learn: ``python tests/reference/mic.py`` writes ``mic.npz``, which the tests compare with. The formulas
are those of MIC-Laboratory's CNN-Pruning-Engine, written anew: magnitudes are taken in every batch (there in the first only),
shares of clusters are not rounded to percents, batch normalisation is in inference mode, and where every cluster has but one
filter left, the criterion's order goes on (there it is an error).

Filters lie in clusters far apart, so that any version of scikit-learn finds the same ones.
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import nn

CLUSTERS = (1, 2, 4, 5)


class Net(nn.Module):
    """Two normalised convolutions and two dense layers on images 2 x 6 x 6."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 12, 3, bias=False), nn.BatchNorm2d(12)
        self.dense, self.last = nn.Linear(12 * 16, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x))).flatten(1)
        return self.last(torch.relu(self.dense(x)))


def grouped(filters: torch.Tensor, rng: np.random.Generator) -> None:
    """Move filters to the centres of clusters of so many, each at a distance of its own."""
    owners = np.repeat(np.arange(len(CLUSTERS)), CLUSTERS)[rng.permutation(len(filters))]
    centres = rng.standard_normal((len(CLUSTERS), *filters.shape[1:])) * 0.3
    filters.data = torch.tensor((centres[owners] + 0.03 * rng.standard_normal(filters.shape)).astype(np.float32))


def taylor(net: Net, x: torch.Tensor, labels: torch.Tensor, batch: int) -> dict[str, np.ndarray]:
    """Mean over the positions of |F G|, F and G the mean magnitudes of layers' and normalisations' outputs and slopes."""
    pairs = {"conv1": ("conv1", "norm1"), "conv2": ("conv2", "norm2"), "dense": ("dense",)}
    seen: dict[str, torch.Tensor] = {}
    sums: dict[tuple[str, str], torch.Tensor | float] = {}

    def keep(name: str, out: torch.Tensor) -> None:
        out.retain_grad()
        seen[name] = out

    for name, module in net.named_children():
        module.register_forward_hook(lambda _module, _inputs, out, name=name: keep(name, out))
    for start in range(0, len(x), batch):
        rows = slice(start, start + batch)
        nn.functional.cross_entropy(net(x[rows]), labels[rows], reduction="sum").backward()
        for name, out in seen.items():
            for kind, values in (("f", out), ("g", out.grad)):
                sums[kind, name] = sums.get((kind, name), 0.0) + values.detach().abs().sum(0) / len(x)
    found = {}
    for layer, names in pairs.items():
        product = sum(sums["f", n] for n in names) * sum(sums["g", n] for n in names)
        scores = product.abs().reshape(len(product), -1).mean(1)
        found[layer] = (scores / (torch.linalg.norm(scores) + 1e-8)).numpy()
    return found


def chosen(labels: np.ndarray, scores: np.ndarray, count: int) -> list[int]:
    """The filters that leave: each cluster's share, then one cluster after the other, then whatever is least important."""
    groups: dict[int, list[int]] = {}
    for i in np.argsort(scores, kind="stable"):
        groups.setdefault(int(labels[i]), []).append(int(i))
    shared = [g for g in groups.values() if len(g) > 1]
    total, gone = sum(len(g) for g in shared), []
    for g in shared:
        for _ in range(count * len(g) // total):
            if len(g) > 1:
                gone.append(g.pop(0))
    while len(gone) < count and any(len(g) > 1 for g in shared):
        for g in shared:
            if len(g) > 1 and len(gone) < count:
                gone.append(g.pop(0))
    left = [int(i) for i in np.argsort(scores, kind="stable") if int(i) not in gone]
    return sorted(gone + left[: count - len(gone)])


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net = Net().eval()
    grouped(net.conv1.weight, rng)
    grouped(net.conv2.weight, rng)
    for norm in (net.norm1, net.norm2):
        norm.weight.data = torch.tensor(rng.uniform(0.9, 1.1, 12).astype(np.float32))
        norm.bias.data = torch.tensor(rng.standard_normal(12).astype(np.float32))
        norm.running_mean = torch.tensor(rng.standard_normal(12).astype(np.float32) * 0.2)
        norm.running_var = torch.tensor(rng.uniform(0.5, 2, 12).astype(np.float32))
    x, labels = rng.standard_normal((37, 2, 6, 6)).astype(np.float32), rng.integers(0, 3, 37)
    with torch.no_grad():  # so that each class is predicted now and then
        net.last.weight *= 4
        net.last.bias -= net(torch.tensor(x)).mean(0)
    scores = taylor(net, torch.tensor(x), torch.tensor(labels), 16)
    found = {f"net.{name}": value.numpy() for name, value in net.state_dict().items() if not name.endswith("tracked")}
    found |= {"x": x, "labels": labels} | {f"taylor.{name}": value for name, value in scores.items()}
    for name in ("conv1", "conv2"):
        weight = getattr(net, name).weight.detach().numpy().reshape(12, -1)
        l1 = np.abs(weight).sum(1)
        reduced = PCA(0.8).fit_transform(weight)
        by_components = KMeans(len(CLUSTERS), random_state=0, n_init="auto").fit(reduced).labels_
        by_weights = KMeans(len(CLUSTERS), random_state=0, n_init="auto").fit(weight).labels_
        found[f"l1.{name}"] = l1
        found[f"kmeans-l1.{name}"] = np.array([chosen(by_components, l1, n) + [-1] * (11 - n) for n in range(1, 12)])
        found[f"kmeans-taylor.{name}"] = np.array([chosen(by_weights, scores[name], n) + [-1] * (11 - n) for n in range(1, 12)])
        shifted = reduced + getattr(net, f"norm{name[-1]}").weight.detach().numpy()[:, None]
        model = KMeans(len(CLUSTERS), random_state=0, n_init="auto").fit(shifted)
        distance = np.linalg.norm(shifted - model.cluster_centers_[model.labels_], axis=1)
        alone = np.bincount(model.labels_)[model.labels_] == 1
        assert sorted(np.bincount(model.labels_)) == sorted(np.bincount(by_components)) == sorted(CLUSTERS)
        found[f"kmeans-distance.{name}"] = np.argsort(np.where(alone, 1e10, distance), kind="stable")
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)


if __name__ == "__main__":
    main()
