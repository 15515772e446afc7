"""All linear layers of a model."""

from __future__ import annotations

from onnxprune.channels import Coupling
from onnxprune.leastsquares.linear import Linear, Product
from onnxprune.leastsquares.recurrent import gates_of
from onnxprune.lossless import all_sums
from onnxprune.rules.recurrent import GATES


def linear_layers(coupling: Coupling) -> list[Linear]:
    """The linear layers with stored float weights whose tensors can be seen, in the order of the graph.

    What is inside the subgraph of an ``If``, ``Loop`` or ``Scan`` can't.
    """
    outer = visible(coupling)
    found: list[Linear] = []
    for sum_ in all_sums(coupling):
        node = sum_.call.node
        if outer.isdisjoint(node.outputs):
            continue
        if node.standard and node.op in GATES:
            found += gates_of(coupling, sum_.call)
        elif (layer := Product.of(coupling, sum_)) is not None:
            found.append(layer)
    return found


def visible(coupling: Coupling) -> set[str]:
    """The tensors that can be made outputs of the model: those of no subgraph."""
    return {name for node in coupling.graph.proto.graph.node for name in node.output if name}
