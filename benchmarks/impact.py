"""How long one step of ``impact`` takes on a wide dense layer, in CPU seconds and against a matrix product in the same run.

    python benchmarks/impact.py [--width 2048] [--runs 5]

The network is 784-width-10 with random weights; a step removes 5 % of the width and refits what reads it, from the loaded
graph to the changed one, synthetic inputs and compensation included. PAODING-DL takes 28 CPU seconds for the choice alone.
The result goes to ``impact.json`` beside this script.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.channels import analyse
from onnxprune.graph import load
from onnxprune.sampler import Sampler


def network(*sizes: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes, weights, name = [], [], "x"
    for k, (i, o) in enumerate(pairwise(sizes)):
        weights.append(numpy_helper.from_array((rng.standard_normal((o, i)) * (2 / i) ** 0.5).astype(np.float32), f"w{k}"))
        weights.append(numpy_helper.from_array((rng.standard_normal(o) * 0.1).astype(np.float32), f"b{k}"))
        nodes.append(helper.make_node("Gemm", [name, f"w{k}", f"b{k}"], [f"y{k}"], transB=1))
        name = f"y{k}"
        if k < len(sizes) - 2:
            nodes.append(helper.make_node("Relu", [name], [f"h{k}"]))
            name = f"h{k}"
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", s]) for n, s in (("x", sizes[0]), (name, sizes[-1]))]
    graph = helper.make_graph(nodes, "wide", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def seconds(work: object, runs: int) -> float:
    found = []
    for _ in range(runs):
        start = time.process_time()
        work()  # type: ignore[operator]
        found.append(time.process_time() - start)
    return float(np.median(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    graph = load(network(784, options.width, 10))
    square = np.random.default_rng(0).standard_normal((options.width, options.width)).astype(np.float32)

    def step() -> None:
        sampler = Sampler("impact")
        sampler.step(sampler.start(graph, analyse), 0.05)

    start = seconds(lambda: Sampler("impact").start(graph, analyse), options.runs)
    found = {"width": options.width, "analysis_s": start, "step_s": seconds(step, options.runs) - start}
    found["product_s"] = seconds(lambda: square @ square, options.runs)
    found["step_over_product"] = found["step_s"] / found["product_s"]
    found["original_over_step"] = 28 / found["step_s"]
    print(json.dumps(found, indent=1))
    (Path(__file__).parent / "impact.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
