"""Which files were hashed and found right, so that gigabytes are hashed once and not at every start.

One small JSON file in the checkpoints root maps a relative path to the size, time stamp and digest the file
had then. A file changed or replaced since then counts as not verified.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from .checkpoints import sha256_of

LIST = ".verified.json"


def is_verified(root: Path, path: Path) -> bool:
    """Whether this very file was hashed before and found right."""
    if not path.is_file():
        return False
    return _entries(root).get(_key(root, path), [])[:2] == _state(path)


def remember(root: Path, path: Path, digest: str) -> None:
    """Note that the file now at `path` has been found right."""
    entries = _entries(root)
    entries[_key(root, path)] = [*_state(path), digest]
    part = root / f"{LIST}.{os.getpid()}.part"
    part.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    part.replace(root / LIST)


def digest_of(path: Path, like: str) -> str:
    """Hex digest of a file in the manner of `like`: SHA-256 (64 digits) or git's SHA-1 of a blob (40 digits).

    The hub states the first for large files and the second for small ones.
    """
    if len(like) == 64:
        return sha256_of(path)
    content = path.read_bytes()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _entries(root: Path) -> dict[str, list[int | str]]:
    try:
        entries = json.loads((root / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # never written, or damaged: everything is verified anew
    if not isinstance(entries, dict):
        return {}
    return {key: entry for key, entry in entries.items() if isinstance(entry, list)}


def _key(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _state(path: Path) -> list[int | str]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
