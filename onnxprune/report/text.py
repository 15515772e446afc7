"""Plain text tables."""

from __future__ import annotations

from collections.abc import Sequence


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
