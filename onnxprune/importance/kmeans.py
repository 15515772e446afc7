"""K-means: filters that are alike form clusters, and each cluster loses its share (MIC-Laboratory's Pruning Engine)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.allocation import Scores, lowest
from onnxprune.channels import ChannelGroup, Member, chosen
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.importance.magnitude import l1
from onnxprune.importance.normalised import scales
from onnxprune.importance.options import Options
from onnxprune.importance.pairs import Pairs
from onnxprune.importance.scene import Scene
from onnxprune.importance.taylor import Taylor
from onnxprune.labels import IntArray
from onnxprune.weights import Array, Weights

if TYPE_CHECKING:
    from sklearn.cluster import KMeans

VARIANCE = 0.8
"""The share of the filters' variance that their principal components keep."""

SHARE = 0.2
"""Clusters where nothing is said, over filters: about the mean of the lists that the Pruning Engine found for VGG16."""


class Clustered:
    """Each cluster of filters loses its share, the least important first, and keeps one: ``kmeans-l1``.

    Filters are clustered by what is left of them in as many principal components as hold ``VARIANCE`` of their variance; in
    a group with several producers those of all, side by side. A cluster of one filter is not touched. Of ``count`` filters
    that leave, a cluster of ``g`` among ``t`` in such of more than one loses ``floor(count g / t)``; then one cluster after
    the other gives one more, that of the least important filter first. Once each has but one left, the order of importance
    decides, which is that of the L1 norm.

    Raises:
        UsageError: scikit-learn is not installed.
    """

    compensation = "none"

    def __init__(self, options: Options | None = None) -> None:
        self.options = Options() if options is None else options
        learn()

    def __call__(self, group: ChannelGroup, weights: Weights, data: Dataset | None) -> Scores:
        """Float64 (channels,), larger = keep: the order within a cluster."""
        return l1(group, weights, data)

    def nominate(self, scene: Scene, number: int, count: int) -> Pairs | None:
        """``count`` channels."""
        scores, group = self.rank(scene, number), scene.group(number)
        order = self(group, scene.weights, None) if scores is None else scores
        leaves = shares(self.labels(scene, number), order, count)
        return Pairs(leaves, np.full(len(leaves), -1))

    def rank(self, scene: Scene, number: int) -> Scores | None:
        """The same as when called."""
        return None

    def labels(self, scene: Scene, number: int) -> IntArray:
        """The cluster of each channel, int (channels,)."""
        found = fitted(self.features(scene, number), self.clusters(scene, number), self.options.seed)
        return np.zeros(scene.group(number).size, np.int64) if found is None else np.asarray(found.labels_, np.int64)

    def features(self, scene: Scene, number: int) -> Array:
        """What channels are compared by, float32 (channels, numbers)."""
        return joined(scene, number, (components(rows) for _, rows in filters(scene.group(number), scene.weights)))

    def clusters(self, scene: Scene, number: int) -> int:
        """How many clusters a group is parted into: no more than it has channels."""
        size = scene.group(number).size
        wanted = chosen(scene.coupling, self.options.clusters, "--clusters")[number]
        return min(size, max(1, round(size * SHARE)) if wanted is None else int(wanted))


class Distance(Clustered):
    """The filters nearest to the centre of their cluster leave, as those that others can replace: ``kmeans-distance``.

    To each filter's principal components the scale of its normalisation is added, where there is one. A cluster of one filter
    comes last.
    """

    def nominate(self, scene: Scene, number: int, count: int) -> Pairs | None:
        """``count`` channels."""
        leaves = lowest(self.rank(scene, number), count)
        return Pairs(leaves, np.full(len(leaves), -1))

    def rank(self, scene: Scene, number: int) -> Scores:
        """The distance of each channel from the centre of its cluster; alone, twice the largest."""
        values = self.features(scene, number)
        found = fitted(values, self.clusters(scene, number), self.options.seed)
        if found is None:
            return self(scene.group(number), scene.weights, None)
        distances = np.linalg.norm(values - found.cluster_centers_[found.labels_], axis=1).astype(np.float64)
        alone = np.bincount(found.labels_)[found.labels_] == 1
        return np.asarray(np.where(alone, 2 * distances.max(), distances))

    def features(self, scene: Scene, number: int) -> Array:
        """What channels are compared by, float32 (channels, numbers)."""
        found = filters(scene.group(number), scene.weights)
        return joined(scene, number, (components(rows) + scales(scene, number, member)[:, None] for member, rows in found))


