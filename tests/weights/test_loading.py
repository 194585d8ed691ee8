"""Loading model folders: accepted forms give the same networks, wrong files a message naming them."""

import json
import pickle
import random
import shutil

import pytest
import torch
from safetensors.torch import save_file

from latentsync_memsafe.latentsync.config import ModelConfig
from latentsync_memsafe.latentsync.errors import CheckpointError
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.latentsync.weights import loading
from latentsync_memsafe.latentsync.weights.checkpoints import folder_config
from latentsync_memsafe.latentsync.weights.loading import load_audio_encoder, load_models, load_unet, load_vae
from latentsync_memsafe.latentsync.weights.state_dict import (
    assign_weights,
    describe,
    read_state_dict,
    rename_vae,
)

from support.paths import reference
from support.rule_weights import rule_filled
from support.small_models import save_tiny_folder, tiny_audio_encoder, tiny_bundle, tiny_vae

TINY = ModelConfig.published("tiny")
SMALL = ModelConfig(
    name="small",
    unet={
        **TINY.unet,
        "block_out_channels": [32, 32],
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
        "layers_per_block": 1,
    },
)


class Full:
    """Fake of `assign_weights` for which nothing fits on the device."""

    def __init__(self, real):
        self.real, self.asked = real, []

    def __call__(self, module, state, path, what, dtype, device):
        self.asked.append(str(device))
        if str(device) == "mps":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.36 GiB.")
        return self.real(module, state, path, what, dtype, device)


class NoDetector:
    """Detector for tests that need no faces."""

    def detect(self, frames):
        return [[] for _ in frames]


