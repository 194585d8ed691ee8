"""Drawn faces: any number of random faces whose mouths take exactly the requested state."""

from .face import DrawnFace

__all__ = ["DrawnFace"]
