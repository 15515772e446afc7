"""Plain text tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), indent: str = "  ") -> str:
    """Align rows of cells; the first row is the heading. ``right``: columns aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def megabytes(count: int) -> str:
    """Bytes for reading: ``"12.3 kB"``, ``"4.56 MB"``."""
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def shorten(text: str, width: int) -> str:
    """Cut the middle out of a long name."""
    return text if len(text) <= width else f"{text[: width // 2 - 1]}..{text[len(text) - width // 2 + 1 :]}"


def changes(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of what was measured of two models: its name, both values, the difference.

    Args:
        metrics: as :func:`onnxprune.evaluate.measure` gives them; those that there are.
    """
    rows = []
    if "accuracy" in metrics:
        old, new = metrics["accuracy"]
        rows.append(("accuracy", f"{100 * old:.1f} %", f"{100 * new:.1f} %", f"{100 * (new - old):+.1f} pp"))
    if "loss" in metrics:
        old, new = metrics["loss"]
        rows.append(("loss", f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}"))
    if "agreement" in metrics:
        rows.append(("agreement", "", f"{100 * metrics['agreement']:.1f} %", ""))
    if "relative_error" in metrics:
        rows.append(("relative error", "", f"{metrics['relative_error']:.4f}", ""))
    return rows
