"""Models whose bytes are made when they are needed: one stored tensor after the other, and that piece by piece.

Surgery says what becomes of each stored tensor. From that comes either a complete proto in memory, or a file of external
data that is written without ever holding a whole tensor, however large the model is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto

from onnxprune.weights import PACKED, Array, Box, external_file, is_external, pieces, raw_bytes, read_tensor, replaced

LARGE = 500_000_000
"""A model of more bytes is worked on from files. Proving one in memory takes about five times its size."""

EXTERNAL_FROM = 1024
"""Tensors of at least this many bytes go to the external file, where there is one."""

_BLOCK = 1 << 21
"""Bytes that are made and written at a time: as many as stay in the processor's cache."""

_WRITERS = min(4, os.cpu_count() or 1)
"""Tensors that are written at the same time."""

_PAGE = 4096
"""Where tensors begin in a file, so that they can be mapped."""

_Place = tuple[str, int, int]
"""Where a tensor's data lie: the file's name, offset and length."""

_BoolArray = npt.NDArray[np.bool_]

Edit = Callable[[Array, Box], Array]
"""(part of a tensor, which one) -> new values of the same shape and type; what it was given stays as it is."""


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """What becomes of a stored tensor: some indices of its axes get another value, some leave.

    ``filled``: axis, which of its indices, and their value (or values, which broadcast to the stored tensor).
    ``kept``: for each axis, which of its indices stay; empty where all do. ``edit``: makes new values of a part of the
    stored ones, whatever part that is, before anything else.
    """

    origin: TensorProto
    folder: Path | None = None
    filled: tuple[tuple[int, _BoolArray, Array | float], ...] = ()
    kept: tuple[_BoolArray, ...] = ()
    edit: Edit | None = None

    def fill(self, axis: int, which: _BoolArray, value: Array | float = 0) -> LazyTensor:
        """The same with some indices of an axis set to a value."""
        return replace(self, filled=(*self.filled, (axis, which, value)))

    def keep(self, kept: Sequence[_BoolArray]) -> LazyTensor:
        """The same with only some indices of each axis left."""
        return replace(self, kept=tuple(kept))

    @property
    def external(self) -> bool:
        """Whether the bytes lie in a file just as they are."""
        return is_external(self.origin) and self._unchanged

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape that is left."""
        return tuple(int(k.sum()) for k in self.kept) if self.kept else tuple(self.origin.dims)

    @cached_property
    def nbytes(self) -> int:
        """Bytes that the values take, raw; 0 where elements have no fixed size, which can't be external."""
        return raw_bytes(TensorProto(data_type=self.origin.data_type, dims=self.shape)) or 0

    def header(self, name: str) -> TensorProto:
        """The tensor, called ``name``, without its data."""
        header = TensorProto(name=name, data_type=self.origin.data_type, dims=self.shape)
        if self.origin.HasField("doc_string"):
            header.doc_string = self.origin.doc_string
        header.metadata_props.extend(self.origin.metadata_props)
        return header

    def proto(self) -> TensorProto:
        """The tensor with its bytes inside the proto: the stored one itself where that is what it is."""
        as_is = self._unchanged and not is_external(self.origin)
        return self.origin if as_is else replaced(self.origin, self.values())

    def values(self) -> Array:
        """All values at once; treat them as read-only."""
        values = read_tensor(self.origin, self.origin.name, self.folder)
        return self._made(values, tuple(slice(0, size) for size in values.shape))

    def blocks(self) -> Iterator[Array]:
        """The values' bytes, block by block."""
        if self.origin.data_type in PACKED:
            yield np.frombuffer(replaced(self.origin, self.values()).raw_data, np.uint8)
            return
        for box, part in pieces(read_tensor(self.origin, self.origin.name, self.folder), _BLOCK):
            yield np.ascontiguousarray(self._made(part, box)).reshape(-1).view(np.uint8)

    @property
    def _unchanged(self) -> bool:
        return not (self.filled or self.kept or self.edit)

    def _made(self, part: Array, box: Box) -> Array:
        if self.edit is not None:
            part = self.edit(part, box)
        for axis, which, value in self.filled:
            here = which[box[axis]]
            if here.any():
                values = np.broadcast_to(np.asarray(value).astype(part.dtype), tuple(self.origin.dims))[box]
                part = np.where(here.reshape(-1, *(1,) * (part.ndim - axis - 1)), values, part)
        for axis, stays in enumerate(self.kept):
            if not stays[box[axis]].all():
                part = np.compress(stays[box[axis]], part, axis)
        return part


