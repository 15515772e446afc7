"""Operators that pick or place elements by indices: the axes that are indexed stay whole, the others pass."""

from onnxprune.rules.notation import Call, Signature, parse
from onnxprune.rules.registry import add


def _letters(call: Call, index: int = 0) -> list[str]:
    return [f"a{i}" for i in range(call.rank(index))]


def _held(letters: list[str], axes: "range | list[int]") -> str:
    return " ".join(f"!{c}" if i in axes else c for i, c in enumerate(letters))


def _gather_nd(call: Call) -> Signature:
    """Batch axes are shared with the indices, the indexed ones stay, what follows them passes."""
    batch, data = int(call.attribute("batch_dims", 0)), _letters(call)
    indexed = range(batch, batch + call.shape(1)[-1])
    places = [f"i{k}" for k in range(batch, call.rank(1) - 1)]
    indices = " ".join([*data[:batch], *places, "_"])
    return parse(f"{_held(data, indexed)}, {indices} -> {' '.join([*data[:batch], *places, *data[indexed.stop :]])}")


def _gather_elements(call: Call) -> Signature | None:
    """The other axes pass if the indices cover them whole."""
    axis, data = call.axis(), _letters(call)
    if not _covers(call, 1, axis):
        return None
    picked = " ".join("i" if k == axis else c for k, c in enumerate(data))
    return parse(f"{_held(data, [axis])}, {picked} -> {picked}")


def _scatter_nd(call: Call) -> Signature | None:
    """The indexed axes stay, the others pass through data and updates alike."""
    if call.attribute("reduction", "none") != "none":
        return None
    data, depth = _letters(call), call.shape(1)[-1]
    places = [f"i{k}" for k in range(call.rank(1) - 1)]
    updates = " ".join([*places, *data[depth:]])
    return parse(f"{_held(data, range(depth))}, {' '.join([*places, '_'])}, {updates} -> {' '.join(data)}")


def _scatter_elements(call: Call) -> Signature | None:
    axis, data = call.axis(), _letters(call)
    if call.attribute("reduction", "none") != "none" or not _covers(call, 1, axis):
        return None
    placed = " ".join("i" if k == axis else c for k, c in enumerate(data))
    return parse(f"{_held(data, [axis])}, {placed}, {placed} -> {' '.join(data)}")


def _covers(call: Call, index: int, axis: int) -> bool:
    sizes = zip(call.shape(0), call.shape(index), strict=True)
    return all(a == b for k, (a, b) in enumerate(sizes) if k != axis)


def _reverse_sequence(call: Call) -> Signature:
    """Each sample's steps are turned round by its own length."""
    data = _letters(call)
    axes = [int(call.attribute("time_axis", 0)), int(call.attribute("batch_axis", 1))]
    return parse(f"{_held(data, axes)}, _ -> {' '.join(data)}")


add("GatherND", signature="b !k r, b i _ -> b i r", build=_gather_nd, times=(0,))
add("GatherElements", signature="* !c, * i -> * i", build=_gather_elements, times=(0,))
add("ScatterND", signature="!k r, i _, i r -> k r", build=_scatter_nd, plus=(0, 2))
add("ScatterElements", "Scatter", signature="* !c, * i, * i -> * c", build=_scatter_elements, plus=(0, 2))
add("ReverseSequence", signature="!s !b *, _ -> s b *", build=_reverse_sequence, times=(0,))
