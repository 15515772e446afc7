"""The backward pass: from a graph output against the order of the nodes to the float graph inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from onnx import ModelProto, NodeProto, ValueInfoProto

from onnxprune.assembly import all_names, arranged
from onnxprune.errors import ModelError
from onnxprune.gradient.registry import QUANTISERS, ZERO, find
from onnxprune.gradient.tape import PREFIX, Name, Step, Tape, Unsupported
from onnxprune.graph import Graph
from onnxprune.rules.notation import describe
from onnxprune.shapes import Shapes
from onnxprune.structure import Node, open_nodes
from onnxprune.weights import FLOATS

SEED = f"{PREFIX}seed"
"""The input that weighs the elements of the output."""

_INITIALIZERS_ALONE = 4
"""The first version of the format in which initializers need not be graph inputs as well."""


@dataclass(frozen=True)
class Backward:
    """A model with its gradient; None where a rule is ``missing``, which is the label of the node concerned."""

    model: ModelProto | None
    missing: str = ""


def backward(graph: Graph, shapes: Shapes, output: str) -> Backward:
    """The gradient of a weighted sum of one graph output with respect to the float graph inputs.

    Returns:
        A model with the graph's inputs and ``grad__seed``, the weights, of the output's shape; its outputs are the output
        itself and ``grad__<input>`` of each input's shape and type, for the float inputs that the output depends on. It
        takes every batch size that the graph takes.

    Raises:
        ModelError: there is no such output, or a tensor has one of the new names already.
    """
    if output not in {port.name for port in graph.outputs}:
        raise ModelError(
            f"{output!r} is not a graph output, so there is no gradient of it; the outputs are "
            + ", ".join(repr(p.name) for p in graph.outputs)
        )
    model = ModelProto()
    model.CopyFrom(graph.assemble().ready())
    arranged_protos = _arrange(graph, model)
    taken = all_names(model.graph)
    reserved = taken & {SEED, *(PREFIX + port.name for port in graph.inputs)}
    if reserved:
        raise ModelError(f"a tensor is called {min(reserved)!r}, as the gradient would be; rename it")
    tape = Tape(graph.opset.get("", 1), taken)
    active = _active(graph, shapes)
    gradients: dict[str, list[Name]] = {output: [SEED]}
    for node in reversed(graph.nodes):
        found = [gradients.get(name) for name in node.outputs]
        if active.isdisjoint(node.outputs) or not any(found):
            continue
        try:
            results = _through(graph, shapes, tape, node, found, active, arranged_protos.get(node.index))
        except Unsupported:
            return Backward(None, node.label)
        for name, gradient in results:
            gradients.setdefault(name, []).append(gradient)
    _finish(graph, model, tape, output, gradients)
    seed = model.graph.input[-1].type.tensor_type
    if not seed.HasField("shape") and shapes.get(output) is not None:
        for size, fixed in zip(shapes.shapes[output], shapes.fixed_dims(output), strict=True):
            seed.shape.dim.add(**{"dim_value": size} if fixed else {})
    return Backward(model)


def _arrange(graph: Graph, model: ModelProto) -> dict[int, NodeProto]:
    """Put the nodes of the model in an order in which they run; returns them by ``Node.index``."""
    order = arranged(model.graph, count(), {node.index: at for at, node in enumerate(graph.nodes)})
    return dict(zip(order, open_nodes(model.graph), strict=True))


def _active(graph: Graph, shapes: Shapes) -> set[str]:
    """Tensors that depend on float inputs other than in steps; also quantised ones, at which there is no rule to go on by."""
    active = {port.name for port in graph.inputs if port.elem_type in FLOATS}
    floats = (0, *FLOATS)
    for node in graph.nodes:
        read = active.intersection((*node.inputs, *node.captured))
        if read and node.op not in ZERO:
            quantised = not node.standard or node.op in QUANTISERS
            every = quantised or any(shapes.elem_types.get(name, 0) not in floats for name in read)
            active |= {name for name in node.outputs if name and (every or shapes.elem_types.get(name, 0) in floats)}
    return active


def _through(
    graph: Graph,
    shapes: Shapes,
    tape: Tape,
    node: Node,
    found: Sequence[list[Name] | None],
    active: set[str],
    forward: NodeProto | None,
) -> list[tuple[str, Name]]:
    """The gradients of a node's operands: (operand, gradient). Fan-out is summed up here."""
    rule = find(node.op) if node.standard and not node.border else None
    first, *others = found
    if rule is None or forward is None or first is None or any(others):
        raise Unsupported
    known = (n for n in (node.outputs[0], *(n for n in node.inputs if n in active)))
    if any(shapes.get(n) is None for n in known):
        raise Unsupported
    step = Step(tape, describe(graph, node, shapes), shapes, forward)
    g = first[0] if len(first) == 1 else step.Sum(*first)
    names = [graph.uses[n].tensor if n in graph.uses else n for n in node.inputs]
    results = [*rule(step, g, node.outputs[0], *names), *(None for _ in names)]
    pairs = []
    for name, result in zip(node.inputs, results, strict=False):
        if name in active:
            if result is None:
                raise Unsupported
            pairs.append((name, result))
    return pairs


def _finish(graph: Graph, model: ModelProto, tape: Tape, output: str, gradients: dict[str, list[Name]]) -> None:
    """Add the nodes that are needed, the seed as the last input, and the outputs."""
    declared = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    ports = [declared[output]]
    for port in graph.inputs:
        parts = gradients.get(port.name)
        if parts and port.elem_type in FLOATS:
            name = PREFIX + port.name
            tape.write("Sum", parts, {})
            tape.nodes[-1].output[:] = [name]
            ports.append(_renamed(declared[port.name], name))
    model.graph.input.append(_renamed(declared[output], SEED))
    nodes = tape.needed({port.name for port in ports})
    model.graph.node.extend(nodes)
    read = dict.fromkeys(name for node in nodes for name in node.input)
    model.graph.initializer.extend(tape.constants[name] for name in read if name in tape.constants)
    model.ir_version = max(model.ir_version, _INITIALIZERS_ALONE)
    del model.graph.output[:]
    model.graph.output.extend(ports)


def _renamed(value: ValueInfoProto, name: str) -> ValueInfoProto:
    renamed = ValueInfoProto(name=name)
    renamed.type.CopyFrom(value.type)
    return renamed
