"""Device profiles: how fast onnxruntime runs layers of which width on a machine, and what follows for pruned models."""

from onnxprune.profile.device import DeviceProfile, profile
from onnxprune.profile.pace import Pace
from onnxprune.profile.pacer import Pacer

__all__ = ["DeviceProfile", "Pace", "Pacer", "profile"]
