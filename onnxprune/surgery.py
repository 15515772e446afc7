"""Surgery: cut a plan's channels out of a model, or zero them in the original (the oracle's other half)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.errors import OnnxpruneError
from onnxprune.flow import Reroute, one_gather, stand_ins
from onnxprune.graph import Graph
from onnxprune.labels import BoolArray, Factor, IntArray, Labelled
from onnxprune.lazy import LazyModel, LazyTensor
from onnxprune.plan import Plan
from onnxprune.rules import Call, Resize, Rule
from onnxprune.shapes import Executor, Shape, Shapes, follow, origin
from onnxprune.structure import Node
from onnxprune.weights import Array, replaced


class RepairError(OnnxpruneError):
    """A size that follows the removed channels can't be corrected at ``node``; the caller freezes what leads there."""

    def __init__(self, node: Node, why: str) -> None:
        super().__init__(f"node {node.label!r}: {why}")
        self.node = node
        self.why = why


def mask(graph: Graph, plan: Plan) -> LazyModel:
    """The original with the removed channels' weights set to zero, or what stands for it; shapes stay as they are."""
    zeroed: dict[str, LazyTensor] = {}
    for site in plan.sites:
        gone = np.ones(site.of, np.bool_)
        gone[list(site.keep)] = False
        value = site.fill.over(graph.weights.shape(site.tensor))
        zeroed[site.tensor] = (zeroed.get(site.tensor) or graph.lazy(site.tensor)).fill(site.axis, gone, value)
    return graph.assemble(zeroed)


def apply(coupling: Coupling, removed: BoolArray) -> LazyModel:
    """Cut the components marked in ``removed`` out of the model. Reads nothing but small tensors.

    Raises:
        RepairError: a node hard-codes a size in a way that can't be corrected.
    """
    return _Surgeon(coupling, removed).operate()


