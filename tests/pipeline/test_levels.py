"""The level of optimization decides the precision of a CPU, float16 accumulation and compilation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync import LipSyncPipeline, SyncOptions
from latentsync_memsafe.latentsync.report import Report
from latentsync_memsafe.latentsync.workload import compiled_blocks, workload_for
from latentsync_memsafe.memsafe import Runtime, VideoShape, plan_for, probe
from latentsync_memsafe.memsafe.device import probe as probing
from latentsync_memsafe.memsafe.weights.precision import fp16_accumulation

from support.known_faces import PointsDetector
from support.small_models import tiny_bundle

LEVELS = ("conservative", "balanced", "aggressive")


@pytest.mark.parametrize("bf16", [True, False])
def test_a_cpu_multiplies_in_bfloat16_where_it_can_and_may(
    bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "cpu_bf16_in_hardware", lambda: bf16)

    def dtype(given: torch.dtype | None = None, **options: object) -> str:
        report, runtime = Report(), Runtime.auto("cpu", dtype=given)
        bundle = replace(tiny_bundle(), detector=PointsDetector([None] * 2))
        frames, audio = np.zeros((2, 96, 96, 3), np.uint8), (np.zeros(1280, np.float32), 16_000)
        with pytest.raises(Exception, match="No face"):  # the plan is made before a face is sought
            list(LipSyncPipeline(bundle, runtime).stream(frames, audio, SyncOptions(**options), report))
        return report.plan["dtype"]

    half = "bfloat16" if bf16 else "float32"
    assert [dtype(optimization_level=level) for level in LEVELS] == ["float32", half, half]
    assert dtype(parity=True) == dtype(torch.float32) == "float32"


def test_only_the_aggressive_level_accumulates_in_float16() -> None:
    info, bundle = probe("cpu"), tiny_bundle()
    runtime = Runtime(plan_for(info), info)
    workloads = [
        workload_for(bundle, runtime, SyncOptions(**given), 64, VideoShape())
        for given in (*({"optimization_level": level} for level in LEVELS), {"parity": True})
    ]
    assert [workload.fp16_accumulation for workload in workloads] == [False, False, True, False]


@pytest.mark.parametrize("card", ["NVIDIA GeForce RTX 4090", "NVIDIA H100"])
def test_float16_accumulation_is_for_geforce_and_restored(card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Matmul:
        allow_fp16_accumulation = False

    monkeypatch.setattr(torch.backends.cuda, "matmul", Matmul)
    with pytest.raises(KeyError), fp16_accumulation(card):
        assert Matmul.allow_fp16_accumulation == ("GeForce" in card)
        raise KeyError
    assert not Matmul.allow_fp16_accumulation
    del Matmul.allow_fp16_accumulation  # torch before 2.7
    with fp16_accumulation(card):
        assert not hasattr(Matmul, "allow_fp16_accumulation")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, None),
        ({"optimization_level": "aggressive"}, None),
        ({"optimization_level": "conservative"}, False),
        ({"optimization_level": "conservative", "compile": "on"}, True),
        ({"compile": "off"}, False),
        ({"compile": "on", "parity": True}, False),
    ],
)
def test_compilation_follows_the_options(options: dict[str, object], wanted: bool | None) -> None:
    assert compiled_blocks(SyncOptions(**options)).wanted is wanted
