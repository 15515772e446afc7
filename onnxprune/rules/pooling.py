"""Pooling and resampling: each channel for itself."""

from onnxprune.rules.notation import Call, Signature, parse
from onnxprune.rules.registry import Kept, Kind, Resize, add, always
from onnxprune.shapes import Shape


def _pool(call: Call) -> Signature | None:
    """MaxPool's second result counts positions over all channels, so it is covered only where nothing asks for it."""
    return None if len(call.node.outputs) > 1 and call.node.outputs[1] else parse("n c * -> n c *")


def _global_pool(call: Call) -> Signature:
    """All positions become one."""
    positions = " ".join(f"!x{i}" for i in range(call.rank() - 2))
    return parse(f"n c {positions} -> n c{' 1' * (call.rank() - 2)}")


def _averages_itself(call: Call) -> bool:
    """Whether no padded zeros are counted in."""
    padded = any(call.attribute("pads", ())) or str(call.attribute("auto_pad", "")).startswith("SAME")
    return not (padded and call.attribute("count_include_pad", 0))


def _stays_inside(call: Call) -> bool:
    """Whether nothing from outside the image is sampled."""
    return bool(call.attribute("coordinate_transformation_mode") != "tf_crop_and_resize")


def _resize(call: Call) -> Signature | None:
    """Axes that keep their size, at scale 1 and uncropped, pass; the others are resampled."""
    before, after = call.shape(0), call.outputs[0]
    modern = call.node.op == "Resize" and call.version >= 11
    scales = call.attribute("scales") if call.attribute("scales") else call.value(2 if modern else 1)
    sizes = call.value(3) if modern else None
    known = [v for v in (scales, sizes) if v is not None and len(v)]
    if after is None or len(before) != len(after) or not known:
        return None
    same = [old == new for old, new in zip(before, after, strict=True)]
    crops = call.attribute("coordinate_transformation_mode") == "tf_crop_and_resize"
    region = call.value(1) if crops else None
    for place, axis in enumerate(call.attribute("axes") or range(call.rank())):
        scaled = known[0] is scales and scales[place] != 1
        cropped = crops and (region is None or region[place] != 0 or region[len(region) // 2 + place] != 1)
        same[axis] = same[axis] and not scaled and not cropped
    letters = [f"a{i}" if stays else "_" for i, stays in enumerate(same)]
    return parse(f"{' '.join(letters)} -> {' '.join(letters)}")


def _new_sizes(call: Call, inputs: tuple[Shape | None, ...], outputs: tuple[Shape | None, ...], kept: Kept) -> Resize:
    sizes = call.value(3)
    if sizes is None or sizes.size == 0 or outputs[0] is None:
        return Resize({}, {})
    axes = call.attribute("axes") or range(call.rank())
    wanted = sizes.copy()
    for place, axis in enumerate(axes):
        wanted[place] = outputs[0][axis]
    return Resize({3: wanted}, {})


add(
    "MaxPool",
    signature="n c * -> n c *",
    build=_pool,
    times=(0,),
    keeps=True,
    steady=always,
    rises=True,
    note="without the indices",
)
add("AveragePool", signature="n c * -> n c *", times=(0,), steady=_averages_itself, rises=True)
add("LpPool", "GlobalLpPool", signature="n c * -> n c *", times=(0,))
for op, keeps in (("GlobalAveragePool", False), ("GlobalMaxPool", True)):
    signature = "n c !* -> n c *"
    add(op, kind=Kind.MIXING, signature=signature, build=_global_pool, times=(0,), keeps=keeps, steady=always, rises=True)
add("Resize", signature="n c * -> n c *", build=_resize, times=(0,), resize=_new_sizes, steady=_stays_inside)
add("Upsample", signature="n c * -> n c *", build=_resize, times=(0,), steady=always)
add("GridSample", signature="n c *, n * -> n c *", times=(0,))
add("RoiAlign", signature="!n c *, r *, r -> r c *", times=(0,))
