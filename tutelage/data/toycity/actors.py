"""Painters of trees, poles and pedestrians, and of the shadows of all small objects. Cars are in ``cars``.

Every painter draws the same numbers from its generator whether or not its object is visible, so that a scene looks the
same at any size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from tutelage.data.toycity.appearance import Colour, as_colour
from tutelage.data.toycity.canvas import MATTER, NEAREST, Canvas
from tutelage.data.toycity.cars import on_ground
from tutelage.data.toycity.scene import KERB, Array, Pedestrian, Pole, Tree

_TO_CAMERA = (0.0, 0.0, -1.0)
_ROUND = np.linspace(0, 2 * np.pi, 14, endpoint=False)


def _disc(canvas: Canvas, x: float, z: float, radius: float) -> Array:
    """A circle on the ground as a polygon (14, 2)."""
    return canvas.project(x + radius * np.cos(_ROUND), 0.0, np.maximum(z + radius * np.sin(_ROUND), NEAREST))


def cast_tree_shadow(canvas: Canvas, tree: Tree) -> None:
    """Cast the shadow of a tree's crown."""
    if canvas.look.shadow < 0.3:
        return
    across, up, along = canvas.look.towards_sun
    height = tree.trunk + 0.5 * tree.crown
    for part in (0.7, 1.0, 1.3):
        x, z = tree.x - part * height / up * across, tree.z - part * height / up * along
        if z > 1:
            canvas.shadow(_disc(canvas, x, z, tree.radius * (0.85 if part == 1 else 0.6)), 220)


def cast_small_shadows(canvas: Canvas) -> None:
    """Cast the shadows of cars, people and poles: contact shadows, and cast shadows if there is sun."""
    across, up, along = canvas.look.towards_sun
    sunny = canvas.look.shadow > 0.3
    for car in canvas.scene.cars:
        length, width, height = car.size
        corners = on_ground(car, np.array([-0.52, 0.52, 0.52, -0.52]) * length, np.array([-1, -1, 1, 1]) * 0.55 * width)
        if sunny:
            moved = corners - 0.75 * height / up * np.array([across, along])
            canvas.shadow(canvas.project(moved[:, 0], 0.0, moved[:, 1]), 215)
            for i in range(4):
                quad = np.stack([corners[i], corners[i - 1], moved[i - 1], moved[i]])
                canvas.shadow(canvas.project(quad[:, 0], 0.0, quad[:, 1]), 215)
        canvas.shadow(canvas.project(corners[:, 0], 0.0, corners[:, 1]), 255)
    thin = [(person.x, person.z, person.height, 0.16) for person in canvas.scene.pedestrians]
    thin += [(pole.x, pole.z, pole.height, 0.06) for pole in canvas.scene.poles]
    thin += [(tree.x, tree.z, tree.trunk, 0.13) for tree in canvas.scene.trees if tree.trunk]
    for x, z, height, half in thin:
        canvas.shadow(_disc(canvas, x, z, 1.6 * half), 230)
        end_x, end_z = x - height / up * across, z - height / up * along
        if sunny and end_z > 1:
            canvas.shadow(
                canvas.project([x - half, x + half, end_x + half, end_x - half], 0.0, [z, z, end_z, end_z]), 210
            )


