"""The Evaluator: what a model is worth on data - accuracy, loss, agreement, robustness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune import data as datasets
from onnxprune.cost import cost
from onnxprune.data import Data, Dataset, fixed_batch
from onnxprune.errors import DataError, ModelError, OptionError, UsageError
from onnxprune.evaluate import (
    Attack,
    Budget,
    Judge,
    Labels,
    Robustness,
    Scores,
    Sparse,
    accuracy,
    agreement,
    attacked,
    check_finite,
    check_range,
    check_surrogate,
    classes,
    cross_entropy,
    differentiated,
    find_gradient,
    find_scores,
    limits,
    plan,
    predict,
    robustness,
    surrogate_scores,
    top_k_accuracy,
    without_maps,
)
from onnxprune.evaluation import Evaluation
from onnxprune.files import Source
from onnxprune.graph import Graph, load
from onnxprune.lazy import LazyModel, completed
from onnxprune.runtime import Session
from onnxprune.shapes import infer
from onnxprune.weights import Array

ATTACKS = ("fgsm", "pgd")
GRADIENTS = ("auto", "graph", "finite-difference")
COUNTINGS = ("all", "paoding-1.0")
PAODING_CLIP = (-1.0, 1.0)
"""To which range PAODING-DL clips attacked images."""

STEPS = 10
"""Steps of PGD by default."""

Model = Source | LazyModel
Progress = Callable[[str], None]


class Evaluator:
    """Measures models on data, and attacks them.

    >>> evaluator = Evaluator(epsilons=(0.05, 0.1))
    >>> evaluator.evaluate("model.onnx", "data.npz").robust_accuracy  # doctest: +SKIP
    {0.05: 0.71, 0.1: 0.33}

    Args:
        epsilons: how far the attack may move a sample, in the input's units; each is tried.
        attack: ``"fgsm"``, ``"pgd"``, or None for none.
        norm: what epsilon bounds: ``"linf"``, the largest change of a value, or ``"l2"``, the length of the whole change.
        steps: of PGD, 10 by default; ``step_size``, by default 2.5 epsilon / steps; ``random_start``: from anywhere in reach.
        gradient: ``"graph"``: exact, by a backward graph; ``"finite-difference"``; or ``"auto"``: the one where every
            operator has a rule, else the other.
        surrogate: a model with the same inputs and classes, whose gradients the attack uses: it never asks the model itself.
        gradient_sparsity: share of the convolutions' weights that the backward graph alone reads as zeros, the smallest ones;
            each with probability ``bernoulli``, drawn anew for each step.
        clip: lowest and highest value that attacked inputs may have; by default those of the data, for each input.
        batch_size: how many samples to take, the first ones (PAODING's name for that); all by default, and if it is -1.
        top_k: also count samples whose label is among the k likeliest classes.
        budget: forward passes that finite differences may take in all; by default what some minutes are enough for.
        counting: ``"all"``, or ``"paoding-1.0"`` for PAODING-DL's: what the loss does not depend on moves upwards, images are
            clipped to [-1, 1], and with ``top_k`` a sample counts if its label is among the k likeliest classes, before the
            attack, and the class after it is one of these.
        seed: for everything random.

    Raises:
        OptionError: a value that makes no sense.
        UsageError: an attack, gradient or counting that does not exist.
    """

    def __init__(
        self,
        epsilons: Iterable[float] = (0.1,),
        *,
        attack: str | None = "fgsm",
        norm: str = "linf",
        steps: int | None = None,
        step_size: float | None = None,
        random_start: bool = False,
        gradient: str = "auto",
        surrogate: Model | None = None,
        gradient_sparsity: float = 0.0,
        bernoulli: float = 1.0,
        clip: tuple[float, float] | None = None,
        batch_size: int | None = None,
        top_k: int = 1,
        budget: int | None = None,
        counting: str = "all",
        seed: int = 0,
    ) -> None:
        for what, name, known in (
            ("attack", attack, ATTACKS),
            ("gradient", gradient, GRADIENTS),
            ("counting", counting, COUNTINGS),
        ):
            if name is not None and name not in known:
                raise UsageError(f"{what} {name!r} does not exist; choose one of {', '.join(known)}")
        if attack != "pgd" and (steps is not None or step_size is not None or random_start):
            raise UsageError("steps, step_size and random_start are those of attack pgd; choose it, or leave them out")
        if attack is None and (surrogate is not None or gradient_sparsity):
            raise UsageError("surrogate and gradient_sparsity are for an attack; choose one, or leave them out")
        if gradient == "finite-difference" and gradient_sparsity:
            raise UsageError("gradient_sparsity prunes the backward graph, which finite differences do without; choose graph")
        if clip is not None and not -math.inf < clip[0] < clip[1] < math.inf:
            raise OptionError(f"clip is {clip[0]:g} {clip[1]:g}; it is the lowest, then the highest value of the inputs")
        if top_k < 1:
            raise OptionError(f"top_k is {top_k}; it is a number of classes, at least 1")
        if budget is not None and budget < 1:
            raise OptionError(f"budget is {budget}; it is a number of forward passes, at least 2 for each sample")
        self._clip, self._top_k, self._budget = clip, top_k, budget
        self._name, self._gradient, self._surrogate = attack, gradient, surrogate
        self._paoding, self._seed = counting == "paoding-1.0", seed
        count = 1 if attack != "pgd" else STEPS if steps is None else steps
        self._attack = Attack(count, step_size, random_start, norm, zero=int(self._paoding))
        self._sparse = Sparse(gradient_sparsity, bernoulli, seed)
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
                raise OptionError(f"epsilon is {epsilon:g}; it is how far the attack may go, at least 0")
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
        dataset = self._read(data, graph)
        return self._plan(self._source(graph, dataset), dataset, original is not None)

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
        session = Session(graph.assemble().ready(), threads=2)
        self._check(predict(session, dataset.take(slice(0, 1)), graph.inputs), dataset)
        source = self._source(graph, dataset)
        budget = self._plan(source, dataset, original is not None)
        if announce is not None:
            announce(budget)
        tell("predict")
        outputs = predict(session, dataset, graph.inputs)
        found = self._check(outputs, dataset)
        other = None if original is None else _predictions(original, dataset, graph)
        labels, top = dataset.labels, {}
        if labels is not None and found is not None and self._top_k > 1:
            top = {self._top_k: top_k_accuracy(found, labels, self._top_k)}
        robust, passes = Robustness({}, {}), (budget.others, 0)
        if self._attacks:
            chosen, accepted = self._right(outputs, found, labels)
            clean = found if source is graph else surrogate_scores(source, dataset, found, accepted)
            assert clean is not None, "an attack needs scores, which was checked"
            judge = Judge(session, graph.inputs, None if found is None else found.probabilities)
            robust = self._attacked(judge, source, dataset, clean, chosen, accepted, budget, progress)
            passes = budget.spent(len(chosen), robust.gradients, robust.judged)
        unlabelled = "the data have no labels: what is right is what the model itself predicts" if labels is None else ""
        return Evaluation(
            samples=dataset.samples,
            accuracy=None if labels is None else accuracy(outputs, labels),
            loss=None if labels is None or found is None else cross_entropy(found, labels),
            top_k=top,
            robust=robust.attack,
            noisy=robust.noise,
            agreement=None if other is None else agreement(outputs, other),
            forward_passes=passes[0],
            backward_passes=passes[1],
            attack=self._settings(source, budget) if self._attacks else {},
            warnings=tuple(filter(None, (unlabelled, budget.note, budget.warning))),
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

    @property
    def _attacks(self) -> bool:
        return self._name is not None and bool(self._epsilons)

    def _source(self, graph: Graph, dataset: Dataset) -> Graph:
        """The model whose gradients are used.

        Raises:
            DataError: the surrogate takes other inputs.
        """
        if self._surrogate is None or not self._attacks:
            return graph
        source = _load(self._surrogate)
        check_surrogate(source, graph, dataset)
        return source

    def _plan(self, source: Graph, dataset: Dataset, twice: bool) -> Budget:
        others = dataset.samples * (1 + twice)
        if not self._attacks:
            return Budget(dataset.samples, others)
        inputs = attacked(dataset)
        limits(inputs, self._range)
        count, stops = len(self._epsilons), self._surrogate is None
        judged = count * (1 + (self._attack.steps if stops else 1))
        others += 0 if stops else dataset.samples
        budget, shapes, note = Budget(dataset.samples, others, self._attack.gradients(count), judged), infer(source), ""
        if self._gradient != "finite-difference":
            try:
                Session(differentiated(source, shapes, inputs, self._sparse).model, optimise=False)
                return budget
            except ModelError as error:
                if self._gradient == "graph" or self._sparse.share:
                    raise
                note = f"no exact gradients: {str(error).partition('; ')[0]}"
        macs = cost(source, shapes).macs // (fixed_batch(source.inputs) or 1)
        return plan(replace(budget, note=note), inputs, passes=self._budget, macs=macs)

    def _attacked(
        self,
        judge: Judge,
        source: Graph,
        dataset: Dataset,
        clean: Scores,
        chosen: Labels,
        accepted: Labels,
        budget: Budget,
        progress: Progress | None,
    ) -> Robustness:
        """Attack the samples that are classified right, ``chosen``."""
        if not len(chosen):
            return Robustness(dict.fromkeys(self._epsilons, 0), dict.fromkeys(self._epsilons, 0))
        data, bounds = dataset.take(chosen), limits(attacked(dataset), self._range)
        slopes = find_gradient(
            source,
            data,
            clean.take(chosen),
            accepted[:, 0],
            bounds,
            blocks=budget.blocks,
            sparse=self._sparse,
            progress=progress,
        )
        return robustness(
            judge,
            slopes,
            data,
            accepted,
            self._attack,
            epsilons=self._epsilons,
            limits=bounds,
            stops=self._surrogate is None,
            seed=self._seed,
            progress=progress,
        )

    def _settings(self, source: Graph, budget: Budget) -> dict[str, Any]:
        """What the attack was, for the report."""
        step = {"step_size": self._attack.step_size} if self._attack.step_size is not None else {}
        found = {"name": self._name, "norm": self._attack.norm, "steps": self._attack.steps, **step}
        found |= {"random_start": self._attack.random_start, "gradient": GRADIENTS[2 if budget.blocks else 1]}
        found |= {"surrogate_sha256": source.sha256} if self._surrogate is not None else {}
        sparse = {"gradient_sparsity": self._sparse.share, "bernoulli": self._sparse.bernoulli}
        return found | (sparse if self._sparse.share else {})

    def _check(self, outputs: Sequence[Array], dataset: Dataset) -> Scores | None:
        """The scores among the outputs, if they serve what is wanted of them."""
        found = find_scores(outputs)
        if classes(outputs) is None:
            raise DataError("no output of the model has the shape (samples, classes), so that there are no classes to evaluate")
        if found is None and self._attacks and self._surrogate is None:
            raise DataError(
                "the model gives its predicted class but no float scores, so that it has no gradient; evaluate without an "
                "attack, or through a surrogate that has some"
            )
        if found is None and self._top_k > 1:
            raise DataError("the model gives its predicted class but no float scores, so that there are no k likeliest ones")
        if found is not None:
            check_finite(found, "model")
            if self._top_k > found.values.shape[1]:
                raise OptionError(f"top_k is {self._top_k}, but the model has {found.values.shape[1]} classes; choose fewer")
        if dataset.labels is not None:
            check_range(dataset.labels, found)
        return found

    def _right(self, outputs: Sequence[Array], found: Scores | None, labels: Labels | None) -> tuple[Labels, Labels]:
        """Which samples are classified right, and which classes count as that for each of them."""
        predicted = classes(outputs)
        assert predicted is not None, "there are classes, which was checked"
        accepted = predicted[:, None] if found is None else found.best(self._top_k if self._paoding else 1)
        right = np.ones(len(accepted), bool) if labels is None else (accepted == labels[:, None]).any(axis=1)
        chosen = np.flatnonzero(right)
        return chosen, accepted[chosen]


def _load(model: Model) -> Graph:
    return without_maps(load(completed(model)))


def _predictions(model: Model, dataset: Dataset, graph: Graph) -> list[Array]:
    other = _load(model)
    names = [p.name for p in graph.inputs], [p.name for p in other.inputs]
    if sorted(names[0]) != sorted(names[1]):
        raise DataError(f"the models can't be compared: their inputs are {names[0]} and {names[1]}")
    return predict(other.assemble().ready(), dataset, other.inputs)
