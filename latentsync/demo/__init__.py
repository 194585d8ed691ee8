"""What the demo runs on: a photo under a moving camera, and a spoken sentence."""

from .camera import MovingPhoto
from .material import astronaut, largest_face, read_photo, spoken_sentence

__all__ = ["MovingPhoto", "astronaut", "largest_face", "read_photo", "spoken_sentence"]
