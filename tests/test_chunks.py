"""How many samples are looked at together: as many as their activations have room."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune import data as datasets
from onnxprune.channels import analyse
from onnxprune.graph import load
from onnxprune.importance.scene import Scene


def _scene(samples: int) -> Scene:
    """Two dense layers, 8 channels between them, on some inputs."""
    rng = np.random.default_rng(0)
    weights = [(f"w{k}", rng.standard_normal(shape).astype(np.float32)) for k, shape in enumerate(((6, 8), (8, 3)))]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w0"], ["h"]), helper.make_node("MatMul", ["h", "w1"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor(name, TensorProto.FLOAT, w.shape, w.tobytes(), raw=True) for name, w in weights],
    )
    loaded = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    coupling = analyse(loaded)
    dataset = datasets.read({"x": rng.random((samples, 6), np.float32)}, loaded.inputs)
    return Scene(coupling, np.zeros(len(coupling.components.root), np.bool_), data=dataset)


def test_numbers_of_a_tensor_are_those_of_one_sample() -> None:
    shapes = _scene(1).coupling.shapes
    assert [shapes.numbers(name) for name in ("x", "h", "y")] == [6, 8, 3]
    assert shapes.numbers("nothing") == 0


@pytest.mark.parametrize(("room", "size"), [(1 << 28, 50), (10 * 4 * 11 + 10, 10), (100, 2)])
def test_chunks_hold_what_there_is_room_for(monkeypatch: pytest.MonkeyPatch, room: int, size: int) -> None:
    scene = _scene(400)
    monkeypatch.setattr("onnxprune.importance.scene.LIVE", room)
    chunks = scene.chunks(400, ["h", "y"])
    assert {len(chunk["x"]) for chunk in chunks} == {size}
    assert np.array_equal(np.concatenate([chunk["x"] for chunk in chunks]), scene.data.inputs["x"])  # type: ignore[union-attr]
    assert {len(chunk["x"]) for chunk in scene.chunks(400)} == {50}, "what is not looked at takes no room"


def test_synthetic_chunks_are_as_small(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = _scene(1)
    scene.data = None
    monkeypatch.setattr("onnxprune.importance.scene.LIVE", 10 * 4 * 8 + 10)
    assert max(len(chunk["x"]) for chunk in scene.chunks(300, ["h"])) == 10
