"""Folder trikd: what of it stands so far (the hard-pixel cross-entropy)."""

from __future__ import annotations

import pytest
import torch

from tests.golden.compare import assert_gradient, assert_values, tensor
from tests.golden.conftest import Golden
from tutelage.losses.segmentation import ohem_cross_entropy


@pytest.mark.parametrize("name", ["ohem"])
def test_ohem(golden: Golden, name: str) -> None:
    file = golden(f"trikd/{name}")
    for case in range(sum(key.startswith("logits") for key in file)):
        logits = tensor(file[f"logits{case}"]).requires_grad_()
        loss = ohem_cross_entropy(
            logits,
            tensor(file[f"target{case}"]),
            threshold=float(file[f"thresh{case}"]),
            min_kept=int(file[f"min_kept{case}"]),
        )
        assert_values(loss, file[f"loss{case}"])
        assert_gradient(torch.autograd.grad(loss, logits)[0], file[f"grad{case}"])
