"""A tiny model and a clip to train it on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync.config import ModelConfig
from latentsync_memsafe.latentsync.models.whisper import AudioEncoder
from latentsync_memsafe.latentsync.training.clips import AlignedClip

from support.portrait import tones

SIZE, FRAMES = 64, 4


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    tiny = ModelConfig.published("tiny")
    vae = {**tiny.vae, "sample_size": SIZE, "scaling_factor": 1.0}
    return ModelConfig(
        "small", SIZE, FRAMES, tiny.unet, vae, tiny.audio_encoder, {"prediction_type": "v_prediction"}
    )


@pytest.fixture(scope="session")
def networks(config: ModelConfig) -> SimpleNamespace:
    """Untrained `vae` and `encoder`."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(**config.vae).eval()
    return SimpleNamespace(vae=vae, encoder=AudioEncoder.from_dims(config.audio_encoder).eval())


@pytest.fixture(scope="session")
def clip() -> AlignedClip:
    """A clip of 100 frames that get brighter from the first to the last, with audio."""
    texture = np.random.default_rng(0).integers(0, 100, (SIZE, SIZE, 3))
    faces = np.stack([texture + i for i in range(100)]).astype(np.uint8)
    points = np.zeros((100, 468, 2), np.float32)
    return AlignedClip("clip", faces, points, tones(4.0))
