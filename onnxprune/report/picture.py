"""Pictures of progressive pruning: what is left over the share of channels removed. The only module that imports matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.errors import OptionError
from onnxprune.files import check_output, write
from onnxprune.report.tape import Step, epsilons

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "onnxprune",  # identifiers that do not differ from run to run
    "svg.fonttype": "none",  # text stays text
    "font.size": 10,
    "axes.edgecolor": "0.5",
    "lines.markersize": 4,
}
_BLUE, _GREEN, _GREY = "#0072b2", "#009e73", "#555555"  # told apart by all eyes: Okabe and Ito 2008


@dataclass(frozen=True, slots=True)
class _Curve:
    """A quantity after each step, None where it was not measured; ``base`` is what counts as 100 %."""

    label: str
    values: tuple[float | None, ...]
    base: float
    color: object
    line: str

    @property
    def percent(self) -> list[float]:
        """The values in percent of the base, NaN where there is none."""
        return [float("nan") if v is None else 100 * v / self.base for v in self.values]


def check_picture(path: str | Path) -> None:
    """Make sure, before anything long runs, that a picture can be drawn and written there.

    Raises:
        OptionError: the name ends in none of ``FORMATS``, or matplotlib is not installed.
        OutputError: the path can't be written.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise OptionError(f"picture {str(path)!r} must end in {' or '.join(FORMATS)}, which says what kind of file it becomes")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OptionError(
            f"picture {str(path)!r} can't be drawn: matplotlib is not installed; pip install 'onnxprune[pictures]'"
        ) from error
    check_output(path)


def draw(steps: Sequence[Step], path: str | Path, *, title: str = "") -> None:
    """Draw accuracy, parameters, robustness and agreement over the share of channels removed, all in percent.

    Each curve is in percent of what the original has, which the legend tells. The share is that of channels really
    removed, not that asked for. What was not measured has no curve. The same steps give the same file.

    Args:
        steps: at least one, the original first.
        path: a ``.png`` or ``.svg`` file.

    Raises:
        OptionError: there are no steps, or :func:`check_picture` says so.
        OutputError: the path can't be written.

    Source: the curves of figure 2 in PAODING's paper.
    """
    check_picture(path)
    if not steps:
        raise OptionError(f"picture {str(path)!r} can't be drawn: there are no steps")
    _save([100 * s for s in _shares(steps)], _curves(steps), path, title, ("channels removed, %", "percent of the original"))


def draw_shares(
    shares: Sequence[float],
    curves: Mapping[str, Sequence[float | None]],
    path: str | Path,
    *,
    title: str,
    what: str = "channels to remove",
) -> None:
    """Draw some quantities, each a share of something, over the share of channels that was to be removed, all in percent.

    Args:
        shares: from 0 to 1, of ``what``. curves: by name, for each of them, None where it was not measured.
        path: a ``.png`` or ``.svg`` file.

    Raises:
        OptionError, OutputError: as in :func:`check_picture`.
    """
    check_picture(path)
    from matplotlib import colormaps

    colors = {n: colormaps["viridis"](k / max(1, len(curves) - 1)) for k, n in enumerate(curves)}
    lines = [_Curve(name, tuple(values), 1.0, colors[name], "-") for name, values in curves.items()]
    _save([100 * s for s in shares], lines, path, title, (f"{what}, %", "percent"))


def _save(x: list[float], curves: Sequence[_Curve], path: str | Path, title: str, axis_labels: tuple[str, str]) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():  # for this picture only, and whatever the user's own settings are
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(9.0, max(4.5, 1.2 + 0.24 * len(curves))), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        _plot(axes, x, curves)
        axes.set_xlabel(axis_labels[0])
        axes.set_ylabel(axis_labels[1])
        if title:
            axes.set_title(title, loc="left")
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
        kind = Path(path).suffix.lower()[1:]
        data = io.BytesIO()
        figure.savefig(data, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    write(data.getvalue(), path, "picture")


def _plot(axes: Axes, x: list[float], curves: Sequence[_Curve]) -> None:
    for n, curve in enumerate(curves):
        look: dict[str, Any] = {"color": curve.color, "marker": "o", "clip_on": False, "zorder": 3}
        axes.plot(x, curve.percent, curve.line, label=curve.label, gid=f"curve{n}", **look)
    axes.set_xlim(0, max(*x, 1.0))
    axes.set_ylim(0, max(105.0, axes.get_ylim()[1]))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _shares(steps: Sequence[Step]) -> list[float]:
    """The share of channels that has left; PAODING counted its steps instead."""
    whole = steps[0].channels
    return [1 - step.channels / whole if whole else 0.0 for step in steps]


def _curves(steps: Sequence[Step]) -> list[_Curve]:
    """The curves for which there is anything."""
    from matplotlib import colormaps

    whole = steps[0].parameters
    found = [
        _samples("accuracy", [s.accuracy for s in steps], _BLUE, "-"),
        _Curve("agreement with the original", tuple(s.agreement for s in steps), 1.0, _GREEN, "-."),
        _Curve(f"parameters (original {whole:,})", tuple(s.parameters for s in steps), whole or 1, _GREY, "-"),
    ]
    known = epsilons(steps)
    for place, epsilon in enumerate(known):
        color = colormaps["autumn"](0.75 - 0.75 * place / max(1, len(known) - 1))  # the stronger the attack, the redder
        values = [s.robust_accuracy.get(epsilon) for s in steps]
        found.append(_samples(f"robust accuracy, ε = {epsilon}", values, color, "--"))
    return [curve for curve in found if any(v is not None for v in curve.values)]


def _samples(name: str, values: Sequence[float | None], color: object, line: str) -> _Curve:
    """A share of the samples: in percent of the original's or, if that is zero or was not measured, of all samples."""
    first = values[0]
    label = f"{name} (original {100 * first:.1f} %)" if first else f"{name} (of all samples)"
    return _Curve(label, tuple(values), first or 1.0, color, line)
