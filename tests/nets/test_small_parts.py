"""LR-ASPP and the output discriminator."""

from __future__ import annotations

import torch
from torch import nn

from tests.errors import raises_code
from tutelage.nets.discriminators import OutputDiscriminator
from tutelage.nets.lraspp import LRASPP


def test_one_classifier_on_the_concatenation_is_the_papers_sum_of_two() -> None:
    torch.manual_seed(0)
    decoder = LRASPP(high=24, low=10, width=32).eval()
    high, low = torch.rand(2, 24, 4, 6), torch.rand(2, 10, 8, 12)
    classifier = nn.Conv2d(decoder.channels, 5, 1)
    high_weight, low_weight = classifier.weight[:, :32], classifier.weight[:, 32:]

    gated = decoder.branch(high) * torch.sigmoid(
        torch.einsum("kc,bc->bk", decoder.gate[1].weight[:, :, 0, 0], high.mean(dim=(2, 3)))
    ).view(2, 32, 1, 1)
    enlarged = nn.functional.interpolate(gated, size=(8, 12), mode="bilinear", align_corners=False)
    summed = nn.functional.conv2d(enlarged, high_weight, classifier.bias) + nn.functional.conv2d(low, low_weight)
    torch.testing.assert_close(classifier(decoder(high, low)), summed)


def test_wide_low_level_features_are_projected() -> None:
    decoder = LRASPP(high=512, low=128, width=128)
    assert decoder.channels == 128 + 64
    assert decoder(torch.rand(2, 512, 4, 4), torch.rand(2, 128, 8, 8)).shape == (2, 192, 8, 8)


def test_the_discriminator_is_the_published_one() -> None:
    critic = OutputDiscriminator(19)
    convolutions = [layer for layer in critic.layers if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 512, 1]
    assert all(layer.kernel_size == (4, 4) and layer.stride == (2, 2) for layer in convolutions)
    assert {layer.negative_slope for layer in critic.layers if isinstance(layer, nn.LeakyReLU)} == {0.2}
    assert isinstance(critic.layers[-1], nn.Conv2d)
    assert critic(torch.rand(2, 19, 64, 96).softmax(dim=1)).shape == (2, 1, 2, 3)
    with raises_code("size-mismatch", "32x32"):
        critic(torch.rand(1, 19, 31, 64))
