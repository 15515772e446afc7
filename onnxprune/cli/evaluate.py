"""The command that measures a model on data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from onnxprune.cli.shared import Json, Model, app, working
from onnxprune.evaluate import Budget
from onnxprune.evaluator import Evaluator
from onnxprune.files import check_output


@app.command()
def evaluate(
    model: Model,
    data: Annotated[Path, typer.Option("--data", metavar="FILE.npz", help="One array per graph input, and 'labels'.")],
    attack: Annotated[
        str | None, typer.Option(metavar="NAME", help="fgsm; also if there is an --epsilon.", show_default=False)
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(metavar="E", help="Largest change of an input value, in its own units; 0.1.", show_default=False),
    ] = None,
    clip: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Range of attacked inputs; the data's own.", show_default=False),
    ] = None,
    gradient: Annotated[str, typer.Option(metavar="NAME", help="finite-difference.")] = "finite-difference",
    top_k: Annotated[int, typer.Option(metavar="K", help="Also count labels among the K likeliest classes.")] = 1,
    budget: Annotated[
        int | None,
        typer.Option(metavar="N", help="Forward passes for gradients; by default some minutes' worth.", show_default=False),
    ] = None,
    samples: Annotated[int | None, typer.Option(metavar="N", help="Only the first N samples.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="For everything random.")] = 0,
    report: Json = None,
) -> None:
    """Measure accuracy and loss on data, and with an attack how many samples stay right, beside random noise."""

    def announce(plan: Budget) -> None:
        if plan.blocks:
            print(f"onnxprune: {plan}", file=sys.stderr)
            print(f"onnxprune: warning: {plan.warning}", file=sys.stderr)

    with working() as progress:
        if report is not None:
            check_output(report, model)
        evaluator = Evaluator(
            epsilon or (0.1,),
            attack="fgsm" if attack is None and epsilon else attack,
            gradient=gradient,
            clip=clip,
            batch_size=samples,
            top_k=top_k,
            budget=budget,
            seed=seed,
        )
        result = evaluator.evaluate(model, data, announce=announce, progress=progress)
        if report is not None:
            result.save(report)
    print(result)
