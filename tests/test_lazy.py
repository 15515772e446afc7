"""Large models: worked on from files, tensor by tensor and piece by piece, with the same result as in memory."""

from __future__ import annotations

import importlib
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphs
import judge
import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import onnxprune
from onnxprune import files, lazy, proof, standing, weights
from onnxprune.allocation import allocate
from onnxprune.channels import analyse
from onnxprune.cli import app
from onnxprune.errors import ModelError, OutputError, VerificationError
from onnxprune.graph import load
from onnxprune.importance import l1, l2
from onnxprune.lazy import AnyModel, LazyModel, LazyTensor
from onnxprune.plan import make_plan
from onnxprune.runtime import Session
from onnxprune.surgery import apply, mask

STEPS = ["plain", "residual", "concat", "gate", "merged", "shuffle"]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is too large for memory, and even small tensors are worked on in pieces."""
    monkeypatch.setattr(lazy, "LARGE", 0)
    monkeypatch.setattr(lazy, "EXTERNAL_FROM", 72)
    monkeypatch.setattr(lazy, "_BLOCK", 100)


def outside(model: onnx.ModelProto, folder: Path) -> Path:
    """Save a model most of whose weights lie in two other files, one of them in a folder of its own, at odd offsets."""
    (folder / "deep").mkdir(parents=True)
    for k, tensor in enumerate(model.graph.initializer):
        if tensor.HasField("raw_data") and k % 5 < 4:
            location = ("weights.bin", "deep/weights.bin")[k % 2]
            with open(folder / location, "ab") as file:
                file.write(b"\xff" * (4 + k % 9))
                offset, length = file.tell(), file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model = graphs.build(STEPS, "pool", 0)
    model.graph.initializer[0].doc_string = "about a weight"
    return outside(model, tmp_path / "in")


def complete(path: Path) -> onnx.ModelProto:
    """A model with its external data, as if these had never been apart."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# one tensor -----------------------------------------------------------------------------------------------------------
SHAPES = [(), (0,), (7,), (3, 0, 2), (1, 301), (6, 5, 3, 3), (40, 30)]
TYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.int64, ml_dtypes.int4, ml_dtypes.uint4]


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_blocks_are_the_bytes_of_what_numpy_makes(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: type, block: int
) -> None:
    monkeypatch.setattr(lazy, "_BLOCK", block)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 7, shape).astype(dtype)
    tensor = LazyTensor(numpy_helper.from_array(values, "w"))
    expected = values.copy()
    if shape:
        levels = rng.integers(1, 5, (1,) * (len(shape) - 1) + shape[-1:])
        for axis, value in ((0, 0), (len(shape) - 1, levels), (0, 3)):
            which = rng.random(shape[axis]) < 0.4
            tensor = tensor.fill(axis, which, value)
            place = (slice(None),) * axis + (which,)
            expected[place] = np.broadcast_to(np.asarray(value).astype(dtype), shape)[place]
        kept = [rng.random(size) < 0.6 for size in shape]
        tensor = tensor.keep(kept)
        expected = expected[np.ix_(*kept)]
    whole = numpy_helper.from_array(expected, "w")
    assert tensor.shape == expected.shape
    assert tensor.nbytes == len(whole.raw_data)
    assert b"".join(b.tobytes() for b in tensor.blocks()) == whole.raw_data
    assert tensor.proto().raw_data == whole.raw_data
    assert list(tensor.proto().dims) == list(whole.dims)


