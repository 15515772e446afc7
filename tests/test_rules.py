"""Every row of the rule table, run: the pruned model equals the masked one, and what must stay does."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import onnx
import pytest
from cases import BY_NAME, BY_OP, CASES, Case, Net, check_model, run
from onnx import numpy_helper

from onnxprune.allocation import allocate
from onnxprune.channels import Coupling, analyse
from onnxprune.errors import ModelError
from onnxprune.graph import load
from onnxprune.labels import Reason
from onnxprune.plan import Plan, make_plan, removed_by
from onnxprune.rules import Call, Kind, Points, Rule, Signature, registry, table
from onnxprune.rules.notation import Pattern, Token
from onnxprune.surgery import RepairError, apply, mask

RTOL = 1e-4
SIZES = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
PLANS = ((0.3, "uniform"), (0.5, "global"), (0.75, "uniform"), (0.6, "global"))


class Mismatch(AssertionError):
    """The pruned model does not do what the masked one does."""


# the check -----------------------------------------------------------------------------------------------------------------
def assert_same(masked: list[np.ndarray], pruned: list[np.ndarray]) -> None:
    """Outputs agree to ``RTOL`` of the output's scale, and neither has a NaN or an infinity; or they are equal."""
    for want, got in zip(masked, pruned, strict=True):
        if want.shape != got.shape or want.dtype != got.dtype:
            raise Mismatch(f"{got.dtype} {got.shape} instead of {want.dtype} {want.shape}")
        if np.array_equal(want, got, equal_nan=True):
            continue
        want, got = want.astype(np.float64), got.astype(np.float64)
        if not (np.isfinite(want).all() and np.isfinite(got).all()):
            raise Mismatch("an output is not finite")
        gap = np.abs(want - got).max() / max(np.abs(want).max(), 1e-3)
        if not gap <= RTOL:
            raise Mismatch(f"pruned differs from masked by {gap:.1e} of the output's scale")


def outputs(model: onnx.ModelProto, net: Net) -> list[np.ndarray]:
    """What a model of this net gives, for both values of every flag; that it does not run at all is a mismatch."""
    flags = [name for name, values in net.feeds.items() if values.dtype == np.bool_ and values.ndim == 0]
    choices = [dict(zip(flags, map(np.array, values), strict=True)) for values in product((True, False), repeat=len(flags))]
    try:
        return [result for chosen in choices for result in run(model, net.feeds | chosen, reference=net.reference)]
    except ModelError as error:
        raise Mismatch(str(error)) from error


def numbers(model: onnx.ModelProto) -> int:
    """Stored numbers; sizes, indices and flags aside."""
    constants = [a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute]
    tensors = [*model.graph.initializer, *constants]
    return sum(int(np.prod(t.dims)) for t in tensors if t.data_type not in SIZES)


def random_plans(coupling: Coupling, seed: int) -> list[tuple[np.ndarray, Plan]]:
    """Random choices over all groups: several ratios, both scopes."""
    rng = np.random.default_rng(seed)
    removals = [allocate(coupling, [rng.random(g.size) for g in coupling.groups], ratio=r, scope=s) for r, s in PLANS]
    return [(removed, make_plan(coupling, removed)) for removed in removals]


def repairable(model: onnx.ModelProto, seed: int) -> Coupling:
    """What can be cut, once what turns out to be beyond repair is frozen."""
    hold: dict[str, Reason] = {}
    coupling = analyse(load(model))
    for removed, _ in random_plans(coupling, seed):
        try:
            apply(coupling, removed)
        except RepairError as error:
            hold |= {name: Reason(error.node.label, error.why) for name in (*error.node.inputs, *error.node.outputs)}
    return analyse(load(model), hold=hold) if hold else coupling


