"""TABLE 2: vector-Jacobian products that emit ONNX nodes.

A rule is a function that writes, for the gradient ``g`` of an operator's first result, the gradients of its operands:
arguments and their order are the operator's own. ``op.Mul(a, b)`` adds a node and gives its output's name, ``op.call`` is
the node with what is known of its operands. An operand may go without (None); if something depends on it, the gradient is
missing there, and so it is at an operator without a rule. Every node must be one of the model's own opset, and sizes that
are not the same for all inputs come from ``Shape`` nodes. What nothing reads is left out in the end.

    @vjp("Sigmoid")
    def sigmoid(op: Step, g: str, y: str, x: str) -> Gradients:
        return (op.Mul(g, op.Sub(y, op.Mul(y, y))),)

To add an operator, add a function to the file of its family:

>>> from onnxprune.gradient import find
>>> find("Sigmoid").__name__
'sigmoid'
>>> find("NonMaxSuppression") is None
True
"""

from onnxprune.gradient import definition, elementwise, indexing, linear, movement, normalization, pooling, reduction, sampling
from onnxprune.gradient.backward import Backward, backward
from onnxprune.gradient.coverage import Derivative, derivative
from onnxprune.gradient.differentiate import LOSS, Gate, GradientGraph, Wrt, differentiate, gradient_graph
from onnxprune.gradient.loss import LOSSES, before
from onnxprune.gradient.registry import ZERO, find, vjp

__all__ = [
    "Backward",
    "Derivative",
    "Gate",
    "GradientGraph",
    "LOSS",
    "LOSSES",
    "Wrt",
    "ZERO",
    "backward",
    "before",
    "definition",
    "derivative",
    "differentiate",
    "elementwise",
    "find",
    "gradient_graph",
    "indexing",
    "linear",
    "movement",
    "normalization",
    "pooling",
    "reduction",
    "sampling",
    "vjp",
]
