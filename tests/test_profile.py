"""Device profiles: staircases, widths worth having, foreseen latencies, and cuts that make a model slower are not made."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

import onnxprune
from onnxprune import DeviceProfile, OptionError, ProfileError, TargetError, UsageError
from onnxprune.allocation import Limits, Rungs
from onnxprune.channels import analyse
from onnxprune.cli import app
from onnxprune.cost import cost
from onnxprune.evaluate import Race, Speed, race
from onnxprune.graph import load
from onnxprune.profile import Pace, pacer
from onnxprune.profile.bench import NUMBERS, measure
from onnxprune.profile.device import SCHEMA, Whole, machine
from onnxprune.profile.layers import Kind, Layer, layers
from onnxprune.profile.pace import _dropping, worth
from onnxprune.profile.staircase import WIDEST, Grid, Staircase
from onnxprune.shapes import infer
from onnxprune.standing import Standing
from onnxprune.surgery import apply
from onnxprune.target import Target

CONV = Kind("Conv", (3, 3), (1, 1), (1, 1))
DENSE = Kind("MatMul")
EACH = np.arange(1, WIDEST + 1)
WIDTHS = (48, 64, 64)


def network() -> onnx.ModelProto:
    """Three convolutions on a map of 8 x 8 and a dense layer of ten classes."""
    rng = np.random.default_rng(0)
    nodes, weights, x, inputs = [], {}, "x", 3
    for n, width in enumerate(WIDTHS):
        weights[f"w{n}"] = rng.standard_normal((width, inputs, 3, 3)).astype(np.float32)
        nodes.append(helper.make_node("Conv", [x, f"w{n}"], [f"c{n}"], f"conv{n}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{n}"], [f"r{n}"]))
        x, inputs = f"r{n}", width
    weights["v"] = rng.standard_normal((inputs, 10)).astype(np.float32)
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pool"]))
    nodes.append(helper.make_node("Flatten", ["pool"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "v"], ["y"], "head"))
    return nets.model(nodes, weights, {"x": [TensorProto.FLOAT, 1, 3, 8, 8]}, {"y": TensorProto.FLOAT})


def stairs(step: int, *, slow: float = 1.0, fixed: float = 2.0) -> np.ndarray:
    """Times of a kernel that works in blocks; what is no multiple of 4 takes ``slow`` times as long."""
    return (fixed + np.ceil(EACH / step) * step) * np.where(EACH % 4, slow, 1.0)


def device(
    name: str = "a phone", *, inputs: int = 16, outputs: int = 16, kinds: tuple[Kind, ...] = (CONV, DENSE)
) -> DeviceProfile:
    """A profile of a made-up machine."""
    places = {CONV: (28, 28), DENSE: (1,)}
    found = [
        Staircase(kind, places[kind], numbers, 64 if kind is CONV else 1024, stairs(inputs), stairs(outputs))
        for kind in kinds
        for numbers in NUMBERS
    ]
    return DeviceProfile({"processor": name, "system": "none", "onnxruntime": "0"}, tuple(found))


def kept(result: onnxprune.Result) -> list[int]:
    return [row.kept for row in result.report.groups]


# staircases -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("step", [1, 4, 8, 16, 32])
def test_steps_of_kernels_are_found_in_spite_of_noise(step: int) -> None:
    noise = np.random.default_rng(step).uniform(0.99, 1.01, WIDEST)
    found = Staircase(CONV, (28, 28), "float", 64, stairs(step, fixed=0) * noise, stairs(step, fixed=0) * noise)
    step = max(step, 4)  # where time goes with the width, steps of 4 cost 3 %
    assert found.steps == (step, step)


def test_rungs_say_what_a_width_really_takes() -> None:
    found = Staircase(CONV, (28, 28), "float", 64, stairs(16, slow=1.5), stairs(16))
    assert found.steps == (16, 16)
    up, share = found.rungs(0, 200)
    assert up[[1, 16, 17, 63, 64, 65, 192, 193]].tolist() == [16, 16, 32, 64, 64, 80, 192, 200]
    assert share[[12, 13, 16, 60, 63, 64, 126, 127, 128]].tolist() == [1, 1.5, 1, 1, 1.5, 1, 1.5, 1.5, 1]
    assert (found.rungs(1, 200)[1] == 1).all()


def test_beyond_what_was_measured_no_width_is_faster_than_its_rung() -> None:
    times = stairs(16)
    times[49] *= 0.8
    _, share = Staircase(CONV, (28, 28), "float", 64, times, times).rungs(0, 256)
    assert share[50] == pytest.approx(0.8)
    assert share[65:].min() == 1


def test_grids_lie_between_what_was_measured() -> None:
    layer = Layer(CONV, (8, 8), 64, 64)
    grid = Grid(layer, "float", np.array([16, 32]), np.array([16, 64]), np.array([[1.0, 4], [2, 8]]))
    found = grid.between(np.array([16, 24, 64]), np.array([16, 40]))
    assert found.tolist() == [[1, 2.5], [1.5, 3.75], [4, 10]]


def test_the_bench_measures_layers_and_not_what_is_around_them() -> None:
    """Work tells, in float and in integers; a product takes longer the wider it is."""
    for numbers in NUMBERS:
        small, large = measure(CONV, (14, 14), [(16, 16), (64, 64)], numbers, seconds=0.05)
        assert 0 < 3 * small < large
    one, two = measure(DENSE, (32,), [(64, 64), (512, 512)], "float", seconds=0.05)
    assert 0 < 3 * one < two


# widths worth having ----------------------------------------------------------------------------------------------------
def test_widths_are_worth_having_where_time_drops() -> None:
    assert _dropping(stairs(16)[None]).tolist() == [16, 32, 48, 64]
    assert _dropping(np.stack([stairs(16), stairs(8)])).tolist() == [16, 32, 48, 64]
    assert _dropping(np.stack([stairs(8, slow=1.3), np.full(WIDEST, 3.0)])).tolist() == [8, 16, 24, 32, 40, 48, 56, 64]
    assert _dropping(1.0 * EACH[None]).tolist() == EACH.tolist()
    assert _dropping(np.full((1, WIDEST), 3.0)).tolist() == EACH.tolist()  # of no consequence: all the same


def test_a_width_that_is_hardly_faster_is_not_worth_having() -> None:
    times = stairs(16)
    times[55] *= 0.99
    assert 56 not in _dropping(times[None])
    times[55] *= 0.85
    assert 56 in _dropping(times[None])


def test_rungs_round_up() -> None:
    coupling = analyse(load(network()))
    owner = np.full(len(coupling.components.root), -1)
    for number, group in enumerate(coupling.groups):
        owner[group.roots] = number
    rungs = Rungs(owner, tuple(np.arange(16, g.size + 1, 16) for g in coupling.groups))
    group = max(coupling.groups, key=lambda g: g.size)
    limits = Limits(round_to="auto", rungs=rungs)
    assert [limits.keeps(group, n) for n in (1, 16, 17, 64, 99)] == [16, 16, 32, 64, 64]
    assert [Limits(round_to="auto", rungs=rungs.coarser).keeps(group, n) for n in (1, 33)] == [32, 64]
    assert [Limits(round_to="auto", rungs=rungs.only([])).keeps(group, n) for n in (1, 33)] == [64, 64]
    assert Limits(round_to="auto").keeps(group, 17) == 17


def test_pace_adds_up_what_the_profile_says() -> None:
    graph = load(network())
    coupling = analyse(graph)
    profile = device()
    orders = [group.roots for group in coupling.groups]
    pace = Pace(coupling, profile, np.zeros(len(coupling.components.root), np.bool_), orders)
    conv, dense = (profile.staircase(layer, "float") for layer in (Layer(CONV, (8, 8), 1, 1), Layer(DENSE, (1,), 1, 1)))
    gone = [16] * len(orders)
    left = [3, *(w - 16 for w in WIDTHS)]
    total = 64 / 784 * sum(conv.inputs[i - 1] * conv.outputs[o - 1] / conv.outputs[63] for i, o in pairwise(left))
    total += dense.inputs[left[-1] - 1] * dense.outputs[9] / (dense.outputs[63] * 16)
    assert pace.total(gone) == pytest.approx(1e3 * total, rel=1e-3)
    assert pace.total([17] * len(orders)) == pace.total([31] * len(orders)) == pace.total(gone) < pace.total([15] * len(orders))
    whole = Pace(coupling, profile, np.zeros(len(coupling.components.root), np.bool_), orders, whole=Whole(10**7, 0.8))
    assert whole.total([0] * len(orders)) == pytest.approx(10**7, rel=1e-3)
    assert [w.tolist()[-2:] for w in worth([pace], [g.size for g in coupling.groups])] == [
        [g.size - 16, g.size] for g in coupling.groups
    ]


def test_layers_of_a_graph() -> None:
    graph = load(network())
    found = layers(graph, infer(graph))
    assert {(layer.kind, layer.place, layer.inputs, layer.outputs) for layer in found} == {
        (CONV, (8, 8), 3, 48), (CONV, (8, 8), 48, 64), (CONV, (8, 8), 64, 64), (DENSE, (1,), 64, 10),
    }  # fmt: skip
    assert [str(layer.kind) for layer in (found[0], found[-1])] == ["Conv 3x3", "MatMul"]
    assert str(Kind("Conv", (3, 3), (2, 2), (1, 1), 0)) == "depthwise Conv 3x3 stride 2x2"


# the file ---------------------------------------------------------------------------------------------------------------
def test_profiles_are_files(tmp_path: Path) -> None:
    layer = Layer(CONV, (8, 8), 48, 64)
    grid = Grid(layer, "float", np.array([16, 48]), np.array([16, 64]), np.array([[1.5, 4], [2, 8]]))
    profile = DeviceProfile(machine(), device().staircases, (grid,), {"abc": Whole(1500, 0.9)})
    profile.save(tmp_path / "p.json")
    again = DeviceProfile.load(tmp_path / "p.json")
    assert again.to_dict() == profile.to_dict()
    assert again.here
    assert again.grid(layer, "float") is not None
    assert again.models == profile.models
    assert again.to_dict()["schema"] == SCHEMA == "onnxprune.profile/1"
    assert not device().here


FILES: dict[str, tuple[Callable[[dict], object], str]] = {
    "other": (
        lambda _: {"schema": "onnxprune.plan/1"},
        "is no profile: its schema is 'onnxprune.plan/1', not 'onnxprune.profile/1'",
    ),
    "none": (lambda _: [1, 2], "is no profile: it has no schema, not 'onnxprune.profile/1'"),
    "newer": (
        lambda d: d | {"schema": "onnxprune.profile/2"},
        "is no profile: its schema is 'onnxprune.profile/2', not 'onnxprune.profile/1'",
    ),
    "lacks": (lambda d: {k: v for k, v in d.items() if k != "models"}, "is damaged: it lacks 'models'"),
    "short": (
        lambda d: d | {"staircases": [d["staircases"][0] | {"inputs_us": [1.0]}]},
        "is damaged: times are (1,) numbers, not (64,) that are positive",
    ),
    "negative": (
        lambda d: d | {"staircases": [d["staircases"][0] | {"outputs_us": [-1.0] * 64}]},
        "is damaged: times are (64,) numbers, not (64,) that are positive",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_profiles(tmp_path: Path, name: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(FILES[name][0](device().to_dict())))
    with pytest.raises(ProfileError) as caught:
        onnxprune.prune(network(), round_to="auto", profile=path)
    assert str(caught.value) == f"profile {str(path)!r} {FILES[name][1]}; make one with `onnxprune profile`"


def test_a_file_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text("{")
    with pytest.raises(ProfileError, match=r"^profile '.*p.json' can't be read as JSON: .*; make one with `onnxprune profile`$"):
        DeviceProfile.load(path)


# pruning by a profile ---------------------------------------------------------------------------------------------------
FORESEEN = "latencies are those of a phone, onnxruntime 0, and foreseen: no model was timed there"


@pytest.mark.parametrize("step", [8, 16, 32])
def test_widths_are_those_of_the_device(step: int) -> None:
    result = onnxprune.prune(network(), ratio=0.4, round_to="auto", profile=device(inputs=step, outputs=step))
    assert sorted(kept(result)) == sorted(min(w, -(-(w - int(0.4 * w)) // step) * step) for w in WIDTHS)
    assert result.report.notes == (FORESEEN,)
    assert result.report.speed is None
    assert "speed" not in result.report.to_dict()


def test_scopes_round_too() -> None:
    result = onnxprune.prune(network(), ratio=0.4, scope="global", round_to="auto", profile=device())
    assert all(n % 16 == 0 for n in kept(result))
    assert any(row.kept < row.group.size for row in result.report.groups)
    plain = onnxprune.prune(network(), ratio=0.4, scope="global")
    assert not all(n % 16 == 0 for n in kept(plain))


def test_what_a_profile_lacks_is_said() -> None:
    result = onnxprune.prune(network(), ratio=0.4, round_to="auto", profile=device(kinds=(DENSE,)))
    assert result.report.notes == (
        FORESEEN,
        "its profile lacks Conv 3x3, whose time was taken in proportion to the work",
    )


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_latency_targets_are_met_as_far_as_is_foreseen(share: float) -> None:
    result = onnxprune.prune(network(), target=f"latency={share}", profile=device())
    met = result.report.target
    assert met is not None
    assert met.passed
    assert 0.6 * share < met.share <= share
    assert met.foreseen is None
    assert result.report.notes == (
        FORESEEN,
        "the whole model is not in its profile; its latency is taken to be that of its layers",
    )
    assert all(n % 16 == 0 for n in kept(result))
    free = onnxprune.prune(network(), target=f"latency={share}", profile=device(), round_to=4)
    assert all(n % 4 == 0 for n in kept(free))


def test_macs_are_bought_by_time() -> None:
    result = onnxprune.prune(network(), target="macs=0.5", round_to="auto", profile=device())
    assert result.report.after.macs <= 0.5 * result.report.before.macs
    assert all(n % 16 == 0 for n in kept(result))


@pytest.mark.parametrize("share", [0.9, 0.8, 0.5, 0.4, 0.2])
def test_steps_that_are_too_coarse_are_left(share: float) -> None:
    """Of kernels that work in blocks of 32 there are few models."""
    result = onnxprune.prune(network(), target=f"macs={share}", round_to="auto", profile=device(inputs=32, outputs=32))
    assert 0.7 * share <= result.report.after.macs / result.report.before.macs <= share
    finer = any("multiples of 16 were taken as well" in note for note in result.report.notes)
    assert finer == (share in (0.8, 0.2))
    assert all(n % (16 if finer else 32) == 0 or n in WIDTHS for n in kept(result))


@pytest.mark.parametrize("power", [1.0, 0.3, 0.03])
def test_time_follows_work(monkeypatch: pytest.MonkeyPatch, power: float) -> None:
    """Where time falls as work does, half of it is left of both; where it falls slowly, little work is given up for it."""
    before = onnxprune.inspect(network()).before.macs

    def share(self: object, standing: Standing, original: object) -> Race:
        graph = load(apply(standing.coupling, standing.removed).complete())
        return said(float((cost(graph, infer(graph)).macs / before) ** power))

    monkeypatch.setattr(pacer.Pacer, "time", share)
    profile = on_this_machine(monkeypatch, Clock([0.5] * 9))
    result = onnxprune.prune(network(), target="macs=0.5", round_to="auto", profile=profile)
    assert 0.35 <= result.report.after.macs / before <= 0.5


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("step", [16, 8, 4])
def test_where_no_width_worth_having_will_do_others_are_taken(monkeypatch: pytest.MonkeyPatch, here: bool, step: int) -> None:
    graph = load(network())
    standing = Standing.of(analyse(graph), analyse)
    one = pacer.Pacer(on_this_machine(monkeypatch, Clock([0.5] * 9)) if here else device())
    asked: list[list[int]] = []

    def cut(rungs: Rungs) -> Standing:
        asked.append(rungs.widths[0].tolist())
        assert rungs.finest == (len(asked[-1]) == 8)
        if step not in asked[-1]:
            raise TargetError("too wide")
        return standing

    coarse = Rungs(np.zeros(1, np.int64), (np.array([30]),))
    assert one.fastest(graph, coarse, cut) == (standing, None)
    assert asked == [[30], [16, 30], [8, 16, 24, 30], [4, 8, 12, 16, 20, 24, 28, 30]][: {16: 2, 8: 3, 4: 4}[step]]
    said = f"no model of the widths that are worth having comes near the target; multiples of {step} were taken as well"
    assert said in one.notes


def test_times_in_units() -> None:
    profile = device()
    known = DeviceProfile(profile.machine, profile.staircases, (), {load(network()).sha256: Whole(8_000_000, 0.9)})
    result = onnxprune.prune(network(), target="latency=4ms", profile=known)
    assert result.report.target is not None
    assert (result.report.target.before, result.report.target.passed) == (8_000_000, True)
    assert str(result.report.target).startswith("target latency=4ms met: ")
    assert "of the latency are left (" in str(result.report.target)


TARGETS = {
    "latency=5": "target latency=5 makes no sense; give what is to be left, a share as in latency=0.5 or a time as in "
    "latency=5ms (us, ms or s)",
    "latency=0ms": "target latency=0us makes no sense; give what is to be left, a share as in latency=0.5 or a time as in "
    "latency=5ms (us, ms or s)",
    "latency=5h": "target 'latency=5h' lacks its amount; give what is to be left, a share as in latency=0.5 or a time as in "
    "latency=5ms (us, ms or s)",
    "latency=": "target 'latency=' lacks its amount; give what is to be left, a share as in latency=0.5 or a time as in "
    "latency=5ms (us, ms or s)",
}


@pytest.mark.parametrize("text", TARGETS)
def test_targets_without_sense(text: str) -> None:
    with pytest.raises((OptionError, UsageError)) as caught:
        Target.parse(text)
    assert str(caught.value) == TARGETS[text]


@pytest.mark.parametrize(("text", "amount"), [("latency=5ms", 5e6), ("latency=250us", 2.5e5), ("latency=1s", 1e9)])
def test_targets_in_units(text: str, amount: float) -> None:
    target = Target.parse(text)
    assert (target.amount, target.absolute, str(target)) == (amount, True, text)


def test_a_latency_that_can_t_be_reached() -> None:
    with pytest.raises(TargetError) as caught:
        onnxprune.prune(network(), target="latency=0.001", profile=device())
    said = str(caught.value)
    assert said.startswith("target latency=0.001 can't be met: at least 0.")
    assert " of the latency (" in said
    assert said.endswith("`onnxprune inspect` says what is in the way, --best-effort takes the nearest model")
    target = Target.parse("latency=0.001", best_effort=True)
    nearest = onnxprune.prune(network(), target=target, profile=device()).report.target
    assert nearest is not None
    assert not nearest.passed


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        onnxprune.prune(network(), ratio=0.5, profile=device())
    assert str(caught.value) == "a profile is for --round-to auto and --target latency; give one of them, or no --profile"
    with pytest.raises(UsageError) as caught:
        onnxprune.prune(network(), ratio=0.5, round_to="auto", zero=True)
    assert str(caught.value) == "zeros take as long as other weights; give --zero without --round-to auto and --target latency"
    with pytest.raises(OptionError) as option:
        onnxprune.prune(network(), ratio=0.5, round_to="often")
    assert str(option.value) == (
        "round-to is often; kept channels are rounded up to a multiple of it, at least 1, or with auto to where the model "
        "really gets faster"
    )


# cuts that make the model slower ----------------------------------------------------------------------------------------
class Clock:
    """Says how much longer each cut model takes, in the order in which they are timed; in integers as ``integer`` says."""

    def __init__(self, ratios: list[float], integer: float = 0.5) -> None:
        self.ratios: Iterator[float] = iter(ratios)
        self.integer, self.asked = integer, 0

    def speed(self, model: object, given_up: str) -> Speed:
        self.asked += 1
        ratio = next(self.ratios)
        return Speed(said(ratio), said(self.integer), given_up)


def said(ratio: float) -> Race:
    return Race(1e-3, ratio, 0.99 * ratio, 1.01 * ratio, 20)


def on_this_machine(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> DeviceProfile:
    """The made-up machine, for this one, with a clock that lies."""
    monkeypatch.setattr(pacer._Track, "speed", lambda self, model, given_up: clock.speed(model, given_up))
    return DeviceProfile(machine(), device(inputs=8, outputs=8).staircases)


@pytest.mark.parametrize(
    ("ratios", "given_up"),
    [
        ([0.6], ""),
        ([1.2, 0.9], "fewer widths were chosen from, every other one"),
        ([1.2, 1.1, 0.95], "only the wider half of the groups was cut"),
    ],
)
def test_a_cut_that_slows_the_model_is_not_made(monkeypatch: pytest.MonkeyPatch, ratios: list[float], given_up: str) -> None:
    clock = Clock(ratios)
    result = onnxprune.prune(network(), ratio=0.5, round_to="auto", profile=on_this_machine(monkeypatch, clock))
    speed = result.report.speed
    assert speed is not None
    assert (speed.plain.ratio, speed.given_up, clock.asked) == (ratios[-1], given_up, len(ratios))
    assert result.report.metrics["after"]["latency_ms"] == pytest.approx(ratios[-1])
    assert result.report.to_dict()["speed"]["float"]["ratio"] == ratios[-1]
    assert ("the first cut made the model slower" in str(result.report)) == bool(given_up)
    assert result.report.after.macs < result.report.before.macs


@pytest.mark.parametrize("clock", [Clock([1.2] * 9), Clock([0.6] * 9, integer=1.1)], ids=["float", "int8"])
def test_at_worst_nothing_is_cut(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    result = onnxprune.prune(network(), ratio=0.5, round_to="auto", profile=on_this_machine(monkeypatch, clock))
    assert result.report.after == result.report.before
    assert result.report.notes == ("every cut that was tried makes the model slower, so none was made",)
    assert result.report.speed is None
    assert clock.asked == 3


def test_a_target_is_not_met_by_a_slower_model(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = on_this_machine(monkeypatch, Clock([1.2] * 9))
    with pytest.raises(TargetError) as caught:
        onnxprune.prune(network(), target="parameters=0.5", round_to="auto", profile=profile)
    assert str(caught.value) == (
        "the model that meets the target is slower than the original, and no other cut comes near it; nothing was written; "
        "ask for less, or give --round-to a number to have it nevertheless"
    )
    target = Target.parse("parameters=0.5", best_effort=True)
    profile = on_this_machine(monkeypatch, Clock([1.2] * 9))
    unchanged = onnxprune.prune(network(), target=target, round_to="auto", profile=profile)
    assert unchanged.report.after == unchanged.report.before


def test_races() -> None:
    """A model that does three times as much is slower; one is not slower than itself."""

    class Work:
        def __init__(self, rounds: int) -> None:
            self.rounds = rounds

        def run(self, feeds: object) -> None:
            end = time.thread_time() + 2e-4 * self.rounds
            while time.thread_time() < end:
                pass

    one, three = Work(1), Work(3)
    slow = race(one, three, {}, seconds=1)  # type: ignore[arg-type]
    assert slow.slower
    assert slow.ratio == pytest.approx(3, rel=0.2)
    assert slow.seconds == pytest.approx(2e-4, rel=0.2)
    assert not race(three, one, {}, seconds=1).slower  # type: ignore[arg-type]
    assert race(one, one, {}, seconds=1).ratio == pytest.approx(1, rel=0.05)  # type: ignore[arg-type]
    assert Race(1, 1.03, 0.9, 1.1, 10).slower
    assert not Race(1, 1.01, 0.99, 1.03, 10).slower


# the command line -------------------------------------------------------------------------------------------------------
def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_profile_is_made_and_used(tmp_path: Path) -> None:
    """On this machine, of a network of dense layers, which takes the least time."""
    model, profile, out, report = (tmp_path / name for name in ("m.onnx", "p.json", "o.onnx", "r.json"))
    onnx.save(nets.NET.onnx(batch=1), model)
    made = cli("profile", model, "-o", profile)
    assert made.exit_code == 0, made.output
    assert "MatMul" in made.stdout
    assert DeviceProfile.load(profile).here
    result = cli("prune", model, "-o", out, "--target", "latency=1", "--profile", profile, "--report", report)
    assert result.exit_code == 0, result.output
    assert json.loads(report.read_text())["target"]["unit"] == "ns"
    assert cli("profile", model, "-o", model).exit_code == 1
    assert cli("prune", model, "-o", out, "--round-to", "auto", "--profile", tmp_path / "no.json").exit_code == 1
