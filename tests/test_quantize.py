"""Quantised models: half the bytes or a quarter, the same interface, nearly the same results, nothing left behind."""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.evaluate import Latency
from onnxprune.graph import load
from onnxprune.quantize import integer
from onnxprune.quantize.half import round_half, to_half
from onnxprune.quantize.integer import to_integer
from onnxprune.quantize.quantized import Quantization
from onnxprune.runtime import Session
from onnxprune.shapes import infer

EXPORTED = Path(__file__).parent / "exported"
DEMO = Path(onnxprune.__file__).parent / "demo"


def half(model: ModelProto) -> ModelProto:
    graph = load(model)
    return to_half(graph.assemble().complete(), infer(graph).elem_types)[0]


def kinds(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def build(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: list[Any], y: list[Any], opset: int = 17) -> ModelProto:
    """A model with one input and one output of floats."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", y))]
    stored = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def wide(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def mlp(**changes: np.ndarray) -> ModelProto:
    """x (N, 64) -> Gemm, Relu, MatMul -> y (N, 10)."""
    rng = np.random.default_rng(0)
    weights = {"a": wide(rng, 128, 64), "b": wide(rng, 128), "c": wide(rng, 128, 10)} | changes
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["h"], "gemm", transB=1),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "c"], ["y"], "matmul"),
    ]
    return build(nodes, weights, ["N", 64], ["N", 10])


def error(model: ModelProto, other: ModelProto, seed: int = 0, size: int = 64) -> float:
    """Largest difference of two models with the input x, relative to the largest value."""
    x = np.random.default_rng(seed).standard_normal((3, size)).astype(np.float32)
    (a,), (b,) = (Session(m).run({"x": x}) for m in (model, other))
    return float(np.abs(a - b).max() / np.abs(a).max())


def interface(model: ModelProto) -> list[bytes]:
    return [port.SerializeToString() for port in (*model.graph.input, *model.graph.output)]


# both modes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    with np.load(DEMO / "digits.npz") as archive:
        return dict(archive)


@pytest.mark.parametrize(("mode", "left", "lost"), [("fp16", 0.52, 0.0), ("int8", 0.35, 0.02)])
def test_the_demo_network(tmp_path: Path, demo: dict[str, Any], mode: str, left: float, lost: float) -> None:
    before = set(os.listdir(tempfile.gettempdir()))
    path = DEMO / "digits.onnx"
    made = onnxprune.quantize(path, mode, data=demo)
    original, report = onnx.load(path), made.report
    assert interface(made.model) == interface(original)
    assert report.bytes == (original.ByteSize(), made.model.ByteSize())
    assert report.bytes[1] < left * report.bytes[0]
    old, new = report.metrics["accuracy"]
    assert new >= old - lost
    assert report.metrics["agreement"] >= 0.98
    assert 0 < report.metrics["relative_error"] < 0.1
    made.save(tmp_path / "small.onnx")
    assert onnx.load(tmp_path / "small.onnx") == made.model
    found = onnxprune.compare(path, tmp_path / "small.onnx", data=demo)
    assert found.metrics["accuracy"] == [old, new]
    assert set(os.listdir(tempfile.gettempdir())) - before == set()


@pytest.mark.parametrize("mode", ["fp16", "int8"])
def test_quantised_models_can_be_pruned(mode: str, demo: dict[str, Any]) -> None:
    made = onnxprune.quantize(DEMO / "digits.onnx", mode, data=demo).model
    result = onnxprune.prune(made, ratio=0.5)
    assert result.report.verification is not None
    assert result.report.verification.passed
    assert result.report.after.parameters < 0.6 * result.report.before.parameters


def test_a_pruned_model_can_be_quantised() -> None:
    result = onnxprune.prune(DEMO / "digits.onnx", ratio=0.5)
    made = onnxprune.quantize(result.pruned, "fp16")
    assert made.model.ByteSize() < 0.6 * result.model.ByteSize()


@pytest.mark.parametrize("mode", ["fp16", "int8"])
def test_the_same_call_gives_the_same_model(mode: str, demo: dict[str, Any]) -> None:
    model = onnx.load(DEMO / "digits.onnx")
    before = model.SerializeToString()
    one, two = (onnxprune.quantize(model, mode, data=demo, seed=1).model for _ in range(2))
    assert one == two
    assert model.SerializeToString() == before


def test_labels_stay() -> None:
    model = mlp()
    model.producer_name, model.domain, model.model_version, model.doc_string = "maker", "org.example", 7, "about"
    model.metadata_props.add(key="classes", value="ten")
    for mode in ("fp16", "int8"):
        made = onnxprune.quantize(model, mode).model
        for name in ("producer_name", "domain", "model_version", "doc_string"):
            assert getattr(made, name) == getattr(model, name)
        assert list(made.metadata_props) == list(model.metadata_props)
        assert made.graph.name == "net"


# fmt: off
SURVEY = [
    "if.ts", "loop.ts", "lstm.ts", "gru.ts", "cond.dynamo", "mlp.dynamo", "bert.ts.ort_extended", "vit.ts",
    "transformer_encoder.ts", "residual.ts.qdq", "residual.ts.fp16", "tied_autoencoder.ts", "res2net.ts9", "keras_cnn.tf2onnx",
    "mlp_classifier.skl",
]
# fmt: on


@pytest.mark.parametrize("name", SURVEY)
def test_models_of_all_kinds(name: str) -> None:
    """Both modes, and int8 with and without samples, run and give nearly the same (0.1 of the outputs' size)."""
    graph = load(EXPORTED / f"{name}.onnx")
    model, shapes = graph.assemble().complete(), infer(graph)
    made = to_half(model, shapes.elem_types)[0]
    samples = [onnxprune.runtime.random_feeds(graph.inputs, shapes.inputs, np.random.default_rng(s)) for s in range(3)]
    others = [made, *(to_integer(model, given, reduce_range=False).model for given in ([], samples))]
    wanted = Session(model).run(samples[0])
    for other, bound in zip(others, (0.02, 0.15, 0.15), strict=True):
        assert [p.name for p in load(other).inputs] == [p.name for p in graph.inputs]
        for a, b in zip(wanted, Session(other).run(samples[0]), strict=True):
            if isinstance(a, np.ndarray):
                assert (a.dtype, a.shape) == (b.dtype, b.shape)
                if a.dtype.kind == "f":
                    assert np.abs(a - b).max() <= bound * np.abs(a).max()


# float16 --------------------------------------------------------------------------------------------------------------


def test_weights_and_products_are_float16() -> None:
    model = mlp()
    made = half(model)
    assert {t.name: t.data_type for t in made.graph.initializer} == dict.fromkeys(
        ["a_half", "b_half", "c_half"], TensorProto.FLOAT16
    )
    assert kinds(made) == ["Cast", "Gemm", "Relu", "MatMul", "Cast"]
    assert error(model, made) < 2e-3


def test_what_float16_can_t_hold_stays_float32() -> None:
    large = np.full((128, 10), 1e5, np.float32)
    model = mlp(c=large)
    made = half(model)
    assert {t.name for t in made.graph.initializer if t.data_type == TensorProto.FLOAT} == {"c"}
    assert error(model, made) < 2e-3
    assert round_half(large) is None
    assert round_half(np.float32([1e-9, 1.0])) is not None
    assert round_half(np.float32([1e-9])) is None


def test_a_mask_of_huge_numbers_does_not_become_infinite() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Mul", ["x", "low"], ["m"]),
        helper.make_node("Add", ["h", "m"], ["s"]),
        helper.make_node("Softmax", ["s"], ["y"]),
    ]
    model = build(nodes, {"a": wide(rng, 64, 64), "low": np.float32([-1e30])}, ["N", 64], ["N", 64])
    made = half(model)
    x = np.zeros((2, 64), np.float32)
    assert np.isfinite(Session(made).run({"x": x + 1})[0]).all()
    assert "Add" in kinds(made)
    assert not any(name.endswith("_half") for node in made.graph.node if node.op_type == "Add" for name in node.input)


def test_activations_beyond_float16_stay_float32() -> None:
    """On the processor onnxruntime computes in float32 whatever the types say, so it is the types that are looked at."""
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    for scale, expected in ((500.0, 2), (30000.0, 0)):
        weights = {"a": np.full((64, 64), scale, np.float32), "b": np.full((64, 64), 1e-3, np.float32)}
        report = onnxprune.quantize(build(nodes, weights, ["N", 64], ["N", 64]), "fp16").report
        assert report.nodes == expected
        assert ("no node computes in fp16" in report.warnings) is (expected == 0)


def test_old_models_whose_weights_are_inputs() -> None:
    model = mlp()
    model.ir_version = 3
    model.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer)
    made = half(model)
    assert [p.name for p in made.graph.input] == ["x"]
    assert made.ByteSize() < 0.6 * model.ByteSize()
    assert error(model, made) < 2e-3


