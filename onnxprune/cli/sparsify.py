"""The commands that make a model sparse, and dense again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxprune.cli.shared import Data, Freeze, Json, Model, app, check_written, working
from onnxprune.masks import GRANULARITIES, NORMALISATIONS, SCOPES
from onnxprune.sparsify import CRITERIA, LAYERS, STORES, check_outputs, sidecar_path
from onnxprune.sparsify import restore as restore_model
from onnxprune.sparsify import sparsify as sparsify_model

Output = Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Where to write the model.", show_default=False)]


@app.command()
def sparsify(
    model: Model,
    output: Output,
    sparsity: Annotated[
        float | None, typer.Option(metavar="S", help="Share of the weights to zero, 0 to 1.", show_default=False)
    ] = None,
    pattern: Annotated[
        str, typer.Option(metavar="N:M", help="Instead: keep N of every M weights along the inputs.", show_default=False)
    ] = "",
    granularity: Annotated[
        str, typer.Option(metavar="NAME", help=f"What is zeroed as a whole: {', '.join(GRANULARITIES)}.")
    ] = "element",
    scope: Annotated[
        str, typer.Option(metavar="SCOPE", help=f"One threshold for all, or one each: {', '.join(SCOPES)}.")
    ] = "global",
    criterion: Annotated[
        str, typer.Option(metavar="NAME", help=f"What makes a weight important: {', '.join(CRITERIA)}.")
    ] = "magnitude",
    normalise: Annotated[
        str, typer.Option(metavar="NAME", help=f"What scores are divided by: {', '.join(NORMALISATIONS)}.")
    ] = "none",
    bernoulli: Annotated[float, typer.Option(metavar="P", help="Probability that what is below the threshold is zeroed.")] = 1.0,
    layers: Annotated[str, typer.Option(metavar="KIND", help=f"Which weights: {', '.join(LAYERS)}.")] = "all",
    freeze: Freeze = None,
    data: Data = None,
    seed: Annotated[int, typer.Option(metavar="N", help="For everything random.")] = 0,
    store: Annotated[str, typer.Option(metavar="HOW", help=f"How the model is written: {', '.join(STORES)}.")] = "dense",
    sidecar: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What brings the weights back; OUT.dense.npz.", show_default=False),
    ] = None,
    no_sidecar: Annotated[bool, typer.Option("--no-sidecar", help="Don't write that.")] = False,
    earlier: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="MODEL's own sidecar, where it is not MODEL.dense.npz.", show_default=False),
    ] = None,
    report: Json = None,
) -> None:
    """Zero weights where they are, keep what brings them back, and measure what that saves and costs."""
    if no_sidecar and sidecar is not None:
        raise typer.BadParameter("a sidecar is either written or not", param_hint="--sidecar / --no-sidecar")
    beside = None if no_sidecar else sidecar or sidecar_path(output)
    written = [path.resolve() for path in (output, beside, report) if path is not None]
    if len(set(written)) < len(written):
        raise typer.BadParameter("everything that is written needs a path of its own", param_hint="-o / --sidecar / --report")
    with working() as progress:
        check_outputs(output, beside, model, earlier)
        check_written(model, report)
        result = sparsify_model(
            model,
            sparsity,
            granularity=granularity,
            scope=scope,
            criterion=criterion,
            bernoulli=bernoulli,
            normalise=normalise,
            pattern=pattern,
            layers=layers,
            freeze=tuple(freeze or ()),
            data=data,
            seed=seed,
            store=store,
            sidecar=earlier,
            scratch=output.absolute().parent,
            progress=progress,
        )
        progress("write")
        result.save(output, sidecar=False if beside is None else beside, move=True)
        if report is not None:
            result.report.save(report)
    print(result.report)


@app.command()
def restore(
    sparse: Annotated[Path, typer.Argument(metavar="SPARSE", help="A model that sparsify wrote.", show_default=False)],
    output: Output,
    sidecar: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What was written with it; SPARSE.dense.npz.", show_default=False),
    ] = None,
) -> None:
    """Bring back the weights of a sparse model, exactly, however often it was made sparser."""
    with working() as progress:
        check_written(sparse, output)
        progress("restore")
        result = restore_model(sparse, sidecar=sidecar)
        progress("write")
        result.save(output)
    print(result)
