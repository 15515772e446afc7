"""Progressive pruning: one step after the other, each cut, proved and measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from onnxprune import lossless
from onnxprune.channels import Coupling, analyse
from onnxprune.clock import Clock
from onnxprune.data import Dataset
from onnxprune.errors import OptionError
from onnxprune.evaluate import Speed
from onnxprune.graph import Graph
from onnxprune.labels import Reason
from onnxprune.lazy import LazyModel
from onnxprune.plan import Plan, removed_by
from onnxprune.proof import Proof, Proved, both
from onnxprune.sampler import Sampler
from onnxprune.shapes import origin
from onnxprune.standing import Standing
from onnxprune.surgery import RepairError, apply, mask
from onnxprune.target import Met, Target


@dataclass(frozen=True, eq=False)
class Stage:
    """A model cut and proved, after so many steps; ``standing`` says how it came about, ``free`` what left at no cost.

    ``met``: how it meets its target, where it has one. ``speed``: how fast it is, where that decided.
    """

    number: int
    share: float
    standing: Standing
    proved: Proved
    free: lossless.Free | None = None
    met: Met | None = None
    speed: Speed | None = None


def shares(ratio: float, step: float | None) -> list[float]:
    """The share of the channels that is gone after each step: multiples of ``step`` up to ``ratio``, or ``ratio`` at once.

    Raises:
        OptionError: the step is not a fraction.
    """
    if step is None:
        return [ratio]
    if not 0 < step < 1:
        raise OptionError(f"step is {step}; it is the fraction of the channels that each step removes, 0 < step < 1")
    count = max(1, int(np.ceil(ratio / step - 1e-9)))
    return [min(ratio, round(k * step, 9)) for k in range(1, count + 1)]


@dataclass
class Run:
    """Prunes a graph in steps.

    ``plan``: replay this instead of choosing channels. ``free``: first remove what can go at no cost. ``zero``: what comes out
    is the masked model, once it is proved that the cut one equals it. ``scratch``: folder for the temporary files of large
    models.
    """

    graph: Graph
    sampler: Sampler
    freeze: tuple[str, ...] = ()
    mixing: bool = False
    free: bool = False
    zero: bool = False
    plan: Plan | None = None
    data: Dataset | None = None
    seed: int = 0
    scratch: Path | None = None
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self._hold: dict[str, Reason] = {}

    def stages(self, wanted: Sequence[float | Target], done: tuple[int, Plan] | None = None) -> Iterator[Stage]:
        """The model after each step.

        What turns out to be beyond repair is frozen, with the reason, and everything is begun anew: a stage may come again.

        Args:
            wanted: the share of the channels that is gone after each step; or targets, each of which begins with the original.
            done: how many steps have been done before, and the plan of the last; those behind it follow.

        Raises:
            VerificationError: the outputs differ.
            PlanError: a plan does not fit the model.
            TargetError: a target can't be met.
        """
        while True:
            start, free = self._start()
            met, standing = None, start
            first, standing = (0, standing) if done is None else (done[0], self._planned(done[1], standing))
            try:
                for number, share in enumerate(wanted[first:], first + 1):
                    if self.plan is None:
                        with self.clock("score"):
                            if isinstance(share, Target):
                                standing, met = self.sampler.reach(start, share, self.graph, self.data)
                            else:
                                standing = self.sampler.step(standing, share, self.data)
                    with self.clock("surgery"):
                        pruned = standing.cut()
                    part = standing.share if isinstance(share, Target) else share
                    yield Stage(number, part, standing, self._prove(standing, pruned, free), free, met, self.sampler.speed)
                return
            except RepairError as error:
                done = None
                self.give_way(error, standing.coupling)

    def replayed(self, number: int, share: float, plan: Plan) -> Stage:
        """The model after a step that has been done before."""
        _, free = self._start()
        standing = self._planned(plan)
        pruned = standing.cut()
        return Stage(number, share, standing, self._prove(standing, pruned, free), free)

    def analyse(self, graph: Graph) -> Coupling:
        """The coupled channels of a graph, as far as they may be cut here."""
        with self.clock("analyse"):
            return analyse(graph, freeze=self.freeze, hold=self._hold, mixing=self.mixing)

    def _start(self) -> tuple[Standing, lossless.Free | None]:
        """The model as it is before anything is chosen."""
        if self.plan is not None:
            return self._planned(self.plan), None
        if not self.free:
            return self.sampler.start(self.graph, self.analyse, self.data), None
        with self.clock("free"):
            free = lossless.find(self.graph, self.analyse, self.sampler.limits.keeps)
        start = Standing.of(free.coupling, self.analyse, free.removed, free.edits)
        return self.sampler.prepared(start, self.data), free

    def _planned(self, plan: Plan, start: Standing | None = None) -> Standing:
        """The model after all that a plan does, and before where ``start`` tells."""
        coupling = self.analyse(lossless.edited(self.graph, plan.edits))
        planned = Standing.of(coupling, self.analyse, removed_by(coupling, plan), plan.edits)
        return planned if start is None else replace(planned, base=start.base, gone=start.gone)

    def _prove(self, standing: Standing, pruned: LazyModel, free: lossless.Free | None) -> Proved:
        """The cut alone, and with what stays taking over from what leaves."""
        if not standing.plan.cuts:
            pruned = self.graph.assemble()
        proved = self._proved(standing, pruned, free)
        if not self.zero:
            return proved
        proved.close()
        graph = standing.coupling.graph
        return replace(proved, model=mask(graph, standing.plan), graph=graph, scratch=None)

    def _proved(self, standing: Standing, pruned: LazyModel, free: lossless.Free | None) -> Proved:
        """The cut model."""
        with self.clock("verify"):
            proof = Proof(self.graph, standing.coupling, self.seed, self.scratch)
            if not standing.merged.any():
                return proof.prove(standing.removed, pruned, free=None if free is None else free.removed)
            before = self.analyse(lossless.edited(self.graph, [e for e in standing.edits if not e.approximate]))
            plain, removed = replace(proof, coupling=before), standing.removed_of(before)
            cut = plain.prove(removed, apply(before, removed), free=None if free is None else free.removed)
            cut.close()
            merged = proof.prove(standing.removed, pruned)
            return replace(merged, verification=both(cut.verification, merged.verification))

    def give_way(self, error: RepairError, coupling: Coupling) -> None:
        """Hold what leads to a node that can't be corrected."""
        node = error.node
        measured = origin(self.graph, coupling.shapes, node.inputs).measured
        names = [n for n in (*node.inputs, *node.outputs, *measured) if n and n not in self._hold]
        if not names:
            raise error
        self._hold |= {name: Reason(node.label, error.why) for name in names}
