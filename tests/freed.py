"""Makes channels of a model free, in ways that are known to be, by editing stored weights alone."""

from __future__ import annotations

import judge
import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.channels import ChannelGroup, Coupling, Member, analyse
from onnxprune.graph import load


class Maker:
    """A model whose weights are edited channel by channel; ``made`` counts by group name what was made free."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.coupling: Coupling = analyse(load(model))
        self.groups = self.coupling.groups
        self.made: dict[str, int] = {}
        self._tensors = judge.stored(self.model)
        self._arrays: dict[str, np.ndarray] = {}

    def rows(self, member: Member) -> np.ndarray:
        """The member's tensor with its axis first, to be written to."""
        name = member.site.tensor
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self._tensors[name]).copy()
        return np.moveaxis(self._arrays[name], member.site.axis, 0)

    def positions(self, member: Member, channel: int) -> np.ndarray:
        return member.positions[member.channels == channel]

    def is_vector(self, member: Member) -> bool:
        shape = self.coupling.graph.weights.shape(member.site.tensor)
        return max(shape) == np.prod(shape)

    def written(self, group: ChannelGroup) -> list[Member]:
        """Where a channel is made: filters, biases and scales."""
        return [m for m in group.members if m.producer or self.is_vector(m)]

    def zero(self, group: ChannelGroup, channel: int) -> None:
        """Filters, biases and scales of zero."""
        for member in self.written(group):
            self.rows(member)[self.positions(member, channel)] = 0
        self._count(group)

    def ignore(self, group: ChannelGroup, channel: int) -> None:
        """Weights of zero wherever the channel is read."""
        for member in group.members:
            if not member.producer and not self.is_vector(member):
                self.rows(member)[self.positions(member, channel)] = 0
        self._count(group)

    def double(self, group: ChannelGroup, channel: int, like: int) -> None:
        """Filters, biases and scales of another channel."""
        for member in self.written(group):
            rows = self.rows(member)
            rows[self.positions(member, channel)] = rows[self.positions(member, like)]
        self._count(group)

    def _count(self, group: ChannelGroup) -> None:
        self.made[group.name] = self.made.get(group.name, 0) + 1

    def finish(self) -> onnx.ModelProto:
        for name, values in self._arrays.items():
            self._tensors[name].CopyFrom(numpy_helper.from_array(values, self._tensors[name].name))
        return self.model


def assert_original(
    original: onnx.ModelProto, pruned: onnx.ModelProto, seed: int = 0, scales: tuple[int, ...] = (1, 30, 0)
) -> None:
    """The pruned model gives what the original gives, wherever that is finite: on unit inputs, large ones, and zeros."""
    inputs = judge.feeds(original, seed)
    half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in judge.stored(original).values())
    for scale in scales:
        scaled = {n: (v * scale).astype(v.dtype) if v.dtype.kind == "f" else v for n, v in inputs.items()}
        for want, got in zip(judge.run(original, scaled), judge.run(pruned, scaled), strict=True):
            assert want.shape == got.shape, "pruned differs from the original in shape"
            finite = np.isfinite(want) if want.dtype.kind == "f" else np.ones(want.shape, np.bool_)
            want, got = (v[finite].astype(np.float64) for v in (want, got))
            gap = np.abs(want - got).max(initial=0) / max(np.abs(want).max(initial=0), 1e-6)
            assert gap <= (2e-2 if half else judge.RTOL), f"pruned differs from the original by {gap:.2g}"
