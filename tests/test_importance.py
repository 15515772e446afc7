"""Criteria that choose pairs of units, against their formulas; and what stays taking over from what leaves."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import dense
import graphs
import judge
import numpy as np
import onnx
import pytest
from onnx import helper

import onnxprune
from onnxprune import Plan, Pruner, Sampler
from onnxprune.channels import analyse
from onnxprune.graph import load
from onnxprune.importance import CRITERIA, Impact, Options, Saliency, Scene, Stochastic, Units
from onnxprune.importance.impact import evenness, size
from onnxprune.importance.pairs import greedy, nearest
from onnxprune.importance.saliency import saliency
from onnxprune.importance.spread import RIDGE, Spread, refit
from onnxprune.result import Result

EXPORTED = Path(__file__).parent / "exported"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer synthetic inputs."""
    monkeypatch.setattr("onnxprune.importance.synthetic.SAMPLES", 128)


def scene(model: onnx.ModelProto) -> Scene:
    coupling = analyse(load(model))
    return Scene(coupling, np.zeros(len(coupling.components.root), np.bool_))


def number(found: Scene, tensor: str) -> int:
    """The group whose channels a stored tensor makes."""
    return next(n for n, g in enumerate(found.coupling.groups) if any(m.producer and m.site.tensor == tensor for m in g.members))


def table(stack: list[dense.Layer], k: int = 0) -> np.ndarray:
    """Saliency by its formula, one pair after the other: ``S[i, j]`` where unit j of layer k leaves and i stands in."""
    (w, b), a = stack[k].folded(), stack[k + 1].weight.astype(np.float64)
    found = np.full((len(b), len(b)), np.inf)
    for i in range(len(b)):
        for j in range(len(b)):
            if i != j:
                apart = 0.0 if b[i] == b[j] == 0 else abs(b[i] - b[j]) / abs(b[i] + b[j]) if b[i] + b[j] else np.inf
                found[i, j] = (apart + np.linalg.norm(w[i] - w[j])) * np.linalg.norm(a[:, j])
    return found


def exhausted(costs: np.ndarray, recursive: bool) -> list[tuple[int, int]]:
    """Pairs (leaves, stays), the cheapest of all that are possible each time, by looking at all of them."""
    costs, found = costs.copy(), []
    while np.isfinite(costs).any():
        i, j = np.unravel_index(costs.argmin(), costs.shape)
        found.append((int(j), int(i)))
        costs[j, :] = costs[:, j] = costs[:, i] = np.inf
        if not recursive:
            costs[i, :] = np.inf
    return found


# saliency -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh", ""])
@pytest.mark.parametrize(("form", "norm"), [*((f, False) for f in dense.FORMS), ("gemm_t", True), ("conv", True)])
def test_saliency_is_its_formula(form: str, activation: str, norm: bool) -> None:
    stack = dense.layers(7, 13, 11, 4, seed=1, norm=norm)
    found = scene(dense.network(stack, activation, form))
    for k in (0, 1):
        units = found.units(number(found, f"w{k}"))
        assert units is not None
        weight, bias = stack[k].folded()
        assert np.allclose(units.incoming, weight, atol=1e-4)
        assert np.allclose(units.bias, bias, atol=1e-4)
        assert np.allclose(units.outgoing, stack[k + 1].weight.T)
        assert units.scales == (activation in ("Relu", ""))
        costs = saliency(units)(np.arange(len(bias)))
        apart = ~np.eye(len(bias), dtype=bool)
        assert np.allclose(costs[apart], table(stack, k)[apart], rtol=1e-3)
        assert not np.allclose(costs[apart], table(stack, k).T[apart], rtol=1e-3), (
            "the unit that leaves is the one that is missed"
        )


def test_biases_of_zero_are_equal() -> None:
    stack = dense.layers(6, 12, 4)
    stack[0].bias[:] = 0
    found = scene(dense.network(stack))
    units = found.units(0)
    assert units is not None
    costs = saliency(units)(np.arange(12))
    assert np.isfinite(costs).all()
    assert np.allclose(np.where(np.eye(12), np.inf, costs), table(stack), rtol=1e-3)
    stack[0].bias[:3] = [1, -1, 0.5]
    units = scene(dense.network(stack)).units(0)
    assert units is not None
    costs = saliency(units)(np.arange(12))
    assert not np.isnan(costs).any()
    assert np.isinf(costs[0, 1])
    assert np.isinf(costs[1, 0])
    assert np.isfinite(costs[0, 4])
    onnxprune.prune(dense.network(stack), criterion="saliency", ratio=0.9)


