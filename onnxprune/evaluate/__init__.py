"""Measures of models: does the cut equal the mask, how fast, how accurate, how much alike, how robust."""

from onnxprune.evaluate.accuracy import (
    Labels,
    Scores,
    accuracy,
    agreement,
    check_range,
    classes,
    cross_entropy,
    find_scores,
    measure,
    predict,
    relative_error,
    top_k_accuracy,
)
from onnxprune.evaluate.classifier import freed, without_maps
from onnxprune.evaluate.gradient import Budget, plan
from onnxprune.evaluate.latency import Latency, interleaved
from onnxprune.evaluate.robustness import Robustness, attacked, fgsm, limits
from onnxprune.evaluate.verify import Verification, check_runs, verify

__all__ = [
    "Budget",
    "Labels",
    "Latency",
    "Robustness",
    "Scores",
    "Verification",
    "accuracy",
    "agreement",
    "attacked",
    "check_range",
    "check_runs",
    "classes",
    "cross_entropy",
    "fgsm",
    "find_scores",
    "freed",
    "interleaved",
    "limits",
    "measure",
    "plan",
    "predict",
    "relative_error",
    "top_k_accuracy",
    "verify",
    "without_maps",
]
