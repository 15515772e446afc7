"""What gradients cost, and whether they are right, on whole models.

    python benchmarks/gradient.py FOLDER [FOLDER ...] [--runs N] [--seconds N]

Right: the derivative of the squared distance from random targets by all float inputs, and by the weights of products and
convolutions, along two random directions, against central differences, both in float64 in ONNX's reference evaluator,
of the best of three steps, so that kinks between two ends don't count. The gap is a share of the gradient's length: along
a random direction the derivative is about as large as that. Also how far the gradient that onnxruntime computes in float32
is from that in float64. Where the evaluator takes longer than ``--seconds``, or can't, differences in float32 in onnxruntime
have to do; by their noise the gap may be some hundredths. A model that is not differentiable has the first node without a
rule, and why.

Cost: processor time of one thread for forward pass, loss and input gradient of a batch in one run, over that of a forward
pass, the shortest of ``--runs``; with all weights' gradients besides, as training needs them; for the differentiable models
and for a LeNet (two convolutions of 5x5 with 20 and 50 filters, each with a ReLU and a pooling of 2x2, 500 units, 10
classes). Results go to gradient.json beside this script, a section for each folder.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.errors import GradientError, OnnxpruneError
from onnxprune.gradient import Derivative, GradientGraph, derivative, differentiate
from onnxprune.gradient.coverage import DIFFERENCES, UNDEFINED
from onnxprune.graph import Graph, load
from onnxprune.intake import PRODUCTS
from onnxprune.runtime import Session
from onnxprune.shapes import Shapes, infer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from float64 import operators  # noqa: E402

BATCH, DIRECTIONS = 32, 2
STEPS, NARROW_STEPS = (1e-6, 1e-7, 1e-8), (1e-2, 1e-3, 1e-4)
Arrays = dict[str, np.ndarray]


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float64."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    narrow = (TensorProto.FLOAT, TensorProto.FLOAT16)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type in narrow:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    attributes = [(node, a) for node in copy.graph.node for a in node.attribute]
    sizes = {n.input[k] for n in copy.graph.node if n.op_type in ("Resize", "Upsample") for k in range(1, len(n.input))}
    for tensor in (*copy.graph.initializer, *(a.t for _, a in attributes if a.HasField("t"))):
        if tensor.data_type in narrow and tensor.name not in sizes:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for node, a in attributes:
        if node.op_type == "Cast" and a.i in narrow:
            a.i = TensorProto.DOUBLE
    del copy.graph.value_info[:]
    return copy


def stored_factors(graph: Graph) -> list[str]:
    """Stored float tensors that products and convolutions take, biases included."""
    found: dict[str, None] = {}
    for node in graph.nodes:
        if node.op in PRODUCTS and node.op not in ("LSTM", "GRU", "RNN") and node.standard:
            for name in node.inputs[:3]:
                tensor = graph.uses[name].tensor if name in graph.uses else name
                if tensor in graph.weights and graph.weights.elem_type(tensor) == TensorProto.FLOAT:
                    found.setdefault(tensor)
    return [name for name in found if any(t.name == name for t in graph.proto.graph.initializer)]


def inputs_for(graph: Graph, batch: int, rng: np.random.Generator, shapes: Shapes) -> Arrays:
    """Random values; open sizes after the first are those of the probe."""
    feeds = {}
    for port in graph.inputs:
        probe = shapes.inputs[port.name]
        open_first = bool(port.shape) and not isinstance(port.shape[0], int)
        shape = (batch, *probe[1:]) if open_first else probe
        dtype = helper.tensor_dtype_to_np_dtype(port.elem_type)
        feeds[port.name] = (
            rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else rng.integers(0, 5, shape).astype(dtype)
        )
    return feeds


def stopped(*_: object) -> None:
    """The evaluator takes too long."""
    raise TimeoutError


def check(model: onnx.ModelProto, graph: Graph, shapes: Shapes, limit: int) -> dict[str, Any]:
    """The largest gap to central differences, for inputs and weights separately."""
    rng = np.random.default_rng(0)
    inputs = [p.name for p in graph.inputs if p.elem_type == TensorProto.FLOAT]
    weights = stored_factors(graph)
    found = differentiate(graph, shapes, "squared", [*inputs, *weights])
    feeds, outputs = inputs_for(graph, 1, rng, shapes), list(found.targets)
    forward = dict(zip(outputs, Session(model).run(feeds, outputs), strict=True))
    targets = {n: (y + rng.standard_normal(y.shape)).astype(np.float32) for n, y in forward.items()}
    samples = len(next(iter(forward.values())))
    given = found.feeds(feeds, weights=np.ones(samples, np.float32), targets=targets)
    slopes = dict(zip(found.outputs, Session(found.model).run(given, list(found.outputs.values())), strict=True))
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    places = {"inputs": {n: feeds[n] for n in inputs}, "weights": {n: stored[n] for n in weights}}
    signal.signal(signal.SIGALRM, stopped)
    signal.alarm(limit)
    try:
        wide, wider = widened(found.model), {n: v.astype(np.float64) if v.dtype == np.float32 else v for n, v in given.items()}
        exact = ReferenceEvaluator(wide, new_ops=operators(wide)).run(list(found.outputs.values()), wider)
        row = gaps(widened(model), np.float64, STEPS, feeds, targets, places, dict(zip(found.outputs, exact, strict=True)))
        away = [(slopes[n], v) for n, v in zip(found.outputs, exact, strict=True)]
        lengths = [sum(float((v.astype(np.float64) ** 2).sum()) for v in values) for values in ([a - b for a, b in away], exact)]
        row["float32_gap"] = float(f"{np.sqrt(lengths[0] / lengths[1]):.1e}")
    except (TimeoutError, RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        signal.alarm(0)
        note = "it takes too long" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"[:80]
        row = gaps(model, np.float32, NARROW_STEPS, feeds, targets, places, slopes) | {
            "differences": f"float32, as in float64 {note}"
        }
    signal.alarm(0)
    return row


def gaps(
    model: onnx.ModelProto,
    kind: type,
    steps: tuple[float, ...],
    feeds: Arrays,
    targets: Arrays,
    places: dict[str, Arrays],
    slopes: Arrays,
) -> dict[str, Any]:
    """The largest gap over some directions, of the best step in each."""
    rng = np.random.default_rng(1)
    fed = {n: v.astype(kind) if v.dtype == np.float32 else v for n, v in feeds.items()}

    def loss(moved: Arrays) -> float:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for tensor in copy.graph.initializer:
            if tensor.name in moved:
                tensor.CopyFrom(numpy_helper.from_array(moved[tensor.name].astype(kind), tensor.name))
        at = {n: moved[n].astype(kind) if n in moved else v for n, v in fed.items()}
        if kind is np.float64:
            results = ReferenceEvaluator(copy, new_ops=operators(copy)).run(list(targets), at)
        else:
            results = Session(copy).run(at, list(targets))
        apart = zip(results, targets.values(), strict=True)
        return sum(float(((y.astype(np.float64) - t) ** 2).reshape(len(t), -1).mean(axis=1).sum() / 2) for y, t in apart)

    row: dict[str, Any] = {}
    for name, at in places.items():
        length = float(
            np.sqrt(sum((slopes[n].astype(np.float64) ** 2).sum() * (v.astype(np.float64) ** 2).mean() for n, v in at.items()))
        )
        worst = []
        for _ in range(DIRECTIONS if length else 0):
            directions = {n: rng.standard_normal(v.shape) * np.sqrt((v.astype(np.float64) ** 2).mean()) for n, v in at.items()}
            slope, found = sum(float((slopes[n] * directions[n]).sum()) for n in at), []
            for step in steps:
                ends = [loss({n: v + sign * step * directions[n] for n, v in at.items()}) for sign in (1, -1)]
                found.append(abs((ends[0] - ends[1]) / (2 * step) - slope) / length)
            worst.append(min(found))
        row[f"{name}_gap"] = float(f"{max(worst):.1e}") if worst else None
    return row


def shortest(run: Callable[[], object], runs: int) -> float:
    """Processor time in milliseconds, of fewer runs where one takes seconds."""
    start = time.process_time()
    run()
    times = []
    for _ in range(runs if time.process_time() - start < 1 else 2):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times) * 1e3


def cost(graph: Graph, model: onnx.ModelProto, shapes: Shapes, runs: int) -> dict[str, Any]:
    """Milliseconds of a forward pass, and how many of them gradients take."""
    rng = np.random.default_rng(0)
    feeds = inputs_for(graph, BATCH, rng, shapes)
    inputs = [p.name for p in graph.inputs if p.elem_type == TensorProto.FLOAT]
    plain = Session(model)
    outputs = plain.run(feeds)
    forward = shortest(lambda: plain.run(feeds), runs)
    row: dict[str, Any] = {"batch": max(len(v) for v in feeds.values() if v.ndim), "forward_ms": round(forward, 2)}
    weights = stored_factors(graph)
    for name, wrt, fed in (("input", inputs, ()), ("inputs_and_weights", [*inputs, *weights], tuple(weights))):
        if not wrt:
            continue
        found: GradientGraph = differentiate(graph, shapes, "squared", wrt, fed=fed)
        targets = dict(zip(plain.outputs, outputs, strict=True))
        extra = {n: np.array(graph.weights.read(n)) for n in fed}
        samples = len(next(iter(targets.values())))
        given = found.feeds(feeds, weights=np.ones(samples, np.float32), targets={n: targets[n] for n in found.targets}) | extra
        session = Session(found.model)
        row[f"{name}_passes"] = round(shortest(lambda s=session, g=given: s.run(g), runs) / forward, 2)
    return row


def lenet() -> onnx.ModelProto:
    """See above."""
    rng = np.random.default_rng(0)
    shapes = {
        "w1": (20, 1, 5, 5),
        "b1": (20,),
        "w2": (50, 20, 5, 5),
        "b2": (50,),
        "w3": (500, 800),
        "b3": (500,),
        "w4": (10, 500),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p2"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r3"]),
        helper.make_node("Gemm", ["r3", "w4"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "lenet",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [
            numpy_helper.from_array((rng.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32), n)
            for n, s in shapes.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def why(graph: Graph, error: GradientError) -> str:
    """The first node without a rule, and what is known of its operator."""
    node = next((node for node in graph.nodes if node.label == error.node), None)
    if node is None:
        return str(error)
    if not node.standard:
        return f"{node.domain}.{node.op}: there are rules for ONNX's own operators alone"
    known = derivative(node.op)
    reason = UNDEFINED.get(node.op) or DIFFERENCES.get(node.op) or "these operands, or this opset, are not covered"
    return f"{node.op}: {'zero' if known is Derivative.ZERO else reason}"


def look(model: onnx.ModelProto, runs: int, limit: int) -> dict[str, Any]:
    """A row of the results."""
    try:
        graph = load(model)
        shapes = infer(graph)
        row = check(model, graph, shapes, limit)
    except GradientError as error:
        return {"differentiable": False, "why": why(graph, error)}
    except OnnxpruneError as error:
        return {"differentiable": False, "why": str(error)[:150]}
    try:
        return {"differentiable": True, **row, **cost(graph, model, shapes, runs)}
    except OnnxpruneError as error:
        return {"differentiable": True, **row, "cost": str(error)[:150]}


def main() -> None:
    """Look at all models of some folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    path = HERE / "gradient.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for folder in options.folders:
        rows = found.setdefault(folder.name, {})
        if folder is options.folders[0]:
            found["lenet"] = {"lenet": look(lenet(), options.runs, options.seconds)}
            print("lenet", found["lenet"], flush=True)
        for file in sorted(folder.glob("**/*.onnx")):
            rows[file.name] = look(onnx.load(file), options.runs, options.seconds)
            print(file.name, rows[file.name], flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
