"""Result: a pruned model with its plan and its report, ready to be written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from onnx import ModelProto

from onnxprune.errors import UsageError
from onnxprune.files import Scratch, Source, place, save
from onnxprune.importance import ScoreTable
from onnxprune.lazy import AnyModel, LazyModel, completed
from onnxprune.plan import Plan
from onnxprune.proof import PRUNED
from onnxprune.report import Report

INLINE_LIMIT = 1_900_000_000
"""A model larger than this can't be one protobuf file; its weights go beside it."""


def unscored() -> ScoreTable:
    """What there is of scores where nothing was chosen.

    Raises:
        UsageError: always.
    """
    raise UsageError("nothing was scored: a plan was replayed; save scores from a run that chooses")


@dataclass(frozen=True)
class Result:
    """A pruned model with the plan that made it, the report of how, and the ``source`` it was made from.

    ``scores()``: by which channels were chosen.
    """

    pruned: AnyModel
    plan: Plan
    report: Report
    source: Source
    external_data: bool = False
    scratch: Scratch | None = None
    scores: Callable[[], ScoreTable] = unscored

    @cached_property
    def model(self) -> ModelProto:
        """The pruned model as a proto. A large one is read from its files when this is first asked for."""
        return completed(self.pruned)

    def save(self, path: str | Path, *, move: bool = False) -> None:
        """Write the model; weights go to ``<name>.data`` beside it if the original kept them apart.

        Args:
            move: a large model's temporary files become the output, which is faster; it can't be saved again then.

        Raises:
            OutputError: the path is the input or can't be written. What was there before is still there.
        """
        size = self.pruned.nbytes if isinstance(self.pruned, LazyModel) else self.pruned.ByteSize()
        external = self.external_data or size > INLINE_LIMIT
        if self.scratch is not None and external:
            place(self.scratch.folder / PRUNED, path, move=move, source=self.source)
        else:
            save(self.pruned, path, external=external, source=self.source)