def test_the_best_pair_is_among_those_that_leave() -> None:
    stack = dense.layers(6, 12, 4)
    stack[0].weight[9], stack[0].bias[9] = stack[0].weight[4], stack[0].bias[4]
    stack[1].weight[:, 9] /= 10
    found = scene(dense.network(stack))
    pairs = Saliency().nominate(found, 0, 1)
    assert pairs is not None
    assert (pairs.leaves.tolist(), pairs.stays.tolist()) in (([9], [4]), ([4], [9]))
    i, j = np.unravel_index(table(dense.layers(6, 12, 4)).argmin(), (12, 12))
    pairs = Saliency().nominate(scene(dense.network(dense.layers(6, 12, 4))), 0, 1)
    assert pairs is not None
    assert (pairs.leaves.tolist(), pairs.stays.tolist()) == ([j], [i])


@pytest.mark.parametrize("recursive", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_taken_as_by_looking_at_all(seed: int, recursive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = dense.layers(5, 21, 4, seed=seed)
    found = scene(dense.network(stack))
    wanted = exhausted(table(stack), recursive)
    pairs = Saliency(Options(recursive=recursive)).nominate(found, 0, 20)
    assert pairs is not None
    assert list(zip(pairs.leaves.tolist(), pairs.stays.tolist(), strict=True)) == wanted
    assert wanted != exhausted(table(stack), not recursive)
    units = found.units(0)
    assert units is not None
    every = np.ones(21, np.bool_)
    whole = nearest(saliency(units), every)
    monkeypatch.setattr("onnxprune.importance.pairs.BLOCK", 4)
    for one, two in zip(nearest(saliency(units), every), whole, strict=True):
        assert np.allclose(one, two, rtol=1e-4)
    assert [(j, i) for j, i, _ in greedy(saliency(units), every, recursive=recursive)] == wanted


def test_units_that_are_used_once_run_out_at_half() -> None:
    model = dense.network(dense.layers(5, 20, 4))
    found = scene(model)
    pairs = Saliency(Options(recursive=False)).nominate(found, 0, 18)
    assert pairs is not None
    assert len(pairs.leaves) == 10
    assert sorted([*pairs.leaves.tolist(), *pairs.stays.tolist()]) == list(range(20))
    result = Pruner(model, sampler=Sampler("saliency", ratio=0.9, recursive=False)).prune()
    assert [g["kept"] for g in result.report.to_dict()["groups"]] == [10]
    result = Pruner(model, sampler=Sampler("saliency", ratio=0.9)).prune()
    assert [g["kept"] for g in result.report.to_dict()["groups"]] == [2]


@pytest.mark.parametrize("seed", range(3))
def test_only_units_that_are_free_take_part(seed: int) -> None:
    stack = dense.layers(5, 15, 4, seed=seed)
    units = scene(dense.network(stack)).units(0)
    assert units is not None
    free = np.arange(15) % 3 > 0
    costs = table(stack)
    costs[~free] = costs[:, ~free] = np.inf
    assert [(j, i) for j, i, _ in greedy(saliency(units), free, recursive=True)] == exhausted(costs, True)


# impact ---------------------------------------------------------------------------------------------------------------


def test_size_and_evenness_by_hand() -> None:
    low, high = np.array([[0.0, -1.0], [0.0, 0.0], [2.0, 2.0]]), np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 3.0]])
    assert size((low, high)).tolist() == [4.0, 1.0, 2.0]
    assert np.allclose(evenness((low, high)), [np.log(2), np.log(2), 0.0])
    two_alike = np.array([[0.0, 0.0, 4.0]]), np.array([[1.0, 1.1, 5.0]])
    assert np.allclose(evenness(two_alike), -(2 * (2 / 3) * np.log(2 / 3) + (1 / 3) * np.log(1 / 3)))
    assert evenness((np.zeros((1, 3)), np.zeros((1, 3)))).tolist() == [0.0]
    hundredfold = size((100 * low, 100 * high))
    assert hundredfold.tolist() == [400.0, 100.0, 200.0], "no sigmoid that saturates"


class Told:
    """A scene that knows the effects."""

    def __init__(self, low: list[list[float]], high: list[list[float]]) -> None:
        self.told = np.array(low), np.array(high)

    def effect(self, *arguments: object) -> tuple[np.ndarray, np.ndarray]:
        return self.told


