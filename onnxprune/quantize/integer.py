"""8-bit integers, by onnxruntime's own tools; the only module that imports them.

Activations are uint8 with a zero point, weights int8 with a scale for each channel. Matrix products and LSTMs are quantised
*dynamically*: each run measures its activations, which needs no data; on a small ViT and an LSTM it was as fast as static
ranges or faster, and agreed better with the original. Convolutions, and what can work on their 8-bit results, are quantised
*statically*, as QuantizeLinear and DequantizeLinear around each, with ranges from calibration data; without data they stay
float32, since dynamic ones were 3.7 to 9 times slower than float, and ranges from random inputs took one network's accuracy
from 88 % to 9 %.
"""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnxprune.assembly import all_names
from onnxprune.errors import ModelError
from onnxprune.files import one_line
from onnxprune.runtime import Feeds, optimised
from onnxprune.structure import STANDARD, bodies, captured, constant_tensor, graphs
from onnxprune.weights import FLOATS, Array

_DYNAMIC = ("MatMul", "LSTM")
"""A Gemm becomes a MatMul and an Add."""
_DYNAMIC_RESULTS = ("MatMulInteger", "DynamicQuantizeLSTM")
_WEIGHTY = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
# fmt: off
PASSING = frozenset({
    "Relu", "LeakyRelu", "Clip", "Sigmoid", "Add", "Mul", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat",
    "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Split", "Slice", "Pad", "Resize",
})
# fmt: on
"""Operators that onnxruntime computes on 8-bit numbers; they are quantised where all that they read is."""

_MARK = ("onnx.quant.pre_process", "onnxruntime.quant")
"""Says that a model has been optimised for the quantiser."""

_OPSET = 13
"""From here on QuantizeLinear has scales by channel; older models are converted."""


@dataclass(frozen=True, slots=True)
class Integer:
    """A quantised model, how many nodes are quantised in each way, and by operator those with weights that are not."""

    model: ModelProto
    static: int
    dynamic: int
    left: dict[str, int]


def to_integer(model: ModelProto, samples: Sequence[Feeds], *, reduce_range: bool) -> Integer:
    """Quantise a model.

    Args:
        model: with all data inside. It is not changed; constants in the result are folded, and normalisations with weights
            are part of the convolutions before them.
        samples: inputs for calibration; empty: convolutions stay float32.
        reduce_range: weights have 7 bits, for processors that add up 8-bit products in 16 bits.

    Raises:
        ModelError: onnxruntime's quantiser can't take the model.
    """
    with TemporaryDirectory(prefix=".onnxprune-") as folder, _silent():
        try:
            return _quantised(model, samples, reduce_range, Path(folder))
        except ModelError:
            raise
        except Exception as error:  # its tools raise whatever comes
            reason = one_line(error) or type(error).__name__
            raise ModelError(
                f"onnxruntime's quantiser can't take the model: {reason}; choose fp16, or export the model in another way"
            ) from error


