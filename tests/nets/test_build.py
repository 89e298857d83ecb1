"""A sibling: the encoder's weights of a net, and a decoder of its own."""

from __future__ import annotations

import pytest
import torch

from tutelage.nets.build import build, sibling
from tutelage.nets.settings import NetSettings


@pytest.mark.parametrize(
    "settings",
    [
        {"decoder": "lraspp", "width": 32},
        {"decoder": "deeplabv3plus", "width": 32, "auxiliary": True, "batch_norm_momentum": 0.01},
    ],
)
def test_a_sibling_has_the_encoder_and_draws_the_rest(settings: dict[str, object]) -> None:
    net = build(NetSettings.model_validate({"encoder": "mobilenetv3_small_050", **settings}), 5, seed=0)
    with torch.no_grad():
        for tensor in net.encoder.state_dict().values():
            tensor.add_(1)  # as if it had been trained
    torch.manual_seed(1)
    first = sibling(net)
    torch.manual_seed(1)
    again = sibling(net)
    other = sibling(net)
    assert first.classes == 5
    mine = net.state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        if name.startswith("encoder."):
            assert torch.equal(value, mine[name]), name
    for part in ("decoder.", "classifier."):
        names = [name for name, value in first.named_parameters() if name.startswith(part) and value.ndim == 4]
        assert names
        assert not any(torch.equal(first.state_dict()[name], mine[name]) for name in names)
        assert not any(torch.equal(first.state_dict()[name], other.state_dict()[name]) for name in names)


def test_a_sibling_loads_nothing_again() -> None:
    net = build(NetSettings(encoder="mobilenetv3_small_050", decoder="lraspp", width=32), 3, seed=0)
    net.settings = net.settings.model_copy(update={"weights": "imagenet"})
    assert sibling(net).load_report is None


@pytest.mark.parametrize("frozen", ["affine", "all"])
def test_frozen_batch_norm_keeps_its_values_in_training(frozen: str) -> None:
    """And the settings say so wherever the net goes, siblings included."""
    given = {"encoder": "mobilenetv3_small_050", "decoder": "lraspp", "width": 32, "frozen_norm": frozen}
    net = build(NetSettings.model_validate(given), 3, seed=0)
    for model in (net, sibling(net)):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        layers = {name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
        assert layers
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert not any(f"{name}.{part}" in trained for name in layers for part in ("weight", "bias"))
        assert trained
        model.train()(torch.rand(2, 3, 64, 64)).logits.sum().backward()
        same = all(
            torch.equal(model.state_dict()[f"{name}.running_mean"], before[f"{name}.running_mean"]) for name in layers
        )
        assert same == (frozen == "all")
