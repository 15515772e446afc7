"""Rewrite exported graphs as deployment tools do: quantised, in half precision, with fused operators.

    python benchmarks/export_variants.py OUT [--from FOLDER ...] [--only TEXT]

reads the files that ``export_models.py``, ``export_transformers.py`` and ``export_recurrent.py`` wrote to the folders
(default: OUT) and writes ``OUT/<name>.<variant>.onnx``; and, from no file, graphs with the operators for attention of
recent opsets and of onnxruntime, and scikit-learn's models. ``--only`` limits it to files whose name contains TEXT. Each file
is run in onnxruntime; where it should compute what its source does, the outputs are compared. The ones that failed are
listed at the end, and the exit status is then 1.

Needs ``onnx onnxruntime onnxconverter-common scikit-learn skl2onnx`` and what ``export_transformers.py`` needs.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from export_transformers import run_apart
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

SEED = 0
HALF, QUANTISED = 5e-2, None
"""Largest accepted difference from the source's outputs, relative to the largest of them; ``None``: not compared."""
EXACT = 1e-3
Write = Callable[[Path], None]
Feed = dict[str, np.ndarray]

# --- run ------------------------------------------------------------------------------------------------------------


def session(path: Path | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


def feed(model: ort.InferenceSession, rng: np.random.Generator) -> Feed:
    """Random values for the inputs of ``model``; axes of the same name get the same size."""
    sizes = {"batch": 2, "images": 2, "unk": 2, "past_sequence": 9, "decoder_sequence": 7, "samples_input_values": 4000}
    if any(given.name.startswith("past") for given in model.get_inputs()):
        sizes["sequence"] = 1

    def value(given: ort.NodeArg) -> np.ndarray:
        shape = [d if isinstance(d, int) else sizes.get(str(d), 2 if axis == 0 else 10) for axis, d in enumerate(given.shape)]
        kind = TYPES[given.type]
        if "mask" in given.name or kind is np.bool_:
            return np.ones(shape, kind)
        if "position" in given.name:
            return np.broadcast_to(np.arange(shape[-1], dtype=kind), shape).copy()
        if np.issubdtype(kind, np.integer):
            return rng.integers(1, 2 if "type" in given.name else 15, shape).astype(kind)
        return rng.standard_normal(shape).astype(kind)

    return {given.name: value(given) for given in model.get_inputs()}


def check(path: Path, source: Path | None, tolerance: float | None) -> str:
    """Run the file and compare it with its source; raises if it fails or differs too much."""
    changed, original = session(path), session(source) if source else None
    inputs = feed(original or changed, np.random.default_rng(SEED))
    outputs = changed.run(None, {given.name: inputs[given.name].astype(TYPES[given.type]) for given in changed.get_inputs()})
    for given, array in zip(changed.get_outputs(), outputs, strict=True):
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{given.name} is not finite")
    if original is None:
        return ""
    expected = original.run(None, inputs)
    error = max(
        float(np.abs(a.astype(np.float64) - e).max() / np.abs(e).max()) for a, e in zip(outputs, expected, strict=True) if e.size
    )
    if tolerance is not None and error > tolerance:
        raise ValueError(f"outputs differ from the source's by {error:.1e} of the largest")
    return f"error {error:.1e}"


# --- quantised ------------------------------------------------------------------------------------------------------


class Samples(CalibrationDataReader):
    """A few random inputs."""

    def __init__(self, path: Path) -> None:
        rng, model = np.random.default_rng(SEED), session(path)
        self.rows: Iterator[Feed] = iter([feed(model, rng) for _ in range(3)])

    def get_next(self) -> Feed | None:
        """The next input, until there is none."""
        return next(self.rows, None)


def static(source: Path, path: Path, kind: str, per_channel: bool = False, form: str = "QDQ", **options: Any) -> None:
    """Quantise activations and weights; ``kind`` is like ``U8S8``: the types of activations and of weights."""
    types = {"U8": QuantType.QUInt8, "S8": QuantType.QInt8, "U16": QuantType.QUInt16, "S16": QuantType.QInt16}
    activation, weight = (types[part] for part in kind.split("_"))
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            Samples(prepared),
            quant_format=QuantFormat[form],
            per_channel=per_channel,
            activation_type=activation,
            weight_type=weight,
            extra_options=options,
        )


