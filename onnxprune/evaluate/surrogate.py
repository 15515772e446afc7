"""Transfer attacks: whether a surrogate, whose gradients are used against another model, has its inputs and classes."""

from __future__ import annotations

from onnxprune import data as datasets
from onnxprune.data import Dataset
from onnxprune.errors import DataError
from onnxprune.evaluate.accuracy import Labels, Scores, check_finite, find_scores, predict
from onnxprune.graph import Graph


def check_surrogate(source: Graph, graph: Graph, data: Dataset) -> None:
    """Make sure that a surrogate takes a model's inputs.

    Raises:
        DataError: it does not.
    """
    ours, theirs = ({port.name: port.elem_type for port in model.inputs} for model in (graph, source))
    if ours != theirs:
        what = (
            "have other types than the model's" if set(ours) == set(theirs) else f"are {list(theirs)}, the model's {list(ours)}"
        )
        raise DataError(f"the surrogate's inputs {what}; take one with the same inputs")
    try:
        datasets.read(data.arrays, source.inputs)
    except DataError as error:
        raise DataError(f"the surrogate takes other inputs than the model: {error}") from error


def surrogate_scores(source: Graph, dataset: Dataset, found: Scores | None, accepted: Labels) -> Scores:
    """What a surrogate says about the data.

    Args:
        found: the model's own scores. ``accepted``: classes to attack.

    Raises:
        DataError: they are no scores of the same classes.
        ModelError: they are NaN, or it does not run.
    """
    clean = find_scores(predict(source.assemble().ready(), dataset, source.inputs))
    if clean is None:
        raise DataError(
            "the surrogate gives no float scores of shape (samples, classes), so that it has no gradient; take another"
        )
    check_finite(clean, "surrogate")
    count, own = clean.values.shape[1], int(accepted.max(initial=-1)) + 1 if found is None else found.values.shape[1]
    if count < own or (found is not None and count != own):
        raise DataError(f"the surrogate has {count} classes, the model {own}; take one with the same classes")
    return clean
