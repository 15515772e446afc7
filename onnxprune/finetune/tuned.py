"""Fine-tune: choose what to learn from, train, and give back the best model with the report of how."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.clock import Progress
from onnxprune.data import Data, Dataset, fixed_batch, read
from onnxprune.errors import DataError, ModelError, OptionError, UsageError
from onnxprune.evaluate import Scores, check_range, find_scores, freed, predict
from onnxprune.files import FILE_LIMIT, Source
from onnxprune.finetune import augment as augmentation
from onnxprune.finetune import optimiser as optimisers
from onnxprune.finetune.finetuning import Finetuned, Finetuning
from onnxprune.finetune.model import Model, Original
from onnxprune.finetune.state import Keeper
from onnxprune.finetune.trainable import Goal, training
from onnxprune.finetune.trainer import Epoch, Outcome, Settings, Trainer, shares
from onnxprune.graph import Graph, load
from onnxprune.lazy import LazyModel, LazyTensor, completed
from onnxprune.runtime import Session
from onnxprune.shapes import infer
from onnxprune.weights import FLOATS

LOSSES = ("auto", "labels", "distillation", "both", "squared")
_ALIKE = 1e-3
"""How far a model that takes any number of samples may be from itself with one at a time, relative to the largest output."""


def finetune(
    model: Source | LazyModel,
    data: Data,
    *,
    original: Source | None = None,
    loss: str = "auto",
    temperature: float = 4.0,
    alpha: float = 0.9,
    epochs: int = 30,
    batch: int = 64,
    optimiser: str = "adam",
    learning_rate: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    warmup: float = 0.05,
    schedule: str = "cosine",
    validation: float | Data = 0.1,
    augment: Sequence[str] = (),
    freeze: Sequence[str] = (),
    keep_zeros: bool = True,
    minutes: float | None = None,
    state: str | Path | None = None,
    seed: int = 0,
    watch: Callable[[Epoch], None] | None = None,
    progress: Progress | None = None,
) -> Finetuned:
    """Train a model's float weights further, on labels, or to do as the original model does, without a training framework.

    The gradient is an ONNX graph (:mod:`onnxprune.gradient`) that runs in onnxruntime; the optimiser is numpy. Normalisations
    keep their statistics. The model of the epoch that does best on samples held out comes back: by accuracy where there are
    labels, or else by agreement with the original; of equals the one of smaller loss.

    Args:
        model: path of an ONNX file, a proto (which is not changed), or a pruned model.
        data: an ``.npz`` path or arrays by input name, with ``labels`` if these are learned or to be validated on.
        original: the model to learn from, with the same inputs and outputs.
        loss: ``"labels"``: cross-entropy; ``"distillation"``: divergence from the original's classes, which needs no labels;
            ``"both"``: ``alpha`` of the second and the rest of the first (Hinton, Vinyals & Dean 2015); ``"squared"``: half the
            mean squared difference from all of the original's outputs, whatever they are. ``"auto"``: the most there is to
            learn from, ``"squared"`` where the model is no classifier.
        temperature: by which logits are divided before distillation.
        epochs: passes over the data. ``batch``: samples per step.
        optimiser: ``"adam"`` or ``"sgd"``, with ``momentum``. ``learning_rate``: 0.001, or 0.01 for SGD, by default.
        weight_decay: share of the weights (not of biases and scales) that each step takes away, times the learning rate.
        warmup: share of the training in which the learning rate rises. ``schedule``: how it goes then, ``"cosine"`` (to zero)
            or ``"constant"``.
        validation: share of the samples that is held out, 0 for none; or data to validate on.
        augment: of images, ``"flip"`` (left to right) and ``"shift"`` (by up to an eighth).
        freeze: shell-style patterns of tensors, or nodes, whose weights stay.
        keep_zeros: weights that are zero stay zero, where not all of a tensor is.
        minutes: time for training, all runs together; the learning rate falls accordingly.
        state: folder in which the state is kept after every epoch; a run that was interrupted goes on from it, to the same
            result.
        seed: for everything random. ``watch``: called with every epoch.

    Raises:
        UsageError: there is nothing to learn from.
        OptionError: an option outside its range.
        ModelError: the model can't be read or trained: it is quantised, in 16-bit floats, or has no gradient that is known.
        DataError: the data, or the original, do not fit.
        StateError: the state is of another run.
    """
    optimisers.check(optimiser, schedule, learning_rate, momentum, weight_decay, warmup)
    _check(loss, temperature, alpha, epochs, batch, minutes)
    source: Source = completed(model)
    graph = load(source)
    if graph.stored_bytes >= FILE_LIMIT:
        raise ModelError(f"the model has {graph.stored_bytes / 1e9:.1f} GB; only models below 2 GB can be fine-tuned")
    dataset = read(data, graph.inputs)
    augmentation.check(augment, dataset.inputs)
    rate = optimisers.OPTIMISERS[optimiser] if learning_rate is None else learning_rate
    free = _free(graph, dataset)
    found = _scores(free, dataset, batch)
    kind = _kind(loss, dataset.labels is not None, original is not None, found is not None)
    if dataset.labels is not None:
        check_range(dataset.labels, found)
    made = training(free, infer(free), _goal(kind, found, temperature, alpha), freeze)
    teacher = load(original) if original is not None and made.gradient.targets else None
    parts = _parts(dataset, validation, graph, seed, labelled=made.gradient.needs_labels)
    classes, seconds = kind != "squared", None if minutes is None else 60 * minutes
    settings = Settings(epochs, batch, rate, schedule, warmup, tuple(augment), keep_zeros, classes, seed, seconds)
    learned = None if teacher is None else _original(teacher, parts[0], list(made.gradient.targets))
    run: dict[str, Any] = {
        "model": graph.sha256,
        "original": None if teacher is None else teacher.sha256,
        "data": _digest(parts),
        "loss": kind,
    }
    run |= asdict(replace(settings, seconds=None)) | {"temperature": temperature, "alpha": alpha, "freeze": list(freeze)}
    run |= {"optimiser": optimiser, "momentum": momentum, "weight_decay": weight_decay}
    trainer = Trainer(
        Model(made, free.inputs, {n: np.array(graph.weights.read(n)) for n in made.names}, [port.name for port in free.outputs]),
        optimisers.make(optimiser, momentum=momentum, decay=weight_decay),
        settings,
        *parts,
        learned,
        keeper=None if state is None else Keeper(Path(state), run),
        watch=watch,
        progress=progress,
    )
    outcome = trainer.run()
    tensors = {name: LazyTensor(graph.weights.replaced(name, values)) for name, values in outcome.weights.items()}
    train, held = parts
    after: dict[str, float | None] = {}
    if held is not None:
        targets = [] if learned is None or not classes else list(learned(held).values())
        after = shares(predict(free.assemble(tensors).complete(), held, free.inputs), held.labels, targets)
    report = Finetuning(
        kind,
        len(made.names),
        (sum(map(graph.weights.count, made.names)), sum(graph.weights.count(n) for n in graph.weights if _is_own(graph, n))),
        (train.samples, 0 if held is None else held.samples),
        outcome.epochs,
        outcome.best.number,
        {name: (getattr(outcome.epochs[0], name), value) for name, value in after.items() if value is not None},
        (*made.notes, *_warnings(outcome, rate)),
    )
    return Finetuned(graph.assemble(tensors), report, source, graph.weights.has_external_data)


def _is_own(graph: Graph, name: str) -> bool:
    return graph.weights.elem_type(name) in FLOATS and not graph.is_copy(name)


def _check(loss: str, temperature: float, alpha: float, epochs: int, batch: int, minutes: float | None) -> None:
    if loss not in LOSSES:
        raise OptionError(f"loss {loss!r} does not exist; choose one of {', '.join(LOSSES)}")
    if not 0 < temperature < math.inf:
        raise OptionError(f"temperature is {temperature:g}; it is a number above 0")
    if not 0 <= alpha <= 1:
        raise OptionError(f"alpha is {alpha:g}; it is the share of distillation, from 0 to 1")
    for what, value in (("epochs", epochs), ("batch", batch)):
        if value < 1:
            raise OptionError(f"{what} is {value}; it is a count, at least 1")
    if minutes is not None and not 0 < minutes < math.inf:
        raise OptionError(f"minutes is {minutes:g}; it is a time, above 0")


def _scores(graph: Graph, data: Dataset, batch: int) -> Scores | None:
    """What a classifier says about some samples; None of another model."""
    return find_scores(predict(graph.assemble().complete(), data.take(np.arange(min(data.samples, batch))), graph.inputs))


def _kind(loss: str, labels: bool, original: bool, classifier: bool) -> str:
    """What to learn from.

    Raises:
        UsageError: that is not there.
    """
    if loss == "auto":
        if not labels and not original:
            raise UsageError("there is nothing to learn from; give data with an array 'labels', or --original, or both")
        if not classifier:
            loss = "squared" if original else "labels"
        else:
            loss = "both" if labels and original else "labels" if labels else "distillation"
    if loss in ("labels", "both") and not labels:
        raise UsageError(f"loss {loss!r} needs labels; give data with an array 'labels', or learn by distillation")
    if loss != "labels" and not original:
        raise UsageError(f"loss {loss!r} needs the model to learn from; give --original")
    if loss != "squared" and not classifier:
        raise UsageError(f"loss {loss!r} is a classifier's, which the model is not; give --original and the loss 'squared'")
    return loss


def _goal(kind: str, found: Scores | None, temperature: float, alpha: float) -> Goal:
    probabilities = found is not None and found.probabilities
    if kind == "squared":
        return Goal("squared")
    if kind == "labels":
        return Goal("cross-entropy", probabilities)
    return Goal("kl", probabilities, temperature, 1 - alpha if kind == "both" else 0.0)


def _free(graph: Graph, data: Dataset) -> Graph:
    """The model for any number of samples, if it can be had; otherwise the model itself."""
    fixed = fixed_batch(graph.inputs)
    if fixed is None:
        return graph
    some = data.take(np.arange(fixed + 1) % data.samples)
    model = graph.assemble().complete()
    try:
        free = load(freed(model, {port.name for port in graph.inputs}, fixed))
        outputs = predict(free.assemble().complete(), some, free.inputs)
    except ModelError:
        return graph
    for one, other in zip(predict(model, some, graph.inputs), outputs, strict=True):
        if one.shape != other.shape or not np.allclose(one, other, rtol=0, atol=_ALIKE * float(np.abs(one).max(initial=0))):
            return graph
    return free


def _parts(data: Dataset, validation: float | Data, graph: Graph, seed: int, *, labelled: bool) -> tuple[Dataset, Dataset | None]:
    """What is trained on, and what is held out."""
    if not isinstance(validation, int | float):
        held = read(validation, graph.inputs)
        if labelled and held.labels is None:
            raise UsageError("labels are learned, so that they are needed for validation too; give it an array 'labels'")
        return data, held
    if not 0 <= validation < 1:
        raise OptionError(f"validation is {validation:g}; it is a share of the samples, 0 <= validation < 1, or a file")
    count = min(max(1, round(validation * data.samples)), data.samples - 1) if validation else 0
    if not count:
        return data, None
    order = np.random.default_rng((seed, 0)).permutation(data.samples)
    return data.take(np.sort(order[count:])), data.take(np.sort(order[:count]))


def _original(graph: Graph, data: Dataset, names: Sequence[str]) -> Original:
    """The model to learn from.

    Raises:
        DataError: it does not take the same inputs, or lacks an output.
    """
    try:
        checked = read(data.inputs, graph.inputs)
    except DataError as error:
        raise DataError(f"the original does not take what the model takes: {error}") from error
    outputs = [port.name for port in graph.outputs]
    lacking = [name for name in names if name not in outputs]
    if lacking:
        raise DataError(f"the original has no output {lacking[0]!r}, which is to be learned; its outputs are {outputs}")
    free = _free(graph, checked)
    return Original(Session(free.assemble().complete()), free.inputs, names)


def _digest(parts: Sequence[Dataset | None]) -> str:
    """Hex digest of data."""
    digest = hashlib.sha256()
    for part in filter(None, parts):
        for name, values in sorted(part.arrays.items()):
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _warnings(outcome: Outcome, rate: float) -> list[str]:
    said = []
    if outcome.ended:
        wait = outcome.diverged and f"; the best model before that is kept, take a smaller learning rate than {rate:g}"
        said.append(outcome.ended + (wait or ", and the best model so far is kept"))
    if not outcome.best.number:
        said.append("no epoch was better than the model as it was, which is kept")
    return said
