"""Trimming, delaying, fitting, amplifying and resampling samples."""

import numpy as np
import pytest

from latentsync_memsafe.latentsync.audio import edit
from latentsync_memsafe.latentsync.audio.resample import resample
from latentsync_memsafe.latentsync.errors import AudioError

from support.media import tone

RATE = 8000
RAMP = np.stack([np.arange(RATE), -np.arange(RATE)]).astype(np.float32)


def test_trim_delay_and_fit_move_samples_and_change_none() -> None:
    np.testing.assert_array_equal(edit.trim(RAMP, RATE, 0.25, 0.5), RAMP[:, 2000:6000])
    np.testing.assert_array_equal(edit.trim(RAMP, RATE, 0.25), RAMP[:, 2000:])
    np.testing.assert_array_equal(edit.delay(RAMP, RATE, -0.25), RAMP[:, 2000:])
    later = edit.delay(RAMP, RATE, 0.5)
    assert not later[:, :4000].any()
    np.testing.assert_array_equal(later[:, 4000:], RAMP)
    longer = edit.fit(RAMP, RATE + 5)
    np.testing.assert_array_equal(longer[:, :RATE], RAMP)
    assert longer.shape == (2, RATE + 5) and not longer[:, RATE:].any()
    np.testing.assert_array_equal(edit.fit(RAMP, 5), RAMP[:, :5])


@pytest.mark.parametrize("start", [1.0, 7.5])
def test_trimming_everything_away_is_refused(start: float) -> None:
    with pytest.raises(AudioError, match="it lasts 1"):
        edit.trim(RAMP, RATE, start)
    with pytest.raises(AudioError, match="it lasts 1"):
        edit.delay(RAMP, RATE, -start)


@pytest.mark.parametrize(("decibels", "factor"), [(0.0, 1.0), (20.0, 10.0), (-6.0206, 0.5)])
def test_decibels(decibels: float, factor: float) -> None:
    changed = edit.amplify(RAMP, decibels)
    assert changed.dtype == np.float32
    np.testing.assert_allclose(changed, RAMP * factor, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 9])
@pytest.mark.parametrize(("rate", "new_rate"), [(44100, 16000), (16000, 48000), (48000, 44100)])
def test_resampling_keeps_a_sine_in_place(channels: int, rate: int, new_rate: int) -> None:
    seconds = 1.7  # more than one block
    samples = np.repeat(tone(seconds, rate)[:1], channels, axis=0)
    changed = resample(samples, rate, new_rate)
    assert changed.shape == (channels, round(samples.shape[1] * new_rate / rate))
    inner = slice(new_rate // 20, -new_rate // 20)  # the filter has no neighbours at the ends
    expected = tone(seconds, new_rate)[:1, : changed.shape[1]]
    np.testing.assert_allclose(changed[:1, inner], expected[:, inner], atol=2e-3)
    np.testing.assert_array_equal(changed, np.repeat(changed[:1], channels, axis=0))


def test_the_same_rate_is_left_alone() -> None:
    assert resample(RAMP, RATE, RATE) is RAMP