@pytest.fixture(scope="module")
def small_state():
    return rule_filled(UNet3DConditionModel.from_config(SMALL.unet)).state_dict()


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def shapes_of(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def manifest(name):
    return {n: tuple(s) for n, s in json.loads(reference(f"{name}.json").read_text())["keys"].items()}


def load_small(path, dtype=torch.float32):
    return load_unet(path, SMALL, dtype)


def module_prefixed(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


FORMS = {
    "bare.safetensors": save_file,
    "bare.pt": torch.save,
    "published.pt": lambda state, path: torch.save({"global_step": 7, "state_dict": state}, path),
    "whisper-like.pt": lambda state, path: torch.save({"model_state_dict": state}, path),
    "parallel.pt": lambda state, path: torch.save({"state_dict": module_prefixed(state)}, path),
    "old.pt": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "safetensors named.pt": save_file,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_every_form_gives_the_same_weights(form, dtype, stored, small_state, tmp_path):
    path = tmp_path / form
    FORMS[form]({name: tensor.to(stored) for name, tensor in small_state.items()}, path)
    unet = load_small(path, dtype)
    loaded = unet.state_dict()
    assert loaded.keys() == small_state.keys()
    assert all(torch.equal(loaded[n], small_state[n].to(stored).to(dtype)) for n in loaded)
    assert not unet.training
    assert not any(p.requires_grad for p in unet.parameters())


def test_position_encodings_missing_from_the_file_follow_their_formula(small_state, tmp_path):
    save_file({n: t for n, t in small_state.items() if not n.endswith(".pe")}, tmp_path / "unet.safetensors")
    loaded = load_small(tmp_path / "unet.safetensors").state_dict()
    assert all(torch.equal(loaded[n], small_state[n]) for n in small_state)


def test_position_encodings_of_the_file_win(small_state, tmp_path):
    changed = {n: t + 1 if n.endswith(".pe") else t for n, t in small_state.items()}
    save_file(changed, tmp_path / "unet.safetensors")
    loaded = load_small(tmp_path / "unet.safetensors").state_dict()
    assert all(torch.equal(loaded[n], changed[n]) for n in changed)


def written(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"just some text, longer than a header\n", "is not a file of weights .*just some text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html></html>", "is a web page"),
        (b"\x80\x02", "is damaged or cut short"),
        (b"PK\x03\x04 and no archive", "is damaged or cut short"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{no json}......", "is damaged or cut short"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_files_that_are_not_weights(content, message, suffix, tmp_path):
    path = written(tmp_path / f"unet.{suffix}", content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_small(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
def test_truncated_files(form, keep, small_state, tmp_path):
    path = tmp_path / form
    FORMS[form](small_state, path)
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"damaged or cut short|could run code"):
        load_small(written(path, content[: int(keep * len(content))]))


def load_or_refuse(load):
    """Whether it loads; any error but CheckpointError, with one line, is a failure of the test."""
    try:
        load()
    except CheckpointError as error:
        assert "\n" not in str(error)
        return False
    return True


@pytest.mark.parametrize("form", ["bare.pt", "old.pt", "bare.safetensors"])
def test_a_file_with_any_damage_loads_or_is_refused(form, tmp_path):
    """Bytes changed at random, from fixed seeds, half of them in the last part, where a zip has its directory."""
    path = tmp_path / form
    FORMS[form]({"weight": torch.arange(64.0), "bias": torch.ones(3)}, path)
    content = path.read_bytes()
    refused = 0
    for seed in range(120):
        generator, damaged = random.Random(seed), bytearray(content)
        start = len(content) // 2 if seed % 2 else 0
        for _ in range(generator.randint(1, 8)):
            damaged[generator.randrange(start, len(content))] = generator.randrange(256)
        refused += not load_or_refuse(lambda: read_state_dict(written(path, bytes(damaged))))  # noqa: B023
    assert refused > 20


def test_names_that_are_not_text_are_refused(tmp_path):
    torch.save({0: torch.ones(1)}, tmp_path / "unet.pt")
    with pytest.raises(CheckpointError, match="expected a state dict"):
        read_state_dict(tmp_path / "unet.pt")


BROKEN_VAES = {
    "no groups": {"norm_num_groups": 0},
    "negative channels": {"latent_channels": -1},
    "no width": {"block_out_channels": []},
    "widths that are text": {"block_out_channels": "wide"},
    "endless layers": {"layers_per_block": 1_000_000},
    "endless levels": {"block_out_channels": [32] * 1_000_000},
    "unknown activation": {"act_fn": "none of these"},
    "scale that is text": {"scaling_factor": "x"},
    "scale of nothing": {"scaling_factor": 0},
    "shift that is a list": {"shift_factor": [0.0]},
}


@pytest.mark.parametrize("case", BROKEN_VAES)
def test_a_broken_vae_config_is_refused(case, folder):
    path = folder / "vae/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **BROKEN_VAES[case]}))
    with pytest.raises(CheckpointError, match=r"vae") as caught:
        load_models(folder, detector=NoDetector())
    assert "\n" not in str(caught.value)


BROKEN_CONFIGS = {
    "no heads": {"unet": {"attention_head_dim": 0}},
    "no motion heads": {"unet": {"motion_module_kwargs": {"num_attention_heads": 0}}},
    "heads that do not divide": {"unet": {"attention_head_dim": 7}},
    "endless layers": {"unet": {"layers_per_block": 1_000_000}},
    "endless motion blocks": {"unet": {"motion_module_kwargs": {"num_transformer_block": 1_000_000}}},
    "endless positions": {"unet": {"motion_module_kwargs": {"temporal_position_encoding_max_len": 10**12}}},
    "no levels": {"unet": {"block_out_channels": [], "down_block_types": [], "up_block_types": []}},
    "no audio heads": {"audio_encoder": {"n_audio_head": 0}},
    "endless audio layers": {"audio_encoder": {"n_audio_layer": 1_000_000}},
}


@pytest.mark.parametrize("case", BROKEN_CONFIGS)
def test_a_broken_model_config_is_refused(case, folder):
    import yaml

    (folder / "whisper/tiny.pt").unlink()  # a file without dims: those of the config count
    save_file(tiny_audio_encoder().state_dict(), folder / "audio_encoder.safetensors")
    path = folder / "config.yaml"
    values = yaml.safe_load(path.read_text())
    for section, changes in BROKEN_CONFIGS[case].items():
        values[section].update(changes)
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(CheckpointError) as caught:
        load_models(folder, detector=NoDetector())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("vae/config.json", "[" * 100_000), ("vae/config.json", "5"), ("config.yaml", "[" * 2_000)],
)
def test_a_config_that_cannot_be_read_is_refused(name, text, folder):
    (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_models(folder, detector=NoDetector())


def test_missing_file_and_folder_instead_of_a_file(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_small(tmp_path / "unet.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_small(tmp_path)


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_run(zipped, tmp_path):
    target, path = tmp_path / "executed", tmp_path / "unet.pt"
    content = {"state_dict": {"conv_in.weight": Bomb(target)}}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match=r"more than tensors \(.*open\).*not loaded"):
        load_small(path)
    assert not target.exists()
    with path.open("rb") as file:  # the bomb is real
        torch.load(file, weights_only=False) if zipped else pickle.load(file)
    assert target.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*deprecated", "ignore:.*TorchScript archive")
def test_a_safetensors_header_may_begin_like_a_pickle(tmp_path):
    """The file begins with the header's length; 128 (and any n * 256 + 128) begins with a pickle's 0x80."""
    path = tmp_path / "unet.safetensors"
    state = {"weight": torch.arange(4.0)}
    for filler in range(0, 64, 8):
        save_file(state, path, metadata={"note": "x" * filler})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert torch.equal(read_state_dict(path)["weight"], state["weight"])


def test_torchscript_is_not_run(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "unet.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_small(tmp_path / "unet.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [([torch.zeros(1)], "holds a list"), ({"state_dict": {"epoch": 3}}, "holds int under 'epoch'")],
)
def test_other_content(content, message, tmp_path):
    torch.save(content, tmp_path / "unet.pt")
    with pytest.raises(CheckpointError, match=message):
        load_small(tmp_path / "unet.pt")


def test_names_and_shapes_that_differ(small_state, tmp_path):
    state = dict(small_state, surplus=torch.zeros(1))
    del state["conv_out.bias"]
    state["conv_norm_out.weight"] = torch.zeros(33)
    save_file(state, tmp_path / "unet.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_small(tmp_path / "unet.safetensors")
    message = str(caught.value)
    assert "looks like LatentSync 1.5/1.6" in message
    assert "1 missing (conv_out.bias), 1 unknown (surplus)" in message
    assert "conv_norm_out.weight [33] for [32]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_that_are_not_finite(value, dtype, small_state, tmp_path):
    bias = small_state["conv_out.bias"].clone()
    bias[1] = value
    save_file({**small_state, "conv_out.bias": bias}, tmp_path / "unet.safetensors")
    with pytest.raises(CheckpointError, match=r"conv_out\.bias has values that are NaN or infinite"):
        load_small(tmp_path / "unet.safetensors", dtype)


def test_values_that_the_precision_cannot_hold(small_state, tmp_path):
    save_file({**small_state, "conv_out.bias": torch.full((4,), 1e5)}, tmp_path / "unet.safetensors")
    with pytest.raises(CheckpointError, match=r"conv_out\.bias .*too large for float16"):
        load_small(tmp_path / "unet.safetensors", torch.float16)
    assert load_small(tmp_path / "unet.safetensors", torch.bfloat16).conv_out.bias.isfinite().all()


def stable_diffusion_unet(channels):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(in_channels=channels, cross_attention_dim=768).state_dict()


def animatediff():
    from diffusers import MotionAdapter

    with torch.device("meta"):
        return MotionAdapter().state_dict()


def ldm_vae_names(state):
    """A diffusers VAE's state under CompVis' names; diffusers' own translation tests this one."""
    levels = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("decoder.up_blocks."))
    pairs = [
        ("mid_block.resnets.0.", "mid.block_1."),
        ("mid_block.resnets.1.", "mid.block_2."),
        ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."),
        ("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
        ("downsamplers.0.", "downsample."),
        ("upsamplers.0.", "upsample."),
        ("resnets.", "block."),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ]
    renamed = {}
    for name, tensor in state.items():
        if ".attentions." in name and tensor.ndim == 2:
            tensor = tensor[..., None, None]
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        for level in range(levels):
            name = name.replace(f"encoder.down_blocks.{level}.", f"encoder.down.{level}.")
            name = name.replace(f"decoder.up_blocks.{level}.", f"decoder.up.{levels - 1 - level}.")
        renamed[name] = tensor
    return renamed


def old_diffusers_names(state):
    """As sd-vae-ft-mse was published, before diffusers renamed its attention."""
    pairs = [("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn.")]
    renamed = {}
    for name, tensor in state.items():
        for new, old in pairs:
            name = name.replace(f"attentions.0.{new}", f"attentions.0.{old}")
        renamed[name] = tensor
    return renamed


LOOKS = {
    "LatentSync 1.5/1.6": lambda: manifest("unet_stage2_512_manifest"),
    "LatentSync efficient (decoder-only motion)": lambda: manifest("unet_stage2_efficient_manifest"),
    "Stable Diffusion 1.5 UNet (4 input channels, 768-wide text attention, no motion modules)": (
        lambda: shapes_of(stable_diffusion_unet(4))
    ),
    "Stable Diffusion 1.5 UNet (9 input channels, 768-wide text attention, no motion modules)": (
        lambda: shapes_of(stable_diffusion_unet(9))
    ),
    "an AnimateDiff motion module": lambda: shapes_of(animatediff()),
    "a Stable Diffusion full checkpoint": lambda: {
        "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
        "first_stage_model.encoder.down.0.block.0.conv1.weight": (128, 128, 3, 3),
        "first_stage_model.decoder.up.0.block.0.conv1.weight": (128, 128, 3, 3),
    },
    "Whisper": lambda: manifest("whisper_tiny_manifest"),
    "VAE": lambda: shapes_of(tiny_vae().state_dict()),
    "VAE (original LDM names)": lambda: shapes_of(ldm_vae_names(tiny_vae().state_dict())),
    "SyncNet": lambda: {"audio_encoder.conv_in.weight": (1,), "visual_encoder.conv_in.weight": (1,)},
    "unknown": lambda: {"weight": (3, 3)},
}


@pytest.mark.parametrize("kind", LOOKS)
def test_description_of_a_wrong_file(kind):
    assert describe(LOOKS[kind]()) == kind


def test_every_message_names_the_mistaken_file(folder):
    shutil.copyfile(folder / "vae/diffusion_pytorch_model.safetensors", folder / "unet.safetensors")
    with pytest.raises(CheckpointError, match=r"unet\.safetensors is not the UNet .*it looks like VAE"):
        load_models(folder, detector=NoDetector())
    shutil.copyfile(folder / "unet.safetensors", folder / "whisper/tiny.pt")
    with pytest.raises(CheckpointError, match=r"tiny\.pt is not Whisper's audio encoder: it looks like VAE"):
        load_audio_encoder(folder / "whisper/tiny.pt", TINY)


def test_folder_round_trip(folder):
    loaded, made = load_models(folder, detector=NoDetector()), tiny_bundle()
    for part in ("unet", "vae", "audio_encoder"):
        got, want = getattr(loaded, part).state_dict(), getattr(made, part).state_dict()
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want)
    assert loaded.config == TINY
    assert sorted(loaded.hashes) == ["diffusion_pytorch_model.safetensors", "tiny.pt", "unet.safetensors"]


def test_hashes_are_those_of_the_files(folder):
    import hashlib

    hashes = load_models(folder, detector=NoDetector()).hashes
    assert (
        dict(hashes)["tiny.pt"] == hashlib.sha256((folder / "whisper/tiny.pt").read_bytes()).hexdigest()[:12]
    )


def test_dtype_is_the_unet_and_vae_s_only(folder):
    bundle = load_models(folder, dtype=torch.bfloat16, detector=NoDetector())
    dtypes = [
        {t.dtype for t in m.state_dict().values()} for m in (bundle.unet, bundle.vae, bundle.audio_encoder)
    ]
    assert dtypes == [{torch.bfloat16}, {torch.bfloat16}, {torch.float32}]


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("unet.safetensors", "UNet is missing.*latentsync_unet.pt.*unet.safetensors"),
        ("whisper/tiny.pt", "audio encoder is missing.*whisper/tiny.pt"),
        ("vae/diffusion_pytorch_model.safetensors", "VAE is missing.*diffusion_pytorch_model.safetensors"),
    ],
)
def test_missing_parts_are_named(remove, message, folder):
    (folder / remove).unlink()
    with pytest.raises(CheckpointError, match=message) as caught:
        load_models(folder, detector=NoDetector())
    assert str(folder) in str(caught.value)


def test_missing_vae_names_every_place(folder, monkeypatch):
    monkeypatch.setenv("LATENTSYNC_MEMSAFE_CHECKPOINTS", str(folder / "nowhere"))
    shutil.rmtree(folder / "vae")
    with pytest.raises(CheckpointError, match=r"vae\.safetensors.*sd-vae-ft-mse.*nowhere"):
        load_models(folder, detector=NoDetector())


def test_published_model_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSYNC_MEMSAFE_CHECKPOINTS", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"latentsync_unet\.pt"):
        load_models("1.6", detector=NoDetector())


def test_config_follows_the_folder(folder):
    (folder / "config.yaml").write_text("name: mine\nresolution: 256\n")
    mine = folder_config(folder)
    assert (mine.name, mine.resolution, mine.unet) == ("mine", 256, ModelConfig.published("1.6").unet)
    (folder / "config.yaml").unlink()
    assert folder_config(folder) == ModelConfig.published("1.6")
    assert folder_config(folder.rename(folder.with_name("LatentSync-1.5"))) == ModelConfig.published("1.5")


VAE_FORMS = {
    "diffusers": lambda state: state,
    "old diffusers": old_diffusers_names,
    "ldm": ldm_vae_names,
    "ldm in a full checkpoint": lambda state: {
        **{f"first_stage_model.{n}": t for n, t in ldm_vae_names(state).items()},
        "model.diffusion_model.out.0.weight": torch.zeros(3),
    },
    "ldm with what training left": lambda state: {**ldm_vae_names(state), "loss.logvar": torch.zeros(1)},
}


@pytest.mark.parametrize("form", VAE_FORMS)
def test_single_vae_file_decodes_like_the_folder(form, folder):
    beside = load_vae(folder / "vae/diffusion_pytorch_model.safetensors", TINY, torch.float32)
    shutil.rmtree(folder / "vae")
    save_file(
        {n: t.contiguous() for n, t in VAE_FORMS[form](beside.state_dict()).items()},
        folder / "vae.safetensors",
    )
    single = load_models(folder, detector=NoDetector()).vae
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        latents = [vae.encode(image).latent_dist.mode() for vae in (beside, single)]
        images = [vae.decode(latents[0]).sample for vae in (beside, single)]
    assert torch.equal(*latents)
    assert torch.equal(*images)


def test_shared_vae_beside_the_model_folder(folder):
    shutil.move(folder / "vae", folder.parent / "sd-vae-ft-mse")
    got = load_models(folder, detector=NoDetector()).vae.state_dict()
    assert all(torch.equal(got[n], t) for n, t in tiny_vae().state_dict().items())


def test_ldm_names_agree_with_diffusers():
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    original = ldm_vae_names(tiny_vae().state_dict())
    theirs = convert_ldm_vae_checkpoint(dict(original), dict(TINY.vae))
    ours = rename_vae(original)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name].view_as(ours[name])) for name in ours)


