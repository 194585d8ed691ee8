"""Weights: placement on a device, offload, block streaming, precision and quantisation."""
