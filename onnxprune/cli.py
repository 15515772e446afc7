"""The command line: parse, call, print. Exit status 0 done, 1 failed and nothing written, 2 usage."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from onnxprune import __version__
from onnxprune.compare import compare as compare_models
from onnxprune.compensate import MODES
from onnxprune.demo import run as run_demo
from onnxprune.errors import OnnxpruneError
from onnxprune.evaluate import Budget
from onnxprune.evaluator import Evaluator
from onnxprune.files import check_output, one_line
from onnxprune.importance import CRITERIA
from onnxprune.operators import table
from onnxprune.pruner import inspect as inspect_model
from onnxprune.pruner import prune as prune_model
from onnxprune.report import check_picture, draw
from onnxprune.runtime import quiet

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


@contextmanager
def _working() -> Iterator[Callable[[str], None]]:
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


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to write.", show_default=False)] = Path("onnxprune-demo"),
) -> None:
    """Prune a small trained network that comes with the package, and show what that saves and costs."""
    with _working() as progress:
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
    with _working() as progress:
        if json is not None:
            check_output(json, model)
        report = inspect_model(model, freeze=tuple(freeze or ()), mixing=mixing, progress=progress)
        if json is not None:
            report.save(json)
    print(report)


@app.command()
def prune(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="The pruned model.", show_default=False)
    ] = None,
    ratio: Annotated[float, typer.Option(help="Fraction of the channels to remove, 0 <= ratio < 1.")] = 0.5,
    criterion: Annotated[
        str, typer.Option(metavar="NAME", help=f"What makes a channel important: {', '.join(CRITERIA)}.")
    ] = "l1",
    scope: Annotated[
        str, typer.Option(metavar="SCOPE", help="uniform: from every group; global: all ranked together.")
    ] = "uniform",
    data: Data = None,
    freeze: Freeze = None,
    mixing: Mixing = False,
    min_channels: Annotated[int, typer.Option(metavar="K", help="What every group keeps at least.")] = 1,
    round_to: Annotated[int, typer.Option(metavar="K", help="Round kept channels up to a multiple of K.")] = 1,
    seed: Annotated[int, typer.Option(metavar="N", help="For everything random.")] = 0,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="Replay a saved plan.", show_default=False)] = None,
    save_plan: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the plan as JSON.", show_default=False)] = None,
    free: Annotated[
        bool,
        typer.Option("--free", help="First remove what changes nothing: zero, unread, constant and doubled channels."),
    ] = False,
    compensate: Annotated[
        str,
        typer.Option(metavar="MODE", help=f"What stays takes over from what leaves: {', '.join(MODES)}."),
    ] = "auto",
    interval: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Of the model's inputs; the data's own, or 0 1.", show_default=False),
    ] = None,
    compat: Annotated[
        str, typer.Option(metavar="NAME", help="paoding-1.0: choose pairs as that release does.", show_default=False)
    ] = "",
    step: Annotated[
        float | None, typer.Option(metavar="S", help="Fraction that leaves at a time, until --ratio.", show_default=False)
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(metavar="E", help="Measure robustness against FGSM of this size.", show_default=False),
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(metavar="A", help="Stop before the accuracy is lower.", show_default=False)
    ] = None,
    min_robustness: Annotated[
        float | None, typer.Option(metavar="A", help="Stop before the robust accuracy is lower.", show_default=False)
    ] = None,
    tape: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save every step there; an interrupted run goes on from it.", show_default=False),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg|png", help="Draw what is left after each step.", show_default=False)
    ] = None,
    report: Json = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write the model.")] = False,
) -> None:
    """Cut channels out of a model, prove that the result equals the masked original, and write it."""
    if output is None and not dry_run:
        raise typer.BadParameter("give the pruned model's path, or --dry-run", param_hint="-o")
    written = [path.resolve() for path in (output, save_plan, report, picture, tape) if path is not None]
    if len(set(written)) < len(written):
        raise typer.BadParameter("everything that is written needs a path of its own", param_hint="-o / --save-plan / --report")
    if picture is not None and step is None:
        raise typer.BadParameter("there is something to draw only where pruning goes in steps", param_hint="--step / --picture")
    if plan is not None and save_plan is not None:
        raise typer.BadParameter("a plan is either replayed or saved", param_hint="--plan / --save-plan")
    with _working() as progress:
        for path in filter(None, (output, save_plan, report)):
            check_output(path, model)
        if picture is not None:
            check_picture(picture)
        result = prune_model(
            model,
            ratio=ratio,
            criterion=criterion,
            scope=scope,
            data=data,
            seed=seed,
            min_channels=min_channels,
            round_to=round_to,
            freeze=tuple(freeze or ()),
            mixing=mixing,
            plan=plan,
            scratch=None if output is None or dry_run else output.absolute().parent,
            free=free,
            compensate=compensate,
            interval=interval,
            compat=compat,
            step=step,
            epsilons=tuple(epsilon or ()),
            min_accuracy=min_accuracy,
            min_robustness=min_robustness,
            tape=tape,
            progress=progress,
        )
        if output is not None and not dry_run:
            progress("write")
            result.save(output, move=True)
        if save_plan is not None:
            result.plan.save(save_plan)
        if report is not None:
            result.report.save(report)
        if picture is not None:
            draw(result.report.steps, picture, title=model.name)
    print(result.report)


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

    with _working() as progress:
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


@app.command()
def compare(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="An ONNX file.", show_default=False)],
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", help="Another one with the same inputs.", show_default=False)],
    data: Data = None,
    report: Json = None,
) -> None:
    """Put two models side by side: size, work, latency in onnxruntime and, with data, agreement and accuracy."""
    with _working() as progress:
        if report is not None:
            check_output(report, original)
        progress("measure")
        result = compare_models(original, pruned, data=data)
        if report is not None:
            result.save(report)
    print(result)


@app.command()
def ops() -> None:
    """Print the operator table: what cutting channels through each operator means."""
    print(table())


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
