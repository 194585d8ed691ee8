"""Drawn people: unlimited faces whose mouths open exactly as asked."""

from .face import DrawnFace

__all__ = ["DrawnFace"]
