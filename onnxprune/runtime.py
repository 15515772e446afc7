"""onnxruntime: sessions, feeds and intermediate results; the only module that imports it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import EncodeError
from onnx import ModelProto, TensorProto, ValueInfoProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from onnxprune.assembly import alone
from onnxprune.errors import ModelError
from onnxprune.graph import Graph
from onnxprune.lazy import AnyModel, LazyModel
from onnxprune.structure import Node, Port
from onnxprune.weights import Array

_ORT_ERRORS: tuple[type[Exception], ...] = (
    *(e for e in vars(ort_errors).values() if isinstance(e, type) and issubclass(e, Exception)),
    RuntimeError,
    ValueError,  # also raised for names that are no UTF-8, and sizes that no array can have
    TypeError,
    MemoryError,
)

_PLACE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+:\d+ .*?\([^()]*\)(?: const)? ")
"""The parts of onnxruntime's messages that say where in its own source something went wrong."""

PROBE_SIZES = (64, 224, 32, 128, 16, 299, 1024)
"""Sizes tried for dynamic dimensions, in this order, until the model runs."""

Feeds = Mapping[str, Array]


clock = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-6 else time.perf_counter
"""The time of this thread alone, where the system knows it: models of one thread run in it, and what other programs take of the
processor meanwhile, in slices longer than many a run, does not count."""


def quiet() -> None:
    """Keep onnxruntime's remarks about models off standard error, for the whole process."""
    ort.set_default_logger_severity(4)


def _limit_memory() -> bool:
    """Give all sessions together at most half of the machine's memory, so that a model can't take all of it."""
    if not hasattr(os, "sysconf"):
        return False
    try:
        half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(info, ort.OrtArenaCfg({"max_mem": half}))
    except _ORT_ERRORS:  # it is not known here, or the process has set a limit of its own
        return False
    return True


_LIMITED = _limit_memory()


