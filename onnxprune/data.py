"""Data for calibration and evaluation: one array per graph input, samples on the first axis, and perhaps labels."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune.errors import DataError
from onnxprune.structure import Port
from onnxprune.weights import Array

BATCH = 64
"""Samples per run where the model takes any number."""

LIVE = 1 << 28
"""Bytes of activations that are looked at together, where they are many."""

PARTS = 8
"""Chunks that samples are parted into at least where some of them are held out."""

Data = str | Path | Mapping[str, Array] | tuple[Array, Array | None]
"""An ``.npz`` file, arrays by name, or the arrays ``(X, y)`` of a model with one input."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """``inputs``: arrays by graph input, all with the same number of samples. ``labels``: int64 ``(samples,)`` or None."""

    inputs: Mapping[str, Array]
    labels: npt.NDArray[np.int64] | None

    @property
    def arrays(self) -> dict[str, Array]:
        """Inputs and labels by name, as :func:`read` takes them."""
        return {**self.inputs, **({} if self.labels is None else {"labels": self.labels})}

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(next(iter(self.inputs.values())))

    def take(self, rows: slice | npt.NDArray[np.int64]) -> Dataset:
        """Some of the samples."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, inputs={name: values[rows] for name, values in self.inputs.items()}, labels=labels)

    def batches(self, ports: Sequence[Port], most: int = BATCH) -> Iterator[tuple[dict[str, Array], int]]:
        """Feeds of as many samples as the model takes at once, and how many of them are real (the rest is padding).

        Args:
            most: samples per run where the model takes any number.
        """
        fixed = fixed_batch(ports)
        size = fixed or min(most, self.samples)
        for start in range(0, self.samples, size):
            real = min(size, self.samples - start)
            rows = np.minimum(np.arange(start, start + size), self.samples - 1) if fixed else np.arange(start, start + real)
            yield {name: values[rows] for name, values in self.inputs.items()}, real

    def chunks(self, ports: Sequence[Port], most: int, size: int = BATCH) -> list[dict[str, Array]]:
        """Feeds of all samples, or of ``most`` that are evenly chosen, in parts of ``size`` at most where the model lets."""
        count = min(most, self.samples)
        chosen = self.take(np.arange(count) * self.samples // count)
        return [feeds for feeds, _ in chosen.batches(ports, min(size, chunk_size(count)))]


def fixed_batch(ports: Sequence[Port]) -> int | None:
    """The number of samples that a model's inputs are declared to take, or None where that is any."""
    return next((p.shape[0] for p in ports if p.shape and isinstance(p.shape[0], int)), None)


def chunk_size(samples: int) -> int:
    """How many samples are run together."""
    return max(1, min(BATCH, -(-samples // PARTS)))


def rechunked(
    feeds: Sequence[Mapping[str, Array]], ports: Sequence[Port], most: int, largest: int = BATCH
) -> Iterator[dict[str, Array]]:
    """The first samples of some feeds, in other chunks, of ``largest`` at most, where the model takes any number."""
    if fixed_batch(ports) is not None or any(not port.shape for port in ports):
        yield from map(dict, feeds[:most])
        return
    sizes = [len(next(iter(chunk.values()))) for chunk in feeds]
    size, left = min(largest, chunk_size(min(most, sum(sizes)))), most
    for chunk, count in zip(feeds, sizes, strict=True):
        for start in range(0, min(count, left), size):
            yield {name: values[start : min(start + size, left)] for name, values in chunk.items()}
        left -= min(count, left)


def read(source: Data, ports: Sequence[Port]) -> Dataset:
    """Read an ``.npz`` file, or take arrays by name, and check that they fit a model's inputs.

    A model with one input also accepts the name ``x``, and a pair ``(X, y)`` of samples and labels (or None).

    Raises:
        DataError: unreadable, or names, shapes, types, numbers of samples or values that do not fit.
    """
    if isinstance(source, str | Path):
        arrays, where = _load(Path(source)), f"data {str(source)!r}"
    else:
        arrays, where = _arrays(source if isinstance(source, Mapping) else _named(source)), "data"
    labels = arrays.pop("labels", None)
    if len(ports) == 1 and "x" in arrays and ports[0].name not in arrays:
        arrays[ports[0].name] = arrays.pop("x")
    names = [p.name for p in ports]
    if sorted(arrays) != sorted(names):
        raise DataError(f"{where} has arrays {sorted(arrays)}, the model's inputs are {sorted(names)}; name one array after each")
    samples = {len(a) if a.ndim else 0 for a in arrays.values()}
    if len(samples) != 1 or 0 in samples:
        raise DataError(f"{where}: every array needs the same number of samples on its first axis, at least one; found {samples}")
    taken = {p.name: p.shape[0] for p in ports if p.shape and isinstance(p.shape[0], int)}
    if len(set(taken.values())) > 1:
        raise DataError(f"{where}: the model's inputs have different fixed first axes, {taken}; such models take no data here")
    checked = {p.name: _fit(arrays[p.name], p, where) for p in ports}
    return Dataset(checked, _check_labels(labels, samples.pop(), where))


def _named(pair: tuple[Array, Array | None]) -> dict[str, Array]:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise DataError("data are neither a path, nor arrays by name, nor a pair (X, y) of samples and labels; give one of these")
    samples, labels = pair
    return {"x": samples} if labels is None else {"x": samples, "labels": labels}


def _arrays(source: Mapping[str, Array]) -> dict[str, Array]:
    try:
        return {name: np.asarray(values) for name, values in source.items()}
    except ValueError as error:
        raise DataError(f"data: an array is ragged: {error}; give every sample the same shape") from error


def _load(path: Path) -> dict[str, Array]:
    where = f"data {str(path)!r}"
    if path.exists() and not path.is_file():
        raise DataError(f"{where} are not a plain file; give the path of an .npz archive")
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{where} are a single array; save it by name with numpy.savez")
            return {name: np.asarray(archive[name]) for name in archive.files}
    except FileNotFoundError as error:
        raise DataError(f"{where} do not exist; check the path") from error
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where} are not an .npz archive of plain arrays: {reason}; save them with numpy.savez") from error


def _fit(values: Array, port: Port, where: str) -> Array:
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(port.elem_type)
    except KeyError as error:
        raise DataError(f"{where}: the model's input {port.name!r} is not a tensor; such models take no data here") from error
    shape = port.shape or ()
    wrong = len(shape) != values.ndim or any(
        isinstance(d, int) and d != size for d, size in zip(shape[1:], values.shape[1:], strict=False)
    )
    if port.shape is not None and wrong:
        raise DataError(
            f"{where}: array {port.name!r} has shape {values.shape}, the model's input is {list(shape)}; samples come first"
        )
    if values.dtype.kind not in "fiub" or (values.dtype.kind == "f" and dtype.kind in "iu"):
        raise DataError(f"{where}: array {port.name!r} holds {values.dtype}, the model's input {dtype}; convert it first")
    with np.errstate(all="ignore"):
        fitting = values.astype(dtype, copy=False)
    if values.dtype.kind == "f" and not np.isfinite(fitting).all():
        raise DataError(f"{where}: array {port.name!r} holds NaN or infinite values (as {dtype}); clean the data first")
    if dtype.kind in "iub" and not np.array_equal(fitting, values):
        raise DataError(f"{where}: array {port.name!r} holds values outside the range of {dtype}; convert it first")
    return fitting


def _check_labels(labels: Array | None, samples: int, where: str) -> npt.NDArray[np.int64] | None:
    if labels is None:
        return None
    labels = np.squeeze(labels, axis=1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or len(labels) != samples or labels.dtype.kind not in "iub":
        raise DataError(f"{where}: labels are {labels.dtype} {labels.shape}; they must be integers of shape ({samples},)")
    if labels.min() < 0:
        raise DataError(f"{where}: label {int(labels.min())} is negative; labels are class numbers from 0")
    return labels.astype(np.int64)
