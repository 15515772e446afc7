"""Write the tiny recurrent networks and loops beside this file, with random weights, as PyTorch's exporters do.

    python tests/exported/make_recurrent.py [NAME ...]

Needs what ``make_attention.py`` needs, which explains the flavours. Keras's are written by ``make_keras_recurrent.py``.
"""

# ruff: noqa: I001 - make_attention makes the benchmarks importable

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from make_attention import head_axes, main, of_text, vectors
from export_transformers import Case, Inputs

FEATURES, WIDTH, CLASSES = 12, 10, 5


class Sequence(nn.Module):
    """A linear layer, recurrent layers and a linear layer at every step."""

    def __init__(self, kind: str, layers: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, 8)
        self.rnn = getattr(nn, kind)(8, WIDTH, layers, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(WIDTH * (2 if bidirectional else 1), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(F.relu(self.embed(x)))[0])


class Stateful(nn.Module):
    """States before and after as inputs and outputs; the head sees the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Linear(FEATURES, 8), nn.LSTM(8, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
        x, state = self.rnn(F.relu(self.embed(x)), (hidden, cell))
        return self.head(x[:, -1]), *state


class FinalState(nn.Module):
    """The head sees the final states of both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(FEATURES, WIDTH, batch_first=True, bidirectional=True), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = self.rnn(x)[1]
        return self.head(torch.cat((state[0], state[1]), 1))


class Tower(nn.Module):
    """A residual connection ties the states of two recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn0, self.rnn1 = (nn.GRU(width, WIDTH, batch_first=True) for width in (FEATURES, WIDTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.rnn0(x)
        return self.head(self.norm(x + self.rnn1(x)[0]))


class Unrolled(nn.Module):
    """A cell called for each of three steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(3):
            state = self.cell(x[:, step], state)
        return self.head(state[0])


class Loop(nn.Module):
    """A gated recurrence over all steps of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.start, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.gate, self.new = nn.Linear(8 + WIDTH, WIDTH), nn.Linear(8 + WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        state = torch.tanh(self.start(x[:, 0]))
        for step in range(x.shape[1]):
            both = torch.cat([x[:, step], state], 1)
            gate = torch.sigmoid(self.gate(both))
            state = gate * state + (1 - gate) * torch.tanh(self.new(both))
        return self.head(state)


class If(nn.Module):
    """One of two layers, chosen by an input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(8, CLASSES)
        self.left, self.right = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        if bool(flag):  # noqa: SIM108 - a script cannot hold the choice of a module in an expression
            x = F.relu(self.left(x))
        else:
            x = torch.tanh(self.right(x))
        return self.head(x)


class Condition(If):
    """The same choice by ``torch.cond``."""

    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        return self.head(torch.cond(flag, lambda x: F.relu(self.left(x)), lambda x: torch.tanh(self.right(x)), (x,)))


def states(batch: int, length: int) -> Inputs:
    return vectors(batch, length) | {name: torch.randn(1, batch, WIDTH) for name in ("hidden", "cell")}


def flagged(batch: int, length: int) -> Inputs:
    return vectors(batch, length) | {"flag": torch.tensor(length % 2 == 0)}


def three(batch: int, length: int) -> Inputs:
    return vectors(batch, 3)


def state_axes(name: str) -> dict[int, str]:
    return {1: "batch"} if name.startswith(("hidden", "cell")) else head_axes(name)


def flag_axes(name: str) -> dict[int, str]:
    return {} if name == "flag" else of_text(name)


def of_batch(name: str) -> dict[int, str]:
    return {0: "batch"}


def sequence(*args: object) -> Case:
    return Case(partial(Sequence, *args), vectors, ("logits",), of_text)


def script(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: torch.jit.script(build())


GRAPHS: dict[str, tuple[Case, tuple[str, ...]]] = {
    "lstm": (sequence("LSTM"), ("ts", "dynamo")),
    "lstm2_bi": (sequence("LSTM", 2, True), ("ts",)),
    "gru": (sequence("GRU"), ("ts", "dynamo")),
    "rnn": (sequence("RNN"), ("ts",)),
    "lstm_state": (Case(Stateful, states, ("logits", "hidden_after", "cell_after"), state_axes), ("ts",)),
    "gru_bi_final": (Case(FinalState, vectors, ("logits",), head_axes), ("ts",)),
    "gru_tower": (Case(Tower, vectors, ("logits",), of_text), ("ts",)),
    "unrolled_lstm": (Case(Unrolled, three, ("logits",), of_batch), ("ts", "dynamo")),
    # The new exporter takes no scripts, and the old one not ``torch.cond``.
    "loop": (Case(script(Loop), vectors, ("logits",), head_axes), ("ts",)),
    "if": (Case(script(If), flagged, ("logits",), flag_axes), ("ts",)),
    "cond": (Case(Condition, flagged, ("logits",), flag_axes), ("dynamo",)),
}


if __name__ == "__main__":
    main(GRAPHS, sys.argv[1:])
