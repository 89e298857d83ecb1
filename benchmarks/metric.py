"""The confusion matrix at 19 classes and 1024x2048, against torchmetrics."""

from __future__ import annotations

from functools import partial

import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from benchmarks.common import HEADER, in_turns, ratio_line
from tutelage.evaluation.confusion import Confusion

CLASSES, HEIGHT, WIDTH = 19, 1024, 2048


def maps(kind: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction and a label: independent noise, or smooth regions that mostly agree, as real ones do."""
    generator = torch.Generator().manual_seed(0)
    if kind == "noise":
        label = torch.randint(0, CLASSES, (1, HEIGHT, WIDTH), generator=generator)
        prediction = torch.randint(0, CLASSES, (1, HEIGHT, WIDTH), generator=generator)
    else:
        coarse = torch.randint(0, CLASSES, (1, HEIGHT // 64, WIDTH // 64), generator=generator)
        label = coarse.repeat_interleave(64, 1).repeat_interleave(64, 2)
        prediction = label.roll((3, 5), (1, 2))
    label[torch.rand(label.shape, generator=generator) < 0.05] = 255
    return prediction.to(dtype), label.to(dtype)


def main(rounds: int = 31) -> None:
    """Print the ratio table."""
    print(f"\n## Confusion matrix ({CLASSES} classes, {HEIGHT}x{WIDTH}, against torchmetrics)\n\n{HEADER}")
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for kind in ("noise", "regions"):
            for dtype in (torch.uint8, torch.int64):
                prediction, label = maps(kind, dtype)
                theirs = MulticlassConfusionMatrix(CLASSES, ignore_index=255, validate_args=False)
                ours = Confusion(CLASSES)
                ours.update(prediction, label)
                theirs.update(prediction.long(), label.long())
                assert torch.equal(ours.matrix, theirs.confmat)
                ways = {
                    "theirs": partial(theirs.update, prediction, label),
                    "ours": partial(ours.update, prediction, label),
                }
                times = in_turns(ways, rounds, warm_up=3)
                name = f"{threads} thread{'s' * (threads > 1)}, {kind}, {str(dtype).removeprefix('torch.')}"
                print(ratio_line(name, times["theirs"], times["ours"]), flush=True)
    torch.set_num_threads(before)


if __name__ == "__main__":
    main()
