"""Download of one file from the Hugging Face hub: resumed, compared with its hash, then moved into place.

huggingface_hub finds the address and transfers the bytes, so HF_ENDPOINT, tokens, proxies and time-outs are
honoured. Its own hf_hub_download is not used: recent versions start again after every interruption and compare no
hash. Hashes of gigabytes are computed once: a JSON file in the checkpoints root lists the verified files.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from .checkpoints import WeightFile, sha256_of

log = logging.getLogger(__name__)

VERIFIED = ".verified.json"  # relative path -> size, modification time and digest of a file found right

Progress = Callable[[str, int, int], None]  # file name, bytes so far, bytes in all


@dataclass(frozen=True)
class _Remote:
    url: str  # of the version that size and digest describe
    size: int
    digest: str  # SHA-256 or git blob SHA-1, hex


def fetch(
    file: WeightFile, root: Path, progress: Progress | None = None, endpoint: str | None = None
) -> Path:
    """Download `file` below `root` unless it is there and right; returns its path.

    A verified file is returned without asking the hub. Any other existing file is compared with the hub's size and
    hash; if it differs, it is renamed (`.wrong`) and downloaded again. `progress` may raise to stop. `endpoint`
    replaces HF_ENDPOINT. Raises DownloadError naming the file to place by hand.
    """
    target = root / file.relative
    if is_verified(root, target):
        return target
    url = _url(file, None, endpoint)
    try:
        remote = _query_hub(file, endpoint)
    except Exception as error:  # versions of huggingface_hub raise the errors of different HTTP clients
        return _check_offline(file, root, url, error)
    if target.is_file():
        if target.stat().st_size == remote.size and digest_of(target, remote.digest) == remote.digest:
            mark_verified(root, target, remote.digest)
            return target
        move_aside(target, url)
    part = _transfer(file, target, remote, progress)
    found = digest_of(part, remote.digest)
    if found != remote.digest:
        part.unlink()
        raise _failure(url, target, f"its hash is {found[:12]}..., the hub states {remote.digest[:12]}...")
    part.replace(target)
    mark_verified(root, target, remote.digest)
    return target


def _url(file: WeightFile, revision: str | None, endpoint: str | None) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(file.repository, file.name, revision=revision, endpoint=endpoint)


def _query_hub(file: WeightFile, endpoint: str | None) -> _Remote:
    """Return the address, size and hash of the newest version."""
    from huggingface_hub import get_hf_file_metadata

    answer = get_hf_file_metadata(_url(file, None, endpoint))
    digest = (answer.etag or "").lower()
    if answer.size is None or len(digest) not in (40, 64) or set(digest) - set("0123456789abcdef"):
        raise ValueError(
            f"the server states size {answer.size} and ETag {answer.etag!r}, not a size and a hash"
        )
    return _Remote(_url(file, answer.commit_hash, endpoint), answer.size, digest)


def _check_offline(file: WeightFile, root: Path, url: str, error: Exception) -> Path:
    """Check an existing file while the hub cannot be reached; returns its path."""
    target, reason = root / file.relative, _reason(error)
    if not target.is_file():
        raise _failure(url, target, reason) from error
    if file.sha256 is None:
        log.warning("%s could not be compared with %s (%s); it is used as it is.", target, url, reason)
        return target
    if sha256_of(target) != file.sha256:
        raise _failure(url, target, f"the file there has another hash, and {reason}") from error
    mark_verified(root, target, file.sha256)
    return target


def _transfer(file: WeightFile, target: Path, remote: _Remote, progress: Progress | None) -> Path:
    """Download to a part file next to `target`, not yet checked; continues a part of an earlier run."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    # The digest in the name prevents joining the bytes of two versions.
    part = target.with_name(f"{target.name}.{remote.digest[:12]}.part")
    out: _PartFile | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.is_file() else 0
        if have > remote.size:
            part.unlink()
            have = 0
        needed, free = remote.size - have, shutil.disk_usage(target.parent).free
        if free < needed:
            raise OSError(f"{needed / 2**30:.2f} GiB are still needed, {free / 2**30:.2f} GiB are free")
        if have < remote.size:
            with _PartFile(part, file.name, remote.size, progress) as out, _progress_bar(progress is None):
                http_get(
                    remote.url, out, resume_size=have, headers=build_hf_headers(), expected_size=remote.size
                )
    except Exception as error:  # see fetch
        if out is not None and error is out.stopped:
            raise  # the caller's progress function asked to stop
        raise _failure(remote.url, target, _reason(error)) from error
    if progress:
        progress(file.name, remote.size, remote.size)
    return part


class _PartFile(io.FileIO):
    """File that is appended to and reports its length."""

    def __init__(self, path: Path, name: str, size: int, progress: Progress | None) -> None:
        super().__init__(str(path), "ab")
        self._report = (lambda: progress(name, self.tell(), size)) if progress else (lambda: None)
        self.stopped: Exception | None = None  # raised by `progress`

    def write(self, data: Any) -> int:
        view = memoryview(data)
        written = 0
        while written < len(view):  # an unbuffered file may write less than it is given
            written += super().write(view[written:]) or 0
        try:
            self._report()
        except Exception as error:
            self.stopped = error
            raise
        return written


@contextmanager
def _progress_bar(shown: bool) -> Iterator[None]:
    """Disable the library's progress bar inside the context unless it is to be shown."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def move_aside(target: Path, origin: str) -> None:
    """Rename a file that is not the one of `origin`, so that nothing is lost, and log that."""
    aside = target.with_name(f"{target.name}.wrong")
    log.warning("%s is not the file of %s; it was moved to %s.", target, origin, aside.name)
    target.replace(aside)


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _failure(url: str, target: Path, reason: str) -> DownloadError:
    return DownloadError(f"Could not download {url} ({reason}); try again, or save that file as {target}.")


def is_verified(root: Path, path: Path) -> bool:
    """Tell whether the file is unchanged since its hash was compared."""
    if not path.is_file():
        return False
    key, state = _entry(root, path)
    return _read_verified(root).get(key, [])[:2] == state


def mark_verified(root: Path, path: Path, digest: str) -> None:
    """Record that the file now at `path` has the expected hash `digest`."""
    entries, (key, state) = _read_verified(root), _entry(root, path)
    entries[key] = [*state, digest]
    part = root / f"{VERIFIED}.{os.getpid()}.part"
    part.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    part.replace(root / VERIFIED)


def digest_of(path: Path, like: str) -> str:
    """Return the digest of a file in the format of `like`: SHA-256 (64 digits) or git's blob SHA-1 (40 digits).

    The hub states the first for large files and the second for small ones.
    """
    if len(like) == 64:
        return sha256_of(path)
    content = path.read_bytes()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _read_verified(root: Path) -> dict[str, list[int | str]]:
    try:
        entries = json.loads((root / VERIFIED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        entries = None
    if not isinstance(entries, dict):
        return {}  # missing or damaged: every file is verified again
    return {key: entry for key, entry in entries.items() if isinstance(entry, list)}


def _entry(root: Path, path: Path) -> tuple[str, list[int | str]]:
    stat = path.stat()
    return path.relative_to(root).as_posix(), [stat.st_size, stat.st_mtime_ns]