def needs_reduced_range() -> bool:
    """Whether this processor may saturate sums of 8-bit products: an x86 without VNNI instructions, as far as is known."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True
    return not any(flag in flags for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _quantised(model: ModelProto, samples: Sequence[Feeds], reduce_range: bool, folder: Path) -> Integer:
    # imported here, because it takes as long as all of numpy, and only this needs it
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

    files = [folder / f"{n}.onnx" for n in range(4)]
    plain = optimised(_modern(model))
    _unshare(plain.graph)
    _write(plain, files[0])
    common = {"per_channel": True, "reduce_range": reduce_range, "weight_type": QuantType.QInt8}
    options = {"DefaultTensorType": TensorProto.FLOAT}  # for what comes out of operators that ONNX does not know
    inside = {**options, "EnableSubgraph": True, "MatMulConstBOnly": True}
    quantize_dynamic(files[0], files[1], op_types_to_quantize=list(_DYNAMIC), extra_options=inside, **common)
    current = _told_apart(onnx.load(files[1]), plain)
    _write(current, files[2])
    chosen = _static_nodes(current.graph) if samples else []
    if chosen:
        quantize_static(
            files[2],
            files[3],
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=[node.name for node in chosen],
            op_types_to_quantize=sorted({node.op_type for node in chosen}),
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=options,
            **common,
        )
        current = onnx.load(files[3])
    dynamic = _dynamic(current) - _dynamic(model)
    if not chosen and not dynamic:
        current = model
    return Integer(_labelled(current, model), len(chosen), dynamic, dict(_floating(current)))


def _modern(model: ModelProto) -> ModelProto:
    """The model itself, or the same in the opset that quantisers need."""
    if max((int(entry.version) for entry in model.opset_import if entry.domain in STANDARD), default=_OPSET) >= _OPSET:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    for graph in graphs(copy.graph):
        empty = {t.name for t in graph.initializer if 0 in t.dims} | {
            node.output[0]
            for node in graph.node
            if node.op_type == "Constant" and 0 in getattr(constant_tensor(node), "dims", ())
        }
        for node in graph.node:
            if node.op_type == "Resize":  # in older opsets an omitted input is an empty tensor, which the converter leaves
                node.input[:] = ["" if name in empty else name for name in node.input]
    return onnx.version_converter.convert_version(copy, _OPSET)


def _told_apart(model: ModelProto, before: ModelProto) -> ModelProto:
    """The model with a suffix on each new name: both ways of quantising call what they add by the tensor that it is for."""
    known = {""} | all_names(before.graph) | {node.name for graph in graphs(before.graph) for node in graph.node}
    for graph in graphs(model.graph):
        del graph.value_info[:]
        for tensor in graph.initializer:
            tensor.name = _suffixed(tensor.name, known)
        for node in graph.node:
            node.name = _suffixed(node.name, known)
            for names in (node.input, node.output):
                names[:] = [_suffixed(name, known) for name in names]
    return model


def _unshare(graph: GraphProto) -> None:
    """Give nodes their own copies of what the quantiser changes for one reader and breaks for another."""
    stored = {t.name: t for t in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        place = {"Conv": 2, "Gemm": 1}.get(node.op_type, len(node.input))
        for name in node.input[place : place + 1]:
            if name in stored and readers[name] > 1:
                copy = graph.initializer.add()
                copy.CopyFrom(stored[name])
                copy.name = node.input[place] = f"{node.output[0]}_{name}"
                readers[name] -= 1


def _suffixed(name: str, known: set[str]) -> str:
    return name if name in known else f"{name}_dynamic"


def _static_nodes(graph: GraphProto) -> list[NodeProto]:
    """The convolutions with weights, and the nodes that read nothing but what such nodes write, and constants.

    Not those that subgraphs read: these would not learn that a tensor has another name.
    """
    stored = {t.name for t in graph.initializer}
    inner = {name for node in graph.node for body in bodies(node) for name in captured(body)}
    done: set[str] = set()
    found = []
    for node in graph.node:
        known = node.domain in STANDARD and len(node.input) > 0 and node.input[0] not in stored
        known = known and inner.isdisjoint(node.output)
        made = [name for name in node.input if name and name not in stored]
        convolution = node.op_type == "Conv" and node.input[1] in stored
        if known and (convolution or (node.op_type in PASSING and done.issuperset(made))):
            found.append(node)
            done.update(node.output)
    return found


def _floating(model: ModelProto) -> Counter[str]:
    """How many nodes of each operator with weights have float ones."""
    found: Counter[str] = Counter()
    for graph in graphs(model.graph):
        stored = {t.name for t in graph.initializer if t.data_type in FLOATS} | {
            node.output[0] for node in graph.node if node.op_type == "Constant"
        }
        found.update(node.op_type for node in graph.node if node.op_type in _WEIGHTY and not stored.isdisjoint(node.input[1:2]))
    return found


def _dynamic(model: ModelProto) -> int:
    return sum(node.op_type in _DYNAMIC_RESULTS for graph in graphs(model.graph) for node in graph.node)


def _write(model: ModelProto, path: Path) -> None:
    """Write a model for the quantiser, which finds nodes by their names and, without the mark, warns.

    Declared shapes of weights go: it transposes weights, and takes what it finds declared for the truth.
    """
    stored = {t.name for t in model.graph.initializer}
    declared = [value for value in model.graph.value_info if value.name not in stored]
    del model.graph.value_info[:]
    model.graph.value_info.extend(declared)
    seen = {""}
    for n, node in enumerate(model.graph.node):
        node.name = f"{node.name or node.op_type}_{n}" if node.name in seen else node.name
        seen.add(node.name)
    if not any(entry.key == _MARK[0] for entry in model.metadata_props):
        model.metadata_props.add(key=_MARK[0], value=_MARK[1])
    onnx.save(model, path)


def _labelled(made: ModelProto, model: ModelProto) -> ModelProto:
    """The made model with the original's inputs, outputs and labels, which the tools change."""
    result = ModelProto()
    result.CopyFrom(made)
    inputs = {v.name for v in made.graph.input}
    del result.graph.input[:], result.graph.output[:]
    result.graph.input.extend(v for v in model.graph.input if v.name in inputs)
    result.graph.output.extend(model.graph.output)
    result.graph.name, result.graph.doc_string = model.graph.name, model.graph.doc_string
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    result.domain, result.model_version, result.doc_string = model.domain, model.model_version, model.doc_string
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    return result


class _Reader:
    """Hands the quantiser one sample after the other."""

    def __init__(self, samples: Sequence[Feeds]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        feeds = next(self._samples, None)
        return None if feeds is None else dict(feeds)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing on standard output and error, in the log or as a warning; what the tools change in logging is put back."""
    root = logging.getLogger()
    handlers, disabled = list(root.handlers), root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
