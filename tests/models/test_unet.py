"""The UNet: reference outputs, parameter names of the published files, and what may and may not be cut up."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from latentsync_memsafe.latentsync.config import ModelConfig
from latentsync_memsafe.latentsync.errors import CheckpointError
from latentsync_memsafe.latentsync.models.attention import Attention, AudioConditioning, FeedForward
from latentsync_memsafe.latentsync.models.feature_cache import FeatureCache
from latentsync_memsafe.latentsync.models.motion import MotionModule
from latentsync_memsafe.latentsync.models.resnet import FrameGroupNorm, WindowGroupNorm
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.latentsync.models.unet_config import MotionOptions, UNetConfig

from support.paths import reference
from support.rule_weights import rule_filled

CASES = json.loads(reference("unet_cases.json").read_text())


def case_model(name):
    return rule_filled(UNet3DConditionModel.from_config(CASES[name]["config"])).eval()


def case_inputs(name):
    case = CASES[name]
    generator = torch.Generator().manual_seed(case["input_seed"])
    side = case["latent"]
    sample = torch.randn(2, 13, case["frames"], side, side, generator=generator)
    audio = torch.randn(2, case["frames"], 50, 32, generator=generator)
    audio[0] = 0
    return sample, torch.tensor(case["timestep"]), audio


@torch.inference_mode()
def run(model, inputs):
    return model(*inputs)


def relative(got, want):
    """Largest difference as a fraction of the wanted output's standard deviation."""
    return ((got.float() - want.float()).abs().max() / want.float().std()).item()


@pytest.mark.parametrize("name", CASES)
def test_reference_outputs(name):
    model = case_model(name)
    assert sum(p.numel() for p in model.parameters()) == CASES[name]["params"]
    want = load_file(reference("unet_outputs.safetensors"))[f"{name}.output"]
    assert relative(run(model, case_inputs(name)), want) < 1e-5


@pytest.mark.parametrize(
    ("manifest", "tensors"), [("unet_stage2_512_manifest", 1246), ("unet_stage2_efficient_manifest", 1022)]
)
def test_published_names_and_shapes(manifest, tensors):
    published = json.loads(reference(f"{manifest}.json").read_text())
    with torch.device("meta"):
        model = UNet3DConditionModel.from_config(published["config"])
    state = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert state == published["keys"]
    assert len(state) == tensors


def test_shipped_configs_state_the_published_unet():
    published = json.loads(reference("unet_stage2_512_manifest.json").read_text())
    assert ModelConfig.published("1.6").unet == published["config"] == ModelConfig.published("1.5").unet
    assert json.loads(json.dumps(asdict(UNetConfig()))) == published["config"]
    with torch.device("meta"):
        model = UNet3DConditionModel.from_config({})
    assert sum(p.numel() for p in model.parameters()) == 1_267_099_844


def test_shipped_configs_differ_only_in_name_and_resolution():
    newer, older = ModelConfig.published("1.6"), ModelConfig.published("1.5")
    assert (newer.resolution, older.resolution) == (512, 256)
    assert replace(older, name="1.6", resolution=512) == newer


def test_timestep_may_be_an_int_a_scalar_or_one_per_item():
    model, (sample, _, audio) = case_model("tiny_one_frame"), case_inputs("tiny_one_frame")
    want = run(model, (sample, 401, audio))
    assert torch.equal(run(model, (sample, torch.tensor(401), audio)), want)
    mixed = run(model, (sample, torch.tensor([401, 3]), audio))
    alone = run(model, (sample[1:], 3, audio[1:]))
    assert relative(mixed[:1], want[:1]) < 1e-5
    assert relative(mixed[1:], alone) < 1e-5
    assert relative(mixed[1:], want[1:]) > 0.1


def test_attention_and_feed_forward_can_be_replaced_from_outside():
    model, inputs = case_model("tiny_short_chunk"), case_inputs("tiny_short_chunk")
    want = run(model, inputs)

    def textbook(query, key, value):
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        return scores.softmax(dim=-1) @ value

    def in_slices(module):
        whole = module.forward
        module.forward = lambda hidden: torch.cat([whole(part) for part in hidden.split(3, dim=1)], dim=1)

    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = textbook
        if isinstance(module, FeedForward):
            in_slices(module)
    assert relative(run(model, inputs), want) < 1e-5


