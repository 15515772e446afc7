"""Write the tiny Keras graphs beside this file, with random weights, as tf2onnx does.

    python tests/exported/make_keras.py [NAME ...]

Needs ``tensorflow tf2onnx onnxruntime`` (last run with tensorflow 2.21, keras 3.15, tf2onnx 1.17), best kept in another
environment than PyTorch. Each file is run in onnxruntime and its outputs compared with Keras's. ``make.py`` writes the
other graphs. Weights are the same at every run; the names and the order of constants that tf2onnx folds are not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import keras
import numpy as np
import onnxruntime as ort
import tensorflow as tf
import tf2onnx
from keras import KerasTensor, layers

FOLDER = Path(__file__).parent
SEED = 0
OPSET = 17
TOLERANCE = 1e-4


def conv_bn(x: KerasTensor, width: int, kernel: int = 3, strides: int = 1, activation: str | None = "relu") -> KerasTensor:
    x = layers.Conv2D(width, kernel, strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def cnn() -> keras.Model:
    """``Flatten`` in height, width, channel order; batch normalisation after the activation, so nothing folds it."""
    inputs = x = keras.Input((16, 16, 3))
    for width in (8, 12):
        x = layers.Conv2D(width, 3, activation="relu")(x)
        x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    x = layers.Dense(16)(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def resnet() -> keras.Model:
    """Identity and strided projection shortcuts; asymmetric "same" padding at stride 2."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 8)
    for width, strides in ((8, 1), (12, 2)):
        shortcut = x if strides == 1 else conv_bn(x, width, 1, strides, None)
        x = layers.Add()([conv_bn(conv_bn(x, width, 3, strides), width, activation=None), shortcut])
        x = layers.ReLU()(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def mobilenet() -> keras.Model:
    """Inverted residual with an explicit padding and squeeze-and-excitation, then a separable convolution."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 8, activation="relu6")
    y = conv_bn(x, 16, 1, activation="relu6")
    y = layers.ZeroPadding2D(1)(y)
    y = layers.DepthwiseConv2D(3, use_bias=False)(y)
    y = layers.ReLU(6)(layers.BatchNormalization()(y))
    gate = layers.Reshape((1, 1, 16))(layers.GlobalAveragePooling2D()(y))
    gate = layers.Conv2D(16, 1, activation="sigmoid")(layers.Conv2D(8, 1, activation="relu")(gate))
    x = layers.Add()([x, conv_bn(layers.Multiply()([y, gate]), 8, 1, activation=None)])
    x = layers.SeparableConv2D(12, 3, strides=2, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


GRAPHS: dict[str, Callable[[], keras.Model]] = {"keras_cnn": cnn, "keras_resnet": resnet, "keras_mobilenet": mobilenet}


def randomise(model: keras.Model, rng: np.random.Generator) -> None:
    """Draw biases and batch normalisation, which Keras initialises to constants."""
    ranges = {
        "gamma": (0.5, 1.5),
        "beta": (-0.2, 0.2),
        "bias": (-0.2, 0.2),
        "moving_mean": (-0.2, 0.2),
        "moving_variance": (0.5, 2.0),
    }
    for weight in model.weights:
        if limits := ranges.get(weight.name):
            weight.assign(rng.uniform(*limits, weight.shape))


def main(names: list[str]) -> None:
    for name in names or GRAPHS:
        keras.utils.set_random_seed(SEED)
        keras.backend.clear_session()
        rng = np.random.default_rng(SEED)
        model = GRAPHS[name]()
        randomise(model, rng)
        path = FOLDER / f"{name}.tf2onnx.onnx"
        function = tf.function(partial(model, training=False))
        signature = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="input")
        tf2onnx.convert.from_function(function, input_signature=[signature], opset=OPSET, output_path=str(path))

        x = rng.standard_normal((2, *model.input_shape[1:]), np.float32)
        (actual,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": x})
        error = float(np.abs(actual - model(x, training=False).numpy()).max())
        print(f"{path.name:40} {path.stat().st_size / 1024:6.1f} kB  error {error:.1e}")
        if not error < TOLERANCE:
            raise ValueError(f"{path.name}: outputs differ from Keras's by {error:.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
