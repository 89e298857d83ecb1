"""Mixing of images within a batch, together with their per-pixel maps.

A mask is true where the partner's pixels are pasted. The maps of an image (pseudo label, confidence, validity) are
pasted by the same mask. Draws are functions of a seed and a position; each module has the masks of one paper.
"""

from tutelage.data.mixing.paste import partners, paste

__all__ = ["partners", "paste"]
