"""Annealing."""

from __future__ import annotations

from onnxprune.importance.impact import Impact


class Stochastic(Impact):
    """Stub."""
