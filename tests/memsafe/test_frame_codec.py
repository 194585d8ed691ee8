"""Packed frames come back bit for bit, and damaged ones do not come back at all."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from latentsync_memsafe.memsafe.storage.frame_codec import FrameDataError, FrameEncoder, decode

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(),
)
FRAMES = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """In every bit, NaNs and signs of zero included."""
    return (one.shape, one.dtype) == (other.shape, other.dtype) and one.tobytes() == other.tobytes()


def unpacked(packed: list) -> list[np.ndarray]:
    """All frames, each from its keyframe on."""
    frames = []
    for i in range(len(packed)):
        first = max(k for k in range(i + 1) if not packed[k].delta)
        frames.append(decode(packed[first : i + 1])[0])
    return frames


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def ramp(height: int = 64, width: int = 48) -> np.ndarray:
    """Smooth colours, as pictures are."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x + y, 2 * x, y // 2], axis=-1).astype(np.uint8)


@settings(max_examples=150, deadline=None)
@given(st.lists(FRAMES, max_size=4), st.integers(1, 4))
def test_any_frames_come_back_bit_for_bit(frames: list[np.ndarray], interval: int) -> None:
    encoder = FrameEncoder(interval)
    packed = [encoder.encode(frame) for frame in frames]
    assert all(same(*pair) for pair in zip(unpacked(packed), frames, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 5))
