"""Robustness: which samples stay classified right after an attack, and after random noise of the same size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxprune.data import Dataset
from onnxprune.errors import DataError, ModelError
from onnxprune.evaluate.accuracy import Labels, Scores, classes, predict
from onnxprune.evaluate.classifier import classifier
from onnxprune.evaluate.gradient import Blocks, Progress, differences
from onnxprune.lazy import AnyModel
from onnxprune.runtime import Session
from onnxprune.structure import Port
from onnxprune.weights import Array

Range = tuple[float, float]
"""Smallest and largest value that an attacked input may have."""


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
    """How many samples are still classified right, by epsilon."""

    attack: Mapping[float, int]
    noise: Mapping[float, int]


def fgsm(
    model: AnyModel,
    data: Dataset,
    ports: Sequence[Port],
    clean: Scores,
    accepted: Labels,
    *,
    epsilons: Sequence[float],
    blocks: Mapping[str, Blocks],
    limits: Mapping[str, Range],
    zero: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Robustness:
    """The fast gradient sign method, and uniformly random signs as its control.

    x' = clip(x - epsilon sign(dm/dx)), m the log-odds of the label: the cross-entropy's gradient has everywhere the opposite
    sign of m's. Differences are taken of whatever form of the model is best for that, but it is the model as it is that
    judges x'. Source: Goodfellow, Shlens, Szegedy 2015, "Explaining and harnessing adversarial examples", section 4.

    Args:
        data: the samples that are classified right; the others need no attack. ``clean``: their scores.
        accepted: which classes count as right ``(samples, k)``; the first is the one that is attacked.
        blocks: how each attacked input is differentiated.
        limits: the range in which each attacked input stays.
        zero: what the sign of the loss's derivative counts as where that is zero.

    Raises:
        DataError: the classes do not come from scores.
        ModelError: the model does not run.
    """
    form = classifier(model, data, ports, clean)
    spread = {name: high - low or 1.0 for name, (low, high) in limits.items()}
    slopes = differences(form, data.inputs, accepted[:, 0], blocks, spread, progress=progress)
    loss = {name: -np.sign(found).astype(np.int8) for name, found in slopes.items()}
    signs = {name: np.where(found == 0, np.int8(zero), found)[:, blocks[name].of] for name, found in loss.items()}
    session, right = Session(model, threads=2), {}
    rng = np.random.default_rng(seed)
    noise = {name: (2 * rng.integers(0, 2, s.shape, np.int8) - 1).astype(np.int8) for name, s in signs.items()}
    for kind, moves in (("attack", signs), ("noise", noise)):
        for epsilon in epsilons:
            if progress is not None:
                progress(f"{kind}: epsilon {epsilon:g}")
            predicted = classes(predict(session, _moved(data, moves, epsilon, limits), ports), clean.probabilities)
            if predicted is None:
                raise ModelError(f"the model's outputs change their form under the {kind}; evaluate without an attack")
            right[kind, epsilon] = int((accepted == predicted[:, None]).any(axis=1).sum())
    return Robustness({e: right["attack", e] for e in epsilons}, {e: right["noise", e] for e in epsilons})


def _moved(data: Dataset, signs: Mapping[str, npt.NDArray[np.int8]], epsilon: float, limits: Mapping[str, Range]) -> Dataset:
    """Samples after a step of size epsilon, clipped."""
    moved = dict(data.inputs)
    for name, sign in signs.items():
        values = data.inputs[name]
        moved[name] = np.clip(values + sign.reshape(values.shape) * values.dtype.type(epsilon), *limits[name])
    return replace(data, inputs=moved)
