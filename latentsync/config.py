"""Options of a run and configs of models: frozen dataclasses, checked when they are made. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from .errors import CheckpointError, InputError
from .levels import AGGRESSIVE, OptimizationLevel, Sampling, Solver

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"

MOTION_POSITIONS = 24  # positional encodings of the published motion modules: the longest window, in frames
FACE_DETECTORS = ("auto", "mediapipe", "opencv", "insightface")  # choices of `faces.load_detector`

E = TypeVar("E", bound=Enum)

# One less than the 1,000 training timesteps: the published scheduler adds 1 to every index (steps_offset).
LARGEST_STEPS = 999
# Options that allow a change of the result, or of the device, if memory runs out.
FALLBACKS = ("allow_frame_windows", "allow_lower_resolution", "allow_cpu", "allow_vae_tiling", "allow_int8")
# Fields of SyncOptions that may be None.
_OPTIONAL = ("resolution", "face_index", "reuse_latents", "cache_interval", "audio_stream", "video_stream")


class Length(str, Enum):
    """Input that sets the length of the output."""

    AUDIO = "audio"
    VIDEO = "video"


class Extend(str, Enum):
    """Source of frames when the audio is longer than the video."""

    PINGPONG = "pingpong"  # the video forwards, backwards, forwards, ...
    LOOP = "loop"  # the video again from its start
    FREEZE = "freeze"  # the last frame repeated
    CUT = "cut"  # none: the output ends with the video


class MissingFace(str, Enum):
    """Treatment of frames in which the chosen face is not found."""

    KEEP = "keep"  # the frame stays unchanged
    ERROR = "error"  # the run ends with a FaceError


class Compile(str, Enum):
    """Use of torch.compile."""

    AUTO = "auto"  # where a compiler is found and the run is long enough to gain from it
    ON = "on"
    OFF = "off"


class Deinterlace(str, Enum):
    """Treatment of video whose frames hold two fields, one for every second row."""

    AUTO = "auto"  # one frame from each frame that is flagged as interlaced
    OFF = "off"  # the rows stay as they are
    DOUBLE = "double"  # one frame from each field, at twice the frame rate


class Encoder(str, Enum):
    """Video encoder of the output."""

    AUTO = "auto"  # a hardware encoder where one works, else x264
    X264 = "x264"
    HARDWARE = "hardware"  # NVENC, Quick Sync, AMF or VideoToolbox


@dataclass(frozen=True)
class SyncOptions:
    """Options of one lip-sync run; raises InputError for a value out of range."""

    seed: int = 1247  # random seed, 0 .. 2**64 - 1
    steps: int = 20  # denoising steps, 1 .. 999
    guidance: float = 1.5  # classifier-free guidance; 1.0 turns it off; useful range 1.0 .. 3.0
    resolution: int | None = None  # face size in pixels, a multiple of 64; None: the model's own
    fps: Fraction | None = None  # output frame rate; None: the video's own (arrays: 25)
    length: Length = Length.AUDIO
    extend: Extend = Extend.PINGPONG
    face_index: int | None = None  # 0: leftmost face of the first frame with a face; None: the largest
    face_at: tuple[float, float] | None = None  # pixel (x, y) inside or nearest to the wanted face
    missing_face: MissingFace = MissingFace.KEEP
    crf: int = 16  # H.264 quality, 0 (lossless) .. 51
    reuse_latents: float | None = None  # 0 .. 255: encode a face again only if a patch differs by more
    # Fallbacks that change the result or take long; used only if memory runs out and no exact step is left.
    allow_frame_windows: bool = False  # denoise 8, 4, 2 or 1 frames together instead of a whole window
    allow_lower_resolution: bool = False  # generate smaller faces, in steps of 64 pixels down to half
    allow_cpu: bool = False  # run networks on the CPU
    allow_vae_tiling: bool = False  # let the VAE work on overlapping tiles, whose seams show slightly
    allow_int8: bool = False  # store most of the denoiser's weights in 8 bits
    # The published code's arithmetic (integer points, 25 fps index, its frame count), for comparison only.
    parity: bool = False
    # Speed. None: as the level says.
    optimization_level: OptimizationLevel = OptimizationLevel.BALANCED
    solver: Solver | None = None
    cache_interval: int | None = None  # 1 .. 10: every how many steps the whole UNet is computed; 1: in all
    guidance_interval: tuple[float, float] | None = None  # shares of the steps, 0 .. 1: guided between them
    compile: Compile = Compile.AUTO
    encoder: Encoder = Encoder.AUTO
    # Numbers among the streams of the input file, from 0; None: the one flagged as default, else the first.
    audio_stream: int | None = None
    video_stream: int | None = None
    deinterlace: Deinterlace = Deinterlace.AUTO

    def __post_init__(self) -> None:
        self._set("length", _choice(Length, self.length, "length"))
        self._set("extend", _choice(Extend, self.extend, "extend"))
        self._set("missing_face", _choice(MissingFace, self.missing_face, "missing_face"))
        level = _choice(OptimizationLevel, self.optimization_level, "optimization_level")
        self._set("optimization_level", level)
        self._set("compile", _choice(Compile, self.compile, "compile"))
        self._set("encoder", _choice(Encoder, self.encoder, "encoder"))
        self._set("deinterlace", _choice(Deinterlace, self.deinterlace, "deinterlace"))
        if self.solver is not None:
            self._set("solver", _choice(Solver, self.solver, "solver"))
        self._check_integer("cache_interval", 1, 10, "an integer from 1 (off) to 10")
        if self.guidance_interval is not None:
            interval = tuple(self.guidance_interval)
            right = len(interval) == 2 and all(_is_finite(share) for share in interval)
            right = right and 0 <= interval[0] <= interval[1] <= 1
            _check(
                right, "guidance_interval", self.guidance_interval, "two shares of the steps such as 0, 0.5"
            )
            self._set("guidance_interval", (float(interval[0]), float(interval[1])))
        if self.fps is not None:
            self._set("fps", as_fps(self.fps))
        self._check_integer("seed", 0, 2**64 - 1, "an integer from 0 to 2**64 - 1")
        self._check_integer("steps", 1, LARGEST_STEPS, f"an integer from 1 to {LARGEST_STEPS}")
        self._check_number("guidance", 1.0, 20.0, "a number from 1.0 to 20.0")
        self._check_integer("resolution", 64, 1024, "a multiple of 64 from 64 to 1024", multiple=64)
        self._check_integer("crf", 0, 51, "an integer from 0 to 51")
        for name in ("face_index", "audio_stream", "video_stream"):
            self._check_integer(name, 0, math.inf, "0 or a positive integer")
        self._check_number("reuse_latents", 0.0, 255.0, "a mean difference from 0 to 255")
        if self.face_at is not None:
            point = tuple(self.face_at)
            right = len(point) == 2 and all(_is_finite(value) for value in point)
            _check(right, "face_at", self.face_at, "two numbers x, y")
            self._set("face_at", (float(point[0]), float(point[1])))
        if self.face_index is not None and self.face_at is not None:
            raise InputError("were both given; give one of them.", options=("face_index", "face_at"))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen

    def _check_integer(self, name: str, low: int, high: float, expected: str, multiple: int = 1) -> None:
        """Check an integer unless it may be None and is; convert numpy integers."""
        value = getattr(self, name)
        if value is None and name in _OPTIONAL:
            return
        _check(_is_integer(value) and low <= value <= high and value % multiple == 0, name, value, expected)
        self._set(name, int(value))

    def _check_number(self, name: str, low: float, high: float, expected: str) -> None:
        value = getattr(self, name)
        if value is not None or name not in _OPTIONAL:
            _check(_is_finite(value) and low <= value <= high, name, value, expected)

    @property
    def sampling(self) -> Sampling:
        """The steps to take: the level's, with those choices that are made in the options."""
        exact = Sampling(self.steps, guidance=self.guidance)
        aggressive = self.optimization_level is OptimizationLevel.AGGRESSIVE and not self.parity
        base = replace(exact, **AGGRESSIVE, steps=math.ceil(self.steps / 2)) if aggressive else exact
        chosen = {name: getattr(self, name) for name in ("solver", "cache_interval", "guidance_interval")}
        return replace(base, **{name: value for name, value in chosen.items() if value is not None})

    @property
    def permissions(self) -> tuple[str, ...]:
        """Names of the fallback options that are set."""
        return tuple(name for name in FALLBACKS if getattr(self, name))


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and sampling settings of one checkpoint, as in its YAML file."""

    name: str = "1.6"
    resolution: int = 512  # pixels; face size of the training data
    num_frames: int = 16  # frames per window
    unet: Mapping[str, Any] = field(default_factory=dict)  # keys of UNet3DConditionModel.from_config
    vae: Mapping[str, Any] = field(default_factory=dict)  # keys of diffusers.AutoencoderKL
    audio_encoder: Mapping[str, int] = field(default_factory=dict)  # keys of AudioEncoder.from_dims
    scheduler: Mapping[str, Any] = field(default_factory=dict)  # changes to the published DDIMScheduler

    @classmethod
    def from_yaml(cls, path: Path) -> ModelConfig:
        """Read a config file; raises CheckpointError if it is missing, not YAML, or not a model config."""
        import yaml

        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"No model config at {path}; choose 1.6, 1.5 or a folder with a config.yaml."
            ) from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from None
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is not a valid YAML file ({str(error).splitlines()[0]})."
            ) from None
        known = set(cls.__dataclass_fields__)
        if not isinstance(values, dict) or not set(values) <= known:
            extra = sorted(set(values) - known) if isinstance(values, dict) else type(values).__name__
            raise CheckpointError(
                f"{path} is not a model config: found {extra}, expected keys {sorted(known)}."
            )
        values = {key: value for key, value in values.items() if value is not None}
        if isinstance(values.get("name"), float):  # 1.6 without quotes
            values["name"] = str(values["name"])
        wrong = _find_mismatch(values, yaml.safe_load((CONFIG_DIR / "1.6.yaml").read_text(encoding="utf-8")))
        if wrong:
            raise CheckpointError(f"{path}: {wrong}.")
        config = cls(**values)
        config._check_numbers(path)
        return config

    def _check_numbers(self, path: Path) -> None:
        """Raise CheckpointError for a resolution or a window length that the networks do not support."""
        resolution, frames = self.resolution, self.num_frames
        motion = self.unet.get("motion_module_kwargs") or {}
        longest = motion.get("temporal_position_encoding_max_len", MOTION_POSITIONS)
        if motion.get("temporal_position_encoding") is False:
            longest = math.inf
        if not (_is_integer(resolution) and 64 <= resolution <= 1024 and resolution % 64 == 0):
            raise CheckpointError(
                f"{path}: resolution is {resolution}; expected a multiple of 64 from 64 to 1024."
            )
        if not (_is_integer(frames) and 1 <= frames <= longest):
            raise CheckpointError(
                f"{path}: num_frames is {frames}; expected an integer from 1 to {longest}, the number of "
                "positions of the motion modules."
            )

    @classmethod
    def published(cls, name: str) -> ModelConfig:
        """Return the config in `configs/` of this name, such as "1.6" or "1.5"."""
        return cls.from_yaml(CONFIG_DIR / f"{name}.yaml")


def as_fps(value: Fraction | float | int | str, option: str = "fps") -> Fraction:
    """Return the exact frame rate for "30000/1001", 29.97, 25 and so on; NTSC decimals become exact fractions.

    Raises InputError, which names `option`, unless 1 <= fps <= 240.
    """
    try:
        fps = Fraction(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        raise InputError(
            f"is {value!r}; expected a number such as 25, 29.97 or 30000/1001.", options=(option,)
        ) from None
    ntsc = Fraction(round(fps * 1001 / 1000) * 1000, 1001)
    if fps.denominator not in (1, 1001) and abs(fps - ntsc) < Fraction(1, 100):
        fps = ntsc
    if not 1 <= fps <= 240:
        raise InputError(f"is {value}; expected 1 to 240.", options=(option,))
    return fps.limit_denominator(1001 * 1000)


def _choice(kind: type[E], value: Any, name: str) -> E:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(str(item.value) for item in kind)
        raise InputError(f"is {value!r}; expected one of: {choices}.", options=(name,)) from None


def _find_mismatch(value: Any, example: Any, name: str = "it") -> str | None:
    """Describe the first value whose type differs from the published config's, or that is negative; else None."""
    if value is None or example is None:
        return None
    if isinstance(example, dict):
        if not isinstance(value, dict):
            return f"{name} is {value!r}; expected names with values"
        found = (_find_mismatch(value[key], example.get(key), str(key)) for key in value)
        return next((wrong for wrong in found if wrong), None)
    if isinstance(example, list):
        if not isinstance(value, list):
            return f"{name} is {value!r}; expected a list such as {example}"
        found = (_find_mismatch(item, example[0], name) for item in value)
        return next((wrong for wrong in found if wrong), None)
    if isinstance(example, (bool, str)):
        fits = isinstance(value, type(example))
    else:
        fits = _is_finite(value) and not isinstance(value, bool) and value >= 0
    return None if fits else f"{name} is {value!r}; expected such as {example!r}"


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _check(ok: bool, name: str, value: Any, expected: str) -> None:
    if not ok:
        raise InputError(f"is {value!r}; expected {expected}.", options=(name,))
