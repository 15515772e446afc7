"""Refit: the weights of a pruned model, fitted layer by layer to what the original's layers compute.

In the order of the graph, each linear layer that reads something else than it used to is fitted anew: its rows are those of
the pruned model as it is by then, what it should give are the original's sums ("asymmetric": He et al. 2017,
arXiv:1707.06168; of patches: Frantar and Alistarh 2022, arXiv:2208.11580). Where something is added to the sums, the layer
also makes up for what is wrong with that; where an activation follows that clips, only what it lets through counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.errors import ModelError
from onnxprune.flow import Site
from onnxprune.labels import BoolArray
from onnxprune.leastsquares.linear import Linear, linear_layers
from onnxprune.leastsquares.ridge import ALPHAS, ROUNDS, RowSolver, Solver, error, gram
from onnxprune.leastsquares.tail import Tail, tail_of
from onnxprune.leastsquares.walk import Walk
from onnxprune.plan import PlanEdit, make_plan
from onnxprune.surgery import mask
from onnxprune.weights import Array

Feeds = Mapping[str, Array]

POSITIONS = 256
"""Positions of each sample that a layer is fitted on, at most."""

ROWS = 1 << 29
"""Bytes of rows that a layer is fitted on, at most."""

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
    """A layer to be fitted: which of its channels are left, and what it should give."""

    layer: Linear
    tail: Tail
    read: BoolArray
    made: BoolArray


@dataclass(eq=False)
class Refit:
    """Fits the layers of a model of which the components ``removed`` have left.

    ``feeds``: inputs, chunk by chunk. ``alphas``: penalties to choose from. ``notes``: what a user should know.
    """

    coupling: Coupling
    removed: BoolArray
    feeds: Sequence[Feeds]
    alphas: Sequence[float] = ALPHAS
    notes: list[str] = field(default_factory=list)

    def edits(self) -> list[PlanEdit]:
        """The changes of weights.

        Raises:
            ModelError: the model does not run on the inputs, or gives NaN or infinity.
        """
        graph = self.coupling.graph
        jobs = self._jobs()
        if not jobs:
            return []
        pruned = mask(graph, make_plan(self.coupling, self.removed)).complete()
        whole = Walk(graph.assemble().complete(), self.feeds, [job.tail.end for job in jobs])
        now = Walk(pruned, self.feeds, [name for job in jobs for name in (job.layer.operand, job.tail.other) if name])
        found: list[PlanEdit] = []
        scarce: list[str] = []
        for job in jobs:
            fitted = self._fit(job, whole, now, scarce)
            if fitted is not None:
                found.append(fitted)
        if scarce:
            self.notes.append(
                f"{sum(len(chunk[next(iter(chunk))]) for chunk in self.feeds)} samples are few for {len(scarce)} of {len(jobs)} "
                f"layers ({scarce[0]!r} first): these stay closer to their own weights; give more with --data"
            )
        return found

    def _jobs(self) -> list[Job]:
        """The layers that read something else than they used to, in order."""
        graph, flow = self.coupling.graph, self.coupling.flow
        layers = {layer.call.node.index: layer for layer in linear_layers(self.coupling)}
        changed = {site.tensor for site in flow.sites if not self.coupling.keeps(site, self.removed).all()}
        last: dict[str, int] = {}
        found: list[Job] = []
        for place, node in enumerate(graph.nodes):
            reads = [*node.inputs, *node.captured]
            behind = max((last.get(name, -1) for name in reads), default=-1)
            if not changed.isdisjoint(reads):
                changed.update(node.outputs)
            layer = layers.get(node.index)
            if layer is not None and layer.operand in changed and layer.operand not in graph.weights:
                job = self._job(layer, last, place)
                if job is not None:
                    found.append(job)
                    behind = place
            last |= dict.fromkeys(node.outputs, behind)
        return found

    def _job(self, layer: Linear, last: Mapping[str, int], place: int) -> Job | None:
        read, made = self._left(layer.reads, layer.inputs), self._left(layer.makes, layer.groups * layer.outputs)
        tail = tail_of(self.coupling, layer)
        if tail.other and not (tail.other in last and last[tail.other] < place):
            tail = tail.without_other(layer.target)
        return Job(layer, tail, read, made) if read.any() and made.any() else None

    def _left(self, site: Site, size: int) -> BoolArray:
        known = site in self.coupling.flow.sites
        return self.coupling.keeps(site, self.removed) if known else np.ones(size, np.bool_)

    def _fit(self, job: Job, whole: Walk, now: Walk, scarce: list[str]) -> PlanEdit | None:
        """Fit one layer, and let the pruned model go on with it."""
        layer, tail, graph = job.layer, job.tail, self.coupling.graph
        wanted, seen = whole.take(tail.end), now.take(layer.operand)
        beside = now.take(tail.other) if tail.other else None
        rows = _Rows(job, wanted, seen, beside)
        if not rows.finite:
            raise ModelError(
                f"layer {layer.call.node.label!r} gives NaN or infinity on the inputs; clean the data, or --freeze it"
            )
        values = graph.weights.read(layer.weight)
        matrix, bias = layer.matrix(values), np.array(layer.bias(graph))
        if rows.independent < ENOUGH * (int(job.read.sum()) * layer.taps + 1):
            scarce.append(layer.call.node.label)
        changed = False
        for group in range(layer.groups):
            made = np.flatnonzero(job.made.reshape(layer.groups, -1)[group])
            columns = np.flatnonzero(np.tile(job.read, layer.taps))
            if not len(made):
                continue
            prior = np.concatenate([matrix[group][np.ix_(columns, made)], bias[group][None, made]])
            fitted = rows.fitted(group, columns, made, prior, self.alphas, layer.slot is not None)
            if fitted is not None:
                matrix[group][np.ix_(columns, made)] = fitted[:-1]
                bias[group][made], changed = fitted[-1], True
        return self._written(job, values, matrix, bias, now) if changed else None

    def _written(self, job: Job, values: Array, matrix: Array, bias: Array, now: Walk) -> PlanEdit | None:
        """The edit that says so; None where the numbers are too large for the weight's type."""
        layer, graph = job.layer, self.coupling.graph
        with np.errstate(over="ignore"):
            new = layer.tensor(matrix, values.shape).astype(values.dtype)
            added = ((bias - layer.bias(graph)) / (1.0 if layer.slot is None else layer.slot[2])).ravel()
            total = bias.ravel().astype(values.dtype)
        if not (np.isfinite(new).all() and np.isfinite(total).all()):
            return None
        shown = new.copy()
        for site, left in ((layer.reads, job.read), (layer.makes, job.made)):
            np.moveaxis(shown, site.axis, 0)[~left] = 0
        now.store(layer.weight, shown)
        where: dict[str, Any] = {}
        if layer.slot is not None and np.abs(added).max(initial=0.0):
            node, index, scale = layer.slot
            now.read_own(node.outputs[0], index, (np.where(job.made, bias.ravel(), 0.0) / scale).astype(values.dtype))
            where = {"node": node.outputs[0], "input": index, "add": tuple(added.tolist())}
        return PlanEdit(layer.weight, layer.reads.axis, (), weights=new.astype("<f4").tobytes(), **where)


