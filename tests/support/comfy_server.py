"""A real ComfyUI server in its own folder, and a client for tests."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
MADE = REPOSITORY / "build" / "comfyui"  # where `make comfy` puts one
PACK_FOLDER = "Lätent Sync 唇"  # a space and letters that are not ASCII
PLAIN_FOLDER = "ComfyUI-LatentSync-MEMSAFE"
PROGRESS = "latentsync.memsafe.progress"
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.32.9"}
# glibc gives back what is freed, so that the resident size is what is held (environment variables of glibc only).
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "output", "tests", "1.5", "1.6")


class RefusedError(Exception):
    """A prompt that ComfyUI did not queue; the text holds its message for every node."""


@dataclass
class Run:
    """Result of a prompt: the websocket messages in order, and the history entry."""

    prompt_id: str
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)  # of the nodes that show something

    @property
    def ended(self) -> str:
        """execution_success, execution_error or execution_interrupted."""
        return self.messages[-1][0]

    @property
    def error(self) -> str:
        """The one message of a node that failed; empty if none did."""
        kind, data = self.messages[-1]
        return str(data["exception_message"]).strip() if kind == "execution_error" else ""

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The messages of one kind."""
        return [data for name, data in self.messages if name == kind]

    def files(self, node: str) -> list[dict[str, str]]:
        """Return filename, subfolder and type of each file that a node shows."""
        return [file for value in self.outputs.get(node, {}).values() for file in value if _is_file(file)]

    def text(self, node: str) -> str:
        """The text a node shows."""
        return "\n".join(self.outputs.get(node, {}).get("text", []))


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and "filename" in value


def find_comfyui() -> tuple[Path, Path] | None:
    """ComfyUI's folder and the interpreter to run it with: COMFYUI_PATH, or the one `make comfy` made."""
    tree = Path(os.environ.get("COMFYUI_PATH", MADE / "ComfyUI")).expanduser().resolve()
    if not (tree / "main.py").is_file():
        return None
    within = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    places = [folder / name / within for folder in (tree, tree.parent) for name in ("venv", ".venv")]
    places.append(tree.parent / "python_embeded" / "python.exe")  # the portable build, spelled so
    found = [place for place in places if place.is_file()]
    return tree, Path(os.environ.get("COMFYUI_PYTHON", found[0] if found else sys.executable))


def copy_pack(folder: Path) -> None:
    """The pack as a user's clone has it; big weights stay where they are."""
    shutil.copytree(REPOSITORY, folder, ignore=LEFT_OUT)
    shutil.rmtree(folder / "checkpoints" / "faces", ignore_errors=True)


def write_decoy(folder: Path) -> None:
    """A pack that puts packages with our folders' names on sys.path, and has a node that uses its own."""
    for name in ("latentsync", "memsafe"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("OWNER = 'decoy'\n", "utf-8")
    (folder / "__init__.py").write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, str(Path(__file__).parent))\n"
        "class Decoy:\n"
        "    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = 'decoy', 'run', (), True\n"
        "    @classmethod\n"
        "    def INPUT_TYPES(cls):\n"
        "        return {'required': {}}\n"
        "    def run(self):\n"
        "        import latentsync, memsafe\n"
        "        return {'ui': {'text': [latentsync.OWNER, memsafe.OWNER]}}\n"
        "NODE_CLASS_MAPPINGS = {'Decoy': Decoy}\n",
        "utf-8",
    )


class Server:
    """ComfyUI with the pack and the decoy below `base`, from `start` to `stop`."""

    def __init__(self, tree: Path, python: Path, base: Path):
        self.tree, self.python, self.base = tree, python, base
        for name in ("custom_nodes", "input", "output", "temp", "models/latentsync", "user/default"):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "user/default/comfy.settings.json").write_text(json.dumps(SETTINGS), "utf-8")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """All it has printed so far."""
        return (self.base / "log.txt").read_text("utf-8", errors="replace")

    def start(self, seconds: float = 180) -> None:
        """Returns when it answers; raises RuntimeError with the end of its log if it does not."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [self.python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", self.base]
        command += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        with (self.base / "log.txt").open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.tree,
                env={**environment, **GIVE_BACK, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUTF8": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"ComfyUI did not start:\n{self.log[-3000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def rss(self) -> int:
        """Bytes of RAM the server holds, child processes too."""
        parent = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in [parent, *parent.children(recursive=True)])

    def files(self) -> set[str]:
        """The files below output and temp, relative to the base folder."""
        found = (p for name in ("output", "temp") for p in (self.base / name).rglob("*") if p.is_file())
        return {p.relative_to(self.base).as_posix() for p in found}

    def path(self, file: dict[str, str]) -> Path:
        """Return the path of a file from filename, subfolder and type."""
        return self.base / file["type"] / file["subfolder"] / file["filename"]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, data: Any = None) -> Any:
        body = json.dumps(data or {}).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def interrupt(self) -> None:
        self.post("/interrupt")

    def run(
        self,
        prompt: dict[str, Any],
        on_message: Callable[[str, dict[str, Any]], None] | None = None,
        seconds: float = 300,
    ) -> Run:
        """Queue a prompt in API format and wait for its end; raises RefusedError if it is not queued.

        `on_message(kind, data)` sees every message as it comes.
        """
        from websockets.sync.client import connect

        client = uuid.uuid4().hex
        until = time.monotonic() + seconds
        with connect(f"ws://127.0.0.1:{self.port}/ws?clientId={client}", max_size=None) as socket_:
            run = Run(self._queue(prompt, client))
            while True:
                message = socket_.recv(until - time.monotonic())
                if isinstance(message, bytes):
                    run.previews.append(message)
                    continue
                kind, data = json.loads(message)["type"], json.loads(message)["data"]
                if data.get("prompt_id", run.prompt_id) != run.prompt_id:
                    continue
                run.messages.append((kind, data))
                if on_message:
                    on_message(kind, data)
                if kind in ("execution_success", "execution_error", "execution_interrupted"):
                    break
        run.outputs = self._history(run.prompt_id)["outputs"]
        return run

    def _queue(self, prompt: dict[str, Any], client: str) -> str:
        try:
            return str(self.post("/prompt", {"prompt": prompt, "client_id": client})["prompt_id"])
        except urllib.error.HTTPError as refusal:
            raise RefusedError(refusal.read().decode()) from None

    def _history(self, prompt_id: str) -> dict[str, Any]:
        """The entry appears a moment after the last message."""
        for _ in range(100):
            if found := self.get(f"/history/{prompt_id}"):
                return dict(found[prompt_id])
            time.sleep(0.05)
        raise TimeoutError(f"prompt {prompt_id} never reached the history")
