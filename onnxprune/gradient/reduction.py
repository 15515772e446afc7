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


@vjp("ReduceMin")
def reduce_min(op: Step, g: Name, y: Name, x: Name, axes: Name = "") -> Gradients:
    return (op.to_largest(_kept(op, g), _kept(op, op.Neg(y)), op.Neg(x), _axes(op)),)


@vjp("ReduceL1")
def reduce_l1(op: Step, g: Name, y: Name, x: Name, axes: Name = "") -> Gradients:
    return (op.Mul(*op.norm_slope(_kept(op, g), y, x, 1)),)


@vjp("ReduceL2")
def reduce_l2(op: Step, g: Name, y: Name, x: Name, axes: Name = "") -> Gradients:
    return (op.Mul(*op.norm_slope(_kept(op, g), _kept(op, y), x, 2)),)


@vjp("ReduceSumSquare")
def reduce_sum_square(op: Step, g: Name, y: Name, x: Name, axes: Name = "") -> Gradients:
    return (op.Mul(op.scale(_kept(op, g), 2), x),)


@vjp("ReduceLogSum")
def reduce_log_sum(op: Step, g: Name, y: Name, x: Name, axes: Name = "") -> Gradients:
    return (op.spread(_kept(op, op.Div(g, op.Exp(y))), x),)


@vjp("ReduceLogSumExp")
def reduce_log_sum_exp(op: Step, g: Name, y: Name, x: Name, axes: Name = "") -> Gradients:
    return (op.Mul(_kept(op, g), op.Exp(op.Sub(x, _kept(op, y)))),)


@vjp("ReduceProd")
def reduce_prod(op: Step, g: Name, y: Name, x: Name, axes: Name = "") -> Gradients:
    """The product of the others: of all but the zeros over the element, where there are no other zeros."""
    zero = op.at_zero(x)
    filled, axes_ = op.Add(x, zero), _axes(op)
    others = op.Sub(op.sum(zero, axes_), zero)
    rest = op.Div(op.reduce("ReduceProd", 18, filled, axes_), filled)
    return (op.Mul(_kept(op, g), op.Mul(rest, op.at_zero(others))),)


def _axes(op: Step) -> list[int]:
    """The axes that were reduced; all of them by default."""
    none = () if op.call.attribute("noop_with_empty_axes", 0) else tuple(range(op.call.rank()))
    axes = op.call.axes(1, none)
    op.require(axes is not None)
    return sorted(axes or ())


def _kept(op: Step, value: Name) -> Name:
    """A tensor of the result's shape with the reduced axes as axes of size 1."""
    return value if op.call.attribute("keepdims", 1) else op.unsqueeze(value, _axes(op))
