"""Labels flow through the graph, node by node.

Weights' axes get fresh labels. A computing operator ties axes as its line of notation says and hands labels on to its
result (:mod:`~onnxprune.flow.computing`). A movement operator is run on the labels themselves, and where each label
arrives is where it is (:mod:`~onnxprune.flow.moving`). Everything else is a barrier. Which way an axis that was split or
is composed of several is cut, whole rows or the same column in every row, is a *choice*; it is recorded, so that the
caller can ask for another one.
"""

from onnxprune.flow.moving import carried, fill_value, one_gather, stand_ins
from onnxprune.flow.run import flow, matching
from onnxprune.flow.state import Flow, Reroute, Site, Step

__all__ = ["Flow", "Reroute", "Site", "Step", "carried", "fill_value", "flow", "matching", "one_gather", "stand_ins"]
