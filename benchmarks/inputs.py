"""Images per second and core through the input pipeline, against torchvision's v2 transforms on the same operations."""

from __future__ import annotations

import torch

from benchmarks.common import HEADER, in_turns, ratio_line, street_data
from benchmarks.plain import Images, transforms
from tutelage.data.augmentation import AugmentSettings
from tutelage.data.settings import ColourSettings, ViewSettings
from tutelage.data.stream import LoaderSettings, Stream

IMAGES, CROP = 64, 256


def main(rounds: int = 7) -> None:
    """Print the ratio table."""
    torch.set_num_threads(1)
    data, name = street_data()
    train = data["train"]
    plain = Images(train, transforms(CROP, (0.5, 2.0), [0.5] * 3, [0.5] * 3, train=True))
    colour = ColourSettings(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05)

    def stream(cache: str) -> Stream:
        augment = AugmentSettings(crop=(CROP, CROP), scale=(0.5, 2.0), flip=0.5)
        views = {"weak": ViewSettings(colour=colour)}
        return Stream("s", [train], 0, 8, views, augment, loader=LoaderSettings(cache=cache))  # type: ignore[arg-type]

    def ours(source: Stream) -> None:
        for start in range(0, IMAGES, 8):
            batch = [source.load(position) for position in range(start, start + 8)]
            source.collate(batch).render(torch.device("cpu"))

    def theirs() -> None:
        for start in range(0, IMAGES, 8):
            batch = [plain[index] for index in range(start, start + 8)]
            torch.stack([image for image, _ in batch]), torch.stack([mask for _, mask in batch])

    uncached, cached = stream("none"), stream("memory")
    ways = {"theirs": theirs, "ours": lambda: ours(uncached), "cached": lambda: ours(cached)}
    times = {way: [seconds / IMAGES for seconds in spent] for way, spent in in_turns(ways, rounds).items()}
    print(f"\n## Input pipeline on one core ({name}; seconds per image)\n")
    print(f"Decode, scale by 0.5 to 2, crop {CROP}x{CROP}, flip, change colours.\n\n{HEADER}")
    print(ratio_line("decoding every time", times["theirs"], times["ours"]))
    print(ratio_line("decoded images cached in memory", times["theirs"], times["cached"]), flush=True)


if __name__ == "__main__":
    main()
