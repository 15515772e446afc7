"""Index surgery: take filters, kernels or normalised channels out of one layer, and nothing else.

For those who wire a cut by hand, layer by layer (as with MIC-Laboratory's Pruning Engine). Each function changes one node's
stored tensors and what hard-codes their sizes there (``group``, ``hidden_size``) and returns a new model, which runs once the
layers around it have lost the same channels. :func:`onnxprune.prune` does all of that by itself.

Which axes these are is read from the operator table (:mod:`onnxprune.rules`): an axis of the result that the stored weights
have, too, is that of the filters; one of the input that is summed with them is that of the kernels.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from onnx import ModelProto

from onnxprune.errors import OptionError, UsageError
from onnxprune.files import Source
from onnxprune.graph import Editor, Graph, load
from onnxprune.labels import BoolArray
from onnxprune.lazy import LazyTensor
from onnxprune.rules import Call, Rule, Signature, find
from onnxprune.rules.notation import Token, letters
from onnxprune.structure import Node


def remove_filters(model: Source, layer: str, indices: Iterable[int]) -> ModelProto:
    """Take outputs from a layer: convolution filters, dense units, recurrent units; with their biases.

    The bias may also be an ``Add`` of a stored tensor that alone reads the layer. A convolution in groups loses whole groups
    (a depthwise one: its channels), or the same filters of every group. What reads the outputs is not touched.

    Args:
        model: path of an ONNX file, or a proto (which is not changed).
        layer: name of the node, or of its stored weight.
        indices: of the outputs, from 0; negative ones count from the last.

    Raises:
        ModelError: the model can't be read.
        UsageError: there is no such layer, or it has no filters of its own.
        OptionError: indices that it does not have, all of them, or some that leave its groups different sizes.
    """
    found = _Layer.of(load(model), layer)
    if not found.summed:
        raise UsageError(f"layer {layer!r} ({found.node.op}) sums nothing, so it has no filters; take remove_normalization")
    return found.without("filters", found.result, indices)


def remove_kernels(model: Source, layer: str, indices: Iterable[int]) -> ModelProto:
    """Take inputs from a layer: what it makes of some channels of its input. Arguments and errors as above.

    A convolution in groups loses whole groups, and their filters with them, or the same inputs of every group. A dense layer
    behind a ``Flatten`` has an input for each position of a channel: all of these are to be named.
    """
    found = _Layer.of(load(model), layer)
    if not found.summed:
        raise UsageError(f"layer {layer!r} ({found.node.op}) sums nothing, so it has no kernels; take remove_normalization")
    return found.without("kernels", found.input, indices)


def remove_normalization(model: Source, layer: str, indices: Iterable[int]) -> ModelProto:
    """Take channels from a normalisation: scale, shift, mean and variance. Arguments and errors as above."""
    found = _Layer.of(load(model), layer)
    if found.summed:
        raise UsageError(f"layer {layer!r} ({found.node.op}) is no normalisation; take remove_filters or remove_kernels")
    return found.without("channels", found.result, indices)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A node with its line of notation. ``stored``: operands with stored weights; ``tokens``: what their axes are."""

    graph: Graph
    node: Node
    rule: Rule
    call: Call
    signature: Signature
    tokens: Mapping[int, tuple[Token, ...]]

    @classmethod
    def of(cls, graph: Graph, name: str) -> _Layer:
        """The layer of that name. Its activations' shapes need not be known: around it the model may not run yet.

        Raises:
            UsageError: there is none, several read that weight, or it has no stored weights with channels.
        """
        node = _node(graph, name)
        rule = find(node.op, node.domain)
        stored = {k: graph.weights.shape(n) for k, n in enumerate(node.inputs) if n in graph.weights}
        shapes, nothing = tuple(stored.get(k) for k in range(len(node.inputs))), (None,) * len(node.inputs)
        version = graph.opset.get("" if node.standard else node.domain, 1)
        call = Call(node, shapes, (None,) * len(node.outputs), nothing, nothing, version)
        signature = None if rule is None else rule.fit(call)
        patterns = () if signature is None else signature.operands
        found = {k: patterns[k].expand(len(shape)) or () for k, shape in stored.items() if k < len(patterns)}
        tokens = {k: axes for k, axes in found.items() if any(map(letters, axes))}
        if rule is None or signature is None or not tokens or any("+" in t for axes in tokens.values() for t in axes):
            raise UsageError(f"layer {name!r} ({node.op}) has no stored weights with channels along an axis; name one that has")
        return cls(graph, node, rule, call, signature, tokens)

    @property
    def own(self) -> frozenset[str]:
        """The letters of the stored weights."""
        return frozenset(letter for axes in self.tokens.values() for token in axes for letter in letters(token))

    @property
    def summed(self) -> frozenset[str]:
        """Those of them that do not reach the result."""
        return self.own - {letter for pattern in self.signature.results for t in pattern.tokens for letter in letters(t)}

    @property
    def result(self) -> Token | None:
        """The axis of the result that the weights have, too."""
        return next((t for t in self.signature.results[0].tokens if self.own & set(letters(t))), None)

    @property
    def input(self) -> Token | None:
        """The axis of the input that is summed with the weights."""
        given = [p for k, p in enumerate(self.signature.operands) if self.node.input(k) and k not in self.tokens]
        return next((t for pattern in given for t in pattern.tokens if self.summed & set(letters(t))), None)

    @property
    def sizes(self) -> dict[str, int]:
        """How many indices each letter has. Axes of size one may be broadcast: the largest counts."""
        found = dict(self.signature.sizes)
        for k, axes in sorted(self.tokens.items()):
            for size, token in zip(self.call.shape(k), axes, strict=True):
                bare = letters(token)
                known = math.prod(found[t] for t in bare if t in self.signature.sizes)
                for letter in (t for t in bare if t not in self.signature.sizes):
                    found[letter] = max(found.get(letter, 1), size // known)
        return found

    def without(self, what: str, token: Token | None, indices: Iterable[int]) -> ModelProto:
        """The model once some indices of an axis have left this layer."""
        bare = letters(token) if token is not None else ()
        if not bare or not set(bare) <= set(self.sizes):
            raise UsageError(f"layer {self.node.label!r} ({self.node.op}) has no {what} of its own")
        shape = [self.sizes[t] for t in bare]
        where = f"layer {self.node.label!r} ({self.node.op})"
        stays = _stays(indices, math.prod(shape), f"{where}: {what}").reshape(shape)
        sides = [np.asarray(stays.any(axis=tuple(i for i in range(len(bare)) if i != k))) for k in range(len(bare))]
        if not np.array_equal(stays, reduce(np.logical_and.outer, sides)):
            raise OptionError(f"{where}: its {shape[0]} groups would differ; name whole groups, or the same ones of each")
        return self._cut(dict(zip(bare, sides, strict=True)))

    def _cut(self, stays: Mapping[str, BoolArray]) -> ModelProto:
        """The model with the letters' indices cut, along every stored axis that has them."""
        editor, weights = self.graph.editor(), dict[str, LazyTensor]()

        def kept(side: str, k: int, axis: int) -> BoolArray:
            pattern = self.signature.operands[k] if side == "input" else self.signature.results[k]
            return self._spread(pattern.tokens[axis], stays)

        for k, axes in self.tokens.items():
            masks = [self._spread(t, stays) for t in axes]
            _slice(self.graph, editor, weights, self.node, k, masks)
        if self.rule.resize is not None:
            for name, value in self.rule.resize(self.call, self.call.inputs, self.call.outputs, kept).attributes.items():
                editor.set_attribute(self.node, name, value)
        self._cut_bias(editor, weights, stays)
        made = editor.finish(weights, {}).complete()
        del made.graph.value_info[:]  # what was known of the sizes behind this node is known no more
        if self.result is not None and set(letters(self.result)) & set(stays):
            for value in made.graph.output:
                if value.name == self.node.outputs[0] and value.type.tensor_type.shape.dim:
                    value.type.tensor_type.shape.dim[-self._behind].dim_value = int(self._spread(self.result, stays).sum())
        return made

    @property
    def _behind(self) -> int:
        """The place of the result's axis, counted from the last."""
        pattern, first = self.signature.results[0], min(self.tokens)
        positions = len(self.tokens[first]) - len([t for t in self.signature.operands[first].tokens if t != "*"])
        assert self.result is not None, "asked for where there is one"
        return sum(positions if t == "*" else 1 for t in pattern.tokens[pattern.tokens.index(self.result) :])

    def _spread(self, token: Token, stays: Mapping[str, BoolArray]) -> BoolArray:
        """Which indices of an axis stay."""
        sides = [stays[t] if t in stays else np.ones(self.sizes.get(t, 1), np.bool_) for t in letters(token)]
        return reduce(np.logical_and.outer, sides, np.ones((), np.bool_)).ravel()

    def _cut_bias(self, editor: Editor, weights: dict[str, LazyTensor], stays: Mapping[str, BoolArray]) -> None:
        """Cut a bias that is added behind the node, along the axis that this has lost some indices of."""
        readers = self.graph.consumers.get(self.node.outputs[0], [])
        if not self.summed or self.result is None or [r.op for r in readers if r.standard] != ["Add"]:
            return
        mask, behind = self._spread(self.result, stays), self._behind
        for k, name in enumerate(readers[0].inputs):
            shape = self.graph.weights.shape(name) if name in self.graph.weights else ()
            if len(shape) >= behind:
                masks = [np.ones(size, np.bool_) for size in shape]
                masks[-behind] = mask
                _slice(self.graph, editor, weights, readers[0], k, masks)


def _slice(graph: Graph, editor: Editor, weights: dict[str, LazyTensor], node: Node, k: int, masks: Sequence[BoolArray]) -> None:
    """Cut a stored operand; where others read it as well, they keep it."""
    name, shape = node.inputs[k], graph.weights.shape(node.inputs[k])
    masks = [mask if len(mask) == size else np.ones(size, np.bool_) for mask, size in zip(masks, shape, strict=True)]
    if all(mask.all() for mask in masks):
        return
    cut = graph.lazy(name).keep(masks)
    if sum(list(reader.inputs).count(name) for reader in graph.consumers[name]) == 1:
        weights[name] = cut
    else:
        editor.set_input(node, k, editor.constant(f"{name}_cut", cut.values()))


def _stays(indices: Iterable[int], size: int, what: str) -> BoolArray:
    """Which of so many indices are not among some."""
    stays = np.ones(size, np.bool_)
    for given in indices:
        index = operator.index(given)
        if not -size <= index < size:
            raise OptionError(f"{what} go from 0 to {size - 1}; there is no {index}")
        stays[index] = False
    if not stays.any():
        raise OptionError(f"{what}: all {size} would leave; keep at least one")
    return stays


def _node(graph: Graph, name: str) -> Node:
    """The node of that name, or the one that reads the stored tensor of that name."""
    nodes = [node for node in graph.nodes if not node.border]
    named = [node for node in nodes if name and name in (node.name, node.label)]
    copies = {use for use, of in graph.uses.items() if of.tensor == name} | ({name} & set(graph.weights))
    found = named or [node for node in nodes if copies & set(node.inputs)]
    if not found:
        raise UsageError(f"layer {name!r} does not exist: no node and no stored weight has that name; see `onnxprune inspect`")
    if len(found) > 1:
        readers = ", ".join(repr(node.label) for node in found)
        raise UsageError(f"layer {name!r} means several nodes, {readers}; name one of them")
    return found[0]