def test_frames_that_are_alike_come_back_bit_for_bit(data: st.DataObject, interval: int) -> None:
    """With differences between them, at any keyframe interval, and sizes that change on the way."""
    frames = []
    for _ in range(data.draw(st.integers(1, 3))):
        frame = data.draw(FRAMES)
        for _ in range(data.draw(st.integers(1, 4))):
            frames.append(frame)
            frame = frame.copy()
            if frame.size:
                flat = frame.reshape(-1).view(np.uint8)
                flat[data.draw(st.integers(0, flat.size - 1))] ^= data.draw(st.integers(0, 255))
    encoder = FrameEncoder(interval)
    packed = [encoder.encode(frame) for frame in frames]
    assert all(same(*pair) for pair in zip(unpacked(packed), frames, strict=True))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_payload_is_an_error_never_another_frame(data: st.DataObject) -> None:
    frames = [noise((8, 6, 3), 0), noise((8, 6, 3), 0) ^ noise((8, 6, 3), 1) // 64]
    frames.append(frames[1] + np.uint8(3))
    encoder = FrameEncoder()
    chain = [encoder.encode(frame) for frame in frames]
    assert [one.delta for one in chain] == [False, True, True]
    hurt = data.draw(st.integers(0, 2))
    payload = bytearray(chain[hurt].payload)
    if data.draw(st.booleans()):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del payload[data.draw(st.integers(0, len(payload) - 1)) :]
    chain[hurt] = replace(chain[hurt], payload=bytes(payload))
    try:
        frame, _ = decode(chain)
    except FrameDataError:
        return
    # zstandard does not use every bit, so a change need not matter.
    assert same(frame, frames[2])


def test_a_difference_to_another_frame_is_an_error() -> None:
    encoder = FrameEncoder()
    chain = [encoder.encode(frame) for frame in (ramp(), ramp(), ramp() + np.uint8(1))]
    assert chain[1].delta and chain[2].delta
    stranger = FrameEncoder().encode(noise(ramp().shape))
    for wrong in ([chain[1]], [stranger, chain[2]], [FrameEncoder().encode(ramp(8, 8)), chain[1]]):
        with pytest.raises(FrameDataError):
            decode(wrong)
    with pytest.raises(ValueError, match="empty"):
        decode([])


def test_a_payload_cannot_ask_for_more_memory_than_its_frame() -> None:
    large, small = FrameEncoder().encode(np.zeros((4000, 4000), np.uint8)), FrameEncoder().encode(ramp())
    with pytest.raises(FrameDataError, match="size"):
        decode([replace(small, payload=large.payload)])


def test_decoding_goes_on_from_a_frame_without_changing_it() -> None:
    frames = [ramp() + np.uint8(i) for i in range(4)]
    encoder = FrameEncoder()
    chain = [encoder.encode(frame) for frame in frames]
    _, second = decode(chain[:2])
    for _ in range(2):  # the second time from the same state
        assert same(decode(chain[2:], second)[0], frames[3])
    assert same(decode(chain[2:3], second)[0], frames[2])


def test_keyframes_come_every_so_often_and_where_the_size_changes() -> None:
    encoder = FrameEncoder(3)
    frames = [ramp()] * 7 + [ramp(32, 48)] * 2 + [ramp(32, 48).astype(np.int16)]
    assert [encoder.encode(frame).delta for frame in frames] == [
        *(False, True, True, False, True, True, False),
        *(False, True, False),
    ]
    encoder.reset()
    assert not encoder.encode(frames[-1]).delta


def test_a_difference_that_does_not_pay_becomes_a_keyframe() -> None:
    """A cut: the new scene is smooth, but its difference to the noise before is noise."""
    encoder = FrameEncoder()
    smooth, rough = ramp(), noise(ramp().shape)
    packed = [encoder.encode(frame) for frame in (smooth, rough, smooth, smooth)]
    assert [one.delta for one in packed] == [False, False, False, True]
    assert packed[2].nbytes == packed[0].nbytes
    assert packed[3].nbytes < packed[2].nbytes
    # Noise cannot be packed; then it costs next to nothing more.
    assert packed[1].nbytes < 1.01 * rough.nbytes + 64


def test_a_difference_that_pays_is_kept_even_where_the_keyframe_was_smaller() -> None:
    """From black to noise, and again the same noise: nothing is smaller than no difference."""
    encoder = FrameEncoder()
    rough = noise(ramp().shape)
    packed = [encoder.encode(frame) for frame in (np.zeros_like(rough), rough, rough)]
    assert packed[2].delta and packed[2].nbytes < packed[1].nbytes / 50


@pytest.mark.parametrize(
    "shades", [lambda x: x / np.float32(255), lambda x: x * (np.float32(1) / np.float32(255))]
)
def test_an_eight_bit_picture_of_floats_is_packed_as_eight_bit(shades) -> None:
    """Divided by 255 as CPUs do it, and as CUDA does."""
    eight = ramp(256, 256) + noise((256, 256, 3)) // 64
    frame = shades(eight.astype(np.float32))
    packed = FrameEncoder().encode(frame)
    assert packed.nbytes == FrameEncoder().encode(eight).nbytes
    assert same(decode([packed])[0], frame)
    # One value in the last bit, far behind the sample: then the floats themselves are packed.
    frame[-1, -1, -1] = np.nextafter(frame[-1, -1, -1], np.float32(2))
    packed = FrameEncoder().encode(frame)
    assert packed.nbytes > 1.2 * FrameEncoder().encode(eight).nbytes
    assert same(decode([packed])[0], frame)


def test_a_still_scene_shrinks_by_more_than_the_goal() -> None:
    """Goal 60-80 %: sensor noise on a tenth of the picture, which stands still elsewhere."""
    encoder = FrameEncoder()
    still = np.ascontiguousarray(np.tile(ramp(64, 64), (4, 4, 1)))
    frames = []
    for i in range(8):
        frame = still.copy()
        frame[:80, :80] += noise((80, 80, 3), i) // 32
        frames.append(frame)
    packed = [encoder.encode(frame) for frame in frames]
    assert sum(one.nbytes for one in packed) < 0.2 * sum(frame.nbytes for frame in frames)
    assert packed[0].frame_bytes == frames[0].nbytes


@pytest.mark.parametrize(
    "frame", [np.array(["a"]), np.array([object()]), np.zeros(2, "M8[s]"), np.zeros(1, "i4,i4")]
)
def test_what_is_no_frame_is_refused(frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected bools, integers or floats"):
        FrameEncoder().encode(frame)
    with pytest.raises(ValueError, match="expected 1 or more"):
        FrameEncoder(0)


def test_a_view_of_a_larger_array_is_packed_as_what_it_shows() -> None:
    whole = noise((20, 20, 3))
    for view in (whole[::2, ::-1], whole.transpose(2, 0, 1), whole[3:9, 4:5, :1]):
        assert same(decode([FrameEncoder().encode(view)])[0], view.copy(order="C"))
