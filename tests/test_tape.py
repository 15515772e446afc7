"""The tape of progressive pruning: written, read, continued, refused; and the picture of it."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import files
from onnxprune.errors import OptionError, OutputError, TapeError
from onnxprune.report import Step, Tape, check_picture, draw

RUN = {"ratio": 0.5, "step": 0.05, "freeze": ("head", "stem*"), "epsilons": [0.1, 0.3]}
FIRST = Step(0, 0.0, 100, 5000, 80_000, 20_400, accuracy=0.98, loss=0.1, robust_accuracy={"0.3": 0.2, "0.1": 0.75}, seconds=1.5)


def step(number: int, **changes: Any) -> Step:
    left = 100 - 5 * number
    made = Step(number, 0.05 * number, left, 50 * left, 800 * left, 200 * left, {"dense, wide": 3, "conv": 2})
    return replace(made, accuracy=0.98 - 0.01 * number, agreement=0.9, robust_accuracy={"0.1": 0.7}, **changes)


TAPE = Tape(RUN, (FIRST, step(1), step(2, moves={"other": 5})))


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        heading, *body = csv.reader(file)
    assert len(set(heading)) == len(heading)
    assert all(len(row) == len(heading) for row in body)
    return [dict(zip(heading, row, strict=True)) for row in body]


def test_json_brings_back_the_same_tape(tmp_path: Path) -> None:
    TAPE.save_json(tmp_path / "tape.json")
    back = Tape.load(tmp_path / "tape.json")
    assert back.steps == TAPE.steps
    assert back.to_dict() == TAPE.to_dict() == json.loads((tmp_path / "tape.json").read_text())
    assert back.to_dict()["schema"] == "onnxprune.tape/1"
    back.check_run(RUN)
    assert os.listdir(tmp_path) == ["tape.json"]


def misplaced(tape: Tape, path: Path) -> list[str]:
    """The headings of a tape's CSV below which some step has another number than that."""
    tape.save_csv(path)
    wanted = []
    for made in tape.steps:
        plain = {f.name: getattr(made, f.name) for f in fields(Step) if f.name not in ("moves", "robust_accuracy")}
        robust = {f"robust_accuracy@{e}": made.robust_accuracy.get(e) for e in ("0.1", "0.3")}
        moves = {f"moves: {g}": made.moves.get(g, 0) for g in ("dense, wide", "conv", "other")}
        wanted.append({n: "" if v is None else str(v) for n, v in {**plain, **robust, **moves}.items()})
    found = rows(path)
    assert len(found) == len(wanted)
    return sorted(
        {name for one, two in zip(found, wanted, strict=True) for name in {*one, *two} if one.get(name) != two.get(name)}
    )


def test_every_csv_cell_is_below_its_own_heading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert misplaced(TAPE, tmp_path / "tape.csv") == []
    heading = list(rows(tmp_path / "tape.csv")[0])
    assert heading.index("robust_accuracy@0.1") + 1 == heading.index("robust_accuracy@0.3")

    def shuffled(tape: Tape) -> list[list[Any]]:  # PAODING writes the heading in another order than the rows
        heading, *body = table(tape)
        return [[*heading[:3], heading[4], heading[3], *heading[5:]], *body]

    table = Tape._table
    monkeypatch.setattr(Tape, "_table", shuffled)
    assert misplaced(TAPE, tmp_path / "tape.csv") == ["macs", "parameters"]


def test_a_tape_without_data_groups_or_steps(tmp_path: Path) -> None:
    bare = [Step(n, 0.1 * n, 0, 10, 0, 99) for n in range(2)]
    Tape({}, tuple(bare)).save_csv(tmp_path / "tape.csv")
    assert [row["accuracy"] for row in rows(tmp_path / "tape.csv")] == ["", ""]
    assert str(Tape({}, tuple(bare))).splitlines()[0].split() == [
        "step",
        "share",
        "channels",
        "parameters",
        "left",
        "MACs",
        "size",
    ]
    Tape({}).save_csv(tmp_path / "none.csv")
    assert rows(tmp_path / "none.csv") == []
    assert len(str(Tape({})).splitlines()) == 1


def test_the_table_shows_what_was_measured() -> None:
    heading, first, *others = str(TAPE).splitlines()
    assert heading.endswith("accuracy    loss  agreement  robust_accuracy@0.1  robust_accuracy@0.3")
    assert first.split()[:5] == ["0", "0.0", "%", "100", "5,000"]
    assert "95.0 %" in others[0]
    assert "0.9000" in others[0]


def test_steps_are_appended() -> None:
    tape = Tape(RUN)
    for made in TAPE.steps:
        tape = tape.added(made)
    assert tape == TAPE
    with pytest.raises(TapeError) as caught:
        tape.added(step(2))
    assert str(caught.value) == "the steps are numbered [0, 1, 2, 2]; they must be 0, 1, 2, ..., without a gap"


