"""Export small recurrent networks with random weights to ONNX, as today's exporters write them.

    python benchmarks/export_recurrent.py OUT [NAME ...] [--exporter ts|dynamo]

writes ``OUT/<name>.ts.onnx`` and ``OUT/<name>.dynamo.onnx``, with a dynamic batch and sequence, as
``export_transformers.py`` does and with its comparisons. Keras's are written by ``export_keras_recurrent.py``.

Needs ``torch torchvision timm transformers onnx onnxscript onnxruntime``.
"""

# A module's forward is described by its class.
# ruff: noqa: D102

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from export_transformers import Axes, Case, Inputs, export_all
from torch import Tensor, nn

FEATURES, WIDTH, CLASSES, VOCABULARY = 12, 32, 5, 100

# --- networks -------------------------------------------------------------------------------------------------------


class Sequence(nn.Module):
    """A recurrent layer between two linear layers, of which the last sees the last step or every step."""

    def __init__(self, kind: str, last: bool = False, outer: int = 24, **options: Any) -> None:
        super().__init__()
        self.last, self.batch_first = last, options.setdefault("batch_first", True)
        self.embed = nn.Linear(FEATURES, outer)
        self.rnn = getattr(nn, kind)(outer, WIDTH, **options)
        width = (options.get("proj_size") or WIDTH) * (2 if options.get("bidirectional") else 1)
        self.hidden, self.head = nn.Linear(width, 20), nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        if not self.batch_first:
            x = x.transpose(0, 1)
        x, _ = self.rnn(x)
        if not self.batch_first:
            x = x.transpose(0, 1)
        return self.head(F.relu(self.hidden(x[:, -1] if self.last else x)))


class FinalState(nn.Module):
    """The head sees the final states of both directions in place of the outputs."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(FEATURES, WIDTH, batch_first=True, **options)
        self.directions = 2 if options.get("bidirectional") else 1
        self.head = nn.Linear(self.directions * WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.rnn(x)
        state = state[0] if isinstance(state, tuple) else state
        return self.head(torch.cat(tuple(state[-self.directions :]), 1))


class Stateful(nn.Module):
    """The states before and after are inputs and outputs, as for a network run one chunk at a time."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, 24)
        self.rnn = getattr(nn, kind)(24, WIDTH, batch_first=True, **options)
        self.head = nn.Linear(WIDTH * (2 if options.get("bidirectional") else 1), CLASSES)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        x, after = self.rnn(F.relu(self.embed(x)), state if isinstance(self.rnn, nn.LSTM) else state[0])
        return self.head(x), *(after if isinstance(after, tuple) else (after,))


