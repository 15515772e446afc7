"""Sums, means and extremes over axes."""

from onnxprune.gradient.registry import Gradients, vjp
from onnxprune.gradient.tape import Name, Step


@vjp("ReduceSum")
def reduce_sum(op: Step, g: Name, y: Name, x: Name, axes: Name = "") -> Gradients:
    return (op.spread(_kept(op, g), x),)


@vjp("ReduceMean")
def reduce_mean(op: Step, g: Name, y: Name, x: Name, axes: Name = "") -> Gradients:
    return (op.spread(_kept(op, op.Mul(g, op.share(y, x))), x),)


@vjp("ReduceMax")
def reduce_max(op: Step, g: Name, y: Name, x: Name, axes: Name = "") -> Gradients:
    return (op.to_largest(_kept(op, g), _kept(op, y), x, _axes(op)),)


def _axes(op: Step) -> list[int]:
    """The axes that were reduced; all of them by default."""
    none = () if op.call.attribute("noop_with_empty_axes", 0) else tuple(range(op.call.rank()))
    axes = op.call.axes(1, none)
    op.require(axes is not None)
    return sorted(axes or ())


def _kept(op: Step, value: Name) -> Name:
    """A tensor of the result's shape with the reduced axes as axes of size 1."""
    return value if op.call.attribute("keepdims", 1) else op.unsqueeze(value, _axes(op))