def test_the_score_weighs_size_and_evenness() -> None:
    known: Any = Told([[0, 0], [0, 0], [0, 0]], [[4, 4], [0, 2], [1, 1]])
    pool, errors = np.arange(3), np.ones(3)
    for params in ((0.75, 0.25), (1.0, 0.0), (0.0, 1.0)):
        found = Impact(Options(params=params)).scores(known, 0, pool, errors)
        assert np.allclose(found, params[0] * np.array([8, 2, 2]) / 8 + params[1] * np.array([0, 1, 0]))
    nowhere: Any = Told([[np.nan]] * 3, [[1.0]] * 3)
    assert Impact().scores(nowhere, 0, pool, errors).tolist() == [0, 1, 2], "as they are"


def test_what_the_others_can_t_take_over_is_known() -> None:
    """The closed form against regressions of each unit on those that are left."""
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((400, 5)) @ rng.standard_normal((5, 9)) + 0.3 * rng.standard_normal((400, 9))).astype(
        np.float32
    )
    outgoing = rng.standard_normal((9, 4)).astype(np.float32)
    order, errors = Spread.of(values).order(outgoing, 5)
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    ridge = RIDGE * np.square(centred).sum() / 400 / 9
    covariance = centred.T @ centred / 400 + ridge * np.eye(9)
    left = list(range(9))
    for unit, error in zip(order, errors, strict=True):
        others = [u for u in left if u != unit]
        solved = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, unit])
        assert np.isclose(error, covariance[unit, unit] - covariance[unit, others] @ solved, rtol=1e-3)
        left = others
    alone = np.square(outgoing).sum(axis=1) / np.diag(np.linalg.inv(covariance))
    assert order[0] == alone.argmin()


def test_refitted_units_make_up_for_what_left() -> None:
    rng = np.random.default_rng(0)
    seen = rng.standard_normal((300, 4)) + 2
    wanted = np.concatenate([seen, seen @ rng.standard_normal((4, 3)) + 5], axis=1)
    stays = np.arange(4)
    columns, shares, rest = refit(seen, wanted, stays, np.zeros((4, 3)))
    assert columns.tolist() == [4, 5, 6], "what is as it was needs no change"
    scale = wanted[:, 4:].std()
    assert np.abs(seen @ shares + rest[4:] - wanted[:, 4:]).max() < 0.1 * scale
    exact = np.linalg.lstsq(np.column_stack([seen, np.ones(300)]), wanted[:, 4:], rcond=None)[0]
    assert not np.allclose(shares, exact[:4], atol=1e-3), "the ridge shrinks"
    _, again, constants = refit(seen, wanted, stays, exact[:4])
    assert np.allclose(again, exact[:4], atol=1e-4), "towards the guess"
    assert np.allclose(constants[4:], exact[4], atol=1e-3)
    columns, more, _ = refit(seen / 2, wanted, stays, np.zeros((4, 3)))
    assert columns.tolist() == list(range(7)), "units that have become smaller are made up for as well"
    assert np.allclose(np.diag(more[:, :4]), 1, atol=0.1)


def test_annealing_depends_on_the_seed_alone() -> None:
    model = dense.network(dense.layers(8, 40, 30, 5))
    plans = [onnxprune.prune(model, criterion="stochastic", ratio=0.3, seed=s).plan.to_dict()["sites"] for s in (0, 0, 1, 2)]
    assert plans[0] == plans[1]
    assert plans[1] != plans[2] != plans[3]
    greedy_plan = onnxprune.prune(model, criterion="impact", ratio=0.3).plan.to_dict()["sites"]
    assert greedy_plan != plans[0]


def test_annealing_takes_each_candidate_once() -> None:
    found = scene(dense.network(dense.layers(8, 40, 5)))
    rng = np.random.default_rng(0)
    for seed in range(20):
        scores = rng.random(30) * 10
        taken = Stochastic(Options(seed=seed)).pick(found, 0, scores, 12)
        assert len(set(taken.tolist())) == len(taken) == 12
        assert taken[0] == 0, "the first is always taken"
    falling = np.arange(30)[::-1].astype(np.float64)
    assert Stochastic().pick(found, 0, falling, 12).tolist() == list(range(12)), "what is no worse is always taken"
    steep = np.array([0.0, *np.full(29, 1e6)])
    steep[20] = -1
    assert Stochastic().pick(found, 0, steep, 2).tolist() == [0, 20]


# merging --------------------------------------------------------------------------------------------------------------


class Leaves:
    """A criterion by which certain channels leave."""

    def __init__(self, *channels: int) -> None:
        self.channels = list(channels)

    def __call__(self, group: Any, weights: Any, data: Any) -> np.ndarray:
        scores = np.ones(group.size)
        scores[self.channels] = 0
        return scores