class Session:
    """A model in onnxruntime on the CPU, deterministic, with a given number of threads.

    The weights of a lazy model stay in their files, from where they are mapped into memory, if it is not optimised.

    Args:
        optimise: whether onnxruntime rewrites the graph and repacks weights; by default if the model is a proto.
    """

    def __init__(self, model: AnyModel, *, threads: int = 1, optimise: bool | None = None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        level = ort.GraphOptimizationLevel
        lazy = isinstance(model, LazyModel)
        full = not lazy if optimise is None else optimise
        options.graph_optimization_level = level.ORT_ENABLE_ALL if full else level.ORT_DISABLE_ALL
        if not optimise:  # unless speed is the matter: no rounding of activations to 8 bits, which a model does not ask for
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        options.add_session_config_entry("session.use_env_allocators", "1" if _LIMITED else "0")
        if isinstance(model, LazyModel):
            model, folder = model.referring()
            options.add_session_config_entry("session.disable_prepacking", "0" if full else "1")
            if folder is not None:
                options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        try:
            data = model.SerializeToString()
        except EncodeError as error:
            raise ModelError(
                "the model is too large or too deeply nested to be handed to onnxruntime; save it with external data, or split it"
            ) from error
        try:
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        except _ORT_ERRORS as error:
            raise ModelError(
                f"onnxruntime {ort.__version__} can't load the model: {_reason(error)}; correct it, or export it again"
            ) from error

    @property
    def outputs(self) -> list[str]:
        """Names of the graph outputs, in order."""
        return [o.name for o in self._session.get_outputs()]

    @property
    def elem_types(self) -> list[int]:
        """Element types of the graph outputs, in order; 0 for what is no tensor."""
        kinds = [re.fullmatch(r"tensor\((\w+)\)", o.type) for o in self._session.get_outputs()]
        return [0 if kind is None else int(TensorProto.DataType.Value(kind[1].upper())) for kind in kinds]

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[Any]:
        """Run once. Returns the outputs in order (arrays, except for sequences and maps).

        Raises:
            ModelError: with onnxruntime's reason.
        """
        try:
            return list(self._session.run(list(outputs) if outputs is not None else None, dict(feeds)))
        except _ORT_ERRORS as error:
            raise ModelError(
                f"onnxruntime {ort.__version__} can't run the model: {_reason(error)}; correct it, or export it again"
            ) from error


class Kernels:
    """Runs single nodes of a graph in onnxruntime, which is much faster on large arrays than the reference evaluator."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._opset = [helper.make_opsetid(domain, version) for domain, version in graph.opset.items()]
        self._sessions: dict[tuple[object, ...], Session] = {}

    def __call__(self, node: Node, operands: Sequence[Array | None]) -> list[Any]:
        """Results in the order of the node's (named) outputs, for arrays in the order of its inputs.

        Raises:
            ModelError: onnxruntime can't run the node on these arrays.
        """
        key = (node.index, *(None if array is None else array.dtype for array in operands))
        if key not in self._sessions:
            model = alone(self._graph.protos[node.index], [array is not None for array in operands], self._opset, {})
            types = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in operands if array is not None]
            for port, elem_type in zip(model.graph.input, types, strict=True):
                port.type.tensor_type.elem_type = elem_type
            model.ir_version = min(model.ir_version, 10)
            self._sessions[key] = Session(model)
        return self._sessions[key].run({f"in{k}": array for k, array in enumerate(operands) if array is not None})


def _reason(error: Exception) -> str:
    text = "".join(c if c.isprintable() else "?" for c in _PLACE.sub("", " ".join(str(error).split())))
    return (text if len(text) <= 240 else f"{text[:240]} ...").rstrip(".") or type(error).__name__


def optimised(model: ModelProto) -> ModelProto:
    """A model as onnxruntime's basic optimisation leaves it: constants folded, normalisations inside convolutions.

    Raises:
        ModelError: with onnxruntime's reason.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with TemporaryDirectory(prefix=".onnxprune-") as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0)
        except _ORT_ERRORS as error:
            raise ModelError(
                f"onnxruntime {ort.__version__} can't optimise the model: {_reason(error)}; correct it, or export it again"
            ) from error
        return onnx.load(options.optimized_model_filepath)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A node of a model as onnxruntime runs it. ``microseconds``: per run."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    microseconds: float


def kernels(model: ModelProto, feeds: Feeds, *, seconds: float) -> list[Kernel]:
    """What onnxruntime makes of a model, and how long each part takes: one thread, the mean of the fastest quarter of all runs.

    Args:
        seconds: of measuring, about; eight runs at least, and forty at most.

    Raises:
        ModelError: with onnxruntime's reason.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    with TemporaryDirectory(prefix=".onnxprune-") as folder:
        options.profile_file_prefix = str(Path(folder) / "times")
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        try:
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            start = clock()
            for turn in range(40):
                session.run(None, dict(feeds))
                if turn > 6 and clock() - start > seconds:
                    break
            events = json.loads(Path(session.end_profiling()).read_bytes())
        except _ORT_ERRORS as error:
            raise ModelError(f"onnxruntime {ort.__version__} can't time the model: {_reason(error)}; it is left out") from error
        made = onnx.load(options.optimized_model_filepath, load_external_data=False)
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_TIMED):
            times.setdefault(event["name"].removesuffix(_TIMED), []).append(event["dur"])
    found = []
    for node in made.graph.node:
        ordered = sorted(times.get(node.name, [0.0]))
        fast = ordered[: max(1, len(ordered) // 4)]
        found.append(Kernel(node.op_type, tuple(node.input), tuple(node.output), sum(fast) / len(fast)))
    return found


_TIMED = "_kernel_time"
"""What onnxruntime's own profile calls the run of a node."""


def version() -> str:
    """Of onnxruntime."""
    return str(ort.__version__)


def concrete(ports: Iterable[Port], *, batch: int, size: int) -> dict[str, tuple[int, ...]]:
    """Concrete shapes for graph inputs: ``batch`` for a dynamic first axis, ``size`` for other dynamic axes.

    An axis of the same name as some first axis is a batch too, as is the only dynamic axis of a recurrent state (layers,
    batch, width). Inputs of fewer than four axes are sequences rather than images; a quarter of the size does for them,
    and for the steps of a cache of past keys. A name that is a sum (``past + 1``) is one; what is called a total is the
    sum of past and present steps.
    """
    shapes = {p.name: p.shape or () for p in ports}
    batches = {s[0] for s in shapes.values() if s and isinstance(s[0], str)}
    names = {d for s in shapes.values() for d in s if isinstance(d, str)} - batches
    past = {d for d in names if "past" in d and "+" not in d}
    steps = next((s[1] for s in shapes.values() if len(s) == 2 and s[1] not in past and "total" not in str(s[1])), None)
    sizes: dict[str, int] = dict.fromkeys(past, size // 4)
    found: dict[str, tuple[int, ...]] = {}
    for name, dims in shapes.items():
        state = len(dims) == 3 and isinstance(dims[0], int) and isinstance(dims[2], int)
        other = size if len(dims) >= 4 else batch if state else size // 4
        dynamic = dict.fromkeys(batches, batch) | dict.fromkeys(names - past, other) | sizes
        if past and isinstance(steps, int | str):
            present = steps if isinstance(steps, int) else dynamic[steps]
            dynamic |= {d: size // 4 + present for d in names if "total" in d}
        found[name] = tuple(
            d if isinstance(d, int) else batch if i == 0 else other if d is None else _total(d, dynamic)
            for i, d in enumerate(dims)
        )
    return found


def _total(name: str, sizes: Mapping[str, int]) -> int:
    """The size of a named axis; a sum of sizes where the name is one."""
    terms = [t.strip() for t in name.split("+")]
    known = [int(t) if t.isdigit() else sizes.get(t) for t in terms]
    return sum(t for t in known if t is not None) if len(terms) > 1 and None not in known else sizes[name]


def random_feeds(inputs: Iterable[Port], shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator) -> dict[str, Array]:
    """Standard normal floats, zeros and ones for integers, all true for booleans."""
    feeds: dict[str, Array] = {}
    for port in inputs:
        try:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(port.elem_type)
        except (KeyError, ValueError, TypeError) as error:
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


def tapped(model: LazyModel, names: Iterable[str], *, only: bool = False) -> LazyModel:
    """The same model with the tensors called ``names``, intermediate ones included, as further (or the ``only``) outputs."""
    copy = ModelProto()
    copy.CopyFrom(model.proto)
    if only:
        del copy.graph.output[:]
    known = {o.name for o in copy.graph.output}
    copy.graph.output.extend(ValueInfoProto(name=n) for n in dict.fromkeys(names) if n and n not in known)
    return replace(model, proto=copy)
