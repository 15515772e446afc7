"""Stub."""

from dataclasses import dataclass
from typing import Any

SEED = "grad__seed"


@dataclass
class Backward:
    """Stub."""

    model: Any
    missing: str
    inputs: list[str]


def backward(graph: Any, shapes: Any, output: str) -> Backward:
    """Stub."""
    return Backward(None, "", [])
