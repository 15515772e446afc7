"""Fewer bits for weights and activations: float16, or 8-bit integers by onnxruntime's quantiser."""

from onnxprune.quantize.quantized import Quantization, Quantized, quantize

__all__ = ["Quantization", "Quantized", "quantize"]
