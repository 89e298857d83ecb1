"""Distances to prototypes and what follows from them: values, gradients, exact zeros, absent classes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.losses.prototypes import anchor_distance, prototype_distances, prototype_weights, rectify
from tutelage.losses.segmentation import IGNORE


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_distances_and_their_gradients_are_those_of_the_plain_form() -> None:
    features = torch.randn(2, 5, 3, 4, generator=generator(0), requires_grad=True)
    prototypes = torch.randn(6, 5, generator=generator(1), requires_grad=True)
    upstream = torch.randn(2, 6, 3, 4, generator=generator(2))
    plain = (features[:, None] - prototypes[None, :, :, None, None]).norm(dim=2)
    ours = prototype_distances(features, prototypes)
    torch.testing.assert_close(ours, plain)
    inputs = (features, prototypes)
    expected = torch.autograd.grad((plain * upstream).sum(), inputs)
    for mine, theirs in zip(torch.autograd.grad((ours * upstream).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_feature_on_a_prototype_has_the_distance_0_and_the_gradient_0() -> None:
    prototypes = 30 * torch.randn(3, 256, generator=generator(0))
    features = prototypes[1].view(1, 256, 1, 1).clone().requires_grad_()
    distance = prototype_distances(features, prototypes)
    assert float(distance[0, 1].detach()) == 0.0
    (gradient,) = torch.autograd.grad(distance[:, 1].sum(), features)
    assert not gradient.any()
    zero = torch.zeros(1, 256, 1, 1, requires_grad=True)
    distance = prototype_distances(zero, torch.zeros(2, 256))
    (gradient,) = torch.autograd.grad(distance.sum(), zero)
    assert not gradient.any()


def test_distances_are_float32_under_autocast() -> None:
    features, prototypes = torch.randn(1, 8, 2, 2, generator=generator(0)), torch.randn(3, 8, generator=generator(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = prototype_distances(features, prototypes)
    assert torch.equal(inside, prototype_distances(features, prototypes))
    assert prototype_distances(features.half(), prototypes).dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999), scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6]), temperature=st.sampled_from([0.0, 1, 1e3])
)
def test_never_nan(seed: int, scale: float, temperature: float) -> None:
    features = (scale * torch.randn(1, 4, 2, 3, generator=generator(seed))).requires_grad_()
    prototypes = scale * torch.randn(5, 4, generator=generator(seed + 1))
    prototypes[0] = features.detach()[0, :, 0, 0]
    weight = prototype_weights(prototype_distances(features, prototypes), temperature)
    torch.testing.assert_close(weight.sum(1), torch.ones(1, 2, 3))
    (gradient,) = torch.autograd.grad(weight[:, 0].sum(), features)
    assert gradient.isfinite().all()
    label, confidence = rectify(torch.zeros(1, 5, 2, 3), weight)
    assert confidence.isfinite().all()
    assert (label < 5).all()


def test_weights_fall_with_the_distance() -> None:
    distance = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    weight = prototype_weights(distance, 2.0).flatten()
    torch.testing.assert_close(weight[0] / weight[1], torch.tensor(2.0).exp())
    assert prototype_weights(1e5 + distance)[0, 0].item() > 0.7, "large distances do not underflow"


def test_rectified_labels_and_their_confidence() -> None:
    soft = torch.tensor([[0.6, 0.4], [0.9, 0.1]]).T.reshape(1, 2, 1, 2)
    weight = torch.tensor([[0.1, 0.9], [0.5, 0.5]]).T.reshape(1, 2, 1, 2)
    label, confidence = rectify(soft, weight, 0.88)
    assert label.tolist() == [[[IGNORE, 0]]]
    torch.testing.assert_close(confidence, torch.tensor([[[0.36 / 0.42, 0.9]]]))
    assert rectify(soft, weight)[0].tolist() == [[[1, 0]]]


def test_the_distance_to_anchors() -> None:
    vectors = torch.randn(2, 3, 4, generator=generator(0), requires_grad=True)
    anchors = torch.randn(3, 4, generator=generator(1))
    valid = torch.tensor([[True, False, True], [False, False, True]])
    counts = torch.tensor([[10, 0, 20], [3, 0, 30]])
    loss = anchor_distance(vectors, valid, counts, anchors, 60)
    each = torch.nn.functional.smooth_l1_loss(vectors, anchors.expand(2, 3, 4), reduction="none").mean(2)
    torch.testing.assert_close(loss, 10 * each[valid].mean())
    (gradient,) = torch.autograd.grad(loss, vectors)
    (plain,) = torch.autograd.grad(10 * each[valid].mean(), vectors)
    torch.testing.assert_close(gradient, plain * (2 * counts / 60)[..., None])
    assert not gradient[~valid].any()


def test_a_far_vector_is_divided_by_ten_until_it_is_near() -> None:
    anchors = torch.zeros(1, 2)
    for height, expected in ((5.5, 5.0), (5.6, 0.51), (50.6, 0.501), (5.0e4, 4.99995)):
        vector = torch.full((1, 1, 2), height)  # smooth L1: height - 1/2
        loss = anchor_distance(vector, torch.ones(1, 1), torch.ones(1, 1), anchors, 1, weight=1.0)
        torch.testing.assert_close(loss, torch.tensor(expected))


def test_no_valid_vector_is_an_exact_0() -> None:
    vectors = torch.randn(1, 3, 4, requires_grad=True)
    nothing = torch.zeros(1, 3)
    loss = anchor_distance(vectors, nothing, nothing, torch.randn(3, 4), 60)
    assert float(loss.detach()) == 0.0
    (gradient,) = torch.autograd.grad(loss, vectors)
    assert not gradient.any()
