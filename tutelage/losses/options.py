"""Choices that losses offer, as types that settings can name without importing torch."""

from __future__ import annotations

from typing import Literal

ResizeRule = Literal["grid", "centers", "corners"]
"""How logits (h, w) lie on an image (H, W).

``grid``: each logit covers stride x stride pixels from the top left; bilinear by exactly that factor, then cropped.
Exact for nets that pad the image at the bottom and at the right to a multiple of their stride.
``centers``: the grid is stretched over the image by its pixels' outer edges (``align_corners=False``).
``corners``: the grid's corner pixels lie on the image's corner pixels (``align_corners=True``).
"""


SMALLEST_TEMPERATURE = 0.03
"""Below it, exp(-2 / tau) vanishes in float32: a row could sum to 0."""


Reduction = Literal["all", "valid"]
"""Divisor of the sum over labelled positions: all positions, as published (few labels make a small loss), or
those with a label."""


Regularizer = Literal["mrkld", "mrent"]
"""KL divergence from the uniform distribution, up to a constant; or the negative entropy (CRST, ICCV 2019)."""


DivergenceForm = Literal["log", "code"]
"""KL(teacher || student); or, a defect of ProDA's code, the student's probabilities in place of their logarithms."""


AttentionResize = Literal["published", "spatial", "pool"]
"""How attention (N, N) of the student meets attention (M, M) of the transformer.

``published``: the student's logits as a picture of N x N pixels, bilinear to M x M (``align_corners=True``). Neighbours
in a row of that picture are neighbours along a line of the image, but the end of a line meets the start of the next.
``spatial``: the same in the image: the keys of each query as a map (h, w), bilinear to (H, W); then the queries.
``pool``: the other way round: the transformer's probabilities on the student's grid, summed over the keys of a cell,
averaged over its queries. By far the cheapest where N < M.
"""


Mean = Literal["elements", "rows"]
"""Over what a divergence of rows of attention is a mean: all their elements, as published, or the rows."""


Indexing = Literal["corrected", "published"]


NegativeRule = Literal["paper", "published"]


OneHot = Literal["correct", "published"]
