"""Bad input gets one clear line and nothing written; a model that onnxruntime can run is never refused."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import files, graph, lazy
from onnxprune.errors import DataError, ModelError, OutputError

ort.set_default_logger_severity(4)


# a tiny valid model, and ways to damage it ----------------------------------------------------------------------------
def tensor(name: str, values: object, dtype: object = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def info(name: str, shape: object, elem_type: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elem_type, shape)


def net(dtype: object = np.float32) -> ModelProto:
    """Conv, Relu, Conv: x (N, 3, 8, 8) -> y (N, 4, 6, 6)."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w2"], ["y"], "conv2"),
    ]
    rng = np.random.default_rng(1)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (4, 8, 3, 3)}
    weights = [tensor(name, rng.standard_normal(shape), dtype) for name, shape in shapes.items()]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    body = helper.make_graph(nodes, "net", [info("x", ["N", 3, 8, 8], kind)], [info("y", None, kind)], weights)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def weight(model: ModelProto, name: str) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def between(model: ModelProto, *nodes: NodeProto, **constants: TensorProto) -> ModelProto:
    """Put nodes that read ``r`` and write ``q`` in front of the second convolution."""
    for position, node in enumerate(nodes):
        model.graph.node.insert(2 + position, node)
    model.graph.node[-1].input[0] = "q"
    for name, constant in constants.items():
        constant.name = name
        model.graph.initializer.append(constant)
    return model


def subgraph(*nodes: NodeProto, output: str, initializers: tuple[TensorProto, ...] = ()) -> GraphProto:
    return helper.make_graph(nodes, output, [], [info(output, None)], initializers)


def choice(then: GraphProto) -> NodeProto:
    """An If that writes ``q`` and has the branch ``then``."""
    other = subgraph(helper.make_node("Identity", ["r"], ["same"]), output="same")
    return helper.make_node("If", ["true"], ["q"], "choice", then_branch=then, else_branch=other)


TRUE = tensor("true", True, np.bool_)


def branched(*nodes: NodeProto, initializers: tuple[TensorProto, ...] = ()) -> ModelProto:
    """With a subgraph of nodes that read ``r`` and write ``inner``."""
    return between(net(), choice(subgraph(*nodes, output="inner", initializers=initializers)), true=TRUE)


def changed(edit: Callable[[ModelProto], object]) -> ModelProto:
    model = net()
    edit(model)
    return model


def functions(calls: dict[str, list[str]]) -> ModelProto:
    """The Relu replaced by a local function; ``calls``: which functions (or Relu) each function calls, one after another."""
    model = net()
    model.opset_import.append(helper.make_opsetid("local", 1))
    for name, callees in calls.items():
        nodes = [
            helper.make_node(op, [f"t{k}"], [f"t{k + 1}"], domain="local" if op in calls else "") for k, op in enumerate(callees)
        ]
        last = f"t{len(callees)}"
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
        model.functions.append(helper.make_function("local", name, ["t0"], [last], nodes, opsets))
    model.graph.node[1].op_type, model.graph.node[1].domain = next(iter(calls)), "local"
    return model


def nested(depth: int) -> bytes:
    """A model file with subgraphs in subgraphs; written byte by byte, because protobuf refuses to build it."""

    def field(number: int, payload: bytes) -> bytes:
        size, varint = len(payload), b""
        while size > 127:
            varint += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + varint + bytes([size]) + payload

    graph = b""
    for _ in range(depth):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        graph = field(1, field(1, b"c") + field(2, b"o") + field(4, b"If") + field(5, attribute))
    return b"\x08\x08" + field(7, graph) + field(8, b"\x10\x11")


