"""Training: the loss falls on a fixed batch, recomputed activations change nothing, the result loads."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentsync_memsafe.latentsync.config import ModelConfig
from latentsync_memsafe.latentsync.errors import InputError
from latentsync_memsafe.latentsync.faces.mask import keep_mask
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.latentsync.models.whisper import AudioEncoder
from latentsync_memsafe.latentsync.sampling import make_scheduler
from latentsync_memsafe.latentsync.training.clips import AlignedClip
from latentsync_memsafe.latentsync.training.dataset import WindowPool, hear
from latentsync_memsafe.latentsync.training.drawn import DrawnFace
from latentsync_memsafe.latentsync.training.gradient_checkpointing import recompute_activations
from latentsync_memsafe.latentsync.training.loop import LoopOptions
from latentsync_memsafe.latentsync.training.pairs import Pairs
from latentsync_memsafe.latentsync.training.run_dir import save_model
from latentsync_memsafe.latentsync.training.speech.synthesis import SpokenClip, silence, speak
from latentsync_memsafe.latentsync.training.train import Trainable, TrainingOptions
from latentsync_memsafe.latentsync.training.train_audio_encoder import train_hearing
from latentsync_memsafe.latentsync.training.train_unet import (
    Focus,
    clean_estimate,
    denoising_loss,
    draw_batch,
    train_denoiser,
)
from latentsync_memsafe.latentsync.training.train_vae import to_unit, train_autoencoder
from latentsync_memsafe.latentsync.weights.loading import load_audio_encoder, load_unet, load_vae

SIDE, FRAMES = 64, 4
CPU = torch.device("cpu")
STAGE = {"device": CPU, "report": lambda *_: None, "check": lambda: None}


@pytest.fixture(scope="module")
def config():
    tiny = ModelConfig.published("tiny")
    vae = {**tiny.vae, "sample_size": SIDE, "scaling_factor": 1.0}
    return ModelConfig(
        "small", SIDE, FRAMES, tiny.unet, vae, tiny.audio_encoder, {"prediction_type": "v_prediction"}
    )


@pytest.fixture(scope="module")
def clip():
    face = DrawnFace.random(np.random.default_rng(3))
    faces = np.stack([face.render(o, 0.6, SIDE) for o in np.linspace(0, 0.3, 8)])
    points = np.zeros((8, 468, 2), np.float32)
    return AlignedClip("drawn", faces, points, np.zeros(0, np.float32), faces)


@pytest.fixture(scope="module")
def sounds():
    rng = np.random.default_rng(5)
    return [speak("my map was open", "formant", rng), silence(rng, 1.0)]


@pytest.fixture(scope="module")
def networks(config):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(**config.vae).eval()
    encoder = AudioEncoder.from_dims(config.audio_encoder).eval()
    return vae, encoder


@pytest.fixture
def pool(clip, sounds, networks):
    vae, encoder = networks
    pairs = Pairs([clip], sounds, [None], FRAMES, shares=(0, 0, 1))
    return WindowPool(pairs, vae, [hear(encoder, s.samples) for s in sounds], FRAMES, seed=1, device=CPU)


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_two_steps_lower_the_loss_of_a_fixed_batch(pool, networks, config, pixels, kind):
    torch.manual_seed(0)
    unet = UNet3DConditionModel.from_config(config.unet)
    scheduler = make_scheduler({"prediction_type": kind})
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    batch = draw_batch(pool, [0, 1], FRAMES, scheduler, rng, generator, CPU)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss, _ = denoising_loss(unet, networks[0] if pixels else None, batch, kind)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]


def test_the_right_prediction_has_no_loss(pool, networks, config):
    scheduler = make_scheduler(config.scheduler)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    batch = draw_batch(pool, [0, 1, 2], 2, scheduler, rng, generator, CPU)
    loss, figures = denoising_loss(lambda *_: batch.wanted, None, batch, "v_prediction")
    assert float(loss) == 0
    assert figures["clean"] < 1e-9
    # All frames of a window carry one noise, and inputs come in the order inference gives them.
    noise = (batch.noisy - batch.alpha.sqrt() * batch.target) / (1 - batch.alpha).sqrt()
    assert torch.allclose(noise[:, :, 0], noise[:, :, 1], atol=1e-4)
    assert torch.equal(batch.sample[:, :4], batch.noisy)
    mask = F.interpolate(keep_mask(SIDE)[None], size=batch.sample.shape[-2:], mode="nearest")
    assert torch.equal(batch.sample[:, 4:5], mask[:, :, None].expand(3, 1, 2, -1, -1))


def test_training_runs_whole_and_goes_on(pool, networks, config, tmp_path):
    torch.manual_seed(0)
    unet = UNet3DConditionModel.from_config(config.unet)
    focus = Focus(batch=2, frames=2, fresh=0.5, held=3)
    scheduler, seen = make_scheduler(config.scheduler), []
    for steps in (2, 4):
        options = LoopOptions("unet", steps, 1e-3, report_every=1)
        report = lambda *a: seen.append(a[1])  # noqa: E731
        train_denoiser(
            unet, networks[0], scheduler, pool, options, tmp_path, focus=focus, **{**STAGE, "report": report}
        )
    assert seen == [1, 2, 3, 4]


def test_a_window_of_the_pool_is_always_the_same(pool, clip, sounds, networks):
    vae, encoder = networks
    again = WindowPool(
        Pairs([clip], sounds, [None], FRAMES, shares=(0, 0, 1)),
        vae,
        [hear(encoder, s.samples) for s in sounds],
        FRAMES,
        seed=1,
        device=CPU,
    )
    again[3], again[7]
    again.forget(before=5)
    assert list(again._known) == [7]
    for name in ("target", "masked", "reference", "audio", "pixels"):
        assert torch.equal(getattr(pool[3], name), getattr(again[3], name))
    assert not torch.equal(pool[3].target, pool[4].target)
    assert not torch.equal(pool[3].target, pool[3].reference)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_clean_estimate_inverts_the_noising(kind):
    clean, noise = torch.randn(2, 1, 4, 2, 3, 3, dtype=torch.float64)
    scheduler = make_scheduler({"prediction_type": kind})
    alpha = scheduler.alphas_cumprod[500].double()
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    told = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * clean,
    }
    assert torch.allclose(clean_estimate(told[kind], noisy, alpha, kind), clean)
    # and it is what diffusers' scheduler makes of the same prediction
    scheduler.set_timesteps(20)
    theirs = scheduler.step(told[kind], 500, noisy).pred_original_sample
    assert torch.allclose(theirs.double(), clean, atol=1e-5)


def test_recomputed_activations_give_the_same_gradients_and_keep_less(config):
    inputs = torch.randn(1, 13, FRAMES, 8, 8), 10, torch.randn(1, FRAMES, 50, 64)
    gradients, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        unet = UNet3DConditionModel.from_config(config.unet).train()
        if recompute:
            recompute_activations(unet)
        size = 0

        def pack(tensor):
            nonlocal size
            size += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = unet(*inputs).square().mean()
        kept.append(size)
        loss.backward()
        gradients.append([p.grad for p in unet.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)
    assert kept[1] < 0.3 * kept[0]


@pytest.mark.parametrize(
    ("part", "trained", "frozen"),
    [
        ("audio", "attn2.to_k", "attn1.to_k"),
        ("attention", "motion_modules", "resnets"),
        ("all", "conv_in", None),
    ],
)
def test_trainable_parts(config, part, trained, frozen):
    unet = UNet3DConditionModel.from_config(config.unet)
    count = Trainable(part).select(unet)
    flags = {name: p.requires_grad for name, p in unet.named_parameters()}
    assert all(flag for name, flag in flags.items() if trained in name)
    assert frozen is None or not any(flag for name, flag in flags.items() if frozen in name)
    assert count == sum(p.numel() for p in unet.parameters() if p.requires_grad) > 0


def test_the_autoencoder_learns_and_its_latents_are_normalised(clip, config, tmp_path):
    seen = []
    options = LoopOptions("vae", 20, 1e-3, autocast=None, report_every=5, average=0.0)
    vae = train_autoencoder(
        config.vae,
        [clip],
        options,
        tmp_path,
        batch=2,
        **{**STAGE, "report": lambda *a: seen.append(a[3]["loss"])},
    )
    assert seen[-1] < 0.8 * seen[0]
    with torch.inference_mode():
        means = vae.encode(to_unit(clip.faces)).latent_dist.mean
    latents = (means - vae.config.shift_factor) * vae.config.scaling_factor
    assert float(latents.mean()) == pytest.approx(0, abs=1e-4)
    assert float(latents.std()) == pytest.approx(1, abs=1e-3)


def test_the_encoder_learns_to_hear_the_mouth(sounds, config, tmp_path):
    seen = []
    options = LoopOptions("hearing", 30, 2e-3, autocast=None, report_every=10, average=0.0)
    train_hearing(
        config.audio_encoder,
        sounds,
        [],
        options,
        tmp_path,
        batch=1,
        **{**STAGE, "report": lambda *a: seen.append(a[3]["loss"])},
    )
    assert seen[-1] < 0.8 * seen[0]


def test_a_saved_model_is_the_model(config, networks, tmp_path):
    vae, encoder = networks
    unet = UNet3DConditionModel.from_config(config.unet)
    folder = tmp_path / "model"
    save_model(folder, config, unet, vae, encoder)
    assert ModelConfig.from_yaml(folder / "config.yaml") == config
    half = lambda module: {k: v.half().float() for k, v in module.state_dict().items()}  # noqa: E731
    for module, loaded in (
        (unet, load_unet(folder / "unet.safetensors", config, torch.float32)),
        (vae, load_vae(folder / "vae" / "diffusion_pytorch_model.safetensors", config, torch.float32)),
        (encoder, load_audio_encoder(folder / "audio_encoder.safetensors", config)),
    ):
        expected = half(module)
        assert set(expected) == set(loaded.state_dict())
        assert all(torch.equal(v, expected[k]) for k, v in loaded.state_dict().items())
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; expected 1 or more"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"synthetic": 2}, "synthetic is 2; expected a number from 0 to 1"),
        ({"scratch": True, "base": "1.6"}, "Only the demo model"),
    ],
)
def test_options_out_of_range(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        TrainingOptions(tmp_path, tmp_path, **change)


def test_clips_without_sound_need_synthetic_faces(clip, sounds):
    with pytest.raises(InputError, match="has sound and lasts 3 s"):
        Pairs([clip], sounds, [None], FRAMES, shares=(1, 0, 0))


def test_a_sound_shorter_than_a_window_is_not_drawn(clip, sounds):
    short = SpokenClip(np.zeros(640 * (FRAMES - 1), np.float32), np.zeros((FRAMES - 1, 2), np.float32))
    pairs = Pairs([clip], [short, *sounds], [None], FRAMES, shares=(0, 0, 1))
    drawn = [pairs.draw(np.random.default_rng(seed)) for seed in range(6)]
    assert {pair.sound for pair in drawn} == {1, 2}
    assert all(pair.target.shape == (FRAMES, SIDE, SIDE, 3) for pair in drawn)
