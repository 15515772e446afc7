"""Subgraphs: what crosses the border of an ``If``, ``Loop`` or ``Scan``.

Their nodes are part of the graph like any others. A row here is about the ways in and out: a branch's results and the
node's are one tensor, a state is the same tensor before, in and after the repetitions.
"""

from onnxprune.rules.notation import Call, Signature, parse
from onnxprune.rules.registry import add


def _cross(call: Call) -> Signature:
    """The axes pass; what is scanned loses the scanned axis, what is stacked gains one."""
    removed, added = call.attribute("removes"), call.attribute("adds")
    if removed is None and added is None:
        return parse("..., ... -> ...")
    outer = [f"a{i}" for i in range(call.rank() + (removed is None))]
    outer[removed if removed is not None else added] = "_"
    sides = " ".join(outer), " ".join(c for c in outer if c != "_")
    return parse(" -> ".join(sides if removed is not None else reversed(sides)))


add("If", "Loop", "Scan", signature="..., ... -> ...", build=_cross, plus=(0, 1), note="subgraphs are looked into")