def paint_tree(canvas: Canvas, tree: Tree, rng: np.random.Generator) -> None:
    """Paint a trunk with two boughs and a crown lit from the side of the sun."""
    look = canvas.look
    leaf = look.leaves[int(rng.integers(len(look.leaves)))] * rng.uniform(0.8, 1.2) + rng.normal(0, 5, 3)
    bark = look.bark[int(rng.integers(len(look.bark)))] * rng.uniform(0.8, 1.2)
    shade = canvas.shade_at(tree.x, tree.z)
    unit = canvas.scale(tree.z)
    foot = canvas.project(tree.x, KERB, tree.z)
    half, rise = tree.radius * unit, tree.crown * unit
    crown_bottom = foot[1] - tree.trunk * unit * 0.88
    frame = np.array([(foot[0] - half, crown_bottom - rise), (foot[0] + half, foot[1])])
    if not canvas.visible(frame):
        return
    if tree.trunk:
        wide = 0.07 * tree.radius * unit
        into = crown_bottom - 0.45 * rise
        trunk = np.array([(-wide, foot[1]), (-0.6 * wide, into), (0.6 * wide, into), (wide, foot[1])])
        canvas.fill(trunk + (foot[0], 0), look.lit_colour(bark, _TO_CAMERA, tree.z, shade), MATTER["bark"])
        for side in (-1, 1):
            bough = np.array([(-0.4, 0.0), (side * 3.6, -0.36), (side * 3.9, -0.34), (0.5, 0.09)])
            bough = bough * (wide, rise) + (foot[0], crown_bottom)
            canvas.fill(bough, look.lit_colour(bark, _TO_CAMERA, tree.z, shade), MATTER["bark"])

    left, top = round(float(foot[0] - half)), round(float(crown_bottom - rise))
    width, height = max(2, round(float(2 * half))), max(2, round(float(rise)))
    box = (max(left, 0), max(top, 0), min(left + width, canvas.width), min(top + height, canvas.height))
    if box[0] >= box[2] or box[1] >= box[3]:
        return
    light, solid = _crown(canvas, tree)
    columns, rows = solid.size
    part = (
        (box[0] - left) / width * columns,
        (box[1] - top) / height * rows,
        (box[2] - left) / width * columns,
        (box[3] - top) / height * rows,
    )
    size = (box[2] - box[0], box[3] - box[1])
    light = light.resize(size, Image.Resampling.BILINEAR, box=part)
    mask = solid.resize(size, Image.Resampling.BILINEAR, box=part).point(_ABOVE_HALF)
    across, up, along = look.towards_sun.tolist()
    dark = look.lit_colours(leaf * 0.45, _TO_CAMERA, tree.z, 1.0)
    bright = look.lit_colours(leaf * 1.25, (across, up, along), tree.z, 0.6 * shade)
    ramp = np.clip(dark + (bright - dark) * np.linspace(0, 1, 256)[:, None], 0, 255).astype(np.uint8)
    canvas.paste(box, Image.fromarray(ramp[np.asarray(light)]), mask, MATTER["leaves"])


def _crown(canvas: Canvas, tree: Tree) -> tuple[Image.Image, Image.Image]:
    """Brightness of a crown and its opacity (solid above 127), both 8-bit; computed once per scene."""
    key = (tree.field, tree.mirrored)
    if key not in canvas.crowns:
        field = canvas.scene.crowns[tree.field]
        field = field[:, ::-1] if tree.mirrored else field
        v, u = np.mgrid[-1 : 1 : field.shape[0] * 1j, -1 : 1 : field.shape[1] * 1j]
        across, up, along = canvas.look.towards_sun
        light = 0.5 + 0.35 * (u * across - v * up) - 0.1 * along + 0.42 * (field - 0.45)
        images = [
            Image.fromarray(np.clip(plane * 255, 0, 255).astype(np.uint8)) for plane in (light, 0.5 * field + 0.5)
        ]
        canvas.crowns[key] = (images[0], images[1])
    return canvas.crowns[key]


_ABOVE_HALF = [0] * 128 + [255] * 128


