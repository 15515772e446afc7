"""The operator table, as `onnxprune ops` and README print it."""

from onnxprune.gradient import derivative
from onnxprune.rules import table as rules


def table() -> str:
    """A Markdown table of all rules: operator, what cutting means, its axes, its derivative, remarks."""
    rows = ["| operator | cutting is | axes | gradient | remarks |", "|---|---|---|---|---|"]
    for rule in rules():
        signature = "run on labels" if rule.kind.value == "movement" else f"`{rule.signature}`"
        known = derivative(rule.op, rule.domain).value
        rows.append(f"| {rule.name} | {rule.kind.value} | {signature} | {known} | {rule.note} |")
    return "\n".join(rows)
