"""The layers: a module imports only from those above it, and heavy dependencies have one door each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "onnxprune"
# fmt: off
LAYERS = [
    "errors", "weights", "masks", "lazy", "structure", "files", "intake", "assembly", "graph", "runtime", "shapes", "rules",
    "labels", "flow", "filters", "channels", "bounds", "cost", "footprint", "target", "data", "clock", "allocation",
    "knapsack", "fit", "plan", "surgery", "remove", "lossless", "leastsquares", "gradient", "evaluate", "importance",
    "compensate", "standing", "rotation", "report", "quantize", "profile", "sampler", "evaluation", "evaluator", "proof",
    "progressive", "recorder", "sweep",
    "result", "pruner", "family", "finetune", "sparsify", "compare", "demo", "operators", "__init__", "cli", "__main__",
]
# fmt: on
# fmt: off
ONLY_HERE = {
    "onnx_graphsurgeon": "graph", "onnxruntime": "runtime", "typer": "cli", "rich": "cli", "matplotlib": "report.picture",
    "sklearn": "importance.kmeans",
    "onnxruntime.quantization": "quantize.integer",  # tools apart from the runtime; nothing else needs them
}
# fmt: on
LONGEST = 400

MODULES = sorted(PACKAGE.rglob("*.py"))


def module(path: Path) -> str:
    """The module's dotted name below the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def layer(name: str) -> str:
    """First part of a module's name below the package."""
    return name.split(".")[0]


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
    """What the imports of a module, known by its name below the package, do that they should not."""
    found = []
    for name in imported(source):
        top, *rest = name.split(".")
        if not top:
            found.append(f"relative import {name}")
        elif top == "onnxprune":
            target = rest[0] if rest and rest[0] in LAYERS else "__init__"
            if target != layer(here) and LAYERS.index(target) >= LAYERS.index(layer(here)):
                found.append(f"{here} must not import {target}")
        elif (door := owner(name)) is not None and door not in (here, layer(here)):
            found.append(f"only {door} may import {name}, not {here}")
    return found


def owner(name: str) -> str | None:
    """The only module that may import ``name``, by the longest part of it that is listed."""
    parts = name.split(".")
    return next(filter(None, (ONLY_HERE.get(".".join(parts[:n])) for n in range(len(parts), 0, -1))), None)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_up(path: Path) -> None:
    assert faults(module(path), path.read_text()) == []


def test_every_module_has_a_layer() -> None:
    assert {layer(module(p)) for p in MODULES} == set(LAYERS)


@pytest.mark.parametrize(
    ("here", "source"),
    [
        ("weights", "from onnxprune.graph import load"),
        ("rules", "import onnxprune.pruner"),
        ("graph", "from . import weights"),
        ("plan", "import onnxruntime as ort"),
        ("channels", "import onnx_graphsurgeon"),
        ("quantize.half", "from onnxruntime.quantization import quantize_dynamic"),
        ("quantize.integer", "from onnxruntime import quantization"),
        ("runtime", "import onnxruntime.quantization"),
        ("report.tape", "from matplotlib.figure import Figure"),
        ("report.tape", "from onnxprune.pruner import prune"),
    ],
)
def test_faults_are_found(here: str, source: str) -> None:
    assert faults(here, source)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_can_be_held_in_the_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST
