"""Scores that were measured once, saved as JSON and taken again: another share or ToD level needs no data then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.channels import named
from onnxprune.errors import DataError
from onnxprune.files import JsonFile
from onnxprune.importance.measured import Measured
from onnxprune.importance.scene import Scene

SCHEMA = "onnxprune.scores/1"


@dataclass(frozen=True, eq=False)
class ScoreTable(JsonFile):
    """Scores of a model's channels, larger = keep: by criterion, and by group as ``inspect`` names them.

    ``model_sha256``: of the model's file.
    """

    WHAT = "scores"

    model_sha256: str
    scores: Mapping[str, Mapping[str, Scores]]
    where: str = "scores"

    def to_dict(self) -> dict[str, Any]:
        """As JSON data (schema ``onnxprune.scores/1``)."""
        scores = {criterion: {name: v.tolist() for name, v in groups.items()} for criterion, groups in self.scores.items()}
        return {"schema": SCHEMA, "model_sha256": self.model_sha256, "scores": scores}

    @classmethod
    def load(cls, path: str | Path) -> ScoreTable:
        """Read scores.

        Raises:
            DataError: the file can't be read, or holds no scores.
        """
        where = f"scores {str(path)!r}"
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["schema"] != SCHEMA:
                raise DataError(f"{where} have schema {data['schema']!r}, this version reads {SCHEMA!r}")
            scores = {
                str(criterion): {str(name): np.array(values, np.float64) for name, values in groups.items()}
                for criterion, groups in data["scores"].items()
            }
            table = cls(str(data["model_sha256"]), scores, where)
        except OSError as error:
            raise DataError(f"{where} can't be read: {error.strerror}; check the path") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where} are no scores: {error}; save them again with --save-scores") from error
        if not all(v.ndim == 1 and np.isfinite(v).all() for groups in scores.values() for v in groups.values()):
            raise DataError(f"{where} are no scores: some are not lists of finite numbers; save them again with --save-scores")
        return table

    def of(self, criterion: str, scene: Scene) -> list[Scores]:
        """The scores of the channels that there are in each group of a scene.

        Raises:
            DataError: they are of another model, or of other groups.
        """
        if self.model_sha256 != scene.graph.sha256:
            raise DataError(f"{self.where} are of another model (its SHA-256 is {self.model_sha256[:12]}...); measure this one")
        found = []
        for number, name in enumerate(named(scene.coupling.groups)):
            values, size = self.scores[criterion].get(name), scene.group(number).size
            if values is None or len(values) != size:
                had = "none" if values is None else f"{len(values)}"
                raise DataError(
                    f"{self.where} have {had} of the {size} channels of group {name!r}; "
                    "take the options with which they were saved (--freeze, --mixing, --free)"
                )
            found.append(values)
        return found


class Saved(Measured):
    """A criterion that was measured before."""

    def __init__(self, name: str, table: ScoreTable) -> None:
        super().__init__()
        self.name, self.table = name, table

    def measure(self, scene: Scene) -> list[Scores]:
        """Float64 (channels,) for each group."""
        return self.table.of(self.name, scene)