def dynamic(source: Path, path: Path, weight: str = "QInt8", per_channel: bool = False, clear: bool = False) -> None:
    """Quantise weights, and activations as they come; the new exporter's shapes of weights have to be cleared before."""
    model = onnx.load(source)
    if clear:
        model.graph.ClearField("value_info")
    quantize_dynamic(model, path, weight_type=QuantType[weight], per_channel=per_channel)


def blocks(source: Path, path: Path, bits: int = 4, form: str = "QOperator", symmetric: bool = True, size: int = 32) -> None:
    """Weights of ``MatMul`` quantised in blocks, to ``MatMulNBits`` or to a blocked ``DequantizeLinear``."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantiser = MatMulNBitsQuantizer(
        onnx.load(source), bits=bits, block_size=size, is_symmetric=symmetric, quant_format=QuantFormat[form]
    )
    quantiser.process()
    quantiser.model.save_model_to_file(str(path), use_external_data_format=False)


# --- half precision -------------------------------------------------------------------------------------------------


def float16(source: Path, path: Path, keep_io_types: bool = True) -> None:
    from onnxconverter_common.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=keep_io_types), path)


def transformers_float16(source: Path, path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), path)


def stored(source: Path, path: Path, kind: int) -> None:
    """Weights are stored in 16 bits and cast to 32 before their use."""
    model = onnx.load(source)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            array, name = numpy_helper.to_array(tensor), tensor.name
            tensor.CopyFrom(numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(kind)), f"{name}_stored"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], f"{name}_cast", to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts + nodes)
    onnx.save(model, path)


# --- fused ----------------------------------------------------------------------------------------------------------


def offline(source: Path, path: Path, level: str) -> None:
    """What onnxruntime itself runs after its optimisations of a level."""
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def fused(source: Path, path: Path, kind: str, half: bool = False, level: int | None = None, **switches: bool) -> None:
    """With the fusions of onnxruntime's optimiser for a kind of transformer."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions(kind)
    for switch, value in switches.items():
        setattr(options, switch, value)
    model = optimize_model(str(source), kind, num_heads=4, hidden_size=64, optimization_options=options, opt_level=level)
    if half:
        model.convert_float_to_float16(keep_io_types=True)
    model.save_model_to_file(str(path))
    if not any(node.domain == "com.microsoft" for node in model.model.graph.node):
        raise ValueError("nothing was fused")


def recent(name: str, opset: int, path: Path) -> None:
    """A network of ``export_transformers.py`` by the new exporter at a recent opset."""
    import export_transformers as networks

    case = networks.NETWORKS[name]
    model = networks.build(case)
    networks.export(model, case, "dynamo", path, opset)
    for size in ((networks.BATCH, networks.LENGTH), networks.OTHER):
        networks.compare(model, case.inputs(*size), path)


# --- graphs written by hand -----------------------------------------------------------------------------------------


