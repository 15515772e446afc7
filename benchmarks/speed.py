"""Time and memory of pruning a ResNet-50-size model, the oracle apart, against plain onnx.load + onnx.save.

    python benchmarks/speed.py [--runs N]

The model is made here (random weights, 25.6 million parameters). Each measurement runs in a process of its own; the two
kinds take turns, so that noise of the machine meets both alike. Memory is the peak resident size of the process above
what it is after its imports. Results go to speed.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent


def resnet50(rng: np.random.Generator) -> onnx.ModelProto:
    """ResNet-50 as exporters write it: BatchNormalization folded into the convolutions."""
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []

    def stored(name: str, *shape: int) -> str:
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(np.prod(shape[1:]) or 1) ** np.float32(-0.5)
        weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(x: str, name: str, i: int, o: int, kernel: int, stride: int = 1) -> str:
        inputs = [x, stored(f"{name}.weight", o, i, kernel, kernel), stored(f"{name}.bias", o)]
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", inputs, [name], name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads))
        return name

    def apply(op: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    x = apply("Relu", [conv("image", "stem", 3, 64, 7, 2)], "stem.relu")
    x = apply("MaxPool", [x], "stem.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    width = 64
    for stage, (depth, inner) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for block in range(depth):
            name, stride = f"stage{stage}.{block}", 2 if stage and not block else 1
            y = apply("Relu", [conv(x, f"{name}.a", width, inner, 1)], f"{name}.a.relu")
            y = apply("Relu", [conv(y, f"{name}.b", inner, inner, 3, stride)], f"{name}.b.relu")
            y = conv(y, f"{name}.c", inner, 4 * inner, 1)
            shortcut = x if block else conv(x, f"{name}.down", width, 4 * inner, 1, stride)
            x = apply("Relu", [apply("Add", [y, shortcut], f"{name}.sum")], f"{name}.relu")
            width = 4 * inner
    x = apply("Flatten", [apply("GlobalAveragePool", [x], "pool")], "flat")
    apply("Gemm", [x, stored("fc.weight", 1000, width), stored("fc.bias", 1000)], "logits", transB=1)
    graph = helper.make_graph(
        nodes,
        "resnet50",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1000])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def copy(path: str) -> dict[str, float]:
    """The reference: read the file and write it again."""
    before = peak()
    start = time.perf_counter()
    onnx.save(onnx.load(path), path + ".copy")
    return {"seconds": time.perf_counter() - start, "memory": peak() - before}


def prune(path: str) -> dict[str, float]:
    """Load, analyse, score by L1, cut half of the channels, write."""
    from onnxprune.allocation import allocate
    from onnxprune.channels import analyse
    from onnxprune.files import save
    from onnxprune.graph import load
    from onnxprune.importance import l1
    from onnxprune.surgery import apply

    before = peak()
    stamps = [time.perf_counter()]
    graph = load(path)
    stamps.append(time.perf_counter())
    coupling = analyse(graph)
    stamps.append(time.perf_counter())
    scores = [l1(group, graph.weights, None) for group in coupling.groups]
    removed = allocate(coupling, scores, ratio=0.5)
    stamps.append(time.perf_counter())
    model = apply(coupling, removed)
    stamps.append(time.perf_counter())
    save(model, path + ".pruned")
    stamps.append(time.perf_counter())
    stages = dict(zip(("load", "analyse", "score", "surgery", "write"), np.diff(stamps).tolist(), strict=True))
    return {"seconds": stamps[-1] - stamps[0], "memory": peak() - before, **stages}


def peak() -> int:
    """Peak resident bytes of this process so far (Linux; getrusage would count the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


def measure(kind: str, path: Path) -> dict[str, float]:
    """Run one measurement in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--only", kind, str(path)], capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--only", nargs=2, metavar=("KIND", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        kind, path = options.only
        print(json.dumps(copy(path) if kind == "copy" else prune(path)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.onnx"
        onnx.save(resnet50(np.random.default_rng(0)), path)
        size = path.stat().st_size
        turns = [(measure("copy", path), measure("prune", path)) for _ in range(options.runs)]
    copies, prunes = zip(*turns, strict=True)
    median = {k: statistics.median(run[k] for run in prunes) for k in prunes[0]}
    reference = {k: statistics.median(run[k] for run in copies) for k in copies[0]}
    result = {
        "file_bytes": size,
        "runs": options.runs,
        "copy": reference,
        "prune": median,
        "time_ratio": median["seconds"] / reference["seconds"],
        "time_ratio_range": [f(p["seconds"] / c["seconds"] for c, p in turns) for f in (min, max)],
        "memory_over_file": median["memory"] / size,
        "copy_memory_over_file": reference["memory"] / size,
    }
    (HERE / "speed.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
