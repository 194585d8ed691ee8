"""Settings as frozen dataclasses, checked once when they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from .errors import CheckpointError, InputError

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"

# Of the published networks: the longest window that they can tell the order of.
MOTION_POSITIONS = 24

E = TypeVar("E", bound=Enum)

# Of the 1,000 timesteps of training, which the published scheduler counts from 1 (steps_offset) in a table from 0.
LARGEST_STEPS = 999


class Length(str, Enum):
    """Which input decides how long the output is."""

    AUDIO = "audio"
    VIDEO = "video"


class Extend(str, Enum):
    """Where frames come from when the sound outlasts the video."""

    PINGPONG = "pingpong"  # forwards, backwards, forwards, ...
    LOOP = "loop"  # from the start again
    FREEZE = "freeze"  # the last frame stands still
    CUT = "cut"  # the output ends with the video


class MissingFace(str, Enum):
    """What happens to a frame in which the chosen face cannot be found."""

    KEEP = "keep"  # the frame passes through untouched
    ERROR = "error"  # the run ends with a FaceError


@dataclass(frozen=True)
class SyncOptions:
    """What one lip-sync run should do; raises InputError for a value out of range."""

    seed: int = 1247  # of the noise, 0 .. 2**64 - 1
    steps: int = 20  # denoising steps, 1 .. 999
    guidance: float = 1.5  # classifier-free guidance; 1.0 turns it off; useful range 1.0 .. 3.0
    resolution: int | None = (
        None  # face side in pixels, a multiple of 64; None: what the model was trained at
    )
    fps: Fraction | None = None  # output frame rate; None: the video's own (arrays: 25)
    length: Length = Length.AUDIO
    extend: Extend = Extend.PINGPONG
    face_index: int | None = None  # 0 = leftmost face of the first frame with a face; None: the largest
    face_at: tuple[float, float] | None = None  # pixel (x, y) inside or nearest the wanted face
    missing_face: MissingFace = MissingFace.KEEP
    crf: int = 16  # H.264 quality, 0 (lossless) .. 51
    reuse_latents: float | None = None  # encode a face anew only if a patch of it differs by more, 0 .. 255
    # What may be done, at the cost of the picture or of time, when memory runs out and all else was tried.
    allow_frame_windows: bool = False  # frames are denoised one by one, without motion between them
    allow_lower_resolution: bool = False  # faces are generated at half the resolution
    allow_cpu: bool = False  # networks run on the CPU
    parity: bool = (
        False  # the published arithmetic (integer points, 25 fps index, its frame count), to compare
    )

    def __post_init__(self) -> None:
        set_ = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 - frozen dataclass
        set_("length", _choice(Length, self.length, "length"))
        set_("extend", _choice(Extend, self.extend, "extend"))
        set_("missing_face", _choice(MissingFace, self.missing_face, "missing_face"))
        if self.fps is not None:
            set_("fps", as_fps(self.fps))
        _check(
            _integer(self.seed) and 0 <= self.seed < 2**64,
            "seed",
            self.seed,
            "an integer from 0 to 2**64 - 1",
        )
        _check(
            _integer(self.steps) and 1 <= self.steps <= LARGEST_STEPS,
            "steps",
            self.steps,
            f"an integer from 1 to {LARGEST_STEPS}",
        )
        _check(
            _finite(self.guidance) and 1.0 <= self.guidance <= 20.0,
            "guidance",
            self.guidance,
            "a number from 1.0 to 20.0",
        )
        _check(
            self.resolution is None
            or (_integer(self.resolution) and 64 <= self.resolution <= 1024 and self.resolution % 64 == 0),
            "resolution",
            self.resolution,
            "a multiple of 64 from 64 to 1024",
        )
        _check(_integer(self.crf) and 0 <= self.crf <= 51, "crf", self.crf, "an integer from 0 to 51")
        _check(
            self.face_index is None or (_integer(self.face_index) and self.face_index >= 0),
            "face_index",
            self.face_index,
            "0 or a positive integer",
        )
        for name in ("seed", "steps", "resolution", "crf", "face_index"):
            if getattr(self, name) is not None:  # numpy's integers become Python's
                set_(name, int(getattr(self, name)))
        _check(
            self.reuse_latents is None
            or (_finite(self.reuse_latents) and 0.0 <= self.reuse_latents <= 255.0),
            "reuse_latents",
            self.reuse_latents,
            "a mean difference from 0 to 255",
        )
        if self.face_at is not None:
            point = tuple(self.face_at)
            _check(
                len(point) == 2 and all(_finite(v) for v in point),
                "face_at",
                self.face_at,
                "two numbers x, y",
            )
            set_("face_at", (float(point[0]), float(point[1])))
        if self.face_index is not None and self.face_at is not None:
            raise InputError("were both given; give one of them.", options=("face_index", "face_at"))

    @property
    def permissions(self) -> tuple[str, ...]:
        """The fallbacks that are allowed when memory runs out, by the names of these options."""
        names = ("allow_frame_windows", "allow_lower_resolution", "allow_cpu")
        return tuple(name for name in names if getattr(self, name))


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and sampling facts of one checkpoint, as its YAML states them."""

    name: str = "1.6"
    resolution: int = 512  # face side the model was trained at, pixels
    num_frames: int = 16  # frames per window
    unet: Mapping[str, Any] = field(default_factory=dict)  # keys of UNet3DConditionModel.from_config
    vae: Mapping[str, Any] = field(default_factory=dict)  # keys of diffusers.AutoencoderKL
    audio_encoder: Mapping[str, int] = field(default_factory=dict)  # keys of AudioEncoder.from_dims
    scheduler: Mapping[str, Any] = field(
        default_factory=dict
    )  # keys of diffusers.DDIMScheduler, over the published

    @classmethod
    def from_yaml(cls, path: Path) -> ModelConfig:
        """Read a config file; raises CheckpointError if it is missing, not YAML, or no config of a model."""
        import yaml

        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"No model config at {path}; choose 1.6, 1.5 or a folder with a config.yaml."
            ) from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
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
        wrong = _unlike(values, yaml.safe_load((CONFIG_DIR / "1.6.yaml").read_text(encoding="utf-8")))
        if wrong:
            raise CheckpointError(f"{path}: {wrong}.")
        config = cls(**values)
        config._check_numbers(path)
        return config

    def _check_numbers(self, path: Path) -> None:
        """Raise CheckpointError for a side or a window that the networks cannot have."""
        side, frames = self.resolution, self.num_frames
        motion = self.unet.get("motion_module_kwargs") or {}
        longest = motion.get("temporal_position_encoding_max_len", MOTION_POSITIONS)
        if motion.get("temporal_position_encoding") is False:
            longest = math.inf
        if not (_integer(side) and 64 <= side <= 1024 and side % 64 == 0):
            raise CheckpointError(f"{path}: resolution is {side}; expected a multiple of 64 from 64 to 1024.")
        if not (_integer(frames) and 1 <= frames <= longest):
            raise CheckpointError(
                f"{path}: num_frames is {frames}; expected an integer from 1 to {longest}, the positions of the "
                "motion modules."
            )

    @classmethod
    def published(cls, name: str) -> ModelConfig:
        """The config shipped in `configs/` under this name, such as "1.6" or "1.5"."""
        return cls.from_yaml(CONFIG_DIR / f"{name}.yaml")


