"""What compilers make of a net: `torch.compile` for training, `torch.export` for other runtimes."""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
from torch import Tensor

from tutelage.nets.build import build
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings

COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


@pytest.fixture
def net() -> Segmentor:
    return build(NetSettings(encoder="test_efficientnet", decoder="lraspp", width=16), 5, seed=0)


def test_exported_at_an_odd_size_a_net_gives_the_same_logits(net: Segmentor) -> None:
    net.eval()
    image = torch.rand(1, 3, 37, 51, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        program = torch.export.export(net, (image,))
        exported, eager = program.module()(image), net(image)
    assert eager.logits.shape[:2] == (1, 5)
    torch.testing.assert_close(exported.logits, eager.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="torch.compile on CPUs needs a C++ compiler")
def test_compiled_a_net_trains_as_it_does_eagerly(net: Segmentor) -> None:
    compiled = copy.deepcopy(net)
    compiled.compile()
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 48, 64, generator=draw)
    label = torch.randint(0, 5, (2, 48, 64), generator=draw)
    losses = [_loss(one.train(), image, label) for one in (net, compiled)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    for (name, eager), ours in zip(net.named_parameters(), compiled.parameters(), strict=True):
        assert eager.grad is not None
        assert ours.grad is not None
        scale = float(eager.grad.abs().max())
        torch.testing.assert_close(ours.grad, eager.grad, rtol=1e-3, atol=1e-3 * scale + 1e-6, msg=name)
    for (name, eager_state), ours_state in zip(net.named_buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(ours_state, eager_state, rtol=1e-4, atol=1e-5, msg=name)
    # Whole images are evaluated in another size than crops are trained in, and then sizes are symbols.
    with torch.no_grad(), net.inferring(), compiled.inferring():
        for size in ((40, 56), (37, 75)):
            image = torch.rand(1, 3, *size, generator=draw)
            torch.testing.assert_close(compiled(image).logits, net(image).logits, rtol=1e-3, atol=1e-4)


def _loss(net: Segmentor, image: Tensor, label: Tensor) -> Tensor:
    logits = torch.nn.functional.interpolate(net(image).logits, size=label.shape[1:], mode="bilinear")
    loss = torch.nn.functional.cross_entropy(logits, label)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()
