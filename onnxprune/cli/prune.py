"""The command that prunes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxprune.cli.shared import Clusters, Data, Freeze, Json, Mixing, Model, app, check_written, clusters_of, working
from onnxprune.compensate import MODES
from onnxprune.family import family
from onnxprune.importance import CRITERIA
from onnxprune.pruner import prune as prune_model
from onnxprune.report import draw


@app.command()
def prune(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="The pruned model.", show_default=False)
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Fraction of the channels to remove, 0 <= ratio < 1; 0.5.", show_default=False)
    ] = None,
    criterion: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"What makes a channel important: {', '.join(CRITERIA)}; l1, for --scope tod wasserstein.",
            show_default=False,
        ),
    ] = "auto",
    scope: Annotated[
        str,
        typer.Option(metavar="SCOPE", help="uniform: from every group; global: all ranked together; tod: as --tod allows."),
    ] = "uniform",
    tod: Annotated[
        float | None,
        typer.Option(metavar="LEVEL", help="How far the rankings may contradict each other, 0 to 1; 0.05.", show_default=False),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="KIND=AMOUNT",
            help="Instead of a ratio: macs=0.5, parameters=300k, bytes=2MB, latency=5ms, accuracy-drop=0.01 or agreement=0.98.",
            show_default=False,
        ),
    ] = None,
    targets: Annotated[
        str,
        typer.Option(
            metavar="A,A,...", help="A model for each: with --target macs and -o 'small-{target}.onnx'.", show_default=False
        ),
    ] = "",
    max_drop: Annotated[
        float | None, typer.Option(metavar="D", help="Accuracy that a target may cost, or agreement.", show_default=False)
    ] = None,
    max_ratio: Annotated[float, typer.Option(metavar="R", help="The share that a group may lose for a target.")] = 0.9,
    best_effort: Annotated[bool, typer.Option("--best-effort", help="If the target can't be met, the nearest model.")] = False,
    analysis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="own|after|GROUP=TENSOR",
            help="Where wasserstein looks at channels: their layers' outputs, what reads them, or a tensor.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Samples of each class that wasserstein compares.")] = 32,
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take saved scores instead of measuring.", show_default=False)
    ] = None,
    save_scores: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the scores as JSON.", show_default=False)] = None,
    ratios: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Ratios of their own for some groups, by pattern.", show_default=False),
    ] = None,
    data: Data = None,
    freeze: Freeze = None,
    mixing: Mixing = False,
    min_channels: Annotated[int, typer.Option(metavar="K", help="What every group keeps at least.")] = 1,
    round_to: Annotated[
        str, typer.Option(metavar="K|auto", help="Round kept channels up to a multiple of K, or to where the model gets faster.")
    ] = "1",
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Device to be fast on, of onnxprune profile; this one.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="For everything random.")] = 0,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="Replay a saved plan.", show_default=False)] = None,
    save_plan: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the plan as JSON.", show_default=False)] = None,
    free: Annotated[
        bool,
        typer.Option("--free", help="First remove what changes nothing: zero, unread, constant and doubled channels."),
    ] = False,
    zero: Annotated[bool, typer.Option("--zero", help="Write zeros instead of cutting; the model keeps its shapes.")] = False,
    compensate: Annotated[
        str,
        typer.Option(metavar="MODE", help=f"What stays takes over from what leaves: {', '.join(MODES)}."),
    ] = "auto",
    rotate: Annotated[
        bool, typer.Option("--rotate/--no-rotate", help="obs: turn channels to principal axes where that changes nothing.")
    ] = True,
    interval: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Of the model's inputs; the data's, or as the weights tell.", show_default=False),
    ] = None,
    compat: Annotated[
        str, typer.Option(metavar="NAME", help="paoding-1.0: choose pairs as that release does.", show_default=False)
    ] = "",
    clusters: Clusters = None,
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
    written = [path.resolve() for path in (output, save_plan, save_scores, report, picture, tape) if path is not None]
    if len(set(written)) < len(written):
        raise typer.BadParameter("everything that is written needs a path of its own", param_hint="-o / --save-plan / --report")
    if picture is not None and step is None and not targets:
        raise typer.BadParameter("there is something to draw only where pruning goes in steps", param_hint="--step / --picture")
    if plan is not None and save_plan is not None:
        raise typer.BadParameter("a plan is either replayed or saved", param_hint="--plan / --save-plan")
    if plan is not None and (scores is not None or save_scores is not None):
        raise typer.BadParameter("a plan is replayed without scores", param_hint="--plan / --scores / --save-scores")
    places = _places(analysis or [])
    common: dict[str, Any] = {
        "criterion": criterion, "data": data, "samples": samples, "max_drop": max_drop, "max_ratio": max_ratio,
        "best_effort": best_effort, "min_channels": min_channels, "round_to": int(round_to) if round_to.isdecimal() else round_to,
        "profile": profile, "freeze": tuple(freeze or ()),
        "mixing": mixing, "free": free, "compensate": compensate, "rotate": rotate, "seed": seed,
    }  # fmt: skip
    if targets:
        alone = {
            "--ratio": ratio, "--scope": None if scope == "uniform" else scope, "--tod": tod, "--scores": scores,
            "--save-scores": save_scores, "--ratios": ratios, "--plan": plan, "--save-plan": save_plan, "--step": step,
            "--tape": tape, "--zero": zero, "--epsilon": epsilon, "--analysis": analysis, "--interval": interval,
            "--compat": compat, "--clusters": clusters, "--min-accuracy": min_accuracy, "--min-robustness": min_robustness,
        }  # fmt: skip
        kind, amounts, paths = _members(targets, target, output, alone)
        with working() as progress:
            check_written(model, *paths, report, picture=picture)
            made = family(model, kind, amounts, **common, progress=progress)
            for path, member in zip(paths, made.members.values(), strict=True):
                if not dry_run:
                    member.save(path)
            if report is not None:
                made.save(report)
            if picture is not None:
                made.draw(picture, title=model.name)
        print(made)
        return
    with working() as progress:
        check_written(model, output, save_plan, save_scores, report, picture=picture)
        result = prune_model(
            model,
            ratio=ratio,
            scope=scope,
            tod=tod,
            target=target,
            scores=scores,
            analysis=places,
            ratios=ratios,
            plan=plan,
            scratch=None if output is None or dry_run else output.absolute().parent,
            zero=zero,
            interval=interval,
            compat=compat,
            clusters=clusters_of(clusters),
            step=step,
            epsilons=tuple(epsilon or ()),
            min_accuracy=min_accuracy,
            min_robustness=min_robustness,
            tape=tape,
            **common,
            progress=progress,
        )
        if output is not None and not dry_run:
            progress("write")
            result.save(output, move=True)
        if save_plan is not None:
            result.plan.save(save_plan)
        if save_scores is not None:
            result.scores().save(save_scores)
        if report is not None:
            result.report.save(report)
        if picture is not None:
            draw(result.report.steps, picture, title=model.name)
    print(result.report)


PLACE = "{target}"
"""What stands for the amount in the name of one of several models."""


def _members(
    targets: str, target: str | None, output: Path | None, alone: Mapping[str, object]
) -> tuple[str, list[str], list[Path]]:
    """What the amounts of several models are of, the amounts, and where the model of each is written.

    Args:
        alone: options of one model, which are not for several.
    """
    wrong = next((name for name, value in alone.items() if value not in (None, False, "")), None)
    if wrong is not None:
        raise typer.BadParameter("it is not for several models at a time", param_hint=f"{wrong} / --targets")
    if target is None or output is None or PLACE not in output.name:
        raise typer.BadParameter(f"give --target KIND and -o 'NAME-{PLACE}.onnx', a model for each", param_hint="--targets")
    amounts = [amount.strip() for amount in targets.split(",")]
    return target, amounts, [output.with_name(output.name.replace(PLACE, amount)) for amount in amounts]


def _places(given: list[str]) -> str | dict[str, str]:
    """Where channels are looked at, everywhere or group by group."""
    alone = [place for place in given if "=" not in place]
    pairs = {group: tensor for group, _, tensor in (place.rpartition("=") for place in given if "=" in place)}
    if len(alone) > 1 or (alone and pairs):
        raise typer.BadParameter("give one place for all groups, or GROUP=TENSOR for each of some", param_hint="--analysis")
    return pairs or (alone[0] if alone else "own")