class Builder:
    """Collects nodes and random weights, as programs that write ONNX without a framework do."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.rng = np.random.default_rng(SEED)

    def weight(self, name: str, *shape: int, gain: bool = False) -> str:
        """Add a matrix that keeps the size of what it multiplies, or gains around one."""
        array = self.rng.uniform(0.5, 1.5, shape) if gain else self.rng.standard_normal(shape) * max(shape[0], 1) ** -0.5
        return self.constant(name, array.astype(np.float32))

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add an initializer."""
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, inputs: list[str], outputs: int | list[str] = 1, domain: str = "", **attributes: Any) -> str:
        """Add a node and return its first output."""
        name = f"{operator}_{len(self.nodes)}"
        names = [f"{name}_{i}" for i in range(outputs)] if isinstance(outputs, int) else outputs
        self.nodes.append(helper.make_node(operator, inputs, names, name, domain=domain, **attributes))
        return names[0]

    def linear(self, x: str, name: str, given: int, made: int) -> str:
        """Add a product with a new matrix."""
        return self.node("MatMul", [x, self.weight(name, given, made)])

    def save(self, path: Path, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], opset: int) -> None:
        """Write the model; inputs and outputs are given with their shapes."""
        integers = {"input_ids", "position_ids", "attention_mask"}

        def info(name: str, shape: list[Any]) -> onnx.ValueInfoProto:
            kind = TensorProto.INT64 if name in integers else TensorProto.FLOAT
            return helper.make_tensor_value_info(name, kind, shape)

        given, made = ([info(*item) for item in side.items()] for side in (inputs, outputs))
        graph = helper.make_graph(self.nodes, "decoder", given, made, self.weights)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


class Sizes(NamedTuple):
    """Of a decoder."""

    width: int = 64
    hidden: int = 160
    vocabulary: int = 100
    queries: int = 4
    keys: int = 2
    head: int = 16
    values: int = 12
    layers: int = 2
    positions: int = 64


FULL = Sizes()