class ByTaylor(Clustered):
    """The same with filters compared as they are, and importance by :class:`Taylor`: ``kmeans-taylor``."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._taylor = Taylor(options, "kmeans-taylor")

    def rank(self, scene: Scene, number: int) -> Scores:
        """As :class:`Taylor`."""
        return self._taylor.rank(scene, number)

    def features(self, scene: Scene, number: int) -> Array:
        """What channels are compared by, float32 (channels, numbers)."""
        return joined(scene, number, (rows for _, rows in filters(scene.group(number), scene.weights)))


def shares(labels: IntArray, order: Scores, count: int) -> IntArray:
    """Which ``count`` filters leave, so that each cluster loses its share: see :class:`Clustered`.

    Args:
        labels: int (filters,), the cluster of each. order: float64 (filters,), larger = keep.

    Returns:
        int (count,), fewer where there are not so many.
    """
    ranked = lowest(order, len(order))
    clusters = [ranked[labels[ranked] == c].tolist() for c in dict.fromkeys(labels[ranked].tolist())]
    waiting = [members for members in clusters if len(members) > 1]
    total = sum(map(len, waiting))
    leaves: list[int] = []
    for members in waiting:
        quota = min(len(members) - 1, int(np.floor(count * len(members) / total + 1e-9)))
        leaves += members[:quota]
        del members[:quota]
    while len(leaves) < count and any(len(members) > 1 for members in waiting):
        for members in waiting:
            if len(members) > 1 and len(leaves) < count:
                leaves.append(members.pop(0))
    rest = ranked[~np.isin(ranked, leaves)]
    return np.array([*leaves, *rest[: max(0, count - len(leaves))]], np.int64)


def filters(group: ChannelGroup, weights: Weights) -> Iterator[tuple[Member, Array]]:
    """The filters of each producer of a group, float32 (channels, numbers): of each channel in the order they are stored."""
    for member in group.producers(weights):
        rows: list[list[Array]] = [[] for _ in range(group.size)]
        for values, channels in replace(group, members=(member,)).slices(weights):
            for channel, row in zip(channels, values.reshape(len(values), -1).astype(np.float32, copy=False), strict=True):
                rows[channel].append(row)
        if len({sum(map(len, parts)) for parts in rows}) == 1:
            yield member, np.stack([np.concatenate(parts) for parts in rows])


def joined(scene: Scene, number: int, parts: Iterable[Array]) -> Array:
    """The numbers of all producers of a group side by side; nothing, alike for all channels, where it has none."""
    return np.concatenate([*parts] or [np.zeros((scene.group(number).size, 1), np.float32)], axis=1)


def components(rows: Array) -> Array:
    """The principal components of rows that hold ``VARIANCE`` of their variance, float32 (rows, components)."""
    if len(rows) < 2 or not np.var(rows, axis=0).any():
        return np.zeros((len(rows), 1), np.float32)
    _, pca = learn()
    return np.asarray(pca(n_components=VARIANCE, svd_solver="full").fit_transform(rows), np.float32)


def fitted(values: Array, clusters: int, seed: int) -> KMeans | None:
    """K-means of rows; None where they are all alike, or there is but one cluster."""
    clusters = min(clusters, len(np.unique(values, axis=0)))
    if clusters < 2:
        return None
    kmeans, _ = learn()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rows that are the same but for their last digits
        return kmeans(n_clusters=clusters, random_state=seed, n_init="auto").fit(values)


def learn() -> tuple[Any, Any]:
    """scikit-learn's KMeans and PCA.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA
    except ImportError as error:
        raise UsageError(
            "the k-means criteria need scikit-learn, which is not installed; pip install 'onnxprune[cluster]'"
        ) from error
    return KMeans, PCA
