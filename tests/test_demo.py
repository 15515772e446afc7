"""The demo: what it writes, and that what it says is true."""

import json
import re
import shlex
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxprune import demo
from onnxprune.errors import OutputError, VerificationError

SHIPPED = files(demo)
WRITTEN = {"digits.onnx", "digits.npz", "digits-pruned.onnx", "plan.json", "report.json"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return folder, demo.run(folder)


def names(folder):
    return {path.name for path in folder.iterdir()}


def predicted(path, images):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["logits"], {"image": images})[0].argmax(axis=1)


def test_shipped_files_are_small():
    assert sum(len(SHIPPED.joinpath(name).read_bytes()) for name in ("digits.onnx", "digits.npz")) < 500_000


def test_samples(finished):
    with np.load(finished[0] / "digits.npz", allow_pickle=False) as data:
        image, labels = data["image"], data["labels"]
    assert sorted(np.unique(labels)) == list(range(10))
    assert (image.dtype, image.shape) == (np.float32, (len(labels), 1, 8, 8))
    assert labels.dtype == np.int64
    assert (image.min(), image.max()) == (0, 1)
    assert f"{len(labels)} samples" in finished[1]


def test_files(finished):
    folder, text = finished
    assert names(folder) == WRITTEN
    for name in ("digits.onnx", "digits.npz"):
        assert (folder / name).read_bytes() == SHIPPED.joinpath(name).read_bytes()
    assert all(name in text for name in WRITTEN)
    assert str(folder) in text


def test_pruned_model_is_smaller_and_keeps_its_interface(finished):
    folder = finished[0]
    original, pruned = (onnx.load(folder / name) for name in ("digits.onnx", "digits-pruned.onnx"))
    onnx.checker.check_model(pruned, full_check=True)
    assert (list(pruned.graph.input), list(pruned.graph.output)) == (list(original.graph.input), list(original.graph.output))
    sizes = [sum(int(np.prod(t.dims)) for t in m.graph.initializer) for m in (original, pruned)]
    assert sizes[1] < 0.4 * sizes[0]
    assert (folder / "digits-pruned.onnx").stat().st_size < 0.45 * (folder / "digits.onnx").stat().st_size
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert [report["model"][side]["parameters"] for side in ("before", "after")] == sizes
    assert all(f"{size:,}" in finished[1] for size in sizes)


def test_accuracy_is_what_onnxruntime_says(finished):
    folder, text = finished
    with np.load(folder / "digits.npz", allow_pickle=False) as data:
        image, labels = data["image"], data["labels"]
    before, after = (predicted(folder / name, image) for name in ("digits.onnx", "digits-pruned.onnx"))
    accuracy = [float(np.mean(answers == labels)) for answers in (before, after)]
    assert min(accuracy) >= 0.95
    found = re.search(r"accuracy +(\S+) % +(\S+) % +(\S+) pp", text)
    assert found is not None
    assert found.groups() == (*(f"{100 * a:.1f}" for a in accuracy), f"{100 * (accuracy[1] - accuracy[0]):+.1f}")
    assert re.search(rf"agreement +{100 * np.mean(before == after):.1f} %", text)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert [report["metrics"][side]["accuracy"] for side in ("before", "after")] == accuracy


def test_says_that_it_is_verified(finished):
    folder, text = finished
    assert "verified: the pruned model equals the masked original" in text
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["verification"]["passed"] is True


def test_twice_in_the_same_folder(tmp_path):
    other = tmp_path / "mine.txt"
    other.write_text("stays", encoding="utf-8")
    demo.run(tmp_path)
    first = (tmp_path / "digits-pruned.onnx").read_bytes()
    demo.run(tmp_path)
    assert (tmp_path / "digits-pruned.onnx").read_bytes() == first
    assert names(tmp_path) == WRITTEN | {"mine.txt"}
    assert other.read_text(encoding="utf-8") == "stays"


def test_tells_what_it_does(tmp_path):
    stages = []
    demo.run(tmp_path, progress=stages.append)
    assert [s for s in stages if s in ("load", "verify", "measure", "write")] == ["load", "verify", "measure", "write"]


def test_file_in_place_of_the_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="is a file") as caught:
        demo.run(path)
    assert "\n" not in str(caught.value)
    assert path.read_text(encoding="utf-8") == "mine"


def test_file_in_place_of_a_parent(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be written"):
        demo.run(tmp_path / "file" / "folder")


def test_folder_in_place_of_a_file(tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        demo.run(tmp_path)
    assert names(tmp_path) == {"report.json"}


@pytest.mark.parametrize("error", [VerificationError("they differ"), KeyboardInterrupt()])
def test_failure_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(demo, "compare", fail)
    with pytest.raises(type(error)):
        demo.run(tmp_path / "one" / "two")
    assert names(tmp_path) == set()


def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    (tmp_path / "plan.json").write_text("mine", encoding="utf-8")
    monkeypatch.setattr(demo.shutil, "copyfile", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        demo.run(tmp_path)
    assert names(tmp_path) == {"plan.json"}
    assert (tmp_path / "plan.json").read_text(encoding="utf-8") == "mine"


def test_command_line(tmp_path):
    """``onnxprune demo``, and the commands that it names: they write the same model and plan."""
    folder = tmp_path / "a folder"
    python = [sys.executable, "-m"]
    done = subprocess.run([*python, "onnxprune", "demo", str(folder)], capture_output=True, text=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    before = {name: (folder / name).read_bytes() for name in ("digits-pruned.onnx", "plan.json")}
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("  onnxprune ")]
    assert [words[1] for words in commands] == ["prune", "compare"]
    for name in before:
        Path(folder, name).unlink()
    for words in commands:
        subprocess.run([*python, *words], check=True, capture_output=True)
    assert {name: (folder / name).read_bytes() for name in before} == before
