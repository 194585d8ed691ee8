"""The networks, as mathematics only: device and dtype are those of the inputs, memory policy is applied from outside."""
