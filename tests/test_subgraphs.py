"""Subgraphs are part of the graph: read, renamed, cut and written back; and what is wrong inside is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import cases_control
import cases_loop
import cases_scan
import graphs
import judge
import numpy as np
import onnx
import pytest
from cases import BY_NAME, Case, Net, check_model, run
from cases_control import Body, branch, flag, loop
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from test_rules import Mismatch, assert_same, check, outputs

import onnxprune
from onnxprune.channels import analyse
from onnxprune.errors import ModelError, OnnxpruneError
from onnxprune.graph import load
from onnxprune.structure import Node, _borders
from onnxprune.surgery import apply

OPEN = ("If", "Loop", "Scan")
ROWS = [*cases_control.CASES, *cases_loop.CASES, *cases_scan.CASES]
CASES = [pytest.param(c, id=c.name) for c in ROWS]


# looking at models with subgraphs, without the package ------------------------------------------------------------------------
def parts(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all graphs inside."""
    yield graph
    for node in graph.node:
        for a in node.attribute:
            if a.type == AttributeProto.GRAPH:
                yield from parts(a.g)


def nodes(model: ModelProto, *ops: str) -> list[NodeProto]:
    """All nodes, or those of some operators."""
    return [n for part in parts(model.graph) for n in part.node if not ops or n.op_type in ops]


def stored(model: ModelProto) -> dict[str, TensorProto]:
    """Initializers and values of Constant nodes, wherever they are."""
    tensors = {t.name: t for part in parts(model.graph) for t in part.initializer}
    constants = ((n.output[0], a.t) for n in nodes(model, "Constant") for a in n.attribute if a.name == "value")
    return tensors | dict(constants)


def written(model: ModelProto) -> Counter[str]:
    """How many graphs give something this name."""
    names: Counter[str] = Counter()
    for part in parts(model.graph):
        names.update({v.name for v in part.input} | {t.name for t in part.initializer} | {o for n in part.node for o in n.output})
    return names


def masked(model: ModelProto, plan: dict[str, Any]) -> ModelProto:
    """The model with everything that the plan removes set to zero."""
    copy = ModelProto()
    copy.CopyFrom(model)
    tensors = stored(copy)
    for site in plan["sites"]:
        values = numpy_helper.to_array(tensors[site["tensor"]]).copy()
        gone = np.setdiff1d(np.arange(site["of"]), site["keep"])
        np.moveaxis(values, site["axis"], 0)[gone] = 0
        tensors[site["tensor"]].CopyFrom(numpy_helper.from_array(values, tensors[site["tensor"]].name))
    return copy


def numbers(model: ModelProto) -> int:
    return sum(int(np.prod(t.dims)) for t in stored(model).values() if t.data_type == TensorProto.FLOAT)


def body(model: ModelProto, op: str, which: int = 0) -> GraphProto:
    """A subgraph of the first node of an operator."""
    return [a.g for a in nodes(model, op)[0].attribute if a.type == AttributeProto.GRAPH][which]


def grown(build: Callable[[Net, str], Any], start: str = "image", opset: int = 16) -> Net:
    return Case("", opset, "", build, start=start).net()


def pruned(net: Net, ratio: float = 0.5) -> onnxprune.Result:
    """Prune a net by the front door, and compare with the masked original for both values of every flag."""
    model = net.model()
    result = onnxprune.prune(model, ratio=ratio, criterion="random", seed=1)
    check_model(result.model)
    original = load(model).assemble().complete()
    assert numbers(result.model) < numbers(original)
    assert_same(outputs(masked(original, result.plan.to_dict()), net), outputs(result.model, net))
    return result


# in and out again ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES)
def test_assemble_gives_the_model_back(case: Case) -> None:
    net = case.net()
    model = net.model()
    assembled = load(model).assemble().complete()
    if max(written(model).values()) == 1:
        assert assembled == model
    else:
        check_model(assembled)
        assert max(written(assembled).values()) == 1
        assert_same(outputs(model, net), outputs(assembled, net))


