"""The sync nodes: what they are called, what can be set, and who does the work."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import comfy.model_management as comfy_memory
from comfy_api.latest import ComfyExtension, io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from .comfy_host import ComfyHost, errors_for_comfy
from .comfy_models import PRECISIONS, load_model, model_roots, register_model_folder
from .comfy_sync import foresee, sync
from .comfy_video import LazyVideo
from .latentsync.config import LARGEST_STEPS, MissingFace
from .latentsync.installed import installed_models
from .latentsync.report import Report
from .latentsync.video.clip import open_clip
from .media_nodes import MEDIA_NODES
from .memsafe import DeviceInfo, MemoryMode, probe

CATEGORY = "LatentSync"
MEMORY_MODES = [mode.value for mode in MemoryMode]
ATTENTION_MODES = ["flex", "flash", "standard"]
OUTPUT_MODES = ["auto", "video_file", "frames"]
FACE_SELECTIONS = ["largest", "index", "position"]
MISSING_FACES = [choice.value for choice in MissingFace]
OFFLOADS = {"auto": None, "always": True, "never": False}
AS_NODE = "as in the sync node"
LARGEST_SEED = 2**64 - 1
LARGEST_SIDE = 16384  # pixels

LatentSyncModel = io.Custom("LATENTSYNC_MODEL")


class LatentSync16MEMSAFE(io.ComfyNode):
    """A video or portrait that speaks what is heard."""

    @cached_property
    def device(self) -> DeviceInfo:
        """The GPU, or else the CPU, that ComfyUI computes on."""
        return probe(comfy_memory.get_torch_device())

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSync16MEMSAFE",
            display_name="LatentSync 1.6 MEMSAFE",
            category=CATEGORY,
            description="Moves the lips in a video to a sound, with memory that does not grow with its length.",
            inputs=[
                io.Audio.Input("audio", tooltip="The speech. It decides how long the result is."),
                io.Video.Input(
                    "video",
                    optional=True,
                    tooltip="The video, read frame by frame. If it is shorter than the sound, it goes on backwards "
                    "and forwards. Connect either this or images.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Frames, or a single portrait, instead of a video; 12 bytes of memory a pixel.",
                ),
                io.Float.Input(
                    "fps",
                    default=25.0,
                    min=1.0,
                    max=240.0,
                    step=0.001,
                    tooltip="Frames per second of images; a video has its own.",
                ),
                LatentSyncModel.Input(
                    "model",
                    optional=True,
                    tooltip="From LatentSync Model Loader, which also keeps it loaded between runs. Without one, "
                    "LatentSync 1.6 is loaded for the run.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the picture may change: white yes, black no, grey in part. One mask, or one for "
                    "each frame of the input.",
                ),
                io.Int.Input(
                    "seed",
                    default=1247,
                    min=0,
                    max=LARGEST_SEED,
                    control_after_generate=False,
                    tooltip="Of the noise. The same seed gives the same video.",
                ),
                io.Float.Input(
                    "lips_expression",
                    default=1.5,
                    min=1.0,
                    max=3.0,
                    step=0.1,
                    tooltip="How strongly the lips follow the sound (guidance). 1.0 is twice as fast and weakest.",
                ),
                io.Int.Input(
                    "inference_steps",
                    default=20,
                    min=1,
                    max=LARGEST_STEPS,
                    tooltip="Denoising steps; the time grows with them.",
                ),
                io.Combo.Input(
                    "memory_mode",
                    options=MEMORY_MODES,
                    default=MemoryMode.BALANCED.value,
                    tooltip="How close to the limit of the GPU and of main memory the batches go.",
                ),
                io.Combo.Input(
                    "attention_mode",
                    options=ATTENTION_MODES,
                    default="flash",
                    tooltip="flash: the fastest there is on this device. standard: plain arithmetic. flex: weighs "
                    "the lips more than the model was trained to, which changes the picture.",
                ),
                io.Combo.Input(
                    "output_mode",
                    options=OUTPUT_MODES,
                    default="auto",
                    tooltip="video_file: a file in the output folder, no images. frames: images too, and the file "
                    "only in the temp folder. auto: a file in the output folder, and images where they fit well "
                    "into free memory.",
                ),
                io.Float.Input(
                    "vram_limit_gb",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=0.5,
                    tooltip="Plans as for a GPU with so much memory. 0: all there is.",
                ),
                io.Combo.Input(
                    "face_selection",
                    options=FACE_SELECTIONS,
                    default="largest",
                    tooltip="Whose lips move: the largest face, one by face_index, or the one at face_x, face_y. It "
                    "is followed from then on.",
                ),
                io.Int.Input(
                    "face_index",
                    default=0,
                    min=0,
                    max=99,
                    tooltip="For face_selection index: counted from the left, from 0, in the first frame with a face.",
                ),
                io.Int.Input(
                    "face_x",
                    default=0,
                    min=0,
                    max=LARGEST_SIDE,
                    tooltip="For face_selection position: pixels from the left.",
                ),
                io.Int.Input(
                    "face_y",
                    default=0,
                    min=0,
                    max=LARGEST_SIDE,
                    tooltip="For face_selection position: pixels from the top.",
                ),
                io.Combo.Input(
                    "missing_face",
                    options=MISSING_FACES,
                    default=MissingFace.KEEP.value,
                    tooltip="Frames in which the face is not found: keep them as they are, or end with an error.",
                ),
                io.Boolean.Input(
                    "allow_demo",
                    default=True,
                    tooltip="If no model is connected and LatentSync 1.6 is not installed: use the small demo model, "
                    "of poor quality, with a warning. Off: say which files are missing.",
                ),
                io.Boolean.Input(
                    "allow_frame_windows",
                    default=False,
                    optional=True,
                    tooltip="If memory runs out and nothing else helps: denoise frame by frame, without motion "
                    "between them.",
                ),
                io.Boolean.Input(
                    "allow_lower_resolution",
                    default=False,
                    optional=True,
                    tooltip="If memory runs out and nothing else helps: generate faces at half the resolution.",
                ),
                io.Boolean.Input(
                    "allow_cpu",
                    default=False,
                    optional=True,
                    tooltip="If memory runs out and nothing else helps: go on on the CPU, which takes very long.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="All frames, see output_mode."),
                io.Audio.Output(display_name="audio", tooltip="The sound as it came."),
                io.String.Output(
                    display_name="video_path", tooltip="The file of the result, with the sound."
                ),
                io.Video.Output(display_name="video", tooltip="That file, read when needed."),
                io.String.Output(display_name="report", tooltip="What was done, in numbers, as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
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
    ) -> bool | str:
        return _check_choices(
            memory_mode=(memory_mode, MEMORY_MODES),
            attention_mode=(attention_mode, ATTENTION_MODES),
            output_mode=(output_mode, OUTPUT_MODES),
            face_selection=(face_selection, FACE_SELECTIONS),
            missing_face=(missing_face, MISSING_FACES),
        )

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
        done = sync(video, images, audio, model, mask, cls.hidden.unique_id, settings)
        return io.NodeOutput(
            ExecutionBlocker(done.blocked) if done.images is None else done.images,
            audio,
            str(done.path),
            LazyVideo(open_clip(done.path)),
            done.report,
            ui=ui.PreviewVideo([done.saved]),
        )


class LatentSyncModelLoader(io.ComfyNode):
    """A model for the sync node, kept as long as ComfyUI keeps the link's value."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSyncModelLoader",
            display_name="LatentSync Model Loader",
            category=CATEGORY,
            description="Loads LatentSync once for all runs; ComfyUI moves it between GPU and main memory as needed.",
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=installed_models(model_roots()),
                    default="1.6",
                    tooltip="1.6 (512 px), 1.5 (256 px), demo (small, comes with the pack), or a folder or file of "
                    "models/latentsync. extra_model_paths.yaml may name more places under latentsync.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    tooltip="Of the networks. auto: fp16 or bf16 on a GPU, fp32 on a CPU. int8: most of the "
                    "denoiser's weights in 8 bits: half their memory, a slightly other picture.",
                ),
                io.Combo.Input(
                    "attention",
                    options=[AS_NODE, *ATTENTION_MODES],
                    default=AS_NODE,
                    tooltip="Overrides attention_mode of the sync nodes this model goes to.",
                ),
                io.Combo.Input(
                    "offload",
                    options=list(OFFLOADS),
                    default="auto",
                    tooltip="always: every network is on the GPU only while it works. never: they stay as long as "
                    "ComfyUI has room. auto: always on small cards.",
                ),
                io.Boolean.Input(
                    "auto_download",
                    default=False,
                    tooltip="Fetch what is missing of 1.6, 1.5 (about 5.4 GB) and the face models (42 MB). A "
                    "download that stopped goes on.",
                ),
            ],
            outputs=[LatentSyncModel.Output(display_name="model", tooltip="For the sync node.")],
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
        return _check_choices(
            checkpoint=(checkpoint, installed_models(model_roots())),
            precision=(precision, list(PRECISIONS)),
            attention=(attention, [AS_NODE, *ATTENTION_MODES]),
            offload=(offload, list(OFFLOADS)),
        )

    @classmethod
    def execute(
        cls, checkpoint: str, precision: str, attention: str, offload: str, auto_download: bool
    ) -> io.NodeOutput:
        with errors_for_comfy():
            fetch = ComfyHost(cls.hidden.unique_id, Report()).download if auto_download else None
            model = load_model(
                checkpoint, precision, None if attention == AS_NODE else attention, OFFLOADS[offload], fetch
            )
        return io.NodeOutput(model)


