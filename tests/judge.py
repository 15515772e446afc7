"""An independent look at pruned models: masks by the plan's JSON alone, compares in onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

ort.set_default_logger_severity(4)
RTOL = 1e-4


def stored(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers and values of Constant nodes, the latter by the node's output, subgraphs included."""
    tensors: dict[str, onnx.TensorProto] = {}
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        tensors.update((t.name, t) for t in graph.initializer)
        for node in graph.node:
            if node.op_type == "Constant":
                tensors.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
            waiting += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return tensors


def parameters(model: onnx.ModelProto) -> int:
    """Number of stored float numbers."""
    return sum(int(np.prod(t.dims)) for t in stored(model).values() if t.data_type in (1, 10, 11, 16))


def masked(model: onnx.ModelProto, plan: dict[str, Any]) -> onnx.ModelProto:
    """The model with everything that the plan removes set to zero, or to what the plan says stands for zero."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = stored(copy)
    for site in plan["sites"]:
        values = numpy_helper.to_array(tensors[site["tensor"]]).copy()
        assert values.shape[site["axis"]] == site["of"]
        assert site["keep"] == sorted(set(site["keep"]))
        gone = np.setdiff1d(np.arange(site["of"]), site["keep"])
        fill = np.array(site.get("fill", 0)).astype(values.dtype)
        along = np.moveaxis(values, site.get("fill_axis", -1), -1)  # a list of fills runs along the last axis of this view
        whole = np.moveaxis(np.broadcast_to(fill, along.shape), -1, site.get("fill_axis", -1))
        np.moveaxis(values, site["axis"], 0)[gone] = np.moveaxis(whole, site["axis"], 0)[gone]
        tensors[site["tensor"]].CopyFrom(numpy_helper.from_array(values, tensors[site["tensor"]].name))
    return copy


def feeds(model: onnx.ModelProto, seed: int = 0, batch: int = 2) -> dict[str, np.ndarray]:
    """Random inputs; dynamic dimensions are ``batch`` on the first axis, and where they are called like that, 16 elsewhere."""
    rng = np.random.default_rng(seed)
    names = {t.name for t in model.graph.initializer}
    found = {}
    firsts = {p.type.tensor_type.shape.dim[0].dim_param for p in model.graph.input if p.type.tensor_type.shape.dim} - {""}
    for port in model.graph.input:
        if port.name not in names:
            dims = port.type.tensor_type.shape.dim
            shape = [d.dim_value or (16 if i and d.dim_param not in firsts else batch) for i, d in enumerate(dims)]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type)
            values = rng.integers(0, 2, shape) if dtype.kind in "iub" else rng.standard_normal(shape)
            found[port.name] = values.astype(dtype)
    return found


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs in onnxruntime."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [r for r in session.run(None, inputs) if isinstance(r, np.ndarray)]


def distance(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Largest difference relative to each output's largest value; infinite where shapes differ."""
    assert len(one) == len(other)
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.size and a.dtype.kind == "f":
            gap = np.abs(a.astype(np.float64) - b.astype(np.float64)).max() / max(float(np.abs(a).max()), 1e-6)
            worst = max(worst, float(gap)) if np.isfinite(gap) else float("inf")
    return worst


def assert_equal(original: onnx.ModelProto, pruned: onnx.ModelProto, plan: dict[str, Any], seed: int = 0) -> None:
    """The pruned model gives what the masked original gives, to ``RTOL`` of the output's scale."""
    inputs = feeds(original, seed)
    gap = distance(run(masked(original, plan), inputs), run(pruned, inputs))
    assert gap <= RTOL, f"pruned differs from masked by {gap:.2g}"
