"""The weights in checkpoints/demo: they load like the real ones, are small, and the mouth follows the audio."""

import numpy as np
import pytest
from diffusers import AutoencoderKL

from latentsync_memsafe.latentsync import LipSyncPipeline, SyncOptions, load_models
from latentsync_memsafe.latentsync.config import ModelConfig
from latentsync_memsafe.latentsync.faces import load_detector
from latentsync_memsafe.latentsync.models.motion import MotionModule
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.latentsync.models.whisper import AudioEncoder
from latentsync_memsafe.latentsync.weights.checkpoints import PACKAGE
from latentsync_memsafe.latentsync.weights.loading import ModelBundle
from latentsync_memsafe.memsafe import Runtime

from support.portrait import moving_portrait

FOLDER = PACKAGE / "checkpoints" / "demo"
LIMIT = 40 * 10**6  # bytes


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    class NoFaces:
        def detect(self, frames: np.ndarray) -> list:
            return [[] for _ in frames]

    return load_models("demo", detector=NoFaces())


def test_the_model_is_small_and_complete() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {path.name for path in files} == {
        "README.md",
        "audio_encoder.safetensors",
        "config.json",
        "config.yaml",
        "diffusion_pytorch_model.safetensors",
        "unet.safetensors",
    }


def test_the_networks_have_the_classes_of_the_real_model(bundle: ModelBundle) -> None:
    assert isinstance(bundle.unet, UNet3DConditionModel)
    assert isinstance(bundle.vae, AutoencoderKL)
    assert isinstance(bundle.audio_encoder, AudioEncoder)
    modules = dict(bundle.unet.named_modules())
    assert any(isinstance(module, MotionModule) for module in modules.values())
    assert any(name.endswith("attn2") for name in modules)
    assert bundle.config == ModelConfig.published("demo")
    assert bundle.config.resolution >= 128
    # Everything was trained: the output layer of an untrained motion module is zero.
    motion = [m for m in modules.values() if isinstance(m, MotionModule)]
    assert all(float(m.temporal_transformer.proj_out.weight.abs().max()) > 0 for m in motion)
    assert bundle.vae.config.scaling_factor != 1.0


@pytest.mark.usefixtures("faces")
def test_a_vowel_opens_the_mouth_and_silence_closes_it(bundle: ModelBundle) -> None:
    detector = load_detector()
    bundle = ModelBundle(bundle.unet, bundle.vae, bundle.audio_encoder, detector, bundle.config)
    times = np.arange(round(16 / 25 * 16_000)) / 16_000
    # "ah" of an adult (formants of Peterson and Barney 1952): harmonics weighted by three resonances.
    pitch = 120
    harmonics = np.arange(1, 60) * pitch
    gains = sum(a / (1 + ((harmonics - f) / 90) ** 2) for f, a in ((730, 1.0), (1090, 0.5), (2440, 0.15)))
    vowel = sum(g * np.sin(2 * np.pi * h * times) for g, h in zip(gains, harmonics, strict=True))
    vowel = (0.3 * vowel / np.abs(vowel).max()).astype(np.float32)
    source = np.stack(moving_portrait((256, 256)).read(0, 16))
    options = SyncOptions(steps=6)
    openings = []
    for audio in (vowel, np.zeros_like(vowel)):
        pipe = LipSyncPipeline(bundle, Runtime.auto("cpu"))
        frames = np.concatenate(list(pipe.stream(source, (audio, 16_000), options)))
        assert frames.shape == source.shape
        change = np.abs(frames.astype(int) - source).mean(-1)
        assert (change == 0).mean() > 0.6  # most of the frame does not change
        assert change[change > 0].mean() < 30  # and the generated face resembles the original
        openings.append(np.mean([found[0].mouth_opening for found in detector.landmarks(frames)]))
    assert openings[0] > openings[1] + 0.02
