"""Painters of the static scene: sky, road, pavement and buildings, with the shadows of buildings."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tutelage.data.toycity.appearance import Colour, as_colour
from tutelage.data.toycity.canvas import MATTER, NEAREST, Canvas
from tutelage.data.toycity.scene import FAR, KERB, Array, Building

_UP = (0.0, 1.0, 0.0)
_TO_CAMERA = (0.0, 0.0, -1.0)
_SKY_FRAME = (1.5, 1.2)  # extent of the sky to each side and up, as tangents of the viewing angle


def paint_sky(canvas: Canvas) -> None:
    """Paint a gradient under clouds, down to the horizon."""
    look = canvas.look
    rows, columns = canvas.scene.clouds.shape
    height = np.linspace(1, 0, rows)[:, None, None] * _SKY_FRAME[1]
    zenith, middle, low = look.sky
    upper = np.clip((height - 0.25) / 0.45, 0, 1)
    lower = np.clip(height / 0.25, 0, 1) ** 0.7
    sky = (low * (1 - lower) + middle * lower) * (1 - upper) + zenith * upper
    clouds = np.clip((canvas.scene.clouds - (0.72 - 0.45 * look.cover)) / 0.22, 0, 1)[..., None] * 0.85
    sky = sky * (1 - clouds) + look.cloud * clouds
    sheet = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
    bottom = min(canvas.height, int(canvas.horizon) + 1)
    side, up = canvas.middle / canvas.focal / _SKY_FRAME[0] / 2, canvas.horizon / canvas.focal / _SKY_FRAME[1]
    box = ((0.5 - side) * columns, max(0.0, 1 - up) * rows, (0.5 + side) * columns, float(rows))
    canvas.colours.paste(sheet.resize((canvas.width, bottom), Image.Resampling.BILINEAR, box=box), (0, 0))


def _strip(canvas: Canvas, left: float, right: float, near: float, far: float, low: float = 0.0) -> Array:
    """A band along the road from ``near`` to ``far``: a polygon (n, 2) whose right edge is at height ``low``."""
    inner = _STATIONS[(near < _STATIONS) & (far > _STATIONS)]
    z = np.concatenate([[near], inner, [far]])
    return np.concatenate([canvas.project(left, 0.0, z), canvas.project(right, low, z)[::-1]])


_STATIONS = np.geomspace(NEAREST, 4 * FAR, 30)


def paint_ground(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint the ground: pavement everywhere, the road on it, kerbs, lane markings and patches of the asphalt."""
    scene, look = canvas.scene, canvas.look
    left, right = scene.kerbs
    levels = np.linspace(0, 1, 14)
    for upper, lower in zip(levels[:-1] ** 2.2, levels[1:] ** 2.2, strict=True):  # bands of growing haze
        top = canvas.horizon + (canvas.height - canvas.horizon) * upper
        bottom = canvas.horizon + (canvas.height - canvas.horizon) * lower
        z = canvas.focal * scene.camera.height / max(0.5 * (top + bottom) - canvas.horizon, 1e-3)
        band = np.array([(0, top), (canvas.width, top), (canvas.width, bottom), (0, bottom)])
        canvas.fill(band, look.lit_colour(look.pavement, _UP, z), MATTER["pavement"])

    # The road has three colours by distance for the same reason.
    for near, far in ((12.0, 4 * FAR), (4.0, 12.3), (NEAREST, 4.05)):
        canvas.fill(
            _strip(canvas, left, right, near, far),
            look.lit_colour(look.road, _UP, 0.5 * (near + min(far, 60))),
            MATTER["road"],
        )
    for _ in range(9):  # patches of repaired road
        x, z = rng.uniform(left, right), 4 + rng.gamma(1.3, 12)
        half, length, tone = rng.uniform(0.3, 1.2), rng.uniform(0.8, 7), rng.uniform(0.75, 1.15)
        patch = _strip(canvas, max(left, x - half), min(right, x + half), z, z + length)
        canvas.fill(patch, look.lit_colour(look.road * tone, _UP, z))
    for x, z in zip(rng.uniform(left + 0.5, right - 0.5, 3), rng.uniform(4, 25, 3), strict=True):
        cover = canvas.project(x, 0.0, z)
        size = 0.33 * canvas.scale(z)
        canvas.oval(cover, (size, size * scene.camera.height / z), look.lit_colour(look.road * 0.6, _UP, z))

    stone = look.lit_colour(look.kerb, _TO_CAMERA, 15)
    for side, x in ((-1, left), (1, right)):
        canvas.fill(_strip(canvas, x, x, NEAREST, 60, KERB), stone, MATTER["kerb"])
        top = look.lit_colour(look.kerb * 1.1, _UP, 15)
        z = _STATIONS[_STATIONS < 60]
        inner, outer = canvas.project(x, KERB, z), canvas.project(x + side * 0.16, KERB, z)
        canvas.fill(np.concatenate([inner, outer[::-1]]), top, MATTER["kerb"])
    if scene.crossing is not None:
        near, far = scene.crossing
        corners = canvas.project([-90, 90, 90, -90], 0.0, [near, near, far, far])
        canvas.fill(corners, look.lit_colour(look.road, _UP, near), MATTER["road"])
    _paint_markings(canvas)


