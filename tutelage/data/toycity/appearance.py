"""Appearance of the two domains: light, haze, colours and camera defects. Shapes do not depend on it.

``day`` has sun, shadows and muted colours. ``dusk`` has little bluish light, lamps and lit windows, haze, other facades
and car colours, and a noisier camera with another tone curve. Colours of different classes overlap on purpose (grey
walls and pavements, green cars and crowns, glass and sky): a net needs shape and context, which separates large nets
from small ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from tutelage.data.toycity.scene import Array

Domain = Literal["day", "dusk"]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Appearance:
    """Appearance of one scene; colours are RGB in 0..255, lights are factors on them."""

    ambient: Array
    sun: Array
    towards_sun: Array  # unit vector (x, y, z)
    shadow: float  # share of the light that a cast shadow takes away
    haze: Array
    clear: float  # metres after which 63 % of a colour is haze
    sky: Array  # (3, 3): zenith, middle, horizon
    cloud: Array
    cover: float  # share of the sky under clouds
    road: Array
    pavement: Array
    kerb: Array
    paint: Array  # lane markings
    walls: Array  # (n, 3)
    roofs: Array
    panes: Array
    lit_pane: Array
    lit: float  # share of windows with light in them
    leaves: Array
    bark: Array
    posts: Array
    cars: Array
    clothes: Array
    skins: Array
    lamps: float  # strength of lamps and headlights; 0 is off
    grain: Array  # (materials, 4): amplitude of fine, middle, coarse and anchored texture
    brick: float  # height of a course of bricks in metres
    blur: float  # standard deviation as a share of the image's height
    noise: tuple[float, float]  # sensor noise: constant part and part that grows with light, in 0..255
    chroma: float  # share of the noise that differs between the channels
    gain: Array
    gamma: float
    vignette: float

    def lit_colours(self, albedo: Array, normal: tuple[float, float, float], z: Array | float, shade: float) -> Array:
        """Colours (..., 3) of surfaces at ``z`` metres; ``shade`` 1 is full shadow."""
        direct = max(0.0, float(np.dot(self.towards_sun, normal))) * (1 - self.shadow * shade)
        light = self.ambient * (0.85 + 0.15 * normal[1]) + self.sun * direct
        return self.hazed(np.asarray(albedo) * light, z)

    def hazed(self, colour: Array, z: Array | float) -> Array:
        """Colours (..., 3) seen through ``z`` metres of haze."""
        thin = np.exp(-np.asarray(z, dtype=np.float64) / self.clear)[..., None]
        return np.asarray(colour * thin + self.haze * (1 - thin))

    def lit_colour(self, albedo: Array, normal: tuple[float, float, float], z: float, shade: float = 0.0) -> Colour:
        """One colour for Pillow: :meth:`lit_colours` without the cost of small arrays."""
        towards, ambient, sun, haze = self._plain
        direct = towards[0] * normal[0] + towards[1] * normal[1] + towards[2] * normal[2]
        direct = max(0.0, direct) * (1 - self.shadow * shade)
        thin, share = math.exp(-z / self.clear), 0.85 + 0.15 * normal[1]
        red, green, blue = albedo.tolist()
        red = red * (ambient[0] * share + sun[0] * direct) * thin + haze[0] * (1 - thin)
        green = green * (ambient[1] * share + sun[1] * direct) * thin + haze[1] * (1 - thin)
        blue = blue * (ambient[2] * share + sun[2] * direct) * thin + haze[2] * (1 - thin)
        return min(max(int(red), 0), 255), min(max(int(green), 0), 255), min(max(int(blue), 0), 255)

    @cached_property
    def _plain(self) -> tuple[list[float], list[float], list[float], list[float]]:
        return self.towards_sun.tolist(), self.ambient.tolist(), self.sun.tolist(), self.haze.tolist()


def as_colour(values: Array) -> Colour:
    """RGB values, clipped to 0..255."""
    red, green, blue = np.clip(values, 0, 255).astype(int).tolist()
    return red, green, blue


def _rgb(*hexes: str) -> Array:
    return np.array([[int(h[i : i + 2], 16) for i in (0, 2, 4)] for h in hexes], dtype=np.float64)


_DAY_WALLS = _rgb(
    "c9b79c", "b8a58a", "d8cdb8", "a8553f", "8d4a3a", "9a9a98", "7f8386", "b9bcbc", "8fa3ad", "a9a57c", "e3ddd0",
    "c08f63", "746a60", "93806c", "9c9488", "6f8466",
)  # fmt: skip
_DUSK_WALLS = _rgb(
    "6f7f8c", "8a7490", "5c6a66", "a07a58", "4f5664", "7d6a5c", "93939f", "b08f86", "5d7a80", "6b5a58", "a39a86",
    "7a8fa8", "8c8470",
)  # fmt: skip
_DAY_CARS = _rgb(
    "e6e6e4", "c4c7c9", "8c9093", "2a2b2e", "3c4046", "a32020", "1f3f7a", "2f5b35", "5a6e3c", "6b4a33", "b9b09a",
    "c9a227", "5d7fa3",
)  # fmt: skip
_DUSK_CARS = _rgb(
    "d5dbe3", "9aa3ad", "5a6068", "17181c", "26303f", "7a1430", "0e5a63", "3d4a24", "83401c", "70758c", "c2bfae",
)  # fmt: skip
_DAY_CLOTHES = _rgb(
    "1d2230", "2c3e66", "6b6b6b", "8c2f2a", "d8d4c8", "3d5a3a", "b08a4a", "111111", "5a3d5c", "9fb2c4", "c2582e",
    "4a3c30",
)  # fmt: skip
_DUSK_CLOTHES = _rgb("14161c", "30303c", "5a2028", "22424a", "8a8678", "3c3226", "55506a", "b5a13a", "262626", "6a7a80")
_SKINS = _rgb("e8bf9f", "c99572", "8d5a3c", "5b3a28", "f0d0b4")

# Rows follow canvas.MATERIALS.
_DAY_GRAIN = np.array(
    [
        [0.004, 0.0, 0.0, 0.0],  # sky
        [0.05, 0.04, 0.09, 0.13],  # road
        [0.06, 0.06, 0.10, 0.16],  # marking
        [0.05, 0.05, 0.09, 0.17],  # pavement
        [0.05, 0.06, 0.06, 0.05],  # kerb
        [0.03, 0.05, 0.10, 0.05],  # plaster
        [0.05, 0.05, 0.08, 0.18],  # brick
        [0.02, 0.06, 0.12, 0.0],  # glass
        [0.30, 0.22, 0.10, 0.0],  # leaves
        [0.18, 0.20, 0.05, 0.0],  # bark
        [0.05, 0.05, 0.0, 0.0],  # post
        [0.03, 0.05, 0.08, 0.0],  # car
        [0.03, 0.06, 0.0, 0.0],  # tyre
        [0.06, 0.10, 0.0, 0.0],  # person
        [0.01, 0.02, 0.10, 0.0],  # bonnet
    ]
)


def _sun(azimuth: float, elevation: float) -> Array:
    return np.array(
        [np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)], dtype=np.float64
    )


def draw_look(domain: Domain, rng: np.random.Generator) -> Appearance:
    """Draw a scene's appearance in ``domain``."""
    return _day(rng) if domain == "day" else _dusk(rng)


