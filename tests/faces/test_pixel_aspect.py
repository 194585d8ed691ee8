"""Faces in frames whose pixels are not square: found, aligned and pasted as in the displayed picture."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync.config import SyncOptions
from latentsync_memsafe.latentsync.faces.align import Template, invert
from latentsync_memsafe.latentsync.faces.locate import FaceLocator, guarded_detection
from latentsync_memsafe.latentsync.faces.paste import paste, paste_alpha
from latentsync_memsafe.memsafe import Runtime

from support.known_faces import PointsDetector

ASPECTS = [Fraction(1, 2), Fraction(64, 45), Fraction(4, 3), Fraction(8, 9), Fraction(3)]
POINTS = np.array([(130.0, 100), (190, 104), (158, 138)])  # in the square-pixel picture


def square_picture() -> np.ndarray:
    """A smooth picture uint8 [240, 320, 3] without detail that a squeeze would lose."""
    y, x = np.mgrid[0:240, 0:320].astype(np.float32)
    waves = [np.sin(x / 23) * np.cos(y / 31), np.sin((x + y) / 29), np.cos(x / 37 - y / 19)]
    return (127.5 + 100 * np.stack(waves, -1)).round().astype(np.uint8)


def stored(picture: np.ndarray, aspect: Fraction) -> np.ndarray:
    """The same picture with pixels `aspect` times as wide as high, and the same height."""
    height, width = picture.shape[:2]
    return cv2.resize(picture, (round(width / aspect), height), interpolation=cv2.INTER_AREA)


def to_stored(aspect: Fraction) -> np.ndarray:
    """From pixels of the square picture to stored ones, float64 [2, 3]."""
    across = round(320 / aspect) / 320
    return np.array([[across, 0, (across - 1) / 2], [0, 1, 0]])


@pytest.mark.parametrize("aspect", ASPECTS)
def test_display_and_its_matrix_agree(aspect: Fraction) -> None:
    template, picture = Template(64, aspect), square_picture()
    frame = stored(picture, aspect)
    shown = template.display(frame)
    assert shown.size <= 2 * frame.size + 3 * sum(shown.shape)
    # Square pixels: the displayed picture is the square one, up to one factor for both axes.
    assert shown.shape[1] / shown.shape[0] == pytest.approx(320 / 240, rel=0.02)
    y, x = np.mgrid[8 : shown.shape[0] - 8 : 5, 8 : shown.shape[1] - 8 : 5]
    back = invert(template.to_display)
    at = np.stack([x, y], -1) @ back[:, :2].T + back[:, 2]
    sampled = cv2.remap(frame, at[..., 0].astype(np.float32), at[..., 1].astype(np.float32), cv2.INTER_LINEAR)
    assert np.abs(sampled.astype(int) - shown[y, x]).max() <= 2


def test_square_pixels_change_nothing() -> None:
    template, frame = Template(64, Fraction(1)), square_picture()
    assert template.display(frame) is frame
    np.testing.assert_array_equal(template.matrix(POINTS)[0], Template(64).matrix(POINTS)[0])


@pytest.mark.parametrize("aspect", ASPECTS)
def test_the_same_region_is_aligned_and_pasted_as_with_square_pixels(aspect: Fraction) -> None:
    picture = square_picture()
    frame, squeeze = stored(picture, aspect), to_stored(aspect)
    template, plain = Template(64, aspect), Template(64)
    stored_points = POINTS @ squeeze[:, :2].T + squeeze[:, 2]
    shown_points = stored_points @ template.to_display[:, :2].T + template.to_display[:, 2]
    detect = guarded_detection(PointsDetector([shown_points] * 2), Runtime.auto("cpu"))
    at = (float(stored_points[2, 0]), float(stored_points[2, 1]))  # as the user sees it: pixels of the file
    locator = FaceLocator(detect, template, SyncOptions(face_at=at), 2)
    matrix = next(one.matrix for one in locator.locate(enumerate([frame, frame])))
    expected = plain.matrix(POINTS)[0]
    # A point of the face comes to the same place of the crop, within a pixel of the picture.
    grid = np.stack(np.meshgrid(np.linspace(110, 210, 5), np.linspace(80, 200, 5)), -1).reshape(-1, 2)
    ours = (grid @ squeeze[:, :2].T + squeeze[:, 2]) @ matrix[:, :2].T + matrix[:, 2]
    theirs = grid @ expected[:, :2].T + expected[:, 2]
    scale = np.sqrt(np.linalg.det(expected[:, :2]))
    assert np.abs(ours - theirs).max() < 0.5 * scale
    difference = template.align(frame, matrix).float() - plain.align(picture, expected).float()
    assert difference.abs().mean() < 3

    face, alpha = torch.ones(3, 64, 64), paste_alpha(64)
    pasted = paste(frame, face, alpha, matrix, template)
    reference = stored(paste(picture, face, alpha, expected, plain), aspect)
    changed = np.abs(pasted.astype(int) - reference)
    assert changed.mean() < 2 and np.quantile(changed, 0.99) < 30
