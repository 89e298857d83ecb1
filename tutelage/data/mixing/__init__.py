"""Mixing images of a batch with one another, and everything that belongs to their pixels.

A mask says where the partner shows. Whatever lies over an image (its pseudo label, its confidence, where it is padding)
is pasted by the same mask. Draws are functions of a seed and a position; each file holds one paper's masks.
"""

from tutelage.data.mixing.paste import partners, paste

__all__ = ["partners", "paste"]
