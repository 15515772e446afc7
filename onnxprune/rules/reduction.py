"""Reductions: the axes reduced over must stay whole, except where removed channels add nothing."""

from onnxprune.rules.notation import Call, Signature, parse
from onnxprune.rules.registry import Kind, add, always


def _reduce(call: Call) -> Signature | None:
    """Sums of removed channels that are zero lose nothing; means, maxima and the like would change."""
    every = () if call.attribute("noop_with_empty_axes", 0) else tuple(range(call.rank()))
    axes = call.axes(1, every)
    if axes is None:
        return None
    mark = "" if call.node.op in _ADDITIVE else "!"
    letters = [f"a{i}" for i in range(call.rank())]
    data = " ".join(mark + c if i in axes else c for i, c in enumerate(letters))
    gone = ["1"] if call.attribute("keepdims", 1) else []
    result = [token for i, c in enumerate(letters) for token in (gone if i in axes else [c])]
    return parse(f"{data} -> {' '.join(result)}")


def _arg(call: Call) -> Signature:
    axis = call.axis()
    letters = [f"a{i}" for i in range(call.rank())]
    gone = ["1"] if call.attribute("keepdims", 1) else []
    result = [token for i, c in enumerate(letters) for token in (gone if i == axis else [c])]
    data = " ".join(f"!{c}" if i == axis else c for i, c in enumerate(letters))
    return parse(f"{data} -> {' '.join(result)}")


def _top_k(call: Call) -> Signature:
    axis = call.axis(default=-1)
    letters = [f"a{i}" for i in range(call.rank())]
    data = " ".join(f"!{c}" if i == axis else c for i, c in enumerate(letters))
    result = " ".join("_" if i == axis else c for i, c in enumerate(letters))
    return parse(f"{data} -> {result}, {result}")


_ADDITIVE = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")

_OVER_ZEROS = "over channels that are zero when removed"

add("ReduceSum", signature="* c -> *", build=_reduce, times=(0,), rises=True, note=_OVER_ZEROS)
add("ReduceL1", "ReduceL2", "ReduceSumSquare", signature="* c -> *", build=_reduce, times=(0,), note=_OVER_ZEROS)
add(
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    kind=Kind.MIXING,
    signature="* !c -> *",
    build=_reduce,
    times=(0,),
    steady=always,
    rises=True,
)
add("ReduceProd", kind=Kind.MIXING, signature="* !c -> *", build=_reduce, times=(0,))
add(
    "ReduceLogSum",
    kind=Kind.MIXING,
    signature="* !c -> *",
    build=_reduce,
    zero=False,
    divides=(0,),
    note="of zeros is a barrier",
)
add("ReduceLogSumExp", kind=Kind.MIXING, signature="* !c -> *", build=_reduce, zero=False)
add("ArgMax", "ArgMin", kind=Kind.MIXING, signature="* !c -> *", build=_arg, zero=False, counts=True)
add("TopK", kind=Kind.MIXING, signature="* !c -> * _", build=_top_k, zero=False, counts=True)