# what every refusal has in common -------------------------------------------------------------------------------------
def write(folder: Path, model: ModelProto | bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def listing(folder: Path) -> dict[str, object]:
    found = sorted(folder.rglob("*"))
    return {str(p): p.read_bytes() if p.is_file() else None for p in found}


def refusal(path: Path, error: type[onnxprune.OnnxpruneError] = ModelError) -> str:
    """The message with which a file is refused, after the checks that hold for all of them."""
    before = listing(path.parent)
    with pytest.raises(onnxprune.OnnxpruneError) as caught:
        onnxprune.prune(path)
    message = str(caught.value)
    assert type(caught.value) is error
    assert caught.value.exit_code == 1
    assert message.isprintable()
    assert len(message) < 600
    assert listing(path.parent) == before
    return message


@pytest.fixture(autouse=True)
def _no_endless_wait() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("this takes too long")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


def test_the_model_that_is_damaged_here_is_sound(tmp_path: Path) -> None:
    """Negative control: without damage nothing is refused."""
    result = onnxprune.prune(write(tmp_path, net()))
    assert result.report.after.parameters < result.report.before.parameters
    for valid in (branched(helper.make_node("Identity", ["r"], ["inner"])), functions({"F": ["G", "Relu"], "G": ["Relu"]})):
        assert onnxprune.prune(valid).report.verification is not None


# files that are no models ---------------------------------------------------------------------------------------------
def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.onnx", content)
    return buffer.getvalue()


SOUND = net().SerializeToString()
NO_MODEL = "the file is not an ONNX model, or it is truncated"
FILES = {
    "empty": (b"", "the file is empty (0 bytes); export the model again"),
    "text": (b"this is not a model\n", NO_MODEL),
    "json": (b'{"nodes": []}', NO_MODEL),
    "zip": (zipped(SOUND), NO_MODEL),
    "zeros": (bytes(4096), NO_MODEL),
    "random": (np.random.default_rng(5).bytes(4096), NO_MODEL),
    "only versions": (b"\x08\x08" + b"B\x02\x10\x11", "there is no graph in it"),
    "nested 100 times": (nested(100), NO_MODEL),
    "nested 500 times": (nested(500), NO_MODEL),
    "first byte lost": (SOUND[1:], NO_MODEL),
    "op no text": (SOUND.replace(b"\x04Relu", b"\x04Re\xfflu"[:5]), "is not UTF-8 text"),
    "tensor name no text": (SOUND.replace(b"\x02w1", b"\x02w\xff"), "is not UTF-8 text"),
    "axis name no text": (SOUND.replace(b"\x01N", b"\x01\xff"), "the dim_param b'\\xff' in it is not UTF-8 text"),
    **{f"truncated at {n} %": (SOUND[: len(SOUND) * n // 100], NO_MODEL) for n in (1, 5, 10, 25, 50, 75, 90, 99)},
    "truncated by 1": (SOUND[:-1], NO_MODEL),
    "truncated after the graph": (SOUND[: SOUND.index(b"B\x04\x0a\x00\x10\x11")], "it declares no operator set version"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path: Path, name: str) -> None:
    data, text = FILES[name]
    path = write(tmp_path, data)
    message = refusal(path)
    assert message.startswith(f"{str(path)!r}: ")
    assert text in message


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "the file does not exist; check the path"),
        (Path.mkdir, "this is a folder; give the path of an ONNX file"),
        (os.mkfifo, "this is no plain file; give the path of an ONNX file"),
        (lambda path: path.symlink_to(path), "the file can't be read: Too many levels of symbolic links"),
        (lambda path: (path.touch(), os.truncate(path, 1 << 40)), "the file is larger than 2 GB"),
    ],
)
def test_no_file(tmp_path: Path, make: Callable[[Path], object], text: str) -> None:
    path = tmp_path / "model.onnx"
    make(path)
    with pytest.raises(ModelError) as caught:
        onnxprune.prune(path)
    assert text in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits(tmp_path: Path, seed: int) -> None:
    """Whatever is flipped outside the weights, it is refused in one line, or the result is a model that loads."""
    rng = np.random.default_rng(seed)
    places = np.ones(len(SOUND), bool)
    for stored in net().graph.initializer:
        start = SOUND.index(stored.raw_data)
        places[start : start + len(stored.raw_data)] = False
    outcomes = set()
    for _ in range(120):
        data = bytearray(SOUND)
        for place in rng.choice(np.flatnonzero(places), rng.integers(1, 3)):
            data[place] ^= 1 << rng.integers(8)
        path = write(tmp_path, bytes(data))
        message = None
        try:
            ort.InferenceSession(onnxprune.prune(path).model.SerializeToString())
        except onnxprune.OnnxpruneError as error:
            message = str(error)
        assert message is None or message.isprintable()
        outcomes.add(message is None)
    assert outcomes == {True, False}


# graphs that make no sense --------------------------------------------------------------------------------------------
def add_node(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> Callable[[ModelProto], object]:
    return lambda m: m.graph.node.append(helper.make_node(op, inputs, outputs, "more", **attributes))


def set_opset(version: int) -> Callable[[ModelProto], object]:
    return lambda m: setattr(m.opset_import[0], "version", version)


def set_attribute(index: int, name: str, value: object) -> Callable[[ModelProto], object]:
    return lambda m: m.graph.node[index].attribute.append(helper.make_attribute(name, value))


NEWEST = onnx.defs.onnx_opset_version()
REFUSED_BY_ORT = f"onnxruntime {ort.__version__} can't load the model: "
EDITS: dict[str, tuple[Callable[[ModelProto], object], str]] = {
    "no graph": (lambda m: m.ClearField("graph"), "there is no graph in it"),
    "no nodes": (lambda m: m.graph.ClearField("node"), "its graph has no nodes"),
    "no outputs": (lambda m: m.graph.ClearField("output"), "its graph has no outputs"),
    "cycle": (lambda m: m.graph.node[0].input.__setitem__(0, "r"), "the graph has a cycle through node 'conv1'"),
    "self loop": (lambda m: m.graph.node[1].input.__setitem__(0, "r"), "the graph has a cycle through node 'relu'"),
    "dangling input": (lambda m: m.graph.node[1].input.__setitem__(0, "lost"), "node 'relu' reads 'lost', which nothing writes"),
    "dangling weight": (lambda m: m.graph.initializer.pop(2), "node 'conv2' reads 'w2', which nothing writes"),
    "dangling output": (lambda m: setattr(m.graph.output[0], "name", "lost"), "graph output 'lost' is written by no node"),
    "two writers": (add_node("Relu", ["a"], ["r"]), "tensor 'r' comes from both node 'relu' and node 'more'"),
    "twice in one node": (add_node("Split", ["a"], ["s", "s"], axis=1), "tensor 's' comes from both node 'more' and node 'more'"),
    "node writes weight": (add_node("Relu", ["a"], ["w1"]), "tensor 'w1' comes from both the graph's inputs or weights and"),
    "node writes input": (add_node("Relu", ["a"], ["x"]), "tensor 'x' comes from both the graph's inputs or weights and"),
    "node writes nothing": (add_node("Relu", ["a"], []), "node 'more' writes nothing"),
    "same input twice": (lambda m: m.graph.input.append(m.graph.input[0]), "two graph inputs have the same name"),
    "two weights, one name": (lambda m: m.graph.initializer.append(tensor("w1", [1.0])), "two different weights are called 'w1'"),
    "constant like weight": (
        lambda m: m.graph.node.append(helper.make_node("Constant", [], ["w1"], value=tensor("", [1.0]))),
        "two different weights are called 'w1'",
    ),
    "no opset": (lambda m: m.ClearField("opset_import"), "it declares no operator set version"),
    "opset 0": (set_opset(0), "it declares opset 0, which does not exist"),
    "next opset": (set_opset(NEWEST + 1), f"it uses opset {NEWEST + 1}, newer than the installed onnx knows ({NEWEST})"),
    "future opset": (set_opset(1 << 40), f"it uses opset {1 << 40}, newer than the installed onnx knows"),
    "opset -1": (set_opset(-1), "it declares opset -1, which does not exist"),
    "future format": (lambda m: setattr(m, "ir_version", 99), f"{REFUSED_BY_ORT}Unsupported model IR version: 99"),
    "unknown domain": (lambda m: setattr(m.graph.node[1], "domain", "my.own"), f"{REFUSED_BY_ORT}This is an invalid model"),
    "unknown operator": (lambda m: setattr(m.graph.node[1], "op_type", "Erfc"), "No Op registered for Erfc"),
    "unknown contrib": (lambda m: setattr(m.graph.node[1], "domain", "com.microsoft"), "com.microsoft:Relu(-1) is not a reg"),
    "group 0": (set_attribute(0, "group", 0), "node 'conv1': its group is 0, which can't be"),
    "group -1": (set_attribute(0, "group", -1), "node 'conv1': its group is -1, which can't be"),
    "stride 0": (set_attribute(2, "strides", [1, 0]), "node 'conv2': its strides is 0, which can't be"),
    "block 2^62": (
        lambda m: between(m, helper.make_node("DepthToSpace", ["r"], ["q"], "d2s", blocksize=1 << 62)),
        f"node 'd2s': its blocksize is {1 << 62}, which can't be",
    ),
    "wrong attribute": (set_attribute(1, "zz", 1), "Unrecognized attribute: zz for operator Relu"),
    "input 2^40": (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[3], "dim_value", 1 << 40), "graph input 'x'"),
    "attribute no text": (set_attribute(0, "auto_pad", b"\xff"), "attribute 'auto_pad' holds b'\\xff', which is not UTF-8 text"),
}


@pytest.mark.parametrize("name", EDITS)
def test_graphs(tmp_path: Path, name: str) -> None:
    edit, text = EDITS[name]
    assert text in refusal(write(tmp_path, changed(edit)))


def resize(name: str, *shape: int) -> Callable[[ModelProto], object]:
    return lambda m: weight(m, name).CopyFrom(tensor(name, np.ones(shape)))


def insert(op: str, *more: str, at: tuple[int, ...] = (), **attributes: object) -> Callable[[ModelProto], object]:
    node = helper.make_node(op, ["r", *more], ["q"], **attributes)
    return lambda m: between(m, node, at=tensor("", at, np.int64))


MISFITS = {
    "3 groups of 8": set_attribute(2, "group", 3),
    "8 groups of 4": set_attribute(2, "group", 8),
    "6 channels for 8": resize("w2", 4, 6, 3, 3),
    "filter of rank 2": resize("w2", 4, 8),
    "filter of rank 0": resize("w2"),
    "7 biases for 8": resize("b1", 7),
    "bias of rank 2": resize("b1", 2, 4),
    "Transpose beyond the rank": insert("Transpose", perm=[0, 7, 2, 3]),
    "Transpose of another rank": insert("Transpose", perm=[0, 1]),
    "Flatten beyond the rank": insert("Flatten", axis=9),
    "Concat of other sizes": insert("Concat", "w1", axis=1),
    "Gather beyond the end": insert("Gather", "at", at=(99,), axis=1),
    "Reshape with two -1": insert("Reshape", "at", at=(-1, -1, 0, 7)),
    "Reshape to another size": insert("Reshape", "at", at=(2, 7, 8, 8)),
    "Split into more": insert("Split", "at", at=(5, 5), axis=1),
    "Squeeze a wide axis": insert("Squeeze", "at", at=(1,)),
    "Tile by too few": insert("Tile", "at", at=(2,)),
    "Pad by too few": insert("Pad", "at", at=(1, 1)),
    "Pad by less than nothing": insert("Pad", "at", at=(0, -9, 0, 0, 0, 0, 0, 0)),
    "Conv without filter": lambda m: m.graph.node[2].input.pop(),
    "Conv without input": lambda m: m.graph.node[2].input.__setitem__(0, ""),
    "Relu of two": lambda m: m.graph.node[1].input.append("w1"),
    "Relu of nothing": lambda m: m.graph.node[1].ClearField("input"),
    "Shape of nothing": add_node("Shape", [], ["s"]),
    "Conv of text": lambda m: m.graph.node[0].attribute.append(helper.make_attribute("dilations", "ab")),
}


@pytest.mark.parametrize("name", MISFITS)
def test_sizes_that_do_not_meet(name: str) -> None:
    """Such nodes can't run, which only onnxruntime can say for sure: they are refused, or left as they are."""
    model = changed(MISFITS[name])
    try:
        message = None
        result = onnxprune.prune(model)
    except ModelError as error:
        message = str(error)
    if message is None:
        assert {s.tensor for s in result.plan.sites} == set()
    else:
        assert message.isprintable()


def test_protos_are_not_changed() -> None:
    """Remarks that are no UTF-8 are dropped from what was read from a file, but a caller's proto is left alone."""
    data = changed(lambda m: setattr(m, "doc_string", "REMARK")).SerializeToString().replace(b"REMARK", b"\xff" * 6)
    for content, text in ((data, "the doc_string b'"), (FILES["op no text"][0], "the op_type b'Re")):
        model = ModelProto.FromString(content)
        with pytest.raises(ModelError, match=f"^model: {text}"):
            onnxprune.prune(model)
        assert model.SerializeToString() == content
    model = unsorted()
    before = model.SerializeToString()
    onnxprune.prune(model)
    assert model.SerializeToString() == before


def test_opset_that_is_not_named() -> None:
    loaded = graph.load(VALID["opset of ONNX not named"][0]())
    assert loaded.opset == {"": NEWEST, "ai.onnx.ml": 3}


def test_graphs_inside() -> None:
    with pytest.raises(ModelError, match=r"node 'choice' reads 'lost', which nothing writes"):
        onnxprune.prune(branched(helper.make_node("Relu", ["lost"], ["inner"])))
    with pytest.raises(ModelError, match=r"node 'Conv': its group is 0, which can't be"):
        onnxprune.prune(branched(helper.make_node("Conv", ["r", "w2"], ["inner"], group=0)))
    with pytest.raises(ModelError, match=r"can't load the model: .*'my\.own'"):
        onnxprune.prune(branched(helper.make_node("Relu", ["r"], ["inner"], domain="my.own")))


def test_nesting_in_memory() -> None:
    """Protobuf lets such a model be built in place, but not be written and read again."""
    model = net()
    nodes = model.graph.node
    for _ in range(300):
        node = nodes.add(op_type="If", input=["x"], output=["o"])
        nodes = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.node
    with pytest.raises(ModelError, match=r"^model: too deeply nested, or too large, for one protobuf message; export it again$"):
        onnxprune.prune(model)


@pytest.mark.parametrize(
    ("calls", "text"),
    [
        ({"F": ["F"]}, "its local function 'F' calls itself"),
        ({"F": ["G"], "G": ["Relu", "F"]}, "calls itself"),
        ({**{f"F{k}": [f"F{k + 1}"] for k in range(900)}, "F900": ["Relu"]}, "is nested too deeply"),
        ({**{f"F{k}": [f"F{k + 1}"] * 2 for k in range(40)}, "F40": ["Relu"]}, "expand into an absurd number of nodes"),
    ],
    ids=["itself", "each other", "chain of 900", "2^40 nodes"],
)
def test_functions(tmp_path: Path, calls: dict[str, list[str]], text: str) -> None:
    assert text in refusal(write(tmp_path, functions(calls)))


# weights that do not fit their headers --------------------------------------------------------------------------------
def header(name: str, **fields: object) -> Callable[[ModelProto], object]:
    def edit(model: ModelProto) -> None:
        stored = weight(model, name)
        for field, value in fields.items():
            if field == "dims":
                del stored.dims[:]
                stored.dims.extend(value)
            elif value is None:
                stored.ClearField(field)
            else:
                setattr(stored, field, value)

    return edit


HEADERS: dict[str, tuple[Callable[[ModelProto], object], str]] = {
    "one byte short": (header("b1", raw_data=bytes(31)), "weight 'b1': shape [8] needs 32 bytes but the file holds 31"),
    "one byte more": (header("b1", raw_data=bytes(33)), "weight 'b1': shape [8] needs 32 bytes but the file holds 33"),
    "no data": (header("b1", raw_data=None), "weight 'b1': shape [8] needs 8 values but the file holds 0"),
    "wider": (header("b1", dims=[9]), "weight 'b1': shape [9] needs 36 bytes but the file holds 32"),
    "double": (header("b1", data_type=TensorProto.DOUBLE), "weight 'b1': shape [8] needs 64 bytes but the file holds 32"),
    "negative": (header("w1", dims=[-8, 3, -3, 3]), "weight 'w1': its shape [-8, 3, -3, 3] has a negative dimension"),
    "2^40": (header("w1", dims=[1 << 40], raw_data=None), "weight 'w1': its shape [1099511627776] is absurdly large"),
    "2^40 in two": (header("w1", dims=[1 << 20, 1 << 20]), "weight 'w1': its shape [1048576, 1048576] is absurdly large"),
    "2^124": (header("w1", dims=[1 << 62, 1 << 62]), "is absurdly large"),
    "2^40 times nothing": (header("w1", dims=[1 << 40, 0], raw_data=b""), "its shape [1099511627776, 0] is absurdly large"),
    "no type": (header("w1", data_type=TensorProto.UNDEFINED), "weight 'w1': its element type 0 does not exist"),
    "unknown type": (header("w1", data_type=999), "weight 'w1': its element type 999 does not exist"),
    "text as bytes": (header("w1", data_type=TensorProto.STRING), "weight 'w1': shape [8, 3, 3, 3] needs no bytes"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(tmp_path: Path, name: str) -> None:
    edit, text = HEADERS[name]
    assert text in refusal(write(tmp_path, changed(edit)))


TYPES = {name: number for name, number in TensorProto.DataType.items() if name != "UNDEFINED"}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "values"])
def test_every_type_is_counted(tmp_path: Path, kind: str, raw: bool) -> None:
    """A tensor of 12 elements is read; with one byte or value less or more, or one dimension doubled, it does not."""
    if raw and kind == "STRING":
        pytest.skip("strings are never stored as bytes")
    number = TYPES[kind]
    values = np.zeros(12, helper.tensor_dtype_to_np_dtype(number)) if kind != "STRING" else np.array(["a"] * 12, object)
    sound = numpy_helper.from_array(values, "more")
    if not raw and kind != "STRING":
        field = helper.tensor_dtype_to_field(number)
        count = len(sound.raw_data) if len(sound.raw_data) < 9 else 24 if kind.startswith("COMPLEX") else 12
        sound.ClearField("raw_data")
        getattr(sound, field).extend([0] * count)
    assert graph.load(changed(lambda m: m.graph.initializer.append(sound))).weights.read("more").shape == (12,)

    def broken(change: Callable[[TensorProto], object]) -> str:
        bad = TensorProto()
        bad.CopyFrom(sound)
        change(bad)
        return refusal(write(tmp_path, changed(lambda m: m.graph.initializer.append(bad))))

    assert "weight 'more': shape [24] needs" in broken(lambda t: t.dims.__setitem__(0, 24))
    assert "weight 'more': shape [0] needs" in broken(lambda t: t.dims.__setitem__(0, 0))
    if raw:
        assert "the file holds" in broken(lambda t: setattr(t, "raw_data", t.raw_data[1:]))
        assert "the file holds" in broken(lambda t: setattr(t, "raw_data", t.raw_data + b"0"))
    else:
        field = "string_data" if kind == "STRING" else helper.tensor_dtype_to_field(number)
        assert "the file holds" in broken(lambda t: getattr(t, field).pop())
        assert "the file holds" in broken(lambda t: getattr(t, field).append(getattr(t, field)[0]))


# NaN and Inf ----------------------------------------------------------------------------------------------------------
FLOATS = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def damaged(shape: tuple[int, ...], index: tuple[int, ...], value: float, dtype: object = np.float32) -> TensorProto:
    values = np.random.default_rng(0).standard_normal(shape)
    values[index] = value
    return tensor("bad", values, dtype)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
def test_not_finite(tmp_path: Path, dtype: object, value: float) -> None:
    model = net(dtype)
    stored = damaged((4, 8, 3, 3), (1, 2, 0, 1), value, dtype)
    weight(model, "w2").CopyFrom(stored)
    weight(model, "bad").name = "w2"
    what = "NaN" if np.isnan(value) else "Inf"
    assert f"weight 'w2': {what} at index [1, 2, 0, 1]; the network is damaged" in refusal(write(tmp_path, model))


def test_nan_is_named_before_inf() -> None:
    values = np.ones(5, np.float32)
    values[1], values[3] = np.inf, np.nan
    with pytest.raises(ModelError, match=r"weight 'more': NaN at index \[3\]"):
        onnxprune.prune(changed(lambda m: m.graph.initializer.append(tensor("more", values))))


BAD = damaged((8, 1, 1), (5, 0, 0), np.nan)
INSIDE = [helper.make_node("Add", ["r", "bad"], ["inner"])]
HIDDEN: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "Constant": (
        lambda: between(
            net(), helper.make_node("Constant", [], ["c"], "const", value=BAD), helper.make_node("Add", ["r", "c"], ["q"])
        ),
        "weight 'c': NaN at index [5, 0, 0]",
    ),
    "Constant of floats": (
        lambda: between(
            net(), helper.make_node("Constant", [], ["c"], value_floats=[1.0, np.nan]), helper.make_node("Sum", ["r"], ["q"])
        ),
        "weight 'c': NaN at index [1]",
    ),
    "ConstantOfShape": (
        lambda: between(
            net(),
            helper.make_node("ConstantOfShape", ["one"], ["c"], "fill", value=tensor("", [np.nan])),
            helper.make_node("Add", ["r", "c"], ["q"]),
            one=tensor("", [1], np.int64),
        ),
        "weight 'value of fill': NaN at index [0]",
    ),
    "subgraph": (lambda: branched(*INSIDE, initializers=(BAD,)), "weight 'bad': NaN at index [5, 0, 0]"),
    "Constant in subgraph": (
        lambda: branched(helper.make_node("Constant", [], ["bad"], value=BAD), *INSIDE),
        "weight 'bad': NaN at index [5, 0, 0]",
    ),
    "subgraph in subgraph": (
        lambda: branched(
            helper.make_node(
                "If",
                ["true"],
                ["inner"],
                then_branch=subgraph(helper.make_node("Add", ["r", "bad"], ["deep"]), output="deep", initializers=(BAD,)),
                else_branch=subgraph(helper.make_node("Identity", ["r"], ["deep2"]), output="deep2"),
            )
        ),
        "weight 'bad': NaN at index [5, 0, 0]",
    ),
    "sparse": (lambda: sparse(values=[1.0, np.nan]), "weight 'thin': NaN at index [1]"),
    "size in subgraph": (
        lambda: branched(*INSIDE, initializers=(TensorProto(name="bad", data_type=1, dims=[8, 1, 1], raw_data=b"1234"),)),
        "weight 'bad': shape [8, 1, 1] needs 32 bytes but the file holds 4",
    ),
    "2^40 in subgraph": (
        lambda: branched(*INSIDE, initializers=(TensorProto(name="bad", data_type=1, dims=[1 << 40]),)),
        "weight 'bad': its shape [1099511627776] is absurdly large",
    ),
}


def sparse(values: list[float], dims: tuple[int, ...] = (8, 1, 1)) -> ModelProto:
    """With a sparse initializer ``thin`` that is added to the activations."""
    model = between(net(), helper.make_node("Add", ["r", "thin"], ["q"]))
    indices = tensor("thin_indices", range(len(values)), np.int64)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor("thin", values), indices, list(dims)))
    return model