class LatentSyncMemoryPlan(io.ComfyNode):
    """What a run would take, before it is started."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSyncMemoryPlan",
            display_name="LatentSync Memory Plan",
            category=CATEGORY,
            description="Says what a run would hold and how long it would take: tier, batches, peaks of VRAM, RAM and "
            "disk, and seconds per frame as measured before.",
            inputs=[
                io.Video.Input(
                    "video", optional=True, tooltip="The video; otherwise 1920x1080 at 25 fps is meant."
                ),
                io.Audio.Input(
                    "audio", optional=True, tooltip="The speech, for the length; otherwise the video's."
                ),
                LatentSyncModel.Input(
                    "model", optional=True, tooltip="From the loader; otherwise LatentSync 1.6 is meant."
                ),
                io.Float.Input(
                    "lips_expression",
                    default=1.5,
                    min=1.0,
                    max=3.0,
                    step=0.1,
                    tooltip="As in the sync node; above 1.0 takes twice the time.",
                ),
                io.Int.Input(
                    "inference_steps", default=20, min=1, max=LARGEST_STEPS, tooltip="As in the sync node."
                ),
                io.Combo.Input(
                    "memory_mode",
                    options=MEMORY_MODES,
                    default=MemoryMode.BALANCED.value,
                    tooltip="As in the sync node.",
                ),
                io.Float.Input(
                    "vram_limit_gb",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=0.5,
                    tooltip="As in the sync node; 0: all there is.",
                ),
            ],
            outputs=[io.String.Output(display_name="plan", tooltip="The plan as text.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, memory_mode: str | None = None) -> bool | str:
        return _check_choices(memory_mode=(memory_mode, MEMORY_MODES))

    @classmethod
    def execute(
        cls, video: Any = None, audio: Any = None, model: Any = None, **settings: Any
    ) -> io.NodeOutput:
        text = foresee(video, audio, model, settings)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def _check_choices(**given: tuple[str | None, list[str]]) -> bool | str:
    """True, or what is wrong; None is a value that comes over a link and is not known yet."""
    for name, (value, choices) in given.items():
        if value is not None and value not in choices:
            return f"{name} is {value!r}; expected one of: {', '.join(choices)}."
    return True


class LatentSyncExtension(ComfyExtension):
    """All nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LatentSync16MEMSAFE, LatentSyncModelLoader, *MEDIA_NODES, LatentSyncMemoryPlan]


async def comfy_entrypoint() -> ComfyExtension:
    """What ComfyUI calls when it has imported this pack."""
    register_model_folder()
    return LatentSyncExtension()
