"""Files in ComfyUI's folders: their names, and the workflow in them."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args

from ..errors import OutputError

_DATE = re.compile("%date:([^%]+)%")
_DATE_PARTS = re.compile("yyyy|yy|MM?|dd?|hh?|mm?|ss?")
_DATE_NAMES = {"y": "year", "M": "month", "d": "day", "h": "hour", "m": "minute", "s": "second"}


class Draft:
    """A file below `root`, one of ComfyUI's folders, that gets its name when it is complete.

    A run may take hours, and by then another program may have used any name that was free when it began.
    """

    def __init__(self, root: str, prefix: str, suffix: str, width: int = 0, height: int = 0) -> None:
        """prefix: as users give it (see `_dated`); width, height: what it may ask for."""
        self._root, self._prefix, self._size = root, _dated(prefix, datetime.now()), (width, height)
        folder = Path(self._save_path()[0])
        self.path = folder / f".{uuid.uuid4().hex}{suffix}"

    def publish(self) -> tuple[Path, str]:
        """Give the finished file the next unused name with the prefix; returns it and its folder below the root.

        Raises OutputError if that is not possible.
        """
        folder, name, number, subfolder, _ = self._save_path()
        while True:
            path = Path(folder) / f"{name}_{number:05}_{self.path.suffix}"
            try:
                path.touch(exist_ok=False)  # at once, so that no other program gets the same
                break
            except FileExistsError:
                number += 1
        try:
            self.path.replace(path)
        except OSError as error:
            path.unlink()
            raise OutputError(
                f"{path} cannot be written ({error.strerror}); the video is {self.path}."
            ) from error
        return path, subfolder

    def _save_path(self) -> tuple[str, str, int, str, str]:
        return folder_paths.get_save_image_path(self._prefix, self._root, *self._size)


def _dated(prefix: str, now: datetime) -> str:
    """%date:yyyy-MM-dd% filled in as ComfyUI's page does it for nodes that it knows; the rest ComfyUI fills in."""

    def number(found: re.Match[str]) -> str:
        code = found[0]
        text = str(getattr(now, _DATE_NAMES[code[0]])).zfill(len(code))
        return text[-2:] if code == "yy" else text

    return _DATE.sub(lambda date: _DATE_PARTS.sub(number, date[1]), prefix)


def temporary_file(suffix: str) -> Path:
    """A new name in our own folder below ComfyUI's temp."""
    folder = temporary_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{uuid.uuid4().hex}{suffix}"


def temporary_folder() -> Path:
    """Our own folder below ComfyUI's temp; it may have to be made."""
    return Path(folder_paths.get_temp_directory()) / "latentsync"


def workflow_of(hidden: Any) -> dict[str, str]:
    """What lets ComfyUI open the workflow from a file again; nothing where it was started without metadata."""
    if args.disable_metadata:
        return {}
    prompt = {} if hidden.prompt is None else {"prompt": hidden.prompt}
    return as_text({**(hidden.extra_pnginfo or {}), **prompt})


def as_text(metadata: Mapping[str, Any] | None) -> dict[str, str]:
    """What a file can hold: JSON, but for texts."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
