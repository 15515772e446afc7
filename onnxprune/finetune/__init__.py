"""Fine-tuning without a training framework: a model's float weights trained through its gradient graph."""

from onnxprune.finetune.finetuning import Finetuned, Finetuning
from onnxprune.finetune.trainer import Epoch
from onnxprune.finetune.tuned import LOSSES, finetune

__all__ = ["Epoch", "Finetuned", "Finetuning", "LOSSES", "finetune"]
