"""The training loop: epochs, the learning rate, validation, the best weights, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxprune.clock import Progress
from onnxprune.data import Dataset
from onnxprune.evaluate import Labels, accuracy, agreement, classes
from onnxprune.finetune.augment import augmented
from onnxprune.finetune.model import Model, Original, Rows, Samples
from onnxprune.finetune.optimiser import Optimiser, factor
from onnxprune.finetune.state import Keeper, State
from onnxprune.weights import Array

_EXPLODED = 10.0
"""Training has diverged when the loss of an epoch is this many times that of the start, or of a model that knows nothing."""

_CACHE = 1 << 28
"""Bytes of the original's outputs that are kept instead of being computed for every batch again."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch brought; number 0 is the model before training.

    ``loss``: mean over the samples as they were trained on (None at number 0); ``validation_loss``, ``accuracy`` (share of
    right labels) and ``agreement`` (share of samples classified as by the original): on samples held out, None where not
    measured. ``learning_rate``: at its end. ``seconds``: all of its time.
    """

    number: int
    loss: float | None
    validation_loss: float | None
    accuracy: float | None
    agreement: float | None
    learning_rate: float
    seconds: float

    def __str__(self) -> str:
        shares = (("accuracy", self.accuracy), ("agreement", self.agreement))
        parts = [f"loss {self.loss:.4f}"] if self.loss is not None else []
        parts += [f"validation loss {self.validation_loss:.4f}"] if self.validation_loss is not None else []
        parts += [f"{name} {100 * share:.1f} %" for name, share in shares if share is not None]
        return f"epoch {self.number}: {', '.join([*parts, f'{self.seconds:.1f} s'])}"

    @property
    def rank(self) -> tuple[float, float]:
        """Greater is better: by accuracy or else agreement, then by the loss."""
        share = self.accuracy if self.accuracy is not None else self.agreement
        loss = self.validation_loss if self.validation_loss is not None else self.loss
        return (0.0 if share is None else share, -math.inf if loss is None else -loss)


@dataclass(frozen=True)
class Settings:
    """How to train.

    ``rate``: the largest learning rate. ``classes``: whether outputs are compared with the original's as classes. ``seconds``:
    of the whole training, of all runs together.
    """

    epochs: int
    batch: int
    rate: float
    schedule: str
    warmup: float
    augment: tuple[str, ...]
    keep_zeros: bool
    classes: bool
    seed: int
    seconds: float | None


@dataclass(frozen=True)
class Outcome:
    """What training led to: the best weights, the epochs, why it ended early, in words, and whether because it ``diverged``."""

    weights: dict[str, Array]
    epochs: tuple[Epoch, ...]
    ended: str
    diverged: bool

    @property
    def best(self) -> Epoch:
        """The epoch whose weights these are."""
        return best(self.epochs)


def best(epochs: Sequence[Epoch]) -> Epoch:
    """The best epoch; of equals the first. Without validation the last one, for its training loss says little."""
    measured = [epoch for epoch in epochs if epoch.validation_loss is not None]
    return max(measured, key=lambda epoch: epoch.rank) if measured else epochs[-1]


class Trainer:
    """Trains a model.

    Args:
        data: what is trained on; ``validation``: what is held out, None for nothing.
        original: what is learned from, None if labels alone are.
        keeper: keeps the state after every epoch.
        watch: called with every epoch.
    """

    def __init__(
        self,
        model: Model,
        optimiser: Optimiser,
        settings: Settings,
        data: Dataset,
        validation: Dataset | None,
        original: Original | None,
        *,
        keeper: Keeper | None = None,
        watch: Callable[[Epoch], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._optimiser, self._settings, self._original = model, optimiser, settings, original
        self._data, self._keeper = data, keeper
        self._watch, self._progress = watch or (lambda epoch: None), progress or (lambda text: None)
        self._known = self._samples(data) if not settings.augment and self._small(data) else None
        self._held = None if validation is None else self._samples(validation)
        self._masks = zeros(model.weights) if settings.keep_zeros else {}
        self._epochs: list[Epoch] = []
        self._best: dict[str, Array] = {}
        self._before, self._diverged = 0.0, False

    def run(self) -> Outcome:
        """Train until all epochs are done, time is up, or training diverges."""
        state = None if self._keeper is None else self._keeper.load()
        if state is not None:
            self._restore(state)
        self._start = time.monotonic() - self._before
        if state is None:
            self._add(0, None, 0.0, self._start)
        ended = ""
        while len(self._epochs) <= self._settings.epochs and not ended:
            ended = self._epoch(len(self._epochs))
        return Outcome(self._best, tuple(self._epochs), ended, self._diverged)

    def _epoch(self, number: int) -> str:
        """One pass over the data; returns why training ends, if it does."""
        settings, begun = self._settings, time.monotonic()
        rng = np.random.default_rng((settings.seed, number))
        order = rng.permutation(self._data.samples)
        starts = range(0, len(order), settings.batch)
        total, rate = 0.0, 0.0
        for k, start in enumerate(starts):
            part = self._batch(order[start : start + settings.batch], rng)
            loss, gradients = self._model.gradients(part)
            fault = _fault(loss, gradients)
            if fault:
                return self._diverges(f"epoch {number}, step {k + 1}: {fault} is not finite")
            rate = settings.rate * self._factor(number - 1 + k / len(starts), 1 / len(starts))
            for name, mask in self._masks.items():
                gradients[name] = gradients[name] * mask
            self._optimiser.step(self._model.weights, gradients, rate)
            total += loss * part.data.samples
            self._progress(f"epoch {number} of {settings.epochs}, step {k + 1} of {len(starts)}: loss {loss:.4g}")
            if settings.seconds is not None and time.monotonic() - self._start > settings.seconds:
                mean = total / (start + part.data.samples)
                return self._add(number, mean, rate, begun, whole=False) or f"time is up, in epoch {number}"
        return self._add(number, total / len(order), rate, begun)

    def _add(self, number: int, loss: float | None, rate: float, begun: float, *, whole: bool = True) -> str:
        """Measure and write down where training stands. Returns why it ends, if it does."""
        found: dict[str, float | None] = dict.fromkeys(("validation_loss", "accuracy", "agreement"))
        if self._held is not None:
            found["validation_loss"], outputs = self._model.measure(self._held)
            targets = list(self._held.targets.values()) if self._settings.classes else []
            found |= shares(outputs, self._held.data.labels, targets)
        now = time.monotonic()
        epoch = Epoch(number, loss, learning_rate=rate, seconds=now - begun, **found)
        self._watch(epoch)
        if number == 0:
            self._limit = _EXPLODED * self._ignorance()
        else:
            lost = [v for v in (loss, epoch.validation_loss) if v is not None and not v <= self._limit]
            if lost:
                return self._diverges(f"epoch {number}: the loss is {lost[0]:.3g}")
        self._epochs.append(epoch)
        if best(self._epochs) is epoch:
            self._best = {name: values.copy() for name, values in self._model.weights.items()}
        if whole and self._keeper is not None:
            about = {"epochs": [asdict(e) for e in self._epochs], "steps": self._optimiser.steps}
            about |= {"limit": self._limit, "elapsed": now - self._start}
            arrays = {"weights": self._model.weights, "best": self._best, **self._optimiser.moments}
            self._keeper.save(State(arrays, about))
        return ""

    def _diverges(self, where: str) -> str:
        self._diverged = True
        return f"training diverged in {where}"

    def _restore(self, state: State) -> None:
        arrays = dict(state.arrays)
        for name, values in arrays.pop("weights").items():
            self._model.weights[name][...] = values
        self._best = arrays.pop("best")
        self._optimiser.moments, self._optimiser.steps = arrays, state.about["steps"]
        self._epochs = [Epoch(**row) for row in state.about["epochs"]]
        self._limit, self._before = state.about["limit"], state.about["elapsed"]

    def _factor(self, epochs: float, step: float) -> float:
        """Of the learning rate: it follows the epochs, or the time where that runs out earlier."""
        settings, done = self._settings, epochs / self._settings.epochs
        if settings.seconds is not None:
            done = min(1.0, max(done, (time.monotonic() - self._start) / settings.seconds))
        return factor(settings.schedule, done, step / settings.epochs, settings.warmup)

    def _batch(self, rows: Rows, rng: np.random.Generator) -> Samples:
        if self._known is not None:
            return self._known.take(rows)
        part = self._data.take(rows)
        return self._samples(replace(part, inputs=augmented(part.inputs, self._settings.augment, rng)))

    def _samples(self, data: Dataset) -> Samples:
        return Samples(data, {} if self._original is None else self._original(data))

    def _small(self, data: Dataset) -> bool:
        """Whether what the original says about all samples may be kept."""
        one = self._samples(data.take(np.zeros(1, np.int64))).targets
        return data.samples * sum(values.nbytes for values in one.values()) <= _CACHE

    def _ignorance(self) -> float:
        """The loss at the start, or with all weights zero, whichever is larger."""
        zero = {name: np.zeros_like(values) for name, values in self._model.weights.items()}
        some = self._held or self._batch(np.arange(min(self._settings.batch, self._data.samples)), np.random.default_rng(0))
        losses = [self._model.measure(some, weights)[0] for weights in (zero, self._model.weights)]
        return max(filter(math.isfinite, losses), default=math.inf)


def shares(outputs: Sequence[Array], labels: Labels | None, targets: Sequence[Array]) -> dict[str, float | None]:
    """What a classifier's outputs are worth: ``accuracy`` with labels, ``agreement`` with the original; None where unknown."""
    judged = classes(outputs) is not None
    right = accuracy(outputs, labels) if labels is not None and judged else None
    return {"accuracy": right, "agreement": agreement(targets, outputs) if targets and judged else None}


def zeros(weights: Mapping[str, Array]) -> dict[str, npt.NDArray[np.bool_]]:
    """Where tensors of which a part is zero are not: what may change if zeros are to stay."""
    return {name: values != 0 for name, values in weights.items() if values.any() and not values.all()}


def _fault(loss: float, gradients: Mapping[str, Array]) -> str:
    """What is not finite; empty if all is."""
    if not math.isfinite(loss):
        return "the loss"
    return next((f"the gradient of {name!r}" for name, values in gradients.items() if not np.isfinite(values).all()), "")
