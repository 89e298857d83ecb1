"""Rendering of a scene and an appearance as an image and its label map: painting, textures, glow, camera defects.

Shapes are painted from far to near on a :class:`Canvas`; material textures are multiplied on afterwards. Textures of
the ground and of the walls along the street are anchored in metres, so that stones and bricks shrink with distance; all
others are noise in the image plane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from tutelage.data.toycity import actors, cars, street
from tutelage.data.toycity.appearance import Domain, as_colour, draw_look
from tutelage.data.toycity.canvas import FINER, MATERIALS, MATTER, Canvas
from tutelage.data.toycity.layout import draw_scene, smooth_noise
from tutelage.errors import DataError

CLASSES = ("road", "pavement", "building", "sky", "tree", "pole", "car", "pedestrian")
PALETTE: tuple[tuple[int, int, int], ...] = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (70, 130, 180),
    (107, 142, 35),
    (153, 153, 153),
    (0, 0, 142),
    (220, 20, 60),
)
IGNORE_INDEX = 255
DOMAINS: tuple[Domain, ...] = ("day", "dusk")
SMALLEST = 16  # pixels

_CLASS_OF = {
    "sky": "sky", "road": "road", "marking": "road", "pavement": "pavement", "kerb": "pavement",
    "plaster": "building", "brick": "building", "glass": "building", "leaves": "tree", "bark": "tree",
    "post": "pole", "car": "car", "tyre": "car", "person": "pedestrian",
}  # fmt: skip
_TRAIN_IDS: npt.NDArray[np.uint8] = np.array(
    [CLASSES.index(_CLASS_OF[name]) if name in _CLASS_OF else IGNORE_INDEX for name in MATERIALS], dtype=np.uint8
)
_GROUND = np.array([name in ("road", "marking", "pavement", "kerb") for name in MATERIALS], dtype=np.float32)

Plane = npt.NDArray[np.float32]
_Entry = tuple[float, Callable[[], None]]  # a distance in metres and what paints the thing there


def render(
    seed: int, index: int, size: tuple[int, int], domain: Domain
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Scene ``index`` of ``seed`` as RGB (H, W, 3) and train ids (H, W), both uint8; 255 is ignored.

    A pure function: equal arguments give equal bytes. The two domains show the same scene with the same labels.
    Raises :class:`DataError` (``toycity-settings``): unknown domain, a side below 16 pixels, negative seed or index.
    """
    if domain not in DOMAINS:
        raise DataError("invalid-value", f"unknown toycity domain {domain!r}", f"use one of: {', '.join(DOMAINS)}")
    if min(size) < SMALLEST:
        raise DataError(
            "invalid-value",
            f"toycity height and width must be at least {SMALLEST} pixels, got {size[0]} x {size[1]}",
            f"set both to {SMALLEST} or more",
        )
    if seed < 0 or index < 0:
        raise DataError(
            "invalid-value",
            f"toycity seed and index must be 0 or more, got {seed} and {index}",
            "set both to 0 or more",
        )
    scene = draw_scene(_generator(seed, index, 0))
    rng = _generator(seed, index, 1 + DOMAINS.index(domain))
    canvas = Canvas(scene, draw_look(domain, rng), size)
    _paint(canvas, rng)
    matter = np.asarray(canvas.matter)[FINER - 1 :: FINER, FINER - 1 :: FINER]
    return _develop(canvas, matter, rng), _TRAIN_IDS[matter]


def _generator(seed: int, index: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(index, stream))))


