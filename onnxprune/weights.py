"""Weights: read, check and slice one stored tensor at a time, wherever its bytes lie.

A weight is an initializer of the main graph or the value of a ``Constant`` node, which is known by the node's output.
Bytes may be inside the proto or in a file beside the model (external data); those are memory-mapped, never loaded whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.errors import ModelError

Array = npt.NDArray[Any]

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
"""Element types that count as parameters in the sense of a trained network."""

PARAMETERS = FLOATS | {TensorProto.INT8, TensorProto.UINT8}
"""Element types counted in reports: floats, and the bytes that quantised weights are stored in."""

_FIELDS: dict[int, str] = {TensorProto.FLOAT: "float_data", TensorProto.INT64: "int64_data", TensorProto.DOUBLE: "double_data"}
_NIBBLES = frozenset({TensorProto.INT4, TensorProto.UINT4, getattr(TensorProto, "FLOAT4E2M1", -1)})


def describe_type(elem_type: int) -> str:
    """``"float32"`` for ``TensorProto.FLOAT`` and so on; the enum's own name where numpy has none."""
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    except (KeyError, ValueError, TypeError):
        return str(TensorProto.DataType.Name(elem_type)) if elem_type in TensorProto.DataType.values() else str(elem_type)


class Weights(Mapping[str, TensorProto]):
    """The stored tensors of a model by name; values are read on demand.

    Shapes, types and byte counts come from the headers and cost no reading. ``read`` returns a read-only view of the
    bytes where it can.
    """

    def __init__(self, tensors: Mapping[str, TensorProto], folder: Path | None = None) -> None:
        self._tensors = dict(tensors)
        self._folder = folder

    def __getitem__(self, name: str) -> TensorProto:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The declared shape."""
        return tuple(self._tensors[name].dims)

    def elem_type(self, name: str) -> int:
        """The ``TensorProto.DataType`` of the elements."""
        return int(self._tensors[name].data_type)

    def count(self, name: str) -> int:
        """How many elements the declared shape holds."""
        return math.prod(self._tensors[name].dims)

    def is_parameter(self, name: str) -> bool:
        """Whether the tensor counts as parameters in reports (floats and int8/uint8)."""
        return self.elem_type(name) in PARAMETERS

    @property
    def has_external_data(self) -> bool:
        """Whether any tensor keeps its bytes in a file beside the model."""
        return any(_is_external(t) for t in self._tensors.values())

    @property
    def external_bytes(self) -> int:
        """Bytes kept in files beside the model."""
        return sum(_expected_bytes(t) or 0 for t in self._tensors.values() if _is_external(t))

    def read(self, name: str) -> Array:
        """The values as an array of the declared shape. Reads this one tensor; treat the result as read-only."""
        tensor = self._tensors[name]
        if _is_external(tensor):
            return _map_external(tensor, name, self._folder)
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"weight {name!r}: its data can't be read as {describe_type(tensor.data_type)}: {error}") from error

    def inline(self, name: str) -> TensorProto:
        """The tensor with its bytes inside the proto (the stored one itself where they already are)."""
        tensor = self._tensors[name]
        return self.replaced(name, self.read(name)) if _is_external(tensor) else tensor

    def replaced(self, name: str, values: Array) -> TensorProto:
        """A tensor of the same name, type and documentation that holds ``values``."""
        old = self._tensors[name]
        new = TensorProto(name=old.name, data_type=old.data_type, dims=values.shape)
        if old.data_type == TensorProto.STRING or old.data_type in _NIBBLES:
            new.CopyFrom(numpy_helper.from_array(np.asarray(values), old.name))
        else:
            new.raw_data = np.ascontiguousarray(values).tobytes()
        new.doc_string = old.doc_string
        new.metadata_props.extend(old.metadata_props)
        return new

    def check(self) -> None:
        """Check every tensor: sizes match the data, external files are inside the folder, floats are finite.

        Raises:
            ModelError: naming the first tensor at fault.
        """
        for name, tensor in self._tensors.items():
            if any(d < 0 for d in tensor.dims):
                raise ModelError(f"weight {name!r}: negative dimension in its shape {list(tensor.dims)}; the file is damaged")
            _check_size(tensor, name, self._folder)
            if tensor.data_type in FLOATS:
                _check_finite(self.read(name), name)


def _is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _expected_bytes(tensor: TensorProto) -> int | None:
    """Bytes that the declared shape takes, or None where elements have no fixed size."""
    count: int = math.prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        return None
    if tensor.data_type in _NIBBLES:
        return (count + 1) // 2
    try:
        return count * int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)
    except (KeyError, ValueError, TypeError):
        return None


def _check_size(tensor: TensorProto, name: str, folder: Path | None) -> None:
    expected = _expected_bytes(tensor)
    shape = list(tensor.dims)
    if _is_external(tensor):
        _map_external(tensor, name, folder)
    elif tensor.HasField("raw_data"):
        if expected is not None and len(tensor.raw_data) != expected:
            raise ModelError(
                f"weight {name!r}: shape {shape} needs {expected} bytes but the file holds {len(tensor.raw_data)}; "
                "the file is damaged, export it again"
            )
    elif tensor.data_type in _FIELDS:
        field = getattr(tensor, _FIELDS[tensor.data_type])
        if len(field) != math.prod(shape):
            raise ModelError(
                f"weight {name!r}: shape {shape} needs {math.prod(shape)} values but the file holds {len(field)}; "
                "the file is damaged, export it again"
            )


def _check_finite(values: Array, name: str) -> None:
    """Refuse NaN, and infinities except in masks (scalars, and tensors of nothing but zeros and infinities)."""
    if values.size == 0:
        return
    with np.errstate(all="ignore"):
        if np.isfinite(np.sum(values, dtype=None if values.dtype.itemsize >= 4 else np.float32)):
            return
        values = values.astype(np.float64)
        finite = np.isfinite(values)
    if finite.all():
        return
    bad = tuple(int(i) for i in np.argwhere(~finite)[0])
    if np.isnan(values).any():
        raise ModelError(f"weight {name!r}: NaN at index {list(bad)}; the network is damaged, restore it from a good checkpoint")
    if values.size > 1 and np.any(values[finite] != 0):
        raise ModelError(f"weight {name!r}: Inf at index {list(bad)}; the network is damaged, restore it from a good checkpoint")


def _map_external(tensor: TensorProto, name: str, folder: Path | None) -> Array:
    """Memory-map the bytes of an external tensor, after making sure that they lie inside the model's folder."""
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(
            f"weight {name!r}: its data are in the external file {location!r}, but a model given as a proto has no folder; "
            "give the path of the model, or load the data with onnx.load_external_data_for_model first"
        )
    path = _inside(folder, location, name)
    expected = _expected_bytes(tensor)
    if expected is None:
        raise ModelError(f"weight {name!r}: external data of type {describe_type(tensor.data_type)} are not allowed by ONNX")
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(expected)))
    except ValueError as error:
        raise ModelError(f"weight {name!r}: offset or length of its external data is not a number: {error}") from error
    size = path.stat().st_size
    if offset < 0 or length != expected or offset + expected > size:
        raise ModelError(
            f"weight {name!r}: needs {expected} bytes at offset {offset} of {location!r} (declared length {length}), "
            f"which has {size}; the file is incomplete, copy it again"
        )
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if expected == 0:
        return np.zeros(tuple(tensor.dims), dtype)
    if tensor.data_type in _NIBBLES:
        packed = TensorProto(data_type=tensor.data_type, dims=tensor.dims)
        packed.raw_data = np.memmap(path, np.uint8, "r", offset, (expected,)).tobytes()
        return numpy_helper.to_array(packed)
    return np.memmap(path, np.uint8, "r", offset, (expected,)).view(dtype).reshape(tuple(tensor.dims))


def _inside(folder: Path, location: str, name: str) -> Path:
    """The external file's path, if it is a plain file below ``folder`` reached without links."""
    where = f"weight {name!r}: external data {location!r}"
    if not location or Path(location).is_absolute() or "\\" in location or ".." in Path(location).parts:
        raise ModelError(f"{where} lie outside the model's folder; move the file beside the model and correct the reference")
    path = folder / location
    step = folder
    for part in Path(location).parts:
        step = step / part
        if step.is_symlink():
            raise ModelError(f"{where} are reached through a link, which is refused; put the file itself beside the model")
    if not path.is_file():
        raise ModelError(f"{where} are missing from {str(folder)!r}; copy that file beside the model")
    if os.stat(path).st_nlink > 1:
        raise ModelError(f"{where} are a hard link, which is refused; put a copy of the file beside the model")
    return path