def test_a_window_cannot_be_split_but_a_batch_can():
    """Without motion modules only the group norms' statistics tie the frames together."""
    model, (sample, timestep, audio) = case_model("tiny_no_motion"), case_inputs("tiny_no_motion")
    whole = run(model, (sample, timestep, audio))
    halves = [
        run(model, (sample[:, :, frames], timestep, audio[:, frames])) for frames in (slice(8), slice(8, 16))
    ]
    items = [run(model, (sample[i : i + 1], timestep, audio[i : i + 1])) for i in (0, 1)]
    assert relative(torch.cat(halves, dim=2), whole) > 0.01
    assert relative(torch.cat(items), whole) < 1e-5


def test_each_frame_attends_to_its_own_audio():
    model, (sample, timestep, audio) = case_model("tiny_no_motion"), case_inputs("tiny_no_motion")
    attn2 = model.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    seen = []
    attn2.to_k.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run(model, (sample, timestep, audio))
    assert torch.equal(seen[0].view(2, 16, 50, 32), audio)


def test_a_model_without_audio_layers_needs_no_audio():
    model, (sample, timestep, audio) = case_model("tiny_no_audio"), case_inputs("tiny_no_audio")
    want = run(model, (sample, timestep, audio))
    assert torch.equal(run(model, (sample, timestep, None)), want)
    assert torch.equal(run(model, (sample, timestep)), want)
    assert torch.equal(run(model, (sample, timestep, audio + 1)), want)


def test_a_model_with_audio_layers_refuses_to_go_without():
    model, (sample, timestep, _) = case_model("tiny_one_frame"), case_inputs("tiny_one_frame")
    with pytest.raises(ValueError, match=r"encoder_hidden_states is None.*\[batch, frames, n, 32\]"):
        run(model, (sample, timestep, None))


@pytest.mark.parametrize(("kind", "over"), [(FrameGroupNorm, (2, 3, 5)), (WindowGroupNorm, (1, 2, 3, 5))])
def test_group_norms_stay_accurate_far_from_zero(kind, over):
    """Against the definition in float64, where the mean is 30 deviations."""
    hidden = torch.randn(2, 3, 8, 8, 64, generator=torch.Generator().manual_seed(0)) + 30
    norm = rule_filled(kind(8, 64))
    grouped = hidden.double().unflatten(-1, (8, 8))
    centred = grouped - grouped.mean(dim=over, keepdim=True)
    want = centred / (centred.square().mean(dim=over, keepdim=True) + norm.eps).sqrt()
    want = want.flatten(-2) * norm.weight.double() + norm.bias.double()
    assert (norm(hidden) - want).abs().max() < 3e-5


def test_untrained_motion_module_changes_nothing():
    hidden = torch.randn(1, 4, 2, 2, 32)
    assert torch.equal(MotionModule(32, MotionOptions())(hidden), hidden)
    assert not torch.equal(MotionModule(32, MotionOptions(zero_initialize=False))(hidden), hidden)


def test_motion_module_refuses_more_frames_than_it_has_positions():
    module = MotionModule(32, MotionOptions(temporal_position_encoding_max_len=4))
    with pytest.raises(ValueError, match=r"5 frames.*4 positions"):
        module(torch.zeros(1, 5, 2, 2, 32))


def test_motion_module_in_the_middle_is_named_and_used():
    config = dict(CASES["tiny_one_frame"]["config"], motion_module_mid_block=True)
    model, inputs = rule_filled(UNet3DConditionModel.from_config(config)), case_inputs("tiny_one_frame")
    assert "mid_block.motion_modules.0.temporal_transformer.proj_out.weight" in model.state_dict()
    assert relative(run(model, inputs), run(case_model("tiny_one_frame"), inputs)) > 1e-3


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision(dtype, rounding):
    """Within 60 roundings at the worst pixel; the network is some 130 layers deep."""
    model, (sample, timestep, audio) = case_model("tiny_short_chunk"), case_inputs("tiny_short_chunk")
    want = run(model, (sample, timestep, audio))
    got = run(model.to(dtype), (sample.to(dtype), timestep, audio.to(dtype)))
    assert got.dtype == dtype
    assert relative(got, want) < 60 * rounding


