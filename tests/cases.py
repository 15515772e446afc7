"""One row per operator and form: the table that :mod:`test_rules` runs."""

from __future__ import annotations

import cases_attention
import cases_control
import cases_elementwise
import cases_fused
import cases_indexing
import cases_linear
import cases_loop
import cases_mixing
import cases_movement
import cases_quantised
import cases_recurrent
import cases_scan
from cases_net import Case, Net, check_model, run

CASES: list[Case] = [
    *cases_elementwise.CASES,
    *cases_linear.CASES,
    *cases_indexing.CASES,
    *cases_movement.CASES,
    *cases_mixing.CASES,
    *cases_attention.CASES,
    *cases_fused.CASES,
    *cases_quantised.CASES,
    *cases_recurrent.CASES,
    *cases_control.CASES,
    *cases_loop.CASES,
    *cases_scan.CASES,
]
BY_NAME = {case.name: case for case in CASES}
BY_OP = {key: [case for case in CASES if case.key == key] for key in sorted({case.key for case in CASES})}

__all__ = ["BY_NAME", "BY_OP", "CASES", "Case", "Net", "check_model", "run"]
