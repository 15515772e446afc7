"""The error that is left after the best compensation (optimal brain surgeon), for all groups in one pass over the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.errors import ModelError, UsageError
from onnxprune.importance.magnitude import l1
from onnxprune.importance.measured import Measured
from onnxprune.importance.probe import Cut, probed
from onnxprune.importance.readers import Reader, readers_of
from onnxprune.importance.scene import Scene
from onnxprune.leastsquares import Changes, Eliminated, eliminate, linear_layers, with_states
from onnxprune.runtime import Session, tapped

RIDGE, RIDGE_SYNTHETIC = 1e-3, 1e-2
"""Penalty of the fits that the errors are those of, on the user's inputs and on synthetic ones."""

SAMPLES = 1024
"""Inputs that are looked at, at most."""

STREAM = 1.5
"""How often the error of channels counts that several layers make. What a layer inside a block gets wrong, the layers behind it
partly make up for; what leaves the stream that they all write into is gone for all of them.
"""

MEMORY = 1 << 29
"""Bytes of Gram matrices that are filled in one pass over the inputs; of more, there are several."""


class Obs(Measured):
    """The error in what reads a channel if it leaves and all that stay are fitted anew.

    Of every layer that reads a group's channels, in units of the variance of what comes of it (with what is added to its sums),
    summed over these layers; channels leave one after the other, always the one that is missed least. The errors of groups are
    made comparable by what half of each, cut alone, does to the model's outputs (:mod:`~onnxprune.importance.probe`).
    """

    name = "obs"
    compensation = "least-squares"

    def measure(self, scene: Scene) -> list[Scores]:
        """Float64 (channels,) for each group: how much the error grows when the channel's turn comes.

        Raises:
            UsageError: there are no data, and the model does not run on synthetic inputs.
            ModelError: it gives NaN or infinity.
        """
        try:
            return self._measured(scene)
        except ModelError as error:
            if scene.data is not None:
                raise
            raise UsageError(
                f"criterion {self.name!r}: synthetic inputs do not suit the model; give --data FILE.npz (in Python data=)"
            ) from error

    def _measured(self, scene: Scene) -> list[Scores]:
        alpha = RIDGE_SYNTHETIC if scene.data is None else RIDGE
        found: list[Eliminated] = []
        cuts: list[Cut] = []
        for number, readers in read(scene, range(len(scene.coupling.groups))):
            group = scene.group(number)
            systems = [system for reader in readers for system in reader.systems()]
            if not all(np.isfinite(system.unit) and np.isfinite(system.a).all() for system in systems):
                raise ModelError(
                    f"criterion {self.name!r}: there is NaN or infinity in or behind group {group.name!r} on the inputs; clean "
                    "the data, or --freeze it"
                )
            gone = eliminate(systems, alpha) if systems else _by_magnitude(scene, number)
            found.append(gone)
            half, changes = group.size // 2, Changes(scene.coupling)
            for reader in readers:
                reader.fit(gone.order[:half], alpha, changes)
            cuts.append(Cut(group.roots[gone.order[:half]], changes.edits(), float(gone.curve[half])))
        parts = enumerate(zip(found, probed(scene, cuts), strict=True))
        return [_scores(one) * scale * (STREAM if len(scene.producers(n)) > 1 else 1.0) for n, (one, scale) in parts]

    def curve(self, scene: Scene, number: int) -> Scores:
        """The error once 0, 1, ..., all of a group's channels have left, float64 (channels + 1,)."""
        return np.concatenate([[0.0], np.cumsum(np.sort(self.rank(scene, number)))])


def _scores(gone: Eliminated) -> Scores:
    """By how much the error grows when each channel's turn comes; it never shrinks from one to the next."""
    found = np.empty(len(gone.order))
    found[gone.order] = np.maximum.accumulate(np.maximum(np.diff(gone.curve), 0.0))
    return found


def _by_magnitude(scene: Scene, number: int) -> Eliminated:
    """Where nothing of a group can be seen: by the norm of its filters, of which each channel's share counts as its error."""
    scores = l1(scene.group(number), scene.weights, None)
    order = np.argsort(scores, kind="stable")
    return Eliminated(order, np.concatenate([[0.0], np.cumsum(scores[order])]) / max(float(scores.sum()), 1e-30))


def read(scene: Scene, numbers: Iterable[int]) -> Iterator[tuple[int, list[Reader]]]:
    """Some groups, each with what reads its channels, after that has seen the inputs."""
    layers = linear_layers(scene.coupling)
    waiting = list(numbers)
    while waiting:
        there: dict[int, list[Reader]] = {}
        room = float(MEMORY)
        while waiting:
            readers = readers_of(scene, waiting[0], layers)
            room -= sum(8 * reader.width**2 for reader in readers)
            if room < 0 and there:
                break
            there[waiting.pop(0)] = readers
        names = list(dict.fromkeys(name for readers in there.values() for reader in readers for name in reader.tensors))
        if names:
            model = tapped(scene.graph.assemble(), names, only=True)
            with_states(model.proto, layers)
            session = Session(model.ready(), threads=2)
            for turn, feeds in enumerate(scene.chunks(SAMPLES, names)):
                seen = dict(zip(names, session.run(feeds, names), strict=True))
                for reader in (reader for readers in there.values() for reader in readers):
                    reader.add([np.asarray(seen[name]) for name in reader.tensors], turn)
                seen.clear()
        yield from there.items()
