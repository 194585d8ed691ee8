"""One file from the Hugging Face hub: resumed where it stopped, checked, then moved into place.

The hub's library finds the address and carries the bytes (so HF_ENDPOINT, tokens, proxies and time-outs are
honoured). Its own hf_hub_download is not used: recent versions begin again after every interruption and
compare no hash.
"""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...memsafe import Cancelled
from ..errors import DownloadError
from .checkpoints import WeightFile
from .verified import digest_of, is_verified, remember

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # file name, bytes so far, bytes in all


@dataclass(frozen=True)
class _Remote:
    url: str  # of the very version that size and digest describe
    size: int
    digest: str  # SHA-256 or git blob SHA-1, hex


def fetch(
    file: WeightFile, root: Path, progress: Progress | None = None, endpoint: str | None = None
) -> Path:
    """Make sure that `file` is complete and right below `root`; returns its path.

    A file noted as verified is returned without asking the hub. Any other one already there is compared
    with the hub's size and hash, and set aside (`.wrong`) and fetched anew if it differs. `endpoint`
    replaces HF_ENDPOINT. Raises DownloadError saying what to place where by hand.
    """
    target = root / file.relative
    if is_verified(root, target):
        return target
    url = _url(file, None, endpoint)
    try:
        remote = _ask(file, endpoint)
    except Exception as error:  # each version of the hub's library raises another HTTP client's errors
        return _without_hub(file, root, url, error)
    if target.is_file():
        if target.stat().st_size == remote.size and digest_of(target, remote.digest) == remote.digest:
            remember(root, target, remote.digest)
            return target
        aside = target.with_name(f"{target.name}.wrong")
        log.warning("%s is not the file at %s; it was moved to %s.", target, url, aside.name)
        target.replace(aside)
    part = _transfer(file, target, remote, progress)
    found = digest_of(part, remote.digest)
    if found != remote.digest:
        part.unlink()
        raise _failure(url, target, f"its hash is {found[:12]}..., the hub states {remote.digest[:12]}...")
    part.replace(target)
    remember(root, target, remote.digest)
    return target


def _url(file: WeightFile, revision: str | None, endpoint: str | None) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(file.repository, file.name, revision=revision, endpoint=endpoint)


def _ask(file: WeightFile, endpoint: str | None) -> _Remote:
    """The newest version's address, size and hash."""
    from huggingface_hub import get_hf_file_metadata

    answer = get_hf_file_metadata(_url(file, None, endpoint))
    digest = (answer.etag or "").lower()
    if answer.size is None or len(digest) not in (40, 64) or set(digest) - set("0123456789abcdef"):
        raise ValueError(
            f"the server states size {answer.size} and ETag {answer.etag!r}, not a size and a hash"
        )
    return _Remote(_url(file, answer.commit_hash, endpoint), answer.size, digest)


def _without_hub(file: WeightFile, root: Path, url: str, error: Exception) -> Path:
    """What can be said about a file while the hub cannot be asked."""
    target = root / file.relative
    if not target.is_file():
        raise _failure(url, target, _reason(error)) from error
    if file.sha256 is None:
        log.warning(
            "%s could not be compared with %s (%s); it is used as it is.", target, url, _reason(error)
        )
        return target
    if digest_of(target, file.sha256) != file.sha256:
        raise _failure(url, target, f"the file there has another hash, and {_reason(error)}") from error
    remember(root, target, file.sha256)
    return target


def _transfer(file: WeightFile, target: Path, remote: _Remote, progress: Progress | None) -> Path:
    """The complete download next to `target`, not yet checked; continues a part left by an earlier run."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    # The digest in the name keeps the bytes of two versions from being joined.
    part = target.with_name(f"{target.name}.{remote.digest[:12]}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.is_file() else 0
        if have > remote.size:
            part.unlink()
            have = 0
        free = shutil.disk_usage(target.parent).free
        if free < remote.size - have:
            raise OSError(
                f"{(remote.size - have) / 2**30:.2f} GiB are still needed, {free / 2**30:.2f} GiB are free"
            )
        if have < remote.size:
            with _Part(part, file.name, remote.size, progress) as out, _own_bar(progress is None):
                http_get(
                    remote.url, out, resume_size=have, headers=build_hf_headers(), expected_size=remote.size
                )
    except Cancelled:
        raise  # the caller's progress function asked to stop
    except Exception as error:  # see fetch
        raise _failure(remote.url, target, _reason(error)) from error
    if progress:
        progress(file.name, remote.size, remote.size)
    return part


class _Part(io.FileIO):
    """A file that is continued at its end and reports its length."""

    def __init__(self, path: Path, name: str, size: int, progress: Progress | None) -> None:
        super().__init__(str(path), "ab")
        self._report = (lambda: progress(name, self.tell(), size)) if progress else (lambda: None)

    def write(self, data: Any) -> int:
        view = memoryview(data)
        written = 0
        while written < len(view):  # an unbuffered file may take less than it is given
            written += super().write(view[written:]) or 0
        self._report()
        return written


@contextmanager
def _own_bar(wanted: bool) -> Iterator[None]:
    """Without the library's progress bar where the caller shows its own."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if wanted or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _failure(url: str, target: Path, reason: str) -> DownloadError:
    return DownloadError(f"Could not download {url} ({reason}); try again, or save that file as {target}.")
