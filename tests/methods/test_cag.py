"""CAG-UDA by hand: two kinds of labels, and class means that are drawn to anchors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.errors import raises_code
from tests.methods.cases import CLASSES, FACTS, Stub, batch, changed, copied, terms, train
from tutelage.data.batch import Batch
from tutelage.methods.cag import CAG

ANCHORS = torch.tensor([[0.2, 0.1, 0.3], [0.5, 0.6, 0.4], [0.9, 0.8, 0.7]])


def method(**settings: Any) -> CAG:
    nets: Any = {"student": Stub(0), "labeller": Stub(5)}
    nets["student"].embedding_channels = nets["labeller"].embedding_channels = 3
    info = replace(FACTS, fitted_inputs={"anchors": {"prototypes": ANCHORS, "counts": torch.ones(CLASSES)}})
    return CAG(nets, CAG.Settings(**{"margin": 0.1, "threshold": 0.5, "min_pixels": 2, **settings}), info)


def domains(padding: int = 0) -> dict[str, Batch]:
    target = batch(2, labels=False)
    target["weak"].valid[:, 32 - padding :] = False
    return {"source": batch(1), "target": target}


@pytest.mark.parametrize("padding", [0, 12])
def test_the_target_by_hand(padding: int) -> None:
    made, batches = method(), domains(padding)
    view = batches["target"]["weak"]
    valid = view.valid[:, ::4, ::4]
    judged, prediction = made.labeller(view.image), made.student(view.image)
    distance = (judged.embedding[:, None] - ANCHORS[None, :, :, None, None]).norm(dim=2)
    near = distance.sort(1)
    anchor = near.indices[:, 0].masked_fill((near.values[:, 1] - near.values[:, 0] < 0.1) | ~valid, 255)
    best = judged.logits.softmax(1).max(1)
    sure = best.indices.masked_fill((best.values <= 0.5) | ~valid, 255)
    assert (anchor != 255).any()
    assert (sure != 255).any()
    found = terms(made, batches, "target")
    torch.testing.assert_close(
        found["anchor_labels"], 0.5 * F.cross_entropy(prediction.logits, anchor, ignore_index=255)
    )
    torch.testing.assert_close(found["sure_labels"], 0.5 * F.cross_entropy(prediction.logits, sure, ignore_index=255))
    each = []
    for image in range(len(valid)):
        for class_ in range(CLASSES):
            seen = (anchor[image] == class_) & (prediction.logits[image].argmax(0) == class_)
            if seen.sum() >= 2:
                mean = prediction.embedding[image, :, seen].mean(1)
                each.append(F.smooth_l1_loss(mean, ANCHORS[class_]))
    expected = 10 * torch.stack(each).mean() if each else torch.zeros(())
    torch.testing.assert_close(found["distance_target"], 0.7 * expected)


def test_nothing_is_labelled() -> None:
    made = method(margin=1e3, threshold=1.0)
    found = terms(made, domains(), "target")
    assert all(value.item() == 0.0 for value in found.values())
    found["anchor_labels"].backward()
    assert not any(parameter.grad.any() for parameter in made.student.parameters())


def test_anchors_stand_still() -> None:
    made = method()
    before = copied(made)
    train(made, steps=2)
    assert changed(made.student, copied(method().student))
    assert torch.equal(made.anchors.prototypes, before["anchors.prototypes"])


def test_without_anchors() -> None:
    nets: Any = {"student": Stub(0), "labeller": Stub(5)}
    nets["student"].embedding_channels = nets["labeller"].embedding_channels = 3
    with raises_code("missing-fit", "anchors") as raised:
        CAG(nets, CAG.Settings(), FACTS)
    nets["labeller"].embedding_channels = 5
    with raises_code("embedding-width"):
        CAG(nets, CAG.Settings(), FACTS)
    assert "what: anchors" in raised.value.remedy
