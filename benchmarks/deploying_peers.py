"""Other tools' rows of deploying.py's table: the same networks at the same MACs, without training afterwards.

    PEERS/bin/python benchmarks/deploying_peers.py --data FOLDER --out FOLDER

Torch-Pruning on the network that onnx2torch reads from the file (its dependency graph, each of its criteria, layers alike or
ranked together, all channels or, where what comes of that can't run, those inside the residual blocks, which the padded shortcuts
leave alone), and onnxsim's pruning of the file itself. What is measured on data sees the same 512 images as onnxprune with seed
0, with the network's own predictions for labels where there is a loss. The ratio is bisected until the MACs that are left are
what the table says, or a little less; MACs of convolutions and dense layers. Whatever a tool's options, the best on the
evaluation set counts, which flatters it. Batch normalisation is folded into the convolutions of these files, so that its
statistics can't be estimated again; the biases stay.

In an environment of its own: ``pip install torch==2.13.0``, then ``pip install --no-deps torch-pruning onnx2torch torchvision``,
``pip install onnx onnxruntime onnxsim``. ``--data`` as in deploying.py, which writes the rows that this adds to.
"""

from __future__ import annotations

import argparse
import copy
import json
import runpy
import sys
import time
from collections.abc import Callable, Collection, Iterator
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx

NETS = ("resnet20_cifar10", "resnet56_cifar10")
TARGETS = (0.7, 0.5, 0.3)
CRITERIA = ("l1", "l2", "l2, lamp", "fpgm", "taylor", "hessian", "random")
HALVINGS = 7
HESSIAN = 128
"""Images that the Hessian criterion sees, one by one."""

RESULTS = Path(__file__).with_name("deploying.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=NETS)
    parser.add_argument("--targets", nargs="*", type=float, default=TARGETS)
    parser.add_argument("--criteria", nargs="*", default=CRITERIA, help="of Torch-Pruning; onnxsim runs where all are asked for")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    prepare = runpy.run_path(str(given.data / "prepare.py"))
    for name in given.only:
        _, x, labels, seen = prepare["MODELS"][name]()
        path = given.data / "models" / f"{name}.onnx"
        whole = macs(onnx.load(path))
        for target in given.targets:
            found: list[dict[str, Any]] = []
            runs = [torch_pruning(path, target * whole, seen, given.criteria)]
            runs += [onnxsim_pruning(path, target * whole)] if given.criteria == CRITERIA else []
            for tool, settings, pruned in chain(*runs):
                row: dict[str, Any] = {"tool": tool, "settings": settings}
                if isinstance(pruned, str):
                    row["error"] = pruned
                else:
                    classes, left = pruned(x)
                    row |= {"macs": round(left / whole, 4), "accuracy": round(float((classes == labels).mean()), 4)}
                print(name, target, row, flush=True)
                found.append(row)
            _write(f"{name.split('_')[0]} macs={target}", found)


def macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulate operations of a model's convolutions and dense layers, one sample of 32 x 32 pixels."""
    model = copy.deepcopy(model)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*inferred.value_info, *inferred.output)}
    weights = {t.name: list(t.dims) for t in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            positions = sizes[node.output[0]][2:]
            total += int(np.prod(weights[node.input[1]]) * np.prod(positions))
    return total


# Torch-Pruning --------------------------------------------------------------------------------------------------------------

Judge = Callable[[np.ndarray], tuple[np.ndarray, int]]
Found = Iterator[tuple[str, str, Judge | str]]


def torch_pruning(path: Path, limit: float, seen: np.ndarray, only: Collection[str]) -> Found:
    """Some criteria of Torch-Pruning, layers alike or together."""
    import torch
    import torch_pruning as tp

    torch.set_num_threads(1)
    inputs = torch.from_numpy(seen)
    importances = {
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "l2, lamp": lambda: tp.importance.LAMPImportance(p=2),
        "fpgm": lambda: tp.importance.FPGMImportance(),
        "taylor": lambda: tp.importance.GroupTaylorImportance(),
        "hessian": lambda: tp.importance.GroupHessianImportance(),
        "random": lambda: tp.importance.RandomImportance(),
    }
    name = f"Torch-Pruning {tp.__version__}"
    for scope in ("all channels", "inside the blocks"):
        for criterion, importance in ((name, make) for name, make in importances.items() if name in only):
            for together in (False, True):
                settings = f"{criterion}, {'together' if together else 'layers alike'}, {scope}"
                try:
                    start = _measured(path, inputs, importance(), criterion)
                    cut = partial(_torch_cut, start, inputs[:1], together, scope)
                    best = _bisected(cut, limit)
                    yield name, settings, "no ratio reaches the target" if best is None else _judge_torch(best)
                except Exception as error:  # a peer's failure is a result
                    yield name, settings, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
                    if scope == "all channels":
                        break
            else:
                continue
            break
        else:
            return


def _bisected(cut: Callable[[float], tuple[Any, float]], limit: float) -> Any:
    """The model that is cut least of those whose MACs are within the limit; None where there is none."""
    low, high, best = 0.0, 0.95, None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        model, left = cut(middle)
        if left <= limit:
            high, best = middle, model
        else:
            low = middle
    return best


def _measured(path: Path, inputs: Any, importance: Any, criterion: str) -> tuple[Any, Any]:
    """The network and the criterion, with gradients where that takes any: of the loss by the network's own predictions."""
    import onnx2torch
    import torch

    torch.manual_seed(0)
    net = onnx2torch.convert(_static(path)).eval()
    if criterion == "taylor":
        for batch in inputs.split(64):
            logits = net(batch)
            torch.nn.functional.cross_entropy(logits, logits.argmax(1).detach(), reduction="sum").backward()
    if criterion == "hessian":
        importance.zero_grad()
        for one in inputs[:HESSIAN]:
            net.zero_grad()
            logits = net(one[None])
            torch.nn.functional.cross_entropy(logits, logits.argmax(1).detach()).backward()
            importance.accumulate_grad(net)
    return net, importance


def _torch_cut(start: tuple[Any, Any], example: Any, together: bool, scope: str, ratio: float) -> tuple[Any, float]:
    """A pruned network and the share of the MACs that it keeps."""
    import torch
    import torch_pruning as tp

    net, importance = copy.deepcopy(start)
    for old, new in zip(start[0].parameters(), net.parameters(), strict=True):
        new.grad = None if old.grad is None else old.grad.clone()
    layers = {n: m for n, m in net.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)}
    dense = [m for m in layers.values() if isinstance(m, torch.nn.Linear)]
    inside = [m for n, m in layers.items() if "/conv1/" not in n or n.startswith("conv1")]
    ignored = dense if scope == "all channels" else inside
    pruner = tp.pruner.BasePruner(net, example, importance, global_pruning=together, pruning_ratio=ratio, ignored_layers=ignored)
    pruner.step()
    return net, _torch_macs(net, example)


