"""The fallbacks for when memory runs out: which there are, in which order, and which are in force."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields

from .oom import Failure

Action = Callable[[], bool | None]


@dataclass
class Relief:
    """Which fallbacks are in force. A runtime starts with its plan's and obeys it at every call."""

    single_frame: bool = False
    two_pass_guidance: bool = False
    slicing: bool = False
    vae_tiling: bool = False
    offload: bool = False
    stream_weights: bool = False
    frame_windows: bool = False
    lower_resolution: bool = False
    cpu: bool = False


@dataclass(frozen=True)
class Rung:
    """One fallback; its name is that of a field of Relief."""

    name: str
    effect: str  # what happens from now on, for the log
    changes_picture: bool = False  # beyond rounding
    permission: str | None = None  # the option without which it is not taken
    fills_host: bool = False  # moves memory to the host, so it is no help when the host's has run out
    starts_over: bool = False  # what is under way cannot go on

    def apply(self, relief: Relief) -> None:
        """Put it in force."""
        setattr(relief, self.name, True)


ADVICE = ("a smaller picture", "a device with more memory")  # where a pipeline has none of its own

# From what costs least to what costs most; the first six give the same pictures, but for the seams of tiles.
RUNGS = (
    Rung("single_frame", "faces and the VAE take one frame at a time"),
    Rung("two_pass_guidance", "the two halves of guidance are computed one after the other"),
    Rung("slicing", "attention and feed-forward layers are computed in slices"),
    Rung("vae_tiling", "the VAE works in tiles", changes_picture=True),
    Rung("offload", "networks leave the device between stages", fills_host=True),
    Rung("stream_weights", "weights come to the device block by block", fills_host=True),
    Rung(
        "frame_windows",
        "frames are denoised one by one, without motion between them",
        changes_picture=True,
        permission="allow_frame_windows",
        starts_over=True,
    ),
    Rung(
        "lower_resolution",
        "faces are generated at a lower resolution",
        changes_picture=True,
        permission="allow_lower_resolution",
        starts_over=True,
    ),
    Rung("cpu", "networks run on the CPU", permission="allow_cpu", fills_host=True, starts_over=True),
)


class Ladder:
    """The rungs that a pipeline can take, in order, each at most once.

    actions: by name, what makes a rung true, or None if the pipeline obeys the Relief by itself; rungs that
    are not named do not exist. An action returns False if it found nothing to gain. stages: by name, the
    stages that a rung can help; without an entry, all. allowed: the permissions given. Raises ValueError for
    an unknown name.
    """

    def __init__(
        self,
        actions: Mapping[str, Action | None],
        *,
        allowed: Collection[str] = (),
        stages: Mapping[str, Collection[str]] | None = None,
        rungs: Sequence[Rung] = RUNGS,
    ) -> None:
        stages = stages or {}
        _check("rung", {*actions, *stages}, [rung.name for rung in rungs])
        _check("permission", set(allowed), [rung.permission for rung in rungs if rung.permission])
        _check("field of Relief", {rung.name for rung in rungs}, [field.name for field in fields(Relief)])
        offered = [rung for rung in rungs if rung.name in actions]
        self._left = [rung for rung in offered if rung.permission is None or rung.permission in allowed]
        self._actions, self._stages = dict(actions), dict(stages)
        self._denied = [rung for rung in offered if rung not in self._left]

    def take(self, stage: str, failure: Failure, relief: Relief) -> Rung | None:
        """The next rung that may help; it will not come again. None if there is none."""
        self._left = [rung for rung in self._left if not getattr(relief, rung.name)]
        for rung in self._left:
            if self._helps(rung, stage) and not (rung.fills_host and failure.on_host):
                self._left.remove(rung)
                return rung
        return None

    def denied(self, stage: str) -> list[str]:
        """The permissions that could still help a stage, in the order of the rungs."""
        return [rung.permission for rung in self._denied if rung.permission and self._helps(rung, stage)]

    def _helps(self, rung: Rung, stage: str) -> bool:
        return stage in self._stages.get(rung.name, [stage])

    def action(self, rung: Rung) -> Action | None:
        """What makes the rung true, besides the Relief."""
        return self._actions[rung.name]


def _check(kind: str, given: set[str], known: Sequence[str]) -> None:
    unknown = sorted(given - set(known))
    if unknown:
        raise ValueError(f"Unknown {kind}: {', '.join(unknown)}; expected one of {', '.join(known)}.")
