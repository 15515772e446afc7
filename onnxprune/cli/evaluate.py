"""The command that measures a model on data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from onnxprune.cli.shared import Json, Model, app, check_written, working
from onnxprune.evaluate import Budget
from onnxprune.evaluator import Evaluator


@app.command()
def evaluate(
    model: Model,
    data: Annotated[Path, typer.Option("--data", metavar="FILE.npz", help="One array per graph input, and 'labels'.")],
    attack: Annotated[
        str | None, typer.Option(metavar="NAME", help="fgsm or pgd; fgsm if there is an --epsilon.", show_default=False)
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(metavar="E", help="How far the attack may go, in the inputs' units; 0.1.", show_default=False),
    ] = None,
    norm: Annotated[str, typer.Option(metavar="NAME", help="What epsilon bounds: linf, each value; l2, all together.")] = "linf",
    steps: Annotated[int | None, typer.Option(metavar="K", help="Steps of pgd; 10.", show_default=False)] = None,
    step_size: Annotated[
        float | None, typer.Option(metavar="A", help="How far each goes; 2.5 epsilon / steps.", show_default=False)
    ] = None,
    random_start: Annotated[bool, typer.Option("--random-start", help="Let pgd start anywhere in reach.")] = False,
    clip: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Range of attacked inputs; the data's own.", show_default=False),
    ] = None,
    gradient: Annotated[
        str, typer.Option(metavar="NAME", help="graph (exact), finite-difference, or auto: exact where possible.")
    ] = "auto",
    surrogate: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Attack with this model's gradients.", show_default=False)
    ] = None,
    gradient_sparsity: Annotated[
        float, typer.Option(metavar="P", help="Share of Conv weights that the backward pass reads as zeros, the smallest.")
    ] = 0.0,
    bernoulli: Annotated[float, typer.Option(metavar="B", help="Each with this probability, anew for each step.")] = 1.0,
    top_k: Annotated[int, typer.Option(metavar="K", help="Also count labels among the K likeliest classes.")] = 1,
    budget: Annotated[
        int | None,
        typer.Option(metavar="N", help="Forward passes for finite differences; some minutes' worth.", show_default=False),
    ] = None,
    samples: Annotated[int | None, typer.Option(metavar="N", help="Only the first N samples.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="For everything random.")] = 0,
    report: Json = None,
) -> None:
    """Measure accuracy and loss on data, and with an attack how many samples stay right, beside random noise."""

    def announce(plan: Budget) -> None:
        if plan.blocks:
            print(f"onnxprune: {plan}", file=sys.stderr)
            for said in filter(None, (plan.note, plan.warning)):
                print(f"onnxprune: warning: {said}", file=sys.stderr)

    with working() as progress:
        check_written(model, report)
        evaluator = Evaluator(
            epsilon or (0.1,),
            attack="fgsm" if attack is None and epsilon else attack,
            norm=norm,
            steps=steps,
            step_size=step_size,
            random_start=random_start,
            gradient=gradient,
            surrogate=surrogate,
            gradient_sparsity=gradient_sparsity,
            bernoulli=bernoulli,
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
