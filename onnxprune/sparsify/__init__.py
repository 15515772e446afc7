"""Unstructured pruning: zeros in the place of weights, what they save and cost, and the way back."""

from onnxprune.sparsify.choosing import CRITERIA, LAYERS
from onnxprune.sparsify.record import Sparsification
from onnxprune.sparsify.restored import Restored, restore, sidecar_path
from onnxprune.sparsify.sparsified import Sparsified, check_outputs, sparsify
from onnxprune.sparsify.storage import STORES

__all__ = [
    "CRITERIA",
    "LAYERS",
    "Restored",
    "STORES",
    "Sparsification",
    "Sparsified",
    "check_outputs",
    "restore",
    "sidecar_path",
    "sparsify",
]
