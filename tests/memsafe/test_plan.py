"""Tiers, the batch table, and plans that fit; the closed forms behind them."""

import itertools
import logging
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from latentsync_memsafe.latentsync.config import ModelConfig
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.latentsync.models.whisper import AudioEncoder
from latentsync_memsafe.memsafe import MemoryMode, ModelShape, Task, Tier, VideoShape, plan_for
from latentsync_memsafe.memsafe.plan.memory_plan import peak_by_task, peak_of
from latentsync_memsafe.memsafe.plan.plan_for import MAX_WINDOWS
from latentsync_memsafe.memsafe.weights.precision import weight_bytes

from support.cards import GIB, card

# LatentSync 1.6 in half precision, as `test_shapes_are_read_off_the_networks` reads it.
LARGE = ModelShape("1.6", 2_535_889_288, 167_307_726, 32_833_536, 320, 128, 256, 8, 16, 1_268_843_520)


@pytest.mark.parametrize(
    ("gigabytes", "tier"),
    [
        (4, Tier.COMPACT),
        (6, Tier.COMPACT),
        (7.8, Tier.COMPACT),
        (9, Tier.COMPACT),
        (9.9, Tier.STANDARD),
        (15.9, Tier.STANDARD),
        (18, Tier.STANDARD),
        (19.7, Tier.PROFESSIONAL),
        (23.9, Tier.PROFESSIONAL),
        (32, Tier.PROFESSIONAL),
        (39.5, Tier.DATACENTER),
        (80, Tier.DATACENTER),
    ],
)
def test_tier_follows_the_cards_size_and_falls_to_the_safer_side(gigabytes: float, tier: Tier) -> None:
    assert plan_for(card(gigabytes)).tier is tier


