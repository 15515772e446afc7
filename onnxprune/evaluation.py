"""What was measured of a model on data, as one frozen result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.files import JsonFile
from onnxprune.report import columns

SCHEMA = "onnxprune.evaluation/1"


@dataclass(frozen=True)
class Evaluation(JsonFile):
    """What was measured on ``samples``; None where it could not be.

    ``accuracy``, ``loss`` (cross-entropy, nats) and ``top_k`` (share by k) need labels. ``robust`` and ``noisy``: how many
    samples are still classified right after the attack, or after random noise of the same size, by epsilon; without labels
    a sample's right class is the one that the model itself predicts. ``agreement``: share of samples for which the original
    predicts the same class. ``forward_passes`` and ``backward_passes``: samples that went through a model that way.
    ``attack``: its settings by name, empty where there was none.
    """

    samples: int
    accuracy: float | None
    loss: float | None
    top_k: Mapping[int, float]
    robust: Mapping[float, int]
    noisy: Mapping[float, int]
    agreement: float | None
    forward_passes: int
    backward_passes: int
    attack: Mapping[str, Any]
    warnings: tuple[str, ...]

    @property
    def robust_accuracy(self) -> dict[float, float]:
        """Share of all samples that are still classified right after the attack, by epsilon."""
        return {epsilon: count / self.samples for epsilon, count in self.robust.items()}

    @property
    def noise_accuracy(self) -> dict[float, float]:
        """The same for random noise: what an epsilon does without knowing the model."""
        return {epsilon: count / self.samples for epsilon, count in self.noisy.items()}

    def metrics(self) -> dict[str, Any]:
        """What was measured, by the report's names."""
        found = {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "top_k": {str(k): share for k, share in self.top_k.items()},
            "robust_accuracy": {f"{e:.12g}": share for e, share in self.robust_accuracy.items()},
            "noise_accuracy": {f"{e:.12g}": share for e, share in self.noise_accuracy.items()},
            "agreement": self.agreement,
        }
        return {name: value for name, value in found.items() if value not in (None, {})}

    def to_dict(self) -> dict[str, Any]:
        """As JSON data (schema ``onnxprune.evaluation/1``)."""
        return {
            "schema": SCHEMA,
            "samples": self.samples,
            "metrics": self.metrics(),
            **({"attack": dict(self.attack)} if self.attack else {}),
            "forward_passes": self.forward_passes,
            "backward_passes": self.backward_passes,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        rows = [("samples", f"{self.samples:,}")]
        rows += [("accuracy", _percent(self.accuracy))] if self.accuracy is not None else []
        rows += [(f"top-{k} accuracy", _percent(share)) for k, share in self.top_k.items()]
        rows += [("loss", f"{self.loss:.4f}")] if self.loss is not None else []
        rows += [("agreement", _percent(self.agreement))] if self.agreement is not None else []
        rows += [("forward passes", f"{self.forward_passes:,}")]
        rows += [("backward passes", f"{self.backward_passes:,}")] if self.backward_passes else []
        parts = [columns(rows, right=(1,))]
        if self.robust:
            attacks = [("epsilon", f"still right: {self.attack['name']}", "random noise")]
            noise = self.noise_accuracy
            attacks += [(f"{e:g}", _percent(share), _percent(noise[e])) for e, share in self.robust_accuracy.items()]
            parts.append(columns(attacks, right=(1, 2)))
        parts += [f"note: {warning}" for warning in self.warnings]
        return "\n\n".join(parts)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
