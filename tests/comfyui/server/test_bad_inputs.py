"""Messages for unusable inputs, and results for unusual but usable ones."""

from __future__ import annotations

import re
import shutil

import av
import pytest

from support.comfy_server import RefusedError, Server
from support.prompts import Prompt, loader, node, sync_prompt


def frame_count(comfy: Server, prompt: Prompt) -> tuple[int, int, int]:
    """Run; frames, width and height of the sync node's file."""
    run = comfy.run(prompt)
    assert run.ended == "execution_success", run.error
    with av.open(str(comfy.path(run.files("3")[0]))) as container:
        stream = container.streams.video[0]
        return sum(1 for _ in container.decode(stream)), stream.width, stream.height


def failure(comfy: Server, prompt: Prompt) -> str:
    run = comfy.run(prompt)
    assert run.ended == "execution_error"
    assert "\n" not in run.error, "one line"
    return run.error


def with_images(image: str, **extra: dict) -> Prompt:
    prompt = sync_prompt(images=["4", 0])
    del prompt["3"]["inputs"]["video"], prompt["1"]
    return {**prompt, "4": node("LoadImage", image=image), **extra}


def test_no_face(comfy: Server) -> None:
    message = failure(comfy, sync_prompt("faceless.mp4", missing_face="error"))
    assert re.search("No usable face in frame 0 .*Set missing_face to keep", message)


def test_empty_audio(comfy: Server) -> None:
    prompt = sync_prompt(audio="speech.wav")
    prompt["5"] = node("EmptyAudio", duration=0.0, sample_rate=16000, channels=1)
    prompt["3"]["inputs"]["audio"] = ["5", 0]
    assert re.search(r"no samples|empty|no sound", failure(comfy, prompt), re.I)


def test_neither_video_nor_images(comfy: Server) -> None:
    prompt = sync_prompt()
    del prompt["3"]["inputs"]["video"], prompt["1"]
    assert "neither video nor images" in failure(comfy, prompt)


def test_missing_checkpoint_names_files_and_folder(comfy: Server) -> None:
    message = failure(comfy, sync_prompt(allow_demo=False))
    assert "latentsync_unet.pt" in message
    assert str(comfy.base / "models" / "latentsync") in message
    prompt = sync_prompt(model=["6", 0])
    prompt["6"] = loader("1.5")
    message = failure(comfy, prompt)
    assert "latentsync_unet.pt" in message
    assert message.endswith("Choose checkpoint 1.5 and auto_download in the LatentSync Model Loader node.")


def test_half_a_checkpoint_is_not_replaced_by_the_demo(comfy: Server) -> None:
    half = comfy.base / "models/latentsync/1.6/latentsync_unet.pt"
    half.parent.mkdir()
    try:
        half.write_bytes(b"PK")
        message = failure(comfy, sync_prompt(seed=5))
    finally:
        shutil.rmtree(half.parent)
    assert f"is missing {half.parent / 'whisper/tiny.pt'};" in message


@pytest.mark.parametrize(
    ("name", "primitive", "value", "expected"),
    [
        ("inference_steps", "PrimitiveInt", 0, "inference_steps is 0; expected 1 to 999."),
        ("lips_expression", "PrimitiveFloat", 0.5, "lips_expression is 0.5; expected 1.0 to 3.0."),
        ("vram_limit_gb", "PrimitiveFloat", -1.0, "vram_limit_gb is -1.0; expected 0.0 to 1024.0."),
    ],
)
def test_a_value_over_a_link_must_be_in_the_widgets_range(
    comfy: Server, name: str, primitive: str, value: float, expected: str
) -> None:
    prompt = sync_prompt(**{name: ["9", 0]})
    prompt["9"] = node(primitive, value=value)
    assert failure(comfy, prompt) == expected


def test_null_and_a_point_outside_are_named_by_their_widgets(comfy: Server) -> None:
    assert failure(comfy, sync_prompt(memory_mode=None)).startswith("memory_mode is None; expected one of: ")
    outside = sync_prompt(face_selection="position", face_x=5000, face_y=10)
    assert failure(comfy, outside).startswith(
        "face_x and face_y must be pixel coordinates inside the video of 320x320; got (5000, 10)."
    )


@pytest.mark.parametrize(
    "name", ["memory_mode", "attention_mode", "output_mode", "face_selection", "missing_face"]
)
def test_unknown_choice_is_refused_with_the_known_ones(comfy: Server, name: str) -> None:
    with pytest.raises(RefusedError, match=rf"{name} is 'fastest'; expected one of: \w+"):
        comfy.run(sync_prompt(**{name: "fastest"}))


def test_silent_audio_runs(comfy: Server) -> None:
    assert frame_count(comfy, sync_prompt(audio="silence.wav")) == (20, 320, 320)


def test_single_frame_is_repeated_for_the_audio(comfy: Server) -> None:
    assert frame_count(comfy, sync_prompt("one frame.mp4")) == (20, 320, 320)


def test_odd_sizes_are_padded_by_one_pixel(comfy: Server) -> None:
    assert frame_count(comfy, sync_prompt("odd.mkv")) == (20, 318, 320)


def test_an_alpha_channel_is_dropped(comfy: Server) -> None:
    four = node("JoinImageWithAlpha", image=["4", 0], alpha=["4", 1])
    prompt = with_images("transparent.png", **{"7": four})
    prompt["3"]["inputs"]["images"] = ["7", 0]
    assert frame_count(comfy, prompt) == (20, 320, 320)


def test_images_are_blocked_with_a_message_in_mode_video_file(comfy: Server) -> None:
    prompt = sync_prompt(output_mode="video_file")
    prompt["8"] = node("PreviewImage", images=["3", 0])
    assert "use its video or video_path output" in failure(comfy, prompt)
