"""Measures of models: does the cut equal the mask, how fast, how accurate, how much alike, how robust."""

from onnxprune.evaluate.accuracy import (
    Labels,
    Scores,
    accuracy,
    agreement,
    check_finite,
    check_range,
    classes,
    cross_entropy,
    find_scores,
    measure,
    predict,
    relative_error,
    top_k_accuracy,
)
from onnxprune.evaluate.attack import NORMS, Attack, Gradient, adversarial
from onnxprune.evaluate.budget import Budget, plan
from onnxprune.evaluate.classifier import freed, without_maps
from onnxprune.evaluate.fidelity import Judged
from onnxprune.evaluate.gradient import Sparse, differentiated, find_gradient
from onnxprune.evaluate.latency import Latency, Race, Speed, in_turns, interleaved, race
from onnxprune.evaluate.robustness import Judge, Robustness, attacked, limits, robustness
from onnxprune.evaluate.surrogate import check_surrogate, surrogate_scores
from onnxprune.evaluate.verify import Verification, check_runs, verify

__all__ = [
    "Attack",
    "Budget",
    "Gradient",
    "Judge",
    "Judged",
    "Labels",
    "Latency",
    "NORMS",
    "Race",
    "Robustness",
    "Scores",
    "Sparse",
    "Speed",
    "Verification",
    "accuracy",
    "adversarial",
    "agreement",
    "attacked",
    "check_finite",
    "check_range",
    "check_runs",
    "check_surrogate",
    "classes",
    "cross_entropy",
    "differentiated",
    "find_scores",
    "find_gradient",
    "freed",
    "in_turns",
    "interleaved",
    "limits",
    "measure",
    "plan",
    "predict",
    "race",
    "relative_error",
    "robustness",
    "surrogate_scores",
    "top_k_accuracy",
    "verify",
    "without_maps",
]