@pytest.mark.parametrize("case", CASES)
def test_editor_gives_the_model_back(case: Case) -> None:
    """An edit of nothing loses nothing, in subgraphs either; only what is not used goes."""
    net = case.net()
    model = load(net.model()).assemble().complete()
    finished = load(model).editor().finish({}, {}).complete()
    check_model(finished)
    before, after = ([(n.op_type, list(n.input), list(n.output)) for n in nodes(m)] for m in (model, finished))
    assert sorted(after) == sorted(before)
    assert [len(list(parts(m.graph))) for m in (model, finished)] == [len(list(parts(model.graph)))] * 2
    assert_same(outputs(model, net), outputs(finished, net))


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in ROWS if c.expect == "cut"])
def test_only_the_ends_are_frozen(case: Case) -> None:
    """Everything inside and around a subgraph can be cut, except for what the graph's inputs and outputs hold."""
    frozen = analyse(load(case.net().model())).frozen
    assert [f for f in frozen if not f.reason.startswith(("graph output", "graph input"))] == []


def test_every_name_once() -> None:
    """Names that both branches use become two; those used once stay, inside and outside."""
    model = BY_NAME["If-16-names_like_the_other_branch"].net().model()
    twice = {name for name, count in written(model).items() if count > 1}
    assert twice
    assembled = load(model).assemble().complete()
    assert set(written(assembled).values()) == {1}
    assert set(written(assembled)) > set(written(model))
    assert [list(n.output) for n in assembled.graph.node] == [list(n.output) for n in model.graph.node]


def test_a_new_name_is_not_taken() -> None:
    """The name that would be chosen for a second ``b_conv0`` is there already."""
    net = BY_NAME["If-16-names_like_the_other_branch"].net()
    model = net.model()
    (first,) = [o for n in body(model, "If").node for o in n.output if n.op_type == "Conv"]
    taken = f"{first}_1"
    model.graph.node.append(helper.make_node("Identity", [model.graph.node[0].output[0]], [taken]))
    assembled = load(model).assemble().complete()
    assert set(written(assembled).values()) == {1}
    assert written(assembled)[f"{first}_2"] == 1
    assert_same(outputs(model, net), outputs(assembled, net))


def test_renamed_names_are_followed_into_inner_subgraphs() -> None:
    """What is renamed in a branch is read by a subgraph inside that branch."""

    def fill(kind: str) -> Callable[[Body], str]:
        def build(b: Body) -> str:
            y = b.Conv("conv0", b.w(6, 8, 1, 1))
            return branch(b, inner, lambda n: getattr(n, kind)(y), lambda n: n.Conv(y, n.w(6, 6, 1, 1)))

        return build

    def build(g: Net, x: str) -> str:
        nonlocal inner
        inner = flag(g)
        return branch(g, flag(g), fill("Relu"), fill("Tanh"), names=("b_", "b_"))

    inner = ""
    net = grown(build)
    model = net.model()
    assembled = load(model).assemble().complete()
    assert set(written(assembled).values()) == {1}
    assert_same(outputs(model, net), outputs(assembled, net))
    pruned(net)


def test_weights_inside_stay_inside() -> None:
    """Initializers and Constants of a subgraph are cut where they are."""

    def fill(b: Body) -> str:
        return b.Conv(b.Conv("conv0", b.w(6, 8, 1, 1), b.w(6)), b.constant(b.randn(5, 6, 1, 1)), b.constant(b.randn(5)))

    net = grown(lambda g, x: branch(g, flag(g), fill, fill))
    small = pruned(net).model
    for which in (0, 1):
        before, after = body(net.model(), "If", which), body(small, "If", which)
        assert [t.name for t in after.initializer] == [t.name for t in before.initializer]
        assert [tuple(t.dims) for t in after.initializer] == [(3, 4, 1, 1), (3,)]
        constants = [tuple(a.t.dims) for n in after.node if n.op_type == "Constant" for a in n.attribute]
        assert sorted(constants) == [(3,), (3, 3, 1, 1)]


