"""The layers: a module imports only from those above it, and heavy dependencies have one door each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "onnxprune"
# fmt: off
LAYERS = [
    "errors", "weights", "lazy", "structure", "files", "intake", "assembly", "graph",
    "runtime", "shapes", "rules", "labels", "flow", "channels", "bounds",
    "cost", "data", "allocation", "plan", "lossless", "importance", "compensate", "sampler",
    "surgery", "evaluate", "report", "proof", "pruner", "compare", "demo", "operators",
    "__init__", "cli", "__main__",
]
# fmt: on
ONLY_HERE = {"onnx_graphsurgeon": "graph", "onnxruntime": "runtime", "typer": "cli", "rich": "cli"}
LONGEST = 400

MODULES = sorted(PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    """First part of the module's name below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str) -> Iterator[str]:
    """Dotted names of all imports; relative ones as they are written."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module == "onnxprune":
                yield from (f"onnxprune.{alias.name}" for alias in node.names)
            else:
                yield module


def faults(here: str, source: str) -> list[str]:
    """What the imports of a module do that they should not."""
    found = []
    for name in imported(source):
        top, *rest = name.split(".")
        if not top:
            found.append(f"relative import {name}")
        elif top == "onnxprune":
            target = rest[0] if rest and rest[0] in LAYERS else "__init__"
            if target != here and LAYERS.index(target) >= LAYERS.index(here):
                found.append(f"{here} must not import {target}")
        elif ONLY_HERE.get(top, here) != here:
            found.append(f"only {ONLY_HERE[top]} may import {top}, not {here}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_up(path: Path) -> None:
    assert faults(layer(path), path.read_text()) == []


def test_every_module_has_a_layer() -> None:
    assert {layer(p) for p in MODULES} == set(LAYERS)


@pytest.mark.parametrize(
    ("here", "source"),
    [
        ("weights", "from onnxprune.graph import load"),
        ("rules", "import onnxprune.pruner"),
        ("graph", "from . import weights"),
        ("plan", "import onnxruntime as ort"),
        ("channels", "import onnx_graphsurgeon"),
    ],
)
def test_faults_are_found(here: str, source: str) -> None:
    assert faults(here, source)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_can_be_held_in_the_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST
