"""Which stored tensors of a model train: its weights, biases, scales - not statistics, bounds and other constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from onnx import TensorProto

from onnxprune.errors import GradientError, ModelError, UsageError
from onnxprune.flow import matching
from onnxprune.gradient import GradientGraph, differentiate
from onnxprune.gradient.registry import QUANTISERS
from onnxprune.graph import Graph
from onnxprune.shapes import Shapes
from onnxprune.structure import Node

_WEIGHTS: dict[str, Sequence[int]] = {
    **dict.fromkeys(("Gemm", "Einsum"), (0, 1, 2)),
    **dict.fromkeys(("MatMul",), (0, 1)),
    **dict.fromkeys(("Conv", "ConvTranspose", "DeformConv"), (1, 2)),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"), (1, 2)),
    **dict.fromkeys(("PRelu", "RMSNormalization"), (1,)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3)),
    "Gather": (0,),
}
"""Operands that are weights when they are stored; those of a Gather are embeddings."""

_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div"})
"""Operators whose stored operands are weights where they vary along one axis: a bias or a scale, but no mask or position."""

_STATISTICS: dict[str, Sequence[int]] = {"BatchNormalization": (3, 4)}
"""Operands that were measured rather than trained, and stay."""

_MOVING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators through which a stored tensor may go before it is used."""

_TRAINED = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE})
_HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


@dataclass(frozen=True)
class Goal:
    """What is to become small: a loss of :func:`~onnxprune.gradient.differentiate` with its options, by their names there."""

    loss: str
    probabilities: bool = False
    temperature: float = 1.0
    hard: float = 0.0


@dataclass(frozen=True)
class Training:
    """A model's loss and its derivatives by the weights that train. ``notes``: what does not train, and why, a line each."""

    gradient: GradientGraph
    names: tuple[str, ...]
    notes: tuple[str, ...]


def training(graph: Graph, shapes: Shapes, goal: Goal, freeze: Sequence[str]) -> Training:
    """The gradients that training needs.

    A node without a gradient rule keeps the weights before it as they are; those after it train.

    Args:
        freeze: shell-style patterns of tensors, or nodes, whose weights stay.

    Raises:
        ModelError: nothing can train.
        UsageError: a pattern matches nothing.
    """
    names, notes = _float32(graph, freeze)
    while True:
        try:
            made = differentiate(graph, shapes, wrt=names, fed=names, **asdict(goal))
            return Training(made, tuple(names), tuple(notes))
        except GradientError as error:
            behind = _before(graph, error.node)
            kept = [name for name in names if name not in behind]
            if not error.node or len(kept) == len(names):
                raise
            if not kept:
                raise GradientError(f"no weight can be trained: {error}", error.node) from error
            notes.append(f"{_count(len(names) - len(kept))} before node {error.node!r} stay: no gradient of it is known")
            names = kept


def _float32(graph: Graph, freeze: Sequence[str]) -> tuple[list[str], list[str]]:
    """The weights that may train, and what to say about others."""
    quantised = next((n for n in graph.nodes if n.op in QUANTISERS or "Dequantize" in n.op or n.op.startswith("QLinear")), None)
    if quantised is not None:
        raise ModelError(
            f"the model is quantised already (node {quantised.label!r}), so that its weights can't change in small steps; "
            "fine-tune the model that it was made from, and quantise the result"
        )
    frozen: set[str] = set()
    for pattern in freeze:
        found = set(matching(graph, pattern))
        if not found:
            raise UsageError(f"--freeze {pattern!r} matches no node and no tensor; `onnxprune inspect` lists the names")
        frozen |= found | {_real(graph, i) for n in graph.nodes if found & {n.name, *n.outputs} for i in n.inputs}
    roles = _roles(graph)
    names = [name for name in roles if name not in frozen and graph.weights.elem_type(name) in _TRAINED]
    half = [name for name in roles if name not in frozen and graph.weights.elem_type(name) in _HALF]
    if names:
        return names, [f"{_count(len(half))} of 16-bit floats stay"] if half else []
    if half:
        raise ModelError(
            "the weights are 16-bit floats, in which small steps are lost; fine-tune the float32 model, and store the result in "
            "16 bits with onnxprune.quantize(model, 'fp16')"
        )
    what = "all weights are frozen by --freeze" if frozen and roles else "the model has no float weights"
    raise ModelError(f"{what}, so that there is nothing to train")


def _roles(graph: Graph) -> list[str]:
    """Stored tensors of the main graph that some node uses as weights, and none as statistics."""
    outside = {t.name for t in graph.proto.graph.initializer}
    outside |= {node.output[0] for node in graph.proto.graph.node if node.op_type == "Constant"}
    origin = {name: name for name in graph.weights if _real(graph, name) in outside}
    found: dict[str, None] = {}
    fixed: set[str] = set()
    for node in graph.nodes:
        if not node.standard or node.border:
            continue
        stored = {k: _real(graph, origin[name]) for k, name in enumerate(node.inputs) if name in origin}
        if node.op in _MOVING and 0 in stored:
            origin[node.outputs[0]] = stored[0]
        fixed |= {stored[k] for k in _STATISTICS.get(node.op, ()) if k in stored}
        found |= dict.fromkeys(stored[k] for k in stored if _is_weight(graph, node, k, stored[k]))
    return [name for name in found if name not in fixed]


def _is_weight(graph: Graph, node: Node, operand: int, name: str) -> bool:
    if node.op in _ELEMENTWISE:
        return sum(size > 1 for size in graph.weights.shape(name)) == 1
    return operand in _WEIGHTS.get(node.op, ())


def _count(tensors: int) -> str:
    return f"{tensors} tensor{'s' * (tensors != 1)}"


def _before(graph: Graph, label: str) -> set[str]:
    """The stored tensors on which the operands of a node depend, its own among them."""
    nodes: list[Node] = [node for node in graph.nodes if node.label == label]
    found: set[str] = set()
    while nodes:
        node = nodes.pop()
        for name in {*node.inputs, *node.captured} - found:
            found.add(name)
            nodes.extend(filter(None, [graph.producers.get(name)]))
    return {_real(graph, name) for name in found}


def _real(graph: Graph, name: str) -> str:
    return graph.uses[name].tensor if name in graph.uses else name