def test_a_large_tensor_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load, score, cut, mask, write: the memory that all this takes has nothing to do with the size of the tensors."""
    monkeypatch.setattr(lazy, "LARGE", 0)
    monkeypatch.setattr(weights, "PIECE", 1 << 18)
    monkeypatch.setattr(lazy, "_BLOCK", 1 << 18)
    rng = np.random.default_rng(0)
    shapes = {"a": (256, 30_000), "b": (30_000, 256)}
    stored = [numpy_helper.from_array(rng.standard_normal(s, dtype=np.float32) / 100, n) for n, s in shapes.items()]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 256]) for n in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:], stored), ir_version=8)
    model.opset_import[0].version = 17
    path = outside(model, tmp_path / "in")
    del model, stored
    onnxprune.prune(graphs.build(["plain"], "pool", 0))  # so that what is loaded on first use is not counted
    tracemalloc.start()
    result = onnxprune.prune(path, ratio=0.5)
    result.save(tmp_path / "out.onnx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.report.after.parameters == 256 * 30_000
    assert peak < 12_000_000, "of two tensors of 30,720,000 bytes each"


@pytest.mark.parametrize("piece", [16, 100, 1 << 10, 1 << 14])
def test_scores_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    graph = load(graphs.build([*STEPS, "transposed", "grouped", "depthwise"], "flatten", 2))
    groups = analyse(graph).groups
    for criterion in (l1, l2):
        rng = np.random.default_rng(0)
        whole = [criterion(g, graph.weights, rng) for g in groups]
        with monkeypatch.context() as patch:
            patch.setattr(weights, "PIECE", piece)
            pieces = [criterion(g, graph.weights, rng) for g in groups]
        for one, other in zip(whole, pieces, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("piece", [4, 28, 1 << 20])
def test_what_is_not_finite_is_found_in_any_piece(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(weights, "PIECE", piece)

    def checked(*places: tuple[tuple[int, int], float], rest: float = 1.0, mask: bool = True) -> None:
        values = np.full((5, 9), rest, np.float32)
        for place, value in places:
            values[place] = value
        weights.check(numpy_helper.from_array(values, "w"), "w", None, mask=mask)

    inf, nan = float("inf"), float("nan")
    checked()
    checked(((0, 0), 3e38), ((0, 1), 3e38))
    checked(((1, 2), -inf), ((4, 8), -inf), rest=0.0)
    for places, options, text in (
        ([((3, 7), nan), ((4, 0), nan)], {}, r"NaN at index \[3, 7\]"),
        ([((0, 0), inf), ((3, 7), nan)], {"rest": 0.0}, r"NaN at index \[3, 7\]"),
        ([((2, 8), -inf), ((4, 0), inf)], {}, r"Inf at index \[2, 8\]"),
        ([((0, 0), -inf), ((4, 8), 1.0)], {"rest": 0.0}, r"Inf at index \[0, 0\]"),
        ([((2, 8), -inf)], {"rest": 0.0, "mask": False}, r"Inf at index \[2, 8\]"),
    ):
        with pytest.raises(ModelError, match=text):
            checked(*places, **options)


# the whole way --------------------------------------------------------------------------------------------------------
EXPORTED = sorted((Path(__file__).parent / "exported").glob("*.onnx"))[::9]


@pytest.mark.parametrize("name", ["built", *(p.name for p in EXPORTED)])
def test_the_same_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(lazy, "EXTERNAL_FROM", 72)
    model = graphs.build(STEPS, "pool", 0) if name == "built" else onnx.load(Path(__file__).parent / "exported" / name)
    path = outside(model, tmp_path / "in")
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    small = onnxprune.prune(path, ratio=0.5)
    small.save(tmp_path / "one" / "out.onnx")
    monkeypatch.setattr(lazy, "LARGE", 0)
    monkeypatch.setattr(lazy, "_BLOCK", 100)
    large = onnxprune.prune(path, ratio=0.5)
    large.save(tmp_path / "other" / "out.onnx")
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    assert set(contents(tmp_path / "one")) == {"out.onnx", "out.onnx.data"}
    assert large.model == complete(tmp_path / "one" / "out.onnx")
    assert large.plan == small.plan
    assert large.report.after.parameters == small.report.after.parameters
    assert small.report.verification.inputs >= large.report.verification.inputs > 1
    written = load(tmp_path / "other" / "out.onnx")
    name_of_file = 8 * len(written.weights)
    assert large.report.after.bytes == pytest.approx(written.stored_bytes, abs=name_of_file)
    judge.assert_equal(onnx.load(path), onnx.load(tmp_path / "other" / "out.onnx"), large.plan.to_dict())


@pytest.mark.usefixtures("large")
def test_the_masked_original_is_the_same_from_files(tmp_path: Path) -> None:
    for steps in (["plain"], STEPS):
        graph = load(outside(graphs.build(steps, "pool", 0), tmp_path / steps[-1]))
        coupling = analyse(graph)
        scores = [l1(g, graph.weights, None) for g in coupling.groups]
        removed = allocate(coupling, scores, ratio=0.5)
        masked = mask(coupling.graph, make_plan(coupling, removed))
        held = masked.on_disk(tmp_path / "masked")
        assert held.complete() == masked.complete()
        assert (tmp_path / "masked").stat().st_size > 0


def test_holes(tmp_path: Path) -> None:
    """Zeros in the middle, at either end, across blocks, and in what is shorter than a page."""
    values = np.zeros(5 << 20, np.uint8)
    rng = np.random.default_rng(0)
    for start, stop in ((10_000, 10_001), (40_000, 700_000), (3 << 20, (3 << 20) + 5)):
        values[start:stop] = rng.integers(1, 256, stop - start)
    for part in (values, values[39_999:701_001], values[:5000], values[:5000] | 1, values[-1:]):
        model = LazyModel(onnx.ModelProto(), {})
        for k in range(2):
            model.proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(part), f"w{k}"))
        held = model.on_disk(tmp_path / "data")
        assert [t.raw_data for t in held.complete().graph.initializer] == [part.tobytes()] * 2


@pytest.mark.usefixtures("large")
def test_inspect_and_compare(path: Path, tmp_path: Path) -> None:
    assert onnxprune.inspect(path).groups
    result = onnxprune.prune(path, ratio=0.5)
    result.save(tmp_path / "out.onnx")
    rng = np.random.default_rng(0)
    data = {"image": rng.standard_normal((8, 3, 8, 8)).astype(np.float32), "labels": np.zeros(8, np.int64)}
    found = onnxprune.compare(path, tmp_path / "out.onnx", data=data, runs=5)
    assert [c.macs for c in found.costs] == [result.report.before.macs, result.report.after.macs]
    again = onnxprune.prune(path, ratio=0.5, data=data)
    assert again.report.metrics["after"]["relative_error"] == pytest.approx(found.metrics["relative_error"], rel=1e-3)


@pytest.mark.usefixtures("large")
def test_command_line(path: Path, tmp_path: Path) -> None:
    """The output is beside nothing but its data: no temporary folder stays, not even one that is empty."""
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "small.onnx"
    for extra in ([], ["--dry-run"]):
        done = CliRunner().invoke(app, ["prune", str(path), "-o", str(out), "--ratio", "0.5", *extra])
        assert done.exit_code == 0, done.output
        assert {p.name for p in (tmp_path / "out").iterdir()} == {"small.onnx", "small.onnx.data"}
    x = np.ones((1, 3, 8, 8), np.float32)
    assert np.isfinite(ort.InferenceSession(out).run(None, {"image": x})[0]).all()


@pytest.mark.usefixtures("large")
def test_a_proto_and_a_model_that_can_not_be_cut(tmp_path: Path) -> None:
    result = onnxprune.prune(graphs.build(STEPS, "pool", 0), ratio=0.5)
    result.save(tmp_path / "one.onnx")
    assert onnx.load(tmp_path / "one.onnx") == result.model
    path = outside(graphs.build(STEPS, "pool", 0), tmp_path / "in")
    uncut = onnxprune.prune(path, ratio=0)
    uncut.save(tmp_path / "two.onnx")
    assert not uncut.plan.sites
    assert complete(tmp_path / "two.onnx") == uncut.model == complete(path)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "one.onnx", "two.onnx", "two.onnx.data"}


@pytest.mark.usefixtures("large")
def test_saved_twice_and_moved_once(path: Path, tmp_path: Path) -> None:
    result = onnxprune.prune(path, ratio=0.5, scratch=tmp_path)
    with pytest.raises(OutputError, match=r"is the input itself; choose another path$"):
        result.save(path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        result.save(tmp_path / name / "out.onnx")
    (tmp_path / "c").mkdir()
    result.save(tmp_path / "c" / "out.onnx", move=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")
    with pytest.raises(OutputError, match=r"the result was moved when it was saved before; copy that$"):
        result.save(tmp_path / "d.onnx")
    del result
    assert {p.name for p in tmp_path.iterdir()} == {"in", "a", "b", "c"}


# failures -------------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("large")
def test_a_wrong_cut_is_noticed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sabotaged(*arguments: object) -> LazyModel:
        pruned = apply(*arguments)
        wide = [t.name for t in pruned.proto.graph.initializer if len(t.dims) == 4 and pruned.tensors[t.name].kept]
        name = next(n for n in reversed(wide) if not pruned.tensors[n].kept[0].all())  # near the output, where it shows
        stays = list(pruned.tensors[name].kept)
        stays[0] = np.roll(stays[0], 1)
        return LazyModel(pruned.proto, {**pruned.tensors, name: pruned.tensors[name].keep(stays)})

    monkeypatch.setattr(standing, "apply", sabotaged)
    with pytest.raises(VerificationError, match="differs from the masked original"):
        onnxprune.prune(path, ratio=0.5, scratch=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.usefixtures("large")
def test_what_was_written_is_what_is_proved(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of damage to the written file, and it is not the masked original's equal any more."""

    def damaged(model: LazyModel, target: Path, **options: bool) -> None:
        files.save(model, target, **options)
        data = bytearray((target.parent / f"{target.name}.data").read_bytes())
        data[3] ^= 0x40
        (target.parent / f"{target.name}.data").write_bytes(data)

    monkeypatch.setattr(proof, "save", damaged)
    with pytest.raises((VerificationError, ModelError)):
        onnxprune.prune(path, ratio=0.5, scratch=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.usefixtures("large")
def test_not_enough_room(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    done = CliRunner().invoke(app, ["prune", str(path), "-o", str(tmp_path / "out.onnx")])
    assert done.exit_code == 1
    assert "GB left, but to prove a model of this size" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def failing(work: Callable[..., object], last: int, error: BaseException) -> Callable[..., object]:
    calls = iter(range(1, 1 << 30))

    def stand_in(*arguments: object, **options: object) -> object:
        if next(calls) == last:
            raise error
        return work(*arguments, **options)

    return stand_in


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["interrupt", "full disk"])
@pytest.mark.parametrize("call", [1, 3, 20], ids=["at first", "while the result is written", "while the masked one is"])
def test_stopped_while_writing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException
) -> None:
    """Nothing was written, nothing stays behind, what was there is still there."""
    (tmp_path / "out.onnx").write_bytes(b"old")
    (tmp_path / "out.onnx.data").write_bytes(b"older")
    before = contents(tmp_path)
    monkeypatch.setattr(lazy, "_write", failing(lazy._write, call, error))
    done = CliRunner().invoke(app, ["prune", str(path), "-o", str(tmp_path / "out.onnx")])
    assert done.exit_code == 1
    assert ("interrupted" if isinstance(error, KeyboardInterrupt) else "No space left on device") in done.stderr
    del done
    assert contents(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out.onnx", "out.onnx.data"]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("call", [1, 2, 3])
def test_stopped_while_moving(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    result = onnxprune.prune(path, ratio=0.5)
    (tmp_path / "out.onnx").write_bytes(b"old")
    (tmp_path / "out.onnx.data").write_bytes(b"older")
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", failing(os.replace, call, OSError(28, "No space left on device")))
        with pytest.raises(OutputError, match="No space left on device; nothing was changed"):
            result.save(tmp_path / "out.onnx")
    assert contents(tmp_path) == before
    result.save(tmp_path / "out.onnx")
    judge.assert_equal(onnx.load(path), onnx.load(tmp_path / "out.onnx"), result.plan.to_dict())


@pytest.mark.usefixtures("large")
def test_large_models_are_not_optimised(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would take their weights out of the files, into memory."""
    wanted: list[bool | None] = []

    class Watched(Session):
        def __init__(self, model: AnyModel, **options: Any) -> None:
            assert isinstance(model, LazyModel)
            wanted.append(options.get("optimise"))
            super().__init__(model, **options)

    monkeypatch.setattr(importlib.import_module("onnxprune.evaluate.verify"), "Session", Watched)
    assert onnxprune.prune(path, ratio=0.5, scratch=tmp_path).report.verification.passed
    assert wanted == [None, None]
