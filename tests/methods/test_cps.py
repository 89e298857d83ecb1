"""CPS: the terms by hand, two nets that differ in their decoders alone, and both learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.methods.cases import FACTS, SGD, Stream, Stub, batch, changed, copied, gradients, terms, tiny, train
from tutelage.data.batch import Batch
from tutelage.data.draws import generator
from tutelage.data.mixing.boxes import box_masks
from tutelage.data.settings import BoxSettings
from tutelage.methods import cps
from tutelage.methods.cps import CPS


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cps, "sibling", lambda net: Stub(seed=1))


def method(net: Any = None, **settings: Any) -> CPS:
    return CPS({"student": net or Stub()}, CPS.Settings(**settings), FACTS)


def padded(given: Batch, rows: int) -> Batch:
    """The last rows of every image are padding."""
    given["weak"].valid[:, -rows:] = False
    return given


def full(net: nn.Module, image: Tensor) -> Tensor:
    logits = F.interpolate(net(image).logits, scale_factor=4, mode="bilinear")
    return logits[..., : image.shape[2], : image.shape[3]]


def differences(net: nn.Module, other: nn.Module, image: Tensor) -> Tensor:
    """Cross-entropy of one net towards the other's classes (B, H, W)."""
    return F.cross_entropy(full(net, image), full(other, image).argmax(1), reduction="none")


@pytest.mark.usefixtures("stubs")
def test_the_mean_runs_over_the_pixels_of_both_batches_that_are_no_padding() -> None:
    given = method(weight=2.0)
    labeled, unlabeled = batch(1, count=1, size=(30, 34)), padded(batch(2, count=3, size=(48, 32), labels=False), 9)
    found = terms(given, {"labeled": labeled, "unlabeled": unlabeled})
    for net, other, name in ((given.student, given.sister, "cross"), (given.sister, given.student, "sister_cross")):
        parts = [differences(net, other, each["weak"].image)[each["weak"].valid] for each in (labeled, unlabeled)]
        torch.testing.assert_close(found[name], 2 * torch.cat(parts).mean())
    for net, prefix in ((given.student, ""), (given.sister, "sister_")):
        expected = F.cross_entropy(full(net, labeled["weak"].image), labeled["weak"].label, ignore_index=255)
        torch.testing.assert_close(found[f"{prefix}cross_entropy"], expected)
    assert found.keys() == {"cross_entropy", "sister_cross_entropy", "cross", "sister_cross"}


@pytest.mark.usefixtures("stubs")
@pytest.mark.parametrize("threshold", [None, 0.8])
def test_with_cutmix_the_nets_teach_on_mixed_unlabelled_images(threshold: float | None) -> None:
    given = method(weight=1.0, cutmix=True, threshold=threshold)
    unlabeled = padded(batch(2, count=3, labels=False), 5)
    found = terms(given, {"labeled": batch(1), "unlabeled": unlabeled}, step=4)
    view = unlabeled["weak"]
    boxes = generator(1, "cps", "boxes", 4, 0)
    mask = box_masks(boxes, 3, (32, 32), BoxSettings(), view.image.device)
    assert mask.any()
    assert not mask.all()

    def mixed(values: Tensor) -> Tensor:
        at = mask[:, None] if values.ndim == 4 else mask
        return torch.where(at, torch.stack([values[(n + 1) % 3] for n in range(3)]), values)

    valid = mixed(view.valid)
    for net, other, name in ((given.student, given.sister, "cross"), (given.sister, given.student, "sister_cross")):
        sure, advice = mixed(full(other, view.image)).softmax(1).max(1)
        loss = F.cross_entropy(full(net, mixed(view.image)), advice, reduction="none")
        kept = valid if threshold is None else valid & (sure >= threshold)
        assert kept.any()
        torch.testing.assert_close(found[name], loss[kept].sum() / valid.sum())


