"""Gates of the dual-frequency decoder: half spectra of a centred mask against the complex form of the same mask.

Also the mask of the released code, one bin beside the centre, for which half a spectrum is not enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import in_turns, ratio_line
from tutelage.engine.allocator import keep_freed_memory
from tutelage.nets.frequency import FrequencyChannelAttention
from tutelage.nets.settings import FrequencySettings

# Side, channels: the gates' maps in a hybrid at 512 x 512, and the number of images.
MAPS = ((128, 64), (64, 128), (32, 256))
IMAGES = 2
ROUNDS = 15

Gate = Callable[[Tensor], Tensor]


def complex_gate(map_BCHW: Tensor, weight: Tensor, mask_HW: Tensor) -> Tensor:
    """Weights (B, C, 1, 1) as the method is written: shifted complex spectrum times a shifted mask, modulus, mean."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(map_BCHW), dim=(-2, -1)) * mask_HW
    magnitude = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).abs()
    return torch.sigmoid(F.conv2d(magnitude.mean((-2, -1), keepdim=True), weight))


def forward(gate: Gate, map_BCHW: Tensor) -> None:
    with torch.no_grad():
        gate(map_BCHW)


def both(gate: Gate, map_BCHW: Tensor) -> None:
    map_BCHW = map_BCHW.detach().requires_grad_()
    gate(map_BCHW).sum().backward()  # type: ignore[no-untyped-call]


def main(small: bool = False) -> None:
    """Print both tables. On one thread: on two, waiting for a busy core hides what is measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = measured(((8, 4),) if small else MAPS, 2 if small else ROUNDS)
    finally:
        torch.set_num_threads(threads)
    for ours, about in (("centred", "centred mask"), ("published", "the released code's mask")):
        print(f"\n## A gate on high frequencies, {about} (complex form of the centred mask | tutelage), one thread\n")
        print("| what | complex, shifted | tutelage | ratio | range |")
        print("| --- | --- | --- | --- | --- |")
        print("\n".join(rows[ours]), flush=True)


def measured(maps: Sequence[tuple[int, int]], rounds: int) -> dict[str, list[str]]:
    """Rows of both tables."""
    keep_freed_memory()  # for all sides alike, as in training
    rows: dict[str, list[str]] = {"centred": [], "published": []}
    for side, channels in maps:
        draw = torch.Generator().manual_seed(0)
        map_BCHW = torch.randn(IMAGES, channels, side, side, generator=draw)
        centred = FrequencyChannelAttention(channels, channels, "high")
        published = FrequencyChannelAttention(channels, channels, "high", FrequencySettings(centre="published"))
        published.load_state_dict(centred.state_dict())
        distance = torch.arange(side) - side // 2
        mask_HW = 1 - torch.exp(-(distance.square()[:, None] + distance.square()) / (2 * 10.0**2))
        plain = partial(complex_gate, weight=centred.attn.weight.detach(), mask_HW=mask_HW)
        torch.testing.assert_close(plain(map_BCHW), centred.gate(map_BCHW), rtol=1e-4, atol=1e-4)
        gates: dict[str, Gate] = {"plain": plain, "centred": centred.gate, "published": published.gate}
        for what, run in (("forward", forward), ("forward and backward", both)):
            ways: dict[str, Callable[[], object]] = {name: partial(run, gate, map_BCHW) for name, gate in gates.items()}
            times = in_turns(ways, rounds, warm_up=2)
            name = f"{what}, {IMAGES} x {channels} channels of {side}x{side}"
            for ours in rows:
                rows[ours].append(ratio_line(name, times["plain"], times[ours]))
    return rows


if __name__ == "__main__":
    main()