def test_declared_shapes_inside_follow() -> None:
    model = onnx.shape_inference.infer_shapes(BY_NAME["If-16-three_deep"].net().model())
    before = {v.name: v for part in list(parts(model.graph))[1:] for v in part.value_info}
    assert before
    result = onnxprune.prune(model, ratio=0.5)
    onnx.shape_inference.infer_shapes(result.model, check_type=True, strict_mode=True)
    after = {v.name: v for part in list(parts(result.model.graph))[1:] for v in part.value_info}
    assert after.keys() == before.keys()
    assert any(after[n] != before[n] for n in after)


def test_declared_states_follow() -> None:
    """Formal inputs and results of a body with declared shapes, which ONNX's checker compares with what goes in."""

    def build(g: Net, x: str) -> list[str]:
        first = g.ConstantOfShape([5, 6])
        w, r = g.w(8, 6), g.w(6, 6)
        b = Body(g, "b_")
        h, xt = b.formal("state", TensorProto.FLOAT, [5, 6]), b.formal("slice", TensorProto.FLOAT, [5, 8])
        new = b.Tanh(b.Add(b.MatMul(xt, w), b.MatMul(h, r)))
        return g.Scan(first, x, body=b.graph([new, b.Identity(new)], [5, 6]), num_scan_inputs=1, outputs=2)[1]

    small = pruned(grown(build, "tokens")).model
    graph = body(small, "Scan")
    declared = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert declared == [[5, 3], [5, 4], [5, 3], [5, 3]]


def test_metadata_inside_survive() -> None:
    model = BY_NAME["If-16-three_deep"].net().model()
    for k, part in enumerate(parts(model.graph)):
        part.doc_string = f"about graph {k}"
        for n, node in enumerate(part.node):
            node.doc_string = f"about node {k} {n}"
            node.metadata_props.add(key="number", value=f"{k} {n}")
    result = onnxprune.prune(model, ratio=0.5)
    assert [p.doc_string for p in parts(result.model.graph)] == [p.doc_string for p in parts(model.graph)]
    seen = [(n.op_type, n.doc_string, n.metadata_props[0].value) for n in nodes(result.model)]
    assert seen == [(n.op_type, n.doc_string, n.metadata_props[0].value) for n in nodes(model)]


def test_unused_nodes_and_weights_inside_go() -> None:
    def fill(b: Body) -> str:
        b.Conv("conv0", b.w(9, 8, 1, 1))
        return b.Conv("conv0", b.w(6, 8, 1, 1))

    net = grown(lambda g, x: branch(g, flag(g), fill, fill))
    small = pruned(net).model
    assert len(nodes(net.model(), "Conv")) == 6
    assert len(nodes(small, "Conv")) == 4
    assert not [t for t in stored(small).values() if t.dims[:1] == [9]]


def test_a_node_inside_can_be_frozen() -> None:
    model = BY_NAME["If-16"].net().model()
    inside = next(n for n in body(model, "If").node if n.op_type == "Conv")
    inside.name = "mine"
    frozen = onnxprune.prune(model, ratio=0.5, freeze=("mine",)).model
    assert stored(frozen)[inside.input[1]].dims[:1] == [6]
    assert stored(onnxprune.prune(model, ratio=0.5).model)[inside.input[1]].dims[:1] == [3]


def test_nodes_stand_in_an_order_in_which_they_run() -> None:
    """Also where the nodes of a body are not sorted."""

    def fill(b: Body) -> str:
        return b.Relu(b.Conv(b.Tanh(b.Conv("conv0", b.w(6, 8, 1, 1))), b.w(5, 6, 1, 1)))

    model = grown(lambda g, x: loop(g, 3, [], lambda b, i: fill(b))).model()
    inside = body(model, "Loop")
    backwards = list(inside.node)[::-1]
    del inside.node[:]
    inside.node.extend(backwards)
    graph = load(model)
    known = {p.name for p in graph.inputs} | set(graph.weights)
    for node in graph.nodes:
        wanted = {n for n in (*node.inputs, *node.captured) if n}
        if node.border and node.op != "If":  # a state's later value comes from the body's end
            wanted &= set(node.inputs[:1])
        assert wanted <= known, node
        known |= set(node.outputs)
    assert graph.assemble().complete() == model
    sorted_again = [n.op_type for n in body(graph.editor().finish({}, {}).complete(), "Loop").node if n.op_type != "Identity"]
    assert sorted_again == ["Conv", "Tanh", "Conv", "Relu"]