def hugging_face_whisper(path):
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(0)
    dims = TINY.audio_encoder
    width, layers, heads = dims["n_audio_state"], dims["n_audio_layer"], dims["n_audio_head"]
    model = WhisperModel(
        WhisperConfig(
            vocab_size=64,
            d_model=width,
            encoder_layers=layers,
            encoder_attention_heads=heads,
            encoder_ffn_dim=4 * width,
            decoder_layers=1,
            decoder_attention_heads=heads,
            decoder_ffn_dim=4 * width,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            decoder_start_token_id=0,
        )
    ).eval()
    model.save_pretrained(path)
    return model


def test_hugging_face_whisper_gives_the_same_states(folder):
    """Against transformers: its last hidden state alone is after the final norm."""
    shutil.rmtree(folder / "whisper")
    peer = hugging_face_whisper(folder / "whisper")
    encoder = load_models(folder, detector=NoDetector()).audio_encoder
    mel = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        *before, after = peer.encoder(mel, output_hidden_states=True).hidden_states
        states = encoder(mel)
        normed = encoder.encoder.ln_post(states[:, :, -1])
    for layer, state in enumerate(before):
        torch.testing.assert_close(states[:, :, layer], state, rtol=0, atol=1e-4)
    torch.testing.assert_close(normed, after, rtol=0, atol=1e-4)


