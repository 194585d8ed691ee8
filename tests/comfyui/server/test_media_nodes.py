"""The media nodes in the real ComfyUI, alone and with its own nodes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from support.comfy_server import RefusedError, Server
from support.media import decoded_sound, make_clip, make_sound, number_of, tone
from support.shifted import shifted

NODES = ("LatentSyncLoadVideo", "LatentSyncVideoLengthAdjuster", "LatentSyncAudio", "LatentSyncSaveVideo")
Prompt = dict[str, Any]


def node(kind: str, **inputs: Any) -> Prompt:
    return {"class_type": kind, "inputs": inputs}


def load(file: str, **changed: Any) -> Prompt:
    whole = {"force_rate": 0, "skip_first_frames": 0, "frame_load_cap": 0, "select_every_nth": 1}
    return node("LatentSyncLoadVideo", file=file, **(whole | changed))


def save(video: list[Any], **changed: Any) -> Prompt:
    usual = {"filename_prefix": "media/out", "format": "mp4 (H.264)", "crf": 16, "fps": 25}
    return node("LatentSyncSaveVideo", video=video, **(usual | changed))


def numbers(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [int(number_of(frame.to_ndarray(format="rgb24"))) for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def media(comfy: Server) -> Iterator[Server]:
    """The server with clips whose frames tell their numbers."""
    folder = comfy.base / "input"
    make_clip(folder / "counted.mp4", 50, audio=tone(2, channels=2))
    make_clip(folder / "pcm.mov", 30, audio=tone(1.2, channels=2), audio_codec="pcm_s16le")
    shifted(folder / "pcm.mov", folder / "late.mov", "audio", 0.36)
    make_clip(folder / "mute.mp4", 20)
    make_clip(folder / "turned.mp4", 10, rotation=90)
    make_clip(folder / "long.mp4", 250, size=(1280, 720), audio=tone(10))
    make_sound(folder / "longer.wav", tone(3.3, 16000), "pcm_s16le", 16000)
    yield comfy


def saved(server: Server, prompt: Prompt, of: str) -> Path:
    run = server.run(prompt)
    assert run.ended == "execution_success", run.error
    (file,) = run.files(of)
    return server.path(file)


def test_every_input_and_output_has_a_tooltip(media: Server) -> None:
    for name in NODES:
        info = media.get(f"/object_info/{name}")[name]
        assert info["category"] == "LatentSync" and info["description"]
        inputs = {k: v for kind in info["input"].values() for k, v in kind.items() if kind is not None}
        inputs = {key: value for key, value in inputs.items() if key not in info["input"].get("hidden", {})}
        assert all(len(value[1]["tooltip"]) > 10 for value in inputs.values()), name
        assert all(info["output_tooltips"]), name


def test_a_part_is_saved_with_its_audio_and_the_workflow(media: Server) -> None:
    part = load("counted.mp4", force_rate=50, skip_first_frames=7, frame_load_cap=6, select_every_nth=3)
    prompt = {"1": part, "2": save(["1", 0]), "3": node("PreviewAny", source=["1", 2])}
    run = media.run(prompt)
    (file,) = run.files("2")
    path = media.path(file)
    assert file["type"] == "output"
    assert numbers(path) == [int(Fraction(7 + 3 * i, 50) * 25) for i in range(6)]
    begin, end = round(7 / 50 * 44100), round(25 / 50 * 44100)
    heard = decoded_sound(media.base / "input/counted.mp4")[:, begin:end]
    np.testing.assert_allclose(decoded_sound(path), heard, atol=2**-23)
    with av.open(str(path)) as container:
        kept = json.loads(container.metadata["prompt"])  # with ComfyUI's own notes on each node
    assert {key: {**prompt[key], **kept[key]} for key in prompt} == kept
    assert all(kept[key]["inputs"] == prompt[key]["inputs"] for key in prompt)
    info = json.loads(run.text("3"))
    assert info == {"fps": 50 / 3, "frames": 6, "width": 64, "height": 48, "duration": 6 / (50 / 3)}


def test_an_unchanged_file_is_remuxed(media: Server) -> None:
    path = saved(media, {"1": load("counted.mp4"), "2": save(["1", 0])}, "2")
    with av.open(str(path)) as new, av.open(str(media.base / "input/counted.mp4")) as old:
        assert [bytes(p) for p in new.demux()] == [bytes(p) for p in old.demux()]


@pytest.mark.parametrize(("kind", "codec"), [("mkv (H.264)", "h264"), ("mov (ProRes 422 HQ)", "prores")])
def test_formats_that_browsers_do_not_play_are_shown_as_a_copy(media: Server, kind: str, codec: str) -> None:
    before = media.files()
    shown = saved(media, {"1": load("pcm.mov", skip_first_frames=1), "2": save(["1", 0], format=kind)}, "2")
    (made,) = {media.base / name for name in media.files() - before} - {shown}
    assert shown.suffix == ".mp4" and made.parent == media.base / "output/media"
    assert numbers(shown) == numbers(made) == list(range(1, 30))
    with av.open(str(made)) as container:
        assert container.streams.video[0].codec_context.name == codec
    heard = decoded_sound(media.base / "input/pcm.mov")[:, 44100 // 25 :]
    np.testing.assert_array_equal(decoded_sound(made), heard)


def test_copies_for_the_page_are_those_of_the_last_run(media: Server) -> None:
    """A node that is given a list shows one copy for every item, and they all stay."""
    folder = media.base / "temp/latentsync"
    prompt = {
        "1": load("mute.mp4", frame_load_cap=10),
        "2": node("GetVideoComponents", video=["1", 0]),
        "3": node("RebatchImages", images=["2", 0], batch_size=5),
        "4": save(["3", 0], format="mkv (H.264)"),
        "5": save(["1", 0], format="mkv (H.264)"),
    }
    others = set(folder.iterdir())
    for crf in (16, 20, 24):
        prompt["4"]["inputs"]["crf"] = crf
        run = media.run(prompt)
        shown = [media.path(file) for file in run.files("4")]
        assert [numbers(path) for path in shown] == [[*range(5)], [*range(5, 10)]]
        assert set(folder.iterdir()) - others >= set(shown)
        if crf == 16:
            (other,) = [media.path(file) for file in run.files("5")]
        assert set(folder.iterdir()) - others == {*shown, other}


def test_the_date_in_a_name_is_filled_in(media: Server) -> None:
    codes = {"yyyy": "%Y", "yy": "%y", "MM": "%m", "dd": "%d", "hh": "%H", "mm": "%M", "ss": "%S"}
    name = "media/%date:" + "-".join(codes) + "%_%date:M.d.h.m.s%_%width%"
    before = datetime.now().replace(microsecond=0)
    path = saved(media, {"1": load("mute.mp4"), "2": save(["1", 0], filename_prefix=name)}, "2")
    long, short, width, _ = path.stem.split("_", 3)
    made = datetime.strptime(long, "-".join(codes.values()))
    assert before <= made <= datetime.now()
    assert short == f"{made.month}.{made.day}.{made.hour}.{made.minute}.{made.second}"
    assert width == "64"


def test_a_delay_of_the_audio_is_kept(media: Server) -> None:
    """Untouched or in part, through VIDEO or AUDIO."""
    prompt = {
        "1": load("late.mov"),
        "2": load("late.mov", skip_first_frames=3),
        "3": node("SaveAudio", audio=["1", 1], filename_prefix="media/sound"),
        "4": save(["1", 0], format="mov (ProRes 422 HQ)"),
        "5": save(["2", 0]),
        "6": node("LoadVideo", file="late.mov"),
        "7": save(["6", 0], format="mkv (H.264)"),
    }
    run = media.run(prompt)
    assert run.ended == "execution_success", run.error
    sound = decoded_sound(media.base / "input/pcm.mov")
    whole = np.pad(sound, ((0, 0), (round(0.36 * 44100), 0)))[:, : 30 * 1764]
    for which, begin in {"3": 0, "4": 0, "5": 3, "7": 0}.items():
        expected = whole[:, begin * 1764 :]
        heard = decoded_sound(media.path(run.files(which)[0]))[:, : expected.shape[1]]  # a packet may go on
        np.testing.assert_allclose(heard, expected, atol=1e-4)


@pytest.mark.parametrize("mode", ["bounce", "loop", "freeze", "cut_off", "silence"])
def test_video_and_audio_become_equally_long(media: Server, mode: str) -> None:
    path = saved(
        media,
        {
            "1": load("counted.mp4"),
            "2": node("LoadAudio", audio="longer.wav"),
            "3": node("LatentSyncVideoLengthAdjuster", video=["1", 0], audio=["2", 0], mode=mode, fps=25),
            "4": save(["3", 0], audio=["3", 1]),
        },
        "4",
    )
    count = 50 if mode in ("cut_off", "silence") else math.ceil(3.3 * 25)
    turned = {"bounce": [49, 48, 47], "loop": [0, 1, 2], "freeze": [49, 49, 49]}.get(mode, [])
    assert numbers(path)[:53] == [*range(50), *turned] and len(numbers(path)) == count
    assert decoded_sound(path).shape == (1, count * 16000 // 25)


def test_audio_is_edited_in_the_order_of_the_inputs(media: Server) -> None:
    changes = {"start": 1, "duration": 2, "offset": 0.5, "gain_db": -6.0206, "sample_rate": 48000}
    path = saved(
        media,
        {
            "1": node("LoadAudio", audio="longer.wav"),
            "2": node("LatentSyncAudio", audio=["1", 0], silence_after=0.25, **changes),
            "3": node("SaveAudio", audio=["2", 0], filename_prefix="media/sound"),
        },
        "3",
    )
    heard = decoded_sound(path)
    assert heard.shape == (1, round(2.75 * 48000))
    assert not heard[:, :23900].any() and not heard[:, -11900:].any()
    expected = tone(3.3, 48000)[:, 48000 : 3 * 48000] / 2
    inner = slice(1000, -1000)
    np.testing.assert_allclose(heard[:, 24000 : 24000 + 96000][:, inner], expected[:, inner], atol=2e-3)


def test_comfyuis_own_nodes_read_and_return_video(media: Server) -> None:
    """Its SaveVideo writes ours; ours takes its LoadVideo, CreateVideo and IMAGE."""
    core = {"filename_prefix": "media/core", "format": "auto", "codec": "auto"}
    prompt = {
        "1": load("pcm.mov", skip_first_frames=2, frame_load_cap=9),
        "2": node("SaveVideo", video=["1", 0], **core),
        "3": node("GetVideoComponents", video=["1", 0]),
        "4": node("CreateVideo", images=["3", 0], audio=["3", 1], fps=["3", 2]),
        "5": save(["4", 0]),
        "6": save(["3", 0], audio=["1", 1]),
        "7": node("LoadVideo", file="pcm.mov"),
        "8": save(["7", 0]),
    }
    run = media.run(prompt)
    assert run.ended == "execution_success", run.error
    heard = decoded_sound(media.base / "input/pcm.mov")
    begin, end = 2 * 1764, 11 * 1764
    for which in ("2", "5", "6"):
        path = media.path(run.files(which)[0])
        assert numbers(path) == list(range(2, 11)), which
        np.testing.assert_array_equal(decoded_sound(path), heard[:, begin:end])
    whole = media.path(run.files("8")[0])
    assert numbers(whole) == list(range(30))
    np.testing.assert_array_equal(decoded_sound(whole), heard)


def test_rotated_video_is_upright_as_images(media: Server) -> None:
    prompt = {
        "1": load("turned.mp4"),
        "2": node("GetVideoComponents", video=["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix="media/image"),
    }
    from PIL import Image

    files = media.run(prompt).files("3")
    assert len(files) == 10
    with Image.open(media.path(files[0])) as picture:
        assert picture.size == (48, 64)


def test_wrong_input_gets_a_clear_message(media: Server) -> None:
    for prompt, words in [
        ({"1": load("absent.mp4"), "2": save(["1", 0])}, "no video 'absent.mp4'"),
        ({"1": load("mute.mp4"), "2": save(["1", 0], format="avi")}, "format is 'avi'; expected one of: mp4"),
    ]:
        with pytest.raises(RefusedError, match=words):
            media.run(prompt)
    for prompt, words in [
        ({"1": load("mute.mp4"), "2": save(["1", 0], audio=["1", 1])}, "The video has no audio"),
        ({"1": load("mute.mp4", skip_first_frames=20), "2": save(["1", 0])}, "the video has 20; skip fewer"),
        (
            {"1": load("mute.mp4", force_rate=0.5), "2": save(["1", 0])},
            "force_rate is 0.5; expected 1 to 240",
        ),
    ]:
        assert words in media.run(prompt).error


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("select_every_nth", 0, "1 to 1000"),
        ("frame_load_cap", -1, "0 to 2147483647"),
        ("skip_first_frames", -3, "0 to 2147483647"),
        ("force_rate", -1.5, "0.0 to 240.0"),
        ("start", -0.3, "0.0 to 86400.0"),
        ("silence_after", -0.3, "0.0 to 86400.0"),
        ("sample_rate", -5, "0 to 192000"),
        ("crf", 99, "0 to 51"),
    ],
)
def test_a_linked_value_has_the_range_of_its_widget(
    media: Server, name: str, value: float, expected: str
) -> None:
    """ComfyUI itself checks only what is typed."""
    usual = {"start": 0, "duration": 0, "offset": 0, "gain_db": 0, "sample_rate": 0, "silence_after": 0}
    prompt = {
        "1": load("counted.mp4"),
        "2": node("LatentSyncAudio", audio=["1", 1], **usual),
        "3": save(["1", 0], audio=["2", 0]),
        "4": node("PrimitiveInt" if isinstance(value, int) else "PrimitiveFloat", value=value),
    }
    (taker,) = [taken for taken in prompt.values() if name in taken["inputs"]]
    taker["inputs"][name] = ["4", 0]
    assert media.run(prompt).error == f"{name} is {value}; expected {expected}."


def test_unusable_audio_fails_only_where_it_is_used(media: Server) -> None:
    prompt = {
        "1": load("mute.mp4"),
        "2": node("GetVideoComponents", video=["1", 0]),
        "3": node("CreateVideo", images=["2", 0], audio=["1", 1], fps=25.0),
        "4": save(["3", 0]),
    }
    assert "The video has no audio" in media.run(prompt).error
    prompt["5"] = load("pcm.mov", frame_load_cap=20)
    prompt["4"]["inputs"]["audio"] = ["5", 1]
    assert decoded_sound(saved(media, prompt, "4")).shape == (2, 20 * 1764)


def test_a_moved_result_gets_a_clear_message(media: Server) -> None:
    """Its node does not run again by itself, for nothing that it depends on has changed."""
    first = save(["1", 0], filename_prefix="media/moved")
    prompt = {"1": load("mute.mp4", skip_first_frames=1), "2": first, "3": save(["2", 0])}
    saved(media, prompt, "2").unlink()
    prompt["3"]["inputs"]["format"] = "mkv (H.264)"
    error = media.run(prompt).error
    assert "media/moved_00001_.mp4 was moved, deleted or replaced" in error and "run it again" in error
    first["inputs"]["crf"] = 20
    assert saved(media, prompt, "3").is_file()


def test_a_file_is_read_again_only_when_it_has_changed(media: Server) -> None:
    prompt = {"1": load("again.mp4"), "2": node("PreviewAny", source=["1", 2])}
    counts = []
    for frames in (5, 5, 8):
        if frames not in counts:
            make_clip(media.base / "input/again.mp4", frames)
        run = media.run(prompt)
        counts.append(len(run.of("executed")) and json.loads(run.text("2"))["frames"])
        cached = run.of("execution_cached")[0]["nodes"]
        assert ("1" in cached) == (len(counts) == 2)
    assert counts[0] == 5 and counts[2] == 8


def test_a_cancelled_run_leaves_no_file(media: Server) -> None:
    before = media.files()

    def stop(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data["value"] == 10:
            media.interrupt()

    prompt = {"1": load("long.mp4", skip_first_frames=1), "2": save(["1", 0], format="mov (ProRes 422 HQ)")}
    assert media.run(prompt, on_message=stop).ended == "execution_interrupted"
    assert media.files() == before
