"""Positions of the visible teeth, used by both mouth painters."""

from __future__ import annotations

import numpy as np

_WIDTHS = (8.5, 6.5, 7.5, 7.0, 7.0, 10.0)  # mm, of the upper teeth from the midline; means of dental anatomy
_ARCH_RADIUS = 30.0  # mm, of the dental arch, whose curvature narrows the outer teeth as seen from the front
_EYE_CORNER_DISTANCE = 90.0  # mm, between the outer eye corners

# Visible edges of one half of the upper teeth from the midline, in distances of the outer eye corners.
TOOTH_EDGES = _ARCH_RADIUS * np.sin(np.cumsum([0.0, *_WIDTHS]) / _ARCH_RADIUS) / _EYE_CORNER_DISTANCE
LOWER_SCALE = 0.67  # width of the lower teeth relative to the upper ones