def _paint_markings(canvas: Canvas) -> None:
    scene, look = canvas.scene, canvas.look
    dash, gap, phase, wide = scene.dashes

    def mark(left: float, right: float, near: float, far: float) -> None:
        if scene.crossing is None or far < scene.crossing[0] or near > scene.crossing[1]:
            colour = look.lit_colour(look.paint, _UP, near)
            canvas.fill(_strip(canvas, left, right, near, far), colour, MATTER["marking"])

    for x, style in scene.markings:
        if style == "dashed":
            for near in np.arange(phase - 3, 75, dash + gap):
                if near + dash > NEAREST:
                    mark(x - wide, x + wide, max(near, NEAREST), near + dash)
        else:
            parts = (-0.13, 0.13) if style == "double" else (0.0,)
            stops = (NEAREST, 70.0) if scene.crossing is None else (NEAREST, scene.crossing[0] - 0.5)
            for part in parts:
                mark(x + part - wide, x + part + wide, *stops)
                if scene.crossing is not None:
                    mark(x + part - wide, x + part + wide, scene.crossing[1] + 0.5, 80)
    if scene.zebra is not None:
        left, right = scene.kerbs
        for x in np.arange(left + 0.4, right - 0.4, 1.0):
            mark(x, min(x + 0.5, right), max(scene.zebra, NEAREST), scene.zebra + 3)


