"""The sync nodes: what they are called, what can be set, and who does the work."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from comfy_api.latest import ComfyExtension, io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from .latentsync.comfyui.host import ComfyHost, errors_for_comfy
from .latentsync.comfyui.media_nodes import CATEGORY, MEDIA_NODES
from .latentsync.comfyui.models import (
    PRECISIONS,
    compute_device,
    load_model,
    model_roots,
    register_model_folder,
)
from .latentsync.comfyui.outputs import images_wanted
from .latentsync.comfyui.sync import foresee, sync
from .latentsync.comfyui.sync_inputs import (
    ATTENTION_MODES,
    FACE_SELECTIONS,
    MEMORY_MODES,
    MISSING_FACES,
    OUTPUT_MODES,
    LatentSyncModel,
    inference_steps,
    lips_expression,
    memory_mode,
    sync_inputs,
    vram_limit_gb,
)
from .latentsync.comfyui.widgets import check_choices, check_widgets
from .latentsync.report import Report
from .latentsync.weights.checkpoints import installed_models
from .memsafe import DeviceInfo, probe

OFFLOADS = {"auto": None, "always": True, "never": False}
AS_NODE = "as in the sync node"


class LatentSync16MEMSAFE(io.ComfyNode):
    """A video or portrait that speaks what is heard."""

    @cached_property
    def device(self) -> DeviceInfo:
        """The GPU, or else the CPU, that ComfyUI computes on."""
        return probe(compute_device())

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSync16MEMSAFE",
            display_name="LatentSync 1.6 MEMSAFE",
            category=CATEGORY,
            description="Moves the lips in a video to a sound, with memory that does not grow with its length.",
            inputs=sync_inputs(),
            outputs=[
                io.Image.Output(display_name="images", tooltip="All frames, see output_mode."),
                io.Audio.Output(display_name="audio", tooltip="The sound as it came."),
                io.String.Output(
                    display_name="video_path", tooltip="The file of the result, with the sound."
                ),
                io.Video.Output(display_name="video", tooltip="That file, read when needed."),
                io.String.Output(display_name="report", tooltip="What was done, in numbers, as JSON."),
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
    ) -> bool | str:
        return check_choices(
            memory_mode=(memory_mode, MEMORY_MODES),
            attention_mode=(attention_mode, ATTENTION_MODES),
            output_mode=(output_mode, OUTPUT_MODES),
            face_selection=(face_selection, FACE_SELECTIONS),
            missing_face=(missing_face, MISSING_FACES),
        )

    @classmethod
    def fingerprint_inputs(cls, output_mode: str | None = None, **_others: Any) -> bool:
        """Whether images are called for: a result without them is no use to a node that is connected later."""
        return output_mode not in ("video_file", "frames") and images_wanted()

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
            check_widgets(sync_inputs(), settings)
            done = sync(video, images, audio, model, mask, cls.hidden, settings)
        return io.NodeOutput(
            ExecutionBlocker(done.blocked) if done.images is None else done.images,
            audio,
            str(done.path),
            done.video,
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
        return check_choices(
            checkpoint=(checkpoint, installed_models(model_roots())),
            precision=(precision, list(PRECISIONS)),
            attention=(attention, [AS_NODE, *ATTENTION_MODES]),
            offload=(offload, list(OFFLOADS)),
        )

    @classmethod
    def execute(
        cls, checkpoint: str, precision: str, attention: str, offload: str, auto_download: bool
    ) -> io.NodeOutput:
        choices = {
            "checkpoint": checkpoint,
            "precision": precision,
            "attention": attention,
            "offload": offload,
        }
        with errors_for_comfy():
            check_widgets(cls.define_schema().inputs, choices)
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
                lips_expression("As in the sync node; above 1.0 takes twice the time."),
                inference_steps("As in the sync node."),
                memory_mode("As in the sync node."),
                vram_limit_gb("As in the sync node; 0: all there is."),
            ],
            outputs=[io.String.Output(display_name="plan", tooltip="The plan as text.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, memory_mode: str | None = None) -> bool | str:
        return check_choices(memory_mode=(memory_mode, MEMORY_MODES))

    @classmethod
    def execute(
        cls, video: Any = None, audio: Any = None, model: Any = None, **settings: Any
    ) -> io.NodeOutput:
        with errors_for_comfy():
            check_widgets(cls.define_schema().inputs, settings)
            text = foresee(video, audio, model, settings)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


class LatentSyncExtension(ComfyExtension):
    """All nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LatentSync16MEMSAFE, LatentSyncModelLoader, *MEDIA_NODES, LatentSyncMemoryPlan]


async def comfy_entrypoint() -> ComfyExtension:
    """What ComfyUI calls when it has imported this pack."""
    register_model_folder()
    return LatentSyncExtension()
