"""Half precision through the whole pipeline stays within its rounding of float32."""

import cv2
import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync import LipSyncPipeline, ModelBundle, SyncOptions
from latentsync_memsafe.latentsync.faces import PointsDetector
from latentsync_memsafe.memsafe import Runtime

from portrait import tones
from small_models import tiny_bundle

COUNT = 6
POINTS = np.array([[62.0, 50.0], [98.0, 52.0], [81.0, 76.0]])


def scene() -> np.ndarray:
    noise = np.random.default_rng(2).uniform(0, 255, (20, 18, 3)).astype(np.float32)
    still = cv2.resize(noise, (144, 160), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    return np.stack([still] * COUNT)


def synced(networks: ModelBundle) -> np.ndarray:
    networks.detector = PointsDetector([POINTS] * COUNT)
    options = SyncOptions(steps=4, resolution=64)
    stream = LipSyncPipeline(networks, Runtime.auto("cpu")).stream(
        scene(), (tones(COUNT / 25), 16_000), options
    )
    return np.concatenate(list(stream)).astype(int)


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return synced(tiny_bundle())


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_frames_stay_near_those_of_float32(dtype: torch.dtype, rounding: float, exact: np.ndarray) -> None:
    """Measured, of 255: mean 0.11 and largest 1 in float16, 0.62 and 6 in bfloat16.

    Both are about 200 roundings of a value of one, as error that grows along some hundred layers should be;
    the bound is twice that. A part computed in the wrong precision, or an overflow, lies far beyond.
    """
    networks = tiny_bundle()
    for network in (networks.unet, networks.vae):
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = tensor.data.to(dtype)
    changed = (exact != scene()).any(-1)
    error = np.abs(synced(networks) - exact)
    assert error[~changed].max() == 0
    assert 0 < error[changed].mean() < 400 * rounding
    assert error.max() <= 4000 * rounding + 1
