"""Start-up: help and refused inputs are answered without importing torch, which takes seconds."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from support.paths import ROOT
from support.portrait import write_tones

# Runs every command line given on stdin in one fresh process; prints exit status and imported libraries after each.
RUN_ALL = """
import json, sys
from latentsync_memsafe.latentsync.cli import main
results = {}
for name, arguments in json.load(sys.stdin).items():
    try:
        status = main(arguments)
    except SystemExit as end:  # argparse
        status = end.code
    results[name] = status, sorted({"numpy", "torch"} & set(sys.modules))
print(json.dumps(results), file=sys.stderr)
"""


def run_all(commands: dict[str, list[str]], folder: Path) -> dict[str, tuple[int, list[str]]]:
    """Run the commands in a fresh process in `folder`: name -> (exit status, heavy libraries imported so far)."""
    environment = {**os.environ, "LATENTSYNC_MEMSAFE_CHECKPOINTS": str(folder / "no checkpoints")}
    answer = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps(commands),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stderr.splitlines()[-1])


def test_help_and_rejected_options_import_neither_numpy_nor_torch(tmp_path: Path) -> None:
    commands = {
        "help": ["--help"],
        **{
            f"help of {name}": [name, "--help"]
            for name in ("demo", "sync", "plan", "bench", "train", "doctor")
        },
        "unknown command": ["dance"],
        "unknown choice": ["sync", "--video=a", "--audio=b", "--out=c", "--extend=magic"],
        "missing option": ["sync"],
        "steps": ["sync", "--video=a", "--audio=b", "--out=c", "--steps=0"],
        "device": ["sync", "--video=a", "--audio=b", "--out=c", "--device=abacus"],
        "limit": ["plan", "--vram-limit-gb=-1"],
        "seconds": ["bench", "--seconds=0"],
    }
    results = run_all(commands, tmp_path)
    assert {name: status for name, (status, _) in results.items() if status != 2} == {
        name: 0 for name in commands if name.startswith("help")
    }
    assert [name for name, (_, libraries) in results.items() if libraries] == []


@pytest.mark.usefixtures("faces")
def test_refused_inputs_are_answered_without_torch(material: Path, tmp_path: Path) -> None:
    video, audio, model = material / "portrait.mp4", material / "tones.wav", material / "model"
    text = tmp_path / "text.mp4"
    text.write_text("not a video\n" * 90)
    empty = tmp_path / "empty model"
    empty.mkdir()
    short = write_tones(tmp_path / "short.wav", 0.0)

    def sync(**changes: object) -> list[str]:
        options = {"video": video, "audio": audio, "out": tmp_path / "out.mp4", "model": model, **changes}
        return ["sync", *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]

    commands = {
        "video missing": sync(video="none.mp4"),
        "video of another type": sync(video=text),
        "video without video": sync(video=audio),
        "audio missing": sync(audio="none.wav"),
        "audio unreadable": sync(audio=text),
        "audio without audio": sync(audio=video),
        "audio without samples": sync(audio=short),
        "output below a file": sync(out=text / "out.mp4"),
        "output of another type": sync(out="out.png"),
        "output is the video": sync(out=video),
        "report below a file": sync(report=text / "report.json"),
        "face outside of the frame": sync(face_at="9000,1"),
        "model name unknown": sync(model="no such model"),
        "model not downloaded": sync(model="1.6"),
        "model folder empty": sync(model=empty),
        "photo missing": ["demo", "--photo=none.png"],
        "demo model unknown": ["demo", "--model=no such model"],
        "plan of a missing video": ["plan", "--video=none.mp4"],
        "plan of an unknown model": ["plan", "--model=no such model"],
        "download of another target": ["download", "nothing"],
    }
    results = run_all(commands, tmp_path)
    assert {name: status for name, (status, _) in results.items() if status != 2} == {}
    assert [name for name, (_, libraries) in results.items() if "torch" in libraries] == []
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("package", ["latentsync", "memsafe"])
def test_every_name_of_a_package_is_found_on_first_use(package: str) -> None:
    module = import_module(f"latentsync_memsafe.{package}")
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name).__module__.startswith(f"latentsync_memsafe.{package}")
    with pytest.raises(AttributeError, match="no attribute 'anything'"):
        module.anything  # noqa: B018


def test_every_option_of_the_command_line_is_in_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    from latentsync_memsafe.latentsync.cli import main

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("sync", "demo"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        words = (word.strip(",[]") for word in capsys.readouterr().out.split())
        options = {word for word in words if word.startswith("--")} - {"--help"}
        assert "--report" in options and [option for option in options if option not in readme] == []


WITHOUT_UNUSED = """
import sys
from latentsync_memsafe.latentsync.cli.process import import_diffusers
import_diffusers()
print(sorted({"diffusers", "scipy", "transformers"} & set(sys.modules)))
import scipy.stats, transformers
from diffusers import AutoencoderKL
from latentsync_memsafe.latentsync.sampling import make_scheduler
make_scheduler({}).set_timesteps(4)
"""


def test_a_run_imports_neither_scipy_nor_transformers_and_can_do_so_later(tmp_path: Path) -> None:
    assert last_line(WITHOUT_UNUSED, tmp_path) == "['diffusers']"


def test_a_diffusers_that_needs_what_is_hidden_is_imported_with_it(tmp_path: Path) -> None:
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers" / "__init__.py").write_text(
        "import transformers\nAutoencoderKL = DDIMScheduler = 1\n"
    )
    (tmp_path / "transformers.py").write_text("")
    first = WITHOUT_UNUSED.partition("import scipy.stats")[0]
    program = first + "from diffusers import AutoencoderKL\nprint(AutoencoderKL)"
    assert last_line(program, tmp_path) == "1"


def last_line(program: str, folder: Path) -> str:
    """Run a program in a fresh process that imports from `folder` first; returns the last line that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()[-1]
