"""The critic of structured knowledge distillation: its shapes, its spectral normalisation, its two modes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.errors import raises_code
from tests.methods.cases import changed, copied
from tutelage.nets.discriminators import HolisticCritic, ProDADiscriminator, SelfAttention, SpectralConv


def widths(critic: HolisticCritic) -> list[int]:
    return [block.weight.shape[0] for block in critic.blocks if isinstance(block, SpectralConv)]


@pytest.mark.parametrize("size", [(64, 64), (64, 80), (65, 127), (128, 256)])
def test_large_maps_have_the_published_critic(size: tuple[int, int]) -> None:
    critic = HolisticCritic(5, size)
    assert widths(critic) == [64, 128, 256, 512]
    assert [block.gain.shape[0] for block in critic.attentions] == [1, 1]
    assert [block.value.in_channels for block in critic.attentions] == [256, 512]
    assert critic(torch.randn(2, 5, *size)).shape == (2, 1, size[0] // 16 - 3, size[1] // 16 - 3)


@pytest.mark.parametrize(
    ("side", "depth", "scores"),
    [(2, 1, 1), (3, 1, 1), (7, 1, 1), (8, 1, 1), (15, 1, 4), (16, 2, 1), (24, 2, 3), (45, 3, 2), (63, 3, 4)],
)
def test_small_maps_have_fewer_blocks(side: int, depth: int, scores: int) -> None:
    critic = HolisticCritic(3, (side, side + 5))
    assert widths(critic) == [64, 128, 256, 512][:depth]
    assert critic(torch.randn(2, 3, side, side + 5)).shape[2] == scores


def test_maps_that_do_not_fit_are_refused() -> None:
    with raises_code("size-mismatch", "1x4"):
        HolisticCritic(3, (1, 4))
    with raises_code("size-mismatch", "64x64"):
        HolisticCritic(3, (64, 64))(torch.randn(1, 3, 16, 16))


def test_power_steps_find_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    layer = SpectralConv(3, 8).train()
    for _ in range(200):
        layer(torch.zeros(1, 3, 8, 8))
    estimate = layer.power_u @ layer.weight.flatten(1) @ layer.power_v
    torch.testing.assert_close(estimate, torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2), rtol=1e-4, atol=0)


def test_evaluation_changes_nothing() -> None:
    critic = HolisticCritic(3, (16, 16)).train()
    critic(torch.randn(2, 3, 16, 16))
    before, given = copied(critic.eval()), torch.randn(2, 3, 16, 16)
    assert torch.equal(critic(given), critic(given))
    assert not changed(critic, before)
    critic.train()(given)
    assert {name.split(".")[-1] for name in changed(critic, before)} >= {"power_u", "power_v", "running_mean"}


def test_a_seed_decides_the_critic() -> None:
    def made(seed: int) -> HolisticCritic:
        torch.manual_seed(seed)
        return HolisticCritic(3, (16, 16))

    assert not changed(made(1), copied(made(1)))
    assert "blocks.0.power_u" in changed(made(2), copied(made(1)))


def test_the_gradient_is_that_of_the_normalised_weight() -> None:
    """sigma = u W v is differentiated for W, with u and v as they are."""
    torch.manual_seed(0)
    layer, given = SpectralConv(2, 4).eval().double(), torch.randn(1, 2, 6, 6, dtype=torch.float64)

    def of(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, given)

    assert torch.autograd.gradcheck(of, (layer.weight.detach().requires_grad_(),))


def test_two_forwards_then_one_backward() -> None:
    critic = HolisticCritic(3, (16, 16)).train()
    (critic(torch.randn(2, 3, 16, 16)).mean() - critic(torch.randn(2, 3, 16, 16)).mean()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in critic.parameters())


def test_attention_begins_as_nothing() -> None:
    block = SelfAttention(16)
    given = torch.randn(2, 16, 3, 5)
    assert torch.equal(block(given), given)
    assert block.weights(given).shape == (2, 15, 15)
    torch.testing.assert_close(block.weights(given).sum(2), torch.ones(2, 15))
    nn.init.ones_(block.gain)
    expected = given + (block.value(given).flatten(2) @ block.weights(given).transpose(1, 2)).view_as(given)
    torch.testing.assert_close(block(given.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("size", [(32, 48), (33, 49), (5, 7)])
def test_the_critic_of_prodas_warm_up(size: tuple[int, int]) -> None:
    critic = ProDADiscriminator(4)
    assert [layer.out_channels for layer in critic.modules() if isinstance(layer, nn.Conv2d)] == [64, 128, 256, 512, 1]
    slopes = [layer for layer in critic.layers if isinstance(layer, (nn.ReLU, nn.LeakyReLU))]
    assert [type(layer) for layer in slopes] == [nn.ReLU, nn.ReLU, nn.ReLU, nn.LeakyReLU]
    scores = critic(torch.rand(2, 4, *size))
    assert scores.shape == (2, 1, -(-size[0] // 16), -(-size[1] // 16))
    assert (critic(torch.rand(8, 4, *size)) < 0).any() or (scores > 0).any(), "logits"
