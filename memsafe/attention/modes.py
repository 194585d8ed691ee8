"""How the attentions of a model are computed during a run: by which kernel, in how many parts, with which weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..batching.oom import is_oom
from ..choices import AttentionMode
from .flex import flex_attend, is_compile_failure, why_not
from .region import KeyRegion, ScaledAttend, weighted_attend
from .slicing import SCORES_LIMIT, attend_in_parts, tokens_in_parts

logger = logging.getLogger(__name__)


def is_spatial_self_attention(name: str) -> bool:
    """By the name that diffusers and the checkpoints give it."""
    return name.rpartition(".")[2] == "attn1"


class ModelAttention:
    """Computes a model's attentions and feed-forwards in its own way while it is `applied`; made once per run.

    Two kinds of submodules are found by their attributes, which are replaced and put back:
    `attend(query, key, value, *, scale=None)`, softmax(scale q k^T) v on [batch, heads, n, d] tensors, and
    `map_tokens(layer, hidden)`, which calls a layer that treats every token by itself.

    region: keys with another weight, in the attentions whose names `weighted` accepts; those must be over the
    pixels of a picture. The slices are asked for at every call, so they may change in the middle of a run.
    """

    def __init__(
        self,
        mode: AttentionMode | str = AttentionMode.FLASH,
        region: KeyRegion | None = None,
        *,
        weighted: Callable[[str], bool] = is_spatial_self_attention,
        attention_slices: Callable[[], int] = lambda: 1,
        feed_forward_slices: Callable[[], int] = lambda: 1,
    ) -> None:
        self.mode = AttentionMode(mode)
        # The weight 1 is the model itself, to the last bit.
        self.region = region if region is not None and region.weight != 1 else None
        self._weighted = weighted
        self._attention_slices, self._feed_forward_slices = attention_slices, feed_forward_slices
        self._no_flex: str | None = None  # why FlexAttention is no longer tried
        self._forms: set[str] = set()  # by which weights were applied: flex, twin
        self._backends: dict[tuple[Any, ...], str] = {}  # of PyTorch's attention, per kind of input

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model's attentions and feed-forwards are computed so inside; afterwards as before.

        Raises RuntimeError if another one is applied to the model, which would slice and weight twice.
        """
        seams: list[tuple[nn.Module, str, Any]] = []
        for name, module in model.named_modules():
            attend = partial(self._attend, self.region is not None and self._weighted(name))
            for seam, replacement in (("attend", attend), ("map_tokens", self._map_tokens)):
                own = module.__dict__.get(seam)
                if isinstance(own, _Replaced):
                    raise RuntimeError(
                        "another run is computing the attentions of this model; wait until it ends"
                    )
                if own is not None:
                    seams.append((module, seam, (own, _Replaced(replacement, own))))
        try:
            for module, seam, (_, replacement) in seams:
                setattr(module, seam, replacement)
            yield
        finally:
            for module, seam, (own, _) in seams:
                setattr(module, seam, own)

    @property
    def used(self) -> dict[str, Any]:
        """What really ran, for a report.

        asked: the mode. ran: `flex` or `twin` (the same by PyTorch's other kernels) if keys were weighted, both if
        FlexAttention failed in between, else `standard` or `flash`. weight: of the keys in the region. backends:
        those PyTorch chose for everything but `flex`, where it tells. no_flex: why it was given up, or None.
        """
        plain = AttentionMode.STANDARD if self.mode is AttentionMode.STANDARD else AttentionMode.FLASH
        return {
            "asked": self.mode.value,
            "ran": ", ".join(sorted(self._forms)) or plain.value,
            "weight": 1.0 if self.region is None else self.region.weight,
            "backends": sorted(set(self._backends.values())),
            "no_flex": self._no_flex,
        }

    def _map_tokens(self, own: Any, layer: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        return tokens_in_parts(partial(own, layer), hidden, self._feed_forward_slices())

    def _attend(self, weighted: bool, own: ScaledAttend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = self._attention_slices()
        if self.mode is AttentionMode.STANDARD:
            scores = math.prod(query.shape[:3]) * key.shape[2]
            parts = max(parts, math.ceil(scores / SCORES_LIMIT))
        attend: Callable[..., Tensor] = partial(self._plain, own)
        if weighted and self.region is not None:
            log_weights = self.region.log_weights(key.shape[-2], key.device)
            attend = partial(self._with_weights, attend, log_weights)
        return attend_in_parts(attend, query, key, value, parts)

    def _plain(
        self, own: ScaledAttend, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None
    ) -> Tensor:
        written_out = self.mode is AttentionMode.STANDARD
        with sdpa_kernel(SDPBackend.MATH) if written_out else nullcontext():
            self._note_backend(query, key, value)
            return own(query, key, value) if scale is None else own(query, key, value, scale=scale)

    def _with_weights(
        self, plain: ScaledAttend, log_weights: Tensor, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        mixed = self._by_flex(query, key, value, log_weights)
        self._forms.add("twin" if mixed is None else "flex")
        return weighted_attend(plain, query, key, value, log_weights) if mixed is None else mixed

    def _by_flex(self, query: Tensor, key: Tensor, value: Tensor, log_weights: Tensor) -> Tensor | None:
        """None if it was not asked for or cannot run, which is said once."""
        if self.mode is not AttentionMode.FLEX or self._no_flex is not None:
            return None
        self._no_flex = why_not(query.device)
        if self._no_flex is None:
            try:
                return flex_attend(query, key, value, log_weights)
            except Exception as error:
                if is_oom(error) or not is_compile_failure(error):
                    raise
                self._no_flex = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        logger.warning(
            "FlexAttention cannot run here (%s); other kernels apply the same weights.", self._no_flex
        )
        return None

    def _note_backend(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        kind = (query.shape[-2:], key.shape[-2], query.dtype, query.device)
        choose = getattr(torch, "_fused_sdp_choice", None)  # what PyTorch itself asks; not public
        real = type(query) is Tensor and query.device.type in {"cpu", "cuda"}
        if kind not in self._backends and choose is not None and real:
            self._backends[kind] = SDPBackend(choose(query, key, value)).name.lower()


class _Replaced(partial[Any]):
    """What a `ModelAttention` puts into a module; its last bound argument is what was there."""
