"""Recurrent layers lose hidden units, not only what they read."""

from __future__ import annotations

import cases_recurrent
import pytest
from cases import Case
from test_rules import random_plans

from onnxprune.channels import analyse
from onnxprune.graph import load
from onnxprune.surgery import apply

ENDS = [(case, end) for case in cases_recurrent.CASES if case.expect == "cut" for end in ["", *["sum"] * (case.zero is True)]]
"""Rows whose units leave; and those that are zero once removed, in front of a sum over all units."""


def hidden_sizes(nodes: object) -> list[int]:
    return [a.i for n in nodes if n.op_type in cases_recurrent.GATES for a in n.attribute if a.name == "hidden_size"]


@pytest.mark.parametrize(("case", "end"), [pytest.param(c, e, id=f"{c.name}-{e or c.end}") for c, e in ENDS])
def test_units_leave(case: Case, end: str) -> None:
    model = case.net(end).model()
    coupling = analyse(load(model))
    removed, _ = random_plans(coupling, 0)[2]
    before, after = hidden_sizes(model.graph.node), hidden_sizes(apply(coupling, removed).graph.node)
    assert before, "no recurrent layer"
    assert [old > new or old == 1 for old, new in zip(before, after, strict=True)] == [True] * len(before), coupling.frozen
