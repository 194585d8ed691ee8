"""FeatureCache: the hidden state that some denoising steps take over from the steps before them.

Between neighbouring steps the inner layers of a UNet change little, so a step may compute the outermost layers only
(DeepCache, Ma et al. 2023, arXiv:2312.00858).
"""

from __future__ import annotations

from torch import Tensor


class FeatureCache:
    """The input of the decoder's last layer, kept at full steps and estimated at the others.

    The estimate is linear in the step's position through the last two full steps; after the first one it is
    the kept state itself.
    """

    def __init__(self) -> None:
        self.full = True  # whether the current step computes the whole network
        self._position = 0.0
        self._kept: tuple[float, Tensor] | None = None
        self._slope: Tensor | None = None

    def begin_step(self, position: float, full: bool) -> None:
        """Start a step. position: increases from step to step. full: the first step is full in any case."""
        self._position, self.full = position, full or self._kept is None

    def exchange(self, hidden: Tensor) -> Tensor:
        """Return the input of the last layer: `hidden`, which is kept, in a full step; else the estimate."""
        if not self.full:
            return self._estimate()
        if self._kept is not None:
            position, before = self._kept
            self._slope = (hidden - before) / (self._position - position)
        self._kept = self._position, hidden
        return hidden

    def last(self, count: int) -> FeatureCache:
        """Return a cache of the last `count` items of the batch."""
        part = FeatureCache()
        if self._kept is not None:
            position, hidden = self._kept
            part._kept = position, hidden[-count:]
        part._slope = None if self._slope is None else self._slope[-count:]
        return part

    def _estimate(self) -> Tensor:
        assert self._kept is not None, "the first step is full"
        position, hidden = self._kept
        return hidden if self._slope is None else hidden + (self._position - position) * self._slope
