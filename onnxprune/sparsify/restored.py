"""A sparse model as it is on disk, and the dense one that its sidecar makes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx import ModelProto

from onnxprune.errors import ModelError, SidecarError, UsageError
from onnxprune.files import Source, parse, save
from onnxprune.graph import load
from onnxprune.lazy import AnyModel, LazyModel, completed
from onnxprune.result import INLINE_LIMIT
from onnxprune.sparsify.sidecar import SUFFIX, Removed, Sidecar, digest_of, encode, read
from onnxprune.sparsify.storage import expanded, is_compressed, without_sparse
from onnxprune.structure import all_tensors


def sidecar_path(model: str | Path) -> Path:
    """Where a sparse model's sidecar lies unless something else is said: ``<name>.dense.npz`` beside it."""
    path = Path(model)
    return path.with_name(path.name + SUFFIX)


@dataclass(frozen=True)
class Opened:
    """A model that can be worked on, and what it lost before; the fields of its sidecar, where it has one."""

    source: Source
    sidecar: Path | None = None
    removed: Mapping[str, Removed] = field(default_factory=dict)
    original: str = ""
    order: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def reopened(model: Source, sidecar: str | Path | None) -> Opened:
    """A model, with dense and uncompressed tensors, and what its sidecar says; one that lies beside it is found.

    Raises:
        SidecarError: the sidecar that was given can't be read, or is of another model. One that was found is left aside.
        ModelError: a compressed file is damaged.
        UsageError: a sidecar is given for a proto.
    """
    if isinstance(model, ModelProto):
        if sidecar is not None:
            raise UsageError("a sidecar belongs to a file; give the path of the model, too")
        return Opened(model)
    path, beside = Path(model), sidecar_path(model) if sidecar is None else Path(sidecar)
    found, said = Sidecar({}, ""), ""
    if path.is_file() and (sidecar is not None or beside.exists()):
        try:
            found = read(beside, path)
        except SidecarError as error:
            if sidecar is not None:
                raise
            said = f"what was zeroed before can't be restored: {error}"
    return replace(_opened(path, found), sidecar=beside if found.original else None, warnings=(said,) if said else ())


def _opened(path: Path, sidecar: Sidecar) -> Opened:
    source: Source = path
    if is_compressed(path):
        source = expanded(path)
    elif sidecar.store == "sparse":
        source = without_sparse(parse(path)[0], sidecar.order)
    return Opened(source, None, sidecar.removed, sidecar.original, sidecar.order)


@dataclass(frozen=True)
class Restored:
    """A dense model again, and the sparse one's path.

    ``identical``: whether its file is the original's byte for byte. All tensors are in any case; but a model whose weights
    lie in a file of their own names that.
    ``tensors``, ``elements``: how many came back.
    """

    dense: AnyModel
    source: Path
    tensors: int
    elements: int
    identical: bool
    external_data: bool = False

    @property
    def model(self) -> ModelProto:
        """The dense model as a proto."""
        return completed(self.dense)

    def save(self, path: str | Path) -> None:
        """Write the model; weights go to ``<name>.data`` beside it if the sparse one kept them apart.

        Raises:
            OutputError: the path is the input or can't be written. What was there before is still there.
        """
        save(self.dense, path, external=self.external_data, source=self.source)

    def __str__(self) -> str:
        how = "the file is the original's byte for byte" if self.identical else "every tensor is the original's byte for byte"
        return f"{self.elements:,} weights of {self.tensors} tensors are back; {how}"


def restore(sparse: str | Path, *, sidecar: str | Path | None = None) -> Restored:
    """The dense model that a sparse one was made of, exactly, however often it was made sparser.

    Args:
        sparse: path of a model that ``sparsify`` wrote.
        sidecar: what was written with it; by default ``<name>.dense.npz`` beside it.

    Raises:
        SidecarError: the sidecar can't be read, is of another model, or gives other weights than there were.
        ModelError: the model can't be read.
    """
    path = Path(sparse)
    if not path.is_file():
        raise ModelError(f"{str(path)!r}: the file does not exist; check the path")
    opened = reopened(path, sidecar_path(path) if sidecar is None else sidecar)
    graph = load(opened.source)
    tensors = {}
    for name, removed in opened.removed.items():
        if name not in graph.weights or graph.weights.shape(name) != removed.shape:
            raise SidecarError(f"sidecar {str(opened.sidecar)!r} is damaged: there is no such weight {name!r}; copy it again")
        tensors[name] = replace(graph.lazy(name), edit=removed.back())
        if digest_of(tensors[name]) != removed.sha256:
            raise SidecarError(f"sidecar {str(opened.sidecar)!r} is damaged: weight {name!r} is another one then; copy it again")
    lazy = graph.assemble(tensors)
    external = graph.weights.has_external_data or lazy.nbytes > INLINE_LIMIT
    dense = lazy if lazy.large else lazy.complete()
    if isinstance(dense, ModelProto):
        for name, tensor in all_tensors(dense.graph):
            if name in opened.removed and opened.removed[name].field and tensor.HasField("raw_data"):
                encode(tensor, opened.removed[name].field)
    same = not isinstance(dense, LazyModel) and hashlib.sha256(dense.SerializeToString()).hexdigest() == opened.original
    elements = sum(removed.count for removed in opened.removed.values())
    return Restored(dense, path, len(tensors), elements, same and not external, external)
