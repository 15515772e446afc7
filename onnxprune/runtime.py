"""onnxruntime: sessions, feeds and intermediate results; the only module that imports it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, ValueInfoProto
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from onnxprune.errors import ModelError
from onnxprune.graph import Port
from onnxprune.weights import Array

ort.set_default_logger_severity(4)

_ORT_ERRORS = tuple(
    getattr(ort_errors, name)
    for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "NoSuchFile", "RuntimeException")
)

PROBE_SIZES = (64, 224, 32, 128, 16, 299)
"""Sizes tried for dynamic dimensions, in this order, until the model runs."""

Feeds = Mapping[str, Array]


class Session:
    """A model in onnxruntime on the CPU, deterministic, with a given number of threads."""

    def __init__(self, model: ModelProto, *, threads: int = 1, optimise: bool = True) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except _ORT_ERRORS as error:
            raise ModelError(f"onnxruntime {ort.__version__} can't load the model: {_reason(error)}") from error

    @property
    def outputs(self) -> list[str]:
        """Names of the graph outputs, in order."""
        return [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[Any]:
        """Run once. Returns the outputs in order (arrays, except for sequences and maps).

        Raises:
            ModelError: with onnxruntime's reason.
        """
        try:
            return list(self._session.run(list(outputs) if outputs is not None else None, dict(feeds)))
        except (*_ORT_ERRORS, ValueError) as error:
            raise ModelError(f"onnxruntime {ort.__version__} can't run the model: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:240]


def concrete(port: Port, *, batch: int, size: int) -> tuple[int, ...]:
    """A concrete shape for a graph input: ``batch`` for a dynamic first axis, ``size`` for other dynamic axes."""
    dims = port.shape if port.shape is not None else ()
    spatial = size if len(dims) >= 4 else min(size, 16)
    return tuple(d if isinstance(d, int) else (batch if i == 0 else spatial) for i, d in enumerate(dims))


def random_feeds(inputs: Iterable[Port], shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator) -> dict[str, Array]:
    """Standard normal floats, zeros and ones for integers, all true for booleans."""
    feeds: dict[str, Array] = {}
    for port in inputs:
        try:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(port.elem_type)
        except KeyError as error:
            raise ModelError(
                f"graph input {port.name!r} is not a tensor of numbers; such models can't be run on random data"
            ) from error
        shape = shapes[port.name]
        if dtype.kind == "f" or dtype.name == "bfloat16":
            feeds[port.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            feeds[port.name] = np.ones(shape, dtype)
        elif dtype.kind in "iu":
            feeds[port.name] = rng.integers(0, 2, shape).astype(dtype)
        else:
            raise ModelError(f"graph input {port.name!r} has type {dtype}; such models can't be run on random data")
    return feeds


def tapped(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """The same model with the tensors called ``names``, intermediate ones included, as further outputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    known = {o.name for o in copy.graph.output}
    copy.graph.output.extend(ValueInfoProto(name=n) for n in dict.fromkeys(names) if n and n not in known)
    return copy
