"""What fine-tuning brought: the report, and the result that carries it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxprune.files import JsonFile, Source, save
from onnxprune.finetune.trainer import Epoch
from onnxprune.lazy import LazyModel
from onnxprune.report import columns

SCHEMA = "onnxprune.finetuning/1"


@dataclass(frozen=True)
class Finetuning(JsonFile):
    """How training went.

    Attributes:
        loss: what was learned from: ``"labels"``, ``"distillation"``, ``"both"`` or ``"squared"``.
        tensors: how many trained. ``parameters``: numbers in these, and in all float tensors of the model.
        samples: trained on, and held out for validation.
        epochs: in their order; the first is the model before training.
        best: number of the epoch whose weights the model has.
        metrics: ``accuracy`` and ``agreement`` on the samples held out, before and after, where they could be measured.
        seconds: elapsed time of the epochs, all runs together.
        warnings: what the user should know, a line each.
    """

    loss: str
    tensors: int
    parameters: tuple[int, int]
    samples: tuple[int, int]
    epochs: tuple[Epoch, ...]
    best: int
    metrics: Mapping[str, Any]
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Time that the epochs took, in all runs together."""
        return sum(epoch.seconds for epoch in self.epochs)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data (schema ``onnxprune.finetuning/1``)."""
        return {
            "schema": SCHEMA,
            "loss": self.loss,
            "trained": {"tensors": self.tensors, "parameters": self.parameters[0], "of": self.parameters[1]},
            "samples": {"training": self.samples[0], "validation": self.samples[1]},
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best": self.best,
            "metrics": {name: list(pair) for name, pair in self.metrics.items()},
            "elapsed_s": self.seconds,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        last, kept = self.epochs[-1].number, "after training" if self.best else "as it was"
        rows = [
            ("learned from", self.loss),
            ("trained", f"{self.parameters[0]:,} of {self.parameters[1]:,} numbers, in {self.tensors} tensors"),
            ("samples", f"{self.samples[0]:,}, and {self.samples[1]:,} held out"),
            ("epochs", f"{last}, the model is that of epoch {self.best}, {kept}"),
            ("time", f"{self.seconds:.1f} s"),
        ]
        for name, (old, new) in self.metrics.items():
            rows.append((name, f"{100 * old:.1f} % before, {100 * new:.1f} % after"))
        return "\n".join([columns(rows), *(f"warning: {line}" for line in self.warnings)])


@dataclass(frozen=True)
class Finetuned:
    """A trained model, the report of how that went, and the ``source`` it was made from."""

    trained: LazyModel
    report: Finetuning
    source: Source
    external_data: bool = False

    @cached_property
    def model(self) -> ModelProto:
        """The model as a proto."""
        return self.trained.complete()

    def save(self, path: str | Path) -> None:
        """Write the model; weights go to ``<name>.data`` beside it if the model kept them apart before.

        Raises:
            OutputError: the path is the input or can't be written. What was there before is still there.
        """
        save(self.trained, path, external=self.external_data, source=self.source)

    def __str__(self) -> str:
        return str(self.report)