@pytest.mark.parametrize("name", HIDDEN)
def test_weights_in_other_places(tmp_path: Path, name: str) -> None:
    make, text = HIDDEN[name]
    assert text in refusal(write(tmp_path, make()))


@pytest.mark.parametrize("value", [np.inf, -np.inf], ids=str)
def test_filters_are_no_masks(value: float) -> None:
    """Nothing but infinities: a mask if it is added, damage if it is multiplied."""
    model = net()
    weight(model, "b1").CopyFrom(tensor("b1", np.full(8, value)))
    with pytest.raises(ModelError, match=r"weight 'b1': Inf at index \[0\]"):
        onnxprune.prune(model)


# sizes that no machine can hold ---------------------------------------------------------------------------------------
def bomb(op: str, *constants: TensorProto, **attributes: object) -> ModelProto:
    """With an operator that makes an absurdly large tensor, whose largest element is added to the activations."""
    names = [f"k{i}" for i in range(len(constants))]
    nodes = [
        helper.make_node(op, names, ["huge"], "bomb", **attributes),
        helper.make_node("Cast", ["huge"], ["floats"], to=1),
        helper.make_node("ReduceMax", ["floats"], ["top"], keepdims=0),
        helper.make_node("Add", ["r", "top"], ["q"]),
    ]
    return between(net(), *nodes, **dict(zip(names, constants, strict=True)))


