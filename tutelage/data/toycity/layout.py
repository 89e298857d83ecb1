"""Layout of a toy street: a pure function of one random generator."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from tutelage.data.toycity.scene import FAR, KERB, Array, Building, Camera, Car, Pedestrian, Pole, Scene, Tree


def smooth_noise(rng: np.random.Generator, cells: tuple[int, int], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Smooth noise: ``cells`` (rows, columns) random values, interpolated to ``size``, roughly in 0..1."""
    coarse = Image.fromarray(rng.random(cells, dtype=np.float32))
    return np.array(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC), dtype=np.float32)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _chance(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


@dataclass
class _Ground:
    """Plan of the street with its occupied rectangles, so that objects do not overlap."""

    kerbs: tuple[float, float]
    widths: tuple[float, float]  # of the two pavements
    crossing: tuple[float, float] | None
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    @property
    def walls(self) -> tuple[float, float]:
        """x of the pavements' outer edges."""
        return self.kerbs[0] - self.widths[0], self.kerbs[1] + self.widths[1]

    def clear(self, z: float, margin: float = 1.5) -> bool:
        """Whether ``z`` is at least ``margin`` metres from the side street."""
        return self.crossing is None or not self.crossing[0] - margin < z < self.crossing[1] + margin

    def claim(self, x: float, z: float, half_x: float, half_z: float) -> bool:
        """Occupy a rectangle if it is free; return whether it was."""
        for other_x, other_z, other_half_x, other_half_z in self.taken:
            if abs(x - other_x) < half_x + other_half_x and abs(z - other_z) < half_z + other_half_z:
                return False
        self.taken.append((x, z, half_x, half_z))
        return True


def _building(rng: np.random.Generator, side: int, x: float, near: float, far: float, height: float) -> Building:
    floor = _between(rng, 2.8, 3.9)
    height = max(1, round(height / floor)) * floor + 0.8
    style = str(rng.choice(["holes", "holes", "holes", "ribbon", "grid", "blank"]))
    low = height < 14 and style in ("holes", "blank")
    return Building(
        side=side,
        x=x,
        near=near,
        far=far,
        depth=_between(rng, 8, 14),
        height=height,
        ridge=_between(rng, 2, 5) * _chance(rng, 0.7) if low else 0.0,
        floor=floor,
        bay=_between(rng, 1.9, 4.2),
        pane=(_between(rng, 0.35, 0.65), _between(rng, 0.42, 0.68)),
        style=style,
        shop=_chance(rng, 0.45),
        awning=_chance(rng, 0.45),
        seed=int(rng.integers(2**32)),
    )


def _row(
    rng: np.random.Generator,
    side: int,
    x: float,
    crossing: tuple[float, float] | None,
    gaps: float,
    lengths: tuple[float, float],
    height: float,
) -> list[Building]:
    """Buildings of one side, from behind the camera to the end of the street."""
    row = []
    z = -8.0
    while z < FAR - 10:
        length = _between(rng, *lengths)
        tall = height * _between(rng, 0.65, 1.5)
        setback = _between(rng, 0, 1.4)
        gap = _between(rng, 2, 11) if _chance(rng, gaps) else 0.0
        end = z + length
        if crossing is not None and z < crossing[1] + 2 and end > crossing[0] - 2:
            if crossing[0] - 2 - z < 5:  # no room left before the side street
                z = crossing[1] + _between(rng, 2, 4)
                continue
            end, gap = crossing[0] - 2, crossing[1] - crossing[0] + 4.5
        row.append(_building(rng, side, x + side * setback, z, min(end, FAR), tall))
        z = end + gap
    return row


def _car(rng: np.random.Generator, x: float, z: float, heading: float, parked: bool) -> Car:
    body = str(rng.choice(["hatch", "hatch", "saloon", "estate", "offroad", "van"]))
    length, width, height = {
        "hatch": (3.9, 1.72, 1.48),
        "saloon": (4.6, 1.8, 1.43),
        "estate": (4.7, 1.82, 1.5),
        "offroad": (4.6, 1.9, 1.75),
        "van": (5.3, 2.0, 2.3),
    }[body]
    stretch = _between(rng, 0.94, 1.06)
    size = (length * stretch, width * _between(rng, 0.96, 1.04), height * _between(rng, 0.95, 1.05))
    return Car(body, x, z, heading + _between(rng, -0.04, 0.04), size, parked)


def _crowns(rng: np.random.Generator) -> Array:
    """Three fields (3, 96, 96) that are positive inside a crown with a ragged edge."""
    v, u = np.mgrid[-1:1:96j, -1:1:96j]
    fields = []
    for kind in range(3):
        noise = (
            0.75 * smooth_noise(rng, (6, 6), (96, 96))
            + 0.55 * smooth_noise(rng, (14, 14), (96, 96))
            + 0.5 * smooth_noise(rng, (36, 36), (96, 96))
            - 0.9
        )
        if kind == 2 and _chance(rng, 0.5):  # a conifer: wider towards the ground
            shape = 0.55 - np.abs(u) / np.maximum(0.5 * (v + 1.02), 0.02) * 0.6 - 3 * np.maximum(v - 0.9, 0)
        else:
            shape = 0.75 - (np.abs(u) ** 2.3 + np.abs(v) ** 2.3)
        border = 8 * np.maximum(np.maximum(np.abs(u), np.abs(v)) - 0.93, 0)  # nothing is cut off by the frame
        fields.append(np.clip(shape + noise - border, -1, 1))
    return np.stack(fields)


def _cars(
    rng: np.random.Generator,
    ground: _Ground,
    lanes: tuple[list[float], list[float]],
    parking: list[float],
    own: float,
) -> list[Car]:
    cars: list[Car] = []

    def add(car: Car) -> None:
        if car.z - car.reach > 2.6 and ground.claim(car.x, car.z, 0.5 * car.size[1] + 0.2, car.reach + 0.3):
            cars.append(car)

    for x in parking:
        z, share = _between(rng, 3, 9), _between(rng, 0.35, 0.9)
        heading = 0.0 if x > 0 or _chance(rng, 0.2) else np.pi
        while z < 85:
            car = _car(rng, x + _between(rng, -0.1, 0.1), z, heading, True)
            if ground.clear(z, 3) and _chance(rng, share):
                add(car)
            z += car.size[0] + _between(rng, 0.6, 1.6)
    for x in lanes[0]:  # oncoming
        z = _between(rng, 5, 30)
        while z < 105:
            add(_car(rng, x + _between(rng, -0.3, 0.3), z, np.pi, False))
            z += _between(rng, 7, 45)
    for x in lanes[1]:  # lane of the camera: cars keep a distance
        z = _between(rng, 9, 40) if abs(x - own) < 1 else _between(rng, 4, 30)
        while z < 105:
            add(_car(rng, x + _between(rng, -0.3, 0.3), z, 0.0, False))
            z += _between(rng, 7, 45)
    crossing = ground.crossing
    if crossing is not None and _chance(rng, 0.6):
        ahead = 1 if _chance(rng, 0.5) else -1
        middle = sum(crossing) / 2 - 0.22 * ahead * (crossing[1] - crossing[0])
        for _ in range(int(rng.integers(1, 3))):
            add(_car(rng, _between(rng, -16, 16), middle, ahead * np.pi / 2, False))
    return cars


def _pedestrian(rng: np.random.Generator, x: float, z: float, base: float) -> Pedestrian:
    child = _chance(rng, 0.12)
    return Pedestrian(
        x=x,
        z=z,
        base=base,
        height=_between(rng, 1.0, 1.4) if child else _between(rng, 1.55, 1.92),
        girth=_between(rng, 0.85, 1.25),
        stride=_between(rng, -1, 1),
        facing=int(rng.integers(-1, 2)),
        skirt=_chance(rng, 0.2),
        bag=_chance(rng, 0.35),
    )


def _built(rng: np.random.Generator, ground: _Ground) -> tuple[list[Building], list[Building], list[Tree]]:
    """Buildings along the street, buildings behind them, and trees where a park replaces buildings."""
    buildings: list[Building] = []
    backdrop: list[Building] = []
    woods: list[Tree] = []
    park = [_chance(rng, 0.14), _chance(rng, 0.14)]
    for i, side in enumerate((-1, 1)):
        height = _between(rng, 6, 20)
        setback = _between(rng, 0, 3) if _chance(rng, 0.3) else 0.0
        row = _row(
            rng, side, ground.walls[i] + side * setback, ground.crossing, _between(rng, 0.05, 0.5), (7, 24), height
        )
        behind = _row(
            rng, side, ground.walls[i] + side * _between(rng, 22, 30), ground.crossing, 0.3, (15, 45), 1.2 * height
        )
        backdrop += behind
        if park[i]:
            for _ in range(24):
                z = _between(rng, 4, FAR) if ground.crossing is None else _between(rng, ground.crossing[1] + 4, FAR)
                x = ground.walls[i] + side * _between(rng, 1.5, 20)
                woods.append(Tree(x, z, 1.2, _between(rng, 1.8, 3.6), _between(rng, 4, 8), int(rng.integers(3)), False))
            end = _between(rng, 25, 110)
            row = [building for building in row if building.near > end]
        buildings += row
    return buildings, backdrop, woods


def _furniture(rng: np.random.Generator, ground: _Ground) -> tuple[list[Tree], list[Pole]]:
    """Trees, bushes and poles on the two pavements."""
    trees: list[Tree] = []
    poles: list[Pole] = []
    for side, kerb, width in zip((-1, 1), ground.kerbs, ground.widths, strict=True):
        planted, lit, posts = _chance(rng, 0.62), _chance(rng, 0.8), _chance(rng, 0.2)
        z, step, tall = _between(rng, 5, 18), _between(rng, 6, 16), _between(rng, 6.5, 9.5)
        grown, shape = _between(rng, 0.8, 1.35), int(rng.integers(3))
        while z < 120:
            x, scale = kerb + side * _between(rng, 0.6, 0.9), grown * _between(rng, 0.75, 1.2)
            other, mirrored = int(rng.integers(3)), _chance(rng, 0.5)
            if planted and width > 2.6 and ground.clear(z) and ground.claim(x, z, 0.3, 0.3):
                kind = shape if z < 60 else other
                trees.append(Tree(x, z, 2.3 * scale, 1.75 * scale, 4.2 * scale, kind, mirrored))
            z += step * _between(rng, 0.7, 1.4)
        z, step = _between(rng, 4, 20), _between(rng, 14, 28)
        while z < 130:
            x = kerb + side * 0.45
            if lit and ground.clear(z) and ground.claim(x, z, 0.2, 0.3):
                poles.append(Pole("lamp", x, z, tall, -side * 1.8))
            z += step
        for _ in range(int(rng.integers(2, 6))):
            x, z, tall = kerb + side * _between(rng, 0.35, 0.8), _between(rng, 4, 45), _between(rng, 2.2, 3.0)
            face = int(rng.integers(4))
            if ground.clear(z) and ground.claim(x, z, 0.3, 0.3):
                poles.append(Pole("sign", x, z, tall, 0.0, face))
        crossing = ground.crossing
        if crossing is not None and _chance(rng, 0.7):
            poles.append(Pole("light", kerb + side * 0.4, crossing[0] - 1.8, _between(rng, 3.2, 3.8), 0.0))
            poles.append(Pole("light", kerb + side * 0.4, crossing[1] + 1.8, _between(rng, 3.2, 3.8), 0.0))
        z = _between(rng, 4, 8)
        while posts and z < 34:
            if ground.clear(z) and ground.claim(kerb + side * 0.3, z, 0.2, 0.2):
                poles.append(Pole("bollard", kerb + side * 0.3, z, 0.95, 0.0))
            z += 1.9
        for _ in range(int(rng.integers(0, 5))):  # bushes before the walls
            x, z, radius = kerb + side * (width - 0.5), _between(rng, 5, 60), _between(rng, 0.5, 1.0)
            mirrored, kind = _chance(rng, 0.5), int(rng.integers(2))
            if ground.clear(z) and ground.claim(x, z, radius, radius):
                trees.append(Tree(x, z, 0.0, radius, 1.6 * radius, kind, mirrored))
    return trees, poles


def _people(rng: np.random.Generator, ground: _Ground, zebra: float | None) -> list[Pedestrian]:
    """People alone and in groups, most of them on the pavements."""
    (left, right), walls = ground.kerbs, ground.walls
    pedestrians: list[Pedestrian] = []
    for _ in range(int(rng.integers(3, 11)) if _chance(rng, 0.94) else 0):
        side = int(rng.integers(2))
        kerb, width = ground.kerbs[side], ground.widths[side]
        x = kerb + (2 * side - 1) * _between(rng, 0.4, width - 0.35)
        z = 4.5 + float(rng.gamma(1.5, 7.0))
        base = KERB
        if _chance(rng, 0.16):  # somebody crosses the road
            x, base = _between(rng, left, right), 0.0
            z = zebra + _between(rng, 0.5, 2.5) if zebra is not None and zebra > 5 else max(z, 8.0)
        bounds = ((walls[0], left), (right, walls[1]))[side] if base else (left, right)
        for _ in range(int(rng.choice([1, 1, 2, 3]))):
            person = _pedestrian(rng, x, z, base if ground.clear(z) else 0.0)
            if z < 90 and ground.claim(x, z, 0.3, 0.3):
                pedestrians.append(person)
            x = min(max(x + _between(rng, -0.9, 0.9), bounds[0] + 0.3), bounds[1] - 0.3)
            z = max(z + _between(rng, -0.8, 0.8), 4.0)
    return pedestrians


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a street; the order of draws from the generator is fixed."""
    lane = _between(rng, 2.8, 3.5)
    ours, theirs = int(rng.integers(1, 3)), int(rng.choice([0, 1, 1, 1, 2]))
    parked = (_chance(rng, 0.55), _chance(rng, 0.55))
    left = -theirs * lane - 2.2 * parked[0] - 0.4
    right = ours * lane + 2.2 * parked[1] + 0.4
    own_lane = lane * (int(rng.integers(0, ours)) + 0.5)
    tight = _chance(rng, 0.55)
    camera = Camera(
        height=_between(rng, 1.3, 1.9),
        horizon=_between(rng, 0.38, 0.54),
        focal=_between(rng, 0.75, 1.05),
        lateral=own_lane + _between(rng, -0.5, 0.5),
        bend=_between(rng, -1, 1) / (2500 if tight else 420),
    )
    widths = (_between(rng, 2.4, 6.2), _between(rng, 2.4, 6.2))
    crossing = None
    if _chance(rng, 0.45):
        start = _between(rng, 14, 50)
        crossing = (start, start + _between(rng, 6.5, 10))
    zebra = None
    if _chance(rng, 0.35):
        zebra = crossing[0] - 4.2 if crossing else _between(rng, 8, 35)

    ground = _Ground((left, right), widths, crossing)
    markings = [(left + 0.4 + 2.2 * parked[0], "solid" if _chance(rng, 0.6) else "dashed")]
    markings += [(lane * i, "dashed") for i in range(1 - theirs, ours) if i != 0]
    if theirs:
        markings.append((0.0, str(rng.choice(["dashed", "dashed", "solid", "double"]))))
    markings.append((right - 0.4 - 2.2 * parked[1], "solid" if _chance(rng, 0.6) else "dashed"))
    if _chance(rng, 0.15):
        markings = []  # a small street without markings
    dashes = (_between(rng, 2.5, 4), _between(rng, 3, 6), _between(rng, 0, 6), _between(rng, 0.06, 0.09))

    buildings, backdrop, woods = _built(rng, ground)
    edges = np.sort(rng.uniform(-1.6, 1.6, 40))
    skyline = np.stack(
        [edges, edges + rng.uniform(0.05, 0.2, 40), rng.uniform(4, 22, 40), (rng.random(40) < 0.4).astype(float)],
        axis=1,
    )

    parking = [x for x, used in ((left + 1.3, parked[0]), (right - 1.3, parked[1])) if used]
    lanes = ([-lane * (i + 0.5) for i in range(theirs)], [lane * (i + 0.5) for i in range(ours)])
    cars = _cars(rng, ground, lanes, parking, own_lane)

    trees, poles = _furniture(rng, ground)
    pedestrians = _people(rng, ground, zebra)
    return Scene(
        camera=camera,
        kerbs=(left, right),
        walls=ground.walls,
        markings=tuple(markings),
        dashes=dashes,
        crossing=crossing,
        zebra=zebra,
        buildings=tuple(buildings),
        backdrop=tuple(backdrop),
        woods=tuple(woods),
        skyline=skyline,
        trees=tuple(trees),
        poles=tuple(poles),
        cars=tuple(cars),
        pedestrians=tuple(pedestrians),
        crowns=_crowns(rng),
        clouds=0.6 * smooth_noise(rng, (6, 8), (64, 128)) + 0.4 * smooth_noise(rng, (16, 20), (64, 128)),
        bonnet=(_between(rng, 0.04, 0.11), _between(rng, 0.2, 0.9)) if _chance(rng, 0.3) else None,
    )
