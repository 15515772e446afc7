"""Export small transformers with random weights to ONNX, as today's exporters write them.

    python benchmarks/export_transformers.py OUT [NAME ...] [--exporter ts|dynamo]

writes ``OUT/<name>.ts.onnx`` (TorchScript exporter, opset 17) and ``OUT/<name>.dynamo.onnx`` (``torch.export``-based
exporter, opset 20) for each network, with a dynamic batch and, where the network reads one and the exporter keeps it, a
dynamic sequence. Of some networks ``OUT/<name>.default.ts.onnx`` keeps the default initialisation, in which the
TorchScript exporter merges equal tensors. Every file's outputs in onnxruntime are compared with PyTorch's at two sizes.
The exports that failed are listed at the end, and the exit status is then 1.

Needs ``torch torchvision timm transformers onnx onnxscript onnxruntime``.
"""

# A module's forward is described by its class.
# ruff: noqa: D102

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from export_models import BATCH, OPSETS, PARITY, SEED, declare_torchvision_operators
from torch import Tensor, nn

declare_torchvision_operators()

import transformers as hf  # noqa: E402 - it imports torchvision

WIDTH, HEADS, LAYERS, HIDDEN, VOCABULARY = 64, 4, 2, 256, 500
LENGTH = 10
"""Of the sample sequence."""
OTHER = 3, 13
"""Batch and length of the second comparison."""

Axes = dict[int, str]
Inputs = dict[str, Tensor]


class Case(NamedTuple):
    """A network and how to call it."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]
    """From the batch and the length of the sequence, by the names of ``forward``'s arguments."""
    outputs: tuple[str, ...]
    """Entries of the result, if that is a mapping; otherwise only the names to give to its tensors."""
    axes: Callable[[str], Axes]
    """Dynamic axes of an input or output."""
    exporters: tuple[str, ...] = tuple(OPSETS)


# --- inputs and outputs ---------------------------------------------------------------------------------------------


def of_text(name: str) -> Axes:
    return {0: "batch", 1: "decoder_sequence" if name.startswith("decoder") else "sequence"}


def of_image(name: str) -> Axes:
    return {0: "batch"}


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length))


def text(batch: int, length: int) -> Inputs:
    """Token numbers and the mask of a batch whose last text is two tokens shorter."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, -2:] = 0
    return {"input_ids": tokens(batch, length), "attention_mask": mask}


def typed_text(batch: int, length: int) -> Inputs:
    return text(batch, length) | {"token_type_ids": (torch.arange(length) >= length // 2).long().repeat(batch, 1)}


def positioned_text(batch: int, length: int) -> Inputs:
    """With the positions, as the TorchScript exporter cannot translate their default, which uses ``diff``."""
    return text(batch, length) | {"position_ids": torch.arange(length).repeat(batch, 1)}


def two_texts(batch: int, length: int) -> Inputs:
    return text(batch, length) | {"decoder_input_ids": tokens(batch, length - 3)}


def pixels(batch: int, length: int, size: int = 32) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, size, size)}


def spectrogram(batch: int, length: int) -> Inputs:
    positions = torch.arange(length).repeat(batch, 1)
    inputs = {"input_features": torch.randn(batch, 16, 60), "decoder_input_ids": tokens(batch, length)}
    return inputs | {"decoder_attention_mask": torch.ones(batch, length, dtype=torch.int64), "decoder_position_ids": positions}


def captions(batch: int, length: int) -> Inputs:
    return text(batch, length) | pixels(batch, length)


def sound(batch: int, length: int) -> Inputs:
    return {"input_values": torch.randn(batch, 400 * length)}


def vectors(batch: int, length: int) -> Inputs:
    return {"x": torch.randn(batch, length, WIDTH)}


def two_vectors(batch: int, length: int) -> Inputs:
    return {"x": torch.randn(batch, length, WIDTH), "y": torch.randn(batch, length - 3, WIDTH)}


# --- networks -------------------------------------------------------------------------------------------------------

COMMON = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""The options of most configurations; a few give them other names."""
VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "image_size": 32,
    "patch_size": 8,
}


