"""Device probing: CUDA, ROCm, MPS and CPU, container limits, capabilities by GPU generation."""
