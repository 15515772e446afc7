"""Allocation, and plans as data: saved, replayed, refused where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import graphs
import numpy as np
import pytest

import onnxprune
from onnxprune.allocation import allocate
from onnxprune.channels import Coupling, analyse
from onnxprune.graph import load
from onnxprune.plan import Plan, make_plan, removed_by


def coupling(*steps: str) -> Coupling:
    return analyse(load(graphs.build(list(steps) or ["plain", "residual", "plain"], "pool", 5)))


def kept(c: Coupling, **options: object) -> list[int]:
    scores = [np.arange(g.size, dtype=np.float64) + 1 for g in c.groups]
    removed = allocate(c, scores, **options)
    return [int((~removed[g.roots]).sum()) for g in c.groups]


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.99])
def test_uniform_removes_the_floor_of_every_group(ratio: float) -> None:
    c = coupling()
    assert kept(c, ratio=ratio) == [g.size - min(int(np.floor(g.size * ratio + 1e-9)), g.size - 1) for g in c.groups]


def test_the_lowest_scores_leave() -> None:
    c = coupling()
    scores = [np.arange(g.size, dtype=np.float64)[::-1] for g in c.groups]
    removed = allocate(c, scores, ratio=0.5)
    for group in c.groups:
        assert not removed[group.roots[: group.size - group.size // 2]].any()
        assert removed[group.roots[group.size - group.size // 2 :]].all()


def test_global_removes_the_same_number_in_all_and_evens_out_scales() -> None:
    c = coupling()
    total = sum(g.size for g in c.groups)
    same = [np.linspace(1, 2, g.size) for g in c.groups]
    scaled = [s * 10**k for k, s in enumerate(same)]
    one, two = (allocate(c, s, ratio=0.5, scope="global") for s in (same, scaled))
    assert np.array_equal(one, two)
    assert sum(int(one[g.roots].sum()) for g in c.groups) == total // 2


def test_global_spares_a_group_of_important_channels_but_empties_none() -> None:
    c = coupling()
    scores = [np.full(g.size, 1.0) for g in c.groups]
    scores[0] = np.concatenate([np.full(c.groups[0].size - 1, 1e-6), [1.0]])
    removed = allocate(c, scores, ratio=0.2, scope="global")
    assert removed[c.groups[0].roots].sum() > removed[c.groups[1].roots].sum()
    nearly_all = allocate(c, scores, ratio=0.99, scope="global")
    assert all((~nearly_all[g.roots]).sum() >= 1 for g in c.groups)


def test_min_channels_and_round_to() -> None:
    c = coupling()
    assert all(k >= min(3, g.size) for k, g in zip(kept(c, ratio=0.9, min_channels=3), c.groups, strict=True))
    assert all(k % 4 == 0 or k == g.size for k, g in zip(kept(c, ratio=0.6, round_to=4), c.groups, strict=True))
    assert kept(c, ratio=0.6, round_to=4) != kept(c, ratio=0.6)


def test_round_to_counts_what_whole_groups_take_along() -> None:
    c = coupling("plain", "group_norm")
    group = next(g for g in c.groups if g.size == 4)
    sizes = [len(m.positions) // 4 for m in group.members if m.producer]
    stay = kept(c, ratio=0.75, round_to=4)[c.groups.index(group)]
    assert stay * sizes[0] % 4 == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ratio": 1.0}, "ratio is 1.0; it is the fraction of channels to remove, 0 <= ratio < 1"),
        ({"ratio": -0.1}, "ratio is -0.1; it is the fraction of channels to remove, 0 <= ratio < 1"),
        ({"ratio": float("nan")}, "ratio is nan; it is the fraction of channels to remove, 0 <= ratio < 1"),
        ({"ratio": 0.5, "scope": "local"}, "scope is 'local'; choose uniform, global or tod"),
        ({"ratio": 0.5, "min_channels": 0}, "min-channels is 0; every layer keeps at least 1 channel"),
        (
            {"ratio": 0.5, "round_to": 0},
            "round-to is 0; kept channels are rounded up to a multiple of it, at least 1, or with auto to where the model really "
            "gets faster",
        ),
    ],
)
def test_options_out_of_range(options: dict[str, object], text: str) -> None:
    with pytest.raises(onnxprune.OptionError) as caught:
        kept(coupling(), **options)
    assert str(caught.value) == text


def test_a_plan_is_replayed_exactly(tmp_path: Path) -> None:
    model = graphs.build(["plain", "concat", "gate"], "flatten", 2)
    first = onnxprune.prune(model, ratio=0.5, criterion="random", seed=3)
    first.plan.save(tmp_path / "plan.json")
    again = onnxprune.prune(model, plan=tmp_path / "plan.json")
    assert again.model == first.model
    assert again.plan == first.plan


def test_the_way_back_from_a_plan() -> None:
    c = coupling()
    removed = allocate(c, [np.arange(g.size) * 1.0 for g in c.groups], ratio=0.5)
    plan = make_plan(c, removed)
    assert make_plan(c, removed_by(c, plan)) == plan


def test_plans_that_do_not_fit() -> None:
    c = coupling()
    plan = make_plan(c, allocate(c, [np.arange(g.size) * 1.0 for g in c.groups], ratio=0.5))
    first, *others = plan.sites
    wrong = {
        "does not exist in this model": (replace(first, tensor="nothing"), *others),
        "it was made for another model": (replace(first, of=first.of + 1), *others),
        "the kept indices must be": (replace(first, keep=(0, first.of)), *others),
        "cut coupled channels together": tuple(others),
    }
    for text, sites in wrong.items():
        with pytest.raises(onnxprune.PlanError, match=text):
            removed_by(c, Plan(plan.model_sha256, sites))


def test_a_plan_can_not_empty_a_group() -> None:
    c = coupling("split", "plain")
    part = next(g for g in c.groups if any(0 < len(m.positions) < len(c.labels(m.site)) for m in g.members))
    removed = np.zeros(len(c.components.root), np.bool_)
    removed[part.roots] = True
    with pytest.raises(onnxprune.PlanError, match="nothing would be left of group"):
        removed_by(c, make_plan(c, removed))


def test_a_plan_can_not_cut_outputs() -> None:
    c = coupling()
    frozen = next(f for f in c.frozen if "graph output" in f.reason)
    site = next(s for s in c.flow.sites if (s.tensor, s.axis) == (frozen.tensor, frozen.axis))
    of = c.graph.weights.shape(site.tensor)[site.axis]
    with pytest.raises(onnxprune.PlanError, match=r"channel 0 can't be cut: graph output 'out\d' keeps its shape"):
        removed_by(c, Plan("", (onnxprune.plan.PlanSite(site.tensor, site.axis, of, tuple(range(1, of))),)))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("not json", "is not JSON"),
        ('{"schema": "other/1", "sites": []}', "has schema 'other/1'"),
        ('{"schema": "onnxprune.plan/1", "model_sha256": "", "sites": [{"tensor": "a"}]}', "lacks or misspells 'axis'"),
    ],
)
def test_unreadable_plans(tmp_path: Path, content: str, text: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(onnxprune.PlanError, match=text):
        Plan.load(tmp_path / "plan.json")
