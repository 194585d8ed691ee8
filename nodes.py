"""All nodes of this pack: names, inputs, outputs, and one call into `latentsync.comfyui` each."""

from __future__ import annotations

from functools import cached_property
from typing import Any

try:
    from comfy_api.latest import ComfyExtension, io, ui
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "comfy_api":
        raise
    raise ImportError(
        "The LatentSync nodes need ComfyUI 0.3.64 or newer: its package comfy_api.latest is not there. Outside "
        "ComfyUI use latentsync_memsafe.latentsync.LipSyncPipeline or the command latentsync-memsafe."
    ) from error
from comfy_execution.graph_utils import ExecutionBlocker

from .latentsync.comfyui import inputs, media
from .latentsync.comfyui.errors import check_choices, check_widgets, errors_for_comfy
from .latentsync.comfyui.host import ComfyHost
from .latentsync.comfyui.models import compute_device, load_model, model_roots, register_model_folder
from .latentsync.comfyui.outputs import images_connected, save_video
from .latentsync.comfyui.sync import plan_text, sync
from .latentsync.report import Report
from .latentsync.weights.checkpoints import installed_models
from .memsafe import DeviceInfo, probe

CATEGORY = "LatentSync"


class LatentSync16MEMSAFE(io.ComfyNode):
    """Lip-sync a video or portrait to audio."""

    @cached_property
    def device(self) -> DeviceInfo:
        """The device that ComfyUI computes on."""
        return probe(compute_device())

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSync16MEMSAFE",
            display_name="LatentSync 1.6 MEMSAFE",
            category=CATEGORY,
            description="Lip-syncs a video to audio, with memory use that does not grow with the video's length.",
            inputs=inputs.sync_inputs(),
            outputs=[
                io.Image.Output(display_name="images", tooltip="All frames; see output_mode."),
                io.Audio.Output(display_name="audio", tooltip="The input audio, unchanged."),
                io.String.Output(display_name="video_path", tooltip="Path of the result, with audio."),
                io.Video.Output(display_name="video", tooltip="The result, decoded on demand."),
                io.String.Output(display_name="report", tooltip="Figures of the run, as JSON."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        memory_mode: str | None = None,
        attention_mode: str | None = None,
        output_mode: str | None = None,
        face_selection: str | None = None,
        missing_face: str | None = None,
        optimization_level: str | None = None,
        encoder: str | None = None,
    ) -> bool | str:
        return check_choices(
            inputs.sync_inputs(),
            memory_mode=memory_mode,
            attention_mode=attention_mode,
            output_mode=output_mode,
            face_selection=face_selection,
            missing_face=missing_face,
            optimization_level=optimization_level,
            encoder=encoder,
        )

    @classmethod
    def fingerprint_inputs(cls, output_mode: str | None = None, **_others: Any) -> bool:
        """Return whether images are needed, because a cached result without them does not serve a node added later."""
        return output_mode not in ("video_file", "frames") and images_connected()

    @classmethod
    def execute(
        cls,
        audio: Any,
        video: Any = None,
        images: Any = None,
        model: Any = None,
        mask: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        with errors_for_comfy():
            check_widgets(inputs.sync_inputs(), settings)
            result = sync(video, images, audio, model, mask, cls.hidden, settings)
        frames = ExecutionBlocker(result.blocked) if result.images is None else result.images
        shown = ui.PreviewVideo([result.saved])
        return io.NodeOutput(frames, audio, str(result.path), result.video, result.report, ui=shown)


class LatentSyncModelLoader(io.ComfyNode):
    """Load a model for sync nodes; it is kept as long as ComfyUI caches the output."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSyncModelLoader",
            display_name="LatentSync Model Loader",
            category=CATEGORY,
            description="Loads LatentSync once for all runs. ComfyUI moves it between GPU and main memory as needed.",
            inputs=inputs.loader_inputs(installed_models(model_roots())),
            outputs=[inputs.LatentSyncModel.Output(display_name="model", tooltip="Model for the sync node.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        checkpoint: str | None = None,
        precision: str | None = None,
        attention: str | None = None,
        offload: str | None = None,
    ) -> bool | str:
        widgets = cls.define_schema().inputs
        return check_choices(
            widgets, checkpoint=checkpoint, precision=precision, attention=attention, offload=offload
        )

    @classmethod
    def execute(cls, auto_download: bool, **choices: str) -> io.NodeOutput:
        with errors_for_comfy():
            check_widgets(cls.define_schema().inputs, choices)
            fetch = ComfyHost(cls.hidden.unique_id, Report()).download if auto_download else None
            return io.NodeOutput(load_model(**choices, fetch=fetch))


class LatentSyncLoadVideo(io.ComfyNode):
    """Open a file of the input folder, or a part of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSyncLoadVideo",
            display_name="LatentSync Load Video",
            category=CATEGORY,
            description="Opens a video of any length. Frames are decoded one at a time, when another node reads them, "
            "so long videos do not fill the memory.",
            inputs=inputs.load_video_inputs(media.input_videos()),
            outputs=[
                io.Video.Output(display_name="video", tooltip="Selected frames with audio, read on demand."),
                io.Audio.Output(display_name="audio", tooltip="Audio of the selected frames."),
                io.String.Output(
                    display_name="info", tooltip="JSON: fps, frames, width, height, duration in seconds."
                ),
                io.Float.Output(display_name="fps", tooltip="Frames per second of the output."),
                io.Int.Output(display_name="frame_count", tooltip="Frames, by the header of the file."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return media.check_input_file(file)

    @classmethod
    def fingerprint_inputs(cls, file: str, **_others: Any) -> str:
        return media.file_fingerprint(file)

    @classmethod
    def execute(cls, file: str, **numbers: Any) -> io.NodeOutput:
        with errors_for_comfy():
            check_widgets(inputs.load_video_inputs([]), numbers)
            return io.NodeOutput(*media.load_video(file, **numbers))


class LatentSyncVideoLengthAdjuster(io.ComfyNode):
    """Make video and audio equally long."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSyncVideoLengthAdjuster",
            display_name="LatentSync Video Length Adjuster",
            category=CATEGORY,
            description="Makes video and audio equally long. Frames are decoded when another node reads the result.",
            inputs=inputs.length_inputs(),
            outputs=[
                io.Video.Output(display_name="video", tooltip="The video with its new length and the audio."),
                io.Audio.Output(display_name="audio", tooltip="The audio, exactly as long as the video."),
            ],
        )

    @classmethod
    def validate_inputs(cls, mode: str | None = None) -> bool | str:
        return check_choices(inputs.length_inputs(), mode=mode)

    @classmethod
    def execute(cls, video: Any, audio: Any, mode: str, fps: float) -> io.NodeOutput:
        with errors_for_comfy():
            check_widgets(inputs.length_inputs(), {"mode": mode})
            return io.NodeOutput(*media.adjust_length(video, audio, mode, fps))


class LatentSyncAudio(io.ComfyNode):
    """Cut, shift, amplify, resample and pad audio, in this order."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSyncAudio",
            display_name="LatentSync Audio",
            category=CATEGORY,
            description="Edits audio in the order of the inputs. The defaults change nothing.",
            inputs=inputs.audio_inputs(),
            outputs=[io.Audio.Output(display_name="audio", tooltip="The edited audio.")],
        )

    @classmethod
    def execute(cls, audio: Any, **numbers: Any) -> io.NodeOutput:
        with errors_for_comfy():
            check_widgets(inputs.audio_inputs(), numbers)
            return io.NodeOutput(media.edit_audio(audio, **numbers))


class LatentSyncSaveVideo(io.ComfyNode):
    """Write a file into the output folder and show it in the node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSyncSaveVideo",
            display_name="LatentSync Save Video",
            category=CATEGORY,
            description="Writes a video into ComfyUI's output folder, frame by frame, and plays it. The file appears "
            "when it is complete. Audio that starts after the last frame is left out.",
            inputs=inputs.save_inputs(),
            outputs=[
                io.Video.Output(display_name="video", tooltip="The saved file."),
                io.String.Output(display_name="path", tooltip="Path of the saved file."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, format: str | None = None) -> bool | str:
        return check_choices(inputs.save_inputs(), format=format)

    @classmethod
    def execute(
        cls, video: Any, filename_prefix: str, format: str, crf: int, fps: float, audio: Any = None
    ) -> io.NodeOutput:
        with errors_for_comfy():
            check_widgets(inputs.save_inputs(), {"format": format, "crf": crf})
            saved, path, shown = save_video(video, audio, filename_prefix, format, crf, fps, cls.hidden)
        return io.NodeOutput(saved, str(path), ui=ui.PreviewVideo([shown]))


class LatentSyncMemoryPlan(io.ComfyNode):
    """Estimate memory and time of a run before it is started."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSyncMemoryPlan",
            display_name="LatentSync Memory Plan",
            category=CATEGORY,
            description="Estimates a run: tier of the device, batch sizes, peak VRAM, RAM and disk, and the time by "
            "the seconds per frame of earlier runs.",
            inputs=inputs.plan_inputs(),
            outputs=[io.String.Output(display_name="plan", tooltip="The plan as text.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, memory_mode: str | None = None) -> bool | str:
        return check_choices(inputs.plan_inputs(), memory_mode=memory_mode)

    @classmethod
    def execute(
        cls, video: Any = None, audio: Any = None, model: Any = None, **settings: Any
    ) -> io.NodeOutput:
        with errors_for_comfy():
            check_widgets(inputs.plan_inputs(), settings)
            text = plan_text(video, audio, model, settings)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


class LatentSyncExtension(ComfyExtension):
    """The pack, as ComfyUI asks for it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LatentSync16MEMSAFE,
            LatentSyncModelLoader,
            LatentSyncLoadVideo,
            LatentSyncVideoLengthAdjuster,
            LatentSyncAudio,
            LatentSyncSaveVideo,
            LatentSyncMemoryPlan,
        ]


async def comfy_entrypoint() -> ComfyExtension:
    """Register the model folder and return the nodes; ComfyUI calls this after importing the pack."""
    register_model_folder()
    return LatentSyncExtension()
