"""Folder kd_baselines: the distillation losses of the CIRKD repository, and the critic of one of them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tests.golden.compare import assert_gradient, assert_values, labels, tensor
from tests.golden.conftest import Golden
from tutelage.losses.adversarial import critic_loss, fooling_loss, gradient_penalty
from tutelage.losses.attention import attention_transfer, dsd_category, dsd_pixel
from tutelage.losses.distillation import cwd, fitnet, ifvd, pixel_kd, skd_pairwise
from tutelage.nets.discriminators import HolisticCritic, SelfAttention, SpectralConv

File = dict[str, NDArray]


def assert_loss(ours: Tensor, theirs: NDArray) -> None:
    assert_values(ours, theirs, absolute=1e-10)  # some losses are about 1e-6


def grid_of(file: File) -> tuple[Tensor, Tensor]:
    return tensor(file["student_feat"]).requires_grad_(), tensor(file["teacher_feat"]).requires_grad_()


def check_on_features(file: File, loss_of: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Loss and gradient of a term on features; nothing may reach the teacher."""
    student, teacher = grid_of(file)
    loss = loss_of(student, teacher)
    assert_loss(loss, file["loss"])
    gradient, none = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
    assert none is None
    mask = tensor(file["grad_mask"])[:, None] if "grad_mask" in file else 1
    assert torch.isfinite(gradient).all()
    if abs(float(file["loss"])) > 1e-10:
        assert_gradient(gradient * mask, file["grad_student_feat"])
    else:  # nothing to learn (IFVD without a label): what the published code gives is rounding
        assert gradient.abs().max() <= 1e-6


