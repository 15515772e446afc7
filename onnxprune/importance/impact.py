"""Impact."""

from __future__ import annotations

from onnxprune.importance.saliency import Saliency


class Impact(Saliency):
    """Stub."""
