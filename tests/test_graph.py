"""What goes in comes out: names, metadata, versions, forms of storage; and what is unused goes."""

from __future__ import annotations

from pathlib import Path

import graphs
import judge
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.graph import load


def decorated() -> onnx.ModelProto:
    """A model with everything that a round trip through graphsurgeon loses."""
    model = graphs.build(["plain", "residual", "gate"], "pool", 0)
    model.producer_name, model.producer_version, model.domain, model.model_version = "maker", "1.2", "my.domain", 7
    model.doc_string = "about the model"
    model.metadata_props.add(key="author", value="someone")
    model.graph.doc_string = "about the graph"
    model.graph.metadata_props.add(key="graph", value="yes")
    for k, node in enumerate(model.graph.node):
        node.doc_string = f"about node {k}"
        node.metadata_props.add(key="number", value=str(k))
    note = model.graph.quantization_annotation.add(tensor_name=model.graph.node[0].output[0])
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w0")
    model.graph.initializer[0].doc_string = "about a weight"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def test_names_metadata_and_annotations_survive() -> None:
    before = decorated()
    after = onnxprune.prune(before, ratio=0.5).model
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(after, name) == getattr(before, name), name
    assert list(after.metadata_props) == list(before.metadata_props)
    assert list(after.opset_import) == list(before.opset_import)
    assert after.graph.name == before.graph.name
    assert after.graph.doc_string == before.graph.doc_string
    assert list(after.graph.metadata_props) == list(before.graph.metadata_props)
    assert list(after.graph.quantization_annotation) == list(before.graph.quantization_annotation)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert list(after.graph.node) == list(before.graph.node)
    assert [t.name for t in after.graph.initializer] == [t.name for t in before.graph.initializer]
    assert after.graph.initializer[0].doc_string == "about a weight"


def test_attributes_that_graphsurgeon_drops_survive() -> None:
    model = graphs.build(["shuffle"], "pool", 0)
    odd = helper.make_attribute("remark", onnx.helper.make_tensor_type_proto(1, [2]))
    model.graph.node[0].attribute.append(odd)
    model.graph.node[0].domain = ""
    edited = load(model).editor()
    node = load(model).nodes[0]
    edited.set_attribute(node, "group", 1)
    assert odd in edited.finish({}, {}).proto.graph.node[0].attribute


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12])
def test_old_opsets_stay_what_they_are(opset: int) -> None:
    nodes = [
        helper.make_node("Conv", ["image", "a", "ab"], ["x"], "first", kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["x", "s", "ab", "ab", "v"], ["n"], "norm"),
        helper.make_node("Relu", ["n"], ["r"], "relu"),
        helper.make_node("MaxPool", ["r"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["p", "target"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "b", "bb"], ["logits"], "fc", transB=1),
    ]
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 3, 3, 3), "ab": (8,), "s": (8,), "v": (8,), "b": (5, 128), "bb": (5,)}
    weights = [numpy_helper.from_array(np.abs(rng.standard_normal(s)).astype(np.float32), n) for n, s in shapes.items()]
    weights.append(numpy_helper.from_array(np.array([-1, 128], np.int64), "target"))
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("image", ["n", 3, 8, 8]), ("logits", ["n", 5]))]
    model = helper.make_model(
        helper.make_graph(nodes, "old", ports[:1], ports[1:], weights),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=4,
    )
    result = onnxprune.prune(model, ratio=0.5)
    assert result.model.opset_import[0].version == opset
    onnx.checker.check_model(result.model)
    judge.assert_equal(model, result.model, result.plan.to_dict())
    assert judge.stored(result.model)["b"].dims == [5, 64]


def test_initializers_among_the_inputs() -> None:
    model = graphs.build(["plain", "plain"], "pool", 0)
    model.ir_version = 3
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 12))
    model.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer)
    result = onnxprune.prune(model, ratio=0.5)
    onnx.checker.check_model(result.model)
    declared = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in result.model.graph.input}
    for tensor in result.model.graph.initializer:
        assert declared[tensor.name] == list(tensor.dims)
    judge.assert_equal(model, result.model, result.plan.to_dict())


def test_weights_in_constant_nodes() -> None:
    model = graphs.build(["plain", "gate"], "pool", 0)
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    nodes = [*constants, *model.graph.node]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    result = onnxprune.prune(model, ratio=0.5)
    assert not result.model.graph.initializer
    judge.assert_equal(model, result.model, result.plan.to_dict())
    assert judge.parameters(result.model) < judge.parameters(model) / 2


def test_unsorted_nodes_and_no_shapes() -> None:
    model = graphs.build(["plain", "concat", "shuffle"], "flatten", 0)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    result = onnxprune.prune(model, ratio=0.5)
    judge.assert_equal(model, result.model, result.plan.to_dict())
    assert judge.parameters(result.model) < judge.parameters(model)


