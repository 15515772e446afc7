"""Compensation: what stays takes over from what leaves, by changes of the weights that read it.

A unit that leaves hands the weights that read it to its stand-in (Srinivas and Babu 2015, arXiv:1507.06149), times the factor by
which its own incoming weights are longer where the activation allows that (Kim et al. 2020, "Neuron Merging", arXiv:2010.13160).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxprune.importance import Pairs, Scene, Units
from onnxprune.importance.spread import Spread
from onnxprune.labels import IntArray
from onnxprune.plan import PlanEdit
from onnxprune.weights import Array

PP = 2
MODES = ("auto", "none", "merge", "least-squares")


def compensate(scene: Scene, number: int, pairs: Pairs, mode: str) -> list[PlanEdit]:
    """The changes by which those that stay take over from those of a group that leave; none where nothing can."""
    if mode == "none":
        return []
    if mode == "least-squares" or (mode == "auto" and (pairs.stays < 0).all()):
        return spread(scene, number, pairs.leaves)
    units = scene.units(number)
    if units is None or not len(pairs.leaves):
        return []
    if (pairs.stays < 0).all():
        pairs = Pairs(pairs.leaves, stand_ins(units, pairs.leaves))
    pairs = pairs.only(np.flatnonzero(pairs.stays >= 0))
    roots = scene.group(number).roots
    return scene.handover.edits(number, roots[pairs.leaves], roots[pairs.stays], factors(units, pairs)) or []


def spread(scene: Scene, number: int, leaves: IntArray) -> list[PlanEdit]:
    """The changes by which all that stay take over from units that leave, as well as they can on synthetic inputs."""
    values = scene.activations(number)
    if values is None or not len(leaves):
        return []
    roots, readers = scene.group(number).roots, scene.readers(number)
    slots = [scene.slot(site) for site in readers]
    units = scene.units(number)
    prior = None
    if units is not None and units.scales:
        w = np.concatenate([units.incoming, units.bias[:, None]], axis=1).astype(np.float64)
        n = np.linalg.norm(w, axis=1)
        c = w @ w[leaves].T / np.maximum(np.outer(n, n[leaves]), 1e-30)
        c[leaves] = -1
        best = c.argmax(axis=0)
        prior = np.zeros_like(c)
        k = np.arange(len(leaves))
        prior[best, k] = np.maximum(c[best, k], 0) ** PP * n[leaves] / n[best]
    stays, shares, rest = Spread.of(values, centred=None not in slots).shares(leaves, prior)
    heirs, givers = np.repeat(roots[stays], len(leaves)), np.tile(roots[leaves], len(stays))
    edits = scene.handover.edits(number, givers, heirs, shares.ravel()) or []
    for place, (site, slot) in enumerate(zip(readers, slots, strict=True)):
        add = None if slot is None or not edits else scene.made_of(number, site, leaves, rest)
        if slot is not None and add is not None:
            edits[place] = replace(edits[place], node=slot[0].outputs[0], input=slot[1], add=tuple((add / slot[2]).tolist()))
    return edits


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