class _Surgeon:
    def __init__(self, coupling: Coupling, removed: BoolArray) -> None:
        self.coupling = coupling
        self.graph = coupling.graph
        self.stays = ~removed[coupling.components.root]
        self.editor = coupling.graph.editor()
        self.execute = Executor(coupling.graph)
        self.masks: dict[str, tuple[BoolArray, ...] | None] = {}
        self.new = Shapes(inputs=coupling.shapes.inputs)
        self.weights: dict[str, LazyTensor] = {}
        self.sizes: dict[str, list[tuple[Node, int, Array]]] = {}

    def operate(self) -> LazyModel:
        for name in self.coupling.shapes.shapes:
            self._shrink(name)
        for step in self.coupling.flow.steps:
            self._visit(step.call, step.rule if step.understood else None, moved=step.moved)
        self._write_sizes()
        shapes = {n: _redeclared(m) for n, m in self.masks.items() if m is not None and not all(k.all() for k in m)}
        return self.editor.finish(self.weights, shapes)

    # what stays of each tensor ----------------------------------------------------------------------------------------
    def _shrink(self, name: str) -> None:
        """New shape of a tensor; new values where it is stored."""
        old = self.coupling.shapes.shapes[name]
        tensor = self.coupling.flow.tensors.get(name, Labelled(old, ()))
        masks = self._rectangle(tensor) if tensor.factors else tuple(np.ones(size, np.bool_) for size in old)
        self.masks[name] = masks
        if name in self.coupling.shapes.elem_types:
            self.new.elem_types[name] = self.coupling.shapes.elem_types[name]
        if masks is None:
            return
        self.new.shapes[name] = tuple(int(m.sum()) for m in masks)
        if name not in self.graph.weights:
            return
        known = self.coupling.shapes.value(name)
        if all(m.all() for m in masks):
            if known is not None:
                self.new.set_value(name, known, True)
            return
        self.weights[name] = self.graph.lazy(name).keep(masks)
        if known is not None:
            self.new.set_value(name, self.weights[name].values(), True)

    def _rectangle(self, tensor: Labelled) -> tuple[BoolArray, ...] | None:
        """Which indices stay per axis, or None where what stays is not rectangular."""
        masks = [np.ones(size, np.bool_) for size in tensor.shape]
        for factor in tensor.factors:
            stays = self.stays[factor.labels]
            if stays.all():
                continue
            sides = [stays.any(axis=tuple(i for i in range(stays.ndim) if i != k)) for k in range(stays.ndim)]
            if stays.ndim > 1 and not np.array_equal(stays, reduce(np.logical_and.outer, sides)):
                return None
            for axis, side in zip(factor.axes, sides, strict=True):
                masks[axis] &= side
        return tuple(masks)

    def _ragged(self, names: Iterable[str]) -> bool:
        return any(n in self.masks and self.masks[n] is None for n in names)

    # one node ---------------------------------------------------------------------------------------------------------
    def _visit(self, call: Call, rule: Rule | None, *, moved: bool) -> None:
        node = call.node
        outputs = [n for n in node.outputs if n]
        for name in outputs:
            reroute = self.coupling.flow.reroutes.get(name)
            if reroute is not None and self._ragged(reroute.between):
                self._reroute(node, name, reroute)
                outputs = [n for n in outputs if n != name]
        if node.outputs and all(self._ragged([n]) for n in outputs):
            return
        if self._ragged((*outputs, *node.inputs)):
            raise RepairError(node, "what is left of an axis that was split is not rectangular")
        labelled = any(self.coupling.flow.tensors[n].factors for n in outputs if n in self.coupling.flow.tensors)
        followed = not labelled and follow(self.graph, node, self.new, self.execute)
        if rule is not None and moved:
            self._empty_results(call, rule)
        inputs = tuple(self.new.get(n) if n else None for n in node.inputs)
        results = tuple(self.new.get(n) if n else None for n in node.outputs)
        touched = inputs != call.inputs or results != call.outputs or self._options_changed(call)
        sized: Iterable[int] = ()
        if rule is not None and rule.resize is not None and touched:
            resize = rule.resize(call, inputs, results, lambda side, k, axis: self._kept(call, side, k, axis))
            sized = resize.operands
            if not moved or self._check(call, rule, resize):
                self._resize(call, resize)
        elif rule is not None and moved and touched:
            self._check(call, rule, Resize({}, {}))
        if not moved and not followed:
            self._restore(call, sized)

    def _options_changed(self, call: Call) -> bool:
        """Whether a number that the node takes follows removed channels."""
        pairs = ((old, self.new.value(n)) for old, n in zip(call.values, call.node.inputs, strict=True) if n and old is not None)
        return any(now is not None and now.shape == old.shape and not np.array_equal(now, old) for old, now in pairs)

    def _empty_results(self, call: Call, rule: Rule) -> None:
        """Results without elements have no labels; their other axes follow the operands."""
        empty = [n for n, shape in zip(call.node.outputs, call.outputs, strict=True) if n and shape is not None and 0 in shape]
        if empty:
            values = [self.new.value(n) if n else None for n in call.node.inputs]
            operands = stand_ins(call.node.op, rule.carries(call.node), values, [self.new.get(n) for n in call.node.inputs])
            results = dict(zip(filter(None, call.node.outputs), rule.run(self.execute, call.node, operands), strict=True))
            self.new.shapes |= {name: np.shape(results[name]) for name in empty}

    def _kept(self, call: Call, side: str, k: int, axis: int) -> BoolArray:
        name = call.node.inputs[k] if side == "input" else call.node.outputs[k]
        masks = self.masks.get(name)
        if masks is None:
            raise RepairError(call.node, f"the shape of {name!r} is not known")
        return masks[axis]

    def _resize(self, call: Call, resize: Resize) -> None:
        for name, value in resize.attributes.items():
            self.editor.set_attribute(call.node, name, value)
        for k, wanted in resize.operands.items():
            self._set_operand(call, k, wanted)

    def _restore(self, call: Call, sized: Iterable[int]) -> None:
        """A number derived from a shape and used in arithmetic (an attention scale) keeps its old value."""
        for k, name in enumerate(call.node.inputs):
            if k in sized:
                continue
            old, now = call.value(k), self.new.value(name)
            labelled = name in self.coupling.flow.tensors and self.coupling.flow.tensors[name].factors
            if old is None or now is None or labelled or old.shape != now.shape:
                continue
            if call.static[k] is not None and not np.array_equal(old, now):
                self._set_operand(call, k, old)

    # sizes ------------------------------------------------------------------------------------------------------------
    def _set_operand(self, call: Call, k: int, wanted: Array) -> None:
        """Make operand ``k`` have the wanted value: in the constant it comes from, or by overriding static elements."""
        node, name = call.node, call.node.input(k)
        if not name:
            self.editor.set_input(node, k, self.editor.constant(f"{node.outputs[0]}_sizes", wanted))
            return
        now, static = self.new.value(name), self.coupling.shapes.static.get(name)
        if now is not None and now.shape == wanted.shape and np.array_equal(now, wanted):
            return
        if name in self.graph.weights:
            self.sizes.setdefault(name, []).append((node, k, wanted.astype(self.graph.weights.read(name).dtype)))
            return
        if node.border:
            raise RepairError(node, f"{name!r} follows removed channels into a subgraph")
        if now is None or static is None or now.shape != wanted.shape:
            raise RepairError(node, f"the sizes it takes from {name!r} are not known")
        if static.all():
            self.editor.set_input(node, k, self.editor.constant(f"{name}_resized", wanted.astype(now.dtype)))
            return
        wrong = now != wanted
        stuck = wrong & ~static
        if node.op == "Reshape" and stuck.sum() == 1 and not (wanted == -1).any() and wanted.all():
            wanted = np.where(stuck, -1, wanted)  # whatever is left, which Reshape finds out by itself
        elif stuck.any():
            corrected = self._recompute(node, name, wanted)
            if corrected is None:
                raise RepairError(node, f"{name!r} mixes removed channels with a dimension known only at run time")
            self.editor.set_input(node, k, corrected)
            return
        wanted = wanted.astype(now.dtype)
        condition, values = self.editor.constant(f"{name}_is_fixed", wrong), self.editor.constant(f"{name}_fixed", wanted)
        self.editor.set_input(node, k, self.editor.insert("Where", [condition, values, name], f"{name}_repaired", before=node))

    def _recompute(self, node: Node, name: str, wanted: Array) -> str | None:
        """Compute a number once more, with another constant in it: ``batch * 8`` heads become ``batch * 4``.

        Returns the name of the corrected number; None if no constant alone does it.
        """
        source = origin(self.graph, self.new, [name])
        chain, now = source.nodes, self.new.values[name]
        if any(len(n.outputs) > 1 or any(i and self.new.value(i) is None for i in n.inputs) for n in chain):
            return None
        factors = {Fraction(int(w), int(v)) for w, v in zip(wanted.flat, now.flat, strict=True) if w != v and v}
        for leaf in source.constants:
            old = self.new.values[leaf]
            for place, value in enumerate(old.flat):
                for factor in factors if old.dtype.kind in "iu" and 1 < abs(int(value)) < 1 << 31 else ():
                    if (int(value) * factor).denominator != 1:
                        continue
                    changed = old.copy()
                    changed.flat[place] = int(int(value) * factor)
                    if np.array_equal(np.asarray(self._values(chain, {leaf: changed})[name]), wanted):
                        return self._copy_chain(chain, {leaf: self.editor.constant(f"{leaf}_resized", changed)}, name, node)
        return None

    def _values(self, chain: Sequence[Node], values: dict[str, Any]) -> dict[str, Any]:
        """What a chain of arithmetic nodes computes when some of its sources have other values."""
        for node in chain:
            operands = [values[n] if n in values else self.new.value(n) if n else None for n in node.inputs]
            values |= dict(zip(filter(None, node.outputs), self.execute(node, operands), strict=True))
        return values

    def _copy_chain(self, chain: Sequence[Node], names: dict[str, str], result: str, before: Node) -> str:
        """Insert the nodes of a chain that follow from renamed sources once more."""
        for node in chain:
            if any(n in names for n in node.inputs):
                inputs = [names.get(n, n) for n in node.inputs]
                names[node.outputs[0]] = self.editor.insert(
                    node.op, inputs, f"{node.outputs[0]}_resized", before=before, **node.attributes
                )
        return names[result]

    def _write_sizes(self) -> None:
        """Change a constant in place if all its readers agree; otherwise give those that differ one of their own."""
        consumers = self.graph.consumers
        for name, wishes in self.sizes.items():
            first = wishes[0][2]
            readers = sum(list(n.inputs).count(name) + list(n.captured).count(name) for n in consumers.get(name, []))
            agreed = all(np.array_equal(first, w) for _, _, w in wishes) and readers == len(wishes)
            if agreed and all(p.name != name for p in self.graph.outputs):
                self.weights[name] = LazyTensor(replaced(self.graph.weights[name], first))
                continue
            for node, k, wanted in wishes:
                self.editor.set_input(node, k, self.editor.constant(f"{name}_resized", wanted))

    # movement ---------------------------------------------------------------------------------------------------------
    def _check(self, call: Call, rule: Rule, resize: Resize) -> bool:
        """Run the repaired node on the labels that are left. If they do not arrive where they should, gather instead."""
        if self._arrives(call, rule, resize):
            return True
        for name in filter(None, call.node.outputs):
            names = [call.node.inputs[k] for k in rule.carries(call.node)]
            sources = {source: self.coupling.flow.tensors[source] for source in names}
            reroute = one_gather(self.coupling.flow.tensors[name], sources, self._is_held)
            if reroute is None:
                raise RepairError(call.node, f"{call.node.op} can't be corrected for the channels that are left")
            self._reroute(call.node, name, reroute)
        return False

    def _is_held(self, labels: IntArray) -> bool:
        return bool(self.coupling.components.held[labels].all())

    def _arrives(self, call: Call, rule: Rule, resize: Resize) -> bool:
        node = call.node
        data = rule.carries(node)
        values = [self.new.value(n) if n else None for n in node.inputs]
        for k, wanted in resize.operands.items():
            values += [None] * (k + 1 - len(values))
            values[k] = wanted
        operands = stand_ins(node.op, data, values, [self.new.get(n) for n in node.inputs])
        for k in data:
            tensor = self.coupling.flow.tensors[node.inputs[k]]
            for factor in tensor.factors:
                if self.stays[factor.labels].all():
                    continue
                spread = self._spread(factor, tensor.shape, node.inputs[k])
                try:
                    results = rule.run(self.execute, node, [*operands[:k], spread + 1, *operands[k + 1 :]], resize.attributes)
                except Exception:  # the evaluator's errors have no common base; whatever it can't do is repaired otherwise
                    return False
                for name, result in zip(filter(None, node.outputs), results, strict=True):
                    if not self._expected(name, np.asarray(result) - 1):
                        return False
        return True

    def _spread(self, factor: Factor, shape: Shape, name: str) -> Array:
        """A factor's labels over what is left of its tensor."""
        masks = self.masks[name]
        assert masks is not None
        full = factor.aligned(shape)
        for axis in factor.axes:
            full = np.compress(masks[axis], full, axis)
        return np.broadcast_to(full, self.new.shapes[name])

    def _expected(self, name: str, arrived: Array) -> bool:
        """Whether each label that arrived is coupled to one that the original node put there, or stays in any case."""
        tensor, masks = self.coupling.flow.tensors[name], self.masks[name]
        if 0 in tensor.shape and not tensor.factors:
            return True
        if masks is None or arrived.shape != self.new.shapes[name]:
            return False
        root = self.coupling.components.root
        right = (arrived < 0) | (self.coupling.components.held[arrived] > 0)
        for factor in tensor.factors:
            right |= root[arrived] == root[self._spread(factor, tensor.shape, name)]
        return bool(right.all())

    def _reroute(self, node: Node, name: str, reroute: Reroute) -> None:
        """Let one Gather write what a chain of movement operators wrote."""
        kept = [self.masks[s] for s in reroute.sources]
        result = self.masks[name]
        if result is None or any(k is None for k in kept):
            raise RepairError(node, "what is left of an axis that was split is not rectangular")
        stays = np.concatenate([k[reroute.axis] for k in kept if k is not None])
        index = (np.cumsum(stays) - 1)[reroute.index[result[reroute.axis]]]
        source = reroute.sources[0]
        if len(reroute.sources) > 1:
            source = self.editor.insert("Concat", reroute.sources, f"{name}_joined", before=node, axis=reroute.axis)
        indices = self.editor.constant(f"{name}_order", index.astype(np.int64))
        if not self.editor.is_inside(node):
            self.editor.replace_output(node, name, "Gather", [source, indices], axis=reroute.axis)
            return
        gathered = self.editor.insert("Gather", [source, indices], f"{name}_gathered", before=node, axis=reroute.axis)
        same = self.editor.constant(f"{name}_sizes", np.zeros(len(result), np.int64))  # so that onnxruntime knows the rank
        self.editor.replace_output(node, name, "Reshape", [gathered, same])


def _redeclared(masks: Sequence[BoolArray]) -> list[int | None]:
    return [None if m.all() else int(m.sum()) for m in masks]