def test_insertions_inside() -> None:
    """A channel shuffle in a branch, whose rows become unequal, is replaced there by one Gather."""

    def shuffled(b: Body) -> str:
        y = b.Reshape(b.Conv("conv0", b.w(8, 8, 1, 1)), [2, 2, 4, 4, 6])
        return b.Reshape(b.Transpose(y, perm=[0, 2, 1, 3, 4]), [2, 8, 4, 6])

    def build(g: Net, x: str) -> str:
        return branch(g, flag(g), shuffled, lambda b: b.Tanh(shuffled(b)))

    small = pruned(grown(build), 0.3).model
    assert not [n for n in small.graph.node if n.op_type == "Gather"]
    assert [n.op_type for n in body(small, "If").node].count("Gather") == 1


# subgraphs that are not looked into -----------------------------------------------------------------------------------------
def test_sequence_map_is_a_barrier() -> None:
    def build(g: Net, x: str) -> str:
        b = Body(g, "b_")
        part = b.formal("part", TensorProto.FLOAT, [1, 8, 4, 6])
        graph = b.graph(b.Conv(part, b.w(6, 8, 1, 1)), [1, 6, 4, 6])
        parts = g.SplitToSequence(x, axis=0)
        return g.ConcatFromSequence(g.SequenceMap(parts, body=graph), axis=0)

    model = grown(build, opset=17).model()
    report = onnxprune.inspect(model)
    assert not report.groups
    named = {(f.node.split("_")[0], f.reason) for f in report.frozen}
    assert ("SequenceMap", "SequenceMap has subgraphs, which are not looked into") in named
    assert any(f.tensor == "b_w0" for f in report.frozen)
    assert onnxprune.prune(model, ratio=0.5).model == model


def test_operators_of_other_domains_stay_closed() -> None:
    """Such as BeamSearch of com.microsoft; also an operator called If of another domain."""
    inside = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["y"])],
        "decoder",
        [],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.ones((8, 6), np.float32), "inner")],
    )
    for op, names in (("BeamSearch", ("decoder",)), ("If", ("then_branch", "else_branch"))):
        node = helper.make_node(op, ["c"], ["z"], "call", domain="com.microsoft", **dict.fromkeys(names, inside))
        ports = [helper.make_tensor_value_info(n, 1, [2, 8]) for n in ("x", "c")]
        graph = helper.make_graph([node], "g", ports, [helper.make_tensor_value_info("z", 1, None)])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        loaded = load(helper.make_model(graph, opset_imports=opsets, ir_version=8))
        assert [(n.op, n.border, n.captured) for n in loaded.nodes] == [(op, False, ("x",))]
        assert not loaded.weights
        assert [(n.name, name) for n, name, _ in loaded.inner_tensors] == [("call", "inner")] * len(names)


# what is wrong inside -------------------------------------------------------------------------------------------------------
def _attribute(op: str, name: str, value: Any = None) -> Callable[[ModelProto], None]:
    """Set an attribute of the first node of an operator, or remove it."""

    def damage(model: ModelProto) -> None:
        (node,) = nodes(model, op)
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)
        if value is not None:
            node.attribute.append(helper.make_attribute(name, value))

    return damage


def _renamed(op: str, old: str, new: str) -> Callable[[ModelProto], None]:
    def damage(model: ModelProto) -> None:
        next(a for a in nodes(model, op)[0].attribute if a.name == old).name = new

    return damage


