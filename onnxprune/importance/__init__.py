"""Criteria: how important each channel of a group is. One file each.

A criterion is a function ``(group, weights, data) -> float64 (channels,)``, larger = keep. It never names an operator: the
group hands out the slices of its producers' filters. A :class:`Nominator` looks at the whole model and says for each
channel that leaves what stands in for it.

>>> from onnxprune.importance import CRITERIA
>>> sorted(CRITERIA)[:3]
['impact', 'kmeans-distance', 'kmeans-l1']
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from onnxprune.allocation import Scores
from onnxprune.channels import ChannelGroup
from onnxprune.data import Dataset
from onnxprune.errors import OptionError, UsageError
from onnxprune.importance.baseline import Random
from onnxprune.importance.curves import Curved, summed
from onnxprune.importance.impact import Impact
from onnxprune.importance.kmeans import ByTaylor, Clustered, Distance
from onnxprune.importance.magnitude import l1, l2
from onnxprune.importance.measured import Measured
from onnxprune.importance.obs import Obs
from onnxprune.importance.options import Options
from onnxprune.importance.pairs import Nominator, Pairs
from onnxprune.importance.paoding import MODES, Paoding
from onnxprune.importance.reconstruction import Reconstruction
from onnxprune.importance.saliency import Saliency
from onnxprune.importance.saved import Saved, ScoreTable
from onnxprune.importance.scene import Scene
from onnxprune.importance.stochastic import Stochastic
from onnxprune.importance.taylor import Taylor
from onnxprune.importance.units import Units
from onnxprune.importance.wasserstein import Wasserstein
from onnxprune.weights import Weights


class Criterion(Protocol):
    """How important the channels of a group are."""

    def __call__(self, group: ChannelGroup, weights: Weights, data: Dataset | None) -> Scores:
        """Float64 (channels,), larger = keep."""


CRITERIA: Mapping[str, Callable[[Options], Criterion]] = {
    "l1": lambda options: l1,
    "l2": lambda options: l2,
    "random": lambda options: Random(options.seed),
    "kmeans-l1": Clustered,
    "kmeans-distance": Distance,
    "kmeans-taylor": ByTaylor,
    "taylor": Taylor,
    "saliency": lambda options: Paoding("saliency", options) if options.compat else Saliency(options),
    "impact": lambda options: Paoding("impact", options) if options.compat else Impact(options),
    "stochastic": lambda options: Paoding("stochastic", options) if options.compat else Stochastic(options),
    "wasserstein": Wasserstein,
    "reconstruction": Reconstruction,
    "obs": Obs,
}


def criterion(name: "str | Criterion", options: Options) -> Criterion:
    """The criterion of a name; an object is taken as it is.

    Raises:
        UsageError: there is none of that name.
        OptionError: ``compat`` is set, and the criterion has no counterpart there.
    """
    if not isinstance(name, str):
        return name
    if name not in CRITERIA:
        raise UsageError(f"criterion {name!r} does not exist; choose one of {', '.join(sorted(CRITERIA))}")
    if options.compat and name not in MODES:
        raise OptionError(f"criterion {name!r} does not exist in {options.compat}; choose {', '.join(MODES)}, or no compat")
    return CRITERIA[name](options)


__all__ = [
    "CRITERIA",
    "ByTaylor",
    "Clustered",
    "Criterion",
    "Curved",
    "Distance",
    "Impact",
    "Measured",
    "Nominator",
    "Obs",
    "Options",
    "Pairs",
    "Paoding",
    "Random",
    "Reconstruction",
    "Saliency",
    "Saved",
    "Scene",
    "ScoreTable",
    "Stochastic",
    "Taylor",
    "Units",
    "Wasserstein",
    "criterion",
    "l1",
    "l2",
    "summed",
]
