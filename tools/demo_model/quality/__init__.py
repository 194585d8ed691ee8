"""Measures lip sync and image quality of the demo model against fixed goals."""
