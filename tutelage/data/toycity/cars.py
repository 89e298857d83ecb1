"""Painter of cars: a side outline extruded to the car's width; panels that face the camera are visible."""

from __future__ import annotations

import numpy as np

from tutelage.data.toycity.appearance import Colour, as_colour
from tutelage.data.toycity.canvas import MATTER, NEAREST, Canvas
from tutelage.data.toycity.scene import Array, Car

_TO_CAMERA = (0.0, 0.0, -1.0)
_ROUND = np.linspace(0, 2 * np.pi, 14, endpoint=False)

# A car's outline from the rear bumper over the roof to the front: fraction of length, fraction of height, and kind of
# the panel from this point to the next.
_BODIES: dict[str, tuple[tuple[float, float, str], ...]] = {
    "hatch": (
        (-0.5, 0.16, "tail"), (-0.5, 0.6, "glass"), (-0.4, 0.96, "body"), (-0.15, 1.0, "body"), (0.06, 0.97, "glass"),
        (0.27, 0.62, "body"), (0.46, 0.53, "body"), (0.5, 0.42, "nose"), (0.5, 0.16, ""),
    ),
    "saloon": (
        (-0.5, 0.16, "tail"), (-0.5, 0.62, "body"), (-0.35, 0.66, "glass"), (-0.2, 0.97, "body"), (0.08, 1.0, "glass"),
        (0.26, 0.65, "body"), (0.47, 0.54, "body"), (0.5, 0.42, "nose"), (0.5, 0.16, ""),
    ),
    "estate": (
        (-0.5, 0.16, "tail"), (-0.5, 0.6, "glass"), (-0.45, 0.97, "body"), (0.08, 1.0, "glass"), (0.26, 0.64, "body"),
        (0.47, 0.54, "body"), (0.5, 0.4, "nose"), (0.5, 0.16, ""),
    ),
    "offroad": (
        (-0.5, 0.2, "tail"), (-0.5, 0.58, "glass"), (-0.46, 0.97, "body"), (0.1, 1.0, "glass"), (0.22, 0.62, "body"),
        (0.47, 0.56, "body"), (0.5, 0.42, "nose"), (0.5, 0.2, ""),
    ),
    "van": (
        (-0.5, 0.12, "tail"), (-0.5, 0.97, "body"), (-0.45, 1.0, "body"), (0.22, 1.0, "glass"), (0.38, 0.58, "body"),
        (0.48, 0.48, "nose"), (0.5, 0.12, ""),
    ),
}  # fmt: skip


def on_ground(car: Car, along: Array, right: Array) -> Array:
    """World points (n, 2) as (x, z) from a car's own coordinates in metres: ``along`` to its front, ``right`` of it."""
    sine, cosine = np.sin(car.heading), np.cos(car.heading)
    points: Array = np.stack([car.x + along * sine + right * cosine, car.z + along * cosine - right * sine], axis=-1)
    return points


