"""The operator table, as `onnxprune ops` and README print it."""

from onnxprune.rules import table as rules


def table() -> str:
    """A Markdown table of all rules: operator, what cutting means, its axes, remarks."""
    rows = ["| operator | cutting is | axes | remarks |", "|---|---|---|---|"]
    for rule in rules():
        signature = "run on labels" if rule.kind.value == "movement" else f"`{rule.signature}`"
        rows.append(f"| {rule.name} | {rule.kind.value} | {signature} | {rule.note} |")
    return "\n".join(rows)
