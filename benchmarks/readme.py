"""Write README's generated blocks: the operator table and the measured results.

    python benchmarks/readme.py

Each block stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``. Results come from the files ``NAME.json``
beside this script, which the scripts of the same names make.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

from onnxprune.operators import table

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
# fmt: off
SHOWN = [
    "vgg16_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "googlenet", "inception_v3", "regnet_y_400mf",
    "repvgg_a0", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0", "squeezenet1_1",
    "shufflenet_v2_x1_0", "res2net50_26w_4s", "cspresnet50", "ghostnet_100", "hrnet_w18_small", "dla34", "fcn_resnet50",
    "deeplabv3_mobilenet_v3_large", "unet", "yolo", "convnext_tiny", "poolformer_s12",
]
# fmt: on


def blocks() -> dict[str, str]:
    """The text of every generated block."""
    results = {path.stem: json.loads(path.read_text()) for path in HERE.glob("*.json")}
    return {
        "operators": table(),
        "coverage": _coverage(results["coverage"]),
        "sequences": _sequences(results["coverage"]),
        "huge": _huge(results["huge"]),
        "latency": _latency(results["latency"]),
        "staircase": _staircase(results["staircase"]),
        "speed": _speed(results["speed"]),
        "quantize": _quantize(results["quantize"]),
        "paoding": _paoding(results["paoding"]),
        "impact": _impact(results["impact"]),
        "fair": _fair(results["fair"]),
        "deploying": _deploying(results["deploying"]),
        "finetune": _finetune(results["finetune"]),
        "mic": _mic(results["mic"]),
        "sparsify": _sparsify(results["sparsify"]),
        "robustness": _robustness(results["robustness"]),
        "gradient": _gradient(results["gradient"]),
    }


def _gradient(results: dict[str, Any]) -> str:
    """Cost and precision model by model; those without a gradient in one line."""
    rows = {name: row for section in ("lenet", "models") for name, row in results[section].items()}
    lines = ["| model | batch | by inputs | by weights too | gap to differences, float64 | float32 to float64 |"]
    lines.append("|---|--:|--:|--:|--:|--:|")
    for name, row in rows.items():
        if not row["differentiable"]:
            continue
        costs = [f"{row[k]:.1f}" if row.get(k) else "" for k in ("input_passes", "inputs_and_weights_passes")]
        found = [gap for gap in (row["inputs_gap"], row["weights_gap"]) if gap is not None]
        exact = f"{max(found):.0e} | {row['float32_gap']:.0e}" if "float32_gap" in row else f"{max(found):.0e} (float32) |"
        lines.append(f"| {name.removesuffix('.onnx')} | {row.get('batch', '')} | {' | '.join(costs)} | {exact} |")
    rest = "; ".join(f"{name.removesuffix('.onnx')} ({row['why']})" for name, row in rows.items() if not row["differentiable"])
    return "\n".join([*lines, "", f"Not differentiable: {rest}."])


def _fair(results: dict[str, Any]) -> str:
    """The VGG level by level, and others' models at the same counts by three criteria."""
    vgg = results["vgg"]
    lines = ["| ToD level, removal ranking | parameters left | MACs left | accuracy, original | pruned | least squares |"]
    lines.append("|---|--:|--:|--:|--:|--:|")
    for name, both in vgg.items():
        if not name.startswith("seconds"):
            plain, fitted = both["none"], both["least-squares"]
            values = (plain["accuracy_before"], plain["accuracy_after"], fitted["accuracy_after"])
            lines.append(f"| {name} | {plain['parameters']:.3f} | {plain['macs']:.3f} | " + _percent(values))
    theirs, ours = results["network-pruner 2.16, processor seconds"], vgg["seconds, own"]["processor, whole run"]
    lines += [
        "",
        f"Measuring takes {ours:.1f} CPU seconds, import and proof included; network-pruner 2.16 takes {theirs:.1f}.",
        "",
    ]
    lines += ["| network, ToD level | parameters left | accuracy | wasserstein | reconstruction | l1 | with least squares | | |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for name, found in results["models"].items():
        for level in (key for key, value in found.items() if isinstance(value, dict)):
            modes = ("none", "least-squares")
            rows = [found[level][f"{c} {mode}"] for mode in modes for c in ("wasserstein", "reconstruction", "l1")]
            values = (rows[0]["accuracy_before"], *(r["accuracy_after"] for r in rows))
            lines.append(f"| {name}, {level} | {rows[0]['parameters']:.3f} | " + _percent(values))
    return "\n".join(lines)


def _deploying(results: dict[str, Any]) -> str:
    """Case by case: the median over the seeds beside the bar, plain pruning and the best setting of every other tool."""
    columns = ("network, what is left, data", "original", "bar", "obs", "seeds", "agreement", "own axes", "l1")
    columns += ("Torch-Pruning", "onnxsim", "CPU s", "MB")
    lines = [f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}"]
    cases = dict.fromkeys(row["case"] for row in results["rows"] if row["method"] == "obs")
    for name in cases:
        rows = {
            method: [r for r in results["rows"] if r["case"] == name and r["method"] == method and "after" in r]
            for method in ("obs", "own axes", "l1")
        }
        done = rows["obs"]
        if not done:
            continue
        before, after = done[0].get("before"), _median(done, "after")
        bar = done[0]["bar"] if done[0]["bar"] > 0 else before + done[0]["bar"]
        cells = [_points(before), _points(bar), f"**{_points(after)}**" if after >= bar else _points(after), str(len(done))]
        cells += [_points(_median(done, "agreement"))] + [_points(_median(rows[m], "after")) for m in ("own axes", "l1")]
        peers = results.get("peers", {}).get(name, [])
        for tool in ("Torch-Pruning", "onnxsim"):
            found = [p["accuracy"] for p in peers if p["tool"].startswith(tool) and "accuracy" in p]
            cells.append(_points(max(found, default=None)))
        cells += [f"{_median(done, 'cpu_s'):.0f}", f"{_median(done, 'peak_mb'):.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(rows: list[dict[str, Any]], key: str) -> Any:
    values = [row[key] for row in rows if key in row]
    return median(values) if values else None


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}" if value >= 0 else "below 0"


def _sparsify(results: dict[str, Any]) -> str:
    """Accuracy by score and share, of both networks at the shares that both have."""
    (first, rows), *others = results["accuracy"].items()
    shown = [(g, share) for g in ("element", "kernel", "filter") for share in rows[g]["magnitude"]]
    lines = [f"| {first} ({100 * rows['original']:.1f} %) | " + " | ".join(f"{g}s {s}" for g, s in shown)]
    heads = [(name, more, g, s) for name, more in others for g in ("element", "kernel") for s in more[g]["magnitude"]]
    lines[0] += "".join(f" | {name} ({100 * more['original']:.1f} %): {g}s {s}" for name, more, g, s in heads) + " |"
    lines.append("|---|" + "--:|" * (len(shown) + len(heads)))
    for way in rows["kernel"]:
        places = [(rows, g, s) for g, s in shown] + [(more, g, s) for _, more, g, s in heads]
        cells = [f"{100 * r[g][way][s]['accuracy']:.1f}" if way in r[g] else "" for r, g, s in places]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    stored = next(iter(results["store"].values()))
    said = [f"{r['store']} {r['bytes']['after'] / r['bytes']['before']:.2f}" for r in stored if r["sparsity"] == 0.7]
    ratios = [r["latency_ms"]["ratio"] for r in stored]
    back = [row[g].get("restored") for row in results["restore"].values() for g in row]
    lines += [
        "",
        f"At 0.7 the file is {', '.join(said)} of the original's; the latency is {min(ratios):.2f} to {max(ratios):.2f} of it, "
        f"as measuring goes. {len(results['restore'])} models at 0.5 by element, kernel and filter: {back.count('file')} of "
        f"{len(back)} restored files are the original's byte for byte, {back.count('weights')} in all weights (local functions "
        f"are inlined), {back.count(None)} were refused because onnxruntime can't load the model.",
    ]
    return "\n".join(lines)


def _mic(found: dict[str, Any]) -> str:
    """Accuracy by criterion and ratio, in percent, as chosen and after least squares."""
    lines = [f"| {found['model']} ({100 * found['accuracy']:.1f} %) | " + " | ".join(f"{r:g}" for r in found["ratios"]) + " |"]
    lines.append("|---|" + "--:|" * len(found["ratios"]))
    lines.append("| MACs left | " + " | ".join(f"{v:.2f}" for v in found["left"]["macs"]) + " |")
    for criterion, plain in found["by_compensation"]["none"].items():
        fitted = found["by_compensation"]["least-squares"][criterion]
        cells = [f"{100 * a:.1f}, {100 * b:.1f}" for a, b in zip(plain, fitted, strict=True)]
        lines.append(f"| {criterion} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(values: tuple[float, ...]) -> str:
    return " | ".join(f"{100 * v:.1f}" for v in values) + " |"


def _paoding(results: dict[str, Any]) -> str:
    """At a quarter and a half of the channels: what is left of parameters, accuracy and robustness, and the rivals' best."""
    lines = [
        "| network | accuracy | removed | parameters left | accuracy | best of L1, merging | robust accuracy, before | after |"
    ]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, found in results.items():
        steps = found["steps"]
        for place, step in enumerate(steps):
            if round(step["share"], 2) not in (0.25, 0.5):
                continue
            rival = max(values[place] for values in found["rivals"].values())
            epsilon = list(step["robust_accuracy"])[min(1, len(step["robust_accuracy"]) - 1)]
            robust = [f"{100 * s['robust_accuracy'][epsilon]:.0f}" for s in (steps[0], step)]
            lines.append(
                f"| {name} | {100 * steps[0]['accuracy']:.1f} | {100 * step['share']:.0f} % | {step['left']:.3f} | "
                f"{100 * step['accuracy']:.1f} | {100 * rival:.1f} | {robust[0]} (epsilon {epsilon}) | {robust[1]} |"
            )
    return "\n".join(lines)


def _finetune(results: dict[str, Any]) -> str:
    heading = "| network | MACs left | original | pruned | learned from | samples | epochs | fine-tuned | CPU time | elapsed |"
    rows = [heading, "|---|--:|--:|--:|---|--:|--:|--:|--:|--:|"]
    for case in results["cases"].values():
        original, pruned, tuned = (f"{100 * case['accuracy'][k]:.1f}" for k in ("original", "pruned", "fine-tuned"))
        source = " and ".join(s for s, used in (("labels", case["labels"]), ("the original", case["original"])) if used)
        rows.append(
            f"| {case['model']} | {case['macs_left']:.2f} | {original} | {pruned} | {source} | {case['samples']:,} | "
            f"{case['train']['epochs']} | {tuned} | {case['cpu_s'] / 60:.1f} min | {case['wall_s'] / 60:.1f} min |"
        )
    return "\n".join(rows)


def _impact(found: dict[str, Any]) -> str:
    return (
        f"{found['step_s']:.2f} CPU seconds, {found['step_over_product']:.1f} times one product of two "
        f"{found['width']} x {found['width']} matrices."
    )


def _robustness(results: dict[str, Any]) -> str:
    """Each network's attacks at the first epsilons that cost it more than a point, and how far torch's figures are at most."""
    rows = ["| network | attack | samples | still right, by epsilon | largest gap to torch | gradients over forward passes |"]
    rows.append("|---|---|--:|---|--:|--:|")
    for name, found in results.items():
        for kind, shares in ((k, v) for k, v in found.items() if isinstance(v, dict) and "torch" in v):
            hurt = [(e, share) for e, share in shares["graph"].items() if share < found[f"{kind}: accuracy"] - 0.01]
            right = ", ".join(f"{100 * share:.1f} ({e})" for e, share in hurt[:4])
            gap, samples = found[f"{kind}: largest gap in points"], found[f"{kind}: samples"]
            rows.append(f"| {name} | {kind} | {samples} | {right} | {gap:.1f} | {found['gradients over forward passes']:.1f} |")
    return "\n".join(rows)


def fill(text: str, parts: dict[str, str]) -> str:
    """README's text with the blocks replaced."""
    for name, content in parts.items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        text, count = re.subn(pattern, lambda m, c=content: f"{m[1]}{c}\n{m[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"README has {count} blocks called {name!r}, not one")
    return text


# fmt: off
SEQUENCES = [
    "bert", "roberta", "albert", "deberta_v2", "electra", "gpt2", "gpt_neox", "llama_gqa", "mistral", "qwen2", "falcon", "bloom",
    "t5", "bart", "whisper", "vit", "swin", "clip", "mixtral", "mamba", "torch_transformer",
]
RECURRENT = [
    "lstm2_bi.ts", "gru2.ts", "rnn2.ts", "unrolled_lstmcell.ts", "while_loop.dynamo", "keras_lstm_stacked.tf2onnx",
    "keras_gru.tf2onnx", "keras_conv_lstm.tf2onnx", "keras_crnn.tf2onnx",
]
# fmt: on


def _sequences(sections: dict[str, Any]) -> str:
    plain, mixing = ({r["model"]: r for r in sections[name]["rows"]} for name in ("transformers", "transformers (mixing)"))
    rows = ["| network (ratio 0.5, uniform) | left | without embeddings | MACs left | with `--mixing`: left | MACs left |"]
    rows.append("|---|--:|--:|--:|--:|--:|")
    for name in SEQUENCES:
        one, other = plain[f"{name}.ts.onnx"], mixing[f"{name}.ts.onnx"]
        left = (one["parameters_left"], one["inner_left"], one["macs_left"], other["parameters_left"], other["macs_left"])
        rows.append(f"| {name} | {' | '.join(f'{x:.3f}' for x in left)} |")
    found = {r["model"]: r for r in sections["recurrent"]["rows"]}
    for name in RECURRENT:
        row = found[f"{name}.onnx"]
        rows.append(f"| {name.removesuffix('.ts')} | {row['parameters_left']:.3f} | | {row['macs_left']:.3f} | | |")
    return "\n".join(rows)


def _huge(result: dict[str, Any]) -> str:
    size, left = result["model_bytes"] / 1e9, result["pruned_bytes"] / 1e9
    cold = result["cold"]
    return (
        f"A synthetic model of {size:.2f} GB with external data becomes one of {left:.2f} GB with "
        f"{result['peak_anonymous_bytes'] / 1e6:.0f} MB of anonymous memory at the peak, proved equal to the masked original; "
        f"that takes {cold['time_ratio']:.1f} times as long as copying it ({cold['time_ratio_range'][0]:.1f} to "
        f"{cold['time_ratio_range'][1]:.1f} over {result['runs']} runs)."
    )


def _coverage(sections: dict[str, Any]) -> str:
    rows = ["| folder | models | exact | runs | nothing to cut | refused | broken |", "|---|--:|--:|--:|--:|--:|--:|"]
    for name, section in sections.items():
        verdicts = [r["verdict"] for r in section["rows"]]
        counts = [str(verdicts.count(v)) for v in ("exact", "runs", "whole", "refused", "BROKEN")]
        rows.append(f"| {name} | {len(verdicts)} | {' | '.join(counts)} |")
    found = {r["model"]: r for r in sections["exports"]["rows"]}
    rows += ["", "| network (ratio 0.5, uniform) | parameters | left, TorchScript export | left, dynamo export | MACs left |"]
    rows += ["|---|--:|--:|--:|--:|"]
    for name in SHOWN:
        script, dynamo = found[f"{name}.ts.onnx"], found[f"{name}.dynamo.onnx"]
        left = f"{script['parameters_left']:.3f} | {dynamo['parameters_left']:.3f} | {script['macs_left']:.3f}"
        rows.append(f"| {name} | {script['parameters']:,} | {left} |")
    for name in sorted(n for n in found if n.endswith(".tf2onnx.onnx") and found[n]["parameters"] > 1e6):
        row = found[name]
        short = name.removesuffix(".tf2onnx.onnx")
        rows.append(f"| {short} (tf2onnx) | {row['parameters']:,} | {row['parameters_left']:.3f} | | {row['macs_left']:.3f} |")
    return "\n".join(rows)


def _latency(result: dict[str, Any]) -> str:
    rows = ["| network | original | pruned | latency left | MACs left | rounded to 16: latency left | MACs left |"]
    rows.append("|---|--:|--:|--:|--:|--:|--:|")
    for name, both in result["models"].items():
        plain, rounded = both["1"], both["16"]
        times = f"{plain['original_ms']:.1f} ms | {plain['pruned_ms']:.1f} ms"
        left = " | ".join(f"{r[k]:.2f}" for r in (plain, rounded) for k in ("latency_left", "macs_left"))
        rows.append(f"| {name.split('.')[0]} | {times} | {left} |")
    return "\n".join(rows)


def _staircase(result: dict[str, Any]) -> str:
    """Cut by cut, as it comes and in widths that are worth having; and what became of latency targets."""
    rows = ["| network | cut | MACs left | times as fast | in int8 | `--round-to auto`: MACs left | times as fast | in int8 |"]
    rows.append("|---|---|--:|--:|--:|--:|--:|--:|")
    said = []
    for name, found in result["models"].items():
        for cut in (key.removesuffix(", auto") for key in found if key.endswith(", auto")):
            pair = [found[f"{cut}, {width}"] for width in (1, "auto")]
            cells = [f"{r['macs_left']:.2f} | {r['float'][0]:.2f} | {r['int8'][0]:.2f}" for r in pair]
            rows.append(f"| {name} | {cut} | {' | '.join(cells)} |")
        last = found["latency=0.5"]
        said.append(f"{name} {last['foreseen']:.3f}, {last['left']:.3f}, {1 / last['float'][0]:.3f}")
    text = (
        "latency=0.5: the share foreseen, that measured at the end of the run, and that measured again: " + "; ".join(said) + "."
    )
    return "\n".join([*rows, "", text])


def _speed(result: dict[str, Any]) -> str:
    rows = [
        ("`onnx.load` + `onnx.save`", result["copy"]["seconds"], 1.0, result["copy_memory_over_file"]),
        ("load, analyse, L1, surgery, write", result["prune"]["seconds"], result["time_ratio"], result["memory_over_file"]),
    ]
    size, runs = result["file_bytes"] / 1e6, result["runs"]
    return "\n".join(
        [
            f"A ResNet-50-size model ({size:.0f} MB), half of its channels, median of {runs} runs, each in its own process:",
            "",
            "| | seconds | over copy | peak memory over file size |",
            "|---|--:|--:|--:|",
            *(f"| {name} | {seconds:.2f} | {ratio:.2f} | {memory:.2f} |" for name, seconds, ratio, memory in rows),
        ]
    )


def _quantize(result: dict[str, Any]) -> str:
    rows = ["| network | fp16: size | latency | int8, calibrated: size | latency | accuracy |"]
    rows.append("|---|--:|--:|--:|--:|--:|")
    for name, modes in result["models"].items():
        half, integers = modes["fp16"], next((row for kind, row in modes.items() if "calibrated" in kind), {"error": ""})
        if "error" in half or "error" in integers:
            continue
        costs = (f"{row['bytes_left']:.2f} | {row['latency_left']:.2f}" for row in (half, integers))
        accuracy = " to ".join(f"{100 * value:.1f}" for value in integers["metrics"].get("accuracy", ()))
        rows.append(f"| {name.split('.')[0]} | {' | '.join(costs)} | {accuracy} |")
    return "\n".join(rows)


def main() -> None:
    README.write_text(fill(README.read_text(), blocks()))


if __name__ == "__main__":
    main()
