"""The state of a training run, written after every epoch, so that an interrupted run goes on as if nothing had happened."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import OutputError, StateError
from onnxprune.files import one_line, write
from onnxprune.weights import Array

SCHEMA = "onnxprune.finetune-state/1"
_FILE = "state.npz"
_ABOUT = "about"

Arrays = dict[str, dict[str, Array]]
"""Arrays by tensor, by what they are: ``weights``, ``best``, an optimiser's moments."""


@dataclass(frozen=True)
class State:
    """Where a run stands. ``about``: everything but arrays, as JSON data. Random numbers follow from the seed and the epoch."""

    arrays: Arrays
    about: Mapping[str, Any]


class Keeper:
    """Writes states to a folder, and reads the last one.

    Args:
        settings: of the run, as JSON data; only a run with the same ones goes on from its states.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._path, self._settings = folder / _FILE, json.loads(json.dumps(settings))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"folder {str(folder)!r} can't be made: {error.strerror}; choose another") from error

    def save(self, state: State) -> None:
        """Write a state in place of the last one.

        Raises:
            OutputError: that is not possible; the last one is still there.
        """
        about = json.dumps({"schema": SCHEMA, "settings": self._settings, **state.about})
        flat: dict[str, Any] = {_ABOUT: np.array(about)}
        for kind, arrays in state.arrays.items():
            flat |= {f"{kind}/{name}": values for name, values in arrays.items()}
        data = io.BytesIO()
        np.savez(data, **flat)
        write(data.getvalue(), self._path, "state")

    def load(self) -> State | None:
        """The last state, or None where there is none.

        Raises:
            StateError: it can't be read, or is of a run with other settings; the first one that differs is named.
        """
        where = f"state {str(self._path)!r}"
        if not self._path.exists():
            return None
        try:
            with np.load(self._path, allow_pickle=False) as archive:
                flat = {name: archive[name] for name in archive.files}
            about = json.loads(str(flat.pop(_ABOUT)))
            old = about.pop("settings")
            schema = about.pop("schema")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise StateError(f"{where} can't be read: {one_line(error)}; begin anew in another folder") from error
        if schema != SCHEMA:
            raise StateError(f"{where} has schema {schema!r}, this version reads {SCHEMA!r}; begin anew in another folder")
        for name in dict.fromkeys((*old, *self._settings)):
            if old.get(name) != self._settings.get(name):
                raise StateError(
                    f"{where} is of a run with {name} {_shown(old.get(name))}, this run has {_shown(self._settings.get(name))}; "
                    "give the same settings and files, or begin anew in another folder"
                )
        arrays: Arrays = {}
        for key, values in flat.items():
            kind, _, name = key.partition("/")
            arrays.setdefault(kind, {})[name] = values
        if not {"weights", "best"} <= set(arrays):
            raise StateError(f"{where} lacks the weights; begin anew in another folder")
        return State(arrays, about)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
