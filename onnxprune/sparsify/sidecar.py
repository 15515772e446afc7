"""What brings back a dense model: where weights were zeroed and what they were, in a file beside the sparse model.

An ``.npz`` archive without pickled objects: ``about`` (JSON) and, for the tensor with number k in it, ``k.where`` (a bit per
element, in the order of the elements) and ``k.values`` (the bytes of what was there, in the same order). It holds only what
differs from the sparse model, and goes back to the first dense model however often that was made sparser.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from onnx import TensorProto, numpy_helper

from onnxprune.errors import OutputError, SidecarError
from onnxprune.files import one_line, parse
from onnxprune.graph import Graph
from onnxprune.labels import Fill
from onnxprune.lazy import Edit, LazyTensor
from onnxprune.masks import BoolArray
from onnxprune.sparsify.storage import is_compressed
from onnxprune.structure import all_tensors
from onnxprune.weights import Array, Box, external_file

SCHEMA = "onnxprune.sidecar/1"
SUFFIX = ".dense.npz"

_FIELDS = ("float_data", "int32_data", "double_data")

Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Removed:
    """The elements of a tensor that were zeroed: ``where``, a bit for each element, and the bytes of their ``values``.

    ``values`` reads them when they are needed. ``sha256``: of the bytes that the tensor had before. ``field``: where its proto
    has its numbers, if not as raw bytes.
    """

    shape: tuple[int, ...]
    where: Bits
    values: Callable[[], Bits]
    sha256: str
    field: str = ""

    @property
    def count(self) -> int:
        """How many elements."""
        return int(np.bitwise_count(self.where).sum())

    def back(self) -> Edit:
        """The edit that puts the values back."""
        raw = self.values()
        counts = np.concatenate([[0], np.cumsum(np.bitwise_count(self.where), dtype=np.int64)])

        def edit(part: Array, box: Box) -> Array:
            if raw.size != counts[-1] * part.itemsize:
                raise SidecarError("the sidecar is damaged: it has not one value for each element; copy it again")
            start = _start(box, self.shape)
            here = unpacked(self.where, start, part.size)
            before = int(counts[start // 8]) + int(unpacked(self.where, start - start % 8, start % 8).sum())
            dense = np.array(part)
            dense.reshape(-1)[here] = raw.view(part.dtype)[before : before + int(here.sum())]
            return dense

        return edit


def zeroed(where: Bits, fill: Fill, shape: tuple[int, ...]) -> Edit:
    """The edit that writes what stands for zero at some places of a tensor of that shape."""
    zero = np.broadcast_to(fill.over(shape), shape)

    def edit(part: Array, box: Box) -> Array:
        here = unpacked(where, _start(box, shape), part.size).reshape(part.shape)
        return np.where(here, zero[box].astype(part.dtype), part)

    return edit


def taken(graph: Graph, name: str, leaves: BoolArray, fill: Fill, earlier: Removed | None) -> Removed:
    """What is lost where a mask zeroes a stored tensor, and what was lost of it before. What is zero already is no loss."""
    stored = graph.weights.read(name)
    where = np.packbits(leaves & (_whole(stored) != _whole(fill.over(stored.shape).astype(stored.dtype))))
    old = np.zeros_like(where) if earlier is None else earlier.where
    sha256 = digest_of(graph.lazy(name)) if earlier is None else earlier.sha256

    def values() -> Bits:
        dense = np.array(graph.weights.read(name)).reshape(-1)
        if earlier is not None:
            dense[unpacked(old, 0, dense.size)] = earlier.values().view(dense.dtype)
        return dense[unpacked(where | old, 0, dense.size)].view(np.uint8)

    return Removed(stored.shape, where | old, values, sha256, field_of(graph.weights[name]) if earlier is None else earlier.field)


def field_of(tensor: TensorProto) -> str:
    """In which field of a proto numbers are that are neither raw bytes nor in a file."""
    return next((name for name in _FIELDS if len(getattr(tensor, name))), "")


def encode(tensor: TensorProto, name: str) -> None:
    """Move a proto's raw bytes to another field."""
    values = numpy_helper.to_array(tensor).ravel()
    numbers = values.view(np.uint16) if values.dtype.kind not in "iu" and values.itemsize == 2 else values
    tensor.ClearField("raw_data")
    getattr(tensor, name).extend(numbers.tolist())


