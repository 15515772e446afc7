"""onnxprune: a smaller ONNX model that provably equals the masked original.

>>> import onnxprune
>>> result = onnxprune.prune("model.onnx", ratio=0.5)  # doctest: +SKIP
>>> result.save("small.onnx")                          # doctest: +SKIP
"""

__version__ = "0.1.0"

from onnxprune.compare import Comparison, compare
from onnxprune.errors import (
    DataError,
    GradientError,
    ModelError,
    OnnxpruneError,
    OptionError,
    OutputError,
    PlanError,
    ProfileError,
    SidecarError,
    StateError,
    TapeError,
    TargetError,
    UsageError,
    VerificationError,
)
from onnxprune.evaluation import Evaluation
from onnxprune.evaluator import Evaluator
from onnxprune.family import Family, family
from onnxprune.finetune import Finetuned, finetune
from onnxprune.importance import ScoreTable
from onnxprune.plan import Plan
from onnxprune.profile import DeviceProfile, profile
from onnxprune.pruner import Pruner, inspect, prune
from onnxprune.quantize import Quantized, quantize
from onnxprune.remove import remove_filters, remove_kernels, remove_normalization
from onnxprune.report import Report
from onnxprune.result import Result
from onnxprune.sampler import Sampler
from onnxprune.sparsify import Restored, Sparsified, restore, sparsify
from onnxprune.sweep import Sweep, sweep

__all__ = [
    # verbs
    "compare",
    "family",
    "finetune",
    "inspect",
    "profile",
    "prune",
    "quantize",
    "restore",
    "sparsify",
    "sweep",
    # verbs for one layer
    "remove_filters",
    "remove_kernels",
    "remove_normalization",
    # nouns
    "Comparison",
    "DeviceProfile",
    "Evaluation",
    "Evaluator",
    "Family",
    "Finetuned",
    "Plan",
    "Pruner",
    "Quantized",
    "Report",
    "Restored",
    "Result",
    "Sampler",
    "ScoreTable",
    "Sparsified",
    "Sweep",
    # errors
    "DataError",
    "GradientError",
    "ModelError",
    "OnnxpruneError",
    "OptionError",
    "OutputError",
    "PlanError",
    "ProfileError",
    "SidecarError",
    "StateError",
    "TapeError",
    "TargetError",
    "UsageError",
    "VerificationError",
    # about
    "__version__",
]
