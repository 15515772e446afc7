"""Time and memory of pruning a model of 3 GB from the command line, proof included, against copying its files.

    python benchmarks/huge.py [--runs N] [--folder DIR]

The model is made here: a block of a transformer and a chain of wide layers, all with weights of their own (onnxruntime
merges equal ones), in external data. Copying and pruning take turns, in two states of the machine: `cold`, where the
model's files have to be read from the disk, and `warm`, where the system has them in memory. Memory is what belongs to
the process alone (RssAnon + RssShmem), read every 10 ms. Linux only. Results go to huge.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
RATIO = 0.5
TOKENS, INPUT, WIDTH, HEADS, CLASSES = 4, 1024, 4096, 32, 1000
STRETCH = 1 << 22
"""Numbers made at a time."""


class Writer:
    """Collects nodes and initializers; large weights go straight to a file, so that the whole is never in memory."""

    def __init__(self, file: BinaryIO, location: str) -> None:
        self.file, self.location = file, location
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def weight(self, name: str, *shape: int, fan: int) -> str:
        """Random weights that keep the size of what passes a layer with ``fan`` inputs and a Relu."""
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        self.file.write(b"\0" * (-self.file.tell() % 4096))
        count = int(np.prod(shape))
        for key, value in (("location", self.location), ("offset", self.file.tell()), ("length", 4 * count)):
            tensor.external_data.add(key=key, value=str(value))
        for start in range(0, count, STRETCH):
            values = self.rng.random(min(STRETCH, count - start), dtype=np.float32)
            values -= np.float32(0.5)
            values *= np.float32((24 / fan) ** 0.5)
            self.file.write(values.data)
        self.initializers.append(tensor)
        return name

    def constant(self, name: str, values: np.ndarray) -> str:
        """A small tensor inside the model."""
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def apply(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        """A node, called as its output."""
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def linear(self, x: str, name: str, i: int, o: int) -> str:
        """As exporters write it for more than two axes."""
        product = self.apply("MatMul", [x, self.weight(f"{name}.weight", i, o, fan=i)], f"{name}.product")
        return self.apply("Add", [product, self.weight(f"{name}.bias", o, fan=o)], name)

    def heads(self, x: str, name: str, perm: list[int]) -> str:
        """A linear layer's result split into heads."""
        shape = self.constant(f"{name}.shape", np.array([0, TOKENS, HEADS, WIDTH // HEADS]))
        split = self.apply("Reshape", [self.linear(x, name, WIDTH, WIDTH), shape], f"{name}.split")
        return self.apply("Transpose", [split], f"{name}.heads", perm=perm)

    def attention(self, x: str) -> str:
        """Self-attention, its projections included."""
        query, key, value = (self.heads(x, n, p) for n, p in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])))
        scale = self.constant("scale", np.array((WIDTH // HEADS) ** -0.5, np.float32))
        scores = self.apply("Mul", [self.apply("MatMul", [query, key], "scores"), scale], "scaled")
        mixed = self.apply("MatMul", [self.apply("Softmax", [scores], "attention", axis=-1), value], "mixed")
        joined = self.constant("joined.shape", np.array([0, TOKENS, WIDTH]))
        back = self.apply("Reshape", [self.apply("Transpose", [mixed], "back", perm=[0, 2, 1, 3]), joined], "joined")
        return self.linear(back, "out", WIDTH, WIDTH)


def build(path: Path) -> None:
    """Write the model to ``path`` and its weights beside it."""
    d = WIDTH
    with open(data_of(path), "wb") as file:
        w = Writer(file, data_of(path).name)
        x = w.linear("tokens", "embed", INPUT, d)
        norm = [w.constant("norm.weight", np.ones(d, np.float32)), w.constant("norm.bias", np.zeros(d, np.float32))]
        x = w.apply("Add", [x, w.attention(w.apply("LayerNormalization", [x, *norm], "norm"))], "attended")
        hidden = w.apply("Relu", [w.linear(x, "up", d, 4 * d)], "up.relu")
        x = w.apply("Add", [x, w.linear(hidden, "down", 4 * d, d)], "block")
        x = w.apply("ReduceMean", [x], "pooled", axes=[1], keepdims=0)
        widths = (d, 3 * d, 4 * d, 3 * d, 2 * d)
        for k, (i, o) in enumerate(pairwise(widths)):
            inputs = [x, w.weight(f"layer{k}.weight", o, i, fan=i), w.weight(f"layer{k}.bias", o, fan=o)]
            x = w.apply("Relu", [w.apply("Gemm", inputs, f"layer{k}", transB=1)], f"layer{k}.relu")
        w.apply("MatMul", [x, w.weight("last.weight", 2 * d, CLASSES, fan=2 * d)], "classes")
    graph = helper.make_graph(
        w.nodes,
        "huge",
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["batch", TOKENS, INPUT])],
        [helper.make_tensor_value_info("classes", TensorProto.FLOAT, ["batch", CLASSES])],
        w.initializers,
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


def data_of(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def settle(path: Path, *, cold: bool) -> None:
    """Nothing waits to be written, and the model's files are in memory or are not."""
    os.sync()
    for file in (path, data_of(path)):
        with open(file, "rb") as opened:
            if cold:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while not cold and opened.read(1 << 24):
                pass


def run(command: list[str]) -> dict[str, float]:
    """Seconds, of which on processors, and peak anonymous memory of a process."""
    start, before, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.01)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
    seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor_seconds": busy, "anonymous_bytes": peak}


def anonymous(pid: int) -> int:
    """Bytes that belong to a process alone; 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(1024 * int(kilobytes) for kilobytes in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+)", status, re.MULTILINE))


def turn(path: Path, *, cold: bool) -> dict[str, Any]:
    """Copy the model, then prune it."""
    target = path.parent / "out"
    target.mkdir()
    settle(path, cold=cold)
    copied = run(["cp", str(path), str(data_of(path)), str(target)])
    shutil.rmtree(target)
    target.mkdir()
    settle(path, cold=cold)
    small, report = target / "small.onnx", target / "report.json"
    command = [sys.executable, "-m", "onnxprune", "prune", str(path), "-o", str(small), "--ratio", str(RATIO)]
    pruned = run([*command, "--report", str(report)])
    found = json.loads(report.read_text())
    written = small.stat().st_size + data_of(small).stat().st_size
    assert sorted(p.name for p in target.iterdir()) == ["report.json", "small.onnx", "small.onnx.data"]
    shutil.rmtree(target)
    return {
        "copy": copied,
        "prune": pruned,
        "bytes": written,
        "verification": found["verification"],
        "stages": found["elapsed_s"],
    }


def summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and the range of what single turns gave."""
    ratios = [t["prune"]["seconds"] / t["copy"]["seconds"] for t in turns]
    return {
        "copy_seconds": statistics.median(t["copy"]["seconds"] for t in turns),
        "prune_seconds": statistics.median(t["prune"]["seconds"] for t in turns),
        "copy_processor_seconds": statistics.median(t["copy"]["processor_seconds"] for t in turns),
        "prune_processor_seconds": statistics.median(t["prune"]["processor_seconds"] for t in turns),
        "load_average": os.getloadavg()[0],
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "stages": {k: statistics.median(t["stages"][k] for t in turns) for k in turns[0]["stages"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", help="where the model and what is made of it lie; by default a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "big.onnx"
        build(path)
        size = path.stat().st_size + data_of(path).stat().st_size
        states: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
        for _ in range(options.runs):
            for state, turns in states.items():
                turns.append(turn(path, cold=state == "cold"))
    every = [t for turns in states.values() for t in turns]
    result = {
        "model_bytes": size,
        "pruned_bytes": every[0]["bytes"],
        "runs": options.runs,
        "peak_anonymous_bytes": max(t["prune"]["anonymous_bytes"] for t in every),
        "passed": all(t["verification"]["passed"] for t in every),
        "max_rel_error": max(t["verification"]["max_rel_error"] for t in every),
        "inputs": every[0]["verification"]["inputs"],
        **{state: summary(turns) for state, turns in states.items()},
    }
    (HERE / "huge.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
