"""What a criterion that looks beyond a group's filters sees of a model: who reads its channels, and within which bounds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cached_property

import numpy as np

from onnxprune.allocation import Scores
from onnxprune.bounds import Bounds, Effects, Interval
from onnxprune.channels import ChannelGroup, Coupling
from onnxprune.data import BATCH, LIVE, Dataset, rechunked
from onnxprune.errors import ModelError, UsageError
from onnxprune.flow import Site, Step
from onnxprune.importance.calibration import Calibration
from onnxprune.importance.pull import Feeds
from onnxprune.importance.spread import stacked
from onnxprune.importance.synthetic import plenty, synthetic
from onnxprune.importance.units import Units
from onnxprune.labels import BoolArray, IntArray, places_of
from onnxprune.lossless import Handover, Left, Slot, Sum, all_sums, bias_slot
from onnxprune.plan import make_plan
from onnxprune.rules.notation import letters
from onnxprune.runtime import Kernels, Session, tapped
from onnxprune.surgery import mask
from onnxprune.weights import Array

_LINE = (0, 1, -64, 64)
"""What is added to a layer's sums to see how far they are only scaled and shifted."""

_BEND = np.linspace(-3, 3, 25)
"""Values on which it is tried whether an operator scales with its operand."""


class Scene:
    """A model of which the components ``removed`` have left; groups are looked at with the channels that are there.

    ``heirs``: components that stand in for some that have left. ``data``: what the user gives to measure on. ``like``: a scene
    whose synthetic inputs are taken.
    """

    def __init__(
        self,
        coupling: Coupling,
        removed: BoolArray,
        interval: tuple[float, float] | None = None,
        heirs: BoolArray | None = None,
        before: Scene | None = None,
        *,
        data: Dataset | None = None,
        seed: int = 0,
        like: Scene | None = None,
    ) -> None:
        self.coupling, self.graph, self.data = coupling, coupling.graph, data
        self.interval, self._given, self._seed, self._like = interval or (0.0, 1.0), interval, seed, like
        self.weights, self._removed = Left(coupling, removed), removed
        self.heirs = np.zeros_like(removed) if heirs is None else heirs
        self._root = coupling.components.root
        self._run = Kernels(self.graph)
        self._origin: Scene = self if before is None else before._origin
        alike = before is not None and before.coupling.flow is coupling.flow
        self._shared: dict[str, Handover] = before._shared if before is not None and alike else {}
        self._carried = dict(before._found) if before is not None and alike else {}
        self._found: dict[int, tuple[IntArray, Array | None]] = {}
        self._units: dict[int, Units | None] = {}
        self._measured: dict[object, list[Scores]] = {}
        self._told: list[str] = []

    def after(self, coupling: Coupling, removed: BoolArray, heirs: BoolArray) -> Scene:
        """The same model after more components have left, or weights have changed."""
        return Scene(coupling, removed, self._given, heirs, self, data=self.data, seed=self._seed)

    def calibration(self, criterion: str) -> Calibration:
        """The model as it was at first, on the data that a criterion needs.

        Raises:
            UsageError: there are none.
        """
        if self.data is None:
            raise UsageError(f"criterion {criterion!r} is measured on data; give --data FILE.npz (in Python data=)")
        return self._origin._calibration

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how it was measured."""
        measured = self._origin._calibration.notes if "_calibration" in vars(self._origin) else []
        return (*measured, *self._origin._told)

    def tell(self, note: str) -> None:
        """Let the user know something, once."""
        if note not in self._origin._told:
            self._origin._told.append(note)

    @cached_property
    def _calibration(self) -> Calibration:
        assert self.data is not None, "asked for where there are data"
        return Calibration(self.coupling, self.data)

    def measured(self, key: object, measure: Callable[[Scene], list[Scores]], number: int) -> Scores:
        """Scores of the channels that are there of a group, float64 (channels,).

        They are those of the model as it was at first, measured for all its groups at the same time, once for each ``key``.
        """
        found = self._origin._measured
        if key not in found:
            found[key] = measure(self._origin)
        return found[key][number][np.isin(self._origin.group(number).roots, self.group(number).roots)]

    @cached_property
    def handover(self) -> Handover:
        """What reads the channels, and can be given to others."""
        if "handover" not in self._shared:
            self._shared["handover"] = Handover(self.coupling, all_sums(self.coupling))
        return self._shared["handover"].on(self.graph)

    @cached_property
    def feeds(self) -> list[Feeds]:
        """Synthetic inputs, made from the model as it was at first."""
        return list(synthetic(self.coupling, self._given)) if self._origin is self else self._origin.feeds

    def chunks(self, most: int, seen: Collection[str] = ()) -> list[Feeds]:
        """At most so many of the user's inputs, or synthetic ones, so few at a time that the tensors ``seen`` have room."""
        size = int(min(BATCH, max(1, LIVE // (4 * sum(map(self.coupling.shapes.numbers, seen)) + 1))))
        if self.data is not None:
            return self.data.chunks(self.graph.inputs, most, size)
        return list(rechunked(self._origin._plenty, self.graph.inputs, most, size))

    @cached_property
    def _plenty(self) -> list[Feeds]:
        """Synthetic inputs in the range that the user gives, or the weights tell."""
        if self._like is not None:
            return self._like._plenty
        return list(synthetic(self.coupling, self._given, samples=plenty(self.coupling), seed=self._seed))

    def group(self, number: int) -> ChannelGroup:
        """A group with the channels that are there."""
        group = self.coupling.groups[number]
        stay = ~self._removed[group.roots]
        return group if stay.all() else group.only(stay)

    @cached_property
    def effects(self) -> Effects:
        """What changes of activations do to the outputs, within the bounds that the model has at first."""
        return self._origin.effects if self._origin is not self else Effects(Bounds(self.coupling, self.interval, self.weights))

    def readers(self, number: int) -> list[Site]:
        """The weight axes by which a group's channels are read; none where something else reads them, too."""
        return self.handover.alone(number)

    def units(self, number: int) -> Units | None:
        """A group's channels as units of a dense layer; None where its filters are larger than one position, or not alone."""
        if number not in self._units:
            self._units[number] = self._units_of(number)
        return self._units[number]

    def _units_of(self, number: int) -> Units | None:
        readers = self.readers(number)
        made = [site for site in self.handover.sites[number] if "producer" in self.coupling.flow.roles.get(site, ())]
        sites = [site for site in made if len(self.weights.shape(site.tensor)) > 1]
        if not readers or not sites:
            return None
        incoming, biases, scales = [], [], True
        for site in sites:
            layer = self._layer(number, site)
            if layer is None:
                return None
            rows = self.rows(number, site)
            gain, shift, name = layer
            incoming.append(rows * gain[:, None])
            biases.append(shift)
            scales = scales and self._scales(number, name)
        return Units(np.concatenate(incoming, axis=1), np.sum(biases, axis=0), self.outgoing(number), scales)

    def outgoing(self, number: int) -> Array:
        """The weights that read a group's channels, float32 (channels, numbers)."""
        return np.concatenate([self.rows(number, site) for site in self.readers(number)], axis=1)

    def activations(self, number: int) -> Array | None:
        """What the readers of a group's channels see of them on synthetic inputs, float32 (places, channels).

        None where the channels are not seen one by one, or the model does not run on such inputs.
        """
        if number in self._found:
            return self._found[number][1]
        roots = self.group(number).roots
        if number in self._carried and len(self.read(number)) == 1:
            there, values = self._carried[number]  # of the channels that leave, the others of their group see nothing
            return None if values is None else values[:, np.isin(there, roots)]
        numbers = [number] if self._origin is not self else range(len(self.coupling.groups))
        self._found |= {n: (self.group(n).roots, values) for n, values in self._seen(numbers).items()}
        return self._found[number][1]

    def effect(self, number: int, channels: IntArray, change: Array) -> Interval | None:
        """What it does to the end of the model if a channel of a group is off by up to so much, one channel at a time.

        Args:
            channels: int (changes,); change: float (changes,), at most so much upwards or downwards.

        Returns:
            low, high: (changes, elements); None where the group's channels are not seen one by one.
        """
        changes: dict[str, Interval] = {}
        for name, axis in self.read(number).items():
            shape = self.coupling.shapes.shapes[name][1:]
            at = self.places(number, name, axis)
            if at is None or axis == 0:
                return None
            high = np.zeros((len(channels), *shape), np.float32)
            view = np.moveaxis(high, axis, 1)
            for row, (channel, size) in enumerate(zip(channels, change, strict=True)):
                view[row, at[channel]] = size
            changes[name] = (-high, high)
        return self.effects.of(changes) if changes else None

    def slot(self, site: Site) -> Slot | None:
        """Where a constant can be added to what a weight makes of the channels that it reads, if it is the same everywhere."""
        sum_ = self.handover.readers[site]
        return bias_slot(self.graph, sum_)

    def made_of(self, number: int, site: Site, constants: Array) -> Array | None:
        """What a weight makes of constants (channels,) in the channels of a group that it reads, float64 (its channels,)."""
        sum_ = self.handover.readers[site]
        rows = self.rows(number, site).astype(np.float64)
        shape = [n for a, n in enumerate(self.weights.shape(site.tensor)) if a != site.axis]
        tokens = [t for a, t in enumerate(sum_.tokens[1]) if a != site.axis]
        total = (constants @ rows).reshape(-1, *shape).sum(axis=0)
        kept = [a for a, t in enumerate(tokens) if set(letters(t)) - sum_.lost]
        return total.sum(axis=tuple(a for a in range(total.ndim) if a not in kept)) if len(kept) == 1 else None

    def _seen(self, numbers: Iterable[int]) -> dict[int, Array | None]:
        """The activations of some groups in the model as it is now, from one run on the synthetic inputs."""
        read = {n: self.read(n) for n in numbers}
        rows: dict[int, dict[str, list[Array | None]]] = {n: {name: [] for name in names} for n, names in read.items()}
        tensors = list(dict.fromkeys(name for names in read.values() for name in names))
        if not tensors:
            return dict.fromkeys(read)
        try:
            session = Session(tapped(mask(self.graph, make_plan(self.coupling, self._removed)), tensors).ready())
            for feeds in self.feeds:
                seen = dict(zip(tensors, session.run(feeds, tensors), strict=True))
                for n, names in read.items():
                    for name, axis in names.items():
                        rows[n][name].append(self.by_channel(n, name, axis, np.asarray(seen[name], np.float32)))
        except ModelError:
            return dict.fromkeys(read)
        return {n: stacked([part for parts in names.values() for part in parts]) for n, names in rows.items()}

    def read(self, number: int) -> dict[str, int]:
        """The tensors in which a group's channels are read, and along which axis."""
        sums = [self.handover.readers[site] for site in self.readers(number)]
        return {s.call.node.inputs[s.terms[0]]: s.summed[s.terms[0]][0] for s in sums}

    def made(self, number: int) -> dict[str, int]:
        """The tensors in which the layers that make a group's channels give them out, bias included, and along which axis.

        Of a layer that is a sum of products, what comes before normalisation and activation; of any other its first result.
        """
        found: dict[str, int] = {}
        for step in self.producers(number):
            sum_ = self._sums.get(step.call.node.index)
            slot = None if sum_ is None else bias_slot(self.graph, sum_)
            name = next(filter(None, (step.call.node if slot is None else slot[0]).outputs))
            if sum_ is not None and (slot is None or not slot[0].input(slot[1])):
                name = self._shifted_by(name)
            axis = self.axis(number, name)
            found |= {} if axis is None else {name: axis}
        return found

    def _shifted_by(self, name: str) -> str:
        """What comes of a tensor once a bias is added that is stored on its own, if that is all that reads it."""
        readers = self.graph.consumers.get(name, [])
        added = len(readers) == 1 and readers[0].op == "Add" and any(n in self.weights for n in readers[0].inputs)
        return readers[0].outputs[0] if added else name

    def producers(self, number: int) -> list[Step]:
        """The layers that make a group's channels."""
        roles = self.coupling.flow.roles
        made = {m.site for m in self.coupling.groups[number].members if m.producer} & roles.keys()
        labels = {roles[site]["producer"] for site in made}
        return [step for step in self.coupling.flow.steps if step.call.node.label in labels and step.understood]

    def axis(self, number: int, name: str) -> int | None:
        """The axis of a tensor along which a group's channels lie; None where they do not."""
        tensor = self.coupling.flow.tensors.get(name)
        axes = range(0 if tensor is None else len(tensor.shape))
        return next((axis for axis in axes if self.places(number, name, axis) is not None), None)

    @cached_property
    def _sums(self) -> dict[int, Sum]:
        return {sum_.call.node.index: sum_ for sum_ in all_sums(self.coupling)}

    def by_channel(self, number: int, name: str, axis: int, values: Array) -> Array | None:
        """A tensor with one column for each channel of a group; each of a channel's indices along ``axis`` is a place."""
        at = self.places(number, name, axis)
        return None if at is None else np.moveaxis(values, axis, -1)[..., at.T].reshape(-1, len(at))

    def places(self, number: int, name: str, axis: int) -> IntArray | None:
        """The indices along an axis of a tensor that belong to each channel of a group, int (channels, indices)."""
        roots = self.group(number).roots
        for factor in self.coupling.flow.tensors[name].factors:
            if factor.axes == (axis,):
                found = places_of(self._root[factor.labels], roots)
                if found is not None:
                    return found
        return None

    def rows(self, number: int, site: Site) -> Array:
        """A weight as one row for each channel of a group, float32 (channels, numbers)."""
        roots = self.group(number).roots
        order = np.argsort(roots)
        places = self.handover.places(site, roots[order])
        assert places is not None, "readers have as many places for each channel"
        values = np.moveaxis(self.weights.read(site.tensor), site.axis, 0)[places[1][np.argsort(order)].ravel()]
        rows: Array = values.astype(np.float32, copy=False).reshape(len(roots), -1)
        return rows

    def _layer(self, number: int, site: Site) -> tuple[Array, Array, str] | None:
        """How a dense layer's sums are scaled and shifted, unit by unit, and the tensor that they are then."""
        readers = self.graph.consumers.get(site.tensor, [])
        step = self._steps.get(readers[0].index) if len(readers) == 1 else None
        if step is None or step.rule is None or not step.rule.product:
            return None
        call = step.call
        signature, k = step.rule.fit(call), call.node.inputs.index(site.tensor)
        tokens = None if signature is None else signature.operands[k].expand(call.rank(k))
        moving = self._moving(step)
        if tokens is None or len(moving) != 1 or any(t == "*" and n > 1 for t, n in zip(tokens, call.shape(k), strict=True)):
            return None
        try:
            zero = self._first(step, {moving[0]: np.zeros(call.shape(moving[0]), np.float32)})
            values = [zero + np.float32(x) for x in _LINE]
            name = call.node.outputs[0]
            while (after := self._shifted(name, values)) is not None:
                name, values = after
        except (ModelError, ValueError):
            return None
        shift, unit = (self._by_unit(number, name, v) for v in values[:2])
        return None if shift is None or unit is None else (unit - shift, shift, name)

    def _shifted(self, name: str, values: list[Array]) -> tuple[str, list[Array]] | None:
        """What the one node that reads a tensor makes of it, if it only scales and shifts."""
        readers = self.graph.consumers.get(name, [])
        step = self._steps.get(readers[0].index) if len(readers) == 1 else None
        if step is None or not self._is_apart(step) or len(self._moving(step)) != 1:
            return None
        results = [self._first(step, {self._moving(step)[0]: v}) for v in values]
        rise = results[1] - results[0]
        gaps = [np.abs(r - results[0] - x * rise).max() for r, x in zip(results, _LINE, strict=True)]
        return (step.call.node.outputs[0], results) if max(gaps) <= 1e-4 * max(np.abs(r).max() for r in results) else None

    def _scales(self, number: int, name: str) -> bool:
        """Whether everything between a tensor and what reads the group's channels scales with it."""
        rng = np.random.default_rng(0)
        readers = {self.handover.readers[site].call.node.index for site in self.readers(number)}
        waiting = [name]
        for step in self.coupling.flow.steps:
            node = step.call.node
            if step.call.node.index in readers or not set(node.inputs) & set(waiting):
                continue
            if not (step.moved or (step.rule is not None and step.rule.rises)):
                drawn = {k: rng.choice(_BEND, step.call.shape(k)).astype(np.float32) for k in self._moving(step)}
                if not self._is_apart(step):
                    return False
                once, twice = (self._first(step, {k: factor * v for k, v in drawn.items()}) for factor in (1, 2))
                if not np.allclose(twice, 2 * once, rtol=1e-4, atol=1e-5):
                    return False
            waiting.append(node.outputs[0])
        return True

    @cached_property
    def _steps(self) -> dict[int, Step]:
        return {step.call.node.index: step for step in self.coupling.flow.steps if step.understood}

    def _moving(self, step: Step) -> list[int]:
        """The operands of a node that are computed from the model's inputs."""
        known = self.coupling.shapes.values
        return [k for k, n in enumerate(step.call.node.inputs) if n and n not in self.graph.weights and n not in known]

    def _is_apart(self, step: Step) -> bool:
        signature = None if step.rule is None or not step.understood or step.moved else step.rule.fit(step.call)
        return step.rule is not None and signature is not None and step.rule.is_apart(signature)

    def _first(self, step: Step, operands: dict[int, Array]) -> Array:
        """A node's first result for some operands; the others are as they are stored."""
        node, known = step.call.node, self.coupling.shapes.value
        stored = [self.weights.read(n) if n in self.weights else known(n) if n else None for n in node.inputs]
        return np.asarray(self._run(node, [operands.get(k, value) for k, value in enumerate(stored)])[0])

    def _by_unit(self, number: int, name: str, values: Array) -> Array | None:
        """What a tensor has for each channel of a group, wherever that is."""
        found = np.full(len(self.group(number).roots), np.nan, np.float32)
        for factor in self.coupling.flow.tensors[name].factors:
            if len(factor.axes) == 1:
                owners = self._root[factor.labels]
                first = np.moveaxis(values, factor.axes[0], 0).reshape(len(owners), -1)[:, 0]
                places = {int(owner): at for at, owner in enumerate(owners)}
                at = [places.get(int(root), -1) for root in self.group(number).roots]
                found = first[at] if min(at) >= 0 else found
        return None if np.isnan(found).any() else found
