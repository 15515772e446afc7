"""Measures of models: does the cut equal the mask, how fast, how accurate, how much alike."""

from onnxprune.evaluate.accuracy import accuracy, agreement, measure, predict, relative_error
from onnxprune.evaluate.latency import Latency, interleaved
from onnxprune.evaluate.verify import Verification, check_runs, verify

__all__ = [
    "Latency",
    "Verification",
    "accuracy",
    "agreement",
    "check_runs",
    "interleaved",
    "measure",
    "predict",
    "relative_error",
    "verify",
]
