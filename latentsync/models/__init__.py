"""The networks, as mathematics only: device and dtype are those of the inputs; memory policy comes from outside."""