class _Rows:
    """What a layer reads and should give, at some positions of each sample."""

    def __init__(self, job: Job, wanted: Sequence[Array], seen: Sequence[Array], beside: Sequence[Array] | None) -> None:
        layer = job.layer
        self.tail, self.layer = job.tail, layer
        samples = sum(len(part) for part in wanted)
        room = ROWS / (4 * layer.groups * (layer.columns + 1)) if layer.columns < WIDEST else FEWEST
        most = min(POSITIONS, room / max(samples, 1))
        grids = [layer.grid(part.shape, most, turn) for turn, part in enumerate(wanted)]
        self.ends = [layer.sums(part, grid).astype(np.float32) for part, grid in zip(wanted, grids, strict=True)]
        self.others: list[Array] | None = None
        if beside is not None:
            self.others = [layer.sums(part, grid).astype(np.float32) for part, grid in zip(beside, grids, strict=True)]
        self.parts = [list(layer.rows(part, grid)) for part, grid in zip(seen, grids, strict=True)]
        self.held = [turn % HELD_OUT == HELD_OUT - 1 or (len(wanted) < HELD_OUT and turn == 1) for turn in range(len(wanted))]
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


Parts = Sequence[Array]
Solve = Callable[[Parts], Array]


def _by_columns(
    xs: Parts, ys: Parts, start: Array, alphas: Sequence[float], fit: Sequence[int], test: Sequence[int]
) -> Solve | None:
    """How to solve for any target, with the penalty that does best on the parts ``test``; None where the start does better."""
    a, alpha = _sums(xs, xs, fit), alphas[len(alphas) // 2]
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
    alpha = alphas[len(alphas) // 2]
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
