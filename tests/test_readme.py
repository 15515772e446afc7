"""README is true: its Python is run with its printed results, its commands are run, its generated blocks are current."""

from __future__ import annotations

import doctest
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
sys.path.insert(0, str(ROOT / "benchmarks"))


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `onnxprune demo` has been run."""
    path = tmp_path_factory.mktemp("readme")
    run(path, "onnxprune demo")
    return path


def run(folder: Path, line: str) -> str:
    command = [sys.executable, "-m", *shlex.split(line)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands(folder: Path) -> None:
    lines = [line for block in fenced("console") for line in block.splitlines() if line.startswith("onnxprune ")]
    assert len(lines) >= 4
    for line in lines:
        assert run(folder, line)


def test_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    blocks = fenced("python")
    assert blocks
    for block in blocks:
        test = parser.get_doctest(block, {}, "README", "README.md", 0)
        assert test.examples
        runner.run(test)
    assert runner.failures == 0
    assert (folder / "small.onnx").exists()


def test_generated_blocks_are_current() -> None:
    readme = pytest.importorskip("readme")
    assert readme.fill(README, readme.blocks()) == README, "run: python benchmarks/readme.py"


def test_a_stale_block_is_noticed() -> None:
    readme = pytest.importorskip("readme")
    stale = README.replace("| Conv | exact |", "| Conv | wrong |")
    assert stale != README
    assert readme.fill(stale, readme.blocks()) != stale


def test_every_module_is_listed() -> None:
    listing = README[README.index("## Where each thing lives") : README.index("## Operators")]
    for path in (ROOT / "onnxprune").iterdir():
        if path.suffix == ".py" and not path.stem.startswith("__") and path.stem != "operators":
            assert f"`{path.name}`" in listing or path.name in listing, path.name
        elif path.is_dir() and path.name != "__pycache__":
            assert f"`{path.name}/`" in listing, path.name
