"""Relational distillation: how a pixel relates to other pixels, compared between two nets.

Both losses need similarity maps that do not fit in memory (8192 x 8192 for one pair of images of 512 x 1024 at
stride 8). They are computed in blocks of rows, and their gradient is formed in the forward, where the block still
lies in the cache: it is linear in the upstream scalar, so that the backward is one multiplication.

Products run in the dtype of the student's vectors (bfloat16 under mixed precision), everything after them in float32.
Cosine similarities divided by tau lie in +-1/tau, so that exp(x - 1/tau) needs no row maximum.

Legend: B images, g images of a group, P positions, C channels, N rows, M columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Elements of one map of a block: smaller ones starve the matrix products, larger ones leave the cache.
_BLOCK_ELEMENTS = 1 << 21
_LARGEST_HALF = torch.finfo(torch.float16).max
_SMALLEST = 1e-24  # of a squared norm: 1e-12 is the published bound of the norm


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """Vectors of length 1 along ``dim``, in float32; one of length 0 stays 0, and its gradient is 0.

    Numbers that overflowed in float16 count as its largest number.
    """
    if vectors.dtype == torch.float16:
        vectors = vectors.clamp(-_LARGEST_HALF, _LARGEST_HALF)
    vectors = vectors.float()
    squared = vectors.square().sum(dim, keepdim=True)
    return vectors * torch.where(squared > _SMALLEST, squared.clamp(min=_SMALLEST).rsqrt(), 0.0)


def pair_relations(
    student_BPC: Tensor, teacher_BPC: Tensor, temperature: float = 0.1, group_size: int = 4, block: int | None = None
) -> Tensor:
    """Mean over ordered pairs (i, j) of images of a group, and positions p of i, of KL(T_ij[p] || S_ij[p]).

    S_ij = softmax over the positions of j of x_i x_j / tau; rows (B, P, C) must be unit vectors, C may differ. The
    last group may be smaller; groups count by their images. ``block``: rows at once. Without tau^2.
    Source: CIRKD (CVPR 2022), mini-batch pixel-to-pixel, eq. 3 to 5; across groups nothing is compared.
    """
    count = student_BPC.shape[0]
    size = max(1, min(group_size, count))
    losses = []
    for first in range(0, count, size):
        mine, theirs = student_BPC[first : first + size], teacher_BPC[first : first + size]
        loss = _PairRelations.apply(mine, theirs.detach(), temperature, block)  # type: ignore[no-untyped-call]
        losses.append(loss * (mine.shape[0] / count))
    return torch.stack(losses).sum()


class _PairRelations(torch.autograd.Function):
    """The loss of one group. The map is symmetric before the softmax: only its upper half is computed, twice.

    The first round sums exponentials over rows and columns; the second needs them to form both softmaxes of a
    product, that of its row and that of the mirrored element's row.
    """

    @staticmethod
    def forward(ctx: Any, student_gPC: Tensor, teacher_gPC: Tensor, temperature: float, block: int | None) -> Tensor:
        images, positions, channels = student_gPC.shape
        rows = images * positions
        student = student_gPC.reshape(rows, channels)
        teacher = teacher_gPC.reshape(rows, -1).to(student.dtype)
        block = block or max(16, min(positions, _BLOCK_ELEMENTS // max(rows, 1)))
        maps = (_Symmetric(student, images, temperature), _Symmetric(teacher, images, temperature))
        # Blocks do not cross images: a block's columns then divide into whole segments, the first one cut.
        starts = [i * positions + r for i in range(images) for r in range(0, positions, block)]
        stops = [min(start + block, (start // positions + 1) * positions) for start in starts]
        for start, stop in zip(starts, stops, strict=True):
            for relation in maps:
                relation.add_sums(start, stop)
        for relation in maps:
            relation.finish_sums()

        total = student.new_zeros((), dtype=torch.float32)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(student, dtype=torch.float32) if wanted else None
        scale = 1.0 / (images * images * positions)
        mine, theirs = maps
        for start, stop in zip(starts, stops, strict=True):
            logits_S, weight_S = mine.weights(start, stop)
            logits_T, weight_T = theirs.weights(start, stop)
            total += (logits_T.sub_(logits_S)).mul_(weight_T).sum()
            if gradient is not None:
                difference = weight_S.sub_(weight_T).to(student.dtype)
                _add_product(gradient[start:stop], difference, student[start:])
                _add_product(gradient[start:], difference.T, student[start:stop])
        total += mine.log_sums() - theirs.log_sums()
        if gradient is not None:
            ctx.save_for_backward((gradient * (scale / temperature)).to(student_gPC.dtype).view_as(student_gPC))
        return total * scale

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(gradient.dtype), None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product in place; the total is float32, whatever the factors are."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right)


class _Symmetric:
    """Similarities of all rows of a group, divided by tau; softmax over the columns of one image.

    ``sums`` (N, g): the sum of exponentials of a row over the columns of each image.
    """

    def __init__(self, vectors: Tensor, images: int, temperature: float) -> None:
        self.vectors = vectors
        self.scaled = vectors / temperature
        self.images = images
        self.positions = vectors.shape[0] // images
        self.shift = 1.0 / temperature
        self.sums = vectors.new_zeros((vectors.shape[0], images), dtype=torch.float32)
        self.inverse = self.sums

    def product(self, start: int, stop: int) -> Tensor:
        """Similarities of a block of rows to itself and to all rows after it."""
        return torch.mm(self.scaled[start:stop], self.vectors[start:].T).float()

    def add_sums(self, start: int, stop: int) -> None:
        """Add a block's exponentials to the sums of its rows, and of the rows that its columns are."""
        exponentials = self.product(start, stop).sub_(self.shift).exp_()
        image = start // self.positions
        own = (image + 1) * self.positions - start
        self.sums[start:stop, image] += exponentials[:, :own].sum(1)
        if image + 1 < self.images:
            rest = exponentials[:, own:].view(stop - start, -1, self.positions)
            self.sums[start:stop, image + 1 :] += rest.sum(2)
        self.sums[stop:, image] += exponentials[:, stop - start :].sum(0)

    def finish_sums(self) -> None:
        """To be called once all blocks are added."""
        self.inverse = self.sums.reciprocal()

    def weights(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """A block's similarities, and for each the sum of its probability and that of the mirrored element.

        Elements whose mirror lies in the block itself stand for themselves alone.
        """
        logits = self.product(start, stop)
        image = start // self.positions
        own = (image + 1) * self.positions - start
        height = stop - start
        mirrored = self.inverse[start:, image].clone()
        mirrored[:height] = 0
        probability = logits.sub(self.shift).exp_()
        result = probability * mirrored
        rows = self.inverse[start:stop]
        result[:, :own].addcmul_(probability[:, :own], rows[:, image, None])
        if image + 1 < self.images:
            shape = (height, self.images - image - 1, self.positions)
            result[:, own:].view(shape).addcmul_(probability[:, own:].view(shape), rows[:, image + 1 :, None])
        return logits, result

    def log_sums(self) -> Tensor:
        """The sum of all rows' log-sum-exp over each image's columns, less the common shift."""
        return self.sums.log().sum()


def bank_relations(
    student_NC: Tensor,
    teacher_NC: Tensor,
    bank_MC: Tensor,
    valid_N: Tensor | None = None,
    temperature: float = 0.1,
    softening: float = 1.0,
    block: int | None = None,
) -> Tensor:
    """T^2 times the mean over valid rows of KL(softmax(t V / (tau T)) || softmax(s V / (tau T))); 0 if none is valid.

    Unit vectors (N, C) against a bank V (M, C) that gets no gradient; ``softening`` is T. ``valid_N``: which rows
    count. Source: CIRKD (CVPR 2022), memory-based pixel-to-pixel and pixel-to-region, eq. 7 to 12.
    """
    valid = torch.ones_like(student_NC[:, 0], dtype=torch.float32) if valid_N is None else valid_N.float()
    weight = valid / valid.sum().clamp(min=1.0)
    loss: Tensor = _BankRelations.apply(  # type: ignore[no-untyped-call]
        student_NC, teacher_NC.detach(), bank_MC.detach(), weight, temperature * softening, block
    )
    return softening**2 * loss


class _BankRelations(torch.autograd.Function):
    """Weighted sum over rows, in blocks; the gradient is formed beside it."""

    @staticmethod
    def forward(
        ctx: Any,
        student_NC: Tensor,
        teacher_NC: Tensor,
        bank_MC: Tensor,
        weight_N: Tensor,
        temperature: float,
        block: int | None,
    ) -> Tensor:
        rows, columns = student_NC.shape[0], bank_MC.shape[0]
        dtype = student_NC.dtype
        bank = bank_MC.to(dtype)
        teacher = teacher_NC.to(dtype)
        shift = 1.0 / temperature
        block = block or max(16, min(rows, _BLOCK_ELEMENTS // max(columns, 1)))
        gradient = torch.empty_like(student_NC) if ctx.needs_input_grad[0] else None
        losses = []
        for start in range(0, rows, block):
            part = slice(start, min(start + block, rows))
            logits_S = torch.mm(student_NC[part] / temperature, bank.T).float()
            logits_T = torch.mm(teacher[part] / temperature, bank.T).float()
            softmax_S = logits_S.sub(shift).exp_()
            softmax_T = logits_T.sub(shift).exp_()
            sums_S, sums_T = softmax_S.sum(1, keepdim=True), softmax_T.sum(1, keepdim=True)
            softmax_T.div_(sums_T)
            divergence = torch.linalg.vecdot(logits_T.sub_(logits_S), softmax_T)
            losses.append(torch.dot(divergence + (sums_S.log() - sums_T.log())[:, 0], weight_N[part]))
            if gradient is not None:
                difference = softmax_S.div_(sums_S).sub_(softmax_T).mul_(weight_N[part, None] / temperature)
                torch.mm(difference.to(dtype), bank, out=gradient[part])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return torch.stack(losses).sum() if losses else student_NC.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(gradient.dtype), None, None, None, None, None


def rows_of(map_BChw: Tensor) -> Tensor:
    """A map (B, C, h, w) as unit vectors (B, h w, C), one a position."""
    return unit(map_BChw.flatten(2).transpose(1, 2))
