"""The command that cuts a model in many ways and measures each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxprune.cli.shared import Clusters, Freeze, Mixing, Model, app, check_written, clusters_of, working
from onnxprune.compensate import MODES as COMPENSATIONS
from onnxprune.files import write_json
from onnxprune.importance import CRITERIA
from onnxprune.sweep import sweep as sweep_model


@app.command()
def sweep(
    model: Model,
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE.npz", help="One array per graph input, and 'labels'.", show_default=False)
    ],
    mode: Annotated[
        str,
        typer.Option(
            metavar="MODE", help="layerwise: each group alone; full: all together; clusters: how many suit each group best."
        ),
    ] = "layerwise",
    criterion: Annotated[
        str, typer.Option(metavar="NAME", help=f"What makes a channel important: {', '.join(CRITERIA)}.")
    ] = "l1",
    ratios: Annotated[
        str,
        typer.Option(
            metavar="R,R,...", help="Fractions to remove; 0 to 0.9, to 0.95 in full, 0.1 for clusters.", show_default=False
        ),
    ] = "",
    clusters: Clusters = None,
    compensate: Annotated[
        str, typer.Option(metavar="MODE", help=f"What stays takes over from what leaves: {', '.join(COMPENSATIONS)}.")
    ] = "auto",
    min_channels: Annotated[int, typer.Option(metavar="K", help="What every group keeps at least.")] = 1,
    freeze: Freeze = None,
    mixing: Mixing = False,
    samples: Annotated[int | None, typer.Option(metavar="N", help="Only the first N samples.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="For everything random.")] = 0,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.json|csv", help="Write all rows there.", show_default=False)
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg|png", help="Draw accuracy over ratio.", show_default=False)
    ] = None,
    save_ratios: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Layerwise: what prune --ratios takes.", show_default=False)
    ] = None,
    save_clusters: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Clusters: what --clusters takes.", show_default=False)
    ] = None,
) -> None:
    """Cut each layer alone, or all, by more and more, and measure what is left of accuracy, loss, MACs and parameters."""
    for path, name, needed in ((save_ratios, "--save-ratios", "layerwise"), (save_clusters, "--save-clusters", "clusters")):
        if path is not None and mode != needed:
            raise typer.BadParameter(f"there is something to save only in mode {needed}", param_hint=name)
    try:
        shares = [float(text) for text in ratios.split(",") if text.strip()]
    except ValueError as error:
        raise typer.BadParameter(f"{ratios!r} are not numbers with commas between them", param_hint="--ratios") from error
    with working() as progress:
        check_written(model, report, save_ratios, save_clusters, picture=picture)
        result = sweep_model(
            model,
            data,
            mode=mode,
            criterion=criterion,
            ratios=shares,
            samples=samples,
            clusters=clusters_of(clusters),
            compensate=compensate,
            min_channels=min_channels,
            freeze=tuple(freeze or ()),
            mixing=mixing,
            seed=seed,
            progress=progress,
        )
        if report is not None:
            result.save(report)
        if picture is not None:
            result.draw(picture, title=model.name)
        if save_ratios is not None:
            write_json(result.ratios, save_ratios, "ratios")
        if save_clusters is not None:
            write_json(result.clusters, save_clusters, "clusters")
    print(result)