# int8 -----------------------------------------------------------------------------------------------------------------


def test_products_need_no_data() -> None:
    model = mlp()
    made = to_integer(model, [], reduce_range=False)
    assert (made.static, made.dynamic, made.left) == (0, 2, {})
    assert kinds(made.model).count("MatMulInteger") == 2
    assert made.model.ByteSize() < 0.45 * model.ByteSize()
    assert error(model, made.model) < 0.03


def test_weights_are_signed_and_by_channel_activations_unsigned(demo: dict[str, Any]) -> None:
    made = onnxprune.quantize(DEMO / "digits.onnx", "int8", data=demo).model
    stored = {t.name: t for t in made.graph.initializer}
    makers = {out: node for node in made.graph.node for out in node.output}
    filters = 0
    for node in made.graph.node:
        if node.op_type == "Conv":
            given, weight = (makers[name] for name in node.input[:2])
            assert weight.op_type == given.op_type == "DequantizeLinear"
            assert stored[weight.input[0]].data_type == TensorProto.INT8
            assert list(stored[weight.input[1]].dims) == list(stored[weight.input[0]].dims[:1])
            assert stored[given.input[2]].data_type == TensorProto.UINT8
            filters += 1
    assert filters == kinds(onnx.load(DEMO / "digits.onnx")).count("Conv") > 0


