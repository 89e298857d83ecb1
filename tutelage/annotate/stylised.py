"""A stylised copy of a data set: each image in the style of an image of the target, drawn by seed and name.

What an image becomes depends on the seed, its name and its style alone, and not on the order of work. Every finished
image is a whole file, so that a run that was killed goes on with the next one.
"""

# Legend: H W pixels.

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.annotate.net_outputs import OnUnreadable
from tutelage.data.copies import CopyFolder
from tutelage.data.dataset import Dataset
from tutelage.data.draws import generator
from tutelage.data.settings import StyleSettings
from tutelage.data.stylise import stylise
from tutelage.engine import collectives
from tutelage.errors import DataError

_TRIES = 20
_AHEAD = 4


def stylise_dataset(
    source: Dataset,
    target: Dataset,
    root: Path,
    settings: StyleSettings,
    *,
    seed: int,
    device: torch.device,
    on_unreadable: OnUnreadable = "error",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Path], list[str]]:
    """Write a copy of every image of ``source`` into ``root``; all files, and the names of images left out.

    Raises :class:`DataError` for an image that cannot be read. With ``skip`` an image of the source is left out, and
    for one of the target another is drawn. With several processes each makes its share; the files are the same.
    """
    if not len(target):
        raise DataError(
            "dataset-empty", f"{target.name} has no image whose style could be used", "check its list or folder"
        )
    folder = CopyFolder(root)
    mine = list(range(len(source)))[collectives.rank() :: collectives.world()]
    todo = [index for index in mine if not folder.image(source.samples[index].name).is_file()]
    with ThreadPoolExecutor(2) as reader, ThreadPoolExecutor(1) as writer:

        def read(index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], str] | None:
            try:
                image = source.image(index)
            except DataError:
                if on_unreadable == "error":
                    raise
                return None
            return image, *_style(target, source.samples[index].name, seed, on_unreadable)

        pending = [reader.submit(read, index) for index in todo[:_AHEAD]]
        written: list[Future[None]] = []
        for number, index in enumerate(todo):
            found = pending.pop(0).result()
            if number + _AHEAD < len(todo):
                pending.append(reader.submit(read, todo[number + _AHEAD]))
            if found is not None:
                image_HW3, style_HW3, style = found
                styled_HW3 = _stylised(image_HW3, style_HW3, settings, device)
                written.append(writer.submit(folder.write, source.samples[index].name, styled_HW3, style))
            if len(written) > _AHEAD:
                written.pop(0).result()
            progress(len(mine) - len(todo) + number + 1, len(mine))
        for waiting in written:
            waiting.result()
    collectives.barrier()
    names = [sample.name for sample in source.samples]
    made = [name for name in names if folder.image(name).is_file()]
    files = [] if collectives.rank() else folder.finish(made)
    return files, sorted(set(names) - set(made))


def style_of(name: str, count: int, seed: int, attempt: int = 0) -> int:
    """The number of the target image, of ``count``, whose style the image ``name`` takes."""
    return int(generator(seed, name, "style", 0, attempt).integers(count))


def _style(target: Dataset, name: str, seed: int, on_unreadable: OnUnreadable) -> tuple[NDArray[np.uint8], str]:
    """The image whose style ``name`` takes, and that image's name."""
    for attempt in range(_TRIES):
        try:
            index = style_of(name, len(target), seed, attempt)
            return target.image(index), target.samples[index].name
        except DataError:
            if on_unreadable == "error":
                raise
    raise DataError(
        "image-unreadable",
        f"{_TRIES} images of {target.name} in a row cannot be read (styles for {name})",
        "run `tutelage check` on them",
    )


def _stylised(
    image_HW3: NDArray[np.uint8], style_HW3: NDArray[np.uint8], settings: StyleSettings, device: torch.device
) -> NDArray[np.uint8]:
    tensors = (torch.from_numpy(np.array(each)).to(device) for each in (image_HW3, style_HW3))
    image, style = (each.permute(2, 0, 1)[None].float().div_(255) for each in tensors)
    styled_3HW = stylise(image, style, settings)[0].clamp(0, 1).mul(255).round()
    return np.asarray(styled_3HW.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy())