@pytest.mark.usefixtures("stubs")
def test_a_threshold_leaves_out_pixels_and_not_their_share() -> None:
    given = method(weight=1.0, threshold=0.8)
    batches = {"labeled": batch(1), "unlabeled": batch(2, labels=False)}
    images = torch.cat([batches[name]["weak"].image for name in batches])
    kept = full(given.sister, images).softmax(1).max(1).values >= 0.8
    assert 0 < kept.sum() < kept.numel()
    expected = (differences(given.student, given.sister, images) * kept).mean()
    torch.testing.assert_close(terms(given, batches)["cross"], expected)


@pytest.mark.usefixtures("stubs")
@pytest.mark.parametrize("cutmix", [False, True])
def test_each_term_reaches_one_net(cutmix: bool) -> None:
    batches = {"labeled": batch(1), "unlabeled": batch(2, labels=False)}
    for name in ("cross_entropy", "cross", "sister_cross_entropy", "sister_cross"):
        given = method(cutmix=cutmix)
        terms(given, batches)[name].backward()  # type: ignore[no-untyped-call]
        sister = name.startswith("sister")
        assert gradients(given) == {"student": not sister, "sister": sister, "task": False}


@pytest.mark.usefixtures("stubs")
@pytest.mark.parametrize("cutmix", [False, True])
def test_neither_labels_nor_pixels(cutmix: bool) -> None:
    given = method(cutmix=cutmix)
    labeled, unlabeled = padded(batch(1, ignored=1.0), 32), padded(batch(2, labels=False), 32)
    found = terms(given, {"labeled": labeled, "unlabeled": unlabeled})
    torch.stack(list(found.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(term.item() == 0 for term in found.values())
    assert not any(gradients(given).values())
    assert all(torch.isfinite(p.grad).all() for p in given.parameters() if p.grad is not None)


@pytest.mark.usefixtures("stubs")
def test_an_image_alone_is_its_own_partner() -> None:
    found = terms(method(cutmix=True), {"labeled": batch(1), "unlabeled": batch(2, count=1, labels=False)})
    assert all(torch.isfinite(term) for term in found.values())


def test_sisters_share_the_encoder_at_first_and_nothing_else() -> None:
    torch.manual_seed(3)
    given = method(tiny(auxiliary=True))
    mine, hers = given.student.state_dict(), given.sister.state_dict()
    equal = {name for name in mine if torch.equal(mine[name], hers[name])}
    assert {name for name in mine if name.startswith("encoder.")} <= equal
    for part in ("decoder", "classifier", "auxiliary"):
        assert any(name.startswith(part) and name.endswith("weight") and name not in equal for name in mine), part
    assert not {p.data_ptr() for p in given.student.parameters()} & {p.data_ptr() for p in given.sister.parameters()}


def test_both_nets_are_trained_and_kept() -> None:
    given = method(tiny())
    before = copied(given.student), copied(given.sister)
    train(given, steps=2)
    assert "classifier.weight" in changed(given.student, before[0]) & changed(given.sister, before[1])
    assert list(given.exported()) == ["student", "sister"]
    assert list(given.optimizers()) == ["main", "sister"]
    assert {name.partition(".")[0] for name in given.learned_state()} == {"student", "sister"}


@pytest.mark.parametrize(("cutmix", "forwards"), [(False, 2), (True, 3)])
def test_forwards_without_a_gradient_go_on_with_running_statistics(cutmix: bool, forwards: int) -> None:
    given = method(tiny(), cutmix=cutmix)
    train(given, optimizer=SGD)
    for net in (given.student, given.sister):
        norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert {int(norm.num_batches_tracked) for norm in norms} == {forwards}


def test_micro_batches_make_one_batch() -> None:
    def trained(accumulate: int) -> CPS:
        torch.manual_seed(0)
        given = method(tiny())
        for net in (given.student, given.sister):
            net.mode(norm="running", dropout=False)
        train(given, accumulate=accumulate, unlabeled=Stream(7, batch=8, labels=False))
        return given

    whole, parts = trained(1), trained(2)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-5, rtol=1e-4)
