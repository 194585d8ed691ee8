"""The tasks that a run does in batches."""

from __future__ import annotations

from enum import Enum


class Task(str, Enum):
    """One kind of guarded call; the comment names its items."""

    FACE_PROCESSING = "face_processing"  # frames searched for faces
    ALIGN = "align"  # faces warped to the crop
    AUDIO_ENCODE = "audio_encode"  # 30 s chunks of log-mel
    VAE_ENCODE = "vae_encode"  # faces
    UNET_INFERENCE = "unet_inference"  # windows
    VAE_DECODE = "vae_decode"  # faces
    PASTE = "paste"  # faces warped back into their frames
    FRAMES = "frames"  # frames waiting in host memory

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


def as_task(task: Task | str) -> Task:
    """Return the task with this name; raises ValueError for an unknown one."""
    try:
        return Task(task)
    except ValueError:
        known = ", ".join(known.value for known in Task)
        raise ValueError(f"task is {str(task)!r}; expected one of {known}.") from None