@pytest.mark.parametrize(
    ("gigabytes", "level"),
    [(4, "WARNING"), (9, "INFO"), (18, "INFO"), (32, "INFO"), (6, None), (12, None), (24, None), (80, None)],
)
def test_sizes_that_no_tier_is_made_for_are_logged_with_the_model(
    gigabytes: float, level: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        plan_for(card(gigabytes))
        assert not caplog.records  # a run plans twice, the second time with its model
        plan_for(card(gigabytes), LARGE)
    sizes = [record for record in caplog.records if "can be used" in record.message]
    assert [record.levelname for record in sizes] == ([level] if level else [])


def test_what_is_said_of_a_card_is_true_also_where_others_use_it(caplog: pytest.LogCaptureFixture) -> None:
    for size, free in ((6, 4.6), (8, 4.2)):  # once said to have 5.4 and 4.9 GiB
        plan_for(card(size, free=free), LARGE)
    said = [message for message in caplog.messages if "can be used" in message]
    assert [message.partition(";")[0] for message in said] == [
        "test card: 4.6 of 6.0 GiB can be used",
        "test card: 4.2 of 8.0 GiB can be used",
    ]


def test_the_table() -> None:
    """Faces, VAE, frames, windows of issue 4."""
    plans = [plan_for(card(size)) for size in (8, 16, 24, 80)]
    assert [plan.face_batch for plan in plans] == [4, 8, 16, 32]
    assert [plan.vae_batch for plan in plans] == [1, 3, 8, 16]
    assert [plan.decode_ahead for plan in plans] == [plan.encode_ahead for plan in plans] == [4, 12, 32, 64]
    assert [plan.frames_in_flight for plan in plans] == [16, 16, 32, 64]
    assert [plan.windows for plan in plans] == [1, 1, 2, 4]
    assert [plan.clear_every for plan in plans] == [8, 32, None, None]
    assert [plan.vae_tile for plan in plans] == sorted(plan.vae_tile for plan in plans)
    compact, *others = plans
    for plan in others:
        assert not (plan.offload or plan.recompute_activations)
        assert plan.guidance_passes == plan.attention_slices == plan.feed_forward_slices == 1
    assert compact.offload and compact.recompute_activations
    assert not any(plan.output_changes for plan in plans)
    assert compact.guidance_passes == 2 and compact.attention_slices == 4 and compact.feed_forward_slices > 1
    assert not any(plan.stream_weights for plan in plans) and plan_for(card(3)).stream_weights


def test_less_memory_never_plans_larger_batches() -> None:
    for mode in MemoryMode:
        plans = [plan_for(card(size), memory_mode=mode) for size in (6, 12, 24, 80)]
        for small, large in itertools.pairwise(plans):
            for name in (
                "face_batch",
                "vae_batch",
                "windows",
                "frames_in_flight",
                "decode_ahead",
                "encode_ahead",
            ):
                assert getattr(small, name) <= getattr(large, name)


def test_the_mode_shifts_sizes_and_reserves_but_not_the_tier() -> None:
    for size in (6, 12, 24, 80):
        careful, balanced, daring = (plan_for(card(size), memory_mode=mode) for mode in MemoryMode)
        assert careful.tier is balanced.tier is daring.tier and careful.dtype is daring.dtype
        assert balanced == plan_for(card(size))
        assert careful.vae_batch <= balanced.vae_batch <= daring.vae_batch
        assert careful.windows <= balanced.windows <= daring.windows <= MAX_WINDOWS
        assert careful.reserve > balanced.reserve > daring.reserve
        assert careful.ram_budget < balanced.ram_budget < daring.ram_budget
    assert plan_for(card(80), memory_mode="aggressive").windows == MAX_WINDOWS
    assert plan_for(card(12), memory_mode="conservative").vae_batch == plan_for(card(8)).vae_batch
    assert plan_for(card(12), memory_mode="aggressive").vae_batch == plan_for(card(24)).vae_batch
    with pytest.raises(ValueError, match="turbo"):
        plan_for(card(8), memory_mode="turbo")


def test_precision_follows_what_the_card_can_do() -> None:
    assert plan_for(card(80)).dtype is torch.bfloat16
    assert plan_for(card(80, (7, 0))).dtype is torch.float16
    assert plan_for(card(8, (7, 5))).dtype is torch.float16
    assert plan_for(card(24)).dtype is torch.float16
    assert plan_for(replace(card(64), kind="cpu")).dtype is torch.float32
    for bf16 in (True, False):
        cpu = replace(card(64), kind="cpu", bf16=bf16)
        assert plan_for(cpu).dtype is torch.float32
        assert (plan_for(cpu, half_on_cpu=True).dtype is torch.bfloat16) == bf16
        assert plan_for(cpu, half_on_cpu=True, dtype=torch.float32).dtype is torch.float32
    assert plan_for(card(8), dtype=torch.float32).dtype is torch.float32
    assert plan_for(card(80, free=10)).dtype is torch.bfloat16  # the card is what it is


@pytest.mark.parametrize(("gigabytes", "free"), [(4, 3.7), (6, 5.2)])
@pytest.mark.parametrize("mode", MemoryMode)
def test_without_float16_weights_of_twice_the_size_are_streamed(
    gigabytes: float, free: float, mode: MemoryMode
) -> None:
    """A GTX 1650 or 1660, for which 1.6's denoiser has 4.7 GiB."""
    info = replace(card(gigabytes, (7, 5), free=free), fp16=False)
    twice = {name: 2 * getattr(LARGE, name) for name in ("unet_bytes", "vae_bytes", "streamed_bytes")}
    shape = replace(LARGE, **twice)
    first, plan = plan_for(info, memory_mode=mode), plan_for(info, shape, 512, None, mode)
    assert first.dtype is plan.dtype is torch.float32
    assert first.stream_weights  # so they are not loaded to the card either
    assert plan.stream_weights and plan.offload
    assert peak_of(plan, shape, 512) <= info.usable_memory - round(plan.reserve * info.total_memory)
    assert plan_for(replace(info, fp16=True), memory_mode=mode).dtype is torch.float16


def test_no_enlargement_makes_more_elements_than_an_int32_can_number() -> None:
    counts = {}
    for side in (512, 1024, 1536):
        plan = plan_for(card(180), LARGE, side, None, "aggressive")
        assert plan.guidance_passes == 1 and plan.frames_in_flight == 16 * plan.windows
        # Counted at the second last level of 1.6, 640 channels, after it was enlarged to the latents' size.
        one = 2 * 16 * (side // 8) ** 2 * 640
        assert plan.windows * one < 2**31
        assert plan.windows == MAX_WINDOWS or (plan.windows + 1) * one >= 2**31
        counts[side] = plan.windows
    assert counts == {512: 7, 1024: 6, 1536: 2}


def test_a_card_that_others_use_is_planned_for_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    assert plan_for(card(24, free=22)).tier is Tier.PROFESSIONAL
    with caplog.at_level(logging.INFO):
        assert plan_for(card(24, free=12), LARGE).tier is Tier.STANDARD
    assert "12.0 of 24.0 GiB can be used; planned as standard." in caplog.text
    # What this process holds itself is no reason to be modest.
    assert plan_for(replace(card(24, free=12), allocated=10 * GIB)).tier is Tier.PROFESSIONAL
    assert plan_for(card(80).limited_to(8)) == plan_for(card(8, free=8))


def test_main_memory_is_nothing_to_leave() -> None:
    for info in (
        replace(card(6, kind="mps"), capability=None),
        replace(card(16), kind="cpu"),
        card(2, kind="cpu"),
    ):
        plan = plan_for(info)
        assert not plan.offload and not plan.stream_weights
        assert not plan_for(info, LARGE, 512).offload
    assert plan_for(replace(card(6, kind="mps"), capability=None)).dtype is torch.float16


def test_a_plan_is_frozen_and_can_be_written_down() -> None:
    plan = plan_for(card(24))
    written = plan.as_dict()
    assert written["tier"] == "professional" and written["dtype"] == "float16" and written["device"] == "cuda"
    assert written["memory_mode"] == "balanced" and set(written) == {field.name for field in fields(plan)}
    with pytest.raises(FrozenInstanceError):
        plan.windows = 9


def networks(name: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    from diffusers import AutoencoderKL

    config = ModelConfig.published(name)
    with torch.device("meta"):
        return (
            UNet3DConditionModel.from_config(config.unet),
            AutoencoderKL.from_config(dict(config.vae)),
            AudioEncoder.from_dims(config.audio_encoder),
        )


def test_shapes_are_read_off_the_networks() -> None:
    unet, vae, audio = networks("1.6")
    assert ModelShape.from_modules(unet, vae, audio, name="1.6", dtype=torch.float16) == LARGE
    assert ModelShape.from_modules(unet, vae, audio, name="1.6").unet_bytes == 2 * LARGE.unet_bytes
    assert weight_bytes(unet) == 4 * sum(
        p.numel() for p in itertools.chain(unet.parameters(), unet.buffers())
    )
    small = ModelShape.from_modules(*networks("tiny"), name="tiny", window_frames=8)
    assert (small.unet_channels, small.encoder_channels, small.decoder_channels) == (32, 16, 32)
    assert small.latent_factor == 8 and small.window_frames == 8
    assert 0 < small.streamed_bytes < small.unet_bytes
    with pytest.raises(ValueError, match="Linear has no convolution"):
        ModelShape.from_modules(nn.Linear(2, 2), vae)


# Peaks of all networks at 512 px in GiB: counted under fake tensors by tests/test_fake_cuda.py.
RESIDENT = {8: 3.3, 16: 4.1, 24: 5.6, 80: 8.7}


@pytest.mark.parametrize("size", RESIDENT)
def test_foreseen_peaks_are_the_counted_ones(size: int) -> None:
    plan = plan_for(card(size))
    peak = max(
        LARGE.peaks(
            512,
            torch.float16,
            vae_batch=plan.vae_batch,
            windows=plan.windows,
            guidance_passes=plan.guidance_passes,
        )
    )
    assert peak / GIB == pytest.approx(RESIDENT[size], rel=0.02)
    assert LARGE.window_bytes(512, torch.float16, 1) / GIB == pytest.approx(1.49, rel=0.03)
    assert LARGE.window_bytes(512, torch.float16, 2) / GIB == pytest.approx(0.744, rel=0.03)
    assert LARGE.decode_bytes(512, torch.float16) / GIB == pytest.approx(0.375, rel=0.01)
    assert 16 * LARGE.decode_bytes(512, torch.float16) / GIB == pytest.approx(6.0, rel=0.01)
    assert LARGE.encode_bytes(512, torch.float16) / GIB == pytest.approx(0.314, rel=0.01)


@pytest.mark.parametrize("resolution", [64, 128])
def test_closed_forms_foresee_the_live_tensors_of_another_model(resolution: int) -> None:
    """Within the margin of an eighth; an encoder with one layer a level needs less."""
    pytest.importorskip("torch._subclasses.fake_tensor", reason="this torch has no fake tensors")
    from support.fake_gpu import DEVICE, fake_gpu, with_fake_weights

    unet, vae, _ = networks("tiny")
    dtype, side = torch.float16, resolution // 8
    shape = ModelShape.from_modules(unet, vae, dtype=dtype)
    peaks = []
    with fake_gpu() as memory, torch.inference_mode():
        with_fake_weights(unet, dtype)
        with_fake_weights(vae, dtype)

        def empty(*sizes: int) -> torch.Tensor:
            return torch.empty(sizes, dtype=dtype, device=DEVICE)

        step = torch.empty((), dtype=torch.int64, device=DEVICE)
        for call in (
            lambda: unet(empty(2, 13, 16, side, side), step, empty(2, 16, 50, 64)),
            lambda: vae.encode(empty(3, 3, resolution, resolution)).latent_dist.mode(),
            lambda: vae.decode(empty(3, 4, side, side)).sample,
        ):
            before = memory.peak = memory.now
            call()
            peaks.append(memory.peak - before)
    denoise, encode, decode = peaks
    assert 0.9 < denoise / shape.window_bytes(resolution, dtype, 1) <= 1.125
    assert 0.9 < decode / (3 * shape.decode_bytes(resolution, dtype)) <= 1
    assert 0.75 < encode / (3 * shape.encode_bytes(resolution, dtype)) <= 1


cards = st.builds(
    lambda size, share, kind: card(size, kind=kind, free=size * share),
    size=st.floats(1, 100),
    share=st.floats(0.05, 1),
    kind=st.sampled_from(["cuda", "cuda", "mps"]),
)


@given(
    info=cards,
    resolution=st.sampled_from([256, 512, 768, 1024]),
    mode=st.sampled_from(list(MemoryMode)),
    video=st.none()
    | st.builds(
        VideoShape, st.integers(64, 4320), st.integers(64, 8192), st.none() | st.integers(1, 100_000)
    ),
)
def test_a_plan_for_a_model_fits_or_is_the_smallest(info, resolution, mode, video) -> None:
    start = plan_for(info, None, resolution, video, mode)
    if start.windows == MAX_WINDOWS and resolution == 1024:  # one more than torch enlarges at once
        start = replace(start, windows=6, frames_in_flight=96)
    plan = plan_for(info, LARGE, resolution, video, mode)
    room = info.usable_memory - round(plan.reserve * info.total_memory)
    if peak_of(plan, LARGE, resolution) > room:
        peaks = peak_by_task(plan, LARGE)
        if max(peaks, key=peaks.__getitem__) is Task.UNET_INFERENCE:
            assert (plan.windows, plan.guidance_passes) == (1, 2)
            assert info.kind == "mps" or (plan.offload and plan.stream_weights)
        else:
            assert plan.vae_batch == 1 and (info.kind == "mps" or plan.offload)
    # It only ever shrinks, and not at all if there was nothing to do.
    assert plan.windows <= start.windows and plan.vae_batch <= start.vae_batch
    assert plan.guidance_passes >= start.guidance_passes and plan.offload >= start.offload
    if peak_of(replace(start, stream_weights=False), LARGE, resolution) <= room:
        assert plan == replace(start, stream_weights=False)
    assert 1 <= plan.windows <= MAX_WINDOWS
    assert plan.frames_in_flight % LARGE.window_frames == 0
    assert plan.frames_in_flight >= plan.windows * LARGE.window_frames
    assert min(plan.face_batch, plan.vae_batch, plan.decode_ahead, plan.encode_ahead) >= 1
    if info.kind == "mps":
        assert not plan.offload and not plan.stream_weights


@given(info=cards, more=st.floats(1, 3), resolution=st.sampled_from([256, 512, 1024]))
def test_the_same_card_with_more_free_never_plans_a_larger_peak_than_it_has(info, more, resolution) -> None:
    freer = replace(info, free_memory=min(int(info.free_memory * more), info.total_memory))
    for one in (info, freer):
        assert plan_for(one, LARGE, resolution) == plan_for(one, LARGE, resolution)  # pure
    assert plan_for(freer, LARGE, resolution).windows >= plan_for(info, LARGE, resolution).windows


def test_a_model_that_cannot_fit_is_said_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        plan = plan_for(card(1), LARGE, 1024)
    assert plan.stream_weights and plan.offload and plan.vae_batch == 1
    assert "1.6 at 1024 px needs about" in caplog.text


def test_a_higher_resolution_takes_less_at_a_time() -> None:
    plans = [plan_for(card(10), LARGE, resolution) for resolution in (256, 512, 1024, 1536)]
    assert [p.guidance_passes for p in plans] == sorted(p.guidance_passes for p in plans)
    assert [p.vae_batch for p in plans] == sorted((p.vae_batch for p in plans), reverse=True)
    assert plans[0] == plan_for(card(10), resolution=256) and plans[3].steps != plans[0].steps == ()


def test_frames_waiting_fit_main_memory_and_the_video() -> None:
    small = replace(card(80), ram_available=2 * GIB)
    plan = plan_for(small, video=VideoShape(4320, 7680))  # 95 MiB a frame, 512 MiB for all
    assert plan.decode_ahead == plan.encode_ahead == 1 and plan.windows == 1
    roomy = plan_for(card(80), video=VideoShape(1080, 1920))
    assert roomy.decode_ahead == 64 and roomy.windows == 4
    short = plan_for(card(80), video=VideoShape(1080, 1920, frames=20))
    assert short.windows == 2 and short.frames_in_flight == 32 and short.decode_ahead <= 32


@given(ram=st.integers(1, 256), height=st.integers(64, 4320), size=st.sampled_from([8, 16, 24, 80]))
def test_frames_have_a_quarter_of_the_budget_in_each_place(ram: int, height: int, size: int) -> None:
    video = VideoShape(height, 2 * height)
    plan = plan_for(replace(card(size), ram_available=ram * GIB), video=video)
    quarter = plan.ram_budget / 4
    assert plan.decode_ahead * video.frame_bytes <= max(quarter, video.frame_bytes)
    assert plan.encode_ahead == plan.decode_ahead
    assert plan.frames_in_flight * video.frame_bytes <= max(quarter, 16 * video.frame_bytes)