def test_convolutions_without_data_stay_and_are_named() -> None:
    made = onnxprune.quantize(DEMO / "digits.onnx", "int8")
    count = kinds(onnx.load(DEMO / "digits.onnx")).count("Conv")
    said = f"{count} Conv stay as they are: the ranges of their inputs have to be measured on samples, give data"
    assert said in made.report.warnings
    assert kinds(made.model).count("Conv") == count


def test_a_model_with_nothing_to_quantise_is_returned_as_it_is() -> None:
    model = build([helper.make_node("Softmax", ["x"], ["y"])], {}, ["N", 64], ["N", 64])
    for mode in ("fp16", "int8"):
        made = onnxprune.quantize(model, mode)
        assert kinds(made.model) == ["Softmax"]
        assert made.report.nodes == 0
        assert f"no node computes in {mode}" in made.report.warnings


def test_lost_outputs_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.quantize import quantized

    ruined = mlp(b=np.full(128, np.inf, np.float32))
    said = "some outputs are not finite, though the original's are"
    assert said not in onnxprune.quantize(mlp(), "fp16").report.warnings
    monkeypatch.setattr(quantized, "to_half", lambda *given: (ruined, 1))
    assert said in onnxprune.quantize(mlp(), "fp16").report.warnings


def test_calibration_takes_the_ranges_from_the_data(demo: dict[str, Any]) -> None:
    """Negative control: with samples of another scale, the network is ruined."""
    name = next(n for n in demo if n != "labels")
    graph = load(DEMO / "digits.onnx")
    model = graph.assemble().complete()
    right, wrong = ([{graph.inputs[0].name: scale * demo[name][:64]}] for scale in (1, 0.01))
    x = {graph.inputs[0].name: demo[name][64:]}
    want = Session(model).run(x)[0].argmax(1)
    alike = [np.mean(Session(to_integer(model, s, reduce_range=False).model).run(x)[0].argmax(1) == want) for s in (right, wrong)]
    assert alike[0] > 0.97
    assert alike[1] < 0.6


def test_shared_weights_and_biases() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"], transB=1),
        helper.make_node("Gemm", ["h", "a"], ["y"]),
    ]
    model = build(nodes, {"a": wide(rng, 32, 64)}, ["N", 64], ["N", 64])
    made = to_integer(model, [], reduce_range=False)
    assert made.dynamic == 2
    assert error(model, made.model) < 0.05


def test_reduced_range_uses_seven_bits() -> None:
    def largest(reduce_range: bool) -> int:
        model = to_integer(mlp(), [], reduce_range=reduce_range).model
        return max(int(np.abs(numpy_helper.to_array(t).astype(int)).max()) for t in model.graph.initializer if t.data_type == 3)

    assert largest(True) <= 64 < 100 < largest(False)


