"""Demo patch sets: textures of everyday surfaces, without any tissue.

Six kinds of surface in many colours and scales; lengths are in pixels, as in a photograph.
"""

from __future__ import annotations

from collections.abc import Callable
from colorsys import hsv_to_rgb

import cv2
import numpy as np
from numpy.typing import NDArray

from her2.synthetic.nuclei import FloatImage, blur, smooth_noise

Colour = NDArray[np.float64]  # (3,), R, G, B in [0, 1]
Picture = NDArray[np.float64]  # (side, side, 3) in [0, 1]


def draw_natural(rng: np.random.Generator, kind: str, side_px: int) -> NDArray[np.uint8]:
    """Draw a photograph of one kind of surface: RGB (side_px, side_px, 3) uint8."""
    picture_rng, light_rng = rng.spawn(2)
    drawn = NATURAL[kind](picture_rng, side_px)
    # A photograph is less sharp than a drawing, unevenly lit and noisy.
    picture = np.asarray(blur(drawn, light_rng.uniform(0.5, 0.8)), np.float64)
    light = 1 + light_rng.uniform(0.03, 0.12) * smooth_noise(light_rng, side_px, 1.5 * side_px)
    picture = picture * light[..., None] * light_rng.uniform(0.8, 1.15)
    picture += light_rng.normal(0, 0.008, picture.shape)
    return np.asarray(np.clip(picture, 0, 1) * 255 + 0.5, np.uint8)


def _clouds(rng: np.random.Generator, side: int) -> Picture:
    """Draw clouds: 1/f noise between the colours of sky and cloud."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency ** rng.uniform(1.3, 1.8)
    field = np.fft.irfft2(spectrum, s=(side, side))
    field = (field - field.mean()) / field.std()
    cover = 1 / (1 + np.exp(-rng.uniform(1.2, 3.0) * (field - rng.uniform(-0.6, 0.8))))
    sky = _colour(rng, [(0.52, 0.64), (0.02, 0.12), (0.75, 0.9)], (0.15, 0.75), (0.35, 0.95))
    cloud = _colour(rng, [(0.0, 1.0)], (0.0, 0.15), (0.7, 1.0))
    return _mix(sky, cloud, cover)


def _wood(rng: np.random.Generator, side: int) -> Picture:
    """Draw wood cut lengthwise: bent bands of growth rings, and fibres along them."""
    u, v = _turned(rng, side)
    bend = rng.uniform(4, 14) * smooth_noise(rng, side, rng.uniform(50, 120))
    period = rng.uniform(7, 24)
    rings = (v + bend + 0.004 * rng.uniform(-1, 1) * u**2) / period
    saw = rings - np.floor(rings)  # early wood darkens slowly, and ends sharply
    streaks = blur(rng.standard_normal((side, side)), 9, 0.6)
    fibres = _looked_up(streaks / streaks.std(), u, v + bend)
    shade = np.clip(0.25 + 0.55 * saw**2 + 0.12 * fibres, 0, 1)
    light = _colour(rng, [(0.04, 0.13)], (0.15, 0.6), (0.6, 0.95))
    dark = light * _colour(rng, [(0.0, 0.1)], (0.1, 0.4), (0.3, 0.65))
    return _mix(light, dark, shade)


def _leaves(rng: np.random.Generator, side: int) -> Picture:
    """Draw overlapping leaves, each with a midrib and a darker edge."""
    hues = [(0.2, 0.42), (0.2, 0.42), (0.05, 0.17), (0.95, 1.05)]
    base = _colour(rng, hues, (0.4, 0.95), (0.35, 0.85))
    picture = np.empty((side, side, 3), np.float32)
    picture[:] = base * 0.25
    length = rng.uniform(9, 26)
    slender = rng.uniform(0.25, 0.6)
    count = int(3.2 * side**2 / (length**2 * slender * 3.1))
    for depth in np.linspace(0.45, 1.0, count):
        centre = rng.uniform(-length, side + length, 2)
        turn = rng.uniform(0, 360)
        long = length * rng.uniform(0.7, 1.25)
        colour = np.clip(base * depth * (1 + rng.normal(0, 0.14, 3)), 0, 1)
        _leaf(picture, centre, long, long * slender, turn, colour)
    return np.asarray(picture, np.float64)


def _leaf(
    picture: FloatImage, centre: Colour, long: float, broad: float, turn: float, colour: Colour
) -> None:
    at = (round(16 * centre[0]), round(16 * centre[1]))  # OpenCV's fixed point, 4 bits
    for scale, shade in ((1.0, 0.6), (0.85, 1.0)):
        axes = (round(16 * long * scale), round(16 * broad * scale))
        fill = tuple((colour * shade).tolist())
        cv2.ellipse(picture, at, axes, turn, 0, 360, fill, -1, cv2.LINE_AA, 4)
    along = long * np.array([np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))])
    ends = [tuple(np.round(16 * (centre + sign * along)).astype(int).tolist()) for sign in (-1, 1)]
    rib = tuple(np.clip(colour * 1.35, 0, 1).tolist())
    cv2.line(picture, ends[0], ends[1], rib, 1, cv2.LINE_AA, 4)


def _bricks(rng: np.random.Generator, side: int) -> Picture:
    """Draw courses of bricks or tiles with mortar between them, each brick in its own shade."""
    u, v = _turned(rng, side, spread=0.25)
    height = rng.uniform(11, 30)
    width = height * rng.choice([1.0, 2.0, 2.4, 3.0])
    joint = rng.uniform(1.2, 3.0)
    row = np.floor(v / height)
    u = u + row * width * rng.choice([0.0, 0.5, 0.33])
    column = np.floor(u / width)
    inside = np.minimum(u - column * width, v - row * height)
    mortar = 1 / (1 + np.exp(np.clip((inside - joint) / 0.35, -30, 30)))
    shades = rng.normal(0, 1, 4096)
    number = (row * 131 + column * 31).astype(np.int64) % 4096
    rough = smooth_noise(rng, side, 3) + 0.6 * smooth_noise(rng, side, 1)
    hues = [(0.0, 0.08), (0.0, 0.08), (0.0, 1.0)]
    brick = _colour(rng, hues, (0.1, 0.75), (0.35, 0.9))
    shade = 1 + rng.uniform(0.05, 0.16) * shades[number] + rng.uniform(0.02, 0.07) * rough
    wall = brick * shade[..., None]
    return _mix(np.clip(wall, 0, 1), _colour(rng, [(0.0, 1.0)], (0.0, 0.15), (0.3, 0.95)), mortar)


def _water(rng: np.random.Generator, side: int) -> Picture:
    """Draw waves of a few directions and lengths, whose steep faces reflect the sky."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float64)
    wind, height = rng.uniform(0, 2 * np.pi), np.zeros((side, side))
    longest = rng.uniform(18, 60)
    bend = rng.uniform(2, 6) * smooth_noise(rng, side, 45)
    for octave in range(9):
        turn = wind + rng.normal(0, 0.45)
        length = longest * 0.72**octave
        phase = 2 * np.pi * (x * np.cos(turn) + y * np.sin(turn) + bend) / length
        height += 0.72**octave * (1 - np.abs(np.sin(0.5 * phase + rng.uniform(0, 6.3))))
    height = (height - height.mean()) / height.std()
    slope = np.gradient(height, axis=0) * np.sin(wind) + np.gradient(height, axis=1) * np.cos(wind)
    deep = _colour(rng, [(0.42, 0.66)], (0.2, 0.9), (0.15, 0.55))
    sky = _colour(rng, [(0.5, 0.65), (0.05, 0.15)], (0.05, 0.4), (0.7, 1.0))
    mirrored = np.clip(
        0.4 + 0.15 * height + rng.uniform(0.5, 0.9) * slope / slope.std() * 0.25, 0, 1
    )
    return _mix(deep, sky, mirrored)


