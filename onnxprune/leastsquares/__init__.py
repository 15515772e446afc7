"""Least squares on what a model computes: linear layers as rows times matrices, fitted anew after a cut."""

from onnxprune.leastsquares.changes import Changes
from onnxprune.leastsquares.layers import linear_layers, visible
from onnxprune.leastsquares.linear import Linear, Product
from onnxprune.leastsquares.recurrent import with_states
from onnxprune.leastsquares.refit import Refit
from onnxprune.leastsquares.ridge import ALPHAS, Eliminated, Solver, System, eliminate, gram
from onnxprune.leastsquares.stored import Stored
from onnxprune.leastsquares.tail import Tail, normalisation, tail_of
from onnxprune.leastsquares.walk import Walk

__all__ = [
    "ALPHAS",
    "Changes",
    "Eliminated",
    "Linear",
    "Product",
    "Refit",
    "Solver",
    "Stored",
    "System",
    "Tail",
    "Walk",
    "eliminate",
    "gram",
    "linear_layers",
    "normalisation",
    "tail_of",
    "visible",
    "with_states",
]