def as_fps(value: Fraction | float | int | str, option: str = "fps") -> Fraction:
    """An exact frame rate from "30000/1001", 29.97, 25 ...; NTSC decimals become their exact fractions.

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


def _unlike(value: Any, example: Any, name: str = "it") -> str | None:
    """What in a config has another type than in a published one, or is below 0; None if nothing."""
    if value is None or example is None:
        return None
    if isinstance(example, dict):
        if not isinstance(value, dict):
            return f"{name} is {value!r}; expected names with values"
        found = (_unlike(value[key], example.get(key), str(key)) for key in value)
        return next((wrong for wrong in found if wrong), None)
    if isinstance(example, list):
        if not isinstance(value, list):
            return f"{name} is {value!r}; expected a list such as {example}"
        found = (_unlike(item, example[0], name) for item in value)
        return next((wrong for wrong in found if wrong), None)
    if isinstance(example, (bool, str)):
        fits = isinstance(value, type(example))
    else:
        fits = _finite(value) and not isinstance(value, bool) and value >= 0
    return None if fits else f"{name} is {value!r}; expected such as {example!r}"


def _integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _check(ok: bool, name: str, value: Any, expected: str) -> None:
    if not ok:
        raise InputError(f"is {value!r}; expected {expected}.", options=(name,))
