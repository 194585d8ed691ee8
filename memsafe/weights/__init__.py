"""Weights on the device: placement, offload, block streaming, quantisation."""