@pytest.mark.parametrize(
    ("machine", "flags", "reduced"),
    [
        ("x86_64", "flags: avx2 avx512f", True),
        ("x86_64", "flags: avx512f avx512_vnni", False),
        ("AMD64", "flags: avx_vnni", False),
        ("AMD64", None, True),
        ("aarch64", "", False),
    ],
)
def test_which_processors_need_it(monkeypatch: pytest.MonkeyPatch, machine: str, flags: str | None, reduced: bool) -> None:
    def read(self: Path, encoding: str) -> str:
        if flags is None:
            raise FileNotFoundError
        return flags

    monkeypatch.setattr(integer.platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", read)
    assert integer.needs_reduced_range() is reduced


def test_nothing_is_said_and_logging_stays_as_it_was(capfd: pytest.CaptureFixture[str], demo: dict[str, Any]) -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.manager.disable, root.level
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root.addHandler(handler)
    try:
        onnxprune.quantize(DEMO / "digits.onnx", "int8", data=demo)
        assert stream.getvalue() == ""
        logging.getLogger("own").warning("still heard")
        assert "still heard" in stream.getvalue()
    finally:
        root.removeHandler(handler)
    assert (list(root.handlers), root.manager.disable, root.level) == before
    assert capfd.readouterr() == ("", "")


# errors and reports ---------------------------------------------------------------------------------------------------


def fails(make: Callable[[], object], kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    said = fails(lambda: onnxprune.quantize(model, "int4"), OptionError)
    assert said == "mode 'int4' does not exist; choose one of fp16, int8"
    said = fails(lambda: onnxprune.quantize(model, "int8", data={"z": np.zeros((2, 64), np.float32)}), DataError)
    assert said == "data has arrays ['z'], the model's inputs are ['x']; name one array after each"
    assert "the file does not exist" in fails(lambda: onnxprune.quantize("no.onnx", "fp16"), ModelError)

    def broken(*args: object) -> None:
        raise KeyError("two\nlines")

    monkeypatch.setattr(integer, "optimised", broken)
    before = set(os.listdir(tempfile.gettempdir()))
    said = fails(lambda: onnxprune.quantize(model, "int8"), ModelError)
    assert said == (
        "onnxruntime's quantiser can't take the model: 'two\\nlines'; choose fp16, or export the model in another way"
    )
    assert set(os.listdir(tempfile.gettempdir())) == before


def test_a_model_of_two_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxprune.graph.Graph, "stored_bytes", property(lambda graph: 3_000_000_000))
    said = fails(lambda: onnxprune.quantize(mlp(), "fp16"), ModelError)
    assert said == "the model has 3.0 GB; only models below 2 GB can be quantised"


def test_the_report(tmp_path: Path) -> None:
    speeds = Latency(2.0, 1.5, 2.5), Latency(1.0, 0.9, 1.1)
    report = Quantization("int8", (4000, 1000), speeds, {"relative_error": 0.01, "accuracy": [0.9, 0.88]}, 3, ("careful",))
    assert str(report) == (
        "                   original      int8    ratio\n"
        "  size               4.0 kB    1.0 kB    0.250\n"
        "  latency, median  2.000 ms  1.000 ms    0.500\n"
        "  accuracy           90.0 %    88.0 %  -2.0 pp\n"
        "  relative error               0.0100\n"
        "warning: careful"
    )
    report.save(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert found == report.to_dict()
    assert found["bytes"] == {"before": 4000, "after": 1000}
    assert found["latency_ms"]["ratio"] == 0.5


def test_slower_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.quantize import quantized

    for after, expected in ((1.1, True), (0.9, False)):
        speeds = Latency(1.0, 1.0, 1.0), Latency(after, after, after)
        monkeypatch.setattr(quantized, "interleaved", lambda *given, speeds=speeds: speeds)
        report = onnxprune.quantize(mlp(), "int8").report
        assert ("int8 is not faster on this processor" in report.warnings) is expected
        assert replace(report, warnings=()).latency_ratio == pytest.approx(after)


def test_random_graphs() -> None:
    for seed in range(3):
        model = graphs.build(["plain", "residual", "concat", "gate"], "pool", seed)
        for mode in ("fp16", "int8"):
            assert onnxprune.quantize(model, mode).report.metrics["relative_error"] < 0.1