def twins(form: str, activation: str, factor: float) -> onnx.ModelProto:
    """A network of twenty units of which 5 is so many times unit 2, and 11 so many times unit 8."""
    stack = dense.layers(6, 20, 5, seed=2)
    for one, other in ((2, 5), (8, 11)):
        stack[0].weight[other], stack[0].bias[other] = factor * stack[0].weight[one], factor * stack[0].bias[one]
    return places(stack, activation) if form == "flatten" else dense.network(stack, activation, form)


def places(stack: list[dense.Layer], activation: str) -> onnx.ModelProto:
    """The same at nine places of an image, all of which a dense layer reads."""
    units = len(stack[0].weight)
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["s0"], "Conv_0"),
        helper.make_node(activation, ["s0"], ["h0"], "Bend"),
        helper.make_node("Flatten", ["h0"], ["f0"], "Flatten"),
        helper.make_node("Gemm", ["f0", "w1", "b1"], ["y"], "Gemm_1", transB=1),
    ]
    head = rng.standard_normal((5, 9 * units)) / 9
    stored = {"w0": stack[0].weight[:, :, None, None], "b0": stack[0].bias, "w1": head, "b1": stack[1].bias}
    return dense.model(nodes, stored, ["batch", stack[0].weight.shape[1], 3, 3], ["batch", 5])


def moved(model: onnx.ModelProto, result: Result) -> float:
    """How far the outputs have moved on inputs in the interval."""
    inputs = {name: np.random.default_rng(0).random(v.shape, np.float32) for name, v in judge.feeds(model, batch=50).items()}
    return judge.distance(judge.run(model, inputs), judge.run(result.model, inputs))


def exactness(result: Result) -> list[bool]:
    return [g["exact"] for g in result.report.to_dict()["groups"]]


@pytest.mark.parametrize("form", [*dense.FORMS, "flatten"])
@pytest.mark.parametrize(("activation", "factor"), [("Relu", 1.0), ("Relu", 2.5), ("Relu", 0.3), ("Sigmoid", 1.0), ("Tanh", 1.0)])
def test_merged_twins_are_not_missed(form: str, activation: str, factor: float) -> None:
    model = twins(form, activation, factor)
    result = onnxprune.prune(model, criterion=Leaves(5, 11), ratio=0.1, compensate="merge")
    assert judge.parameters(result.model) < judge.parameters(model)
    assert moved(model, result) < 1e-5
    assert exactness(result) == [False]
    plain = onnxprune.prune(model, criterion=Leaves(5, 11), ratio=0.1, compensate="none")
    assert moved(model, plain) > 1e-2
    assert exactness(plain) == [True]
    judge.assert_equal(model, plain.model, plain.plan.to_dict())


def test_the_scale_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without ReLU's scale a scaled twin is missed."""
    model = twins("gemm", "Relu", 2.5)
    monkeypatch.setattr("onnxprune.compensate.factors", lambda units, pairs: np.ones(len(pairs.leaves)))
    assert moved(model, onnxprune.prune(model, criterion=Leaves(5, 11), ratio=0.1, compensate="merge")) > 1e-2


@pytest.mark.parametrize(("activation", "scales"), [("Relu", [2.5, 2.5]), ("Sigmoid", [1.0, 1.0]), ("Tanh", [1.0, 1.0])])
def test_only_what_scales_is_scaled(activation: str, scales: list[float]) -> None:
    plan = onnxprune.prune(twins("gemm", activation, 2.5), criterion=Leaves(5, 11), ratio=0.1, compensate="merge").plan
    (edit,) = plan.to_dict()["edits"]
    assert edit["tensor"] == "w1"
    assert sorted(edit["channels"]) == [5, 11]
    assert np.allclose(edit["scales"], scales)
    if activation == "Relu":
        assert dict(zip(edit["channels"], edit["into"], strict=True)) == {5: 2, 11: 8}


def test_saliency_merges_twins_first() -> None:
    for form in (*dense.FORMS, "flatten"):
        model = twins(form, "Sigmoid", 1.0)
        assert moved(model, onnxprune.prune(model, criterion="saliency", ratio=0.1)) < 1e-5
        assert moved(model, onnxprune.prune(model, criterion="saliency", ratio=0.1, compensate="none")) > 1e-2


@pytest.mark.parametrize("form", ["gemm", "matmul", "conv", "flatten"])
@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_least_squares_keeps_the_outputs_of_twins(form: str, factor: float) -> None:
    model = twins(form, "Relu", factor)
    chosen = onnxprune.prune(model, criterion=Leaves(5, 11), ratio=0.1, compensate="least-squares")
    assert moved(model, chosen) < 1e-3
    assert exactness(chosen) == [False]