def last(model: ModelProto) -> ModelProto:
    """What stands in front of the second convolution is put behind it, so that there is something to cut before."""
    conv = model.graph.node.pop()
    for part in (*model.graph.node[2:], *(a.g.node[-1] for n in model.graph.node for a in n.attribute if a.HasField("g"))):
        part.input[:] = ["y0" if name == "r" else name for name in part.input]
        part.output[:] = ["y" if name == "q" else name for name in part.output]
    conv.input[0], conv.output[0] = "r", "y0"
    model.graph.node.insert(2, conv)
    return model


def ints(*values: int) -> TensorProto:
    return tensor("", values, np.int64)


def scalar(value: object, dtype: object = np.int64) -> TensorProto:
    return tensor("", value, dtype)


HUGE = 1 << 36
ONE = tensor("", [1.0])
ROW = tensor("", np.ones(4096))
BOMBS: dict[str, Callable[[], ModelProto]] = {
    "ConstantOfShape": lambda: bomb("ConstantOfShape", ints(HUGE)),
    "ConstantOfShape in three": lambda: bomb("ConstantOfShape", ints(1 << 12, 1 << 12, 1 << 12)),
    "ConstantOfShape beyond int64": lambda: bomb("ConstantOfShape", ints(1 << 62, 1 << 62)),
    "Expand": lambda: bomb("Expand", ONE, ints(HUGE)),
    "Tile": lambda: bomb("Tile", ONE, ints(HUGE)),
    "Range": lambda: bomb("Range", scalar(0), scalar(HUGE), scalar(1)),
    "Range in small steps": lambda: bomb("Range", scalar(0.0, np.float32), scalar(1.0, np.float32), scalar(1e-12, np.float32)),
    "Pad": lambda: bomb("Pad", ONE, ints(0, HUGE)),
    "OneHot": lambda: bomb("OneHot", ints(0), scalar(HUGE), tensor("", [0.0, 1.0]), axis=-1),
    "HannWindow": lambda: bomb("HannWindow", scalar(HUGE)),
    "Einsum": lambda: bomb("Einsum", ROW, ROW, ROW, equation="a,b,c->abc"),
    "Where": lambda: bomb(
        "Where", tensor("", np.ones((4096, 1, 1)), np.bool_), tensor("", np.ones((4096, 1))), tensor("", np.ones(4096))
    ),
    "in a subgraph": lambda: last(
        branched(
            helper.make_node("Constant", [], ["s"], value=ints(HUGE)),
            helper.make_node("ConstantOfShape", ["s"], ["z"], value=ONE),
            helper.make_node("ReduceMax", ["z"], ["top"], keepdims=0),
            helper.make_node("Add", ["r", "top"], ["inner"]),
        )
    ),
    "sparse": lambda: sparse([1.0], (HUGE,)),
    "size that only a run tells": lambda: last(
        between(
            net(),
            helper.make_node("NonZero", ["r"], ["places"]),
            helper.make_node("Shape", ["places"], ["count"]),
            helper.make_node("Mul", ["count", "much"], ["big"]),
            helper.make_node("ConstantOfShape", ["big"], ["z"], value=ONE),
            helper.make_node("ReduceMax", ["z"], ["top"], keepdims=0),
            helper.make_node("Add", ["r", "top"], ["q"]),
            much=ints(1 << 18, 1 << 18),
        )
    ),
    "input": lambda: changed(lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", HUGE)),
    "weight": lambda: changed(header("w1", dims=[HUGE], raw_data=None)),
    "weight of nothing": lambda: changed(header("w1", dims=[HUGE, 0], raw_data=b"")),
    "functions": lambda: functions({**{f"F{k}": [f"F{k + 1}"] * 2 for k in range(40)}, "F40": ["Relu"]}),
}

LIMITED = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
import onnxprune
for path in sys.argv[1:]:
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        onnxprune.prune(path)
        said = "accepted"
    except onnxprune.OnnxpruneError as error:
        said = str(error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(f"{time.monotonic() - started:.1f}|{grown}|{said}", flush=True)
"""


def test_bombs(tmp_path: Path) -> None:
    """With an address space of 6 GB: each is refused at once, and no memory is taken for it."""
    paths = []
    for k, make in enumerate(BOMBS.values()):
        paths.append(tmp_path / f"{k}.onnx")
        paths[-1].write_bytes(make().SerializeToString())
    done = subprocess.run([sys.executable, "-c", LIMITED, *map(str, paths)], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for name, line in zip(BOMBS, lines, strict=True):
        seconds, megabytes, said = line.split("|", 2)
        assert said != "accepted", name
        assert float(seconds) < 5, name
        assert int(megabytes) < 600, name
        assert any(text in said for text in ("absurd", "can't be meant", "Available memory of")), (name, said)


# external data --------------------------------------------------------------------------------------------------------
W2 = weight(net(), "w2").raw_data


def outside(model: ModelProto, location: str = "w2.bin", name: str = "w2", **entries: object) -> ModelProto:
    """The model with a weight's data in a file."""
    make_external(weight(model, name), location, entries)
    return model


def make_external(stored: TensorProto, location: str, entries: dict[str, object]) -> None:
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        stored.external_data.add(key=key, value=str(value))


SIZE = len(W2)
INCOMPLETE = "weight 'w2': needs 1152 bytes at offset {} of 'w2.bin' (declared length {}), which has {}"
ENTRIES: dict[str, tuple[dict[str, object], str]] = {
    "short length": ({"length": SIZE - 1}, INCOMPLETE.format(0, SIZE - 1, SIZE)),
    "long length": ({"length": SIZE + 1}, INCOMPLETE.format(0, SIZE + 1, SIZE)),
    "negative length": ({"length": -1}, INCOMPLETE.format(0, -1, SIZE)),
    "negative offset": ({"offset": -4}, INCOMPLETE.format(-4, SIZE, SIZE)),
    "offset too far": ({"offset": 4}, INCOMPLETE.format(4, SIZE, SIZE)),
    "offset beyond the end": ({"offset": 1 << 40}, INCOMPLETE.format(1 << 40, SIZE, SIZE)),
    "offset no number": ({"offset": "some"}, "weight 'w2': offset or length of its external data is no number"),
    "length no number": ({"length": "0x10"}, "weight 'w2': offset or length of its external data is no number"),
    "offset of 5000 digits": ({"offset": "9" * 5000}, "weight 'w2': offset or length of its external data is no number"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_external_entries(tmp_path: Path, name: str) -> None:
    entries, text = ENTRIES[name]
    (tmp_path / "w2.bin").write_bytes(W2)
    assert text in refusal(write(tmp_path, outside(net(), **entries)))


def test_external_file_is_short_or_holds_nan(tmp_path: Path) -> None:
    path = write(tmp_path, outside(net()))
    (tmp_path / "w2.bin").write_bytes(W2[:-1])
    assert INCOMPLETE.format(0, SIZE, SIZE - 1) in refusal(path)
    (tmp_path / "w2.bin").write_bytes(b"")
    assert INCOMPLETE.format(0, SIZE, 0) in refusal(path)
    (tmp_path / "w2.bin").write_bytes(W2[:-4] + np.float32(np.nan).tobytes())
    assert "weight 'w2': NaN at index [3, 7, 2, 2]" in refusal(path)


def link(path: Path, target: Path) -> None:
    path.symlink_to(target)


PLACES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("w2.bin", lambda p: None, "are missing from"),
    "missing in a folder": ("deep/w2.bin", lambda p: None, "are missing from"),
    "nowhere": ("", lambda p: None, "lie outside the model's folder"),
    "folder": ("w2.bin", Path.mkdir, "are not a plain file"),
    "fifo": ("w2.bin", os.mkfifo, "are not a plain file"),
    "parent": ("../secret.bin", lambda p: None, "lie outside the model's folder"),
    "parent, hidden": ("a/../../secret.bin", lambda p: None, "lie outside the model's folder"),
    "parent, in vain": ("a/../w2.bin", lambda p: None, "lie outside the model's folder"),
    "parent, the other way": ("..\\secret.bin", lambda p: None, "lie outside the model's folder"),
    "absolute": ("/etc/hostname", lambda p: None, "lie outside the model's folder"),
    "symbolic link": ("w2.bin", lambda p: link(p, p.parent.parent / "secret.bin"), "are reached through a link"),
    "link to a neighbour": ("w2.bin", lambda p: link(p, p.parent / "there.bin"), "are reached through a link"),
    "link to nowhere": ("w2.bin", lambda p: link(p, p.parent / "nowhere"), "are reached through a link"),
    "folder is a link": ("a/w2.bin", lambda p: link(p.parent, p.parent.parent / "b"), "are reached through a link"),
    "hard link": ("w2.bin", lambda p: os.link(p.parent.parent / "secret.bin", p), "are a hard link"),
    "no character": ("w\0.bin", lambda p: None, "are missing from"),
}


@pytest.mark.parametrize("inside", ["initializer", "Constant", "subgraph", "sparse"])
@pytest.mark.parametrize("name", PLACES)
def test_external_places(tmp_path: Path, name: str, inside: str) -> None:
    """The file that is named exists and has the right size wherever that is possible: only the place is wrong."""
    location, prepare, text = PLACES[name]
    folder = tmp_path / "model"
    (folder / "b").mkdir(parents=True)
    for place in ("secret.bin", "model/there.bin", "model/b/w2.bin"):
        (tmp_path / place).write_bytes(W2)
    if "\0" not in location:
        prepare(folder / location)
    stored = TensorProto(name="w2", data_type=TensorProto.FLOAT, dims=[4, 8, 3, 3])
    make_external(stored, location, {})
    model = {
        "initializer": lambda: outside(net(), location),
        "Constant": lambda: constant_weight(stored),
        "subgraph": lambda: branched(helper.make_node("Conv", ["r", "w2"], ["inner"]), initializers=(stored,)),
        "sparse": lambda: sparse_external(stored),
    }[inside]()
    with pytest.raises(ModelError) as caught:
        onnxprune.prune(write(folder, model))
    assert f"weight 'w2': external data {location!r} {text}" in str(caught.value)
    assert str(caught.value).isprintable()


def constant_weight(stored: TensorProto) -> ModelProto:
    """The second convolution's weight in a Constant node."""
    model = net()
    model.graph.initializer.pop(2)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w2"], value=stored))
    return model


def sparse_external(stored: TensorProto) -> ModelProto:
    model = sparse([1.0])
    thin = model.graph.sparse_initializer[0]
    thin.values.CopyFrom(stored)
    return model


def test_external_data_that_nothing_reads(tmp_path: Path) -> None:
    model = net()
    model.graph.initializer.append(TensorProto(name="more", data_type=TensorProto.INT8, dims=[5000]))
    path = write(tmp_path, outside(model, "more.bin", "more"))
    assert "weight 'more': external data 'more.bin' are missing from" in refusal(path)
    (tmp_path / "more.bin").write_bytes(bytes(5000))
    onnxprune.prune(path)


def test_external_data_of_a_proto() -> None:
    with pytest.raises(ModelError, match=r"weight 'w2': .* a model given as a proto has no folder; give the path of the model"):
        onnxprune.prune(outside(net()))


def test_external_strings(tmp_path: Path) -> None:
    (tmp_path / "w2.bin").write_bytes(W2)
    model = net()
    model.graph.initializer.append(TensorProto(name="words", data_type=TensorProto.STRING, dims=[2]))
    path = write(tmp_path, outside(model, name="words"))
    assert "weight 'words': external data of type object are not allowed by ONNX" in refusal(path)


# what must run --------------------------------------------------------------------------------------------------------
def unsorted() -> ModelProto:
    model = net()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    return model


def duplicated() -> ModelProto:
    return changed(lambda m: m.graph.initializer.append(weight(m, "w1")))


def old_inputs() -> ModelProto:
    """IR 3: initializers are graph inputs too."""
    model = net()
    model.ir_version = 3
    model.opset_import[0].version = 8
    model.graph.input.extend(info(t.name, t.dims) for t in model.graph.initializer)
    return model


def masked(value: object) -> ModelProto:
    nodes = helper.make_node("Add", ["r", "mask"], ["m"]), helper.make_node("Relu", ["m"], ["q"])
    return between(net(), *nodes, mask=tensor("", value))


def constant_mask() -> ModelProto:
    mask = helper.make_node("Constant", [], ["mask"], value=tensor("", np.where(np.eye(8) > 0, np.inf, 0)))
    return between(net(), mask, helper.make_node("Min", ["r", "mask"], ["q"]))


def clipped() -> ModelProto:
    low, high = scalar(-np.inf, np.float32), scalar(np.inf, np.float32)
    return between(net(), helper.make_node("Clip", ["r", "low", "high"], ["q"]), low=low, high=high)


def text() -> ModelProto:
    words = helper.make_tensor("words", TensorProto.STRING, [2], [b"one", b"two"])
    model = changed(lambda m: m.graph.initializer.append(words))
    model.graph.node.append(helper.make_node("Identity", ["words"], ["said"]))
    model.graph.output.append(info("said", [2], TensorProto.STRING))
    return model


def nothing_to_prune() -> ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    body = helper.make_graph(nodes, "relu", [info("x", ["N", 4])], [info("y", ["N", 4])])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def product(op: str) -> ModelProto:
    """Two matrix products after an input without shape."""
    nodes = [helper.make_node(op, ["x", "w1"], ["h"]), helper.make_node(op, ["h", "w2"], ["y"])]
    weights = [tensor("w1", np.ones((8, 6))), tensor("w2", np.ones((6, 4)))]
    model = helper.make_model(helper.make_graph(nodes, op, [info("x", None)], [info("y", None)], weights), ir_version=8)
    model.opset_import[0].version = 17
    return model


def slice_of_nothing() -> ModelProto:
    nothing = helper.make_node("Slice", ["r", "end", "end", "axis"], ["empty"])
    nodes = nothing, helper.make_node("Concat", ["empty", "r"], ["q"], axis=1)
    return between(net(), *nodes, end=tensor("", [8], np.int64), axis=tensor("", [1], np.int64))


def dim(value: int, index: int = 0) -> ModelProto:
    return changed(lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[index], "dim_value", value))


VALID: dict[str, tuple[Callable[[], ModelProto], bool]] = {
    "plain": (net, True),
    "unsorted nodes": (unsorted, True),
    "input without shape": (lambda: changed(lambda m: m.graph.input[0].type.tensor_type.ClearField("shape")), False),
    "output without shape": (net, True),
    "dimension -1": (lambda: dim(-1), True),
    "batch of zero": (lambda: dim(0), True),
    "no names": (lambda: changed(lambda m: [n.ClearField("name") for n in m.graph.node]), True),
    "no graph name": (lambda: changed(lambda m: m.graph.ClearField("name")), True),
    "duplicate weights": (duplicated, True),
    "initializers among the inputs": (old_inputs, True),
    "sparse initializer": (lambda: sparse([1.0, 2.0]), False),
    "string initializer": (text, True),
    "scalar -inf": (lambda: masked(-np.inf), True),
    "mask of -inf": (lambda: masked(np.where(np.eye(8) > 0, -np.inf, 0)), True),
    "mask of inf in a Constant": (lambda: constant_mask(), True),
    "bounds of inf": (clipped, True),
    "MatMul of an input without shape": (lambda: product("MatMul"), False),
    "Gemm of an input without shape": (lambda: product("Gemm"), False),
    "slice of nothing": (slice_of_nothing, True),
    "nothing to prune": (nothing_to_prune, False),
    "subgraph": (lambda: branched(helper.make_node("Relu", ["r"], ["inner"])), True),
    "local functions": (lambda: functions({"F": ["G", "Relu"], "G": ["Relu"]}), True),
    "unused weight": (lambda: changed(lambda m: m.graph.initializer.append(tensor("more", [1.0]))), True),
    "weight of nothing": (lambda: changed(lambda m: m.graph.initializer.append(tensor("more", np.zeros((4, 0))))), True),
    "opset of ONNX not named": (
        lambda: changed(lambda m: m.opset_import[0].CopyFrom(helper.make_opsetid("ai.onnx.ml", 3))),
        True,
    ),
    "unused domain": (lambda: changed(lambda m: m.opset_import.append(helper.make_opsetid("never.used", 7))), True),
    "unused domain of no version": (lambda: changed(lambda m: m.opset_import.add(domain="never.used")), True),
    "unused domain of any version": (lambda: changed(lambda m: m.opset_import.add(domain="x", version=-(1 << 62))), True),
    "ai.onnx": (lambda: changed(lambda m: setattr(m.graph.node[0], "domain", "ai.onnx")), True),
    "two outputs alike": (lambda: changed(lambda m: m.graph.output.append(m.graph.output[0])), True),
    "input is output": (lambda: changed(lambda m: m.graph.output.append(info("x", None))), True),
    "weight is output": (lambda: changed(lambda m: m.graph.output.append(info("b1", None))), True),
    "remarks in Latin-1": (lambda: changed(lambda m: setattr(m, "doc_string", "REMARK")), True),
}


def run(model: bytes, seed: int = 0) -> list[np.ndarray]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    unknown = [2, 8] if b"MatMul" in model or b"Gemm" in model else [2, 3, 8, 8]
    shapes = {i.name: [d if isinstance(d, int) else 2 for d in i.shape] or unknown for i in session.get_inputs()}
    return session.run(None, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})


@pytest.mark.parametrize("name", VALID)
def test_valid_models_are_not_refused(tmp_path: Path, name: str) -> None:
    make, prunable = VALID[name]
    data = make().SerializeToString().replace(b"REMARK", b"\xe9\xe8\xfc\xdf\xff\xfe")
    path = write(tmp_path, data)
    expected = run(data)
    result = onnxprune.prune(path)
    result.save(tmp_path / "out.onnx")
    found = run((tmp_path / "out.onnx").read_bytes())
    assert [f.shape for f in found] == [e.shape for e in expected]
    before, after = result.report.before.parameters, result.report.after.parameters
    assert after < before if prunable else after == before
    if not prunable:
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inside", ["initializer", "Constant", "subgraph"])
def test_external_data_come_along(tmp_path: Path, inside: str) -> None:
    """Wherever external data are used, the result does without the input's folder."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "old" / "w2.bin").write_bytes(bytes(12) + W2)
    stored = TensorProto(name="w2", data_type=TensorProto.FLOAT, dims=[4, 8, 3, 3])
    make_external(stored, "./w2.bin", {"offset": 12, "length": SIZE})
    branch = (helper.make_node("Conv", ["r", "w2"], ["wide"]), helper.make_node("GlobalMaxPool", ["wide"], ["inner"]))
    make = {
        "initializer": lambda s: changed(lambda m: weight(m, "w2").CopyFrom(s)),
        "Constant": constant_weight,
        "subgraph": lambda s: changed_end(branched(*branch, initializers=(s,))),
    }[inside]
    path = write(tmp_path / "old", make(stored))
    plain = TensorProto(name="w2", data_type=TensorProto.FLOAT, dims=[4, 8, 3, 3], raw_data=W2)
    whole = onnxprune.prune(make(plain), ratio=0)
    result = onnxprune.prune(path, ratio=0)
    result.save(tmp_path / "new" / "out.onnx")
    for found in (tmp_path / "old").iterdir():
        found.unlink()
    session = ort.InferenceSession(tmp_path / "new" / "out.onnx")
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    expected = ort.InferenceSession(whole.model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected[0])


def changed_end(model: ModelProto) -> ModelProto:
    """The subgraph's result, of four channels, is the output."""
    model.graph.node.pop()
    model.graph.initializer.pop(2)
    model.graph.output[0].name = "q"
    same = next(a.g for a in model.graph.node[-1].attribute if a.name == "else_branch")
    same.node[0].CopyFrom(helper.make_node("GlobalMaxPool", ["r"], ["same"]))
    return model


# outputs --------------------------------------------------------------------------------------------------------------
def test_output_is_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, net())
    (tmp_path / "other").mkdir()
    (tmp_path / "symbolic.onnx").symlink_to(path)
    (tmp_path / "hard.onnx").hardlink_to(path)
    monkeypatch.chdir(tmp_path / "other")
    for same in (path, "../model.onnx", "../other/../model.onnx", "../symbolic.onnx", "../hard.onnx"):
        for source in (path, tmp_path / "symbolic.onnx"):
            with pytest.raises(OutputError, match=r"is the input itself; choose another path$"):
                files.check_output(same, source)
            with pytest.raises(OutputError, match=r"is the input itself; choose another path$"):
                files.save(net(), same, source=source)
    files.check_output("model.onnx", path)
    assert path.read_bytes() == SOUND


