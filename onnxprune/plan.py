"""Plan: which indices stay at every cut weight axis. Pure data: print it, save it, replay it, mask it."""

from __future__ import annotations

import json
from array import array
from base64 import b64decode, b64encode
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.channels import Coupling, stored_site
from onnxprune.errors import PlanError
from onnxprune.files import JsonFile
from onnxprune.flow import Site
from onnxprune.labels import BoolArray, Fill

SCHEMA = "onnxprune.plan/1"


@dataclass(frozen=True, slots=True)
class PlanSite:
    """The indices of one weight axis that stay, sorted; ``of`` is the axis' original size.

    ``fill``: what masking writes, where that is not 0 (a quantised weight's zero point).
    """

    tensor: str
    axis: int
    of: int
    keep: tuple[int, ...]
    fill: Fill = field(default_factory=Fill)

    def to_dict(self) -> dict[str, Any]:
        """As in the plan: ``fill`` is a number, or a list of one number for each index of the axis ``fill_axis``."""
        found: dict[str, Any] = {"tensor": self.tensor, "axis": self.axis, "of": self.of, "keep": list(self.keep)}
        if len(self.fill.values) > 1:
            found |= {"fill": list(self.fill.values), "fill_axis": self.fill.axis}
        elif self.fill.values[0]:
            found["fill"] = self.fill.values[0]
        return found


@dataclass(frozen=True, slots=True)
class PlanCopy:
    """The same for one reader of a vector whose readers keep different indices: it gets a copy of its own.

    Masking leaves such a vector alone; what it adds to removed channels, their consumers do not see.
    """

    tensor: str
    axis: int
    of: int
    keep: tuple[int, ...]
    node: str
    input: int


@dataclass(frozen=True, slots=True)
class PlanEdit:
    """Weights that are changed before anything is cut, so that what leaves is not missed.

    The ``channels`` of an axis of a stored tensor become zero, unless they are also among those ``into`` which others give
    their work: the weights of the k-th of ``channels`` are added to those of the k-th of ``into``, times the k-th of
    ``scales``, or unchanged where that is empty. If ``places`` is not 0, all give to all: ``scales`` has a row for each of
    ``into`` and a column for each of ``channels``, one row after the other; ``places`` indices in a row are one channel, and
    the n-th of them gives to the n-th. A constant that is left over is ``add``: a vector that is added to input ``input`` of
    the node that writes the tensor ``node``; an input that it lacks is added to zero.

    ``weights``: all numbers of the tensor, little-endian float32 (in JSON base64), that take the place of its own. If ``reader``
    is not empty, only for input ``place`` of the node that writes the tensor ``reader``, which gets a tensor of its own.
    ``exact``: with the other edits that are, they leave the model's outputs as they are (channels are turned).
    """

    tensor: str
    axis: int
    channels: tuple[int, ...]
    into: tuple[int, ...] = ()
    node: str = ""
    input: int = 0
    add: tuple[float, ...] = ()
    scales: array[float] = field(default_factory=lambda: array("f"))
    places: int = 0
    weights: bytes = b""
    reader: str = ""
    place: int = 0
    exact: bool = False

    @property
    def approximate(self) -> bool:
        """Whether it makes up for what leaves, rather than changing nothing."""
        return bool(self.scales or self.weights) and not self.exact

    @property
    def is_consistent(self) -> bool:
        """Whether the lists' lengths fit each other."""
        if self.places:
            return len(self.scales) * self.places**2 == len(self.channels) * len(self.into) > 0
        return len(self.into) in (0, len(self.channels)) and len(self.scales) in (0, len(self.into))


