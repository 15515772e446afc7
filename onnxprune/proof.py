"""The proof of a cut: the pruned model equals the masked original, and what was free changed nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxprune.channels import Coupling
from onnxprune.errors import VerificationError
from onnxprune.evaluate import Verification, check_runs, verify
from onnxprune.files import Scratch, save
from onnxprune.graph import Graph, load
from onnxprune.labels import BoolArray
from onnxprune.lazy import AnyModel, LazyModel
from onnxprune.plan import make_plan
from onnxprune.runtime import Session
from onnxprune.surgery import apply, mask

PRUNED, _MASKED = "pruned.onnx", "masked.data"
"""What a large pruned model and the weights of the masked original are called in the scratch folder."""

_NOTHING = Verification(True, 0.0, 0.0, 0)


@dataclass(frozen=True)
class Proved:
    """A pruned model, itself as a graph, and what proves it; ``scratch`` has its files where it is large."""

    model: AnyModel
    graph: Graph
    verification: Verification
    scratch: Scratch | None = None

    def close(self) -> None:
        """Remove the files."""
        if self.scratch is not None:
            self.scratch.close()


@dataclass(frozen=True)
class Proof:
    """Proves cuts of ``original``. ``coupling`` is that of the graph that is cut, after edits that change nothing.

    Large models are written to ``folder`` first, and read back from there.
    """

    original: Graph
    coupling: Coupling
    seed: int
    folder: Path | None

    def prove(self, removed: BoolArray, pruned: LazyModel, *, free: BoolArray | None = None) -> Proved:
        """Prove a cut, of which ``free`` components left at no cost.

        Where some cuts are not exact, a model without these is proved instead, and the pruned one is only run.

        Raises:
            VerificationError: the outputs differ.
        """
        plan = make_plan(self.coupling, removed)
        if not plan.cuts:
            model = pruned.ready()
            Session(model, optimise=False)  # what onnxruntime can't load is refused also where nothing is cut
            return Proved(model, self.original if pruned.large else load(pruned.complete()), _NOTHING)
        mixed = removed & self.coupling.components.mixed
        if mixed.any():
            proof = self.prove(removed & ~mixed, apply(self.coupling, removed & ~mixed))
            proof.close()
            final = self._finished(pruned, 0)
            with _closing(final):
                check_runs(self.original, self.coupling.shapes, final.model, seed=self.seed)
            return replace(final, verification=proof.verification)
        if free is None or not free.any():
            return self._compared(mask(self.coupling.graph, plan), pruned, "masked original")
        if np.array_equal(free, removed):
            return self._compared(self.original.assemble(), pruned, "original")
        first = self._compared(self.original.assemble(), apply(self.coupling, free), "original")
        first.close()
        second = self._compared(mask(self.coupling.graph, plan), pruned, "masked original")
        return replace(second, verification=both(first.verification, second.verification))

    def _compared(self, reference: LazyModel, candidate: LazyModel, name: str) -> Proved:
        final = self._finished(candidate, reference.loose_bytes if reference.large else None)
        with _closing(final):
            if final.scratch is None:
                return replace(final, verification=self._verify(reference.ready(), final.model, name))
            verification = self._verify(final.scratch.hold(reference, _MASKED), final.model, name)
            (final.scratch.folder / _MASKED).unlink(missing_ok=True)
            return replace(final, verification=verification)

    def _finished(self, pruned: LazyModel, room: int | None) -> Proved:
        """The pruned model in memory, or where ``room`` for more bytes is asked, or it is large, in files."""
        if room is None or (not room and not pruned.large):
            model = pruned.complete()
            return Proved(model, load(model), _NOTHING)
        scratch = Scratch(self.folder, room + pruned.nbytes)
        try:
            save(pruned, scratch.folder / PRUNED, external=True)
            graph = load(scratch.folder / PRUNED)
            return Proved(graph.assemble(), graph, _NOTHING, scratch)
        except BaseException:
            scratch.close()
            raise

    def _verify(self, reference: AnyModel, candidate: AnyModel, name: str) -> Verification:
        verification = verify(self.original, self.coupling.shapes, reference, candidate, seed=self.seed)
        if not verification.passed:
            raise VerificationError(
                f"the pruned model differs from the {name} by {verification.max_rel_error:.1e} of the output's scale; "
                "nothing was written. This is a defect of onnxprune: please report the model, or freeze the part it is in"
            )
        return verification


def both(a: Verification, b: Verification) -> Verification:
    """What two comparisons found, together."""
    return Verification(
        a.passed and b.passed, max(a.max_abs_error, b.max_abs_error), max(a.max_rel_error, b.max_rel_error), a.inputs + b.inputs
    )


@contextmanager
def _closing(proved: Proved) -> Iterator[None]:
    """Remove the files if something goes wrong."""
    try:
        yield
    except BaseException:
        proved.close()
        raise
