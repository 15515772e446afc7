"""Sparsify a model: zero weights where they are, measure what that saves and costs, and keep what brings them back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import EncodeError
from onnx import ModelProto

from onnxprune import data as datasets
from onnxprune.clock import Clock, Progress
from onnxprune.cost import cost
from onnxprune.data import Data, Dataset
from onnxprune.errors import OptionError, UsageError
from onnxprune.evaluate import check_runs, interleaved, measure
from onnxprune.files import Scratch, Source, check_output, place, save, write
from onnxprune.filters import Filter
from onnxprune.graph import Graph, load
from onnxprune.lazy import AnyModel, LazyModel, completed
from onnxprune.masks import Choice, each_mask
from onnxprune.result import INLINE_LIMIT
from onnxprune.runtime import random_feeds
from onnxprune.shapes import Shapes, infer
from onnxprune.sparsify.choosing import Worth, check, choose, zeros
from onnxprune.sparsify.record import Layer, Left, Sparsification
from onnxprune.sparsify.restored import Opened, reopened, sidecar_path
from onnxprune.sparsify.sidecar import Removed, Sidecar, digest, taken, zeroed
from onnxprune.sparsify.storage import STORES, compressed, with_sparse
from onnxprune.weights import PARAMETERS, read_tensor

_SPARSE = "sparse.onnx"
"""What a large sparse model is called in the scratch folder."""


@dataclass(frozen=True)
class Sparsified:
    """A sparse model with the report of what that changed, the ``source`` it was made from, and what brings that back."""

    sparse: AnyModel
    report: Sparsification
    source: Source
    sidecar: Sidecar
    external_data: bool = False
    scratch: Scratch | None = None
    earlier: Path | None = None

    @cached_property
    def model(self) -> ModelProto:
        """The sparse model as a proto."""
        return completed(self.sparse)

    def save(self, path: str | Path, *, sidecar: str | Path | bool = True, move: bool = False) -> None:
        """Write the model and, so that it can be restored, what it lost.

        Args:
            sidecar: where to write that; by default ``<name>.dense.npz`` beside the model. False: nowhere.
            move: a large model's temporary files become the output, which is faster; it can't be saved again then.

        Raises:
            OutputError: a path is the input or can't be written. What was there before is still there.
        """
        path, beside = Path(path), sidecar_path(path) if isinstance(sidecar, bool) else Path(sidecar)
        check_outputs(path, beside if sidecar is not False else None, self.source, self.earlier)
        if sidecar is False:
            self._write(path, move)
            return
        with self.sidecar.writing(beside) as finish:
            self._write(path, move)
            finish(digest(path))

    def _write(self, path: Path, move: bool) -> None:
        if self.sidecar.store == "compressed":
            write(compressed(self.model.SerializeToString()), path, "output")
        elif self.scratch is not None:
            place(self.scratch.folder / _SPARSE, path, move=move, source=self.source)
        else:
            save(self.sparse, path, external=self.external_data, source=self.source)

    def __str__(self) -> str:
        return str(self.report)


def check_outputs(path: Path, sidecar: Path | None, source: Source, earlier: Path | None = None) -> None:
    """Make sure, before any work is done, that a model and its sidecar can be written.

    Raises:
        OutputError: a path can't be written, or something that is needed is there.
    """
    check_output(path, source)
    if sidecar is None:
        return
    check_output(sidecar, source)
    needed = sidecar_path(source) if earlier is None and not isinstance(source, ModelProto) else earlier
    if needed is not None and needed.exists() and sidecar.exists() and sidecar.samefile(needed):
        raise OptionError(f"sidecar {str(sidecar)!r} is the one that the input needs; choose another path")
    if sidecar.resolve() == path.resolve():
        raise OptionError(f"sidecar {str(sidecar)!r} is the output itself; choose another path")


def sparsify(
    model: Source,
    sparsity: float | None = None,
    *,
    granularity: str = "element",
    scope: str = "global",
    criterion: str = "magnitude",
    bernoulli: float = 1.0,
    normalise: str = "none",
    pattern: str = "",
    layers: str = "all",
    freeze: tuple[str, ...] = (),
    data: Data | None = None,
    seed: int = 0,
    store: str = "dense",
    sidecar: str | Path | None = None,
    scratch: str | Path | None = None,
    progress: Progress | None = None,
) -> Sparsified:
    """Zero a share of the weights that activations are multiplied with, and leave everything else as it is.

    These are the filters of convolutions, matrix products and recurrent layers, also where they are stored in Constant
    nodes, behind a Cast or Transpose, or as integers behind a DequantizeLinear (their zero point stands for zero). A tensor
    that is stored once and read twice is zeroed for both. Biases and the numbers of a normalisation are left alone, also
    those of a filter that is zero as a whole: its channel then has the constant value that they give it.

    Source: DWP's "Network Pruning" (arXiv:2208.08677); ``taylor`` and ``gradient`` its ``layer_pruning``.

    Args:
        model: path of an ONNX file, or a proto (which is not changed). A sparse model whose sidecar lies beside it hands
            that on, so that the result can be restored to the first dense model.
        sparsity, granularity, scope, bernoulli, normalise, pattern: as in :class:`~onnxprune.masks.Choice`.
        criterion: what makes a weight w important: ``"magnitude"`` |w|; ``"activation"`` |w| times the root mean square of
            what it is multiplied with; ``"relative"``: the same for its share among the weights of its output and of its
            input; ``"taylor"`` |w dL/dw| and ``"gradient"`` |dL/dw|, with the mean cross-entropy L on the data.
        layers: ``"conv"``: only weights with positions, as DWP; ``"dense"``: only the others; ``"all"``.
        freeze: shell-style patterns of node or tensor names to leave alone.
        data: an ``.npz`` path or arrays by input name, which all criteria but ``magnitude`` need; without labels ``taylor`` and
            ``gradient`` take the class that the model itself predicts. Both models are compared on
            them; on others, :func:`onnxprune.compare` does that.
        seed: for ``bernoulli``, and for random inputs.
        store: ``"dense"``; ``"sparse"``: as sparse initializers where that is smaller; ``"compressed"``: as gzip does.
        sidecar: of the model, where it is not beside it.
        scratch: folder for the temporary files that a model over 0.5 GB needs; by default the system's.
        progress: called at each stage.

    Raises:
        UsageError: neither ``sparsity`` nor ``pattern`` is given, or both; data are missing; a pattern matches nothing.
        OptionError: an option outside its range.
        SidecarError: the sidecar can't be read, or is of another model.
        OnnxpruneError: bad input; see :mod:`onnxprune.errors`.
    """
    if (sparsity is None) == (not pattern):
        raise UsageError("how much leaves is said by either --sparsity or --pattern; give one of them")
    choice = Choice(0.0 if sparsity is None else sparsity, granularity, scope, bernoulli, normalise, pattern)
    check(criterion, layers, data)
    if store not in STORES:
        raise OptionError(f"store is {store!r}; choose {' or '.join(STORES)}")
    clock = Clock(progress)
    with clock("load"):
        opened = reopened(model, sidecar)
        graph = load(opened.source)
        dataset = None if data is None else datasets.read(data, graph.inputs)
    external = graph.weights.has_external_data or graph.stored_bytes > INLINE_LIMIT
    if external and store != "dense":
        raise OptionError(f"store is {store}, but the model keeps its weights in a file of their own; take dense")
    with clock("analyse"):
        shapes = infer(graph)
        chosen, left = choose(graph, shapes, freeze, layers, criterion)
    with clock("score"):
        worth = Worth(graph, shapes, chosen, criterion, dataset)
        rows, removed = _masked(graph, chosen, worth, choice, seed, opened)
    with clock("zero"):
        fills = {name: chosen[name].fill for name in removed if name in chosen}
        edits = {name: zeroed(removed[name].where, fill, removed[name].shape) for name, fill in fills.items()}
        lazy = graph.assemble({name: replace(graph.lazy(name), edit=edit) for name, edit in edits.items()})
        made = _Made(lazy, store, None if scratch is None else Path(scratch))
    with clock("measure"):
        check_runs(graph, shapes, made.model, seed=seed)
        options: dict[str, Any] = {
            "sparsity": sparsity,
            "pattern": pattern,
            "granularity": granularity,
            "scope": scope,
            "criterion": criterion,
        }
        options |= {"bernoulli": bernoulli, "normalise": normalise, "layers": layers, "freeze": list(freeze), "seed": seed}
        report = _report(graph, shapes, made, {**options, "store": store}, rows, left, dataset, opened, clock, seed)
    order = opened.order or tuple(t.name for t in graph.proto.graph.initializer)
    record = Sidecar(removed, opened.original or _sha256(model, graph), store, order if store == "sparse" else ())
    return Sparsified(made.model, report, model, record, external, made.scratch, opened.sidecar)


def _masked(
    graph: Graph, chosen: Mapping[str, Filter], worth: Worth, choice: Choice, seed: int, opened: Opened
) -> tuple[tuple[Layer, ...], dict[str, Removed]]:
    """A row for each tensor, and what all of them lose, and lost before, by tensor."""
    rows, removed = [], dict(opened.removed)
    for name, stays in each_mask(worth, choice, np.random.default_rng(seed), {n: f.layout for n, f in chosen.items()}):
        found, shape = chosen[name], graph.weights.shape(name)
        leaves, values = ~found.stored(stays, shape), graph.weights.read(name)
        zero = found.fill.over(shape).astype(values.dtype)
        before = zeros(values, zero)
        fresh = int(np.count_nonzero(leaves & (values != zero)))
        gone = taken(graph, name, leaves, found.fill, opened.removed.get(name))
        if gone.count:
            removed[name] = gone
        rows.append(Layer(name, found.node.label, shape, values.size, (before, before + fresh)))
    return tuple(rows), removed


class _Made:
    """The sparse model: in memory, or where it is large in files of a scratch folder. ``sparse``: tensors stored as such."""

    def __init__(self, lazy: LazyModel, store: str, folder: Path | None) -> None:
        self.scratch: Scratch | None = None
        self.model: AnyModel
        self.sparse = 0
        if lazy.large:
            self.scratch = Scratch(folder, lazy.nbytes)
            try:
                save(lazy, self.scratch.folder / _SPARSE, external=True)
                self.model = load(self.scratch.folder / _SPARSE).assemble()
            except BaseException:
                self.scratch.close()
                raise
            self.bytes = lazy.nbytes
            return
        self.model = lazy.complete()
        if store == "sparse":
            self.model, self.sparse = with_sparse(self.model)
        data = self.model.SerializeToString()
        self.gzip = len(compressed(data))
        self.bytes = self.gzip if store == "compressed" else len(data)


def _report(
    graph: Graph,
    shapes: Shapes,
    made: _Made,
    options: dict[str, Any],
    rows: tuple[Layer, ...],
    left: tuple[Left, ...],
    dataset: Dataset | None,
    opened: Opened,
    clock: Clock,
    seed: int,
) -> Sparsification:
    original = graph.assemble().ready()
    if dataset is None:
        feeds = random_feeds(graph.inputs, shapes.inputs, np.random.default_rng(seed))
    else:
        feeds = next(dataset.take(np.zeros(1, np.int64)).batches(graph.inputs))[0]
    latencies = interleaved((original, made.model), feeds)
    metrics = {} if dataset is None else measure((original, made.model), dataset, graph.inputs, loss=True)
    parameters = cost(graph, shapes).parameters
    full = parameters - _zeros(graph, {row.tensor: row.zeros[0] for row in rows})
    fresh = sum(row.zeros[1] - row.zeros[0] for row in rows)
    gzip = None if isinstance(original, LazyModel) else (len(compressed(original.SerializeToString())), made.gzip)
    found = Sparsification(
        options=options,
        parameters=parameters,
        nonzeros=(full, full - fresh),
        layers=rows,
        left=left,
        bytes=(graph.stored_bytes, made.bytes),
        gzip=gzip,
        latencies=latencies,
        metrics=metrics,
        warnings=(),
        elapsed=clock.elapsed,
    )
    said = tuple(filter(None, (*opened.warnings, *_remarks(found, made, dataset))))
    return replace(found, warnings=said)


def _zeros(graph: Graph, known: Mapping[str, int]) -> int:
    """How many of a model's parameters are zero."""
    stored = (n for n in graph.weights if graph.weights.is_parameter(n) and not graph.is_copy(n))
    total = sum(known[n] if n in known else sum(zeros(part, 0) for _, part in graph.weights.pieces(n)) for n in stored)
    inside = (t for _, _, t in graph.inner_tensors if t.data_type in PARAMETERS)
    return total + sum(zeros(read_tensor(t, t.name, graph.weights.folder), 0) for t in inside)