class LearnedState(nn.Module):
    """The initial state is a weight, repeated over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.memory = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.rnn, self.head = nn.LSTM(FEATURES, WIDTH, batch_first=True), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = (self.state.expand(1, x.shape[0], WIDTH), self.memory.expand(1, x.shape[0], WIDTH))
        return self.head(self.rnn(x, state)[0])


class Tower(nn.Module):
    """Recurrent layers of different widths with a residual connection, normalised between."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        layer = getattr(nn, kind)
        self.layers = nn.ModuleList(layer(a, WIDTH, batch_first=True) for a in (FEATURES, WIDTH, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            y = norm(layer(x)[0])
            x = y if i == 0 else x + y
        return self.head(x)


class Tagger(nn.Module):
    """Token numbers in, two bidirectional layers over their embeddings, a score for each token and tag out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 24)
        self.rnn = nn.LSTM(24, WIDTH, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(ids))[0])


class LanguageModel(nn.Module):
    """A recurrent language model whose last layer is its embedding transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(VOCABULARY, WIDTH), nn.GRU(WIDTH, WIDTH, 2, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.rnn(self.embed(ids))[0], self.embed.weight)


class Attentive(nn.Module):
    """Additive attention pools the outputs of a bidirectional GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(FEATURES, WIDTH, batch_first=True, bidirectional=True)
        self.score, self.vector, self.head = nn.Linear(2 * WIDTH, 24), nn.Linear(24, 1), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.rnn(x)
        weights = self.vector(torch.tanh(self.score(x))).softmax(1)
        return self.head((weights * x).sum(1))


class Unrolled(nn.Module):
    """A cell called for each of a fixed number of steps by a Python loop."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.cell, self.head = getattr(nn, cell)(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(4):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class EncoderDecoder(nn.Module):
    """A GRU's final state starts a cell that reads its own outputs for a fixed number of steps."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.encoder = nn.LSTM(FEATURES, WIDTH, batch_first=True) if "LSTM" in cell else nn.GRU(FEATURES, WIDTH, batch_first=True)
        self.cell, self.out = getattr(nn, cell)(CLASSES, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        state = tuple(part[0] for part in state) if isinstance(state, tuple) else state[0]
        outputs = [x.new_zeros(x.shape[0], CLASSES)]
        for _ in range(4):
            state = self.cell(outputs[-1], state)
            outputs.append(self.out(state[0] if isinstance(state, tuple) else state))
        return torch.stack(outputs[1:], 1)


class ScriptedLoop(nn.Module):
    """As many steps of a gated recurrence as the sequence is long."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.start, self.head = nn.Linear(FEATURES, 24), nn.Linear(24, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.gate, self.new = nn.Linear(24 + WIDTH, WIDTH), nn.Linear(24 + WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        state = torch.tanh(self.start(x[:, 0]))
        for step in range(x.shape[1]):
            both = torch.cat([x[:, step], state], 1)
            gate = torch.sigmoid(self.gate(both))
            state = gate * state + (1 - gate) * torch.tanh(self.new(both))
        return self.head(state)


class LoopOverLayers(nn.Module):
    """The same linear layer, applied as often as a number says; the layers around it stand outside of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        for _ in range(int(times)):
            x = torch.tanh(self.body(x))
        return self.head(x)


class Branches(nn.Module):
    """One of two layers, chosen by an input; both branches read and write the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.left, self.right = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        if bool(flag):  # noqa: SIM108 - a script cannot hold the choice of a module in an expression
            x = F.relu(self.left(x))
        else:
            x = torch.tanh(self.right(x))
        return self.head(x)


class Condition(Branches):
    """The same choice by ``torch.cond``."""

    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        return self.head(torch.cond(flag, lambda x: F.relu(self.left(x)), lambda x: torch.tanh(self.right(x)), (x,)))


class WhileLoop(nn.Module):
    """A linear layer applied again and again by ``torch.while_loop``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.while_loop import while_loop

        def more(step: Tensor, x: Tensor) -> Tensor:
            return step < 3

        def once(step: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            return step + 1, torch.tanh(self.body(x))

        return self.head(while_loop(more, once, (torch.tensor(0), F.relu(self.embed(x))))[1])


class Scan(nn.Module):
    """A plain recurrence written by hand with ``torch``'s ``scan``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.step, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.scan import scan

        def combine(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            state = torch.tanh(self.step(state) + x)
            return state, state.clone()

        x = self.embed(x)
        return self.head(scan(combine, x.new_zeros(x.shape[0], WIDTH), x, dim=1)[1])


class Crnn(nn.Module):
    """Convolutions over an image of text, whose columns a bidirectional LSTM reads."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d((2, 1))),
        )
        self.rnn = nn.LSTM(24 * 4, WIDTH, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(x).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.rnn(x)[0])


class SpeechFront(nn.Module):
    """One-dimensional convolutions before two layers of a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(nn.Conv1d(FEATURES, 24, 3, padding=1), nn.ReLU(), nn.Conv1d(24, 28, 3, padding=1), nn.BatchNorm1d(28), nn.ReLU())
        )
        self.rnn, self.head = nn.GRU(28, WIDTH, 2, batch_first=True), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.convs(x.transpose(1, 2)).transpose(1, 2))[0])


# --- table ----------------------------------------------------------------------------------------------------------


def vectors(batch: int, length: int) -> Inputs:
    return {"x": torch.randn(batch, length, FEATURES)}


def axes(name: str) -> Axes:
    if name.startswith("state"):
        return {1: "batch"}
    return {} if name in ("times", "flag") else {0: "batch", 1: "sequence"}


def only_batch(name: str) -> Axes:
    return {} if name in ("times", "flag") else {0: "batch"}


def head_axes(name: str) -> Axes:
    return axes(name) if name == "x" else {0: "batch"}


def every_step(kind: str, **options: Any) -> Case:
    return Case(lambda: Sequence(kind, **options), vectors, ("logits",), axes)