def test_gradients_reach_every_parameter():
    model, (sample, timestep, audio) = case_model("tiny_one_frame"), case_inputs("tiny_one_frame")
    model(sample, timestep, audio).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "relu"}, "act_fn is 'relu'.*'silu'"),
        ({"colour": 1}, "unknown keys.*colour"),
        ({"motion_module_kwargs": {"heads": 8}}, "unknown keys.*heads"),
        ({"motion_module_kwargs": {"attention_block_types": ["Temporal_Cross"]}}, "Temporal_Cross"),
        ({"down_block_types": ["DownBlock3D"]}, "down_block_types.*expected 4"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types.*UpBlock2D"),
        ({"layers_per_block": 1_000_000}, "layers_per_block is 1000000; expected .* from 1 to 64"),
        ({"attention_head_dim": 0}, "attention_head_dim is 0"),
        ({"cross_attention_dim": "wide"}, "cross_attention_dim is 'wide'"),
        ({"motion_module_kwargs": {"num_attention_heads": 0}}, "num_attention_heads is 0"),
        ({"motion_module_kwargs": {"attention_block_types": ["Temporal_Self"] * 99}}, "at most 64"),
    ],
)
def test_config_errors_say_what_is_wrong(change, message):
    with pytest.raises(CheckpointError, match=message):
        UNet3DConditionModel.from_config({**CASES["tiny"]["config"], **change})


@pytest.mark.parametrize("name", [name for name in CASES if name != "tiny_no_audio"])
def test_both_halves_of_guidance_share_what_comes_before_the_first_audio(name):
    """Against the plain twin: audio as a tensor, zeros in the unconditional half."""
    model, (sample, timestep, audio) = case_model(name), case_inputs(name)
    sample, audio = sample[:1], audio[1:]
    both = torch.cat([torch.zeros_like(audio), audio])
    want = run(model, (sample.repeat(2, 1, 1, 1, 1), timestep, both))
    rows = []
    model.conv_in.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    assert relative(run(model, (sample, timestep, AudioConditioning(audio).guided())), want) < 1e-5
    silence = AudioConditioning(None, unconditional=True)
    assert relative(run(model, (sample, timestep, silence)), want[:1]) < 1e-5
    assert rows == [1, 1]


def test_keys_and_values_of_the_audio_are_computed_once():
    model, (sample, timestep, audio) = case_model("tiny_one_frame"), case_inputs("tiny_one_frame")
    calls = []
    for name, module in model.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    conditioning = AudioConditioning(audio)
    results = [run(model, (sample, timestep, given)) for given in (conditioning, conditioning.guided())]
    assert calls and len(calls) == len(set(calls))
    assert relative(results[1][2:], results[0]) < 1e-5


def test_a_step_between_full_ones_computes_the_outermost_layers_only():
    """With the kept state of the same step, it gives what the full step gives."""
    model, inputs = case_model("tiny_short_chunk"), case_inputs("tiny_short_chunk")
    want, cache, called = run(model, inputs), FeatureCache(), []
    cache.begin_step(0, full=False)  # the first step is full in any case
    assert torch.equal(run(model, (*inputs, cache)), want)
    blocks = [*model.down_blocks, model.mid_block, *model.up_blocks[:-1], *model.up_blocks[-1].resnets[:-1]]
    for block in blocks:
        block.register_forward_hook(lambda block, *_: called.append(block))
    cache.begin_step(1, full=False)
    assert torch.equal(run(model, (*inputs, cache)), want)
    assert called == []


def test_the_cache_estimates_linearly():
    cache, start, slope = FeatureCache(), torch.randn(4, 3), torch.randn(4, 3)
    cache.begin_step(0, full=True)
    cache.exchange(start)
    cache.begin_step(1, full=False)
    assert torch.equal(cache.exchange(torch.empty(0)), start)
    cache.begin_step(2, full=True)
    cache.exchange(start + 2 * slope)
    cache.begin_step(3.5, full=False)
    torch.testing.assert_close(cache.exchange(torch.empty(0)), start + 3.5 * slope)
    last = cache.last(1)
    last.begin_step(4, full=False)
    torch.testing.assert_close(last.exchange(torch.empty(0)), (start + 4 * slope)[-1:])