def test_impact_lets_twins_leave() -> None:
    """Half of the units are copies of the other half, some of them longer."""
    stack = dense.layers(6, 20, 5, seed=4)
    for k in range(10):
        factor = (1.0, 0.5, 2.0)[k % 3]
        stack[0].weight[10 + k], stack[0].bias[10 + k] = factor * stack[0].weight[k], factor * stack[0].bias[k]
    model = dense.network(stack)
    for criterion in ("impact", "stochastic"):
        result = onnxprune.prune(model, criterion=criterion, ratio=0.1)
        assert moved(model, result) < 1e-3
        assert exactness(result) == [False]
        assert moved(model, onnxprune.prune(model, criterion=criterion, ratio=0.1, compensate="none")) > 1e-2


@pytest.mark.parametrize("criterion", ["impact", "stochastic", "saliency", "l1"])
@pytest.mark.parametrize("compensate", ["merge", "least-squares"])
def test_plans_with_edits_are_replayed(tmp_path: Path, criterion: str, compensate: str) -> None:
    model = graphs.build(["plain", "batch_norm"], "pool", 1) if criterion == "l1" else dense.network(dense.layers(6, 20, 16, 5))
    result = onnxprune.prune(model, criterion=criterion, ratio=0.5, compensate=compensate)
    result.plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == result.plan
    assert again.to_dict() == json.loads((tmp_path / "plan.json").read_text())
    replayed = onnxprune.prune(model, plan=tmp_path / "plan.json")
    assert replayed.model.SerializeToString() == result.model.SerializeToString()
    assert exactness(replayed) == exactness(result)
    assert compensate == "merge" or again.edits


# models ---------------------------------------------------------------------------------------------------------------

MODELS = (
    "mlp.ts", "mlp_classifier.skl", "keras_cnn.tf2onnx", "flatten_linear.ts", "residual.ts", "inverted_residual.dynamo",
    "lstm.ts", "transformer_encoder.dynamo",
)  # fmt: skip


@pytest.mark.parametrize("criterion", ["saliency", "impact", "stochastic"])
@pytest.mark.parametrize("name", MODELS)
def test_exported_models(name: str, criterion: str) -> None:
    model = onnx.load(EXPORTED / f"{name}.onnx")
    result = onnxprune.prune(model, criterion=criterion, ratio=0.5)
    assert result.report.verification is not None
    assert result.report.verification.passed
    assert judge.parameters(result.model) < judge.parameters(model)
    channels = {g["name"]: g["kept"] for g in onnxprune.prune(model, ratio=0.5).report.to_dict()["groups"]}
    assert {g["name"]: g["kept"] for g in result.report.to_dict()["groups"]} == channels
    inputs = judge.feeds(model)
    assert [a.shape for a in judge.run(model, inputs)] == [a.shape for a in judge.run(result.model, inputs)]


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("name", ["keras_cnn.tf2onnx", "mlp.ts"])
def test_without_compensation_it_equals_the_masked_original(name: str, criterion: str) -> None:
    model = onnx.load(EXPORTED / f"{name}.onnx")
    data = judge.feeds(model, batch=8) | {"labels": np.arange(8) % 2}
    result = onnxprune.prune(model, criterion=criterion, ratio=0.5, compensate="none", data=data)
    assert result.plan.edits == ()
    assert all(exactness(result))
    judge.assert_equal(model, result.model, result.plan.to_dict())


def test_where_nothing_is_dense_the_filters_count() -> None:
    model = graphs.build(["depthwise", "residual"], "pool", 0)
    plans = [onnxprune.prune(model, criterion=c, ratio=0.5, compensate="none").plan for c in ("l1", "saliency")]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Softplus", "Sigmoid", "Tanh", "HardSigmoid", "Elu"])
def test_what_scales_is_found_by_trying(activation: str) -> None:
    units = scene(dense.network(dense.layers(4, 8, 3), activation)).units(0)
    assert isinstance(units, Units)
    assert units.scales == (activation in ("Relu", "LeakyRelu"))


def test_smaller_steps_use_what_is_left() -> None:
    """Each step's pairs are of units that are still there."""
    model = dense.network(dense.layers(5, 20, 4))
    result = onnxprune.prune(model, criterion="saliency", ratio=0.6, step=0.2)
    edits = result.plan.to_dict()["edits"]
    gone: set[int] = set()
    for edit in edits:
        assert not gone & {*edit["channels"], *edit["into"]}
        gone |= set(edit["channels"])
    assert len(gone) == 12
    assert all(a < b for a, b in pairwise(sorted(gone)))