def _torch_macs(net: Any, example: Any) -> int:
    """Multiply-accumulate operations of a network's convolutions and dense layers on one sample."""
    import torch

    found: list[int] = []

    def count(layer: Any, _: Any, out: Any) -> None:
        found.append(int(layer.weight.numel() * np.prod(out.shape[2:])))

    kinds = torch.nn.Conv2d | torch.nn.Linear
    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        net(example)
    for hook in hooks:
        hook.remove()
    return sum(found)


@cache
def _static(path: Path) -> onnx.ModelProto:
    """The file with its shapes computed, so that the shortcuts' padding is a constant."""
    import onnxsim

    model, _ = onnxsim.simplify(onnx.load(path))
    return model


def _judge_torch(net: Any) -> Judge:
    def judge(x: np.ndarray) -> tuple[np.ndarray, int]:
        import torch

        with torch.no_grad():
            parts = [net(part).argmax(1).numpy() for part in torch.from_numpy(x).split(64)]
        return np.concatenate(parts), _torch_macs(net, torch.from_numpy(x[:1]))

    return judge


# onnxsim ----------------------------------------------------------------------------------------------------------------------


def onnxsim_pruning(path: Path, limit: float) -> Found:
    """onnxsim's structured pruning by either norm, layers alike or together."""
    import onnxsim
    from onnxsim.pruning import apply_structured_pruning

    name, model = f"onnxsim {getattr(onnxsim, '__version__', '')}".strip(), _static(path)
    for norm in ("l1", "l2"):
        for together in (False, True):

            def cut(ratio: float, norm: str = norm, together: bool = together) -> tuple[onnx.ModelProto, float]:
                pruned = apply_structured_pruning(copy.deepcopy(model), ratio, norm, together)
                return pruned, macs(pruned)

            settings = f"{norm}, {'together' if together else 'layers alike'}"
            try:
                best = _bisected(cut, limit)
                yield name, settings, "no ratio reaches the target" if best is None else _judge_file(best)
            except Exception as error:  # a peer's failure is a result
                yield name, settings, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"


def _judge_file(model: onnx.ModelProto) -> Judge:
    def judge(x: np.ndarray) -> tuple[np.ndarray, int]:
        import onnxruntime as ort

        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        key = session.get_inputs()[0].name
        parts = [session.run(None, {key: x[i : i + 64]})[0].argmax(1) for i in range(0, len(x), 64)]
        return np.concatenate(parts), macs(model)

    return judge


def _write(case: str, rows: list[dict[str, Any]]) -> None:
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    new = {(row["tool"], row["settings"]) for row in rows}
    before = found.setdefault("peers", {}).get(case, [])
    found["peers"][case] = [row for row in before if (row["tool"], row["settings"]) not in new] + rows
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(sys.argv[sys.argv.index("--data") + 1])))
    import torch  # noqa: F401
    import tv_shim  # noqa: F401

    start = time.time()
    main()
    print(f"{time.time() - start:.0f} s")
