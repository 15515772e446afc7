"""Write the tiny transformers beside this file, with random weights, as PyTorch's exporters do.

    python tests/exported/make_attention.py [NAME ...]

Needs ``torch torchvision timm transformers onnx onnxscript onnxruntime`` and what ``make.py`` needs (last run with torch
2.13, transformers 5.23, onnxscript 0.7). A network NAME becomes one file per flavour of export, ``<name>.<flavour>.onnx``:
``ts`` is the TorchScript exporter, ``dynamo`` the ``torch.export``-based one, ``dynamo23`` the latter with an opset that
has operators for attention, rotary embedding and root-mean-square normalisation. Each file's outputs in onnxruntime are
compared with PyTorch's at two sizes. The networks are those of ``benchmarks/export_transformers.py``, made smaller.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from functools import partial
from itertools import count
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from make import FOLDER, SEED, randomise, strip_comments
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from export_transformers import BATCH, LENGTH, OTHER, Call, Case, Inputs, compare, export, of_text, transformer

WIDTH, HEADS, HIDDEN, VOCABULARY, FEATURES = 12, 4, 20, 20, 12
LIMIT = 45 * 1024
"""Largest size of a file."""

# --- inputs ---------------------------------------------------------------------------------------------------------


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length))


def text(batch: int, length: int) -> Inputs:
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, -2:] = 0
    return {"input_ids": tokens(batch, length), "attention_mask": mask}


def positioned(batch: int, length: int) -> Inputs:
    return text(batch, length) | {"position_ids": torch.arange(length).repeat(batch, 1)}


def two_texts(batch: int, length: int) -> Inputs:
    return {"input_ids": tokens(batch, length), "decoder_input_ids": tokens(batch, length - 3)}


def image(batch: int, length: int, size: int = 8) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, size, size)}


def captions(batch: int, length: int) -> Inputs:
    return text(batch, length) | image(batch, length)


def speech(batch: int, length: int) -> Inputs:
    mask = {"decoder_attention_mask": torch.ones(batch, length, dtype=torch.int64)}
    positions = {"decoder_position_ids": torch.arange(length).repeat(batch, 1)}
    return {"input_features": torch.randn(batch, 8, 12), "decoder_input_ids": tokens(batch, length)} | mask | positions


def vectors(batch: int, length: int) -> Inputs:
    return {"x": torch.randn(batch, length, FEATURES)}


# --- networks -------------------------------------------------------------------------------------------------------

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 16,
} | SPECIAL
# Rotary embedding wants an even number of channels in a head.
DECODER = TEXT | {"use_cache": False, "hidden_size": 16}
VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "image_size": 8,
    "patch_size": 4,
}
TRANSLATOR = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 16,
    "use_cache": False,
    "decoder_start_token_id": 1,
} | SPECIAL
GPT2 = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_head": HEADS, "n_layer": 1, "n_positions": 16, "use_cache": False}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 14,
    "d_kv": 6,
    "d_ff": 20,
    "num_layers": 1,
    "num_heads": 2,
    "use_cache": False,
    "decoder_start_token_id": 0,
}
DISENTANGLED = {"relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
WINDOWS = {"embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 2, "image_size": 16, "patch_size": 4}


def clip() -> nn.Module:
    sides = {"text_config": TEXT | {"projection_dim": 6}, "vision_config": VISION | {"projection_dim": 6}}
    return transformer("CLIPModel", "CLIPConfig", projection_dim=6, **sides)


def windows() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    sizes = {"img_size": 8, "patch_size": 2, "window_size": 2, "embed_dim": 8, "depths": (2,), "num_heads": (2,)}
    return SwinTransformer(num_classes=5, **sizes)


def of_clip(name: str) -> dict[int, str]:
    images = {"pixel_values": {0: "images"}, "logits_per_image": {0: "images", 1: "batch"}}
    return (images | {"logits_per_text": {0: "batch", 1: "images"}}).get(name, of_text(name))


class Attention(nn.Module):
    """``nn.MultiheadAttention`` from one sequence to itself, returning its weights too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, 5)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(x)
        out, weights = self.attention(x, x, x)
        return self.head(out), weights


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, batch_first=True, norm_first=True)
        self.embed, self.body, self.head = nn.Linear(FEATURES, WIDTH), nn.TransformerEncoder(layer, 1), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)).mean(1))


