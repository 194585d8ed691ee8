"""Random parameters of a drawn face apart from its mouth: colours, proportions, light, hair, clothes."""

from __future__ import annotations

import numpy as np

# sRGB of photographed skin from the darkest to the lightest.
SKIN = np.array(
    [
        (76, 48, 37),
        (104, 67, 49),
        (141, 94, 68),
        (178, 126, 93),
        (208, 156, 124),
        (226, 182, 154),
        (238, 205, 186),
    ],
    np.float32,
)
HAIR = np.array(
    [(18, 15, 14), (38, 27, 22), (72, 48, 33), (120, 82, 50), (176, 140, 95), (150, 146, 142)], np.float32
)
IRIS = np.array([(48, 28, 18), (88, 56, 30), (96, 96, 58), (84, 116, 138), (120, 136, 140)], np.float32)
BEARDS = ("none", "stubble", "full", "moustache", "goatee")
BEARD_SHARES = (0.58, 0.18, 0.12, 0.06, 0.06)


class FaceParameters:
    """Parameters of one face, drawn from `rng` alone. Colours are RGB 0 .. 255, lengths as in canvas.py."""

    def __init__(self, rng: np.random.Generator) -> None:
        u = rng.uniform
        tone = u(0, len(SKIN) - 1.001)
        low = int(tone)
        jitter = np.array([1.0, u(0.96, 1.03), u(0.9, 1.06)], np.float32)
        self.skin = np.clip((SKIN[low] + (tone - low) * (SKIN[low + 1] - SKIN[low])) * jitter, 20, 245)
        self.hair = HAIR[rng.integers(len(HAIR))] * u(0.75, 1.3)
        if rng.random() < 0.08:
            self.hair = rng.uniform(30, 200, 3).astype(np.float32)
        self.iris = IRIS[rng.integers(len(IRIS)) if tone > 3 else rng.integers(2)] * u(0.8, 1.15)
        self.eyes = u(0.59, 0.635)  # distance of the outer eye corners
        self.eye_line, self.eye_height = u(0.305, 0.325), u(0.028, 0.05)
        self.light = np.array([u(-0.8, 0.8), u(-0.85, -0.1), 1.0])  # direction
        self.ambient = u(0.25, 0.7)
        self.gloss = u(0.0, 0.14)
        self.half_width, self.chin = u(0.41, 0.48), u(0.81, 0.9)
        self.jaw = u(2.1, 3.5), u(1.9, 2.7)  # exponents of the outline
        self.brow = u(0.018, 0.036), u(0.0, 0.03), u(0.45, 0.95)  # thickness, arch, opacity
        # Factors on the heights of features of the nose and of the rest of the face.
        self.nose = {name: u(0.7, 1.35) for name in ("height", "width", "tip", "wings")}
        self.features = {
            name: u(0.2, 1.5) for name in ("cheeks", "fold", "chin", "sockets", "muzzle", "dent")
        }
        self.blush, self.blotches, self.pores = u(0, 0.1), u(0.008, 0.035), u(0.004, 0.028)
        self.freckles = u(0.1, 0.4) if rng.random() < 0.2 and tone > 2.5 else 0.0
        self.noise = {n: rng.standard_normal((n, n)).astype(np.float32) for n in (256, 96, 24, 8)}
        kind = rng.choice(BEARDS, p=BEARD_SHARES)
        self.beard = str(kind), float(u(0.15, 0.5) if kind == "stubble" else u(0.5, 0.85))  # opacity
        self.hairline, self.temples = u(-0.12, 0.07), u(0.4, 0.5)
        self.long_hair = u(0.38, 0.5) if rng.random() < 0.4 else None  # distance from the midline
        self.neck, self.collar = u(0.26, 0.38), u(0.9, 1.1)
        self.clothes = _desaturate(rng.uniform(10, 230, (1, 3)), u(0.2, 0.9))[0]
        self.wall = _desaturate(rng.uniform(15, 235, (2, 3)), u(0.1, 0.8)) * u(0.5, 1)
        self.waves = u(0, 6.28, 3)


def _desaturate(colours: np.ndarray, saturation: float) -> np.ndarray:
    grey = colours.mean(axis=1, keepdims=True)
    return (grey + saturation * (colours - grey)).astype(np.float32)
