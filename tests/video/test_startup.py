"""A refused input is answered before torch is imported."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from fractions import Fraction
from pathlib import Path
from latentsync_memsafe.latentsync.audio import open_audio
from latentsync_memsafe.latentsync.errors import InputError, OutputError
from latentsync_memsafe.latentsync.video import check_target, open_video

def refuse(check, path):
    try:
        check(path)
    except (InputError, OutputError):
        return
    raise AssertionError(path)

good, bad = map(Path, sys.argv[1:])
refuse(open_video, bad)
refuse(open_audio, bad)
refuse(open_audio, good)
refuse(check_target, bad)
assert open_video(good).width == 64
assert "torch" not in sys.modules
"""


def test_checking_inputs_does_not_import_torch(tmp_path: Path) -> None:
    from support.media import make_clip

    bad = tmp_path / "bad.txt"
    bad.write_text("no media\n" * 50)
    good = make_clip(tmp_path / "good.mp4", 3)
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(good), str(bad)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
