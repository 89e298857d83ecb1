"""Folder uda_baselines: AdvEnt's maps, losses and discriminator; the moving average of DACS and DAFormer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.golden.compare import assert_gradient, assert_values, tensor
from tests.golden.conftest import Golden
from tutelage.losses.adversarial import SOURCE, TARGET, domain_loss, entropy, self_information
from tutelage.methods.ema import average, decay_at
from tutelage.nets.discriminators import OutputDiscriminator


def discriminator(classes: int) -> OutputDiscriminator:
    """The file's discriminator: weights sqrt(2 / fan_in) sin(1 + 0.618 i), biases 0.1 cos(i), i the flat index."""
    net = OutputDiscriminator(classes)
    with torch.no_grad():
        for parameter in net.parameters():
            index = torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)
            if parameter.ndim == 4:
                parameter.copy_(math.sqrt(2.0 / parameter[0].numel()) * torch.sin(1.0 + 0.618 * index))
            else:
                parameter.copy_(0.1 * torch.cos(index))
    return net


@pytest.mark.parametrize("name", ["entropy_advent"])
def test_entropy_advent(golden: Golden, name: str) -> None:
    """Everything but the ``robust_*`` keys, which are FDA's."""
    file = golden(f"uda_baselines/{name}")
    target, source = tensor(file["target_logits"]).requires_grad_(), tensor(file["source_logits"])
    assert_values(self_information(target), file["self_information"], absolute=1e-5)
    assert_values(self_information(target).sum(1), file["entropy_map"], absolute=1e-5)
    loss = entropy(target)
    assert_values(loss, file["entropy_loss"], absolute=1e-5)
    assert_gradient(torch.autograd.grad(loss, target)[0], file["entropy_grad"])

    assert (float(file["source_domain_label"]), float(file["target_domain_label"])) == (SOURCE, TARGET)
    critic = discriminator(int(file["num_classes"]))
    _check_generator(file, critic, target, self_information(target), "")
    _check_generator(file, critic, target, target.softmax(1), "raw_")
    assert_values(
        domain_loss(critic(target.softmax(1)), SOURCE, "least_squares"),
        file["raw_adv_loss_least_squares"],
        absolute=1e-5,
    )
    on_source = critic(self_information(source).detach())
    assert_values(on_source, file["disc_source"], absolute=1e-5)
    both = domain_loss(on_source, SOURCE) + domain_loss(critic(self_information(target).detach()), TARGET)
    assert_values(0.5 * both, file["disc_loss"], absolute=1e-5)
    (0.5 * both).backward()
    convolutions = [module for module in critic.modules() if isinstance(module, nn.Conv2d)]
    assert convolutions[0].weight.grad is not None
    assert convolutions[-1].weight.grad is not None
    assert convolutions[-1].bias is not None
    assert convolutions[-1].bias.grad is not None
    assert_gradient(convolutions[0].weight.grad.norm().double(), file["disc_grad_first_weight_norm"])
    assert_gradient(convolutions[-1].weight.grad.norm().double(), file["disc_grad_last_weight_norm"])
    assert_gradient(convolutions[-1].bias.grad, file["disc_grad_last_bias"])


def _check_generator(file: dict, critic: nn.Module, target: Tensor, maps: Tensor, prefix: str) -> None:
    scores = critic(maps)
    assert_values(scores, file[f"{prefix}disc_target"], absolute=1e-5)
    loss = domain_loss(scores, SOURCE)
    assert_values(loss, file[f"{prefix}adv_loss"], absolute=1e-5)
    assert_gradient(torch.autograd.grad(loss, target)[0], file[f"{prefix}adv_grad"])


@pytest.mark.parametrize("name", ["ema"])
def test_ema(golden: Golden, name: str) -> None:
    file = golden(f"uda_baselines/{name}")

    class One(nn.Module):
        def __init__(self, values: Tensor) -> None:
            super().__init__()
            self.values = nn.Parameter(values.double())

    teacher = One(tensor(file["teacher"]))
    for step, iteration in enumerate(file["iterations"]):
        decay = decay_at(int(iteration), float(file["alpha"]), ramp=True)
        assert decay == pytest.approx(float(file["effective_alpha"][step]), rel=1e-6)
        average(teacher, One(tensor(file["student"][step])), decay)
        assert_values(teacher.values, file["teacher_after"][step])
