"""What happened, for people and for programs."""

from onnxprune.report.record import FrozenRow, GroupRow, Report
from onnxprune.report.text import columns, megabytes

__all__ = ["FrozenRow", "GroupRow", "Report", "columns", "megabytes"]
