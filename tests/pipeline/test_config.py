"""Options and model configs are checked when they are made."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latentsync_memsafe.latentsync import SyncOptions
from latentsync_memsafe.latentsync.config import Extend, ModelConfig, Sampling, Solver, as_fps
from latentsync_memsafe.latentsync.errors import CheckpointError, InputError


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        ("59.94", Fraction(60000, 1001)),
        ("30000/1001", Fraction(30000, 1001)),
        (25, Fraction(25)),
        (24.5, Fraction(49, 2)),
        (np.float64(30), Fraction(30)),
    ],
)
def test_frame_rates_are_exact(given: object, exact: Fraction) -> None:
    assert as_fps(given) == exact
    assert SyncOptions(fps=given).fps == exact


@pytest.mark.parametrize("given", [0, -25, 1000, "fast", "1/0", float("nan"), float("inf"), None, [25]])
def test_frame_rates_out_of_range_are_refused(given: object) -> None:
    with pytest.raises(InputError, match="fps"):
        as_fps(given)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 1.5},
        {"steps": 0},
        {"steps": True},
        {"guidance": 0.99},
        {"optimization_level": "reckless"},
        {"solver": "euler"},
        {"cache_interval": 0},
        {"cache_interval": 1.5},
        {"guidance_interval": (0.5, 0.2)},
        {"guidance_interval": (0, 1.2)},
        {"guidance_interval": (0.5,)},
        {"compile": "maybe"},
        {"encoder": "h265"},
        {"guidance": float("inf")},
        {"resolution": 500},
        {"resolution": 32},
        {"crf": 52},
        {"face_index": -1},
        {"face_at": (1.0,)},
        {"face_at": (1.0, float("nan"))},
        {"extend": "forever"},
        {"length": "short"},
        {"missing_face": "invent"},
    ],
)
def test_options_out_of_range_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        SyncOptions(**wrong)


def test_choices_may_be_strings_and_numbers_may_be_numpy_numbers() -> None:
    options = SyncOptions(extend="loop", seed=np.int64(7), steps=np.int32(3), guidance=np.float32(2))
    assert options.extend is Extend.LOOP
    assert type(options.seed) is int and options.seed == 7 and type(options.steps) is int


@pytest.mark.parametrize("text", ["a: [", "- 1", "unknown: 1", "\x00"])
def test_a_file_that_is_no_config_is_named(text: str, tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        ModelConfig.from_yaml(path)
    with pytest.raises(CheckpointError, match="No model config"):
        ModelConfig.from_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("resolution: abc", "resolution"),
        ("resolution: 100", "resolution"),
        ("num_frames: -1", "num_frames"),
        ("num_frames: 30", "1 to 24"),  # more than the number of positions
        ("unet: [1, 2]", "unet"),
        ("unet: {motion_module_kwargs: 3}", "motion_module_kwargs"),
        ("unet: {block_out_channels: [64, many]}", "block_out_channels"),
        ("unet: {norm_eps: 1e-5}", "norm_eps"),  # YAML reads a number without a decimal point as a string
        ("audio_encoder: {n_mels: -80}", "n_mels"),
    ],
)
def test_invalid_values_of_a_config_file_are_named(text: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.yaml.*{word}"):
        ModelConfig.from_yaml(path)


def test_a_config_file_may_omit_keys_and_the_quotes_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "name: 1.5\nresolution:\nnum_frames: 30\n"
        "unet: {motion_module_kwargs: {temporal_position_encoding_max_len: 32}}"
    )
    config = ModelConfig.from_yaml(path)
    assert (config.name, config.resolution, config.num_frames) == ("1.5", 512, 30)
    assert all(ModelConfig.published(name).name == name for name in ("1.5", "1.6", "demo"))


@pytest.mark.parametrize("level", ["conservative", "balanced"])
def test_exact_levels_take_the_steps_asked_for(level: str) -> None:
    options = SyncOptions(steps=15, guidance=2.0, optimization_level=level)
    assert options.sampling == Sampling(15, Solver.DDIM, 2.0, cache_interval=1, guidance_interval=(0.0, 1.0))


def test_the_aggressive_level_approximates_and_single_choices_take_precedence() -> None:
    sampling = SyncOptions(steps=15, optimization_level="aggressive").sampling
    assert sampling.steps == 8 and sampling.solver is Solver.DPM and sampling.cache_interval > 1
    chosen = SyncOptions(optimization_level="aggressive", solver="ddim", cache_interval=1).sampling
    assert chosen.solver is Solver.DDIM and chosen.cache_interval == 1
    exact = SyncOptions(steps=15, optimization_level="aggressive", parity=True).sampling
    assert exact == SyncOptions(steps=15).sampling