def check_net(net: Net, seed: int) -> Coupling:
    """Prune a net at random, several times, and compare with the masked original."""
    original = net.model()
    before = outputs(original, net)
    coupling = repairable(original, seed)
    changed = False
    for removed, plan in random_plans(coupling, seed):
        pruned, masked = apply(coupling, removed).complete(), mask(coupling.graph, plan).complete()
        expected = outputs(masked, net)
        assert_same(expected, outputs(pruned, net))
        check_model(pruned)
        assert make_plan(coupling, removed_by(coupling, plan)) == plan
        if plan.sites:
            assert numbers(pruned) < numbers(original)
            changed |= any(not np.array_equal(a, b) for a, b in zip(before, expected, strict=True))
    assert changed or not coupling.groups, "masking changed nothing: the case shows nothing"
    return coupling


def check(case: Case, end: str = "") -> Coupling:
    return check_net(case.net(end), zlib.crc32(case.name.encode()))


def assert_frozen(coupling: Coupling, blame: str) -> None:
    """Nothing can be cut, and a reason names the operator."""
    assert not coupling.groups
    assert all(not plan.sites for _, plan in random_plans(coupling, 0))
    assert any(f.node.startswith(f"{blame}_") or blame in f.reason for f in coupling.frozen), coupling.frozen


# every case ------------------------------------------------------------------------------------------------------------------
def rows(cases: list[Case]) -> list[object]:
    return [pytest.param(c, id=c.name) for c in cases]


@pytest.mark.parametrize("case", rows(CASES))
def test_pruned_equals_masked(case: Case) -> None:
    coupling = check(case)
    if case.expect == "cut":
        assert coupling.groups, f"frozen: {coupling.frozen}"
    else:
        assert_frozen(coupling, case.blame)


@pytest.mark.parametrize("case", rows([c for c in CASES if c.expect == "cut" and c.end == "auto"]))
def test_sum_over_channels(case: Case) -> None:
    """Behind a sum over all channels, removed ones must have been zero; the rule knows whether they are."""
    coupling = check(case, end="sum")
    if case.zero is True:
        assert coupling.groups, f"frozen: {coupling.frozen}"
        assert not any("not zero once removed" in f.reason for f in coupling.frozen), coupling.frozen
    elif case.zero is False:
        assert any(f.node.startswith("ReduceSum_") for f in coupling.frozen), coupling.frozen


@pytest.mark.parametrize("target", [[2, -1], [2, -1, 24]])
def test_batch_that_no_probe_fits(target: list[int]) -> None:
    """The batch is declared open, but a Reshape wants two samples, so that no probe runs."""
    check(Case("Reshape", 13, str(target), lambda g, x: g.Reshape(x, target), dynamic=True))


def test_every_rule_has_a_case() -> None:
    assert sorted(rule.name for rule in table()) == list(BY_OP)


def test_no_case_twice() -> None:
    names = Counter(case.name for case in CASES)
    assert not [name for name, count in names.items() if count > 1]
    models: dict[bytes, list[str]] = {}
    for case in CASES:
        models.setdefault(case.net().model().SerializeToString(deterministic=True), []).append(case.name)
    assert not [names for names in models.values() if len(names) > 1]


# the checks can fail -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["Relu-13", "Concat-13-channels", "Conv-11-2_groups", "Gemm-13-bias_(m,_n)", "MatMul-13-weight_first"]
)
def test_shuffled_consumer_is_noticed(name: str) -> None:
    net = BY_NAME[name].net()
    coupling = analyse(load(net.model()))
    removed, plan = random_plans(coupling, 0)[0]
    pruned = apply(coupling, removed).complete()
    expected = outputs(mask(coupling.graph, plan).complete(), net)
    assert_same(expected, outputs(pruned, net))
    reader = next(node for node in reversed(pruned.graph.node) if node.op_type in ("Conv", "Gemm", "MatMul"))
    weight = next(t for t in pruned.graph.initializer if t.name == reader.input[1])
    values = np.roll(numpy_helper.to_array(weight), 1, axis=0 if reader.op_type == "MatMul" else 1)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(Mismatch):
        assert_same(expected, outputs(pruned, net))


def test_not_a_number_is_noticed() -> None:
    with pytest.raises(Mismatch):
        assert_same([np.zeros(2)], [np.array([0, np.nan])])
    with pytest.raises(Mismatch):
        assert_same([np.array([np.inf, 1])], [np.array([np.inf, 2])])


