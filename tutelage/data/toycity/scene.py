"""Data classes that describe a toy street in metres and fractions, without pixels, colours and light.

The street runs along z (metres ahead of the camera), x is metres to the right of the line between the two directions of
traffic and y is metres above the road. The same description is painted at any size and in either domain, so a scene has
one label map only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

FAR = 170.0  # end of the street and distance of the skyline, in metres
KERB = 0.13  # height of the pavement above the road, in metres


@dataclass(frozen=True)
class Camera:
    """The camera: ``focal`` and ``horizon`` are fractions of the image, ``bend`` is 1 / radius of the road."""

    height: float
    horizon: float
    focal: float
    lateral: float
    bend: float


@dataclass(frozen=True)
class Building:
    """A box beside the street: its street wall is at ``x`` from ``near`` to ``far``; ``side`` is -1 or +1."""

    side: int
    x: float
    near: float
    far: float
    depth: float
    height: float
    ridge: float  # height of a pitched roof above the eaves; 0 is a flat one
    floor: float
    bay: float
    pane: tuple[float, float]  # width and height of a window, as shares of bay and floor
    style: str  # "holes", "ribbon", "grid" or "blank"
    shop: bool
    awning: bool  # over the shop's windows
    seed: int  # of where exactly its windows are


@dataclass(frozen=True)
class Tree:
    """A crown (one of the scene's crown fields) on a trunk; a bush has no trunk."""

    x: float
    z: float
    trunk: float
    radius: float
    crown: float
    field: int
    mirrored: bool


@dataclass(frozen=True)
class Pole:
    """A thin post: "lamp", "sign", "light" (traffic light) or "bollard"; ``reach`` is its arm towards the road."""

    kind: str
    x: float
    z: float
    height: float
    reach: float
    face: int = 0  # of a sign: 0 a triangle, 1 a board, 2 and 3 discs


@dataclass(frozen=True)
class Car:
    """A vehicle centred at (x, z); ``heading`` in radians: 0 drives away, pi towards the camera."""

    body: str
    x: float
    z: float
    heading: float
    size: tuple[float, float, float]  # length, width, height
    parked: bool

    @property
    def reach(self) -> float:
        """Half the car's extent along z in metres."""
        length, width, _ = self.size
        return 0.5 * (abs(math.cos(self.heading)) * length + abs(math.sin(self.heading)) * width)


@dataclass(frozen=True)
class Pedestrian:
    """A person standing at (x, z) on ground of height ``base``; ``stride`` is -1..1, ``facing`` -1, 0 or +1."""

    x: float
    z: float
    base: float
    height: float
    girth: float
    stride: float
    facing: int
    skirt: bool
    bag: bool


@dataclass(frozen=True)
class Scene:
    """All visible objects, with the noise fields that shape crowns and clouds."""

    camera: Camera
    kerbs: tuple[float, float]  # x of the road's two edges
    walls: tuple[float, float]  # x of the pavements' outer edges
    markings: tuple[tuple[float, str], ...]  # x and "dashed", "solid" or "double"
    dashes: tuple[float, float, float, float]  # length, gap, start and half the width of a marking, in metres
    crossing: tuple[float, float] | None  # z of a side street
    zebra: float | None  # z of a zebra crossing's near edge
    buildings: tuple[Building, ...]
    backdrop: tuple[Building, ...]  # a second row, seen through gaps
    woods: tuple[Tree, ...]  # trees behind everything that stands at the street
    skyline: Array  # (n, 4): direction x/z of left and right edge, height in metres, 1 for trees
    trees: tuple[Tree, ...]
    poles: tuple[Pole, ...]
    cars: tuple[Car, ...]
    pedestrians: tuple[Pedestrian, ...]
    crowns: Array  # (3, 96, 96), positive where there is foliage
    clouds: Array  # (64, 128) in 0..1
    bonnet: tuple[float, float] | None  # height as a share of the image's, and how much it is arched
