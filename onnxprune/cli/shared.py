"""What all commands share: the application, common arguments, progress, and errors as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from onnxprune.errors import OnnxpruneError
from onnxprune.files import check_output, one_line
from onnxprune.report import check_picture

app = typer.Typer(
    help="Cut channels out of an ONNX model, and prove that the result equals the masked original.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", show_default=False)]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="FILE.npz", help="One array per graph input, and 'labels'.", show_default=False)
]
Freeze = Annotated[
    list[str] | None, typer.Option("--freeze", metavar="PATTERN", help="Nodes or tensors to leave alone.", show_default=False)
]
Mixing = Annotated[
    bool, typer.Option("--mixing", help="Also cut what LayerNormalization, Softmax or means work over; that is not exact.")
]
Json = Annotated[Path | None, typer.Option("--report", metavar="FILE.json", help="Write the report as JSON.", show_default=False)]


Clusters = Annotated[
    str | None,
    typer.Option(
        metavar="K|FILE.json", help="Clusters of the k-means criteria, or numbers of them by pattern.", show_default=False
    ),
]


def clusters_of(given: str | None) -> int | Path | None:
    """A number of clusters, or the path of a file of them."""
    return given if given is None else int(given) if given.isdecimal() else Path(given)


def check_written(model: Path, *paths: Path | None, picture: Path | None = None) -> None:
    """Make sure, before any work is done, that files and a picture can be written, and that none of them is the model.

    Raises:
        OutputError, OptionError: one can't be.
    """
    for path in filter(None, paths):
        check_output(path, model)
    if picture is not None:
        check_picture(picture)


@contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """Show the stage that is being worked on, on standard error, if that is a terminal; turn errors into one line."""
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
            task = shown.add_task("starting")
            yield lambda stage: shown.update(task, description=stage)
    except OnnxpruneError as error:
        print(f"onnxprune: error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        print("onnxprune: interrupted; nothing was written", file=sys.stderr)
        raise typer.Exit(1) from error
    except Exception as error:  # a user gets one line whatever happens
        said = f"{type(error).__name__}: {one_line(error)}"
        print(f"onnxprune: error: {said}; this is a defect of onnxprune, please report it with the model", file=sys.stderr)
        raise typer.Exit(1) from error
