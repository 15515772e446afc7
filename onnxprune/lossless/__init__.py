"""What can leave a model at no cost: the result equals the original, not only the masked original.

Found on the graph, never on sample inputs: channels that are zero, that nothing reads, that are constant (and can go into
a bias), and copies of others (whose weights can be added up). Constants and copies are turned into channels that nothing
reads by changing weights, which :class:`~onnxprune.plan.PlanEdit` writes down; what nothing reads then leaves.
"""

from onnxprune.lossless.demand import Slot, bias_slot, is_linear
from onnxprune.lossless.edit import edited
from onnxprune.lossless.handover import Handover
from onnxprune.lossless.search import KINDS, Free, FreeRow, Left, find
from onnxprune.lossless.sums import Sum, all_sums

__all__ = ["KINDS", "Free", "FreeRow", "Handover", "Left", "Slot", "Sum", "all_sums", "bias_slot", "edited", "find", "is_linear"]
