"""install.py, which ComfyUI Manager runs once: it prints what it did, in any folder, and never fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT

DOWNLOADS = {
    "fetches": "def download(target):\n    return [target + ' 唇']\n",
    "offline": "def download(target):\n    raise OSError('no network for 唇')\n",
}


@pytest.mark.parametrize("case", DOWNLOADS)
def test_it_succeeds_where_the_console_lacks_letters_of_the_path(tmp_path: Path, case: str) -> None:
    pack = tmp_path / "Lätent 唇"
    (pack / "latentsync" / "weights").mkdir(parents=True)
    for name in ("__init__.py", "latentsync/__init__.py", "latentsync/weights/__init__.py"):
        (pack / name).touch()
    (pack / "latentsync/weights/download.py").write_text(DOWNLOADS[case], "utf-8")
    shutil.copy(ROOT / "install.py", pack)
    ended = subprocess.run(
        [sys.executable, "install.py"],
        cwd=pack,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    expected = "LatentSync: faces ?" if case == "fetches" else "were not fetched; the nodes work"
    assert expected in ended.stdout
