"""Write the tiny Keras sequence models beside this file, with random weights, as tf2onnx does.

    python tests/exported/make_keras_recurrent.py [NAME ...]

Needs what ``make_keras.py`` needs, and is to it what ``make_recurrent.py`` is to ``make.py``. Each file's outputs in
onnxruntime are compared with Keras's at two sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
import onnxruntime as ort
import tensorflow as tf
import tf2onnx
from keras import layers
from make_keras import FOLDER, OPSET, SEED, TOLERANCE, randomise

FEATURES, WIDTH = 12, 10


def around(*body: keras.Layer) -> keras.Model:
    """The layers between two dense layers."""
    return keras.Sequential([keras.Input((None, FEATURES)), layers.Dense(8, "relu"), *body, layers.Dense(5)])


def attention() -> keras.Model:
    """An encoder layer, whose attention has keys and values of different widths."""
    inputs = keras.Input((6, FEATURES))
    x = layers.Dense(16)(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(num_heads=2, key_dim=6, value_dim=7)(x, x))
    x = layers.LayerNormalization()(x + layers.Dense(16)(layers.Dense(20, "relu")(x)))
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


GRAPHS: dict[str, Callable[[], keras.Model]] = {
    # With its default ``reset_after=True`` a loop, without a ``GRU`` operator.
    "keras_gru": lambda: around(layers.GRU(WIDTH)),
    "keras_lstm": lambda: around(layers.LSTM(WIDTH, return_sequences=True), layers.Bidirectional(layers.LSTM(6))),
    "keras_attention": attention,
}


def main(names: list[str]) -> None:
    for name in names or GRAPHS:
        keras.utils.set_random_seed(SEED)
        keras.backend.clear_session()
        rng = np.random.default_rng(SEED)
        model = GRAPHS[name]()
        randomise(model, rng)
        path = FOLDER / f"{name}.tf2onnx.onnx"
        function = tf.function(partial(model, training=False))
        (_, length, features) = model.input_shape
        signature = tf.TensorSpec((None, length, features), tf.float32, name="input")
        tf2onnx.convert.from_function(function, input_signature=[signature], opset=OPSET, output_path=str(path))

        session, error = ort.InferenceSession(path, providers=["CPUExecutionProvider"]), 0.0
        for batch, other in ((2, 6), (3, 9)):
            x = rng.standard_normal((batch, length or other, features), np.float32)
            (actual,) = session.run(None, {"input": x})
            error = max(error, float(np.abs(actual - model(x, training=False).numpy()).max()))
        print(f"{path.name:40} {path.stat().st_size / 1024:6.1f} kB  error {error:.1e}")
        if not error < TOLERANCE:
            raise ValueError(f"{path.name}: outputs differ from Keras's by {error:.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
