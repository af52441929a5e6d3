"""Distributions and kernels, as functions of arrays."""