def noticed(monkeypatch: pytest.MonkeyPatch, wrong: Rule, end: str = "") -> bool:
    """Whether some case of the operator shows that a rule is wrong."""
    monkeypatch.setitem(registry._RULES, (wrong.domain, wrong.op), wrong)
    for case in BY_OP[wrong.name]:
        if not end or (case.expect == "cut" and case.end == "auto"):
            try:
                check(case, end)
            except Mismatch:
                return True
    return False


def altered(rule: Rule, change: Callable[[Signature], Signature], **options: object) -> Rule:
    """The rule with a change in every signature it gives."""

    def build(call: Call) -> Signature | None:
        signature = rule.fit(call)
        return None if signature is None else change(signature)

    return replace(rule, build=build, **options)


def nonzero(rule: Rule) -> bool:
    """Whether a computing operator has cases in which its rule must not take removed channels for zero."""
    return rule.kind is not Kind.MOVEMENT and any(c.zero is False for c in BY_OP.get(rule.name, ()))


def separate(signature: Signature) -> Signature:
    """Forget which axes are worked over as a whole."""

    def bare(token: Token) -> Token:
        return tuple(t.lstrip("!") for t in token) if isinstance(token, tuple) else token.lstrip("!")

    patterns = tuple(Pattern(tuple(map(bare, p.tokens))) for p in signature.operands)
    return replace(signature, operands=patterns)


@pytest.mark.parametrize("rule", [r for r in table() if "!" in r.signature and r.op != "ReduceLogSum"], ids=lambda r: r.name)
def test_forgotten_mixing_is_noticed(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as Softmax over channels taken for elementwise. (ReduceLogSum holds them for a second reason.)"""
    assert noticed(monkeypatch, altered(rule, separate))


@pytest.mark.parametrize("rule", [r for r in table() if nonzero(r)], ids=lambda r: r.name)
def test_wrong_zero_is_noticed(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that takes its removed channels for zero: Sigmoid, say, before a sum over channels."""
    wrong = altered(rule, lambda s: replace(s, zero=True, times=()), zero=True, times=(), plus=())
    assert noticed(monkeypatch, wrong, end="sum")


@pytest.mark.parametrize("rule", [r for r in table() if r.resize and r.kind is not Kind.MOVEMENT], ids=lambda r: r.name)
def test_forgotten_resize_is_noticed(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    assert noticed(monkeypatch, replace(rule, resize=None))


@pytest.mark.parametrize("rule", [r for r in table() if r.points != Points()], ids=lambda r: r.name)
def test_forgotten_zero_point_is_noticed(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that takes 0 for zero where something else stands for it: results differ, or less can be cut than could."""

    def channels(case: Case) -> int:
        return sum(group.size for group in analyse(load(case.net("sum").model())).groups)

    summed = [case for case in BY_OP[rule.name] if case.zero is True and case.end == "auto"]
    right = [channels(case) for case in summed]
    wrong = replace(rule, points=Points())
    assert noticed(monkeypatch, wrong) or noticed(monkeypatch, wrong, end="sum") or [channels(c) for c in summed] != right


def test_forgotten_sum_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of queries and keys that count in the scores although they are removed."""
    rule = registry._RULES["", "Attention"]
    assert noticed(monkeypatch, altered(rule, lambda s: replace(s, sums=dict.fromkeys(s.sums, ((),)))))


@pytest.mark.parametrize("key", [("", "DynamicQuantizeLinear"), ("com.microsoft", "DynamicQuantizeMatMul")])
def test_forgotten_range_is_noticed(key: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale found at run time that removed channels have a part in."""
    assert noticed(monkeypatch, altered(registry._RULES[key], lambda s: replace(s, whole=())))


@pytest.mark.parametrize("op", ["Log", "Reciprocal", "Acosh", "Div", "Mod", "ReduceLogSum"])
def test_forgotten_division_is_noticed(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert noticed(monkeypatch, replace(registry._RULES["", op], divides=()))
