"""The commands that look at models, or put them side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxprune.cli.shared import Data, Freeze, Json, Mixing, Model, app, check_written, working
from onnxprune.compare import compare as compare_models
from onnxprune.demo import run as run_demo
from onnxprune.operators import table
from onnxprune.profile import profile as profile_model
from onnxprune.pruner import inspect as inspect_model


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to write.", show_default=False)] = Path("onnxprune-demo"),
) -> None:
    """Prune a small trained network that comes with the package, and show what that saves and costs."""
    with working() as progress:
        print(run_demo(folder, progress=progress))


@app.command()
def inspect(
    model: Model,
    freeze: Freeze = None,
    mixing: Mixing = False,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.", show_default=False)
    ] = None,
) -> None:
    """Show what could be cut, and what is frozen by which node at what cost."""
    with working() as progress:
        check_written(model, json)
        report = inspect_model(model, freeze=tuple(freeze or ()), mixing=mixing, progress=progress)
        if json is not None:
            report.save(json)
    print(report)


@app.command()
def compare(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="An ONNX file.", show_default=False)],
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", help="Another one with the same inputs.", show_default=False)],
    data: Data = None,
    report: Json = None,
) -> None:
    """Put two models side by side: size, work, latency in onnxruntime and, with data, agreement and accuracy."""
    with working() as progress:
        check_written(original, report)
        progress("measure")
        result = compare_models(original, pruned, data=data)
        if report is not None:
            result.save(report)
    print(result)


@app.command()
def profile(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.json", help="Where to write it.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="For the input of the whole model.")] = 0,
) -> None:
    """Measure on this machine at which widths a model's layers get faster, for prune --profile, here or elsewhere."""
    with working() as progress:
        check_written(model, output)
        found = profile_model(model, seed=seed, progress=progress)
        if output is not None:
            found.save(output)
    print(found)


@app.command()
def ops() -> None:
    """Print the operator table: what cutting channels through each operator means."""
    print(table())