def paint_pole(canvas: Canvas, pole: Pole, rng: np.random.Generator) -> None:
    """Paint a lamp post, a traffic sign, a traffic light or a bollard."""
    look = canvas.look
    metal = look.posts[int(rng.integers(len(look.posts)))] * rng.uniform(0.85, 1.15)
    tone = int(rng.integers(3))
    shade = canvas.shade_at(pole.x, pole.z)
    unit = canvas.scale(pole.z)
    foot = canvas.project(pole.x, KERB, pole.z)
    reach = (abs(pole.reach) + 0.6) * unit
    if not canvas.visible(foot + np.array([(-reach, -1.1 * pole.height * unit), (reach, 0.0)])):
        return
    matter = MATTER["post"]
    colour = look.lit_colour(metal, _TO_CAMERA, pole.z, shade)

    def shape(*points: tuple[float, float]) -> Array:
        return foot + np.array(points) * (unit, -unit)

    half = {"lamp": 0.12, "sign": 0.055, "light": 0.08, "bollard": 0.1}[pole.kind]
    tall = pole.height
    canvas.fill(shape((-half, 0), (-0.7 * half, tall), (0.7 * half, tall), (half, 0)), colour, matter)
    if pole.kind == "lamp":
        side = float(np.sign(pole.reach))
        canvas.fill(shape((-1.6 * half, 0), (-1.4 * half, 0.9), (1.4 * half, 0.9), (1.6 * half, 0)), colour, matter)
        arm = shape((0, tall), (pole.reach, tall + 0.3), (pole.reach, tall + 0.18), (0, tall - 0.16))
        canvas.fill(arm, colour, matter)
        head = shape((pole.reach - 0.1 * side, tall + 0.34), (pole.reach + 0.6 * side, tall + 0.28),
                     (pole.reach + 0.6 * side, tall + 0.14), (pole.reach - 0.1 * side, tall + 0.12))  # fmt: skip
        canvas.fill(head, look.lit_colour(metal * 0.8, _TO_CAMERA, pole.z, shade), matter)
        if look.lamps:
            warm = np.array([255.0, 214, 150]) if tone else np.array([225.0, 232, 255])
            bulb = shape((pole.reach + 0.3 * side, tall + 0.16))[0]
            canvas.oval(bulb, (0.22 * unit, 0.09 * unit), as_colour(warm * 1.05))
            canvas.shine(bulb, 0.24 * unit, as_colour(warm * look.lamps))
            if pole.z < 60:
                canvas.pool(_disc(canvas, pole.x + pole.reach, pole.z, 3.4), as_colour(0.5 * warm * look.lamps))
    elif pole.kind == "sign":
        _paint_sign(canvas, shape, pole, shade)
    elif pole.kind == "light":
        housing = look.lit_colour(np.array([30.0, 32, 34]), _TO_CAMERA, pole.z, shade)
        canvas.fill(
            shape((-0.17, tall - 0.1), (-0.17, tall + 0.85), (0.17, tall + 0.85), (0.17, tall - 0.1)), housing, matter
        )
        lamps = ((235.0, 45, 35), (240.0, 170, 30), (60.0, 225, 110))
        bulb = shape((0, tall + (0.67, 0.38, 0.1)[tone]))[0]
        canvas.oval(bulb, (0.1 * unit, 0.1 * unit), as_colour(np.array(lamps[tone])))
        if look.lamps:
            canvas.shine(bulb, 0.12 * unit, as_colour(np.array(lamps[tone]) * look.lamps))
    else:
        ring = look.lit_colour(np.array([200.0, 195, 185]), _TO_CAMERA, pole.z, shade)
        canvas.fill(shape((-half, tall - 0.22), (-half, tall - 0.1), (half, tall - 0.1), (half, tall - 0.22)), ring)


def _paint_sign(canvas: Canvas, shape: Callable[..., Array], pole: Pole, shade: float) -> None:
    look, matter, tall = canvas.look, MATTER["post"], pole.height

    def lit(*rgb: float) -> Colour:
        return look.lit_colour(np.array(rgb), _TO_CAMERA, pole.z, shade)

    if pole.face == 0:  # warning triangle
        canvas.fill(shape((-0.42, tall - 0.4), (0, tall + 0.33), (0.42, tall - 0.4)), lit(190, 40, 35), matter)
        canvas.fill(shape((-0.26, tall - 0.31), (0, tall + 0.14), (0.26, tall - 0.31)), lit(225, 222, 210))
    elif pole.face == 1:  # a board
        canvas.fill(shape((-0.38, tall - 0.3), (-0.38, tall + 0.4), (0.38, tall + 0.4), (0.38, tall - 0.3)),
                    lit(35, 80, 160), matter)  # fmt: skip
        canvas.fill(shape((-0.12, tall - 0.2), (-0.12, tall + 0.3), (0.14, tall + 0.3), (0.14, tall - 0.2)),
                    lit(225, 225, 225))  # fmt: skip
    else:  # prohibitory disc
        circle = [(0.36 * float(np.cos(a)), tall + 0.36 * float(np.sin(a))) for a in _ROUND]
        inner = [(0.7 * x, tall + 0.7 * (y - tall)) for x, y in circle]
        canvas.fill(shape(*circle), lit(185, 35, 35), matter)
        canvas.fill(shape(*inner), lit(225, 222, 210) if pole.face == 2 else lit(40, 70, 150))


