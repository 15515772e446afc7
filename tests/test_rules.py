"""Every row of the rule table, run: the pruned model equals the masked one, and what must stay does."""

from __future__ import annotations

import zlib
from collections import Counter

import numpy as np
import onnx
import pytest
from cases import CASES, Case, Net, run

from onnxprune.channels import Coupling, analyse
from onnxprune.errors import ModelError
from onnxprune.graph import load
from onnxprune.plan import Plan, allocate, make_plan, removed_by
from onnxprune.rules import table
from onnxprune.surgery import apply, mask

RTOL = 1e-4
PLANS = ((0.3, "uniform"), (0.5, "global"), (0.75, "uniform"), (0.6, "global"))


def assert_same(masked: list[np.ndarray], pruned: list[np.ndarray]) -> None:
    """Outputs agree to ``RTOL`` of the output's scale; neither has a NaN or an infinity."""
    assert len(masked) == len(pruned)
    for want, got in zip(masked, pruned, strict=True):
        assert want.shape == got.shape, f"shape {got.shape} instead of {want.shape}"
        assert want.dtype == got.dtype
        want, got = want.astype(np.float64), got.astype(np.float64)
        assert np.isfinite(want).all(), "the masked model's output is not finite"
        assert np.isfinite(got).all(), "the pruned model's output is not finite"
        gap = np.abs(want - got).max() / max(np.abs(want).max(), 1e-3)
        assert gap <= RTOL, f"pruned differs from masked by {gap:.1e} of the output's scale"


def outputs(model: onnx.ModelProto, net: Net) -> list[np.ndarray]:
    """What a model of this net gives; that it does not run at all is a failed assertion."""
    try:
        return run(model, net.feeds, reference=net.reference)
    except ModelError as error:
        raise AssertionError(str(error)) from error


def numbers(model: onnx.ModelProto) -> int:
    """Stored numbers, sizes and indices aside."""
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type != onnx.TensorProto.INT64)


def random_plans(coupling: Coupling, seed: int) -> list[tuple[np.ndarray, Plan]]:
    """Random choices over all groups: several ratios, both scopes."""
    rng = np.random.default_rng(seed)
    removals = [allocate(coupling, [rng.random(g.size) for g in coupling.groups], ratio=r, scope=s) for r, s in PLANS]
    return [(removed, make_plan(coupling, removed)) for removed in removals]


def check_all(net: Net, seed: int) -> Coupling:
    """Prune a net at random, several times, and compare with the masked original."""
    original = net.model()
    before = outputs(original, net)
    coupling = analyse(load(original))
    changed = False
    for removed, plan in random_plans(coupling, seed):
        pruned, masked = apply(coupling, removed), mask(coupling.graph, plan)
        onnx.checker.check_model(pruned)
        expected = outputs(masked, net)
        assert_same(expected, outputs(pruned, net))
        assert make_plan(coupling, removed_by(coupling, plan)) == plan
        if plan.sites:
            assert numbers(pruned) < numbers(original)
            changed |= any(not np.array_equal(a, b) for a, b in zip(before, expected, strict=True))
    assert changed or not coupling.groups, "masking changed nothing: the case shows nothing"
    return coupling


def check(case: Case) -> None:
    """What the row says, and that the pruned models are right."""
    coupling = check_all(case.net(), zlib.crc32(case.name.encode()))
    if case.expect == "cut":
        assert coupling.groups, f"frozen: {coupling.frozen}"
    else:
        assert_frozen(coupling, case.blame)


def assert_frozen(coupling: Coupling, blame: str) -> None:
    """Nothing can be cut, and a reason names the operator."""
    assert not coupling.groups
    assert all(not plan.sites for _, plan in random_plans(coupling, 0))
    assert any(f.node.startswith(f"{blame}_") or blame in f.reason for f in coupling.frozen), coupling.frozen


def params(cases: list[Case]) -> list[object]:
    marks = {c.name: [pytest.mark.xfail(strict=True, reason=c.xfail)] if c.xfail else [] for c in cases}
    return [pytest.param(c, id=c.name, marks=marks[c.name]) for c in cases]


@pytest.mark.parametrize("case", params(CASES))
def test_pruned_equals_masked(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", params([c for c in CASES if c.expect == "cut" and c.end == "auto"]))
def test_sum_over_channels(case: Case) -> None:
    """Behind a sum over all channels, removed ones must have been zero; the rule knows whether they are."""
    coupling = check_all(case.net(end="sum"), zlib.crc32(case.name.encode()))
    if case.zero is True:
        assert coupling.groups, f"frozen: {coupling.frozen}"
    elif case.zero is False:
        assert_frozen(coupling, "ReduceSum")


def test_every_rule_has_a_case() -> None:
    assert {rule.op for rule in table()} == {case.op for case in CASES}


def test_no_case_twice() -> None:
    names = Counter(case.name for case in CASES)
    assert not [name for name, count in names.items() if count > 1]
    models = Counter(case.net().model().SerializeToString(deterministic=True) for case in CASES)
    assert not [count for count in models.values() if count > 1]
