"""The command line: a result, or one line on stderr and exit status 2."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentsync_memsafe.latentsync.cli import main
from latentsync_memsafe.latentsync.cli import train as train_command
from latentsync_memsafe.latentsync.errors import OutputError
from latentsync_memsafe.latentsync.report import Report
from latentsync_memsafe.latentsync.video import VideoWriter

from support.portrait import write_tones

pytestmark = pytest.mark.usefixtures("faces")


def sync(material: Path, out: Path, **changes: object) -> list[str]:
    """Arguments of a short run; `changes` replace an option or, with None, remove it."""
    options: dict[str, object] = {
        "video": material / "portrait.mp4",
        "audio": material / "tones.wav",
        "out": out,
        "model": material / "model",
        "steps": 1,
        "guidance": 1.0,
        "device": "cpu",
    }
    options.update(changes)
    return [
        "sync",
        *(f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None),
    ]


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*")}


def wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def float_wav(path: Path, samples: np.ndarray) -> Path:
    """A 32-bit float wav file, which the wave module does not write."""
    data = samples.astype("<f4").tobytes()
    header = b"RIFF" + (36 + len(data)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += (3).to_bytes(2, "little") + (1).to_bytes(2, "little") + (16_000).to_bytes(4, "little")
    header += (64_000).to_bytes(4, "little") + (4).to_bytes(2, "little") + (32).to_bytes(2, "little")
    path.write_bytes(header + b"data" + len(data).to_bytes(4, "little") + data)
    return path


def clip_of(path: Path, frames: int, size: tuple[int, int], audio: Path | None = None) -> Path:
    with VideoWriter(path, Fraction(25), *size, audio=audio) as writer:
        for i in range(frames):
            writer.write(np.full((size[1], size[0], 3), 90 + i % 9, np.uint8))
    return path


class Bomb:
    """Unpickling this runs code."""

    def __reduce__(self):
        return (os.system, ("touch exploded",))


def model(folder: Path, source: Path) -> Path:
    shutil.copytree(source, folder)
    return folder


def model_with(change: Callable[[Path], None]) -> Callable[[Path, Path], dict[str, object]]:
    def build(tmp: Path, material: Path) -> dict[str, object]:
        folder = model(tmp / "model", material / "model")
        change(folder)
        return {"model": folder}

    return build


def truncate(path: Path, share: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def poison(folder: Path) -> None:
    state = load_file(folder / "unet.safetensors")
    state["conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, folder / "unet.safetensors")


def bomb(folder: Path) -> None:
    (folder / "unet.safetensors").unlink()
    (folder / "latentsync_unet.pt").write_bytes(pickle.dumps(Bomb()))


def stable_diffusion(folder: Path) -> None:
    state = {
        "conv_in.weight": torch.zeros(320, 4, 3, 3),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.zeros(320, 768),
        "conv_out.weight": torch.zeros(4, 320, 3, 3),
    }
    save_file(state, folder / "unet.safetensors")


def copied(name: str, change: Callable[[Path], object]) -> Callable[[Path, Path], dict[str, object]]:
    """A damaged copy of the intact file of that name."""

    def build(tmp: Path, material: Path) -> dict[str, object]:
        path = tmp / name
        shutil.copyfile(material / name, path)
        change(path)
        return {"video" if name.endswith("mp4") else "audio": path}

    return build


def made(option: str, make: Callable[[Path], object]) -> Callable[[Path, Path], dict[str, object]]:
    """The option with the value that `make` returns for the temporary folder."""
    return lambda tmp, material: {option: make(tmp)}


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(tmp: Path) -> Path:
        (tmp / name).write_bytes(content)
        return tmp / name

    return make


def folder(name: str) -> Callable[[Path], Path]:
    def make(tmp: Path) -> Path:
        (tmp / name).mkdir()
        return tmp / name

    return make


def pipe(tmp: Path) -> Path:
    os.mkfifo(tmp / "pipe.wav")
    return tmp / "pipe.wav"


ODD_NAMES = ["-dash.mp4", "two words; $(touch exploded) quo'te\".mp4", "ünï-日本 new\nline %s{}.mp4"]
NOISE = np.random.default_rng(0).bytes(20_000)

# name -> (arguments, a word that the message must contain)
BAD: dict[str, tuple[Callable[[Path, Path], dict[str, object]], str]] = {
    "video missing": (made("video", lambda tmp: tmp / "none.mp4"), "none.mp4"),
    "video on the network": (lambda tmp, material: {"video": "https://host/a.mp4"}, "is an address"),
    "output on the network": (lambda tmp, material: {"out": "http://host/a.mp4"}, "is an address"),
    "video is a folder": (made("video", folder("folder.mp4")), "folder"),
    "video empty": (made("video", written("empty.mp4", b"")), "empty"),
    "video is text": (made("video", written("text.mp4", b"this is a text file\n" * 90)), "text.mp4"),
    "video is noise": (made("video", written("noise.mp4", NOISE)), "noise.mp4"),
    "video truncated": (copied("portrait.mp4", lambda path: truncate(path, 0.3)), "portrait.mp4"),
    "video without its index": (copied("portrait.mp4", lambda path: truncate(path, 0.02)), "portrait.mp4"),
    "video is audio": (lambda tmp, material: {"video": material / "tones.wav"}, "tones.wav"),
    "video of 16 pixels": (made("video", lambda tmp: clip_of(tmp / "16.mp4", 5, (16, 16))), "16x16"),
    "video without a face": (made("video", lambda tmp: clip_of(tmp / "grey.mp4", 5, (320, 240))), "face"),
    "image damaged": (made("video", written("bad.png", b"\x89PNG\r\n\x1a\n" + NOISE[:300])), "bad.png"),
    "null byte in the name": (lambda tmp, material: {"video": "a\0b.mp4"}, "mp4"),
    "name too long": (lambda tmp, material: {"video": "x" * 5000 + ".mp4"}, "mp4"),
    "audio missing": (made("audio", lambda tmp: tmp / "none.wav"), "none.wav"),
    "audio is a folder": (made("audio", folder("folder.wav")), "folder"),
    "audio empty": (made("audio", written("empty.wav", b"")), "empty"),
    "audio is text": (made("audio", written("text.wav", b"words " * 99)), "text.wav"),
    "audio is a video without audio": (
        lambda tmp, material: {"audio": material / "portrait.mp4"},
        "portrait.mp4",
    ),
    "audio without samples": (made("audio", lambda tmp: wav(tmp / "none.wav", np.zeros(0))), "none.wav"),
    "audio of one sample": (made("audio", lambda tmp: wav(tmp / "one.wav", np.zeros(1))), "s"),
    "audio shorter than a frame": (made("audio", lambda tmp: wav(tmp / "short.wav", np.zeros(240))), "s"),
    "audio truncated in its header": (
        copied("tones.wav", lambda path: path.write_bytes(path.read_bytes()[:20])),
        "tones.wav",
    ),
    "audio with NaN": (
        made("audio", lambda tmp: float_wav(tmp / "nan.wav", np.full(16_000, np.nan))),
        "nan",
    ),
    "audio with infinity": (
        made("audio", lambda tmp: float_wav(tmp / "inf.wav", np.full(16_000, np.inf))),
        "inf",
    ),
    "output is the video": (lambda tmp, material: {"out": material / "portrait.mp4"}, "also an input"),
    "output is the video by a link": (
        lambda tmp, material: {"out": linked(tmp / "link.mp4", material / "portrait.mp4")},
        "also an input",
    ),
    "output is a folder": (made("out", folder("out.mp4")), "folder"),
    "output has no suffix": (made("out", lambda tmp: tmp / "result"), ".mp4"),
    "output is an image": (made("out", lambda tmp: tmp / "result.png"), ".mp4"),
    "output below a file": (made("out", lambda tmp: written("file", b"x")(tmp) / "out.mp4"), "file"),
    "output not writable": (lambda tmp, material: {"out": "/proc/out.mp4"}, "/proc"),
    "report is the output": (
        lambda tmp, material: {"report": tmp.parent / "in" / ".." / "result" / "out.mp4"},
        "the same path as the output",
    ),
    "report below the output": (
        lambda tmp, material: {"report": tmp.parent / "result" / "out.mp4" / "report.json"},
        "the same path as the output",
    ),
    "report is the video": (lambda tmp, material: {"report": material / "portrait.mp4"}, "also an input"),
    "report is the audio by a link": (
        lambda tmp, material: {"report": linked(tmp / "link.json", material / "tones.wav")},
        "also an input",
    ),
    "report is the model": (
        lambda tmp, material: {
            "model": material / "model" / "unet.safetensors",
            "report": material / "model" / "unet.safetensors",
        },
        "also an input",
    ),
    "report is a folder": (made("report", folder("numbers")), "folder"),
    "report without a name": (lambda tmp, material: {"report": ""}, "folder"),
    "report below a file": (made("report", lambda tmp: written("file", b"x")(tmp) / "r.json"), "file"),
    "report not writable": (lambda tmp, material: {"report": "/proc/report.json"}, "/proc"),
    "report name too long": (lambda tmp, material: {"report": "x" * 300}, "too long"),
    "seed negative": (lambda tmp, material: {"seed": -1}, "seed"),
    "seed not a number": (lambda tmp, material: {"seed": "lucky"}, "seed"),
    "steps zero": (lambda tmp, material: {"steps": 0}, "steps"),
    "guidance below one": (lambda tmp, material: {"guidance": 0.5}, "guidance"),
    "guidance not a number": (lambda tmp, material: {"guidance": "nan"}, "guidance"),
    "resolution not a multiple of 64": (lambda tmp, material: {"resolution": 100}, "resolution"),
    "fps zero": (lambda tmp, material: {"fps": 0}, "fps"),
    "fps divided by zero": (lambda tmp, material: {"fps": "25/0"}, "fps"),
    "fps not a number": (lambda tmp, material: {"fps": "fast"}, "fps"),
    "crf too high": (lambda tmp, material: {"crf": 99}, "crf"),
    "face index negative": (lambda tmp, material: {"face_index": -1}, "--face-index"),
    "face outside the frame": (lambda tmp, material: {"face_at": "9000,1"}, "--face-at must be"),
    "face position not a number": (lambda tmp, material: {"face_at": "left"}, "face-at"),
    "two ways to choose the face": (lambda tmp, material: {"face_at": "9,9", "face_index": 0}, "one of them"),
    "unknown extension": (lambda tmp, material: {"extend": "magic"}, "extend"),
    "unknown memory mode": (lambda tmp, material: {"memory_mode": "turbo"}, "memory-mode"),
    "face models missing": (lambda tmp, material: {"face_detector": "insightface"}, "det_10g.onnx"),
    "unknown device": (lambda tmp, material: {"device": "abacus"}, "abacus"),
    "VRAM limit negative": (lambda tmp, material: {"vram_limit_gb": -4}, "vram-limit-gb"),
    "video not given": (lambda tmp, material: {"video": None}, "--video"),
    "model missing": (made("model", lambda tmp: tmp / "no model"), "no model"),
    "model folder empty": (made("model", folder("empty")), "unet"),
    "model is a file": (made("model", written("model.pt", b"x")), "model.pt"),
    "weights empty": (model_with(lambda m: (m / "unet.safetensors").write_bytes(b"")), "unet.safetensors"),
    "weights truncated": (model_with(lambda m: truncate(m / "unet.safetensors")), "unet.safetensors"),
    "weights with code": (model_with(bomb), "latentsync_unet.pt"),
    "weights of another model": (model_with(stable_diffusion), "Stable Diffusion"),
    "weights with NaN": (model_with(poison), "conv_in.weight"),
    "weights without audio encoder": (model_with(lambda m: shutil.rmtree(m / "whisper")), "whisper"),
    "weights without VAE": (model_with(lambda m: shutil.rmtree(m / "vae")), "vae"),
    "weights of another architecture": (
        model_with(lambda m: (m / "config.yaml").write_text("unet: {block_out_channels: [100, 7, 9, 11]}")),
        "describes no UNet",
    ),
    "config with a string for a number": (
        model_with(lambda m: (m / "config.yaml").write_text("resolution: abc")),
        "resolution",
    ),
    "model of an unknown user": (
        lambda tmp, material: {"model": "~nobody-at-all/model"},
        "~nobody-at-all",
    ),
    "model name too long": (lambda tmp, material: {"model": "x" * 300}, "too long"),
    "audio name too long": (lambda tmp, material: {"audio": "x" * 300}, "too long"),
    "audio is a pipe": (made("audio", pipe), "pipe"),
    "config not YAML": (model_with(lambda m: (m / "config.yaml").write_text("a: [")), "config.yaml"),
    "config of another kind": (model_with(lambda m: (m / "config.yaml").write_text("a: 1")), "config.yaml"),
    **{
        f"missing video called {name!r}": (made("video", lambda tmp, n=name: tmp / n), "check the path")
        for name in ODD_NAMES
    },
}


def linked(link: Path, target: Path) -> Path:
    link.symlink_to(target)
    return link


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_leaves_no_file(
    case: str,
    material: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build, word = BAD[case]
    inputs = tmp_path / "in"
    inputs.mkdir()
    changes = build(inputs, material)
    monkeypatch.chdir(inputs)
    before, good = snapshot(tmp_path), snapshot(material)
    try:
        status = main(sync(material, **{"out": tmp_path / "result" / "out.mp4", **changes}))
    except SystemExit as exit_:  # argparse
        status = exit_.code
    printed = capfd.readouterr()
    assert status == 2
    assert printed.out == ""
    lines = printed.err.rstrip("\n").split("\n")
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("latentsync-memsafe: error: ") and word in lines[0]
    assert "Traceback" not in lines[0] and len(lines[0]) < 2100
    assert snapshot(tmp_path) == before
    assert snapshot(material) == good


@pytest.mark.parametrize("name", ODD_NAMES)
def test_file_names_with_special_characters_work(
    name: str, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(material / "portrait.mp4", tmp_path / name)
    audio = write_tones(tmp_path / Path(name).with_suffix(".wav").name, seconds=0.2)
    out = f"out {name}"
    assert main(sync(material, Path(out), video=name, audio=audio.name, quiet=None)) == 0
    with av.open(f"./{out}") as container:
        assert container.streams.video[0].frames == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, audio.name, out])


def test_sync_prints_the_path_of_the_result_and_writes_the_report(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mp4"
    assert main(sync(material, out, report=tmp_path / "numbers" / "report.json")) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: 25 frames at 25 fps, 1.00 s")
    report = json.loads((tmp_path / "numbers" / "report.json").read_text())
    assert report["frames"] == 25 and report["fps"] == "25" and report["duration"] == 1.0
    assert report["plan"]["device"] == "cpu" and report["tier"] == "compact"
    assert report["without_face"] == [] and report["seconds"]["denoise"] > 0
    assert report["peak_ram"] > 50e6 and report["peak_vram"] is None
    assert all(len(digest) >= 8 for digest in report["hashes"].values()) and report["hashes"]


def test_a_report_is_replaced_only_by_a_complete_one_and_links_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_a_part(path: Path, text: str, **_: object) -> None:
        path.write_bytes(text[:1].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / "real.json"
    target.write_text("old")
    link = linked(tmp_path / "link.json", target)
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", write_a_part)
        with pytest.raises(OutputError, match=r"The video is complete, .*No space left"):
            Report().save(link)
    assert target.read_text() == "old"
    Report(frames=7).save(link)
    assert link.is_symlink() and json.loads(target.read_text())["frames"] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "real.json"]


def test_a_portrait_image_gives_a_video_as_long_as_the_audio(material: Path, tmp_path: Path) -> None:
    import cv2

    from support.portrait import portrait_frames

    cv2.imwrite(str(tmp_path / "photo.png"), next(portrait_frames(1))[:, :, ::-1])
    assert main(sync(material, tmp_path / "out.mp4", video=tmp_path / "photo.png")) == 0
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].frames == 25


def test_plan_prints_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--device", "cpu", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["dtype"] == "float32" and plan["windows"] == 1
    assert main(["plan", "--device", "cpu", "--memory-mode", "aggressive"]) == 0
    assert "3 face(s) for the VAE" in capsys.readouterr().out


def test_a_vram_limit_without_a_gpu_gives_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert main(["plan", "--device", "cpu", "--vram-limit-gb", "24"]) == 0
    assert [record.message for record in caplog.records] == [
        "vram-limit-gb is 24, but no GPU is used; it has no effect."
    ]


def test_an_interrupted_run_leaves_no_file_and_prints_one_line(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("latentsync_memsafe.latentsync.generator.denoise", interrupt)
    assert main(sync(material, tmp_path / "out.mp4")) == 130
    assert "cancelled" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_out_of_memory_outside_guarded_code_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(arguments: object) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    monkeypatch.setattr(train_command, "run", train)
    assert main(["train", "--data", "clips", "--out", "model"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "Memory ran out (CUDA out of memory" in line


def test_a_system_error_is_one_line_and_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failure: list[Exception] = [PermissionError(errno.EACCES, "Permission denied", "models/unet.pt")]

    def run(arguments: object) -> int:
        raise failure[0]

    monkeypatch.setattr(train_command, "run", run)
    assert main(["train", "--data", "clips", "--out", "model"]) == 2
    assert capsys.readouterr().err == "latentsync-memsafe: error: models/unet.pt: Permission denied.\n"
    failure[0] = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train", "--data", "clips", "--out", "model"])


@pytest.mark.slow
def test_the_installed_command_works() -> None:
    command = shutil.which("latentsync-memsafe", path=str(Path(sys.executable).parent))
    assert command, "install the package with `pip install -e .`"
    answer = subprocess.run([command, "plan", "--device", "cpu"], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0 and "compact" in answer.stdout
    wrong = subprocess.run([command, "dance"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
