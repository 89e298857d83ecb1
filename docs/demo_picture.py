"""Makes ``docs/images/demo.png`` from a finished demo: ``python docs/demo_picture.py runs/demo data/toycity/day``.

Four test scenes, spread evenly over all of them in the order of what the teacher changed, from worse to better: nobody
chose them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import tutelage

OUT = Path(__file__).parent / "images" / "demo.png"
STAGES = ("baseline", "distilled", "teacher")
PLACES = (0.1, 0.375, 0.625, 0.9)
GAP = 6

Pixels = NDArray[np.uint8]


def main(run: Path, city: Path) -> None:
    """Write the picture: image, truth, and what the three nets say, a row a scene."""
    models = [tutelage.load_model(next(run.glob(f"{stage}-*"))) for stage in STAGES]
    palette = np.array(models[0].palette, dtype=np.uint8)
    scenes = []
    for path in sorted((city / "images" / "test").glob("*.png")):
        truth = np.asarray(Image.open(city / "labels" / "test" / path.name))
        said = [model.predict(path).labels for model in models]
        baseline, distilled = (np.mean((one == truth)[truth != 255]) for one in said[:2])
        scenes.append((float(distilled - baseline), path, [truth, *said]))
    scenes.sort(key=lambda scene: scene[0])
    rows = []
    for place in PLACES:
        _, path, maps = scenes[int(place * len(scenes))]
        parts = [np.asarray(Image.open(path).convert("RGB")), *(coloured(one, palette) for one in maps)]
        rows.append(joined(parts, axis=1))
    Image.fromarray(joined(rows, axis=0)).save(OUT, optimize=True)


def coloured(labels: Pixels, palette: Pixels) -> Pixels:
    """A class map in its colours; black where nothing is known."""
    return np.where((labels < len(palette))[..., None], palette[np.minimum(labels, len(palette) - 1)], 0)


def joined(parts: list[Pixels], axis: int) -> Pixels:
    """Pictures side by side or one below the other, with white between them."""
    shape = list(parts[0].shape)
    shape[axis] = GAP
    white = np.full(shape, 255, dtype=np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, white)][:-1], axis=axis)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
