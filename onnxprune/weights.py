"""Weights: read, check and slice one stored tensor at a time, wherever its bytes lie.

A weight is an initializer of the main graph or the value of a ``Constant`` node, which is known by the node's output.
Bytes may be inside the proto or in a file beside the model (external data); those are memory-mapped, never loaded whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
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

_SMALL = frozenset({TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4})

QUANTISED = _SMALL | {TensorProto.INT16, TensorProto.UINT16}
"""Element types of quantised weights, in which a zero point stands for zero."""

PARAMETERS = FLOATS | _SMALL
"""Element types counted in reports: floats, and what quantised weights are stored in."""

ELEMENT_LIMIT = 1 << 31
"""A tensor declared larger than this is refused: no device this is meant for could hold it."""

EMPTY_LIMIT = 1 << 24
"""The same for each dimension of a tensor without elements, whose file says nothing about its size."""

PIECE = 1 << 24
"""Bytes of a tensor that are worked on at a time; temporaries are a few times as large."""

Box = tuple[slice, ...]
"""A part of a tensor: which stretch of each axis."""

PACKED = {
    getattr(TensorProto, name): bits
    for name, bits in (
        *(("INT4", 4), ("UINT4", 4), ("INT2", 2), ("UINT2", 2)),
        *(("FLOAT4E2M1", 4), ("FLOAT6E2M3", 6), ("FLOAT6E3M2", 6)),
    )
    if hasattr(TensorProto, name)
}
"""Bits of the elements of which several share a byte."""

_FIELDS: dict[int, str] = {
    **dict.fromkeys((TensorProto.FLOAT, TensorProto.COMPLEX64), "float_data"),
    **dict.fromkeys((TensorProto.DOUBLE, TensorProto.COMPLEX128), "double_data"),
    **dict.fromkeys((TensorProto.UINT32, TensorProto.UINT64), "uint64_data"),
    TensorProto.INT64: "int64_data",
    TensorProto.STRING: "string_data",
}
"""Where values are stored that are not raw bytes; in ``int32_data`` for all other types."""


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
        self.folder = folder

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
        return any(is_external(t) for t in self._tensors.values())

    @property
    def external_bytes(self) -> int:
        """Bytes kept in files beside the model."""
        return sum(raw_bytes(t) or 0 for t in {id(t): t for t in self._tensors.values()}.values() if is_external(t))

    def read(self, name: str) -> Array:
        """The values as an array of the declared shape. Reads this one tensor; treat the result as read-only."""
        return read_tensor(self._tensors[name], name, self.folder)

    def pieces(self, name: str) -> Iterator[tuple[Box, Array]]:
        """The values part by part, in the order in which they are stored; a small tensor in one part."""
        return pieces(self.read(name))

    def updated(self, tensors: Mapping[str, TensorProto], without: Iterable[str] = ()) -> Weights:
        """The same stored tensors with some put in their place, or added, and others left out."""
        return Weights({n: t for n, t in (self._tensors | dict(tensors)).items() if n not in set(without)}, self.folder)

    def replaced(self, name: str, values: Array) -> TensorProto:
        """A tensor of the same name, type and documentation that holds ``values``."""
        return replaced(self._tensors[name], values)


def pieces(values: Array, limit: int | None = None) -> Iterator[tuple[Box, Array]]:
    """An array part by part, in the order of its elements, each of at most ``limit`` bytes (``PIECE``)."""
    limit = limit or PIECE
    inner = [values.itemsize * math.prod(values.shape[axis + 1 :]) for axis in range(values.ndim)]
    axis = next((k for k, size in enumerate(inner) if size <= limit), None)
    if axis is None or values.nbytes <= limit:
        yield tuple(slice(0, size) for size in values.shape), values
        return
    step = limit // inner[axis]
    rest = tuple(slice(0, size) for size in values.shape[axis + 1 :])
    for outer in np.ndindex(values.shape[:axis]):
        for start in range(0, values.shape[axis], step):
            stretch = slice(start, min(start + step, values.shape[axis]))
            box = (*(slice(i, i + 1) for i in outer), stretch, *rest)
            yield box, values[box]


def check(tensor: TensorProto, name: str, folder: Path | None, *, mask: bool = True) -> None:
    """Check that a tensor's size matches its data, that its external file is inside the folder, and that floats are finite.

    Args:
        mask: infinities are fine where they mark something: scalars, and tensors of nothing but zeros and infinities.

    Raises:
        ModelError: naming the tensor.
    """
    shape = list(tensor.dims)
    if any(d < 0 for d in shape):
        raise ModelError(f"weight {name!r}: its shape {shape} has a negative dimension; the file is damaged, export it again")
    if math.prod(shape) > ELEMENT_LIMIT or (0 in shape and max(shape) > EMPTY_LIMIT):
        raise ModelError(f"weight {name!r}: its shape {shape} is absurdly large; the file is damaged, export it again")
    if tensor.data_type == TensorProto.UNDEFINED or tensor.data_type not in TensorProto.DataType.values():
        raise ModelError(f"weight {name!r}: its element type {tensor.data_type} does not exist; upgrade onnx, or export it again")
    if not is_external(tensor):
        _check_size(tensor, name)
    if tensor.data_type in FLOATS:
        _check_finite(read_tensor(tensor, name, folder), name, mask=mask)
    elif is_external(tensor):
        _map_external(tensor, name, folder)


def inlined(tensor: TensorProto, name: str, folder: Path | None) -> TensorProto:
    """The tensor with its bytes inside the proto (itself where they already are)."""
    return replaced(tensor, read_tensor(tensor, name, folder)) if is_external(tensor) else tensor


def external_file(tensor: TensorProto, folder: Path) -> Path | None:
    """Where a tensor says that its data are; None where they are inside the proto."""
    if not is_external(tensor):
        return None
    return folder / next((e.value for e in tensor.external_data if e.key == "location"), "")


def read_tensor(tensor: TensorProto, name: str, folder: Path | None) -> Array:
    """The values as an array of the declared shape; a view of their bytes where that is possible."""
    if is_external(tensor):
        return _map_external(tensor, name, folder)
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"weight {name!r}: its data can't be read as {describe_type(tensor.data_type)}: {reason}") from error


def replaced(old: TensorProto, values: Array) -> TensorProto:
    """A tensor of the same name, type and documentation that holds ``values``."""
    new = TensorProto(name=old.name, data_type=old.data_type, dims=values.shape)
    if old.data_type == TensorProto.STRING or old.data_type in PACKED:
        new.CopyFrom(numpy_helper.from_array(np.asarray(values), old.name))
    else:
        new.raw_data = np.ascontiguousarray(values).tobytes()
    if old.HasField("doc_string"):
        new.doc_string = old.doc_string
    new.metadata_props.extend(old.metadata_props)
    return new


def is_external(tensor: TensorProto) -> bool:
    """Whether the bytes lie in a file beside the model."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def raw_bytes(tensor: TensorProto) -> int | None:
    """Bytes that the declared shape takes, or None where elements have no fixed size."""
    count: int = math.prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        return None
    if tensor.data_type in PACKED:
        return -(-count * PACKED[tensor.data_type] // 8)
    try:
        return count * int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)
    except (KeyError, ValueError, TypeError):
        return None