def paint_car(canvas: Canvas, car: Car, rng: np.random.Generator) -> None:
    """Paint a car: the panels that face the camera, far ones first."""
    look, camera = canvas.look, canvas.scene.camera
    paint = look.cars[int(rng.integers(len(look.cars)))] * rng.uniform(0.85, 1.15) + rng.normal(0, 4, 3)
    pane = look.panes[int(rng.integers(len(look.panes)))] * 0.8
    plain = rng.random() < 0.5
    length, width, height = car.size
    reach = car.reach + 0.5
    near = max(car.z - reach, NEAREST)
    frame = canvas.project(car.x + np.array([-reach, reach]), [0.0, height], near)
    frame = np.concatenate([frame, canvas.project(car.x + np.array([-reach, reach]), [0.0, height], car.z + reach)])
    if not canvas.visible(frame):
        return
    shade = 0.8 * canvas.shade_at(car.x, car.z)
    outline = _BODIES[car.body]
    kinds = [kind for _, _, kind in outline]
    along = np.array([a for a, _, _ in outline]) * length
    up = np.array([u for _, u, _ in outline]) * height
    half = 0.5 * width * (1 - np.clip(up / height - 0.6, 0, 1) * (0.15 if car.body == "van" else 0.45))
    ground = np.stack([on_ground(car, along, -half), on_ground(car, along, half)])  # (2 sides, n, 2)
    points = canvas.project(ground[..., 0], up, ground[..., 1])
    fine = canvas.scale(car.z) * height > 20
    forward = np.array([np.sin(car.heading), np.cos(car.heading)])
    rightward = np.array([np.cos(car.heading), -np.sin(car.heading)])
    body, tyre = MATTER["car"], MATTER["tyre"]

    def lit(colour: Array, normal: tuple[float, float, float]) -> Colour:
        return look.lit_colour(colour, normal, car.z, shade)

    rubber = lit(np.array([28.0, 28, 30]), _TO_CAMERA)
    for tread in _treads(canvas, car):
        canvas.fill(tread, rubber, tyre)

    step, rise = np.diff(along), np.diff(up)
    normals = np.stack([-rise * forward[0], step, -rise * forward[1]], axis=-1) / np.hypot(step, rise)[:, None]
    middles = 0.5 * (ground[:, 1:] + ground[:, :-1]).mean(axis=0) - (camera.lateral, 0.0)
    facing = normals[:, 0] * middles[:, 0] + normals[:, 2] * middles[:, 1]
    facing += normals[:, 1] * (0.5 * (up[1:] + up[:-1]) - camera.height)
    for i in np.argsort(-np.hypot(middles[:, 0], middles[:, 1])).tolist():
        if facing[i] >= 0:
            continue
        normal = tuple(normals[i].tolist())
        quad = np.array([points[0, i], points[0, i + 1], points[1, i + 1], points[1, i]])
        if kinds[i] == "glass":
            canvas.fill(quad, lit(paint * 0.8, normal), body)
            mirror = look.lit_colours(pane, normal, car.z, shade) * 0.75 + 0.22 * look.sky[1] * max(normal[1], 0.2)
            canvas.fill(_inset(quad, 0.09), as_colour(mirror))
        else:
            canvas.fill(quad, lit(paint, normal), body)
        if fine and kinds[i] in ("tail", "nose"):
            _paint_end(canvas, car, quad, kinds[i], look.cars[0], plain)

    for side, sign in ((0, -1.0), (1, 1.0)):
        outward = sign * rightward
        place = np.array([car.x, car.z]) + outward * 0.5 * width
        if np.dot(outward, place - (camera.lateral, 0.0)) >= 0:
            continue
        normal = (float(outward[0]), 0.0, float(outward[1]))
        canvas.fill(points[side], lit(paint * 0.92, normal), body)
        cabin = up > 0.57 * height
        if car.body == "van":
            cabin &= along > 0.1 * length
        glass = points[side][cabin]
        if car.body == "van":  # only the cab has windows
            back = on_ground(car, np.array([0.12, 0.12]) * length, sign * half[0] * np.array([1.0, 0.94]))
            glass = np.concatenate([canvas.project(back[:, 0], [0.58 * height, height], back[:, 1]), glass])
        if len(glass) > 2:
            canvas.fill(_inset(glass, 0.13), lit(pane * 0.9, normal))
        if fine and car.body != "van":
            post = on_ground(car, np.array([-0.1, -0.1, -0.075, -0.075]) * length, np.full(4, sign * 0.95 * half[0]))
            canvas.fill(canvas.project(post[:, 0], np.array([0.6, 0.95, 0.95, 0.6]) * height, post[:, 1]),
                        lit(paint * 0.85, normal))  # fmt: skip
        if fine:
            sill = on_ground(car, np.array([-0.48, 0.48, 0.48, -0.48]) * length, np.full(4, sign * half[0]))
            canvas.fill(canvas.project(sill[:, 0], np.array([0.16, 0.16, 0.24, 0.24]) * height, sill[:, 1]),
                        lit(paint * 0.55, normal))  # fmt: skip
        for axle in (0.31, -0.31):
            hub = on_ground(car, axle * length + 0.34 * np.cos(_ROUND), np.full(len(_ROUND), sign * 0.5 * width))
            rim = canvas.project(hub[:, 0], 0.34 + 0.34 * np.sin(_ROUND), hub[:, 1])
            canvas.fill(rim, rubber, tyre)
            if fine:
                canvas.fill(
                    rim.mean(axis=0) + 0.58 * (rim - rim.mean(axis=0)), lit(np.array([150.0, 152, 155]), normal)
                )


