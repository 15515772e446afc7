"""Messages say where, what, why and what to do, in one line. Their texts are part of the interface: they are pinned here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import test_hostile as hostile
from onnx import ModelProto, TensorProto

import onnxprune
from onnxprune import files
from onnxprune.errors import OnnxpruneError, OptionError, OutputError

NEWEST = onnx.defs.onnx_opset_version()

MODELS: dict[str, tuple[Callable[[], ModelProto | bytes], str]] = {
    "empty": (lambda: b"", "PATH: the file is empty (0 bytes); export the model again"),
    "text": (
        lambda: b"this is not a model\n",
        "PATH: the file is not an ONNX model, or it is truncated; export it again",
    ),
    "no graph": (
        lambda: hostile.changed(hostile.EDITS["no graph"][0]),
        "PATH: there is no graph in it, so it is empty or not an ONNX model; export it again",
    ),
    "cycle": (
        lambda: hostile.changed(hostile.EDITS["cycle"][0]),
        "PATH: the graph has a cycle through node 'conv1', but must have none; export it again",
    ),
    "dangling": (
        lambda: hostile.changed(hostile.EDITS["dangling input"][0]),
        "PATH: node 'relu' reads 'lost', which nothing writes; the graph is damaged, export it again",
    ),
    "two writers": (
        lambda: hostile.changed(hostile.EDITS["two writers"][0]),
        "PATH: tensor 'r' comes from both node 'relu' and node 'more'; the graph is damaged, export it again",
    ),
    "next opset": (
        lambda: hostile.changed(hostile.EDITS["next opset"][0]),
        f"PATH: it uses opset {NEWEST + 1}, newer than the installed onnx knows ({NEWEST}); "
        "upgrade onnx and onnxruntime, or export with an older opset",
    ),
    "size": (
        lambda: hostile.changed(hostile.HEADERS["wider"][0]),
        "PATH: weight 'b1': shape [9] needs 36 bytes but the file holds 32; the file is damaged, export it again",
    ),
    "absurd size": (
        lambda: hostile.changed(hostile.HEADERS["2^40"][0]),
        "PATH: weight 'w1': its shape [1099511627776] is absurdly large; the file is damaged, export it again",
    ),
    "nan": (
        hostile.HIDDEN["subgraph"][0],
        "PATH: weight 'bad': NaN at index [5, 0, 0]; the network is damaged, restore it from a good checkpoint",
    ),
    "external data missing": (
        lambda: hostile.outside(hostile.net()),
        "PATH: weight 'w2': external data 'w2.bin' are missing from 'FOLDER'; copy that file beside the model",
    ),
    "external data outside": (
        lambda: hostile.outside(hostile.net(), "../w2.bin"),
        "PATH: weight 'w2': external data '../w2.bin' lie outside the model's folder; "
        "move the file beside the model and correct the reference",
    ),
    "external data short": (
        lambda: hostile.outside(hostile.net(), "short.bin"),
        "PATH: weight 'w2': needs 1152 bytes at offset 0 of 'short.bin' (declared length 1152), which has 5; "
        "the file is incomplete, copy it again",
    ),
    "bomb": (
        hostile.BOMBS["Expand"],
        "node 'bomb' declares a tensor 'huge' of shape [68719476736], which can't be meant; the model is damaged or hostile",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(tmp_path: Path, name: str) -> None:
    make, text = MODELS[name]
    (tmp_path / "short.bin").write_bytes(b"12345")
    path = hostile.write(tmp_path, make())
    assert hostile.refusal(path) == text.replace("PATH", repr(str(path))).replace("FOLDER", str(tmp_path))


def test_protos_have_no_path() -> None:
    model = hostile.net()
    model.graph.initializer.append(TensorProto(name="more", data_type=TensorProto.FLOAT, dims=[-1]))
    with pytest.raises(OnnxpruneError) as caught:
        onnxprune.prune(model)
    said = "model: weight 'more': its shape [-1] has a negative dimension; the file is damaged, export it again"
    assert str(caught.value) == said


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(OnnxpruneError) as caught:
        onnxprune.prune(tmp_path / "no.onnx")
    assert str(caught.value) == f"'{tmp_path}/no.onnx': the file does not exist; check the path"


OUTPUTS = {
    "model.onnx": "output 'PATH' is the input itself; choose another path",
    "folder": "output 'PATH' is a folder; give the path of a file",
    "no/out.onnx": "output 'PATH': the folder 'FOLDER/no' does not exist; create it first",
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(tmp_path: Path, name: str) -> None:
    source = hostile.write(tmp_path, hostile.net())
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError) as caught:
        files.check_output(tmp_path / name, source)
    assert str(caught.value) == OUTPUTS[name].replace("PATH", str(tmp_path / name)).replace("FOLDER", str(tmp_path))


@pytest.mark.parametrize("ratio", [1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_ratio(ratio: float) -> None:
    with pytest.raises(OptionError) as caught:
        onnxprune.prune(hostile.net(), ratio=ratio)
    assert str(caught.value) == f"ratio is {ratio}; it is the fraction of channels to remove, 0 <= ratio < 1"


DATA = {
    "image": "data has arrays ['image'], the model's inputs are ['x']; name one array after each",
    "x": "data: array 'x' has shape (4, 3, 9, 8), the model's input is ['N', 3, 8, 8]; samples come first",
}


@pytest.mark.parametrize("name", DATA)
def test_data(name: str) -> None:
    with pytest.raises(OnnxpruneError) as caught:
        onnxprune.prune(hostile.net(), data={name: np.zeros((4, 3, 9, 8), np.float32)})
    assert str(caught.value) == DATA[name]
