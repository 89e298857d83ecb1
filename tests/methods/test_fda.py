"""FDA: the source in the target's style, the entropy of the target, and the second phase's pseudo labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.methods.cases import FACTS, Stub, batch, changed, copied, terms, tiny, train
from tutelage.data.batch import Batch
from tutelage.data.settings import StyleSettings
from tutelage.data.stylise import stylise
from tutelage.losses.self_training import robust_entropy
from tutelage.methods.fda import FDA, FDASelfTraining


def method(kind: type[FDA] = FDA, net: Any = None, **settings: Any) -> FDA:
    return kind({"student": net or Stub()}, kind.Settings(**settings), FACTS)


def batches(targets: int = 2, labels: bool = False, ignored: float = 0.3) -> dict[str, Batch]:
    return {
        "source": batch(1, count=2, ignored=ignored),
        "target": batch(2, count=targets, labels=labels, ignored=ignored),
    }


def full(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, scale_factor=4, mode="bilinear")


@pytest.mark.parametrize("kind", ["fda", "statistics"])
def test_by_hand(kind: str) -> None:
    style = {"kind": kind, "beta": 0.1}
    fda, given = method(style=style, entropy=0.3, entropy_eta=1.5), batches()
    source, target = given["source"]["weak"], given["target"]["weak"]
    styled = stylise(source.image, target.image, StyleSettings(**style))
    assert not torch.allclose(styled, source.image, atol=0.01)
    found = terms(fda, given)
    expected = F.cross_entropy(full(fda.student(styled).logits), source.label, ignore_index=255)
    torch.testing.assert_close(found.pop("cross_entropy"), expected)
    rho = robust_entropy(fda.student(target.image).logits, 1.5)
    torch.testing.assert_close(found.pop("entropy"), 0.3 * rho)
    assert not found


def test_the_published_normaliser_is_of_nineteen_classes() -> None:
    given = batches()
    ours, theirs = (terms(method(entropy_normaliser=n), given)["entropy"] for n in (None, 2.9444))
    assert theirs < ours


def test_smaller_and_larger_target_batches() -> None:
    given = batches(targets=1)
    fda = method(entropy=0.0)
    source, target = given["source"]["weak"], given["target"]["weak"]
    styled = stylise(source.image, target.image.expand(2, -1, -1, -1), StyleSettings())
    expected = F.cross_entropy(full(fda.student(styled).logits), source.label, ignore_index=255)
    torch.testing.assert_close(terms(fda, given)["cross_entropy"], expected)
    larger = batches(targets=3)
    first = {"source": larger["source"], "target": batches(targets=3)["target"]}
    assert torch.equal(terms(fda, larger)["cross_entropy"], terms(fda, first)["cross_entropy"])


def test_the_entropy_begins_at_its_step() -> None:
    fda = method(entropy_start=3)
    assert terms(fda, batches(), step=2).keys() == {"cross_entropy"}
    assert terms(fda, batches(), step=3).keys() == {"cross_entropy", "entropy"}


def test_before_it_the_target_still_reaches_the_statistics_of_norms() -> None:
    class Asked(Stub):
        def forward(self, image: torch.Tensor) -> Any:
            seen.append((len(image), torch.is_grad_enabled()))
            return super().forward(image)

    seen: list[tuple[int, bool]] = []
    terms(method(net=Asked(), entropy_start=9), batches(targets=3))
    assert seen == [(2, True), (3, False)]
    seen.clear()
    terms(method(net=Asked(), entropy=0.0), batches(targets=3))
    assert seen == [(2, True)]


def test_padding_does_not_count_in_the_entropy() -> None:
    given = batches()
    target = given["target"]["weak"]
    valid = target.valid.clone()
    valid[:, :, 16:] = False
    padded = Batch({"weak": replace(target, valid=valid)}, given["target"].positions)
    fda = method()
    half = robust_entropy(fda.student(target.image).logits[..., :4])
    torch.testing.assert_close(terms(fda, {**given, "target": padded})["entropy"], 0.005 * half)
    nothing = Batch({"weak": replace(target, valid=torch.zeros_like(valid))}, given["target"].positions)
    assert terms(fda, {**given, "target": nothing})["entropy"].item() == 0.0


def test_the_target_has_no_labels_in_the_first_phase() -> None:
    assert not FDA.Settings.streams["target"].labels
    assert FDASelfTraining.Settings.streams["target"].labels


def test_second_phase_by_hand() -> None:
    fda, given = method(FDASelfTraining, entropy=0.2, pseudo=0.5), batches(labels=True)
    source, target = given["source"]["weak"], given["target"]["weak"]
    found = terms(fda, given)
    z_target = fda.student(target.image).logits
    styled = stylise(source.image, target.image, StyleSettings())
    expected = {
        "cross_entropy": F.cross_entropy(full(fda.student(styled).logits), source.label, ignore_index=255),
        "pseudo_cross_entropy": 0.5 * F.cross_entropy(full(z_target), target.label, ignore_index=255),
        "entropy": 0.2 * robust_entropy(z_target),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_second_phase_without_a_label() -> None:
    found = terms(method(FDASelfTraining), batches(labels=True, ignored=1.0))
    assert found["cross_entropy"].item() == 0.0
    assert found["pseudo_cross_entropy"].item() == 0.0
    assert torch.isfinite(found["entropy"])


def test_auxiliary_logits_learn_from_labels_alone() -> None:
    found = terms(method(FDASelfTraining, Stub(auxiliary=True)), batches(labels=True))
    assert found.keys() == {
        "cross_entropy", "auxiliary", "pseudo_cross_entropy", "pseudo_auxiliary", "entropy",
    }  # fmt: skip


@pytest.mark.parametrize("kind", [FDA, FDASelfTraining])
def test_micro_batches_make_one_batch(kind: type[FDA]) -> None:
    def trained(accumulate: int) -> dict[str, torch.Tensor]:
        made = method(kind, entropy=0.5)
        train(made, steps=2, accumulate=accumulate)
        return copied(made)

    for name, value in trained(1).items():
        torch.testing.assert_close(value, trained(2)[name], atol=1e-5, rtol=1e-4)


def test_training_changes_the_student_alone() -> None:
    fda = method(net=tiny())
    before = copied(fda.student)
    train(fda, steps=2)
    assert changed(fda.student, before)
    assert list(fda.exported()) == ["student"]