def test_declared_shapes_follow() -> None:
    model = onnx.shape_inference.infer_shapes(graphs.build(["plain", "residual"], "pool", 0))
    assert model.graph.value_info
    result = onnxprune.prune(model, ratio=0.5)
    onnx.shape_inference.infer_shapes(result.model, check_type=True, strict_mode=True)
    before = {v.name: v.type.tensor_type.shape.dim for v in model.graph.value_info}
    after = {v.name: v.type.tensor_type.shape.dim for v in result.model.graph.value_info}
    assert any(after[n] != before[n] for n in after)
    for name, dims in after.items():
        assert [d.dim_param for d in dims] == [d.dim_param for d in before[name]]


def test_a_table_read_as_far_as_the_input_goes_keeps_its_rows() -> None:
    """Positions beyond the probe's sequence are needed by longer ones."""
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 12), "table": (1, 64, 12), "v": (12, 5)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    weights += [numpy_helper.from_array(np.array([k], np.int64), n) for n, k in (("zero", 0), ("one", 1), ("two", 2))]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "one", "two"], ["length"]),
        helper.make_node("Slice", ["table", "zero", "length", "one"], ["part"]),
        helper.make_node("Add", ["h", "part"], ["sum"]),
        helper.make_node("MatMul", ["sum", "v"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", "t", k]) for n, k in (("x", 8), ("y", 5))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = onnxprune.prune(model, ratio=0.5)
    assert {(s.tensor, s.axis) for s in result.plan.sites} == {("w", 1), ("table", 2), ("v", 0)}
    inputs = {"x": rng.standard_normal((2, 60, 8)).astype(np.float32)}
    masked = judge.masked(model, result.plan.to_dict())
    assert judge.distance(judge.run(masked, inputs), judge.run(result.model, inputs)) <= judge.RTOL


def test_unused_nodes_and_weights_go() -> None:
    model = graphs.build(["plain", "plain"], "pool", 0)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(999, np.float32), "unused"))
    model.graph.node.append(helper.make_node("Relu", ["image"], ["nowhere"], "dead"))
    result = onnxprune.prune(model, ratio=0.5)
    assert "unused" not in judge.stored(result.model)
    assert "dead" not in [n.name for n in result.model.graph.node]


@pytest.mark.parametrize("size", [3, 70])
def test_external_data(tmp_path: Path, size: int) -> None:
    model = graphs.build(["plain", "residual"], "pool", 0)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, size, 1, 1), np.float32), "extra"))
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location="weights.bin", size_threshold=0)
    result = onnxprune.prune(path, ratio=0.5)
    (tmp_path / "out").mkdir()
    result.save(tmp_path / "out" / "small.onnx")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"small.onnx", "small.onnx.data"}
    written = onnx.load(tmp_path / "out" / "small.onnx")
    judge.assert_equal(onnx.load(path), written, result.plan.to_dict())
    assert result.report.before.bytes == sum(p.stat().st_size for p in (tmp_path / "in").iterdir())


def test_local_functions_are_inlined() -> None:
    model = graphs.build(["plain", "plain"], "pool", 0)
    body = [helper.make_node("Relu", ["x"], ["y"])]
    model.functions.append(helper.make_function("mine", "Act", ["x"], ["y"], body, [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    first = model.graph.node[0]
    call = helper.make_node("Act", [first.output[0]], ["acted"], "call", domain="mine")
    for node in list(model.graph.node)[1:]:
        for k, name in enumerate(node.input):
            if name == first.output[0]:
                node.input[k] = "acted"
    model.graph.node.insert(1, call)
    result = onnxprune.prune(model, ratio=0.5)
    judge.assert_equal(model, result.model, result.plan.to_dict())
    assert judge.parameters(result.model) < judge.parameters(model) / 2


def test_readers_of_a_merged_vector_get_their_own() -> None:
    """Two layers share only a bias; they keep different channels, and the plan says so."""
    model = graphs.build(["merged"], "pool", 0)
    result = onnxprune.prune(model, ratio=0.5)
    plan = result.plan.to_dict()
    judge.assert_equal(model, result.model, plan)
    shared = {c["tensor"] for c in plan["copies"]}
    assert shared
    assert not shared & {s["tensor"] for s in plan["sites"]}
    for name in shared:
        keeps = {tuple(c["keep"]) for c in plan["copies"] if c["tensor"] == name}
        assert len(keeps) > 1


def test_a_model_that_can_not_be_cut_is_written_as_it_is() -> None:
    model = graphs.build([], "open", 0)
    result = onnxprune.prune(model, ratio=0.5)
    assert result.model == model
    assert not result.plan.sites
    assert "nothing was cut" in str(result.report)
