"""What happened, for people and for programs."""

from onnxprune.report.record import GroupRow, Report
from onnxprune.report.tape import Step, Tape
from onnxprune.report.text import columns, megabytes

__all__ = ["GroupRow", "Report", "Step", "Tape", "columns", "megabytes"]
