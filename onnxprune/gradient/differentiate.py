"""A model's loss and its derivatives as one model of ordinary ONNX nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from onnxprune.errors import GradientError, UsageError
from onnxprune.files import Source
from onnxprune.gradient.backward import Extended, declared
from onnxprune.gradient.loss import LOSSES, Scores, before, cross_entropy, distillation, one_hot, softened, squared
from onnxprune.gradient.tape import PREFIX, Name, Step, Unsupported
from onnxprune.graph import Graph, load
from onnxprune.shapes import Shapes, infer
from onnxprune.weights import FLOATS, Array

LOSS, WEIGHTS, LABELS = f"{PREFIX}loss", f"{PREFIX}weights", f"{PREFIX}labels"


@dataclass(frozen=True, slots=True)
class Gate:
    """A factor, 1, on every channel of a tensor's axis. The derivative by it is the sum of ``y dL/dy`` over the channel."""

    tensor: str
    axis: int


Wrt = str | Gate


@dataclass(frozen=True)
class GradientGraph:
    """A model that computes a loss and its derivatives.

    ``model``: its inputs are the original's and, float ``(samples,)``, ``grad__weights``, by which each sample's loss is
    multiplied (0 for padding); int64 ``(samples,)`` ``grad__labels`` for losses by label; for those that compare with another
    model's outputs these, ``targets`` by output. Its outputs are ``grad__loss`` ``(samples,)`` and what ``outputs`` names.

    ``outputs``: which output has the derivative by what: by an input or an activation per sample, of its shape; by a stored
    tensor summed over the samples, of its shape; by a gate ``(samples, channels)``, or ``(channels,)`` on the first axis.
    ``masked``: which input is read by the backward pass instead of a stored tensor. ``elem_type``: of the weights.
    ``classes``: how many there are, 0 for losses that know none.
    """

    model: ModelProto
    outputs: Mapping[Wrt, str]
    targets: Mapping[str, str] = field(default_factory=dict)
    masked: Mapping[str, str] = field(default_factory=dict)
    needs_labels: bool = False
    elem_type: int = TensorProto.FLOAT
    classes: int = 0

    def feeds(
        self,
        inputs: Mapping[str, Array],
        labels: Array | None = None,
        *,
        weights: Array | None = None,
        targets: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """What the model takes for some samples. ``weights``: float (samples,), 1 by default; ``targets``: by output."""
        samples = len(next(iter(inputs.values())))
        dtype = helper.tensor_dtype_to_np_dtype(self.elem_type)
        found = {**inputs, WEIGHTS: np.ones(samples, dtype) if weights is None else weights.astype(dtype)}
        if self.needs_labels:
            if labels is None:
                raise UsageError("the loss is computed from labels, and there are none; give data with an array 'labels'")
            found[LABELS] = labels.astype(np.int64)
        return found | {self.targets[name]: values for name, values in (targets or {}).items()}


def gradient_graph(model: Source, loss: str, wrt: Sequence[Wrt]) -> GradientGraph:
    """An ONNX model that computes a loss of a model and its derivatives; it runs wherever ONNX models run.

    Args:
        model: path of an ONNX file, or a proto.
        loss: ``"cross-entropy"`` with labels; ``"predicted"``: with the class that the model itself predicts; ``"kl"``: the
            Kullback-Leibler divergence from another model's output; ``"margin"``: minus the log-odds of the label;
            ``"squared"``: half the mean squared difference from another model's outputs, whatever they are.
        wrt: names of graph inputs, activations or stored tensors, or :class:`Gate`.

    Raises:
        GradientError: there is no rule for a node on the way, or the loss does not fit the outputs.
        UsageError: there is no such loss or tensor.
        ModelError: the model can't be read.
    """
    graph = load(model)
    return differentiate(graph, infer(graph), loss, wrt)


def differentiate(
    graph: Graph,
    shapes: Shapes,
    loss: str,
    wrt: Sequence[Wrt],
    *,
    fed: Collection[str] = (),
    masked: Collection[str] = (),
    also: Sequence[str] = (),
    probabilities: bool = False,
    temperature: float = 1.0,
    hard: float = 0.0,
) -> GradientGraph:
    """The same for a graph that is loaded.

    Args:
        fed: stored tensors that become inputs of the same name.
        masked: stored tensors instead of which the backward pass alone reads further inputs, ``grad__masked_<name>``.
        also: tensors that are outputs besides.
        probabilities: whether the output holds probabilities although no Softmax or Sigmoid comes last.
        temperature: by which ``"kl"`` divides both models' logits; the divergence is multiplied by its square.
        hard: share of the cross-entropy with labels in ``"kl"``; the rest is the divergence.
    """
    if loss not in LOSSES and loss != "squared":
        raise UsageError(f"loss {loss!r} does not exist; choose one of {', '.join((*LOSSES, 'squared'))}")
    places = [w.tensor if isinstance(w, Gate) else w for w in wrt]
    for name in (*places, *fed, *masked, *also):
        if name not in shapes.elem_types:
            raise UsageError(f"the model has no tensor {name!r}; give the name of an input, an activation or a stored tensor")
    stand_ins = {name: f"{PREFIX}masked_{name}" for name in masked}
    extended = Extended(graph, shapes, stand_ins)
    results = {w: f"{PREFIX}gate_{k}" if isinstance(w, Gate) else PREFIX + w for k, w in enumerate(wrt)}
    extended.reserve((LOSS, WEIGHTS, LABELS, *results.values(), *stand_ins.values()))
    head = _Head(extended, loss, probabilities, temperature, hard)
    found = extended.gradients(head.seeds, set(places))
    for w, place in zip(wrt, places, strict=True):
        parts = found.get(place) or [head.step.Mul(place, _zero(head.step, shapes, place))]
        if isinstance(w, Gate):
            total = parts[0] if len(parts) == 1 else head.step.Sum(*parts)
            rank, axis = len(shapes.shapes[place]), w.axis % len(shapes.shapes[place])
            axes = [a for a in range(rank) if a not in (0, axis)]
            parts = [head.step.sum(head.step.Mul(total, place), axes, keepdims=False)]
        extended.name(parts, results[w])
    _take(extended.model, fed)
    inputs = [declared(stand_ins[n], shapes.elem_types[n], shapes.shapes[n]) for n in masked]
    inputs += [declared(n, shapes.elem_types[n], shapes.shapes[n]) for n in fed]
    inputs += [declared(WEIGHTS, head.step.elem_type, ["samples"])]
    inputs += [declared(LABELS, TensorProto.INT64, ["samples"])] if head.needs_labels else []
    inputs += [_like(name, shapes, output) for output, name in head.targets.items()]
    outputs = [declared(LOSS, head.step.elem_type, ["samples"])]
    outputs += [
        _like(results[w], shapes, place, {0, w.axis % len(shapes.shapes[place])} if isinstance(w, Gate) else None)
        for w, place in zip(wrt, places, strict=True)
    ]
    outputs += [_like(name, shapes, name) for name in also]
    model = extended.finish(inputs, outputs)
    return GradientGraph(model, results, head.targets, stand_ins, head.needs_labels, head.step.elem_type, head.classes)


class _Head:
    """The loss at the end of a model. ``seeds``: its derivatives by what it is computed from. ``step``: writes nodes there."""

    def __init__(self, extended: Extended, loss: str, probabilities: bool, temperature: float, hard: float) -> None:
        self.extended, self.graph, self.shapes = extended, extended.graph, extended.shapes
        self.loss, self.probabilities, self.temperature, self.hard = loss, probabilities, temperature, hard
        self.targets: dict[str, str] = {}
        self.seeds: dict[str, Name] = {}
        self.classes = 0
        self.needs_labels = loss in ("cross-entropy", "margin") or (loss == "kl" and hard > 0)
        try:
            self._squared() if loss == "squared" else self._classes()
        except Unsupported as error:
            raise GradientError(f"loss {loss!r} can't be written for this model in its opset; raise the opset") from error

    def _at(self, tensor: str) -> Step:
        node = self.graph.producers.get(tensor)
        if node is None:
            raise GradientError(f"output {tensor!r} is computed by no node, so that it has no gradient")
        return self.extended.step(node)

    def _squared(self) -> None:
        """Over all float outputs."""
        losses = []
        outputs = [port.name for port in self.graph.outputs if port.elem_type in FLOATS and self.shapes.get(port.name)]
        if not outputs:
            raise GradientError("the model has no output of floats, so that it has no gradient; leave it out")
        for output in outputs:
            self.step = op = self._at(output)
            self.targets[output] = f"{PREFIX}target_{output}"
            rank = len(self.shapes.shapes[output])
            loss, slope = squared(op, output, self.targets[output], range(1, rank))
            losses.append(loss)
            self.seeds[output] = op.Mul(slope, op.unsqueeze(WEIGHTS, range(1, rank)))
        self.extended.reserve(self.targets.values())
        self.extended.name(losses, LOSS)

    def _classes(self) -> None:
        """Of the first output that has scores of classes."""
        output = next((p.name for p in self.graph.outputs if p.elem_type in FLOATS and self._classes_of(p.name)), None)
        if output is None:
            raise GradientError(
                f"loss {self.loss!r} is a classifier's, and no output of the model has floats of shape (samples, classes); "
                "take 'squared', which compares any outputs with another model's"
            )
        tensor, last = before(self.graph.proto.graph, output)
        if last and not self._is_over_classes(tensor, last):
            tensor, last = output, ""
        self.step = op = self._at(tensor)
        count = self._classes_of(output)
        flat = op.Reshape(tensor, op.ints([-1, count])) if len(self.shapes.shapes[tensor]) != 2 else tensor
        probabilities = self.probabilities and not last
        whole = self._two(op, flat, probabilities) if count == 1 else flat
        scores, classes = Scores(whole, probabilities), max(2, count)
        self.classes = classes
        if self.loss == "kl":
            self.targets[output] = f"{PREFIX}target_{output}"
            self.extended.reserve(self.targets.values())
            aim = self._aim(op, self.targets[output], count, last)
            loss, slope = distillation(op, scores, aim, self.temperature)
            if self.hard:
                others = cross_entropy(op, scores, one_hot(op, LABELS, classes))
                parts = zip((loss, slope), others, strict=True)
                loss, slope = (op.Add(op.scale(a, 1 - self.hard), op.scale(b, self.hard)) for a, b in parts)
        else:
            labels = LABELS if self.needs_labels else op.ArgMax(whole, axis=1, keepdims=0)
            loss, slope = LOSSES[self.loss](op, scores, one_hot(op, labels, classes))
        slope = op.Mul(slope, op.unsqueeze(WEIGHTS, [1]))
        if count == 1:
            first, second = (op.slice(slope, [1], [k], [k + 1]) for k in range(2))
            slope = op.Sub(second, first) if probabilities else second
        self.seeds[tensor] = op.like(slope, tensor) if flat != tensor else slope
        self.extended.name([loss], LOSS)

    def _aim(self, op: Step, target: Name, count: int, last: str) -> Name:
        """What a target of the output's form says about the classes: their probabilities, at the temperature."""
        flat = op.Reshape(target, op.ints([-1, count]))
        probabilities = last in ("Softmax", "Sigmoid") or (not last and self.probabilities)
        whole = self._two(op, flat, probabilities) if count == 1 else flat
        return softened(op, whole, self.temperature, probabilities=probabilities)

    def _two(self, op: Step, values: Name, probabilities: bool) -> Name:
        """Both classes from the second one's probability or logit."""
        other = op.Sub(op.constant(1), values) if probabilities else op.Mul(values, op.constant(0))
        return op.Concat(other, values, axis=1)

    def _classes_of(self, output: str) -> int:
        """How many scores there are for each sample; 0 where they are something else."""
        shape = self.shapes.get(output) or ()
        fits = len(shape) >= 2 and max(shape[2:], default=1) == 1 and self.shapes.fixed_dims(output)[1]
        return shape[1] if fits else 0

    def _is_over_classes(self, tensor: str, last: str) -> bool:
        """Whether the operator after a tensor works on each sample's scores together."""
        shape, node = self.shapes.get(tensor) or (), self.graph.consumers[tensor][0]
        if last == "Sigmoid":
            return self._classes_of(tensor) == 1
        modern = self.graph.opset.get("", 1) >= 13
        axis = int(node.attributes.get("axis", -1 if modern else 1)) % max(1, len(shape))
        return axis == 1 and self._classes_of(tensor) > 1


def _like(name: str, shapes: Shapes, tensor: str, axes: Collection[int] | None = None) -> ValueInfoProto:
    """The declaration of a tensor of another one's type and sizes, of some axes of it alone."""
    sizes = zip(shapes.shapes[tensor], shapes.fixed_dims(tensor), strict=True)
    shape = [size if fixed else f"{tensor}_{a}" for a, (size, fixed) in enumerate(sizes) if axes is None or a in axes]
    return declared(name, shapes.elem_types[tensor], shape)


def _zero(op: Step, shapes: Shapes, name: str) -> Name:
    """Nought, of a tensor's type."""
    dtype = helper.tensor_dtype_to_np_dtype(shapes.elem_types[name])
    return op.stored(np.zeros((), dtype))


def _take(model: ModelProto, fed: Collection[str]) -> None:
    """Drop stored tensors that become inputs.

    Raises:
        UsageError: one is in a subgraph.
    """
    graph = model.graph
    constants = {node.output[0] for node in graph.node if node.op_type == "Constant"}
    wanted = set(fed) - constants - {tensor.name for tensor in graph.initializer}
    if wanted:
        raise UsageError(f"tensor {min(wanted)!r} is stored in a subgraph, where it can't be fed; leave it out")
    for kept in (graph.initializer, graph.input):  # old exporters list stored tensors as inputs too
        for k in reversed(range(len(kept))):
            if kept[k].name in fed:
                del kept[k]
    for k in reversed(range(len(graph.node))):
        if graph.node[k].op_type == "Constant" and graph.node[k].output[0] in fed:
            del graph.node[k]
