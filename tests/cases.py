"""One row per operator and form: the table that :mod:`test_rules` runs."""

from __future__ import annotations

import cases_elementwise
from cases_net import Case, Net, run

CASES: list[Case] = [*cases_elementwise.CASES]
BY_NAME = {case.name: case for case in CASES}

__all__ = ["BY_NAME", "CASES", "Case", "Net", "run"]
