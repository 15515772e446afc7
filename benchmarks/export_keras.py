"""Export Keras networks with random weights to ONNX with tf2onnx (opset 17).

    python benchmarks/export_keras.py OUT [NAME ...]

writes ``OUT/keras_<name>.tf2onnx.onnx`` for each network, and compares its outputs in onnxruntime with Keras's. The
networks that failed are listed at the end, and the exit status is then 1.

Needs ``tensorflow tf2onnx onnxruntime``; these and PyTorch are best kept in separate environments. The export goes
through ``from_function``, as tf2onnx's ``from_keras`` does not support Keras 3.
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
import onnxruntime as ort
import tensorflow as tf
import tf2onnx
from keras import applications, layers

SEED = 0
OPSET = 17
PARITY = 1e-3
"""Largest accepted difference from Keras's outputs, relative to the largest of them."""


def cnn() -> keras.Model:
    """Plain convolutional network whose ``Flatten`` makes the channels the fastest axis of a dense layer's rows."""
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for width in (32, 64, 128):
        model.add(layers.Conv2D(width, 3, padding="same"))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(128))
    model.add(layers.BatchNormalization())
    model.add(layers.ReLU())
    model.add(layers.Dense(10))
    model.add(layers.Softmax())
    return model


def mlp() -> keras.Model:
    """Multi-layer perceptron with batch normalisation before its activations."""
    model = keras.Sequential([keras.Input((64,))])
    for _ in range(3):
        model.add(layers.Dense(256))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
    model.add(layers.Dense(10))
    model.add(layers.Softmax())
    return model


LOGITS = {"weights": None, "classifier_activation": None}
NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "mobilenet_v2": partial(applications.MobileNetV2, **LOGITS),
    "resnet50": partial(applications.ResNet50, **LOGITS),
    "efficientnet_b0": partial(applications.EfficientNetB0, **LOGITS),
    "densenet121": partial(applications.DenseNet121, **LOGITS),
    "xception": partial(applications.Xception, **LOGITS),
    # tf2onnx takes forty times a model's size in memory; half the usual input cuts the first dense layer to 75 MB.
    "vgg16": partial(applications.VGG16, input_shape=(112, 112, 3), **LOGITS),
    "nasnet_mobile": partial(applications.NASNetMobile, **LOGITS),
    "cnn": cnn,
    "mlp": mlp,
}


def randomise(model: keras.Model, rng: np.random.Generator) -> np.ndarray:
    """Make ``model`` look trained: no two of its tensors are equal, and activations stay near unit size.

    Returns the random batch by which the layers with a kernel were scaled.
    """
    ranges = {
        "gamma": (0.5, 1.5),
        "beta": (-0.1, 0.1),
        "bias": (-0.1, 0.1),
        "moving_mean": (-0.2, 0.2),
        "moving_variance": (0.5, 2.0),
    }

    def scale_to_unit_output(layer: keras.Layer, call: Callable[..., tf.Tensor], x: tf.Tensor, **options: bool) -> tf.Tensor:
        scale = 1 / tf.math.reduce_std(call(x, **options))
        for weight in layer.weights:
            if weight.name != "depthwise_kernel":
                weight.assign(weight * scale)
        return call(x, **options)

    scaled = []
    for layer in model.layers:
        for weight in layer.weights:
            if limits := ranges.get(weight.name):
                weight.assign(rng.uniform(*limits, weight.shape))
        if getattr(layer, "activation", None) in (keras.activations.linear, keras.activations.relu) and layer.weights:
            layer.call = partial(scale_to_unit_output, layer, layer.call)
            scaled.append(layer)
    x = rng.standard_normal((2, *model.input_shape[1:]), np.float32)
    model(x, training=False)
    for layer in scaled:
        del layer.call
    return x


def export(model: keras.Model, path: Path) -> None:
    for layer in model.layers:
        if isinstance(layer, layers.Normalization):
            # tf.function captures eager tensors, and tf2onnx makes inputs of them; NumPy arrays become constants.
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)
    signature = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="input")
    function = tf.function(partial(model, training=False))
    tf2onnx.convert.from_function(function, input_signature=[signature], opset=OPSET, output_path=str(path))


def compare(model: keras.Model, x: np.ndarray, path: Path) -> float:
    """Difference between onnxruntime's and Keras's outputs, relative to the largest output; raises if too large."""
    (actual,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": x})
    expected = model(x, training=False).numpy()
    if not np.isfinite(actual).all():
        raise ValueError("outputs are not finite")
    error = float(np.abs(actual - expected).max() / np.abs(expected).max())
    if error > PARITY:
        raise ValueError(f"outputs differ from Keras's by {error:.1e} of the largest")
    return error


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
            x = randomise(model, rng)
            export(model, path)
            error = compare(model, x, path)
        except Exception as exc:
            path.unlink(missing_ok=True)
            reason = str(exc).strip().partition("\n")[0]
            failures.append(f"{path.name}: {type(exc).__name__}: {reason}")
            print(f"FAILED {failures[-1]}", flush=True)
            continue
        seconds = time.perf_counter() - start
        print(f"{path.name:40} {path.stat().st_size / 2**20:7.1f} MiB error {error:.1e} {seconds:5.0f} s", flush=True)
        keras.backend.clear_session()
    if failures:
        print(f"\n{len(failures)} failed:", *failures, sep="\n  ")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
