"""Write tiny graphs beside this file as deployment tools leave them: quantised, in half precision, with fused operators.

    python tests/exported/make_variants.py [NAME ...]

Needs what ``make_attention.py`` needs and ``onnxconverter-common``, and the graphs of the other scripts, from which these
are made. Each file is run in onnxruntime; where it should compute what its source does, the outputs are compared. The
changes are those of ``benchmarks/export_variants.py``.
"""

# ruff: noqa: I001 - make_attention makes the benchmarks importable

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import torch

from make import FOLDER, SEED, randomise, strip_comments
from make_attention import GRAPHS, LIMIT, shorten_names
from export_transformers import BATCH, LENGTH, Call, export
from export_variants import (
    EXACT,
    HALF,
    Sizes,
    blocks,
    check,
    contributed,
    dynamic,
    float16,
    fused,
    generator,
    offline,
    standard,
    static,
)

SMALL = Sizes(width=16, hidden=20, vocabulary=20, queries=4, keys=2, head=8, values=6, layers=1, positions=16)
Change = Callable[[Path, Path], None]
CHANGED: dict[str, dict[str, tuple[Change, float | None]]] = {
    "residual.ts": {
        "qdq": (partial(static, kind="U8_S8", per_channel=True), None),
        "qoperator": (partial(static, kind="U8_S8", form="QOperator"), None),
        "fp16": (partial(float16, keep_io_types=False), HALF),
        "ort_extended": (partial(offline, level="extended"), EXACT),
    },
    "transformer_encoder.dynamo": {
        "qdq": (partial(static, kind="U8_S8"), None),
        "dynamic": (partial(dynamic, clear=True), None),
        "q4": (partial(blocks, size=16), None),
    },
    "mlp.ts": {"qdq_weight_pairs": (partial(static, kind="S8_S8", AddQDQPairToWeight=True), None)},
    "lstm.ts": {"dynamic": (dynamic, None)},
    "bert.ts": {"ort_extended": (partial(offline, level="extended"), EXACT)},
}
"""Of a graph that lies here: the name of a variant, how to make it and how far its outputs may differ."""


def eager_bert(path: Path) -> None:
    """BERT with attention as two products and a softmax, which onnxruntime's optimiser makes one operator of."""
    case = GRAPHS["bert"][0]
    torch.manual_seed(SEED)
    model = case.build(attn_implementation="eager").eval()
    randomise(model)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "bert.onnx"
        export(Call(model, tuple(case.inputs(BATCH, LENGTH)), case.outputs).eval(), case, "ts", source)
        fused(source, path, "bert")
        check(path, source, EXACT)


MADE: dict[str, Callable[[Path], None]] = {
    "bert.ts.fused": eager_bert,
    "decoder.standard23": partial(standard, past=True, sizes=SMALL),
    "decoder.microsoft": partial(generator, packed=True, sizes=SMALL._replace(head=16)),
    "attention.microsoft": partial(contributed, operator="Attention_sizes", sizes=SMALL),
}


def main(names: list[str]) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    jobs = [(name, write, None, None) for name, write in MADE.items()]
    for name, variants in CHANGED.items():
        source = FOLDER / f"{name}.onnx"
        jobs += [(f"{name}.{key}", partial(change, source), source, limit) for key, (change, limit) in variants.items()]
    for name, write, source, tolerance in jobs:
        if not names or name in names:
            path = FOLDER / f"{name}.onnx"
            write(path)
            proto = onnx.load(path)
            strip_comments(proto)
            shorten_names(proto)
            onnx.save(proto, path)
            print(f"{path.name:40} {path.stat().st_size / 1024:6.1f} kB  {check(path, source, tolerance)}")
            if path.stat().st_size > LIMIT:
                raise ValueError(f"{path.name} is too large")


if __name__ == "__main__":
    main(sys.argv[1:])
