"""Export small Keras sequence models with random weights to ONNX with tf2onnx (opset 17).

    python benchmarks/export_keras_recurrent.py OUT [NAME ...]

writes ``OUT/keras_<name>.tf2onnx.onnx`` for each network, with a dynamic batch and, where the network allows it, a dynamic
sequence (``keras_<name>.static.tf2onnx.onnx`` has a fixed one), and compares its outputs in onnxruntime with Keras's. The
networks that failed are listed at the end, and the exit status is then 1.

Needs ``tensorflow tf2onnx onnxruntime``; these and PyTorch are best kept in separate environments.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from export_keras import OPSET, SEED, compare
from keras import layers

LENGTH, FEATURES, WIDTH, VOCABULARY = 10, 12, 32, 100


def stack(*body: keras.Layer, shape: tuple[int | None, ...] = (None, FEATURES)) -> keras.Model:
    """The layers with a dense layer before and two after them."""
    model = keras.Sequential([keras.Input(shape), layers.Dense(24, activation="relu"), *body])
    model.add(layers.Dense(20, activation="relu"))
    model.add(layers.Dense(5))
    return model


def embedded() -> keras.Model:
    """Token numbers in, a bidirectional LSTM over their embeddings, class scores out."""
    ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 24)(ids)
    x = layers.Bidirectional(layers.LSTM(WIDTH))(x)
    return keras.Model(ids, layers.Dense(5)(layers.Dense(16, activation="relu")(x)))


def masked() -> keras.Model:
    """Padding is masked, so that the recurrent layer runs as a loop with a mask."""
    ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 24, mask_zero=True)(ids)
    return keras.Model(ids, layers.Dense(5)(layers.GRU(WIDTH)(x)))


def encoder_decoder() -> keras.Model:
    """The encoder's last state starts the decoder, which reads the same sequence."""
    inputs = keras.Input((None, FEATURES))
    _, *state = layers.LSTM(WIDTH, return_state=True)(layers.Dense(24)(inputs))
    x = layers.LSTM(WIDTH, return_sequences=True)(inputs, initial_state=state)
    return keras.Model(inputs, layers.Dense(5)(x))


def convolutional() -> keras.Model:
    """One-dimensional convolutions before a bidirectional GRU."""
    inputs = keras.Input((None, FEATURES))
    x = layers.Conv1D(24, 3, padding="same", activation="relu")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Bidirectional(layers.GRU(WIDTH, return_sequences=True), merge_mode="sum")(x)
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


def convolutional_lstm() -> keras.Model:
    inputs = keras.Input((4, 12, 12, 3))
    x = layers.ConvLSTM2D(12, 3, padding="same", return_sequences=True)(inputs)
    x = layers.ConvLSTM2D(8, 3, padding="same")(x)
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


def transformer(length: int | None, activation: str = "relu") -> keras.Model:
    """Two encoder layers after a position-wise embedding."""
    inputs = keras.Input((length, FEATURES))
    x = layers.Dense(48)(inputs)
    for _ in range(2):
        y = layers.MultiHeadAttention(num_heads=4, key_dim=10, value_dim=14)(x, x)
        x = layers.LayerNormalization()(x + y)
        y = layers.Dense(48)(layers.Dense(96, activation=activation)(x))
        x = layers.LayerNormalization()(x + y)
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


def grouped_attention() -> keras.Model:
    """Grouped-query attention: two query heads for each pair of keys and values."""
    inputs = keras.Input((LENGTH, FEATURES))
    x = layers.Dense(48)(inputs)
    x = x + layers.GroupQueryAttention(8, 4, 2)(x, x)
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


