"""Least squares on what a model computes: linear layers as rows times matrices, fitted anew after a cut."""

from onnxprune.leastsquares.linear import Linear, linear_layers
from onnxprune.leastsquares.refit import Refit
from onnxprune.leastsquares.ridge import ALPHAS, Eliminated, Solver, System, eliminate, gram
from onnxprune.leastsquares.tail import Tail, tail_of
from onnxprune.leastsquares.walk import Walk

__all__ = [
    "ALPHAS",
    "Eliminated",
    "Linear",
    "Refit",
    "Solver",
    "System",
    "Tail",
    "Walk",
    "eliminate",
    "gram",
    "linear_layers",
    "tail_of",
]
