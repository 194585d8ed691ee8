"""Batches that shrink when memory runs out: sizes, OOM recognition, recovery, pressure, history."""
