"""Encoded frames are decoded bit for bit; damaged ones raise an error."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from latentsync_memsafe.memsafe.storage.frame_codec import FrameDataError, FrameEncoder, decode, is_delta

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
    """Compare every bit, NaNs and signs of zero included."""
    return (one.shape, one.dtype) == (other.shape, other.dtype) and one.tobytes() == other.tobytes()


def decoded(encoded: list[bytes]) -> list[np.ndarray]:
    """Decode all frames, each from its keyframe on."""
    frames = []
    for i in range(len(encoded)):
        first = max(k for k in range(i + 1) if not is_delta(encoded[k]))
        frames.append(decode(encoded[first : i + 1])[0])
    return frames


def deltas(encoded: list[bytes]) -> list[bool]:
    return [is_delta(one) for one in encoded]


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def ramp(height: int = 64, width: int = 48) -> np.ndarray:
    """Smooth colours, as in a photo."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x + y, 2 * x, y // 2], axis=-1).astype(np.uint8)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(FRAMES, max_size=4), st.integers(1, 4))
def test_any_frames_are_decoded_bit_for_bit(frames: list[np.ndarray], interval: int) -> None:
    encoder = FrameEncoder(interval)
    encoded = [encoder.encode(frame) for frame in frames]
    assert all(same(*pair) for pair in zip(decoded(encoded), frames, strict=True))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 5))
def test_similar_frames_are_decoded_bit_for_bit(data: st.DataObject, interval: int) -> None:
    """Cover deltas, all keyframe intervals, and changes of size."""
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
    encoded = [encoder.encode(frame) for frame in frames]
    assert all(same(*pair) for pair in zip(decoded(encoded), frames, strict=True))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_bytes_are_an_error_and_never_another_frame(data: st.DataObject) -> None:
    frames = [noise((8, 6, 3), 0), noise((8, 6, 3), 0) ^ noise((8, 6, 3), 1) // 64]
    frames.append(frames[1] + np.uint8(3))
    encoder = FrameEncoder()
    chain = [encoder.encode(frame) for frame in frames]
    assert deltas(chain) == [False, True, True]
    damaged = data.draw(st.integers(0, 2))
    content = bytearray(chain[damaged])
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    chain[damaged] = bytes(content)
    try:
        frame, _ = decode(chain)
    except FrameDataError:
        return
    # zstandard does not use every bit, so a change may have no effect.
    assert same(frame, frames[2])


def test_a_delta_to_another_frame_is_an_error() -> None:
    encoder = FrameEncoder()
    chain = [encoder.encode(frame) for frame in (ramp(), ramp(), ramp() + np.uint8(1))]
    assert is_delta(chain[1]) and is_delta(chain[2])
    stranger = FrameEncoder().encode(noise(ramp().shape))
    for wrong in ([chain[1]], [stranger, chain[2]], [FrameEncoder().encode(ramp(8, 8)), chain[1]]):
        with pytest.raises(FrameDataError):
            decode(wrong)
    with pytest.raises(ValueError, match="empty"):
        decode([])


def test_a_payload_cannot_allocate_more_memory_than_its_frame() -> None:
    head = len(FrameEncoder().encode(np.zeros((1, 1), np.uint8))) - len(zstandard.compress(b"\0", level=1))
    large, small = (
        FrameEncoder().encode(np.zeros((4000, 4000), np.uint8)),
        FrameEncoder().encode(ramp()[..., 0]),
    )
    with pytest.raises(FrameDataError, match="size"):
        decode([small[:head] + large[head:]])


def test_decoding_continues_from_a_frame_without_changing_it() -> None:
    frames = [ramp() + np.uint8(i) for i in range(4)]
    encoder = FrameEncoder()
    chain = [encoder.encode(frame) for frame in frames]
    _, second = decode(chain[:2])
    for _ in range(2):  # the second time from the same state
        assert same(decode(chain[2:], second)[0], frames[3])
    assert same(decode(chain[2:3], second)[0], frames[2])


def test_keyframes_come_at_intervals_and_where_shape_or_dtype_changes() -> None:
    encoder = FrameEncoder(3)
    frames = [ramp()] * 7 + [ramp(32, 48)] * 2 + [ramp(32, 48).astype(np.int16)]
    assert deltas([encoder.encode(frame) for frame in frames]) == [
        *(False, True, True, False, True, True, False),
        *(False, True, False),
    ]
    encoder.reset()
    assert not is_delta(encoder.encode(frames[-1]))


def test_a_delta_that_saves_nothing_becomes_a_keyframe() -> None:
    """At a cut the new scene is smooth, but its difference to the noise before is noise."""
    encoder = FrameEncoder()
    smooth, rough = ramp(), noise(ramp().shape)
    encoded = [encoder.encode(frame) for frame in (smooth, rough, smooth, smooth)]
    assert deltas(encoded) == [False, False, False, True]
    assert encoded[2] == encoded[0] and len(encoded[3]) < len(encoded[2])
    assert len(encoded[1]) < 1.01 * rough.nbytes + 64  # noise cannot be compressed, and costs hardly more


def test_a_delta_that_saves_bytes_is_used_also_after_a_smaller_keyframe() -> None:
    """After black and noise the same noise comes again; an empty delta is smaller than any keyframe."""
    encoder = FrameEncoder()
    rough = noise(ramp().shape)
    encoded = [encoder.encode(frame) for frame in (np.zeros_like(rough), rough, rough)]
    assert is_delta(encoded[2]) and len(encoded[2]) < len(encoded[1]) / 50


def test_a_still_scene_shrinks_by_four_fifths() -> None:
    """A tenth of the frame has sensor noise, the rest stands still."""
    encoder = FrameEncoder()
    still = np.ascontiguousarray(np.tile(ramp(64, 64), (4, 4, 1)))
    frames = []
    for i in range(8):
        frame = still.copy()
        frame[:80, :80] += noise((80, 80, 3), i) // 32
        frames.append(frame)
    encoded = [encoder.encode(frame) for frame in frames]
    assert sum(len(one) for one in encoded) < 0.2 * sum(frame.nbytes for frame in frames)


@pytest.mark.parametrize(
    "frame", [np.array(["a"]), np.array([object()]), np.zeros(2, "M8[s]"), np.zeros(1, "i4,i4")]
)
def test_other_arrays_are_refused(frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected bools, integers or floats"):
        FrameEncoder().encode(frame)


def test_a_view_of_a_larger_array_is_encoded_like_a_copy() -> None:
    whole = noise((20, 20, 3))
    for view in (whole[::2, ::-1], whole.transpose(2, 0, 1), whole[3:9, 4:5, :1]):
        assert same(decode([FrameEncoder().encode(view)])[0], view.copy(order="C"))