def _treads(canvas: Canvas, car: Car) -> Array:
    """Visible parts of the tyres under the body (4, 4, 2), far ones first."""
    length, width, _ = car.size
    axles, sides = np.array([0.31, 0.31, -0.31, -0.31]) * length, np.array([-1.0, 1, -1, 1]) * width
    inner, outer = on_ground(car, axles, 0.36 * sides), on_ground(car, axles, 0.5 * sides)
    z = np.minimum(inner[:, 1], outer[:, 1]) - 0.12
    order = np.argsort(-z)
    x = np.stack([inner[:, 0], inner[:, 0], outer[:, 0], outer[:, 0]], axis=-1)[order]
    return canvas.project(x, np.array([0.03, 0.5, 0.5, 0.03]), z[order, None])


def _inset(points: Array, share: float) -> Array:
    """A polygon shrunk towards its centre."""
    middle = points.mean(axis=0)
    drawn_in: Array = middle + (1 - 2 * share) * (points - middle)
    return drawn_in


def _paint_end(canvas: Canvas, car: Car, quad: Array, kind: str, plate: Array, plain: bool) -> None:
    """Paint lights and number plate on a tail or nose, given as (left bottom, left top, right top, right bottom)."""
    look = canvas.look
    bottom_left, top_left, top_right, bottom_right = quad if kind == "tail" else quad[[1, 0, 3, 2]]

    # Lamps have the same height on any body.
    tall = 0.42 if car.body == "van" and kind == "tail" else 1.0

    def patch(left: float, right: float, bottom: float, top: float) -> Array:
        across, up = np.array([[left], [left], [right], [right]]), np.array([[bottom], [top], [top], [bottom]]) * tall
        low = bottom_left + (bottom_right - bottom_left) * across
        high = top_left + (top_right - top_left) * across
        points: Array = low + (high - low) * up
        return points

    burning = look.lamps > 0 and not car.parked
    canvas.fill(patch(0.0, 1.0, 0.0, 0.22), look.lit_colour(np.array([45.0, 46, 48]), _TO_CAMERA, car.z))
    canvas.fill(patch(0.36, 0.64, 0.3, 0.46), look.lit_colour(plate * 0.95, _TO_CAMERA, car.z))
    if kind == "nose":
        canvas.fill(patch(0.3, 0.7, 0.5, 0.8), look.lit_colour(np.array([40.0, 42, 46]), _TO_CAMERA, car.z))
    for left, right in ((0.04, 0.17), (0.83, 0.96)):
        lamp = patch(left, right, 0.6, 0.85 if plain else 0.97)
        if kind == "tail":
            colour = as_colour(np.array([255.0, 40, 30])) if burning else look.lit_colour(
                np.array([150.0, 25, 25]), _TO_CAMERA, car.z)  # fmt: skip
        else:
            colour = as_colour(np.array([255.0, 250, 230])) if burning else look.lit_colour(
                np.array([200.0, 205, 210]), _TO_CAMERA, car.z)  # fmt: skip
        canvas.fill(lamp, colour)
        if burning:
            glow = np.array([190.0, 30, 20]) if kind == "tail" else np.array([255.0, 245, 215])
            canvas.shine(lamp.mean(axis=0), (0.1 if kind == "tail" else 0.16) * canvas.scale(car.z),
                         as_colour(glow * look.lamps))  # fmt: skip
