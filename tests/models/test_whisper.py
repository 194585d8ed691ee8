"""The Whisper encoder: names, states, precisions, against the manifest and transformers' own."""

import json

import pytest
import torch

from latentsync_memsafe.latentsync.errors import CheckpointError
from latentsync_memsafe.latentsync.models.whisper import AudioEncoder

from support.paths import reference
from support.rule_weights import rule_filled

SMALL = {"n_mels": 8, "n_audio_ctx": 50, "n_audio_state": 32, "n_audio_head": 4, "n_audio_layer": 2}


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    return rule_filled(AudioEncoder.from_dims(SMALL)).eval()


def mel(columns: int = 100, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 8, columns, generator=torch.Generator().manual_seed(3))


def test_names_and_shapes_are_those_of_tiny_pt():
    manifest = json.loads(reference("whisper_tiny_manifest.json").read_text())
    with torch.device("meta"):
        state = AudioEncoder.from_dims(manifest["dims"]).state_dict()
    published = {name: shape for name, shape in manifest["keys"].items() if name.startswith("encoder.")}
    assert {name: list(tensor.shape) for name, tensor in state.items()} == published


def test_built_on_meta_and_assigned_gives_the_same_states(encoder):
    with torch.device("meta"):
        built = AudioEncoder.from_dims(SMALL)
    built.load_state_dict(encoder.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(built.eval()(mel()), encoder(mel()))


def test_states_equal_transformers(encoder):
    whisper = pytest.importorskip("transformers.models.whisper.modeling_whisper")
    peer = whisper.WhisperEncoder(
        whisper.WhisperConfig(
            num_mel_bins=8,
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=128,
            max_source_positions=50,
        )
    ).eval()
    renames = {
        "encoder.": "",
        "positional_embedding": "embed_positions.weight",
        "blocks.": "layers.",
        "attn.query": "self_attn.q_proj",
        "attn.key": "self_attn.k_proj",
        "attn.value": "self_attn.v_proj",
        "attn.out": "self_attn.out_proj",
        "attn_ln": "self_attn_layer_norm",
        "mlp.0": "fc1",
        "mlp.2": "fc2",
        "mlp_ln": "final_layer_norm",
        "ln_post": "layer_norm",
    }
    state = {}
    for name, tensor in encoder.state_dict().items():
        for ours, theirs in renames.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
    peer.load_state_dict(state)
    with torch.no_grad():
        states = encoder(mel())
        theirs = peer(mel(), output_hidden_states=True).hidden_states
        normed = encoder.encoder.ln_post(states[:, :, -1])
    assert states.shape == (2, 50, 3, 32)
    for layer in range(2):
        torch.testing.assert_close(states[:, :, layer], theirs[layer], atol=1e-5, rtol=1e-5)
    # Their last entry is after the final norm, ours before it.
    torch.testing.assert_close(normed, theirs[2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half_and_close(encoder, dtype):
    half = rule_filled(AudioEncoder.from_dims(SMALL)).eval().to(dtype)
    # The published file keeps the table in float32 beside float16 weights.
    half.encoder.positional_embedding = half.encoder.positional_embedding.float()
    with torch.no_grad():
        states, exact = half(mel().to(dtype)), encoder(mel())
    assert states.dtype == dtype
    relative = (states.float() - exact).norm() / exact.norm()
    assert relative < 4 * torch.finfo(dtype).eps


def test_shorter_audio_uses_the_first_positions(encoder):
    # Silence of any length: away from the end the convolutions see the same, so state 0 agrees.
    with torch.no_grad():
        short, long = encoder(torch.zeros(1, 8, 20)), encoder(torch.zeros(1, 8, 100))
    assert short.shape == (1, 10, 3, 32)
    torch.testing.assert_close(short[:, :9, 0], long[:, :9, 0])


@pytest.mark.parametrize("shape", [(1, 8, 7), (1, 8, 102), (1, 8, 0), (1, 9, 100), (8, 100)])
def test_other_shapes_are_refused(encoder, shape):
    with pytest.raises(ValueError, match=r"expected \[b, 8, t\] with even t up to 100"):
        encoder(torch.zeros(shape))


def test_dims_without_the_encoder_are_refused():
    with pytest.raises(CheckpointError, match=r"lack n_audio_head, n_audio_layer; expected"):
        AudioEncoder.from_dims({"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 384})
    with pytest.raises(CheckpointError, match="30 with 4 heads"):
        AudioEncoder.from_dims({**SMALL, "n_audio_state": 30})
