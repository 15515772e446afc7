"""The command that trains a model further."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from onnxprune.cli.shared import Freeze, Json, Model, app, check_written, working
from onnxprune.finetune import LOSSES, Epoch
from onnxprune.finetune import finetune as finetune_model


@app.command()
def finetune(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The trained model.")],
    data: Annotated[Path, typer.Option("--data", metavar="FILE.npz", help="One array per graph input, and perhaps 'labels'.")],
    original: Annotated[Path | None, typer.Option(metavar="FILE", help="The model to learn from.", show_default=False)] = None,
    loss: Annotated[str, typer.Option(metavar="NAME", help=f"What to learn from: {', '.join(LOSSES)}.")] = "auto",
    temperature: Annotated[float, typer.Option(metavar="T", help="Of distillation.")] = 4.0,
    alpha: Annotated[float, typer.Option(metavar="A", help="Share of distillation where labels are learned too.")] = 0.9,
    epochs: Annotated[int, typer.Option(metavar="N", help="Passes over the data.")] = 30,
    batch: Annotated[int, typer.Option(metavar="N", help="Samples per step.")] = 64,
    optimiser: Annotated[str, typer.Option(metavar="NAME", help="adam or sgd.")] = "adam",
    learning_rate: Annotated[float | None, typer.Option(metavar="R", help="0.001, or 0.01 for sgd.", show_default=False)] = None,
    momentum: Annotated[float, typer.Option(metavar="M", help="Of sgd.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(metavar="D", help="What each step takes from the weights.")] = 1e-4,
    warmup: Annotated[float, typer.Option(metavar="SHARE", help="Of the training, in which the learning rate rises.")] = 0.05,
    schedule: Annotated[str, typer.Option(metavar="NAME", help="How the learning rate goes: cosine or constant.")] = "cosine",
    validation: Annotated[
        str, typer.Option(metavar="SHARE|FILE.npz", help="Of the data, to choose the best epoch by; or other data.")
    ] = "0.1",
    augment: Annotated[
        str, typer.Option(metavar="KINDS", help="Of images: flip, shift, or flip,shift.", show_default=False)
    ] = "",
    freeze: Freeze = None,
    keep_zeros: Annotated[bool, typer.Option(help="Weights that are zero stay zero.")] = True,
    minutes: Annotated[float | None, typer.Option(metavar="M", help="Time for training.", show_default=False)] = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the state there; an interrupted run goes on from it.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="For everything random.")] = 0,
    report: Json = None,
) -> None:
    """Train a model's weights further, on labels or to do as the original does, and write the best of all epochs."""

    def watch(epoch: Epoch) -> None:
        print(f"onnxprune: {epoch}", file=sys.stderr)

    with working() as progress:
        for source in filter(None, (model, original)):
            check_written(source, output, report)
        result = finetune_model(
            model,
            data,
            original=original,
            loss=loss,
            temperature=temperature,
            alpha=alpha,
            epochs=epochs,
            batch=batch,
            optimiser=optimiser,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            warmup=warmup,
            schedule=schedule,
            validation=_share(validation),
            augment=tuple(filter(None, augment.split(","))),
            freeze=tuple(freeze or ()),
            keep_zeros=keep_zeros,
            minutes=minutes,
            state=state,
            seed=seed,
            watch=watch,
            progress=progress,
        )
        result.save(output)
        if report is not None:
            result.report.save(report)
    print(result)


def _share(text: str) -> float | Path:
    """A number, or else a path."""
    try:
        return float(text)
    except ValueError:
        return Path(text)