def check_aligned(file: File, loss_of: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The same after the file's 1x1 convolution of the student's feature."""
    weight = tensor(file["align_weight"]).requires_grad_()
    check_on_features(file, lambda student, teacher: loss_of(F.conv2d(student, weight), teacher))
    student, teacher = grid_of(file)
    loss = loss_of(F.conv2d(student, weight), teacher)
    assert_gradient(torch.autograd.grad(loss, weight)[0], file["grad_align_weight"])


@pytest.mark.parametrize("name", ["pixel_kd"])
def test_pixel_kd(golden: Golden, name: str) -> None:
    file = golden(f"kd_baselines/{name}")
    for index in range(sum(key.startswith("temperature_") for key in file)):
        student = tensor(file["student_logits"]).requires_grad_()
        loss = pixel_kd(student, tensor(file["teacher_logits"]), float(file[f"temperature_{index}"]))
        assert_loss(loss, file[f"loss_{index}"])
        assert_gradient(torch.autograd.grad(loss, student)[0], file[f"grad_student_logits_{index}"])


@pytest.mark.parametrize("name", ["skd_pairwise"])
def test_skd_pairwise(golden: Golden, name: str) -> None:
    file = golden(f"kd_baselines/{name}")
    check_on_features(file, lambda student, teacher: skd_pairwise(student, teacher, int(file["pool_kernel"])))


@pytest.mark.parametrize("name", ["ifvd"])
def test_ifvd(golden: Golden, name: str) -> None:
    file = golden(f"kd_baselines/{name}")
    label = labels(file["labels"], int(file["ignore_label"]))
    check_on_features(file, lambda student, teacher: ifvd(student, teacher, label, int(file["num_classes"])))


@pytest.mark.parametrize("mode", ["channel", "spatial", "channel_mean"])
def test_cwd_on_features(golden: Golden, mode: str) -> None:
    file = golden(f"kd_baselines/cwd_feature_{mode}")
    published = file["student_feat"].shape[1]  # before alignment
    check_aligned(
        file,
        lambda student, teacher: cwd(student, teacher, float(file["temperature"]), published, mode),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", ["cwd_logits"])
def test_cwd_on_logits(golden: Golden, name: str) -> None:
    file = golden(f"kd_baselines/{name}")
    student = tensor(file["student_logits"]).requires_grad_()
    loss = cwd(student, tensor(file["teacher_logits"]), float(file["temperature"]))
    assert_loss(loss, file["loss"])
    assert_gradient(torch.autograd.grad(loss, student)[0], file["grad_student_logits"])


@pytest.mark.parametrize("name", ["dsd_three_maps", "dsd_two_maps"])
def test_dsd(golden: Golden, name: str) -> None:
    file = golden(f"kd_baselines/{name}")
    count = sum(key.startswith("teacher_") for key in file)
    student = [tensor(file[f"student_{index}"]).requires_grad_() for index in range(count)]
    teacher = [tensor(file[f"teacher_{index}"]) for index in range(count)]
    loss = dsd_pixel(student, teacher)
    assert_loss(loss, file["loss_psd"])
    for index, gradient in enumerate(torch.autograd.grad(loss, student)):
        assert_gradient(gradient, file[f"grad_psd_student_{index}"])
    loss = dsd_category(student[-1], teacher[-1], float(file["csd_temperature"]), int(file["pool_kernel"]))
    assert_loss(loss, file["loss_csd"])
    assert_gradient(torch.autograd.grad(loss, student[-1])[0], file["grad_csd_student_last"])


@pytest.mark.parametrize("name", ["at"])
def test_at(golden: Golden, name: str) -> None:
    file = golden(f"kd_baselines/{name}")
    check_on_features(file, lambda student, teacher: attention_transfer(student, teacher, float(file["power"])))


@pytest.mark.parametrize("name", ["fitnet"])
def test_fitnet(golden: Golden, name: str) -> None:
    check_aligned(golden(f"kd_baselines/{name}"), fitnet)


def ruled(name: str, shape: torch.Size, kind: str, salt: int) -> Tensor:
    """The tensor that the rule of the README of cirkd gives to a name."""
    count = math.prod(shape)
    x = np.arange(count, dtype=np.uint32) + np.uint32((zlib.crc32(name.encode()) + salt) % (1 << 32))
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    r = 2.0 * (x ^ (x >> 16)).astype(np.float64) / (1 << 32) - 1.0
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else count
    values = {
        "weight": lambda: r * math.sqrt(3 / fan_in),
        "bias": lambda: 0.1 * r,
        "norm_bias": lambda: 0.1 * r,
        "norm_weight": lambda: 1 + 0.1 * r,
        "running_mean": lambda: 0.05 * r,
        "running_var": lambda: 1 + 0.2 * r,
        "scalar": lambda: 0.5 + 0.1 * r,
        "unit": lambda: r / np.linalg.norm(r),
    }[kind]()
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def kind_of(name: str) -> str:
    """What ``discriminator_tensors.csv`` says of a name."""
    part = name.rsplit(".", 1)[1]
    if part.startswith("power"):
        return "unit"
    if name.startswith("input_norm"):
        return {"weight": "norm_weight", "bias": "norm_bias"}.get(part, part)
    return "scalar" if part == "gain" else part


def published_critic(file: File) -> HolisticCritic:
    critic = HolisticCritic(int(file["num_classes"]), file["student_logits"].shape[2:])
    state = {name: value for name, value in critic.state_dict().items() if "num_batches" not in name}
    for name, value in state.items():
        room, _, rest = name.partition(".")
        index, _, last = rest.partition(".")
        theirs = {"blocks": f"block{index}.conv.{last}", "attentions": f"attention{index}.{last}"}.get(room, name)
        if room in ("blocks", "attentions"):
            theirs = theirs.replace(index, str(int(index) + 1), 1)
        value.copy_(ruled(theirs, value.shape, kind_of(theirs), int(file["salt"])))
    return critic


@pytest.mark.parametrize("name", ["adversarial"])
def test_adversarial(golden: Golden, name: str) -> None:
    file = golden(f"kd_baselines/{name}")
    critic = published_critic(file).train()
    blocks = [block for block in critic.blocks if isinstance(block, SpectralConv)]
    attended: list[Tensor] = []
    for attention in critic.attentions:
        attention.register_forward_pre_hook(lambda module, inputs: attended.append(module.weights(*inputs)))

    student, teacher = tensor(file["student_logits"]).requires_grad_(), tensor(file["teacher_logits"])
    scores = critic(student)
    assert_loss(scores, file["generator_output"])
    assert_loss(fooling_loss(scores), file["generator_loss"])
    gradient = torch.autograd.grad(fooling_loss(scores), student)[0]
    assert_gradient(gradient, file["grad_generator_student_logits"])
    for index, weights in enumerate(attended, 1):
        assert_loss(weights[0, 0], file[f"generator_attention{index}_row0"])
    for index, block in enumerate(blocks, 1):
        assert_loss(block.power_u, file[f"power_u_after_call1_block{index}"])
        assert_loss(block.power_u @ block.weight.flatten(1) @ block.power_v, file[f"sigma_call1_block{index}"])
    assert_loss(critic.input_norm.running_mean, file["input_norm_running_mean_after_call1"])
    assert_loss(critic.input_norm.running_var, file["input_norm_running_var_after_call1"])

    on_student, on_teacher = critic(student.detach()), critic(teacher)
    assert_loss(on_student, file["critic_output_student"])
    assert_loss(on_teacher, file["critic_output_teacher"])
    watched = [critic.final.weight, critic.input_norm.weight, *(attention.gain for attention in critic.attentions)]
    for kind, key in (("hinge", "hinge"), ("wasserstein", "wgan")):
        loss = critic_loss(on_student, on_teacher, kind)  # type: ignore[arg-type]
        assert_loss(loss, file[f"critic_loss_{key}"])
        final, norm, *gains = torch.autograd.grad(loss, watched, retain_graph=True)
        assert_gradient(final.sum(), file[f"grad_critic_{key}_final_weight_sum"])
        assert_gradient(final.abs().sum(), file[f"grad_critic_{key}_final_weight_abs_sum"])
        assert_gradient(norm, file[f"grad_critic_{key}_input_norm_weight"])
        for index, gain in enumerate(gains, 1):
            assert_gradient(gain, file[f"grad_critic_{key}_attention{index}_gain"])
    for index, block in enumerate(blocks, 1):
        assert_loss(block.power_u, file[f"power_u_after_call3_block{index}"])


@pytest.mark.parametrize("name", ["self_attention"])
def test_self_attention(golden: Golden, name: str) -> None:
    file = golden(f"kd_baselines/{name}")
    block = SelfAttention(file["input"].shape[1])
    with torch.no_grad():
        for key in ("query", "key", "value"):
            block.get_parameter(f"{key}.weight").copy_(tensor(file[f"{key}_weight"]))
            block.get_parameter(f"{key}.bias").copy_(tensor(file[f"{key}_bias"]))
        block.gain.copy_(tensor(file["gain"]))
    given = tensor(file["input"]).requires_grad_()
    assert_values(block.weights(given), file["attention"])
    output = block(given)
    assert_values(output, file["output"])
    assert_gradient(torch.autograd.grad(output, given, tensor(file["upstream_grad"]))[0], file["grad_input"])


@pytest.mark.parametrize("name", ["gradient_penalty"])
def test_gradient_penalty(golden: Golden, name: str) -> None:
    file = golden(f"kd_baselines/{name}")

    def critic(logits: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(logits, tensor(file["conv1_weight"])).tanh(), tensor(file["conv2_weight"]))

    student, teacher, alpha = (tensor(file[key]) for key in ("student_logits", "teacher_logits", "alpha"))
    assert_loss(float(file["lambda_gp"]) * gradient_penalty(critic, student, teacher, alpha), file["loss"])
