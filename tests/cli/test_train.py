"""`latentsync-memsafe train`: reads a folder of clips and writes a model folder."""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync.cli import main, train
from latentsync_memsafe.latentsync.cli.options import add_device_options
from latentsync_memsafe.latentsync.config import ModelConfig
from latentsync_memsafe.latentsync.faces import load_detector
from latentsync_memsafe.latentsync.training.clips import read_folder
from latentsync_memsafe.latentsync.video import VideoWriter
from latentsync_memsafe.latentsync.weights.loading import load_models, load_unet

from support.paths import ROOT
from support.portrait import portrait_frames, write_tones
from support.small_models import save_tiny_folder

RESOLUTION, FRAMES = 128, 80


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip with audio, a photo, and a file that is neither."""
    import cv2

    folder = tmp_path_factory.mktemp("clips")
    audio = write_tones(tmp_path_factory.mktemp("audio") / "tones.wav", FRAMES / 25)
    with VideoWriter(folder / "a.mp4", 25, 256, 256, audio=audio) as writer:
        for frame in portrait_frames(FRAMES, 256, 256):
            writer.write(frame)
    cv2.imwrite(str(folder / "b.png"), next(portrait_frames(1))[..., ::-1])
    (folder / "notes.txt").write_text("no clip")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("base"))


def command(data: object, base: object, out: Path, **changes: object) -> list[str]:
    options = {
        "data": data,
        "base": base,
        "out": out,
        "steps": 2,
        "learning-rate": 1e-3,
        "device": "cpu",
        **changes,
    }
    return ["train", *(f"--{name}={value}" for name, value in options.items())]


@pytest.mark.slow
@pytest.mark.usefixtures("faces")
def test_fine_tuning_changes_only_the_chosen_part_and_can_be_extended(
    data: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    assert main(command(data, base, out)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("finetune       2/2  loss ") and printed[-1] == str(out)
    before, after = load_models(base), load_models(out)
    kept = 0
    for name, value in before.unet.state_dict().items():
        same = torch.equal(value.half().float(), after.unet.state_dict()[name])
        assert same != (".attn2." in name), name  # audio: the default of a compact device
        kept += same
    assert kept
    for a, b in ((before.vae, after.vae), (before.audio_encoder, after.audio_encoder)):
        states = (a.state_dict(), b.state_dict())
        assert all(torch.equal(value.half().float(), states[1][name]) for name, value in states[0].items())
    assert main(command(data, base, out, steps=3)) == 0
    assert capsys.readouterr().out.startswith("finetune       3/3  loss ")
    assert sorted(p.name for p in out.iterdir()) == [
        "audio_encoder.safetensors",
        "config.yaml",
        "training",
        "unet.safetensors",
        "vae",
    ]


@pytest.mark.usefixtures("faces")
def test_clips_are_aligned_once_and_then_read_from_the_cache(data: Path, tmp_path: Path) -> None:
    detector = load_detector()
    first = read_folder(data, detector, RESOLUTION, tmp_path)
    again = read_folder(data, None, RESOLUTION, tmp_path)  # without a detector, as the faces are cached
    assert [clip.name for clip in first] == [clip.name for clip in again] == ["a", "b"]
    assert [len(clip.faces) for clip in first] == [FRAMES, 1]
    assert [len(clip.samples) for clip in first] == [FRAMES * 640, 0]
    for a, b in zip(first, again, strict=True):
        assert isinstance(b.faces, np.memmap)
        assert all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("faces", "points", "samples"))
        # The eyebrows are where the template of the alignment has them.
        brows = a.points[:, [71, 63, 105, 66, 107, 336, 296, 334, 293, 301]].mean((0, 1)) / RESOLUTION
        assert brows == pytest.approx((0.5, 0.2), abs=0.03)


@pytest.mark.slow
@pytest.mark.usefixtures("faces")
def test_an_interrupted_run_saves_its_state_and_resumes_exactly(
    data: Path,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from latentsync_memsafe.latentsync.training import train_unet

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(command(data, base, whole, steps=3)) == 0
    loss, calls = train_unet.denoising_loss, iter(range(100))

    def interrupted(*inputs: object) -> object:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return loss(*inputs)

    monkeypatch.setattr(train_unet, "denoising_loss", interrupted)
    capsys.readouterr()
    assert main(command(data, base, cut, steps=3)) == 130
    assert capsys.readouterr().err.endswith("cancelled; the same command resumes the training.\n")
    assert [path.name for path in cut.iterdir()] == ["training"]
    assert main(command(data, base, cut, steps=3)) == 0
    config = ModelConfig.from_yaml(cut / "config.yaml")
    states = [load_unet(f / "unet.safetensors", config, torch.float32).state_dict() for f in (whole, cut)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def empty(folder: Path, data: Path) -> dict[str, object]:
    (folder / "empty").mkdir()
    return {"data": folder / "empty"}


def without_audio(folder: Path, data: Path) -> dict[str, object]:
    (folder / "photos").mkdir()
    shutil.copy(data / "b.png", folder / "photos")
    return {"data": folder / "photos"}


@pytest.mark.usefixtures("faces")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda *_: {"data": "nowhere"},
            "--data is 'nowhere', which cannot be read (No such file",
        ),
        (empty, "holds no video or photo with a usable face"),
        (without_audio, "None of the 1 clips has audio and lasts 3 s or more"),
        (lambda *_: {"base": "2.0"}, "neither 1.6, 1.5 or demo nor an existing folder"),
        (lambda *_: {"steps": 0}, "--steps is 0; expected 1 or more"),
        (lambda *_: {"learning-rate": 2}, "--learning-rate is 2.0; expected"),
    ],
)
def test_bad_input_gets_one_line(
    data: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change, message: str
) -> None:
    out = tmp_path / "out"
    assert main(command(**{"data": data, "base": base, "out": out, **change(tmp_path, data)})) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (out / "unet.safetensors").exists()


@pytest.mark.usefixtures("faces")
@pytest.mark.parametrize("below", ["", "/x"])
def test_an_impossible_output_folder_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(command("nowhere", "nowhere", Path(f"{tmp_path}/file{below}"))) == 2
    error = capsys.readouterr().err
    assert "--out is " in error and error.count("\n") == 1
    assert "which cannot be written (Not a directory); give another folder." in error
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("option", ["--out=", "--precision=fp16", "--synthetic=0.5", "--from-scratch"])
def test_options_that_do_not_exist_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([*command("nowhere", "nowhere", tmp_path / "out"), option])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("faces")
def test_damaged_cache_files_are_replaced(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, cache = tmp_path / "photos", tmp_path / "cache"
    folder.mkdir()
    shutil.copy(data / "b.png", folder)
    (folder / "z.mp4").symlink_to("nowhere.mp4")
    detector = load_detector()
    whole = read_folder(folder, detector, RESOLUTION, cache)[0]
    assert "z.mp4 is skipped: It cannot be read (No such file" in caplog.text
    expected = np.array(whole.faces)
    (faces,), (rest,) = cache.glob("*.faces"), cache.glob("*.npz")
    damages = (
        faces.unlink,
        lambda: faces.write_bytes(b""),
        lambda: faces.write_bytes(faces.read_bytes() + b"more"),
        lambda: rest.write_bytes(b""),
        lambda: rest.write_bytes(rest.read_bytes()[:100]),
        lambda: rest.write_bytes(b"junk"),
    )
    for damage in damages:
        damage()
        caplog.clear()
        again = read_folder(folder, detector, RESOLUTION, cache)[0]
        assert np.array_equal(again.faces, expected) and np.array_equal(again.points, whole.points)
        assert "The cache of b.png is damaged" in caplog.text
    assert sorted(cache.iterdir()) == sorted([faces, rest])


def test_the_readme_describes_every_option() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Train") : readme.index("## Notes")]
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    own = {o for action in parser._actions for o in action.option_strings if o.startswith("--")}
    shared = argparse.ArgumentParser()
    add_device_options(shared)
    given = {o for action in shared._actions for o in action.option_strings if o.startswith("--")}
    assert given <= own and "--precision" not in own  # training chooses the precision itself
    own -= given
    assert "--trainable" in own and not [o for o in own - {"--quiet"} if f"`{o}`" not in section]