def _inside(op: str, change: Callable[[GraphProto], None]) -> Callable[[ModelProto], None]:
    return lambda model: change(body(model, op))


def _without(field: str) -> Callable[[GraphProto], None]:
    return lambda graph: graph.ClearField(field)


def _reads(place: int, name: str) -> Callable[[GraphProto], None]:
    return lambda graph: graph.node[place].input.__setitem__(0, name)


def _cycle(graph: GraphProto) -> None:
    graph.node[0].input[0] = graph.node[-1].output[0]


def _two_writers(graph: GraphProto) -> None:
    graph.node.add().CopyFrom(graph.node[0])


def _result_of_nothing(graph: GraphProto) -> None:
    graph.output[0].name = "lost"


def _writes_an_input(graph: GraphProto) -> None:
    graph.node.append(helper.make_node("Identity", [graph.input[0].name], [graph.input[-1].name]))


def _same_input_twice(graph: GraphProto) -> None:
    graph.input[1].name = graph.input[0].name


def _inputs(op: str, *names: str) -> Callable[[ModelProto], None]:
    def damage(model: ModelProto) -> None:
        (node,) = nodes(model, op)
        del node.input[:]
        node.input.extend(names)

    return damage


SOUND = {"If": "If-16", "Loop": "Loop-16", "Scan": "Scan-16"}
DAMAGE: dict[str, tuple[str, Callable[[ModelProto], None], str]] = {
    "cycle in a branch": ("If", _inside("If", _cycle), "cycle through node 'Conv_0', but must have none"),
    "cycle in a Loop": ("Loop", _inside("Loop", _cycle), "onnxruntime"),
    "lost in a branch": ("If", _inside("If", _reads(0, "lost")), "reads 'lost', which nothing writes"),
    "lost in a Loop": ("Loop", _inside("Loop", _reads(0, "lost")), "reads 'lost', which nothing writes"),
    "lost in a Scan": ("Scan", _inside("Scan", _reads(0, "lost")), "reads 'lost', which nothing writes"),
    "result of a branch": ("If", _inside("If", _result_of_nothing), "'lost'"),
    "result of a Loop": ("Loop", _inside("Loop", _result_of_nothing), "'lost'"),
    "two writers": ("If", _inside("If", _two_writers), "comes from both node 'Conv_0' and node 'Conv_0'"),
    "two inputs of one name": ("Loop", _inside("Loop", _same_input_twice), "two graph inputs have the same name"),
    "writes its input": ("Loop", _inside("Loop", _writes_an_input), "the graph's inputs or weights and node"),
    "no branch": ("If", _attribute("If", "then_branch"), "onnxruntime"),
    "empty condition": ("If", _inputs("If", ""), "onnxruntime"),
    "two conditions": ("If", _inputs("If", "x1", "x1"), "onnxruntime"),
    "branch without result": ("If", _inside("If", _without("output")), "onnxruntime"),
    "branch without nodes": ("If", _inside("If", _without("node")), "which nothing writes"),
    "no body": ("Loop", _attribute("Loop", "body"), "onnxruntime"),
    "body of another name": ("Loop", _renamed("Loop", "body", "limb"), "onnxruntime"),
    "body without inputs": ("Loop", _inside("Loop", _without("input")), "which nothing writes"),
    "Loop of nothing": ("Loop", _inputs("Loop"), "onnxruntime"),
    "state too many": ("Loop", _inputs("Loop", "", "", "conv0", "conv0"), "onnxruntime"),
    "scanned too many": ("Scan", _inputs("Scan", "add1", "add1", "add1"), "onnxruntime"),
    "slices without inputs": ("Scan", _inside("Scan", _without("input")), "which nothing writes"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(name: str) -> None:
    op, damage, text = DAMAGE[name]
    model = BY_NAME[SOUND[op]].net().model()
    damage(model)
    with pytest.raises(OnnxpruneError) as caught:
        onnxprune.prune(model)
    assert isinstance(caught.value, ModelError)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


# three deep, at random ------------------------------------------------------------------------------------------------------
class Nested(graphs.Builder):
    """A random graph, or the subgraph of one: ``prefix`` keeps its names apart from those of the graphs around it."""

    def __init__(self, seed: int, outer: Nested | None = None, prefix: str = "") -> None:
        super().__init__(seed)
        self.prefix = prefix
        self.flags: list[str] = []
        if outer is not None:
            self.rng, self.flags, self.live = outer.rng, outer.flags, outer.live[-2:]

    def value(self, values: np.ndarray) -> str:
        super().value(values)
        self.weights[-1].name = self.prefix + self.weights[-1].name
        return self.weights[-1].name

    def op(self, kind: str, inputs: list[str], outputs: int = 1, **attributes: object) -> str:
        super().op(kind, inputs, outputs, **attributes)
        self.nodes[-1].output[:] = [self.prefix + name for name in self.nodes[-1].output]
        return self.nodes[-1].output[0]

    def steps(self, count: int, depth: int) -> None:
        """Ordinary steps, and among them subgraphs of at most this depth."""
        for k in range(count):
            graphs.STEPS[str(self.rng.choice(sorted(graphs.STEPS)))](self)
            if depth and (k == 0 or self.rng.random() < 0.3):
                getattr(self, str(self.rng.choice(["choice", "repeat", "scanned"])))(depth - 1)

    def inside(self, depth: int, channels: int, *formals: str, times: str = "") -> GraphProto:
        """A body that makes ``channels`` of its last formal input, or of what it captures, and stacks it too."""
        inner = Nested(0, self, f"{self.prefix}{depth}_")
        names = [inner.prefix + f for f in formals]
        if names:
            inner.live.append((names[1 if times else 2], channels, 8))
        inner.steps(int(self.rng.integers(1, 3)), depth)
        x, c, _ = inner.live[-1]
        result = inner.op("Tanh", [inner.conv(x, c, channels)])
        if times:
            result = inner.op("Mul", [result, names[0]])
        results = [result] if not names else [result, inner.op("Identity", [result])]
        if names and not times:
            results.insert(0, inner.op("Identity", [names[1]]))
        kinds = [TensorProto.INT64, TensorProto.BOOL] if names and not times else []
        ports = [helper.make_tensor_value_info(n, k, []) for n, k in zip(names, kinds, strict=False)]
        ports += [onnx.ValueInfoProto(name=n) for n in names[len(kinds) :]]
        outs = [onnx.ValueInfoProto(name=r) for r in results]
        if times:  # onnxruntime wants to know the ranks of what a Scan stacks
            outs = [helper.make_tensor_value_info(r, TensorProto.FLOAT, ["n", channels, 8, 8]) for r in results]
        return helper.make_graph(inner.nodes, "inside", ports, outs, inner.weights)

    def choice(self, depth: int) -> None:
        self.flags.append(f"flag{len(self.flags)}")
        condition = self.flags[-1]
        branches = {name: self.inside(depth, 10) for name in ("then_branch", "else_branch")}
        self.live.append((self.op("If", [condition], **branches), 10, 8))

    def repeat(self, depth: int) -> None:
        x, c, s = self.wide()
        inside = self.inside(depth, c, "number", "go", "state")
        first = self.op("Loop", [self.value(np.array(2)), "", x], 2, body=inside)
        stacked = self.op("Gather", [first[:-1] + "1", self.value(np.array(1))], axis=0)
        self.live += [(first, c, s), (stacked, c, s)]

    def scanned(self, depth: int) -> None:
        x, c, s = self.wide()
        axis = int(self.rng.choice([0, 1, -1]))
        inside = self.inside(depth, c, "scale", "state", times="scale")
        inside.input.reverse()
        first = self.op("Scan", [x, self.stored(3, c, 1, 1)], 2, body=inside, num_scan_inputs=1, scan_output_axes=[axis])
        stacked = self.op("ReduceSum", [first[:-1] + "1", self.ints(axis)], keepdims=0)
        self.live += [(first, c, s), (stacked, c, s)]

    def model(self, head: str) -> ModelProto:
        model = self.finish(head)
        model.graph.input.extend(helper.make_tensor_value_info(f, TensorProto.BOOL, []) for f in self.flags)
        return model


def depth_of(graph: GraphProto) -> int:
    inside = [depth_of(a.g) for n in graph.node for a in n.attribute if a.type == AttributeProto.GRAPH]
    return 1 + max(inside, default=-1)


@pytest.mark.parametrize("seed", range(24))
def test_three_deep(seed: int) -> None:
    builder = Nested(seed)
    builder.steps(2, 3)
    model = builder.model(["pool", "flatten"][seed % 2])
    assert depth_of(model.graph) >= 1
    result = onnxprune.prune(model, ratio=[0.3, 0.5, 0.75][seed % 3], criterion="random", seed=seed)
    check_model(result.model)
    original = load(model).assemble().complete()
    assert numbers(result.model) < numbers(original)
    zeroed = masked(original, result.plan.to_dict())
    image = np.random.default_rng(seed).standard_normal((2, 3, 8, 8)).astype(np.float32)
    for flags in list(product((True, False), repeat=len(builder.flags)))[:32]:
        feeds = {"image": image} | {name: np.array(value) for name, value in zip(builder.flags, flags, strict=True)}
        gap = judge.distance(run(zeroed, feeds), run(result.model, feeds))
        assert gap <= judge.RTOL, f"pruned differs from masked by {gap:.2g} with {flags}"


def test_random_graphs_are_nested() -> None:
    """The seeds above reach three levels, and all three kinds."""
    found: Counter[object] = Counter()
    for seed in range(24):
        builder = Nested(seed)
        builder.steps(2, 3)
        model = builder.model("pool")
        found.update({depth_of(model.graph), *(n.op_type for n in nodes(model, *OPEN))})
    assert found[3] >= 5
    assert all(found[op] >= 10 for op in OPEN), found


def test_a_wrong_cut_inside_is_caught() -> None:
    """The comparison above can fail: a branch that is not taken at first loses the wrong channels."""
    net = BY_NAME["If-16"].net()
    result = onnxprune.prune(net.model(), ratio=0.5, criterion="random", seed=1)
    other = next(a.g for a in nodes(result.model, "If")[0].attribute if a.name == "else_branch")
    weight = next(t for t in other.initializer if len(t.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, ::-1].copy(), weight.name))
    wanted = outputs(masked(load(net.model()).assemble().complete(), result.plan.to_dict()), net)
    with pytest.raises(AssertionError, match="differs from masked"):
        assert_same(wanted, outputs(result.model, net))


def test_the_package_oracle_takes_the_other_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    def sabotaged(*arguments: Any) -> Any:
        cut = apply(*arguments)
        other = next(a.g for n in nodes(cut.proto, "If") for a in n.attribute if a.name == "else_branch")
        for tensor in other.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))
        return cut

    monkeypatch.setattr("onnxprune.standing.apply", sabotaged)
    with pytest.raises(onnxprune.VerificationError, match="differs from the masked original"):
        onnxprune.prune(BY_NAME["If-16"].net().model())


def test_states_taken_for_zero_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that begins with zeros is summed over channels behind a Loop that fills it."""
    monkeypatch.setattr("onnxprune.flow.run._filled_states", lambda state: frozenset())
    with pytest.raises(Mismatch):
        check(BY_NAME["Loop-16-slowly_filled"], end="sum")


@pytest.mark.parametrize("name", ["Loop-16-turned", "Loop-16-unread_state"])
def test_states_that_are_not_tied_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a repetition gives is what the next one begins with."""

    def loose(node: Node, *arguments: Any) -> tuple[list[Node], list[Node]]:
        into, out_of = _borders(node, *arguments)
        return into, [replace(n, inputs=n.inputs[:1]) for n in out_of]

    monkeypatch.setattr("onnxprune.structure._borders", loose)
    with pytest.raises(Mismatch):
        check(BY_NAME[name])
