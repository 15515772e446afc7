"""``compat="paoding-1.0"`` chooses what PAODING-DL 1.0 chose: pairs found by that release, in its own order, as literals.

They were found by its ``Sampler.nominate`` on a Keras model of the same weights, with ``bias_aware=True`` and ``params=(0.75,
0.25)``; (stays, leaves) for each layer of each step. Where it draws, Python's generator was seeded before each layer.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import Sampler
from onnxprune.channels import analyse
from onnxprune.errors import OptionError
from onnxprune.graph import load
from onnxprune.importance import CRITERIA, Nominator, Options, Scene, Units, criterion
from onnxprune.importance.paoding import Dense, candidates, chain, definition, sigmoid, table
from onnxprune.importance.saliency import saliency

COMPAT = "paoding-1.0"
SIZES = (20, 16, 8, 8, 4)
Steps = list[list[list[tuple[int, int]]]]

ONCE: Steps = [
    [[(10, 14), (2, 5)], [(5, 1)], [(3, 0)]],
    [[(6, 13), (7, 4)], [(0, 7)], [(1, 7)]],
    [[(1, 3), (11, 9)], [(4, 3)], [(5, 2)]],
]
AGAIN: Steps = [
    [[(10, 14), (2, 5)], [(5, 1)], [(3, 0)]],
    [[(6, 13), (7, 4)], [(0, 7)], [(3, 5)]],
    [[(6, 2), (7, 3)], [(2, 5)], [(3, 2)]],
]
IMPACT_ONCE: Steps = [
    [[(10, 14), (7, 4)], [(0, 7)], [(3, 5)]],
    [[(1, 3), (11, 9)], [(2, 4)], [(1, 7)]],
    [[(6, 13), (2, 5)], [(6, 3)], [(4, 6)]],
]
IMPACT_AGAIN: Steps = [
    [[(10, 14), (7, 4)], [(0, 7)], [(3, 5)]],
    [[(1, 8), (3, 7)], [(2, 4)], [(1, 7)]],
    [[(6, 13), (11, 10)], [(2, 6)], [(4, 1)]],
]
IMPACT_SIGMOID: Steps = [
    [[(10, 14), (2, 5)], [(0, 7)], [(3, 5)]],
    [[(1, 3), (7, 4)], [(2, 4)], [(0, 2)]],
    [[(6, 13), (11, 9)], [(6, 3)], [(1, 7)]],
]


def layers(seed: int, sizes: tuple[int, ...], bias: float = 0.1) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        ((rng.standard_normal((i, o)) * 1.5 / np.sqrt(i)).astype(np.float32), (bias * rng.standard_normal(o)).astype(np.float32))
        for i, o in pairwise(sizes)
    ]


def model(seed: int, act: str = "Relu", bias: float = 0.1, sizes: tuple[int, ...] = SIZES, form: str = "Gemm") -> onnx.ModelProto:
    """The layers as Gemm, Gemm with ``transB``, or MatMul and Add with an Identity behind."""
    nodes, weights, x = [], [], "x"
    for k, (w, b) in enumerate(layers(seed, sizes, bias)):
        stored = w.T.copy() if form == "transB" else w
        weights += [numpy_helper.from_array(stored, f"w{k}"), numpy_helper.from_array(b, f"b{k}")]
        if form == "MatMul":
            nodes.append(helper.make_node("MatMul", [x, f"w{k}"], [f"m{k}"]))
            nodes.append(helper.make_node("Add", [f"m{k}", f"b{k}"], [f"i{k}"]))
            nodes.append(helper.make_node("Identity", [f"i{k}"], [f"y{k}"]))
        else:
            nodes.append(helper.make_node("Gemm", [x, f"w{k}", f"b{k}"], [f"y{k}"], transB=int(form == "transB")))
        x = f"y{k}"
        if k < len(sizes) - 2:
            nodes.append(helper.make_node(act, [x], [f"a{k}"]))
            x = f"a{k}"
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in (("x", sizes[0]), (x, sizes[-1]))]
    graph = helper.make_graph(nodes, "chain", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chosen(proto: onnx.ModelProto, sampler: Sampler, step: float, steps: int) -> Steps:
    """The pairs (stays, leaves) of each step, read off the edits of the weights that come after each layer."""
    standing, known, found = sampler.start(load(proto), analyse), 0, []
    for k in range(steps):
        standing = sampler.step(standing, step * (k + 1))
        new, known = standing.edits[known:], len(standing.edits)
        assert all(set(e.scales) == {1.0} for e in new)  # handed over as they are
        found.append([list(zip(e.into, e.channels, strict=True)) for e in new])
    return found


@pytest.mark.parametrize("form", ["Gemm", "transB", "MatMul"])
@pytest.mark.parametrize(
    ("name", "recursive", "act", "interval", "expected"),
    [
        ("saliency", False, "Relu", (0, 1), ONCE),
        ("saliency", True, "Relu", (0, 1), AGAIN),
        ("impact", False, "Relu", (0, 1), IMPACT_ONCE),
        ("impact", True, "Relu", (0, 1), IMPACT_AGAIN),
        ("impact", False, "Sigmoid", (-5, 5), IMPACT_SIGMOID),
    ],
)
def test_three_steps(name: str, recursive: bool, act: str, interval: tuple[float, float], expected: Steps, form: str) -> None:
    sampler = Sampler(name, compat=COMPAT, recursive=recursive, interval=interval)
    assert chosen(model(1, act, form=form), sampler, 0.125, 3) == expected


def test_annealing_counts_a_pair_twice() -> None:
    proto = model(5, "Sigmoid", sizes=(20, 16, 12, 8, 4))
    theirs = [[(3, 2), (15, 7), (14, 0), (6, 5)], [(6, 3), (4, 9), (5, 2)], [(6, 2), (6, 2)]]
    found = chosen(proto, Sampler("stochastic", compat=COMPAT, recursive=False, seed=5), 0.25, 1)[0]
    assert found == [list(dict.fromkeys(pairs)) for pairs in theirs]
    assert chosen(proto, Sampler("stochastic", compat=COMPAT, recursive=False, seed=6), 0.25, 1)[0] != found


@pytest.mark.parametrize(
    ("name", "expected"),
    [("saliency", [[(0, 2), (1, 3)], [(0, 2)], [(0, 2)]]), ("impact", [[(1, 3), (6, 7)], [(0, 2)], [(0, 2)]])],
)
def test_without_biases_the_lowest_indices_merge(name: str, expected: list[list[tuple[int, int]]]) -> None:
    assert chosen(model(1, bias=0.0), Sampler(name, compat=COMPAT, recursive=False), 0.125, 1)[0] == expected


def test_the_best_pair_is_passed_over() -> None:
    """Its first choice is the second best of all, which nothing but that keeps from being the best."""
    scene = scene_of(model(1))
    costs = table(*chain(scene)[:2])
    order = [(a, b) for a, b in zip(*np.divmod(np.argsort(costs.T, axis=None), 16), strict=True) if a != b]
    assert next(candidates(costs, np.zeros(16, np.bool_))) == order[1] == ONCE[0][0][0]
    assert order[0][0] not in ONCE[0][0][0] or order[0][1] not in ONCE[0][0][0]
    own = CRITERIA["saliency"](Options(recursive=False))
    assert isinstance(own, Nominator)
    pairs = own.nominate(scene, 0, 1)
    assert pairs is not None
    best = saliency(units_of(scene))(np.arange(16))
    best[np.diag_indices(16)] = np.inf
    assert (pairs.stays[0], pairs.leaves[0]) == np.unravel_index(best.argmin(), best.shape)


def units_of(scene: Scene) -> Units:
    units = scene.units(0)
    assert units is not None
    return units


@pytest.mark.parametrize("name", ["saliency", "impact", "stochastic"])
def test_own_choices_are_others(name: str) -> None:
    own, theirs = (Sampler(name, recursive=False, compat=c).nominate(model(1), 0.25) for c in ("", COMPAT))
    assert own.to_dict()["sites"] != theirs.to_dict()["sites"]


def test_units_run_out_at_half() -> None:
    found = chosen(model(1), Sampler("saliency", compat=COMPAT), 0.75, 1)[0]
    assert [len(pairs) for pairs in found] == [8, 4, 4]


def test_the_chain_is_read_as_it_is() -> None:
    scene = scene_of(model(1, form="MatMul"))
    for dense, (w, b) in zip(chain(scene), layers(1, SIZES), strict=True):
        np.testing.assert_array_equal(dense.weights, w)
        np.testing.assert_array_equal(dense.bias, b)
    assert [dense.relu for dense in chain(scene)] == [True, True, True, False]
    assert not any(dense.relu for dense in chain(scene_of(model(1, "LeakyRelu"))))


def scene_of(proto: onnx.ModelProto) -> Scene:
    coupling = analyse(load(proto))
    return Scene(coupling, np.zeros(len(coupling.components.root), np.bool_))


def test_no_chain_leaves_it_to_l1() -> None:
    proto = model(1)
    proto.graph.node.insert(2, helper.make_node("Add", ["a0", "a0"], ["twice"]))
    proto.graph.node[3].input[0] = "twice"
    scene = scene_of(proto)
    found = criterion("saliency", Options(compat=COMPAT))
    assert isinstance(found, Nominator)
    assert chain(scene) == []
    assert found.nominate(scene, 0, 2) is None
    plans = [Sampler(name, compat=c, compensate="none").nominate(proto, 0.25) for name, c in (("impact", COMPAT), ("l1", ""))]
    assert plans[0].to_dict()["sites"] == plans[1].to_dict()["sites"]


def test_groups_can_be_ranked_together() -> None:
    plan = Sampler("impact", compat=COMPAT, scope="global").nominate(model(1), 0.25)
    assert plan.edits
    assert all(set(e.scales) == {1.0} for e in plan.edits)


def test_what_has_left_is_not_read() -> None:
    """Where nothing was handed over, the weights that read it are still there."""
    whole = scene_of(model(1))
    left = np.zeros(len(whole.coupling.components.root), np.bool_)
    left[whole.group(0).roots[[3, 5]]] = True
    weights = chain(whole.after(whole.coupling, left, left))[1].weights
    assert np.flatnonzero(~weights.any(axis=1)).tolist() == [3, 5]
    assert chain(whole)[1].weights.all()


def test_relu_has_any_upper_end_but_0_below() -> None:
    """Even where the sum is above 0, or below it, for all inputs."""
    nobody = np.zeros(0, np.int64)
    first = Dense(np.ones((1, 1), np.float32), np.zeros(1, np.float32), nobody, relu=True)
    sums = Dense(np.array([[1, -1]], np.float32), np.array([2, -2], np.float32), nobody, relu=True)
    low, high = definition([first, sums], (-1, 1))
    assert (low.tolist(), high.tolist()) == ([0, 0], [3, -1])


def test_sigmoid_ends() -> None:
    np.testing.assert_array_equal(sigmoid(np.array([-1e4, 0, 40])), [0, 0.5, 1])


def test_other_criteria_have_no_counterpart() -> None:
    with pytest.raises(OptionError) as caught:
        Sampler("l1", compat=COMPAT)
    assert str(caught.value) == (
        "criterion 'l1' does not exist in paoding-1.0; choose saliency, impact, stochastic, or no compat"
    )