@dataclass(frozen=True, eq=False)
class Sidecar:
    """What a sparse model lost, by stored tensor.

    ``original``: SHA-256 of the dense model's files. ``store``: how the sparse model is written. ``order``: the names of the
    dense model's initializers, where some of them are stored as sparse ones.
    """

    removed: Mapping[str, Removed]
    original: str
    store: str = "dense"
    order: tuple[str, ...] = ()

    @contextmanager
    def writing(self, path: Path) -> Iterator[Callable[[str], None]]:
        """Write it while the sparse model is written, so that neither is there without the other.

        Yields:
            what to call in the end, with the SHA-256 of the sparse model's files, to put it in place.

        Raises:
            OutputError: the path can't be written. What was there before is still there.
        """
        temporary = path.with_name(f".onnxprune-{os.getpid()}.npz")
        rows = [{"name": name, "shape": list(r.shape), "sha256": r.sha256, "field": r.field} for name, r in self.removed.items()]
        try:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                for k, removed in enumerate(self.removed.values()):
                    _add(archive, f"{k}.where", removed.where)
                    _add(archive, f"{k}.values", removed.values())

            def finish(sha256: str) -> None:
                about = {"schema": SCHEMA, "model_sha256": sha256, "original_sha256": self.original, "store": self.store}
                text = json.dumps({**about, "order": list(self.order), "tensors": rows})
                with zipfile.ZipFile(temporary, "a", zipfile.ZIP_DEFLATED) as archive:
                    _add(archive, "about", np.frombuffer(text.encode(), np.uint8))
                os.replace(temporary, path)

            yield finish
        except (OSError, ValueError) as error:
            raise OutputError(f"sidecar {str(path)!r} can't be written: {one_line(error)}; choose another path") from error
        finally:
            temporary.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, values: Array) -> None:
    entry = zipfile.ZipInfo(f"{name}.npy")  # with a date that is always the same
    entry.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(entry, "w", force_zip64=True) as file:
        npy.write_array(file, values, allow_pickle=False)


def read(path: Path, model: Path) -> Sidecar:
    """Read the sidecar of the sparse model at ``model``.

    Raises:
        SidecarError: it can't be read, or is of another model.
    """
    where = f"sidecar {str(path)!r}"
    try:
        about = json.loads(_read(path, "about").tobytes())
        schema, wanted = about.get("schema"), about.get("model_sha256")
        rows = [(str(r["name"]), tuple(int(n) for n in r["shape"]), str(r["sha256"]), str(r["field"])) for r in about["tensors"]]
        original, store, order = str(about["original_sha256"]), str(about["store"]), tuple(map(str, about["order"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SidecarError(f"{where} is damaged, or none that onnxprune wrote; copy it again") from error
    if schema != SCHEMA:
        raise SidecarError(f"{where} has format {schema!r}, this version reads {SCHEMA!r}; take the version that wrote it")
    if wanted != digest(model):
        raise SidecarError(
            f"{where} is of another model than {str(model)!r}, whose SHA-256 differs; give the one that was written with it"
        )
    return Sidecar({row[0]: _entry(path, k, *row[1:]) for k, row in enumerate(rows)}, original, store, order)


def _entry(path: Path, k: int, shape: tuple[int, ...], sha256: str, field: str) -> Removed:
    where = _read(path, f"{k}.where")
    if field not in ("", *_FIELDS) or where.shape != (-(-math.prod(shape) // 8),):
        raise SidecarError(f"sidecar {str(path)!r} is damaged: its tensor {k} has another size than it says; copy it again")
    return Removed(shape, where, partial(_read, path, f"{k}.values"), sha256, field)


def _read(path: Path, name: str) -> Bits:
    """An array of bytes from the archive.

    Raises:
        SidecarError: it can't be read.
    """
    where = f"sidecar {str(path)!r}"
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            values: Bits = archive[name]
    except FileNotFoundError as error:
        raise SidecarError(f"{where} does not exist; give the file that was written with the sparse model") from error
    except (OSError, ValueError, TypeError, EOFError, KeyError, RuntimeError, MemoryError) as error:
        raise SidecarError(f"{where} can't be read: {one_line(error) or type(error).__name__}; copy it again") from error
    except (AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise SidecarError(f"{where} is damaged: {one_line(error)}; copy it again") from error
    if values.dtype != np.uint8 or values.ndim != 1:
        raise SidecarError(f"{where} is damaged: its {name} are not bytes; copy it again")
    return values


def digest(path: Path) -> str:
    """SHA-256 of a model's file and, in the order of their names, of the files in which it keeps its data."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256")
    if not is_compressed(path):
        model, folder = parse(path)
        files = sorted({f for _, tensor in all_tensors(model.graph) if (f := external_file(tensor, folder)) is not None})
        for part in files:
            with open(part, "rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def digest_of(tensor: LazyTensor) -> str:
    """SHA-256 of a tensor's bytes."""
    found = hashlib.sha256()
    for block in tensor.blocks():
        found.update(block.data)
    return found.hexdigest()


def unpacked(where: Bits, start: int, count: int) -> BoolArray:
    """Some of the bits, from number ``start`` on."""
    first = start % 8
    return np.unpackbits(where[start // 8 : -(-(start + count) // 8)])[first : first + count].astype(np.bool_)


def _start(box: Box, shape: tuple[int, ...]) -> int:
    """The number of a part's first element; parts are stretches of elements that follow each other."""
    return sum(side.start * math.prod(shape[axis + 1 :]) for axis, side in enumerate(box))


def _whole(values: Array) -> Array:
    """Each element's bytes as one number."""
    return np.ascontiguousarray(values).view(f"u{values.itemsize}")