def test_an_interrupted_write_leaves_the_old_tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tape.json"
    Tape(RUN, TAPE.steps[:2]).save_json(path)

    def stop(self: Path, data: bytes) -> None:
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", stop)
    for save in (TAPE.save_json, TAPE.save_csv):
        with pytest.raises(OutputError) as caught:
            save(path)
        assert str(caught.value) == f"tape {str(path)!r} can't be written: No space left on device; choose another path"
    assert Tape.load(path).steps == TAPE.steps[:2]
    assert os.listdir(tmp_path) == ["tape.json"]


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "tape.json")
    TAPE.save_json(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert Tape.load(tmp_path / "tape.json").steps == TAPE.steps
    files.write(b"gone", os.devnull, "tape")
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize(
    ("path", "reason"),
    [("no/tape.json", "No such file or directory"), (".", "Is a directory"), ("x" * 300, "File name too long"), ("a\0b", None)],
)
def test_a_path_that_can_t_be_written(tmp_path: Path, path: str, reason: str | None) -> None:
    with pytest.raises(OutputError) as caught:
        TAPE.save_json(f"{tmp_path}/{path}")
    assert str(caught.value).startswith(f"tape {f'{tmp_path}/{path}'!r} can't be written: {reason or 'embedded null'}")


def test_only_the_same_run_continues_a_tape(tmp_path: Path) -> None:
    TAPE.save_json(tmp_path / "tape.json")
    tape = Tape.load(tmp_path / "tape.json")
    ending = "; give the same settings, or begin a new tape"
    for run, text in {
        "other": ({**RUN, "step": 0.1}, "the tape is of a run with step 0.05, this run has step 0.1"),
        "more": ({**RUN, "seed": 1}, "the tape is of a run with no seed, this run has seed 1"),
        "fewer": ({n: v for n, v in RUN.items() if n != "ratio"}, "the tape is of a run with ratio 0.5, this run has no ratio"),
    }.values():
        with pytest.raises(TapeError) as caught:
            tape.check_run(run)
        assert str(caught.value) == text + ending


def damaged(**changes: Any) -> dict[str, Any]:
    """The tape as JSON data, with something changed in its second step."""
    data = TAPE.to_dict()
    data["steps"][1] |= changes
    return data


BAD: dict[str, tuple[Any, str]] = {
    "plan": ({"schema": "onnxprune.plan/1"}, "has schema \"onnxprune.plan/1\", this version reads 'onnxprune.tape/1'"),
    "list": ([1], "has no schema, this version reads 'onnxprune.tape/1'"),
    "no steps": ({"schema": "onnxprune.tape/1", "run": {}}, "lacks its 'run' or its 'steps'; begin a new tape"),
    "gap": (damaged(number=2), ": the steps are numbered [0, 2, 2]; they must be 0, 1, 2, ..., without a gap; begin a new tape"),
    "type": (damaged(macs="many"), ": a step's 'macs' is \"many\"; it must be a count; begin a new tape"),
    "truth": (damaged(bytes=True), ": a step's 'bytes' is true; it must be a count; begin a new tape"),
    "share": (damaged(share=1.0), ": a step's 'share' is 1.0; it must be a fraction, 0 <= share < 1; begin a new tape"),
    "moves": (damaged(moves={"a": -1}), ": a step's 'moves' is {\"a\": -1}; it must be counts by group; begin a new tape"),
    "epsilon": (
        damaged(robust_accuracy={"tiny": 0.5}),
        ": a step's 'robust_accuracy' is {\"tiny\": 0.5}; it must be numbers by epsilon; begin a new tape",
    ),
    "unknown": (damaged(size=1), ": a step has an unknown field 'size'; begin a new tape"),
    "number": ({**TAPE.to_dict(), "steps": [3]}, ": a step is 3, not a set of named values; begin a new tape"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_tape_is_refused(tmp_path: Path, name: str) -> None:
    data, text = BAD[name]
    path = tmp_path / "tape.json"
    path.write_text(json.dumps(data))
    with pytest.raises(TapeError) as caught:
        Tape.load(path)
    assert str(caught.value) == f"tape {str(path)!r}{'' if text[0] == ':' else ' '}{text}"


def test_a_lost_field_is_named() -> None:
    data = FIRST.to_dict()
    assert Step.from_dict(data) == FIRST
    del data["macs"]
    with pytest.raises(TapeError, match=r"^a step has no 'macs'$"):
        Step.from_dict(data)


def test_a_file_that_can_t_be_read(tmp_path: Path) -> None:
    path = tmp_path / "tape.json"
    for content, text in ((None, "can't be read: No such file or directory; check the path"), ("{", "is not JSON: Expecting")):
        if content is not None:
            path.write_text(content)
        with pytest.raises(TapeError) as caught:
            Tape.load(path)
        assert str(caught.value).startswith(f"tape {str(path)!r} {text}")


# pictures -------------------------------------------------------------------------------------------------------------


def texts(steps: Sequence[Step], path: Path, **options: Any) -> list[str]:
    """All words in a picture."""
    draw(steps, path, **options)
    return ["".join(node.itertext()) for node in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def drawn(steps: Sequence[Step], path: Path) -> list[np.ndarray]:
    """The points of each curve as they lie in a picture, each axis scaled to 0 at the first point and 1 at the last."""
    draw(steps, path)
    found = re.findall(r'<g id="curve\d+">\s*<path d="([^"]+)"', path.read_text())
    points = [np.array(re.findall(r"[ML] (\S+) (\S+)", line), np.float64) for line in found]
    return [(p - p[0]) / (p[-1] - p[0]) for p in points]


def test_curves_run_where_the_numbers_say(tmp_path: Path) -> None:
    """Over the channels really removed, whatever share was asked for."""
    left, whole = np.array([100, 80, 75, 50]), np.array([5000, 3500, 3300, 2000])
    right = np.array([0.9, 0.88, 0.9, 0.3])
    steps = [
        Step(n, 0.2 * n, int(c), int(p), 1, 1, accuracy=float(a))
        for n, (c, p, a) in enumerate(zip(left, whole, right, strict=True))
    ]
    wanted = [np.stack([(v - v[0]) / (v[-1] - v[0]) for v in (left, y)], axis=1) for y in (right, whole)]
    found = drawn(steps, tmp_path / "tape.svg")
    assert len(found) == 2
    for one, two in zip(found, wanted, strict=True):
        assert np.allclose(one, two, atol=1e-5)
    found = drawn([replace(s, channels=100 - 10 * s.number) for s in steps], tmp_path / "tape.svg")
    assert not np.allclose(found[0], wanted[0], atol=1e-2)


def test_a_picture_says_what_its_curves_are(tmp_path: Path) -> None:
    found = texts(TAPE.steps, tmp_path / "tape.svg", title="a net")
    for text in (
        "a net",
        "channels removed, %",
        "percent of the original",
        "parameters (original 5,000)",
        "accuracy (original 98.0 %)",
        "agreement with the original",
        "robust accuracy, ε = 0.1 (original 75.0 %)",
        "robust accuracy, ε = 0.3 (original 20.0 %)",
    ):
        assert text in found, text
    assert not any("loss" in text for text in found)


def test_what_was_not_measured_has_no_curve(tmp_path: Path) -> None:
    bare = [Step(n, 0.1 * n, 100 - 10 * n, 10 - n, 0, 99) for n in range(2)]
    found = texts(bare, tmp_path / "tape.svg")
    assert "parameters (original 10)" in found
    assert not any(word in text for text in found for word in ("accuracy", "agreement"))
    lost = [replace(s, robust_accuracy={"0.5": 0.1 * s.number}, channels=0, parameters=0) for s in bare]
    assert "robust accuracy, ε = 0.5 (of all samples)" in texts(lost, tmp_path / "tape.svg")


def test_the_same_steps_give_the_same_file(tmp_path: Path) -> None:
    for suffix in ("svg", "png"):
        one, two, other = (tmp_path / f"{n}.{suffix}" for n in range(3))
        draw(TAPE.steps, one, title="t")
        draw(TAPE.steps, two, title="t")
        draw(TAPE.steps[:2], other, title="t")
        assert one.read_bytes() == two.read_bytes() != other.read_bytes()
    assert not re.search(rb"20\d\d-\d\d-\d\d", (tmp_path / "0.svg").read_bytes())


def test_any_number_of_steps_and_epsilons(tmp_path: Path) -> None:
    draw(TAPE.steps[:1], tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    many = [replace(s, robust_accuracy={str(e / 100): 0.5 for e in range(1, 31)}) for s in TAPE.steps]
    assert sum("robust" in text for text in texts(many, tmp_path / "many.SVG")) == 30


def test_the_user_s_own_settings_neither_matter_nor_change(tmp_path: Path) -> None:
    import matplotlib

    def settings() -> dict[str, Any]:  # looking at the backend would choose one
        return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}

    draw(TAPE.steps, tmp_path / "one.svg")
    with matplotlib.rc_context({"lines.linewidth": 9.0, "axes.facecolor": "black"}):
        before = settings()
        draw(TAPE.steps, tmp_path / "two.svg")
        assert settings() == before
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize("name", ["tape.pdf", "tape", "svg"])
def test_other_kinds_of_picture(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(OptionError) as caught:
        check_picture(path)
    assert str(caught.value) == f"picture {str(path)!r} must end in .png or .svg, which says what kind of file it becomes"


def test_pictures_that_can_t_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tape.png"
    with pytest.raises(OptionError) as caught:
        draw([], path)
    assert str(caught.value) == f"picture {str(path)!r} can't be drawn: there are no steps"
    with pytest.raises(OutputError, match="does not exist; create it first"):
        check_picture(tmp_path / "no" / "tape.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionError) as caught:
        draw(TAPE.steps, path)
    says = "can't be drawn: matplotlib is not installed; pip install 'onnxprune[pictures]'"
    assert str(caught.value) == f"picture {str(path)!r} {says}"
    assert os.listdir(tmp_path) == []