SEQUENCE = {"return_sequences": True}
FIXED = (LENGTH, FEATURES)
NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "lstm": lambda: stack(layers.LSTM(WIDTH)),
    "lstm.static": lambda: stack(layers.LSTM(WIDTH), shape=FIXED),
    "lstm_sequences": lambda: stack(layers.LSTM(WIDTH, **SEQUENCE)),
    "lstm_stacked": lambda: stack(layers.LSTM(WIDTH, **SEQUENCE), layers.LSTM(24)),
    "lstm_backwards": lambda: stack(layers.LSTM(WIDTH, go_backwards=True)),
    "lstm_unrolled": lambda: stack(layers.LSTM(WIDTH, unroll=True), shape=(5, FEATURES)),
    "lstm_no_bias": lambda: stack(layers.LSTM(WIDTH, use_bias=False)),
    "gru": lambda: stack(layers.GRU(WIDTH)),
    "gru.static": lambda: stack(layers.GRU(WIDTH), shape=FIXED),
    "gru_reset_before": lambda: stack(layers.GRU(WIDTH, reset_after=False)),
    "gru_stacked": lambda: stack(layers.GRU(WIDTH, **SEQUENCE), layers.GRU(24)),
    "rnn": lambda: stack(layers.SimpleRNN(WIDTH)),
    "rnn_relu": lambda: stack(layers.SimpleRNN(WIDTH, activation="relu")),
    "bilstm": lambda: stack(layers.Bidirectional(layers.LSTM(WIDTH, **SEQUENCE)), layers.GlobalMaxPooling1D()),
    "bilstm_stacked": lambda: stack(layers.Bidirectional(layers.LSTM(WIDTH, **SEQUENCE)), layers.Bidirectional(layers.LSTM(24))),
    "bigru": lambda: stack(layers.Bidirectional(layers.GRU(WIDTH))),
    "time_distributed": lambda: stack(layers.LSTM(WIDTH, **SEQUENCE), layers.TimeDistributed(layers.Dense(24)), shape=FIXED),
    "embedded": embedded,
    "masked": masked,
    "encoder_decoder": encoder_decoder,
    "crnn": convolutional,
    "conv_lstm": convolutional_lstm,
    "mha": lambda: transformer(None),
    "mha.static": lambda: transformer(LENGTH),
    "mha_swish": lambda: transformer(LENGTH, "swish"),
    "gqa": grouped_attention,
}


def randomise(model: keras.Model, rng: np.random.Generator) -> None:
    """Give every weight that starts out constant some noise: biases, gains, moments."""
    for weight in model.weights:
        if weight.ndim and "seed" not in weight.name and np.ptp(weight.numpy()) in (0, 1):
            noise = rng.uniform(0.8, 1.2, weight.shape), rng.uniform(-0.1, 0.1, weight.shape)
            weight.assign(weight.numpy() * noise[0] + noise[1])


def sample(model: keras.Model, rng: np.random.Generator, batch: int, length: int) -> np.ndarray:
    (given,) = model.inputs
    shape = (batch, *(length if size is None else size for size in given.shape[1:]))
    return rng.integers(1, VOCABULARY, shape, np.int32) if given.dtype == "int32" else rng.standard_normal(shape, np.float32)


def export(model: keras.Model, path: Path) -> None:
    (given,) = model.inputs
    signature = tf.TensorSpec((None, *given.shape[1:]), given.dtype, name="input")
    function = tf.function(partial(model, training=False))
    tf2onnx.convert.from_function(function, input_signature=[signature], opset=OPSET, output_path=str(path))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of: {' '.join(NETWORKS)} (default: all)")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NETWORKS):
        parser.error(f"unknown: {' '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)

    failures: list[str] = []
    for name in args.names or NETWORKS:
        path = args.out / f"keras_{name}.tf2onnx.onnx"
        start = time.perf_counter()
        rng = np.random.default_rng(SEED)
        keras.utils.set_random_seed(SEED)
        try:
            model = NETWORKS[name]()
            randomise(model, rng)
            export(model, path)
            error = max(compare(model, sample(model, rng, *size), path) for size in ((2, LENGTH), (3, LENGTH + 3)))
        except Exception as exc:
            path.unlink(missing_ok=True)
            reason = str(exc).strip().partition("\n")[0]
            failures.append(f"{path.name}: {type(exc).__name__}: {reason}")
            print(f"FAILED {failures[-1]}", flush=True)
            continue
        seconds = time.perf_counter() - start
        print(f"{path.name:40} {path.stat().st_size / 2**10:7.0f} KiB error {error:.1e} {seconds:4.0f} s", flush=True)
        keras.backend.clear_session()
    if failures:
        print(f"\n{len(failures)} failed:", *failures, sep="\n  ")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