def _remarks(found: Sparsification, made: _Made, dataset: Dataset | None) -> Iterator[str]:
    """What the user should know."""
    before, after = found.sparsity
    if not found.layers:
        yield "the model is written unchanged"
    elif before == after:
        yield f"nothing was below the threshold that is not zero already ({100 * before:.1f} % of these weights are)"
    empty = [row.node for row in found.layers if row.zeros[1] == row.weights > row.zeros[0]]
    if empty:
        yield f"nothing is left of the weights of {len(empty)} layers: {', '.join(empty[:4])}{' ...' if empty[4:] else ''}"
    if found.options["criterion"] in ("taylor", "gradient") and dataset is not None and dataset.labels is None:
        yield "the data have no labels: the loss is that of the classes which the model itself predicts"
    if found.options["criterion"] != "magnitude":
        yield "the samples that chose the weights also measured the result; compare the models on others, too"
    if found.options["store"] == "sparse":
        yield f"{made.sparse} tensors are smaller as sparse initializers (onnxruntime makes them dense when it loads the model)"
    if found.options["store"] == "compressed":
        yield "runtimes do not read compressed models: decompress it with gzip -d, or onnxprune restore"
    if before != after:
        ratio = f"latency ratio {found.latency_ratio:.2f}"
        yield f"zeros save no time: onnxruntime multiplies with them as with other numbers ({ratio})"


def _sha256(source: Source, graph: Graph) -> str:
    """Of the model's files, or of the proto."""
    if not isinstance(source, ModelProto):
        return digest(Path(source))
    try:
        return hashlib.sha256(source.SerializeToString()).hexdigest()
    except EncodeError:  # over 2 GB
        return graph.sha256
