"""The grid on which ProDA compares maps: a cell for every few pixels of a view, coarser than the view itself."""

# Legend: B images, C channels, H W pixels of a view, N N a net's grid, h w the grid.

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from tutelage.data.batch import View
from tutelage.losses.options import ResizeRule
from tutelage.losses.resize import resize_logits


@dataclass(frozen=True)
class TargetGrid:
    """A cell is ``pixels`` wide and high; maps are resized to it by ``rule``, as logits to images."""

    pixels: int
    rule: ResizeRule

    def size(self, view: View) -> tuple[int, int]:
        """Its height and width over a view, in whole cells."""
        height, width = view.image.shape[2:]
        return max(height // self.pixels, 1), max(width // self.pixels, 1)

    def bring(self, maps_BCNN: Tensor, view: View, stride: int) -> Tensor:
        """A net's maps of a view, bilinear: (B, C, h, w)."""
        rule = self.rule
        if rule == "grid" and stride % self.pixels:
            rule = "centers"  # cells do not come together evenly
        return resize_logits(maps_BCNN, self.size(view), rule, stride // self.pixels)

    def valid(self, view: View) -> Tensor:
        """Which cells show no padding in their middle: (B, h, w) bool."""
        return F.interpolate(view.valid[:, None].float(), self.size(view), mode="nearest-exact")[:, 0] > 0
