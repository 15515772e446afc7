"""Small dense networks whose weights are known, in all the ways in which exporters write them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FORMS = ("gemm", "gemm_t", "matmul", "conv")


@dataclass
class Layer:
    """A dense layer: ``weight`` (outputs, inputs), ``bias`` (outputs,), and the four vectors of a normalisation behind it."""

    weight: np.ndarray
    bias: np.ndarray
    norm: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias with the normalisation multiplied in, float64."""
        weight, bias = self.weight.astype(np.float64), self.bias.astype(np.float64)
        if self.norm is None:
            return weight, bias
        scale, shift, mean, variance = (v.astype(np.float64) for v in self.norm)
        gain = scale / np.sqrt(variance + 1e-5)
        return weight * gain[:, None], (bias - mean) * gain + shift


def layers(*sizes: int, seed: int = 0, norm: bool = False) -> list[Layer]:
    """Random layers between so many units; with a normalisation behind all but the last."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    made = []
    for i, o in itertools.pairwise(sizes):
        made.append(Layer(drawn(o, i) * np.float32(i**-0.5), drawn(o) * np.float32(0.3)))
        if norm and len(made) < len(sizes) - 1:
            made[-1].norm = (drawn(o), drawn(o), drawn(o), np.abs(drawn(o)) + np.float32(0.5))
    return made


def network(stack: Sequence[Layer], activation: str = "Relu", form: str = "gemm_t") -> onnx.ModelProto:
    """A model of layers; input ``x``, output ``y``, tensors ``w0``, ``b0``, ``h0`` (bent), ``w1``, and so on."""
    nodes: list[onnx.NodeProto] = []
    stored: dict[str, np.ndarray] = {}
    x = "x"
    for k, layer in enumerate(stack):
        weight, bias, out = f"w{k}", f"b{k}", f"s{k}"
        stored[bias] = layer.bias
        stored[weight] = {"gemm_t": layer.weight, "conv": layer.weight[:, :, None, None]}.get(form, layer.weight.T.copy())
        if form == "matmul":
            nodes.append(helper.make_node("MatMul", [x, weight], [f"p{k}"], f"MatMul_{k}"))
            nodes.append(helper.make_node("Add", [f"p{k}", bias], [out], f"Add_{k}"))
        elif form == "conv":
            nodes.append(helper.make_node("Conv", [x, weight, bias], [out], f"Conv_{k}"))
        else:
            nodes.append(helper.make_node("Gemm", [x, weight, bias], [out], f"Gemm_{k}", transB=int(form == "gemm_t")))
        if layer.norm is not None:
            names = [f"{n}{k}" for n in ("scale", "shift", "mean", "variance")]
            stored |= dict(zip(names, layer.norm, strict=True))
            nodes.append(helper.make_node("BatchNormalization", [out, *names], [f"n{k}"], f"Norm_{k}"))
            out = f"n{k}"
        if k < len(stack) - 1 and activation:
            nodes.append(helper.make_node(activation, [out], [f"h{k}"], f"{activation}_{k}"))
            out = f"h{k}"
        x = out
    nodes.append(helper.make_node("Flatten" if form == "conv" else "Identity", [x], ["y"], "End"))
    ones = [1, 1] if form == "conv" else []
    return model(nodes, stored, ["batch", stack[0].weight.shape[1], *ones], ["batch", len(stack[-1].weight)])


def model(
    nodes: Sequence[onnx.NodeProto], stored: dict[str, np.ndarray], x: Sequence[int | str], y: Sequence[int | str]
) -> onnx.ModelProto:
    """A model with one input ``x`` and one output ``y``, of these shapes."""
    graph = helper.make_graph(
        list(nodes),
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(y))],
        [
            numpy_helper.from_array(np.ascontiguousarray(v, np.float32 if v.dtype.kind == "f" else v.dtype), n)
            for n, v in stored.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