def transformer(model: str, config: str, **options: Any) -> nn.Module:
    """A network of the transformers library, by the names of its class and its configuration's class."""
    return getattr(hf, model)(getattr(hf, config)(**options))


def encoder(name: str, head: str = "ForSequenceClassification", **options: Any) -> Callable[[], nn.Module]:
    return partial(transformer, name + head, name + "Config", **COMMON | {"num_labels": 5} | options)


def decoder(name: str, **options: Any) -> Callable[[], nn.Module]:
    return partial(transformer, name + "ForCausalLM", name + "Config", **COMMON | {"use_cache": False} | options)


def image_classifier(name: str, **options: Any) -> Callable[[], nn.Module]:
    return partial(transformer, name + "ForImageClassification", name + "Config", **{"num_labels": 10} | options)


def clip(**options: Any) -> nn.Module:
    sides = {"text_config": COMMON | {"projection_dim": 32}, "vision_config": VISION | {"projection_dim": 32}}
    return transformer("CLIPModel", "CLIPConfig", projection_dim=32, **sides, **options)


def timm_model(name: str, **options: Any) -> nn.Module:
    import timm

    if name == "mixer":  # the named ones fix their width
        return timm.models.mlp_mixer.MlpMixer(num_classes=10, **options)
    return timm.create_model(name, pretrained=False, exportable=True, num_classes=10, **options)


class WithCache(nn.Module):
    """A decoder that reads and returns the keys and values of the tokens before."""

    def __init__(self, model: nn.Module, layers: int) -> None:
        super().__init__()
        self.model, self.layers = model, layers

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = hf.DynamicCache([(past[2 * i], past[2 * i + 1]) for i in range(self.layers)])
        result = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        layers = result.past_key_values.layers
        return result.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values))


class Pair(nn.Module):
    """``module(x, y)`` with the tokens of both embedded by a linear layer, and a head."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.embed, self.head = module, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.module(self.embed(x), self.embed(y)))


class Attend(nn.Module):
    """``nn.MultiheadAttention`` over one sequence, or from one to another with keys and values of other widths."""

    def __init__(self, cross: bool, weights: bool = False) -> None:
        super().__init__()
        widths = {"kdim": 48, "vdim": 40} if cross else {}
        self.weights = weights
        self.embed, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        self.keys, self.values = nn.Linear(WIDTH, 48), nn.Linear(WIDTH, 40)
        self.cross = cross
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **widths)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        x = self.embed(x)
        keys, values = (x, x) if y is None else (self.keys(y), self.values(y))
        out, weights = self.attention(x, keys, values, need_weights=self.weights)
        return (self.head(out), weights) if self.weights else self.head(out)


class Stack(nn.Module):
    """A sequence model between an embedding and a head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Linear(WIDTH, WIDTH), body, nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)).mean(1))


class SelfAttention(nn.Module):
    """Attention written by hand: one packed projection, split by ``chunk``, and two products around a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[0], x.shape[1], HEADS, WIDTH // HEADS
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        weights = (q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(x.shape))


class EinsumAttention(nn.Module):
    """Attention by ``einsum``, whose projections keep the heads as an axis of their weights."""

    def __init__(self) -> None:
        super().__init__()
        shape = WIDTH, HEADS, WIDTH // HEADS
        self.q, self.k, self.v = (nn.Parameter(torch.randn(shape)) for _ in range(3))
        self.o = nn.Parameter(torch.randn(HEADS, WIDTH // HEADS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bld,dhk->bhlk", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bhqk,bhlk->bhql", q, k).div((WIDTH // HEADS) ** 0.5).softmax(-1)
        return torch.einsum("bhlk,hkd->bld", torch.einsum("bhql,bhlk->bhqk", weights, v), self.o)


class LinearAttention(nn.Module):
    """Kernelised attention without a softmax: the keys meet the values first."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[0], x.shape[1], HEADS, WIDTH // HEADS
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        total = q @ k.sum(2, keepdim=True).transpose(2, 3)
        return self.out(((q @ (k.transpose(2, 3) @ v)) / total).transpose(1, 2).reshape(x.shape))


