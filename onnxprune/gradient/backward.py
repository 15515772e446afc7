"""The backward pass: from a tensor against the order of the nodes to what it depends on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from onnxprune.assembly import all_names, arranged
from onnxprune.errors import GradientError, ModelError
from onnxprune.gradient.registry import QUANTISERS, ZERO, find, takes_several
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


class Extended:
    """A model to which the nodes of its gradient are added.

    ``tape``: the new nodes. ``masked``: stored tensors instead of which the backward pass reads others.
    """

    def __init__(self, graph: Graph, shapes: Shapes, masked: Mapping[str, Name] | None = None) -> None:
        self.graph, self.shapes, self.masked = graph, shapes, masked or {}
        self.model = ModelProto()
        self.model.CopyFrom(graph.assemble().complete())
        self._protos = _arrange(graph, self.model)
        self._taken = all_names(self.model.graph)
        self.tape = Tape(graph.opset.get("", 1), self._taken | set(graph.weights))

    def reserve(self, names: Iterable[Name]) -> None:
        """Make sure that no tensor of the model has one of these names.

        Raises:
            ModelError: one has.
        """
        reserved = self._taken.intersection(names)
        if reserved:
            raise ModelError(f"a tensor is called {min(reserved)!r}, as the gradient would be; rename it")

    def step(self, node: Node, active: Sequence[bool] = ()) -> Step:
        """What a rule gets to know of a node. ``active``: of which operands the gradient is read.

        Raises:
            Unsupported: it is no node of the graph itself.
        """
        if node.index not in self._protos:
            raise Unsupported
        return Step(self.tape, describe(self.graph, node, self.shapes), self.shapes, self._protos[node.index], active)

    def gradients(self, seeds: Mapping[str, Name], sources: Collection[str]) -> dict[str, list[Name]]:
        """The gradients of tensors on the way from ``seeds``, gradients that are known, to ``sources``; to be summed up.

        Raises:
            GradientError: there is no rule for a node on the way.
        """
        active = self._active(sources)
        found: dict[str, list[Name]] = {name: [seed] for name, seed in seeds.items()}
        for node in reversed(self.graph.nodes):
            given = [found.get(name) for name in node.outputs]
            if not any(given) or active.isdisjoint(map(self._real, (*node.inputs, *node.captured))):
                continue
            try:
                results = self._through(node, given, active)
            except Unsupported as error:
                raise GradientError(
                    f"node {node.label!r} ({node.op}) has no gradient that is known, for this opset and these operands; "
                    "take finite differences, or leave out what comes before it",
                    node.label,
                ) from error
            for name, gradient in results:
                found.setdefault(name, []).append(gradient)
        return found

    def _real(self, name: str) -> str:
        """The stored tensor that a name stands for."""
        return self.graph.uses[name].tensor if name in self.graph.uses else name

    def _active(self, sources: Collection[str]) -> set[str]:
        """Tensors that depend on others, not in steps; also quantised ones, at which there is no rule to go on by."""
        types, floats = self.shapes.elem_types, (0, *FLOATS)
        active = set(sources)
        for node in self.graph.nodes:
            read = active.intersection(map(self._real, (*node.inputs, *node.captured)))
            if read and node.op not in ZERO:
                quantised = not node.standard or node.op in QUANTISERS
                every = quantised or any(types.get(name, 0) not in floats for name in read)
                active |= {name for name in node.outputs if name and (every or types.get(name, 0) in floats)}
        return active

    def _through(self, node: Node, found: Sequence[list[Name] | None], active: set[str]) -> list[tuple[str, Name]]:
        """The gradients of a node's operands: (operand, gradient). Fan-out is summed up here."""
        rule = find(node.op) if node.standard and not node.border else None
        several = takes_several(node.op)
        if rule is None or not (several or (found[0] is not None and not any(found[1:]))):
            raise Unsupported
        inputs = [self._real(name) for name in node.inputs]
        known = (n for n in (node.outputs[0], *inputs) if n == node.outputs[0] or n in active)
        if any(self.shapes.get(n) is None for n in known):
            raise Unsupported
        step = self.step(node, [name in active for name in inputs])
        gs = [None if parts is None else parts[0] if len(parts) == 1 else step.Sum(*parts) for parts in found]
        names = [self.masked.get(name, name) for name in inputs]
        given = (tuple(gs), tuple(node.outputs)) if several else (gs[0], node.outputs[0])
        results = [*rule(step, *given, *names), *(None for _ in names)]
        pairs = []
        for name, result in zip(inputs, results, strict=False):
            if name in active:
                if result is None:
                    raise Unsupported
                pairs.append((name, result))
        return pairs

    def name(self, parts: Sequence[Name], name: Name) -> None:
        """Give the sum of some tensors a name."""
        self.tape.write("Sum" if len(parts) > 1 else "Identity", parts, {})
        self.tape.nodes[-1].output[:] = [name]

    def finish(self, inputs: Iterable[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> ModelProto:
        """The model with further inputs, these outputs alone, and the new nodes that they need."""
        model = self.model
        model.graph.input.extend(inputs)
        nodes = self.tape.needed({port.name for port in outputs})
        model.graph.node.extend(nodes)
        read = dict.fromkeys([*(name for node in nodes for name in node.input), *(port.name for port in outputs)])
        model.graph.initializer.extend(self.tape.constants[name] for name in read if name in self.tape.constants)
        model.ir_version = max(model.ir_version, _INITIALIZERS_ALONE)
        del model.graph.output[:]
        model.graph.output.extend(outputs)
        return model


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
    extended = Extended(graph, shapes)
    extended.reserve((SEED, *(PREFIX + port.name for port in graph.inputs)))
    sources = {port.name for port in graph.inputs if port.elem_type in FLOATS}
    try:
        found = extended.gradients({output: SEED}, sources)
    except GradientError as error:
        return Backward(None, error.node)
    declared = {value.name: value for value in (*extended.model.graph.input, *extended.model.graph.output)}
    ports = [declared[output]]
    for name in (port.name for port in graph.inputs if port.name in sources and found.get(port.name)):
        extended.name(found[name], PREFIX + name)
        ports.append(renamed(declared[name], PREFIX + name))
    seed = renamed(declared[output], SEED)
    if not seed.type.tensor_type.HasField("shape") and shapes.get(output) is not None:
        for size, fixed in zip(shapes.shapes[output], shapes.fixed_dims(output), strict=True):
            seed.type.tensor_type.shape.dim.add(**{"dim_value": size} if fixed else {})
    return Backward(extended.finish([seed], ports))


def renamed(value: ValueInfoProto, name: str) -> ValueInfoProto:
    """The declaration of a tensor of the same type and shape."""
    found = ValueInfoProto(name=name)
    found.type.CopyFrom(value.type)
    return found


def declared(name: str, elem_type: int = TensorProto.UNDEFINED, shape: Sequence[int | str] | None = None) -> ValueInfoProto:
    """The declaration of a tensor; of none of these where they are not known."""
    found = ValueInfoProto(name=name)
    if elem_type:
        found.type.tensor_type.elem_type = elem_type
    for size in shape or ():
        found.type.tensor_type.shape.dim.add(**{"dim_value" if isinstance(size, int) else "dim_param": size})
    if shape is not None:
        found.type.tensor_type.shape.SetInParent()
    return found


def _arrange(graph: Graph, model: ModelProto) -> dict[int, NodeProto]:
    """Put the nodes of the model in an order in which they run; returns them by ``Node.index``."""
    order = arranged(model.graph, count(), {node.index: at for at, node in enumerate(graph.nodes)})
    return dict(zip(order, open_nodes(model.graph), strict=True))
