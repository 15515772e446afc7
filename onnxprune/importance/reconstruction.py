"""Reconstruction: how much the loss changes with a unit, to first order (FAIR-Pruner's reconstruction score)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.channels import Member
from onnxprune.errors import GradientError, ModelError
from onnxprune.gradient import Gate, Wrt
from onnxprune.importance.calibration import Calibration
from onnxprune.importance.measured import Measured
from onnxprune.importance.scene import Scene
from onnxprune.weights import FLOATS

STEP = 1 / 64
"""How far a unit's weights are scaled up and down for a central difference."""

SAMPLES = 128
"""Samples on which differences are taken at most: each unit takes two runs on each of them."""


class Reconstruction(Measured):
    """``R_i = |sum over the samples of sum_w w dL/dw|`` over the filter and the bias of unit i: the first-order Taylor term.

    ``L`` is the cross-entropy with the label. Since the output y of a sum of products is of degree one in its weights, that is
    ``|sum y dL/dy|``, the derivative by a gate on the channel, and one backward pass tells it for all units. Of a group that
    several layers make, all of them are scaled together. Where a layer is no sum of products it is taken from the stored
    tensors' own gradients; where there is no gradient (recurrent layers), by central differences, which the notes say.

    FAIR-Pruner (Lin et al. 2025); Molchanov et al. 2019, arXiv:1906.10771.
    """

    name = "reconstruction"

    def measure(self, scene: Scene) -> list[Scores]:
        """Float64 (channels,) for each group."""
        numbers = range(len(scene.coupling.groups))
        found = first_order(scene, scene.calibration(self.name), numbers, self.options.seed)
        return [np.abs(found[n]) for n in numbers]


def first_order(scene: Scene, calibration: Calibration, numbers: Iterable[int], seed: int) -> dict[int, Scores]:
    """The derivative of the summed losses by a factor on the weights of each channel, float64 (channels,), by group.

    From one backward pass where there is a gradient, by differences elsewhere.
    """
    wrt = {n: _wrt(scene, n) for n in numbers}
    known = with_gradient(calibration, wrt)
    found = slopes(scene, calibration, {n: wrt[n] for n in known})
    return found | {n: differences(scene, calibration, n, seed) for n in wrt if n not in known}


def _wrt(scene: Scene, number: int) -> list[Wrt]:
    """What a group's derivative is made of: gates on what its layers give out, or else these layers' stored tensors."""
    made = scene.made(number)
    steps = scene.producers(number)
    if made and len(made) == len(steps) and all(step.rule is not None and step.rule.product for step in steps):
        return [Gate(name, axis) for name, axis in made.items()]
    return list(dict.fromkeys(member.site.tensor for member in _producers(scene, number)))


def _producers(scene: Scene, number: int) -> list[Member]:
    return [member for member in scene.group(number).members if member.producer]


def with_gradient(calibration: Calibration, wrt: Mapping[int, Sequence[Wrt]]) -> list[int]:
    """The groups whose derivative can be written as a graph."""
    try:
        calibration.graded([w for each in wrt.values() for w in each])
    except GradientError:
        return [n for n, each in wrt.items() if len(wrt) > 1 and with_gradient(calibration, {n: each})]
    return list(wrt)


def slopes(scene: Scene, calibration: Calibration, wrt: Mapping[int, list[Wrt]]) -> dict[int, Scores]:
    """The same where there is a gradient.

    Args:
        wrt: gates on tensors in which the group's channels lie, or the stored tensors of its producers.
    """
    found = {n: np.zeros(scene.group(n).size) for n in wrt}
    if not wrt:
        return found
    for batch in calibration.differentiate([w for each in wrt.values() for w in each]):
        for n, each in wrt.items():
            for w in each:
                slope = batch.slopes[w].astype(np.float64)
                if isinstance(w, Gate):
                    places = scene.places(n, w.tensor, w.axis)
                    assert places is not None, "made() lists tensors in which the channels lie"
                    found[n] += slope.reshape(-1, slope.shape[-1]).sum(axis=0)[places].sum(axis=1)
                    continue
                products = slope * calibration.graph.weights.read(w)
                for member in (m for m in _producers(scene, n) if m.site.tensor == w):
                    rows = np.moveaxis(products, member.site.axis, 0).reshape(products.shape[member.site.axis], -1).sum(axis=1)
                    np.add.at(found[n], member.channels, rows[member.positions])
    return found


def differences(scene: Scene, calibration: Calibration, number: int, seed: int) -> Scores:
    """The same by central differences: the weights that make a channel are scaled up and down, one channel at a time.

    Raises:
        ModelError: the weights are quantised.
    """
    group, members = scene.group(number), _producers(scene, number)
    for tensor in (m.site.tensor for m in members if scene.graph.weights.elem_type(m.site.tensor) not in FLOATS):
        raise ModelError(
            f"group {group.name!r} has quantised weights ({tensor!r}), by which the loss has no derivative; "
            "take another criterion, or prune before quantising"
        )
    rows = np.sort(np.random.default_rng(seed).permutation(calibration.data.samples)[:SAMPLES])
    stored = {m.site.tensor: calibration.graph.weights.read(m.site.tensor) for m in members}
    loss = calibration.loss_of(list(stored), rows)
    found = np.zeros(group.size)
    for channel in range(group.size):
        ends = []
        for factor in (1 + STEP, 1 - STEP):
            scaled = {name: values.copy() for name, values in stored.items()}
            for m in members:
                np.moveaxis(scaled[m.site.tensor], m.site.axis, 0)[m.positions[m.channels == channel]] *= factor
            ends.append(loss(scaled))
        found[channel] = (ends[0] - ends[1]) / (2 * STEP)
    calibration.notes.append(f"group {group.name!r} has no gradient: its scores are central differences on {len(rows)} samples")
    return found
