"""The demo: a small trained network that comes with the package is pruned, proved and measured.

``digits.onnx`` reads handwritten digits, ``digits.npz`` holds 450 labelled ones that it was not trained on;
``benchmarks/train_demo.py`` makes both. The samples are from E. Alpaydin and C. Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0, as
scikit-learn distributes them, with the pixel values divided by 16.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from onnxprune.compare import compare
from onnxprune.errors import OutputError
from onnxprune.files import check_output
from onnxprune.pruner import prune

__all__ = ["RATIO", "run"]

RATIO = 0.5
"""Share of the channels that the demo removes."""

ORIGINAL, DATA, PRUNED, PLAN, REPORT = NAMES = ("digits.onnx", "digits.npz", "digits-pruned.onnx", "plan.json", "report.json")


def run(folder: Path, *, progress: Callable[[str], None] | None = None) -> str:
    """Prune the network that comes with the package; write both models, the samples, the plan and the report.

    Args:
        folder: where to write; made if it does not exist. Files in it that have the same names are replaced.
        progress: called at each stage.

    Returns:
        What was done, and what it saves and costs, for people.

    Raises:
        OutputError: the folder can't be made or written; what was there before is still there.
    """
    tell = progress or (lambda stage: None)
    shipped = files(__package__)
    with as_file(shipped / ORIGINAL) as original, as_file(shipped / DATA) as data, _all_or_nothing(folder) as staging:
        with np.load(data) as archive:
            samples = len(archive["labels"])
        result = prune(original, ratio=RATIO, data=data, progress=progress)
        tell("measure")
        comparison = compare(original, result.model, data=data)
        tell("write")
        shutil.copyfile(original, staging / ORIGINAL)
        shutil.copyfile(data, staging / DATA)
        result.save(staging / PRUNED)
        result.plan.save(staging / PLAN)
        result.report.save(staging / REPORT)
    parts = (
        f"Removed {RATIO:.0%} of the channels of a small network that reads handwritten digits, one that was trained to bear it\n"
        f"without retraining, and measured both models on {samples} samples that neither has seen.",
        str(comparison),
        result.report.proof,
        f"written to {folder}: {', '.join(NAMES)}",
        f"the same by hand:\n{_commands(folder)}",
    )
    return "\n\n".join(parts)


def _commands(folder: Path) -> str:
    """The command lines that write and print what the demo does."""
    original, data, pruned, plan, report = (str(folder / name) for name in NAMES)
    prune_it = ["prune", original, "-o", pruned, "--ratio", str(RATIO), "--data", data, "--save-plan", plan, "--report", report]
    compare_them = ["compare", original, pruned, "--data", data]
    return "\n".join("  " + shlex.join(["onnxprune", *words]) for words in (prune_it, compare_them))


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[Path]:
    """A place to write the files, from which they move into the folder once all of them are complete."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            check_output(folder / name)
        with TemporaryDirectory(prefix=".onnxprune-", dir=folder) as staging:
            yield Path(staging)
            for name in NAMES:
                os.replace(Path(staging, name), folder / name)
    except BaseException as error:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        if isinstance(error, FileExistsError):
            raise OutputError(f"demo folder {str(folder)!r} is a file; give the path of a folder") from error
        if isinstance(error, OSError):
            raise OutputError(f"demo folder {str(folder)!r} can't be written: {error.strerror}") from error
        raise
