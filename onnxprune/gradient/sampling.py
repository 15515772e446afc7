"""Resizing: what the runtime makes of each element is asked, and taken back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import AttributeProto, NodeProto, ValueInfoProto, helper

from onnxprune.errors import ModelError
from onnxprune.gradient.dense import along
from onnxprune.gradient.registry import Gradients, vjp
from onnxprune.gradient.tape import Name, Step
from onnxprune.runtime import Session
from onnxprune.weights import Array

_PROBE = 3
"""The size at which an axis is looked at that has none of its own."""

_LARGEST = 1 << 24
"""So many elements a matrix may have."""


@vjp("Resize", "Upsample")
def resize(op: Step, g: Name, y: Name, x: Name, *how: Name) -> Gradients:
    """Along each axis a matrix; where elements are only repeated, the sum of each one's copies."""
    call, rank = op.call, op.call.rank()
    stretched = call.attribute("keep_aspect_ratio_policy", "stretch") == "stretch"
    op.require(stretched and call.attribute("coordinate_transformation_mode") != "tf_crop_and_resize" and rank > 1)
    copies, matrices = [1] * rank, {}
    for axis, scale in enumerate(_scales(op, len(how))):
        fixed = op.fixed(0)[axis] and op.fixed_result()[axis]
        before, after = call.shape(0)[axis], op.result[axis]
        if scale == 1 or (scale is None and op.keeps(axis)):
            continue
        op.require(fixed or scale is not None)
        op.require(not fixed or before * after <= _LARGEST)
        size = before if fixed else _PROBE
        matrix = _matrix(op, axis, size, scale if scale is not None else after / before, None if scale else after)
        times = max(1, matrix.shape[1] // size)
        if matrix.shape == (size, size * times) and (matrix == np.kron(np.eye(size), np.ones(times))).all():
            copies[axis] = times
            continue
        op.require(fixed)
        matrices[axis] = matrix
    for axis, matrix in matrices.items():
        g = along(op, g, axis, rank, matrix.T)
    return (_summed(op, g, copies),)


def _scales(op: Step, operands: int) -> Sequence[float | None]:
    """By how much each axis is stretched; None where its size is given instead."""
    call, rank = op.call, op.call.rank()
    given = call.attribute("scales")
    if given is None:
        place = 1 if call.node.op == "Upsample" or call.version < 11 else 2
        value = op.known(place) if call.node.input(place) else None
        given = None if value is None or not value.size else np.ravel(value).tolist()
        op.require(given is not None or call.node.input(3))
    if given is None:
        return [None] * rank
    axes = call.attribute("axes") or range(rank)
    by_axis = dict(zip((axis % rank for axis in axes), given, strict=True))
    return [by_axis.get(axis, 1.0) for axis in range(rank)]


def _matrix(op: Step, axis: int, size: int, scale: float, target: int | None) -> Array:
    """What becomes of each element of an axis of some size: (before, after), by running the operator on ones among zeros.

    Raises:
        Unsupported: the runtime does not do that.
    """
    rank, attributes = op.call.rank(), {a.name: a for a in op.forward.attribute if a.name not in ("scales", "axes")}
    across = 0 if axis else 1
    shape = [1] * rank
    shape[across] = shape[axis] = size
    factors = np.ones(rank, np.float32)
    factors[axis] = scale
    sizes = np.array(shape, np.int64)
    sizes[axis] = target or 0
    node, feeds = _node(op, attributes, factors, sizes if target else None)
    feeds["x"] = np.moveaxis(np.eye(size, dtype=np.float32).reshape(size, size, *[1] * (rank - 2)), (0, 1), (across, axis))
    taken = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()]
    graph = helper.make_graph([node], "node", taken, [ValueInfoProto(name="y")])
    opset = [helper.make_opsetid("", op.tape.opset)]
    try:
        (found,) = Session(helper.make_model(graph, opset_imports=opset, ir_version=8), optimise=False).run(feeds)
    except ModelError:
        op.require(False)
    matrix: Array = np.moveaxis(found, (across, axis), (0, 1)).reshape(size, -1)
    return matrix


def _node(
    op: Step, attributes: dict[str, AttributeProto], factors: Array, sizes: Array | None
) -> tuple[NodeProto, dict[str, Array]]:
    """The operator for one axis, and what it is told of the sizes."""
    opset = op.tape.opset
    if opset < 9:
        names, feeds, extra = ["x"], {}, [helper.make_attribute("scales", factors.tolist())]
    elif opset < 11:
        names, feeds, extra = ["x", "scales"], {"scales": factors}, []
    else:
        given, extra = {"scales": factors} if sizes is None else {"sizes": sizes}, []
        if opset < 13:  # regions and scales may be empty, but not left out
            given = {"roi": np.zeros(0, np.float32), "scales": np.zeros(0, np.float32), **given}
        names, feeds = ["x", *(n if n in given else "" for n in ("roi", "scales", "sizes"))], given
    node = helper.make_node(op.call.node.op, names, ["y"])
    node.attribute.extend([*attributes.values(), *extra])
    return node, dict(feeds)


def _summed(op: Step, g: Name, copies: Sequence[int]) -> Name:
    """The sum over each element's copies: the mean, times how many there are, of windows side by side."""
    if max(copies) == 1:
        return g
    op.require(max(copies[:2]) == 1)
    kernel = list(copies[2:])
    return op.scale(op.AveragePool(g, kernel_shape=kernel, strides=kernel), int(np.prod(kernel)))