@dataclass(frozen=True, eq=False)
class LazyModel:
    """A model whose initializers are headers in ``proto``; ``tensors`` has their values by name."""

    proto: ModelProto
    tensors: Mapping[str, LazyTensor]

    @cached_property
    def nbytes(self) -> int:
        """Size of the model with all its data."""
        return int(self.proto.ByteSize()) + sum(t.nbytes for t in self.tensors.values())

    @property
    def loose_bytes(self) -> int:
        """How many of these bytes are in no file."""
        return sum(t.nbytes for t in self.tensors.values() if not t.external)

    @property
    def large(self) -> bool:
        """Whether it is better worked on from files."""
        return self.nbytes > LARGE

    def complete(self) -> ModelProto:
        """The model with all data inside the proto."""
        return self._written({})

    def ready(self) -> AnyModel:
        """The complete model where memory holds it several times over, itself where that may not be so."""
        return self if self.large else self.complete()

    def write_data(self, target: Path, location: str) -> ModelProto:
        """Write the data of the larger tensors to ``target``. Returns the model, which refers to that as ``location``."""
        stored = {n: t for n, t in self._initializers() if t.nbytes >= EXTERNAL_FROM}
        return self._written({name: (location, *place) for name, place in _store(target, stored).items()})

    def on_disk(self, target: Path) -> LazyModel:
        """The same model with the data of all larger tensors in files: in ``target`` what is not in one already."""
        loose = {n: t for n, t in self._initializers() if t.nbytes >= EXTERNAL_FROM and not t.external}
        moved: dict[str, LazyTensor] = {}
        for name, place in _store(target, loose, holes=True).items():
            header = loose[name].header(name)
            _refer(header, (target.name, *place))
            moved[name] = LazyTensor(header, target.parent)
        return replace(self, tensors={**self.tensors, **moved})

    def referring(self) -> tuple[ModelProto, Path | None]:
        """The model with references to what lies in files, and the folder to which these are relative."""
        found: dict[str, tuple[Path, int, int]] = {}
        for name, tensor in self._initializers():
            if tensor.external and tensor.folder is not None and tensor.nbytes >= EXTERNAL_FROM:
                file = external_file(tensor.origin, tensor.folder)
                offset = next((int(e.value) for e in tensor.origin.external_data if e.key == "offset"), 0)
                found[name] = (Path(os.path.realpath(file or "")), offset, tensor.nbytes)
        if not found:
            return self.complete(), None
        folder = Path(os.path.commonpath([file.parent for file, _, _ in found.values()]))
        places = {name: (file.relative_to(folder).as_posix(), offset, size) for name, (file, offset, size) in found.items()}
        return self._written(places), folder

    def _initializers(self) -> Iterator[tuple[str, LazyTensor]]:
        for header in self.proto.graph.initializer:
            yield header.name, self.tensors.get(header.name) or LazyTensor(header)

    def _written(self, places: Mapping[str, _Place]) -> ModelProto:
        """A copy with all data, but references in place of those initializers' that lie in a file."""
        model = ModelProto()
        model.CopyFrom(self.proto)
        for header in model.graph.initializer:
            name, tensor = header.name, self.tensors.get(header.name) or LazyTensor(header)
            if name in places:
                header.CopyFrom(tensor.header(name))
                _refer(header, places[name])
            elif name in self.tensors:
                header.CopyFrom(tensor.proto())
                header.name = name
        return model


AnyModel = ModelProto | LazyModel
"""A model in memory, or one whose data come from files."""

_Given = TypeVar("_Given")


def completed(model: _Given | LazyModel) -> _Given | ModelProto:
    """A lazy model with all data inside the proto; anything else as it is."""
    return model.complete() if isinstance(model, LazyModel) else model


def _store(target: Path, tensors: Mapping[str, LazyTensor], *, holes: bool = False) -> dict[str, tuple[int, int]]:
    """Write tensors' bytes to a file, each from the beginning of a page, several at a time.

    Args:
        holes: leave out what is zero for a page or longer, which a disk need not store.

    Returns:
        Offset and length by name.
    """
    places, end = {}, 0
    for name, tensor in tensors.items():
        offset = -(-end // _PAGE) * _PAGE
        places[name], end = (offset, tensor.nbytes), offset + tensor.nbytes
    with open(target, "wb") as file:
        file.truncate(end)
    pool = ThreadPoolExecutor(_WRITERS)
    try:
        tasks = [pool.submit(_write, target, tensor, places[name][0], holes) for name, tensor in tensors.items()]
        for task in tasks:
            task.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return places


def _write(target: Path, tensor: LazyTensor, offset: int, holes: bool) -> None:
    with open(target, "r+b") as file:
        for block in tensor.blocks():
            for start, stop in _not_zero(block) if holes else [(0, len(block))]:
                file.seek(offset + start)
                file.write(block[start:stop].data)
            offset += len(block)


def _not_zero(block: Array) -> Iterator[tuple[int, int]]:
    """The stretches of whole pages of a block in which something is not zero, and its last, incomplete page."""
    whole = len(block) // _PAGE * _PAGE
    used = np.bitwise_or.reduce(block[:whole].view(np.uint64).reshape(-1, _PAGE // 8), axis=1) != 0
    edges = np.flatnonzero(np.diff(used, prepend=False, append=False)) * _PAGE
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    yield whole, len(block)


def _refer(header: TensorProto, place: _Place) -> None:
    header.data_location = TensorProto.EXTERNAL
    for key, value in zip(("location", "offset", "length"), place, strict=True):
        header.external_data.add(key=key, value=str(value))
