"""Canvas of a scene: a colour image and a material image at twice the image's resolution.

Every shape is filled in both images at once, so that the label matches the visible shapes to the pixel. Colours are
averaged down to the image's size (antialiased edges), while each label pixel is one sample of the material image (sharp
edges). Details within an existing shape (frames, lights) are painted in colour alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from tutelage.data.toycity.appearance import Appearance, Colour
from tutelage.data.toycity.scene import Array, Scene

MATERIALS = (
    "sky", "road", "marking", "pavement", "kerb", "plaster", "brick", "glass", "leaves", "bark", "post", "car",
    "tyre", "person", "bonnet",
)  # fmt: skip
MATTER = {name: i for i, name in enumerate(MATERIALS)}
FINER = 2  # how many samples a pixel has, in each direction
NEAREST = 0.8  # metres; nothing is projected from nearer


class Canvas:
    """Colour and material images of one scene with its camera; positions are in metres, results in samples."""

    def __init__(self, scene: Scene, look: Appearance, size: tuple[int, int]) -> None:
        self.scene, self.look, self.size = scene, look, size
        self.height, self.width = size[0] * FINER, size[1] * FINER
        camera = scene.camera
        # Another aspect ratio shows more or less of the sides; the scene is not distorted.
        self.focal = camera.focal * max(self.height, self.width / 2)
        self.horizon = camera.horizon * self.height
        self.middle = self.width / 2
        self.colours = Image.new("RGB", (self.width, self.height))
        self.matter = Image.new("L", (self.width, self.height))
        self._draw_colour = ImageDraw.Draw(self.colours)
        self._draw_matter = ImageDraw.Draw(self.matter)
        # Shadows and glow are soft, so both can have a coarser resolution than the image.
        self.shadows = Image.new("L", (max(1, size[1]), max(1, size[0])))
        self.glow = Image.new("RGB", (max(1, size[1] // 2), max(1, size[0] // 2)))
        self.pools = Image.new("RGB", self.glow.size)
        self.crowns: dict[tuple[int, bool], tuple[Image.Image, Image.Image]] = {}  # filled by the painter of trees
        self._draw_shadows = ImageDraw.Draw(self.shadows)
        self._draw_glow = ImageDraw.Draw(self.glow)
        self._draw_pools = ImageDraw.Draw(self.pools)

    def project(self, x: npt.ArrayLike, y: npt.ArrayLike, z: npt.ArrayLike) -> Array:
        """Project points in metres, broadcast together, to samples (..., 2)."""
        camera = self.scene.camera
        far = np.maximum(z, NEAREST)
        across = (np.asarray(x) - camera.lateral) / far + 0.5 * camera.bend * far
        down = (camera.height - np.asarray(y)) / far
        points = np.empty((*np.broadcast(across, down).shape, 2))
        points[..., 0] = across * self.focal + self.middle
        points[..., 1] = down * self.focal + self.horizon
        return points

    def scale(self, z: float) -> float:
        """Samples per metre at ``z`` metres."""
        return self.focal / max(z, NEAREST)

    def visible(self, points: Array) -> bool:
        """Whether the bounding box of points (n, 2) overlaps the image."""
        across: list[float]
        down: list[float]
        across, down = points.T.tolist()
        return min(across) < self.width and max(across) >= 0 and min(down) < self.height and max(down) >= 0

    def fill(self, points: Array, colour: Colour, matter: int | None = None) -> None:
        """Fill a polygon (n, 2); without ``matter`` only its colour, as a detail of an existing shape."""
        flat = points.ravel().tolist()
        self._draw_colour.polygon(flat, fill=colour)
        if matter is not None:
            self._draw_matter.polygon(flat, fill=matter)

    def fill_many(self, shapes: Array, colours: Array, matter: int | None = None) -> None:
        """Fill quadrilaterals (n, 4, 2) with colours (n, 3); skips those that are too small or not visible."""
        low, high = shapes.min(axis=1), shapes.max(axis=1)
        seen = (low[:, 0] < self.width) & (low[:, 1] < self.height) & (high[:, 0] >= 0) & (high[:, 1] >= 0)
        seen &= (high - low > (0.6, 1.2)).all(axis=1)
        flat = shapes[seen].reshape(-1, 8).tolist()
        for points, (red, green, blue) in zip(flat, np.clip(colours[seen], 0, 255).astype(int).tolist(), strict=True):
            self._draw_colour.polygon(points, fill=(red, green, blue))
            if matter is not None:
                self._draw_matter.polygon(points, fill=matter)

    def oval(self, centre: Array, radius: tuple[float, float], colour: Colour, matter: int | None = None) -> None:
        """Fill an upright ellipse; centre and radii in samples."""
        box = (centre[0] - radius[0], centre[1] - radius[1], centre[0] + radius[0], centre[1] + radius[1])
        self._draw_colour.ellipse(box, fill=colour)
        if matter is not None:
            self._draw_matter.ellipse(box, fill=matter)

    def shadow(self, points: Array, depth: int) -> None:
        """Darken the ground under a polygon (n, 2) in samples; 255 is the deepest."""
        self._draw_shadows.polygon((points / FINER).ravel().tolist(), fill=depth)

    def soften_shadows(self, metres: float) -> None:
        """Blur the shadows drawn so far to edges of ``metres`` width at a medium distance."""
        self.shadows = self.shadows.filter(ImageFilter.BoxBlur(metres * self.scale(14.0) / FINER))
        self._draw_shadows = ImageDraw.Draw(self.shadows)

    def shade_at(self, x: float, z: float) -> float:
        """Shadow depth of the ground at a point, 0..1; 0 if not visible."""
        across, down = self.project(x, 0.0, z) / FINER
        if not (0 <= across < self.size[1] and 0 <= down < self.size[0]):
            return 0.0
        value = self.shadows.getpixel((int(across), int(down)))
        return float(value) / 255 if isinstance(value, int | float) else 0.0

    def shine(self, centre: Array, radius: float, colour: Colour) -> None:
        """Add a light source at ``centre``, ``radius`` in samples, with a glow over everything."""
        across, down = centre / (2 * FINER)
        radius = max(radius / (2 * FINER), 0.4)
        self._draw_glow.ellipse((across - radius, down - radius, across + radius, down + radius), fill=colour)

    def pool(self, points: Array, colour: Colour) -> None:
        """Light the ground within a polygon (n, 2) in samples."""
        self._draw_pools.polygon((points / (2 * FINER)).ravel().tolist(), fill=colour)

    def paste(self, box: tuple[int, int, int, int], colours: Image.Image, mask: Image.Image, matter: int) -> None:
        """Paste an image into ``box`` (left, top, right, bottom) where ``mask`` is set."""
        self.colours.paste(colours, box, mask)
        self.matter.paste(matter, box, mask)
