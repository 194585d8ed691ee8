"""The tasks that a run does in batches."""

from __future__ import annotations

from enum import Enum


class Task(str, Enum):
    """One kind of guarded call; the comment names its items. Raises ValueError for another name."""

    FACE_PROCESSING = "face_processing"  # frames searched for faces
    ALIGN = "align"  # faces warped to the crop
    AUDIO_ENCODE = "audio_encode"  # 30 s chunks of log-mel
    VAE_ENCODE = "vae_encode"  # faces
    UNET_INFERENCE = "unet_inference"  # windows
    VAE_DECODE = "vae_decode"  # faces
    PASTE = "paste"  # faces warped back into their frames
    FRAMES = "frames"  # frames waiting in host memory

    @classmethod
    def _missing_(cls, value: object) -> None:
        known = ", ".join(known.value for known in cls)
        raise ValueError(f"task is {str(value)!r}; expected one of {known}.")

    @property
    def stage(self) -> str:
        """Short name of the task in reports and messages."""
        return _STAGES.get(self, self.value)


_STAGES = {
    Task.FACE_PROCESSING: "detect",
    Task.AUDIO_ENCODE: "audio",
    Task.VAE_ENCODE: "encode",
    Task.UNET_INFERENCE: "denoise",
    Task.VAE_DECODE: "decode",
}

NETWORK_TASKS = (Task.AUDIO_ENCODE, Task.VAE_ENCODE, Task.UNET_INFERENCE, Task.VAE_DECODE)
VAE_TASKS = (Task.VAE_ENCODE, Task.VAE_DECODE)
