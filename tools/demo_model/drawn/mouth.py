"""The mouth of a drawn face: lips, teeth, tongue and cavity, for any opening and width.

Lengths as in canvas.py. Every curve of the mouth is a height per column, so edges are anti-aliased exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..mouth_state import ASPECT
from ..teeth import LOWER_SCALE, TOOTH_EDGES
from .canvas import blend, linear_step, pixel_centres


@dataclass(frozen=True, eq=False)
class MouthCurves:
    """Outlines at columns `x`: outer and inner edge of the upper and the lower lip."""

    x: np.ndarray  # float32 [n]
    u: np.ndarray  # -1 at the left corner, 1 at the right one
    outer_top: np.ndarray
    inner_top: np.ndarray
    inner_bottom: np.ndarray
    outer_bottom: np.ndarray


@dataclass(frozen=True, eq=False)
class Mouth:
    """One person's mouth. Colours are RGB in 0 .. 255."""

    eyes: float  # distance of the outer eye corners, the unit of `opening` and `width`
    centre: float  # x of the middle
    line: float  # y of the line where closed lips meet, in the middle
    rest_width: float
    upper: float  # thickness of the lips at rest
    lower: float
    bow: float  # depth of the cupid's bow, as a share of the upper lip's thickness
    tubercle: float  # downward bulge in the middle of the upper lip
    corners: float  # y of the corners minus y of the middle
    tilt: float  # y of the right corner minus y of the left one
    lean: float  # asymmetry of the gap, -1 .. 1
    lift: float  # share of the opening by which the upper lip rises
    drop: float  # share of the opening by which the corners go down
    soft: float  # width of the transition from lip to skin
    lip: np.ndarray
    lip_inside: np.ndarray
    gloss: float
    creases: np.ndarray  # [256] brightness of fine vertical lines over u
    cavity: np.ndarray
    seam: np.ndarray  # colour of the line where closed lips meet
    teeth: np.ndarray
    teeth_reach: float  # distance from `line` down to the ends of the upper teeth
    teeth_arc: float
    teeth_gaps: float
    lower_teeth: float  # height of the lower teeth above the lower lip; negative: hidden
    tongue: np.ndarray
    tongue_height: float  # share of the opening
    light: float  # -1 .. 1, horizontal direction of the light

    @classmethod
    def random(cls, rng: np.random.Generator, skin: np.ndarray, eyes: float, light: float) -> Mouth:
        """Draw a mouth whose colours match `skin` (RGB); `eyes`, `light`: the fields."""
        u = rng.uniform
        full = u(0.0, 1.0)
        skin = skin.astype(np.float32)
        # Lips are a thinner skin over blood: darker, above all in green.
        red = u(0.56, 0.8)
        lip = skin * np.array([u(0.86, 1.0), red, red * u(1.0, 1.16)], np.float32)
        if rng.random() < 0.25:  # lipstick
            paint = np.array([u(120, 215), u(20, 100), u(40, 110)], np.float32)
            lip += u(0.3, 0.75) * (paint - lip)
        white = u(0.75, 1.0) * np.array([235, u(222, 232), u(198, 226)], np.float32)
        cavity = u(10, 60) * np.array([1.0, u(0.25, 0.6), u(0.25, 0.65)], np.float32)
        wet = np.array([u(120, 190), u(60, 105), u(60, 105)], np.float32)
        return cls(
            eyes=eyes,
            centre=0.5 + u(-0.012, 0.012),
            line=u(0.582, 0.615),
            rest_width=u(0.52, 0.66),
            upper=0.018 + 0.03 * full + u(0, 0.008),
            lower=0.034 + 0.024 * full + u(0, 0.012),
            bow=u(0.02, 0.3),
            tubercle=u(0.0, 0.007),
            corners=u(-0.012, 0.016),
            tilt=u(-0.012, 0.012),
            lean=u(-0.35, 0.35),
            lift=u(0.1, 0.28),
            drop=u(0.15, 0.42),
            soft=u(0.008, 0.02),
            lip=lip,
            lip_inside=0.55 * lip + 0.45 * wet,
            gloss=u(0, 1) ** 1.5,
            creases=cv2.GaussianBlur(
                rng.standard_normal((1, 256)).astype(np.float32), (0, 0), 1.5, borderType=cv2.BORDER_REFLECT
            )[0]
            * u(0.02, 0.12),
            cavity=cavity,
            seam=0.5 * cavity + 0.22 * lip,
            teeth=white,
            teeth_reach=u(0.002, 0.034),
            teeth_arc=u(0.1, 0.6),
            teeth_gaps=u(0.05, 0.45),
            lower_teeth=u(-0.02, 0.022),
            tongue=wet * u(0.7, 1.05),
            tongue_height=u(0.15, 0.6),
            light=light,
        )

    def gap(self, opening: float) -> float:
        """Height of the gap between the lips in the middle."""
        return max(float(opening), 0.0) * self.eyes * ASPECT

    def half_width(self, width: float) -> float:
        """Half of the horizontal distance of the corners, whose vertical distance is `tilt`."""
        across = max(float(width), 0.15) * self.eyes * ASPECT
        return float(np.sqrt(max(across**2 - self.tilt**2, 1e-6))) / ASPECT / 2

    def thickness(self, opening: float, width: float) -> tuple[float, float]:
        """Thickness of the upper and the lower lip: thin when stretched, thick when pursed."""
        stretch = (self.rest_width / max(float(width), 0.15)) ** 0.7 * (1 - 0.35 * min(float(opening), 0.5))
        return self.upper * stretch, self.lower * stretch

    def landmarks(self, opening: float, width: float) -> np.ndarray:
        """Mesh points 13, 14 (inner lips), 61, 291 (corners) without pose: float64 [4, 2]."""
        half = self.half_width(width)
        curves = self.curves(np.array([self.centre, self.centre - half, self.centre + half]), opening, width)
        x, top, bottom = curves.x, curves.inner_top, curves.inner_bottom
        corner = (top + bottom) / 2
        return np.array([(x[0], top[0]), (x[0], bottom[0]), (x[1], corner[1]), (x[2], corner[2])])

    def curves(self, x: np.ndarray, opening: float, width: float) -> MouthCurves:
        """Compute the outlines at columns `x` [n]."""
        gap, half = self.gap(opening), self.half_width(width)
        upper, lower = self.thickness(opening, width)
        u = (x - self.centre) / half
        inside = np.clip(np.abs(u), 0, 1)
        smile = (width - self.rest_width) * self.eyes
        line = self.line + (self.corners - 0.12 * smile) * inside**2 + self.drop * gap * inside**3
        line = line + self.tilt / 2 * np.clip(u, -1, 1) + self.tubercle * np.exp(-((u / 0.2) ** 2))
        pursed = np.clip((0.62 - width) / 0.25, 0, 1)  # a narrow mouth opens round, a wide one like a lens
        profile = np.clip(1 - (inside / 0.95) ** 2.1, 0, 1) ** (0.82 - 0.3 * pursed)
        height = gap * profile * (1 + self.lean * np.clip(u, -1, 1) * inside)
        inner_top, inner_bottom = line - self.lift * height, line + (1 - self.lift) * height
        peaks = np.exp(-(((np.abs(u) - 0.27) / 0.2) ** 2)) - 0.8 * np.exp(-((u / 0.15) ** 2))
        taper = np.clip(1 - inside**2, 0, 1)
        top = upper * taper**0.85 * (1 + self.bow * peaks * taper)
        bottom = lower * taper ** (0.62 - 0.1 * pursed)
        return MouthCurves(x, u, inner_top - top, inner_top, inner_bottom, inner_bottom + bottom)

    def draw(self, image: np.ndarray, shading: np.ndarray, opening: float, width: float) -> None:
        """Draw into `image` float32 [size, size, 3] in place; `shading` [size, size]: brightness of the skin."""
        size = image.shape[0]
        reach = self.half_width(width) + 0.03
        x0, x1 = max(int((self.centre - reach) * size), 0), min(int((self.centre + reach) * size) + 2, size)
        curves = self.curves(pixel_centres(x0, x1, size), opening, width)
        y0 = max(int((curves.outer_top.min() - 0.03) * size), 0)
        y1 = min(int((curves.outer_bottom.max() + 0.03) * size) + 2, size)
        y = pixel_centres(y0, y1, size)[:, None]
        area = image[y0:y1, x0:x1]
        light = shading[y0:y1, x0:x1]
        pixel = 1 / size
        self._draw_lips(area, light, y, curves)
        inside = _coverage(y, curves.inner_top, curves.inner_bottom, pixel)
        if opening > 0:
            rows = inside.max(axis=1) > 0
            a, b = int(rows.argmax()), len(rows) - int(rows[::-1].argmax())
            if rows.any():
                content = (
                    self._paint_inside(y[a:b], curves, self.gap(opening), pixel) * light[a:b, :, None] ** 0.7
                )
                blend(area[a:b], inside[a:b], content)
        # The dark line at the inner edges of the lips, where little light enters; all that closed lips show.
        away = np.maximum(np.maximum(curves.inner_top - y, y - curves.inner_bottom), 0) / (
            1.3 * pixel + 0.0025
        )
        ends = np.clip(1.06 - np.abs(curves.u) ** 3, 0, 0.7)
        blend(area, np.exp(-away * away) * ends * (1 - inside), self.seam)

    def _draw_lips(self, area: np.ndarray, light: np.ndarray, y: np.ndarray, c: MouthCurves) -> None:
        """Draw both lips, shaded as round: the upper lip faces down and is darker."""
        thickness = np.maximum(c.outer_bottom - c.inner_bottom, 1e-3)
        down = np.clip((y - c.inner_bottom) / thickness, 0, 1)
        up = np.clip((c.inner_top - y) / np.maximum(c.inner_top - c.outer_top, 1e-3), 0, 1)
        lower = y > (c.inner_top + c.inner_bottom) / 2
        lines = np.interp(c.u, np.linspace(-1, 1, len(self.creases)), self.creases).astype(np.float32)
        tone = np.where(lower, 1.02 + 0.2 * down * (1 - down) * 2 - 0.24 * down**2, 0.8 + 0.16 * up)
        tone = tone * (1 + lines - 0.12 * c.u * c.u + 0.1 * self.light * c.u) * light
        colour = tone[..., None] * self.lip
        wet = np.where(lower, np.clip(1 - 3 * down, 0, 1), np.clip(1 - 4 * up, 0, 1)) * 0.6
        colour += (wet * tone)[..., None] * (self.lip_inside - self.lip)
        glint = np.exp(-(((down - 0.36) / 0.17) ** 2) - ((c.u - 0.25 * self.light) / 0.33) ** 2)
        colour += (glint * lower * (1 + 3 * lines) * (10 + 70 * self.gloss) * light)[..., None]
        blend(area, _coverage(y, c.outer_top, c.outer_bottom, self.soft), colour)

    def _paint_inside(self, y: np.ndarray, c: MouthCurves, gap: float, pixel: float) -> np.ndarray:
        """Paint the visible inside of the mouth: float32 [rows, columns, 3]."""
        across = np.abs(c.x - self.centre)
        content = np.empty((len(y), len(c.x), 3), np.float32)
        content[:] = self.cavity
        floor = float(
            self.line + (1 - self.lift) * gap
        )  # middle of the lower lip, which moves with the lower jaw
        tongue = floor - self.tongue_height * gap + 1.6 * across**2
        back = np.clip((y - tongue) / (0.35 * gap + 0.02), 0, 1)
        blend(
            content,
            back * np.clip(1.2 - 6 * across, 0, 0.9) * (1 - 0.3 * np.exp(-((across / 0.02) ** 2))),
            self.tongue,
        )
        deep = np.clip(gap / 0.05, 0, 1)  # in a nearly closed mouth the teeth are in the shadow of the lips
        if self.lower_teeth > 0:
            index, within = _locate_tooth(across / self.eyes / LOWER_SCALE)
            top = (
                floor - self.lower_teeth * deep + 0.35 * across**2 + 0.002 * within**2 + 0.0007 * (index % 3)
            )
            strength = linear_step((y - top) / (2 * pixel + 0.002)) * np.clip(1 - across / 0.17, 0, 1) ** 0.5
            enamel = 0.74 * (1 - self.teeth_gaps * within**6) * np.clip(1.1 - 3 * across, 0, 1)
            blend(content, strength, enamel[:, None] * self.teeth)
        index, within = _locate_tooth(across / self.eyes)
        edge = self.line + self.teeth_reach - self.teeth_arc * across**2 - 0.0045 * within**4
        edge = edge - np.where(index == 1, 0.003, 0)
        enamel = (1 - self.teeth_gaps * within**5) * np.clip(1.08 - (across / 0.19) ** 2, 0.12, 1)
        # Teeth are curved and wet: brightest just above their ends, darker in the shadow of the lip.
        below = np.clip((y - c.inner_top) / 0.022, 0, 1)
        body = (0.62 + 0.38 * below) * (0.7 + 0.3 * deep) * enamel
        shine = np.exp(-(((y - edge + 0.014) / 0.008) ** 2)) * np.exp(
            -(((c.u - 0.2 * self.light) / 0.3) ** 2)
        )
        colour = body[..., None] * self.teeth + (14 * self.gloss * shine * body)[..., None]
        blend(
            content,
            linear_step((edge - y) / (2 * pixel + 0.002)) * np.clip((0.21 - across) / 0.05, 0, 1),
            colour,
        )
        content *= (0.55 + 0.45 * np.clip((y - c.inner_top) / 0.016, 0, 1))[..., None]
        content *= (0.7 + 0.3 * np.clip((c.inner_bottom - y) / 0.01, 0, 1))[..., None]
        return content


def _coverage(y: np.ndarray, top: np.ndarray, bottom: np.ndarray, soft: float) -> np.ndarray:
    """Share of a window of height `soft` around y that lies between two curves."""
    return np.clip((np.minimum(y + soft / 2, bottom) - np.maximum(y - soft / 2, top)) / soft, 0, 1)


def _locate_tooth(across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the tooth, counted from the midline, and the position in it: 0 middle, 1 edge.

    across: distance from the midline in distances of the outer eye corners.
    """
    index = np.clip(np.searchsorted(TOOTH_EDGES, across, side="right") - 1, 0, len(TOOTH_EDGES) - 2)
    left, right = TOOTH_EDGES[index], TOOTH_EDGES[index + 1]
    within = np.clip(np.abs(2 * (across - left) / (right - left) - 1), 0, 1)
    return index, within