def test_result_does_not_replace_the_input(tmp_path: Path) -> None:
    path = write(tmp_path, net())
    result = onnxprune.prune(path)
    with pytest.raises(OutputError, match=r"is the input itself; choose another path$"):
        result.save(path)
    assert listing(tmp_path) == {str(path): SOUND}


def test_output_does_not_replace_the_weights_of_the_input(tmp_path: Path) -> None:
    path = write(tmp_path, outside(net(), "small.onnx.data"))
    (tmp_path / "small.onnx.data").write_bytes(W2)
    before = listing(tmp_path)
    result = onnxprune.prune(path)
    for output in ("small.onnx", "small.onnx.data"):
        with pytest.raises(OutputError, match=r"would overwrite '.*small\.onnx\.data', which the input needs; choose another"):
            files.check_output(tmp_path / output, path)
        with pytest.raises(OutputError, match=r"would overwrite"):
            files.save(result.model, tmp_path / output, external=True, source=path)
    assert listing(tmp_path) == before
    files.check_output(tmp_path / "other.onnx", path)


OUTPUTS: dict[str, tuple[str, str]] = {
    "folder": ("folder", "is a folder; give the path of a file"),
    "nothing": ("", "is a folder; give the path of a file"),
    "in no folder": ("no/out.onnx", "does not exist; create it first"),
    "in a file": ("file/out.onnx", "does not exist; create it first"),
    "fifo": ("fifo", "is not a plain file; choose another path"),
    "long name": ("x" * 300, "can't be written: File name too long"),
    "no character": ("out\0.onnx", "is no path; choose another one"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(tmp_path: Path, name: str) -> None:
    output, text = OUTPUTS[name]
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    before = listing(tmp_path)
    result = onnxprune.prune(net())
    path = f"{tmp_path}/{output}"
    for attempt in (lambda: result.save(path), lambda: files.check_output(path)):
        with pytest.raises(OutputError) as caught:
            attempt()
        assert text in str(caught.value)
        assert str(caught.value).isprintable()
    assert listing(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_outputs_without_permission(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "out.onnx").write_bytes(b"old")
    (tmp_path / "out.onnx").chmod(0o400)
    folder.chmod(0o500)
    for path in (folder / "out.onnx", tmp_path / "out.onnx"):
        with pytest.raises(OutputError, match="can't be written: permission denied; choose another path"):
            onnxprune.prune(net()).save(path)
    folder.chmod(0o000)
    with pytest.raises(OutputError, match=r"can't be written: [Pp]ermission denied; choose another path"):
        onnxprune.prune(net()).save(folder / "out.onnx")
    folder.chmod(0o700)
    assert listing(tmp_path) == {str(folder): None, str(tmp_path / "out.onnx"): b"old"}


# interrupted ----------------------------------------------------------------------------------------------------------
class Trouble:
    """Stands in for a function; fails at its ``last`` call, before or after doing its work."""

    def __init__(self, work: Callable[..., object], last: int, error: BaseException, *, after: bool) -> None:
        self.work, self.last, self.error, self.after = work, last, error, after

    def __call__(self, *args: object, **options: object) -> object:
        self.last -= 1
        if self.last == 0 and not self.after:
            raise self.error
        result = self.work(*args, **options)
        if self.last == 0:
            raise self.error
        return result


def saved(folder: Path) -> list[np.ndarray] | None:
    """What the saved model answers: proof that its two files belong together."""
    path = folder / "out.onnx"
    if not path.exists():
        return None
    x = np.ones((1, 3, 8, 8), np.float32)
    return ort.InferenceSession(path).run(None, {"x": x})


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["interrupt", "full disk"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("old", [False, True], ids=["new", "over the old"])
@pytest.mark.parametrize("external", [False, True], ids=["one file", "two files"])
def test_interrupted_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool, old: bool, call: int, after: bool, error: BaseException
) -> None:
    """Whenever a save stops, the old output or the new one is there, whole, and nothing else."""
    monkeypatch.setattr(lazy, "EXTERNAL_FROM", 64)
    path = tmp_path / "out.onnx"
    first, second = onnxprune.prune(net(), ratio=0).model, onnxprune.prune(net(), ratio=0.75).model
    files.save(second, path, external=external)
    new = saved(tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
    if old:
        files.save(first, path, external=external)
    kept, names = saved(tmp_path), sorted(listing(tmp_path))
    trouble = Trouble(os.replace, call, error, after=after)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", trouble)
        try:
            files.save(second, path, external=external)
            stopped = False
        except (KeyboardInterrupt, OutputError):
            stopped = True
    assert stopped == (trouble.last <= 0)
    found = saved(tmp_path)
    complete = [p.name for p in tmp_path.iterdir()]
    if found is None:
        assert kept is None
        assert complete == []
        return
    one_of = [np.array_equal(found[0], answer[0]) for answer in (kept, new) if answer is not None]
    assert any(one_of)
    assert sorted(complete) == (["out.onnx", "out.onnx.data"] if external else ["out.onnx"])
    if stopped and not after and old:
        assert np.array_equal(found[0], kept[0])
        assert sorted(listing(tmp_path)) == names


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_interrupted_while_writing(tmp_path: Path, error: type[BaseException]) -> None:
    class Model:
        def SerializeToString(self) -> bytes:
            raise error

    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    with pytest.raises(error):
        files.save(Model(), path)
    assert listing(tmp_path) == {str(path): b"old"}


# the command line -----------------------------------------------------------------------------------------------------
def command(*arguments: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    before = [] if limit is None else ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash"]
    words = [*before, sys.executable, "-m", "onnxprune", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def assert_one_line(done: subprocess.CompletedProcess[str], text: str) -> None:
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.startswith("onnxprune: error: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("\n")
    assert text in done.stderr


def split_in_two_of_three() -> bytes:
    """By which the ONNX library itself falls over: not to be tried in this process."""
    model = between(net(), helper.make_node("Split", ["r"], ["q", "b", "c"], "split", axis=1, num_outputs=2))
    model.opset_import[0].version = 18
    return model.SerializeToString()


COMMANDS: dict[str, tuple[Callable[[], bytes], list[str], str]] = {
    "empty": (lambda: b"", [], "the file is empty (0 bytes)"),
    "truncated": (lambda: SOUND[:-100], [], NO_MODEL),
    "nested": (lambda: nested(200), [], NO_MODEL),
    "cycle": (lambda: changed(EDITS["cycle"][0]).SerializeToString(), [], "the graph has a cycle through node 'conv1'"),
    "unknown domain": (lambda: changed(EDITS["unknown domain"][0]).SerializeToString(), [], REFUSED_BY_ORT),
    "bomb": (lambda: BOMBS["ConstantOfShape"]().SerializeToString(), [], "which can't be meant"),
    "split": (split_in_two_of_three, [], "node 'split': its num_outputs is 2, but it has 3 outputs"),
    "ratio 1.5": (lambda: SOUND, ["--ratio", "1.5"], "ratio is 1.5; it is the fraction of channels to remove, 0 <= ratio < 1"),
    "ratio nan": (lambda: SOUND, ["--ratio", "nan"], "ratio is nan; it is the fraction of channels to remove, 0 <= ratio < 1"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_line(tmp_path: Path, name: str) -> None:
    make, options, text = COMMANDS[name]
    path = write(tmp_path, make())
    before = listing(tmp_path)
    assert_one_line(command("prune", path, "-o", tmp_path / "out.onnx", *options), text)
    assert listing(tmp_path) == before


def test_command_line_with_a_full_disk(tmp_path: Path) -> None:
    """The limit is in blocks of 1024 bytes: the pruned model is larger."""
    path = write(tmp_path, net())
    (tmp_path / "out.onnx").write_bytes(b"old")
    before = listing(tmp_path)
    done = command("prune", path, "-o", tmp_path / "out.onnx", "--ratio", 0, limit=1)
    assert_one_line(done, "out.onnx' can't be written: [Errno 27] File too large; nothing was changed")
    assert listing(tmp_path) == before
    assert command("prune", path, "-o", tmp_path / "out.onnx", "--ratio", 0, limit=10).returncode == 0


SIGNALLED = """
import os, signal, sys
from onnxprune import proof
from onnxprune.cli import main
proof.verify = lambda *args, **options: os.kill(os.getpid(), signal.SIGINT)
main(sys.argv[1:])
"""


def test_command_line_interrupted(tmp_path: Path) -> None:
    """Control-C in the middle of the work: one line, and the old output is as it was."""
    path = write(tmp_path, net())
    (tmp_path / "out.onnx").write_bytes(b"old")
    before = listing(tmp_path)
    words = ["prune", str(path), "-o", str(tmp_path / "out.onnx"), "--save-plan", str(tmp_path / "plan.json")]
    done = subprocess.run([sys.executable, "-c", SIGNALLED, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "onnxprune: interrupted; nothing was written\n")
    assert listing(tmp_path) == before


def test_terminal_codes_are_not_passed_on(tmp_path: Path) -> None:
    """Names in a model can't move the cursor or break the line."""
    evil = "a\x1b[2J\n\x07b"
    cases = {
        "unknown": changed(lambda m: [setattr(m.graph.node[1], "op_type", evil), setattr(m.graph.node[1], "name", evil)]),
        "lost": changed(lambda m: [setattr(m.graph.node[1], "name", evil), m.graph.node[1].input.__setitem__(0, evil)]),
        "weight": changed(lambda m: [setattr(weight(m, "b1"), "raw_data", b"x"), setattr(weight(m, "b1"), "name", evil)]),
    }
    for model in cases.values():
        refusal(write(tmp_path, model))


# data -----------------------------------------------------------------------------------------------------------------
def archive(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def single(values: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values))
    return buffer.getvalue()


IMAGES = np.zeros((4, 3, 8, 8), np.float32)
DATA: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "are not an .npz archive"),
    "text": (b"some text", "are not an .npz archive"),
    "truncated": (archive(x=IMAGES)[:-30], "are not an .npz archive"),
    "broken inside": (archive(x=IMAGES).replace(b"NUMPY", b"NYMPU"), "save"),
    "single array": (single(IMAGES), "are a single array; save it by name with numpy.savez"),
    "pickled": (archive(x=np.array([{}, None], object)), "are not an .npz archive of plain arrays"),
    "no array": (zipped(b"text"), "has arrays ['model.onnx'], the model's inputs are ['x']"),
    "other name": (archive(z=IMAGES), "has arrays ['z'], the model's inputs are ['x']; name one array after each"),
    "other size": (archive(x=IMAGES[:, :2]), "array 'x' has shape (4, 2, 8, 8), the model's input is"),
    "other rank": (archive(x=IMAGES[0]), "array 'x' has shape (3, 8, 8), the model's input is"),
    "no samples": (archive(x=IMAGES[:0]), "every array needs the same number of samples"),
    "text inside": (archive(x=np.full((4, 3, 8, 8), "a")), "array 'x' holds <U1, the model's input float32"),
    "complex": (archive(x=IMAGES * 1j), "array 'x' holds complex64, the model's input float32"),
    "nan": (archive(x=IMAGES * np.nan), "array 'x' holds NaN or infinite values"),
    "too large for float32": (archive(x=np.full((4, 3, 8, 8), 1e300)), "array 'x' holds NaN or infinite values (as float32)"),
    "too few labels": (archive(x=IMAGES, labels=np.arange(3)), "labels are int64 (3,); they must be integers of shape (4,)"),
    "negative labels": (archive(x=IMAGES, labels=np.arange(4) - 1), "label -1 is negative"),
    "labels are numbers": (archive(x=IMAGES, labels=np.ones(4)), "labels are float64 (4,); they must be integers"),
}


@pytest.mark.parametrize("name", DATA)
def test_data(tmp_path: Path, name: str) -> None:
    content, text = DATA[name]
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        onnxprune.prune(net(), data=path)
    assert str(caught.value).startswith(f"data {str(path)!r}")
    assert text in str(caught.value)
    assert str(caught.value).isprintable()


def test_data_without_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, text in (("fifo", "are not a plain file"), ("nowhere", "do not exist"), (".", "are not a plain file")):
        with pytest.raises(DataError, match=text):
            onnxprune.prune(net(), data=tmp_path / name)


def test_data_that_declare_too_much(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as file:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117) + b"\n"
        file.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    with pytest.raises(DataError, match=r"are not an \.npz archive of plain arrays"):
        onnxprune.prune(net(), data=tmp_path / "data.npz")


def test_integers_that_do_not_fit() -> None:
    model = net()
    model.graph.node.insert(0, helper.make_node("Cast", ["bytes"], ["x"], to=1))
    model.graph.input[0].name = "bytes"
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    onnxprune.prune(model, data={"bytes": IMAGES.astype(np.int64) + 255})
    with pytest.raises(DataError, match="array 'bytes' holds values outside the range of uint8"):
        onnxprune.prune(model, data={"bytes": IMAGES.astype(np.int64) + 256})
    with pytest.raises(DataError, match="ragged"):
        onnxprune.prune(model, data={"bytes": [[1, 2], [3]]})
