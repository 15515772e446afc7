"""Gradients by finite differences, and the budget of forward passes that they have."""

from __future__ import annotations

import numpy as np
import pytest
from nets import EPSILONS, FEATURES, NET

from onnxprune import Evaluator
from onnxprune.evaluate import Budget, differences, plan
from onnxprune.evaluate import classifier as forms


def test_partition_keeps_neighbours_together() -> None:
    blocks = differences.partition((3, 8, 8), 12)
    assert (blocks.grid, blocks.members.shape) == ((3, 2, 2), (12, 16))
    assert sorted(blocks.members.ravel()) == list(range(192))
    assert np.array_equal(blocks.of.reshape(3, 8, 8)[1], np.kron([[4, 5], [6, 7]], np.ones((4, 4))))
    uneven = differences.partition((7,), 3)
    assert [sorted(set(row)) for row in uneven.members.tolist()] == [[0, 1, 2], [3, 4], [5, 6]]
    assert differences.partition((7,), 7).whole


@pytest.mark.parametrize("budget", [120, 360, 10**6])
def test_passes_stay_within_the_budget(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    run = forms.Session.run
    monkeypatch.setattr(forms.Session, "run", lambda s, feeds, *a: (counted.append(len(feeds["x"])), run(s, feeds, *a))[1])
    evaluator = Evaluator(EPSILONS, gradient="finite-difference", budget=budget)
    planned = evaluator.plan(NET.onnx(), (NET.x, NET.labels))
    assert not counted
    found = evaluator.evaluate(NET.onnx(), (NET.x, NET.labels))
    assert 2 * planned.samples * planned.directions <= budget
    assert planned.directions == min(FEATURES, budget // 120)
    assert sum(counted) <= found.forward_passes + 20  # those that find out how to read the scores
    assert found.forward_passes <= planned.passes
    assert found.forward_passes == planned.passes - 6 * (2 * planned.directions + 2 * len(EPSILONS))  # six are wrong anyway


def test_blocks_are_weaker_but_better_than_noise() -> None:
    by_budget = {
        b: Evaluator([0.1], gradient="finite-difference", budget=b).evaluate(NET.onnx(), (NET.x, NET.labels))
        for b in (360, 720, 1440)
    }
    shares = [found.robust_accuracy[0.1] for found in by_budget.values()]
    assert by_budget[360].noise_accuracy[0.1] > shares[0] > shares[2]
    assert shares == sorted(shares, reverse=True)


def test_default_budget_depends_on_the_work() -> None:
    x = {"x": np.zeros((500, 3, 32, 32), np.float32)}
    assert plan(Budget(len(next(iter(x.values()))), 0, 1), x, passes=None, macs=10**5).directions == 3072
    assert plan(Budget(len(next(iter(x.values()))), 0, 1), x, passes=None, macs=4 * 10**7).directions == 3 * 9 * 9
    two = {"a": np.zeros((10, 99), np.float32), "b": np.zeros((10, 1), np.float32)}
    assert [b.grid for b in plan(Budget(len(next(iter(two.values()))), 0, 1), two, passes=200, macs=0).blocks.values()] == [
        (9,),
        (1,),
    ]


def test_what_is_said_beforehand() -> None:
    said: list[Budget] = []
    Evaluator([0.1], gradient="finite-difference", budget=480).evaluate(NET.onnx(), (NET.x, NET.labels), announce=said.append)
    assert str(said[0]) == (
        "at most 732 forward passes for 60 samples, 552 of them for gradients by central differences along "
        "4 blocks of neighbours (4 of 12) instead of 12 coordinates"
    )
    assert said[0].warning == (
        "gradients are estimated by finite differences along 4 blocks of neighbours (4 of 12) instead of 12 coordinates: "
        "estimates understate how vulnerable the model is; all coordinates need a budget of 1,440, or 20 samples"
    )
