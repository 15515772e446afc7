"""Compensation: what stays takes over from what leaves, by changes of the weights that read it.

A unit that leaves hands the weights that read it to its stand-in (Srinivas and Babu 2015, arXiv:1507.06149), times the factor by
which its own incoming weights are longer where the activation allows that (Kim et al. 2020, "Neuron Merging", arXiv:2010.13160).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from onnxprune.importance import Pairs, Scene, Units
from onnxprune.importance.obs import RIDGE_SYNTHETIC
from onnxprune.importance.probe import Probe
from onnxprune.importance.spread import refit
from onnxprune.labels import BoolArray, IntArray
from onnxprune.leastsquares import ALPHAS, Refit
from onnxprune.plan import PlanEdit
from onnxprune.weights import Array

LIVE = 1 << 32
"""Bytes of activations that are kept while layers are fitted, in memory or on disk: three times the largest of all samples."""

SAMPLES = 4096
"""Samples that layers are fitted on, at most."""

MODES = ("auto", "none", "merge", "least-squares")


def merged(scene: Scene, number: int, pairs: Pairs) -> list[PlanEdit]:
    """The changes by which a unit that stays takes over from each that leaves; the most similar, if ``pairs`` name none."""
    units = scene.units(number)
    if units is None or not len(pairs.leaves):
        return []
    if (pairs.stays < 0).all():
        pairs = Pairs(pairs.leaves, stand_ins(units, pairs.leaves))
    roots = scene.group(number).roots
    scales = factors(units, pairs) if pairs.scales is None else pairs.scales
    return scene.handover.edits(number, roots[pairs.leaves], roots[pairs.stays], scales) or []


def fitted(whole: Scene, removed: BoolArray) -> list[PlanEdit]:
    """The weights of all layers that read something else once the components ``removed`` have left, fitted in order.

    To what the original's layers compute, on the user's inputs or on synthetic ones; only where that brings the outputs of
    inputs that were held out nearer to the original's than the cut alone does.

    Raises:
        ModelError: the model gives NaN or infinity on them.
    """
    alphas = [alpha for alpha in ALPHAS if whole.data is not None or alpha >= RIDGE_SYNTHETIC]
    refit = Refit(whole.coupling, removed, alphas)
    most = room(whole, refit.seen)
    if whole.data is not None and most < whole.data.samples:
        whole.tell(f"layers are fitted on {most} of {whole.data.samples} samples, which is what memory allows")
    edits = refit.edits(whole.chunks(most))
    for note in refit.notes:
        whole.tell(note)
    probe, leaves = Probe(whole, 2), np.flatnonzero(removed)
    plain, better = probe.of(leaves, ()), probe.of(leaves, edits)
    if edits and not better < plain:
        whole.tell(
            f"least squares is left out: with it the outputs are {better:.3g} of their variance away from the original's, "
            f"without it {plain:.3g}"
        )
        return []
    return edits


def room(scene: Scene, seen: Collection[str]) -> int:
    """How many samples are held in memory at the same time, in the original and in the pruned model, by the largest tensor."""
    largest = max((1.0, *map(scene.coupling.shapes.numbers, seen)))
    return int(np.clip(LIVE // (12 * largest), 8, SAMPLES))


def refitted(scene: Scene, whole: Scene, number: int) -> list[PlanEdit]:
    """The changes by which all units of a group that stay make up for those that have left, and for what has changed before.

    They are of the model's own weights, whatever had been changed in them for this group. Fitted on synthetic inputs to what
    the whole model makes of these.
    """
    readers = whole.readers(number)
    slots = [whole.slot(site) for site in readers]
    if None in slots:  # borders that are padded see less of a constant, and synthetic inputs tell little of them
        return []
    seen, wanted = scene.activations(number), whole.activations(number)
    if seen is None or wanted is None or len(seen) != len(wanted):
        return []
    every, roots = whole.group(number).roots, scene.group(number).roots
    stays = np.flatnonzero(np.isin(every, roots))
    columns, shares, rest = refit(seen, wanted, stays, _guess(whole, number, stays))
    edits = whole.handover.edits(number, every[columns], every[stays], shares) or []
    for place, (site, slot) in enumerate(zip(readers, slots, strict=True)):
        add = None if slot is None or not edits else whole.made_of(number, site, rest)
        if slot is not None and add is not None:
            edits[place] = replace(edits[place], node=slot[0].outputs[0], input=slot[1], add=tuple((add / slot[2]).tolist()))
    return edits


def _guess(whole: Scene, number: int, stays: IntArray) -> Array:
    """What stands in for each unit that has left by its weights alone: as much of the most similar one as is alike."""
    leaves = np.setdiff1d(np.arange(whole.group(number).size), stays)
    found = np.zeros((len(stays), len(leaves)), np.float32)
    units = whole.units(number)
    if units is not None and units.scales and len(leaves):
        vectors = np.concatenate([units.incoming, units.bias[:, None]], axis=1)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1), 1e-30)
        alike = vectors[stays] @ vectors[leaves].T / np.outer(lengths[stays], lengths[leaves])
        best, each = alike.argmax(axis=0), np.arange(len(leaves))
        found[best, each] = np.maximum(alike[best, each], 0) * lengths[leaves] / lengths[stays[best]]
    return found


def stand_ins(units: Units, leaves: IntArray) -> IntArray:
    """For each unit that leaves, the one that stays whose incoming weights are most like its own.

    Where activations scale with their input, the one whose weights point most nearly the same way; else the nearest.
    """
    whole = np.concatenate([units.incoming, units.bias[:, None]], axis=1)
    lengths = np.linalg.norm(whole, axis=1)
    alike = whole[leaves] @ whole.T
    alike = alike / np.maximum(lengths, 1e-30) if units.scales else 2 * alike - np.square(lengths)
    alike[:, leaves] = -np.inf
    return np.asarray(alike.argmax(axis=1), np.int64)


def factors(units: Units, pairs: Pairs) -> Array:
    """How many times longer each unit's incoming weights are than its stand-in's; 1 where activations do not scale."""
    if not units.scales:
        return np.ones(len(pairs.leaves))
    lengths = np.linalg.norm(np.concatenate([units.incoming, units.bias[:, None]], axis=1), axis=1)
    return np.asarray(lengths[pairs.leaves] / np.maximum(lengths[pairs.stays], 1e-30), np.float64)