def torch_layers(kind: str, **options: Any) -> nn.Module:
    layer = getattr(nn, f"Transformer{kind}Layer")(WIDTH, HEADS, HIDDEN, batch_first=True, **options)
    return getattr(nn, f"Transformer{kind}")(layer, LAYERS)


def torch_transformer() -> nn.Module:
    return nn.Transformer(WIDTH, HEADS, LAYERS, LAYERS, HIDDEN, batch_first=True)


def past(batch: int, length: int) -> Inputs:
    """Inputs of one new token after ``length`` others, whose keys and values are given."""
    inputs = {
        "input_ids": tokens(batch, 1),
        "attention_mask": torch.ones(batch, length + 1, dtype=torch.int64),
        "position_ids": torch.full((batch, 1), length),
    }
    for layer in range(LAYERS):
        for part in ("key", "value"):
            inputs[f"past_key_values.{layer}.{part}"] = torch.randn(batch, 2, length, WIDTH // HEADS)
    return inputs


def of_cache(name: str) -> Axes:
    if name.startswith("past"):
        return {0: "batch", 2: "past_sequence"}
    if name.startswith("present"):
        return {0: "batch", 2: "total_sequence"}
    return {0: "batch", 1: "total_sequence"} if name == "attention_mask" else {0: "batch"}


LOGITS = ("logits",)
LLAMA = {"num_key_value_heads": HEADS}
RWKV = {"attention_hidden_size": WIDTH, "context_length": 64}
SPEECH = {
    "conv_dim": (32, 32, 48),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
SEQ2SEQ = {
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": HIDDEN,
    "decoder_ffn_dim": HIDDEN,
    "vocab_size": VOCABULARY,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": 12,
    "d_ff": HIDDEN,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "use_cache": False,
    "decoder_start_token_id": 0,
}
WINDOWS = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32, "patch_size": 2}
GPT2 = {
    "n_embd": WIDTH,
    "n_head": HEADS,
    "n_layer": LAYERS,
    "n_positions": 64,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
LATENTS = {
    "num_latents": 12,
    "d_latents": WIDTH,
    "d_model": 48,
    "num_blocks": 1,
    "num_self_attends_per_block": LAYERS,
    "num_self_attention_heads": HEADS,
    "num_cross_attention_heads": HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
}


def text_model(build: Callable[[], nn.Module], inputs: Callable[[int, int], Inputs] = text) -> Case:
    """Classifies the sequence."""
    return Case(build, inputs, LOGITS, lambda name: {0: "batch"} if name == "logits" else of_text(name))


def language_model(build: Callable[[], nn.Module], inputs: Callable[[int, int], Inputs] = positioned_text) -> Case:
    """Scores the vocabulary at every position."""
    return Case(build, inputs, LOGITS, of_text)


def translator(build: Callable[[], nn.Module]) -> Case:
    return Case(build, two_texts, LOGITS, lambda name: of_text("decoder" if name == "logits" else name))


def vision_model(build: Callable[[], nn.Module], size: int = 32) -> Case:
    return Case(build, partial(pixels, size=size), LOGITS, of_image)


def timm_vision(name: str, size: int = 64, **options: Any) -> Case:
    return Case(partial(timm_model, name, **options), lambda b, n: {"x": torch.randn(b, 3, size, size)}, LOGITS, of_image)


def layer_model(build: Callable[[], nn.Module], outputs: tuple[str, ...] = LOGITS) -> Case:
    return Case(build, vectors, outputs, lambda name: of_text(name) if name == "x" else {0: "batch"})


def pair_model(build: Callable[[], nn.Module]) -> Case:
    return Case(build, two_vectors, LOGITS, lambda name: {0: "batch", 1: "memory" if name == "y" else "sequence"})


NETWORKS: dict[str, Case] = {
    # encoders
    "bert": text_model(encoder("Bert"), typed_text),
    "bert_mlm": language_model(encoder("Bert", "ForMaskedLM"), typed_text),
    "bert_qa": Case(encoder("Bert", "ForQuestionAnswering", num_labels=2), typed_text, ("start_logits", "end_logits"), of_text),
    "roberta": text_model(encoder("Roberta")),
    "distilbert": text_model(
        partial(
            transformer,
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            **{"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": HIDDEN},
            **{"vocab_size": VOCABULARY, "max_position_embeddings": 64, "num_labels": 5},
        )
    ),
    "albert": text_model(encoder("Albert", embedding_size=32, num_hidden_layers=3), typed_text),
    "deberta_v2": text_model(
        encoder(
            "DebertaV2",
            relative_attention=True,
            position_buckets=8,
            norm_rel_ebd="layer_norm",
            share_att_key=False,
            pos_att_type=["p2c", "c2p"],
            type_vocab_size=0,
            position_biased_input=False,
        )
    ),
    "electra": text_model(encoder("Electra", embedding_size=32), typed_text),
    "modernbert": text_model(encoder("ModernBert", global_attn_every_n_layers=2, local_attention=8)),
    "xlnet": text_model(
        partial(
            transformer,
            "XLNetForSequenceClassification",
            "XLNetConfig",
            **{"d_model": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "d_inner": HIDDEN, "vocab_size": VOCABULARY},
            num_labels=5,
        )
    ),
    "fnet": text_model(encoder("FNet"), lambda b, n: {"input_ids": tokens(b, n)}),
    # decoders
    "gpt2": language_model(partial(transformer, "GPT2LMHeadModel", "GPT2Config", **GPT2)),
    "gpt_neox": language_model(decoder("GPTNeoX", rotary_pct=0.25)),
    "gptj": language_model(partial(transformer, "GPTJForCausalLM", "GPTJConfig", **GPT2, rotary_dim=8)),
    "llama_gqa": language_model(decoder("Llama", num_key_value_heads=2)),
    "llama_mha": language_model(decoder("Llama", **LLAMA)),
    "llama_tied": language_model(decoder("Llama", num_key_value_heads=2, tie_word_embeddings=True)),
    "mistral": language_model(decoder("Mistral", num_key_value_heads=2, sliding_window=6)),
    "qwen2": language_model(decoder("Qwen2", num_key_value_heads=2)),
    "qwen3": language_model(decoder("Qwen3", num_key_value_heads=2, head_dim=24)),
    "phi": language_model(decoder("Phi", partial_rotary_factor=0.5, num_key_value_heads=HEADS)),
    "phi3": language_model(decoder("Phi3", num_key_value_heads=2)),
    "falcon": language_model(decoder("Falcon", multi_query=True, parallel_attn=True, alibi=False)),
    "gemma": language_model(decoder("Gemma", num_key_value_heads=1, head_dim=24)),
    "gemma2": language_model(decoder("Gemma2", num_key_value_heads=2, head_dim=24, sliding_window=6)),
    "stablelm": language_model(decoder("StableLm", num_key_value_heads=2, partial_rotary_factor=0.25)),
    "opt": language_model(decoder("OPT", ffn_dim=HIDDEN, word_embed_proj_dim=WIDTH), text),
    "bloom": language_model(
        partial(
            transformer,
            "BloomForCausalLM",
            "BloomConfig",
            **{"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCABULARY, "use_cache": False},
        ),
        text,
    ),
    "mixtral": language_model(
        decoder("Mixtral", experts_implementation="batched_mm", num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    ),
    "mamba": language_model(decoder("Mamba", state_size=8, expand=2, conv_kernel=4), lambda b, n: {"input_ids": tokens(b, n)}),
    "rwkv": language_model(decoder("Rwkv", **RWKV), lambda b, n: {"input_ids": tokens(b, n)}),
    "llama_gqa_cache": Case(
        lambda: WithCache(decoder("Llama", num_key_value_heads=2)(), LAYERS),
        past,
        ("logits", *(f"present.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value"))),
        of_cache,
    ),
    # encoders with decoders
    "t5": translator(partial(transformer, "T5ForConditionalGeneration", "T5Config", **T5)),
    "t5_gated": translator(partial(transformer, "T5ForConditionalGeneration", "T5Config", **T5, feed_forward_proj="gated-gelu")),
    "bart": translator(partial(transformer, "BartForConditionalGeneration", "BartConfig", **SEQ2SEQ, max_position_embeddings=64)),
    "marian": translator(partial(transformer, "MarianMTModel", "MarianConfig", **SEQ2SEQ, max_position_embeddings=64)),
    "whisper": Case(
        partial(
            transformer,
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            **SEQ2SEQ,
            num_mel_bins=16,
            max_source_positions=30,
            max_target_positions=40,
        ),
        spectrogram,
        LOGITS,
        lambda name: {0: "batch"} if name == "input_features" else of_text("decoder"),
    ),
    "wav2vec2": Case(encoder("Wav2Vec2", "ForCTC", **SPEECH), sound, LOGITS, lambda name: {0: "batch", 1: f"samples_{name}"}),
    # vision
    "vit": vision_model(image_classifier("ViT", **VISION)),
    "deit": vision_model(image_classifier("DeiT", **VISION)),
    "beit": vision_model(image_classifier("Beit", **VISION, use_relative_position_bias=True)),
    "swin": vision_model(image_classifier("Swin", **WINDOWS)),
    "swinv2": vision_model(image_classifier("Swinv2", **WINDOWS)),
    "convnextv2": vision_model(image_classifier("ConvNextV2", hidden_sizes=[32, 48, 64, 80], depths=[1, 1, 2, 1]), 64),
    "segformer": vision_model(
        partial(
            transformer,
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            **{"hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4], "depths": [1, 1, 1, 1]},
            **{"decoder_hidden_size": 48, "num_labels": 7},
        ),
        64,
    ),
    "clip": Case(
        clip,
        captions,
        ("logits_per_image", "logits_per_text"),
        lambda name: {
            "pixel_values": {0: "images"},
            "logits_per_image": {0: "images", 1: "batch"},
            "logits_per_text": {0: "batch", 1: "images"},
        }.get(name, of_text(name)),
    ),
    "dinov2": vision_model(image_classifier("Dinov2", **VISION, use_swiglu_ffn=True)),
    "perceiver": Case(
        partial(transformer, "PerceiverForMaskedLM", "PerceiverConfig", **LATENTS),
        lambda b, n: {"inputs": tokens(b, 32), "attention_mask": torch.ones(b, 32, dtype=torch.int64)},
        LOGITS,
        of_image,
    ),
    "timm_vit": timm_vision(
        "vit_tiny_patch16_224", 32, img_size=32, patch_size=8, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS
    ),
    "timm_deit_distilled": timm_vision(
        "deit_tiny_distilled_patch16_224", 32, img_size=32, patch_size=8, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS
    ),
    "timm_swin": timm_vision(
        "swin_tiny_patch4_window7_224",
        *(64,),
        **{"img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)},
    ),
    "timm_swinv2": timm_vision(
        "swinv2_tiny_window8_256",
        *(64,),
        **{"img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)},
    ),
    "timm_beit": timm_vision(
        "beit_base_patch16_224", 32, img_size=32, patch_size=8, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS
    ),
    "timm_mixer": timm_vision("mixer", 64, img_size=64, patch_size=16, embed_dim=WIDTH, num_blocks=LAYERS),
    "timm_mobilevit": timm_vision("mobilevit_xxs", 64),
    "timm_mobilevitv2": timm_vision("mobilevitv2_050", 64),
    "timm_convnextv2": timm_vision("convnextv2_atto", 64, depths=(1, 1, 2, 1), dims=(24, 32, 48, 64)),
    "timm_maxvit": timm_vision("maxvit_rmlp_pico_rw_256", 64, img_size=64, embed_dim=(32, 32, 64, 64), depths=(1, 1, 1, 1)),
    "timm_xcit": timm_vision("xcit_nano_12_p8_224", 64, img_size=64, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS),
    "timm_efficientformerv2": timm_vision("efficientformerv2_s0", 64, img_size=64),
    "timm_coat": timm_vision("coat_lite_tiny", 64, img_size=64, embed_dims=(32, 48, 64, 80), serial_depths=(1, 1, 1, 1)),
    "timm_eva02": timm_vision(
        "eva02_tiny_patch14_224", 32, img_size=32, patch_size=8, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS
    ),
    # PyTorch's own layers, and attention written by hand
    "mha_self": layer_model(lambda: Attend(cross=False)),
    "mha_weights": layer_model(lambda: Attend(cross=False, weights=True), ("logits", "weights")),
    "mha_cross": pair_model(lambda: Attend(cross=True)),
    "torch_encoder": layer_model(lambda: Stack(torch_layers("Encoder"))),
    "torch_encoder_prenorm": layer_model(lambda: Stack(torch_layers("Encoder", norm_first=True, activation="gelu"))),
    "torch_decoder": pair_model(lambda: Pair(torch_layers("Decoder"))),
    "torch_transformer": pair_model(lambda: Pair(torch_transformer())),
    "chunk_attention": layer_model(lambda: Stack(nn.Sequential(SelfAttention(), SelfAttention()))),
    "einsum_attention": layer_model(lambda: Stack(nn.Sequential(EinsumAttention(), EinsumAttention()))),
    "linear_attention": layer_model(lambda: Stack(nn.Sequential(LinearAttention(), LinearAttention()))),
}
# Attention as two products and a softmax in place of PyTorch's one function, which is what onnxruntime's optimiser looks for.
for _name in ("bert", "roberta", "distilbert", "gpt2", "llama_gqa", "qwen3", "bart", "whisper", "vit", "clip"):
    _case = NETWORKS[_name]
    NETWORKS[f"{_name}_eager"] = _case._replace(build=partial(_case.build, attn_implementation="eager"))
DEFAULTS = ("bert", "gpt2", "llama_gqa", "t5", "vit", "swin")
"""Exported with their default initialisation too."""

# --- randomised weights ---------------------------------------------------------------------------------------------


def randomise(model: nn.Module) -> None:
    """Make ``model`` look trained to an exporter: no two of its tensors are equal, and every layer counts.

    Matrices are drawn so that they keep the size of what they multiply; everything else (biases, gains, statistics,
    decays, scales, which often start out constant) gets noise around its default.
    """
    scaled = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, hf.pytorch_utils.Conv1D)
    matrices = {id(p) for m in model.modules() if isinstance(m, scaled) for p in m.parameters(recurse=False) if p.ndim > 1}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) in tables:
                parameter.normal_(0, 0.3)
            elif id(parameter) in matrices:
                parameter.normal_(0, (parameter.numel() / max(parameter.shape[:2])) ** -0.5)
            else:
                jitter(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                jitter(buffer)


def jitter(tensor: Tensor) -> None:
    tensor.mul_(torch.empty_like(tensor).uniform_(0.8, 1.2)).add_(torch.empty_like(tensor).uniform_(-0.1, 0.1))


# --- export ---------------------------------------------------------------------------------------------------------


class Call(nn.Module):
    """``model`` with its arguments by position and a tuple of chosen outputs."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.model, hf.PreTrainedModel):
            result = self.model(**dict(zip(self.inputs, args, strict=True)))
            return tuple(result[name] for name in self.outputs)
        result = self.model(*args)
        return result if isinstance(result, tuple) else (result,)


def build(case: Case, random: bool = True) -> Call:
    """The network of ``case`` in evaluation mode."""
    torch.manual_seed(SEED)
    model = case.build().float().eval()
    if random:
        randomise(model)
    return Call(model, tuple(case.inputs(BATCH, LENGTH)), case.outputs).eval()


def export(model: Call, case: Case, exporter: str, path: Path, opset: int | None = None) -> None:
    """Write ``path``; the sizes of the sample input are ``BATCH`` and ``LENGTH``."""
    args = tuple(case.inputs(BATCH, LENGTH).values())
    options: dict[str, Any] = {
        "opset_version": opset or OPSETS[exporter],
        "input_names": model.inputs,
        "output_names": model.outputs,
    }
    if exporter == "ts":
        options |= {"dynamo": False, "dynamic_axes": {name: case.axes(name) for name in model.inputs + model.outputs}}
    else:
        options |= {"dynamo": True, "external_data": False, "verbose": False}
        options["dynamic_shapes"] = (tuple(case.axes(name) for name in model.inputs),)
    # Else PyTorch calls kernels of its own for its attention layers, which the TorchScript exporter does not know.
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        torch.onnx.export(model.model if isinstance(model.model, torch.jit.ScriptModule) else model, args, path, **options)


def compare(model: Call, inputs: Inputs, path: Path) -> float:
    """Difference between onnxruntime's and PyTorch's outputs, relative to the largest of each; raises if too large."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    read = {given.name for given in session.get_inputs()}
    feed = {name: tensor.numpy() for name, tensor in inputs.items() if name in read}
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in model(*inputs.values())]
    worst = 0.0
    for name, a, e in zip(model.outputs, session.run(None, feed), expected, strict=True):
        if not np.isfinite(a).all():
            raise ValueError(f"{name} is not finite")
        if a.shape != e.shape:
            raise ValueError(f"{name} has the shape {a.shape} in place of {e.shape}")
        worst = max(worst, float(np.abs(a - e).max() / np.abs(e).max()))
    if worst > PARITY:
        raise ValueError(f"outputs differ from PyTorch's by {worst:.1e} of the largest")
    return worst


def run(case: Case, exporter: str, path: Path, random: bool = True) -> str:
    """Export and compare at two sizes, with a fixed sequence where a dynamic one fails; returns how that went."""
    model = build(case, random)
    of_batch = case._replace(axes=lambda name: {axis: size for axis, size in case.axes(name).items() if size == "batch"})
    try:
        export(model, case, exporter, path)
        return f"error {max(compare(model, case.inputs(*size), path) for size in ((BATCH, LENGTH), OTHER)):.1e}"
    except Exception as exc:
        if all(case.axes(name) == of_batch.axes(name) for name in model.inputs):
            raise
        failure = reason(exc)
    try:
        export(model, of_batch, exporter, path)
        error = max(compare(model, case.inputs(batch, LENGTH), path) for batch in (BATCH, OTHER[0]))
    except Exception as exc:
        raise ValueError(f"{failure}; with a fixed sequence {reason(exc)}") from None
    return f"error {error:.1e} sequence fixed ({failure})"


def reason(exc: BaseException) -> str:
    """Start of the message of the exception that the others came from."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}"


def run_apart(function: Callable[..., str], *args: Any) -> str:
    """What the function returns in a process of its own, or ``FAILED`` and why; the function may crash."""

    def work() -> None:
        try:
            result = function(*args)
        except Exception as exc:
            result = f"FAILED {reason(exc)}"
        sender.send(result)

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return "FAILED the process crashed"
    finally:
        process.join()


def export_all(networks: dict[str, Case], defaults: tuple[str, ...], description: str | None) -> int:
    """Command line of a script that exports ``networks``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of: {' '.join(networks)} (default: all)")
    parser.add_argument("--exporter", choices=OPSETS, help="default: both")
    args = parser.parse_args()
    if unknown := set(args.names) - set(networks):
        parser.error(f"unknown: {' '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    hf.logging.set_verbosity_error()

    failures: list[str] = []
    for name in args.names or networks:
        jobs = [
            (exporter, True, f"{name}.{exporter}.onnx")
            for exporter in networks[name].exporters
            if args.exporter in (None, exporter)
        ]
        if name in defaults and args.exporter != "dynamo":
            jobs.append(("ts", False, f"{name}.default.ts.onnx"))
        for exporter, random, file in jobs:
            path = args.out / file
            start = time.perf_counter()
            # The new exporter remembers the sizes that it saw a layer with.
            result = run_apart(run, networks[name], exporter, path, random)
            if result.startswith("FAILED"):
                path.unlink(missing_ok=True)
                failures.append(f"{file}: {result.removeprefix('FAILED ')}")
                print(f"FAILED {failures[-1]}", flush=True)
                continue
            seconds = time.perf_counter() - start
            print(f"{file:40} {path.stat().st_size / 2**10:7.0f} KiB {seconds:4.0f} s {result}", flush=True)
    if failures:
        print(f"\n{len(failures)} failed:", *failures, sep="\n  ")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(export_all(NETWORKS, DEFAULTS, __doc__))
