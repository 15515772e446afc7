"""Refit: the weights of a pruned model, fitted layer by layer to what the original's layers compute.

In the order of the graph, each linear layer that reads something else than it used to is fitted anew: its rows are those of
the pruned model as it is by then, what it should give are the original's sums ("asymmetric": He et al. 2017,
arXiv:1707.06168; of patches: Frantar and Alistarh 2022, arXiv:2208.11580). Where something is added to the sums, the layer
also makes up for what is wrong with that; where an activation follows that clips, only what it lets through counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.errors import ModelError
from onnxprune.labels import BoolArray
from onnxprune.leastsquares.changes import Changes
from onnxprune.leastsquares.layers import linear_layers
from onnxprune.leastsquares.linear import Linear, Product
from onnxprune.leastsquares.recurrent import with_states
from onnxprune.leastsquares.ridge import ALPHAS, ROUNDS, RowSolver, Solver, error, gram
from onnxprune.leastsquares.tail import Tail, tail_of
from onnxprune.leastsquares.walk import Walk
from onnxprune.plan import PlanEdit, make_plan
from onnxprune.surgery import mask
from onnxprune.weights import Array

Feeds = Mapping[str, Array]
Parts = Sequence[Array]
Solve = Callable[[Parts], Array]

POSITIONS = 256
"""Positions of each sample that a layer is fitted on, at most."""

ROWS, COPIES = 1 << 29, 4
"""Bytes of rows that a layer is fitted on, and of what they should give, at most; of the latter there are several versions."""

WIDEST, FEWEST = 5000, 4096
"""Columns of a layer that is fitted by their Gram matrix, at most; a wider one is fitted on so many rows."""

HELD_OUT = 4
"""One chunk of so many is held out to choose the ridge."""

ENOUGH = 5
"""Rows for each number that is fitted, of which there should be as many at least."""

INDEPENDENT = 30
"""Positions of one sample count as so many rows at most: neighbours tell much the same."""


@dataclass(frozen=True, eq=False)
class Job:
    """A layer to be fitted: which of its channels are left, (groups, inputs), (groups, outputs), and what it should give."""

    layer: Linear
    tail: Tail
    read: BoolArray
    made: BoolArray


@dataclass(eq=False)
class Refit:
    """Fits the layers of a model of which the components ``removed`` have left.

    ``alphas``: penalties to choose from. ``notes``: what a user should know.
    """

    coupling: Coupling
    removed: BoolArray
    alphas: Sequence[float] = ALPHAS
    notes: list[str] = field(default_factory=list)

    @property
    def seen(self) -> set[str]:
        """The tensors that are held for all samples at the same time, one layer's after the other's."""
        found = {name for job in self._jobs for name in (*job.layer.witnesses(job.tail.end), *job.layer.operands, job.tail.other)}
        return found - {""}

    def edits(self, feeds: Sequence[Feeds]) -> list[PlanEdit]:
        """The changes of weights, for inputs that are given chunk by chunk.

        Raises:
            ModelError: the model does not run on the inputs, or gives NaN or infinity.
        """
        graph, jobs = self.coupling.graph, self._jobs
        if not jobs:
            return []
        pruned = mask(graph, make_plan(self.coupling, self.removed)).complete()
        original = with_states(graph.assemble().complete(), [job.layer for job in jobs])
        whole = Walk(original, feeds, [name for job in jobs for name in job.layer.witnesses(job.tail.end)])
        now = Walk(pruned, feeds, [name for job in jobs for name in (*job.layer.operands, job.tail.other) if name])
        changes = Changes(self.coupling)
        scarce: list[str] = []
        for job in jobs:
            self._fit(job, whole, now, changes, scarce)
        if scarce:
            self.notes.append(
                f"{sum(len(chunk[next(iter(chunk))]) for chunk in feeds)} samples are few for {len(scarce)} of {len(jobs)} "
                f"layers ({scarce[0]!r} first): these stay closer to their own weights; give more with --data"
            )
        return changes.edits()

    @cached_property
    def _jobs(self) -> list[Job]:
        """The layers that read something else than they used to, in order."""
        graph, flow = self.coupling.graph, self.coupling.flow
        layers: dict[int, list[Linear]] = {}
        for layer in linear_layers(self.coupling):
            layers.setdefault(layer.call.node.index, []).append(layer)
        changed = {site.tensor for site in flow.sites if not self.coupling.keeps(site, self.removed).all()}
        last: dict[str, int] = {}
        found: list[Job] = []
        for place, node in enumerate(graph.nodes):
            reads = [*node.inputs, *node.captured]
            behind = max((last.get(name, -1) for name in reads), default=-1)
            if not changed.isdisjoint(reads):
                changed.update(node.outputs)
            for layer in layers.get(node.index, ()):
                job = self._job(layer, last, place) if not changed.isdisjoint(layer.sources) else None
                if job is not None:
                    found.append(job)
                    behind = place
            last |= dict.fromkeys(node.outputs, behind)
        return found

    def _job(self, layer: Linear, last: Mapping[str, int], place: int) -> Job | None:
        read, made = layer.read(self.coupling, self.removed), layer.made(self.coupling, self.removed)
        tail = tail_of(self.coupling, layer)
        if isinstance(layer, Product) and tail.other and not (tail.other in last and last[tail.other] < place):
            tail = tail.without_other(layer.target)
        return Job(layer, tail, read, made) if read.any() and made.any() else None

    def _fit(self, job: Job, whole: Walk, now: Walk, changes: Changes, scarce: list[str]) -> None:
        """Fit one layer, and let the pruned model go on with it."""
        layer, tail = job.layer, job.tail
        witnesses = list(zip(*(whole.take(name) for name in layer.witnesses(tail.end)), strict=True))
        operands = list(zip(*(now.take(name) for name in layer.operands), strict=True)) or [()] * len(witnesses)
        rows = _Rows(job, witnesses, operands, now.take(tail.other) if tail.other else None)
        if not rows.finite:
            raise ModelError(f"layer {layer.label!r} gives NaN or infinity on the inputs; clean the data, or --freeze it")
        if rows.independent < ENOUGH * (int(job.read.sum(axis=1).max()) * layer.taps + 1):
            scarce.append(layer.label)
        values = [changes.value(stored) for stored, _ in layer.stored]
        matrix, before = layer.matrix(values), np.array(layer.bias(self.coupling.graph))
        bias, changed = before.copy(), False
        for group in range(layer.groups):
            made = np.flatnonzero(job.made[group])
            columns = np.flatnonzero(np.tile(job.read[group], layer.taps))
            if not len(made) or not len(columns):
                continue
            prior = np.concatenate([matrix[group][np.ix_(columns, made)], bias[group][None, made]])
            fitted = rows.fitted(group, columns, made, prior, self.alphas, layer.slot is not None)
            if fitted is not None:
                matrix[group][np.ix_(columns, made)] = fitted[:-1]
                bias[group][made], changed = fitted[-1], True
        if changed and changes.take(layer, layer.tensors(matrix, values), bias - before):
            self._show(layer, bias - before, changes, now)

    def _show(self, layer: Linear, add: Array, changes: Changes, now: Walk) -> None:
        """Let the pruned model go on with a layer as it is by now."""
        for stored, _ in layer.stored:
            shown = changes.shown(stored, self.removed)
            if stored.own:
                now.store(stored.tensor, shown)
            else:
                now.read_own(stored.reader, stored.place, shown)
        if layer.slot is not None and np.abs(add).max(initial=0.0):
            node, index, _ = layer.slot
            now.add(node.result, index, layer.added(add))


class _Rows:
    """What a layer reads and should give, at some positions of each sample."""

    def __init__(self, job: Job, witnesses: Sequence[Parts], operands: Sequence[Parts], beside: Sequence[Array] | None) -> None:
        layer = job.layer
        self.tail, self.layer = job.tail, layer
        samples = sum(map(layer.samples, witnesses))
        numbers = layer.groups * (layer.columns + 1 + COPIES * layer.outputs)
        room = ROWS / (4 * numbers) if layer.columns < WIDEST else FEWEST
        most = min(POSITIONS, room / max(samples, 1))
        grids = [layer.grid(part, most, turn) for turn, part in enumerate(witnesses)]
        self.ends = [layer.sums(part, grid).astype(np.float32) for part, grid in zip(witnesses, grids, strict=True)]
        self.others: list[Array] | None = None
        if beside is not None:
            self.others = [layer.sums([part], grid).astype(np.float32) for part, grid in zip(beside, grids, strict=True)]
        seen = zip(operands, witnesses, grids, strict=True)
        self.parts = [list(layer.rows(part, witness, grid)) for part, witness, grid in seen]
        chunks = len(witnesses)
        self.held = [turn % HELD_OUT == HELD_OUT - 1 or (chunks < HELD_OUT and turn == 1) for turn in range(chunks)]
        count = sum(map(len, self.ends))
        self.independent = samples * min(count / max(samples, 1), INDEPENDENT)

    @property
    def finite(self) -> bool:
        """Whether all of it is."""
        parts = [*self.ends, *(self.others or ()), *(x for each in self.parts for x in each)]
        return all(np.isfinite(part).all() for part in parts)

    def fitted(
        self, group: int, columns: Array, made: Array, prior: Array, alphas: Sequence[float], biased: bool
    ) -> Array | None:
        """The best matrix for some columns and sums of a group; None where the prior does better on what is held out."""
        outputs = group * self.layer.outputs + made
        scale, shift = self.tail.scale[outputs].astype(np.float32), self.tail.shift[outputs].astype(np.float32)
        chosen = [*columns.tolist(), self.layer.columns]
        whole = len(chosen) == self.layer.columns + 1
        xs = [part[group] if whole else part[group][:, chosen] for part in self.parts]
        ends = [end[:, outputs] for end in self.ends]
        fixed = [shift if self.others is None else other[:, outputs] + shift for other in self.others or ends]
        ys = [(end - add) / scale for end, add in zip(ends, fixed, strict=True)]
        if not biased:  # there is nowhere to put one
            ys = [y - prior[-1].astype(np.float32) for y in ys]
            xs = [x[:, :-1] for x in xs]
        start = prior if biased else prior[:-1]
        fit = [k for k, held in enumerate(self.held) if not held]
        test = [k for k, held in enumerate(self.held) if held]
        choose = _by_rows if len(start) > WIDEST else _by_columns
        solve = choose(xs, ys, start, alphas, fit, test)
        if solve is None:
            return None
        z = solve(ys)
        for _ in range(ROUNDS if self.tail.clips else 0):
            z = solve([self._let(x, z, end, add, scale) for x, end, add in zip(xs, ends, fixed, strict=True)])
        return z if biased else np.concatenate([z, prior[-1:]])

    def _let(self, x: Array, z: Array, end: Array, add: Array, scale: Array) -> Array:
        """A target that takes no pains with what the activation does not let through (majorise and minimise)."""
        got = (x @ z.astype(np.float32)) * scale + add
        low, high = np.float32(self.tail.low), np.float32(self.tail.high)
        goal = np.where(end <= low, np.minimum(got, low), np.where(end >= high, np.maximum(got, high), end))
        return np.asarray((goal - add) / scale)


def _by_columns(
    xs: Parts, ys: Parts, start: Array, alphas: Sequence[float], fit: Sequence[int], test: Sequence[int]
) -> Solve | None:
    """How to solve for any target, with the penalty that does best on the parts ``test``; None where the start does better."""
    a, alpha = _sums(xs, xs, fit), alphas[(len(alphas) - 1) // 2]
    if test:
        b, a2, b2 = _sums(xs, ys, fit), _sums(xs, xs, test), _sums(xs, ys, test)
        power = float(sum(np.square(ys[k], dtype=np.float64).sum() for k in test))
        errors = [error(a2, b2, power, Solver(a, start, one).solve(b)) for one in alphas]
        if min(errors) >= error(a2, b2, power, start):
            return None
        alpha, a = alphas[int(np.argmin(errors))], a + a2
    solver = Solver(a, start, alpha)
    return lambda goals: solver.solve(_sums(xs, goals, range(len(xs))))


def _by_rows(
    xs: Parts, ys: Parts, start: Array, alphas: Sequence[float], fit: Sequence[int], test: Sequence[int]
) -> Solve | None:
    """The same for more columns than rows."""
    alpha = alphas[(len(alphas) - 1) // 2]
    if test:
        x, y, x2, y2 = (np.concatenate([parts[k] for k in which]) for which in (fit, test) for parts in (xs, ys))
        matrices = [RowSolver(x, start, one).solve(y) for one in alphas]
        errors = [float(np.square(y2 - x2 @ z.astype(np.float32)).sum()) for z in (start, *matrices)]
        if int(np.argmin(errors)) == 0:
            return None
        alpha = alphas[int(np.argmin(errors)) - 1]
    solver = RowSolver(np.concatenate(xs), start, alpha)
    return lambda goals: solver.solve(np.concatenate(goals))


def _sums(xs: Parts, ys: Parts, chosen: Sequence[int]) -> Array:
    return np.asarray(sum(gram(xs[k], ys[k]) for k in chosen))