def test_hugging_face_whisper_with_the_generation_model_s_prefix(folder):
    peer = hugging_face_whisper(folder / "whisper")
    state = {f"model.{name}": tensor.contiguous() for name, tensor in peer.state_dict().items()}
    save_file(state, folder / "whisper/model.safetensors")
    (folder / "whisper/tiny.pt").unlink()
    loaded = load_models(folder, detector=NoDetector()).audio_encoder.state_dict()
    conv = peer.encoder.conv1.weight
    assert torch.equal(loaded["encoder.conv1.weight"], conv)


def test_audio_encoder_as_safetensors(folder):
    (folder / "whisper/tiny.pt").unlink()
    state = tiny_audio_encoder().state_dict()
    save_file(state, folder / "audio_encoder.safetensors")
    loaded = load_models(folder, detector=NoDetector()).audio_encoder.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_whisper_with_its_decoder(folder):
    path = folder / "whisper/tiny.pt"
    content = torch.load(path, weights_only=True)
    content["model_state_dict"]["decoder.token_embedding.weight"] = torch.zeros(3, 3)
    torch.save(content, path)
    assert load_audio_encoder(path, TINY).encoder.conv1.weight.isfinite().all()


def test_whisper_of_another_size(folder):
    with pytest.raises(CheckpointError, match=r"another size: .*64.*expected .*384"):
        load_audio_encoder(folder / "whisper/tiny.pt", ModelConfig.published("1.6"))