def rotation(build: Builder, sizes: Sizes) -> tuple[str, str]:
    angles = np.arange(sizes.positions)[:, None] / 10000 ** (np.arange(sizes.head // 2) / (sizes.head // 2))
    return build.constant("cos", np.cos(angles).astype(np.float32)), build.constant("sin", np.sin(angles).astype(np.float32))


def generator(path: Path, packed: bool = False, rotate: bool = True, sizes: Sizes = FULL) -> None:
    """A decoder in onnxruntime's own operators, in the manner of its generator of language models."""
    build, ms = Builder(), "com.microsoft"
    cos, sin = rotation(build, sizes)
    x = build.node("Gather", [build.weight("embed", sizes.vocabulary, sizes.width), "input_ids"])
    inputs: dict[str, list[Any]] = {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "total_sequence"]}
    counts = build.node("ReduceSum", ["attention_mask", build.constant("axis", np.array([1]))], keepdims=0)
    last = build.node("Sub", [counts, build.constant("one", np.array(1))])
    last = build.node("Cast", [last], to=TensorProto.INT32)
    total = build.node("Gather", [build.node("Shape", ["attention_mask"]), "one"], axis=0)
    total = build.node("Cast", [total], to=TensorProto.INT32)
    outputs: dict[str, list[Any]] = {"logits": ["batch", "sequence", sizes.vocabulary]}
    skip, gain = x, build.weight("norm", sizes.width, gain=True)
    normal = build.node("SimplifiedLayerNormalization", [x, gain], axis=-1, epsilon=1e-6)
    for layer in range(sizes.layers):
        if packed:
            qkv = [build.linear(normal, f"qkv{layer}", sizes.width, (sizes.queries + 2 * sizes.keys) * sizes.head), "", ""]
        else:
            heads = {"q": sizes.queries, "k": sizes.keys, "v": sizes.keys}
            qkv = [build.linear(normal, f"{part}{layer}", sizes.width, count * sizes.head) for part, count in heads.items()]
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        inputs |= {name: ["batch", sizes.keys, "past_sequence", sizes.head] for name in past}
        outputs |= {name: ["batch", sizes.keys, "total_sequence", sizes.head] for name in present}
        y = build.node(
            "GroupQueryAttention",
            [*qkv, *past, last, total, *((cos, sin) if rotate else ())],
            [f"attention{layer}", *present],
            ms,
            num_heads=sizes.queries,
            kv_num_heads=sizes.keys,
            do_rotary=int(rotate),
        )
        y = build.linear(y, f"o{layer}", sizes.queries * sizes.head, sizes.width)
        names = [f"normal{layer}", "", "", f"skip{layer}"]
        gain = build.weight(f"gain{layer}", sizes.width, gain=True)
        normal = build.node("SkipSimplifiedLayerNormalization", [skip, y, gain], names, ms, epsilon=1e-6)
        gate, up = (build.linear(normal, f"{part}{layer}", sizes.width, sizes.hidden) for part in ("gate", "up"))
        gate = build.node("Mul", [gate, build.node("Sigmoid", [gate])])
        down = build.linear(build.node("Mul", [gate, up]), f"down{layer}", sizes.hidden, sizes.width)
        names, gain = [f"next{layer}", "", "", f"sum{layer}"], build.weight(f"out{layer}", sizes.width, gain=True)
        normal = build.node("SkipSimplifiedLayerNormalization", [f"skip{layer}", down, gain], names, ms, epsilon=1e-6)
        skip = f"sum{layer}"
    build.node("MatMul", [normal, build.weight("head", sizes.width, sizes.vocabulary)], ["logits"])
    build.save(path, inputs, outputs, 21)


def standard(path: Path, opset: int = 23, past: bool = False, sizes: Sizes = FULL) -> None:
    """A decoder in the operators of opset 23, whose attention takes all heads of a token in one axis."""
    build = Builder()
    cos, sin = rotation(build, sizes)
    x = build.node("Gather", [build.weight("embed", sizes.vocabulary, sizes.width), "input_ids"])
    inputs: dict[str, list[Any]] = {"input_ids": ["batch", "sequence"], "position_ids": ["batch", "sequence"]}
    outputs: dict[str, list[Any]] = {"logits": ["batch", "sequence", sizes.vocabulary]}
    for layer in range(sizes.layers):
        normal = build.node("RMSNormalization", [x, build.weight(f"norm{layer}", sizes.width, gain=True)], axis=-1)
        q = build.linear(normal, f"q{layer}", sizes.width, sizes.queries * sizes.head)
        k = build.linear(normal, f"k{layer}", sizes.width, sizes.keys * sizes.head)
        v = build.linear(normal, f"v{layer}", sizes.width, sizes.keys * sizes.values)
        q = build.node("RotaryEmbedding", [q, cos, sin, "position_ids"], num_heads=sizes.queries)
        k = build.node("RotaryEmbedding", [k, cos, sin, "position_ids"], num_heads=sizes.keys)
        names = [f"attention{layer}"]
        operands = [q, k, v]
        if past:
            before, after = ([f"{when}.{layer}.{part}" for part in ("key", "value")] for when in ("past", "present"))
            for side, names_, axis in ((inputs, before, "past_sequence"), (outputs, after, "total_sequence")):
                side |= {name: ["batch", sizes.keys, axis, sizes.head if "key" in name else sizes.values] for name in names_}
            operands += ["", *before]
            names += after
        y = build.node("Attention", operands, names, q_num_heads=sizes.queries, kv_num_heads=sizes.keys, is_causal=1, scale=0.25)
        x = build.node("Add", [x, build.linear(y, f"o{layer}", sizes.queries * sizes.values, sizes.width)])
        normal = build.node("RMSNormalization", [x, build.weight(f"gain{layer}", sizes.width, gain=True)], axis=-1)
        gate, up = (build.linear(normal, f"{part}{layer}", sizes.width, sizes.hidden) for part in ("gate", "up"))
        swish = build.node("Swish", [gate]) if opset >= 24 else build.node("Mul", [gate, build.node("Sigmoid", [gate])])
        x = build.node("Add", [x, build.linear(build.node("Mul", [swish, up]), f"down{layer}", sizes.hidden, sizes.width)])
    build.node("MatMul", [x, build.weight("head", sizes.width, sizes.vocabulary)], ["logits"])
    build.save(path, inputs, outputs, opset)


def contributed(path: Path, operator: str, sizes: Sizes = FULL) -> None:
    """An encoder layer around one of onnxruntime's operators for attention."""
    build, ms = Builder(), "com.microsoft"
    x = build.linear("x", "embed", 24, sizes.width)
    if operator == "Attention":
        weight, bias = build.weight("qkv", sizes.width, 3 * sizes.width), build.weight("qkv_bias", 3 * sizes.width)
        y = build.node("Attention", [x, weight, bias], 1, ms, num_heads=4)
    elif operator == "Attention_sizes":
        half = sizes.width // 2
        weight, bias = build.weight("qkv", sizes.width, 2 * half + sizes.width), build.weight("qkv_bias", 2 * half + sizes.width)
        y = build.node("Attention", [x, weight, bias], 1, ms, num_heads=4, qkv_hidden_sizes=[half, half, sizes.width])
    else:
        q, k, v = (build.linear(x, part, sizes.width, sizes.width) for part in "qkv")
        y = build.node(operator, [q, k, v, build.weight("qkv_bias", 3 * sizes.width)], 1, ms, num_heads=4)
    y = build.linear(y, "o", sizes.width, sizes.width)
    gain, bias = build.weight("gain", sizes.width, gain=True), build.weight("bias", sizes.width)
    x = build.node("SkipLayerNormalization", [x, y, gain, bias, build.weight("o_bias", sizes.width)], 1, ms)
    y = build.node("BiasGelu", [build.linear(x, "up", sizes.width, sizes.hidden), build.weight("up_bias", sizes.hidden)], 1, ms)
    y = build.linear(y, "down", sizes.hidden, sizes.width)
    gain, bias = build.weight("gain2", sizes.width, gain=True), build.weight("bias2", sizes.width)
    x = build.node("SkipLayerNormalization", [x, y, gain, bias], 1, ms)
    build.node("MatMul", [x, build.weight("head", sizes.width, 5)], ["logits"])
    build.save(path, {"x": ["batch", "sequence", 24]}, {"logits": ["batch", "sequence", 5]}, 17)


# --- scikit-learn ---------------------------------------------------------------------------------------------------


def sklearn(name: str, path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn import (
        cluster,
        decomposition,
        ensemble,
        linear_model,
        naive_bayes,
        neighbors,
        neural_network,
        pipeline,
        preprocessing,
        svm,
        tree,
    )

    network = partial(neural_network.MLPClassifier, max_iter=30, random_state=SEED)
    models = {
        "mlp_classifier": network((32, 24)),
        "mlp_tanh": network((32, 24), activation="tanh"),
        "mlp_logistic": network((32,), activation="logistic"),
        "mlp_regressor": neural_network.MLPRegressor(hidden_layer_sizes=(32, 24), max_iter=30, random_state=SEED),
        "mlp_multilabel": network((32,)),
        "scaled_mlp": pipeline.make_pipeline(preprocessing.StandardScaler(), network((32, 24))),
        "pca_mlp": pipeline.make_pipeline(preprocessing.StandardScaler(), decomposition.PCA(8), network((32,))),
        "normalised_mlp": pipeline.make_pipeline(preprocessing.Normalizer(), preprocessing.MinMaxScaler(), network((32,))),
        "polynomial": pipeline.make_pipeline(preprocessing.PolynomialFeatures(2), linear_model.Ridge()),
        "logistic": linear_model.LogisticRegression(),
        "scaled_logistic": pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression()),
        "linear": linear_model.LinearRegression(),
        "forest": ensemble.RandomForestClassifier(10, max_depth=5, random_state=SEED),
        "boosting": ensemble.GradientBoostingRegressor(n_estimators=10, random_state=SEED),
        "tree": tree.DecisionTreeClassifier(max_depth=4, random_state=SEED),
        "svc": svm.SVC(probability=True, random_state=SEED),
        "linear_svc": svm.LinearSVC(),
        "kmeans": cluster.KMeans(4, n_init=2, random_state=SEED),
        "neighbours": neighbors.KNeighborsClassifier(3),
        "naive_bayes": naive_bayes.GaussianNB(),
        "voting": ensemble.VotingClassifier(
            [("a", network((16,))), ("b", linear_model.LogisticRegression())], voting="soft", flatten_transform=False
        ),
    }
    model, rng = models[name], np.random.default_rng(SEED)
    x = rng.standard_normal((120, 12), np.float32)
    if name == "mlp_multilabel":
        model.fit(x, x[:, :3] > 0)
    elif hasattr(model, "predict_proba") or name == "linear_svc":
        model.fit(x, (x[:, 0] > 0) * 1 + (x[:, 1] > 0))
    else:
        model.fit(x, x[:, 0] * x[:, 1])
    options = {"zipmap": False} if hasattr(model, "classes_") and name not in ("linear_svc", "mlp_multilabel") else None
    onnx.save(to_onnx(model, x[:1], options={id(model): options} if options else None), path)


SKLEARN = (
    *("mlp_classifier", "mlp_tanh", "mlp_logistic", "mlp_regressor", "mlp_multilabel", "scaled_mlp", "pca_mlp"),
    *("normalised_mlp", "polynomial", "logistic", "scaled_logistic", "linear", "forest", "boosting", "tree", "svc"),
    *("linear_svc", "kmeans", "neighbours", "naive_bayes", "voting"),
)

# --- table ----------------------------------------------------------------------------------------------------------

Variant = tuple[Callable[[Path, Path], None], float | None]
STATIC: dict[str, Variant] = {
    "qdq_u8s8": (partial(static, kind="U8_S8"), QUANTISED),
    "qdq_u8s8_channel": (partial(static, kind="U8_S8", per_channel=True), QUANTISED),
    "qdq_s8s8": (partial(static, kind="S8_S8", ActivationSymmetric=True), QUANTISED),
    "qdq_s8s8_channel": (partial(static, kind="S8_S8", per_channel=True), QUANTISED),
    "qdq_u8u8": (partial(static, kind="U8_U8"), QUANTISED),
    "qdq_u16u8": (partial(static, kind="U16_U8"), QUANTISED),
    # Weights stay in 32 bits before a pair of quantisation and dequantisation, as after quantisation-aware training.
    "qdq_weight_pairs": (partial(static, kind="S8_S8", per_channel=True, AddQDQPairToWeight=True), QUANTISED),
    "qdq_float_bias": (partial(static, kind="U8_S8", QuantizeBias=False), QUANTISED),
    "qoperator_u8s8": (partial(static, kind="U8_S8", form="QOperator"), QUANTISED),
    "qoperator_u8s8_channel": (partial(static, kind="U8_S8", form="QOperator", per_channel=True), QUANTISED),
    "qoperator_u8u8": (partial(static, kind="U8_U8", form="QOperator"), QUANTISED),
}
DYNAMIC: dict[str, Variant] = {
    "dynamic_s8": (dynamic, QUANTISED),
    "dynamic_s8_channel": (partial(dynamic, per_channel=True), QUANTISED),
    "dynamic_u8": (partial(dynamic, weight="QUInt8"), QUANTISED),
    "dynamic_cleared": (partial(dynamic, clear=True), QUANTISED),
}
BLOCKED: dict[str, Variant] = {
    "q4": (blocks, QUANTISED),
    "q4_zero_points": (partial(blocks, symmetric=False), QUANTISED),
    "q4_qdq": (partial(blocks, form="QDQ"), QUANTISED),
    "q8": (partial(blocks, bits=8, size=64), QUANTISED),
}
FLOATS: dict[str, Variant] = {
    "fp16": (float16, HALF),
    "fp16_io": (partial(float16, keep_io_types=False), HALF),
    "fp16_transformers": (transformers_float16, HALF),
    "fp16_stored": (partial(stored, kind=TensorProto.FLOAT16), HALF),
    "bf16_stored": (partial(stored, kind=TensorProto.BFLOAT16), HALF * 4),
}
OFFLINE: dict[str, Variant] = {f"ort_{level}": (partial(offline, level=level), EXACT) for level in ("basic", "extended", "all")}


def pick(*tables: dict[str, Variant], names: str = "") -> dict[str, Variant]:
    chosen = {name: variant for table in tables for name, variant in table.items()}
    return {name: chosen[name] for name in names.split()} if names else chosen


VARIANTS: dict[str, dict[str, Variant]] = {
    "mobilenet_v2.ts": pick(STATIC, DYNAMIC, FLOATS, OFFLINE),
    "resnet18.ts": pick(STATIC, OFFLINE, names="qdq_u8s8_channel qoperator_u8s8 ort_extended ort_all"),
    "bert.ts": pick(STATIC, DYNAMIC, BLOCKED, FLOATS, OFFLINE),
    "vit.ts": pick(
        STATIC, DYNAMIC, FLOATS, OFFLINE, names="qdq_u8s8 qdq_s8s8_channel qoperator_u8s8 dynamic_s8 fp16 ort_extended"
    ),
    "gpt2.ts": pick(
        STATIC, DYNAMIC, FLOATS, OFFLINE, names="qdq_u8s8 qoperator_u8s8 dynamic_s8 fp16_transformers ort_basic ort_extended"
    ),
    "llama_gqa.ts": pick(STATIC, DYNAMIC, BLOCKED, FLOATS, OFFLINE),
    "llama_gqa_cache.ts": pick(BLOCKED, DYNAMIC, OFFLINE, names="q4 dynamic_s8 ort_extended"),
    "t5.ts": pick(DYNAMIC, FLOATS, OFFLINE, names="dynamic_s8 fp16_transformers ort_extended"),
    "swin.ts": pick(STATIC, OFFLINE, names="qdq_u8s8 ort_extended ort_all"),
    "bert.dynamo": pick(STATIC, DYNAMIC, FLOATS, OFFLINE, names="qdq_u8s8 dynamic_cleared fp16 ort_extended"),
    "llama_gqa.dynamo": pick(BLOCKED, DYNAMIC, OFFLINE, names="q4 q4_qdq dynamic_s8 ort_extended"),
    "mobilenet_v2.dynamo": pick(STATIC, OFFLINE, names="qdq_u8s8_channel ort_extended"),
    "torch_encoder.ts": pick(
        STATIC, DYNAMIC, FLOATS, OFFLINE, names="qdq_u8s8 qoperator_u8s8 dynamic_s8 fp16_transformers ort_extended"
    ),
    "lstm.ts": pick(DYNAMIC, FLOATS, OFFLINE, names="dynamic_s8 dynamic_s8_channel fp16 fp16_stored ort_extended"),
    "lstm2_bi.ts": pick(DYNAMIC, OFFLINE, names="dynamic_s8 ort_extended"),
    "gru2.ts": pick(DYNAMIC, FLOATS, OFFLINE, names="dynamic_s8 fp16_stored ort_extended"),
    "crnn.ts": pick(STATIC, OFFLINE, names="qdq_u8s8_channel ort_extended"),
    "whisper.ts": pick(DYNAMIC, OFFLINE, names="dynamic_s8 ort_extended"),
}
KINDS = {
    "bert": "bert roberta distilbert electra deberta_v2 torch_encoder torch_encoder_prenorm",
    "gpt2": "gpt2 llama_gqa phi falcon",
    "gpt_neox": "gpt_neox",
    "qwen3": "qwen3",
    "vit": "vit timm_vit beit",
    "swin": "swin swinv2",
    "t5": "t5",
    "bart": "bart whisper",
    "clip": "clip",
    "conformer": "wav2vec2",
}
"""Of the networks to fuse, as onnxruntime's optimiser calls them."""
EAGER = ("bert", "roberta", "distilbert", "gpt2", "llama_gqa", "qwen3", "bart", "whisper", "vit", "clip")
FUSED: dict[str, str] = {
    f"{name}{form}.{exporter}": kind
    for kind, names in KINDS.items()
    for name in names.split()
    for form in (("", "_eager") if name in EAGER else ("",))
    for exporter in ("ts", "dynamo")
}
RECENT = (
    *("bert", "roberta", "gpt2", "llama_gqa", "llama_mha", "llama_gqa_cache", "mistral", "qwen3", "gemma", "gemma2", "phi"),
    *("phi3", "falcon", "opt", "bloom", "gpt_neox", "t5", "bart", "whisper", "vit", "swin", "clip", "timm_vit", "timm_eva02"),
    *("mha_self", "mha_cross", "torch_encoder", "torch_transformer", "modernbert", "mixtral"),
)
MADE: dict[str, Write] = {
    **{f"{name}.dynamo23": partial(recent, name, 23) for name in RECENT},
    **{f"{name}.dynamo24": partial(recent, name, 24) for name in ("bert", "llama_gqa", "llama_gqa_cache", "vit", "t5")},
    "decoder.standard23": standard,
    "decoder_cache.standard23": partial(standard, past=True),
    "decoder.standard24": partial(standard, opset=24),
    "decoder.microsoft": generator,
    "decoder_packed.microsoft": partial(generator, packed=True),
    "decoder_unrotated.microsoft": partial(generator, rotate=False),
    **{
        f"{operator.lower()}.microsoft": partial(contributed, operator=operator)
        for operator in ("Attention", "Attention_sizes", "MultiHeadAttention")
    },
    **{f"{name}.skl": partial(sklearn, name) for name in SKLEARN},
}


def jobs(folders: list[Path]) -> Iterator[tuple[str, Write, Path | None, float | None]]:
    """Name, writer, source and tolerance of every file."""

    def find(name: str) -> Path:
        return next((path for folder in folders if (path := folder / f"{name}.onnx").exists()), Path(f"{name}.onnx"))

    for name, write in MADE.items():
        yield name, write, None, None
    for name, variants in VARIANTS.items():
        for variant, (change, tolerance) in variants.items():
            yield f"{name}.{variant}", partial(change, find(name)), find(name), tolerance
    for name, kind in FUSED.items():
        source = find(name)
        yield f"{name}.fused", partial(fused, source, kind=kind), source, EXACT * 10
    for name in ("bert_eager.ts", "gpt2.ts", "vit.ts"):
        source, kind = find(name), FUSED[name]
        yield f"{name}.fused_fp16", partial(fused, source, kind=kind, half=True), source, HALF
    source = find("bert_eager.ts")
    heads = partial(fused, source, kind="bert", use_multi_head_attention=True)
    yield "bert_eager.ts.fused_multi_head", heads, source, EXACT * 10


def make(write: Write, path: Path, source: Path | None, tolerance: float | None) -> str:
    """Write and check a file; returns how that went and which operators are in it that its source does not have."""
    write(path)
    result = check(path, source, tolerance)
    nodes = onnx.load(path).graph.node
    known = {node.op_type for node in onnx.load(source).graph.node} if source else set()
    special = Counter(node.op_type for node in nodes if node.op_type not in known)
    summary = " ".join(f"{operator}:{count}" for operator, count in special.most_common(6))
    return f"{path.stat().st_size / 2**10:7.0f} KiB {result} {summary}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--from", dest="folders", type=Path, nargs="*", default=[], help="folders to read from")
    parser.add_argument("--only", default="", metavar="TEXT", help="only files whose name contains it")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    ort.set_default_logger_severity(4)

    failures: list[str] = []
    for name, write, source, tolerance in jobs([*args.folders, args.out]):
        if args.only not in name:
            continue
        path = args.out / f"{name}.onnx"
        result = run_apart(make, write, path, source, tolerance)
        if result.startswith("FAILED"):
            path.unlink(missing_ok=True)
            failures.append(f"{path.name}: {result.removeprefix('FAILED ')}")
        print(f"{path.name:45} {result}", flush=True)
    if failures:
        print(f"\n{len(failures)} failed:", *failures, sep="\n  ")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