def _paint(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint all objects from far to near."""
    scene = canvas.scene
    street.paint_sky(canvas)
    street.paint_ground(canvas, rng)
    street.paint_skyline(canvas, rng)
    street.cast_building_shadows(canvas)
    for tree in scene.trees:
        actors.cast_tree_shadow(canvas, tree)
    canvas.soften_shadows(0.12)

    def entries(paint: Callable[..., None], things: Iterable[Any], distance: Callable[[Any], float]) -> list[_Entry]:
        return [(distance(thing), partial(paint, canvas, thing, rng)) for thing in things]

    def at(thing: Any) -> float:
        return float(thing.z)

    behind = entries(street.paint_building, scene.backdrop, lambda building: building.far)
    behind += entries(actors.paint_tree, scene.woods, at)
    # A building's walls are behind everything between its ends, so its far end counts; a car hides people
    # on the pavement beside it, so its near end counts.
    front = entries(street.paint_building, scene.buildings, lambda building: building.far)
    front += entries(actors.paint_tree, scene.trees, at)
    front += entries(actors.paint_pole, scene.poles, at)
    front += entries(cars.paint_car, scene.cars, lambda car: car.z - car.reach)
    front += entries(actors.paint_pedestrian, scene.pedestrians, at)
    for layer in (behind, front):
        for _, paint in sorted(layer, key=lambda item: -item[0]):
            paint()
    actors.cast_small_shadows(canvas)
    canvas.soften_shadows(0.04)
    _paint_own_lights(canvas)
    _paint_bonnet(canvas, rng)


def _paint_own_lights(canvas: Canvas) -> None:
    """Paint the camera car's headlights on the road."""
    if canvas.look.lamps:
        x = canvas.scene.camera.lateral
        beam = canvas.project([x - 0.9, x - 3.2, x + 3.4, x + 0.9], 0.0, [2.0, 26, 26, 2.0])
        canvas.pool(beam, as_colour(np.array([78.0, 74, 66]) * canvas.look.lamps))


def _paint_bonnet(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint the camera car's bonnet, which is ignored in the label."""
    colour = canvas.look.cars[int(rng.integers(len(canvas.look.cars)))] * 0.7
    if canvas.scene.bonnet is None:
        return
    share, arch = canvas.scene.bonnet
    across = np.linspace(-1, 1, 25)
    rise = share * canvas.height * (1 - arch * across**2)
    for part, tone in ((1.0, 1.0), (0.75, 1.12), (0.4, 0.9)):
        top = np.stack([canvas.middle * (1 + across), canvas.height - part * rise], axis=-1)
        corners = np.array([(canvas.width, canvas.height + 2), (0, canvas.height + 2)])
        shade = canvas.look.lit_colour(colour * tone, (0.0, 1.0, 0.0), 1.0)
        canvas.fill(np.concatenate([top, corners]), shade, MATTER["bonnet"])


def _develop(canvas: Canvas, matter: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Apply textures and camera effects: RGB (H, W, 3) uint8."""
    look, (height, width) = canvas.look, canvas.size
    image = np.asarray(canvas.colours.reduce(FINER), dtype=np.float32)

    grain = look.grain.astype(np.float32)
    texture = np.ones(canvas.size, dtype=np.float32)
    for column, cells in enumerate(((128, 256), (48, 96), (10, 18))):
        noise = smooth_noise(rng, cells, canvas.size)
        noise -= 0.5
        noise *= 3 * grain[:, column][matter]
        texture += noise
    texture += grain[:, 3][matter] * _anchored(canvas, matter, rng)
    shadow = np.asarray(canvas.shadows, dtype=np.float32) * np.float32(look.shadow * _shadow_share(canvas) / 255)
    texture *= 1 - shadow * _GROUND[matter]
    image *= texture[..., None]

    if look.lamps:
        unit = canvas.focal / FINER
        pools = _enlarged(canvas.pools.filter(ImageFilter.BoxBlur(0.014 * unit)), canvas.size)
        image *= 1 + pools * (_GROUND[matter] * np.float32(1 / 120))[..., None]
        for spread, share in ((0.006, 0.9), (0.05, 1.4)):
            image += np.float32(share) * _enlarged(canvas.glow.filter(ImageFilter.BoxBlur(spread * unit)), canvas.size)

    sharp = Image.fromarray(_to_bytes(image))
    blurred = sharp.filter(ImageFilter.BoxBlur(look.blur * min(height, 2 * width)))
    image = np.asarray(blurred, dtype=np.float32)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None] ** 2
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None] ** 2
    image *= (1 - np.float32(look.vignette * 0.5) * (rows + columns))[..., None]
    tone = 255 * np.linspace(0, 1, 256) ** look.gamma
    image = tone.astype(np.float32)[_to_bytes(image)] * look.gain.astype(np.float32)

    constant, growing = look.noise
    noise = _NORMAL[rng.integers(0, 256, (height, width, 3), dtype=np.uint8)]
    grey = _NORMAL[rng.integers(0, 256, (height, width, 1), dtype=np.uint8)]
    noise *= np.float32(look.chroma)
    noise += grey * np.float32(1 - look.chroma)
    image += noise * (np.float32(constant) + np.float32(growing) * np.sqrt(np.maximum(image, 0)))
    return _to_bytes(image)


# A table of normal deviates makes noise as fast as drawing bytes.
_NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], dtype=np.float32)


def _shadow_share(canvas: Canvas) -> float:
    """Fraction of the light on flat ground that comes from the sun and that a shadow removes."""
    look = canvas.look
    direct = float(look.sun.mean()) * max(float(look.towards_sun[1]), 0.0)
    return max(direct / (direct + float(look.ambient.mean())), 0.3)  # contact shadows exist without a sun


def _to_bytes(image: Plane) -> npt.NDArray[np.uint8]:
    return np.clip(image, 0, 255).astype(np.uint8)


def _enlarged(image: Image.Image, size: tuple[int, int]) -> Plane:
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR), dtype=np.float32)


def _anchored(canvas: Canvas, matter: npt.NDArray[np.uint8], rng: np.random.Generator) -> Plane:
    """Texture (H, W) with a fixed size in metres on the ground and on the walls along the street."""
    camera, scene, look = canvas.scene.camera, canvas.scene, canvas.look
    height, width = canvas.size
    table = rng.random((128, 128), dtype=np.float32)
    table = (table + np.roll(table, 1, 0) + np.roll(table, 1, 1) + np.roll(table, (1, 1), (0, 1))) - 2
    slab, stretch = rng.uniform(0.4, 1.3), rng.uniform(1, 2)
    laid = rng.random() < 0.65
    focal = canvas.focal / FINER
    horizon = canvas.horizon / FINER
    down = (np.arange(height, dtype=np.float32) + 0.5 - horizon) / focal
    across = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / focal
    result = np.zeros(canvas.size, dtype=np.float32)

    first = min(max(int(horizon) + 1, 0), height)
    if first < height:
        z = camera.height / np.maximum(down[first:], 1e-3)
        near = 1 / (1 + (z / 14) ** 2)  # attenuate detail finer than a pixel
        x = np.outer(z, across) + (camera.lateral - 0.5 * camera.bend * z**2)[:, None]
        rows = (z * 17).astype(np.int32)[:, None] & 127
        speckle = table[rows, (x * 22).astype(np.int32) & 127]
        blotch = table[(z * 0.9).astype(np.int32)[:, None] & 127, (x * 1.7).astype(np.int32) & 127]
        part = matter[first:]
        ground = speckle * near[:, None] + 0.5 * blotch
        if laid:  # joints between slabs
            paved = part == MATTER["pavement"]
            joint = (_fraction(x / slab) < 0.07) | (_fraction(z / (slab * stretch)) < 0.06)[:, None]
            ground -= 1.3 * (joint & paved) * near[:, None]
        result[first:] = ground * _GROUND[part]

    # Walls: all approximated at the pavement's outer edge.
    v, u = np.nonzero(matter == MATTER["brick"])
    reach = np.where(across < 0, camera.lateral - scene.walls[0], scene.walls[1] - camera.lateral).astype(np.float32)
    z = reach / np.maximum(np.abs(across), 1e-2)
    close = 1 / (1 + (z / 16) ** 2)
    course = (camera.height - down[v] * z[u]) / look.brick
    row = np.floor(course).astype(np.int32)
    along = (z / (2.2 * look.brick))[u] + 0.5 * (row & 1)  # every other course is shifted
    joint = (course - row < 0.2) | (_fraction(along) < 0.1)
    stone = table[row & 127, along.astype(np.int32) & 127]
    result[v, u] = (0.6 * stone - joint) * close[u]
    return result


def _fraction(values: Plane) -> Plane:
    return values - np.floor(values)