def _day(rng: np.random.Generator) -> Appearance:
    grey = rng.uniform(80, 140) + rng.normal(0, 4, 3)
    stone = rng.uniform(95, 190) + rng.uniform(0, 1) * np.array([8.0, 1.0, -12.0]) + rng.normal(0, 4, 3)
    warm = rng.uniform(0.94, 1.06)
    look = Appearance(
        ambient=np.array([0.50, 0.54, 0.60]),
        sun=np.array([0.66, 0.60, 0.50]),
        towards_sun=_sun(rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.1)),
        shadow=0.85,
        haze=np.array([190.0, 203, 218]),
        clear=rng.uniform(280, 900),
        sky=_rgb("4a86c8", "86b2dc", "cfdde8") + rng.normal(0, 5, (1, 3)),
        cloud=np.array([238.0, 240, 244]),
        cover=rng.uniform(0.1, 0.7),
        road=grey,
        pavement=stone,
        kerb=stone * rng.uniform(0.9, 1.25),
        paint=np.array([222.0, 222, 215]) * rng.uniform(0.8, 1.05),
        walls=_DAY_WALLS,
        roofs=_rgb("7a4030", "5b5552", "8a5a44", "494c52", "9b6a4c"),
        panes=_rgb("2c3a46", "4c6274", "7f98ac", "39424a", "1e252b", "a9bccb"),
        lit_pane=np.array([230.0, 214, 170]),
        lit=0.03,
        leaves=_rgb("4f7a33", "3e6b35", "6b8a3a", "2f5a32", "83913f", "56753f"),
        bark=_rgb("5b4a3c", "4a4038", "776655"),
        posts=_rgb("6c7275", "3b3f42", "9aa0a3", "4a5a4c", "82796b"),
        cars=_DAY_CARS,
        clothes=_DAY_CLOTHES,
        skins=_SKINS,
        lamps=0.0,
        grain=_DAY_GRAIN,
        brick=rng.uniform(0.22, 0.34),
        blur=0.0012,
        noise=(rng.uniform(1.5, 4.0), 0.04),
        chroma=0.5,
        gain=np.array([warm, 1.0, 2 - warm]) * rng.uniform(0.95, 1.3),
        gamma=rng.uniform(0.9, 1.2),
        vignette=0.12,
    )
    if rng.random() < 0.35:  # an overcast day: no shadows, pale sky
        look = replace(
            look,
            ambient=np.array([0.80, 0.82, 0.85]),
            sun=np.array([0.12, 0.12, 0.12]),
            shadow=0.4,
            sky=_rgb("a8b3bf", "bcc4cc", "d5d9dc") + rng.normal(0, 4, (1, 3)),
            cloud=np.array([205.0, 209, 214]),
            clear=rng.uniform(160, 400),
        )
    return look


