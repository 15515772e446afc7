"""The demo."""

from collections.abc import Callable
from pathlib import Path


def run(folder: Path, *, progress: Callable[[str], None] | None = None) -> str:
    """Placeholder."""
    return str(folder)
