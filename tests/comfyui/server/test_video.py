"""The interface of our VIDEO that only other packs use: streams, buffers and parts."""

import os
import subprocess

from support.comfy_server import PACK_FOLDER, Server
from support.media import make_clip, tone

SCRIPT = """
import gc, importlib.util, io, os, sys
from pathlib import Path

folder, base = sys.argv[1:]
sys.argv = ["main.py", "--cpu", "--base-directory", base]
sys.path.insert(0, ".")
import comfy.options

comfy.options.enable_args_parsing()
import utils.extra_config  # or what comes later finds another utils
spec = importlib.util.spec_from_file_location(folder, folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules[folder] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

import av, folder_paths, numpy as np, torch
from comfy_api.latest import InputImpl, Types

videos = importlib.import_module(folder + ".latentsync.comfyui.media")
nodes = importlib.import_module(folder + ".nodes")


def said(call, *given, **named):
    try:
        call(*given, **named)
    except Exception as error:
        assert type(error).__name__ in ("VideoError", "AudioError", "InputError"), repr(error)
        return str(error)
    raise AssertionError("no error")


whole = videos.LazyVideo(videos.open_clip(Path(base, "input", "streamed.mp4")))
part = videos.LazyVideo(whole.clip.select(2, 10))
temp = Path(folder_paths.get_temp_directory(), "latentsync")
before = set(temp.glob("*"))

with torch.inference_mode():
    assert whole.get_stream_source() == str(Path(base, "input", "streamed.mp4"))
    assert (part.get_dimensions(), part.get_frame_count(), part.get_duration()) == ((64, 48), 10, 0.4)

    source = part.get_stream_source()
    assert Path(source).parent == temp and source == part.get_stream_source()
    with av.open(source) as container:
        assert sum(1 for _ in container.decode(video=0)) == 10

    buffer = io.BytesIO()
    part.save_to(buffer, metadata={"workflow": {"nodes": []}})
    core = InputImpl.VideoFromFile(buffer)
    assert core.get_components().images.shape == (10, 48, 64, 3)
    assert core.get_components().metadata["workflow"] == '{"nodes": []}'

    again = videos.clip_of(core, 1.0)
    assert again.frames.fps == 25 and again.read_audio()[0].shape == (2, 17640)
    for one, other in zip(again.frames.frames(), part.get_components().images, strict=True):
        assert np.abs(one / 255 - other.numpy()).mean() < 0.02

    trimmed = part.as_trimmed(0.08, 0.2)
    components = trimmed.get_components()
    assert torch.equal(components.images, part.get_components().images[2:7])
    assert components.audio["waveform"].shape == (1, 2, 8820)
    assert part.as_trimmed(9) is None and part.as_trimmed(0, 1, True) is None
    assert part.as_trimmed(0, 1).get_frame_count() == 10
    for start, duration, kept in [(-0.2, 0, slice(5, 10)), (-0.2, 0.08, slice(5, 7)), (-9, 0.08, slice(0, 2))]:
        images = part.as_trimmed(start, duration).get_components().images  # from the end, as ComfyUI counts
        assert torch.equal(images, part.get_components().images[kept])

    os.unlink(source)  # by somebody who emptied the folder
    with av.open(part.get_stream_source()) as container:
        assert sum(1 for _ in container.decode(video=0)) == 10
    source = part.get_stream_source()

    free, videos.available_ram = videos.available_ram, lambda: 10 * 48 * 64 * 12 - 1
    assert "all 10 frames of 64x48 as images" in said(part.get_components)
    videos.available_ram = free

    assert "returned nothing; expected VIDEO or IMAGE" in said(videos.clip_of, None, 25.0)
    inputs = nodes.LatentSyncVideoLengthAdjuster.define_schema().inputs
    linked = said(nodes.check_widgets, inputs, {"mode": "bogus"})
    assert linked == "mode is 'bogus'; expected one of: bounce, loop, freeze, cut_off, silence."
    linked = said(nodes.check_widgets, nodes.LatentSyncAudio.define_schema().inputs, {"start": None})
    assert linked.startswith("start is None; expected 0.0 to")

    copy = Path(base, "input", "copy.mp4")
    copy.write_bytes(Path(whole.get_stream_source()).read_bytes())
    gone = videos.LazyVideo(videos.open_clip(copy))
    copy.write_bytes(b"another")
    assert "moved, deleted or replaced" in said(videos.clip_of, gone, 25.0)
    copy.unlink()
    assert "moved, deleted or replaced" in said(gone.get_stream_source)

    bad = {"waveform": torch.zeros(1, 2, 0), "sample_rate": 16000}
    parts = Types.VideoComponents(images=torch.zeros(9, 8, 8, 3), audio=bad, frame_rate=25)
    unheard = videos.clip_of(InputImpl.VideoFromComponents(parts), 1.0)
    assert unheard.select(2).frames.frame_estimate == 7
    assert "audio array is empty" in said(unheard.select(2).read_audio)

    class Cut(InputImpl.VideoFromFile):  # as newer versions of ComfyUI do
        def get_active_trim_window(self):
            return 0.4, 0.2

    class FromTheEnd(InputImpl.VideoFromFile):
        def get_active_trim_window(self):
            return -0.2, 0.0

    class Edited(InputImpl.VideoFromFile):
        def has_pending_frame_edits(self):
            return True

        def get_stream_source(self):
            raise AssertionError("the unedited stream")

    cut = videos.clip_of(Cut(whole.get_stream_source()), 1.0)
    assert torch.equal(videos.LazyVideo(cut).get_components().images, whole.get_components().images[10:15])
    last = videos.clip_of(FromTheEnd(whole.get_stream_source()), 1.0)
    assert torch.equal(videos.LazyVideo(last).get_components().images, whole.get_components().images[25:])
    assert videos.clip_of(Edited(source), 1.0).frames.frame_estimate == 10

del part, again, trimmed, core, cut, last
gc.collect()
assert set(temp.iterdir()) == before
print("done")
"""


def test_video_implements_the_interface_that_other_packs_use(comfy: Server) -> None:
    make_clip(comfy.base / "input/streamed.mp4", 30, audio=tone(1.2, channels=2))
    answer = subprocess.run(
        [comfy.python, "-c", SCRIPT, comfy.base / "custom_nodes" / PACK_FOLDER, comfy.base],
        cwd=comfy.tree,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.stdout.splitlines()[-1:] == ["done"], answer.stderr
