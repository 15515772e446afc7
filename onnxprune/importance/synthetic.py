"""Inputs made up from a model's weights alone, on which its activations behave somewhat as on real ones.

Training moves the filters of a first dense layer within the span of the inputs, so that they take on the inputs' covariance
(the neural feature ansatz: Radhakrishnan et al. 2022, arXiv:2212.13881). White noise that is sent backwards through that layer
has it too. It is then pulled, in a few steps of fixed length, to where one output rises above the others. What a convolution
reads is a picture, or something like one: random fields of which neighbours are alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto, helper

from onnxprune.channels import Coupling
from onnxprune.errors import ModelError
from onnxprune.flow import Step
from onnxprune.gradient import backward
from onnxprune.gradient.backward import SEED
from onnxprune.gradient.tape import PREFIX
from onnxprune.rules import Rule
from onnxprune.rules.linear import macs
from onnxprune.rules.notation import letters
from onnxprune.runtime import Session
from onnxprune.shapes import Executor
from onnxprune.structure import Port
from onnxprune.weights import Array

SPREAD, MEAN = 0.1, 0.03
"""The noise' standard deviation and mean, as shares of the width of the inputs' interval; the mean counts from the value of
the interval that is nearest to zero."""

LEVELS = (-1.5, 1.5)
"""How much of a picture is dark."""

PULL, STEPS = 0.1, 3
"""How far inputs are pulled in all, as a share of the same (root mean square), and in how many steps."""

SAMPLES, BATCH = 2048, 256
"""Synthetic inputs at most, and how many at a time."""

WORK = 2_000_000_000
"""Multiply-accumulate operations that making them takes at most."""

Feeds = dict[str, Array]


def synthetic(coupling: Coupling, interval: tuple[float, float], *, seed: int = 0) -> Iterator[Feeds]:
    """Feeds for a model whose float inputs lie within ``interval``, as many as there is time for, but four at least.

    Integers are drawn from what the model looks up. Where the gradient is not known, inputs are noise alone.

    Yields:
        arrays by input name, of several samples each where the model takes any number.
    """
    rng = np.random.default_rng(seed)
    sources = [_Source(coupling, port, interval) for port in coupling.graph.inputs]
    pictures = any(source.first is not None and source.first.convolves for source in sources)
    pull = None if pictures else _Pull.of(coupling, interval)
    work = (1 if pull is None else 1 + 3 * STEPS) * max(1, sum(macs(step.call) for step in coupling.flow.steps))
    samples = int(np.clip(WORK // work, 4, SAMPLES))
    batch = min(BATCH, samples)
    for _ in range(-(-samples // batch)):
        feeds = {source.port.name: source.draw(rng, batch) for source in sources}
        yield feeds if pull is None else pull.pulled(feeds, rng)


class _Pull:
    """Moves inputs to where an output rises."""

    def __init__(self, session: Session, shape: tuple[int, ...], length: float) -> None:
        self.session, self.shape, self.length = session, shape, length

    @classmethod
    def of(cls, coupling: Coupling, interval: tuple[float, float]) -> _Pull | None:
        """For the first output of floats; None where its gradient is not known."""
        floats = [p.name for p in coupling.graph.outputs if p.elem_type == TensorProto.FLOAT]
        shape = coupling.shapes.get(floats[0]) if floats else None
        if shape is None:
            return None
        try:
            found = backward(coupling.graph, coupling.shapes, floats[0])
            if found.model is None or len(found.model.graph.output) < 2:
                return None
            return cls(Session(found.model), shape, PULL / STEPS * (interval[1] - interval[0]))
        except ModelError:
            return None

    def pulled(self, feeds: Feeds, rng: np.random.Generator) -> Feeds:
        """Inputs after all steps; as they were where the model does not run on them."""
        _, *gradients = self.session.outputs
        feeds = dict(feeds)
        aim = self._aim(max((len(v) for v in feeds.values() if v.ndim), default=1), rng)
        try:
            for _ in range(STEPS):
                slopes = self.session.run({**feeds, SEED: aim}, gradients)
                for name, slope in zip((g.removeprefix(PREFIX) for g in gradients), slopes, strict=True):
                    sizes = np.sqrt(np.mean(np.square(slope), axis=tuple(range(1, slope.ndim)), keepdims=True))
                    feeds[name] = feeds[name] + (self.length * slope / (sizes + 1e-12)).astype(feeds[name].dtype)
        except ModelError:
            pass
        return feeds

    def _aim(self, samples: int, rng: np.random.Generator) -> Array:
        """How much each output is to rise: one class of each sample above the others, or any, at random."""
        shape = (samples, *self.shape[1:]) if self.shape[:1] == (1,) else self.shape
        if len(shape) == 2 and shape[1] > 1:
            return np.asarray(np.eye(shape[1])[rng.integers(shape[1], size=shape[0])] - 1 / shape[1], np.float32)
        return np.asarray(rng.choice([-1, 1], shape), np.float32)


class _Source:
    """Draws one input of a model."""

    def __init__(self, coupling: Coupling, port: Port, interval: tuple[float, float]) -> None:
        self.coupling, self.weights, self.port = coupling, coupling.graph.weights, port
        self.shape = coupling.shapes.inputs[port.name]
        self.dtype = helper.tensor_dtype_to_np_dtype(port.elem_type)
        self.interval = low, high = interval
        self.mean = min(max(0.0, low), high) + MEAN * (high - low) * (1 if low >= 0 else -1 if high <= 0 else 0)
        self.spread = SPREAD * (high - low)
        self.first = self._first_layer() if self.dtype.kind == "f" else None

    def draw(self, rng: np.random.Generator, batch: int) -> Array:
        """Values for some samples, or for as many as the model takes."""
        dynamic = bool(self.port.shape) and not isinstance((self.port.shape or (0,))[0], int)
        runs = batch if dynamic else 1
        if self.dtype.kind == "b":
            values = np.ones((runs, *self.shape), self.dtype)
        elif self.dtype.kind in "iu":
            values = rng.integers(0, self._vocabulary(), (runs, *self.shape)).astype(self.dtype)
        else:
            values = self._floats(rng, runs).astype(self.dtype)
        return values.reshape(-1, *self.shape[1:]) if dynamic else values[0]

    def _floats(self, rng: np.random.Generator, runs: int) -> Array:
        """Pictures where a convolution reads the input, else noise with the covariance of the first dense layer's weights."""
        shape = (runs, *self.shape)
        drawn = None if self.first is None else self.first.noise(rng, runs)
        if drawn is None or not np.isfinite(drawn).all() or not drawn.any():
            return self.mean + self.spread * rng.standard_normal(shape)
        if self.first is not None and self.first.convolves:
            level = rng.uniform(*LEVELS, (runs, *[1] * len(self.shape)))
            low, high = self.interval
            return np.asarray(low + (high - low) / (1 + np.exp(-4 * (drawn.reshape(shape) - level))))
        return np.asarray(self.mean + self.spread * (drawn / drawn.std()).reshape(shape))

    def _first_layer(self) -> _Layer | None:
        """The sum of products that reads the input, straight or moved about."""
        size = int(np.prod(self.shape))
        name, places = self.port.name, np.arange(1, size + 1).reshape(self.shape)
        execute = Executor(self.coupling.graph)
        for step in self.coupling.flow.steps:
            rule, node = step.rule, step.call.node
            if name not in node.inputs or rule is None or not step.understood:
                continue
            k = node.inputs.index(name)
            stored = [j for j, n in enumerate(node.inputs) if n in self.weights and j not in (rule.plus or ())]
            if rule.product and len(stored) == 1:
                weight = self.weights.read(node.inputs[stored[0]]).astype(np.float32)
                return _Layer(step, weight, stored[0], k, places, size)
            signature = None if step.moved else rule.fit(step.call)
            if step.moved and k in rule.carries(node):
                moved = self._moved(execute, step, rule, k, places)
                if moved is None:
                    return None
                places = moved
            elif signature is None or not rule.is_apart(signature) or step.call.outputs[0] != step.call.shape(k):
                return None
            name = node.outputs[0]
        return None

    def _moved(self, execute: Executor, step: Step, rule: Rule, k: int, places: Array) -> Array | None:
        """Where an operator that only moves elements takes them; None where it takes others in, too."""
        node = step.call.node
        operands = [places if j == k else step.call.value(j) for j in range(len(node.inputs))]
        if any(name and operand is None for name, operand in zip(node.inputs, operands, strict=True)):
            return None
        try:
            return np.asarray(rule.run(execute, node, operands)[0])
        except Exception:  # the evaluator's errors have no common base; noise does without it
            return None

    def _vocabulary(self) -> int:
        """How many rows the table has that an input of integers picks from; 2 where none is."""
        for node in self.coupling.graph.consumers.get(self.port.name, []):
            if node.op == "Gather" and node.inputs[0] in self.weights:
                return self.weights.shape(node.inputs[0])[int(node.attributes.get("axis", 0))]
        return 2


