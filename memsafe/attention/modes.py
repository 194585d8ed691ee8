"""Computation of a model's attentions during a run: the mode, the slices, and the weights of a key region."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..batching.oom import is_oom
from ..choices import AttentionMode
from .region import Attend, KeyRegion, attend_weighted, flex_attend, is_compile_failure, reason_without_flex
from .slicing import attend_in_slices, chosen_backend, least_slices, map_tokens_in_slices, stores_scores

logger = logging.getLogger(__name__)


class ModelAttention:
    """Replacement of a model's attention and feed-forward computations while it is `applied`; one per run.

    Submodules are found by two attributes, which are replaced and restored: `attend(query, key, value, *,
    scale=None)`, softmax(scale q k^T) v on [batch, heads, n, d] tensors, and `map_tokens(layer, hidden)`, which
    calls a layer that treats every token independently.

    region: keys with another weight, in the attentions named `attn1`, as diffusers and the checkpoints call those
    among the pixels of a frame. The numbers of slices are read by `applied`, so they may change during a run. How
    an attention is computed is decided once for inputs of one kind: shapes, dtype and device.
    """

    def __init__(
        self,
        mode: AttentionMode | str = AttentionMode.FLASH,
        region: KeyRegion | None = None,
        *,
        attention_slices: Callable[[], int] = lambda: 1,
        feed_forward_slices: Callable[[], int] = lambda: 1,
    ) -> None:
        self.mode = AttentionMode(mode)
        # With weight 1 the region is ignored: the result is that of the model, bit for bit.
        self.region = region if region is not None and region.weight != 1 else None
        self._attention_slices, self._feed_forward_slices = attention_slices, feed_forward_slices
        self._no_flex: str | None = None  # reason why FlexAttention is no longer tried
        self._weighted_by: set[str] = set()  # "flex" and "twin", as far as they ran
        self._backends: set[str] = set()  # PyTorch's, as far as they ran
        self._chosen: dict[tuple[Any, ...], Callable[..., Tensor]] = {}  # by kind of input

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Replace the model's attention and feed-forward computations inside the context.

        Raises RuntimeError if another ModelAttention is applied to the model, because both would slice and weight.
        """
        replaced: list[tuple[nn.Module, str, Any, _Replacement]] = []
        attention_slices, feed_forward_slices = self._attention_slices(), self._feed_forward_slices()
        in_slices = partial(map_tokens_in_slices, slices=feed_forward_slices)
        for name, module in model.named_modules():
            weighted = self.region is not None and name.rpartition(".")[2] == "attn1"
            for attribute in ("attend", "map_tokens"):
                original = module.__dict__.get(attribute)
                if isinstance(original, _Replacement):
                    raise RuntimeError(
                        "Another run is using this model; wait until it ends, or load the model again."
                    )
                if original is None:
                    continue
                if attribute == "attend":
                    replaced.append(
                        (
                            module,
                            attribute,
                            original,
                            _Replacement(self._attend, original, weighted, attention_slices),
                        )
                    )
                elif feed_forward_slices > 1:
                    replaced.append((module, attribute, original, _Replacement(in_slices)))
        try:
            for module, attribute, _, replacement in replaced:
                setattr(module, attribute, replacement)
            yield
        finally:
            for module, attribute, original, _ in replaced:
                setattr(module, attribute, original)

    @property
    def used(self) -> dict[str, Any]:
        """Computation that actually ran, for a report.

        asked: the mode. ran: if keys were weighted, `flex` or `twin` (the same result by PyTorch's other kernels),
        both if FlexAttention failed in between; otherwise `standard` or `flash`. weight: of the keys in the region.
        backends: those PyTorch chose, except for `flex`, where it can be asked. no_flex: reason why FlexAttention
        was given up, or None.
        """
        plain = AttentionMode.STANDARD if self.mode is AttentionMode.STANDARD else AttentionMode.FLASH
        return {
            "asked": self.mode.value,
            "ran": ", ".join(sorted(self._weighted_by)) or plain.value,
            "weight": 1.0 if self.region is None else self.region.weight,
            "backends": sorted(self._backends),
            "no_flex": self._no_flex,
        }

    def _attend(
        self, original: Attend, weighted: bool, slices: int, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        kind = (original, weighted, slices, query.shape, key.shape, query.dtype, query.device)
        attend = self._chosen.get(kind)
        if attend is None:
            attend = self._chosen[kind] = self._choose(original, weighted, slices, query, key, value)
        return attend(query, key, value)

    def _choose(
        self, original: Attend, weighted: bool, slices: int, query: Tensor, key: Tensor, value: Tensor
    ) -> Callable[..., Tensor]:
        """Return the shortest function that computes this attention for all inputs of this kind."""
        unfused, standard = stores_scores(query, key, value), self.mode is AttentionMode.STANDARD
        attend: Callable[..., Tensor] = partial(self._attend_recorded, original) if weighted else original
        if standard:
            attend = partial(attend_by_math, attend)
        if unfused:
            attend = partial(attend_contiguous, attend)
        if weighted and self.region is not None:
            log_weights = self.region.log_weights(key.shape[-2], key.device)
            attend = partial(self._attend_weighted, attend, log_weights)
        else:
            with sdpa_kernel(SDPBackend.MATH) if standard else nullcontext():
                self._record_backend(query, key, value)
        slices = max(slices, least_slices(query, key, unfused or standard))
        return attend if slices <= 1 else partial(attend_in_slices, attend, slices=slices)

    def _attend_weighted(
        self, plain: Attend, log_weights: Tensor, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        mixed = self._attend_by_flex(query, key, value, log_weights)
        self._weighted_by.add("twin" if mixed is None else "flex")
        return attend_weighted(plain, query, key, value, log_weights) if mixed is None else mixed

    def _attend_by_flex(
        self, query: Tensor, key: Tensor, value: Tensor, log_weights: Tensor
    ) -> Tensor | None:
        """Return None if FlexAttention was not asked for or cannot run, which is logged once."""
        if self.mode is not AttentionMode.FLEX or self._no_flex is not None:
            return None
        self._no_flex = reason_without_flex(query.device)
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

    def _attend_recorded(
        self, original: Attend, query: Tensor, key: Tensor, value: Tensor, *, scale: float
    ) -> Tensor:
        self._record_backend(query, key, value)
        return original(query, key, value, scale=scale)

    def _record_backend(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        if type(query) is Tensor and query.device.type in {"cpu", "cuda"}:
            backend = chosen_backend(query, key, value)
            self._backends |= set() if backend is None else {backend.name.lower()}


def attend_by_math(attend: Attend, query: Tensor, key: Tensor, value: Tensor, **scale: float) -> Tensor:
    """Call `attend` with PyTorch's math backend."""
    with sdpa_kernel(SDPBackend.MATH):
        return attend(query, key, value, **scale)


def attend_contiguous(attend: Attend, query: Tensor, key: Tensor, value: Tensor, **scale: float) -> Tensor:
    """Call `attend` with contiguous tensors.

    Metal's kernels of torch 2.8 and later misread views (pytorch issues 163597 and 181133).
    """
    return attend(query.contiguous(), key.contiguous(), value.contiguous(), **scale)


class _Replacement(partial[Any]):
    """Callable that a `ModelAttention` puts into a module."""