@dataclass(frozen=True, slots=True)
class Plan(JsonFile):
    """All cut weight axes of a model, which is known by the SHA-256 of its file; ``edits`` come first."""

    WHAT = "plan"

    model_sha256: str
    sites: tuple[PlanSite, ...]
    copies: tuple[PlanCopy, ...] = ()
    edits: tuple[PlanEdit, ...] = ()

    @property
    def cuts(self) -> bool:
        """Whether anything leaves."""
        return bool(self.sites or self.copies)

    def without(self, tensors: Collection[str]) -> Plan:
        """The plan without the axes of some tensors (which the model gets from an edit, and are cut along with others)."""
        return replace(self, sites=tuple(site for site in self.sites if site.tensor not in tensors))

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON data (schema ``onnxprune.plan/1``)."""
        sites = [s.to_dict() for s in self.sites]
        copies = [asdict(c) | {"keep": list(c.keep)} for c in self.copies]
        lists = ("channels", "into", "add", "scales")
        edits = [{f.name: getattr(e, f.name) for f in fields(e)} | {n: list(getattr(e, n)) for n in lists} for e in self.edits]
        for edit in edits:
            edit["weights"] = b64encode(edit["weights"]).decode("ascii")
        found = {"schema": SCHEMA, "model_sha256": self.model_sha256, "sites": sites, "copies": copies}
        return found | ({"edits": edits} if edits else {})

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan.

        Raises:
            PlanError: the file can't be read, or is not a plan.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"plan {str(path)!r} can't be read: {error.strerror}; check the path") from error
        except ValueError as error:
            raise PlanError(f"plan {str(path)!r} is not JSON: {error}; save it again with --save-plan") from error
        try:
            if data["schema"] != SCHEMA:
                raise PlanError(f"plan {str(path)!r} has schema {data['schema']!r}, this version reads {SCHEMA!r}")
            sites = tuple(
                PlanSite(str(s["tensor"]), int(s["axis"]), int(s["of"]), tuple(int(k) for k in s["keep"]), _fill(s))
                for s in data["sites"]
            )
            copies = tuple(
                PlanCopy(
                    str(c["tensor"]), int(c["axis"]), int(c["of"]), tuple(map(int, c["keep"])), str(c["node"]), int(c["input"])
                )
                for c in data.get("copies", ())
            )
            edits = tuple(
                PlanEdit(
                    str(e["tensor"]),
                    int(e["axis"]),
                    tuple(map(int, e["channels"])),
                    tuple(map(int, e["into"])),
                    str(e["node"]),
                    int(e["input"]),
                    tuple(map(float, e["add"])),
                    array("f", e.get("scales", ())),
                    int(e.get("places", 0)),
                    b64decode(e.get("weights", ""), validate=True),
                    str(e.get("reader", "")),
                    int(e.get("place", 0)),
                    bool(e.get("exact", False)),
                )
                for e in data.get("edits", ())
            )
            return cls(str(data["model_sha256"]), sites, copies, edits)
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"plan {str(path)!r} lacks or misspells {error}; save it again with --save-plan") from error


def _fill(site: Any) -> Fill:
    value = site.get("fill", 0)
    return Fill(tuple(int(v) for v in (value if isinstance(value, list) else [value])), int(site.get("fill_axis", 0)))


def make_plan(coupling: Coupling, removed: BoolArray) -> Plan:
    """Write down the removal of label components as a plan."""
    readers: dict[Site, list[Site]] = {}
    fills: dict[Site, Fill] = {}
    for site in coupling.flow.sites:
        stored = stored_site(coupling.graph, site)
        readers.setdefault(stored, []).append(site)
        if site.tensor in coupling.flow.fills:
            fills[stored] = coupling.flow.fills[site.tensor]
    sites, copies = [], []
    for stored, names in readers.items():
        keeps = [coupling.keeps(name, removed) for name in names]
        of, kept = len(keeps[0]), [tuple(np.flatnonzero(k).tolist()) for k in keeps]
        if len(set(kept)) == 1:
            if len(kept[0]) < of:
                sites.append(PlanSite(stored.tensor, stored.axis, of, kept[0], fills.get(stored, Fill())))
            continue
        for name, keep in zip(names, kept, strict=True):
            use = coupling.graph.uses.get(name.tensor)
            if use is not None:
                copies.append(PlanCopy(stored.tensor, stored.axis, of, keep, use.node, use.input))
    return Plan(coupling.graph.sha256, tuple(sites), tuple(copies))


def removed_by(coupling: Coupling, plan: Plan) -> BoolArray:
    """The label components that a plan removes: the way back from :func:`make_plan`.

    Raises:
        PlanError: the plan names what the model does not have, cuts what can't be cut, or splits coupled channels.
    """
    removed = np.zeros(len(coupling.components.root), np.bool_)
    readers = {stored_site(coupling.graph, site): site for site in coupling.flow.sites}
    for cut in plan.sites:
        site = readers.get(Site(cut.tensor, cut.axis), Site(cut.tensor, cut.axis))
        where = f"plan: axis {cut.axis} of {cut.tensor!r}"
        if site not in coupling.flow.sites:
            raise PlanError(f"{where} does not exist in this model; the plan was made for another one")
        labels = coupling.labels(site)
        if cut.of != len(labels):
            raise PlanError(f"{where} has {len(labels)} channels here, the plan says {cut.of}; it was made for another model")
        if not cut.keep or not all(0 <= k < cut.of for k in cut.keep):
            raise PlanError(f"{where}: the kept indices must be 1 to {cut.of} numbers from 0 to {cut.of - 1}")
        drop = np.setdiff1d(np.arange(cut.of), cut.keep)
        blocked = drop[coupling.components.held[labels[drop]] > 0]
        if blocked.size:
            reason = coupling.components.reason(int(labels[blocked[0]]))
            raise PlanError(f"{where}: channel {int(blocked[0])} can't be cut: {reason.text} (node {reason.node!r})")
        removed[coupling.components.root[labels[drop]]] = True
    listed = {Site(s.tensor, s.axis): s.keep for s in plan.sites}
    for again in make_plan(coupling, removed).without(coupling.graph.added).sites:
        if listed.get(Site(again.tensor, again.axis)) != again.keep:
            raise PlanError(
                f"plan: axis {again.axis} of {again.tensor!r} must keep {len(again.keep)} of {again.of} channels, because "
                "other cuts in the plan take the rest along; cut coupled channels together"
            )
    for group in coupling.groups:
        if removed[group.roots].all():
            raise PlanError(
                f"plan: nothing would be left of group {group.name!r}; keep at least one of its {group.size} channels"
            )
    return removed
