"""Rotation: channels that only linear layers make and read are turned to their principal axes before any is chosen.

Between linear layers nothing depends on the basis that channels are written in: an orthogonal matrix on the weights that make
them and its transpose on those that read them cancel out. Turned to principal axes, few channels carry most of what there is, so
that far less is lost than by leaving out some of those that training happened to end with (Ashkboos et al. 2024, "SliceGPT",
arXiv:2401.15024; there for transformers with RMSNorm). Where that holds is found out by trying each operator.
"""

from onnxprune.rotation.turning import rotated

__all__ = ["rotated"]
