"""The command line: parse, call, print. Exit status 0 done, 1 failed and nothing written, 2 usage. One file per command."""

from __future__ import annotations

import signal
from typing import Annotated, Any

import typer

from onnxprune import __version__
from onnxprune.cli import evaluate, finetune, look, prune, sparsify, sweep
from onnxprune.cli.shared import app
from onnxprune.runtime import quiet

__all__ = ["app", "evaluate", "finetune", "look", "main", "prune", "sparsify", "sweep"]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"onnxprune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    del version


def main(*args: Any) -> None:
    """Entry point."""
    quiet()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary files go then as well
    app(*args)