def paint_pedestrian(canvas: Canvas, person: Pedestrian, rng: np.random.Generator) -> None:
    """Paint a standing or walking figure: legs, trunk, arms, head."""
    look = canvas.look
    top, trousers, coat = (look.clothes[int(i)] * rng.uniform(0.8, 1.2) for i in rng.integers(0, len(look.clothes), 3))
    skin = look.skins[int(rng.integers(len(look.skins)))]
    hair = np.array([60.0, 45, 35]) * rng.uniform(0.3, 2.6)
    unit = canvas.scale(person.z) * person.height
    foot = canvas.project(person.x, person.base, person.z)
    if not canvas.visible(foot + np.array([(-0.35 * unit, -unit), (0.35 * unit, 0.0)])):
        return
    shade = canvas.shade_at(person.x, person.z)
    matter = MATTER["person"]

    def fill(albedo: Array, *points: tuple[float, float]) -> None:
        colour = look.lit_colour(albedo, _TO_CAMERA, person.z, shade)
        canvas.fill(foot + np.array(points) * (unit, -unit), colour, matter)

    sideways = person.facing != 0
    swing = person.stride * (0.12 if sideways else 0.035)
    body = (0.085 if sideways else 0.12) * person.girth
    thigh = 0.052 * person.girth
    gap = 0.0 if sideways else 0.05 * person.girth
    for side, tone in ((-1, 0.75), (1, 1.0)):
        ankle = side * (gap + swing)
        hip = side * gap * 0.9
        leg = ((hip - thigh, 0.52), (hip + thigh, 0.52), (ankle + 0.6 * thigh, 0.04), (ankle - 0.6 * thigh, 0.04))
        fill((skin if person.skirt else trousers) * tone, *leg)
        toe = person.facing * 0.05
        fill(trousers * 0.3, (ankle - 0.035, 0.0), (ankle - 0.03, 0.05), (ankle + 0.03 + 0.5 * toe, 0.05),
             (ankle + 0.035 + toe, 0.0))  # fmt: skip
        hand = (side * (body + 0.02) - side * swing) if not sideways else -side * swing * 1.1
        shoulder = side * (body - 0.01) if not sideways else 0.0
        if side < 0 or not sideways:
            fill(top * 0.7, (shoulder - 0.03, 0.8), (shoulder + 0.03, 0.8), (hand + 0.024, 0.46), (hand - 0.024, 0.46))
    fill(
        top,
        (-body, 0.8),
        (-0.55 * body, 0.835),
        (0.55 * body, 0.835),
        (body, 0.8),
        (0.82 * body, 0.5),
        (-0.82 * body, 0.5),
    )
    if person.skirt:
        fill(coat, (-0.7 * body, 0.6), (0.7 * body, 0.6), (1.35 * body, 0.27), (-1.35 * body, 0.27))
    dark = (0.15, 1.0) if look.towards_sun[0] < 0 else (-1.0, -0.15)
    fill(
        top * 0.8,
        (dark[0] * body, 0.8),
        (dark[1] * body, 0.8),
        (dark[1] * 0.82 * body, 0.5),
        (dark[0] * 0.82 * body, 0.5),
    )
    if sideways:
        fill(top * 0.85, (-0.026, 0.79), (0.026, 0.79), (swing + 0.024, 0.46), (swing - 0.024, 0.46))
    if person.bag:
        out = -person.facing if sideways else 1
        fill(
            coat * 0.8,
            (out * 0.6 * body, 0.8),
            (out * 1.6 * body, 0.77),
            (out * 1.55 * body, 0.55),
            (out * 0.6 * body, 0.53),
        )
    head = foot + np.array([person.facing * 0.012, -0.925]) * unit
    fill(skin * 0.85, (-0.022, 0.87), (0.022, 0.87), (0.03, 0.82), (-0.03, 0.82))
    canvas.oval(head, (0.052 * unit, 0.072 * unit), look.lit_colour(hair, _TO_CAMERA, person.z, shade), matter)
    face = head + np.array([person.facing * 0.014, 0.02]) * unit
    canvas.oval(face, (0.042 * unit, 0.05 * unit), look.lit_colour(skin, _TO_CAMERA, person.z, shade))
