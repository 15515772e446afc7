"""Networks of two layers whose gradients are known, in float64 and as ONNX; and the gradients that attacks find."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import data
from onnxprune.evaluate import Sparse, find_gradient, find_scores, predict
from onnxprune.evaluate.differences import partition
from onnxprune.evaluate.gradient import DENSE
from onnxprune.graph import load

FEATURES, HIDDEN, CLASSES = 12, 24, 4
EPSILONS = (0.05, 0.1, 0.2, 0.4)


def model(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], inputs: dict[str, list], outputs: dict[str, int]
) -> ModelProto:
    """Inputs: element type and shape by name; outputs: element type by name."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, *shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Net:
    """A network of two layers in float64, with its gradient, and as ONNX in float32."""

    def __init__(self, seed: int = 0, classes: int = CLASSES, scale: float = 4.0) -> None:
        rng = np.random.default_rng(seed)
        self.w = rng.standard_normal((FEATURES, HIDDEN)) / 2
        self.b = rng.standard_normal(HIDDEN) / 2
        self.v = scale * rng.standard_normal((HIDDEN, classes)) / HIDDEN**0.5
        self.x = rng.uniform(0, 1, (60, FEATURES)).astype(np.float32)
        self.labels = self.logits(self.x).argmax(axis=1) if classes > 1 else (self.logits(self.x)[:, 0] > 0).astype(int)
        self.labels[::10] = (self.labels[::10] + 1) % max(classes, 2)

    def logits(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x.astype(np.float64) @ self.w + self.b, 0) @ self.v

    def gradient(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Of the label's log-odds."""
        z = self.logits(x)
        if z.shape[1] == 1:
            outer = np.where(labels, 1.0, -1.0)[:, None]
        else:
            others = np.where(np.arange(z.shape[1]) == labels[:, None], -np.inf, z)
            outer = -np.exp(others - others.max(axis=1, keepdims=True))
            outer /= -outer.sum(axis=1, keepdims=True)
            outer[np.arange(len(x)), labels] = 1
        return ((outer @ self.v.T) * (x.astype(np.float64) @ self.w + self.b > 0)) @ self.w.T

    def predicted(self, x: np.ndarray) -> np.ndarray:
        z = self.logits(x)
        return z.argmax(axis=1) if z.shape[1] > 1 else (z[:, 0] > 0).astype(int)

    def robust(self, epsilon: float, clip: tuple[float, float] | None = None) -> float:
        """What exact FGSM leaves."""
        low, high = clip or (self.x.min(), self.x.max())
        moved = np.clip(self.x - epsilon * np.sign(self.gradient(self.x, self.labels)), low, high)
        return float(np.mean((self.predicted(self.x) == self.labels) & (self.predicted(moved) == self.labels)))

    def onnx(
        self, head: str = "", batch: int | str = "N", nodes: Callable[[str], list[onnx.NodeProto]] | None = None
    ) -> ModelProto:
        """``nodes``: what comes before, from ``x`` to the given name."""
        before = nodes("h0") if nodes else [helper.make_node("Identity", ["x"], ["h0"])]
        body = [
            *before,
            helper.make_node("Gemm", ["h0", "w", "b"], ["h1"]),
            helper.make_node("Relu", ["h1"], ["h2"]),
            helper.make_node("MatMul", ["h2", "v"], ["logits" if head else "out"]),
        ]
        if head:
            body.append(helper.make_node(head, ["logits"], ["out"]))
        weights = {name: getattr(self, name).astype(np.float32) for name in "wbv"}
        return model(body, weights, {"x": [TensorProto.FLOAT, batch, FEATURES]}, {"out": TensorProto.FLOAT})


NET = Net()


def close(found: dict[float, float], expected: Callable[[float], float]) -> None:
    """Equal, but for one sample in a hundred that lies on a border."""
    for epsilon, share in found.items():
        assert abs(share - expected(epsilon)) <= 0.0167, (epsilon, share, expected(epsilon))


def linear(weights: dict[str, np.ndarray], bias: np.ndarray) -> ModelProto:
    """Logits are a linear function of several inputs, and of ``token``, whole numbers."""
    nodes, inputs, parts = [], {}, []
    for name, w in weights.items():
        kind = TensorProto.INT64 if name == "token" else TensorProto.FLOAT
        inputs[name] = [kind, "N", *w.shape[:-1]]
        nodes.append(helper.make_node("Cast", [name], [f"{name}_f"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Flatten", [f"{name}_f"], [f"{name}_2"]))
        nodes.append(helper.make_node("MatMul", [f"{name}_2", f"{name}_w"], [f"{name}_y"]))
        parts.append(f"{name}_y")
    nodes.append(helper.make_node("Sum", [*parts, "bias"], ["out"]))
    stored = {f"{n}_w": w.reshape(-1, w.shape[-1]).astype(np.float32) for n, w in weights.items()}
    return model(nodes, stored | {"bias": bias.astype(np.float32)}, inputs, {"out": TensorProto.FLOAT})


def slopes(
    proto: ModelProto, x: np.ndarray, labels: np.ndarray, kind: str = "graph", sparse: Sparse = DENSE, step: int = 0
) -> np.ndarray:
    """The label's log-odds by the input, ``(samples, values)``."""
    graph = load(proto)
    dataset = data.read({"x": x}, graph.inputs)
    clean = find_scores(predict(graph.assemble().ready(), dataset, graph.inputs))
    assert clean is not None
    blocks = {"x": partition(x.shape[1:], x[0].size)} if kind != "graph" else None
    found = find_gradient(graph, dataset, clean, labels, {"x": (0.0, 1.0)}, blocks=blocks, sparse=sparse)
    return -found({"x": x}, labels, step)["x"]