class Grouped(nn.Module):
    """Causal attention with two heads of queries for each head of keys and values, which have widths of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(FEATURES, 4 * 6), nn.Linear(FEATURES, 2 * 6), nn.Linear(FEATURES, 2 * 5)
        self.out, self.head = nn.Linear(4 * 5, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (heads, -1)).transpose(1, 2) for layer, heads in ((self.q, 4), (self.k, 2), (self.v, 2)))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.head(F.relu(self.out(y.transpose(1, 2).flatten(2))))


def batch_only(name: str) -> dict[int, str]:
    return {0: "batch"}


def head_axes(name: str) -> dict[int, str]:
    return {0: "batch"} if name == "logits" else of_text(name)


def decoder_axes(name: str) -> dict[int, str]:
    return {0: "batch"} if name == "input_features" else of_text("decoder" if name == "logits" else name)


def hub(model: str, config: str, *options: dict[str, object]) -> partial[nn.Module]:
    merged = {key: value for option in options for key, value in option.items()}
    return partial(transformer, model, config, **merged)


LOGITS = ("logits",)
GROUPED = {"num_key_value_heads": 2}
FALCON = {"multi_query": True, "parallel_attn": True, "alibi": False}
SOUND = {"num_mel_bins": 8, "max_source_positions": 6, "max_target_positions": 16}
GRAPHS: dict[str, tuple[Case, tuple[str, ...]]] = {
    "bert": (
        Case(hub("BertForSequenceClassification", "BertConfig", TEXT), text, LOGITS, head_axes),
        ("ts", "dynamo", "dynamo23"),
    ),
    "gpt2": (Case(hub("GPT2LMHeadModel", "GPT2Config", GPT2, SPECIAL), positioned, LOGITS, of_text), ("ts",)),
    "llama_gqa": (
        Case(hub("LlamaForCausalLM", "LlamaConfig", DECODER, GROUPED), positioned, LOGITS, of_text),
        ("ts", "dynamo23"),
    ),
    "gpt_neox": (
        Case(hub("GPTNeoXForCausalLM", "GPTNeoXConfig", DECODER, {"rotary_pct": 0.5}), positioned, LOGITS, of_text),
        ("ts",),
    ),
    "falcon_mqa": (Case(hub("FalconForCausalLM", "FalconConfig", DECODER, FALCON), positioned, LOGITS, of_text), ("ts",)),
    "deberta": (
        Case(hub("DebertaV2ForSequenceClassification", "DebertaV2Config", TEXT, DISENTANGLED), text, LOGITS, head_axes),
        ("ts",),
    ),
    "t5": (
        Case(hub("T5ForConditionalGeneration", "T5Config", T5), two_texts, LOGITS, decoder_axes),
        ("ts",),
    ),
    "bart": (
        Case(
            hub("BartForConditionalGeneration", "BartConfig", TRANSLATOR, {"max_position_embeddings": 16}),
            two_texts,
            LOGITS,
            decoder_axes,
        ),
        ("ts",),
    ),
    "whisper": (
        Case(hub("WhisperForConditionalGeneration", "WhisperConfig", TRANSLATOR, SOUND), speech, LOGITS, decoder_axes),
        ("ts",),
    ),
    "vit": (
        Case(hub("ViTForImageClassification", "ViTConfig", VISION), image, LOGITS, batch_only),
        ("ts", "dynamo"),
    ),
    "swin": (
        Case(hub("SwinForImageClassification", "SwinConfig", WINDOWS), partial(image, size=16), LOGITS, batch_only),
        ("dynamo",),
    ),
    "timm_swin": (Case(windows, image, LOGITS, batch_only), ("ts",)),
    "clip": (Case(clip, captions, ("logits_per_image", "logits_per_text"), of_clip), ("ts",)),
    # The TorchScript exporter makes the length of the sample part of the graph.
    "multihead_attention": (Case(Attention, vectors, ("logits", "weights"), batch_only), ("ts", "dynamo")),
    "transformer_encoder": (Case(Encoder, vectors, LOGITS, batch_only), ("ts", "dynamo")),
    "grouped_attention": (Case(Grouped, vectors, LOGITS, of_text), ("dynamo23",)),
}
OPSETS = {"ts": 17, "dynamo": 20, "dynamo23": 23}


def shorten_names(proto: onnx.ModelProto) -> None:
    """Leave of names like ``/model/encoder/layer.0/Add_output_0`` the operator, and number them: they are half a file."""
    short = {value.name: value.name for value in [*proto.graph.input, *proto.graph.output]} | {"": ""}
    graphs = [proto.graph]
    numbers: dict[str, count[int]] = defaultdict(count)
    kept = {tensor.name for tensor in proto.graph.initializer} | set(short)

    def rename(name: str, operator: str) -> str:
        while name not in short:
            new = f"{operator}_{next(numbers[operator])}"
            if new not in kept:
                short[name] = new
        return short[name]

    for graph in graphs:
        for value in [*graph.initializer, *graph.input]:
            value.name = short.setdefault(value.name, value.name)
        for node in graph.node:
            node.output[:] = [rename(name, node.op_type) for name in node.output]
            node.name = f"n{next(numbers['n'])}"
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    for graph in graphs:
        for node in graph.node:
            node.input[:] = [short.get(name, name) for name in node.input]
        for value in [*graph.value_info, *graph.output]:
            value.name = short.get(value.name, value.name)


def write(name: str, flavour: str, case: Case) -> None:
    """Export the network and compare it at two sizes."""
    torch.manual_seed(SEED)
    model = case.build().float().eval()
    randomise(model)
    call = Call(model, tuple(case.inputs(BATCH, LENGTH)), case.outputs).eval()
    path = FOLDER / f"{name}.{flavour}.onnx"
    export(call, case, flavour[:6].rstrip("0123456789"), path, OPSETS[flavour])
    proto = onnx.load(path)
    strip_comments(proto)
    shorten_names(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    static = case.axes is batch_only
    error = max(compare(call, case.inputs(*size), path) for size in ((BATCH, LENGTH), (OTHER[0], LENGTH) if static else OTHER))
    print(f"{path.name:40} {path.stat().st_size / 1024:6.1f} kB  error {error:.1e}")
    if path.stat().st_size > LIMIT:
        print(f"{path.name} is too large")


def main(graphs: dict[str, tuple[Case, tuple[str, ...]]], names: list[str]) -> None:
    warnings.filterwarnings("ignore")
    for name in names or graphs:
        case, flavours = graphs[name]
        for flavour in flavours:
            write(name, flavour, case)


if __name__ == "__main__":
    main(GRAPHS, sys.argv[1:])