def _dusk(rng: np.random.Generator) -> Appearance:
    grey = rng.uniform(88, 150) + rng.normal(0, 4, 3) + np.array([-6.0, 0, 8])
    stone = rng.uniform(90, 180) + rng.normal(0, 5, 3) + np.array([-4.0, 0, 5])
    late = rng.uniform(0, 1) ** 1.6  # 0: the sun has just set, 1: almost night
    ember = rng.uniform(0, 1)
    dim = 0.78 - 0.26 * late
    horizon = np.array([232.0, 150, 96]) * ember + np.array([150.0, 150, 170]) * (1 - ember)
    grain = _DAY_GRAIN * np.array([0.7, 1.3, 1.4, 0.7])
    grain[0] = [0.01, 0.0, 0.0, 0.0]
    return Appearance(
        ambient=np.array([0.88, 0.90, 1.05]) * dim,
        sun=np.array([0.55, 0.33, 0.20]) * (1 - late) * ember,
        towards_sun=_sun(rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.2)),
        shadow=0.25,
        haze=(horizon * 0.5 + np.array([50.0, 55, 72])) * (1 - 0.5 * late),
        clear=rng.uniform(110, 320),
        sky=np.stack([np.array([96.0, 124, 178]), np.array([172.0, 176, 198]), horizon]) * (1 - 0.36 * late),
        cloud=np.array([176.0, 158, 168]) * (1 - 0.4 * late),
        cover=rng.uniform(0.1, 0.8),
        road=grey,
        pavement=stone,
        kerb=stone * rng.uniform(0.9, 1.2),
        paint=np.array([215.0, 205, 180]) * rng.uniform(0.75, 1.0),
        walls=_DUSK_WALLS,
        roofs=_rgb("3a3f4a", "5a3c34", "4c4c4c", "2f3438"),
        panes=_rgb("12161d", "1c2836", "2f3c52", "46506a", "0d0f12"),
        lit_pane=np.array([255.0, 204, 122]),
        lit=rng.uniform(0.15, 0.5),
        leaves=_rgb("46703e", "356048", "66783a", "2c5a38", "7a6a34", "528050"),
        bark=_rgb("40383a", "332e30", "554a48"),
        posts=_rgb("4a4e55", "24262a", "6a6e78", "5a5044"),
        cars=_DUSK_CARS,
        clothes=_DUSK_CLOTHES,
        skins=_SKINS,
        lamps=rng.uniform(0.7, 1.1),
        grain=grain,
        brick=rng.uniform(0.4, 0.6),  # another renderer: larger stones
        blur=0.0024,
        noise=(rng.uniform(3.0, 6.5), 0.05),
        chroma=0.8,
        gain=np.array([1.04, 0.98, 1.02]) * rng.uniform(0.88, 1.14),
        gamma=rng.uniform(0.9, 1.15),
        vignette=0.28,
    )