class _Layer:
    """The layer that reads an input first. ``places``: which element of the input each of its operand's is, from 1 on."""

    def __init__(self, step: Step, weight: Array, factor: int, operand: int, places: Array, size: int) -> None:
        self.step, self.factor, self.operand, self.places, self.size = step, factor, operand, places, size
        self.convolves = step.call.node.op == "Conv" and step.call.attribute("group", 1) == 1
        self.axis = self._summed_axis()
        self.weight = weight

    def noise(self, rng: np.random.Generator, runs: int) -> Array | None:
        """Noise (runs, elements of the input); None where the layer is of another kind."""
        if self.convolves:
            values = self._fields(rng, runs * len(self.places))
        elif self.axis is not None and self.weight.ndim == 2:
            side, axis = self.axis
            rows = np.moveaxis(self.weight, side, 1)
            shape = self.places.shape
            lead = [n for a, n in enumerate(shape) if a != axis]
            values = np.moveaxis(rng.standard_normal((runs, *lead, len(rows))).astype(np.float32) @ rows, -1, axis + 1)
        else:
            return None
        found = np.zeros((runs, self.size + 1), np.float32)
        found[:, self.places.ravel()] = values.reshape(runs, -1)
        return found[:, 1:]

    def _summed_axis(self) -> tuple[int, int] | None:
        """The axes of the weight and of the operand that are summed over together."""
        call, rule = self.step.call, self.step.rule
        signature = None if rule is None else rule.fit(call)
        if signature is None:
            return None
        tokens = [signature.operands[j].expand(call.rank(j)) or () for j in (self.factor, self.operand)]
        kept = {c for t in signature.results[0].tokens for c in letters(t)}
        shared = [t for t in tokens[0] if t in tokens[1] and letters(t) and not kept & set(letters(t))]
        return (tokens[0].index(shared[0]), tokens[1].index(shared[0])) if len(shared) == 1 else None

    def _fields(self, rng: np.random.Generator, runs: int) -> Array:
        """Random fields (runs, channels, ...) of standard deviation 1 whose amplitude falls with the square of the frequency.

        Neighbouring pixels are alike, as in any picture (Field 1987), and so are the channels of one pixel.
        """
        shape = self.places.shape[1:]
        axes = tuple(range(2, len(shape) + 1))
        frequency = np.sqrt(sum(np.square(f) for f in np.meshgrid(*(np.fft.fftfreq(n) for n in shape[1:]), indexing="ij")))
        frequency.flat[0] = np.sort(frequency, axis=None)[1] if frequency.size > 1 else 1.0
        drawn = rng.standard_normal((runs, *shape)) + 2 * rng.standard_normal((runs, 1, *shape[1:]))
        found = np.fft.ifftn(np.fft.fftn(drawn, axes=axes) / frequency**2, axes=axes).real
        whole = tuple(range(1, found.ndim))
        return np.asarray(
            (found - found.mean(axis=whole, keepdims=True)) / (found.std(axis=whole, keepdims=True) + 1e-9), np.float32
        )
