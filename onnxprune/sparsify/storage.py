"""How a sparse model is written so that zeros need no room: as it is, with sparse initializers, or compressed."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto, SparseTensorProto, TensorProto, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.files import FILE_LIMIT
from onnxprune.weights import FLOATS, raw_bytes, read_tensor, replaced

STORES = ("dense", "sparse", "compressed")
_INDEX = 8
"""Bytes of a non-zero element's index: the format wants int64."""


def with_sparse(model: ModelProto) -> tuple[ModelProto, int]:
    """The model with sparse initializers where these take fewer bytes, and how many there are.

    onnxruntime makes dense tensors of them when it loads the model. An initializer that is declared elsewhere as well (an
    input of the same name in old formats, a shape among the values) stays, for such a declaration says "dense".
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    declared = {v.name for v in (*copy.graph.input, *copy.graph.output, *copy.graph.value_info)}
    dense = list(copy.graph.initializer)
    made = {t.name: _sparse(t) for t in dense if t.name not in declared and t.data_type in FLOATS and t.dims}
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(t for t in dense if made.get(t.name) is None)
    found = [made[t.name] for t in dense if made.get(t.name) is not None]
    copy.graph.sparse_initializer.extend(found)
    return copy, len(found)


def _sparse(tensor: TensorProto) -> SparseTensorProto | None:
    """The non-zero elements and their numbers, or None if that is no smaller. A minus zero counts as an element."""
    values = read_tensor(tensor, tensor.name, None).reshape(-1)
    where = np.flatnonzero(values.view(f"u{values.itemsize}"))
    if len(where) * (values.itemsize + _INDEX) >= (raw_bytes(tensor) or 0):
        return None
    sparse = SparseTensorProto(dims=tensor.dims)
    sparse.values.CopyFrom(replaced(tensor, values[where]))
    sparse.indices.CopyFrom(numpy_helper.from_array(where.astype(np.int64), f"{tensor.name}_indices"))
    return sparse


def without_sparse(model: ModelProto, order: Sequence[str]) -> ModelProto:
    """The model with dense initializers instead of sparse ones, in the order of some names (others come last)."""
    copy = ModelProto()
    copy.CopyFrom(model)
    place = {name: k for k, name in enumerate(order)}
    wanted = [s for s in copy.graph.sparse_initializer if s.values.name in place]
    others = [s for s in copy.graph.sparse_initializer if s.values.name not in place]
    dense = [*copy.graph.initializer, *map(_dense, wanted)]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(sorted(dense, key=lambda t: place.get(t.name, len(place))))
    del copy.graph.sparse_initializer[:]
    copy.graph.sparse_initializer.extend(others)
    return copy


def _dense(sparse: SparseTensorProto) -> TensorProto:
    stored = read_tensor(sparse.values, sparse.values.name, None)
    values = np.zeros(math.prod(sparse.dims), stored.dtype)
    values[read_tensor(sparse.indices, sparse.values.name, None)] = stored
    return replaced(sparse.values, values.reshape(tuple(sparse.dims)))


def compressed(data: bytes) -> bytes:
    """As ``gzip`` writes it, without a name or date."""
    return gzip.compress(data, 6, mtime=0)


def expanded(path: Path) -> ModelProto:
    """The model in a compressed file.

    Raises:
        ModelError: there is none in it.
    """
    model = ModelProto()
    try:
        with gzip.open(path) as file:
            model.ParseFromString(file.read(FILE_LIMIT))
        return model
    except (OSError, EOFError, zlib.error, DecodeError) as error:
        raise ModelError(f"{str(path)!r}: the file is not a compressed model, or it is truncated; copy it again") from error


def is_compressed(path: Path) -> bool:
    """Whether a file begins as ``gzip`` writes it."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"\x1f\x8b"
    except OSError:
        return False
