"""What an evaluation costs, known beforehand: forward and backward passes, and along what finite differences are taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from onnxprune.errors import OptionError
from onnxprune.evaluate.differences import Blocks, partition, trial
from onnxprune.weights import Array

WORK = 10**13
"""Multiply-accumulates that finite differences may take by default: some minutes on two cores."""

_PASS = 100_000
"""What a forward pass costs beside its multiply-accumulates, in the same unit."""


@dataclass(frozen=True, eq=False)
class Budget:
    """How many passes (samples through a model) an evaluation takes at most.

    ``gradients`` and ``judged``: per sample, how many gradients an attack takes, and how many predictions of what it and
    noise have made. ``others``: predictions without either, in all. ``blocks``: by input that is attacked, the directions
    along which each gradient is estimated by two forward passes; none where there is no attack, or gradients are exact, of
    one forward and one backward pass. ``note``: why they are not exact.
    """

    samples: int
    others: int
    gradients: int = 0
    judged: int = 0
    blocks: Mapping[str, Blocks] | None = None
    note: str = ""

    @property
    def coordinates(self) -> int:
        """Values of one sample that can be moved."""
        return sum(len(b.of) for b in (self.blocks or {}).values())

    @property
    def directions(self) -> int:
        """Directions per sample."""
        return sum(len(b.members) for b in (self.blocks or {}).values())

    @property
    def passes(self) -> int:
        """All forward passes."""
        return self.spent(self.samples, self.gradients * self.samples, self.judged * self.samples)[0]

    @property
    def backward(self) -> int:
        """Backward passes; each costs about as much as two forward ones."""
        return self.spent(self.samples, self.gradients * self.samples, self.judged * self.samples)[1]

    def spent(self, samples: int, gradients: int, judged: int) -> tuple[int, int]:
        """Forward and backward passes of an attack on so many samples that took so many gradients and predictions in all."""
        if not self.blocks:
            return gradients + judged + self.others, gradients
        return 2 * gradients * self.directions + trial(samples, self.blocks) + judged + self.others, 0

    @property
    def along(self) -> str:
        """Along what is differentiated."""
        blocks = (self.blocks or {}).values()
        if all(b.whole for b in blocks):
            return f"each of {self.coordinates:,} coordinates"
        grids = ", ".join(f"{'x'.join(map(str, b.grid))} of {'x'.join(map(str, b.shape))}" for b in blocks)
        return f"{self.directions:,} blocks of neighbours ({grids}) instead of {self.coordinates:,} coordinates"

    @property
    def warning(self) -> str:
        """What finite differences mean; empty without them."""
        if not self.blocks:
            return ""
        each = 2 * self.coordinates * self.gradients
        enough = 2 * self.samples * self.directions * self.gradients // each
        fewer = f", or {enough:,} samples" if enough else ""
        complete = f"; all coordinates need a budget of {self.samples * each:,}{fewer}"
        whole = self.directions == self.coordinates
        return (
            f"gradients are estimated by finite differences along {self.along}: "
            f"estimates {'can ' if whole else ''}understate how vulnerable the model is{'' if whole else complete}"
        )

    def __str__(self) -> str:
        parts = [f"at most {self.passes:,} forward passes for {self.samples:,} samples"]
        if self.blocks:
            estimates = self.passes - self.judged * self.samples - self.others
            parts.append(f"{estimates:,} of them for gradients by central differences along {self.along}")
        elif self.backward:
            parts.append(f"and {self.backward:,} backward passes")
        return ", ".join(parts)


def plan(budget: Budget, inputs: Mapping[str, Array], *, passes: int | None, macs: int) -> Budget:
    """Choose the directions of finite differences.

    Args:
        budget: what is known but for them.
        inputs: the arrays to be attacked ``(samples, ...)`` by name.
        passes: forward passes that the gradients of all samples may take; by default what some minutes are enough for.
        macs: multiply-accumulates of one pass.

    Raises:
        OptionError: the budget is too small for one direction per gradient and input.
    """
    wanted = WORK // (macs + _PASS) if passes is None else passes
    unit = 2 * budget.samples * budget.gradients
    directions = wanted // unit
    if directions < len(inputs):
        each = f" with {budget.gradients} gradients each" if budget.gradients > 1 else ""
        raise OptionError(
            f"budget is {wanted}; {budget.samples} samples{each} need at least {unit * len(inputs)} forward passes for "
            "gradients, two along each direction; raise it, or take fewer samples" + (" or steps" if each else "")
        )
    sizes = {name: values[0].size for name, values in inputs.items()}
    total = sum(sizes.values())
    counts = {name: max(1, size if total <= directions else size * directions // total) for name, size in sizes.items()}
    while sum(counts.values()) > max(directions, len(counts)):
        counts[max(counts, key=counts.__getitem__)] -= 1
    return replace(budget, blocks={n: partition(inputs[n].shape[1:], count) for n, count in counts.items()})
