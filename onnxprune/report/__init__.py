"""What happened, for people and for programs."""

from onnxprune.report.picture import check_picture, draw, draw_shares
from onnxprune.report.record import GroupRow, Report
from onnxprune.report.tape import Step, Tape
from onnxprune.report.text import changes, columns, megabytes, shorten

__all__ = [
    "GroupRow",
    "Report",
    "Step",
    "Tape",
    "changes",
    "check_picture",
    "columns",
    "draw",
    "draw_shares",
    "megabytes",
    "shorten",
]
