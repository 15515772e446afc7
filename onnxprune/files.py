"""Files: read a model's proto, and write one so that nothing is lost if that fails."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from errno import EACCES
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, ModelProto, TensorProto

from onnxprune.errors import ModelError, OutputError
from onnxprune.lazy import AnyModel, LazyModel, completed
from onnxprune.structure import all_tensors
from onnxprune.weights import external_file

Source = str | Path | ModelProto
FILE_LIMIT = (1 << 31) - 1
"""The largest protobuf message, and so the largest model file."""


def parse(path: Path) -> tuple[ModelProto, Path]:
    """Read a model file as it is, and say in which folder its external data may lie.

    Raises:
        ModelError: the file does not exist, can't be read, or is not an ONNX model.
    """
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"this is {'a folder' if path.is_dir() else 'no plain file'}; give the path of an ONNX file")
        if path.stat().st_size > FILE_LIMIT:
            raise ModelError("the file is larger than 2 GB, which no ONNX file can be; export it with external data")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError("the file does not exist; check the path") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"the file can't be read: {getattr(error, 'strerror', None) or error}; check the path") from error
    if not data:
        raise ModelError("the file is empty (0 bytes); export the model again")
    try:
        model = ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError("the file is not an ONNX model, or it is truncated; export it again") from error
    check_text(model, drop=True)
    return model, path.absolute().parent


def check_text(message: Any, *, drop: bool) -> None:
    """Refuse names that are not UTF-8, which protobuf hands out as bytes. Mere remarks can be dropped instead."""
    tensor = isinstance(message, TensorProto)  # whose data must not be copied
    fields = [(d, getattr(message, d.name)) for d in _TENSOR_TEXTS] if tensor else message.ListFields()
    for descriptor, value in fields:
        parts = value if descriptor.is_repeated else (value,)
        if descriptor.type == descriptor.TYPE_MESSAGE and descriptor.name != "metadata_props":
            for part in parts:
                check_text(part, drop=drop)
        elif descriptor.type == descriptor.TYPE_STRING and any(isinstance(text, bytes) for text in parts):
            if not drop or descriptor.name not in ("doc_string", "producer_name", "producer_version"):
                raise ModelError(f"the {descriptor.name} {value!r} in it is not UTF-8 text; the file is damaged, export it again")
            message.ClearField(descriptor.name)
        elif isinstance(message, AttributeProto) and descriptor.name in ("s", "strings"):
            for text in parts:
                try:
                    text.decode()
                except UnicodeDecodeError as error:
                    raise ModelError(
                        f"attribute {message.name!r} holds {text!r}, which is not UTF-8 text; the file is damaged"
                    ) from error


_TENSOR_TEXTS = [TensorProto.DESCRIPTOR.fields_by_name[name] for name in ("name", "doc_string", "external_data")]


def save(model: AnyModel, path: str | Path, *, external: bool = False, source: Source | None = None) -> None:
    """Write a model so that the path holds either all of it or what was there before.

    Args:
        external: put the weights in a file of their own beside it, called ``<name>.data``. Models over 2 GB need it.
        source: the model that it was made from, whose files are not overwritten.

    Raises:
        OutputError: the path can't be written.
    """

    def write(data: Path, name: str) -> ModelProto:
        if external:
            return (model if isinstance(model, LazyModel) else LazyModel(model, {})).write_data(data, name)
        return completed(model)

    _replace(Path(path), write, external, source)


def place(stored: Path, path: str | Path, *, move: bool, source: Source | None = None) -> None:
    """Write a model that lies at ``stored`` with external data, as :func:`save` would.

    Args:
        move: its data become the output's, if they are on the same disk, instead of being copied.

    Raises:
        OutputError: the path can't be written, or the data have been moved before.
    """

    def write(data: Path, name: str) -> ModelProto:
        model, _ = parse(stored)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = name
        (shutil.move if move else shutil.copyfile)(_data_path(stored), data)
        return model

    if not _data_path(stored).exists():
        raise OutputError(f"output {str(path)!r} can't be written: the result was moved when it was saved before; copy that")
    _replace(Path(path), write, True, source)


def _replace(path: Path, write: Callable[[Path, str], ModelProto], external: bool, source: Source | None) -> None:
    """Put what ``write`` returns, and the data that it writes to a file, in place of what is there, both or neither."""
    check_output(path, source)
    temporary, temporary_data, old_data = (path.with_name(f".onnxprune-{os.getpid()}.{part}") for part in ("tmp", "data", "old"))
    data = _data_path(path)
    fresh = external and not data.exists()
    try:
        model = write(temporary_data, data.name)
        with open(temporary, "wb") as file:
            file.write(model.SerializeToString())
        if external:
            if not fresh:
                os.replace(data, old_data)
            os.replace(temporary_data, data)
        os.replace(temporary, path)
    except (OSError, EncodeError, ValueError) as error:
        raise OutputError(f"output {str(path)!r} can't be written: {one_line(error)}; nothing was changed") from error
    finally:
        if temporary.exists():  # not in place, so the data must not be either
            if old_data.exists():
                os.replace(old_data, data)
            elif fresh:
                data.unlink(missing_ok=True)
        for left in (temporary, temporary_data, old_data):
            left.unlink(missing_ok=True)


def check_output(path: str | Path, source: Source | None = None) -> None:
    """Make sure, before any work is done, that a result can be written to a path.

    Raises:
        OutputError: it is the input, a folder, or in a folder that does not exist or can't be written.
    """
    path = Path(path)
    where = f"output {str(path)!r}"
    if "\0" in str(path):
        raise OutputError(f"{where} is no path; choose another one")
    try:
        folder = path.absolute().parent
        if isinstance(source, str | Path):
            _check_apart(path, Path(source))
        if path.is_dir():
            raise OutputError(f"{where} is a folder; give the path of a file")
        if path.exists() and not path.is_file():
            raise OutputError(f"{where} is not a plain file; choose another path")
        if not folder.is_dir():
            raise OutputError(f"{where}: the folder {str(folder)!r} does not exist; create it first")
        if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
            raise OutputError(f"{where} can't be written: permission denied; choose another path")
    except OSError as error:
        raise OutputError(f"{where} can't be written: {error.strerror}; choose another path") from error


def _check_apart(path: Path, source: Path) -> None:
    """Whether writing to ``path`` leaves the files of ``source`` alone."""
    taken = [p for p in (path, _data_path(path)) if p.exists()]
    if not taken or not source.exists():
        return
    if path.exists() and path.samefile(source):
        raise OutputError(f"output {str(path)!r} is the input itself; choose another path")
    try:
        model, folder = parse(source)
        used = {external_file(t, folder) for _, t in all_tensors(model.graph)}
    except (ModelError, RecursionError):  # loading it says what is wrong
        used = set()
    for file in filter(None, (source, *used)):
        if file.exists() and any(p.samefile(file) for p in taken):
            raise OutputError(f"output {str(path)!r} would overwrite {str(file)!r}, which the input needs; choose another path")


def _data_path(path: Path) -> Path:
    return path.with_name(path.name + ".data")


class Scratch:
    """A temporary folder for what is too large for memory. It goes when it is closed, and with this object."""

    def __init__(self, parent: Path | None, needed: int) -> None:
        """Make it in ``parent``, or where the system keeps temporary files, if there are ``needed`` bytes.

        Raises:
            OutputError: there is not enough room, or nothing can be written there.
        """
        place = Path(tempfile.gettempdir() if parent is None else parent)
        try:
            free = shutil.disk_usage(place).free
            if free < needed:
                raise OutputError(
                    f"folder {str(place)!r} has {free / 1e9:.1f} GB left, but to prove a model of this size "
                    f"{needed / 1e9:.1f} GB are needed there for a while; make room, or write to another disk"
                )
            self.folder = Path(tempfile.mkdtemp(prefix=".onnxprune-", dir=place))
        except OSError as error:
            raise OutputError(f"folder {str(place)!r} can't be written: {one_line(error)}; choose another one") from error
        self.close = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def hold(self, model: LazyModel, name: str) -> LazyModel:
        """The model with the data of its larger tensors in files, here where they are in none."""
        try:
            return model.on_disk(self.folder / name)
        except OSError as error:
            raise OutputError(f"folder {str(self.folder.parent)!r} can't be written: {one_line(error)}; make room") from error


class JsonFile:
    """Something that is written as JSON: what :meth:`to_dict` gives. ``WHAT``: what to call it where that fails."""

    __slots__ = ()
    WHAT = "report"

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write as JSON. What was there before stays until all of it is written.

        Raises:
            OutputError: the file can't be written.
        """
        write_json(self.to_dict(), path, self.WHAT)


def write_json(data: Mapping[str, Any], path: str | Path, what: str) -> None:
    """Write JSON data, as :func:`write` does.

    Raises:
        OutputError: the file can't be written; ``what`` is what it would have held.
    """
    write((json.dumps(data, indent=1) + "\n").encode(), path, what)


def write(data: bytes, path: str | Path, what: str) -> None:
    """Write a small file so that the path holds either all of it or what was there before.

    Raises:
        OutputError: the file can't be written; ``what`` is what it would have held.
    """
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():  # a pipe or a terminal takes what comes
            target.write_bytes(data)
            return
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(EACCES, os.strerror(EACCES))
        temporary = target.with_name(f".onnxprune-{os.getpid()}.tmp")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{what} {str(path)!r} can't be written: {reason}; choose another path") from error


def one_line(error: Exception) -> str:
    """Another library's message on one line."""
    return " ".join(str(error).split())[:200]
