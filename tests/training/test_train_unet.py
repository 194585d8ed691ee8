"""UNet training: the loss falls on a fixed batch, windows repeat by number, checkpointing changes no gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentsync_memsafe.latentsync.errors import InputError
from latentsync_memsafe.latentsync.faces.paste import keep_mask
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.latentsync.sampling import make_scheduler
from latentsync_memsafe.latentsync.training.dataset import ClipPairs, WindowDataset, encode_track
from latentsync_memsafe.latentsync.training.fine_tune import enable_gradient_checkpointing, freeze_except
from latentsync_memsafe.latentsync.training.loop import LoopOptions
from latentsync_memsafe.latentsync.training.options import Trainable, TrainingOptions
from latentsync_memsafe.latentsync.training.train_unet import (
    BatchOptions,
    denoising_loss,
    draw_batch,
    estimate_clean,
    train_unet,
)

SIZE, FRAMES = 64, 4
CPU = torch.device("cpu")


@pytest.fixture
def make_dataset(clip, networks):
    def make() -> WindowDataset:
        pairs = ClipPairs([clip], FRAMES)
        features = [encode_track(networks.encoder, samples) for samples in pairs.tracks]
        return WindowDataset(
            pairs.draw, networks.vae, features, FRAMES, SIZE, seed=1, device=CPU, keep_pixels=True
        )

    return make


@pytest.fixture
def dataset(make_dataset) -> WindowDataset:
    return make_dataset()


def make_batch(dataset, numbers, frames, scheduler):
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    return draw_batch(dataset, numbers, frames, scheduler, rng, generator, CPU)


@pytest.mark.parametrize("pixel_loss", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_two_steps_lower_the_loss_of_a_fixed_batch(dataset, networks, config, pixel_loss, kind):
    torch.manual_seed(0)
    unet = UNet3DConditionModel.from_config(config.unet)
    batch = make_batch(dataset, [0, 1], FRAMES, make_scheduler({"prediction_type": kind}))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss, _ = denoising_loss(unet, networks.vae if pixel_loss else None, batch, kind)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]


def test_the_right_prediction_has_no_loss(dataset, config):
    batch = make_batch(dataset, [0, 1, 2], 2, make_scheduler(config.scheduler))
    loss, figures = denoising_loss(lambda *_: batch.prediction, None, batch, "v_prediction")
    assert float(loss) == 0
    assert figures["clean"] < 1e-9


def test_inputs_have_the_order_of_inference_and_one_noise_per_window(dataset, config):
    batch = make_batch(dataset, [0, 1, 2], 2, make_scheduler(config.scheduler))
    noisy = batch.sample[:, :4]
    noise = (noisy - batch.alpha.sqrt() * batch.target) / (1 - batch.alpha).sqrt()
    assert torch.allclose(noise[:, :, 0], noise[:, :, 1], atol=1e-4)
    mask = F.interpolate(keep_mask(SIZE)[None], size=batch.sample.shape[-2:], mode="nearest")
    assert torch.equal(batch.sample[:, 4:5], mask[:, :, None].expand(3, 1, 2, -1, -1))


def test_training_resumes_at_the_next_step(dataset, networks, config, tmp_path):
    torch.manual_seed(0)
    unet = UNet3DConditionModel.from_config(config.unet)
    batches = BatchOptions(windows=2, frames=2, new_windows=0.5, reuse=3)
    scheduler, seen = make_scheduler(config.scheduler), []
    for steps in (2, 4):
        train_unet(
            unet,
            networks.vae,
            scheduler,
            dataset,
            LoopOptions("unet", steps, 1e-3, report_every=1),
            tmp_path,
            batches=batches,
            device=CPU,
            report=lambda *a: seen.append(a[1]),
            check=lambda: None,
        )
    assert seen == [1, 2, 3, 4]


def test_a_window_number_always_gives_the_same_window(make_dataset):
    first, again = make_dataset(), make_dataset()
    again[7], again[3]
    again.drop_before(5)
    for name in ("target", "masked", "reference", "audio", "pixels"):
        assert torch.equal(getattr(first[3], name), getattr(again[3], name))
    assert not torch.equal(first[3].target, first[4].target)
    assert not torch.equal(first[3].target, first[3].reference)


def test_dropped_windows_are_freed_and_encoded_again_on_use(dataset):
    old, kept = dataset[3], dataset[7]
    dataset.drop_before(5)
    assert dataset[7] is kept and dataset[3] is not old


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_estimate_of_the_clean_latents_inverts_the_noising(kind):
    clean, noise = torch.randn(
        2, 1, 4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    scheduler = make_scheduler({"prediction_type": kind})
    alpha = scheduler.alphas_cumprod[500].double()
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    prediction = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * clean,
    }[kind]
    assert torch.allclose(estimate_clean(prediction, noisy, alpha, kind), clean)
    # It equals what diffusers' scheduler computes from the same prediction.
    scheduler.set_timesteps(20)
    theirs = scheduler.step(prediction, 500, noisy).pred_original_sample
    assert torch.allclose(theirs.double(), clean, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients_and_stores_less(config):
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 13, FRAMES, 8, 8, generator=generator)
    audio = torch.randn(1, FRAMES, 50, 64, generator=generator)
    gradients, stored = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        unet = UNet3DConditionModel.from_config(config.unet).train()
        if checkpointing:
            enable_gradient_checkpointing(unet)
        size = 0

        def pack(tensor):
            nonlocal size
            size += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = unet(sample, 10, audio).square().mean()
        stored.append(size)
        loss.backward()
        gradients.append([p.grad for p in unet.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)
    assert stored[1] < 0.3 * stored[0]


@pytest.mark.parametrize(
    ("part", "trained", "frozen"),
    [
        ("audio", "attn2.to_k", "attn1.to_k"),
        ("attention", "motion_modules", "resnets"),
        ("all", "conv_in", None),
    ],
)
def test_only_the_chosen_part_is_trained(config, part, trained, frozen):
    unet = UNet3DConditionModel.from_config(config.unet)
    count = freeze_except(unet, Trainable(part))
    flags = {name: p.requires_grad for name, p in unet.named_parameters()}
    assert all(flag for name, flag in flags.items() if trained in name)
    assert frozen is None or not any(flag for name, flag in flags.items() if frozen in name)
    assert count == sum(p.numel() for p in unet.parameters() if p.requires_grad) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; expected 1 or more"),
        ({"batch": 0}, "batch is 0; expected 1 or more"),
        ({"learning_rate": 0}, "learning_rate is 0; expected a number between 0 and 1"),
        ({"seed": -1}, "seed is -1; expected an integer from 0"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        TrainingOptions(tmp_path, tmp_path, **change)