def _sand(rng: np.random.Generator, side: int) -> Picture:
    """Draw sand: grains on faint ripples, and a few pebbles."""
    grain_px = rng.uniform(0.5, 1.4)
    grains = blur(rng.standard_normal((side, side)), grain_px)
    grains /= grains.std()
    _, v = _turned(rng, side)
    bend = 6 * smooth_noise(rng, side, 50)
    ripples = np.sin(2 * np.pi * (v + bend) / rng.uniform(22, 60))
    base = _colour(rng, [(0.05, 0.14), (0.0, 1.0)], (0.08, 0.5), (0.45, 0.92))
    shade = 1 + rng.uniform(0.05, 0.13) * grains + rng.uniform(0, 0.09) * ripples
    picture = np.asarray(base * shade[..., None], np.float32)
    tint = rng.normal(0, 1, (side, side, 3))
    picture += 0.03 * np.stack([blur(tint[..., c], grain_px) for c in range(3)], axis=-1)
    for _ in range(int(rng.integers(0, 14))):
        radius = rng.uniform(1.0, 4.5)
        at = tuple(np.round(16 * rng.uniform(0, side, 2)).astype(int).tolist())
        axes = (round(16 * radius), round(16 * radius * rng.uniform(0.6, 1)))
        colour = tuple((base * rng.uniform(0.4, 1.25)).tolist())
        cv2.ellipse(picture, at, axes, rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA, 4)
    return np.asarray(picture, np.float64)


NATURAL: dict[str, Callable[[np.random.Generator, int], Picture]] = {
    "bricks": _bricks,
    "clouds": _clouds,
    "leaves": _leaves,
    "sand": _sand,
    "water": _water,
    "wood": _wood,
}


def _colour(
    rng: np.random.Generator,
    hues: list[tuple[float, float]],
    saturation: tuple[float, float],
    value: tuple[float, float],
) -> Colour:
    """Draw a random colour from one of the `hues`, which are equally likely."""
    hue = rng.uniform(*hues[rng.integers(len(hues))]) % 1
    return np.array(hsv_to_rgb(hue, rng.uniform(*saturation), rng.uniform(*value)))


def _mix(first: NDArray[np.float64], second: Colour, share: NDArray[np.float64]) -> Picture:
    return first + (second - first) * share[..., None]


def _turned(
    rng: np.random.Generator, side: int, spread: float = np.pi
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coordinates (side, side), px from the centre, along and across a random direction."""
    y, x = np.mgrid[0:side, 0:side] - side / 2
    turn = rng.uniform(-spread, spread)
    return x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn)


def _looked_up(
    texture: FloatImage, u: NDArray[np.float64], v: NDArray[np.float64]
) -> NDArray[np.float64]:
    maps = (u.astype(np.float32), v.astype(np.float32))
    found = cv2.remap(texture, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.asarray(found, np.float64)