def paint_skyline(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint distant silhouettes at the end of the street."""
    look, camera = canvas.look, canvas.scene.camera
    walls = look.walls[rng.integers(0, len(look.walls), len(canvas.scene.skyline))]
    leaves = look.leaves[rng.integers(0, len(look.leaves), len(canvas.scene.skyline))]
    for (left, right, height, wooded), wall, leaf in zip(canvas.scene.skyline, walls, leaves, strict=True):
        x = camera.lateral + FAR * np.array([left, right])
        corners = canvas.project([x[0], x[0], x[1], x[1]], [0, height, height, 0], FAR)
        if not canvas.visible(corners):
            continue
        if wooded:
            colour = look.lit_colour(leaf, _TO_CAMERA, FAR)
            wide, tall = 0.5 * float(corners[2, 0] - corners[0, 0]), 0.6 * float(corners[0, 1] - corners[1, 1])
            canvas.oval(
                corners[[0, 2]].mean(axis=0) * (1, 0) + (0, corners[0, 1]), (wide, tall), colour, MATTER["leaves"]
            )
        else:
            canvas.fill(corners, look.lit_colour(wall, _TO_CAMERA, FAR), MATTER["plaster"])


def cast_building_shadows(canvas: Canvas) -> None:
    """Darken the ground in the shadows of buildings."""
    if canvas.look.shadow < 0.3:
        return
    across, up, along = canvas.look.towards_sun
    for building in canvas.scene.buildings:
        offset_x, offset_z = -building.height / up * across, -building.height / up * along
        outer = building.x + building.side * building.depth
        corners = np.array([(outer, building.near), (building.x, building.near), (building.x, building.far),
                            (outer, building.far)])  # fmt: skip
        moved = corners + (offset_x, offset_z)
        for first in range(3):
            wall = np.stack([corners[first], corners[first + 1], moved[first + 1], moved[first]])
            canvas.shadow(canvas.project(wall[:, 0], 0.0, wall[:, 1]), 255)
        canvas.shadow(canvas.project(moved[:, 0], 0.0, moved[:, 1]), 255)


def paint_building(canvas: Canvas, building: Building, rng: np.random.Generator) -> None:
    """Paint a building's visible faces, roof first; draws the same numbers whether or not it is visible."""
    look = canvas.look
    colour = look.walls[int(rng.integers(len(look.walls)))] * rng.uniform(0.85, 1.12) + rng.normal(0, 5, 3)
    roof = look.roofs[int(rng.integers(len(look.roofs)))] * rng.uniform(0.85, 1.15)
    brick = building.style in ("holes", "blank") and rng.random() < 0.6
    matter = MATTER["brick" if brick else "glass" if building.style == "grid" else "plaster"]
    inner, outer = building.x, building.x + building.side * building.depth
    near, far = max(building.near, NEAREST), building.far
    seeds = rng.integers(0, 2**32, 2)
    if far <= NEAREST:
        return
    frame = canvas.project([inner, inner, outer, outer], [0, building.height + building.ridge] * 2, [near, far] * 2)
    frame = np.concatenate([frame, canvas.project(inner, building.height, [near, far])])
    if not canvas.visible(frame):
        return
    if building.near > NEAREST:
        face = _Wall(canvas, building, (outer, near), (inner, near), _TO_CAMERA, colour, matter)
        face.paint(np.random.default_rng(seeds[0]), street=False)
    if building.ridge:
        ridge = 0.5 * (inner + outer)
        top = building.height + building.ridge
        gable = canvas.project([inner, ridge, outer], [building.height, top, building.height], near)
        if building.near > NEAREST:
            canvas.fill(gable, look.lit_colour(colour, _TO_CAMERA, near), matter)
        slope = canvas.project(
            [inner, inner, ridge, ridge], [building.height, building.height, top, top], [near, far] * 2
        )
        canvas.fill(
            slope[[0, 1, 3, 2]], look.lit_colour(roof, (-building.side * 0.6, 0.8, 0.0), near + 4), MATTER["plaster"]
        )
    wall = _Wall(canvas, building, (inner, near), (inner, far), (-float(building.side), 0.0, 0.0), colour, matter)
    wall.paint(np.random.default_rng(seeds[1]), street=True)


class _Wall:
    """A wall on the line from ``start`` to ``end`` (x, z), with windows counted from the building's end."""

    def __init__(
        self,
        canvas: Canvas,
        building: Building,
        start: tuple[float, float],
        end: tuple[float, float],
        normal: tuple[float, float, float],
        colour: Array,
        matter: int,
    ) -> None:
        self.canvas, self.building, self.normal, self.colour, self.matter = canvas, building, normal, colour, matter
        # Distances along the wall are measured back from its end, which is never clipped by the camera.
        self.end, self.length = end, float(np.hypot(end[0] - start[0], end[1] - start[1]))
        self.step = ((start[0] - end[0]) / self.length, (start[1] - end[1]) / self.length)

    def quads(self, low: Array, high: Array, bottom: Array, top: Array, out: float = 0.0) -> tuple[Array, Array]:
        """Rectangles on the wall (n, 4, 2) in samples and their distances (n,); ``out`` metres in front of the wall."""
        low, high = np.minimum(low, self.length), np.minimum(high, self.length)
        along = np.stack([low, low, high, high], axis=-1)
        x = self.end[0] + along * self.step[0] + out * self.normal[0]
        z = self.end[1] + along * self.step[1] + out * self.normal[2]
        y = np.stack([bottom, top, top, bottom], axis=-1)
        return self.canvas.project(x, y, z), z.mean(axis=-1)

    def bands(self, levels: list[tuple[float, float]], colours: Array, out: float = 0.0) -> None:
        """Paint horizontal bands (bottom, top) over the whole wall, as details; colours (3,) or one per band (n, 3)."""
        bottom, top = np.array(levels).T
        quads, z = self.quads(np.zeros(len(levels)), np.full(len(levels), self.length), bottom, top, out)
        lit = self.canvas.look.lit_colours(colours, self.normal, z, 0.0)
        self.canvas.fill_many(quads, np.broadcast_to(lit, (len(levels), 3)))

    def lit(self, colour: Array, z: float) -> Colour:
        return self.canvas.look.lit_colour(colour, self.normal, z)

    def paint(self, rng: np.random.Generator, street: bool) -> None:
        building, look, height = self.building, self.canvas.look, self.building.height
        places = np.random.default_rng((building.seed, int(street)))  # shapes are the same in both domains
        slices = max(1, min(4, round(self.length / 6)))
        edges = np.linspace(0, self.length, slices + 1)
        quads, z = self.quads(edges[:-1], edges[1:] + 0.02, np.zeros(slices), np.full(slices, height))
        for points, distance in zip(quads, z.tolist(), strict=True):
            self.canvas.fill(points, self.lit(self.colour, distance), self.matter)
        trim = self.colour * rng.uniform(0.7, 1.3)
        span = quads[..., 0].max() - quads[..., 0].min()
        if span < 18 or self.canvas.scale(float(z.min())) < 3:  # too far or too slanted for anything finer
            return
        if building.style != "grid":
            levels, tones = [(height - 0.45, height), (0.0, 0.6)], [trim, self.colour * 0.75]
            if rng.random() < 0.5:
                floors = range(1, round((height - 0.8) / building.floor))
                levels += [(level * building.floor - 0.12, level * building.floor + 0.08) for level in floors]
                tones += [trim for _ in floors]
            self.bands(levels, np.stack(tones))
        if street or building.style in ("ribbon", "grid") or places.random() < 0.4:
            self._windows(rng, places, trim, street)
        if street and building.shop:
            self._shop(rng, places)
        elif street:
            doors = np.arange(rng.uniform(1, 4), self.length - 1.2, rng.uniform(6, 12))
            shape, far = self.quads(doors, doors + 1.1, np.zeros(len(doors)), np.full(len(doors), 2.2))
            tone = look.cars[int(rng.integers(len(look.cars)))] * 0.7
            self.canvas.fill_many(shape, look.lit_colours(tone, self.normal, far, 0.0))

    def _windows(self, rng: np.random.Generator, places: np.random.Generator, trim: Array, street: bool) -> None:
        building, look = self.building, self.canvas.look
        floors = round((building.height - 0.8) / building.floor)
        first = 1 if street and building.shop else 0
        bay = self.length if building.style == "ribbon" else building.bay * (0.55 if building.style == "grid" else 1)
        columns = max(1, int(self.length / bay))
        if floors <= first:
            return
        wide, tall = building.pane
        if building.style == "ribbon":
            wide, columns, bay = 0.93, max(1, int(self.length / 3.0)), 3.0
        if building.style == "grid":
            wide, tall = 0.88, 0.86
        if building.style == "blank" and not street:
            return
        column, level = np.meshgrid(np.arange(columns), np.arange(first, floors))
        middle: Array = np.asarray((column + 0.5) * self.length / columns, dtype=np.float64).ravel()
        bottom: Array = np.asarray((level + 0.5 * (1 - tall) + 0.06) * building.floor, dtype=np.float64).ravel()
        half = 0.5 * wide * min(bay, self.length / columns)
        count = len(middle)
        tones, lights, blinds = rng.random(count), rng.random(count), rng.random(count)
        if building.style == "blank":
            keep = places.random(count) < 0.35
            middle, bottom, tones = middle[keep], bottom[keep], tones[keep]
            lights, blinds = lights[keep], blinds[keep]
        top = bottom + tall * building.floor
        quads, z = self.quads(middle - half, middle + half, bottom, top)
        if building.style == "holes" or building.style == "blank":
            frames, _ = self.quads(middle - half - 0.1, middle + half + 0.1, bottom - 0.16, top + 0.1)
            self.canvas.fill_many(frames, look.lit_colours(trim * 1.1, self.normal, z, 0.0))
        sets = np.array([look.panes[int(i)] for i in rng.integers(0, len(look.panes), 2)])
        panes = sets[0] * (1 - tones[:, None]) + sets[1] * tones[:, None]
        # Higher windows reflect more of the sky.
        mirrored = np.clip(0.12 + 0.02 * bottom + 0.25 * (building.style == "grid"), 0, 0.55)[:, None]
        colours = look.lit_colours(panes * (1 - mirrored), self.normal, z, 0.0) + look.sky[1] * mirrored
        glowing = (lights < look.lit)[:, None]
        lamp = look.lit_pane * (0.55 + 0.5 * tones[:, None]) * (1, 1, 0.8 + 0.2 * rng.random())
        self.canvas.fill_many(quads, np.where(glowing, look.hazed(lamp, z), colours), MATTER["glass"])
        if building.style == "holes":  # blinds, half way down
            drawn = blinds < 0.3
            part, far = self.quads(
                (middle - half)[drawn], (middle + half)[drawn], (top - (top - bottom) * tones)[drawn], top[drawn]
            )
            self.canvas.fill_many(part, look.lit_colours(trim * 1.2, self.normal, far, 0.0))
            if building.floor > 3.3 and street:  # balconies
                rails, far = self.quads(middle - half - 0.4, middle + half + 0.4, bottom - 0.3, bottom + 0.5, 0.6)
                ledge = blinds > 0.75
                self.canvas.fill_many(rails[ledge], look.lit_colours(self.colour * 0.6, self.normal, far[ledge], 0.0))

    def _shop(self, rng: np.random.Generator, places: np.random.Generator) -> None:
        building, look = self.building, self.canvas.look
        self.bands([(0.0, building.floor - 0.2)], self.colour * rng.uniform(0.5, 0.9))
        sign = look.cars[int(rng.integers(len(look.cars)))]
        self.bands([(building.floor - 0.9, building.floor - 0.3)], sign)
        count = max(1, int(self.length / places.uniform(2.4, 4)))
        starts = (np.arange(count) + 0.08) * self.length / count
        ends = starts + 0.84 * self.length / count
        quads, z = self.quads(starts, ends, np.full(count, 0.5), np.full(count, building.floor - 1.0))
        panes = look.panes[rng.integers(0, len(look.panes), count)]
        open_late = rng.random() < 2 * look.lit
        colours = look.lit_pane * 0.95 if open_late else panes * 0.9
        lit = np.broadcast_to(colours, (count, 3))
        shown = look.hazed(lit, z) if open_late else look.lit_colours(lit, self.normal, z, 0.0)
        self.canvas.fill_many(quads, shown, MATTER["glass"])
        if building.awning:  # an awning over the pavement
            cloth, out = look.cars[int(rng.integers(len(look.cars)))], 1.1
            left, right = np.array([0.5]), np.array([self.length - 0.5])
            low, high = np.array([2.2]), np.array([building.floor - 0.4])
            back, far = self.quads(left, right, low, high)
            front, _ = self.quads(left, right, low, low + 0.25, out)
            slope = np.stack([back[0, 1], back[0, 2], front[0, 2], front[0, 1]])
            canvas, matter = self.canvas, MATTER["plaster"]
            canvas.fill(slope, as_colour(look.lit_colours(cloth, _UP, float(far[0]), 0.5)), matter)
            canvas.fill(front[0], self.lit(cloth * 0.85, float(far[0])), matter)
