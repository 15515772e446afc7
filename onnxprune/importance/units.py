"""Channels of a layer that sees one position at a time, as units."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.weights import Array


@dataclass(frozen=True, eq=False)
class Units:
    """Channels as units of a dense layer, a row for each, float32.

    ``incoming``: weights (units, inputs) and ``bias`` (units,), with what scales and shifts each unit before it is bent (a
    BatchNormalization, say) multiplied in; ``outgoing``: the weights that read them (units, outputs). ``scales``: whether
    twice a unit's sum gives twice its value, as with ReLU.
    """

    incoming: Array
    bias: Array
    outgoing: Array
    scales: bool