def test_vae_of_another_size(folder):
    path = (folder / "vae/diffusion_pytorch_model.safetensors").rename(folder / "vae.safetensors")
    with pytest.raises(CheckpointError, match="is not this model's VAE: it looks like VAE"):
        load_vae(path, ModelConfig.published("1.6"), torch.float32)


def test_weights_of_the_right_precision_are_not_copied(small_state, tmp_path):
    """They read from the mapped file: the tensors' storages are the file's, not new memory."""
    save_file(small_state, tmp_path / "unet.safetensors")
    state = read_state_dict(tmp_path / "unet.safetensors")
    pointers = {name: tensor.data_ptr() for name, tensor in state.items()}
    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(SMALL.unet)
    assign_weights(unet, state, tmp_path, "the UNet")
    assert {name: tensor.data_ptr() for name, tensor in unet.state_dict().items()} == pointers
    assert not state


def test_networks_that_do_not_fit_on_the_device_are_loaded_into_cpu_memory(tiny_folder, monkeypatch, caplog):
    full = Full(loading.assign_weights)
    monkeypatch.setattr(loading, "assign_weights", full)
    monkeypatch.setattr(loading, "empty_cache", lambda device: full.asked.append(f"emptied {device}"))
    bundle = load_models(tiny_folder, device="mps", detector=NoDetector())
    assert full.asked == ["mps", "emptied mps", "cpu", "cpu", "cpu"]
    assert {str(next(m.parameters()).device) for m in (bundle.unet, bundle.vae, bundle.audio_encoder)} == {
        "cpu"
    }
    assert "do not fit on mps now (CUDA out of memory" in caplog.text
