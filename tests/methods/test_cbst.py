"""CBST: labels and pseudo labels as one set, and the regulariser on the target alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.errors import raises_code
from tests.methods.cases import FACTS, Stub, batch, changed, copied, terms, tiny, train
from tutelage.data.batch import Batch
from tutelage.methods.cbst import CBST


def method(net: Any = None, **settings: Any) -> CBST:
    return CBST({"student": net or Stub()}, CBST.Settings(**settings), FACTS)


def batches(source: float = 0.3, target: float = 0.6) -> dict[str, Batch]:
    """With these shares of ignored pixels."""
    return {"source": batch(1, count=1, ignored=source), "target": batch(2, count=3, ignored=target)}


def logits(cbst: CBST, given: dict[str, Batch], name: str) -> Tensor:
    return F.interpolate(cbst.student(given[name]["weak"].image).logits, scale_factor=4, mode="bilinear")


def test_by_hand() -> None:
    cbst, given = method(regulariser=0.3), batches()
    found = terms(cbst, given)
    z = torch.cat([logits(cbst, given, name) for name in ("source", "target")])
    label = torch.cat([given[name]["weak"].label for name in ("source", "target")])
    torch.testing.assert_close(found.pop("cross_entropy"), F.cross_entropy(z, label, ignore_index=255))
    counted = given["target"]["weak"].label != 255
    spread = -logits(cbst, given, "target").log_softmax(1).mean(1)[counted].mean()
    torch.testing.assert_close(found.pop("regulariser"), 0.3 * spread)
    assert not found


def test_every_pixel_counts_the_same_whichever_domain() -> None:
    cbst, given = method(regulariser=0.0), batches(source=1.0)
    alone = F.cross_entropy(logits(cbst, given, "target"), given["target"]["weak"].label, ignore_index=255)
    torch.testing.assert_close(terms(cbst, given)["cross_entropy"], alone)
    assert terms(cbst, given).keys() == {"cross_entropy"}


def test_without_pseudo_labels_it_is_training_on_the_source() -> None:
    cbst, given = method(), batches(target=1.0)
    found = terms(cbst, given)
    alone = F.cross_entropy(logits(cbst, given, "source"), given["source"]["weak"].label, ignore_index=255)
    torch.testing.assert_close(found["cross_entropy"], alone)
    assert found["regulariser"].item() == 0.0
    nothing = terms(cbst, batches(1.0, 1.0))
    assert {name: term.item() for name, term in nothing.items()} == {"cross_entropy": 0.0, "regulariser": 0.0}


def test_one_forward_over_both() -> None:
    class Asked(Stub):
        def forward(self, image: Tensor) -> Any:
            seen.append(len(image))
            return super().forward(image)

    seen: list[int] = []
    assert terms(method(Asked(auxiliary=True)), batches()).keys() == {"cross_entropy", "auxiliary", "regulariser"}
    assert seen == [4]


def test_crops_of_different_sizes() -> None:
    given = {"source": batch(1, size=(32, 32)), "target": batch(2, size=(32, 64))}
    with raises_code("streams-differ", "32x32", "32x64"):
        terms(method(), given)


def test_micro_batches_make_one_batch() -> None:
    def trained(accumulate: int) -> dict[str, Tensor]:
        made = method(regulariser=0.5)
        train(made, steps=2, accumulate=accumulate)
        return copied(made)

    whole, parts = trained(1), trained(2)
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[name], atol=1e-5, rtol=1e-4)


def test_training_changes_the_student() -> None:
    cbst = method(tiny())
    before = copied(cbst.student)
    train(cbst, steps=2)
    assert changed(cbst.student, before)
