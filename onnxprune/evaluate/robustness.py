"""Robustness: which samples stay classified right after an attack, and after random noise of the same size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.data import Dataset
from onnxprune.errors import DataError, ModelError
from onnxprune.evaluate.accuracy import Labels, classes, predict
from onnxprune.evaluate.attack import Attack, Gradient, Inputs, Move, Range, adversarial, shifted
from onnxprune.runtime import Session
from onnxprune.structure import Port
from onnxprune.weights import Array

_TOGETHER = 1 << 26
"""Bytes of samples that are attacked at the same time."""


def attacked(data: Dataset) -> dict[str, Array]:
    """The inputs that an attack can move: those of floats.

    Raises:
        DataError: there is none.
    """
    floats = {name: values for name, values in data.inputs.items() if values.dtype.kind == "f"}
    if not floats:
        raise DataError(
            f"the model's inputs {sorted(data.inputs)} hold whole numbers (token ids, say), which no epsilon can move; "
            "evaluate without an attack"
        )
    return floats


def limits(inputs: Mapping[str, Array], clip: Range | None) -> dict[str, Range]:
    """To which range each attacked input is clipped: ``clip``, or by default the data's own.

    Raises:
        DataError: the data leave ``clip``.
    """
    own = {name: (float(values.min()), float(values.max())) for name, values in inputs.items()}
    if clip is None:
        return own
    for name, (low, high) in own.items():
        if low < clip[0] or high > clip[1]:
            raise DataError(
                f"input {name!r} has values in [{low:g}, {high:g}] outside of the clip range [{clip[0]:g}, {clip[1]:g}]; "
                "give the range that the model's inputs have"
            )
    return dict.fromkeys(own, clip)


@dataclass(frozen=True)
class Robustness:
    """How many samples are still classified right, by epsilon; and how many gradients and predictions that took."""

    attack: Mapping[float, int]
    noise: Mapping[float, int]
    gradients: int = 0
    judged: int = 0


class Judge:
    """Tells which samples a model classifies right, and counts them.

    Args:
        session, ports: of the model. ``probabilities``: whether its scores are such, None where it gives classes alone.
    """

    def __init__(self, session: Session, ports: Sequence[Port], probabilities: bool | None) -> None:
        self._session, self._ports, self._probabilities = session, ports, probabilities
        self.count = 0

    def right(self, inputs: Inputs, accepted: Labels) -> npt.NDArray[np.bool_]:
        """Which samples get one of their classes ``accepted`` ``(samples, k)``.

        Raises:
            ModelError: the model does not run, or gives something else than before.
        """
        self.count += len(accepted)
        predicted = classes(predict(self._session, Dataset(inputs, None), self._ports), self._probabilities)
        if predicted is None:
            raise ModelError("the model's outputs change their form when the inputs are moved; evaluate without an attack")
        return np.asarray((accepted == predicted[:, None]).any(axis=1))


def robustness(
    judge: Judge,
    gradient: Gradient,
    data: Dataset,
    accepted: Labels,
    attack: Attack,
    *,
    epsilons: Sequence[float],
    limits: Mapping[str, Range],
    stops: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Robustness:
    """Attack samples, and move them in random directions as a control.

    Args:
        judge: the model that is attacked; ``gradient`` may be another one's.
        data: the samples that are classified right; the others need no attack.
        accepted: which classes count as right ``(samples, k)``; the first is the one that is attacked.
        limits: the range in which each attacked input stays.
        stops: whether a sample is done once the judge errs about it; otherwise it is asked about the last step only.

    Raises:
        ModelError: a model does not run, or has no gradient.
    """
    rng, gradients = np.random.default_rng(seed), 0
    tell = progress or (lambda stage: None)
    right = {kind: dict.fromkeys(epsilons, 0) for kind in ("attack", "noise")}
    each = sum(values[0].nbytes for values in data.inputs.values())
    size = max(1, _TOGETHER // max(each, 1))

    def counted(inputs: Inputs, labels: Labels, step: int) -> Move:
        nonlocal gradients
        gradients += len(labels)
        return gradient(inputs, labels, step)

    for begin in range(0, data.samples, size):
        rows = slice(begin, begin + size)
        part, wanted = data.take(rows).inputs, accepted[rows]
        noise = _normal(part, limits, rng)
        first = None if attack.random_start else counted(part, wanted[:, 0], 0)

        def fooled(moved: Inputs, rows: Labels, wanted: Labels = wanted) -> npt.NDArray[np.bool_]:
            return ~judge.right(moved, wanted[rows])

        for epsilon in epsilons:
            tell(f"attack: epsilon {epsilon:g}")
            moved = adversarial(
                counted,
                part,
                wanted[:, 0],
                limits,
                attack,
                epsilon,
                attack.start(noise, epsilon, rng),
                first=first,
                fooled=fooled if stops else None,
            )
            right["attack"][epsilon] += int(judge.right(moved, wanted).sum())
            shift = {name: epsilon * way for name, way in attack.direction(noise).items()}
            moved = {**part, **shifted(part, shift, limits)}
            right["noise"][epsilon] += int(judge.right(moved, wanted).sum())
    return Robustness(right["attack"], right["noise"], gradients, judge.count)


def _normal(inputs: Inputs, limits: Mapping[str, Range], rng: np.random.Generator) -> Move:
    """Standard normal values in the attacked inputs' form."""
    return {name: rng.standard_normal(inputs[name].shape, np.float32).reshape(len(inputs[name]), -1) for name in limits}