def final(build: Callable[[], nn.Module], inputs: Callable[[int, int], Inputs] = vectors) -> Case:
    return Case(build, inputs, ("logits",), head_axes)


def stateful(kind: str, states: int, **options: Any) -> Case:
    layers = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)

    def inputs(batch: int, length: int) -> Inputs:
        return vectors(batch, length) | {f"state{i}": torch.randn(layers, batch, WIDTH) for i in range(states)}

    return Case(lambda: Stateful(kind, **options), inputs, ("logits", *(f"state{i}_after" for i in range(states))), axes)


def tokens(batch: int, length: int) -> Inputs:
    return {"ids": torch.randint(0, VOCABULARY, (batch, length))}


def fixed(batch: int, length: int) -> Inputs:
    return {"x": torch.randn(batch, 4, FEATURES)}


def with_argument(name: str, value: Any, batch: int, length: int) -> Inputs:
    return vectors(batch, length) | {name: torch.tensor(value)}


def image(batch: int, length: int) -> Inputs:
    return {"x": torch.randn(batch, 1, 16, 20)}


def script(build: Callable[[], nn.Module], argument: str, value: Any) -> Case:
    return Case(build, partial(with_argument, argument, value), ("logits",), axes, ("ts",))


NETWORKS: dict[str, Case] = {
    **{
        f"{kind.lower()}{suffix}": every_step(kind, **options)
        for kind in ("LSTM", "GRU", "RNN")
        for suffix, options in {
            "": {},
            "2": {"num_layers": 2},
            "_bi": {"bidirectional": True},
            "2_bi": {"num_layers": 2, "bidirectional": True},
            "_last": {"last": True},
            "_time_first": {"batch_first": False},
            "_no_bias": {"bias": False},
        }.items()
    },
    "rnn_relu": every_step("RNN", nonlinearity="relu"),
    "lstm_projected": every_step("LSTM", proj_size=20),
    "lstm_state": stateful("LSTM", 2),
    "lstm2_state": stateful("LSTM", 2, num_layers=2),
    "lstm_bi_state": stateful("LSTM", 2, bidirectional=True),
    "gru_state": stateful("GRU", 1),
    "gru2_state": stateful("GRU", 1, num_layers=2),
    "rnn_state": stateful("RNN", 1),
    "lstm_learned_state": Case(LearnedState, vectors, ("logits",), axes),
    "lstm_final": final(lambda: FinalState("LSTM")),
    "lstm2_bi_final": final(lambda: FinalState("LSTM", num_layers=2, bidirectional=True)),
    "gru_final": final(lambda: FinalState("GRU", bidirectional=True)),
    "lstm_tower": Case(lambda: Tower("LSTM"), vectors, ("logits",), axes),
    "gru_tower": Case(lambda: Tower("GRU"), vectors, ("logits",), axes),
    "tagger": Case(Tagger, tokens, ("logits",), axes),
    "rnn_language_model": Case(LanguageModel, tokens, ("logits",), axes),
    "gru_attention": final(Attentive),
    **{
        f"unrolled_{cell.lower()}": Case(partial(Unrolled, cell), fixed, ("logits",), only_batch)
        for cell in ("LSTMCell", "GRUCell", "RNNCell")
    },
    "encoder_decoder_gru": final(lambda: EncoderDecoder("GRUCell")),
    "encoder_decoder_lstm": final(lambda: EncoderDecoder("LSTMCell")),
    # The new exporter takes no scripts, and the old one none of the operators that hold a part of the network.
    "scripted_loop": final(lambda: torch.jit.script(ScriptedLoop()))._replace(exporters=("ts",)),
    "scripted_times": script(lambda: torch.jit.script(LoopOverLayers()), "times", 3),
    "scripted_if": script(lambda: torch.jit.script(Branches()), "flag", True),
    "cond": Case(Condition, partial(with_argument, "flag", True), ("logits",), axes, ("dynamo",)),
    "while_loop": Case(WhileLoop, vectors, ("logits",), axes, ("dynamo",)),
    "scan": Case(Scan, vectors, ("logits",), axes, ("dynamo",)),
    "crnn": Case(Crnn, image, ("logits",), only_batch),
    "conv_gru": Case(SpeechFront, vectors, ("logits",), axes),
}


if __name__ == "__main__":
    sys.exit(export_all(NETWORKS, ("lstm", "gru2", "lstm_bi"), __doc__))