def _check_size(tensor: TensorProto, name: str) -> None:
    """Whether the proto holds as many bytes or values as the shape needs."""
    if tensor.HasField("raw_data"):
        needed, found, unit = raw_bytes(tensor), len(tensor.raw_data), "bytes"
    else:
        field = _FIELDS.get(tensor.data_type, "int32_data")
        needed, found, unit = math.prod(tensor.dims), len(getattr(tensor, field)), "values"
        if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
            needed *= 2
        elif PACKED.get(tensor.data_type, 6) != 6:  # those of 6 bits are packed among raw bytes only
            needed = raw_bytes(tensor)
    if found != needed:
        raise ModelError(
            f"weight {name!r}: shape {list(tensor.dims)} needs {needed or 'no'} {unit} but the file holds {found}; "
            "the file is damaged, export it again"
        )


def _check_finite(values: Array, name: str, *, mask: bool) -> None:
    """Refuse NaN, and infinities where they do not mark anything."""
    total = None if values.dtype.itemsize >= 4 else np.float32
    with np.errstate(all="ignore"):
        odd = [(box, part) for box, part in pieces(values) if not np.isfinite(np.sum(part, dtype=total))]
        bad = next(((b, p, np.isnan(p)) for b, p in odd if np.isnan(p).any()), None)
        bad = bad or next(((b, p, ~np.isfinite(p)) for b, p in odd if not np.isfinite(p).all()), None)
        if bad is None:
            return
        box, part, where = bad
        marks = mask and not np.isnan(part).any()
        if marks and (values.size == 1 or not any(np.any(p[np.isfinite(p)] != 0) for _, p in pieces(values))):
            return
    place = np.unravel_index(int(np.argmax(where)), part.shape)
    index = [int(i) + side.start for i, side in zip(place, box, strict=True)]
    what = "NaN" if np.isnan(part[place]) else "Inf"
    raise ModelError(f"weight {name!r}: {what} at index {index}; the network is damaged, restore it from a good checkpoint")


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
    expected = raw_bytes(tensor)
    if expected is None:
        raise ModelError(
            f"weight {name!r}: external data of type {describe_type(tensor.data_type)} are not allowed by ONNX; "
            "store them inside the model"
        )
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(expected)))
    except ValueError as error:
        raise ModelError(f"weight {name!r}: offset or length of its external data is no number; export it again") from error
    size = path.stat().st_size
    if offset < 0 or length != expected or offset + expected > size:
        raise ModelError(
            f"weight {name!r}: needs {expected} bytes at offset {offset} of {location!r} (declared length {length}), "
            f"which has {size}; the file is incomplete, copy it again"
        )
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if expected == 0:
        return np.zeros(tuple(tensor.dims), dtype)
    try:
        stored = np.memmap(path, np.uint8, "r", offset, (expected,))
    except OSError as error:
        raise ModelError(f"weight {name!r}: external data {location!r} can't be read: {error.strerror}") from error
    if tensor.data_type in PACKED:
        return numpy_helper.to_array(TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=stored.tobytes()))
    return stored.view(dtype).reshape(tuple(tensor.dims))


def _inside(folder: Path, location: str, name: str) -> Path:
    """The external file's path, if it is a plain file below ``folder`` reached without links."""
    where = f"weight {name!r}: external data {location!r}"
    if not location or Path(location).is_absolute() or "\\" in location or ".." in Path(location).parts:
        raise ModelError(f"{where} lie outside the model's folder; move the file beside the model and correct the reference")
    path = folder
    for part in Path(location).parts:
        path = path / part
        if path.is_symlink():
            raise ModelError(f"{where} are reached through a link, which is refused; put the file itself beside the model")
    if not path.exists():
        raise ModelError(f"{where} are missing from {str(folder)!r}; copy that file beside the model")
    if not path.is_file():
        raise ModelError(f"{where} are not a plain file; put the file itself beside the model")
    if os.stat(path).st_nlink > 1:
        raise ModelError(f"{where} are a hard link, which is refused; put a copy of the file beside the model")
    return path
