"""Ridge regression, elimination of channels, and what follows a layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cases_net import Net
from test_linear import finished, layer_of, seen

from onnxprune.channels import analyse
from onnxprune.leastsquares import Solver, System, eliminate, gram, tail_of
from onnxprune.leastsquares.ridge import RowSolver, error, penalty

RNG = np.random.default_rng


# ridge --------------------------------------------------------------------------------------------------------------------
def problem(rows: int, columns: int, sums: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows whose last column is one, targets, and a prior."""
    rng = RNG(seed)
    x = rng.standard_normal((rows, columns)) * rng.uniform(0.1, 10, columns) + rng.standard_normal(columns)
    x[:, -1] = 1
    return x, rng.standard_normal((rows, sums)), rng.standard_normal((columns, sums))


def by_normal_equations(x: np.ndarray, y: np.ndarray, prior: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The same as plain least squares with a row more for each penalty."""
    root = np.sqrt(weight)[:, None]
    whole = np.concatenate([x, np.diag(root[:, 0])])
    return np.linalg.lstsq(whole, np.concatenate([y, root * prior]), rcond=None)[0]


@pytest.mark.parametrize("alpha", [1e-4, 1e-2, 1.0, 100.0])
def test_ridge_is_its_normal_equations(alpha: float) -> None:
    x, y, prior = problem(40, 9)
    a, b = gram(x), gram(x, y)
    found = Solver(a, prior, alpha).solve(b)
    assert np.allclose(found, by_normal_equations(x, y, prior, penalty(a, alpha)), atol=1e-8)
    other = Solver(a, prior, 2 * alpha).solve(b)  # a control
    assert not np.allclose(found, other, atol=1e-6)
    assert error(a, b, float(np.square(y).sum()), found) == pytest.approx(float(np.square(y - x @ found).sum()))


def test_ridge_shrinks_to_the_prior() -> None:
    """Ever nearer to it, all but the bias, which stays free; and what is enough data outweighs any prior."""
    x, y, prior = problem(40, 9)
    a, b = gram(x), gram(x, y)
    gaps = [np.abs(Solver(a, prior, alpha).solve(b) - prior)[:-1].max() for alpha in 10.0 ** np.arange(-3, 7)]
    assert (np.diff(gaps) < 0).all()
    assert gaps[-1] < 1e-5
    last = Solver(a, prior, 1e6).solve(b)[-1]
    assert np.allclose(last, (y - x[:, :-1] @ prior[:-1]).mean(axis=0), atol=1e-3)
    assert np.allclose(Solver(a, prior, 0).solve(b), np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-5)


def test_no_scale_matters() -> None:
    x, y, prior = problem(40, 9)
    scale = 10.0 ** RNG(1).integers(-2, 3, 9)
    scale[-1] = 1
    one = Solver(gram(x), prior, 0.1).solve(gram(x, y))
    other = Solver(gram(x * scale), prior / scale[:, None], 0.1).solve(gram(x * scale, y))
    assert np.allclose(one, other * scale[:, None], rtol=1e-4, atol=1e-6)


def test_columns_that_are_dead_or_alike_are_solved() -> None:
    """A column of zeros keeps its prior; of two that are the same, the sum is what one alone would have."""
    x, y, prior = problem(60, 9)
    x[:, 2], x[:, 4], prior[4] = 0, x[:, 3], prior[3]
    found = Solver(gram(x), prior, 1e-4).solve(gram(x, y))
    assert np.isfinite(found).all()
    assert np.allclose(found[2], prior[2])
    assert np.allclose(found[3], found[4], atol=1e-6)
    assert np.square(y - x @ found).sum() < 1.01 * np.square(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).sum()


@pytest.mark.parametrize("alpha", [1e-3, 1e-1])
def test_solutions_from_rows_are_those_from_columns(alpha: float) -> None:
    x, y, prior = problem(20, 60)
    x, y = x.astype(np.float32), y.astype(np.float32)
    columns = Solver(gram(x), prior, alpha).solve(gram(x, y))
    rows = RowSolver(x, prior, alpha).solve(y)
    assert np.allclose(rows, columns, atol=2e-2 * np.abs(columns).max())
    assert np.abs(rows - RowSolver(x, prior, 10 * alpha).solve(y)).max() > 1e-2 * np.abs(columns).max()  # a control
    assert np.square(y - x @ rows).sum() < 0.05 * np.square(y - x @ prior).sum()


# elimination --------------------------------------------------------------------------------------------------------------
def least(system: System, alpha: float, left: np.ndarray) -> float:
    """The least penalised error of a system if only some channels are left, by solving for these."""
    stay = np.setdiff1d(np.arange(len(system.a)), np.delete(system.places, left, axis=0))
    weight, z = np.diag(penalty(system.a, alpha)), system.z
    b = system.a @ z
    found = np.zeros_like(z)
    found[stay] = np.linalg.solve((system.a + weight)[np.ix_(stay, stay)], b[stay])
    return float(error(system.a, b, float(np.vdot(z, b)), found) + np.vdot(found, weight @ found)) / system.unit


def some_system(channels: int, each: int, seed: int) -> System:
    x, _, z = problem(50, channels * each + 1, seed=seed)
    places = RNG(seed).permutation(channels * each).reshape(channels, each)
    z[-1] = 0
    return System(gram(x) / 50, z, places, RNG(seed).uniform(0.5, 2))


SYSTEMS = {
    "columns": [some_system(7, 1, 0)],
    "taps": [some_system(6, 3, 1)],
    "two layers": [some_system(7, 1, 2), some_system(7, 1, 3)],
    "of all kinds": [some_system(6, 1, 4), some_system(6, 2, 5), some_system(6, 4, 6)],
}


@pytest.mark.parametrize("alpha", [1e-3, 1e-1])
@pytest.mark.parametrize("name", SYSTEMS)
def test_elimination_is_greedy_and_its_errors_are_exact(name: str, alpha: float) -> None:
    """Each step takes the channel whose loss costs least once all others have been fitted again."""
    systems = SYSTEMS[name]
    gone = eliminate(systems, alpha)
    left = np.arange(len(systems[0].places))
    start = sum(least(system, alpha, left) for system in systems)
    assert gone.curve[0] == 0
    for channel, reached in zip(gone.order, gone.curve[1:], strict=True):
        costs = {int(c): sum(least(s, alpha, left[left != c]) for s in systems) - start for c in left}
        assert channel == min(costs, key=costs.__getitem__)
        assert reached == pytest.approx(costs[int(channel)], rel=1e-6)
        left = left[left != channel]
    plain = np.argsort([sum(np.square(s.z[s.places[c]]).sum() for s in systems) for c in range(len(gone.order))])
    assert gone.order.tolist() != plain.tolist()  # a control: it is no ranking of weights


def test_dead_channels_go_first_and_of_twins_only_one_is_free() -> None:
    x, _, z = problem(60, 12)
    x[:, 3], x[:, 8] = 0, x[:, 2]
    z[-1] = 0
    gone = eliminate([System(gram(x) / 60, z, np.arange(11)[:, None], 1.0)], 1e-9)
    first = set(gone.order[:2].tolist())
    assert 3 in first
    assert len(first & {2, 8}) == 1
    assert gone.curve[2] < 1e-5 * gone.curve[3]
    assert gone.order[2] not in (2, 8) or gone.curve[3] > 0.01  # the other one is not free


@pytest.mark.parametrize("each", [1, 2])
def test_of_many_channels_twins_do_not_leave_together(each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several leave at a time; what that costs is still what it costs when they leave one by one."""
    x, _, z = problem(200, 48 * each + 1)
    x = np.concatenate([x[:, :-1], x], axis=1)
    z[-1] = 0
    z = np.concatenate([z[:-1], z])
    system = System(gram(x) / 200, z, np.arange(96 * each).reshape(96, each), 1.0)
    slow = eliminate([system, system], 1e-6)
    monkeypatch.setattr("onnxprune.leastsquares.ridge.STEPS", 16)
    fast = eliminate([system, system], 1e-6)
    assert sorted(fast.order.tolist()) == list(range(96))
    assert len({int(c) % 48 for c in fast.order[:48]}) == 48
    assert fast.curve[48] < 5e-2 * fast.curve[49]
    assert fast.curve[-1] == pytest.approx(slow.curve[-1], rel=1e-2)
    assert (np.abs(fast.curve - slow.curve) <= 0.2 * slow.curve + 1e-3 * slow.curve[-1]).all()
    for count in (10, 40, 60, 90):
        exact = 2 * least(system, 1e-6, fast.order[count:]) - 2 * least(system, 1e-6, np.arange(96))
        assert fast.curve[count] == pytest.approx(exact, rel=1e-2, abs=1e-3)


# what follows a layer -----------------------------------------------------------------------------------------------------
def norm(g: Net, x: str, scale: np.ndarray | None = None) -> str:
    return g.BatchNormalization(x, g.w(5) if scale is None else g.store(scale), g.w(5), g.w(5), g.positive(5), epsilon=1e-3)


def stretch(kind: str) -> Callable[[Net], str | list[str]]:
    """A Conv of five channels, and something behind it."""

    def build(g: Net) -> str | list[str]:
        x = g.input(g.randn(2, 5, 4, 4))
        y = g.Conv(x, g.w(5, 5, 3, 3), g.w(5), pads=[1] * 4)
        if kind == "relu6":
            return g.Sigmoid(g.Clip(y, 0.0, 6.0))
        if kind == "hinge":
            return g.Clip(y, None, 1.0)
        if kind == "computed bound":
            return g.Clip(y, g.ReduceMin(x, keepdims=0))
        if kind == "norm":
            return g.Sigmoid(norm(g, y))
        if kind == "dying norm":
            return g.Sigmoid(norm(g, y, np.array([1, 1, 1e-8, 1, 1], np.float32)))
        if kind == "norm, add, relu":
            return g.Relu(g.Add(g.Sigmoid(x), norm(g, y)))
        if kind == "add itself":
            return g.Add(y, y)
        if kind == "add a number":
            return g.Relu(g.Mul(g.Add(y, 3.0), y))
        if kind == "read besides":
            return [g.Relu(y), g.Sigmoid(y)]
        if kind == "clipped twice":
            return [g.Relu(y), g.Relu(y)]
        if kind == "output":
            return [g.Relu(y), y]
        if kind == "add, broadcast":
            return g.Relu(g.Add(y, g.input(g.randn(3, 2, 5, 4, 4))))
        return g.Sigmoid(y)

    return build


TAILS = {  # what it ends with, the operator of what is added, and the bounds
    "plain": ("Conv", "", (-np.inf, np.inf)),
    "relu6": ("Conv", "", (0.0, 6.0)),
    "hinge": ("Conv", "", (-np.inf, 1.0)),
    "computed bound": ("Conv", "", (-np.inf, np.inf)),
    "norm": ("BatchNormalization", "", (-np.inf, np.inf)),
    "dying norm": ("Conv", "", (-np.inf, np.inf)),
    "norm, add, relu": ("Add", "Sigmoid", (0.0, np.inf)),
    "add, broadcast": ("Conv", "", (-np.inf, np.inf)),
    "add itself": ("Conv", "", (-np.inf, np.inf)),
    "add a number": ("Conv", "", (-np.inf, np.inf)),
    "read besides": ("Conv", "", (-np.inf, np.inf)),
    "clipped twice": ("Conv", "", (0.0, np.inf)),
    "output": ("Conv", "", (-np.inf, np.inf)),
}


@pytest.mark.parametrize("kind", TAILS)
def test_what_follows_a_layer(kind: str) -> None:
    """Its parts are those of the graph, and what they say is what onnxruntime computes."""
    graph, feeds = finished(stretch(kind))
    layer = layer_of(graph)
    tail = tail_of(analyse(graph), layer)
    end, other, bounds = TAILS[kind]
    assert graph.producers[tail.end].op == end
    assert (graph.producers[tail.other].op if tail.other else "") == other
    assert (tail.low, tail.high) == bounds
    assert tail.clips == bool(np.isfinite(bounds).any())
    sums, found = seen(graph, feeds, layer.target, tail.end)
    beside = seen(graph, feeds, tail.other)[0] if tail.other else 0
    scale, shift = (v[:, None, None] for v in (tail.scale, tail.shift))
    assert np.allclose(found, scale * sums + shift + beside, atol=1e-5)
    assert np.allclose(found, sums) == (end == "Conv")  # a control
    plain = tail.without_other(layer.target)
    assert (plain.end, plain.other, plain.clips) == (layer.target, "", False)
