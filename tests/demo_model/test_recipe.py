"""The recipe of the demo model: every stage runs, an interrupted run resumes, the result loads."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync.config import ModelConfig
from latentsync_memsafe.latentsync.training import train_unet
from latentsync_memsafe.latentsync.training.clips import AlignedClip
from latentsync_memsafe.latentsync.training.dataset import to_tensor
from latentsync_memsafe.latentsync.training.loop import LoopOptions
from latentsync_memsafe.latentsync.video import VideoWriter
from latentsync_memsafe.latentsync.weights.loading import load_models
from latentsync_memsafe.tools.demo_model.__main__ import main
from latentsync_memsafe.tools.demo_model.drawn import DrawnFace
from latentsync_memsafe.tools.demo_model.images import ImageDataset, read_whole_frames
from latentsync_memsafe.tools.demo_model.pairs import DrawnPairs
from latentsync_memsafe.tools.demo_model.recipe import mix_pairs
from latentsync_memsafe.tools.demo_model.speech import AudioTracks, SpeechClip, random_silence, synthesis
from latentsync_memsafe.tools.demo_model.train_audio_encoder import train_audio_encoder
from latentsync_memsafe.tools.demo_model.train_vae import train_vae

from support.portrait import portrait_frames, write_tones

SIZE, FRAMES = 64, 4
EVERY_STEP = {"device": torch.device("cpu"), "check": lambda: None}


@pytest.fixture(scope="module")
def clip() -> AlignedClip:
    """Eight drawn faces without audio."""
    face = DrawnFace.random(np.random.default_rng(3))
    faces = np.stack([face.render(opening, 0.6, SIZE) for opening in np.linspace(0, 0.3, 8)])
    return AlignedClip("drawn", faces, np.zeros((8, 468, 2), np.float32), np.zeros(0, np.float32))


@pytest.fixture(scope="module")
def tracks() -> list[SpeechClip]:
    rng = np.random.default_rng(5)
    return [synthesis.speak("my map was open", "formant", rng), random_silence(rng, 1.0)]


@pytest.mark.slow
def test_the_autoencoder_learns_and_its_latents_are_normalised(clip: AlignedClip, tmp_path: Path) -> None:
    losses: list[float] = []
    options = LoopOptions("vae", 20, 1e-3, report_every=5, average=0.0)
    config = {**ModelConfig.published("tiny").vae, "sample_size": SIZE, "scaling_factor": 1.0}
    vae = train_vae(
        config,
        [clip],
        ImageDataset([clip], [], []),
        options,
        tmp_path,
        batch=2,
        report=lambda *a: losses.append(a[3]["loss"]),
        **EVERY_STEP,
    )
    assert losses[-1] < 0.8 * losses[0]
    with torch.inference_mode():
        means = vae.encode(to_tensor(clip.faces)).latent_dist.mean
    latents = (means - vae.config.shift_factor) * vae.config.scaling_factor
    assert float(latents.mean()) == pytest.approx(0, abs=1e-4)
    assert float(latents.std()) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_the_audio_encoder_learns_the_mouth_state(tracks: list[SpeechClip], tmp_path: Path) -> None:
    losses: list[float] = []
    options = LoopOptions("audio_encoder", 30, 2e-3, report_every=10, average=0.0)
    train_audio_encoder(
        ModelConfig.published("tiny").audio_encoder,
        AudioTracks(tracks, []),
        options,
        tmp_path,
        batch=1,
        report=lambda *a: losses.append(a[3]["loss"]),
        **EVERY_STEP,
    )
    assert losses[-1] < 0.8 * losses[0]


def test_images_are_crops_of_faces_frames_and_photographs(clip: AlignedClip) -> None:
    frame, photograph = (np.full((200, 300, 3), level, np.uint8) for level in (0, 255))
    images = ImageDataset([clip], [frame], [photograph]).draw(np.random.default_rng(0), 40)
    assert images.shape == (40, SIZE, SIZE, 3) and images.dtype == np.uint8
    flat = [image for image in images if image.std() == 0]
    assert {int(image.mean()) for image in flat} >= {0, 255}
    assert 10 < sum(image.std() > 20 for image in images) < 35


def test_whole_frames_are_read_from_every_readable_file(data: Path, tmp_path: Path) -> None:
    (data / "z.mp4").write_text("no video")
    frames = read_whole_frames(data)
    assert [frame.shape[:2] for frame in frames] == [(256, 256)] * 27 + [(512, 512)]


def test_tracks_shorter_than_a_window_are_not_drawn(tracks: list[SpeechClip]) -> None:
    short = SpeechClip(np.zeros(640 * (FRAMES - 1), np.float32), np.zeros((FRAMES - 1, 2), np.float32))
    pairs = DrawnPairs([short, *tracks], FRAMES, SIZE)
    drawn = [pairs.draw(np.random.default_rng(seed)) for seed in range(6)]
    assert {pair.track for pair in drawn} == {1, 2}
    assert all(pair.target.shape == (FRAMES, SIZE, SIZE, 3) for pair in drawn)


def test_without_a_usable_clip_faces_are_reposed_and_drawn(
    clip: AlignedClip, tracks: list[SpeechClip], caplog: pytest.LogCaptureFixture
) -> None:
    mix_pairs([clip], tracks, FRAMES)
    assert "None of the 1 clips has audio" in caplog.text and "reposed and drawn faces only" in caplog.text


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a clip of 81 frames with audio, and a photo."""
    folder = tmp_path / "clips"
    folder.mkdir()
    audio = write_tones(tmp_path / "tones.wav", 81 / 25)
    with VideoWriter(folder / "a.mp4", 25, 256, 256, audio=audio) as writer:
        for frame in portrait_frames(81, 256, 256):
            writer.write(frame)
    cv2.imwrite(str(folder / "b.png"), next(portrait_frames(1))[..., ::-1])
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("faces")
def test_an_interrupted_run_resumes_and_the_model_loads(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis.shutil, "which", lambda name: None)  # no flite: the same on every machine
    out = tmp_path / "model"
    command = ["--smoke-test", f"--data={data}", f"--out={out}", "--device=cpu"]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_unet, "denoising_loss", interrupt)
        assert main(command) == 130
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["vae", "audio_encoder"]
    assert printed.err.endswith("interrupted; the same command resumes the training.\n")
    assert main(command) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["faces", "motion"] and last == str(out)
    assert load_models(out).config == ModelConfig.published("demo")
    assert sum(path.stat().st_size for path in out.rglob("*.safetensors")) < 40 * 10**6


def test_unusable_data_is_refused_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--data={tmp_path / 'nowhere'}", f"--out={tmp_path / 'out'}", "--device=cpu"]) == 2
    error = capsys.readouterr().err
    assert "expected a folder with talking-head clips to train on" in error and error.count("\n") == 1
