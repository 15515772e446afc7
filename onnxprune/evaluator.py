"""The Evaluator: what a model is worth on data - accuracy, loss, agreement, robustness - as one frozen result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import data as datasets
from onnxprune.cost import cost
from onnxprune.data import Data, Dataset, fixed_batch
from onnxprune.errors import DataError, ModelError, OptionError, UsageError
from onnxprune.evaluate import (
    Budget,
    Labels,
    Robustness,
    Scores,
    accuracy,
    agreement,
    attacked,
    check_range,
    classes,
    cross_entropy,
    fgsm,
    find_scores,
    limits,
    plan,
    predict,
    top_k_accuracy,
    without_maps,
)
from onnxprune.files import Source, write_json
from onnxprune.graph import Graph, load
from onnxprune.lazy import LazyModel
from onnxprune.report import columns
from onnxprune.runtime import Session
from onnxprune.shapes import infer
from onnxprune.weights import Array

SCHEMA = "onnxprune.evaluation/1"
COUNTINGS = ("all", "paoding-1.0")
PAODING_CLIP = (-1.0, 1.0)
"""To which range PAODING-DL clips attacked images."""

Model = Source | LazyModel
Progress = Callable[[str], None]


class Evaluator:
    """Measures models on data, and attacks them.

    >>> evaluator = Evaluator(epsilons=(0.05, 0.1))
    >>> evaluator.evaluate("model.onnx", "data.npz").robust_accuracy  # doctest: +SKIP
    {0.05: 0.71, 0.1: 0.33}

    Args:
        epsilons: largest changes of an input value that the attack may make, in the input's units; each is tried.
        attack: ``"fgsm"``, or None for none.
        gradient: ``"finite-difference"``.
        clip: lowest and highest value that attacked inputs may have; by default those of the data, for each input.
        batch_size: how many samples to take, the first ones (PAODING's name for that); all by default, and if it is -1.
        top_k: also count samples whose label is among the k likeliest classes.
        budget: forward passes that gradients may take in all; by default what some minutes are enough for.
        counting: ``"all"``, or ``"paoding-1.0"`` for PAODING-DL's: what the loss does not depend on moves upwards, images are
            clipped to [-1, 1], and with ``top_k`` a sample counts if its label is among the k likeliest classes, before the
            attack, and the class after it is one of these.
        seed: for the noise.

    Raises:
        OptionError: a value that makes no sense.
        UsageError: an attack, gradient or counting that does not exist.
    """

    def __init__(
        self,
        epsilons: Iterable[float] = (0.1,),
        *,
        attack: str | None = "fgsm",
        gradient: str = "finite-difference",
        clip: tuple[float, float] | None = None,
        batch_size: int | None = None,
        top_k: int = 1,
        budget: int | None = None,
        counting: str = "all",
        seed: int = 0,
    ) -> None:
        if attack not in (None, "fgsm"):
            raise UsageError(f"attack {attack!r} does not exist; choose fgsm")
        if gradient == "graph":
            raise OptionError("gradient is 'graph', which this version does not have; take 'finite-difference'")
        if gradient != "finite-difference":
            raise UsageError(f"gradient {gradient!r} does not exist; choose finite-difference")
        if counting not in COUNTINGS:
            raise UsageError(f"counting {counting!r} does not exist; choose one of {', '.join(COUNTINGS)}")
        if clip is not None and not -math.inf < clip[0] < clip[1] < math.inf:
            raise OptionError(f"clip is {clip[0]:g} {clip[1]:g}; it is the lowest, then the highest value of the inputs")
        if top_k < 1:
            raise OptionError(f"top_k is {top_k}; it is a number of classes, at least 1")
        if budget is not None and budget < 1:
            raise OptionError(f"budget is {budget}; it is a number of forward passes, at least 2 for each sample")
        self._attack, self._clip, self._top_k, self._budget = attack, clip, top_k, budget
        self._paoding, self._seed = counting == "paoding-1.0", seed
        self.set_epsilons(epsilons)
        self.set_batch_size(batch_size)

    def set_epsilons(self, epsilons: Iterable[float]) -> None:
        """Choose the sizes of the attack.

        Raises:
            OptionError: one of them is negative, or no number.
        """
        found = tuple(dict.fromkeys(float(e) for e in epsilons))
        for epsilon in found:
            if not (math.isfinite(epsilon) and epsilon >= 0):
                raise OptionError(f"epsilon is {epsilon:g}; it is the largest change of an input value, at least 0")
        self._epsilons = found

    def get_epsilons(self) -> tuple[float, ...]:
        """The sizes of the attack."""
        return self._epsilons

    def set_batch_size(self, batch_size: int | None) -> None:
        """Choose how many samples are taken, the first ones; None or -1 for all.

        Raises:
            OptionError: another number below 1.
        """
        if batch_size is not None and batch_size != -1 and batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}; it is the number of samples to take, at least 1, or -1 for all")
        self._batch_size = None if batch_size == -1 else batch_size

    def get_batch_size(self) -> int | None:
        """How many samples are taken, None for all."""
        return self._batch_size

    def plan(self, model: Model, data: Data, original: Model | None = None) -> Budget:
        """How many forward passes an evaluation takes at most, and along what it differentiates. Runs no sample.

        Raises:
            DataError: the data do not fit the model or the options.
            OptionError: the budget is too small.
        """
        graph = _load(model)
        return self._plan(graph, self._read(data, graph), original is not None)

    def evaluate(
        self,
        model: Model,
        data: Data,
        original: Model | None = None,
        *,
        announce: Callable[[Budget], None] | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Measure a model.

        Args:
            model: path of an ONNX file, a proto, or a result's ``pruned``.
            data: an ``.npz`` path or arrays by input name, with ``labels`` if there are any, or a pair ``(X, y)``.
            original: another model with the same inputs; says how often both predict the same class.
            announce: called with the plan before the work begins, once the data are known to fit.
            progress: called with a few words at each stage.

        Raises:
            ModelError: a model can't be read or run.
            DataError: the data do not fit, or the model is no classifier that can be attacked.
            OptionError: the budget is too small.
        """
        tell = progress or (lambda stage: None)
        tell("load")
        graph = _load(model)
        dataset = self._read(data, graph)
        budget = self._plan(graph, dataset, original is not None)
        ready = without_maps(graph.assemble()).ready()
        session = Session(ready, threads=2)
        self._check(predict(session, dataset.take(slice(0, 1)), graph.inputs), dataset)
        if announce is not None:
            announce(budget)
        tell("predict")
        outputs = predict(session, dataset, graph.inputs)
        found = self._check(outputs, dataset)
        other = None if original is None else _predictions(original, dataset, graph)
        labels, top = dataset.labels, {}
        if labels is not None and found is not None and self._top_k > 1:
            top = {self._top_k: top_k_accuracy(found, labels, self._top_k)}
        robust, passes = Robustness({}, {}), budget.others
        if budget.blocks and found is not None:
            chosen, accepted = self._right(found, labels)
            if len(chosen):
                robust = fgsm(
                    ready,
                    dataset.take(chosen),
                    graph.inputs,
                    Scores(found.values[chosen], found.probabilities),
                    accepted,
                    epsilons=self._epsilons,
                    blocks=budget.blocks,
                    limits=limits(attacked(dataset), self._range),
                    zero=int(self._paoding),
                    seed=self._seed,
                    progress=progress,
                )
                passes += replace(budget, samples=len(chosen), others=0).passes
            else:
                robust = Robustness(dict.fromkeys(self._epsilons, 0), dict.fromkeys(self._epsilons, 0))
        unlabelled = "the data have no labels: what is right is what the model itself predicts" if labels is None else ""
        return Evaluation(
            samples=dataset.samples,
            accuracy=None if labels is None else accuracy(outputs, labels),
            loss=None if labels is None or found is None else cross_entropy(found, labels),
            top_k=top,
            robust=robust.attack,
            noisy=robust.noise,
            agreement=None if other is None else agreement(outputs, other),
            forward_passes=passes,
            warnings=tuple(filter(None, (unlabelled, budget.warning))),
        )

    def evaluate_robustness(self, model: Model, data: Data) -> dict[float, float] | dict[float, int]:
        """The robust part of :meth:`evaluate` alone: shares of all samples by epsilon; PAODING's counting gives numbers."""
        found = self.evaluate(model, data)
        return dict(found.robust) if self._paoding else found.robust_accuracy

    @property
    def _range(self) -> tuple[float, float] | None:
        return PAODING_CLIP if self._paoding and self._clip is None else self._clip

    def _read(self, data: Data, graph: Graph) -> Dataset:
        dataset = datasets.read(data, graph.inputs)
        return dataset if self._batch_size is None else dataset.take(slice(0, self._batch_size))

    def _plan(self, graph: Graph, dataset: Dataset, twice: bool) -> Budget:
        others = dataset.samples * (1 + twice)
        if self._attack is None or not self._epsilons:
            return Budget(dataset.samples, {}, 0, others)
        inputs = attacked(dataset)
        limits(inputs, self._range)
        macs = cost(graph, infer(graph)).macs // (fixed_batch(graph.inputs) or 1) if self._budget is None else 0
        return plan(inputs, passes=self._budget, macs=macs, epsilons=len(self._epsilons), others=others)

    def _check(self, outputs: Sequence[Array], dataset: Dataset) -> Scores | None:
        """The scores among the outputs, if they serve what is wanted of them."""
        found = find_scores(outputs)
        if classes(outputs) is None:
            raise DataError("no output of the model has the shape (samples, classes), so that there are no classes to evaluate")
        if found is None and (self._attack is not None and self._epsilons):
            raise DataError(
                "the model gives its predicted class but no float scores, so that it has no gradient; evaluate without an attack"
            )
        if found is None and self._top_k > 1:
            raise DataError("the model gives its predicted class but no float scores, so that there are no k likeliest ones")
        if found is not None:
            if np.isnan(found.values).any() or np.isposinf(found.values).any():
                bad = int((np.isnan(found.values) | np.isposinf(found.values)).any(axis=1).sum())
                raise ModelError(f"the model's scores are NaN or infinite for {bad} of {len(found.values)} samples")
            if self._top_k > found.values.shape[1]:
                raise OptionError(f"top_k is {self._top_k}, but the model has {found.values.shape[1]} classes; choose fewer")
        if dataset.labels is not None:
            check_range(dataset.labels, found)
        return found

    def _right(self, found: Scores, labels: Labels | None) -> tuple[Labels, Labels]:
        """Which samples are classified right, and which classes count as that for each of them."""
        accepted = found.best(self._top_k if self._paoding else 1)
        right = np.ones(len(accepted), bool) if labels is None else (accepted == labels[:, None]).any(axis=1)
        chosen = np.flatnonzero(right)
        return chosen, accepted[chosen]


def _load(model: Model) -> Graph:
    return load(model.complete() if isinstance(model, LazyModel) else model)


def _predictions(model: Model, dataset: Dataset, graph: Graph) -> list[Array]:
    other = _load(model)
    names = [p.name for p in graph.inputs], [p.name for p in other.inputs]
    if sorted(names[0]) != sorted(names[1]):
        raise DataError(f"the models can't be compared: their inputs are {names[0]} and {names[1]}")
    return predict(without_maps(other.assemble()).ready(), dataset, other.inputs)

